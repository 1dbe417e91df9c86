package build_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	repb "github.com/bazelbuild/remote-apis/build/bazel/remote/execution/v2"
	"github.com/enginery/enginery/build"
	"github.com/enginery/enginery/internal/cas"
	"github.com/enginery/enginery/internal/enginetest"
	pins "github.com/enginery/enginery/moddable-pins"
	"github.com/enginery/enginery/recipes"
)

// The tests compile a small program with the real toolchain in the real sandbox; release's tests compile the real engines.

const makefile = `
all: $(OUT)
$(OUT): main.o $(MODDABLE)/answer.o
	$(CC) $(LINK_OPTIONS) $^ -o $@
%.o: %.c
	$(CC) -c $< -o $@
`

// recipe returns a recipe whose worker is a program with this main function, for the first target and the release goal.
func recipe(t testing.TB, s *cas.Store, main string) *recipes.Recipe {
	t.Helper()
	ctx := context.Background()
	real, err := recipes.Load("agoric-upgrade-16")
	if err != nil {
		t.Fatal(err)
	}
	moddable, err := s.PutFS(ctx, fstest.MapFS{"answer.c": {Data: []byte("int answer(void) { return 42; }\n")}})
	if err != nil {
		t.Fatal(err)
	}
	native, err := s.PutFS(ctx, fstest.MapFS{
		"worker/Makefile": {Data: []byte(makefile)},
		"worker/main.c":   {Data: []byte(main)},
	})
	if err != nil {
		t.Fatal(err)
	}
	return &recipes.Recipe{
		ID: "test",
		Pin: &pins.Pin{
			Name:        "test",
			Moddable:    pins.Component{Name: "moddable", Tree: moddable, Recorded: true},
			XsnapNative: pins.Component{Name: "xsnap-native", Tree: native, Recorded: true},
		},
		Targets: []recipes.Target{{Platform: real.Targets[0].Platform, Toolchain: real.Targets[0].Toolchain}},
		Goals:   []string{recipes.Release},
		Make: recipes.Make{
			Directory: "xsnap-native/worker",
			File:      "Makefile",
			Variables: []string{"OUT=worker", "MODDABLE={root}/moddable", "CC={cc}", "LINK_OPTIONS={ldflags}"},
			Output:    "xsnap-native/worker/worker",
		},
		LDFlags: []string{"-static", "-Wl,--build-id=none"},
	}
}

// nothing is for recipes whose sources are in the store.
func nothing(context.Context, *recipes.Recipe) error { return nil }

// counting counts what reaches an executor.
type counting struct {
	build.Executor
	n int
}

func (c *counting) Execute(ctx context.Context, a *build.Action) (*repb.ActionResult, error) {
	c.n++
	return c.Executor.Execute(ctx, a)
}

const answer = "int answer(void); int main(void) { return answer() - 42; }\n"

// unique makes an action that no earlier run has a result for.
func unique(source string) string {
	return source + "// " + time.Now().Format(time.RFC3339Nano) + "\n"
}

func TestResultsAreReused(t *testing.T) {
	s := enginetest.Store(t)
	r := recipe(t, s, unique(answer))
	ex := &counting{Executor: enginetest.Executor(t, s)}
	first, err := build.Engines(t.Context(), s, ex, nothing, r)
	if err != nil {
		t.Fatal(err)
	}
	w, ok := first["test"].Worker("linux/amd64", recipes.Release)
	if !ok || ex.n != 1 {
		t.Fatalf("got %+v after %d executions, want one worker after one", first["test"], ex.n)
	}
	exe := filepath.Join(t.TempDir(), "worker")
	if err := s.ExportFile(w.Binary, exe, 0o755); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(exe).CombinedOutput(); err != nil {
		t.Errorf("running what was built: %v %s", err, out)
	}
	unreachable := func(context.Context, *recipes.Recipe) error { return errors.New("sources were asked for") }
	second, err := build.Engines(t.Context(), s, ex, unreachable, r)
	if err != nil || ex.n != 1 {
		t.Fatalf("second build: %v, %d executions; want none", err, ex.n-1)
	}
	if again, _ := second["test"].Worker("linux/amd64", recipes.Release); again != w {
		t.Errorf("second build gave %+v, first %+v", again, w)
	}
}

func TestFailureShowsWhatTheCompilerSaid(t *testing.T) {
	s := enginetest.Store(t)
	_, err := build.Engines(t.Context(), s, enginetest.Executor(t, s), nothing, recipe(t, s, "int main(void) { return nonsense; }\n"))
	var failed *build.ActionError
	if !errors.As(err, &failed) {
		t.Fatalf("got %v, want an ActionError", err)
	}
	for _, want := range []string{"test linux/amd64 release", "exit code 2", "nonsense", failed.Path} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error lacks %q:\n%v", want, err)
		}
	}
	if err := s.Verify(failed.Log); err != nil {
		t.Errorf("the log: %v", err)
	}
}

func TestDynamicWorkerIsRefused(t *testing.T) {
	s := enginetest.Store(t)
	r := recipe(t, s, unique(answer))
	r.LDFlags = nil
	_, err := build.Engines(t.Context(), s, enginetest.Executor(t, s), nothing, r)
	if err == nil || !strings.Contains(err.Error(), "statically linked") {
		t.Errorf("got %v, want an error that asks for a statically linked executable", err)
	}
}

