// Package release makes versions: it fetches what a recipe names, compiles the engines, packs the artifact into an OCI layout,
// and compares it with the record of what it must be.
package release

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"runtime"
	"sync"

	"github.com/enginery/enginery/artifact"
	"github.com/enginery/enginery/build"
	"github.com/enginery/enginery/internal/cas"
	"github.com/enginery/enginery/manifests"
	pins "github.com/enginery/enginery/moddable-pins"
	"github.com/enginery/enginery/recipes"
	bundles "github.com/enginery/enginery/supervisor-bundles"
	"github.com/enginery/enginery/toolchain"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// Workshop is a place to build in.
type Workshop struct {
	Store         *cas.Store
	Layout        string // OCI layout that receives the artifacts, made if missing
	SourceMirror  string // folder of bare git repositories, or empty
	ToolchainFrom string // OCI layout or registry reference to take toolchain images from, or empty: through apt
	Jobs          int    // CPUs to use over all compilations; 0 means all of this machine's
}

// Version is a version that has been built.
type Version struct {
	Recipe   *recipes.Recipe
	Outputs  *build.Outputs
	Artifact *artifact.Artifact
	Manifest *manifests.Manifest // the digests of all of it
}

// Build builds versions, several at once, and writes their artifacts to the layout, but for those that are not as recorded: a tag of the
// layout never names what was not accepted. What was built before is not built again. A version
// whose sources, bundles or code fail does not keep the others from being built: they are returned with a *build.FailedError. One
// recipe alone gives its own error.
func (w *Workshop) Build(ctx context.Context, rs ...*recipes.Recipe) ([]*Version, error) {
	versions, failed, err := w.build(ctx, rs)
	if err != nil {
		return nil, err
	}
	return versions, failure(failed, len(rs))
}

// failure returns the error for what failed of the versions asked for, which is nil if nothing did.
func failure(failed map[string]error, asked int) error {
	if asked == 1 {
		for id, err := range failed {
			return fmt.Errorf("%s: %w", id, err)
		}
	}
	if len(failed) == 0 {
		return nil
	}
	return &build.FailedError{Versions: failed}
}

func (w *Workshop) build(ctx context.Context, rs []*recipes.Recipe) ([]*Version, map[string]error, error) {
	if err := w.prepare(); err != nil {
		return nil, nil, err
	}
	outputs, failed, err := w.compile(ctx, rs)
	if err != nil {
		return nil, nil, err
	}
	var versions []*Version
	for _, r := range rs {
		if failed[r.ID] != nil {
			continue
		}
		a, err := artifact.Pack(ctx, w.Store, r, outputs[r.ID])
		if err != nil {
			return nil, nil, fmt.Errorf("packing %s: %w", r.ID, err)
		}
		m, err := manifests.Of(a)
		if err != nil {
			return nil, nil, fmt.Errorf("describing %s: %w", r.ID, err)
		}
		v := &Version{Recipe: r, Outputs: outputs[r.ID], Artifact: a, Manifest: m}
		if err := v.Check(); err == nil || errors.Is(err, manifests.ErrNotRecorded) {
			if err := w.write(ctx, v); err != nil {
				return nil, nil, err
			}
		}
		versions = append(versions, v)
	}
	return versions, failed, nil
}

// prepare makes the layout, before anything is done that would be in vain without it.
func (w *Workshop) prepare() error {
	err := os.MkdirAll(w.Layout, 0o755)
	if err == nil {
		err = unix.Access(w.Layout, unix.W_OK)
	}
	if err != nil {
		return fmt.Errorf("the layout %s cannot be written: %w; choose another folder with --layout or ENGINERY_LAYOUT", w.Layout, err)
	}
	return nil
}

func (w *Workshop) write(ctx context.Context, v *Version) error {
	if err := v.Artifact.WriteLayout(ctx, w.Layout); err != nil {
		return fmt.Errorf("writing %s to the layout %s: %w", v.Recipe.ID, w.Layout, err)
	}
	return nil
}

// compile returns the workers of versions whose bundles are in the store then, and what failed of the others.
func (w *Workshop) compile(ctx context.Context, rs []*recipes.Recipe) (outputs map[string]*build.Outputs, failed map[string]error, err error) {
	n := w.Jobs
	if n == 0 {
		n = runtime.NumCPU()
	}
	jobs, err := build.NewJobs(n)
	if err != nil {
		return nil, nil, err
	}
	defer jobs.Close()
	executor := &build.Local{Store: w.Store, Jobs: jobs, Toolchain: w.toolchains()}
	sources := w.Sources()
	fetch := func(ctx context.Context, r *recipes.Recipe) error { return sources.Fetch(ctx, r.Pin) }

	g, gctx := errgroup.WithContext(ctx)
	var compiling *build.FailedError
	g.Go(func() (err error) {
		outputs, err = build.Engines(gctx, w.Store, executor, fetch, rs...)
		if errors.As(err, &compiling) {
			return nil
		}
		return err
	})
	failed = make(map[string]error)
	g.Go(func() error {
		for _, r := range rs {
			if r.Bundles == nil {
				continue
			}
			if err := bundles.Fetch(gctx, w.Store, r.Bundles); err != nil {
				failed[r.ID] = err
			}
			if gctx.Err() != nil {
				return gctx.Err()
			}
		}
		return nil
	})
	if err := g.Wait(); err != nil {
		return nil, nil, err
	}
	if compiling != nil {
		maps.Copy(failed, compiling.Versions)
	}
	return outputs, failed, nil
}

// toolchains returns a function that makes each toolchain's root file system ready once, however many actions ask for it.
func (w *Workshop) toolchains() func(context.Context, *toolchain.Toolchain) (string, error) {
	var mu sync.Mutex
	return func(ctx context.Context, tc *toolchain.Toolchain) (string, error) {
		mu.Lock()
		defer mu.Unlock()
		return toolchain.Ensure(ctx, w.Store, tc, toolchain.Options{From: w.ToolchainFrom, Jobs: w.Jobs})
	}
}

// DifferentError says that a version is not what the record says it must be.
type DifferentError struct {
	ID          string
	Differences []manifests.Difference
}

func (e *DifferentError) Error() string {
	msg := fmt.Sprintf("%s is not what manifests/%s.json records:", e.ID, e.ID)
	for _, d := range e.Differences {
		msg += "\n  " + d.String()
	}
	return msg + "\nif the recipe was changed on purpose, record the new digests with: go tool mage manifest:update " + e.ID
}

// Check compares a version with its record in the manifests. It returns a *DifferentError if they differ, and an error that is
// manifests.ErrNotRecorded if there is no record.
func (v *Version) Check() error {
	recorded, err := manifests.Load(v.Recipe.ID)
	if err != nil {
		return err
	}
	if d := manifests.Diff(recorded, v.Manifest); len(d) > 0 {
		return &DifferentError{ID: v.Recipe.ID, Differences: d}
	}
	return nil
}

// Sources returns what fetches pins for this workshop.
func (w *Workshop) Sources() *pins.Fetcher {
	return &pins.Fetcher{Store: w.Store, Mirror: w.SourceMirror}
}
