package upgrade

import (
	"context"
	"encoding/json"
	"fmt"
	"iter"
	"slices"
	"strings"

	"github.com/enginery/enginery/engines"
)

// Event is a change of a controller's state, a line of JSON. docs/upgrade.md says which fields an event of a type has.
type Event struct {
	Seq    int64     `json:"seq"`    // 1, 2, …
	Height int64     `json:"height"` // of the block
	Type   EventType `json:"type"`
	Vat    string    `json:"vat,omitempty"`

	Version    string            `json:"version,omitempty"` // that it is about; of an upgrade: the new one
	From       string            `json:"from,omitempty"`    // of an upgrade: the old one
	LegacyOnly bool              `json:"legacyOnly,omitempty"`
	Settings   *Settings         `json:"settings,omitempty"`
	Adoption   *Adoption         `json:"adoption,omitempty"`
	Channels   *engines.Channels `json:"channels,omitempty"` // afterwards

	Request    *Request  `json:"request,omitempty"`
	Cause      Cause     `json:"cause,omitempty"`
	Policy     Policy    `json:"policy,omitempty"`     // that was applied to an upgrade that failed
	Problem    string    `json:"problem,omitempty"`    // why
	Computrons int64     `json:"computrons,omitempty"` // that were used, with Budget.Start for an upgrade
	Kind       Kind      `json:"kind,omitempty"`       // of a delivery that is not told in full
	Delivery   *Delivery `json:"delivery,omitempty"`
	Turn       bool      `json:"turn,omitempty"` // afterwards it is another vat's turn

	Rollout *Rollout `json:"rollout,omitempty"` // that begins
	Step    *Step    `json:"step,omitempty"`
	Block   *Block   `json:"block,omitempty"`
	Running bool     `json:"running,omitempty"` // a rollout was running in the block
	Swept   int64    `json:"swept,omitempty"`   // ID of a rollout
	Count   int64    `json:"count,omitempty"`
}

// EventType is a type of event.
type EventType string

// Types of events.
const (
	Initialized     EventType = "initialized"
	SettingsChanged EventType = "settings-changed"
	Adopted         EventType = "adopted"
	Retired         EventType = "retired"

	VatAdded         EventType = "vat-added"
	VatPaused        EventType = "vat-paused"
	VatResumed       EventType = "vat-resumed"
	VatSuspended     EventType = "vat-suspended" // by an operator
	VatRolledBack    EventType = "vat-rolled-back"
	VatTerminated    EventType = "vat-terminated"
	UpgradeRequested EventType = "upgrade-requested"
	VatUpgraded      EventType = "vat-upgraded"
	UpgradeFailed    EventType = "upgrade-failed"

	DeliveryQueued    EventType = "delivery-queued"
	DeliverySetAside  EventType = "delivery-set-aside"
	DeliveryRefused   EventType = "delivery-refused"
	DeliveryMade      EventType = "delivery-made"
	DeliveryDiscarded EventType = "delivery-discarded"

	RolloutStarted EventType = "rollout-started"
	StepAdded      EventType = "step-added"
	StepSkipped    EventType = "step-skipped"
	RolloutPaused  EventType = "rollout-paused"
	RolloutResumed EventType = "rollout-resumed"
	RolloutHeld    EventType = "rollout-held"
	RolloutAborted EventType = "rollout-aborted"
	RolloutDone    EventType = "rollout-done"
	PlanSwept      EventType = "plan-swept"
	BlockEnded     EventType = "block-ended"
)

// EventTypes are all types of events.
var EventTypes = []EventType{
	Initialized, SettingsChanged, Adopted, Retired,
	VatAdded, VatPaused, VatResumed, VatSuspended, VatRolledBack, VatTerminated, UpgradeRequested, VatUpgraded, UpgradeFailed,
	DeliveryQueued, DeliverySetAside, DeliveryRefused, DeliveryMade, DeliveryDiscarded,
	RolloutStarted, StepAdded, StepSkipped, RolloutPaused, RolloutResumed, RolloutHeld, RolloutAborted, RolloutDone, PlanSwept, BlockEnded,
}

