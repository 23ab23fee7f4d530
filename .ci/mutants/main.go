// Copyright 2026 The singleflight Authors.
// Use of this source code is governed by the BSD-style license in LICENSE.

// Command mutants breaks the library in one place at a time, and sees whether its
// tests notice:
//
//	cd .ci && go run ./mutants             # every mutant
//	cd .ci && go run ./mutants -sample 16  # only so many, others each day
//
// A mutant has another operator somewhere, or a statement less. It is killed if
// go test -short fails, without the examples, which take longer to build than all
// the rest. What follows -- goes to the tests, so that some can be tried by
// themselves: go run ./mutants -v -- -test.run Forget
//
// The status is not 0 if a survivor is not explained in explanations.go, if an
// explanation is of no survivor, or if less than 98 % of all mutants that compile
// are killed.
package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"flag"
	"fmt"
	"log"
	"maps"
	"math/rand/v2"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
)

var (
	sample  = flag.Int("sample", 0, "try only `n` mutants, drawn at random")
	seed    = flag.String("seed", time.Now().UTC().Format("20060102"), "draw the sample by this `text`, by default the date")
	only    = flag.String("only", "", "try only mutants whose name has this `text`")
	verbose = flag.Bool("v", false, "print what becomes of each mutant, and the test that was last heard of")
)

func main() {
	log.SetFlags(0)
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context) error {
	start := time.Now()
	lib, err := read("..")
	if err != nil {
		return err
	}
	defer os.RemoveAll(lib.tmp)
	all := lib.mutants()
	tried := choose(all)
	if err := lib.measure(ctx); err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(runtime.NumCPU())
	for _, m := range tried {
		group.Go(func() error { return lib.try(ctx, m) })
	}
	if err := group.Wait(); err != nil {
		return err
	}
	err = report(all, tried)
	fmt.Println(time.Since(start).Round(time.Second))
	return err
}

func choose(all []*mutant) []*mutant {
	tried := slices.DeleteFunc(slices.Clone(all), func(m *mutant) bool { return !strings.Contains(m.name, *only) })
	if n := len(tried); 0 < *sample && *sample < n {
		random := rand.New(rand.NewChaCha8(sha256.Sum256([]byte(*seed))))
		random.Shuffle(n, func(i, j int) { tried[i], tried[j] = tried[j], tried[i] })
		tried = tried[:*sample]
		fmt.Printf("%d of %d mutants, with -seed %s\n", *sample, n, *seed)
	}
	return tried
}

// report prints the survivors, and returns what is wrong.
func report(all, tried []*mutant) error {
	var wrong []error
	count := make(map[string]int)
	for _, m := range tried {
		count[m.fate]++
		why, explained := explanations[m.name]
		switch {
		case m.fate == survived && explained:
			fmt.Printf("survived: %s\n    %s\n", m.name, why)
		case m.fate == survived:
			wrong = append(wrong, fmt.Errorf("survived, but not explained: %s", m.name))
		case explained:
			wrong = append(wrong, fmt.Errorf("explained, but %s: %s", m.fate, m.name))
		}
	}
	dead := count[killed] + count[timedOut]
	viable := dead + count[survived]
	fmt.Printf("%d of %d killed, %d of these by time-out; %d do not compile\n", dead, viable, count[timedOut], count[notViable])
	if viable == 0 || len(tried) == len(all) && 100*dead < 98*viable {
		wrong = append(wrong, errors.New("less than 98 % are killed"))
	}
	unknown := maps.Clone(explanations)
	for _, m := range all {
		delete(unknown, m.name)
	}
	for name := range unknown {
		wrong = append(wrong, fmt.Errorf("explained, but no mutant: %s", name))
	}
	return errors.Join(wrong...)
}
