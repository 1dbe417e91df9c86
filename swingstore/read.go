package swingstore

import (
	"bytes"
	"cmp"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"iter"
	"slices"
	"strconv"
	"strings"
)

// Vat is what a kernel says of a vat.
type Vat struct {
	ID         string // "v1"
	Name       string
	Static     bool // was there from the start
	Terminated bool // and not yet cleaned up

	BundleID   string          // of its source; empty if it was given otherwise
	Options    Options         // empty if the store no longer has them
	RawOptions json.RawMessage // as the kernel recorded them; nil if the store no longer has them
	Parameters json.RawMessage // CapData that startVat was given, if that was recorded
}

// Options are those of a vat (agoric-sdk, packages/SwingSet/src/types-internal.js, RecordedVatOptions), and the version of its engine.
type Options struct {
	WorkerOptions     WorkerOptions   `json:"workerOptions"`
	Name              string          `json:"name,omitempty"`
	EnableSetup       bool            `json:"enableSetup"`
	EnablePipelining  bool            `json:"enablePipelining"`
	EnableDisavow     bool            `json:"enableDisavow"`
	UseTranscript     bool            `json:"useTranscript"`
	ReapDirtThreshold json.RawMessage `json:"reapDirtThreshold,omitempty"`
	Critical          bool            `json:"critical"`
	MeterID           string          `json:"meterID,omitempty"`
}

// WorkerOptions say what runs a vat.
type WorkerOptions struct {
	Type      string   `json:"type"`                // "xsnap", or "local" for vats that need no engine
	BundleIDs []string `json:"bundleIDs,omitempty"` // lockdown, supervisor
	Engine    string   `json:"engine,omitempty"`    // version ID; empty: the legacy version. SwingSet has no such field
}

// Span is a part of a vat's transcript, between two heap snapshots or incarnations.
type Span struct {
	Vat         string
	Start, End  int64 // positions in the vat's transcript; End is the next span's Start
	Hash        string
	Current     bool
	Incarnation int64
	Engine      string // version that ran it; empty: the legacy version
}

func (s Span) String() string { return fmt.Sprintf("span %d-%d of %s", s.Start, s.End, s.Vat) }

// Item is an item of a transcript.
type Item struct {
	Position int64
	Text     []byte // JSON, as it was hashed
}

// Snapshot is a heap snapshot that a vat's worker wrote.
type Snapshot struct {
	Vat        string
	Position   int64  // of the item save-snapshot; the next span starts at the one after
	Hash       string // SHA-256 of the snapshot, uncompressed
	Size       int64  // uncompressed; 0 if it is not known
	Compressed int64  // bytes; 0 if it is not known
	InUse      bool   // the vat's worker is started from it
	Present    bool   // the store has it, and not only its hash
	Engine     string // version that wrote it; empty: the legacy version
}

func (s Snapshot) String() string { return fmt.Sprintf("heap snapshot %d of %s", s.Position, s.Vat) }

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

// Vats returns all vats of which the store has something, sorted by number.
func (r *Reader) Vats(ctx context.Context) ([]Vat, error) {
	ids, err := collect[string](ctx, r, "SELECT DISTINCT vatID FROM transcriptSpans UNION SELECT substr(key, 1, length(key)-8) FROM kvStore WHERE key GLOB 'v[0-9]*.options'")
	if err != nil {
		return nil, r.wrap(err, "listing vats")
	}
	slices.SortFunc(ids, func(a, b string) int {
		return cmp.Or(cmp.Compare(number(a), number(b)), cmp.Compare(a, b))
	})
	static, err := r.static(ctx)
	if err != nil {
		return nil, err
	}
	terminated, err := r.list(ctx, "vats.terminated")
	if err != nil {
		return nil, err
	}
	vats := make([]Vat, 0, len(ids))
	for _, id := range ids {
		v, err := r.vat(ctx, id)
		if err != nil {
			return nil, err
		}
		v.Static, v.Terminated = static[id], slices.Contains(terminated, id)
		vats = append(vats, v)
	}
	return vats, nil
}

