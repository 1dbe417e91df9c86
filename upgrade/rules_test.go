package upgrade_test

import (
	"errors"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/enginery/enginery/upgrade"
)

// one is a budget for one upgrade a block and no delivery, so that vats stay in the state that a test brings them to.
func one() upgrade.Settings {
	s := upgrade.DefaultSettings()
	s.Budget.Block = upgrade.Share{Upgrades: 1, UpgradeComputrons: 40_000_000, Deliveries: 1, DeliveryComputrons: 1}
	s.Budget.Full = upgrade.Share{}
	return s
}

// conditions bring a vat, v2, to where it does not take deliveries at once.
var conditions = []struct {
	name   string
	column func(upgrade.Rule) upgrade.Action
	bring  func(c *chain)
}{
	{"idle", func(upgrade.Rule) upgrade.Action { return upgrade.Deliver }, func(*chain) {}},
	{"paused", func(r upgrade.Rule) upgrade.Action { return r.Waiting }, func(c *chain) { c.must(c.Pause(c.Context(), "v2")) }},
	{"upgrading", func(r upgrade.Rule) upgrade.Action { return r.Waiting }, func(c *chain) { c.request("v2", "") }},
	{"queue before it", func(r upgrade.Rule) upgrade.Action { return r.Waiting }, func(c *chain) {
		c.must(c.Pause(c.Context(), "v2"))
		c.admit("v2", upgrade.Message, "", "first")
		c.must(c.Resume(c.Context(), "v2"))
	}},
	{"suspended", func(r upgrade.Rule) upgrade.Action { return r.Suspended }, func(c *chain) {
		c.fail("v2", "")
		c.request("v2", "")
		c.end(0)
		c.wantVat("v2", upgrade.Suspended, v16, 0)
		c.asked()
	}},
	{"suspended, not paused", func(r upgrade.Rule) upgrade.Action { return r.Suspended }, func(c *chain) { c.must(c.Suspend(c.Context(), "v2")) }},
	{"terminated", func(r upgrade.Rule) upgrade.Action { return r.Terminated }, func(c *chain) {
		if _, err := c.Terminate(c.Context(), "v2", "it is done"); err != nil {
			c.Fatal(err)
		}
	}},
}

// fail has the upgrade of a vat fail, with one bundle.
func (c *chain) fail(vat, bundle string) {
	c.upgrade[vat+" "+bundle] = upgrade.Outcome{Problem: "startVat threw", Computrons: 500_000}
}

func (c *chain) request(vat, bundle string) {
	c.Helper()
	if _, err := c.RequestUpgrade(c.Context(), vat, upgrade.Request{Bundle: bundle}); err != nil {
		c.Fatal(err)
	}
}

func newUpgradingChain(t *testing.T, s upgrade.Settings) *chain {
	t.Helper()
	c := newChain(t, s)
	c.must(c.AddVat(t.Context(), "v1", true))
	c.must(c.AddVat(t.Context(), "v2", false))
	c.must(c.AddVat(t.Context(), "v3", false))
	c.must(c.Adopt(t.Context(), upgrade.Adoption{Version: v18}))
	c.asked()
	return c
}

// Every kind of delivery, to a vat in every condition.
func TestRules(t *testing.T) {
	t.Parallel()
	for _, condition := range conditions {
		for _, rule := range upgrade.Rules {
			t.Run(condition.name+"/"+string(rule.Kind), func(t *testing.T) {
				t.Parallel()
				c := newUpgradingChain(t, one())
				condition.bring(c)
				before, err := c.Waiting(t.Context(), "v2", 10)
				c.must(err)
				v := c.admit("v2", rule.Kind, "k", "x")
				c.wantAction(v, condition.column(rule))
				waits, err := c.Waiting(t.Context(), "v2", 10)
				c.must(err)
				more := len(waits) - len(before)
				if want := map[upgrade.Action]int{upgrade.Queue: 1, upgrade.SetAside: 1}[v.Action]; more != want {
					t.Errorf("%s, and %d more wait", v.Action, more)
				}
				if v.Action == upgrade.Refuse && v.Reason == "" {
					t.Error("the sender is not told why")
				}
			})
		}
	}
}

