// Copyright 2026 The singleflight Authors.
// Use of this source code is governed by the BSD-style license in LICENSE.

// Package singleflight suppresses duplicate function calls: when several goroutines
// ask for the same thing at the same time, one does the work and all get its result.
//
// It is a drop-in replacement for golang.org/x/sync/singleflight. A program written
// for that package compiles and behaves the same once its import path is changed,
// except as listed under "Differences" below.
//
// A call is one execution of a function, fn, for a key in a [Group]. The first caller
// of a key starts a call. Callers that come while it is in flight join it: their own
// fn is ignored, and they get the results of the call. fn is done when it has returned,
// panicked or called [runtime.Goexit]. The call then ends in one step, which frees the
// key and settles which callers get the results. Callers that come later start or join
// a new call. Results are not cached.
//
// # Choosing a method
//
//   - Use [Group.Do] if callers can wait for as long as fn takes. It is the cheapest.
//   - Use [Group.DoContext] if callers have a context, such as that of a request. Each
//     caller stops waiting when its own context is done, and fn's context is canceled
//     when all callers have left.
//   - Use [Group.DoChan] in a select if callers can stop waiting, but the work is to
//     finish even if all of them have, such as filling a cache.
//   - Use the functions [Do] and [DoContext] for typed results.
//   - Use [Group.Forget] to make the next caller start a new call, and
//     [Group.ForgetUnshared] to do so unless the call was joined.
//
// All of them can be used for one key at the same time.
//
// Give fn a time limit. Without one, a stuck call makes its key fail for as long as
// callers keep coming, since each joins it. With DoContext, set a timeout inside fn. If
// fn cannot be stopped by a context, let a timer forget the key.
//
// A Group is not a mutex. After Forget, or when the last caller of a DoContext has
// left, a new call can run beside the old one, even if the old fn heeds its context
// and is only cleaning up.
//
// # Choosing a key
//
// The key must contain everything that the result depends on, such as the user, the
// tenant, the credentials or a revision. Otherwise callers get results that are not
// theirs. Join several parts so that different parts make different keys: use
// fmt.Sprintf("%q %q", a, b), not a + b.
//
// # What callers share
//
// All callers of a call get the same value, not copies of it. Clone what you modify,
// with [slices.Clone] or [maps.Clone] for example. A caller cannot know whether it is
// the last to use a shared value, so return values that need no Close.
//
// All callers get the same error. Those that call again after it can share the next
// call and its error, too. If an attempt is worth repeating, repeat it inside fn.
//
// The result shared is true for the caller that started the call, too. To know whether
// a caller did the work, or to count those that did not, set a flag in each caller's
// own fn. With DoContext and DoChan the flag must be atomic, as fn may still run when
// its caller has left.
//
// # Panics and Goexit
//
// If fn panics, every caller waiting in Do or DoContext panics on its own goroutine
// with the same error, a [PanicError]. Its text is the value that fn panicked with, an
// empty line, and the stack of fn's panic. It unwraps to the value if that is an error.
// The key is free by then.
//
// The process crashes instead if DoChan was called for the call, even if the channel
// was dropped, because a panic cannot be raised in a caller that waits for a channel.
// It also crashes if DoContext started the call and every caller has left. The output
// has the value and fn's stack. A recover above a caller, such as that of net/http's
// server, does not prevent the crash. Only a recover inside fn does.
//
// If fn calls [runtime.Goexit], the goroutine of every caller waiting in Do or DoContext
// exits, and its deferred functions run. A channel gets [ErrGoexit]. A Goexit raised
// while fn panics replaces the panic, as it does in Go.
//
// # Memory model
//
// In the terminology of the Go memory model, the end of fn synchronizes before the
// return of every Do and DoContext and the receive of every Result that it answers. It
// also synchronizes before the start of the next call of its key, unless fn's call was
// forgotten or given up. In that case, what precedes the Forget or ForgetUnshared, or
// the cancellation of the last caller's ctx, synchronizes before that start. The Group
// does not order calls of different keys.
//
// # Tests with synctest
//
// A Group may be used inside a [testing/synctest] bubble, then outside, then in another
// bubble. A caller that waits for a call started in its own bubble is durably blocked;
// in DoContext, if the Done channel of its ctx belongs to the bubble or is nil.
//
// A Do may join a call across the edge of a bubble, but is not durably blocked then. Do
// not join a call across the edge with DoChan or DoContext: a channel that was made in
// a bubble cannot be used outside. Some of these joins make the bubble report that all
// its goroutines are blocked. Others crash the process with a fatal error about a
// "synctest channel". The runtimes of Go 1.25.0 and 1.25.1 can fail if parallel tests
// join calls in bubbles, with x/sync as well.
//
// # Differences
//
// These are the differences from golang.org/x/sync/singleflight v0.25.0:
//
//   - If fn calls Goexit, a channel gets [ErrGoexit]. In x/sync it gets nothing.
//   - An error that fn returns is an ordinary error. In x/sync, an error that another
//     Group's panic produced panics every caller, or crashes the process.
//   - A panic of a deferred function while fn's goroutine exits is a panic. In x/sync
//     it is lost.
//   - panic(nil) under GODEBUG=panicnil=1 is a panic, except of a deferred function
//     while fn's goroutine exits. In x/sync it is success, with nil results.
//   - No lock is held while callers are answered or the process crashes. In x/sync, the
//     end of a call with many callers stalls all keys of its Group.
//   - The memory that a burst of calls took is given back. In x/sync a Group retains it.
//   - Calls of different keys in a Group are not ordered. In x/sync, the Group's mutex
//     orders them.
//   - The calls in flight are in one table for the process. So a debugger cannot list
//     the calls of a Group, and the runtime's goroutine leak profile does not report a
//     goroutine that is stuck in a call of a Group that was dropped.
//   - The package has more names. They can collide in a program that imports it with a
//     dot, and the methods DoContext and ForgetUnshared in a struct that embeds a Group
//     beside another type with such a method.
//
// # What it does not do
//
// It does not cache, expire, batch, retry, limit concurrency, or work across processes.
// Put a cache in front of it, filled by fn. Across machines, use a lease in a shared
// store, or something like groupcache.
package singleflight

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"reflect"
	"sync"
	"sync/atomic"
	"unsafe"
)

