// Copyright 2026 The singleflight Authors.
// Use of this source code is governed by the BSD-style license in LICENSE.

// Package singleflight suppresses duplicate function calls, as a drop-in replacement
// for golang.org/x/sync/singleflight. A call is one execution of a function, fn, for a
// key in a [GroupOf] or [Group]. A caller joins the call of its key in flight, if any:
// its own fn is ignored, and it gets that call's results. Otherwise, it starts a call.
// Nobody joins a call that was forgotten.
//
// # Choosing a method
//
//   - Do is the cheapest. Callers wait for as long as fn takes.
//   - DoContext is for callers with a context. A caller leaves when its context is done.
//     When all have left, the call is given up: forgotten, and fn's context canceled.
//   - DoChan is for a select. fn runs to its end even if all callers stop waiting.
//
// All can be used for one key at once. A Group does not cache, expire, batch, retry or
// limit concurrency. Across processes, use a lease in a shared store.
//
// # Choosing a key
//
// The key must contain all that the result depends on, such as user, tenant, revision,
// or a hash of the credentials. Otherwise a caller may get another's result. Join
// strings with fmt.Sprintf("%q %q", a, b), so that different parts make different keys.
//
// # Writing fn
//
//   - Use the context that DoContext gives to fn. A caller's ends with that caller.
//   - With DoChan, use context.WithTimeout(context.WithoutCancel(ctx), limit).
//   - Set a timeout: callers join a stuck fn. Without a context, let a timer call Forget.
//   - Check the cache again. The call that fills it may have just ended.
//   - Compare a revision before storing. A forgotten fn may store old values.
//   - Expect two fns of a key at once, after Forget or after all callers have left.
//   - With DoContext or DoChan, use nothing that ends or is reused when the caller returns.
//   - Take no lock that a caller holds. Begin transactions in fn.
//   - Return the bytes of a response. Each caller writes its own.
//   - See the examples for shutdown, late callers, and own writes.
//
// # Panics
//
// If fn panics, so does every waiting caller, with the same [*PanicError]. The process
// crashes instead if the call has a channel of DoChan, or if all its callers have left.
// No recover above a caller, such as net/http's, prevents that. So recover in fn, as in
// the handler example.
//
// # What callers share
//
//   - The value is not copied. Clone it before you change it.
//   - Return nothing that must be closed: no caller knows that it is the last.
//   - Callers that retry at once share the next error, too. Retry in fn.
//   - If an error is due to the caller whose fn ran (its quota), the others should retry.
//   - A context error is fn's if the caller's ctx.Err() is nil, else either's. Wrap fn's.
//   - To learn whether its fn ran, a caller sets a flag in it, atomic with DoContext and
//     DoChan. shared does not tell.
//
// # Tests and dumps
//
// A Group may be used in and outside [testing/synctest] bubbles in turn. Waiting for a
// call started in the same bubble, with a ctx of that bubble if any, is durably blocking.
// Do not join across the edge of a bubble: a caller of Do is then not durably blocked,
// and the process can crash. In a dump of all goroutines, the second argument of doCall
// is the address of fn's call. Callers that wait in Do or DoContext have it as argument
// of sync.(*WaitGroup).Wait or (*call).wait. For keys in goroutine profiles, set labels
// in fn with [runtime/pprof.Do].
//
// # Differences from golang.org/x/sync v0.25.0
//
//   - After Goexit, a channel gets [ErrGoexit]; in x/sync, nothing.
//   - A [*PanicError] that fn returns is an ordinary error.
//   - A deferred function's panic during Goexit is a panic. With GODEBUG=panicnil=1, so
//     is panic(nil), except during Goexit.
//   - A crash says why, and no caller is woken before.
//   - A key's next call can run before channels receive.
//   - The memory of a burst of calls is given back.
//   - Calls of different keys need not synchronize.
//   - A key whose bytes change (a bug) does not stay busy.
//   - All Groups share a table: keys can delay one another by a lookup, nested
//     DoContexts by a search. Debuggers cannot list a Group's calls, and leak profiles
//     miss those of a dropped Group.
//   - Types and stack frames differ, and more names can collide in a dot import or an
//     embedded Group. To [reflect.DeepEqual], used Groups differ.
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
// The zero Group is ready to use. Its methods may be called by multiple goroutines
// simultaneously. A Group cannot be compared with ==.
//
// A Group must not be copied after first use, except to move it, as in a slice that
// grows; go vet reports most copies. Copies of an unused Group, such as those of a value
// receiver, share no calls.
//
// A Group that is set to the zero Group is a new one. The calls in flight still answer
// their callers. The assignment may be concurrent with callers that wait and with the end
// of a call, but not with the start of a method call.
//
// While a call is in flight, its Group and the struct that the Group is part of stay
// reachable: their finalizers and cleanups do not run.
//
// In the terminology of the Go memory model, the end of fn synchronizes before each return
// and each receive of its results, and before the key's next call, unless the call was
// forgotten or given up. A call to Forget, or the leaving of the last caller, synchronizes
// before the start of the call that it makes room for.
type Group struct {
	_  [0]func()     // makes == an error, as in x/sync
	id atomic.Uint64 // 0 before first use; then constant, and of this Group alone
}

