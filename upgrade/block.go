package upgrade

import (
	"context"
	"fmt"
	"math/bits"
)

// Budget says how much of a block is the controller's. Units are those that all validators count alike.
type Budget struct {
	Block Share `json:"block"` // in a block that has room for it
	Full  Share `json:"full"`  // reserved, however full the block is
	Limit int64 `json:"limit"` // computrons of a block, deliveries and upgrades together; a block that has used them is full

	// Start is what the start of a worker for a new incarnation counts: the computrons of evaluating lockdown and supervisor, which no meter
	// sees. Of agoric-upgrade-16 and 18 they are about 26 million. The vat's own source is imported, and metered, in startVat.
	Start int64 `json:"start"`
}

// Share is a part of a block. Upgrades and deliveries do not take from each other.
//
// An upgrade is tried if what it is expected to use is left, and a delivery is made if anything is left. What it uses more is taken from the
// next blocks. If too little is left for the first request of a block, or for its first step after the requests, that is saved for it over blocks.
type Share struct {
	Upgrades           int64 `json:"upgrades"`           // tried, whatever comes of them
	UpgradeComputrons  int64 `json:"upgradeComputrons"`  // with Budget.Start for each
	Deliveries         int64 `json:"deliveries"`         // out of queues, and discarded
	DeliveryComputrons int64 `json:"deliveryComputrons"` // of them
}

// mostBudget is what anything in a budget may be, so that no sum of such overflows.
const mostBudget = 1_000_000_000_000_000

func (b Budget) check() error {
	for _, s := range []Share{b.Block, b.Full} {
		if s.Upgrades < 0 || s.UpgradeComputrons < 0 || s.Deliveries < 0 || s.DeliveryComputrons < 0 {
			return refuse("a share of a block is %+v, expected nothing below 0", s)
		}
	}
	if b.Block.Upgrades == 0 || b.Block.UpgradeComputrons == 0 || b.Block.Deliveries == 0 || b.Block.DeliveryComputrons == 0 {
		return refuse("the share of a block is %+v, expected each to be at least 1", b.Block)
	}
	if b.Full.Upgrades > b.Block.Upgrades || b.Full.UpgradeComputrons > b.Block.UpgradeComputrons ||
		b.Full.Deliveries > b.Block.Deliveries || b.Full.DeliveryComputrons > b.Block.DeliveryComputrons {
		return refuse("the share of a full block, %+v, is more than that of one that has room, %+v", b.Full, b.Block)
	}
	if max(b.Block.Upgrades, b.Block.UpgradeComputrons, b.Block.Deliveries, b.Block.DeliveryComputrons, b.Limit, b.Start) > mostBudget {
		return refuse("the budget is %+v, expected nothing above %d", b, int64(mostBudget))
	}
	if b.Limit < 1 || b.Start < 0 {
		return refuse("a block's limit is %d computrons and a start %d, expected at least 1 and 0", b.Limit, b.Start)
	}
	return nil
}

// share returns the share of a block in which so many computrons were used: Block if it is empty, Full if it is full, and between them
// computrons in proportion to the room that is left.
func (b Budget) share(used int64) Share {
	room := min(b.Limit-used, b.Limit)
	if room <= 0 {
		return b.Full
	}
	s := b.Block
	for _, v := range []struct {
		dst  *int64
		full int64
	}{{&s.UpgradeComputrons, b.Full.UpgradeComputrons}, {&s.DeliveryComputrons, b.Full.DeliveryComputrons}} {
		high, low := bits.Mul64(uint64(*v.dst-v.full), uint64(room))
		more, _ := bits.Div64(high, low, uint64(b.Limit))
		*v.dst = v.full + int64(more)
	}
	return s
}

// expected returns what an upgrade is expected to use: the start of a worker, and so many computrons; or what it used when it last failed, if that is more.
func (b Budget) expected(v *Vat, computrons int64) int64 {
	n := b.Start + computrons
	if v.Failure != nil {
		n = max(n, v.Failure.Computrons)
	}
	return n
}

// Block is what the controller did at the end of a block.
type Block struct {
	Used       int64 `json:"used"` // computrons of the block before
	Upgrades   int64 `json:"upgrades"`
	Failed     int64 `json:"failed"`     // of the upgrades
	Computrons int64 `json:"computrons"` // of the upgrades, with Budget.Start for each
	Deliveries int64 `json:"deliveries"` // out of queues, and discarded
	Delivered  int64 `json:"delivered"`  // computrons of the deliveries

	// What is carried over to the next block, in computrons: saved, or used too much if it is less than 0.
	UpgradeCarry  int64 `json:"upgradeCarry"`
	DeliveryCarry int64 `json:"deliveryCarry"`
}

