// Package upgrade moves the vats of a chain to a new version over many blocks: what versions are in service, what vats run on which, in
// which order they are upgraded and how many a block, and what becomes of those that fail.
//
// A Controller is embedded in a chain. Its state is in a Store that the chain commits with the block, so a node that is killed goes on from
// a block's boundary. Same state and same calls give the same state and the same events on every validator: there is no clock in it, no
// randomness and no order of a map. What it needs done it asks of a Host.
//
// All changes of its state are events, and the state is nothing but what the events make of it: see Rebuild. What is here in short is in
// docs/upgrade.md at length: the states of a vat, the rule for each kind of delivery, budgets, and how to embed it.
package upgrade

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
)

// Store keeps a controller's state, under keys that begin with Prefix. A *swingstore.Tx is one, and so is a *Memory. Keys are in the order of
// their bytes.
type Store interface {
	// Get returns the value of a key. It is swingstore.ErrNotFound if there is none.
	Get(ctx context.Context, key string) (string, error)
	Set(key, value string) error
	// Delete removes a key, if it is there.
	Delete(key string) error
	// NextKey returns the key that follows one, and "" if it is the last.
	NextKey(ctx context.Context, key string) (string, error)
}

// Prefix begins all keys of a controller.
const Prefix = "upgrade."

// Host does what a controller asks for. Its methods are called by Adopt and EndBlock only, and call no method of the controller.
//
// An error is for what has to do with this node and not with the vat: no room on the disk, an engine that is not there, a call that was
// interrupted. The controller passes it on, and the host must not commit the block: it undoes it, and tries again when it can. What all
// validators see alike is in the Outcome.
type Host interface {
	// CheckVersion says whether this node can run a version: it is resolvable, verified, what the adoption says it is, and its replay
	// classification is at hand. An error that is a *RefusedError says that no validator can, so that the message is refused; any other says
	// that this node cannot, now.
	CheckVersion(ctx context.Context, a Adoption) error

	// Upgrade begins a vat's next incarnation: stopVat, a new worker on the version with its supervisor bundle, startVat. All of it is one
	// transaction, which the host undoes when a step fails.
	Upgrade(ctx context.Context, a Attempt) (Outcome, error)

	// Deliver makes a delivery that was queued or set aside. The host looks at it anew: a promise that was the target may have been
	// resolved since, an object that was dropped may be in use again. What comes of it, also if the vat fails, is the host's affair; the
	// controller does not ask for it again.
	Deliver(ctx context.Context, vat string, d Delivery) (Outcome, error)

	// Discard is told of a delivery that was queued and cannot be made, since the vat was terminated. The host rejects its result promise.
	Discard(ctx context.Context, vat string, d Delivery) error
}

// Attempt is an upgrade that a host is to try.
type Attempt struct {
	Vat     string
	From    string // version of its last incarnation
	Version string // that it shall run on
	Request        // what was asked for; no ID if the controller itself asks
	Cause   Cause

	// Suspended says that the vat has no worker and gets none on From, which may be out of service: the new incarnation begins with
	// what is in its vatstore (vat.UpgradeWithoutEngine).
	Suspended bool
}

// Request is an upgrade that somebody has asked for.
type Request struct {
	ID         string          `json:"id,omitempty"`         // the host's, e.g. the upgradeID of a vat's admin
	Bundle     string          `json:"bundle,omitempty"`     // ID of the new source; empty: the same source again
	Parameters json.RawMessage `json:"parameters,omitempty"` // CapData for startVat; nil: those that the vat was last started with
	Message    string          `json:"message,omitempty"`    // that the vat's clients are told (upgradeMessage)
}

// Cause says why an upgrade is tried.
type Cause string

// Causes.
const (
	ByRequest  Cause = "request"  // of the vat's admin, or an operator
	ByDelivery Cause = "delivery" // it is suspended and not paused, and a delivery came
	ByRollout  Cause = "rollout"
)

// Outcome is what came of an upgrade or a delivery. All validators see the same.
type Outcome struct {
	OK         bool
	Problem    string // if it is not OK; in the same words everywhere
	Computrons int64  // of its deliveries, that of bringOutYourDead included, even if they were undone. The start of the worker is not in it: see Budget.Start
	Terminated bool   // the vat is gone
}

// Controller is a chain's controller while it makes a block. Its methods must not be called at the same time.
//
// After an error that is ErrRefused nothing has changed. After any other nothing can be said of the state, and the host undoes the block.
type Controller struct {
	s      state
	host   Host
	height int64
	events []Event
}

