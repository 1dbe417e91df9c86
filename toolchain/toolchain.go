// Package toolchain knows the compilers that engines are built with.
//
// A toolchain is a locked list of Debian packages, unpacked without running their maintainer scripts into a root
// file system with the same bits on every machine. NAME.toml says what is wanted, for people to edit; NAME.lock, which
// Lock makes of it, lists every package with its digest, the digest of the root file system that they give, and that
// of the same as an OCI image.
package toolchain

import (
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/enginery/enginery/internal/cas"
	"github.com/enginery/enginery/internal/strict"
	"github.com/opencontainers/go-digest"
)

//go:embed *.toml *.lock
var embedded embed.FS

// Spec says what a toolchain is to be: the content of NAME.toml.
type Spec struct {
	Name     string `toml:"-"`
	Suite    string `toml:"suite"`    // the Debian release that every package comes from
	Host     string `toml:"host"`     // platform that the toolchain runs on, as in "linux/amd64"
	Target   string `toml:"target"`   // platform that it compiles for
	Compiler string `toml:"compiler"` // the C compiler's command
	Path     string `toml:"path"`     // $PATH within the root file system

	Wanted   []string `toml:"packages"`  // what they depend on is added
	LeaveOut []string `toml:"leave-out"` // dependencies that are not wanted

	Drop        []string          `toml:"drop"`        // patterns of paths that are not unpacked, with all below
	Keep        []string          `toml:"keep"`        // patterns of paths that are unpacked all the same
	Directories []string          `toml:"directories"` // made besides those that packages have files in
	Links       map[string]string `toml:"links"`       // symbolic links to directories, which take what packages have in them
}

// Toolchain is a Spec with its lock.
type Toolchain struct {
	Spec
	Root     cas.Digest    // tree of the root file system
	Image    digest.Digest // OCI image manifest
	Packages []Package     // sorted by name and architecture
}

// Package is a Debian binary package.
type Package struct {
	Name         string `toml:"name"`
	Version      string `toml:"version"`
	Architecture string `toml:"architecture"`
	Source       string `toml:"source"` // source package and its version, "glibc 2.36-9"
	Size         int64  `toml:"size"`
	SHA256       string `toml:"sha256"`
}

// Digest returns the digest of the package file.
func (p Package) Digest() cas.Digest { return cas.Digest{Hash: p.SHA256, Size: p.Size} }

// String names the package as apt's commands do, "name:architecture=version".
func (p Package) String() string {
	if p.Architecture == "all" {
		return p.Name + "=" + p.Version
	}
	return p.Name + ":" + p.Architecture + "=" + p.Version
}

// PURL returns the package URL, "pkg:deb/debian/…".
func (p Package) PURL(suite string) string {
	escape := func(s string) string { return strings.ReplaceAll(url.PathEscape(s), "+", "%2B") }
	return fmt.Sprintf("pkg:deb/debian/%s@%s?arch=%s&distro=%s",
		escape(p.Name), escape(p.Version), escape(p.Architecture), url.QueryEscape(suite))
}

// Copyright returns the package's licence text from an unpacked root file system.
func (p Package) Copyright(root string) ([]byte, error) {
	r, err := os.OpenRoot(root)
	if err != nil {
		return nil, fmt.Errorf("reading the licence of package %s: %w", p, err)
	}
	defer r.Close()
	f, err := r.Open("usr/share/doc/" + p.Name + "/copyright")
	if err != nil {
		return nil, fmt.Errorf("reading the licence of package %s: %w", p, err)
	}
	defer f.Close()
	return io.ReadAll(f)
}

// Names returns the names of all toolchains, sorted.
func Names() []string {
	files, err := fs.Glob(embedded, "*.toml")
	if err != nil {
		panic(err) // the pattern is good
	}
	for i, f := range files {
		files[i] = strings.TrimSuffix(f, ".toml")
	}
	return files
}

// Load returns the named toolchain.
func Load(name string) (*Toolchain, error) {
	spec, err := readSpec(embedded, name)
	if err != nil {
		return nil, err
	}
	data, err := fs.ReadFile(embedded, name+".lock")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("toolchain %s has no lock yet: make it with mage toolchain:lock", name)
	} else if err != nil {
		return nil, fmt.Errorf("reading the lock of toolchain %s: %w", name, err)
	}
	return Parse(spec, name+".lock", data)
}

