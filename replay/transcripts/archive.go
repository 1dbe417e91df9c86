package transcripts

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"iter"
	"os"
	"path/filepath"

	"github.com/enginery/enginery/swingstore"
)

// archived is a source whose removed spans and heap snapshots are in folders: transcript.VAT.START.END.gz and snapshot.VAT.POSITION.gz, as
// agoric-sdk's archivers name them (packages/swing-store/src/archiver.js).
type archived struct {
	Source
	folders []string
}

func withArchives(s Source, folders []string) (Source, error) {
	for _, folder := range folders {
		if info, err := os.Stat(folder); err != nil {
			return nil, fmt.Errorf("opening an archive: %w", err)
		} else if !info.IsDir() {
			return nil, fmt.Errorf("opening an archive: %s is no folder", folder)
		}
	}
	return &archived{s, folders}, nil
}

func (a *archived) find(name string) (string, bool) {
	for _, folder := range a.folders {
		if path := filepath.Join(folder, name); exists(path) {
			return path, true
		}
	}
	return "", false
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// Items reads the archive if the source has no longer all items.
func (a *archived) Items(ctx context.Context, s swingstore.Span) iter.Seq2[swingstore.Item, error] {
	return func(yield func(swingstore.Item, error) bool) {
		some := false
		for item, err := range a.Source.Items(ctx, s) {
			if errors.Is(err, swingstore.ErrPruned) && !some {
				if path, ok := a.find(spanName(s) + ".gz"); ok {
					for item, err := range fileItems(path, s) {
						if !yield(item, err) {
							return
						}
					}
					return
				}
			}
			some = true
			if !yield(item, err) {
				return
			}
		}
	}
}

func (a *archived) Snapshots(ctx context.Context, vat string) ([]swingstore.Snapshot, error) {
	list, err := a.Source.Snapshots(ctx, vat)
	for i, s := range list {
		if !s.Present {
			_, list[i].Present = a.find(snapshotName(s) + ".gz")
		}
	}
	return list, err
}

func (a *archived) OpenSnapshot(ctx context.Context, s swingstore.Snapshot) (io.ReadCloser, error) {
	r, err := a.Source.OpenSnapshot(ctx, s)
	if !errors.Is(err, swingstore.ErrPruned) {
		return r, err
	}
	path, ok := a.find(snapshotName(s) + ".gz")
	if !ok {
		return nil, err
	}
	return openSnapshotFile(path, s)
}

// Names of artifacts (packages/swing-store/docs/data-export.md).
func spanName(s swingstore.Span) string {
	return fmt.Sprintf("transcript.%s.%d.%d", s.Vat, s.Start, s.End)
}

func snapshotName(s swingstore.Snapshot) string {
	return fmt.Sprintf("snapshot.%s.%d", s.Vat, s.Position)
}

// fileItems reads a span from a file, with one item a line, and checks its hash.
func fileItems(path string, s swingstore.Span) iter.Seq2[swingstore.Item, error] {
	return func(yield func(swingstore.Item, error) bool) {
		damaged := func(want, found string) {
			yield(swingstore.Item{}, &swingstore.DamagedError{Store: path, What: s.String(), Want: want, Found: found})
		}
		f, err := openLines(path)
		if errors.Is(err, fs.ErrNotExist) {
			yield(swingstore.Item{}, fmt.Errorf("reading %s: %s: %w", s, path, swingstore.ErrPruned))
			return
		} else if err != nil {
			damaged("a file of lines", err.Error())
			return
		}
		defer f.Close()
		r := bufio.NewReaderSize(f, 1<<20)
		hash := swingstore.StartHash
		for position := s.Start; position < s.End; position++ {
			line, err := r.ReadBytes('\n')
			if err != nil {
				damaged(fmt.Sprintf("%d items", s.End-s.Start), fmt.Sprintf("%d, and then %v", position-s.Start, err))
				return
			}
			line = bytes.TrimSuffix(line, []byte{'\n'})
			hash = swingstore.NextHash(hash, line)
			if position == s.End-1 && hash != s.Hash {
				damaged("hash "+s.Hash, hash)
				return
			}
			if !yield(swingstore.Item{Position: position, Text: line}, nil) {
				return
			}
		}
		if _, err := r.ReadByte(); err != io.EOF {
			damaged(fmt.Sprintf("%d items", s.End-s.Start), "more")
		}
	}
}

// openSnapshotFile opens a heap snapshot that is in a file, plain or gzip. The reader gives a *swingstore.DamagedError in place of the end if it
// has not the hash that it must have.
func openSnapshotFile(path string, s swingstore.Snapshot) (io.ReadCloser, error) {
	f, err := openLines(path)
	if errors.Is(err, gzip.ErrHeader) {
		return nil, &swingstore.DamagedError{Store: path, What: s.String(), Want: "gzip", Found: err.Error()}
	} else if err != nil {
		return nil, err
	}
	return &snapshotFile{f, path, s, sha256.New()}, nil
}

type snapshotFile struct {
	*lines
	path string
	s    swingstore.Snapshot
	hash hash.Hash
}

func (f *snapshotFile) Read(p []byte) (int, error) {
	n, err := f.lines.Read(p)
	f.hash.Write(p[:n])
	if err == io.EOF {
		if found := hex.EncodeToString(f.hash.Sum(nil)); found != f.s.Hash {
			err = &swingstore.DamagedError{Store: f.path, What: f.s.String(), Want: "SHA-256 " + f.s.Hash, Found: found}
		}
	} else if err != nil {
		err = &swingstore.DamagedError{Store: f.path, What: f.s.String(), Want: "gzip", Found: err.Error()}
	}
	return n, err
}
