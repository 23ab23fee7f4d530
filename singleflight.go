// Copyright 2026 The singleflight Authors.
// Use of this source code is governed by the BSD-style licence in LICENSE.

// Package singleflight suppresses duplicate function calls: of the goroutines
// that ask for the same thing at the same time, one does the work and all get
// its result.
//
// It replaces golang.org/x/sync/singleflight; a program written for that
// compiles and behaves the same with this import path in its stead, except as
// listed under Differences below.
//
// # Calls
//
// A call is one execution of a function, fn, for a key in a [Group]. The caller
// who starts it leads it. Callers who come with the same key before it has ended
// join it: their own fn is not looked at, and they get the result of the
// leader's. When fn is done the call ends, in a single step: its key is free
// again, and it is settled who gets the result. So a caller that has been
// answered never joins the very call that answered it, and everybody who comes
// later starts afresh: nothing is cached.
//
// All who share a call get the same value, not copies: treat what it points to
// as read-only, or copy it.
//
// # Which method
//
// [Group.Do] is for callers who can wait as long as fn takes; it is the cheapest,
// and fn runs on the caller's goroutine. [Group.DoContext] is for callers who have
// a context, such as that of a request, and for work that is of no use once all of
// them have given up: each stops waiting when its own context is done, and fn's
// context is cancelled after the last one. [Group.DoChan] is for callers who wait
// for several things at once, and for work that should be finished even if nobody
// waits any more, such as filling a cache. They can be mixed freely, also for one
// key. The functions [Do] and [DoContext] are the methods with typed results.
//
// [Group.Forget] makes the next caller start a call of its own, although one is
// still running; [Group.ForgetUnshared] does so unless the call has been joined.
//
// # Panics and Goexit
//
// If fn panics, the panic is not lost, and no caller takes it for a result. It
// is raised again in every caller waiting in Do or DoContext, on the caller's own
// goroutine, as the same error value, a [PanicError]: its text is what fn panicked
// with, then an empty line and the stack of fn's panic, and it unwraps to the value
// if that is an error. The key is free by then. A panic cannot be raised in a caller
// that holds a channel, so if there is at least one of those the process crashes,
// with the value and that stack in its output; no recover can prevent it. It crashes
// as well if all callers have left by then (see [Group.DoContext]): no panic is ever
// swallowed.
//
// If fn calls [runtime.Goexit], so do all callers waiting in Do or DoContext: their
// deferred functions run, and the method does not return. A channel gets
// [ErrGoexit].
//
// # Memory model
//
// In the terminology of the Go memory model, the end of fn, by return, panic or
// Goexit, synchronizes before the end of every Do and DoContext and the receive of
// every Result that it answers, and before the start of the next call of the same key,
// unless the call was forgotten or given up. Then what precedes Forget or
// ForgetUnshared, or the leaving of the last caller, synchronizes before the call that
// this makes room for. Calls of different keys are not ordered.
//
// # Tests with synctest
//
// A Group, also one in a package-level variable, may be used inside a
// [testing/synctest] bubble, then outside, then in another bubble. A Do that
// joins a call led in the same bubble is durably blocked, and so is a DoContext if
// the Done channel of its ctx was made there too. A Do may join a call across the
// edge of a bubble, without being durably blocked; DoChan and DoContext may not,
// since the channels of a bubble cannot be used outside.
//
// # Differences from golang.org/x/sync/singleflight v0.24.0
//
//   - When fn calls Goexit, a channel from DoChan gets a Result with
//     [ErrGoexit]. There it is left without one, for ever.
//   - An error that fn returns is always just that. There, one that came from
//     the panic of another Group panics every caller, or crashes the process if
//     one of them holds a channel.
//   - A panic of a deferred function while fn's goroutine exits is a panic.
//     There it is lost, and taken for the Goexit.
//   - panic(nil), which is possible with GODEBUG=panicnil=1, is a panic. There it
//     is reported as success, with nil results. While the goroutine exits, it
//     cannot be told from the Goexit, and counts as that.
//   - No lock is held while results are handed out or while the process dies of
//     a panic, so ending a call with very many callers does not stall other
//     keys, and a panic value may use the Group when it is printed.
//   - The memory that a burst of keys needed is given back. There the map of a
//     Group never shrinks.
//   - Calls of different keys in one Group are not ordered by the Group. There
//     its mutex orders them.
//   - The calls in flight are not kept in the Group but in one table for the
//     whole process. So two Groups that have been used are not
//     [reflect.DeepEqual], a debugger does not find a Group's calls in it, and a
//     goroutine stuck in a call of a Group that was dropped looks alive to the
//     runtime's goroutine-leak profile.
//   - ForgetUnshared, DoContext, the typed functions, [PanicError], [ErrGoexit] and
//     [ErrRecursive] are only here.
//
// # What it does not do
//
// It does not cache, expire, batch keys, retry, or limit how many calls run at
// once, and it does not reach beyond the process. For results that outlive the
// call put a cache in front, filled by fn; across processes use a lease in a
// store that they share, or something like groupcache.
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
// never see each other's keys.
//
// The zero Group is ready to use. A Group must not be copied after first use.
// Its methods may be called by any number of goroutines at once. A Group takes
// 8 bytes; however much it was used, it needs no closing and leaves nothing
// behind.
type Group struct {
	// number tells the Group's calls from those of others in the common table.
	// It is given at first use and never again to another Group. An address
	// would not do: it can be another Group's by the time that a call ends.
	number atomic.Uint64
}

