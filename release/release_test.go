package release_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/enginery/enginery/artifact"
	"github.com/enginery/enginery/build"
	"github.com/enginery/enginery/internal/cas"
	"github.com/enginery/enginery/internal/enginetest"
	"github.com/enginery/enginery/internal/exit"
	"github.com/enginery/enginery/manifests"
	pins "github.com/enginery/enginery/moddable-pins"
	"github.com/enginery/enginery/recipes"
	"github.com/enginery/enginery/release"
)

func workshop(t testing.TB) *release.Workshop {
	t.Helper()
	return &release.Workshop{
		Store:         enginetest.Store(t),
		Layout:        filepath.Join(t.TempDir(), "oci"),
		ToolchainFrom: os.Getenv("ENGINERY_TOOLCHAIN_FROM"),
	}
}

// TestVersionsAreAsRecorded is the main job: every version that npm has all parts of is built, is what its manifest says, and its parts
// can be had from the layout and run.
func TestVersionsAreAsRecorded(t *testing.T) {
	w := workshop(t)
	var out bytes.Buffer
	if err := w.BuildAndCheck(t.Context(), &out, false, enginetest.NPM...); err != nil {
		t.Fatal(err)
	}
	for _, id := range enginetest.NPM {
		t.Run(id, func(t *testing.T) {
			if want := "same as recorded in manifests/" + id + ".json"; !strings.Contains(out.String(), want) {
				t.Errorf("the output lacks %q:\n%s", want, &out)
			}
			m, err := manifests.Load(id)
			if err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(out.String(), m.Index) {
				t.Errorf("the output lacks the recorded index %s", m.Index)
			}
			a, err := artifact.Open(w.Layout, id)
			if err != nil {
				t.Fatal(err)
			}
			r := enginetest.Recipe(t, id)
			for _, p := range a.Platforms {
				for _, title := range []string{artifact.Worker, artifact.DebugWorker, artifact.Lockdown, artifact.Supervisor, artifact.Notices} {
					d, ok := p.File(title)
					if !ok {
						t.Errorf("%s has no %s", p.Name, title)
						continue
					}
					path, err := artifact.BlobPath(w.Layout, d)
					if err != nil {
						t.Fatal(err)
					}
					noTraces(t, w, path)
					if title == artifact.Worker || title == artifact.DebugWorker {
						answers(t, r, p.Name, path)
					}
				}
			}
		})
	}
}

// noTraces checks that a file says nothing of where it was made.
func noTraces(t *testing.T, w *release.Workshop, path string) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	wd, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	home, err := os.UserHomeDir()
	if err != nil {
		t.Fatal(err)
	}
	traces := []string{w.Store.Dir(), wd, build.Root + "/moddable", build.Root + "/xsnap-native", home + "/"}
	if len(host) > 5 { // shorter ones occur by chance
		traces = append(traces, host)
	}
	for _, trace := range traces {
		if bytes.Contains(b, []byte(trace)) {
			t.Errorf("%s has %q in it", path, trace)
		}
	}
}

// answers starts a worker and asks for its version, and ldd for its libraries.
func answers(t *testing.T, r *recipes.Recipe, platform, blob string) {
	t.Helper()
	exe := filepath.Join(t.TempDir(), "xsnap-worker")
	b, err := os.ReadFile(blob)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(exe, b, 0o755); err != nil {
		t.Fatal(err)
	}
	argv := append(enginetest.Emulator(t, platform), exe, "-v")
	out, err := exec.Command(argv[0], argv[1:]...).Output()
	if want := fmt.Sprintf("xsnap %s (XS 13.3.0)\n", r.XsnapVersion); err != nil || string(out) != want {
		t.Errorf("%s worker -v: %q, %v, want %q", platform, out, err, want)
	}
	out, err = exec.Command("ldd", exe).CombinedOutput()
	if text := string(out); !strings.Contains(text, "statically linked") && !strings.Contains(text, "not a dynamic executable") {
		t.Errorf("ldd of the %s worker: %q, %v", platform, out, err)
	}
}

