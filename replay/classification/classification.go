// Package classification has what a comparison of two versions says of each vat: what rollout plans take in. Package replay writes it. Who only reads
// it, as a chain does, needs neither a replayer nor what that needs.
package classification

import (
	"fmt"
	"strings"
)

// Class is what is to become of a vat when a chain goes over from one version to another.
type Class string

// Classes of vats.
const (
	Resume  Class = "resume"  // it can go on on the new version, from its heap snapshot
	Upgrade Class = "upgrade" // it must be upgraded, or migrated, since its heap snapshot is of no use there
	Stay    Class = "stay"    // it diverges: it stays on the old version
)

// Ways to bring a vat to another version.
const (
	WaySnapshot    = "snapshot"    // the new version loads its heap snapshot
	WayMigration   = "migration"   // the incarnation's whole transcript is replayed on the new version, which writes a new heap snapshot (#7855)
	WayIncarnation = "incarnation" // an upgrade: startVat on the new version
)

// Schema names the format of a classification in JSON.
const Schema = "enginery.replay.classification/v1"

// Classification says of each vat what it takes to bring it from one version to another: what a rollout plan takes in.
type Classification struct {
	Schema string       `json:"schema"`
	From   string       `json:"from"` // version
	To     string       `json:"to"`   // version
	Vats   []Classified `json:"vats"` // by number of vat; those that are terminated are left out
}

// Classified is a vat in a classification.
type Classified struct {
	Vat    string `json:"vat"`
	Name   string `json:"name,omitempty"`
	Class  Class  `json:"class"`
	Reason string `json:"reason"`
	Ways   []Way  `json:"ways"` // all that were tried, in the order of the constants
}

// Way is a way to bring a vat to another version, and whether it works.
type Way struct {
	Way    string `json:"way"`
	Works  bool   `json:"works"`
	Level  *Level `json:"level,omitempty"` // that replaying reached
	Reason string `json:"reason"`

	Computrons int64  `json:"computrons,omitempty"` // of startVat, or of all deliveries that were replayed
	Snapshot   string `json:"snapshot,omitempty"`   // SHA-256 of the heap snapshot from which the new version goes on
	Size       int64  `json:"size,omitempty"`       // bytes of that
	File       string `json:"file,omitempty"`       // where it was written
	Position   int64  `json:"position,omitempty"`   // of the transcript that it stands for: all items before this
}

// Level says how much of what a version did is as it was recorded (agoric-sdk #6596). A greater one is better.
type Level int

// Levels, worst first.
const (
	Divergent     Level = iota // what the vat does is something else
	SameOutcome                // as SameBehaviour, but vatstore reads and syscalls of garbage collection may come in another order
	SameBehaviour              // syscalls and results; computrons and heap snapshots may differ
	Identical                  // syscalls, results, computrons, and the heap snapshot at the end of the span
)

// Levels are the names of all levels, worst first.
var Levels = []string{"divergent", "same-outcome", "same-behaviour", "identical"}

func (l Level) String() string {
	if l < 0 || int(l) >= len(Levels) {
		return fmt.Sprintf("level %d", int(l))
	}
	return Levels[l]
}

// MarshalText returns the level's name.
func (l Level) MarshalText() ([]byte, error) { return []byte(l.String()), nil }

// UnmarshalText reads a level's name.
func (l *Level) UnmarshalText(text []byte) error {
	for i, name := range Levels {
		if name == string(text) {
			*l = Level(i)
			return nil
		}
	}
	return fmt.Errorf("level %q: expected one of %s", text, strings.Join(Levels, ", "))
}
