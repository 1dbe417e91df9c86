package chain

import (
	"context"
	"slices"

	"golang.org/x/sync/errgroup"

	"github.com/enginery/enginery/chain/kernel"
	"github.com/enginery/enginery/swingstore"
	"github.com/enginery/enginery/upgrade"
	"github.com/enginery/enginery/vat"
)

// warm starts workers that the next block will need, several at once: starting one takes much longer than a delivery, and nothing of it
// can be seen in the state. What cannot be started now is started, or fails, when it is needed.
func (n *Node) warm(ctx context.Context, inputs []*Input) {
	if n.o.Jobs < 2 {
		return
	}
	r := &n.store.Reader
	var g errgroup.Group
	g.SetLimit(n.o.Jobs)
	for _, id := range n.expected(ctx, inputs) {
		if !slices.Contains(n.used, id) {
			n.use(id)
			g.Go(func() error { return n.vat(id).Wake(ctx, r) })
		}
	}
	g.Wait()
	for id, i := range n.upgrades(ctx) { // in any order
		g.Go(func() error { return n.vat(id).Prepare(ctx, r, i) })
	}
	g.Wait()
}

// expected returns vats that the next block will have deliveries for, as far as can be told, and no more than are kept with workers.
func (n *Node) expected(ctx context.Context, inputs []*Input) (ids []string) {
	add := func(id string) {
		if id != "" && len(ids) < n.o.Workers && !slices.Contains(ids, id) {
			ids = append(ids, id)
		}
	}
	r := &n.store.Reader
	c := upgrade.Open(readOnly{r}, nil, 0)
	next, err := kernel.Expected(ctx, r, 2*int64(n.o.Workers))
	if err != nil {
		return nil
	}
	for _, in := range inputs {
		if in.Type == "deliver" {
			id := in.Vat
			if !vatID.MatchString(id) {
				if id, err = kernel.Lookup(ctx, r, id); err != nil {
					return nil
				}
			}
			next = append(next, id)
		}
	}
	for _, id := range next {
		if v, err := c.Vat(ctx, id); err == nil && !v.Suspended && !v.Paused && !v.Terminated {
			add(id)
		}
	}
	for id := range n.upgrades(ctx) {
		if v, err := c.Vat(ctx, id); err == nil && !v.Suspended {
			add(id)
		}
	}
	return ids
}

// upgrades returns the upgrades that the next block will try, as far as can be told.
func (n *Node) upgrades(ctx context.Context) map[string]vat.Incarnation {
	r := &n.store.Reader
	c := upgrade.Open(readOnly{r}, nil, 0)
	s, err := c.Settings(ctx)
	if err != nil {
		return nil
	}
	channels, err := c.Channels(ctx)
	if err != nil {
		return nil
	}
	bundles := make(map[string]string) // of vats; "" is that of the vat
	most := int(min(s.Budget.Block.Upgrades, int64(n.o.Workers)))
	waiting, err := c.Vats(ctx, upgrade.Upgrading, "", most)
	if err != nil {
		return nil
	}
	for _, v := range waiting {
		bundles[v.ID] = v.Request.Bundle
	}
	if rollout, err := c.Rollout(ctx); err == nil && rollout != nil && rollout.State == upgrade.Running && len(bundles) < most {
		steps, err := c.Steps(ctx, most-len(bundles))
		if err != nil {
			return nil
		}
		for _, step := range steps {
			bundles[step.Vat] = step.Bundle
		}
	}
	all := make(map[string]vat.Incarnation)
	for id, bundle := range bundles { // in any order
		v, err := r.Vat(ctx, id)
		if err != nil {
			return nil
		}
		if bundle == "" {
			bundle = v.BundleID
		}
		all[id] = vat.Incarnation{Engine: channels.Current, BundleID: bundle}
	}
	return all
}

// readOnly is the store of a controller that only tells.
type readOnly struct{ *swingstore.Reader }

func (r readOnly) Set(string, string) error { return errReadOnly }
func (r readOnly) Delete(string) error      { return errReadOnly }
