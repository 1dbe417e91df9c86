package transcripts

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/enginery/enginery/swingstore"
)

// lines is a file of lines, decompressed if it is gzip.
type lines struct {
	f *os.File
	io.Reader
}

func openLines(path string) (*lines, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	b := bufio.NewReaderSize(f, 1<<20)
	magic, _ := b.Peek(2) // what is shorter is no gzip
	if !bytes.Equal(magic, []byte{0x1f, 0x8b}) {
		return &lines{f, b}, nil
	}
	z, err := gzip.NewReader(b)
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return &lines{f, z}, nil
}

func (l *lines) Close() error { return l.f.Close() }

// each calls f with each line that is not empty, and its number.
func each(r io.Reader, f func(n int, line []byte) error) error {
	s := bufio.NewScanner(r)
	s.Buffer(make([]byte, 1<<20), maxLine)
	n := 0
	for s.Scan() {
		n++
		if line := bytes.TrimSpace(s.Bytes()); len(line) > 0 {
			err := f(n, line)
			if unread := s.Err(); err != nil && unread != nil { // a gzip file that ends too early: this is what there is of the line
				err = unread
			}
			var syntax *json.SyntaxError
			if errors.Is(err, io.ErrUnexpectedEOF) || errors.As(err, &syntax) && syntax.Offset >= int64(len(line)) {
				return fmt.Errorf("line %d is cut off: %w", n, err)
			}
			if err != nil {
				return fmt.Errorf("line %d: %w", n, err)
			}
		}
	}
	if err := s.Err(); err != nil {
		return fmt.Errorf("after line %d: %w", n, err)
	}
	return nil
}

// imported is a store that was made of something else, and goes with Close.
type imported struct {
	store
	dir string
}

// Bundle looks also beside the file, where a bundle may be in a file that has its ID as its name, as SwingSet's tools write it (agoric-sdk,
// packages/SwingSet/misc-tools/extract-bundle-from-kerneldb.js): transcript files have none.
func (i *imported) Bundle(ctx context.Context, id string) ([]byte, error) {
	bundle, err := i.store.Bundle(ctx, id)
	if !errors.Is(err, swingstore.ErrNotFound) || filepath.Base(id) != id {
		return bundle, err
	}
	path := filepath.Join(filepath.Dir(i.Path()), id)
	beside, ferr := os.ReadFile(path)
	if errors.Is(ferr, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w, nor is it in a file %s", err, path)
	} else if ferr != nil {
		return nil, ferr
	}
	found, err := swingstore.ParseBundle(beside)
	if err == nil && found != id {
		err = fmt.Errorf("it is %s", found)
	}
	if err != nil {
		return nil, &swingstore.DamagedError{Store: path, What: "bundle " + id, Want: "a bundle with this ID", Found: err.Error()}
	}
	return beside, nil
}

func (i *imported) Close() error {
	return errors.Join(i.store.Close(), os.RemoveAll(i.dir))
}

// importLines brings a file of lines into a swing-store.
func importLines(ctx context.Context, path, kind string, read func(tx *swingstore.Tx, each func(func(n int, line []byte) error) error) error) (Source, error) {
	f, err := openLines(path)
	if err != nil {
		return nil, fmt.Errorf("opening transcripts: %w", err)
	}
	defer f.Close()
	dir, err := os.MkdirTemp("", "transcripts-")
	if err != nil {
		return nil, err
	}
	s, err := func() (*swingstore.Store, error) {
		name := filepath.Join(dir, swingstore.FileName)
		w, err := swingstore.Create(name)
		if err != nil {
			return nil, err
		}
		err = w.Update(func(tx *swingstore.Tx) error {
			return read(tx, func(visit func(int, []byte) error) error {
				return each(f, func(n int, line []byte) error {
					if err := ctx.Err(); err != nil {
						return err
					}
					return visit(n, line)
				})
			})
		})
		if err = errors.Join(err, w.Close()); err != nil {
			return nil, err
		}
		return swingstore.Open(name)
	}()
	if err != nil {
		os.RemoveAll(dir)
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return nil, fmt.Errorf("reading %s as a %s: %w", path, kind, err)
	}
	s.Call(path)
	return &imported{store{s, kind}, dir}, nil
}

// syscall is a syscall as an item of a transcript has it.
type syscall struct {
	Syscall json.RawMessage `json:"s"`
	Answer  json.RawMessage `json:"r"`
}

// item writes an item of a transcript as SwingSet does.
func item(delivery json.RawMessage, syscalls []syscall, result string) []byte {
	b := append([]byte(`{"d":`), delivery...)
	b = append(b, `,"sc":[`...)
	for i, s := range syscalls {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(append(append(append(append(b, `{"s":`...), s.Syscall...), `,"r":`...), s.Answer...), '}')
	}
	return append(append(append(b, `],"r":`...), result...), '}')
}

const ok = `{"status":"ok"}`

// initializeWorker is the first item of an incarnation. What is not known is left out.
func initializeWorker(bundleID string, workerBundles []string) ([]byte, error) {
	type source struct {
		BundleID string `json:"bundleID,omitempty"`
	}
	type options struct {
		Source        source                   `json:"source"`
		WorkerOptions swingstore.WorkerOptions `json:"workerOptions"`
	}
	text, err := json.Marshal(options{source{bundleID}, swingstore.WorkerOptions{Type: "xsnap", BundleIDs: workerBundles}})
	if err != nil {
		return nil, err
	}
	return item(append(append([]byte(`["initialize-worker",`), text...), ']'), nil, ok), nil
}

// begin begins the transcript of a vat at a position, whose earlier items are not known.
func begin(tx *swingstore.Tx, vat string, position int64) error {
	if position == 0 {
		return tx.InitTranscript(vat)
	}
	if err := tx.AddSpan(swingstore.Span{Vat: vat, End: position}); err != nil {
		return err
	}
	return tx.AddSpan(swingstore.Span{Vat: vat, Start: position, End: position, Hash: swingstore.StartHash, Current: true})
}
