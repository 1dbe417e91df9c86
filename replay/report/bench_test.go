package report

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"testing"
	"time"

	"github.com/enginery/enginery/replay"
)

// BenchmarkWrite writes the reports of a large run, each beside encoding/json, which writes the same data.
func BenchmarkWrite(b *testing.B) {
	r := large(reports(b).planted, 300, 100)
	for _, writer := range []struct {
		name  string
		write func(io.Writer, *replay.Report) error
	}{{"JSON", WriteJSON}, {"HTML", WriteHTML}, {"JUnit", WriteJUnit}, {"Text", WriteText}} {
		b.Run(writer.name, func(b *testing.B) {
			var peer time.Duration
			var size counter
			for b.Loop() {
				size = 0
				if err := writer.write(&size, r); err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				began := time.Now()
				if _, err := json.Marshal(r); err != nil {
					b.Fatal(err)
				}
				peer += time.Since(began)
				b.StartTimer()
			}
			b.ReportMetric(float64(size)/1e6, "MB")
			b.ReportMetric(float64(peer)/float64(b.Elapsed()), "x-encoding/json")
		})
	}
}

// large returns the report of a run with so many vats, each with so many times the spans, and with series that are as long as they get.
func large(of *replay.Report, vats, times int) *replay.Report {
	r := *of
	r.Vats = nil
	for i := range vats {
		v := of.Vats[i%len(of.Vats)]
		v.ID = fmt.Sprintf("v%d", i+1)
		v.Runs = slices.Clone(v.Runs)
		for j := range v.Runs {
			run := &v.Runs[j]
			run.Spans = slices.Repeat(run.Spans, times)
			s := &run.Series
			for _, column := range []*[]int64{&s.Position, &s.Deliveries, &s.Expected, &s.Got, &s.HeapCount, &s.Allocated} {
				*column = stretch(*column)
			}
			s.Seconds = stretch(s.Seconds)
		}
		r.Vats = append(r.Vats, v)
	}
	return &r
}

// stretch returns a column of a series that is repeated until it has as many points as there may be.
func stretch[T any](column []T) []T {
	if len(column) == 0 {
		return nil
	}
	return slices.Repeat(column, replay.MaxPoints/len(column)+1)[:replay.MaxPoints]
}

// counter counts what is written.
type counter int64

func (c *counter) Write(p []byte) (int, error) {
	*c += counter(len(p))
	return len(p), nil
}
