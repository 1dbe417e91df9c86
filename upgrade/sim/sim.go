// Package sim runs the upgrade controller at scale: a rollout over all vats of a chain, messages that wait for those that fail, and their
// queues when they have been mended. There is no worker in it: a vat is a number, the next message that it must get.
package sim

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"runtime"
	"strconv"
	"text/tabwriter"
	"time"

	"github.com/enginery/enginery/internal/progress"
	"github.com/enginery/enginery/upgrade"
	"golang.org/x/sys/unix"
)

// Options say how much there is to do.
type Options struct {
	Vats      int64 `json:"vats"`
	Messages  int64 `json:"messages"`  // that are sent to vats whose upgrade failed
	FailEvery int64 `json:"failEvery"` // one vat of so many fails, until it gets another bundle
	Rebuild   bool  `json:"rebuild"`   // the state is made a second time, from the events as lines of JSON, and compared
}

// Default is the size that docs/upgrade.md has figures of.
var Default = Options{Vats: 100_000, Messages: 1_000_000, FailEvery: 100, Rebuild: true}

const (
	from, to = "agoric-upgrade-16", "agoric-upgrade-18"
	mended   = "b1-mended"

	upgradesPerBlock   = 100
	deliveriesPerBlock = 5000
	callsPerBlock      = 10_000 // of the host, in blocks that hand in what there is
	trafficPerBlock    = 100    // messages, while there is a rollout
)

// settings gives room for the numbers above.
func settings(o Options) upgrade.Settings {
	s := upgrade.DefaultSettings()
	s.Budget.Block = upgrade.Share{Upgrades: upgradesPerBlock, UpgradeComputrons: upgradesPerBlock * 30_000_000, Deliveries: deliveriesPerBlock, DeliveryComputrons: deliveriesPerBlock * 10_000}
	s.Limits = upgrade.Limits{Messages: o.Messages + 1, Bytes: 1 << 40, Total: 2*o.Messages + 1, Turn: 10}
	return s
}

// Work is what was done in a store.
type Work struct {
	Get    int64 `json:"get"`
	Next   int64 `json:"next"`
	Set    int64 `json:"set"`
	Delete int64 `json:"delete"`
}

// Total returns how many calls it is.
func (w Work) Total() int64 { return w.Get + w.Next + w.Set + w.Delete }

// Phase is a part of a run.
type Phase struct {
	Name    string  `json:"name"`
	Blocks  int64   `json:"blocks"`
	Calls   int64   `json:"calls"` // of the controller by the host, ends of blocks not counted
	Work    Work    `json:"work"`
	Most    int64   `json:"most"` // calls of the store in one end of a block
	Seconds float64 `json:"seconds"`
	CPU     float64 `json:"cpu"`     // seconds, of all threads; with the second state if there is one
	Longest float64 `json:"longest"` // CPU seconds of the end of a block
}

// Result is what came of a run.
type Result struct {
	Options Options `json:"options"`
	Phases  []Phase `json:"phases"`

	Upgraded   int64 `json:"upgraded"`
	Failed     int64 `json:"failed"`
	Delivered  int64 `json:"delivered"` // out of queues; each once and in order
	Direct     int64 `json:"direct"`    // at once
	Events     int64 `json:"events"`
	EventBytes int64 `json:"eventBytes"`
	Keys       int64 `json:"keys"`      // at the end
	Heap       int64 `json:"heapBytes"` // of the program, when most messages waited

	Probes []Probe `json:"probes"`
}

// Probe is the work of the same upgrades and deliveries in a chain with more or fewer other vats.
type Probe struct {
	Vats int64   `json:"vats"`
	Work Work    `json:"work"` // of the end of one block
	CPU  float64 `json:"cpu"`  // seconds
}

// counted counts the calls of a store.
type counted struct {
	*upgrade.Memory
	w Work
}

func (c *counted) Get(ctx context.Context, key string) (string, error) {
	c.w.Get++
	return c.Memory.Get(ctx, key)
}

func (c *counted) NextKey(ctx context.Context, key string) (string, error) {
	c.w.Next++
	return c.Memory.NextKey(ctx, key)
}

func (c *counted) Set(key, value string) error { c.w.Set++; return c.Memory.Set(key, value) }

func (c *counted) Delete(key string) error { c.w.Delete++; return c.Memory.Delete(key) }

// chain is a host that makes blocks. It checks that each vat gets its messages in order, and none twice.
type chain struct {
	o      Options
	store  *counted
	copy   *upgrade.Memory // from the events
	height int64
	c      *upgrade.Controller
	r      *Result
	sent   []int64 // by vat: how many messages were sent to it, and how many it got
	got    []int64
	phase  *Phase
}

