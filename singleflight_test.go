// Copyright 2026 The singleflight Authors.
// Use of this source code is governed by the BSD-style license in LICENSE.

package singleflight

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"reflect"
	"regexp"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"
	"unsafe"
	"weak"
)

const key = "key"

// raceEnabled reports whether the race detector is on. It is slow, and allows some
// 8,000 goroutines at once.
var raceEnabled = func() bool {
	info, ok := debug.ReadBuildInfo()
	return ok && slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"})
}()

func init() {
	// With more processors, the runtime of these two breaks tests with many bubbles: it
	// takes its notes on their WaitGroups from a list that it does not lock.
	switch runtime.Version() {
	case "go1.25.0", "go1.25.1":
		runtime.GOMAXPROCS(1)
	}
}

// A way is how a caller asks.
type way string

const (
	byDo             way = "Do"
	byDoChan         way = "DoChan"
	byDoContext      way = "DoContext"
	byForgetUnshared way = "ForgetUnshared"
)

var ways = []way{byDo, byDoChan, byDoContext}

// An answer is what a caller sees.
type answer struct {
	how    string // waits, or how it was answered
	val    any    // also what it recovered
	err    error
	shared bool
}

const (
	waits     = "waits"
	didReturn = "returned"
	didPanic  = "panicked"
	didExit   = "exited"
)

// result returns the answer to a caller that gets results.
func result(val any, err error, shared bool) answer { return answer{didReturn, val, err, shared} }

// A work is an fn. Do and DoChan have no context for it.
type work func(context.Context) (any, error)

func (fn work) plain() func() (any, error) {
	if fn == nil {
		return nil
	}
	return func() (any, error) { return fn(noContext) }
}

var noContext context.Context

func returns(val any, err error) work {
	return func(context.Context) (any, error) { return val, err }
}

func exits(context.Context) (any, error) {
	runtime.Goexit()
	panic("unreachable")
}

// explode has a name to be found by in a stack.
//
//go:noinline
func explode(v any) (any, error) { panic(v) }

func panics(v any) work {
	return func(context.Context) (any, error) { return explode(v) }
}

// unwanted is the fn of a caller that has to join.
func unwanted(t *testing.T) work {
	return func(context.Context) (any, error) {
		t.Error("the fn of a caller that should have joined was run")
		return nil, nil
	}
}

// A job is an fn that ends as it is told to, and heeds no context.
type job struct {
	runs atomic.Int32
	ctx  context.Context // of the last run
	end  chan work
}

func newJob() *job { return &job{end: make(chan work)} }

func (j *job) fn(ctx context.Context) (any, error) {
	j.ctx = ctx
	j.runs.Add(1)
	return (<-j.end)(ctx)
}

// do asks, and waits for the results.
func (by way) do(ctx context.Context, g *Group, key string, fn work) (any, error, bool) {
	switch by {
	case byDo:
		return g.Do(key, fn.plain())
	case byDoChan:
		r := <-g.DoChan(key, fn.plain())
		return r.Val, r.Err, r.Shared
	}
	return g.DoContext(ctx, key, fn)
}

// ask has a caller ask, on a goroutine of its own, and returns where its answer comes.
func ask(by way, ctx context.Context, g *Group, key string, fn work) <-chan answer {
	return attempt(func() (any, error, bool) { return by.do(ctx, g, key, fn) })
}

// attempt calls do on a goroutine of its own. If that exits even though it recovered
// a panic, the answer has the value.
func attempt(do func() (any, error, bool)) <-chan answer {
	ch := make(chan answer, 1)
	go func() {
		a := answer{how: didExit}
		defer func() { ch <- a }()
		panicked := func() (panicked bool) {
			defer func() {
				if v := recover(); v != nil {
					a.val, panicked = v, true
				}
			}()
			a.val, a.err, a.shared = do()
			return false
		}()
		a.how = didReturn
		if panicked {
			a.how = didPanic
		}
	}()
	return ch
}

// lead has a job lead a call, and returns when fn runs.
func (j *job) lead(t *testing.T, by way, ctx context.Context, g *Group, key string) <-chan answer {
	t.Helper()
	ch := ask(by, ctx, g, key, j.fn)
	eventually(t, "the start of fn", func() bool { return j.runs.Load() == 1 })
	return ch
}

// join has a caller join the call of key, and returns when it waits.
func join(t *testing.T, by way, ctx context.Context, g *Group, key string) <-chan answer {
	t.Helper()
	before := callersOf(g, key)
	ch := ask(by, ctx, g, key, unwanted(t))
	eventually(t, "joining", func() bool { return callersOf(g, key) == before+1 })
	return ch
}

func check[T comparable](t *testing.T, what string, got, want T) {
	t.Helper()
	if got != want {
		t.Errorf("%s: got %+v, want %+v", what, got, want)
	}
}

// answered checks that all callers get want.
func answered(t *testing.T, want answer, callers ...<-chan answer) {
	t.Helper()
	for i, ch := range callers {
		check(t, fmt.Sprintf("answer to caller %d", i), <-ch, want)
	}
}

// waiting checks that the callers in this bubble all wait.
func waiting(t *testing.T, callers ...<-chan answer) {
	t.Helper()
	synctest.Wait()
	for i, ch := range callers {
		select {
		case a := <-ch:
			t.Fatalf("caller %d does not wait, but got %+v", i, a)
		default:
		}
	}
}

// eventually waits for something that no channel and no bubble tells of.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for start := time.Now(); !ok(); runtime.Gosched() {
		// In a bubble time stands still, but go test has a time-out of its own.
		if time.Since(start) > 30*time.Second {
			t.Fatalf("%s: not in 30 s", what)
		}
	}
}

// goroutines returns the traces of the goroutines whose state and stack contain what
// is given.
func goroutines(state, stack string) []string {
	buf := make([]byte, 1<<15)
	n := runtime.Stack(buf, true)
	for n == len(buf) {
		buf = make([]byte, 2*n)
		n = runtime.Stack(buf, true)
	}
	return tracesIn(string(buf[:n]), state, stack)
}

func tracesIn(dump, state, stack string) (found []string) {
	for trace := range strings.SplitSeq(dump, "\n\n") {
		header, frames, _ := strings.Cut(trace, "\n")
		if strings.HasPrefix(header, "goroutine ") && strings.Contains(header, state) && strings.Contains(frames, stack) {
			found = append(found, trace)
		}
	}
	return found
}

func (g *Group) stripe(key string) *stripe { s, _, _ := g.lock(key); s.mu.Unlock(); return s }

// with calls f with the call of key that can be joined, or nil, under the lock.
func with(g *Group, key string, f func(c *call)) {
	s, _, c := g.lock(key)
	defer s.mu.Unlock()
	f(c)
}

// callersOf returns how many callers of the call of key have not left.
func callersOf(g *Group, key string) (n int) {
	with(g, key, func(c *call) {
		if c != nil {
			n = int(c.callers)
		}
	})
	return n
}

// keysInOneStripe returns n keys whose stripe is that of key.
func keysInOneStripe(g *Group, key string, n int) (keys []string) {
	for i := 0; len(keys) < n; i++ {
		if k := fmt.Sprint("key", i); g.stripe(k) == g.stripe(key) {
			keys = append(keys, k)
		}
	}
	return keys
}

// sound checks a stripe that is locked or known to no one else: that each call is where
// find looks for it, and that it takes no more memory than the calls need.
func (s *stripe) sound(t *testing.T) {
	t.Helper()
	n := 0
	for _, x := range s.slots {
		if x.call == nil {
			check(t, "hash in a free slot", x.hash, 0)
			continue
		}
		n++
		if x.hash != x.call.hash || s.find(x.hash, x.call.group, x.call.key) != x.call {
			t.Fatalf("the call of %q is not found", x.call.key)
		}
	}
	check(t, "number of calls", s.n, n)
	size := len(s.slots)
	if 4*n > 3*size || size&(size-1) != 0 || size > minSlots && 4*n < size {
		t.Fatalf("%d calls in %d slots", n, size)
	}
}

// inFlight checks all stripes, and returns the number of calls in them.
func inFlight(t *testing.T) (n int) {
	t.Helper()
	for i := range stripes {
		s := &stripes[i].stripe
		s.mu.Lock()
		s.sound(t)
		n += s.n
		s.mu.Unlock()
	}
	return n
}

const childEnv = "SINGLEFLIGHT_TEST_CHILD"

// inChild reports whether the test runs in a process that child has started.
func inChild() bool { return os.Getenv(childEnv) != "" }