// Result is what a channel of [Group.DoChan] receives.
type Result struct {
	Val    any   // the value that fn returned
	Err    error // the error that fn returned, or ErrGoexit
	Shared bool  // whether a caller joined the call
}

// Do runs fn and returns its results. If a call of key is in flight, Do ignores its own
// fn instead, waits for that call, and returns its results.
//
// fn runs on the goroutine of the caller that starts the call. v and err are what fn
// returned, even if both are not nil. shared is true for every caller that joined. For
// the one that started the call, it is true if another joined before the call ended or
// was forgotten, even one that has left.
//
// Any string is a valid key. Once the call has ended, the Group retains neither the key
// nor fn, v or err. Until then, the bytes of the key must not change: clone a key that
// a framework reuses after the request.
//
// If fn panics, every caller waiting in Do panics with the same [*PanicError], unless
// the call has a channel of [Group.DoChan]. If fn calls [runtime.Goexit], the goroutine
// of every such caller exits; a Goexit while fn panics replaces the panic. A nil fn
// panics when it is called.
//
// fn may call every method of its Group, for any key. But an fn that waits in Do for
// its own key waits for itself, forever, unless it calls [Group.Forget] first. So do
// two fns that wait for each other's keys. [Group.DoContext] detects a cycle of its own
// waits.
func (g *Group) Do(key string, fn func() (any, error)) (v any, err error, shared bool) {
	s, c, joined := g.joinOrInsert(key)
	s.mu.Unlock()
	if !joined {
		return doCall(g, c, fn)
	}
	c.wg.Wait()
	return c.result()
}

// DoChan is like [Group.Do] but returns a channel that receives the results. The caller
// that starts a call starts one goroutine, on which fn runs to its end, even if every
// caller has stopped waiting. Joining starts no goroutine.
//
// The channel belongs to this caller alone. It receives one Result when fn has returned
// or exited, and is not closed. It has room for the Result, so a caller may drop it:
// nothing leaks once the call has ended. The key is free before the Result is sent.
//
// If fn calls [runtime.Goexit], the Result has a nil Val and [ErrGoexit]. If fn panics,
// the process crashes, whichever method started the call, even if its channels were
// dropped. The text is "singleflight: fn panicked in a call that has a channel of
// DoChan: ", the value, and fn's stack.
func (g *Group) DoChan(key string, fn func() (any, error)) <-chan Result {
	ch := make(resultChan, 1)
	if c, joined := g.addReader(key, ch); !joined {
		go doCall(g, c, fn)
	}
	return ch
}

