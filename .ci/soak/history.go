// Copyright 2026 The singleflight Authors.
// Use of this source code is governed by the BSD-style licence in LICENSE.

package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"

	"example.com/singleflight"
)

// A history is what happened in a round, by a logical clock: if that has ticked between
// two things, it is known which was first.
type history struct {
	clock  atomic.Int64
	groups [4]singleflight.Group

	keys    int
	mu      sync.Mutex // guards the rest
	callers []*caller
	runs    []*run
	forgets []forget

	undecided int // keys for which the check gave up
}

// How fn ends, or Do and its like.
const (
	returned = "returned"
	panicked = "panicked"
	exited   = "exited"
)

type answer struct {
	how string
	val any // also what was recovered
	err error
}

type caller struct {
	answer
	shared    bool
	live      bool // fn's context, when the answer was there
	key       int
	number    int64
	from, to  int64
	within    *run // the fn that asks
	mayLeave  bool
	cancelled int64 // not before, if nobody asks but the caller
}

// A run is an execution of fn. It stands for itself as a value, as an error, and as
// what fn panics with.
type run struct {
	answer
	by        *caller
	ctx       context.Context // nil if the starter's way has none
	cancelled bool            // ctx was, when fn was done
	from      int64           // when fn had started
	done, to  int64           // before fn looked at ctx, and after
}

func (e *run) Error() string { return fmt.Sprintf("run for caller %d", e.by.number) }

type forget struct {
	key      int
	unshared bool
	ok       bool
	from, to int64
}

// What is done with a key: a panic kills the process while a caller holds a channel.
const (
	withExits = iota
	withPanics
	habits
)

func (h *history) tick() int64 { return h.clock.Add(1) }

func (h *history) place(key int) (*singleflight.Group, string) {
	return &h.groups[key%len(h.groups)], fmt.Sprint("key ", key/len(h.groups))
}

// run has 16 workers take so many steps each, one after the other.
func (h *history) run(seed uint64, steps int) {
	var wg sync.WaitGroup
	for worker := range uint64(16) {
		r := rand.New(rand.NewPCG(seed, worker))
		wg.Go(func() {
			for range steps {
				key := r.IntN(h.keys)
				if r.IntN(12) == 0 {
					h.forget(key, r.IntN(2) == 0)
				} else {
					h.call(r.Uint64(), key, nil)
				}
			}
		})
	}
	wg.Wait()
}

func (h *history) forget(key int, unshared bool) {
	g, name := h.place(key)
	f := forget{key: key, unshared: unshared, ok: true, from: h.tick()}
	if unshared {
		f.ok = g.ForgetUnshared(name)
	} else {
		g.Forget(name)
	}
	f.to = h.tick()
	h.mu.Lock()
	defer h.mu.Unlock()
	h.forgets = append(h.forgets, f)
}

// ended is the error of a caller's own context.
type ended struct{ number int64 }

func (ended) Error() string { return "context of a caller is done" }

type ownContext struct {
	context.Context
	number int64
}

func (c ownContext) Err() error {
	if c.Context.Err() == nil {
		return nil
	}
	return ended{c.number}
}

func (c *caller) left() bool    { return c.how == returned && c.err == ended{c.number} }
func (c *caller) refused() bool { return c.how == returned && c.err == singleflight.ErrRecursive }

// call has a caller ask for key, on its own goroutine, since that may have to exit.
func (h *history) call(seed uint64, key int, within *run) {
	r := rand.New(rand.NewPCG(seed, 1))
	c := &caller{key: key, number: h.tick(), within: within}
	g, name := h.place(key)
	ctx, cancel := context.Background(), func() {}
	var ask func()
	switch way := r.IntN(8); {
	case within != nil || way < 4:
		if within != nil {
			ctx = within.ctx
		}
		c.mayLeave = within != nil || r.IntN(2) == 0
		ctx, cancel = context.WithCancel(ctx)
		fn, typed := h.fn(r.Uint64(), c), r.IntN(2) == 0
		ask = func() {
			if typed {
				c.val, c.err, c.shared = singleflight.DoContext(ownContext{ctx, c.number}, g, name, fn)
			} else {
				c.val, c.err, c.shared = g.DoContext(ownContext{ctx, c.number}, name, fn)
			}
		}
	case way == 4 && key%habits != withPanics:
		fn := h.fn(r.Uint64(), c)
		ask = func() {
			ch := g.DoChan(name, func() (any, error) { return fn(nil) })
			for range r.IntN(10) {
				runtime.Gosched()
			}
			a := <-ch
			c.val, c.err, c.shared = a.Val, a.Err, a.Shared
		}
	default:
		fn, typed := h.fn(r.Uint64(), c), r.IntN(2) == 0
		plain := func() (any, error) { return fn(nil) }
		ask = func() {
			if typed {
				c.val, c.err, c.shared = singleflight.Do(g, name, plain)
			} else {
				c.val, c.err, c.shared = g.Do(name, plain)
			}
		}
	}
	defer cancel()
	impatient := c.mayLeave && (within == nil || r.IntN(2) == 0)
	patience := r.IntN(40)
	done := make(chan struct{})
	go func() {
		defer close(done)
		h.wait(c, ask)
	}()
	if impatient {
		for range patience {
			runtime.Gosched()
		}
		if within == nil {
			c.cancelled = h.tick()
		}
		cancel()
	}
	<-done
}

// wait has c ask, and records its answer.
func (h *history) wait(c *caller, ask func()) {
	c.how = exited
	defer func() {
		if e := recover(); e != nil {
			c.how, c.val = panicked, e
		}
		c.to = h.tick()
		if e := c.ran(); e != nil && e.ctx != nil {
			c.live = e.ctx.Err() == nil
		}
		h.mu.Lock()
		defer h.mu.Unlock()
		h.callers = append(h.callers, c)
	}()
	c.from = h.tick()
	ask()
	c.how = returned
}

// ran returns the run that answered c, or nil if the answer does not say.
func (c *caller) ran() *run {
	for _, v := range []any{c.val, c.err} {
		if p, ok := v.(singleflight.PanicError); ok {
			v = p.Value()
		}
		if e, ok := v.(*run); ok {
			return e
		}
	}
	return nil
}

// fn returns the fn of c. It may panic only if c cannot leave: otherwise all may have
// left by then, which kills the process.
func (h *history) fn(seed uint64, c *caller) func(context.Context) (any, error) {
	r := rand.New(rand.NewPCG(seed, 2))
	return func(ctx context.Context) (any, error) {
		e := &run{by: c, ctx: ctx, from: h.tick()}
		patience := r.IntN(h.keys)
		if c.mayLeave && r.IntN(4) == 0 {
			patience = 1000
		}
		for ; patience > 0 && (ctx == nil || ctx.Err() == nil); patience-- {
			runtime.Gosched()
		}
		if ctx != nil && r.IntN(6) == 0 {
			h.call(r.Uint64(), r.IntN(h.keys), e)
		}
		e.how = returned
		switch n := r.IntN(5); {
		case n == 0 && c.key%habits == withExits:
			e.how = exited
		case n == 0 && !c.mayLeave:
			e.how, e.val = panicked, e
		case n == 1:
			e.err = e
		case n == 2:
			e.val, e.err = e, e
		default:
			e.val = e
		}
		e.done = h.tick()
		e.cancelled = ctx != nil && ctx.Err() != nil
		e.to = h.tick()
		h.mu.Lock()
		h.runs = append(h.runs, e)
		h.mu.Unlock()
		switch e.how {
		case exited:
			runtime.Goexit()
		case panicked:
			panic(e.val)
		}
		return e.val, e.err
	}
}