// child runs this very test again in a process of its own, and returns what that
// printed and its exit code.
func child(t *testing.T, env ...string) (output string, code int) {
	t.Helper()
	if runtime.GOOS == "js" || runtime.GOOS == "wasip1" {
		t.Skipf("%s cannot start processes", runtime.GOOS)
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	name := "^" + strings.ReplaceAll(regexp.QuoteMeta(t.Name()), "/", "$/^") + "$"
	cmd := exec.CommandContext(ctx, exe, "-test.run="+name)
	cmd.Env = append(append(os.Environ(), childEnv+"=1", "GORACE=atexit_sleep_ms=0"), env...)
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return string(out), cmd.ProcessState.ExitCode()
}

// contains checks that every one of wanted is in output.
func contains(t *testing.T, output string, wanted ...string) {
	t.Helper()
	for _, w := range wanted {
		if !strings.Contains(output, w) {
			t.Errorf("%q is not in the output:\n%s", w, output)
		}
	}
}

// A model is what the package promises, as a sequential state machine: a second
// statement of it, which shares nothing with the first but the names of its errors.
// Callers are numbered. Call i is the one that caller i has started.
type model struct {
	callers []modelCaller
	calls   []modelCall // as many
	variant int         // of what fns return
	untied  bool        // no caller's context ends when an fn does
	inTurn  bool        // of two steps at once, the first one comes first
}

type modelCaller struct {
	way     way
	call    int  // that it waits or has waited for
	carries int  // the call whose fn's context its own has the values of
	tied    bool // and is canceled with
	answer  answer
}

type modelCall struct {
	started  bool
	key      int
	joinable bool
	shared   bool // joined, perhaps by one who has left
	ended    bool
	canceled bool // fn's context, if it has one
}

// none is the number of no call.
const none = -1

// A token stands for a value or an error of a call or a caller.
type token struct {
	what string
	n    int
}

func (t token) Error() string { return fmt.Sprintf("the %s of %d", t.what, t.n) }

// ask has caller i ask for key.
func (m *model) ask(i, key int, c modelCaller) {
	x := m.joinable(key)
	switch {
	case c.tied && m.calls[c.carries].canceled:
		m.refuse(i, c, token{"context", i})
		return
	case c.carries != none && x != none && m.waitsFor(x, c.carries):
		m.refuse(i, c, ErrRecursive)
		return
	case x != none:
		m.calls[x].shared = true
	default:
		x = i
		m.calls[x] = modelCall{started: true, key: key, joinable: true}
	}
	c.call, c.answer.how = x, waits
	m.callers[i] = c
}

// refuse answers a caller who neither starts nor joins a call.
func (m *model) refuse(i int, c modelCaller, err error) {
	c.call, c.answer = none, answer{how: didReturn, err: err}
	m.callers[i] = c
}

// joinable returns the call that the next caller with this key joins.
func (m *model) joinable(key int) int {
	return slices.IndexFunc(m.calls, func(c modelCall) bool { return c.joinable && c.key == key })
}

// waiting returns the callers who wait for call x.
func (m *model) waiting(x int) (callers []int) {
	for i, c := range m.callers {
		if c.call == x && c.answer.how == waits {
			callers = append(callers, i)
		}
	}
	return callers
}

// waitsFor reports whether call x is y or waits for it, be it through others.
func (m *model) waitsFor(x, y int) bool {
	return x == y || slices.ContainsFunc(m.callers, func(c modelCaller) bool {
		return c.carries == x && c.answer.how == waits && m.waitsFor(c.call, y)
	})
}

// end ends call x. Who holds a channel gets an answer of its own.
func (m *model) end(x int, a, onChannel answer) {
	call := &m.calls[x]
	call.joinable, call.ended = false, true
	for _, i := range m.waiting(x) {
		c := &m.callers[i]
		c.answer = a
		if c.way == byDoChan {
			c.answer = onChannel
		}
		c.answer.shared = call.shared && c.answer.how == didReturn
	}
	m.cancel(x)
}

// crashes reports whether a step kills the process, because fn panics and there is
// somebody who cannot be told, or nobody who can.
func (m *model) crashes(s step) bool {
	if s.op != opPanic {
		return false
	}
	waiting := m.waiting(s.n)
	return len(waiting) == 0 || slices.ContainsFunc(waiting, func(i int) bool { return m.callers[i].way == byDoChan })
}

// leave has caller i leave its call, if it still waits.
func (m *model) leave(i int) {
	c := &m.callers[i]
	if c.answer.how != waits {
		return
	}
	c.answer = answer{how: didReturn, err: token{"context", i}}
	if len(m.waiting(c.call)) == 0 {
		m.calls[c.call].joinable = false
		m.cancel(c.call)
	}
}

// cancel cancels the context of call x's fn, and with it those that descend from it.
func (m *model) cancel(x int) {
	m.calls[x].canceled = true
	for i, c := range m.callers {
		if c.carries == x && c.tied {
			m.leave(i)
		}
	}
}

func (m *model) forget(key int) {
	if x := m.joinable(key); x != none {
		m.calls[x].joinable = false
	}
}

func (m *model) forgetUnshared(key int) bool {
	if x := m.joinable(key); x != none && m.calls[x].shared {
		return false
	}
	m.forget(key)
	return true
}

// results returns what fn returns in call x: a value, an error, or both. These are
// alike, so a schedule does not say which.
func (m *model) results(x int) (val any, err error) {
	variant := (m.variant + x) % 3
	if variant != 0 {
		val = token{"value", x}
	}
	if variant != 1 {
		err = token{"error", x}
	}
	return val, err
}

// take takes a step.
func (m *model) take(s step) {
	switch s.op {
	case opDo:
		m.ask(s.caller, s.key, modelCaller{way: byDo, carries: none})
	case opDoChan:
		m.ask(s.caller, s.key, modelCaller{way: byDoChan, carries: none})
	case opDoContext:
		m.ask(s.caller, s.key, modelCaller{way: byDoContext, carries: none})
	case opDoContextLate:
		m.refuse(s.caller, modelCaller{way: byDoContext, carries: none}, token{"context", s.caller})
	case opDoContextWithin:
		m.ask(s.caller, s.key, modelCaller{way: byDoContext, carries: s.n, tied: true})
	case opDoContextBeside:
		m.ask(s.caller, s.key, modelCaller{way: byDoContext, carries: s.n})
	case opForgetUnshared:
		a := answer{how: didReturn, val: m.forgetUnshared(s.key)}
		m.callers[s.caller] = modelCaller{way: byForgetUnshared, call: none, carries: none, answer: a}
	case opForget:
		m.forget(s.key)
	case opCancel:
		m.leave(s.n)
	case opReturn:
		val, err := m.results(s.n)
		a := answer{how: didReturn, val: val, err: err}
		m.end(s.n, a, a)
	case opPanic:
		m.end(s.n, answer{how: didPanic, val: token{"panic", s.n}}, answer{})
	case opExit:
		m.end(s.n, answer{how: didExit}, answer{how: didReturn, err: ErrGoexit})
	}
}

// after returns a copy of m that has taken these steps.
func (m *model) after(steps ...step) *model {
	m = &model{slices.Clone(m.callers), slices.Clone(m.calls), m.variant, m.untied, m.inTurn}
	for _, s := range steps {
		for len(m.callers) <= s.caller {
			m.callers = append(m.callers, modelCaller{call: none, carries: none})
			m.calls = append(m.calls, modelCall{})
		}
	}
	for _, s := range steps {
		m.take(s)
	}
	return m
}

// A step is one thing that is done to the Groups.
type step struct {
	op     op
	key    int // that a caller asks for, or to forget
	n      int // the call to end, or that a caller's context carries; the caller to cancel
	caller int // the number of the caller who comes, or none
}

type op string

const (
	opDo              op = "Do"
	opDoChan          op = "DoChan"
	opDoContext       op = "DoContext"
	opDoContextLate   op = "DoContext too late" // with a context that is done
	opDoContextWithin op = "DoContext within"   // with one that descends from that of call n's fn
	opDoContextBeside op = "DoContext beside"   // with one that only has its values
	opForgetUnshared  op = "ForgetUnshared"
	opForget          op = "Forget"
	opCancel          op = "cancel"
	opReturn          op = "return"
	opPanic           op = "panic"
	opExit            op = "exit"
)

// ends reports whether a step ends call n.
func (s step) ends() bool { return s.op == opReturn || s.op == opPanic || s.op == opExit }

func (s step) String() string {
	return fmt.Sprintf("%d: %s(key %d, of %d)", s.caller, s.op, s.key, s.n)
}

// next lists the steps that can follow, with so many keys at most. Unless all are
// wanted, steps that are alike are listed once: by callers who wait for the same call,
// having joined it in the same way, or with contexts that only differ in whether they
// end when an fn does. Keys that nobody has asked for are always alike.
func (m *model) next(keys int, all bool) (steps []step) {
	seen := 0
	for _, c := range m.calls {
		if c.started {
			seen = max(seen, c.key+1)
		}
	}
	i := len(m.callers)
	for key := range min(keys, seen+1) {
		for _, op := range []op{opDo, opDoChan, opDoContext, opDoContextLate} {
			if op != opDoContextLate || !m.inTurn { // which takes no mutex
				steps = append(steps, step{op, key, 0, i})
			}
		}
		for x, c := range m.calls {
			if !c.started || m.callers[x].way != byDoContext {
				continue
			}
			if !m.untied && (all || !c.canceled) {
				steps = append(steps, step{opDoContextWithin, key, x, i})
			}
			if m.untied || all {
				steps = append(steps, step{opDoContextBeside, key, x, i})
			}
		}
		steps = append(steps, step{opForgetUnshared, key, 0, i}, step{opForget, key, 0, none})
	}
	for x, c := range m.calls {
		if c.started && !c.ended {
			steps = append(steps, step{opReturn, 0, x, none}, step{opPanic, 0, x, none}, step{opExit, 0, x, none})
		}
	}
	type role struct {
		modelCaller
		starts bool
	}
	var listed []role
	for i, c := range m.callers {
		if c.way != byDoContext || !all && c.answer.how != waits {
			continue
		}
		r := role{c, c.call == i}
		if all || !slices.Contains(listed, r) {
			steps = append(steps, step{opCancel, 0, i, none})
			listed = append(listed, r)
		}
	}
	return steps
}

// extend visits all schedules that begin with s, up to a length. It tells of those that
// cannot go on, since they are that long, since the last step kills the process, or
// since that is only a caller who leaves no trace. m is the state before the last step.
func (m *model) extend(s []step, length, keys int, visit func(m *model, s []step, ends bool)) {
	last := s[len(s)-1]
	ends := len(s) == length || m.crashes(last) || last.op == opDoContextLate
	visit(m, s, ends)
	if ends {
		return
	}
	m = m.after(last)
	for _, step := range m.next(keys, false) {
		m.extend(append(s, step), length, keys, visit)
	}
}

// A player takes steps with Groups and with the model. It lives in a synctest bubble,
// so it knows when steps have had all their effects: when all goroutines are blocked.
type player struct {
	t       *testing.T
	places  []place
	models  []*model // all that agree with what was seen
	taken   [][]step
	mu      sync.Mutex // guards the callers' answers, and what was run of theirs
	callers []*playedCaller
}

type playedCaller struct {
	cancel context.CancelFunc
	runs   int             // of its own fn
	ctx    context.Context // that fn was given
	end    chan work       // how fn is to end
	answer answer
	raised any   // what it has recovered
	over   []int // the calls whose fn's context was canceled when the answer came
}

// A playedContext differs from those of other callers in its error and a value, and
// from that of fn in its deadline.
type playedContext struct {
	context.Context
	caller int
}

type playedKey struct{}

func (c playedContext) Deadline() (time.Time, bool) { return time.Time{}, true }

func (c playedContext) Err() error {
	if c.Context.Err() == nil {
		return nil
	}
	return token{"context", c.caller}
}

func (c playedContext) Value(key any) any {
	if key == (playedKey{}) {
		return c.caller
	}
	return c.Context.Value(key)
}

// A place is what is a key to the model.
type place struct {
	group *Group
	key   string
}

// newPlaces returns three places: two keys of a Group, and the first of them in another.
// They share a stripe, so that their calls are next to each other, and use the same
// memory again.
func newPlaces() []place {
	g := new(Group)
	places := []place{{g, key}, {g, keysInOneStripe(g, key, 1)[0]}, {new(Group), key}}
	for places[2].group.stripe(key) != g.stripe(key) {
		places[2].group = new(Group)
	}
	return places
}

// play has do play in a bubble. Then it ends all calls that are left, and cancels all
// contexts.
func play(t *testing.T, places []place, m *model, do func(p *player)) {
	synctest.Test(t, func(t *testing.T) {
		p := &player{t: t, places: places, models: []*model{m}}
		do(p)
		for x, c := range p.models[0].calls {
			if c.started && !c.ended {
				p.take(step{opReturn, 0, x, none})
			}
		}
		for i, c := range p.models[0].callers {
			if c.way == byDoContext {
				p.take(step{opCancel, 0, i, none})
			}
		}
		for key, at := range places {
			with(at.group, at.key, func(c *call) {
				if c != nil {
					t.Fatalf("after %v: the table has a call of key %d", p.taken, key)
				}
			})
		}
	})
}

// take takes steps at once: in any order, as far as the package can tell. Then it
// compares all that can be seen.
func (p *player) take(steps ...step) {
	p.taken = append(p.taken, steps)
	var models []*model
	for _, m := range p.models {
		models = m.tryAfter(models, steps...)
		if len(steps) == 2 && !m.inTurn {
			models = m.tryAfter(models, steps[1], steps[0])
		}
	}
	m := p.models[0].after(steps...)
	for range len(m.callers) - len(p.callers) {
		p.callers = append(p.callers, &playedCaller{end: make(chan work), answer: answer{how: waits}})
	}
	inTurn := m.inTurn && len(steps) == 2
	stripe := p.places[0].group.stripe(p.places[0].key)
	if inTurn {
		stripe.mu.Lock()
	}
	for i, s := range steps {
		p.start(m, s)
		if inTurn {
			eventually(p.t, "a goroutine at the mutex", func() bool { return len(goroutines("[sync.Mutex.Lock", "singleflight.")) > i })
		}
	}
	if inTurn {
		stripe.mu.Unlock()
	}
	synctest.Wait()
	p.models = nil
	var errs []error
	for _, m := range models {
		if err := p.compare(m); err != nil {
			errs = append(errs, err)
		} else {
			p.models = append(p.models, m)
		}
	}
	if p.models == nil {
		p.t.Fatalf("after %v:\n%v\n(where no reason is given, the process should have died)", p.taken, errors.Join(errs...))
	}
}

// tryAfter appends m.after(steps...) to models, unless one of the steps kills the
// process or one of the models is the same.
func (m *model) tryAfter(models []*model, steps ...step) []*model {
	for i, s := range steps {
		if m.after(steps[:i]...).crashes(s) {
			return models
		}
	}
	after := m.after(steps...)
	if slices.ContainsFunc(models, func(m *model) bool {
		return slices.Equal(m.callers, after.callers) && slices.Equal(m.calls, after.calls)
	}) {
		return models
	}
	return append(models, after)
}

// start starts a step, of which it does not see the end.
func (p *player) start(m *model, s step) {
	at := p.places[s.key]
	switch s.op {
	case opForgetUnshared:
		go func() {
			ok := at.group.ForgetUnshared(at.key)
			p.mu.Lock()
			defer p.mu.Unlock()
			p.callers[s.caller].answer = result(ok, nil, false)
		}()
	case opForget:
		go at.group.Forget(at.key)
	case opCancel:
		p.callers[s.n].cancel()
	case opReturn:
		val, err := m.results(s.n)
		p.callers[s.n].end <- returns(val, err)
	case opPanic:
		p.callers[s.n].end <- panics(token{"panic", s.n})
	case opExit:
		p.callers[s.n].end <- exits
	default:
		p.ask(s, at)
	}
}

// ask has a caller ask.
func (p *player) ask(s step, at place) {
	c := p.callers[s.caller]
	by, parent := byDoContext, context.Background()
	switch s.op {
	case opDo:
		by = byDo
	case opDoChan:
		by = byDoChan
	case opDoContextWithin:
		parent = p.callers[s.n].ctx
	case opDoContextBeside:
		parent = context.WithoutCancel(p.callers[s.n].ctx)
	}
	parent, c.cancel = context.WithCancel(parent)
	if s.op == opDoContextLate {
		c.cancel()
	}
	go p.wait(c, func() (any, error, bool) {
		return by.do(playedContext{parent, s.caller}, at.group, at.key, func(ctx context.Context) (any, error) { return p.fn(c, ctx) })
	})
}

// fn is what c asks with. It ends as it is told to.
func (p *player) fn(c *playedCaller, ctx context.Context) (any, error) {
	p.mu.Lock()
	c.runs++
	c.ctx = ctx
	p.mu.Unlock()
	return (<-c.end)(ctx)
}

// wait waits for the answer to c, and notes it.
func (p *player) wait(c *playedCaller, do func() (any, error, bool)) {
	a := answer{how: didExit}
	defer func() {
		c.raised = recover()
		if e, ok := c.raised.(*panicError); ok {
			a = answer{how: didPanic, val: e.value}
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		c.answer = a
		for x, c2 := range p.callers {
			if c2.ctx != nil && c2.ctx.Err() != nil {
				c.over = append(c.over, x)
			}
		}
	}()
	a.val, a.err, a.shared = do()
	a.how = didReturn
}

// compare compares all that can be seen with a model.
func (p *player) compare(m *model) error {
	raised := make([]any, len(m.calls))
	for i, want := range m.callers {
		got := p.callers[i]
		if got.answer != want.answer {
			return fmt.Errorf("%d was answered %+v, want %+v", i, got.answer, want.answer)
		}
		if got.runs > 1 || (got.runs == 1) != m.calls[i].started {
			return fmt.Errorf("%d: fn has run %d times, want it once: %v", i, got.runs, m.calls[i].started)
		}
		if got.raised == nil {
			continue
		}
		if raised[want.call] != nil && got.raised != raised[want.call] {
			return fmt.Errorf("%d recovered another value than those before", i)
		}
		raised[want.call] = got.raised
	}
	for x := range p.callers {
		if m.calls[x].started && m.callers[x].way == byDoContext {
			if err := p.compareContext(m, x); err != nil {
				return err
			}
		}
	}
	return nil
}

// compareContext compares the context of call x's fn with a model.
func (p *player) compareContext(m *model, x int) error {
	ctx, want := p.callers[x].ctx, m.calls[x]
	var wantErr error
	if want.canceled {
		wantErr = context.Canceled
	}
	if err := ctx.Err(); err != wantErr {
		return fmt.Errorf("%d: fn's context has the error %v, want %v", x, err, wantErr)
	}
	if _, ok := ctx.Deadline(); ok || ctx.Value(playedKey{}) != x {
		return fmt.Errorf("%d: fn's context has a deadline, or other values than its starter's", x)
	}
	seen := false // by one who has left
	for i, c := range m.callers {
		switch over := slices.Contains(p.callers[i].over, x); {
		case c.call != x || c.answer.how == waits:
		case c.answer.err == token{"context", i}:
			seen = seen || over
		case !over:
			return fmt.Errorf("%d was answered before the context of %d's fn was canceled", i, x)
		}
	}
	if want.canceled && !want.ended && !seen {
		return fmt.Errorf("%d: all callers have left before fn's context was canceled", x)
	}
	return nil
}

// schedules plays all schedules of a length, which m begins, but for those that can kill
// the process. If paired, their last two steps are taken at once.
func schedules(t *testing.T, m model, length, keys int, paired bool, atLeast int64) {
	var played atomic.Int64
	visit := func(t *testing.T, places []place, m model, s []step, last ...step) {
		m.variant = int(played.Add(1))
		play(t, places, &m, func(p *player) {
			for _, step := range s {
				p.take(step)
			}
			if last != nil {
				p.take(last...)
			}
		})
	}
	t.Run("from", func(t *testing.T) {
		for _, first := range m.next(keys, false) {
			t.Run(first.String(), func(t *testing.T) {
				if !m.inTurn {
					t.Parallel()
				}
				places := newPlaces()
				m.extend([]step{first}, length, keys, func(before *model, s []step, ends bool) {
					switch last := s[len(s)-1]; {
					case before.crashes(last):
					case paired && len(s) <= length-2:
						before.after(last).pairs(keys, func(a, b step) { visit(t, places, m, s, a, b) })
					case !paired && ends:
						visit(t, places, m, s)
					}
				})
			})
		}
	})
	t.Logf("%d schedules of up to %d steps", played.Load(), length)
	if n := played.Load(); n < atLeast {
		t.Errorf("%d schedules, want at least %d", n, atLeast)
	}
}

// pairs visits the pairs of steps that can follow together.
func (m *model) pairs(keys int, visit func(a, b step)) {
	steps := m.next(keys, false)
	for _, a := range steps {
		for _, b := range steps {
			if b, ok := a.with(b); ok && !m.mayCrash(a, b) {
				visit(a, b)
			}
		}
	}
}

// with returns b as it has to be if it comes together with a, if it can.
func (a step) with(b step) (step, bool) {
	if a.caller != none && b.caller != none {
		b.caller++
	}
	return b, a != b && !(a.ends() && b.ends() && a.n == b.n)
}

// mayCrash reports whether steps taken at once may kill the process.
func (m *model) mayCrash(steps ...step) bool {
	a, b := steps[0], steps[len(steps)-1]
	return m.crashes(a) || len(steps) == 2 && (m.after(a).crashes(b) || !m.inTurn && (m.crashes(b) || m.after(b).crashes(a)))
}

func TestEverySchedule(t *testing.T) {
	if testing.Short() || raceEnabled {
		schedules(t, model{}, 4, 2, false, 10_000)
	} else {
		schedules(t, model{}, 5, 2, false, 100_000)
	}
}

// TestEveryPair takes two steps at once: it must be as if one of them had been first.
// That would be too much to ask if callers left because fns had ended: each of these
// leaves in a step of its own.
func TestEveryPair(t *testing.T) { schedules(t, model{untied: true}, 4, 2, true, 10_000) }

// TestEveryPairInTurn is for what happens within a few instructions. Both steps bring a
// goroutine to the stripe's mutex, which lets them in first come, first served.
func TestEveryPairInTurn(t *testing.T) {
	schedules(t, model{untied: true, inTurn: true}, 4, 1, true, 1000)
}

// choose has bytes choose steps, some of them two at once, but none that may crash.
func (p *player) choose(b []byte) {
	for len(b) > 1 {
		steps := []step{p.step(b[0], b[1])}
		if p.models[0].untied && b[0] >= 0x80 && len(b) > 3 {
			if s, ok := steps[0].with(p.step(b[2], b[3])); ok {
				steps = append(steps, s)
			}
		}
		b = b[2*len(steps):]
		if !slices.ContainsFunc(p.models, func(m *model) bool { return m.mayCrash(steps...) }) {
			p.take(steps...)
		}
	}
}

// step returns the step that two bytes stand for: what is done, and to what.
func (p *player) step(what, which byte) step {
	all := p.models[0].next(len(p.places), true)
	var ops []op
	for _, s := range all {
		if !slices.Contains(ops, s.op) {
			ops = append(ops, s.op)
		}
	}
	op := ops[int(what&0x3f)%len(ops)]
	all = slices.DeleteFunc(all, func(s step) bool { return s.op != op })
	return all[int(which)%len(all)]
}

// A history is what callers record that use Groups all at the same time, by a logical
// clock: if it has ticked between two things, it is known which was first.
type history struct {
	clock  atomic.Int64
	groups [2]Group

	keys    int        // of each habit
	mu      sync.Mutex // guards the rest
	callers []*caller
	runs    []*run
	forgets []forget
}

type caller struct {
	answer
	way      way
	key      int
	ctx      context.Context // whose error is a token of number
	number   int
	within   *run // the fn that asks
	mayLeave bool
	from, to int64
	early    bool // the answer came before fn's context was canceled
}

// A run is an execution of fn. It stands for itself as a value, as an error, and as what
// fn panics with.
type run struct {
	by       *caller
	ctx      context.Context
	answer         // what fn comes to
	canceled bool  // ctx was, when fn ended
	from, to int64 // from fn's start to before its end

	answered     []*caller
	joined, told int64 // when the last of these asked, and the first had its answer
	raised       any   // what they recovered
}

func (e *run) Error() string {
	return fmt.Sprintf("run of key %d, started by %d, %d to %d", e.by.key, e.by.number, e.from, e.to)
}

// A forget is a Forget, or a ForgetUnshared that reported true.
type forget struct {
	key      int
	from, to int64
}

func (h *history) tick() int64 { return h.clock.Add(1) }

// What is done with a key: a panic kills the process if a caller holds a channel, and
// what is neither forgotten nor left must not overlap at all.
const (
	steady  = iota // no Forget, and no caller leaves
	exiting        // Goexit
	panicky        // panics, and no DoChan
	habits
)

// place returns the Group and the key that a number stands for.
func (h *history) place(key int) (*Group, string) { return &h.groups[key%2], fmt.Sprint(key / 2) }

// work takes n steps, one after the other.
func (h *history) work(seed uint64, n int) {
	r := rand.New(rand.NewPCG(seed, 0))
	for range n {
		key := r.IntN(h.keys * habits)
		if key%habits == steady || r.IntN(20) > 0 {
			h.call(r.Uint64(), key, nil)
			continue
		}
		g, name := h.place(key)
		f, ok := forget{key: key, from: h.tick()}, true
		if r.IntN(2) == 0 {
			g.Forget(name)
		} else {
			ok = g.ForgetUnshared(name)
		}
		f.to = h.tick()
		h.mu.Lock()
		if ok {
			h.forgets = append(h.forgets, f)
		}
		h.mu.Unlock()
	}
}

// call has a caller ask for key, on its own goroutine, since that may have to exit.
func (h *history) call(seed uint64, key int, within *run) {
	r := rand.New(rand.NewPCG(seed, 1))
	c := &caller{way: byDoContext, key: key, number: int(h.tick()), within: within}
	parent := context.Background()
	switch n := r.IntN(4); {
	case within != nil:
		parent, c.mayLeave = within.ctx, true
	case n == 0:
		c.way = byDo
	case n == 1 && key%habits != panicky:
		c.way = byDoChan
	default:
		c.mayLeave = key%habits != steady && r.IntN(2) == 0
	}
	parent, cancel := context.WithCancel(parent)
	defer cancel()
	c.ctx = playedContext{parent, c.number}
	g, name := h.place(key)
	fn := h.fn(r.Uint64(), c)
	done := make(chan struct{})
	go func() {
		c.how = didExit
		defer close(done)
		defer func() {
			if v := recover(); v != nil {
				c.how, c.val = didPanic, v
			}
			c.to = h.tick()
			if e := c.ranBy(); e != nil && e.ctx != nil {
				c.early = e.ctx.Err() == nil
			}
			h.mu.Lock()
			defer h.mu.Unlock()
			h.callers = append(h.callers, c)
		}()
		c.from = h.tick()
		c.val, c.err, c.shared = c.way.do(c.ctx, g, name, fn)
		c.how = didReturn
	}()
	if c.mayLeave && (within == nil || r.IntN(2) == 0) {
		for range r.IntN(40) {
			runtime.Gosched()
		}
		cancel()
	}
	<-done
}

// ranBy returns the run that answered c, if the answer says.
func (c *caller) ranBy() *run {
	val := c.val
	if p, ok := val.(*panicError); ok && c.how == didPanic {
		val = p.value
	}
	if e, ok := val.(*run); ok {
		return e
	}
	e, _ := c.err.(*run)
	return e
}

// left reports whether c was answered with the error of its own context.
func (c *caller) left() bool { return c.how == didReturn && c.err == token{"context", c.number} }

// fn returns what c passes for fn.
func (h *history) fn(seed uint64, c *caller) work {
	return func(ctx context.Context) (any, error) {
		r := rand.New(rand.NewPCG(seed, 2))
		e := &run{by: c, ctx: ctx, from: h.tick()}
		patience := r.IntN(4 * h.keys)
		if c.mayLeave && r.IntN(4) == 0 {
			patience = 1000
		}
		for ; patience > 0 && (ctx == nil || ctx.Err() == nil); patience-- {
			runtime.Gosched()
		}
		if ctx != nil && r.IntN(8) == 0 {
			// Not for a steady key: fn's context may end.
			h.call(r.Uint64(), r.IntN(h.keys)*habits+1+r.IntN(habits-1), e)
		}
		e.how = didReturn
		switch n := r.IntN(4); {
		case n == 0 && c.key%habits == exiting:
			e.how = didExit
		case n == 0 && c.key%habits == panicky && !c.mayLeave:
			e.how = didPanic
		case n == 1:
			e.err = e
		case n == 2:
			e.val, e.err = e, e
		default:
			e.val = e
		}
		e.to = h.tick()
		e.canceled = ctx != nil && ctx.Err() != nil
		h.mu.Lock()
		h.runs = append(h.runs, e)
		h.mu.Unlock()
		switch e.how {
		case didExit:
			runtime.Goexit()
		case didPanic:
			panic(e)
		}
		return e.val, e.err
	}
}

const checked = `checked after each round:
- every caller was answered, and no goroutine was left
- values, errors and panics were those of a run of that key, which had ended, and whose
  context had been canceled; a caller whose own fn ran was answered by that run
- shared was the same for all callers of a run, and true if there were several
- no run was joined after it had answered a caller, or after it had been forgotten
- runs of a key that is never forgotten or left did not overlap
- no caller got the results of a run whose context was canceled before it ended
- only callers within an fn got ErrRecursive
and in the end that the heap had not grown by more than 1 MiB since the first round`

// check checks a history that is complete.
func (h *history) check(t *testing.T) {
	ran := make(map[*caller]*run)
	for _, e := range h.runs {
		check(t, "runs of one fn", ran[e.by], nil)
		ran[e.by], e.joined, e.told = e, e.by.from, math.MaxInt64
	}
	for _, c := range h.callers {
		own := ran[c]
		e := cmp.Or(c.ranBy(), own)
		switch {
		case c.left():
			if !c.mayLeave || c.val != nil || c.shared {
				t.Errorf("%+v left", c)
			}
		case c.err == ErrRecursive:
			if c.within == nil || own != nil || c.val != nil || c.shared {
				t.Errorf("%+v was refused", c)
			}
		case e == nil: // another's fn, which exited
			if c.key%habits != exiting || c.how != didExit && (c.val != nil || c.err != ErrGoexit || !c.shared) {
				t.Errorf("%+v", c)
			}
		default:
			e.answered = append(e.answered, c)
			e.joined, e.told = max(e.joined, c.from), min(e.told, c.to)
			want := e.answer
			want.shared = c.shared
			if want.how == didPanic {
				e.raised = cmp.Or(e.raised, c.val)
				want.val, want.err = e.raised, nil
			} else if want.how == didExit && c.way == byDoChan {
				want.how, want.err = didReturn, ErrGoexit
			}
			if c.answer != want || e.by.key != c.key || own != nil && own != e || c.to < e.to || c.early {
				t.Errorf("%+v was answered by %v: %+v", c, e, e.answer)
			}
		}
	}
	slices.SortFunc(h.runs, func(a, b *run) int { return cmp.Compare(a.from, b.from) })
	before := make(map[int]*run)
	for _, e := range h.runs {
		if e.joined > e.told {
			t.Errorf("%v was joined when it had answered", e)
		}
		if e.canceled && len(e.answered) > 0 {
			t.Errorf("%v was canceled, but answered %+v", e, e.answered[0])
		}
		for _, c := range e.answered {
			if c.how == didReturn && (c.shared != e.answered[0].shared || len(e.answered) > 1 && !c.shared) && e.answered[0].how == didReturn {
				t.Errorf("%v: %d callers, shared for some only", e, len(e.answered))
			}
			for _, f := range h.forgets {
				if f.key == c.key && e.from < f.from && f.to < c.from {
					t.Errorf("%v was joined by %+v after %+v", e, c, f)
				}
			}
		}
		if b := before[e.by.key]; e.by.key%habits == steady && b != nil && b.to > e.from {
			t.Errorf("%v and %v overlap", b, e)
		}
		before[e.by.key] = e
	}
}

var soak = flag.Duration("soak", 0, "how long TestHistories goes on (default as many callers as it takes a second or two)")

// TestHistories has callers of all kinds use a few keys at the same time, in rounds.
// For longer: go test -run '^TestHistories$' -count 1 -timeout 0 -v . -soak 10m
func TestHistories(t *testing.T) {
	procs := []int{1, 2, 4, 16}
	callers := 60_000
	if testing.Short() || raceEnabled {
		callers = 15_000
	}
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(0))
	rounds, n := 0, make(map[string]int)
	var first, last runtime.MemStats
	start := time.Now()
	report := start
	for n["callers"] < callers || time.Since(start) < *soak {
		runtime.GOMAXPROCS(procs[rounds%len(procs)])
		h := &history{keys: 1 + rounds/len(procs)%2*5}
		var wg sync.WaitGroup
		for worker := range 16 {
			wg.Go(func() { h.work(uint64(rounds*16+worker), 100) })
		}
		wg.Wait()
		eventually(t, "the end of all that was started", func() bool {
			return inFlight(t) == 0 && len(goroutines("", ".doCall(")) == 0
		})
		h.mu.Lock() // after fns that no caller waited for any more
		h.check(t)
		h.mu.Unlock()
		rounds++
		n["callers"] += len(h.callers)
		n["runs"] += len(h.runs)
		n["forgets"] += len(h.forgets)
		for _, c := range h.callers {
			for kind, is := range map[string]bool{
				"shared": c.shared, "left": c.left(), "panicked": c.how == didPanic, "exited": c.how == didExit, "recursive": c.err == ErrRecursive,
			} {
				if is {
					n[kind]++
				}
			}
		}
		if t.Failed() {
			break
		}
		if rounds == 1 {
			h = nil
			runtime.GC()
			runtime.ReadMemStats(&first)
		}
		if *soak > 0 && time.Since(report) > 10*time.Second {
			report = time.Now()
			t.Logf("%v: %d rounds, %v", time.Since(start).Round(time.Second), rounds, n)
		}
	}
	runtime.GC()
	runtime.ReadMemStats(&last)
	t.Logf("%v: %d rounds, %v; heap %d KiB, after the first round %d KiB\n%s",
		time.Since(start).Round(time.Millisecond), rounds, n, last.HeapAlloc>>10, first.HeapAlloc>>10, checked)
	if grown := int64(last.HeapAlloc) - int64(first.HeapAlloc); grown > 1<<20 {
		t.Errorf("%d bytes of heap more than after the first round", grown)
	}
}

// The rest is what neither a schedule nor a history shows.

// The goroutine that fn runs on, and the channels.

func TestFnRunsOnItsLeadersOrANewGoroutine(t *testing.T) {
	for by, frame := range map[way]string{byDo: ".(*Group).Do(", byDoChan: ".(*Group).DoChan in goroutine", byDoContext: ".(*Group).DoContext in goroutine"} {
		synctest.Test(t, func(t *testing.T) {
			var g Group
			j := newJob()
			j.lead(t, by, t.Context(), &g, key)
			for _, by := range ways {
				join(t, by, t.Context(), &g, key)
			}
			synctest.Wait()
			traces := goroutines("", ".doCall(")
			check(t, "goroutines for one call", len(traces), 1)
			contains(t, traces[0], frame)
			j.end <- returns(1, nil)
		})
	}
}

func TestChannelsGetOneResultInOrderAndStayOpen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g Group
		j := newJob()
		chans := []<-chan Result{g.DoChan(key, work(j.fn).plain())}
		for range 9 {
			chans = append(chans, g.DoChan(key, unwanted(t).plain()))
		}
		// A channel without room holds up those behind it, but no other caller.
		full := make(chan Result)
		with(&g, key, func(c *call) { c.readers = slices.Insert(c.readers, 5, chan<- Result(full)) })
		j.end <- returns(1, io.EOF)
		synctest.Wait()
		for i, ch := range chans {
			check(t, "capacity", cap(ch), 1)
			check(t, fmt.Sprintf("results in channel %d", i), len(ch) == 1, i < 5)
		}
		for _, k := range keysInOneStripe(&g, key, 2) {
			answered(t, result(k, nil, false), ask(byDo, nil, &g, k, returns(k, nil)))
		}
		answered(t, result(2, nil, false), ask(byDo, nil, &g, key, returns(2, nil)))
		check(t, "held up", <-full, Result{1, io.EOF, true})
		synctest.Wait()
		for _, ch := range chans {
			check(t, "result", <-ch, Result{1, io.EOF, true})
			select {
			case r, ok := <-ch:
				t.Errorf("received %v, %t after the result", r, ok)
			default:
			}
		}
	})
}

