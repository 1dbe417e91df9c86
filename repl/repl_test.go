package repl

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/enginery/enginery/internal/enginetest"
	"github.com/enginery/enginery/recipes"
	"github.com/enginery/enginery/xsnap"
)

const platform = "linux/" + runtime.GOARCH

func engine(t testing.TB, r *recipes.Recipe) xsnap.Options {
	t.Helper()
	return xsnap.Options{
		Path: enginetest.WorkerOf(t, r, platform, recipes.Release), Name: "repl", Version: r.ID,
		Protocol: r.Engine.Protocol, MeterType: r.Engine.Meter, MeteringLimit: 10_000_000,
	}
}

func native(t testing.TB) xsnap.Options { return engine(t, enginetest.Recipe(t, "agoric-upgrade-16")) }

// talk returns what a REPL answers to lines from a pipe.
func talk(t *testing.T, o Options, lines ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var out bytes.Buffer
	o.In, o.Out = strings.NewReader(strings.Join(lines, "\n")), &out
	if err := Run(ctx, o); err != nil {
		t.Fatalf("%v, after\n%s", err, &out)
	}
	return out.String()
}

// TestValues has the same answers of all engines that build here.
func TestValues(t *testing.T) {
	cases := [][2]string{
		{"1 + 1", "2"},
		{"", ""},
		{"undefined", "undefined"},
		{"null", "null"},
		{"-0", "-0"},
		{"10n ** 20n", "100000000000000000000n"},
		{"'ü 😀 \\n'", `"ü 😀 \n"`},
		{"Symbol('s')", "Symbol(s)"},
		{"'\\ud83d'.length", "1"},
		{"(function f() {})", "[function f]"},
		{"[1, 'two', [3, [], {}]]", `[1, "two", [3, [], {}]]`},
		{"({a: 1, 'b c': {d: null}, get e() { throw 1; }})", `{ a: 1, "b c": { d: null }, e: [accessor] }`},
		{"new Map([[1, {a: 2}]])", "Map {1 => { a: 2 }}"},
		{"new Set(['x'])", `Set {"x"}`},
		{"new Uint8Array([1, 2])", "Uint8Array [1, 2]"},
		{"new Uint8Array([1, 2]).buffer", "ArrayBuffer [1, 2]"},
		{"new Date(0)", "1970-01-01T00:00:00.000Z"},
		{"/x/g", "/x/g"},
		{"Error('no')", "Error: no"},
		{"Array(3).fill(Array(200).fill(0))[0].length", "200"},
		{"var o = {}; o.o = o; o", "{ o: [circular] }"},
		{"throw Error('oops')", "Uncaught Error: oops"},
		{"throw {a: 1}", "Uncaught { a: 1 }"},
		{"const c = 1", "undefined"},
		{"let {l} = {l: c + 1}", "undefined"},
		{"class K { f() { return l; } }", "undefined"},
		{"new K().f()", "2"},
		{"Promise.resolve(3)", "Promise of 3"},
		{"Promise.reject(Error('no'))", "Uncaught Error: no"},
		{"new Promise(() => {})", "[promise that nothing settles]"},
		{"(async () => { await null; return [4]; })()", "Promise of [4]"},
		{"print('printed', 1); 2", "printed 1\n2"},
		{"issueCommand(new Uint8Array([104, 105]).buffer); 0", "command: hi\n0"},
		{"issueCommand(new Uint8Array([0, 255]).buffer); 0", "command: 0x00ff\n0"},
		{"function f() {\n  // a comment (\n  return '}' + /[)}/]/.test(')') + `{${ [1].map(x => {\n return x }) }`;\n}", "undefined"},
		{"f()", `"}true{1"`},
	}
	var lines []string
	var want strings.Builder
	for _, c := range cases {
		lines = append(lines, c[0])
		if c[0] != "" {
			want.WriteString(c[1] + "\n")
		}
	}
	for _, r := range enginetest.Buildable(t) {
		t.Run(r.ID, func(t *testing.T) {
			t.Parallel()
			got := strings.Split(talk(t, Options{Engine: engine(t, r)}, lines...), "\n")
			for i, want := range strings.Split(want.String(), "\n") {
				if i >= len(got) || got[i] != want {
					t.Fatalf("line %d: got %q, want %q", i+1, strings.Join(got[min(i, len(got)):], "\n"), want)
				}
			}
		})
	}
}

