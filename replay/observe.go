package replay

// EventKind is what an Event tells.
type EventKind int

// Kinds of events.
const (
	Planned  EventKind = iota // all that is to be done is known: Spans, Deliveries
	Started                   // a span
	Advanced                  // Deliveries more were made of a span
	Finished                  // a span: Result. Of one whose result was known already, Cached is set and nothing was told before
)

// Event tells of progress. Events of different spans come in any order; those of a span do not. Deliveries of all Advanced and cached Finished
// events of a run that is not interrupted add up to those of Planned, but for spans that are not replayed to their end.
type Event struct {
	Kind    EventKind
	Run     int    // index into Report.Runs
	Version string // version ID
	Vat     string
	Start   int64 // position of the span's first item

	Spans      int   // Planned
	Deliveries int64 // Planned: of all; Advanced: since the last event; Finished: of the span
	Cached     bool
	Result     *Span // Finished; it is shared, and must not be changed
}