// Forget makes the next caller of key start a new call. A call in flight goes on beside
// it and answers the callers that it has.
//
// Forget does not cancel fn's context. If DoContext started the call, it is still
// canceled when all callers have left. To invalidate a cache, also change a revision in
// the key, or one that fn compares before it stores.
func (g *Group) Forget(key string) {
	s, _, c := g.lookup(key)
	if c != nil {
		s.remove(c)
	}
	s.mu.Unlock()
}

// ForgetUnshared is like [Group.Forget], but does not forget a call that another caller
// joined, even if that caller has left since. It reports whether the next caller starts
// a new call, which is also so if none is in flight.
func (g *Group) ForgetUnshared(key string) bool {
	s, _, c := g.lookup(key)
	defer s.mu.Unlock()
	if c != nil && !c.shared {
		s.remove(c)
	}
	return c == nil || !c.shared
}

// ErrRecursive is the error of a [Group.DoContext] that would close a cycle of waits:
// fn would wait for its own call, directly or through other calls. While fn runs, any
// goroutine whose context comes from fn's counts as fn, even through
// [context.WithoutCancel], and even if fn does not wait for the goroutine. Give
// background work a context of its own.
var ErrRecursive = errors.New("singleflight: call would wait for itself")

// DoContext is like [Group.Do] for callers with a context. If ctx is already done, it
// returns (nil, ctx.Err(), false) and neither starts nor joins a call; a nil ctx panics.
// Otherwise it joins the call in flight, whichever method started it, or starts one. fn
// then runs on a new goroutine, with a context that has the values of ctx, even after
// the caller has left, but not ctx's deadline or cancellation. Do not pass a context that
// a framework reuses after the request.
//
// If ctx is done before the call ends, the caller leaves: it gets (nil, ctx.Err(),
// false) at once, and the others are unaffected. Callers of Do and DoChan do not leave.
// When all callers of a call that DoContext started have left, it is given up: in the
// same step, the key becomes free. Then, before the last caller returns, fn's context is
// canceled, with a [context.Cause] that says why. If fn has not begun by then, it may
// not be run. An fn that ignores its context runs on beside later calls.
//
// fn's context is also canceled when fn is done, before any caller gets the results. So
// fn must return nothing bound to it, such as an unread response body, a client or a
// token source. A caller that has not left when the call ends gets the results, even if
// its ctx is done by then. If fn panicked or exited, so does every such caller. A panic
// crashes the process if none waits; the text begins "singleflight: fn panicked after
// all callers of DoContext had left: ". With a channel, it crashes as described for
// [Group.DoChan].
//
// fn may call DoContext, with its own context or one derived from it. If that would
// close a cycle of waits, even across Groups, it returns (nil, [ErrRecursive], false) at
// once; the caller counts as one that joined and left. Waits in Do, for a channel, or
// with a context from no fn are not seen. A wait counts for the fn whose context it has:
// name each fn's context ctx, so that no outer one is used by mistake.
func (g *Group) DoContext(ctx context.Context, key string, fn func(context.Context) (any, error)) (v any, err error, shared bool) {
	return doContext(ctx, g, key, fn)
}

