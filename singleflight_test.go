// Copyright 2026 The singleflight Authors.
// Use of this source code is governed by the BSD-style license in LICENSE.

package singleflight

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"hash/maphash"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"reflect"
	"regexp"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"
)

// The first part of this file is the specification: a short test for each promise of the
// documentation, in its order. After that comes what a single case cannot show, a section
// each: all schedules, real concurrency, the memory model, locks, what the collector
// frees, the graph of waits, bubbles, crashes, allocations, and the table. The benchmark is
// last. A section opens with what it finds that the ones before it do not.
//
// The caller that starts a call is its leader, the others are joiners, and a caller of
// DoChan is a reader. fn returns, panics or exits. A caller whose context is done leaves.

func init() {
	// With more processors, the runtime of these two fails in tests with many bubbles: it
	// keeps the WaitGroups of bubbles in a list that it does not lock. If go.mod asked for
	// go1.25.2, which does, all who import this package would have to, too.
	if v := runtime.Version(); v == "go1.25.0" || v == "go1.25.1" {
		runtime.GOMAXPROCS(1)
	}
}

// inBubble runs a test with a Group. In a bubble, a test knows when all callers are
// blocked, and a caller that gets no result makes it fail at once.
func inBubble(t *testing.T, f func(t *testing.T, g *Group)) {
	synctest.Test(t, func(t *testing.T) { f(t, new(Group)) })
}

// A result is what a caller gets.
type result struct {
	how    string // "returned", "panicked" or "exited", or "" while the caller waits
	val    any    // what the call returned, or what the caller recovered
	err    error
	shared bool
}

func (r result) String() string {
	if r.how == "" {
		return "waits"
	}
	firstLine := func(x any) string { line, _, _ := strings.Cut(fmt.Sprint(x), "\n"); return line } // no stack
	return fmt.Sprintf("%s (%s, %s, %t)", r.how, firstLine(r.val), firstLine(r.err), r.shared)
}

// observe calls f and records how that ends.
func (r *result) observe(f func() (val any, err error, shared bool)) {
	how := "exited"
	defer func() { r.how = how }()
	func() {
		defer func() {
			if v := recover(); v != nil {
				r.val = v
			}
		}()
		r.val, r.err, r.shared = f()
		how = "returned"
	}()
	if how == "exited" { // but the goroutine goes on
		how = "panicked"
	}
}

// goCall calls f on a new goroutine, and returns when every goroutine of the bubble has
// ended or is blocked.
func goCall(f func() (val any, err error, shared bool)) *result {
	caller := new(result)
	go caller.observe(f)
	synctest.Wait()
	return caller
}

func check[T comparable](t *testing.T, what string, got, want T) {
	t.Helper()
	if got != want {
		t.Errorf("%s: got %v, want %v", what, got, want)
	}
}

// want checks the results of callers.
func want(t *testing.T, want result, callers ...*result) {
	t.Helper()
	for i, c := range callers {
		check(t, fmt.Sprintf("caller %d", i), *c, want)
	}
}

func wantWaiting(t *testing.T, callers ...*result) { t.Helper(); want(t, result{}, callers...) }

func wantReturn(t *testing.T, val any, err error, shared bool, callers ...*result) {
	t.Helper()
	want(t, result{"returned", val, err, shared}, callers...)
}

// wantPanic checks that the callers panicked with the same error, and returns it.
func wantPanic(t *testing.T, value any, callers ...*result) *PanicError {
	t.Helper()
	p, ok := callers[0].val.(*PanicError)
	if !ok || p.Value() != value {
		t.Fatalf("caller 0: got %+v, want a panic with %v", *callers[0], value)
	}
	want(t, result{how: "panicked", val: p}, callers...)
	return p
}

// A blocker has an fn that blocks until the test says how it ends.
type blocker struct {
	runs int             // how often fn has started
	ctx  context.Context // of fn, which does not heed it
	end  chan func() (any, error)
}

func newBlocker(t *testing.T) *blocker {
	f := &blocker{end: make(chan func() (any, error))}
	t.Cleanup(func() { close(f.end) })
	return f
}

func (f *blocker) fn() (any, error) {
	f.runs++
	if end := <-f.end; end != nil {
		return end()
	}
	return nil, nil // the test is over
}

func (f *blocker) fnWith(ctx context.Context) (any, error) {
	f.ctx = ctx
	return f.fn()
}

// ends has fn end, and returns when all callers have noticed.
func (f *blocker) ends(end func() (any, error)) {
	f.end <- end
	synctest.Wait()
}

func (f *blocker) returns(val any, err error) { f.ends(returns(val, err)) }

func returns(val any, err error) func() (any, error) { return func() (any, error) { return val, err } }
func panics(value any) func() (any, error)           { return func() (any, error) { panic(value) } }
func exits() (any, error)                            { runtime.Goexit(); return nil, nil }
func returnsNil(context.Context) (any, error)        { return nil, nil }

// A method is the name of a way to call fn for a key and wait for the results.
type method string

const (
	byDo        method = "Do"
	byDoChan    method = "DoChan"
	byDoContext method = "DoContext"
)

var methods = []method{byDo, byDoChan, byDoContext}

// callWith calls the method. Only DoContext has the context.
func (m method) callWith(ctx context.Context, g *Group, key string, fn func(context.Context) (any, error)) (any, error, bool) {
	withoutContext := func() (any, error) { return fn(context.Background()) }
	switch m {
	case byDo:
		return g.Do(key, withoutContext)
	case byDoChan:
		r := <-g.DoChan(key, withoutContext)
		return r.Val, r.Err, r.Shared
	}
	return g.DoContext(ctx, key, fn)
}

func (m method) call(g *Group, key string, fn func() (any, error)) (any, error, bool) {
	return m.callWith(context.Background(), g, key, func(context.Context) (any, error) { return fn() })
}

func (m method) start(g *Group, key string, fn func() (any, error)) *result {
	return goCall(func() (any, error, bool) { return m.call(g, key, fn) })
}

// lead starts a call whose fn blocks.
func (m method) lead(t *testing.T, g *Group, key string) (f *blocker, leader *result) {
	t.Helper()
	return m.leadWith(t, t.Context(), g, key)
}

func (m method) leadWith(t *testing.T, ctx context.Context, g *Group, key string) (f *blocker, leader *result) {
	t.Helper()
	f = newBlocker(t)
	leader = goCall(func() (any, error, bool) { return m.callWith(ctx, g, key, f.fnWith) })
	if f.runs == 0 {
		t.Fatalf("the call of %q was joined, want a new one", key)
	}
	return f, leader
}

// join joins a call. Its own fn is to be ignored.
func (m method) join(g *Group, key string) *result {
	return m.start(g, key, returns("a joiner's fn", nil))
}

func joinContext(ctx context.Context, g *Group, key string) *result {
	return goCall(func() (any, error, bool) { return g.DoContext(ctx, key, nil) })
}

// forEach runs a subtest for each method.
func forEach(t *testing.T, methods []method, f func(t *testing.T, g *Group, m method)) {
	for _, m := range methods {
		t.Run(string(m), func(t *testing.T) {
			inBubble(t, func(t *testing.T, g *Group) { f(t, g, m) })
		})
	}
}

// withCancel returns a context, and a function that cancels it and waits until all
// callers have noticed.
func withCancel(parent context.Context) (ctx context.Context, cancel func()) {
	ctx, c := context.WithCancel(parent)
	return ctx, func() { c(); synctest.Wait() }
}

// edit calls f with the call of key that can be joined, or nil, with the mutex held.
func edit(g *Group, key string, f func(s *stripe, c *call)) {
	s, _, c := g.lookup(key)
	defer s.mu.Unlock()
	f(s, c)
}

// Do, and what holds for all methods.

func TestDoReturnsTheResultsOfFnAndCachesNothing(t *testing.T) {
	forEach(t, methods, func(t *testing.T, g *Group, m method) {
		for _, r := range []Result{{1, nil, false}, {nil, io.EOF, false}, {1, io.EOF, false}, {nil, nil, false}} {
			wantReturn(t, r.Val, r.Err, false, m.start(g, "key", returns(r.Val, r.Err)))
		}
	})
}

// In a call that was joined, shared is true for all callers.
func TestDoSuppressesDuplicateCalls(t *testing.T) {
	forEach(t, methods, func(t *testing.T, g *Group, m method) {
		f, leader := m.lead(t, g, "key")
		joiners := []*result{byDo.join(g, "key"), byDoChan.join(g, "key"), byDoContext.join(g, "key"), byDo.join(g, "key")}
		wantWaiting(t, append(joiners, leader)...)
		f.returns(1, io.EOF)
		wantReturn(t, 1, io.EOF, true, append(joiners, leader)...)
	})
}

func TestDoRunsFnOnItsCallersGoroutine(t *testing.T) {
	forEach(t, methods, func(t *testing.T, g *Group, m method) {
		var stack []byte
		m.start(g, "key", func() (any, error) { stack = debug.Stack(); return nil, nil })
		below := bytes.Contains(stack, []byte(".(*Group)."+string(m)+"("))
		check(t, "fn runs below "+string(m), below, m == byDo)
	})
}

func TestDoFreesTheKeyBeforeItReturns(t *testing.T) {
	forEach(t, methods, func(t *testing.T, g *Group, m method) {
		f := newBlocker(t)
		again := func() (any, error, bool) {
			m.call(g, "key", f.fn)
			v, _, _ := m.call(g, "key", returns(2, nil))
			return v, nil, false
		}
		leader, joiner := goCall(again), goCall(again)
		f.returns(1, nil)
		wantReturn(t, 2, nil, false, leader, joiner)
	})
}

func TestDoMayUseItsGroupInsideFn(t *testing.T) {
	inBubble(t, func(t *testing.T, g *Group) {
		var ch <-chan Result
		c := byDo.start(g, "key", func() (any, error) {
			other, _, _ := g.Do("other", returns(1, nil))
			ch = g.DoChan("key", nil) // joins
			g.Forget("key")
			own, _, _ := g.Do("key", returns(2, nil))
			return other.(int) + own.(int), nil
		})
		wantReturn(t, 3, nil, true, c)
		check(t, "result", <-ch, Result{3, nil, true})
	})
}

func TestDoInsideFnWaitsForItsOwnKeyForever(t *testing.T) {
	inBubble(t, func(t *testing.T, g *Group) {
		leader := byDo.start(g, "key", func() (any, error) {
			defer edit(g, "key", func(_ *stripe, c *call) { c.wg.Add(1) })
			v, err, _ := g.Do("key", nil)
			return v, err
		})
		time.Sleep(100 * 365 * 24 * time.Hour)
		wantWaiting(t, leader)
		edit(g, "key", func(_ *stripe, c *call) { c.wg.Done() }) // so that the test can end
	})
}

// DoChan.

func TestDoChanSendsOneResult(t *testing.T) {
	inBubble(t, func(t *testing.T, g *Group) {
		f := newBlocker(t)
		ch, ch2 := g.DoChan("key", f.fn), g.DoChan("key", nil)
		g.DoChan("key", nil) // may be dropped
		f.returns(1, io.EOF)
		wantReturn(t, 2, nil, false, byDo.start(g, "key", returns(2, nil))) // the key is free
		check(t, "capacity", cap(ch), 1)
		check(t, "result", <-ch, Result{1, io.EOF, true})
		check(t, "result", <-ch2, Result{1, io.EOF, true})
		again, _ := reflect.ValueOf(ch).TryRecv()
		check(t, "the channel is closed or has another result", again.IsValid(), false)
	})
}

