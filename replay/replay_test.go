package replay_test

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/enginery/enginery/internal/enginetest"
	"github.com/enginery/enginery/internal/swingsettest"
	"github.com/enginery/enginery/recipes"
	"github.com/enginery/enginery/replay"
	"github.com/enginery/enginery/replay/transcripts"
	"github.com/enginery/enginery/vat"
	"github.com/enginery/enginery/xsnap"
)

// engine returns a version's engine for a platform.
func engine(t testing.TB, version, platform, goal string) *vat.Engine {
	t.Helper()
	r := enginetest.Recipe(t, version)
	e := &vat.Engine{Version: version, LoadsSnapshotsOf: r.Engine.LoadsSnapshotsOf, Worker: xsnap.Options{
		Version:   version,
		Path:      enginetest.Worker(t, version, platform, goal),
		Emulator:  enginetest.Emulator(t, platform),
		Protocol:  r.Engine.Protocol,
		MeterType: r.Engine.Meter,
	}}
	e.Lockdown, e.Supervisor = enginetest.Bundles(t, r)
	return e
}

const amd64 = "linux/amd64"

// metered returns an engine that is compiled of a version's sources with another metering: what counts as one computron in most places
// counts as two.
func metered(t testing.TB, version string) *vat.Engine {
	t.Helper()
	s, r := enginetest.Store(t), enginetest.Recipe(t, version)
	if err := enginetest.Fetch(s)(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "moddable")
	if err := s.Checkout(t.Context(), r.Pin.Moddable.Tree, dir); err != nil {
		t.Fatal(err)
	}
	header := filepath.Join(dir, "xs", "sources", "xsAll.h")
	text := readFile(t, header)
	changed := bytes.Replace(text, []byte("(the->meterIndex++)"), []byte("(the->meterIndex += 2)"), 1)
	if bytes.Equal(changed, text) {
		t.Fatalf("%s counts otherwise than expected", header)
	}
	if err := os.WriteFile(header, changed, 0o644); err != nil {
		t.Fatal(err)
	}
	pin := *r.Pin
	var err error
	if pin.Moddable.Tree, err = s.PutTree(t.Context(), dir); err != nil {
		t.Fatal(err)
	}
	r.Pin = &pin
	e := engine(t, version, amd64, recipes.Release)
	e.Version, e.Worker.Version = version+"-metered", version+"-metered"
	e.Worker.Path = enginetest.WorkerOf(t, r, amd64, recipes.Release)
	return e
}

