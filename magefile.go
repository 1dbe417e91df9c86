//go:build mage

// Enginery builds every pinned version of the xsnap worker, reproducibly. A version ID is the name of a file in recipes/, such as
// agoric-upgrade-16.
//
// Options stand after the target, for every target: --jobs=N, --json, --layout=DIR, --source-mirror=DIR, --store=DIR and
// --toolchain-from=REF. The README explains them.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/magefile/mage/mg"

	"github.com/enginery/enginery/artifact"
	"github.com/enginery/enginery/internal/cas"
	"github.com/enginery/enginery/internal/options"
	"github.com/enginery/enginery/internal/progress"
	pins "github.com/enginery/enginery/moddable-pins"
	"github.com/enginery/enginery/recipes"
	"github.com/enginery/enginery/release"
	"github.com/enginery/enginery/reproduce"
	bundles "github.com/enginery/enginery/supervisor-bundles"
	"github.com/enginery/enginery/toolchain"
	"github.com/enginery/enginery/upgrade/sim"
)

type (
	Build     mg.Namespace
	Bundles   mg.Namespace
	Check     mg.Namespace
	Golden    mg.Namespace
	Manifest  mg.Namespace
	Pins      mg.Namespace
	Release   mg.Namespace
	Sources   mg.Namespace
	Toolchain mg.Namespace
)

// Version builds a version into the OCI layout and compares it with its record. It fetches, compiles in a container and packs what
// is not there yet, prints the digests, and fails if they are not those in manifests/. For example: go tool mage build:version agoric-upgrade-16
func (Build) Version(ctx context.Context, id string) error {
	return with(ctx, func(ctx context.Context, w *release.Workshop) error {
		return w.BuildAndCheck(ctx, os.Stdout, opts.JSON, id)
	})
}

// All builds every version, several at once. Those that cannot be built are named at the end, after building the others.
func (Build) All(ctx context.Context) error {
	return with(ctx, func(ctx context.Context, w *release.Workshop) error {
		return w.BuildAndCheck(ctx, os.Stdout, opts.JSON, recipes.IDs()...)
	})
}

// Engine builds the engine of a historic pin, without bundles. For example: go tool mage build:engine 6d7f33f8-65d8e660
func (Build) Engine(ctx context.Context, pin string) error {
	return with(ctx, func(ctx context.Context, w *release.Workshop) error {
		return w.BuildEngine(ctx, os.Stdout, opts.JSON, pin)
	})
}

// Add writes a new pair of lockdown and supervisor bundles to supervisor-bundles/, with their digests. They come from the npm packages
// @agoric/xsnap-lockdown and @agoric/swingset-xsnap-supervisor; give the version of each, and the name that recipes shall use. For
// example: go tool mage bundles:add agoric-upgrade-16 0.14.1-u16.0 0.10.3-u16.1
func (Bundles) Add(ctx context.Context, name, lockdown, supervisor string) error {
	return with(ctx, func(ctx context.Context, w *release.Workshop) error {
		file, err := bundles.Add(ctx, w.Store, "supervisor-bundles", name, lockdown, supervisor)
		if err == nil {
			fmt.Println("wrote", file)
		}
		return err
	})
}

// Engines compiles and examines a historic engine, or all. It prints the table of docs/engines.md, and names those whose sources cannot
// be had. For example: go tool mage check:engines 6d7f33f8-65d8e660
func (Check) Engines(ctx context.Context, id *string) error {
	return with(ctx, func(ctx context.Context, w *release.Workshop) error {
		var only []string
		if id != nil {
			only = []string{*id}
		}
		return w.CheckEngines(ctx, os.Stdout, opts.JSON, only...)
	})
}

// Golden runs golden vectors on the workers of a version, or of all. It takes every platform, release and debug. For example: go tool mage check:golden agoric-upgrade-16
func (Check) Golden(ctx context.Context, id *string) error {
	return with(ctx, func(ctx context.Context, w *release.Workshop) error {
		return w.CheckGolden(ctx, os.Stdout, opts.JSON, oneOrAll(id)...)
	})
}

