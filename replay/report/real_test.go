package report

import (
	"context"
	"database/sql"

	"strings"
	"sync"
	"testing"

	_ "modernc.org/sqlite"

	"github.com/enginery/enginery/internal/enginetest"
	"github.com/enginery/enginery/replay"
	"github.com/enginery/enginery/replay/transcripts"
	"github.com/enginery/enginery/swingstore"
	"github.com/enginery/enginery/vat"
	"github.com/enginery/enginery/xsnap"
)

// engine returns a version's engine for this machine.
func engine(t testing.TB, version, goal string) *vat.Engine {
	t.Helper()
	r := enginetest.Recipe(t, version)
	e := &vat.Engine{Version: version, LoadsSnapshotsOf: r.Engine.LoadsSnapshotsOf, Worker: xsnap.Options{
		Version:   version,
		Path:      enginetest.Worker(t, version, "linux/amd64", goal),
		Protocol:  r.Engine.Protocol,
		MeterType: r.Engine.Meter,
	}}
	e.Lockdown, e.Supervisor = enginetest.Bundles(t, r)
	return e
}

// plant changes an item of a vat in a store, with all hashes as if it had always been so.
func plant(t testing.TB, store, vat string, position int64, old, new string) {
	t.Helper()
	db, err := sql.Open("sqlite", store)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	var item string
	if err := db.QueryRow("SELECT item FROM transcriptItems WHERE vatID = ? AND position = ?", vat, position).Scan(&item); err != nil {
		t.Fatal(err)
	}
	changed := strings.Replace(item, old, new, 1)
	if changed == item {
		t.Fatalf("item %d of %s has no %s: %s", position, vat, old, item)
	}
	if _, err := db.Exec("UPDATE transcriptItems SET item = ? WHERE vatID = ? AND position = ?", changed, vat, position); err != nil {
		t.Fatal(err)
	}
	var start, end int64
	if err := db.QueryRow("SELECT startPos, endPos FROM transcriptSpans WHERE vatID = ? AND startPos <= ? AND endPos > ?", vat, position, position).Scan(&start, &end); err != nil {
		t.Fatal(err)
	}
	rows, err := db.Query("SELECT item FROM transcriptItems WHERE vatID = ? AND position >= ? AND position < ? ORDER BY position", vat, start, end)
	if err != nil {
		t.Fatal(err)
	}
	hash := swingstore.StartHash
	for rows.Next() {
		if err := rows.Scan(&item); err != nil {
			t.Fatal(err)
		}
		hash = swingstore.NextHash(hash, []byte(item))
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	if _, err := db.Exec("UPDATE transcriptSpans SET hash = ? WHERE vatID = ? AND startPos = ?", hash, vat, start); err != nil {
		t.Fatal(err)
	}
}

func open(t testing.TB, path string) transcripts.Source {
	t.Helper()
	s, err := transcripts.Open(context.WithoutCancel(t.Context()), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// hostile is a name that means harm to whoever does not escape it.
const hostile = `</title><script>alert("vat")</script>'"&<!--]]>` + "\u202e\x1b[31m"

// real are reports on real replays of the kernel's store, made once for all tests.
var real struct {
	sync.Mutex
	same, planted, compared *replay.Report
}