// ReadSpec reads NAME.toml in dir, for Lock.
func ReadSpec(dir, name string) (*Spec, error) { return readSpec(os.DirFS(dir), name) }

func readSpec(fsys fs.FS, name string) (*Spec, error) {
	if !nameRE.MatchString(name) {
		return nil, fmt.Errorf("toolchain name %q: want lower-case letters, digits and dashes", name)
	}
	data, err := fs.ReadFile(fsys, name+".toml")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("no toolchain is named %q: there are %s", name, strings.Join(Names(), ", "))
	} else if err != nil {
		return nil, fmt.Errorf("reading toolchain %s: %w", name, err)
	}
	return ParseSpec(name, name+".toml", data)
}

var (
	nameRE         = regexp.MustCompile(`^[a-z0-9]+(-[a-z0-9]+)*$`)
	platformRE     = regexp.MustCompile(`^linux/(amd64|arm64)$`)
	commandRE      = regexp.MustCompile(`^[a-z0-9][a-z0-9_.+-]*$`)
	wantedRE       = regexp.MustCompile(`^[a-z0-9][a-z0-9+.-]+(:(amd64|arm64))?$`)
	packageRE      = regexp.MustCompile(`^[a-z0-9][a-z0-9+.-]+$`)
	versionRE      = regexp.MustCompile(`^([0-9]+:)?[0-9][A-Za-z0-9.+~-]*$`)
	architectureRE = regexp.MustCompile(`^(all|amd64|arm64)$`)
	sourceRE       = regexp.MustCompile(`^[a-z0-9][a-z0-9+.-]+ ([0-9]+:)?[0-9][A-Za-z0-9.+~-]*$`)
	hashRE         = regexp.MustCompile(`^[0-9a-f]{64}$`)
)

// check is a value that must match an expression.
type check struct {
	key, value string
	re         *regexp.Regexp
}

// ParseSpec parses data, the content of the named file, as the toolchain called name.
func ParseSpec(name, file string, data []byte) (*Spec, error) {
	s := &Spec{Name: name}
	if err := strict.Decode(file, data, s); err != nil {
		return nil, err
	}
	bad := func(key, format string, args ...any) error { return strict.Errorf(file, data, key, format, args...) }
	for _, check := range []check{
		{"suite", s.Suite, nameRE},
		{"host", s.Host, platformRE},
		{"target", s.Target, platformRE},
		{"compiler", s.Compiler, commandRE},
	} {
		if !check.re.MatchString(check.value) {
			return nil, bad(check.key, "%s is %q, want %s", check.key, check.value, check.re)
		}
	}
	for i, dir := range strings.Split(s.Path, ":") {
		if !path.IsAbs(dir) || path.Clean(dir) != dir {
			return nil, bad("path", "directory %d of path is %q, want a clean absolute path", i+1, dir)
		}
	}
	if len(s.Wanted) == 0 {
		return nil, bad("packages", "no packages are wanted")
	}
	for _, list := range []struct {
		key   string
		names []string
	}{{"packages", s.Wanted}, {"leave-out", s.LeaveOut}} {
		for i, n := range list.names {
			at := fmt.Sprintf("%s.%d", list.key, i)
			if !wantedRE.MatchString(n) {
				return nil, bad(at, "%q is not a Debian package, NAME or NAME:ARCHITECTURE", n)
			}
			if slices.Contains(list.names[:i], n) {
				return nil, bad(at, "package %s is listed twice", n)
			}
		}
	}
	for i, n := range s.LeaveOut {
		if slices.Contains(s.Wanted, n) {
			return nil, bad(fmt.Sprintf("leave-out.%d", i), "package %s is both wanted and left out", n)
		}
	}
	for _, list := range []struct {
		key      string
		patterns []string
	}{{"drop", s.Drop}, {"keep", s.Keep}} {
		for i, p := range list.patterns {
			if _, err := path.Match(p, ""); err != nil || !isClean(p) {
				return nil, bad(fmt.Sprintf("%s.%d", list.key, i), "%q is not a pattern of a clean relative path", p)
			}
		}
	}
	for i, d := range s.Directories {
		if !isClean(d) {
			return nil, bad(fmt.Sprintf("directories.%d", i), "%q is not a clean relative path", d)
		}
	}
	for name, target := range s.Links { // of several bad ones, any is named
		if !isClean(name) || !isClean(target) || strings.Contains(name, "/") {
			return nil, bad("links."+name, "link %q to %q: want a name in the root directory and a clean relative path", name, target)
		}
	}
	return s, nil
}

