// Copyright 2026 The singleflight Authors.
// Use of this source code is governed by the BSD-style licence in LICENSE.

package singleflight

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
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
)

const key = "key"

// raceEnabled reports whether the race detector is on. It is slow, and allows
// some 8,000 goroutines at once.
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

type work = func() (any, error)

func returns(v any, err error) work {
	return func() (any, error) { return v, err }
}

func exits() (any, error) {
	runtime.Goexit()
	panic("unreachable")
}

// explode has a name to be found by in a stack.
func explode(v any) (any, error) {
	panic(v)
}

func explodes(v any) work {
	return func() (any, error) { return explode(v) }
}

// unwanted is the fn of a caller who has to join.
func unwanted(t *testing.T) work {
	return func() (any, error) {
		t.Error("fn of a caller who should have joined was run")
		return nil, nil
	}
}

// A gate's fn waits to be told how to end. Two of them at once, or one too few,
// are a deadlock of the bubble, which fails the test.
type gate chan work

func (g gate) fn() (any, error) {
	return (<-g)()
}

// An answer is what became of a caller in Do.
type answer struct {
	val    any
	err    error
	shared bool
	value  any  // that it panicked with
	exited bool // its goroutine exited; value may be set beside it
}

func (a answer) String() string {
	switch {
	case a.value != nil:
		return fmt.Sprintf("a panic: %v", a.value)
	case a.exited:
		return "Goexit"
	}
	return fmt.Sprintf("(%v, %v, %t)", a.val, a.err, a.shared)
}

// attempt calls do on a goroutine of its own, which recovers.
func attempt(do func() (any, error, bool)) <-chan answer {
	ch := make(chan answer, 1)
	go func() {
		a := answer{exited: true}
		defer func() { ch <- a }()
		func() {
			defer func() { a.value = recover() }()
			a.val, a.err, a.shared = do()
		}()
		a.exited = false
	}()
	return ch
}

func ask(g *Group, key string, fn work) <-chan answer {
	return attempt(func() (any, error, bool) { return g.Do(key, fn) })
}

// together has a Do lead a call of fn, which ends once the given numbers of
// others have joined it with Do and with DoChan. The leader's answer comes first.
// It has to be called in a bubble.
func together(t *testing.T, g *Group, fn work, joiners, readers int) ([]answer, []Result) {
	gate := make(gate)
	asked := []<-chan answer{ask(g, key, gate.fn)}
	synctest.Wait()
	for range joiners {
		asked = append(asked, ask(g, key, unwanted(t)))
	}
	chans := make([]<-chan Result, readers)
	for i := range chans {
		chans[i] = g.DoChan(key, unwanted(t))
	}
	synctest.Wait()
	gate <- fn
	var answers []answer
	for _, ch := range asked {
		answers = append(answers, <-ch)
	}
	var results []Result
	for _, ch := range chans {
		results = append(results, <-ch)
	}
	return answers, results
}

func check[T comparable](t *testing.T, what string, got, want T) {
	t.Helper()
	if got != want {
		t.Errorf("%s: got %+v, want %+v", what, got, want)
	}
}

// silent checks that nothing is to be received from ch.
func silent[T any](t *testing.T, what string, ch <-chan T) {
	t.Helper()
	select {
	case v, ok := <-ch:
		t.Errorf("%s: received %+v, %t; want nothing", what, v, ok)
	default:
	}
}

// eventually waits for something that no channel and no bubble tells of.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for start := time.Now(); !ok(); runtime.Gosched() {
		if time.Since(start) > 30*time.Second {
			t.Errorf("%s: not in 30 s", what)
			return
		}
	}
}

// goroutines returns the traces of the goroutines whose state and stack contain
// what is given. Looking at them orders nothing for the race detector.
func goroutines(state, stack string) []string {
	buf := make([]byte, 1<<20)
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
		if strings.HasPrefix(header, "goroutine ") &&
			strings.Contains(header, state) && strings.Contains(frames, stack) {
			found = append(found, trace)
		}
	}
	return found
}

func goroutineID() string {
	var buf [64]byte
	id, _, _ := bytes.Cut(buf[:runtime.Stack(buf[:], false)], []byte(" ["))
	return string(id)
}

// hash returns the hash of key in the Group, and the Group's number.
func (g *Group) hash(key string) (hash, group uint64) {
	return hashOf(key) ^ g.id(), g.id()
}

func stripeOfKey(g *Group, key string) *stripe {
	hash, _ := g.hash(key)
	return stripeOf(hash)
}

func keysInOneStripe(g *Group, n int) []string {
	var keys []string
	s := stripeOfKey(g, key)
	for i := 0; len(keys) < n; i++ {
		if k := "key" + strconv.Itoa(i); stripeOfKey(g, k) == s {
			keys = append(keys, k)
		}
	}
	return keys
}

func unlocked(t *testing.T, s *stripe) {
	t.Helper()
	if !s.mu.TryLock() {
		t.Fatal("the lock of the stripe is held")
	}
	s.mu.Unlock()
}

// begin and finish put a call into s and take it out again, as callers do who
// hold the lock.
func (s *calls) begin(hash, group uint64, key string) *call {
	c := s.unused()
	s.add(c, hash, group, key)
	return c
}

func (s *calls) finish(c *call) {
	s.remove(c)
	s.shrink()
}

// sound checks s, which is locked or known to no one else: that every call is
// where find looks for it, and that no more memory is in use than the calls in
// flight warrant.
func sound(t *testing.T, s *calls) {
	t.Helper()
	buckets := s.buckets
	if buckets == nil {
		buckets = []bucket{s.few}
	} else if size := len(buckets); s.few != (bucket{}) || size&(size-1) != 0 || size < chainMax || s.n < size/2 {
		t.Fatalf("%d calls in %d buckets, and %v beside them", s.n, size, s.few)
	}
	if s.n > max(chainMax, 2*len(buckets)) {
		t.Fatalf("%d calls in %d buckets", s.n, len(buckets))
	}
	n := 0
	for _, b := range buckets {
		var tags [8]byte
		i := 0
		for c := b.chain; c != nil; c = c.next {
			if n++; *s.bucket(c.hash) != b || s.find(c.hash, c.group, c.key) != c {
				t.Fatalf("the call of %q is where nobody looks for it", c.key)
			}
			if i < len(tags) {
				tags[i] = byte(tag(c.hash))
				i++
			}
		}
		check(t, "tags", b.tags, binary.LittleEndian.Uint64(tags[:]))
	}
	check(t, "number of calls", s.n, n)
}

// inTable checks all stripes, and returns the number of calls in them.
func inTable(t *testing.T) (n int) {
	t.Helper()
	for i := range table {
		s := &table[i]
		s.mu.Lock()
		sound(t, &s.calls)
		n += s.n
		s.mu.Unlock()
	}
	return n
}

// litter is what calls were given and made, and what nothing may hold on to once
// they have ended.
type litter struct {
	mu   sync.Mutex
	kept map[string]bool
}

// A piece of litter has a pointer in it, so that it shares no memory with others.
type piece struct{ name string }

func (p *piece) Error() string { return p.name }

func (l *litter) drop(name string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.kept, name)
}

func (l *litter) keep(name string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.kept == nil {
		l.kept = make(map[string]bool)
	}
	l.kept[name] = true
}

func (l *litter) piece(name string) *piece {
	p := &piece{name}
	l.keep(name)
	runtime.AddCleanup(p, l.drop, name)
	return p
}

func (l *litter) key(name string) string {
	k := strings.Repeat(name, 64)
	l.keep(name)
	runtime.AddCleanup(unsafe.StringData(k), l.drop, name)
	return k
}

// fn returns an fn that holds on to a piece of its own.
func (l *litter) fn(name string, end work) work {
	p := l.piece(name)
	return func() (any, error) {
		runtime.KeepAlive(p)
		return end()
	}
}

func (l *litter) collected(t *testing.T) {
	t.Helper()
	for range 100 {
		runtime.GC()
		runtime.Gosched()
		l.mu.Lock()
		n := len(l.kept)
		l.mu.Unlock()
		if n == 0 {
			return
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for name := range l.kept {
		t.Errorf("%s is still reachable", name)
	}
}

const childEnv = "SINGLEFLIGHT_TEST_CHILD"

// inChild reports whether the test runs in a process that child has started.
func inChild() bool {
	return os.Getenv(childEnv) != ""
}

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

func TestDuplicatesJoinTheCallInFlight(t *testing.T) {
	for _, by := range []string{"Do", "DoChan"} {
		t.Run("led by "+by, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var g Group
				w := make(gate)
				var asked []<-chan answer
				var chans []<-chan Result
				if by == "Do" {
					asked = append(asked, ask(&g, key, w.fn))
				} else {
					chans = append(chans, g.DoChan(key, w.fn))
				}
				synctest.Wait()
				for range 5 {
					asked = append(asked, ask(&g, key, unwanted(t)))
					chans = append(chans, g.DoChan(key, unwanted(t)))
				}
				synctest.Wait()
				w <- returns(1, nil)
				for _, ch := range asked {
					check(t, "Do", <-ch, answer{val: 1, shared: true})
				}
				for _, ch := range chans {
					check(t, "DoChan", <-ch, Result{1, nil, true})
				}
			})
		})
	}
}

func TestCallsOverlapOnlyAfterForget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g Group
		first, second := make(gate), make(gate)
		ch1 := g.DoChan(key, first.fn)
		joined1 := ask(&g, key, unwanted(t))
		synctest.Wait()
		g.Forget(key)
		ch2 := g.DoChan(key, second.fn)
		joined2 := ask(&g, key, unwanted(t))
		synctest.Wait()
		second <- returns(2, nil)
		check(t, "second call", <-ch2, Result{2, nil, true})
		check(t, "its joiner", <-joined2, answer{val: 2, shared: true})
		silent(t, "first call", ch1)
		silent(t, "its joiner", joined1)
		first <- returns(1, nil)
		check(t, "first call", <-ch1, Result{1, nil, true})
		check(t, "its joiner", <-joined1, answer{val: 1, shared: true})
	})
}

func TestDoRunsFnOnItsCallersGoroutine(t *testing.T) {
	var g Group
	id, _, _ := g.Do(key, func() (any, error) { return goroutineID(), nil })
	check(t, "goroutine of fn", id.(string), goroutineID())
}

var startedByLibrary = regexp.MustCompile(`\ncreated by .*\n\t.*[/\\]singleflight\.go:`)

// started returns how many goroutines there are that the package has started.
// (runtime.NumGoroutine can be wrong by thousands while the collector frees the stacks
// of those that have ended.)
func started() (n int) {
	for _, trace := range goroutines("", "") {
		if startedByLibrary.MatchString(trace) {
			n++
		}
	}
	return n
}

// startedInBubble is started when all in this bubble are blocked.
func startedInBubble() int {
	synctest.Wait()
	return started()
}

func TestOnlyLeadingDoChanStartsAGoroutine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		joinByAllMeans := func(g *Group, key string) {
			for range 10 {
				ask(g, key, unwanted(t))
				g.DoChan(key, unwanted(t))
			}
		}
		var g Group
		led, asked := make(gate), make(gate)
		ask(&g, "asked", asked.fn)
		check(t, "goroutines started by Do", startedInBubble(), 0)
		joinByAllMeans(&g, "asked")
		check(t, "goroutines started by joining a Do", startedInBubble(), 0)
		var id string
		g.DoChan("led", func() (any, error) {
			id = goroutineID()
			return led.fn()
		})
		check(t, "goroutines started by DoChan", startedInBubble(), 1)
		check(t, "goroutines that run its fn", len(goroutines(id+" [", ".gate.fn(")), 1)
		joinByAllMeans(&g, "led")
		check(t, "goroutines started by joining a DoChan", startedInBubble(), 1)
		if id == goroutineID() {
			t.Error("DoChan ran fn on its caller's goroutine")
		}
		asked <- returns(nil, nil)
		led <- returns(nil, nil)
	})
}

func TestCallLeavesTheTableBeforeItIsAnswered(t *testing.T) {
	var g Group
	w := make(gate)
	leader := ask(&g, key, w.fn)
	eventually(t, "the call is in flight", func() bool { return callOf(&g, key) != nil })
	joiner := ask(&g, key, unwanted(t))
	joinerWaits := func() bool { return len(goroutines("sync.WaitGroup.Wait", ".(*Group).Do(")) == 1 }
	eventually(t, "the joiner waits", joinerWaits)
	reader := g.DoChan(key, unwanted(t))

	s := stripeOfKey(&g, key)
	s.mu.Lock()
	w <- returns(1, nil)
	eventually(t, "the leader wants the lock to end the call", func() bool {
		return len(goroutines("sync.Mutex.Lock", ".doCall(")) == 1
	})
	silent(t, "reader, of a call in the table", reader)
	if !joinerWaits() {
		t.Error("a joiner was answered by a call that is in the table")
	}
	s.mu.Unlock()

	check(t, "leader", <-leader, answer{val: 1, shared: true})
	check(t, "joiner", <-joiner, answer{val: 1, shared: true})
	check(t, "reader", <-reader, Result{1, nil, true})
}

func TestAnsweredCallerStartsAfresh(t *testing.T) {
	var g Group
	for i := range 1000 {
		v, err, shared := g.Do(key, returns(i, nil))
		check(t, "Do", answer{val: v, err: err, shared: shared}, answer{val: i})
		check(t, "DoChan", <-g.DoChan(key, returns(-i, nil)), Result{-i, nil, false})
	}
}

func TestSharedTellsWhetherAnyoneJoined(t *testing.T) {
	for _, n := range []struct{ joiners, readers int }{{0, 0}, {1, 0}, {0, 1}, {2, 2}} {
		t.Run(fmt.Sprintf("%d joiners and %d readers", n.joiners, n.readers), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var g Group
				answers, results := together(t, &g, returns(1, nil), n.joiners, n.readers)
				shared := n.joiners+n.readers > 0
				for _, a := range answers {
					check(t, "Do", a, answer{val: 1, shared: shared})
				}
				for _, r := range results {
					check(t, "DoChan", r, Result{1, nil, shared})
				}
			})
		})
	}
}

func TestSharedIsSettledByForget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g Group
		alone, joined, last := make(gate), make(gate), make(gate)
		ch1 := g.DoChan(key, alone.fn)
		g.Forget(key)
		ch2 := g.DoChan(key, joined.fn)
		walkedAway := g.DoChan(key, unwanted(t))
		g.Forget(key)
		asked := ask(&g, key, last.fn)
		synctest.Wait()
		alone <- returns(1, nil)
		joined <- returns(2, nil)
		last <- returns(3, nil)
		check(t, "forgotten alone", <-ch1, Result{1, nil, false})
		check(t, "joined, then forgotten", <-ch2, Result{2, nil, true})
		check(t, "last", <-asked, answer{val: 3})
		synctest.Wait()
		check(t, "result of the one who walked away", len(walkedAway), 1)
	})
}

func TestChannelGetsOneResultAndStaysOpen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g Group
		w := make(gate)
		chans := []<-chan Result{g.DoChan(key, w.fn)}
		for range 3 {
			chans = append(chans, g.DoChan(key, unwanted(t)))
		}
		for i, ch := range chans {
			check(t, "capacity", cap(ch), 1)
			check(t, "index of the channel", slices.Index(chans, ch), i)
			silent(t, "before the end", ch)
		}
		w <- returns(1, nil)
		synctest.Wait()
		for _, ch := range chans {
			check(t, "result", <-ch, Result{1, nil, true})
		}
		synctest.Wait()
		for _, ch := range chans {
			silent(t, "after the result", ch)
		}
	})
}

func TestReadersMayWalkAway(t *testing.T) {
	// The bubble waits for all goroutines: one that blocked on a channel which
	// nobody reads would be a deadlock.
	synctest.Test(t, func(t *testing.T) {
		var g Group
		w := make(gate)
		for range 100 {
			g.DoChan(key, w.fn)
		}
		w <- returns(1, nil)
	})
}

func TestReaderThatComesAsTheCallEndsIsAnswered(t *testing.T) {
	// In the bubble, a reader that is left without a Result is a deadlock.
	synctest.Test(t, func(t *testing.T) {
		var g Group
		var wg sync.WaitGroup
		for range 1000 {
			wg.Go(func() {
				for range 100 {
					check(t, "value", (<-g.DoChan(key, returns(1, nil))).Val, any(1))
				}
			})
		}
		wg.Wait()
	})
}

func TestAnyStringIsAKey(t *testing.T) {
	long := strings.Repeat("k", 1<<20)
	keys := []string{
		"", "\x00", "a", "a\x00", "b", "\xff", "\xfe", "\xff\xfe", "\ufffd", "é", "e\u0301",
		long, long[1:], "l" + long[1:], long[1:] + "l",
	}
	synctest.Test(t, func(t *testing.T) {
		var g Group
		end := make(chan bool)
		var led, joined []<-chan Result
		for i, k := range keys {
			led = append(led, g.DoChan(k, func() (any, error) {
				<-end
				return i, nil
			}))
		}
		for _, k := range keys {
			joined = append(joined, g.DoChan(strings.Clone(k), unwanted(t)))
		}
		close(end)
		for i := range keys {
			check(t, "leader", <-led[i], Result{i, nil, true})
			check(t, "joiner", <-joined[i], Result{i, nil, true})
		}
	})
}

func TestGroupsDoNotSeeEachOthersKeys(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		groups := make([]Group, 100)
		end := make(chan bool)
		var chans []<-chan Result
		for i := range groups {
			chans = append(chans, groups[i].DoChan(key, func() (any, error) {
				<-end
				return i, nil
			}))
		}
		for i := range groups {
			if i%2 == 0 {
				groups[i].Forget(key)
			} else {
				groups[i].DoChan(key, unwanted(t))
			}
		}
		close(end)
		for i, ch := range chans {
			check(t, "result", <-ch, Result{i, nil, i%2 != 0})
		}
	})
}

func TestFirstUseByManyGivesOneNumber(t *testing.T) {
	var groups [2000]Group
	var numbers [2][len(groups)]uint64
	var turn [2]atomic.Int32 // each waits for the other before every Group
	var wg sync.WaitGroup
	for i := range numbers {
		wg.Go(func() {
			for j := range groups {
				turn[i].Add(1)
				for spins := 0; turn[1-i].Load() <= int32(j); spins++ {
					if spins > 1000 {
						runtime.Gosched()
					}
				}
				_, numbers[i][j] = groups[j].hash(key)
			}
		})
	}
	wg.Wait()
	for j := range groups {
		if a, b := numbers[0][j], numbers[1][j]; a != b {
			t.Fatalf("one Group has the numbers %d and %d", a, b)
		}
	}
}

// All Groups would contend for the next number.
func TestUsedGroupTakesNoFurtherNumber(t *testing.T) {
	var g Group
	g.Do(key, returns(1, nil))
	last := lastNumber.Load()
	g.Do(key, returns(1, nil))
	check(t, "last number", lastNumber.Load(), last)
}

func TestResultsAreThoseOfFn(t *testing.T) {
	err := &piece{"failed"}
	for _, c := range []struct {
		name string
		val  any
		err  error
	}{
		{"value", new(int), nil},
		{"nothing", nil, nil},
		{"error", nil, err},
		{"value beside an error", new(int), err},
		{"nil pointers", (*int)(nil), (*piece)(nil)},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var g Group
				v, err, shared := g.Do(key, returns(c.val, c.err))
				check(t, "alone", answer{val: v, err: err, shared: shared}, answer{val: c.val, err: c.err})
				check(t, "alone", <-g.DoChan(key, returns(c.val, c.err)), Result{c.val, c.err, false})
				answers, results := together(t, &g, returns(c.val, c.err), 2, 2)
				for _, a := range answers {
					check(t, "Do", a, answer{val: c.val, err: c.err, shared: true})
				}
				for _, r := range results {
					check(t, "DoChan", r, Result{c.val, c.err, true})
				}
			})
		})
	}
}

func TestSendingHoldsNoLock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g Group
		keys := keysInOneStripe(&g, 2)
		w := make(gate)
		leader := ask(&g, keys[0], w.fn)
		synctest.Wait()
		// A channel without the room that DoChan's have keeps the leader sending.
		full := make(chan Result)
		c := callOf(&g, keys[0])
		c.first, c.shared = full, true
		w <- returns(1, nil)
		synctest.Wait()
		silent(t, "leader, still sending", leader)
		unlocked(t, stripeOfKey(&g, key))
		for _, k := range keys {
			check(t, "another call", <-g.DoChan(k, returns(2, nil)), Result{2, nil, false})
		}
		check(t, "reader", <-full, Result{1, nil, true})
		check(t, "leader", <-leader, answer{val: 1, shared: true})
	})
}

func TestReadersAreAnsweredInTheOrderInWhichTheyCame(t *testing.T) {
	for _, n := range []int{1, 2, 7, 8, 9, 15, 16, 100} {
		t.Run(strconv.Itoa(n), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var g Group
				w := make(gate)
				leader := ask(&g, key, w.fn)
				synctest.Wait()
				c := callOf(&g, key)
				chans := make([]chan Result, n) // without room, so that one waits for the other
				for i := range chans {
					chans[i] = make(chan Result)
					if c.full() {
						c.addRoom(new(readers))
					}
					c.join()
					c.addReader(chans[i])
				}
				w <- returns(1, nil)
				for i, reader := range chans {
					synctest.Wait()
					for _, later := range chans[i+1:] {
						silent(t, "later reader", later)
					}
					check(t, "reader", <-reader, Result{1, nil, true})
				}
				check(t, "leader", <-leader, answer{val: 1, shared: true})
			})
		})
	}
}

func TestWakingHoldsNoLockAndLeavesNothingToJoin(t *testing.T) {
	// Whoever wakes first finds the leader still waking the others, if there is a
	// second processor. Nobody but the leader can hold the lock.
	for range 10 {
		synctest.Test(t, func(t *testing.T) {
			var g Group
			w := make(gate)
			go g.Do(key, w.fn)
			synctest.Wait()
			s := stripeOfKey(&g, key)
			var once sync.Once
			for range 1000 {
				go func() {
					g.Do(key, unwanted(t))
					once.Do(func() {
						if !s.mu.TryLock() {
							t.Error("the lock is held while joiners are woken")
							return
						}
						check(t, "calls that can be joined while joiners are woken", s.n, 0)
						s.mu.Unlock()
					})
				}()
			}
			synctest.Wait()
			w <- returns(1, nil)
			synctest.Wait()
		})
	}
}

func TestFnRunsUnderNoLock(t *testing.T) {
	for _, end := range []work{returns(1, nil), explodes(1), exits} {
		synctest.Test(t, func(t *testing.T) {
			var g Group
			s := stripeOfKey(&g, key)
			free := func() {
				unlocked(t, s)
				for _, k := range keysInOneStripe(&g, 3) {
					v, err, shared := g.Do(k, returns(k, nil))
					check(t, "key of the same stripe", answer{val: v, err: err, shared: shared}, answer{val: k})
				}
			}
			<-ask(&g, key, func() (any, error) {
				defer free()
				free()
				return end()
			})
			free()
		})
	}
}

// A meddler is a panic value that uses the Group when it is printed.
type meddler struct {
	t *testing.T
	g *Group
}

func (m meddler) Error() string {
	unlocked(m.t, stripeOfKey(m.g, key))
	m.g.Forget(key)
	v, _, _ := m.g.Do(key, returns("has the key", nil))
	return "meddler " + v.(string)
}

func TestPanicValueMayUseTheGroup(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g Group
		answers, _ := together(t, &g, explodes(meddler{t, &g}), 2, 0)
		for _, a := range answers {
			text := a.value.(error).Error()
			check(t, "text of the panic", text[:strings.Index(text, "\n")], "meddler has the key")
		}
	})
}

