// Copyright 2026 The singleflight Authors.
// Use of this source code is governed by the BSD-style license in LICENSE.

// Package singleflight suppresses duplicate function calls: when several goroutines
// ask for the same thing at the same time, one does the work and all get its result.
//
// It is a drop-in replacement for golang.org/x/sync/singleflight. A program written
// for that package compiles and behaves the same once its import path is changed,
// except as listed under "Differences" below.
//
// A call is one execution of a function, fn, for a key in a [Group]. If a call is in
// flight for its key, a caller joins it: its own fn is ignored, and it gets the results
// of the call. Otherwise the caller starts a call. When fn has returned, panicked or
// called [runtime.Goexit], the call ends in one step, which frees the key and settles
// which callers get the results. Results are not cached.
//
// A caller of DoContext leaves its call if its context is done first. A call that
// DoContext started is given up when all its callers have left. After that, as after
// [Group.Forget], no caller joins the call any more, but its fn may run on.
//
// # Choosing a method
//
//   - Use [Group.Do] if callers can wait for as long as fn takes. It is the cheapest.
//   - Use [Group.DoContext] if callers have a context, such as that of a request. Each
//     leaves when its ctx is done. fn's context is canceled when the call is given up.
//   - Use [Group.DoChan] in a select if callers can stop waiting but fn must finish.
//   - Use the functions [Do] and [DoContext] for typed results.
//   - Use [Group.Forget] to make the next caller start a new call, and
//     [Group.ForgetUnshared] to do so unless another caller has joined the call.
//
// All of them can be used for one key at the same time. All callers must use the same
// Group: two Groups, such as one for each request, share no calls.
//
// A Group does not cache, expire, batch, retry or limit concurrency. Put a cache in
// front, filled by fn. Across processes, use a lease in a shared store.
//
// # Choosing a key
//
// The key must contain everything that the result depends on, such as the user, the
// tenant, the credentials or a revision. Otherwise callers get results that are not
// theirs. Join the parts of a key so that different parts make different keys: strings
// with fmt.Sprintf("%q %q", a, b), integers with "%d %d" (under %q, many look the same).
//
// # Writing fn
//
// Use the context that DoContext gives to fn. If fn uses the context of its caller
// instead, all callers fail when that one hangs up. With DoChan, give fn a context of
// its own, such as context.WithTimeout(context.WithoutCancel(ctx), limit).
//
// Give fn a time limit. Later callers join a call that is stuck: with Do and DoChan
// forever, with DoContext for as long as callers keep coming. If fn heeds a context,
// set a timeout in fn. Otherwise let a timer forget the key.
//
// Look into the cache again in fn if callers look into it first. A caller can miss the
// cache and then ask just after the call that fills it has ended.
//
// Recover in an fn for DoContext or DoChan. Otherwise a panic can crash the process:
// see "Panics and Goexit". Here, err is a named result of fn:
//
//	defer func() {
//		if r := recover(); r != nil {
//			err = fmt.Errorf("panic: %v\n\n%s", r, debug.Stack())
//		}
//	}()
//
// With these methods, fn runs on a goroutine of its own and can outlive its caller. So
// it must not rely on what is bound to the caller's goroutine, such as a lock, nor use
// what is closed or reused after the request, such as a body or a pooled buffer.
//
// A Group is not a mutex. Once a call was forgotten or given up, its fn may run on, or
// clean up, beside the fn of the next call. It may also still store its value in a
// cache. If the value can be outdated, compare a revision first.
//
// # What callers share
//
// All callers of a call get the same value, not copies of it. Clone what you modify,
// with [slices.Clone] or [maps.Clone] for example. No caller can know whether it is the
// last to use the value. So return values that need no Close.
//
// All callers get the same error. Callers that try again at once can share the next
// error, too. If an attempt is worth repeating, repeat it in fn.
//
// A [context.DeadlineExceeded] or [context.Canceled] is fn's own error if the caller's
// ctx.Err() is nil. Otherwise it can be fn's or the caller's. To tell them apart, wrap
// the errors of fn in one of your own.
//
// The result shared is true for the caller that started the call, too. To know whether
// a caller did the work, or to count those that did not, set a flag in each caller's
// own fn. With DoContext and DoChan, make the flag atomic, as fn may still run.
//
// # Panics and Goexit
//
// If fn panics, every caller waiting in Do or DoContext panics on its own goroutine
// with the same [*PanicError]. If fn calls [runtime.Goexit], their goroutines exit, and
// a channel gets [ErrGoexit]. A Goexit while fn panics replaces the panic, as in Go.
//
// The process crashes instead if fn panics and a caller of DoChan started or joined the
// call, even if it dropped the channel. It also crashes if DoContext started the call
// and all callers have left. The output has the value and fn's stack. Only a recover in
// fn prevents the crash, not one above a caller, such as that of net/http's server.
//
// # Memory model
//
// In the terminology of the Go memory model, the end of fn synchronizes before each
// return of Do and DoContext that it answers, each receive of its Result, and the start
// of the key's next call. If the call was forgotten or given up, the Forget or the end
// of the last caller's ctx synchronizes before that start instead.
//
// # Tests with synctest
//
// A Group may be used in one [testing/synctest] bubble after another, and outside. A
// caller that waits for a call started in its bubble is durably blocked. In DoContext,
// the Done channel of its ctx must belong to the bubble or be nil.
//
// Do not join calls across the edge of a bubble. If DoChan or DoContext in a bubble
// joins a call from outside, the bubble can report a deadlock, or the process can crash
// with an error that names a "synctest channel". So it can if DoContext outside joins a
// call from a bubble, or Do a call that is just ending. Do is not durably blocked then.
//
// # Differences
//
// These are the differences from golang.org/x/sync/singleflight v0.25.0:
//
//   - If fn calls Goexit, a channel gets [ErrGoexit]. In x/sync, it gets nothing.
//   - An error that fn returns is never taken for a panic. In x/sync, an error that
//     another Group's panic produced panics every caller, or crashes the process.
//   - A panic of a deferred function while fn's goroutine exits is kept, not lost.
//   - panic(nil) under GODEBUG=panicnil=1 is a panic, unless a deferred function raises
//     it while fn's goroutine exits. In x/sync, it is success with nil results.
//   - No lock is held while callers are answered or the process crashes. In x/sync, the
//     end of a call with many callers stalls all keys of its Group. On the other hand,
//     the next call of a key can run before the channels of the last one have received.
//   - The memory of a burst of calls is given back. In x/sync, a Group retains it.
//   - Calls of different keys are not ordered. In x/sync, the Group's mutex orders them.
//   - The calls in flight of all Groups are in one table. So calls of unrelated keys
//     can delay one another by a lookup. Callers of DoContext inside fns can delay one
//     another by a search for cycles. A debugger cannot list the calls of a Group. The
//     leak profile misses goroutines stuck in calls of a dropped Group.
//   - The types are not those of x/sync. Packages that pass them to each other must be
//     switched together. To [reflect.DeepEqual], two used Groups are not equal.
//   - The package has more names. They can collide in a file that imports it with a dot,
//     and in a struct that embeds a Group beside another type with the same method.
package singleflight

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"math"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"
)

