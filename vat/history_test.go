package vat

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"

	"github.com/enginery/enginery/internal/swingsettest"
	"github.com/enginery/enginery/swingstore"
)

// history is a vat to which the same happens in every run: step by step, each in a transaction, on two versions, with heap snapshots and
// upgrades. Where it is, is in the store.
type history struct {
	s       *swingstore.Store
	v       *Vat
	name    string
	bundles [][]byte // ledger-1, ledger-2
}

// newHistory returns a history of a vat with a name. The first of the two engines is the legacy one.
func newHistory(s *swingstore.Store, name string, bundles [][]byte, es [2]*Engine, change func(*Options)) *history {
	o := Options{ID: "v1", Host: results{}, Engines: only(es[:]...), SnapshotInitial: 4, SnapshotInterval: 7}
	if change != nil {
		change(&o)
	}
	return &history{s: s, v: New(o), name: name, bundles: bundles}
}

func historyBundles(t testing.TB) [][]byte {
	t.Helper()
	return swingsettest.Bundles(t, "ledger-1", "ledger-2")
}

// next returns the number of the next step.
func (h *history) next(ctx context.Context) (int, error) {
	n, err := h.s.Get(ctx, "host.step")
	if errors.Is(err, swingstore.ErrNotFound) {
		return 0, nil
	} else if err != nil {
		return 0, err
	}
	return strconv.Atoi(n)
}

// owner is whose account a step opens, or uses.
func owner(step int) string { return fmt.Sprintf("owner %d", step/3*3) }

// upgrades reports whether a step is an upgrade.
func upgrades(step int) bool { return step%18 == 17 }

// step makes a step. The next must be that.
func (h *history) step(ctx context.Context, i int) error {
	return h.s.Update(func(tx *swingstore.Tx) error {
		r, err := h.do(ctx, tx, i)
		if err != nil {
			return err
		}
		if !r.Kept {
			return fmt.Errorf("step %d: %+v", i, r)
		}
		return tx.Set("host.step", strconv.Itoa(i+1))
	})
}

func (h *history) do(ctx context.Context, tx *swingstore.Tx, i int) (*Result, error) {
	var id [2]string
	for k, b := range h.bundles {
		var err error
		if id[k], err = tx.AddBundle(b); err != nil {
			return nil, err
		}
	}
	params := parameters(fmt.Sprintf(`{"step":%d}`, i))
	result := fmt.Sprintf("p-%d", 100+i)
	switch {
	case i == 0:
		return h.v.Create(ctx, tx, Incarnation{BundleID: id[0], Parameters: params, Name: h.name})
	case upgrades(i):
		return h.v.Upgrade(ctx, tx, Incarnation{Engine: [2]string{newer, older}[i/18%2], BundleID: id[(i/18+1)%2], Parameters: params}, func() error {
			return tx.Set("host.upgrades", strconv.Itoa(i))
		})
	case i%10 == 5:
		return h.v.Deliver(ctx, tx, []byte(`["bringOutYourDead"]`))
	case i%3 == 0:
		return h.v.Deliver(ctx, tx, message(result, "open", fmt.Sprintf("[%q]", owner(i))))
	case i%9 == 8:
		return h.v.Deliver(ctx, tx, message(result, "report", "[]"))
	}
	return h.v.Deliver(ctx, tx, message(result, "deposit", fmt.Sprintf(`[%q,"+%d"]`, owner(i), i)))
}

// run makes all steps up to one, and calls before, if it is not nil, before each.
func (h *history) run(ctx context.Context, steps int, before func(i int) error) error {
	for i := range steps {
		if before != nil {
			if err := before(i); err != nil {
				return fmt.Errorf("before step %d: %w", i, err)
			}
		}
		if err := h.step(ctx, i); err != nil {
			return fmt.Errorf("step %d: %w", i, err)
		}
	}
	return h.v.Close()
}

// ahead starts the worker of a step before it.
func (h *history) ahead(ctx context.Context, i int) error {
	if i == 0 {
		return nil
	}
	if err := h.v.Wake(ctx, &h.s.Reader); err != nil || !upgrades(i) {
		return err
	}
	id, err := swingstore.ParseBundle(h.bundles[(i/18+1)%2])
	if err != nil {
		return err
	}
	return h.v.Prepare(ctx, &h.s.Reader, Incarnation{Engine: [2]string{newer, older}[i/18%2], BundleID: id})
}

// dump returns all that a store in a file has, a line a row.
func dump(t testing.TB, s *swingstore.Store) string {
	t.Helper()
	d, err := dumpStore(s.Path())
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func dumpStore(path string) (string, error) {
	db, err := sql.Open("sqlite", "file:"+path+"?mode=ro")
	if err != nil {
		return "", err
	}
	defer db.Close()
	var b strings.Builder
	for _, table := range []string{"transcriptSpans", "transcriptItems", "snapshots", "engines", "kvStore", "bundles", "pendingExports"} {
		if err := dumpTable(&b, db, table); err != nil {
			return "", err
		}
	}
	return b.String(), nil
}

func dumpTable(b *strings.Builder, db *sql.DB, table string) error {
	rows, err := db.Query("SELECT * FROM " + table + " ORDER BY 1, 2")
	if err != nil {
		return err
	}
	defer rows.Close()
	columns, err := rows.Columns()
	if err != nil {
		return err
	}
	for rows.Next() {
		values := make([]any, len(columns))
		into := make([]any, len(columns))
		for i := range values {
			into[i] = &values[i]
		}
		if err := rows.Scan(into...); err != nil {
			return err
		}
		b.WriteString(table)
		for _, v := range values {
			if blob, ok := v.([]byte); ok {
				v = fmt.Sprintf("%x", sha256.Sum256(blob))
			}
			fmt.Fprintf(b, " %v", v)
		}
		b.WriteByte('\n')
	}
	return rows.Err()
}

// firstDifference returns the first line in which two dumps differ.
func firstDifference(a, b string) string {
	as, bs := strings.Split(a, "\n"), strings.Split(b, "\n")
	for i := range min(len(as), len(bs)) {
		if as[i] != bs[i] {
			return fmt.Sprintf("%.2000s, and %.2000s", as[i], bs[i])
		}
	}
	return fmt.Sprintf("%d and %d lines", len(as), len(bs))
}
