// Package kernel passes messages between vats: objects, promises and the run queue of SwingSet's kernel (agoric-sdk,
// packages/SwingSet/src/kernel), in the keys of a swing-store that SwingSet uses for them.
//
// It is deterministic: same store and calls, same store after. It makes no block and has no policy; whoever calls it says when an event is
// taken from the run queue, and whether the delivery that it becomes is made now or kept for later.
//
// What SwingSet has and this has not: devices, vatAdmin (vats are installed, upgraded and terminated from outside), pipelining to vats, meters
// that are refilled, and bringOutYourDead by the amount of dirt: it is delivered before heap snapshots and upgrades only.
package kernel

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/enginery/enginery/swingstore"
	"github.com/enginery/enginery/vat"
)

// rootVref is what a vat calls its root object.
const rootVref = "o+0"

// CapData is a value of JavaScript and the objects and promises that it refers to (@endo/marshal).
type CapData struct {
	Body  string   `json:"body"`
	Slots []string `json:"slots"`
}

// Message is a method, its arguments, and the promise of its result.
type Message struct {
	Methargs CapData `json:"methargs"`
	Result   string  `json:"result,omitempty"` // a promise, or empty: nobody waits
}

// event is an item of the run queue, as SwingSet has it.
type event struct {
	Type    string   `json:"type"`             // "send" or "notify"
	Target  string   `json:"target,omitempty"` // of a send
	Msg     *Message `json:"msg,omitempty"`
	VatID   string   `json:"vatID,omitempty"` // of a notify
	Promise string   `json:"kpid,omitempty"`
}

// Kinds of deliveries.
const (
	KindMessage       = "message"
	KindNotify        = "notify"
	KindDropExports   = "dropExports"
	KindRetireExports = "retireExports"
	KindRetireImports = "retireImports"
)

// Delivery is something for a vat, in the kernel's words. It may be written down and made later: what it refers to is kept until it is
// made or dropped.
type Delivery struct {
	Vat     string   `json:"vat"`
	Kind    string   `json:"kind"`
	Target  string   `json:"target,omitempty"` // of a message: an object of the vat, or a promise that it is to decide
	Msg     *Message `json:"msg,omitempty"`
	Promise string   `json:"promise,omitempty"` // of a notify
	Objects []string `json:"objects,omitempty"` // of the others
}

// Kernel passes messages between vats. Its methods must not be called at the same time. The transactions that they are given are those of
// one store, one after another.
type Kernel struct {
	vat func(id string) *vat.Vat

	free map[string]bool // objects and promises that may have become garbage since the last crank
}

// New returns a kernel whose vats vat returns. Their Host is the kernel.
func New(vat func(id string) *vat.Vat) *Kernel { return &Kernel{vat: vat, free: make(map[string]bool)} }

// in returns the kernel's state in a transaction.
func (k *Kernel) in(ctx context.Context, tx *swingstore.Tx) *state {
	return &state{kv: kv{ctx: context.WithoutCancel(ctx), tx: tx}, k: k}
}

// try runs f, and undoes all of it if it fails.
func (k *Kernel) try(ctx context.Context, tx *swingstore.Tx, f func(s *state) error) error {
	free := maps.Clone(k.free)
	err := tx.Try(func() error {
		s := k.in(ctx, tx)
		if err := f(s); err != nil {
			return err
		}
		return s.err
	})
	if err != nil {
		k.free = free
	}
	return err
}

// errUndo undoes a part of a crank.
var errUndo = errors.New("undone")

// Install makes a vat with a name, and starts it. If it fails to start, which the result says, there is none.
func (k *Kernel) Install(ctx context.Context, tx *swingstore.Tx, i vat.Incarnation) (id string, r *vat.Result, err error) {
	err = k.try(ctx, tx, func(s *state) error {
		if other := s.get(vatNameKey(i.Name)); other != "" {
			return fmt.Errorf("installing a vat: the name %q is that of %s", i.Name, other)
		}
		id = fmt.Sprintf("v%d", s.count("vat.nextID", 1))
		s.set(vatNameKey(i.Name), id)
		root := s.toKernel(id, rootVref)
		s.addRef(root)
		if s.err != nil {
			return s.err
		}
		if r, err = k.vat(id).Create(ctx, tx, i); err != nil {
			return err
		}
		return s.started(id, r)
	})
	if errors.Is(err, errUndo) {
		return "", r, nil
	}
	return id, r, err
}

