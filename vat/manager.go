package vat

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"runtime/debug"
	"sync"

	"github.com/enginery/enginery/xsnap"
)

// DefaultMeteringLimit is how many computrons a crank of a vat with a meter may use (agoric-sdk, packages/xsnap/src/xsnap.js).
const DefaultMeteringLimit = 100_000_000

// ManagerOptions say what worker to start for a vat, and from what.
type ManagerOptions struct {
	// Worker is the engine and how it is run. Its Handle is the manager's, and its Name if that is empty. If it has a heap snapshot, nothing
	// else is needed.
	Worker xsnap.Options

	ID, Name string // of the vat: "v8", "mint"

	Lockdown, Supervisor Script
	Bundle               []byte // an object in JSON, as a store has it
	LiveSlots            LiveSlots

	// Console is told what the vat prints; nil: nobody.
	Console func(source, level string, args []json.RawMessage)
}

// Script is a lockdown or supervisor bundle as a worker evaluates it. Many workers may start from one.
type Script string

// ParseScript reads a bundle, an object in JSON as a store has it, of moduleFormat nestedEvaluate or getExport.
func ParseScript(bundle []byte) (Script, error) {
	var b struct {
		ModuleFormat string `json:"moduleFormat"`
		Source       string `json:"source"`
	}
	if err := json.Unmarshal(bundle, &b); err != nil {
		return "", fmt.Errorf("reading a bundle: %w", err)
	}
	if b.ModuleFormat != "nestedEvaluate" && b.ModuleFormat != "getExport" {
		return "", fmt.Errorf("a bundle has moduleFormat %q, expected nestedEvaluate", b.ModuleFormat)
	}
	return Script("(" + b.Source + "\n)()"), nil
}

// ReadBundles sets the bundles, which read returns by their IDs.
func (o *ManagerOptions) ReadBundles(read func(id string) ([]byte, error), lockdown, supervisor, bundle string) error {
	script := func(id string) (Script, error) {
		b, err := read(id)
		if err != nil {
			return "", err
		}
		s, err := ParseScript(b)
		if err != nil {
			return "", fmt.Errorf("bundle %s: %w", id, err)
		}
		return s, nil
	}
	var err error
	if o.Lockdown, err = script(lockdown); err != nil {
		return err
	}
	if o.Supervisor, err = script(supervisor); err != nil {
		return err
	}
	o.Bundle, err = read(bundle)
	return err
}

// LiveSlots are options of the supervisor. They are not in transcripts, and they are in heap snapshots.
type LiveSlots struct {
	EnableDisavow        bool `json:"enableDisavow"`
	RelaxDurabilityRules bool `json:"relaxDurabilityRules"`
}

// Syscaller answers a syscall of a vat. Both are in JSON as JavaScript writes it: ["vatstoreGet","key"], ["ok",null]. After an error the
// worker is killed, since the protocol cannot pass one on.
type Syscaller func(ctx context.Context, syscall []byte) (answer []byte, err error)

// Manager is a worker that runs a vat's supervisor. It keeps nothing: what a vat is told and answered is up to the caller, be it a kernel or
// a transcript. Its methods must not be called at the same time, except Kill.
type Manager struct {
	o ManagerOptions

	mu     sync.Mutex
	w      *xsnap.Worker
	killed bool

	syscall Syscaller // of the delivery under way
}

// Outcome is what came of a delivery.
type Outcome struct {
	OK      bool
	Problem string          // if it is not OK: what the supervisor says, or what meter was exceeded
	Ended   bool            // the worker has ended, since a meter was exceeded
	Results json.RawMessage // of the supervisor; null so far
	Meter   xsnap.Meter
}