// Result is what a channel from [Group.DoChan] delivers: what [Group.Do] would
// have returned, and [ErrGoexit] if fn has called [runtime.Goexit].
type Result struct {
	Val    any   // the value that fn returned
	Err    error // the error that fn returned, or ErrGoexit
	Shared bool  // whether anybody has joined the call
}

// Do runs fn and returns its results, unless a call of the same key is in
// flight: then it waits for that one, leaves its own fn alone, and returns the
// results of the other's.
//
// The caller that starts a call runs fn on its own goroutine; no goroutine is
// started. v and err are exactly what fn returned, v also beside a non-nil err.
// shared reports whether anybody has joined the call, so that v and err go to more
// than one caller: true for all who joined, and true for the leader if anyone did
// before the call ended or was forgotten. One who joined and left (see
// [Group.DoContext]) still counts.
//
// Any string is a key, the empty one included. It is not copied, but it is not
// kept either once the call has ended; nor are fn, v and err.
//
// Do panics if fn panics, on the goroutine of every caller that waits in Do, and
// exits all their goroutines if fn exits its own; see the package comment. A nil
// fn panics like any call of a nil function, unless the caller joins: then it is
// not looked at.
//
// From within fn, every method may be called for every key. But an fn that waits
// for the key that it runs for waits for itself, for ever, unless [Group.Forget]
// comes first; so does a ring of calls in which each fn waits for the next key.
// Only [Group.DoContext], with the context that fn was given, finds that out. Do has
// no other way to stop waiting than the end of fn; those who want one use
// [Group.DoContext] or [Group.DoChan].
func (g *Group) Do(key string, fn func() (any, error)) (v any, err error, shared bool) {
	group := g.id()
	hash := hashOf(key) ^ group
	s := stripeOf(hash)
	s.mu.Lock()
	if c := s.find(hash, group, key); c != nil {
		c.join()
		s.mu.Unlock()
		c.wg.Wait()
		v, err = c.outcome.give()
		return v, err, true
	}
	c := s.unused()
	s.add(c, hash, group, key)
	s.mu.Unlock()
	return doCall(c, fn)
}

// DoChan is like [Group.Do] but returns a channel that will receive the results,
// instead of waiting for them.
//
// The caller that starts a call starts one new goroutine, on which fn runs; one
// that joins starts none. fn runs to its end even if nobody waits for it.
//
// The channel belongs to this caller alone. It receives exactly one Result and is
// never closed. It has room for that Result, so a caller may walk away: nothing
// leaks once the call has ended.
//
// If fn panics while a caller holds a channel, whoever started the call, the
// process crashes: to prevent that, recover in fn. If fn calls
// [runtime.Goexit] the Result has a nil Val and [ErrGoexit].
func (g *Group) DoChan(key string, fn func() (any, error)) <-chan Result {
	ch := make(chan Result, 1)
	group := g.id()
	hash := hashOf(key) ^ group
	s := stripeOf(hash)
	s.mu.Lock()
	c := s.find(hash, group, key)
	if c != nil && c.full() {
		// Nothing is allocated under the lock for joining. So look again after it.
		s.mu.Unlock()
		more := new(readers)
		s.mu.Lock()
		if c = s.find(hash, group, key); c != nil && c.full() {
			c.addRoom(more)
		}
	}
	if c != nil {
		c.join()
		c.addReader(ch)
		s.mu.Unlock()
		return ch
	}
	c = s.unused()
	c.first = ch
	s.add(c, hash, group, key)
	s.mu.Unlock()
	go doCall(c, fn)
	return ch
}

