// Copyright 2026 The singleflight Authors.
// Use of this source code is governed by the BSD-style license in LICENSE.

package compare

import (
	"fmt"
	"runtime"
	"testing"
)

// heapBytes returns the bytes of the objects that are in use, without stacks.
// The runtime keeps the descriptors of goroutines on the heap and does not give
// them back. So as many goroutines have run before a measurement, or run in what
// it is compared with.
func heapBytes() float64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return float64(m.HeapAlloc)
}

// BenchmarkKept measures what is left of a million calls of different keys when
// they have ended: both in a Group that is idle then, and in one in which 5,000
// calls that started before them are still in flight.
func BenchmarkKept(b *testing.B) {
	keys := makeKeys(count(1_000_000), 20)
	for _, others := range []int{0, 5_000} {
		before := makeKeys(count(others), 24)
		each(b, fmt.Sprintf("others=%d/", others), groups, func(b *testing.B, im impl[group]) {
			reportMean(b, "kept-B", func() float64 {
				end, endBefore := make(chan struct{}), make(chan struct{})
				startCalls(bareGroup{im.spawns, end}, keys, end)
				close(end)
				awaitParked()

				bytes := heapBytes()
				g, end := im.new(), make(chan struct{})
				if others > 0 {
					startCalls(g, before, endBefore)
					bytes = heapBytes()
				}
				startCalls(g, keys, end)
				close(end)
				awaitParked()
				bytes = heapBytes() - bytes
				close(endBefore)
				awaitParked()
				runtime.KeepAlive(g)
				return bytes
			})
		})
	}
	runtime.KeepAlive(keys)
}

// BenchmarkGroup measures the bytes of a Group, and of what it retains after a Do.
func BenchmarkGroup(b *testing.B) {
	each(b, "", groups, func(b *testing.B, im impl[group]) {
		reportMean(b, "B/group", func() float64 {
			gs := make([]group, count(100_000))
			before := heapBytes()
			for i := range gs {
				gs[i] = im.new()
				gs[i].Do("key", nothing)
			}
			bytes := heapBytes() - before
			runtime.KeepAlive(gs)
			return bytes / float64(len(gs))
		})
	})
}

// BenchmarkCall measures the bytes of a call in flight, of 100,000, without its
// goroutines.
func BenchmarkCall(b *testing.B) {
	keys := makeKeys(count(100_000), 16)
	each(b, "", groups, func(b *testing.B, im impl[group]) {
		reportMean(b, "B/call", func() float64 {
			end := make(chan struct{})
			bare := bytesParked(bareGroup{im.spawns, end}, keys, end)
			bytes := bytesParked(im.new(), keys, make(chan struct{}))
			return (bytes - bare) / float64(len(keys))
		})
	})
	runtime.KeepAlive(keys)
}

// bytesParked calls Do for each key, on a goroutine of its own, with an fn that
// waits for end, and returns the bytes in use when nothing moves any more. Then it
// closes end.
func bytesParked(g group, keys []string, end chan struct{}) float64 {
	defer pauseCollector()()
	blocked := newWork(func() { <-end })
	for _, key := range keys {
		go g.Do(key, blocked)
	}
	awaitParked()
	bytes := heapBytes()
	close(end)
	awaitParked()
	return bytes
}
