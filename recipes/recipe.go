// Package recipes holds one TOML file a version ID: everything that goes into the version's artifact, and what its engine
// must do to be it.
//
// A [Recipe] is closed: what its file refers to by name (a pin, a bundle pair, toolchains, golden vectors) is resolved,
// and [Recipe.Digest] covers the content of all of it. Equal digests mean equal outputs.
package recipes

import (
	"slices"
	"strings"

	"github.com/enginery/enginery/moddable-pins"
	"github.com/enginery/enginery/supervisor-bundles"
	"github.com/enginery/enginery/toolchain"
)

// Schema is the version of the recipe files' schema and of the closed recipe's JSON. It is part of every recipe's digest.
const Schema = 1

// The goals of upstream's makefile. The debug worker counts other computrons than the release worker.
const (
	Release = "release"
	Debug   = "debug"
)

// Recipe is everything that goes into one version.
type Recipe struct {
	ID           string                                       // version ID: "agoric-upgrade-16"
	XsnapVersion string                                       // what the worker calls itself: "0.14.3-u16.1"
	Pin          *pins.Pin                                    // sources of the engine
	Bundles      *bundles.Pair                                // nil: the version is an engine alone
	Targets      []Target                                     // in the file's order
	Goals        []string                                     // Release, Debug or both
	Make         Make                                         // how upstream's makefile is driven
	CFlags       []string                                     // added to upstream's, when compiling and when linking
	LDFlags      []string                                     // in place of upstream's
	Engine       Engine                                       // what a host must know
	Golden       map[string]map[string]map[string]Observation // goal -> vector -> label -> what must be observed
	Vectors      map[string]*Vector                           // the vectors that Golden names
}

// Target is a platform and what compiles for it.
type Target struct {
	Platform  string // as in OCI: "linux/amd64"
	Toolchain *toolchain.Toolchain
	LDFlags   []string // added to the recipe's
}

// Make says how upstream's makefile is driven. Variables and Output are templates, see [Recipe.MakeArgs].
type Make struct {
	Directory string   // where make runs, below the root that holds moddable/ and xsnap-native/
	File      string   // the makefile, in Directory
	Variables []string // NAME=value, sorted
	Output    string   // the worker, below the root
}

// Engine is the engine description: what a host must know to drive the engine and to trust its snapshots. It is stated,
// and tested by the golden vectors; nothing of it may be inferred from a version number.
type Engine struct {
	XSVersion         string   // of the worker's -v: "13.3.0"
	Protocol          int      // level of the worker's wire protocol
	HostCallbacks     int      // entries of the worker's own table, to which snapshots refer by index
	SnapshotVersion   string   // major.minor.patch of a snapshot's VERS atom: "13.3.0"
	SnapshotSignature string   // a snapshot's SIGN atom: "xsnap 1"
	LoadsSnapshotsOf  []string // version IDs, its own among them
	Meter             string   // label of the computron scale: "xs-meter-28"
	Consensus         []string // goals whose worker may serve consensus: Release, never Debug
}

// Observation is what a step of a vector must show. A zero field was not asked for.
type Observation struct {
	Snapshot  string // SHA-256 of the heap snapshot, lower-case hex
	Size      int64  // bytes of the heap snapshot
	Compute   int64  // computrons of the step
	Allocate  int64  // bytes that the worker has allocated so far
	HeapCount int64  // live slots
	Reply     string // the worker's reply, or the exception's text
}

// Target returns the target for a platform.
func (r *Recipe) Target(platform string) (Target, bool) {
	for _, t := range r.Targets {
		if t.Platform == platform {
			return t, true
		}
	}
	return Target{}, false
}

// MakeArgs returns the command line that compiles the worker for a target and goal: make and its arguments, to be run
// in r.Make.Directory below root, the absolute path of the directory that holds moddable/ and xsnap-native/. The number of
// jobs is not part of it: it changes nothing.
//
// The templates' placeholders are {root}, {goal}, {xsnap} (the xsnap version), {cc} (the toolchain's compiler), {cflags}
// and {ldflags}. Flags are quoted for the shell that make starts.
func (r *Recipe) MakeArgs(t Target, goal, root string) []string {
	words := func(flags []string) string {
		quoted := make([]string, len(flags))
		for i, f := range flags {
			quoted[i] = quote(strings.ReplaceAll(f, "{root}", root))
		}
		return strings.Join(quoted, " ")
	}
	fill := strings.NewReplacer(
		"{root}", root,
		"{goal}", goal,
		"{xsnap}", r.XsnapVersion,
		"{cc}", t.Toolchain.Compiler,
		"{cflags}", words(r.CFlags),
		"{ldflags}", words(slices.Concat(r.LDFlags, t.LDFlags)),
	)
	args := []string{"make", "-f", r.Make.File}
	for _, v := range r.Make.Variables {
		args = append(args, fill.Replace(v))
	}
	return args
}

// Output returns the path of the compiled worker below the root.
func (r *Recipe) Output(goal string) string {
	return strings.ReplaceAll(r.Make.Output, "{goal}", goal)
}

// quote writes a flag as one word of the shell, in the value of a variable of make.
func quote(flag string) string {
	if strings.ContainsFunc(flag, func(c rune) bool {
		return !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.ContainsRune("-_+=.,/:@%", c))
	}) {
		flag = "'" + strings.ReplaceAll(flag, "'", `'\''`) + "'"
	}
	return strings.ReplaceAll(flag, "$", "$$")
}

// Loads reports whether the engine loads heap snapshots that the version id has written.
func (e *Engine) Loads(id string) bool { return slices.Contains(e.LoadsSnapshotsOf, id) }
