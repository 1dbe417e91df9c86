// Package transcripts reads the transcripts of vats from where they are kept: swing-stores, also of running nodes and of this project's own
// vats, export directories of swing-stores, slog files, and one-vat transcript files. All are read as streams.
package transcripts

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"path/filepath"
	"slices"

	"github.com/enginery/enginery/swingstore"
)

// Kinds of sources.
const (
	KindStore      = "swing-store"
	KindExport     = "export"
	KindSlog       = "slog"
	KindTranscript = "transcript"
)

// Source has transcripts of vats. Its methods may be called from many goroutines, and what they return is as a swingstore.Reader's methods say.
type Source interface {
	Path() string
	Kind() string
	Vats(ctx context.Context) ([]swingstore.Vat, error)
	Spans(ctx context.Context, vat string) ([]swingstore.Span, error)
	Items(ctx context.Context, s swingstore.Span) iter.Seq2[swingstore.Item, error]
	Snapshots(ctx context.Context, vat string) ([]swingstore.Snapshot, error)
	OpenSnapshot(ctx context.Context, s swingstore.Snapshot) (io.ReadCloser, error)
	Bundle(ctx context.Context, id string) ([]byte, error)
	Get(ctx context.Context, key string) (string, error)
	// Keys returns the keys that begin with prefix, and their values, in the order of UTF-8.
	Keys(ctx context.Context, prefix string) iter.Seq2[swingstore.Pair, error]
	Close() error
}

// Open opens a source, and tells by itself of what kind it is:
//
//   - a folder with an export-manifest.json is an export;
//   - another folder, or an SQLite database, is a swing-store, which a node may be writing at the same time;
//   - a file of JSON lines, plain or gzip, is a transcript if its first line is a create-vat with a transcriptNum, and otherwise a slog.
//
// Slogs and transcripts are brought into a swing-store in the folder for temporary files, which Close removes. What has been removed from the
// source is looked for in archives, folders that a node moved it to. The error is swingstore.ErrForeign if it is something else.
func Open(ctx context.Context, path string, archives ...string) (Source, error) {
	s, err := open(ctx, path)
	if err != nil {
		return nil, err
	}
	if len(archives) == 0 {
		return s, nil
	}
	a, err := withArchives(s, archives)
	if err != nil {
		s.Close()
		return nil, err
	}
	return a, nil
}

func open(ctx context.Context, path string) (Source, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("opening transcripts: %w", err)
	}
	if info.IsDir() {
		if _, err := os.Stat(filepath.Join(path, manifestName)); err == nil {
			return openExport(path)
		}
		return openStore(path)
	}
	head, err := firstLine(path)
	switch {
	case errors.Is(err, errNotLines):
		return openStore(path)
	case err != nil:
		return nil, fmt.Errorf("opening transcripts: %w", err)
	case isTranscript(head):
		return importLines(ctx, path, KindTranscript, readTranscript)
	}
	return importLines(ctx, path, KindSlog, readSlog)
}

type store struct {
	*swingstore.Store
	kind string
}

func (s *store) Kind() string { return s.kind }

func openStore(path string) (Source, error) {
	s, err := swingstore.Open(path)
	if err != nil {
		return nil, err
	}
	return &store{s, KindStore}, nil
}

// maxLine bounds a line of a file, in bytes: a bundle may be in it.
const maxLine = 512 << 20

var errNotLines = errors.New("not lines of JSON")

// firstLine returns the beginning of the first line of a file, decompressed, or errNotLines.
func firstLine(path string) ([]byte, error) {
	f, err := openLines(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	head, err := bufio.NewReaderSize(f, 4096).Peek(4096)
	if err != nil && err != io.EOF && len(head) == 0 {
		return nil, err
	}
	head = bytes.TrimLeft(head, " \t\r\n")
	if len(head) == 0 || head[0] != '{' {
		return nil, errNotLines
	}
	line, _, _ := bytes.Cut(head, []byte{'\n'})
	return slices.Clone(line), nil
}
