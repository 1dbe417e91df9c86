// Package swingstore reads and writes the store of a SwingSet kernel: vats, their transcripts in spans with rolling hashes, heap
// snapshots, bundles and the kernel's keys, in one SQLite database (agoric-sdk, packages/swing-store).
//
// Open reads a store that a node may be writing at the same time. Create gives a store that vats of this project write; SwingSet reads it
// as its own. One table is added to SwingSet's, engines, which says what version ran a vat from a position on; a store without it, and a
// vat without a row, ran on the version that its worker options name, which is none in SwingSet's own data: the legacy version.
package swingstore

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

// FileName is the database's name in the folder of a store.
const FileName = "swingstore.sqlite"

var (
	// ErrNotFound says that a store has no such vat, snapshot, bundle or key.
	ErrNotFound = errors.New("not in the store")
	// ErrPruned says that a store knows of an item, snapshot or bundle, and no longer has it.
	ErrPruned = errors.New("pruned from the store")
	// ErrForeign says that a file is not a swing-store.
	ErrForeign = errors.New("not a swing-store")
	// ErrFull says that there was no room for what was to be written. The transaction did not happen.
	ErrFull = errors.New("no space left for the store")
)

// DamagedError says that something in a store is not what the store says of it.
type DamagedError struct {
	Store       string // path
	What        string // e.g. "span 5-32 of v1"
	Want, Found string
}

func (e *DamagedError) Error() string {
	return fmt.Sprintf("%s: %s is damaged: expected %s, found %s; take the store from a backup or another node", e.Store, e.What, e.Want, e.Found)
}

// Reader is what can be read of a store.
type Reader struct {
	path    string
	q       querier
	engines bool // there is a table engines
	whole   bool // inside a transaction, which the end of a context must not undo
}

func (r *Reader) context(ctx context.Context) context.Context {
	if r.whole {
		return context.WithoutCancel(ctx)
	}
	return ctx
}

// Store is an open store. Its methods may be called from many goroutines.
type Store struct {
	Reader
	file string // the database's path
	db   *sql.DB

	writing sync.Mutex  // held by a transaction
	writer  *sql.Conn   // nil if read-only
	own     *statements // the writer's

	alone bool // nobody else had it open when this began to read
}

// Open opens a store for reading: its database, or the folder that has it as swingstore.sqlite. A node may go on writing. What a Reader
// returns has been committed; no transaction stays open while its caller works, so the node's log does not grow for it.
//
// The error is ErrForeign if it is something else.
func Open(path string) (*Store, error) {
	path, err := database(path)
	if err != nil {
		return nil, fmt.Errorf("opening a swing-store: %w", err)
	}
	query := url.Values{"mode": {"ro"}, "_pragma": {"query_only(1)", "busy_timeout(10000)"}}
	if unix.Access(filepath.Dir(path), unix.W_OK) != nil {
		// The index of the write-ahead log cannot be made. That is no loss if there is no log.
		if info, err := os.Stat(path + "-wal"); err != nil || info.Size() == 0 {
			query.Set("immutable", "1")
		}
	}
	_, err = os.Lstat(path + "-wal")
	alone := errors.Is(err, fs.ErrNotExist)
	s, err := open(path, query)
	if err != nil {
		if alone {
			tidy(path)
		}
		return nil, fmt.Errorf("opening a swing-store: %w", err)
	}
	s.alone = alone
	return s, nil
}

// tidy removes an empty write-ahead log and its index from beside a store that had none. SQLite makes them even to read, and only a connection that
// may write removes them: the last one, when it is closed. If a node has started meanwhile, SQLite leaves them.
func tidy(path string) {
	if info, err := os.Stat(path + "-wal"); err != nil || info.Size() > 0 {
		return // there are none, or what is in them is not to be moved into the store by who only reads it
	}
	db, err := connect(path, url.Values{"mode": {"rw"}})
	if err != nil {
		return
	}
	defer db.Close()
	db.QueryRow("SELECT count(*) FROM sqlite_master").Scan(new(int)) // so that it opens them
}