// A Group is a namespace of keys in which duplicate calls are suppressed. Groups
// never share a call, whatever their keys.
//
// The zero Group is ready to use. A Group must not be copied after first use; go vet
// reports such copies. Its methods may be called by any number of goroutines at
// once. A Group takes one word and needs no closing. While a call is in flight, its
// Group stays reachable, and with it the struct that the Group is part of. So their
// finalizers and cleanups do not run in the middle of fn.
type Group struct {
	_ [0]sync.Mutex // for go vet's copylocks

	// A Group is told from others by its address. So it must have a size, and a
	// pointer in it keeps the allocator from packing it with other small objects,
	// which would delay its cleanups.
	word *byte
}

// Result is what a channel of [Group.DoChan] delivers: the results of [Group.Do], or
// [ErrGoexit] if fn called [runtime.Goexit].
type Result struct {
	Val    any   // the value that fn returned
	Err    error // the error that fn returned, or ErrGoexit
	Shared bool  // whether another caller joined the call
}

// Do runs fn and returns its results. If a call of key is in flight, Do ignores its
// own fn instead, waits for that call, and returns its results.
//
// fn runs on the goroutine of the caller that starts the call. v and err are what fn
// returned, v also if err is not nil. shared reports whether another caller joined
// the call: it is true for every caller that joined, and for the one that started
// the call if another joined before the call ended or was forgotten. A caller that
// has joined and left (see [Group.DoContext]) counts.
//
// Any string is a valid key. Once the call has ended, the Group retains neither the
// key nor fn, v or err.
//
// If fn panics, every caller that waits in Do panics with a [PanicError], unless
// [Group.DoChan] was called for the call: then the process crashes. If fn calls
// [runtime.Goexit], the goroutine of every such caller exits. A nil fn panics like any
// call of a nil function, unless the caller joins. See "Panics and Goexit" in the
// package documentation.
//
// fn may call every method of its Group, for any key. But an fn that waits in Do for
// its own key waits for itself, forever, unless it calls [Group.Forget] first. So do
// functions that wait in Do for one another's keys. To detect such cycles, use
// [Group.DoContext] for every wait inside an fn.
//
// Do does not return before fn is done. If the caller must be able to stop waiting, use
// [Group.DoContext] or [Group.DoChan].
func (g *Group) Do(key string, fn func() (any, error)) (v any, err error, shared bool) {
	s, hash, c := g.lock(key)
	if c != nil {
		c.join()
		s.mu.Unlock()
		c.wg.Wait()
		v, err = c.deliver()
		return v, err, true
	}
	c = s.start(hash, g, key)
	s.mu.Unlock()
	return doCall(c, fn)
}

