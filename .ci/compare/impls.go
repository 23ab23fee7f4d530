// Copyright 2026 The singleflight Authors.
// Use of this source code is governed by the BSD-style licence in LICENSE.

package main

import (
	"context"
	"hash/maphash"
	"sync"

	ours "example.com/singleflight"
	"github.com/zeromicro/go-zero/core/syncx"
	xsync "golang.org/x/sync/singleflight"
	resenje "resenje.org/singleflight"
)

// A group is one Group of an implementation. It discards results, since what they
// are differs and reading them costs nothing.
type group interface {
	Do(key string, w work)
}

// A chanGroup can hand out a channel. The channel travels as any, which takes no
// allocation, because its type differs between implementations.
type chanGroup interface {
	group
	DoChan(key string, w work) (ch any)
	Receive(ch any)
}

// A contextGroup can stop waiting when a context is done.
type contextGroup interface {
	group
	DoContext(ctx context.Context, key string, w work)
}

// A work is a function in both forms that implementations want it in. They are
// made beforehand, so that no adapter has to allocate a closure for a call.
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

// nothing is written out, so that no call of an empty function is in it.
var nothing = work{
	plain:       func() (any, error) { return nil, nil },
	withContext: func(context.Context) (any, error) { return nil, nil },
}

// An implementation is a column of the table.
type implementation struct {
	name string
	new  func() group

	// spawns is set if Do runs fn on a goroutine of its own, which therefore is
	// not part of what a call in flight takes beyond its goroutines.
	spawns bool
	// floor is set if there is no table of calls behind it, so that it takes no
	// part where calls meet.
	floor bool
}

const (
	nameOurs  = "this library"
	nameXSync = "x/sync"
	nameFloor = "floor"
)

var implementations = []implementation{
	{name: nameOurs, new: func() group { return new(oursGroup) }},
	{name: nameXSync, new: func() group { return new(xsyncGroup) }},
	{name: "resenje", new: func() group { return new(resenjeGroup) }, spawns: true},
	{name: "go-zero", new: func() group { return goZeroGroup{syncx.NewSingleFlight()} }},
	{name: nameFloor, new: func() group { return &floorGroup{seed: maphash.MakeSeed()} }, floor: true},
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

// DoContext is what has to be written for want of one. It is less than the
// others do: fn gets no context, and is not told when everybody has left.
func (x *xsyncGroup) DoContext(ctx context.Context, key string, w work) {
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

// A floorGroup does what no Group can do without: it hashes the key once, takes
// an uncontended lock to enter the call and again to end it, and calls fn. It
// suppresses nothing.
type floorGroup struct {
	seed maphash.Seed
	mu   sync.Mutex
	hash uint64 // written under the lock, so that neither is for nothing
}

func (f *floorGroup) Do(key string, w work) {
	hash := maphash.Comparable(f.seed, key)
	f.mu.Lock()
	f.hash = hash
	f.mu.Unlock()
	w.plain()
	f.mu.Lock()
	f.hash = 0
	f.mu.Unlock()
}

// A bareGroup only runs fn, on as many goroutines as an implementation would. It
// is what the bytes of the others are measured against. A goroutine that waits
// for another is parked until end is closed.
type bareGroup struct {
	spawns bool
	end    <-chan struct{}
}

func (b bareGroup) Do(_ string, w work) {
	if !b.spawns {
		w.plain()
		return
	}
	go w.plain()
	<-b.end
}
