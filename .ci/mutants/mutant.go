// Copyright 2026 The singleflight Authors.
// Use of this source code is governed by the BSD-style license in LICENSE.

package main

import (
	"cmp"
	"fmt"
	"go/ast"
	"go/format"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"strings"
)

// A library is what is broken, without its comments: the name of a mutant does not
// depend on them.
type library struct {
	root, tmp string
	texts     map[string]string // by the names of files
}

var files = []string{"singleflight.go", "panic.go"}

// A mutant is a file with the text from one offset to another replaced.
type mutant struct {
	name     string // the function, the line with ▸ in front of what is replaced, and by what
	file     string
	from, to int
	text     string
	fate     string // killed, for example
}

func read(root string) (*library, error) {
	root, err1 := filepath.Abs(root)
	tmp, err2 := os.MkdirTemp("", "mutants")
	if err := cmp.Or(err1, err2); err != nil {
		return nil, err
	}
	lib := &library{root, tmp, make(map[string]string)}
	for _, name := range files {
		set := token.NewFileSet()
		tree, err := parser.ParseFile(set, filepath.Join(root, name), nil, parser.SkipObjectResolution)
		if err != nil {
			return nil, err
		}
		var text strings.Builder
		if err := format.Node(&text, set, tree); err != nil {
			return nil, err
		}
		lib.texts[name] = text.String()
	}
	return lib, nil
}

// changes has what takes an operator's place.
var changes = map[string][]string{
	"+": {"-"}, "-": {"+"}, "*": {"/"}, "/": {"*"}, "%": {"*"}, "++": {"--"}, "--": {"++"},
	"&": {"|"}, "|": {"&"}, "^": {"&"}, "&^": {"&"}, "<<": {">>"}, ">>": {"<<"},
	"&&": {"||"}, "||": {"&&"}, "!": {""}, "break": {"continue"}, "continue": {"break"},
	"==": {"!="}, "!=": {"=="}, "<": {"<=", ">="}, "<=": {"<", ">"}, ">": {">=", "<="}, ">=": {">", "<"},
	"+=": {"-=", "="}, "-=": {"+=", "="}, "*=": {"/=", "="}, "/=": {"*=", "="}, "%=": {"="}, "<<=": {">>=", "="},
	">>=": {"<<=", "="}, "&=": {"|=", "="}, "|=": {"&=", "="}, "^=": {"&=", "="}, "&^=": {"&=", "="},
}

// mutants returns all mutants, in the order of the text.
func (lib *library) mutants() (all []*mutant) {
	seen := make(map[string]int)
	for _, file := range files {
		text, set, function := lib.texts[file], token.NewFileSet(), ""
		offset := func(pos token.Pos) int { return set.Position(pos).Offset }
		add := func(from, to int, by, change string) {
			before := text[strings.LastIndex(text[:from], "\n")+1 : from]
			after, _, _ := strings.Cut(text[from:], "\n")
			name := fmt.Sprintf("%s: %s▸%s → %s", function, strings.TrimSpace(before), after, change)
			if seen[name]++; seen[name] > 1 {
				name += fmt.Sprintf(" (%d)", seen[name])
			}
			all = append(all, &mutant{name: name, file: file, from: from, to: to, text: by})
		}
		tree, _ := parser.ParseFile(set, file, text, parser.SkipObjectResolution) // it has been parsed before
		for _, decl := range tree.Decls {
			function = "package"
			if fn, ok := decl.(*ast.FuncDecl); ok {
				function = strings.TrimPrefix(text[offset(fn.Pos()):offset(fn.Name.End())], "func ")
			}
			ast.Inspect(decl, func(n ast.Node) bool {
				pos, op := operator(n)
				for _, other := range changes[op] {
					add(offset(pos), offset(pos)+len(op), other, cmp.Or(other, "left out"))
				}
				for _, s := range statements(n) {
					from, to := offset(s.Pos()), offset(s.End())
					add(from, to, instead(s, text[from:to]), "left out")
				}
				return true
			})
		}
	}
	return all
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

// statements returns those of n that can be left out: all but declarations, blocks
// and labels.
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

// instead returns what stands in for a statement that is left out. For most it is
// nothing. But a variable that is not used would keep the mutant from compiling, so
// what would have been assigned to one is still evaluated, unless it is nil.
func instead(s ast.Stmt, text string) string {
	a, ok := s.(*ast.AssignStmt)
	if !ok || a.Tok != token.ASSIGN || text[0] == '_' || strings.Contains(text, "nil") {
		return ""
	}
	return "_" + strings.Repeat(", _", len(a.Lhs)-1) + " " + text[a.TokPos-a.Pos():]
}
