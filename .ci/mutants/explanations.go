// Copyright 2026 The singleflight Authors.
// Use of this source code is governed by the BSD-style license in LICENSE.

package main

// explanations says of each survivor why no test can notice it, or why none should.
var explanations = map[string]string{
	"(outer *node) link: ▸case outer.waiters == 0 && outer != n: → left out":                               "only speed: a search takes its place",
	"(n *node) reaches: if n.level▸>= target.level || n.search == searches || n.ended.Load() { → >":        "only speed: nothing of the level of target leads to it",
	"(n *node) raise: i := sort.Search(len(todo), func(i int) bool { return todo[i].from▸> x.from }) → >=": "the same: calls of one level do not wait for each other",
	"(s *stripe) insert: if s.n++; 4*s.n▸> 3*len(s.slots) { → >=":                                          "only speed: the table doubles one call earlier",
	"(s *stripe) remove: if s.n--; len(slots) > minSlots && 4*s.n▸< len(slots) { → <=":                     "only speed: the table halves one call earlier",
}
