package replay

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"time"

	repb "github.com/bazelbuild/remote-apis/build/bazel/remote/execution/v2"
	"github.com/enginery/enginery/internal/action"
	"github.com/enginery/enginery/internal/cas"
	"github.com/enginery/enginery/internal/progress"
	"github.com/enginery/enginery/replay/transcripts"
	"github.com/enginery/enginery/swingstore"
	"github.com/enginery/enginery/vat"
	"golang.org/x/sync/errgroup"
)

// Columns of the report that Compare returns.
const (
	ColumnFrom      = iota // the old version, from heap snapshots
	ColumnAdoption         // the new version, from the old one's heap snapshots
	ColumnMigration        // the new version, each incarnation from its beginning
)

// Compare replays a source on two versions, and says for each vat what it takes to bring it from one to the other. All ways are tried: to go on
// from the heap snapshot that the vat has, to replay the whole incarnation on the new version, and to begin a new incarnation there.
// Options.Start does not count. It is an error in the same cases as of Run.
func Compare(ctx context.Context, source transcripts.Source, from, to *vat.Engine, o Options) (*Report, error) {
	begun := time.Now()
	o.Start = FromSnapshots
	a, err := newRunner(ctx, source, from, o)
	if err != nil {
		return nil, err
	}
	b, err := newRunner(ctx, source, to, o)
	if err != nil {
		return nil, err
	}
	a.versions, b.versions = append(a.versions, to), append(b.versions, from)
	m := b.from(FromBundles)
	m.keep = o.Snapshots
	vats, err := choose(ctx, source, o.Vats) // once: a node may be adding and removing some
	if err != nil {
		return nil, err
	}
	report, err := replayAll(ctx, o, vats, a, b, m)
	if err != nil {
		return nil, err
	}
	report.Classification, err = classify(ctx, source, vats, report, from, to, o)
	if err != nil {
		return nil, err
	}
	report.Seconds = time.Since(begun).Seconds()
	return report, nil
}

func classify(ctx context.Context, source transcripts.Source, vats []swingstore.Vat, report *Report, from, to *vat.Engine, o Options) (*Classification, error) {
	c := &Classification{Schema: ClassificationSchema, From: from.Version, To: to.Version, Vats: []Classified{}}
	known, err := openCache(o.Cache)
	if err != nil {
		return nil, err
	}
	defer known.close()
	incarnations := make([]Way, len(vats))
	task := progress.StartSteps(ctx, "rehearse upgrades", len(vats))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(cmp.Or(o.Jobs, runtime.NumCPU()))
	for i, v := range vats {
		g.Go(func() (err error) {
			defer task.Add(1)
			if v.Terminated {
				return nil
			}
			incarnations[i], err = tryIncarnation(gctx, source, v, from, to, known, cmp.Or(o.Timeout, DefaultTimeout))
			if s := lacking(err); s != nil {
				incarnations[i], err = Way{Way: WayIncarnation, Reason: "it could not be rehearsed: " + s.reason}, nil
			}
			return err
		})
	}
	err = g.Wait()
	if task.Done(err); err != nil {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return nil, err
	}
	for i, v := range vats {
		if v.Terminated {
			continue
		}
		spans := func(column int) []Span { return lastIncarnation(report.Vats[i].Runs[column].Spans) }
		adoption := adopt(spans(ColumnAdoption), from, to, report.Passes, !o.KeepWorker)
		migration := migrate(spans(ColumnMigration), report.Passes)
		if migration.Works && migration.Snapshot != "" && o.Snapshots != "" {
			migration.File = keptSnapshot(o.Snapshots, v.ID, migration.Position)
		}
		k := Classified{Vat: v.ID, Name: v.Name, Ways: []Way{adoption, migration, incarnations[i]}}
		k.Class, k.Reason = class(adoption, migration, incarnations[i], report.Passes, from.Version, to.Version)
		c.Vats = append(c.Vats, k)
	}
	return c, nil
}

func lastIncarnation(spans []Span) []Span {
	for i := len(spans) - 1; i > 0; i-- {
		if spans[i-1].Incarnation != spans[i].Incarnation {
			return spans[i:]
		}
	}
	return spans
}