func (c *chain) CheckVersion(context.Context, upgrade.Adoption) error { return nil }

func (c *chain) Upgrade(_ context.Context, a upgrade.Attempt) (upgrade.Outcome, error) {
	n, err := number(a.Vat)
	if err != nil {
		return upgrade.Outcome{}, err
	}
	if n%c.o.FailEvery == 1 && a.Bundle != mended {
		c.r.Failed++
		return upgrade.Outcome{Problem: "startVat threw", Computrons: 1_000_000}, nil
	}
	c.r.Upgraded++
	return upgrade.Outcome{OK: true, Computrons: 2_000_000}, nil
}

func (c *chain) Deliver(_ context.Context, vat string, d upgrade.Delivery) (upgrade.Outcome, error) {
	c.r.Delivered++
	return upgrade.Outcome{OK: true, Computrons: 5000}, c.take(vat, d)
}

func (c *chain) Discard(context.Context, string, upgrade.Delivery) error {
	return errors.New("no vat was terminated")
}

// take has a vat get a message.
func (c *chain) take(vat string, d upgrade.Delivery) error {
	n, err := number(vat)
	if err != nil {
		return err
	}
	if want := strconv.FormatInt(c.got[n], 10); string(d.Payload) != want {
		return fmt.Errorf("%s gets message %s, expected %s", vat, d.Payload, want)
	}
	c.got[n]++
	return nil
}

func id(n int64) string { return "v" + strconv.FormatInt(n, 10) }

func number(vat string) (int64, error) { return strconv.ParseInt(vat[1:], 10, 64) }

// send sends a vat its next message.
func (c *chain) send(ctx context.Context, n int64) error {
	d := upgrade.Delivery{Kind: upgrade.Message, Payload: json.RawMessage(strconv.FormatInt(c.sent[n], 10))}
	c.sent[n]++
	c.phase.Calls++
	v, err := c.c.Admit(ctx, id(n), d)
	switch {
	case err != nil:
		return err
	case v.Action == upgrade.Deliver:
		c.r.Direct++
		return c.take(id(n), d)
	case v.Action != upgrade.Queue:
		return fmt.Errorf("a message to v%d: %s, %s", n, v.Action, v.Reason)
	}
	return nil
}

func (c *chain) begin() {
	c.height++
	c.c = upgrade.Open(c.store, c, c.height)
}

// end ends a block and begins the next.
func (c *chain) end(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	before, start := c.store.w, cpu()
	if _, err := c.c.EndBlock(ctx, 0); err != nil {
		return err
	}
	c.phase.Blocks++
	c.phase.Longest = max(c.phase.Longest, cpu()-start)
	c.phase.Most = max(c.phase.Most, c.store.w.Total()-before.Total())
	if err := c.tell(ctx); err != nil {
		return err
	}
	c.begin()
	return nil
}

// tell writes the events of a block as a log has them, and makes the second state of them.
func (c *chain) tell(ctx context.Context) error {
	return upgrade.Rebuild(ctx, c.copy, func(yield func(upgrade.Event, error) bool) {
		for _, e := range c.c.Events() {
			line, err := json.Marshal(e)
			c.r.Events++
			c.r.EventBytes += int64(len(line)) + 1
			if !c.o.Rebuild {
				continue
			}
			var back upgrade.Event
			if err == nil {
				err = json.Unmarshal(line, &back)
			}
			if !yield(back, err) {
				return
			}
		}
	})
}

