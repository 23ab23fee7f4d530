// Copyright 2026 The singleflight Authors.
// Use of this source code is governed by the BSD-style licence in LICENSE.

package main

import (
	"bytes"
	"image/color"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/font"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"
)

// A look is how an implementation is drawn. The colours are told apart also by
// those who are blind to some, and the shapes where there is no colour.
type look struct {
	color color.RGBA
	shape draw.GlyphDrawer
	width vg.Length
}

var looks = map[string]look{
	nameOurs:  {color.RGBA{0x00, 0x5b, 0xbb, 0xff}, draw.CircleGlyph{}, 2.2},
	nameXSync: {color.RGBA{0xd5, 0x5e, 0x00, 0xff}, draw.BoxGlyph{}, 1.5},
	"resenje": {color.RGBA{0x00, 0x8a, 0x63, 0xff}, draw.PyramidGlyph{}, 1},
	"go-zero": {color.RGBA{0x8a, 0x5a, 0x9e, 0xff}, draw.PlusGlyph{}, 1},
}

func (l look) line() draw.LineStyle {
	return draw.LineStyle{Color: l.color, Width: l.width}
}

func (l look) glyph() draw.GlyphStyle {
	return draw.GlyphStyle{Color: l.color, Shape: l.shape, Radius: 2 + l.width/2}
}

// A panel is one plot of the chart.
type panel struct {
	title, x string
	rows     []*row    // that it shows, from left to right
	at       []float64 // where
	ticks    plot.ConstantTicks
	joined   bool // by lines; and its scale is that of all such panels
}

// draw writes the chart to a file, in SVG. What was not measured is left out.
func (r *results) draw(file string) error {
	panels := [][]panel{
		{
			r.byProcessors("Own key for each goroutine", keysApart),
			r.byProcessors("The same 1,024 keys for all", keysSame),
			r.byProcessors("One key for all", oneKey),
		},
		{
			r.byInFlight("Do of another key, always the same", nsSameKey),
			r.byInFlight("Do of another key, 65,536 in turn", nsInTurn),
			r.stalls("The longest Do of another key"),
		},
	}
	plot.DefaultFont = font.Font{Typeface: "Liberation", Variant: "Sans"}
	canvas := vgsvg.New(675, 450) // points: 900 by 600 pixels
	whole := draw.New(canvas)
	whole.SetColor(color.White)
	whole.Fill(whole.Rectangle.Path())
	drawLegend(draw.Crop(whole, 10, -10, 425, -5))

	var plots [][]*plot.Plot
	for _, line := range panels {
		plots = append(plots, nil)
		for _, p := range line {
			plotted, err := p.plot(commonScale(panels))
			if err != nil {
				return err
			}
			plots[len(plots)-1] = append(plots[len(plots)-1], plotted)
		}
	}
	tiles := draw.Tiles{Rows: 2, Cols: 3, PadX: 14, PadY: 14, PadLeft: 6, PadRight: 10, PadBottom: 6}
	for i, line := range plot.Align(plots, tiles, draw.Crop(whole, 0, 0, 0, -30)) {
		for j, c := range line {
			plots[i][j].Draw(c)
		}
	}

	var svg bytes.Buffer
	if _, err := canvas.WriteTo(&svg); err != nil {
		return err
	}
	// Letters of Arial and Helvetica are as wide, and one of them is everywhere.
	const family = "font-family:Liberation Sans"
	portable := bytes.ReplaceAll(svg.Bytes(), []byte(family), []byte(family+",Arial,Helvetica,sans-serif"))
	return os.WriteFile(file, portable, 0o666)
}

func (r *results) byProcessors(title, workload string) panel {
	p := panel{title: title, x: "processors", joined: true}
	for _, row := range r.Rows {
		if row.Workload == workload {
			p.add(row, float64(row.Processors), strconv.Itoa(row.Processors))
		}
	}
	return p
}

func (r *results) byInFlight(title, unit string) panel {
	p := panel{title: title, x: "keys in flight", joined: true}
	for _, n := range append(slices.Clone(fewerKeys), burstOfKeys) {
		label := strings.NewReplacer(",000,000", "M", ",000", "k").Replace(commas(n))
		p.add(r.find(keysInFlight(n), 0, unit), float64(n), label)
	}
	return p
}

func (r *results) stalls(title string) panel {
	p := panel{title: title, x: "when a call with so many ends"}
	p.add(r.find(stallReaders, 0, nsLongest), 1, "200,000 readers")
	p.add(r.find(stallJoiners, 0, nsLongest), 2, "200,000 joiners")
	return p
}

