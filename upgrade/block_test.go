package upgrade_test

import (
	"errors"
	"fmt"
	"math"
	"testing"

	"github.com/enginery/enginery/upgrade"
)

const million = 1_000_000

// many is a chain with so many vats, v1 to be upgraded first, and a rollout over all.
func many(t *testing.T, s upgrade.Settings, vats int, maxFailures int64) *chain {
	t.Helper()
	c := newChain(t, s)
	plan := upgrade.Plan{Version: v18, MaxFailures: maxFailures}
	for n := range vats {
		id := fmt.Sprintf("v%d", n+1)
		c.must(c.AddVat(t.Context(), id, false))
		plan.Steps = append(plan.Steps, upgrade.Step{Vat: id, Computrons: million})
	}
	c.must(c.Adopt(t.Context(), upgrade.Adoption{Version: v18}))
	c.must(c.StartRollout(t.Context(), plan))
	return c
}

// What a block gives to upgrades, as it is fuller and fuller.
func TestShare(t *testing.T) {
	t.Parallel()
	// An upgrade is 27 million: 26 for the start of a worker, 1 for startVat.
	s := upgrade.DefaultSettings()
	s.Budget = upgrade.Budget{
		Block: upgrade.Share{Upgrades: 4, UpgradeComputrons: 120 * million, Deliveries: 10, DeliveryComputrons: 10_000},
		Full:  upgrade.Share{Upgrades: 1, UpgradeComputrons: 30 * million, Deliveries: 2, DeliveryComputrons: 2000},
		Limit: 100 * million, Start: 26 * million,
	}
	for _, test := range []struct{ used, upgrades, computrons int64 }{
		{0, 4, 108 * million},
		{10 * million, 4, 108 * million}, // 111 million are left
		{20 * million, 3, 81 * million},  // 102
		{50 * million, 2, 54 * million},  // 75
		{99 * million, 1, 27 * million},
		{100 * million, 1, 27 * million}, // full: what is reserved, and no more
		{1 << 60, 1, 27 * million},
		{-5, 4, 108 * million},
	} {
		c := many(t, s, 6, 0)
		if b := c.end(test.used); b.Upgrades != test.upgrades || b.Computrons != test.computrons || b.UpgradeCarry != 0 {
			t.Errorf("after %d computrons: %+v, want %d upgrades with %d computrons", test.used, b, test.upgrades, test.computrons)
		}
	}

	// Deliveries have a share of their own.
	c := many(t, s, 2, 0)
	c.must(c.Pause(t.Context(), "v2"))
	for i := range 20 {
		c.admit("v2", upgrade.Message, "", i)
	}
	c.must(c.Resume(t.Context(), "v2"))
	for _, want := range []struct{ used, deliveries int64 }{{1 << 60, 2}, {0, 10}, {100 * million, 2}, {50 * million, 6}} {
		if b := c.end(want.used); b.Deliveries != want.deliveries || b.Delivered != want.deliveries*1000 {
			t.Errorf("after %d computrons: %+v, want %d deliveries", want.used, b, want.deliveries)
		}
	}
}

// Nothing is reserved in full blocks, and they are all full: nothing happens, and the ETA is what it would be.
func TestNothingReserved(t *testing.T) {
	t.Parallel()
	s := upgrade.DefaultSettings()
	s.Budget.Full = upgrade.Share{}
	c := many(t, s, 6, 0)
	for range 3 {
		if b := c.end(s.Budget.Limit); b.Upgrades != 0 || b.UpgradeCarry != 0 {
			t.Errorf("%+v", b)
		}
	}
	if blocks, ok, err := c.ETA(t.Context()); blocks != 2 || !ok || err != nil {
		t.Errorf("%d, %v, %v", blocks, ok, err)
	}
}

