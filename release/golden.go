package release

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"

	"github.com/enginery/enginery/golden"
	"github.com/enginery/enginery/internal/progress"
	"github.com/enginery/enginery/recipes"
)

// GoldenError says that a version's workers do not behave as the recipe says.
type GoldenError struct {
	ID     string
	Missed []GoldenResult
}

func (e *GoldenError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s misses %d golden values:", e.ID, len(e.Missed))
	for _, r := range e.Missed {
		fmt.Fprintf(&b, "\n  %s %s, %s %s: expected %s, found %s", r.Platform, r.Goal, r.Vector, r.Label, r.Expected, r.Found)
	}
	return b.String()
}

// GoldenResult is the outcome of one observation of one worker.
type GoldenResult struct {
	Version  string `json:"version"`
	Platform string `json:"platform"`
	Goal     string `json:"goal"`
	golden.Result
}

// Golden runs the golden vectors of a version on its workers, on every platform and for every goal. The error is a *GoldenError if one is
// missed; the results are complete then.
func (w *Workshop) Golden(ctx context.Context, v *Version) ([]GoldenResult, error) {
	var all, missed []GoldenResult
	err := w.eachWorker(ctx, v, func(platform, goal string, e golden.Engine) error {
		results, err := golden.Check(ctx, e, v.Recipe, goal)
		for _, r := range results {
			result := GoldenResult{v.Recipe.ID, platform, goal, r}
			all = append(all, result)
			if !r.OK {
				missed = append(missed, result)
			}
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", v.Recipe.ID, err)
	}
	if len(missed) > 0 {
		return all, &GoldenError{v.Recipe.ID, missed}
	}
	return all, nil
}

// eachWorker calls f with every worker of a version, on disk.
func (w *Workshop) eachWorker(ctx context.Context, v *Version, f func(platform, goal string, e golden.Engine) error) error {
	dir, remove, err := w.Store.Scratch("golden")
	if err != nil {
		return err
	}
	defer remove()
	var lockdown, supervisor []byte
	if b := v.Recipe.Bundles; b != nil {
		if lockdown, err = w.Store.ReadAll(b.Lockdown.SHA256); err != nil {
			return err
		}
		if supervisor, err = w.Store.ReadAll(b.Supervisor.SHA256); err != nil {
			return err
		}
	}
	var source []byte
	if tree := v.Recipe.Pin.XsnapNative.Tree; w.Store.HasTree(tree) {
		if source, err = w.Store.ReadFile(tree, golden.WorkerSource); err != nil {
			return err
		}
	}
	for i, worker := range v.Outputs.Workers {
		emulator, err := golden.Emulator(worker.Platform)
		if err != nil {
			return err
		}
		path := filepath.Join(dir, fmt.Sprintf("xsnap-worker-%d", i))
		if err := w.Store.ExportFile(worker.Binary, path, 0o755); err != nil {
			return err
		}
		name := worker.Platform + " " + worker.Goal
		task := progress.Start(ctx, "golden vectors "+v.Recipe.ID+" "+name, 0)
		err = f(worker.Platform, worker.Goal, golden.Engine{Path: path, Emulator: emulator, Lockdown: lockdown, Supervisor: supervisor, Source: source})
		task.Done(err)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

// CheckGolden builds versions and runs their golden vectors, and writes the results to out, as text or JSON.
func (w *Workshop) CheckGolden(ctx context.Context, out io.Writer, asJSON bool, ids ...string) error {
	versions, failed := w.BuildAvailable(ctx, ids...)
	if len(versions) == 0 {
		return failed
	}
	return errors.Join(failed, w.reportGolden(ctx, out, asJSON, versions))
}

func (w *Workshop) reportGolden(ctx context.Context, out io.Writer, asJSON bool, versions []*Version) error {
	var failures []error
	var all []GoldenResult
	for _, v := range versions {
		results, err := w.Golden(ctx, v)
		if err != nil {
			failures = append(failures, err)
		}
		all = append(all, results...)
		if !asJSON && err == nil {
			fmt.Fprintf(out, "%s: %d golden values on %d workers, all as expected\n", v.Recipe.ID, len(results), len(v.Outputs.Workers))
		}
	}
	if asJSON {
		if err := writeJSON(out, all); err != nil {
			return err
		}
	}
	return errors.Join(failures...)
}

// Record builds a version, runs its golden vectors, and, if all hold, writes its manifest to dir.
func (w *Workshop) Record(ctx context.Context, out io.Writer, dir, id string) error {
	versions, err := w.BuildAvailable(ctx, id)
	if err != nil {
		return err
	}
	file, err := w.RecordBuilt(ctx, dir, versions[0])
	if err != nil {
		return err
	}
	fmt.Fprintln(out, "wrote", file)
	return nil
}

// RecordBuilt runs the golden vectors of a version that has been built and, if all hold, writes it to the layout and its manifest to dir. It returns the
// file's name.
func (w *Workshop) RecordBuilt(ctx context.Context, dir string, v *Version) (string, error) {
	if _, err := w.Golden(ctx, v); err != nil {
		return "", fmt.Errorf("not recorded: %w", err)
	}
	if err := w.write(ctx, v); err != nil {
		return "", err
	}
	return v.Manifest.Write(dir)
}

// ObserveGolden builds a version and writes what its workers show for every golden vector to out, as TOML for the recipe. Platforms must
// show the same.
func (w *Workshop) ObserveGolden(ctx context.Context, out io.Writer, id string) error {
	versions, err := w.BuildAvailable(ctx, id)
	if err != nil {
		return err
	}
	vectors := make(map[string]*recipes.Vector)
	for _, name := range recipes.Vectors() {
		if vectors[name], err = recipes.LoadVector(name); err != nil {
			return err
		}
	}
	return w.observeGolden(ctx, out, versions[0], vectors)
}

func (w *Workshop) observeGolden(ctx context.Context, out io.Writer, v *Version, vectors map[string]*recipes.Vector) error {
	seen := make(map[string]string) // goal -> TOML
	return w.eachWorker(ctx, v, func(platform, goal string, e golden.Engine) error {
		found, err := golden.Observe(ctx, e, v.Recipe, vectors)
		if err != nil {
			return err
		}
		text := golden.TOML(goal, found)
		if first, ok := seen[goal]; !ok {
			seen[goal] = text
			_, err = io.WriteString(out, text)
		} else if first != text {
			err = fmt.Errorf("it shows something else than the first platform's:\n%s", text)
		}
		return err
	})
}
