// Package vattest gives tests the engines of vats.
package vattest

import (
	"fmt"
	"sync"
	"testing"

	"github.com/enginery/enginery/internal/enginetest"
	"github.com/enginery/enginery/recipes"
	"github.com/enginery/enginery/vat"
	"github.com/enginery/enginery/xsnap"
)

// Engines returns engines of versions, each built if it is not yet. There are no others.
func Engines(t testing.TB, versions ...string) func(version string) (*vat.Engine, error) {
	t.Helper()
	all := make(map[string]*vat.Engine)
	for _, version := range versions {
		r := enginetest.Recipe(t, version)
		e := &vat.Engine{Version: version, LoadsSnapshotsOf: r.Engine.LoadsSnapshotsOf, Worker: xsnap.Options{
			Version: version, Path: enginetest.Worker(t, version, "linux/amd64", recipes.Release),
			Protocol: r.Engine.Protocol, MeterType: r.Engine.Meter,
		}}
		e.Lockdown, e.Supervisor = enginetest.Bundles(t, r)
		all[version] = e
	}
	return func(version string) (*vat.Engine, error) {
		if e := all[version]; e != nil {
			return e, nil
		}
		return nil, fmt.Errorf("%s is not installed", version)
	}
}

// Vats are the vats of a test, by ID.
type Vats struct {
	Options vat.Options // but for the ID

	mu  sync.Mutex
	all map[string]*vat.Vat
}

// Get returns a vat. It ends with the test.
func (v *Vats) Get(t testing.TB, id string) *vat.Vat {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.all == nil {
		v.all = make(map[string]*vat.Vat)
	}
	if v.all[id] == nil {
		o := v.Options
		o.ID = id
		one := vat.New(o)
		v.all[id] = one
		t.Cleanup(func() { one.Close() })
	}
	return v.all[id]
}