// class decides, by the ways that work.
func class(adoption, migration, incarnation Way, passes Level, from, to string) (Class, string) {
	diverges := func(w Way) bool { return w.Level != nil && *w.Level < passes }
	switch {
	case adoption.Works:
		return Resume, adoption.Reason
	case diverges(adoption):
		return Stay, adoption.Reason
	case diverges(migration):
		return Stay, migration.Reason
	case incarnation.Works && migration.Works:
		return Upgrade, fmt.Sprintf("%s; it can be upgraded or migrated", adoption.Reason)
	case incarnation.Works:
		return Upgrade, fmt.Sprintf("%s; it can be upgraded, but not migrated: %s", adoption.Reason, migration.Reason)
	case migration.Works:
		return Upgrade, fmt.Sprintf("%s; it can be migrated, but not upgraded: %s", adoption.Reason, incarnation.Reason)
	}
	return Stay, fmt.Sprintf("no way to %s works: %s; %s; %s", to, adoption.Reason, migration.Reason, incarnation.Reason)
}

// replayed sums up spans that were replayed.
func replayed(spans []Span) *VatRun {
	r := &VatRun{Spans: spans}
	r.sum()
	return r
}

// adopt says whether a vat can go on from the heap snapshot that it has.
func adopt(spans []Span, from, to *vat.Engine, passes Level, reload bool) Way {
	w := Way{Way: WaySnapshot}
	if len(spans) == 0 {
		w.Reason = "there is no transcript"
		return w
	}
	last := spans[len(spans)-1]
	// An earlier heap snapshot that the version does not load says nothing of the one in use.
	r := replayed(slices.DeleteFunc(slices.Clone(spans), func(s Span) bool { return s.Outcome == Refused }))
	w.Computrons = r.Computrons.Got
	hash := ""
	if n, _ := fmt.Sscanf(last.From, "snapshot %s", &hash); n == 1 {
		w.Snapshot, w.Position = hash, last.Start
	}
	switch last.Outcome {
	case Refused:
		w.Reason = last.Reason
		return w
	case Unavailable, Unreached, Damaged:
		w.Reason = "its current span could not be replayed: " + last.Reason
		return w
	}
	for _, s := range spans {
		if s.Outcome == Damaged {
			w.Reason = "its transcript is not what it should be: " + s.Reason
			return w
		}
	}
	w.Level = &r.Level
	var made *Snapshot // by the new version, and then the current span followed
	if n := len(spans); n > 1 && hash == "" {
		made = spans[n-2].Snapshot
	}
	if made != nil {
		w.Snapshot, w.Size, w.Position = made.Expected, made.Size, last.Start
	}
	switch {
	case !r.Passes(passes):
		w.Reason = fmt.Sprintf("%s does not do what was recorded: %s; %s", to.Version, r.Level, firstDifference(spans))
	case made != nil && (made.Got != made.Expected || !reload):
		w.Level = nil
		w.Reason = "the source does not have the heap snapshot that it would go on from"
	case made != nil && to.CheckSnapshot("", made.Expected, from.Version) != nil:
		w.Reason = fmt.Sprintf("%s makes the same heap snapshot and goes on from it (%s), but its description does not say that it loads those of %s", to.Version, r.Level, from.Version)
	case made != nil:
		w.Works = true
		w.Reason = fmt.Sprintf("%s makes the same heap snapshot and goes on from it: %s", to.Version, r.Level)
	case hash == "":
		w.Works = true
		w.Reason = fmt.Sprintf("it has no heap snapshot yet, and its transcript replays on %s: %s", to.Version, r.Level)
	case to.CheckSnapshot("", hash, from.Version) != nil:
		w.Reason = fmt.Sprintf("%s loads its heap snapshot and replays what followed (%s), but its description does not say that it loads those of %s", to.Version, r.Level, from.Version)
	default:
		w.Works = true
		w.Reason = fmt.Sprintf("%s loads its heap snapshot and replays what followed: %s", to.Version, r.Level)
	}
	return w
}