// lives are the ways for a call to go. They have to be run in a bubble.
var lives = []struct {
	name string
	live func(t *testing.T, g *Group, key string, fn, other work)
}{
	{"Do", func(t *testing.T, g *Group, key string, fn, _ work) {
		<-ask(g, key, fn)
	}},
	{"DoChan", func(t *testing.T, g *Group, key string, fn, _ work) {
		g.DoChan(key, fn)
	}},
	{"Do, joined", func(t *testing.T, g *Group, key string, fn, other work) {
		w := make(gate)
		ask(g, key, w.fn)
		synctest.Wait()
		ask(g, key, other)
		g.DoChan(key, other)
		g.DoChan(key, other)
		synctest.Wait()
		w <- fn
	}},
	{"DoChan, joined", func(t *testing.T, g *Group, key string, fn, other work) {
		w := make(gate)
		g.DoChan(key, w.fn)
		g.DoChan(key, other)
		ask(g, key, other)
		synctest.Wait()
		w <- fn
	}},
	{"Do, forgotten", func(t *testing.T, g *Group, key string, fn, _ work) {
		w := make(gate)
		ask(g, key, w.fn)
		synctest.Wait()
		g.Forget(key)
		w <- fn
	}},
	{"DoChan, joined and forgotten", func(t *testing.T, g *Group, key string, fn, other work) {
		w := make(gate)
		g.DoChan(key, w.fn)
		ask(g, key, other)
		synctest.Wait()
		g.Forget(key)
		w <- fn
	}},
	{"Do that panics", func(t *testing.T, g *Group, key string, fn, _ work) {
		<-ask(g, key, func() (any, error) {
			_, err := fn()
			return explode(err)
		})
	}},
	{"Do, joined, that panics", func(t *testing.T, g *Group, key string, fn, other work) {
		w := make(gate)
		ask(g, key, w.fn)
		synctest.Wait()
		ask(g, key, other)
		synctest.Wait()
		w <- func() (any, error) {
			_, err := fn()
			return explode(err)
		}
	}},
	{"DoChan, joined, that exits", func(t *testing.T, g *Group, key string, fn, other work) {
		w := make(gate)
		g.DoChan(key, w.fn)
		ask(g, key, other)
		synctest.Wait()
		w <- func() (any, error) {
			fn()
			return exits()
		}
	}},
}

func TestNothingOfAnEndedCallIsKept(t *testing.T) {
	for _, l := range lives {
		t.Run(l.name, func(t *testing.T) {
			var g Group
			var litter litter
			synctest.Test(t, func(t *testing.T) {
				fn := litter.fn("fn", returns(litter.piece("value"), litter.piece("error")))
				l.live(t, &g, litter.key("key"), fn, litter.fn("fn of a joiner", nil))
			})
			litter.collected(t)
			runtime.KeepAlive(&g)
		})
	}
}

func TestSpareCallIsBlank(t *testing.T) {
	for _, l := range lives {
		t.Run(l.name, func(t *testing.T) {
			var g Group
			s := stripeOfKey(&g, key)
			s.spare = nil
			synctest.Test(t, func(t *testing.T) {
				// A neighbour in the stripe, which does not become the spare.
				neighbour, w := keysInOneStripe(&g, 1)[0], make(gate)
				g.DoChan(neighbour, w.fn)
				g.DoChan(neighbour, unwanted(t))
				l.live(t, &g, key, returns(1, &piece{}), unwanted(t))
				w <- returns(nil, nil)
				synctest.Wait()
			})
			if joined := strings.Contains(l.name, "joined"); joined || s.spare == nil {
				check(t, "there is no spare call", s.spare == nil, joined)
				return
			}
			spare := reflect.ValueOf(s.spare).Elem()
			for i := range spare.NumField() {
				if name := spare.Type().Field(i).Name; name != "hash" && name != "group" && !spare.Field(i).IsZero() {
					t.Errorf("%s of the spare call is %v", name, spare.Field(i))
				}
			}
		})
	}
}

func TestUnjoinedCallIsUsedAgain(t *testing.T) {
	var g Group
	s := stripeOfKey(&g, key)
	var used [3]*call
	for i := range used {
		g.Do(key, func() (any, error) {
			used[i] = callOf(&g, key)
			return nil, nil
		})
		check(t, "spare call", s.spare, used[i])
	}
	check(t, "calls", used, [3]*call{used[0], used[0], used[0]})
}

func TestMemoryOfABurstGoesBack(t *testing.T) {
	burst, steady := 20_000, 500
	if raceEnabled {
		burst = 5000
	}
	synctest.Test(t, func(t *testing.T) {
		var g Group
		start := func(n int) (end chan bool) {
			end = make(chan bool)
			for i := range n {
				g.DoChan(fmt.Sprint(n, i), func() (any, error) {
					<-end
					return nil, nil
				})
			}
			return end
		}
		endSteady, endBurst := start(steady), start(burst)
		check(t, "calls in the burst", inTable(t), burst+steady)
		close(endBurst)
		synctest.Wait()
		// inTable also checks that no stripe has more buckets than it needs.
		check(t, "calls after the burst", inTable(t), steady)
		close(endSteady)
		synctest.Wait()
		check(t, "calls in the end", inTable(t), 0)
		for i := range table {
			check(t, "buckets in the end", len(table[i].buckets), 0)
		}
	})
}

func TestUnjoinedDoAllocatesNothing(t *testing.T) {
	var g Group
	fn := returns(nil, nil)
	check(t, "allocations of a Do", testing.AllocsPerRun(1000, func() { g.Do(key, fn) }), 0)
	n := 0
	check(t, "allocations of a Do with a closure", testing.AllocsPerRun(1000, func() {
		g.Do(key, func() (any, error) {
			n++
			return nil, nil
		})
	}), 0)
	check(t, "runs of the closure", n, 1001)
}

func TestUnjoinedDoChanAllocatesThrice(t *testing.T) {
	// The channel, its buffer, and what the new goroutine is to run.
	var g Group
	fn := returns(nil, nil)
	check(t, "allocations", testing.AllocsPerRun(1000, func() { <-g.DoChan(key, fn) }), 3)
}

func TestUsedGroupIsSmall(t *testing.T) {
	check(t, "bytes of a Group", unsafe.Sizeof(Group{}), 8)
	fn := returns(nil, nil)
	groups := make([]Group, 1001)
	for i := range table {
		table[i].spare = new(call)
	}
	check(t, "allocations of the first use", testing.AllocsPerRun(1000, func() {
		groups[0].Do(key, fn)
		groups = groups[1:]
	}), 0)
}

func TestStripesShareNoCacheLine(t *testing.T) {
	check(t, "bytes of a stripe beyond full pairs of lines", unsafe.Sizeof(stripe{})%128, 0)
	if padding := unsafe.Sizeof(stripe{}) - unsafe.Sizeof(calls{}); padding > 128 {
		t.Errorf("%d bytes of padding", padding)
	}
}

func TestHashIsSeededPerProcess(t *testing.T) {
	hashOf := func() uint64 {
		g := new(Group)
		g.number.Store(1)
		hash, _ := g.hash(key)
		return hash
	}
	if inChild() {
		fmt.Printf("hash=%#x\n", hashOf())
		return
	}
	pattern := regexp.MustCompile(`hash=(\S+)`)
	seen := map[string]bool{fmt.Sprintf("%#x", hashOf()): true}
	for range 2 {
		output, _ := child(t)
		if m := pattern.FindStringSubmatch(output); m != nil {
			seen[m[1]] = true
		}
	}
	check(t, "different hashes of a key in three processes", len(seen), 3)
}

func TestKeysAndGroupsSpread(t *testing.T) {
	const n = 1 << 18
	var g Group
	for _, of := range []struct {
		name string
		hash func(i int) uint64
	}{
		{"keys", func(i int) uint64 {
			hash, _ := g.hash(strconv.Itoa(i))
			return hash
		}},
		{"groups", func(int) uint64 {
			var g Group
			hash, _ := g.hash(key)
			return hash
		}},
	} {
		t.Run(of.name, func(t *testing.T) {
			// Sixteen buckets in each of 256 stripes get 64 each, give or take 8.
			cells := make(map[*stripe]*[16]int)
			for i := range table {
				cells[&table[i]] = new([16]int)
			}
			for i := range n {
				hash := of.hash(i)
				cells[stripeOf(hash)][hash%16]++
			}
			for _, c := range cells {
				if lo, hi := slices.Min(c[:]), slices.Max(c[:]); lo < 10 || hi > 128 {
					t.Fatalf("buckets of one stripe have between %d and %d", lo, hi)
				}
			}
		})
	}
}

// These are for the race detector, but also check what is read.

func TestFnSynchronizesBeforeItsAnswers(t *testing.T) {
	for range 100 {
		synctest.Test(t, func(t *testing.T) {
			var g Group
			var n int
			w := make(gate)
			go func() {
				g.Do(key, w.fn)
				check(t, "read by the leader", n, 1)
			}()
			synctest.Wait()
			for range 3 {
				go func() {
					g.Do(key, unwanted(t))
					check(t, "read by a joiner", n, 1)
				}()
				go func() {
					<-g.DoChan(key, unwanted(t))
					check(t, "read by a reader", n, 1)
				}()
			}
			synctest.Wait()
			w <- func() (any, error) {
				n = 1
				return nil, nil
			}
			synctest.Wait()
		})
	}
}

func TestPanicAndExitSynchronizeBeforeTheirAnswers(t *testing.T) {
	for _, end := range []work{explodes(1), exits} {
		synctest.Test(t, func(t *testing.T) {
			var g Group
			var n int
			w := make(gate)
			go func() {
				defer func() { recover() }()
				g.Do(key, w.fn)
			}()
			synctest.Wait()
			for range 3 {
				go func() {
					defer func() {
						recover()
						check(t, "read by a joiner", n, 1)
					}()
					g.Do(key, unwanted(t))
				}()
			}
			synctest.Wait()
			w <- func() (any, error) {
				n = 1
				return end()
			}
			synctest.Wait()
		})
	}
}

func TestCallsOfAKeyAreOrdered(t *testing.T) {
	var g Group
	var n int // written by every fn, with no other order between them
	var wg sync.WaitGroup
	var led [4]int
	for i := range led {
		wg.Go(func() {
			for j := range 1000 {
				fn := func() (any, error) {
					n++
					led[i]++
					return nil, nil
				}
				if j%2 == 0 {
					g.Do(key, fn)
				} else {
					<-g.DoChan(key, fn)
				}
			}
		})
	}
	wg.Wait()
	check(t, "runs", n, led[0]+led[1]+led[2]+led[3])
}

func TestMakingRoomSynchronizesBeforeTheNextCall(t *testing.T) {
	for name, makeRoom := range map[string]func(*Group, gate){
		"Forget":         func(g *Group, _ gate) { g.Forget(key) },
		"ForgetUnshared": func(g *Group, _ gate) { g.ForgetUnshared(key) },
		"leaving": func(g *Group, w gate) {
			g.DoContext(newFleeting(), key, func(context.Context) (any, error) { return w.fn() })
		},
	} {
		var g Group
		var n int
		w := make(gate)
		if name != "leaving" { // whoever leaves has started the call
			g.DoChan(key, w.fn)
		}
		step := func() {
			n = 1
			makeRoom(&g, w)
		}
		go step()
		eventually(t, name, func() bool { return len(goroutines("", "."+t.Name()+" in goroutine ")) == 0 })
		v, _, _ := g.Do(key, func() (any, error) { return n, nil })
		check(t, "read by the call after "+name, v, 1)
		w <- returns(nil, nil)
	}
}

// The tests of bubbles have one Group and one key, so that they get each other's
// calls to use again.
var bubbled Group

func useWithoutJoining(t *testing.T) {
	v, err, shared := bubbled.Do(key, returns(1, nil))
	check(t, "Do", answer{val: v, err: err, shared: shared}, answer{val: 1})
	check(t, "DoChan", <-bubbled.DoChan(key, returns(2, nil)), Result{2, nil, false})
	w := make(gate)
	forgotten := bubbled.DoChan(key, w.fn)
	bubbled.Forget(key)
	w <- returns(3, nil)
	check(t, "forgotten", <-forgotten, Result{3, nil, false})
	check(t, "panic", (<-ask(&bubbled, key, explodes(4))).value != nil, true)
	check(t, "Goexit", (<-ask(&bubbled, key, exits)).exited, true)
}

// useWithJoining can be called in a bubble and outside.
func useWithJoining(t *testing.T) {
	w := make(gate)
	ch := bubbled.DoChan(key, w.fn)
	asked := ask(&bubbled, key, unwanted(t))
	eventually(t, "joining", func() bool { return joinersOf(&bubbled, key) == 1 })
	w <- returns(1, nil)
	check(t, "leader", <-ch, Result{1, nil, true})
	check(t, "joiner", <-asked, answer{val: 1, shared: true})
}

func TestGroupMayGoFromBubbleToBubble(t *testing.T) {
	for _, use := range []func(*testing.T){useWithoutJoining, useWithJoining} {
		for range 3 {
			synctest.Test(t, use)
			synctest.Test(t, use)
			use(t)
		}
	}
}

func TestJoinerIsDurablyBlocked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		asked := ask(&bubbled, key, func() (any, error) {
			time.Sleep(time.Hour)
			return 1, nil
		})
		synctest.Wait()
		joined := ask(&bubbled, key, unwanted(t))
		check(t, "joiner", <-joined, answer{val: 1, shared: true})
		check(t, "leader", <-asked, answer{val: 1, shared: true})
		check(t, "time that passed in the bubble", time.Since(start), time.Hour)
	})
}

func TestCallMayBeJoinedAcrossTheEdgeOfABubble(t *testing.T) {
	joinerWaits := func() bool { return len(goroutines("sync.WaitGroup.Wait", ".(*Group).Do(")) == 1 }
	lead := func(t *testing.T) {
		v, err, shared := bubbled.Do(key, func() (any, error) {
			eventually(t, "the joiner waits", joinerWaits)
			return 1, nil
		})
		check(t, "leader", answer{val: v, err: err, shared: shared}, answer{val: 1, shared: true})
	}
	join := func(t *testing.T) {
		eventually(t, "the call is in flight", func() bool { return callOf(&bubbled, key) != nil })
		v, err, shared := bubbled.Do(key, unwanted(t))
		check(t, "joiner", answer{val: v, err: err, shared: shared}, answer{val: 1, shared: true})
	}
	joinInNoTime := func(t *testing.T) {
		start := time.Now()
		defer time.NewTimer(time.Hour).Stop() // which a durable wait would let pass
		join(t)
		check(t, "time that passed in the bubble", time.Since(start), 0)
	}
	inBubble := func(f func(*testing.T)) func(*testing.T) {
		return func(t *testing.T) { synctest.Test(t, f) }
	}
	for _, c := range []struct {
		name         string
		leader, join func(*testing.T)
	}{
		{"led inside", inBubble(lead), join},
		{"joined inside", lead, inBubble(joinInNoTime)},
		{"in two bubbles", inBubble(lead), inBubble(joinInNoTime)},
	} {
		t.Run(c.name, func(t *testing.T) {
			var wg sync.WaitGroup
			wg.Go(func() { c.leader(t) })
			wg.Go(func() { c.join(t) })
			wg.Wait()
			useWithoutJoining(t)
		})
	}
}

func TestBubblesMayShareStripes(t *testing.T) {
	var g [2]Group
	other := 0
	s := stripeOfKey(&g[0], key)
	for stripeOfKey(&g[1], strconv.Itoa(other)) != s {
		other++
	}
	var wg sync.WaitGroup
	for i, k := range []string{key, strconv.Itoa(other)} {
		wg.Go(func() {
			for range 100 {
				synctest.Test(t, func(t *testing.T) {
					for range 10 {
						v, err, shared := g[i].Do(k, returns(i, nil))
						check(t, "Do", answer{val: v, err: err, shared: shared}, answer{val: i})
						check(t, "DoChan", <-g[i].DoChan(k, returns(i, nil)), Result{i, nil, false})
					}
				})
			}
		})
	}
	wg.Wait()
}

// panicOf checks that all answers are the same panic, and returns that.
func panicOf(t *testing.T, answers []answer) *panicError {
	t.Helper()
	p, ok := answers[0].value.(*panicError)
	if !ok {
		t.Fatalf("Do panicked with %#v, want a *panicError", answers[0].value)
	}
	for _, a := range answers {
		check(t, "Do", a, answer{value: p})
	}
	return p
}

func TestPanicReachesEveryCallerInDo(t *testing.T) {
	errBoom := &piece{"boom"}
	for _, value := range []any{"boom", errBoom, struct {
		n int
		s string
	}{7, "boom"}, 7, fmt.Errorf("wrapped: %w", errBoom)} {
		t.Run(fmt.Sprintf("%T", value), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var g Group
				alone := panicOf(t, []answer{<-ask(&g, key, explodes(value))})
				check(t, "value of the panic", alone.value, value)
				answers, _ := together(t, &g, explodes(value), 3, 0)
				p := panicOf(t, answers)
				check(t, "value of the panic", p.value, value)

				check(t, "text", p.Error(), fmt.Sprintf("%v\n\n%s", value, p.stack))
				contains(t, string(p.stack), ".explode(", "singleflight_test.go:")
				if regexp.MustCompile(`(?m)^goroutine `).Match(p.stack) {
					t.Errorf("the stack names a goroutine:\n%s", p.stack)
				}
				err, _ := value.(error)
				check(t, "unwrapped", errors.Unwrap(p), err)
				wrapped := fmt.Errorf("recovered: %w", p)
				check(t, "errors.Is", errors.Is(wrapped, errBoom), err != nil)
				var as *piece
				check(t, "errors.As", errors.As(wrapped, &as), err != nil)
				if err != nil {
					check(t, "what errors.As found", as, errBoom)
				}
			})
		})
	}
}

func TestKeyIsFreeOnceFnPanicked(t *testing.T) {
	var g Group
	defer func() {
		p, ok := recover().(*panicError)
		check(t, "panicked", ok && p.value == "boom", true)
	}()
	defer func() {
		v, err, shared := g.Do(key, returns(1, nil))
		check(t, "while panicking", answer{val: v, err: err, shared: shared}, answer{val: 1})
	}()
	g.Do(key, explodes("boom"))
}

func TestPanicThroughNestedGroups(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var outer, inner Group
		errBoom := &piece{"boom"}
		answers, _ := together(t, &outer, func() (any, error) {
			v, err, _ := inner.Do(key, explodes(errBoom))
			return v, err
		}, 1, 0)
		p := panicOf(t, answers)
		in, ok := p.value.(*panicError)
		if !ok {
			t.Fatalf("the outer panic is of %#v, want the inner *panicError", p.value)
		}
		check(t, "inner value", in.value, any(errBoom))
		check(t, "errors.Is", errors.Is(p, errBoom), true)
		check(t, "text", p.Error(), fmt.Sprintf("boom\n\n%s\n\n%s", in.stack, p.stack))
	})
}

// say reports to the parent of a child process.
func say(what string, v any) {
	fmt.Printf("SAID: %s: %+v\n", what, v)
}

// Only crashes run the go and the select statement of deliver, which is why no
// coverage is ever written for these two. Everything here runs in a bubble.
var crashes = []struct {
	name  string
	crash func(t *testing.T)
	want  []string // in the output
	env   []string
}{
	{
		name: "DoChan leads alone",
		crash: func(t *testing.T) {
			say("reader got", <-new(Group).DoChan(key, explodes("string boom")))
		},
		want: []string{"panic: string boom\n", ".explode("},
	},
	{
		name: "DoChan leads and nobody receives",
		crash: func(t *testing.T) {
			new(Group).DoChan(key, explodes("boom"))
			synctest.Wait()
		},
		want: []string{"panic: boom\n", ".explode("},
	},
	{
		name: "DoChan leads, both kinds join",
		crash: func(t *testing.T) {
			var g Group
			w := make(gate)
			ch := g.DoChan(key, w.fn)
			ch2 := g.DoChan(key, unwanted(t))
			ask(&g, key, unwanted(t)) // and may recover before all is over
			synctest.Wait()
			w <- explodes(&piece{"error boom"})
			select {
			case r := <-ch:
				say("leader got", r)
			case r := <-ch2:
				say("reader got", r)
			}
		},
		want: []string{"panic: error boom\n", ".explode("},
	},
	{
		name: "Do leads, a reader joins",
		crash: func(t *testing.T) {
			answers, results := together(t, new(Group), explodes(struct{ n int }{7}), 1, 1)
			say("they got", answers)
			say("they got", results)
		},
		want: []string{"panic: {7}\n", ".explode("},
	},
	{
		name: "forgotten",
		crash: func(t *testing.T) {
			var g Group
			w := make(gate)
			asked := ask(&g, key, w.fn)
			synctest.Wait()
			ch := g.DoChan(key, unwanted(t))
			g.Forget(key)
			w <- explodes("boom")
			select {
			case a := <-asked:
				say("leader got", a)
			case r := <-ch:
				say("reader got", r)
			}
		},
		want: []string{"panic: boom\n", ".explode("},
	},
	{
		name: "while the goroutine exits",
		crash: func(t *testing.T) {
			answers, results := together(t, new(Group), explodesWhileExiting("late boom"), 1, 1)
			say("they got", answers)
			say("they got", results)
		},
		want: []string{"panic: late boom\n", ".explode("},
	},
	{
		name: "nil",
		crash: func(t *testing.T) {
			say("reader got", <-new(Group).DoChan(key, explodes(nil)))
		},
		want: []string{"panic: " + new(runtime.PanicNilError).Error() + "\n", ".explode("},
	},
	{
		name: "nil that is no error",
		crash: func(t *testing.T) {
			say("reader got", <-new(Group).DoChan(key, explodes(nil)))
		},
		want: []string{"panic: <nil>\n", ".explode("},
		env:  []string{"GODEBUG=panicnil=1"},
	},
	{
		name: "nil fn",
		crash: func(t *testing.T) {
			say("reader got", <-new(Group).DoChan(key, nil))
		},
		want: []string{"panic: runtime error: invalid memory address or nil pointer dereference\n", ".doCall("},
	},
	{
		name: "the value uses the Group",
		crash: func(t *testing.T) {
			var g Group
			answers, results := together(t, &g, explodes(meddler{t, &g}), 1, 1)
			say("they got", answers)
			say("they got", results)
		},
		want: []string{"panic: meddler has the key\n", ".explode("},
	},
	{
		name: "all others get it as well",
		crash: func(t *testing.T) {
			var g Group
			w := make(gate)
			reader := g.DoChan(key, w.fn)
			synctest.Wait()
			others := []<-chan answer{ask(&g, key, unwanted(t)), attempt(func() (any, error, bool) {
				return g.DoContext(t.Context(), key, neverCalled(t))
			})}
			synctest.Wait()
			value := make(lastWords)
			w <- explodes(value)
			for _, other := range others {
				if p, ok := (<-other).value.(PanicError); !ok || p.Value() != value {
					say("another got no panic", nil)
				}
			}
			close(value)
			say("reader got", <-reader)
		},
		want: []string{"panic: last words\n", ".explode("},
	},
}

// lastWords keeps the process from dying of it until it is closed.
type lastWords chan struct{}

func (l lastWords) Error() string {
	<-l
	return "last words"
}

func TestPanicWithReaderCrashes(t *testing.T) {
	for _, c := range crashes {
		t.Run(c.name, func(t *testing.T) {
			if inChild() {
				synctest.Test(t, c.crash)
				say("alive", nil)
				return
			}
			// With a second processor, the process can die before fn's goroutine
			// has come to rest, and then its stack is not available.
			output, code := child(t, append(c.env, "GOTRACEBACK=all", "GOMAXPROCS=1")...)
			check(t, "exit code", code, 2)
			contains(t, output, c.want...)
			if strings.Contains(output, "SAID: ") {
				t.Errorf("not everything died at once:\n%s", output)
			}
			// fn's goroutine, which has left fn, is in the dump by way of doCall.
			check(t, "kept goroutines", len(tracesIn(output, "", ".doCall(")), 1)
		})
	}
}

func TestExitReachesEveryCaller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g Group
		check(t, "Do alone", <-ask(&g, key, exits), answer{exited: true})
		check(t, "DoChan alone", <-g.DoChan(key, exits), Result{nil, ErrGoexit, false})
		answers, results := together(t, &g, exits, 2, 2)
		for _, a := range answers {
			check(t, "Do", a, answer{exited: true})
		}
		for _, r := range results {
			check(t, "DoChan", r, Result{nil, ErrGoexit, true})
		}
		v, err, shared := g.Do(key, returns(1, nil))
		check(t, "next call", answer{val: v, err: err, shared: shared}, answer{val: 1})
	})
}

func TestExitEndsACallThatHadAValue(t *testing.T) {
	// The results of fn are set when its deferred function exits.
	fn := func() (v any, err error) {
		defer runtime.Goexit()
		return 1, errors.New("lost")
	}
	synctest.Test(t, func(t *testing.T) {
		var g Group
		answers, results := together(t, &g, fn, 1, 1)
		for _, a := range answers {
			check(t, "Do", a, answer{exited: true})
		}
		check(t, "DoChan", results[0], Result{nil, ErrGoexit, true})
	})
}

// panicNil has panic(nil) panic with nil, as it did before Go 1.21.
func panicNil(t *testing.T) {
	t.Setenv("GODEBUG", "panicnil=1")
	defer func() {
		if v := recover(); v != nil {
			t.Skipf("GODEBUG=panicnil=1 has no effect here: recovered %v", v)
		}
	}()
	explode(nil)
}

