package replay

import (
	"context"
	"encoding/json"

	"github.com/enginery/enginery/swingstore"
	"github.com/enginery/enginery/vat"
)

// piece is what one worker does in one go, and what jobs share among them: spans that follow upon each other, from a heap snapshot or bundles.
type piece struct {
	run      *runner
	vat      swingstore.Vat
	spans    []swingstore.Span
	snapshot *swingstore.Snapshot // nil: it begins with bundles
	end      int64                // of the vat's last span
	keep     string               // file for the last heap snapshot that is taken before its end; "": none
}

// length estimates how long a piece takes, in computrons. It only says what is begun with.
func (p *piece) length(ctx context.Context) int64 {
	const (
		bundles  = 100_000_000 // for a start from bundles
		snapshot = 5_000_000   // for loading a heap snapshot, of which there is one a span
		item     = 300_000
		read     = 3 // items: after a start from bundles comes startVat, which may cost much
	)
	n := int64(snapshot * len(p.spans))
	for _, s := range p.spans {
		n += item * (s.End - s.Start)
	}
	if p.snapshot != nil {
		return n
	}
	n += bundles
	left := read
	for i, err := range p.run.source.Items(ctx, p.spans[0]) {
		var e vat.Entry
		if err != nil || json.Unmarshal(i.Text, &e) != nil {
			break // whoever replays it will see
		}
		if e.Result.Metering != nil {
			n += e.Result.Metering.Computrons
		}
		if left--; left == 0 {
			break
		}
	}
	return n
}

// deliveries returns how many deliveries a piece has, if each of its spans begins, and each but a vat's last ends, with a pseudo-delivery.
func (p *piece) deliveries() (n int64) {
	for _, s := range p.spans {
		k := s.End - s.Start - 1
		if s.End < p.end {
			k--
		}
		n += max(0, k)
	}
	return n
}

// plan divides a vat's spans into pieces.
func (r *runner) plan(v swingstore.Vat, spans []swingstore.Span, snapshots []swingstore.Snapshot) []*piece {
	present := make(map[int64]*swingstore.Snapshot)
	for i, s := range snapshots {
		if s.Present {
			present[s.Position+1] = &snapshots[i]
		}
	}
	var pieces []*piece
	for i, s := range spans {
		p := &piece{run: r, vat: v, spans: spans[i : i+1 : i+1], end: spans[len(spans)-1].End}
		first := i == 0 || spans[i-1].Incarnation != s.Incarnation
		if !first && r.column.Start == FromSnapshots {
			p.snapshot = present[s.Start]
		}
		if first || p.snapshot != nil {
			pieces = append(pieces, p)
			continue
		}
		last := pieces[len(pieces)-1]
		last.spans = append(last.spans, s)
	}
	return pieces
}