// What an upgrade uses more than was expected is taken from the next blocks, and what it needs more than a share is saved.
func TestCarry(t *testing.T) {
	t.Parallel()
	s := upgrade.DefaultSettings()
	s.Budget.Block.UpgradeComputrons, s.Budget.Full.UpgradeComputrons = 40*million, 40*million
	c := many(t, s, 4, 0)
	c.upgrade["v1"] = upgrade.Outcome{OK: true, Computrons: 74 * million} // 100 with the start of the worker
	for i, want := range []struct{ upgrades, carry int64 }{{1, -60 * million}, {0, -20 * million}, {0, 20 * million}, {2, 0}, {1, 0}} {
		if b := c.end(0); b.Upgrades != want.upgrades || b.UpgradeCarry != want.carry {
			t.Errorf("block %d: %+v, want %+v", i, b, want)
		}
	}

	s.Budget.Block.UpgradeComputrons, s.Budget.Full.UpgradeComputrons = 10*million, 4*million
	c = many(t, s, 2, 0)
	for i, want := range []struct{ used, upgrades, carry int64 }{{0, 0, 10 * million}, {0, 0, 20 * million}, {1 << 60, 0, 24 * million}, {0, 1, 0}, {0, 0, 10 * million}} {
		if b := c.end(want.used); b.Upgrades != want.upgrades || b.UpgradeCarry != want.carry {
			t.Errorf("block %d: %+v, want %+v", i, b, want)
		}
	}

	// A full block that takes no upgrade saves nothing for one, and takes nothing away.
	s.Budget.Full.Upgrades = 0
	c = many(t, s, 2, 0)
	for i, want := range []struct{ used, upgrades, carry int64 }{{0, 0, 10 * million}, {1 << 60, 0, 10 * million}, {0, 0, 20 * million}, {1 << 60, 0, 20 * million}, {0, 1, 0}, {0, 0, 10 * million}} {
		if b := c.end(want.used); b.Upgrades != want.upgrades || b.UpgradeCarry != want.carry {
			t.Errorf("with full blocks that take none, block %d: %+v, want %+v", i, b, want)
		}
	}
	c.must(c.AbortRollout(t.Context(), ""))
	if b := c.end(0); b.UpgradeCarry != 0 {
		t.Errorf("%+v: saved, and there is nothing to save for", b)
	}
}

// What requests leave of a share is saved for the next step of the rollout, if it is too little for that.
func TestCarryBesideRequests(t *testing.T) {
	t.Parallel()
	s := upgrade.DefaultSettings()
	s.Budget.Block.UpgradeComputrons, s.Budget.Full.UpgradeComputrons = 45*million, 45*million
	c := many(t, s, 2, 0)
	for i, want := range []struct{ upgrades, carry int64 }{{1, 18 * million}, {2, 0}, {1, 18 * million}, {2, 0}} { // a request and a step are 27 million each
		c.must(c.AddVat(t.Context(), fmt.Sprintf("v%d", 10+i), false))
		c.request(fmt.Sprintf("v%d", 10+i), "")
		if b := c.end(0); b.Upgrades != want.upgrades || b.UpgradeCarry != want.carry {
			t.Errorf("block %d: %+v, want %+v", i, b, want)
		}
	}
	if r, err := c.Rollout(t.Context()); err != nil || r.State != upgrade.Done || r.Upgraded != 2 {
		t.Errorf("%+v, %v", r, err)
	}
}

