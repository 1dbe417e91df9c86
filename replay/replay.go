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

	Passes Level // the level that passes; 0: SameBehaviour. A report says it, and a classification goes by it

	Jobs    int           // workers at a time; 0: one for each CPU
	Timeout time.Duration // of a delivery; 0: DefaultTimeout

	// Cache is the folder where results are kept. What is there is not done again, so an interrupted run goes on. Empty: none.
	Cache string

	// Reproducers is the folder for files that Reproduce runs: each shows one difference, the first of its dimension of a vat. Empty: none.
	Reproducers string

	// Snapshots is the folder where Compare writes the heap snapshots from which vats go on that are migrated. Empty: none.
	Snapshots string

	Observe func(Event) // nil: nobody; one call at a time
}

func (o *Options) passes() Level {
	if o.Passes == Divergent {
		return SameBehaviour
	}
	return o.Passes
}

// DefaultTimeout is how long a delivery may take.
const DefaultTimeout = 10 * time.Minute

// DefaultListed is how many differences of each dimension are listed of a span. All are counted.
const DefaultListed = 5
