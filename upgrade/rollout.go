package upgrade

import (
	"context"
)

// Plan is a rollout as governance says it: which vats are upgraded to the current version, in which order. NewPlan makes one from a replay
// classification.
type Plan struct {
	Version     string `json:"version"`             // the current one
	MaxFailures int64  `json:"maxFailures"`         // after more of them it is held
	OnFailure   Policy `json:"onFailure,omitempty"` // empty: the settings'
	Paused      bool   `json:"paused,omitempty"`    // it begins when it is resumed, e.g. after all of a long plan was handed in by ExtendRollout
	Steps       []Step `json:"steps"`
}

// Step is a vat's part of a plan.
type Step struct {
	Vat        string   `json:"vat"`
	After      []string `json:"after,omitempty"`      // vats that must be on the version before; otherwise the step is skipped
	Bundle     string   `json:"bundle,omitempty"`     // ID of a new source; empty: the same again
	Computrons int64    `json:"computrons,omitempty"` // that its startVat is expected to use
	Class      string   `json:"class,omitempty"`      // of its replay on the version, for who reads the plan
	Priority   int64    `json:"priority,omitempty"`   // for who reads the plan, which is in order already
}

// Rollout is a rollout under way, or the last one.
type Rollout struct {
	ID          int64        `json:"id"` // 1, 2, …
	Version     string       `json:"version"`
	State       RolloutState `json:"state"`
	Why         string       `json:"why,omitempty"` // it is held or was aborted
	MaxFailures int64        `json:"maxFailures"`
	OnFailure   Policy       `json:"onFailure"`
	Started     int64        `json:"started"`         // height
	Ended       int64        `json:"ended,omitempty"` // height

	Steps    int64 `json:"steps"` // of the whole plan
	Upgraded int64 `json:"upgraded"`
	Failed   int64 `json:"failed"`
	Skipped  int64 `json:"skipped"`
	Strikes  int64 `json:"strikes"` // failures since it was last resumed
	Blocks   int64 `json:"blocks"`  // that it has been running
}

// Left returns how many steps are still to be done.
func (r *Rollout) Left() int64 { return r.Steps - r.Upgraded - r.Failed - r.Skipped }

// RolloutState is the state of a rollout.
type RolloutState string

// States of a rollout.
const (
	Running RolloutState = "running"
	Paused  RolloutState = "paused"  // somebody has paused it
	Held    RolloutState = "held"    // too many upgrades have failed
	Aborted RolloutState = "aborted" // somebody has ended it; what was done stays
	Done    RolloutState = "done"    // all steps were taken
)

func (s RolloutState) over() bool { return s == Aborted || s == Done }

// Rollout returns the rollout under way, or else the last one; nil if there was none yet.
func (c *Controller) Rollout(ctx context.Context) (*Rollout, error) { return c.s.rollout(ctx) }

// ETA returns in how many blocks a rollout will be done if it goes on as it has, and at the most that its budget allows. ok is false
// if it is not running.
func (c *Controller) ETA(ctx context.Context) (blocks int64, ok bool, err error) {
	r, err := c.s.rollout(ctx)
	if err != nil || r == nil || r.State != Running {
		return 0, false, err
	}
	s, err := c.s.settings(ctx)
	if err != nil {
		return 0, false, err
	}
	b := s.Budget
	perBlock := min(b.Block.Upgrades, max(1, b.Block.UpgradeComputrons/max(1, b.Start)))
	blocks = (r.Left() + perBlock - 1) / perBlock
	if taken := r.Steps - r.Left(); taken > 0 {
		blocks = max(blocks, (r.Left()*r.Blocks+taken-1)/taken)
	}
	return blocks, true, nil
}

// StartRollout begins a rollout. The work is in proportion to the steps that are handed in; more of them can follow by ExtendRollout.
func (c *Controller) StartRollout(ctx context.Context, p Plan) error {
	in, err := c.s.channels(ctx)
	if err != nil {
		return err
	}
	if p.Version != in.Current {
		return refuse("the plan is for %q, and the current version is %s; adopt first", p.Version, in.Current)
	}
	old, err := c.s.rollout(ctx)
	if err != nil {
		return err
	}
	if old != nil && !old.State.over() {
		return refuse("rollout %d, to %s, is %s; finish or abort it first", old.ID, old.Version, old.State)
	}
	if p.MaxFailures < 0 {
		return refuse("maxFailures is %d, expected 0 or more", p.MaxFailures)
	}
	settings, err := c.s.settings(ctx)
	if err != nil {
		return err
	}
	switch p.OnFailure {
	case "":
		p.OnFailure = settings.OnFailure
	case Suspend, RollBack:
	default:
		return refuse("onFailure is %q, expected %q or %q", p.OnFailure, Suspend, RollBack)
	}
	r := Rollout{ID: 1, Version: p.Version, State: Running, MaxFailures: p.MaxFailures, OnFailure: p.OnFailure, Started: c.height}
	if old != nil {
		r.ID = old.ID + 1
	}
	if p.Paused {
		r.State = Paused
	}
	if err := c.checkSteps(ctx, r.ID, p.Steps); err != nil {
		return err
	}
	if err := c.do(ctx, Event{Type: RolloutStarted, Rollout: &r}); err != nil {
		return err
	}
	return c.addSteps(ctx, p.Steps)
}

