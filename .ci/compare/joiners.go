// Copyright 2026 The singleflight Authors.
// Use of this source code is governed by the BSD-style licence in LICENSE.

package main

import (
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

// joinersByDo times how n goroutines join a call that is in flight, all at once,
// and how all get its result. If n is small there are several such calls side by
// side, because what is timed begins and ends for all of them together, and that
// has to weigh little.
func joinersByDo(n int) func(implementation, scale) []float64 {
	return func(im implementation, s scale) []float64 {
		if im.floor {
			return nil
		}
		n := s.count(n)
		keys := makeKeys(max(1, s.count(1_000)/n), 16)
		joiners := n * len(keys)
		g := im.new()
		turns := make([]turn, 1+max(1, s.joins/joiners))
		for i := range turns {
			turns[i].begin, turns[i].end = make(chan struct{}), make(chan struct{})
			turns[i].coming.Add(joiners)
			turns[i].answered.Add(joiners)
		}
		for _, key := range keys {
			for range n {
				go func() {
					for i := range turns {
						turns[i].join(g, key)
					}
				}()
			}
		}
		turns[0].time(g, keys) // in which their stacks grow
		var took time.Duration
		for i := range turns[1:] {
			took += turns[1+i].time(g, keys)
		}
		return []float64{float64(took) / float64((len(turns)-1)*joiners)}
	}
}

// A turn is a call of each key that the same goroutines join.
type turn struct {
	begin, end       chan struct{}
	coming, answered sync.WaitGroup
}

func (t *turn) join(g group, key string) {
	<-t.begin
	t.coming.Done()
	g.Do(key, nothing)
	t.answered.Done()
}

// time returns how long they took to come, and to be answered. Nobody can tell when
// the last few that have come have joined too, so that is waited for between.
func (t *turn) time(g group, keys []string) time.Duration {
	var led sync.WaitGroup
	defer led.Wait()
	lead := newWork(func() { <-t.end })
	for _, key := range keys {
		led.Go(func() { g.Do(key, lead) })
	}
	awaitParked()
	start := time.Now()
	close(t.begin)
	t.coming.Wait()
	joining := time.Since(start)
	awaitParked()
	start = time.Now()
	close(t.end)
	t.answered.Wait()
	return joining + time.Since(start)
}

// joinersByDoChan times calls that one goroutine starts, joins n times, lets end
// and receives from.
func joinersByDoChan(n int) func(implementation, scale) []float64 {
	return func(im implementation, s scale) []float64 {
		g, ok := im.new().(chanGroup)
		if !ok {
			return nil
		}
		n := s.count(n)
		end := make(chan struct{})
		blocked := newWork(func() { <-end })
		channels := make([]any, 1+n) // the leader's too
		call := func() {
			for i := range channels {
				channels[i] = g.DoChan("key", blocked)
			}
			end <- struct{}{}
			for _, ch := range channels {
				g.Receive(ch)
			}
		}
		call()
		calls := max(3, 4*s.joins/n)
		start := time.Now()
		for range calls {
			call()
		}
		return []float64{float64(time.Since(start)) / float64(calls*n)}
	}
}

const crowdOfJoiners = 200_000

func stallByReaders(im implementation, s scale) []float64 {
	g, ok := im.new().(chanGroup)
	if !ok {
		return nil
	}
	end, ended := lead(g, "joined")
	for range s.count(crowdOfJoiners) {
		g.DoChan("joined", nothing)
	}
	return []float64{longestDo(g, "other", func() {
		close(end)
		<-ended // all have their Result when the leader returns
	})}
}

func stallByJoiners(im implementation, s scale) []float64 {
	if im.floor {
		return nil
	}
	g := im.new()
	end, _ := lead(g, "joined")
	var answered sync.WaitGroup
	for range s.count(crowdOfJoiners) {
		answered.Go(func() { g.Do("joined", nothing) })
	}
	awaitParked()
	return []float64{longestDo(g, "other", func() {
		close(end)
		answered.Wait()
	})}
}

// lead leads a call, on a goroutine of its own, until end is closed.
func lead(g group, key string) (end chan<- struct{}, ended <-chan struct{}) {
	begun, over, returned := make(chan struct{}), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(returned)
		g.Do(key, newWork(func() {
			close(begun)
			<-over
		}))
	}()
	<-begun
	return over, returned
}

// longestDo returns the nanoseconds of the longest Do, of the many that one
// goroutine calls one after the other, which was under way during any part of
// meanwhile. No garbage is collected then, as that has stalls of its own.
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
