package replay

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/enginery/enginery/internal/action"
	"github.com/enginery/enginery/internal/cas"
	"github.com/enginery/enginery/replay/transcripts"
	"github.com/enginery/enginery/swingstore"
	"github.com/enginery/enginery/vat"
	"golang.org/x/sync/errgroup"
)

// Bundles that workers start from.
const (
	BundlesRecorded = "recorded" // those that the transcript names
	BundlesVersion  = "version"  // the version's own
)

// Run replays a source on a version. What a version does otherwise than recorded, and what is wrong with the source, is in the report. An
// error says that there is none: ctx has ended, the source is none, or this machine could not do it. Results that there were by then are in the
// cache, and the next Run goes on from there.
func Run(ctx context.Context, source transcripts.Source, e *vat.Engine, o Options) (*Report, error) {
	begun := time.Now()
	r, err := newRunner(ctx, source, e, o)
	if err != nil {
		return nil, err
	}
	vats, err := choose(ctx, source, o.Vats)
	if err != nil {
		return nil, err
	}
	report, err := replayAll(ctx, o, vats, r)
	if err != nil {
		return nil, err
	}
	report.Seconds = time.Since(begun).Seconds()
	return report, nil
}

// runner is a column of the matrix.
type runner struct {
	source  transcripts.Source
	engine  *vat.Engine
	files   engineFiles
	column  Column
	index   int
	relax   bool // relaxDurabilityRules
	timeout time.Duration
	observe func(Event)
	bundles *bundles[[]byte]
	scripts *bundles[vat.Script]
	pause   time.Duration // between two checkpoints
	keep    string        // folder for the heap snapshots from which vats go on; "": none

	versions []*vat.Engine // whose bundles are at hand
}

func newRunner(ctx context.Context, source transcripts.Source, e *vat.Engine, o Options) (*runner, error) {
	files, err := filesOf(e)
	if err != nil {
		return nil, err
	}
	r := &runner{
		source: source, engine: e, files: files, pause: checkpointPause, timeout: cmp.Or(o.Timeout, DefaultTimeout),
		bundles: newBundles[[]byte](), scripts: newBundles[vat.Script](), versions: []*vat.Engine{e},
		column: Column{
			Version: e.Version, Debug: e.Worker.Debug, Engine: "sha256:" + files.worker.Hash, Start: cmp.Or(o.Start, FromSnapshots), Bundles: BundlesRecorded, Reload: !o.KeepWorker,
		},
	}
	if o.VersionBundles {
		r.column.Bundles = BundlesVersion
	}
	if r.relax, err = relaxed(ctx, source); err != nil {
		return nil, err
	}
	return r, nil
}

// relaxed reports whether the kernel relaxes the rules of durability for vats.
func relaxed(ctx context.Context, source transcripts.Source) (bool, error) {
	relax, err := source.Get(ctx, "kernel.relaxDurabilityRules")
	if err != nil && !errors.Is(err, swingstore.ErrNotFound) {
		return false, err
	}
	return relax == "true", nil
}

// bundle returns a bundle of the source.
func (r *runner) bundle(ctx context.Context, id string) ([]byte, error) {
	return r.bundles.get(id, func() ([]byte, error) { return r.source.Bundle(ctx, id) })
}

// published returns a lockdown or supervisor bundle of one of the versions at hand, or nil.
func (r *runner) published(id string) []byte {
	for _, e := range r.versions {
		if e.Lockdown == nil || e.Supervisor == nil {
			continue
		}
		if b, err := e.Bundle(id); err == nil {
			return b
		}
	}
	return nil
}

// script returns a lockdown or supervisor bundle: the version's own if it is given, or else by its ID, of the source or of a version at hand.
func (r *runner) script(ctx context.Context, id string, own []byte) (vat.Script, error) {
	return r.scripts.get(id, func() (_ vat.Script, err error) {
		if own == nil {
			own, err = r.source.Bundle(ctx, id)
			if s := lacking(err); s != nil && s.outcome == Unavailable {
				own = r.published(id)
			}
			if own == nil {
				return "", err
			}
		}
		s, err := vat.ParseScript(own)
		if err != nil {
			return "", fmt.Errorf("bundle %s: %w", id, err)
		}
		return s, nil
	})
}

// bundles keeps those in memory that were used last, since many vats run the same.
type bundles[T []byte | vat.Script] struct {
	mu   sync.Mutex
	byID map[string]T
	size int
}

func newBundles[T []byte | vat.Script]() *bundles[T] { return &bundles[T]{byID: make(map[string]T)} }

func (b *bundles[T]) get(id string, read func() (T, error)) (T, error) {
	const limit = 32 << 20 // bytes
	b.mu.Lock()
	defer b.mu.Unlock()
	if bundle, ok := b.byID[id]; ok {
		return bundle, nil
	}
	bundle, err := read()
	if err != nil {
		return bundle, err
	}
	if b.size += len(bundle); b.size > limit {
		clear(b.byID)
		b.size = len(bundle)
	}
	b.byID[id] = bundle
	return bundle, nil
}

