package transcripts

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/enginery/enginery/swingstore"
)

const manifestName = "export-manifest.json"

// export is a directory that a swing-store was exported to (agoric-sdk, packages/cosmic-swingset/src/export-kernel-db.js). What is said of vats,
// spans and snapshots is in memory, the rest stays in files.
type export struct {
	dir       string
	data      string            // path of the export data
	artifacts map[string]string // paths, by name
	kv        map[string]string // of those keys that say something of vats
	spans     map[string][]swingstore.Span
	snapshots map[string][]swingstore.Snapshot
}

func openExport(dir string) (Source, error) {
	e := &export{dir: dir, artifacts: make(map[string]string), kv: make(map[string]string),
		spans: make(map[string][]swingstore.Span), snapshots: make(map[string][]swingstore.Snapshot)}
	if err := e.open(); err != nil {
		return nil, fmt.Errorf("reading the export %s: %w", dir, err)
	}
	return e, nil
}

func (e *export) open() error {
	text, err := os.ReadFile(filepath.Join(e.dir, manifestName))
	if err != nil {
		return err
	}
	var manifest struct {
		Data      string      `json:"data"`
		Artifacts [][2]string `json:"artifacts"`
	}
	if err := json.Unmarshal(text, &manifest); err != nil {
		return fmt.Errorf("%s: %w", manifestName, err)
	}
	if manifest.Data == "" {
		return fmt.Errorf("%s names no data: export it again, with its data", manifestName)
	}
	inside := func(name string) (string, error) {
		if !filepath.IsLocal(name) {
			return "", fmt.Errorf("%s names a file outside of the export, %q", manifestName, name)
		}
		return filepath.Join(e.dir, name), nil
	}
	for _, a := range manifest.Artifacts {
		if e.artifacts[a[0]], err = inside(a[1]); err != nil {
			return err
		}
	}
	if e.data, err = inside(manifest.Data); err != nil {
		return err
	}
	// A later line wins over an earlier one with the same key, and null removes it. A vat's current span is under transcript.VAT.current.
	spans, snapshots, bundles := make(map[string]swingstore.Span), make(map[string]swingstore.Snapshot), make(map[string]bool)
	if err := e.each(func(key string, value *string) error {
		switch part, rest, _ := strings.Cut(key, "."); {
		case part == "kv" && ofVats(rest):
			if delete(e.kv, rest); value != nil {
				e.kv[rest] = *value
			}
		case part == "transcript":
			if delete(spans, key); value != nil {
				s, err := parseSpan(*value)
				if err != nil {
					return err
				}
				spans[key] = s
			}
		case part == "snapshot" && !strings.HasSuffix(rest, ".current"):
			if delete(snapshots, key); value != nil {
				s, err := parseSnapshot(*value)
				if err != nil {
					return err
				}
				snapshots[key] = s
			}
		case part == "bundle":
			bundles[key] = value != nil
		}
		return nil
	}); err != nil {
		return fmt.Errorf("%s: %w", e.data, err)
	}
	// Data that is cut off lacks the end, which is of what there are artifacts. The kernel does not import such an export either.
	told := bundles
	for _, s := range spans {
		told[spanName(s)] = true
		e.spans[s.Vat] = append(e.spans[s.Vat], s)
	}
	for _, s := range snapshots {
		told[snapshotName(s)] = true
	}
	for _, name := range slices.Sorted(maps.Keys(e.artifacts)) {
		if !told[name] {
			return &swingstore.DamagedError{Store: e.dir, What: filepath.Base(e.data), Want: "a record of the artifact " + name, Found: "none: it may be cut off"}
		}
	}
	for vat, list := range e.spans {
		slices.SortFunc(list, func(a, b swingstore.Span) int { return cmp.Compare(a.Start, b.Start) })
		// Removed spans before the first are one that is not there.
		if first := list[0]; first.Start > 0 {
			list = slices.Insert(list, 0, swingstore.Span{Vat: vat, End: first.Start, Incarnation: first.Incarnation})
		}
		for i := 1; i < len(list); i++ {
			if list[i].Start != list[i-1].End {
				return &swingstore.DamagedError{Store: e.dir, What: list[i].String(), Want: fmt.Sprintf("a span that starts at %d", list[i-1].End), Found: strconv.FormatInt(list[i].Start, 10)}
			}
		}
		e.spans[vat] = list
	}
	for _, s := range snapshots {
		path, ok := e.artifacts[snapshotName(s)]
		s.Present = ok && exists(path)
		e.snapshots[s.Vat] = append(e.snapshots[s.Vat], s)
	}
	for _, list := range e.snapshots {
		slices.SortFunc(list, func(a, b swingstore.Snapshot) int { return cmp.Compare(a.Position, b.Position) })
	}
	return nil
}

// each calls f with each line of the export data, ["key",value].
func (e *export) each(f func(key string, value *string) error) error {
	l, err := openLines(e.data)
	if err != nil {
		return err
	}
	defer l.Close()
	return each(l, func(_ int, line []byte) error {
		var pair []*string
		if err := json.Unmarshal(line, &pair); err != nil {
			return err
		}
		if len(pair) != 2 || pair[0] == nil {
			return errors.New(`expected ["key",value]`)
		}
		return f(*pair[0], pair[1])
	})
}