// One vat that fails does not stop the others, more than a few do, and somebody lets it go on.
func TestStopRule(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s := upgrade.DefaultSettings()
	s.Budget.Block.Upgrades = 1
	c := many(t, s, 6, 1)
	for _, v := range []string{"v1", "v3", "v4"} {
		c.fail(v, "")
	}
	state := func(want upgrade.RolloutState, left, failed int64) {
		t.Helper()
		r, err := c.Rollout(ctx)
		c.must(err)
		if r.State != want || r.Left() != left || r.Failed != failed {
			t.Errorf("%+v, want it %s with %d left and %d failed", r, want, left, failed)
		}
	}
	for range 3 {
		c.end(0)
	}
	state(upgrade.Held, 3, 2)
	if r, err := c.Rollout(ctx); err != nil || r.Why != "2 upgrades have failed, the last of v3; at most 1 may" {
		t.Errorf("%+v, %v", r, err)
	}
	if _, ok, err := c.ETA(ctx); ok || err != nil {
		t.Errorf("it is held and has an ETA, %v", err)
	}
	c.end(0)
	state(upgrade.Held, 3, 2)
	c.request("v3", "b1-mended") // vats are mended meanwhile
	c.end(0)
	c.wantVat("v3", upgrade.Active, v18, 0)
	c.must(c.ExtendRollout(ctx, []upgrade.Step{{Vat: "v1", Bundle: "b1-mended"}}))
	c.wantRefused(c.ExtendRollout(ctx, []upgrade.Step{{Vat: "v4"}}), "v4 has a step already")
	c.must(c.ResumeRollout(ctx))
	c.end(0)
	state(upgrade.Running, 3, 3)
	c.must(c.PauseRollout(ctx))
	c.wantRefused(c.PauseRollout(ctx), "paused already")
	c.end(0)
	state(upgrade.Paused, 3, 3)
	c.must(c.ResumeRollout(ctx))
	c.wantRefused(c.ResumeRollout(ctx), "is running")
	if blocks, ok, err := c.ETA(ctx); blocks != 3 || !ok || err != nil {
		t.Errorf("%d, %v, %v", blocks, ok, err)
	}
	for range 4 {
		c.end(0)
	}
	state(upgrade.Done, 0, 3)
	c.wantVat("v1", upgrade.Active, v18, 0)
	c.wantVat("v4", upgrade.Suspended, v16, 0)
	c.wantRefused(c.PauseRollout(ctx), "rollout 1 is done")

	// The next rollout takes those that were suspended.
	c.upgrade = nil
	c.must(c.StartRollout(ctx, upgrade.Plan{Version: v18, Steps: []upgrade.Step{{Vat: "v2"}, {Vat: "v4"}}}))
	c.end(0)
	c.end(0)
	c.wantVat("v4", upgrade.Active, v18, 0)
	if r, err := c.Rollout(ctx); err != nil || r.ID != 2 || r.Skipped != 1 || r.Upgraded != 1 {
		t.Errorf("%+v, %v", r, err)
	}
}

// An aborted plan leaves nothing behind, and is removed over blocks, also while the next one runs.
func TestAbort(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	c := many(t, upgrade.DefaultSettings(), 1500, 0)
	c.end(0)
	c.must(c.AbortRollout(ctx, "governance"))
	c.must(c.StartRollout(ctx, upgrade.Plan{Version: v18, Steps: []upgrade.Step{{Vat: "v1500"}}}))
	keys := func() (n int) {
		for k := range c.store.All() {
			if len(k) > 13 && k[:13] == upgrade.Prefix+"plan." {
				n++
			}
		}
		return n
	}
	for i, want := range []int{1497*2 - 1000 + 0, 1497*2 - 2000, 0, 0} {
		c.end(0)
		if got := keys(); got != want {
			t.Errorf("block %d: %d keys, want %d", i, got, want)
		}
	}
	c.wantVat("v1500", upgrade.Active, v18, 0)
	c.wantVat("v1499", upgrade.Active, v16, 0)
}

// After an error of the node the host undoes the block, and it is as if there had been none.
func TestNodeFails(t *testing.T) {
	t.Parallel()
	c := many(t, upgrade.DefaultSettings(), 3, 0)
	c.end(0)
	committed := c.store.Copy()
	c.must(c.Pause(t.Context(), "v1"))
	c.admit("v1", upgrade.Message, "", 1)
	c.request("v1", "b1-more")
	broken := errors.New("no space left on device")
	c.broken = broken
	if _, err := c.EndBlock(t.Context(), 0); !errors.Is(err, broken) || errors.Is(err, upgrade.ErrRefused) {
		t.Errorf("%v", err)
	}
	c.store, c.broken = committed, nil
	c.height--
	c.begin()
	c.end(0)
	c.wantVat("v1", upgrade.Active, v18, 0)
}