// What a block does at most of things that use no computrons.
const (
	skips = 1000 // steps of a plan
	swept = 1000 // keys of a plan that was aborted
)

// EndBlock does a block's share of the work: upgrades that were requested, then steps of the rollout; then what waits for vats that
// take deliveries again. used are the computrons that the block has used before. An error means that the block cannot be made here and
// now.
func (c *Controller) EndBlock(ctx context.Context, used int64) (*Block, error) {
	h, err := c.s.head(ctx)
	if err != nil {
		return nil, err
	}
	settings, err := c.s.settings(ctx)
	if err != nil {
		return nil, err
	}
	b := &Block{Used: used}
	share := settings.Budget.share(used)
	if err := c.sweep(ctx); err != nil {
		return nil, err
	}
	before, err := c.s.rollout(ctx)
	if err != nil {
		return nil, err
	}
	running := before != nil && before.State == Running
	if b.UpgradeCarry, err = c.upgrades(ctx, b, settings, share, h.UpgradeCarry); err != nil {
		return nil, err
	}
	if b.DeliveryCarry, err = c.deliveries(ctx, b, settings, share, h.DeliveryCarry); err != nil {
		return nil, err
	}
	if running || b.Upgrades+b.Deliveries > 0 || b.UpgradeCarry != h.UpgradeCarry || b.DeliveryCarry != h.DeliveryCarry {
		if err := c.do(ctx, Event{Type: BlockEnded, Block: b, Running: running}); err != nil {
			return nil, err
		}
	}
	return b, nil
}

// upgrades tries upgrades, and returns what is carried over to the next block: what was used too much, or what is saved for an upgrade that needs more.
func (c *Controller) upgrades(ctx context.Context, b *Block, settings Settings, share Share, carry int64) (int64, error) {
	left := share.UpgradeComputrons + carry
	saved := int64(0)  // at most, for an upgrade that waits
	before := int64(0) // upgrades that were tried before the first request, or before the first step
	try := func(expected int64, f func() (int64, error)) (bool, error) {
		if b.Upgrades == share.Upgrades || expected > left {
			if share.Upgrades == 0 { // it waits for a block that takes upgrades
				saved = max(carry, 0)
			} else if b.Upgrades == before && expected > left { // it is the first, and would wait for ever
				saved = expected
			}
			return false, nil
		}
		spent, err := f()
		left -= spent
		return err == nil, err
	}
	for {
		v, err := c.s.firstRequest(ctx)
		if err != nil {
			return 0, err
		}
		if v == nil {
			break
		}
		more, err := try(settings.Budget.expected(v, 0), func() (int64, error) {
			return c.attempt(ctx, b, settings, v, *v.Request, v.Cause, settings.OnFailure)
		})
		if err != nil {
			return 0, err
		}
		if !more {
			return min(left, saved), nil
		}
	}
	before = b.Upgrades
	for range share.Upgrades + skips {
		r, err := c.s.rollout(ctx)
		if err != nil {
			return 0, err
		}
		if r == nil || r.State != Running {
			break
		}
		step, err := c.s.firstStep(ctx, r.ID)
		if err != nil {
			return 0, err
		}
		if step == nil {
			return min(left, 0), c.do(ctx, Event{Type: RolloutDone})
		}
		v, err := c.Vat(ctx, step.Vat)
		if err != nil {
			return 0, err
		}
		why, err := c.skip(ctx, r, step, v)
		if err != nil {
			return 0, err
		}
		if why != "" {
			if err := c.do(ctx, Event{Type: StepSkipped, Vat: step.Vat, Problem: why}); err != nil {
				return 0, err
			}
			continue
		}
		more, err := try(settings.Budget.expected(v, step.Computrons), func() (int64, error) {
			return c.attempt(ctx, b, settings, v, Request{Bundle: step.Bundle}, ByRollout, r.OnFailure)
		})
		if err != nil {
			return 0, err
		}
		if !more {
			return min(left, saved), nil
		}
		if r, err = c.s.rollout(ctx); err != nil {
			return 0, err
		}
		if r.Strikes > r.MaxFailures {
			why := fmt.Sprintf("%s, the last of %s; at most %d may", count(r.Strikes, "upgrade has failed", "upgrades have failed"), step.Vat, r.MaxFailures)
			if err := c.do(ctx, Event{Type: RolloutHeld, Problem: why}); err != nil {
				return 0, err
			}
		}
	}
	return min(left, 0), nil
}

