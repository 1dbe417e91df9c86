// Package enginetest gives tests the engines that they test: built from their recipes, in the store that all builds share.
package enginetest

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/enginery/enginery/artifact"
	"github.com/enginery/enginery/build"
	"github.com/enginery/enginery/engines"
	"github.com/enginery/enginery/internal/cas"
	pins "github.com/enginery/enginery/moddable-pins"
	"github.com/enginery/enginery/recipes"
	bundles "github.com/enginery/enginery/supervisor-bundles"
	"github.com/enginery/enginery/toolchain"
)

// NPM are the versions whose every input is an npm or Debian package.
var NPM = func() []string {
	ids, err := recipes.Packaged()
	if err != nil {
		panic(err)
	}
	return ids
}()

// Store returns the store that builds use by default.
func Store(t testing.TB) *cas.Store {
	t.Helper()
	dir, err := cas.DefaultDir()
	if err != nil {
		t.Fatal(err)
	}
	s, err := cas.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

// Recipe returns the recipe of a version.
func Recipe(t testing.TB, id string) *recipes.Recipe {
	t.Helper()
	r, err := recipes.Load(id)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// Buildable returns the recipes of the engines that build here: of the versions in NPM, and, where a mirror of the sources' repositories is
// given (ENGINERY_SOURCE_MIRROR), of all versions and historic engines.
func Buildable(t testing.TB) []*recipes.Recipe {
	t.Helper()
	var rs []*recipes.Recipe
	if os.Getenv(pins.MirrorEnv) == "" {
		for _, id := range NPM {
			rs = append(rs, Recipe(t, id))
		}
		return rs
	}
	historic, err := recipes.HistoricEngines()
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range historic {
		if h.Cause != "" {
			continue
		}
		r, err := recipes.LoadHistoric(h.Pin)
		if err != nil {
			t.Fatal(err)
		}
		rs = append(rs, r)
	}
	for _, id := range recipes.IDs() {
		rs = append(rs, Recipe(t, id))
	}
	return rs
}

// Worker returns the path of a version's worker for a platform and goal, built if it is not yet. It is a copy of the test's own.
func Worker(t testing.TB, id, platform, goal string) string {
	t.Helper()
	return WorkerOf(t, Recipe(t, id), platform, goal)
}

// WorkerOf is Worker for a recipe. It changes the recipe's targets and goals to those asked for.
func WorkerOf(t testing.TB, r *recipes.Recipe, platform, goal string) string {
	t.Helper()
	s := Store(t)
	target, ok := r.Target(platform)
	if !ok {
		t.Fatalf("%s is not built for %s", r.ID, platform)
	}
	r.Targets, r.Goals = []recipes.Target{target}, []string{goal}
	outputs, err := build.Engines(t.Context(), s, Executor(t, s), Fetch(s), r)
	if err != nil {
		t.Fatal(err)
	}
	w, ok := outputs[r.ID].Worker(platform, goal)
	if !ok {
		t.Fatalf("%s has no %s worker for %s", r.ID, goal, platform)
	}
	path := filepath.Join(t.TempDir(), "xsnap-worker")
	if err := s.ExportFile(w.Binary, path, 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// Executor returns an executor on this machine.
func Executor(t testing.TB, s *cas.Store) *build.Local {
	t.Helper()
	jobs, err := build.NewJobs(runtime.NumCPU())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(jobs.Close)
	return &build.Local{Store: s, Jobs: jobs, Toolchain: func(ctx context.Context, tc *toolchain.Toolchain) (string, error) {
		return toolchain.Ensure(ctx, s, tc, toolchain.Options{From: os.Getenv("ENGINERY_TOOLCHAIN_FROM")})
	}}
}

// Fetch returns a function that brings a recipe's sources into the store.
func Fetch(s *cas.Store) func(context.Context, *recipes.Recipe) error {
	f := &pins.Fetcher{Store: s, Mirror: os.Getenv(pins.MirrorEnv)}
	return func(ctx context.Context, r *recipes.Recipe) error { return f.Fetch(ctx, r.Pin) }
}

// Bundles returns the version's lockdown and supervisor bundles, as published.
func Bundles(t testing.TB, r *recipes.Recipe) (lockdown, supervisor []byte) {
	t.Helper()
	s := Store(t)
	if err := bundles.Fetch(t.Context(), s, r.Bundles); err != nil {
		t.Fatal(err)
	}
	lockdown, err := s.ReadAll(r.Bundles.Lockdown.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	supervisor, err = s.ReadAll(r.Bundles.Supervisor.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	return lockdown, supervisor
}

// Home returns a node's home with engines installed: release and debug workers, bundles, descriptions.
func Home(t testing.TB, platform string, ids ...string) string {
	t.Helper()
	home := t.TempDir()
	t.Cleanup(func() { // its folders are read-only
		filepath.WalkDir(home, func(path string, d os.DirEntry, _ error) error {
			if d != nil && d.IsDir() {
				os.Chmod(path, 0o755)
			}
			return nil
		})
	})
	for _, id := range ids {
		r := Recipe(t, id)
		config, err := json.Marshal(artifact.Engine{
			Schema: artifact.EngineSchema, Version: id, Platform: platform, Protocol: r.Engine.Protocol, Meter: r.Engine.Meter,
			Consensus: r.Engine.Consensus, LoadsSnapshotsOf: r.Engine.LoadsSnapshotsOf,
		})
		if err != nil {
			t.Fatal(err)
		}
		content := map[string][]byte{engines.ConfigName: config}
		content[engines.LockdownName], content[engines.SupervisorName] = Bundles(t, r)
		for name, goal := range map[string]string{engines.WorkerName: recipes.Release, engines.DebugWorkerName: recipes.Debug} {
			if content[name], err = os.ReadFile(Worker(t, id, platform, goal)); err != nil {
				t.Fatal(err)
			}
		}
		file := func(name string) engines.File {
			sum := sha256.Sum256(content[name])
			return engines.File{SHA256: hex.EncodeToString(sum[:]), Size: int64(len(content[name]))}
		}
		record := engines.Engine{
			Version: id, Platform: platform, Worker: file(engines.WorkerName), DebugWorker: file(engines.DebugWorkerName),
			Lockdown: file(engines.LockdownName), Supervisor: file(engines.SupervisorName), Config: file(engines.ConfigName),
		}
		if _, err := engines.Open(home).Install(t.Context(), record, func(dir string) (err error) {
			for name, b := range content {
				err = errors.Join(err, os.WriteFile(filepath.Join(dir, name), b, 0o600))
			}
			return err
		}); err != nil {
			t.Fatal(err)
		}
	}
	return home
}

// Emulator returns what has to stand before the command line of a worker for a platform: nothing on that platform itself.
func Emulator(t testing.TB, platform string) []string {
	t.Helper()
	if platform == "linux/"+runtime.GOARCH {
		return nil
	}
	if platform != "linux/arm64" {
		t.Fatalf("no emulator is known for %s", platform)
	}
	path, err := exec.LookPath("qemu-aarch64-static")
	if err != nil {
		t.Fatalf("%v: install the Debian package qemu-user-static, as go tool mage test does", err)
	}
	return []string{path}
}
