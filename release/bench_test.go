package release_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/enginery/enginery/internal/enginetest"
	"github.com/enginery/enginery/release"
)

// BenchmarkNothingToDo builds a version that is built already, from the start of a process to its end, and compares that with a process
// that does nothing. It is meant to take less than 150 ms.
func BenchmarkNothingToDo(b *testing.B) {
	w := &release.Workshop{Store: enginetest.Store(b), Layout: filepath.Join(b.TempDir(), "oci"), ToolchainFrom: os.Getenv("ENGINERY_TOOLCHAIN_FROM")}
	if err := w.BuildAndCheck(b.Context(), new(bytes.Buffer), false, "agoric-upgrade-16"); err != nil {
		b.Fatal(err)
	}
	run := func(what string) time.Duration {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), what, "TEST_LAYOUT="+w.Layout)
		start := time.Now()
		if out, err := cmd.CombinedOutput(); err != nil {
			b.Fatalf("%v\n%s", err, out)
		}
		return time.Since(start)
	}
	var build, nothing time.Duration
	for b.Loop() {
		build += run("TEST_REBUILD=" + w.Store.Dir())
		nothing += run("TEST_NOTHING=1")
	}
	b.ReportMetric(float64(build.Milliseconds())/float64(b.N), "build-ms/op")
	b.ReportMetric(float64(nothing.Milliseconds())/float64(b.N), "empty-process-ms/op")
}
