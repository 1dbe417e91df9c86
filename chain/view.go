package chain

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/enginery/enginery/engines"
	"github.com/enginery/enginery/swingstore"
	"github.com/enginery/enginery/upgrade"
)

// View is a chain at a height, for people.
type View struct {
	Height  int64  `json:"height"`
	AppHash string `json:"appHash"`

	Channels *engines.Channels `json:"channels,omitempty"` // nil: the chain has no versions yet
	On       map[string]int64  `json:"on,omitempty"`       // vats by the version in service that they hold
	Tally    upgrade.Tally     `json:"tally"`

	Rollout *upgrade.Rollout `json:"rollout,omitempty"` // under way, or the last one
	ETA     int64            `json:"eta,omitempty"`     // blocks; 0: it is not running
	Steps   []NextStep       `json:"steps,omitempty"`   // the next ones

	Vats   []VatView `json:"vats,omitempty"`   // suspended ones first, then upgrading, active and terminated ones
	More   int64     `json:"more,omitempty"`   // vats that are not among them
	Blocks []*Block  `json:"blocks,omitempty"` // the last ones, the newest first
}

// NextStep is a step of the rollout that is still to come.
type NextStep struct {
	Vat    string   `json:"vat"`
	Name   string   `json:"name"`
	After  []string `json:"after,omitempty"`
	Bundle string   `json:"bundle,omitempty"`
	Class  string   `json:"class,omitempty"`
}

// VatView is a vat.
type VatView struct {
	upgrade.Vat
	Name  string        `json:"name"`
	State upgrade.State `json:"state"`
	Queue int64         `json:"queue"`
}

// RunsOn returns the version that a vat runs on, or what it ran on if it has no worker, for people.
func (v VatView) RunsOn() string {
	if v.Suspended || v.Terminated {
		return "was " + v.Version
	}
	return v.Version
}

// Troubled returns the vats that do not run: suspended and upgrading ones.
func (v *View) Troubled() []VatView { return v.Vats[:v.troubled()] }

// Well returns the others.
func (v *View) Well() []VatView { return v.Vats[v.troubled():] }

func (v *View) troubled() int {
	i := slices.IndexFunc(v.Vats, func(vat VatView) bool { return vat.State != upgrade.Suspended && vat.State != upgrade.Upgrading })
	if i < 0 {
		return len(v.Vats)
	}
	return i
}

// NamedVat is a vat's ID and, if it is in the view, its name.
type NamedVat struct{ ID, Name string }

// Named returns vats with their names.
func (v *View) Named(ids []string) []NamedVat {
	all := make([]NamedVat, len(ids))
	for i, id := range ids {
		all[i] = NamedVat{id, id}
		if at := slices.IndexFunc(v.Vats, func(vat VatView) bool { return vat.ID == id }); at >= 0 {
			all[i].Name = v.Vats[at].Name
		}
	}
	return all
}

// Most says how much of a chain is looked at.
type Most struct{ Vats, Blocks, Steps int }

// Look returns a chain as it is, also while its node goes on. A view is of one height.
func Look(ctx context.Context, r *swingstore.Reader, most Most) (*View, error) {
	return steady(ctx, r, func() (*View, error) { return look(ctx, r, most) })
}

// steady reads, and again as long as blocks are made meanwhile: what is read is of one height, and so is an error.
func steady[T any](ctx context.Context, r *swingstore.Reader, read func() (T, error)) (none T, err error) {
	before, _, err := head(ctx, r)
	for err == nil {
		v, failed := read()
		var after int64
		if after, _, err = head(ctx, r); err == nil && after == before {
			return v, failed
		}
		before = after
	}
	return none, err
}

