package report

import (
	"fmt"
	"html/template"
	"math"
	"strconv"
	"strings"
)

// Plots are drawn in a box of this many units, which are CSS pixels where there is room.
const (
	plotWidth, plotHeight   = 420, 210
	plotLeft, plotRight     = 46, 10
	plotTop, plotBottom     = 10, 30
	innerRight, innerBottom = plotWidth - plotRight, plotHeight - plotBottom
	innerWidth, innerHeight = innerRight - plotLeft, innerBottom - plotTop
	maxTicks                = 5
	maxBoundaries           = 60
)

// line is what one version shows, by position in the transcript.
type line struct {
	X, Y []float64
}

// plot is a plot, laid out.
type plot struct {
	Title, Unit string
	Dots        bool
	Curves      []curve
	XTicks      []tick
	YTicks      []tick
	Spans       string // path of the borders of spans
	Marks       string // path of marks where something differs
}

type curve struct {
	Series int // index of its colour
	Path   string
}

type tick struct {
	At    float64 // X or Y
	Label string
}

// axis maps values to units.
type axis struct {
	min, max float64
	from, to float64
	log      bool
}

func (a axis) at(v float64) float64 {
	if a.log {
		v = math.Log10(math.Max(v, 1))
	}
	if a.max == a.min {
		return a.from
	}
	return a.from + (v-a.min)/(a.max-a.min)*(a.to-a.from)
}

// linear returns an axis from 0, or from the least value if that is asked for, with ticks at round numbers.
func linear(min, max, from, to float64, format func(float64) string) (axis, []tick) {
	if max <= min {
		max = min + 1
	}
	step := math.Pow(10, math.Floor(math.Log10((max-min)/maxTicks)))
	for _, by := range []float64{1, 2, 5, 10} {
		if (max-min)/(step*by) <= maxTicks {
			step *= by
			break
		}
	}
	a := axis{min: min, max: max, from: from, to: to}
	var ticks []tick
	for i := math.Ceil(min / step); i*step <= max*(1+1e-9); i++ {
		ticks = append(ticks, tick{a.at(i * step), format(i * step)})
	}
	return a, ticks
}

// logarithmic returns an axis over whole powers of ten.
func logarithmic(min, max, from, to float64, format func(float64) string) (axis, []tick) {
	a := axis{min: math.Floor(math.Log10(math.Max(min, 1))), max: math.Ceil(math.Log10(math.Max(max, 1))), from: from, to: to, log: true}
	if a.max == a.min {
		a.max++
	}
	var ticks []tick
	for e := a.min; e <= a.max; e++ {
		v := math.Pow(10, e)
		ticks = append(ticks, tick{a.at(v), format(v)})
	}
	return a, ticks
}

// short writes a number in at most five characters: 36M, 1.5k.
func short(v float64) string {
	for _, unit := range []struct {
		of   float64
		name string
	}{{1e9, "G"}, {1e6, "M"}, {1e3, "k"}} {
		if math.Abs(v) >= unit.of {
			return strconv.FormatFloat(v/unit.of, 'g', 3, 64) + unit.name
		}
	}
	return strconv.FormatFloat(v, 'g', 3, 64)
}

// svg draws the plot.
func (p *plot) svg() template.HTML {
	var b strings.Builder
	fmt.Fprintf(&b, `<svg viewBox="0 0 %d %d" role="img" aria-label="%s">`, plotWidth, plotHeight, template.HTMLEscapeString(p.Title))
	for _, t := range p.YTicks {
		y := coordinate(t.At)
		fmt.Fprintf(&b, `<path class="grid" d="M%d %sH%d"/><text x="%d" y="%s" text-anchor="end" dominant-baseline="middle">%s</text>`, plotLeft, y, innerRight, plotLeft-6, y, t.Label)
	}
	for _, t := range p.XTicks {
		fmt.Fprintf(&b, `<text x="%s" y="%d" text-anchor="middle">%s</text>`, coordinate(t.At), innerBottom+16, t.Label)
	}
	fmt.Fprintf(&b, `<text x="%d" y="%d" text-anchor="end">position in the transcript</text>`, innerRight, plotHeight-2)
	if p.Spans != "" {
		fmt.Fprintf(&b, `<path class="border" d="%s"/>`, p.Spans)
	}
	class := "curve"
	if p.Dots {
		class = "dots"
	}
	for _, c := range p.Curves {
		alone := ""
		if len(p.Curves) == 1 {
			alone = " alone"
		}
		fmt.Fprintf(&b, `<path class="%s c%d%s" d="%s"/>`, class, min(c.Series, 3), alone, c.Path)
	}
	if p.Marks != "" {
		fmt.Fprintf(&b, `<path class="mark" d="%s"/>`, p.Marks)
	}
	b.WriteString("</svg>")
	return template.HTML(b.String()) // of numbers and words of our own
}

