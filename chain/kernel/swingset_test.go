package kernel_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/enginery/enginery/internal/enginetest"
	"github.com/enginery/enginery/internal/swingsettest"
	"github.com/enginery/enginery/swingstore"
)

// work is what a kernel is to do.
type work struct {
	Vats             []newVat `json:"vats"`
	SnapshotInterval int      `json:"snapshotInterval"`
	Calls            []call   `json:"calls"`
}

type newVat struct {
	Name       string `json:"name"`
	Bundle     string `json:"bundle"`
	Parameters any    `json:"parameters"`
}

type call struct {
	Vat    string `json:"vat"`
	Method string `json:"method"`
	Args   []any  `json:"args"`
}

func root(name string) any { return map[string]any{"@vat": name} }

// outcome is what the real kernel has made of it.
type outcome struct {
	Seconds float64 // that the calls took
	Results []struct{ Status, Value string }

	store string
}

// real has the real kernel do it.
func (w work) real(ctx context.Context, t testing.TB) *outcome {
	t.Helper()
	dir := swingsettest.Scripts(t)
	input, err := json.Marshal(w)
	if err != nil {
		t.Fatal(err)
	}
	worker := enginetest.Worker(t, swingsettest.Version, "linux/amd64", "release")
	cmd := exec.CommandContext(ctx, "node", "deliver.js", filepath.Join(dir, "out"), "--worker="+worker)
	cmd.Dir, cmd.Stdin, cmd.Stderr = dir, bytes.NewReader(input), t.Output()
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	o := &outcome{store: filepath.Join(dir, "out", "store")}
	if err := json.Unmarshal(out, o); err != nil {
		t.Fatal(err)
	}
	return o
}

// call makes a call of a vat with an ID, in which ids are those of vats by name, and returns the results that have come.
func (m *machine) do(c call, ids map[string]string) map[string]string {
	args := make([]any, len(c.Args))
	for i, arg := range c.Args {
		args[i] = arg
		if r, ok := arg.(map[string]any); ok {
			args[i] = ref(ids[r["@vat"].(string)])
		}
	}
	m.send(ids[c.Vat], c.Method, args...)
	return m.deliverAll()
}

// The real kernel and this one, with the same vats and messages, tell each vat the same in the same order, and answer its syscalls alike: their
// transcripts are equal to the last byte, with every name in c-lists, every computron and every heap snapshot.
func TestAgainstSwingSet(t *testing.T) {
	t.Parallel()
	m := startOn(t, swingsettest.Version)
	var todo work
	todo.SnapshotInterval = snapshotInterval
	names := []string{"alice", "bob", "carol"}
	for _, name := range names {
		todo.Vats = append(todo.Vats, newVat{name, "peer-1", map[string]any{"name": name}})
	}
	r := rand.New(rand.NewPCG(5, 6))
	for i, a := range names {
		b := names[(i+1)%len(names)]
		todo.Calls = append(todo.Calls, call{a, "meet", []any{root(b), b}})
	}
	for i := range 60 {
		at := r.IntN(len(names))
		a, b := names[at], names[(at+1)%len(names)]
		what := fmt.Sprint("message ", i)
		todo.Calls = append(todo.Calls, []call{ // none is answered with an object: SwingSet holds such results for good
			{a, "hear", []any{"somebody", what}},
			{a, "tell", []any{b, what}},
			{a, "ask", []any{b, what}},
			{a, "ask", []any{a, what}}, // whom it does not know
			{a, "give", []any{root(b), what}},
			{a, "give", []any{root(a), what}},
			{a, "release", []any{}},
			{a, "relay", []any{root(b), what}},
			{a, "wait", []any{root(b)}},
			{a, "settle", []any{i}},
			{a, "settle", []any{root(b)}},
			{a, "fail", []any{what}},
			{a, "nonsense", []any{}},
		}[r.IntN(13)])
	}

	o := todo.real(m.ctx, t)
	real, err := swingstore.Open(o.store)
	if err != nil {
		t.Fatal(err)
	}
	defer real.Close()
	realIDs := make(map[string]string)
	vats, err := real.Vats(m.ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range vats {
		realIDs[v.Name] = v.ID
	}

	// This one, whose vats have the same IDs.
	var ids []string
	for i := range todo.Vats {
		for {
			id := m.install(fmt.Sprint("vat", len(ids)), "peer-1", todo.Vats[i].Parameters)
			ids = append(ids, id)
			if id == realIDs[todo.Vats[i].Name] {
				break
			}
			if len(ids) > 10 {
				t.Fatalf("%v, expected %v", ids, realIDs)
			}
		}
	}
	got := make(map[string]string)
	for _, c := range todo.Calls {
		for key, value := range m.do(c, realIDs) {
			got[key] = value
		}
	}
	m.audit()
	for i, w := range o.Results {
		value := w.Value
		if w.Status == "rejected" {
			value = "rejected: " + value
		}
		if g := got[strconv.Itoa(i+1)]; g != value {
			t.Errorf("%v gives %s, expected %s", todo.Calls[i], g, value)
		}
	}
	for _, name := range names {
		id := realIDs[name]
		theirs, ours := items(t, real, id), items(t, m.s, id)
		for i := range min(len(theirs), len(ours)) {
			if i > 0 && theirs[i] != ours[i] { // the first says with which options the vat was made
				t.Fatalf("item %d of %s is\n%s\nexpected\n%s", i, name, ours[i], theirs[i])
			}
		}
		if len(theirs) != len(ours) {
			t.Errorf("the transcript of %s has %d items, expected %d", name, len(ours), len(theirs))
		}
		t.Log(name, "has a transcript of", len(ours), "items")
	}
}

func items(t *testing.T, s *swingstore.Store, id string) (all []string) {
	t.Helper()
	spans, err := s.Spans(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	for _, span := range spans {
		for item, err := range s.Items(t.Context(), span) {
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, strings.TrimSpace(string(item.Text)))
		}
	}
	return all
}

// BenchmarkMessages measures messages of one vat to another, each with an answer, and how many times as fast that is as with the real kernel.
func BenchmarkMessages(b *testing.B) {
	const messages = 300
	var todo work
	todo.SnapshotInterval = 200
	for _, name := range []string{"alice", "bob"} {
		todo.Vats = append(todo.Vats, newVat{name, "peer-1", map[string]any{"name": name}})
	}
	todo.Calls = append(todo.Calls, call{"alice", "meet", []any{root("bob"), "bob"}})
	for i := range messages {
		todo.Calls = append(todo.Calls, call{"alice", "ask", []any{"bob", fmt.Sprint("message ", i%10)}})
	}
	var ours, theirs float64
	for b.Loop() {
		m := startOn(b, swingsettest.Version)
		m.vats.Options.SnapshotInterval = int64(todo.SnapshotInterval)
		ids := make(map[string]string)
		for _, v := range todo.Vats {
			ids[v.Name] = m.install(v.Name, v.Bundle, v.Parameters)
		}
		start := time.Now()
		for _, c := range todo.Calls {
			m.do(c, ids)
		}
		ours += time.Since(start).Seconds()
		theirs += todo.real(m.ctx, b).Seconds
	}
	b.ReportMetric(float64(b.N)*messages/ours, "messages/s")
	b.ReportMetric(float64(b.N)*messages/theirs, "SwingSet-messages/s")
	b.ReportMetric(theirs/ours, "times-SwingSet")
	b.ReportMetric(0, "ns/op")
}