// DoChan is like [Group.Do] but returns a channel that receives the results, instead
// of waiting for them.
//
// The caller that starts a call starts one goroutine, on which fn runs to its end,
// even if every caller has stopped waiting. Joining starts no goroutine.
//
// The channel belongs to this caller alone. It receives one Result when fn has returned
// or exited, and is not closed. It has room for the Result, so a caller may drop it:
// nothing leaks once the call has ended. The key is free before the Result is sent, so
// the next call of the key can be running by the time the Result is received.
//
// If fn panics after DoChan was called for its call, the process crashes, even if the
// channel was dropped. To prevent that, recover in fn. If fn calls [runtime.Goexit],
// the Result has a nil Val and [ErrGoexit].
func (g *Group) DoChan(key string, fn func() (any, error)) <-chan Result {
	ch := make(chan Result, 1)
	s, hash, c := g.lock(key)
	starts := c == nil
	if starts {
		c = s.start(hash, g, key)
	} else {
		c.join()
	}
	c.readers = append(c.readers, ch)
	s.mu.Unlock()
	if starts {
		go doCall(c, fn)
	}
	return ch
}

// Forget makes the Group forget the call of key that is in flight, if there is one:
// the next caller starts a new call. The forgotten call goes on beside it and answers
// the callers that it has. Whatever else its fn does still happens, such as storing a
// value that is out of date by now. So to invalidate a cache, also change a revision,
// which fn compares before it stores the value, or which is part of the key.
func (g *Group) Forget(key string) {
	g.forget(key, true)
}

// ForgetUnshared is like [Group.Forget], but leaves a call alone that another caller
// joined, even if that caller has left since (see [Group.DoContext]). It reports
// whether the next caller starts a new call: true if the call was forgotten or none
// is in flight, false if it is shared.
func (g *Group) ForgetUnshared(key string) bool {
	return g.forget(key, false)
}

// forget forgets the call of key, a shared one only if told to.
func (g *Group) forget(key string, shared bool) bool {
	s, _, c := g.lock(key)
	defer s.mu.Unlock()
	if c == nil {
		return true
	}
	if c.shared && !shared {
		return false
	}
	s.detach(c)
	return true
}

// ErrRecursive is the error of a [Group.DoContext] that would make fn wait for its
// own call, directly or through other calls.
var ErrRecursive = errors.New("singleflight: call would wait for itself")

