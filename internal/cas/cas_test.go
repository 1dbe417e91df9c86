package cas

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/fstest"

	repb "github.com/bazelbuild/remote-apis/build/bazel/remote/execution/v2"
)

func newStore(t testing.TB) *Store {
	t.Helper()
	s, err := Open(filepath.Join(t.TempDir(), "store"))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestDigestText(t *testing.T) {
	d := OfBytes([]byte("abc"))
	const want = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad/3"
	if d.String() != want {
		t.Errorf("OfBytes(abc) = %s, want %s", d, want)
	}
	if back, err := ParseDigest(want); err != nil || back != d {
		t.Errorf("ParseDigest(%s) = %v, %v", want, back, err)
	}
	for _, bad := range []string{"abc", want + "x", strings.ToUpper(want), want[:64], want[1:], want[:65] + "03", want[:65] + "-3", "../../etc/passwd/3"} {
		if _, err := ParseDigest(bad); err == nil {
			t.Errorf("ParseDigest(%q) gave no error", bad)
		}
	}
}

func TestBlobs(t *testing.T) {
	ctx := context.Background()
	s := newStore(t)
	d, err := s.Put(ctx, strings.NewReader("hello"))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := s.ReadAll(d); err != nil || string(got) != "hello" {
		t.Errorf("ReadAll = %q, %v", got, err)
	}
	var mismatch *MismatchError
	other := OfBytes([]byte("hello, world"))
	if err := s.PutExpected(ctx, strings.NewReader("hello, w"), other); !errors.As(err, &mismatch) {
		t.Errorf("PutExpected of a truncated blob: %v, want a MismatchError", err)
	} else if !strings.Contains(err.Error(), "4 bytes are missing") {
		t.Errorf("error does not say that bytes are missing: %v", err)
	}
	if s.Has(other) {
		t.Error("a blob that failed its check is in the store")
	}
}

func TestFlippedByteIsFoundAndMovedAway(t *testing.T) {
	ctx := context.Background()
	s := newStore(t)
	d, err := s.PutBytes(ctx, []byte("hello"))
	if err != nil {
		t.Fatal(err)
	}
	flip(t, s.Path(d))
	var corrupt *CorruptError
	if _, err := s.ReadAll(d); !errors.As(err, &corrupt) {
		t.Fatalf("ReadAll of a damaged blob: %v, want a CorruptError", err)
	}
	if corrupt.Path != s.Path(d) || corrupt.MovedTo == "" {
		t.Errorf("CorruptError = %+v", corrupt)
	}
	if s.Has(d) {
		t.Error("the damaged blob is still there")
	}
	if _, err := s.PutBytes(ctx, []byte("hello")); err != nil || s.Verify(d) != nil {
		t.Errorf("storing the blob again: %v, %v", err, s.Verify(d))
	}
}

func flip(t *testing.T, path string) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 1
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b, 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestTreeDigestIsREAPI(t *testing.T) {
	fsys := fstest.MapFS{
		"b/run.sh": {Data: []byte("#!/bin/sh\n"), Mode: 0o755},
		"a.txt":    {Data: []byte("a"), Mode: 0o600},
	}
	s := newStore(t)
	got, err := s.PutFS(context.Background(), fsys)
	if err != nil {
		t.Fatal(err)
	}
	sub := &repb.Directory{Files: []*repb.FileNode{{Name: "run.sh", Digest: OfBytes([]byte("#!/bin/sh\n")).Proto(), IsExecutable: true}}}
	_, subDigest, err := EncodeDirectory(sub)
	if err != nil {
		t.Fatal(err)
	}
	root := &repb.Directory{
		Files:       []*repb.FileNode{{Name: "a.txt", Digest: OfBytes([]byte("a")).Proto()}},
		Directories: []*repb.DirectoryNode{{Name: "b", Digest: subDigest.Proto()}},
	}
	_, want, err := EncodeDirectory(root)
	if err != nil {
		t.Fatal(err)
	}
	if got != want {
		t.Errorf("PutFS = %s, want %s", got, want)
	}
	if !s.HasTree(got) {
		t.Error("HasTree of a stored tree is false")
	}
}

func TestCheckoutIsIndependentOfUmask(t *testing.T) {
	ctx := context.Background()
	s := newStore(t)
	src := t.TempDir()
	os.MkdirAll(filepath.Join(src, "d/e"), 0o700)
	os.WriteFile(filepath.Join(src, "d/e/f"), []byte("f"), 0o640)
	os.WriteFile(filepath.Join(src, "d/x"), []byte("x"), 0o700)
	os.Symlink("../nowhere", filepath.Join(src, "d/l"))
	root, err := s.PutTree(ctx, src)
	if err != nil {
		t.Fatal(err)
	}
	old := syscall.Umask(0o077)
	defer syscall.Umask(old)
	dest := filepath.Join(t.TempDir(), "out")
	if err := s.Checkout(ctx, root, dest); err != nil {
		t.Fatal(err)
	}
	if again, err := HashTree(dest); err != nil || again != root {
		t.Errorf("HashTree of the checkout = %v, %v, want %v", again, err, root)
	}
	for name, mode := range map[string]os.FileMode{"d": 0o755, "d/e/f": 0o644, "d/x": 0o755} {
		fi, err := os.Stat(filepath.Join(dest, name))
		if err != nil || fi.Mode().Perm() != mode || !fi.ModTime().Equal(Epoch) {
			t.Errorf("%s: %v %v %v, want mode %v, time %v", name, err, fi.Mode(), fi.ModTime(), mode, Epoch)
		}
	}
	var names []string
	if err := s.Walk(root, func(name string, n Node) error { names = append(names, name); return nil }); err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(names); got != "[d/e/f d/l d/x]" {
		t.Errorf("Walk visited %s", got)
	}
	if b, err := s.ReadFile(root, "d/e/f"); err != nil || string(b) != "f" {
		t.Errorf("ReadFile gave %q, %v", b, err)
	}
	for _, name := range []string{"d/e", "d/l", "f"} {
		if b, err := s.ReadFile(root, name); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("ReadFile of %s, which is no file there, gave %q, %v", name, b, err)
		}
	}
}