// Forget makes the Group forget the call of key that is in flight, if there is
// one: once Forget has returned, the next caller with that key starts a call of
// its own. The forgotten call goes on, and answers those who joined it before.
func (g *Group) Forget(key string) {
	group := g.id()
	hash := hashOf(key) ^ group
	s := stripeOf(hash)
	s.mu.Lock()
	if c := s.find(hash, group, key); c != nil {
		s.forget(c)
	}
	s.mu.Unlock()
}

// ForgetUnshared is like [Group.Forget], unless somebody has joined the call: then
// it does nothing. It reports whether the next caller with that key starts a call
// of its own: true if the call was forgotten or there was none, false if it is
// shared. A caller that has joined and left (see [Group.DoContext]) still counts.
func (g *Group) ForgetUnshared(key string) bool {
	group := g.id()
	hash := hashOf(key) ^ group
	s := stripeOf(hash)
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.find(hash, group, key)
	if c == nil {
		return true
	}
	if c.shared {
		return false
	}
	s.forget(c)
	return true
}

// ErrRecursive is returned by [Group.DoContext] to a caller within an fn if the call
// that it asks for waits for the call of that fn, directly or through others, or is
// the same: the wait would close a ring.
var ErrRecursive = errors.New("singleflight: call would wait for itself")

// DoContext is like [Group.Do] for callers that may stop waiting, which each of
// them does when its own ctx is done: it returns at once with the error of ctx.
// Nobody else notices, except that fn's context is cancelled when there is nobody
// left.
//
// DoContext joins the call of key in flight, no matter which method started it.
// If there is none it starts one: fn runs on a new goroutine, with a context that
// has the values of this ctx but neither its deadline nor its cancellation.
//
// That context is cancelled when the last caller has left, before DoContext returns
// to it, and when fn is done, before any caller is answered.
//
// In the step in which the last caller leaves, the call is forgotten, so that no one
// can join a call that has been given up. A caller waiting in Do, or one that holds a
// channel from DoChan, cannot leave, so it keeps the call going; a call that Do or
// DoChan started has no such context, and nothing ends it early. fn has to heed its
// context: one that does not runs on, next to the calls that follow. Work that should
// be finished even if nobody waits any more is for DoChan.
//
// As it is cancelled when fn is done, fn must not return anything that is bound to it,
// such as the body of an HTTP response that is still to be read.
//
// If ctx is done when DoContext is called, it returns (nil, ctx.Err(), false) and
// neither starts nor joins a call. It returns the same when it leaves: when ctx is done
// while it waits, unless the call has ended by the time that it notices. A caller who
// has not left when the call ends gets what fn came to, even if ctx was done before,
// and whatever becomes of ctx thereafter: v and err as fn returned them, and shared,
// which is true if anybody joined, even one who has left.
//
// A panic or Goexit of fn reaches everyone who waits in DoContext or Do when the
// call ends, on the caller's own goroutine, as described for [Group.Do]; not those
// who have left. A panic that nobody waits for is raised on fn's goroutine and
// crashes the process. The rule for channels is that of [Group.DoChan].
//
// Calls can wait for each other, if an fn calls DoContext with the context that it
// was given, or with one derived from it. A DoContext that would close a ring of
// such waits returns (nil, [ErrRecursive], false) at once: one in fn for the key
// that fn runs for, say, or the second of two calls that each ask for the other.
// All Groups count together, and so do all goroutines that use an fn's context. A
// ring is refused even if a deadline would break it later: a caller counts as waiting
// until it has left. Waits through Do and DoChan are not seen, nor are those with a
// context that comes from no fn, or from one whose call has ended. So a ring with one
// of them in it never ends unless a ctx does.
//
// DoContext panics if ctx is nil. A nil fn panics as described for [Group.Do].
func (g *Group) DoContext(ctx context.Context, key string, fn func(context.Context) (any, error)) (v any, err error, shared bool) {
	if ctx == nil {
		panic("singleflight: nil context")
	}
	if err := ctx.Err(); err != nil {
		return nil, err, false
	}
	cancelled, group := ctx.Done(), g.id()
	from, _ := ctx.Value(contextsKey{}).(*contexts) // the call whose fn asks
	if from != nil && from.ended.Load() {
		from = nil // even if that was started by an fn that goes on: what it waited for is over
	}
	if from != nil {
		waitsMu.Lock() // from here to the unlocking, nothing can panic
	}
	c := attend(ctx, group, key, fn, from)
	if from != nil {
		if c != nil {
			from.wait(c.contexts)
		}
		waitsMu.Unlock()
	}
	if c == nil {
		return nil, ErrRecursive, false
	}

	leaving := false
	select {
	case <-c.contexts.done:
	case <-cancelled:
		leaving = true
	}
	if from != nil {
		// Before leaving: when the last caller has left, fn learns of it, and
		// may ask for the call that was waiting for it until then.
		waitsMu.Lock()
		from.unwait(c.contexts)
		waitsMu.Unlock()
	}
	if leaving && c.leave() {
		return nil, ctx.Err(), false
	}
	<-c.contexts.done
	v, err = c.outcome.give()
	return v, err, c.shared
}