// Vat returns a vat, by its ID. It is ErrNotFound if the store has nothing of it.
func (r *Reader) Vat(ctx context.Context, id string) (*Vat, error) {
	v, err := r.vat(ctx, id)
	if err != nil {
		return nil, err
	}
	if v.RawOptions == nil {
		var n int
		if err := r.row(ctx, "SELECT count(*) FROM (SELECT 1 FROM transcriptSpans WHERE vatID = ? LIMIT 1)", id).Scan(&n); err != nil {
			return nil, r.wrap(err, "reading vat %s", id)
		}
		if n == 0 {
			return nil, r.wrap(ErrNotFound, "reading vat %s", id)
		}
	}
	static, err := r.static(ctx)
	if err != nil {
		return nil, err
	}
	terminated, err := r.list(ctx, "vats.terminated")
	if err != nil {
		return nil, err
	}
	v.Static, v.Terminated = static[id], slices.Contains(terminated, id)
	return &v, nil
}

func number(vat string) int {
	n, _ := strconv.Atoi(strings.TrimPrefix(vat, "v"))
	return n
}

func (r *Reader) vat(ctx context.Context, id string) (Vat, error) {
	v := Vat{ID: id}
	for _, f := range []struct {
		key string
		set func(value string) error
	}{
		{".options", func(value string) error {
			v.RawOptions = json.RawMessage(value)
			err := json.Unmarshal(v.RawOptions, &v.Options)
			v.Name = v.Options.Name
			return err
		}},
		{".source", func(value string) error {
			var source struct {
				BundleID string `json:"bundleID"`
			}
			err := json.Unmarshal([]byte(value), &source)
			v.BundleID = source.BundleID
			return err
		}},
		{".vatParameters", func(value string) error {
			v.Parameters = json.RawMessage(value)
			if !json.Valid(v.Parameters) {
				return errors.New("it is not JSON")
			}
			return nil
		}},
	} {
		value, err := r.Get(ctx, id+f.key)
		if err == nil {
			if err = f.set(value); err != nil {
				err = r.wrap(err, "reading key %q", id+f.key)
			}
		}
		if err != nil && !errors.Is(err, ErrNotFound) {
			return v, err
		}
	}
	return v, nil
}

// static returns the IDs of the vats that were there from the start.
func (r *Reader) static(ctx context.Context) (map[string]bool, error) {
	names, err := r.list(ctx, "vat.names")
	if err != nil {
		return nil, err
	}
	ids := make(map[string]bool)
	for _, name := range names {
		id, err := r.Get(ctx, "vat.name."+name)
		if err != nil && !errors.Is(err, ErrNotFound) {
			return nil, err
		}
		ids[id] = true
	}
	return ids, nil
}

// list returns the strings that a key lists, and none if there is no such key.
func (r *Reader) list(ctx context.Context, key string) ([]string, error) {
	value, err := r.Get(ctx, key)
	if errors.Is(err, ErrNotFound) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	var list []string
	if err := json.Unmarshal([]byte(value), &list); err != nil {
		return nil, r.wrap(err, "reading key %q", key)
	}
	return list, nil
}

// Spans returns the spans of a vat, oldest first. It is a *DamagedError if they do not follow upon each other from position 0.
func (r *Reader) Spans(ctx context.Context, vat string) ([]Span, error) {
	rows, err := r.query(ctx, "SELECT startPos, endPos, hash, isCurrent, incarnation FROM transcriptSpans WHERE vatID = ? ORDER BY startPos", vat)
	if err != nil {
		return nil, r.wrap(err, "reading the spans of %s", vat)
	}
	defer rows.Close()
	var spans []Span
	for rows.Next() {
		s := Span{Vat: vat}
		var current sql.NullInt64
		if err := rows.Scan(&s.Start, &s.End, &s.Hash, &current, &s.Incarnation); err != nil {
			return nil, r.wrap(err, "reading the spans of %s", vat)
		}
		s.Current = current.Valid
		var end, incarnation int64
		if n := len(spans); n > 0 {
			end, incarnation = spans[n-1].End, spans[n-1].Incarnation
		}
		switch {
		case s.Start != end:
			return nil, r.damaged(s.String(), fmt.Sprintf("a span that starts at %d", end), strconv.FormatInt(s.Start, 10))
		case s.End < s.Start:
			return nil, r.damaged(s.String(), "an end that is not before its start", strconv.FormatInt(s.End, 10))
		case s.Incarnation < incarnation || s.Incarnation > incarnation+1:
			return nil, r.damaged(s.String(), fmt.Sprintf("incarnation %d or the next", incarnation), strconv.FormatInt(s.Incarnation, 10))
		}
		spans = append(spans, s)
	}
	if err := rows.Err(); err != nil {
		return nil, r.wrap(err, "reading the spans of %s", vat)
	}
	rows.Close()
	engine, err := r.enginesOf(ctx, vat)
	if err != nil {
		return nil, err
	}
	for i := range spans {
		spans[i].Engine = engine(spans[i].Start)
	}
	return spans, nil
}

