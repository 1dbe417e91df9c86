package transcripts

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/enginery/enginery/swingstore"
)

// created is the first line of a transcript file (agoric-sdk, packages/SwingSet/misc-tools/extract-transcript-from-kerneldb.js).
type created struct {
	Type          string          `json:"type"` // "create-vat"
	TranscriptNum *int64          `json:"transcriptNum"`
	VatID         string          `json:"vatID"`
	VatName       string          `json:"vatName"`
	Parameters    json.RawMessage `json:"vatParameters"`
	Source        json.RawMessage `json:"vatSourceBundle"`
	SourceID      string          `json:"vatSourceBundleID"`
	BundleIDs     []string        `json:"bundleIDs"` // lockdown, supervisor
}

// isTranscript reports whether the beginning of a line is that of the first line of a transcript file.
func isTranscript(line []byte) bool {
	return bytes.Contains(line, []byte(`"create-vat"`)) && bytes.Contains(line, []byte(`"transcriptNum"`))
}

// readTranscript reads a one-vat transcript file. It begins with the last incarnation's startVat.
func readTranscript(tx *swingstore.Tx, each func(func(n int, line []byte) error) error) error {
	var vat string
	var last int64 // transcriptNum
	return each(func(n int, line []byte) error {
		if vat == "" {
			var c created
			if err := json.Unmarshal(line, &c); err != nil {
				return err
			}
			if c.Type != "create-vat" || c.VatID == "" {
				return errors.New("expected a create-vat with a vatID")
			}
			vat = c.VatID
			v := swingstore.Vat{ID: vat, BundleID: c.SourceID, Parameters: c.Parameters}
			v.Options.Name, v.Options.UseTranscript = c.VatName, true
			v.Options.WorkerOptions = swingstore.WorkerOptions{Type: "xsnap", BundleIDs: c.BundleIDs}
			if err := addBundle(tx, &v.BundleID, c.Source); err != nil {
				return err
			}
			if err := errors.Join(tx.SetVat(v), tx.InitTranscript(vat)); err != nil {
				return err
			}
			first, err := initializeWorker(v.BundleID, c.BundleIDs)
			if err != nil {
				return err
			}
			_, err = tx.AddItem(vat, first)
			return err
		}
		var e struct {
			TranscriptNum *int64          `json:"transcriptNum"`
			Delivery      json.RawMessage `json:"d"`
			Syscalls      []syscall       `json:"sc"`
			Result        json.RawMessage `json:"r"`
			Old           json.RawMessage `json:"syscalls"`
		}
		if err := json.Unmarshal(line, &e); err != nil {
			return err
		}
		switch {
		case e.Old != nil:
			return errors.New(`it has "syscalls", as tools before agoric-upgrade-10 wrote them; extract the transcript again, or give the slog itself`)
		case e.Delivery == nil || e.TranscriptNum == nil:
			return errors.New("expected transcriptNum, d, sc and r")
		case *e.TranscriptNum != last+1:
			return fmt.Errorf("transcriptNum %d follows on %d: something is missing", *e.TranscriptNum, last)
		}
		last = *e.TranscriptNum
		if e.Result == nil {
			e.Result = json.RawMessage(ok)
		}
		kind := kindOf(e.Delivery)
		if kind == "initialize-worker" {
			return nil // there is one already
		}
		if _, err := tx.AddItem(vat, item(e.Delivery, e.Syscalls, string(e.Result))); err != nil {
			return err
		}
		if kind == "save-snapshot" {
			_, err := tx.Rollover(vat, false)
			return err
		}
		return nil
	})
}

// addBundle adds a bundle that is given as an object, if it is, and sets its ID.
func addBundle(tx *swingstore.Tx, id *string, bundle json.RawMessage) error {
	var known struct {
		BundleID string `json:"bundleID"`
	}
	if len(bundle) == 0 || bytes.Equal(bundle, []byte("null")) {
		return nil
	}
	if json.Unmarshal(bundle, &known) == nil && known.BundleID != "" {
		*id = known.BundleID
		return nil
	}
	var err error
	*id, err = tx.AddBundle(bundle)
	return err
}

// kindOf returns the kind of a delivery, ["kind",…] in JSON.
func kindOf(delivery []byte) string {
	rest, ok := bytes.CutPrefix(bytes.TrimLeft(delivery, " [\t"), []byte{'"'})
	if i := bytes.IndexByte(rest, '"'); ok && i >= 0 {
		return string(rest[:i])
	}
	return ""
}
