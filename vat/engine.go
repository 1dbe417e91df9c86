package vat

import (
	"encoding/json"
	"fmt"
	"slices"

	"github.com/enginery/enginery/engines"
	"github.com/enginery/enginery/swingstore"
	"github.com/enginery/enginery/xsnap"
)

// Engine is a version as vats run on it.
type Engine struct {
	Version          string
	Worker           xsnap.Options // what starts its worker
	LoadsSnapshotsOf []string      // versions, its own among them

	Lockdown, Supervisor []byte // bundles, as they were published: for vats that start on it
}

// Installed returns an installed engine as vats run on it.
func Installed(e *engines.Engine) (*Engine, error) {
	config, err := e.Config.Read()
	if err != nil {
		return nil, fmt.Errorf("reading the description of %s: %w", e.Version, err)
	}
	var d struct {
		LoadsSnapshotsOf []string `json:"loadsSnapshotsOf"`
	}
	if err := json.Unmarshal(config, &d); err != nil {
		return nil, fmt.Errorf("reading the description of %s: %w", e.Version, err)
	}
	v := &Engine{Version: e.Version, Worker: xsnap.Options{Engine: e}, LoadsSnapshotsOf: d.LoadsSnapshotsOf}
	if v.Lockdown, err = e.Lockdown.Read(); err != nil {
		return nil, fmt.Errorf("reading the lockdown bundle of %s: %w", e.Version, err)
	}
	if v.Supervisor, err = e.Supervisor.Read(); err != nil {
		return nil, fmt.Errorf("reading the supervisor bundle of %s: %w", e.Version, err)
	}
	return v, nil
}

// InstalledIn returns a function for Options.Engines: of the engines that a node has, by version or channel.
func InstalledIn(s *engines.Store) func(name string) (*Engine, error) {
	return func(name string) (*Engine, error) {
		e, err := s.Find(name)
		if err != nil {
			return nil, err
		}
		return Installed(e)
	}
}

// bundleIDs returns the IDs of lockdown and supervisor.
func (e *Engine) bundleIDs() ([]string, error) {
	ids := make([]string, 2)
	for i, bundle := range [][]byte{e.Lockdown, e.Supervisor} {
		var err error
		if ids[i], err = swingstore.ParseBundle(bundle); err != nil {
			return nil, fmt.Errorf("the bundles of %s: %w", e.Version, err)
		}
	}
	return ids, nil
}

// Bundle returns lockdown or supervisor by its ID. Any other is swingstore.ErrNotFound.
func (e *Engine) Bundle(id string) ([]byte, error) {
	ids, err := e.bundleIDs()
	if err != nil {
		return nil, err
	}
	switch id {
	case ids[0]:
		return e.Lockdown, nil
	case ids[1]:
		return e.Supervisor, nil
	}
	return nil, fmt.Errorf("%s has no bundle %s: %w", e.Version, id, swingstore.ErrNotFound)
}

// CheckSnapshot returns a *SnapshotRefusedError if the engine does not load heap snapshots that a version wrote. Its description decides;
// what is in a heap snapshot does not tell.
func (e *Engine) CheckSnapshot(vat, hash, writer string) error {
	if slices.Contains(e.LoadsSnapshotsOf, writer) {
		return nil
	}
	return &SnapshotRefusedError{Vat: vat, Hash: hash, Writer: writer, Engine: e.Version, Loads: e.LoadsSnapshotsOf}
}

// SnapshotRefusedError says that an engine must not load a heap snapshot, since another wrote it.
type SnapshotRefusedError struct {
	Vat, Hash string
	Writer    string // version that wrote it
	Engine    string // version that should load it
	Loads     []string
}

func (e *SnapshotRefusedError) Error() string {
	return fmt.Sprintf("%s cannot go on on %s: %s wrote its heap snapshot %s, and %s loads those of %v; run it on %s, or upgrade it",
		e.Vat, e.Engine, e.Writer, e.Hash, e.Engine, e.Loads, e.Writer)
}
