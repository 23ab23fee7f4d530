// Copyright 2026 The singleflight Authors.
// Use of this source code is governed by the BSD-style license in LICENSE.

// Command mutants breaks the library in one place at a time, and sees whether its tests
// and examples notice:
//
//	cd .ci && go run ./mutants             # every mutant
//	cd .ci && go run ./mutants -sample 16  # only so many, the same while the code is
//
// A mutant has another operator somewhere, or a statement less. It is killed if go test
// -short fails, or takes far too long even if no other is tried beside it. The status is
// not 0 if a survivor is not explained, if an explanation is of no survivor, or if no
// mutant is killed.
package main

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"log"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
)

// explanations says of each survivor why it breaks no promise of the library.
var explanations = map[string]string{
	"(c *call) wait: ▸ended = true → left out":                                         "leave finds out as well, under the mutex",
	"(outer *node) link: if n.level▸< level { → <=":                                    "the same: a walk more, which meets nothing below n",
	"(n *node) walk: if limit--; limit▸< 0 || x.mark == last { → <=":                   "looks back at one edge less",
	"(e *edge) unlink: if 4*last▸< cap(edges) { → <=":                                  "a list gives back its room one edge earlier",
	"(s *stripe) resize: if size▸< minSlots { → <=":                                    "the same: minSlots becomes minSlots",
	"(s *stripe) insert: if s.n++; 4*s.n▸> 3*len(s.slots) { → >=":                      "the table doubles one call earlier",
	"(s *stripe) remove: if s.n--; len(slots) > minSlots && 4*s.n▸< len(slots) { → <=": "the table halves one call earlier",
}

const (
	killed    = "killed"
	timedOut  = "timed out"
	survived  = "survived"
	notViable = "does not compile"
)

// A mutant is a file of the library with a part of its text replaced.
type mutant struct {
	name       string // the function, the line with ▸ in front of the part, and its replacement
	file, text string
	fate       string // one of the constants, once it is settled
}

func main() {
	log.SetFlags(0)
	sample := flag.Int("sample", 0, "try only `n` mutants, drawn by a hash of the code")
	only := flag.String("only", "", "try only mutants whose name has this `text`")
	flag.Parse()
	root, err1 := filepath.Abs("..")
	table, err2 := mutantsOf(filepath.Join(root, "singleflight.go"))
	panics, err3 := mutantsOf(filepath.Join(root, "panic.go"))
	if err := errors.Join(err1, err2, err3); err != nil {
		log.Fatal(err)
	}
	all := append(table, panics...)
	tried := choose(all, *sample, *only)
	if err := try(root, tried); err != nil {
		log.Fatal(err)
	}
	if err := report(all, tried); err != nil {
		log.Fatal(err)
	}
}

func choose(all []*mutant, sample int, only string) []*mutant {
	hash := sha256.New()
	for _, m := range all {
		fmt.Fprintln(hash, m.name)
	}
	tried := slices.DeleteFunc(slices.Clone(all), func(m *mutant) bool { return !strings.Contains(m.name, only) })
	if 0 < sample && sample < len(tried) {
		random := rand.New(rand.NewChaCha8([32]byte(hash.Sum(nil))))
		random.Shuffle(len(tried), func(i, j int) { tried[i], tried[j] = tried[j], tried[i] })
		tried = tried[:sample]
	}
	return tried
}

// try settles the fates of mutants.
func try(root string, mutants []*mutant) error {
	start, limit := time.Now(), 5*time.Minute
	switch fate, err := test(root, "", "", limit); {
	case err != nil:
		return err
	case fate != survived:
		return fmt.Errorf("the library as it is: %s", fate)
	}
	limit = 2*time.Second + 3*time.Since(start)

	var group errgroup.Group
	group.SetLimit(runtime.NumCPU())
	for _, m := range mutants {
		group.Go(func() (err error) {
			m.fate, err = test(root, m.file, m.text, limit)
			return err
		})
	}
	err := group.Wait()
	for _, m := range mutants {
		if m.fate == timedOut && err == nil { // perhaps because of the others
			m.fate, err = test(root, m.file, m.text, limit)
		}
	}
	return err
}

var (
	buildFailed = regexp.MustCompile(`(?m)^FAIL\t.*\[build failed\]$`)
	testsFailed = regexp.MustCompile(`(?m)^FAIL\t.*s$`)
)

// test tests the library with another text of a file. Tests that hang rarely reach the
// limit: they have no time-out of their own and no cgo, so the runtime ends them when all
// goroutines are blocked.
func test(root, file, text string, limit time.Duration) (fate string, err error) {
	dir, err1 := os.MkdirTemp("", "mutant")
	defer os.RemoveAll(dir)
	source, overlay := filepath.Join(dir, "mutant.go"), filepath.Join(dir, "overlay.json")
	object, err2 := json.Marshal(map[string]any{"Replace": map[string]string{cmp.Or(file, source): source}})
	err3, err4 := os.WriteFile(source, []byte(text), 0o666), os.WriteFile(overlay, object, 0o666)
	if err := cmp.Or(err1, err2, err3, err4); err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, "go", "test", "-overlay", overlay, "-ldflags=-s -w", "-vet=off", "-count=1", "-timeout=0", "-short", "-failfast", ".")
	cmd.Dir, cmd.WaitDelay = root, time.Second
	// The tests start processes, which must not go on without them.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	out, err := cmd.CombinedOutput()
	if cmd.Process != nil {
		_ = cmd.Cancel()
	}
	switch {
	case err == nil:
		return survived, nil
	case ctx.Err() != nil:
		return timedOut, nil
	case buildFailed.Match(out):
		return notViable, nil
	case testsFailed.Match(out):
		return killed, nil
	}
	return "", fmt.Errorf("go test: %w\n%s", err, out)
}

