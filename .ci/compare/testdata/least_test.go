// Copyright 2026 The singleflight Authors.
// Use of this source code is governed by the BSD-style license in LICENSE.

// This file is in its package, and so is the one it imports, in the overlay of the script
// least alone.

package compare

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"os"
	"strconv"
	"testing"
	"time"

	before "example.com/singleflight/ci/compare/before"
)

type beforeGroup struct{ g before.Group }

func (o *beforeGroup) Do(key string, w work)         { o.g.Do(key, w.plain) }
func (o *beforeGroup) DoChan(key string, w work) any { return o.g.DoChan(key, w.plain) }
func (o *beforeGroup) Receive(ch any)                { <-ch.(<-chan before.Result) }

func (o *beforeGroup) DoContext(ctx context.Context, key string, w work) {
	o.g.DoContext(ctx, key, w.withContext)
}

// TestLeast prints the least time of many rounds of about 5 ms, in which the
// implementations take turns. Noise can only raise a time, so the least is closest to
// what the code takes. What is contended cannot be measured so: the least would be that
// of a round in which the other processors were busy elsewhere.
func TestLeast(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for _, length := range []int{16, 1024} {
		key := makeKeys(1, length)[0]
		least(t, fmt.Sprintf("Do/key=%d", length), append(groups, floor), func() group { return new(beforeGroup) },
			func(g group) { g.Do(key, nothing) })
	}
	least(t, "DoChan", chanGroups, func() chanGroup { return new(beforeGroup) },
		func(g chanGroup) { g.Receive(g.DoChan("key", nothing)) })
	for fn, w := range map[string]work{"ignores-ctx": nothing, "asks-Done": asksDone} {
		least(t, "DoContext/fn="+fn, contextGroups, func() contextGroup { return new(beforeGroup) },
			func(g contextGroup) { g.DoContext(ctx, "key", w) })
	}
}

func least[G any](t *testing.T, name string, impls []impl[G], before func() G, call func(G)) {
	rounds, err := strconv.Atoi(cmp.Or(os.Getenv("ROUNDS"), "300"))
	if err != nil {
		t.Fatal(err)
	}
	impls = append(impls[:len(impls):len(impls)], impl[G]{name: "before", new: before})
	type measured struct {
		g     G
		n     int // calls in a round
		least float64
	}
	all := make([]measured, len(impls))
	round := func(m *measured) float64 {
		start := time.Now()
		for range m.n {
			call(m.g)
		}
		return float64(time.Since(start)) / float64(m.n)
	}
	for i := range all {
		all[i] = measured{impls[i].new(), 1_000, math.Inf(1)}
		all[i].n = int(float64(5*time.Millisecond)/round(&all[i])) + 1
	}
	for r := range rounds {
		for i := range all {
			m := &all[(i+r)%len(all)]
			m.least = min(m.least, round(m))
		}
	}
	fmt.Printf("%-26s", name)
	for i, m := range all {
		fmt.Printf("%s %.1f ns (%.2f)  ", impls[i].name, m.least, all[0].least/m.least)
	}
	fmt.Println()
}
