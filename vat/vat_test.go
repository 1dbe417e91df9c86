package vat

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/enginery/enginery/engines"
	"github.com/enginery/enginery/internal/enginetest"
	"github.com/enginery/enginery/internal/swingsettest"
	"github.com/enginery/enginery/swingstore"
)

const (
	older = "agoric-upgrade-18"
	newer = swingsettest.Version
)

// engine returns a version as vats run on it.
func engine(t testing.TB, version, platform string) *Engine {
	t.Helper()
	r := enginetest.Recipe(t, version)
	e := &Engine{Version: version, Worker: worker(t, version, platform), LoadsSnapshotsOf: r.Engine.LoadsSnapshotsOf}
	e.Lockdown, e.Supervisor = enginetest.Bundles(t, r)
	return e
}

// only returns a function for Options.Engines. The first engine is the legacy one.
func only(es ...*Engine) func(version string) (*Engine, error) {
	return func(version string) (*Engine, error) {
		if version == engines.Legacy {
			return es[0], nil
		}
		for _, e := range es {
			if e.Version == version {
				return e, nil
			}
		}
		return nil, fmt.Errorf("version %s: %w", version, engines.ErrNotInstalled)
	}
}

// results keeps what promises are resolved to in the store, under keys that begin with "host.".
type results struct{}

func (results) Syscall(_ context.Context, tx *swingstore.Tx, vat string, syscall []byte) ([]byte, error) {
	var s []json.RawMessage
	if err := json.Unmarshal(syscall, &s); err != nil {
		return nil, err
	}
	if text(s[0]) != "resolve" {
		return nil, nil
	}
	var resolutions [][3]json.RawMessage
	if err := json.Unmarshal(s[1], &resolutions); err != nil {
		return nil, err
	}
	for _, r := range resolutions {
		var data struct{ Body string }
		if err := json.Unmarshal(r[2], &data); err != nil {
			return nil, err
		}
		if err := tx.Set("host."+vat+"."+text(r[0]), string(r[1])+" "+data.Body); err != nil {
			return nil, err
		}
	}
	return nil, nil
}

// message returns a delivery that calls a method of the root object.
func message(result, method, args string) []byte {
	body, err := json.Marshal(fmt.Sprintf("#[%q,%s]", method, args))
	if err != nil {
		panic(err)
	}
	return fmt.Appendf(nil, `["message","o+0",{"methargs":{"body":%s,"slots":[]},"result":%q}]`, body, result)
}

// parameters returns a vat's parameters.
func parameters(body string) []byte {
	quoted, err := json.Marshal("#" + body)
	if err != nil {
		panic(err)
	}
	return fmt.Appendf(nil, `{"body":%s,"slots":[]}`, quoted)
}

// call calls a method and returns what its promise was resolved to by the end of the crank.
func call(t testing.TB, s *swingstore.Store, v *Vat, method, args string) string {
	t.Helper()
	span, err := s.Current(t.Context(), v.o.ID)
	if err != nil {
		t.Fatal(err)
	}
	result := fmt.Sprintf("p-%d", span.End)
	r, err := v.Crank(t.Context(), s, message(result, method, args))
	if err != nil {
		t.Fatalf("%s(%s): %v", method, args, err)
	}
	if !r.Kept {
		return "problem: " + r.Problem
	}
	answer, err := s.Get(t.Context(), "host."+v.o.ID+"."+result)
	if err != nil {
		t.Fatalf("%s(%s): %v", method, args, err)
	}
	if body, ok := strings.CutPrefix(answer, "false #"); ok {
		return body
	}
	return "rejected: " + answer
}

func wantCall(t testing.TB, s *swingstore.Store, v *Vat, method, args, want string) {
	t.Helper()
	if got := call(t, s, v, method, args); got != want {
		t.Fatalf("%s(%s) is %s, expected %s", method, args, got, want)
	}
}

