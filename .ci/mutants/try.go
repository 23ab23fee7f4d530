// Copyright 2026 The singleflight Authors.
// Use of this source code is governed by the BSD-style license in LICENSE.

package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"syscall"
	"time"
)

const (
	killed    = "killed"
	timedOut  = "timed out"
	survived  = "survived"
	notViable = "does not compile"
)

// limit is the time that the tests of a mutant may take. They rarely do if they hang:
// they have no time-out of their own and no cgo, so the runtime ends them when all
// goroutines are blocked.
var limit = 5 * time.Minute

// measure tests the library as it is, and sets the limit. A mutant may take several
// times as long, as others are tested beside it.
func (lib *library) measure(ctx context.Context) error {
	start, sound := time.Now(), &mutant{name: "the library as it is", file: files[0]}
	if err := lib.try(ctx, sound); err != nil {
		return err
	}
	if sound.fate != survived {
		return fmt.Errorf("%s: %s", sound.name, sound.fate)
	}
	limit = 5*time.Second + 2*time.Since(start) // with the time to build
	return nil
}

var (
	compileError = regexp.MustCompile(`(?m)^\S+\.go:\d+:\d+: `)
	testName     = regexp.MustCompile(`(?m)^(?:=== RUN +|\s*--- FAIL: )(\S+)`)
)

// try settles the fate of a mutant.
func (lib *library) try(ctx context.Context, m *mutant) error {
	dir, err := os.MkdirTemp(lib.tmp, "")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	source, overlay, binary := filepath.Join(dir, m.file), filepath.Join(dir, "overlay.json"), filepath.Join(dir, "test")
	object, _ := json.Marshal(map[string]any{"Replace": map[string]string{
		filepath.Join(lib.root, m.file):            source,
		filepath.Join(lib.root, "example_test.go"): "",
	}})
	text := lib.texts[m.file]
	text = text[:m.from] + m.text + text[m.to:]
	if err := errors.Join(os.WriteFile(source, []byte(text), 0o666), os.WriteFile(overlay, object, 0o666)); err != nil {
		return err
	}
	build := exec.CommandContext(ctx, "go", "test", "-c", "-overlay", overlay, "-ldflags", "-s -w", "-o", binary, ".")
	build.Dir = lib.root
	build.Env = append(os.Environ(), "GOGC=off") // halves the time
	out, err := build.CombinedOutput()
	switch {
	case err == nil:
		out, m.fate, err = lib.test(ctx, binary)
	case compileError.Match(out):
		m.fate, err = notViable, nil
	}
	if err != nil {
		return fmt.Errorf("%s: %w\n%s", m.name, err, out)
	}
	if *verbose {
		heard := append([][][]byte{{1: nil}}, testName.FindAllSubmatch(out, -1)...)
		fmt.Printf("%s: %s %s\n", m.name, m.fate, heard[len(heard)-1][1])
	}
	return nil
}

// test runs the tests.
func (lib *library) test(ctx context.Context, binary string) (out []byte, fate string, err error) {
	limited, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	flags := []string{"-test.short", "-test.v", "-test.failfast", "-test.timeout=0"}
	cmd := exec.CommandContext(limited, binary, append(flags, flag.Args()...)...)
	cmd.Dir = lib.root
	cmd.WaitDelay = time.Second
	// The tests start processes, which must not go on without them.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	out, err = cmd.CombinedOutput()
	if cmd.ProcessState == nil { // it did not start
		return out, "", err
	}
	_ = cmd.Cancel()
	switch {
	case cmd.ProcessState.Success():
		return out, survived, nil
	case limited.Err() != nil:
		return out, timedOut, ctx.Err()
	}
	return out, killed, nil
}
