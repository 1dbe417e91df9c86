package build

import (
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"

	repb "github.com/bazelbuild/remote-apis/build/bazel/remote/execution/v2"
	"github.com/enginery/enginery/internal/cas"
	"github.com/enginery/enginery/internal/progress"
	"github.com/enginery/enginery/recipes"
	"golang.org/x/sync/errgroup"
)

// Executor runs actions. The local one runs them in a sandbox on this machine; any Remote Execution API server can be another.
type Executor interface {
	// Execute runs an action whose messages and inputs are in the store, and returns its result, whose outputs are
	// in the store then. An action that fails gives an *ActionError.
	Execute(ctx context.Context, a *Action) (*repb.ActionResult, error)
}

// Worker is a compiled engine.
type Worker struct {
	Platform string     // e.g. "linux/amd64"
	Goal     string     // "release" or "debug"
	Binary   cas.Digest // the worker, a statically linked ELF executable, in the store
	Action   cas.Digest // what made it
}

// Outputs are a recipe's workers, in the order of its platforms and goals.
type Outputs struct {
	Workers []Worker
}

// Worker returns the worker for a platform and goal, if there is one.
func (o *Outputs) Worker(platform, goal string) (Worker, bool) {
	for _, w := range o.Workers {
		if w.Platform == platform && w.Goal == goal {
			return w, true
		}
	}
	return Worker{}, false
}

// FailedError lists versions that could not be built; the others that were asked for were.
type FailedError struct {
	Versions map[string]error // by version ID
}

func (e *FailedError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d of the versions asked for could not be built here:", len(e.Versions))
	for _, id := range slices.Sorted(maps.Keys(e.Versions)) {
		fmt.Fprintf(&b, "\n%s: %v", id, e.Versions[id])
	}
	return b.String()
}

// Unwrap returns the versions' errors, sorted by version ID.
func (e *FailedError) Unwrap() []error {
	var all []error
	for _, id := range slices.Sorted(maps.Keys(e.Versions)) {
		all = append(all, e.Versions[id])
	}
	return all
}

// Engines compiles the engines of several recipes, at once as far as the executor allows. Actions that recipes share
// run once; those with a result in the store do not run. fetch brings the sources of a recipe into the store; it is called only
// for recipes with something to run.
//
// What fails because of a recipe's own sources or code does not keep the others from being compiled: they are returned with a
// *FailedError.
func Engines(ctx context.Context, store *cas.Store, ex Executor, fetch func(context.Context, *recipes.Recipe) error, rs ...*recipes.Recipe) (map[string]*Outputs, error) {
	plans := make(map[string][]*Action)
	results := make(map[cas.Digest]cas.Digest) // action -> binary
	failures := make(map[cas.Digest]error)     // by action
	var missing []*Action
	pending := make(map[cas.Digest]bool)
	var needSources []*recipes.Recipe
	for _, r := range rs {
		actions, err := Plan(r)
		if err != nil {
			return nil, err
		}
		plans[r.ID] = actions
		fresh := false
		for _, a := range actions {
			if _, known := results[a.Digest]; known || pending[a.Digest] {
				continue
			}
			binary, ok, err := lookup(store, a)
			if err != nil {
				return nil, err
			}
			if ok {
				results[a.Digest] = binary
				continue
			}
			pending[a.Digest] = true
			missing = append(missing, a)
			fresh = true
		}
		if fresh {
			needSources = append(needSources, r)
		}
	}
	for _, r := range needSources {
		err := fetch(ctx, r)
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if err == nil {
			continue
		}
		for _, a := range plans[r.ID] {
			if pending[a.Digest] {
				failures[a.Digest] = err
			}
		}
	}
	missing = slices.DeleteFunc(missing, func(a *Action) bool { return failures[a.Digest] != nil })
	var mu sync.Mutex
	var task *progress.Task
	if len(missing) > 0 {
		task = progress.StartSteps(ctx, "compile engines", len(missing))
	}
	g, gctx := errgroup.WithContext(ctx)
	for _, a := range missing {
		g.Go(func() error {
			binary, err := run(gctx, store, ex, a)
			if err != nil && !own(err) {
				return err
			}
			task.Add(1)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				failures[a.Digest] = err
			} else {
				results[a.Digest] = binary
			}
			return nil
		})
	}
	err := g.Wait()
	task.Done(err)
	if err != nil {
		return nil, err
	}
	outputs := make(map[string]*Outputs)
	failed := make(map[string]error)
	for _, r := range rs {
		o := new(Outputs)
		for _, a := range plans[r.ID] {
			if err := failures[a.Digest]; err != nil && failed[r.ID] == nil {
				failed[r.ID] = err
			}
			o.Workers = append(o.Workers, Worker{Platform: a.Platform, Goal: a.Goal, Binary: results[a.Digest], Action: a.Digest})
		}
		if failed[r.ID] == nil {
			outputs[r.ID] = o
		}
	}
	if len(failed) > 0 {
		return outputs, &FailedError{failed}
	}
	return outputs, nil
}

