package release

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/enginery/enginery/build"
	"github.com/enginery/enginery/internal/exit"
	pins "github.com/enginery/enginery/moddable-pins"
	"github.com/enginery/enginery/recipes"
)

// BuildEngine builds the engine of a pin that no version has, as an artifact without bundles, and writes its digests to out.
func (w *Workshop) BuildEngine(ctx context.Context, out io.Writer, asJSON bool, pin string) error {
	r, err := recipes.LoadHistoric(pin)
	var unknown *recipes.UnknownError
	if errors.As(err, &unknown) && slices.Contains(pins.Names(), pin) {
		return w.noEngine(ctx, pin)
	}
	if err != nil {
		return err
	}
	versions, err := w.Build(ctx, r)
	if err != nil {
		return err
	}
	if asJSON {
		return writeJSON(out, versions[0].Manifest)
	}
	return writeText(out, versions[0].Manifest, nil)
}

// noEngine says why a pin is no historic engine: a version has it, its sources cannot be had, or nobody has described it.
func (w *Workshop) noEngine(ctx context.Context, pin string) error {
	var versions []string
	for _, id := range recipes.IDs() {
		r, err := recipes.Load(id)
		if err != nil {
			return err
		}
		if r.Pin.Name == pin {
			versions = append(versions, id)
		}
	}
	if len(versions) > 0 {
		return &exit.Error{Err: fmt.Errorf("pin %s is the engine of %s; build one of these, e.g. with: go tool mage build:version %s",
			pin, strings.Join(versions, ", "), versions[0]), Code: exit.Usage}
	}
	p, err := pins.Load(pin)
	if err != nil {
		return err
	}
	if err := w.Sources().Fetch(ctx, p); err != nil {
		return err
	}
	return fmt.Errorf("the sources of pin %s can be had, but no recipe has it: describe the engine in recipes/historic/engines.toml", pin)
}

// EngineResult is what became of building and examining a historic engine.
type EngineResult struct {
	Pin           string            `json:"pin"`
	Pinned        string            `json:"pinned"`
	XS            string            `json:"xs,omitempty"`
	Protocol      int               `json:"protocol,omitempty"`
	HostCallbacks int               `json:"hostCallbacks,omitempty"`
	Header        string            `json:"header,omitempty"`  // version and signature in its heap snapshots
	Fresh         string            `json:"fresh,omitempty"`   // hash of a fresh heap's snapshot
	Workers       map[string]string `json:"workers,omitempty"` // platform -> digest
	Outcome       string            `json:"outcome"`           // "as expected", or what is wrong
	OK            bool              `json:"ok"`
}

// CheckEngines compiles the historic engines with the given pins, or all, runs the golden vector fresh on them, compares their descriptions
// with what they and their sources show, and writes a table to out. The error is for engines that are not as they must be, and for those
// whose sources cannot be had.
func (w *Workshop) CheckEngines(ctx context.Context, out io.Writer, asJSON bool, only ...string) error {
	all, err := recipes.HistoricEngines(only...)
	if err != nil {
		return err
	}
	missing := make(map[string]error)
	var failures []error
	var results []EngineResult
	for _, h := range all {
		result, err := w.checkEngine(ctx, h)
		var unavailable *pins.UnavailableError
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.As(err, &unavailable):
			missing[h.Pin] = err
			result.Outcome = "its sources cannot be had"
		case err != nil:
			failures = append(failures, err)
			result.Outcome = "not as expected"
		}
		results = append(results, result)
	}
	if asJSON {
		err = writeJSON(out, results)
	} else {
		err = writeEngines(out, results)
	}
	if len(missing) > 0 {
		failures = append(failures, &build.FailedError{Versions: missing})
	}
	return errors.Join(append(failures, err)...)
}

func (w *Workshop) checkEngine(ctx context.Context, h recipes.Historic) (EngineResult, error) {
	result := EngineResult{Pin: h.Pin, Pinned: h.Pinned}
	if h.Cause != "" {
		result.Outcome, result.OK = "does not compile: "+h.Cause, true
		return result, nil
	}
	r, err := recipes.LoadHistoric(h.Pin)
	if err != nil {
		return result, err
	}
	result.XS, result.Protocol, result.HostCallbacks = r.Engine.XSVersion, r.Engine.Protocol, r.Engine.HostCallbacks
	result.Header = r.Engine.SnapshotVersion + ", " + r.Engine.SnapshotSignature
	versions, err := w.Build(ctx, r)
	if err != nil {
		return result, err
	}
	result.Workers = make(map[string]string)
	for _, worker := range versions[0].Outputs.Workers {
		result.Workers[worker.Platform] = "sha256:" + worker.Binary.Hash
	}
	if err := w.Sources().Fetch(ctx, r.Pin); err != nil { // the engine may have been built before, and the sources be gone
		return result, err
	}
	results, err := w.Golden(ctx, versions[0])
	for _, g := range results {
		if g.Vector == "fresh" {
			hash, _, _ := strings.Cut(strings.TrimPrefix(g.Found, "snapshot "), ",")
			result.Fresh = hash
		}
	}
	if err != nil {
		return result, err
	}
	result.Outcome, result.OK = "as expected", true
	return result, nil
}

// writeEngines writes a table in Markdown.
func writeEngines(out io.Writer, results []EngineResult) error {
	w := tabwriter.NewWriter(out, 0, 0, 1, ' ', 0)
	row := func(cells ...string) { fmt.Fprintf(w, "| %s\t|\n", strings.Join(cells, "\t| ")) }
	cut := func(digest string) string { return fmt.Sprintf("%.12s", strings.TrimPrefix(digest, "sha256:")) }
	number := func(n int) string { return strings.TrimPrefix(strconv.Itoa(n), "0") }
	row("pin", "pinned", "XS", "protocol", "callbacks", "snapshots", "fresh heap", "worker amd64", "worker arm64", "outcome")
	row(slices.Repeat([]string{"---"}, 10)...)
	for _, r := range results {
		row(r.Pin, r.Pinned, r.XS, number(r.Protocol), number(r.HostCallbacks), r.Header, cut(r.Fresh),
			cut(r.Workers["linux/amd64"]), cut(r.Workers["linux/arm64"]), r.Outcome)
	}
	return w.Flush()
}
