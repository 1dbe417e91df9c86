package swingsettest_test

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/enginery/enginery/internal/swingsettest"
	"github.com/enginery/enginery/swingstore"
)

// The committed store and slog are what the kernel leaves.
func TestFixtureIsWhatTheKernelLeaves(t *testing.T) {
	t.Parallel()
	out := swingsettest.Run(t, "--compact")
	for _, f := range []struct{ committed, made string }{
		{swingsettest.Store(t), "store/swingstore.sqlite"},
		{swingsettest.Slog(t), "slog.jsonl"},
	} {
		want, err := os.ReadFile(f.committed)
		if err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(filepath.Join(out, f.made))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s has %d bytes and differs from the committed one, of %d bytes; testdata/swingset/README.md says how to renew that", f.made, len(got), len(want))
		}
	}
}

// Vats that are bundled are those that the kernel ran.
func TestBundles(t *testing.T) {
	t.Parallel()
	s, err := swingstore.Open(swingsettest.Store(t))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	names := []string{"ledger-1", "worker", "ledger-2"}
	for i, bundle := range swingsettest.Bundles(t, names...) {
		id, err := swingstore.ParseBundle(bundle)
		if err == nil {
			_, err = s.Bundle(t.Context(), id)
		}
		if err != nil {
			t.Errorf("%s: %v", names[i], err)
		}
	}
}

// The store has all that a vat can be told and can ask for, but for what needs no worker or that this kernel no longer does: changeVatOptions,
// stopVat, and abandonExports, which the kernel does itself when a vat is upgraded.
func TestFixtureHasEverything(t *testing.T) {
	t.Parallel()
	s, err := swingstore.Open(swingsettest.Store(t))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	vats, err := s.Vats(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	deliveries, syscalls := make(map[string]int), make(map[string]int)
	var closest int64 // to a delivery's limit, in computrons
	for _, v := range vats {
		spans, err := s.Spans(t.Context(), v.ID)
		if err != nil {
			t.Fatal(err)
		}
		for _, span := range spans {
			for item, err := range s.Items(t.Context(), span) {
				if err != nil {
					t.Fatal(err)
				}
				var e struct {
					D  []json.RawMessage
					SC []struct{ S []json.RawMessage }
					R  struct{ Metering struct{ Computrons int64 } }
				}
				if err := json.Unmarshal(item.Text, &e); err != nil {
					t.Fatal(err)
				}
				deliveries[string(e.D[0])]++
				for _, s := range e.SC {
					syscalls[string(s.S[0])]++
				}
				closest = max(closest, e.R.Metering.Computrons)
			}
		}
	}
	for _, kind := range []string{"initialize-worker", "load-snapshot", "save-snapshot", "shutdown-worker", "startVat", "message", "notify",
		"bringOutYourDead", "dropExports", "retireExports", "retireImports"} {
		if deliveries[`"`+kind+`"`] == 0 {
			t.Errorf("there is no delivery %s among %v", kind, deliveries)
		}
	}
	for _, kind := range []string{"send", "subscribe", "resolve", "callNow", "exit", "vatstoreGet", "vatstoreGetNextKey", "vatstoreSet",
		"vatstoreDelete", "dropImports", "retireImports", "retireExports"} {
		if syscalls[`"`+kind+`"`] == 0 {
			t.Errorf("there is no syscall %s among %v", kind, syscalls)
		}
	}
	const limit = 100_000_000
	if closest > limit || closest < limit*999/1000 {
		t.Errorf("the most expensive delivery is of %d computrons, the limit is %d", closest, limit)
	}
	terminated := slices.DeleteFunc(vats, func(v swingstore.Vat) bool { return !v.Terminated })
	if len(terminated) != 2 {
		t.Errorf("terminated: %v", terminated)
	}
}