// Current returns the span that a vat is in. It is ErrNotFound if it is in none.
func (r *Reader) Current(ctx context.Context, vat string) (Span, error) {
	s := Span{Vat: vat, Current: true}
	err := r.row(ctx, "SELECT startPos, endPos, hash, incarnation FROM transcriptSpans WHERE vatID = ? AND isCurrent = 1", vat).Scan(&s.Start, &s.End, &s.Hash, &s.Incarnation)
	if err != nil {
		return s, r.wrap(err, "reading the current span of %s", vat)
	}
	s.Engine, err = r.engineAt(ctx, vat, s.Start)
	return s, err
}

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

// StartHash is the hash of a span without items.
var StartHash = sum("start of transcript span")

// NextHash returns the hash of a span to which an item was added (swing-store, src/transcriptStore.js, updateSpanHash).
func NextHash(hash string, item []byte) string {
	s := sha256.Sum256(item)
	return sum(hash + hex.EncodeToString(s[:]))
}

func sum(s string) string {
	h := sha256.Sum256([]byte(s))
	return hex.EncodeToString(h[:])
}

// batch is what is read in one query, so that a node's writer never waits for who works on items.
const batchItems, batchBytes = 256, 1 << 20

// Items returns the items of a span in their order, and then an error if none of them is there (ErrPruned), or not all, or they have not
// the span's hash (*DamagedError): who has seen the end without an error has seen the true items. It may be ranged over more than once.
func (r *Reader) Items(ctx context.Context, s Span) iter.Seq2[Item, error] {
	return func(yield func(Item, error) bool) {
		hash := StartHash
		for position := s.Start; position < s.End; {
			items, err := r.batch(ctx, s, position)
			if err != nil {
				yield(Item{}, err)
				return
			}
			for _, item := range items {
				hash = NextHash(hash, item.Text)
				if position++; position == s.End && hash != s.Hash {
					yield(Item{}, r.damaged(s.String(), "hash "+s.Hash, hash))
					return
				}
				if !yield(item, nil) {
					return
				}
			}
		}
		if s.Start == s.End && s.Hash != StartHash {
			yield(Item{}, r.damaged(s.String(), "hash "+StartHash+" of an empty span", s.Hash))
		}
	}
}

func (r *Reader) batch(ctx context.Context, s Span, position int64) ([]Item, error) {
	rows, err := r.query(ctx, "SELECT position, item, incarnation FROM transcriptItems WHERE vatID = ? AND ? <= position AND position < ? ORDER BY position LIMIT ?",
		s.Vat, position, s.End, batchItems)
	if err != nil {
		return nil, r.wrap(err, "reading %s", s)
	}
	defer rows.Close()
	var items []Item
	for size := 0; size < batchBytes && rows.Next(); {
		var item Item
		var incarnation sql.NullInt64
		if err := rows.Scan(&item.Position, &item.Text, &incarnation); err != nil {
			return nil, r.wrap(err, "reading %s", s)
		}
		if want := position + int64(len(items)); item.Position != want {
			return nil, r.damaged(s.String(), fmt.Sprintf("item %d", want), fmt.Sprintf("item %d", item.Position))
		}
		if incarnation.Valid && incarnation.Int64 != s.Incarnation {
			return nil, r.damaged(fmt.Sprintf("item %d of %s", item.Position, s), fmt.Sprintf("incarnation %d", s.Incarnation), strconv.FormatInt(incarnation.Int64, 10))
		}
		items, size = append(items, item), size+len(item.Text)
	}
	if err := rows.Err(); err != nil {
		return nil, r.wrap(err, "reading %s", s)
	}
	switch {
	case len(items) > 0:
	case position == s.Start:
		return nil, r.wrap(ErrPruned, "reading %s: item %d", s, position)
	default:
		return nil, r.damaged(s.String(), fmt.Sprintf("item %d", position), "the end")
	}
	return items, nil
}