// Open returns the controller of a block. Nothing is read yet, and what is read is kept, so that nothing else may write the controller's keys
// meanwhile. A host that undoes what a controller has done, be it a part of a block, opens another, and forgets the events of the first.
func Open(s Store, host Host, height int64) *Controller {
	return &Controller{s: open(s), host: host, height: height}
}

// Events returns what has happened since Open. The host keeps it: the log of all events is enough to rebuild the state.
func (c *Controller) Events() []Event { return c.events }

// ErrRefused is what errors are that all validators see alike: *RefusedError, *InUseError and *UnknownVatError. Nothing has changed, and the
// block goes on; the message that asked for it is answered with the error.
var ErrRefused = errors.New("refused")

// RefusedError says that something cannot be done, and why.
type RefusedError struct{ Reason string }

func (e *RefusedError) Error() string { return e.Reason }

// Is reports that it is ErrRefused.
func (e *RefusedError) Is(target error) bool { return target == ErrRefused }

func refuse(format string, args ...any) error { return &RefusedError{fmt.Sprintf(format, args...)} }

// ErrNotInitialized says that a store has no controller's state.
var ErrNotInitialized = errors.New("the controller has no state yet; Init gives it one")

// Init begins a controller's state: all vats to come run on a version.
func (c *Controller) Init(ctx context.Context, version string, s Settings) error {
	if _, err := c.s.head(ctx); err == nil {
		return refuse("the controller has a state already")
	} else if !errors.Is(err, ErrNotInitialized) {
		return err
	}
	if err := checkVersion(version); err != nil {
		return err
	}
	if err := s.check(); err != nil {
		return err
	}
	return c.do(ctx, Event{Type: Initialized, Version: version, Settings: &s})
}

// Settings are what governance decides.
type Settings struct {
	Budget    Budget `json:"budget"`
	Limits    Limits `json:"limits"`
	OnFailure Policy `json:"onFailure"` // unless a rollout says otherwise

	// RequireDigests has an adoption refused that does not name artifact and replay classification by their digests.
	RequireDigests bool `json:"requireDigests,omitempty"`
}

// Policy says what becomes of a vat whose upgrade fails.
type Policy string

// Policies.
const (
	Suspend  Policy = "suspend"   // it has no worker, and its deliveries wait, until an upgrade succeeds
	RollBack Policy = "roll-back" // it goes on as it was. A vat that was suspended before stays so
)

// Limits are those of the queues. Notifications are over and above them: nobody could be told of one that is refused, and a vat that does not
// run asks for no more.
type Limits struct {
	Messages int64 `json:"messages"` // in a vat's queue
	Bytes    int64 `json:"bytes"`    // in a vat's queue
	Total    int64 `json:"total"`    // messages in all queues
	Turn     int64 `json:"turn"`     // deliveries out of a vat's queue before it is another's turn
}

// DefaultSettings returns settings for a chain with blocks of 65 million computrons. An upgrade of a small vat counts about 62 million: 26 million
// for the start of a worker and 36 million for startVat, which imports the vat's source. So an empty block has computrons for the three upgrades that
// it may try, a full block for one, and a little to spare.
func DefaultSettings() Settings {
	return Settings{
		Budget: Budget{
			Block: Share{Upgrades: 3, UpgradeComputrons: 200_000_000, Deliveries: 100, DeliveryComputrons: 65_000_000},
			Full:  Share{Upgrades: 1, UpgradeComputrons: 70_000_000, Deliveries: 10, DeliveryComputrons: 6_500_000},
			Limit: 65_000_000, Start: 26_000_000,
		},
		Limits:    Limits{Messages: 10_000, Bytes: 16 << 20, Total: 1_000_000, Turn: 10},
		OnFailure: Suspend,
	}
}

func (s Settings) check() error {
	if s.OnFailure != Suspend && s.OnFailure != RollBack {
		return refuse("onFailure is %q, expected %q or %q", s.OnFailure, Suspend, RollBack)
	}
	if s.Limits.Messages < 1 || s.Limits.Bytes < 1 || s.Limits.Total < 1 || s.Limits.Turn < 1 {
		return refuse("the limits are %+v, expected each to be at least 1", s.Limits)
	}
	return s.Budget.check()
}

// Settings returns the settings in force.
func (c *Controller) Settings(ctx context.Context) (Settings, error) { return c.s.settings(ctx) }

// Set changes the settings.
func (c *Controller) Set(ctx context.Context, s Settings) error {
	if err := s.check(); err != nil {
		return err
	}
	return c.do(ctx, Event{Type: SettingsChanged, Settings: &s})
}