func TestPanicWithNilIsAPanic(t *testing.T) {
	test := func(t *testing.T, unwrapped error) {
		synctest.Test(t, func(t *testing.T) {
			var g Group
			panicOf(t, []answer{<-ask(&g, key, explodes(nil))})
			answers, _ := together(t, &g, explodes(nil), 2, 0)
			p := panicOf(t, answers)
			check(t, "type of the value", reflect.TypeOf(p.Unwrap()), reflect.TypeOf(unwrapped))
			contains(t, string(p.stack), ".explode(")
			contains(t, p.Error(), fmt.Sprintf("%v\n\n", p.value))
		})
	}
	t.Run("panicnil=0", func(t *testing.T) { test(t, new(runtime.PanicNilError)) })
	t.Run("panicnil=1", func(t *testing.T) {
		panicNil(t)
		test(t, nil)
	})
}

func explodesWhileExiting(v any) work {
	return func() (any, error) {
		defer explode(v)
		return exits()
	}
}

func TestPanicWhileExitingIsAPanic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g Group
		alone := <-ask(&g, key, explodesWhileExiting("late"))
		check(t, "exited although it recovered", alone.exited, true)
		check(t, "value", alone.value.(*panicError).value, any("late"))

		answers, _ := together(t, &g, explodesWhileExiting("late"), 2, 0)
		check(t, "leader exited although it recovered", answers[0].exited, true)
		p := panicOf(t, answers[1:])
		check(t, "leader's panic", answers[0].value, any(p))
		check(t, "value", p.value, any("late"))
		contains(t, string(p.stack), ".explode(")
	})
}

func TestPanicWithNilWhileExitingCountsAsExit(t *testing.T) {
	panicNil(t)
	synctest.Test(t, func(t *testing.T) {
		var g Group
		answers, results := together(t, &g, explodesWhileExiting(nil), 1, 1)
		for _, a := range answers {
			check(t, "Do", a, answer{exited: true})
		}
		check(t, "DoChan", results[0], Result{nil, ErrGoexit, true})
	})
}

func TestExitWhilePanickingIsAnExit(t *testing.T) {
	fn := func() (any, error) {
		defer runtime.Goexit()
		return explode("lost")
	}
	synctest.Test(t, func(t *testing.T) {
		var g Group
		answers, results := together(t, &g, fn, 1, 1)
		for _, a := range answers {
			check(t, "Do", a, answer{exited: true})
		}
		check(t, "DoChan", results[0], Result{nil, ErrGoexit, true})
	})
}

func TestRecoveredPanicIsNone(t *testing.T) {
	fn := func() (v any, err error) {
		defer func() { err = fmt.Errorf("recovered %v", recover()) }()
		return explode("boom")
	}
	synctest.Test(t, func(t *testing.T) {
		answers, results := together(t, new(Group), fn, 1, 1)
		for _, a := range answers {
			check(t, "value that Do panicked with", a.value, nil)
			check(t, "error", a.err.Error(), "recovered boom")
		}
		check(t, "error", results[0].Err.Error(), "recovered boom")
	})
}

func TestErrorThatFnReturnsIsOrdinary(t *testing.T) {
	p := panicOf(t, []answer{<-ask(new(Group), key, explodes("boom"))})
	for _, returned := range []error{
		p,
		fmt.Errorf("wrapped: %w", p),
		ErrGoexit,
		fmt.Errorf("wrapped: %w", ErrGoexit),
		(<-new(Group).DoChan(key, exits)).Err,
	} {
		synctest.Test(t, func(t *testing.T) {
			var g Group
			check(t, "alone", <-ask(&g, key, returns(1, returned)), answer{val: 1, err: returned})
			answers, results := together(t, &g, returns(1, returned), 2, 2)
			for _, a := range answers {
				check(t, "Do", a, answer{val: 1, err: returned, shared: true})
			}
			for _, r := range results {
				check(t, "DoChan", r, Result{1, returned, true})
			}
		})
	}
}

func TestNilFnPanicsInItsLeaderOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g Group
		p := panicOf(t, []answer{<-ask(&g, key, nil)})
		if _, ok := p.value.(runtime.Error); !ok {
			t.Errorf("panicked with %#v, want a runtime.Error", p.value)
		}
		w := make(gate)
		leader := ask(&g, key, w.fn)
		synctest.Wait()
		joiner, reader := ask(&g, key, nil), g.DoChan(key, nil)
		synctest.Wait()
		w <- returns(1, nil)
		check(t, "leader", <-leader, answer{val: 1, shared: true})
		check(t, "joiner", <-joiner, answer{val: 1, shared: true})
		check(t, "reader", <-reader, Result{1, nil, true})
	})
}

func TestForgottenCallLeavesItsSuccessorAlone(t *testing.T) {
	for _, end := range []struct {
		name      string
		fn        work
		forgotten answer
	}{
		{"return", returns(1, nil), answer{val: 1}},
		{"exit", exits, answer{exited: true}},
	} {
		t.Run(end.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var g Group
				first, second := make(gate), make(gate)
				forgotten := ask(&g, key, first.fn)
				synctest.Wait()
				g.Forget(key)
				successor := ask(&g, key, second.fn)
				synctest.Wait()
				first <- end.fn
				check(t, "forgotten", <-forgotten, end.forgotten)
				joiner := g.DoChan(key, unwanted(t))
				second <- returns(2, nil)
				check(t, "successor", <-successor, answer{val: 2, shared: true})
				check(t, "joiner of the successor", <-joiner, Result{2, nil, true})
				check(t, "calls in flight", inTable(t), 0)
			})
		})
	}
}

func TestForgetOfAnUnknownKeyDoesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g, used Group
		g.Forget(key)
		w := make(gate)
		ch := used.DoChan(key, w.fn)
		keys := keysInOneStripe(&used, 3)
		for _, k := range append(keys, "", "key ") {
			used.Forget(k)
		}
		g.Forget(key)
		joiner := ask(&used, key, unwanted(t))
		synctest.Wait()
		w <- returns(1, nil)
		check(t, "leader", <-ch, Result{1, nil, true})
		check(t, "joiner", <-joiner, answer{val: 1, shared: true})
	})
}

func TestFnMayUseItsOwnGroup(t *testing.T) {
	for _, c := range []struct {
		name string
		use  func(t *testing.T, g *Group) <-chan Result
		want Result // of the channel
		sees bool   // whether the call of fn is joined
	}{
		{"Forget", func(t *testing.T, g *Group) <-chan Result {
			g.Forget(key)
			g.Forget("unknown")
			return g.DoChan("other", returns(1, nil))
		}, Result{1, nil, false}, false},
		{"Do of another key", func(t *testing.T, g *Group) <-chan Result {
			v, err, shared := g.Do("other", returns(1, nil))
			ch := make(chan Result, 1)
			ch <- Result{v, err, shared}
			return ch
		}, Result{1, nil, false}, false},
		{"DoChan of the same key", func(t *testing.T, g *Group) <-chan Result {
			return g.DoChan(key, unwanted(t))
		}, Result{"fn's", nil, true}, true},
		{"Forget, then Do of the same key", func(t *testing.T, g *Group) <-chan Result {
			g.Forget(key)
			v, err, shared := g.Do(key, returns(2, nil))
			ch := make(chan Result, 1)
			ch <- Result{v, err, shared}
			return ch
		}, Result{2, nil, false}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				for _, byChan := range []bool{false, true} {
					var g Group
					var ch <-chan Result
					fn := func() (any, error) {
						ch = c.use(t, &g)
						return "fn's", nil
					}
					if byChan {
						check(t, "leader", <-g.DoChan(key, fn), Result{"fn's", nil, c.sees})
					} else {
						check(t, "leader", <-ask(&g, key, fn), answer{val: "fn's", shared: c.sees})
					}
					check(t, "within fn", <-ch, c.want)
				}
			})
		})
	}
}

func TestDoOfItsOwnKeyWaitsForEver(t *testing.T) {
	if inChild() {
		synctest.Test(t, func(t *testing.T) {
			var g Group
			g.Do(key, func() (any, error) {
				v, err, _ := g.Do(key, unwanted(t))
				say("within fn", v)
				return v, err
			})
		})
		return
	}
	output, code := child(t, "GOTRACEBACK=all")
	check(t, "exit code", code, 2)
	contains(t, output, "deadlock")
	if strings.Contains(output, "SAID: ") {
		t.Errorf("Do within fn returned:\n%s", output)
	}
	waiting := tracesIn(output, "sync.WaitGroup.Wait", ".TestDoOfItsOwnKeyWaitsForEver.")
	check(t, "goroutines that wait for themselves", len(waiting), 1)
}

func TestStripeGrowsAndShrinks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g Group
		s := stripeOfKey(&g, key)
		keys := keysInOneStripe(&g, 2000)
		gates := make([]gate, len(keys))
		chans := make([]<-chan Result, len(keys))
		state := func(i, n int) {
			s.mu.Lock()
			defer s.mu.Unlock()
			check(t, "calls in the stripe", s.n, n)
			if i%16 == 0 || n < 64 {
				sound(t, &s.calls)
			}
		}
		for i, k := range keys {
			gates[i] = make(gate)
			chans[i] = g.DoChan(k, gates[i].fn)
			state(i, i+1)
		}
		forgotten := func(i int) bool { return i%3 == 0 }
		left := len(keys)
		for i, k := range keys {
			if forgotten(i) {
				g.Forget(k)
				left--
				state(i, left)
			}
		}
		for i, k := range keys {
			c := callOf(&g, k)
			check(t, "in flight", c != nil && c.key == k, !forgotten(i))
		}
		for _, i := range rand.New(rand.NewPCG(1, 2)).Perm(len(keys)) {
			gates[i] <- returns(i, nil)
			check(t, "result", <-chans[i], Result{i, nil, false})
			if !forgotten(i) {
				left--
			}
			state(i, left)
		}
		check(t, "buckets in the end", len(s.buckets), 0)
	})
}

// Forget leaves it to the ends of the calls to give the buckets back.
func TestForgettingTheLastCallEmptiesItsBucket(t *testing.T) {
	var s calls
	var all []*call
	for n := range 2*chainMax + 1 {
		all = append(all, s.begin(uint64(n), 1, key))
	}
	for _, c := range all {
		s.forget(c)
		if !c.out || c.next != nil || s.find(c.hash, c.group, c.key) != nil {
			t.Fatalf("the call of hash %d is not out of the table", c.hash)
		}
	}
	check(t, "number of calls", s.n, 0)
	for _, b := range s.buckets {
		check(t, "bucket", b, bucket{})
	}
	c := s.begin(1, 1, key)
	check(t, "call that is the only one", s.find(1, 1, key), c)
	check(t, "calls beside the buckets", s.few, bucket{})
	s.finish(c)
	check(t, "buckets after one call has ended", len(s.buckets), chainMax)
}

func TestTagsTellCallsApart(t *testing.T) {
	tags := make(map[uint64]bool)
	for i := range uint64(256) {
		tags[tag(i<<32)] = true
	}
	check(t, "tags", len(tags), 128) // the lowest bit is always set
	check(t, "tags with 0", tags[0], false)
}

func TestStripeHasBucketsForAsManyCallsAsNeedThem(t *testing.T) {
	var s calls
	var all []*call
	for n := 1; n <= 2*chainMax+1; n++ {
		all = append(all, s.begin(uint64(n), 1, key))
		want := 2 * chainMax
		switch {
		case n <= chainMax:
			want = 0
		case n <= 2*chainMax:
			want = chainMax
		}
		check(t, fmt.Sprint("buckets of ", n, " calls"), len(s.buckets), want)
	}
	for n := len(all) - 1; n >= 0; n-- {
		s.finish(all[n])
		want := 0
		switch {
		case n >= chainMax:
			want = 2 * chainMax
		case n >= chainMax/2:
			want = chainMax
		}
		check(t, fmt.Sprint("buckets when ", n, " calls are left"), len(s.buckets), want)
	}
}

func TestTagsTellWhichCallsAreNotInABucket(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	var b bucket
	var all []*call
	for step := range 4000 {
		if r.IntN(20) < len(all) {
			i := r.IntN(len(all))
			b.pull(all[i])
			all = slices.Delete(all, i, i+1)
		} else {
			all = append(all, &call{hash: r.Uint64()})
			b.push(all[len(all)-1])
		}
		for want := range uint64(256) {
			hash := want << 32
			there := slices.ContainsFunc(all, func(c *call) bool { return tag(c.hash) == tag(hash) })
			if got := b.mayHave(hash); got != (there || len(all) >= 8) {
				t.Fatalf("step %d: mayHave is %t, with the tag %#x and %d calls", step, got, tag(hash), len(all))
			}
		}
	}
}

func TestCallsOfEqualHashAreToldApart(t *testing.T) {
	for _, others := range []int{0, 100} {
		var s calls
		for i := range others {
			s.begin(uint64(i), 1, "other")
		}
		const hash = 1 << 40
		type id struct {
			group uint64
			key   string
		}
		ids := []id{{1, "a"}, {1, "b"}, {2, "a"}, {2, "b"}, {3, ""}}
		started := make(map[id]*call)
		for _, id := range ids {
			started[id] = s.begin(hash, id.group, id.key)
		}
		for n, gone := range ids {
			for _, id := range ids[n:] {
				check(t, "call found", s.find(hash, id.group, id.key), started[id])
			}
			check(t, "unknown key", s.find(hash, 3, "a"), nil)
			check(t, "unknown hash", s.find(hash+1<<50, gone.group, gone.key), nil)
			s.finish(started[gone])
			check(t, "call found after its end", s.find(hash, gone.group, gone.key), nil)
			sound(t, &s)
		}
	}
}

func TestVetWarnsOfACopiedGroup(t *testing.T) {
	if testing.Short() {
		t.Skip("runs the go command")
	}
	if _, err := exec.LookPath("go"); err != nil {
		t.Skip("there is no go command")
	}
	dir := t.TempDir()
	write := func(name, text string) {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o777), os.WriteFile(path, []byte(text), 0o666)); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"singleflight.go", "panic.go"} {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		write("singleflight/"+name, string(text))
	}
	const header = "package vetted\n\nimport \"vetted/singleflight\"\n\n"
	write("go.mod", "module vetted\n\ngo 1.25.0\n")
	write("copied.go", header+"func copied(g *singleflight.Group) singleflight.Group { h := *g; return h }\n")
	write("shared.go", header+"func shared(g *singleflight.Group) *singleflight.Group { h := g; return h }\n")
	cmd := exec.Command("go", "vet", ".")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GOWORK=off", "GOFLAGS=")
	output, err := cmd.CombinedOutput()
	if err == nil {
		t.Error("go vet found nothing")
	}
	contains(t, string(output), "copied.go:5:", "copies lock value")
	if strings.Contains(string(output), "shared.go") {
		t.Errorf("go vet dislikes a program that copies nothing:\n%s", output)
	}
}

func askDo(g *Group, key string, j *job) <-chan answer {
	return ask(g, key, j.plain)
}

func askChan(g *Group, key string, j *job) <-chan answer {
	return attempt(func() (any, error, bool) {
		r := <-g.DoChan(key, j.plain)
		return r.Val, r.Err, r.Shared
	})
}

func askContext(ctx context.Context, g *Group, key string, j *job) <-chan answer {
	return attempt(func() (any, error, bool) { return g.DoContext(ctx, key, j.run) })
}

// askers are the ways to start or join a call without being able to leave it.
var askers = []struct {
	name string
	ask  func(g *Group, key string, j *job) <-chan answer
}{
	{"Do", askDo},
	{"DoChan", askChan},
	{"DoContext", func(g *Group, key string, j *job) <-chan answer {
		return askContext(context.Background(), g, key, j)
	}},
}

// got returns the answer of a caller in this bubble. It fails the test if that
// caller still waits when everybody does.
func got(t *testing.T, ch <-chan answer) answer {
	t.Helper()
	synctest.Wait()
	select {
	case r := <-ch:
		return r
	default:
		t.Fatal("the caller still waits")
		panic("unreachable")
	}
}

// wantReply fails the test unless the callers in this bubble have got want.
func wantReply(t *testing.T, want answer, callers ...<-chan answer) {
	t.Helper()
	for i, ch := range callers {
		if r := got(t, ch); r != want {
			t.Errorf("caller %d got %v, want %v", i, r, want)
		}
	}
}

// wantWaiting fails the test unless the callers in this bubble all wait.
func wantWaiting(t *testing.T, callers ...<-chan answer) {
	t.Helper()
	synctest.Wait()
	for i, ch := range callers {
		select {
		case r := <-ch:
			t.Fatalf("caller %d does not wait but got %v", i, r)
		default:
		}
	}
}

// A job has an fn that runs until it is told how to end, and heeds no context.
type job struct {
	runs atomic.Int32
	ctx  context.Context // the last that fn was given; nil for plain
	how  chan func() (any, error)
}

func newJob() *job { return &job{how: make(chan func() (any, error))} }

func (j *job) run(ctx context.Context) (any, error) {
	j.ctx = ctx
	j.runs.Add(1)
	return (<-j.how)()
}

func (j *job) plain() (any, error) {
	j.runs.Add(1)
	return (<-j.how)()
}

func (j *job) giveBack(val any, err error) {
	j.how <- returns(val, err)
}

func (j *job) panics(value any) {
	j.how <- func() (any, error) { panic(value) }
}

func (j *job) exits() {
	j.how <- exits
}

// neverCalled is an fn that must not be called.
func neverCalled(t *testing.T) func(context.Context) (any, error) {
	return func(context.Context) (any, error) { return unwanted(t)() }
}

// callOf returns the call of key that can be joined, or nil.
func callOf(g *Group, key string) *call {
	hash, group := g.hash(key)
	s := stripeOf(hash)
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.find(hash, group, key)
}

// joinersOf returns how many callers have joined the call of key and not left,
// or -1 if there is no call.
func joinersOf(g *Group, key string) int {
	hash, group := g.hash(key)
	s := stripeOf(hash)
	s.mu.Lock()
	defer s.mu.Unlock()
	if c := s.find(hash, group, key); c != nil {
		return int(c.waiting)
	}
	return -1
}

// callsOf returns how many calls of the Group are in the table.
func callsOf(g *Group) (n int) {
	for i := range table {
		s := &table[i]
		s.mu.Lock()
		for _, b := range append(s.buckets, s.few) {
			for c := b.chain; c != nil; c = c.next {
				if c.group == g.number.Load() {
					n++
				}
			}
		}
		s.mu.Unlock()
	}
	return n
}

// inTime fails the test if f hangs. It is for what would not be durably blocked
// in a bubble: a lock that is never released.
func inTime(t *testing.T, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	select {
	case <-done:
	case <-time.After(20 * time.Second):
		t.Fatal("deadlock")
	}
}

// A fleeting context is alive when it is first looked at and done right after.
// So DoContext attends a call with it and leaves again, without waiting.
type fleeting struct {
	context.Context
	looked bool
}

var closedChannel = func() <-chan struct{} {
	ch := make(chan struct{})
	close(ch)
	return ch
}()

func newFleeting() *fleeting { return &fleeting{Context: context.Background()} }

func (f *fleeting) Done() <-chan struct{} { return closedChannel }

func (f *fleeting) Err() error {
	if !f.looked {
		f.looked = true
		return nil
	}
	return context.Canceled
}

// A customContext ends with an error of its own.
type customContext struct {
	context.Context
	done  chan struct{}
	ended atomic.Bool
}

var errCustom = errors.New("custom end")

func newCustomContext() *customContext {
	return &customContext{Context: context.Background(), done: make(chan struct{})}
}

func (c *customContext) Done() <-chan struct{} { return c.done }

func (c *customContext) Err() error {
	if c.ended.Load() {
		return errCustom
	}
	return nil
}

func (c *customContext) cancel() {
	c.ended.Store(true)
	close(c.done)
}

// marks counts those of its marks that the collector has not freed.
type marks struct{ left atomic.Int32 }

type mark [64]byte

func (m *marks) mark() *mark {
	p := new(mark)
	m.left.Add(1)
	runtime.AddCleanup(p, func(left *atomic.Int32) { left.Add(-1) }, &m.left)
	return p
}

// wantFreed fails the test unless no mark can be reached.
func (m *marks) wantFreed(t *testing.T) {
	t.Helper()
	for range 100 {
		runtime.GC()
		if m.left.Load() == 0 {
			return
		}
		runtime.Gosched()
	}
	t.Errorf("%d marks are still reachable", m.left.Load())
}

// contextKey is a type for the keys of contexts' values.
type contextKey int

const crashEnv = "SINGLEFLIGHT_CRASH"

func TestForgetUnsharedForgetsCallThatNobodyJoined(t *testing.T) {
	for _, starter := range askers {
		t.Run(starter.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var g Group
				first, second := newJob(), newJob()
				old := starter.ask(&g, "key", first)
				synctest.Wait()
				if !g.ForgetUnshared("key") {
					t.Fatal("an unshared call was not forgotten")
				}
				successor := starter.ask(&g, "key", second)
				synctest.Wait()
				if n := second.runs.Load(); n != 1 {
					t.Fatalf("the successor ran %d times, want 1", n)
				}
				current := callOf(&g, "key")
				first.giveBack("old", nil)
				wantReply(t, answer{val: "old"}, old)
				if callOf(&g, "key") != current || current == nil {
					t.Error("the forgotten call took its successor out of the table")
				}
				second.giveBack("new", nil)
				wantReply(t, answer{val: "new"}, successor)
			})
		})
	}
}

func TestForgetUnsharedLeavesSharedCallAlone(t *testing.T) {
	for _, joiner := range askers {
		t.Run(joiner.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var g Group
				j := newJob()
				callers := []<-chan answer{askDo(&g, "key", j)}
				synctest.Wait()
				callers = append(callers, joiner.ask(&g, "key", j))
				synctest.Wait()
				if g.ForgetUnshared("key") {
					t.Fatal("a shared call was forgotten")
				}
				callers = append(callers, askDo(&g, "key", j))
				synctest.Wait()
				j.giveBack(1, nil)
				wantReply(t, answer{val: 1, shared: true}, callers...)
				if n := j.runs.Load(); n != 1 {
					t.Errorf("fn ran %d times, want 1", n)
				}
			})
		})
	}
}

func TestForgetUnsharedOfUnknownKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g, other Group
		if !g.ForgetUnshared("key") {
			t.Error("false for a key that was never used")
		}
		j := newJob()
		callers := []<-chan answer{askDo(&other, "key", j)}
		synctest.Wait()
		callers = append(callers, askDo(&other, "key", j))
		synctest.Wait()
		if !g.ForgetUnshared("key") || !other.ForgetUnshared("another key") {
			t.Error("false for a key that is in flight elsewhere")
		}
		j.giveBack(1, nil)
		wantReply(t, answer{val: 1, shared: true}, callers...)
		if !other.ForgetUnshared("key") {
			t.Error("false for a key whose shared call has ended")
		}
	})
}

func TestForgetUnsharedCountsJoinerWhoHasLeft(t *testing.T) {
	for _, starter := range askers {
		t.Run(starter.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var g Group
				j := newJob()
				leader := starter.ask(&g, "key", j)
				synctest.Wait()
				wantReply(t, answer{err: context.Canceled}, askContext(newFleeting(), &g, "key", j))
				if g.ForgetUnshared("key") {
					t.Error("forgotten, although somebody has joined")
				}
				j.giveBack(1, nil)
				wantReply(t, answer{val: 1, shared: true}, leader)
			})
		})
	}
}

func TestDoneContextNeitherStartsNorJoins(t *testing.T) {
	cancelled, cancel := context.WithCancel(context.Background())
	cancel()
	late, cancel := context.WithDeadline(context.Background(), time.Now())
	defer cancel()
	custom := newCustomContext()
	custom.cancel()
	for name, end := range map[string]struct {
		ctx context.Context
		err error
	}{
		"cancelled": {cancelled, context.Canceled},
		"late":      {late, context.DeadlineExceeded},
		"custom":    {custom, errCustom},
	} {
		t.Run(name, func(t *testing.T) {
			var g Group
			v, err, shared := g.DoContext(end.ctx, "key", neverCalled(t))
			if v != nil || err != end.err || shared {
				t.Errorf("nothing in flight: %v, %v, %v", v, err, shared)
			}
			n, err, shared := DoContext(end.ctx, &g, "key", func(context.Context) (int, error) { return 1, nil })
			if n != 0 || err != end.err || shared {
				t.Errorf("typed: %v, %v, %v", n, err, shared)
			}
			if callOf(&g, "key") != nil {
				t.Error("a call is in flight")
			}
			for _, starter := range askers {
				synctest.Test(t, func(t *testing.T) {
					j := newJob()
					leader := starter.ask(&g, "key", j)
					synctest.Wait()
					v, err, shared := g.DoContext(end.ctx, "key", neverCalled(t))
					if v != nil || err != end.err || shared {
						t.Errorf("%s in flight: %v, %v, %v", starter.name, v, err, shared)
					}
					if !g.ForgetUnshared("key") {
						t.Errorf("%s: the call counts as shared", starter.name)
					}
					j.giveBack(1, nil)
					wantReply(t, answer{val: 1}, leader)
				})
			}
		})
	}
}

