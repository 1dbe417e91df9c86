package swingstore

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"iter"
	"strings"
)

// Get returns the value of a key of the kernel. It is ErrNotFound if there is none.
func (r *Reader) Get(ctx context.Context, key string) (string, error) {
	var value string
	if err := r.row(ctx, "SELECT value FROM kvStore WHERE key = ?", key).Scan(&value); err != nil {
		return "", r.wrap(err, "reading key %q", key)
	}
	return value, nil
}

// NextKey returns the key that follows one in the order of UTF-8, and "" if it is the last.
func (r *Reader) NextKey(ctx context.Context, key string) (string, error) {
	var next string
	err := r.row(ctx, "SELECT key FROM kvStore WHERE key > ? LIMIT 1", key).Scan(&next)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return "", r.wrap(err, "reading the key after %q", key)
	}
	return next, nil
}

// Pair is a key of the kernel and its value.
type Pair struct{ Key, Value string }

// Keys returns the keys that begin with prefix, and their values, in the order of UTF-8.
func (r *Reader) Keys(ctx context.Context, prefix string) iter.Seq2[Pair, error] {
	batch := func(from string, after bool) (pairs []Pair, err error) {
		query := "SELECT key, value FROM kvStore WHERE key >= ? ORDER BY key LIMIT ?"
		if after {
			query = "SELECT key, value FROM kvStore WHERE key > ? ORDER BY key LIMIT ?"
		}
		rows, err := r.query(ctx, query, from, batchItems)
		if err != nil {
			return nil, err
		}
		defer rows.Close()
		for size := 0; size < batchBytes && rows.Next(); {
			var p Pair
			if err := rows.Scan(&p.Key, &p.Value); err != nil {
				return nil, err
			}
			if !strings.HasPrefix(p.Key, prefix) {
				break
			}
			pairs, size = append(pairs, p), size+len(p.Key)+len(p.Value)
		}
		return pairs, rows.Err()
	}
	return func(yield func(Pair, error) bool) {
		for from, after := prefix, false; ; after = true {
			pairs, err := batch(from, after)
			if err != nil {
				yield(Pair{}, r.wrap(err, "reading keys that begin with %q", prefix))
				return
			}
			for _, p := range pairs {
				if !yield(p, nil) {
					return
				}
			}
			if len(pairs) == 0 {
				return
			}
			from = pairs[len(pairs)-1].Key
		}
	}
}

func (r *Reader) row(ctx context.Context, query string, args ...any) *sql.Row {
	return r.q.QueryRowContext(r.context(ctx), query, args...)
}

func (r *Reader) query(ctx context.Context, query string, args ...any) (*sql.Rows, error) {
	return r.q.QueryContext(r.context(ctx), query, args...)
}

func collect[T any](ctx context.Context, r *Reader, query string, args ...any) ([]T, error) {
	rows, err := r.query(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var all []T
	for rows.Next() {
		var v T
		if err := rows.Scan(&v); err != nil {
			return nil, err
		}
		all = append(all, v)
	}
	return all, rows.Err()
}

func (r *Reader) wrap(err error, format string, args ...any) error {
	return fmt.Errorf("%s: %s: %w", r.path, fmt.Sprintf(format, args...), known(err))
}

func (r *Reader) damaged(what, want, found string) error {
	return &DamagedError{Store: r.path, What: what, Want: want, Found: found}
}
