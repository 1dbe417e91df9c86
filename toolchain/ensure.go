package toolchain

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os/exec"
	"runtime"
	"sync"

	"github.com/enginery/enginery/internal/cas"
	"golang.org/x/sync/errgroup"
)

// Options say how Ensure gets at a toolchain that is not there yet.
type Options struct {
	From string // OCI layout or registry repository to take the image from; empty: packages through apt
	Jobs int    // packages to unpack at once; 0: as many as there are CPUs
}

// Ensure returns the directory of the toolchain's root file system, which is made if it is missing and verified, every
// byte of it, if it is there. Damage, in it or in a package, is an error that names the file; the file is put aside, so that
// the next call makes or fetches it anew.
func Ensure(ctx context.Context, store *cas.Store, t *Toolchain, opts Options) (string, error) {
	err := store.VerifyRoot(t.Root)
	if err == nil {
		return store.Root(t.Root), nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("toolchain %s: %w", t.Name, err)
	}
	origin := "the packages in its lock"
	fill := func(dir string) error {
		return unpackPackages(ctx, store, &t.Spec, t.Packages, dir, opts.jobs())
	}
	if opts.From != "" {
		origin = "its image in " + opts.From
		fill = func(dir string) error { return unpackImage(ctx, t, opts.From, dir) }
	} else if err := fetch(ctx, store, t); err != nil {
		return "", fmt.Errorf("toolchain %s: %w", t.Name, err)
	}
	root, err := store.PutRoot(ctx, t.Root, fill)
	var mismatch *cas.MismatchError
	if errors.As(err, &mismatch) {
		return "", fmt.Errorf("toolchain %s: %s.lock has been changed: %s do not give the root file system that it names: %w",
			t.Name, t.Name, origin, err)
	} else if err != nil {
		return "", fmt.Errorf("toolchain %s: from %s: %w", t.Name, origin, err)
	}
	return root, nil
}

func (o Options) jobs() int {
	if o.Jobs > 0 {
		return o.Jobs
	}
	return runtime.GOMAXPROCS(0)
}

// fetching lets toolchains be fetched one after the other, as they share packages.
var fetching sync.Mutex

// fetch brings the toolchain's packages into the store. Those that are there are verified.
func fetch(ctx context.Context, store *cas.Store, t *Toolchain) error {
	fetching.Lock()
	defer fetching.Unlock()
	missing, err := missingPackages(ctx, store, t.Packages)
	if err != nil {
		return err
	}
	if _, err = exec.LookPath("dpkg-deb"); err != nil {
		err = fmt.Errorf("this machine cannot unpack Debian packages: %w", err)
	} else if len(missing) > 0 {
		err = fetchMissing(ctx, store, &t.Spec, missing)
	}
	if err != nil && ctx.Err() == nil {
		err = &UnavailableError{fmt.Errorf("%w\n(where apt cannot help, name an OCI layout or a registry repository that has the image %s: "+
			"--toolchain-from, ENGINERY_TOOLCHAIN_FROM)", err, t.Image)}
	}
	return err
}

// UnavailableError says why a toolchain's packages cannot be had.
type UnavailableError struct{ Err error }

func (e *UnavailableError) Error() string { return e.Err.Error() }
func (e *UnavailableError) Unwrap() error { return e.Err }

func fetchMissing(ctx context.Context, store *cas.Store, spec *Spec, packages []Package) error {
	scratch, remove, err := store.Scratch("apt")
	if err != nil {
		return err
	}
	defer remove()
	a, err := newApt(ctx, scratch, spec)
	if err != nil {
		return err
	}
	return a.fetch(ctx, store, packages)
}

// missingPackages returns the packages that are not in the store. The error names those that are damaged there.
func missingPackages(ctx context.Context, store *cas.Store, packages []Package) ([]Package, error) {
	found := make([]error, len(packages))
	var g errgroup.Group
	g.SetLimit(runtime.GOMAXPROCS(0))
	for i, p := range packages {
		g.Go(func() error {
			if found[i] = ctx.Err(); found[i] == nil {
				found[i] = store.Verify(p.Digest())
			}
			return nil
		})
	}
	g.Wait()
	var missing []Package
	var damaged []error
	for i, p := range packages {
		switch err := found[i]; {
		case errors.Is(err, fs.ErrNotExist):
			missing = append(missing, p)
		case err != nil:
			damaged = append(damaged, fmt.Errorf("package %s: %w", p, err))
		}
	}
	if len(damaged) > 0 {
		return nil, errors.Join(damaged...)
	}
	return missing, nil
}
