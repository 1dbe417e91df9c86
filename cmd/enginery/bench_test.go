package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/enginery/enginery/internal/tooltest"
)

// BenchmarkStart starts enginery for what reads little or nothing, and crane for its version. The figures are medians.
func BenchmarkStart(b *testing.B) {
	w := makeWorld(b)
	home := b.TempDir()
	w.node(b, home, "oci:"+w.signed)
	if status, out := run(b.Context(), b, home, "prefetch"); status != 0 {
		b.Fatalf("status %d\n%s", status, out)
	}
	program := filepath.Join(b.TempDir(), "enginery")
	build := exec.Command("go", "build", "-trimpath", "-o", program, ".") // as mage install does it
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		b.Fatalf("%v\n%s", err, out)
	}
	commands := []struct {
		unit string
		args []string
	}{
		{"version-ms", []string{program, "version"}},
		{"status-ms", []string{program, "status"}},
		{"complete-ms", []string{program, "__complete", "fetch", ""}},
		{"fetch-ms", []string{program, "fetch", "current"}}, // which is there
		{"crane-ms", []string{tooltest.Install(b, tooltest.Crane), "version"}},
	}
	took := make([][]time.Duration, len(commands))
	for b.Loop() {
		for range 10 {
			for i, c := range commands {
				cmd := exec.Command(c.args[0], c.args[1:]...)
				cmd.Env = append(os.Environ(), "ENGINERY_HOME="+home)
				begin := time.Now()
				if out, err := cmd.CombinedOutput(); err != nil {
					b.Fatalf("%s: %v\n%s", c.args, err, out)
				}
				took[i] = append(took[i], time.Since(begin))
			}
		}
	}
	for i, c := range commands {
		slices.Sort(took[i])
		b.ReportMetric(float64(took[i][len(took[i])/2])/1e6, c.unit)
	}
	b.ReportMetric(0, "ns/op")
}
