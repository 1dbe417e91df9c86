package xsnap

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/iotest"
	"time"

	"github.com/enginery/enginery/internal/enginetest"
	"github.com/enginery/enginery/recipes"
)

// engine is one that the tests run.
type engine struct {
	id, platform string
}

var (
	native   = engine{"agoric-upgrade-16", "linux/" + runtime.GOARCH}
	emulated = engine{"agoric-upgrade-16", "linux/arm64"}
	later    = engine{"agoric-upgrade-18", "linux/" + runtime.GOARCH}
)

// options starts the engine's release worker with everything else as it is by default.
func (e engine) options(t testing.TB) Options {
	t.Helper()
	return Options{
		Path:     enginetest.Worker(t, e.id, e.platform, recipes.Release),
		Emulator: enginetest.Emulator(t, e.platform),
		Protocol: enginetest.Recipe(t, e.id).Engine.Protocol,
	}
}

// deadline is for whatever a test does with one worker.
const deadline = time.Minute

func begin(t testing.TB, o Options) *Worker {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	t.Cleanup(cancel)
	w, err := Start(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.Kill)
	return w
}

// answer is what a script gives to make its value the reply's payload.
func answer(expression string) string {
	return "({result: new TextEncoder().encode(String(" + expression + ")).buffer})"
}

func evaluate(t testing.TB, w *Worker, source string) string {
	t.Helper()
	reply, err := w.Evaluate(source)
	if err != nil {
		t.Fatal(err)
	}
	return string(reply.Payload)
}

func snapshot(t testing.TB, w *Worker) []byte {
	t.Helper()
	var heap bytes.Buffer
	size, err := w.Snapshot(&heap)
	if err != nil {
		t.Fatal(err)
	}
	if size != int64(heap.Len()) || size == 0 {
		t.Fatalf("the snapshot's size is said to be %d, and it has %d bytes", size, heap.Len())
	}
	return heap.Bytes()
}