func look(ctx context.Context, r *swingstore.Reader, most Most) (*View, error) {
	v := new(View)
	var err error
	if v.Height, v.AppHash, err = head(ctx, r); err != nil {
		return nil, err
	}
	for height := v.Height; height > max(0, v.Height-int64(most.Blocks)); height-- {
		b, err := ReadBlock(ctx, r, height)
		if errors.Is(err, ErrNoBlock) {
			break
		} else if err != nil {
			return nil, err
		}
		v.Blocks = append(v.Blocks, b)
	}
	c := upgrade.Open(readOnly{r}, nil, v.Height)
	channels, err := c.Channels(ctx)
	if errors.Is(err, upgrade.ErrNotInitialized) {
		return v, nil
	} else if err != nil {
		return nil, err
	}
	v.Channels, v.On = &channels, make(map[string]int64)
	for _, version := range []string{channels.Legacy, channels.Current} {
		if v.On[version], err = c.Count(ctx, version); err != nil {
			return nil, err
		}
	}
	if v.Tally, err = c.Tally(ctx); err != nil {
		return nil, err
	}
	if v.Rollout, err = c.Rollout(ctx); err != nil {
		return nil, err
	}
	if v.ETA, _, err = c.ETA(ctx); err != nil {
		return nil, err
	}
	steps, err := c.Steps(ctx, most.Steps)
	if err != nil {
		return nil, err
	}
	for _, s := range steps {
		name, err := nameOf(ctx, r, s.Vat)
		if err != nil {
			return nil, err
		}
		v.Steps = append(v.Steps, NextStep{Vat: s.Vat, Name: name, After: s.After, Bundle: s.Bundle, Class: s.Class})
	}
	v.More = v.Tally.Active + v.Tally.Upgrading + v.Tally.Suspended + v.Tally.Terminated
	for _, state := range []upgrade.State{upgrade.Suspended, upgrade.Upgrading, upgrade.Active, upgrade.Terminated} {
		vats, err := c.Vats(ctx, state, "", most.Vats-len(v.Vats))
		if err != nil {
			return nil, err
		}
		views := make([]VatView, len(vats))
		for i, vat := range vats {
			if views[i], err = viewOf(ctx, r, vat); err != nil {
				return nil, err
			}
		}
		slices.SortFunc(views, func(a, b VatView) int { return number(a.ID) - number(b.ID) })
		v.Vats = append(v.Vats, views...)
	}
	v.More -= int64(len(v.Vats))
	return v, nil
}

func viewOf(ctx context.Context, r *swingstore.Reader, v *upgrade.Vat) (VatView, error) {
	name, err := nameOf(ctx, r, v.ID)
	return VatView{Vat: *v, Name: name, State: v.State(), Queue: v.Queued()}, err
}

func nameOf(ctx context.Context, r *swingstore.Reader, id string) (string, error) {
	v, err := r.Vat(ctx, id)
	if err != nil {
		return "", err
	}
	return v.Name, nil
}

// number returns the number in a vat's ID.
func number(id string) (n int) {
	fmt.Sscanf(id, "v%d", &n)
	return n
}

// VatDetails are more of a vat.
type VatDetails struct {
	VatView
	Waiting []upgrade.Delivery `json:"waiting,omitempty"` // the first deliveries that wait for it
	Spans   []swingstore.Span  `json:"spans,omitempty"`   // of its transcript, the newest first
}

// LookAt returns more of a vat with so many waiting deliveries and spans. The error is an *upgrade.UnknownVatError if there is no
// such vat.
func LookAt(ctx context.Context, r *swingstore.Reader, id string, most int) (*VatDetails, error) {
	return steady(ctx, r, func() (*VatDetails, error) { return lookAt(ctx, r, id, most) })
}

func lookAt(ctx context.Context, r *swingstore.Reader, id string, most int) (*VatDetails, error) {
	v, err := upgrade.Open(readOnly{r}, nil, 0).Vat(ctx, id)
	if err != nil {
		return nil, err
	}
	d := new(VatDetails)
	if d.VatView, err = viewOf(ctx, r, v); err != nil {
		return nil, err
	}
	if d.Waiting, err = upgrade.Open(readOnly{r}, nil, 0).Waiting(ctx, id, most); err != nil {
		return nil, err
	}
	if d.Spans, err = r.Spans(ctx, id); err != nil {
		return nil, err
	}
	slices.Reverse(d.Spans)
	d.Spans = d.Spans[:min(len(d.Spans), most)]
	return d, nil
}

// ReadResults returns the results that a sender has not acknowledged yet, at most so many, in the order of their seq, after one.
func ReadResults(ctx context.Context, r *swingstore.Reader, sender string, after int64, most int) (results []Result, err error) {
	prefix := "chain.sender." + sender + ".result."
	key := resultKey(sender, after)
	for len(results) < most {
		if key, err = r.NextKey(ctx, key); err != nil {
			return nil, err
		}
		if len(key) <= len(prefix) || key[:len(prefix)] != prefix {
			break
		}
		var one Result
		if _, err := readJSON(ctx, r, key, &one); err != nil {
			return nil, err
		}
		results = append(results, one)
	}
	return results, nil
}
