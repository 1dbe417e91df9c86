package vat

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/enginery/enginery/internal/swingsettest"
	"github.com/enginery/enginery/swingstore"
)

// host answers with what its functions say, and keeps results otherwise.
type host struct {
	results
	before  func(kind string) error
	callNow func() ([]byte, error)
}

func (h host) Syscall(ctx context.Context, tx *swingstore.Tx, vat string, syscall []byte) ([]byte, error) {
	var s []json.RawMessage
	if err := json.Unmarshal(syscall, &s); err != nil {
		return nil, err
	}
	if h.before != nil {
		if err := h.before(text(s[0])); err != nil {
			return nil, err
		}
	}
	if text(s[0]) == "callNow" {
		return h.callNow()
	}
	return h.results.Syscall(ctx, tx, vat, syscall)
}

// start makes a vat of a bundle in testdata/swingset/vats on the newer version, which is the legacy one.
func start(t testing.TB, name string, i Incarnation, change func(*Options)) (*swingstore.Store, *Vat) {
	t.Helper()
	s := openStore(t, filepath.Join(t.TempDir(), "store.sqlite"))
	o := Options{ID: "v1", Host: results{}, Engines: only(engine(t, newer, "linux/amd64")), SnapshotInitial: 2}
	if change != nil {
		change(&o)
	}
	v := New(o)
	t.Cleanup(func() { v.Close() })
	i.BundleID = add(t, s, swingsettest.Bundles(t, name)[0])[0]
	if i.Name == "" {
		i.Name = name
	}
	if r := create(t, s, v, i); !r.Kept {
		t.Fatalf("%+v", r)
	}
	return s, v
}

// unchanged returns a function that checks that the store has no more than now.
func unchanged(t testing.TB, s *swingstore.Store) func() {
	t.Helper()
	before := dump(t, s)
	return func() {
		t.Helper()
		if after := dump(t, s); after != before {
			t.Errorf("the store has changed: %s", firstDifference(before, after))
		}
	}
}

// What a vat does to itself is in the result, in SwingSet's words, and leaves nothing in the store.
func TestVatFaults(t *testing.T) {
	t.Parallel()
	s, v := start(t, "faults", Incarnation{MeterID: "m1"}, nil)
	wantCall(t, s, v, "count", "[]", "1")
	for _, test := range []struct{ method, args, problem string }{
		{"spin", "[]", "Compute meter exceeded"},
		{"recurse", "[]", "Stack meter exceeded"},
		{"hog", "[]", "Allocate meter exceeded"},
		{"exitWithFailure", `["no more"]`, "the vat has exited with a failure"},
	} {
		same := unchanged(t, s)
		r, err := v.Crank(t.Context(), s, message("p-99", test.method, test.args))
		if err != nil {
			t.Fatalf("%s: %v", test.method, err)
		}
		if r.Kept || r.Problem != test.problem || (r.Exit != nil) != (test.method == "exitWithFailure") {
			t.Errorf("%s: %+v, expected %q", test.method, r, test.problem)
		}
		if r.Exit != nil && (!r.Exit.Failure || !strings.Contains(string(r.Exit.Info), "no more")) {
			t.Errorf("%s: %+v", test.method, r.Exit)
		}
		same()
	}
	wantCall(t, s, v, "count", "[]", "2") // as if nothing had happened
	if got := call(t, s, v, "nothing", "[]"); !strings.Contains(got, `rejected: true`) || !strings.Contains(got, "nothing") {
		t.Errorf("a method that there is not: %s", got)
	}
	if r, err := v.Crank(t.Context(), s, message("p-98", "never", "[]")); err != nil || !r.Kept {
		t.Errorf("a promise that stays: %+v, %v", r, err)
	}
	r, err := v.Crank(t.Context(), s, message("p-97", "exit", `["+7"]`))
	if err != nil || !r.Kept || r.Exit == nil || r.Exit.Failure || !strings.Contains(string(r.Exit.Info), "+7") || r.Problem != "" {
		t.Errorf("an exit: %+v, %v", r, err)
	}
}

