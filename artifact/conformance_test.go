package artifact_test

import (
	"os"
	"testing"

	"github.com/enginery/enginery/artifact"
	"github.com/enginery/enginery/build"
	"github.com/enginery/enginery/internal/enginetest"
	bundles "github.com/enginery/enginery/supervisor-bundles"
)

func TestTry(t *testing.T) {
	s := enginetest.Store(t)
	r := enginetest.Recipe(t, "agoric-upgrade-16")
	outputs, err := build.Engines(t.Context(), s, enginetest.Executor(t, s), enginetest.Fetch(s), r)
	if err != nil {
		t.Fatal(err)
	}
	if err := bundles.Fetch(t.Context(), s, r.Bundles); err != nil {
		t.Fatal(err)
	}
	a, err := artifact.Pack(t.Context(), s, r, outputs[r.ID])
	if err != nil {
		t.Fatal(err)
	}
	os.RemoveAll("/tmp/trylayout")
	if err := a.WriteLayout(t.Context(), "/tmp/trylayout"); err != nil {
		t.Fatal(err)
	}
}