// ExtendRollout adds steps to a rollout that is not over. A vat that was dealt with may come again, e.g. with a bundle that was mended.
func (c *Controller) ExtendRollout(ctx context.Context, steps []Step) error {
	r, err := c.going(ctx)
	if err != nil {
		return err
	}
	if err := c.checkSteps(ctx, r.ID, steps); err != nil {
		return err
	}
	return c.addSteps(ctx, steps)
}

func (c *Controller) addSteps(ctx context.Context, steps []Step) error {
	for _, s := range steps {
		if err := c.do(ctx, Event{Type: StepAdded, Vat: s.Vat, Step: &s}); err != nil {
			return err
		}
	}
	return nil
}

func (c *Controller) checkSteps(ctx context.Context, rollout int64, steps []Step) error {
	seen := make(map[string]bool, len(steps))
	for i, s := range steps {
		v, err := c.changeable(ctx, s.Vat)
		if err != nil {
			return at(i, err)
		}
		planned, err := c.s.planned(ctx, rollout, s.Vat)
		if err != nil {
			return err
		}
		if planned || seen[s.Vat] {
			return at(i, refuse("%s has a step already", s.Vat))
		}
		for _, d := range s.After {
			if _, err := c.alive(ctx, d); err != nil {
				return at(i, err)
			}
			if d == v.ID {
				return at(i, refuse("%s comes after itself", d))
			}
		}
		if s.Computrons < 0 || s.Computrons > mostComputrons {
			return at(i, refuse("%s is expected to use %d computrons; 0 to %d make sense", s.Vat, s.Computrons, int64(mostComputrons)))
		}
		seen[s.Vat] = true
	}
	// Who comes after a vat must not stand before it.
	place := make(map[string]int, len(steps))
	for i, s := range steps {
		place[s.Vat] = i
	}
	for i, s := range steps {
		for _, d := range s.After {
			if p, ok := place[d]; ok && p > i {
				return at(i, refuse("%s comes after %s, which is step %d", s.Vat, d, p))
			}
		}
	}
	return nil
}

// mostComputrons is what a step may expect: a rollout waits until so much is saved.
const mostComputrons = 1_000_000_000_000

func at(step int, err error) error { return refuse("step %d: %v", step, err) }

// going returns the rollout if it is not over.
func (c *Controller) going(ctx context.Context) (*Rollout, error) {
	r, err := c.s.rollout(ctx)
	if err != nil {
		return nil, err
	}
	if r == nil {
		return nil, refuse("there is no rollout")
	}
	if r.State.over() {
		return nil, refuse("rollout %d is %s", r.ID, r.State)
	}
	return r, nil
}

// PauseRollout has a rollout wait until it is resumed.
func (c *Controller) PauseRollout(ctx context.Context) error {
	r, err := c.going(ctx)
	if err != nil {
		return err
	}
	if r.State == Paused {
		return refuse("rollout %d is paused already", r.ID)
	}
	return c.do(ctx, Event{Type: RolloutPaused})
}

// ResumeRollout has a rollout go on that is paused or held. As many failures as at its start are allowed from here.
func (c *Controller) ResumeRollout(ctx context.Context) error {
	r, err := c.going(ctx)
	if err != nil {
		return err
	}
	if r.State == Running {
		return refuse("rollout %d is running", r.ID)
	}
	return c.do(ctx, Event{Type: RolloutResumed})
}

// AbortRollout ends a rollout. What it has done stays, and what it has suspended too.
func (c *Controller) AbortRollout(ctx context.Context, why string) error {
	if _, err := c.going(ctx); err != nil {
		return err
	}
	return c.do(ctx, Event{Type: RolloutAborted, Problem: why})
}
