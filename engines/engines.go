// Package engines keeps the engines that a node has: each verified before it gets its name, read-only from then on, and verified again,
// in the very bytes that are used, whenever it is used.
//
// A node's home is a folder:
//
//	objects/<digest>/     an engine: its files, and record.json; the name is the digest of the record
//	versions/<version>    a symbolic link to the engine of a version
//	evidence/<version>/   what was seen of a version when it was accepted; the resolver's
//	pins/<version>        versions that are kept
//	state/                what the resolver has accepted: channels.toml, the release index
//	policy.toml           the operator's policy        } optional;
//	channels.toml         the operator's channels      } they win over what
//	workers.toml          which worker runs what       } was accepted
//	tmp/                  what is being written
//
// Several processes may share a home. The launcher links this package, so it stands on little more than the standard library.
package engines

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/enginery/enginery/internal/flock"
)

// HomeEnv is the environment variable that names a node's home.
const HomeEnv = "ENGINERY_HOME"

// DefaultHome returns $ENGINERY_HOME; otherwise /var/lib/enginery for root, and the folder enginery in the user's data directory
// ($XDG_DATA_HOME or ~/.local/share) for others.
func DefaultHome() (string, error) {
	if home := os.Getenv(HomeEnv); home != "" {
		return home, nil
	}
	if os.Geteuid() == 0 {
		return "/var/lib/enginery", nil
	}
	if data := os.Getenv("XDG_DATA_HOME"); filepath.IsAbs(data) {
		return filepath.Join(data, "enginery"), nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", fmt.Errorf("finding a home for engines: %w; name one with %s", err, HomeEnv)
	}
	return filepath.Join(home, ".local", "share", "enginery"), nil
}

// Store is the engines of a home.
type Store struct{ home string }

// Open returns the engines of a home. Nothing is made or read yet.
func Open(home string) *Store { return &Store{home} }

// Home returns the store's folder.
func (s *Store) Home() string { return s.home }

// Engine is an installed version.
type Engine struct {
	Version  string `json:"version"`  // version ID
	Platform string `json:"platform"` // e.g. "linux/amd64"
	Index    string `json:"index"`    // digest of the version's artifact, "sha256:…"
	Manifest string `json:"manifest"` // digest of the platform's part of that

	Worker      File `json:"worker"`
	DebugWorker File `json:"debugWorker,omitzero"` // none if its path is empty; not for consensus
	Lockdown    File `json:"lockdown,omitzero"`    // evaluated first
	Supervisor  File `json:"supervisor,omitzero"`  // evaluated second
	Config      File `json:"config"`               // engine description: an artifact.Engine in JSON

	dir string
}

// Dir returns the folder with the engine's files.
func (e *Engine) Dir() string { return e.dir }

// Names of the files of an engine.
const (
	WorkerName      = "xsnap-worker"
	DebugWorkerName = "xsnap-worker-debug"
	LockdownName    = "lockdown.bundle"
	SupervisorName  = "supervisor.bundle"
	ConfigName      = "config.json"

	recordName = "record.json"
)

// files returns the engine's files by name.
func (e *Engine) files() map[string]*File {
	m := map[string]*File{WorkerName: &e.Worker, ConfigName: &e.Config}
	for name, f := range map[string]*File{DebugWorkerName: &e.DebugWorker, LockdownName: &e.Lockdown, SupervisorName: &e.Supervisor} {
		if f.SHA256 != "" {
			m[name] = f
		}
	}
	return m
}

// ErrNotInstalled says that a node does not have a version.
var ErrNotInstalled = errors.New("not installed")

// ErrVersion says that a version ID cannot be one.
var ErrVersion = errors.New("expected lower-case letters, digits, dots and dashes")

// CheckVersion returns an error that is ErrVersion if a version ID cannot be one.
func CheckVersion(version string) error {
	const letters = "abcdefghijklmnopqrstuvwxyz0123456789"
	if len(version) == 0 || len(version) > 128 || !strings.Contains(letters, version[:1]) || strings.Trim(version, letters+".-") != "" {
		return fmt.Errorf("version ID %q: %w", version, ErrVersion)
	}
	return nil
}

