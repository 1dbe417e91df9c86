package cas

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"sort"
	"sync"
	"syscall"
	"time"

	repb "github.com/bazelbuild/remote-apis/build/bazel/remote/execution/v2"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

// A tree is named by the digest of its root Directory message, as the Remote Execution API defines it: a Merkle
// tree over names, executable bits, contents and symbolic link targets. Owners, times and other mode bits do not
// count, so that one tree has one digest whichever way it came.

// Epoch is the modification time of every file that Checkout writes.
var Epoch = time.Unix(1, 0)

// Node is an entry of a tree: a file, or a symbolic link if Target is not empty.
type Node struct {
	Digest     Digest
	Executable bool
	Target     string
}

// PutTree stores the tree below dir and returns its digest.
func (s *Store) PutTree(ctx context.Context, dir string) (Digest, error) {
	return s.PutFS(ctx, os.DirFS(dir))
}

// PutFS stores the tree in fsys and returns its digest. Symbolic links are kept where fsys is an fs.ReadLinkFS.
func (s *Store) PutFS(ctx context.Context, fsys fs.FS) (Digest, error) {
	type aside struct {
		tmp string
		d   Digest
	}
	var mu sync.Mutex
	var written []aside
	root, err := scan(ctx, fsys, func(r io.Reader) (Digest, error) {
		f, d, err := s.writeAside(ctx, r)
		if err != nil {
			return Digest{}, err
		}
		mu.Lock()
		written = append(written, aside{f.Name(), d})
		mu.Unlock()
		return d, f.Close()
	})
	defer func() {
		for _, w := range written {
			os.Remove(w.tmp)
		}
	}()
	if err != nil {
		return Digest{}, fmt.Errorf("storing a tree: %w", err)
	}
	if err := s.syncFS(); err != nil { // one sync for all files, before any has its final name
		return Digest{}, err
	}
	for _, w := range written {
		if err := s.settle(w.tmp, w.d); err != nil {
			return Digest{}, err
		}
	}
	written = nil
	return root.put(ctx, s)
}

func (s *Store) syncFS() error {
	dir, err := os.Open(s.dir)
	if err != nil {
		return fmt.Errorf("syncing the store: %w", err)
	}
	defer dir.Close()
	if err := unix.Syncfs(int(dir.Fd())); err != nil {
		return fmt.Errorf("syncing the store: %w", err)
	}
	return nil
}

// HashTree returns the digest of the tree below dir.
func HashTree(dir string) (Digest, error) {
	root, err := scanDir(dir)
	if err != nil {
		return Digest{}, err
	}
	return root.digest, nil
}

func scanDir(dir string) (*dirNode, error) {
	root, err := scan(context.Background(), os.DirFS(dir), hashReader)
	if err != nil {
		return nil, fmt.Errorf("hashing the tree %s: %w", dir, err)
	}
	return root, nil
}

var buffers = sync.Pool{New: func() any { b := make([]byte, 128<<10); return &b }}

func hashReader(r io.Reader) (Digest, error) {
	h := sha256.New()
	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	n, err := io.CopyBuffer(h, struct{ io.Reader }{r}, *buf)
	if err != nil {
		return Digest{}, err
	}
	return Digest{Hash: hex.EncodeToString(h.Sum(nil)), Size: n}, nil
}

// dirNode is a directory being hashed.
type dirNode struct {
	msg    *repb.Directory
	subs   []*dirNode // in the order of msg.Directories
	bytes  []byte
	digest Digest
}