// What a tree says stays below where it is written.
func TestCheckoutStaysInside(t *testing.T) {
	ctx := context.Background()
	s := newStore(t)
	file := &repb.FileNode{Name: "file"}
	put := func(d *repb.Directory) Digest {
		b, _, err := EncodeDirectory(d)
		if err != nil {
			t.Fatal(err)
		}
		digest, err := s.PutBytes(ctx, b)
		if err != nil {
			t.Fatal(err)
		}
		return digest
	}
	content, err := s.PutBytes(ctx, []byte("content"))
	if err != nil {
		t.Fatal(err)
	}
	file.Digest = content.Proto()
	sub := put(&repb.Directory{Files: []*repb.FileNode{file}}).Proto()
	outside := t.TempDir()
	for what, d := range map[string]*repb.Directory{
		"a name that goes up":                   {Directories: []*repb.DirectoryNode{{Name: "..", Digest: sub}}},
		"a directory of a symbolic link's name": {Directories: []*repb.DirectoryNode{{Name: "x", Digest: sub}}, Symlinks: []*repb.SymlinkNode{{Name: "x", Target: outside}}},
	} {
		if err := s.Checkout(ctx, put(d), filepath.Join(t.TempDir(), "tree")); err == nil {
			t.Errorf("%s: no error", what)
		}
	}
	if entries, err := os.ReadDir(outside); err != nil || len(entries) > 0 {
		t.Errorf("outside are %v, %v", entries, err)
	}
}

func TestResults(t *testing.T) {
	ctx := context.Background()
	s := newStore(t)
	action := OfBytes([]byte("action"))
	if _, ok, err := s.Result(action); ok || err != nil {
		t.Errorf("Result of an unknown action: %v, %v", ok, err)
	}
	if err := s.PutResult(ctx, action, &repb.ActionResult{ExitCode: 7}); err != nil {
		t.Fatal(err)
	}
	if r, ok, err := s.Result(action); !ok || err != nil || r.ExitCode != 7 {
		t.Errorf("Result = %v, %v, %v", r, ok, err)
	}
	flip(t, s.actionPath(action))
	var corrupt *CorruptError
	if _, _, err := s.Result(action); !errors.As(err, &corrupt) {
		t.Errorf("Result of a damaged entry: %v, want a CorruptError", err)
	}
}

