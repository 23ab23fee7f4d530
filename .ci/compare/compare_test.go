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
	"runtime/debug"
	"runtime/metrics"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// BenchmarkDo measures a Do that is not joined.
func BenchmarkDo(b *testing.B) {
	each(b, "", func(b *testing.B, newGroup func() group) {
		g, key := newGroup(), makeKeys(1)[0]
		b.ReportAllocs()
		for b.Loop() {
			g.Do(key, nothing)
		}
	})
}

// BenchmarkDoChan measures a DoChan that is not joined and whose channel is received
// from at once.
func BenchmarkDoChan(b *testing.B) {
	each(b, "", func(b *testing.B, newGroup func() chanGroup) {
		g, key := newGroup(), makeKeys(1)[0]
		b.ReportAllocs()
		for b.Loop() {
			g.Receive(g.DoChan(key, nothing))
		}
	})
}

// BenchmarkDoContext measures a DoContext that is not joined, with a context that can be
// canceled and is not. fn ignores its own context, or limits its time as it should.
func BenchmarkDoContext(b *testing.B) {
	benchmarkDoContext(b, "/fn=ignores-ctx", nothing)
	benchmarkDoContext(b, "/fn=sets-timeout", work{withContext: func(ctx context.Context) (any, error) {
		ctx, cancel := context.WithTimeout(ctx, time.Minute)
		defer cancel()
		return nil, ctx.Err()
	}})
}

func benchmarkDoContext(b *testing.B, suffix string, w work) {
	each(b, suffix, func(b *testing.B, newGroup func() contextGroup) {
		ctx, cancel := context.WithCancel(b.Context())
		defer cancel()
		g, key := newGroup(), makeKeys(1)[0]
		b.ReportAllocs()
		for b.Loop() {
			g.DoContext(ctx, key, w)
		}
	})
}

// BenchmarkParallel measures a Do on each processor at once: of a key of its own, of
// one of 100,000 keys at random, so that mostly another processor was the last to touch
// what the Do touches, and of one key for all.
func BenchmarkParallel(b *testing.B) {
	keys := makeKeys(100_000)
	parallel(b, "/keys=own", func(i int) []string { return keys[i%len(keys):][:1] })
	parallel(b, "/keys=100000", func(int) []string { return keys })
	parallel(b, "/keys=1", func(int) []string { return keys[:1] })
}

