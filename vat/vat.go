// Package vat runs vats: programs that live in a worker, take deliveries, make syscalls, and are brought back after a restart from a heap
// snapshot and the transcript of what came after it. It is to Go what SwingSet's vat warehouse is to JavaScript, with a version for each vat.
//
// A Manager is a vat's worker and nothing else. A Vat keeps its vatstore, transcript and heap snapshots in a swing-store, so that
// SwingSet reads what it wrote, and the other way round.
package vat

import (
	"context"
	"encoding/json"
	"sync"

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
