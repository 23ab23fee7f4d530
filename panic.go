// Copyright 2026 The singleflight Authors.
// Use of this source code is governed by the BSD-style license in LICENSE.

package singleflight

import (
	"bytes"
	"errors"
	"fmt"
	"runtime"
	"runtime/debug"
)

// ErrGoexit is the Err of a [Result] if fn called [runtime.Goexit]. Test for it
// with [errors.Is]. Only the channels of [Group.DoChan] deliver it. The goroutines of
// callers waiting in other methods exit instead.
var ErrGoexit = errors.New("singleflight: fn called runtime.Goexit")

// An ending is one of the three ways in which fn can end.
type ending uint8

const (
	exited   ending = iota // by runtime.Goexit
	returned               // with a value and an error
	panicked
)

// An outcome is what a call came to. How fn ended is not encoded in err: an error
// that fn returns is an ordinary one, even if another call's panic made it.
type outcome struct {
	how ending
	val any
	err error // what fn returned, a *panicError, or ErrGoexit
}

// deliver hands the outcome of c to a caller: it returns, panics or exits the caller's
// goroutine, as fn did.
func (c *call) deliver() (any, error) {
	switch c.how {
	case panicked:
		panic(c.err)
	case exited:
		runtime.Goexit()
	}
	return c.val, c.err
}

// A PanicError is the value with which [Group.Do] and [Group.DoContext] panic if fn
// panicked. All callers of the call that panic do so with the same one. [errors.As]
// finds it in a recovered error, and in errors that wrap that. The text of the error is
// the value that fn panicked with, an empty line, and the stack.
type PanicError interface {
	error

	// Unwrap returns the value that fn panicked with if it is an error, and nil
	// otherwise.
	Unwrap() error

	// Value returns the value that fn panicked with.
	Value() any

	// Stack returns a copy of the stack of fn's panic, as formatted by
	// [runtime/debug.Stack] but without the first line, which names the goroutine.
	Stack() []byte
}

// A panicError carries a panic of fn to the callers of its call.
type panicError struct {
	value any
	stack []byte // without its "goroutine N" line
}

// newPanicError must be called before the deferred function that recovered returns.
// After that, the stack of the panic is gone.
func newPanicError(value any) *panicError {
	// The first line names a goroutine and its state. The panic is raised again on
	// others, of which the line would not be true.
	_, stack, _ := bytes.Cut(debug.Stack(), []byte("\n"))
	return &panicError{value, stack}
}

func (p *panicError) Error() string {
	return fmt.Sprintf("%v\n\n%s", p.value, p.stack)
}

func (p *panicError) Unwrap() error {
	err, _ := p.value.(error)
	return err
}

func (p *panicError) Value() any { return p.value }

func (p *panicError) Stack() []byte { return bytes.Clone(p.stack) }
