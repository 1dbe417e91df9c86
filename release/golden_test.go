package release

import (
	"bytes"
	"encoding/json"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/enginery/enginery/internal/enginetest"
	"github.com/enginery/enginery/internal/exit"
	"github.com/enginery/enginery/internal/strict"
	"github.com/enginery/enginery/recipes"
)

// examined builds the release workers of a version, whose recipe has the golden values of two vectors only, to be quick.
func examined(t *testing.T) (*Workshop, *Version) {
	t.Helper()
	w := &Workshop{Store: enginetest.Store(t), Layout: filepath.Join(t.TempDir(), "oci"), ToolchainFrom: os.Getenv("ENGINERY_TOOLCHAIN_FROM")}
	r := enginetest.Recipe(t, "agoric-upgrade-16")
	r.ID = "examined"
	r.Goals = []string{recipes.Release}
	r.Golden = map[string]map[string]map[string]recipes.Observation{recipes.Release: {
		"fresh":    r.Golden[recipes.Release]["fresh"],
		"metering": r.Golden[recipes.Release]["metering"],
	}}
	if err := w.Sources().Fetch(t.Context(), r.Pin); err != nil { // so that they are at hand, even for what was built before
		t.Fatal(err)
	}
	versions, err := w.Build(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	return w, versions[0]
}

func TestReportGolden(t *testing.T) {
	w, v := examined(t)
	var out bytes.Buffer
	if err := w.reportGolden(t.Context(), &out, false, []*Version{v}); err != nil {
		t.Fatal(err)
	}
	if want := "examined: 16 golden values on 2 workers, all as expected\n"; out.String() != want {
		t.Errorf("printed %q, want %q", &out, want)
	}

	details := v.Recipe.Golden[recipes.Release]["metering"]
	wrong := details["details"]
	wrong.Compute++
	details["details"] = wrong
	for _, asJSON := range []bool{false, true} {
		out.Reset()
		err := w.reportGolden(t.Context(), &out, asJSON, []*Version{v})
		var missed *GoldenError
		if !errors.As(err, &missed) || Status(err) != exit.Different || len(missed.Missed) != 2 {
			t.Fatalf("a wrong value gave %v (status %d), want one missed value on each platform and status %d", err, Status(err), exit.Different)
		}
		for _, want := range []string{"examined misses 2 golden values", "linux/amd64 release, metering details: expected 1380186 computrons", "linux/arm64 release", "found 1380185 computrons"} {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("the error lacks %q:\n%v", want, err)
			}
		}
	}
	var results []GoldenResult
	if err := json.Unmarshal(out.Bytes(), &results); err != nil {
		t.Fatal(err)
	}
	failed := slices.DeleteFunc(slices.Clone(results), func(r GoldenResult) bool { return r.OK })
	if len(results) != 16 || len(failed) != 2 || failed[0].Version != "examined" || failed[0].Label != "details" {
		t.Errorf("the JSON has %d results, of which failed %+v; want 16, and details on two platforms", len(results), failed)
	}
}

func TestObserveGolden(t *testing.T) {
	w, v := examined(t)
	vectors := maps.Clone(v.Recipe.Vectors)
	maps.DeleteFunc(vectors, func(name string, _ *recipes.Vector) bool { return v.Recipe.Golden[recipes.Release][name] == nil })
	var out bytes.Buffer
	if err := w.observeGolden(t.Context(), &out, v, vectors); err != nil {
		t.Fatal(err)
	}
	var file struct {
		Golden map[string]map[string]map[string]map[string]any `toml:"golden"`
	}
	if err := strict.Decode("observed", out.Bytes(), &file); err != nil {
		t.Fatalf("%v\n%s", err, &out)
	}
	observed := file.Golden[recipes.Release]
	if got, want := observed["fresh"]["fresh"]["snapshot"], v.Recipe.Golden[recipes.Release]["fresh"]["fresh"].Snapshot; got != want || len(observed) != 2 {
		t.Errorf("observed %v, want two vectors, and of a fresh heap the hash %s", observed, want)
	}
	if got, want := observed["metering"]["details"]["compute"], v.Recipe.Golden[recipes.Release]["metering"]["details"].Compute; got != want {
		t.Errorf("observed %v computrons, want %d", got, want)
	}

	// The sign of NaN is the processor's, and stays in the heap.
	vectors["planted"] = &recipes.Vector{Name: "planted", Steps: []recipes.Step{{Evaluate: "globalThis.x = Math.log1p(-2)"}, {Snapshot: true, Label: "heap"}}}
	err := w.observeGolden(t.Context(), &out, v, vectors)
	if err == nil || !strings.Contains(err.Error(), "linux/arm64 release: it shows something else than the first platform's") {
		t.Errorf("a heap that differs by platform gave %v", err)
	}
}
