package reproduce

import (
	"context"
	"fmt"
	"path/filepath"

	"github.com/enginery/enginery/artifact"
	"github.com/enginery/enginery/internal/cas"
	"github.com/enginery/enginery/internal/progress"
	"github.com/enginery/enginery/recipes"
	"github.com/enginery/enginery/release"
	bundles "github.com/enginery/enginery/supervisor-bundles"
	"github.com/enginery/enginery/toolchain"
)

// seed copies to a store what recipes are built from, and nothing that was made of it: sources, bundles, and the packages of toolchains.
// Where there are no packages, since toolchains were taken from images, it writes the images to the OCI layout images, and returns that.
func seed(ctx context.Context, w *release.Workshop, to *cas.Store, images string, rs []*recipes.Recipe) (toolchainFrom string, err error) {
	task := progress.Start(ctx, "copy sources for the second build", 0)
	defer func() { task.Done(err) }()
	toolchains := make(map[string]*toolchain.Toolchain)
	packages := true
	for _, r := range rs {
		if err := w.Sources().Fetch(ctx, r.Pin); err != nil { // a version that is built may have lost its sources
			return "", err
		}
		for _, tree := range []cas.Digest{r.Pin.Moddable.Tree, r.Pin.XsnapNative.Tree} {
			if err := copyTree(ctx, w.Store, to, tree); err != nil {
				return "", err
			}
		}
		if r.Bundles != nil {
			if err := bundles.Fetch(ctx, w.Store, r.Bundles); err != nil {
				return "", err
			}
			for _, d := range []cas.Digest{r.Bundles.Lockdown.SHA256, r.Bundles.Supervisor.SHA256} {
				if err := copyBlob(ctx, w.Store, to, d); err != nil {
					return "", err
				}
			}
		}
		for _, t := range r.Targets {
			toolchains[t.Toolchain.Name] = t.Toolchain
			for _, p := range t.Toolchain.Packages {
				packages = packages && w.Store.Has(p.Digest())
			}
		}
	}
	for _, t := range toolchains {
		if !packages {
			img, err := toolchain.Image(ctx, w.Store, t, toolchain.Options{From: w.ToolchainFrom, Jobs: w.Jobs})
			if err != nil {
				return "", err
			}
			if err := artifact.AddImage(ctx, images, t.Name, img); err != nil {
				return "", err
			}
			toolchainFrom = images
			continue
		}
		for _, p := range t.Packages {
			if err := copyBlob(ctx, w.Store, to, p.Digest()); err != nil {
				return "", err
			}
		}
	}
	return toolchainFrom, nil
}

// copyTree writes a tree out as files and takes it in again, so that its digest is computed anew.
func copyTree(ctx context.Context, from, to *cas.Store, root cas.Digest) error {
	if to.HasTree(root) {
		return nil
	}
	dir, remove, err := to.Scratch("tree")
	if err != nil {
		return err
	}
	defer remove()
	dir = filepath.Join(dir, "tree")
	if err := from.Checkout(ctx, root, dir); err != nil {
		return err
	}
	found, err := to.PutTree(ctx, dir)
	if err == nil && found != root {
		err = fmt.Errorf("copying a tree: expected %s, found %s", root, found)
	}
	return err
}

func copyBlob(ctx context.Context, from, to *cas.Store, d cas.Digest) error {
	if to.Has(d) {
		return nil
	}
	r, err := from.Open(d)
	if err != nil {
		return err
	}
	defer r.Close()
	return to.PutExpected(ctx, r, d)
}