func sha(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// soon fails the test when f takes long.
func soon(t *testing.T, what string, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() { defer close(done); f() }()
	select {
	case <-done:
	case <-time.After(deadline):
		t.Fatalf("%s hangs", what)
	}
}

func wantExit(t *testing.T, err error, code int, signal syscall.Signal) {
	t.Helper()
	var exit *ExitError
	if !errors.As(err, &exit) || exit.Code != code || exit.Signal != signal {
		t.Errorf("got %v, want exit code %d, signal %d", err, code, signal)
	}
}

// fresh is the hash of a heap snapshot of a worker that has evaluated nothing, as agoric-sdk's tests have it.
const fresh = "91d30e59c1a087d58bb6d8eefcf1262e99e59cfc249222ab25f881ac642437e5"

// TestWorker has a whole life of a worker, on every platform.
func TestWorker(t *testing.T) {
	for _, e := range []engine{native, emulated, later} {
		t.Run(e.id+" "+e.platform, func(t *testing.T) {
			t.Parallel()
			o := e.options(t)
			o.Handle = func(_ context.Context, message []byte) ([]byte, error) { return bytes.ToUpper(message), nil }

			version, err := Version(t.Context(), o.Path, o.Emulator...)
			r := enginetest.Recipe(t, e.id)
			if want := fmt.Sprintf("xsnap %s (XS %s)", r.XsnapVersion, r.Engine.XSVersion); err != nil || version != want {
				t.Errorf("version %q, %v, want %q", version, err, want)
			}
			if level, err := ProbeProtocol(t.Context(), o.Path, o.Emulator...); err != nil || level != Level4 {
				t.Errorf("protocol level %d, %v, want 4", level, err)
			}

			w := begin(t, o)
			if err := w.Ready(); err != nil {
				t.Fatal(err)
			}
			if got := sha(snapshot(t, w)); got != fresh {
				t.Errorf("a fresh heap has the hash %s, want %s", got, fresh)
			}
			reply, err := w.Evaluate("globalThis.n = 40; " + answer("n + 2"))
			if err != nil || string(reply.Payload) != "42" {
				t.Errorf("%q, %v", reply.Payload, err)
			}
			if m := reply.Meter; m.Compute <= 0 || m.Allocate != 42074144 || m.HeapCount <= 0 || len(m.Timestamps) != 2 {
				t.Errorf("the meter says %+v", m)
			}
			evaluate(t, w, `
				const text = bytes => new TextDecoder().decode(bytes);
				const bytes = text => new TextEncoder().encode(text).buffer;
				globalThis.handleCommand = message => {
				  const report = {};
				  Promise.resolve(text(message)).then(m => { report.result = bytes(m + text(issueCommand(bytes('up'))) + n++); });
				  return report;
				}`)
			for i, want := range []string{"downUP40", "downUP41"} {
				if reply, err := w.Command([]byte("down")); err != nil || string(reply.Payload) != want {
					t.Errorf("command %d: %q, %v, want %q", i, reply.Payload, err, want)
				}
			}

			heap := snapshot(t, w)
			if again := snapshot(t, w); sha(again) != sha(heap) {
				t.Error("two snapshots of one heap differ")
			}
			o.Snapshot = bytes.NewReader(heap)
			next := begin(t, o)
			if again := snapshot(t, next); sha(again) != sha(heap) {
				t.Error("a snapshot of a heap that was just loaded differs from what was loaded")
			}
			for _, w := range []*Worker{w, next} {
				if reply, err := w.Command([]byte("down")); err != nil || string(reply.Payload) != "downUP42" {
					t.Errorf("after a snapshot: %q, %v", reply.Payload, err)
				}
				if err := w.Close(); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// TestReply is about what an evaluation answers.
func TestReply(t *testing.T) {
	w := begin(t, native.options(t))
	for _, c := range []struct {
		name, source string
		threw        bool
		want         string // the payload, or the exception's text
	}{
		{"an array buffer", "new TextEncoder().encode('bytes').buffer", false, "bytes"},
		{"a result that is one", answer("'bytes'"), false, "bytes"},
		{"bytes of the frame", "new Uint8Array([0, 1, 44, 255]).buffer", false, "\x00\x01,\xff"},
		{"a number", "42", false, ""},
		{"a string", "'text'", false, ""},
		{"nothing", "", false, ""},
		{"an unsettled promise", "({result: new Promise(() => {})})", false, ""},
		{"a result that comes later", "const a = {}; Promise.resolve().then(() => setImmediate(() => { a.result = new ArrayBuffer(1); })); a", false, "\x00"},
		{"a result that a getter refuses", "({get result() { throw Error('no'); }})", false, ""},
		{"an exception", "throw Error('oops')", true, "Error: oops"},
		{"a syntax error", "let let", true, "SyntaxError: invalid identifier"},
		{"a thrown string", "throw 'ü'", true, "ü"},
		{"an exception with all sorts of characters", "throw Error('😀\\0\\ud83d.')", true, "Error: 😀\x00\ufffd."},
		{"an empty exception", "throw ''", true, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			reply, err := w.Evaluate("{" + c.source + "}")
			got := string(reply.Payload)
			var guest *GuestError
			if errors.As(err, &guest) {
				got, err = guest.Text, nil
			}
			if err != nil || got != c.want || (guest != nil) != c.threw {
				t.Errorf("%q, exception %t, %v, want %q, exception %t", got, guest != nil, err, c.want, c.threw)
			}
			if got := evaluate(t, w, answer("'alive'")); got != "alive" {
				t.Errorf("afterwards it says %q", got)
			}
		})
	}
}

// TestExit is about what ends a worker.
func TestExit(t *testing.T) {
	o := native.options(t)
	for _, c := range []struct {
		name, source string
		limit        int64
		code         int
		text         string
	}{
		{"metering limit", "for (;;) {}", 1_000_000, ExitTooMuchComputation, "too much computation"},
		{"stack", "const f = () => 1 + f(); f()", 0, ExitStackOverflow, "stack overflow"},
		{"memory", "new Array(1e9).fill(0).concat(new ArrayBuffer(2_000_000_000))", 0, ExitNotEnoughMemory, "not enough memory"},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := o
			o.Name, o.MeteringLimit = "v7:bank", c.limit
			w := begin(t, o)
			_, err := w.Evaluate(c.source)
			wantExit(t, err, c.code, 0)
			for _, part := range []string{"v7:bank: ", "evaluating a script: ", c.text} {
				if err != nil && !strings.Contains(err.Error(), part) {
					t.Errorf("the error %q lacks %q", err, part)
				}
			}
			if _, again := w.Command(nil); again == nil {
				t.Error("a worker that ended takes a command")
			} else {
				wantExit(t, again, c.code, 0)
			}
			if err := w.Close(); err != nil {
				t.Errorf("closing a worker that has failed: %v", err)
			}
		})
	}

	t.Run("limit is not reached", func(t *testing.T) {
		o := o
		o.MeteringLimit = 1_000_000
		w := begin(t, o)
		for range 3 { // it is for a crank, not for all
			evaluate(t, w, "for (let i = 0; i < 30_000; i += 1) {}")
		}
	})
	t.Run("signal", func(t *testing.T) {
		w := begin(t, o)
		w.cmd.Process.Signal(syscall.SIGTERM)
		_, err := w.Evaluate("1")
		wantExit(t, err, 0, syscall.SIGTERM)
	})
	t.Run("unknown command", func(t *testing.T) {
		for _, command := range []byte("X/.!\x00") {
			w := begin(t, o)
			_, err := w.round("testing", command, nil)
			wantExit(t, err, ExitIO, 0)
			if err != nil && !strings.Contains(err.Error(), "Unexpected prefix") {
				t.Errorf("%v: it does not say what the worker printed", err)
			}
		}
	})
	t.Run("no engine", func(t *testing.T) {
		if w, err := Start(t.Context(), Options{Path: filepath.Join(t.TempDir(), "none"), Protocol: Level4}); w != nil || !errors.Is(err, os.ErrNotExist) {
			t.Error(w, err)
		}
	})
	t.Run("another program", func(t *testing.T) {
		w := begin(t, Options{Path: "/bin/true", Protocol: Level4})
		_, err := w.Evaluate("1")
		wantExit(t, err, 0, 0)
		if _, err := ProbeProtocol(t.Context(), "/bin/true"); err == nil {
			t.Error("it has a protocol level")
		}
		if _, err := Version(t.Context(), "/bin/false"); err == nil {
			t.Error("it has a version")
		}
	})
}

// A worker's end is what it was, however long it takes to find out.
func TestLateExit(t *testing.T) {
	defer func(d time.Duration) { patience = d }(patience)
	patience = 100 * time.Millisecond
	o := native.options(t)
	// What has its standard error, and is not in its process group, is waited for longer than that.
	o.Emulator = []string{"/bin/sh", "-c", `setsid sleep 3 3<&- 4>&- 7>&- 8<&- & exec "$0" "$@"`}
	o.MeteringLimit = 1_000_000
	_, err := begin(t, o).Evaluate("for (;;) {}")
	wantExit(t, err, ExitTooMuchComputation, 0)
}

// TestRelativePath probes an engine at a relative path: the probe has a working directory of its own.
func TestRelativePath(t *testing.T) {
	o := native.options(t)
	t.Chdir(filepath.Dir(o.Path))
	if level, err := ProbeProtocol(t.Context(), "./"+filepath.Base(o.Path)); err != nil || level != Level4 {
		t.Errorf("protocol level %d, %v, want 4", level, err)
	}
}

func TestOptions(t *testing.T) {
	for _, c := range []struct {
		o    Options
		want string
	}{
		{Options{Protocol: Level4, Name: "-r"}, "must not begin with -"},
		{Options{}, "protocol level 0"},
		{Options{Protocol: 5}, "protocol level 5"},
		{Options{Protocol: Level4, Name: "v1\x00"}, "zero byte"},
		{Options{Protocol: Level4, MaxMessage: -1}, "a limit of -1 bytes"},
		{Options{Protocol: Level4, SnapshotSHA256: fresh}, "no heap snapshot"},
		{Options{Protocol: Level4, MeteringLimit: -1}, "metering limit -1"},
		{Options{Protocol: Level4, MeteringLimit: 1 << 31}, "metering limit 2147483648"}, // the worker's atoi
		{Options{Protocol: Level4, ParserBuffer: 1 << 21}, "parser buffer"},              // its 1024 * atoi
	} {
		c.o.Path = "/bin/true"
		if w, err := Start(t.Context(), c.o); w != nil || err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v, want %q", c.o, err, c.want)
		}
	}
	o := native.options(t)
	o.ParserBuffer = 4096
	if got := sha(snapshot(t, begin(t, o))); got == fresh {
		t.Error("the parser buffer's size is no part of the snapshot")
	}
}

// TestOutput is about what a guest prints, and that the host's environment is no part of its world.
func TestOutput(t *testing.T) {
	t.Setenv("TZ", "Asia/Tokyo")
	var stdout, stderr bytes.Buffer
	o := native.options(t)
	o.Stdout, o.Stderr = &stdout, &stderr
	w := begin(t, o)
	evaluate(t, w, "print('hello')")
	if got := evaluate(t, w, answer("new Date(0).getHours()")); got != "0" {
		t.Errorf("the epoch begins at hour %s", got)
	}
	if group, err := syscall.Getpgid(w.cmd.Process.Pid); err != nil || group == syscall.Getpgrp() {
		t.Errorf("it is in process group %d, which is this process's, so that a Ctrl-C ends it: %v", group, err)
	}
	w.round("testing", 'X', nil)
	if stdout.String() != "hello\n" || !strings.Contains(stderr.String(), "Unexpected prefix") {
		t.Errorf("stdout %q, stderr %q", stdout.String(), stderr.String())
	}
}

// TestEnvironment is about what Options.Env adds.
func TestEnvironment(t *testing.T) {
	t.Setenv("NOT_OURS", "1")
	o := native.options(t)
	o.Env = []string{"TZ=EST5", "OURS=2"}
	w := begin(t, o)
	if got := evaluate(t, w, answer("new Date(0).getHours()")); got != "19" {
		t.Errorf("the epoch begins at hour %s", got)
	}
	env, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", w.cmd.Process.Pid))
	if err != nil || string(env) != "TZ=EST5\x00OURS=2\x00" {
		t.Errorf("the environment is %q, %v", env, err)
	}
}

// TestHandlerContext is about the context of a handler, which ends with the worker.
func TestHandlerContext(t *testing.T) {
	o := native.options(t)
	var w *Worker
	o.Handle = func(ctx context.Context, _ []byte) ([]byte, error) {
		w.cmd.Process.Kill()
		<-ctx.Done()
		return nil, nil
	}
	w = begin(t, o)
	soon(t, "a handler", func() {
		_, err := w.Evaluate("issueCommand(new ArrayBuffer(1))")
		wantExit(t, err, 0, syscall.SIGKILL)
	})
}

// TestHandler is about commands of the guest.
func TestHandler(t *testing.T) {
	const command = "issueCommand(new ArrayBuffer(3))"
	o := native.options(t)
	oops := errors.New("oops")
	for name, handle := range map[string]func(context.Context, []byte) ([]byte, error){
		"none":         nil,
		"fails":        func(context.Context, []byte) ([]byte, error) { return nil, oops },
		"fails by EOF": func(context.Context, []byte) ([]byte, error) { return nil, io.EOF },
	} {
		t.Run(name, func(t *testing.T) {
			o := o
			o.Handle = handle
			w := begin(t, o)
			_, err := w.Evaluate(command)
			if err == nil || name == "fails" && !errors.Is(err, oops) || strings.Contains(err.Error(), "lived on") { // which is said of a pipe's end
				t.Errorf("the error is %v", err)
			}
			if _, err := w.Evaluate("1"); err == nil {
				t.Error("the worker lives on, and takes the next command for the answer")
			}
			if err := w.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	t.Run("panics", func(t *testing.T) {
		o := o
		o.Handle = func(context.Context, []byte) ([]byte, error) { panic(oops) }
		w := begin(t, o)
		func() {
			defer func() {
				if r := recover(); r != oops {
					t.Errorf("recovered %v", r)
				}
			}()
			w.Evaluate(command)
		}()
		soon(t, "a worker whose handler panicked", func() {
			if _, err := w.Evaluate("1"); err == nil || !strings.Contains(err.Error(), "was killed") {
				t.Errorf("it lives on: %v", err)
			}
			w.Close()
		})
	})
	t.Run("kills", func(t *testing.T) {
		o := o
		var w *Worker
		o.Handle = func(context.Context, []byte) ([]byte, error) { w.Kill(); return nil, nil }
		w = begin(t, o)
		if _, err := w.Evaluate(command); err == nil || !strings.Contains(err.Error(), "was killed") {
			t.Error(err)
		}
	})
	t.Run("many", func(t *testing.T) {
		o := o
		sum := 0
		o.Handle = func(_ context.Context, m []byte) ([]byte, error) { sum += len(m); return m, nil }
		w := begin(t, o)
		got := evaluate(t, w, "let sum = 0; for (let i = 0; i < 600; i += 1) sum += issueCommand(new ArrayBuffer(i)).byteLength; "+answer("sum"))
		if want := 600 * 599 / 2; sum != want || got != strconv.Itoa(want) {
			t.Errorf("%d bytes up, %s down, want %d", sum, got, want)
		}
	})
}

// TestRawAnswers sends answers as engines of the first level take them, which later ones take for answers only if they begin with "/".
func TestRawAnswers(t *testing.T) {
	o := native.options(t)
	o.Protocol = Level1
	o.Handle = func(_ context.Context, m []byte) ([]byte, error) { return m, nil }
	w := begin(t, o)
	up := func(text string) string {
		return "new TextDecoder().decode(issueCommand(new TextEncoder().encode('" + text + "').buffer))"
	}
	if got := evaluate(t, w, answer(up("/yes"))); got != "yes" {
		t.Errorf("got %q", got)
	}
	var guest *GuestError
	if _, err := w.Evaluate(up("no")); !errors.As(err, &guest) || !strings.Contains(guest.Text, "unexpected command reply") {
		t.Error(err)
	}
}

// TestLarge is about the limit of messages, which is for those of the worker only.
func TestLarge(t *testing.T) {
	const limit = 12_000_000
	up := 0
	o := native.options(t)
	o.Handle = func(_ context.Context, m []byte) ([]byte, error) { up = len(m); return make([]byte, limit+100), nil }
	down := "globalThis.handleCommand = m => new TextEncoder().encode(`${m.byteLength}`).buffer;"
	for _, c := range []struct {
		name string
		do   func(w *Worker) (Reply, error)
		want string // "" is an error
	}{
		{"command", func(w *Worker) (Reply, error) { evaluate(t, w, down); return w.Command(make([]byte, limit+1)) }, "12000001"},
		{"script", func(w *Worker) (Reply, error) {
			return w.Evaluate("/*" + strings.Repeat("x", limit) + "*/" + answer("1"))
		}, "1"},
		{"reply", func(w *Worker) (Reply, error) {
			r, err := w.Evaluate("new ArrayBuffer(11_999_800)")
			r.Payload = strconv.AppendInt(nil, int64(len(r.Payload)), 10)
			return r, err
		}, "11999800"},
		{"reply beyond the limit", func(w *Worker) (Reply, error) { return w.Evaluate("new ArrayBuffer(12_000_000)") }, ""},
		{"guest's command", func(w *Worker) (Reply, error) {
			return w.Evaluate(answer("issueCommand(new ArrayBuffer(11_999_999)).byteLength"))
		}, "12000100"},
		{"guest's command beyond the limit", func(w *Worker) (Reply, error) { return w.Evaluate("issueCommand(new ArrayBuffer(12_000_000))") }, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			up = 0
			w := begin(t, o)
			reply, err := c.do(w)
			var size *SizeError
			if c.want == "" && (!errors.As(err, &size) || !strings.Contains(err.Error(), "from the worker, at most 12000000")) {
				t.Errorf("%d bytes, %v: not an error about the limit", len(reply.Payload), err)
			}
			if c.want != "" && (err != nil || string(reply.Payload) != c.want) {
				t.Errorf("%q, %v, want %q", reply.Payload, err, c.want)
			}
			if strings.HasPrefix(c.name, "guest") != (up == limit-1) && c.want != "" {
				t.Errorf("the handler got %d bytes", up)
			}
		})
	}
	t.Run("script with a zero byte", func(t *testing.T) {
		w := begin(t, o)
		if _, err := w.Evaluate("1;\x00 throw 'unseen'"); err == nil || !strings.Contains(err.Error(), "byte 3 of 18 is zero") {
			t.Error(err)
		}
		evaluate(t, w, "1") // nothing was sent
	})
	t.Run("answer with more than a length has digits for", func(t *testing.T) {
		o := o
		o.Handle = func(context.Context, []byte) ([]byte, error) { return make([]byte, maxMessage), nil }
		if _, err := begin(t, o).Evaluate("issueCommand(new ArrayBuffer(0))"); err == nil || !strings.Contains(err.Error(), "at most 999999998") {
			t.Error(err)
		}
	})
	t.Run("more than a length has digits for", func(t *testing.T) {
		w := begin(t, o)
		if _, err := w.Command(make([]byte, maxMessage)); err == nil || !strings.Contains(err.Error(), "at most 999999998") {
			t.Error(err)
		}
		evaluate(t, w, "1") // nothing was sent
	})
}

// writer fails or panics after so many bytes, and is slow.
type writer struct {
	left   int
	panics bool
	pause  time.Duration
	buf    bytes.Buffer
}

var errFull = errors.New("disk full")

func (w *writer) Write(p []byte) (int, error) {
	time.Sleep(w.pause)
	if w.left -= len(p); w.left < 0 {
		if w.panics {
			panic(errFull)
		}
		return 0, errFull
	}
	return w.buf.Write(p)
}

func TestSnapshotWriter(t *testing.T) {
	w := begin(t, native.options(t))
	slow := &writer{left: 1 << 30, pause: 50 * time.Millisecond}
	if _, err := w.Snapshot(slow); err != nil || sha(slow.buf.Bytes()) != fresh {
		t.Errorf("a slow writer: %v", err)
	}
	for _, left := range []int{0, 100_000} {
		if _, err := w.Snapshot(&writer{left: left}); !errors.Is(err, errFull) {
			t.Errorf("a writer that fails after %d bytes: %v", left, err)
		}
		if sha(snapshot(t, w)) != fresh {
			t.Error("the next snapshot is wrong")
		}
	}
	failed := false
	if _, err := w.Snapshot(writerFunc(func(p []byte) (int, error) {
		if !failed {
			failed = true
			return 0, errFull
		}
		t.Error("a writer that failed is written to")
		return len(p), nil
	})); !errors.Is(err, errFull) {
		t.Errorf("a writer that fails once: %v", err)
	}
	func() {
		defer func() {
			if r := recover(); r != errFull {
				t.Errorf("recovered %v", r)
			}
		}()
		w.Snapshot(&writer{panics: true})
	}()
	soon(t, "a worker whose snapshot panicked", func() {
		if _, err := w.Snapshot(io.Discard); err == nil {
			t.Error("it lives on")
		}
	})

	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	w = begin(t, native.options(t))
	if _, err := w.Snapshot(full); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("a full disk: %v", err)
	}
	if sha(snapshot(t, w)) != fresh {
		t.Error("the snapshot after it is wrong")
	}

	// The worker dies in the middle of a snapshot, which is more than the host and the pipe take before that.
	w = begin(t, native.options(t))
	evaluate(t, w, "globalThis.kept = Array.from({length: 50_000}, (_, i) => `item ${i}`)")
	if size := len(snapshot(t, w)); size <= 2*pipeSize {
		t.Fatalf("the snapshot has %d bytes", size)
	}
	_, err = w.Snapshot(writerFunc(func(p []byte) (int, error) { w.cmd.Process.Kill(); <-w.exited; return len(p), nil }))
	wantExit(t, err, 0, syscall.SIGKILL)
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// TestSnapshotReader is about heap snapshots that are none, or cannot be read.
func TestSnapshotReader(t *testing.T) {
	o := native.options(t)
	w := begin(t, o)
	evaluate(t, w, "globalThis.kept = Array.from({length: 50_000}, (_, i) => `item ${i}`)") // more than a pipe holds
	heap := snapshot(t, w)
	flip := func(i int) []byte {
		b := bytes.Clone(heap)
		b[i] ^= 1
		return b
	}
	bad := errors.New("bad disk")
	for _, c := range []struct {
		name   string
		reader io.Reader
		ok     bool
		err    error // nil: the worker refuses
		text   string
	}{
		{"whole", bytes.NewReader(heap), true, nil, ""},
		{"in small pieces", iotest.DataErrReader(iotest.HalfReader(bytes.NewReader(heap))), true, nil, ""},
		{"empty", bytes.NewReader(nil), false, nil, "cannot read snapshot"},
		{"header only", bytes.NewReader(heap[:20]), false, nil, "cannot read snapshot"},
		{"half", bytes.NewReader(heap[:len(heap)/2]), false, nil, "cannot read snapshot"},
		{"not a snapshot", strings.NewReader(strings.Repeat("no", 1<<20)), false, nil, "cannot read snapshot"},
		{"major version", bytes.NewReader(flip(16)), false, nil, "cannot read snapshot"},
		{"signature", bytes.NewReader(flip(28)), false, nil, "cannot read snapshot"},
		{"reader fails at once", iotest.ErrReader(bad), false, bad, "reading the heap snapshot"},
		{"reader fails on the way", io.MultiReader(bytes.NewReader(heap[:100_000]), iotest.ErrReader(bad)), false, bad, "reading the heap snapshot"},
		{"reader fails at the end", io.MultiReader(bytes.NewReader(heap), iotest.ErrReader(bad)), false, bad, "reading the heap snapshot"},
		{"more follows", io.MultiReader(bytes.NewReader(heap), bytes.NewReader(make([]byte, 1<<20))), false, errors.New(""), "goes on after its end"},
	} {
		t.Run(c.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), deadline)
			defer cancel()
			o := o
			o.Snapshot = c.reader
			w, err := Start(ctx, o)
			if c.ok {
				if err != nil {
					t.Fatal(err)
				}
				defer w.Kill()
				if got := evaluate(t, w, answer("kept.at(-1)")); got != "item 49999" {
					t.Errorf("the heap has %q", got)
				}
				return
			}
			if w != nil || err == nil || !strings.Contains(err.Error(), c.text) {
				t.Fatalf("%v, want %q", err, c.text)
			}
			if c.err == nil {
				wantExit(t, err, ExitIO, 0)
			} else if c.err == bad && !errors.Is(err, bad) {
				t.Errorf("%v: not the reader's error", err)
			}
		})
	}
	t.Run("reader blocks", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		o := o
		r, block := io.Pipe()
		defer block.Close()
		o.Snapshot = r
		soon(t, "starting", func() {
			if _, err := Start(ctx, o); !errors.Is(err, context.DeadlineExceeded) {
				t.Error(err)
			}
		})
	})
}