// What was set aside comes first, each once, in the order of its kinds; then the queue in its order; then what came meanwhile.
func TestOrder(t *testing.T) {
	t.Parallel()
	s := upgrade.DefaultSettings()
	c := newUpgradingChain(t, s)
	c.fail("v2", "")
	c.request("v2", "")
	c.end(0)
	c.wantAsked("upgrade v2 to " + v18)
	for _, d := range []struct {
		kind upgrade.Kind
		key  string
	}{
		{upgrade.Message, ""}, {upgrade.RetireImports, "ko9"}, {upgrade.Notify, ""}, {upgrade.BringOutYourDead, ""}, {upgrade.DropExports, "ko5"}, {upgrade.Pipelined, ""},
		{upgrade.RetireExports, "ko5"}, {upgrade.DropExports, "ko4"}, {upgrade.ChangeVatOptions, ""}, {upgrade.DropExports, "ko5"}, {upgrade.ChangeVatOptions, ""},
	} {
		c.admit("v2", d.kind, d.key, string(d.kind)+d.key)
	}
	if v := c.wantVat("v2", upgrade.Suspended, v16, 3); v.Aside != 5 {
		t.Errorf("%d were set aside, want 5", v.Aside)
	}
	c.end(0)
	c.wantAsked() // nothing reaches it
	c.request("v2", "b1-mended")
	c.wantAction(c.admit("v2", upgrade.Message, "", "late"), upgrade.Queue)
	c.end(0)
	c.wantAsked("upgrade v2 to "+v18+" b1-mended",
		`deliver v2 changeVatOptions  "changeVatOptions"`, `deliver v2 dropExports ko4 "dropExportsko4"`, `deliver v2 dropExports ko5 "dropExportsko5"`,
		`deliver v2 retireExports ko5 "retireExportsko5"`, `deliver v2 retireImports ko9 "retireImportsko9"`,
		`deliver v2 message  "message"`, `deliver v2 notify  "notify"`, `deliver v2 pipelined  "pipelined"`, `deliver v2 message  "late"`)
	c.wantAction(c.admit("v2", upgrade.Message, "", "now"), upgrade.Deliver)
}

// bringOutYourDead is for the incarnation that was told of it.
func TestForgottenDead(t *testing.T) {
	t.Parallel()
	for _, upgraded := range []bool{false, true} {
		c := newUpgradingChain(t, upgrade.DefaultSettings())
		c.must(c.Pause(t.Context(), "v2"))
		c.admit("v2", upgrade.BringOutYourDead, "", "")
		c.admit("v2", upgrade.BringOutYourDead, "", "")
		want := []string{`deliver v2 bringOutYourDead  ""`}
		if upgraded {
			c.request("v2", "")
			c.end(0)
			c.wantAsked("upgrade v2 to " + v18) // it stays paused
			want = nil
		}
		c.must(c.Resume(t.Context(), "v2"))
		c.end(0)
		c.wantAsked(want...)
	}
}

