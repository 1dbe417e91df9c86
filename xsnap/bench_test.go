package xsnap

import (
	"context"
	"io"
	"os"
	"testing"
	"time"
)

// BenchmarkCommand measures round trips of small commands, and of commands in which the guest sends one, too.
func BenchmarkCommand(b *testing.B) {
	for name, handler := range map[string]string{
		"down":        "() => new ArrayBuffer(1)",
		"down and up": "m => issueCommand(m)",
	} {
		b.Run(name, func(b *testing.B) {
			o := native.options(b)
			o.Handle = func(_ context.Context, m []byte) ([]byte, error) { return m, nil }
			w := begin(b, o)
			evaluate(b, w, "globalThis.handleCommand = "+handler)
			message := []byte("small")
			b.ReportAllocs()
			for b.Loop() {
				// As many as make a measurement even when the benchmark is to be short.
				for range 1000 {
					if _, err := w.Command(message); err != nil {
						b.Fatal(err)
					}
				}
			}
			b.ReportMetric(1000*float64(b.N)/b.Elapsed().Seconds(), "round-trips/s")
		})
	}
}

// BenchmarkSnapshot measures heap snapshots of some 20 MB, and compares their speed with that of as many bytes in a pipe. The worker
// collects garbage and walks its heap meanwhile.
func BenchmarkSnapshot(b *testing.B) {
	w := begin(b, native.options(b))
	evaluate(b, w, "globalThis.kept = Array.from({length: 100_000}, (_, i) => ({i, text: `item ${i}`, more: [i, i]})); 0")
	var snapshots, copies time.Duration
	var size int64
	for b.Loop() {
		start := time.Now()
		n, err := w.Snapshot(io.Discard)
		if err != nil {
			b.Fatal(err)
		}
		snapshots += time.Since(start)
		size = n

		start = time.Now()
		if err := pipe(n); err != nil {
			b.Fatal(err)
		}
		copies += time.Since(start)
	}
	b.SetBytes(size)
	rate := func(d time.Duration) float64 { return float64(size) * float64(b.N) / 1e6 / d.Seconds() }
	b.ReportMetric(float64(size)/1e6, "MB")
	b.ReportMetric(rate(snapshots), "snapshot-MB/s")
	b.ReportMetric(rate(copies), "pipe-MB/s")
	b.ReportMetric(float64(snapshots)/float64(copies), "x-pipe")
}

// BenchmarkFork measures how long a worker with the same heap takes to start, and compares that with a snapshot that is read through an io.Pipe.
func BenchmarkFork(b *testing.B) {
	o := native.options(b)
	w := begin(b, o)
	evaluate(b, w, "globalThis.kept = Array.from({length: 100_000}, (_, i) => ({i, text: `item ${i}`, more: [i, i]})); 0")
	var forks, pipes time.Duration
	for b.Loop() {
		start := time.Now()
		next, err := w.Fork(b.Context(), io.Discard)
		if err != nil {
			b.Fatal(err)
		}
		forks += time.Since(start)
		next.Kill()

		start = time.Now()
		r, pw := io.Pipe()
		go func() {
			_, err := w.Snapshot(pw)
			pw.CloseWithError(err)
		}()
		o.Snapshot = r
		if next, err = Start(b.Context(), o); err != nil {
			b.Fatal(err)
		}
		pipes += time.Since(start)
		next.Kill()
	}
	b.ReportMetric(float64(forks.Milliseconds())/float64(b.N), "ms/fork")
	b.ReportMetric(float64(pipes)/float64(forks), "x-io.Pipe")
}

// pipe passes n bytes through a pipe, as a worker writes and a host reads.
func pipe(n int64) error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	go func() {
		defer w.Close()
		for block := make([]byte, 4<<10); n > 0; n -= int64(len(block)) {
			w.Write(block)
		}
	}()
	_, err = io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{r}, make([]byte, 64<<10))
	return err
}

// BenchmarkStart measures how long a worker takes from its start to its first answer, and to be gone.
func BenchmarkStart(b *testing.B) {
	o := native.options(b)
	for b.Loop() {
		w, err := Start(b.Context(), o)
		if err != nil {
			b.Fatal(err)
		}
		if err := w.Ready(); err != nil {
			b.Fatal(err)
		}
		w.Kill()
	}
}
