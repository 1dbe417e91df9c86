// Package report shows what came of replaying transcripts: as a page for reviewers, as JSON, as JUnit XML for CI, as text, and live while it
// goes on.
package report

import (
	"encoding/json"
	"io"

	"github.com/enginery/enginery/replay"
)

// WriteJSON writes a report as docs/replay-report.schema.json says, in one line: a store with many vats has millions of numbers.
func WriteJSON(w io.Writer, r *replay.Report) error {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	return e.Encode(r)
}

// WriteClassification writes a classification as docs/replay-classification.schema.json says.
func WriteClassification(w io.Writer, c *replay.Classification) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(c)
}