// Do is [Group.Do] with the type of the result, for use where all calls of a key
// return a V. It panics and exits as [Group.Do] does.
//
// If the call that it joins was started with another type, what counts is the value
// itself: it matches if it is a V, by type assertion, so any value that implements V
// does if V is an interface type. Beside a non-nil error of fn's, which is returned
// as it is, a value that does not match becomes the zero V. So does a nil result if
// V is a type that can be nil. In all other cases a value that does not match makes
// Do return the zero V and an error that names both types and the key, a long one by
// its first 64 bytes.
func Do[V any](g *Group, key string, fn func() (V, error)) (v V, err error, shared bool) {
	val, err, shared := g.Do(key, func() (any, error) { return fn() })
	v, err = typed[V](key, val, err)
	return v, err, shared
}

// DoContext is [Group.DoContext] with the type of the result, as [Do] is [Group.Do]
// with it. It also returns the zero V where [Group.DoContext] returns nil.
func DoContext[V any](ctx context.Context, g *Group, key string, fn func(context.Context) (V, error)) (v V, err error, shared bool) {
	val, err, shared := g.DoContext(ctx, key, func(ctx context.Context) (any, error) { return fn(ctx) })
	v, err = typed[V](key, val, err)
	return v, err, shared
}

// typed returns the results of a call of key as a caller that wants a V gets them.
func typed[V any](key string, val any, err error) (V, error) {
	v, ok := val.(V)
	if ok || err != nil {
		return v, err
	}
	want := reflect.TypeFor[V]()
	if val == nil {
		switch want.Kind() {
		case reflect.Chan, reflect.Func, reflect.Interface, reflect.Map, reflect.Pointer, reflect.Slice, reflect.UnsafePointer:
			return v, nil
		}
	}
	if len(key) > 64 {
		key = key[:64] + "…"
	}
	return v, fmt.Errorf("singleflight: call of key %q returned a value of type %T, not %v", key, val, want)
}

