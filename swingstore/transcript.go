package swingstore

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"fmt"
	"iter"
	"strconv"
)

// Span is a part of a vat's transcript, between two heap snapshots or incarnations.
type Span struct {
	Vat         string
	Start, End  int64 // positions in the vat's transcript; End is the next span's Start
	Hash        string
	Current     bool
	Incarnation int64
	Engine      string // version that ran it; empty: the legacy version
}

func (s Span) String() string { return fmt.Sprintf("span %d-%d of %s", s.Start, s.End, s.Vat) }

// Item is an item of a transcript.
type Item struct {
	Position int64
	Text     []byte // JSON, as it was hashed
}

// Spans returns the spans of a vat, oldest first. It is a *DamagedError if they do not follow upon each other from position 0.
func (r *Reader) Spans(ctx context.Context, vat string) ([]Span, error) {
	rows, err := r.query(ctx, "SELECT startPos, endPos, hash, isCurrent, incarnation FROM transcriptSpans WHERE vatID = ? ORDER BY startPos", vat)
	if err != nil {
		return nil, r.wrap(err, "reading the spans of %s", vat)
	}
	defer rows.Close()
	var spans []Span
	for rows.Next() {
		s := Span{Vat: vat}
		var current sql.NullInt64
		if err := rows.Scan(&s.Start, &s.End, &s.Hash, &current, &s.Incarnation); err != nil {
			return nil, r.wrap(err, "reading the spans of %s", vat)
		}
		s.Current = current.Valid
		var end, incarnation int64
		if n := len(spans); n > 0 {
			end, incarnation = spans[n-1].End, spans[n-1].Incarnation
		}
		switch {
		case s.Start != end:
			return nil, r.damaged(s.String(), fmt.Sprintf("a span that starts at %d", end), strconv.FormatInt(s.Start, 10))
		case s.End < s.Start:
			return nil, r.damaged(s.String(), "an end that is not before its start", strconv.FormatInt(s.End, 10))
		case s.Incarnation < incarnation || s.Incarnation > incarnation+1:
			return nil, r.damaged(s.String(), fmt.Sprintf("incarnation %d or the next", incarnation), strconv.FormatInt(s.Incarnation, 10))
		}
		spans = append(spans, s)
	}
	if err := rows.Err(); err != nil {
		return nil, r.wrap(err, "reading the spans of %s", vat)
	}
	rows.Close()
	engine, err := r.enginesOf(ctx, vat)
	if err != nil {
		return nil, err
	}
	for i := range spans {
		spans[i].Engine = engine(spans[i].Start)
	}
	return spans, nil
}

// Current returns the span that a vat is in. It is ErrNotFound if it is in none.
func (r *Reader) Current(ctx context.Context, vat string) (Span, error) {
	s := Span{Vat: vat, Current: true}
	err := r.row(ctx, "SELECT startPos, endPos, hash, incarnation FROM transcriptSpans WHERE vatID = ? AND isCurrent = 1", vat).Scan(&s.Start, &s.End, &s.Hash, &s.Incarnation)
	if err != nil {
		return s, r.wrap(err, "reading the current span of %s", vat)
	}
	s.Engine, err = r.engineAt(ctx, vat, s.Start)
	return s, err
}

// StartHash is the hash of a span without items.
var StartHash = sum("start of transcript span")

// NextHash returns the hash of a span to which an item was added (swing-store, src/transcriptStore.js, updateSpanHash).
func NextHash(hash string, item []byte) string {
	s := sha256.Sum256(item)
	return sum(hash + hex.EncodeToString(s[:]))
}

func sum(s string) string {
	h := sha256.Sum256([]byte(s))
	return hex.EncodeToString(h[:])
}

// batch is what is read in one query, so that a node's writer never waits for who works on items.
const batchItems, batchBytes = 256, 1 << 20

// Items returns the items of a span in their order, and then an error if none of them is there any more (ErrPruned), or not all, or they have not
// the span's hash (*DamagedError): who has seen the end without an error has seen the true items. It may be ranged over more than once.
func (r *Reader) Items(ctx context.Context, s Span) iter.Seq2[Item, error] {
	return func(yield func(Item, error) bool) {
		hash := StartHash
		for position := s.Start; position < s.End; {
			items, err := r.batch(ctx, s, position)
			if err != nil {
				yield(Item{}, err)
				return
			}
			for _, item := range items {
				hash = NextHash(hash, item.Text)
				if position++; position == s.End && hash != s.Hash {
					yield(Item{}, r.damaged(s.String(), "hash "+s.Hash, hash))
					return
				}
				if !yield(item, nil) {
					return
				}
			}
		}
		if s.Start == s.End && s.Hash != StartHash {
			yield(Item{}, r.damaged(s.String(), "hash "+StartHash+" of an empty span", s.Hash))
		}
	}
}

func (r *Reader) batch(ctx context.Context, s Span, position int64) ([]Item, error) {
	rows, err := r.query(ctx, "SELECT position, item, incarnation FROM transcriptItems WHERE vatID = ? AND ? <= position AND position < ? ORDER BY position LIMIT ?",
		s.Vat, position, s.End, batchItems)
	if err != nil {
		return nil, r.wrap(err, "reading %s", s)
	}
	defer rows.Close()
	var items []Item
	for size := 0; size < batchBytes && rows.Next(); {
		var item Item
		var incarnation sql.NullInt64
		if err := rows.Scan(&item.Position, &item.Text, &incarnation); err != nil {
			return nil, r.wrap(err, "reading %s", s)
		}
		if want := position + int64(len(items)); item.Position != want {
			return nil, r.damaged(s.String(), fmt.Sprintf("item %d", want), fmt.Sprintf("item %d", item.Position))
		}
		if incarnation.Valid && incarnation.Int64 != s.Incarnation {
			return nil, r.damaged(fmt.Sprintf("item %d of %s", item.Position, s), fmt.Sprintf("incarnation %d", s.Incarnation), strconv.FormatInt(incarnation.Int64, 10))
		}
		items, size = append(items, item), size+len(item.Text)
	}
	if err := rows.Err(); err != nil {
		return nil, r.wrap(err, "reading %s", s)
	}
	if len(items) > 0 {
		return items, nil
	}
	left := 0 // unless a node removes the span while it is read
	if position > s.Start {
		if err := r.row(ctx, "SELECT count(*) FROM (SELECT 1 FROM transcriptItems WHERE vatID = ? AND ? <= position AND position < ? LIMIT 1)", s.Vat, s.Start, s.End).Scan(&left); err != nil {
			return nil, r.wrap(err, "reading %s", s)
		}
	}
	if left == 0 {
		return nil, r.wrap(ErrPruned, "reading %s: item %d", s, position)
	}
	return nil, r.damaged(s.String(), fmt.Sprintf("item %d", position), "the end")
}