// doContext is generic so that a GroupOf needs no closure around fn, which would take an
// allocation.
func doContext[V any](ctx context.Context, g *Group, key string, fn func(context.Context) (V, error)) (v any, err error, shared bool) {
	if err := ctx.Err(); err != nil {
		return nil, err, false
	}
	ctxDone := ctx.Done()
	outer, _ := ctx.Value(nodeKey{}).(*node) // of the call in whose fn the caller is, or nil

	fnCtx := context.Background() // for a joiner, only to make c.done: fn does not see it
	s, c, joined := g.joinOrInsert(key)
	if !joined {
		c.node = &node{Context: ctx}
		fnCtx = c.node    // its Done is nil, so no method of ctx is called under the mutex
		if outer != nil { // looking for a value would recurse through node after node
			fnCtx = context.WithValue(context.WithoutCancel(ctx), nodeKey{}, c.node)
		}
	}
	if c.done == nil { // no caller with a context has come before
		fnCtx, c.cancel = context.WithCancelCause(fnCtx)
		c.done = fnCtx.Done()
	}
	s.mu.Unlock()

	// Before fn runs: a new call waits for nothing yet, so only a joiner can be refused.
	e, allowed := outer.link(c.node)
	if !joined {
		// go doCall(…) would allocate one closure more.
		go func() {
			doCall(g, c, func() (any, error) {
				if err := fnCtx.Err(); err != nil {
					return nil, err // all callers left before fn began, so nobody gets this
				}
				return fn(fnCtx)
			})
		}()
	}

	ended := allowed && c.wait(ctxDone)
	// Before leaving: once fn is canceled, it may wait for the call of outer, which waits
	// for it no more.
	e.unlink()
	if ended || !c.leave() { // if leaving fails, the call has ended by now
		<-c.done // the outcome is set before that
		return c.result()
	}
	if allowed {
		return nil, ctx.Err(), false
	}
	return nil, ErrRecursive, false
}

// A GroupOf is for new code, and a [Group] for code written for x/sync: the calls of a
// GroupOf all have results of type V, and its methods do not return shared. Otherwise,
// what is said of Group and its methods holds for GroupOf.
type GroupOf[V any] struct{ group Group }

// ResultOf is what a channel of [GroupOf.DoChan] receives. With [ErrGoexit], Val is the
// zero V.
type ResultOf[V any] struct {
	Val V
	Err error
}

// Do is like [Group.Do]. It returns what fn returned, both results unchanged.
func (g *GroupOf[V]) Do(key string, fn func() (V, error)) (V, error) {
	v, err, _ := g.group.Do(key, func() (any, error) { return fn() })
	return as[V](v), err
}

// DoContext is like [Group.DoContext]. Its own errors come with the zero V.
func (g *GroupOf[V]) DoContext(ctx context.Context, key string, fn func(context.Context) (V, error)) (V, error) {
	v, err, _ := doContext(ctx, &g.group, key, fn)
	return as[V](v), err
}

// DoChan is like [Group.DoChan].
func (g *GroupOf[V]) DoChan(key string, fn func() (V, error)) <-chan ResultOf[V] {
	ch := make(resultChanOf[V], 1)
	if c, joined := g.group.addReader(key, ch); !joined {
		go func() { doCall(&g.group, c, func() (any, error) { return fn() }) }()
	}
	return ch
}

// Forget is like [Group.Forget].
func (g *GroupOf[V]) Forget(key string) { g.group.Forget(key) }

// ForgetUnshared is like [Group.ForgetUnshared].
func (g *GroupOf[V]) ForgetUnshared(key string) bool { return g.group.ForgetUnshared(key) }

// as returns the V that val holds. If val is nil, it returns the zero V.
func as[V any](val any) V {
	v, _ := val.(V)
	return v
}

// A reader is the channel of a caller of DoChan, of Group or GroupOf. To make an interface
// of a channel takes no allocation.
type reader interface {
	send(val any, err error, shared bool)
}

type resultChan chan Result

type resultChanOf[V any] chan ResultOf[V]

func (ch resultChan) send(val any, err error, shared bool) { ch <- Result{val, err, shared} }
func (ch resultChanOf[V]) send(val any, err error, _ bool) { ch <- ResultOf[V]{as[V](val), err} }

// The call.

// lookup locks the stripe of key in g, which the caller must unlock. It returns the hash of
// key in g, and the call that can be joined, or nil.
func (g *Group) lookup(key string) (s *stripe, hash uint64, c *call) {
	if g.id.Load() == 0 { // if another caller is first, its ID stays
		g.id.CompareAndSwap(0, lastID.Add(0x9e3779b97f4a7c15))
	}
	// Comparable is faster than String for a long key, and as fast for a short one.
	hash = maphash.Comparable(seed, key) ^ g.id.Load()
	s = stripeOf(hash)
	s.mu.Lock()
	return s, hash, s.find(hash, key)
}