// add adds bundles to a store and returns their IDs.
func add(t testing.TB, s *swingstore.Store, bundles ...[]byte) (ids []string) {
	t.Helper()
	err := s.Update(func(tx *swingstore.Tx) error {
		for _, b := range bundles {
			id, err := tx.AddBundle(b)
			if err != nil {
				return err
			}
			ids = append(ids, id)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return ids
}

// create makes a vat.
func create(t testing.TB, s *swingstore.Store, v *Vat, i Incarnation) *Result {
	t.Helper()
	var r *Result
	err := s.Update(func(tx *swingstore.Tx) (err error) {
		r, err = v.Create(t.Context(), tx, i)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// upgrade upgrades a vat.
func upgrade(t testing.TB, s *swingstore.Store, v *Vat, i Incarnation) *Result {
	t.Helper()
	var r *Result
	err := s.Update(func(tx *swingstore.Tx) (err error) {
		r, err = v.Upgrade(t.Context(), tx, i, nil)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func openStore(t testing.TB, path string) *swingstore.Store {
	t.Helper()
	s, err := swingstore.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// A vat from an Endo bundle starts, answers, survives its worker and this process's memory of it, and is upgraded to another version with
// what it keeps.
func TestVat(t *testing.T) {
	t.Parallel()
	for _, memory := range []bool{false, true} {
		t.Run(fmt.Sprint("memory ", memory), func(t *testing.T) {
			t.Parallel()
			var s *swingstore.Store
			if memory {
				var err error
				if s, err = swingstore.Memory(); err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { s.Close() })
			} else {
				s = openStore(t, filepath.Join(t.TempDir(), "store.sqlite"))
			}
			o := Options{ID: "v1", Host: results{}, Engines: only(engine(t, older, "linux/amd64"), engine(t, newer, "linux/amd64")), SnapshotInterval: 6}
			begin := func() *Vat {
				v := New(o)
				t.Cleanup(func() { v.Close() })
				return v
			}
			ids := add(t, s, swingsettest.Bundles(t, "ledger-1", "ledger-2")...)
			v := begin()
			if r := create(t, s, v, Incarnation{BundleID: ids[0], Parameters: parameters(`{"currency":"IST"}`), Name: "ledger"}); !r.Kept {
				t.Fatalf("%+v", r)
			}
			call(t, s, v, "open", `["a"]`)
			wantCall(t, s, v, "deposit", `["a","+5"]`, `"+5"`)
			wantCall(t, s, v, "report", `[]`, `{"incarnations":1,"owners":1,"vatParameters":{"currency":"IST"},"version":1}`)
			if err := v.Close(); err != nil {
				t.Fatal(err)
			}
			wantCall(t, s, v, "deposit", `["a","+1"]`, `"+6"`) // another worker

			for i := range 8 {
				v = begin() // all comes from the store
				wantCall(t, s, v, "deposit", `["a","+1"]`, fmt.Sprintf(`"+%d"`, 7+i))
				v.Close()
			}
			v = begin()
			if r := upgrade(t, s, v, Incarnation{Engine: newer, BundleID: ids[1], Parameters: parameters(`{"currency":"BLD"}`)}); !r.Kept {
				t.Fatalf("%+v", r)
			}
			wantCall(t, s, v, "report", `[]`, `{"incarnations":2,"owners":1,"vatParameters":{"currency":"BLD"},"version":2}`)
			v.Close()
			v = begin()
			wantCall(t, s, v, "sum", `[]`, `"+14"`)
		})
	}
}

// The version is recorded with worker options, transcript and heap snapshots of an incarnation; a vat without one is a legacy vat, of which no
// word is written.
func TestEngineRecorded(t *testing.T) {
	t.Parallel()
	s := openStore(t, filepath.Join(t.TempDir(), "store.sqlite"))
	v := New(Options{ID: "v1", Host: results{}, Engines: only(engine(t, older, "linux/amd64"), engine(t, newer, "linux/amd64")), SnapshotInitial: 2})
	defer v.Close()
	id := add(t, s, swingsettest.Bundles(t, "ledger-1")[0])[0]
	check := func(want string) {
		t.Helper()
		record, err := s.Vat(t.Context(), "v1")
		if err != nil {
			t.Fatal(err)
		}
		spans, err := s.Spans(t.Context(), "v1")
		if err != nil {
			t.Fatal(err)
		}
		snapshot, err := s.SnapshotInUse(t.Context(), "v1")
		if err != nil {
			t.Fatal(err)
		}
		var item string
		for _, span := range spans {
			for i, err := range s.Items(t.Context(), span) {
				if err != nil {
					t.Fatal(err)
				}
				if strings.HasPrefix(string(i.Text), `{"d":["initialize-worker"`) {
					item = string(i.Text)
				}
			}
		}
		inItem := strings.Contains(item, `"engine"`)
		if last := spans[len(spans)-1]; record.Options.WorkerOptions.Engine != want || last.Engine != want || snapshot.Engine != want || inItem != (want != "") ||
			inItem && !strings.Contains(item, `"engine":"`+want+`"`) {
			t.Errorf("options %s, %+v, %+v, %s; expected version %q", record.RawOptions, last, snapshot, item, want)
		}
	}
	if r := create(t, s, v, Incarnation{BundleID: id}); !r.Kept || r.Snapshot == nil {
		t.Fatalf("%+v", r)
	}
	check("")
	for line := range strings.Lines(dump(t, s)) {
		if !strings.HasPrefix(line, "bundles") && strings.Contains(line, "engine") {
			t.Errorf("the store of a legacy vat has a word of an engine: %s", line)
		}
	}
	for _, version := range []string{newer, older, ""} {
		if r := upgrade(t, s, v, Incarnation{Engine: version, BundleID: id}); !r.Kept {
			t.Fatalf("%+v", r)
		}
		check(version)
	}
}

// The engines that a node has run vats, by version and channel.
func TestInstalledIn(t *testing.T) {
	t.Parallel()
	home := engines.Open(enginetest.Home(t, "linux/amd64", older, newer))
	get := InstalledIn(home)
	if _, err := get(engines.Legacy); !errors.Is(err, engines.ErrNoChannels) {
		t.Errorf("without channels: %v", err)
	}
	if err := home.SetChannels(fmt.Appendf(nil, "legacy = %q\ncurrent = %q\n", older, newer)); err != nil {
		t.Fatal(err)
	}
	if _, err := get("agoric-upgrade-99"); !errors.Is(err, engines.ErrNotInstalled) {
		t.Errorf("a version that is not installed: %v", err)
	}
	for name, version := range map[string]string{older: older, engines.Legacy: older, engines.Current: newer} {
		e, err := get(name)
		if err != nil {
			t.Fatal(err)
		}
		lockdown, supervisor := enginetest.Bundles(t, enginetest.Recipe(t, version))
		if e.Version != version || string(e.Lockdown) != string(lockdown) || string(e.Supervisor) != string(supervisor) || !slices.Contains(e.LoadsSnapshotsOf, version) {
			t.Errorf("%s is %s, which loads heap snapshots of %v", name, e.Version, e.LoadsSnapshotsOf)
		}
	}
	s, v := start(t, "worker", Incarnation{}, func(o *Options) { o.Engines = get })
	wantCall(t, s, v, "greet", `["nobody"]`, `"worker greets nobody"`)
}

// A heap snapshot is not loaded by an engine whose description does not have the version that wrote it. The refusal names both.
func TestSnapshotRefused(t *testing.T) {
	t.Parallel()
	s := openStore(t, filepath.Join(t.TempDir(), "store.sqlite"))
	es := []*Engine{engine(t, older, "linux/amd64"), engine(t, newer, "linux/amd64")}
	es[0].LoadsSnapshotsOf = []string{older}
	o := Options{ID: "v1", Host: results{}, Engines: only(es...), SnapshotInitial: 2}
	v := New(o)
	defer v.Close()
	id := add(t, s, swingsettest.Bundles(t, "ledger-1")[0])[0]
	r := create(t, s, v, Incarnation{Engine: newer, BundleID: id})
	if r.Snapshot == nil {
		t.Fatalf("%+v", r)
	}
	v.Close()
	// The span after it is said to be another version's.
	if err := s.Update(func(tx *swingstore.Tx) error { return tx.SetEngine("v1", r.Snapshot.Position+1, older) }); err != nil {
		t.Fatal(err)
	}
	same := unchanged(t, s)
	_, err := v.Crank(t.Context(), s, message("p-60", "sum", "[]"))
	var refused *SnapshotRefusedError
	if !errors.As(err, &refused) || refused.Writer != newer || refused.Engine != older || refused.Hash != r.Snapshot.Hash {
		t.Fatalf("%v", err)
	}
	if text := err.Error(); !strings.Contains(text, older) || !strings.Contains(text, newer) {
		t.Errorf("%v does not name both", err)
	}
	same()
	es[0].LoadsSnapshotsOf = []string{older, newer}
	wantCall(t, s, v, "sum", "[]", `"+0"`)
}

// A vat whose transcript its engine does not follow is not brought back.
func TestReplayDiffers(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ name, from, to, want string }{
		{"computrons", `"computrons":`, `"computrons":1`, "computrons is "},
		{"a syscall", `["vatstoreGet","idCounters"]`, `["vatstoreGet","idCounter"]`, `syscall 0 is ["vatstoreGet","idCounters"], expected ["vatstoreGet","idCounter"]`},
		{"one too many", `"sc":[{"s":["vatstoreGet","idCounters"],"r":["ok",null]},`, `"sc":[`, "syscall 0 is"},
		{"the status", `"r":{"status":"ok","metering"`, `"r":{"status":"error","metering"`, "the status is ok"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s, v := start(t, "ledger-1", Incarnation{}, func(o *Options) { o.SnapshotInitial = 100 })
			v.Close()
			rewrite(t, s, 1, func(item string) string { return strings.Replace(item, test.from, test.to, 1) })
			_, err := v.Crank(t.Context(), s, message("p-60", "sum", "[]"))
			var differs *ReplayError
			if !errors.As(err, &differs) || differs.Position != 1 || !strings.Contains(err.Error(), test.want) {
				t.Errorf("%v, expected %q", err, test.want)
			}
		})
	}
}

// rewrite changes an item of the first span, and the hash of the span.
func rewrite(t testing.TB, s *swingstore.Store, position int64, f func(string) string) {
	t.Helper()
	span, err := s.Current(t.Context(), "v1")
	if err != nil {
		t.Fatal(err)
	}
	hash, changed := swingstore.StartHash, ""
	for item, err := range s.Items(t.Context(), span) {
		if err != nil {
			t.Fatal(err)
		}
		text := string(item.Text)
		if item.Position == position {
			if changed = f(text); changed == text {
				t.Fatalf("the item stays %s", text)
			}
			text = changed
		}
		hash = swingstore.NextHash(hash, []byte(text))
	}
	db, err := sql.Open("sqlite", "file:"+s.Path())
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.Exec("UPDATE transcriptItems SET item = ? WHERE position = ?", changed, position); err != nil {
		t.Fatal(err)
	}
	if _, err := db.Exec("UPDATE transcriptSpans SET hash = ?", hash); err != nil {
		t.Fatal(err)
	}
}

// A heap snapshot of which a bit has changed is not loaded.
func TestSnapshotDamaged(t *testing.T) {
	t.Parallel()
	s, v := start(t, "ledger-1", Incarnation{}, nil)
	if err := v.Close(); err != nil {
		t.Fatal(err)
	}
	snapshot, err := s.SnapshotInUse(t.Context(), "v1")
	if err != nil {
		t.Fatal(err)
	}
	r, err := s.OpenSnapshot(t.Context(), snapshot)
	if err != nil {
		t.Fatal(err)
	}
	heap, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	heap[len(heap)/2] ^= 1
	w := swingstore.NewSnapshotWriter()
	if _, err := w.Write(heap); err != nil {
		t.Fatal(err)
	}
	if err := s.Update(func(tx *swingstore.Tx) error { _, err := tx.SaveSnapshotAt("v1", snapshot.Position, w); return err }); err != nil {
		t.Fatal(err)
	}
	db, err := sql.Open("sqlite", "file:"+s.Path())
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.Exec("UPDATE snapshots SET hash = ?", snapshot.Hash); err != nil {
		t.Fatal(err)
	}
	same := unchanged(t, s)
	_, err = v.Crank(t.Context(), s, message("p-60", "sum", "[]"))
	var damaged *swingstore.DamagedError
	if !errors.As(err, &damaged) || !strings.Contains(err.Error(), snapshot.Hash) {
		t.Errorf("%v", err)
	}
	same()
}
