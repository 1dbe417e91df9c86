// Package reproduce builds versions again, in a deliberately different environment, compares every digest, and explains what
// differs.
package reproduce

import (
	"bytes"
	"cmp"
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
	"github.com/enginery/enginery/internal/exit"
	"github.com/enginery/enginery/internal/keys"
	"github.com/enginery/enginery/internal/progress"
	"github.com/enginery/enginery/manifests"
	"github.com/enginery/enginery/recipes"
	"github.com/enginery/enginery/release"
	"github.com/google/renameio/v2"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Schema is the version of the report's JSON.
const Schema = 1

// Check builds recipes in w, if they are not built yet, and a second time elsewhere from nothing but sources, bundles and toolchain
// packages, and compares all digests. Where w cannot build some of them, the report is of the others, and comes with a *build.FailedError.
func Check(ctx context.Context, w *release.Workshop, rs ...*recipes.Recipe) (*Report, error) {
	first, failed := w.Build(ctx, rs...)
	if len(first) == 0 && failed != nil {
		return nil, fmt.Errorf("first build: %w", failed)
	}
	report, err := again(ctx, w, first)
	return report, errors.Join(failed, err)
}

// again builds versions again elsewhere. Where that fails for some of them, the report is of the others.
func again(ctx context.Context, w *release.Workshop, first []*release.Version) (*Report, error) {
	rs := make([]*recipes.Recipe, len(first))
	for i, v := range first {
		rs[i] = v.Recipe
	}
	jobs := w.Jobs
	if jobs == 0 {
		jobs = runtime.NumCPU()
	}
	report := &Report{Schema: Schema, First: observe(w.Store.Dir(), jobs)}
	second, layout, remove, err := elsewhere(ctx, w, report.First, rs)
	if err != nil {
		return nil, err
	}
	defer remove()
	report.Second = second.Environment
	failed := make(map[string]error)
	for _, v := range first {
		id := v.Recipe.ID
		if why, ok := second.Failed[id]; ok {
			failed[id] = fmt.Errorf("the second build failed where the first did not: %s", why)
			continue
		}
		i := slices.IndexFunc(second.Versions, func(b built) bool { return b.Manifest != nil && b.Manifest.Version == id })
		if i < 0 {
			return nil, fmt.Errorf("the second build did not make %s", id)
		}
		c := comparison{v, second.Versions[i], w.Layout, layout}
		rows, err := c.rows(ctx)
		if err != nil {
			return nil, fmt.Errorf("comparing two builds of %s: %w", v.Recipe.ID, err)
		}
		report.Rows = append(report.Rows, rows...)
		var unlike *release.DifferentError
		if errors.As(v.Check(), &unlike) {
			report.unlike = append(report.unlike, unlike)
		}
	}
	if len(failed) > 0 {
		return report, &build.FailedError{Versions: failed}
	}
	return report, nil
}

// comparison is of two builds of a version, whose artifacts are in two OCI layouts.
type comparison struct {
	first                     *release.Version
	second                    built
	firstLayout, secondLayout string
}

// rows compares what the two builds made, platform by platform, causes before what follows from them.
func (c *comparison) rows(ctx context.Context) ([]Row, error) {
	a, b := c.first.Manifest, c.second.Manifest
	if b == nil || b.Version != a.Version {
		return nil, errors.New("the second build made another version")
	}
	recorded, err := recordedAs(c.first)
	if err != nil {
		return nil, err
	}
	// The index names all manifests, and the statements name the index.
	platformsDiffer := false
	for _, t := range c.first.Recipe.Targets {
		if err := c.checkActions(t.Platform); err != nil {
			return nil, err
		}
		platformsDiffer = platformsDiffer || a.Platforms[t.Platform].Manifest != b.Platforms[t.Platform].Manifest
	}
	var rows []Row
	for _, t := range c.first.Recipe.Targets {
		row := Row{Version: a.Version, Platform: t.Platform, Recorded: recorded}
		x, y := a.Platforms[t.Platform], b.Platforms[t.Platform]
		titles := keys.Union(x.Files, y.Files)
		slices.SortStableFunc(titles, func(a, b string) int { return rank(a) - rank(b) })
		for _, title := range titles {
			row.add(title, x.Files[title], y.Files[title], false)
		}
		row.add("config", x.Config, y.Config, false)
		row.add("manifest", x.Manifest, y.Manifest, row.differs())
		row.add("index", a.Index, b.Index, platformsDiffer)
		for _, predicate := range keys.Union(a.Statements, b.Statements) {
			row.add(predicate, a.Statements[predicate], b.Statements[predicate], a.Index != b.Index)
		}
		row.Identical = !row.differs()
		for i := range row.Digests {
			if d := &row.Digests[i]; d.First != d.Second && !d.Consequence {
				if err := c.explain(ctx, d); err != nil {
					return nil, err
				}
			}
		}
		rows = append(rows, row)
	}
	return rows, nil
}

// checkActions makes sure that two builds for a platform ran the same actions: otherwise equal outputs would say little.
func (c *comparison) checkActions(platform string) error {
	x, y := c.first.Manifest.Platforms[platform], c.second.Manifest.Platforms[platform]
	if x == nil || y == nil {
		return fmt.Errorf("not both builds have %s", platform)
	}
	for _, goal := range c.first.Recipe.Goals {
		x, xok := c.first.Outputs.Worker(platform, goal)
		y, yok := c.second.Outputs.Worker(platform, goal)
		if !xok || !yok || x.Action != y.Action {
			return fmt.Errorf("the second build ran another action for %s %s: %s, expected %s", platform, goal, y.Action, x.Action)
		}
	}
	return nil
}

// rank orders workers before all that is not compiled.
func rank(title string) int {
	switch title {
	case artifact.Worker:
		return 0
	case artifact.DebugWorker:
		return 1
	}
	return 2
}

func (r *Row) add(name, first, second string, consequence bool) {
	r.Digests = append(r.Digests, Compared{Name: name, First: first, Second: second, Consequence: consequence && first != second})
}

func (r *Row) differs() bool {
	return slices.ContainsFunc(r.Digests, func(c Compared) bool { return c.First != c.Second })
}

// recordedAs says how a version compares with its record, as in Row.
func recordedAs(v *release.Version) (string, error) {
	err := v.Check()
	var different *release.DifferentError
	switch {
	case err == nil:
		return "same", nil
	case errors.Is(err, manifests.ErrNotRecorded):
		return "none", nil
	case errors.As(err, &different):
		return "different", nil
	}
	return "", err
}

// explain says where two builds of something differ, by our own means and, where it is installed, by diffoscope's.
func (c *comparison) explain(ctx context.Context, d *Compared) error {
	if d.First == "" || d.Second == "" {
		return nil // only one build has it
	}
	x, first, err := read(c.firstLayout, d.First)
	if err != nil {
		return err
	}
	y, second, err := read(c.secondLayout, d.Second)
	if err != nil {
		return err
	}
	d.Causes = Explain(first, second)
	if _, err := exec.LookPath("diffoscope"); err != nil {
		return nil
	}
	task := progress.Start(ctx, "diffoscope on two builds of "+d.Name, 0)
	cmd := exec.CommandContext(ctx, "diffoscope", "--text=-", "--text-color=never", "--max-text-report-size=100000", x, y)
	var complaints bytes.Buffer
	cmd.Stderr = &complaints
	out, err := cmd.Output()
	task.Done(err)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	// It exits with 1 for files that differ. What else it may say is its own failure, not that of the comparison.
	var exit *exec.ExitError
	if err != nil && !(errors.As(err, &exit) && exit.ExitCode() == 1) {
		out = fmt.Appendf(out, "diffoscope failed: %v\n%s", err, &complaints)
	}
	d.Diffoscope = string(out)
	return nil
}

// read returns a blob of an OCI layout, and where it is.
func read(layout, dgst string) (file string, content []byte, err error) {
	d := digest.Digest(dgst)
	file, err = artifact.BlobPath(layout, ocispec.Descriptor{Digest: d})
	if err != nil {
		return "", nil, err
	}
	if content, err = os.ReadFile(file); err != nil {
		return "", nil, err
	}
	if found := d.Algorithm().FromBytes(content); found != d {
		return "", nil, fmt.Errorf("%s is damaged: its digest is %s", file, found)
	}
	return file, content, nil
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
			fmt.Fprintf(&b, "\n  %s %s %s: %s against %s", row.Version, row.Platform, c.Name, cmp.Or(c.First, "none"), cmp.Or(c.Second, "none"))
			for i, cause := range c.Causes {
				if i == 5 {
					fmt.Fprintf(&b, "\n    and %d more places", len(c.Causes)-i)
					break
				}
				fmt.Fprintf(&b, "\n    %v", cause)
			}
		}
	}
	return b.String() + "\nall of it is in " + e.Page
}

