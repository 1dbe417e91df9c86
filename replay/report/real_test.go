package report

import (
	"context"
	"encoding/json"
	"strings"
	"sync"
	"testing"

	"github.com/enginery/enginery/internal/enginetest"
	"github.com/enginery/enginery/internal/swingsettest"
	"github.com/enginery/enginery/recipes"
	"github.com/enginery/enginery/replay"
	"github.com/enginery/enginery/replay/transcripts"
	"github.com/enginery/enginery/vat"
	"github.com/enginery/enginery/xsnap"
)

// engine returns a version's engine for this machine.
func engine(t testing.TB, version, goal string) *vat.Engine {
	t.Helper()
	r := enginetest.Recipe(t, version)
	e := &vat.Engine{Version: version, LoadsSnapshotsOf: r.Engine.LoadsSnapshotsOf, Worker: xsnap.Options{
		Version:   version,
		Path:      enginetest.Worker(t, version, "linux/amd64", goal),
		Protocol:  r.Engine.Protocol,
		MeterType: r.Engine.Meter,
	}}
	e.Lockdown, e.Supervisor = enginetest.Bundles(t, r)
	return e
}

func open(t testing.TB, path string) transcripts.Source {
	t.Helper()
	s, err := transcripts.Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// hostile is a name that means harm to whoever does not escape it.
const hostile = `</title><script>document.title = "hijacked"</script>'"&<!--]]>` + "\u202e\x1b[31m"

// replays are reports on real replays of the kernel's store, made once for all tests: of three vats of which one was terminated and has a
// hostile name, on the version that made it, as they were and with changes planted; and compared with another version.
type replays struct {
	same, planted, compared *replay.Report
	reproducers             string // folder with those of planted
}

var vats = []string{"v5", "v6", "v9"}

// harm is JSON that means harm to whoever does not escape it.
var harm = func() string {
	b, _ := json.Marshal(hostile)
	return string(b)
}()

var real = struct {
	sync.Mutex
	*replays
}{}

func reports(t testing.TB) *replays {
	t.Helper()
	real.Lock()
	defer real.Unlock()
	if real.replays != nil {
		return real.replays
	}
	r := &replays{reproducers: t.TempDir()}
	e := engine(t, swingsettest.Version, recipes.Release)
	store := swingsettest.Store(t)
	name, _ := json.Marshal(map[string]string{"name": hostile})
	swingsettest.Change(t, store, "UPDATE kvStore SET value = json_patch(value, ?) WHERE key = 'v6.options'", string(name))
	ctx := context.WithoutCancel(t.Context())
	var err error
	if r.same, err = replay.Run(ctx, open(t, store), e, replay.Options{Vats: vats, Passes: replay.Identical}); err != nil {
		t.Fatal(err)
	}

	swingsettest.Plant(t, store, "v5", 7, `#\\\"+0`, `#\\\"+7`)                                                        // what a syscall writes
	swingsettest.Plant(t, store, "v5", 8, `"computrons":`, `"computrons":1`)                                           // a meter
	swingsettest.Plant(t, store, "v5", 67, `"snapshotID":"`, `"snapshotID":"0`)                                        // the hash of a heap snapshot
	swingsettest.Plant(t, store, "v6", 2, `"sc":[`, `"sc":[{"s":["vatstoreDelete",`+harm+`],"r":["ok",null]},`)        // a syscall that there was not
	swingsettest.Change(t, store, "DELETE FROM transcriptItems WHERE vatID = 'v9' AND position >= 5")                  // a span that was pruned
	swingsettest.Change(t, store, "UPDATE transcriptItems SET item = item || ' ' WHERE vatID = 'v6' AND position = 6") // damage
	if r.planted, err = replay.Run(ctx, open(t, store), e, replay.Options{Vats: vats, Reproducers: r.reproducers}); err != nil {
		t.Fatal(err)
	}

	old := engine(t, "agoric-upgrade-16", recipes.Release)
	old.LoadsSnapshotsOf = []string{"agoric-upgrade-16"}
	if r.compared, err = replay.Compare(ctx, open(t, store), e, old, replay.Options{Vats: []string{"v5"}, Snapshots: t.TempDir()}); err != nil {
		t.Fatal(err)
	}
	real.replays = r
	return r
}

func (r *replays) each(t *testing.T, f func(t *testing.T, r *replay.Report)) {
	for name, report := range map[string]*replay.Report{"same": r.same, "planted": r.planted, "compared": r.compared} {
		t.Run(name, func(t *testing.T) { f(t, report) })
	}
}

func contains(t *testing.T, text string, all ...string) {
	t.Helper()
	for _, want := range all {
		if !strings.Contains(text, want) {
			t.Errorf("there is no %q in\n%.3000s", want, text)
		}
	}
}
