// Copyright 2026 The singleflight Authors.
// Use of this source code is governed by the BSD-style license in LICENSE.

package compare

import (
	"fmt"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

var numbersOfJoiners = []int{1, 10, 1_000, 100_000}

// BenchmarkJoinDo measures how goroutines join a call in flight by Do, all at
// once, and how all get its result. With few joiners there are several such calls
// side by side, because the time to begin and to end is one for all of them. The
// floor is a mutex and a sync.WaitGroup.
func BenchmarkJoinDo(b *testing.B) {
	for _, joiners := range numbersOfJoiners {
		n := count(joiners)
		keys := makeKeys(max(1, count(1_000)/n), 16)
		floor := impl[group]{name: "floor", new: func() group { return newJoinersFloor(keys) }}
		each(b, fmt.Sprintf("joiners=%d/", joiners), append(groups, floor), func(b *testing.B, im impl[group]) {
			joinDo(b, im.new(), keys, n)
		})
	}
}

// A turn is a call of each key, and what the same goroutines do to join it.
type turn struct {
	begin, end       chan struct{}
	coming, answered sync.WaitGroup
	next             *turn // set before begin is closed; nil if there is nothing to join
}

func newTurn(joiners int) *turn {
	t := &turn{begin: make(chan struct{}), end: make(chan struct{})}
	t.coming.Add(joiners)
	t.answered.Add(joiners)
	return t
}

// joinDo stops the timer while it awaits that all joiners that are coming have
// joined, which they cannot tell.
func joinDo(b *testing.B, g group, keys []string, n int) {
	joiners := n * len(keys)
	t := newTurn(joiners)
	for _, key := range keys {
		for range n {
			go t.join(g, key)
		}
	}
	play := func() {
		b.StopTimer()
		t.next = newTurn(joiners)
		var leaders sync.WaitGroup
		for _, key := range keys {
			lead(g, key, &leaders, t.end)
		}
		awaitParked()
		b.StartTimer()
		close(t.begin)
		t.coming.Wait()
		b.StopTimer()
		awaitParked()
		b.StartTimer()
		close(t.end)
		t.answered.Wait()
		b.StopTimer()
		leaders.Wait()
		t = t.next
		b.StartTimer()
	}
	play() // in which the goroutines' stacks grow
	b.ResetTimer()
	for b.Loop() {
		play()
	}
	reportPerJoiner(b, joiners)
	close(t.begin)
}

// join joins the call of the key in this turn and in those that follow it.
func (t *turn) join(g group, key string) {
	for <-t.begin; t.next != nil; <-t.begin {
		next := t.next
		t.coming.Done()
		g.Do(key, nothing)
		t.answered.Done()
		t = next
	}
}

// lead starts a call, which ends when end is closed, on a goroutine that wg counts.
func lead(g group, key string, wg *sync.WaitGroup, end <-chan struct{}) {
	begun := make(chan struct{})
	wg.Go(func() {
		g.Do(key, newWork(func() {
			close(begun)
			<-end
		}))
	})
	<-begun
}

// BenchmarkJoinDoChan measures calls that one goroutine starts, joins by DoChan,
// lets end and receives from.
func BenchmarkJoinDoChan(b *testing.B) {
	for _, joiners := range numbersOfJoiners {
		each(b, fmt.Sprintf("joiners=%d/", joiners), chanGroups, func(b *testing.B, im impl[chanGroup]) {
			g, end := im.new(), make(chan struct{})
			blocked := newWork(func() { <-end })
			channels := make([]any, 1+count(joiners)) // the first is that of the call's starter
			for b.Loop() {
				for i := range channels {
					channels[i] = g.DoChan("key", blocked)
				}
				end <- struct{}{}
				for _, ch := range channels {
					g.Receive(ch)
				}
			}
			reportPerJoiner(b, count(joiners))
		})
	}
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

// BenchmarkStall measures the longest Do of another key while a call ends that
// 200,000 have joined, by DoChan or by Do.
func BenchmarkStall(b *testing.B) {
	each(b, "by=readers/", chanGroups, func(b *testing.B, im impl[chanGroup]) {
		stall(b, im, func(g chanGroup, _ *sync.WaitGroup) { g.DoChan("joined", nothing) })
	})
	each(b, "by=joiners/", groups, func(b *testing.B, im impl[group]) {
		stall(b, im, func(g group, answered *sync.WaitGroup) {
			answered.Go(func() { g.Do("joined", nothing) })
		})
	})
}

// stall relies on it that all readers have their Result when the call's starter
// returns.
func stall[G group](b *testing.B, im impl[G], join func(g G, answered *sync.WaitGroup)) {
	reportMean(b, "stall-ns", func() float64 {
		g, end := im.new(), make(chan struct{})
		var answered sync.WaitGroup
		lead(g, "joined", &answered, end)
		for range count(200_000) {
			join(g, &answered)
		}
		awaitParked()
		return longestDo(g, "other", func() {
			close(end)
			answered.Wait()
		})
	})
}

// longestDo returns the nanoseconds of the longest Do, of the many that one
// goroutine calls one after the other, that was under way during a part of
// meanwhile. No garbage is collected then, because that has stalls of its own.
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

// startCalls starts a call of each key, each of which ends when end is closed.
// Each of its goroutines leads a hundred calls, one from within the fn of
// another: with a goroutine each, a million would take several GiB.
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

// pauseCollector returns what lets the collector go on. It would scan the stacks
// of very many goroutines again and again while they are started.
func pauseCollector() (resume func()) {
	percent := debug.SetGCPercent(-1)
	return func() { debug.SetGCPercent(percent) }
}

// awaitParked waits until every goroutine but its own is parked or has ended. The
// runtime counts them while they move, so one look may miss one that goes from
// queue to queue.
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
