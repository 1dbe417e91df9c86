package vat

import (
	"path/filepath"
	"slices"
	"testing"

	"github.com/enginery/enginery/internal/swingsettest"
	"github.com/enginery/enginery/swingstore"
)

// Whether workers were started ahead, in vain or not, cannot be seen in what a vat has done.
func TestStartedAhead(t *testing.T) {
	t.Parallel()
	bundles := swingsettest.Bundles(t, "ledger-1", "ledger-2")
	engines := only(engine(t, older, "linux/amd64"), engine(t, newer, "linux/amd64"))
	live := func(ahead bool) []swingstore.Span {
		s := openStore(t, filepath.Join(t.TempDir(), "store.sqlite"))
		ids := add(t, s, bundles...)
		v := New(Options{ID: "v1", Host: results{}, Engines: engines, SnapshotInterval: 6})
		defer v.Close()
		wake := func() {
			if ahead {
				v.Close()
				if err := v.Wake(t.Context(), &s.Reader); err != nil {
					t.Fatal(err)
				}
				if v.m == nil {
					t.Error("a vat that was woken has no worker")
				}
			}
		}
		prepare := func(i Incarnation) {
			if ahead {
				if err := v.Prepare(t.Context(), &s.Reader, i); err != nil {
					t.Fatal(err)
				}
			}
		}
		create(t, s, v, Incarnation{Engine: older, BundleID: ids[0], Parameters: parameters(`{"currency":"IST"}`)})
		wake()
		call(t, s, v, "open", `["a"]`)
		next := Incarnation{Engine: newer, BundleID: ids[1], Parameters: parameters(`{"currency":"BLD"}`)}
		prepare(Incarnation{Engine: newer, BundleID: ids[0]}) // which is not what follows
		prepare(next)
		prepared := v.next
		wake() // and with the old worker goes the one that was prepared
		prepare(next)
		if prepared == nil && ahead || v.next != nil && v.next == prepared {
			t.Error("closing a vat has left a worker that was prepared")
		}
		wantCall(t, s, v, "deposit", `["a","+5"]`, `"+5"`)
		mine := v.next
		if r := upgrade(t, s, v, next); !r.Kept {
			t.Fatalf("%+v", r)
		}
		if ahead && (v.next != nil || mine == nil) {
			t.Error("an upgrade has not used the worker that was prepared")
		}
		wantCall(t, s, v, "deposit", `["a","+1"]`, `"+6"`)
		wake()
		wantCall(t, s, v, "deposit", `["a","+1"]`, `"+7"`)
		spans, err := s.Spans(t.Context(), "v1")
		if err != nil {
			t.Fatal(err)
		}
		return spans
	}
	if got, want := live(true), live(false); !slices.Equal(got, want) {
		t.Errorf("with workers that were started ahead: %v, expected %v", got, want)
	}
}