func TestDoContextRunsFnOnGoroutineOfItsOwn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g Group
		var callers, fns []string
		var mu sync.Mutex
		note := func(names *[]string) {
			mu.Lock()
			defer mu.Unlock()
			*names = append(*names, goroutineID())
		}
		j := newJob()
		var replies []<-chan answer
		for range 5 {
			replies = append(replies, attempt(func() (any, error, bool) {
				note(&callers)
				return g.DoContext(t.Context(), "key", func(ctx context.Context) (any, error) {
					note(&fns)
					return j.run(ctx)
				})
			}))
		}
		synctest.Wait()
		if len(fns) != 1 || len(callers) != 5 || strings.Contains(strings.Join(callers, ","), fns[0]) {
			t.Errorf("fn ran on %q, its callers on %q", fns, callers)
		}
		check(t, "goroutines started for one fn and 5 callers", startedInBubble(), 1)
		j.giveBack(1, nil)
		wantReply(t, answer{val: 1, shared: true}, replies...)
	})
}

func TestFnContextHasOnlyTheValuesOfTheStarters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g Group
		j, inner := newJob(), newJob()
		ctx := context.WithValue(context.Background(), contextKey(1), "outermost")
		ctx, cancel := context.WithTimeout(ctx, time.Hour)
		ctx = context.WithValue(ctx, contextKey(2), "innermost")
		starter := askContext(ctx, &g, "key", j)
		synctest.Wait()
		joiner := askContext(context.WithValue(t.Context(), contextKey(3), "the joiner's"), &g, "key", j)
		synctest.Wait()
		for key, want := range map[any]any{
			contextKey(1): "outermost",
			contextKey(2): "innermost",
			contextKey(3): nil,
			"unknown":     nil,
		} {
			if v := j.ctx.Value(key); v != want {
				t.Errorf("value %v is %v, want %v", key, v, want)
			}
		}
		if deadline, ok := j.ctx.Deadline(); ok {
			t.Errorf("fn has the deadline %v", deadline)
		}
		cancel()
		wantReply(t, answer{err: context.Canceled}, starter)
		if err := j.ctx.Err(); err != nil {
			t.Errorf("after the starter's cancellation fn's context has the error %v", err)
		}
		if v := j.ctx.Value(contextKey(2)); v != "innermost" {
			t.Errorf("after the starter's cancellation the value is %v", v)
		}

		nested := askContext(j.ctx, &g, "inner", inner)
		synctest.Wait()
		if v := inner.ctx.Value(contextKey(1)); v != "outermost" {
			t.Errorf("in a nested call the value is %v", v)
		}
		inner.giveBack(2, nil)
		wantReply(t, answer{val: 2}, nested)
		j.giveBack(1, nil)
		wantReply(t, answer{val: 1, shared: true}, joiner)
	})
}

// It ends when the last caller leaves, or when fn returns.
func TestFnContextEndsLikeThoseOfPackageContext(t *testing.T) {
	for _, asked := range []string{"before", "after"} { // for Done
		for _, end := range []string{"abandoned", "returned"} {
			t.Run(asked+"/"+end, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					var g Group
					j := newJob()
					parent, cancel := context.WithCancelCause(t.Context())
					defer cancel(nil)
					caller := askContext(parent, &g, "key", j)
					synctest.Wait()
					derived, other := []context.Context{j.ctx}, context.WithoutCancel(j.ctx)
					var afterFuncs atomic.Int32
					if asked == "before" {
						watchers := func() int {
							synctest.Wait()
							return len(goroutines("", "created by context.(*cancelCtx).propagateCancel "))
						}
						watched, cancel := context.WithCancel(newCustomContext())
						check(t, "goroutines that watch over a context of another kind", watchers(), 1)
						cancel()
						<-watched.Done()
						for range 5 {
							child, cancel := context.WithCancel(context.WithValue(j.ctx, contextKey(1), 1))
							defer cancel()
							grandchild, cancel := context.WithTimeout(child, time.Hour)
							defer cancel()
							derived = append(derived, child, grandchild)
							context.AfterFunc(child, func() { afterFuncs.Add(1) })
						}
						check(t, "goroutines that watch over derived contexts", watchers(), 0)
					}
					for i, ctx := range derived {
						if asked == "before" {
							wantAlive(t, ctx)
						}
						if err, cause := ctx.Err(), context.Cause(ctx); err != nil || cause != nil {
							t.Errorf("context %d: error %v, cause %v", i, err, cause)
						}
					}

					if end == "returned" {
						j.giveBack(nil, nil)
						wantReply(t, answer{}, caller)
					} else {
						cancel(errors.New("the leaver's own cause"))
						wantReply(t, answer{err: context.Canceled}, caller)
					}
					for i, ctx := range derived {
						if err, cause := ctx.Err(), context.Cause(ctx); err != context.Canceled || cause != context.Canceled {
							t.Errorf("context %d: error %v, cause %v", i, err, cause)
						}
						select {
						case <-ctx.Done():
						default:
							t.Errorf("context %d: Done is not closed", i)
						}
						late, cancel := context.WithCancel(ctx)
						defer cancel()
						if late.Err() != context.Canceled {
							t.Errorf("what is derived from it later has the error %v", late.Err())
						}
					}
					if n := afterFuncs.Load(); asked == "before" && n != 5 {
						t.Errorf("%d of 5 functions were called after it", n)
					}
					if other.Err() != nil || other.Done() != nil {
						t.Error("WithoutCancel of it was cancelled")
					}
					if end == "abandoned" {
						j.giveBack(nil, nil)
					}
				})
			})
		}
	}
}

// wantAlive fails the test unless ctx has a Done that is always the same channel and
// not closed.
func wantAlive(t *testing.T, ctx context.Context) {
	t.Helper()
	done := ctx.Done()
	if done == nil || ctx.Done() != done {
		t.Errorf("Done returns %v, then %v", done, ctx.Done())
	}
	select {
	case <-done:
		t.Error("Done is closed")
	default:
	}
}

func TestFnContextHasNoErrorBeforeDoneIsClosed(t *testing.T) {
	var g Group
	g.DoContext(t.Context(), "key", func(ctx context.Context) (any, error) {
		ctx.Done()
		x := ctx.(*contexts)
		cancel := x.cancel
		x.cancel = func() {
			if err := ctx.Err(); err != nil {
				t.Errorf("Done is not closed, but Err is %v", err)
			}
			cancel()
		}
		return nil, nil
	})
}

func TestFnContextPrintsLikeThoseOfPackageContext(t *testing.T) {
	parent := context.WithValue(context.Background(), contextKey(1), "value")
	like, cancel := context.WithCancel(context.WithoutCancel(parent))
	defer cancel()
	var g Group
	var printing sync.WaitGroup
	g.DoContext(parent, "key", func(ctx context.Context) (any, error) {
		printing.Go(func() {
			for range 100 { // while fn goes on and the call ends
				check(t, "the text", fmt.Sprint(ctx), fmt.Sprint(like))
			}
		})
		ctx.Done()
		return nil, nil
	})
	printing.Wait()
}

func TestStartersDeadlineEndsNobodyElse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g Group
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		slow := func(ctx context.Context) (any, error) {
			select {
			case <-ctx.Done():
				return nil, ctx.Err()
			case <-time.After(time.Hour):
				return "late", nil
			}
		}
		start := time.Now()
		starter := attempt(func() (any, error, bool) { return g.DoContext(ctx, "key", slow) })
		synctest.Wait()
		joiner := attempt(func() (any, error, bool) { return g.DoContext(t.Context(), "key", slow) })
		if r := <-starter; r != (answer{err: context.DeadlineExceeded}) || time.Since(start) != time.Second {
			t.Errorf("after %v the starter got %v", time.Since(start), r)
		}
		if r := <-joiner; r != (answer{val: "late", shared: true}) || time.Since(start) != time.Hour {
			t.Errorf("after %v the joiner got %v", time.Since(start), r)
		}
	})
}

func TestCallersOfAllMethodsShareOneCall(t *testing.T) {
	errFn := errors.New("fn's")
	for _, starter := range askers {
		t.Run(starter.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var g Group
				j := newJob()
				callers := []<-chan answer{starter.ask(&g, "key", j)}
				synctest.Wait()
				for range 2 {
					for _, joiner := range askers {
						callers = append(callers, joiner.ask(&g, "key", j))
						synctest.Wait()
					}
				}
				j.giveBack("value", errFn)
				wantReply(t, answer{val: "value", err: errFn, shared: true}, callers...)
				if n := j.runs.Load(); n != 1 {
					t.Errorf("fn ran %d times, want 1", n)
				}
				if callOf(&g, "key") != nil {
					t.Error("the call is still in the table")
				}
			})
		})
	}
}

func TestDoContextThatNobodyJoined(t *testing.T) {
	var g Group
	errFn := errors.New("fn's")
	v, err, shared := g.DoContext(t.Context(), "key", func(context.Context) (any, error) { return 1, errFn })
	if v != 1 || err != errFn || shared {
		t.Errorf("%v, %v, %v; want 1, fn's, false", v, err, shared)
	}
}

func TestLeavingReturnsAtOnceWithTheContextsError(t *testing.T) {
	for _, starter := range askers {
		t.Run(starter.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var g Group
				j := newJob()
				start := time.Now()
				stays := starter.ask(&g, "key", j)
				synctest.Wait()

				ctx, cancel := context.WithCancel(t.Context())
				cancelled := askContext(ctx, &g, "key", j)
				ctx, cancelCause := context.WithCancelCause(t.Context())
				caused := askContext(ctx, &g, "key", j)
				ctx, cancelLate := context.WithTimeout(t.Context(), time.Minute)
				defer cancelLate()
				late := askContext(ctx, &g, "key", j)
				custom := newCustomContext()
				ends := askContext(custom, &g, "key", j)
				wantWaiting(t, stays, cancelled, caused, late, ends)

				cancel()
				cancelCause(errors.New("cause"))
				wantReply(t, answer{err: context.Canceled}, cancelled, caused)
				custom.cancel()
				wantReply(t, answer{err: errCustom}, ends)
				if d := time.Since(start); d != 0 {
					t.Errorf("they left after %v", d)
				}
				if r := <-late; r != (answer{err: context.DeadlineExceeded}) || time.Since(start) != time.Minute {
					t.Errorf("after %v the late one got %v", time.Since(start), r)
				}
				wantWaiting(t, stays)
				j.giveBack(1, nil)
				wantReply(t, answer{val: 1, shared: true}, stays)
			})
		})
	}
}

func TestLeaversLeaveNothingBehind(t *testing.T) {
	const leavers = 50_000
	for _, starter := range askers {
		t.Run(starter.name, func(t *testing.T) {
			var g Group
			j := newJob()
			stays := starter.ask(&g, "key", j)
			eventually(t, "the start", func() bool { return j.runs.Load() == 1 })
			leave := func(n int) {
				ctx := newFleeting()
				for range n {
					ctx.looked = false
					if v, err, shared := g.DoContext(ctx, "key", j.run); v != nil || err != context.Canceled || shared {
						t.Fatalf("a leaver got %v, %v, %v", v, err, shared)
					}
				}
			}
			heap := func() int64 {
				runtime.GC()
				var m runtime.MemStats
				runtime.ReadMemStats(&m)
				return int64(m.HeapAlloc)
			}
			leave(1)
			before := heap()
			leave(leavers)
			// The least that could be left of each is a word.
			if grown := heap() - before; grown > leavers*8/2 {
				t.Errorf("%d leavers left %d bytes behind", leavers, grown)
			}
			if n := joinersOf(&g, "key"); n != 0 {
				t.Errorf("%d callers count as waiting", n)
			}
			j.giveBack(1, nil)
			if r := <-stays; r != (answer{val: 1, shared: true}) {
				t.Errorf("who stayed got %v", r)
			}
		})
	}
}

func TestLeaverCanBeFreedWhileTheCallGoesOn(t *testing.T) {
	for _, starter := range askers {
		t.Run(starter.name, func(t *testing.T) {
			var g Group
			var m marks
			j := newJob()
			stays := starter.ask(&g, "key", j)
			eventually(t, "the start", func() bool { return j.runs.Load() == 1 })
			func() {
				ctx := newFleeting()
				ctx.Context = context.WithValue(ctx.Context, contextKey(1), m.mark())
				inFn := m.mark()
				_, err, _ := g.DoContext(ctx, "key", func(context.Context) (any, error) { return inFn, nil })
				if err != context.Canceled {
					t.Fatalf("the leaver got %v", err)
				}
			}()
			m.wantFreed(t)
			j.giveBack(1, nil)
			<-stays
		})
	}
}

func TestForgottenCallSettlesItsCallers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g Group
		j := newJob()
		stays := askContext(t.Context(), &g, "key", j)
		ctx, cancel := context.WithCancel(t.Context())
		leaves := askContext(ctx, &g, "key", j)
		plain := askDo(&g, "key", j)
		wantWaiting(t, stays, leaves, plain)
		g.Forget("key")
		cancel()
		wantReply(t, answer{err: context.Canceled}, leaves)
		wantWaiting(t, stays, plain)
		j.giveBack(1, nil)
		wantReply(t, answer{val: 1, shared: true}, stays, plain)
	})
}

// A caller whose context is done, but who has not left when the call ends, gets the
// outcome. It is stopped on its way out by the mutex for the waits of nested calls.
func TestWhoeverWaitsWhenTheCallEndsGetsTheOutcome(t *testing.T) {
	for _, forgotten := range []bool{false, true} {
		for name, test := range map[string]struct {
			end   func(*job)
			check func(answer) bool
		}{
			"value": {
				func(j *job) { j.giveBack("value", nil) },
				func(r answer) bool { return r == answer{val: "value", shared: true} },
			},
			"panic": {
				func(j *job) { j.panics("value") },
				func(r answer) bool { p, ok := r.value.(PanicError); return ok && p.Value() == "value" },
			},
			"Goexit": {
				(*job).exits,
				func(r answer) bool { return r == answer{exited: true} },
			},
		} {
			t.Run(fmt.Sprintf("%s/forgotten=%t", name, forgotten), func(t *testing.T) {
				var g Group
				outer, j := newJob(), newJob()
				outside := askContext(t.Context(), &g, "outer", outer)
				leader := askDo(&g, "key", j)
				eventually(t, "the start", func() bool { return outer.runs.Load() == 1 && j.runs.Load() == 1 })
				ctx, cancel := context.WithCancel(outer.ctx)
				caller := askContext(ctx, &g, "key", j)
				eventually(t, "joining", func() bool { return joinersOf(&g, "key") == 1 })
				if forgotten {
					g.Forget("key")
				}

				waitsMu.Lock()
				cancel()
				eventually(t, "DoContext on a mutex", func() bool {
					return len(goroutines("[sync.Mutex.Lock", "(*Group).DoContext(")) > 0
				})
				test.end(j)
				<-leader
				waitsMu.Unlock()
				if r := <-caller; !test.check(r) {
					t.Errorf("the caller got %v", r)
				}
				outer.giveBack(nil, nil)
				<-outside
			})
		}
	}
}

func TestWhoeverIsTooLateToLeaveWaitsForTheOutcome(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g Group
		j := newJob()
		leader := askDo(&g, "key", j)
		synctest.Wait()
		ctx, cancel := context.WithCancel(t.Context())
		caller := askContext(ctx, &g, "key", j)
		synctest.Wait()
		c := callOf(&g, "key")
		c.contexts.ended.Store(true) // as doCall does a moment before the outcome is there
		cancel()
		synctest.Wait()
		silent(t, "before the outcome is there", caller)
		j.giveBack(1, nil)
		wantReply(t, answer{val: 1, shared: true}, leader, caller)
	})
}

// Here the caller may be anywhere between joining and being answered when its
// context ends, which is after the call has.
func TestCancellationAfterTheEndChangesNothing(t *testing.T) {
	var g Group
	for i := range 3000 {
		ctx, cancel := context.WithCancel(context.Background())
		var caller <-chan answer
		g.Do("key", func() (any, error) {
			caller = attempt(func() (any, error, bool) {
				return g.DoContext(ctx, "key", func(context.Context) (any, error) { return "another call", nil })
			})
			eventually(t, "joining", func() bool { return joinersOf(&g, "key") == 1 })
			return i, nil
		})
		cancel()
		if r := <-caller; r != (answer{val: i, shared: true}) {
			t.Fatalf("the caller got %v, want %d", r, i)
		}
	}
}

func TestLastLeaverAbandonsTheCall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g Group
		old, successor := newJob(), newJob()
		ctx, cancel := context.WithCancel(t.Context())
		last := attempt(func() (any, error, bool) {
			v, err, shared := g.DoContext(ctx, "key", old.run)
			// Right away: fn's context is cancelled before the last leaver returns.
			if old.ctx.Err() != context.Canceled {
				t.Errorf("when the last one has left, the error of fn's context is %v", old.ctx.Err())
			}
			if callOf(&g, "key") != nil {
				t.Error("when the last one has left, its call can still be joined")
			}
			return v, err, shared
		})
		synctest.Wait()
		wantReply(t, answer{err: context.Canceled}, askContext(newFleeting(), &g, "key", old))
		if old.ctx.Err() != nil {
			t.Error("the first leaver ended the call for the other")
		}
		cancel()
		wantReply(t, answer{err: context.Canceled}, last)

		var callers []<-chan answer
		for _, asker := range askers {
			callers = append(callers, asker.ask(&g, "key", successor))
			synctest.Wait()
		}
		if n := successor.runs.Load(); n != 1 {
			t.Fatalf("newcomers started %d calls, want 1", n)
		}
		old.giveBack("old", nil)
		wantWaiting(t, callers...)
		successor.giveBack("new", nil)
		wantReply(t, answer{val: "new", shared: true}, callers...)
	})
}

func TestNewcomerAfterTheLastLeaverGetsLiveContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g Group
		old, successor := newJob(), newJob()
		_, err, _ := g.DoContext(newFleeting(), "key", old.run)
		if err != context.Canceled {
			t.Fatalf("the leaver got %v", err)
		}
		newcomer := askContext(t.Context(), &g, "key", successor)
		synctest.Wait()
		if successor.runs.Load() != 1 || successor.ctx.Err() != nil {
			t.Errorf("runs: %d, the error of its context: %v", successor.runs.Load(), successor.ctx.Err())
		}
		old.giveBack("old", nil)
		synctest.Wait()
		if err := successor.ctx.Err(); err != nil {
			t.Errorf("when the abandoned call ended, the newcomer's context got the error %v", err)
		}
		successor.giveBack("new", nil)
		wantReply(t, answer{val: "new"}, newcomer)
	})
}

// inTurn has each of steps bring a goroutine to the mutex of s, and lets them in, in
// this order. Whoever takes the mutex once more gets it after all the others.
//
// That is how a mutex is handed on once somebody has found it taken for more than a
// millisecond: it is starving. And the one who lets it go yields.
func inTurn(t *testing.T, s *stripe, steps ...func()) {
	t.Helper()
	starving := func() bool {
		const mutexStarving = 1 << 2 // in the first word, says internal/sync
		return atomic.LoadInt32((*int32)(unsafe.Pointer(&s.mu)))&mutexStarving != 0
	}
	atMutex := func(n int) {
		eventually(t, "goroutines at the mutex", func() bool {
			return len(goroutines("[sync.Mutex.Lock", "singleflight.")) == n
		})
		start := time.Now()
		eventually(t, "two milliseconds", func() bool { return time.Since(start) > 2*time.Millisecond })
	}
	s.mu.Lock()
	for !starving() {
		var gone atomic.Bool
		go func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			gone.Store(true)
		}()
		atMutex(1)
		s.mu.Unlock()
		s.mu.Lock() // mostly before that goroutine awakes
		eventually(t, "finding the mutex taken", func() bool { return starving() || gone.Load() })
	}
	for i, step := range steps {
		step()
		atMutex(1 + i + 1)
	}
	s.mu.Unlock()
}

// lead has ask lead a call of key, and waits until it is in flight.
func (j *job) lead(t *testing.T, ask func(g *Group, key string, j *job) <-chan answer, g *Group, key string) <-chan answer {
	t.Helper()
	ch := ask(g, key, j)
	eventually(t, "the start", func() bool { return j.runs.Load() == 1 })
	return ch
}

func TestForgetUnsharedAndJoiningInTurn(t *testing.T) {
	for _, asker := range askers {
		for i, first := range []string{"ForgetUnshared", "joining"} {
			t.Run(asker.name+"/"+first+" first", func(t *testing.T) {
				var g Group
				j, other := newJob(), newJob()
				lead := askDo
				if asker.name == "DoContext" {
					lead = asker.ask // to join a call of another kind takes the lock twice
				}
				leader := j.lead(t, lead, &g, "key")
				forgotten := make(chan bool)
				var newcomer <-chan answer
				steps := []func(){
					func() { go func() { forgotten <- g.ForgetUnshared("key") }() },
					func() { newcomer = asker.ask(&g, "key", other) },
				}
				inTurn(t, stripeOfKey(&g, "key"), steps[i], steps[1-i])
				check(t, "ForgetUnshared", <-forgotten, i == 0)
				if i == 0 {
					other.giveBack("other", nil)
					check(t, "newcomer", <-newcomer, answer{val: "other"})
					j.giveBack("value", nil)
					check(t, "leader", <-leader, answer{val: "value"})
					return
				}
				j.giveBack("value", nil)
				check(t, "leader", <-leader, answer{val: "value", shared: true})
				check(t, "joiner", <-newcomer, answer{val: "value", shared: true})
			})
		}
	}
}

func TestEndingAndLeavingInTurn(t *testing.T) {
	for _, asker := range askers {
		for i, first := range []string{"the end", "leaving"} {
			t.Run("led by "+asker.name+"/"+first+" first", func(t *testing.T) {
				var g Group
				j := newJob()
				leader := j.lead(t, asker.ask, &g, "key")
				ctx, cancel := context.WithCancel(t.Context())
				leaver := askContext(ctx, &g, "key", j)
				eventually(t, "joining", func() bool { return joinersOf(&g, "key") == 1 })
				steps := []func(){func() { j.giveBack("value", nil) }, cancel}
				inTurn(t, stripeOfKey(&g, "key"), steps[i], steps[1-i])
				want := answer{val: "value", shared: true}
				check(t, "leader", <-leader, want)
				if i == 1 {
					want = answer{err: context.Canceled}
				}
				check(t, "leaver", <-leaver, want)
			})
		}
	}
}

// Who comes too late to leave a call gets its panic, which otherwise nobody would get.
func TestPanickingAndLeavingInTurn(t *testing.T) {
	var g Group
	j := newJob()
	ctx, cancel := context.WithCancel(t.Context())
	caller := j.lead(t, func(g *Group, key string, j *job) <-chan answer { return askContext(ctx, g, key, j) }, &g, "key")
	inTurn(t, stripeOfKey(&g, "key"), func() { j.panics("value") }, cancel)
	a := <-caller
	if p, ok := a.value.(PanicError); !ok || p.Value() != "value" {
		t.Errorf("the caller got %v", a)
	}
}

// One leaves while another comes: either that one joins, and the call stays alive, or
// the call is abandoned and it starts one of its own.
func TestLeavingAndJoiningInTurn(t *testing.T) {
	for _, asker := range askers {
		for i, first := range []string{"leaving", "joining"} {
			t.Run(asker.name+"/"+first+" first", func(t *testing.T) {
				var g Group
				j, other := newJob(), newJob()
				ctx, cancel := context.WithCancel(t.Context())
				leaver := j.lead(t, func(g *Group, key string, j *job) <-chan answer { return askContext(ctx, g, key, j) }, &g, "key")
				var newcomer <-chan answer
				steps := []func(){cancel, func() { newcomer = asker.ask(&g, "key", other) }}
				inTurn(t, stripeOfKey(&g, "key"), steps[i], steps[1-i])
				check(t, "leaver", <-leaver, answer{err: context.Canceled})
				if i == 0 {
					check(t, "error of the context of an fn that was given up", j.ctx.Err(), context.Canceled)
					other.giveBack("other", nil)
					check(t, "newcomer", <-newcomer, answer{val: "other"})
					j.giveBack("value", nil)
					return
				}
				check(t, "error of fn's context", j.ctx.Err(), nil)
				j.giveBack("value", nil)
				check(t, "joiner", <-newcomer, answer{val: "value", shared: true})
			})
		}
	}
}

