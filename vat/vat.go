// Package vat runs vats: programs that live in a worker, take deliveries, make syscalls, and are brought back after a restart from a heap
// snapshot and the transcript of what came after it. It is to Go what SwingSet's vat warehouse is to JavaScript, with a version for each vat.
//
// A Manager is a vat's worker and nothing else. A Vat keeps its vatstore, transcript and heap snapshots in a swing-store, so that
// SwingSet reads what it wrote, and the other way round.
package vat

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/enginery/enginery/engines"
	"github.com/enginery/enginery/swingstore"
)

// Host answers the syscalls that are not for the vatstore: send, callNow, subscribe, resolve, exit, dropImports, retireImports,
// retireExports and abandonExports.
type Host interface {
	// Syscall answers a syscall of a vat, ["send","o-50",…] in JSON, with data in JSON or nil for null. What it writes to tx stays if the
	// crank does. It must not call the vat's methods. An error that is a *CallError is told to the vat, and an *IllegalSyscallError is the vat's
	// fault; after any other the crank has not happened, and the worker is killed.
	Syscall(ctx context.Context, tx *swingstore.Tx, vat string, syscall []byte) (data []byte, err error)
}

// CallError is what a vat is told of a callNow that failed.
type CallError struct{ Problem string }

func (e *CallError) Error() string { return e.Problem }

// IllegalSyscallError is what a host says of a syscall that a vat must not make, as of an object that it does not have. The crank goes on, and
// is not kept.
type IllegalSyscallError struct{ Problem string }

func (e *IllegalSyscallError) Error() string { return "illegal syscall: " + e.Problem }

// illegalAnswer is what SwingSet tells a vat of it (agoric-sdk, packages/SwingSet/src/kernel/kernel.js).
const illegalAnswer = `["error","syscall translation error: prepare to die"]`

// Options are those of a vat.
type Options struct {
	ID   string // "v1"
	Host Host

	// Engines returns the engine of a version, or of the channel engines.Legacy for vats of which nothing else is recorded.
	Engines func(version string) (*Engine, error)

	// SnapshotInitial and SnapshotInterval are how many items are in a span when a heap snapshot is taken: in the first of an incarnation, and
	// in later ones. SwingSet's are 3 and 200, which 0 stands for.
	SnapshotInitial, SnapshotInterval int64
	KeepWorker                        bool // it is not started anew from each heap snapshot
	PruneSnapshots                    bool // only the last heap snapshot is kept, and the hashes of the others

	// Console is told what the vat prints, also while it is brought back; nil: nobody.
	Console func(source, level string, args []json.RawMessage)
}

// Incarnation is a vat's life from its start to its next upgrade.
type Incarnation struct {
	Engine     string // version ID; empty: engines.Legacy, and no word of it is written
	BundleID   string // of the vat's source, which the store has
	Parameters []byte // CapData in JSON; nil: none

	Name    string // of a new vat; otherwise it stays
	MeterID string // of a new vat: a crank may use DefaultMeteringLimit; otherwise it stays
}

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

// ReplayError says that a vat could not be brought back: its worker did not do what the transcript says it had done.
type ReplayError struct {
	Vat         string
	Engine      string // version
	Position    int64  // in the transcript
	Delivery    string // in JSON, or the beginning of it
	What        string // "syscall 3", "computrons", …
	Want, Found string
}

func (e *ReplayError) Error() string {
	return fmt.Sprintf("%s cannot be brought back on %s: at item %d, %s, %s is %s, expected %s; is it the engine that the vat ran on?",
		e.Vat, e.Engine, e.Position, brief([]byte(e.Delivery)), e.What, brief([]byte(e.Found)), brief([]byte(e.Want)))
}

// Vat is a vat. Its methods may be called from many goroutines; one transaction is one goroutine's.
//
// All that a vat is, is in the store. Whether a transaction is committed or rolled back, in part or whole, is the caller's affair: a
// worker that is not where the store says is started anew.
type Vat struct {
	o Options

	mu sync.Mutex
	m  *Manager        // nil: no worker
	at swingstore.Span // that the worker is at the end of

	next *fresh // of the next incarnation; nil: none
}

