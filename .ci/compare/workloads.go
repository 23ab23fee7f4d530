// Copyright 2026 The singleflight Authors.
// Use of this source code is governed by the BSD-style licence in LICENSE.

package main

import (
	"context"
	"fmt"
	"runtime"
	"strconv"
	"strings"
	"time"
)

// A workload is measured for one implementation at a time, in a process of its
// own: so none inherits a heap, dead goroutines or a grown table from another,
// and the seeds of hashes differ from round to round.
type workload struct {
	name  string
	procs int      // GOMAXPROCS, or 0 for all
	units []string // of what run returns, as far as it is to be shown

	// run returns nothing if the implementation lacks the call, or takes no part.
	run func(im implementation, s scale) []float64
}

// The units of what is measured, which are rows of the table.
const (
	nsPerCall         = "ns per call"
	nsSameKey         = "ns per Do of another key, always the same"
	nsInTurn          = "ns per Do of another key, 65,536 in turn"
	nsPerJoiner       = "ns per joiner"
	nsLongest         = "ns at the longest"
	allocsPerCall     = "allocations per call"
	executionsPerCall = "executions per caller"
	bytesKept         = "bytes kept when they have ended"
	bytesKeptBusy     = "bytes kept when they have ended, but 5,000 calls before them have not"
	bytesPerGroup     = "bytes per Group"
	bytesPerCall      = "bytes per call"
	bytesPerJoiner    = "bytes per joiner"
)

// A scale says how much is measured.
type scale struct {
	timed time.Duration // that a timed loop runs
	joins int           // about how often calls are joined while that is timed
	limit int           // the most keys, callers or Groups
}

var (
	full  = scale{timed: 100 * time.Millisecond, joins: 50_000, limit: 1_000_000}
	brief = scale{timed: time.Millisecond, joins: 100, limit: 100}
)

func (s scale) count(n int) int { return min(n, s.limit) }

// The names of workloads that the chart, or a line below the table, shows.
const (
	unjoinedDo   = "unjoined Do"
	keysApart    = "parallel, a key for each goroutine"
	keysSame     = "parallel, the same 1,024 keys"
	oneKey       = "parallel, one key, fn does nothing"
	stallReaders = "stall of another key while a call with 200,000 readers ends"
	stallJoiners = "stall of another key while a call with 200,000 joiners ends"
)

const burstOfKeys = 1_000_000

var fewerKeys = []int{1, 1_000, 100_000} // than in the burst

func keysInFlight(n int) string { return plural(n, "key") + " in flight" }

// workloads lists them all, the parallel ones for each number of processors.
func workloads(procs []int) []workload {
	ws := []workload{
		{unjoinedDo, 0, []string{nsPerCall, allocsPerCall}, unjoined(16)},
		{"DoChan, received at once", 0, []string{nsPerCall, allocsPerCall}, doChan},
		{"DoContext, unjoined", 0, []string{nsPerCall, allocsPerCall}, doContext},
	}
	for _, length := range []int{8, 64, 1024} {
		name := fmt.Sprintf("unjoined Do, key of %s bytes", commas(length))
		ws = append(ws, workload{name, 0, []string{nsPerCall}, unjoined(length)})
	}
	for _, p := range procs {
		ws = append(ws,
			workload{keysApart, p, []string{nsPerCall}, parallelKeysApart},
			workload{keysSame, p, []string{nsPerCall}, parallelKeysSame},
			workload{oneKey, p, []string{nsPerCall}, parallelOneKey})
	}
	for _, p := range procs {
		ws = append(ws,
			workload{"16 callers per processor, one key, fn computes for 1 µs", p, []string{nsPerCall, executionsPerCall}, crowdComputing},
			workload{"16 callers per processor, one key, fn sleeps for 1 ms", p, []string{nsPerCall, executionsPerCall}, crowdSleeping})
	}
	for _, n := range []int{1, 10, 1_000, 100_000} {
		name := fmt.Sprintf("joined by %s in Do", commas(n))
		ws = append(ws, workload{name, 0, []string{nsPerJoiner}, joinersByDo(n)})
	}
	for _, n := range []int{1, 10, 1_000, 100_000} {
		name := fmt.Sprintf("joined by %s in DoChan", commas(n))
		ws = append(ws, workload{name, 0, []string{nsPerJoiner}, joinersByDoChan(n)})
	}
	ws = append(ws,
		workload{stallReaders, 0, []string{nsLongest}, stallByReaders},
		workload{stallJoiners, 0, []string{nsLongest}, stallByJoiners})
	for _, n := range fewerKeys {
		ws = append(ws, workload{keysInFlight(n), 0, []string{nsSameKey, nsInTurn}, inFlightMeanwhile(n)})
	}
	return append(ws,
		workload{keysInFlight(burstOfKeys), 0, []string{nsSameKey, nsInTurn, bytesKept, bytesKeptBusy}, burst},
		workload{"a Group used once", 0, []string{bytesPerGroup}, bytesOfGroups},
		workload{"a call in flight, of 100,000", 0, []string{bytesPerCall}, bytesOfCalls},
		workload{"one of 100,000 joiners in Do", 0, []string{bytesPerJoiner}, bytesOfJoiners},
		workload{"one of 100,000 joiners in DoChan", 0, []string{bytesPerJoiner}, bytesOfReaders})
}

