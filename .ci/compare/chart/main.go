// Copyright 2026 The singleflight Authors.
// Use of this source code is governed by the BSD-style license in LICENSE.

// Command chart reads what the benchmarks printed from a file, and prints a chart
// of the medians, in SVG.
package main

import (
	"bytes"
	"image/color"
	"log"
	"os"
	"slices"
	"time"

	"golang.org/x/perf/benchfmt"
	"golang.org/x/perf/benchmath"
	"golang.org/x/perf/benchproc"
	"gonum.org/v1/plot"
	"gonum.org/v1/plot/font"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/plotutil"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"
)

// A panel shows the results that match a filter, by one key of their names.
type panel struct{ title, filter, key, x string }

var panels = [][]panel{
	{
		{"Own key for each goroutine", ".name:Parallel /keys:own", "/gomaxprocs", "processors"},
		{"The same 1,024 keys for all", ".name:Parallel /keys:1024", "/gomaxprocs", "processors"},
		{"One key for all", ".name:Parallel /keys:1", "/gomaxprocs", "processors"},
	},
	{
		{"Do of another key, always the same", ".name:DoInFlight /keys:1", "/inflight", "keys in flight"},
		{"Do of another key, 65,536 in turn", ".name:DoInFlight /keys:65536", "/inflight", "keys in flight"},
		{"The longest Do of another key", ".name:Stall", "/by", "when a call with 200,000 of these ends"},
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

	var plots [][]*plot.Plot
	for _, row := range panels {
		plots = append(plots, nil)
		for _, p := range row {
			plots[len(plots)-1] = append(plots[len(plots)-1], p.plot(os.Args[1]))
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
	_, err := canvas.WriteTo(&svg)
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

func (p panel) plot(file string) *plot.Plot {
	medians, labels := p.medians(file)
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
	if p.key == "/by" {
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
func (p panel) medians(file string) (medians map[string]plotter.XYs, labels []string) {
	filter, err := benchproc.NewFilter(p.filter)
	check(err)
	names, err := new(benchproc.ProjectionParser).Parse("/impl,"+p.key, filter)
	check(err)
	impl, x := names.Fields()[0], names.Fields()[1]
	samples := make(map[benchproc.Key][]float64)
	files := benchfmt.Files{Paths: []string{file}}
	for files.Scan() {
		result, ok := files.Result().(*benchfmt.Result)
		if !ok {
			continue
		}
		if ok, _ := filter.Apply(result); ok {
			name := names.Project(result)
			samples[name] = append(samples[name], result.Values[0].Value)
		}
	}
	check(files.Err())

	var keys []benchproc.Key
	for name := range samples {
		keys = append(keys, name)
	}
	benchproc.SortKeys(keys) // as they were first seen
	medians = make(map[string]plotter.XYs)
	for _, name := range keys {
		label := name.Get(x)
		if label == "" {
			label = "1" // processor, which is no part of the name
		}
		if !slices.Contains(labels, label) {
			labels = append(labels, label)
		}
		sample := benchmath.NewSample(samples[name], &benchmath.DefaultThresholds)
		median := benchmath.AssumeNothing.Summary(sample, 0.95).Center
		at := float64(slices.Index(labels, label))
		medians[name.Get(impl)] = append(medians[name.Get(impl)], plotter.XY{X: at, Y: median})
	}
	return medians, labels
}
