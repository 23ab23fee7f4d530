// Copyright 2026 The singleflight Authors.
// Use of this source code is governed by the BSD-style license in LICENSE.

// Command program uses all of golang.org/x/sync/singleflight in the ways that the
// language has for it. The test beside it also builds it with no more changed than
// the import path, as somebody would who switches, and compares what they print.
package main

import (
	"errors"
	"fmt"
	"runtime"
	"strings"

	"golang.org/x/sync/singleflight"
)

// Of the types: an interface that *Group satisfies, embedding, and a struct type
// that Result converts to and from.
type (
	flights interface {
		Do(key string, fn func() (any, error)) (v any, err error, shared bool)
		DoChan(key string, fn func() (any, error)) <-chan singleflight.Result
		Forget(key string)
	}
	cache struct {
		singleflight.Group
		name string
	}
	triple struct {
		Val    any
		Err    error
		Shared bool
	}
	result singleflight.Result // go vet wants fields named in literals of another package's type
)

var _ flights = (*singleflight.Group)(nil)

var errSome = errors.New("some error")

func main() {
	literals()
	values()
	do()
	doChan()
	forget()
	endings()
	fmt.Println("done")
}

func literals() {
	keyed := singleflight.Result{Val: 1, Err: errSome, Shared: true}
	unkeyed := singleflight.Result(result{1, errSome, true})
	fmt.Println("literals", keyed == unkeyed, keyed == singleflight.Result{})
	fmt.Println("as a key", map[singleflight.Result]string{keyed: "found"}[unkeyed])
	fmt.Println("converted", singleflight.Result(triple(keyed)) == keyed)
	fmt.Printf("printed %v %+v %#v %T\n", singleflight.Result{}, keyed, singleflight.Result{}, keyed)
}

// values uses methods as values and as functions of their receiver.
func values() {
	var g singleflight.Group
	do, forget := g.Do, (*singleflight.Group).Forget
	var doChan func(key string, fn func() (any, error)) <-chan singleflight.Result = g.DoChan
	v, err, shared := do("key", value("by a method value"))
	fmt.Println(v, err, shared)
	fmt.Println((<-doChan("key", value("by another"))).Val)
	forget(&g, "key")

	c := cache{name: "embedded"}
	v, _, _ = c.Do("key", value(c.name))
	fmt.Println(v)
}

func do() {
	var g flights = new(singleflight.Group)
	v, err, shared := g.Do("key", func() (any, error) { return "beside an error", errSome })
	fmt.Println("do", v, err == errSome, shared)
	v, err, shared = g.Do("", func() (any, error) { return nil, nil })
	fmt.Println("do", v, err, shared)
}

func doChan() {
	var g singleflight.Group
	end := make(chan struct{})
	channels := []<-chan singleflight.Result{
		g.DoChan("key", func() (any, error) {
			<-end
			return "the leader's", nil
		}),
		g.DoChan("key", value("a joiner's")),
		g.DoChan("other key", value("of another key")),
	}
	fmt.Println("channel", cap(channels[0]), <-channels[2])
	close(end)
	fmt.Println("channel", <-channels[0], <-channels[1])
}

func forget() {
	var g singleflight.Group
	end := make(chan struct{})
	forgotten := g.DoChan("key", func() (any, error) {
		<-end
		return "forgotten", nil
	})
	g.Forget("key")
	g.Forget("unknown")
	v, _, shared := g.Do("key", value("its successor"))
	fmt.Println("forget", v, shared)
	close(end)
	fmt.Println("forget", <-forgotten)
}

// endings has fn end in the other ways.
func endings() {
	var g singleflight.Group
	func() {
		defer func() {
			err, ok := recover().(error)
			text, _, _ := strings.Cut(fmt.Sprint(err), "\n\n")
			fmt.Printf("panic %v %q %v\n", ok, text, errors.Is(err, errSome))
		}()
		g.Do("key", func() (any, error) { panic(errSome) })
	}()
	exited := make(chan struct{})
	go func() {
		defer close(exited)
		defer fmt.Println("exit, with deferred functions")
		g.Do("key", func() (any, error) {
			runtime.Goexit()
			return nil, nil
		})
		fmt.Println("not reached")
	}()
	<-exited
	v, _, _ := g.Do("key", value("free again"))
	fmt.Println("key", v)
}

func value(v any) func() (any, error) {
	return func() (any, error) { return v, nil }
}
