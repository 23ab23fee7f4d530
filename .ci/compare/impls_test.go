// Copyright 2026 The singleflight Authors.
// Use of this source code is governed by the BSD-style license in LICENSE.

package compare

import (
	"context"
	"hash/maphash"
	"sync"
	"testing"

	ours "example.com/singleflight"
	"github.com/zeromicro/go-zero/core/syncx"
	xsync "golang.org/x/sync/singleflight"
	resenje "resenje.org/singleflight"
)

// A group is one Group of an implementation. It discards results: their types
// differ, and reading them costs nothing.
type group interface {
	Do(key string, w work)
}

// A chanGroup can return a channel. It returns it as any, which takes no
// allocation, because the channel's type differs between implementations.
type chanGroup interface {
	group
	DoChan(key string, w work) (ch any)
	Receive(ch any)
}

// A contextGroup can stop waiting when a context is done.
type contextGroup interface {
	DoContext(ctx context.Context, key string, w work)
}

// A work is fn in the two forms that implementations take. Both are made
// beforehand, so that no adapter allocates a closure for a call.
type work struct {
	plain       func() (any, error)
	withContext func(context.Context) (any, error)
}

func newWork(fn func()) work {
	return work{
		plain:       func() (any, error) { fn(); return nil, nil },
		withContext: func(context.Context) (any, error) { fn(); return nil, nil },
	}
}

// nothing does not use newWork, because that would add the call of an empty fn.
var nothing = work{
	plain:       func() (any, error) { return nil, nil },
	withContext: func(context.Context) (any, error) { return nil, nil },
}

var asksDone = work{withContext: func(ctx context.Context) (any, error) {
	ctx.Done()
	return nil, nil
}}

// An impl is an implementation, which is a column of the table.
type impl[G any] struct {
	name   string
	new    func() G
	spawns bool // whether Do runs fn on a new goroutine
}

var (
	groups = []impl[group]{
		{name: "ours", new: func() group { return new(oursGroup) }},
		{name: "xsync", new: func() group { return new(xsyncGroup) }},
		{name: "resenje", new: func() group { return new(resenjeGroup) }, spawns: true},
		{name: "gozero", new: func() group { return goZeroGroup{syncx.NewSingleFlight()} }},
	}
	chanGroups = []impl[chanGroup]{
		{name: "ours", new: func() chanGroup { return new(oursGroup) }},
		{name: "xsync", new: func() chanGroup { return new(xsyncGroup) }},
	}
	contextGroups = []impl[contextGroup]{
		{name: "ours", new: func() contextGroup { return new(oursGroup) }},
		{name: "resenje", new: func() contextGroup { return new(resenjeGroup) }},
	}
	selectGroup = impl[contextGroup]{name: "xsync-DoChan-in-select", new: func() contextGroup { return new(xsyncSelect) }}
	floor       = impl[group]{name: "floor", new: func() group { return &unjoinedFloor{seed: maphash.MakeSeed()} }}
)

// each runs a sub-benchmark for each implementation.
func each[G any](b *testing.B, prefix string, impls []impl[G], f func(b *testing.B, im impl[G])) {
	for _, im := range impls {
		b.Run(prefix+"impl="+im.name, func(b *testing.B) { f(b, im) })
	}
}

type oursGroup struct{ g ours.Group }

func (o *oursGroup) Do(key string, w work)         { o.g.Do(key, w.plain) }
func (o *oursGroup) DoChan(key string, w work) any { return o.g.DoChan(key, w.plain) }
func (o *oursGroup) Receive(ch any)                { <-ch.(<-chan ours.Result) }

func (o *oursGroup) DoContext(ctx context.Context, key string, w work) {
	o.g.DoContext(ctx, key, w.withContext)
}

type xsyncGroup struct{ g xsync.Group }

func (x *xsyncGroup) Do(key string, w work)         { x.g.Do(key, w.plain) }
func (x *xsyncGroup) DoChan(key string, w work) any { return x.g.DoChan(key, w.plain) }
func (x *xsyncGroup) Receive(ch any)                { <-ch.(<-chan xsync.Result) }

// An xsyncSelect does what a program with x/sync does for want of a DoContext. It
// does less: fn gets no context, and runs on when all callers have left.
type xsyncSelect struct{ g xsync.Group }

func (x *xsyncSelect) DoContext(ctx context.Context, key string, w work) {
	select {
	case <-x.g.DoChan(key, w.plain):
	case <-ctx.Done():
	}
}

type resenjeGroup struct{ g resenje.Group[string, any] }

func (r *resenjeGroup) Do(key string, w work) { r.g.Do(context.Background(), key, w.withContext) }

func (r *resenjeGroup) DoContext(ctx context.Context, key string, w work) {
	r.g.Do(ctx, key, w.withContext)
}

type goZeroGroup struct{ g syncx.SingleFlight }

func (z goZeroGroup) Do(key string, w work) { z.g.Do(key, w.plain) }

// An unjoinedFloor does what a Do with a sharded table has to do if it is not
// joined: it hashes the key, takes an uncontended lock to start the call and
// another one to end it, and calls fn. It suppresses no duplicates.
type unjoinedFloor struct {
	seed maphash.Seed
	mu   sync.Mutex
	hash uint64 // guarded by mu
}

func (f *unjoinedFloor) Do(key string, w work) {
	hash := maphash.Comparable(f.seed, key)
	f.mu.Lock()
	f.hash = hash
	f.mu.Unlock()
	w.plain()
	f.mu.Lock()
	f.hash = 0
	f.mu.Unlock()
}

// A joinersFloor does what a Do has to do if it is joined: it takes a mutex, and
// waits for a sync.WaitGroup unless it is the first. It finds the calls of all
// keys made beforehand.
type joinersFloor map[string]*floorCall

type floorCall struct {
	sync.Mutex
	inFlight *sync.WaitGroup // guarded by the mutex; nil if the call is not in flight
}

func newJoinersFloor(keys []string) joinersFloor {
	f := make(joinersFloor)
	for _, key := range keys {
		f[key] = new(floorCall)
	}
	return f
}

func (f joinersFloor) Do(key string, w work) {
	c := f[key]
	c.Lock()
	if wg := c.inFlight; wg != nil {
		c.Unlock()
		wg.Wait()
		return
	}
	wg := new(sync.WaitGroup)
	wg.Add(1)
	c.inFlight = wg
	c.Unlock()
	w.plain()
	c.Lock()
	c.inFlight = nil
	c.Unlock()
	wg.Done()
}

// A bareGroup only runs fn, on as many goroutines as an implementation does. The
// bytes of the implementation are measured against it. With spawns, Do returns
// when end is closed.
type bareGroup struct {
	spawns bool
	end    <-chan struct{}
}

func (g bareGroup) Do(_ string, w work) {
	if !g.spawns {
		w.plain()
		return
	}
	go w.plain()
	<-g.end
}
