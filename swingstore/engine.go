package swingstore

import (
	"context"
	"database/sql"
	"errors"
)

// engineAt returns the version that ran a vat at a position.
func (r *Reader) engineAt(ctx context.Context, vat string, position int64) (version string, err error) {
	if r.engines {
		err = r.row(ctx, "SELECT version FROM engines WHERE vatID = ? AND position <= ? ORDER BY position DESC LIMIT 1", vat, position).Scan(&version)
		if err == nil {
			return version, nil
		} else if !errors.Is(err, sql.ErrNoRows) {
			return "", r.wrap(err, "reading the engine of %s", vat)
		}
	}
	start, version, err := r.engineInOptions(ctx, vat)
	if err != nil || position < start {
		return "", err
	}
	return version, nil
}

// engineInOptions returns the version that a vat's worker options name, and from which position on it is that. SwingSet's exports have the
// options, and not the table.
func (r *Reader) engineInOptions(ctx context.Context, vat string) (start int64, version string, err error) {
	err = r.row(ctx, "SELECT coalesce(json_extract(value, '$.workerOptions.engine'), '') FROM kvStore WHERE key = ?", vat+".options").Scan(&version)
	if err == nil && version != "" {
		err = r.row(ctx, `SELECT coalesce(min(startPos), 0) FROM transcriptSpans
			WHERE vatID = ?1 AND incarnation = (SELECT incarnation FROM transcriptSpans WHERE vatID = ?1 AND isCurrent = 1)`, vat).Scan(&start)
	}
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return 0, "", r.wrap(err, "reading the engine of %s", vat)
	}
	return start, version, nil
}

func (r *Reader) enginesOf(ctx context.Context, vat string) (func(position int64) string, error) {
	type from struct {
		position int64
		version  string
	}
	var all []from
	if r.engines {
		rows, err := r.query(ctx, "SELECT position, version FROM engines WHERE vatID = ? ORDER BY position", vat)
		if err != nil {
			return nil, r.wrap(err, "reading the engines of %s", vat)
		}
		defer rows.Close()
		for rows.Next() {
			var f from
			if err := rows.Scan(&f.position, &f.version); err != nil {
				return nil, r.wrap(err, "reading the engines of %s", vat)
			}
			all = append(all, f)
		}
		if err := rows.Err(); err != nil {
			return nil, r.wrap(err, "reading the engines of %s", vat)
		}
		rows.Close()
	}
	if len(all) == 0 {
		start, version, err := r.engineInOptions(ctx, vat)
		if err != nil {
			return nil, err
		}
		all = append(all, from{start, version})
	}
	return func(position int64) (version string) {
		for _, f := range all {
			if f.position <= position {
				version = f.version
			}
		}
		return version
	}, nil
}
