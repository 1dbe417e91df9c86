package sandbox

import (
	"os/exec"
	"testing"
)

// BenchmarkRun is a whole action with a command that does nothing; BenchmarkExec is the command alone.
func BenchmarkRun(b *testing.B) {
	s := testSpec(b)
	for b.Loop() {
		if err := Run(b.Context(), s); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkExec(b *testing.B) {
	for b.Loop() {
		if err := exec.Command(probe, "true").Run(); err != nil {
			b.Fatal(err)
		}
	}
}
