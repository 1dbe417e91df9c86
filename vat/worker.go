package vat

import (
	"context"
	"errors"
	"fmt"

	"github.com/enginery/enginery/engines"
	"github.com/enginery/enginery/swingstore"
)

func (v *Vat) engine(version string) (*Engine, error) {
	if version == "" {
		version = engines.Legacy
	}
	e, err := v.o.Engines(version)
	if err != nil {
		return nil, fmt.Errorf("the engine of %s, %s: %w", v.o.ID, version, err)
	}
	return e, nil
}

// start starts a worker: from a heap snapshot, or from bundles if there is none.
func (v *Vat) start(ctx context.Context, r *swingstore.Reader, e *Engine, vat swingstore.Vat, snapshot *swingstore.Snapshot) (err error) {
	if snapshot == nil {
		f, err := v.fresh(ctx, r, e, vat)
		if err == nil {
			v.m = f.m
		}
		return err
	}
	heap, err := r.OpenSnapshot(ctx, *snapshot)
	if err != nil {
		return err
	}
	defer heap.Close()
	mo := v.manager(e, vat)
	mo.Worker.Snapshot, mo.Worker.SnapshotSHA256 = heap, snapshot.Hash
	v.m, err = startManager(ctx, mo)
	return err
}

func (v *Vat) manager(e *Engine, vat swingstore.Vat) ManagerOptions {
	mo := ManagerOptions{Worker: e.Worker, ID: v.o.ID, Name: vat.Options.Name, Console: v.o.Console}
	if vat.Options.MeterID != "" {
		mo.Worker.MeteringLimit = DefaultMeteringLimit
	}
	return mo
}

// startManager starts a worker that lives longer than the crank that starts it.
func startManager(ctx context.Context, mo ManagerOptions) (*Manager, error) {
	lives, kill := context.WithCancelCause(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() { kill(context.Cause(ctx)) })
	defer stop()
	m, err := StartManager(lives, mo)
	return m, causeOf(ctx, err)
}

// causeOf returns why a context has ended in place of what came of it.
func causeOf(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); err != nil && cause != nil {
		return cause
	}
	return err
}

// Wake starts the vat's worker, if it has none where the store is, so that the next delivery need not. No transaction may be changing the vat
// meanwhile. Different vats may be woken at the same time.
func (v *Vat) Wake(ctx context.Context, r *swingstore.Reader) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	err := v.online(ctx, r)
	if err == nil {
		v.at, err = r.Current(ctx, v.o.ID)
	}
	if err != nil {
		v.kill()
	}
	return err
}

// online sees to it that there is a worker at the end of the current span.
func (v *Vat) online(ctx context.Context, r *swingstore.Reader) error {
	span, err := r.Current(ctx, v.o.ID)
	if err != nil {
		return err
	}
	if v.m != nil && v.at == span {
		return nil
	}
	v.kill()
	vat, err := r.Vat(ctx, v.o.ID)
	if err != nil {
		return err
	}
	e, err := v.engine(span.Engine)
	if err != nil {
		return err
	}
	var from *swingstore.Snapshot
	switch s, err := r.SnapshotInUse(ctx, v.o.ID); {
	case errors.Is(err, swingstore.ErrNotFound):
	case err != nil:
		return err
	default:
		writer := s.Engine
		if writer == "" {
			legacy, err := v.engine("")
			if err != nil {
				return err
			}
			writer = legacy.Version
		}
		if err := e.CheckSnapshot(v.o.ID, s.Hash, writer); err != nil {
			return err
		}
		from = &s
	}
	if err := v.start(ctx, r, e, *vat, from); err != nil {
		return err
	}
	return v.replay(ctx, r, e, span, from)
}