// DoContext is like [Group.Do] for callers that have a context: each stops waiting
// when its own ctx is done. The other callers do not notice.
//
// DoContext joins the call of key that is in flight, whichever method started it. If
// there is none, it starts one: fn runs on a new goroutine, with a context that has
// the values of this ctx but neither its deadline nor its cancellation. So fn uses the
// trace, the logger or the user of the caller that started the call, also for those
// that join and after that caller has left. Do not pass a context that a framework
// reuses after the request; pass the request's own.
//
// A caller whose ctx is done returns (nil, ctx.Err(), false) at once. The error is
// that of ctx.Err, not of [context.Cause]. If ctx is done when DoContext is called,
// it returns the same, and neither starts nor joins a call. Who gets the results is
// settled in the step that ends the call: a caller that is still waiting then gets
// them, even if its ctx is done by the time it returns. shared is as described for
// [Group.Do].
//
// The call is given up when its last caller leaves. In the same step it is forgotten,
// so no caller joins it any more, and fn's context is canceled before the last caller
// returns. A caller waiting in Do and a channel of DoChan, even a dropped one, keep the
// call alive. So a call that Do or DoChan started is not given up. If work must finish
// though all callers have left, use DoChan.
//
// fn must heed its context: if it does not, it runs on, beside the calls that follow.
// The context has no deadline, and is not canceled while callers keep coming. An fn
// that can get stuck needs a timeout of its own. The context is canceled when fn is
// done, before any caller gets the results. So fn must not return anything bound to
// it, such as the body of an HTTP response that is still to be read.
//
// If fn panics or calls [runtime.Goexit], so does every caller waiting in DoContext or
// Do when the call ends. fn's panic crashes the process instead if no caller is
// waiting, or if DoChan was called for the call. See "Panics and Goexit" in the package
// documentation. DoContext panics if ctx is nil. A nil fn panics as described for
// [Group.Do].
//
// fn may itself call DoContext. It should pass on its own context, or one derived from
// it, so that cycles are detected: if the other call waits for fn's call, directly or
// through more calls, DoContext returns (nil, [ErrRecursive], false) at once, even if a
// deadline would break the cycle later. This holds across Groups and for every
// goroutine that uses fn's context. So give background work a context of its own.
//
// Waits in Do or for a channel are not seen. A wait in DoContext counts for the fn that
// its ctx comes from, while that fn runs. So a wait with a context that comes from no
// fn is not seen either, and one with the context of an enclosing fn does not count for
// the inner fn. Name the context of each fn ctx, so that it shadows the others.
func (g *Group) DoContext(ctx context.Context, key string, fn func(context.Context) (any, error)) (v any, err error, shared bool) {
	if ctx == nil {
		panic("singleflight: nil context")
	}
	if err := ctx.Err(); err != nil {
		return nil, err, false
	}
	canceled := ctx.Done()
	from, _ := ctx.Value(nodeKey{}).(*node) // the call whose fn asks, or nil
	if from != nil && from.ended.Load() {
		from = nil
	}

	s, hash, c := g.lock(key)
	starts := c == nil
	if starts {
		c = s.start(hash, g, key)
		c.node = new(node)
	}
	if !from.wait(c.node) {
		s.mu.Unlock()
		return nil, ErrRecursive, false // not if starts: a new call waits for nothing
	}
	if starts {
		fnCtx := context.WithValue(context.WithoutCancel(ctx), nodeKey{}, c.node)
		fnCtx, c.node.cancel = context.WithCancel(fnCtx)
		go doCall(c, func() (any, error) {
			defer c.node.cancel()
			return fn(fnCtx)
		})
	} else {
		c.join()
	}
	if c.done == nil {
		c.done = make(chan struct{})
	}
	s.mu.Unlock()

	select {
	case <-c.done:
		from.unwait(c.node)
	case <-canceled:
		// Before leaving: once the last caller has left, fn learns of it, and may ask
		// for the call that waited for it until then.
		from.unwait(c.node)
		if c.leave() {
			return nil, ctx.Err(), false
		}
	}
	<-c.done
	v, err = c.deliver()
	return v, err, c.shared
}

// Do is [Group.Do] with a typed result, for keys whose calls all return a V. It panics
// and exits as [Group.Do] does.
//
// A call that was started with another type can be joined. Its value matches if a type
// assertion to V succeeds. A nil value matches, as the zero V, if V is a type that can
// be nil. If the value does not match, Do returns the zero V. If fn returned an error,
// Do returns it unchanged in both cases. Otherwise the error for a value that does not
// match names both types and the key, a long key by its first 64 bytes.
func Do[V any](g *Group, key string, fn func() (V, error)) (v V, err error, shared bool) {
	val, err, shared := g.Do(key, func() (any, error) { return fn() })
	return typed[V](key, val, err, shared)
}

// DoContext is [Group.DoContext] with a typed result, as [Do] is [Group.Do] with one.
// Where [Group.DoContext] returns a nil v, it returns the zero V.
func DoContext[V any](ctx context.Context, g *Group, key string, fn func(context.Context) (V, error)) (v V, err error, shared bool) {
	val, err, shared := g.DoContext(ctx, key, func(ctx context.Context) (any, error) { return fn(ctx) })
	return typed[V](key, val, err, shared)
}