// isClean reports whether p is a relative path without empty, "." or ".." parts.
func isClean(p string) bool { return fs.ValidPath(p) && p != "." }

// digest identifies all that s says.
func (s *Spec) digest() cas.Digest {
	b, err := json.Marshal(s)
	if err != nil {
		panic(err) // strings, slices and maps of them always encode
	}
	return cas.OfBytes(b)
}

// lockFile is the content of NAME.lock.
type lockFile struct {
	Spec     cas.Digest    `toml:"spec"`
	Root     cas.Digest    `toml:"root"`
	Image    digest.Digest `toml:"image"`
	Packages []Package     `toml:"packages"`
	Seal     string        `toml:"seal"`
}

const sealKey = "\nseal = "

// Parse parses data, the content of the named file, as the lock of spec. A lock that is not as Lock wrote it, or was
// written for something else than spec, is an error.
func Parse(spec *Spec, file string, data []byte) (*Toolchain, error) {
	var l lockFile
	if err := strict.Decode(file, data, &l); err != nil {
		return nil, err
	}
	const again = "make the lock anew with mage toolchain:lock"
	bad := func(key, format string, args ...any) error { return strict.Errorf(file, data, key, format, args...) }
	if l.Root.IsZero() {
		return nil, bad("root", "root is missing; %s", again)
	}
	if err := l.Image.Validate(); err != nil || l.Image.Algorithm() != digest.SHA256 {
		return nil, bad("image", "image is %q, want sha256:…; %s", l.Image, again)
	}
	for i, p := range l.Packages {
		at := fmt.Sprintf("packages.%d", i)
		for _, check := range []check{
			{"name", p.Name, packageRE},
			{"version", p.Version, versionRE},
			{"architecture", p.Architecture, architectureRE},
			{"source", p.Source, sourceRE},
			{"sha256", p.SHA256, hashRE},
		} {
			if !check.re.MatchString(check.value) {
				return nil, bad(at+"."+check.key, "package %q has the %s %q, want %s", p.Name, check.key, check.value, check.re)
			}
		}
		if p.Size <= 0 {
			return nil, bad(at+".size", "package %s has the size %d", p, p.Size)
		}
		if i > 0 && comparePackages(l.Packages[i-1], p) >= 0 {
			return nil, bad(at, "package %s stands after %s, which is not in order", p, l.Packages[i-1])
		}
	}
	body, _, _ := strings.Cut(string(data), sealKey)
	if seal := sealOf(body + "\n"); seal != l.Seal {
		return nil, bad("seal", "the lock has been changed since it was written: its seal is %q, and what it seals has %q; "+
			"restore the file, or %s", l.Seal, seal, again)
	}
	if d := spec.digest(); d != l.Spec {
		return nil, bad("spec", "the lock is older than %s.toml: it was made for what has the digest %s, and that file has %s; %s",
			spec.Name, l.Spec, d, again)
	}
	return &Toolchain{Spec: *spec, Root: l.Root, Image: l.Image, Packages: l.Packages}, nil
}

func comparePackages(a, b Package) int {
	if c := strings.Compare(a.Name, b.Name); c != 0 {
		return c
	}
	return strings.Compare(a.Architecture, b.Architecture)
}

func sealOf(body string) string { return cas.OfBytes([]byte(body)).Hash }

// LockFile returns the content of NAME.lock, which Parse reads back.
func (t *Toolchain) LockFile() []byte {
	var b strings.Builder
	fmt.Fprintf(&b, "# Written by mage toolchain:lock from %s.toml.\n", t.Name)
	fmt.Fprintf(&b, "spec = %q\nroot = %q\nimage = %q\npackages = [\n", t.digest(), t.Root, t.Image)
	for _, p := range t.Packages {
		fmt.Fprintf(&b, "  { name = %q, version = %q, architecture = %q, source = %q, size = %d, sha256 = %q },\n",
			p.Name, p.Version, p.Architecture, p.Source, p.Size, p.SHA256)
	}
	b.WriteString("]\n# The SHA-256 of the lines up to this one.\n")
	body := b.String()
	return []byte(body + sealKey[1:] + `"` + sealOf(body) + "\"\n")
}
