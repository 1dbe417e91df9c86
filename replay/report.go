package replay

import "github.com/enginery/enginery/replay/classification"

// Schema names the format of a report in JSON: docs/replay-report.schema.json.
const Schema = "enginery.replay.report/v1"

// Report is what came of replaying the transcripts of a store, on one version or on several. Everything in it has a fixed order, and the
// same input gives the same report but for its times, which are what WithoutTimes leaves out.
type Report struct {
	Schema string   `json:"schema"`
	Source Source   `json:"source"`
	Passes Level    `json:"passes"` // the level that passes
	Runs   []Column `json:"runs"`   // columns of the matrix
	Vats   []Vat    `json:"vats"`   // rows of the matrix, by number of vat

	Classification *Classification `json:"classification,omitempty"` // of a comparison of two versions

	Seconds float64 `json:"seconds,omitempty"` // that it took
}

// Source is where transcripts came from.
type Source struct {
	Path string `json:"path"`
	Kind string `json:"kind"` // "swing-store", "export", "slog", "transcript"
}

// Start is where replays start.
type Start string

// Starts of replays.
const (
	FromSnapshots Start = "snapshots" // each span from the heap snapshot that it began with; from the nearest earlier one if that is not there
	FromBundles   Start = "bundles"   // each incarnation from its beginning, in one go
)

// Column is one version, as all vats were replayed on it.
type Column struct {
	Version string `json:"version"`
	Debug   bool   `json:"debug,omitempty"` // its debug worker
	Engine  string `json:"engine"`          // digest of the worker: "sha256:…"
	Start   Start  `json:"start"`
	Bundles string `json:"bundles"` // lockdown and supervisor: "recorded", as the store has them, or "version", as the version has them
	Reload  bool   `json:"reload"`  // the worker is started anew from each heap snapshot that it takes, as the chain did
}

// Name returns what a person calls the engine.
func (c Column) Name() string {
	if c.Debug {
		return c.Version + " (debug)"
	}
	return c.Version
}

// Vat is a vat, and what came of it in each run.
type Vat struct {
	ID           string `json:"vat"`
	Name         string `json:"name,omitempty"`
	Static       bool   `json:"static,omitempty"`
	Terminated   bool   `json:"terminated,omitempty"`
	Incarnations int    `json:"incarnations"` // of which there are spans
	Spans        int    `json:"spans"`
	Items        int64  `json:"items"`

	Runs []VatRun `json:"runs"` // one for each of the report's
}

// VatRun is a vat in a run: a cell of the matrix.
type VatRun struct {
	Totals
	Spans  []Span `json:"spans"`
	Series Series `json:"series"`
}

// Totals sum up spans.
type Totals struct {
	Level Level           `json:"level"` // the worst of all that was replayed; divergent if a span was stopped, refused or damaged, or none was replayed
	Count map[Outcome]int `json:"count"` // of spans

	Deliveries  int64               `json:"deliveries"`  // that were made
	Differences map[Dimension]int64 `json:"differences"` // all that there were, also those that are not listed
	Computrons  Computron           `json:"computrons"`
	HeapCount   int64               `json:"heapCount"`         // slots, the most that there were
	Allocated   int64               `json:"allocated"`         // bytes, the most that there were
	Snapshot    int64               `json:"snapshot"`          // bytes of the last heap snapshot that was taken
	Seconds     float64             `json:"seconds,omitempty"` // that it took, one after the other
}

// Computron is a number of computrons, of deliveries for which both were seen.
type Computron struct {
	Expected int64 `json:"expected"` // recorded
	Got      int64 `json:"got"`
}

// Outcome is what became of a span, apart from how much was the same.
type Outcome string

// Outcomes of spans. Only a span that was replayed says anything of a version; one that was not tells what is missing.
const (
	Replayed    Outcome = "replayed"    // to its end
	Stopped     Outcome = "stopped"     // a difference, which is listed, was the end of the worker
	Refused     Outcome = "refused"     // the version does not load the heap snapshot that the span begins with
	Unreached   Outcome = "unreached"   // it could only follow on one that was not replayed to its end
	Unavailable Outcome = "unavailable" // the source no longer has its items, or nothing to start from
	Damaged     Outcome = "damaged"     // the source is not what it says it is
)