func TestDoChanStartsOneGoroutineAndJoiningNone(t *testing.T) {
	inBubble(t, func(t *testing.T, g *Group) {
		f := newBlocker(t)
		before := runtime.NumGoroutine()
		for range 100 {
			g.DoChan("key", f.fn)
		}
		check(t, "more goroutines", max(1, runtime.NumGoroutine()-before), 1)
	})
}

// Forget and ForgetUnshared.

func TestForgetStartsANewCallAndLeavesTheOldOneToItsCallers(t *testing.T) {
	forEach(t, methods, func(t *testing.T, g *Group, m method) {
		old, oldLeader := m.lead(t, g, "key")
		g.Forget("unknown")
		new(Group).Forget("key")
		oldJoiner := m.join(g, "key")
		g.Forget("key")
		next, leader := m.lead(t, g, "key")
		old.returns(1, nil)
		joiner := m.join(g, "key")
		next.returns(2, nil)
		wantReturn(t, 1, nil, true, oldLeader, oldJoiner)
		wantReturn(t, 2, nil, true, leader, joiner)
	})
}

func TestForgetUnsharedForgetsNoCallThatWasJoined(t *testing.T) {
	forEach(t, methods, func(t *testing.T, g *Group, m method) {
		check(t, "ForgetUnshared without a call", g.ForgetUnshared("key"), true)
		old, oldLeader := m.lead(t, g, "key")
		check(t, "ForgetUnshared", g.ForgetUnshared("key"), true)
		next, leader := m.lead(t, g, "key")
		ctx, cancel := withCancel(t.Context())
		joinContext(ctx, g, "key")
		cancel()
		check(t, "ForgetUnshared of a call whose joiner has left", g.ForgetUnshared("key"), false)
		joiner := m.join(g, "key")
		check(t, "ForgetUnshared of a shared call", g.ForgetUnshared("key"), false)
		old.returns(1, nil)
		next.returns(2, nil)
		wantReturn(t, 1, nil, false, oldLeader)
		wantReturn(t, 2, nil, true, leader, joiner)
	})
}

// DoContext.

type ctxKey struct{}

func TestDoContextGivesFnTheValuesOfItsStarterOnly(t *testing.T) {
	inBubble(t, func(t *testing.T, g *Group) {
		ctx, cancel := context.WithTimeout(context.WithValue(t.Context(), ctxKey{}, "starter"), time.Hour)
		f, _ := byDoContext.leadWith(t, ctx, g, "key")
		joinContext(context.WithValue(ctx, ctxKey{}, "joiner"), g, "key")
		nested, _ := byDoContext.leadWith(t, f.ctx, g, "nested")
		check(t, "value of a nested fn's context", nested.ctx.Value(ctxKey{}), any("starter"))
		check(t, "value of fn's context", f.ctx.Value(ctxKey{}), any("starter"))
		cancel()
		synctest.Wait()
		_, ok := f.ctx.Deadline()
		check(t, "fn's context has a deadline", ok, false)
		check(t, "value of fn's context when all have left", f.ctx.Value(ctxKey{}), any("starter"))
		check(t, "error of fn's context", f.ctx.Err(), context.Canceled)
	})
}

func TestDoContextReturnsAtOnceIfItsContextIsDone(t *testing.T) {
	inBubble(t, func(t *testing.T, g *Group) {
		ctx, cancel := context.WithDeadlineCause(t.Context(), time.Now(), errors.New("cause"))
		defer cancel()
		wantReturn(t, nil, context.DeadlineExceeded, false, joinContext(ctx, g, "key")) // starts nothing
		f, leader := byDo.lead(t, g, "key")
		wantReturn(t, nil, context.DeadlineExceeded, false, joinContext(ctx, g, "key"))
		f.returns(1, nil)
		wantReturn(t, 1, nil, false, leader)
	})
}

func TestDoContextStopsWaitingWhenItsContextIsDone(t *testing.T) {
	inBubble(t, func(t *testing.T, g *Group) {
		ctx, cancel := context.WithCancelCause(t.Context())
		f, leader := byDoContext.lead(t, g, "key")
		f2, leaver := byDoContext.leadWith(t, ctx, g, "key that its leader leaves")
		joiner, leaver2 := joinContext(t.Context(), g, "key that its leader leaves"), joinContext(ctx, g, "key")
		wantWaiting(t, leader, leaver, joiner, leaver2)
		cancel(errors.New("cause"))
		synctest.Wait()
		wantReturn(t, nil, context.Canceled, false, leaver, leaver2)
		wantWaiting(t, leader, joiner)
		f.returns(1, nil)
		f2.returns(1, nil)
		wantReturn(t, 1, nil, true, leader, joiner)
	})
}

func TestDoContextGivesUpTheCallWhenTheLastCallerLeaves(t *testing.T) {
	for _, forgotten := range []bool{false, true} {
		inBubble(t, func(t *testing.T, g *Group) {
			ctx, cancel := withCancel(t.Context())
			old := newBlocker(t)
			caller := goCall(func() (any, error, bool) {
				g.DoContext(ctx, "key", old.fnWith)
				return context.Cause(old.ctx).Error(), old.ctx.Err(), false
			})
			if forgotten {
				g.Forget("key")
			} else {
				cancel()
			}
			next, leader := byDoContext.lead(t, g, "key")
			cancel()
			wantReturn(t, "singleflight: all callers of DoContext have left", context.Canceled, false, caller) // so fn's context was canceled first
			check(t, "error of the next fn's context", next.ctx.Err(), nil)
			old.returns(1, nil) // late, as it does not heed its context
			joiner := byDo.join(g, "key")
			next.returns(2, nil)
			wantReturn(t, 2, nil, true, leader, joiner)
			check(t, "cause after fn has returned", context.Cause(next.ctx), context.Canceled)
		})
	}
}

func TestDoContextIsKeptAliveByCallersOfDoAndDoChan(t *testing.T) {
	forEach(t, []method{byDo, byDoChan}, func(t *testing.T, g *Group, m method) {
		ctx, cancel := withCancel(t.Context())
		f, _ := byDoContext.leadWith(t, ctx, g, "joined")
		f2, leader := m.lead(t, g, "led")
		joiner, leaver := m.join(g, "joined"), joinContext(ctx, g, "led")
		cancel()
		check(t, "error of fn's context", f.ctx.Err(), nil)
		wantReturn(t, nil, context.Canceled, false, leaver)
		another, another2 := m.join(g, "joined"), m.join(g, "led")
		f.returns(1, nil)
		f2.returns(1, nil)
		wantReturn(t, 1, nil, true, leader, joiner, another, another2)
	})
}

func TestDoContextCancelsFnsContextBeforeAnyCallerGetsTheResults(t *testing.T) {
	for _, end := range []func() (any, error){returns(1, nil), panics(1), exits} {
		forEach(t, []method{byDo, byDoContext}, func(t *testing.T, g *Group, m method) {
			f, _ := byDoContext.lead(t, g, "key")
			var fnErr error
			goCall(func() (any, error, bool) {
				defer func() { fnErr = f.ctx.Err() }()
				return m.call(g, "key", nil)
			})
			check(t, "error of fn's context", f.ctx.Err(), nil)
			f.ends(end)
			check(t, "error of fn's context for the joiner", fnErr, context.Canceled)
		})
	}
}

// With one processor, fn's goroutine begins after the caller has returned, or is interrupted.
func TestDoContextDoesNotRunFnIfAllCallersHaveLeftBefore(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	inBubble(t, func(t *testing.T, g *Group) {
		ran := 0
		for range 100 {
			ctx, cancel := context.WithCancel(t.Context())
			leaving := hookContext{ctx, "Value", cancel} // when DoContext has seen that ctx is not done
			_, err, _ := g.DoContext(leaving, "key", func(context.Context) (any, error) { ran++; return nil, nil })
			synctest.Wait()
			check(t, "error", err, context.Canceled)
		}
		check(t, "fn has run in most of 100 calls", ran > 50, false)
	})
}

// ErrRecursive. A caller with the context of an fn stands for one inside it.

func TestErrRecursiveIfACallWouldWaitForItself(t *testing.T) {
	inBubble(t, func(t *testing.T, g *Group) {
		ctx, leave := withCancel(t.Context())
		a, _ := byDoContext.leadWith(t, ctx, g, "a")
		b, _ := byDoContext.leadWith(t, context.WithoutCancel(a.ctx), new(Group), "a") // of another Group
		c, _ := byDoContext.lead(t, g, "c")
		first := joinContext(b.ctx, g, "c")
		derived, cancel := context.WithTimeout(context.WithValue(c.ctx, ctxKey{}, 1), time.Hour)
		defer cancel()
		for _, ctx := range []context.Context{a.ctx, b.ctx, c.ctx, derived} {
			wantReturn(t, nil, ErrRecursive, false, joinContext(ctx, g, "a"))
		}
		wantWaiting(t, first)
		check(t, "ForgetUnshared, as those callers have joined", g.ForgetUnshared("a"), false)
		leave() // as those have left, too, this is the last caller
		check(t, "error of fn's context", a.ctx.Err(), context.Canceled)
		c.returns(1, nil)
		wantReturn(t, 1, nil, true, first)
	})
}

func TestErrRecursiveNotOnceAllCallersInsideFnHaveLeft(t *testing.T) {
	inBubble(t, func(t *testing.T, g *Group) {
		a, _ := byDoContext.lead(t, g, "a")
		b, _ := byDoContext.lead(t, g, "b")
		c, _ := byDoContext.lead(t, g, "c")
		wantWaiting(t, joinContext(c.ctx, g, "b")) // so that b is still waited for in the end
		ctx, leave := withCancel(a.ctx)
		ctx2, leave2 := withCancel(a.ctx)
		wantWaiting(t, joinContext(ctx, g, "b"), joinContext(ctx2, g, "b"))
		leave()
		wantReturn(t, nil, ErrRecursive, false, joinContext(b.ctx, g, "a"))
		leave2()
		wantWaiting(t, joinContext(b.ctx, g, "a"))
	})
}

func TestErrRecursiveDoesNotSeeWaitsInDoOrForAChannel(t *testing.T) {
	for _, m := range []method{byDo, byDoChan} {
		inBubble(t, func(t *testing.T, g *Group) {
			a, _ := byDoContext.lead(t, g, "a")
			b, _ := byDoContext.lead(t, g, "b")
			wantWaiting(t, m.join(g, "b")) // inside the fn of a, which only the caller knows
			joiner := joinContext(b.ctx, g, "a")
			wantWaiting(t, joiner)
			a.returns(1, nil)
			wantReturn(t, 1, nil, true, joiner)
		})
	}
}

