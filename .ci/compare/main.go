// Copyright 2026 The singleflight Authors.
// Use of this source code is governed by the BSD-style licence in LICENSE.

// Command compare measures this library side by side with others that do the
// same, and prints a table of their ratios to golang.org/x/sync/singleflight:
//
//	cd .ci && go run ./compare
//
// It also leaves the table, what was measured in every round, and a chart, as
// table.md, results.json and chart.svg.
//
// In each round every workload is measured for all implementations in turn, with
// another one first in each round. What a ratio divides was measured in the same
// round; the table shows its median over the rounds, and the quartiles.
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
)

var (
	rounds    = flag.Int("rounds", 11, "how often everything is measured")
	briefly   = flag.Bool("brief", false, "measure everything once and tiny, only to see that it works")
	only      = flag.String("only", "", "measure only workloads whose name matches this `regexp`")
	outFolder = flag.String("out", "", "`folder` for table.md, results.json and chart.svg (default . if everything is measured, else none)")
	cpus      = flag.String("cpus", "", "numbers of processors for the parallel workloads, as in `1,2,4` (default powers of two, and all)")
	from      = flag.String("from", "", "measure nothing: take the results from this `file`")

	// For the processes that this one starts.
	measured = flag.String("measure", "", "measure the workload of this `name`, in this process, and print what comes out")
	by       = flag.String("by", "", "`name` of the implementation that is measured")
)

func main() {
	log.SetFlags(0)
	log.SetPrefix("compare: ")
	flag.Parse()
	var err error
	if *measured != "" {
		err = measureHere(*measured, *by)
	} else {
		err = compare()
	}
	if err != nil {
		log.Fatal(err)
	}
}

// compare gets the results, prints the table, and writes the files.
func compare() error {
	r, err := getResults()
	if err != nil {
		return err
	}
	table := r.table()
	fmt.Print(table)

	folder := *outFolder
	if folder == "" && !*briefly && *only == "" {
		folder = "."
	}
	if folder == "" {
		// They are written all the same, so that -brief sees whether that works.
		if folder, err = os.MkdirTemp("", "compare"); err != nil {
			return err
		}
		defer os.RemoveAll(folder)
	}
	raw, err := json.MarshalIndent(r, "", "\t")
	if err != nil {
		return err
	}
	return errors.Join(
		os.WriteFile(filepath.Join(folder, "results.json"), append(raw, '\n'), 0o666),
		os.WriteFile(filepath.Join(folder, "table.md"), []byte(table), 0o666),
		r.draw(filepath.Join(folder, "chart.svg")))
}

func getResults() (*results, error) {
	if *from == "" {
		return measureAll()
	}
	raw, err := os.ReadFile(*from)
	if err != nil {
		return nil, err
	}
	r := new(results)
	return r, json.Unmarshal(raw, r)
}

// measureAll measures what the flags say.
func measureAll() (*results, error) {
	procs, err := processors(*cpus)
	if err != nil {
		return nil, err
	}
	wanted, err := regexp.Compile(*only)
	if err != nil {
		return nil, err
	}
	ws := slices.DeleteFunc(workloads(procs), func(w workload) bool { return !wanted.MatchString(title(w.name, w.procs)) })
	if *briefly {
		*rounds = 1
	}
	r := newResults(ws)
	for round := range *rounds {
		log.Printf("round %d of %d", round+1, *rounds)
		for _, w := range ws {
			for j := range implementations {
				im := implementations[(round+j)%len(implementations)]
				values, err := measure(w, im)
				if err != nil {
					return nil, fmt.Errorf("%s, %s: %w", title(w.name, w.procs), im.name, err)
				}
				r.add(w, im.name, values)
			}
		}
	}
	return r, nil
}

// processors reads a list of them. Without one it returns the powers of two up to
// all that there are, and that number.
func processors(list string) (procs []int, err error) {
	if list == "" {
		all := runtime.GOMAXPROCS(0)
		for p := 1; p < all; p *= 2 {
			procs = append(procs, p)
		}
		return append(procs, all), nil
	}
	for field := range strings.SplitSeq(list, ",") {
		p, err := strconv.Atoi(field)
		if err != nil || p < 1 {
			return nil, fmt.Errorf("-cpus: %q is no number of processors", field)
		}
		procs = append(procs, p)
	}
	return procs, nil
}

// measure has a workload measured in a process of its own.
func measure(w workload, im implementation) (values []float64, err error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(self, "-measure", w.name, "-by", im.name, "-brief="+strconv.FormatBool(*briefly))
	cmd.Stderr = os.Stderr
	if w.procs > 0 {
		cmd.Env = append(os.Environ(), "GOMAXPROCS="+strconv.Itoa(w.procs))
	}
	out, err := cmd.Output()
	if err != nil {
		return nil, err
	}
	return values, json.Unmarshal(out, &values)
}

// measureHere is what such a process does.
func measureHere(name, by string) error {
	s := full
	if *briefly {
		s = brief
	}
	for _, w := range workloads([]int{runtime.GOMAXPROCS(0)}) {
		for _, im := range implementations {
			if w.name == name && im.name == by {
				return json.NewEncoder(os.Stdout).Encode(w.run(im, s))
			}
		}
	}
	return fmt.Errorf("no workload %q or no implementation %q", name, by)
}