// A new worker that has ended, and Start with it, before anything was passed on to it is none for who then takes the heap from it.
func TestForkTooLate(t *testing.T) {
	var heap bytes.Buffer
	f := &fork{dst: &heap, pipe: make(chan io.Writer, 1), started: make(chan struct{}), saved: make(chan error, 1)}
	close(f.started)
	if _, err := f.Write([]byte("heap")); err != nil || heap.String() != "heap" {
		t.Errorf("%q, %v", heap.String(), err)
	}
	f.saved <- io.ErrClosedPipe
	if _, err := (&source{fork: f}).WriteTo(io.Discard); err != io.ErrClosedPipe {
		t.Error(err)
	}
}

func TestFork(t *testing.T) {
	for _, level := range []int{Level3, Level4} {
		t.Run(fmt.Sprintf("level %d", level), func(t *testing.T) {
			t.Setenv("TMPDIR", t.TempDir())
			o := native.options(t)
			o.Protocol, o.Name = level, "forked"
			w := begin(t, o)
			evaluate(t, w, "globalThis.who = 'old'")
			want := sha(snapshot(t, w))
			var heap bytes.Buffer
			next, err := w.Fork(t.Context(), &heap)
			if err != nil {
				t.Fatal(err)
			}
			defer next.Kill()
			if got := sha(heap.Bytes()); got != want {
				t.Errorf("the fork's heap has the hash %s, expected %s", got, want)
			}
			evaluate(t, next, "who = 'new'")
			for w, want := range map[*Worker]string{w: "old", next: "new"} {
				if got := evaluate(t, w, answer("who")); got != want {
					t.Errorf("in the %s worker it is %s", want, got)
				}
			}
			third, err := next.Fork(t.Context(), io.Discard)
			if err != nil {
				t.Fatal(err)
			}
			if err := next.Close(); err != nil {
				t.Error(err)
			}
			if got := evaluate(t, third, answer("who")); got != "new" {
				t.Errorf("in the fork of a fork it is %s", got)
			}
			third.Kill()

			// It ends as others do, whatever it has of its own to be ended by.
			for range 5 {
				next, err := w.Fork(t.Context(), io.Discard)
				if err != nil {
					t.Fatal(err)
				}
				next.cmd.Process.Kill()
				<-next.exited
				_, err = next.Evaluate("0")
				wantExit(t, err, 0, syscall.SIGKILL)
			}

			want = sha(snapshot(t, w))
			gone, cancel := context.WithCancel(t.Context())
			cancel()
			for _, c := range []struct {
				name string
				ctx  context.Context
				dst  io.Writer
				err  error
			}{
				{"writer fails at once", t.Context(), &writer{}, errFull},
				{"writer fails on the way", t.Context(), &writer{left: 100_000}, errFull},
				{"context has ended", gone, io.Discard, context.Canceled},
			} {
				soon(t, c.name, func() {
					if next, err := w.Fork(c.ctx, c.dst); next != nil || !errors.Is(err, c.err) {
						t.Errorf("%s: %v, expected %v", c.name, err, c.err)
					}
				})
				if sha(snapshot(t, w)) != want {
					t.Errorf("%s: the next snapshot is wrong", c.name)
				}
			}
			w.o.Path = "/nonexistent"
			if _, err := w.Fork(t.Context(), io.Discard); !errors.Is(err, os.ErrNotExist) {
				t.Error(err)
			}
			soon(t, "a writer that panics", func() {
				defer func() {
					if r := recover(); r != errFull {
						t.Errorf("recovered %v", r)
					}
				}()
				w.o.Path = o.Path
				w.Fork(t.Context(), &writer{panics: true})
			})
			w = begin(t, o)
			evaluate(t, w, "globalThis.kept = Array.from({length: 50_000}, (_, i) => `item ${i}`); 0")
			_, err = w.Fork(t.Context(), writerFunc(func(p []byte) (int, error) { w.Kill(); return len(p), nil }))
			if level == Level4 && !errors.Is(err, ErrKilled) {
				t.Errorf("the old worker is killed on the way: %v", err)
			}
		})
	}
}

