// Copyright 2026 The singleflight Authors.
// Use of this source code is governed by the BSD-style licence in LICENSE.

// Soak runs callers of all kinds against a few Groups for a given time, in rounds, and
// checks after each round that what they saw can have happened: that for every key
// there is an order of single steps (asking, leaving, the end of a call, forgetting)
// that explains all of it. Porcupine looks for that order.
package main

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"runtime/debug"
	"strings"
	"time"
)

func main() {
	duration := flag.Duration("for", 10*time.Minute, "how long")
	seed := flag.Uint64("seed", rand.Uint64(), "of what the callers do; the order in which they come to do it differs")
	flag.Parse()
	fmt.Printf("%s %s/%s, GOMAXPROCS %d, seed %d\n", runtime.Version(), runtime.GOOS, runtime.GOARCH, runtime.GOMAXPROCS(0), *seed)

	goroutines := runtime.NumGoroutine()
	var total counts
	var first uint64 // the heap after the first round
	start := time.Now()
	var report time.Time // not before
	for round := uint64(0); ; round++ {
		// Few keys bring the callers together, many keep the search for an order
		// of their steps short.
		h := &history{keys: 40}
		steps := 40
		if round%2 == 0 {
			h.keys, steps = 4, 8
		}
		stuck := time.AfterFunc(5*time.Minute, func() {
			debug.SetTraceback("all")
			panic("the round does not end")
		})
		h.run(*seed+round, steps)
		settle(goroutines)
		err := h.check()
		settle(goroutines) // those of porcupine go on for a moment when it gives up
		stuck.Stop()
		if err != nil {
			fail("round %d: %v", round, err)
		}
		total.add(h)
		h = nil
		over := time.Since(start) >= *duration
		if !over && time.Now().Before(report) {
			continue
		}
		heap := heap()
		if round == 0 {
			first = heap
		}
		if heap > first+1<<20 {
			fail("the heap has grown from %d to %d bytes", first, heap)
		}
		fmt.Printf("%5v: %v; heap %d KiB\n", time.Since(start).Round(time.Second), &total, heap>>10)
		report = time.Now().Add(10 * time.Second)
		if over {
			break
		}
	}
	if total.undecided*100 > total.histories {
		fail("too many histories were too hard to check")
	}
	fmt.Println(strings.TrimSpace(checked))
}

const checked = `
Checked after each round:
- everyone was answered, and no goroutine was left
- for every key there is an order of single steps that explains who was answered by
  which run, who shared it, whose context ended, and what ForgetUnshared returned
- values and errors were what the run came to, and those who panicked did so with the
  same value, after fn's context had ended
- only callers within an fn got ErrRecursive, and no ring of waits went unnoticed
Checked every ten seconds: the heap, which has not grown by more than 1 MiB
`

func fail(format string, args ...any) {
	fmt.Fprintf(os.Stderr, format+"\n", args...)
	os.Exit(1)
}

// heap returns how much of the heap is in use.
func heap() uint64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// settle waits until there are no more than n goroutines.
func settle(n int) {
	for runtime.NumGoroutine() > n {
		runtime.Gosched()
	}
}

// counts says what has been done.
type counts struct {
	rounds, callers, runs, shared, left, panicked, exited, recursive, forgets int
	histories, undecided                                                      int // of one key each
}

func (n *counts) add(h *history) {
	n.rounds++
	n.histories += h.keys
	n.undecided += h.undecided
	n.runs += len(h.runs)
	n.forgets += len(h.forgets)
	n.callers += len(h.callers)
	for _, c := range h.callers {
		for _, is := range []struct {
			it bool
			n  *int
		}{
			{c.shared, &n.shared},
			{c.left(), &n.left},
			{c.how == panicked, &n.panicked},
			{c.how == exited, &n.exited},
			{c.refused(), &n.recursive},
		} {
			if is.it {
				*is.n++
			}
		}
	}
}

func (n *counts) String() string {
	return fmt.Sprintf("%d rounds, %d callers (%d shared, %d left, %d panicked, %d exited, %d would have waited for themselves), %d runs, %d times forgotten; %d histories of a key, %d of them too hard to check",
		n.rounds, n.callers, n.shared, n.left, n.panicked, n.exited, n.recursive, n.runs, n.forgets, n.histories, n.undecided)
}