// Create opens a store for writing, and makes it if there is none. Many processes may read it, and one should write.
func Create(path string) (*Store, error) {
	if info, err := os.Stat(path); err == nil && info.IsDir() {
		path = filepath.Join(path, FileName)
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	s, err := create(abs, url.Values{"_pragma": {"busy_timeout(10000)", "journal_mode(wal)", "synchronous(full)"}})
	if err != nil {
		return nil, fmt.Errorf("opening a swing-store for writing: %w", err)
	}
	return s, nil
}

var memories atomic.Int64

// Memory returns a store that is in memory only.
func Memory() (*Store, error) {
	return create(fmt.Sprintf("/enginery-%d", memories.Add(1)), url.Values{"vfs": {"memdb"}, "_pragma": {"busy_timeout(10000)"}})
}

func database(path string) (string, error) {
	info, err := os.Stat(path)
	if err != nil {
		return "", err
	}
	if info.IsDir() {
		path = filepath.Join(path, FileName)
		if _, err := os.Stat(path); err != nil {
			return "", err
		}
	}
	return filepath.Abs(path)
}

func connect(path string, query url.Values) (*sql.DB, error) {
	return sql.Open("sqlite", (&url.URL{Scheme: "file", Path: path, RawQuery: query.Encode()}).String())
}

func open(path string, query url.Values) (*Store, error) {
	db, err := connect(path, query)
	if err != nil {
		return nil, err
	}
	s := &Store{Reader: Reader{path: path, q: &statements{on: db}}, file: path, db: db}
	if err := s.checkSchema(context.Background()); err != nil {
		db.Close()
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return s, nil
}

func create(path string, query url.Values) (*Store, error) {
	db, err := connect(path, query)
	if err != nil {
		return nil, err
	}
	ctx := context.Background()
	s := &Store{Reader: Reader{path: path, q: &statements{on: db}}, file: path, db: db}
	err = func() error {
		if s.writer, err = db.Conn(ctx); err != nil {
			return err
		}
		s.own = &statements{on: s.writer}
		var tables int
		if err := s.writer.QueryRowContext(ctx, "SELECT count(*) FROM sqlite_master").Scan(&tables); err != nil {
			return err
		}
		if tables == 0 || tableColumns(ctx, s.writer, "transcriptSpans") != nil { // not one of something else
			if _, err := s.writer.ExecContext(ctx, "BEGIN IMMEDIATE;"+schema+"COMMIT"); err != nil {
				return err
			}
		}
		return s.checkSchema(ctx)
	}()
	if err != nil {
		s.Close()
		return nil, fmt.Errorf("%s: %w", path, known(err))
	}
	return s, nil
}

// Close closes the store. What SQLite has put beside it to read it is removed, unless somebody else uses it.
func (s *Store) Close() error {
	if s.writer == nil {
		if s.alone {
			defer tidy(s.file)
		}
		return s.db.Close()
	}
	s.writing.Lock()
	defer s.writing.Unlock()
	s.own.close()
	s.writer.Close()
	s.writer = nil
	return s.db.Close()
}

// Path returns the path of the database, or what it is called in its place.
func (r *Reader) Path() string { return r.path }

// Call has Path and errors say name in place of the database's path: what its content was read from, say.
func (s *Store) Call(name string) { s.path = name }

// schema is that of swing-store (src/*.js), and the table engines.
const schema = `
CREATE TABLE IF NOT EXISTS pendingExports (key TEXT, value TEXT, PRIMARY KEY (key));
CREATE TABLE IF NOT EXISTS kvStore (key TEXT, value TEXT, PRIMARY KEY (key));
CREATE TABLE IF NOT EXISTS transcriptItems (
  vatID TEXT, position INTEGER, item TEXT, incarnation INTEGER,
  PRIMARY KEY (vatID, position)
);
CREATE TABLE IF NOT EXISTS transcriptSpans (
  vatID TEXT,
  startPos INTEGER, -- inclusive
  endPos INTEGER, -- exclusive
  hash TEXT, -- cumulative hash of this item and previous cumulative hash
  isCurrent INTEGER CHECK (isCurrent = 1),
  incarnation INTEGER,
  PRIMARY KEY (vatID, startPos),
  UNIQUE (vatID, isCurrent)
);
CREATE INDEX IF NOT EXISTS currentTranscriptIndex ON transcriptSpans (vatID, isCurrent);
CREATE TABLE IF NOT EXISTS snapshots (
  vatID TEXT, snapPos INTEGER, inUse INTEGER CHECK(inUse = 1), hash TEXT,
  uncompressedSize INTEGER, compressedSize INTEGER, compressedSnapshot BLOB,
  PRIMARY KEY (vatID, snapPos),
  UNIQUE (vatID, inUse)
);
CREATE TABLE IF NOT EXISTS bundles (bundleID TEXT, bundle BLOB, PRIMARY KEY (bundleID));
CREATE TABLE IF NOT EXISTS engines (
  vatID TEXT,
  position INTEGER, -- from which on the version ran the vat, and wrote its heap snapshots
  version TEXT,
  PRIMARY KEY (vatID, position)
);
`

// columns are those that are read, by table.
var columns = map[string][]string{
	"kvStore":         {"key", "value"},
	"transcriptItems": {"vatID", "position", "item", "incarnation"},
	"transcriptSpans": {"vatID", "startPos", "endPos", "hash", "isCurrent", "incarnation"},
	"snapshots":       {"vatID", "snapPos", "inUse", "hash", "uncompressedSize", "compressedSize", "compressedSnapshot"},
	"bundles":         {"bundleID", "bundle"},
}

func (s *Store) checkSchema(ctx context.Context) error {
	for _, table := range []string{"kvStore", "transcriptItems", "transcriptSpans", "snapshots", "bundles"} {
		has := tableColumns(ctx, s.db, table)
		if has == nil {
			if err := s.db.QueryRowContext(ctx, "SELECT count(*) FROM sqlite_master").Scan(new(int)); err != nil {
				return known(err)
			}
			return fmt.Errorf("%w: it has no table %s", ErrForeign, table)
		}
		for _, column := range columns[table] {
			if !has[column] {
				return fmt.Errorf("%w: its table %s has no column %s", ErrForeign, table, column)
			}
		}
	}
	s.engines = tableColumns(ctx, s.db, "engines") != nil
	return nil
}

// tableColumns returns the columns of a table, and nil if there is none or it cannot be read.
func tableColumns(ctx context.Context, q querier, table string) map[string]bool {
	rows, err := q.QueryContext(ctx, "SELECT name FROM pragma_table_info(?)", table)
	if err != nil {
		return nil
	}
	defer rows.Close()
	var has map[string]bool
	for rows.Next() {
		var name string
		if rows.Scan(&name) != nil {
			return nil
		}
		if has == nil {
			has = make(map[string]bool)
		}
		has[name] = true
	}
	return has
}

// known gives errors of SQLite that a caller can do something about the names that they have here.
func known(err error) error {
	var e *sqlite.Error
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return ErrNotFound
	case !errors.As(err, &e):
		return err
	}
	switch e.Code() & 0xff {
	case sqlite3.SQLITE_NOTADB:
		return fmt.Errorf("%w: %w", ErrForeign, err)
	case sqlite3.SQLITE_CORRUPT:
		return fmt.Errorf("the database is damaged or cut off: %w", err)
	case sqlite3.SQLITE_FULL:
		return fmt.Errorf("%w: %w", ErrFull, err)
	}
	return err
}
