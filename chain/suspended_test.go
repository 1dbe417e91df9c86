package chain_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/enginery/enginery/chain"
	"github.com/enginery/enginery/internal/swingsettest"
	"github.com/enginery/enginery/internal/vattest"
	"github.com/enginery/enginery/upgrade"
)

// stage is a chain with three vats on the old version, which a test feeds part by part.
type stage struct {
	*script
	ctx context.Context
	n   *chain.Node
	ran *ran
	ids map[string]string // of bundles
}

func newStage(t *testing.T, settings map[string]any) *stage {
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	t.Cleanup(cancel)
	s := &stage{
		script: &script{t: t, seq: make(map[string]int), heard: make(map[string]map[string][]string), asked: make(map[string]bool)},
		ctx:    ctx, n: open(t, t.TempDir(), vattest.Engines(t, oldVersion, newVersion), chain.Options{}),
		ran: &ran{results: make(map[string]chain.Result)}, ids: make(map[string]string),
	}
	t.Cleanup(func() { s.n.Close() })
	s.input("gov", "init", map[string]any{"version": oldVersion, "settings": settings})
	names := []string{"peer-1", "peer-2", "peer-throws"}
	for i, bundle := range swingsettest.Bundles(t, names...) {
		s.input("gov", "bundle", map[string]any{"bundle": json.RawMessage(bundle)})
		var parsed struct{ EndoZipBase64Sha512 string }
		if err := json.Unmarshal(bundle, &parsed); err != nil {
			t.Fatal(err)
		}
		s.ids[names[i]] = "b1-" + parsed.EndoZipBase64Sha512
	}
	for _, name := range []string{"alice", "bob", "carol"} {
		s.input("gov", "install", map[string]any{"vat": name, "bundle": s.ids["peer-1"], "parameters": map[string]any{"name": name}})
	}
	s.input("gov", "adopt", map[string]any{"version": newVersion})
	for _, a := range []string{"alice", "bob"} {
		for _, b := range []string{"alice", "bob", "carol"} {
			if a != b {
				s.deliver("intro", a, "meet", map[string]any{"@vat": b}, b)
			}
		}
	}
	s.play()
	return s
}

// play makes a block of what was written, and those that follow until nothing is left to do. It returns what the blocks say.
func (s *stage) play() (events []upgrade.Event) {
	s.t.Helper()
	before := s.n.Height()
	var inputs []*chain.Input
	for line := range bytes.Lines(bytes.Clone(s.Bytes())) {
		in, err := chain.ParseInput(bytes.TrimSpace(line))
		if err != nil {
			s.t.Fatal(err)
		}
		inputs = append(inputs, in)
	}
	b, err := s.n.Make(s.ctx, inputs)
	if err != nil {
		s.t.Fatal(err)
	}
	s.ran.add(s.t, b)
	s.Reset()
	if err := s.n.Drain(s.ctx, 20, func(b *chain.Block) { s.ran.add(s.t, b) }); err != nil {
		s.t.Fatal(err)
	}
	for h := before + 1; h <= s.n.Height(); h++ {
		more, err := chain.Events(s.ctx, s.n.Store(), h)
		if err != nil {
			s.t.Fatal(err)
		}
		events = append(events, more...)
	}
	return events
}

// result is what came of a message, or "" if nothing has yet.
func (s *stage) result(sender string, seq int) string {
	r, ok := s.ran.results[fmt.Sprint(sender, " ", seq)]
	switch {
	case !ok:
		return ""
	case r.Rejected:
		return "rejected: " + r.Data.Body
	}
	return r.Data.Body
}

func (s *stage) want(sender string, seq int, part string) {
	s.t.Helper()
	if got := s.result(sender, seq); got != part && (part == "" || !strings.Contains(got, part)) {
		s.t.Errorf("%s %d is %q, expected %q", sender, seq, got, part)
	}
}

// told are the events of a vat in short.
func told(events []upgrade.Event, vat string) (short []string) {
	for _, e := range events {
		if e.Vat != vat {
			continue
		}
		kind := e.Kind
		if e.Delivery != nil {
			kind = e.Delivery.Kind
		}
		short = append(short, strings.TrimSpace(string(e.Type)+" "+string(kind)))
	}
	return short
}