// A Group is a namespace of keys in which duplicate calls are suppressed. Groups share
// no calls, whatever their keys.
//
// The zero Group is ready to use. A Group takes 8 bytes and needs no closing. Its
// methods may be called by any number of goroutines at once.
//
// A used Group can be moved, as in x/sync, for example by a slice that grows. Its calls
// move along, if the old place is not used again. A Group that is set to the zero Group
// is a new one: the next caller of each key starts a new call, and the calls in flight
// still answer their callers. Like any assignment, this one must be synchronized with
// the use of the Group. A call of [Group.Forget] need not be.
//
// A Group must not be copied after first use; go vet reports most such copies. The
// copies share their calls. Copies of an unused Group share none. A method with a value
// receiver works on such a copy.
//
// While a call is in flight, its Group stays reachable, and with it the struct that the
// Group is part of. So their finalizers and cleanups do not run in the middle of fn.
type Group struct {
	_  [0]func()     // makes == an error, as in x/sync
	id atomic.Uint64 // 0 before first use; then constant, and of this Group alone
}

// Result is what a channel of [Group.DoChan] receives: the results of [Group.Do], or
// [ErrGoexit] if fn called [runtime.Goexit].
type Result struct {
	Val    any   // the value that fn returned
	Err    error // the error that fn returned, or ErrGoexit
	Shared bool  // whether another caller joined the call
}

