// Copyright 2026 The singleflight Authors.
// Use of this source code is governed by the BSD-style licence in LICENSE.

package main

import (
	"fmt"
	"hash/maphash"
	"slices"
	"strings"
	"time"

	"github.com/anishathalye/porcupine"
)

// check checks a history that is complete.
func (h *history) check() error {
	h.mu.Lock() // after those whom nobody has waited for
	defer h.mu.Unlock()
	started := make(map[*caller]*run)
	for _, e := range h.runs {
		if started[e.by] != nil {
			return fmt.Errorf("caller %d: fn has run twice", e.by.number)
		}
		started[e.by] = e
	}
	answered := make(map[*run][]*caller)
	raised := make(map[*run]any)
	ops := make([][]porcupine.Operation, h.keys)
	add := func(key int, from, to int64, op any) {
		ops[key] = append(ops[key], porcupine.Operation{Input: op, Call: from, Return: to})
	}
	for _, c := range h.callers {
		e := c.ran()
		if e != nil {
			if e.how == panicked && raised[e] == nil {
				raised[e] = c.val
			}
			if err := c.compare(e, raised[e]); err != nil {
				return err
			}
			answered[e] = append(answered[e], c)
		}
		a := ask{c, started[c], e}
		switch {
		case c.refused():
			if c.within == nil || a.starts != nil {
				return fmt.Errorf("%+v", *c)
			}
			add(c.key, c.from, c.to, a)
		case a.starts != nil:
			add(c.key, c.from, a.starts.from, a)
		default:
			add(c.key, c.from, c.to, a)
		}
		if c.left() {
			if !c.mayLeave || c.val != nil || c.shared {
				return fmt.Errorf("%+v", *c)
			}
			add(c.key, max(c.from, c.cancelled), c.to, leave(a))
		}
	}
	end := h.tick()
	for _, e := range h.runs {
		told := end
		if e.cancelled {
			told = e.to // all have left, so that it does not matter when it ends
		}
		for _, c := range answered[e] {
			told = min(told, c.to)
		}
		add(e.by.key, e.to, told, ending{e, answered[e]})
		if e.ctx != nil && !e.cancelled && answered[e] == nil && !slices.ContainsFunc(h.callers, func(c *caller) bool {
			return c.key == e.by.key && c.ran() == nil && c.from < e.to && e.done < c.to
		}) {
			return fmt.Errorf("%v was not cancelled, but nobody can have waited", e)
		}
	}
	for _, f := range h.forgets {
		add(f.key, f.from, f.to, f)
	}
	for key, ops := range ops {
		switch porcupine.CheckOperationsTimeout(model, ops, 5*time.Second) {
		case porcupine.Illegal:
			return fmt.Errorf("key %d: there is no order of steps that explains%s", key, describe(ops))
		case porcupine.Unknown:
			h.undecided++
		}
	}
	return nil
}

// compare compares the answer of c, who was answered by e, with what e came to.
func (c *caller) compare(e *run, raised any) error {
	want := e.answer
	if e.how == panicked {
		want.val = raised
	}
	switch {
	case c.answer != want:
		return fmt.Errorf("caller %d: %+v, want %+v", c.number, c.answer, want)
	case c.key != e.by.key || c.to < e.to:
		return fmt.Errorf("caller %d of key %d was answered at %d by the run of key %d that ended at %d", c.number, c.key, c.to, e.by.key, e.to)
	case c.live:
		return fmt.Errorf("caller %d was answered before fn's context was cancelled", c.number)
	}
	return nil
}

// The steps of a key, each of which takes place in an instant.
type (
	ask struct {
		c      *caller
		starts *run // c's own, if it has been run
		ran    *run // that c was answered by, as far as c knows
	}
	leave  ask
	ending struct {
		e        *run
		answered []*caller // without those who do not know it
	}
	// and forget
)

// A state of a key is its calls in flight, in the order in which they began.
type state []call

type call struct {
	run      *run
	joinable bool
	shared   bool
	waiting  int    // callers who stay
	leaving  string // the numbers of those who do not, sorted
}