// Every kind of delivery that can come for a suspended vat, with real vats, a real kernel and real garbage.
func TestSuspended(t *testing.T) {
	t.Parallel()
	s := newStage(t, map[string]any{"limits": map[string]any{"messages": 4}})
	given := s.deliver("user", "bob", "give", map[string]any{"@vat": "carol"}, "a thing") // an object of bob's, which carol holds
	awaited := s.deliver("user", "alice", "wait", map[string]any{"@vat": "bob"})
	awaits := s.deliver("user", "bob", "wait", map[string]any{"@vat": "alice"})
	s.play()
	s.want("user", given, "a thing")
	s.want("user", awaited, "") // bob decides what alice waits for
	s.want("user", awaits, "")  // alice decides what bob waits for

	s.input("gov", "upgrade", map[string]any{"vat": "bob", "bundle": s.ids["peer-throws"]})
	s.play()
	view, err := chain.Look(s.ctx, s.n.Store(), chain.Most{Vats: 10, Blocks: 1})
	if err != nil {
		t.Fatal(err)
	}
	if bob := view.Vats[0]; bob.Name != "bob" || bob.State != upgrade.Suspended || !bob.Paused || bob.Version != oldVersion {
		t.Fatalf("%+v", bob)
	}
	s.want("user", awaited, "") // a failed upgrade rejects nothing

	// While it has no worker: messages, from outside and from alice; a notification; carol lets go of its thing, and says so before she is upgraded;
	// and one message too many.
	first := s.deliver("user", "bob", "hear", "user", "first")
	s.play()
	relayed := s.deliver("user", "alice", "ask", "bob", "from alice")
	s.play()
	s.deliver("user", "alice", "settle", 7)
	s.play()
	released := s.deliver("user", "carol", "release")
	s.play()
	s.want("user", released, "#1")
	s.input("gov", "upgrade", map[string]any{"vat": "carol"})
	events := s.play()
	if got := told(events, "v2"); !slices.Contains(got, "delivery-set-aside dropExports") {
		t.Errorf("carol has let go of bob's thing, and there was %v", got)
	}
	last := s.deliver("user", "bob", "hear", "user", "last")
	refused := s.deliver("user", "bob", "hear", "user", "too much")
	s.play()
	s.want("user", first, "")
	s.want("user", relayed, "")
	s.want("user", last, "")
	s.want("user", refused, "v2 is suspended and 4 deliveries wait for it, the most that may")

	// A bundle that works: it overtakes what waits, then all of that in order, garbage first.
	s.input("gov", "upgrade", map[string]any{"vat": "bob", "bundle": s.ids["peer-2"]})
	events = s.play()
	after := s.deliver("user", "bob", "heard", "user")
	report := s.deliver("user", "bob", "report")
	s.play()
	s.want("user", awaited, `"name":"vatUpgraded"`) // bob had decided it
	s.want("user", awaits, `"name":"vatUpgraded"`)  // it was the old incarnation's own
	s.want("user", first, `#"first"`)
	s.want("user", relayed, `#"from alice"`)
	s.want("user", last, `#"last"`)
	s.want("user", after, `#["first","last"]`)
	s.want("user", report, `{"incarnation":2,"name":"bob","version":2}`)
	got := told(events, "v2")
	upgraded, dropped, message, notified := slices.Index(got, "vat-upgraded"), slices.Index(got, "delivery-made dropExports"), slices.Index(got, "delivery-made message"), slices.Index(got, "delivery-made notify")
	if upgraded < 0 || dropped < upgraded || message < dropped || notified < message {
		t.Errorf("bob: %v", got)
	}

	// Suspended without a pause: a message has it started on the new version, with the source that it has.
	s.input("gov", "suspend", map[string]any{"vat": "alice"})
	s.play()
	report = s.deliver("user", "alice", "report")
	s.play()
	s.want("user", report, `{"incarnation":2,"name":"alice","version":1}`)

	// Terminated while messages wait for it.
	s.input("gov", "upgrade", map[string]any{"vat": "carol", "bundle": s.ids["peer-throws"]})
	s.play()
	waits := s.deliver("user", "carol", "report")
	s.play()
	s.want("user", waits, "")
	s.input("gov", "terminate", map[string]any{"vat": "carol", "reason": "no longer wanted"})
	late := s.deliver("user", "bob", "ask", "carol", "anybody?")
	s.play()
	s.want("user", waits, "rejected: ")
	s.want("user", late, "rejected: ")

	// Nobody is left on the old version, so that it goes out of service.
	s.input("gov", "retire", map[string]any{"version": oldVersion})
	s.play()
	if b := s.ran.blocks[len(s.ran.blocks)-1]; b.Tally.Queued != 0 || b.Tally.Aside != 0 || b.Tally.Active != 2 || b.Tally.Terminated != 1 {
		t.Errorf("in the end: %+v", b.Tally)
	}
}

