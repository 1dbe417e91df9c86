package upgrade_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"

	"github.com/enginery/enginery/swingstore"
	"github.com/enginery/enginery/upgrade"
)

var (
	_ upgrade.Store = (*swingstore.Tx)(nil)
	_ upgrade.Store = (*upgrade.Memory)(nil)
)

const (
	v16 = "agoric-upgrade-16"
	v18 = "agoric-upgrade-18"
	v22 = "agoric-upgrade-22"
)

// script is a host whose vats do what a test says. It notes what it was asked for.
type script struct {
	log      []string
	upgrade  map[string]upgrade.Outcome // by vat, or vat and bundle; otherwise it works
	deliver  map[string]upgrade.Outcome // by vat
	refuse   error                      // of CheckVersion
	broken   error                      // of all others
	attempts []upgrade.Attempt
}

func (h *script) CheckVersion(_ context.Context, a upgrade.Adoption) error {
	h.log = append(h.log, "check "+a.Version)
	return h.refuse
}

func (h *script) Upgrade(_ context.Context, a upgrade.Attempt) (upgrade.Outcome, error) {
	h.log = append(h.log, strings.TrimSpace(fmt.Sprintf("upgrade %s to %s %s", a.Vat, a.Version, a.Bundle)))
	h.attempts = append(h.attempts, a)
	for _, key := range []string{a.Vat + " " + a.Bundle, a.Vat} {
		if o, ok := h.upgrade[key]; ok {
			return o, h.broken
		}
	}
	return upgrade.Outcome{OK: true, Computrons: 1_000_000}, h.broken
}

func (h *script) Deliver(_ context.Context, vat string, d upgrade.Delivery) (upgrade.Outcome, error) {
	h.log = append(h.log, strings.TrimSpace(fmt.Sprintf("deliver %s %s %s %s", vat, d.Kind, d.Key, d.Payload)))
	if o, ok := h.deliver[vat]; ok {
		return o, h.broken
	}
	return upgrade.Outcome{OK: true, Computrons: 1000}, h.broken
}

func (h *script) Discard(_ context.Context, vat string, d upgrade.Delivery) error {
	h.log = append(h.log, fmt.Sprintf("discard %s %s %s", vat, d.Kind, d.Payload))
	return h.broken
}

// chain makes blocks.
type chain struct {
	*testing.T
	*script
	store  *upgrade.Memory
	height int64
	*upgrade.Controller
	events []upgrade.Event
}

func newChain(t *testing.T, s upgrade.Settings) *chain {
	c := &chain{T: t, script: &script{upgrade: map[string]upgrade.Outcome{}, deliver: map[string]upgrade.Outcome{}}, store: upgrade.NewMemory()}
	c.begin()
	c.must(c.Init(t.Context(), v16, s))
	return c
}

func (c *chain) begin() {
	c.height++
	c.Controller = upgrade.Open(c.store, c.script, c.height)
}

func (c *chain) must(err error) {
	c.Helper()
	if err != nil {
		c.Fatal(err)
	}
}

// end ends a block, and begins the next.
func (c *chain) end(used int64) *upgrade.Block {
	c.Helper()
	b, err := c.EndBlock(c.Context(), used)
	c.must(err)
	c.events = append(c.events, c.Events()...)
	c.begin()
	return b
}

// asked returns what the host was asked for since it was last called.
func (c *chain) asked() []string {
	log := c.log
	c.log = nil
	return log
}

func (c *chain) wantAsked(want ...string) {
	c.Helper()
	if d := cmp.Diff(want, c.asked()); d != "" {
		c.Errorf("the host was asked for (-want +got):\n%s", d)
	}
}

func (c *chain) wantVat(id string, state upgrade.State, version string, queued int64) *upgrade.Vat {
	c.Helper()
	v, err := c.Vat(c.Context(), id)
	c.must(err)
	if v.State() != state || v.Version != version || v.Queued() != queued {
		c.Errorf("%s is %s on %s with %d queued, want %s on %s with %d", id, v.State(), v.Version, v.Queued(), state, version, queued)
	}
	return v
}