// Get returns the engine of a version. The error is ErrNotInstalled if the node has none. The engine's files are checked when they are
// opened.
func (s *Store) Get(version string) (*Engine, error) {
	if err := CheckVersion(version); err != nil {
		return nil, err
	}
	dir, err := filepath.EvalSymlinks(filepath.Join(s.home, "versions", version))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w in %s; fetch it: enginery fetch %s", version, ErrNotInstalled, s.home, version)
	} else if err != nil {
		return nil, fmt.Errorf("finding %s: %w", version, err)
	}
	e, err := readEngine(dir)
	if err != nil {
		return nil, err
	}
	if e.Version != version {
		return nil, fmt.Errorf("%s in %s leads to %s: the home was changed by hand; fetch it again: enginery fetch %s", version, s.home, e.Version, version)
	}
	return e, nil
}

func readEngine(dir string) (*Engine, error) {
	path := filepath.Join(dir, recordName)
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("reading the record of an engine: %w", err)
	}
	if found := digestOf(data); found != filepath.Base(dir) {
		return nil, &DamagedError{Path: path, Want: filepath.Base(dir), Found: found}
	}
	e := &Engine{dir: dir}
	if err := json.Unmarshal(data, e); err != nil {
		return nil, fmt.Errorf("reading %s: %w", path, err)
	}
	for name, f := range e.files() {
		f.Path = filepath.Join(dir, name)
	}
	return e, nil
}

