package xsnap

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/enginery/enginery/internal/enginetest"
	"github.com/enginery/enginery/recipes"
)

// prelude has what the scripts below use. The oldest engines have no TextEncoder.
const prelude = `
	globalThis.bytes = text => Uint8Array.from(text, c => c.charCodeAt(0)).buffer;
	globalThis.text = bytes => Array.from(new Uint8Array(bytes), b => String.fromCharCode(b)).join('');
	globalThis.send = value => text(issueCommand(bytes(String(value))));
	`

// subject is an engine that upstream's cases are tried on.
type subject struct {
	recipe *recipes.Recipe
	o      Options
}

// host is a worker, and what its guest has sent.
type host struct {
	*Worker
	mu       sync.Mutex
	messages []string
}

// start starts a worker that has evaluated the prelude. Its handler answers commands with themselves and "!".
func (s *subject) start(t *testing.T, change func(*Options)) *host {
	t.Helper()
	h := new(host)
	o := s.o
	o.Handle = func(_ context.Context, m []byte) ([]byte, error) {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.messages = append(h.messages, string(m))
		return append(m, '!'), nil
	}
	if change != nil {
		change(&o)
	}
	h.Worker = begin(t, o)
	if o.Snapshot == nil {
		evaluate(t, h.Worker, prelude)
	}
	return h
}

func (h *host) sent(t *testing.T, want ...string) {
	t.Helper()
	if err := h.Close(); err != nil {
		t.Error(err)
	}
	if !reflect.DeepEqual(h.messages, want) {
		t.Errorf("the guest sent %q, want %q", h.messages, want)
	}
}

// TestUpstream has what agoric-sdk's tests of xsnap ask for (packages/xsnap/test), on every engine that builds here.
func TestUpstream(t *testing.T) {
	type worker struct {
		recipe *recipes.Recipe
		goal   string
	}
	var workers []worker
	for _, r := range enginetest.Buildable(t) {
		workers = append(workers, worker{r, recipes.Release})
	}
	for _, id := range []string{native.id, "agoric-upgrade-22"} {
		workers = append(workers, worker{enginetest.Recipe(t, id), recipes.Debug})
	}
	for _, w := range workers {
		r := w.recipe
		t.Run(r.ID+" "+w.goal, func(t *testing.T) {
			t.Parallel()
			s := &subject{r, Options{
				Path: enginetest.WorkerOf(t, r, "linux/"+runtime.GOARCH, w.goal), Name: "v9:test",
				Protocol: r.Engine.Protocol, MeterType: r.Engine.Meter, Version: r.ID,
			}}
			for _, c := range upstream {
				t.Run(c.name, func(t *testing.T) { c.test(t, s) })
			}
		})
	}
}