// skip returns why a step is not taken, or "".
func (c *Controller) skip(ctx context.Context, r *Rollout, step *Step, v *Vat) (string, error) {
	switch {
	case v.Terminated:
		return "it is terminated", nil
	case v.Version == r.Version && !v.Suspended && step.Bundle == "":
		return "it is on " + r.Version + " already", nil
	}
	for _, d := range step.After {
		before, err := c.Vat(ctx, d)
		if err != nil {
			return "", err
		}
		if before.Version != r.Version || before.State() != Active {
			return fmt.Sprintf("it comes after %s, which is %s on %s", d, before.State(), before.Version), nil
		}
	}
	return "", nil
}

// attempt tries an upgrade and returns what it has used.
func (c *Controller) attempt(ctx context.Context, b *Block, settings Settings, v *Vat, r Request, cause Cause, policy Policy) (int64, error) {
	in, err := c.s.channels(ctx)
	if err != nil {
		return 0, err
	}
	o, err := c.host.Upgrade(ctx, Attempt{Vat: v.ID, From: v.Version, Version: in.Current, Request: r, Cause: cause, Suspended: v.Suspended})
	if err != nil {
		return 0, fmt.Errorf("upgrading %s from %s to %s: %w", v.ID, v.Version, in.Current, err)
	}
	spent := settings.Budget.Start + o.Computrons
	b.Upgrades++
	b.Computrons += spent
	e := Event{Type: VatUpgraded, Vat: v.ID, From: v.Version, Version: in.Current, Request: &r, Cause: cause, Computrons: spent}
	if !o.OK {
		b.Failed++
		e.Type, e.Problem, e.Policy = UpgradeFailed, o.Problem, policy
	}
	if err := c.do(ctx, e); err != nil {
		return 0, err
	}
	if o.Terminated {
		return spent, c.do(ctx, Event{Type: VatTerminated, Vat: v.ID, Problem: o.Problem})
	}
	return spent, nil
}

// deliveries discards what waits for vats that are gone, makes deliveries that have waited, a turn for each vat, and returns what is
// carried over.
func (c *Controller) deliveries(ctx context.Context, b *Block, settings Settings, share Share, carry int64) (int64, error) {
	left := share.DeliveryComputrons + carry
	turn := int64(0)
	for b.Deliveries < share.Deliveries {
		v, err := c.s.firstReady(ctx)
		if err != nil {
			return 0, err
		}
		if v == nil || !v.Terminated && left <= 0 {
			break
		}
		d, err := c.s.firstDelivery(ctx, v)
		if err != nil {
			return 0, err
		}
		e := Event{Type: DeliveryMade, Vat: v.ID, Kind: d.Kind}
		var o Outcome
		if v.Terminated {
			e.Type = DeliveryDiscarded
			if err := c.host.Discard(ctx, v.ID, *d); err != nil {
				return 0, fmt.Errorf("discarding a delivery to %s: %w", v.ID, err)
			}
		} else {
			if o, err = c.host.Deliver(ctx, v.ID, *d); err != nil {
				return 0, fmt.Errorf("delivering to %s what has waited: %w", v.ID, err)
			}
			e.Computrons, e.Problem = o.Computrons, o.Problem
			b.Delivered += o.Computrons
			left -= o.Computrons
		}
		b.Deliveries++
		turn++
		if e.Turn = turn == settings.Limits.Turn; e.Turn {
			turn = 0
		}
		if err := c.do(ctx, e); err != nil {
			return 0, err
		}
		if o.Terminated {
			if err := c.do(ctx, Event{Type: VatTerminated, Vat: v.ID, Problem: o.Problem}); err != nil {
				return 0, err
			}
		}
		if after, err := c.s.vat(ctx, v.ID); err != nil {
			return 0, err
		} else if after.Ready != v.Ready {
			turn = 0
		}
	}
	return min(left, 0), nil
}

// sweep removes keys of plans that were aborted.
func (c *Controller) sweep(ctx context.Context) error {
	id, err := c.s.stale(ctx)
	if err != nil || id == 0 {
		return err
	}
	return c.do(ctx, Event{Type: PlanSwept, Swept: id, Count: swept})
}
