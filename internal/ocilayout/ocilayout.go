// Package ocilayout reads and writes OCI layouts on disk that several processes share.
//
// A blob is written aside and renamed when it is whole and checked. Who writes anything holds a lock on the folder: shared for a
// blob, exclusive for index.json.
package ocilayout

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/enginery/enginery/internal/progress"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// AnnotationSubject says in a layout's index.json what a referrer is about, so that one need not read it to know.
const AnnotationSubject = "vnd.enginery.subject"

// CorruptError says that a blob is not what its digest says, or is missing.
type CorruptError struct {
	Blob  ocispec.Descriptor // what was expected
	Path  string             // where
	Found string             // digest and size, or that there is nothing
	Err   error              // fs.ErrNotExist if it is missing
}

func (e *CorruptError) Error() string {
	name := e.Blob.Digest.String()
	if t := e.Blob.Annotations[ocispec.AnnotationTitle]; t != "" {
		name = t + ", " + name
	}
	state, remedy := "damaged", "remove the file, and build or fetch the version again"
	if errors.Is(e.Err, fs.ErrNotExist) {
		state, remedy = "missing", "build or fetch the version again"
	}
	return fmt.Sprintf("blob %s is %s: %s: expected sha256:%s, %d bytes; found %s; %s",
		name, state, e.Path, e.Blob.Digest.Encoded(), e.Blob.Size, e.Found, remedy)
}

func (e *CorruptError) Unwrap() error { return e.Err }

func blobsDir(dir string) string {
	return filepath.Join(dir, ocispec.ImageBlobsDir, digest.SHA256.String())
}

// BlobPath returns where a layout keeps a blob. Whoever reads it must check it.
func BlobPath(dir string, d ocispec.Descriptor) (string, error) {
	if err := d.Digest.Validate(); err != nil {
		return "", fmt.Errorf("digest %q: %w", d.Digest, err)
	}
	if d.Digest.Algorithm() != digest.SHA256 {
		return "", fmt.Errorf("digest %q: expected sha256:…", d.Digest)
	}
	return filepath.Join(blobsDir(dir), d.Digest.Encoded()), nil
}

// verifier is a reader of a blob that checks it: its end is a *CorruptError if it is another one.
type verifier struct {
	r    io.Reader
	want ocispec.Descriptor
	path string
	h    hash.Hash
	n    int64
}

func newVerifier(r io.Reader, want ocispec.Descriptor, path string) *verifier {
	return &verifier{r: r, want: want, path: path, h: sha256.New()}
}

func (v *verifier) Read(p []byte) (int, error) {
	n, err := v.r.Read(p)
	v.h.Write(p[:n])
	v.n += int64(n)
	if v.n > v.want.Size { // it may never end
		return 0, &CorruptError{Blob: v.want, Path: v.path, Found: "more bytes than that"}
	}
	if err == io.EOF {
		if sum := fmt.Sprintf("%x", v.h.Sum(nil)); sum != v.want.Digest.Encoded() || v.n != v.want.Size {
			err = &CorruptError{Blob: v.want, Path: v.path, Found: fmt.Sprintf("sha256:%s, %d bytes", sum, v.n)}
		}
	}
	return n, err
}

// OpenFile opens the file of a blob, which nobody has checked. A missing one is a *CorruptError with fs.ErrNotExist.
func OpenFile(dir string, d ocispec.Descriptor) (*os.File, error) {
	path, err := BlobPath(dir, d)
	if err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0) // who opens a pipe waits for its writer
	if errors.Is(err, fs.ErrNotExist) {
		return nil, &CorruptError{Blob: d, Path: path, Found: "no file", Err: fs.ErrNotExist}
	} else if err != nil {
		return nil, err
	}
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		f.Close()
		return nil, errors.Join(err, &CorruptError{Blob: d, Path: path, Found: "something that is not a file"})
	}
	return f, nil
}

// Open reads a blob of a layout, checked: the end of one that is damaged is a *CorruptError.
func Open(dir string, d ocispec.Descriptor) (io.ReadCloser, error) {
	f, err := OpenFile(dir, d)
	if err != nil {
		return nil, err
	}
	return struct {
		io.Reader
		io.Closer
	}{newVerifier(f, d, f.Name()), f}, nil
}

// Verify checks a blob of a layout.
func Verify(dir string, d ocispec.Descriptor) error {
	r, err := Open(dir, d)
	if err != nil {
		return err
	}
	defer r.Close()
	_, err = io.CopyBuffer(struct{ io.Writer }{io.Discard}, r, make([]byte, 128<<10))
	return err
}

// Read returns a blob of at most max bytes, checked.
func Read(dir string, d ocispec.Descriptor, max int64) ([]byte, error) {
	r, err := Open(dir, d)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	var b bytes.Buffer
	if n, err := io.Copy(&b, io.LimitReader(r, max+1)); err != nil {
		return nil, err
	} else if n > max {
		return nil, fmt.Errorf("blob %s has more than %d bytes, too many for a %s", d.Digest, max, d.MediaType)
	}
	return b.Bytes(), nil
}