// A vat that does not start is not there, and one that does not start anew stays as it is.
func TestVatDoesNotStart(t *testing.T) {
	t.Parallel()
	s, v := start(t, "ledger-1", Incarnation{Parameters: parameters("{}")}, nil)
	ids := add(t, s, swingsettest.Bundles(t, "ledger-throws", "ledger-forgets")...)
	same := unchanged(t, s)
	for i, id := range ids {
		r := upgrade(t, s, v, Incarnation{BundleID: id, Parameters: parameters("{}")})
		if want := []string{"version 3 does not start", "defineDurableKind not called"}[i]; r.Kept || !strings.Contains(r.Problem, want) {
			t.Errorf("%+v, expected %q", r, want)
		}
		same()
	}
	v2 := New(Options{ID: "v2", Host: results{}, Engines: v.o.Engines})
	defer v2.Close()
	if r := create(t, s, v2, Incarnation{BundleID: ids[0], Parameters: parameters("{}")}); r.Kept || !strings.Contains(r.Problem, "version 3 does not start") {
		t.Errorf("%+v", r)
	}
	same()
	no := errors.New("no")
	for _, test := range []struct {
		name string
		f    func(tx *swingstore.Tx) (*Result, error)
		want string
	}{
		{"a vat that is there", func(tx *swingstore.Tx) (*Result, error) {
			return v.Create(t.Context(), tx, Incarnation{BundleID: ids[0]})
		}, "has it already"},
		{"no engine", func(tx *swingstore.Tx) (*Result, error) {
			return v.Upgrade(t.Context(), tx, Incarnation{Engine: "agoric-upgrade-99", BundleID: ids[0]}, nil)
		}, "the engine of v1, agoric-upgrade-99"},
		{"no bundle", func(tx *swingstore.Tx) (*Result, error) {
			return v.Upgrade(t.Context(), tx, Incarnation{BundleID: "b1-00"}, nil)
		}, "b1-00: not in the store"},
		{"parameters", func(tx *swingstore.Tx) (*Result, error) {
			return v.Upgrade(t.Context(), tx, Incarnation{BundleID: ids[0], Parameters: []byte("{")}, nil)
		}, "the parameters of v1"},
		{"between", func(tx *swingstore.Tx) (*Result, error) {
			return v.Upgrade(t.Context(), tx, Incarnation{BundleID: ids[0]}, func() error { return errors.Join(tx.Set("host.x", "y"), no) })
		}, "no"},
		{"a vat that is not there", func(tx *swingstore.Tx) (*Result, error) {
			return v2.Upgrade(t.Context(), tx, Incarnation{BundleID: ids[0]}, nil)
		}, "not in the store"},
		{"a delivery to none", func(tx *swingstore.Tx) (*Result, error) {
			return v2.Deliver(t.Context(), tx, []byte(`["bringOutYourDead"]`))
		}, "not in the store"},
		{"a delivery of nothing", func(tx *swingstore.Tx) (*Result, error) { return v.Deliver(t.Context(), tx, []byte(`[]`)) }, "expected an array with one of"},
		{"a delivery of another kind", func(tx *swingstore.Tx) (*Result, error) {
			return v.Deliver(t.Context(), tx, []byte(`["save-snapshot"]`))
		}, "expected an array with one of"},
		{"a delivery of garbage", func(tx *swingstore.Tx) (*Result, error) { return v.Deliver(t.Context(), tx, []byte(`["message"`)) }, "is not JSON"},
	} {
		err := s.Update(func(tx *swingstore.Tx) error {
			if r, err := test.f(tx); err == nil {
				return fmt.Errorf("no error, %+v", r)
			} else if !strings.Contains(err.Error(), test.want) {
				return fmt.Errorf("%w, expected %q", err, test.want)
			}
			return nil // what was done before the error must be undone
		})
		if err != nil {
			t.Errorf("%s: %v", test.name, err)
		}
		same()
	}
	call(t, s, v, "open", `["a"]`)
	wantCall(t, s, v, "report", "[]", `{"incarnations":1,"owners":1,"vatParameters":{},"version":1}`)
}

// A heap that the garbage collector still gets to the end of, and that is nested too deep for a heap snapshot, is the vat's fault: it holds no chain.
func TestSnapshotFaults(t *testing.T) {
	t.Parallel()
	for _, keep := range []bool{false, true} {
		s, v := start(t, "faults", Incarnation{}, func(o *Options) { o.SnapshotInitial, o.KeepWorker = 4, keep })
		call(t, s, v, "nest", "[62000]")
		same := unchanged(t, s)
		if r, err := v.Crank(t.Context(), s, message("p-99", "count", "[]")); err != nil || r.Kept || r.Problem != "Stack meter exceeded" || r.Snapshot != nil {
			t.Errorf("%+v, %v", r, err)
		}
		same()
	}
}

