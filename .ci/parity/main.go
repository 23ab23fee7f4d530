// Copyright 2026 The singleflight Authors.
// Use of this source code is governed by the BSD-style license in LICENSE.

// Command parity uses all of golang.org/x/sync/singleflight in the ways that the language
// has for it. The script run compares what it prints with what it prints once no more than
// the import path is changed.
package main

import (
	"errors"
	"fmt"
	"runtime"
	"strings"

	"golang.org/x/sync/singleflight"
)

// Of the types: an interface that *Group satisfies, embedding, and a struct type that
// Result converts to and from.
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

var errSome = errors.New("some error")

func main() {
	literals()
	values()
	do()
	doChan()
	forget()
	endings()
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
	fmt.Println(do("key", value("by a method value")))
	fmt.Println(<-doChan("key", value("by another")))
	forget(&g, "key")

	c := cache{name: "embedded"}
	fmt.Println(c.Do("key", value(c.name)))
}

func do() {
	var g flights = new(singleflight.Group)
	v, err, shared := g.Do("key", func() (any, error) { return "beside an error", errSome })
	fmt.Println("do", v, err == errSome, shared)
	fmt.Println(g.Do("", value(nil)))
}

func doChan() {
	var g singleflight.Group
	end := make(chan struct{})
	channels := []<-chan singleflight.Result{
		g.DoChan("key", valueAfter(end, "the leader's")),
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
	forgotten := g.DoChan("key", valueAfter(end, "forgotten"))
	g.Forget("key")
	g.Forget("unknown")
	fmt.Println(g.Do("key", value("its successor")))
	close(end)
	fmt.Println(<-forgotten)
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
	fmt.Println(g.Do("key", value("free again")))
}

func value(v any) func() (any, error) {
	return func() (any, error) { return v, nil }
}

func valueAfter(end <-chan struct{}, v any) func() (any, error) {
	return func() (any, error) {
		<-end
		return v, nil
	}
}
