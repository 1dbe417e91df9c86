package toolchain

import (
	"archive/tar"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/enginery/enginery/internal/cas"
	"github.com/enginery/enginery/internal/progress"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// unpackPackages writes what spec wants of packages, whose files are in the store, to dir.
func unpackPackages(ctx context.Context, store *cas.Store, spec *Spec, packages []Package, dir string, jobs int) error {
	var total int64
	for _, p := range packages {
		total += p.Size
	}
	task := progress.Start(ctx, "unpack toolchain "+spec.Name, total)
	t := newTree(dir)
	largestFirst := slices.SortedFunc(slices.Values(packages), func(a, b Package) int { return -cmp.Compare(a.Size, b.Size) })
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(jobs)
	for _, p := range largestFirst {
		g.Go(func() error {
			if err := unpackPackage(gctx, store.Path(p.Digest()), p, t, spec.place); err != nil {
				return fmt.Errorf("unpacking package %s: %w", p, err)
			}
			task.Add(p.Size)
			return nil
		})
	}
	err := g.Wait()
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	if err == nil {
		err = t.furnish(spec)
	}
	if err == nil {
		err = t.finish()
	}
	task.Done(err)
	return err
}

func unpackPackage(ctx context.Context, file string, p Package, t *tree, place func(*tar.Header) (string, error)) error {
	cmd := exec.CommandContext(ctx, "dpkg-deb", "--fsys-tarfile", file)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	err = t.add(ctx, p.String(), out, place)
	if err == nil {
		_, err = io.Copy(io.Discard, out) // padding after the last entry
	} else {
		cmd.Process.Kill()
	}
	if werr := cmd.Wait(); werr != nil && (err == nil || errors.Is(err, io.ErrUnexpectedEOF)) {
		err = fmt.Errorf("dpkg-deb: %w: %s", werr, bytes.TrimSpace(stderr.Bytes()))
	}
	return err
}

// errDropped is what a place function returns for an entry that is not wanted.
var errDropped = errors.New("dropped")

// place returns where an entry of a package goes. Directories come with what is in them.
func (s *Spec) place(h *tar.Header) (string, error) {
	name, err := cleanName(h.Name)
	if err != nil {
		return "", err
	}
	if h.Typeflag == tar.TypeDir || s.drops(name) {
		return "", errDropped
	}
	if first, rest, ok := strings.Cut(name, "/"); ok {
		if target, ok := s.Links[first]; ok {
			name = path.Join(target, rest)
		}
	}
	return name, nil
}

// drops reports whether what a package has at name is not unpacked.
func (s *Spec) drops(name string) bool {
	matches := func(patterns []string, name string) bool {
		return slices.ContainsFunc(patterns, func(p string) bool {
			ok, _ := path.Match(p, name) // ParseSpec has checked the patterns
			return ok
		})
	}
	if matches(s.Keep, name) {
		return false
	}
	for ; name != "."; name = path.Dir(name) {
		if matches(s.Drop, name) {
			return true
		}
	}
	return false
}

// cleanName checks the name of a tar entry and returns it as a slash-separated relative path.
func cleanName(name string) (string, error) {
	clean := strings.TrimSuffix(strings.TrimPrefix(name, "./"), "/")
	if clean == "" {
		clean = "."
	}
	if !fs.ValidPath(clean) {
		return "", fmt.Errorf("entry %q leads out of the root directory or is not a clean path", name)
	}
	return clean, nil
}

// tree is a directory tree that several archives are unpacked into at once. What comes out does not depend on their
// order, as no path may be two things.
type tree struct {
	dir string

	mu      sync.Mutex
	entries map[string]*entry
}

// entry is what a path is.
type entry struct {
	kind byte // of tar.TypeReg, TypeSymlink, TypeDir
	exec bool
	link string // target of a symbolic link
	from string // who brought it
	done chan struct{}
	err  error // once done
}

func newTree(dir string) *tree {
	return &tree{dir: dir, entries: map[string]*entry{".": {kind: tar.TypeDir}}}
}

func (t *tree) path(name string) string { return filepath.Join(t.dir, filepath.FromSlash(name)) }

// add unpacks a tar archive. place says where an entry goes, or errDropped.
func (t *tree) add(ctx context.Context, from string, archive io.Reader, place func(*tar.Header) (string, error)) error {
	for r := tar.NewReader(archive); ; {
		h, err := r.Next()
		if err == io.EOF {
			return nil
		} else if err != nil {
			return fmt.Errorf("reading its archive: %w", err)
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		name, err := place(h)
		if err == errDropped {
			continue
		}
		if err == nil {
			err = t.addEntry(from, name, h, r, place)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", h.Name, err)
		}
	}
}

func (t *tree) addEntry(from, name string, h *tar.Header, content io.Reader, place func(*tar.Header) (string, error)) error {
	e := &entry{kind: h.Typeflag, from: from, done: make(chan struct{})}
	switch h.Typeflag {
	case tar.TypeDir:
		t.mu.Lock()
		defer t.mu.Unlock()
		return t.makeDir(name, from)
	case tar.TypeReg:
		e.exec = h.Mode&0o111 != 0
	case tar.TypeSymlink:
		e.link = h.Linkname
	case tar.TypeLink:
		return t.addHardLink(e, name, h, place)
	default:
		return fmt.Errorf("it is neither a file, a directory nor a link (tar type %q)", h.Typeflag)
	}
	return t.claim(name, e, func(file string) error {
		if e.kind == tar.TypeSymlink {
			if err := os.Symlink(e.link, file); err != nil {
				return err
			}
			return setTime(file)
		}
		return writeFile(file, content, e.exec)
	}, content)
}

// addHardLink makes a file of its own with the content of the one linked to, which came before in the same archive.
func (t *tree) addHardLink(e *entry, name string, h *tar.Header, place func(*tar.Header) (string, error)) error {
	to, err := place(&tar.Header{Name: h.Linkname, Typeflag: tar.TypeReg})
	if err != nil {
		return fmt.Errorf("the file %s that it is a hard link to is %w", h.Linkname, err)
	}
	t.mu.Lock()
	first := t.entries[to]
	t.mu.Unlock()
	if first == nil || first.kind != tar.TypeReg {
		return fmt.Errorf("the file %s that it is a hard link to is not among the entries before it", h.Linkname)
	}
	if <-first.done; first.err != nil {
		return first.err
	}
	f, err := os.Open(t.path(to))
	if err != nil {
		return err
	}
	defer f.Close()
	e.kind, e.exec = tar.TypeReg, first.exec
	return t.claim(name, e, func(file string) error { return writeFile(file, f, e.exec) }, f)
}

// claim makes name the entry e with write, unless it is there already with the same properties and content.
func (t *tree) claim(name string, e *entry, write func(file string) error, content io.Reader) error {
	t.mu.Lock()
	old := t.entries[name]
	if old == nil {
		if err := t.makeDir(path.Dir(name), e.from); err != nil {
			t.mu.Unlock()
			return err
		}
		t.entries[name] = e
		t.mu.Unlock()
		e.err = write(t.path(name))
		close(e.done)
		return e.err
	}
	t.mu.Unlock()
	if old.kind != e.kind || old.exec != e.exec || old.link != e.link {
		return fmt.Errorf("it differs from what %s has there", old.from)
	}
	if e.kind != tar.TypeReg {
		return nil
	}
	if <-old.done; old.err != nil {
		return old.err
	}
	return sameContent(t.path(name), content, old.from)
}

// makeDir makes the directory name and those above it. t.mu is held.
func (t *tree) makeDir(name, from string) error {
	if old := t.entries[name]; old != nil {
		if old.kind != tar.TypeDir {
			return fmt.Errorf("%s is a directory here, and not in %s", name, old.from)
		}
		return nil
	}
	if err := t.makeDir(path.Dir(name), from); err != nil {
		return err
	}
	if err := os.Mkdir(t.path(name), 0o755); err != nil {
		return err
	}
	t.entries[name] = &entry{kind: tar.TypeDir, from: from}
	return os.Chmod(t.path(name), 0o755) // whatever the umask
}

// furnish adds what the spec wants besides packages.
func (t *tree) furnish(spec *Spec) error {
	from := spec.Name + ".toml"
	for name, target := range spec.Links {
		if e := t.entries[target]; e == nil || e.kind != tar.TypeDir {
			return fmt.Errorf("link %s in %s: there is no directory %s", name, from, target)
		}
		h := &tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target}
		if err := t.addEntry(from, name, h, nil, nil); err != nil {
			return fmt.Errorf("link %s in %s: %w", name, from, err)
		}
	}
	for _, name := range spec.Directories {
		if err := t.makeDir(name, from); err != nil {
			return fmt.Errorf("directory %s in %s: %w", name, from, err)
		}
	}
	return nil
}

// finish gives directories their time, once nothing is added any more.
func (t *tree) finish() error {
	for name, e := range t.entries {
		if e.kind == tar.TypeDir {
			if err := setTime(t.path(name)); err != nil {
				return err
			}
		}
	}
	return nil
}

var buffers = sync.Pool{New: func() any { b := make([]byte, 256<<10); return &b }}

func writeFile(file string, content io.Reader, exec bool) (err error) {
	mode := fs.FileMode(0o644)
	if exec {
		mode = 0o755
	}
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	_, err = io.CopyBuffer(struct{ io.Writer }{f}, struct{ io.Reader }{content}, *buf)
	if err == nil {
		err = f.Chmod(mode)
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	return setTime(file)
}

// setTime sets the modification time that all files have.
func setTime(file string) error {
	ts := unix.NsecToTimespec(cas.Epoch.UnixNano())
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, file, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return &fs.PathError{Op: "utimensat", Path: file, Err: err}
	}
	return nil
}

func sameContent(file string, content io.Reader, from string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	a, err := io.ReadAll(f)
	if err != nil {
		return err
	}
	b, err := io.ReadAll(content)
	if err != nil {
		return err
	}
	if !bytes.Equal(a, b) {
		return fmt.Errorf("its content differs from what %s has there", from)
	}
	return nil
}