// WriteBlob writes a blob under its digest, in place of what is there. It is whole, or a *CorruptError and not written. That it is there
// lasts from the next UpdateIndex on.
func WriteBlob(ctx context.Context, dir string, d ocispec.Descriptor, r io.Reader) error {
	path, err := BlobPath(dir, d)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(blobsDir(dir), 0o755); err != nil {
		return err
	}
	unlock, err := lock(ctx, dir, unix.LOCK_SH)
	if err != nil {
		return err
	}
	defer unlock()
	return WriteFile(path, 0o444, func(f *os.File) error {
		_, err := io.Copy(f, newVerifier(r, d, "what is to be written to "+path))
		return err
	})
}

// ReadIndex reads a layout's index.json. The error is fs.ErrNotExist if there is no layout.
func ReadIndex(dir string) (*ocispec.Index, error) {
	path := filepath.Join(dir, ocispec.ImageIndexFile)
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var index ocispec.Index
	if err := json.Unmarshal(b, &index); err != nil {
		return nil, fmt.Errorf("%s is not an OCI index: %w", path, err)
	}
	if index.SchemaVersion != 2 {
		return nil, fmt.Errorf("%s is an OCI index of schema %d, expected 2", path, index.SchemaVersion)
	}
	return &index, nil
}

// UpdateIndex changes a layout's index.json while nobody else can, and makes the layout if there is none. It removes what writers that
// were killed have left. The order of the index's entries tells nothing of who wrote when.
func UpdateIndex(ctx context.Context, dir string, change func(*ocispec.Index)) error {
	if err := os.MkdirAll(blobsDir(dir), 0o755); err != nil {
		return err
	}
	unlock, err := lock(ctx, dir, unix.LOCK_EX)
	if err != nil {
		return err
	}
	defer unlock()
	if err := sweep(dir); err != nil {
		return err
	}
	index, err := ReadIndex(dir)
	if errors.Is(err, fs.ErrNotExist) {
		index = &ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex}
	} else if err != nil {
		return err
	}
	change(index)
	slices.SortStableFunc(index.Manifests, func(x, y ocispec.Descriptor) int {
		return cmp.Or(
			strings.Compare(place(x), place(y)),
			strings.Compare(x.Digest.String(), y.Digest.String()),
		)
	})
	if err := SyncDir(blobsDir(dir)); err != nil { // nothing is listed that a crash can take away
		return err
	}
	content, err := json.MarshalIndent(index, "", "  ")
	if err != nil {
		return err
	}
	layout, err := json.Marshal(ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion})
	if err != nil {
		return err
	}
	return errors.Join(
		replace(filepath.Join(dir, ocispec.ImageLayoutFile), layout),
		replace(filepath.Join(dir, ocispec.ImageIndexFile), append(content, '\n')),
	)
}

// place sorts a layout's index: what has a name by that, then what has none.
func place(d ocispec.Descriptor) string {
	if name := d.Annotations[ocispec.AnnotationRefName]; name != "" {
		return "0" + name
	}
	return "1"
}

// unfinished begins the names of files that are being written. Who writes one holds the layout's lock, shared or exclusive.
const unfinished = ".unfinished-"

// WriteFile writes a file aside, syncs it, and gives it its name when it is whole.
func WriteFile(path string, mode fs.FileMode, write func(*os.File) error) error {
	f, err := os.CreateTemp(filepath.Dir(path), unfinished)
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	if err := write(f); err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	if err := errors.Join(f.Chmod(mode), f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	return os.Rename(f.Name(), path)
}

// SyncDir makes the names in a folder last.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// sweep removes what writers that were killed have left. The caller has the layout for itself.
func sweep(dir string) error {
	for _, d := range []string{dir, blobsDir(dir)} {
		left, err := filepath.Glob(filepath.Join(escapeGlob(d), unfinished+"*"))
		if err != nil {
			return err
		}
		for _, f := range left {
			if err := os.Remove(f); err != nil {
				return err
			}
		}
	}
	return nil
}

func escapeGlob(s string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(s)
}

// lock takes the lock of a layout, and returns the function that gives it back. It ends with its holder, however that ends.
func lock(ctx context.Context, dir string, how int) (unlock func(), err error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	said := false
	for start, pause := time.Now(), 100*time.Microsecond; ; pause = min(2*pause, 10*time.Millisecond) {
		err := unix.Flock(int(d.Fd()), how|unix.LOCK_NB)
		if err == nil {
			return func() { d.Close() }, nil
		}
		if err != unix.EWOULDBLOCK && err != unix.EINTR {
			d.Close()
			return nil, fmt.Errorf("locking the layout %s: %w", dir, err)
		}
		if !said && time.Since(start) > time.Second {
			progress.Logf(ctx, "waiting for others that write to %s", dir)
			said = true
		}
		select {
		case <-ctx.Done():
			d.Close()
			return nil, ctx.Err()
		case <-time.After(pause):
		}
	}
}

// replace writes a file, unless it has that content.
func replace(path string, content []byte) error {
	if now, err := os.ReadFile(path); err == nil && string(now) == string(content) {
		return nil
	}
	if err := WriteFile(path, 0o644, func(f *os.File) error {
		_, err := f.Write(content)
		return err
	}); err != nil {
		return err
	}
	return SyncDir(filepath.Dir(path))
}