// A call is one execution of fn. Only calls that can be joined are in the table.
//
// It goes through three phases. While it is in the table, callers join. Once it was
// taken out, because it has ended, was forgotten or was abandoned, nobody does any
// more; callers of DoContext may still leave. When it has ended nothing changes but
// the outcome: fn's goroutine sets that, if there is anybody else who needs it, and
// then tells them by wg and contexts.done. A call that fn's goroutine alone knows is
// used again instead.
type call struct {
	// Set before the call enters the table.
	hash  uint64
	group uint64 // the number of the Group
	key   string

	// wg counts one, for the leader, until outcome is set. It is tempting to let
	// the first joiner add that, since most calls have none. But then a call that
	// is led on one side of the edge of a synctest bubble and joined on the other
	// would kill the process.
	wg sync.WaitGroup

	// Guarded by the mutex of the stripe.
	next     *call         // in the bucket
	first    chan<- Result // of the callers who hold channels, or nil
	others   *readers      // of the others
	contexts *contexts     // once a caller of DoContext has come
	waiting  int32         // callers who have not left, less one; so -1 if all have
	shared   bool          // someone has joined
	out      bool          // no longer in the table, although it has not ended
	room     uint8         // for channels, in the first block of others

	outcome *outcome // only if anybody else needs it; set before they are told
}

// join counts a caller in.
func (c *call) join() {
	c.shared = true
	c.waiting++
}

// readers is a list of channels, in blocks of seven, the latest block first. If each
// had a node of its own, joining a call with 1,000 readers or more would take a fifth
// longer: for the node, and for a second look into the table after making it.
type readers struct {
	chans [7]chan<- Result // in the order in which they came
	next  *readers
}

// full reports whether there is no room for another channel.
func (c *call) full() bool { return c.first != nil && c.room == 0 }

// addRoom makes room for as many channels as a block has.
func (c *call) addRoom(block *readers) {
	block.next = c.others
	c.others, c.room = block, uint8(len(block.chans))
}

// addReader adds a channel, for which there must be room.
func (c *call) addReader(ch chan<- Result) {
	if c.first == nil {
		c.first = ch
		return
	}
	c.others.chans[len(c.others.chans)-int(c.room)] = ch
	c.room--
}

// send sends result to all of them, in the order in which they came.
func (r *readers) send(result Result) {
	var oldest *readers
	for r != nil {
		next := r.next
		r.next, oldest = oldest, r
		r = next
	}
	for r := oldest; r != nil; r = r.next {
		for _, ch := range r.chans {
			if ch == nil {
				return // there are no more in the last block
			}
			ch <- result
		}
	}
}

// doCall runs fn, ends the call, and hands the outcome to everyone who waits for
// it. It returns, panics or exits like fn, after all of them have been answered;
// the process crashes if fn panicked and there are readers.
//
// Nothing tells a panic from a Goexit while it happens: recover returns nil for
// the latter, but for panic(nil) as well. Yet only a panic ever brings control
// back behind the function that was left. So there are two defers. The inner one
// stops a panic, and keeps its stack. The outer one ends the call, by then
// knowing whether control came back in between.
func doCall(c *call, fn func() (any, error)) (v any, err error, shared bool) {
	var o outcome
	defer func() {
		s := stripeOf(c.hash)
		s.mu.Lock()
		if !c.out {
			s.remove(c)
		}
		s.shrink()
		shared = c.shared
		first := c.first
		x := c.contexts
		if x != nil {
			x.ended.Store(true)
		} else if !shared {
			c.wg.Done()
			c.wg.Wait() // takes off the mark of a synctest bubble: the next user may be elsewhere
			c.key, c.first, c.out = "", nil, false
			s.spare = c
		}
		s.mu.Unlock()
		if shared || first != nil || x != nil || o.how != returned {
			o.deliver(c, shared, first, x)
		}
	}()

	func() {
		defer func() {
			if o.how != returned {
				o.caught(recover())
			}
		}()
		o.val, o.err = fn()
		o.how = returned
	}()
	if o.how == exited {
		o.how = panicked // with nil, or recover would have told
	}
	return o.val, o.err, false
}

// caught notes that fn has not returned, value being what recover says.
func (o *outcome) caught(value any) {
	o.err = newPanicError(value)
	if value != nil {
		// Also a panic of a deferred function while the goroutine exits, which
		// goes on exiting, so that control does not come back.
		o.how = panicked
	}
}