// A caller lets go of the mutex to allocate what it needs for joining the call. If that
// has gone meanwhile, it starts one.
func TestCallThatGoesBeforeItIsJoined(t *testing.T) {
	fullOfReaders := func(c *call) bool { return c != nil && c.full() }
	for _, asker := range askers[1:] {
		for _, goes := range []string{"forgotten", "ended", "forgotten, and there is another"} {
			t.Run(asker.name+"/"+goes, func(t *testing.T) {
				var g Group
				s := stripeOfKey(&g, "key")
				old, own := newJob(), newJob()
				leader := old.lead(t, askDo, &g, "key")
				var readers []<-chan Result
				if asker.name == "DoChan" {
					for !fullOfReaders(callOf(&g, "key")) {
						readers = append(readers, g.DoChan("key", unwanted(t)))
					}
				}
				var newcomer, another <-chan answer
				come := func() { newcomer = asker.ask(&g, "key", own) }
				switch goes {
				case "forgotten":
					inTurn(t, s, come, func() { go g.Forget("key") })
				case "ended":
					inTurn(t, s, come, func() { old.giveBack("old", nil) })
				default:
					inTurn(t, s, come, func() { go g.Forget("key") }, func() { another = askDo(&g, "key", own) })
				}
				want := answer{val: "own", shared: another != nil}
				if another != nil {
					eventually(t, "joining", func() bool { return joinersOf(&g, "key") == 1 })
				}
				own.giveBack("own", nil)
				check(t, "newcomer", <-newcomer, want)
				if another != nil {
					check(t, "another", <-another, want)
				}
				if goes != "ended" {
					old.giveBack("old", nil)
				}
				shared := len(readers) > 0
				check(t, "leader", <-leader, answer{val: "old", shared: shared})
				for _, r := range readers {
					check(t, "reader", <-r, Result{"old", nil, shared})
				}
				check(t, "runs", own.runs.Load(), 1)
			})
		}
	}
}

// The same for a caller that wants to start one with DoContext.
func TestCallThatComesBeforeDoContextStartsOne(t *testing.T) {
	for _, asker := range askers {
		t.Run(asker.name, func(t *testing.T) {
			var g Group
			own, other := newJob(), newJob()
			var caller, leader <-chan answer
			inTurn(t, stripeOfKey(&g, "key"),
				func() { caller = askContext(t.Context(), &g, "key", own) },
				func() { leader = asker.ask(&g, "key", other) })
			eventually(t, "joining", func() bool { return joinersOf(&g, "key") == 1 })
			select {
			case other.how <- returns("value", nil):
			case own.how <- returns("value", nil):
				// Between two callers of DoContext, the one who comes back first leads.
				if asker.name != "DoContext" {
					t.Error("the caller of DoContext has led")
				}
			}
			want := answer{val: "value", shared: true}
			check(t, "leader", <-leader, want)
			check(t, "caller", <-caller, want)
			check(t, "runs", own.runs.Load()+other.runs.Load(), 1)
		})
	}
}

// A caller within an fn lets go of the mutex to look for a ring, too.
func TestCallThatGoesWhileARingIsLookedFor(t *testing.T) {
	var g Group
	outer, old := newJob(), newJob()
	outside := outer.lead(t, askers[2].ask, &g, "outer")
	oldLeader := old.lead(t, askers[2].ask, &g, "key")
	other := newJob()
	var leader, caller <-chan answer
	inTurn(t, stripeOfKey(&g, "key"),
		func() { caller = askContext(outer.ctx, &g, "key", outer) },
		func() { go g.Forget("key") },
		func() { leader = askDo(&g, "key", other) })
	eventually(t, "the caller joins", func() bool { return joinersOf(&g, "key") == 1 })
	old.giveBack("old", nil)
	check(t, "leader of the old call", <-oldLeader, answer{val: "old"})
	other.giveBack("value", nil)
	check(t, "leader", <-leader, answer{val: "value", shared: true})
	check(t, "caller", <-caller, answer{val: "value", shared: true})
	outer.giveBack(nil, nil)
	<-outside
}

func TestPlainCallersKeepTheCallAlive(t *testing.T) {
	for _, plain := range askers[:2] {
		t.Run(plain.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var g Group
				j := newJob()
				ctx, cancel := context.WithCancel(t.Context())
				leavers := []<-chan answer{askContext(ctx, &g, "key", j)}
				synctest.Wait()
				stays := plain.ask(&g, "key", j)
				synctest.Wait()
				leavers = append(leavers, askContext(ctx, &g, "key", j))
				synctest.Wait()
				cancel()
				wantReply(t, answer{err: context.Canceled}, leavers...)
				if err := j.ctx.Err(); err != nil {
					t.Errorf("fn's context has the error %v, though somebody waits", err)
				}
				joins := askContext(t.Context(), &g, "key", j)
				wantWaiting(t, joins, stays)
				j.giveBack(1, nil)
				wantReply(t, answer{val: 1, shared: true}, stays, joins)
				if n := j.runs.Load(); n != 1 {
					t.Errorf("fn ran %d times, want 1", n)
				}
			})
		})
	}
}

func TestLeavingCallThatDoOrDoChanStartedDoesNothingToIt(t *testing.T) {
	for _, plain := range askers[:2] {
		t.Run(plain.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var g Group
				j := newJob()
				stays := plain.ask(&g, "key", j)
				synctest.Wait()
				started := callOf(&g, "key")
				for range 3 {
					wantReply(t, answer{err: context.Canceled}, askContext(newFleeting(), &g, "key", j))
				}
				if callOf(&g, "key") != started {
					t.Fatal("the call is not in the table any more")
				}
				joins := askContext(t.Context(), &g, "key", j)
				wantWaiting(t, stays, joins)
				j.giveBack(1, nil)
				wantReply(t, answer{val: 1, shared: true}, stays, joins)
			})
		})
	}
}

func TestForgottenCallIsAbandonedByItsLastLeaver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g Group
		old, successor := newJob(), newJob()
		ctx, cancel := context.WithCancel(t.Context())
		leavers := []<-chan answer{askContext(ctx, &g, "key", old), askContext(ctx, &g, "key", old)}
		synctest.Wait()
		g.Forget("key")
		newcomer := askContext(t.Context(), &g, "key", successor)
		synctest.Wait()
		current := callOf(&g, "key")
		if err := old.ctx.Err(); err != nil {
			t.Errorf("Forget made the error of fn's context %v", err)
		}
		cancel()
		wantReply(t, answer{err: context.Canceled}, leavers...)
		if err := old.ctx.Err(); err != context.Canceled {
			t.Errorf("when all have left the forgotten call, the error of fn's context is %v", err)
		}
		if current == nil || callOf(&g, "key") != current || successor.ctx.Err() != nil {
			t.Error("leaving the forgotten call has touched its successor")
		}
		old.giveBack("old", nil)
		wantWaiting(t, newcomer)
		if callOf(&g, "key") != current {
			t.Error("the end of the forgotten call has touched its successor")
		}
		successor.giveBack("new", nil)
		wantReply(t, answer{val: "new"}, newcomer)
	})
}

func TestFnContextIsCancelledBeforeAnyoneIsAnswered(t *testing.T) {
	for name, end := range map[string]func(*job){
		"return": func(j *job) { j.giveBack(1, nil) },
		"Goexit": (*job).exits,
		"panic":  func(j *job) { j.panics("value") },
	} {
		t.Run(name, func(t *testing.T) {
			for range 50 {
				synctest.Test(t, func(t *testing.T) {
					var g Group
					j := newJob()
					var early atomic.Int32
					look := func() {
						if j.ctx.Err() != context.Canceled {
							early.Add(1)
						}
					}
					callers := []<-chan answer{attempt(func() (any, error, bool) {
						defer look()
						return g.DoContext(t.Context(), "key", j.run)
					})}
					synctest.Wait()
					callers = append(callers, attempt(func() (any, error, bool) {
						defer look()
						return g.Do("key", j.plain)
					}), attempt(func() (any, error, bool) {
						defer look()
						return g.DoContext(t.Context(), "key", j.run)
					}))
					wantWaiting(t, callers...)
					// A reader without room stops fn's goroutine where it hands out
					// the outcome. With one, a panic would be a crash.
					slow := make(chan Result)
					c := callOf(&g, "key")
					if name != "panic" {
						c.join()
						c.addReader(slow)
					}
					if err := j.ctx.Err(); err != nil {
						t.Fatalf("while fn runs, its context has the error %v", err)
					}
					end(j)
					for _, ch := range callers {
						got(t, ch)
					}
					if !c.contexts.ended.Load() {
						t.Fatal("the callers were answered, yet the call has not ended")
					}
					if n := early.Load(); n != 0 {
						t.Fatalf("%d callers were answered before fn's context was cancelled", n)
					}
					if name != "panic" {
						<-slow
					}
				})
			}
		})
	}
}

func TestKeptFnContextKeepsNeitherValueNorCallersAlive(t *testing.T) {
	for name, end := range map[string]func(j *job, m *marks){
		"return": func(j *job, m *marks) { j.giveBack(m.mark(), fmt.Errorf("%p", m.mark())) },
		"panic":  func(j *job, m *marks) { j.panics(m.mark()) },
	} {
		t.Run(name, func(t *testing.T) {
			var g Group
			var m marks
			kept := func() context.Context {
				j := newJob()
				joiner := func() func(context.Context) (any, error) {
					p := m.mark()
					return func(context.Context) (any, error) { return p, nil }
				}
				inFn := m.mark()
				starter := context.WithValue(t.Context(), contextKey(1), "the starter's")
				callers := []<-chan answer{attempt(func() (any, error, bool) {
					return g.DoContext(starter, "key", func(ctx context.Context) (any, error) {
						defer runtime.KeepAlive(inFn)
						return j.run(ctx)
					})
				})}
				eventually(t, "the start", func() bool { return j.runs.Load() == 1 })
				fn := joiner()
				callers = append(callers, attempt(func() (any, error, bool) {
					return g.Do("key", func() (any, error) { return fn(noContext) })
				}), attempt(func() (any, error, bool) {
					return g.DoContext(context.WithValue(t.Context(), contextKey(2), m.mark()), "key", joiner())
				}), attempt(func() (any, error, bool) {
					// From within fn, so that the two calls have known of each other.
					return g.DoContext(j.ctx, "other", func(context.Context) (any, error) { return m.mark(), nil })
				}))
				eventually(t, "joining", func() bool { return joinersOf(&g, "key") == 2 })
				end(j, &m)
				for _, ch := range callers {
					<-ch
				}
				return j.ctx
			}()
			m.wantFreed(t)
			if v := kept.Value(contextKey(1)); v != "the starter's" {
				t.Errorf("the kept context has lost the starter's value: %v", v)
			}
		})
	}
}

func TestPanicReachesExactlyThoseWaiting(t *testing.T) {
	for _, starter := range []int{0, 2} { // of askers
		t.Run(askers[starter].name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var g Group
				j := newJob()
				callers := []<-chan answer{askers[starter].ask(&g, "key", j)}
				synctest.Wait()
				callers = append(callers, askDo(&g, "key", j), askContext(t.Context(), &g, "key", j))
				ctx, cancel := context.WithCancel(t.Context())
				leaver := askContext(ctx, &g, "key", j)
				synctest.Wait()
				cancel()
				wantReply(t, answer{err: context.Canceled}, leaver)
				j.panics("the value")
				first := got(t, callers[0])
				if p, ok := first.value.(*panicError); !ok || p.value != "the value" {
					t.Fatalf("the starter got %v", first)
				}
				wantReply(t, first, callers[1:]...)
				if callOf(&g, "key") != nil {
					t.Error("the key is not free")
				}
			})
		})
	}
}

func TestPanicOfForgottenCallReachesTheOneWhoStays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g Group
		j := newJob()
		ctx, cancel := context.WithCancel(t.Context())
		starter := askContext(ctx, &g, "key", j)
		synctest.Wait()
		stays := askContext(t.Context(), &g, "key", j)
		synctest.Wait()
		g.Forget("key")
		cancel()
		wantReply(t, answer{err: context.Canceled}, starter)
		j.panics("the value")
		a := got(t, stays)
		if p, ok := a.value.(PanicError); !ok || p.Value() != "the value" {
			t.Errorf("who stayed got %v", a)
		}
	})
}

//go:noinline
func panicsInTheEnd(ctx context.Context) (any, error) {
	<-ctx.Done()
	panic("the value of the panic")
}

func TestPanicThatNobodyCanTakeCrashesTheProcess(t *testing.T) {
	var g Group
	cases := map[string]func(){
		"abandoned": func() {
			g.DoContext(newFleeting(), "key", panicsInTheEnd)
		},
		"forgotten, then abandoned": func() {
			leaver, leave := context.WithCancel(context.Background())
			g.DoContext(leaver, "key", func(ctx context.Context) (any, error) {
				g.DoContext(newFleeting(), "key", nil) // another who has left
				g.Forget("key")
				leave()
				return panicsInTheEnd(ctx)
			})
		},
		"a reader joined": func() {
			ctx, cancel := context.WithCancel(context.Background())
			g.DoContext(context.Background(), "key", func(context.Context) (any, error) {
				g.DoChan("key", nil)
				cancel()
				return panicsInTheEnd(ctx)
			})
		},
		"only a reader is left": func() {
			ctx, cancel := context.WithCancel(context.Background())
			joined := make(chan struct{})
			leaver, leave := context.WithCancel(context.Background())
			g.DoContext(leaver, "key", func(context.Context) (any, error) {
				g.DoChan("key", nil)
				close(joined)
				leave()
				return panicsInTheEnd(ctx)
			})
			<-joined
			cancel()
		},
		"a reader started": func() {
			ctx, cancel := context.WithCancel(context.Background())
			g.DoChan("key", func() (any, error) { return panicsInTheEnd(ctx) })
			go func() {
				eventually(t, "joining", func() bool { return joinersOf(&g, "key") == 1 })
				cancel()
			}()
			g.DoContext(context.Background(), "key", nil)
		},
	}
	if run := cases[os.Getenv(crashEnv)]; run != nil {
		func() {
			defer func() { recover() }()
			run()
		}()
		select {} // until the crash
	}
	for name := range cases {
		out, code := child(t, crashEnv+"="+name, "GOTRACEBACK=all")
		check(t, name+": exit code", code, 2)
		if !strings.Contains(out, "panic: the value of the panic") || !strings.Contains(out, "panicsInTheEnd(") {
			t.Errorf("%s: the output has not got the value and the frame of fn:\n%s", name, out)
		}
	}
}

func TestGoexitReachesExactlyThoseWaiting(t *testing.T) {
	for _, starter := range askers {
		t.Run(starter.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var g Group
				j := newJob()
				callers := []<-chan answer{starter.ask(&g, "key", j)}
				synctest.Wait()
				callers = append(callers, askDo(&g, "key", j), askContext(t.Context(), &g, "key", j))
				if starter.name == "DoChan" {
					callers = callers[1:]
				}
				reader := askChan(&g, "key", j)
				ctx, cancel := context.WithCancel(t.Context())
				leaver := askContext(ctx, &g, "key", j)
				synctest.Wait()
				cancel()
				wantReply(t, answer{err: context.Canceled}, leaver)
				j.exits()
				wantReply(t, answer{exited: true}, callers...)
				wantReply(t, answer{err: ErrGoexit, shared: true}, reader)
			})
		})
	}
}

func TestGoexitOfAbandonedCallIsQuiet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g Group
		j := newJob()
		wantReply(t, answer{err: context.Canceled}, askContext(newFleeting(), &g, "key", j))
		j.exits()
		synctest.Wait()
	})
}

func TestNilContextPanics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g Group
		var none context.Context
		j := newJob()
		leader := askDo(&g, "key", j)
		synctest.Wait()
		for _, key := range []string{"key", "unknown key"} {
			r := got(t, askContext(none, &g, key, j))
			if r.value != "singleflight: nil context" {
				t.Errorf("%s: the caller got %v", key, r)
			}
			check(t, "a call of "+key+" is in flight", callOf(&g, key) != nil, key == "key")
			if !g.ForgetUnshared(key) {
				t.Errorf("%s: the caller has joined", key)
			}
		}
		j.giveBack(1, nil)
		wantReply(t, answer{val: 1}, leader)
	})
}

// A panic that somebody recovers must not leave the mutex for waits locked.
func TestNilGroupPanicsWithinFnAsOutside(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g, none *Group
		g = new(Group)
		v, err, _ := g.DoContext(t.Context(), "outer", func(ctx context.Context) (any, error) {
			a := <-attempt(func() (any, error, bool) { return none.DoContext(ctx, "key", neverCalled(t)) })
			if _, ok := a.value.(runtime.Error); !ok {
				t.Errorf("the caller got %v", a)
			}
			unlocked := waitsMu.TryLock()
			check(t, "the mutex for waits is free", unlocked, true)
			waitsMu.Unlock()
			v, err, _ := g.DoContext(ctx, "inner", func(context.Context) (any, error) { return 1, nil })
			return v, err
		})
		check(t, "outer", answer{val: v, err: err}, answer{val: 1})
	})
}

func TestNilFnPanicsInDoContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g Group
		for _, do := range []func() (any, error, bool){
			func() (any, error, bool) { return g.DoContext(t.Context(), "key", nil) },
			func() (any, error, bool) {
				v, err, shared := DoContext[int](t.Context(), &g, "key", nil)
				return v, err, shared
			},
			func() (any, error, bool) { v, err, shared := Do[int](&g, "key", nil); return v, err, shared },
		} {
			p, ok := got(t, attempt(do)).value.(PanicError)
			if !ok {
				t.Fatal("a nil fn did not panic with a PanicError")
			}
			if _, ok := p.Value().(runtime.Error); !ok {
				t.Errorf("a nil fn panicked with %v", p.Value())
			}
			j := newJob()
			leader := askDo(&g, "key", j)
			synctest.Wait()
			joiner := attempt(do)
			synctest.Wait()
			j.giveBack(1, nil)
			wantReply(t, answer{val: 1, shared: true}, leader, joiner)
		}
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

func TestContextWhoseMethodsUseTheGroup(t *testing.T) {
	inTime(t, func() {
		var g Group
		outer := newJob()
		outside := askContext(t.Context(), &g, "outer", outer)
		eventually(t, "the start", func() bool { return outer.runs.Load() == 1 })
		for name, parent := range map[string]context.Context{
			"plain":  context.Background(),
			"nested": outer.ctx,
		} {
			var used atomic.Int32
			use := func() {
				used.Add(1)
				g.ForgetUnshared("key")
				g.DoContext(outer.ctx, "another key", func(context.Context) (any, error) { return nil, nil })
				g.Do("yet another", func() (any, error) { return nil, nil })
				g.Forget("key")
				g.DoContext(parent, "key", func(context.Context) (any, error) { return nil, nil })
			}
			ctx, cancel := context.WithCancel(parent)
			busy := &busyContext{ctx, use, use, use}
			_, err, _ := g.DoContext(busy, "key", func(ctx context.Context) (any, error) {
				ctx.Value(contextKey(1))
				g.DoContext(ctx, "in fn", func(context.Context) (any, error) { return nil, nil })
				cancel()
				<-ctx.Done()
				return nil, nil
			})
			if err != context.Canceled {
				t.Errorf("%s: the caller got %v", name, err)
			}
			if used.Load() < 5 {
				t.Errorf("%s: only %d calls of the context's methods", name, used.Load())
			}
		}
		outer.giveBack(nil, nil)
		<-outside
	})
}

func TestContextWhoseMethodsPanicLeavesNoTrace(t *testing.T) {
	nothing := func() {}
	boom := func() { panic("of the context's") }
	synctest.Test(t, func(t *testing.T) {
		var g Group
		outer := newJob()
		outside := askContext(t.Context(), &g, "outer", outer)
		synctest.Wait()
		for name, ctx := range map[string]*busyContext{
			"Done":  {outer.ctx, boom, nothing, nothing},
			"Err":   {outer.ctx, nothing, boom, nothing},
			"Value": {outer.ctx, nothing, nothing, boom},
		} {
			j := newJob()
			wantReply(t, answer{value: "of the context's"}, askContext(ctx, &g, "key", j))
			if n := callsOf(&g); n != 1 {
				t.Errorf("%s: %d calls are in the table, want 1", name, n)
			}
			leader := askContext(outer.ctx, &g, "key", j)
			wantWaiting(t, leader)
			wantReply(t, answer{value: "of the context's"}, askContext(ctx, &g, "key", j))
			if n := joinersOf(&g, "key"); n != 0 {
				t.Errorf("%s: %d callers count as joined", name, n)
			}
			j.giveBack(1, nil)
			wantReply(t, answer{val: 1}, leader)
		}
		outer.giveBack(nil, nil)
		wantReply(t, answer{}, outside)
	})
}

type (
	named    int
	stringer struct{ s string }
)

func (s *stringer) String() string { return s.s }

func TestTypedResults(t *testing.T) {
	errFn := errors.New("fn's")
	one := &stringer{"one"}
	t.Run("match", func(t *testing.T) {
		wantTyped(t, 7, nil, 7, nil)
		wantTyped(t, named(7), nil, named(7), nil)
		wantTyped(t, one, nil, one, nil)
		wantTyped(t, (*stringer)(nil), nil, (*stringer)(nil), nil)
		wantTyped[fmt.Stringer](t, one, nil, one, nil)
		wantTyped[any](t, 7, nil, 7, nil)
		wantTyped[error](t, errFn, nil, errFn, nil)
	})
	t.Run("nil result of type that can be nil", func(t *testing.T) {
		wantTyped[*stringer](t, nil, nil, nil, nil)
		wantTyped[fmt.Stringer](t, nil, nil, nil, nil)
		wantTyped[error](t, nil, nil, nil, nil)
		wantTyped[any](t, nil, nil, nil, nil)
		wantTyped[[]byte](t, nil, nil, nil, nil)
		wantTyped[map[string]int](t, nil, nil, nil, nil)
		wantTyped[chan int](t, nil, nil, nil, nil)
		wantTyped[func()](t, nil, nil, nil, nil)
		wantTyped[unsafe.Pointer](t, nil, nil, nil, nil)
	})
	t.Run("error", func(t *testing.T) {
		wantTyped(t, 7, errFn, 7, errFn)
		wantTyped(t, "seven", errFn, 0, errFn)
		wantTyped(t, nil, errFn, 0, errFn)
		wantTyped(t, nil, errFn, struct{ n int }{}, errFn)
		wantTyped[*stringer](t, 7, errFn, nil, errFn)
		wantTyped[fmt.Stringer](t, one, errFn, one, errFn)
		wantTyped[fmt.Stringer](t, 7, errFn, nil, errFn)
	})
	t.Run("mismatch", func(t *testing.T) {
		wantMismatch[int](t, "key", "seven", "string")
		wantMismatch[int](t, "key", named(7), "singleflight.named")
		wantMismatch[named](t, "key", 7, "int")
		wantMismatch[int](t, "key", int64(7), "int64")
		wantMismatch[*stringer](t, "key", *one, "singleflight.stringer")
		wantMismatch[fmt.Stringer](t, "key", *one, "singleflight.stringer")
		wantMismatch[error](t, "key", one, "*singleflight.stringer")
		wantMismatch[[]byte](t, "key", "seven", "string")
		wantMismatch[map[string]int](t, "key", func() {}, "func()")
	})
	t.Run("nil result of type that cannot be nil", func(t *testing.T) {
		wantMismatch[int](t, "key", nil, "nil")
		wantMismatch[string](t, "key", nil, "nil")
		wantMismatch[stringer](t, "key", nil, "nil")
		wantMismatch[[0]int](t, "key", nil, "nil")
	})
	t.Run("key", func(t *testing.T) {
		for key, want := range map[string]string{
			"":                                `""`,
			`say "when"`:                      `"say \"when\""`,
			"\xff\x00\n":                      `"\xff\x00\n"`,
			strings.Repeat("k", 64):           `"` + strings.Repeat("k", 64) + `"`,
			strings.Repeat("k", 65):           `"` + strings.Repeat("k", 64) + `…"`,
			strings.Repeat("k", 1<<20):        `"kkkkkkkkkk`,
			strings.Repeat("\xff", 1<<20):     `"\xff\xff\xff\xff`,
			strings.Repeat("é", 1<<20):        `"éééé`,
			"x" + strings.Repeat("語", 1<<20):  `"x語語語語`,
			strings.Repeat("\U0001F600", 100): "\"\U0001F600\U0001F600",
		} {
			text := wantMismatch[int](t, key, "seven", "string")
			if !strings.Contains(text, want) {
				t.Errorf("%.20q: the error does not name it: %s", key, text)
			}
			if len(text) > 500 || !utf8.ValidString(text) {
				t.Errorf("%.20q: the error has %d bytes, valid UTF-8: %t", key, len(text), utf8.ValidString(text))
			}
		}
	})
}