func (r *runner) tell(e Event) {
	if r.observe != nil {
		e.Run, e.Version = r.index, r.engine.Version
		r.observe(e)
	}
}

// from returns the same column with another start.
func (r *runner) from(start Start) *runner {
	c := *r
	c.column.Start = start
	return &c
}

// work is a piece, and where its result belongs.
type work struct {
	piece  *piece
	vat    int
	first  *work // that does the same; nil: none
	length int64
	result *result
}

// replayAll replays vats in all columns.
func replayAll(ctx context.Context, o Options, vats []swingstore.Vat, runners ...*runner) (*Report, error) {
	source := runners[0].source
	report := &Report{Schema: Schema, Source: Source{Path: source.Path(), Kind: source.Kind()}, Passes: o.passes(), Runs: []Column{}, Vats: []Vat{}}
	var mu sync.Mutex
	observe := o.Observe
	if observe != nil {
		observe = func(e Event) {
			mu.Lock()
			defer mu.Unlock()
			o.Observe(e)
		}
	}
	var all []*work
	for i, r := range runners {
		r.index, r.observe = i, observe
		report.Runs = append(report.Runs, r.column)
	}
	for i, v := range vats {
		spans, err := source.Spans(ctx, v.ID)
		if err != nil {
			return nil, err
		}
		snapshots, err := source.Snapshots(ctx, v.ID)
		if err != nil {
			return nil, err
		}
		row := Vat{ID: v.ID, Name: v.Name, Static: v.Static, Terminated: v.Terminated, Spans: len(spans), Runs: make([]VatRun, len(runners))}
		for j, s := range spans {
			row.Items += s.End - s.Start
			if j == 0 || s.Incarnation != spans[j-1].Incarnation {
				row.Incarnations++
			}
		}
		report.Vats = append(report.Vats, row)
		for _, r := range runners {
			for _, p := range r.plan(v, spans, snapshots) {
				if last := p.spans[len(p.spans)-1]; r.keep != "" && last.Current && len(p.spans) > 1 {
					p.keep = keptSnapshot(r.keep, v.ID, last.Start)
				}
				all = append(all, &work{piece: p, vat: i})
			}
		}
	}
	if err := do(ctx, o, observe, all); err != nil {
		return nil, err
	}
	if err := reproducers(ctx, o.Reproducers, all); err != nil {
		return nil, err
	}
	for _, w := range all {
		run := &report.Vats[w.vat].Runs[w.piece.run.index]
		run.Spans = append(run.Spans, w.result.Spans...)
		run.Series.join(w.result.Series)
	}
	for i := range report.Vats {
		for j := range report.Vats[i].Runs {
			report.Vats[i].Runs[j].sum()
		}
	}
	return report, nil
}

// choose returns the vats of a source that were asked for, by ID or name.
func choose(ctx context.Context, source transcripts.Source, names []string) ([]swingstore.Vat, error) {
	vats, err := source.Vats(ctx)
	if err != nil || len(names) == 0 {
		return vats, err
	}
	for _, name := range names {
		if !slices.ContainsFunc(vats, func(v swingstore.Vat) bool { return v.ID == name || v.Name == name }) {
			var has []string
			for _, v := range vats {
				has = append(has, strings.TrimSuffix(v.ID+" ("+v.Name+")", " ()"))
			}
			return nil, fmt.Errorf("%s has no vat %s: %w; it has %s", source.Path(), name, swingstore.ErrNotFound, strings.Join(has, ", "))
		}
	}
	return slices.DeleteFunc(vats, func(v swingstore.Vat) bool { return !slices.Contains(names, v.ID) && !slices.Contains(names, v.Name) }), nil
}

