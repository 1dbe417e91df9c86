package toolchain

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/enginery/enginery/internal/cas"
	"github.com/enginery/enginery/internal/progress"
	"github.com/google/renameio/v2"
	"github.com/opencontainers/go-digest"
)

// Lock resolves spec anew with what the suite serves now, and returns the toolchain that this gives.
func Lock(ctx context.Context, store *cas.Store, spec *Spec, opts Options) (*Toolchain, error) {
	t := &Toolchain{Spec: *spec}
	if err := t.lock(ctx, store, opts); err != nil {
		return nil, fmt.Errorf("locking toolchain %s: %w", spec.Name, err)
	}
	return t, nil
}

func (t *Toolchain) lock(ctx context.Context, store *cas.Store, opts Options) error {
	scratch, remove, err := store.Scratch("lock")
	if err != nil {
		return err
	}
	defer remove()
	state, root := filepath.Join(scratch, "apt"), filepath.Join(scratch, "root")
	for _, dir := range []string{state, root} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
	}
	a, err := newApt(ctx, state, &t.Spec)
	if err != nil {
		return err
	}
	task := progress.Start(ctx, "apt: resolve toolchain "+t.Name, 0)
	t.Packages, err = a.resolve(ctx)
	task.Done(err)
	if err != nil {
		return err
	}
	missing, err := missingPackages(ctx, store, t.Packages)
	if err != nil {
		return err
	}
	if len(missing) > 0 {
		if err := a.fetch(ctx, store, missing); err != nil {
			return err
		}
	}
	if err := unpackPackages(ctx, store, &t.Spec, t.Packages, root, opts.jobs()); err != nil {
		return err
	}
	if t.Root, err = cas.HashTree(root); err != nil {
		return err
	}
	img, err := t.image(root)
	if err != nil {
		return err
	}
	h, err := img.Digest()
	if err != nil {
		return err
	}
	t.Image = digest.Digest(h.String())
	return ctx.Err()
}

// WriteLock writes NAME.lock to dir, the folder of NAME.toml.
func (t *Toolchain) WriteLock(dir string) error {
	file := filepath.Join(dir, t.Name+".lock")
	if err := renameio.WriteFile(file, t.LockFile(), 0o644, renameio.WithStaticPermissions(0o644)); err != nil {
		return fmt.Errorf("writing the lock of toolchain %s: %w", t.Name, err)
	}
	return nil
}
