package swingstore_test

import (
	"bytes"
	"database/sql"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/enginery/enginery/internal/swingsettest"
	"github.com/enginery/enginery/swingstore"
)

// Reading leaves a store as it was, with nothing beside it that was not there; also what is no store.
func TestNothingIsLeft(t *testing.T) {
	t.Parallel()
	path := swingsettest.Store(t)
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	check := func(when string) {
		t.Helper()
		entries, err := os.ReadDir(filepath.Dir(path))
		if err != nil || len(entries) != 1 {
			t.Errorf("%s: %v, %v", when, entries, err)
		}
		if after, err := os.ReadFile(path); err != nil || !bytes.Equal(before, after) {
			t.Errorf("%s the store is another: %v", when, err)
		}
	}
	read := func() {
		t.Helper()
		s := open(t, path)
		if _, _, err := readAll(s); err != nil {
			t.Error(err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
	read()
	check("after it was read")
	first, second := open(t, path), open(t, path)
	second.Close()
	if _, _, err := readAll(first); err != nil {
		t.Errorf("after another reader has gone: %v", err)
	}
	first.Close()
	check("after two readers")

	// A log that was there may be a node's.
	for _, ending := range []string{"-wal", "-shm"} {
		if err := os.WriteFile(path+ending, nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	read()
	if _, err := os.Stat(path + "-wal"); err != nil {
		t.Errorf("a log that was there: %v", err)
	}

	path = filepath.Join(t.TempDir(), "other.sqlite")
	db, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := db.Exec("PRAGMA journal_mode = wal; CREATE TABLE t (x)"); err != nil {
		t.Fatal(err)
	}
	db.Close()
	if before, err = os.ReadFile(path); err != nil {
		t.Fatal(err)
	}
	if _, err := swingstore.Open(path); err == nil {
		t.Error("it is no swing-store")
	}
	check("after what is no store")
}

// What a node that was killed had not yet moved out of its log is read, and stays there.
func TestLogIsKept(t *testing.T) {
	t.Parallel()
	live := swingsettest.Store(t)
	w, err := swingstore.Create(live)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if err := w.Update(func(tx *swingstore.Tx) error { return tx.Set("logged", "yes") }); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), swingstore.FileName)
	files := make(map[string][]byte)
	for _, ending := range []string{"", "-wal"} {
		if files[ending], err = os.ReadFile(live + ending); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path+ending, files[ending], 0o644); err != nil {
			t.Fatal(err)
		}
	}
	r := open(t, path)
	if value, err := r.Get(t.Context(), "logged"); err != nil || value != "yes" {
		t.Errorf("%q, %v", value, err)
	}
	r.Close()
	for ending, want := range files {
		if have, err := os.ReadFile(path + ending); err != nil || !bytes.Equal(have, want) {
			t.Errorf("%s%s is another: %v", path, ending, err)
		}
	}
}

// Readers in another process come and go, and never take its log away from a node, however often that is empty; nor do they keep a node from
// starting.
func TestReadersBesideNode(t *testing.T) {
	const key = "ENGINERY_TEST_READ"
	if path := os.Getenv(key); path != "" { // a reader, as long as there is who has started it
		go func() {
			io.Copy(io.Discard, os.Stdin)
			os.Exit(1)
		}()
		for i := 0; ; i++ {
			s, err := swingstore.Open(path)
			if err != nil {
				t.Fatal(err)
			}
			value, err := s.Get(t.Context(), "count")
			if s.Close(); err != nil || value == "end" {
				fmt.Println("times that it was read:", i, err)
				return
			}
		}
	}
	t.Parallel()
	path := swingsettest.Store(t)
	start := func() *sql.DB {
		t.Helper()
		db, err := sql.Open("sqlite", path+"?_pragma=busy_timeout(60000)")
		if err != nil {
			t.Fatal(err)
		}
		return db
	}
	node := start()
	defer func() { node.Close() }()
	set := func(value string) {
		t.Helper()
		if _, err := node.Exec("INSERT INTO kvStore VALUES ('count', ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value", value); err != nil {
			t.Fatal(err)
		}
	}
	set("0")
	reader := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestReadersBesideNode$")
	reader.Env = append(os.Environ(), key+"="+path)
	var out bytes.Buffer
	reader.Stdout, reader.Stderr = &out, &out
	alive, err := reader.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer alive.Close()
	if err := reader.Start(); err != nil {
		t.Fatal(err)
	}
	for i := range 50 {
		node.Close()
		node = start()
		set(strconv.Itoa(i))
	}
	log, err := os.Stat(path + "-wal")
	if err != nil {
		t.Fatal(err)
	}
	for i := range 50 {
		if _, err := node.Exec("PRAGMA wal_checkpoint(TRUNCATE)"); err != nil {
			t.Fatal(err)
		}
		set(strconv.Itoa(i))
	}
	set("end")
	if now, err := os.Stat(path + "-wal"); err != nil || !os.SameFile(log, now) {
		t.Errorf("the node's log is another: %v", err)
	}
	s := open(t, path)
	if value, err := s.Get(t.Context(), "count"); err != nil || value != "end" {
		t.Fatalf("%q, %v", value, err)
	}
	if err := reader.Wait(); err != nil {
		t.Errorf("%v\n%s", err, &out)
	}
	t.Logf("%s", &out)
}

// A store that was written is whole when it is closed: nothing of it is in a log, and the file can be moved.
func TestClosedIsWhole(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, swingstore.FileName)
	w, err := swingstore.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Update(func(tx *swingstore.Tx) error { return tx.Set("written", "yes") }); err != nil {
		t.Fatal(err)
	}
	if value, err := w.Get(t.Context(), "written"); err != nil || value != "yes" {
		t.Errorf("%q, %v", value, err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("%v, %v", entries, err)
	}
	moved := filepath.Join(t.TempDir(), "moved.sqlite")
	if err := os.Rename(path, moved); err != nil {
		t.Fatal(err)
	}
	if value, err := open(t, moved).Get(t.Context(), "written"); err != nil || value != "yes" {
		t.Errorf("after it was moved: %q, %v", value, err)
	}
}