// A fork that does not load its heap ends when the worker that it was made of is killed.
func TestForkHangs(t *testing.T) {
	o := native.options(t)
	if len(o.Emulator) > 0 {
		t.Fatal("the native engine has an emulator")
	}
	o.Emulator = []string{"/bin/sh", "-c", `case " $* " in *" -r "*) exec sleep 600;; esac; exec "$0" "$@"`}
	w := begin(t, o)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	forked := make(chan error, 1)
	went := make(chan struct{}, 1)
	go func() {
		_, err := w.Fork(ctx, writerFunc(func(p []byte) (int, error) {
			select {
			case went <- struct{}{}:
			default:
			}
			return len(p), nil
		}))
		forked <- err
	}()
	<-went
	w.Kill()
	select {
	case err := <-forked:
		if !errors.Is(err, ErrKilled) {
			t.Errorf("%v, expected %v", err, ErrKilled)
		}
	case <-time.After(30 * time.Second):
		t.Error("it waits for the fork after the worker was killed")
	}
}

func TestClose(t *testing.T) {
	o := native.options(t)
	for name, source := range map[string]string{
		"after nothing": "", "after an exception": "throw 1", "after a rejection": "Promise.reject(1)",
	} {
		t.Run(name, func(t *testing.T) {
			w := begin(t, o)
			if source != "" {
				w.Evaluate(source)
			}
			for range 2 {
				if err := w.Close(); err != nil {
					t.Error(err)
				}
			}
			if _, err := w.Evaluate("1"); err == nil || !strings.Contains(err.Error(), "was closed") {
				t.Error(err)
			}
		})
	}
	t.Run("while a command is under way", func(t *testing.T) {
		o := o
		began, closing := make(chan struct{}), make(chan error, 1)
		var w *Worker
		o.Handle = func(context.Context, []byte) ([]byte, error) {
			close(began)
			select {
			case err := <-closing:
				t.Errorf("closed meanwhile: %v", err)
			case <-time.After(50 * time.Millisecond):
			}
			return []byte("late"), nil
		}
		w = begin(t, o)
		go func() { <-began; closing <- w.Close() }()
		if got := evaluate(t, w, "({result: issueCommand(new ArrayBuffer(0))})"); got != "late" {
			t.Errorf("got %q", got)
		}
		if err := <-closing; err != nil {
			t.Error(err)
		}
	})
	t.Run("after it was killed by others", func(t *testing.T) {
		w := begin(t, o)
		w.cmd.Process.Kill()
		<-w.exited
		wantExit(t, w.Close(), 0, syscall.SIGKILL)
	})
	t.Run("after the end of its context", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		w, err := Start(ctx, o)
		if err != nil {
			t.Fatal(err)
		}
		cancel()
		if err := w.Close(); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
}

// TestEndlessLoop ends a worker that never answers.
func TestEndlessLoop(t *testing.T) {
	o := native.options(t)
	for name, end := range map[string]func(w *Worker, cancel func()){
		"context": func(_ *Worker, cancel func()) { cancel() },
		"kill":    func(w *Worker, _ func()) { w.Kill() },
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			began := make(chan struct{})
			o := o
			o.Handle = func(context.Context, []byte) ([]byte, error) { close(began); return nil, nil }
			w, err := Start(ctx, o)
			if err != nil {
				t.Fatal(err)
			}
			go func() { <-began; end(w, cancel) }()
			soon(t, name, func() { _, err = w.Evaluate("issueCommand(new ArrayBuffer(0)); for (;;) {}") })
			if err == nil || name == "context" != errors.Is(err, context.Canceled) || name == "kill" != strings.Contains(err.Error(), "was killed") {
				t.Error(err)
			}
			if err := syscall.Kill(w.cmd.Process.Pid, 0); err != syscall.ESRCH {
				t.Errorf("the process is still there: %v", err)
			}
		})
	}
}

