package vat

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/enginery/enginery/swingstore"
)

// Incarnation is a vat's life from its start to its next upgrade.
type Incarnation struct {
	Engine     string // version ID; empty: engines.Legacy, and no word of it is written
	BundleID   string // of the vat's source, which the store has
	Parameters []byte // CapData in JSON; nil: none

	Name    string // of a new vat; otherwise it stays
	MeterID string // of a new vat: a crank may use DefaultMeteringLimit; otherwise it stays
}

// Create makes a new vat: its transcript begins, its worker starts, and startVat is delivered. If the vat fails, there is none.
func (v *Vat) Create(ctx context.Context, tx *swingstore.Tx, i Incarnation) (*Result, error) {
	return v.crank(tx, func(r *Result) error {
		if _, err := tx.Vat(ctx, v.o.ID); err == nil {
			return fmt.Errorf("creating %s: %s has it already", v.o.ID, tx.Path())
		} else if !errors.Is(err, swingstore.ErrNotFound) {
			return err
		}
		if err := tx.InitTranscript(v.o.ID); err != nil {
			return err
		}
		return v.begin(ctx, tx, i, swingstore.Vat{ID: v.o.ID, Options: swingstore.Options{
			Name: i.Name, UseTranscript: true, ReapDirtThreshold: json.RawMessage("{}"), MeterID: i.MeterID,
		}}, 0, r)
	})
}

// Upgrade begins a vat's next incarnation, on the version and bundle that are said, with what it keeps in its vatstore. If that fails, the vat
// is as it was. between, which may be nil, is called after the old incarnation's last delivery, and does what a kernel does then: it
// rejects the promises that the vat was to decide, and abandons its exports that are not durable.
func (v *Vat) Upgrade(ctx context.Context, tx *swingstore.Tx, i Incarnation, between func() error) (*Result, error) {
	return v.upgrade(ctx, tx, i, between, true)
}

// UpgradeWithoutEngine is Upgrade for a vat whose engine cannot be run any more: the old incarnation gets no bringOutYourDead.
func (v *Vat) UpgradeWithoutEngine(ctx context.Context, tx *swingstore.Tx, i Incarnation, between func() error) (*Result, error) {
	return v.upgrade(ctx, tx, i, between, false)
}

func (v *Vat) upgrade(ctx context.Context, tx *swingstore.Tx, i Incarnation, between func() error, last bool) (*Result, error) {
	return v.crank(tx, func(r *Result) error {
		old, err := tx.Vat(ctx, v.o.ID)
		if err != nil {
			return err
		}
		if last {
			if err := v.online(ctx, &tx.Reader); err != nil {
				return err
			}
			if err := v.deliver(ctx, tx, []byte(`["bringOutYourDead"]`), r); err != nil {
				return err
			}
		}
		if between != nil {
			if err := between(); err != nil {
				return err
			}
		}
		if _, err := tx.AddItem(v.o.ID, []byte(`{"d":["shutdown-worker"],"sc":[],"r":{"status":"ok"}}`)); err != nil {
			return err
		}
		span, err := tx.Rollover(v.o.ID, true)
		if err != nil {
			return err
		}
		return v.begin(ctx, tx, i, *old, span.Start, r)
	})
}