// unfitError says that an action made something that is no worker.
type unfitError struct{ error }

func (e unfitError) Unwrap() error { return e.error }

// own reports whether an action's failure is the action's own: another one, on the same machine, may well succeed.
func own(err error) bool {
	var failed *ActionError
	var unfit unfitError
	var corrupt *cas.CorruptError
	return errors.As(err, &failed) || errors.As(err, &unfit) || errors.As(err, &corrupt)
}

// lookup returns the binary that an action made before, if it is known and still there.
func lookup(store *cas.Store, a *Action) (cas.Digest, bool, error) {
	result, ok, err := store.Result(a.Digest)
	if err != nil || !ok {
		return cas.Digest{}, false, err
	}
	binary, err := a.Output(result)
	if err != nil {
		return cas.Digest{}, false, fmt.Errorf("%s: %w", a.Name, err)
	}
	if !store.Has(binary) {
		return cas.Digest{}, false, nil
	}
	return binary, true, nil
}

func run(ctx context.Context, store *cas.Store, ex Executor, a *Action) (cas.Digest, error) {
	for d, b := range a.Blobs() {
		if _, err := store.PutBytes(ctx, b); err != nil {
			return cas.Digest{}, fmt.Errorf("%s: storing blob %s: %w", a.Name, d, err)
		}
	}
	unlock, err := store.Lock(ctx, a.Digest, func() { progress.Logf(ctx, "waiting for another process that compiles %s", a.Name) })
	if err != nil {
		return cas.Digest{}, err
	}
	defer unlock()
	if binary, ok, err := lookup(store, a); ok || err != nil {
		return binary, err
	}
	result, err := ex.Execute(ctx, a)
	if err != nil {
		return cas.Digest{}, err
	}
	binary, err := a.Output(result)
	if err != nil {
		return cas.Digest{}, unfitError{fmt.Errorf("%s: %w", a.Name, err)}
	}
	if err := checkStatic(store.Path(binary), a.Platform); err != nil {
		return cas.Digest{}, unfitError{fmt.Errorf("%s: %w", a.Name, err)}
	}
	if err := store.PutResult(ctx, a.Digest, result); err != nil {
		return cas.Digest{}, err
	}
	return binary, nil
}

var machines = map[string]elf.Machine{"linux/amd64": elf.EM_X86_64, "linux/arm64": elf.EM_AARCH64}

// checkStatic makes sure that a worker is an executable for its platform that needs no loader and no library.
func checkStatic(file, platform string) error {
	f, err := elf.Open(file)
	if err != nil {
		return fmt.Errorf("the worker is not an ELF file: %w", err)
	}
	defer f.Close()
	if want := machines[platform]; f.Machine != want {
		return fmt.Errorf("the worker is for %v, expected %v for %s", f.Machine, want, platform)
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return errors.New("the worker needs a loader: expected a statically linked executable; check the recipe's link flags")
		}
	}
	if libs, err := f.ImportedLibraries(); err == nil && len(libs) > 0 {
		return fmt.Errorf("the worker needs libraries %s: expected a statically linked executable; check the recipe's link flags", strings.Join(libs, ", "))
	}
	return nil
}

// ActionError says that an action ran and failed.
type ActionError struct {
	Name string     // the action's name
	Err  error      // how it ended
	Tail string     // the last lines it printed
	Log  cas.Digest // all it printed, in the store
	Path string     // where that is
}

func (e *ActionError) Error() string {
	return fmt.Sprintf("compiling %s failed: %v\n%s\nthe whole log is in %s", e.Name, e.Err, strings.TrimRight(e.Tail, "\n"), e.Path)
}

func (e *ActionError) Unwrap() error { return e.Err }

func tail(file string, lines int) string {
	b, err := os.ReadFile(file)
	if err != nil {
		return ""
	}
	all := strings.Split(strings.TrimRight(string(b), "\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// Known reports whether the results of all actions of a recipe are in the store.
func Known(store *cas.Store, r *recipes.Recipe) (bool, error) {
	actions, err := Plan(r)
	if err != nil {
		return false, err
	}
	for _, a := range actions {
		if _, ok, err := lookup(store, a); !ok || err != nil {
			return false, err
		}
	}
	return true, nil
}
