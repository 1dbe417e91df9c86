package vat

import (
	"bytes"
	"context"
	"encoding/json"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"github.com/enginery/enginery/internal/swingsettest"
	"github.com/enginery/enginery/swingstore"
)

// The real kernel and this package run the same vats in turn: each brings back from the other's heap snapshots and transcripts what the other
// did, the kernel with its own check of every syscall, also after an upgrade to a named version. SwingSet's export and import find every hash right.
func TestHandover(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 2*deadline)
	defer cancel()
	e := engine(t, newer, "linux/amd64")
	scripts, dir := swingsettest.Scripts(t), filepath.Join(t.TempDir(), "store")
	kernel := func(args []string, want ...string) {
		t.Helper()
		cmd := exec.CommandContext(ctx, "node", append([]string{"handover.js", dir, "--worker=" + e.Worker.Path}, args...)...)
		cmd.Dir, cmd.Stderr = scripts, t.Output()
		out, err := cmd.Output()
		var got []string
		if err == nil {
			err = json.Unmarshal(out, &got)
		}
		if err != nil || !slices.Equal(got, want) {
			t.Fatalf("the kernel, asked for %v, returns %q, %v; expected %q", args, got, err, want)
		}
	}
	kernel([]string{"counter.count", "counter.count", "ledger.open.a", "counter.count", "ledger.owners"},
		"fulfilled 1", "fulfilled 2", "fulfilled {}", "fulfilled 3", `fulfilled "a"`)

	s := openStore(t, dir)
	here := func(name string, f func(v *Vat)) {
		t.Helper()
		id, err := s.Get(ctx, "vat.name."+name)
		if err != nil {
			t.Fatal(err)
		}
		v := New(Options{ID: id, Host: results{}, Engines: only(e), SnapshotInterval: 5})
		f(v)
		if err := v.Close(); err != nil {
			t.Fatal(err)
		}
	}
	deliver := func(v *Vat, method, args string) {
		t.Helper()
		// What a result's promise is called is the kernel's affair, so there is none.
		m := message("", method, args)
		if r, err := v.Crank(ctx, s, bytes.Replace(m, []byte(`"result":""`), []byte(`"result":null`), 1)); err != nil || !r.Kept {
			t.Fatalf("%s: %+v, %v", method, r, err)
		}
	}
	here("counter", func(v *Vat) {
		if span, err := s.Current(ctx, v.o.ID); err != nil || span.Engine != "" {
			t.Errorf("%+v, %v: the kernel's data does not read as legacy", span, err)
		}
		for range 7 { // over a heap snapshot
			deliver(v, "count", "[]")
		}
	})
	here("ledger", func(v *Vat) {
		deliver(v, "open", `["b"]`)
		old, err := s.Vat(ctx, v.o.ID)
		if err != nil {
			t.Fatal(err)
		}
		id := add(t, s, swingsettest.Bundles(t, "ledger-2")[0])[0]
		if r := upgrade(t, s, v, Incarnation{Engine: newer, BundleID: id, Parameters: old.Parameters}); !r.Kept {
			t.Fatalf("%+v", r)
		}
		deliver(v, "open", `["c"]`)
		deliver(v, "deposit", `["c","+5"]`)
	})

	copied := filepath.Join(t.TempDir(), "copy")
	kernel([]string{"--copy=" + copied, "counter.count", "ledger.report", "ledger.sum", "counter.count"},
		"fulfilled 11", `fulfilled {"incarnations":2,"owners":3,"vatParameters":{},"version":2}`, `fulfilled "5n"`, "fulfilled 12")
	c, err := swingstore.Open(copied)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	here("ledger", func(v *Vat) {
		for _, s := range []*swingstore.Store{s, c} {
			if span, err := s.Current(ctx, v.o.ID); err != nil || span.Engine != newer || span.Incarnation != 1 {
				t.Errorf("%s: %+v, %v: expected engine %s", s.Path(), span, err, newer)
			}
		}
		deliver(v, "open", `["d"]`) // which replays what the kernel did
	})
	here("counter", func(v *Vat) { deliver(v, "count", "[]") })
}
