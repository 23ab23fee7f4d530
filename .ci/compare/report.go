// Copyright 2026 The singleflight Authors.
// Use of this source code is governed by the BSD-style licence in LICENSE.

package main

import (
	"fmt"
	"math"
	"os"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
)

// results are what was measured, and on what.
type results struct {
	Go         string
	Processor  string
	Processors int
	Rounds     int
	Brief      bool `json:",omitempty"`
	Rows       []*row
}

// A row is one unit of one workload.
type row struct {
	Workload   string
	Processors int `json:",omitempty"` // if not all
	Unit       string
	Values     map[string][]float64 // of each implementation that has them, by round
}

func newResults(ws []workload) *results {
	r := &results{
		Go:         runtime.Version() + " " + runtime.GOOS + "/" + runtime.GOARCH,
		Processor:  processorName(),
		Processors: runtime.GOMAXPROCS(0),
		Rounds:     *rounds,
		Brief:      *briefly,
	}
	for _, w := range ws {
		for _, unit := range w.units {
			r.Rows = append(r.Rows, &row{w.name, w.procs, unit, map[string][]float64{}})
		}
	}
	return r
}

// processorName says what the processors are, where the system tells it.
func processorName() string {
	info, _ := os.ReadFile("/proc/cpuinfo")
	name := regexp.MustCompile(`(?m)^model name\s*: (.*)$`).FindSubmatch(info)
	if name == nil {
		return "processor unknown"
	}
	return string(name[1])
}

// add adds a round of one implementation, which has no values if it lacks the call.
func (r *results) add(w workload, name string, values []float64) {
	if values == nil {
		return
	}
	for i, unit := range w.units {
		row := r.find(w.name, w.procs, unit)
		row.Values[name] = append(row.Values[name], values[i])
	}
}

// find returns nil if there is no such row.
func (r *results) find(workload string, procs int, unit string) *row {
	for _, row := range r.Rows {
		if row.Workload == workload && row.Processors == procs && row.Unit == unit {
			return row
		}
	}
	return nil
}

func title(workload string, procs int) string {
	switch procs {
	case 0:
		return workload
	case 1:
		return workload + ", 1 processor"
	}
	return fmt.Sprintf("%s, %d processors", workload, procs)
}

// typical is what is shown for an implementation: the median of its rounds. The
// stall by readers takes as long as it does however busy the machine is, which
// only adds to it, so there it is the least.
func (row *row) typical(name string) float64 {
	if row.Workload == stallReaders {
		return slices.Min(row.Values[name])
	}
	return quantile(row.Values[name], 0.5)
}

// ratio returns what a stands for in relation to b, with the quartiles of the
// ratio in each round. It is not a number if b has next to nothing.
func ratio(a *row, nameA string, b *row, nameB string) (typical, lower, upper float64) {
	var each []float64
	for i, value := range b.Values[nameB] {
		if math.Abs(value) < 1e-3 || strings.HasPrefix(b.Unit, "bytes") && math.Abs(value) < 1 {
			return math.NaN(), 0, 0
		}
		each = append(each, a.Values[nameA][i]/value)
	}
	typical = quantile(each, 0.5)
	if a.Workload == stallReaders {
		typical = a.typical(nameA) / b.typical(nameB)
	}
	return typical, quantile(each, 0.25), quantile(each, 0.75)
}

// quantile interpolates between the two values that are nearest.
func quantile(values []float64, q float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	at := q * float64(len(sorted)-1)
	i := int(at)
	if i+1 == len(sorted) {
		return sorted[i]
	}
	return sorted[i] + (at-float64(i))*(sorted[i+1]-sorted[i])
}

// table returns the results in Markdown.
func (r *results) table() string {
	var t strings.Builder
	fmt.Fprintf(&t, "%s, %s, %s, %s.\n\n", r.Go, r.Processor,
		plural(r.Processors, "processor"), plural(r.Rounds, "round"))
	if r.Brief {
		t.WriteString("Measured briefly, to see that it works: these figures mean nothing.\n\n")
	}
	t.WriteString("| | " + nameOurs + " | " + nameXSync)
	for _, name := range compared() {
		t.WriteString(" | " + name + " ÷ " + nameXSync)
	}
	t.WriteString(" |\n|---" + strings.Repeat("|--:", 2+len(compared())) + "|\n")
	for _, row := range r.Rows {
		t.WriteString(row.line())
	}
	t.WriteString("\nRatios are medians of those of each round, with their quartiles in brackets. But for the stall by readers, " +
		"what stands before the brackets is the least of one by the least of the other.\n")
	for _, remark := range r.remarks() {
		t.WriteString("\n" + remark + "\n")
	}
	return t.String()
}

