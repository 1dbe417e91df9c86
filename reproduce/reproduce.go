// Package reproduce builds versions again, in a deliberately different environment, compares every digest, and explains what
// differs.
package reproduce

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/enginery/enginery/artifact"
	"github.com/enginery/enginery/build"
	"github.com/enginery/enginery/internal/cas"
	"github.com/enginery/enginery/internal/progress"
	"github.com/enginery/enginery/manifests"
	"github.com/enginery/enginery/recipes"
	"github.com/enginery/enginery/release"
)

// Schema is the version of the report's JSON.
const Schema = 1

// Check builds recipes in w, if they are not built yet, and a second time elsewhere from nothing but sources, bundles and toolchain
// packages, and compares all digests.
func Check(ctx context.Context, w *release.Workshop, rs ...*recipes.Recipe) (*Report, error) {
	first, err := w.Build(ctx, rs...)
	if err != nil {
		return nil, fmt.Errorf("first build: %w", err)
	}
	second, store, remove, err := elsewhere(ctx, w, rs)
	if err != nil {
		return nil, err
	}
	defer remove()
	jobs := w.Jobs
	if jobs == 0 {
		jobs = runtime.NumCPU()
	}
	report := &Report{Schema: Schema, First: observe(w.Store.Dir(), jobs), Second: second.Environment}
	if len(second.Versions) != len(first) {
		return nil, fmt.Errorf("the second build made %d versions, expected %d", len(second.Versions), len(first))
	}
	for i, v := range first {
		rows, err := compareVersion(ctx, v, w.Store, second.Versions[i], store)
		if err != nil {
			return nil, fmt.Errorf("comparing %s: %w", v.Recipe.ID, err)
		}
		report.Rows = append(report.Rows, rows...)
	}
	return report, nil
}

// compareVersion compares what two builds of a version made, platform by platform.
func compareVersion(ctx context.Context, first *release.Version, firstStore *cas.Store, second built, secondStore *cas.Store) ([]Row, error) {
	var rows []Row
	recorded := recordedAs(first)
	for _, t := range first.Recipe.Targets {
		a, b := first.Manifest.Platforms[t.Platform], second.Manifest.Platforms[t.Platform]
		if b == nil {
			return nil, fmt.Errorf("the second build has no %s", t.Platform)
		}
		row := Row{Version: first.Recipe.ID, Platform: t.Platform, Recorded: recorded}
		for _, goal := range first.Recipe.Goals {
			x, _ := first.Outputs.Worker(t.Platform, goal)
			y, ok := second.Outputs.Worker(t.Platform, goal)
			if !ok {
				return nil, fmt.Errorf("the second build has no %s worker for %s", goal, t.Platform)
			}
			if x.Action != y.Action {
				return nil, fmt.Errorf("the second build ran another action for %s %s: %s, not %s", t.Platform, goal, y.Action, x.Action)
			}
			c := Compared{Name: title(goal), First: "sha256:" + x.Binary.Hash, Second: "sha256:" + y.Binary.Hash}
			if x.Binary != y.Binary {
				if err := explain(ctx, &c, x, firstStore, y, secondStore); err != nil {
					return nil, err
				}
			}
			row.Digests = append(row.Digests, c)
		}
		for _, name := range both(a.Files, b.Files) {
			if name != artifact.Worker && name != artifact.DebugWorker {
				row.Digests = append(row.Digests, Compared{Name: name, First: a.Files[name], Second: b.Files[name]})
			}
		}
		differs := func(c Compared) bool { return c.First != c.Second }
		consequence := slices.ContainsFunc(row.Digests, differs)
		row.Digests = append(row.Digests,
			Compared{Name: "config", First: a.Config, Second: b.Config},
			Compared{Name: "manifest", First: a.Manifest, Second: b.Manifest, Consequence: consequence && a.Manifest != b.Manifest},
			Compared{Name: "index", First: first.Manifest.Index, Second: second.Manifest.Index, Consequence: first.Manifest.Index != second.Manifest.Index},
		)
		for _, predicate := range both(first.Manifest.Statements, second.Manifest.Statements) {
			x, y := first.Manifest.Statements[predicate], second.Manifest.Statements[predicate]
			row.Digests = append(row.Digests, Compared{Name: predicate, First: x, Second: y, Consequence: x != y})
		}
		row.Identical = !slices.ContainsFunc(row.Digests, differs)
		rows = append(rows, row)
	}
	return rows, nil
}

