package upgrade_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/enginery/enginery/engines"
	"github.com/enginery/enginery/swingstore"
	"github.com/enginery/enginery/upgrade"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"
)

// op is something that is asked of a controller.
type op struct {
	kind     string
	vat      string
	version  string
	bundle   string
	policy   upgrade.Policy
	flag     bool
	n        int64
	steps    []upgrade.Step
	delivery upgrade.Delivery
	settings upgrade.Settings
}

// hashHost is a host whose vats do what a hash says.
type hashHost struct {
	log     []string
	height  int64
	missing string // a version that it has not

	calls, failAt int // the call that fails, as if the disk were full
}

var errDisk = errors.New("no space left on device")

func (h *hashHost) call(format string, args ...any) error {
	if h.calls++; h.calls == h.failAt {
		return errDisk
	}
	h.log = append(h.log, fmt.Sprintf(format, args...))
	return nil
}

func (h *hashHost) has(version string) bool { return version != h.missing }

func dice(args ...any) int64 {
	f := fnv.New32a()
	fmt.Fprint(f, args...)
	return int64(f.Sum32()>>4) % 100
}

func (h *hashHost) outcomeOfUpgrade(height int64, vat, version, bundle string) upgrade.Outcome {
	o := upgrade.Outcome{OK: true, Computrons: dice("computrons", height, vat) / 5}
	if d := dice("upgrade", height, vat, version, bundle); d < 35 {
		o.OK, o.Problem, o.Terminated = false, "startVat threw", d < 2
	}
	return o
}

func (h *hashHost) outcomeOfDelivery(height int64, vat string, d upgrade.Delivery) upgrade.Outcome {
	o := upgrade.Outcome{OK: true, Computrons: dice("delivery", height, vat, d.Kind, string(d.Payload)) / 10}
	if dice("end", height, vat, string(d.Payload)) < 2 {
		o.OK, o.Problem, o.Terminated = false, "Compute meter exceeded", true
	}
	return o
}

func (h *hashHost) CheckVersion(_ context.Context, a upgrade.Adoption) error {
	if !h.has(a.Version) {
		return &upgrade.RefusedError{Reason: "no such version"}
	}
	return nil
}

func (h *hashHost) Upgrade(_ context.Context, a upgrade.Attempt) (upgrade.Outcome, error) {
	err := h.call("upgrade %s %s %s %s %s %v", a.Vat, a.From, a.Version, a.Bundle, a.Cause, a.Suspended)
	return h.outcomeOfUpgrade(h.height, a.Vat, a.Version, a.Bundle), err
}

func (h *hashHost) Deliver(_ context.Context, vat string, d upgrade.Delivery) (upgrade.Outcome, error) {
	err := h.call("deliver %s %s %s %s", vat, d.Kind, d.Key, d.Payload)
	return h.outcomeOfDelivery(h.height, vat, d), err
}

func (h *hashHost) Discard(_ context.Context, vat string, d upgrade.Delivery) error {
	return h.call("discard %s %s %s %s", vat, d.Kind, d.Key, d.Payload)
}