// Do runs fn and returns its results. If a call of key is in flight, Do ignores its own
// fn instead, waits for that call, and returns its results.
//
// fn runs on the goroutine of the caller that starts the call. v and err are what fn
// returned, even if both are not nil. shared is true for every caller that joined the
// call. For the caller that started it, shared is true if another caller joined before
// the call ended or was forgotten, even one that has left (see [Group.DoContext]).
//
// Any string is a valid key. Once the call has ended, the Group retains neither the key
// nor fn, v or err. Until then, the bytes of the key must not change: clone a key that
// a framework reuses after the request.
//
// If fn panics, every caller waiting in Do panics with the same [*PanicError]. The
// process crashes instead if a caller of [Group.DoChan] started or joined the call. If
// fn calls [runtime.Goexit], the goroutine of every caller waiting in Do exits. A nil
// fn panics like any call of a nil function, unless the caller joins.
//
// fn may call every method of its Group, for any key. But an fn that waits in Do for
// its own key waits for itself, forever, unless it calls [Group.Forget] first. So do
// two fns that wait for each other's keys. To detect such cycles, use [Group.DoContext]
// for every wait inside an fn.
//
// Do does not return before fn is done. If the caller must be able to stop waiting, use
// [Group.DoContext] or [Group.DoChan].
func (g *Group) Do(key string, fn func() (any, error)) (v any, err error, shared bool) {
	s, c, joined := g.joinOrInsert(key)
	s.mu.Unlock()
	if !joined {
		return doCall(g, c, fn)
	}
	c.wg.Wait()
	return c.result()
}

// DoChan is like [Group.Do] but returns a channel that receives the results, instead of
// waiting for them.
//
// The caller that starts a call starts one goroutine, on which fn runs to its end, even
// if every caller has stopped waiting. Joining starts no goroutine. If fn needs a
// context, give it one that the end of the request does not cancel:
// context.WithTimeout(context.WithoutCancel(ctx), limit).
//
// The channel belongs to this caller alone. It receives one Result when fn has returned
// or exited, and is not closed. It has room for the Result, so a caller may drop it:
// nothing leaks once the call has ended. The key is free before the Result is sent. So
// the next call of the key can run before the Result is received.
//
// If fn calls [runtime.Goexit], the Result has a nil Val and [ErrGoexit]. If fn panics,
// the process crashes, even if every channel of the call was dropped. To prevent that,
// recover in fn.
func (g *Group) DoChan(key string, fn func() (any, error)) <-chan Result {
	ch := make(results, 1)
	if c, joined := g.read(key, ch); !joined {
		go doCall(g, c, fn)
	}
	return ch
}

// Forget makes the Group forget the call of key that is in flight, if there is one: the
// next caller starts a new call. The forgotten call goes on beside it and answers the
// callers that it has.
//
// Forget does not cancel the context of the forgotten fn. If DoContext started the
// call, the context is still canceled when all its callers have left.
//
// Whatever else the forgotten fn does still happens, such as storing a value that is
// out of date by now. So to invalidate a cache, also change a revision, which fn
// compares before it stores the value, or which is part of the key.
func (g *Group) Forget(key string) {
	s, _, c := g.lookup(key)
	if c != nil {
		s.remove(c)
	}
	s.mu.Unlock()
}

// ForgetUnshared is like [Group.Forget], but does not forget a call that another caller
// joined, even if that caller has left since. It reports whether the next caller starts
// a new call: true if the call was forgotten or none is in flight, false otherwise.
//
// Use it when a caller of DoChan gives up on a slow call that nobody has joined: the
// next caller then starts a new one.
func (g *Group) ForgetUnshared(key string) bool {
	s, _, c := g.lookup(key)
	defer s.mu.Unlock()
	if c != nil && !c.shared {
		s.remove(c)
	}
	return c == nil || !c.shared
}

// ErrRecursive is the error of a [Group.DoContext] that would close a cycle of waits:
// fn would wait for its own call, directly or through other calls. While fn runs, a
// goroutine that fn started gets it, too, if its context comes from fn's, even through
// [context.WithoutCancel]. It does not matter whether fn waits for the goroutine. Give
// it a context that does not come from fn's.
var ErrRecursive = errors.New("singleflight: call would wait for itself")

