package pins

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sync/semaphore"

	"github.com/enginery/enginery/internal/cas"
	"github.com/enginery/enginery/internal/client"
	"github.com/enginery/enginery/internal/npm"
	"github.com/enginery/enginery/internal/progress"
)

// MirrorEnv is the environment variable that names a mirror for those who give none otherwise.
const MirrorEnv = "ENGINERY_SOURCE_MIRROR"

// Fetcher gets source trees.
type Fetcher struct {
	Store *cas.Store

	// Mirror is a folder of bare repositories, OWNER/NAME.git or NAME.git (.git may be absent), that are asked for
	// the commits of git sources OWNER/NAME before anything else. It may be empty.
	Mirror string
}

// UnavailableError says that none of a component's sources could be reached.
type UnavailableError struct {
	Component string // "moddable" or "xsnap-native"
	Commit    string
	Tried     []Attempt

	repository string // of the first git source: OWNER/NAME, and its URL
	url        string
}

// Attempt is a source that was tried, and why it did not help.
type Attempt struct {
	Source string
	Err    error
}

func (e *UnavailableError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "the sources of %s %s cannot be had:", e.Component, e.Commit)
	for _, t := range e.Tried {
		fmt.Fprintf(&b, "\n  %s: %v", t.Source, t.Err)
	}
	if e.url != "" {
		fmt.Fprintf(&b, "\nA copy of the repository that has the commit will do: give the folder DIR that has it as %s.git,\n"+
			"by --source-mirror DIR or %s=DIR (git clone --mirror %s DIR/%s.git makes one),\n"+
			"or let git find it elsewhere: git config --global url.BASE.insteadOf %s", e.repository, MirrorEnv, e.url, e.repository, e.url)
	}
	return b.String()
}

// TreeError says that a source was reached and gave another tree than the recorded one.
type TreeError struct {
	Component, Commit string
	Source            string
	Want, Found       cas.Digest
}

func (e *TreeError) Error() string {
	return fmt.Sprintf("%s gave other sources for %s %s than the pin records: expected tree %s, found %s; they were not used",
		e.Source, e.Component, e.Commit, e.Want, e.Found)
}

// Fetch puts both trees of p into the store, unless they are there. It sets the Tree of a component that is unrecorded, and
// logs how to record it.
func (f *Fetcher) Fetch(ctx context.Context, p *Pin) error {
	for _, c := range []*Component{&p.Moddable, &p.XsnapNative} {
		if err := f.fetch(ctx, c); err != nil {
			return fmt.Errorf("pin %s: %w", p.Name, err)
		}
		if !c.Recorded {
			progress.Logf(ctx, "%s %s has the tree %s, which pin %s does not record yet: go tool mage pins:add %s %s %s",
				c.Name, c.Commit, c.Tree, p.Name, p.Name, p.Moddable.Commit, p.XsnapNative.Commit)
		}
	}
	return nil
}

var fetching sync.Map // commit -> *semaphore.Weighted: one fetch of a commit at a time

func (f *Fetcher) fetch(ctx context.Context, c *Component) error {
	turn, _ := fetching.LoadOrStore(c.Commit, semaphore.NewWeighted(1))
	if err := turn.(*semaphore.Weighted).Acquire(ctx, 1); err != nil {
		return err
	}
	defer turn.(*semaphore.Weighted).Release(1)
	if c.Recorded && f.Store.HasTree(c.Tree) {
		return nil
	}
	places, err := f.places(c)
	if err != nil {
		return err
	}
	failed := &UnavailableError{Component: c.Name, Commit: c.Commit}
	if f.Mirror != "" && !slices.ContainsFunc(places, func(pl place) bool { return pl.local != "" }) {
		failed.Tried = append(failed.Tried, Attempt{"mirror " + f.Mirror, errors.New("it has no such repository")})
	}
	for _, pl := range places {
		if pl.source.Git != "" && failed.url == "" {
			failed.url, failed.repository = pl.source.Git, pl.source.repository()
		}
		found, err := f.obtain(ctx, c, pl)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			if !unavailable(err) {
				return err
			}
			failed.Tried = append(failed.Tried, Attempt{pl.String(), err})
			continue
		}
		c.Tree = found
		return nil
	}
	return failed
}

// place is a source, or the local copy of one.
type place struct {
	source Source
	local  string // a repository below the mirror; empty for the source itself
}

func (p place) String() string {
	if p.local != "" {
		return "mirror " + p.local
	}
	return p.source.String()
}