// started does what follows on the start of an incarnation: all is undone if it failed, and a vat that has exited is terminated.
func (s *state) started(id string, r *vat.Result) error {
	if !r.Kept {
		return errUndo
	}
	if r.Exit != nil {
		s.terminate(id, *exitReason(r.Exit))
	}
	s.collect()
	return nil
}

func vatNameKey(name string) string { return "vat.name." + name }

// Lookup returns the ID of the vat that was installed with a name, and "" if there is none. A terminated vat keeps its name.
func Lookup(ctx context.Context, r *swingstore.Reader, name string) (string, error) {
	return optional(r.Get(ctx, vatNameKey(name)))
}

// Terminated returns whether a vat was terminated.
func Terminated(ctx context.Context, r *swingstore.Reader, id string) (bool, error) {
	reason, err := optional(r.Get(ctx, id+".terminated"))
	return reason != "", err
}

// Send puts a message from outside, to the root of a vat, at the end of the run queue. The objects that its slots stand for are those of the
// roots of vats, by ID. Its result is given to Result's caller under a key.
func (k *Kernel) Send(ctx context.Context, tx *swingstore.Tx, id string, methargs CapData, key string) error {
	return k.try(ctx, tx, func(s *state) error {
		roots := make([]string, len(methargs.Slots))
		for i, of := range methargs.Slots {
			roots[i] = s.root(of)
		}
		promise := s.newPromise("")
		s.set(promise+".result", key)
		s.addRef(promise)
		s.send(s.root(id), &Message{Methargs: CapData{Body: methargs.Body, Slots: roots}, Result: promise})
		s.collect()
		return nil
	})
}

// Result is what came of a message from outside.
type Result struct {
	Key      string  `json:"key"`
	Rejected bool    `json:"rejected"`
	Data     CapData `json:"data"`
}

// Results takes the results that have come since the last call, in their order.
func (k *Kernel) Results(ctx context.Context, tx *swingstore.Tx) (results []Result, err error) {
	err = k.try(ctx, tx, func(s *state) error {
		for {
			var r Result
			if !s.shift("results", &r) {
				return s.err
			}
			results = append(results, r)
		}
	})
	return results, err
}

// Queued returns how many events wait for their turn, and garbage that vats have to be told of.
func Queued(ctx context.Context, r *swingstore.Reader) (n int64, err error) {
	garbage, err := optional(r.Get(ctx, "gcActions"))
	if err != nil {
		return 0, err
	}
	if garbage != "" {
		var actions []string
		if err := json.Unmarshal([]byte(garbage), &actions); err != nil {
			return 0, fmt.Errorf("%s: reading key %q: %w", r.Path(), "gcActions", err)
		}
		n = int64(len(actions))
	}
	for _, name := range queues {
		first, after, err := queue(ctx, r, name)
		if err != nil {
			return 0, err
		}
		n += after - first
	}
	return n, nil
}

// queues are where events wait: those whose target is known, and before that those that are to be looked at.
var queues = []string{"runQueue", "acceptanceQueue"}

// queue returns the positions of the first event of a queue, and after the last.
func queue(ctx context.Context, r *swingstore.Reader, name string) (first, after int64, err error) {
	text, err := optional(r.Get(ctx, name))
	if text == "" || err != nil {
		return 0, 0, err
	}
	var ends [2]int64
	if err := json.Unmarshal([]byte(text), &ends); err != nil {
		return 0, 0, fmt.Errorf("%s: reading key %q: %w", r.Path(), name, err)
	}
	return ends[0], ends[1], nil
}

// Expected returns the vats that the next events are for, as far as can be told, at most so many of each queue.
func Expected(ctx context.Context, r *swingstore.Reader, most int64) (vats []string, err error) {
	for _, name := range queues {
		first, after, err := queue(ctx, r, name)
		for at := first; at < min(after, first+most) && err == nil; at++ {
			var text string
			if text, err = r.Get(ctx, fmt.Sprintf("%s.%d", name, at)); err != nil {
				break
			}
			var e event
			if err = json.Unmarshal([]byte(text), &e); err != nil {
				break
			}
			id := e.VatID
			if e.Type == "send" {
				id, err = optional(r.Get(ctx, e.Target+".owner"))
			}
			if id != "" && !slices.Contains(vats, id) {
				vats = append(vats, id)
			}
		}
		if err != nil {
			return nil, err
		}
	}
	return vats, nil
}