// A syscall that the host calls illegal is the vat's fault: all of the crank is undone.
func TestIllegalSyscall(t *testing.T) {
	t.Parallel()
	illegal := false
	s, v := start(t, "faults", Incarnation{}, func(o *Options) {
		o.Host = host{before: func(kind string) error {
			if kind == "resolve" && illegal {
				return fmt.Errorf("translating: %w", &IllegalSyscallError{"there is no p-1"})
			}
			return nil
		}}
	})
	wantCall(t, s, v, "count", "[]", "1")
	illegal = true
	same := unchanged(t, s)
	if r, err := v.Crank(t.Context(), s, message("p-1", "count", "[]")); err != nil || r.Kept || r.Problem != "illegal syscall: there is no p-1" || r.Meter.Computrons == 0 {
		t.Errorf("%+v, %v", r, err)
	}
	same()
	illegal = false
	wantCall(t, s, v, "count", "[]", "2")
}

// A syscall that makes no sense is the vat's fault, too.
func TestMalformedSyscall(t *testing.T) {
	t.Parallel()
	s := openStore(t, filepath.Join(t.TempDir(), "store.sqlite"))
	v := New(Options{ID: "v1", Host: results{}})
	for _, syscall := range []string{
		"{}", "[]", "7", `["vatstoreGet"]`, `["vatstoreGet",7]`, `["vatstoreSet","a"]`, `["vatstoreDelete",null]`, `["vatstoreGetNextKey",["a"]]`, `["exit",true]`, `["obey","a"]`, `[7]`,
	} {
		var exit *Exit
		err := s.Update(func(tx *swingstore.Tx) error {
			answer, err := v.answer(t.Context(), tx, []byte(syscall), &exit)
			if err == nil {
				t.Errorf("%s is answered with %s", syscall, answer)
			}
			return err
		})
		if illegal := new(IllegalSyscallError); !errors.As(err, &illegal) || exit != nil || !strings.HasPrefix(illegal.Problem, syscall) {
			t.Errorf("%s: %v, %v", syscall, err, exit)
		}
	}
}

// A host that fails or panics, or whose context ends, has not had a crank, and may have it again.
func TestHostFaults(t *testing.T) {
	t.Parallel()
	no := errors.New("no")
	var fault func() error
	s, v := start(t, "faults", Incarnation{}, func(o *Options) {
		o.Host = host{
			before: func(kind string) error {
				if kind == "resolve" && fault != nil {
					return fault()
				}
				return nil
			},
			callNow: func() ([]byte, error) { return nil, nil },
		}
	})
	ctx, cancel := context.WithTimeoutCause(t.Context(), time.Second, no)
	defer cancel()
	canceled, stop := context.WithCancel(t.Context())
	stop()
	for i, test := range []struct {
		name, method string
		ctx          context.Context
		fault        func() error
		want         string
	}{
		{"error", "count", t.Context(), func() error { return no }, `answering a syscall of v1, ["resolve",`},
		{"panic", "count", t.Context(), func() error { panic("ouch") }, "panic: ouch"},
		{"its own kill", "count", t.Context(), func() error { v.m.Kill(); return nil }, "killed"},
		{"an endless loop", "spin", ctx, nil, "no"},
		{"a context that has ended", "count", canceled, nil, "canceled"},
	} {
		same := unchanged(t, s)
		fault = test.fault
		r, err := v.Crank(test.ctx, s, message("p-50", test.method, "[]"))
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %+v, %v; expected %q", test.name, r, err, test.want)
		}
		fault = nil
		same()
		wantCall(t, s, v, "count", "[]", strconv.Itoa(i+1))
	}
}

// A callNow is answered, with data or what went wrong.
func TestCallNow(t *testing.T) {
	t.Parallel()
	var answer func() ([]byte, error)
	var printed []string
	s, v := start(t, "faults", Incarnation{}, func(o *Options) {
		o.Host = host{callNow: func() ([]byte, error) { return answer() }}
		o.Console = func(source, level string, args []json.RawMessage) {
			printed = append(printed, fmt.Sprintf("%s %s %s", source, level, args))
		}
	})
	ask := func(want string) {
		t.Helper()
		span, err := s.Current(t.Context(), "v1")
		if err != nil {
			t.Fatal(err)
		}
		result := fmt.Sprintf("p-%d", span.End)
		m := fmt.Appendf(nil, `["message","o+0",{"methargs":{"body":"#[\"device\",[\"$0.Alleged: device\"]]","slots":["d-60"]},"result":%q}]`, result)
		if r, err := v.Crank(t.Context(), s, m); err != nil || !r.Kept {
			t.Fatalf("%+v, %v", r, err)
		}
		if got, err := s.Get(t.Context(), "host.v1."+result); err != nil || !strings.Contains(got, want) {
			t.Errorf("%s, %v; expected %s", got, err, want)
		}
	}
	answer = func() ([]byte, error) { return []byte(`{"body":"#\"an answer\"","slots":[]}`), nil }
	ask(`false #"an answer"`)
	answer = func() ([]byte, error) { return nil, &CallError{"it is broken"} }
	ask("syscall.callNow failed: it is broken")
	printed = nil
	if call(t, s, v, "log", `["hello",{"a":"+1"}]`); !slices.Equal(printed, []string{`vat log ["hello" "{ a: 1n }"]`}) {
		t.Errorf("printed %q", printed)
	}
	for item, err := range currentItems(t, s) {
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(item.Text), `["callNow"`) && !strings.Contains(string(item.Text), `"r":["ok",{"body":"#\"an answer\"","slots":[]}]`) &&
			!strings.Contains(string(item.Text), `"r":["error","it is broken"]`) {
			t.Errorf("%s", item.Text)
		}
	}
}

