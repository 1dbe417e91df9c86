// Package bundles knows the JavaScript that a worker evaluates before any vat code, and fetches it.
//
// A pair is a file of this folder: the lockdown and the supervisor bundle that one chain upgrade shipped, each a file of an
// npm package.
package bundles

import (
	"bytes"
	"context"
	"embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"text/template"

	"github.com/enginery/enginery/internal/cas"
	"github.com/enginery/enginery/internal/npm"
	"github.com/enginery/enginery/internal/strict"
	"github.com/google/renameio/v2"
)

//go:embed *.toml
var files embed.FS

// Pair is what one version gives its workers.
type Pair struct {
	Name       string
	Lockdown   Bundle // evaluated first
	Supervisor Bundle
}

// Bundle is a file of an npm package: a JSON text with the source to evaluate.
type Bundle struct {
	npm.Package
	File   string     // in the package
	SHA256 cas.Digest // of the file; the package publishes the same sum beside it, in File+".sha256"
}

// ID returns the name under which a SwingSet kernel stores the bundle.
func (b Bundle) ID() string { return "b0-" + b.SHA256.Hash }

// Names returns the names of the pairs that come with the program, sorted.
func Names() []string {
	found, _ := fs.Glob(files, "*.toml") // the pattern is fine
	for i, f := range found {
		found[i] = strings.TrimSuffix(f, ".toml")
	}
	return found
}

// Load returns a pair that comes with the program.
func Load(name string) (*Pair, error) {
	if !namePattern.MatchString(name) {
		return nil, fmt.Errorf("supervisor bundles %q: a name has lower-case letters, digits, dots and dashes", name)
	}
	data, err := fs.ReadFile(files, name+".toml")
	if err != nil {
		return nil, fmt.Errorf("there are no supervisor bundles %q (supervisor-bundles/%s.toml); there are %s", name, name, strings.Join(Names(), ", "))
	}
	return Parse(name+".toml", data)
}

// The schema of a file.
type (
	pairFile struct {
		Name       string     `toml:"name"`
		Lockdown   bundleFile `toml:"lockdown"`
		Supervisor bundleFile `toml:"supervisor"`
	}
	bundleFile struct {
		Package   string     `toml:"package"`
		Version   string     `toml:"version"`
		Integrity string     `toml:"integrity"`
		Tarball   cas.Digest `toml:"tarball"`
		File      string     `toml:"file"`
		SHA256    cas.Digest `toml:"sha256"`
	}
)

var namePattern = regexp.MustCompile(`^[a-z0-9][a-z0-9.-]*$`)

// Parse reads a pair from data, the content of the named file. Errors begin with the file and the line.
func Parse(file string, data []byte) (*Pair, error) {
	var f pairFile
	if err := strict.Decode(file, data, &f); err != nil {
		return nil, err
	}
	if want := strings.TrimSuffix(path.Base(file), ".toml"); f.Name != want || !namePattern.MatchString(f.Name) {
		return nil, strict.Errorf(file, data, "name", "name is %q; the file's own name, %q, is expected", f.Name, want)
	}
	p := &Pair{Name: f.Name}
	var err error
	if p.Lockdown, err = f.Lockdown.bundle(file, data, "lockdown"); err != nil {
		return nil, err
	}
	p.Supervisor, err = f.Supervisor.bundle(file, data, "supervisor")
	return p, err
}

func (f bundleFile) bundle(file string, data []byte, table string) (Bundle, error) {
	b := Bundle{
		Package: npm.Package{Name: f.Package, Version: f.Version, Integrity: f.Integrity, Tarball: f.Tarball},
		File:    f.File,
		SHA256:  f.SHA256,
	}
	key, problem := b.Check()
	switch {
	case problem != "":
	case !fs.ValidPath(b.File) || b.File == ".":
		key, problem = "file", fmt.Sprintf("%q is not a file inside the package", b.File)
	case b.SHA256.IsZero():
		key, problem = "sha256", "the digest of the bundle is missing"
	default:
		return b, nil
	}
	return Bundle{}, strict.Errorf(file, data, table+"."+key, "%s.%s: %s", table, key, problem)
}

// SumError says that a package has another bundle than the pair records, or publishes another sum for it.
type SumError struct {
	Package, File string
	Want, Found   string
}

func (e *SumError) Error() string {
	return fmt.Sprintf("%s of npm package %s is not what it must be: expected %s, found %s; it was not used", e.File, e.Package, e.Want, e.Found)
}