func TestErrRecursiveNotOnceTheNestedCallHasEnded(t *testing.T) {
	for _, end := range []func() (any, error){returns(1, nil), panics(1), exits} {
		inBubble(t, func(t *testing.T, g *Group) {
			a, _ := byDoContext.lead(t, g, "a")
			b, _ := byDoContext.lead(t, g, "b")
			joinContext(a.ctx, g, "b")
			check(t, "waits of a", len(nodeOf(a.ctx).edges[out]), 1)
			b.ends(end)
			check(t, "waits of a in the end", len(nodeOf(a.ctx).edges[out]), 0)
		})
	}
}

func TestErrRecursiveIsAboutCallsNotKeys(t *testing.T) {
	inBubble(t, func(t *testing.T, g *Group) {
		a, _ := byDoContext.lead(t, g, "a")
		b, _ := byDoContext.leadWith(t, context.WithoutCancel(a.ctx), g, "b")
		g.Forget("b")
		next, _ := byDoContext.leadWith(t, b.ctx, g, "b")
		wantReturn(t, nil, ErrRecursive, false, joinContext(next.ctx, g, "a"))
		a.returns(1, nil)
		byDoContext.leadWith(t, next.ctx, g, "a")
	})
}

// GroupOf.

// startOf starts a caller of a GroupOf.
func startOf[V any](m method, g *GroupOf[V], fn func() (V, error)) *result {
	return goCall(func() (v any, err error, _ bool) {
		switch m {
		case byDo:
			v, err = g.Do("key", fn)
		case byDoChan:
			r := <-g.DoChan("key", fn)
			v, err = r.Val, r.Err
		case byDoContext:
			v, err = g.DoContext(context.Background(), "key", func(context.Context) (V, error) { return fn() })
		}
		return v, err, false
	})
}

func TestGroupOfReturnsTheResultsOfFnUnchanged(t *testing.T) {
	forEach(t, methods, func(t *testing.T, _ *Group, m method) {
		wantReturn(t, 1, io.EOF, false, startOf(m, new(GroupOf[int]), func() (int, error) { return 1, io.EOF }))
		wantReturn(t, 2, nil, false, startOf(m, new(GroupOf[int]), func() (int, error) { return 2, nil }))
		wantReturn(t, io.EOF, nil, false, startOf(m, new(GroupOf[error]), func() (error, error) { return io.EOF, nil }))
		wantReturn(t, nil, io.EOF, false, startOf(m, new(GroupOf[error]), func() (error, error) { return nil, io.EOF }))
	})
}

func TestGroupOfSharesForgetsPanicsAndExitsAsGroupDoes(t *testing.T) {
	for how, end := range map[string]func() (any, error){"returns": returns(1, io.EOF), "panics": panics("boom"), "exits": exits} {
		forEach(t, methods, func(t *testing.T, _ *Group, m method) {
			if how == "panics" && m == byDoChan {
				return // it would crash
			}
			g := new(GroupOf[any])
			check(t, "ForgetUnshared without a call", g.ForgetUnshared("key"), true)
			f := newBlocker(t)
			leader, joiner := startOf(m, g, f.fn), startOf(m, g, nil)
			check(t, "ForgetUnshared of a shared call", g.ForgetUnshared("key"), false)
			wantWaiting(t, leader, joiner)
			g.Forget("key")
			wantReturn(t, 2, nil, false, startOf(m, g, returns(2, nil)))
			f.ends(end)
			switch {
			case how == "panics":
				wantPanic(t, "boom", leader, joiner)
			case how == "returns":
				wantReturn(t, 1, io.EOF, false, leader, joiner)
			case m == byDoChan:
				wantReturn(t, nil, ErrGoexit, false, leader, joiner)
			default:
				want(t, result{how: "exited"}, leader, joiner)
			}
		})
	}
}

func TestGroupOfReturnsTheZeroValueIfThereIsNone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g GroupOf[int]
		ctx, cancel := withCancel(context.WithValue(t.Context(), ctxKey{}, "value"))
		var refused ResultOf[int]
		leaver := goCall(func() (any, error, bool) {
			v, err := g.DoContext(ctx, "key", func(ctx context.Context) (int, error) {
				check(t, "value of fn's context", ctx.Value(ctxKey{}), any("value"))
				refused.Val, refused.Err = g.DoContext(ctx, "key", nil)
				<-ctx.Done()
				return 1, nil
			})
			return v, err, false
		})
		cancel()
		wantReturn(t, 0, context.Canceled, false, leaver)
		check(t, "result of a caller that is refused", refused, ResultOf[int]{0, ErrRecursive})
		ch := g.DoChan("key", func() (int, error) { runtime.Goexit(); return 1, nil })
		check(t, "capacity", cap(ch), 1)
		check(t, "result of a channel", <-ch, ResultOf[int]{0, ErrGoexit})
		again, _ := reflect.ValueOf(ch).TryRecv()
		check(t, "the channel is closed or has another result", again.IsValid(), false)
	})
}

// Panics and Goexit, except those that crash the process.

func TestPanicErrorIsRaisedInEveryCallerOfDoAndDoContext(t *testing.T) {
	forEach(t, []method{byDo, byDoContext}, func(t *testing.T, g *Group, m method) {
		ctx, cancel := withCancel(t.Context())
		f, leader := m.lead(t, g, "key")
		joiner, joiner2, leaver := byDo.join(g, "key"), byDoContext.join(g, "key"), joinContext(ctx, g, "key")
		cancel()
		f.ends(panics("boom"))
		wantPanic(t, "boom", leader, joiner, joiner2)
		wantReturn(t, nil, context.Canceled, false, leaver)
		wantReturn(t, 2, nil, false, byDo.start(g, "key", returns(2, nil))) // the key is free
	})
}

func panicsWithEOF() (any, error) { panic(io.EOF) }

func TestPanicErrorTextIsTheValueAndTheStack(t *testing.T) {
	inBubble(t, func(t *testing.T, g *Group) {
		p := wantPanic(t, io.EOF, byDo.start(g, "key", panicsWithEOF))
		stack := string(p.Stack())
		check(t, "text", p.Error(), "EOF\n\n"+stack)
		check(t, "the stack has fn: "+stack, strings.Contains(stack, ".panicsWithEOF("), true)
		check(t, "the stack names a goroutine", strings.HasPrefix(stack, "goroutine "), false)
		text := wantPanic(t, 1, byDo.start(g, "key", panics(1))).Error()
		check(t, "text of a value that is no error", strings.HasPrefix(text, "1\n\n"), true)
		clear(p.Stack())
		check(t, "stack, of which the caller got a copy", string(p.Stack()), stack)
	})
}

func TestPanicErrorUnwrapsToTheValueIfThatIsAnError(t *testing.T) {
	inBubble(t, func(t *testing.T, g *Group) {
		p := wantPanic(t, io.EOF, byDo.start(g, "key", panics(io.EOF)))
		for _, err := range []error{p, fmt.Errorf("wrapped: %w", p), errors.Join(errors.New("another"), p)} {
			var found *PanicError
			check(t, "errors.As and errors.Is", errors.As(err, &found) && found == p && errors.Is(err, io.EOF), true)
		}
		check(t, "Unwrap", wantPanic(t, "boom", byDo.start(g, "key", panics("boom"))).Unwrap(), nil)
	})
}

func TestPanicErrorThatFnReturnsIsAnOrdinaryError(t *testing.T) {
	forEach(t, methods, func(t *testing.T, g *Group, m method) {
		p := wantPanic(t, "boom", byDo.start(g, "key", panics("boom")))
		wantReturn(t, 1, p, false, m.start(g, "key", returns(1, p)))
		wantPanic(t, p, byDo.start(g, "key", panics(p))) // in a panic of its own
		wantReturn(t, 1, ErrGoexit, false, m.start(g, "key", returns(1, ErrGoexit)))
	})
}

func TestPanicErrorOfANilFn(t *testing.T) {
	inBubble(t, func(t *testing.T, g *Group) {
		ofDo := goCall(func() (any, error, bool) { return g.Do("key", nil) })
		for _, c := range []*result{ofDo, joinContext(t.Context(), g, "key"), startOf(byDo, new(GroupOf[int]), nil)} {
			var nilFn runtime.Error
			p, ok := c.val.(*PanicError)
			check(t, fmt.Sprintf("%T has a runtime.Error", c.val), ok && errors.As(p, &nilFn), true)
		}
	})
}

func TestPanicErrorOfAPanicWithNil(t *testing.T) {
	t.Setenv("GODEBUG", "panicnil=1") // as before Go 1.21
	var none result
	if none.observe(func() (any, error, bool) { panic(nil) }); none != (result{how: "panicked"}) {
		t.Skipf("GODEBUG=panicnil=1 has no effect: recovered %v", none.val)
	}
	forEach(t, []method{byDo, byDoContext}, func(t *testing.T, g *Group, m method) {
		wantPanic(t, nil, m.start(g, "key", panics(nil)))
		// Except during a Goexit, where nothing tells the two apart.
		c := m.start(g, "key", func() (any, error) { defer panics(nil)(); return exits() })
		want(t, result{how: "exited"}, c)
	})
}

func TestPanicErrorOfADeferredFunctionDuringGoexit(t *testing.T) {
	forEach(t, []method{byDo, byDoContext}, func(t *testing.T, g *Group, m method) {
		f, leader := m.lead(t, g, "key")
		joiner, joiner2 := byDo.join(g, "key"), byDoContext.join(g, "key")
		f.ends(func() (any, error) { defer panics("late")(); return exits() })
		p := wantPanic(t, "late", joiner, joiner2)
		check(t, "it is the same error", leader.val, any(p))
		check(t, "leader of "+string(m), leader.how, map[method]string{byDo: "exited", byDoContext: "panicked"}[m])
	})
}

func TestGoexitExitsTheGoroutinesInDoAndDoContext(t *testing.T) {
	for _, end := range []func() (any, error){
		exits,
		func() (v any, err error) { defer runtime.Goexit(); return 1, io.EOF },
		func() (any, error) { defer runtime.Goexit(); panic("replaced by the Goexit") },
	} {
		forEach(t, []method{byDo, byDoContext}, func(t *testing.T, g *Group, m method) {
			f, leader := m.lead(t, g, "key")
			joiner, joiner2, reader := byDo.join(g, "key"), byDoContext.join(g, "key"), byDoChan.join(g, "key")
			f.ends(end)
			want(t, result{how: "exited"}, leader, joiner, joiner2)
			wantReturn(t, nil, ErrGoexit, true, reader)
			wantReturn(t, nil, ErrGoexit, false, byDoChan.start(g, "key", end))
		})
	}
}

// Group and keys.

func TestGroupSetToTheZeroGroupIsANewGroup(t *testing.T) {
	type cache struct{ group Group }
	forEach(t, methods, func(t *testing.T, _ *Group, m method) {
		c := new(cache)
		old, oldLeader := m.lead(t, &c.group, "key")
		oldJoiner := m.join(&c.group, "key")
		c.group.ForgetUnshared("key") // forgets nothing, but orders the joiner before the reset
		*c = cache{}
		next, leader := m.lead(t, &c.group, "key")
		joiner := m.join(&c.group, "key")
		old.returns(1, nil)
		joiner2 := m.join(&c.group, "key")
		c.group.ForgetUnshared("key")
		next.end <- returns(2, nil)
		*c = cache{} // while the call ends
		synctest.Wait()
		wantReturn(t, 1, nil, true, oldLeader, oldJoiner)
		wantReturn(t, 2, nil, true, leader, joiner, joiner2)
	})
}