// Reproducible builds a version, or all, again in another environment and compares. The second build starts from nothing, under another
// path, user, umask, locale, time zone and host name; every digest must be the same. It writes out/reproducible.html and
// out/reproducible.json. For example: go tool mage check:reproducible agoric-upgrade-16
func (Check) Reproducible(ctx context.Context, id *string) error {
	return with(ctx, func(ctx context.Context, w *release.Workshop) error {
		return reproduce.CheckAndReport(ctx, w, os.Stdout, opts.JSON, "out", oneOrAll(id)...)
	})
}

// Observe prints what a version shows for every golden vector, as TOML for its recipe. It changes nothing. For example: go tool mage golden:observe agoric-upgrade-16
func (Golden) Observe(ctx context.Context, id string) error {
	return with(ctx, func(ctx context.Context, w *release.Workshop) error {
		return w.ObserveGolden(ctx, os.Stdout, id)
	})
}

// Update records a version's digests in manifests/, if its golden vectors hold.
func (Manifest) Update(ctx context.Context, id string) error {
	return with(ctx, func(ctx context.Context, w *release.Workshop) error {
		return w.Record(ctx, os.Stdout, "manifests", id)
	})
}

// Add writes a new pin for two commits, with the digests of their trees, to moddable-pins/.
func (Pins) Add(ctx context.Context, name, moddable, xsnapNative string) error {
	return with(ctx, func(ctx context.Context, w *release.Workshop) error {
		file, err := w.Sources().Add(ctx, "moddable-pins", name, moddable, xsnapNative)
		if err == nil {
			fmt.Println("wrote", file)
		}
		return err
	})
}

// Verify checks that every source of a pin, or of all, gives the recorded tree. It fetches all of them anew; the table says which could
// not be reached, and it fails if that are all of a tree.
func (Pins) Verify(ctx context.Context, id *string) error {
	return with(ctx, func(ctx context.Context, w *release.Workshop) error {
		names := pins.Names()
		if id != nil {
			names = []string{*id}
		}
		checks, err := w.Sources().Verify(ctx, names...)
		if err != nil {
			return err
		}
		return errors.Join(pins.WriteTable(os.Stdout, checks), pins.Judge(checks))
	})
}

// Key makes a key pair to sign with: NAME.key, encrypted with a password (COSIGN_PASSWORD, or asked for), and NAME.pub.
func (Release) Key(ctx context.Context, name string) error {
	return released(ctx, "key", name)
}

// Sign signs a version and its statements, in the layout. It must be as recorded and show its golden values. For example:
// go tool mage release:sign agoric-upgrade-18 --key=release.key
func (Release) Sign(ctx context.Context, id string) error {
	return released(ctx, "sign", id)
}

// Attest rebuilds a version and, if every digest is the recorded one, signs provenance in the name of a builder. For example:
// go tool mage release:attest agoric-upgrade-18 --key=me.key --builder=https://example.org/me --to=HOST/NAME
func (Release) Attest(ctx context.Context, id string) error {
	return released(ctx, "attest", id)
}

// Publish sends a signed version from the layout to a repository: HOST/NAME of a registry, or oci:DIR. For example:
// go tool mage release:publish agoric-upgrade-18 HOST/NAME
func (Release) Publish(ctx context.Context, id, ref string) error {
	return released(ctx, "publish", id, ref)
}

// Root signs the newest root of trust of the release index, releaseindex/N.root.json, and begins the next one where releaseindex/roles.toml says
// other things, or the newest is nearly out of date. For example: go tool mage release:root --key=root.key
func (Release) Root(ctx context.Context) error {
	return released(ctx, "root")
}

// Index publishes the next version of the release index to a repository: of manifests/ with its channels and what its policy revokes. For example:
// go tool mage release:index HOST/NAME --key=release.key
func (Release) Index(ctx context.Context, ref string) error {
	return released(ctx, "index", ref)
}