// Bad input.

func TestInvalidArgumentsPanicInTheirCallerAlone(t *testing.T) {
	header := struct {
		data *byte
		n    int
	}{nil, 16}
	torn := *(*string)(unsafe.Pointer(&header))
	synctest.Test(t, func(t *testing.T) {
		var g Group
		var none *Group
		answered(t, result(1, nil, false), ask(byDoContext, t.Context(), &g, "outer", func(ctx context.Context) (any, error) {
			for name, do := range map[string]func(){
				"Do of a torn key":               func() { g.Do(torn, nil) },
				"DoChan of a torn key":           func() { g.DoChan(torn, nil) },
				"Forget of a torn key":           func() { g.Forget(torn) },
				"ForgetUnshared of a torn key":   func() { g.ForgetUnshared(torn) },
				"DoContext of a torn key":        func() { g.DoContext(context.Background(), torn, nil) },
				"nested DoContext of a torn key": func() { g.DoContext(ctx, torn, nil) },
				"Do of a nil Group":              func() { none.Do(key, nil) },
				"nested DoContext of no Group":   func() { none.DoContext(ctx, key, nil) },
			} {
				a := <-attempt(func() (any, error, bool) { do(); return nil, nil, false })
				if _, ok := a.val.(runtime.Error); !ok {
					t.Errorf("%s: %+v", name, a)
				}
			}
			answered(t, answer{how: didPanic, val: "singleflight: nil context"}, ask(byDoContext, noContext, &g, "outer", unwanted(t)))
			check(t, "calls in flight", inFlight(t), 1) // takes every lock
			check(t, "outer is not shared", g.ForgetUnshared("outer"), true)
			v, err, _ := g.DoContext(ctx, "inner", returns(1, nil))
			return v, err
		}))
	})
}