// places lists where to look for c, in order.
func (f *Fetcher) places(c *Component) ([]place, error) {
	var places []place
	if f.Mirror != "" {
		mirror, err := filepath.Abs(f.Mirror)
		if err == nil {
			_, err = os.ReadDir(mirror)
		}
		if err != nil {
			return nil, fmt.Errorf("looking into the source mirror (--source-mirror or %s): %w", MirrorEnv, err)
		}
		seen := make(map[string]bool)
		for _, s := range c.Sources {
			if s.Git == "" {
				continue
			}
			if dir, ok := mirrored(mirror, s.repository()); ok && !seen[dir] {
				seen[dir] = true
				places = append(places, place{s, dir})
			}
		}
	}
	for _, s := range c.Sources {
		places = append(places, place{source: s})
	}
	return places, nil
}

// obtain gets c from one place, checks it, puts it into the store and returns the digest of its tree.
func (f *Fetcher) obtain(ctx context.Context, c *Component, pl place) (found cas.Digest, err error) {
	dir, remove, err := f.Store.Scratch("source")
	if err != nil {
		return cas.Digest{}, err
	}
	defer remove()
	tree := filepath.Join(dir, "tree")
	if err := os.Mkdir(tree, 0o700); err != nil {
		return cas.Digest{}, fmt.Errorf("preparing to fetch %s: %w", c.Name, err)
	}
	if pl.source.Git == "" {
		err = f.fromNPM(ctx, c, pl.source, tree)
	} else {
		err = f.fromGit(ctx, c, pl, filepath.Join(dir, "git"), tree)
	}
	if err != nil {
		return cas.Digest{}, err
	}
	if found, err = cas.HashTree(tree); err != nil {
		return cas.Digest{}, err
	}
	if c.Recorded && found != c.Tree {
		return cas.Digest{}, &TreeError{c.Name, c.Commit, pl.String(), c.Tree, found}
	}
	stored, err := f.Store.PutTree(ctx, tree)
	if err != nil {
		return cas.Digest{}, err
	}
	if stored != found {
		return cas.Digest{}, fmt.Errorf("%s changed while it was being stored: %s, then %s", tree, found, stored)
	}
	return found, nil
}

// unavailable reports whether err means that a place could not give a tree, as opposed to one that gave something else, or a
// failure here.
func unavailable(err error) bool {
	var npmError *npm.UnavailableError
	var missing *client.MissingError
	var quiet *client.QuietError
	var exit *client.ExitError
	return errors.As(err, &npmError) || errors.As(err, &missing) || errors.As(err, &quiet) || errors.As(err, &exit)
}

func (f *Fetcher) fromNPM(ctx context.Context, c *Component, s Source, tree string) error {
	tgz, err := npm.Fetch(ctx, f.Store, s.Package)
	if err != nil {
		return err
	}
	return npm.Files(tgz, func(name string, executable bool, content io.Reader) error {
		if s.Path != "." {
			var ok bool
			if name, ok = strings.CutPrefix(name, s.Path+"/"); !ok {
				return nil
			}
		}
		if !c.has(name) {
			return nil
		}
		return writeFile(tree, name, executable, content)
	})
}

func (f *Fetcher) fromGit(ctx context.Context, c *Component, pl place, dir, tree string) (err error) {
	task := progress.Start(ctx, fmt.Sprintf("fetch %s %.8s from %s", c.Name, c.Commit, pl), 0)
	defer func() { task.Done(err) }()
	if err := os.Mkdir(dir, 0o700); err != nil {
		return fmt.Errorf("preparing to fetch %s: %w", c.Name, err)
	}
	from := pl.local
	if from == "" {
		from = pl.source.Git
	}
	g, err := newGit(ctx, dir, from)
	if err != nil {
		return err
	}
	if err := g.fetch(ctx, c.Commit); err != nil {
		return err
	}
	files, err := g.files(ctx, c.Commit, c.has)
	if err != nil {
		return err
	}
	return g.contents(ctx, files, func(file gitFile, content io.Reader) error {
		return writeFile(tree, file.name, file.executable, content)
	})
}

// writeFile writes a file of a tree. name is a valid path, as npm.Files and git.files make sure.
func writeFile(tree, name string, executable bool, content io.Reader) error {
	b, err := io.ReadAll(content)
	if err != nil {
		return fmt.Errorf("reading %s: %w", name, err)
	}
	file := filepath.Join(tree, filepath.FromSlash(name))
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return fmt.Errorf("writing a source tree: %w", err)
	}
	mode := os.FileMode(0o600)
	if executable {
		mode = 0o700
	}
	if err := os.WriteFile(file, b, mode); err != nil {
		return fmt.Errorf("writing a source tree: %w", err)
	}
	if err := os.Chmod(file, mode); err != nil { // whatever the umask
		return fmt.Errorf("writing a source tree: %w", err)
	}
	return nil
}
