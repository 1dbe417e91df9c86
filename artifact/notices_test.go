package artifact_test

import (
	"bytes"
	"encoding/json"
	"regexp"
	"strings"
	"testing"

	"github.com/enginery/enginery/artifact"
	"github.com/enginery/enginery/internal/cas"
	"github.com/enginery/enginery/internal/enginetest"
	pins "github.com/enginery/enginery/moddable-pins"
)

// compiled are the parts of the source trees that upstream's makefile compiles or includes.
var compiled = regexp.MustCompile(`^(xs/(sources|includes|platforms)|modules/data/(text|base64)|xsnap/sources)/.*\.[ch]$`)

var copyrightRE = regexp.MustCompile(`(?i)copyright *(?:\(c\))? *[0-9][0-9, -]*(?:by )?([^\n*\\]+)`)

// TestNoticesNameEveryHolder reads all that goes into the versions and checks that NOTICES names whoever it says has a copyright.
func TestNoticesNameEveryHolder(t *testing.T) {
	store := enginetest.Store(t)
	for _, id := range enginetest.NPM {
		t.Run(id, func(t *testing.T) {
			r := enginetest.Recipe(t, id)
			if err := enginetest.Fetch(store)(t.Context(), r); err != nil {
				t.Fatal(err)
			}
			holders := make(map[string]string) // -> where
			look := func(where string, text []byte) {
				for _, m := range copyrightRE.FindAllSubmatch(text, -1) {
					name, _, _ := strings.Cut(string(m[1]), ", ") // "Agoric, under Apache License 2.0"
					holders[strings.Trim(name, " .,/")] = where
				}
			}
			for _, c := range []pins.Component{r.Pin.Moddable, r.Pin.XsnapNative} {
				files := 0
				if err := store.Walk(c.Tree, func(path string, n cas.Node) error {
					if !compiled.MatchString(path) {
						return nil
					}
					files++
					text, err := store.ReadAll(n.Digest)
					look(path, text)
					return err
				}); err != nil {
					t.Fatal(err)
				}
				if files < 5 {
					t.Fatalf("only %d files of %s are looked at", files, c.Name)
				}
			}
			lockdown, supervisor := enginetest.Bundles(t, r)
			for name, content := range map[string][]byte{artifact.Lockdown: lockdown, artifact.Supervisor: supervisor} {
				var bundle struct{ Source string }
				if err := json.Unmarshal(content, &bundle); err != nil {
					t.Fatal(err)
				}
				look(name, []byte(bundle.Source))
				for mark, licence := range map[string]string{"nodeca/pako": "crc32 of pako", "free and unencumbered": "Unlicense"} {
					if strings.Contains(bundle.Source, mark) {
						holders[licence] = name
					}
				}
			}
			if len(holders) < 7 {
				t.Errorf("found only %v", holders)
			}
			v := newVersion(t, id, "a", 10)
			p, _ := v.pack(t).Platform("linux/amd64")
			d, _ := p.File(artifact.Notices)
			notices := read(t, v.pack(t), d)
			for holder, where := range holders {
				if !bytes.Contains(notices, []byte(holder)) {
					t.Errorf("NOTICES does not name %q of %s", holder, where)
				}
			}
			v.recipe.Bundles = nil
			p, _ = v.pack(t).Platform("linux/amd64")
			d, _ = p.File(artifact.Notices)
			if n := read(t, v.pack(t), d); bytes.Contains(n, []byte("BUNDLES")) || bytes.Contains(n, []byte("lockdown")) {
				t.Errorf("NOTICES of an engine alone speaks of bundles:\n%s", n)
			}
		})
	}
}
