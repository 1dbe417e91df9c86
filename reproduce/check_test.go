package reproduce

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/enginery/enginery/internal/enginetest"
	"github.com/enginery/enginery/recipes"
	"github.com/enginery/enginery/release"
)

// small returns a version's recipe cut down to what compiles fast.
func small(t *testing.T, id string) *recipes.Recipe {
	t.Helper()
	r := enginetest.Recipe(t, id)
	target, ok := r.Target("linux/amd64")
	if !ok {
		t.Fatalf("%s is not built for linux/amd64", id)
	}
	r.Targets, r.Goals = []recipes.Target{target}, []string{recipes.Debug}
	return r
}

func TestBuildsAreIdentical(t *testing.T) {
	w := &release.Workshop{
		Store:         enginetest.Store(t),
		Layout:        filepath.Join(t.TempDir(), "oci"),
		ToolchainFrom: os.Getenv("ENGINERY_TOOLCHAIN_FROM"),
	}
	report, err := Check(t.Context(), w, small(t, "agoric-upgrade-16"))
	if err != nil {
		t.Fatal(err)
	}
	if !report.Identical() {
		t.Error(&DifferentError{Report: report})
	}
	for _, f := range facts(report.First, report.Second) {
		if same := f.First == f.Second; same != (f.Name == "kernel") {
			t.Errorf("%s is %q in the first environment and %q in the second", f.Name, f.First, f.Second)
		}
	}
}