func TestGroupThatIsMovedOrCopiedTakesItsCallsAlong(t *testing.T) {
	for _, deleteFirst := range []func(s []Group) []Group{
		func(s []Group) []Group { return slices.Delete(s, 0, 1) },
		func(s []Group) []Group { return slices.Clone(s[1:]) }, // used beside the copy
	} {
		inBubble(t, func(t *testing.T, _ *Group) {
			groups := make([]Group, 2)
			f0, leader0 := byDo.lead(t, &groups[0], "key")
			f1, leader1 := byDo.lead(t, &groups[1], "key")
			groups = append(deleteFirst(groups), Group{})
			f2, leader2 := byDo.lead(t, &groups[1], "key")
			joiner1, joiner2 := byDo.join(&groups[0], "key"), byDo.join(&groups[1], "key")
			f0.returns(0, nil)
			f1.returns(1, nil)
			f2.returns(2, nil)
			wantReturn(t, 0, nil, false, leader0)
			wantReturn(t, 1, nil, true, leader1, joiner1)
			wantReturn(t, 2, nil, true, leader2, joiner2)
		})
	}
}

func TestGroupCannotBeCompared(t *testing.T) {
	lock := reflect.TypeFor[Group]().Field(1).Type // by which go vet knows that a Group must not be copied
	check(t, "type of the second field", lock, reflect.TypeFor[atomic.Uint64]())
	check(t, "a Group or GroupOf is comparable", reflect.TypeFor[Group]().Comparable() || reflect.TypeFor[GroupOf[int]]().Comparable(), false)
}

func TestGroupsCopiedBeforeUseShareNoCalls(t *testing.T) {
	inBubble(t, func(t *testing.T, _ *Group) {
		unused := make([]Group, 1)
		copies := slices.Clone(unused)
		byDo.lead(t, &unused[0], "key")
		byDo.lead(t, &copies[0], "key")
	})
}

// If each could set an ID, they would do so in some of these Groups, if two processors are free.
func TestGroupHasOneIDIfItsFirstCallersMeet(t *testing.T) {
	groups := make([]Group, 50_000)
	var hashes [2][]uint64
	var at [2]atomic.Int64
	var wg sync.WaitGroup
	for i := range at {
		wg.Go(func() {
			for j := range groups {
				for at[i].Store(int64(j)); at[1-i].Load() < int64(j); runtime.Gosched() {
				}
				s, hash, _ := groups[j].lookup("key")
				s.mu.Unlock()
				hashes[i] = append(hashes[i], hash)
			}
		})
	}
	wg.Wait()
	check(t, "both see the same IDs", slices.Equal(hashes[0], hashes[1]), true)
}

func TestKeyIsAnyString(t *testing.T) {
	inBubble(t, func(t *testing.T, g *Group) {
		var fns []*blocker
		var joiners []*result
		long := strings.Repeat("k", 1<<20)
		for _, key := range []string{"", "\x00", "a", "a\x00", "\xff", "\xfe", "ключ", long, long + "k"} {
			f, _ := byDo.lead(t, g, key)
			fns, joiners = append(fns, f), append(joiners, byDo.join(g, strings.Clone(key)))
		}
		for i, f := range fns {
			f.returns(i, nil)
			wantReturn(t, i, nil, true, joiners[i])
		}
	})
}

func TestKeyWhoseBytesChangeIsFreed(t *testing.T) {
	forEach(t, methods, func(t *testing.T, g *Group, m method) {
		before, bytes := inFlight(t), []byte("key")
		f, leader := m.lead(t, g, unsafe.String(&bytes[0], len(bytes)))
		bytes[0] = 'K'
		f.returns(1, nil)
		wantReturn(t, 1, nil, false, leader)
		check(t, "calls in flight", inFlight(t), before)
	})
}

func (s *stripe) checkUnlocked(t *testing.T) {
	t.Helper()
	if s.mu.TryLock() {
		s.mu.Unlock()
	} else {
		t.Error("the mutex of a stripe is locked")
	}
}

func TestKeyThatCannotBeReadPanicsInItsCallerAlone(t *testing.T) {
	forEach(t, methods, func(t *testing.T, g *Group, m method) {
		key := *(*string)(unsafe.Pointer(&[2]uintptr{0, 16})) // as a data race can make one
		_, ok := m.start(g, key, returns(1, nil)).val.(runtime.Error)
		check(t, "the panic is a runtime.Error", ok, true)
		for i := range stripes {
			stripes[i].checkUnlocked(t)
		}
	})
}

// All schedules against a model.
//
// The specification shows each promise in a situation that somebody has thought of. Here a
// Group is compared with a model of it in every situation that a few steps lead to. This
// finds what goes wrong in the others: when a forgotten call is left, when a caller nested
// in a call that was given up is the last one of another.

// A step is done to a Group. It has had all its effects before the next one begins.
type step struct {
	op string
	n  int // the key; the caller to cancel; the caller that started the call to end
	in int // for "nested" and "detached": the caller that started the call in whose fn DoContext is called
}

// A model is what the documentation promises, for one step after the other.
type model struct {
	callers  []*modelCaller     // in the order of their calls
	inFlight map[int]*modelCall // the calls that the next caller of a key joins
}

type modelCaller struct {
	method method
	call   *modelCall // that the caller joined or started
	leads  bool       // the caller started it
	within *modelCall // in whose fn the caller asked, or nil
	tied   bool       // its context is canceled with that of this fn
	result result
}

type modelCall struct {
	key                     int
	shared, ended, canceled bool // canceled: fn's context is, if it has one
}

func newModel(steps ...step) *model {
	m := &model{inFlight: make(map[int]*modelCall)}
	for _, s := range steps {
		m.take(s)
	}
	return m
}

// take takes a step. It returns what ForgetUnshared does.
func (m *model) take(s step) (forgot bool) {
	switch s.op {
	case "Do", "DoChan", "DoContext":
		m.ask(method(s.op), s.n, nil, false)
	case "nested", "detached":
		m.ask(byDoContext, s.n, m.callers[s.in].call, s.op == "nested")
	case "Forget":
		delete(m.inFlight, s.n)
	case "ForgetUnshared":
		if c := m.inFlight[s.n]; c != nil && c.shared {
			return false
		}
		delete(m.inFlight, s.n)
		return true
	case "cancel":
		m.leave(m.callers[s.n])
	case "return":
		r := result{"returned", s.n, io.EOF, false}
		m.end(m.callers[s.n].call, r, r)
	case "panic":
		m.end(m.callers[s.n].call, result{how: "panicked", val: s.n}, result{})
	case "exit":
		m.end(m.callers[s.n].call, result{how: "exited"}, result{how: "returned", err: ErrGoexit})
	}
	return false
}

func (m *model) ask(by method, key int, within *modelCall, tied bool) {
	w := &modelCaller{method: by, within: within, tied: tied}
	m.callers = append(m.callers, w)
	if tied && within.canceled {
		w.result = result{how: "returned", err: context.Canceled}
		return
	}
	c := m.inFlight[key]
	if w.leads = c == nil; w.leads {
		c = &modelCall{key: key}
		m.inFlight[key] = c
	} else {
		c.shared = true
		if within != nil && m.waitsFor(c, within) {
			w.result = result{how: "returned", err: ErrRecursive}
			return
		}
	}
	w.call = c
}

// waiting returns the callers that wait for c.
func (m *model) waiting(c *modelCall) (callers []*modelCaller) {
	for _, w := range m.callers {
		if w.call == c && w.result.how == "" {
			callers = append(callers, w)
		}
	}
	return callers
}

// waitsFor reports whether c is d, or a caller in the fn of c waits for a call that
// waits for d.
func (m *model) waitsFor(c, d *modelCall) bool {
	return c == d || slices.ContainsFunc(m.callers, func(w *modelCaller) bool {
		return w.within == c && w.result.how == "" && m.waitsFor(w.call, d)
	})
}

func (m *model) remove(c *modelCall) {
	if m.inFlight[c.key] == c {
		delete(m.inFlight, c.key)
	}
}

// end ends c. Readers get a result of their own.
func (m *model) end(c *modelCall, r, ofReaders result) {
	c.ended = true
	m.remove(c)
	for _, w := range m.waiting(c) {
		w.result = r
		if w.method == byDoChan {
			w.result = ofReaders
		}
		w.result.shared = c.shared && w.result.how == "returned"
	}
	m.cancel(c)
}

// leave has a caller leave its call.
func (m *model) leave(w *modelCaller) {
	w.result = result{how: "returned", err: context.Canceled}
	if len(m.waiting(w.call)) == 0 {
		m.remove(w.call)
		m.cancel(w.call)
	}
}

// cancel cancels the context of the fn of c, and so those of the callers in it.
func (m *model) cancel(c *modelCall) {
	c.canceled = true
	for _, w := range m.callers {
		if w.within == c && w.tied && w.result.how == "" {
			m.leave(w)
		}
	}
}

// next returns the steps that can follow, for so many keys. It leaves out those that
// crash the process, and those that only differ in their names from others: any key that
// has not been used, any of the callers that wait in the same way. Unless all are wanted,
// it also leaves out callers in an fn whose context is done or detached.
func (m *model) next(keys int, all bool) (steps []step) {
	used := 0
	for i, w := range m.callers {
		if !w.leads {
			continue
		}
		used = max(used, w.call.key+1)
		if w.call.ended {
			continue
		}
		steps = append(steps, step{"return", i, 0}, step{"exit", i, 0})
		waiting := m.waiting(w.call)
		if len(waiting) > 0 && !slices.ContainsFunc(waiting, func(w *modelCaller) bool { return w.method == byDoChan }) {
			steps = append(steps, step{"panic", i, 0})
		}
	}
	for key := range min(keys, used+1) {
		for _, op := range []string{"Do", "DoChan", "DoContext", "Forget", "ForgetUnshared"} {
			steps = append(steps, step{op, key, 0})
		}
		for i, w := range m.callers {
			if !w.leads || w.method != byDoContext {
				continue
			}
			if all || !w.call.canceled {
				steps = append(steps, step{"nested", key, i})
			}
			if all {
				steps = append(steps, step{"detached", key, i})
			}
		}
	}
	seen := make(map[modelCaller]bool)
	for i, w := range m.callers {
		if w.method == byDoContext && w.result.how == "" && !seen[*w] {
			steps = append(steps, step{"cancel", i, 0})
			seen[*w] = true
		}
	}
	return steps
}

// A player takes steps with Groups, in a bubble, and with a model.
type player struct {
	t       *testing.T
	model   *model
	taken   []step
	groups  [2]Group
	callers []playedCaller
}

type playedCaller struct {
	f      *blocker
	result *result
	cancel context.CancelFunc // of the caller's context
}

// at returns the Group and the key that a number stands for.
func (p *player) at(n int) (*Group, string) { return &p.groups[n%2], strconv.Itoa(n / 2) }

