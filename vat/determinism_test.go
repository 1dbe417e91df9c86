package vat

import (
	"context"
	"path/filepath"
	"testing"
)

// The same happens to a vat in every run: however often its worker is started anew, at any load, and on any processor, all that the store
// has is the same, byte for byte: transcript, computrons, heap snapshots.
func TestDeterminism(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 4*deadline)
	defer cancel()
	bundles := historyBundles(t)
	runs := []struct {
		name, platform string
		evict          func(i int) bool
		keepWorker     bool
		ahead          bool
	}{
		{"one worker", "linux/amd64", func(int) bool { return false }, false, false},
		{"a worker a step", "linux/amd64", func(int) bool { return true }, false, false},
		{"workers that are kept", "linux/amd64", func(int) bool { return false }, true, false},
		{"workers that are started ahead", "linux/amd64", func(i int) bool { return i%4 == 0 }, false, true},
		{"on arm64", "linux/arm64", func(i int) bool { return i%5 == 0 }, false, false},
	}
	dumps := make([]string, len(runs))
	t.Run("runs", func(t *testing.T) {
		for i, r := range runs {
			t.Run(r.name, func(t *testing.T) {
				t.Parallel()
				s := openStore(t, filepath.Join(t.TempDir(), "store.sqlite"))
				es := [2]*Engine{engine(t, older, r.platform), engine(t, newer, r.platform)}
				h := newHistory(s, "same", bundles, es, func(o *Options) { o.KeepWorker = r.keepWorker })
				defer h.v.Close()
				err := h.run(ctx, 24, func(i int) error {
					var err error
					if r.evict(i) {
						err = h.v.Close()
					}
					if err == nil && r.ahead {
						err = h.ahead(ctx, i)
					}
					return err
				})
				if err != nil {
					t.Fatal(err)
				}
				dumps[i] = dump(t, s)
			})
		}
	})
	for i, r := range runs[1:] {
		if d := dumps[i+1]; d != dumps[0] {
			t.Errorf("%s and %s: %s", runs[0].name, r.name, firstDifference(dumps[0], d))
		}
	}
}