var model = (&porcupine.NondeterministicModel{
	Init:  func() []any { return []any{state(nil)} },
	Equal: func(a, b any) bool { return slices.Equal(a.(state), b.(state)) },
	Hash: func(s any) uint64 {
		var h maphash.Hash
		h.SetSeed(seed)
		for _, c := range s.(state) {
			maphash.WriteComparable(&h, c)
		}
		return h.Sum64()
	},
	Step: func(s, op, _ any) []any {
		after := slices.Clone(s.(state))
		switch op := op.(type) {
		case ask:
			return after.ask(op)
		case leave:
			return after.leave(op)
		case ending:
			return after.end(op)
		default:
			return after.forget(op.(forget))
		}
	},
}).ToModel()

var seed = maphash.MakeSeed()

func (s state) joinable() int {
	return slices.IndexFunc(s, func(c call) bool { return c.joinable })
}

// ask returns the states that can follow if a caller asks.
func (s state) ask(a ask) []any {
	i := s.joinable()
	switch {
	case a.starts != nil:
		if i >= 0 {
			return nil
		}
		i = len(s)
		s = append(s, call{run: a.starts, joinable: true})
	case a.c.left():
		// Or its context was done too soon.
		if i < 0 {
			return []any{s}
		}
		joins := slices.Clone(s)
		joins[i].join(a.c)
		joins[i].shared = true
		return []any{s, joins}
	case i < 0:
		return nil
	case a.c.refused():
		return []any{s}
	case a.ran == nil && s[i].run.how != exited || a.ran != nil && s[i].run != a.ran:
		return nil
	default:
		s[i].shared = true
	}
	s[i].join(a.c)
	return []any{s}
}

func (c *call) join(by *caller) {
	if !by.left() {
		c.waiting++
		return
	}
	leaving := []rune(c.leaving + string(by.mark()))
	slices.Sort(leaving)
	c.leaving = string(leaving)
}

// mark returns a rune that tells c from other callers of a round.
func (c *caller) mark() rune { return rune(0x10000 + c.number%0x100000) }

func (s state) leave(a leave) []any {
	mark := string(a.c.mark())
	i := slices.IndexFunc(s, func(c call) bool { return strings.Contains(c.leaving, mark) })
	if i < 0 {
		if a.starts != nil {
			return nil
		}
		return []any{s}
	}
	s[i].leaving = strings.Replace(s[i].leaving, mark, "", 1)
	if s[i].waiting == 0 && s[i].leaving == "" {
		s[i].joinable = false
	}
	return []any{s}
}

func (s state) end(e ending) []any {
	i := slices.IndexFunc(s, func(c call) bool { return c.run == e.e })
	if i < 0 || s[i].leaving != "" || e.e.cancelled && s[i].waiting > 0 {
		return nil
	}
	if e.e.how != exited && s[i].waiting != len(e.answered) {
		return nil
	}
	for _, c := range e.answered {
		if c.how == returned && c.shared != s[i].shared {
			return nil
		}
	}
	return []any{slices.Delete(s, i, i+1)}
}

func (s state) forget(f forget) []any {
	i := s.joinable()
	switch {
	case i < 0:
		if !f.ok {
			return nil
		}
	case f.unshared && s[i].shared:
		if f.ok {
			return nil
		}
	case !f.ok:
		return nil
	default:
		s[i].joinable = false
	}
	return []any{s}
}

// describe lists the steps of a key in the order in which they began.
func describe(ops []porcupine.Operation) string {
	slices.SortFunc(ops, func(a, b porcupine.Operation) int { return int(a.Call - b.Call) })
	var b strings.Builder
	for _, op := range ops {
		fmt.Fprintf(&b, "\n%d to %d: ", op.Call, op.Return)
		switch op := op.Input.(type) {
		case ask:
			fmt.Fprintf(&b, "caller %d asks", op.c.number)
			if op.starts != nil {
				fmt.Fprintf(&b, ", and starts a call")
			}
			fmt.Fprintf(&b, "; is answered %+v shared %v", op.c.answer, op.c.shared)
		case leave:
			fmt.Fprintf(&b, "caller %d leaves", op.c.number)
		case ending:
			fmt.Fprintf(&b, "%v ends (%s, cancelled %v), %d are known to be answered", op.e, op.e.how, op.e.cancelled, len(op.answered))
		case forget:
			fmt.Fprintf(&b, "%+v", op)
		}
	}
	return b.String()
}