func TestNilFnPanicsUnlessItsCallerJoins(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g Group
		for name, do := range map[string]func() (any, error, bool){
			"Do":              func() (any, error, bool) { return g.Do(key, nil) },
			"DoContext":       func() (any, error, bool) { return g.DoContext(t.Context(), key, nil) },
			"typed Do":        func() (any, error, bool) { return Do[any](&g, key, nil) },
			"typed DoContext": func() (any, error, bool) { return DoContext[any](t.Context(), &g, key, nil) },
		} {
			p, _ := (<-attempt(do)).val.(*panicError)
			if _, ok := p.Unwrap().(runtime.Error); !ok {
				t.Errorf("%s panicked with %v", name, p)
			}
			j := newJob()
			leading := j.lead(t, byDo, nil, &g, key)
			joining := attempt(do)
			waiting(t, joining)
			j.end <- returns(1, nil)
			answered(t, result(1, nil, true), leading, joining)
		}
	})
}

// Data races and the memory model: these are for the race detector, but also check
// what is read.

func TestFnSynchronizesBeforeItsAnswers(t *testing.T) {
	for _, by := range ways {
		for how, end := range map[string]work{didReturn: returns(1, nil), didPanic: panics(1), didExit: exits} {
			if by == byDoChan && how == didPanic {
				continue // crashes
			}
			synctest.Test(t, func(t *testing.T) {
				var g Group
				var n int // written by fn alone
				j := newJob()
				read := func(by way, fn work) {
					go func() {
						defer func() {
							recover()
							check(t, "what a caller reads", n, 1)
						}()
						by.do(t.Context(), &g, key, fn)
					}()
				}
				read(by, j.fn)
				synctest.Wait()
				read(byDo, unwanted(t))
				read(byDoContext, unwanted(t))
				if how != didPanic {
					read(byDoChan, unwanted(t))
				}
				synctest.Wait()
				j.end <- func(ctx context.Context) (any, error) {
					n = 1
					return end(ctx)
				}
				synctest.Wait()
			})
		}
	}
}