func TestOutputCannotPointOutside(t *testing.T) {
	s := enginetest.Store(t)
	r := recipe(t, s, unique(answer))
	for _, rule := range []string{"ln -s /etc/hostname $@", "ln -s /etc /build/out"} {
		native, err := s.PutFS(t.Context(), fstest.MapFS{"worker/Makefile": {Data: []byte("$(OUT):\n\t" + rule + "\n")}})
		if err != nil {
			t.Fatal(err)
		}
		r.Pin.XsnapNative.Tree = native
		r.Make.Output = "xsnap-native/worker/worker"
		if strings.Contains(rule, "out") {
			r.Make.Output = "out/hostname"
		}
		_, err = build.Engines(t.Context(), s, enginetest.Executor(t, s), nothing, r)
		if err == nil || !strings.Contains(err.Error(), "output") {
			t.Errorf("%s: got %v, want an error about the output", rule, err)
		}
	}
}

func TestDamagedSourceIsNamed(t *testing.T) {
	s := enginetest.Store(t)
	source := unique(answer)
	r := recipe(t, s, source)
	path := s.Path(cas.OfBytes([]byte(source)))
	b := bytes.Replace([]byte(source), []byte("42"), []byte("43"), 1)
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b, 0o644); err != nil {
		t.Fatal(err)
	}
	ex := &counting{Executor: enginetest.Executor(t, s)}
	_, err := build.Engines(t.Context(), s, ex, nothing, r)
	var corrupt *cas.CorruptError
	if !errors.As(err, &corrupt) || corrupt.Path != path {
		t.Errorf("got %v, want a CorruptError that names %s", err, path)
	}
}

func TestUnrecordedSourcesAreRefused(t *testing.T) {
	s := enginetest.Store(t)
	r := recipe(t, s, answer)
	r.Pin.Moddable.Recorded = false
	if _, err := build.Plan(r); err == nil || !strings.Contains(err.Error(), "pins:add") {
		t.Errorf("got %v, want an error that says how to record the sources", err)
	}
}

func TestCancelledBuildEndsAtOnce(t *testing.T) {
	s := enginetest.Store(t)
	r := recipe(t, s, unique(answer))
	native, err := s.PutFS(t.Context(), fstest.MapFS{"worker/Makefile": {Data: []byte("$(OUT):\n\tsleep 600\n")}})
	if err != nil {
		t.Fatal(err)
	}
	r.Pin.XsnapNative.Tree = native
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	start := time.Now()
	if _, err := build.Engines(ctx, s, enginetest.Executor(t, s), nothing, r); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want the context's error", err)
	}
	if d := time.Since(start); d > 60*time.Second {
		t.Errorf("it took %v to end", d)
	}
	left, _ := filepath.Glob(filepath.Join(s.Dir(), "tmp", "action-*"))
	for _, dir := range left {
		if b, err := os.ReadFile(filepath.Join(dir, "work", "xsnap-native", "worker", "Makefile")); err == nil && strings.Contains(string(b), "sleep 600") {
			t.Errorf("%s is left", dir)
		}
	}
}

func TestActionsHaveTheirOwnTimeout(t *testing.T) {
	s := enginetest.Store(t)
	r := recipe(t, s, unique(answer))
	native, err := s.PutFS(t.Context(), fstest.MapFS{"worker/Makefile": {Data: []byte("$(OUT):\n\techo now it sleeps; sleep 600\n")}})
	if err != nil {
		t.Fatal(err)
	}
	r.Pin.XsnapNative.Tree = native
	actions, err := build.Plan(r)
	if err != nil {
		t.Fatal(err)
	}
	a := actions[0]
	for _, b := range a.Blobs() {
		if _, err := s.PutBytes(t.Context(), b); err != nil {
			t.Fatal(err)
		}
	}
	a.Timeout = time.Second
	_, err = enginetest.Executor(t, s).Execute(t.Context(), a)
	var failed *build.ActionError
	if !errors.As(err, &failed) || !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("got %v, want an ActionError for the end of its time", err)
	}
	for _, want := range []string{"stopped after 1s", "now it sleeps"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the error lacks %q:\n%v", want, err)
		}
	}
}

func TestPlanKnowsDigestsWithoutSources(t *testing.T) {
	r, err := recipes.Load("agoric-upgrade-16")
	if err != nil {
		t.Fatal(err)
	}
	first, err := build.Plan(r)
	if err != nil {
		t.Fatal(err)
	}
	seen := make(map[cas.Digest]string)
	for _, a := range first {
		if other, ok := seen[a.Digest]; ok {
			t.Errorf("%s and %s have one digest", a.Name, other)
		}
		seen[a.Digest] = a.Name
	}
	if want := len(r.Targets) * len(r.Goals); len(first) != want {
		t.Errorf("%d actions, want %d", len(first), want)
	}
	r.CFlags = append(r.CFlags, "-DCHANGED")
	second, err := build.Plan(r)
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range second {
		if name, ok := seen[a.Digest]; ok {
			t.Errorf("a changed flag did not change the digest of %s", name)
		}
	}
}