func TestRootNamesTheDamagedFile(t *testing.T) {
	ctx := context.Background()
	s := newStore(t)
	fill := func(dir string) error {
		if err := os.MkdirAll(filepath.Join(dir, "usr/bin"), 0o755); err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(dir, "usr/bin/cc"), []byte("compiler"), 0o755)
	}
	src := t.TempDir()
	if err := fill(src); err != nil {
		t.Fatal(err)
	}
	want, err := HashTree(src)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			if _, err := s.PutRoot(ctx, want, fill); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	var mismatch *MismatchError
	if _, err := s.PutRoot(ctx, OfBytes([]byte("other")), fill); !errors.As(err, &mismatch) {
		t.Errorf("PutRoot of another tree: %v, want a MismatchError", err)
	}
	flip(t, filepath.Join(s.Root(want), "usr/bin/cc"))
	fresh, err := Open(s.Dir())
	if err != nil {
		t.Fatal(err)
	}
	var corrupt *CorruptError
	if err := fresh.VerifyRoot(want); !errors.As(err, &corrupt) {
		t.Fatalf("VerifyRoot of a damaged root: %v, want a CorruptError", err)
	}
	if !strings.HasSuffix(corrupt.Path, "usr/bin/cc") {
		t.Errorf("the error names %s, want …/usr/bin/cc", corrupt.Path)
	}
	if _, err := fresh.PutRoot(ctx, want, fill); err != nil {
		t.Errorf("making the root anew: %v", err)
	}
}

func TestSweepSparesTheLiving(t *testing.T) {
	s := newStore(t)
	dir, remove, err := s.Scratch("work")
	if err != nil {
		t.Fatal(err)
	}
	defer remove()
	dead := filepath.Join(s.Dir(), "tmp", "dead-1")
	os.MkdirAll(filepath.Join(dead, "sub"), 0o755)
	os.WriteFile(dead+".lock", nil, 0o600)
	if _, err := Open(s.Dir()); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir); err != nil {
		t.Errorf("the scratch directory of a living process is gone: %v", err)
	}
	if _, err := os.Stat(dead); !os.IsNotExist(err) {
		t.Errorf("the scratch directory of a dead process is still there: %v", err)
	}
}

// A directory that cannot be removed keeps its lock, so that a later sweep finds it.
func TestSweepTriesAgain(t *testing.T) {
	const inside = "TEST_SWEEP_IN"
	if dir := os.Getenv(inside); dir != "" {
		if _, err := Open(dir); err != nil {
			t.Fatal(err)
		}
		return
	}
	s := newStore(t)
	dead := filepath.Join(s.Dir(), "tmp", "dead-1")
	mountpoint := filepath.Join(dead, "sub")
	if err := os.MkdirAll(mountpoint, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dead+".lock", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	// What something is mounted on cannot be removed, there.
	cmd := exec.Command("unshare", "--map-root-user", "--mount", "sh", "-c", `mount -t tmpfs none "$0" && exec "$1" -test.run="^$2\$"`, mountpoint, os.Args[0], t.Name())
	cmd.Env = append(os.Environ(), inside+"="+s.Dir())
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, path := range []string{dead, dead + ".lock"} {
		if _, err := os.Lstat(path); err != nil {
			t.Errorf("after a sweep that could not remove the directory: %v", err)
		}
	}
	if _, err := Open(s.Dir()); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{dead, dead + ".lock"} {
		if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is left by the sweep that could remove it (%v)", path, err)
		}
	}
}

func TestLockExcludes(t *testing.T) {
	s := newStore(t)
	d := OfBytes([]byte("action"))
	unlock, err := s.Lock(t.Context(), d, nil)
	if err != nil {
		t.Fatal(err)
	}
	waited := make(chan bool, 1)
	got := make(chan error, 1)
	go func() {
		again, err := s.Lock(t.Context(), d, func() { waited <- true })
		if err == nil {
			again()
		}
		got <- err
	}()
	<-waited
	select {
	case err := <-got:
		t.Fatalf("the second Lock returned %v while the first was held", err)
	default:
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Lock(ctx, d, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("Lock with an ended context: %v", err)
	}
	unlock()
	if err := <-got; err != nil {
		t.Errorf("the second Lock: %v", err)
	}
}

func BenchmarkVerify(b *testing.B) {
	s := newStore(b)
	data := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	d, err := s.PutBytes(context.Background(), data)
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(d.Size)
	for b.Loop() {
		if err := s.Verify(d); err != nil {
			b.Fatal(err)
		}
	}
}
