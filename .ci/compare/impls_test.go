// Copyright 2026 The singleflight Authors.
// Use of this source code is governed by the BSD-style license in LICENSE.

package compare

import (
	"context"
	"testing"

	ours "example.com/singleflight"
	"github.com/golang/groupcache/singleflight"
	xsync "golang.org/x/sync/singleflight"
	resenje "resenje.org/singleflight"
)

// A group is a Group of an implementation. It discards results: their types differ,
// and reading them costs nothing.
type group interface {
	Do(key string, w work)
}

// A chanGroup can return a channel. It returns it as any, which takes no allocation,
// because the channel's type differs between implementations.
type chanGroup interface {
	group
	DoChan(key string, w work) (ch any)
	Receive(ch any)
}

// A contextGroup can stop waiting when a context is done.
type contextGroup interface {
	DoContext(ctx context.Context, key string, w work)
}

// A work is fn in the two forms that implementations take. Both are made beforehand, so
// that no adapter allocates a closure for a call. An fn that needs a context has the
// second form only.
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

// An implementation is a column of the table. Its groups have the methods that it can
// offer. groupcache's is the fastest known one that the Go module proxy serves.
type implementation struct {
	name string
	new  func() any
}

var implementations = []implementation{
	{"ours", func() any { return new(oursGroup) }},
	{"ours-typed", func() any { return new(typedGroup) }},
	{"xsync", func() any { return new(xsyncGroup) }},
	{"resenje", func() any { return new(resenjeGroup) }},
	{"groupcache", func() any { return new(groupcacheGroup) }},
}

// each runs a sub-benchmark for each implementation whose groups are a G.
func each[G any](b *testing.B, suffix string, f func(b *testing.B, newGroup func() G)) {
	for _, im := range implementations {
		if _, ok := im.new().(G); ok {
			b.Run("impl="+im.name+suffix, func(b *testing.B) {
				f(b, func() G { return im.new().(G) })
			})
		}
	}
}

type oursGroup struct{ g ours.Group }

func (o *oursGroup) Do(key string, w work)         { o.g.Do(key, w.plain) }
func (o *oursGroup) DoChan(key string, w work) any { return o.g.DoChan(key, w.plain) }
func (o *oursGroup) Receive(ch any)                { <-ch.(<-chan ours.Result) }

func (o *oursGroup) DoContext(ctx context.Context, key string, w work) {
	o.g.DoContext(ctx, key, w.withContext)
}

type typedGroup struct{ g ours.GroupOf[any] }

func (o *typedGroup) DoContext(ctx context.Context, key string, w work) {
	o.g.DoContext(ctx, key, w.withContext)
}

type xsyncGroup struct{ g xsync.Group }

func (x *xsyncGroup) Do(key string, w work)         { x.g.Do(key, w.plain) }
func (x *xsyncGroup) DoChan(key string, w work) any { return x.g.DoChan(key, w.plain) }
func (x *xsyncGroup) Receive(ch any)                { <-ch.(<-chan xsync.Result) }

// DoContext is what a program with x/sync does for want of one. It does less: fn is not
// canceled when all callers have left.
func (x *xsyncGroup) DoContext(ctx context.Context, key string, w work) {
	fn := w.plain
	if fn == nil {
		fn = func() (any, error) { return w.withContext(context.WithoutCancel(ctx)) }
	}
	select {
	case <-x.g.DoChan(key, fn):
	case <-ctx.Done():
	}
}

type resenjeGroup struct{ g resenje.Group[string, any] }

func (r *resenjeGroup) Do(key string, w work) { r.g.Do(context.Background(), key, w.withContext) }

func (r *resenjeGroup) DoContext(ctx context.Context, key string, w work) {
	r.g.Do(ctx, key, w.withContext)
}

type groupcacheGroup struct{ g singleflight.Group }

func (c *groupcacheGroup) Do(key string, w work) { c.g.Do(key, w.plain) }

// A bareGroup only runs fn, on as many goroutines as a group does. The bytes of the
// group are measured against it.
type bareGroup struct {
	spawns bool // whether that is a new one; then Do returns when end is closed
	end    <-chan struct{}
}

func bare(g group, end <-chan struct{}) group {
	_, spawns := g.(*resenjeGroup)
	return bareGroup{spawns, end}
}

func (g bareGroup) Do(_ string, w work) {
	if !g.spawns {
		w.plain()
		return
	}
	go w.plain()
	<-g.end
}
