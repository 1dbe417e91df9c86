package upgrade

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
)

// Delivery is what a host wants to deliver to a vat.
type Delivery struct {
	Kind Kind   `json:"kind"`
	Key  string `json:"key,omitempty"` // what it is about, of kinds that are set aside: an object, an option. Of equal ones the last is made

	// Payload is the host's, in JSON. It comes back as json.Marshal writes it. It should be in the kernel's terms and not the vat's, since
	// c-lists change while it waits.
	Payload json.RawMessage `json:"payload,omitempty"`
}

// Kind is a kind of delivery.
type Kind string

// Kinds of delivery (agoric-sdk, packages/SwingSet/src/types-internal.js, KernelDeliveryObject).
const (
	Message          Kind = "message"
	Pipelined        Kind = "pipelined" // a message to a promise that the vat decides
	Notify           Kind = "notify"
	DropExports      Kind = "dropExports"
	RetireExports    Kind = "retireExports"
	RetireImports    Kind = "retireImports"
	BringOutYourDead Kind = "bringOutYourDead"
	ChangeVatOptions Kind = "changeVatOptions"
)

// Action is what becomes of a delivery.
type Action string

// Actions.
const (
	Deliver  Action = "deliver"   // the host makes it now
	Queue    Action = "queue"     // it is the last in the vat's queue, which is emptied in order
	SetAside Action = "set aside" // it is in a set, made once and before the queue; the last of equal kind and key
	Drop     Action = "drop"      // nobody needs it
	Refuse   Action = "refuse"    // the sender is told that it was not delivered: the host rejects the result promise
)

// Rule says what becomes of a kind of delivery when a vat does not take it at once.
type Rule struct {
	Kind       Kind
	Waiting    Action // the vat is paused, or has an upgrade or a queue before it; it has a worker
	Suspended  Action
	Terminated Action
	Limited    bool // it is refused when the queue is full
}

// Rules are the rules, one a kind.
var Rules = []Rule{
	{Message, Queue, Queue, Refuse, true},
	{Pipelined, Queue, Queue, Refuse, true},
	{Notify, Queue, Queue, Drop, false},
	{ChangeVatOptions, SetAside, SetAside, Drop, false},
	{DropExports, SetAside, SetAside, Drop, false},
	{RetireExports, SetAside, SetAside, Drop, false},
	{RetireImports, SetAside, SetAside, Drop, false},
	{BringOutYourDead, SetAside, Drop, Drop, false},
}

// Verdict is what becomes of a delivery, and what its sender should know.
type Verdict struct {
	Action Action
	Reason string // if it is refused; in the same words everywhere
	Queued int64  // deliveries in the vat's queue, this one included
	Room   int64  // messages that the queue still takes; a sender slows down before it is 0
}

// Admit decides on a delivery that a host is about to make. Only if the action is Deliver does the host make it; in all other cases it is done
// with, and if it is queued or set aside, it comes back by Host.Deliver or Host.Discard.
func (c *Controller) Admit(ctx context.Context, id string, d Delivery) (Verdict, error) {
	i := slices.IndexFunc(Rules, func(r Rule) bool { return r.Kind == d.Kind })
	if i < 0 {
		return Verdict{}, refuse("a delivery to %s is of kind %q, which is not known", id, d.Kind)
	}
	rule := Rules[i]
	v, err := c.Vat(ctx, id)
	if err != nil {
		return Verdict{}, err
	}
	if v.takes() && v.Queued()+v.Aside == 0 {
		return Verdict{Action: Deliver}, nil
	}
	action := rule.Waiting
	if v.Terminated {
		action = rule.Terminated
	} else if v.Suspended {
		action = rule.Suspended
	}
	switch action {
	case Refuse:
		return Verdict{Action: Refuse, Reason: fmt.Sprintf("%s is terminated", id)}, nil
	case Drop:
		return Verdict{Action: Drop}, nil
	}
	if err := d.clean(); err != nil {
		return Verdict{}, err
	}
	if d.Kind == BringOutYourDead {
		d.Key = "" // one is as good as many
	}
	verdict := Verdict{Action: action}
	if action == Queue {
		limits, err := c.s.settings(ctx)
		if err != nil {
			return Verdict{}, err
		}
		t, err := c.s.tally(ctx)
		if err != nil {
			return Verdict{}, err
		}
		l := limits.Limits
		verdict.Queued = v.Queued() + 1
		verdict.Room = max(0, min(l.Messages-verdict.Queued, l.Total-t.Queued-1))
		reason := ""
		switch size := v.Bytes + d.size(); {
		case !rule.Limited:
		case v.Queued() >= l.Messages:
			reason = fmt.Sprintf("%s is %s and %s for it, the most that may", id, v.waiting(), count(v.Queued(), "delivery waits", "deliveries wait"))
		case size > l.Bytes:
			reason = fmt.Sprintf("%s is %s and %s for it; with this message they would be %d, and %d may", id, v.waiting(),
				count(v.Bytes, "byte waits", "bytes wait"), size, l.Bytes)
		case t.Queued >= l.Total:
			reason = fmt.Sprintf("%s is %s and %s for vats, the most that may", id, v.waiting(), count(t.Queued, "delivery waits", "deliveries wait"))
		}
		if reason != "" {
			verdict = Verdict{Action: Refuse, Reason: reason, Queued: v.Queued()}
			return verdict, c.do(ctx, Event{Type: DeliveryRefused, Vat: id, Kind: d.Kind, Problem: reason})
		}
	}
	kind := DeliveryQueued
	if action == SetAside {
		kind = DeliverySetAside
	}
	if err := c.do(ctx, Event{Type: kind, Vat: id, Delivery: &d}); err != nil {
		return Verdict{}, err
	}
	if v.Suspended && !v.Paused && v.Request == nil {
		err = c.do(ctx, Event{Type: UpgradeRequested, Vat: id, Request: &Request{}, Cause: ByDelivery})
	}
	return verdict, err
}

// count writes a number and what it counts. Such texts are in the state of a chain, so that no library has a say in them.
func count(n int64, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return strconv.FormatInt(n, 10) + " " + many
}

// waiting says why a vat takes no delivery.
func (v *Vat) waiting() string {
	switch s := v.State(); {
	case s == Active && v.Paused:
		return "paused"
	case s == Active:
		return "busy with what has waited"
	default:
		return string(s)
	}
}

func (d *Delivery) size() int64 { return int64(len(d.Payload) + len(d.Key)) }