// A full queue: the sender of a message is refused and sees the room before, a notification is not.
func TestBackPressure(t *testing.T) {
	t.Parallel()
	s := one()
	s.Limits = upgrade.Limits{Messages: 3, Bytes: 30, Total: 4, Turn: 1}
	c := newUpgradingChain(t, s)
	for _, v := range []string{"v2", "v3"} {
		c.must(c.Pause(t.Context(), v))
	}
	for i := range int64(3) {
		if v := c.admit("v2", upgrade.Message, "", i); v.Action != upgrade.Queue || v.Queued != i+1 || v.Room != 2-i {
			t.Errorf("message %d: %+v", i, v)
		}
	}
	refused := func(v upgrade.Verdict, reason string) {
		t.Helper()
		if v.Action != upgrade.Refuse || v.Reason != reason {
			t.Errorf("%+v, want it refused with %q", v, reason)
		}
	}
	refused(c.admit("v2", upgrade.Message, "", 3), "v2 is paused and 3 deliveries wait for it, the most that may")
	refused(c.admit("v3", upgrade.Message, "", fmt.Sprintf("%030d", 0)), "v3 is paused and 0 bytes wait for it; with this message they would be 32, and 30 may")
	c.wantAction(c.admit("v3", upgrade.Pipelined, "", 0), upgrade.Queue)
	refused(c.admit("v3", upgrade.Pipelined, "", 1), "v3 is paused and 4 deliveries wait for vats, the most that may")
	c.wantAction(c.admit("v2", upgrade.Notify, "", 3), upgrade.Queue)
	c.wantAction(c.admit("v2", upgrade.DropExports, "ko1", 3), upgrade.SetAside)
	if v := c.wantVat("v2", upgrade.Active, v16, 4); v.Refused != 1 {
		t.Errorf("%d were refused", v.Refused)
	}
}

// A suspended vat that is not paused is started by the delivery that comes for it; if that fails, it is paused too.
func TestOnDemand(t *testing.T) {
	t.Parallel()
	c := newUpgradingChain(t, upgrade.DefaultSettings())
	for _, v := range []string{"v2", "v3"} {
		c.must(c.Suspend(t.Context(), v))
	}
	c.fail("v3", "")
	c.end(0)
	c.wantAsked()
	c.admit("v2", upgrade.Message, "", 1)
	c.admit("v3", upgrade.Message, "", 1)
	c.wantVat("v2", upgrade.Upgrading, v16, 1)
	c.end(0)
	c.wantAsked("upgrade v2 to "+v18, "upgrade v3 to "+v18, "deliver v2 message  1")
	if !c.attempts[0].Suspended || c.attempts[0].Cause != upgrade.ByDelivery {
		t.Errorf("%+v", c.attempts[0])
	}
	if v := c.wantVat("v3", upgrade.Suspended, v16, 1); !v.Paused {
		t.Errorf("%+v", v)
	}
	c.admit("v3", upgrade.Message, "", 2)
	c.end(0)
	c.wantAsked()
	c.must(c.Resume(t.Context(), "v3")) // an operator's word is enough, as something waits
	c.upgrade = nil
	c.end(0)
	c.wantAsked("upgrade v3 to "+v18, "deliver v3 message  1", "deliver v3 message  2")
}

// A vat that ends while its queue is long: what waits is discarded over blocks, and what it was asked for is told.
func TestTermination(t *testing.T) {
	t.Parallel()
	s := upgrade.DefaultSettings()
	s.Budget.Block.Deliveries, s.Budget.Full.Deliveries = 2, 2
	c := newUpgradingChain(t, s)
	c.must(c.Pause(t.Context(), "v2"))
	for i := range 3 {
		c.admit("v2", upgrade.Message, "", i)
	}
	c.request("v2", "b1-old")
	superseded, err := c.RequestUpgrade(t.Context(), "v2", upgrade.Request{ID: "7", Bundle: "b1-new"})
	if err != nil || superseded == nil || superseded.Bundle != "b1-old" {
		t.Errorf("%+v, %v", superseded, err)
	}
	superseded, err = c.Terminate(t.Context(), "v2", "governance")
	if err != nil || superseded == nil || superseded.ID != "7" {
		t.Errorf("%+v, %v", superseded, err)
	}
	c.end(1 << 50) // a full block: its reserved share
	c.wantAsked("discard v2 message 0", "discard v2 message 1")
	c.end(0)
	c.wantAsked("discard v2 message 2")
	c.wantVat("v2", upgrade.Terminated, v16, 0)
	_, err = c.RequestUpgrade(t.Context(), "v2", upgrade.Request{})
	c.wantRefused(err, "v2 is terminated")
	if n, err := c.Count(t.Context(), v16); err != nil || n != 2 {
		t.Errorf("%d vats hold %s, %v; want v1 and v3", n, v16, err)
	}

	// One that ends in the middle of its queue.
	c.must(c.Pause(t.Context(), "v3"))
	for i := range 3 {
		c.admit("v3", upgrade.Message, "", i)
	}
	c.must(c.Resume(t.Context(), "v3"))
	c.deliver["v3"] = upgrade.Outcome{Problem: "Compute meter exceeded", Computrons: 100_000_000, Terminated: true}
	c.end(0)
	c.wantAsked("deliver v3 message  0", "discard v3 message 1")
}