func digestOf(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

// List returns the engines of all versions that the node has, sorted by version. Those that are damaged are in the error.
func (s *Store) List() ([]*Engine, error) {
	entries, err := os.ReadDir(filepath.Join(s.home, "versions"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var engines []*Engine
	var failures []error
	for _, entry := range entries {
		e, err := s.Get(entry.Name())
		if err != nil {
			failures = append(failures, err)
			continue
		}
		engines = append(engines, e)
	}
	return engines, errors.Join(failures...)
}

// Install installs an engine and makes it that of its version. The paths of its files are ignored: fill writes them, by their names, to a
// folder, and each must have the SHA-256 and size that e says. If the node has the engine already, whole, fill is not called. Of several that
// install a version at once one does and the others wait.
//
// Nothing of it can be seen before all of it is on disk.
func (s *Store) Install(ctx context.Context, e Engine, fill func(dir string) error) (*Engine, error) {
	if err := CheckVersion(e.Version); err != nil {
		return nil, err
	}
	for _, dir := range []string{"objects", "versions", "tmp"} {
		if err := os.MkdirAll(filepath.Join(s.home, dir), 0o755); err != nil {
			return nil, err
		}
	}
	unlock, err := s.Lock(ctx, "install-"+e.Version)
	if err != nil {
		return nil, fmt.Errorf("installing %s: %w", e.Version, err)
	}
	defer unlock()
	done, err := s.Use(ctx)
	if err != nil {
		return nil, fmt.Errorf("installing %s: %w", e.Version, err)
	}
	defer done()
	installed, err := s.install(ctx, e, fill)
	if err != nil {
		return nil, fmt.Errorf("installing %s: %w", e.Version, err)
	}
	return installed, nil
}

// Lock takes a lock that the processes of a home share, waiting until nobody else has it. It ends with its holder, however that ends.
func (s *Store) Lock(ctx context.Context, name string) (unlock func(), err error) {
	return s.lock(ctx, name, flock.Exclusive)
}

// Use keeps GC waiting until done is called or the process ends: what is there meanwhile stays.
func (s *Store) Use(ctx context.Context) (done func(), err error) {
	return s.lock(ctx, gcLock, flock.Shared)
}

const gcLock = "gc.lock"

func (s *Store) lock(ctx context.Context, name string, how int) (unlock func(), err error) {
	dir := filepath.Join(s.home, "locks")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	return flock.Lock(ctx, filepath.Join(dir, name), how)
}

func (s *Store) install(ctx context.Context, e Engine, fill func(dir string) error) (*Engine, error) {
	for _, f := range e.files() {
		f.Path = ""
	}
	record, err := json.MarshalIndent(e, "", "  ")
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(s.home, "objects", digestOf(record))
	if there, err := readEngine(dir); err != nil || there.Verify() != nil {
		if err := removeAll(dir); err != nil { // damaged
			return nil, err
		}
		if err := s.write(ctx, e, record, dir, fill); err != nil {
			return nil, err
		}
	}
	link := filepath.Join("..", "objects", filepath.Base(dir))
	name := filepath.Join(s.home, "versions", e.Version)
	if now, err := os.Readlink(name); err != nil || now != link {
		aside := filepath.Join(s.home, "tmp", "link-"+e.Version)
		if err := errors.Join(os.RemoveAll(aside), os.Symlink(link, aside), os.Rename(aside, name), syncFile(filepath.Dir(name))); err != nil {
			return nil, err
		}
	}
	return readEngine(dir)
}

// write fills a folder aside, checks it, makes it read-only, and gives it its name.
func (s *Store) write(ctx context.Context, e Engine, record []byte, dir string, fill func(string) error) error {
	// Whoever holds the version's lock has this folder; one who was killed has left it.
	aside := filepath.Join(s.home, "tmp", "new-"+e.Version)
	if err := errors.Join(removeAll(aside), os.Mkdir(aside, 0o755)); err != nil {
		return err
	}
	defer removeAll(aside)
	if err := fill(aside); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(aside, recordName), record, 0o444); err != nil {
		return err
	}
	var executables []string
	for name, f := range e.files() {
		if err := ctx.Err(); err != nil {
			return err
		}
		f.Path = filepath.Join(aside, name)
		mode := fs.FileMode(0o444)
		if name == WorkerName || name == DebugWorkerName {
			mode = 0o555
		}
		if err := errors.Join(os.Chmod(f.Path, mode), f.Verify()); err != nil {
			return err
		}
		if mode == 0o555 {
			executables = append(executables, f.Path)
		}
	}
	entries, err := os.ReadDir(aside)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if _, ok := e.files()[entry.Name()]; !ok && entry.Name() != recordName {
			return fmt.Errorf("%s is no file of an engine", entry.Name())
		}
		if err := syncFile(filepath.Join(aside, entry.Name())); err != nil {
			return err
		}
	}
	for _, path := range executables {
		if err := errors.Join(writeMidstates(path), syncFile(path+midstatesSuffix)); err != nil {
			return err
		}
	}
	if err := errors.Join(syncFile(aside), os.Rename(aside, dir), os.Chmod(dir, 0o555), syncFile(filepath.Dir(dir))); err != nil {
		return err
	}
	return nil
}

// Verify reads all files of the engine and returns a *DamagedError if one is not what was installed.
func (e *Engine) Verify() error {
	var files sync.WaitGroup
	errs := make([]error, 5)
	for i, name := range []string{WorkerName, DebugWorkerName, LockdownName, SupervisorName, ConfigName} {
		if f, ok := e.files()[name]; ok {
			files.Go(func() { errs[i] = f.Verify() })
		}
	}
	files.Wait()
	return cmp.Or(errs...)
}

// Hold keeps the engine's files from being removed by GC until release is called or the process ends.
func (e *Engine) Hold() (release func(), err error) {
	d, err := os.Open(e.dir)
	if err != nil {
		return nil, fmt.Errorf("holding %s: %w", e.Version, err)
	}
	if err := flock.Try(d, flock.Shared); err != nil {
		d.Close()
		return nil, fmt.Errorf("holding %s: it is being removed: %w", e.Version, err)
	}
	if _, err := os.Stat(filepath.Join(e.dir, recordName)); err != nil {
		d.Close()
		return nil, fmt.Errorf("holding %s: %w", e.Version, err)
	}
	return func() { d.Close() }, nil
}

// Evidence returns the folder of what was seen of a version when it was accepted. The store does not look into it.
func (s *Store) Evidence(version string) string { return filepath.Join(s.home, "evidence", version) }

// Partial opens what there is of a blob whose download has begun, or was interrupted, waiting until nobody else has it open. Once it is complete
// its file may be moved, which is then no longer there for others. digest is "sha256:…".
func (s *Store) Partial(ctx context.Context, digest string) (*os.File, error) {
	path := filepath.Join(s.home, "tmp", "partial-"+strings.TrimPrefix(digest, "sha256:"))
	for {
		f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
		if err != nil {
			return nil, err
		}
		if err := flock.Wait(ctx, f, flock.Exclusive); err != nil {
			f.Close()
			return nil, err
		}
		opened, err := f.Stat()
		if err != nil {
			f.Close()
			return nil, err
		}
		if now, err := os.Stat(path); err == nil && os.SameFile(opened, now) {
			return f, nil
		}
		f.Close() // who had it before has moved it
	}
}

// Pin keeps a version from being removed by GC.
func (s *Store) Pin(version string) error {
	if err := CheckVersion(version); err != nil {
		return err
	}
	dir := filepath.Join(s.home, "pins")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	return errors.Join(os.WriteFile(filepath.Join(dir, version), nil, 0o644), syncFile(dir))
}

// Unpin undoes Pin. A version that is not pinned is fs.ErrNotExist.
func (s *Store) Unpin(version string) error {
	if err := CheckVersion(version); err != nil {
		return err
	}
	return os.Remove(filepath.Join(s.home, "pins", version))
}

// Pinned returns the versions that are pinned, sorted.
func (s *Store) Pinned() ([]string, error) {
	entries, err := os.ReadDir(filepath.Join(s.home, "pins"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var versions []string
	for _, e := range entries {
		versions = append(versions, e.Name())
	}
	return versions, nil
}

// Removed is what GC has removed.
type Removed struct {
	Versions []string // that have no name any more, sorted
	Bytes    int64
}

// GC removes the versions that are neither pinned, nor in keep, nor those of a channel, and what is left of engines that were replaced and of
// installations that were interrupted. An engine that is held loses its name, but not its files.
func (s *Store) GC(ctx context.Context, keep ...string) (*Removed, error) {
	removed := new(Removed)
	if _, err := os.Stat(s.home); errors.Is(err, fs.ErrNotExist) {
		return removed, nil
	}
	unlock, err := s.lock(ctx, gcLock, flock.Exclusive) // nothing is being installed
	if err != nil {
		return nil, err
	}
	defer unlock()
	pinned, err := s.Pinned()
	if err != nil {
		return nil, err
	}
	keep = append(keep, pinned...)
	if c, err := s.Channels(); err == nil {
		keep = append(keep, c.Legacy, c.Current)
	} else if !errors.Is(err, ErrNoChannels) {
		return nil, err
	}
	links, err := os.ReadDir(filepath.Join(s.home, "versions"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	named := make(map[string]bool)
	for _, l := range links {
		path := filepath.Join(s.home, "versions", l.Name())
		if !slices.Contains(keep, l.Name()) {
			if err := os.Remove(path); err != nil {
				return nil, err
			}
			removed.Versions = append(removed.Versions, l.Name())
			continue
		}
		if target, err := os.Readlink(path); err == nil {
			named[filepath.Base(target)] = true
		}
	}
	for _, place := range []string{"objects", "tmp", "evidence"} {
		entries, err := os.ReadDir(filepath.Join(s.home, place))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		for _, entry := range entries {
			if place == "objects" && named[entry.Name()] || place == "evidence" && slices.Contains(keep, entry.Name()) {
				continue
			}
			if err := ctx.Err(); err != nil {
				return nil, err
			}
			n, err := s.discard(filepath.Join(s.home, place, entry.Name()))
			if err != nil {
				return nil, err
			}
			removed.Bytes += n
		}
	}
	return removed, nil
}

// discard removes a file or folder, unless it is held, and returns its size in bytes.
func (s *Store) discard(path string) (int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	if err := flock.Try(f, flock.Exclusive); err != nil {
		return 0, nil // held
	}
	var size int64
	err = filepath.WalkDir(path, func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if info, err := d.Info(); err == nil && info.Mode().IsRegular() {
			size += info.Size()
		}
		return nil
	})
	return size, errors.Join(err, removeAll(path))
}

// removeAll removes a folder whose own mode may forbid it.
func removeAll(path string) error {
	if info, err := os.Lstat(path); err == nil && info.IsDir() {
		if err := os.Chmod(path, 0o755); err != nil {
			return err
		}
	}
	return os.RemoveAll(path)
}

// syncFile syncs a file or folder.
func syncFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}