// do asks a controller for something.
func do(ctx context.Context, c *upgrade.Controller, h *hashHost, o op) error {
	var err error
	switch o.kind {
	case "add":
		err = c.AddVat(ctx, o.vat, o.flag)
	case "set":
		err = c.Set(ctx, o.settings)
	case "adopt":
		err = c.Adopt(ctx, upgrade.Adoption{Version: o.version})
	case "retire":
		err = c.Retire(ctx, o.version)
	case "pause":
		err = c.Pause(ctx, o.vat)
	case "resume":
		err = c.Resume(ctx, o.vat)
	case "suspend":
		err = c.Suspend(ctx, o.vat)
	case "roll-back":
		err = c.RollBack(ctx, o.vat)
	case "request":
		_, err = c.RequestUpgrade(ctx, o.vat, upgrade.Request{Bundle: o.bundle})
	case "terminate":
		_, err = c.Terminate(ctx, o.vat, "it wants to")
	case "admit":
		var v upgrade.Verdict
		if v, err = c.Admit(ctx, o.vat, o.delivery); err == nil {
			h.log = append(h.log, string(v.Action))
		}
	case "start":
		err = c.StartRollout(ctx, upgrade.Plan{Version: o.version, MaxFailures: o.n, OnFailure: o.policy, Paused: o.flag, Steps: o.steps})
	case "extend":
		err = c.ExtendRollout(ctx, o.steps)
	case "pause-rollout":
		err = c.PauseRollout(ctx)
	case "resume-rollout":
		err = c.ResumeRollout(ctx)
	case "abort-rollout":
		err = c.AbortRollout(ctx, "it is enough")
	case "end":
		_, err = c.EndBlock(ctx, o.n)
	default:
		err = fmt.Errorf("op %q", o.kind)
	}
	return err
}

var (
	someVats     = []string{"v2", "v3", "v4", "v5", "v6", "v7", "v1"}
	someVersions = []string{"a", "b", "c", "d"}
)

// A chooser chooses a number from low to high. Rapid's makes small inputs of large ones that fail, and prefers small numbers; a random one
// comes further.
type chooser func(name string, low, high int64) int64

func byRapid(t *rapid.T) chooser {
	return func(name string, low, high int64) int64 { return rapid.Int64Range(low, high).Draw(t, name) }
}

func atRandom(seed uint64) chooser {
	r := rand.New(rand.NewPCG(seed, 0))
	return func(_ string, low, high int64) int64 { return low + r.Int64N(high-low+1) }
}

func pick[T any](n chooser, name string, from ...T) T { return from[n(name, 0, int64(len(from)-1))] }

func drawSettings(n chooser) upgrade.Settings {
	s := upgrade.Settings{
		Budget: upgrade.Budget{
			Block: upgrade.Share{Upgrades: n("upgrades", 1, 4), UpgradeComputrons: n("upgradeComputrons", 1, 90), Deliveries: n("deliveries", 1, 8), DeliveryComputrons: n("deliveryComputrons", 1, 30)},
			Limit: n("limit", 1, 100), Start: n("start", 0, 20),
		},
		Limits:    upgrade.Limits{Messages: n("messages", 1, 6), Bytes: n("bytes", 5, 40), Total: n("total", 1, 12), Turn: n("turn", 1, 3)},
		OnFailure: pick(n, "onFailure", upgrade.Suspend, upgrade.RollBack),
	}
	b := s.Budget.Block
	s.Budget.Full = upgrade.Share{Upgrades: n("full upgrades", 0, b.Upgrades), UpgradeComputrons: n("full upgradeComputrons", 0, b.UpgradeComputrons),
		Deliveries: n("full deliveries", 0, b.Deliveries), DeliveryComputrons: n("full deliveryComputrons", 0, b.DeliveryComputrons)}
	return s
}

func drawSteps(n chooser) []upgrade.Step {
	var steps []upgrade.Step
	for range n("steps", 1, 6) {
		s := upgrade.Step{Vat: pick(n, "vat", someVats...), Computrons: n("computrons", 0, 20)}
		if n("depends", 0, 5) == 1 {
			s.After = []string{pick(n, "after", someVats...)}
		}
		if n("new bundle", 0, 3) == 1 {
			s.Bundle = "b2"
		}
		if n("twice", 0, 50) == 1 || !slices.ContainsFunc(steps, func(o upgrade.Step) bool { return o.Vat == s.Vat }) {
			steps = append(steps, s)
		}
	}
	return steps
}

// Deliveries make half of what happens, and ends of blocks a fifth.
var kinds = slices.Concat(slices.Repeat([]string{"admit"}, 22), slices.Repeat([]string{"end"}, 9), slices.Repeat([]string{"add", "start", "request", "resume"}, 2),
	[]string{"adopt", "retire", "pause", "suspend", "roll-back", "terminate", "extend", "pause-rollout", "resume-rollout", "abort-rollout", "set"})

