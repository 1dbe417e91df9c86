package xsnap

import (
	"errors"
	"fmt"
	"syscall"
)

// Error says which worker failed at what. All errors of Start and of a [Worker] are of this type.
type Error struct {
	Worker  string // Options.Name
	Version string // the engine's; empty if it is a program without one
	Doing   string // e.g. "evaluating a script"

	// Err is a *GuestError, *ExitError, *ProtocolError, *SizeError, ErrClosed or ErrKilled, the error of the context, of a handler, a
	// reader or a writer, or one of the system. Whatever ended the worker is returned again by all later calls.
	Err error
}

func (e *Error) Error() string {
	if e.Version == "" {
		return fmt.Sprintf("%s: %s: %v", e.Worker, e.Doing, e.Err)
	}
	return fmt.Sprintf("%s (%s): %s: %v", e.Worker, e.Version, e.Doing, e.Err)
}

func (e *Error) Unwrap() error { return e.Err }

// What Close and Kill leave behind.
var (
	ErrClosed = errors.New("the worker was closed")
	ErrKilled = errors.New("the worker was killed")
)

// GuestError is an exception that the guest did not catch. The worker lives on.
type GuestError struct{ Text string }

func (e *GuestError) Error() string { return "uncaught exception: " + e.Text }

// ExitError says how a worker ended that was not told to.
type ExitError struct {
	Code   int            // if Signal is 0; see the constants
	Signal syscall.Signal // what killed it
	Stderr string         // the end of what it printed, at most 1 kB
	Limit  string         // why it may have been this host that did not give it memory; empty: it was not
}

// Exit codes of a worker (xsnap-worker.c, ExitCode).
const (
	ExitBadUsage           = 1
	ExitIO                 = 2
	ExitNotEnoughMemory    = 11
	ExitStackOverflow      = 12
	ExitUnhandledException = 15 // also after Close when the last evaluation threw
	ExitNoMoreKeys         = 16
	ExitTooMuchComputation = 17
	ExitUnknown            = 255
)

var exitNames = map[int]string{
	0: "before it answered", ExitBadUsage: "bad usage", ExitIO: "I/O or protocol error", ExitNotEnoughMemory: "not enough memory",
	ExitStackOverflow: "stack overflow", ExitUnhandledException: "unhandled exception", ExitNoMoreKeys: "no more keys",
	ExitTooMuchComputation: "too much computation", ExitUnknown: "unknown error",
}

// Deterministic reports whether the guest is to blame: a worker with the same history ends so on every host. SwingSet makes these errors
// of the vat and panics at all others (agoric-sdk, packages/SwingSet/src/kernel/vat-loader/manager-subprocess-xsnap.js).
func (e *ExitError) Deterministic() bool {
	return e.Signal == 0 && e.Limit == "" && (e.Code == ExitNotEnoughMemory || e.Code == ExitStackOverflow || e.Code == ExitTooMuchComputation)
}

func (e *ExitError) Error() string {
	msg := fmt.Sprintf("the worker ended with exit code %d", e.Code)
	if e.Signal != 0 {
		msg = fmt.Sprintf("the worker was ended by signal %d (%v)", int(e.Signal), e.Signal)
	} else if name := exitNames[e.Code]; name != "" {
		msg += " (" + name + ")"
	}
	if e.Limit != "" {
		msg += ", which may be no fault of the guest's, since here " + e.Limit + "; lift that limit"
	}
	if e.Stderr != "" {
		msg += ": " + e.Stderr
	}
	return msg
}

// ProtocolError says that a worker sent something that the protocol does not have. It was killed.
type ProtocolError struct{ Reason string }

func (e *ProtocolError) Error() string { return "the worker broke the protocol: " + e.Reason }

// SizeError says that a message is too large. A worker that sent one was killed; what was to be sent to a worker was not.
type SizeError struct {
	Size, Limit int64 // bytes
	ToWorker    bool
}

func (e *SizeError) Error() string {
	direction := "from"
	if e.ToWorker {
		direction = "to"
	}
	return fmt.Sprintf("a message of %d bytes %s the worker, at most %d are allowed", e.Size, direction, e.Limit)
}