// do makes an event happen.
func (c *Controller) do(ctx context.Context, e Event) error {
	h, err := c.s.head(ctx)
	if err != nil && e.Type != Initialized {
		return err
	}
	e.Seq, e.Height = h.Seq+1, c.height
	if err := e.clean(); err != nil {
		return err
	}
	if err := c.s.apply(ctx, &e); err != nil {
		return err
	}
	c.events = append(c.events, e)
	return nil
}

// clean makes of what others have said what will be read from a log, so that both make the same state.
func (e *Event) clean() error {
	e.Problem = strings.ToValidUTF8(e.Problem, "\ufffd")
	for _, err := range []error{e.Request.clean(), e.Delivery.clean(), e.Step.clean(), e.Adoption.clean()} {
		if err != nil {
			return err
		}
	}
	return nil
}

func (r *Request) clean() error {
	if r == nil {
		return nil
	}
	return clean(&r.Parameters, &r.ID, &r.Bundle, &r.Message)
}

func (d *Delivery) clean() error {
	if d == nil {
		return nil
	}
	return clean(&d.Payload, &d.Key)
}

func (s *Step) clean() error {
	if s == nil {
		return nil
	}
	s.After = slices.Clone(s.After)
	return clean(nil, &s.Bundle, &s.Class)
}

func (a *Adoption) clean() error {
	if a == nil {
		return nil
	}
	return clean(nil, &a.Index, &a.Classification)
}

func clean(raw *json.RawMessage, texts ...*string) error {
	for _, t := range texts {
		*t = strings.ToValidUTF8(*t, "\ufffd")
	}
	if raw == nil || *raw == nil {
		return nil
	}
	text, err := json.Marshal(*raw)
	if err != nil {
		return refuse("%q is not JSON: %v", *raw, err)
	}
	*raw = text
	return nil
}

// Rebuild makes the state out of all events that there were, in an empty store, or brings a store forward to which only the last events did
// not come yet.
func Rebuild(ctx context.Context, s Store, events iter.Seq2[Event, error]) error {
	made := open(s)
	for e, err := range events {
		if err != nil {
			return err
		}
		if err := made.apply(ctx, &e); err != nil {
			return fmt.Errorf("rebuilding from event %d, %s: %w", e.Seq, e.Type, err)
		}
	}
	return nil
}

// apply changes the state as an event says.
func (s state) apply(ctx context.Context, e *Event) error {
	h, err := s.head(ctx)
	if e.Type == Initialized {
		err = s.put("channels", engines.Channels{Legacy: e.Version, Current: e.Version})
		if err == nil {
			err = keepPut(s, "tally", &s.known.tally, Tally{})
		}
	}
	if err != nil {
		return err
	}
	if e.Seq != h.Seq+1 {
		return fmt.Errorf("event %d comes after event %d", e.Seq, h.Seq)
	}
	h.Seq, h.Height = e.Seq, e.Height

	switch e.Type {
	case Initialized, SettingsChanged:
		err = keepPut(s, "settings", &s.known.settings, *e.Settings)
	case Adopted, Retired:
		err = s.put("channels", e.Channels)
	case PlanSwept:
		err = s.sweep(ctx, e.Swept, e.Count)
	case BlockEnded:
		h.UpgradeCarry, h.DeliveryCarry = e.Block.UpgradeCarry, e.Block.DeliveryCarry
		if e.Running {
			err = s.changeRollout(ctx, func(r *Rollout) { r.Blocks++ })
		}
	case RolloutStarted, StepAdded, StepSkipped, RolloutPaused, RolloutResumed, RolloutHeld, RolloutAborted, RolloutDone:
		err = s.applyToRollout(ctx, e)
	default:
		err = s.applyToVat(ctx, e, &h)
	}
	if err != nil {
		return err
	}
	return keepPut(s, "head", &s.known.head, h)
}

