package artifact

import (
	"github.com/enginery/enginery/internal/cas"
	pins "github.com/enginery/enginery/moddable-pins"
	"github.com/enginery/enginery/recipes"
	bundles "github.com/enginery/enginery/supervisor-bundles"
)

// EngineSchema is the version of Engine's JSON.
const EngineSchema = 1

// Engine describes an engine to hosts and reviewers: what it is, what it must do, and what it was made of. It is the config of a
// platform's manifest. Digests are "hash/size", SHA-256 and bytes, unless they name OCI content.
type Engine struct {
	Schema   int    `json:"schema"`
	Version  string `json:"version"` // version ID
	Platform string `json:"platform"`
	Xsnap    string `json:"xsnap"` // what the worker calls itself
	XS       string `json:"xs"`    // XS version

	// What a host must know. See recipes.Engine.
	Protocol          int      `json:"protocol"`
	HostCallbacks     int      `json:"hostCallbacks"`
	SnapshotVersion   string   `json:"snapshotVersion"`   // VERS
	SnapshotSignature string   `json:"snapshotSignature"` // SIGN
	LoadsSnapshotsOf  []string `json:"loadsSnapshotsOf"`  // version IDs
	Meter             string   `json:"meter"`
	Consensus         []string `json:"consensus"` // goals whose worker may serve consensus; the debug worker counts other computrons

	// What it must show: goal, vector, label.
	Golden map[string]map[string]map[string]Observation `json:"golden"`

	// What it was made of.
	Recipe      cas.Digest            `json:"recipe"`
	Moddable    Component             `json:"moddable"`
	XsnapNative Component             `json:"xsnapNative"`
	Bundles     map[string]Bundle     `json:"bundles,omitempty"` // "lockdown" and "supervisor"
	Toolchain   Toolchain             `json:"toolchain"`
	Actions     map[string]cas.Digest `json:"actions"` // by goal: the Remote Execution API action that made the worker
}

// Observation is what a step of a golden vector must show; what is zero was not asked for. See recipes.Observation.
type Observation struct {
	Snapshot  string `json:"snapshot,omitempty"`
	Size      int64  `json:"size,omitempty"`
	Compute   int64  `json:"compute,omitempty"`
	Allocate  int64  `json:"allocate,omitempty"`
	HeapCount int64  `json:"heapCount,omitempty"`
	Reply     string `json:"reply,omitempty"`
}

// Component is a source tree.
type Component struct {
	Commit  string     `json:"commit"`
	Tree    cas.Digest `json:"tree"`
	License string     `json:"license"` // SPDX expression
}

// Bundle is a lockdown or supervisor bundle.
type Bundle struct {
	Package string     `json:"package"`
	Version string     `json:"version"`
	ID      string     `json:"id"` // SwingSet's bundle ID
	Digest  cas.Digest `json:"digest"`
}

// Toolchain is what compiled the engine.
type Toolchain struct {
	Name  string     `json:"name"`
	Image string     `json:"image"` // OCI digest
	Root  cas.Digest `json:"root"`
}

func describe(r *recipes.Recipe, digest cas.Digest, t recipes.Target, actions map[string]cas.Digest) *Engine {
	e := &Engine{
		Schema:            EngineSchema,
		Version:           r.ID,
		Platform:          t.Platform,
		Xsnap:             r.XsnapVersion,
		XS:                r.Engine.XSVersion,
		Protocol:          r.Engine.Protocol,
		HostCallbacks:     r.Engine.HostCallbacks,
		SnapshotVersion:   r.Engine.SnapshotVersion,
		SnapshotSignature: r.Engine.SnapshotSignature,
		LoadsSnapshotsOf:  r.Engine.LoadsSnapshotsOf,
		Meter:             r.Engine.Meter,
		Consensus:         r.Engine.Consensus,
		Golden:            make(map[string]map[string]map[string]Observation),
		Recipe:            digest,
		Moddable:          component(r.Pin.Moddable),
		XsnapNative:       component(r.Pin.XsnapNative),
		Toolchain:         Toolchain{Name: t.Toolchain.Name, Image: t.Toolchain.Image.String(), Root: t.Toolchain.Root},
		Actions:           actions,
	}
	for goal, vectors := range r.Golden {
		e.Golden[goal] = make(map[string]map[string]Observation)
		for vector, labels := range vectors {
			e.Golden[goal][vector] = make(map[string]Observation)
			for label, o := range labels {
				e.Golden[goal][vector][label] = Observation(o)
			}
		}
	}
	if r.Bundles != nil {
		e.Bundles = map[string]Bundle{"lockdown": bundle(r.Bundles.Lockdown), "supervisor": bundle(r.Bundles.Supervisor)}
	}
	return e
}

func component(c pins.Component) Component {
	return Component{Commit: c.Commit, Tree: c.Tree, License: c.License}
}

func bundle(b bundles.Bundle) Bundle {
	return Bundle{Package: b.Name, Version: b.Version, ID: b.ID(), Digest: b.SHA256}
}