// released runs cmd/release, which says why it is a program of its own.
func released(ctx context.Context, args ...string) error {
	dir, err := os.MkdirTemp("", "enginery-release-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	program := filepath.Join(dir, "release")
	if err := sh(ctx, "go", "build", "-o", program, "./cmd/release"); err != nil {
		return err
	}
	if opts.To != "" {
		args = append(args, "--to="+opts.To)
	}
	err = sh(ctx, program, args...)
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		os.RemoveAll(dir)
		os.Exit(exit.ExitCode()) // it has said why
	}
	return err
}

// Export writes the exact sources of a version to out/sources/ID.
func (Sources) Export(ctx context.Context, id string) error {
	return with(ctx, func(ctx context.Context, w *release.Workshop) error {
		dir := filepath.Join("out", "sources", id)
		if err := w.ExportSources(ctx, id, dir); err != nil {
			return err
		}
		fmt.Println("wrote", dir)
		return nil
	})
}

// Lock resolves the toolchains' packages anew.
func (Toolchain) Lock(ctx context.Context) error {
	return with(ctx, func(ctx context.Context, w *release.Workshop) error {
		for _, name := range toolchain.Names() {
			spec, err := toolchain.ReadSpec("toolchain", name)
			if err != nil {
				return err
			}
			t, err := toolchain.Lock(ctx, w.Store, spec, toolchain.Options{Jobs: w.Jobs})
			if err != nil {
				return err
			}
			if err := t.WriteLock("toolchain"); err != nil {
				return err
			}
			fmt.Printf("%s: %d packages, image %s\n", name, len(t.Packages), t.Image)
		}
		return nil
	})
}

// Image writes the toolchains as OCI images into the layout.
func (Toolchain) Image(ctx context.Context) error {
	return with(ctx, func(ctx context.Context, w *release.Workshop) error {
		for _, name := range toolchain.Names() {
			t, err := toolchain.Load(name)
			if err != nil {
				return err
			}
			img, err := toolchain.Image(ctx, w.Store, t, toolchain.Options{From: w.ToolchainFrom, Jobs: w.Jobs})
			if err != nil {
				return err
			}
			if err := artifact.AddImage(ctx, w.Layout, name, img); err != nil {
				return err
			}
			fmt.Println(t.Image, name)
		}
		return nil
	})
}

// Sim runs the upgrade controller on 100,000 vats and 1,000,000 messages that wait, without workers. It takes some minutes, and prints the
// figures of docs/upgrade.md.
func Sim(ctx context.Context) error {
	ctx, reporter := progress.With(ctx, os.Stderr)
	defer reporter.Close()
	return sim.RunAndReport(ctx, os.Stdout, opts.JSON, sim.Default)
}

// Bench measures speed, each thing against its peer in the same run.
func Bench(ctx context.Context) error {
	return sh(ctx, "go", "test", "-run=^$", "-bench=.", "-benchtime=3x", "-timeout=60m", "./...")
}

// Install compiles enginery and the launcher, xsnap-worker, into the folder of go install: GOBIN, or bin in GOPATH. They are static: other
// machines of this platform need nothing else.
func Install(ctx context.Context) error {
	if err := sh(ctx, "env", "CGO_ENABLED=0", "go", "install", "-trimpath", "./cmd/enginery", "./cmd/xsnap-worker"); err != nil {
		return err
	}
	return sh(ctx, "go", "list", "-f", "{{.Target}}", "./cmd/enginery", "./cmd/xsnap-worker")
}

// Lint runs gofmt, go vet and staticcheck.
func Lint(ctx context.Context) error {
	out, err := exec.CommandContext(ctx, "gofmt", "-l", ".").Output()
	if err != nil {
		return fmt.Errorf("running gofmt: %w", err)
	}
	if files := strings.TrimSpace(string(out)); files != "" {
		return fmt.Errorf("not as gofmt writes it:\n%s", files)
	}
	for _, args := range [][]string{
		{"go", "vet", "./..."},
		{"go", "vet", "-tags=mage", "."},
		{"go", "tool", "staticcheck", "./..."},
		{"go", "tool", "staticcheck", "-tags=mage", "."},
	} {
		if err := sh(ctx, args[0], args[1:]...); err != nil {
			return err
		}
	}
	return nil
}

