package reproduce

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/enginery/enginery/build"
	"github.com/enginery/enginery/internal/cas"
	"github.com/enginery/enginery/manifests"
	"github.com/enginery/enginery/recipes"
	"github.com/enginery/enginery/release"
)

// TestDifferencesAreExplainedOnce compares made-up builds of a version for two platforms. What differs by itself is explained, and what
// differs because it names something else is only called that.
func TestDifferencesAreExplainedOnce(t *testing.T) {
	for _, test := range []struct {
		name      string
		change    func(second map[string]string) // contents by name, as the second build makes them
		want      []string                       // platform, name and explanation of what differs
		identical []string                       // platforms
	}{
		{"nothing", func(map[string]string) {}, nil, []string{"linux/amd64", "linux/arm64"}},
		{"worker", func(m map[string]string) {
			m["linux/arm64 xsnap-worker"], m["linux/arm64 manifest"], m["index"], m["statement"] = "worker for arm64!", "other", "other", "other"
		}, []string{
			"linux/amd64 index: consequence", "linux/amd64 statement: consequence",
			`linux/arm64 xsnap-worker: 1 byte differs at offset 16: "worker for arm64." against "worker for arm64!"`,
			"linux/arm64 manifest: consequence", "linux/arm64 index: consequence", "linux/arm64 statement: consequence",
		}, nil},
		{"config", func(m map[string]string) {
			m["linux/amd64 config"], m["linux/amd64 manifest"], m["index"] = "config of amd64!", "other", "other"
		}, []string{
			`linux/amd64 config: 1 byte differs at offset 15: "config of amd64." against "config of amd64!"`,
			"linux/amd64 manifest: consequence", "linux/amd64 index: consequence", "linux/arm64 index: consequence",
		}, nil},
		{"manifest alone", func(m map[string]string) { m["linux/arm64 manifest"] = "manifest of arm64!" }, []string{
			`linux/arm64 manifest: 1 byte differs at offset 17: "manifest of arm64." against "manifest of arm64!"`,
		}, []string{"linux/amd64"}},
		{"index alone", func(m map[string]string) { m["index"] = "indices" }, []string{
			`linux/amd64 index: 4 bytes differ at offset 3: "index" against "indices"`,
			`linux/arm64 index: 4 bytes differ at offset 3: "index" against "indices"`,
		}, nil},
		{"statement alone", func(m map[string]string) { m["statement"] = "statement, too" }, []string{
			`linux/amd64 statement: 5 bytes differ at offset 9: the end (9 bytes) against "statement, too"`,
			`linux/arm64 statement: 5 bytes differ at offset 9: the end (9 bytes) against "statement, too"`,
		}, nil},
		{"one file more", func(m map[string]string) {
			m["linux/amd64 extra"], m["linux/amd64 manifest"], m["index"], m["statement"] = "extra", "other", "other", "other"
		}, []string{
			"linux/amd64 extra: none", "linux/amd64 manifest: consequence", "linux/amd64 index: consequence", "linux/amd64 statement: consequence",
			"linux/arm64 index: consequence", "linux/arm64 statement: consequence",
		}, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Setenv("PATH", "") // without diffoscope
			c := madeUp(t, test.change)
			rows, err := c.rows(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			var got, identical []string
			for _, row := range rows {
				if row.Identical {
					identical = append(identical, row.Platform)
				}
				if row.Recorded != "none" {
					t.Errorf("the record of a made-up version is %q", row.Recorded)
				}
				for _, d := range row.Digests {
					if d.First == d.Second {
						if d.Consequence || d.Causes != nil {
							t.Errorf("equal, but %+v", d)
						}
						continue
					}
					explanation := "none"
					if d.Consequence {
						explanation = "consequence"
					} else if len(d.Causes) == 1 {
						explanation = d.Causes[0].String()
					}
					got = append(got, row.Platform+" "+d.Name+": "+explanation)
				}
			}
			if !slices.Equal(got, test.want) {
				t.Errorf("got\n%s\nexpected\n%s", strings.Join(got, "\n"), strings.Join(test.want, "\n"))
			}
			if !slices.Equal(identical, test.identical) {
				t.Errorf("identical are %v, expected %v", identical, test.identical)
			}
		})
	}
}

// TestOtherActions makes sure that builds are not compared that did not do the same.
func TestOtherActions(t *testing.T) {
	for name, change := range map[string]func(*built){
		"action":   func(b *built) { b.Outputs.Workers[1].Action = cas.OfBytes([]byte("another")) },
		"workers":  func(b *built) { b.Outputs.Workers = b.Outputs.Workers[:1] },
		"platform": func(b *built) { delete(b.Manifest.Platforms, "linux/arm64") },
		"version":  func(b *built) { b.Manifest.Version = "another" },
		"nothing":  func(b *built) { *b = built{} },
	} {
		c := madeUp(t, func(map[string]string) {})
		change(&c.second)
		if rows, err := c.rows(t.Context()); err == nil {
			t.Errorf("another %s was compared: %+v", name, rows)
		}
	}
}

// madeUp returns a comparison of two builds of a version, whose contents are text. Those of the second build can be changed.
func madeUp(t *testing.T, change func(map[string]string)) *comparison {
	t.Helper()
	platforms := []string{"linux/amd64", "linux/arm64"}
	r := &recipes.Recipe{ID: "made-up", Goals: []string{recipes.Release}}
	contents := map[string]string{"index": "index", "statement": "statement"}
	for _, p := range platforms {
		r.Targets = append(r.Targets, recipes.Target{Platform: p})
		arch := strings.TrimPrefix(p, "linux/")
		contents[p+" xsnap-worker"] = "worker for " + arch + "."
		contents[p+" config"] = "config of " + arch + "."
		contents[p+" manifest"] = "manifest of " + arch + "."
	}
	construct := func() (built, string) {
		layout := t.TempDir()
		blobs := filepath.Join(layout, "blobs", "sha256")
		if err := os.MkdirAll(blobs, 0o755); err != nil {
			t.Fatal(err)
		}
		digests := make(map[string]string)
		for name, content := range contents {
			hash := cas.OfBytes([]byte(content)).Hash
			digests[name] = "sha256:" + hash
			if err := os.WriteFile(filepath.Join(blobs, hash), []byte(content), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		b := built{new(build.Outputs), &manifests.Manifest{
			Version:    r.ID,
			Platforms:  make(map[string]*manifests.Platform),
			Index:      digests["index"],
			Statements: map[string]string{"statement": digests["statement"]},
		}}
		for _, p := range platforms {
			m := &manifests.Platform{Files: make(map[string]string), Config: digests[p+" config"], Manifest: digests[p+" manifest"]}
			for _, title := range []string{"xsnap-worker", "extra"} {
				if d, ok := digests[p+" "+title]; ok {
					m.Files[title] = d
				}
			}
			b.Manifest.Platforms[p] = m
			b.Outputs.Workers = append(b.Outputs.Workers, build.Worker{Platform: p, Goal: recipes.Release, Action: cas.OfBytes([]byte(p))})
		}
		return b, layout
	}
	first, firstLayout := construct()
	change(contents)
	second, secondLayout := construct()
	return &comparison{&release.Version{Recipe: r, Outputs: first.Outputs, Manifest: first.Manifest}, second, firstLayout, secondLayout}
}
