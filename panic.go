// Copyright 2026 The singleflight Authors.
// Use of this source code is governed by the BSD-style licence in LICENSE.

package singleflight

import (
	"bytes"
	"errors"
	"fmt"
	"runtime"
	"runtime/debug"
)

// ErrGoexit is the Err of a [Result] whose call's fn called [runtime.Goexit]:
// there is no value and there was no error, but nobody is left waiting. Test
// for it with [errors.Is]. Only the channels of [Group.DoChan] deliver it;
// other callers' goroutines exit instead.
var ErrGoexit = errors.New("singleflight: fn called runtime.Goexit")

// An ending is one of the three ways in which fn can end.
type ending uint8

const (
	exited   ending = iota // by runtime.Goexit, which no code of fn's can take back
	returned               // with a value and an error
	panicked
)

// An outcome is what fn came to. How it ended stands apart from err, so that an
// error which fn returns is never taken for a panic or a Goexit, not even one
// that another call's panic made.
type outcome struct {
	how ending
	val any
	err error // what fn returned, a *panicError, or ErrGoexit
}

// give hands the outcome to a caller that waited for it: it returns, panics or
// exits the caller's goroutine, as fn did.
func (o *outcome) give() (any, error) {
	switch o.how {
	case panicked:
		panic(o.err)
	case exited:
		runtime.Goexit()
	}
	return o.val, o.err
}

// A PanicError is what [Group.Do] and [Group.DoContext] panic with when fn has
// panicked: one value, the same for all who waited. In errors that wrap it,
// [errors.As] finds it. Its text is what fn panicked with, an empty line, and the
// stack.
type PanicError interface {
	error

	// Unwrap returns the value that fn panicked with if that is an error, and
	// otherwise nil.
	Unwrap() error

	// Value returns what fn panicked with.
	Value() any

	// Stack returns a copy of the stack of the goroutine that fn panicked on, as
	// in [runtime/debug.Stack] but without the first line, which names the
	// goroutine.
	Stack() []byte
}

// A panicError carries a panic of fn's to the goroutines that waited for it.
type panicError struct {
	value any    // what fn panicked with
	stack []byte // of that panic, without its "goroutine N" line
}

// newPanicError has to be called by the function that recovers: afterwards the
// stack that led to the panic is gone.
func newPanicError(value any) *panicError {
	// The first line names a goroutine and its state. The panic is raised again
	// on others, and by then it may be true of none.
	_, stack, _ := bytes.Cut(debug.Stack(), []byte("\n"))
	return &panicError{value, stack}
}

// Error returns the value, an empty line, and the stack.
func (p *panicError) Error() string {
	return fmt.Sprintf("%v\n\n%s", p.value, p.stack)
}

// Unwrap returns the value if that is an error, and otherwise nil.
func (p *panicError) Unwrap() error {
	err, _ := p.value.(error)
	return err
}

func (p *panicError) Value() any { return p.value }

func (p *panicError) Stack() []byte { return bytes.Clone(p.stack) }