func drawOp(n chooser) op {
	o := op{kind: pick(n, "kind", kinds...), vat: pick(n, "vat", someVats...)}
	switch o.kind {
	case "add":
		o.flag = n("legacy only", 0, 5) == 1
	case "set":
		o.settings = drawSettings(n)
	case "adopt", "retire":
		o.version = pick(n, "version", someVersions...)
	case "request":
		o.bundle = pick(n, "bundle", "", "b1", "b2", "b3")
	case "start":
		o.version = "current"
		o.n = n("failures", 0, 3)
		o.flag = n("paused", 0, 4) == 1
		o.policy = pick(n, "policy", "", upgrade.Suspend, upgrade.RollBack)
		o.steps = drawSteps(n)
	case "extend":
		o.steps = drawSteps(n)
	case "end":
		o.n = pick[int64](n, "used", 0, 0, 10, 50, 200)
	case "admit":
		o.delivery.Kind = pick(n, "delivery", upgrade.Message, upgrade.Message, upgrade.Message, upgrade.Pipelined, upgrade.Notify, upgrade.DropExports,
			upgrade.RetireExports, upgrade.RetireImports, upgrade.BringOutYourDead, upgrade.ChangeVatOptions)
		o.delivery.Key = pick(n, "key", "", "o+1", "o+2")
	}
	return o
}

// start are the operations that every run begins with, so that something can happen at all.
var start = []op{{kind: "add", vat: "v1", flag: true}, {kind: "add", vat: "v2"}, {kind: "add", vat: "v3"}, {kind: "add", vat: "v4"}, {kind: "adopt", version: "b"}}

func drawOps(n chooser) (upgrade.Settings, []op) {
	s := drawSettings(n)
	ops := slices.Clone(start)
	for i := range n("ops", 1, 300) {
		o := drawOp(n)
		if o.kind == "admit" {
			o.delivery.Payload, _ = json.Marshal(i) // each is told from all others
		}
		ops = append(ops, o)
	}
	return s, ops
}

// against runs a controller against the model, and returns the events.
func against(t rapid.TB, n chooser) []upgrade.Event {
	s, ops := drawOps(n)
	ctx := context.Background()
	store := upgrade.NewMemory()
	host := &hashHost{missing: "d"}
	m := newModel(&hashHost{missing: "d"}, "a", s)
	height := int64(1)
	var events []upgrade.Event
	begin := func() *upgrade.Controller {
		host.height, m.height = height, height
		return upgrade.Open(store, host, height)
	}
	c := begin()
	if err := c.Init(ctx, "a", s); err != nil {
		t.Fatal(err)
	}
	for i, o := range ops {
		if o.version == "current" {
			o.version = m.current
		}
		host.log, m.log = nil, nil
		err := do(ctx, c, host, o)
		if err != nil && !errors.Is(err, upgrade.ErrRefused) {
			t.Fatalf("op %d, %+v: %v", i, o, err)
		}
		if ok := m.do(o); ok != (err == nil) {
			t.Fatalf("op %d, %+v: %v, and the model says %v", i, o, err, ok)
		}
		if d := cmp.Diff(m.log, host.log); d != "" {
			t.Fatalf("op %d, %+v: what was done (-model +controller):\n%s", i, o, d)
		}
		compare(ctx, t, m, c)
		if o.kind == "end" {
			events = append(events, c.Events()...)
			height++
			c = begin()
		}
	}
	events = append(events, c.Events()...)
	rebuilt := upgrade.NewMemory()
	if err := upgrade.Rebuild(ctx, rebuilt, lines(events)); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(all(store), all(rebuilt)); d != "" {
		t.Fatalf("what the events make (-state +rebuilt):\n%s", d)
	}
	return events
}

