package release

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	pins "github.com/enginery/enginery/moddable-pins"
	"github.com/enginery/enginery/recipes"
)

// BuildEngine builds the engine of a pin that no version has, as an artifact without bundles, and writes its digests to out.
func (w *Workshop) BuildEngine(ctx context.Context, out io.Writer, asJSON bool, pin string) error {
	r, err := recipes.LoadHistoric(pin)
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

// EngineResult is what became of building and examining a historic engine.
type EngineResult struct {
	Pin           string `json:"pin"`
	Pinned        string `json:"pinned"`
	XS            string `json:"xs,omitempty"`
	Protocol      int    `json:"protocol,omitempty"`
	HostCallbacks int    `json:"hostCallbacks,omitempty"`
	Worker        string `json:"worker,omitempty"` // digest
	Fresh         string `json:"fresh,omitempty"`  // hash of a fresh heap's snapshot
	Outcome       string `json:"outcome"`          // "as expected", or what is wrong
	OK            bool   `json:"ok"`
}

// CheckEngines compiles every historic engine, runs the golden vector fresh on it and compares its description with what it shows, and writes
// a table to out. The error is for engines that are not as they must be, and for those whose sources cannot be had.
func (w *Workshop) CheckEngines(ctx context.Context, out io.Writer, asJSON bool) error {
	all, err := recipes.HistoricEngines()
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
		failures = append(failures, &UnavailableError{missing})
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
	versions, err := w.Build(ctx, r)
	if err != nil {
		return result, err
	}
	result.Worker = "sha256:" + versions[0].Outputs.Workers[0].Binary.Hash
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

func writeEngines(out io.Writer, results []EngineResult) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "PIN\tPINNED\tXS\tPROTOCOL\tCALLBACKS\tWORKER\tFRESH HEAP\tOUTCOME")
	for _, r := range results {
		if r.Worker == "" {
			fmt.Fprintf(w, "%s\t%s\t%s\t\t\t\t\t%s\n", r.Pin, r.Pinned, r.XS, r.Outcome)
			continue
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%d\t%.12s\t%.12s\t%s\n",
			r.Pin, r.Pinned, r.XS, r.Protocol, r.HostCallbacks, strings.TrimPrefix(r.Worker, "sha256:"), r.Fresh, r.Outcome)
	}
	return w.Flush()
}
