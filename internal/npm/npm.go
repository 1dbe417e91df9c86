// Package npm fetches published packages through the npm client, with whatever registry, proxy and credentials its user
// has configured.
package npm

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha512"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/enginery/enginery/internal/cas"
	"github.com/enginery/enginery/internal/client"
	"github.com/enginery/enginery/internal/progress"
)

// Package names one tarball: what npm calls it, and what it must be.
type Package struct {
	Name, Version string
	Integrity     string     // of the tarball, as the registry gives it: "sha512-…"
	Tarball       cas.Digest // the same tarball, as the store names it
}

func (p Package) String() string { return p.Name + "@" + p.Version }

var (
	namePattern    = regexp.MustCompile(`^(@[a-z0-9][a-z0-9._-]*/)?[a-z0-9][a-z0-9._-]*$`)
	versionPattern = regexp.MustCompile(`^[0-9]+\.[0-9]+\.[0-9]+(-[0-9A-Za-z.-]+)?$`)
)

// Check returns which field of p cannot be right (package, version, integrity, tarball) and what is wrong with it.
func (p Package) Check() (field, problem string) {
	sum, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(p.Integrity, "sha512-"))
	switch {
	case !namePattern.MatchString(p.Name):
		return "package", fmt.Sprintf("%q is not the name of an npm package", p.Name)
	case !versionPattern.MatchString(p.Version):
		return "version", fmt.Sprintf("%q is not an exact version, such as 1.2.3 or 1.2.3-u4.5", p.Version)
	case !strings.HasPrefix(p.Integrity, "sha512-") || err != nil || len(sum) != sha512.Size:
		return "integrity", fmt.Sprintf("%q is not \"sha512-\" and 64 bytes in base64", p.Integrity)
	case p.Tarball.IsZero():
		return "tarball", "the digest of the tarball is missing"
	}
	return "", ""
}

// UnavailableError says that the client could not get a package.
type UnavailableError struct {
	Package string
	Reason  string
	Advice  string // what to do
}

func (e *UnavailableError) Error() string {
	return fmt.Sprintf("npm package %s cannot be had: %s; %s", e.Package, e.Reason, e.Advice)
}

// IntegrityError says that a package arrived, and is not what it must be.
type IntegrityError struct {
	Package     string
	Want, Found string
}

func (e *IntegrityError) Error() string {
	return fmt.Sprintf("npm package %s is not what it must be: expected %s, found %s; it was not used. "+
		"If the registry or a proxy in front of it has changed the package, ask its keeper why", e.Package, e.Want, e.Found)
}

var fetching sync.Map // cas.Digest -> *semaphore.Weighted: one download of a tarball at a time

// Fetch returns the package's tarball, checked. It comes from the store if that has it, and is kept there.
func Fetch(ctx context.Context, store *cas.Store, p Package) (tgz []byte, err error) {
	if _, problem := p.Check(); problem != "" {
		return nil, fmt.Errorf("npm package %s: %s", p, problem)
	}
	turn, _ := fetching.LoadOrStore(p.Tarball, semaphore.NewWeighted(1))
	if err := turn.(*semaphore.Weighted).Acquire(ctx, 1); err != nil {
		return nil, err
	}
	defer turn.(*semaphore.Weighted).Release(1)
	if store.Has(p.Tarball) {
		tgz, err := store.ReadAll(p.Tarball)
		if err != nil {
			return nil, fmt.Errorf("reading npm package %s: %w", p, err)
		}
		return tgz, nil
	}

	task := progress.Start(ctx, "fetch "+p.String(), p.Tarball.Size)
	defer func() { task.Done(err) }()
	if tgz, err = pack(ctx, store, p.Name, p.Version); err != nil {
		return nil, err
	}
	task.Add(int64(len(tgz)))
	if found := integrity(tgz); found != p.Integrity {
		return nil, &IntegrityError{p.String(), p.Integrity, found}
	}
	if err := store.PutExpected(ctx, bytes.NewReader(tgz), p.Tarball); err != nil {
		return nil, fmt.Errorf("npm package %s: %w", p, err)
	}
	return tgz, nil
}

// Resolve fetches a package that nothing is known of yet, and returns what identifies it from now on, with the tarball.
func Resolve(ctx context.Context, store *cas.Store, name, version string) (p Package, tgz []byte, err error) {
	if !namePattern.MatchString(name) || !versionPattern.MatchString(version) {
		return Package{}, nil, fmt.Errorf("npm package %s@%s: want a name and an exact version", name, version)
	}
	task := progress.Start(ctx, "fetch "+name+"@"+version, 0)
	defer func() { task.Done(err) }()
	if tgz, err = pack(ctx, store, name, version); err != nil {
		return Package{}, nil, err
	}
	d, err := store.PutBytes(ctx, tgz)
	return Package{Name: name, Version: version, Integrity: integrity(tgz), Tarball: d}, tgz, err
}

func integrity(tgz []byte) string {
	sum := sha512.Sum512(tgz)
	return "sha512-" + base64.StdEncoding.EncodeToString(sum[:])
}

// patience is how long one run of the client may take. It retries and gives up by itself much earlier, unless a
// connection hangs.
const patience = 10 * time.Minute

