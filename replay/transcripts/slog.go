package transcripts

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/enginery/enginery/swingstore"
)

// event is a line of a slog that says something of a transcript (agoric-sdk, packages/SwingSet/src/kernel/slogger.js). deliveryNum is the
// position of the transcript's item.
type event struct {
	Type     string          `json:"type"`
	VatID    string          `json:"vatID"`
	Name     string          `json:"name"`
	Source   json.RawMessage `json:"vatSourceBundle"`
	CrankNum *int64          `json:"crankNum"`
	Number   int64           `json:"deliveryNum"`
	Replay   bool            `json:"replay"`

	Delivery json.RawMessage   `json:"vd"`
	Index    *int              `json:"syscallNum"`
	Syscall  json.RawMessage   `json:"vsc"`
	Answer   json.RawMessage   `json:"vsr"`
	Result   []json.RawMessage `json:"dr"` // status, problem or null, meter

	SnapshotID  string `json:"snapshotID"`
	EndPosition int64  `json:"endPosition"`
}

// slogVat is a vat, as far as the slog has told of it.
type slogVat struct {
	id      string
	bundle  string // ID, if it is known
	name    string
	metered bool // a meter was exceeded, so it has one
	begun   bool
	written int64 // position after the last item that is written

	// pending are the items of the last crank, which may not have happened: then the next one reuses their positions.
	pending []pendingItem
	crank   int64
	failed  bool // it was an upgrade, and failed

	delivery json.RawMessage // under way
	number   int64
	syscalls []syscall
	asked    bool // the last of them has no answer yet
}

type pendingItem struct {
	position    int64
	text        []byte
	incarnation bool // it begins one
	span        bool // it begins a span
}

// readSlog reads the transcripts of all vats that a slog tells of. A crank that was undone is known by the next one's using its positions again,
// and a failed upgrade by its startVat. What was before a slog began is not there, and neither are the pseudo-deliveries, which are put in
// where they must have been.
func readSlog(tx *swingstore.Tx, each func(func(n int, line []byte) error) error) error {
	vats := make(map[string]*slogVat)
	var order []*slogVat
	known := false // it is a slog
	err := each(func(_ int, line []byte) error {
		var e event
		if err := json.Unmarshal(line, &e); err != nil {
			return err
		}
		if e.Type == "" && !known {
			return fmt.Errorf("%w, nor a slog or transcript: a slog's lines have a type", swingstore.ErrForeign)
		}
		known = true
		if e.VatID == "" || e.Replay {
			return nil
		}
		v := vats[e.VatID]
		if v == nil {
			v = &slogVat{id: e.VatID}
			vats[e.VatID] = v
			order = append(order, v)
		}
		return v.event(tx, &e)
	})
	if err != nil {
		return err
	}
	if !known {
		return fmt.Errorf("%w: it is empty", swingstore.ErrForeign)
	}
	for _, v := range order {
		if v.failed {
			v.pending = nil
		}
		if err := v.flush(tx); err != nil {
			return err
		}
	}
	return nil
}

func (v *slogVat) event(tx *swingstore.Tx, e *event) error {
	switch e.Type {
	case "create-vat":
		v.name = e.Name
		if err := addBundle(tx, &v.bundle, e.Source); err != nil {
			return err
		}
		return v.record(tx)
	case "deliver":
		if e.CrankNum != nil && *e.CrankNum != v.crank {
			// The last crank's items are there to stay if this one goes on from them.
			for len(v.pending) > 0 && v.pending[len(v.pending)-1].position >= e.Number {
				v.pending = v.pending[:len(v.pending)-1]
			}
			if err := v.flush(tx); err != nil {
				return err
			}
			v.crank = *e.CrankNum
		}
		if e.Delivery == nil {
			return errors.New("a deliver without vd")
		}
		v.delivery, v.number, v.syscalls, v.asked = e.Delivery, e.Number, nil, false
		return v.fill(kindOf(e.Delivery))
	case "syscall":
		return v.syscall(e)
	case "syscall-result":
		return v.answer(e)
	case "deliver-result":
		if v.delivery == nil {
			return nil
		}
		if v.asked {
			return v.missing("the result of syscall %d", len(v.syscalls)-1)
		}
		if len(e.Result) == 0 {
			return errors.New("a deliver-result without dr")
		}
		result := `{"status":` + string(e.Result[0]) + `}`
		if string(e.Result[0]) == `"ok"` && len(e.Result) > 2 {
			var meter struct{ Compute *int64 }
			if err := json.Unmarshal(e.Result[2], &meter); err != nil {
				return err
			}
			if meter.Compute != nil {
				result = fmt.Sprintf(`{"status":"ok","metering":{"computrons":%d}}`, *meter.Compute)
			}
		}
		if len(e.Result) > 1 && string(e.Result[1]) == `"Compute meter exceeded"` && !v.metered {
			v.metered = true
			if err := v.record(tx); err != nil {
				return err
			}
		}
		v.failed = kindOf(v.delivery) == "startVat" && v.number > 1 && string(e.Result[0]) != `"ok"`
		v.pending = append(v.pending, pendingItem{position: v.number, text: item(v.delivery, v.syscalls, result)})
		v.delivery = nil
	case "heap-snapshot-save":
		id, err := json.Marshal(e.SnapshotID)
		if err != nil {
			return err
		}
		hash := string(id)
		v.pending = append(v.pending,
			pendingItem{position: e.EndPosition, text: item(json.RawMessage(`["save-snapshot"]`), nil, `{"status":"ok","snapshotID":`+hash+`}`)},
			pendingItem{position: e.EndPosition + 1, text: item(json.RawMessage(`["load-snapshot",{"snapshotID":`+hash+`}]`), nil, ok), span: true})
	}
	return nil
}