// lastID is the last ID that was taken, at the first use of a Group. It is tempting to use
// the address of a Group instead. But then one that is overwritten by a zero Group would
// still find its old calls, and one that is moved would lose them, or meet others.
//
// IDs are multiples of 2^64 divided by the golden ratio, rounded down. As that is odd, none
// comes twice. Their high bits are spread evenly, and so is one key in many Groups.
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

// addReader adds a caller with a channel to the call of key, or to a new one.
func (g *Group) addReader(key string, ch reader) (c *call, joined bool) {
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
	// let the first joiner add the one, since most calls have no joiner. But if a call is
	// started on one side of the edge of a synctest bubble and joined on the other, that
	// would crash the process.
	//
	// A Wait follows each Done, and ends the association of wg with its bubble. Otherwise,
	// a joiner from outside that begins to wait later would crash (as one that begins
	// between the two still does), and so would the next user of the spare call in another
	// bubble. internal/synctest tests what Wait does, in TestWaitGroupDisassociateInWait.
	// If that changes, only programs in bubbles break.
	//
	// It is the first field, so that a dump shows the call's address for those who wait.
	wg sync.WaitGroup

	// Set before the call is in the table, and constant until it is the spare one.
	hash uint64
	key  string

	// Guarded by the stripe's mutex. They are constant once the call has ended, so fn's
	// goroutine and the callers that it wakes read them without the mutex then.
	readers []reader // the channels of DoChan
	callers int32    // how many have not left; those of Do and DoChan never do
	shared  bool     // whether a caller has joined, even if it has left since
	ended   bool     // no caller can leave any more

	// The outcome. Set by fn's goroutine when the call has ended, before it wakes the
	// callers, which read it then. Not set in a call that becomes the spare one. As a
	// struct it would make the call larger: how fits beside ended.
	how ending
	val any
	err error

	// Set by the first caller of DoContext with the stripe's mutex held, and constant from
	// then on. All that read them without the mutex have held it since: the callers of
	// DoContext when they joined, fn's goroutine when it ended the call.
	node   *node                   // nil unless DoContext started the call
	done   <-chan struct{}         // closed when the call has ended or was given up
	cancel context.CancelCauseFunc // closes done; cancels fn's context if node is set
}

// result returns, panics, or exits the goroutine, as fn did. It is for callers that the end
// of the call has woken.
func (c *call) result() (v any, err error, shared bool) {
	if c.how == panicked {
		panic(c.err)
	}
	if c.how == exited {
		runtime.Goexit()
	}
	return c.val, c.err, c.shared
}

// wait waits until the call has ended or ctxDone is closed, and reports whether the call
// has ended. (Giving up the call closes done, too, but then nobody waits.) Not inlined, and
// with c in use to the end, it shows the address of the call in a dump.
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
	last := left && c.callers == 0 // then DoContext started the call: others do not leave
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
// fn panicked, so does doCall, unless DoContext started the call and its callers panic.
//
// It takes two deferred functions. The inner one, in run, recovers a panic of fn. The outer
// one ends the call when it is known how fn ended. It also runs if the goroutine exits.
func doCall(g *Group, c *call, fn func() (any, error)) (v any, err error, shared bool) {
	var o outcome
	defer func() { v, err, shared = c.end(&o) }()
	o.run(fn)
	runtime.KeepAlive(g) // nothing else keeps the Group while fn runs
	runtime.KeepAlive(c) // shows the address of the call in a dump
	return
}