// pack has the client download a tarball, which it checks against the registry's integrity value.
func pack(ctx context.Context, store *cas.Store, name, version string) ([]byte, error) {
	dir, remove, err := store.Scratch("npm")
	if err != nil {
		return nil, err
	}
	defer remove()
	// With a package.json of its own, the client does not look for a project in the folders above.
	if err := os.WriteFile(filepath.Join(dir, "package.json"), []byte("{}\n"), 0o600); err != nil {
		return nil, fmt.Errorf("preparing a run of npm: %w", err)
	}
	dest := filepath.Join(dir, "tarball")
	if err := os.Mkdir(dest, 0o700); err != nil {
		return nil, fmt.Errorf("preparing a run of npm: %w", err)
	}
	_, err = client.Run(ctx, client.Command{
		Name: "npm",
		Args: []string{"pack", name + "@" + version, "--pack-destination", dest, "--json", "--ignore-scripts", "--no-dry-run",
			"--no-workspaces", "--no-update-notifier", "--fetch-retry-mintimeout=1000", "--fetch-retry-maxtimeout=10000"},
		Dir:   dir,
		Env:   environment(),
		Quiet: patience,
	})
	if err != nil {
		return nil, failure(name+"@"+version, err)
	}
	found, err := filepath.Glob(filepath.Join(dest, "*.tgz"))
	if err != nil || len(found) != 1 {
		return nil, fmt.Errorf("npm pack %s@%s left %d tarballs instead of one; is this npm older than 7?", name, version, len(found))
	}
	tgz, err := os.ReadFile(found[0])
	if err != nil {
		return nil, fmt.Errorf("reading what npm has fetched: %w", err)
	}
	return tgz, nil
}

// environment returns the part of the environment that the client needs to find its user's configuration, the
// network and node.
func environment() []string {
	env := []string{"LC_ALL=C"}
	for _, kv := range os.Environ() {
		name, _, _ := strings.Cut(kv, "=")
		switch lower := strings.ToLower(name); {
		case name == "PATH", name == "HOME", name == "USER", name == "LOGNAME", name == "TMPDIR",
			strings.HasPrefix(name, "XDG_"), strings.HasPrefix(name, "NODE_"), strings.HasPrefix(name, "SSL_CERT_"),
			strings.HasPrefix(lower, "npm_config_"), strings.HasSuffix(lower, "_proxy"):
			env = append(env, kv)
		}
	}
	return env
}

// failure says what the client's error means for the user.
func failure(pkg string, err error) error {
	var missing *client.MissingError
	var quiet *client.QuietError
	var exit *client.ExitError
	switch {
	case errors.As(err, &missing):
		return &UnavailableError{pkg, missing.Error(), "install npm (on Debian: apt-get install npm) and run again"}
	case errors.As(err, &quiet):
		return &UnavailableError{pkg, quiet.Error(), "see whether npm reaches its registry: npm ping"}
	case !errors.As(err, &exit):
		return err
	}
	var report struct {
		Error struct{ Code, Summary string }
	}
	if jerr := json.Unmarshal(exit.Stdout, &report); jerr != nil || report.Error.Code == "" {
		return &UnavailableError{pkg, exit.Error(), "see whether npm itself works here: npm view " + pkg}
	}
	code, reason := report.Error.Code, report.Error.Code+": "+strings.TrimSpace(report.Error.Summary)
	switch code {
	case "EINTEGRITY":
		return &IntegrityError{pkg, "what the registry's own integrity value says", reason}
	case "E404", "ETARGET":
		return &UnavailableError{pkg, reason, "the registry that npm is configured for does not have it: npm config get registry shows which that is"}
	case "E401", "E403", "ENEEDAUTH":
		return &UnavailableError{pkg, reason, "npm needs credentials for its registry: npm login"}
	case "ENOSPC":
		return fmt.Errorf("fetching npm package %s: %s; free some space and run again", pkg, reason)
	}
	return &UnavailableError{pkg, reason, "check the network and npm's proxy and registry settings (npm ping), and run again"}
}

// Files calls fn for each file in a package's tarball. Names are relative to the package's root; where one comes twice (npm
// packs some files so), the later file counts.
func Files(tgz []byte, fn func(name string, executable bool, content io.Reader) error) error {
	zr, err := gzip.NewReader(bytes.NewReader(tgz))
	if err != nil {
		return fmt.Errorf("unpacking an npm package: %w", err)
	}
	for tr := tar.NewReader(zr); ; {
		h, err := tr.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("unpacking an npm package: %w", err)
		}
		if h.Typeflag == tar.TypeDir {
			continue
		}
		_, name, _ := strings.Cut(h.Name, "/") // the root folder is named "package", mostly
		name = strings.TrimPrefix(name, "./")  // so npm writes the file that "main" names
		if h.Typeflag != tar.TypeReg || name == "." || !fs.ValidPath(name) {
			return fmt.Errorf("unpacking an npm package: entry %q is not a file with a proper name", h.Name)
		}
		if err := fn(name, h.Mode&0o100 != 0, tr); err != nil {
			return err
		}
	}
}