// compare compares what can be seen of a controller with the model.
func compare(ctx context.Context, t rapid.TB, m *model, c *upgrade.Controller) {
	in, err := c.Channels(ctx)
	if want := (engines.Channels{Legacy: m.legacy, Current: m.current}); err != nil || in != want {
		t.Fatalf("channels %v, %v, want %v", in, err, want)
	}
	var tally upgrade.Tally
	for id, want := range m.vats {
		v, err := c.Vat(ctx, id)
		if err != nil {
			t.Fatal(err)
		}
		w := want.Vat
		if w.Failure != nil && v.Failure != nil {
			v.Failure = &upgrade.Failure{Attempts: v.Failure.Attempts, Computrons: v.Failure.Computrons}
		}
		if d := cmp.Diff(&w, v, cmpopts.IgnoreFields(upgrade.Vat{}, "First", "Next", "Bytes", "Aside", "Waits", "Ready", "Cause")); d != "" {
			t.Fatalf("%s (-model +controller):\n%s", id, d)
		}
		waits, err := c.Waiting(ctx, id, 1000)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(slices.Concat(want.aside, want.queue), waits, cmpopts.EquateEmpty()); d != "" {
			t.Fatalf("what waits for %s (-model +controller):\n%s", id, d)
		}
		if v.Bytes != want.bytes() {
			t.Fatalf("%s: %d bytes, want %d", id, v.Bytes, want.bytes())
		}
		switch v.State() {
		case upgrade.Active:
			tally.Active++
		case upgrade.Upgrading:
			tally.Upgrading++
		case upgrade.Suspended:
			tally.Suspended++
		case upgrade.Terminated:
			tally.Terminated++
		}
		if v.Paused {
			tally.Paused++
		}
		tally.Queued += int64(len(want.queue))
		tally.Aside += int64(len(want.aside))
		tally.Bytes += want.bytes()
	}
	tally.Flushed = int64(len(m.ready))
	if got, err := c.Tally(ctx); err != nil || got != tally {
		t.Fatalf("tally %+v, %v, want %+v", got, err, tally)
	}
	for _, version := range someVersions {
		if n, err := c.Count(ctx, version); err != nil || n != int64(len(m.holds(version))) {
			t.Fatalf("%d vats hold %s, %v, want %v", n, version, err, m.holds(version))
		}
	}
	r, err := c.Rollout(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(m.rollout, r, cmpopts.IgnoreFields(upgrade.Rollout{}, "Why")); d != "" {
		t.Fatalf("rollout (-model +controller):\n%s", d)
	}
	if m.going() {
		steps, err := c.Steps(ctx, 1000)
		if d := cmp.Diff(m.steps, steps, cmpopts.EquateEmpty()); err != nil || d != "" {
			t.Fatalf("steps, %v (-model +controller):\n%s", err, d)
		}
	}
}

// The controller does what the model does, whatever is asked of it; its state is what its events make.
func TestModel(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) { against(t, byRapid(t)) })
	seen := map[upgrade.EventType]int{}
	for seed := range uint64(120) {
		for _, e := range against(t, atRandom(seed)) {
			seen[e.Type]++
		}
	}
	t.Logf("events: %v", seen)
	for _, e := range upgrade.EventTypes {
		if seen[e] == 0 {
			t.Errorf("no event %s", e)
		}
	}
}

func FuzzModel(f *testing.F) {
	f.Fuzz(rapid.MakeFuzz(func(t *rapid.T) { against(t, byRapid(t)) }))
}

// run runs operations on a store, block by block. A block in which the host fails is undone and made again.
type run struct {
	events   []upgrade.Event
	failures int
}

