package replay_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/enginery/enginery/internal/swingsettest"
	"github.com/enginery/enginery/recipes"
	"github.com/enginery/enginery/replay"
	"github.com/enginery/enginery/vat"
)

func compare(t testing.TB, path string, from, to *vat.Engine, o replay.Options) *replay.Report {
	t.Helper()
	r, err := replay.Compare(t.Context(), open(t, path), from, to, o)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// Each vat is classed by what it takes to bring it to another version.
func TestCompare(t *testing.T) {
	t.Parallel()
	path := storeWithHeaps(t)
	from := engine(t, swingsettest.Version, amd64, recipes.Release)
	same := engine(t, "agoric-upgrade-16", amd64, recipes.Release)
	unlisted := *same
	unlisted.LoadsSnapshotsOf = []string{"agoric-upgrade-16"}
	deaf := *same // it loads no heap snapshots
	deaf.Worker.Path = wrap(t, same.Worker.Path, `case "$*" in *" -r "*) echo cannot read snapshot >&2; exit 2;; esac`)
	debug := engine(t, swingsettest.Version, amd64, recipes.Debug)
	cache := t.TempDir() // what the old version does is done once
	for _, test := range []struct {
		name   string
		to     *vat.Engine
		passes replay.Level
		vat    string
		class  replay.Class
		reason string
		works  string // ways, in the order snapshot, migration, incarnation
	}{
		{"the same engine", same, replay.Identical, "v4", replay.Resume, "loads its heap snapshot and replays what followed: identical", "yes yes yes"},
		{"not described", &unlisted, 0, "v4", replay.Upgrade, "its description does not say that it loads those of agoric-upgrade-22; it can be upgraded or migrated", "no yes yes"},
		{"a vat that is terminated", same, 0, "v6", "", "", ""},
		{"no snapshots", &deaf, 0, "v4", replay.Upgrade, "does not load its heap snapshot", "no yes yes"},
		{"other meters, which must not be", debug, replay.Identical, "v4", replay.Stay, "the first at item", "no no yes"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			o := replay.Options{Vats: []string{test.vat}, Passes: test.passes, Snapshots: filepath.Join(dir, "snapshots"), Cache: cache, KeepWorker: test.to == &deaf}
			r := compare(t, path, from, test.to, o)
			if test.class == "" {
				if len(r.Classification.Vats) > 0 {
					t.Errorf("%s", show(t, r.Classification))
				}
				return
			}
			c := r.Classification.Vats[0]
			var works []string
			for _, w := range c.Ways {
				works = append(works, map[bool]string{true: "yes", false: "no"}[w.Works])
			}
			if c.Class != test.class || !strings.Contains(c.Reason, test.reason) || strings.Join(works, " ") != test.works {
				t.Errorf("expected %s, %s: %s", test.class, test.works, show(t, c))
			}
			m := c.Ways[1]
			if !m.Works {
				return
			}
			if _, err := os.Stat(m.File); err != nil {
				t.Errorf("%v: %s", err, show(t, m))
			}
			os.RemoveAll(o.Snapshots)
			again := compare(t, path, from, test.to, o)
			if report(t, again) != report(t, r) {
				t.Errorf("the second report is\n%s\nthe first\n%s", report(t, again), report(t, r))
			}
			if _, err := os.Stat(m.File); err != nil {
				t.Error(err)
			}
		})
	}
}

// wrap returns the path of a script that does something, and then runs a worker.
func wrap(t testing.TB, worker, script string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "worker")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+script+"\nexec "+worker+` "$@"`+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// A vat that has no heap snapshot in the source can resume if the new version makes the same one.
func TestCompareWithoutSnapshots(t *testing.T) {
	t.Parallel()
	from, to := engine(t, swingsettest.Version, amd64, recipes.Release), engine(t, "agoric-upgrade-16", amd64, recipes.Release)
	r := compare(t, swingsettest.Store(t), from, to, replay.Options{Vats: []string{"v4"}})
	c := r.Classification.Vats[0]
	if c.Class != replay.Resume || !strings.Contains(c.Reason, "makes the same heap snapshot") {
		t.Errorf("%s", show(t, c))
	}
	if a, m := r.Vats[0].Runs[replay.ColumnAdoption], r.Vats[0].Runs[replay.ColumnMigration]; a.Deliveries != m.Deliveries || a.Level != replay.Identical {
		t.Errorf("%s", show(t, r))
	}
}

