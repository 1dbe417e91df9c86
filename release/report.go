package release

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"text/tabwriter"

	"github.com/enginery/enginery/build"
	"github.com/enginery/enginery/manifests"
	"github.com/enginery/enginery/recipes"
)

// BuildAvailable loads recipes and builds them, as Build does. Fetching the sources comes first: they may be out of reach.
func (w *Workshop) BuildAvailable(ctx context.Context, ids ...string) ([]*Version, error) {
	rs := make([]*recipes.Recipe, len(ids))
	for i, id := range ids {
		var err error
		if rs[i], err = recipes.Load(id); err != nil {
			return nil, err
		}
	}
	failed := make(map[string]error)
	for _, r := range rs {
		built, err := build.Known(w.Store, r)
		if err == nil && !built {
			err = w.Sources().Fetch(ctx, r.Pin)
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if err != nil {
			failed[r.ID] = err
		}
	}
	rs = slices.DeleteFunc(rs, func(r *recipes.Recipe) bool { return failed[r.ID] != nil })
	if len(rs) == 0 {
		return nil, failure(failed, len(ids))
	}
	versions, more, err := w.build(ctx, rs)
	if err != nil {
		return nil, err
	}
	maps.Copy(failed, more)
	return versions, failure(failed, len(ids))
}

// BuildAndCheck builds versions, compares each with its record, and writes the digests to out, as text or JSON. Versions that cannot be
// built do not keep the others from it; they are in the error.
func (w *Workshop) BuildAndCheck(ctx context.Context, out io.Writer, asJSON bool, ids ...string) error {
	versions, failed := w.BuildAvailable(ctx, ids...)
	if len(versions) == 0 {
		return failed
	}
	failures := []error{failed}
	var all []*manifests.Manifest
	for _, v := range versions {
		all = append(all, v.Manifest)
		err := v.Check()
		if !asJSON {
			if werr := writeText(out, v.Manifest, err); werr != nil {
				return werr
			}
		}
		if err != nil && !errors.Is(err, manifests.ErrNotRecorded) {
			failures = append(failures, err)
		}
	}
	if asJSON {
		if err := writeJSON(out, all); err != nil {
			return err
		}
	}
	return errors.Join(failures...)
}

func writeJSON(out io.Writer, v any) error {
	e := json.NewEncoder(out)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(v)
}

// writeText writes a manifest for people, with the outcome of comparing it with the record.
func writeText(out io.Writer, m *manifests.Manifest, outcome error) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "%s\t\t%s\n", m.Version, m.Index)
	for _, name := range slices.Sorted(maps.Keys(m.Platforms)) {
		p := m.Platforms[name]
		fmt.Fprintf(w, "  %s\tmanifest\t%s\n", name, p.Manifest)
		for _, title := range slices.Sorted(maps.Keys(p.Files)) {
			fmt.Fprintf(w, "\t%s\t%s\n", title, p.Files[title])
		}
	}
	switch {
	case m.Bundles == nil:
		fmt.Fprintf(w, "  an engine alone: not recorded\n")
	case outcome == nil:
		fmt.Fprintf(w, "  same as recorded in manifests/%s.json\n", m.Version)
	case errors.Is(outcome, manifests.ErrNotRecorded):
		fmt.Fprintf(w, "  not recorded yet: go tool mage manifest:update %s\n", m.Version)
	default:
		fmt.Fprintf(w, "  NOT as recorded in manifests/%s.json, and not written to the layout\n", m.Version)
	}
	return w.Flush()
}
