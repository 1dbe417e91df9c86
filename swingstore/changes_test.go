package swingstore_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"testing"

	"github.com/enginery/enginery/internal/swingsettest"
	"github.com/enginery/enginery/swingstore"
)

// The changes of all transactions, one after another, are the state that a scan of the store finds; what was undone is not among them.
func TestChanges(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	real := open(t, swingsettest.Store(t))
	v5, err := real.Vat(ctx, "v5")
	if err != nil {
		t.Fatal(err)
	}
	bundle, err := real.Bundle(ctx, v5.BundleID)
	if err != nil {
		t.Fatal(err)
	}
	s, err := swingstore.Memory()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	snapshot := func(tx *swingstore.Tx, content string) error {
		w := swingstore.NewSnapshotWriter()
		w.Write([]byte(content))
		_, err := tx.SaveSnapshot("v5", w)
		return err
	}
	item := func(tx *swingstore.Tx, text string) error {
		_, err := tx.AddItem("v5", []byte(text))
		return err
	}
	rollover := func(tx *swingstore.Tx, incarnation bool) error {
		_, err := tx.Rollover("v5", incarnation)
		return err
	}
	state := make(map[string]string)
	no := errors.New("no")
	for i, step := range []struct {
		change func(tx *swingstore.Tx) error
		keys   string
	}{
		{func(tx *swingstore.Tx) error { return tx.Set("a", "1") }, "kv.a"},
		{func(tx *swingstore.Tx) error {
			tx.Try(func() error { return errors.Join(tx.Set("b", "1"), no) })
			return errors.Join(tx.Set("a", "2"), tx.Set("local.x", "mine"), tx.Set("c", ""))
		}, "kv.a kv.c"},
		{func(tx *swingstore.Tx) error { return errors.Join(tx.Delete("a"), tx.Set("d", "1"), tx.Set("d", "2")) }, "kv.a kv.d"},
		{func(tx *swingstore.Tx) error {
			_, err := tx.AddBundle(bundle)
			return errors.Join(err, tx.InitTranscript("v5"), tx.SetEngine("v5", 0, "agoric-upgrade-16"), item(tx, "one"))
		}, "bundle." + v5.BundleID + " engine.v5.0 transcript.v5.0 transcript.v5.current"},
		{func(tx *swingstore.Tx) error {
			return errors.Join(snapshot(tx, "heap 1"), item(tx, "two"), rollover(tx, false), item(tx, "three"))
		}, "snapshot.v5.1 snapshot.v5.current transcript.v5.0 transcript.v5.2 transcript.v5.current"},
		{func(tx *swingstore.Tx) error { return tx.PruneSnapshots("v5") }, ""},
		{func(tx *swingstore.Tx) error {
			return errors.Join(snapshot(tx, "heap 2"), item(tx, "four"))
		}, "snapshot.v5.1 snapshot.v5.3 snapshot.v5.current transcript.v5.2 transcript.v5.current"},
		{func(tx *swingstore.Tx) error { return rollover(tx, true) },
			"snapshot.v5.3 snapshot.v5.current transcript.v5.2 transcript.v5.4 transcript.v5.current"},
	} {
		var keys []string
		err := s.Update(func(tx *swingstore.Tx) error {
			if err := step.change(tx); err != nil {
				return err
			}
			changes, err := tx.Changes(ctx)
			for _, c := range changes {
				keys = append(keys, c.Key)
				if delete(state, c.Key); !c.Deleted {
					state[c.Key] = c.Value
				}
			}
			return err
		})
		if err != nil {
			t.Fatalf("step %d: %v", i, err)
		}
		if got := strings.Join(keys, " "); got != step.keys {
			t.Errorf("step %d changes %s, expected %s", i, got, step.keys)
		}
		scanned, err := scan(ctx, s)
		if err != nil {
			t.Fatal(err)
		}
		if !maps.Equal(state, scanned) {
			t.Errorf("after step %d the changes are %v\nand the state is %v", i, state, scanned)
		}
	}
}

// scan reads the state of a store with one vat as swing-store exports it.
func scan(ctx context.Context, s *swingstore.Store) (map[string]string, error) {
	state := make(map[string]string)
	key := ""
	for {
		next, err := s.NextKey(ctx, key)
		if err != nil {
			return nil, err
		}
		if key = next; key == "" {
			break
		}
		value, err := s.Get(ctx, key)
		if err != nil {
			return nil, err
		}
		if !strings.HasPrefix(key, "local.") {
			state["kv."+key] = value
		}
	}
	ids, err := s.Bundles(ctx)
	if err != nil {
		return nil, err
	}
	for _, id := range ids {
		state["bundle."+id] = id
	}
	spans, err := s.Spans(ctx, "v5")
	if err != nil {
		return nil, err
	}
	for _, span := range spans {
		current := 0
		if span.Current {
			current = 1
		}
		text := fmt.Sprintf(`{"vatID":"v5","startPos":%d,"endPos":%d,"hash":"%s","isCurrent":%d,"incarnation":%d}`, span.Start, span.End, span.Hash, current, span.Incarnation)
		state[fmt.Sprintf("transcript.v5.%d", span.Start)] = text
		if span.Current {
			state["transcript.v5.current"] = text
		}
		if span.Start == 0 {
			state["engine.v5.0"] = span.Engine
		}
	}
	snapshots, err := s.Snapshots(ctx, "v5")
	if err != nil {
		return nil, err
	}
	for _, heap := range snapshots {
		use := 0
		if heap.InUse {
			use = 1
			state["snapshot.v5.current"] = fmt.Sprintf("snapshot.v5.%d", heap.Position)
		}
		state[fmt.Sprintf("snapshot.v5.%d", heap.Position)] = fmt.Sprintf(`{"vatID":"v5","snapPos":%d,"hash":"%s","inUse":%d}`, heap.Position, heap.Hash, use)
	}
	return state, nil
}
