package chain

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/enginery/enginery/chain/kernel"
	"github.com/enginery/enginery/swingstore"
	"github.com/enginery/enginery/upgrade"
	"github.com/enginery/enginery/vat"
	"github.com/enginery/enginery/xsnap"
)

// host does in a block what the upgrade controller asks for.
type host struct {
	n  *Node
	tx *swingstore.Tx
}

func (h host) CheckVersion(ctx context.Context, a upgrade.Adoption) error {
	if err := h.n.o.Check(ctx, a); err != nil {
		return err
	}
	if _, err := h.n.o.Engines(a.Version); err != nil {
		return err
	}
	return nil
}

func (h host) Upgrade(ctx context.Context, a upgrade.Attempt) (upgrade.Outcome, error) {
	old, err := h.tx.Vat(ctx, a.Vat)
	if err != nil {
		return upgrade.Outcome{}, err
	}
	i := vat.Incarnation{Engine: a.Version, BundleID: old.BundleID, Parameters: old.Parameters}
	if a.Bundle != "" {
		i.BundleID = a.Bundle
	}
	if a.Parameters != nil {
		i.Parameters = a.Parameters
	}
	message := a.Message
	if message == "" {
		message = fmt.Sprintf("vat %s upgraded", a.Vat) // as SwingSet does
	}
	h.n.use(a.Vat)
	var r *vat.Result
	err = h.n.again(ctx, func() error {
		r, err = h.n.kernel.Upgrade(ctx, h.tx, a.Vat, i, message, a.Suspended)
		return err
	})
	return h.outcome(ctx, a.Vat, r, err)
}

func (h host) Deliver(ctx context.Context, id string, d upgrade.Delivery) (upgrade.Outcome, error) {
	delivery, err := decode(d)
	if err != nil {
		return upgrade.Outcome{}, err
	}
	r, err := h.n.deliver(ctx, h.tx, delivery)
	return h.outcome(ctx, id, r, err)
}

func (h host) Discard(ctx context.Context, _ string, d upgrade.Delivery) error {
	delivery, err := decode(d)
	if err != nil {
		return err
	}
	return h.n.kernel.Drop(ctx, h.tx, delivery)
}

// outcome returns what came of a crank of a vat; r is nil if there was nothing to do.
func (h host) outcome(ctx context.Context, id string, r *vat.Result, err error) (upgrade.Outcome, error) {
	if err != nil {
		return upgrade.Outcome{}, err
	}
	gone, err := kernel.Terminated(ctx, &h.tx.Reader, id)
	if err != nil {
		return upgrade.Outcome{}, err
	}
	o := upgrade.Outcome{OK: r == nil || r.Kept, Terminated: gone, Computrons: used(r)}
	if r != nil {
		o.Problem = r.Problem
	}
	return o, nil
}

// failed is what a crank counts of which the vat's meter says nothing, since its worker has ended, as SwingSet does
// (agoric-sdk, packages/cosmic-swingset/src/computron-counter.js, crankFailed).
const failed = 1_000_000

// used returns the computrons of a crank.
func used(r *vat.Result) int64 {
	if r == nil {
		return 0
	}
	if !r.Kept {
		return max(r.Meter.All, failed)
	}
	return r.Meter.All
}

// encode writes deliveries of the kernel down for the controller: one, or one for each object that a vat is to be told of.
func encode(d *kernel.Delivery) ([]upgrade.Delivery, error) {
	one := func(kind upgrade.Kind, key string, d kernel.Delivery) (upgrade.Delivery, error) {
		payload, err := json.Marshal(d)
		return upgrade.Delivery{Kind: kind, Key: key, Payload: payload}, err
	}
	if d.Kind == kernel.KindMessage || d.Kind == kernel.KindNotify {
		u, err := one(upgrade.Kind(d.Kind), "", *d)
		return []upgrade.Delivery{u}, err
	}
	var all []upgrade.Delivery
	for _, object := range d.Objects {
		u, err := one(upgrade.Kind(d.Kind), object, kernel.Delivery{Vat: d.Vat, Kind: d.Kind, Objects: []string{object}})
		if err != nil {
			return nil, err
		}
		all = append(all, u)
	}
	return all, nil
}

func decode(d upgrade.Delivery) (*kernel.Delivery, error) {
	k := new(kernel.Delivery)
	if err := json.Unmarshal(d.Payload, k); err != nil {
		return nil, fmt.Errorf("a delivery that has waited: %w", err)
	}
	return k, nil
}

// deliver makes a delivery.
func (n *Node) deliver(ctx context.Context, tx *swingstore.Tx, d *kernel.Delivery) (r *vat.Result, err error) {
	n.use(d.Vat)
	err = n.again(ctx, func() error {
		r, err = n.kernel.Deliver(ctx, tx, d)
		return err
	})
	return r, err
}

// again runs f, and once more if it fails since a worker has ended by no fault of its vat, as one that the system has killed. The next one
// is another.
func (n *Node) again(ctx context.Context, f func() error) error {
	err := f()
	var ended *xsnap.ExitError
	if errors.As(err, &ended) && ctx.Err() == nil {
		err = f()
	}
	return err
}