// scan reads the tree in fsys, passing the content of every file to content, several at a time.
func scan(ctx context.Context, fsys fs.FS, content func(io.Reader) (Digest, error)) (*dirNode, error) {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(runtime.GOMAXPROCS(0) + 1)
	var walk func(dir string) (*dirNode, error)
	walk = func(dir string) (*dirNode, error) {
		entries, err := fs.ReadDir(fsys, dir)
		if err != nil {
			return nil, err
		}
		n := &dirNode{msg: &repb.Directory{}}
		for _, e := range entries {
			name := path.Join(dir, e.Name())
			switch e.Type() {
			case 0:
				f := &repb.FileNode{Name: e.Name()}
				n.msg.Files = append(n.msg.Files, f)
				g.Go(func() error {
					if err := ctx.Err(); err != nil {
						return err
					}
					return scanFile(fsys, name, f, content)
				})
			case fs.ModeDir:
				sub, err := walk(name)
				if err != nil {
					return nil, err
				}
				n.msg.Directories = append(n.msg.Directories, &repb.DirectoryNode{Name: e.Name()})
				n.subs = append(n.subs, sub)
			case fs.ModeSymlink:
				target, err := fs.ReadLink(fsys, name)
				if err != nil {
					return nil, err
				}
				n.msg.Symlinks = append(n.msg.Symlinks, &repb.SymlinkNode{Name: e.Name(), Target: target})
			default:
				return nil, fmt.Errorf("%s is neither a file, a directory nor a symbolic link", name)
			}
		}
		return n, nil
	}
	root, err := walk(".")
	if werr := g.Wait(); err == nil {
		err = werr
	}
	if err != nil {
		return nil, err
	}
	return root, root.finish()
}

func scanFile(fsys fs.FS, name string, node *repb.FileNode, content func(io.Reader) (Digest, error)) error {
	f, err := fsys.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	d, err := content(f)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	node.Digest = d.Proto()
	node.IsExecutable = fi.Mode()&0o100 != 0
	return nil
}

// finish computes the digests of n and all below it, once its files' digests are known.
func (n *dirNode) finish() error {
	for i, sub := range n.subs {
		if err := sub.finish(); err != nil {
			return err
		}
		n.msg.Directories[i].Digest = sub.digest.Proto()
	}
	var err error
	n.bytes, n.digest, err = EncodeDirectory(n.msg)
	return err
}

// put stores the Directory messages of n and all below it.
func (n *dirNode) put(ctx context.Context, s *Store) (Digest, error) {
	for _, sub := range n.subs {
		if _, err := sub.put(ctx, s); err != nil {
			return Digest{}, err
		}
	}
	if s.Has(n.digest) && s.Verify(n.digest) == nil {
		return n.digest, nil
	}
	return s.put(ctx, bytes.NewReader(n.bytes), &n.digest)
}

// EncodeDirectory sorts the entries of dir, as the Remote Execution API demands, and returns its canonical bytes
// and their digest.
func EncodeDirectory(dir *repb.Directory) ([]byte, Digest, error) {
	sort.Slice(dir.Files, func(i, j int) bool { return dir.Files[i].Name < dir.Files[j].Name })
	sort.Slice(dir.Directories, func(i, j int) bool { return dir.Directories[i].Name < dir.Directories[j].Name })
	sort.Slice(dir.Symlinks, func(i, j int) bool { return dir.Symlinks[i].Name < dir.Symlinks[j].Name })
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(dir)
	if err != nil {
		return nil, Digest{}, fmt.Errorf("encoding a directory: %w", err)
	}
	return b, OfBytes(b), nil
}

// directory returns the Directory message d.
func (s *Store) directory(d Digest) (*repb.Directory, error) {
	b, err := s.ReadAll(d)
	if err != nil {
		return nil, err
	}
	msg := new(repb.Directory)
	if err := proto.Unmarshal(b, msg); err != nil {
		return nil, fmt.Errorf("blob %s is not a directory: %w", d, err)
	}
	seen := make(map[string]bool)
	for _, name := range slices.Concat(names(msg.Files), names(msg.Directories), names(msg.Symlinks)) {
		if name == "" || name == "." || name == ".." || path.Base(name) != name {
			return nil, fmt.Errorf("directory %s has an entry named %q", d, name)
		}
		if seen[name] { // a directory could go through a symbolic link
			return nil, fmt.Errorf("directory %s has two entries named %q", d, name)
		}
		seen[name] = true
	}
	return msg, nil
}

func names[T interface{ GetName() string }](nodes []T) []string {
	all := make([]string, len(nodes))
	for i, n := range nodes {
		all[i] = n.GetName()
	}
	return all
}

// HasTree reports whether the tree root is in the store with all its directories and files. It reads the
// directories, not the files.
func (s *Store) HasTree(root Digest) bool {
	if !s.Has(root) {
		return false
	}
	msg, err := s.directory(root)
	if err != nil {
		return false
	}
	for _, f := range msg.Files {
		if !s.Has(FromProto(f.Digest)) {
			return false
		}
	}
	for _, sub := range msg.Directories {
		if !s.HasTree(FromProto(sub.Digest)) {
			return false
		}
	}
	return true
}

