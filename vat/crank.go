package vat

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/enginery/enginery/swingstore"
	"github.com/enginery/enginery/xsnap"
)

// Result is what came of a crank.
type Result struct {
	// Kept says that the crank is in the transcript. Otherwise nothing of it has happened, and SwingSet would now terminate the vat, or
	// leave an upgrade be.
	Kept    bool
	Problem string // why it was not kept, or ""

	Exit     *Exit // the vat has asked to be terminated
	Meter    Meter
	Snapshot *swingstore.Snapshot // that was taken after the crank; nil: none
}

// Exit is what a vat says when it asks to be terminated.
type Exit struct {
	Failure bool // then the crank was not kept
	Info    json.RawMessage
}

// Meter is what a crank has used.
type Meter struct {
	Computrons int64 // of the delivery, as it is in the transcript
	All        int64 // of all deliveries of the crank: an upgrade's, and the bringOutYourDead before a heap snapshot
	Allocate   int64 // bytes
	HeapCount  int64 // slots
}

// Crank makes a delivery in a transaction of its own. Another goroutine must not have one under way.
func (v *Vat) Crank(ctx context.Context, s *swingstore.Store, delivery []byte) (r *Result, err error) {
	err = s.Update(func(tx *swingstore.Tx) error {
		r, err = v.Deliver(ctx, tx, delivery)
		return err
	})
	if err != nil {
		return nil, err
	}
	return r, nil
}

// kinds are the deliveries that a supervisor knows (agoric-sdk, packages/swingset-liveslots/src/message.js).
var kinds = []string{"message", "notify", "dropExports", "retireExports", "retireImports", "changeVatOptions", "startVat", "stopVat", "bringOutYourDead"}

// Deliver makes a delivery, ["message","o+0",…] in JSON, and takes a heap snapshot if it is time for one. Results of vats are not errors; after
// an error nothing of the crank has happened, and it may be tried again.
func (v *Vat) Deliver(ctx context.Context, tx *swingstore.Tx, delivery []byte) (*Result, error) {
	delivery, err := normal(nil, delivery)
	if err != nil {
		return nil, fmt.Errorf("a delivery to %s: %w", v.o.ID, err)
	}
	if list, err := elements(delivery); err != nil || !slices.Contains(kinds, text(list[0])) {
		return nil, fmt.Errorf("a delivery to %s is %s, expected an array with one of %v", v.o.ID, brief(delivery), kinds)
	}
	return v.crank(tx, func(r *Result) error {
		if err := v.online(ctx, &tx.Reader); err != nil {
			return err
		}
		if err := v.deliver(ctx, tx, delivery, r); err != nil {
			return err
		}
		return v.maybeSnapshot(ctx, tx, r)
	})
}

// errUndo undoes a crank whose Result says why.
var errUndo = errors.New("undone")

// crank runs f, and undoes all of it if f fails.
func (v *Vat) crank(tx *swingstore.Tx, f func(*Result) error) (*Result, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	r := new(Result)
	done := false
	defer func() {
		if !done {
			v.kill()
		}
	}()
	err := tx.Try(func() error {
		if err := f(r); err != nil {
			return err
		}
		var err error
		v.at, err = tx.Current(context.Background(), v.o.ID)
		return err
	})
	switch {
	case err == nil:
		done, r.Kept = true, true
		return r, nil
	case errors.Is(err, errUndo):
		r.Snapshot = nil
		return r, nil
	}
	return nil, err
}

// kill ends the worker if there is one.
func (v *Vat) kill() {
	if v.m != nil {
		v.m.Kill()
		v.m = nil
	}
}

// deliver makes a delivery and adds it to the transcript. It is errUndo if the vat fails.
func (v *Vat) deliver(ctx context.Context, tx *swingstore.Tx, delivery []byte, r *Result) error {
	item := append(append([]byte(`{"d":`), delivery...), `,"sc":[`...)
	first := true
	var exit *Exit
	var illegal *IllegalSyscallError
	o, err := v.m.Deliver(ctx, delivery, func(_ context.Context, syscall []byte) ([]byte, error) {
		answer, err := v.answer(ctx, tx, syscall, &exit)
		if errors.As(err, &illegal) {
			return []byte(illegalAnswer), nil
		} else if err != nil {
			return nil, fmt.Errorf("answering a syscall of %s, %s: %w", v.o.ID, brief(syscall), err)
		}
		if !first {
			item = append(item, ',')
		}
		first = false
		item = append(append(append(append(append(item, `{"s":`...), syscall...), `,"r":`...), answer...), '}')
		return answer, nil
	})
	if err != nil {
		if r.Problem = fault(err); r.Problem != "" {
			return errUndo
		}
		return err
	}
	r.Exit = exit
	r.Meter.Computrons, r.Meter.Allocate, r.Meter.HeapCount = o.Meter.Compute, o.Meter.Allocate, o.Meter.HeapCount
	r.Meter.All += o.Meter.Compute
	if illegal != nil {
		r.Problem = illegal.Error()
		return errUndo
	}
	if !o.OK {
		r.Problem = o.Problem
		return errUndo
	}
	if exit != nil && exit.Failure {
		r.Problem = "the vat has exited with a failure"
		return errUndo
	}
	item = append(item, `],"r":{"status":"ok","metering":{"computrons":`...)
	item = append(strconv.AppendInt(item, o.Meter.Compute, 10), `}}}`...)
	_, err = tx.AddItem(v.o.ID, item)
	return err
}

// illegalAnswer is what SwingSet tells a vat of it (agoric-sdk, packages/SwingSet/src/kernel/kernel.js).
const illegalAnswer = `["error","syscall translation error: prepare to die"]`