// Settings and stores that make no sense.
func TestRefusedSettings(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	for name, change := range map[string]func(s *upgrade.Settings){
		"no upgrades":          func(s *upgrade.Settings) { s.Budget.Block.Upgrades = 0 },
		"less than nothing":    func(s *upgrade.Settings) { s.Budget.Full.Deliveries = -1 },
		"more in a full block": func(s *upgrade.Settings) { s.Budget.Full.Upgrades = s.Budget.Block.Upgrades + 1 },
		"more than counts":     func(s *upgrade.Settings) { s.Budget.Block.Upgrades = math.MaxInt64 },
		"an endless start":     func(s *upgrade.Settings) { s.Budget.Start = math.MaxInt64 },
		"no limit":             func(s *upgrade.Settings) { s.Budget.Limit = 0 },
		"no queue":             func(s *upgrade.Settings) { s.Limits.Messages = 0 },
		"no policy":            func(s *upgrade.Settings) { s.OnFailure = "" },
	} {
		s := upgrade.DefaultSettings()
		change(&s)
		store := upgrade.NewMemory()
		c := upgrade.Open(store, nil, 1)
		if err := c.Init(ctx, v16, s); !errors.Is(err, upgrade.ErrRefused) {
			t.Errorf("%s: %v", name, err)
		}
		if len(all(store)) > 0 {
			t.Errorf("%s: something was written", name)
		}
	}
	c := upgrade.Open(upgrade.NewMemory(), nil, 1)
	if _, err := c.EndBlock(ctx, 0); !errors.Is(err, upgrade.ErrNotInitialized) {
		t.Errorf("%v", err)
	}
	c2 := newChain(t, upgrade.DefaultSettings())
	c2.wantRefused(c2.Init(ctx, v16, upgrade.DefaultSettings()), "has a state already")
	c2.wantRefused(c2.Pause(ctx, "v9"), "there is no vat v9")
	c2.wantRefused(c2.AddVat(ctx, "v1.v2", false), "letters, digits")
	_, err := c2.Admit(ctx, "v9", upgrade.Delivery{Kind: upgrade.Message})
	c2.wantRefused(err, "there is no vat v9")
	c2.must(c2.AddVat(ctx, "v1", false))
	c2.wantRefused(c2.AddVat(ctx, "v1", false), "there is a vat v1 already")
	_, err = c2.Admit(ctx, "v1", upgrade.Delivery{Kind: "nonsense"})
	c2.wantRefused(err, `is of kind "nonsense"`)
	for _, steps := range [][]upgrade.Step{
		{{Vat: "v1", Computrons: -1}}, {{Vat: "v1", Computrons: 1 << 60}}, {{Vat: "v9"}}, {{Vat: "v1", After: []string{"v9"}}}, {{Vat: "v1", After: []string{"v1"}}}, {{Vat: "v1"}, {Vat: "v1"}},
	} {
		c2.wantRefused(c2.StartRollout(ctx, upgrade.Plan{Version: v16, Steps: steps}), "step ")
	}
	c2.wantRefused(c2.StartRollout(ctx, upgrade.Plan{Version: v18}), "adopt first")
	c2.wantRefused(c2.StartRollout(ctx, upgrade.Plan{Version: v16, MaxFailures: -1}), "0 or more")
	c2.wantRefused(c2.StartRollout(ctx, upgrade.Plan{Version: v16, OnFailure: "explode"}), "explode")
	c2.wantRefused(c2.AbortRollout(ctx, ""), "there is no rollout")
	c2.must(c2.Pause(ctx, "v1"))
	_, err = c2.Admit(ctx, "v1", upgrade.Delivery{Kind: upgrade.Message, Payload: []byte("{")})
	c2.wantRefused(err, "is not JSON")
}
