package swingstore

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strconv"
	"strings"
)

// Vat is what a kernel says of a vat.
type Vat struct {
	ID         string // "v1"
	Name       string
	Static     bool // was there from the start
	Terminated bool // and not yet cleaned up

	BundleID   string          // of its source; empty if it was given otherwise
	Options    Options         // empty if the store no longer has them
	RawOptions json.RawMessage // as the kernel recorded them; nil if the store no longer has them
	Parameters json.RawMessage // CapData that startVat was given, if that was recorded
}

// Options are those of a vat (agoric-sdk, packages/SwingSet/src/types-internal.js, RecordedVatOptions), and the version of its engine.
type Options struct {
	WorkerOptions     WorkerOptions   `json:"workerOptions"`
	Name              string          `json:"name,omitempty"`
	EnableSetup       bool            `json:"enableSetup"`
	EnablePipelining  bool            `json:"enablePipelining"`
	EnableDisavow     bool            `json:"enableDisavow"`
	UseTranscript     bool            `json:"useTranscript"`
	ReapDirtThreshold json.RawMessage `json:"reapDirtThreshold,omitempty"`
	Critical          bool            `json:"critical"`
	MeterID           string          `json:"meterID,omitempty"`
}

// WorkerOptions say what runs a vat.
type WorkerOptions struct {
	Type      string   `json:"type"`                // "xsnap", or "local" for vats that need no engine
	BundleIDs []string `json:"bundleIDs,omitempty"` // lockdown, supervisor
	Engine    string   `json:"engine,omitempty"`    // version ID; empty: the legacy version. SwingSet has no such field
}

// Vats returns all vats of which the store has something, sorted by number.
func (r *Reader) Vats(ctx context.Context) ([]Vat, error) {
	// What a vat keeps may end in .options, too: v1.vs.vc.2.s.options.
	ids, err := collect[string](ctx, r, `SELECT DISTINCT vatID FROM transcriptSpans UNION
		SELECT substr(key, 1, length(key)-8) FROM kvStore WHERE key GLOB 'v[0-9]*.options' AND key NOT GLOB '*.*.options'`)
	if err != nil {
		return nil, r.wrap(err, "listing vats")
	}
	slices.SortFunc(ids, func(a, b string) int {
		return cmp.Or(cmp.Compare(number(a), number(b)), cmp.Compare(a, b))
	})
	static, err := r.static(ctx)
	if err != nil {
		return nil, err
	}
	terminated, err := r.list(ctx, "vats.terminated")
	if err != nil {
		return nil, err
	}
	vats := make([]Vat, 0, len(ids))
	for _, id := range ids {
		v, err := r.vat(ctx, id)
		if err != nil {
			return nil, err
		}
		v.Static, v.Terminated = static[id], slices.Contains(terminated, id)
		vats = append(vats, v)
	}
	return vats, nil
}

// Vat returns a vat, by its ID. It is ErrNotFound if the store has nothing of it.
func (r *Reader) Vat(ctx context.Context, id string) (*Vat, error) {
	v, err := r.vat(ctx, id)
	if err != nil {
		return nil, err
	}
	if v.RawOptions == nil {
		var n int
		if err := r.row(ctx, "SELECT count(*) FROM (SELECT 1 FROM transcriptSpans WHERE vatID = ? LIMIT 1)", id).Scan(&n); err != nil {
			return nil, r.wrap(err, "reading vat %s", id)
		}
		if n == 0 {
			return nil, r.wrap(ErrNotFound, "reading vat %s", id)
		}
	}
	static, err := r.static(ctx)
	if err != nil {
		return nil, err
	}
	terminated, err := r.list(ctx, "vats.terminated")
	if err != nil {
		return nil, err
	}
	v.Static, v.Terminated = static[id], slices.Contains(terminated, id)
	return &v, nil
}

func number(vat string) int {
	n, _ := strconv.Atoi(strings.TrimPrefix(vat, "v"))
	return n
}

func (r *Reader) vat(ctx context.Context, id string) (Vat, error) {
	v := Vat{ID: id}
	for _, f := range []struct {
		key string
		set func(value string) error
	}{
		{".options", func(value string) error {
			v.RawOptions = json.RawMessage(value)
			err := json.Unmarshal(v.RawOptions, &v.Options)
			v.Name = v.Options.Name
			return err
		}},
		{".source", func(value string) error {
			var source struct {
				BundleID string `json:"bundleID"`
			}
			err := json.Unmarshal([]byte(value), &source)
			v.BundleID = source.BundleID
			return err
		}},
		{".vatParameters", func(value string) error {
			v.Parameters = json.RawMessage(value)
			if !json.Valid(v.Parameters) {
				return errors.New("it is not JSON")
			}
			return nil
		}},
	} {
		value, err := r.Get(ctx, id+f.key)
		if err == nil {
			if err = f.set(value); err != nil {
				err = r.wrap(err, "reading key %q", id+f.key)
			}
		}
		if err != nil && !errors.Is(err, ErrNotFound) {
			return v, err
		}
	}
	return v, nil
}

// static returns the IDs of the vats that were there from the start.
func (r *Reader) static(ctx context.Context) (map[string]bool, error) {
	names, err := r.list(ctx, "vat.names")
	if err != nil {
		return nil, err
	}
	ids := make(map[string]bool)
	for _, name := range names {
		id, err := r.Get(ctx, "vat.name."+name)
		if err != nil && !errors.Is(err, ErrNotFound) {
			return nil, err
		}
		ids[id] = true
	}
	return ids, nil
}

// list returns the strings that a key lists, and none if there is no such key.
func (r *Reader) list(ctx context.Context, key string) ([]string, error) {
	value, err := r.Get(ctx, key)
	if errors.Is(err, ErrNotFound) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	var list []string
	if err := json.Unmarshal([]byte(value), &list); err != nil {
		return nil, r.wrap(err, "reading key %q", key)
	}
	return list, nil
}