func TestCallsOfAKeyAreOrdered(t *testing.T) {
	var g Group
	var n int // written by every fn, with no other order between them
	var wg sync.WaitGroup
	var led [6]int
	for i := range led {
		wg.Go(func() {
			for range 1000 {
				ways[i%3].do(t.Context(), &g, key, func(context.Context) (any, error) {
					n++
					led[i]++
					return nil, nil
				})
			}
		})
	}
	wg.Wait()
	check(t, "runs", n, led[0]+led[1]+led[2]+led[3]+led[4]+led[5])
}

func TestMakingRoomSynchronizesBeforeTheNextCall(t *testing.T) {
	for name, makeRoom := range map[string]func(g *Group, leave func()){
		"Forget":         func(g *Group, _ func()) { g.Forget(key) },
		"ForgetUnshared": func(g *Group, _ func()) { g.ForgetUnshared(key) },
		"leaving":        func(_ *Group, leave func()) { leave() },
	} {
		var g Group
		var n int
		j := newJob()
		leave, cancel := context.WithCancel(t.Context())
		defer cancel()
		old := j.lead(t, byDoContext, leave, &g, key)
		step := func() {
			n = 1
			makeRoom(&g, cancel)
		}
		go step()
		eventually(t, name, func() bool {
			gone := true
			with(&g, key, func(c *call) { gone = c == nil })
			return gone
		})
		v, _, _ := g.Do(key, func() (any, error) { return n, nil })
		check(t, "what the call after "+name+" reads", v, any(1))
		j.end <- returns(nil, nil)
		<-old
	}
}

// What the collector frees.

// pieces are the names of what calls were given and made, and what nothing may retain
// afterwards.
type pieces struct{ left sync.Map }

// A piece has a pointer in it, so that it shares no memory with others.
type piece struct{ name string }

func (p *piece) Error() string { return p.name }

// watch has the name of what p points to among the pieces until it is freed.
func watch[T any](ps *pieces, p *T, name string) *T {
	ps.left.Store(name, true)
	runtime.AddCleanup(p, func(name string) { ps.left.Delete(name) }, name)
	return p
}

func (ps *pieces) piece(name string) *piece { return watch(ps, &piece{name}, name) }

func (ps *pieces) names() (names []string) {
	ps.left.Range(func(name, _ any) bool {
		names = append(names, name.(string))
		return true
	})
	return names
}

// fn returns an fn that retains a piece of its own.
func (ps *pieces) fn(name string, fn work) work {
	p := ps.piece(name)
	return func(ctx context.Context) (any, error) {
		defer runtime.KeepAlive(p)
		return fn(ctx)
	}
}

func (ps *pieces) freed(t *testing.T) {
	t.Helper()
	for range 100 {
		runtime.GC()
		runtime.Gosched()
		if len(ps.names()) == 0 {
			return
		}
	}
	t.Errorf("still reachable: %q", ps.names())
}

// TestNothingOfAnEndedCallIsRetained goes through the ways in which a call can live and
// end. The Groups, and the contexts of all fns, are retained.
func TestNothingOfAnEndedCallIsRetained(t *testing.T) {
	var ps pieces
	var retained []any
	for _, by := range ways {
		for _, joined := range []bool{false, true} {
			for _, forgotten := range []bool{false, true} {
				for how, end := range map[string]func(val *piece) work{
					didReturn: func(val *piece) work { return returns(val, val) },
					didPanic:  func(val *piece) work { return panics(val) },
					didExit:   func(*piece) work { return exits },
				} {
					if by == byDoChan && how == didPanic {
						continue // crashes
					}
					synctest.Test(t, func(t *testing.T) {
						name := fmt.Sprintf("%s %s joined=%t forgotten=%t: ", by, how, joined, forgotten)
						g, j := new(Group), newJob()
						k := strings.Repeat(name, 64)
						watch(&ps, unsafe.StringData(k), name+"key")
						s := g.stripe(k)
						s.spare = nil
						ctx := context.WithValue(t.Context(), playedKey{}, name)
						callers := []<-chan answer{ask(by, ctx, g, k, ps.fn(name+"fn", j.fn))}
						synctest.Wait()
						if joined {
							callers = append(callers, ask(byDo, nil, g, k, ps.fn(name+"fn of Do", nil)))
							if how != didPanic {
								callers = append(callers, ask(byDoChan, nil, g, k, ps.fn(name+"fn of DoChan", nil)))
							}
							leaving, cancel := context.WithCancel(context.WithValue(ctx, playedKey{}, ps.piece(name+"leaver's value")))
							leaver := ask(byDoContext, leaving, g, k, ps.fn(name+"leaver's fn", nil))
							waiting(t, leaver)
							cancel()
							<-leaver
						}
						if j.ctx != noContext { // so that the two calls have known of each other
							<-ask(byDoContext, j.ctx, g, "inner", returns(ps.piece(name+"inner value"), nil))
						}
						synctest.Wait()
						if forgotten {
							g.Forget(k)
						}
						j.end <- end(ps.piece(name + "value"))
						for _, ch := range callers {
							<-ch
						}
						if j.ctx != noContext {
							check(t, "value in the retained context", j.ctx.Value(playedKey{}), any(name))
						}
						retained = append(retained, g, j.ctx)
						check(t, name+"there is a spare call", s.spare != nil, by != byDoContext && !joined)
						if s.spare != nil {
							spare := reflect.ValueOf(s.spare).Elem()
							for i := range spare.NumField() {
								if f := spare.Type().Field(i).Name; f != "hash" && f != "callers" && !spare.Field(i).IsZero() {
									t.Errorf("%s%s of the spare call is %v", name, f, spare.Field(i))
								}
							}
						}
					})
				}
			}
		}
	}
	ps.freed(t)
	runtime.KeepAlive(retained)
}

func TestGroupIsReachableWhileACallIsInFlight(t *testing.T) {
	for _, by := range ways {
		for _, forgotten := range []bool{false, true} {
			var ps pieces
			started, end := make(chan bool), make(chan bool)
			o := watch(&ps, &struct {
				resource *piece
				group    Group
			}{resource: ps.piece("resource")}, "owner")
			answer := ask(by, t.Context(), &o.group, key, func(context.Context) (any, error) { started <- true; <-end; return nil, nil })
			<-started
			if forgotten {
				o.group.Forget(key)
			}
			o = nil
			for range 3 {
				runtime.GC()
				runtime.Gosched()
			}
			check(t, fmt.Sprintf("%s: pieces while fn runs", by), len(ps.names()), 2)
			end <- true
			<-answer
			ps.freed(t)
		}
	}
}

func TestGroupCanBeWatchedByItself(t *testing.T) {
	var ps pieces
	var retained []*uint64 // beside which the allocator would put a Group without a pointer
	for i := range 100 {
		watch(&ps, new(Group), fmt.Sprint("Group ", i))
		retained = append(retained, new(uint64))
	}
	g := watch(&ps, new(Group), "Group")
	w := weak.Make(g)
	g.Do(key, returns(nil, nil).plain())
	<-g.DoChan(key, returns(nil, nil).plain())
	g.DoContext(t.Context(), key, returns(nil, nil))
	g = nil
	ps.freed(t)
	runtime.KeepAlive(retained)
	check(t, "weak pointer", w.Value(), nil)
}

func TestMemoryOfABurstGoesBack(t *testing.T) {
	const burst, steady = 6000, 500
	synctest.Test(t, func(t *testing.T) {
		var g Group
		start := func(n int) (end chan bool) {
			end = make(chan bool)
			for i := range n {
				g.DoChan(fmt.Sprint(n, i), func() (any, error) { <-end; return nil, nil })
			}
			return end
		}
		endSteady, endBurst := start(steady), start(burst)
		check(t, "calls in the burst", inFlight(t), burst+steady)
		close(endBurst)
		synctest.Wait()
		check(t, "calls after the burst", inFlight(t), steady) // and no stripe is too large
		close(endSteady)
		synctest.Wait()
		check(t, "calls in the end", inFlight(t), 0)
		for i := range stripes {
			if n := len(stripes[i].slots); n > minSlots {
				t.Errorf("%d slots in the end", n)
			}
		}
	})
}

// Bubbles. The tests have one Group and one key, so that they get each other's calls to
// use again.

var bubbled Group

func useUnjoined(t *testing.T) {
	for _, by := range ways {
		answered(t, result(1, nil, false), ask(by, t.Context(), &bubbled, key, returns(1, nil)))
		j := newJob()
		forgotten := j.lead(t, by, t.Context(), &bubbled, key)
		bubbled.Forget(key)
		j.end <- returns(2, nil)
		answered(t, result(2, nil, false), forgotten)
	}
	check(t, "panic", (<-ask(byDo, nil, &bubbled, key, panics(3))).how, didPanic)
	answered(t, answer{how: didExit}, ask(byDo, nil, &bubbled, key, exits))
}

func useJoined(t *testing.T) {
	for _, by := range ways {
		j := newJob()
		callers := []<-chan answer{j.lead(t, by, t.Context(), &bubbled, key)}
		for _, by := range ways {
			callers = append(callers, join(t, by, t.Context(), &bubbled, key))
		}
		ctx, cancel := context.WithCancel(t.Context())
		leaver := join(t, byDoContext, ctx, &bubbled, key)
		cancel()
		answered(t, result(nil, context.Canceled, false), leaver)
		j.end <- returns(1, nil)
		answered(t, result(1, nil, true), callers...)
	}
}

func TestGroupMayGoFromBubbleToBubble(t *testing.T) {
	for _, use := range []func(*testing.T){useUnjoined, useJoined} {
		for range 3 {
			synctest.Test(t, use)
			synctest.Test(t, use)
			use(t)
		}
	}
}

func TestWaitingInABubbleIsDurable(t *testing.T) {
	for _, by := range ways {
		synctest.Test(t, func(t *testing.T) {
			start := time.Now()
			var callers []<-chan answer
			for _, by := range append([]way{by}, ways...) {
				callers = append(callers, ask(by, t.Context(), &bubbled, key, func(context.Context) (any, error) {
					time.Sleep(time.Hour)
					return 1, nil
				}))
				synctest.Wait()
			}
			answered(t, result(1, nil, true), callers...)
			check(t, "time that passed in the bubble", time.Since(start), time.Hour)
		})
	}
}

