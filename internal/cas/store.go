// Package cas is the content-addressed store that every step of a build reads from and writes to.
//
// A store is a directory that any number of processes share. It has
//
//	blobs/ab/abcd…   files by SHA-256, read-only
//	actions/ab/…     by action digest: the digest of its result message
//	roots/abcd…      directory trees unpacked for use as a root file system, by tree digest
//	tmp/             what is being written, by whom (swept when the writer is gone)
//	corrupt/         what was found to differ from its name
//
// Nothing has its final name before it is whole: files are written aside, synced and renamed. Nothing is
// believed for its name: bytes are hashed when they are read, and what differs is moved to corrupt/, so that the
// next run makes or fetches it anew.
package cas

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	repb "github.com/bazelbuild/remote-apis/build/bazel/remote/execution/v2"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

// Store is a content-addressed store on disk. Its methods may be called concurrently, and several processes may
// use the same directory.
type Store struct {
	dir string

	mu      sync.Mutex
	scratch string // where this process writes blobs aside; made on first use
	release func() // holds the lock on scratch

	roots sync.Map // Digest -> struct{}: roots that this process has verified
}

// MismatchError says that the bytes offered for a digest are not the ones it names.
type MismatchError struct {
	What        string // what was being read, e.g. a file or package name
	Want, Found Digest
}

func (e *MismatchError) Error() string {
	what := e.What
	if what == "" {
		what = "content"
	}
	if e.Found.Size < e.Want.Size {
		return fmt.Sprintf("%s is not what it must be: expected %s, found %s: %d bytes are missing", what, e.Want, e.Found, e.Want.Size-e.Found.Size)
	}
	return fmt.Sprintf("%s is not what it must be: expected %s, found %s", what, e.Want, e.Found)
}

// CorruptError says that something in the store has changed since it was written.
type CorruptError struct {
	Path        string // the file that differs
	Want, Found string
	MovedTo     string // where the damaged file or tree is kept; empty if it could not be moved
}

func (e *CorruptError) Error() string {
	msg := fmt.Sprintf("%s is damaged: expected %s, found %s", e.Path, e.Want, e.Found)
	if e.MovedTo == "" {
		return msg + "; remove it and run again"
	}
	return msg + "; it is now in " + e.MovedTo + ", and the next run makes it anew"
}

// DefaultDir returns $ENGINERY_STORE, or the folder enginery in the user's cache directory.
func DefaultDir() (string, error) {
	if dir := os.Getenv("ENGINERY_STORE"); dir != "" {
		return filepath.Abs(dir)
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("finding a place for the store: %w; set ENGINERY_STORE", err)
	}
	return filepath.Join(cache, "enginery"), nil
}

// Open opens the store in dir, which is made if it is missing, and removes what processes that are gone have left
// half done.
func Open(dir string) (*Store, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("opening the store: %w", err)
	}
	for _, sub := range []string{"blobs", "actions", "roots", "tmp", "corrupt"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			return nil, fmt.Errorf("opening the store: %w", err)
		}
	}
	s := &Store{dir: dir}
	if err := s.sweep(); err != nil {
		return nil, fmt.Errorf("opening the store: %w", err)
	}
	return s, nil
}

// Dir returns the store's directory, an absolute path.
func (s *Store) Dir() string { return s.dir }

// Path returns where the blob d is or would be. Whoever reads the file itself must check it (Verify).
func (s *Store) Path(d Digest) string {
	return filepath.Join(s.dir, "blobs", d.Hash[:2], d.Hash)
}

// Has reports whether a blob of d's name and size is there. It does not read it.
func (s *Store) Has(d Digest) bool {
	if checkHash(d.Hash) != nil {
		return false
	}
	fi, err := os.Lstat(s.Path(d))
	return err == nil && fi.Mode().IsRegular() && fi.Size() == d.Size
}

// Close removes what this process has written aside. The store may be used again afterwards.
func (s *Store) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.release != nil {
		s.release()
		s.scratch, s.release = "", nil
	}
}

// Put stores what r yields and returns its digest.
func (s *Store) Put(ctx context.Context, r io.Reader) (Digest, error) {
	return s.put(ctx, r, nil)
}

// PutExpected stores what r yields if it is want; otherwise it returns a *MismatchError and stores nothing.
func (s *Store) PutExpected(ctx context.Context, r io.Reader, want Digest) error {
	_, err := s.put(ctx, r, &want)
	return err
}