// DoContext is like [Group.Do] for callers that have a context. Each caller waits until
// the call ends or its own ctx is done. If ctx is done first, the caller leaves the
// call and gets (nil, ctx.Err(), false) at once. The other callers do not notice.
//
// The error is fn's, ctx.Err() (not its [context.Cause]), or [ErrRecursive]. fn can
// return context.Canceled or context.DeadlineExceeded as well; to tell its errors from
// ctx.Err(), mark them in fn. If ctx is done when DoContext is called, it returns (nil,
// ctx.Err(), false) and neither starts nor joins a call. Who gets the results is
// settled when the call ends: a caller that is still waiting then gets them, even if
// its ctx is done by the time it returns. shared is as described for [Group.Do].
//
// DoContext joins the call of key that is in flight, whichever method started it. If
// there is none, it starts one: fn runs on a new goroutine, with a context that has the
// values of this ctx but neither its deadline nor its cancellation. So fn has the
// trace, the logger or the user of the caller that started the call, also for those
// that join and after that caller has left. Do not pass a context that a framework
// reuses after the request; pass the request's own.
//
// fn must use its context, not one of a caller. fn's context is canceled when fn is
// done, before any caller gets the results. So fn must not return anything bound to it,
// such as the body of an HTTP response that is still to be read.
//
// fn's context is also canceled when the call is given up. A call that DoContext
// started is given up when its last caller leaves. In the same step the key becomes
// free, so that no caller joins the call any more, and fn's context is canceled before
// the last caller returns. A caller waiting in Do and a channel of DoChan, even a
// dropped one, keep the call alive. A call that Do or DoChan started is not given up.
// If work must finish even if all callers leave, use DoChan.
//
// An fn that ignores its context runs on after its call is given up, beside later
// calls. The context has no deadline, and is not canceled while callers keep coming. So
// an fn that can get stuck needs a timeout of its own.
//
// If fn panics or calls [runtime.Goexit], so does every caller waiting in DoContext or
// Do when the call ends. fn's panic crashes the process instead if no caller is
// waiting, or if a caller of DoChan started or joined the call. DoContext panics if ctx
// is nil. A nil fn panics as described for [Group.Do].
//
// fn may itself call DoContext. It should pass on its own context, or one derived from
// it, so that cycles are detected: if the other call waits for fn's call, directly or
// through more calls, DoContext returns (nil, [ErrRecursive], false) at once, even if a
// deadline would break the cycle later. This holds across Groups and for every
// goroutine that uses fn's context, or one derived from it, while fn runs. A caller
// that gets ErrRecursive counts as one that joined and left.
//
// DoContext does not see waits in Do or for a channel, or waits with a context that
// does not come from an fn. A wait with the context of an enclosing fn counts for that
// fn, not for the inner one. So name the context of each fn ctx. It then shadows the
// others.
func (g *Group) DoContext(ctx context.Context, key string, fn func(context.Context) (any, error)) (v any, err error, shared bool) {
	return g.doContext(ctx, key, contextFunc[any](fn))
}

func (g *Group) doContext(ctx context.Context, key string, fn runner) (v any, err error, shared bool) {
	if err := ctx.Err(); err != nil {
		return nil, err, false
	}
	ctxDone := ctx.Done()
	outer, _ := ctx.Value(nodeKey{}).(*node) // of the call in whose fn the caller is, or nil

	var fnCtx context.Context
	s, c, joined := g.joinOrInsert(key)
	switch {
	case !joined:
		c.node = &node{Context: ctx}
		fnCtx, c.cancel = context.WithCancelCause(c.node)
		c.done = fnCtx.Done()
	case c.done == nil: // the first caller with a context, in a call of Do or DoChan
		done := make(chan struct{})
		c.done, c.cancel = done, func(error) { close(done) }
	}
	s.mu.Unlock()

	// Only a joiner can be refused: a new call waits for nothing before fn runs.
	e, linked := outer.link(c.node)
	if !joined {
		// As a go statement with arguments, it would allocate one more closure.
		go func() { doCall(g, c, func() (any, error) { return fn.run(fnCtx) }) }()
	}

	ended := linked && c.wait(ctxDone)
	e.unlink()               // before leaving: once canceled, fn may ask for the call that waited for it
	if ended || !c.leave() { // if leaving fails, the call has ended by now
		<-c.done
		return c.result()
	}
	if linked {
		return nil, ctx.Err(), false
	}
	return nil, ErrRecursive, false
}

// A GroupOf is a [Group] whose calls all have results of type V. Use it in new code, and
// Group in place of the one of x/sync. What is said of Group and its methods holds for
// GroupOf, except that its methods do not return shared.
//
// The zero GroupOf is ready to use.
type GroupOf[V any] struct{ group Group }

// ResultOf is what a channel of [GroupOf.DoChan] receives: the results of fn, or the zero V
// and [ErrGoexit] if fn called [runtime.Goexit].
type ResultOf[V any] struct {
	Val V
	Err error
}

// Do is like [Group.Do]. It returns what fn returned, both results unchanged.
func (g *GroupOf[V]) Do(key string, fn func() (V, error)) (V, error) {
	v, err, _ := g.group.Do(key, func() (any, error) { return fn() })
	return as[V](v), err
}

// DoContext is like [Group.DoContext]. A caller that leaves or is refused gets the zero V
// and the error.
func (g *GroupOf[V]) DoContext(ctx context.Context, key string, fn func(context.Context) (V, error)) (V, error) {
	v, err, _ := g.group.doContext(ctx, key, contextFunc[V](fn))
	return as[V](v), err
}