// end ends the call in one step: it takes it out of the table and settles who gets the
// outcome. Then it hands the outcome to them. It returns the results, and panics, as doCall
// does.
func (c *call) end(o *outcome) (v any, err error, shared bool) {
	if o.how == exited {
		o.err = ErrGoexit // for the channels; catch has put a *PanicError there
	}
	s := stripeOf(c.hash)
	s.mu.Lock()
	s.remove(c)
	shared, readers := c.shared, c.readers
	if !shared && c.node == nil && o.how != panicked {
		s.recycle(c) // nobody else has a pointer to c, and there is no panic to raise
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
	return o.val, o.err, shared
}

// wake hands the outcome to the callers in Do and DoContext. If fn panicked, it crashes the
// process if there is a channel or no caller, and it panics on the goroutine of a caller of
// Do.
func (c *call) wake(o *outcome) {
	if o.how == panicked && c.readers != nil {
		// On a new goroutine, no recover stops the panic. This one stays, to be in the
		// dump. Nobody is woken, as a caller that recovers could end the process first.
		go panic(fmt.Errorf("singleflight: fn panicked in a call that has a channel of DoChan: %w", o.err))
		select {}
	}
	c.how, c.val, c.err = o.how, o.val, o.err
	if c.cancel != nil {
		c.cancel(nil) // closes done, which wakes the callers of DoContext
	}
	c.wg.Done()
	c.wg.Wait() // see wg
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
// A node is also the parent of fn's context, unless the call was started inside an fn: then
// that context has the node as a value. Either way, a caller inside fn finds the node by its
// ctx. A node has the values of the ctx of the caller that started the call, and is never
// canceled. It has no pointer to the call, as fn's context may be kept for longer.
type node struct {
	context.Context // of the caller that started the call; only for its values

	// Whether the call has ended. Then it waits for nothing. Set with the stripe's mutex
	// held, and read with graph locked.
	ended atomic.Bool

	// Guarded by graph.
	level int32
	mark  uint64        // of the last walk that came here
	edges [2][]halfEdge // out of this node, and into it
}

// An edge is out of the first of its nodes and into the second.
type edge struct {
	nodes [2]*node
	index [2]int // in the lists of the nodes; guarded by graph
}

// A halfEdge is an edge in the list of one of its nodes. With the other node in it, a walk
// need not load the edge.
type halfEdge struct {
	other *node
	edge  *edge
}

// The sides of an edge, and the directions of a walk.
const out, in = 0, 1

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

// graph guards all nodes. Only callers with the context of an fn lock it, never with the
// mutex of a stripe held. So a walk delays nobody else, except joiners of a call that such
// a caller is just starting.
var graph struct {
	sync.Mutex
	mark  uint64 // the last that was used, or skipped; each walk takes the next
	edges int    // how many there are
}

// link adds an edge for a caller that waits inside the fn of outer for the call of n. If
// the edge would close a cycle, link changes nothing, and ok is false. If there is nothing
// to add, link returns nil and true: outer is nil if the caller's context is from no fn, n
// is nil if Do or DoChan started the call, whose fn then has no context to wait with, and a
// call that has ended waits for nothing.
//
// Searching all that n waits for at each wait would be quadratic. So nodes have levels,
// which only rise, and no edge leads to a lower one, but for calls that have ended. That
// makes the search short, at both ends. As long as none is removed, a level takes many
// edges. So there are few levels, and a node seldom rises. But a refusal raises nothing, so
// each can walk along all that n waits for. This is the two-way search of Bender, Fineman,
// Gilbert and Tarjan, "A New Approach to Incremental Cycle Detection and Related Problems",
// with a smaller bound.
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
		graph.mark++ // no node has it, so the walk back stops at none
		limit := lookBack + int(math.Sqrt(float64(graph.edges)))/4
		if _, all := outer.walk(in, limit, level, level); !all {
			level++ // n will be above outer, as it may lead to outer through nodes not met
		}
		if n.mark == graph.mark { // n leads to outer, or is outer
			return nil, false
		}
		if n.level < level {
			rising, acyclic := n.walk(out, math.MaxInt, 0, level-1)
			if !acyclic {
				return nil, false
			}
			for _, x := range rising {
				x.level = level
			}
		}
	}
	graph.edges++
	e := &edge{nodes: [2]*node{outer, n}}
	for side, x := range e.nodes {
		e.index[side] = len(x.edges[side])
		x.edges[side] = append(x.edges[side], halfEdge{e.nodes[1-side], e})
	}
	return e, true
}