// syscall takes in a syscall of the delivery under way, if the slog has its beginning.
func (v *slogVat) syscall(e *event) error {
	switch n := len(v.syscalls); {
	case v.delivery == nil:
		return nil
	case e.Syscall == nil:
		return errors.New("a syscall without vsc")
	case v.asked:
		return v.missing("the result of syscall %d", n-1)
	case e.Index != nil && *e.Index != n:
		return v.missing("syscall %d", n)
	}
	v.syscalls, v.asked = append(v.syscalls, syscall{Syscall: e.Syscall}), true
	return nil
}

// answer takes in the answer to the last syscall.
func (v *slogVat) answer(e *event) error {
	switch {
	case v.delivery == nil:
		return nil
	case e.Answer == nil:
		return errors.New("a syscall-result without vsr")
	case !v.asked:
		return v.missing("syscall %d", len(v.syscalls))
	}
	v.syscalls[len(v.syscalls)-1].Answer, v.asked = e.Answer, false
	return nil
}

func (v *slogVat) missing(format string, args ...any) error {
	return fmt.Errorf("%s of item %d of %s is not there: a part of the slog is missing", fmt.Sprintf(format, args...), v.number, v.id)
}

// record records what is known of the vat.
func (v *slogVat) record(tx *swingstore.Tx) error {
	s := swingstore.Vat{ID: v.id, BundleID: v.bundle}
	s.Options.Name, s.Options.UseTranscript = v.name, true
	s.Options.WorkerOptions = swingstore.WorkerOptions{Type: "xsnap"}
	if v.metered {
		s.Options.MeterID = "unknown"
	}
	return tx.SetVat(s)
}

// fill puts in what a kernel puts before a startVat.
func (v *slogVat) fill(kind string) error {
	if kind != "startVat" {
		return nil
	}
	bundle := v.bundle
	if v.number > 1 {
		v.pending = append(v.pending, pendingItem{position: v.number - 2, text: item(json.RawMessage(`["shutdown-worker"]`), nil, ok)})
		bundle = "" // that of the next incarnation is not in a slog
	}
	first, err := initializeWorker(bundle, nil)
	if err != nil {
		return err
	}
	v.pending = append(v.pending, pendingItem{position: v.number - 1, text: first, span: true, incarnation: v.number > 1})
	return nil
}

// flush writes what is pending.
func (v *slogVat) flush(tx *swingstore.Tx) error {
	for _, p := range v.pending {
		switch {
		case !v.begun:
			if err := begin(tx, v.id, p.position); err != nil {
				return err
			}
			v.begun = true
		case p.position != v.written:
			return fmt.Errorf("item %d of %s follows on item %d: a part of the slog is missing", p.position, v.id, v.written-1)
		case p.span:
			if _, err := tx.Rollover(v.id, p.incarnation); err != nil {
				return err
			}
		}
		if _, err := tx.AddItem(v.id, p.text); err != nil {
			return err
		}
		v.written = p.position + 1
	}
	v.pending, v.failed = nil, false
	return nil
}
