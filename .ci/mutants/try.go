// Copyright 2026 The singleflight Authors.
// Use of this source code is governed by the BSD-style license in LICENSE.

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"sync"
	"syscall"
	"time"
)

// The tests name every test that begins. They have come to a standstill when they
// have said nothing for this long, and for longer than they do on a sound library.
const (
	patience = 10 * time.Second
	longer   = 5
)

var (
	errStandstill = errors.New("the tests have come to a standstill")

	compileError = regexp.MustCompile(`(?m)^\./\w+\.go:\d+:`)
	testFailed   = regexp.MustCompile(`(?m)^\s*--- FAIL: (\S+)`)
	testBegun    = regexp.MustCompile(`(?m)^=== RUN +(\S+)`)
)

// tryAll settles the fate of all mutants, after that of the library as it is.
func tryAll(ctx context.Context, tmp, library string, mutants []*mutant) error {
	sound := &mutant{file: "panic.go"}
	if err := sound.try(ctx, filepath.Join(tmp, "sound"), library, 5*time.Minute); err != nil {
		return err
	}
	if sound.fate != lived {
		return fmt.Errorf("the library as it is: %s: %s", sound.fate, sound.by)
	}
	patience := max(patience, longer*sound.silence)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	queue := make(chan *mutant)
	var wg sync.WaitGroup
	for i := range *workers {
		wg.Go(func() {
			for m := range queue {
				if err := m.try(ctx, filepath.Join(tmp, fmt.Sprint("worker", i)), library, patience); err != nil {
					cancel(fmt.Errorf("%s: %w", m.name, err))
				} else if *verbose {
					fmt.Printf("%s: %s: %s: %s\n", m.position, m.name, m.fate, m.by)
				}
			}
		})
	}
	for _, m := range mutants {
		queue <- m
	}
	close(queue)
	wg.Wait()
	return context.Cause(ctx)
}

// try settles the fate of the mutant, in a folder of its own.
func (m *mutant) try(ctx context.Context, dir, library string, patience time.Duration) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := os.CopyFS(dir, os.DirFS(library)); err != nil {
		return err
	}
	path := filepath.Join(dir, m.file)
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	text = bytes.Join([][]byte{text[:m.from], []byte(m.text), text[m.to:]}, nil)
	if err := os.WriteFile(path, text, 0o666); err != nil {
		return err
	}
	build := exec.CommandContext(ctx, "go", "test", "-c", "-o", "test", ".")
	build.Dir = dir
	build.Env = append(os.Environ(), "GOGC=off") // halves the time
	out, err := build.CombinedOutput()
	switch {
	case err == nil:
		return m.face(ctx, dir, patience)
	case compileError.Match(out):
		m.fate = notViable
		return nil
	}
	return fmt.Errorf("%w\n%s", err, out)
}

// face has the mutant face the tests.
func (m *mutant) face(ctx context.Context, dir string, patience time.Duration) error {
	patient, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	out := &listener{spoke: time.Now(), patience: patience}
	out.timer = time.AfterFunc(patience, func() { cancel(errStandstill) })
	defer out.timer.Stop()

	cmd := exec.CommandContext(patient, filepath.Join(dir, "test"), "-test.short", "-test.v", "-test.failfast", "-test.timeout=0")
	cmd.Dir = dir
	cmd.Stdout, cmd.Stderr = out, out
	cmd.WaitDelay = time.Second
	// The tests start processes, which must not go on without them.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	err := cmd.Run()
	if cmd.Process != nil {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	}

	m.silence = out.longest
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case err == nil:
		m.fate = lived
	case testFailed.Match(out.heard.Bytes()): // if an example hung thereafter, that adds nothing
		m.fate, m.by = killed, out.last(testFailed)
	case context.Cause(patient) == errStandstill:
		m.fate, m.by = timedOut, out.last(testBegun)
	case errors.As(err, &exit):
		m.fate, m.by = killed, out.last(testBegun)
	default:
		return err
	}
	return nil
}

// A listener keeps what the tests say, and puts its timer back whenever they do.
type listener struct {
	heard    bytes.Buffer
	spoke    time.Time     // when something was heard
	longest  time.Duration // without a word
	patience time.Duration
	timer    *time.Timer
}

func (l *listener) Write(p []byte) (int, error) {
	now := time.Now()
	l.longest, l.spoke = max(l.longest, now.Sub(l.spoke)), now
	l.timer.Reset(l.patience)
	return l.heard.Write(p)
}

// last returns the name that was last heard in such a line.
func (l *listener) last(re *regexp.Regexp) string {
	all := re.FindAllSubmatch(l.heard.Bytes(), -1)
	if all == nil {
		return "no test"
	}
	return string(all[len(all)-1][1])
}

// command runs a command to its end; its output is in the error if there is one.
func command(cmd *exec.Cmd) error {
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%v: %w\n%s", cmd.Args, err, out)
	}
	return nil
}