func TestDoMayJoinAcrossTheEdgeOfABubble(t *testing.T) {
	lead := func(t *testing.T) {
		v, err, shared := bubbled.Do(key, func() (any, error) {
			eventually(t, "the joiner waits", func() bool { return len(goroutines("sync.WaitGroup.Wait", ".(*Group).Do(")) == 1 })
			return 1, nil
		})
		check(t, "leader", result(v, err, shared), result(1, nil, true))
	}
	join := func(t *testing.T) {
		start := time.Now()
		defer time.NewTimer(time.Hour).Stop() // which a durable wait would let pass
		eventually(t, "the call is in flight", func() bool { return callersOf(&bubbled, key) == 1 })
		v, err, shared := bubbled.Do(key, unwanted(t).plain())
		check(t, "joiner", result(v, err, shared), result(1, nil, true))
		check(t, "an hour passed in the bubble", time.Since(start) >= time.Hour, false)
	}
	inBubble := func(f func(*testing.T)) func(*testing.T) {
		return func(t *testing.T) { synctest.Test(t, f) }
	}
	for name, sides := range map[string][2]func(*testing.T){
		"led inside":     {inBubble(lead), join},
		"joined inside":  {lead, inBubble(join)},
		"in two bubbles": {inBubble(lead), inBubble(join)},
	} {
		t.Run(name, func(t *testing.T) {
			var wg sync.WaitGroup
			wg.Go(func() { sides[0](t) })
			wg.Go(func() { sides[1](t) })
			wg.Wait()
			useUnjoined(t)
		})
	}
}

// Allocations.

func TestAllocations(t *testing.T) {
	var g Group
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	p := new(piece)
	plain, fn := returns(p, nil).plain(), returns(p, nil)
	n, groups := 0, make([]Group, 201)
	for i := range stripes { // which all have been used
		stripes[i].spare = new(call)
		stripes[i].resize(minSlots)
	}
	for name, test := range map[string]struct {
		want float64
		f    func()
	}{
		"Do":                      {0, func() { g.Do(key, plain) }},
		"Do with a closure":       {0, func() { g.Do(key, func() (any, error) { n++; return nil, nil }) }},
		"the first Do of a Group": {0, func() { groups[0].Do(key, plain); groups = groups[1:] }},
		"Do[*T]":                  {0, func() { Do(&g, key, func() (*piece, error) { return p, nil }) }},
		"ForgetUnshared":          {0, func() { g.ForgetUnshared(key) }},
		"DoChan":                  {4, func() { <-g.DoChan(key, plain) }},
		"DoContext":               {9, func() { g.DoContext(ctx, key, fn) }},
		"DoContext whose fn asks for Done": {10, func() {
			g.DoContext(ctx, key, func(ctx context.Context) (any, error) { return ctx.Done(), nil })
		}},
		"DoContext[*T]": {11, func() { DoContext(ctx, &g, key, func(context.Context) (*piece, error) { return p, nil }) }},
	} {
		if n := testing.AllocsPerRun(200, test.f); n > test.want {
			t.Errorf("%s: %v allocations, want at most %v", name, n, test.want)
		}
	}
	check(t, "bytes of a Group", unsafe.Sizeof(g), unsafe.Sizeof(uintptr(0)))
	check(t, "bytes of a stripe beyond pairs of cache lines", unsafe.Sizeof(stripes[0])%128, 0)
}

// Endings: panics, Goexit, and what only looks like them.

// panicNil makes panic(nil) panic with nil, as it did before Go 1.21.
func panicNil(t *testing.T) {
	t.Setenv("GODEBUG", "panicnil=1")
	if v := func() (v any) {
		defer func() { v = recover() }()
		explode(nil)
		return nil
	}(); v != nil {
		t.Skipf("GODEBUG=panicnil=1 has no effect here: recovered %v", v)
	}
}

func TestEndings(t *testing.T) {
	other := <-ask(byDo, nil, new(Group), key, panics(io.EOF))
	foreign := other.val.(error) // which another Group's panic produced
	boom := errors.New("boom")
	for _, end := range []struct {
		name     string
		fn       work
		want     answer // val is what a panic's value is
		exits    bool   // the goroutine of fn, even if it recovers
		panicNil bool
	}{
		{name: "value and error", fn: returns(1, boom), want: result(1, boom, true)},
		{name: "error of another Group's panic", fn: returns(1, foreign), want: result(1, foreign, true)},
		{name: "ErrGoexit returned", fn: returns(nil, ErrGoexit), want: result(nil, ErrGoexit, true)},
		{name: "panic", fn: panics("boom"), want: answer{how: didPanic, val: "boom"}},
		{name: "panic with an error", fn: panics(boom), want: answer{how: didPanic, val: boom}},
		{name: "panic(nil)", fn: panics(nil), want: answer{how: didPanic}, panicNil: true},
		{name: "Goexit", fn: exits, want: answer{how: didExit}},
		{name: "panic while exiting", fn: func(ctx context.Context) (any, error) {
			defer explode("late")
			return exits(ctx)
		}, want: answer{how: didPanic, val: "late"}, exits: true},
		{name: "panic(nil) while exiting", fn: func(ctx context.Context) (any, error) {
			defer explode(nil)
			return exits(ctx)
		}, want: answer{how: didExit}, panicNil: true},
		{name: "Goexit while panicking", fn: func(context.Context) (any, error) {
			defer runtime.Goexit()
			return explode("lost")
		}, want: answer{how: didExit}},
		{name: "Goexit with results set", fn: func(context.Context) (v any, err error) {
			defer runtime.Goexit()
			return 1, boom
		}, want: answer{how: didExit}},
		{name: "recovered panic", fn: func(context.Context) (v any, err error) {
			defer func() { v, err = recover(), boom }()
			return explode("recovered")
		}, want: result("recovered", boom, true)},
	} {
		for _, by := range ways {
			if by == byDoChan && end.want.how == didPanic {
				continue // crashes
			}
			t.Run(end.name+" by "+string(by), func(t *testing.T) {
				if end.panicNil {
					panicNil(t)
				}
				synctest.Test(t, func(t *testing.T) {
					var g Group
					j := newJob()
					callers := []<-chan answer{ask(by, t.Context(), &g, key, j.fn)}
					for _, joins := range ways {
						if joins != byDoChan || end.want.how != didPanic {
							synctest.Wait()
							callers = append(callers, ask(joins, t.Context(), &g, key, unwanted(t)))
						}
					}
					waiting(t, callers...)
					j.end <- end.fn
					var raised any
					for i, ch := range callers {
						got, want := <-ch, end.want
						switch {
						case want.how == didPanic:
							if raised == nil {
								raised = got.val
							}
							want.val = raised
							if end.exits && i == 0 && by == byDo {
								want.how = didExit
							}
						case want.how == didExit && (i == 0 && by == byDoChan || i == 2): // holds a channel
							want = result(nil, ErrGoexit, true)
						}
						check(t, fmt.Sprintf("answer to caller %d", i), got, want)
					}
					if end.want.how == didPanic {
						checkPanic(t, raised, end.want.val)
					}
					answered(t, result(2, nil, false), ask(byDo, nil, &g, key, returns(2, nil))) // the key is free
				})
			})
		}
	}
}

// checkPanic checks a value that callers recovered when explode had panicked with value.
func checkPanic(t *testing.T, raised, value any) {
	t.Helper()
	err, ok := raised.(*panicError)
	if !ok {
		t.Fatalf("recovered %T, want *panicError", raised)
	}
	for _, err := range []error{err, fmt.Errorf("wrapped: %w", err), errors.Join(io.EOF, err)} {
		var p PanicError
		if !errors.As(err, &p) {
			t.Fatalf("%T is no PanicError", err)
		}
		check(t, "Value", p.Value(), value)
		want, _ := value.(error)
		check(t, "Unwrap", p.Unwrap(), want)
		stack := p.Stack()
		contains(t, string(stack), ".explode(", "runtime/debug.Stack()")
		check(t, "the stack names a goroutine", strings.HasPrefix(string(stack), "goroutine "), false)
		check(t, "text", p.Error(), fmt.Sprintf("%v\n\n%s", value, stack))
		clear(stack)
		check(t, "the stack is a copy", bytes.Equal(p.Stack(), stack), false)
	}
}

// Crashes, in processes of their own.

// lastWords is a panic value that keeps the process from dying of it until it is closed,
// and uses the Group when it is printed.
type lastWords struct {
	g    *Group
	over chan struct{}
	text string
}

func (l *lastWords) Error() string {
	<-l.over
	l.g.Forget(key)
	l.g.Do(key, returns(nil, nil).plain())
	return l.text
}

// Only crashes run the go and the select statement of answer, so these two are not in
// what is written of coverage.
var crashes = []struct {
	name      string
	lead      way
	joins     []way
	fn        work // or a panic with lastWords, which the others get first
	want      string
	env       string
	forgotten bool
	left      bool // by its caller
}{
	{name: "DoChan alone", lead: byDoChan, want: "last words"},
	{name: "DoChan joined", lead: byDoChan, joins: ways, want: "last words"},
	{name: "Do", lead: byDo, joins: []way{byDoChan, byDoContext}, want: "last words"},
	{name: "DoContext", lead: byDoContext, joins: []way{byDo, byDoChan}, want: "last words", forgotten: true},
	{name: "nil", lead: byDoChan, fn: panics(nil), want: "<nil>", env: "GODEBUG=panicnil=1"},
	{name: "nil fn", lead: byDoChan, fn: func(context.Context) (any, error) {
		defer func() { explode(recover().(runtime.Error)) }()
		return work(nil)(nil)
	}, want: "runtime error: invalid memory address or nil pointer dereference"},
	{name: "while exiting", lead: byDoChan, fn: func(ctx context.Context) (any, error) {
		defer explode("late boom")
		return exits(ctx)
	}, want: "late boom"},
	{name: "every caller has left", lead: byDoContext, fn: panics("boom"), want: "boom", left: true},
	{name: "every caller has left a forgotten call", lead: byDoContext, fn: panics("boom"), want: "boom", left: true, forgotten: true},
}

func TestCrashes(t *testing.T) {
	for _, c := range crashes {
		t.Run(c.name, func(t *testing.T) {
			if !inChild() {
				// With a second processor, the process can die before fn's goroutine has
				// come to rest, and then its stack is not available.
				output, code := child(t, c.env, "GOTRACEBACK=all", "GOMAXPROCS=1")
				check(t, "exit code", code, 2)
				contains(t, output, "panic: "+c.want+"\n", ".explode(")
				check(t, "the others got the panic", strings.Contains(output, "WRONG"), false)
				check(t, "goroutines in doCall", len(tracesIn(output, "", ".doCall(")), 1)
				return
			}
			synctest.Test(t, func(t *testing.T) {
				var g Group
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				j, value := newJob(), &lastWords{&g, make(chan struct{}), c.want}
				if c.fn == nil {
					c.fn = panics(value)
				}
				// The others get the panic, but not the goroutine of fn, which stays in it.
				others := make(map[way][]<-chan answer)
				leader := j.lead(t, c.lead, ctx, &g, key)
				if c.lead != byDo {
					others[c.lead] = append(others[c.lead], leader)
				}
				for _, by := range c.joins {
					others[by] = append(others[by], join(t, by, t.Context(), &g, key))
				}
				if c.forgotten {
					g.Forget(key)
				}
				if c.left {
					cancel()
					answered(t, result(nil, context.Canceled, false), leader)
					delete(others, c.lead)
				}
				j.end <- c.fn
				for _, ch := range slices.Concat(others[byDo], others[byDoContext]) {
					if a := <-ch; a.how != didPanic || a.val.(*panicError).value != any(value) {
						fmt.Printf("WRONG: %+v\n", a)
					}
				}
				close(value.over)
				synctest.Wait()
				for _, ch := range others[byDoChan] {
					fmt.Printf("WRONG: %+v\n", <-ch)
				}
			})
			fmt.Println("WRONG: alive")
		})
	}
}

// Typed results.

type (
	named    int
	stringer struct{ s string }
)

func (s *stringer) String() string { return s.s }