// DoChan is like [Group.DoChan].
func (g *GroupOf[V]) DoChan(key string, fn func() (V, error)) <-chan ResultOf[V] {
	ch := make(resultsOf[V], 1)
	if c, joined := g.group.read(key, ch); !joined {
		go func() { doCall(&g.group, c, func() (any, error) { return fn() }) }()
	}
	return ch
}

// Forget is like [Group.Forget].
func (g *GroupOf[V]) Forget(key string) { g.group.Forget(key) }

// ForgetUnshared is like [Group.ForgetUnshared].
func (g *GroupOf[V]) ForgetUnshared(key string) bool { return g.group.ForgetUnshared(key) }

// as returns the V that val holds. That is nothing if V is an interface and fn returned
// nil, or if fn returned nothing: then it is the zero V.
func as[V any](val any) V {
	v, _ := val.(V)
	return v
}

// A runner is the fn of a caller with a context, of Group or GroupOf. To convert one, or a
// reader, to an interface takes no allocation, as a closure around it would.
type runner interface {
	run(context.Context) (any, error)
}

type contextFunc[V any] func(context.Context) (V, error)

func (fn contextFunc[V]) run(ctx context.Context) (any, error) {
	if err := ctx.Err(); err != nil {
		return nil, err // all callers have left before, so nobody gets this
	}
	return fn(ctx)
}

// A reader is the channel of a caller of DoChan, of Group or GroupOf.
type reader interface {
	send(val any, err error, shared bool)
}

type results chan Result

type resultsOf[V any] chan ResultOf[V]

func (ch results) send(val any, err error, shared bool) { ch <- Result{val, err, shared} }
func (ch resultsOf[V]) send(val any, err error, _ bool) { ch <- ResultOf[V]{as[V](val), err} }

// The call.

// lookup locks the stripe of key in g, which the caller must unlock. It returns the hash of
// key in g, and the call that can be joined, or nil.
func (g *Group) lookup(key string) (s *stripe, hash uint64, c *call) {
	if g.id.Load() == 0 {
		g.id.CompareAndSwap(0, lastID.Add(0x9e3779b97f4a7c15))
	}
	hash = maphash.Comparable(seed, key) ^ g.id.Load()
	s = stripeOf(hash)
	s.mu.Lock()
	return s, hash, s.find(hash, key)
}

// lastID is the ID of the last Group that was used for the first time. It is tempting to use
// the address of a Group instead. But then a Group that is overwritten by a zero Group would
// still have its calls, and one that is moved would lose them, or meet those of another.
//
// IDs step by 2^64 divided by the golden ratio. As that is odd, none comes twice. As it has
// ones everywhere, they differ in all bits, and so do the hashes of one key in many Groups.
var lastID atomic.Uint64

// seed differs from process to process, so that nobody can choose keys that collide.
var seed = maphash.MakeSeed()

// joinOrInsert locks the stripe of key in g, which the caller must unlock. It adds a
// caller to the call that can be joined or, if there is none, to a new one.
func (g *Group) joinOrInsert(key string) (s *stripe, c *call, joined bool) {
	s, hash, c := g.lookup(key)
	if c == nil {
		return s, s.insert(hash, key), false
	}
	c.callers++
	c.shared = true
	return s, c, true
}

// read adds a caller with a channel to the call of key, or to a new one.
func (g *Group) read(key string, ch reader) (c *call, joined bool) {
	s, c, joined := g.joinOrInsert(key)
	c.readers = append(c.readers, ch)
	s.mu.Unlock()
	return c, joined
}

// A call is one execution of fn.
//
// While it is in the table, callers join it. Once it has been removed, because it was
// forgotten or given up, nobody joins, but callers of DoContext still leave. Once it has
// ended, nobody leaves.
type call struct {
	// wg counts one until the call has ended. Callers of Do wait for it. It is tempting to
	// let the first joiner add the one, since most calls have none. But if a call is
	// started on one side of the edge of a synctest bubble and joined on the other, that
	// would crash the process.
	//
	// Each Done is followed by a Wait, which takes the mark of the bubble off wg. A joiner
	// from outside that began to wait only now would crash on the mark, and so would the
	// next bubble to use the call again. internal/synctest has a test for what Wait does,
	// TestWaitGroupDisassociateInWait. If it changes, only programs in bubbles are concerned.
	//
	// It is the first field, so that a dump shows the call's address for those who wait.
	wg sync.WaitGroup

	// Set before the call is in the table, and constant from then on.
	hash uint64
	key  string

	// Guarded by the stripe's mutex. They are constant once the call has ended, so fn's
	// goroutine and the callers that it wakes read them without the mutex then.
	readers []reader // the channels of DoChan
	callers int32    // how many have not left, in all methods
	shared  bool     // whether a caller has joined, even if it has left since
	ended   bool

	// The outcome. Set by fn's goroutine when the call has ended, before it wakes the
	// callers, which read it then. Not set in a call that becomes the spare one.
	how ending
	val any
	err error

	// Set by the first caller of DoContext with the stripe's mutex held, and constant from
	// then on. All that read them without the mutex have held it since: the callers of
	// DoContext when they joined, fn's goroutine when it ended the call.
	node   *node                   // nil unless DoContext started the call
	done   <-chan struct{}         // what callers of DoContext wait for
	cancel context.CancelCauseFunc // closes done; cancels fn's context if DoContext started the call
}