// StartManager starts a worker as SwingSet does: from a heap snapshot, or with lockdown, supervisor and the vat's bundle. It lives
// until Close or Kill, or ctx ends.
func StartManager(ctx context.Context, o ManagerOptions) (*Manager, error) {
	if o.Worker.Name == "" {
		o.Worker.Name = o.ID + ":" + o.Name
	}
	m := &Manager{o: o}
	o.Worker.Handle = m.handle
	w, err := xsnap.Start(ctx, o.Worker)
	if err != nil {
		return nil, err
	}
	m.w = w
	if o.Worker.Snapshot == nil {
		if err := m.load(); err != nil {
			w.Kill()
			return nil, err
		}
	}
	m.o.Lockdown, m.o.Supervisor, m.o.Bundle, m.o.Worker.Snapshot = "", "", nil, nil
	return m, nil
}

func (m *Manager) load() error {
	for _, b := range []struct {
		name   string
		script Script
	}{{"lockdown", m.o.Lockdown}, {"supervisor", m.o.Supervisor}} {
		if _, err := m.w.Evaluate(string(b.script)); err != nil {
			return fmt.Errorf("evaluating the %s bundle: %w", b.name, err)
		}
	}
	options, err := json.Marshal(m.o.LiveSlots)
	if err != nil {
		return err
	}
	message := appendString([]byte(`["setBundle",`), m.o.ID)
	message = append(append(message, ','), m.o.Bundle...)
	message = append(append(append(message, ','), options...), ']')
	reply, err := m.w.Command(message)
	if err != nil {
		return err
	}
	answer, err := elements(reply.Payload)
	if err == nil && text(answer[0]) != "dispatchReady" {
		err = errors.New(`expected ["dispatchReady"]`)
	}
	if err != nil {
		return fmt.Errorf("answering setBundle: %w", m.odd(reply.Payload, err))
	}
	return nil
}

// Deliver makes a delivery, ["message","o+0",…] in JSON, and has its syscalls answered. An error says that the worker has ended, by no
// fault of the vat: what became of the vat is not known.
func (m *Manager) Deliver(ctx context.Context, delivery []byte, syscall Syscaller) (Outcome, error) {
	if cause := context.Cause(ctx); cause != nil { // or a short delivery could be over before Kill
		m.Kill()
		return Outcome{}, fmt.Errorf("delivering to %s: %w", m.o.ID, cause)
	}
	w := m.worker()
	m.mu.Lock()
	m.syscall = syscall
	m.mu.Unlock()
	stop := context.AfterFunc(ctx, m.Kill)
	reply, err := w.Command(append(append([]byte(`["deliver",`), delivery...), ']'))
	if !stop() && err == nil {
		err = xsnap.ErrKilled // or is about to be
	}
	m.mu.Lock()
	m.syscall = nil
	m.mu.Unlock()
	if err != nil {
		if problem, ok := exceeded(err); ok {
			return Outcome{Problem: problem, Ended: true}, nil
		}
		m.Kill() // also after an exception in handleCommand, which a supervisor does not let through
		if cause := context.Cause(ctx); cause != nil && errors.Is(err, xsnap.ErrKilled) {
			return Outcome{}, fmt.Errorf("delivering to %s: %w", m.o.ID, cause)
		}
		return Outcome{}, err
	}
	answer, err := elements(reply.Payload)
	if err == nil {
		o := Outcome{Meter: reply.Meter}
		switch tag := text(answer[0]); tag {
		case "ok":
			o.OK = true
			if len(answer) > 1 {
				o.Results = answer[1]
			}
			return o, nil
		case "error":
			if o.Problem = "unknown"; len(answer) > 1 {
				o.Problem = text(answer[1])
			}
			return o, nil
		}
		err = errors.New(`expected ["ok",…] or ["error",…]`)
	}
	m.Kill()
	if len(reply.Payload) == 0 {
		err = errors.New("the worker has nothing more to do, and has not answered")
	}
	return Outcome{}, fmt.Errorf("answering a delivery: %w", m.odd(reply.Payload, err))
}

