package release_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/enginery/enginery/internal/exit"
	pins "github.com/enginery/enginery/moddable-pins"
	"github.com/enginery/enginery/recipes"
	"github.com/enginery/enginery/release"
)

// An engine of 2021, by data alone: it is compiled and examined on both platforms.
func TestCheckEngines(t *testing.T) {
	const pin = "10cc52e1-95af5513"
	w := workshop(t)
	w.SourceMirror = os.Getenv(pins.MirrorEnv)
	var out bytes.Buffer
	err := w.CheckEngines(t.Context(), &out, true, pin)
	var unavailable *pins.UnavailableError
	if errors.As(err, &unavailable) {
		t.Skipf("NOT TESTED: %s: %v", t.Name(), err)
	}
	if err != nil {
		t.Fatal(err)
	}
	var results []release.EngineResult
	if err := json.Unmarshal(out.Bytes(), &results); err != nil {
		t.Fatal(err)
	}
	r, err := recipes.LoadHistoric(pin)
	if err != nil {
		t.Fatal(err)
	}
	if len(results) != 1 || !results[0].OK || results[0].Fresh != r.Golden[recipes.Release]["fresh"]["fresh"].Snapshot || len(results[0].Workers) != 2 {
		t.Errorf("got %+v", results)
	}
}

func TestCheckEnginesNamesWhatItCannotHave(t *testing.T) {
	noRepositories(t)
	var out bytes.Buffer
	err := emptyWorkshop(t).CheckEngines(t.Context(), &out, false, "6d7f33f8-65d8e660", "7276ac7b-95af5513")
	if release.Status(err) != exit.Unavailable || !strings.Contains(err.Error(), "6d7f33f8f318663bd5ba8d6ca6536443d42e68ea") {
		t.Errorf("got %v (status %d), want status %d and the commit", err, release.Status(err), exit.Unavailable)
	}
	lines := strings.Split(out.String(), "\n")
	if len(lines) != 5 || !strings.HasPrefix(lines[2], "| 6d7f33f8-65d8e660 | 2021-08-28 | 11.0.0 | 1 ") ||
		!strings.Contains(lines[2], "| its sources cannot be had ") || !strings.Contains(lines[3], "| does not compile: xsnapPlatform.c:") {
		t.Errorf("printed:\n%s", &out)
	}
}

// The table of the documentation is what the data say.
func TestDocumentedEngines(t *testing.T) {
	text, err := os.ReadFile("../docs/engines.md")
	if err != nil {
		t.Fatal(err)
	}
	rows := make(map[string][]string) // pin -> the other cells
	for line := range strings.Lines(string(text)) {
		cells := strings.Split(line, "|")
		for i := range cells {
			cells[i] = strings.Trim(cells[i], " `\n")
		}
		if len(cells) > 3 {
			rows[cells[1]] = cells[2:]
		}
	}
	all, err := recipes.HistoricEngines()
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range all {
		var want []string
		if h.Cause != "" {
			want = []string{h.Pinned, "does not compile: " + h.Cause}
		} else {
			r, err := recipes.LoadHistoric(h.Pin)
			if err != nil {
				t.Fatal(err)
			}
			e := r.Engine
			want = []string{h.Pinned, e.XSVersion, fmt.Sprint(e.Protocol), fmt.Sprint(e.HostCallbacks), e.SnapshotVersion + ", " + e.SnapshotSignature,
				r.Golden[recipes.Release]["fresh"]["fresh"].Snapshot[:12], "as expected"}
		}
		for _, cell := range want {
			if !slices.Contains(rows[h.Pin], cell) {
				t.Errorf("the row of %s lacks %q: %q", h.Pin, cell, rows[h.Pin])
			}
		}
	}
	for _, name := range pins.Names() {
		if rows[name] == nil {
			t.Errorf("there is no row of %s", name)
		}
	}
}