// result returns, panics, or exits the goroutine, as fn did. It is for callers that the end
// of the call has woken.
func (c *call) result() (v any, err error, shared bool) {
	v, err = outcome{c.how, c.val, c.err}.result()
	return v, err, c.shared
}

// wait waits until the call has ended or ctxDone is closed, and reports whether the call
// has ended. Not inlined, and with c in use to the end, it shows the address of the call in
// a dump.
//
//go:noinline
func (c *call) wait(ctxDone <-chan struct{}) (ended bool) {
	select {
	case <-c.done:
		ended = true
	case <-ctxDone:
	}
	runtime.KeepAlive(c)
	return ended
}

// leave removes a caller of DoContext, unless the call has ended: then it reports false,
// and the caller gets the outcome. The last caller to leave gives the call up.
func (c *call) leave() bool {
	s := stripeOf(c.hash)
	s.mu.Lock()
	left := !c.ended
	if left {
		c.callers--
	}
	last := left && c.callers == 0 // DoContext started the call: callers of Do and DoChan stay
	if last {
		s.remove(c)
	}
	s.mu.Unlock()
	if last {
		c.cancel(errLeft) // without the mutex: fn may have derived any number of contexts
	}
	return left
}

// errLeft is the cause of the end of fn's context in a call that was given up.
var errLeft = errors.New("singleflight: all callers of DoContext have left")

// doCall runs fn, ends the call, and returns the results. If fn exited, so does doCall. If
// fn panicked, so does doCall, unless there are callers of DoContext that do.
//
// It takes two deferred functions. The inner one, in run, recovers a panic of fn. The outer
// one ends the call, also if the goroutine exits, when it is known how fn ended.
func doCall(g *Group, c *call, fn func() (any, error)) (v any, err error, shared bool) {
	var o outcome
	defer func() { v, err, shared = o.val, o.err, c.end(&o) }()
	o.run(fn)
	runtime.KeepAlive(g) // nothing else keeps the Group while fn runs
	runtime.KeepAlive(c) // shows the address of the call in a dump
	return
}

// end ends the call in one step: it takes it out of the table and settles who gets the
// outcome. Then it hands the outcome to them. It reports whether the call was joined, and
// panics as doCall does.
func (c *call) end(o *outcome) (shared bool) {
	if o.how == exited {
		o.err = ErrGoexit // for the channels
	}
	s := stripeOf(c.hash)
	s.mu.Lock()
	s.remove(c)
	shared, readers := c.shared, c.readers
	if !shared && c.done == nil && o.how == returned {
		s.recycle(c) // which only this goroutine knows
		s.mu.Unlock()
	} else {
		c.ended = true
		if c.node != nil {
			c.node.ended.Store(true)
		}
		s.mu.Unlock()
		c.wake(o) // without the mutex, as there may be very many callers
	}
	for _, ch := range readers {
		ch.send(o.val, o.err, shared)
	}
	return shared
}

// wake hands the outcome to the callers in Do and DoContext. If fn panicked and no caller
// can take the panic to its goroutine, the process crashes.
func (c *call) wake(o *outcome) {
	if o.how == panicked && c.readers != nil {
		// On a new goroutine, no recover stops the panic. This one stays, to be in the
		// dump. Nobody is woken, as a caller that recovers could end the process.
		go panic(fmt.Errorf("singleflight: fn panicked in a call that has a channel of DoChan: %w", o.err))
		select {}
	}
	c.how, c.val, c.err = o.how, o.val, o.err
	if c.cancel != nil {
		c.cancel(nil)
	}
	c.wg.Done()
	c.wg.Wait()
	if o.how == panicked && c.node == nil {
		panic(o.err) // in a caller of Do, whose goroutine this is
	}
	if o.how == panicked && c.callers == 0 {
		panic(fmt.Errorf("singleflight: fn panicked after all callers of DoContext had left: %w", o.err))
	}
}

// The graph of waits.