const snapshotColumns = "SELECT snapPos, inUse, hash, coalesce(uncompressedSize, 0), coalesce(compressedSize, 0), typeof(compressedSnapshot) <> 'null' FROM snapshots WHERE vatID = ?"

func scanSnapshot(scan func(...any) error, s *Snapshot) error {
	var inUse sql.NullInt64
	err := scan(&s.Position, &inUse, &s.Hash, &s.Size, &s.Compressed, &s.Present)
	s.InUse = inUse.Valid
	return err
}

// Snapshots returns what is known of the heap snapshots of a vat, oldest first.
func (r *Reader) Snapshots(ctx context.Context, vat string) ([]Snapshot, error) {
	rows, err := r.query(ctx, snapshotColumns+" ORDER BY snapPos", vat)
	if err != nil {
		return nil, r.wrap(err, "listing the heap snapshots of %s", vat)
	}
	defer rows.Close()
	var list []Snapshot
	for rows.Next() {
		s := Snapshot{Vat: vat}
		if err := scanSnapshot(rows.Scan, &s); err != nil {
			return nil, r.wrap(err, "listing the heap snapshots of %s", vat)
		}
		list = append(list, s)
	}
	if err := rows.Err(); err != nil {
		return nil, r.wrap(err, "listing the heap snapshots of %s", vat)
	}
	rows.Close()
	engine, err := r.enginesOf(ctx, vat)
	if err != nil {
		return nil, err
	}
	for i := range list {
		list[i].Engine = engine(list[i].Position)
	}
	return list, nil
}

// SnapshotInUse returns the heap snapshot that a vat's worker is started from. It is ErrNotFound if it starts from bundles.
func (r *Reader) SnapshotInUse(ctx context.Context, vat string) (Snapshot, error) {
	s := Snapshot{Vat: vat}
	if err := scanSnapshot(r.row(ctx, snapshotColumns+" AND inUse = 1", vat).Scan, &s); err != nil {
		return s, r.wrap(err, "reading the heap snapshot of %s", vat)
	}
	var err error
	s.Engine, err = r.engineAt(ctx, vat, s.Position)
	return s, err
}

// OpenSnapshot returns a heap snapshot, uncompressed. The reader gives a *DamagedError in place of the end if it has not the hash and
// size that the store says. The error is ErrPruned if the store no longer has it.
func (r *Reader) OpenSnapshot(ctx context.Context, s Snapshot) (io.ReadCloser, error) {
	var blob []byte
	if err := r.row(ctx, "SELECT compressedSnapshot FROM snapshots WHERE vatID = ? AND snapPos = ?", s.Vat, s.Position).Scan(&blob); err != nil {
		return nil, r.wrap(err, "reading %s", s)
	}
	if blob == nil {
		return nil, r.wrap(ErrPruned, "reading %s", s)
	}
	z, err := gzip.NewReader(bytes.NewReader(blob))
	if err != nil {
		return nil, r.damaged(s.String(), "gzip", err.Error())
	}
	return &snapshotReader{r: r, s: s, z: z, hash: sha256.New()}, nil
}

type snapshotReader struct {
	r    *Reader
	s    Snapshot
	z    *gzip.Reader
	hash hash.Hash
	size int64
	err  error
}

func (sr *snapshotReader) Read(p []byte) (int, error) {
	if sr.err != nil {
		return 0, sr.err
	}
	n, err := sr.z.Read(p)
	sr.hash.Write(p[:n])
	sr.size += int64(n)
	if err == nil {
		return n, nil
	}
	if sr.err = err; err != io.EOF {
		sr.err = sr.r.damaged(sr.s.String(), "gzip", err.Error())
	} else if found := hex.EncodeToString(sr.hash.Sum(nil)); found != sr.s.Hash {
		sr.err = sr.r.damaged(sr.s.String(), "SHA-256 "+sr.s.Hash, found)
	} else if sr.s.Size != 0 && sr.size != sr.s.Size {
		sr.err = sr.r.damaged(sr.s.String(), fmt.Sprintf("%d bytes", sr.s.Size), strconv.FormatInt(sr.size, 10))
	}
	return n, sr.err
}

func (sr *snapshotReader) Close() error { return sr.z.Close() }

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