// report prints the fates of mutants, and returns what is wrong.
func report(all, tried []*mutant) error {
	var wrong []error
	count := make(map[string]int)
	for _, m := range tried {
		count[m.fate]++
		why, explained := explanations[m.name]
		fmt.Println(m.fate+":", m.name, why)
		switch {
		case m.fate == survived && !explained:
			wrong = append(wrong, fmt.Errorf("survived, but not explained: %s", m.name))
		case m.fate != survived && explained:
			wrong = append(wrong, fmt.Errorf("explained, but %s: %s", m.fate, m.name))
		}
	}
	for name := range explanations {
		if !slices.ContainsFunc(all, func(m *mutant) bool { return m.name == name }) {
			wrong = append(wrong, fmt.Errorf("explained, but no mutant: %s", name))
		}
	}
	dead := count[killed] + count[timedOut]
	fmt.Printf("%d of %d mutants tried: %d of %d killed, %d of these by time-out; %d do not compile\n",
		len(tried), len(all), dead, dead+count[survived], count[timedOut], count[notViable])
	if dead == 0 {
		wrong = append(wrong, errors.New("none is killed"))
	}
	return errors.Join(wrong...)
}

// changes has what takes an operator's place.
var changes = map[string][]string{
	"+": {"-"}, "-": {"+"}, "*": {"/"}, "/": {"*"}, "%": {"*"}, "++": {"--"}, "--": {"++"},
	"&": {"|"}, "|": {"&"}, "^": {"&"}, "&^": {"&"}, "<<": {">>"}, ">>": {"<<"},
	"&&": {"||"}, "||": {"&&"}, "!": {""}, "break": {"continue"}, "continue": {"break"},
	"==": {"!="}, "!=": {"=="}, "<": {"<=", ">="}, "<=": {"<", ">"}, ">": {">=", "<="}, ">=": {">", "<"},
	"+=": {"-=", "="}, "-=": {"+=", "="}, "*=": {"="}, "/=": {"="}, "%=": {"="}, "<<=": {">>=", "="},
	">>=": {"<<=", "="}, "&=": {"|=", "="}, "|=": {"&=", "="}, "^=": {"="}, "&^=": {"="},
}

// mutantsOf returns all mutants of a file, in the order of the text. Their names do not
// depend on comments.
func mutantsOf(file string) (all []*mutant, err error) {
	source, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	set, text, function, seen := token.NewFileSet(), string(source), "", make(map[string]int)
	tree, err := parser.ParseFile(set, file, source, parser.SkipObjectResolution)
	if err != nil {
		return nil, err
	}
	offset := func(pos token.Pos) int { return set.Position(pos).Offset }
	add := func(from, to int, by, change string) {
		before := text[strings.LastIndex(text[:from], "\n")+1 : from]
		after, _, _ := strings.Cut(text[from:], "\n")
		after, _, _ = strings.Cut(after, " //")
		name := fmt.Sprintf("%s: %s▸%s → %s", function, strings.TrimSpace(before), after, change)
		if seen[name]++; seen[name] > 1 {
			name += fmt.Sprintf(" (%d)", seen[name])
		}
		all = append(all, &mutant{name: name, file: file, text: text[:from] + by + text[to:]})
	}
	for _, decl := range tree.Decls {
		function = "package"
		if fn, ok := decl.(*ast.FuncDecl); ok {
			function = strings.TrimPrefix(text[offset(fn.Type.Func):offset(fn.Name.End())], "func ")
		}
		ast.Inspect(decl, func(n ast.Node) bool {
			pos, op := operator(n)
			for _, other := range changes[op] {
				add(offset(pos), offset(pos)+len(op), other, cmp.Or(other, "left out"))
			}
			for _, s := range statements(n) {
				add(offset(s.Pos()), offset(s.End()), "", "left out")
			}
			return true
		})
	}
	return all, nil
}

// operator returns the operator of n, and where it is.
func operator(n ast.Node) (token.Pos, string) {
	switch n := n.(type) {
	case *ast.BinaryExpr:
		return n.OpPos, n.Op.String()
	case *ast.UnaryExpr:
		if n.Op == token.SUB || n.Op == token.NOT {
			return n.OpPos, n.Op.String()
		}
	case *ast.IncDecStmt:
		return n.TokPos, n.Tok.String()
	case *ast.AssignStmt:
		return n.TokPos, n.Tok.String()
	case *ast.BranchStmt:
		return n.TokPos, n.Tok.String()
	}
	return token.NoPos, ""
}

// statements returns those of n that can be left out: all but declarations, blocks and
// labels.
func statements(n ast.Node) (found []ast.Stmt) {
	var list []ast.Stmt
	switch n := n.(type) {
	case *ast.BlockStmt:
		list = n.List
	case *ast.CaseClause:
		list = n.Body
	case *ast.CommClause:
		list = n.Body
	}
	for _, s := range list {
		switch s := s.(type) {
		case *ast.DeclStmt, *ast.BlockStmt, *ast.LabeledStmt:
			continue
		case *ast.AssignStmt:
			if s.Tok == token.DEFINE {
				continue
			}
		}
		found = append(found, s)
	}
	return found
}
