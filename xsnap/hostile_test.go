package xsnap

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// programEnv names the program that this test binary is, instead of tests.
const programEnv = "XSNAP_TEST_PROGRAM"

func TestMain(m *testing.M) {
	if name := os.Getenv(programEnv); name != "" {
		run := roles[name]
		if run == nil {
			panic("no program " + name)
		}
		run()
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// The ends of a program that is a worker to its host.
var (
	fromHost = os.NewFile(3, "from host")
	toHost   = os.NewFile(4, "to host")
	saveTo   = os.NewFile(7, "snapshot")
)

// roles are workers that no host should have, and other programs of these tests.
var roles = map[string]func(){
	"children":    children,
	"drive":       drive,
	"limited":     limited,
	"untraceable": untraceableHost,

	"garbage":          says("How do you do? Je vous en prie!"),
	"binary":           says("\x00\xff\xfe\x7f"),
	"digits":           func() { io.Copy(toHost, endless("0")) },
	"huge":             func() { say("999999999:"); io.Copy(toHost, endless("x")) },
	"negative":         says("-1:.,"),
	"no end":           says("1:.."),
	"empty":            says("0:,"),
	"unknown":          says("3:Z42,"),
	"bad meter":        says("4:.{\x01x,"),
	"half":             func() { receive(); say("100:."); os.Exit(3) },
	"silent":           func() { select {} },
	"lives on":         func() { receive(); fromHost.Close(); toHost.Close(); time.Sleep(time.Hour) },
	"unasked":          says("1:.,1:.,"),
	"asks":             says("1:?,"),
	"asks for ever":    func() { receive(); go io.Copy(io.Discard, fromHost); io.Copy(toHost, endless("1:?,")) },
	"prints for ever":  func() { io.Copy(os.Stderr, endless("never again\n")) },
	"stays":            func() { receive(); say("1:.,"); time.Sleep(time.Hour) },
	"dies":             saves("half a snapshot", "", true),
	"too small":        saves("four", "5", false),
	"too large":        saves("four", "3", false),
	"negative size":    saves("four", "-4", false),
	"size is text":     saves("four", "four", false),
	"size is missing":  saves("four", "", false),
	"saves for ever":   func() { receive(); io.Copy(saveTo, endless("heap")) },
	"asks and saves":   func() { receive(); say("1:?,"); time.Sleep(time.Hour) },
	"has a child":      func() { child(); receive(); say("1:.,"); receive() },
	"outlived by one":  func() { child(); receive(); os.Exit(7) },
	"kills its parent": func() { receive(); syscall.Kill(os.Getpid(), syscall.SIGSEGV); select {} },
}

func say(text string) { io.WriteString(toHost, text) }

// says returns a program that answers all commands so.
func says(text string) func() {
	return func() {
		for receive() != nil {
			say(text)
		}
	}
}

// receive returns the next command, nil at the end.
var receive = func() func() []byte {
	var in *bufio.Reader
	return func() []byte {
		if in == nil {
			in = bufio.NewReader(fromHost)
		}
		message, err := readNetstring(in, maxMessage)
		if err != nil {
			return nil
		}
		return message
	}
}()

// saves returns a program that sends so much of a heap snapshot and then says its size.
func saves(content, size string, exits bool) func() {
	return func() {
		receive()
		io.WriteString(saveTo, content)
		if exits {
			os.Exit(9)
		}
		(&netstringWriter{w: toHost}).write([]byte(".{}\x01"), []byte(size))
		receive()
	}
}

type endless string

func (e endless) Read(p []byte) (n int, err error) {
	for n < len(p) {
		n += copy(p[n:], e)
	}
	return n, nil
}

// child starts a process that has all descriptors of this one, and says its number.
func child() {
	cmd := exec.Command("/bin/sleep", "3600")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.ExtraFiles = []*os.File{fromHost, toHost}
	if err := cmd.Start(); err != nil {
		panic(err)
	}
	fmt.Println(cmd.Process.Pid)
}

// TestHostile has real programs at the other end that are no workers: an error, and soon; nothing is left.
func TestHostile(t *testing.T) {
	defer func(d time.Duration) { patience = d }(patience)
	long := patience
	evaluate := func(w *Worker) error { _, err := w.Evaluate("1"); return err }
	again := func(w *Worker) error { evaluate(w); return evaluate(w) }
	save := func(w *Worker) error { _, err := w.Snapshot(io.Discard); return err }
	fork := func(w *Worker) error {
		w.o.Stdout = nil // a buffer is for one
		_, err := w.Fork(context.Background(), io.Discard)
		return err
	}
	command := func(w *Worker) error { _, err := w.Command(make([]byte, 1<<20)); return err }
	protocol := func(reason string) func(error) bool {
		return func(err error) bool {
			var p *ProtocolError
			return errors.As(err, &p) && strings.Contains(p.Reason, reason)
		}
	}
	exits := func(code int, signal syscall.Signal) func(error) bool {
		return func(err error) bool {
			var exit *ExitError
			return errors.As(err, &exit) && exit.Code == code && exit.Signal == signal
		}
	}
	deadlineExceeded := func(err error) bool { return errors.Is(err, context.DeadlineExceeded) }
	for _, c := range []struct {
		program string
		do      func(w *Worker) error
		want    func(error) bool
	}{
		{"garbage", evaluate, protocol(`'H' in the length`)},
		{"binary", evaluate, protocol(`'\x00' in the length`)},
		{"digits", evaluate, protocol(`in the length`)},
		{"huge", evaluate, func(err error) bool {
			var size *SizeError
			return errors.As(err, &size) && *size == SizeError{Size: 999_999_999, Limit: DefaultMaxMessage}
		}},
		{"negative", evaluate, protocol(`'-' in the length`)},
		{"no end", evaluate, protocol(`'.' at the end`)},
		{"empty", evaluate, protocol("an empty message")},
		{"unknown", evaluate, protocol("begins with 'Z'")},
		{"bad meter", evaluate, protocol("the meter")},
		{"half", evaluate, exits(3, 0)},
		{"silent", evaluate, deadlineExceeded},
		{"silent", command, deadlineExceeded},
		{"silent", save, deadlineExceeded},
		{"lives on", evaluate, protocol("closed a pipe and lived on")},
		{"unasked", again, protocol("4 bytes that nothing asked for")},
		{"asks", (*Worker).Ready, protocol("a command where no guest runs")},
		{"asks", evaluate, deadlineExceeded},
		{"asks for ever", evaluate, deadlineExceeded},
		{"prints for ever", evaluate, deadlineExceeded},
		{"stays", func(w *Worker) error { w.Evaluate("1"); return w.Close() }, func(err error) bool { return err != nil && strings.Contains(err.Error(), "was killed") }},
		{"dies", save, exits(9, 0)},
		{"dies", fork, func(err error) bool { // and not what comes of it for the other worker: that its context was canceled
			_, one := err.(*Error)
			return one && exits(9, 0)(err)
		}},
		{"too small", save, protocol("has 5 bytes, of which 4 came")},
		{"too large", save, protocol("has 3 bytes, and 4 came")},
		{"negative size", save, protocol(`the size of a heap snapshot is "-4"`)},
		{"size is text", save, protocol(`the size of a heap snapshot is "four"`)},
		{"size is missing", save, protocol(`the size of a heap snapshot is ""`)},
		{"saves for ever", save, deadlineExceeded},
		{"asks and saves", save, protocol("a command where no guest runs")},
		{"has a child", (*Worker).Close, func(err error) bool { return err == nil }},
		{"outlived by one", evaluate, exits(7, 0)},
		{"kills its parent", evaluate, func(err error) bool { // the Go runtime makes an exit code of the signal
			return exits(2, 0)(err) || exits(0, syscall.SIGSEGV)(err)
		}},
	} {
		t.Run(c.program, func(t *testing.T) {
			patience = long
			if c.program == "lives on" || c.program == "stays" || c.program == "too small" {
				patience = 200 * time.Millisecond // it is over then
			}
			limit := deadline
			if c.want(context.DeadlineExceeded) {
				limit = 400 * time.Millisecond // for those that go on and on
			}
			ctx, cancel := context.WithTimeout(t.Context(), limit)
			defer cancel()
			var stdout bytes.Buffer
			w, err := Start(ctx, Options{
				Path: os.Args[0], Protocol: Level4, Name: "v1:bad", Version: "hostile", Env: []string{programEnv + "=" + c.program}, Stdout: &stdout,
				Handle: func(context.Context, []byte) ([]byte, error) { return nil, nil },
			})
			if err != nil {
				t.Fatal(err)
			}
			defer w.Kill()
			begin := time.Now()
			soon(t, c.program, func() { err = c.do(w) })
			if !c.want(err) {
				t.Errorf("after %v: %v", time.Since(begin), err)
			}
			if err != nil && !strings.HasPrefix(err.Error(), "v1:bad (hostile): ") {
				t.Errorf("%v: it names neither worker nor version", err)
			}
			soon(t, c.program, func() { w.Close(); <-w.exited })
			if err := syscall.Kill(w.cmd.Process.Pid, 0); err != syscall.ESRCH {
				t.Errorf("the process is still there: %v", err)
			}
			if pid, err := strconv.Atoi(strings.TrimSpace(stdout.String())); err == nil && lives(pid) {
				t.Errorf("its child %d is still there", pid)
			} else if strings.Contains(c.program, "child") && err != nil {
				t.Errorf("it has no child: %q", &stdout)
			}
		})
	}
}

// lives reports whether a process is there and has not ended; one without a parent may not have been reaped.
func lives(pid int) bool {
	for range 100 {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil || bytes.Contains(stat, []byte(") Z ")) {
			return false
		}
		time.Sleep(10 * time.Millisecond)
	}
	return true
}

// TestNoChildren runs workers in a process of its own, which has no child left when all are closed, whatever became of them.
func TestNoChildren(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), os.Args[0], native.options(t).Path)
	cmd.Env = append(os.Environ(), programEnv+"=children")
	out, err := cmd.CombinedOutput()
	if err != nil || string(out) != "none\n" {
		t.Errorf("%s%v", out, err)
	}
}

func children() {
	for _, end := range []func(*Worker){
		func(w *Worker) { w.Close() },
		func(w *Worker) { w.Kill() },
		func(w *Worker) { w.Evaluate("for (;;) {}"); w.Close() },
		func(w *Worker) { w.round("testing", 'X', nil); w.Close() },
	} {
		w, err := Start(context.Background(), Options{Path: os.Args[1], Protocol: Level4, MeteringLimit: 1_000_000})
		if err != nil {
			panic(err)
		}
		end(w)
	}
	var status syscall.WaitStatus
	if pid, err := syscall.Wait4(-1, &status, 0, nil); err != syscall.ECHILD {
		fmt.Println(pid, err)
		return
	}
	fmt.Println("none")
}