// PutBytes stores b.
func (s *Store) PutBytes(ctx context.Context, b []byte) (Digest, error) {
	d := OfBytes(b)
	if s.Has(d) && s.Verify(d) == nil {
		return d, nil
	}
	return s.put(ctx, bytes.NewReader(b), &d)
}

func (s *Store) put(ctx context.Context, r io.Reader, want *Digest) (Digest, error) {
	tmp, d, err := s.writeAside(ctx, r)
	if err != nil {
		return Digest{}, err
	}
	if want != nil && d != *want {
		os.Remove(tmp.Name())
		tmp.Close()
		return Digest{}, &MismatchError{Want: *want, Found: d}
	}
	if err := tmp.Sync(); err != nil {
		tmp.Close()
		os.Remove(tmp.Name())
		return Digest{}, fmt.Errorf("storing %s: %w", d, err)
	}
	if err := tmp.Close(); err != nil {
		os.Remove(tmp.Name())
		return Digest{}, fmt.Errorf("storing %s: %w", d, err)
	}
	return d, s.settle(tmp.Name(), d)
}

// writeAside writes what r yields to a new file in this process's scratch directory, and returns it open.
func (s *Store) writeAside(ctx context.Context, r io.Reader) (*os.File, Digest, error) {
	dir, err := s.ownScratch()
	if err != nil {
		return nil, Digest{}, err
	}
	f, err := os.CreateTemp(dir, "blob-")
	if err != nil {
		return nil, Digest{}, fmt.Errorf("storing a blob: %w", err)
	}
	h := sha256.New()
	n, err := io.Copy(io.MultiWriter(f, h), ctxReader{ctx, r})
	if err == nil {
		err = f.Chmod(0o444)
	}
	if err != nil {
		f.Close()
		os.Remove(f.Name())
		return nil, Digest{}, fmt.Errorf("storing a blob: %w", err)
	}
	return f, Digest{Hash: hex.EncodeToString(h.Sum(nil)), Size: n}, nil
}

// settle gives a complete file its final name.
func (s *Store) settle(tmp string, d Digest) error {
	final := s.Path(d)
	if err := os.Mkdir(filepath.Dir(final), 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("storing %s: %w", d, err)
	}
	if err := os.Rename(tmp, final); err != nil {
		return fmt.Errorf("storing %s: %w", d, err)
	}
	return nil
}

// Open opens the blob d. The reader checks the bytes as they pass: where they differ, the read that would return
// io.EOF returns a *CorruptError instead.
func (s *Store) Open(d Digest) (io.ReadCloser, error) {
	if err := checkHash(d.Hash); err != nil {
		return nil, fmt.Errorf("opening blob %q: %w", d, err)
	}
	f, err := os.Open(s.Path(d))
	if err != nil {
		return nil, fmt.Errorf("opening a blob: %w", err)
	}
	return &reader{s: s, f: f, want: d, h: sha256.New()}, nil
}

type reader struct {
	s    *Store
	f    *os.File
	want Digest
	h    hash.Hash
	n    int64
}

func (r *reader) Read(p []byte) (int, error) {
	n, err := r.f.Read(p)
	r.h.Write(p[:n])
	r.n += int64(n)
	if err == io.EOF {
		found := Digest{Hash: hex.EncodeToString(r.h.Sum(nil)), Size: r.n}
		if found != r.want {
			return n, r.s.quarantine(r.f.Name(), r.want.String(), found.String())
		}
	}
	return n, err
}

func (r *reader) Close() error { return r.f.Close() }

// ReadAll returns the blob d, checked.
func (s *Store) ReadAll(d Digest) ([]byte, error) {
	r, err := s.Open(d)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}

// Verify reads the blob d and returns a *CorruptError if it is not what its name says.
func (s *Store) Verify(d Digest) error {
	r, err := s.Open(d)
	if err != nil {
		return err
	}
	defer r.Close()
	_, err = io.Copy(io.Discard, r)
	return err
}

// quarantine moves a damaged file or tree out of the way and returns the error that says so.
func (s *Store) quarantine(path, want, found string) error {
	e := &CorruptError{Path: path, Want: want, Found: found}
	to := filepath.Join(s.dir, "corrupt", filepath.Base(path)+"-"+rand.Text()[:8])
	if os.Rename(path, to) == nil {
		e.MovedTo = to
	}
	return e
}

// PutResult records the result of an action. What the result refers to must be in the store.
func (s *Store) PutResult(ctx context.Context, action Digest, result *repb.ActionResult) error {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(result)
	if err != nil {
		return fmt.Errorf("recording the result of action %s: %w", action, err)
	}
	d, err := s.PutBytes(ctx, b)
	if err != nil {
		return fmt.Errorf("recording the result of action %s: %w", action, err)
	}
	return s.writeName(s.actionPath(action), resultLine(action, d))
}