// Test builds the engines and runs all tests. It names the tests that were skipped, and why. It installs the Debian packages
// qemu-user-static and chromium if it can and must, to run arm64 workers and to look at pages.
func Test(ctx context.Context) error {
	if err := needPrograms(ctx); err != nil {
		return err
	}
	err := with(ctx, func(ctx context.Context, w *release.Workshop) error {
		ids, err := recipes.Packaged()
		if err != nil {
			return err
		}
		return w.BuildAndCheck(ctx, os.Stdout, false, ids...)
	})
	if err != nil {
		return err
	}
	return sh(ctx, "go", "tool", "gotestsum", "--format=pkgname", "--format-hide-empty-pkg", "--junitfile=out/tests.xml", "--", "-timeout=30m", "./...")
}

var opts options.Options

// optional are the targets that take one argument or none.
var optional = []string{"check:engines", "check:golden", "check:reproducible", "pins:verify"}

func init() {
	known := func(word string) bool {
		switch strings.ToLower(word) {
		case "bench", "install", "lint", "sim", "test":
			return true
		}
		return strings.Contains(word, ":")
	}
	o, rest, err := options.Parse(os.Args[1:], optional, known)
	if err != nil {
		fmt.Fprintln(os.Stderr, "Error:", err)
		os.Exit(2)
	}
	if o.JSON && !slices.ContainsFunc(rest, func(word string) bool {
		word = strings.ToLower(word)
		return word == "sim" || strings.HasPrefix(word, "build:") || strings.HasPrefix(word, "check:")
	}) {
		fmt.Fprintln(os.Stderr, "Error: only sim and the targets of build: and check: have results for machines (--json)")
		os.Exit(2)
	}
	opts, os.Args = o, append(os.Args[:1], rest...)
}

// with calls f with a place to build in.
func with(ctx context.Context, f func(context.Context, *release.Workshop) error) error {
	store, err := cas.Open(opts.Store)
	if err != nil {
		return fmt.Errorf("%w; choose another folder with --store or ENGINERY_STORE", err)
	}
	defer store.Close()
	ctx, reporter := progress.With(ctx, os.Stderr)
	defer reporter.Close()
	w := &release.Workshop{Store: store, Layout: opts.Layout, SourceMirror: opts.SourceMirror, ToolchainFrom: opts.ToolchainFrom, Jobs: opts.Jobs}
	return release.WithStatus(f(ctx, w))
}

func oneOrAll(id *string) []string {
	if id == nil {
		return recipes.IDs()
	}
	return []string{*id}
}

// sh runs a command on this terminal, with the options in its environment.
func sh(ctx context.Context, name string, args ...string) error {
	env, err := opts.Environ()
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s %s: %w", name, strings.Join(args, " "), err)
	}
	return nil
}

// needs are the programs that the tests run and that come with no Go module or npm package. Tests of the optional ones are skipped, by name.
var needs = []struct {
	program, pkg, purpose string
	optional              bool
}{
	{"qemu-aarch64-static", "qemu-user-static", "to run arm64 workers", false},
	{"chromium", "chromium", "to look at pages", true},
}

// needPrograms makes sure that the programs in needs are there, and says how to install those that cannot be had.
func needPrograms(ctx context.Context) error {
	for _, n := range needs {
		if _, err := exec.LookPath(n.program); err == nil {
			continue
		}
		if os.Geteuid() == 0 {
			fmt.Println("installing", n.pkg, n.purpose)
			install := func() error { return sh(ctx, "apt-get", "install", "--yes", "--no-install-recommends", n.pkg) }
			if install() == nil || sh(ctx, "apt-get", "update") == nil && install() == nil {
				continue
			}
		}
		err := fmt.Errorf("the tests run %s %s: install the Debian package %s, as root: apt-get install %s", n.program, n.purpose, n.pkg, n.pkg)
		if !n.optional {
			return err
		}
		fmt.Println("NOT TESTED:", err)
	}
	return nil
}