// migrate says whether a vat's whole incarnation can be replayed, and what heap snapshot comes of it.
func migrate(spans []Span, passes Level) Way {
	w := Way{Way: WayMigration}
	if len(spans) == 0 {
		w.Reason = "there is no transcript"
		return w
	}
	r := replayed(spans)
	w.Computrons = r.Computrons.Got
	for _, s := range spans {
		if s.Snapshot != nil {
			w.Snapshot, w.Size, w.Position = s.Snapshot.Got, s.Snapshot.Size, s.End
		}
		if s.Outcome == Unavailable || s.Outcome == Damaged {
			w.Reason = fmt.Sprintf("its transcript is not whole: %s", s.Reason)
			return w
		}
	}
	w.Level = &r.Level
	switch {
	case !r.Passes(passes):
		w.Reason = fmt.Sprintf("replaying its transcript from the start gives something else: %s; %s", r.Level, firstDifference(spans))
	case w.Snapshot == "":
		w.Works = true
		w.Reason = fmt.Sprintf("its transcript replays from the start (%s), and there is no heap snapshot to be made yet", r.Level)
	default:
		w.Works = true
		w.Reason = fmt.Sprintf("its transcript replays from the start: %s", r.Level)
	}
	return w
}

func firstDifference(spans []Span) string {
	worst, text := Identical+1, "no difference is listed"
	for _, s := range spans {
		for _, d := range s.Listed {
			if d.Dimension.Level() < worst {
				worst, text = d.Dimension.Level(), fmt.Sprintf("the first at item %d, in %s", d.Position, d.Dimension)
			}
		}
		if s.Outcome == Stopped && worst > Divergent {
			worst, text = Divergent, s.Reason
		}
	}
	return text
}

func keptSnapshot(dir, vat string, position int64) string {
	return filepath.Join(dir, fmt.Sprintf("snapshot.%s.%d.gz", vat, position-1))
}

// rehearsal is an upgrade of a vat that is rehearsed.
type rehearsal struct {
	ID         string          `json:"vat"`
	Name       string          `json:"name,omitempty"`
	BundleID   string          `json:"bundleID"`
	Parameters json.RawMessage `json:"parameters"`
	Options    json.RawMessage `json:"options"`
	Span       transcriptSpan  `json:"span"`                   // the current one
	Snapshot   string          `json:"heapSnapshot,omitempty"` // SHA-256 of the one in use
}

// Names of a rehearsal's files, besides those of the two versions.
const (
	vatName      = "vat.json" // a rehearsal
	vatstoreName = "vatstore" // the keys and values of the vat's vatstore, as copyVatstore hashes them
	wayName      = "way.json" // the output: a Way
)

// action returns the rehearsal as an action. What it does not have by content it names by hash, as the action of a piece does.
func (r *rehearsal) action(from, to *vat.Engine, vatstore cas.Digest, relax bool) (*action.Action, error) {
	c := newCommand("rehearse", wayName)
	files := []*repb.FileNode{file(vatstoreName, vatstore)}
	for _, side := range []struct {
		name   string
		engine *vat.Engine
	}{{"from", from}, {"to", to}} {
		f, err := filesOf(side.engine)
		if err != nil {
			return nil, err
		}
		c.flag(side.name, side.engine.Version)
		c.worker(side.name+"-", side.engine.Worker)
		files = append(append(files, f.program(side.name+"-")...), f.bundles(side.name+"-")...)
	}
	c.option("relax-durability-rules", relax)
	return c.action(files, vatName, r)
}