func currentItems(t testing.TB, s *swingstore.Store) func(func(swingstore.Item, error) bool) {
	t.Helper()
	span, err := s.Current(t.Context(), "v1")
	if err != nil {
		t.Fatal(err)
	}
	return s.Items(t.Context(), span)
}

// pids returns the processes below this one, with a word in their command line.
func pids(t testing.TB, word string) (found []int) {
	t.Helper()
	files, err := filepath.Glob("/proc/self/task/*/children")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		list, _ := os.ReadFile(file) // the thread may be gone
		for _, field := range strings.Fields(string(list)) {
			line, _ := os.ReadFile("/proc/" + field + "/cmdline")
			if slices.Contains(strings.Split(string(line), "\x00"), word) {
				pid, err := strconv.Atoi(field)
				if err != nil {
					t.Fatal(err)
				}
				found = append(found, pid)
			}
		}
	}
	return found
}

// A worker that dies while it writes a heap snapshot ends the manager with an error.
func TestWorkerDiesInSnapshot(t *testing.T) {
	t.Parallel()
	s := fixture(t)
	v, err := s.Vat(t.Context(), "v4")
	if err != nil {
		t.Fatal(err)
	}
	for i, restart := range []bool{false, true} {
		o := ManagerOptions{Worker: worker(t, newer, "linux/amd64"), ID: "v4", Name: fmt.Sprint("dies in a heap snapshot ", i)}
		read := func(id string) ([]byte, error) { return s.Bundle(t.Context(), id) }
		ids := v.Options.WorkerOptions.BundleIDs
		if err := o.ReadBundles(read, ids[0], ids[1], v.BundleID); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), deadline)
		defer cancel()
		m, err := StartManager(ctx, o)
		if err != nil {
			t.Fatal(err)
		}
		old := pids(t, "v4:"+o.Name)
		if len(old) != 1 {
			t.Fatalf("the workers are %v", old)
		}
		var once sync.Once
		err = m.Snapshot(ctx, writerFunc(func(p []byte) (int, error) {
			once.Do(func() { syscall.Kill(old[0], syscall.SIGKILL) })
			return len(p), nil
		}), restart)
		if err == nil || !strings.Contains(err.Error(), "signal 9") {
			t.Errorf("restart %v: %v", restart, err)
		}
		m.Kill()
		if left := pids(t, "v4:"+o.Name); len(left) > 0 {
			t.Errorf("restart %v: processes %v are left", restart, left)
		}
	}
}

