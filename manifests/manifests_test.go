package manifests_test

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/enginery/enginery/artifact"
	"github.com/enginery/enginery/build"
	"github.com/enginery/enginery/internal/cas"
	"github.com/enginery/enginery/internal/enginetest"
	"github.com/enginery/enginery/manifests"
	"github.com/enginery/enginery/recipes"
)

const id = "agoric-upgrade-16"

// packed returns the manifest of a version whose workers are small files; change may change its recipe or workers.
func packed(t *testing.T, change func(*recipes.Recipe, *build.Outputs)) *manifests.Manifest {
	t.Helper()
	store, err := cas.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(store.Close)
	r, out := enginetest.Recipe(t, id), new(build.Outputs)
	for _, target := range r.Targets {
		for _, goal := range r.Goals {
			d := cas.OfBytes([]byte(target.Platform + goal))
			out.Workers = append(out.Workers, build.Worker{Platform: target.Platform, Goal: goal, Binary: d, Action: d})
		}
	}
	if change != nil {
		change(r, out)
	}
	a, err := artifact.Pack(t.Context(), store, r, out)
	if err != nil {
		t.Fatal(err)
	}
	m, err := manifests.Of(a)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestWriteAndRead(t *testing.T) {
	m := packed(t, nil)
	dir := t.TempDir()
	file, err := m.Write(dir)
	if err != nil {
		t.Fatal(err)
	}
	if want := filepath.Join(dir, id+".json"); file != want {
		t.Errorf("wrote %s, expected %s", file, want)
	}
	got, err := manifests.Read(dir, id)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, m) {
		t.Errorf("read %+v, expected %+v", got, m)
	}
	if d := manifests.Diff(got, m); len(d) > 0 {
		t.Errorf("they differ: %v", d)
	}
	info, err := os.Stat(file)
	if err != nil || info.Mode() != 0o644 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	b, err := os.ReadFile(file)
	if err != nil || !strings.HasSuffix(string(b), "\n}\n") {
		t.Errorf("the file ends with %q, %v", b[len(b)-4:], err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
		t.Errorf("the folder has %v, %v", left, err)
	}
}

func TestNotRecorded(t *testing.T) {
	for _, name := range []string{"agoric-upgrade-0", "../recipes/names", "", "README"} {
		if _, err := manifests.Load(name); !errors.Is(err, manifests.ErrNotRecorded) {
			t.Errorf("Load(%q): %v", name, err)
		}
	}
	if _, err := manifests.Read(t.TempDir(), id); !errors.Is(err, manifests.ErrNotRecorded) {
		t.Errorf("Read: %v", err)
	}
}

func TestEditedFile(t *testing.T) {
	m := packed(t, nil)
	dir := t.TempDir()
	file, err := m.Write(dir)
	if err != nil {
		t.Fatal(err)
	}
	good, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ old, new, want string }{
		{`"schema": 1`, `"schema": 2`, "schema 2, expected 1"},
		{`"version": "` + id, `"version": "other`, `it is the manifest of "other"`},
		{`  "recipe": `, `  "recipes": `, `unknown field "recipes"`},
		{`  "index": "sha256:`, `  "index": "sha256:x`, "index is"},
		{`  "index": "sha256:`, `  "index": "sha512:`, "index is"},
		{`"xsnap-worker": "sha256:`, `"xsnap-worker": "sha256-`, "linux/amd64 xsnap-worker is"},
		{`  "schema": 1,`, `  "schema": 1, `, "line 2 is not as it was written"},
		{`  "schema": 1,`, "  \"schema\": 2,\n  \"schema\": 1,", "line 2 is not as it was written"},
		{`"recipe": "`, `"recipe": "0`, "hash has 65 characters"},
		{"\n}\n", "\n}", "is not as it was written"},
		{"\n}\n", "\n}\n{}\n", "is not as it was written"},
		{"{\n", "", "line "},
	} {
		if !strings.Contains(string(good), c.old) {
			t.Fatalf("the file has no %q", c.old)
		}
		if err := os.WriteFile(file, []byte(strings.Replace(string(good), c.old, c.new, 1)), 0o644); err != nil {
			t.Fatal(err)
		}
		_, err := manifests.Read(dir, id)
		if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), id+".json") || errors.Is(err, manifests.ErrNotRecorded) {
			t.Errorf("%q for %q: %v; expected %q", c.new, c.old, err, c.want)
		}
	}
}

