package replay_test

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/enginery/enginery/internal/swingsettest"
	"github.com/enginery/enginery/recipes"
	"github.com/enginery/enginery/replay"
	"github.com/enginery/enginery/swingstore"
	"github.com/enginery/enginery/vat"
)

// Of a slog, vats replay on the version that made it, with its own bundles. One exceeds its meter in the end, as it did.
func TestSlog(t *testing.T) {
	t.Parallel()
	s := open(t, swingsettest.Slog(t))
	r := run(t, s, engine(t, swingsettest.Version, amd64, recipes.Release), replay.Options{Vats: []string{"v6", "v7"}})
	for _, v := range r.Vats {
		if run := v.Runs[0]; run.Level != replay.Identical || !run.Whole() || run.Deliveries < 4 {
			t.Errorf("%s: %s", v.ID, show(t, run.Spans))
		}
	}
}

// A transcript file as SwingSet's tools write it replays with the vat's bundle beside it, and lockdown and supervisor of the version.
func TestTranscriptFile(t *testing.T) {
	t.Parallel()
	store := open(t, swingsettest.Store(t))
	vats, err := store.Vats(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	v := vats[slices.IndexFunc(vats, func(v swingstore.Vat) bool { return v.ID == "v6" })]
	first, err := json.Marshal(map[string]any{
		"type": "create-vat", "transcriptNum": 0, "vatID": v.ID, "vatName": v.Name, "bundleIDs": v.Options.WorkerOptions.BundleIDs, "vatSourceBundleID": v.BundleID,
	})
	if err != nil {
		t.Fatal(err)
	}
	spans, err := store.Spans(t.Context(), v.ID)
	if err != nil {
		t.Fatal(err)
	}
	var lines strings.Builder
	lines.Write(first)
	for _, s := range spans {
		for item, err := range store.Items(t.Context(), s) {
			if err != nil {
				t.Fatal(err)
			}
			if item.Position > 0 {
				fmt.Fprintf(&lines, "\n{\"transcriptNum\":%d,%s", item.Position, item.Text[1:])
			}
		}
	}
	dir := t.TempDir()
	path := filepath.Join(dir, "transcript-v6.sst")
	if err := os.WriteFile(path, []byte(lines.String()), 0o644); err != nil {
		t.Fatal(err)
	}
	bundle, err := store.Bundle(t.Context(), v.BundleID)
	if err != nil {
		t.Fatal(err)
	}
	e := engine(t, swingsettest.Version, amd64, recipes.Release)
	for _, test := range []struct {
		beside []byte
		want   string
	}{
		{nil, "nor is it in a file " + filepath.Join(dir, v.BundleID)},
		{e.Lockdown, "bundle " + v.BundleID + " is damaged"},
		{bundle, ""},
	} {
		if test.beside != nil {
			if err := os.WriteFile(filepath.Join(dir, v.BundleID), test.beside, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		r := run(t, open(t, path), e, replay.Options{}).Vats[0].Runs[0]
		if whole := r.Level == replay.Identical && r.Whole() && r.Deliveries == 9; whole != (test.want == "") || !strings.Contains(r.Spans[0].Reason, test.want) {
			t.Errorf("expected %q: %s", test.want, show(t, r))
		}
	}
	to := engine(t, "agoric-upgrade-18", amd64, recipes.Release) // which has other bundles
	if r := compare(t, path, e, to, replay.Options{}).Vats[0].Runs[replay.ColumnMigration]; !r.Whole() {
		t.Errorf("%s", show(t, r))
	}
}

// What becomes of a worker is a result; what becomes of this machine is not.
func TestFaults(t *testing.T) {
	t.Parallel()
	release := engine(t, swingsettest.Version, amd64, recipes.Release)
	with := func(change func(e *vat.Engine)) *vat.Engine {
		e := *release
		change(&e)
		return &e
	}
	for _, test := range []struct {
		name      string
		engine    *vat.Engine
		timeout   time.Duration
		outcome   replay.Outcome
		dimension replay.Dimension
		reason    string
		fails     string // the whole run
	}{
		{
			name: "a meter that is too small", outcome: replay.Stopped, dimension: replay.Status,
			engine: with(func(e *vat.Engine) { e.Worker.MeteringLimit = 1000 }), reason: "the vat's fault ended the worker at item 6: Compute meter exceeded",
		},
		{
			name: "a worker that ends", outcome: replay.Refused, reason: "does not load its heap snapshot",
			engine: with(func(e *vat.Engine) { e.Worker.Path = wrap(t, e.Worker.Path, "exit 7") }),
		},
		{
			name: "a worker that is no worker", outcome: replay.Refused, reason: "the worker broke the protocol",
			engine: with(func(e *vat.Engine) {
				e.Worker.Path = wrap(t, e.Worker.Path, "printf 1:z, >&4; cat <&8 >/dev/null; exec sleep 1000")
			}),
		},
		{
			name: "a worker that does not answer", outcome: replay.Stopped, dimension: replay.Timeout, reason: "item 5 took longer than 2s", timeout: 2 * time.Second,
			engine: with(func(e *vat.Engine) { e.Worker.Path = wrap(t, e.Worker.Path, "cat <&8 >/dev/null; exec sleep 1000") }),
		},
		{
			name: "a worker that dies", outcome: replay.Refused, reason: "signal 11",
			engine: with(func(e *vat.Engine) { e.Worker.Path = wrap(t, e.Worker.Path, "kill -SEGV $$") }),
		},
		{
			name: "a worker that is killed", fails: "run with fewer jobs",
			engine: with(func(e *vat.Engine) { e.Worker.Path = wrap(t, e.Worker.Path, "kill -KILL $$") }),
		},
		{
			name: "a worker that somebody else ends", fails: "signal 24",
			engine: with(func(e *vat.Engine) { e.Worker.Path = wrap(t, e.Worker.Path, "kill -XCPU $$") }),
		},
		{
			name: "no worker", fails: "no such file",
			engine: with(func(e *vat.Engine) { e.Worker.Path = "/nowhere/xsnap-worker" }),
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s := open(t, excerpt(t, "v5", 1, nil))
			r, err := replay.Run(t.Context(), s, test.engine, replay.Options{Timeout: test.timeout})
			if test.fails != "" {
				if err == nil || !strings.Contains(err.Error(), test.fails) {
					t.Errorf("%v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			span := r.Vats[0].Runs[0].Spans[1]
			if span.Outcome != test.outcome || !strings.Contains(span.Reason, test.reason) || span.Level != replay.Divergent || r.Passed(0) ||
				test.dimension != "" && span.Differences[test.dimension] != 1 {
				t.Errorf("%s", show(t, span))
			}
		})
	}
}

// A worker to which this machine gives no memory says nothing of the version.
func TestRefusedMemory(t *testing.T) {
	t.Parallel()
	e := engine(t, swingsettest.Version, amd64, recipes.Release)
	c := child{
		Store: swingsettest.Store(t), Cache: t.TempDir(), Version: e.Version, Protocol: e.Worker.Protocol, Worker: wrap(t, e.Worker.Path, "ulimit -d 30000"),
		Limited: true,
	}
	text, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+string(text))
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "exit code 11 (not enough memory)") || !strings.Contains(string(out), "lift that limit") {
		t.Errorf("%v\n%s", err, out)
	}
}

// A store that a node is writing is replayed as it was committed last.
func TestWhileWriting(t *testing.T) {
	t.Parallel()
	path := excerpt(t, "v5", 1, nil)
	w, err := swingstore.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	tx, err := w.Begin()
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback()
	if _, err := tx.AddItem("v5", []byte(`{"d":["nonsense"],"sc":[],"r":{"status":"ok"}}`)); err != nil {
		t.Fatal(err)
	}
	s := open(t, path)
	o := replay.Options{Observe: func(e replay.Event) {
		if e.Kind == replay.Started && e.Start > 0 { // and goes on being written while it is read
			if err := tx.Commit(); err != nil {
				t.Error(err)
			}
		}
	}}
	r := run(t, s, engine(t, swingsettest.Version, amd64, recipes.Release), o)
	if span := r.Vats[0].Runs[0].Spans[1]; span.Outcome != replay.Replayed || span.Level != replay.Identical || span.End != 32 {
		t.Errorf("%s", show(t, span))
	}
}
