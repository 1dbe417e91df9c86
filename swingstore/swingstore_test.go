package swingstore_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/enginery/enginery/internal/swingsettest"
	"github.com/enginery/enginery/swingstore"
)

func open(t *testing.T, path string) *swingstore.Store {
	t.Helper()
	s, err := swingstore.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// readAll reads all of a store that is hashed, and returns how much there was.
func readAll(s *swingstore.Store) (spans, items int, err error) {
	ctx := context.Background()
	vats, err := s.Vats(ctx)
	if err != nil {
		return 0, 0, err
	}
	for _, v := range vats {
		list, err := s.Spans(ctx, v.ID)
		if err != nil {
			return 0, 0, err
		}
		for _, span := range list {
			spans++
			for _, err := range s.Items(ctx, span) {
				if err != nil {
					return 0, 0, err
				}
				items++
			}
		}
		snapshots, err := s.Snapshots(ctx, v.ID)
		if err != nil {
			return 0, 0, err
		}
		for _, snapshot := range snapshots {
			if !snapshot.Present {
				continue
			}
			r, err := s.OpenSnapshot(ctx, snapshot)
			if err != nil {
				return 0, 0, err
			}
			if _, err := io.Copy(io.Discard, r); err != nil {
				return 0, 0, err
			}
			r.Close()
		}
	}
	ids, err := s.Bundles(ctx)
	if err != nil {
		return 0, 0, err
	}
	for _, id := range ids {
		if _, err := s.Bundle(ctx, id); err != nil {
			return 0, 0, err
		}
	}
	return spans, items, nil
}

// Every hash in the real kernel's store is that of what is there.
func TestRealStore(t *testing.T) {
	t.Parallel()
	s := open(t, swingsettest.Store(t))
	spans, items, err := readAll(s)
	if err != nil {
		t.Fatal(err)
	}
	if spans != 61 || items != 1273 {
		t.Errorf("%d spans with %d items", spans, items)
	}
	vats, err := s.Vats(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, v := range vats {
		got = append(got, fmt.Sprint(v.ID, " ", v.Name, " ", v.Static, " ", v.Terminated, " ", len(v.Options.WorkerOptions.BundleIDs), " ", string(v.Parameters)))
		if v.BundleID == "" || v.Options.WorkerOptions.Engine != "" {
			t.Errorf("%s: bundle %q, engine %q", v.ID, v.BundleID, v.Options.WorkerOptions.Engine)
		}
	}
	want := []string{
		`v1 bootstrap true false 2 {"body":"#{\"argv\":[]}","slots":[]}`,
		`v2 vatAdmin true false 2 {"body":"#{}","slots":[]}`,
		`v3 alice true false 2 {"body":"#{\"name\":\"alice\"}","slots":[]}`,
		`v4 bob true false 2 {"body":"#{\"name\":\"bob\"}","slots":[]}`,
		`v5 ledger false false 2 {"body":"#{\"currency\":\"BLD\"}","slots":[]}`,
		`v6 doomed false true 2 {"body":"#{\"name\":\"doomed\"}","slots":[]}`,
		`v8 frugal false false 2 {"body":"#{\"name\":\"frugal\"}","slots":[]}`,
		`v9 leaver false true 2 {"body":"#{\"name\":\"leaver\"}","slots":[]}`,
	}
	if !slices.Equal(got, want) {
		t.Errorf("vats:\n%s\nexpected\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	v, err := s.Vat(t.Context(), "v5")
	if err != nil || v.Name != "ledger" || v.Static {
		t.Errorf("v5: %+v, %v", v, err)
	}
	for name, f := range map[string]func() error{
		"vat":      func() error { _, err := s.Vat(t.Context(), "v7"); return err },
		"key":      func() error { _, err := s.Get(t.Context(), "no key"); return err },
		"bundle":   func() error { _, err := s.Bundle(t.Context(), "b1-00"); return err },
		"span":     func() error { _, err := s.Current(t.Context(), "v6"); return err },
		"snapshot": func() error { _, err := s.SnapshotInUse(t.Context(), "v6"); return err },
	} {
		if err := f(); !errors.Is(err, swingstore.ErrNotFound) {
			t.Errorf("a %s that is not there: %v", name, err)
		}
	}
	snapshots, err := s.Snapshots(t.Context(), "v5")
	if err != nil || len(snapshots) != 5 || snapshots[0].Present || snapshots[4].Position != 94 || !snapshots[4].InUse || snapshots[3].InUse {
		t.Fatalf("heap snapshots of v5: %+v, %v", snapshots, err)
	}
	if _, err := s.OpenSnapshot(t.Context(), snapshots[0]); !errors.Is(err, swingstore.ErrPruned) {
		t.Errorf("a heap snapshot that is no longer there: %v", err)
	}
	if next, err := s.NextKey(t.Context(), "v5.vs.baggageID"); err != nil || !strings.HasPrefix(next, "v5.vs.") {
		t.Errorf("the next key: %q, %v", next, err)
	}
	if next, err := s.NextKey(t.Context(), "zzz"); err != nil || next != "" {
		t.Errorf("the key after the last: %q, %v", next, err)
	}
}

// What is not a store, or no whole one, is refused, and never read as if it were.
func TestNotAStore(t *testing.T) {
	t.Parallel()
	store := swingsettest.Store(t)
	whole, err := os.ReadFile(store)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	file := func(name string, content []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	foreign := filepath.Join(dir, "foreign")
	db, err := sql.Open("sqlite", foreign)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := db.Exec("CREATE TABLE transcriptItems (a, b); CREATE TABLE kvStore (key)"); err != nil {
		t.Fatal(err)
	}
	db.Close()
	for _, test := range []struct {
		path, want string
		is         error
	}{
		{filepath.Join(dir, "nothing"), "no such file", os.ErrNotExist},
		{dir, swingstore.FileName, os.ErrNotExist},
		{file("garbage", bytes.Repeat([]byte("garbage"), 1000)), "not a database", swingstore.ErrForeign},
		{file("empty", nil), "it has no table kvStore", swingstore.ErrForeign},
		{foreign, "its table kvStore has no column value", swingstore.ErrForeign},
		{file("half", whole[:len(whole)/2]), "damaged or cut off", nil},
		{file("start", whole[:50]), "damaged or cut off", nil},
	} {
		s, err := swingstore.Open(test.path)
		if err == nil {
			s.Close()
			t.Errorf("%s was opened", test.path)
		} else if !strings.Contains(err.Error(), test.want) || test.is != nil && !errors.Is(err, test.is) {
			t.Errorf("%s: %v; expected %q", test.path, err, test.want)
		}
	}
	if _, err := swingstore.Create(foreign); !errors.Is(err, swingstore.ErrForeign) {
		t.Errorf("making a store of something else: %v", err)
	}
}

// One change anywhere in a store is found, and named.
func TestDamage(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ name, change, want string }{
		{"item", "UPDATE transcriptItems SET item = replace(item, 'ok', 'kk') WHERE vatID = 'v3' AND position = 40", "span 32-59 of v3 is damaged: expected hash"},
		{"order", "UPDATE transcriptItems SET position = CASE position WHEN 40 THEN -41 ELSE -40 END WHERE vatID = 'v3' AND position IN (40, 41); UPDATE transcriptItems SET position = -position WHERE position < 0", "span 32-59 of v3 is damaged: expected hash"},
		{"missing item", "DELETE FROM transcriptItems WHERE vatID = 'v3' AND position = 40", "span 32-59 of v3 is damaged: expected item 40, found item 41"},
		{"last item", "DELETE FROM transcriptItems WHERE vatID = 'v3' AND position = 201", "span 194-202 of v3 is damaged: expected item 201, found the end"},
		{"incarnation of an item", "UPDATE transcriptItems SET incarnation = 1 WHERE vatID = 'v3' AND position = 40", "expected incarnation 0, found 1"},
		{"hash", "UPDATE transcriptSpans SET hash = replace(hash, 'a', 'b') WHERE vatID = 'v4' AND startPos = 0", "span 0-5 of v4 is damaged"},
		{"span", "DELETE FROM transcriptSpans WHERE vatID = 'v4' AND startPos = 32", "expected a span that starts at 32, found 59"},
		{"end", "UPDATE transcriptSpans SET endPos = 4 WHERE vatID = 'v6' AND startPos = 5", "expected an end that is not before its start, found 4"},
		{"incarnation", "UPDATE transcriptSpans SET incarnation = 7 WHERE vatID = 'v6' AND startPos = 5", "expected incarnation 0 or the next, found 7"},
		{"text bundle", "UPDATE bundles SET bundle = replace(bundle, 'use strict', 'use strikt') WHERE bundleID LIKE 'b0-40%'", "expected b0-40a8"},
		{"zip bundle", "UPDATE bundles SET bundle = (SELECT bundle FROM bundles WHERE bundleID LIKE 'b1-2%') WHERE bundleID LIKE 'b1-3%'", "expected b1-3bd6"},
		{"garbled bundle", "UPDATE bundles SET bundle = x'00112233' WHERE bundleID LIKE 'b1-3%'", "expected a bundle, found zip"},
		{"no bundle", "UPDATE bundles SET bundle = NULL WHERE bundleID LIKE 'b1-3%'", "pruned from the store"},
		{"snapshot", "UPDATE snapshots SET compressedSnapshot = x'00112233' WHERE vatID = 'v2' AND snapPos = 4", "heap snapshot 4 of v2 is damaged: expected gzip"},
		{"options", "UPDATE kvStore SET value = '{' WHERE key = 'v2.options'", `reading key "v2.options"`},
		{"names", "UPDATE kvStore SET value = '7' WHERE key = 'vat.names'", `reading key "vat.names"`},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			path := swingsettest.Store(t)
			db, err := sql.Open("sqlite", path)
			if err != nil {
				t.Fatal(err)
			}
			result, err := db.Exec(test.change)
			if err != nil {
				t.Fatal(err)
			}
			if n, _ := result.RowsAffected(); n == 0 {
				t.Fatal("nothing was changed")
			}
			db.Close()
			if _, _, err := readAll(open(t, path)); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("%v; expected %q", err, test.want)
			}
		})
	}
}

// A reader sees what is committed, while and after it is written, and nothing else.
func TestLive(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), swingstore.FileName)
	w, err := swingstore.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if err := w.Update(func(tx *swingstore.Tx) error { return tx.InitTranscript("v1") }); err != nil {
		t.Fatal(err)
	}
	r := open(t, path)
	add := func(tx *swingstore.Tx, n int) error {
		for range n {
			if _, err := tx.AddItem("v1", []byte(`{"d":["bringOutYourDead"],"sc":[],"r":{"status":"ok"}}`)); err != nil {
				return err
			}
		}
		return nil
	}
	if err := w.Update(func(tx *swingstore.Tx) error { return add(tx, 1000) }); err != nil {
		t.Fatal(err)
	}
	tx, err := w.Begin()
	if err != nil {
		t.Fatal(err)
	}
	if err := add(tx, 10); err != nil {
		t.Fatal(err)
	}
	if mine, err := tx.Current(t.Context(), "v1"); err != nil || mine.End != 1010 {
		t.Errorf("the writer sees %+v, %v", mine, err)
	}
	span, err := r.Current(t.Context(), "v1")
	if err != nil || span.End != 1000 {
		t.Fatalf("the reader sees %+v, %v", span, err)
	}
	n := 0
	for _, err := range r.Items(t.Context(), span) {
		if err != nil {
			t.Fatal(err)
		}
		if n++; n == 500 { // a commit, while the reader is at it
			if err := tx.Commit(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if n != 1000 {
		t.Errorf("%d items", n)
	}
	if span, err = r.Current(t.Context(), "v1"); err != nil || span.End != 1010 {
		t.Errorf("after the commit the reader sees %+v, %v", span, err)
	}
	if _, err := r.Begin(); err == nil {
		t.Error("a transaction began in a store that is open for reading")
	}
	n, err = 0, nil
	for _, err = range r.Items(t.Context(), span) {
		if n++; n == 1 { // a node removes the span, while the reader is at it
			swingsettest.Change(t, path, "DELETE FROM transcriptItems WHERE vatID = 'v1'")
		}
	}
	if !errors.Is(err, swingstore.ErrPruned) {
		t.Errorf("of a span that is removed meanwhile: %v", err)
	}
}

func TestTransactions(t *testing.T) {
	t.Parallel()
	memory, err := swingstore.Memory()
	if err != nil {
		t.Fatal(err)
	}
	file, err := swingstore.Create(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []*swingstore.Store{memory, file} {
		defer s.Close()
		no := errors.New("no")
		get := func(r interface {
			Get(context.Context, string) (string, error)
		}) string {
			v, _ := r.Get(t.Context(), "k")
			return v
		}
		if err := s.Update(func(tx *swingstore.Tx) error { return tx.Set("k", "1") }); err != nil {
			t.Fatal(err)
		}
		if err := s.Update(func(tx *swingstore.Tx) error { return errors.Join(tx.Set("k", "2"), no) }); !errors.Is(err, no) || get(s) != "1" {
			t.Errorf("a transaction that fails: %v, and the value is %q", err, get(s))
		}
		if err := s.Update(func(tx *swingstore.Tx) error {
			return tx.Try(func() error {
				if err := tx.Try(func() error { return errors.Join(tx.Set("k", "3"), no) }); !errors.Is(err, no) || get(tx) != "1" {
					t.Errorf("a part that fails: %v, and the value is %q", err, get(tx))
				}
				return tx.Set("k", get(tx)+"4")
			})
		}); err != nil || get(s) != "14" {
			t.Errorf("a transaction of which a part fails: %v, and the value is %q", err, get(s))
		}
		func() {
			defer func() { recover() }()
			s.Update(func(tx *swingstore.Tx) error { tx.Set("k", "5"); panic("ouch") })
		}()
		if get(s) != "14" {
			t.Errorf("after a panic the value is %q", get(s))
		}
		if err := s.Update(func(tx *swingstore.Tx) error { return tx.Delete("k") }); err != nil || get(s) != "" {
			t.Errorf("removing: %v, and the value is %q", err, get(s))
		}
	}
}

// Spans, snapshots, bundles and engines are read as they were written.
func TestWrite(t *testing.T) {
	t.Parallel()
	real := open(t, swingsettest.Store(t))
	s, err := swingstore.Memory()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	ctx := t.Context()
	heap := bytes.Repeat([]byte("heap"), 100_000)
	hash := sha256.Sum256(heap)
	spans, err := real.Spans(ctx, "v5")
	if err != nil {
		t.Fatal(err)
	}
	v5, err := real.Vat(ctx, "v5")
	if err != nil {
		t.Fatal(err)
	}
	bundle, err := real.Bundle(ctx, v5.BundleID)
	if err != nil {
		t.Fatal(err)
	}
	err = s.Update(func(tx *swingstore.Tx) error {
		if id, err := tx.AddBundle(bundle); err != nil || id != v5.BundleID {
			return fmt.Errorf("the bundle became %s: %w", id, err)
		}
		if err := errors.Join(tx.SetVat(*v5), tx.InitTranscript("v5")); err != nil {
			return err
		}
		for i, span := range spans {
			if i > 0 {
				if _, err := tx.Rollover("v5", span.Incarnation > spans[i-1].Incarnation); err != nil {
					return err
				}
			}
			if span.Incarnation > 0 && span.Start == 63 {
				if err := tx.SetEngine("v5", span.Start, "agoric-upgrade-18"); err != nil {
					return err
				}
			}
			for item, err := range real.Items(ctx, span) {
				if err != nil {
					return err
				}
				if item.Position == 4 || item.Position == 67 {
					w := swingstore.NewSnapshotWriter()
					w.Write(heap)
					if _, err := tx.SaveSnapshot("v5", w); err != nil {
						return err
					}
				}
				if _, err := tx.AddItem("v5", item.Text); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for i := range spans {
		if spans[i].Incarnation == 1 {
			spans[i].Engine = "agoric-upgrade-18"
		}
	}
	if got, err := s.Spans(ctx, "v5"); err != nil || !slices.Equal(got, spans) {
		t.Errorf("spans %v, %v; expected %v", got, err, spans)
	}
	if n, items, err := readAll(s); err != nil || n != len(spans) || items != 99 {
		t.Errorf("%d spans, %d items, %v", n, items, err)
	}
	got, err := s.Vat(ctx, "v5")
	if err != nil || string(got.RawOptions) != string(v5.RawOptions) || string(got.Parameters) != string(v5.Parameters) || got.BundleID != v5.BundleID {
		t.Errorf("the vat %+v, %v; expected %+v", got, err, v5)
	}
	if b, err := s.Bundle(ctx, v5.BundleID); err != nil || !bytes.Equal(b, bundle) {
		t.Errorf("the bundle has %d bytes, %v; expected %d", len(b), err, len(bundle))
	}
	snapshots, err := s.Snapshots(ctx, "v5")
	if err != nil || len(snapshots) != 2 {
		t.Fatalf("%v, %v", snapshots, err)
	}
	for i, want := range []swingstore.Snapshot{
		{Vat: "v5", Position: 4, Present: true},
		{Vat: "v5", Position: 67, Present: true, InUse: true, Engine: "agoric-upgrade-18"},
	} {
		want.Hash, want.Size, want.Compressed = hex.EncodeToString(hash[:]), int64(len(heap)), snapshots[i].Compressed
		if snapshots[i] != want {
			t.Errorf("%+v, expected %+v", snapshots[i], want)
		}
		r, err := s.OpenSnapshot(ctx, snapshots[i])
		if err != nil {
			t.Fatal(err)
		}
		if b, err := io.ReadAll(r); err != nil || !bytes.Equal(b, heap) {
			t.Errorf("%d bytes, %v", len(b), err)
		}
	}
	if err := s.Update(func(tx *swingstore.Tx) error { return tx.PruneSnapshots("v5") }); err != nil {
		t.Fatal(err)
	}
	if snapshots, err = s.Snapshots(ctx, "v5"); err != nil || snapshots[0].Present || !snapshots[1].Present {
		t.Errorf("after pruning: %+v, %v", snapshots, err)
	}
}

// A vat chooses the keys that it keeps, and makes no other vat of them.
func TestVatsByKeys(t *testing.T) {
	t.Parallel()
	s, err := swingstore.Memory()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.Update(func(tx *swingstore.Tx) error {
		return errors.Join(tx.SetVat(swingstore.Vat{ID: "v1"}), tx.Set("v1.vs.vc.2.s.options", "{}"), tx.Set("v1.vs.vc.2.smy.options", "no JSON"))
	}); err != nil {
		t.Fatal(err)
	}
	if vats, err := s.Vats(t.Context()); err != nil || len(vats) != 1 || vats[0].ID != "v1" {
		t.Errorf("%v, %v, expected v1", vats, err)
	}
}

// A store whose table of engines is lost, as by way of SwingSet's export and import, still has what the worker options say.
func TestEngineInOptions(t *testing.T) {
	t.Parallel()
	const before, after = "agoric-upgrade-18", "agoric-upgrade-22" // the upgrade
	path := filepath.Join(t.TempDir(), swingstore.FileName)
	s, err := swingstore.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	err = s.Update(func(tx *swingstore.Tx) error {
		v := swingstore.Vat{ID: "v1", BundleID: "b1-0", Parameters: []byte("{}")}
		v.Options.WorkerOptions = swingstore.WorkerOptions{Type: "xsnap", Engine: after}
		if err := errors.Join(tx.SetVat(v), tx.InitTranscript("v1"), tx.SetEngine("v1", 0, before)); err != nil {
			return err
		}
		for i := range 2 {
			if i == 1 {
				span, err := tx.Rollover("v1", true)
				if err := errors.Join(err, tx.SetEngine("v1", span.Start, after)); err != nil {
					return err
				}
			}
			_, err1 := tx.AddItem("v1", []byte(`{"d":["initialize-worker",{}],"sc":[],"r":{"status":"ok"}}`))
			_, err2 := tx.SaveSnapshot("v1", swingstore.NewSnapshotWriter())
			_, err3 := tx.AddItem("v1", []byte(`{"d":["save-snapshot"],"sc":[],"r":{"status":"ok"}}`))
			if err := errors.Join(err1, err2, err3); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	check := func(old string) {
		t.Helper()
		s := open(t, path)
		ctx := t.Context()
		current, err1 := s.Current(ctx, "v1")
		inUse, err2 := s.SnapshotInUse(ctx, "v1")
		spans, err3 := s.Spans(ctx, "v1")
		snapshots, err4 := s.Snapshots(ctx, "v1")
		if err := errors.Join(err1, err2, err3, err4); err != nil || len(spans) != 2 || len(snapshots) != 2 {
			t.Fatalf("%v, %v, %v", err, spans, snapshots)
		}
		got := []string{current.Engine, inUse.Engine, spans[0].Engine, spans[1].Engine, snapshots[0].Engine, snapshots[1].Engine}
		if want := []string{after, after, old, after, old, after}; !slices.Equal(got, want) {
			t.Errorf("%q, expected %q", got, want)
		}
	}
	check(before)
	db, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.Exec("DROP TABLE engines"); err != nil {
		t.Fatal(err)
	}
	check("")
}

// Of a vat's options, what only a later kernel knows of stays as it is when the vat is recorded anew.
func TestOptionsOfLaterKernels(t *testing.T) {
	t.Parallel()
	s, err := swingstore.Memory()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	const (
		recorded = `{"workerOptions":{"type":"xsnap","bundleIDs":["b0-1","b0-2"]},"name":"a<b","vatParameters":{"b":1,"a":[2]},"enableSetup":false,` +
			`"enablePipelining":false,"enableDisavow":true,"useTranscript":true,"reapDirtThreshold":{"never":true},"critical":true,"meterID":"m1","later":null}`
		want = `{"workerOptions":{"type":"xsnap","bundleIDs":["b0-1","b0-2"],"engine":"agoric-upgrade-22"},"name":"a<b","vatParameters":{"b":1,"a":[2]},"enableSetup":false,` +
			`"enablePipelining":false,"enableDisavow":true,"useTranscript":true,"reapDirtThreshold":{"never":true},"critical":true,"later":null}`
	)
	err = s.Update(func(tx *swingstore.Tx) error {
		if err := errors.Join(tx.InitTranscript("v1"), tx.Set("v1.options", recorded)); err != nil {
			return err
		}
		v, err := tx.Vat(t.Context(), "v1")
		if err != nil {
			return err
		}
		v.Options.WorkerOptions.Engine, v.Options.MeterID = "agoric-upgrade-22", ""
		return tx.SetVat(*v)
	})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := s.Get(t.Context(), "v1.options"); err != nil || got != want {
		t.Errorf("%s, %v; expected %s", got, err, want)
	}
}
