package vat

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
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
