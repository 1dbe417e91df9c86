package vat

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/enginery/enginery/swingstore"
)

// ReplayError says that a vat could not be brought back: its worker did not do what the transcript says it had done.
type ReplayError struct {
	Vat         string
	Engine      string // version
	Position    int64  // in the transcript
	Delivery    string // in JSON, or the beginning of it
	What        string // "syscall 3", "computrons", …
	Want, Found string
}

func (e *ReplayError) Error() string {
	return fmt.Sprintf("%s cannot be brought back on %s: at item %d, %s, %s is %s, expected %s; is it the engine that the vat ran on?",
		e.Vat, e.Engine, e.Position, brief([]byte(e.Delivery)), e.What, brief([]byte(e.Found)), brief([]byte(e.Want)))
}

// Entry is an item of a transcript (agoric-sdk, packages/SwingSet/src/types-internal.js, TranscriptEntry).
type Entry struct {
	Delivery json.RawMessage `json:"d"`
	Syscalls []struct {
		Syscall json.RawMessage `json:"s"`
		Answer  json.RawMessage `json:"r"`
	} `json:"sc"`
	Result struct {
		Status     string `json:"status"`
		SnapshotID string `json:"snapshotID"` // of save-snapshot
		Metering   *struct {
			Computrons int64 `json:"computrons"`
		} `json:"metering"`
	} `json:"r"`
}

// Kind returns the kind of the delivery: "message", "save-snapshot", …, or "" if it is none.
func (e *Entry) Kind() string {
	list, err := elements(e.Delivery)
	if err != nil {
		return ""
	}
	return text(list[0])
}

// replay does again what the transcript's current span says.
func (v *Vat) replay(ctx context.Context, r *swingstore.Reader, e *Engine, span swingstore.Span, from *swingstore.Snapshot) error {
	for item, err := range r.Items(ctx, span) {
		if err != nil {
			return err
		}
		var entry Entry
		if err := json.Unmarshal(item.Text, &entry); err != nil {
			return fmt.Errorf("item %d of %s: %w", item.Position, v.o.ID, err)
		}
		differ := func(what, want, found string) error {
			return &ReplayError{Vat: v.o.ID, Engine: e.Version, Position: item.Position, Delivery: string(entry.Delivery), What: what, Want: want, Found: found}
		}
		if item.Position == span.Start {
			want := `["initialize-worker",…]`
			if from != nil {
				want = `["load-snapshot",{"snapshotID":"` + from.Hash + `"}]`
			}
			if from == nil && entry.Kind() != "initialize-worker" || from != nil && string(entry.Delivery) != want {
				return differ("the start of the span", want, string(entry.Delivery))
			}
			continue
		}
		if !slices.Contains(kinds, entry.Kind()) {
			return differ("a delivery", "one of "+strings.Join(kinds, ", "), string(entry.Delivery))
		}
		made := 0
		o, err := v.m.Deliver(ctx, entry.Delivery, func(_ context.Context, syscall []byte) ([]byte, error) {
			what := "syscall " + strconv.Itoa(made)
			if made == len(entry.Syscalls) {
				return nil, differ(what, "none", string(syscall))
			}
			s := entry.Syscalls[made]
			if string(s.Syscall) != string(syscall) {
				return nil, differ(what, string(s.Syscall), string(syscall))
			}
			made++
			return s.Answer, nil
		})
		if err != nil {
			return err
		}
		if made < len(entry.Syscalls) {
			return differ("syscall "+strconv.Itoa(made), string(entry.Syscalls[made].Syscall), "none")
		}
		if status := status(o); status != entry.Result.Status {
			return differ("the status", entry.Result.Status, status+" "+o.Problem)
		}
		if want := entry.Result.Metering; want != nil && want.Computrons != o.Meter.Compute {
			return differ("computrons", strconv.FormatInt(want.Computrons, 10), strconv.FormatInt(o.Meter.Compute, 10))
		}
	}
	return nil
}

func status(o Outcome) string {
	if o.OK {
		return "ok"
	}
	return "error"
}