func TestDiff(t *testing.T) {
	follows := "follows from the above"
	both := func(name string) []string { return []string{"linux/amd64 " + name, "linux/arm64 " + name} }
	consequences := slices.Concat([]string{"linux/amd64 config", "linux/amd64 manifest", "linux/arm64 config", "linux/arm64 manifest"},
		[]string{"index", "statement " + artifact.ProvenancePredicate, "statement " + artifact.SBOMPredicate})
	for _, c := range []struct {
		name   string
		change func(*recipes.Recipe, *build.Outputs)
		first  string   // note of the first difference
		want   []string // names of differences, NOTICES left out
	}{
		{"nothing", func(*recipes.Recipe, *build.Outputs) {}, "", nil},
		{"another worker of the same action", func(_ *recipes.Recipe, out *build.Outputs) {
			out.Workers[2].Binary = cas.OfBytes([]byte("other"))
		}, "so the build is not reproducible: go tool mage check:reproducible " + id,
			[]string{"linux/arm64 xsnap-worker", "linux/arm64 manifest", "index", "statement " + artifact.ProvenancePredicate, "statement " + artifact.SBOMPredicate}},
		{"sources", func(r *recipes.Recipe, out *build.Outputs) {
			pin := *r.Pin
			pin.Moddable.Tree = cas.OfBytes([]byte("other"))
			r.Pin = &pin
		}, "an input: the pin has other sources", slices.Concat([]string{"source tree moddable", "recipe"}, consequences)},
		{"bundle", func(r *recipes.Recipe, out *build.Outputs) {
			pair := *r.Bundles
			pair.Supervisor.SHA256 = cas.OfBytes([]byte("other"))
			r.Bundles = &pair
		}, "an input: the recipe has another bundle",
			slices.Concat([]string{"supervisor bundle", "recipe"}, both("supervisor.bundle"), consequences)},
		{"toolchain", func(r *recipes.Recipe, out *build.Outputs) {
			tc := *r.Targets[1].Toolchain
			tc.Image = "sha256:0000000000000000000000000000000000000000000000000000000000000000"
			r.Targets[1].Toolchain = &tc
			out.Workers[2].Action = cas.OfBytes([]byte("other"))
		}, "an input: the toolchain's lock is another",
			slices.Concat([]string{"linux/arm64 toolchain image", "recipe", "linux/arm64 release action"}, consequences)},
		{"flags", func(r *recipes.Recipe, out *build.Outputs) {
			r.CFlags = append(slices.Clone(r.CFlags), "-O1")
		}, "flags, the makefile's variables, the engine description or golden vectors were changed", slices.Concat([]string{"recipe"}, consequences)},
		{"actions alone", func(r *recipes.Recipe, out *build.Outputs) {
			out.Workers[0].Action = cas.OfBytes([]byte("other"))
		}, "the recipe is equal: this program describes compilations in another way",
			[]string{"linux/amd64 release action", "linux/amd64 config", "linux/amd64 manifest", "index", "statement " + artifact.ProvenancePredicate, "statement " + artifact.SBOMPredicate}},
		{"a goal less", func(r *recipes.Recipe, out *build.Outputs) {
			r.Goals = r.Goals[:1]
		}, "", slices.Concat([]string{"recipe", "linux/amd64 debug action", "linux/arm64 debug action"}, both("xsnap-worker-debug"), consequences)},
		{"a platform less", func(r *recipes.Recipe, out *build.Outputs) {
			r.Targets = r.Targets[:1]
		}, "", nil},
	} {
		recorded := packed(t, nil)
		built := packed(t, c.change)
		diff := manifests.Diff(recorded, built)
		var names []string
		for i, d := range diff {
			if d.Recorded == d.Built {
				t.Errorf("%s: %s is not a difference", c.name, d)
			}
			if !strings.HasSuffix(d.Name, artifact.Notices) {
				names = append(names, d.Name)
			}
			if i == 0 && !strings.Contains(d.Note, c.first) {
				t.Errorf("%s: first is %s, expected %q", c.name, d, c.first)
			}
			if d.Name == "index" && d.Note != follows {
				t.Errorf("%s: %s", c.name, d)
			}
			if i > 0 && strings.Contains(d.Note, "not reproducible") {
				t.Errorf("%s: %s", c.name, d)
			}
		}
		if c.name == "a platform less" {
			if !slices.Contains(names, "linux/arm64 manifest") || !strings.Contains(diff[0].String(), "built nothing") {
				t.Errorf("%s: %v", c.name, diff)
			}
			continue
		}
		if !slices.Equal(names, c.want) {
			t.Errorf("%s:\n%q, expected\n%q", c.name, names, c.want)
		}
	}
}

func TestDifferenceNamesBothSides(t *testing.T) {
	a, b := packed(t, nil), packed(t, func(_ *recipes.Recipe, out *build.Outputs) { out.Workers[0].Binary = cas.OfBytes([]byte("other")) })
	got := manifests.Diff(a, b)[0].String()
	want := "linux/amd64 xsnap-worker: recorded sha256:" + cas.OfBytes([]byte("linux/amd64release")).Hash + ", 18 bytes, built sha256:" +
		cas.OfBytes([]byte("other")).Hash + ", 5 bytes (its inputs are equal, release action " + cas.OfBytes([]byte("linux/amd64release")).Hash[:12]
	if !strings.HasPrefix(got, want) {
		t.Errorf("%s\nexpected\n%s…", got, want)
	}
}

// TestCommitted makes sure that the records are of the recipes as they are.
func TestCommitted(t *testing.T) {
	for _, name := range manifests.IDs() {
		m, err := manifests.Load(name)
		if err != nil {
			t.Error(err)
			continue
		}
		r, err := recipes.Load(name)
		if err != nil {
			t.Errorf("manifests/%s.json has no recipe: %v", name, err)
			continue
		}
		if m.Recipe != r.Digest() {
			t.Errorf("manifests/%s.json is of the recipe %s, which is %s now: record it with go tool mage manifest:update %s", name, m.Recipe, r.Digest(), name)
		}
	}
}