// typed returns the results of a call of key as a caller that wants a V gets them.
func typed[V any](key string, val any, err error, shared bool) (V, error, bool) {
	v, ok := val.(V)
	if ok || err != nil {
		return v, err, shared
	}
	want := reflect.TypeFor[V]()
	if val == nil {
		switch want.Kind() {
		case reflect.Chan, reflect.Func, reflect.Interface, reflect.Map, reflect.Pointer, reflect.Slice, reflect.UnsafePointer:
			return v, nil, shared
		}
	}
	if len(key) > 64 {
		key = key[:64] + "…"
	}
	return v, fmt.Errorf("singleflight: call of key %q returned a value of type %T, not %v", key, val, want), shared
}

// A call is one execution of fn.
//
// While it is in the table, callers join. Once it has been detached, because it was
// forgotten or all callers have left, no caller joins, but the callers of DoContext
// can still leave. When it has ended, fn's goroutine sets the outcome, which is
// constant from then on, and wakes the callers.
type call struct {
	// Set when the call starts, before the stripe is unlocked.
	hash  uint64
	group *Group // keeps the Group, and so its address, from being freed
	key   string
	node  *node // of the call in the graph of waits, if DoContext started it

	// wg counts one until the outcome is set. It is tempting to let the first joiner
	// add to it, since most calls have none. But then a call that is led on one side
	// of the edge of a synctest bubble and joined on the other would crash the process.
	wg sync.WaitGroup

	// Guarded by the stripe's mutex.
	readers  []chan<- Result // the channels of DoChan
	done     chan struct{}   // closed when the outcome is set; made for the first caller in DoContext
	callers  int32           // that have not left
	shared   bool            // another caller has joined
	detached bool            // not in the table any more, though it may not have ended
	ended    bool

	// The outcome. Set when the call has ended, if anyone but fn's goroutine knows it.
	how ending
	val any
	err error
}

// join adds a caller that did not start the call.
func (c *call) join() {
	c.callers++
	c.shared = true
}

// leave removes a caller of DoContext, unless the call has ended: then it reports
// false, and the caller gets the outcome. The last caller to leave gives up the call.
func (c *call) leave() bool {
	s := stripeOf(c.hash)
	s.mu.Lock()
	if c.ended {
		s.mu.Unlock()
		return false
	}
	c.callers--
	last := c.callers == 0
	if last && !c.detached {
		s.detach(c)
	}
	s.mu.Unlock()
	if last {
		c.node.cancel() // not under the lock: it may have a lot to cancel
	}
	return true
}

// doCall runs fn, ends the call, and answers its callers. Then it returns, panics or
// exits like fn, or crashes the process if fn's panic has no other way to go.
//
// Nothing tells a panic from a Goexit while it happens: recover returns nil for a
// Goexit, but for panic(nil) as well. But only after a panic does control come back
// behind the function that recovered. So there are two deferred functions. The inner
// one recovers a panic and takes its stack. The outer one ends the call, and by then
// it is known whether control came back in between.
func doCall(c *call, fn func() (any, error)) (v any, err error, shared bool) {
	var o outcome
	defer func() {
		s := stripeOf(c.hash)
		s.mu.Lock()
		if !c.detached {
			s.remove(c)
		}
		shared = c.shared
		readers := c.readers
		alone := !shared && c.done == nil // no other caller has come, so no one knows c
		if alone {
			c.wg.Done()
			// Wait takes the mark of a synctest bubble off wg, as the next user may be
			// elsewhere. This is not documented: if it changes, no call can be recycled.
			c.wg.Wait()
			s.recycle(c)
		} else {
			c.ended = true
			if c.node != nil {
				c.node.ended.Store(true)
			}
		}
		s.mu.Unlock()
		if !alone || readers != nil || o.how != returned {
			c.answer(&o, readers, shared, alone)
		}
	}()

	func() {
		defer func() {
			if o.how != returned {
				value := recover()
				o.err = newPanicError(value)
				if value != nil {
					// Also if a deferred function panicked while the goroutine exits: it
					// goes on exiting, so that control does not come back below.
					o.how = panicked
				}
			}
		}()
		o.val, o.err = fn()
		o.how = returned
	}()
	if o.how == exited {
		o.how = panicked // with nil: control came back
	}
	return o.val, o.err, false // shared is set above
}