// compared are the implementations that have a ratio to x/sync.
func compared() (names []string) {
	for _, im := range implementations {
		if im.name != nameXSync {
			names = append(names, im.name)
		}
	}
	return names
}

func (row *row) line() string {
	var l strings.Builder
	l.WriteString("| " + title(row.Workload, row.Processors) + ": " + row.Unit)
	for _, name := range []string{nameOurs, nameXSync} {
		l.WriteString(" | ")
		if row.Values[name] == nil {
			l.WriteString("–")
		} else {
			l.WriteString(amount(row.typical(name), row.Unit, 3))
		}
	}
	for _, name := range compared() {
		l.WriteString(" | ")
		if row.Values[name] == nil {
			l.WriteString("–")
		} else {
			l.WriteString(spread(ratio(row, name, row, nameXSync)))
		}
	}
	return l.String() + " |\n"
}

// remarks are what the table's columns do not show.
func (r *results) remarks() (remarks []string) {
	if do := r.find(unjoinedDo, 0, nsPerCall); do != nil {
		remarks = append(remarks, fmt.Sprintf("An unjoined Do takes %s times what the floor takes.",
			spread(ratio(do, nameOurs, do, nameFloor))))
	}
	one, many := r.find(keysInFlight(1), 0, nsSameKey), r.find(keysInFlight(burstOfKeys), 0, nsSameKey)
	if one != nil && many != nil {
		remarks = append(remarks, fmt.Sprintf("A Do of one other key takes %[2]s times as long with %[1]s as with 1; %[3]s: %[4]s.",
			keysInFlight(burstOfKeys), spread(ratio(many, nameOurs, one, nameOurs)),
			nameXSync, spread(ratio(many, nameXSync, one, nameXSync))))
	}
	for _, im := range implementations {
		if slices.ContainsFunc(r.Rows, func(row *row) bool { return row.stale(im.name) }) {
			remarks = append(remarks, im.name+" executes fn for fewer callers than is possible unless some of them join "+
				"calls that have ended: its times with one key are not those of the same work.")
		}
	}
	return remarks
}

// stale reports whether an implementation has executed fn less than once for each
// time that all callers can have been answered. The half is for chance.
func (row *row) stale(name string) bool {
	return row.Unit == executionsPerCall && row.Values[name] != nil &&
		row.typical(name) < 0.5/float64(callersPerProcessor*row.Processors)
}

func spread(typical, lower, upper float64) string {
	if math.IsNaN(typical) {
		return "–"
	}
	median, from, to := digits(typical, 2), digits(lower, 2), digits(upper, 2)
	if from == median && to == median {
		return median
	}
	return fmt.Sprintf("%s (%s–%s)", median, from, to)
}

// amount shows n digits of a value, in a unit that suits its size.
func amount(value float64, unit string, n int) string {
	units, step := []string{""}, 0.0
	switch {
	case strings.HasPrefix(unit, "ns"):
		units, step = []string{" ns", " µs", " ms", " s"}, 1_000
	case strings.HasPrefix(unit, "bytes"):
		units, step = []string{" B", " KiB", " MiB", " GiB"}, 1_024
	}
	for math.Abs(value) >= step && len(units) > 1 {
		value /= step
		units = units[1:]
	}
	return digits(value, n) + units[0]
}

// digits shows n digits that count, and no exponent. Less than a ten-thousandth is
// nothing.
func digits(value float64, n int) string {
	if math.Abs(value) < 1e-4 {
		return "0"
	}
	_, exponent, _ := strings.Cut(strconv.FormatFloat(value, 'e', n-1, 64), "e")
	power, _ := strconv.Atoi(exponent)
	return strconv.FormatFloat(value, 'f', max(0, n-1-power), 64)
}

func plural(n int, of string) string {
	if n == 1 {
		return "1 " + of
	}
	return commas(n) + " " + of + "s"
}

// commas separates the thousands of n.
func commas(n int) string {
	if n < 1_000 {
		return strconv.Itoa(n)
	}
	return fmt.Sprintf("%s,%03d", commas(n/1_000), n%1_000)
}