func (s state) applyToRollout(ctx context.Context, e *Event) error {
	if e.Type == RolloutStarted {
		return s.putRollout(e.Rollout)
	}
	r, err := s.rollout(ctx)
	if err != nil {
		return err
	}
	if r == nil {
		return fmt.Errorf("%s, and there is no rollout", e.Type)
	}
	from := r.State
	switch e.Type {
	case StepAdded:
		if r.Steps++; e.Step == nil {
			return fmt.Errorf("%s has no step", e.Type)
		}
		err = s.addStep(r, e.Step)
	case StepSkipped:
		r.Skipped++
		err = s.removeStep(ctx, r, e.Vat)
	case RolloutPaused:
		r.State, r.Why = Paused, ""
	case RolloutResumed:
		r.State, r.Why, r.Strikes = Running, "", 0
	case RolloutHeld:
		r.State, r.Why = Held, e.Problem
	case RolloutAborted:
		if r.State, r.Why, r.Ended = Aborted, e.Problem, e.Height; r.Left() > 0 {
			err = s.set(keyOf("stale", number(r.ID)), "1")
		}
	case RolloutDone:
		r.State, r.Ended = Done, e.Height
	}
	if err == nil {
		err = checkTransition(RolloutTransitions, fmt.Sprintf("rollout %d", r.ID), from, r.State, e.Type)
	}
	if err != nil {
		return err
	}
	return s.putRollout(r)
}

func (s state) applyToVat(ctx context.Context, e *Event, h *head) error {
	old, err := s.vat(ctx, e.Vat)
	if err != nil {
		return err
	}
	if e.Type == VatAdded {
		if old != nil {
			return fmt.Errorf("there is a vat %s already", e.Vat)
		}
		return s.putVat(ctx, h, nil, &Vat{ID: e.Vat, Version: e.Version, LegacyOnly: e.LegacyOnly}, e)
	}
	if old == nil {
		return &UnknownVatError{e.Vat}
	}
	v := *old
	switch e.Type {
	case VatPaused:
		v.Paused = true
	case VatResumed:
		v.Paused = false
	case VatSuspended:
		v.Suspended = true
		err = s.forget(ctx, &v)
	case VatRolledBack:
		v.Suspended, v.Paused = false, false
	case VatTerminated:
		v.Terminated, v.Paused, v.Suspended, v.Request, v.Cause = true, false, false, nil, ""
	case UpgradeRequested:
		v.Request, v.Cause = e.Request, e.Cause
	case VatUpgraded:
		if v.Suspended { // the failure, or the operator, that suspended it
			v.Suspended, v.Paused = false, false
		}
		v.Version, v.Failure = e.Version, nil
		if e.Cause != ByRollout {
			v.Request, v.Cause = nil, ""
		}
		err = s.forget(ctx, &v)
	case UpgradeFailed:
		f := Failure{Version: e.Version, Bundle: e.Request.Bundle, Problem: e.Problem, Height: e.Height, Attempts: 1, Computrons: e.Computrons}
		if v.Failure != nil {
			f.Attempts += v.Failure.Attempts
		}
		if v.Failure = &f; e.Policy == Suspend || v.Suspended {
			v.Suspended, v.Paused = true, true
			err = s.forget(ctx, &v)
		}
		if e.Cause != ByRollout {
			v.Request, v.Cause = nil, ""
		}
	case DeliveryQueued:
		err = s.push(&v, e.Delivery)
	case DeliverySetAside:
		err = s.setAside(ctx, &v, e.Delivery)
	case DeliveryRefused:
		v.Refused++
	case DeliveryMade, DeliveryDiscarded:
		if err = s.pop(ctx, &v); e.Turn {
			if err == nil {
				err = s.delete(keyOf("ready", number(v.Ready)))
			}
			v.Ready = 0
		}
	default:
		return fmt.Errorf("events of type %q are not known", e.Type)
	}
	if err != nil {
		return err
	}
	if err := s.putVat(ctx, h, old, &v, e); err != nil {
		return err
	}
	if (e.Type == VatUpgraded || e.Type == UpgradeFailed) && e.Cause == ByRollout {
		return s.changeRollout(ctx, func(r *Rollout) {
			if e.Type == VatUpgraded {
				r.Upgraded++
			} else {
				r.Failed++
				r.Strikes++
			}
		}, e.Vat)
	}
	return nil
}
