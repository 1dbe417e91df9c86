package replay

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"time"

	"github.com/enginery/enginery/replay/transcripts"
	"github.com/enginery/enginery/swingstore"
	"github.com/enginery/enginery/vat"
	"github.com/enginery/enginery/xsnap"
)

// result is what came of a piece. It is kept in the cache.
type result struct {
	Spans  []Span `json:"spans"`
	Series Series `json:"series"`
}

// final reports whether a result depends on nothing but the piece and the engine, so that it holds for ever.
func (r *result) final() bool {
	for _, s := range r.Spans {
		if s.Outcome == Damaged || s.Outcome == Unavailable || s.Differences[Timeout] > 0 {
			return false
		}
	}
	return true
}

// player replays a piece.
type player struct {
	*piece
	m      *vat.Manager
	result result
	span   *Span // that it is in
	id     swingstore.Span

	heap    string // "snapshot HASH" that the last span ended with, or ""
	pending int64  // deliveries of which nobody was told yet
	told    time.Time

	checkpoints *checkpoints // nil: none
}

// play replays a piece. What the version, the vat or the source is to blame for is in the result; an error is something else.
func (p *piece) play(ctx context.Context, c *checkpoints) (*result, error) {
	return (&player{piece: p, checkpoints: c}).play(ctx)
}

func (p *player) play(ctx context.Context) (*result, error) {
	ctx, cancel := context.WithCancel(ctx) // which the workers live in
	defer cancel()
	defer func() {
		if p.m != nil {
			p.m.Kill()
		}
	}()
	done, err := p.goOn(ctx)
	if err != nil {
		return nil, err
	}
	for i, s := range p.spans {
		if i < done {
			p.run.tell(Event{Kind: Finished, Vat: p.vat.ID, Start: s.Start, Deliveries: p.result.Spans[i].Deliveries, Cached: true, Result: &p.result.Spans[i]})
			continue
		}
		begun := time.Now()
		p.id = s
		p.result.Spans = append(p.result.Spans, Span{
			Start: s.Start, End: s.End, Incarnation: s.Incarnation, Hash: s.Hash, Level: Identical, Differences: make(map[Dimension]int64),
		})
		p.span = &p.result.Spans[i]
		p.run.tell(Event{Kind: Started, Vat: p.vat.ID, Start: s.Start})
		var err error
		switch before := p.before(i); {
		case before == nil || before.Outcome == Replayed:
			err = p.playSpan(ctx, i)
		case before.Outcome == Unavailable || before.Outcome == Damaged:
			err = &stop{before.Outcome, fmt.Sprintf("it follows on span %d, which could not be read, and there is no heap snapshot to start from", before.Start)}
		case before.Outcome == Refused:
			err = &stop{Refused, before.Reason}
		default:
			err = &stop{Unreached, fmt.Sprintf("it follows on span %d, whose replay ended early", before.Start)}
		}
		p.advance(true)
		if err != nil {
			end, err := p.judge(ctx, err)
			if err != nil {
				return nil, err
			}
			p.span.Outcome, p.span.Reason = end.outcome, end.reason
			if p.m != nil {
				p.m.Kill()
				p.m = nil
			}
		} else {
			p.span.Outcome = Replayed
		}
		if p.span.Outcome != Replayed {
			p.span.Level = Divergent
		}
		p.span.Seconds = time.Since(begun).Seconds()
		p.checkpoints.keep(&p.result)
		p.run.tell(Event{Kind: Finished, Vat: p.vat.ID, Start: s.Start, Deliveries: p.span.Deliveries, Result: p.span})
	}
	return &p.result, nil
}

func (p *player) before(i int) *Span {
	if i == 0 {
		return nil
	}
	return &p.result.Spans[i-1]
}

// playSpan replays the i-th span of the piece.
func (p *player) playSpan(ctx context.Context, i int) error {
	reading, cancel := context.WithCancel(ctx)
	defer cancel()
	entries := read(reading, p.run.source, p.id)
	err := p.playEntries(ctx, entries, i)
	var s *stop
	if errors.As(err, &s) && (s.outcome == Stopped || s.outcome == Refused) {
		for e := range entries { // whether the items have the span's hash is only known at their end
			if e.err != nil {
				return e.err
			}
		}
	}
	return err
}