// A node stands for a call that DoContext started. An edge is a caller of DoContext that
// waits inside the fn of one call for another call.
//
// A node is also the parent of fn's context, so a caller inside fn finds the node by its
// ctx. It has the values of the ctx of the caller that started the call, and is never
// canceled. It does not lead to the call, as fn's context may be kept for longer.
type node struct {
	context.Context // of the caller that started the call; only for its values

	ended atomic.Bool // whether the call has ended; then it waits for nothing

	// Guarded by graph.
	level int32
	mark  uint64     // the last walk that came here
	edges [2][]*edge // from this node, and to it
}

// An edge is in a list of each of its nodes.
type edge struct {
	nodes [2]*node
	index [2]int // in the lists; guarded by graph
}

// The two sides of an edge, and the two lists of a node.
const from, to = 0, 1

// nodeKey is the key of the node among the values of fn's context.
type nodeKey struct{}

func (n *node) Deadline() (deadline time.Time, ok bool) { return time.Time{}, false }
func (n *node) Done() <-chan struct{}                   { return nil }
func (n *node) Err() error                              { return nil }

func (n *node) Value(key any) any {
	if key == (nodeKey{}) {
		return n
	}
	return n.Context.Value(key)
}

// graph guards all nodes. Only callers inside an fn lock it, and never with the mutex of a
// stripe. So a walk delays nobody else, except joiners of a call that such a caller is just
// starting.
var graph struct {
	sync.Mutex
	walks uint64 // how many there have been
}

// link adds an edge for a caller that waits inside the fn of outer for the call of n. If
// the edge would close a cycle, link changes nothing, and ok is false. If there is nothing
// to add, link returns nil and true: outer is nil if the caller is not inside an fn, n is
// nil if Do or DoChan started the call, whose fn then has no context to wait with, and a
// call that has ended waits for nothing.
//
// Searching all that n waits for at each wait would be quadratic. So nodes have levels,
// which only rise, and edges never lead to a lower one. That makes the search short, at
// both ends. It takes many edges to make a level, so there are few, and a node seldom
// rises. This is the two-way search of Bender, Fineman, Gilbert and Tarjan, "A New Approach
// to Incremental Cycle Detection and Related Problems", with a constant bound.
func (outer *node) link(n *node) (_ *edge, ok bool) {
	if outer == nil || n == nil {
		return nil, true
	}
	graph.Lock()
	defer graph.Unlock()
	if outer.ended.Load() || n.ended.Load() {
		return nil, true
	}
	if level := outer.level; level >= n.level { // if not, n does not lead to outer
		graph.walks++ // so that no node has its mark
		if _, all := outer.walk(to, lookBack, level, level); !all {
			level++ // n will be above outer, so outer alone has to be met
			graph.walks++
			outer.mark = graph.walks
		}
		if n.mark == graph.walks {
			return nil, false
		}
		if n.level < level {
			rising, all := n.walk(from, math.MaxInt, 0, level-1)
			if !all {
				return nil, false
			}
			for _, x := range rising {
				x.level = level
			}
		}
	}
	e := &edge{nodes: [2]*node{outer, n}}
	for side, x := range e.nodes {
		e.index[side] = len(x.edges[side])
		x.edges[side] = append(x.edges[side], e)
	}
	return e, true
}

// lookBack is how many edges to outer link looks at. With fewer, there are more levels; with
// more, it takes longer to make one.
const lookBack = 32

// walk marks n and the nodes that edges lead to from there, or from which they lead there,
// past nodes on some levels alone. It returns them and true, unless there are more edges
// than the limit or it meets a node that the last walk has marked. graph must be locked.
func (n *node) walk(side, limit int, lowest, highest int32) (met []*node, all bool) {
	last := graph.walks
	graph.walks++
	n.mark = graph.walks
	met = []*node{n}
	for i := 0; i < len(met); i++ {
		for _, e := range met[i].edges[side] {
			x := e.nodes[1-side]
			if limit--; limit < 0 || x.mark == last {
				return nil, false
			}
			if lowest <= x.level && x.level <= highest && x.mark != graph.walks && !x.ended.Load() {
				x.mark = graph.walks
				met = append(met, x)
			}
		}
	}
	return met, true
}

// unlink removes the edge, if there is one. A list that becomes empty keeps no room.
func (e *edge) unlink() {
	if e == nil {
		return
	}
	graph.Lock()
	defer graph.Unlock()
	for side, n := range e.nodes {
		edges, i, last := n.edges[side], e.index[side], len(n.edges[side])-1
		edges[i], edges[last].index[side] = edges[last], i
		edges[last] = nil
		n.edges[side] = edges[:last]
		if last == 0 {
			n.edges[side] = nil
		}
	}
}

// The table of calls in flight.