func TestCommands(t *testing.T) {
	o := Options{Engine: native(t)}
	heap := filepath.Join(t.TempDir(), "heap")
	for _, c := range []struct {
		name  string
		lines []string
		want  string // regular expression
	}{
		{"meter", []string{":meter", "1", ":meter", ":meter on", "2", ":meter off", "3", ":meter x"},
			`^nothing has been evaluated\n1\n[\d,]+ computrons, 42,074,144 bytes allocated, [\d,]+ slots \(xs-meter-28\)\n2\n[\d,]+ computrons.*\n3\n"x" is neither on nor off\n$`},
		{"save and load", []string{"var n = 1", ":save " + heap, "n = 2", ":load " + heap, "n", "print(n)"},
			`^undefined\nsaved .*heap, [\d,]+ bytes\n2\nloaded .*heap\n1\n1\nundefined\n$`},
		{"no such heap", []string{"var n = 1", ":load " + heap + "-none", "n"}, `^undefined\n.*no such file or directory\n1\n$`},
		{"not a heap", []string{"var n = 1", ":load /proc/self/cmdline", "n"}, `^undefined\nrepl \(agoric-upgrade-16\): starting: .*cannot read snapshot(.|\n)*\n1\n$`},
		{"cannot save", []string{":save /proc/heap", "1"}, `^open /proc/.*\n1\n$`},
		{"reset", []string{"var n = 1", ":reset", "typeof n"}, `^undefined\n"undefined"\n$`},
		{"limit", []string{"var n = 1", "for (;;) {}", "typeof n"},
			`^undefined\nrepl \(agoric-upgrade-16\): sending a command: .*\(too much computation\)\nthe next script finds a fresh heap\n"undefined"\n$`},
		{"help", []string{":help"}, `:save FILE`},
		{"unknown", []string{":nonsense", ":save", "1"}, `^":nonsense" is no command(.|\n)*":save" is no command, or lacks its file(.|\n)*\n1\n$`},
		{"quit", []string{"1", ":quit", "2"}, `^1\n$`},
		{"open at the end", []string{"[1,", "2"}, `^Uncaught SyntaxError: .*\n$`},
		{"closed too often", []string{"}", "1"}, `^Uncaught SyntaxError: .*\n1\n$`},
		{"its handleCommand", []string{"handleCommand = () => { throw 1 }", "1", "2", ":reset", "3"},
			`^\[function .*\]\n(the heap's handleCommand is none of this program: .*uncaught exception: 1\n){2}3\n$`},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := talk(t, o, c.lines...); !regexp.MustCompile(c.want).MatchString(got) {
				t.Errorf("got\n%s\nwant %s", got, c.want)
			}
		})
	}
}