// askTyped starts a call of key that returns val and err, and returns what the
// typed functions give to those who join it. They have to agree.
func askTyped[V any](t *testing.T, key string, val any, err error) (v V, vErr error) {
	t.Helper()
	type result struct {
		v   V
		err error
	}
	synctest.Test(t, func(t *testing.T) {
		var g Group
		j := newJob()
		leader := attempt(func() (any, error, bool) { g.Do(key, j.plain); return nil, nil, false })
		synctest.Wait()
		results := make(chan result, 2)
		note := func(v V, err error, shared bool) {
			if !shared {
				t.Error("shared is false for a joiner")
			}
			results <- result{v, err}
		}
		a := attempt(func() (any, error, bool) {
			note(Do(&g, key, func() (v V, err error) { return }))
			return nil, nil, false
		})
		b := attempt(func() (any, error, bool) {
			note(DoContext(t.Context(), &g, key, func(context.Context) (v V, err error) { return }))
			return nil, nil, false
		})
		synctest.Wait()
		j.giveBack(val, err)
		wantReply(t, answer{}, leader, a, b)
		one, two := <-results, <-results
		if !reflect.DeepEqual(one.v, two.v) || fmt.Sprint(one.err) != fmt.Sprint(two.err) {
			t.Errorf("Do and DoContext differ: %v, %v", one, two)
		}
		v, vErr = one.v, one.err
	})
	return v, vErr
}

// wantTyped fails the test unless callers who want a V get v and vErr if fn has
// returned val and err.
func wantTyped[V any](t *testing.T, val any, err error, v V, vErr error) {
	t.Helper()
	gotV, gotErr := askTyped[V](t, "key", val, err)
	if gotErr != vErr || !reflect.DeepEqual(gotV, v) {
		t.Errorf("%v of %T with %v: got %v, %v; want %v, %v", reflect.TypeFor[V](), val, err, gotV, gotErr, v, vErr)
	}
}

// wantMismatch fails the test unless callers who want a V get an error that names
// V and the type of val, and returns its text.
func wantMismatch[V any](t *testing.T, key string, val any, valType string) string {
	t.Helper()
	v, err := askTyped[V](t, key, val, nil)
	if err == nil {
		t.Fatalf("%v of %T: no error", reflect.TypeFor[V](), val)
	}
	if !reflect.ValueOf(&v).Elem().IsZero() {
		t.Errorf("%v of %T: got the value %v", reflect.TypeFor[V](), val, v)
	}
	// The longer one first, since it may contain the other.
	names := []string{reflect.TypeFor[V]().String(), valType}
	slices.SortFunc(names, func(a, b string) int { return len(b) - len(a) })
	before, after, found := strings.Cut(err.Error(), names[0])
	if !found || !strings.Contains(before+"|"+after, names[1]) {
		t.Errorf("%v of %T: the error does not name both types: %v", reflect.TypeFor[V](), val, err)
	}
	return err.Error()
}

func TestTypedFunctionsReturnWhatFnDoes(t *testing.T) {
	var g Group
	errFn := errors.New("fn's")
	if v, err, shared := Do(&g, "key", func() (int, error) { return 7, errFn }); v != 7 || err != errFn || shared {
		t.Errorf("Do: %v, %v, %v", v, err, shared)
	}
	ctx := context.WithValue(t.Context(), contextKey(1), "value")
	v, err, shared := DoContext(ctx, &g, "key", func(ctx context.Context) (string, error) {
		return ctx.Value(contextKey(1)).(string), errFn
	})
	if v != "value" || err != errFn || shared {
		t.Errorf("DoContext: %v, %v, %v", v, err, shared)
	}
}

// closeRing calls DoContext, which must return ErrRecursive.
func closeRing(t *testing.T, ctx context.Context, g *Group, key string) {
	t.Helper()
	v, err, shared := g.DoContext(ctx, key, neverCalled(t))
	if v != nil || err != ErrRecursive || shared {
		t.Errorf("%s: got %v, %v, %v; want nil, ErrRecursive, false", key, v, err, shared)
	}
}

func TestDoContextOfItsOwnKeyIsRecursive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g Group
		v, err, shared := g.DoContext(t.Context(), "key", func(ctx context.Context) (any, error) {
			closeRing(t, ctx, &g, "key")
			derived, cancel := context.WithTimeout(context.WithValue(ctx, contextKey(1), 1), time.Hour)
			defer cancel()
			closeRing(t, derived, &g, "key")
			closeRing(t, context.WithoutCancel(ctx), &g, "key")
			var others sync.WaitGroup
			others.Go(func() { closeRing(t, ctx, &g, "key") })
			others.Wait()
			n, err, shared := DoContext(ctx, &g, "key", func(context.Context) (int, error) { return 1, nil })
			if n != 0 || err != ErrRecursive || shared {
				t.Errorf("typed: %v, %v, %v", n, err, shared)
			}
			return "value", nil
		})
		if v != "value" || err != nil || shared {
			t.Errorf("the caller outside got %v, %v, %v", v, err, shared)
		}
	})
}

func TestForgetMakesRoomForDoContextOfTheSameKeyInFn(t *testing.T) {
	for name, forget := range map[string]func(*Group, string){
		"Forget":         (*Group).Forget,
		"ForgetUnshared": func(g *Group, key string) { g.ForgetUnshared(key) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var g Group
				v, err, shared := g.DoContext(t.Context(), "key", func(ctx context.Context) (any, error) {
					forget(&g, "key")
					v, err, shared := g.DoContext(ctx, "key", func(context.Context) (any, error) { return "inner", nil })
					if v != "inner" || err != nil || shared {
						t.Errorf("the caller inside got %v, %v, %v", v, err, shared)
					}
					return "outer", nil
				})
				if v != "outer" || err != nil || shared {
					t.Errorf("the caller outside got %v, %v, %v", v, err, shared)
				}
			})
		})
	}
}

func TestRecursionThroughAnotherKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g Group
		v, err, shared := g.DoContext(t.Context(), "a", func(ctx context.Context) (any, error) {
			v, err, _ := g.DoContext(ctx, "b", func(ctx context.Context) (any, error) {
				closeRing(t, ctx, &g, "a")
				closeRing(t, ctx, &g, "b")
				return "of b", nil
			})
			return v, err
		})
		if v != "of b" || err != nil || shared {
			t.Errorf("the caller outside got %v, %v, %v", v, err, shared)
		}
	})
}

func TestTwoCallsThatAskForEachOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g Group
		a, b := newJob(), newJob()
		outside := []<-chan answer{askContext(t.Context(), &g, "a", a), askContext(t.Context(), &g, "b", b)}
		synctest.Wait()
		first := askContext(a.ctx, &g, "b", b)
		wantWaiting(t, first)
		closeRing(t, b.ctx, &g, "a")
		if !g.ForgetUnshared("a") {
			t.Error("ErrRecursive has made the call shared that it did not join")
		}
		wantWaiting(t, append(outside, first)...)
		b.giveBack("of b", nil)
		wantReply(t, answer{val: "of b", shared: true}, first, outside[1])
		a.giveBack("of a", nil)
		wantReply(t, answer{val: "of a"}, outside[0])
	})
}

func TestTwoCallsThatAskForEachOtherAtTheSameMoment(t *testing.T) {
	inTime(t, func() {
		for range 1000 {
			var g Group
			var recursions atomic.Int32
			var begun sync.WaitGroup
			begun.Add(2)
			askOther := func(other string) func(context.Context) (any, error) {
				return func(ctx context.Context) (any, error) {
					begun.Done()
					begun.Wait()
					_, err, _ := g.DoContext(ctx, other, neverCalled(t))
					if err == ErrRecursive {
						recursions.Add(1)
					}
					return nil, nil
				}
			}
			a := attempt(func() (any, error, bool) { return g.DoContext(t.Context(), "a", askOther("b")) })
			b := attempt(func() (any, error, bool) { return g.DoContext(t.Context(), "b", askOther("a")) })
			<-a
			<-b
			if n := recursions.Load(); n != 1 {
				t.Fatalf("%d of the two got ErrRecursive, want 1", n)
			}
		}
	})
}

func TestRingOfThreeInThreeGroups(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g [3]Group
		var j [3]*job
		var outside, inside []<-chan answer
		for i := range g {
			j[i] = newJob()
			outside = append(outside, askContext(t.Context(), &g[i], "key", j[i]))
		}
		synctest.Wait()
		for i := range 2 {
			inside = append(inside, askContext(j[i].ctx, &g[i+1], "key", j[i+1]))
			wantWaiting(t, inside...)
		}
		closeRing(t, j[2].ctx, &g[0], "key")
		closeRing(t, j[2].ctx, &g[1], "key")
		wantWaiting(t, append(outside, inside...)...)
		for i := 2; i > 0; i-- {
			j[i].giveBack(i, nil)
			wantReply(t, answer{val: i, shared: true}, outside[i], inside[i-1])
		}
		j[0].giveBack(0, nil)
		wantReply(t, answer{val: 0}, outside[0])
	})
}

func TestWhoeverHasFnsContextCountsAsFn(t *testing.T) {
	for _, plain := range askers[:2] {
		t.Run(plain.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var g Group
				a, p := newJob(), newJob()
				outside := askContext(t.Context(), &g, "a", a)
				inside := plain.ask(&g, "plain", p)
				synctest.Wait()
				waits := askContext(a.ctx, &g, "plain", p)
				wantWaiting(t, waits)
				// Whoever has the context of a's fn counts as that.
				closeRing(t, a.ctx, &g, "a")
				// Who asks from outside closes no ring.
				joins := askContext(t.Context(), &g, "a", a)
				wantWaiting(t, joins)
				p.giveBack(1, nil)
				wantReply(t, answer{val: 1, shared: true}, inside, waits)
				a.giveBack(2, nil)
				wantReply(t, answer{val: 2, shared: true}, outside, joins)
			})
		})
	}
}

func TestRingOfCallsThatDoHasJoined(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g Group
		a, b := newJob(), newJob()
		outside := []<-chan answer{askContext(t.Context(), &g, "a", a), askContext(t.Context(), &g, "b", b)}
		synctest.Wait()
		outside = append(outside, askDo(&g, "a", a), askChan(&g, "b", b))
		inside := askContext(a.ctx, &g, "b", b)
		wantWaiting(t, inside)
		closeRing(t, b.ctx, &g, "a")
		b.giveBack(2, nil)
		wantReply(t, answer{val: 2, shared: true}, inside, outside[1], outside[3])
		a.giveBack(1, nil)
		wantReply(t, answer{val: 1, shared: true}, outside[0], outside[2])
	})
}

func TestRingThroughForgottenCall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g Group
		a, b, c := newJob(), newJob(), newJob()
		outside := []<-chan answer{
			askContext(t.Context(), &g, "a", a),
			askContext(t.Context(), &g, "b", b),
			askContext(t.Context(), &g, "c", c),
		}
		synctest.Wait()
		inside := []<-chan answer{askContext(c.ctx, &g, "a", a)}
		synctest.Wait()
		g.Forget("a")
		inside = append(inside, askContext(a.ctx, &g, "b", b))
		wantWaiting(t, inside...)
		closeRing(t, b.ctx, &g, "c") // c waits for the forgotten a, which waits for b

		// The forgotten a is not joined: b starts another, which may not ask for b.
		v, err, shared := g.DoContext(b.ctx, "a", func(ctx context.Context) (any, error) {
			closeRing(t, ctx, &g, "b")
			closeRing(t, ctx, &g, "c")
			return "new a", nil
		})
		if v != "new a" || err != nil || shared {
			t.Errorf("b got %v, %v, %v", v, err, shared)
		}
		b.giveBack("b", nil)
		wantReply(t, answer{val: "b", shared: true}, outside[1], inside[1])
		a.giveBack("a", nil)
		wantReply(t, answer{val: "a", shared: true}, outside[0], inside[0])
		c.giveBack("c", nil)
		wantReply(t, answer{val: "c"}, outside[2])
	})
}

func TestRingThroughCallWhoseStarterHasLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g Group
		a, b := newJob(), newJob()
		ctx, cancel := context.WithCancel(t.Context())
		leaves := askContext(ctx, &g, "a", a)
		outside := askContext(t.Context(), &g, "b", b)
		synctest.Wait()
		inside := askContext(b.ctx, &g, "a", a) // keeps a alive
		synctest.Wait()
		cancel()
		wantReply(t, answer{err: context.Canceled}, leaves)
		closeRing(t, a.ctx, &g, "b")
		a.giveBack("a", nil)
		wantReply(t, answer{val: "a", shared: true}, inside)
		b.giveBack("b", nil)
		wantReply(t, answer{val: "b"}, outside)
	})
}

func TestAncestorThatHasStoppedWaitingIsNoRing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g Group
		a, b := newJob(), newJob()
		outside := askContext(t.Context(), &g, "a", a)
		synctest.Wait()
		ctx, cancel := context.WithTimeout(a.ctx, time.Second)
		defer cancel()
		inside := askContext(ctx, &g, "b", b) // b descends from a
		synctest.Wait()
		stays := askContext(t.Context(), &g, "b", b)
		synctest.Wait()
		closeRing(t, b.ctx, &g, "a")
		if r := <-inside; r != (answer{err: context.DeadlineExceeded}) {
			t.Fatalf("a got %v from b", r)
		}
		back := askContext(b.ctx, &g, "a", a)
		wantWaiting(t, back)
		closeRing(t, a.ctx, &g, "b") // now it is the other way round
		a.giveBack("a", nil)
		wantReply(t, answer{val: "a", shared: true}, back, outside)
		b.giveBack("b", nil)
		wantReply(t, answer{val: "b", shared: true}, stays)
	})
}

// When the last caller leaves and fn learns of it, that wait must have ended: fn may
// ask for the call that was waiting. The mutex for the waits stops the leaver.
func TestWaitEndsBeforeFnLearnsThatAllHaveLeft(t *testing.T) {
	var g Group
	a, b := newJob(), newJob()
	outside := askContext(t.Context(), &g, "a", a)
	eventually(t, "the start", func() bool { return a.runs.Load() == 1 })
	ctx, cancel := context.WithCancel(a.ctx)
	inside := askContext(ctx, &g, "b", b)
	eventually(t, "the start", func() bool { return b.runs.Load() == 1 })

	waitsMu.Lock()
	cancel()
	eventually(t, "DoContext on a mutex", func() bool {
		return len(goroutines("[sync.Mutex.Lock", "(*Group).DoContext(")) > 0
	})
	if err := b.ctx.Err(); err != nil {
		t.Errorf("the wait has not ended, yet the error of fn's context is %v", err)
	}
	waitsMu.Unlock()
	<-b.ctx.Done()
	back := askContext(context.WithoutCancel(b.ctx), &g, "a", a)
	eventually(t, "joining", func() bool { return joinersOf(&g, "a") == 1 })
	if r := <-inside; r != (answer{err: context.Canceled}) {
		t.Errorf("a got %v from b", r)
	}
	a.giveBack("a", nil)
	for _, ch := range []<-chan answer{outside, back} {
		if r := <-ch; r != (answer{val: "a", shared: true}) {
			t.Errorf("got %v from a", r)
		}
	}
	b.giveBack("b", nil)
}

func TestEndRemovesTheWait(t *testing.T) {
	for name, end := range map[string]func(*job){
		"return": func(j *job) { j.giveBack(1, nil) },
		"Goexit": (*job).exits,
		"panic":  func(j *job) { j.panics("value") },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var g Group
				a, b, again := newJob(), newJob(), newJob()
				outside := askContext(t.Context(), &g, "a", a)
				synctest.Wait()
				inside := askContext(a.ctx, &g, "b", b)
				wantWaiting(t, inside)
				end(b)
				got(t, inside)
				// a waits for b no more, so both b's context and another b may ask for a.
				callers := []<-chan answer{
					askContext(context.WithoutCancel(b.ctx), &g, "a", a),
					askContext(t.Context(), &g, "b", again),
				}
				synctest.Wait()
				callers = append(callers, askContext(again.ctx, &g, "a", a))
				wantWaiting(t, callers...)
				a.giveBack("a", nil)
				wantReply(t, answer{val: "a", shared: true}, outside, callers[0], callers[2])
				again.giveBack("b", nil)
				wantReply(t, answer{val: "b"}, callers[1])
			})
		})
	}
}

func TestEndedCallWaitsForNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g Group
		old, a, b := newJob(), newJob(), newJob()
		outside := askContext(t.Context(), &g, "a", old)
		synctest.Wait()
		kept := context.WithoutCancel(old.ctx)
		callers := []<-chan answer{askContext(t.Context(), &g, "b", b)}
		synctest.Wait()
		callers = append(callers, askContext(kept, &g, "b", b))
		wantWaiting(t, callers...)
		old.giveBack("old", nil)
		wantReply(t, answer{val: "old"}, outside)

		// A goroutine of old's fn still waits for b, but old does not. Its key has
		// a call anew, which is another.
		outside = askContext(b.ctx, &g, "a", a)
		synctest.Wait()
		callers = append(callers, askContext(kept, &g, "b", b))
		back := askContext(kept, &g, "a", a)
		wantWaiting(t, append(callers, outside, back)...)
		closeRing(t, a.ctx, &g, "b")
		a.giveBack("a", nil)
		wantReply(t, answer{val: "a", shared: true}, outside, back)
		b.giveBack("b", nil)
		wantReply(t, answer{val: "b", shared: true}, callers...)
	})
}

func TestEndedCallIsNoLink(t *testing.T) {
	a, b, c := new(contexts), new(contexts), new(contexts)
	waitsMu.Lock()
	defer waitsMu.Unlock()
	a.wait(b)
	b.wait(c)
	if !a.waitsFor(c, make(map[*contexts]bool)) {
		t.Error("a does not wait for c")
	}
	if c.waitsFor(a, make(map[*contexts]bool)) {
		t.Error("c waits for a")
	}
	b.ended.Store(true)
	if a.waitsFor(c, make(map[*contexts]bool)) {
		t.Error("a waits for c through a call that has ended")
	}
}

func TestOneFnWaitsSeveralTimes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g Group
		a, b, c := newJob(), newJob(), newJob()
		outside := []<-chan answer{
			askContext(t.Context(), &g, "a", a),
			askContext(t.Context(), &g, "b", b),
			askContext(t.Context(), &g, "c", c),
		}
		synctest.Wait()
		var inside []<-chan answer
		var leave []context.CancelFunc
		for _, key := range []string{"b", "b", "c"} {
			ctx, cancel := context.WithCancel(a.ctx)
			leave = append(leave, cancel)
			inside = append(inside, attempt(func() (any, error, bool) { return g.DoContext(ctx, key, neverCalled(t)) }))
		}
		wantWaiting(t, inside...)
		closeRing(t, b.ctx, &g, "a")
		closeRing(t, c.ctx, &g, "a")
		leave[0]()
		wantReply(t, answer{err: context.Canceled}, inside[0])
		closeRing(t, b.ctx, &g, "a") // there is another wait for b
		leave[1]()
		wantReply(t, answer{err: context.Canceled}, inside[1])
		back := askContext(b.ctx, &g, "a", a)
		wantWaiting(t, back)
		closeRing(t, c.ctx, &g, "a") // that wait is still there
		closeRing(t, c.ctx, &g, "b") // b waits for a, which waits for c
		leave[2]()
		wantReply(t, answer{err: context.Canceled}, inside[2])
		a.giveBack("a", nil)
		wantReply(t, answer{val: "a", shared: true}, back, outside[0])
		b.giveBack("b", nil)
		c.giveBack("c", nil)
		wantReply(t, answer{val: "b", shared: true}, outside[1])
		wantReply(t, answer{val: "c", shared: true}, outside[2])
	})
}

func TestDiamondIsNoRing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g Group
		a, b, c, d := newJob(), newJob(), newJob(), newJob()
		outside := askContext(t.Context(), &g, "a", a)
		synctest.Wait()
		left, right := askContext(a.ctx, &g, "b", b), askContext(a.ctx, &g, "c", c)
		synctest.Wait()
		bottom := []<-chan answer{askContext(b.ctx, &g, "d", d)}
		synctest.Wait()
		bottom = append(bottom, askContext(c.ctx, &g, "d", d))
		wantWaiting(t, append(bottom, outside, left, right)...)
		for _, key := range []string{"a", "b", "c", "d"} {
			closeRing(t, d.ctx, &g, key)
		}
		across := askContext(c.ctx, &g, "b", b)
		wantWaiting(t, across)
		closeRing(t, b.ctx, &g, "c")
		d.giveBack("d", nil)
		wantReply(t, answer{val: "d", shared: true}, bottom...)
		b.giveBack("b", nil)
		wantReply(t, answer{val: "b", shared: true}, left, across)
		c.giveBack("c", nil)
		wantReply(t, answer{val: "c"}, right)
		a.giveBack("a", nil)
		wantReply(t, answer{val: "a"}, outside)
	})
}

// Each call of a layer waits for both of the next, so the ways through all layers
// are far too many to go them one by one.
func TestSearchForRingLooksAtEachCallOnce(t *testing.T) {
	layers := make([][2]*contexts, 64)
	for i := range layers {
		layers[i] = [2]*contexts{new(contexts), new(contexts)}
	}
	inTime(t, func() {
		waitsMu.Lock()
		defer waitsMu.Unlock()
		for i := range len(layers) - 1 {
			for _, x := range layers[i] {
				x.wait(layers[i+1][0])
				x.wait(layers[i+1][1])
			}
		}
		if layers[0][0].waitsFor(new(contexts), make(map[*contexts]bool)) {
			t.Error("the first waits for one that nobody waits for")
		}
		if !layers[0][0].waitsFor(layers[len(layers)-1][1], make(map[*contexts]bool)) {
			t.Error("the first does not wait for the last")
		}
	})
}

func TestLongChain(t *testing.T) {
	const length = 1000
	synctest.Test(t, func(t *testing.T) {
		var g Group
		var link func(i int) func(context.Context) (any, error)
		link = func(i int) func(context.Context) (any, error) {
			return func(ctx context.Context) (any, error) {
				if i == length {
					for _, key := range []int{0, 1, length / 2, length} {
						closeRing(t, ctx, &g, fmt.Sprint(key))
					}
					return "the end", nil
				}
				v, err, shared := g.DoContext(ctx, fmt.Sprint(i+1), link(i+1))
				if shared {
					t.Error("nobody has joined, but shared is true")
				}
				return v, err
			}
		}
		v, err, shared := g.DoContext(t.Context(), "0", link(0))
		if v != "the end" || err != nil || shared {
			t.Errorf("the caller outside got %v, %v, %v", v, err, shared)
		}
		if n := callsOf(&g); n != 0 {
			t.Errorf("%d calls are still in the table", n)
		}
	})
}

func TestCallsThatNestNothingLeaveTheMutexForWaitsAlone(t *testing.T) {
	waitsMu.Lock()
	defer waitsMu.Unlock()
	inTime(t, func() {
		var g Group
		j := newJob()
		leader := askContext(t.Context(), &g, "key", j)
		eventually(t, "the start", func() bool { return j.runs.Load() == 1 })
		if _, err, _ := g.DoContext(newFleeting(), "key", j.run); err != context.Canceled {
			t.Errorf("the leaver got %v", err)
		}
		joiner := askContext(t.Context(), &g, "key", j)
		eventually(t, "joining", func() bool { return joinersOf(&g, "key") == 1 })
		kept := context.WithoutCancel(j.ctx)
		j.giveBack(1, nil)
		for _, ch := range []<-chan answer{leader, joiner} {
			if r := <-ch; r != (answer{val: 1, shared: true}) {
				t.Errorf("got %v", r)
			}
		}
		// The call has ended, so that its context makes no call a nested one.
		v, err, shared := g.DoContext(kept, "key", func(context.Context) (any, error) { return 2, nil })
		if v != 2 || err != nil || shared {
			t.Errorf("with the kept context: %v, %v, %v", v, err, shared)
		}
	})
}

func TestRingThatIsNotSeenEndsWithContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g Group
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		v, err, shared := g.DoContext(t.Context(), "a", func(context.Context) (any, error) {
			r := <-g.DoChan("b", func() (any, error) {
				v, err, _ := g.DoContext(ctx, "a", neverCalled(t))
				return v, err
			})
			return r.Val, r.Err
		})
		if v != nil || err != context.DeadlineExceeded || !shared {
			t.Errorf("got %v, %v, %v", v, err, shared)
		}
	})
}

