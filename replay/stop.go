package replay

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"syscall"

	"github.com/enginery/enginery/swingstore"
	"github.com/enginery/enginery/vat"
	"github.com/enginery/enginery/xsnap"
)

// stop says why a span was not replayed to its end.
type stop struct {
	outcome Outcome
	reason  string
}

func (s *stop) Error() string { return string(s.outcome) + ": " + s.reason }

// judge tells what the source is to blame for from what this machine is to blame for.
func (p *player) judge(ctx context.Context, err error) (*stop, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	var s *stop
	if errors.As(err, &s) {
		return s, nil
	}
	if s = lacking(err); s != nil {
		return s, nil
	}
	return nil, fmt.Errorf("replaying %s on %s: %w", p.id, p.run.engine.Version, err)
}

// lacking returns what is wrong with the source, or nil if the error says something else.
func lacking(err error) *stop {
	var damaged *swingstore.DamagedError
	switch {
	case errors.As(err, &damaged):
		return &stop{Damaged, err.Error()}
	case errors.Is(err, swingstore.ErrPruned), errors.Is(err, swingstore.ErrNotFound):
		return &stop{Unavailable, err.Error()}
	}
	return nil
}

// crashes are signals that a program gets for what it does itself. Any other comes from somebody else.
var crashes = []syscall.Signal{syscall.SIGABRT, syscall.SIGBUS, syscall.SIGFPE, syscall.SIGILL, syscall.SIGSEGV, syscall.SIGSYS, syscall.SIGTRAP}

// ended returns what the end of a worker says, if it is the engine or the vat that ended it. An error is this machine's.
func ended(err error) (string, error) {
	var exit *xsnap.ExitError
	var protocol *xsnap.ProtocolError
	var size *xsnap.SizeError
	var guest *xsnap.GuestError
	switch {
	case errors.As(err, &exit):
		if exit.Signal != 0 && !slices.Contains(crashes, exit.Signal) {
			return "", fmt.Errorf("%w; if memory was short, run with fewer jobs", err)
		}
		if exit.Limit != "" {
			return "", err
		}
		plain := *exit
		plain.Stderr = "" // which may hold addresses
		return plain.Error(), nil
	case errors.As(err, &protocol), errors.As(err, &size), errors.As(err, &guest):
		return err.Error(), nil
	}
	var supervisor *vat.SupervisorError
	if errors.As(err, &supervisor) {
		return supervisor.Error(), nil
	}
	return "", err
}

// gone says that the worker has ended, or had to be.
func (p *player) gone(ctx context.Context, e entry, err error) error {
	if errors.Is(context.Cause(ctx), context.DeadlineExceeded) {
		p.differ(e, Timeout, 0, "at most "+p.run.timeout.String(), "no answer")
		return &stop{Stopped, fmt.Sprintf("item %d took longer than %v", e.position, p.run.timeout)}
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	why, err := ended(err)
	if err != nil {
		return err
	}
	p.differ(e, WorkerExit, 0, "", why)
	return &stop{Stopped, fmt.Sprintf("the worker ended at item %d: %s", e.position, why)}
}