// Result returns what PutResult recorded for an action, and whether there was anything.
func (s *Store) Result(action Digest) (*repb.ActionResult, bool, error) {
	path := s.actionPath(action)
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, fmt.Errorf("looking up the result of action %s: %w", action, err)
	}
	first, rest, _ := strings.Cut(string(b), " ")
	d, perr := ParseDigest(strings.TrimSuffix(rest, "\n"))
	if perr != nil || first != action.String() || resultLine(action, d) != string(b) || !s.Has(d) {
		return nil, false, s.quarantine(path, "a line with the action's and its result's digest", fmt.Sprintf("%q", b))
	}
	msg, err := s.ReadAll(d)
	if err != nil {
		return nil, false, fmt.Errorf("reading the result of action %s: %w", action, err)
	}
	result := new(repb.ActionResult)
	if err := proto.Unmarshal(msg, result); err != nil {
		return nil, false, fmt.Errorf("reading the result of action %s: %w", action, err)
	}
	return result, true, nil
}

func resultLine(action, result Digest) string { return action.String() + " " + result.String() + "\n" }

func (s *Store) actionPath(d Digest) string {
	return filepath.Join(s.dir, "actions", d.Hash[:2], d.Hash)
}

// writeName writes a small file under its final name, atomically.
func (s *Store) writeName(path, content string) error {
	tmp, _, err := s.writeAside(context.Background(), strings.NewReader(content))
	if err != nil {
		return err
	}
	err = tmp.Sync()
	if cerr := tmp.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.MkdirAll(filepath.Dir(path), 0o755)
	}
	if err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err != nil {
		os.Remove(tmp.Name())
		return fmt.Errorf("writing %s: %w", path, err)
	}
	return nil
}

// Scratch makes a private directory on the store's file system. remove deletes it; if the process dies before, a
// later Open does.
func (s *Store) Scratch(name string) (dir string, remove func(), err error) {
	for {
		base := filepath.Join(s.dir, "tmp", name+"-"+rand.Text()[:12])
		lock, err := os.OpenFile(base+".lock", os.O_CREATE|os.O_EXCL|os.O_RDWR|unix.O_CLOEXEC, 0o600)
		if err != nil {
			return "", nil, fmt.Errorf("making a scratch directory: %w", err)
		}
		if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			lock.Close() // a sweep holds it, and will remove it
			continue
		}
		if fi, err := os.Stat(lock.Name()); err != nil || !sameFile(lock, fi) {
			lock.Close()
			continue
		}
		if err := os.Mkdir(base, 0o700); err != nil {
			os.Remove(lock.Name())
			lock.Close()
			return "", nil, fmt.Errorf("making a scratch directory: %w", err)
		}
		remove := func() {
			discard(base)
			lock.Close()
		}
		return base, remove, nil
	}
}

func sameFile(f *os.File, fi os.FileInfo) bool {
	mine, err := f.Stat()
	return err == nil && os.SameFile(mine, fi)
}

// ownScratch returns this process's directory for files on their way into the store.
func (s *Store) ownScratch() (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.scratch == "" {
		dir, remove, err := s.Scratch("put")
		if err != nil {
			return "", err
		}
		s.scratch, s.release = dir, remove
	}
	return s.scratch, nil
}

// sweep removes the scratch directories whose owners are gone.
func (s *Store) sweep() error {
	locks, err := filepath.Glob(filepath.Join(s.dir, "tmp", "*.lock"))
	if err != nil {
		return err
	}
	for _, path := range locks {
		lock, err := os.OpenFile(path, os.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			continue // gone, or another user's
		}
		if unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			discard(strings.TrimSuffix(path, ".lock"))
		}
		lock.Close()
	}
	return nil
}

// discard removes a scratch directory, and then its lock: what cannot be removed now is left to a later sweep, which goes by the locks.
func discard(dir string) {
	if RemoveAll(dir) == nil {
		os.Remove(dir + ".lock")
	}
}

// RemoveAll is os.RemoveAll for trees with read-only directories.
func RemoveAll(dir string) error {
	if os.RemoveAll(dir) == nil {
		return nil
	}
	filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err == nil && e.IsDir() {
			os.Chmod(path, 0o700)
		}
		return nil
	})
	return os.RemoveAll(dir)
}

type ctxReader struct {
	ctx context.Context
	r   io.Reader
}

func (r ctxReader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.r.Read(p)
}
