package replay_test

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

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

const amd64, arm64 = "linux/amd64", "linux/arm64"

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

// soakEnv has the kernel run anew, and all that it leaves replayed in every way: it takes minutes.
const soakEnv = "ENGINERY_REPLAY_SOAK"

// The store that the real kernel has left replays as it was recorded, to the last byte of each heap: from the vats' starts, and from heap snapshots,
// where each span is a piece of its own.
func TestIdentical(t *testing.T) {
	t.Parallel()
	whole, withHeaps, vats := swingsettest.Store(t), storeWithHeaps(t), madeOf
	if os.Getenv(soakEnv) != "" {
		whole = filepath.Join(swingsettest.Run(t), "store")
		withHeaps, vats = whole, nil
	}
	for _, test := range []struct {
		name, store, platform string
		o                     replay.Options
	}{
		{"from the start", whole, amd64, replay.Options{Start: replay.FromBundles}},
		{"from the start on arm64", whole, arm64, replay.Options{Start: replay.FromBundles}},
		{"from snapshots", withHeaps, amd64, replay.Options{Vats: vats}},
		{"from snapshots on arm64", withHeaps, arm64, replay.Options{Vats: vats}},
		{"without reloads", whole, amd64, replay.Options{Vats: []string{"v5"}, KeepWorker: true, Start: replay.FromBundles}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			r := run(t, open(t, test.store), engine(t, swingsettest.Version, test.platform, recipes.Release), test.o)
			for _, v := range r.Vats {
				run := v.Runs[0]
				if run.Level != replay.Identical || !run.Whole() {
					t.Errorf("%s", show(t, run.Spans))
				}
				if last := run.Spans[len(run.Spans)-1]; test.o.Start == "" && slices.Contains(madeOf, v.ID) && !strings.HasPrefix(last.From, "snapshot ") {
					t.Errorf("the last span of %s starts from %s", v.ID, last.From)
				}
				t.Logf("%s: %d deliveries, %d spans", v.ID, run.Deliveries, v.Spans)
			}
		})
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