// What is wrong with the source of a vat, or with one of the versions, is the reason why a way does not work, and no reason to say nothing.
func TestCompareInVain(t *testing.T) {
	t.Parallel()
	from := engine(t, swingsettest.Version, amd64, recipes.Release)
	to := engine(t, "agoric-upgrade-16", amd64, recipes.Release)
	deaf := *from // it loads no heap snapshots
	deaf.Worker.Path = wrap(t, from.Worker.Path, `case "$*" in *" -r "*) echo cannot read snapshot >&2; exit 2;; esac`)
	mute := *to
	mute.Worker.Path = wrap(t, to.Worker.Path, "exec sleep 1000")
	picky := *to // it does not load the first heap snapshot that it gets
	picky.Worker.Path = wrap(t, to.Worker.Path, `case "$*" in *" -r "*) mkdir `+t.TempDir()+`/first 2>/dev/null && exit 2;; esac`)
	cache := t.TempDir()
	compare(t, storeWithHeaps(t), from, to, replay.Options{Vats: []string{"v4"}, Cache: cache})
	for _, test := range []struct {
		name, sql string
		from, to  *vat.Engine
		class     replay.Class
		reasons   [3]string // of the ways
	}{
		{
			"an item of the current span", "UPDATE transcriptItems SET item = replace(item, 'ok', 'kk') WHERE vatID = 'v4' AND position = 147", from, to, replay.Stay,
			[3]string{"is damaged", "is damaged", "is damaged"},
		},
		{
			"an item of an earlier span", "UPDATE transcriptItems SET item = replace(item, 'ok', 'kk') WHERE vatID = 'v4' AND position = 40", from, to, replay.Upgrade,
			[3]string{"is damaged", "is damaged", "starts on agoric-upgrade-16"},
		},
		{
			"the vat's bundle", "DELETE FROM bundles WHERE bundleID IN (SELECT json_extract(value, '$.bundleID') FROM kvStore WHERE key = 'v4.source')", from, to, replay.Resume,
			[3]string{"identical", "not in the store", "not in the store"},
		},
		{
			"the old version, which does not bring the vat back", "", &deaf, to, replay.Resume,
			[3]string{"identical", "identical", "a new incarnation starts on agoric-upgrade-16; agoric-upgrade-22 does not bring it back"},
		},
		{
			"the new version, which does not load an earlier heap snapshot", "", from, &picky, replay.Resume,
			[3]string{"loads its heap snapshot", "identical", "starts on agoric-upgrade-16"},
		},
		{
			"the new version, which does not answer", "", from, &mute, replay.Stay,
			[3]string{"divergent", "divergent", "does not start on agoric-upgrade-16 within 5s"},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			path, o := storeWithHeaps(t), replay.Options{Vats: []string{"v4"}, Cache: cache}
			if test.name == "the vat's bundle" {
				o.Cache = "" // what is known needs none
			}
			if test.sql != "" {
				swingsettest.Change(t, path, test.sql)
			}
			switch test.to {
			case &mute:
				o.Timeout = 5 * time.Second
			case &picky:
				o.Jobs, o.KeepWorker = 1, true
			}
			v := compare(t, path, test.from, test.to, o).Classification.Vats[0]
			if v.Class != test.class || !slices.EqualFunc(v.Ways, test.reasons[:], func(w replay.Way, want string) bool { return strings.Contains(w.Reason, want) }) {
				t.Errorf("expected %s, %q: %s", test.class, test.reasons, show(t, v))
			}
		})
	}
}

// A node may clean up after a vat while its store is compared.
func TestCompareWhileWriting(t *testing.T) {
	t.Parallel()
	path := swingsettest.Store(t)
	e := engine(t, swingsettest.Version, amd64, recipes.Release)
	remove := func(which string) {
		swingsettest.Change(t, path, "DELETE FROM transcriptSpans WHERE vatID "+which)
		swingsettest.Change(t, path, "DELETE FROM kvStore WHERE key GLOB 'v[0-9]*.options' AND replace(key, '.options', '') "+which)
	}
	remove("NOT IN ('v6', 'v8')")
	r := compare(t, path, e, e, replay.Options{Observe: func(e replay.Event) {
		if e.Kind == replay.Planned {
			remove("= 'v6'")
		}
	}})
	inUse, err := open(t, path).Snapshots(t.Context(), "v8")
	if err != nil {
		t.Fatal(err)
	}
	c := r.Classification.Vats
	if len(c) != 1 || c[0].Vat != "v8" || c[0].Class != replay.Resume || c[0].Ways[0].Snapshot != inUse[0].Hash {
		t.Errorf("expected v8 to go on from %s: %s", inUse[0].Hash, show(t, c))
	}
}