// during runs a phase.
func (c *chain) during(ctx context.Context, name string, total int64, f func(done func(int64)) error) error {
	task := progress.StartSteps(ctx, name, int(total))
	c.r.Phases = append(c.r.Phases, Phase{Name: name})
	c.phase = &c.r.Phases[len(c.r.Phases)-1]
	before, start, used := c.store.w, time.Now(), cpu()
	err := f(task.Add)
	c.phase.Seconds, c.phase.CPU = time.Since(start).Seconds(), cpu()-used
	w := c.store.w
	c.phase.Work = Work{w.Get - before.Get, w.Next - before.Next, w.Set - before.Set, w.Delete - before.Delete}
	task.Done(err)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// each calls f for numbers from 1 on, so many in a block.
func (c *chain) each(ctx context.Context, count, perBlock int64, done func(int64), f func(n int64) error) error {
	for n := int64(1); n <= count; n++ {
		if err := f(n); err != nil {
			return err
		}
		if n%perBlock == 0 || n == count {
			done((n-1)%perBlock + 1)
			if err := c.end(ctx); err != nil {
				return err
			}
		}
	}
	return nil
}

func newChain(ctx context.Context, o Options) (*chain, error) {
	c := &chain{o: o, store: &counted{Memory: upgrade.NewMemory()}, copy: upgrade.NewMemory(), r: &Result{Options: o}, sent: make([]int64, o.Vats+1), got: make([]int64, o.Vats+1)}
	c.begin()
	return c, c.c.Init(ctx, from, settings(o))
}

func (c *chain) install(ctx context.Context) error {
	return c.during(ctx, "install", c.o.Vats, func(done func(int64)) error {
		return c.each(ctx, c.o.Vats, callsPerBlock, done, func(n int64) error {
			c.phase.Calls++
			return c.c.AddVat(ctx, id(n), n == 2) // v2 never moves
		})
	})
}

// Run runs all of it. It is an error if a message is lost, doubled or out of order, or if the events do not make the state.
func Run(ctx context.Context, o Options) (*Result, error) {
	if o.Vats < 2*o.FailEvery || o.FailEvery < 3 {
		return nil, fmt.Errorf("%d vats of which one of %d fails; expected at least two of them to fail, and at most a third", o.Vats, o.FailEvery)
	}
	c, err := newChain(ctx, o)
	if err != nil {
		return nil, err
	}
	if err := c.install(ctx); err != nil {
		return nil, err
	}
	if err := c.during(ctx, "plan", o.Vats, func(done func(int64)) error {
		if err := c.c.Adopt(ctx, upgrade.Adoption{Version: to}); err != nil {
			return err
		}
		if err := c.c.StartRollout(ctx, upgrade.Plan{Version: to, MaxFailures: o.Vats, Paused: true}); err != nil {
			return err
		}
		if err := c.each(ctx, o.Vats, callsPerBlock, done, func(n int64) error {
			if n == 2 {
				return nil
			}
			c.phase.Calls++
			return c.c.ExtendRollout(ctx, []upgrade.Step{{Vat: id(n), Computrons: 2_000_000}})
		}); err != nil {
			return err
		}
		return c.c.ResumeRollout(ctx)
	}); err != nil {
		return nil, err
	}
	if err := c.during(ctx, "rollout", o.Vats, func(done func(int64)) error {
		random := rand.New(rand.NewPCG(1, 1)) // the same in every run
		for {
			for range trafficPerBlock {
				if err := c.send(ctx, 1+random.Int64N(o.Vats)); err != nil {
					return err
				}
			}
			if err := c.end(ctx); err != nil {
				return err
			}
			done(upgradesPerBlock)
			if r, err := c.c.Rollout(ctx); err != nil || r.State == upgrade.Done {
				return err
			}
		}
	}); err != nil {
		return nil, err
	}
	failing := (o.Vats-1)/o.FailEvery + 1
	fails := func(n int64) int64 { return n%failing*o.FailEvery + 1 }
	if err := c.during(ctx, "queue", o.Messages, func(done func(int64)) error {
		return c.each(ctx, o.Messages, callsPerBlock, done, func(n int64) error { return c.send(ctx, fails(n)) })
	}); err != nil {
		return nil, err
	}
	var memory runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&memory)
	c.r.Heap = int64(memory.HeapAlloc)
	if err := c.during(ctx, "mend and flush", o.Messages, func(done func(int64)) error {
		for n := range failing {
			c.phase.Calls++
			if _, err := c.c.RequestUpgrade(ctx, id(fails(n)), upgrade.Request{Bundle: mended}); err != nil {
				return err
			}
		}
		for n := int64(0); ; n++ {
			if err := c.send(ctx, fails(n)); err != nil { // behind what waits
				return err
			}
			before := c.r.Delivered
			if err := c.end(ctx); err != nil {
				return err
			}
			done(c.r.Delivered - before)
			t, err := c.c.Tally(ctx)
			if err != nil {
				return err
			}
			if t.Queued == 0 && t.Suspended == 0 && t.Upgrading == 0 {
				return nil
			}
		}
	}); err != nil {
		return nil, err
	}
	if err := c.tell(ctx); err != nil {
		return nil, err
	}
	return c.r, c.check()
}

// check sees that nothing was lost.
func (c *chain) check() error {
	for n := range c.sent {
		if c.sent[n] != c.got[n] {
			return fmt.Errorf("v%d has got %d of %d messages", n, c.got[n], c.sent[n])
		}
	}
	if want := c.o.Vats - 1; c.r.Upgraded != want {
		return fmt.Errorf("%d vats were upgraded, expected %d", c.r.Upgraded, want)
	}
	second := make(map[string]string)
	for k, v := range c.copy.All() {
		second[k] = v
	}
	for k, v := range c.store.All() {
		c.r.Keys++
		if c.o.Rebuild && second[k] != v {
			return fmt.Errorf("key %s is %s, and the events make %q of it", k, v, second[k])
		}
	}
	if c.o.Rebuild && int64(len(second)) != c.r.Keys {
		return fmt.Errorf("there are %d keys, and the events make %d", c.r.Keys, len(second))
	}
	return nil
}