func (p *player) playEntries(ctx context.Context, entries <-chan entry, i int) error {
	last := ""
	for e := range entries {
		if e.err != nil {
			return e.err
		}
		kind := e.entry.Kind()
		if want := p.place(e, kind, last, i); want != "" {
			p.differ(e, Structure, 0, want, string(e.entry.Delivery))
			if e.position == p.id.Start {
				return &stop{Stopped, fmt.Sprintf("the span starts with %q, expected %s", kind, want)}
			}
			last = kind
			continue
		}
		last = kind
		var err error
		switch kind {
		case "initialize-worker":
			err = p.initialize(ctx, e)
		case "load-snapshot":
			err = p.load(ctx, e, i)
		case "save-snapshot":
			err = p.save(ctx, e)
		case "shutdown-worker":
			err = p.shutdown()
		default:
			err = p.deliver(ctx, e)
		}
		if err != nil {
			return err
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if p.id.End < p.end && last != "save-snapshot" && last != "shutdown-worker" {
		p.count(Structure)
		p.list(Difference{Position: p.id.End - 1, Delivery: last, Dimension: Structure, Expected: spanEnd, Got: last})
	}
	return nil
}

// spanEnd is expected at the end of a span that is not the vat's last.
const spanEnd = "save-snapshot or shutdown-worker at the end of the span"

// kinds are those of the deliveries that a supervisor takes.
var kinds = []string{"message", "notify", "dropExports", "retireExports", "retireImports", "changeVatOptions", "startVat", "stopVat", "bringOutYourDead"}

// place returns what should be in the place of an item that cannot stand where it stands, and otherwise "".
func (p *player) place(e entry, kind, last string, i int) string {
	begins := kind == "initialize-worker" || kind == "load-snapshot"
	ends := kind == "save-snapshot" || kind == "shutdown-worker"
	switch {
	case e.position == p.id.Start && (i > 0 || p.snapshot != nil):
		if kind != "load-snapshot" || i > 0 && p.m == nil {
			return "load-snapshot"
		}
	case e.position == p.id.Start && !begins:
		return "initialize-worker"
	case e.position == p.id.Start:
	case last == "save-snapshot" || last == "shutdown-worker":
		return "nothing after " + last
	case begins || !ends && !slices.Contains(kinds, kind):
		return "a delivery"
	}
	return ""
}

// initialization is what initialize-worker says.
type initialization struct {
	Source struct {
		BundleID string `json:"bundleID"`
	} `json:"source"`
	WorkerOptions swingstore.WorkerOptions `json:"workerOptions"`
}

func parseInitialize(delivery []byte) (init initialization, err error) {
	var list []json.RawMessage
	if err := json.Unmarshal(delivery, &list); err != nil {
		return init, err
	}
	if len(list) != 2 {
		return init, errors.New("it has no options")
	}
	return init, json.Unmarshal(list[1], &init)
}

// initialize starts a worker from bundles.
func (p *player) initialize(ctx context.Context, e entry) error {
	init, err := parseInitialize(e.entry.Delivery)
	w := init.WorkerOptions
	switch {
	case err != nil:
		p.differ(e, Structure, 0, `["initialize-worker",{…}]`, string(e.entry.Delivery))
		return &stop{Stopped, "its worker cannot be initialized"}
	case w.Type != "" && w.Type != "xsnap" && w.Type != "xs-worker":
		return &stop{Unavailable, fmt.Sprintf("it ran on a worker of type %q, which needs no engine", w.Type)}
	case init.Source.BundleID == "":
		return &stop{Unavailable, "the source does not say what bundle it ran"}
	}
	mo := vat.ManagerOptions{Worker: p.worker(), ID: p.vat.ID, Name: p.vat.Name, LiveSlots: vat.LiveSlots{EnableDisavow: p.vat.Options.EnableDisavow, RelaxDurabilityRules: p.run.relax}}
	ids, own := w.BundleIDs, [2][]byte{}
	if p.run.column.Bundles == BundlesVersion || len(ids) != 2 {
		ids, own = []string{"lockdown", "supervisor"}, [2][]byte{p.run.engine.Lockdown, p.run.engine.Supervisor}
		if own[0] == nil || own[1] == nil {
			return &stop{Unavailable, "neither the source nor the version has lockdown and supervisor bundles"}
		}
	}
	for i, dst := range []*vat.Script{&mo.Lockdown, &mo.Supervisor} {
		if *dst, err = p.run.script(ctx, ids[i], own[i]); err != nil {
			return err
		}
	}
	if mo.Bundle, err = p.run.bundle(ctx, init.Source.BundleID); err != nil {
		return err
	}
	p.span.From = "bundles"
	life, err := p.start(ctx, mo)
	if err != nil {
		return p.gone(life, e, err)
	}
	return nil
}

// start starts a worker, and returns the context that it lives in.
func (p *player) start(ctx context.Context, mo vat.ManagerOptions) (context.Context, error) {
	life, end := context.WithCancelCause(ctx)
	late := time.AfterFunc(p.run.timeout, func() { end(context.DeadlineExceeded) })
	m, err := vat.StartManager(life, mo)
	if !late.Stop() && err == nil {
		m.Kill()
		err = context.DeadlineExceeded
	}
	if err == nil {
		p.m = m
	}
	return life, err
}

func (p *piece) worker() xsnap.Options {
	w := p.run.engine.Worker
	if p.vat.Options.MeterID != "" {
		w.MeteringLimit = vat.DefaultMeteringLimit
	}
	return w
}

// load starts a worker from the heap snapshot that a span begins with, or goes on with the one that there is.
func (p *player) load(ctx context.Context, e entry, i int) error {
	if i > 0 {
		p.span.From = fmt.Sprintf("span %d", p.spans[i-1].Start)
		if want := p.heap; want != "" && want != hashIn(e.entry.Delivery) {
			p.differ(e, Structure, 0, `["load-snapshot",{"snapshotID":"`+want+`"}]`, string(e.entry.Delivery))
		}
		return nil
	}
	if p.snapshot == nil {
		return &stop{Unavailable, "it begins with a heap snapshot, and the source has none that it could start from"}
	}
	if hash := hashIn(e.entry.Delivery); hash != p.snapshot.Hash {
		p.differ(e, Structure, 0, `["load-snapshot",{"snapshotID":"`+p.snapshot.Hash+`"}]`, string(e.entry.Delivery))
	}
	p.span.From = "snapshot " + p.snapshot.Hash
	r, err := p.run.source.OpenSnapshot(ctx, *p.snapshot)
	if err != nil {
		return err
	}
	defer r.Close()
	mo := vat.ManagerOptions{Worker: p.worker(), ID: p.vat.ID, Name: p.vat.Name}
	mo.Worker.Snapshot, mo.Worker.SnapshotSHA256 = r, p.snapshot.Hash
	life, err := p.start(ctx, mo)
	if err == nil {
		return nil
	}
	var damaged *swingstore.DamagedError
	if errors.As(err, &damaged) || ctx.Err() != nil {
		return err
	}
	if life.Err() != nil {
		return p.gone(life, e, err)
	}
	why, err := ended(err)
	if err != nil {
		return err
	}
	// The worker may have given up before its end, where it shows whether it is what it should be.
	whole, err := p.run.source.OpenSnapshot(ctx, *p.snapshot)
	if err != nil {
		return err
	}
	defer whole.Close()
	if _, err := io.Copy(io.Discard, whole); err != nil {
		return err
	}
	return &stop{Refused, fmt.Sprintf("%s does not load its heap snapshot %s: %s", p.run.engine.Version, p.snapshot.Hash, why)}
}

// hashIn returns the hash that load-snapshot names.
func hashIn(delivery []byte) string {
	var list []json.RawMessage
	var load struct{ SnapshotID string }
	if json.Unmarshal(delivery, &list) == nil && len(list) == 2 {
		json.Unmarshal(list[1], &load) // "" is the hash of nothing
	}
	return load.SnapshotID
}

// save takes a heap snapshot and, as the chain does, starts the worker anew from it.
func (p *player) save(ctx context.Context, e entry) (err error) {
	hash, size := sha256.New(), new(counter)
	dst := io.MultiWriter(hash, size)
	if p.keep != "" && e.position+1 == p.spans[len(p.spans)-1].Start {
		file, err := newSnapshotFile(p.keep)
		if err != nil {
			return err
		}
		defer file.discard()
		dst = io.MultiWriter(hash, size, file)
		defer func() {
			if err == nil {
				err = file.finish()
			}
		}()
	}
	if heap := p.checkpoints.begin(); heap != nil {
		dst = io.MultiWriter(dst, heap)
	}
	limit, cancel := context.WithTimeout(ctx, p.run.timeout)
	defer cancel()
	halt := context.AfterFunc(limit, p.m.Kill)
	err = p.m.Snapshot(ctx, dst, p.run.column.Reload)
	if !halt() && err == nil {
		err = xsnap.ErrKilled // or is about to be
	}
	if err != nil {
		return p.gone(limit, e, err)
	}
	p.heap = e.entry.Result.SnapshotID
	p.span.Snapshot = &Snapshot{Expected: p.heap, Got: hex.EncodeToString(hash.Sum(nil)), Size: int64(*size)}
	if p.span.Snapshot.Got != p.heap {
		p.differ(e, HeapSnapshot, 0, p.heap, p.span.Snapshot.Got)
	}
	return nil
}

type counter int64

func (c *counter) Write(b []byte) (int, error) {
	*c += counter(len(b))
	return len(b), nil
}

func (p *player) shutdown() error {
	m := p.m
	p.m = nil
	if err := m.Close(); err != nil {
		m.Kill()
		if _, err := ended(err); err != nil {
			return err
		}
	}
	return nil
}

// deliver makes a delivery and compares all that comes of it.
func (p *player) deliver(ctx context.Context, e entry) error {
	limit, cancel := context.WithTimeout(ctx, p.run.timeout)
	defer cancel()
	m := &matcher{entry: &e.entry}
	begun := time.Now()
	o, err := p.m.Deliver(limit, e.entry.Delivery, func(_ context.Context, syscall []byte) ([]byte, error) { return m.syscall(syscall), nil })
	seconds := time.Since(begun).Seconds()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	e.meter = Meter{o.Meter.Compute, o.Meter.Allocate, o.Meter.HeapCount}
	found := m.finish()
	if err != nil {
		found = slices.DeleteFunc(found, func(f finding) bool { return f.dimension == MissingSyscall }) // it had no time for them
	}
	for _, f := range found {
		p.differ(e, f.dimension, f.index, string(f.expected), string(f.got))
	}
	p.span.Deliveries++
	p.pending++
	p.advance(false)
	if err != nil {
		return p.gone(limit, e, err)
	}
	recorded := e.entry.Result
	status := "ok"
	if !o.OK {
		status = "error: " + o.Problem
	}
	if got := status; o.OK != (recorded.Status == "ok") {
		p.differ(e, Status, 0, recorded.Status, got)
	}
	expected := int64(-1)
	if recorded.Metering != nil {
		expected = recorded.Metering.Computrons
		p.span.Computrons.Expected += expected
		p.span.Computrons.Got += o.Meter.Compute
		if expected != o.Meter.Compute {
			p.differ(e, Computrons, 0, strconv.FormatInt(expected, 10), strconv.FormatInt(o.Meter.Compute, 10))
		}
	}
	if o.Meter.HeapCount > 0 { // otherwise the worker had no time to say
		p.span.HeapCount, p.span.Allocated = o.Meter.HeapCount, o.Meter.Allocate
	}
	p.result.Series.add(e.position, max(expected, 0), o.Meter.Compute, o.Meter.HeapCount, o.Meter.Allocate, seconds)
	if o.Ended && (recorded.Status == "ok" || e.position+1 < p.id.End) {
		return &stop{Stopped, fmt.Sprintf("the vat's fault ended the worker at item %d: %s", e.position, o.Problem)}
	}
	return nil
}

// differ notes a difference.
func (p *player) differ(e entry, d Dimension, index int, expected, got string) {
	p.count(d)
	if p.span.Differences[d] > DefaultListed {
		return
	}
	expected, got = shorten(expected, got)
	delivery, _ := shorten(string(e.entry.Delivery), "")
	p.list(Difference{Position: e.position, Delivery: delivery, Dimension: d, Syscall: index, Expected: expected, Got: got, Meter: e.meter})
}

func (p *player) count(d Dimension) {
	p.span.Differences[d]++
	p.span.Level = min(p.span.Level, d.Level())
}

func (p *player) list(d Difference) {
	d.Vat, d.Incarnation, d.Span = p.vat.ID, p.id.Incarnation, p.id.Start
	p.span.Listed = append(p.span.Listed, d)
}

// advance tells how many deliveries were made, not too often.
func (p *player) advance(now bool) {
	const pause = 100 * time.Millisecond
	if p.pending == 0 || !now && time.Since(p.told) < pause {
		return
	}
	p.run.tell(Event{Kind: Advanced, Vat: p.vat.ID, Start: p.id.Start, Deliveries: p.pending})
	p.pending, p.told = 0, time.Now()
}

// entry is an item, read.
type entry struct {
	position int64
	entry    vat.Entry
	meter    Meter
	err      error
}

// read reads items ahead of the worker that does them.
func read(ctx context.Context, source transcripts.Source, s swingstore.Span) <-chan entry {
	const ahead = 32
	entries := make(chan entry, ahead)
	go func() {
		defer close(entries)
		for item, err := range source.Items(ctx, s) {
			e := entry{position: item.Position, err: err}
			if err == nil {
				if err := json.Unmarshal(item.Text, &e.entry); err != nil {
					e.err = &swingstore.DamagedError{Store: source.Path(), What: fmt.Sprintf("item %d of %s", item.Position, s), Want: "an item of a transcript in JSON", Found: err.Error()}
				}
			}
			select {
			case entries <- e:
			case <-ctx.Done():
				return
			}
			if e.err != nil {
				return
			}
		}
	}()
	return entries
}