// answer hands the outcome of c, which has ended, to its callers. No lock is held, as
// there may be very many. If alone, c may be another call by now and is not touched.
func (c *call) answer(o *outcome, readers []chan<- Result, shared, alone bool) {
	if o.how == exited {
		o.err = ErrGoexit
	}
	if !alone {
		c.how, c.val, c.err = o.how, o.val, o.err
		c.wg.Done()
		if c.done != nil {
			close(c.done)
		}
	}
	switch {
	case o.how != panicked:
		for _, ch := range readers {
			ch <- Result{o.val, o.err, shared}
		}
	case readers != nil:
		// On a goroutine of its own, no recover can stop the panic. This goroutine
		// stays, so that it is in a dump of all.
		go panic(o.err)
		select {}
	case alone || c.node == nil || c.callers == 0:
		// This is the goroutine of a caller of Do, or no caller is left to panic.
		// Otherwise the callers do, and this goroutine ends.
		panic(o.err)
	}
}

// A node stands for a call that DoContext started in the graph of waits, whose edges
// are the callers of DoContext that wait within the fn of one call for another. fn's
// context leads to the node and may be kept for longer than the call. So the node does
// not lead to the call.
type node struct {
	ended  atomic.Bool        // the call has; set with the stripe's mutex held
	cancel context.CancelFunc // of fn's context; set when the call starts

	// Guarded by graph.
	waits   map[*node]int // how many callers within fn wait for which call
	waiters int           // how many callers within fns wait for the call
}

// nodeKey is the key of the node among the values of fn's context.
type nodeKey struct{}

// graph guards the edges of all nodes. It is held from looking for a cycle to adding
// the edge. Only callers within an fn lock it. A stripe's mutex comes before it.
var graph sync.Mutex

// wait notes that a caller in the fn of n waits for the call of m. It reports false,
// and notes nothing, if that would close a cycle. n is nil if the caller is not within
// an fn, and m is nil if Do or DoChan started the call: its fn has no context to wait
// with.
func (n *node) wait(m *node) bool {
	if n == nil || m == nil {
		return true
	}
	graph.Lock()
	defer graph.Unlock()
	// No wait can close a cycle unless an fn waits for the call of n. So a busy hub is not
	// searched for nothing.
	if n == m || n.waiters > 0 && m.waitsFor(n, make(map[*node]bool)) {
		return false
	}
	if n.waits == nil {
		n.waits = make(map[*node]int)
	}
	n.waits[m]++
	m.waiters++
	return true
}

// unwait takes back what wait noted.
func (n *node) unwait(m *node) {
	if n == nil || m == nil {
		return
	}
	graph.Lock()
	defer graph.Unlock()
	m.waiters--
	n.waits[m]--
	if n.waits[m] == 0 {
		delete(n.waits, m)
	}
}

// waitsFor reports whether the call of n waits for that of m, directly or through
// others. seen has the nodes that were visited.
//
// While graph is locked no edge is added, and the end of a call only takes edges away.
// So all edges that it follows were there together when it began.
func (n *node) waitsFor(m *node, seen map[*node]bool) bool {
	if seen[n] || n.ended.Load() {
		return false
	}
	if n == m {
		return true
	}
	seen[n] = true
	for next := range n.waits {
		if next.waitsFor(m, seen) {
			return true
		}
	}
	return false
}

// A stripe is a mutex and a hash table of the calls that can be joined.
//
// The table has linear probing. Its size is a power of two and follows the number of
// calls up and down, so that a burst of calls gives back what it took, but for the
// smallest size.
type stripe struct {
	mu sync.Mutex

	// Guarded by mu.
	slots []slot // at most three quarters are in use
	n     int    // how many are in use
	spare *call  // an unjoined call, to be used again so that most Dos allocate nothing
}

// A slot is free if its call is nil.
type slot struct {
	hash uint64 // saves a look at most calls, which may not be in the cache
	call *call
}