// Fetch puts both bundles of p into the store, unless they are there.
func Fetch(ctx context.Context, store *cas.Store, p *Pair) error {
	for _, b := range []Bundle{p.Lockdown, p.Supervisor} {
		if store.Has(b.SHA256) {
			continue
		}
		tgz, err := npm.Fetch(ctx, store, b.Package)
		if err != nil {
			return fmt.Errorf("supervisor bundles %s: %w", p.Name, err)
		}
		content, err := b.extract(tgz)
		if err != nil {
			return fmt.Errorf("supervisor bundles %s: %w", p.Name, err)
		}
		if _, err := store.PutBytes(ctx, content); err != nil {
			return fmt.Errorf("supervisor bundles %s: %w", p.Name, err)
		}
	}
	return nil
}

// extract returns the bundle, checked against the record and against the sum that the package publishes.
func (b Bundle) extract(tgz []byte) ([]byte, error) {
	content, published, err := read(tgz, b.File)
	if err != nil {
		return nil, fmt.Errorf("npm package %s: %w", b.Package, err)
	}
	if found := cas.OfBytes(content); found != b.SHA256 {
		return nil, &SumError{b.String(), b.File, b.SHA256.String(), found.String()}
	}
	if published != b.SHA256.Hash {
		return nil, &SumError{b.String(), b.File + ".sha256", b.SHA256.Hash, published}
	}
	return content, nil
}

// read returns a bundle of a package and the SHA-256 sum that the package publishes for it.
func read(tgz []byte, file string) (content []byte, published string, err error) {
	var sum []byte
	err = npm.Files(tgz, func(name string, _ bool, r io.Reader) (err error) {
		switch name {
		case file:
			content, err = io.ReadAll(r)
		case file + ".sha256":
			sum, err = io.ReadAll(r)
		}
		return err
	})
	if err == nil && content == nil {
		err = fmt.Errorf("it has no file %s", file)
	}
	if err == nil && sum == nil {
		err = fmt.Errorf("it has no file %s.sha256", file)
	}
	return content, strings.TrimSpace(string(sum)), err
}

// Add writes the pair name to dir, the folder with the other pairs, and returns the file's path. The versions are those of
// Agoric's packages; what they are is fetched, and recorded from then on.
func Add(ctx context.Context, store *cas.Store, dir, name, lockdown, supervisor string) (string, error) {
	p := &Pair{Name: name}
	var err error
	if p.Lockdown, err = resolve(ctx, store, "@agoric/xsnap-lockdown", lockdown, "dist/lockdown.bundle"); err != nil {
		return "", fmt.Errorf("adding supervisor bundles %s: %w", name, err)
	}
	if p.Supervisor, err = resolve(ctx, store, "@agoric/swingset-xsnap-supervisor", supervisor, "dist/supervisor.bundle"); err != nil {
		return "", fmt.Errorf("adding supervisor bundles %s: %w", name, err)
	}
	file := filepath.Join(dir, name+".toml")
	data := format(p, "")
	if _, err := Parse(file, data); err != nil {
		return "", fmt.Errorf("adding supervisor bundles %s: %w", name, err)
	}
	if err := create(file, data); err != nil {
		return "", fmt.Errorf("adding supervisor bundles %s: %w", name, err)
	}
	return file, nil
}

func resolve(ctx context.Context, store *cas.Store, name, version, file string) (Bundle, error) {
	pkg, tgz, err := npm.Resolve(ctx, store, name, version)
	if err != nil {
		return Bundle{}, err
	}
	content, published, err := read(tgz, file)
	if err != nil {
		return Bundle{}, fmt.Errorf("npm package %s: %w", pkg, err)
	}
	b := Bundle{Package: pkg, File: file, SHA256: cas.OfBytes(content)}
	if published != b.SHA256.Hash {
		return Bundle{}, &SumError{pkg.String(), file, published + " (the sum that the package publishes)", b.SHA256.Hash}
	}
	return b, nil
}

//go:embed pair.tmpl
var pairText string

var pairTemplate = template.Must(template.New("pair").Parse(pairText))

// format returns the file of p. note is the comment at its top, after the first line.
func format(p *Pair, note string) []byte {
	var b bytes.Buffer
	if err := pairTemplate.Execute(&b, struct {
		*Pair
		Note string
	}{p, note}); err != nil {
		panic(err) // the template does not fit the type
	}
	return b.Bytes()
}

// create writes a new file: all of it, or nothing.
func create(file string, data []byte) error {
	tmp, err := renameio.NewPendingFile(file, renameio.WithStaticPermissions(0o644), renameio.WithTempDir(filepath.Dir(file)))
	if err != nil {
		return err
	}
	defer tmp.Cleanup()
	_, err = tmp.Write(data)
	if err := errors.Join(err, tmp.Sync()); err != nil {
		return err
	}
	return os.Link(tmp.Name(), file) // unlike a renaming it fails where the file exists
}
