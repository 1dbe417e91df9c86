package report

import (
	"math"
	"strings"
	"testing"
)

// A long line is drawn in the room that there is, and keeps its peaks.
func TestPlotIsBounded(t *testing.T) {
	var l line
	for i := range 100_000 {
		y := 1000.0
		if i == 54_321 {
			y = 1e6
		}
		l.X, l.Y = append(l.X, float64(i)), append(l.Y, y)
	}
	for _, dots := range []bool{true, false} {
		p := newPlot("computrons", "", []line{l, {}}, 0, 99_999, nil, []int64{5, 6, 50_000}, dots)
		if len(p.Curves) != 1 || len(p.Curves[0].Path) > 12_000 {
			t.Fatalf("dots %v: %d curves, the first of %d bytes", dots, len(p.Curves), len(p.Curves[0].Path))
		}
		if top := " 10"; dots && !strings.Contains(p.Curves[0].Path, top+"h0") || !dots && !strings.Contains(p.Curves[0].Path, " 16.5") {
			t.Errorf("dots %v: the peak is not in %.300s…", dots, p.Curves[0].Path)
		}
		if strings.Count(p.Marks, "M") != 2 { // two of the three are in the same place
			t.Errorf("marks %s", p.Marks)
		}
	}
	if p := newPlot("nothing", "", []line{{}, {X: []float64{1}, Y: []float64{0}}}, 0, 1, nil, nil, true); p != nil {
		t.Errorf("a plot of nothing: %+v", p)
	}
}

func TestAxes(t *testing.T) {
	for _, test := range []struct{ min, max float64 }{{0, 1}, {0, 7}, {12, 745}, {5, 5}, {0, 1e9}, {0, 0.003}} {
		a, ticks := linear(test.min, test.max, 0, 100, short)
		if len(ticks) < 1 || len(ticks) > maxTicks+1 {
			t.Errorf("%v: %d ticks %v", test, len(ticks), ticks)
		}
		for _, tick := range ticks {
			if math.IsNaN(tick.At) || tick.At < 0 || tick.At > 100.01 {
				t.Errorf("%v: a tick at %v", test, tick.At)
			}
		}
		if a.at(test.min) != 0 || test.max > test.min && a.at(test.max) != 100 {
			t.Errorf("%v goes from %v to %v", test, a.at(test.min), a.at(test.max))
		}
	}
	a, ticks := logarithmic(2364, 37_863_347, 0, 100, short)
	if len(ticks) != 6 || ticks[0].Label != "1k" || ticks[5].Label != "100M" || a.at(1000) != 0 || a.at(1e8) != 100 {
		t.Errorf("ticks %v", ticks)
	}
}
