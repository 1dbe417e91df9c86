package release

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/enginery/enginery/build"
	"github.com/enginery/enginery/internal/cas"
	pins "github.com/enginery/enginery/moddable-pins"
	"github.com/enginery/enginery/recipes"
	bundles "github.com/enginery/enginery/supervisor-bundles"
)

// ExportSources writes the exact sources of a version to dir, which must not exist: moddable/, xsnap-native/, the bundles, the closed recipe,
// and a note on how the worker is compiled from them.
func (w *Workshop) ExportSources(ctx context.Context, id, dir string) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("exporting the sources of %s: %w", id, err)
		}
	}()
	r, err := recipes.Load(id)
	if err != nil {
		return err
	}
	if _, err := os.Lstat(dir); !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s exists already, and is not overwritten: remove or rename it, and export again", dir)
	}
	if err := w.Sources().Fetch(ctx, r.Pin); err != nil {
		return err
	}
	parent := filepath.Dir(filepath.Clean(dir))
	if err := os.MkdirAll(parent, 0o755); err != nil {
		return err
	}
	aside, err := os.MkdirTemp(parent, "."+filepath.Base(dir)+"-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(aside)
	for _, c := range []pins.Component{r.Pin.Moddable, r.Pin.XsnapNative} {
		if err := w.Store.Checkout(ctx, c.Tree, filepath.Join(aside, c.Name)); err != nil {
			return err
		}
	}
	if r.Bundles != nil {
		if err := bundles.Fetch(ctx, w.Store, r.Bundles); err != nil {
			return err
		}
		for name, d := range map[string]cas.Digest{"lockdown.bundle": r.Bundles.Lockdown.SHA256, "supervisor.bundle": r.Bundles.Supervisor.SHA256} {
			if err := w.Store.ExportFile(d, filepath.Join(aside, name), 0o644); err != nil {
				return err
			}
		}
	}
	for name, content := range map[string][]byte{"recipe.json": r.JSON(), "README": []byte(sourcesNote(r))} {
		if err := os.WriteFile(filepath.Join(aside, name), content, 0o644); err != nil {
			return err
		}
	}
	if err := os.Chmod(aside, 0o755); err != nil {
		return err
	}
	return os.Rename(aside, dir)
}

func sourcesNote(r *recipes.Recipe) string {
	var b strings.Builder
	fmt.Fprintf(&b, "The sources of %s.\n\n", r.ID)
	fmt.Fprintf(&b, "  moddable/      commit %s\n", r.Pin.Moddable.Commit)
	fmt.Fprintf(&b, "  xsnap-native/  commit %s\n", r.Pin.XsnapNative.Commit)
	fmt.Fprintf(&b, "  recipe.json    everything that goes into the version; its SHA-256 is the recipe's digest\n\n")
	fmt.Fprintf(&b, "Enginery rebuilds the version from them bit for bit: go tool mage build:version %s\n\n", r.ID)
	fmt.Fprintf(&b, "By hand, with this folder mounted as %s and the recipe's toolchain as root file system, in %s:\n", build.Root, filepath.Join(build.Root, r.Make.Directory))
	for _, t := range r.Targets {
		for _, goal := range r.Goals {
			fmt.Fprintf(&b, "\n# %s %s, with %s\n", t.Platform, goal, t.Toolchain.Name)
			for i, arg := range r.MakeArgs(t, goal, build.Root) {
				if i > 0 {
					b.WriteByte(' ')
				}
				b.WriteString(shellQuote(arg))
			}
			b.WriteByte('\n')
		}
	}
	return b.String()
}

func shellQuote(s string) string {
	if !strings.ContainsAny(s, " \t\n'\"$`\\|&;<>()*?[]#~!{}") {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
