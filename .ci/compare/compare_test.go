// Copyright 2026 The singleflight Authors.
// Use of this source code is governed by the BSD-style license in LICENSE.

// Package compare measures this library side by side with its peers. To measure
// everything, and to print what benchstat makes of it:
//
//	bash .ci/compare/run
//
// With -short, all sizes over a hundred are a hundred: that shows whether the
// benchmarks work, and the figures mean nothing.
package compare

import (
	"context"
	"fmt"
	"math/rand/v2"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// count returns n, or less with -short.
func count(n int) int {
	if testing.Short() {
		return min(n, 100)
	}
	return n
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

// BenchmarkDo measures a Do that is not joined, for keys of several lengths. The
// floor is a hash of the key, two uncontended locks, and fn.
func BenchmarkDo(b *testing.B) {
	for _, length := range []int{8, 16, 64, 1024} {
		each(b, fmt.Sprintf("key=%d/", length), append(groups, floor), func(b *testing.B, im impl[group]) {
			g, key := im.new(), makeKeys(1, length)[0]
			b.ReportAllocs()
			for b.Loop() {
				g.Do(key, nothing)
			}
		})
	}
}

// BenchmarkDoChan measures a DoChan that is not joined and whose channel is
// received from at once.
func BenchmarkDoChan(b *testing.B) {
	each(b, "", chanGroups, func(b *testing.B, im impl[chanGroup]) {
		g := im.new()
		b.ReportAllocs()
		for b.Loop() {
			g.Receive(g.DoChan("key", nothing))
		}
	})
}

// BenchmarkDoContext measures a DoContext that is not joined, with a context that
// can be canceled and is not, and an fn that ignores its own or asks for its Done
// channel. What x/sync has instead gives fn no context.
func BenchmarkDoContext(b *testing.B) {
	benchmarkDoContext(b, "fn=ignores-ctx/", append(contextGroups, selectGroup), nothing)
	benchmarkDoContext(b, "fn=asks-Done/", contextGroups, asksDone)
}

func benchmarkDoContext(b *testing.B, prefix string, impls []impl[contextGroup], w work) {
	each(b, prefix, impls, func(b *testing.B, im impl[contextGroup]) {
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		g := im.new()
		b.ReportAllocs()
		for b.Loop() {
			g.DoContext(ctx, "key", w)
		}
	})
}

// BenchmarkParallel measures a Do on each processor at once: of a key of its own, of
// one of 100,000 keys at random, so that mostly another processor was the last to touch
// what the Do touches, and of one key for all.
func BenchmarkParallel(b *testing.B) {
	keys := makeKeys(count(100_000), 16)
	parallel(b, "keys=own/", func(i int) []string { return keys[i%len(keys):][:1] })
	parallel(b, "keys=100000/", func(int) []string { return keys })
	parallel(b, "keys=1/", func(int) []string { return keys[:1] })
}

// parallel has each goroutine call Do for its keys, at random.
func parallel(b *testing.B, prefix string, keysOf func(i int) []string) {
	each(b, prefix, groups, func(b *testing.B, im impl[group]) {
		g := im.new()
		var goroutines atomic.Int64
		b.RunParallel(func(pb *testing.PB) {
			i := int(goroutines.Add(1)) - 1
			keys, random := keysOf(i), rand.NewPCG(uint64(i), 0)
			for pb.Next() {
				g.Do(keys[random.Uint64()%uint64(len(keys))], nothing)
			}
		})
	})
}

// BenchmarkCrowd measures a Do of one key by sixteen goroutines for each processor,
// most of which wait while others run fn. It also reports how often fn was executed
// per Do. If that is much less than one in the number of goroutines, some results
// are those of calls that had ended, and the time is not that of the same work.
func BenchmarkCrowd(b *testing.B) {
	crowd(b, "fn=computes-1us/", func() {
		for start := time.Now(); time.Since(start) < time.Microsecond; {
		}
	})
	crowd(b, "fn=sleeps-1ms/", func() { time.Sleep(time.Millisecond) })
}

func crowd(b *testing.B, prefix string, fn func()) {
	each(b, prefix, groups, func(b *testing.B, im impl[group]) {
		g := im.new()
		var executions atomic.Int64
		w := newWork(func() {
			executions.Add(1)
			fn()
		})
		b.SetParallelism(16)
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				g.Do("key", w)
			}
		})
		b.ReportMetric(float64(executions.Load())/float64(b.N), "execs/op")
	})
}

// BenchmarkDoInFlight measures a Do while calls of other keys are in flight. It is
// always of the same key, so that all that it touches of a table stays in the
// processor's nearest cache, or of 65,536 keys in turn, so that it does not.
func BenchmarkDoInFlight(b *testing.B) {
	for _, inFlight := range []int{1, 1_000, 100_000, 1_000_000} {
		for _, turns := range []int{1, 65_536} {
			prefix := fmt.Sprintf("inflight=%d/keys=%d/", inFlight, turns)
			each(b, prefix, groups, func(b *testing.B, im impl[group]) {
				g, keys, end := im.new(), makeKeys(count(turns), 16), make(chan struct{})
				startCalls(g, makeKeys(count(inFlight), 20), end)
				runtime.GC() // or it would be due at any moment
				i := 0
				for b.Loop() {
					g.Do(keys[i], nothing)
					if i++; i == len(keys) {
						i = 0
					}
				}
				close(end)
				awaitParked()
			})
		}
	}
}