// fault returns what is the vat's fault, since it comes of the vat's bundle or code on every host alike: a worker that says what no supervisor says, or
// too much at once, or that is not equal to its bundle. At some of these SwingSet panics; here any vat could have a chain stop so. Of what is no fault it
// returns "".
func fault(err error) string {
	var (
		size       *xsnap.SizeError
		supervisor *SupervisorError
	)
	if problem, ok := exceeded(err); ok {
		return problem
	}
	if errors.As(err, &size) && !size.ToWorker {
		return size.Error()
	}
	if errors.As(err, &supervisor) {
		return supervisor.Error()
	}
	return ""
}

// answer answers a syscall.
func (v *Vat) answer(ctx context.Context, tx *swingstore.Tx, syscall []byte, exit **Exit) ([]byte, error) {
	illegal := func(expected string) error {
		return &IllegalSyscallError{fmt.Sprintf("%s, expected %s", brief(syscall), expected)}
	}
	list, err := elements(syscall)
	if err != nil {
		return nil, illegal("an array that begins with its kind")
	}
	kind := text(list[0])
	arg := func(i int) (s string, err error) {
		if i >= len(list) || list[i][0] != '"' || json.Unmarshal(list[i], &s) != nil {
			return "", illegal("strings as its arguments")
		}
		return s, nil
	}
	value := func(s string) []byte {
		if s == "" {
			return []byte(`["ok",null]`)
		}
		return append(appendString([]byte(`["ok",`), s), ']')
	}
	prefix := v.o.ID + ".vs."
	switch kind {
	case "vatstoreGet", "vatstoreGetNextKey", "vatstoreSet", "vatstoreDelete":
		key, err := arg(1)
		if err != nil {
			return nil, err
		}
		switch kind {
		case "vatstoreGet":
			s, err := tx.Get(ctx, prefix+key)
			if err != nil && !errors.Is(err, swingstore.ErrNotFound) {
				return nil, err
			}
			return value(s), nil
		case "vatstoreGetNextKey":
			next, err := tx.NextKey(ctx, prefix+key)
			if err != nil {
				return nil, err
			}
			next, within := strings.CutPrefix(next, prefix)
			if !within {
				next = ""
			}
			return value(next), nil
		case "vatstoreSet":
			s, err := arg(2)
			if err == nil {
				err = tx.Set(prefix+key, s)
			}
			return value(""), err
		}
		return value(""), tx.Delete(prefix + key)
	case "exit":
		if len(list) != 3 {
			return nil, illegal("two arguments")
		}
		*exit = &Exit{Failure: string(list[1]) == "true", Info: slices.Clone(list[2])}
	case "send", "callNow", "subscribe", "resolve", "dropImports", "retireImports", "retireExports", "abandonExports":
	default:
		return nil, illegal("a syscall that there is")
	}
	data, err := v.o.Host.Syscall(ctx, tx, v.o.ID, syscall)
	var problem *CallError
	switch {
	case errors.As(err, &problem):
		return append(appendString([]byte(`["error",`), problem.Problem), ']'), nil
	case err != nil:
		return nil, err
	case data == nil:
		return value(""), nil
	}
	if data, err = normal(nil, data); err != nil {
		return nil, fmt.Errorf("what the host answers: %w", err)
	}
	return append(append([]byte(`["ok",`), data...), ']'), nil
}

// maybeSnapshot takes a heap snapshot if it is time for one, as SwingSet does: after a bringOutYourDead, and in a transcript's own words.
func (v *Vat) maybeSnapshot(ctx context.Context, tx *swingstore.Tx, r *Result) error {
	span, err := tx.Current(ctx, v.o.ID)
	if err != nil {
		return err
	}
	due := span.End-span.Start >= v.o.SnapshotInterval
	if !due && span.End-span.Start >= v.o.SnapshotInitial {
		if _, err := tx.SnapshotInUse(ctx, v.o.ID); errors.Is(err, swingstore.ErrNotFound) {
			due = true
		} else if err != nil {
			return err
		}
	}
	if !due {
		return nil
	}
	before := *r
	if err := v.deliver(ctx, tx, []byte(`["bringOutYourDead"]`), r); err != nil {
		return err
	}
	r.Exit, r.Meter.Computrons = before.Exit, before.Meter.Computrons
	w := swingstore.NewSnapshotWriter()
	stop := context.AfterFunc(ctx, v.m.Kill)
	err = v.m.Snapshot(context.WithoutCancel(ctx), w, !v.o.KeepWorker)
	if !stop() && err == nil {
		err = xsnap.ErrKilled // or is about to be
	}
	if err = causeOf(ctx, err); err != nil {
		if r.Problem = fault(err); r.Problem != "" {
			return errUndo // its heap is too large for one, or nested too deep
		}
		return fmt.Errorf("taking a heap snapshot of %s: %w", v.o.ID, err)
	}
	s, err := tx.SaveSnapshot(v.o.ID, w)
	if err != nil {
		return err
	}
	if v.o.PruneSnapshots {
		if err := tx.PruneSnapshots(v.o.ID); err != nil {
			return err
		}
	}
	if _, err := tx.AddItem(v.o.ID, []byte(`{"d":["save-snapshot"],"sc":[],"r":{"status":"ok","snapshotID":"`+s.Hash+`"}}`)); err != nil {
		return err
	}
	if _, err := tx.Rollover(v.o.ID, false); err != nil {
		return err
	}
	if _, err := tx.AddItem(v.o.ID, []byte(`{"d":["load-snapshot",{"snapshotID":"`+s.Hash+`"}],"sc":[],"r":{"status":"ok"}}`)); err != nil {
		return err
	}
	r.Snapshot = &s
	return nil
}