func (p *panel) add(row *row, at float64, label string) {
	if row == nil {
		return
	}
	p.rows = append(p.rows, row)
	p.at = append(p.at, at)
	p.ticks = append(p.ticks, plot.Tick{Value: at, Label: label})
}

// values are all that the panel shows.
func (p panel) values() (values []float64) {
	for _, row := range p.rows {
		for name := range row.Values {
			values = append(values, row.typical(name))
		}
	}
	return values
}

// commonScale returns all values of the panels that share a scale.
func commonScale(panels [][]panel) (values []float64) {
	for _, line := range panels {
		for _, p := range line {
			if p.joined {
				values = append(values, p.values()...)
			}
		}
	}
	return values
}

// plot makes the plot, with a scale for the common values if it shares that.
func (p panel) plot(common []float64) (*plot.Plot, error) {
	plotted := plot.New()
	plotted.Title.Text = p.title
	plotted.Title.TextStyle.Font.Size = 10
	plotted.Title.Padding = 4
	plotted.X.Label.Text = p.x
	plotted.X.Label.TextStyle.Font.Size = 9
	plotted.X.Tick.Label.Font.Size = 8.5
	plotted.Y.Tick.Label.Font.Size = 8.5
	plotted.X.Tick.Marker = p.ticks
	if len(p.rows) == 0 {
		return plotted, nil
	}
	grid := plotter.NewGrid()
	grid.Vertical.Color = nil
	grid.Horizontal.Color = color.Gray{0xcc}
	plotted.Add(grid)
	for _, im := range slices.Backward(implementations) { // this library's is on top
		if err := p.addTo(plotted, im.name); err != nil {
			return nil, err
		}
	}
	values := p.values()
	if p.joined {
		values = common
		plotted.X.Scale = plot.LogScale{}
	} else {
		plotted.X.Min, plotted.X.Max = 0.5, 2.5
	}
	plotted.Y.Scale, plotted.Y.Tick.Marker = plot.LogScale{}, durations{}
	plotted.Y.Min, plotted.Y.Max = slices.Min(values)/1.3, slices.Max(values)*1.3
	return plotted, nil
}

// addTo draws what an implementation has in the panel.
func (p panel) addTo(plotted *plot.Plot, name string) error {
	style, ok := looks[name]
	var points plotter.XYs
	for i, row := range p.rows {
		if row.Values[name] != nil {
			points = append(points, plotter.XY{X: p.at[i], Y: row.typical(name)})
		}
	}
	if !ok || len(points) == 0 {
		return nil
	}
	line, glyphs, err := plotter.NewLinePoints(points)
	if err != nil {
		return err
	}
	line.LineStyle, glyphs.GlyphStyle = style.line(), style.glyph()
	if p.joined {
		plotted.Add(line)
	}
	plotted.Add(glyphs)
	return nil
}

// durations are the ticks of an axis of nanoseconds: one for every decade, and for
// 2 and 5 times it where there are few.
type durations struct{}

func (durations) Ticks(lowest, highest float64) (ticks []plot.Tick) {
	few := highest/lowest < 100
	for decade := math.Pow(10, math.Floor(math.Log10(lowest))); decade < highest; decade *= 10 {
		for _, times := range []float64{1, 2, 5} {
			value := times * decade
			if value < lowest || value > highest || times > 1 && !few {
				continue
			}
			ticks = append(ticks, plot.Tick{Value: value, Label: amount(value, "ns", 1)})
		}
	}
	return ticks
}

// drawLegend puts the implementations side by side.
func drawLegend(c draw.Canvas) {
	width := (c.Max.X - c.Min.X) / vg.Length(len(looks))
	x := c.Min.X
	for _, im := range implementations {
		style, ok := looks[im.name]
		if !ok {
			continue
		}
		legend := plot.NewLegend()
		legend.TextStyle.Font.Size = 11
		legend.ThumbnailWidth = 24
		legend.Left = true
		legend.Padding = 4
		legend.Add(im.name, thumbnail(style))
		legend.Draw(draw.Crop(c, x-c.Min.X, 0, 0, 0))
		x += width
	}
}

// A thumbnail shows a look in the legend.
type thumbnail look

func (t thumbnail) Thumbnail(c *draw.Canvas) {
	middle := c.Center()
	c.StrokeLine2(look(t).line(), c.Min.X, middle.Y, c.Max.X, middle.Y)
	c.DrawGlyph(look(t).glyph(), middle)
}