// typedCase returns a check that callers that want a V get want and wantErr when a call
// returned val and err. A wantErr that is nil where want does not match is a mismatch.
func typedCase[V any](val any, err error, want V, wantErr error) func(t *testing.T, key string) {
	return func(t *testing.T, key string) {
		t.Helper()
		synctest.Test(t, func(t *testing.T) {
			var g Group
			j := newJob()
			leader := j.lead(t, byDo, nil, &g, key)
			var callers []<-chan answer
			for _, do := range []func() (V, error, bool){
				func() (V, error, bool) { return Do(&g, key, func() (v V, err error) { return }) },
				func() (V, error, bool) {
					return DoContext(t.Context(), &g, key, func(context.Context) (v V, err error) { return })
				},
			} {
				callers = append(callers, attempt(func() (any, error, bool) {
					v, err, shared := do()
					return &v, err, shared // v may not be comparable
				}))
			}
			synctest.Wait()
			j.end <- returns(val, err)
			<-leader
			for _, ch := range callers {
				a := <-ch
				if got := *a.val.(*V); a.how != didReturn || !a.shared || !reflect.DeepEqual(got, want) {
					t.Errorf("%v of %T: got %v, %+v; want %v", reflect.TypeFor[V](), val, got, a, want)
				}
				if wantErr == errMismatch {
					if a.err == nil {
						t.Fatalf("%v of %T: no error", reflect.TypeFor[V](), val)
					}
					shortened := key
					if len(key) > 64 {
						shortened = key[:64] + "…"
					}
					check(t, "error", a.err.Error(), fmt.Sprintf("singleflight: call of key %q returned a value of type %T, not %s",
						shortened, val, reflect.TypeFor[V]()))
					check(t, "the error is valid UTF-8", utf8.ValidString(a.err.Error()), true)
					continue
				}
				check(t, "error", a.err, wantErr)
			}
		})
	}
}

var errMismatch = errors.New("a mismatch")

func TestTypedResults(t *testing.T) {
	errFn := errors.New("fn's")
	one := &stringer{"one"}
	for _, check := range []func(*testing.T, string){
		typedCase(7, nil, 7, nil),
		typedCase(named(7), nil, named(7), nil),
		typedCase(one, nil, one, nil),
		typedCase[fmt.Stringer](one, nil, one, nil),
		typedCase[any](7, nil, 7, nil),
		typedCase[error](errFn, nil, errFn, nil),
		// nil, of a type that can be nil
		typedCase[*stringer](nil, nil, nil, nil),
		typedCase[fmt.Stringer](nil, nil, nil, nil),
		typedCase[[]byte](nil, nil, nil, nil),
		typedCase[map[string]int](nil, nil, nil, nil),
		typedCase[chan int](nil, nil, nil, nil),
		typedCase[func()](nil, nil, nil, nil),
		typedCase[unsafe.Pointer](nil, nil, nil, nil),
		// and of one that cannot
		typedCase(nil, nil, 0, errMismatch),
		typedCase(nil, nil, "", errMismatch),
		typedCase(nil, nil, stringer{}, errMismatch),
		typedCase(nil, nil, [0]int{}, errMismatch),
		// beside an error
		typedCase(7, errFn, 7, errFn),
		typedCase("seven", errFn, 0, errFn),
		typedCase[fmt.Stringer](one, errFn, one, errFn),
		typedCase[fmt.Stringer](7, errFn, nil, errFn),
		// of another type
		typedCase("seven", nil, 0, errMismatch),
		typedCase(named(7), nil, 0, errMismatch),
		typedCase[*stringer](*one, nil, nil, errMismatch),
		typedCase[fmt.Stringer](*one, nil, nil, errMismatch),
		typedCase[[]byte]("seven", nil, nil, errMismatch),
	} {
		check(t, key)
	}
	for _, key := range []string{
		"", `say "when"`, "\xff\x00\n", strings.Repeat("k", 64), strings.Repeat("k", 65),
		strings.Repeat("\xff", 1<<20), "x" + strings.Repeat("語", 1<<20),
	} {
		typedCase("seven", nil, 0, errMismatch)(t, key)
	}
}

func TestTypedFunctionsRunFn(t *testing.T) {
	var g Group
	v, err, shared := Do(&g, key, func() (int, error) { return 7, io.EOF })
	check(t, "Do", result(v, err, shared), result(7, io.EOF, false))
	ctx := context.WithValue(t.Context(), playedKey{}, 8)
	v, err, shared = DoContext(ctx, &g, key, func(ctx context.Context) (int, error) { return ctx.Value(playedKey{}).(int), io.EOF })
	check(t, "DoContext", result(v, err, shared), result(8, io.EOF, false))
}

// Order under the lock.

// With a second processor, the first to be told finds the others still being told.
func TestManyAreToldUnderNoLock(t *testing.T) {
	for i := range 20 {
		synctest.Test(t, func(t *testing.T) {
			var g Group
			var once sync.Once
			j := newJob()
			ctx, cancel := context.WithCancel(t.Context())
			_, s := j.lead(t, byDoContext, ctx, &g, key), g.stripe(key)
			look := func() {
				locked := s.mu.TryLock()
				check(t, "the lock can be taken", locked, true)
				check(t, "calls that can be joined", s.n, 0)
				check(t, "the call is in flight", i%2 == 0 && !j.ctx.Value(nodeKey{}).(*node).ended.Load(), false)
				if locked {
					s.mu.Unlock()
				}
			}
			for range 1000 {
				if i%2 == 0 {
					go func() { g.Do(key, unwanted(t).plain()); once.Do(look) }()
				} else {
					context.AfterFunc(j.ctx, func() { once.Do(look) })
				}
			}
			synctest.Wait()
			if i%2 == 1 {
				cancel()
				synctest.Wait()
			}
			j.end <- returns(1, nil)
			synctest.Wait()
			cancel()
		})
	}
}

func TestCallerThatIsTooLateToLeaveWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g Group
		j := newJob()
		ctx, cancel := context.WithCancel(t.Context())
		caller := j.lead(t, byDoContext, ctx, &g, key)
		with(&g, key, func(c *call) { c.ended = true }) // as between the end and the outcome
		cancel()
		waiting(t, caller)
		j.end <- returns(1, nil)
		answered(t, result(1, nil, false), caller)
	})
}

// A busyContext's methods call back whenever they are called.
type busyContext struct {
	context.Context
	done, err, value func()
}

func (c *busyContext) Done() <-chan struct{} { c.done(); return c.Context.Done() }
func (c *busyContext) Err() error            { c.err(); return c.Context.Err() }
func (c *busyContext) Value(key any) any     { c.value(); return c.Context.Value(key) }

// TestUsersCodeRunsUnderNoLock has fn, the methods of a context, what a context's
// cancellation calls, and a panic's value take every lock and use the Group.
func TestUsersCodeRunsUnderNoLock(t *testing.T) {
	var g Group
	outer := newJob()
	outside := outer.lead(t, byDoContext, t.Context(), &g, "outer")
	var used atomic.Int32
	use := func() {
		used.Add(1)
		inFlight(t)
		g.ForgetUnshared(key)
		g.DoContext(outer.ctx, "another", returns(nil, nil))
		g.Forget(key)
		g.Do(key, returns(nil, nil).plain())
	}
	for _, parent := range []context.Context{context.Background(), outer.ctx} {
		used.Store(0)
		ctx, cancel := context.WithCancel(parent)
		called := make(chan bool)
		_, err, _ := g.DoContext(&busyContext{ctx, use, use, use}, key, func(ctx context.Context) (any, error) {
			use()
			ctx.Value(playedKey{})
			context.AfterFunc(ctx, func() { use(); close(called) })
			cancel()
			<-ctx.Done()
			return nil, nil
		})
		<-called
		check(t, "error", err, context.Canceled)
		if used.Load() < 6 {
			t.Errorf("only %d calls of the user's code", used.Load())
		}
	}
	outer.end <- returns(nil, nil)
	<-outside
}

func TestContextWhoseMethodsPanicLeavesNoTrace(t *testing.T) {
	nothing, boom := func() {}, func() { panic("of the context's") }
	synctest.Test(t, func(t *testing.T) {
		var g Group
		jobs, outside := leadAll(t, &g, "outer", key)
		for name, ctx := range map[string]*busyContext{
			"Done":  {jobs[0].ctx, boom, nothing, nothing},
			"Err":   {jobs[0].ctx, nothing, boom, nothing},
			"Value": {jobs[0].ctx, nothing, nothing, boom},
		} {
			for _, k := range []string{key, "unknown"} {
				answered(t, answer{how: didPanic, val: "of the context's"}, ask(byDoContext, ctx, &g, k, unwanted(t)))
			}
			check(t, name+": calls in flight, and callers", [2]int{inFlight(t), callersOf(&g, key)}, [2]int{2, 1})
		}
		for i, j := range jobs {
			j.end <- returns(i, nil)
			answered(t, result(i, nil, false), outside[i])
		}
	})
}

// Waits within fns, as far as two keys and few steps do not show them.

// refused checks that DoContext returns ErrRecursive.
func refused(t *testing.T, ctx context.Context, g *Group, keys ...string) {
	t.Helper()
	for _, k := range keys {
		v, err, shared := g.DoContext(ctx, k, unwanted(t))
		check(t, "answer in "+k, result(v, err, shared), result(nil, ErrRecursive, false))
	}
}

// leadAll starts a call of each key, each with a job.
func leadAll(t *testing.T, g *Group, keys ...string) (jobs []*job, outside []<-chan answer) {
	for _, k := range keys {
		j := newJob()
		jobs, outside = append(jobs, j), append(outside, j.lead(t, byDoContext, t.Context(), g, k))
	}
	return jobs, outside
}

func TestCycleOfThreeInTwoGroups(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g, h Group
		ab, outside := leadAll(t, &g, "a", "b")
		c := newJob()
		outside = append(outside, c.lead(t, byDoContext, t.Context(), &h, "c"))
		inside := []<-chan answer{join(t, byDoContext, ab[0].ctx, &g, "b"), join(t, byDoContext, ab[1].ctx, &h, "c")}
		derived, cancel := context.WithTimeout(context.WithValue(c.ctx, playedKey{}, 1), time.Hour)
		defer cancel()
		for _, ctx := range []context.Context{c.ctx, derived, context.WithoutCancel(c.ctx)} {
			refused(t, ctx, &g, "a", "b")
			refused(t, ctx, &h, "c")
		}
		check(t, "a is shared, though no caller joined", g.ForgetUnshared("a"), true)
		c.end <- returns("c", nil)
		answered(t, result("c", nil, true), outside[2], inside[1])
		ab[1].end <- returns("b", nil)
		answered(t, result("b", nil, true), outside[1], inside[0])
		ab[0].end <- returns("a", nil)
		answered(t, result("a", nil, false), outside[0])
	})
}

func TestEachWaitOfAnFnCounts(t *testing.T) {
	a, b, c := new(node), new(node), new(node)
	for range 2 {
		check(t, "a waits for b", a.wait(b), true)
	}
	for range 2 {
		check(t, "b waits for a", b.wait(a), false)
		check(t, "b waits for itself", b.wait(b), false)
		a.unwait(b)
	}
	check(t, "b waits for a, which has stopped", b.wait(a), true)
	check(t, "a waits for b", a.wait(b), false)
	a.ended.Store(true) // after a goroutine of its fn saw that it had not
	check(t, "c waits for b", c.wait(b), true)
	check(t, "an ended call waits for c", a.wait(c), true)
}

func TestOneOfTwoCallsThatAskForEachOtherIsRefused(t *testing.T) {
	for range 20 {
		a, b := new(node), new(node)
		wait := func(n, m *node) <-chan answer {
			return attempt(func() (any, error, bool) { return n.wait(m), nil, false })
		}
		graph.Lock()
		first, second := wait(a, b), wait(b, a)
		eventually(t, "both at the mutex", func() bool { return len(goroutines("[sync.Mutex.Lock", "(*node).wait(")) == 2 })
		for start := time.Now(); time.Since(start) < 3*time.Millisecond; {
			graph.Unlock() // whoever waits for 1 ms gets it next, so that they would take turns
			graph.Lock()
		}
		graph.Unlock()
		check(t, "the answers are alike", (<-first).val == (<-second).val, false)
	}
}