// do does all work, the longest first.
func do(ctx context.Context, o Options, observe func(Event), all []*work) error {
	c, err := openCache(o.Cache)
	if err != nil {
		return err
	}
	defer c.close()
	planned := Event{Kind: Planned}
	for _, w := range all {
		planned.Spans += len(w.piece.spans)
		planned.Deliveries += w.piece.deliveries()
	}
	if observe != nil {
		observe(planned)
	}
	// What two columns have in common is done once.
	same := make(map[cas.Digest]*work)
	var order []*work
	for _, w := range all {
		a, err := w.piece.action()
		if err != nil {
			return err
		}
		if w.first = same[a.Digest]; w.first == nil {
			same[a.Digest] = w
			order = append(order, w)
		} else if w.first.piece.keep == "" {
			w.first.piece.keep = w.piece.keep
		}
	}
	for _, w := range order {
		w.length = w.piece.length(ctx)
	}
	slices.SortStableFunc(order, func(a, b *work) int { return cmp.Compare(b.length, a.length) })
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(cmp.Or(o.Jobs, runtime.NumCPU()))
	for _, w := range order {
		if gctx.Err() != nil {
			break
		}
		g.Go(func() error {
			if gctx.Err() != nil {
				return nil
			}
			var err error
			w.result, err = w.piece.once(gctx, c)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return err
	}
	for _, w := range all {
		if w.first != nil {
			w.result = w.first.result
			w.piece.tellKnown(w.result)
		}
	}
	return context.Cause(ctx)
}

// once returns a piece's result if it is known, and otherwise replays it.
func (p *piece) once(ctx context.Context, c *cache) (*result, error) {
	if c == nil {
		return p.play(ctx, nil)
	}
	a, err := p.action()
	if err != nil {
		return nil, err
	}
	if known, err := p.known(ctx, c, a); known != nil || err != nil {
		return known, err
	}
	var points *checkpoints
	if p.run.column.Reload && len(p.spans) > 1 {
		points = newCheckpoints(c.checkpoint(a), p.run.pause)
	}
	r, err := p.play(ctx, points)
	if err != nil {
		return nil, err
	}
	if r.final() {
		if err := c.write(a, r); err != nil {
			return nil, err
		}
	}
	points.remove()
	return r, nil
}

// known returns a piece's result if the cache has it, and nil otherwise.
func (p *piece) known(ctx context.Context, c *cache, a *action.Action) (*result, error) {
	r := new(result)
	if found, err := c.read(a, r); err != nil || !found || len(r.Spans) != len(p.spans) {
		return nil, err
	}
	r, err := p.verified(ctx, r)
	if r == nil || err != nil {
		return nil, err
	}
	if p.keep != "" {
		if s := r.Spans[len(r.Spans)-2].Snapshot; s != nil && !hasSnapshot(p.keep, s.Got) {
			return nil, nil // it is made again, since it is wanted
		}
	}
	p.tellKnown(r)
	return r, nil
}

func (p *piece) tellKnown(r *result) {
	for i := range r.Spans {
		s := &r.Spans[i]
		p.run.tell(Event{Kind: Finished, Vat: p.vat.ID, Start: s.Start, Deliveries: s.Deliveries, Cached: true, Result: s})
	}
}

// sum sums up a vat's spans.
func (r *VatRun) sum() {
	r.Series.bound()
	r.Level = Identical
	r.Count, r.Differences = make(map[Outcome]int), make(map[Dimension]int64)
	if r.Spans == nil {
		r.Spans = []Span{}
	}
	for _, s := range r.Spans {
		r.Count[s.Outcome]++
		switch s.Outcome {
		case Replayed, Stopped, Refused, Damaged:
			r.Level = min(r.Level, s.Level)
		}
		r.Deliveries += s.Deliveries
		for d, n := range s.Differences {
			r.Differences[d] += n
		}
		r.Computrons.Expected += s.Computrons.Expected
		r.Computrons.Got += s.Computrons.Got
		if s.Snapshot != nil {
			r.Snapshot = s.Snapshot.Size
		}
		r.Seconds += s.Seconds
	}
	if r.Count[Replayed] == 0 {
		r.Level = Divergent
	}
	for i := range r.Series.Position {
		r.HeapCount, r.Allocated = max(r.HeapCount, r.Series.HeapCount[i]), max(r.Allocated, r.Series.Allocated[i])
	}
}

// Whole reports whether all spans were replayed to their end: whether the level says all that there is to say.
func (t *Totals) Whole() bool {
	n := 0
	for _, count := range t.Count {
		n += count
	}
	return n == t.Count[Replayed]
}

// Passes reports whether all that was replayed reached a level, and something was. What a source no longer has does not count; see Whole.
func (t *Totals) Passes(level Level) bool {
	return t.Level >= level && t.Count[Replayed] > 0 && t.Count[Stopped]+t.Count[Refused]+t.Count[Unreached]+t.Count[Damaged] == 0
}

// Totals sums up a column.
func (r *Report) Totals(run int) Totals {
	all := VatRun{}
	for i := range r.Vats {
		all.Spans = append(all.Spans, r.Vats[i].Runs[run].Spans...)
	}
	all.sum()
	for i := range r.Vats {
		v := &r.Vats[i].Runs[run].Totals
		all.HeapCount, all.Allocated = max(all.HeapCount, v.HeapCount), max(all.Allocated, v.Allocated)
	}
	return all.Totals
}

// Passed reports whether a column passes: every vat of which something could be replayed reached the report's level, and there was one.
func (r *Report) Passed(run int) bool {
	t := r.Totals(run)
	return t.Passes(r.Passes)
}

// WithoutTimes returns the report without what is not the same in every run.
func (r *Report) WithoutTimes() *Report {
	c := *r
	c.Seconds = 0
	c.Vats = slices.Clone(r.Vats)
	for i := range c.Vats {
		runs := slices.Clone(c.Vats[i].Runs)
		for j := range runs {
			runs[j].Seconds, runs[j].Series.Seconds = 0, nil
			runs[j].Spans = slices.Clone(runs[j].Spans)
			for k := range runs[j].Spans {
				runs[j].Spans[k].Seconds = 0
			}
		}
		c.Vats[i].Runs = runs
	}
	return &c
}