// deliver hands the outcome of c, which has ended, to everyone who waits for it. No
// lock is held here, as there may be very many.
func (o *outcome) deliver(c *call, shared bool, first chan<- Result, x *contexts) {
	if o.how == exited {
		o.err = ErrGoexit
	}
	if shared || x != nil {
		if c.outcome == nil {
			c.outcome = new(outcome)
		}
		*c.outcome = *o
		c.wg.Done()
	}
	if x != nil {
		close(x.done)
	}
	if first != nil {
		if o.how == panicked {
			// On a goroutine of its own, nobody can recover the panic. This one is
			// kept, so that fn's goroutine shows in the dump of the crash.
			go panic(o.err)
			select {}
		}
		result := Result{o.val, o.err, shared}
		first <- result
		if shared {
			c.others.send(result)
		}
	}
	if o.how == panicked && (x == nil || x.Context == nil || c.waiting < 0) {
		// The goroutine is that of a caller of Do, or nobody has got the panic.
		panic(o.err)
	}
}

// contexts is what a call has in addition once a caller of DoContext has come. If one
// started it, this is fn's context, which may be kept for longer than the call: so it
// leads neither to the call nor to the outcome.
//
// The context is a [context.WithCancel] of the starter's [context.WithoutCancel]. But
// the former is made only if fn asks for its Done, as it would be a fifth of what an
// unjoined DoContext takes.
type contexts struct {
	context.Context // the starter's, without cancel; nil if DoContext did not start the call

	done  chan struct{}     // closed when the outcome is there
	ended atomic.Bool       // the call has ended; set with the stripe's mutex held
	waits map[*contexts]int // how many callers in fn wait for which call; guarded by waitsMu

	mu        sync.Mutex // guards the rest
	cancelled bool
	inner     context.Context    // what fn's Done and those derived from it go by, or nil
	cancel    context.CancelFunc // of inner
}

// contextsKey is the key under which fn's context has its contexts.
type contextsKey struct{}

func (x *contexts) Done() <-chan struct{} {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.inner == nil {
		x.inner, x.cancel = context.WithCancel(x.Context)
		if x.cancelled {
			x.cancel()
		}
	}
	return x.inner.Done()
}

func (x *contexts) Err() error {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.inner != nil {
		return x.inner.Err() // so that there is none before Done is closed
	}
	if x.cancelled {
		return context.Canceled
	}
	return nil
}

func (x *contexts) Value(key any) any {
	if key == (contextsKey{}) {
		return x
	}
	x.mu.Lock()
	inner := x.inner
	x.mu.Unlock()
	if inner == nil {
		return x.Context.Value(key)
	}
	return inner.Value(key) // is also how package context finds inner, to tie children to it
}

// String is there for those who print fn's context: its fields are not to be read
// without the locks.
func (x *contexts) String() string {
	return fmt.Sprint(x.Context) + ".WithCancel"
}

// stop cancels fn's context.
func (x *contexts) stop() {
	x.mu.Lock()
	x.cancelled = true
	cancel := x.cancel
	x.mu.Unlock()
	if cancel != nil {
		cancel()
	}
}

// waitsMu guards the waits of all calls. Only callers within an fn take it. It is held
// from looking for a ring until the new wait is noted. The mutex of a stripe may be
// taken while it is held, but not the reverse.
var waitsMu sync.Mutex

// A contextCall is a call that DoContext starts, together with the room for the
// outcome, since its caller always needs that: one thing to allocate, not two.
type contextCall struct {
	call
	outcome outcome
}

// waitsFor reports whether the call of x waits for that of y, directly or through
// others, or is the same. seen holds the calls that have been looked at.
//
// While waitsMu is held no wait is added; the end of a call can only take some away.
// So all the waits that it finds were there together when it began.
func (x *contexts) waitsFor(y *contexts, seen map[*contexts]bool) bool {
	if x == y {
		return true
	}
	if seen[x] || x.ended.Load() {
		return false
	}
	seen[x] = true
	for z := range x.waits {
		if z.waitsFor(y, seen) {
			return true
		}
	}
	return false
}

// wait notes that a caller in the fn of x waits for the call of y.
func (x *contexts) wait(y *contexts) {
	if x.waits == nil {
		x.waits = make(map[*contexts]int)
	}
	x.waits[y]++
}

// unwait takes back one wait.
func (x *contexts) unwait(y *contexts) {
	x.waits[y]--
	if x.waits[y] == 0 {
		delete(x.waits, y)
	}
}

// run is doCall for a call that DoContext has started.
func (x *contexts) run(c *call, fn func(context.Context) (any, error)) {
	doCall(c, func() (any, error) {
		defer x.stop()
		return fn(x)
	})
}