func (c *chain) wantRefused(err error, part string) {
	c.Helper()
	if !errors.Is(err, upgrade.ErrRefused) || !strings.Contains(err.Error(), part) {
		c.Errorf("%v, want it refused with %q", err, part)
	}
}

func (c *chain) admit(vat string, kind upgrade.Kind, key string, payload any) upgrade.Verdict {
	c.Helper()
	text, err := json.Marshal(payload)
	c.must(err)
	v, err := c.Admit(c.Context(), vat, upgrade.Delivery{Kind: kind, Key: key, Payload: text})
	c.must(err)
	return v
}

func (c *chain) wantAction(v upgrade.Verdict, want upgrade.Action) {
	c.Helper()
	if v.Action != want {
		c.Errorf("%+v, want %q", v, want)
	}
}

// The story of issue 10905 in one: a rollout, a vat that fails, its queue, a bundle that works.
func TestStory(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s := upgrade.DefaultSettings()
	s.Budget.Block.Upgrades, s.Budget.Block.Deliveries, s.Budget.Full.Deliveries = 2, 2, 1
	c := newChain(t, s)
	c.must(c.AddVat(ctx, "v1", true))
	for _, id := range []string{"v2", "v3", "v4", "v5"} {
		c.must(c.AddVat(ctx, id, false))
	}
	c.must(c.Adopt(ctx, upgrade.Adoption{Version: v18}))
	c.wantAsked("check " + v18)
	c.upgrade["v3 "] = upgrade.Outcome{Problem: "startVat threw", Computrons: 500_000}
	c.must(c.StartRollout(ctx, upgrade.Plan{Version: v18, MaxFailures: 1, Steps: []upgrade.Step{{Vat: "v2"}, {Vat: "v3"}, {Vat: "v4"}, {Vat: "v5", After: []string{"v3"}}}}))

	b := c.end(0)
	c.wantAsked("upgrade v2 to "+v18, "upgrade v3 to "+v18)
	if b.Upgrades != 2 || b.Failed != 1 || b.Computrons != 2*26_000_000+1_500_000 {
		t.Errorf("%+v", b)
	}
	c.wantVat("v2", upgrade.Active, v18, 0)
	if v := c.wantVat("v3", upgrade.Suspended, v16, 0); !v.Paused || v.Failure.Problem != "startVat threw" {
		t.Errorf("%+v", v)
	}
	for i := range 3 {
		c.wantAction(c.admit("v3", upgrade.Message, "", i), upgrade.Queue)
	}
	c.wantAction(c.admit("v4", upgrade.Message, "", 0), upgrade.Deliver)
	c.end(0)
	c.wantAsked("upgrade v4 to " + v18)
	if r, err := c.Rollout(ctx); err != nil || r.State != upgrade.Done || r.Upgraded != 2 || r.Failed != 1 || r.Skipped != 1 {
		t.Errorf("%+v, %v", r, err)
	}
	c.wantRefused(c.Adopt(ctx, upgrade.Adoption{Version: v22}), "2 vats run on "+v16+" (v1, v5)")

	if _, err := c.RequestUpgrade(ctx, "v3", upgrade.Request{Bundle: "b1-fixed"}); err != nil {
		t.Fatal(err)
	}
	c.wantVat("v3", upgrade.Upgrading, v16, 3)
	c.end(0)
	c.wantAsked("upgrade v3 to "+v18+" b1-fixed", "deliver v3 message  0", "deliver v3 message  1")
	c.wantVat("v3", upgrade.Active, v18, 1)
	c.wantAction(c.admit("v3", upgrade.Message, "", 3), upgrade.Queue)
	c.end(0)
	c.wantAsked("deliver v3 message  2", "deliver v3 message  3")
	c.wantAction(c.admit("v3", upgrade.Message, "", 4), upgrade.Deliver)
	c.wantVat("v1", upgrade.Active, v16, 0)

	rebuilt := upgrade.NewMemory()
	c.must(upgrade.Rebuild(ctx, rebuilt, lines(c.events)))
	if d := cmp.Diff(all(c.store), all(rebuilt)); d != "" {
		t.Errorf("what the events make (-state +rebuilt):\n%s", d)
	}
}

