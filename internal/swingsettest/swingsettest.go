// Package swingsettest gives tests what the real SwingSet kernel has left behind: testdata/swingset has the vats, the script that runs
// them, and its outcome.
package swingsettest

import (
	"database/sql"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"github.com/enginery/enginery/internal/enginetest"
	"github.com/enginery/enginery/internal/nodetest"
	"github.com/enginery/enginery/swingstore"
	"github.com/klauspost/compress/zstd"
	_ "modernc.org/sqlite"
)

// Version is the version whose worker and bundles the kernel ran.
const Version = "agoric-upgrade-22"

// Store returns the path of the kernel's store, a copy of the test's own. It has all spans of eight vats, and the hashes of their heap
// snapshots, but not the snapshots.
func Store(t testing.TB) string { return unpack(t, "swingstore.sqlite") }

// Slog returns the path of the kernel's slog, without times.
func Slog(t testing.TB) string { return unpack(t, "slog.jsonl") }

func unpack(t testing.TB, name string) string {
	t.Helper()
	compressed, err := os.ReadFile(filepath.Join(source(t), name+".zst"))
	if err != nil {
		t.Fatal(err)
	}
	d, err := zstd.NewReader(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	b, err := d.DecodeAll(compressed, nil)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, b, 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// Run runs the kernel and returns a folder with all that it leaves: store/swingstore.sqlite, with heap snapshots unless args have
// "--compact"; slog.jsonl; and the archives snapshots/ and spans/.
func Run(t testing.TB, args ...string) string {
	t.Helper()
	worker := enginetest.Worker(t, Version, "linux/amd64", "release")
	dir := Scripts(t)
	out := filepath.Join(dir, "out")
	cmd := exec.CommandContext(t.Context(), "node", append([]string{"make-store.js", out, "--worker=" + worker}, args...)...)
	cmd.Dir = dir
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("running the kernel: %v\n%s", err, text)
	}
	return out
}

// Scripts returns a copy of testdata/swingset with its packages installed, in which node finds @agoric/swing-store and all others.
func Scripts(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(source(t))); err != nil {
		t.Fatal(err)
	}
	modules := filepath.Join(nodetest.Install(t, dir, "better-sqlite3"), "node_modules")
	if err := os.Symlink(modules, filepath.Join(dir, "node_modules")); err != nil {
		t.Fatal(err)
	}
	return dir
}

// bundled are the vats that have been bundled.
var bundled struct {
	mu     sync.Mutex
	byName map[string][]byte
}

// Bundles returns vats of testdata/swingset/vats, "ledger-1", as @endo/bundle-source bundles them: objects in JSON.
func Bundles(t testing.TB, names ...string) [][]byte {
	t.Helper()
	bundled.mu.Lock()
	defer bundled.mu.Unlock()
	var missing []string
	for _, name := range names {
		if bundled.byName[name] == nil && !slices.Contains(missing, name) {
			missing = append(missing, name)
		}
	}
	if len(missing) > 0 {
		cmd := exec.CommandContext(t.Context(), "node", append([]string{"bundle.js"}, missing...)...)
		cmd.Dir, cmd.Stderr = Scripts(t), t.Output()
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("bundling %v: %v", missing, err)
		}
		var bundles []json.RawMessage
		if err := json.Unmarshal(out, &bundles); err != nil || len(bundles) != len(missing) {
			t.Fatalf("bundling %v: %d bundles, %v", missing, len(bundles), err)
		}
		if bundled.byName == nil {
			bundled.byName = make(map[string][]byte)
		}
		for i, name := range missing {
			bundled.byName[name] = bundles[i]
		}
	}
	all := make([][]byte, len(names))
	for i, name := range names {
		all[i] = bundled.byName[name]
	}
	return all
}

// Change changes a store behind its back.
func Change(t testing.TB, store string, statement string, args ...any) {
	t.Helper()
	db, err := sql.Open("sqlite", store)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	result, err := db.Exec(statement, args...)
	if err != nil {
		t.Fatal(err)
	}
	if n, err := result.RowsAffected(); n == 0 || err != nil {
		t.Fatalf("%s changed %d rows, %v", statement, n, err)
	}
}

// Plant changes an item of a vat in a store, and the hash of its span as if it had always been so.
func Plant(t testing.TB, store, vat string, position int64, old, new string) {
	t.Helper()
	Change(t, store, "UPDATE transcriptItems SET item = replace(item, ?, ?) WHERE vatID = ? AND position = ? AND instr(item, ?) > 0", old, new, vat, position, old)
	db, err := sql.Open("sqlite", store)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	rows, err := db.Query(`SELECT startPos, item FROM transcriptItems JOIN transcriptSpans USING (vatID)
		WHERE vatID = ? AND startPos <= ? AND ? < endPos AND position BETWEEN startPos AND endPos - 1 ORDER BY position`, vat, position, position)
	if err != nil {
		t.Fatal(err)
	}
	var start int64
	hash := swingstore.StartHash
	for rows.Next() {
		var item []byte
		if err := rows.Scan(&start, &item); err != nil {
			t.Fatal(err)
		}
		hash = swingstore.NextHash(hash, item)
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	Change(t, store, "UPDATE transcriptSpans SET hash = ? WHERE vatID = ? AND startPos = ?", hash, vat, start)
}

// source returns the folder testdata/swingset.
func source(t testing.TB) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return filepath.Join(dir, "testdata", "swingset")
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			t.Fatal("the test does not run in the module's tree")
		}
		dir = parent
	}
}