// ofVats reports whether a key of the kernel says something of vats.
func ofVats(key string) bool {
	if key == "kernel.relaxDurabilityRules" || key == "vats.terminated" || key == "vat.names" || strings.HasPrefix(key, "vat.name.") {
		return true
	}
	vat, rest, _ := strings.Cut(key, ".")
	_, isVat := strings.CutPrefix(vat, "v")
	return isVat && (rest == "options" || rest == "source" || rest == "vatParameters")
}

func parseSpan(text string) (swingstore.Span, error) {
	var s struct {
		VatID       string
		StartPos    int64
		EndPos      int64
		Hash        string
		IsCurrent   int
		Incarnation int64
	}
	err := json.Unmarshal([]byte(text), &s)
	if err == nil && s.VatID == "" {
		err = errors.New("a span without vatID")
	}
	return swingstore.Span{Vat: s.VatID, Start: s.StartPos, End: s.EndPos, Hash: s.Hash, Current: s.IsCurrent == 1, Incarnation: s.Incarnation}, err
}

func parseSnapshot(text string) (swingstore.Snapshot, error) {
	var s struct {
		VatID   string
		SnapPos int64
		Hash    string
		InUse   int
	}
	err := json.Unmarshal([]byte(text), &s)
	if err == nil && s.VatID == "" {
		err = errors.New("a heap snapshot without vatID")
	}
	return swingstore.Snapshot{Vat: s.VatID, Position: s.SnapPos, Hash: s.Hash, InUse: s.InUse == 1}, err
}

func (e *export) Path() string { return e.dir }
func (e *export) Kind() string { return KindExport }
func (e *export) Close() error { return nil }

func (e *export) Get(_ context.Context, key string) (string, error) {
	value, ok := e.kv[key]
	if !ok {
		return "", fmt.Errorf("%s: reading key %q: %w", e.dir, key, swingstore.ErrNotFound)
	}
	return value, nil
}

// Keys goes through the export data, which need not be sorted.
func (e *export) Keys(ctx context.Context, prefix string) iter.Seq2[swingstore.Pair, error] {
	return func(yield func(swingstore.Pair, error) bool) {
		found := make(map[string]string)
		err := e.each(func(key string, value *string) error {
			name, isKey := strings.CutPrefix(key, "kv.")
			if isKey && strings.HasPrefix(name, prefix) {
				if delete(found, name); value != nil {
					found[name] = *value
				}
			}
			return ctx.Err()
		})
		if err != nil {
			yield(swingstore.Pair{}, fmt.Errorf("%s: %w", e.data, err))
			return
		}
		for _, key := range slices.Sorted(maps.Keys(found)) {
			if !yield(swingstore.Pair{Key: key, Value: found[key]}, nil) {
				return
			}
		}
	}
}

func (e *export) Vats(ctx context.Context) ([]swingstore.Vat, error) {
	// A store in memory with the same keys says what they mean.
	m, err := swingstore.Memory()
	if err != nil {
		return nil, err
	}
	defer m.Close()
	if err := m.Update(func(tx *swingstore.Tx) error {
		for key, value := range e.kv {
			if err := tx.Set(key, value); err != nil {
				return err
			}
		}
		for _, list := range e.spans {
			if err := tx.AddSpan(list[0]); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		return nil, err
	}
	return m.Vats(ctx)
}

func (e *export) Spans(_ context.Context, vat string) ([]swingstore.Span, error) {
	return slices.Clone(e.spans[vat]), nil
}

func (e *export) Snapshots(_ context.Context, vat string) ([]swingstore.Snapshot, error) {
	return slices.Clone(e.snapshots[vat]), nil
}

func (e *export) Items(_ context.Context, s swingstore.Span) iter.Seq2[swingstore.Item, error] {
	path, ok := e.artifacts[spanName(s)]
	if !ok {
		return func(yield func(swingstore.Item, error) bool) {
			if s.End > s.Start {
				yield(swingstore.Item{}, fmt.Errorf("%s: reading %s: %w", e.dir, s, swingstore.ErrPruned))
			}
		}
	}
	return fileItems(path, s)
}

func (e *export) OpenSnapshot(_ context.Context, s swingstore.Snapshot) (io.ReadCloser, error) {
	path, ok := e.artifacts[snapshotName(s)]
	if !ok {
		return nil, fmt.Errorf("%s: reading %s: %w", e.dir, s, swingstore.ErrPruned)
	}
	return openSnapshotFile(path, s)
}

func (e *export) Bundle(_ context.Context, id string) ([]byte, error) {
	path, ok := e.artifacts["bundle."+id]
	if !ok {
		return nil, fmt.Errorf("%s: reading bundle %s: %w", e.dir, id, swingstore.ErrNotFound)
	}
	stored, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s: reading bundle %s: %w", e.dir, id, swingstore.ErrPruned)
	} else if err != nil {
		return nil, err
	}
	bundle, err := swingstore.DecodeBundle(id, stored)
	if err != nil {
		return nil, &swingstore.DamagedError{Store: path, What: "bundle " + id, Want: "a bundle with this ID", Found: err.Error()}
	}
	return bundle, nil
}