// Walk calls fn for every file and symbolic link of the tree root, with slash-separated paths, in the order of a
// depth-first walk by name.
func (s *Store) Walk(root Digest, fn func(name string, n Node) error) error {
	return s.walk(root, "", fn)
}

func (s *Store) walk(d Digest, dir string, fn func(string, Node) error) error {
	msg, err := s.directory(d)
	if err != nil {
		return fmt.Errorf("reading directory %s: %w", path.Join("/", dir), err)
	}
	type entry struct {
		name string
		node Node
		sub  *Digest
	}
	var entries []entry
	for _, f := range msg.Files {
		entries = append(entries, entry{f.Name, Node{Digest: FromProto(f.Digest), Executable: f.IsExecutable}, nil})
	}
	for _, l := range msg.Symlinks {
		entries = append(entries, entry{l.Name, Node{Target: l.Target}, nil})
	}
	for _, sub := range msg.Directories {
		sd := FromProto(sub.Digest)
		entries = append(entries, entry{sub.Name, Node{}, &sd})
	}
	sort.Slice(entries, func(i, j int) bool { return entries[i].name < entries[j].name })
	for _, e := range entries {
		name := path.Join(dir, e.name)
		if e.sub != nil {
			err = s.walk(*e.sub, name, fn)
		} else {
			err = fn(name, e.node)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// ReadFile returns the content of a file of a tree, checked. The error is fs.ErrNotExist if the tree has no such file.
func (s *Store) ReadFile(root Digest, name string) ([]byte, error) {
	var found *Digest
	err := s.Walk(root, func(path string, n Node) error {
		if path == name && n.Target == "" {
			found = &n.Digest
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if found == nil {
		return nil, &fs.PathError{Op: "reading from tree " + root.String(), Path: name, Err: fs.ErrNotExist}
	}
	return s.ReadAll(*found)
}

// Checkout writes the tree root to dest, which must be absent or empty: files 0644 or 0755, directories 0755, all with
// the modification time Epoch. Every byte is checked on the way.
func (s *Store) Checkout(ctx context.Context, root Digest, dest string) error {
	if err := s.checkout(ctx, root, dest); err != nil {
		return fmt.Errorf("checking out tree %s: %w", root, err)
	}
	return nil
}

func (s *Store) checkout(ctx context.Context, d Digest, dest string) error {
	msg, err := s.directory(d)
	if err != nil {
		return err
	}
	if err := os.Mkdir(dest, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	for _, f := range msg.Files {
		if err := ctx.Err(); err != nil {
			return err
		}
		mode := fs.FileMode(0o644)
		if f.IsExecutable {
			mode = 0o755
		}
		if err := s.ExportFile(FromProto(f.Digest), filepath.Join(dest, f.Name), mode); err != nil {
			return err
		}
	}
	for _, l := range msg.Symlinks {
		if err := os.Symlink(l.Target, filepath.Join(dest, l.Name)); err != nil {
			return err
		}
	}
	for _, sub := range msg.Directories {
		if err := s.checkout(ctx, FromProto(sub.Digest), filepath.Join(dest, sub.Name)); err != nil {
			return err
		}
	}
	if err := os.Chmod(dest, 0o755); err != nil {
		return err
	}
	return os.Chtimes(dest, Epoch, Epoch)
}

// ExportFile writes the blob d to a new file with the given mode and the modification time Epoch.
func (s *Store) ExportFile(d Digest, dest string, mode fs.FileMode) error {
	in, err := s.Open(d)
	if err != nil {
		return err
	}
	defer in.Close()
	if mode&0o111 != 0 {
		// A process that another goroutine forks now would hold the file open for writing until it calls exec, and the file could not
		// be executed in the meantime (ETXTBSY).
		syscall.ForkLock.RLock()
		defer syscall.ForkLock.RUnlock()
	}
	out, err := os.OpenFile(dest, os.O_CREATE|os.O_EXCL|os.O_WRONLY, mode)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	if err == nil {
		err = out.Chmod(mode)
	}
	if cerr := out.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		os.Remove(dest)
		return err
	}
	return os.Chtimes(dest, Epoch, Epoch)
}

// Root returns where the unpacked tree d is or would be.
func (s *Store) Root(d Digest) string { return filepath.Join(s.dir, "roots", d.Hash) }

// PutRoot makes the tree want usable as a root file system and returns its path. fill writes the tree to an empty
// directory; it is not called when the root is there already. A tree that is not want gives a *MismatchError.
func (s *Store) PutRoot(ctx context.Context, want Digest, fill func(dir string) error) (string, error) {
	final := s.Root(want)
	if _, err := os.Lstat(final); err == nil {
		return final, s.VerifyRoot(want)
	}
	scratch, remove, err := s.Scratch("root")
	if err != nil {
		return "", err
	}
	defer remove()
	dir := filepath.Join(scratch, "root")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return "", fmt.Errorf("making a root file system: %w", err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		return "", fmt.Errorf("making a root file system: %w", err)
	}
	if err := fill(dir); err != nil {
		return "", err
	}
	tree, err := scanDir(dir)
	if err != nil {
		return "", err
	}
	if tree.digest != want {
		return "", &MismatchError{What: "root file system", Want: want, Found: tree.digest}
	}
	if _, err := tree.put(ctx, s); err != nil { // lets VerifyRoot name the file that differs
		return "", err
	}
	if err := ctx.Err(); err != nil {
		return "", err
	}
	if err := s.syncFS(); err != nil {
		return "", err
	}
	if err := os.Rename(dir, final); err != nil {
		if errors.Is(err, fs.ErrExist) || errors.Is(err, unix.ENOTEMPTY) { // another process was first
			return final, s.VerifyRoot(want)
		}
		return "", fmt.Errorf("making a root file system: %w", err)
	}
	s.roots.Store(want, struct{}{})
	return final, nil
}

// VerifyRoot hashes the unpacked tree d, once a process, and returns a *CorruptError that names a file that differs.
func (s *Store) VerifyRoot(d Digest) error {
	if _, ok := s.roots.Load(d); ok {
		return nil
	}
	tree, err := scanDir(s.Root(d))
	if err != nil {
		return err
	}
	if tree.digest == d {
		s.roots.Store(d, struct{}{})
		return nil
	}
	name, want, found := s.differing(d, tree, "")
	err = s.quarantine(s.Root(d), want, found)
	var corrupt *CorruptError
	if errors.As(err, &corrupt) {
		corrupt.Path = filepath.Join(s.Root(d), name)
	}
	return err
}

// differing returns the path of an entry in which tree is not the tree d, with what is expected and found there.
func (s *Store) differing(d Digest, tree *dirNode, dir string) (name, want, found string) {
	msg, err := s.directory(d)
	if err != nil {
		return dir, "tree " + d.String(), "tree " + tree.digest.String()
	}
	expected := entriesOf(msg)
	actual := entriesOf(tree.msg)
	for i, sub := range tree.msg.Directories {
		var w *repb.DirectoryNode
		for _, e := range msg.Directories {
			if e.Name == sub.Name {
				w = e
			}
		}
		if w != nil && FromProto(w.Digest) != FromProto(sub.Digest) {
			return s.differing(FromProto(w.Digest), tree.subs[i], path.Join(dir, sub.Name))
		}
	}
	all := make([]string, 0, len(expected)+len(actual))
	for n := range expected {
		all = append(all, n)
	}
	for n := range actual {
		all = append(all, n)
	}
	sort.Strings(all)
	for _, n := range all {
		w, a := expected[n], actual[n]
		if w != a {
			if w == "" {
				w = "nothing"
			}
			if a == "" {
				a = "nothing"
			}
			return path.Join(dir, n), w, a
		}
	}
	return dir, "tree " + d.String(), "tree " + tree.digest.String()
}

func entriesOf(msg *repb.Directory) map[string]string {
	m := make(map[string]string)
	for _, f := range msg.Files {
		kind := "file "
		if f.IsExecutable {
			kind = "executable "
		}
		m[f.Name] = kind + FromProto(f.Digest).String()
	}
	for _, l := range msg.Symlinks {
		m[l.Name] = "symbolic link to " + l.Target
	}
	for _, sub := range msg.Directories {
		m[sub.Name] = "directory " + FromProto(sub.Digest).String()
	}
	return m
}