// parallel has each goroutine call Do for its keys, at random.
func parallel(b *testing.B, suffix string, keysOf func(i int) []string) {
	each(b, suffix, func(b *testing.B, newGroup func() group) {
		g := newGroup()
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

// BenchmarkInFlight measures a Do beside 100,000 calls of other keys, of as many keys in
// turn, so that what it touches of a table is not in the processor's nearest cache.
func BenchmarkInFlight(b *testing.B) {
	keys := makeKeys(200_000)
	others, keys := keys[:len(keys)/2], keys[len(keys)/2:]
	each(b, "", func(b *testing.B, newGroup func() group) {
		g, end := newGroup(), make(chan struct{})
		startCalls(g, others, end)
		runtime.GC() // or it would be due at any moment
		for i := 0; b.Loop(); i++ {
			g.Do(keys[i%len(keys)], nothing)
		}
		close(end)
		awaitParked()
	})
}

// BenchmarkJoinDo measures how 1,000 goroutines join a call by Do, all at once, and how
// all get its result. It stops the timer while it awaits that all have joined, which they
// cannot tell.
func BenchmarkJoinDo(b *testing.B) {
	each(b, "", func(b *testing.B, newGroup func() group) {
		g, joiners := newGroup(), count(1_000)
		for b.Loop() {
			b.StopTimer()
			var coming, answered sync.WaitGroup
			begin, end := make(chan struct{}), lead(g, "key", &answered)
			coming.Add(joiners)
			for range joiners {
				answered.Go(func() {
					<-begin
					coming.Done()
					g.Do("key", nothing)
				})
			}
			awaitParked()
			b.StartTimer()
			close(begin)
			coming.Wait()
			b.StopTimer()
			awaitParked()
			b.StartTimer()
			close(end)
			answered.Wait()
		}
		reportPerJoiner(b, joiners)
	})
}

// BenchmarkJoinDoChan measures calls that one goroutine starts, joins by 1,000 DoChan,
// lets end and receives from.
func BenchmarkJoinDoChan(b *testing.B) {
	each(b, "", func(b *testing.B, newGroup func() chanGroup) {
		g, end := newGroup(), make(chan struct{})
		blocked := newWork(func() { <-end })
		channels := make([]any, 1+count(1_000)) // the first is that of the call's starter
		for b.Loop() {
			for i := range channels {
				channels[i] = g.DoChan("key", blocked)
			}
			end <- struct{}{}
			for _, ch := range channels {
				g.Receive(ch)
			}
		}
		reportPerJoiner(b, len(channels)-1)
	})
}

// BenchmarkStall measures the longest Do of another key while a call ends that has
// 200,000 channels. It relies on it that these have their Result when the call's starter
// returns.
func BenchmarkStall(b *testing.B) {
	each(b, "", func(b *testing.B, newGroup func() chanGroup) {
		reportMean(b, "stall-ns", func() float64 {
			g := newGroup()
			var answered sync.WaitGroup
			end := lead(g, "joined", &answered)
			for range count(200_000) {
				g.DoChan("joined", nothing)
			}
			return longestDo(g, "other", func() {
				close(end)
				answered.Wait()
			})
		})
	})
}

// longestDo returns the nanoseconds of the longest Do, of the many that one goroutine
// calls one after the other, that was under way during a part of meanwhile. No garbage is
// collected then, because that has stalls of its own.
func longestDo(g group, key string, meanwhile func()) float64 {
	runtime.GC()
	defer pauseCollector()()
	var counts, stop atomic.Bool
	warm, result := make(chan struct{}), make(chan time.Duration)
	go func() {
		var longest time.Duration
		for n := 0; !stop.Load() || longest == 0; n++ {
			start := time.Now()
			g.Do(key, nothing)
			took := time.Since(start)
			if counts.Load() {
				longest = max(longest, took)
			}
			if n == 1_000 {
				close(warm)
			}
		}
		result <- longest
	}()
	<-warm
	counts.Store(true)
	meanwhile()
	stop.Store(true)
	return float64(<-result)
}

// BenchmarkRetained measures what a Group retains of a million calls of different keys
// when they have ended.
func BenchmarkRetained(b *testing.B) {
	keys := makeKeys(1_000_000)
	each(b, "", func(b *testing.B, newGroup func() group) {
		burst := func(g group, end chan struct{}) {
			startCalls(g, keys, end)
			close(end)
			awaitParked()
		}
		reportMean(b, "retained-B", func() float64 {
			g, end := newGroup(), make(chan struct{})
			burst(bare(g, end), end) // the runtime keeps the descriptors of its goroutines
			before := heapBytes()
			burst(g, make(chan struct{}))
			retained := heapBytes() - before
			runtime.KeepAlive(g)
			return retained
		})
	})
	runtime.KeepAlive(keys)
}

// BenchmarkCall measures the bytes of a call in flight, of 100,000, without its
// goroutines.
func BenchmarkCall(b *testing.B) {
	keys := makeKeys(100_000)
	each(b, "", func(b *testing.B, newGroup func() group) {
		inFlight := func(g group, end chan struct{}) float64 {
			startCalls(g, keys, end)
			awaitParked()
			bytes := heapBytes()
			close(end)
			awaitParked()
			return bytes
		}
		reportMean(b, "B/call", func() float64 {
			g, end := newGroup(), make(chan struct{})
			without := inFlight(bare(g, end), end)
			return (inFlight(g, make(chan struct{})) - without) / float64(len(keys))
		})
	})
	runtime.KeepAlive(keys)
}

// heapBytes returns the bytes of the objects that are in use, without stacks.
func heapBytes() float64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return float64(m.HeapAlloc)
}

// count returns n, or less with -short.
func count(n int) int {
	if testing.Short() {
		return min(n, 100)
	}
	return n
}

// makeKeys returns count(n) different keys of 16 bytes.
func makeKeys(n int) []string {
	keys := make([]string, count(n))
	for i := range keys {
		keys[i] = fmt.Sprintf("%016d", i)
	}
	return keys
}

// reportPerJoiner reports the time per joiner instead of that per operation.
func reportPerJoiner(b *testing.B, joiners int) {
	b.ReportMetric(float64(b.Elapsed())/float64(b.N*joiners), "ns/joiner")
	b.ReportMetric(0, "ns/op")
}

// reportMean reports the mean of what measure returns, instead of its time.
func reportMean(b *testing.B, unit string, measure func() float64) {
	var sum float64
	for b.Loop() {
		sum += measure()
	}
	b.ReportMetric(sum/float64(b.N), unit)
	b.ReportMetric(0, "ns/op")
}

// lead starts a call, which ends when end is closed, on a goroutine that wg counts.
func lead(g group, key string, wg *sync.WaitGroup) (end chan struct{}) {
	begun, end := make(chan struct{}), make(chan struct{})
	wg.Go(func() {
		g.Do(key, newWork(func() {
			close(begun)
			<-end
		}))
	})
	<-begun
	return end
}

// startCalls starts a call of each key, each of which ends when end is closed. Each of
// its goroutines leads a hundred calls, one from within the fn of another: with a
// goroutine each, a million would take several GiB.
func startCalls(g group, keys []string, end <-chan struct{}) {
	defer pauseCollector()()
	var begun sync.WaitGroup
	for len(keys) > 0 {
		n := min(100, len(keys))
		nested := keys[:n]
		keys = keys[n:]
		begun.Add(1)
		go nest(g, nested, func() {
			begun.Done()
			<-end
		})
	}
	begun.Wait()
}

func nest(g group, keys []string, innermost func()) {
	if len(keys) == 0 {
		innermost()
		return
	}
	g.Do(keys[0], newWork(func() { nest(g, keys[1:], innermost) }))
}

// pauseCollector returns what lets the collector go on. It would scan the stacks of very
// many goroutines again and again while they are started.
func pauseCollector() (resume func()) {
	percent := debug.SetGCPercent(-1)
	return func() { debug.SetGCPercent(percent) }
}

// awaitParked waits until every goroutine but its own is parked or has ended. The
// runtime counts them while they move, so one look may miss one that goes from queue to
// queue.
func awaitParked() {
	moving := []metrics.Sample{
		{Name: "/sched/goroutines/runnable:goroutines"},
		{Name: "/sched/goroutines/running:goroutines"},
	}
	for looks := 0; looks < 3; looks++ {
		time.Sleep(100 * time.Microsecond)
		metrics.Read(moving)
		if moving[0].Value.Uint64() > 0 || moving[1].Value.Uint64() > 1 {
			looks = -1 // and start afresh
		}
	}
}