// New returns a vat, which may be one of a store, or be created. Nothing is started yet.
func New(o Options) *Vat {
	if o.SnapshotInitial == 0 {
		o.SnapshotInitial = 3
	}
	if o.SnapshotInterval == 0 {
		o.SnapshotInterval = 200
	}
	return &Vat{o: o}
}

// Close ends the worker. The vat may be used again, and gets another.
func (v *Vat) Close() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.next != nil {
		v.next.m.Kill()
		v.next = nil
	}
	if v.m == nil {
		return nil
	}
	m := v.m
	v.m = nil
	return m.Close()
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
		return err
	}
	if err := v.deliver(ctx, tx, append(append([]byte(`["startVat",`), vat.Parameters...), ']'), r); err != nil {
		return err
	}
	return v.maybeSnapshot(ctx, tx, r)
}

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
			b, err = e.bundle(id)
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

// Entry is an item of a transcript (agoric-sdk, packages/SwingSet/src/types-internal.js, TranscriptEntry).
type Entry struct {
	Delivery json.RawMessage `json:"d"`
	Syscalls []struct {
		Syscall json.RawMessage `json:"s"`
		Answer  json.RawMessage `json:"r"`
	} `json:"sc"`
	Result struct {
		Status     string `json:"status"`
		SnapshotID string `json:"snapshotID"` // of save-snapshot
		Metering   *struct {
			Computrons int64 `json:"computrons"`
		} `json:"metering"`
	} `json:"r"`
}

// Kind returns the kind of the delivery: "message", "save-snapshot", …, or "" if it is none.
func (e *Entry) Kind() string {
	list, err := elements(e.Delivery)
	if err != nil {
		return ""
	}
	return text(list[0])
}

// replay does again what the transcript's current span says.
func (v *Vat) replay(ctx context.Context, r *swingstore.Reader, e *Engine, span swingstore.Span, from *swingstore.Snapshot) error {
	for item, err := range r.Items(ctx, span) {
		if err != nil {
			return err
		}
		var entry Entry
		if err := json.Unmarshal(item.Text, &entry); err != nil {
			return fmt.Errorf("item %d of %s: %w", item.Position, v.o.ID, err)
		}
		differ := func(what, want, found string) error {
			return &ReplayError{Vat: v.o.ID, Engine: e.Version, Position: item.Position, Delivery: string(entry.Delivery), What: what, Want: want, Found: found}
		}
		if item.Position == span.Start {
			want := `["initialize-worker",…]`
			if from != nil {
				want = `["load-snapshot",{"snapshotID":"` + from.Hash + `"}]`
			}
			if from == nil && entry.Kind() != "initialize-worker" || from != nil && string(entry.Delivery) != want {
				return differ("the start of the span", want, string(entry.Delivery))
			}
			continue
		}
		if !slices.Contains(kinds, entry.Kind()) {
			return differ("a delivery", "one of "+strings.Join(kinds, ", "), string(entry.Delivery))
		}
		made := 0
		o, err := v.m.Deliver(ctx, entry.Delivery, func(_ context.Context, syscall []byte) ([]byte, error) {
			what := "syscall " + strconv.Itoa(made)
			if made == len(entry.Syscalls) {
				return nil, differ(what, "none", string(syscall))
			}
			s := entry.Syscalls[made]
			if string(s.Syscall) != string(syscall) {
				return nil, differ(what, string(s.Syscall), string(syscall))
			}
			made++
			return s.Answer, nil
		})
		if err != nil {
			return err
		}
		if made < len(entry.Syscalls) {
			return differ("syscall "+strconv.Itoa(made), string(entry.Syscalls[made].Syscall), "none")
		}
		if status := status(o); status != entry.Result.Status {
			return differ("the status", entry.Result.Status, status+" "+o.Problem)
		}
		if want := entry.Result.Metering; want != nil && want.Computrons != o.Meter.Compute {
			return differ("computrons", strconv.FormatInt(want.Computrons, 10), strconv.FormatInt(o.Meter.Compute, 10))
		}
	}
	return nil
}

func status(o Outcome) string {
	if o.OK {
		return "ok"
	}
	return "error"
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
	if stop(); err != nil {
		return fmt.Errorf("taking a heap snapshot of %s: %w", v.o.ID, causeOf(ctx, err))
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