// lookBack is how many edges link looks at behind outer, from any level, in a small graph.
// With fewer, there are more levels; with more, each link takes longer. In a large graph,
// it looks at some more, or else a long chain could rise so often that it would take
// quadratic time.
const lookBack = 32

// walk marks n and what it reaches through nodes on some levels, along the edges (side out)
// or against them (side in). It returns these nodes and true. It gives up, with false,
// after more edges than the limit, or when it meets a node with the mark before its own.
// graph must be locked.
func (n *node) walk(side, limit int, lowest, highest int32) (met []*node, ok bool) {
	last := graph.mark
	graph.mark++
	n.mark = graph.mark
	met = []*node{n}
	for i := 0; i < len(met); i++ {
		for _, half := range met[i].edges[side] {
			x := half.other
			if limit--; limit < 0 || x.mark == last {
				return nil, false
			}
			if lowest <= x.level && x.level <= highest && x.mark != graph.mark && !x.ended.Load() {
				x.mark = graph.mark
				met = append(met, x)
			}
		}
	}
	return met, true
}

// unlink removes the edge, if there is one. The lists give back their room.
func (e *edge) unlink() {
	if e == nil {
		return
	}
	graph.Lock()
	defer graph.Unlock()
	graph.edges--
	for side, n := range e.nodes {
		edges, i, last := n.edges[side], e.index[side], len(n.edges[side])-1
		edges[i], edges[last].edge.index[side] = edges[last], i
		edges[last] = halfEdge{}
		n.edges[side] = edges[:last]
		if 4*last < cap(edges) {
			n.edges[side] = append([]halfEdge(nil), edges[:last]...)
		}
	}
}

// The table of calls in flight.

// A stripe is a mutex and a hash table of the calls that can be joined. The mutex must be
// held for all methods. What is done under it takes constant time on average, except to
// compare a key with an equal one, which depends on its length.
//
// The table has linear probing. It doubles and halves with the calls, so a burst of calls
// gives back what it took, even while other calls stay. A map does not.
type stripe struct {
	mu sync.Mutex

	// Guarded by mu. At most three quarters of the slots are in use, so a search for a
	// free one ends.
	slots []slot // nil before first use; then their number is a power of two
	n     int    // how many are in use

	// A call to be used again, or nil. Without it, an unjoined Do would allocate. A second
	// one would only serve calls that overlap in one stripe. Guarded by mu.
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
// retains nothing.
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

// home returns the slot for a hash, once it is masked with the size of the table. (Before
// that, it can be negative if int has 32 bits.) It leaves out the lowest 24 bits. For one
// key in, say, each 256th Group, the lowest 8 would be alike, as those of the IDs are.
func home(hash uint64) int { return int(hash >> 24) }

// find returns the call of key in the Group that made the hash, or nil. One key has a
// different hash in each Group, so the Group need not be compared.
func (s *stripe) find(hash uint64, key string) *call {
	slots, mask := s.slots, len(s.slots)-1
	// Before first use, there are no slots to look at, and n is 0.
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

// recycle makes c the spare call. fn is done, and nobody else has a pointer to c.
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
		// The slots are a circle. A search for this call goes from its home to slot i. If
		// it passes the hole, it would end there.
		if (i-home(slots[i].hash))&mask >= (i-hole)&mask {
			slots[hole], hole = slots[i], i
		}
	}
	slots[hole] = slot{}
	if s.n--; len(slots) > minSlots && 4*s.n < len(slots) {
		s.resize(len(slots) / 2)
	}
}

// resize moves the calls to a table of so many slots, or of minSlots if that is more.
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
