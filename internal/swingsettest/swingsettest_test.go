package swingsettest_test

import (
	"bytes"
	"os"
	"path/filepath"
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