// makeKeys returns n different keys of the given length, one after the other in
// memory.
func makeKeys(n, length int) []string {
	var all strings.Builder
	for i := range n {
		digits := strconv.Itoa(i)
		all.WriteString(strings.Repeat("0", length-len(digits)))
		all.WriteString(digits)
	}
	keys := make([]string, n)
	for i := range keys {
		keys[i] = all.String()[i*length : (i+1)*length]
	}
	return keys
}

// perCall calls loop, which makes as many calls as it is told, for as long as the
// scale says, and returns the time and the allocations of one.
func perCall(s scale, loop func(calls int)) (ns, allocs float64) {
	const atOnce = 1_000
	loop(atOnce) // so that what is made once is made
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	start, calls := time.Now(), 0
	for time.Since(start) < s.timed {
		loop(atOnce)
		calls += atOnce
	}
	elapsed := time.Since(start)
	runtime.ReadMemStats(&after)
	return float64(elapsed) / float64(calls), float64(after.Mallocs-before.Mallocs) / float64(calls)
}

func unjoined(length int) func(implementation, scale) []float64 {
	return func(im implementation, s scale) []float64 {
		g, key := im.new(), makeKeys(1, length)[0]
		ns, allocs := perCall(s, func(calls int) {
			for range calls {
				g.Do(key, nothing)
			}
		})
		return []float64{ns, allocs}
	}
}

func doChan(im implementation, s scale) []float64 {
	g, ok := im.new().(chanGroup)
	if !ok {
		return nil
	}
	ns, allocs := perCall(s, func(calls int) {
		for range calls {
			g.Receive(g.DoChan("key", nothing))
		}
	})
	return []float64{ns, allocs}
}

// doContext passes a context that can be cancelled, and that nobody cancels.
func doContext(im implementation, s scale) []float64 {
	g, ok := im.new().(contextGroup)
	if !ok {
		return nil
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	ns, allocs := perCall(s, func(calls int) {
		for range calls {
			g.DoContext(ctx, "key", nothing)
		}
	})
	return []float64{ns, allocs}
}

// inFlightMeanwhile times a Do while n other keys are in flight.
func inFlightMeanwhile(n int) func(implementation, scale) []float64 {
	return func(im implementation, s scale) []float64 {
		if im.floor {
			return nil
		}
		g := im.new()
		end := inFlight(g, makeKeys(s.count(n), 20))
		defer end()
		return doMeanwhile(g, makeKeys(s.count(1<<16), 16), s)
	}
}

// doMeanwhile times Do for one key again and again, so that all of the table that
// this touches stays in the processor's nearest cache, and then for many in turn,
// so that it does not.
func doMeanwhile(g group, keys []string, s scale) []float64 {
	runtime.GC() // or it would be due any moment
	same, _ := perCall(s, func(calls int) {
		for range calls {
			g.Do(keys[0], nothing)
		}
	})
	i := 0
	inTurn, _ := perCall(s, func(calls int) {
		for range calls {
			g.Do(keys[i], nothing)
			i = (i + 1) % len(keys)
		}
	})
	return []float64{same, inTurn}
}