// begin begins an incarnation at a position.
func (v *Vat) begin(ctx context.Context, tx *swingstore.Tx, i Incarnation, vat swingstore.Vat, position int64, r *Result) error {
	v.kill() // the worker of the incarnation before, or of a Create that was undone after it had returned
	e, err := v.engine(i.Engine)
	if err != nil {
		return err
	}
	vat.Options.WorkerOptions = swingstore.WorkerOptions{Type: "xsnap", Engine: i.Engine}
	for _, bundle := range [][]byte{e.Lockdown, e.Supervisor} {
		id, err := tx.AddBundle(bundle)
		if err != nil {
			return fmt.Errorf("the bundles of %s: %w", e.Version, err)
		}
		vat.Options.WorkerOptions.BundleIDs = append(vat.Options.WorkerOptions.BundleIDs, id)
	}
	if vat.BundleID, vat.Parameters = i.BundleID, i.Parameters; vat.Parameters == nil {
		vat.Parameters = []byte(`{"body":"#\"#undefined\"","slots":[]}`)
	}
	if vat.Parameters, err = normal(nil, vat.Parameters); err != nil {
		return fmt.Errorf("the parameters of %s: %w", v.o.ID, err)
	}
	if err := tx.SetVat(vat); err != nil {
		return err
	}
	// A version that ran the vat before would otherwise seem to go on.
	if i.Engine != "" || position > 0 {
		if err := tx.SetEngine(v.o.ID, position, i.Engine); err != nil {
			return err
		}
	}
	item := appendString([]byte(`{"d":["initialize-worker",{"source":{"bundleID":`), vat.BundleID)
	options, err := json.Marshal(vat.Options.WorkerOptions)
	if err != nil {
		return err
	}
	item = append(append(append(item, `},"workerOptions":`...), options...), `}],"sc":[],"r":{"status":"ok"}}`...)
	if _, err := tx.AddItem(v.o.ID, item); err != nil {
		return err
	}
	if err := v.start(ctx, &tx.Reader, e, vat, nil); err != nil {
		if r.Problem = fault(err); r.Problem != "" {
			return errUndo
		}
		return err
	}
	if err := v.deliver(ctx, tx, append(append([]byte(`["startVat",`), vat.Parameters...), ']'), r); err != nil {
		return err
	}
	return v.maybeSnapshot(ctx, tx, r)
}

// fresh is a worker that has evaluated its bundles, and was told nothing yet.
type fresh struct {
	m    *Manager
	from string // what it was started from
}

// fresh returns a worker that is started from bundles, which may be there already.
func (v *Vat) fresh(ctx context.Context, r *swingstore.Reader, e *Engine, vat swingstore.Vat) (*fresh, error) {
	w := vat.Options.WorkerOptions
	if w.Type != "xsnap" || len(w.BundleIDs) != 2 {
		return nil, fmt.Errorf("%s has a worker of type %q with %d bundles, expected xsnap with lockdown and supervisor", v.o.ID, w.Type, len(w.BundleIDs))
	}
	mo := v.manager(e, vat)
	mo.LiveSlots.EnableDisavow = vat.Options.EnableDisavow
	relax, err := r.Get(ctx, "kernel.relaxDurabilityRules")
	if err != nil && !errors.Is(err, swingstore.ErrNotFound) {
		return nil, err
	}
	mo.LiveSlots.RelaxDurabilityRules = relax == "true"
	from := fmt.Sprint(e.Version, w.BundleIDs, vat.BundleID, mo.Name, mo.LiveSlots, mo.Worker.MeteringLimit)
	if n := v.next; n != nil {
		if v.next = nil; n.from == from {
			return n, nil
		}
		n.m.Kill()
	}
	read := func(id string) ([]byte, error) {
		b, err := r.Bundle(ctx, id)
		if errors.Is(err, swingstore.ErrNotFound) { // of the first vat on a version that is prepared
			b, err = e.Bundle(id)
		}
		return b, err
	}
	if err := mo.ReadBundles(read, w.BundleIDs[0], w.BundleIDs[1], vat.BundleID); err != nil {
		return nil, fmt.Errorf("starting %s: %w", v.o.ID, err)
	}
	m, err := startManager(ctx, mo)
	if err != nil {
		return nil, err
	}
	return &fresh{m, from}, nil
}

// Prepare starts a worker for the vat's next incarnation, so that Upgrade need not; whether one follows or not changes nothing else.
func (v *Vat) Prepare(ctx context.Context, r *swingstore.Reader, i Incarnation) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	e, err := v.engine(i.Engine)
	if err != nil {
		return err
	}
	vat, err := r.Vat(ctx, v.o.ID)
	if err != nil {
		return err
	}
	vat.BundleID, vat.Options.WorkerOptions = i.BundleID, swingstore.WorkerOptions{Type: "xsnap", Engine: i.Engine}
	if vat.Options.WorkerOptions.BundleIDs, err = e.bundleIDs(); err != nil {
		return err
	}
	f, err := v.fresh(ctx, r, e, *vat)
	if err == nil {
		v.next = f
	}
	return err
}
