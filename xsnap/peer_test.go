package xsnap

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"testing"
	"time"
)

// What both drivers do: so many commands to each handler, and a heap of some 30 MB.
const (
	driveCount = 8000
	driveHeap  = "globalThis.kept = Array.from({length: 100_000}, (_, i) => ({i, text: `item ${i}`, more: [i, i]})); 0"
)

var driveHandlers = map[string]string{
	"down":       "() => new ArrayBuffer(1)",
	"downAndUp":  "m => issueCommand(m)",
	"tenUpwards": "m => { for (let i = 0; i < 10; i += 1) issueCommand(m); }",
}

// units are those of the measurements of a driver.
var units = map[string]string{
	"down": "commands/s", "downAndUp": "commands-that-send-one/s", "tenUpwards": "commands-that-send-ten/s",
	"large": "echo-MB/s", "snapshot": "snapshot-MB/s", "resume": "resume-MB/s", "memory": "MB-of-host",
}

// BenchmarkPeer compares this package with upstream's interface, @agoric/xsnap in Node, each driving the same worker binary in a process of its
// own, one after the other. The last of three numbers is the ratio, the larger the better.
func BenchmarkPeer(b *testing.B) {
	worker := native.options(b).Path
	node := install(b, worker)
	heap, err := json.Marshal(driveHeap)
	if err != nil {
		b.Fatal(err)
	}
	handlers, err := json.Marshal(driveHandlers)
	if err != nil {
		b.Fatal(err)
	}
	ours, theirs := make(map[string]float64), make(map[string]float64)
	measure := func(into map[string]float64, cmd *exec.Cmd) {
		b.Helper()
		cmd.Stderr = os.Stderr
		out, err := cmd.Output()
		if err != nil {
			b.Fatalf("%v: %v", cmd, err)
		}
		found := make(map[string]float64)
		if err := json.Unmarshal(bytes.TrimSpace(out), &found); err != nil {
			b.Fatalf("%v: %v in %q", cmd, err, out)
		}
		for name := range units {
			if found[name] <= 0 {
				b.Fatalf("%v: it found no %s: %s", cmd, name, out)
			}
			into[name] += found[name]
		}
	}
	for b.Loop() {
		cmd := exec.CommandContext(b.Context(), "node", filepath.Join(node, "drive.mjs"), strconv.Itoa(driveCount), string(heap), string(handlers))
		measure(theirs, cmd)
		cmd = exec.CommandContext(b.Context(), os.Args[0], worker)
		cmd.Env = append(os.Environ(), programEnv+"=drive")
		measure(ours, cmd)
	}
	for _, name := range slices.Sorted(maps.Keys(units)) {
		o, t := ours[name]/float64(b.N), theirs[name]/float64(b.N)
		ratio := o / t
		if name == "memory" {
			ratio = 1 / ratio
		}
		b.ReportMetric(o, units[name])
		b.ReportMetric(t, "node-"+units[name])
		b.ReportMetric(ratio, "x-"+units[name])
	}
	b.ReportMetric(0, "ns/op") // it says nothing
}

// install installs upstream's interface with npm, gives it the worker, and returns its folder.
func install(b *testing.B, worker string) string {
	b.Helper()
	dir := b.TempDir()
	if err := os.CopyFS(dir, os.DirFS("testdata/node")); err != nil {
		b.Fatal(err)
	}
	npm := exec.CommandContext(b.Context(), "npm", "ci", "--ignore-scripts", "--legacy-peer-deps", "--no-audit", "--no-fund", "--prefer-offline")
	npm.Dir = dir
	if out, err := npm.CombinedOutput(); err != nil {
		b.Fatalf("%v: %v\n%s", npm, err, out)
	}
	bin := filepath.Join(dir, "node_modules/@agoric/xsnap/xsnap-native/xsnap/build/bin/lin/release")
	if err := os.MkdirAll(bin, 0o777); err != nil {
		b.Fatal(err)
	}
	if err := os.Symlink(worker, filepath.Join(bin, "xsnap-worker")); err != nil {
		b.Fatal(err)
	}
	return dir
}

// drive is the other driver.
func drive() {
	check := func(err error) {
		if err != nil {
			panic(err)
		}
	}
	start := func(snapshot io.Reader) *Worker {
		w, err := Start(context.Background(), Options{
			Path: os.Args[1], Protocol: Level4, Name: "bench", Snapshot: snapshot,
			Handle: func(_ context.Context, m []byte) ([]byte, error) { return m, nil },
		})
		check(err)
		return w
	}
	found := make(map[string]float64)
	seconds := func(action func()) float64 {
		begin := time.Now()
		action()
		return time.Since(begin).Seconds()
	}
	w := start(nil)
	commands := func(message []byte, n int) func() {
		return func() {
			for range n {
				_, err := w.Command(message)
				check(err)
			}
		}
	}
	for name, handler := range driveHandlers {
		_, err := w.Evaluate("globalThis.handleCommand = " + handler)
		check(err)
		commands([]byte("small"), driveCount/4)()
		found[name] = driveCount / seconds(commands([]byte("small"), driveCount))
	}
	large := make([]byte, 1<<20)
	_, err := w.Evaluate("globalThis.handleCommand = m => m")
	check(err)
	found["large"] = 64 * float64(len(large)) / 1e6 / seconds(commands(large, 64))
	_, err = w.Evaluate(driveHeap)
	check(err)
	file, err := os.CreateTemp("", "heap-")
	check(err)
	defer os.Remove(file.Name())
	size, err := w.Snapshot(file)
	check(err)
	found["snapshot"] = 3 * float64(size) / 1e6 / seconds(func() {
		for range 3 {
			_, err := w.Snapshot(io.Discard)
			check(err)
		}
	})
	found["resume"] = float64(size) / 1e6 / seconds(func() {
		_, err := file.Seek(0, io.SeekStart)
		check(err)
		next := start(file)
		check(next.Ready())
		next.Kill()
	})
	check(w.Close())
	status, err := os.ReadFile("/proc/self/status")
	check(err)
	peak := regexp.MustCompile(`VmHWM:\s*(\d+)`).FindSubmatch(status)
	kB, err := strconv.ParseFloat(string(peak[1]), 64)
	check(err)
	found["memory"] = kB / 1e3
	out, err := json.Marshal(found)
	check(err)
	fmt.Printf("%s\n", out)
}
