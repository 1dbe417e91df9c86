package swingstore_test

import (
	"database/sql"
	"testing"
	"time"

	"github.com/enginery/enginery/internal/swingsettest"
	"github.com/enginery/enginery/swingstore"
)

// BenchmarkGet reads a key of a store that is only read, beside a statement of database/sql that was prepared once.
func BenchmarkGet(b *testing.B) {
	path := swingsettest.Store(b)
	s, err := swingstore.Open(path)
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	db, err := sql.Open("sqlite", "file:"+path+"?mode=ro")
	if err != nil {
		b.Fatal(err)
	}
	defer db.Close()
	stmt, err := db.Prepare("SELECT value FROM kvStore WHERE key = ?")
	if err != nil {
		b.Fatal(err)
	}
	defer stmt.Close()
	var peer time.Duration
	for b.Loop() {
		if _, err := s.Get(b.Context(), "v5.options"); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		began := time.Now()
		var value string
		if err := stmt.QueryRow("v5.options").Scan(&value); err != nil {
			b.Fatal(err)
		}
		peer += time.Since(began)
		b.StartTimer()
	}
	b.ReportMetric(float64(peer)/float64(b.Elapsed()), "x-prepared")
}
