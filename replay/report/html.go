package report

import (
	_ "embed"
	"fmt"
	"html/template"
	"io"
	"strings"

	"github.com/dustin/go-humanize"

	"github.com/enginery/enginery/replay"
)

//go:embed page.html
var pageText string

var pageTemplate = template.Must(template.New("report").Funcs(template.FuncMap{
	"comma":      func(n int64) string { return humanize.Comma(n) },
	"count":      count[int],
	"count64":    count[int64],
	"ratio":      func(c replay.Computron) string { return ratio(c.Got, c.Expected) },
	"size":       size,
	"short":      func(n int64) string { return short(float64(n)) },
	"duration":   duration,
	"dimensions": dimensions,
	"describe":   describe,
	"what":       what,
	"place":      place,
	"plain":      func(v any) string { return words(fmt.Sprint(v)) },
	"name":       name,
	"hash":       func(s string) string { return s[:min(len(s), 12)] },
	"digest":     func(s string) string { return s[:min(len(s), 19)] + "…" },
	"from":       from,
	"class":      class,
	"series":     func(i int) int { return min(i, 3) },
	"marked":     func(ps []*plot) bool { return len(ps) > 0 && ps[0].Marks != "" },
	"svg":        (*plot).svg,
	"op":         func(op string) string { return map[string]string{"-": "minus", "+": "plus", " ": "both"}[op] },
}).Parse(pageText))

// WriteHTML writes a report for people: one page that needs nothing else.
func WriteHTML(w io.Writer, r *replay.Report) error {
	return pageTemplate.Execute(w, newPage(r))
}

// A vat's differences are shown up to this many of a dimension. Of a vat with more than so many spans only those are listed that are not as
// recorded, up to this many. JSON has them all.
const (
	maxShown = 5
	maxSpans = 60
)

// page is a report as the page shows it.
type page struct {
	*replay.Report
	Verdict
	Columns []columnView
	Rows    []rowView
	Kinds   []string // of plots' lines

	Spans, Deliveries, Differences int64 // of all columns
}

type columnView struct {
	replay.Column
	replay.Totals
	Heading, Word, Class, Rest string
}

type rowView struct {
	replay.Vat
	Cells []cell
	Plots []*plot
	Class *replay.Classified
}

type cell struct {
	*replay.VatRun
	Heading, Word, Class, Rest string
	As                         string // heading of an earlier cell with the same differences
	Shown                      []difference
	Hidden                     int64 // differences that are not shown
	Reasons                    []replay.Span
	Listed                     []spanView
	Unlisted                   int
}

type difference struct {
	replay.Difference
	Lines  []diffLine
	Change string // of a number
}

type spanView struct {
	replay.Span
	Word, Class string
}

func newPage(r *replay.Report) *page {
	p := &page{Report: r, Verdict: VerdictOf(r)}
	for i := range r.Runs {
		c := columnView{Column: r.Runs[i], Totals: r.Totals(i), Heading: column(r, i)}
		c.Word, c.Class = verdict(c.Totals, r.Passes)
		c.Rest = rest(c.Totals)
		p.Columns = append(p.Columns, c)
		p.Spans += int64(spans(c.Totals))
		p.Deliveries += c.Deliveries
		for _, n := range c.Totals.Differences {
			p.Differences += n
		}
		p.Kinds = append(p.Kinds, c.Heading)
	}
	if len(p.Kinds) == 1 {
		p.Kinds = []string{"recorded", p.Kinds[0]}
	}
	classes := make(map[string]*replay.Classified)
	if r.Classification != nil {
		for i := range r.Classification.Vats {
			classes[r.Classification.Vats[i].Vat] = &r.Classification.Vats[i]
		}
	}
	for _, v := range r.Vats {
		row := rowView{Vat: v, Class: classes[v.ID], Plots: plots(v)}
		for i := range v.Runs {
			c := newCell(r, &v.Runs[i], i)
			for j := range i {
				if len(c.Shown) > 0 && c.As == "" && differencesOf(v.Runs[i]) == differencesOf(v.Runs[j]) {
					c.As = row.Cells[j].Heading
				}
			}
			row.Cells = append(row.Cells, c)
		}
		p.Rows = append(p.Rows, row)
	}
	return p
}

