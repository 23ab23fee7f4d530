// Copyright 2026 The singleflight Authors.
// Use of this source code is governed by the BSD-style license in LICENSE.

// Command mutants breaks the library in one place at a time, and sees whether its
// tests notice:
//
//	cd .ci && go run ./mutants
//
// There are two sorts of mutants: those that gremlins knows, which change an
// operator, and those that leave a statement out. Each is compiled, and faces the
// ordinary tests, with -short. It is killed if a test fails, or if the tests come to
// a standstill: they would fail of go test's time-out in the end. Efficacy is the
// part of those that compile that is killed. Each of the others needs an explanation,
// in explanations.go.
//
// The status is not 0 if efficacy is below 98 %, for either sort, if a survivor is
// not explained, or if an explanation explains none.
//
// What is broken is a copy: the files at the root that git knows, as they are now.
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"log"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"
)

var (
	workers = flag.Int("workers", 2, "how many mutants face the tests at once")
	only    = flag.String("only", "", "try only mutants whose name matches this `regexp`, and only report on them")
	verbose = flag.Bool("v", false, "print every mutant as its fate is known")
)

const enough = 98 // percent

// A mutant is a file with the text from one offset to another replaced.
type mutant struct {
	kind     string
	name     string // also of the function and the line: it outlives changes elsewhere
	position string
	file     string
	from, to int
	text     string
	bare     bool // gremlins takes it for not covered

	fate    fate
	by      string        // the test that fails, crashes or hangs
	silence time.Duration // the longest in which the tests said nothing
}

type fate string

const (
	killed    fate = "killed"
	timedOut  fate = "killed by time-out"
	lived     fate = "lived"
	notViable fate = "does not compile"
)

func main() {
	log.SetFlags(0)
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		log.Fatalf("\n%v", err)
	}
}

func run(ctx context.Context) error {
	start := time.Now()
	tmp, err := os.MkdirTemp("", "mutants")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	library := filepath.Join(tmp, "library")
	if err := copyLibrary(ctx, library); err != nil {
		return err
	}
	files, err := parse(library)
	if err != nil {
		return err
	}
	operators, err := gremlins(ctx, tmp, library, files)
	if err != nil {
		return err
	}
	statements := leaveOut(files)
	if *only != "" {
		re, err := regexp.Compile(*only)
		if err != nil {
			return err
		}
		other := func(m *mutant) bool { return !re.MatchString(m.name) }
		operators, statements = slices.DeleteFunc(operators, other), slices.DeleteFunc(statements, other)
	}
	all := slices.Concat(operators, statements)
	slices.SortFunc(all, byPosition)
	if err := tryAll(ctx, tmp, library, all); err != nil {
		return err
	}
	wrong := []error{report("Operators changed, by gremlins", operators), report("Statements left out", statements)}
	if *only == "" {
		wrong = append(wrong, idle(all))
	}
	fmt.Printf("\n%v\n", time.Since(start).Round(time.Second))
	return errors.Join(wrong...)
}

// copyLibrary copies the files that git knows, without the folders.
func copyLibrary(ctx context.Context, to string) error {
	const root = ".."
	list, err := exec.CommandContext(ctx, "git", "-C", root, "ls-files", "-z").Output()
	if err != nil {
		return fmt.Errorf("git ls-files: %w", err)
	}
	if err := os.Mkdir(to, 0o777); err != nil {
		return err
	}
	for name := range strings.SplitSeq(strings.TrimRight(string(list), "\x00"), "\x00") {
		if strings.Contains(name, "/") {
			continue
		}
		text, err := os.ReadFile(filepath.Join(root, name))
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(to, name), text, 0o666); err != nil {
			return err
		}
	}
	return nil
}

func byPosition(a, b *mutant) int {
	return cmp.Or(strings.Compare(a.file, b.file), a.from-b.from)
}

// report prints what became of the mutants, and returns what is wrong with it.
func report(heading string, mutants []*mutant) error {
	count := make(map[fate]int)
	bare := 0
	for _, m := range mutants {
		count[m.fate]++
		if m.bare {
			bare++
		}
	}
	dead := count[killed] + count[timedOut]
	viable := dead + count[lived]
	if viable == 0 && *only != "" {
		return nil
	}
	efficacy := 100 * float64(dead) / float64(viable)
	fmt.Printf("\n%s: %d mutants, and %d that do not compile\n", heading, viable, count[notViable])
	fmt.Printf("killed %d, of which by time-out %d; lived %d; efficacy %.1f %%\n", dead, count[timedOut], count[lived], efficacy)
	if bare > 0 {
		fmt.Printf("%d are not covered, as gremlins sees it, and were tried all the same\n", bare)
	}
	var wrong []error
	if !(efficacy >= enough) { // NaN if there are none
		wrong = append(wrong, fmt.Errorf("%s: efficacy is below %d %%", heading, enough))
	}
	slices.SortFunc(mutants, byPosition)
	for _, m := range mutants {
		if m.fate != lived {
			continue
		}
		why, ok := explanations[m.name]
		if !ok {
			why = "NOT EXPLAINED"
			wrong = append(wrong, fmt.Errorf("not explained: %s", m.name))
		}
		fmt.Printf("  %s: %s\n      %s\n", m.position, m.name, why)
	}
	return errors.Join(wrong...)
}

// idle returns an error for each explanation of something that did not survive.
func idle(mutants []*mutant) error {
	var wrong []error
	for name := range explanations {
		if !slices.ContainsFunc(mutants, func(m *mutant) bool { return m.name == name && m.fate == lived }) {
			wrong = append(wrong, fmt.Errorf("explained, but not a survivor: %s", name))
		}
	}
	return errors.Join(wrong...)
}
