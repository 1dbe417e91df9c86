package replay

import "github.com/enginery/enginery/replay/classification"

// Level says how much of what a version did is as it was recorded.
type Level = classification.Level

// Levels, worst first.
const (
	Divergent     = classification.Divergent
	SameOutcome   = classification.SameOutcome
	SameBehaviour = classification.SameBehaviour
	Identical     = classification.Identical
)

// Levels are the names of all levels, worst first.
var Levels = classification.Levels

// Dimension is in what respect something differs.
type Dimension string

// Dimensions of differences. Each bounds the level that a span can reach.
const (
	MissingSyscall   Dimension = "missing-syscall"   // recorded, and not made
	ExtraSyscall     Dimension = "extra-syscall"     // made, and not recorded
	WrongSyscall     Dimension = "wrong-syscall"     // another was made in its place
	ReorderedSyscall Dimension = "reordered-syscall" // vatstore reads or syscalls of garbage collection, in another order
	MisplacedSyscall Dimension = "misplaced-syscall" // any other syscall, in another order
	Status           Dimension = "status"            // of a delivery: ok or error
	Computrons       Dimension = "computrons"        // that a delivery used
	HeapSnapshot     Dimension = "heap-snapshot"     // its hash
	Structure        Dimension = "structure"         // of the transcript: an item that cannot stand where it stands
	WorkerExit       Dimension = "worker-exit"       // the worker ended, or was no worker any more
	Timeout          Dimension = "timeout"           // a delivery took longer than it may
)

// Dimensions are all dimensions, in the order in which reports list them.
var Dimensions = []Dimension{
	MissingSyscall, ExtraSyscall, WrongSyscall, ReorderedSyscall, MisplacedSyscall, Status, Computrons, HeapSnapshot, Structure, WorkerExit, Timeout,
}

// Level returns the best level that is left after a difference in the dimension.
func (d Dimension) Level() Level {
	switch d {
	case Computrons, HeapSnapshot:
		return SameBehaviour
	case ReorderedSyscall:
		return SameOutcome
	}
	return Divergent
}