// What a terminated vat leaves behind is removed over blocks, also if there is nothing else to do.
func TestLeavings(t *testing.T) {
	t.Parallel()
	s := &stage{
		script: &script{t: t, seq: make(map[string]int)}, ctx: t.Context(),
		n:   open(t, t.TempDir(), vattest.Engines(t, oldVersion), chain.Options{}),
		ran: &ran{results: make(map[string]chain.Result)},
	}
	defer s.n.Close()
	s.input("gov", "init", map[string]any{"version": oldVersion, "cleanUp": 3})
	s.input("gov", "install", map[string]any{
		"vat": "alice", "bundle": json.RawMessage(swingsettest.Bundles(t, "peer-1")[0]), "parameters": map[string]any{"name": "alice"},
	})
	s.input("gov", "terminate", map[string]any{"vat": "alice"})
	s.play()
	for _, prefix := range []string{"v1.c.", "v1.vs."} {
		if key, err := s.n.Store().NextKey(s.ctx, prefix); err != nil || strings.HasPrefix(key, prefix) {
			t.Errorf("after block %d there is still %s, %v", s.n.Height(), key, err)
		}
	}
}

// Whatever a bundle does to its worker, it is the vat's fault: no vat is installed, an upgrade fails, and the chain goes on.
func TestHostileBundles(t *testing.T) {
	t.Parallel()
	s := newStage(t, nil)
	nested := func(root string) string {
		bundle, err := json.Marshal(map[string]string{"moduleFormat": "nestedEvaluate", "source": "() => ({ buildRootObject: () => " + root + " })"})
		if err != nil {
			t.Fatal(err)
		}
		return string(bundle)
	}
	bundles := []struct{ bundle, problem string }{
		{`{"moduleFormat":"nestedEvaluate","source":7}`, "importBundle: no function"},
		{`{"moduleFormat":"nestedEvaluate","deep":` + strings.Repeat("[", 9000) + strings.Repeat("]", 9000) + `}`, "Stack meter exceeded"},
		{nested(`{ throw { toString() { throw undefined; } }; }`), "exception from handleItem"},
		{nested(`{ throw { toString() { throw 1; } }; }`), `says "[\"err\",null,null]"`},
		{nested(`{ console.log('x'.repeat(12_000_000)); }`), "at most 12000000 are allowed"},
		{nested(`new Promise(() => {})`), "buildRootObject unresolved"},
		{nested(`{ for (const all = [];;) all.push(new ArrayBuffer(1_000_000)); }`), "Allocate meter exceeded"},
		{`7`, "expected a bundle, an object"},
	}
	for i, b := range bundles {
		s.input("gov", "install", map[string]any{"vat": fmt.Sprint("hostile", i), "bundle": json.RawMessage(b.bundle)})
	}
	var inputs []*chain.Input
	for line := range bytes.Lines(bytes.Clone(s.Bytes())) {
		in, err := chain.ParseInput(bytes.TrimSpace(line))
		if err != nil {
			t.Fatal(err)
		}
		inputs = append(inputs, in)
	}
	s.Reset()
	block, err := s.n.Make(s.ctx, inputs)
	if err != nil {
		t.Fatal(err)
	}
	for i, o := range block.Inputs {
		if o.Status != chain.Refused || !strings.Contains(o.Reason, bundles[i].problem) {
			t.Errorf("bundle %d: %+v, expected %q", i, o, bundles[i].problem)
		}
	}
	for _, b := range bundles[1:5] {
		s.input("gov", "upgrade", map[string]any{"vat": "bob", "bundle": json.RawMessage(b.bundle)})
		var problems []string
		for _, e := range s.play() {
			if e.Type == upgrade.UpgradeFailed {
				problems = append(problems, e.Problem)
			}
		}
		if len(problems) != 1 || !strings.Contains(problems[0], b.problem) {
			t.Errorf("an upgrade to %.60s has failed with %q, expected %q", b.bundle, problems, b.problem)
		}
	}
	s.input("gov", "upgrade", map[string]any{"vat": "bob", "bundle": s.ids["peer-2"]})
	s.play()
	report := s.deliver("user", "bob", "report")
	s.play()
	s.want("user", report, `{"incarnation":2,"name":"bob","version":2}`)
}