func newCell(r *replay.Report, v *replay.VatRun, run int) cell {
	c := cell{VatRun: v, Heading: column(r, run), Rest: rest(v.Totals)}
	c.Word, c.Class = verdict(v.Totals, r.Passes)
	shown := make(map[replay.Dimension]int)
	for _, s := range v.Spans {
		if s.Outcome != replay.Replayed && (len(c.Reasons) == 0 || c.Reasons[len(c.Reasons)-1].Reason != s.Reason) && len(c.Reasons) < maxShown {
			c.Reasons = append(c.Reasons, s)
		}
		for _, d := range s.Listed {
			if shown[d.Dimension]++; shown[d.Dimension] <= maxShown {
				c.Shown = append(c.Shown, newDifference(d))
			}
		}
		asRecorded := s.Outcome == replay.Replayed && s.Level == replay.Identical
		if len(c.Listed) < maxSpans && (len(v.Spans) <= maxSpans || !asRecorded) {
			one := replay.Totals{Level: s.Level, Count: map[replay.Outcome]int{s.Outcome: 1}}
			view := spanView{Span: s}
			if view.Word, view.Class = verdict(one, r.Passes); s.Outcome != replay.Replayed {
				view.Word = string(s.Outcome)
			}
			c.Listed = append(c.Listed, view)
		}
	}
	c.Unlisted = len(v.Spans) - len(c.Listed)
	for _, n := range v.Differences {
		c.Hidden += n
	}
	c.Hidden -= int64(len(c.Shown))
	return c
}

func newDifference(d replay.Difference) difference {
	v := difference{Difference: d}
	var expected, got int64
	if d.Dimension == replay.Computrons {
		if n, err := fmt.Sscan(d.Expected+" "+d.Got, &expected, &got); n == 2 && err == nil {
			v.Change = changed(expected, got)
		}
	}
	v.Lines = diffOf(d)
	return v
}

// plots draws a vat's computrons, heap and time.
func plots(v replay.Vat) []*plot {
	var computrons, heap, seconds []line
	var starts, marks []int64
	first, last := int64(-1), int64(0)
	for i := range v.Runs {
		s := &v.Runs[i].Series
		n := len(s.Position)
		l, h, t, recorded := line{}, line{}, line{}, line{}
		spent := 0.0
		for j := range n {
			x := float64(s.Position[j])
			if first < 0 {
				first = s.Position[j]
			}
			first, last = min(first, s.Position[j]), max(last, s.Position[j])
			each := float64(max(1, s.Deliveries[j]))
			l.X, l.Y = append(l.X, x), append(l.Y, float64(s.Got[j])/each)
			recorded.X, recorded.Y = append(recorded.X, x), append(recorded.Y, float64(s.Expected[j])/each)
			if s.HeapCount[j] > 0 {
				h.X, h.Y = append(h.X, x), append(h.Y, float64(s.HeapCount[j]))
			}
			if j < len(s.Seconds) {
				spent += s.Seconds[j]
				t.X, t.Y = append(t.X, x), append(t.Y, spent)
			}
		}
		if len(v.Runs) == 1 { // the second colour is the version's
			computrons = append(computrons, recorded)
			heap, seconds = append(heap, line{}), append(seconds, line{})
		}
		computrons, heap, seconds = append(computrons, l), append(heap, h), append(seconds, t)
		for _, span := range v.Runs[i].Spans {
			if i == 0 {
				starts = append(starts, span.Start)
			}
			for _, d := range span.Listed {
				marks = append(marks, d.Position)
			}
		}
	}
	if first < 0 {
		return nil
	}
	var drawn []*plot
	for _, p := range []*plot{
		newPlot("Computrons per delivery", "", computrons, first, last, starts, marks, true),
		newPlot("Heap", "slots", heap, first, last, starts, marks, false),
		newPlot("Time", "seconds, summed up", seconds, first, last, starts, marks, false),
	} {
		if p != nil {
			drawn = append(drawn, p)
		}
	}
	return drawn
}

// from writes what a span was started from.
func from(s string) string {
	if hash, ok := strings.CutPrefix(s, "snapshot "); ok {
		return "snapshot " + hash[:min(len(hash), 12)]
	}
	return s
}

// class writes what is to become of a vat.
func class(c replay.Class) template.HTML {
	switch c {
	case replay.Resume:
		return `<span class="badge good">can resume</span>`
	case replay.Upgrade:
		return `<span class="badge fair">must be upgraded</span>`
	case replay.Stay:
		return `<span class="badge bad">stays</span>`
	}
	return template.HTML(template.HTMLEscapeString(string(c)))
}