func TestAgainst(t *testing.T) {
	other := engine(t, enginetest.Recipe(t, "agoric-upgrade-22"))
	o := Options{Engine: native(t), Against: &other}
	heap := filepath.Join(t.TempDir(), "heap")
	other.MeteringLimit = 1_000_000 // so that they differ
	const work = "for (let i = 0; i < 100_000; i += 1) {} 'done'"
	got := talk(t, o, "1 + 1", "print('both'); 3", "var n = 1", ":meter", ":save "+heap, work, "typeof n", ":load "+heap, "n", ":meter on", "1")
	want := `^2
both
3
undefined
agoric-upgrade-16:
  [\d,]+ computrons.* \(xs-meter-28\)
agoric-upgrade-22:
  [\d,]+ computrons.* \(xs-meter-\d+\)
agoric-upgrade-16:
  saved .*/heap\.agoric-upgrade-16, [\d,]+ bytes
agoric-upgrade-22:
  saved .*/heap\.agoric-upgrade-22, [\d,]+ bytes
agoric-upgrade-16:
  "done"
agoric-upgrade-22:
  repl \(agoric-upgrade-22\): sending a command: .*\(too much computation\)
  the next script finds a fresh heap
agoric-upgrade-16:
  "number"
agoric-upgrade-22:
  "undefined"
agoric-upgrade-16:
  loaded .*
agoric-upgrade-22:
  loaded .*
1
1
agoric-upgrade-16:
  .*
agoric-upgrade-22:
  .*
$`
	if !regexp.MustCompile(want).MatchString(got) {
		t.Errorf("got\n%s\nwant %s", got, want)
	}
	o.Against = &o.Engine
	if err := Run(t.Context(), o); err == nil || !strings.Contains(err.Error(), "against itself") {
		t.Error(err)
	}
}

func TestRunFails(t *testing.T) {
	o := Options{Engine: native(t), In: strings.NewReader("1"), Out: failing{}}
	if err := Run(t.Context(), o); !errors.Is(err, errFull) {
		t.Error(err)
	}
	o.Engine.Path = filepath.Join(t.TempDir(), "none")
	if err := Run(t.Context(), o); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}

var errFull = errors.New("full")

type failing struct{}

func (failing) Write([]byte) (int, error) { return 0, errFull }

func TestRunFile(t *testing.T) {
	o := native(t)
	run := func(source string, asJSON bool) (out, printed string, err error) {
		file := filepath.Join(t.TempDir(), "file.js")
		if err := os.WriteFile(file, []byte(source), 0o600); err != nil {
			t.Fatal(err)
		}
		var b, p bytes.Buffer
		err = RunFile(t.Context(), o, file, asJSON, &b, &p)
		return b.String(), p.String(), err
	}
	// The script of upstream's test of metering (packages/xsnap/test/xs-perf.test.js), and what it must show.
	vector, err := recipes.LoadVector("metering")
	if err != nil {
		t.Fatal(err)
	}
	out, printed, err := run("print('hello'); issueCommand(new ArrayBuffer(1)); [40 + 2]", false)
	if want := `^\[42\]\n[\d,]+ computrons, 42,074,144 bytes allocated, [\d,]+ slots \(xs-meter-28\)\n$`; err != nil ||
		!strings.Contains(printed, "hello\n") || !strings.Contains(printed, "command: 0x00\n") || len(printed) != 20 || !regexp.MustCompile(want).MatchString(out) {
		t.Errorf("%q, %q, %v, want %s", out, printed, err, want)
	}
	out, _, err = run(vector.Steps[0].Evaluate, false)
	if err != nil || !strings.Contains(out, "1,380,185 computrons, 42,074,144 bytes allocated, 103,930 slots") {
		t.Errorf("%q, %v: not upstream's computrons", out, err)
	}
	out, printed, err = run("print('hello'); new Uint8Array([104, 105]).buffer", true)
	var result Result
	if jerr := json.Unmarshal([]byte(out), &result); err != nil || jerr != nil || printed != "hello\n" ||
		result.Version != "agoric-upgrade-16" || result.Result != "hi" || result.Meter.Compute <= 0 || result.Meter.Type != "xs-meter-28" {
		t.Errorf("%q, %q, %v, %v", out, printed, err, jerr)
	}
	var guest *xsnap.GuestError
	if out, _, err = run("print('hello'); throw Error('oops')", false); !errors.As(err, &guest) || guest.Text != "Error: oops" {
		t.Errorf("%q, %v", out, err)
	}
	var exit *xsnap.ExitError
	if _, _, err := run("for (;;) {}", false); !errors.As(err, &exit) || exit.Code != xsnap.ExitTooMuchComputation {
		t.Error(err)
	}
	if err := RunFile(t.Context(), o, filepath.Join(t.TempDir(), "none"), false, nil, nil); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}