// Vats take turns, so that a long queue does not keep others waiting.
func TestTurns(t *testing.T) {
	t.Parallel()
	s := upgrade.DefaultSettings()
	s.Budget.Block.Deliveries, s.Budget.Full.Deliveries, s.Limits.Turn = 5, 5, 2
	c := newUpgradingChain(t, s)
	for _, v := range []string{"v2", "v3"} {
		c.must(c.Pause(t.Context(), v))
		for i := range 4 {
			c.admit(v, upgrade.Message, "", i)
		}
	}
	for _, v := range []string{"v3", "v2"} {
		c.must(c.Resume(t.Context(), v))
	}
	c.end(0)
	c.wantAsked("deliver v3 message  0", "deliver v3 message  1", "deliver v2 message  0", "deliver v2 message  1", "deliver v3 message  2")
	c.end(0)
	c.wantAsked("deliver v3 message  3", "deliver v2 message  2", "deliver v2 message  3")
}

// The versions in service, whatever is asked for.
func TestChannels(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	c := newUpgradingChain(t, upgrade.DefaultSettings())
	c.wantRefused(c.Adopt(ctx, upgrade.Adoption{Version: v18}), "is the current version already")
	c.wantRefused(c.Adopt(ctx, upgrade.Adoption{Version: "../x"}), "version ID")
	c.wantRefused(c.Retire(ctx, v18), "is the current version")
	c.wantRefused(c.Retire(ctx, v22), "is not in service")
	c.wantRefused(c.Retire(ctx, v16), "3 vats run on "+v16+" (v1, v2, v3)")

	// v18 is held by nobody, so it is given up for another; v16 stays.
	c.must(c.Adopt(ctx, upgrade.Adoption{Version: v22}))
	if in, err := c.Channels(ctx); err != nil || in.Legacy != v16 || in.Current != v22 {
		t.Errorf("%v, %v", in, err)
	}
	c.must(c.StartRollout(ctx, upgrade.Plan{Version: v22, Steps: []upgrade.Step{{Vat: "v2"}}}))
	c.wantRefused(c.Adopt(ctx, upgrade.Adoption{Version: v18}), "finish or abort it first")
	c.end(0)
	c.wantRefused(c.Adopt(ctx, upgrade.Adoption{Version: v18}), "2 vats run on "+v16+" (v1, v3); 1 vat runs on "+v22+" (v2);")
	c.must(c.AddVat(ctx, "v4", false))
	c.wantVat("v4", upgrade.Active, v22, 0)
	c.wantRefused(c.AddVatOn(ctx, "v5", v18, false), "is not in service")

	// The legacy one comes back as current.
	c.must(c.Adopt(ctx, upgrade.Adoption{Version: v16}))
	if in, err := c.Channels(ctx); err != nil || in.Legacy != v22 || in.Current != v16 {
		t.Errorf("%v, %v", in, err)
	}
	c.must(c.Suspend(ctx, "v2"))
	c.must(c.Suspend(ctx, "v4"))
	c.must(c.Retire(ctx, v22))
	c.wantRefused(c.RollBack(ctx, "v2"), "which is out of service")

	// What a node cannot check is no answer for the chain.
	c.refuse = fmt.Errorf("no route to host")
	if err := c.Adopt(ctx, upgrade.Adoption{Version: v18}); err == nil || errors.Is(err, upgrade.ErrRefused) {
		t.Errorf("%v", err)
	}
	c.refuse = &upgrade.RefusedError{Reason: "its classification is not the one that was voted on"}
	c.wantRefused(c.Adopt(ctx, upgrade.Adoption{Version: v18}), "voted on")
}