// take takes a step, and compares what can be seen with the model.
func (p *player) take(s step) {
	p.t.Helper()
	p.taken = append(p.taken, s)
	forgot := false
	switch g, key := p.at(s.n); s.op {
	case "Do", "DoChan", "DoContext":
		p.ask(method(s.op), context.Background(), s.n)
	case "nested":
		p.ask(byDoContext, p.callers[s.in].f.ctx, s.n)
	case "detached":
		p.ask(byDoContext, context.WithoutCancel(p.callers[s.in].f.ctx), s.n)
	case "Forget":
		g.Forget(key)
	case "ForgetUnshared":
		forgot = g.ForgetUnshared(key)
	case "cancel":
		p.callers[s.n].cancel()
		synctest.Wait()
	case "return":
		p.callers[s.n].f.returns(s.n, io.EOF)
	case "panic":
		p.callers[s.n].f.ends(panics(s.n))
	case "exit":
		p.callers[s.n].f.ends(exits)
	}
	if want := p.model.take(s); forgot != want {
		p.t.Fatalf("%v: ForgetUnshared returned %v, want %v", p.taken, forgot, want)
	}
	for i, w := range p.model.callers {
		c := p.callers[i]
		got := *c.result
		if e, ok := got.val.(*PanicError); ok {
			got.val = e.Value()
		}
		if got != w.result {
			p.t.Fatalf("%v: caller %d: got %v, want %v", p.taken, i, got, w.result)
		}
		if want := map[bool]int{true: 1}[w.leads]; c.f.runs != want {
			p.t.Fatalf("%v: caller %d: its fn has run %d times, want %d", p.taken, i, c.f.runs, want)
		}
		if ctx := c.f.ctx; ctx != nil && ctx.Done() != nil && (ctx.Err() != nil) != w.call.canceled {
			p.t.Fatalf("%v: caller %d: the error of its fn's context is %v", p.taken, i, ctx.Err())
		}
	}
}

func (p *player) ask(by method, ctx context.Context, n int) {
	ctx, cancel := context.WithCancel(ctx)
	f := newBlocker(p.t)
	g, key := p.at(n)
	r := goCall(func() (any, error, bool) { return by.callWith(ctx, g, key, f.fnWith) })
	p.callers = append(p.callers, playedCaller{f, r, cancel})
}

// play plays a schedule. Then it ends all calls, and starts one more of each key, which
// shows that none is left.
func play(t *testing.T, schedule []step, keys int) {
	p := &player{t: t, model: newModel()}
	for _, s := range schedule {
		p.take(s)
	}
	for i, c := range p.model.callers {
		if c.leads && !c.call.ended {
			p.take(step{"return", i, 0})
		}
	}
	for key := range keys {
		p.take(step{"Do", key, 0})
		p.take(step{"return", len(p.callers) - 1, 0})
	}
}

// extend visits all schedules of a length that begin with some steps.
func extend(steps []step, length, keys int, visit func(schedule []step)) {
	if len(steps) == length {
		visit(steps)
		return
	}
	for _, s := range newModel(steps...).next(keys, false) {
		extend(append(steps, s), length, keys, visit)
	}
}

func TestSchedules(t *testing.T) {
	length, keys := 5, 2
	info, ok := debug.ReadBuildInfo()
	if testing.Short() || ok && slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"}) {
		length = 4
	}
	extend(nil, 2, keys, func(first []step) {
		first = slices.Clone(first)
		t.Run(fmt.Sprint(first), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				extend(first, length, keys, func(schedule []step) { play(t, schedule, keys) })
			})
		})
	})
}

// FuzzSchedules plays longer schedules, with more keys and more kinds of nested callers.
func FuzzSchedules(f *testing.F) {
	r := rand.NewChaCha8([32]byte{})
	for range 500 {
		choices := make([]byte, 40)
		r.Read(choices)
		f.Add(choices)
	}
	f.Fuzz(func(t *testing.T, choices []byte) {
		const keys = 3
		var schedule []step
		m := newModel()
		for _, choice := range choices[:min(len(choices), 80)] {
			next := m.next(keys, true)
			s := next[int(choice)%len(next)]
			m.take(s)
			schedule = append(schedule, s)
		}
		synctest.Test(t, func(t *testing.T) { play(t, schedule, keys) })
	})
}

// Real concurrency.
//
// In the schedules, one step follows another. Here callers of a few keys meet at any time. This
// finds what goes wrong within a step: between two locks, or between waking one caller and the
// next. What a caller will get cannot be known, but there are rules for what it got.

// A run is an execution of an fn. It is itself what fn returns or panics with.
type run struct {
	key      int
	end      int64 // when fn ended
	canceled bool  // fn's context was, by then
	callers  atomic.Int32
	answered atomic.Int64 // when one of them had it
	unshared atomic.Bool  // one of them was told so
}

func (e *run) String() string {
	return fmt.Sprintf("run of key %d until %d, canceled: %t", e.key, e.end, e.canceled)
}

// The keys of callers that meet.
const (
	steady  = iota // no caller leaves or forgets
	leaving        // callers do
	panicky        // fn panics; no caller leaves or asks for a channel, as that can crash the process
	kinds
)

func TestCallersThatMeet(t *testing.T) {
	var g Group
	var clock atomic.Int64
	var running [kinds]atomic.Int32
	ask := func(r *rand.Rand) {
		key, by := r.IntN(kinds), methods[r.IntN(len(methods))]
		if key == panicky && by == byDoChan {
			by = byDo
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		if key == leaving {
			go cancel()
		}
		if key != steady && r.IntN(4) == 0 {
			g.Forget(strconv.Itoa(key))
		}
		var got result
		start := clock.Add(1)
		got.observe(func() (any, error, bool) {
			return by.callWith(ctx, &g, strconv.Itoa(key), func(ctx context.Context) (any, error) {
				defer running[key].Add(-1)
				if n := running[key].Add(1); n > 1 && key == steady {
					t.Errorf("%d fns of a key at once", n)
				}
				runtime.Gosched()
				e := &run{key: key, canceled: ctx.Err() != nil, end: clock.Add(1)}
				if key == panicky {
					panic(e)
				}
				return e, nil
			})
		})
		end := clock.Add(1)
		want, val := result{how: "returned", val: got.val, shared: got.shared}, got.val
		if p, ok := val.(*PanicError); ok {
			want, val = result{how: "panicked", val: p}, p.Value()
		}
		e, ok := val.(*run)
		switch {
		case by == byDoContext && ctx.Err() != nil && got.err != nil:
			want = result{how: "returned", err: context.Canceled}
		case !ok || e.key != key || e.end > end || e.canceled:
			t.Errorf("a caller of key %d, from %d to %d, got a %v", key, start, end, val)
		default:
			e.answered.CompareAndSwap(0, end)
			if answered := e.answered.Load(); start > answered {
				t.Errorf("a caller came at %d, and got a %v, which another one had at %d", start, e, answered)
			}
			e.unshared.CompareAndSwap(false, got.how == "returned" && !got.shared)
			if e.callers.Add(1) > 1 && e.unshared.Load() {
				t.Errorf("shared is false for one of several callers that got a %v", e)
			}
		}
		check(t, fmt.Sprintf("caller of key %d by %s", key, by), got, want)
	}
	var wg sync.WaitGroup
	for worker := range uint64(8) {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(worker, 0))
			for range 2000 {
				ask(r)
			}
		})
	}
	wg.Wait()
}

// The memory model.
//
// The tests before this look at what fn returned. Here callers, and the next fn, read what
// fn wrote, and the race detector finds what nothing orders.

func TestFnSynchronizesBeforeItsCallersAndTheNextCall(t *testing.T) {
	inBubble(t, func(t *testing.T, g *Group) {
		n := 0 // written by each fn
		var ran [6]int
		for i := range ran {
			go func() {
				for range 1000 {
					v, _, _ := methods[i%3].call(g, "key", func() (any, error) { n++; ran[i]++; return &[]int{n}[0], nil })
					check(t, "number of a run", *v.(*int) > 0, true)
				}
			}()
		}
		synctest.Wait()
		check(t, "runs", n, ran[0]+ran[1]+ran[2]+ran[3]+ran[4]+ran[5])
	})
}

// What precedes Forget, or the leaving of the last caller, is seen by the next fn.
func TestForgetAndLeavingSynchronizeBeforeTheNextCall(t *testing.T) {
	for _, leave := range []bool{false, true} {
		inBubble(t, func(t *testing.T, g *Group) {
			n := 0
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			old, _ := byDoContext.leadWith(t, ctx, g, "key")
			go func() {
				n = 1
				if leave {
					cancel()
				} else {
					g.Forget("key")
				}
			}()
			for inFlight := true; inFlight; runtime.Gosched() {
				edit(g, "key", func(_ *stripe, c *call) { inFlight = c != nil })
			}
			v, _, _ := g.Do("key", func() (any, error) { return n, nil })
			check(t, "what the next fn sees", v, any(1))
			old.returns(nil, nil)
		})
	}
}

// Locks.
//
// The tests before this see what callers get. Here they look at the stripes and at calls while
// something is done with them: what runs without a lock, and what happens in one step.

// inFlight checks all stripes, and returns how many calls can be joined.
func inFlight(t *testing.T) (n int) {
	t.Helper()
	for i := range stripes {
		s := &stripes[i].stripe
		s.mu.Lock()
		s.checkTable(t)
		n += s.n
		s.mu.Unlock()
	}
	return n
}

func TestCallersAreAnsweredUnderNoLock(t *testing.T) {
	forEach(t, methods, func(t *testing.T, g *Group, m method) {
		ctx, cancel := withCancel(t.Context())
		f, leader := m.lead(t, g, "key")
		joiner, leaver := byDo.join(g, "key"), joinContext(ctx, g, "key")
		// Have the end of the call stop at each thing that it does for its callers.
		var canceled atomic.Bool
		stop, ch := make(chan bool), make(chan Result)
		s, _, ending := g.lookup("key")
		end := ending.cancel
		ending.cancel = func(cause error) { <-stop; end(cause); canceled.Store(true) }
		ending.readers = append(ending.readers, resultChan(ch))
		s.mu.Unlock()
		look := func(what string) {
			t.Helper()
			s.checkUnlocked(t)
			edit(g, "key", func(_ *stripe, c *call) { check(t, "call to join while the end "+what, c, nil) })
		}
		f.returns(1, nil)
		look("cancels")
		cancel() // too late
		wantWaiting(t, leader, joiner, leaver)
		ending.wg.Add(1)
		close(stop)
		synctest.Wait()
		look("wakes")
		check(t, "fn's context has been canceled", canceled.Load(), true)
		ending.wg.Done()
		synctest.Wait()
		look("sends")
		wantReturn(t, 1, nil, true, joiner, leaver)
		<-ch
		synctest.Wait()
		wantReturn(t, 1, nil, true, leader)
	})
}

func TestPanicIsRaisedByFnIfTheLastCallerHasLeft(t *testing.T) {
	for range 2000 { // at the same time
		s, c, _ := new(Group).joinOrInsert("key")
		c.node, c.cancel = new(node), func(error) {}
		var left bool
		var end result
		var wg sync.WaitGroup
		wg.Go(func() {
			end.observe(func() (any, error, bool) { return c.end(&outcome{how: panicked, err: io.EOF}) })
		})
		wg.Go(func() { left = c.leave() })
		runtime.Gosched() // until both wait for the mutex
		s.mu.Unlock()
		wg.Wait()
		check(t, "the end of the call panics, as its caller has left", end.how == "panicked", left)
	}
}