// ExitStatus is that of something that was made and is not what it must be.
func (e *DifferentError) ExitStatus() int { return exit.Different }

// CheckAndReport checks versions, writes reproducible.json and reproducible.html to dir, and a summary, or the JSON, to out. The error has a
// *DifferentError if two builds differ, and a *release.DifferentError for each version whose first build is not as recorded.
func CheckAndReport(ctx context.Context, w *release.Workshop, out io.Writer, asJSON bool, dir string, ids ...string) error {
	first, failed := w.BuildAvailable(ctx, ids...)
	if len(first) == 0 {
		return failed
	}
	report, err := again(ctx, w, first)
	if report == nil {
		return errors.Join(failed, err)
	}
	return errors.Join(failed, err, report.conclude(out, asJSON, dir))
}

// conclude writes the report, and returns what is wrong with the versions.
func (r *Report) conclude(out io.Writer, asJSON bool, dir string) error {
	page, err := r.write(dir)
	if err != nil {
		return err
	}
	if asJSON {
		if err := r.WriteJSON(out); err != nil {
			return err
		}
	} else {
		for _, row := range r.Rows {
			outcome := "the two builds DIFFER"
			if row.Identical {
				outcome = fmt.Sprintf("identical, all %d digests", len(row.Digests))
			}
			fmt.Fprintf(out, "%s %s: %s (the record: %s)\n", row.Version, row.Platform, outcome, row.Recorded)
		}
		fmt.Fprintln(out, "wrote", page)
	}
	var failures []error
	if !r.Identical() {
		failures = append(failures, &DifferentError{r, page})
	}
	for _, unlike := range r.unlike {
		same := !slices.ContainsFunc(r.Rows, func(row Row) bool { return row.Version == unlike.ID && !row.Identical })
		if same {
			failures = append(failures, fmt.Errorf("two builds of %s are the same, but %w", unlike.ID, unlike))
		} else {
			failures = append(failures, unlike)
		}
	}
	return errors.Join(failures...)
}

func (r *Report) write(dir string) (page string, err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("writing the report: %w", err)
	}
	page = filepath.Join(dir, "reproducible.html")
	for path, write := range map[string]func(io.Writer) error{page: r.WriteHTML, filepath.Join(dir, "reproducible.json"): r.WriteJSON} {
		var b bytes.Buffer
		err := write(&b)
		if err == nil {
			err = renameio.WriteFile(path, b.Bytes(), 0o644, renameio.WithStaticPermissions(0o644))
		}
		if err != nil {
			return "", fmt.Errorf("writing the report: %w", err)
		}
	}
	return page, nil
}