// panicsForPanicError is an fn whose frame is looked for.
//
//go:noinline
func panicsForPanicError() (any, error) { panic(io.ErrUnexpectedEOF) }

func TestRecoveredPanicIsPanicError(t *testing.T) {
	var g Group
	for name, do := range map[string]func() (any, error, bool){
		"Do": func() (any, error, bool) { return g.Do("key", panicsForPanicError) },
		"DoContext": func() (any, error, bool) {
			return g.DoContext(t.Context(), "key", func(context.Context) (any, error) { return panicsForPanicError() })
		},
		"typed": func() (any, error, bool) { return Do(&g, "key", panicsForPanicError) },
	} {
		t.Run(name, func(t *testing.T) {
			err, ok := (<-attempt(do)).value.(error)
			if !ok {
				t.Fatal("the value is no error")
			}
			for _, err := range []error{err, fmt.Errorf("wrapped: %w", err), errors.Join(io.EOF, err)} {
				var p PanicError
				if !errors.As(err, &p) {
					t.Fatalf("%T is no PanicError", err)
				}
				if p.Value() != io.ErrUnexpectedEOF || p.Unwrap() != io.ErrUnexpectedEOF || !errors.Is(err, io.ErrUnexpectedEOF) {
					t.Errorf("the value is %v, the wrapped error %v", p.Value(), p.Unwrap())
				}
				stack := p.Stack()
				if !bytes.Contains(stack, []byte("panicsForPanicError(")) {
					t.Errorf("the stack has not got fn's frame:\n%s", stack)
				}
				if bytes.HasPrefix(stack, []byte("goroutine ")) {
					t.Errorf("the stack names a goroutine:\n%s", stack)
				}
				if want := io.ErrUnexpectedEOF.Error() + "\n\n" + string(stack); p.Error() != want {
					t.Errorf("the text is %q, want %q", p.Error(), want)
				}
				clear(stack)
				if bytes.Equal(p.Stack(), stack) || strings.Contains(p.Error(), "\x00") {
					t.Error("the stack is no copy")
				}
			}
		})
	}
}

func TestPanicErrorOfValueThatIsNoError(t *testing.T) {
	var g Group
	r := <-attempt(func() (any, error, bool) { return g.Do("key", func() (any, error) { panic(42) }) })
	p := r.value.(PanicError)
	if p.Value() != 42 || p.Unwrap() != nil {
		t.Errorf("the value is %v, the wrapped error %v", p.Value(), p.Unwrap())
	}
}

func TestPanicThroughTwoCalls(t *testing.T) {
	var g Group
	r := <-attempt(func() (any, error, bool) {
		return g.DoContext(t.Context(), "outer", func(ctx context.Context) (any, error) {
			v, err, _ := g.DoContext(ctx, "inner", func(context.Context) (any, error) { panic("the value") })
			return v, err
		})
	})
	outer := r.value.(PanicError)
	inner, ok := outer.Value().(PanicError)
	if !ok || inner.Value() != "the value" || outer.Unwrap() != inner {
		t.Errorf("the outer value is %v", outer.Value())
	}
}

// bubbledContext is used in one bubble, then outside, then in another.
var bubbledContext Group

func TestDoContextInBubblesAndOutside(t *testing.T) {
	use := func(t *testing.T) {
		outer, inner := newJob(), newJob()
		ctx, cancel := context.WithCancel(t.Context())
		caller := askContext(t.Context(), &bubbledContext, "key", outer)
		eventually(t, "the start", func() bool { return outer.runs.Load() == 1 })
		plain := askDo(&bubbledContext, "key", outer)
		leaver := askContext(ctx, &bubbledContext, "key", outer)
		eventually(t, "joining", func() bool { return joinersOf(&bubbledContext, "key") == 2 })
		cancel()
		if r := <-leaver; r != (answer{err: context.Canceled}) {
			t.Errorf("the leaver got %v", r)
		}
		nested := askContext(outer.ctx, &bubbledContext, "inner", inner)
		inner.giveBack(2, nil)
		if r := <-nested; r != (answer{val: 2}) {
			t.Errorf("the nested caller got %v", r)
		}
		outer.giveBack(1, nil)
		for _, ch := range []<-chan answer{caller, plain} {
			if r := <-ch; r != (answer{val: 1, shared: true}) {
				t.Errorf("got %v", r)
			}
		}
	}
	for range 3 {
		synctest.Test(t, use)
		use(t)
	}
}

func TestWaitingInDoContextIsDurable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g Group
		start := time.Now()
		var callers []<-chan answer
		for range 3 {
			callers = append(callers, attempt(func() (any, error, bool) {
				return g.DoContext(t.Context(), "key", func(context.Context) (any, error) {
					time.Sleep(time.Hour)
					return 1, nil
				})
			}))
			synctest.Wait()
		}
		for _, ch := range callers {
			if r := <-ch; r != (answer{val: 1, shared: true}) || time.Since(start) != time.Hour {
				t.Errorf("after %v: %v", time.Since(start), r)
			}
		}
	})
}