// tryIncarnation rehearses an upgrade of a vat: on a copy of all that the vat has, it is brought back on the old version, and begins a new
// incarnation of the same code on the new one, for which it has so much time.
func tryIncarnation(ctx context.Context, source transcripts.Source, v swingstore.Vat, from, to *vat.Engine, c *cache, timeout time.Duration) (w Way, err error) {
	w = Way{Way: WayIncarnation}
	spans, err := source.Spans(ctx, v.ID)
	if err != nil {
		return w, err
	}
	switch {
	case len(spans) == 0 || !spans[len(spans)-1].Current:
		w.Reason = "it has no current span"
		return w, nil
	case source.Kind() == transcripts.KindSlog || source.Kind() == transcripts.KindTranscript:
		w.Reason = fmt.Sprintf("a %s does not have what the vat keeps in its vatstore", source.Kind())
		return w, nil
	case v.BundleID == "" || v.Options.WorkerOptions.Type != "xsnap":
		w.Reason = "it has no bundle that a worker could start"
		return w, nil
	case v.Options.EnableSetup || v.Options.WorkerOptions.BundleIDs == nil:
		w.Reason = "it is no vat of liveslots"
		return w, nil
	}
	current := spans[len(spans)-1]
	var inUse *swingstore.Snapshot
	snapshots, err := source.Snapshots(ctx, v.ID)
	if err != nil {
		return w, err
	}
	for i, s := range snapshots {
		if s.InUse {
			inUse = &snapshots[i]
		}
	}
	if v.Parameters == nil {
		w.Reason = "the source does not have the parameters that it was started with"
		return w, nil
	}
	dir, err := os.MkdirTemp("", "rehearsal-")
	if err != nil {
		return w, err
	}
	defer os.RemoveAll(dir)
	s, err := swingstore.Create(filepath.Join(dir, swingstore.FileName))
	if err != nil {
		return w, err
	}
	defer s.Close()
	tx, err := s.Begin()
	if err != nil {
		return w, err
	}
	defer tx.Rollback()
	vatstore, err := copyVatstore(ctx, tx, source, v.ID)
	if err != nil {
		return w, err
	}
	relax, err := relaxed(ctx, source)
	if err != nil {
		return w, err
	}
	about := rehearsal{ID: v.ID, Name: v.Name, BundleID: v.BundleID, Parameters: v.Parameters, Options: v.RawOptions, Span: describe(current)}
	if inUse != nil {
		about.Snapshot = inUse.Hash
	}
	a, err := about.action(from, to, vatstore, relax)
	if err != nil {
		return w, err
	}
	if has, err := hasSpan(ctx, source, current); err != nil {
		return w, err
	} else if has {
		if found, err := c.read(a, &w); err != nil || found {
			return w, err
		}
	}
	if err := copyBundle(ctx, tx, source, v.BundleID); err != nil {
		return w, err
	}
	host := &kernelless{}
	old := true // the old incarnation gets its last delivery
	if err := copyVat(ctx, tx, source, v, current, inUse); err != nil {
		if !errors.Is(err, swingstore.ErrPruned) && !errors.Is(err, swingstore.ErrNotFound) {
			return w, err
		}
		old = false // as when its engine is no longer there
		c = nil     // what comes of it is not what comes of all that the action names
	}
	subject := vat.New(vat.Options{ID: v.ID, Host: host, Engines: func(version string) (*vat.Engine, error) {
		if version == to.Version && host.upgrading {
			return to, nil
		}
		return from, nil
	}})
	defer subject.Close()
	next := vat.Incarnation{Engine: to.Version, BundleID: v.BundleID, Parameters: v.Parameters}
	rehearsing, end := context.WithCancelCause(ctx)
	defer end(nil)
	between := func() error {
		host.upgrading = true
		late := time.AfterFunc(timeout, func() { end(context.DeadlineExceeded) })
		context.AfterFunc(rehearsing, func() { late.Stop() })
		return nil
	}
	var r *vat.Result
	if old {
		r, err = subject.Upgrade(rehearsing, tx, next, between)
		if err != nil && !host.upgrading && isEngines(err) {
			old, w.Reason = false, fmt.Sprintf("; %s does not bring it back for its last delivery", from.Version)
		} else if err == nil && !r.Kept && !host.upgrading {
			w.Reason = fmt.Sprintf("its last delivery on %s fails: %s", from.Version, r.Problem)
			return w, c.write(a, w)
		}
	}
	if !old {
		r, err = subject.UpgradeWithoutEngine(rehearsing, tx, next, between)
	}
	switch {
	case err != nil && ctx.Err() != nil:
		return w, context.Cause(ctx)
	case err != nil && rehearsing.Err() != nil:
		w.Reason = fmt.Sprintf("a new incarnation does not start on %s within %v", to.Version, timeout)
		return w, nil // on another machine it may
	case err != nil:
		why, err := ended(err)
		if err != nil {
			return w, fmt.Errorf("rehearsing an upgrade of %s to %s: %w", v.ID, to.Version, err)
		}
		w.Reason = fmt.Sprintf("a new incarnation does not start on %s: %s", to.Version, why)
	case !r.Kept:
		w.Reason = fmt.Sprintf("a new incarnation does not start on %s: %s", to.Version, r.Problem)
	default:
		w.Works, w.Computrons = true, r.Meter.Computrons
		w.Reason = fmt.Sprintf("a new incarnation starts on %s%s", to.Version, w.Reason)
	}
	return w, c.write(a, w)
}

