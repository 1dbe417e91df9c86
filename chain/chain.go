// Package chain is a single-node chain of vats: it makes blocks of what comes from outside, has workers do what follows from it, moves vats to
// new versions with the controller of package upgrade, and commits.
//
// It is the controller's host for real, and what an integrator reads to embed it; docs/chain.md is about both. Same inputs in the same blocks
// give the same state, and the same hash of it at every height, on every node: however fast it is, whenever it was restarted, and how many
// workers it keeps.
package chain

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/enginery/enginery/chain/kernel"
	"github.com/enginery/enginery/internal/flock"
	"github.com/enginery/enginery/swingstore"
	"github.com/enginery/enginery/upgrade"
	"github.com/enginery/enginery/vat"
)

// Options are those of a node. None of them changes what a block does.
type Options struct {
	Dir string // has swingstore.sqlite and lock; made if it is not there

	// Engines returns the engine of a version. After an error the block is not made.
	Engines func(version string) (*vat.Engine, error)

	// Check says whether this node can adopt a version, as upgrade.Host says; nil: what Engines says is enough.
	Check func(ctx context.Context, a upgrade.Adoption) error

	Jobs    int // workers that are started at once, ahead of the deliveries that need them; 0: 1
	Workers int // that are kept; 0: 50, as SwingSet does
	Keep    int // blocks whose record is kept; 0: all

	// Console is told what vats print; nil: nobody.
	Console func(vat, source, level string, args []json.RawMessage)
}

// Node is a chain's only node. Its methods must not be called at the same time.
type Node struct {
	o      Options
	lock   *os.File
	store  *swingstore.Store
	kernel *kernel.Kernel

	settings settings
	height   int64
	hash     string

	mu   sync.Mutex
	vats map[string]*vat.Vat
	used []string // vats that may have a worker, the one that was used last at the end
}

// settings are those of a chain, for good.
type settings struct {
	SnapshotInitial  int64 `json:"snapshotInitial"`  // vat.Options
	SnapshotInterval int64 `json:"snapshotInterval"` // vat.Options
	Cranks           int64 `json:"cranks"`           // of a block, besides those of the controller
	CleanUp          int64 `json:"cleanUp"`          // keys of terminated vats that a block removes
}

// ErrLocked says that another process is the chain's node.
var ErrLocked = errors.New("another process runs the chain")

// ErrForeign says that a store is that of another kernel.
var ErrForeign = errors.New("it is a swing-store, and not a chain's")

// Open opens a node, and makes a chain of height 0 if there is none.
func Open(o Options) (*Node, error) {
	if o.Check == nil {
		o.Check = func(context.Context, upgrade.Adoption) error { return nil }
	}
	if o.Workers == 0 {
		o.Workers = 50
	}
	if err := os.MkdirAll(o.Dir, 0o755); err != nil {
		return nil, fmt.Errorf("opening a chain: %w", err)
	}
	lock, err := os.OpenFile(filepath.Join(o.Dir, "lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, fmt.Errorf("opening a chain: %w", err)
	}
	if err := flock.Try(lock, flock.Exclusive); err != nil {
		lock.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = ErrLocked
		}
		return nil, fmt.Errorf("opening the chain in %s: %w", o.Dir, err)
	}
	if err := checkForeign(o.Dir); err != nil {
		flock.Close(lock)
		return nil, fmt.Errorf("opening a chain: %w", err)
	}
	s, err := swingstore.Create(o.Dir)
	if err != nil {
		flock.Close(lock)
		return nil, err
	}
	n := &Node{o: o, lock: lock, store: s, vats: make(map[string]*vat.Vat)}
	n.kernel = kernel.New(n.vat)
	if err := n.load(); err != nil {
		n.Close()
		return nil, err
	}
	return n, nil
}

// checkForeign returns an error if a folder has the store of another kernel, in which nothing must be changed.
func checkForeign(dir string) error {
	s, err := swingstore.Open(dir)
	if err != nil { // there is none yet, or one that cannot be opened for writing either
		return nil
	}
	defer s.Close()
	if _, _, err := head(context.Background(), &s.Reader); errors.Is(err, ErrForeign) {
		return err
	}
	return nil
}

// load reads what the node keeps in memory.
func (n *Node) load() error {
	ctx := context.Background()
	var err error
	if n.height, n.hash, err = head(ctx, &n.store.Reader); err != nil {
		return err
	}
	n.settings = settings{}
	_, err = readJSON(ctx, &n.store.Reader, settingsKey, &n.settings)
	return err
}

// Close ends the workers and closes the store.
func (n *Node) Close() error {
	var g errgroup.Group
	for _, v := range n.vats { // in any order
		g.Go(v.Close)
	}
	return errors.Join(g.Wait(), n.store.Close(), flock.Close(n.lock))
}

// Height returns the height of the last block; 0: there is none yet.
func (n *Node) Height() int64 { return n.height }

// AppHash returns the hash of the state after the last block, in hexadecimal digits.
func (n *Node) AppHash() string { return n.hash }

// Store returns what can be read of the chain's store.
func (n *Node) Store() *swingstore.Reader { return &n.store.Reader }

// vat returns a vat, which need not be there yet.
func (n *Node) vat(id string) *vat.Vat {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.vats[id] == nil {
		o := vat.Options{
			ID: id, Host: n.kernel, Engines: n.o.Engines, PruneSnapshots: true,
			SnapshotInitial: n.settings.SnapshotInitial, SnapshotInterval: n.settings.SnapshotInterval,
		}
		if n.o.Console != nil {
			o.Console = func(source, level string, args []json.RawMessage) { n.o.Console(id, source, level, args) }
		}
		n.vats[id] = vat.New(o)
	}
	return n.vats[id]
}

// use notes that a vat is about to have a worker, and ends that of the vat that has been idle longest if there would be too many.
func (n *Node) use(id string) {
	n.used = append(slices.DeleteFunc(n.used, func(other string) bool { return other == id }), id)
	for len(n.used) > n.o.Workers {
		n.retire(n.used[0])
	}
}

// retire ends the worker of a vat. How it ends changes nothing: all that the vat is is in the store.
func (n *Node) retire(id string) {
	n.used = slices.DeleteFunc(n.used, func(other string) bool { return other == id })
	n.vat(id).Close()
}

func (s settings) orDefault() settings {
	for _, v := range []struct {
		dst *int64
		val int64
	}{{&s.SnapshotInitial, 3}, {&s.SnapshotInterval, 200}, {&s.Cranks, 1000}, {&s.CleanUp, 1000}} {
		if *v.dst == 0 {
			*v.dst = v.val
		}
	}
	return s
}