// Vats are listed as people count, and so are those that hold a version.
func TestListOrder(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	c := newChain(t, upgrade.DefaultSettings())
	want := []string{"a-2", "12", "v", "v100x", "va", "v1", "v2", "v9", "va9", "v10", "v99", "v100"} // of one kind in order; others anywhere, and once
	for _, id := range []string{"v100", "v10", "va9", "v2", "v100x", "v", "12", "v99", "a-2", "v1", "va", "v9"} {
		c.must(c.AddVat(ctx, id, false))
	}
	var got []string
	for after := ""; ; {
		vats, err := c.Vats(ctx, upgrade.Active, after, 5)
		c.must(err)
		if len(vats) == 0 {
			break
		}
		for _, v := range vats {
			got = append(got, v.ID)
		}
		after = got[len(got)-1]
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("the vats are (-want +got):\n%s", d)
	}
	c.must(c.Adopt(ctx, upgrade.Adoption{Version: v18}))
	c.wantRefused(c.Retire(ctx, v16), "12 vats run on "+v16+" (a-2, 12, v, v100x, va, v1, v2, v9, va9, v10, v99, v100)")
	c.must(c.Suspend(ctx, "v10"))
	if vats, err := c.Vats(ctx, upgrade.Suspended, "v9", 2); err != nil || len(vats) != 1 || vats[0].ID != "v10" {
		t.Errorf("%v, %v", vats, err)
	}
}

// A vat that is never to move.
func TestLegacyOnly(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	c := newUpgradingChain(t, upgrade.DefaultSettings())
	const never = "v1 stays on " + v16 + " for good"
	_, err := c.RequestUpgrade(ctx, "v1", upgrade.Request{})
	c.wantRefused(err, never)
	c.wantRefused(c.Pause(ctx, "v1"), never)
	c.wantRefused(c.Suspend(ctx, "v1"), never)
	c.wantRefused(c.StartRollout(ctx, upgrade.Plan{Version: v18, Steps: []upgrade.Step{{Vat: "v1"}}}), never)
	c.wantAction(c.admit("v1", upgrade.Message, "", 0), upgrade.Deliver)
}

// Rolling back: by policy at the failure, by an operator later, and never to a version that is out of service.
func TestRollBack(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s := upgrade.DefaultSettings()
	s.OnFailure = upgrade.RollBack
	c := newUpgradingChain(t, s)
	c.fail("v2", "")
	c.request("v2", "")
	c.admit("v2", upgrade.Message, "", 0)
	c.end(0)
	c.wantAsked("upgrade v2 to "+v18, "deliver v2 message  0") // on the old version
	if v := c.wantVat("v2", upgrade.Active, v16, 0); v.Failure == nil || v.Failure.Attempts != 1 {
		t.Errorf("%+v", v)
	}
	c.wantRefused(c.RollBack(ctx, "v2"), "only a suspended vat")

	c.must(c.StartRollout(ctx, upgrade.Plan{Version: v18, OnFailure: upgrade.Suspend, MaxFailures: 1, Steps: []upgrade.Step{{Vat: "v2"}}}))
	c.end(0)
	c.admit("v2", upgrade.Message, "", 1)
	c.wantVat("v2", upgrade.Suspended, v16, 1)
	c.asked()
	c.must(c.RollBack(ctx, "v2"))
	c.end(0)
	c.wantAsked("deliver v2 message  1")
	c.wantVat("v2", upgrade.Active, v16, 0)
}
