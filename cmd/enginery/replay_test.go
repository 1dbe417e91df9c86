package main

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/enginery/enginery/internal/exit"
	"github.com/enginery/enginery/internal/swingsettest"
	"github.com/enginery/enginery/replay"
)

// plantedStore returns the kernel's store with another meter and another syscall in v6, and without an item of v9.
func plantedStore(t testing.TB) string {
	t.Helper()
	store := swingsettest.Store(t)
	swingsettest.Plant(t, store, "v6", 3, `"computrons":`, `"computrons":1`)
	swingsettest.Plant(t, store, "v6", 2, `"sc":[`, `"sc":[{"s":["vatstoreDelete","<b>not</b>"],"r":["ok",null]},`)
	swingsettest.Change(t, store, "DELETE FROM transcriptItems WHERE vatID = 'v9' AND position >= 5")
	return store
}

// TestReplayInterrupt has Ctrl-C end a replay. The same command then goes on, and comes to what an undisturbed one does.
func TestReplayInterrupt(t *testing.T) {
	t.Parallel()
	w := makeWorld(t)
	home := t.TempDir()
	w.node(t, home, "oci:"+w.signed)
	if status, out := run(t.Context(), t, home, "fetch", current); status != 0 {
		t.Fatalf("status %d\n%s", status, out)
	}
	args := []string{"replay", "--store", swingsettest.Store(t), "--version", current, "--vat", "v6,v8,v9", "--level", "identical", "--jobs", "1", "--json", "--quiet"}
	ctx, interrupt := context.WithCancel(t.Context())
	defer interrupt()
	known := func() int {
		results, _ := filepath.Glob(filepath.Join(home, "state", "replay", "actions", "*", "*"))
		return len(results)
	}
	go func() {
		for ctx.Err() == nil && known() == 0 {
			time.Sleep(5 * time.Millisecond)
		}
		interrupt()
	}()
	if status, out := run(ctx, t, home, args...); status != exit.Interrupted {
		t.Fatalf("status %d, want %d\n%s", status, exit.Interrupted, out)
	}
	if n := known(); n == 0 || n >= 3 {
		t.Errorf("%d results are known after Ctrl-C, of 3", n)
	}
	partial, _ := filepath.Glob(filepath.Join(home, "state", "replay", "tmp", "*"))
	if len(partial) > 0 {
		t.Errorf("left behind: %v", partial)
	}
	report := func(args ...string) *replay.Report {
		status, out := run(t.Context(), t, home, args...)
		if status != 0 {
			t.Fatalf("status %d\n%s", status, out)
		}
		r := new(replay.Report)
		must(t, json.Unmarshal([]byte(out), r))
		return r.WithoutTimes()
	}
	resumed, undisturbed := report(args...), report(append(args, "--resume=false")...)
	if diff := cmp.Diff(undisturbed, resumed); diff != "" {
		t.Errorf("after Ctrl-C the report is another:\n%s", diff)
	}
	begun := time.Now()
	report(args...)
	t.Logf("what is known takes %v", time.Since(begun))
	if _, err := os.Stat(filepath.Join(home, "state", "replay")); err != nil {
		t.Error(err)
	}
}