// stripes has all calls of the process. Callers of different keys rarely meet at a
// mutex, a Group is no more than an address, and memory serves all Groups.
var stripes [1 << stripeBits]struct {
	stripe
	// No two mutexes share a cache line, nor a pair that processors fetch together.
	_ [128 - unsafe.Sizeof(stripe{})%128]byte
}

const (
	stripeBits = 8
	minSlots   = 8
)

var seed = maphash.MakeSeed() // so that keys cannot be chosen to collide

// stripeOf returns the stripe that the top bits of a hash choose.
func stripeOf(hash uint64) *stripe {
	return &stripes[hash>>(64-stripeBits)].stripe
}

// home returns the slot in which to begin to look for a hash, once it is reduced to the
// size of the table. In the lowest bits, one key in many Groups has the same hash, since
// addresses have zeros there.
func home(hash uint64) int { return int(hash >> 32) }

// lock locks the stripe of key in g. It returns the stripe, the hash of key in g, and the
// call that can be joined, or nil.
func (g *Group) lock(key string) (s *stripe, hash uint64, c *call) {
	_ = g.word // a nil Group panics here, and a key that cannot be read in the next line
	// The factor, 2^64 divided by the golden ratio, spreads addresses over the top bits.
	hash = maphash.Comparable(seed, key) ^ uint64(uintptr(unsafe.Pointer(g)))*0x9e3779b97f4a7c15
	s = stripeOf(hash)
	s.mu.Lock()
	return s, hash, s.find(hash, g, key)
}

// find returns the call of key in g, or nil.
func (s *stripe) find(hash uint64, g *Group, key string) *call {
	if s.n == 0 {
		return nil
	}
	slots, mask := s.slots, len(s.slots)-1
	for i := home(hash) & mask; slots[i].call != nil; i = (i + 1) & mask {
		if c := slots[i].call; slots[i].hash == hash && c.group == g && c.key == key {
			return c
		}
	}
	return nil
}

// start returns a new call, with one caller, that is in the table.
func (s *stripe) start(hash uint64, g *Group, key string) *call {
	c := s.spare
	if c == nil {
		c = new(call)
	}
	s.spare = nil
	c.hash, c.group, c.key, c.callers = hash, g, key, 1
	c.wg.Add(1)
	if s.n++; 4*s.n > 3*len(s.slots) {
		s.resize(max(2*len(s.slots), minSlots))
	}
	s.place(slot{hash, c})
	return c
}

// detach takes c, which is still in flight, out of the table.
func (s *stripe) detach(c *call) {
	s.remove(c)
	c.detached = true
}

// recycle keeps c, which has ended and which no other goroutine knows, for another call.
func (s *stripe) recycle(c *call) {
	c.group, c.key, c.readers, c.detached = nil, "", nil, false
	s.spare = c
}

// place puts x into the first free slot from its home on.
func (s *stripe) place(x slot) {
	slots, mask := s.slots, len(s.slots)-1
	i := home(x.hash) & mask
	for slots[i].call != nil {
		i = (i + 1) & mask
	}
	slots[i] = x
}

// remove deletes c, and moves up the calls behind it that would not be found otherwise.
func (s *stripe) remove(c *call) {
	slots, mask := s.slots, len(s.slots)-1
	free := home(c.hash) & mask
	if s.n == 1 { // mostly, and a call by itself is at home; saves 3 % of an unjoined Do
		s.n, slots[free] = 0, slot{}
		return
	}
	for slots[free].call != c {
		free = (free + 1) & mask
	}
	for i := (free + 1) & mask; slots[i].call != nil; i = (i + 1) & mask {
		if (i-home(slots[i].hash))&mask >= (i-free)&mask {
			slots[free], free = slots[i], i
		}
	}
	slots[free] = slot{}
	if s.n--; len(slots) > minSlots && 4*s.n < len(slots) {
		s.resize(len(slots) / 2)
	}
}

// resize moves the calls to so many slots. Inlined, it would slow down start.
//
//go:noinline
func (s *stripe) resize(size int) {
	old := s.slots
	s.slots = make([]slot, size)
	for _, x := range old {
		if x.call != nil {
			s.place(x)
		}
	}
}
