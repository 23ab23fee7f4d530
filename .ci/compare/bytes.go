// Copyright 2026 The singleflight Authors.
// Use of this source code is governed by the BSD-style licence in LICENSE.

package main

import (
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"sync"
	"time"
)

// heapBytes returns the bytes of the objects that are in use. So what is measured
// here leaves out stacks. Goroutines' descriptors are on the heap and are never
// given back: as many goroutines are run before the measurement, or in what it is
// compared with. Keys and functions are made beforehand.
func heapBytes() float64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return float64(m.HeapAlloc)
}

// burst times a Do while very many other keys are in flight, and measures what is
// left of that when their calls have ended: both when a few that were in flight
// before have ended too, and while those have not.
func burst(im implementation, s scale) []float64 {
	if im.floor {
		return nil
	}
	keys, before := makeKeys(s.count(burstOfKeys), 20), makeKeys(s.count(5_000), 24)
	others := makeKeys(s.count(1<<16), 16)
	over := make(chan struct{})
	inFlightUntil(over, bareGroup{im.spawns, over}, keys)()

	idle := heapBytes()
	g := im.new()
	endBefore := inFlight(g, before)
	busy := heapBytes()
	end := inFlight(g, keys)
	times := doMeanwhile(g, others, s)
	end()
	keptBusy := heapBytes() - busy
	endBefore()
	kept := heapBytes() - idle
	for _, inUse := range []any{g, keys, before, others} {
		runtime.KeepAlive(inUse)
	}
	return append(times, kept, keptBusy)
}

// bytesOfGroups counts the Group itself, and what it holds on to after a Do.
func bytesOfGroups(im implementation, s scale) []float64 {
	if im.floor {
		return nil
	}
	groups := make([]group, s.count(100_000))
	before := heapBytes()
	for i := range groups {
		groups[i] = im.new()
		groups[i].Do("key", nothing)
	}
	kept := heapBytes() - before
	runtime.KeepAlive(groups)
	return []float64{kept / float64(len(groups))}
}

func bytesOfCalls(im implementation, s scale) []float64 {
	if im.floor {
		return nil
	}
	keys := makeKeys(s.count(100_000), 16)
	over := make(chan struct{})
	without := bytesParked(over, bareGroup{im.spawns, over}, keys)
	with := bytesParked(make(chan struct{}), im.new(), keys)
	runtime.KeepAlive(keys)
	return []float64{(with - without) / float64(len(keys))}
}

// bytesOfJoiners has one caller too many: the first one leads.
func bytesOfJoiners(im implementation, s scale) []float64 {
	if im.floor {
		return nil
	}
	same := make([]string, s.count(100_000))
	without := bytesParked(make(chan struct{}), bareGroup{}, same)
	with := bytesParked(make(chan struct{}), im.new(), same)
	runtime.KeepAlive(same)
	return []float64{(with - without) / float64(len(same))}
}

// bytesParked calls Do for each key, on a goroutine of its own, with an fn that
// waits for over to be closed, and returns the bytes in use when nothing moves any
// more.
func bytesParked(over chan struct{}, g group, keys []string) float64 {
	defer pauseCollector()()
	goroutines := runtime.NumGoroutine()
	blocked := newWork(func() { <-over })
	for _, key := range keys {
		go g.Do(key, blocked)
	}
	awaitParked()
	bytes := heapBytes()
	close(over)
	awaitGoroutines(goroutines)
	return bytes
}

// bytesOfReaders counts the channel too.
func bytesOfReaders(im implementation, s scale) []float64 {
	g, ok := im.new().(chanGroup)
	if !ok {
		return nil
	}
	channels := make([]any, s.count(100_000))
	end, ended := lead(g, "key")
	before := heapBytes()
	for i := range channels {
		channels[i] = g.DoChan("key", nothing)
	}
	bytes := heapBytes() - before
	close(end)
	<-ended
	runtime.KeepAlive(channels)
	return []float64{bytes / float64(len(channels))}
}

// inFlight begins a call of each key, and returns what ends them all.
func inFlight(g group, keys []string) (end func()) {
	return inFlightUntil(make(chan struct{}), g, keys)
}

// inFlightUntil is inFlight with the channel that end is going to close. Each of
// its goroutines leads a hundred calls, one from within the fn of another: with a
// goroutine each, a million would take several GiB.
func inFlightUntil(over chan struct{}, g group, keys []string) (end func()) {
	defer pauseCollector()()
	goroutines := runtime.NumGoroutine()
	var begun sync.WaitGroup
	for len(keys) > 0 {
		n := min(100, len(keys))
		nested := keys[:n]
		keys = keys[n:]
		begun.Add(1)
		go nest(g, nested, func() {
			begun.Done()
			<-over
		})
	}
	begun.Wait()
	return func() {
		close(over)
		awaitGoroutines(goroutines)
	}
}

// pauseCollector returns what lets the collector go on. It would go through the
// stacks of very many goroutines again and again while they are started.
func pauseCollector() (resume func()) {
	percent := debug.SetGCPercent(-1)
	return func() { debug.SetGCPercent(percent) }
}

func nest(g group, keys []string, innermost func()) {
	if len(keys) == 0 {
		innermost()
		return
	}
	g.Do(keys[0], newWork(func() { nest(g, keys[1:], innermost) }))
}

// awaitGoroutines waits until no more than n goroutines are left.
func awaitGoroutines(n int) {
	for runtime.NumGoroutine() > n {
		time.Sleep(time.Millisecond)
	}
}

// awaitParked waits until every goroutine but its own is parked. The runtime counts
// them while they move, so one look may miss one that goes from queue to queue.
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
