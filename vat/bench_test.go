package vat

import (
	"encoding/json"
	"fmt"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/enginery/enginery/internal/swingsettest"
)

// BenchmarkCrank measures cranks of a vat, each committed to disk, beside those of the real kernel with the same worker, vat, messages and
// intervals of heap snapshots. The last of three numbers is the ratio.
func BenchmarkCrank(b *testing.B) {
	const cranks = 400
	e := engine(b, newer, "linux/amd64")
	scripts := swingsettest.Scripts(b)
	var ours, theirs float64
	for b.Loop() {
		cmd := exec.CommandContext(b.Context(), "node", "handover.js", filepath.Join(b.TempDir(), "store"), "--worker="+e.Worker.Path,
			"--interval=200", fmt.Sprintf("--measure=%d", cranks), "counter.count")
		cmd.Dir, cmd.Stderr = scripts, b.Output()
		out, err := cmd.Output()
		var seconds float64
		if err == nil {
			err = json.Unmarshal(out, &seconds)
		}
		if err != nil {
			b.Fatalf("measuring the kernel: %v: %q", err, out)
		}
		theirs += cranks / seconds

		s, v := start(b, "worker", Incarnation{Parameters: parameters(`{"name":"counter"}`)}, func(o *Options) { o.Engines = only(e) })
		call(b, s, v, "count", "[]")
		begin := time.Now()
		for range cranks {
			call(b, s, v, "count", "[]")
		}
		ours += cranks / time.Since(begin).Seconds()
	}
	ours, theirs = ours/float64(b.N), theirs/float64(b.N)
	b.ReportMetric(ours, "cranks/s")
	b.ReportMetric(theirs, "kernel-cranks/s")
	b.ReportMetric(ours/theirs, "x-cranks/s")
	b.ReportMetric(0, "ns/op") // it says nothing
}
