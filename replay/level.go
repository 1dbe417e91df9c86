package replay

import "fmt"

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
	return fmt.Errorf("level %q: expected one of %v", text, Levels)
}

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
