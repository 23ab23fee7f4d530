// Copyright 2026 The singleflight Authors.
// Use of this source code is governed by the BSD-style licence in LICENSE.

package main

import (
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

// A caller is one goroutine's part in a parallel workload: the keys that it asks
// for, a power of two of them, and what it wants done.
type caller struct {
	keys []string
	work work
	step int // odd, and another one for each caller, so that their orders differ
}

// call calls g until it is told to stop, and returns how often. It goes through
// all its keys before it comes back to one, jumping about among them.
func (c caller) call(g group, stop *atomic.Bool) (calls int) {
	for i := c.step; !stop.Load(); calls++ {
		i = 5*i + c.step
		g.Do(c.keys[i&(len(c.keys)-1)], c.work)
	}
	return calls
}

// parallel runs n callers at once for as long as the scale says. It returns the
// time divided by the calls of all of them, and the number of calls.
func parallel(g group, s scale, n int, keysOf func(i int) []string, w work) (ns, calls float64) {
	var (
		stop  atomic.Bool
		total atomic.Int64
		begin = make(chan struct{})
		wg    sync.WaitGroup
	)
	for i := range n {
		c := caller{keysOf(i), w, 2*i + 1}
		wg.Go(func() {
			<-begin
			total.Add(int64(c.call(g, &stop)))
		})
	}
	start := time.Now()
	close(begin)
	time.Sleep(s.timed)
	stop.Store(true)
	wg.Wait()
	calls = float64(total.Load())
	return float64(time.Since(start)) / calls, calls
}

func parallelKeysApart(im implementation, s scale) []float64 {
	if im.floor {
		return nil
	}
	n := runtime.GOMAXPROCS(0)
	keys := makeKeys(n, 16)
	ns, _ := parallel(im.new(), s, n, func(i int) []string { return keys[i : i+1] }, nothing)
	return []float64{ns}
}

func parallelKeysSame(im implementation, s scale) []float64 {
	if im.floor {
		return nil
	}
	keys := makeKeys(1_024, 16)
	ns, _ := parallel(im.new(), s, runtime.GOMAXPROCS(0), func(int) []string { return keys }, nothing)
	return []float64{ns}
}

func parallelOneKey(im implementation, s scale) []float64 {
	if im.floor {
		return nil
	}
	key := makeKeys(1, 16)
	ns, _ := parallel(im.new(), s, runtime.GOMAXPROCS(0), func(int) []string { return key }, nothing)
	return []float64{ns}
}

const callersPerProcessor = 16 // in a crowd

// crowd has far more callers than processors on one key, so that some wait while
// others run fn.
func crowd(im implementation, s scale, fn func()) []float64 {
	if im.floor {
		return nil
	}
	var executions atomic.Int64
	w := newWork(func() {
		executions.Add(1)
		fn()
	})
	key := makeKeys(1, 16)
	ns, calls := parallel(im.new(), s, callersPerProcessor*runtime.GOMAXPROCS(0), func(int) []string { return key }, w)
	return []float64{ns, float64(executions.Load()) / calls}
}

func crowdComputing(im implementation, s scale) []float64 {
	return crowd(im, s, func() {
		for start := time.Now(); time.Since(start) < time.Microsecond; {
		}
	})
}

func crowdSleeping(im implementation, s scale) []float64 {
	return crowd(im, s, func() { time.Sleep(time.Millisecond) })
}
