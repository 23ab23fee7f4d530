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
// [Group.Do] waits for the result. [Group.DoChan] returns a channel instead, for
// a caller that also waits for something else. [Group.Forget] makes the next
// caller start a call of its own, although one is still running.
//
// All who share a call get the same value, not copies: treat what it points to
// as read-only, or copy it.
//
// # Panics and Goexit
//
// If fn panics, the panic is not lost, and no caller takes it for a result. It
// is raised again in every caller waiting in Do, on the caller's own goroutine,
// as the same error value: its text is what fn panicked with, then an empty line
// and the stack of fn's panic, and it unwraps to the value if that is an error.
// The key is free by then. A panic cannot be raised in a caller that holds a
// channel, so if there is at least one of those the process crashes, with the
// value and that stack in its output; no recover can prevent it.
//
// If fn calls [runtime.Goexit], so do all callers waiting in Do: their deferred
// functions run, and Do does not return. A channel gets [ErrGoexit].
//
// # Memory model
//
// In the terminology of the Go memory model, the return of fn synchronizes
// before the return of every Do and the receive of every Result that it answers,
// and before the start of the next call of the same key. What precedes Forget
// synchronizes before the call that Forget makes room for. Calls of different
// keys are not ordered.
//
// # Tests with synctest
//
// A Group, also one in a package-level variable, may be used inside a
// [testing/synctest] bubble, then outside, then in another bubble. A Do that
// joins a call led in the same bubble is durably blocked. A Do may join a call
// across the edge of a bubble, without being durably blocked; DoChan may not,
// since the channels of a bubble cannot be used outside.
//
// # Differences from golang.org/x/sync/singleflight
//
//   - When fn calls Goexit, a channel from DoChan gets a Result with
//     [ErrGoexit]. There it is left without one, for ever.
//   - An error that fn returns is always just that. There, one that came from
//     the panic or the Goexit of another Group panics or exits every caller.
//   - A panic of a deferred function while fn's goroutine exits is a panic.
//     There it is lost, and taken for the Goexit. So is, with GODEBUG=panicnil=1,
//     panic(nil), which there is reported as success; only while the goroutine
//     exits can panic(nil) not be told from Goexit, and counts as that.
//   - No lock is held while results are handed out or while the process dies of
//     a panic, so ending a call with very many callers does not stall other
//     keys, and a panic value may use the Group when it is printed.
//   - The memory that a burst of keys needed is given back.
//   - Calls of different keys in one Group are not ordered by the Group. There
//     its mutex orders them.
//   - The calls in flight are not kept in the Group but in one table for the
//     whole process. So two Groups that have been used are not
//     [reflect.DeepEqual], a debugger does not find a Group's calls in it, and a
//     goroutine stuck in a call does not look leaked to the runtime's
//     goroutine-leak profile only because its Group is unreachable.
//
// # What it does not do
//
// It does not cache, expire, batch keys, retry, or limit how many calls run at
// once, and it does not reach beyond the process. For results that outlive the
// call put a cache in front, filled by fn; across processes use a lease in a
// store that they share, or something like groupcache.
package singleflight

