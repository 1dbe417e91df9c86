package replay_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"sync"
	"testing"

	"github.com/enginery/enginery/internal/swingsettest"
	"github.com/enginery/enginery/recipes"
	"github.com/enginery/enginery/swingstore"
	"github.com/enginery/enginery/vat"
	_ "modernc.org/sqlite"
)

// heaps are the heap snapshots of a few vats of the fixture, gzip, by their hash. The committed store has only their hashes, which are
// those of what the kernel had; so whatever has the hash is what it had.
var heaps struct {
	sync.Mutex
	made map[string][]byte
}

// madeOf are the vats of which there are heap snapshots: one that was upgraded, one that talks much, one that was terminated.
var madeOf = []string{"v4", "v5", "v6"}

func makeHeaps(t testing.TB) map[string][]byte {
	t.Helper()
	heaps.Lock()
	defer heaps.Unlock()
	if heaps.made != nil {
		return heaps.made
	}
	s, err := swingstore.Open(swingsettest.Store(t))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	e := engine(t, swingsettest.Version, amd64, recipes.Release)
	made := make(map[string][]byte)
	var mu sync.Mutex
	var all sync.WaitGroup
	for _, id := range madeOf {
		all.Go(func() {
			if err := heapsOf(t.Context(), s, e, id, func(hash string, b []byte) {
				mu.Lock()
				defer mu.Unlock()
				made[hash] = b
			}); err != nil {
				t.Error(err)
			}
		})
	}
	if all.Wait(); t.Failed() {
		t.FailNow()
	}
	heaps.made = made
	return made
}

func heapsOf(ctx context.Context, s *swingstore.Store, e *vat.Engine, id string, keep func(hash string, b []byte)) error {
	spans, err := s.Spans(ctx, id)
	if err != nil {
		return err
	}
	v, err := s.Vat(ctx, id)
	if err != nil {
		return err
	}
	var m *vat.Manager
	defer func() { m.Kill() }()
	for _, span := range spans {
		for item, err := range s.Items(ctx, span) {
			if err != nil {
				return err
			}
			var entry vat.Entry
			if err := json.Unmarshal(item.Text, &entry); err != nil {
				return err
			}
			switch entry.Kind() {
			case "initialize-worker":
				var list []json.RawMessage
				var init struct {
					Source        struct{ BundleID string }
					WorkerOptions struct{ BundleIDs []string }
				}
				if err := json.Unmarshal(entry.Delivery, &list); err != nil {
					return err
				}
				if err := json.Unmarshal(list[1], &init); err != nil {
					return err
				}
				mo := vat.ManagerOptions{Worker: e.Worker, ID: id, Name: v.Name}
				read := func(id string) ([]byte, error) { return s.Bundle(ctx, id) }
				ids := init.WorkerOptions.BundleIDs
				if err := mo.ReadBundles(read, ids[0], ids[1], init.Source.BundleID); err != nil {
					return err
				}
				if m, err = vat.StartManager(ctx, mo); err != nil {
					return err
				}
			case "load-snapshot":
			case "shutdown-worker":
				m.Kill()
			case "save-snapshot":
				var b bytes.Buffer
				z, _ := gzip.NewWriterLevel(&b, gzip.BestSpeed)
				hash := sha256.New()
				if err := m.Snapshot(ctx, io.MultiWriter(z, hash), true); err != nil {
					return err
				}
				z.Close()
				if got := hex.EncodeToString(hash.Sum(nil)); got != entry.Result.SnapshotID {
					return fmt.Errorf("heap snapshot %d of %s is %s, expected %s", item.Position, id, got, entry.Result.SnapshotID)
				}
				keep(entry.Result.SnapshotID, b.Bytes())
			default:
				next := 0
				if _, err := m.Deliver(ctx, entry.Delivery, func(context.Context, []byte) ([]byte, error) {
					next++
					return entry.Syscalls[next-1].Answer, nil
				}); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func newDatabase(t testing.TB, path string) *sql.DB {
	t.Helper()
	db, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	return db
}

// edit changes a store with SQL.
func edit(t testing.TB, path string, f func(db *sql.DB) error) {
	t.Helper()
	db := newDatabase(t, path)
	err := f(db)
	if cerr := db.Close(); err != nil || cerr != nil {
		t.Fatal(err, cerr)
	}
}

// storeWithHeaps returns the path of the fixture's store with the heap snapshots of a few vats.
func storeWithHeaps(t testing.TB) string {
	t.Helper()
	made := makeHeaps(t)
	path := swingsettest.Store(t)
	edit(t, path, func(db *sql.DB) error {
		for hash, b := range made {
			if _, err := db.Exec("UPDATE snapshots SET compressedSnapshot = ?, compressedSize = ? WHERE hash = ?", b, len(b), hash); err != nil {
				return err
			}
		}
		return nil
	})
	return path
}

// excerpt returns the path of a store with one span of a vat, and the heap snapshot that it begins with. plant changes items, of which the
// first is load-snapshot; then the span's hash is that of the changed items.
func excerpt(t testing.TB, id string, index int, plant func(items []string) []string) string {
	t.Helper()
	ctx := t.Context()
	heaps := makeHeaps(t)
	s, err := swingstore.Open(swingsettest.Store(t))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	spans, err := s.Spans(ctx, id)
	if err != nil {
		t.Fatal(err)
	}
	span := spans[index]
	v, err := s.Vat(ctx, id)
	if err != nil {
		t.Fatal(err)
	}
	var items []string
	for item, err := range s.Items(ctx, span) {
		if err != nil {
			t.Fatal(err)
		}
		items = append(items, string(item.Text))
	}
	if plant != nil {
		items = plant(items)
	}
	snapshots, err := s.Snapshots(ctx, id)
	if err != nil {
		t.Fatal(err)
	}
	path := t.TempDir() + "/" + swingstore.FileName
	w, err := swingstore.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if err := w.Update(func(tx *swingstore.Tx) error {
		if err := tx.SetVat(*v); err != nil {
			return err
		}
		if err := tx.AddSpan(swingstore.Span{Vat: id, End: span.Start, Incarnation: span.Incarnation}); err != nil {
			return err
		}
		if err := tx.AddSpan(swingstore.Span{Vat: id, Start: span.Start, End: span.Start, Hash: swingstore.StartHash, Current: true, Incarnation: span.Incarnation}); err != nil {
			return err
		}
		for _, text := range items {
			if _, err := tx.AddItem(id, []byte(text)); err != nil {
				return err
			}
		}
		for _, snapshot := range snapshots {
			if snapshot.Position+1 != span.Start {
				continue
			}
			z, err := gzip.NewReader(bytes.NewReader(heaps[snapshot.Hash]))
			if err != nil {
				return err
			}
			sw := swingstore.NewSnapshotWriter()
			if _, err := io.Copy(sw, z); err != nil {
				return err
			}
			_, err = tx.SaveSnapshotAt(id, snapshot.Position, sw)
			return err
		}
		return fmt.Errorf("%s has no heap snapshot", span)
	}); err != nil {
		t.Fatal(err)
	}
	return path
}

func readFile(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
