// Copyright 2026 The singleflight Authors.
// Use of this source code is governed by the BSD-style license in LICENSE.

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"go/ast"
	"go/parser"
	"go/scanner"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// A file is one of the two that are mutated.
type file struct {
	name   string
	text   string
	tree   *ast.File
	tokens *token.File
}

func parse(library string) (map[string]*file, error) {
	files := make(map[string]*file)
	for _, name := range []string{"singleflight.go", "panic.go"} {
		text, err := os.ReadFile(filepath.Join(library, name))
		if err != nil {
			return nil, err
		}
		set := token.NewFileSet()
		tree, err := parser.ParseFile(set, name, text, parser.SkipObjectResolution)
		if err != nil {
			return nil, err
		}
		files[name] = &file{name, string(text), tree, set.File(tree.FileStart)}
	}
	return files, nil
}

// mutant makes a mutant. Its name has a ▸ in front of what is changed.
func (f *file) mutant(kind string, from, to int, text string) *mutant {
	begin := strings.LastIndex(f.text[:from], "\n") + 1
	line, _, _ := strings.Cut(f.text[from:], "\n")
	line = strings.TrimSpace(f.text[begin:from]) + "▸" + line
	return &mutant{
		kind:     kind,
		name:     fmt.Sprintf("%s: %s: %s", kind, f.function(from), line),
		position: fmt.Sprintf("%s:%d", f.name, f.tokens.Line(f.tokens.Pos(from))),
		file:     f.name,
		from:     from,
		to:       to,
		text:     text,
	}
}

// function returns the name of the function at an offset.
func (f *file) function(offset int) string {
	pos := f.tokens.Pos(offset)
	for _, d := range f.tree.Decls {
		fn, ok := d.(*ast.FuncDecl)
		if !ok || pos < fn.Pos() || pos >= fn.End() {
			continue
		}
		if fn.Recv == nil {
			return fn.Name.Name
		}
		receiver := f.text[f.tokens.Offset(fn.Recv.List[0].Type.Pos()):f.tokens.Offset(fn.Recv.List[0].Type.End())]
		return "(" + receiver + ")." + fn.Name.Name
	}
	return "package"
}

// operator returns the operator or keyword at an offset.
func (f *file) operator(offset int) string {
	text := []byte(f.text[offset:])
	var s scanner.Scanner
	s.Init(token.NewFileSet().AddFile("", -1, len(text)), text, nil, 0)
	_, tok, _ := s.Scan()
	return tok.String()
}

// What gremlins makes of operators, by its names.
var (
	arithmetic  = map[string]string{"+": "-", "*": "/", "/": "*", "%": "*", "-": "+"}
	assignments = map[string]string{"+=": "-=", "-=": "+=", "*=": "/=", "/=": "*="}
	bitwise     = map[string]string{"&": "|", "|": "&", "^": "&", "&^": "&", "<<": ">>", ">>": "<<"}
	bwassign    = map[string]string{"&=": "|=", "|=": "&=", "^=": "&=", "&^=": "&=", "<<=": ">>=", ">>=": "<<="}
	removed     = map[string]string{"+=": "=", "-=": "=", "*=": "=", "/=": "=", "%=": "=", "&=": "=", "|=": "=", "^=": "=", "&^=": "=", "<<=": "=", ">>=": "="}

	changes = map[string]map[string]string{
		"ARITHMETIC_BASE":         arithmetic,
		"CONDITIONALS_BOUNDARY":   {">=": ">", ">": ">=", "<=": "<", "<": "<="},
		"CONDITIONALS_NEGATION":   {"==": "!=", ">=": "<", ">": "<=", "<=": ">", "<": ">=", "!=": "=="},
		"INCREMENT_DECREMENT":     {"--": "++", "++": "--"},
		"INVERT_ASSIGNMENTS":      assignments,
		"INVERT_BITWISE":          bitwise,
		"INVERT_BWASSIGN":         bwassign,
		"INVERT_LOGICAL":          {"&&": "||", "||": "&&"},
		"INVERT_LOOPCTRL":         {"break": "continue", "continue": "break"},
		"INVERT_NEGATIVES":        {"-": "+"},
		"REMOVE_SELF_ASSIGNMENTS": removed,
	}
)

