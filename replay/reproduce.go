package replay

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/enginery/enginery/replay/transcripts"
	"github.com/enginery/enginery/swingstore"
	"github.com/enginery/enginery/vat"
)

// Reproducer is what a reproducer file says of itself. The file is a swing-store with nothing but what the difference needs: the heap snapshot
// or bundles that the vat starts from, and its transcript up to there.
type Reproducer struct {
	Schema     string     `json:"schema"`
	Column     Column     `json:"run"`
	Difference Difference `json:"difference"`
}

// ReproducerSchema names the format of a Reproducer in JSON.
const ReproducerSchema = "enginery.replay.reproducer/v1"

// reproducerKey is the key under which a reproducer's store has the Reproducer.
const reproducerKey = "enginery.reproducer"

// Reproduction is what came of a reproducer.
type Reproduction struct {
	Reproducer
	Engine     string       `json:"engine"` // digest of the worker that it ran on
	Reproduced bool         `json:"reproduced"`
	Found      []Difference `json:"found"` // all differences that there were
}

// ReadReproducer returns what a reproducer file says of itself.
func ReadReproducer(ctx context.Context, path string) (*Reproducer, error) {
	s, err := swingstore.Open(path)
	if err != nil {
		return nil, err
	}
	defer s.Close()
	return readReproducer(ctx, s)
}

type getter interface {
	Get(ctx context.Context, key string) (string, error)
	Path() string
}

func readReproducer(ctx context.Context, s getter) (*Reproducer, error) {
	text, err := s.Get(ctx, reproducerKey)
	if errors.Is(err, swingstore.ErrNotFound) {
		return nil, fmt.Errorf("%s is no reproducer; replay it as a store", s.Path())
	} else if err != nil {
		return nil, err
	}
	r := new(Reproducer)
	if err := json.Unmarshal([]byte(text), r); err != nil {
		return nil, fmt.Errorf("%s: reading what it reproduces: %w", s.Path(), err)
	}
	if r.Schema != ReproducerSchema {
		return nil, fmt.Errorf("%s is a %s, expected %s", s.Path(), r.Schema, ReproducerSchema)
	}
	return r, nil
}

// Reproduce replays a reproducer file, as it was replayed when the difference was found. The engine need not be the same. Of o, only Timeout
// and Observe count.
func Reproduce(ctx context.Context, path string, e *vat.Engine, o Options) (*Reproduction, error) {
	source, err := transcripts.Open(ctx, path)
	if err != nil {
		return nil, err
	}
	defer source.Close()
	about, err := readReproducer(ctx, source)
	if err != nil {
		return nil, err
	}
	report, err := Run(ctx, source, e, Options{
		Vats: []string{about.Difference.Vat}, Start: about.Column.Start, VersionBundles: about.Column.Bundles == BundlesVersion,
		KeepWorker: !about.Column.Reload, Timeout: o.Timeout, Observe: o.Observe, Jobs: 1,
	})
	if err != nil {
		return nil, err
	}
	r := &Reproduction{Reproducer: *about, Engine: report.Runs[0].Engine, Found: []Difference{}}
	for _, s := range report.Vats[0].Runs[0].Spans {
		for _, d := range s.Listed {
			r.Found = append(r.Found, d)
			want := about.Difference
			if d.Position == want.Position && d.Dimension == want.Dimension && d.Syscall == want.Syscall && d.Expected == want.Expected && d.Got == want.Got {
				r.Reproduced = true
			}
		}
	}
	return r, nil
}

// reproducers writes a file for the first difference of each dimension of a vat in a column, and names it in the difference.
func reproducers(ctx context.Context, dir string, all []*work) error {
	if dir == "" {
		return nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("writing reproducers: %w", err)
	}
	type of struct {
		column, vat int
		dimension   Dimension
	}
	done := make(map[of]bool)
	for _, w := range all {
		for i := range w.result.Spans {
			listed := w.result.Spans[i].Listed
			for j := range listed {
				d := &listed[j]
				if d.Expected == spanEnd { // the transcript says it, whatever the version does
					continue
				}
				if k := (of{w.piece.run.index, w.vat, d.Dimension}); done[k] || w.first != nil {
					continue
				} else {
					done[k] = true
				}
				c := w.piece.run.column
				d.Reproducer = filepath.Join(dir, fmt.Sprintf("%s-%d-%s-%s-%s.sqlite", d.Vat, d.Position, d.Dimension, c.Version, c.Start))
				if err := w.piece.reproducer(ctx, d.Reproducer, *d); err != nil {
					return fmt.Errorf("writing a reproducer of item %d of %s: %w", d.Position, d.Vat, err)
				}
			}
		}
	}
	return nil
}

