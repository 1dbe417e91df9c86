package upgrade

import (
	"context"
	"fmt"
	"strings"
)

// Vat is what the controller knows of a vat.
type Vat struct {
	ID         string `json:"id"`
	Version    string `json:"version"`              // of its last incarnation
	LegacyOnly bool   `json:"legacyOnly,omitempty"` // it is never upgraded, suspended or paused

	// Two flags, apart (agoric-sdk, issue 8955): whether deliveries wait, and whether it has no worker.
	Paused    bool `json:"paused,omitempty"`
	Suspended bool `json:"suspended,omitempty"`

	Terminated bool     `json:"terminated,omitempty"`
	Request    *Request `json:"request,omitempty"` // that awaits its turn
	Cause      Cause    `json:"cause,omitempty"`   // of the request
	Failure    *Failure `json:"failure,omitempty"` // of the last upgrade that was tried, if it failed

	First   int64 `json:"first,omitempty"`   // number of the first delivery in its queue
	Next    int64 `json:"next,omitempty"`    // number of the next delivery to come into it
	Bytes   int64 `json:"bytes,omitempty"`   // of its queue
	Aside   int64 `json:"aside,omitempty"`   // deliveries that were set aside
	Refused int64 `json:"refused,omitempty"` // messages that were refused, as its queue was full

	Waits int64 `json:"waits,omitempty"` // place of its request in the order of all
	Ready int64 `json:"ready,omitempty"` // place in the order of those whose queues are emptied
}

// Failure is an upgrade that failed.
type Failure struct {
	Version    string `json:"version"` // that the vat was to run on
	Bundle     string `json:"bundle,omitempty"`
	Problem    string `json:"problem"`
	Height     int64  `json:"height"`
	Attempts   int64  `json:"attempts"` // in a row
	Computrons int64  `json:"computrons"`
}

// Queued returns how many deliveries are in the vat's queue.
func (v *Vat) Queued() int64 { return v.Next - v.First }

// State returns the vat's state.
func (v *Vat) State() State {
	switch {
	case v.Terminated:
		return Terminated
	case v.Request != nil:
		return Upgrading
	case v.Suspended:
		return Suspended
	}
	return Active
}

// takes reports whether deliveries out of the vat's queue can be made.
func (v *Vat) takes() bool { return !v.Terminated && !v.Paused && !v.Suspended && v.Request == nil }

// State is the state of a vat.
type State string

// States of a vat.
const (
	Active     State = "active"     // it runs on a version in service; if it is paused, its deliveries wait
	Upgrading  State = "upgrading"  // an upgrade was requested and awaits its share of a block; deliveries wait
	Suspended  State = "suspended"  // it has no worker; deliveries wait for an upgrade that succeeds
	Terminated State = "terminated" // it is gone; what was in its queue is discarded
)

// UnknownVatError says that the controller was told of no such vat.
type UnknownVatError struct{ Vat string }

func (e *UnknownVatError) Error() string { return fmt.Sprintf("there is no vat %s", e.Vat) }

// Is reports that it is ErrRefused.
func (e *UnknownVatError) Is(target error) bool { return target == ErrRefused }

// AddVat tells the controller of a new vat, which runs on the current version, or on the legacy one for good.
func (c *Controller) AddVat(ctx context.Context, id string, legacyOnly bool) error {
	in, err := c.s.channels(ctx)
	if err != nil {
		return err
	}
	version := in.Current
	if legacyOnly {
		version = in.Legacy
	}
	return c.AddVatOn(ctx, id, version, legacyOnly)
}

// AddVatOn tells the controller of a vat that runs on a version in service.
func (c *Controller) AddVatOn(ctx context.Context, id, version string, legacyOnly bool) error {
	const characters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-"
	if id == "" || len(id) > 64 || strings.Trim(id, characters) != "" {
		return refuse("vat ID %q: expected letters, digits, _ and -, at most 64", id)
	}
	in, err := c.s.channels(ctx)
	if err != nil {
		return err
	}
	if err := in.Check(version); err != nil {
		return &RefusedError{err.Error()}
	}
	if v, err := c.s.vat(ctx, id); err != nil {
		return err
	} else if v != nil {
		return refuse("there is a vat %s already, %s on %s", id, v.State(), v.Version)
	}
	return c.do(ctx, Event{Type: VatAdded, Vat: id, Version: version, LegacyOnly: legacyOnly})
}

// Vat returns a vat. The error is an *UnknownVatError if there is none.
func (c *Controller) Vat(ctx context.Context, id string) (*Vat, error) {
	v, err := c.s.vat(ctx, id)
	if err == nil && v == nil {
		err = &UnknownVatError{id}
	}
	return v, err
}

// alive returns a vat that is not terminated.
func (c *Controller) alive(ctx context.Context, id string) (*Vat, error) {
	v, err := c.Vat(ctx, id)
	if err == nil && v.Terminated {
		err = refuse("%s is terminated", id)
	}
	return v, err
}

// changeable returns a vat that may be upgraded, suspended and paused.
func (c *Controller) changeable(ctx context.Context, id string) (*Vat, error) {
	v, err := c.alive(ctx, id)
	if err == nil && v.LegacyOnly {
		err = refuse("%s stays on %s for good and is never upgraded, suspended or paused; a plan leaves it out (enginery upgrade plan --leave %s)", id, v.Version, id)
	}
	return v, err
}

// Pause has a vat's deliveries wait. It keeps its worker.
func (c *Controller) Pause(ctx context.Context, id string) error {
	v, err := c.changeable(ctx, id)
	if err != nil {
		return err
	}
	if v.Paused {
		return refuse("%s is paused already", id)
	}
	return c.do(ctx, Event{Type: VatPaused, Vat: id})
}

