package chain

import (
	"context"
	"fmt"
	"strconv"
	"testing"

	"github.com/enginery/enginery/swingstore"
	"github.com/enginery/enginery/upgrade"
)

// A view is of one height, however fast the node goes on meanwhile: the plan that it reads is exchanged in each block.
func TestLookWhileBlocksAreMade(t *testing.T) {
	t.Parallel()
	const vats, looks = 5, 200
	ctx, stop := context.WithCancel(t.Context())
	dir := t.TempDir()
	s, err := swingstore.Create(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	block := func(height int64, f func(tx *swingstore.Tx, c *upgrade.Controller) error) error {
		return s.Update(func(tx *swingstore.Tx) error {
			c := upgrade.Open(tx, nil, height)
			if err := f(tx, c); err != nil {
				return err
			}
			if err := tx.Set(heightKey, strconv.FormatInt(height, 10)); err != nil {
				return err
			}
			return tx.Set(appHashKey, fmt.Sprint("hash ", height))
		})
	}
	if err := block(1, func(tx *swingstore.Tx, c *upgrade.Controller) error {
		if err := c.Init(ctx, "agoric-upgrade-16", upgrade.DefaultSettings()); err != nil {
			return err
		}
		for n := range vats {
			id := fmt.Sprint("v", n)
			if err := tx.SetVat(swingstore.Vat{ID: id, Options: swingstore.Options{Name: "vat of " + id}}); err != nil {
				return err
			}
			if err := c.AddVat(ctx, id, false); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	made := make(chan error, 1)
	go func() {
		for height := int64(2); ; height++ {
			err := block(height, func(_ *swingstore.Tx, c *upgrade.Controller) error {
				if r, err := c.Rollout(ctx); err != nil {
					return err
				} else if r != nil {
					if err := c.AbortRollout(ctx, ""); err != nil {
						return err
					}
				}
				plan := upgrade.Plan{Version: "agoric-upgrade-16", Paused: true}
				for n := range vats {
					plan.Steps = append(plan.Steps, upgrade.Step{Vat: fmt.Sprint("v", n)})
				}
				if err := c.StartRollout(ctx, plan); err != nil {
					return err
				}
				_, err := c.EndBlock(ctx, 0) // the old plan is removed
				return err
			})
			if err != nil || ctx.Err() != nil {
				made <- err
				return
			}
		}
	}()
	r, err := swingstore.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for range looks {
		v, err := Look(ctx, &r.Reader, Most{Vats: vats, Steps: vats})
		if err != nil {
			t.Error(err)
			break
		}
		if v.AppHash != fmt.Sprint("hash ", v.Height) || v.Rollout != nil && (v.Rollout.Started != v.Height || len(v.Steps) != vats) {
			t.Errorf("block %d has the hash %q, and a rollout %+v with the steps %v", v.Height, v.AppHash, v.Rollout, v.Steps)
			break
		}
	}
	stop()
	if err := <-made; err != nil {
		t.Error(err)
	}
}