// reproducer writes the file of a difference.
func (p *piece) reproducer(ctx context.Context, path string, d Difference) error {
	tmp, err := os.MkdirTemp(filepath.Dir(path), ".reproducer-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	name := filepath.Join(tmp, swingstore.FileName)
	s, err := swingstore.Create(name)
	if err != nil {
		return err
	}
	err = s.Update(func(tx *swingstore.Tx) error {
		d.Reproducer = ""
		about, err := json.Marshal(Reproducer{ReproducerSchema, p.run.column, d})
		if err != nil {
			return err
		}
		if err := tx.Set(reproducerKey, string(about)); err != nil {
			return err
		}
		return p.excerpt(ctx, tx, d.Position)
	})
	if err = errors.Join(err, s.Close()); err != nil {
		return err
	}
	return os.Rename(name, path)
}

// excerpt copies what a piece starts from, and its items up to a position.
func (p *piece) excerpt(ctx context.Context, tx *swingstore.Tx, last int64) error {
	if p.run.relax {
		if err := tx.Set("kernel.relaxDurabilityRules", "true"); err != nil {
			return err
		}
	}
	if err := tx.SetVat(p.vat); err != nil {
		return err
	}
	first := p.spans[0]
	if first.Start > 0 {
		before := swingstore.Span{Vat: p.vat.ID, End: first.Start, Incarnation: first.Incarnation}
		if p.snapshot == nil {
			before.Incarnation = max(0, first.Incarnation-1)
		}
		if err := tx.AddSpan(before); err != nil {
			return err
		}
	}
	if err := tx.AddSpan(swingstore.Span{Vat: p.vat.ID, Start: first.Start, End: first.Start, Hash: swingstore.StartHash, Current: true, Incarnation: first.Incarnation}); err != nil {
		return err
	}
	if p.snapshot != nil {
		if err := copySnapshot(ctx, tx, p.run.source, *p.snapshot); err != nil {
			return err
		}
	}
	for i, s := range p.spans {
		if s.Start > last {
			break
		}
		if i > 0 {
			if _, err := tx.Rollover(p.vat.ID, false); err != nil {
				return err
			}
		}
		for item, err := range p.run.source.Items(ctx, s) {
			if err != nil {
				return err
			}
			if _, err := tx.AddItem(p.vat.ID, item.Text); err != nil {
				return err
			}
			if item.Position == s.Start && p.snapshot == nil && i == 0 {
				if err := p.copyBundles(ctx, tx, item.Text); err != nil {
					return err
				}
			}
			if item.Position == last {
				break
			}
		}
	}
	return nil
}

func copySnapshot(ctx context.Context, tx *swingstore.Tx, source transcripts.Source, s swingstore.Snapshot) error {
	r, err := source.OpenSnapshot(ctx, s)
	if err != nil {
		return err
	}
	defer r.Close()
	w := swingstore.NewSnapshotWriter()
	if _, err := io.Copy(w, r); err != nil {
		return err
	}
	_, err = tx.SaveSnapshotAt(s.Vat, s.Position, w)
	return err
}

// copyBundles copies the bundles that initialize-worker names, as far as the source has them.
func (p *piece) copyBundles(ctx context.Context, tx *swingstore.Tx, item []byte) error {
	var entry vat.Entry
	if json.Unmarshal(item, &entry) != nil {
		return nil // which may be the difference
	}
	init, err := parseInitialize(entry.Delivery)
	if err != nil {
		return nil
	}
	for _, id := range append(init.WorkerOptions.BundleIDs, init.Source.BundleID) {
		bundle, err := p.run.bundle(ctx, id)
		if errors.Is(err, swingstore.ErrNotFound) || errors.Is(err, swingstore.ErrPruned) {
			continue
		} else if err != nil {
			return err
		}
		if _, err := tx.AddBundle(bundle); err != nil {
			return err
		}
	}
	return nil
}