var upstream = []struct {
	name string
	test func(*testing.T, *subject)
}{
	{"evaluate and issue a command", func(t *testing.T, s *subject) {
		w := s.start(t, nil)
		evaluate(t, w.Worker, "send('Hello, World!')")
		w.sent(t, "Hello, World!")
	}},
	{"evaluate until idle", func(t *testing.T, s *subject) {
		w := s.start(t, nil)
		evaluate(t, w.Worker, "(async () => { await null; send('Hello, World!'); })()")
		w.sent(t, "Hello, World!")
	}},
	{"evaluate and report", func(t *testing.T, s *subject) {
		w := s.start(t, nil)
		if got := evaluate(t, w.Worker, `(() => {
			const report = {};
			Promise.resolve('hi').then(v => { report.result = bytes(v); });
			return report;
		})()`); got != "hi" {
			t.Errorf("the report is %q", got)
		}
	}},
	{"evaluate error", func(t *testing.T, s *subject) {
		w := s.start(t, nil)
		var guest *GuestError
		if _, err := w.Evaluate("***"); !errors.As(err, &guest) || !strings.Contains(guest.Text, "SyntaxError") {
			t.Error(err)
		}
		w.sent(t)
	}},
	{"unhandled rejection", func(t *testing.T, s *subject) {
		w := s.start(t, nil)
		evaluate(t, w.Worker, "Promise.reject(1)")
		evaluate(t, w.Worker, "send('alive')")
		w.sent(t, "alive")
	}},
	{"idle includes setImmediate", func(t *testing.T, s *subject) {
		w := s.start(t, nil)
		evaluate(t, w.Worker, "setImmediate(() => send('end of crank')); Promise.resolve('turn 2').then(send); send('turn 1')")
		w.sent(t, "turn 1", "turn 2", "end of crank")
	}},
	{"print and gc in the start compartment only", func(t *testing.T, s *subject) {
		var stdout bytes.Buffer
		w := s.start(t, func(o *Options) { o.Stdout = &stdout })
		evaluate(t, w.Worker, `print('print:', 123); gc();
			for (const f of ['print', 'gc']) try { new Compartment().evaluate(f + '(456)'); } catch (e) { send(e.name + ' ' + e.message.includes('get ' + f + ': undefined variable')); }`)
		w.sent(t, "ReferenceError true", "ReferenceError true")
		if stdout.String() != "print: 123\n" {
			t.Errorf("it printed %q", &stdout)
		}
	}},
	{"execute a script", executeScript},
	{"import a module", importModule},
	{"a command is synchronous inside", func(t *testing.T, s *subject) {
		w := s.start(t, nil)
		evaluate(t, w.Worker, "send(send('0') + '1')")
		w.sent(t, "0", "0!1")
	}},
	{"deliver messages and receive responses", func(t *testing.T, s *subject) {
		w := s.start(t, nil)
		evaluate(t, w.Worker, "globalThis.handleCommand = m => { const n = 1 + Number(text(m)); send(n); return bytes(String(n)); }")
		for i, want := range []string{"1", "2", "3"} {
			got, meter, err := w.CommandString(strconv.Itoa(i))
			if err != nil || got != want || meter.Compute <= 0 || meter.Type != s.recipe.Engine.Meter {
				t.Errorf("%q, %+v, %v, want %q", got, meter, err, want)
			}
		}
		w.sent(t, "1", "2", "3")
	}},
	{"serialize concurrent messages", func(t *testing.T, s *subject) {
		w := s.start(t, nil)
		evaluate(t, w.Worker, "globalThis.handleCommand = m => { send('begin'); return Promise.resolve().then(() => send('end')); }")
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(func() {
				if _, err := w.Command([]byte("x")); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		var want []string
		for range 20 {
			want = append(want, "begin", "end")
		}
		w.sent(t, want...)
	}},
	{"snapshot round trip", func(t *testing.T, s *subject) {
		w := s.start(t, nil)
		evaluate(t, w.Worker, "globalThis.hello = 'Hello, World!'; globalThis.kept = Array.from({length: 20_000}, (_, i) => [i])")
		heap := snapshot(t, w.Worker)
		evaluate(t, w.Worker, "hello += ' Bienvenue!'")
		for _, c := range []struct {
			heap []byte
			want string
		}{{heap, "Hello, World!"}, {snapshot(t, w.Worker), "Hello, World! Bienvenue!"}} {
			next := s.start(t, func(o *Options) { o.Snapshot, o.SnapshotSHA256 = bytes.NewReader(c.heap), sha(c.heap) })
			if again := snapshot(t, next.Worker); sha(again) != sha(c.heap) {
				t.Error("a snapshot of a heap that was just loaded differs from what was loaded")
			}
			evaluate(t, next.Worker, "send(hello + kept.at?.(-1) + kept.length)")
			if got, _, _ := strings.Cut(next.messages[0], "undefined"); !strings.HasPrefix(got, c.want) || !strings.HasSuffix(next.messages[0], "20000") {
				t.Errorf("the heap has %q", next.messages)
			}
			if err := next.Close(); err != nil {
				t.Error(err)
			}
		}
		if _, err := Start(t.Context(), func(o Options) Options {
			o.Snapshot, o.SnapshotSHA256 = bytes.NewReader(heap), fresh
			return o
		}(s.o)); err == nil || !strings.Contains(err.Error(), "its SHA-256 is "+sha(heap)+", expected "+fresh) {
			t.Errorf("a heap snapshot with another hash: %v", err)
		}
	}},
	{"evaluate right after a snapshot", func(t *testing.T, s *subject) {
		w := s.start(t, nil)
		evaluate(t, w.Worker, "globalThis.when = 'before'")
		pr, pw := io.Pipe()
		done := make(chan error, 1)
		go func() {
			_, err := w.Snapshot(pw)
			pw.CloseWithError(err)
			_, err2 := w.Evaluate("when = 'after'")
			done <- errors.Join(err, err2)
		}()
		next := s.start(t, func(o *Options) { o.Snapshot = pr }) // a worker's snapshot is streamed into the next
		if err := <-done; err != nil {
			t.Error(err)
		}
		evaluate(t, next.Worker, "send(when)")
		next.sent(t, "before")
	}},
	{"garbage collection after a snapshot and a restore", func(t *testing.T, s *subject) {
		w := s.start(t, nil)
		evaluate(t, w.Worker, `globalThis.runToGC = async () => {
			let collected = false;
			const registry = new FinalizationRegistry(() => { collected = true; });
			(() => registry.register({}, undefined))();
			let n = 0;
			for (const trash = []; !collected; n += 1) {
				await new Promise(setImmediate);
				trash.push(Array(10_000).map(() => ({})));
			}
			return send(n);
		};
		runToGC(); Array.from(Array(200_000).keys()).length; 0`)
		clone := s.start(t, func(o *Options) { o.Snapshot = bytes.NewReader(snapshot(t, w.Worker)) })
		clone.messages = append(clone.messages, w.messages...)
		for range 3 {
			for _, w := range []*host{w, clone} {
				evaluate(t, w.Worker, "runToGC(); 0")
			}
		}
		if !reflect.DeepEqual(w.messages, clone.messages) || len(w.messages) != 4 {
			t.Errorf("after %q and %q steps", w.messages, clone.messages)
		}
	}},
	{"collected objects are finalized", func(t *testing.T, s *subject) {
		w := s.start(t, nil)
		// The first engines run finalizers after they have answered, where a command would be taken for an answer.
		evaluate(t, w.Worker, `globalThis.registry = new FinalizationRegistry(tag => { globalThis.tag = tag; });
			(() => { const victim = {}; globalThis.ref = new WeakRef(victim); registry.register(victim, 'finalized'); })(); 0`)
		evaluate(t, w.Worker, "gc()")
		evaluate(t, w.Worker, "send(tag + (ref.deref() === undefined))")
		w.sent(t, "finalizedtrue")
	}},
	{"metering limit", func(t *testing.T, s *subject) {
		for _, source := range []string{"for (;;) {}", "(function f() { Promise.resolve().then(f); })()"} {
			w := s.start(t, func(o *Options) { o.MeteringLimit = 1_000_000 })
			_, err := w.Evaluate(source)
			wantExit(t, err, ExitTooMuchComputation, 0)
			var named *Error
			if !errors.As(err, &named) || named.Worker != "v9:test" || named.Version != s.recipe.ID ||
				!strings.HasPrefix(err.Error(), "v9:test ("+s.recipe.ID+"): evaluating a script: ") {
				t.Errorf("the error %v names neither worker nor version", err)
			}
			w.sent(t)
		}
	}},
	{"meter", func(t *testing.T, s *subject) {
		compute := func(w *host, source string) Meter {
			t.Helper()
			reply, err := w.Evaluate(source)
			if err != nil || reply.Meter.Compute <= 0 || reply.Meter.Allocate <= 0 || reply.Meter.Type != s.recipe.Engine.Meter {
				t.Fatal(reply, err)
			}
			reply.Meter.Timestamps = nil
			return reply.Meter
		}
		a := s.start(t, nil)
		b := s.start(t, func(o *Options) { o.MeteringLimit = 100_000_000 })
		compute(a, "null")
		compute(b, "null")
		if err := b.Ready(); err != nil {
			t.Error(err)
		}
		if ma, mb := compute(a, "null"), compute(b, "null"); !reflect.DeepEqual(ma, mb) {
			t.Errorf("%+v, and with a limit, after being asked whether it is up, %+v", ma, mb)
		}
		const work = "for (let i = 0; i < 1000; i++) {}"
		off := work + "{const limit = currentMeterLimit(), before = resetMeter(0, 0); try { %s } finally { resetMeter(limit, before); }}" + work
		compute(a, fmt.Sprintf(off, ""))
		none, some := compute(a, fmt.Sprintf(off, "")), compute(a, fmt.Sprintf(off, "for (let i = 0; i < 5000; i++) {}"))
		if some.Compute-none.Compute > 100 {
			t.Errorf("%d computrons, and %d with work that is not metered", none.Compute, some.Compute)
		}
	}},
	{"memory", func(t *testing.T, s *subject) {
		for _, statement := range []string{
			"new Uint8Array(2_130_706_417)", "new BigUint64Array(266_338_303)", "new Array(66_584_576).fill(0)",
			"(new Array(66_584_575).fill(0))[66_584_575] = 0",
		} {
			w := s.start(t, nil)
			_, err := w.Evaluate("try { " + statement + " } catch {}")
			wantExit(t, err, ExitNotEnoughMemory, 0)
		}
	}},
	{"stack", func(t *testing.T, s *subject) {
		w := s.start(t, nil)
		_, err := w.Evaluate("const f = () => 1 + f(); try { f() } catch {}")
		wantExit(t, err, ExitStackOverflow, 0)
	}},
	{"parser buffer", func(t *testing.T, s *subject) {
		for _, c := range []struct {
			kB, repeats int
			fits        bool
		}{{0, 100, true}, {0, 8192*1024/4 + 100, false}, {4, 10, true}, {4, 50_000, false}} {
			w := s.start(t, func(o *Options) { o.ParserBuffer = c.kB })
			want := "overflow"
			if c.fits {
				want = strconv.Itoa(4*c.repeats + 2)
			}
			evaluate(t, w.Worker, fmt.Sprintf("{ const expr = `\"${'abcd'.repeat(%d)}\"`; try { eval(expr); send(expr.length); } catch (e) { send(e.message); } }", c.repeats))
			if len(w.messages) != 1 || !strings.Contains(w.messages[0], want) {
				t.Errorf("a parser buffer of %d kB, a string of 4 * %d: %q, want %q", c.kB, c.repeats, w.messages, want)
			}
		}
	}},
	{"ended workers take no commands", func(t *testing.T, s *subject) {
		w := s.start(t, nil)
		if err := w.Close(); err != nil {
			t.Error(err)
		}
		if _, err := w.Evaluate(""); !errors.Is(err, ErrClosed) {
			t.Errorf("closed: %v", err)
		}
		w = s.start(t, nil)
		w.Kill()
		if _, err := w.Evaluate(""); !errors.Is(err, ErrKilled) {
			t.Errorf("killed: %v", err)
		}
		w = s.start(t, nil)
		hang := make(chan error, 1)
		go func() { _, err := w.Evaluate("send('begins'); for (;;) {}"); hang <- err }()
		for begun := false; !begun; time.Sleep(time.Millisecond) {
			w.mu.Lock()
			begun = len(w.messages) > 0
			w.mu.Unlock()
		}
		w.Kill()
		if err := <-hang; !errors.Is(err, ErrKilled) {
			t.Errorf("killed meanwhile: %v", err)
		}
	}},
	{"unknown commands", func(t *testing.T, s *subject) {
		for _, command := range []byte("X.!") {
			w := s.start(t, nil)
			_, err := w.round("testing", command, nil)
			code := ExitIO
			if s.recipe.Engine.Protocol < Level3 {
				code = 0
			}
			wantExit(t, err, code, 0)
		}
	}},
	{"large messages", func(t *testing.T, s *subject) {
		const size = 3_000_000
		w := s.start(t, func(o *Options) {
			o.MaxMessage = size + 1000
			o.Handle = func(_ context.Context, m []byte) ([]byte, error) { return m[:len(m)-1], nil }
		})
		evaluate(t, w.Worker, "globalThis.handleCommand = m => issueCommand(m)")
		message := bytes.Repeat([]byte("0123456789"), size/10)
		if reply, err := w.Command(message); err != nil || !bytes.Equal(reply.Payload, message[:size-1]) {
			t.Errorf("%d bytes, %v, want those sent but one", len(reply.Payload), err)
		}
		_, err := w.Evaluate(fmt.Sprintf("new ArrayBuffer(%d)", size+1000))
		var large *SizeError
		if !errors.As(err, &large) || large.Limit != size+1000 || large.Size <= large.Limit {
			t.Errorf("a message beyond the limit: %v", err)
		}
	}},
	{"closing the parent", func(t *testing.T, s *subject) {
		w := s.start(t, nil)
		w.commands.Close()
		w.replies.Close()
		<-w.exited
		wantExit(t, w.exit, 0, 0)
	}},
	{"regular expressions are metered", func(t *testing.T, s *subject) {
		w := s.start(t, nil)
		a, err := w.Evaluate("'aa!'.match(/^(([a-z])+.)+/)")
		if err != nil {
			t.Fatal(err)
		}
		b, err := w.Evaluate("'aaaaaaaaaaaaaaaaaaaaaaaa!'.match(/^(([a-z])+.)+/)")
		if err != nil || b.Meter.Compute <= a.Meter.Compute {
			t.Errorf("%d and %d computrons, %v", a.Meter.Compute, b.Meter.Compute, err)
		}
	}},
}

func executeScript(t *testing.T, s *subject) {
	dir := t.TempDir()
	write := func(name, source string) string {
		t.Helper()
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte(source), 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	good := write("good ü.js", "var local = 1; globalThis.fromScript = 42; (async () => { await null; send('Hello, World!'); })();")
	throws := write("throws.js", "throw Error('oops ü');")
	bad := write("bad.js", "let let")

	w := s.start(t, nil)
	reply, err := w.Execute(good)
	if err != nil || len(reply.Payload) > 0 || reply.Meter.Compute <= 0 || reply.Meter.Type != s.recipe.Engine.Meter {
		t.Errorf("%+v, %v", reply, err)
	}
	for file, want := range map[string]string{throws: "oops", bad: "SyntaxError"} {
		var guest *GuestError
		if _, err := w.Execute(file); !errors.As(err, &guest) || !strings.Contains(guest.Text, want) {
			t.Errorf("%s: %v, want %q", file, err, want)
		}
		if _, err := w.Execute(good); err != nil {
			t.Errorf("a script after %s: %v", file, err)
		}
	}
	w.Evaluate("throw 1")
	if _, err := w.Execute(good); err != nil {
		t.Errorf("a script after an exception: %v", err)
	}
	if _, err := w.Execute(filepath.Join(dir, "none.js")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no script: %v", err)
	}
	if _, err := w.Execute(strings.Repeat("x", maxPath)); err == nil || !strings.Contains(err.Error(), "at most 4095") {
		t.Errorf("a long path: %v", err)
	}
	evaluate(t, w.Worker, "send(fromScript)")
	w.sent(t, "Hello, World!", "Hello, World!", "Hello, World!", "Hello, World!", "42")
}

func importModule(t *testing.T, s *subject) {
	dir := t.TempDir()
	for name, source := range map[string]string{
		"main.js":  "import { other } from './other.js'; globalThis.send(other); export default 1;",
		"other.js": "export const other = 'from another';",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(source), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	w := s.start(t, nil)
	if reply, err := w.Import(filepath.Join(dir, "main.js")); err != nil || reply.Meter.Compute <= 0 {
		t.Errorf("%+v, %v", reply, err)
	}
	for _, source := range []string{"let let", "throw Error('oops')", "import './none.js'"} {
		file := filepath.Join(dir, "fails.js")
		if err := os.WriteFile(file, []byte(source), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := s.start(t, nil).Import(file); err != nil {
			t.Errorf("an import that fails has an error, against the documentation: %v", err)
		}
	}
	if _, err := w.Import(filepath.Join(dir, "none.js")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no module: %v", err)
	}
	w.sent(t, "from another")
}
