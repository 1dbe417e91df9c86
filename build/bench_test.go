package build_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/enginery/enginery/build"
	"github.com/enginery/enginery/internal/enginetest"
	"github.com/enginery/enginery/recipes"
)

// BenchmarkColdCompile compiles a release worker from its sources, in the sandbox and by a bare make on the host with the same command
// line, alternately, and reports the ratio of their times. The host's gcc is called by the name of the toolchain's.
func BenchmarkColdCompile(b *testing.B) {
	s := enginetest.Store(b)
	r := enginetest.Recipe(b, "agoric-upgrade-16")
	r.Targets, r.Goals = r.Targets[:1], []string{recipes.Release}
	if err := enginetest.Fetch(s)(b.Context(), r); err != nil {
		b.Fatal(err)
	}
	actions, err := build.Plan(r)
	if err != nil {
		b.Fatal(err)
	}
	a := actions[0]
	for d, blob := range a.Blobs() {
		if got, err := s.PutBytes(b.Context(), blob); err != nil || got != d {
			b.Fatal(got, err)
		}
	}
	ex := enginetest.Executor(b, s)
	if _, err := ex.Toolchain(b.Context(), a.Toolchain); err != nil {
		b.Fatal(err)
	}
	var inside, outside float64
	for b.Loop() {
		start := now()
		if _, err := ex.Execute(b.Context(), a); err != nil {
			b.Fatal(err)
		}
		inside += now() - start

		start = now()
		work := filepath.Join(b.TempDir(), "work")
		if err := s.Checkout(b.Context(), a.Inputs, work); err != nil {
			b.Fatal(err)
		}
		args := append(r.MakeArgs(r.Targets[0], recipes.Release, work)[1:], fmt.Sprintf("-j%d", runtime.NumCPU()))
		cmd := exec.Command("make", args...)
		cmd.Dir = filepath.Join(work, r.Make.Directory)
		cmd.Env = append(os.Environ(), "MAKEFLAGS=")
		if out, err := cmd.CombinedOutput(); err != nil {
			b.Fatalf("make on the host: %v\n%s", err, out)
		}
		outside += now() - start
	}
	b.ReportMetric(inside/float64(b.N), "sandbox-s/op")
	b.ReportMetric(outside/float64(b.N), "host-s/op")
	b.ReportMetric(inside/outside, "sandbox/host")
}

func now() float64 { return float64(time.Now().UnixNano()) / 1e9 }