// gremlins has gremlins list its mutants, all kinds that it knows.
//
// It does not run them, since it would be wrong about some. It leaves alone what is
// not covered, and takes the conditions of cases and all declarations to be so. It
// takes mutants that do not compile for killed, since go test exits with 1 for them as
// well. And when it is out of patience it kills the go command but not the test.
func gremlins(ctx context.Context, tmp, library string, files map[string]*file) ([]*mutant, error) {
	binary, output := filepath.Join(tmp, "gremlins"), filepath.Join(tmp, "gremlins.json")
	if err := command(exec.CommandContext(ctx, "go", "build", "-o", binary, "github.com/go-gremlins/gremlins/cmd/gremlins")); err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, binary, "unleash", "--dry-run", "--silent", "--output", output,
		"--invert-assignments", "--invert-bitwise", "--invert-bwassign", "--invert-logical", "--invert-loopctrl", "--remove-self-assignments")
	cmd.Dir = library
	cmd.Env = append(os.Environ(), "GOFLAGS=-short") // it runs the tests for what they cover
	if err := command(cmd); err != nil {
		return nil, err
	}
	text, err := os.ReadFile(output)
	if err != nil {
		return nil, err
	}
	var found struct {
		Files []struct {
			Name      string `json:"file_name"`
			Mutations []struct {
				Type, Status string
				Line, Column int
			}
		}
	}
	if err := json.Unmarshal(text, &found); err != nil {
		return nil, err
	}
	var mutants []*mutant
	for _, of := range found.Files {
		f := files[of.Name]
		if f == nil {
			return nil, fmt.Errorf("gremlins mutates %s", of.Name)
		}
		for _, m := range of.Mutations {
			from := f.tokens.Offset(f.tokens.LineStart(m.Line)) + m.Column - 1
			operator := f.operator(from)
			text, ok := changes[m.Type][operator]
			if !ok {
				return nil, fmt.Errorf("gremlins has %s at %s:%d:%d, which is %q", m.Type, of.Name, m.Line, m.Column, operator)
			}
			mutant := f.mutant(m.Type, from, from+len(operator), text)
			mutant.bare = m.Status == "NOT COVERED"
			mutants = append(mutants, mutant)
		}
	}
	return mutants, nil
}

// instead returns what stands in for a statement that is left out. For most it is
// nothing. But a variable that is not used would keep the mutant from compiling, so
// what would have been assigned is still evaluated, unless it is nil.
func (f *file) instead(s ast.Stmt) string {
	a, ok := s.(*ast.AssignStmt)
	if !ok || a.Tok != token.ASSIGN {
		return ""
	}
	for _, v := range a.Rhs {
		if id, ok := v.(*ast.Ident); ok && id.Name == "nil" {
			return ""
		}
	}
	values := f.text[f.tokens.Offset(a.TokPos):f.tokens.Offset(a.End())]
	return "_" + strings.Repeat(", _", len(a.Lhs)-1) + " " + values
}

// leaveOut makes a mutant of every statement: it is not there. Declarations and
// blocks stay.
func leaveOut(files map[string]*file) []*mutant {
	var mutants []*mutant
	for _, f := range files {
		leave := func(list []ast.Stmt) {
			for _, s := range list {
				switch s := s.(type) {
				case *ast.DeclStmt, *ast.BlockStmt, *ast.LabeledStmt, *ast.EmptyStmt:
					continue
				case *ast.AssignStmt:
					if s.Tok == token.DEFINE {
						continue
					}
				}
				mutants = append(mutants, f.mutant("LEFT_OUT", f.tokens.Offset(s.Pos()), f.tokens.Offset(s.End()), f.instead(s)))
			}
		}
		ast.Inspect(f.tree, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.BlockStmt:
				leave(n.List)
			case *ast.CaseClause:
				leave(n.Body)
			case *ast.CommClause:
				leave(n.Body)
			}
			return true
		})
	}
	return mutants
}