// attend joins or starts the call of key in the Group of that number, for a caller of
// DoContext. It returns nil if from, which is the call whose fn asks or nil, would
// then wait for itself.
func attend(ctx context.Context, group uint64, key string, fn func(context.Context) (any, error), from *contexts) *call {
	hash := hashOf(key) ^ group
	s := stripeOf(hash)
	var made, checked *contexts
	var fresh *contextCall
	for {
		// What takes time, allocating and looking for a ring, is done without the
		// lock. Then the call is looked for again, and if it is another one, so is
		// a ring.
		s.mu.Lock()
		c := s.find(hash, group, key)
		var x *contexts
		if c != nil {
			x = c.contexts
		}
		switch {
		case x == nil && made == nil:
			s.mu.Unlock()
			made = &contexts{Context: context.WithoutCancel(ctx), done: make(chan struct{})}
			fresh = new(contextCall)
		case x != nil && from != nil && x != checked:
			s.mu.Unlock()
			if x.waitsFor(from, make(map[*contexts]bool)) {
				return nil
			}
			checked = x
		case c == nil:
			c = &fresh.call
			c.contexts, c.outcome = made, &fresh.outcome
			s.add(c, hash, group, key)
			s.mu.Unlock()
			go made.run(c, fn)
			return c
		default:
			c.join()
			if x == nil {
				made.Context = nil
				c.contexts = made
			}
			s.mu.Unlock()
			return c
		}
	}
}

// leave takes a caller of DoContext out of c, unless c has ended: then it reports
// false, and the caller gets the outcome. The last one to leave gives the call up.
func (c *call) leave() bool {
	x := c.contexts
	s := stripeOf(c.hash)
	s.mu.Lock()
	if x.ended.Load() {
		s.mu.Unlock()
		return false
	}
	c.waiting--
	abandoned := c.waiting < 0
	if abandoned && !c.out {
		s.forget(c)
	}
	s.mu.Unlock()
	if abandoned {
		x.stop()
	}
	return true
}

// The table holds all calls of the process that can be joined. It is in stripes,
// so that calls of different keys rarely meet at one lock, and it belongs to no
// Group, so that a Group costs nothing and each stripe's memory serves them all.
//
// A hash has 64 bits: the upper ones choose a stripe, the lower ones a bucket in
// it, and some between are the tag in the bucket.
const (
	stripeBits = 8
	chainMax   = 8 // a stripe with more calls gets buckets, and at least so many
)

var (
	table [1 << stripeBits]stripe
	seed  = maphash.MakeSeed() // so that nobody can choose keys that collide

	lastNumber atomic.Uint64 // of a Group
)

// A stripe is padded so that the locks of two of them never share a cache line,
// nor a pair of lines that processors fetch together.
type stripe struct {
	calls
	_ [128 - unsafe.Sizeof(calls{})%128]byte
}

// calls is a hash table of calls, chained through the calls themselves. So adding
// and removing one neither allocates nor hashes, and what a burst of calls needed
// goes back as they end.
type calls struct {
	mu      sync.Mutex
	n       int      // of calls
	few     bucket   // has the calls while there are no buckets
	buckets []bucket // a power of two of them, for up to two calls each, or none
	spare   *call    // a call to be used again, so that most need not be allocated
}

// A bucket has a chain of calls and the tags of its first eight. What a caller asks
// for is mostly not there, and the tags tell, which are next to the chain's head. To
// look at the calls instead would be a cache miss for each of them: with a million in
// flight, and keys in turn, a Do took two to nine times as long.
type bucket struct {
	chain *call
	tags  uint64 // a byte for each call, the first in the lowest; 0 means none
}

// tag returns the tag of a call, which is not 0.
func tag(hash uint64) uint64 { return hash>>32&0xff | 1 }

// mayHave reports whether there can be a call with this hash.
func (b *bucket) mayHave(hash uint64) bool {
	if b.tags>>56 != 0 {
		return true // there may be more calls than tags
	}
	const ones, tops = 0x0101010101010101, 0x8080808080808080
	x := b.tags ^ ones*tag(hash) // has a zero byte where the tag is the same
	return (x-ones)&^x&tops != 0
}

