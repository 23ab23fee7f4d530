// Copyright 2026 The singleflight Authors.
// Use of this source code is governed by the BSD-style license in LICENSE.

package main

// explanations says of each survivor why no test can notice it, or why none should.
var explanations = map[string]string{
	"LEFT_OUT: (*Group).lock: ▸_ = g.word // a nil Group panics here, and a key that cannot be read in the next line": "the same: what is assigned to the blank identifier is still evaluated",

	"LEFT_OUT: (*stripe).remove: ▸if s.n == 1 { // mostly, and a call by itself is at home; saves 3 % of an unjoined Do": "only speed: the rest of the function does the same",
	"ARITHMETIC_BASE: (*stripe).remove: free = (free▸+ 1) & mask":                                                        "only speed: looking backward finds the call as well, once round the table",
}