func TestUpgrade16SaysItsVersion(t *testing.T) {
	exe := enginetest.Worker(t, "agoric-upgrade-16", "linux/amd64", recipes.Release)
	out, err := exec.Command(exe, "-v").Output()
	if err != nil || string(out) != "xsnap 0.14.3-u16.1 (XS 13.3.0)\n" {
		t.Errorf("-v: %q, %v", out, err)
	}
}

func TestJSONIsTheManifest(t *testing.T) {
	w := workshop(t)
	var out bytes.Buffer
	if err := w.BuildAndCheck(t.Context(), &out, true, "agoric-upgrade-16"); err != nil {
		t.Fatal(err)
	}
	var got []manifests.Manifest
	if err := json.Unmarshal(out.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	want, err := manifests.Load("agoric-upgrade-16")
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != 1 || len(manifests.Diff(want, &got[0])) > 0 {
		t.Errorf("--json printed something else than the manifest: %s", &out)
	}
}

func TestAnotherRecordIsADifference(t *testing.T) {
	w := workshop(t)
	r := enginetest.Recipe(t, "agoric-upgrade-16")
	r.Targets = r.Targets[:1]
	r.CFlags = append(r.CFlags, "-fstack-protector-all")
	r.Goals = []string{recipes.Debug}
	delete(r.Golden, recipes.Release)
	versions, err := w.Build(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	err = versions[0].Check()
	var different *release.DifferentError
	if !errors.As(err, &different) || release.Status(err) != exit.Different {
		t.Fatalf("got %v (status %d), want a DifferentError with status %d", err, release.Status(err), exit.Different)
	}
	for _, want := range []string{"recipe: recorded", "linux/amd64 debug action", "linux/amd64 xsnap-worker-debug", "linux/arm64 manifest: recorded sha256:", "built nothing", "manifest:update agoric-upgrade-16"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the error lacks %q:\n%v", want, err)
		}
	}
}

func TestOnlyWhatShowsItsGoldenValuesIsRecorded(t *testing.T) {
	w := workshop(t)
	r := enginetest.Recipe(t, "agoric-upgrade-16")
	r.Targets, r.Goals = r.Targets[:1], []string{recipes.Release}
	fresh := r.Golden[recipes.Release]["fresh"]
	r.Golden = map[string]map[string]map[string]recipes.Observation{recipes.Release: {"fresh": fresh}}
	versions, err := w.Build(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	if ids, err := artifact.List(w.Layout); len(ids) > 0 || !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("what is not as recorded is in the layout as %v, %v", ids, err)
	}
	dir := t.TempDir()
	if _, err := w.RecordBuilt(t.Context(), dir, versions[0]); err != nil {
		t.Error(err)
	}
	if ids, err := artifact.List(w.Layout); err != nil || len(ids) != 1 {
		t.Errorf("what was recorded is in the layout as %v, %v", ids, err)
	}
	if got, err := manifests.Read(dir, r.ID); err != nil || len(manifests.Diff(got, versions[0].Manifest)) > 0 {
		t.Errorf("recorded %+v, %v", got, err)
	}

	right := fresh["fresh"]
	wrong := right
	wrong.Size++
	fresh["fresh"] = wrong
	dir = t.TempDir()
	_, err = w.RecordBuilt(t.Context(), dir, versions[0])
	var missed *release.GoldenError
	if !errors.As(err, &missed) || release.Status(err) != exit.Different || !strings.Contains(err.Error(), right.Snapshot) {
		t.Errorf("got %v (status %d), want a GoldenError with status %d", err, release.Status(err), exit.Different)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) > 0 {
		t.Errorf("recorded all the same: %v, %v", entries, err)
	}
}

// variant returns what compiles fast of a version, under another ID and with other flags.
func variant(t *testing.T, id string, flags ...string) *recipes.Recipe {
	t.Helper()
	r := enginetest.Recipe(t, "agoric-upgrade-16")
	r.ID = id
	r.Targets, r.Goals = r.Targets[:1], []string{recipes.Debug}
	r.CFlags = append(r.CFlags, flags...)
	return r
}

func TestOneFailureDoesNotKeepTheOthers(t *testing.T) {
	w := workshop(t)
	good := variant(t, "good")
	if _, err := w.Build(t.Context(), good); err != nil { // its bundles and sources are in the store now
		t.Fatal(err)
	}
	uncompilable := variant(t, "uncompilable", "-fno-such-flag")
	bundleless := variant(t, "bundleless")
	pair := *bundleless.Bundles
	pair.Supervisor.Version = "0.0.1"
	pair.Supervisor.SHA256 = cas.OfBytes([]byte("a bundle that nobody has published"))
	pair.Supervisor.Tarball = cas.OfBytes([]byte("a package that nobody has published"))
	bundleless.Bundles = &pair
	sourceless := variant(t, "sourceless")
	pin := *sourceless.Pin
	pin.XsnapNative.Tree = cas.OfBytes([]byte("a tree that nobody has"))
	pin.XsnapNative.Sources = nil
	sourceless.Pin = &pin
	t.Setenv("PATH", t.TempDir()) // npm cannot give anything

	versions, err := w.Build(t.Context(), uncompilable, bundleless, good, sourceless)
	if len(versions) != 1 || versions[0].Recipe != good {
		t.Fatalf("built %v (%v), want the good one", versions, err)
	}
	if ids, err := artifact.List(w.Layout); err != nil || len(ids) != 1 || ids[0] != "good" {
		t.Errorf("the layout has %q, %v, want the good version", ids, err)
	}
	var failed *build.FailedError
	if !errors.As(err, &failed) || len(failed.Versions) != 3 {
		t.Fatalf("got %v, want a FailedError of three versions", err)
	}
	for id, want := range map[string]struct {
		text   string
		status int
	}{
		"uncompilable": {"-fno-such-flag", exit.Failed},
		"bundleless":   {"@agoric/swingset-xsnap-supervisor@0.0.1", exit.Unavailable},
		"sourceless":   {"xsnap-native", exit.Unavailable},
	} {
		err := failed.Versions[id]
		if release.Status(err) != want.status || !strings.Contains(err.Error(), want.text) {
			t.Errorf("%s: got %v (status %d), want status %d and %s", id, err, release.Status(err), want.status, want.text)
		}
		if !strings.Contains(failed.Error(), "\n"+id+": ") {
			t.Errorf("the error does not name %s:\n%v", id, failed)
		}
	}
	if release.Status(err) != exit.Failed {
		t.Errorf("status %d, want %d: what does not compile outweighs what cannot be had", release.Status(err), exit.Failed)
	}
}

// without returns a workshop whose store lacks some blobs of the one that all builds share, and shares the others with it.
func without(t *testing.T, missing ...cas.Digest) *release.Workshop {
	t.Helper()
	w := workshop(t)
	from := w.Store.Dir()
	scratch, remove, err := w.Store.Scratch("test") // since links do not lead to other file systems
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(remove)
	gone := make(map[string]bool)
	for _, d := range missing {
		gone[w.Store.Path(d)] = true
	}
	s, err := cas.Open(filepath.Join(scratch, "store"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	for _, sub := range []string{"blobs", "actions"} {
		err := filepath.WalkDir(filepath.Join(from, sub), func(path string, e fs.DirEntry, err error) error {
			if err != nil || gone[path] {
				return err
			}
			to := filepath.Join(s.Dir(), strings.TrimPrefix(path, from))
			if e.IsDir() {
				return os.MkdirAll(to, 0o755)
			}
			return os.Link(path, to)
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	w.Store = s
	return w
}

// A target that builds several versions finishes those that can be built, and names the others.
func TestBuildAllFinishesTheOthers(t *testing.T) {
	const missing = "agoric-upgrade-17"
	if err := workshop(t).BuildAndCheck(t.Context(), io.Discard, false, "agoric-upgrade-16", missing); err != nil {
		t.Fatal(err)
	}
	lockdown := enginetest.Recipe(t, missing).Bundles.Lockdown
	w := without(t, lockdown.SHA256, lockdown.Tarball)
	t.Setenv("PATH", t.TempDir()) // npm cannot give anything
	var out bytes.Buffer
	err := w.BuildAndCheck(t.Context(), &out, false, missing, "agoric-upgrade-16")
	if release.Status(err) != exit.Unavailable || !strings.Contains(err.Error(), "\n"+missing+": ") || !strings.Contains(err.Error(), lockdown.String()) {
		t.Errorf("got %v (status %d), want status %d, the version and the package", err, release.Status(err), exit.Unavailable)
	}
	if want := "same as recorded in manifests/agoric-upgrade-16.json"; !strings.Contains(out.String(), want) || strings.Contains(out.String(), missing) {
		t.Errorf("the output lacks %q, or has %s:\n%s", want, missing, &out)
	}
	if err := w.BuildAndCheck(t.Context(), io.Discard, false, missing); release.Status(err) != exit.Unavailable || !strings.HasPrefix(err.Error(), missing+": ") {
		t.Errorf("alone: got %v (status %d), want status %d and the version", err, release.Status(err), exit.Unavailable)
	}
}

func TestDamagedLayoutIsNamed(t *testing.T) {
	w := workshop(t)
	if err := w.BuildAndCheck(t.Context(), new(bytes.Buffer), false, "agoric-upgrade-16"); err != nil {
		t.Fatal(err)
	}
	a, err := artifact.Open(w.Layout, "agoric-upgrade-16")
	if err != nil {
		t.Fatal(err)
	}
	d, _ := a.Platforms[0].File(artifact.Worker)
	path, err := artifact.BlobPath(w.Layout, d)
	if err != nil {
		t.Fatal(err)
	}
	flip(t, path)
	err = w.BuildAndCheck(t.Context(), new(bytes.Buffer), false, "agoric-upgrade-16")
	if err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("building over a damaged layout: %v, want an error that names %s", err, path)
	}
	if _, err := artifact.Open(w.Layout, "agoric-upgrade-16"); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("opening a damaged layout: %v, want an error that names %s", err, path)
	}
}

func flip(t *testing.T, path string) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 1
	os.Remove(path)
	if err := os.WriteFile(path, b, 0o444); err != nil {
		t.Fatal(err)
	}
}

func second[T any](_ T, err error) error { return err }

func TestUnknownNames(t *testing.T) {
	w := workshop(t)
	for _, test := range []struct {
		err  error
		want string // a name that there is
	}{
		{w.BuildAndCheck(t.Context(), io.Discard, false, "agoric-upgrade-61"), "agoric-upgrade-16"},
		{w.BuildEngine(t.Context(), io.Discard, false, "6d7f33f8"), "6d7f33f8-65d8e660"},
		{w.CheckEngines(t.Context(), io.Discard, false, "6d7f33f8"), "6d7f33f8-65d8e660"},
		{second(pins.Load("6d7f33f8")), "6d7f33f8-65d8e660"},
		{second(w.Sources().Add(t.Context(), t.TempDir(), "new", "zzz", "yyy")), "40 hexadecimal digits"},
		{second(w.Sources().Add(t.Context(), "../moddable-pins", "made-up", "f6c5951fc055e4ca592b9166b9ae3cbb9cca6bf0", "eef9b67da5517ed18ff9e0073b842db20924eae3")), "f6c5951f-eef9b67d"},
	} {
		if release.Status(test.err) != exit.Usage || !strings.Contains(test.err.Error(), test.want) {
			t.Errorf("got %v (status %d), want status %d and %s", test.err, release.Status(test.err), exit.Usage, test.want)
		}
	}
}

// emptyWorkshop has a store with nothing in it.
func emptyWorkshop(t *testing.T) *release.Workshop {
	t.Helper()
	s, err := cas.Open(filepath.Join(t.TempDir(), "store"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return &release.Workshop{Store: s, Layout: filepath.Join(t.TempDir(), "oci")}
}

// noRepositories lets no git repository be had but a mirror's.
func noRepositories(t *testing.T) {
	t.Helper()
	t.Setenv("GIT_CONFIG_COUNT", "1")
	t.Setenv("GIT_CONFIG_KEY_0", "url./nonexistent/.insteadOf")
	t.Setenv("GIT_CONFIG_VALUE_0", "https://github.com/")
}

func TestMissingSourcesAreNamed(t *testing.T) {
	noRepositories(t)
	w := emptyWorkshop(t)
	w.SourceMirror = t.TempDir()
	err := w.BuildAndCheck(t.Context(), new(bytes.Buffer), false, "agoric-upgrade-10")
	if release.Status(err) != exit.Unavailable {
		t.Fatalf("got %v (status %d), want status %d", err, release.Status(err), exit.Unavailable)
	}
	for _, want := range []string{"agoric-upgrade-10", "xsnap-native", "2d8ccb76b8508e490d9e03972bb4c64f402d5135", "--source-mirror", "ENGINERY_SOURCE_MIRROR", "insteadOf", w.SourceMirror} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the error lacks %q:\n%v", want, err)
		}
	}
	if entries, err := os.ReadDir(w.Layout); err == nil && len(entries) > 0 {
		t.Errorf("something was written to the layout: %v", entries)
	}
}

// Pins that are no historic engines are not simply unknown.
func TestPinsThatAreNoHistoricEngines(t *testing.T) {
	noRepositories(t)
	w := emptyWorkshop(t)
	for _, test := range []struct {
		pin    string
		status int
		want   []string
	}{
		{"547c16c3-0b3869eb", exit.Unavailable, []string{"547c16c34ac90f6ae4329d0deeb171f5c99c37b4", "--source-mirror", "insteadOf"}},
		{"f6c5951f-2d8ccb76", exit.Usage, []string{"agoric-upgrade-15", "build:version agoric-upgrade-10"}},
	} {
		err := w.BuildEngine(t.Context(), io.Discard, false, test.pin)
		if release.Status(err) != test.status {
			t.Errorf("%s: got %v (status %d), want status %d", test.pin, err, release.Status(err), test.status)
			continue
		}
		for _, want := range test.want {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%s: the error lacks %q:\n%v", test.pin, want, err)
			}
		}
	}
}

func TestNoNPM(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	w := emptyWorkshop(t)
	err := w.BuildAndCheck(t.Context(), new(bytes.Buffer), false, "agoric-upgrade-16")
	if release.Status(err) != exit.Unavailable || !strings.Contains(err.Error(), "npm") {
		t.Errorf("got %v (status %d), want status %d and the name of the program", err, release.Status(err), exit.Unavailable)
	}
}

func TestExportedSourcesAreThePinnedOnes(t *testing.T) {
	w := workshop(t)
	dir := filepath.Join(t.TempDir(), "sources", "agoric-upgrade-16")
	if err := w.ExportSources(t.Context(), "agoric-upgrade-16", dir); err != nil {
		t.Fatal(err)
	}
	r := enginetest.Recipe(t, "agoric-upgrade-16")
	for name, want := range map[string]cas.Digest{"moddable": r.Pin.Moddable.Tree, "xsnap-native": r.Pin.XsnapNative.Tree} {
		if got, err := cas.HashTree(filepath.Join(dir, name)); err != nil || got != want {
			t.Errorf("%s is the tree %v (%v), want %v", name, got, err, want)
		}
	}
	if b, err := os.ReadFile(filepath.Join(dir, "recipe.json")); err != nil || cas.OfBytes(b) != r.Digest() {
		t.Errorf("recipe.json has another digest than the recipe: %v", err)
	}
	if err := w.ExportSources(t.Context(), "agoric-upgrade-16", dir); err == nil || !strings.Contains(err.Error(), "exists") {
		t.Errorf("exporting over what is there: %v, want an error", err)
	}
	// What is exported compiles without Enginery, by the host's compiler.
	if _, err := exec.LookPath("make"); err != nil {
		t.Fatal(err)
	}
	make := exec.Command("make", "-n", "-f", r.Make.File, "MODDABLE="+filepath.Join(dir, "moddable"), "GOAL=debug", "XSNAP_VERSION=test")
	make.Dir = filepath.Join(dir, r.Make.Directory)
	if out, err := make.CombinedOutput(); err != nil || !strings.Contains(string(out), "xsnap-worker.c") {
		t.Errorf("make -n in the exported sources: %v\n%s", err, out)
	}
}

// TestMain lets the test binary be a process that builds, so that it can be killed.
func TestMain(m *testing.M) {
	if store := os.Getenv("TEST_BUILD_IN"); store != "" {
		if err := buildSlowly(store, os.Getenv("TEST_BUILD_FLAG")); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if store := os.Getenv("TEST_REBUILD"); store != "" {
		if err := rebuild(store, os.Getenv("TEST_LAYOUT")); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if os.Getenv("TEST_NOTHING") != "" {
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// rebuild does what the target build:version does.
func rebuild(dir, layout string) error {
	s, err := cas.Open(dir)
	if err != nil {
		return err
	}
	defer s.Close()
	w := &release.Workshop{Store: s, Layout: layout}
	return w.BuildAndCheck(context.Background(), os.Stdout, false, "agoric-upgrade-16")
}

// buildSlowly compiles a debug worker that nobody has compiled before, which takes some seconds.
func buildSlowly(dir, flag string) error {
	s, err := cas.Open(dir)
	if err != nil {
		return err
	}
	defer s.Close()
	r, err := recipes.Load("agoric-upgrade-16")
	if err != nil {
		return err
	}
	r.Targets, r.Goals = r.Targets[:1], []string{recipes.Debug}
	r.CFlags = append(r.CFlags, flag)
	w := &release.Workshop{Store: s, Layout: filepath.Join(dir, "oci"), ToolchainFrom: os.Getenv("ENGINERY_TOOLCHAIN_FROM")}
	_, err = w.Build(context.Background(), r)
	return err
}

func TestKilledBuildLeavesNothingAndTheNextGoesOn(t *testing.T) {
	s := enginetest.Store(t)
	flag := fmt.Sprintf("-DTEST_RUN=%d", time.Now().UnixNano())
	start := func() (*exec.Cmd, *bytes.Buffer) {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), "TEST_BUILD_IN="+s.Dir(), "TEST_BUILD_FLAG="+flag)
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		return cmd, &out
	}
	var left []string
	for _, compiling := range []bool{false, true} {
		cmd, out := start()
		time.Sleep(300 * time.Millisecond)
		for deadline := time.Now().Add(5 * time.Minute); compiling && processesWith(flag) == 0; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(deadline) {
				cmd.Process.Kill()
				cmd.Wait()
				t.Fatalf("the build does not compile:\n%s", out)
			}
		}
		cmd.Process.Signal(syscall.SIGKILL)
		cmd.Wait()
		deadline := time.Now().Add(20 * time.Second)
		for processesWith(flag) > 0 && time.Now().Before(deadline) {
			time.Sleep(50 * time.Millisecond)
		}
		if n := processesWith(flag); n > 0 {
			t.Errorf("%d processes of the build are left that was killed (compiling: %v)", n, compiling)
		}
		if b, err := os.ReadFile("/proc/self/mountinfo"); err != nil || bytes.Contains(b, []byte(s.Dir()+"/tmp")) {
			t.Errorf("a mount of the killed build is left (%v)", err)
		}
		locks, err := filepath.Glob(filepath.Join(s.Dir(), "tmp", "*.lock"))
		if err != nil {
			t.Fatal(err)
		}
		for _, lock := range locks {
			if dir := strings.TrimSuffix(lock, ".lock"); abandoned(dir) {
				left = append(left, dir)
			}
		}
	}
	cmd, out := start() // which sweeps
	if err := cmd.Wait(); err != nil {
		t.Fatalf("the build after the killed ones: %v\n%s", err, out)
	}
	for _, dir := range left {
		if _, err := os.Lstat(dir); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is left (%v)", dir, err)
		}
	}
}

// abandoned reports whether a scratch directory is there and nobody holds its lock.
func abandoned(dir string) bool {
	f, err := os.Open(dir + ".lock")
	if err == nil {
		defer f.Close()
		err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false
	}
	_, err = os.Lstat(dir) // an owner removes it before the lock
	return err == nil
}

// processesWith counts the processes that have text in their command line.
func processesWith(text string) int {
	n := 0
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, file := range files {
		if b, err := os.ReadFile(file); err == nil && bytes.Contains(b, []byte(text)) {
			n++
		}
	}
	return n
}

func TestFullDiskIsOneClearError(t *testing.T) {
	unshare, err := exec.LookPath("unshare")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	script := `mount -t tmpfs -o size=1m none "$0" && exec "$1"`
	cmd := exec.Command(unshare, "--map-root-user", "--mount", "sh", "-c", script, dir, os.Args[0])
	cmd.Env = append(os.Environ(), "TEST_BUILD_IN="+filepath.Join(dir, "store"), "TEST_BUILD_FLAG=-DNDEBUG")
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "no space left on device") {
		t.Errorf("building on a full disk: %v\n%s", err, out)
	}
}