func open(t testing.TB, path string, archives ...string) transcripts.Source {
	t.Helper()
	s, err := transcripts.Open(t.Context(), path, archives...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func run(t testing.TB, s transcripts.Source, e *vat.Engine, o replay.Options) *replay.Report {
	t.Helper()
	r, err := replay.Run(t.Context(), s, e, o)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func show(t testing.TB, v any) string {
	t.Helper()
	b, err := json.MarshalIndent(v, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// The store that the real kernel has left replays as it was recorded, to the last byte of each heap.
func TestIdentical(t *testing.T) {
	t.Parallel()
	begun := time.Now()
	r := run(t, open(t, swingsettest.Store(t)), engine(t, swingsettest.Version, amd64, recipes.Release), replay.Options{})
	t.Log(time.Since(begun))
	for _, v := range r.Vats {
		run := v.Runs[0]
		if run.Level != replay.Identical || !run.Whole() {
			t.Errorf("%s", show(t, run.Spans))
		}
		t.Logf("%s %s: %d deliveries, %d spans, %.2f s", v.ID, run.Level, run.Deliveries, v.Spans, run.Seconds)
	}
}

// With heap snapshots each span is a piece of its own, and nothing else changes.
func TestIdenticalFromSnapshots(t *testing.T) {
	t.Parallel()
	s := open(t, storeWithHeaps(t))
	for _, test := range []struct {
		platform string
		o        replay.Options
	}{
		{amd64, replay.Options{Vats: madeOf}},
		{amd64, replay.Options{Vats: []string{"v5"}, KeepWorker: true, Start: replay.FromBundles}},
		{"linux/arm64", replay.Options{Vats: []string{"v6"}}},
	} {
		t.Run(test.platform, func(t *testing.T) {
			t.Parallel()
			r := run(t, s, engine(t, swingsettest.Version, test.platform, recipes.Release), test.o)
			for _, v := range r.Vats {
				run := v.Runs[0]
				if run.Level != replay.Identical || !run.Whole() {
					t.Errorf("%s", show(t, run.Spans))
				}
				if n := len(run.Spans); test.o.Start == "" && !strings.HasPrefix(run.Spans[n-1].From, "snapshot ") {
					t.Errorf("the last span of %s starts from %s", v.ID, run.Spans[n-1].From)
				}
			}
		})
	}
}

// The kernel's own heap snapshots, and all spans, archived or not: it takes minutes.
func TestIdenticalAll(t *testing.T) {
	if os.Getenv("ENGINERY_REPLAY_SOAK") == "" {
		t.Skipf("NOT TESTED: %s, which takes minutes: set ENGINERY_REPLAY_SOAK=1 to run the kernel, and replay all that it leaves on both platforms", t.Name())
	}
	dir := swingsettest.Run(t)
	s := open(t, filepath.Join(dir, "store"))
	for _, platform := range []string{amd64, "linux/arm64"} {
		e := engine(t, swingsettest.Version, platform, recipes.Release)
		for _, start := range []replay.Start{replay.FromSnapshots, replay.FromBundles} {
			r := run(t, s, e, replay.Options{Start: start})
			if total := r.Totals(0); total.Level != replay.Identical || !total.Whole() {
				t.Errorf("%s from %s: %s", platform, start, show(t, total))
			} else {
				t.Logf("%s from %s: %d deliveries in %v spans", platform, start, total.Deliveries, total.Count)
			}
		}
	}
}

// Other engines are told apart, where they part.
func TestOtherEngines(t *testing.T) {
	t.Parallel()
	s := open(t, swingsettest.Store(t))
	release := engine(t, swingsettest.Version, amd64, recipes.Release)
	changed := *release
	changed.Supervisor = bytes.ReplaceAll(release.Supervisor, []byte("'idCounters'"), []byte("'idCounterz'"))
	if bytes.Equal(changed.Supervisor, release.Supervisor) {
		t.Fatal("the supervisor has no idCounters")
	}
	meters := metered(t, swingsettest.Version)
	for _, test := range []struct {
		name    string
		engine  *vat.Engine
		own     bool // bundles
		level   replay.Level
		differs []replay.Dimension
		at      int64 // first difference
	}{
		{"another worker, with the same engine", engine(t, "agoric-upgrade-16", amd64, recipes.Release), false, replay.Identical, nil, 0},
		{"the debug worker, which counts otherwise", engine(t, swingsettest.Version, amd64, recipes.Debug), false, replay.SameBehaviour, []replay.Dimension{replay.Computrons}, 1},
		{"another metering", meters, false, replay.SameBehaviour, []replay.Dimension{replay.Computrons}, 1},
		{"another version's bundles", engine(t, "agoric-upgrade-18", amd64, recipes.Release), true, replay.Divergent, []replay.Dimension{replay.WrongSyscall, replay.ExtraSyscall, replay.Computrons, replay.HeapSnapshot}, 1},
		{"a changed supervisor", &changed, true, replay.Divergent, []replay.Dimension{replay.WrongSyscall, replay.HeapSnapshot}, 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			r := run(t, s, test.engine, replay.Options{Vats: []string{"v6"}, VersionBundles: test.own})
			run := r.Vats[0].Runs[0]
			if run.Level != test.level || !run.Whole() {
				t.Errorf("expected %s: %s", test.level, show(t, run.Spans))
			}
			for _, d := range test.differs {
				if run.Differences[d] == 0 {
					t.Errorf("expected %s: %s", d, show(t, run.Spans))
				}
			}
			if test.at != 0 && run.Spans[0].Listed[0].Position != test.at {
				t.Errorf("expected a difference at item %d: %s", test.at, show(t, run.Spans))
			}
		})
	}
	t.Run("another metering, by which a delivery costs too much", func(t *testing.T) {
		t.Parallel()
		spans := run(t, s, meters, replay.Options{Vats: []string{"v8"}}).Vats[0].Runs[0].Spans
		if spans[0].Outcome != replay.Stopped || !strings.Contains(spans[0].Reason, "at item 2: Compute meter exceeded") ||
			spans[0].Differences[replay.Status] != 1 || spans[1].Outcome != replay.Unreached {
			t.Errorf("%s", show(t, spans))
		}
	})
}