// If leaving took two locks, a caller that came in between could join a call that is then given
// up. The mutex is held until it starves, so that it goes from the one who leaves to the one who
// looks. If the scheduler lets neither wait for a millisecond, that proves nothing, ten times.
func TestCallThatIsGivenUpHasNoCallers(t *testing.T) {
	for range 10 {
		s, c, _ := new(Group).joinOrInsert("key")
		c.node, c.cancel = new(node), func(error) {}
		var wg sync.WaitGroup
		wg.Go(func() { c.leave() })
		runtime.Gosched()
		wg.Go(func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			check(t, "a call without callers can be joined", s.find(c.hash, c.key) == c && c.callers == 0, false)
		})
		for range 3 {
			for start := time.Now(); time.Since(start) < 2*time.Millisecond; runtime.Gosched() {
			}
			s.mu.Unlock()
			s.mu.Lock()
		}
		s.mu.Unlock()
		wg.Wait()
	}
}

// A hookContext calls a function when a method is called, or any if that is "".
type hookContext struct {
	context.Context
	method string
	hook   func()
}

func (c hookContext) call(method string) {
	if c.method == "" || c.method == method {
		c.hook()
	}
}

func (c hookContext) Done() <-chan struct{} { c.call("Done"); return c.Context.Done() }
func (c hookContext) Err() error            { c.call("Err"); return c.Context.Err() }
func (c hookContext) Value(key any) any     { c.call("Value"); return c.Context.Value(key) }

func TestContextsMethodsMayUseTheGroup(t *testing.T) {
	inBubble(t, func(t *testing.T, g *Group) {
		outer, _ := byDoContext.lead(t, g, "outer")
		ctx, cancel := context.WithCancel(outer.ctx)
		var uses atomic.Int32
		// inFlight locks every stripe.
		use := func() { uses.Add(1); inFlight(t); g.DoContext(outer.ctx, "another", returnsNil) }
		leader := goCall(func() (any, error, bool) {
			return g.DoContext(hookContext{ctx, "", use}, "key", func(ctx context.Context) (any, error) {
				ctx.Value(ctxKey{})
				context.AfterFunc(ctx, use)
				cancel()
				<-ctx.Done()
				return nil, nil
			})
		})
		wantReturn(t, nil, context.Canceled, false, leader)
		check(t, "uses, in Err twice, Done, Value and AfterFunc", uses.Load() >= 5, true)
	})
}

func TestContextsMethodsMayPanic(t *testing.T) {
	inBubble(t, func(t *testing.T, g *Group) {
		f, leader := byDoContext.lead(t, g, "key")
		before := inFlight(t)
		var none context.Context
		check(t, "caller with a nil context", joinContext(none, g, "key").how, "panicked")
		for _, name := range []string{"Done", "Err", "Value"} {
			ctx := hookContext{t.Context(), name, func() { panic("boom") }}
			want(t, result{how: "panicked", val: "boom"}, joinContext(ctx, g, "key"), joinContext(ctx, g, "unknown"))
			check(t, "calls in flight", inFlight(t), before)
		}
		f.returns(1, nil)
		wantReturn(t, 1, nil, false, leader)
	})
}

// What the collector frees.
//
// No result shows what stays reachable once a call has ended, or what is freed too early.

// A tracker knows which of its objects have not been freed.
type tracker struct{ names sync.Map }

func track[T any](tr *tracker, p *T, name string) *T {
	tr.names.Store(name, true)
	runtime.AddCleanup(p, func(name string) { tr.names.Delete(name) }, name)
	return p
}

// A tracked has a pointer in it, so that it shares its memory with no other object.
type tracked struct{ name string }

func (p *tracked) Error() string { return p.name }

func (tr *tracker) new(name string) *tracked { return track(tr, &tracked{name}, name) }

// collect lets the collector free what it can, up to so many times, and returns the names of
// the other objects. Two times are enough, unless what runs the cleanups has not run by then.
func (tr *tracker) collect(times int) (names []string) {
	for range times {
		runtime.GC()
		runtime.Gosched()
		names = nil
		tr.names.Range(func(name, _ any) bool { names = append(names, name.(string)); return true })
		if names == nil {
			break
		}
	}
	return names
}

func nodeOf(fnCtx context.Context) *node { return fnCtx.Value(nodeKey{}).(*node) }

func TestNothingOfAnEndedCallIsReachable(t *testing.T) {
	var tr tracker
	var retained []any // the Groups, and the contexts of some fns
	for _, fate := range []string{"unjoined", "joined", "forgotten", "given up"} {
		for how, end := range map[string]func(v *tracked) func() (any, error){
			"returns": func(v *tracked) func() (any, error) { return returns(v, v) },
			"panics":  func(v *tracked) func() (any, error) { return panics(v) },
			"exits":   func(*tracked) func() (any, error) { return exits },
		} {
			forEach(t, methods, func(t *testing.T, g *Group, m method) {
				if how == "panics" && m == byDoChan || fate == "given up" && (how == "panics" || m != byDoContext) {
					return
				}
				name := fmt.Sprintf("%s %s, %s: ", m, how, fate)
				key := strings.Repeat(name, 4)
				track(&tr, unsafe.StringData(key), name+"key")
				edit(g, key, func(s *stripe, _ *call) { s.spare = nil }) // this call becomes the spare one, if any
				ctx, cancel := withCancel(t.Context())
				if how != "returns" { // or else fn's context is retained, and this one with it
					ctx = context.WithValue(ctx, ctxKey{}, tr.new(name+"context"))
				}
				f, _ := m.leadWith(t, ctx, g, key)
				track(&tr, f, name+"fn")
				if m == byDoContext {
					nested := tr.new(name + "value of a nested call")
					goCall(func() (any, error, bool) {
						return g.DoContext(f.ctx, "nested", func(context.Context) (any, error) { return nested, nil })
					})
					check(t, name+"room for waits", cap(nodeOf(f.ctx).edges[out]), 0)
				}
				if how == "returns" {
					retained = append(retained, f.ctx)
				}
				switch leaver, leave := withCancel(t.Context()); fate {
				case "joined":
					joinContext(context.WithValue(leaver, ctxKey{}, tr.new(name+"leaver's context")), g, key)
					joinContext(context.WithValue(t.Context(), ctxKey{}, tr.new(name+"joiner's context")), g, key)
					leave()
					if how != "panics" {
						g.DoChan(key, nil) // the channel has the value in the end
					}
				case "forgotten":
					g.Forget(key)
				case "given up":
					cancel()
				}
				retained = append(retained, g)
				f.ends(end(tr.new(name + "value")))
			})
		}
	}
	if names := tr.collect(100); names != nil {
		t.Errorf("still reachable: %q", names)
	}
	runtime.KeepAlive(retained)
}

func TestGroupIsReachableWhileACallIsInFlight(t *testing.T) {
	for _, fate := range []string{"joinable", "forgotten", "given up"} {
		forEach(t, methods, func(t *testing.T, _ *Group, m method) {
			var tr tracker
			owner := track(&tr, &struct {
				resource *tracked
				group    Group
			}{resource: tr.new("resource")}, "owner")
			ctx, cancel := withCancel(t.Context())
			f, _ := m.leadWith(t, ctx, &owner.group, "key")
			switch fate {
			case "forgotten":
				owner.group.Forget("key")
			case "given up":
				cancel()
			}
			owner = nil
			check(t, fate+": objects reachable while fn runs", len(tr.collect(3)), 2)
			f.returns(nil, nil)
			check(t, fate+": objects reachable in the end", len(tr.collect(100)), 0)
		})
	}
}

// The graph of waits.
//
// The tests before this nest a few calls. Here are large graphs and callers that meet. This
// finds wrong levels, and where more is searched or locked than necessary.

var graphSteps = flag.Int("graph", 100, "how many thousand operations TestLinkAgreesWithASearch does")

// With few nodes, there are cycles. With many edges to one node, link gives up to look back.
func TestLinkAgreesWithASearch(t *testing.T) {
	const steps = 500
	before := graph.edges
	for i := range *graphSteps * 1000 / steps {
		r := rand.New(rand.NewPCG(uint64(i), 0))
		var all, nodes []*node // nodes are those in use
		for range 2 + i%60 {
			nodes = append(nodes, new(node))
		}
		all = append(all, nodes...)
		var edges []*edge
		for step := 0; step < steps && !t.Failed(); step++ {
			a, b := r.IntN(len(nodes)), r.IntN(len(nodes))
			if near := i % 3 * 3; near > 0 {
				b = (a + b%near) % len(nodes)
			}
			outer, n := nodes[a], nodes[b]
			switch op := r.IntN(50); {
			case op == 0:
				outer.ended.Store(true)
			case op < 3: // the next call of the key
				nodes[a] = new(node)
				all = append(all, nodes[a])
			case op < 8 && len(edges) > 0:
				j := r.IntN(len(edges))
				edges[j].unlink()
				edges = slices.Delete(edges, j, j+1)
			case outer.ended.Load() || n.ended.Load():
				e, ok := outer.link(n)
				check(t, "link of a call that has ended does nothing", e == nil && ok, true)
			case reaches(edges, n, outer):
				before := levelsAndEdges(all)
				_, ok := outer.link(n)
				check(t, "link allows a cycle", ok, false)
				check(t, "graph after a caller was refused", levelsAndEdges(all), before)
			default:
				e, ok := outer.link(n)
				check(t, "link allows an edge that closes no cycle", ok, true)
				edges = append(edges, e)
			}
		}
		for _, e := range edges {
			for side, x := range e.nodes {
				for _, removed := range x.edges[side][len(x.edges[side]):cap(x.edges[side])] {
					check(t, "behind the list of a node", removed, halfEdge{})
				}
				check(t, "a list has too much room", cap(x.edges[side]) > 4*len(x.edges[side]), false)
			}
			if a, b := e.nodes[out], e.nodes[in]; !a.ended.Load() && !b.ended.Load() {
				check(t, "an edge leads to a lower level", a.level > b.level, false)
			}
		}
		for _, e := range edges {
			e.unlink()
		}
		for _, n := range all {
			check(t, "room for edges in the end", cap(n.edges[out])+cap(n.edges[in]), 0)
		}
	}
	check(t, "edges in the graph in the end", graph.edges, before)
}

// reaches searches for a way through all edges, without levels.
func reaches(edges []*edge, start, end *node) bool {
	met := []*node{start}
	for i := 0; i < len(met); i++ {
		if met[i] == end {
			return true
		}
		for _, e := range edges {
			if x := e.nodes[in]; e.nodes[out] == met[i] && !x.ended.Load() && !slices.Contains(met, x) {
				met = append(met, x)
			}
		}
	}
	return false
}

func levelsAndEdges(nodes []*node) (s string) {
	for _, n := range nodes {
		s += fmt.Sprintln(n.level, n.edges)
	}
	return s
}