// Next takes what is next: garbage that a vat has to be told of, and otherwise the first event of the run queue. The delivery is nil
// if that needed none, as a message to a rejected promise, and more is false if nothing was left.
func (k *Kernel) Next(ctx context.Context, tx *swingstore.Tx) (d *Delivery, more bool, err error) {
	err = k.try(ctx, tx, func(s *state) error {
		s.accept()
		if d = s.nextGC(); d != nil {
			more = true
			return nil
		}
		var e event
		if more = s.shift("runQueue", &e); !more {
			return nil
		}
		switch e.Type {
		case "send":
			d = s.route(e.Target, e.Msg)
		case "notify":
			d = &Delivery{Vat: e.VatID, Kind: KindNotify, Promise: e.Promise}
			if s.isTerminated(e.VatID) || s.get(clistKey(e.VatID, e.Promise)) == "" {
				s.release(d)
				d = nil
			}
		default:
			return fmt.Errorf("%s: an event of the run queue is of type %q, expected send or notify", tx.Path(), e.Type)
		}
		if d == nil {
			s.collect()
		}
		return nil
	})
	if err != nil {
		return nil, false, err
	}
	return d, more, nil
}

// Deliver makes a delivery. A vat that fails, or that asks for it, is terminated, as SwingSet does; the result is nil if there was nothing
// to deliver, as to a vat that was terminated meanwhile. After an error nothing has happened, and it may be tried again.
func (k *Kernel) Deliver(ctx context.Context, tx *swingstore.Tx, d *Delivery) (r *vat.Result, err error) {
	err = k.try(ctx, tx, func(s *state) error {
		if s.isTerminated(d.Vat) || d.Kind == KindMessage && s.owner(d.Target) != d.Vat { // or it was abandoned meanwhile
			s.drop(d)
			s.collect()
			return nil
		}
		err := k.try(ctx, tx, func(s *state) error {
			text := s.translate(d)
			if s.err != nil || text == nil {
				return s.err
			}
			if r, err = k.vat(d.Vat).Deliver(ctx, tx, text); err != nil {
				return err
			}
			if !r.Kept {
				return errUndo
			}
			return nil
		})
		switch {
		case errors.Is(err, errUndo):
			s.terminate(d.Vat, *failure(r))
			s.drop(d)
		case err != nil:
			return err
		default:
			s.release(d)
			if r != nil && r.Exit != nil {
				s.terminate(d.Vat, *exitReason(r.Exit))
			}
		}
		s.collect()
		return nil
	})
	if err != nil {
		return nil, err
	}
	return r, nil
}

// Drop gives a delivery up: the result of a message is rejected, since its vat was terminated.
func (k *Kernel) Drop(ctx context.Context, tx *swingstore.Tx, d *Delivery) error {
	return k.try(ctx, tx, func(s *state) error {
		s.drop(d)
		s.collect()
		return nil
	})
}

// Reject gives a message up before it has come to its vat, and rejects its result with an error of JavaScript.
func (k *Kernel) Reject(ctx context.Context, tx *swingstore.Tx, d *Delivery, problem string) error {
	return k.try(ctx, tx, func(s *state) error {
		if d.Kind == KindMessage && d.Msg.Result != "" {
			s.resolve("", d.Msg.Result, true, *makeError(problem))
		}
		s.release(d)
		s.collect()
		return nil
	})
}

// Upgrade begins a vat's next incarnation, on the old one's engine up to its end or, without that, with its end unsaid. The promises that it was
// to decide are rejected with an upgrade disconnection, and what it exports and does not keep is abandoned. If the new one does not start,
// which the result says, nothing has happened.
func (k *Kernel) Upgrade(ctx context.Context, tx *swingstore.Tx, id string, i vat.Incarnation, message string, withoutEngine bool) (r *vat.Result, err error) {
	err = k.try(ctx, tx, func(s *state) error {
		if s.isTerminated(id) {
			return fmt.Errorf("upgrading %s: it was terminated", id)
		}
		span, err := tx.Current(ctx, id)
		if err != nil {
			return err
		}
		between := func() error {
			s := k.in(ctx, tx)
			s.disconnect(id, disconnection(message, span.Incarnation))
			return s.err
		}
		upgrade := k.vat(id).Upgrade
		if withoutEngine {
			upgrade = k.vat(id).UpgradeWithoutEngine
		}
		if r, err = upgrade(ctx, tx, i, between); err != nil {
			return err
		}
		return s.started(id, r)
	})
	if errors.Is(err, errUndo) {
		return r, nil
	}
	return r, err
}

