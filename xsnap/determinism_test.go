package xsnap

import (
	"context"
	"fmt"
	"runtime"
	"sync"
	"testing"
)

// TestDeterminism gives workers the same input, alone, under load and on another architecture: the same computrons, heap snapshots and all else
// that a host sees, but timestamps.
func TestDeterminism(t *testing.T) {
	seen := make(map[string]string) // platform, load -> all that was seen
	var mu sync.Mutex
	history := func(t *testing.T, e engine) (all string) {
		o := e.options(t)
		o.MeteringLimit = 10_000_000
		o.Handle = func(_ context.Context, m []byte) ([]byte, error) { return append(m, '+'), nil }
		w := begin(t, o)
		note := func(reply Reply, err error) {
			all += fmt.Sprintf("%q %d %d %d %v\n", reply.Payload, reply.Meter.Compute, reply.Meter.Allocate, reply.Meter.HeapCount, err)
		}
		note(w.Evaluate(`
			globalThis.state = new Map();
			globalThis.handleCommand = m => {
				const n = new Uint8Array(m)[0], report = {};
				state.set(Symbol(n), Array.from({length: n * 10}, (_, i) => ({text: 'x'.repeat(i % 50), sqrt: Math.sin(i) * n})));
				if (n % 5 === 4) for (const key of [...state.keys()].slice(0, 3)) state.delete(key);
				Promise.resolve().then(async () => { await null; report.result = issueCommand(new Uint8Array([n, state.size]).buffer); });
				return report;
			}`))
		for i := range 20 {
			note(w.Command([]byte{byte(i)}))
			if i%7 == 3 {
				all += sha(snapshot(t, w)) + "\n"
			}
		}
		note(w.Evaluate("throw Error(`${state.size} ${[...state.values()].at(-1).at(-1).sqrt}`)"))
		all += sha(snapshot(t, w)) + "\n"
		note(w.Evaluate("for (;;) {}"))
		return all
	}
	for _, c := range []struct {
		name string
		e    engine
		load int
	}{
		{"alone", native, 0},
		{"under load", native, 4 * runtime.NumCPU()},
		{"emulated", emulated, 0},
	} {
		ctx, stop := context.WithCancel(t.Context())
		var load sync.WaitGroup
		for range c.load {
			load.Go(func() {
				for ctx.Err() == nil {
				}
			})
		}
		var runs sync.WaitGroup
		for i := range 2 {
			runs.Go(func() {
				all := history(t, c.e)
				mu.Lock()
				defer mu.Unlock()
				seen[fmt.Sprint(c.name, " ", i)] = all
			})
		}
		runs.Wait()
		stop()
		load.Wait()
	}
	want := seen["alone 0"]
	for name, all := range seen {
		if all != want || all == "" {
			t.Errorf("%s:\n%swant, as alone:\n%s", name, all, want)
		}
	}
}