// A context that ends when the heap snapshot is taken, and only the old worker is still there, ends the crank with the new one.
func TestContextEndsAfterSnapshot(t *testing.T) {
	t.Parallel()
	ended := filepath.Join(t.TempDir(), "ended")
	s, v := start(t, "faults", Incarnation{}, func(o *Options) {
		slow := *engine(t, newer, "linux/amd64")
		slow.Worker.Emulator = []string{"/bin/sh", "-c", `"$0" "$@"; status=$?; echo > ` + ended + `; sleep 1; exit $status`}
		o.SnapshotInitial, o.Engines = 3, only(&slow)
	})
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		for ctx.Err() == nil {
			if _, err := os.Stat(ended); err == nil {
				cancel()
			}
			time.Sleep(time.Millisecond)
		}
	}()
	same := unchanged(t, s)
	if r, err := v.Crank(ctx, s, message("p-50", "count", "[]")); !errors.Is(err, context.Canceled) {
		t.Errorf("%+v, %v", r, err)
	}
	same()
	wantCall(t, s, v, "count", "[]", "1")
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// Workers that die at any time, in cranks, snapshots and upgrades, cost time and nothing else: the store becomes what it becomes without.
func TestWorkersDie(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 2*deadline)
	defer cancel()
	es := [2]*Engine{engine(t, older, "linux/amd64"), engine(t, newer, "linux/amd64")}
	bundles := historyBundles(t)
	const steps = 40
	var took [steps]time.Duration
	var dumps []string
	for _, disturbed := range []bool{false, true} {
		s := openStore(t, filepath.Join(t.TempDir(), "store.sqlite"))
		h := newHistory(s, "mortal", bundles, es, nil)
		defer h.v.Close()
		failed := 0
		for i := range steps {
			begin := time.Now()
			if !disturbed {
				if err := h.step(ctx, i); err != nil {
					t.Fatal(err)
				}
				took[i] = time.Since(begin)
				continue
			}
			death := time.AfterFunc(time.Duration(rand.Int64N(int64(took[i]))), func() {
				for _, pid := range pids(t, "v1:mortal") {
					syscall.Kill(pid, syscall.SIGKILL)
				}
			})
			for h.step(ctx, i) != nil {
				if failed++; ctx.Err() != nil {
					t.Fatal(ctx.Err())
				}
			}
			death.Stop()
		}
		if disturbed {
			t.Logf("%d cranks failed", failed)
		}
		dumps = append(dumps, dump(t, s))
	}
	if dumps[0] != dumps[1] {
		t.Errorf("the store of a vat whose workers died is another: %s", firstDifference(dumps[0], dumps[1]))
	}
}

// A vat whose creation was undone by its caller, and that is created again, has one worker.
func TestCreatedAgain(t *testing.T) {
	t.Parallel()
	s := openStore(t, filepath.Join(t.TempDir(), "store.sqlite"))
	v := New(Options{ID: "v1", Host: results{}, Engines: only(engine(t, newer, "linux/amd64"))})
	t.Cleanup(func() { v.Close() })
	i := Incarnation{Name: "phoenix", BundleID: add(t, s, swingsettest.Bundles(t, "faults")[0])[0]}
	undone := errors.New("undone")
	for range 2 {
		if err := s.Update(func(tx *swingstore.Tx) error {
			if r, err := v.Create(t.Context(), tx, i); err != nil || !r.Kept {
				t.Fatalf("%+v, %v", r, err)
			}
			return undone
		}); !errors.Is(err, undone) {
			t.Fatal(err)
		}
	}
	create(t, s, v, i)
	wantCall(t, s, v, "count", "[]", "1")
	if running := pids(t, "v1:phoenix"); len(running) != 1 {
		t.Errorf("processes %v are running", running)
	}
}

// When a vat is closed, whatever became of it, neither process nor goroutine nor descriptor is left.
func TestNothingOutlives(t *testing.T) {
	count := func() (files, goroutines int) {
		entries, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(entries), runtime.NumGoroutine()
	}
	no := errors.New("no")
	failing := false
	s, v := start(t, "faults", Incarnation{Name: "mayfly"}, func(o *Options) {
		o.Host = host{before: func(kind string) error {
			if failing {
				return no
			}
			return nil
		}}
		o.SnapshotInterval = 3
	})
	canceled, stop := context.WithCancel(t.Context())
	stop()
	call(t, s, v, "count", "[66000]")
	if err := v.Close(); err != nil {
		t.Fatal(err)
	}
	files, goroutines := count()
	for _, test := range []struct {
		method string
		ctx    context.Context
		fails  bool
	}{
		{"count", t.Context(), false}, {"count", t.Context(), false}, {"count", t.Context(), true}, {"count", canceled, false},
		{"recurse", t.Context(), false}, {"exitWithFailure", t.Context(), false}, {"exit", t.Context(), false},
	} {
		for _, closes := range []bool{true, false} {
			failing = test.fails
			r, err := v.Crank(test.ctx, s, message("p-70", test.method, "[0]"))
			if good := !test.fails && test.ctx != canceled; (err == nil) != good {
				t.Errorf("%s: %+v, %v", test.method, r, err)
			}
			if closes {
				v.Close()
			}
		}
	}
	if err := v.Close(); err != nil {
		t.Error(err)
	}
	if left := pids(t, "v1:mayfly"); len(left) > 0 {
		t.Errorf("processes %v are left", left)
	}
	for end := time.Now().Add(deadline); ; time.Sleep(10 * time.Millisecond) {
		f, g := count()
		if f <= files && g <= goroutines {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("%d files and %d goroutines, %d and %d before", f, g, files, goroutines)
		}
	}
}