func TestOpen(t *testing.T) {
	for source, want := range map[string]bool{
		"": false, "1": false, "(": true, "f(": true, "f()": false, "{[(": true, "{[(])": false, "'('": false, `"\"("`: false, "'(": false,
		"`": true, "`a\n`": false, "`${": true, "`${`": true, "`${`x`}`": false, "`\\``": false, "/*": true, "/* ( */": false, "// (": false,
		"// (\n(": true, "a / (": true, "/(/": false, "x = /[/(]/": false, "/\\//": false, "a) / (": false, "1 / 2 / (": true, "}": false,
	} {
		if got := open(source); got != want {
			t.Errorf("%q: %t, want %t", source, got, want)
		}
	}
}

// TestTerminal has the line editor on a terminal: history, a script of many lines, Ctrl-C in a script and at the prompt.
func TestTerminal(t *testing.T) {
	const variable = "REPL_TEST_WORKER"
	if path := os.Getenv(variable); path != "" {
		err := Run(context.Background(), Options{
			Engine: xsnap.Options{Path: path, Protocol: xsnap.Level4, Version: "v"},
			In:     os.Stdin, Out: os.Stdout, History: os.Getenv("REPL_TEST_HISTORY"),
		})
		if err != nil {
			t.Fatal(err)
		}
		return
	}
	history := filepath.Join(t.TempDir(), "sub", "history")
	path := native(t).Path
	dialog := func(exchanges ...[2]string) {
		t.Helper()
		host, terminal := openTerminal(t)
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+t.Name()+"$")
		cmd.Env = append(os.Environ(), variable+"="+path, "REPL_TEST_HISTORY="+history, "TERM=xterm")
		cmd.Stdin, cmd.Stdout, cmd.Stderr = terminal, terminal, terminal
		cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true, Setctty: true}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		terminal.Close()
		host.SetReadDeadline(time.Now().Add(20 * time.Second))
		seen := ""
		for _, e := range exchanges {
			for buf := make([]byte, 1024); !strings.Contains(seen, e[0]); {
				n, err := host.Read(buf)
				if err != nil {
					cmd.Process.Kill()
					t.Fatalf("waiting for %q: %v in %q", e[0], err, seen)
				}
				seen += string(buf[:n])
			}
			_, seen, _ = strings.Cut(seen, e[0])
			if _, err := host.WriteString(e[1]); err != nil {
				t.Fatal(err)
			}
		}
		if err := cmd.Wait(); err != nil {
			t.Fatalf("%v", err)
		}
	}
	const ctrlC, ctrlD, up = "\x03", "\x04", "\x1b[A"
	dialog([2]string{"> ", "20 + 3\r"}, [2]string{"23\r\n", ""}, [2]string{"> ", "var f = () => {\r"}, [2]string{"… ", "return 42 }\r"},
		[2]string{"undefined\r\n", "f()\r"}, [2]string{"42\r\n", "never("}, [2]string{"never(", ctrlC}, [2]string{"> ", "print('begins'); for (;;) {}\r"},
		[2]string{"\nbegins\r\n", ctrlC}, [2]string{"interrupted", "typeof f\r"}, [2]string{`"undefined"`, ctrlD})
	dialog([2]string{"> ", up + up + up + up + "\r"}, [2]string{"undefined\r\n", "f() + 1\r"}, [2]string{"43\r\n", ctrlD})
}

// openTerminal opens a pseudoterminal.
func openTerminal(t *testing.T) (host, terminal *os.File) {
	t.Helper()
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	host = os.NewFile(uintptr(fd), "ptmx")
	t.Cleanup(func() { host.Close() })
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	terminal, err = os.OpenFile("/dev/pts/"+strconv.Itoa(n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetWinsize(int(terminal.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 25, Col: 80}); err != nil {
		t.Fatal(err)
	}
	return host, terminal
}
