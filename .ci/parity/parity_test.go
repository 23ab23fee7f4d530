// Copyright 2026 The singleflight Authors.
// Use of this source code is governed by the BSD-style license in LICENSE.

// Package parity checks that a program for golang.org/x/sync/singleflight needs no
// change but of the import path.
package parity

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	// The tests look at both by other commands. That they are imported too tells
	// go test when an earlier result is no longer good.
	_ "example.com/singleflight"
	_ "golang.org/x/sync/singleflight"
)

const (
	ours  = "example.com/singleflight"
	xsync = "golang.org/x/sync/singleflight"
)

func TestNoIncompatibleChange(t *testing.T) {
	if changes := goTool(t, nil, "tool", "apidiff", "-incompatible", xsync, ours); changes != "" {
		t.Errorf("from %s to %s:\n%s", xsync, ours, changes)
	}
}

// TestIncompatibleChangeIsSeen takes a method away, to see the test above fail.
func TestIncompatibleChangeIsSeen(t *testing.T) {
	doctored := edit(t, "../../singleflight.go", "func (g *Group) Forget(", "func (g *Group) unexported(")
	changes := goTool(t, doctored, "tool", "apidiff", "-incompatible", xsync, ours)
	if want := "- (*Group).Forget: removed\n"; changes != want {
		t.Errorf("apidiff says %q, want %q", changes, want)
	}
}

func TestProgramDoesTheSame(t *testing.T) {
	switched := edit(t, "program/main.go", `"`+xsync+`"`, `"`+ours+`"`)
	before, after := goTool(t, nil, "run", "./program"), goTool(t, switched, "run", "./program")
	if before != after {
		t.Errorf("with %s it prints\n%s\nwith %s\n%s", xsync, before, ours, after)
	}
	if !strings.HasSuffix(before, "done\n") {
		t.Errorf("it does not get to its end:\n%s", before)
	}
}

// edit returns the environment in which the go command sees a file as it is after
// replacing old, which it has to have once.
func edit(t *testing.T, file, old, new string) (environment []string) {
	t.Helper()
	source, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(source), old); n != 1 {
		t.Fatalf("%s has %q %d times", file, old, n)
	}
	path, err := filepath.Abs(file)
	if err != nil {
		t.Fatal(err)
	}
	edited := write(t, "edited.go", []byte(strings.Replace(string(source), old, new, 1)))
	overlay, err := json.Marshal(map[string]any{"Replace": map[string]string{path: edited}})
	if err != nil {
		t.Fatal(err)
	}
	return []string{"GOFLAGS=" + os.Getenv("GOFLAGS") + " -overlay=" + write(t, "overlay.json", overlay)}
}

// write returns the path of a new file.
func write(t *testing.T, name string, content []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, content, 0o666); err != nil {
		t.Fatal(err)
	}
	return path
}

// goTool returns what the go command prints on its standard output.
func goTool(t *testing.T, environment []string, args ...string) string {
	t.Helper()
	cmd := exec.Command("go", args...)
	cmd.Env = append(os.Environ(), environment...)
	cmd.Stderr = t.Output()
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go %s: %v", strings.Join(args, " "), err)
	}
	return string(out)
}
