// Copyright 2026 The singleflight Authors.
// Use of this source code is governed by the BSD-style license in LICENSE.

// Command chart reads what the benchmarks printed from a file, and prints a chart
// of the medians, in SVG.
package main

import (
	"bytes"
	"cmp"
	"image/color"
	"log"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/font"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/plotutil"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"
)

// A panel shows the benchmarks whose names match a pattern.
type panel struct{ title, pattern, x string }

var panels = [][]panel{
	{
		{"Own key for each goroutine", `Parallel/keys=own/impl=(?<impl>\w+)-?(?<x>\d*)`, "processors"},
		{"One of 100,000 keys at random", `Parallel/keys=100000/impl=(?<impl>\w+)-?(?<x>\d*)`, "processors"},
		{"One key for all", `Parallel/keys=1/impl=(?<impl>\w+)-?(?<x>\d*)`, "processors"},
	},
	{
		{"Do of another key, always the same", `DoInFlight/inflight=(?<x>\d+)/keys=1/impl=(?<impl>\w+)\S*`, "keys in flight"},
		{"Do of another key, 65,536 in turn", `DoInFlight/inflight=(?<x>\d+)/keys=65536/impl=(?<impl>\w+)\S*`, "keys in flight"},
		{"The longest Do of another key", `Stall/by=(?<x>\w+)/impl=(?<impl>\w+)\S*`, "when a call with 200,000 of these ends"},
	},
}

var impls = []struct{ key, name string }{
	{"ours", "this library"}, {"xsync", "x/sync"}, {"resenje", "resenje.org"}, {"gozero", "go-zero"},
}

func main() {
	log.SetFlags(0)
	log.SetPrefix("chart: ")
	plot.DefaultFont = font.Font{Typeface: "Liberation", Variant: "Sans"}
	plotutil.DefaultColors = plotutil.DarkColors
	canvas := vgsvg.New(675, 450) // points: 900 by 600 pixels
	whole := draw.New(canvas)
	whole.SetColor(color.White)
	whole.Fill(whole.Rectangle.Path())

	results, err := os.ReadFile(os.Args[1])
	check(err)
	plots := make([][]*plot.Plot, len(panels))
	for i, row := range panels {
		for _, p := range row {
			plots[i] = append(plots[i], p.plot(string(results)))
		}
	}
	plots[0][0].Legend.Draw(draw.Crop(whole, 10, 0, 0, -4))
	tiles := draw.Tiles{Rows: 2, Cols: 3, PadX: 14, PadY: 14, PadLeft: 6, PadRight: 10, PadBottom: 6}
	aligned := plot.Align(plots, tiles, draw.Crop(whole, 0, 0, 0, -64))
	for i, row := range plots {
		for j, p := range row {
			p.Legend = plot.NewLegend() // one is enough
			p.Draw(aligned[i][j])
		}
	}
	var svg bytes.Buffer
	_, err = canvas.WriteTo(&svg)
	check(err)
	// Arial and Helvetica have letters of the same widths.
	const family = "font-family:Liberation Sans"
	_, err = os.Stdout.Write(bytes.ReplaceAll(svg.Bytes(), []byte(family), []byte(family+",Arial,Helvetica,sans-serif")))
	check(err)
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

func (p panel) plot(results string) *plot.Plot {
	medians, labels := p.medians(results)
	drawn := plot.New()
	drawn.Title.Text, drawn.X.Label.Text = p.title, p.x
	drawn.Title.TextStyle.Font.Size, drawn.X.Label.TextStyle.Font.Size = 10, 9
	drawn.X.Tick.Label.Font.Size, drawn.Y.Tick.Label.Font.Size = 9, 9
	drawn.Legend.Top, drawn.Legend.Left, drawn.Legend.ThumbnailWidth = true, true, 24
	if len(labels) == 0 {
		return drawn // this was not measured
	}
	grid := plotter.NewGrid()
	grid.Vertical.Color = nil
	drawn.Add(grid)
	var lines []any
	for _, im := range impls {
		if medians[im.key] != nil {
			lines = append(lines, im.name, medians[im.key])
		}
	}
	if strings.HasPrefix(p.pattern, "Stall") {
		check(plotutil.AddScatters(drawn, lines...))
	} else {
		check(plotutil.AddLinePoints(drawn, lines...))
	}
	drawn.NominalX(labels...)
	drawn.X.Min, drawn.X.Max = -0.3, float64(len(labels))-0.7
	drawn.Y.Scale, drawn.Y.Tick.Marker = plot.LogScale{}, plot.TickerFunc(durations)
	return drawn
}

// durations are the ticks of an axis of seconds.
func durations(lowest, highest float64) []plot.Tick {
	ticks := plot.LogTicks{}.Ticks(lowest, highest)
	for i, tick := range ticks {
		if tick.Label != "" {
			ticks[i].Label = time.Duration(tick.Value*1e9 + 0.5).String()
		}
	}
	return ticks
}

// medians returns the medians of each implementation, at the indexes of labels.
func (p panel) medians(results string) (medians map[string]plotter.XYs, labels []string) {
	re := regexp.MustCompile(`(?m)^Benchmark` + p.pattern + `\s+\d+\s+(?<ns>\S+)`)
	samples := make(map[[2]string][]float64)
	for _, match := range re.FindAllStringSubmatch(results, -1) {
		ns, err := strconv.ParseFloat(match[re.SubexpIndex("ns")], 64)
		check(err)
		label := cmp.Or(match[re.SubexpIndex("x")], "1") // processor, which is no part of the name
		name := [2]string{match[re.SubexpIndex("impl")], label}
		samples[name] = append(samples[name], ns)
		if !slices.Contains(labels, label) {
			labels = append(labels, label)
		}
	}
	medians = make(map[string]plotter.XYs)
	for i, label := range labels {
		for _, im := range impls {
			if s := samples[[2]string{im.key, label}]; s != nil {
				slices.Sort(s)
				medians[im.key] = append(medians[im.key], plotter.XY{X: float64(i), Y: s[len(s)/2] / 1e9})
			}
		}
	}
	return medians, labels
}