// Terminate terminates a vat. What it leaves behind goes by CleanUp.
func (k *Kernel) Terminate(ctx context.Context, tx *swingstore.Tx, id, reason string) error {
	return k.try(ctx, tx, func(s *state) error {
		if s.get(id+".options") == "" {
			return fmt.Errorf("terminating %s: there is no such vat", id)
		}
		if !s.isTerminated(id) {
			s.terminate(id, *makeError(reason))
			s.collect()
		}
		return nil
	})
}

// CleanUp removes up to limit keys that terminated vats have left behind, and returns how many it has removed. Their transcripts stay.
func (k *Kernel) CleanUp(ctx context.Context, tx *swingstore.Tx, limit int) (n int, err error) {
	err = k.try(ctx, tx, func(s *state) error {
		n = s.cleanUp(limit)
		s.collect()
		return nil
	})
	return n, err
}

// Leavings reports whether CleanUp has something to remove.
func Leavings(ctx context.Context, r *swingstore.Reader) (bool, error) {
	list, err := optional(r.Get(ctx, "vats.terminated"))
	return list != "" && list != "[]", err
}

// Syscall answers a syscall, as the vats' Host.
func (k *Kernel) Syscall(ctx context.Context, tx *swingstore.Tx, id string, syscall []byte) ([]byte, error) {
	s := k.in(ctx, tx)
	data, err := s.syscall(id, syscall)
	if err == nil {
		err = s.err
	}
	return data, err
}

// makeError returns an error of JavaScript.
func makeError(message string) *CapData {
	return &CapData{Body: fmt.Sprintf(`#{"#error":%s,"name":"Error"}`, quote(smallcaps(message))), Slots: []string{}}
}

// disconnection returns what promises are rejected with whose decider is upgraded (agoric-sdk, packages/internal/src/upgrade-api.js).
func disconnection(message string, incarnation int64) CapData {
	return CapData{Body: fmt.Sprintf(`#{"incarnationNumber":%d,"name":"vatUpgraded","upgradeMessage":%s}`, incarnation, quote(smallcaps(message))), Slots: []string{}}
}

// terminatedError is what sends to a vat that was terminated are answered with.
var terminatedError = makeError("vat terminated")

// failure returns what the promises of a vat that has failed are rejected with.
func failure(r *vat.Result) *CapData {
	if r.Exit != nil {
		return exitReason(r.Exit)
	}
	return makeError(r.Problem)
}

// exitReason returns what the promises of a vat that ends are rejected with: what it says if it ends with a failure.
func exitReason(e *vat.Exit) *CapData {
	var info CapData
	if !e.Failure || json.Unmarshal(e.Info, &info) != nil || len(info.Slots) > 0 { // what the vat refers to went with its crank
		return terminatedError
	}
	info.Slots = []string{}
	return &info
}

// smallcaps escapes a string where @endo/marshal does: those that begin with a character from ! to - stand for something else.
func smallcaps(s string) string {
	if s != "" && '!' <= s[0] && s[0] <= '-' {
		return "!" + s
	}
	return s
}

// Smallcaps is a string that stands for something else in the body of a CapData: "+7", "#undefined", "$0.Alleged: root".
type Smallcaps string

// Encode encodes a value, as encoding/json decodes them or with Smallcaps in it, as the body of a CapData (@endo/marshal, encodeToSmallcaps).
func Encode(value any) (string, error) {
	var escape func(v any) any
	escape = func(v any) any {
		switch v := v.(type) {
		case string:
			return smallcaps(v)
		case []any:
			list := make([]any, len(v))
			for i, item := range v {
				list[i] = escape(item)
			}
			return list
		case map[string]any:
			object := make(map[string]any, len(v))
			for name, item := range v { // encoding/json sorts the names
				object[smallcaps(name)] = escape(item)
			}
			return object
		}
		return v
	}
	text, err := encode(escape(value))
	return "#" + text, err
}

// encode is JSON.stringify: nothing is escaped for HTML.
func encode(v any) (string, error) {
	var b strings.Builder
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	err := e.Encode(v)
	return strings.TrimSuffix(b.String(), "\n"), err
}

func quote(s string) string {
	text, _ := encode(s)
	return text
}

func optional(value string, err error) (string, error) {
	if errors.Is(err, swingstore.ErrNotFound) {
		return "", nil
	}
	return value, err
}

// vats returns the IDs of the vats that were not terminated.
func (s *state) vats() (ids []string) {
	s.getJSON("vat.dynamicIDs", &ids)
	return slices.DeleteFunc(ids, s.isTerminated)
}