func TestAllocationsOfContextAndTypes(t *testing.T) {
	var g Group
	p := new(stringer)
	ctx := t.Context()
	fn := func(context.Context) (any, error) { return p, nil }
	typedFn := func(context.Context) (*stringer, error) { return p, nil }
	for _, test := range []struct {
		name string
		want float64
		f    func()
	}{
		{"DoContext", 5, func() { g.DoContext(ctx, "key", fn) }},
		{"Do[*T]", 0, func() {
			Do(&g, "key", func() (*stringer, error) { return p, nil })
		}},
		{"DoContext[*T]", 6, func() { DoContext(ctx, &g, "key", typedFn) }},
		{"ForgetUnshared", 0, func() { g.ForgetUnshared("key") }},
	} {
		if n := testing.AllocsPerRun(200, test.f); n != test.want {
			t.Errorf("%s: %v allocations, want %v", test.name, n, test.want)
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
}

type modelCaller struct {
	way     way
	call    int  // that it waits or has waited for
	carries int  // the call whose fn's context its own has the values of
	tied    bool // and is cancelled with
	verdict verdict
}

type modelCall struct {
	started   bool
	key       int
	joinable  bool
	shared    bool // joined, perhaps by one who has left
	ended     bool
	cancelled bool // fn's context, if it has one
}

// noContext is what stands for fn's context where it has none.
var noContext context.Context

// A way is how a caller asks.
type way string

const (
	byDo             way = "Do"
	byDoChan         way = "DoChan"
	byDoContext      way = "DoContext"
	byForgetUnshared way = "ForgetUnshared"
)

// A verdict is the answer that a caller sees.
type verdict struct {
	how    string // waits, or how it was answered
	val    any    // also what fn panicked with
	err    error
	shared bool
}

const (
	waits     = "waits"
	didReturn = "returned"
	didPanic  = "panicked"
	didExit   = "exited"
)

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
	case c.tied && m.calls[c.carries].cancelled:
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
	c.call, c.verdict.how = x, waits
	m.callers[i] = c
}

// refuse answers a caller who neither starts nor joins a call.
func (m *model) refuse(i int, c modelCaller, err error) {
	c.call, c.verdict = none, verdict{how: didReturn, err: err}
	m.callers[i] = c
}

// joinable returns the call that the next caller with this key joins.
func (m *model) joinable(key int) int {
	return slices.IndexFunc(m.calls, func(c modelCall) bool { return c.joinable && c.key == key })
}

// waiting returns the callers who wait for call x.
func (m *model) waiting(x int) (callers []int) {
	for i, c := range m.callers {
		if c.call == x && c.verdict.how == waits {
			callers = append(callers, i)
		}
	}
	return callers
}

// waitsFor reports whether call x is y or waits for it, be it through others.
func (m *model) waitsFor(x, y int) bool {
	return x == y || slices.ContainsFunc(m.callers, func(c modelCaller) bool {
		return c.carries == x && c.verdict.how == waits && m.waitsFor(c.call, y)
	})
}

// end ends call x. Who holds a channel gets an answer of its own.
func (m *model) end(x int, a, onChannel verdict) {
	call := &m.calls[x]
	call.joinable, call.ended = false, true
	for _, i := range m.waiting(x) {
		c := &m.callers[i]
		c.verdict = a
		if c.way == byDoChan {
			c.verdict = onChannel
		}
		c.verdict.shared = call.shared && c.verdict.how == didReturn
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
	if c.verdict.how != waits {
		return
	}
	c.verdict = verdict{how: didReturn, err: token{"context", i}}
	if len(m.waiting(c.call)) == 0 {
		m.calls[c.call].joinable = false
		m.cancel(c.call)
	}
}

// cancel cancels the context of call x's fn, and with it those that descend from it.
func (m *model) cancel(x int) {
	m.calls[x].cancelled = true
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
		a := verdict{how: didReturn, val: m.forgetUnshared(s.key)}
		m.callers[s.caller] = modelCaller{way: byForgetUnshared, call: none, carries: none, verdict: a}
	case opForget:
		m.forget(s.key)
	case opCancel:
		m.leave(s.n)
	case opReturn:
		val, err := m.results(s.n)
		a := verdict{how: didReturn, val: val, err: err}
		m.end(s.n, a, a)
	case opPanic:
		m.end(s.n, verdict{how: didPanic, val: token{"panic", s.n}}, verdict{})
	case opExit:
		m.end(s.n, verdict{how: didExit}, verdict{how: didReturn, err: ErrGoexit})
	}
}

// after returns a copy of m that has taken these steps.
func (m *model) after(steps ...step) *model {
	m = &model{slices.Clone(m.callers), slices.Clone(m.calls), m.variant, m.untied}
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

type op byte

const (
	opDo op = iota
	opDoChan
	opDoContext
	opDoContextLate   // with a context that is done
	opDoContextWithin // with one that descends from that of call n's fn
	opDoContextBeside // with one that only has its values
	opForgetUnshared
	opForget
	opCancel
	opReturn
	opPanic
	opExit
)

func (s step) String() string {
	switch s.op {
	case opDo:
		return fmt.Sprintf("%d: Do(%d)", s.caller, s.key)
	case opDoChan:
		return fmt.Sprintf("%d: DoChan(%d)", s.caller, s.key)
	case opDoContext:
		return fmt.Sprintf("%d: DoContext(%d)", s.caller, s.key)
	case opDoContextLate:
		return fmt.Sprintf("%d: DoContext(%d) too late", s.caller, s.key)
	case opDoContextWithin:
		return fmt.Sprintf("%d: DoContext(%d) within %d", s.caller, s.key, s.n)
	case opDoContextBeside:
		return fmt.Sprintf("%d: DoContext(%d) beside %d", s.caller, s.key, s.n)
	case opForgetUnshared:
		return fmt.Sprintf("%d: ForgetUnshared(%d)", s.caller, s.key)
	case opForget:
		return fmt.Sprintf("Forget(%d)", s.key)
	case opCancel:
		return fmt.Sprintf("%d cancelled", s.n)
	case opReturn:
		return fmt.Sprintf("%d returns", s.n)
	case opPanic:
		return fmt.Sprintf("%d panics", s.n)
	}
	return fmt.Sprintf("%d exits", s.n)
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
		for op := opDo; op <= opDoContextLate; op++ {
			steps = append(steps, step{op, key, 0, i})
		}
		for x, c := range m.calls {
			if !c.started || m.callers[x].way != byDoContext {
				continue
			}
			if !m.untied && (all || !c.cancelled) {
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
		if c.way != byDoContext || !all && c.verdict.how != waits {
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
	cancel  context.CancelFunc
	ch      <-chan Result
	ran     []playedFn // its own fn, which is run once at most
	verdict verdict
	raised  any   // what it has recovered
	over    []int // the calls whose fn's context was cancelled when the answer came
}

type playedFn struct {
	ctx  context.Context
	done <-chan struct{} // of ctx, if fn has asked for it
	end  chan func() (any, error)
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
	places := []place{{new(Group), "0"}}
	stripe := func(at place) *stripe {
		hash, _ := at.group.hash(at.key)
		return stripeOf(hash)
	}
	for i := 1; len(places) < 2; i++ {
		if at := (place{places[0].group, fmt.Sprint(i)}); stripe(at) == stripe(places[0]) {
			places = append(places, at)
		}
	}
	for len(places) < 3 {
		if at := (place{new(Group), "0"}); stripe(at) == stripe(places[0]) {
			places = append(places, at)
		}
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
		for i, c := range p.callers {
			if c.cancel != nil {
				p.take(step{opCancel, 0, i, none})
			}
		}
		for key, at := range places {
			if callOf(at.group, at.key) != nil {
				t.Fatalf("after %v: the table has a call of key %d", p.taken, key)
			}
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
		if len(steps) == 2 {
			models = m.tryAfter(models, steps[1], steps[0])
		}
	}
	m := p.models[0].after(steps...)
	for range len(m.callers) - len(p.callers) {
		p.callers = append(p.callers, &playedCaller{verdict: verdict{how: waits}})
	}
	for _, s := range steps {
		p.start(m, s)
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
		p.callers[s.caller].verdict = verdict{how: didReturn, val: at.group.ForgetUnshared(at.key)}
	case opForget:
		at.group.Forget(at.key)
	case opCancel:
		p.callers[s.n].cancel()
	case opReturn:
		val, err := m.results(s.n)
		p.callers[s.n].ran[0].end <- func() (any, error) { return val, err }
	case opPanic:
		p.callers[s.n].ran[0].end <- func() (any, error) { panic(token{"panic", s.n}) }
	case opExit:
		p.callers[s.n].ran[0].end <- func() (any, error) { runtime.Goexit(); return nil, nil }
	default:
		p.ask(s, at)
	}
}

// ask has a caller ask.
func (p *player) ask(s step, at place) {
	c := p.callers[s.caller]
	fn := func(ctx context.Context) (any, error) { return p.fn(c, ctx) }
	parent := context.Background()
	switch s.op {
	case opDo:
		go p.wait(c, func() (any, error, bool) {
			return at.group.Do(at.key, func() (any, error) { return fn(noContext) })
		})
		return
	case opDoChan:
		c.ch = at.group.DoChan(at.key, func() (any, error) { return fn(noContext) })
		go p.wait(c, func() (any, error, bool) { r := <-c.ch; return r.Val, r.Err, r.Shared })
		return
	case opDoContextWithin:
		parent = p.callers[s.n].ran[0].ctx
	case opDoContextBeside:
		parent = context.WithoutCancel(p.callers[s.n].ran[0].ctx)
	}
	parent, c.cancel = context.WithCancel(parent)
	if s.op == opDoContextLate {
		c.cancel()
	}
	go p.wait(c, func() (any, error, bool) { return at.group.DoContext(playedContext{parent, s.caller}, at.key, fn) })
}

// fn is what c asks with. It ends as it is told to.
func (p *player) fn(c *playedCaller, ctx context.Context) (any, error) {
	f := playedFn{ctx: ctx, end: make(chan func() (any, error))}
	if ctx != nil && len(p.taken)%2 == 0 {
		f.done = ctx.Done()
	}
	p.mu.Lock()
	c.ran = append(c.ran, f)
	p.mu.Unlock()
	return (<-f.end)()
}

// wait waits for the answer to c, and notes it.
func (p *player) wait(c *playedCaller, do func() (any, error, bool)) {
	a := verdict{how: didExit}
	defer func() {
		c.raised = recover()
		if e, ok := c.raised.(*panicError); ok {
			a = verdict{how: didPanic, val: e.value}
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		c.verdict = a
		for x, c2 := range p.callers {
			if len(c2.ran) > 0 && c2.ran[0].ctx != nil && c2.ran[0].ctx.Err() != nil {
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
		if got.verdict != want.verdict {
			return fmt.Errorf("%d was answered %+v, want %+v", i, got.verdict, want.verdict)
		}
		if len(got.ran) > 1 || (len(got.ran) == 1) != m.calls[i].started {
			return fmt.Errorf("%d: fn has run %d times, want it once: %v", i, len(got.ran), m.calls[i].started)
		}
		if len(got.ch) > 0 {
			return fmt.Errorf("%d received twice", i)
		}
		if got.raised == nil {
			continue
		}
		if raised[want.call] != nil && got.raised != raised[want.call] {
			return fmt.Errorf("%d recovered another value than those before", i)
		}
		raised[want.call] = got.raised
	}
	for x, c := range p.callers {
		if m.calls[x].started && m.callers[x].way == byDoContext {
			if err := p.compareContext(m, x, c.ran[0]); err != nil {
				return err
			}
		}
	}
	return nil
}

// compareContext compares the context of call x's fn with a model.
func (p *player) compareContext(m *model, x int, fn playedFn) error {
	want := m.calls[x]
	var wantErr error
	if want.cancelled {
		wantErr = context.Canceled
	}
	if err := fn.ctx.Err(); err != wantErr {
		return fmt.Errorf("%d: fn's context has the error %v, want %v", x, err, wantErr)
	}
	if fn.done != nil && closed(fn.done) != want.cancelled {
		return fmt.Errorf("%d: fn's context is done: %v, want %v", x, !want.cancelled, want.cancelled)
	}
	if _, ok := fn.ctx.Deadline(); ok || fn.ctx.Value(playedKey{}) != x {
		return fmt.Errorf("%d: fn's context has a deadline, or other values than its starter's", x)
	}
	seen := false // by one who has left
	for i, c := range m.callers {
		switch over := slices.Contains(p.callers[i].over, x); {
		case c.call != x || c.verdict.how == waits:
		case c.verdict.err == token{"context", i}:
			seen = seen || over
		case !over:
			return fmt.Errorf("%d was answered before the context of %d's fn was cancelled", i, x)
		}
	}
	if want.cancelled && !want.ended && !seen {
		return fmt.Errorf("%d: all callers have left before fn's context was cancelled", x)
	}
	return nil
}

func closed(done <-chan struct{}) bool {
	select {
	case <-done:
		return true
	default:
		return false
	}
}

var scheduleLength = flag.Int("schedules", 0, "`length` of the schedules of TestEverySchedule (default 5, or 4 with -short or -race)")

func TestEverySchedule(t *testing.T) {
	length, promised := 5, int64(100_000)
	if testing.Short() || raceEnabled {
		length, promised = 4, 10_000
	}
	if *scheduleLength != 0 {
		length, promised = *scheduleLength, 0
	}
	var all, crash, played atomic.Int64
	start := time.Now()
	fromEveryStep(t, func(t *testing.T, first step) {
		places := newPlaces()
		new(model).extend([]step{first}, length, 2, func(m *model, s []step, ends bool) {
			all.Add(1)
			switch {
			case m.crashes(s[len(s)-1]):
				crash.Add(1)
			case ends:
				play(t, places, &model{variant: int(played.Add(1))}, func(p *player) {
					for _, step := range s {
						p.take(step)
					}
				})
			}
		})
	})
	t.Logf("%d schedules of up to %d steps in %v: %d were played, and %d crash; the others are how those begin",
		all.Load(), length, time.Since(start).Round(time.Millisecond), played.Load(), crash.Load())
	if n := all.Load(); n < promised {
		t.Errorf("%d schedules, want at least %d", n, promised)
	}
}

// fromEveryStep has test go through the schedules that begin with each step, in
// parallel.
func fromEveryStep(t *testing.T, test func(t *testing.T, first step)) {
	t.Run("from", func(t *testing.T) {
		for _, first := range new(model).next(2, false) {
			t.Run(first.String(), func(t *testing.T) {
				t.Parallel()
				test(t, first)
			})
		}
	})
}

// TestEveryPairAtOnce ends each schedule with two steps at once: it must be as if one
// of them had been first. That would be too much to ask if callers left because fns had
// ended: each of these leaves in a step of its own.
func TestEveryPairAtOnce(t *testing.T) {
	length := 4
	if *scheduleLength != 0 {
		length = *scheduleLength - 1 // there are about as many of these
	}
	var played atomic.Int64
	start := time.Now()
	fromEveryStep(t, func(t *testing.T, first step) {
		places := newPlaces()
		(&model{untied: true}).extend([]step{first}, length-2, 2, func(m *model, s []step, ends bool) {
			if m.crashes(s[len(s)-1]) {
				return
			}
			m = m.after(s[len(s)-1])
			m.pairs(2, func(a, b step) {
				if m.mayCrash(a, b) {
					return
				}
				play(t, places, &model{variant: int(played.Add(1)), untied: true}, func(p *player) {
					for _, step := range s {
						p.take(step)
					}
					p.take(a, b)
				})
			})
		})
	})
	t.Logf("%d schedules of up to %d steps in %v", played.Load(), length, time.Since(start).Round(time.Millisecond))
	if n := played.Load(); length >= 4 && n < 10_000 {
		t.Errorf("%d schedules, want at least 10,000", n)
	}
}

// pairs visits the pairs of steps that can follow together.
func (m *model) pairs(keys int, visit func(a, b step)) {
	steps := m.next(keys, false)
	for _, a := range steps {
		for _, b := range steps {
			if b, ok := a.with(b); ok {
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
	return b, a != b && (a.op < opReturn || b.op < opReturn || a.n != b.n) // a call ends once
}

// mayCrash reports whether steps taken at once may kill the process.
func (m *model) mayCrash(steps ...step) bool {
	a, b := steps[0], steps[len(steps)-1]
	return m.crashes(a) || len(steps) == 2 && (m.crashes(b) || m.after(a).crashes(b) || m.after(b).crashes(a))
}

// state describes the state that call x is in.
func (m *model) state(x int) string {
	var waiting []string
	for _, i := range m.waiting(x) {
		waiting = append(waiting, fmt.Sprint(m.callers[i].way, i == x, m.callers[i].carries != none))
	}
	slices.Sort(waiting)
	return fmt.Sprint(m.callers[x].way, m.calls[x], waiting)
}

// crashingSchedules lists schedules whose end kills the process, or may do so: one for
// each state in which a call can be when its fn panics, and if that comes together with
// another step, for each kind of that.
func crashingSchedules() (list [][][]step) {
	listed := make(map[string]bool)
	add := func(s []step, state string, last ...step) {
		if listed[state] {
			return
		}
		listed[state] = true
		var schedule [][]step
		for _, s := range s {
			schedule = append(schedule, []step{s})
		}
		list = append(list, append(schedule, last))
	}
	for _, first := range new(model).next(1, false) {
		(&model{untied: true}).extend([]step{first}, 4, 1, func(m *model, s []step, ends bool) {
			last := s[len(s)-1]
			if m.crashes(last) {
				add(s[:len(s)-1], m.state(last.n), last)
				return
			}
			if len(s) > 2 {
				return
			}
			m = m.after(last)
			m.pairs(1, func(a, b step) {
				if m.mayCrash(a, b) {
					add(s, fmt.Sprint(m.state(max(a.n, b.n)), a.op, b.op), a, b)
				}
			})
		})
	}
	return list
}

func TestSchedulesThatCrash(t *testing.T) {
	if testing.Short() && !inChild() {
		t.Skip("starts a process for each")
	}
	var crashed, survived atomic.Int64
	t.Run("in", func(t *testing.T) {
		for _, schedule := range crashingSchedules() {
			t.Run(fmt.Sprint(schedule), func(t *testing.T) {
				t.Parallel()
				if inChild() {
					play(t, newPlaces(), &model{untied: true}, func(p *player) {
						for _, steps := range schedule {
							p.take(steps...)
						}
					})
					return
				}
				// With one processor, fn ends before a caller runs that was
				// cancelled just before. Otherwise that is the rare case.
				output, code := child(t, "GOMAXPROCS=1")
				if code == 0 {
					survived.Add(1) // as it may, or play would have failed
					return
				}
				crashed.Add(1)
				check(t, "exit code", code, 2)
				contains(t, output, "panic: the panic of", "(*player).fn(")
			})
		}
	})
	if !inChild() {
		t.Logf("%d schedules crashed, %d did not have to", crashed.Load(), survived.Load())
	}
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

func TestRandomSchedules(t *testing.T) {
	places := newPlaces()
	r := rand.NewChaCha8([32]byte{})
	b := make([]byte, 80)
	n := 2000
	if testing.Short() || raceEnabled {
		n = 300
	}
	for variant := range n {
		r.Read(b)
		play(t, places, &model{variant: variant, untied: variant%2 == 0}, func(p *player) { p.choose(b) })
	}
}

// A history is what callers record who use Groups all at the same time, by a logical
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
	verdict
	way      way
	key      int
	number   int             // of its context's error
	ctx      context.Context // for DoContext
	within   *run            // the fn that asks
	mayLeave bool
	leaves   int64 // not before that, if it asks on its own
	live     bool  // fn's context, when the answer was there
	from, to int64
	ch       <-chan Result // that the caller walked away from
}

// A run is an execution of fn. It stands for itself as a value, as an error, and as
// what fn panics with.
type run struct {
	by       *caller
	ctx      context.Context
	verdict        // what fn comes to, at tick to
	ctxErr   error // of ctx, at tick to
	raised   any   // what one of its callers has recovered
	from, to int64 // from fn's start to before its end
	answered []*caller
	told     int64 // when the first of these had its answer
	joined   int64 // when the last of these asked
}

func (e *run) Error() string {
	return fmt.Sprintf("run of key %d, started by %d, %d to %d", e.by.key, e.by.number, e.from, e.to)
}

// A forget is a Forget or a ForgetUnshared.
type forget struct {
	key      int
	unshared bool
	ok       bool
	from, to int64
}

func (h *history) tick() int64 { return h.clock.Add(1) }

// What callers do depends on the key: if fn panics while a caller holds a channel the
// process dies, and what nobody forgets or leaves must not overlap at all.
const (
	steady  = iota // no Forget, and nobody leaves
	exiting        // Goexit
	panicky        // panics, and no DoChan
	habits
)

func (h *history) place(key int) (*Group, string) {
	return &h.groups[key%2], fmt.Sprint(key / 2)
}

// work takes n steps, one after the other.
func (h *history) work(seed uint64, n int) {
	r := rand.New(rand.NewPCG(seed, 0))
	for range n {
		key := r.IntN(h.keys * habits)
		if key%habits != steady && r.IntN(20) == 0 {
			h.forget(key, r.IntN(2) == 0)
		} else {
			h.call(r.Uint64(), key, nil)
		}
	}
}

func (h *history) forget(key int, unshared bool) {
	g, name := h.place(key)
	f := forget{key: key, unshared: unshared, ok: true, from: h.tick()}
	if unshared {
		f.ok = g.ForgetUnshared(name)
	} else {
		g.Forget(name)
	}
	f.to = h.tick()
	h.mu.Lock()
	h.forgets = append(h.forgets, f)
	h.mu.Unlock()
}

// call has a caller ask for key, on its own goroutine, since that may have to exit.
func (h *history) call(seed uint64, key int, within *run) {
	r := rand.New(rand.NewPCG(seed, 1))
	c := &caller{way: byDoContext, key: key, number: int(h.tick()), within: within}
	if within == nil {
		switch n := r.IntN(4); {
		case n == 0:
			c.way = byDo
		case n == 1 && key%habits != panicky:
			c.way = byDoChan
		default:
			c.mayLeave = key%habits != steady && r.IntN(2) == 0
		}
	}
	cancel := func() {}
	if c.way == byDoContext {
		parent := context.Background()
		if within != nil {
			parent, c.mayLeave = within.ctx, true
		}
		parent, cancel = context.WithCancel(parent)
		defer cancel()
		c.ctx = playedContext{parent, c.number}
	}
	done := make(chan struct{})
	fn, stay := h.fn(r.Uint64(), c), r.IntN(4) > 0
	go func() {
		defer close(done)
		h.wait(c, fn, stay)
	}()
	if c.mayLeave && (within == nil || r.IntN(2) == 0) {
		for range r.IntN(40) {
			runtime.Gosched()
		}
		c.leaves = h.tick()
		cancel()
	}
	<-done
}

// wait has c ask, and records its answer. If it does not stay it walks away from its
// channel, if it has one.
func (h *history) wait(c *caller, fn func(context.Context) (any, error), stay bool) {
	g, name := h.place(c.key)
	c.how = didExit
	defer func() {
		if e := recover(); e != nil {
			c.how, c.val = didPanic, e
		}
		c.to = h.tick()
		if e := c.ranBy(); e != nil && e.ctx != nil {
			c.live = e.ctx.Err() == nil
		}
		h.mu.Lock()
		h.callers = append(h.callers, c)
		h.mu.Unlock()
	}()
	plain := func() (any, error) { return fn(noContext) }
	c.from = h.tick()
	switch c.way {
	case byDo:
		c.val, c.err, c.shared = g.Do(name, plain)
	case byDoChan:
		c.ch = g.DoChan(name, plain)
		if stay {
			c.receive()
		}
	case byDoContext:
		c.val, c.err, c.shared = g.DoContext(c.ctx, name, fn)
	}
	c.how = didReturn
}

func (c *caller) receive() {
	a := <-c.ch
	c.val, c.err, c.shared = a.Val, a.Err, a.Shared
	c.ch = nil
}

// ranBy returns the run that answered c, if the answer says.
func (c *caller) ranBy() *run {
	val := c.val
	if e, ok := val.(*panicError); ok && c.how == didPanic {
		val = e.value
	}
	if e, ok := val.(*run); ok {
		return e
	}
	e, _ := c.err.(*run)
	return e
}

// left reports whether c was answered with the error of its own context.
func (c *caller) left() bool {
	return c.how == didReturn && c.err == token{"context", c.number}
}

// fn returns what c passes for fn.
func (h *history) fn(seed uint64, c *caller) func(context.Context) (any, error) {
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
			for range 1 + r.IntN(3) {
				// Not for a steady key: fn's context may end.
				h.call(r.Uint64(), r.IntN(h.keys)*habits+1+r.IntN(habits-1), e)
			}
		}
		e.how = didReturn
		switch n := r.IntN(4); {
		case n == 0 && c.key%habits == exiting:
			e.how = didExit
		case n == 0 && c.key%habits == panicky && !c.mayLeave:
			e.how, e.val = didPanic, e
		case n == 1:
			e.err = e
		case n == 2:
			e.val, e.err = e, e
		default:
			e.val = e
		}
		e.to = h.tick()
		if ctx != nil {
			e.ctxErr = ctx.Err()
		}
		h.mu.Lock()
		h.runs = append(h.runs, e)
		h.mu.Unlock()
		switch e.how {
		case didExit:
			runtime.Goexit()
		case didPanic:
			panic(e.val)
		}
		return e.val, e.err
	}
}

// check checks a history that is complete.
func (h *history) check(t *testing.T) {
	ran := make(map[*caller]*run)
	for _, e := range h.runs {
		if ran[e.by] != nil {
			t.Errorf("%v: fn has run twice", e)
		}
		ran[e.by] = e
	}
	var refused []*caller             // with ErrRecursive
	hidden := make(map[int][]*caller) // by key: those who may have waited for any run
	for _, c := range h.callers {
		if c.ch != nil {
			if len(c.ch) != 1 {
				t.Errorf("%d results for %+v", len(c.ch), c)
				continue
			}
			c.receive()
			c.to = math.MaxInt64
		}
		switch e := h.checkCaller(t, c, ran[c]); {
		case c.err == ErrRecursive:
			refused = append(refused, c)
		case e == nil:
			hidden[c.key] = append(hidden[c.key], c)
		default:
			e.answered = append(e.answered, c)
		}
	}
	slices.SortFunc(h.runs, func(a, b *run) int { return cmp.Compare(a.from, b.from) })
	runs := make(map[int][]*run)
	for _, e := range h.runs {
		e.told, e.joined = math.MaxInt64, e.by.from
		for _, c := range e.answered {
			e.told, e.joined = min(e.told, c.to), max(e.joined, c.from)
		}
		e.check(t, hidden[e.by.key])
		if e.by.left() && e.by.within == nil && e.told < e.by.leaves {
			t.Errorf("%v had answered others when its starter could leave at %d", e, e.by.leaves)
		}
		runs[e.by.key] = append(runs[e.by.key], e)
	}
	forgets := make(map[int][]forget)
	for _, f := range h.forgets {
		forgets[f.key] = append(forgets[f.key], f)
	}
	for key, forgets := range forgets {
		for _, f := range forgets {
			f.check(t, runs[key], forgets)
		}
	}
	for key, runs := range runs {
		forgotten := slices.DeleteFunc(forgets[key], func(f forget) bool { return !f.ok })
		checkOverlaps(t, runs, forgotten)
		checkForgets(t, runs, forgotten)
	}
	for key, hidden := range hidden {
		for _, c := range hidden {
			checkHidden(t, c, runs[key])
		}
	}
	for _, c := range refused {
		if !h.leadsTo(c, c.key, make(map[int]bool)) {
			t.Errorf("%+v would not have waited for itself", c)
		}
	}
}

// checkCaller checks what c knows, and returns the run that has answered it if that is
// certain. ran is the run of its own fn.
func (h *history) checkCaller(t *testing.T, c *caller, ran *run) *run {
	if c.left() || c.err == ErrRecursive {
		if c.val != nil || c.shared || c.left() && !c.mayLeave || c.err == ErrRecursive && (c.within == nil || ran != nil) {
			t.Errorf("%+v", c)
		}
		return nil
	}
	e := c.ranBy()
	if e == nil {
		if ran == nil || ran.how != didExit {
			return nil
		}
		e = ran
	}
	want := e.verdict
	switch {
	case want.how == didPanic:
		if e.raised == nil {
			e.raised = c.val
		}
		want.val = e.raised
	case want.how == didExit && c.way == byDoChan:
		want.how, want.err = didReturn, ErrGoexit
	}
	want.shared = c.shared
	switch {
	case c.verdict != want, e.by.key != c.key, ran != nil && ran != e:
		t.Errorf("%+v was answered by %v: %+v", c, e, e.verdict)
	case ran == nil && c.how == didReturn && !c.shared:
		t.Errorf("%+v joined %v, unshared", c, e)
	case c.to < e.to:
		t.Errorf("%+v was answered before %v", c, e)
	case c.live:
		t.Errorf("%+v was answered before the context of %v was cancelled", c, e)
	}
	return e
}

// check checks what e has answered. hidden are the callers of its key of whom some may
// have waited for it as well.
func (e *run) check(t *testing.T, hidden []*caller) {
	alone := true
	for _, c := range e.answered {
		e.shared = e.shared || c.shared
		alone = alone && c == e.by
	}
	for _, c := range e.answered {
		if c.how == didReturn && c.shared != e.shared {
			t.Errorf("%v is shared for some only", e)
		}
	}
	if e.shared && alone && !slices.ContainsFunc(hidden, func(c *caller) bool {
		return c != e.by && c.from < e.told && c.to > e.by.from
	}) {
		t.Errorf("%v is shared, but nobody can have joined", e)
	}
	if e.joined > e.told {
		t.Errorf("%v was joined when it had answered", e)
	}
	if e.ctxErr != nil && len(e.answered) > 0 {
		t.Errorf("%v was cancelled, but answered", e)
	}
	if e.ctxErr == nil && len(e.answered) == 0 && !slices.ContainsFunc(hidden, func(c *caller) bool {
		return c.from < e.to && e.to < c.to
	}) {
		t.Errorf("%v was not cancelled, but nobody can have waited", e)
	}
}

// check checks the answer of a ForgetUnshared. runs and forgets are all of its key.
func (f forget) check(t *testing.T, runs []*run, forgets []forget) {
	if !f.unshared {
		return
	}
	found := f.ok // a call that may have been shared
	for _, e := range runs {
		told := e.how == didReturn && len(e.answered) > 0 // whether it was shared
		found = found || e.by.from < f.to && f.from < e.told && (e.shared || !told)
		if !told || f.from < e.from || f.to > e.to || slices.ContainsFunc(forgets, func(g forget) bool {
			return g.ok && g != f && g.from < f.to && g.to > e.by.from
		}) {
			continue
		}
		// Nobody but f can have taken e out of the table.
		if f.ok == e.shared {
			t.Errorf("%+v, while %v was shared: %v", f, e, e.shared)
		}
	}
	if !found {
		t.Errorf("%+v: no call can have been shared", f)
	}
}

// checkOverlaps checks that no two of the runs of a key could be joined at once.
func checkOverlaps(t *testing.T, runs []*run, forgets []forget) {
	for i, a := range runs {
		for _, b := range runs[i+1:] {
			if b.from > max(a.to, a.joined) {
				break
			}
			if a.joined > b.from && b.joined > a.from {
				t.Errorf("%v and %v were joined at the same time", a, b)
			}
			if a.to > b.from && len(a.answered) > 0 && len(b.answered) > 0 && !slices.ContainsFunc(forgets, func(f forget) bool {
				return f.from < b.from && f.to > min(a.by.from, b.by.from)
			}) {
				t.Errorf("%v and %v overlap, but nobody has forgotten or left one", a, b)
			}
		}
	}
}

// checkForgets checks that no run was joined when it had been forgotten.
func checkForgets(t *testing.T, runs []*run, forgets []forget) {
	slices.SortFunc(forgets, func(a, b forget) int { return cmp.Compare(a.from, b.from) })
	first := int64(math.MaxInt64) // the end of the first Forget to end that began after e
	for _, e := range slices.Backward(runs) {
		for len(forgets) > 0 && forgets[len(forgets)-1].from > e.from {
			first = min(first, forgets[len(forgets)-1].to)
			forgets = forgets[:len(forgets)-1]
		}
		if e.joined > first {
			t.Errorf("%v was joined at %d, forgotten at %d", e, e.joined, first)
		}
	}
}

// checkHidden checks that c can have been answered as it was.
func checkHidden(t *testing.T, c *caller, runs []*run) {
	switch {
	case c.left():
	case c.how != didExit && (c.val != nil || c.err != ErrGoexit || !c.shared):
		t.Errorf("%+v", c)
	case !slices.ContainsFunc(runs, func(e *run) bool {
		return e.how == didExit && e.to < c.to && c.from < e.told
	}):
		t.Errorf("%+v: no run has exited", c)
	}
}

// leadsTo reports whether a run of key that was there while c asked was that of the fn
// that asked, or may have waited for it. seen are the keys that have been looked at.
func (h *history) leadsTo(c *caller, key int, seen map[int]bool) bool {
	if seen[key] {
		return false
	}
	seen[key] = true
	return slices.ContainsFunc(h.runs, func(e *run) bool {
		if e.by.key != key || e.by.from > c.to || e.told < c.from {
			return false
		}
		return e == c.within || slices.ContainsFunc(h.callers, func(n *caller) bool {
			return n.within == e && n.from < c.to && n.to > c.from && h.leadsTo(c, n.key, seen)
		})
	})
}

var operations = flag.Int("operations", 100_000, "callers of TestHistories at each GOMAXPROCS")

func TestHistories(t *testing.T) {
	n := *operations
	if testing.Short() || raceEnabled && n == 100_000 {
		n /= 5
	}
	const workers, steps = 16, 100
	for _, procs := range []int{1, 2, 4, 16} {
		t.Run(fmt.Sprintf("procs=%d", procs), func(t *testing.T) {
			defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(procs))
			start := time.Now()
			var callers, runs, left, shared, recursive, forgets int
			var before, after runtime.MemStats
			for round := uint64(0); callers < n && !t.Failed(); round++ {
				h := &history{keys: 1 + int(round%2)*5}
				var wg sync.WaitGroup
				for worker := range uint64(workers) {
					wg.Go(func() { h.work(round*workers+worker, steps) })
				}
				wg.Wait()
				eventually(t, "the end of all that was started", func() bool {
					return started() == 0
				})
				h.mu.Lock() // after fns that nobody waited for any more
				h.check(t)
				h.mu.Unlock()
				callers += len(h.callers)
				runs += len(h.runs)
				for _, f := range h.forgets {
					if f.ok {
						forgets++
					}
				}
				for _, c := range h.callers {
					if c.left() {
						left++
					}
					if c.shared {
						shared++
					}
					if c.err == ErrRecursive {
						recursive++
					}
				}
				if round == 0 {
					h = nil
					runtime.GC()
					runtime.ReadMemStats(&before)
				}
			}
			runtime.GC()
			runtime.ReadMemStats(&after)
			t.Logf("%d callers, %d runs in %v: %d shared, %d left, %d would have waited for themselves, %d times forgotten; heap %d, then %d",
				callers, runs, time.Since(start).Round(time.Millisecond), shared, left, recursive, forgets, before.HeapAlloc, after.HeapAlloc)
			if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 1<<20 {
				t.Errorf("%d bytes of heap more than after the first round", grown)
			}
		})
	}
}

func million(t *testing.T) int {
	if testing.Short() || raceEnabled {
		t.Skip("needs gigabytes of stacks, and a million goroutines")
	}
	return 1_000_000
}

func TestMillionCallersOfOneKey(t *testing.T) {
	n := million(t)
	synctest.Test(t, func(t *testing.T) {
		var g Group
		w := make(gate)
		chans := []<-chan Result{g.DoChan(key, w.fn)}
		var answered atomic.Int64
		for range n / 2 {
			go func() {
				if v, err, shared := g.Do(key, w.fn); v == 1 && err == nil && shared {
					answered.Add(1)
				}
			}()
		}
		for len(chans) < n/2 {
			chans = append(chans, g.DoChan(key, w.fn))
		}
		synctest.Wait()
		w <- returns(1, nil)
		synctest.Wait()
		check(t, "answered in Do", answered.Load(), int64(n/2))
		for _, ch := range chans {
			check(t, "result", <-ch, Result{1, nil, true})
		}
	})
}

func TestMillionKeysAtOnce(t *testing.T) {
	n := million(t)
	var g Group
	var running, answered sync.WaitGroup
	end := make(chan bool)
	wrong := make(chan any, n)
	running.Add(n)
	for i := range n {
		answered.Go(func() {
			v, err, shared := g.Do(strconv.Itoa(i), func() (any, error) {
				running.Done()
				<-end
				return i, nil
			})
			if v != i || err != nil || shared {
				wrong <- v
			}
		})
	}
	running.Wait()
	check(t, "calls in flight", inTable(t), n)
	close(end)
	answered.Wait()
	check(t, "wrong answers", len(wrong), 0)
	check(t, "calls in flight", inTable(t), 0)
}

func FuzzSchedules(f *testing.F) {
	places := newPlaces()
	f.Add([]byte("any bytes are a schedule"))
	f.Fuzz(func(t *testing.T, b []byte) {
		play(t, places, &model{variant: len(b), untied: len(b)%4 > 1}, func(p *player) { p.choose(b) })
	})
}

func FuzzKeys(f *testing.F) {
	for _, k := range []string{"", "a", "a\x00", "\xff", strings.Repeat("k", 5000)} {
		f.Add(k, k)
		f.Add(k, k+"\x00")
		f.Add("\xfe"+k, "\xff"+k)
	}
	f.Fuzz(func(t *testing.T, a, b string) {
		var g, other Group
		end := make(chan bool)
		fn := func(v string) work {
			return func() (any, error) {
				<-end
				return v, nil
			}
		}
		cha, chb, cho := g.DoChan(a, fn("a")), g.DoChan(b, fn("b")), other.DoChan(a, fn("other"))
		close(end)
		if a == b {
			check(t, "first", <-cha, Result{"a", nil, true})
			check(t, "second", <-chb, Result{"a", nil, true})
		} else {
			check(t, "first", <-cha, Result{"a", nil, false})
			check(t, "second", <-chb, Result{"b", nil, false})
		}
		check(t, "other Group", <-cho, Result{"other", nil, false})
	})
}

// FuzzTable starts and ends calls in one stripe, with few different hashes, and
// compares it with a map.
func FuzzTable(f *testing.F) {
	for _, n := range []int{10, 100, 300} {
		r := rand.New(rand.NewPCG(uint64(n), 0))
		script := make([]byte, 8*n)
		for i := range script {
			// Mostly calls that start, then mostly calls that end.
			script[i] = byte(r.Uint32())
			if i < len(script)/2 == (r.IntN(4) > 0) {
				script[i] |= 1
			} else {
				script[i] &^= 1
			}
		}
		f.Add(script)
	}
	f.Fuzz(func(t *testing.T, script []byte) {
		type id struct {
			hash, group uint64
			key         string
		}
		var s calls
		var ids []id
		model := make(map[id]*call)
		for i, b := range script {
			if b&1 != 0 {
				id := id{uint64(b>>1) << (i % 3), uint64(i % 5), strconv.Itoa(i % 7)}
				check(t, "call found before it starts", s.find(id.hash, id.group, id.key), model[id])
				if model[id] == nil {
					model[id] = s.begin(id.hash, id.group, id.key)
					ids = append(ids, id)
				}
			} else if len(ids) > 0 {
				j := int(b>>1) % len(ids)
				id := ids[j]
				check(t, "call found", s.find(id.hash, id.group, id.key), model[id])
				s.finish(model[id])
				delete(model, id)
				ids = slices.Delete(ids, j, j+1)
			}
			check(t, "number of calls", s.n, len(model))
			sound(t, &s)
		}
		for id, c := range model {
			check(t, "call found in the end", s.find(id.hash, id.group, id.key), c)
		}
	})
}

func BenchmarkDo(b *testing.B) {
	b.ReportAllocs()
	var g Group
	fn := returns(nil, nil)
	for b.Loop() {
		g.Do(key, fn)
	}
}

func BenchmarkDoParallel(b *testing.B) {
	for _, keys := range []string{"apart", "one"} {
		b.Run("keys="+keys, func(b *testing.B) {
			b.ReportAllocs()
			var g Group
			var goroutines atomic.Int64
			fn := returns(nil, nil)
			b.RunParallel(func(pb *testing.PB) {
				k := key
				if keys == "apart" {
					k = strconv.FormatInt(goroutines.Add(1), 10)
				}
				for pb.Next() {
					g.Do(k, fn)
				}
			})
		})
	}
}

func BenchmarkDoChan(b *testing.B) {
	b.ReportAllocs()
	var g Group
	fn := returns(nil, nil)
	for b.Loop() {
		<-g.DoChan(key, fn)
	}
}

func BenchmarkJoin(b *testing.B) {
	const callers = 1000
	b.Run(fmt.Sprintf("by=Do/callers=%d", callers), func(b *testing.B) {
		b.ReportAllocs()
		var g Group
		var runs atomic.Int64
		for b.Loop() {
			var came atomic.Int64
			var wg sync.WaitGroup
			fn := func() (any, error) {
				runs.Add(1)
				for came.Load() < callers {
					runtime.Gosched()
				}
				return nil, nil
			}
			for range callers {
				wg.Go(func() {
					came.Add(1)
					g.Do(key, fn)
				})
			}
			wg.Wait()
		}
		b.ReportMetric(float64(runs.Load())/float64(b.N), "runs/op")
	})
	b.Run(fmt.Sprintf("by=DoChan/callers=%d", callers), func(b *testing.B) {
		b.ReportAllocs()
		var g Group
		chans := make([]<-chan Result, callers)
		for b.Loop() {
			w := make(gate)
			for i := range chans {
				chans[i] = g.DoChan(key, w.fn)
			}
			w <- returns(nil, nil)
			for _, ch := range chans {
				<-ch
			}
		}
	})
}

func BenchmarkDoAmong(b *testing.B) {
	const others = 100_000
	b.Run(fmt.Sprintf("inflight=%d", others), func(b *testing.B) {
		b.ReportAllocs()
		var g Group
		end := make(chan bool)
		chans := make([]<-chan Result, others)
		for i := range chans {
			chans[i] = g.DoChan(strconv.Itoa(i), func() (any, error) {
				<-end
				return nil, nil
			})
		}
		fn := returns(nil, nil)
		for b.Loop() {
			g.Do(key, fn)
		}
		close(end)
		for _, ch := range chans {
			<-ch
		}
	})
}

func BenchmarkContext(b *testing.B) {
	p := new(stringer)
	ctx := context.Background()
	fn := func(context.Context) (any, error) { return p, nil }
	b.Run("unjoined", func(b *testing.B) {
		var g Group
		b.ReportAllocs()
		for b.Loop() {
			g.DoContext(ctx, "key", fn)
		}
	})
	b.Run("cancellable", func(b *testing.B) {
		var g Group
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		b.ReportAllocs()
		for b.Loop() {
			g.DoContext(ctx, "key", func(ctx context.Context) (any, error) {
				select {
				case <-ctx.Done():
					return nil, ctx.Err()
				default:
					return p, nil
				}
			})
		}
	})
	b.Run("nested", func(b *testing.B) {
		var g Group
		g.DoContext(ctx, "outer", func(ctx context.Context) (any, error) {
			b.ReportAllocs()
			for b.Loop() {
				g.DoContext(ctx, "key", fn)
			}
			return nil, nil
		})
	})
	b.Run("leaving", func(b *testing.B) {
		var g Group
		j := newJob()
		leader := askDo(&g, "key", j)
		for joinersOf(&g, "key") != 0 {
			runtime.Gosched()
		}
		leaver := newFleeting()
		b.ReportAllocs()
		for b.Loop() {
			leaver.looked = false
			g.DoContext(leaver, "key", fn)
		}
		j.giveBack(nil, nil)
		<-leader
	})
}

func BenchmarkTyped(b *testing.B) {
	var g Group
	p := new(stringer)
	b.ReportAllocs()
	for b.Loop() {
		Do(&g, "key", func() (*stringer, error) { return p, nil })
	}
}