import (
	"hash/maphash"
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
// have returned.
type Result struct {
	Val    any   // the value that fn returned
	Err    error // the error that fn returned, or ErrGoexit
	Shared bool  // whether Val and Err were given to more than one caller
}

// Do runs fn and returns its results, unless a call of the same key is in
// flight: then it waits for that one, leaves its own fn alone, and returns the
// results of the other's.
//
// The caller that starts a call runs fn on its own goroutine; no goroutine is
// started. v and err are exactly what fn returned, v also beside a non-nil err.
// shared reports whether they went to more than one caller: true for all who
// joined, and true for the leader if anyone did before the call ended or was
// forgotten.
//
// Any string is a key, the empty one included. It is not copied, but it is not
// kept either once the call has ended; nor are fn, v and err.
//
// Do panics if fn panics, on the goroutine of every caller that waits in Do, and
// exits all their goroutines if fn exits its own; see the package comment. A nil
// fn panics like any call of a nil function, unless the caller joins: then it is
// not looked at.
//
// From within fn, every method may be called for every key, but for one thing:
// a Do of the key that fn runs for waits for itself, for ever, unless
// [Group.Forget] comes first. So does a ring of calls in which each fn calls Do
// for the next key. Do has no other way to stop waiting than the end of fn; use
// [Group.DoChan] to wait no longer than one wants.
func (g *Group) Do(key string, fn func() (any, error)) (v any, err error, shared bool) {
	hash, group := g.hash(key)
	s := stripeOf(hash)
	s.mu.Lock()
	if c := s.find(hash, group, key); c != nil {
		c.shared = true
		s.mu.Unlock()
		c.wg.Wait()
		v, err = c.outcome.give()
		return v, err, true
	}
	c := s.start(hash, group, key)
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
// process crashes; recover inside fn to prevent that. If fn calls
// [runtime.Goexit] the Result has a nil Val and [ErrGoexit].
func (g *Group) DoChan(key string, fn func() (any, error)) <-chan Result {
	ch := make(chan Result, 1)
	hash, group := g.hash(key)
	s := stripeOf(hash)
	s.mu.Lock()
	c := s.find(hash, group, key)
	var r *reader
	if c != nil && c.first.ch != nil {
		// Nothing is allocated under the lock for joining, and the one who leads
		// needs no node. So look again once there is one.
		s.mu.Unlock()
		r = &reader{ch: ch}
		s.mu.Lock()
		c = s.find(hash, group, key)
	}
	if c != nil {
		c.shared = true
		c.addReader(ch, r)
		s.mu.Unlock()
		return ch
	}
	c = s.start(hash, group, key)
	c.first.ch = ch
	s.mu.Unlock()
	go doCall(c, fn)
	return ch
}

// Forget makes the Group forget the call of key that is in flight, if there is
// one: once Forget has returned, the next caller with that key starts a call of
// its own. The forgotten call goes on, and answers those who joined it before.
func (g *Group) Forget(key string) {
	hash, group := g.hash(key)
	s := stripeOf(hash)
	s.mu.Lock()
	if c := s.find(hash, group, key); c != nil {
		s.remove(c)
		c.forgotten = true
	}
	s.mu.Unlock()
}

// A call is one execution of fn. Only calls that can be joined are in the table.
//
// It goes through three phases. In the table, its fields are guarded by the
// mutex of its stripe, but for those that never change there. When it has ended,
// or was forgotten, nobody joins any more. Then, if anyone has joined, its leader
// sets outcome, once, and releases the joiners by wg; if nobody has, its leader
// is the only one who knows it, and it is kept to be used again.
type call struct {
	// Set before the call enters the table.
	hash  uint64
	group uint64 // the number of the Group
	key   string

	// Held by the leader from before the call enters the table until outcome is
	// set. It is tempting to leave that to the first joiner, since most calls
	// have none. But then a call that is led on one side of the edge of a
	// synctest bubble and joined on the other would kill the process.
	wg sync.WaitGroup

	// Guarded by the mutex of the stripe.
	next      *call  // in the bucket
	first     reader // a list; the first reader has its node here
	shared    bool   // someone has joined
	forgotten bool   // no longer in the table, although it has not ended

	outcome *outcome // only if shared; set before the leader releases wg
}

// A reader is a caller that holds a channel.
type reader struct {
	ch   chan<- Result // nil in call.first if there is none
	next *reader
}

// addReader adds ch to c's readers, r being a node to use for all but the first.
func (c *call) addReader(ch chan<- Result, r *reader) {
	if c.first.ch == nil {
		c.first.ch = ch
		return
	}
	r.next = c.first.next
	c.first.next = r
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
		if !c.forgotten {
			s.remove(c)
		}
		shared = c.shared
		first := c.first
		if !shared {
			s.recycle(c)
		}
		s.mu.Unlock()
		if shared || first.ch != nil || o.how != returned {
			o.deliver(c, shared, &first)
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

// deliver hands the outcome of c, which has ended, to all but its leader. No lock
// is held here: there is no limit to the number of those who wait.
func (o *outcome) deliver(c *call, shared bool, first *reader) {
	if o.how == exited {
		o.err = ErrGoexit
	}
	if o.how == panicked && first.ch != nil {
		// On a goroutine of its own nobody can recover it. This one is kept, so
		// that fn's goroutine shows in the dump of a crash.
		go panic(o.err)
		select {}
	}
	if shared {
		c.outcome = &outcome{o.how, o.val, o.err}
		c.wg.Done()
	}
	if first.ch != nil {
		for r := first; r != nil; r = r.next {
			r.ch <- Result{o.val, o.err, shared}
		}
	}
	if o.how == panicked {
		panic(o.err)
	}
}

// The table holds all calls of the process that can be joined. It is in stripes,
// so that calls of different keys rarely meet at one lock, and it belongs to no
// Group, so that a Group costs nothing and each stripe's memory serves them all.
//
// A hash has 64 bits: the upper ones choose a stripe, the lower ones a bucket in
// it.
const (
	stripeBits = 8
	chainMax   = 8 // a stripe with at most so many calls needs no buckets
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
	n       int     // of calls
	chain   *call   // the calls while there are no buckets
	buckets []*call // a power of two of them, or none
	spare   *call   // a call to be used again, so that most need not be allocated
}

func stripeOf(hash uint64) *stripe {
	return &table[hash>>(64-stripeBits)]
}

// hash returns the hash of a key in this Group, and the Group's number.
func (g *Group) hash(key string) (hash, number uint64) {
	number = g.number.Load()
	if number == 0 {
		g.number.CompareAndSwap(0, lastNumber.Add(1))
		number = g.number.Load()
	}
	// The constant, 2^64 divided by the golden ratio, spreads the numbers over
	// the upper bits as well as the lower ones. Without them, the same key in
	// many Groups would always meet in one bucket.
	//
	// Comparable hashes a key of 1,024 bytes in a third of String's time, and a
	// short one in the same.
	return maphash.Comparable(seed, key) ^ number*0x9e3779b97f4a7c15, number
}

func (s *calls) bucket(hash uint64) **call {
	if s.buckets == nil {
		return &s.chain
	}
	return &s.buckets[hash&uint64(len(s.buckets)-1)]
}

func (s *calls) find(hash, group uint64, key string) *call {
	for c := *s.bucket(hash); c != nil; c = c.next {
		if c.hash == hash && c.group == group && c.key == key {
			return c
		}
	}
	return nil
}

// start adds a call to the table.
func (s *calls) start(hash, group uint64, key string) *call {
	c := s.spare
	if c == nil {
		c = new(call)
	} else {
		s.spare = nil
	}
	c.hash, c.group, c.key = hash, group, key
	c.wg.Add(1)
	s.n++
	if limit := max(chainMax, len(s.buckets)); s.n > limit {
		s.resize(2 * limit)
	}
	b := s.bucket(hash)
	c.next, *b = *b, c
	return c
}

// remove takes a call out of the table.
func (s *calls) remove(c *call) {
	b := s.bucket(c.hash)
	for *b != c {
		b = &(*b).next
	}
	*b, c.next = c.next, nil
	s.n--
	if s.n < len(s.buckets)/4 {
		s.resize(len(s.buckets) / 2)
	}
}

// recycle keeps a call that has ended, and that only its leader knows, to be used
// again.
func (s *calls) recycle(c *call) {
	c.wg.Done()
	c.wg.Wait() // takes off the mark of a synctest bubble: the next user may be elsewhere
	c.key, c.first.ch, c.forgotten = "", nil, false
	s.spare = c
}

// resize moves the calls to n buckets, or to the chain if it is long enough.
func (s *calls) resize(n int) {
	old := s.buckets
	if old == nil {
		old = []*call{s.chain}
	}
	s.chain, s.buckets = nil, nil
	if n > chainMax {
		s.buckets = make([]*call, n)
	}
	for _, c := range old {
		for c != nil {
			b, next := s.bucket(c.hash), c.next
			c.next, *b = *b, c
			c = next
		}
	}
}