func TestLinkRefusesOneCallerOfACycle(t *testing.T) {
	for i := range 2000 {
		nodes, edges := make([]node, 2+i%3), make([]*edge, 2+i%3)
		var wg sync.WaitGroup
		for i := range nodes {
			wg.Go(func() { edges[i], _ = nodes[i].link(&nodes[(i+1)%len(nodes)]) })
		}
		wg.Wait()
		refused := 0
		for _, e := range edges {
			if e == nil {
				refused++
			}
			wg.Go(e.unlink)
		}
		wg.Wait()
		check(t, "callers that are refused", refused, 1)
	}
}

// If levels were not a small fraction of the edges, or if link looked at all edges to a node,
// a chain of calls or a call that many wait for would take quadratic time.
func TestLinkLooksAtFewEdges(t *testing.T) {
	defer func(edges int) { graph.edges = edges }(graph.edges) // as these are not removed
	const n = 10_000
	for _, first := range []int{0, n - 1} {
		nodes := make([]node, n+1) // each waits for the one before it
		for i := range n {
			i = max(first-i, i-first)
			nodes[i+1].link(&nodes[i])
		}
		for i := range nodes {
			if level := nodes[i].level; level > n/40 {
				t.Fatalf("a chain linked from node %d: node %d is on level %d", first, i, level)
			}
		}
	}
	first, second, third := new(node), new(node), new(node)
	first.link(second)
	second.link(third) // looks back at the edge that link has just looked at
	check(t, "level of a call below two others", third.level, 0)
	hub, next := new(node), new(node)
	for range 1000 {
		new(node).link(hub)
	}
	before, met := graph.mark, 0
	hub.link(next)
	for _, e := range hub.edges[in] {
		if e.other.mark > before {
			met++
		}
	}
	check(t, "callers of the hub that link has met, if more than 100", max(met, 100), 100)
	check(t, "next is above the hub", next.level > hub.level, true)
}

// A search, or looking for a value, would leave each goroutine with a large stack if it
// called itself.
func TestNestedCallersKeepNoLargeStacks(t *testing.T) {
	inBubble(t, func(t *testing.T, g *Group) {
		const depth = 2000
		end := make(chan bool)
		var nest func(ctx context.Context, n int)
		nest = func(ctx context.Context, n int) {
			g.DoContext(ctx, strconv.Itoa(n), func(ctx context.Context) (any, error) {
				ctx.Value(ctxKey{})
				go func() { g.DoContext(ctx, "0", nil); <-end }() // is refused
				if n < depth {
					nest(ctx, n+1)
				}
				<-end
				return nil, nil
			})
		}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		go nest(t.Context(), 0)
		synctest.Wait()
		runtime.ReadMemStats(&after)
		close(end)
		size := (int64(after.StackInuse) - int64(before.StackInuse)) / depth
		check(t, "bytes of stacks for each level, if more than 24 KiB", max(size, 24<<10), 24<<10)
	})
}

// A call has ended, but its callers have not been woken: they wait for it no longer.
func TestErrRecursiveNotThroughACallThatHasEnded(t *testing.T) {
	inBubble(t, func(t *testing.T, g *Group) {
		a, _ := byDoContext.lead(t, g, "a")
		b, _ := byDoContext.lead(t, g, "b")
		joinContext(b.ctx, g, "a")
		wake := make(chan bool)
		edit(g, "a", func(_ *stripe, c *call) { cancel := c.cancel; c.cancel = func(cause error) { <-wake; cancel(cause) } })
		late := context.WithoutCancel(a.ctx)
		a.returns(1, nil)
		joiner := joinContext(late, g, "b")
		wantWaiting(t, joiner)
		close(wake)
		b.returns(2, nil)
		wantReturn(t, 2, nil, true, joiner)
	})
}

// When the last caller leaves and fn learns of it, fn may ask for the call that was waiting.
func TestErrRecursiveNotOnceFnIsCanceled(t *testing.T) {
	inBubble(t, func(t *testing.T, g *Group) {
		outer, _ := byDoContext.lead(t, g, "outer")
		ctx, leave := withCancel(outer.ctx)
		nested, leaver := byDoContext.leadWith(t, ctx, g, "nested")
		canceled := 0
		edit(g, "nested", func(s *stripe, c *call) {
			c.cancel = func(error) {
				canceled++
				s.checkUnlocked(t)
				check(t, "waits of the outer call", len(nodeOf(outer.ctx).edges[out]), 0)
			}
		})
		leave()
		wantReturn(t, nil, context.Canceled, false, leaver)
		check(t, "times that fn was canceled", canceled, 1)
		nested.returns(nil, nil)
	})
}

func TestGraphIsLockedByNestedCallersAlone(t *testing.T) {
	inBubble(t, func(t *testing.T, g *Group) {
		outer, _ := byDoContext.lead(t, g, "outer")
		graph.Lock() // so that who locks it does not return
		ctx, cancel := withCancel(t.Context())
		f, leader := byDoContext.lead(t, g, "key")
		joiner, leaver := joinContext(t.Context(), g, "key"), joinContext(ctx, g, "key")
		cancel()
		f.returns(1, nil)
		wantReturn(t, 1, nil, true, leader, joiner)
		wantReturn(t, nil, context.Canceled, false, leaver)
		// A nested caller waits for the graph without the mutex of the stripe.
		go g.DoContext(outer.ctx, "key", returnsNil)
		for waiting := false; !waiting; runtime.Gosched() {
			edit(g, "key", func(_ *stripe, c *call) { waiting = c != nil })
		}
		graph.Unlock()
	})
}

// Bubbles.
//
// The tests before this have a Group in each bubble. Here one Group goes from bubble to bubble
// and takes the spare call along, and a call has callers on both sides of a bubble's edge.

var bubbled Group

func toResult(v any, err error, shared bool) Result { return Result{v, err, shared} }

func useBubbled(t *testing.T) {
	for _, m := range methods {
		check(t, "result of "+string(m), toResult(m.call(&bubbled, "key", returns(1, io.EOF))), Result{1, io.EOF, false})
		var ch <-chan Result
		joined := func() (any, error) { ch = bubbled.DoChan("key", nil); return 2, nil }
		check(t, "joined result of "+string(m), toResult(m.call(&bubbled, "key", joined)), Result{2, nil, true})
		check(t, "result of the joiner", <-ch, Result{2, nil, true})
	}
}

// waitsInDo reports whether a goroutine is blocked in Do. synctest does not tell if a call on
// the other side of a bubble's edge blocks it.
func waitsInDo() bool {
	buf := make([]byte, 1<<20)
	for trace := range strings.SplitSeq(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
		if strings.Contains(trace, "sync.runtime_SemacquireWaitGroup(") && strings.Contains(trace, ".(*Group).Do(") {
			return true
		}
	}
	return false
}

func TestBubblesMayShareAGroupAndACallOfDo(t *testing.T) {
	outside := func(t *testing.T, f func(*testing.T)) { f(t) }
	for _, sides := range [][2]func(*testing.T, func(*testing.T)){{synctest.Test, outside}, {outside, synctest.Test}, {synctest.Test, synctest.Test}} {
		for _, late := range []bool{false, true} {
			started, end, ended := make(chan bool), make(chan bool), make(chan bool)
			var wg sync.WaitGroup
			wg.Go(func() {
				sides[0](t, func(t *testing.T) {
					fn := func() (any, error) { close(started); <-end; return 1, io.EOF }
					check(t, "leader", toResult(bubbled.Do("key", fn)), Result{1, io.EOF, true})
				})
				close(ended)
			})
			<-started
			wg.Go(func() {
				sides[1](t, func(t *testing.T) {
					if !late {
						check(t, "joiner", toResult(bubbled.Do("key", nil)), Result{1, io.EOF, true})
						return
					}
					// As Do does it. The call ends between joining and waiting.
					s, c, joined := bubbled.joinOrInsert("key")
					s.mu.Unlock()
					close(end)
					<-ended
					c.wg.Wait()
					check(t, "joined", joined, true)
					check(t, "late joiner", toResult(c.result()), Result{1, io.EOF, true})
				})
			})
			if !late {
				for !waitsInDo() { // the bubble fails if none ever does
					runtime.Gosched()
				}
				close(end)
			}
			wg.Wait()
			synctest.Test(t, useBubbled)
			synctest.Test(t, useBubbled)
			useBubbled(t)
		}
	}
}

// Crashes and dumps.
//
// Only a process that dies shows that no recover stops a panic, and what is printed.

const crashEnv = "SINGLEFLIGHT_TEST_CRASH"

// crash runs the test again in a process that has crashEnv, and returns its output.
func crash(t *testing.T, reason string) string {
	t.Helper()
	if runtime.GOOS == "js" || runtime.GOOS == "wasip1" {
		t.Skipf("%s has no processes", runtime.GOOS)
	}
	name := "^" + strings.ReplaceAll(regexp.QuoteMeta(t.Name()), "/", "$/^") + "$"
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run="+name)
	// With a second processor, the process can die before fn's goroutine has come to rest, and
	// then its stack is not in the dump.
	cmd.Env = append(os.Environ(), crashEnv+"=1", "GOTRACEBACK=all", "GOMAXPROCS=1", "GORACE=atexit_sleep_ms=0")
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 2 || !bytes.Contains(out, []byte(reason+"last words\n")) || bytes.Contains(out, []byte("FAIL")) {
		t.Errorf("want a crash with %q, got %v and:\n%s", reason, err, out)
	}
	return string(out)
}

// lastWords is a panic value that says what happens when it is printed.
type lastWords func() string

func (l lastWords) Error() string { return l() }

func TestCrash(t *testing.T) {
	const hasChannel = "panic: singleflight: fn panicked in a call that has a channel of DoChan: "
	hash := fmt.Sprintln("hash:", maphash.Comparable(seed, "key"))
	const allLeft = "panic: singleflight: fn panicked after all callers of DoContext had left: "
	for _, c := range []struct {
		name, reason string
		leader       method
		joiners      []method // all but those of DoChan must not be woken
	}{
		{"if DoChan started the call", hasChannel, byDoChan, []method{byDo, byDoContext}},
		{"if DoChan joined a call of Do", hasChannel, byDo, []method{byDo, byDoChan, byDoContext}},
		{"if DoChan joined a call of DoContext", hasChannel, byDoContext, []method{byDo, byDoChan, byDoContext}},
		{"if the channel was dropped", hasChannel, byDoContext, nil},
		{"if every caller has left", allLeft, byDoContext, nil},
	} {
		ok := t.Run(c.name, func(t *testing.T) {
			if os.Getenv(crashEnv) == "" {
				out := crash(t, c.reason)
				message, dump, _ := strings.Cut(out, "\ngoroutine ")
				check(t, "the message has fn's stack: "+message, strings.Contains(message, ".lastWords.speak("), true)
				check(t, "another process has another seed", strings.Contains(out, "hash: ") && !strings.Contains(out, hash), true)
				check(t, "goroutines that run fn in the dump: "+dump, strings.Count(dump, ".doCall("), 1)
				return
			}
			fmt.Print(hash)
			inBubble(t, func(t *testing.T, g *Group) {
				ctx, cancel := withCancel(t.Context())
				f, leader := c.leader.leadWith(t, ctx, g, "key")
				waiting := []*result{leader}
				for _, m := range c.joiners {
					waiting = append(waiting, m.join(g, "key"))
				}
				if c.joiners == nil {
					if c.reason == hasChannel {
						g.DoChan("key", nil)
					}
					cancel()
					waiting = nil
				}
				over := make(chan bool)
				f.ends(lastWords(func() string {
					<-over
					g.Forget("key") // no lock is held
					g.Do("key", returns(nil, nil))
					return "last words"
				}).speak)
				wantWaiting(t, waiting...) // one that recovered could end the process
				if t.Failed() {
					fmt.Println("FAIL") // which nothing else prints when the process crashes
				}
				close(over)
				synctest.Wait()
			})
		})
		if !ok {
			break // the others may take as long to fail
		}
	}
}

