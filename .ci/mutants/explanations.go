// Copyright 2026 The singleflight Authors.
// Use of this source code is governed by the BSD-style license in LICENSE.

package main

// explanations says of each survivor why no test can notice it, or why none should.
var explanations = map[string]string{
	"INVERT_BITWISE: (*bucket).pull: if b.chain == c && b.tags▸>>56 == 0 {": "only speed: the first call of a chain is then taken out like any other",
	"LEFT_OUT: (*bucket).pull: ▸if b.chain == c && b.tags>>56 == 0 {":       "only speed, in the same way",

	"CONDITIONALS_BOUNDARY: (*bucket).pull: for c := b.chain; c != nil && i▸< 8; c = c.next {": "equivalent: what is shifted by 64 is 0",

	"LEFT_OUT: (*calls).find: ▸if s.n == 0 {":                                               "only speed: look finds nothing in an empty table",
	"LEFT_OUT: (*calls).find: ▸return nil // mostly, so this is for the compiler to inline": "only speed, in the same way",
	"LEFT_OUT: (*calls).look: ▸if !b.mayHave(hash) {":                                       "only speed: the calls are looked at themselves",
	"LEFT_OUT: (*calls).look: ▸return nil":                                                  "only speed, in the same way",
	"LEFT_OUT: (*calls).remove: ▸if s.n == 0 && s.few.chain == c {":                         "only speed: pull takes it out",
	"LEFT_OUT: (*calls).add: ▸if s.n == 1 && s.buckets == nil {":                            "only speed: push does the same",
}