// Resume ends the pause of a vat. If it is suspended, the next delivery, or one that waits, has it upgraded.
func (c *Controller) Resume(ctx context.Context, id string) error {
	v, err := c.changeable(ctx, id)
	if err != nil {
		return err
	}
	if !v.Paused {
		return refuse("%s is not paused", id)
	}
	if err := c.do(ctx, Event{Type: VatResumed, Vat: id}); err != nil {
		return err
	}
	if v.Suspended && v.Request == nil && v.Queued()+v.Aside > 0 {
		return c.do(ctx, Event{Type: UpgradeRequested, Vat: id, Request: &Request{}, Cause: ByDelivery})
	}
	return nil
}

// Suspend takes a vat's worker away, for good: its next incarnation begins on the current version, when a delivery comes for it. The version
// that it ran on is no longer held by it.
func (c *Controller) Suspend(ctx context.Context, id string) error {
	v, err := c.changeable(ctx, id)
	if err != nil {
		return err
	}
	if v.Suspended {
		return refuse("%s is suspended already", id)
	}
	if err := c.do(ctx, Event{Type: VatSuspended, Vat: id}); err != nil {
		return err
	}
	if !v.Paused && v.Request == nil && v.Queued()+v.Aside > 0 {
		return c.do(ctx, Event{Type: UpgradeRequested, Vat: id, Request: &Request{}, Cause: ByDelivery})
	}
	return nil
}

// RollBack has a suspended vat go on as it was, on the version of its last incarnation, while that is in service.
func (c *Controller) RollBack(ctx context.Context, id string) error {
	v, err := c.changeable(ctx, id)
	if err != nil {
		return err
	}
	if !v.Suspended {
		return refuse("%s is %s, on %s; only a suspended vat can be rolled back", id, v.State(), v.Version)
	}
	in, err := c.s.channels(ctx)
	if err != nil {
		return err
	}
	if in.Channel(v.Version) == "" {
		return refuse("%s ran on %s, which is out of service: legacy is %s, current is %s; upgrade it with a bundle that works", id, v.Version, in.Legacy, in.Current)
	}
	if v.Request != nil {
		return refuse("an upgrade of %s waits; it comes first", id)
	}
	return c.do(ctx, Event{Type: VatRolledBack, Vat: id, Version: v.Version})
}

// RequestUpgrade has a vat upgraded to the current version, before all that waits in its queue, as soon as the budget of a block allows. It
// is also how an operator tries again with a bundle that was mended. A request that was still waiting is superseded and returned, so that
// the host can tell who made it.
func (c *Controller) RequestUpgrade(ctx context.Context, id string, r Request) (superseded *Request, err error) {
	v, err := c.changeable(ctx, id)
	if err != nil {
		return nil, err
	}
	if err := c.do(ctx, Event{Type: UpgradeRequested, Vat: id, Request: &r, Cause: ByRequest}); err != nil {
		return nil, err
	}
	return v.Request, nil
}

// Terminate says that a vat is gone. Its queue is discarded over the next blocks. A request that was waiting is returned.
func (c *Controller) Terminate(ctx context.Context, id, why string) (superseded *Request, err error) {
	v, err := c.alive(ctx, id)
	if err != nil {
		return nil, err
	}
	return v.Request, c.do(ctx, Event{Type: VatTerminated, Vat: id, Problem: why})
}

// Tally returns how many vats there are in each state, and how much waits for them.
func (c *Controller) Tally(ctx context.Context) (Tally, error) { return c.s.tally(ctx) }

// Count returns how many vats hold a version.
func (c *Controller) Count(ctx context.Context, version string) (int64, error) {
	return c.s.count(ctx, version)
}

// Vats returns at most so many vats in a state that come after one, in the order in which people count: v9 before v10.
func (c *Controller) Vats(ctx context.Context, in State, after string, most int) ([]*Vat, error) {
	ids, err := c.s.listVats(ctx, keyOf("state", string(in))+".", after, most)
	if err != nil {
		return nil, err
	}
	vats := make([]*Vat, 0, len(ids))
	for _, id := range ids {
		v, err := c.Vat(ctx, id)
		if err != nil {
			return nil, err
		}
		vats = append(vats, v)
	}
	return vats, nil
}

// Waiting returns what waits for a vat, at most so many, in the order that it will be delivered in.
func (c *Controller) Waiting(ctx context.Context, id string, most int) ([]Delivery, error) {
	var all []Delivery
	for _, prefix := range []string{keyOf("aside", id) + ".", keyOf("queue", id) + "."} {
		keys, err := c.s.list(ctx, prefix, "", most-len(all))
		if err != nil {
			return nil, err
		}
		for _, k := range keys {
			var d Delivery
			if _, err := c.s.read(ctx, prefix+k, &d); err != nil {
				return nil, err
			}
			all = append(all, d)
		}
	}
	return all, nil
}

// Steps returns the next steps of the rollout, at most so many.
func (c *Controller) Steps(ctx context.Context, most int) ([]Step, error) {
	r, err := c.s.rollout(ctx)
	if err != nil || r == nil || r.State.over() {
		return nil, err
	}
	prefix := keyOf("plan", number(r.ID), "step") + "."
	keys, err := c.s.list(ctx, prefix, "", most)
	if err != nil {
		return nil, err
	}
	steps := make([]Step, len(keys))
	for i, k := range keys {
		if _, err := c.s.read(ctx, prefix+k, &steps[i]); err != nil {
			return nil, err
		}
	}
	return steps, nil
}