// An adoption that no node could ever check is refused by all, and no host is asked.
func TestAdoptionForm(t *testing.T) {
	t.Parallel()
	right := digest.FromString("right").String()
	for name, test := range map[string]struct {
		adoption upgrade.Adoption
		want     string // part of why it is refused; empty: it is not
	}{
		"right":             {upgrade.Adoption{Version: v18, Index: right, Classification: right}, ""},
		"no digests":        {upgrade.Adoption{Version: v18}, ""},
		"no version":        {upgrade.Adoption{Version: "../x", Index: right}, "../x"},
		"a path":            {upgrade.Adoption{Version: v18, Index: right, Classification: "../x"}, `the replay classification in the adoption of agoric-upgrade-18 is "../x", expected a digest`},
		"too short":         {upgrade.Adoption{Version: v18, Index: right[:20]}, `the artifact in the adoption of agoric-upgrade-18 is "sha256:`},
		"of another length": {upgrade.Adoption{Version: v18, Index: digest.SHA512.FromString("").String()}, "expected a digest"},
		"in capitals":       {upgrade.Adoption{Version: v18, Index: "sha256:" + strings.ToUpper(right[7:])}, "expected a digest"},
	} {
		c := newChain(t, upgrade.DefaultSettings())
		c.refuse = errors.New("the artifact is not at hand")
		err := c.Adopt(t.Context(), test.adoption)
		if test.want == "" {
			c.wantAsked("check " + v18)
			if err == nil || errors.Is(err, upgrade.ErrRefused) {
				t.Errorf("%s: %v, expected what the host says", name, err)
			}
			continue
		}
		c.wantAsked()
		c.wantRefused(err, test.want)
	}
}

// A chain that wants evidence adopts nothing without.
func TestRequireDigests(t *testing.T) {
	t.Parallel()
	s := upgrade.DefaultSettings()
	s.RequireDigests = true
	right := digest.FromString("right").String()
	c := newChain(t, s)
	for _, a := range []upgrade.Adoption{{Version: v18}, {Version: v18, Index: right}, {Version: v18, Classification: right}} {
		c.wantRefused(c.Adopt(t.Context(), a), "requireDigests")
	}
	c.wantAsked()
	c.must(c.Adopt(t.Context(), upgrade.Adoption{Version: v18, Index: right, Classification: right}))
}

// Blocks do what the defaults say, with upgrades of vats as they are: three in an empty one, one in a full one, and nothing is used that was not
// given.
func TestDefaultSettings(t *testing.T) {
	t.Parallel()
	s := upgrade.DefaultSettings()
	for used, want := range map[int64]int64{0: 3, s.Budget.Limit / 30: 3, s.Budget.Limit / 2: 2, s.Budget.Limit: 1} {
		c := newUpgradingChain(t, s)
		var steps []upgrade.Step
		for _, vat := range []string{"v2", "v3", "v4", "v5", "v6"} {
			if _, err := c.Vat(t.Context(), vat); err != nil {
				c.must(c.AddVatOn(t.Context(), vat, v16, false))
			}
			c.upgrade[vat] = upgrade.Outcome{OK: true, Computrons: 36_500_000}
			steps = append(steps, upgrade.Step{Vat: vat, Computrons: 36_500_000})
		}
		c.must(c.StartRollout(t.Context(), upgrade.Plan{Version: v18, Steps: steps}))
		if b := c.end(used); b.Upgrades != want || b.UpgradeCarry != 0 {
			t.Errorf("after %d computrons: %+v, expected %d upgrades and nothing carried over", used, b, want)
		}
	}
}