// Outcomes are all outcomes, in the order in which reports list them.
var Outcomes = []Outcome{Replayed, Stopped, Refused, Unreached, Unavailable, Damaged}

// Span is what became of a span.
type Span struct {
	Start       int64   `json:"start"` // position of its first item
	End         int64   `json:"end"`   // position after its last
	Incarnation int64   `json:"incarnation"`
	Hash        string  `json:"hash"` // that the source says
	Outcome     Outcome `json:"outcome"`
	Reason      string  `json:"reason,omitempty"` // of any outcome but Replayed
	From        string  `json:"from,omitempty"`   // "snapshot HASH", "bundles", or "span START", which it followed on

	Level       Level               `json:"level"` // of what was replayed of it
	Deliveries  int64               `json:"deliveries"`
	Differences map[Dimension]int64 `json:"differences"`
	Listed      []Difference        `json:"listed,omitempty"` // the first of each dimension
	Computrons  Computron           `json:"computrons"`
	HeapCount   int64               `json:"heapCount"`          // at its end
	Allocated   int64               `json:"allocated"`          // bytes, at its end
	Snapshot    *Snapshot           `json:"snapshot,omitempty"` // that was taken at its end

	Seconds float64 `json:"seconds,omitempty"`
}

// Snapshot is a heap snapshot that was taken where the transcript has one.
type Snapshot struct {
	Expected string `json:"expected"` // SHA-256, recorded
	Got      string `json:"got"`
	Size     int64  `json:"size"` // bytes
}

// Difference is something that a version does otherwise than recorded.
type Difference struct {
	Vat         string    `json:"vat"`
	Incarnation int64     `json:"incarnation"`
	Span        int64     `json:"span"`     // position of its first item
	Position    int64     `json:"position"` // of the item
	Delivery    string    `json:"delivery"` // JSON, or the beginning of it
	Dimension   Dimension `json:"dimension"`
	Syscall     int       `json:"syscall"` // its index in the delivery, for dimensions of syscalls

	// Expected and Got are a syscall in JSON, or shortened if it is very long, a status, a number of computrons, a hash, or a word. One of
	// them is empty if there was nothing.
	Expected string `json:"expected,omitempty"`
	Got      string `json:"got,omitempty"`

	Meter      Meter  `json:"meter"`                // after the delivery, as far as it went
	Reproducer string `json:"reproducer,omitempty"` // path of the file that Reproduce runs alone
}

// Meter is what a worker says of a delivery.
type Meter struct {
	Computrons int64 `json:"computrons"`
	Allocated  int64 `json:"allocated"` // bytes, so far
	HeapCount  int64 `json:"heapCount"` // slots
}

// Series is how a vat went on, as columns of the same length: for plots. A point stands for so many deliveries, one after another, that there
// are at most MaxPoints of a vat.
type Series struct {
	Position   []int64   `json:"position"`   // of the point's first delivery
	Deliveries []int64   `json:"deliveries"` // that the point stands for
	Expected   []int64   `json:"expected"`   // computrons of all of them, recorded
	Got        []int64   `json:"got"`        // computrons of all of them
	HeapCount  []int64   `json:"heapCount"`  // slots, the most
	Allocated  []int64   `json:"allocated"`  // bytes, the most
	Seconds    []float64 `json:"seconds,omitempty"`
}

// MaxPoints bounds a vat's series.
const MaxPoints = 2000

// What Compare says of vats.
type (
	Classification = classification.Classification
	Classified     = classification.Classified
	Class          = classification.Class
	Way            = classification.Way
)

// Classes of vats.
const (
	Resume  = classification.Resume
	Upgrade = classification.Upgrade
	Stay    = classification.Stay
)

// Ways to bring a vat to another version.
const (
	WaySnapshot    = classification.WaySnapshot
	WayMigration   = classification.WayMigration
	WayIncarnation = classification.WayIncarnation
)

// ClassificationSchema names the format of a classification in JSON.
const ClassificationSchema = classification.Schema