// exceeded tells the ends of a worker that are the vat's fault, in SwingSet's words
// (agoric-sdk, packages/SwingSet/src/kernel/vat-loader/manager-subprocess-xsnap.js).
func exceeded(err error) (string, bool) {
	var exit *xsnap.ExitError
	if errors.As(err, &exit) && exit.Deterministic() {
		switch exit.Code {
		case xsnap.ExitTooMuchComputation:
			return "Compute meter exceeded", true
		case xsnap.ExitStackOverflow:
			return "Stack meter exceeded", true
		case xsnap.ExitNotEnoughMemory:
			return "Allocate meter exceeded", true
		}
	}
	return "", false
}

// handle answers what the supervisor sends.
func (m *Manager) handle(ctx context.Context, message []byte) (answer []byte, err error) {
	defer func() {
		if p := recover(); p != nil {
			answer, err = nil, fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
	}()
	plain, err := normal(nil, message)
	if err != nil {
		return nil, m.odd(message, err)
	}
	item, err := elements(plain)
	if err != nil {
		return nil, m.odd(message, err)
	}
	switch tag := text(item[0]); {
	case tag == "syscall" && len(item) == 2:
		m.mu.Lock()
		syscall := m.syscall
		m.mu.Unlock()
		if syscall == nil {
			return nil, m.odd(message, errors.New("nothing is delivered"))
		}
		return syscall(ctx, item[1])
	case tag == "sourcedConsole" && len(item) >= 3:
		if m.o.Console != nil {
			m.o.Console(text(item[1]), text(item[2]), item[3:])
		}
		return []byte(`["ok"]`), nil
	case tag == "testLog":
		if m.o.Console != nil {
			m.o.Console("testLog", "log", item[1:])
		}
		return []byte(`["OK"]`), nil
	}
	return nil, m.odd(message, errors.New("expected a syscall, or what it prints"))
}

// SupervisorError says that what runs in a worker does not speak as a supervisor does. Other vats are told its text, so that must be the same on all
// nodes, with whatever release of Go they were compiled.
type SupervisorError struct {
	Vat  string
	Says string // or the beginning of it
	Err  error
}

func (e *SupervisorError) Error() string {
	return fmt.Sprintf("the supervisor of %s says %+q: %v", e.Vat, e.Says, e.Err)
}

func (e *SupervisorError) Unwrap() error { return e.Err }

func (m *Manager) odd(message []byte, err error) error {
	return &SupervisorError{Vat: m.o.ID, Says: brief(message), Err: err}
}

// Snapshot writes a heap snapshot to dst while the worker makes it. With restart, a new worker is started from what is written and
// takes the place of the old one, as SwingSet does by default. ctx is the new worker's.
func (m *Manager) Snapshot(ctx context.Context, dst io.Writer, restart bool) error {
	old := m.worker()
	if !restart {
		_, err := old.Snapshot(dst)
		return err
	}
	next, err := old.Fork(ctx, dst)
	if err != nil {
		return fmt.Errorf("starting %s anew from its heap snapshot: %w", m.o.ID, err)
	}
	m.mu.Lock()
	m.w = next
	killed := m.killed
	m.mu.Unlock()
	if killed {
		next.Kill()
	}
	return old.Close()
}

func (m *Manager) worker() *xsnap.Worker {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.w
}

// Close ends the worker and returns why it ended otherwise than it should.
func (m *Manager) Close() error { return m.worker().Close() }

// Kill ends the worker at once. It may be called at any time.
func (m *Manager) Kill() {
	m.mu.Lock()
	m.killed = true
	w := m.w
	m.mu.Unlock()
	w.Kill()
}

// elements returns those of an array that is not empty.
func elements(array []byte) ([]json.RawMessage, error) {
	var list []json.RawMessage
	if json.Unmarshal(array, &list) != nil || len(list) == 0 {
		return nil, errors.New("expected an array with something in it")
	}
	return list, nil
}

// text returns what a string in JSON is, and of anything else the JSON.
func text(value []byte) string {
	var s string
	if json.Unmarshal(value, &s) != nil {
		return string(value)
	}
	return s
}

// brief returns the beginning of what may be long.
func brief(b []byte) string {
	const limit = 200
	if len(b) > limit {
		return string(b[:limit]) + "…"
	}
	return string(b)
}