// A stripe is a mutex and a hash table of the calls that can be joined. The mutex must be
// held for all methods. What is done under it takes constant time on average, except to
// compare a key with an equal one, which depends on its length.
//
// The table has linear probing. It doubles and halves with the calls, so a burst of calls
// gives back what it took, even while other calls stay. A map does not, and with a map in
// each stripe, a Do beside 100,000 calls in flight took more than twice as long.
type stripe struct {
	mu sync.Mutex

	// Guarded by mu. At most three quarters of the slots are in use, so a search for a
	// free one ends.
	slots []slot // nil before first use; then a power of two
	n     int    // how many are in use

	// A call to be used again, or nil. Without it, an unjoined Do takes twice as long. A
	// second one would only serve calls that overlap in one stripe. Guarded by mu.
	spare *call
}

// A slot is free if its call is nil.
type slot struct {
	hash uint64 // as in the call; saves a look at most calls, which may not be in the cache
	call *call
}

// stripes has all calls of the process that can be joined. With a table in each Group, the
// callers of one Group would meet at one mutex, or each Group would need many. With a
// sync.Map, a call would take three allocations. This way a Group takes 8 bytes and
// retains nothing, and two processors with a key each take a fifth of the time of x/sync.
//
// Of 256 stripes, sixteen busy processors lock one in sixteen at any time. So callers of
// different keys rarely meet, and the array takes 32 KiB.
var stripes [1 << stripeBits]struct {
	stripe
	// No two mutexes share a cache line, nor a pair that processors fetch together.
	_ [128 - unsafe.Sizeof(stripe{})%128]byte
}

const stripeBits = 8

const minSlots = 8 // 128 bytes

// stripeOf returns the stripe for a hash, by its top bits.
func stripeOf(hash uint64) *stripe { return &stripes[hash>>(64-stripeBits)].stripe }

// home returns the slot for a hash, once it is reduced to the size of the table. It leaves
// out the lowest 24 bits. For one key in many Groups they would repeat, as the lowest bits
// of the numbers of the Groups do.
func home(hash uint64) int { return int(hash >> 24) }

// find returns the call of key in the Group that made the hash, or nil. One key has a
// different hash in each Group, so the Group need not be compared.
func (s *stripe) find(hash uint64, key string) *call {
	slots, mask := s.slots, len(s.slots)-1
	for i := home(hash) & mask; s.n > 0 && slots[i].call != nil; i = (i + 1) & mask {
		if slots[i].hash == hash && slots[i].call.key == key {
			return slots[i].call
		}
	}
	return nil
}

// insert returns a new call, with one caller, that is in the table.
func (s *stripe) insert(hash uint64, key string) *call {
	c := s.spare
	if c == nil {
		c = new(call)
	}
	s.spare = nil
	c.hash, c.key, c.callers = hash, key, 1
	c.wg.Add(1)
	if s.n++; 4*s.n > 3*len(s.slots) {
		s.resize(2 * len(s.slots))
	}
	s.place(slot{hash, c})
	return c
}

// recycle makes the spare call of one that has ended and that nobody else knows.
func (s *stripe) recycle(c *call) {
	c.wg.Done()
	c.wg.Wait()
	c.key, c.readers = "", nil
	s.spare = c
}

// place puts x into the first free slot for its hash.
func (s *stripe) place(x slot) {
	slots, mask := s.slots, len(s.slots)-1
	i := home(x.hash) & mask
	for slots[i].call != nil {
		i = (i + 1) & mask
	}
	slots[i] = x
}

// remove takes c out of the table, if it is there, and moves up the calls behind it that
// would not be found otherwise.
func (s *stripe) remove(c *call) {
	slots, mask := s.slots, len(s.slots)-1
	i := home(c.hash) & mask
	for slots[i].call != c {
		if slots[i].call == nil {
			return // it was forgotten or given up
		}
		i = (i + 1) & mask
	}
	hole := i
	for i = (i + 1) & mask; slots[i].call != nil; i = (i + 1) & mask {
		// The slots are a circle. A search for this call passes the hole if it begins at
		// least as far before slot i as the hole is.
		if (i-home(slots[i].hash))&mask >= (i-hole)&mask {
			slots[hole], hole = slots[i], i
		}
	}
	slots[hole] = slot{}
	if s.n--; len(slots) > minSlots && 4*s.n < len(slots) {
		s.resize(len(slots) / 2)
	}
}

// resize moves the calls to so many slots, or to minSlots if that is more.
func (s *stripe) resize(size int) {
	if size < minSlots {
		size = minSlots
	}
	old := s.slots
	s.slots = make([]slot, size)
	for _, x := range old {
		if x.call != nil {
			s.place(x)
		}
	}
}
