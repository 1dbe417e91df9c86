package swingstore

import (
	"bytes"
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/klauspost/compress/gzip" // of heap snapshots, with two thirds of the work of the standard library
	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

// Tx is a transaction: what it writes is in the store wholly, once Commit has returned nil, or not at all. It reads what it wrote. Its
// methods must not be called at the same time.
type Tx struct {
	Reader
	s     *Store
	depth int  // of savepoints
	ended bool // by Commit or Rollback, or by SQLite after an error

	touched []string // keys, some of them often
}

// Begin begins a transaction, after those that other goroutines have begun. One of the two, Commit or Rollback, must follow.
func (s *Store) Begin() (*Tx, error) {
	s.writing.Lock()
	if s.writer == nil {
		s.writing.Unlock()
		return nil, fmt.Errorf("%s is open for reading only, or closed", s.path)
	}
	if _, err := s.writer.ExecContext(context.Background(), "BEGIN IMMEDIATE"); err != nil {
		s.writing.Unlock()
		return nil, s.wrap(err, "beginning a transaction")
	}
	r := s.Reader
	r.q, r.whole = s.own, true
	return &Tx{Reader: r, s: s}, nil
}

// Update runs f in a transaction, which is committed if f returns nil.
func (s *Store) Update(f func(tx *Tx) error) error {
	tx, err := s.Begin()
	if err != nil {
		return err
	}
	defer tx.Rollback()
	if err := f(tx); err != nil {
		return err
	}
	return tx.Commit()
}

// Commit ends the transaction and returns when it is on disk. After an error nothing of it has happened.
func (tx *Tx) Commit() error {
	if tx.ended {
		return errors.New("the transaction has ended")
	}
	if _, err := tx.s.writer.ExecContext(context.Background(), "COMMIT"); err != nil {
		tx.Rollback()
		return tx.wrap(err, "committing")
	}
	tx.end()
	return nil
}

// Rollback undoes the transaction, if it has not ended.
func (tx *Tx) Rollback() {
	if tx.ended {
		return
	}
	tx.s.writer.ExecContext(context.Background(), "ROLLBACK") // fails if SQLite has done so by itself
	tx.end()
}

func (tx *Tx) end() {
	tx.ended = true
	tx.s.writing.Unlock()
}

// Try runs f and undoes what it wrote if it returns an error. Calls may be nested.
func (tx *Tx) Try(f func() error) (err error) {
	name := fmt.Sprintf("t%d", tx.depth)
	if err := tx.exec("SAVEPOINT " + name); err != nil {
		return tx.wrap(err, "writing")
	}
	tx.depth++
	done := false
	touched := len(tx.touched)
	defer func() {
		tx.depth--
		if done {
			return
		}
		tx.touched = tx.touched[:touched]
		if undo := tx.exec("ROLLBACK TO " + name + "; RELEASE " + name); undo != nil {
			tx.Rollback() // the savepoint is lost with the whole transaction, as after a full disk
		}
	}()
	if err := f(); err != nil {
		return err
	}
	if err := tx.exec("RELEASE " + name); err != nil {
		return tx.wrap(err, "writing")
	}
	done = true
	return nil
}

func (tx *Tx) exec(query string, args ...any) error {
	if tx.ended {
		return errors.New("the transaction has ended")
	}
	err := tx.s.exec(query, args...)
	if rolledBack(err) {
		tx.Rollback()
	}
	return err
}

// rolledBack reports whether SQLite may have undone the whole transaction after an error: what is written then would be committed at once.
func rolledBack(err error) bool {
	var e *sqlite.Error
	if !errors.As(err, &e) {
		return false
	}
	switch e.Code() & 0xff {
	case sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_INTERRUPT:
		return true
	}
	return false
}

// exec runs a statement with the connection of transactions.
func (s *Store) exec(query string, args ...any) error {
	ctx := context.Background()
	if len(args) == 0 {
		_, err := s.writer.ExecContext(ctx, query)
		return err
	}
	stmt, err := s.own.prepare(ctx, query)
	if err != nil {
		return err
	}
	_, err = stmt.ExecContext(ctx, args...)
	return err
}

// Set sets a key of the kernel.
func (tx *Tx) Set(key, value string) error {
	if err := tx.exec("INSERT INTO kvStore (key, value) VALUES (?, ?) ON CONFLICT DO UPDATE SET value = excluded.value", key, value); err != nil {
		return tx.wrap(err, "writing key %q", key)
	}
	tx.touchKey(key)
	return nil
}

// Delete removes a key, if it is there.
func (tx *Tx) Delete(key string) error {
	if err := tx.exec("DELETE FROM kvStore WHERE key = ?", key); err != nil {
		return tx.wrap(err, "removing key %q", key)
	}
	tx.touchKey(key)
	return nil
}

func (tx *Tx) touchKey(key string) {
	if !strings.HasPrefix(key, "local.") {
		tx.touch("kv", key)
	}
}

// AddBundle adds a bundle, an object in JSON, if the store does not have it, and returns its ID.
func (tx *Tx) AddBundle(bundle []byte) (string, error) {
	id, stored, err := parseBundle(bundle)
	if err != nil {
		return "", fmt.Errorf("adding a bundle: %w", err)
	}
	if err := tx.exec("INSERT INTO bundles (bundleID, bundle) VALUES (?, ?) ON CONFLICT DO UPDATE SET bundle = excluded.bundle WHERE bundle IS NULL", id, stored); err != nil {
		return "", tx.wrap(err, "adding bundle %s", id)
	}
	tx.touch("bundle", id)
	return id, nil
}

// SetVat records a vat's options, source and, unless they are nil, parameters, which may be new. Of RawOptions it keeps what Options does not
// have. A new vat is a dynamic one.
func (tx *Tx) SetVat(v Vat) error {
	options, err := mergeOptions(v.RawOptions, v.Options)
	if err != nil {
		return fmt.Errorf("recording %s: %w", v.ID, err)
	}
	source, err := encode(struct {
		BundleID string `json:"bundleID"`
	}{v.BundleID})
	if err != nil {
		return fmt.Errorf("recording %s: %w", v.ID, err)
	}
	_, err = tx.Get(context.Background(), v.ID+".options")
	if isNew := errors.Is(err, ErrNotFound); err != nil && !isNew {
		return err
	} else if isNew {
		dynamic, err := tx.list(context.Background(), "vat.dynamicIDs")
		if err != nil {
			return err
		}
		if !slices.Contains(dynamic, v.ID) {
			list, err := encode(append(dynamic, v.ID))
			if err != nil {
				return err
			}
			if err := tx.Set("vat.dynamicIDs", list); err != nil {
				return err
			}
		}
	}
	if err := errors.Join(tx.Set(v.ID+".options", options), tx.Set(v.ID+".source", source)); err != nil || v.Parameters == nil {
		return err
	}
	return tx.Set(v.ID+".vatParameters", string(v.Parameters))
}

// mergeOptions encodes options, with what a kernel that knows of more has recorded beside them, and in its order.
func mergeOptions(raw json.RawMessage, o Options) (string, error) {
	text, err := encode(o)
	if err != nil || raw == nil {
		return text, err
	}
	keys, old, err := members(raw)
	if err != nil || old == nil {
		return text, err
	}
	newKeys, values, err := members([]byte(text))
	if err != nil {
		return "", err
	}
	for t, i := reflect.TypeFor[Options](), 0; i < t.NumField(); i++ {
		name, _, _ := strings.Cut(t.Field(i).Tag.Get("json"), ",")
		delete(old, name)
	}
	for _, key := range newKeys {
		if !slices.Contains(keys, key) {
			keys = append(keys, key)
		}
	}
	maps.Copy(old, values)
	var b strings.Builder
	b.WriteByte('{')
	for _, key := range keys {
		value, ok := old[key]
		if !ok {
			continue
		}
		if b.Len() > 1 {
			b.WriteByte(',')
		}
		name, err := encode(key)
		if err != nil {
			return "", err
		}
		fmt.Fprintf(&b, "%s:%s", name, value)
	}
	b.WriteByte('}')
	return b.String(), nil
}

// members returns the keys of an object in JSON in their order, and their values.
func members(object []byte) (keys []string, values map[string]json.RawMessage, err error) {
	if err := json.Unmarshal(object, &values); err != nil {
		return nil, nil, err
	}
	d := json.NewDecoder(bytes.NewReader(object))
	if _, err := d.Token(); err != nil {
		return nil, nil, err
	}
	for d.More() {
		key, err := d.Token()
		if err != nil {
			return nil, nil, err
		}
		var value json.RawMessage
		if err := d.Decode(&value); err != nil {
			return nil, nil, err
		}
		if name := key.(string); !slices.Contains(keys, name) {
			keys = append(keys, name)
		}
	}
	return keys, values, nil
}

// encode is JSON.stringify: nothing is escaped for HTML.
func encode(v any) (string, error) {
	var b strings.Builder
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	err := e.Encode(v)
	return strings.TrimSuffix(b.String(), "\n"), err
}

// InitTranscript begins a vat's transcript: its first span, of incarnation 0.
func (tx *Tx) InitTranscript(vat string) error {
	if err := tx.exec("INSERT INTO transcriptSpans (vatID, startPos, endPos, hash, isCurrent, incarnation) VALUES (?, 0, 0, ?, 1, 0)", vat, StartHash); err != nil {
		return tx.wrap(err, "beginning the transcript of %s", vat)
	}
	tx.touchSpan(vat, 0)
	return nil
}

// AddSpan adds a span as it is, whose items and hash are the caller's affair: of a transcript of which not all is there, or is to be.
func (tx *Tx) AddSpan(s Span) error {
	var current any
	if s.Current {
		current = 1
	}
	if err := tx.exec("INSERT INTO transcriptSpans (vatID, startPos, endPos, hash, isCurrent, incarnation) VALUES (?, ?, ?, ?, ?, ?)",
		s.Vat, s.Start, s.End, s.Hash, current, s.Incarnation); err != nil {
		return tx.wrap(err, "adding %s", s)
	}
	return nil
}

// SetEngine records that a version runs a vat from a position of its transcript on.
func (tx *Tx) SetEngine(vat string, position int64, version string) error {
	if !tx.engines {
		return fmt.Errorf("%s has no table engines", tx.path)
	}
	if err := tx.exec("INSERT INTO engines (vatID, position, version) VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET version = excluded.version", vat, position, version); err != nil {
		return tx.wrap(err, "recording the engine of %s", vat)
	}
	tx.touch("engine", vat, strconv.FormatInt(position, 10))
	return nil
}

// AddItem adds an item to the current span of a vat, and returns that.
func (tx *Tx) AddItem(vat string, item []byte) (Span, error) {
	s, err := tx.Current(context.Background(), vat)
	if err != nil {
		return s, err
	}
	if err := tx.exec("INSERT INTO transcriptItems (vatID, item, position, incarnation) VALUES (?, ?, ?, ?)", vat, string(item), s.End, s.Incarnation); err != nil {
		return s, tx.wrap(err, "writing item %d of %s", s.End, vat)
	}
	s.End, s.Hash = s.End+1, NextHash(s.Hash, item)
	if err := tx.exec("UPDATE transcriptSpans SET endPos = ?, hash = ? WHERE vatID = ? AND isCurrent = 1", s.End, s.Hash, vat); err != nil {
		return s, tx.wrap(err, "writing item %d of %s", s.End-1, vat)
	}
	tx.touchSpan(vat, s.Start)
	return s, nil
}

// Rollover ends the current span of a vat and begins the next, which it returns: of the next incarnation, whose worker is started from
// bundles, or of the same.
func (tx *Tx) Rollover(vat string, incarnation bool) (Span, error) {
	s, err := tx.Current(context.Background(), vat)
	if err != nil {
		return s, err
	}
	if incarnation {
		if err := tx.StopUsingSnapshot(vat); err != nil {
			return s, err
		}
		s.Incarnation++
	}
	if err := tx.exec("UPDATE transcriptSpans SET isCurrent = NULL WHERE vatID = ? AND isCurrent = 1", vat); err != nil {
		return s, tx.wrap(err, "ending %s", s)
	}
	tx.touchSpan(vat, s.Start)
	s.Start, s.Hash = s.End, StartHash
	if err := tx.exec("INSERT INTO transcriptSpans (vatID, startPos, endPos, hash, isCurrent, incarnation) VALUES (?, ?, ?, ?, 1, ?)", vat, s.Start, s.End, s.Hash, s.Incarnation); err != nil {
		return s, tx.wrap(err, "beginning %s", s)
	}
	tx.touchSpan(vat, s.Start)
	return s, nil
}

func (tx *Tx) touchSpan(vat string, start int64) {
	tx.touch("transcript", vat, strconv.FormatInt(start, 10))
	tx.touch("transcript", vat, "current")
}

// StopUsingSnapshot has a vat's worker start from bundles the next time.
func (tx *Tx) StopUsingSnapshot(vat string) error {
	var position int64
	switch err := tx.row(context.Background(), "SELECT snapPos FROM snapshots WHERE vatID = ? AND inUse = 1", vat).Scan(&position); {
	case errors.Is(err, sql.ErrNoRows):
		return nil
	case err != nil:
		return tx.wrap(err, "setting the heap snapshot of %s aside", vat)
	}
	tx.touchSnapshot(vat, position)
	if err := tx.exec("UPDATE snapshots SET inUse = NULL WHERE inUse = 1 AND vatID = ?", vat); err != nil {
		return tx.wrap(err, "setting the heap snapshot of %s aside", vat)
	}
	return nil
}

func (tx *Tx) touchSnapshot(vat string, position int64) {
	tx.touch("snapshot", vat, strconv.FormatInt(position, 10))
	tx.touch("snapshot", vat, "current")
}

// SnapshotWriter compresses and hashes a heap snapshot while it is written to it.
type SnapshotWriter struct {
	compressed bytes.Buffer
	z          *gzip.Writer
	hash       hash.Hash
	size       int64
}

// NewSnapshotWriter returns a writer that has nothing yet.
func NewSnapshotWriter() *SnapshotWriter {
	w := &SnapshotWriter{hash: sha256.New()}
	w.z, _ = gzip.NewWriterLevel(&w.compressed, gzip.BestSpeed)
	return w
}

func (w *SnapshotWriter) Write(p []byte) (int, error) {
	w.hash.Write(p)
	w.size += int64(len(p))
	return w.z.Write(p)
}

// SaveSnapshot stores a heap snapshot that was written whole, of the worker that has done the vat's items up to the current span's end, and
// has the vat's worker start from it the next time. Earlier ones stay.
func (tx *Tx) SaveSnapshot(vat string, w *SnapshotWriter) (Snapshot, error) {
	span, err := tx.Current(context.Background(), vat)
	if err != nil {
		return Snapshot{}, err
	}
	return tx.SaveSnapshotAt(vat, span.End, w)
}

// SaveSnapshotAt is SaveSnapshot for a position of the vat's transcript: that of the item save-snapshot.
func (tx *Tx) SaveSnapshotAt(vat string, position int64, w *SnapshotWriter) (Snapshot, error) {
	engine, err := tx.engineAt(context.Background(), vat, position)
	if err != nil {
		return Snapshot{}, err
	}
	s := Snapshot{Vat: vat, Position: position, Hash: hex.EncodeToString(w.hash.Sum(nil)), Size: w.size, InUse: true, Present: true, Engine: engine}
	if err := w.z.Close(); err != nil {
		return s, err
	}
	s.Compressed = int64(w.compressed.Len())
	if err := tx.StopUsingSnapshot(vat); err != nil {
		return s, err
	}
	if err := tx.exec("INSERT OR REPLACE INTO snapshots (vatID, snapPos, inUse, hash, uncompressedSize, compressedSize, compressedSnapshot) VALUES (?, ?, 1, ?, ?, ?, ?)",
		vat, s.Position, s.Hash, s.Size, s.Compressed, w.compressed.Bytes()); err != nil {
		return s, tx.wrap(err, "writing %s", s)
	}
	tx.touchSnapshot(vat, s.Position)
	return s, nil
}

// PruneSnapshots drops all heap snapshots of a vat that its worker is not started from. Their hashes stay.
func (tx *Tx) PruneSnapshots(vat string) error {
	if err := tx.exec("UPDATE snapshots SET compressedSnapshot = NULL WHERE vatID = ? AND inUse IS NULL AND compressedSnapshot IS NOT NULL", vat); err != nil {
		return tx.wrap(err, "pruning the heap snapshots of %s", vat)
	}
	return nil
}
