package reproduce

import (
	"context"

	"github.com/enginery/enginery/internal/cas"
	"github.com/enginery/enginery/recipes"
)

// seed copies the inputs of recipes from one store to another, and nothing that was made of them.
func seed(ctx context.Context, from, to *cas.Store, rs []*recipes.Recipe) error {
	for _, r := range rs {
		for _, tree := range []cas.Digest{r.Pin.Moddable.Tree, r.Pin.XsnapNative.Tree} {
			if err := copyTree(ctx, from, to, tree); err != nil {
				return err
			}
		}
		if r.Bundles != nil {
			for _, d := range []cas.Digest{r.Bundles.Lockdown.SHA256, r.Bundles.Supervisor.SHA256} {
				if err := copyBlob(ctx, from, to, d); err != nil {
					return err
				}
			}
		}
		for _, t := range r.Targets {
			for _, p := range t.Toolchain.Packages {
				// Packages are not there if the toolchain came as an image: the second build takes the image then, too.
				if !from.Has(p.Digest()) {
					continue
				}
				if err := copyBlob(ctx, from, to, p.Digest()); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func copyTree(ctx context.Context, from, to *cas.Store, root cas.Digest) error {
	dir, remove, err := to.Scratch("tree")
	if err != nil {
		return err
	}
	defer remove()
	if err := from.Checkout(ctx, root, dir+"/tree"); err != nil {
		return err
	}
	_, err = to.PutTree(ctx, dir+"/tree")
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