func title(goal string) string {
	if goal == recipes.Debug {
		return artifact.DebugWorker
	}
	return artifact.Worker
}

func recordedAs(v *release.Version) string {
	err := v.Check()
	switch {
	case err == nil:
		return "same"
	case errors.Is(err, manifests.ErrNotRecorded):
		return "none"
	}
	return "different"
}

func both(a, b map[string]string) []string {
	var keys []string
	for k := range a {
		keys = append(keys, k)
	}
	for k := range b {
		if _, ok := a[k]; !ok {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	return keys
}

// explain says where two builds of a worker differ, by our own means and, where it is installed, by diffoscope's.
func explain(ctx context.Context, c *Compared, x build.Worker, xs *cas.Store, y build.Worker, ys *cas.Store) error {
	first, err := xs.ReadAll(x.Binary)
	if err != nil {
		return err
	}
	second, err := ys.ReadAll(y.Binary)
	if err != nil {
		return err
	}
	c.Causes = Explain(first, second)
	if _, err := exec.LookPath("diffoscope"); err != nil {
		return nil
	}
	task := progress.Start(ctx, "diffoscope on two builds of "+c.Name, 0)
	// It exits with 1 for files that differ, and says so on its standard output.
	out, err := exec.CommandContext(ctx, "diffoscope", "--text=-", "--max-report-size=200000", xs.Path(x.Binary), ys.Path(y.Binary)).Output()
	task.Done(nil)
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return fmt.Errorf("running diffoscope: %w", err)
	}
	c.Diffoscope = string(out)
	return ctx.Err()
}

// DifferentError says that two builds differ.
type DifferentError struct {
	Report *Report
	Page   string // where the report is
}

func (e *DifferentError) Error() string {
	var b strings.Builder
	b.WriteString("two builds in different environments are not the same:")
	for _, row := range e.Report.Rows {
		for _, c := range row.Digests {
			if c.First == c.Second || c.Consequence {
				continue
			}
			fmt.Fprintf(&b, "\n  %s %s %s: %s against %s", row.Version, row.Platform, c.Name, c.First, c.Second)
			for i, cause := range c.Causes {
				if i == 5 {
					fmt.Fprintf(&b, "\n    and %d more sections", len(c.Causes)-i)
					break
				}
				fmt.Fprintf(&b, "\n    %v", cause)
			}
		}
	}
	return b.String() + "\nall of it is in " + e.Page
}

// ExitStatus is that of something that was made and is not what it must be.
func (e *DifferentError) ExitStatus() int { return release.StatusDifferent }

// CheckAndReport checks versions, writes reproducible.json and reproducible.html to dir, and a summary, or the JSON, to out. The error is a
// *DifferentError if two builds differ.
func CheckAndReport(ctx context.Context, w *release.Workshop, out io.Writer, asJSON bool, dir string, ids ...string) error {
	rs, missing := w.Available(ctx, ids...)
	if len(rs) == 0 {
		return missing
	}
	report, err := Check(ctx, w, rs...)
	if err != nil {
		return err
	}
	page, err := report.write(dir)
	if err != nil {
		return err
	}
	if asJSON {
		if err := report.WriteJSON(out); err != nil {
			return err
		}
	}
	if !report.Identical() {
		return errors.Join(missing, &DifferentError{report, page})
	}
	if !asJSON {
		for _, row := range report.Rows {
			fmt.Fprintf(out, "%s %s: identical, all %d digests (the record: %s)\n", row.Version, row.Platform, len(row.Digests), row.Recorded)
		}
		fmt.Fprintln(out, "wrote", page)
	}
	return missing
}

func (r *Report) write(dir string) (page string, err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("writing the report: %w", err)
	}
	page = filepath.Join(dir, "reproducible.html")
	for path, write := range map[string]func(io.Writer) error{page: r.WriteHTML, filepath.Join(dir, "reproducible.json"): r.WriteJSON} {
		f, err := os.CreateTemp(dir, ".report-")
		if err != nil {
			return "", fmt.Errorf("writing the report: %w", err)
		}
		err = errors.Join(write(f), f.Chmod(0o644), f.Close())
		if err == nil {
			err = os.Rename(f.Name(), path)
		}
		if err != nil {
			os.Remove(f.Name())
			return "", fmt.Errorf("writing the report: %w", err)
		}
	}
	return page, nil
}