// isEngines reports whether it is the engine on which a vat could not be brought back that is to blame.
func isEngines(err error) bool {
	var differs *vat.ReplayError
	var refused *vat.SnapshotRefusedError
	if errors.As(err, &differs) || errors.As(err, &refused) {
		return true
	}
	_, err = ended(err)
	return err == nil
}

// kernelless answers the syscalls of a rehearsal, where there is no other vat and no device.
type kernelless struct {
	upgrading bool // the new incarnation starts
}

func (*kernelless) Syscall(_ context.Context, _ *swingstore.Tx, _ string, syscall []byte) ([]byte, error) {
	if kindOf(syscall) == "callNow" {
		return nil, &vat.CallError{Problem: "there are no devices in a rehearsal"}
	}
	return nil, nil
}

// copyVatstore copies what a vat keeps, and returns the digest of it: of the keys and values in their order, each after its length and a colon.
func copyVatstore(ctx context.Context, tx *swingstore.Tx, source transcripts.Source, id string) (cas.Digest, error) {
	h, size := sha256.New(), new(counter)
	w := io.MultiWriter(h, size)
	for p, err := range source.Keys(ctx, id+".vs.") {
		if err != nil {
			return cas.Digest{}, err
		}
		if err := tx.Set(p.Key, p.Value); err != nil {
			return cas.Digest{}, err
		}
		fmt.Fprintf(w, "%d:%s%d:%s", len(p.Key), p.Key, len(p.Value), p.Value)
	}
	return cas.Digest{Hash: hex.EncodeToString(h.Sum(nil)), Size: int64(*size)}, nil
}

// copyBundle copies a bundle.
func copyBundle(ctx context.Context, tx *swingstore.Tx, source transcripts.Source, id string) error {
	bundle, err := source.Bundle(ctx, id)
	if err != nil {
		return err
	}
	_, err = tx.AddBundle(bundle)
	return err
}

// copyVat copies what a vat is brought back from. The error is swingstore.ErrPruned or swingstore.ErrNotFound if not all of it is there, and then a
// vat is there to be upgraded without being brought back.
func copyVat(ctx context.Context, tx *swingstore.Tx, source transcripts.Source, v swingstore.Vat, current swingstore.Span, inUse *swingstore.Snapshot) error {
	if err := tx.SetVat(v); err != nil {
		return err
	}
	relax, err := source.Get(ctx, "kernel.relaxDurabilityRules")
	if err == nil {
		err = tx.Set("kernel.relaxDurabilityRules", relax)
	}
	if err != nil && !errors.Is(err, swingstore.ErrNotFound) {
		return err
	}
	if current.Start > 0 {
		before := current
		before.Start, before.End, before.Current, before.Hash = 0, current.Start, false, ""
		if err := tx.AddSpan(before); err != nil {
			return err
		}
	}
	begun := swingstore.Span{Vat: v.ID, Start: current.Start, End: current.Start, Hash: swingstore.StartHash, Current: true, Incarnation: current.Incarnation}
	if err := tx.AddSpan(begun); err != nil {
		return err
	}
	if inUse != nil {
		if err := copySnapshot(ctx, tx, source, *inUse); err != nil {
			return err
		}
	} else {
		for _, id := range v.Options.WorkerOptions.BundleIDs {
			if err := copyBundle(ctx, tx, source, id); err != nil {
				return err
			}
		}
	}
	for item, err := range source.Items(ctx, current) {
		if err != nil {
			return err
		}
		if _, err := tx.AddItem(v.ID, item.Text); err != nil {
			return err
		}
	}
	return nil
}