// An ended call waits for nothing, even if a goroutine of its fn still waits, and what
// that goroutine noted is what is taken back.
func TestEndedCallIsNoLink(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g Group
		jobs, outside := leadAll(t, &g, "a", "b", "c")
		a, b, c := jobs[0], jobs[1], jobs[2]
		toA := join(t, byDoContext, c.ctx, &g, "a")
		late := join(t, byDoContext, context.WithoutCancel(a.ctx), &g, "b")
		refused(t, b.ctx, &g, "c")
		a.end <- returns("a", nil)
		answered(t, result("a", nil, true), outside[0], toA)
		waiting(t, late)
		back := join(t, byDoContext, b.ctx, &g, "c")
		kept := context.WithoutCancel(a.ctx)
		alive := join(t, byDoContext, kept, &g, "b") // as from outside
		c.end <- returns("c", nil)
		answered(t, result("c", nil, true), outside[2], back)
		b.end <- returns("b", nil)
		answered(t, result("b", nil, true), outside[1], late, alive)
		graph.Lock()
		defer graph.Unlock()
		for _, j := range jobs {
			n := j.ctx.Value(nodeKey{}).(*node)
			check(t, "waits and waiters in the end", len(n.waits)+n.waiters, 0)
		}
	})
}

// When the last caller leaves and fn learns of it, its wait must be over: fn may ask for
// the call that was waiting. The mutex of the graph stops the leaver.
func TestWaitIsOverBeforeFnIsCanceled(t *testing.T) {
	var g Group
	a, b := newJob(), newJob()
	outside := a.lead(t, byDoContext, t.Context(), &g, "a")
	ctx, cancel := context.WithCancel(a.ctx)
	inside := b.lead(t, byDoContext, ctx, &g, "b")
	graph.Lock()
	cancel()
	eventually(t, "the leaver at the mutex", func() bool {
		return len(goroutines("[sync.Mutex.Lock", "(*Group).DoContext(")) > 0
	})
	check(t, "error of fn's context before the wait is over", b.ctx.Err(), nil)
	graph.Unlock()
	<-b.ctx.Done()
	back := join(t, byDoContext, context.WithoutCancel(b.ctx), &g, "a")
	answered(t, result(nil, context.Canceled, false), inside)
	a.end <- returns("a", nil)
	answered(t, result("a", nil, true), outside, back)
	b.end <- returns("b", nil)
}

// A call that no fn waits for costs no search, so that 2,000 callers within one fn and
// 2,000 calls that wait for it hold nobody up.
func TestHubIsNotSearchedForNothing(t *testing.T) {
	const n = 2000
	synctest.Test(t, func(t *testing.T) {
		var g Group
		jobs, outside := leadAll(t, &g, "hub", "aside")
		end := make(chan bool)
		for i := range n {
			ask(byDoContext, jobs[0].ctx, &g, fmt.Sprint("leaf", i), func(context.Context) (any, error) { <-end; return nil, nil })
			outside = append(outside, ask(byDoContext, t.Context(), &g, fmt.Sprint("spoke", i), func(ctx context.Context) (any, error) {
				v, err, _ := g.DoContext(ctx, "hub", unwanted(t))
				return v, err
			}))
		}
		synctest.Wait()
		hub, aside := jobs[0].ctx.Value(nodeKey{}).(*node), jobs[1].ctx.Value(nodeKey{}).(*node)
		check(t, "waits and waiters of the hub", [2]int{len(hub.waits), hub.waiters}, [2]int{n, n})
		refused(t, jobs[0].ctx, &g, "spoke1")
		// A search would look at the n waits of the hub.
		check(t, "allocations of a wait for the hub", testing.AllocsPerRun(10, func() {
			if aside.wait(hub) {
				aside.unwait(hub)
			}
		}), 0)
		short, cancel := context.WithTimeout(jobs[1].ctx, 50*time.Millisecond)
		defer cancel()
		answered(t, result(nil, context.DeadlineExceeded, false), ask(byDoContext, short, &g, "hub", unwanted(t)))
		close(end)
		jobs[0].end <- returns("hub", nil)
		jobs[1].end <- returns("hub", nil)
		for _, ch := range outside {
			check(t, "value", (<-ch).val, any("hub"))
		}
	})
}

// Each call of a layer waits for both of the next, so that there are far too many ways
// through all layers to go them one by one.
func TestSearchLooksAtEachCallOnce(t *testing.T) {
	var layers [64][2]*node
	for i := range layers {
		layers[i] = [2]*node{new(node), new(node)}
	}
	for i := range len(layers) - 1 {
		for _, n := range layers[i] {
			for _, m := range layers[i+1] {
				check(t, "wait", n.wait(m), true)
			}
		}
	}
	check(t, "a wait from the last to the first", layers[63][0].wait(layers[0][0]), false)
	check(t, "a wait from another", new(node).wait(layers[0][0]), true)
	layers[31][0].ended.Store(true)
	layers[31][1].ended.Store(true)
	check(t, "a wait from the last to the first, of which one between has ended", layers[63][0].wait(layers[0][0]), true)
}

func TestCallsThatNestNothingLeaveTheGraphAlone(t *testing.T) {
	graph.Lock()
	defer graph.Unlock()
	var g Group
	j := newJob()
	ctx, cancel := context.WithCancel(t.Context())
	callers := []<-chan answer{j.lead(t, byDoContext, t.Context(), &g, key), join(t, byDoContext, t.Context(), &g, key)}
	leaver := join(t, byDoContext, ctx, &g, key)
	cancel()
	answered(t, result(nil, context.Canceled, false), leaver)
	kept := context.WithoutCancel(j.ctx)
	j.end <- returns(1, nil)
	answered(t, result(1, nil, true), callers...)
	// The call has ended, so that its context makes no call a nested one.
	answered(t, result(2, nil, false), ask(byDoContext, kept, &g, key, returns(2, nil)))
}

// Fuzz targets.

func FuzzSchedules(f *testing.F) {
	places := newPlaces()
	r := rand.NewChaCha8([32]byte{})
	for i := range 400 {
		b := make([]byte, 60+i%4) // with contexts that are tied to others, or not
		r.Read(b)
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		play(t, places, &model{variant: len(b), untied: len(b)%4 > 1}, func(p *player) { p.choose(b) })
	})
}

func FuzzKeys(f *testing.F) {
	for _, k := range []string{"", "a", "a\x00", "\xff", "ключ", strings.Repeat("k", 5000), strings.Repeat("k", 1<<20)} {
		f.Add(k, k)
		f.Add(k, k+"\x00")
		f.Add("\xfe"+k, "\xff"+k)
	}
	f.Fuzz(func(t *testing.T, a, b string) {
		var g, other Group
		end := make(chan bool)
		fn := func(v string) func() (any, error) {
			return func() (any, error) { <-end; return v, nil }
		}
		cha, chb, cho := g.DoChan(a, fn("a")), g.DoChan(b, fn("b")), other.DoChan(a, fn("other"))
		close(end)
		want := Result{"b", nil, false}
		if a == b {
			want = Result{"a", nil, true}
		}
		check(t, "first", <-cha, Result{"a", nil, a == b})
		check(t, "second", <-chb, want)
		check(t, "other Group", <-cho, Result{"other", nil, false})
	})
}

// FuzzTable adds and removes calls of few different hashes, and compares the table with
// a map.
func FuzzTable(f *testing.F) {
	for _, n := range []int{80, 320, 800} {
		script := make([]byte, n)
		r := rand.New(rand.NewPCG(uint64(n), 0))
		for i := range script {
			script[i] = byte(r.Uint32())
			if mostly := r.IntN(4) > 0; i < n/2 == mostly { // calls come, then they go
				script[i] |= 1
			} else {
				script[i] &^= 1
			}
		}
		f.Add(script)
	}
	f.Fuzz(func(t *testing.T, script []byte) {
		type id struct {
			hash uint64
			g    *Group
			key  string
		}
		var s stripe
		var groups [5]Group
		var ids []id
		size := 0
		model := make(map[id]*call)
		for i, b := range script {
			if b&1 != 0 {
				id := id{uint64(b>>1) << (30 + i%3), &groups[i%5], strconv.Itoa(i % 7)}
				check(t, "call found before it comes", s.find(id.hash, id.g, id.key), model[id])
				if model[id] == nil {
					model[id] = s.start(id.hash, id.g, id.key)
					ids = append(ids, id)
				}
			} else if len(ids) > 0 {
				j := int(b>>1) % len(ids)
				id := ids[j]
				check(t, "call found", s.find(id.hash, id.g, id.key), model[id])
				s.remove(model[id])
				check(t, "call found after it went", s.find(id.hash, id.g, id.key), nil)
				delete(model, id)
				ids = slices.Delete(ids, j, j+1)
			}
			if 4*len(model) > 3*size {
				size = max(2*size, 8)
			} else if size > 8 && 4*len(model) < size {
				size /= 2
			}
			check(t, "calls and slots", [2]int{s.n, len(s.slots)}, [2]int{len(model), size})
			s.sound(t)
		}
	})
}

func TestKeysAndGroupsSpread(t *testing.T) {
	const n = 1 << 16
	var g Group
	dense := make([]Group, n)
	sparse := make([]struct {
		Group
		_ [1016]byte
	}, n)
	for name, lock := range map[string]func(i int) (*stripe, uint64, *call){
		"keys of a Group":              func(i int) (*stripe, uint64, *call) { return g.lock(strconv.Itoa(i)) },
		"a key in Groups side by side": func(i int) (*stripe, uint64, *call) { return dense[i].lock(key) },
		"a key in Groups far apart":    func(i int) (*stripe, uint64, *call) { return sparse[i].lock(key) },
	} {
		inStripe, inSlot := make(map[*stripe]int), make(map[[2]any]int)
		for i := range n {
			s, hash, _ := lock(i)
			s.mu.Unlock()
			inStripe[s]++
			inSlot[[2]any{s, home(hash) & 511}]++
		}
		// On the average 256 in a stripe, and one for every second slot.
		most, mostInSlot := slices.Max(slices.Collect(maps.Values(inStripe))), slices.Max(slices.Collect(maps.Values(inSlot)))
		if len(inStripe) != len(stripes) || most > 512 || mostInSlot > 12 {
			t.Errorf("%s: up to %d in one of %d stripes, up to %d in a slot", name, most, len(inStripe), mostInSlot)
		}
	}
}

func TestHashIsSeededPerProcess(t *testing.T) {
	if inChild() {
		// The address of a Group, which is a variable of the program, can be the same.
		s, hash, _ := bubbled.lock(key)
		s.mu.Unlock()
		fmt.Println("HASH", hash)
		return
	}
	one, _ := child(t)
	other, _ := child(t)
	contains(t, one, "HASH ")
	check(t, "the hash is the same in two processes", one == other, false)
}

// Benchmarks, to compare two versions with benchstat.

func BenchmarkDo(b *testing.B) {
	var g Group
	fn := returns(nil, nil).plain()
	for b.Loop() {
		g.Do(key, fn)
	}
}

func BenchmarkDoParallel(b *testing.B) {
	var g Group
	var goroutines atomic.Int64
	fn := returns(nil, nil).plain()
	b.RunParallel(func(pb *testing.PB) {
		k := fmt.Sprint("key", goroutines.Add(1))
		for pb.Next() {
			g.Do(k, fn)
		}
	})
}

func BenchmarkDoChan(b *testing.B) {
	var g Group
	fn := returns(nil, nil).plain()
	for b.Loop() {
		<-g.DoChan(key, fn)
	}
}

func BenchmarkDoContext(b *testing.B) {
	var g Group
	ctx, cancel := context.WithCancel(b.Context())
	defer cancel()
	for b.Loop() {
		g.DoContext(ctx, key, func(ctx context.Context) (any, error) { return ctx.Done(), nil })
	}
}

func BenchmarkJoined(b *testing.B) {
	const callers = 1000
	for _, by := range ways {
		b.Run(fmt.Sprintf("by=%s/callers=%d", by, callers), func(b *testing.B) {
			var g Group
			fn := func(context.Context) (any, error) {
				for callersOf(&g, key) < callers {
					runtime.Gosched()
				}
				return nil, nil
			}
			for b.Loop() {
				var wg sync.WaitGroup
				for range callers {
					wg.Go(func() { by.do(b.Context(), &g, key, fn) })
				}
				wg.Wait()
			}
		})
	}
}
