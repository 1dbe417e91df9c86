package release

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/enginery/enginery/build"
	"github.com/enginery/enginery/manifests"
	pins "github.com/enginery/enginery/moddable-pins"
	"github.com/enginery/enginery/recipes"
)

// NPM are the versions whose every input is an npm or Debian package, so that they can be built wherever those can be had.
var NPM = []string{"agoric-upgrade-16", "agoric-upgrade-17", "agoric-upgrade-18", "agoric-upgrade-22"}

// UnavailableError lists versions that could not be built because their sources could not be had; others were built.
type UnavailableError struct {
	Versions map[string]error
}

func (e *UnavailableError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d of the versions asked for could not be built here:", len(e.Versions))
	for _, id := range slices.Sorted(maps.Keys(e.Versions)) {
		fmt.Fprintf(&b, "\n%s: %v", id, e.Versions[id])
	}
	return b.String()
}

// Available loads recipes and fetches the sources of those that are not built yet. It returns those that can be built, and an
// *UnavailableError with the others; one recipe alone gives its own error.
func (w *Workshop) Available(ctx context.Context, ids ...string) ([]*recipes.Recipe, error) {
	var rs []*recipes.Recipe
	missing := make(map[string]error)
	for _, id := range ids {
		r, err := recipes.Load(id)
		if err != nil {
			return nil, err
		}
		built, err := build.Known(w.Store, r)
		if err != nil {
			return nil, err
		}
		if !built {
			err := w.Sources().Fetch(ctx, r.Pin)
			var unavailable *pins.UnavailableError
			if errors.As(err, &unavailable) && len(ids) > 1 {
				missing[id] = err
				continue
			}
			if err != nil {
				return nil, fmt.Errorf("%s: %w", id, err)
			}
		}
		rs = append(rs, r)
	}
	if len(missing) > 0 {
		return rs, &UnavailableError{missing}
	}
	return rs, nil
}

// BuildAndCheck builds versions, compares each with its record, and writes the digests to out, as text or JSON. Versions whose sources
// cannot be had do not keep the others from being built; they are in the error.
func (w *Workshop) BuildAndCheck(ctx context.Context, out io.Writer, asJSON bool, ids ...string) error {
	rs, missing := w.Available(ctx, ids...)
	if len(rs) == 0 {
		return missing
	}
	versions, err := w.Build(ctx, rs...)
	if err != nil {
		return err
	}
	failures := []error{missing}
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
		fmt.Fprintf(w, "  NOT as recorded in manifests/%s.json\n", m.Version)
	}
	return w.Flush()
}