// newPlot lays a plot out. Lines may be empty. Starts are those of spans, marks are where something differs.
func newPlot(title, unit string, lines []line, first, last int64, starts, marks []int64, dots bool) *plot {
	p := &plot{Title: title, Unit: unit, Dots: dots}
	least, most := math.Inf(1), 0.0
	for _, l := range lines {
		for _, y := range l.Y {
			if y > 0 {
				least = math.Min(least, y)
			}
			most = math.Max(most, y)
		}
	}
	if math.IsInf(least, 1) {
		return nil
	}
	x, xTicks := linear(float64(first), float64(last), plotLeft, innerRight, func(v float64) string { return strconv.FormatFloat(v, 'f', -1, 64) })
	var y axis
	if dots {
		y, p.YTicks = logarithmic(least, most, innerBottom, plotTop, short)
	} else {
		y, p.YTicks = linear(0, most*1.04, innerBottom, plotTop, short)
	}
	p.XTicks = xTicks
	for i, l := range lines {
		path := curvePath
		if dots {
			path = dotsPath
		}
		if d := path(l, x, y); d != "" {
			p.Curves = append(p.Curves, curve{i, d})
		}
	}
	if len(starts) <= maxBoundaries {
		for _, s := range starts {
			if s > first {
				p.Spans += "M" + coordinate(x.at(float64(s))) + " " + strconv.Itoa(plotTop) + "V" + strconv.Itoa(innerBottom)
			}
		}
	}
	was := ""
	for _, m := range marks {
		if at := coordinate(x.at(float64(m))); at != was {
			p.Marks += "M" + at + " " + strconv.Itoa(innerBottom) + "v-7"
			was = at
		}
	}
	return p
}

// dotsPath draws dots, one for all that fall on the same place.
func dotsPath(l line, x, y axis) string {
	var b strings.Builder
	drawn := make(map[[2]int]bool)
	for i := range l.X {
		at := [2]int{int(math.Round(x.at(l.X[i]))), int(math.Round(y.at(l.Y[i])))}
		if l.Y[i] > 0 && !drawn[at] {
			drawn[at] = true
			fmt.Fprintf(&b, "M%d %dh0", at[0], at[1])
		}
	}
	return b.String()
}

// curvePath draws a curve: through the highest and the lowest of all points that have no room beside each other.
func curvePath(l line, x, y axis) string {
	var b strings.Builder
	draw := func(i int) {
		command := "L"
		if b.Len() == 0 {
			command = "M"
		}
		b.WriteString(command + coordinate(x.at(l.X[i])) + " " + coordinate(y.at(l.Y[i])))
	}
	for i := 0; i < len(l.X); {
		low, high, end := i, i, i
		for ; end < len(l.X) && x.at(l.X[end]) < x.at(l.X[i])+1; end++ {
			if l.Y[end] < l.Y[low] {
				low = end
			}
			if l.Y[end] > l.Y[high] {
				high = end
			}
		}
		if draw(min(low, high)); low != high {
			draw(max(low, high))
		}
		i = end
	}
	return b.String()
}

// coordinate writes a coordinate.
func coordinate(v float64) string { return strconv.FormatFloat(math.Round(v*10)/10, 'f', -1, 64) }