// cpu returns the CPU time that the process has used, in seconds: a machine that is busy with other things does not change it much.
func cpu() float64 {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return float64(u.Utime.Nano()+u.Stime.Nano()) / 1e9
}

// Measure counts the work of one block that upgrades 100 vats and makes 1000 deliveries, in a chain of so many vats.
func Measure(ctx context.Context, vats int64) (Probe, error) {
	const touched, each = upgradesPerBlock, 10
	p := Probe{Vats: vats}
	o := Options{Vats: vats, Messages: touched * each, FailEvery: vats + 1}
	if vats < 3*touched {
		return p, fmt.Errorf("%d vats, expected at least %d", vats, 3*touched)
	}
	c, err := newChain(ctx, o)
	if err != nil {
		return p, err
	}
	if err := c.install(ctx); err != nil {
		return p, err
	}
	if err := c.c.Adopt(ctx, upgrade.Adoption{Version: to}); err != nil {
		return p, err
	}
	for n := range int64(touched) {
		vat := 3 + touched + n
		if err := c.c.Pause(ctx, id(vat)); err != nil {
			return p, err
		}
		for range each {
			if err := c.send(ctx, vat); err != nil {
				return p, err
			}
		}
		if err := c.c.Resume(ctx, id(vat)); err != nil {
			return p, err
		}
	}
	plan := upgrade.Plan{Version: to}
	for n := range int64(touched) {
		plan.Steps = append(plan.Steps, upgrade.Step{Vat: id(3 + n)})
	}
	if err := c.c.StartRollout(ctx, plan); err != nil {
		return p, err
	}
	before, start := c.store.w, cpu()
	b, err := c.c.EndBlock(ctx, 0)
	if err != nil {
		return p, err
	}
	p.CPU = cpu() - start
	w := c.store.w
	p.Work = Work{w.Get - before.Get, w.Next - before.Next, w.Set - before.Set, w.Delete - before.Delete}
	if b.Upgrades != touched || b.Deliveries != touched*each {
		return p, fmt.Errorf("the block has %d upgrades and %d deliveries, expected %d and %d", b.Upgrades, b.Deliveries, touched, touched*each)
	}
	return p, nil
}

// Write writes a result as tables for people, or in JSON.
func (r *Result) Write(w io.Writer, asJSON bool) error {
	if asJSON {
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return e.Encode(r)
	}
	fmt.Fprintf(w, "%d vats, of which %d failed first; %d messages waited and were delivered, each once and in order; %d at once\n", r.Options.Vats, r.Failed, r.Delivered, r.Direct)
	fmt.Fprintf(w, "%d events, %d MB of lines; %d keys at the end; %d MB of heap when most waited\n\n", r.Events, r.EventBytes>>20, r.Keys, r.Heap>>20)
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "phase\tblocks\tcalls\tseconds\tCPU\tstore calls\tat most in an end of block\tCPU ms of it\t")
	for _, p := range r.Phases {
		fmt.Fprintf(t, "%s\t%d\t%d\t%.1f\t%.1f\t%d\t%d\t%.1f\t\n", p.Name, p.Blocks, p.Calls, p.Seconds, p.CPU, p.Work.Total(), p.Most, p.Longest*1e3)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	fmt.Fprintf(w, "\nOne block with %d upgrades and %d deliveries out of queues, among more and more vats that it does not touch:\n", upgradesPerBlock, upgradesPerBlock*10)
	fmt.Fprintln(t, "vats\tget\tnext\tset\tdelete\tCPU ms\t")
	for _, p := range r.Probes {
		fmt.Fprintf(t, "%d\t%d\t%d\t%d\t%d\t%.1f\t\n", p.Vats, p.Work.Get, p.Work.Next, p.Work.Set, p.Work.Delete, p.CPU*1e3)
	}
	return t.Flush()
}

// RunAndReport runs it, measures a block among a hundredth, a tenth and all of the vats, and writes the result.
func RunAndReport(ctx context.Context, w io.Writer, asJSON bool, o Options) error {
	r, err := Run(ctx, o)
	if err != nil {
		return err
	}
	for _, vats := range []int64{o.Vats / 100, o.Vats / 10, o.Vats} {
		p, err := Measure(ctx, vats)
		if err != nil {
			return fmt.Errorf("a block among %d vats: %w", vats, err)
		}
		r.Probes = append(r.Probes, p)
	}
	return r.Write(w, asJSON)
}
