// Copyright 2026 The singleflight Authors.
// Use of this source code is governed by the BSD-style licence in LICENSE.

package main

// explanations says of each survivor why no test can notice it, or why none should.
var explanations = map[string]string{}