// speak is the fn of a call that crashes the process.
func (l lastWords) speak() (any, error) { panic(l) }

// A dump of all goroutines tells who waits for whom, by the address of the call.
func TestDumpTellsWhoWaitsForWhichFn(t *testing.T) {
	forEach(t, methods, func(t *testing.T, g *Group, m method) {
		m.lead(t, g, "key")
		byDo.join(g, "key")
		byDoContext.join(g, "key")
		buf := make([]byte, 1<<20)
		dump := string(buf[:runtime.Stack(buf, true)])
		inFn := regexp.MustCompile(`\.doCall\(0x\w+, (0x\w+), `).FindStringSubmatch(dump)
		if inFn == nil {
			t.Fatal("no goroutine runs fn: ", dump)
		}
		waiting := map[method]int{byDo: 1, byDoChan: 1, byDoContext: 2}[m]
		check(t, "goroutines that wait in Do", strings.Count(dump, "sync.(*WaitGroup).Wait("+inFn[1]+")"), 1)
		check(t, "goroutines that wait in DoContext", strings.Count(dump, "(*call).wait("+inFn[1]+", "), waiting)
	})
}

// Allocations.
//
// No result shows what a call costs.

func TestAllocations(t *testing.T) {
	var g Group
	var pointers GroupOf[*int]
	var texts GroupOf[string]
	pointer := func() (*int, error) { return nil, nil }
	text := func() (string, error) { return strconv.Itoa(len(os.Args)), nil } // not made beforehand
	textWith := func(context.Context) (string, error) { return text() }
	ctx := t.Context()
	groups, fn := make([]Group, 201), returns(new(int), nil)
	for i := range stripes { // each has been used
		s := &stripes[i].stripe
		s.mu.Lock()
		s.spare = new(call)
		s.resize(minSlots)
		s.mu.Unlock()
	}
	for _, c := range []struct {
		name string
		want float64
		f    func()
	}{
		{"Do", 0, func() { g.Do("key", fn) }},
		{"the first Do of a Group", 0, func() { groups[0].Do("key", fn); groups = groups[1:] }},
		{"GroupOf[*int].Do", 0, func() { pointers.Do("key", pointer) }},
		{"GroupOf[string].Do", 1, func() { texts.Do("key", text) }},
		{"Forget and ForgetUnshared", 0, func() { g.Forget("key"); g.ForgetUnshared("key") }},
		{"DoChan", 4, func() { <-g.DoChan("key", fn) }},
		{"GroupOf[*int].DoChan", 4, func() { <-pointers.DoChan("key", pointer) }},
		{"GroupOf[string].DoChan", 5, func() { <-texts.DoChan("key", text) }},
		{"DoContext", 6, func() { g.DoContext(ctx, "key", returnsNil) }},
		{"GroupOf[*int].DoContext", 6, func() { pointers.DoContext(ctx, "key", func(context.Context) (*int, error) { return nil, nil }) }},
		{"GroupOf[string].DoContext", 7, func() { texts.DoContext(ctx, "key", textWith) }},
		{"DoContext whose fn looks at its context", 6, func() {
			g.DoContext(ctx, "key", func(ctx context.Context) (any, error) { return nil, context.Cause(ctx) })
		}},
	} {
		if n := testing.AllocsPerRun(200, c.f); n > c.want {
			t.Errorf("%s: %v allocations, want at most %v", c.name, n, c.want)
		}
	}
	g.DoContext(ctx, "key", func(ctx context.Context) (any, error) {
		check(t, "allocations to join, before a caller of Do waits", testing.AllocsPerRun(200, func() {
			s, _, _ := g.joinOrInsert("key")
			s.mu.Unlock()
		}), 0)
		check(t, "allocations to join by DoChan, a channel", testing.AllocsPerRun(200, func() { g.DoChan("key", nil) }), 2)
		check(t, "allocations to be refused", testing.AllocsPerRun(200, func() { g.DoContext(ctx, "key", nil) }), 1)
		return nil, nil
	})
}

func TestSizes(t *testing.T) {
	check(t, "bytes of a Group", unsafe.Sizeof(Group{}), 8)
	check(t, "a stripe's bytes beyond cache lines", unsafe.Sizeof(stripes[0])%128, 0)
	check(t, "a call has at most 128 bytes", unsafe.Sizeof(call{}) <= 128, true)
}

// The table.
//
// In the tests before this, few hashes collide.

// checkTable checks that find finds each call, and that the table is neither too full nor
// too large. The mutex must be held, if others know s.
func (s *stripe) checkTable(t *testing.T) {
	t.Helper()
	n := 0
	for _, x := range s.slots {
		if x.call == nil {
			check(t, "hash in a free slot", x.hash, 0)
			continue
		}
		n++
		if x.hash != x.call.hash || s.find(x.hash, x.call.key) != x.call {
			t.Fatalf("the call of %q is not found", x.call.key)
		}
	}
	check(t, "number of calls", s.n, n)
	if size := len(s.slots); 4*n > 3*size || size&(size-1) != 0 || size > minSlots && 4*n < size || size > 0 && size < minSlots {
		t.Fatalf("%d calls in %d slots", n, size)
	}
}

func TestTableAgreesWithAMap(t *testing.T) {
	r := rand.New(rand.NewPCG(0, 0))
	var s stripe
	calls, removed := make(map[string]*call), []*call{new(call)}
	for i := range 1500 {
		n := r.IntN(150)
		key, hash := strconv.Itoa(n), (uint64(n%7)-3)<<24+uint64(n%3) // few slots, at both ends
		check(t, "the call", s.find(hash, key), calls[key])
		switch c := calls[key]; {
		case c == nil && r.IntN(10) > i/150%2*8: // more come than go, and then the reverse
			calls[key] = s.insert(hash, key)
		case c != nil && r.IntN(10) < i/150%2*8+1:
			s.remove(c)
			delete(calls, key)
			removed = append(removed, c)
		case s.slots != nil:
			s.remove(removed[r.IntN(len(removed))]) // does nothing
		}
		check(t, "calls", s.n, len(calls))
		s.checkTable(t)
	}
}

func TestTableSpreadsKeysAndGroups(t *testing.T) {
	const n = 20_000
	var g Group
	groups := make([]Group, n)
	for name, lookup := range map[string]func(i int) (*stripe, uint64, *call){
		"keys of one Group": func(i int) (*stripe, uint64, *call) { return g.lookup(strconv.Itoa(i)) },
		"one key of Groups": func(i int) (*stripe, uint64, *call) { return groups[i].lookup("key") },
	} {
		copies := make(map[*stripe]*stripe)
		hashes := make(map[uint64]bool)
		for i := range n {
			s, hash, _ := lookup(i)
			s.mu.Unlock()
			hashes[hash] = true
			if copies[s] == nil {
				copies[s] = new(stripe)
			}
			if copies[s].find(hash, "") != nil {
				t.Fatalf("%s: a call is found by the hash of another", name)
			}
			copies[s].insert(hash, "")
		}
		check(t, "hashes of "+name, len(hashes), n)
		most, probes := 0, 0
		for _, s := range copies {
			most = max(most, s.n)
			for i, x := range s.slots {
				if x.call != nil {
					probes += (i - home(x.hash)) & (len(s.slots) - 1)
				}
			}
		}
		// With 256 stripes, 78 are to be expected, and 200 in less than one of 10^20 processes.
		if most > n/100 || probes > 2*n {
			t.Errorf("%s: up to %d calls in a stripe, %d probes for %d", name, most, probes, n)
		}
	}
}

// BenchmarkNested shows what the graph of waits costs: the difference between calls with and
// without the contexts of the fns that they are in.
func BenchmarkNested(b *testing.B) {
	many := 10_000 * *nested
	random := rand.New(rand.NewPCG(0, 0))
	for _, shape := range []struct {
		name         string
		calls, apart int                // each apart-th is started from outside the others
		width        int                // for how many others a call waits
		dep          func(n, i int) int // the i-th of them; they come before call n
	}{
		{"chain", many, 1, 1, func(n, _ int) int { return n - 1 }},
		{"nearest10", many * 6 / 10, 1, 10, func(n, i int) int { return n - 1 - i }},
		{"farthest10", many * 6 / 10, 1, 10, func(n, i int) int { return n - 10 + i }},
		{"10of100", many * 6 / 10, 1, 10, func(n, _ int) int { return n - 1 - random.IntN(min(n, 100)) }},
		{"10of-all", many * 6 / 10, 1, 10, func(n, _ int) int { return random.IntN(n) }},
		{"nearest3", many * 2, 1, 3, func(n, i int) int { return n - 1 - i }},
		// Each level of a recursion also joins the call at the top of a chain.
		{"recursion", many * 2, many, 2, func(n, i int) int { return []int{n - 1, n/many*many - 1}[i] }},
	} {
		deps := make([][]int, shape.calls)
		for n := 1; n < len(deps); n++ {
			for i := range shape.width {
				if d := shape.dep(n, i); d >= 0 {
					deps[n] = append(deps[n], d)
				}
			}
		}
		for _, contexts := range []string{"fn", "none"} {
			b.Run("shape="+shape.name+"/contexts="+contexts, func(b *testing.B) {
				for b.Loop() {
					nestedCalls(b.Context(), deps, shape.apart, contexts == "fn")
				}
			})
		}
	}
}

var nested = flag.Int("nested", 1, "how many times as many calls BenchmarkNested has")

// nestedCalls makes calls, each of which waits for its dependencies at once, in goroutines of
// its own. The first call ends 50 ms after all have started.
func nestedCalls(ctx context.Context, deps [][]int, apart int, useFns bool) {
	var g Group
	var started atomic.Int64
	allStarted, done := make(chan bool), make([]atomic.Bool, len(deps))
	var get func(ctx context.Context, n int)
	get = func(ctx context.Context, n int) {
		g.DoContext(ctx, strconv.Itoa(n), func(fnCtx context.Context) (any, error) {
			if useFns {
				ctx = fnCtx
			}
			if started.Add(1) == int64(len(deps)) {
				close(allStarted)
			}
			if n == 0 {
				<-allStarted
				time.Sleep(50 * time.Millisecond)
			}
			var wg sync.WaitGroup
			for _, d := range deps[n] {
				if !done[d].Load() {
					wg.Go(func() { get(ctx, d) })
				}
			}
			wg.Wait()
			done[n].Store(true)
			return nil, nil
		})
	}
	var wg sync.WaitGroup
	for n := apart - 1; n < len(deps); n += apart {
		wg.Go(func() { get(ctx, n) })
	}
	wg.Wait()
}
