// Copyright 2026 The singleflight Authors.
// Use of this source code is governed by the BSD-style license in LICENSE.

package singleflight

import (
	"bytes"
	"errors"
	"fmt"
	"runtime/debug"
)

// ErrGoexit is the Err of a [Result] or [ResultOf] if fn called [runtime.Goexit]. Test
// for it with [errors.Is]. Only channels receive it.
var ErrGoexit = errors.New("singleflight: fn called runtime.Goexit")

// An ending is one of the three ways in which fn can end.
type ending uint8

const (
	exited   ending = iota // by runtime.Goexit; assumed until run sees something else
	returned               // with a value and an error
	panicked
)

// An outcome is what a call came to. How fn ended is not encoded in err: an error that
// fn returns is an ordinary one, even if another call's panic made it.
type outcome struct {
	how ending
	val any
	err error // what fn returned, a *PanicError, or ErrGoexit
}

// run runs fn and notes what it comes to. It does not return if fn exits.
//
// While they happen, a Goexit and a panic(nil), under GODEBUG=panicnil=1, cannot be told
// apart: recover returns nil for both. But only after a panic does control come back to the
// caller of the function whose deferred function has recovered.
func (o *outcome) run(fn func() (any, error)) {
	func() {
		defer o.catch()
		o.val, o.err = fn()
		o.how = returned
	}()
	if o.how == exited {
		o.how = panicked // with nil: control came back
	}
}

// catch is deferred by run around fn alone. It recovers a panic and takes its stack, which
// is gone once catch has returned. If fn exits, it takes a stack, too, since a panic(nil)
// looks alike.
func (o *outcome) catch() {
	if o.how != returned {
		value := recover()
		if value != nil {
			// Not left to run, as a deferred function can panic while the goroutine exits:
			// it goes on exiting, so control does not come back to run.
			o.how = panicked
		}
		// The first line names a goroutine and its state. It would be wrong on the others,
		// on which the panic is raised again.
		_, stack, _ := bytes.Cut(debug.Stack(), []byte("\n"))
		o.err = &PanicError{value, stack}
	}
}

// A PanicError carries a panic of fn to the callers of its call. [Group.Do] and
// [Group.DoContext] panic with a *PanicError, the same for all callers of a call.
// [errors.As] finds it in a recovered error, and in errors that wrap it. To pass on
// [net/http.ErrAbortHandler], look for it with [errors.Is] and panic with it.
type PanicError struct {
	value any
	stack []byte // without its "goroutine N" line
}

// Error returns the text of the value, an empty line, and the stack.
func (p *PanicError) Error() string { return fmt.Sprintf("%v\n\n%s", p.value, p.stack) }

// Unwrap returns the value that fn panicked with if it is an error, and nil
// otherwise.
func (p *PanicError) Unwrap() error {
	err, _ := p.value.(error)
	return err
}

// Value returns the value that fn panicked with.
func (p *PanicError) Value() any { return p.value }

// Stack returns a copy of the stack of fn's panic, without its "goroutine N" line.
func (p *PanicError) Stack() []byte { return bytes.Clone(p.stack) }
