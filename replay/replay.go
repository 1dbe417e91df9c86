// Package replay replays the transcripts of vats on a version of the engine, and says what is the same as recorded, and what is not and where.
//
// Run replays a source on one version, Compare on two, Reproduce a single difference. All return a Report.
package replay

import "time"

// Options say what is replayed, and how.
type Options struct {
	Vats  []string // IDs or names; none: all
	Start Start    // empty: FromSnapshots

	// VersionBundles has workers that start from bundles take the version's own lockdown and supervisor, not those that the transcript names.
	VersionBundles bool
	KeepWorker     bool // it is not started anew from each heap snapshot that it takes, as the chain does by default

	Passes Level // what Report.Passes says; it changes nothing of what is done

	Jobs    int           // workers at a time; 0: one for each CPU
	Timeout time.Duration // of a delivery; 0: DefaultTimeout

	// Cache is the folder where results are kept. What is there is not done again, so an interrupted run goes on. Empty: none.
	Cache string

	// Reproducers is the folder for files that show one difference each, the first of each dimension of a span. Empty: none are written.
	Reproducers string

	// Archives are folders with spans and heap snapshots that a node has removed from its store (vat-transcript-archive-dir and
	// vat-snapshot-archive-dir in agoric-sdk's app.toml).
	Archives []string

	Observe func(Event) // nil: nobody; one call at a time
}

// DefaultTimeout is how long a delivery may take.
const DefaultTimeout = 10 * time.Minute

// DefaultListed is how many differences of each dimension are listed of a span. All are counted.
const DefaultListed = 5
