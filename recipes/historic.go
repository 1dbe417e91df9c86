package recipes

import (
	_ "embed"
	"errors"
	"fmt"
	"slices"
	"time"

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
	fresh  map[string]Observation
}

// freshVector is the golden vector of historic engines, and its only label.
const freshVector = "fresh"

// historicPrefix begins the IDs of historic engines, and no version ID.
const historicPrefix = "engine-"

// The schema of historic/engines.toml.
type (
	historicSchema struct {
		Like    string           `toml:"like"`
		Engine  []historicEngine `toml:"engine"`
		Failing []failingEngine  `toml:"failing"`
	}
	historicEngine struct {
		Pin               string          `toml:"pin"`
		Pinned            string          `toml:"pinned"`
		XS                string          `toml:"xs"`
		Protocol          int             `toml:"protocol"`
		HostCallbacks     int             `toml:"host-callbacks"`
		SnapshotVersion   string          `toml:"snapshot-version"`
		SnapshotSignature string          `toml:"snapshot-signature"`
		Fresh             observationFile `toml:"fresh"`
	}
	failingEngine struct {
		Pin    string `toml:"pin"`
		Pinned string `toml:"pinned"`
		Cause  string `toml:"cause"`
	}
)

// HistoricEngines returns the historic engines with the given pins, or all, oldest first.
func HistoricEngines(only ...string) ([]Historic, error) {
	all, _, err := parseHistoric("recipes/historic/engines.toml", historicFile)
	if err != nil || len(only) == 0 {
		return all, err
	}
	return pick(all, only...)
}

func pick(all []Historic, only ...string) (some []Historic, err error) {
	for _, pin := range only {
		i := slices.IndexFunc(all, func(h Historic) bool { return h.Pin == pin })
		if i < 0 {
			var known []string
			for _, h := range all {
				known = append(known, h.Pin)
			}
			return nil, unknown("historic engine", pin, known)
		}
		some = append(some, all[i])
	}
	return some, nil
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
	fresh, err := LoadVector(freshVector)
	if err != nil {
		return nil, "", err
	}
	seen := make(map[string]bool)
	check := func(at, pin, pinned string) error {
		if _, err := pins.Load(pin); err != nil {
			return p.errorf(at+".pin", "%v", err)
		}
		if seen[pin] {
			return p.errorf(at+".pin", "pin %s stands here twice", pin)
		}
		seen[pin] = true
		if _, err := time.Parse(time.DateOnly, pinned); err != nil {
			return p.errorf(at+".pinned", "pinned %q is not a day, as in 2021-08-28", pinned)
		}
		return nil
	}
	for i, e := range f.Engine {
		at := fmt.Sprintf("engine.%d", i)
		if err := check(at, e.Pin, e.Pinned); err != nil {
			return nil, "", err
		}
		for _, v := range []struct {
			key, want string
			ok        bool
		}{
			{"xs", "a version, as in 11.0.0", xsPattern.MatchString(e.XS)},
			{"protocol", "a level, 1 or more", e.Protocol > 0},
			{"host-callbacks", "a number, 1 or more", e.HostCallbacks > 0},
			{"snapshot-version", "a version, as in 11.0.0", xsPattern.MatchString(e.SnapshotVersion)},
			{"snapshot-signature", "a text", e.SnapshotSignature != ""},
		} {
			if !v.ok {
				return nil, "", p.errorf(at+"."+v.key, "%s must be %s", v.key, v.want)
			}
		}
		observed, err := p.observations(at, fresh, map[string]observationFile{freshVector: e.Fresh}, false)
		if err != nil {
			return nil, "", err
		}
		all = append(all, Historic{
			Pin: e.Pin, Pinned: e.Pinned, fresh: observed,
			engine: Engine{
				XSVersion: e.XS, Protocol: e.Protocol, HostCallbacks: e.HostCallbacks,
				SnapshotVersion: e.SnapshotVersion, SnapshotSignature: e.SnapshotSignature,
			},
		})
	}
	for i, e := range f.Failing {
		at := fmt.Sprintf("failing.%d", i)
		if err := check(at, e.Pin, e.Pinned); err != nil {
			return nil, "", err
		}
		if e.Cause == "" {
			return nil, "", p.errorf(at, "the cause must be given")
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
	picked, err := pick(all, pin)
	if err != nil {
		return nil, err
	}
	h := picked[0]
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
	fresh, err := LoadVector(freshVector)
	if err != nil {
		return nil, err
	}
	r.ID = historicPrefix + pin
	r.XsnapVersion = pin
	r.Bundles = nil
	r.Goals = []string{Release}
	r.Engine = h.engine
	r.Engine.LoadsSnapshotsOf = []string{r.ID}
	r.Vectors = map[string]*Vector{fresh.Name: fresh}
	r.Golden = map[string]map[string]map[string]Observation{Release: {fresh.Name: h.fresh}}
	return r, nil
}
