package swingstore

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Change is what a key of the state that nodes agree on has become. Keys and values are those of SwingSet's export data
// (agoric-sdk, packages/swing-store/docs/data-export.md): kv.KEY, transcript.VAT.START, snapshot.VAT.POSITION, bundle.ID; and engine.VAT.POSITION,
// which has the version. Keys of the kernel that begin with "local." are a node's own.
type Change struct {
	Key     string
	Value   string
	Deleted bool
}

// touch remembers that a key has changed. Try forgets it again if what changed it is undone.
func (tx *Tx) touch(parts ...string) { tx.touched = append(tx.touched, strings.Join(parts, ".")) }

// Changes returns what the keys that the transaction has written so far have become, sorted by key. It costs what was written, not
// what the store has.
func (tx *Tx) Changes(ctx context.Context) ([]Change, error) {
	touched := slices.Clone(tx.touched)
	slices.Sort(touched)
	touched = slices.Compact(touched)
	changes := make([]Change, 0, len(touched))
	for _, key := range touched {
		value, err := tx.exported(ctx, key)
		if err != nil && !errors.Is(err, ErrNotFound) {
			return nil, err
		}
		changes = append(changes, Change{Key: key, Value: value, Deleted: err != nil})
	}
	return changes, nil
}

// exported returns the value that export data has for a key.
func (tx *Tx) exported(ctx context.Context, key string) (string, error) {
	kind, rest, _ := strings.Cut(key, ".")
	if kind == "kv" {
		return tx.Get(ctx, rest)
	}
	if kind == "bundle" {
		return rest, nil // none is ever removed
	}
	vat, at, _ := strings.Cut(rest, ".")
	position, err := strconv.ParseInt(at, 10, 64)
	if at != "current" && err != nil {
		return "", fmt.Errorf("%s: there is no position in %q", tx.path, key)
	}
	var v any
	switch kind {
	case "engine":
		return tx.engineAt(ctx, vat, position)
	case "transcript":
		var s struct {
			Vat         string `json:"vatID"`
			Start       int64  `json:"startPos"`
			End         int64  `json:"endPos"`
			Hash        string `json:"hash"`
			Current     int64  `json:"isCurrent"`
			Incarnation int64  `json:"incarnation"`
		}
		s.Vat = vat
		where := "startPos = ?"
		args := []any{vat, position}
		if at == "current" {
			where, args = "isCurrent = 1", args[:1]
		}
		err = tx.row(ctx, "SELECT startPos, endPos, hash, coalesce(isCurrent, 0), incarnation FROM transcriptSpans WHERE vatID = ? AND "+where, args...).
			Scan(&s.Start, &s.End, &s.Hash, &s.Current, &s.Incarnation)
		v = s
	case "snapshot":
		if at == "current" {
			err = tx.row(ctx, "SELECT snapPos FROM snapshots WHERE vatID = ? AND inUse = 1", vat).Scan(&position)
			if err == nil {
				return fmt.Sprintf("snapshot.%s.%d", vat, position), nil
			}
			break
		}
		var s struct {
			Vat      string `json:"vatID"`
			Position int64  `json:"snapPos"`
			Hash     string `json:"hash"`
			InUse    int64  `json:"inUse"`
		}
		s.Vat, s.Position = vat, position
		err = tx.row(ctx, "SELECT hash, coalesce(inUse, 0) FROM snapshots WHERE vatID = ? AND snapPos = ?", vat, position).Scan(&s.Hash, &s.InUse)
		v = s
	}
	if err != nil {
		return "", tx.wrap(err, "reading %s", key)
	}
	text, err := json.Marshal(v)
	return string(text), err
}
