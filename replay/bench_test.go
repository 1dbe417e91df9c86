package replay_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/enginery/enginery/internal/nodetest"
	"github.com/enginery/enginery/internal/swingsettest"
	"github.com/enginery/enginery/recipes"
	"github.com/enginery/enginery/replay"
	"github.com/enginery/enginery/replay/transcripts"
	"github.com/enginery/enginery/swingstore"
	"github.com/enginery/enginery/vat"
)

// nobody answers syscalls of vats that are alone.
type nobody struct{}

func (nobody) Syscall(context.Context, *swingstore.Tx, string, []byte) ([]byte, error) {
	return nil, nil
}

// makeStore makes a store with vats of our own, of the fixture's code, that count: so many deliveries each, and a heap snapshot every 200 items.
func makeStore(t testing.TB, e *vat.Engine, vats, deliveries int) string {
	t.Helper()
	ctx := t.Context()
	fixture, err := swingstore.Open(swingsettest.Store(t))
	if err != nil {
		t.Fatal(err)
	}
	defer fixture.Close()
	alice, err := fixture.Vat(ctx, "v3")
	if err != nil {
		t.Fatal(err)
	}
	bundle, err := fixture.Bundle(ctx, alice.BundleID)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), swingstore.FileName)
	s, err := swingstore.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.Update(func(tx *swingstore.Tx) error {
		if _, err := tx.AddBundle(bundle); err != nil {
			return err
		}
		for i := range vats {
			v := vat.New(vat.Options{ID: fmt.Sprintf("v%d", i+1), Host: nobody{}, Engines: func(string) (*vat.Engine, error) { return e, nil }, KeepWorker: true})
			r, err := v.Create(ctx, tx, vat.Incarnation{Engine: e.Version, BundleID: alice.BundleID, Name: fmt.Sprintf("vat%d", i+1), Parameters: []byte(`{"body":"#{\"name\":\"x\"}","slots":[]}`)})
			for n := 0; err == nil && r.Kept && n < deliveries; n++ {
				r, err = v.Deliver(ctx, tx, fmt.Appendf(nil, `["message","o+0",{"methargs":{"body":"#[\"count\",[]]","slots":[]},"result":"p-%d"}]`, 60+n))
			}
			if err == nil && !r.Kept {
				err = fmt.Errorf("a crank was not kept: %s", r.Problem)
			}
			if err != nil {
				return err
			}
			if err := v.Close(); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return path
}

// Stores of vats of our own are replayed like those of a kernel.
func TestOwnStore(t *testing.T) {
	t.Parallel()
	e := engine(t, swingsettest.Version, amd64, recipes.Release)
	r := run(t, open(t, makeStore(t, e, 1, 210)), e, replay.Options{})
	if total := r.Totals(0); total.Level != replay.Identical || !total.Whole() || total.Deliveries < 211 || len(r.Vats[0].Runs[0].Spans) < 3 {
		t.Errorf("%s", show(t, r.Totals(0)))
	}
}

// usage returns the CPU time of a process or its children that are gone.
func usage(b testing.TB, who int) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(who, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkStream replays one vat's transcript, with its heap snapshots hashed and its worker started anew from each, and compares that with the
// same by SwingSet's own code on node, with the same worker. Starting the first worker does not count on either side. On a busy machine the ratio
// of CPU time says more than that of time: x-peer-CPU is what the worker and its host use for a delivery there, by what they use here.
func BenchmarkStream(b *testing.B) {
	const deliveries = 3000
	e := engine(b, swingsettest.Version, amd64, recipes.Release)
	path := makeStore(b, e, 1, deliveries)
	s, start := open(b, path), open(b, makeStore(b, e, 1, 0))
	peer := newPeer(b, path, "v1", e)
	measure := func(s transcripts.Source) (r *replay.Report, worker, host float64) {
		children, self := usage(b, syscall.RUSAGE_CHILDREN), usage(b, syscall.RUSAGE_SELF)
		r = run(b, s, e, replay.Options{Start: replay.FromBundles, Jobs: 1})
		return r, (usage(b, syscall.RUSAGE_CHILDREN) - children).Seconds(), (usage(b, syscall.RUSAGE_SELF) - self).Seconds()
	}
	var ours, theirs, worker, host, theirHost float64
	for b.Loop() {
		_, startWorker, startHost := measure(start)
		r, w, h := measure(s)
		n := float64(r.Totals(0).Deliveries)
		worker += (w - startWorker) / n
		host += (h - startHost) / n
		if !r.Passed(0) || r.Totals(0).Level != replay.Identical {
			b.Fatal(show(b, r.Totals(0)))
		}
		ours += n / (r.Totals(0).Seconds - r.Vats[0].Runs[0].Spans[0].Seconds) // the first span has 5 items, and the start
		p := peer.run(b)
		theirs += p.Deliveries / p.Seconds
		theirHost += p.CPUSeconds / p.Deliveries
	}
	n := float64(b.N)
	b.ReportMetric(ours/n, "deliveries/s")
	b.ReportMetric(theirs/n, "peer-deliveries/s")
	b.ReportMetric(ours/theirs, "x-peer")
	b.ReportMetric(1e6*worker/n, "worker-CPU-µs/delivery")
	b.ReportMetric(1e6*host/n, "host-CPU-µs/delivery")
	b.ReportMetric(1e6*theirHost/n, "peer-host-CPU-µs/delivery")
	b.ReportMetric((worker+theirHost)/(worker+host), "x-peer-CPU")
}

// peer is SwingSet's own replay of a vat.
type peer struct{ dir, transcript, worker string }

func newPeer(b testing.TB, store, id string, e *vat.Engine) *peer {
	b.Helper()
	ctx := b.Context()
	fixture, err := filepath.Abs("../testdata/swingset")
	if err != nil {
		b.Fatal(err)
	}
	p := &peer{dir: b.TempDir(), worker: e.Worker.Path}
	script := readFile(b, "testdata/peer.js")
	if err := os.WriteFile(filepath.Join(p.dir, "peer.mjs"), script, 0o644); err != nil {
		b.Fatal(err)
	}
	if err := os.Symlink(filepath.Join(nodetest.Install(b, fixture, "better-sqlite3"), "node_modules"), filepath.Join(p.dir, "node_modules")); err != nil {
		b.Fatal(err)
	}
	s, err := swingstore.Open(store)
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	v, err := s.Vat(ctx, id)
	if err != nil {
		b.Fatal(err)
	}
	for _, id := range append([]string{v.BundleID}, v.Options.WorkerOptions.BundleIDs...) {
		bundle, err := s.Bundle(ctx, id)
		if err != nil {
			b.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(p.dir, id), bundle, 0o644); err != nil {
			b.Fatal(err)
		}
	}
	first, err := json.Marshal(map[string]any{"type": "create-vat", "transcriptNum": 0, "vatID": id, "vatName": v.Name,
		"bundleIDs": v.Options.WorkerOptions.BundleIDs, "vatSourceBundleID": v.BundleID})
	if err != nil {
		b.Fatal(err)
	}
	var lines bytes.Buffer
	lines.Write(append(first, '\n'))
	spans, err := s.Spans(ctx, id)
	if err != nil {
		b.Fatal(err)
	}
	for _, span := range spans {
		for item, err := range s.Items(ctx, span) {
			if err != nil {
				b.Fatal(err)
			}
			if item.Position > 0 {
				fmt.Fprintf(&lines, `{"transcriptNum":%d,%s`+"\n", item.Position, item.Text[1:])
			}
		}
	}
	p.transcript = filepath.Join(p.dir, "transcript.sst")
	if err := os.WriteFile(p.transcript, lines.Bytes(), 0o644); err != nil {
		b.Fatal(err)
	}
	return p
}

type peerResult struct{ Deliveries, Seconds, CPUSeconds float64 }

func (p *peer) run(b testing.TB) (result peerResult) {
	b.Helper()
	ctx, cancel := context.WithTimeout(b.Context(), 10*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "node", filepath.Join(p.dir, "peer.mjs"), p.transcript, p.dir, p.worker)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		b.Fatalf("%v: %s%s", err, out, stderr.Bytes())
	}
	if err := json.Unmarshal(out, &result); err != nil {
		b.Fatalf("%v: %s", err, out)
	}
	return result
}

// BenchmarkParallel replays the kernel's store with a job for each CPU, and compares that with what the CPU time of the workers would take at least.
func BenchmarkParallel(b *testing.B) {
	e := engine(b, swingsettest.Version, amd64, recipes.Release)
	s := open(b, swingsettest.Store(b))
	var wall, workers, host time.Duration
	for b.Loop() {
		begun, children, self := time.Now(), usage(b, syscall.RUSAGE_CHILDREN), usage(b, syscall.RUSAGE_SELF)
		r := run(b, s, e, replay.Options{})
		wall += time.Since(begun)
		workers += usage(b, syscall.RUSAGE_CHILDREN) - children
		host += usage(b, syscall.RUSAGE_SELF) - self
		if !r.Passed(0) {
			b.Fatal(show(b, r.Totals(0)))
		}
	}
	b.ReportMetric(100*workers.Seconds()/float64(runtime.NumCPU())/wall.Seconds(), "%-of-workers-bound")
	b.ReportMetric(100*workers.Seconds()/(workers+host).Seconds(), "%-of-CPU-is-workers")
}

// BenchmarkMemory replays a transcript and one ten times as long, and compares the peaks of memory.
func BenchmarkMemory(b *testing.B) {
	e := engine(b, swingsettest.Version, amd64, recipes.Release)
	short, long := makeStore(b, e, 1, 1000), makeStore(b, e, 1, 10000)
	var peaks [2]float64
	for b.Loop() {
		for i, path := range []string{short, long} {
			text, err := json.Marshal(child{Store: path, Version: e.Version, Worker: e.Worker.Path, Protocol: e.Worker.Protocol, All: true})
			if err != nil {
				b.Fatal(err)
			}
			cmd := exec.CommandContext(b.Context(), os.Args[0])
			cmd.Env = append(os.Environ(), childEnv+"="+string(text))
			out, err := cmd.Output()
			if err != nil || !bytes.Contains(out, []byte("end <nil>")) {
				b.Fatalf("%v: %s", err, out)
			}
			peaks[i] += peak(b, out)
		}
	}
	b.ReportMetric(peaks[0]/float64(b.N), "MB")
	b.ReportMetric(peaks[1]/float64(b.N), "MB-of-10x")
	b.ReportMetric(peaks[1]/peaks[0], "x-memory-of-10x")
}

// peak returns the most memory, in MB, that a process says it had.
func peak(b testing.TB, out []byte) float64 {
	b.Helper()
	lines := bufio.NewScanner(bytes.NewReader(out))
	for lines.Scan() {
		if rest, ok := strings.CutPrefix(lines.Text(), "VmHWM:"); ok {
			kB, err := strconv.ParseFloat(strings.Fields(rest)[0], 64)
			if err != nil {
				b.Fatal(err)
			}
			return kB / 1000
		}
	}
	b.Fatalf("no VmHWM in %s", out)
	return 0
}
