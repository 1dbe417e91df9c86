package recipes

import (
	_ "embed"
	"errors"
	"fmt"
	"slices"

	"github.com/enginery/enginery/internal/strict"
	"github.com/enginery/enginery/moddable-pins"
)

//go:embed historic/engines.toml
var historicFile []byte

// Historic is an engine that agoric-sdk's history has pinned and that no version here has.
type Historic struct {
	Pin    string
	Pinned string // day of the first commit that pinned it
	Cause  string // why it cannot be compiled; empty if it can

	engine Engine
	fresh  Observation
}

// The schema of historic/engines.toml.
type (
	historicSchema struct {
		Like    string           `toml:"like"`
		Engine  []historicEngine `toml:"engine"`
		Failing []failingEngine  `toml:"failing"`
	}
	historicEngine struct {
		Pin           string          `toml:"pin"`
		Pinned        string          `toml:"pinned"`
		XS            string          `toml:"xs"`
		Protocol      int             `toml:"protocol"`
		HostCallbacks int             `toml:"host-callbacks"`
		Fresh         observationFile `toml:"fresh"`
	}
	failingEngine struct {
		Pin    string `toml:"pin"`
		Pinned string `toml:"pinned"`
		Cause  string `toml:"cause"`
	}
)

// HistoricEngines returns the historic engines, oldest first.
func HistoricEngines() ([]Historic, error) {
	all, _, err := parseHistoric("recipes/historic/engines.toml", historicFile)
	return all, err
}

func parseHistoric(file string, data []byte) (all []Historic, like string, err error) {
	var f historicSchema
	if err := strict.Decode(file, data, &f); err != nil {
		return nil, "", err
	}
	p := parser{file, data}
	if !slices.Contains(IDs(), f.Like) {
		return nil, "", p.errorf("like", "%v", unknown("version ID", f.Like, IDs()))
	}
	seen := make(map[string]bool)
	check := func(key, pin string) error {
		if _, err := pins.Load(pin); err != nil {
			return p.errorf(key, "%v", err)
		}
		if seen[pin] {
			return p.errorf(key, "pin %s stands here twice", pin)
		}
		seen[pin] = true
		return nil
	}
	for i, e := range f.Engine {
		key := fmt.Sprintf("engine.%d", i)
		if err := check(key+".pin", e.Pin); err != nil {
			return nil, "", err
		}
		if e.XS == "" || e.Protocol < 1 || e.HostCallbacks < 1 || e.Fresh.Snapshot == "" || e.Fresh.Size == 0 {
			return nil, "", p.errorf(key, "xs, protocol, host-callbacks and fresh, with snapshot and size, must be given")
		}
		all = append(all, Historic{
			Pin: e.Pin, Pinned: e.Pinned, fresh: Observation(e.Fresh),
			engine: Engine{XSVersion: e.XS, Protocol: e.Protocol, HostCallbacks: e.HostCallbacks, SnapshotVersion: e.XS, SnapshotSignature: "xsnap 1"},
		})
	}
	for i, e := range f.Failing {
		key := fmt.Sprintf("failing.%d", i)
		if err := check(key+".pin", e.Pin); err != nil {
			return nil, "", err
		}
		if e.Cause == "" {
			return nil, "", p.errorf(key, "the cause must be given")
		}
		all = append(all, Historic{Pin: e.Pin, Pinned: e.Pinned, Cause: e.Cause})
	}
	slices.SortStableFunc(all, func(a, b Historic) int { return naturally(a.Pinned, b.Pinned) })
	return all, f.Like, nil
}

// LoadHistoric returns the recipe of the historic engine with the given pin: an engine alone, whose ID is "engine-" and the pin.
func LoadHistoric(pin string) (*Recipe, error) {
	all, like, err := parseHistoric("recipes/historic/engines.toml", historicFile)
	if err != nil {
		return nil, err
	}
	var known []string
	for _, h := range all {
		known = append(known, h.Pin)
	}
	i := slices.Index(known, pin)
	if i < 0 {
		return nil, unknown("historic engine", pin, known)
	}
	h := all[i]
	if h.Cause != "" {
		return nil, errors.New("engine " + pin + " cannot be compiled: " + h.Cause)
	}
	r, err := Load(like)
	if err != nil {
		return nil, err
	}
	if r.Pin, err = pins.Load(pin); err != nil {
		return nil, err
	}
	fresh, err := LoadVector("fresh")
	if err != nil {
		return nil, err
	}
	r.ID = "engine-" + pin
	r.XsnapVersion = pin
	r.Bundles = nil
	r.Targets = r.Targets[:1]
	r.Goals = []string{Release}
	r.Engine = h.engine
	r.Engine.LoadsSnapshotsOf = []string{r.ID}
	r.Vectors = map[string]*Vector{fresh.Name: fresh}
	r.Golden = map[string]map[string]map[string]Observation{Release: {fresh.Name: {"fresh": h.fresh}}}
	return r, nil
}