// runOps runs operations, with a host that fails in some of its calls. commit is called at the end of blocks, and undo in place of it after
// such a failure.
func runOps(s upgrade.Settings, ops []op, store func() upgrade.Store, commit, undo func() error, failures func() int) (*run, error) {
	ctx := context.Background()
	r := new(run)
	var blocks [][]op
	for i := 0; i < len(ops); {
		n := slices.IndexFunc(ops[i:], func(o op) bool { return o.kind == "end" }) + 1
		if n == 0 {
			n = len(ops) - i
		}
		blocks = append(blocks, ops[i:i+n])
		i += n
	}
	for height, block := range blocks {
		for try := 0; ; try++ {
			host := &hashHost{missing: "d", height: int64(height)}
			if try == 0 {
				host.failAt = failures()
			}
			c := upgrade.Open(store(), host, int64(height))
			err := func() error {
				if height == 0 {
					if err := c.Init(ctx, "a", s); err != nil {
						return err
					}
				}
				for _, o := range block {
					if o.version == "current" {
						in, err := c.Channels(ctx)
						if err != nil {
							return err
						}
						o.version = in.Current
					}
					if err := do(ctx, c, host, o); err != nil && !errors.Is(err, upgrade.ErrRefused) {
						return err
					}
				}
				return nil
			}()
			if err == nil {
				if err := commit(); err != nil {
					return nil, err
				}
				r.events = append(r.events, c.Events()...)
				break
			}
			if !errors.Is(err, errDisk) {
				return nil, err
			}
			r.failures++
			if err := undo(); err != nil {
				return nil, err
			}
		}
	}
	return r, nil
}

// Same operations, same events and same state: in memory and in SQLite, undisturbed and with blocks that were undone and made again.
func TestDeterminism(t *testing.T) {
	t.Parallel()
	undone := 0
	for seed := range uint64(60) {
		n := atRandom(seed)
		s, ops := drawOps(n)
		nothing := func() error { return nil }
		one := upgrade.NewMemory()
		a, err := runOps(s, ops, func() upgrade.Store { return one }, nothing, nothing, func() int { return 0 })
		if err != nil {
			t.Fatal(err)
		}

		committed := upgrade.NewMemory()
		var working *upgrade.Memory
		failAt := func() int { return int(n("fail at", 0, 4)) }
		b, err := runOps(s, ops, func() upgrade.Store { working = committed.Copy(); return working }, func() error { committed = working; return nil }, nothing, failAt)
		if err != nil {
			t.Fatal(err)
		}
		undone += b.failures
		if d := cmp.Diff(a.events, b.events); d != "" {
			t.Fatalf("seed %d: events (-undisturbed +undone and made again):\n%s", seed, d)
		}
		if d := cmp.Diff(all(one), all(committed)); d != "" {
			t.Fatalf("seed %d: state (-undisturbed +undone and made again):\n%s", seed, d)
		}

		if seed%10 > 0 {
			continue
		}
		db, err := swingstore.Memory()
		if err != nil {
			t.Fatal(err)
		}
		var tx *swingstore.Tx
		c, err := runOps(s, ops, func() upgrade.Store { tx, err = db.Begin(); return tx }, func() error { return tx.Commit() }, func() error { tx.Rollback(); return nil }, failAt)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(a.events, c.events); d != "" {
			t.Fatalf("seed %d: events (-memory +SQLite):\n%s", seed, d)
		}
		if d := cmp.Diff(all(one), rows(t, db)); d != "" {
			t.Fatalf("seed %d: state (-memory +SQLite):\n%s", seed, d)
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if undone < 50 {
		t.Errorf("%d blocks were undone, want more", undone)
	}
}

// rows returns all keys and values of a store.
func rows(t *testing.T, s *swingstore.Store) (rows [][2]string) {
	key := ""
	for {
		var err error
		key, err = s.NextKey(t.Context(), key)
		if err != nil {
			t.Fatal(err)
		}
		if key == "" {
			return rows
		}
		value, err := s.Get(t.Context(), key)
		if err != nil {
			t.Fatal(err)
		}
		rows = append(rows, [2]string{key, value})
	}
}
