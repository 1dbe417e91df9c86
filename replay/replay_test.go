package replay_test

import (
	"encoding/json"
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