func (b *bucket) push(c *call) {
	c.next, b.chain = b.chain, c
	b.tags = b.tags<<8 | tag(c.hash)
}

// pull takes out a call.
func (b *bucket) pull(c *call) {
	if b.chain == c && b.tags>>56 == 0 {
		b.chain, b.tags, c.next = c.next, b.tags>>8, nil
		return
	}
	at := &b.chain
	for *at != c {
		at = &(*at).next
	}
	*at, c.next, b.tags = c.next, nil, 0
	i := 0
	for c := b.chain; c != nil && i < 8; c = c.next {
		b.tags |= tag(c.hash) << (8 * i)
		i++
	}
}

func stripeOf(hash uint64) *stripe {
	return &table[hash>>(64-stripeBits)]
}

// id returns the Group's number. The hash of a key in the Group is hashOf(key) ^ id:
// two small functions, for the compiler to inline, which saves a fiftieth of a Do.
func (g *Group) id() uint64 {
	if number := g.number.Load(); number != 0 {
		return number
	}
	return g.newID()
}

func (g *Group) newID() uint64 {
	// The step, 2^64 divided by the golden ratio, spreads the numbers over the
	// upper bits as well as the lower ones. Otherwise, the same key in many Groups
	// would always meet in one bucket. It is odd, so no number comes twice.
	g.number.CompareAndSwap(0, lastNumber.Add(0x9e3779b97f4a7c15))
	return g.number.Load()
}

// Comparable hashes a key of 1,024 bytes in a third of String's time, and a
// short one in the same.
func hashOf(key string) uint64 { return maphash.Comparable(seed, key) }

func (s *calls) bucket(hash uint64) *bucket {
	if s.buckets == nil {
		return &s.few
	}
	return &s.buckets[hash&uint64(len(s.buckets)-1)]
}

// find returns the call in flight, or nil.
func (s *calls) find(hash, group uint64, key string) *call {
	if s.n == 0 {
		return nil // mostly, so this is for the compiler to inline
	}
	return s.look(hash, group, key)
}

func (s *calls) look(hash, group uint64, key string) *call {
	b := s.bucket(hash)
	if !b.mayHave(hash) {
		return nil
	}
	for c := b.chain; c != nil; c = c.next {
		if c.hash == hash && c.group == group && c.key == key {
			return c
		}
	}
	return nil
}

// unused returns a call that is not in use.
func (s *calls) unused() *call {
	c := s.spare
	if c == nil {
		return new(call)
	}
	s.spare = nil
	return c
}

// add puts a call into the table.
func (s *calls) add(c *call, hash, group uint64, key string) {
	c.hash, c.group, c.key = hash, group, key
	c.wg.Add(1)
	s.n++
	if s.n == 1 && s.buckets == nil {
		s.few = bucket{c, tag(hash)} // mostly; a twentieth of a Do faster
		return
	}
	if limit := max(chainMax, 2*len(s.buckets)); s.n > limit {
		s.resize(limit)
	}
	s.bucket(hash).push(c)
}

// remove takes a call out of the table.
func (s *calls) remove(c *call) {
	s.n--
	if s.n == 0 && s.few.chain == c {
		s.few = bucket{} // mostly, so this is for the compiler to inline
		return
	}
	s.pull(c)
}

func (s *calls) pull(c *call) { s.bucket(c.hash).pull(c) }

// forget takes a call out of the table that has not ended.
func (s *calls) forget(c *call) {
	s.remove(c)
	c.out = true
}

// shrink gives memory back when the calls have become few. It is enough to do so
// when a call ends, as all of them do.
func (s *calls) shrink() {
	if s.n < len(s.buckets)/2 {
		s.resize(len(s.buckets) / 2)
	}
}

// resize moves the calls to n buckets, or to the single one if that is enough.
func (s *calls) resize(n int) {
	old := s.buckets
	if old == nil {
		old = []bucket{s.few}
	}
	s.few, s.buckets = bucket{}, nil
	if n >= chainMax {
		s.buckets = make([]bucket, n)
	}
	for _, b := range old {
		for c := b.chain; c != nil; {
			next := c.next
			s.bucket(c.hash).push(c)
			c = next
		}
	}
}