// TestManyGoroutines talks to a worker from many goroutines, which must take turns.
func TestManyGoroutines(t *testing.T) {
	o := native.options(t)
	o.Handle = func(_ context.Context, m []byte) ([]byte, error) { return m, nil }
	w := begin(t, o)
	evaluate(t, w, "globalThis.handleCommand = m => issueCommand(m)")
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for k := range 20 {
				message := fmt.Sprintf("%d %d", i, k)
				if reply, err := w.Command([]byte(message)); err != nil || string(reply.Payload) != message {
					t.Errorf("%q, %v, want %q", reply.Payload, err, message)
				}
				if k == 10 {
					if _, err := w.Snapshot(io.Discard); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	wg.Wait()
	for range 4 {
		wg.Go(func() { w.Close() })
		wg.Go(w.Kill)
	}
	soon(t, "closing and killing at once", wg.Wait)
}

// TestHostCloses closes the host's ends of the pipes while the worker is busy. That is where these two engines differ
// (agoric-sdk #10099).
func TestHostCloses(t *testing.T) {
	for _, c := range []struct {
		e       engine
		waiting int            // exit code when the answer to a command of the guest does not come
		code    int            // when nobody reads the reply
		signal  syscall.Signal // or this
	}{
		{native, 0, 0, syscall.SIGPIPE},
		{later, ExitIO, ExitIO, 0},
	} {
		t.Run(c.e.id, func(t *testing.T) {
			o := c.e.options(t)
			w := begin(t, o)
			w.commands.Close()
			<-w.exited
			wantExit(t, w.exit, 0, 0)

			o.Handle = func(context.Context, []byte) ([]byte, error) { w.commands.Close(); return nil, nil }
			w = begin(t, o)
			_, err := w.Evaluate("try { issueCommand(new ArrayBuffer(0)) } catch {}")
			wantExit(t, err, c.waiting, 0)

			o.Handle = func(context.Context, []byte) ([]byte, error) { w.replies.Close(); return nil, nil }
			w = begin(t, o)
			w.Evaluate("issueCommand(new ArrayBuffer(0))")
			wantExit(t, w.exit, c.code, c.signal)
		})
	}
}

// TestHostDies kills the host: its worker must not stay.
func TestHostDies(t *testing.T) {
	const variable = "XSNAP_TEST_HOST"
	if path := os.Getenv(variable); path != "" {
		w, err := Start(t.Context(), Options{Path: path, Protocol: Level4})
		if err == nil {
			err = w.Ready()
		}
		if err != nil {
			t.Fatal(err)
		}
		fmt.Printf("\nworker %d\n", w.cmd.Process.Pid)
		time.Sleep(deadline)
		t.Fatal("this host was not killed")
	}
	host := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$")
	host.Env = append(os.Environ(), variable+"="+native.options(t).Path)
	out, err := host.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := host.Start(); err != nil {
		t.Fatal(err)
	}
	defer host.Wait()
	defer host.Process.Kill()
	pid := ""
	for lines := bufio.NewScanner(out); pid == "" && lines.Scan(); {
		pid, _ = strings.CutPrefix(lines.Text(), "worker ")
		if pid == lines.Text() {
			pid = ""
		}
	}
	if pid == "" {
		t.Fatal("the host started no worker")
	}
	host.Process.Kill()
	for end := time.Now().Add(deadline); ; time.Sleep(10 * time.Millisecond) {
		stat, err := os.ReadFile("/proc/" + pid + "/stat")
		if err != nil || bytes.Contains(stat, []byte(") Z ")) { // gone, or waits for init to reap it
			return
		}
		if time.Now().After(end) {
			t.Fatalf("the worker is still there: %s", stat)
		}
	}
}

// TestNothingOutlives counts what is there before and after workers end in every way.
func TestNothingOutlives(t *testing.T) {
	o := native.options(t)
	o.Handle = func(context.Context, []byte) ([]byte, error) { return nil, errFull }
	heap := snapshot(t, begin(t, o))
	count := func() (files, goroutines int) {
		entries, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(entries), runtime.NumGoroutine()
	}
	files, goroutines := count()
	for name, live := range map[string]func(w *Worker){
		"close":           func(w *Worker) { w.Close() },
		"kill":            func(w *Worker) { w.Kill() },
		"exit":            func(w *Worker) { w.round("testing", 'X', nil) },
		"handler":         func(w *Worker) { w.Evaluate("issueCommand(new ArrayBuffer(0))") },
		"snapshot":        func(w *Worker) { w.Snapshot(io.Discard); w.Close() },
		"failed snapshot": func(w *Worker) { w.Snapshot(&writer{}); w.Close() },
		"context":         func(*Worker) {}, // and nobody closes it
	} {
		for _, snapshot := range [][]byte{nil, heap, heap[:1000]} {
			ctx, cancel := context.WithTimeout(t.Context(), deadline)
			o := o
			if snapshot != nil {
				o.Snapshot = bytes.NewReader(snapshot)
			}
			if w, err := Start(ctx, o); err == nil {
				live(w)
				cancel()
				soon(t, name, func() { <-w.exited })
				if name != "context" {
					w.Close()
				} else if err := w.replies.Close(); !errors.Is(err, os.ErrClosed) {
					t.Errorf("after the end of its context a pipe is open: %v", err)
				}
				if err := syscall.Kill(w.cmd.Process.Pid, 0); err != syscall.ESRCH {
					t.Errorf("%s: the process is still there: %v", name, err)
				}
			}
			cancel()
		}
	}
	for end := time.Now().Add(deadline); ; time.Sleep(10 * time.Millisecond) {
		f, g := count()
		if f <= files && g <= goroutines {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("%d files and %d goroutines, %d and %d before", f, g, files, goroutines)
		}
	}
}

// TestSnapshotFiles drives a worker as older ones must be driven, by files: newer ones can still do that.
func TestSnapshotFiles(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	o := native.options(t)
	o.Protocol = Level3
	w := begin(t, o)
	if got := sha(snapshot(t, w)); got != fresh {
		t.Errorf("a fresh heap has the hash %s, want %s", got, fresh)
	}
	evaluate(t, w, "globalThis.n = 42")
	heap := snapshot(t, w)
	if _, err := w.Snapshot(&writer{left: 10}); !errors.Is(err, errFull) {
		t.Error(err)
	}
	evaluate(t, w, "1") // it lives on

	o.Snapshot = bytes.NewReader(heap)
	if got := evaluate(t, begin(t, o), answer("n")); got != "42" {
		t.Errorf("after a resume: %q", got)
	}
	o.Snapshot = bytes.NewReader(heap[:1000])
	_, err := Start(t.Context(), o)
	wantExit(t, err, ExitIO, 0)
	o.Snapshot = iotest.ErrReader(errFull)
	if _, err := Start(t.Context(), o); !errors.Is(err, errFull) {
		t.Error(err)
	}
	left, err := os.ReadDir(os.Getenv("TMPDIR"))
	if err != nil || len(left) > 0 {
		t.Errorf("%v is left, %v", left, err)
	}
}
