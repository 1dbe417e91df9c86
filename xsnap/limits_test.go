package xsnap

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/enginery/enginery/engines"
)

// What a guest gets and how its worker ends is the same whatever limits the host's process has, unless it may be the host that gave no memory.
func TestLimits(t *testing.T) {
	const (
		shallow = "let a = []; for (let i = 0; i < 20_000; i++) a = [a]; gc()"
		deep    = "let a = []; for (let i = 0; i < 100_000; i++) a = [a]; gc()"
		large   = "const a = []; for (let i = 0; i < 300; i++) a.push(new ArrayBuffer(1 << 20))"
		larger  = "new ArrayBuffer(2_000_000_000)"
		ends    = "0 false, 12 true, 0 false, 11 true"
		unsure  = "0 false, 12 true, 11 false, 11 false"
	)
	if why := engines.MemoryLimit(); why != "" {
		t.Skipf("NOT TESTED: %s, on a host where memory is limited: %s; lift the limit", t.Name(), why)
	}
	const none = unix.RLIM_INFINITY
	for _, c := range []struct {
		name      string
		resource  int
		soft      uint64
		hard      uint64
		want, why string
	}{
		{"none", unix.RLIMIT_CORE, 0, 0, ends, ""},
		{"small stack", unix.RLIMIT_STACK, 1 << 20, none, ends, ""},
		{"large stack", unix.RLIMIT_STACK, 64 << 20, none, ends, ""},
		{"endless stack", unix.RLIMIT_STACK, none, none, ends, ""},
		{"soft limit of data", unix.RLIMIT_DATA, 256 << 20, none, ends, ""},
		{"hard limit of data", unix.RLIMIT_DATA, 256 << 20, 256 << 20, unsure, "268435456 bytes of data (ulimit -d)"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			var own unix.Rlimit
			if err := unix.Getrlimit(c.resource, &own); err != nil {
				t.Fatal(err)
			}
			cmd := exec.CommandContext(t.Context(), os.Args[0], native.options(t).Path, fmt.Sprint(c.resource), fmt.Sprint(c.soft), fmt.Sprint(min(c.hard, own.Max)),
				shallow, deep, large, larger)
			cmd.Env = append(os.Environ(), programEnv+"=limited")
			out, err := cmd.CombinedOutput()
			got, why, _ := strings.Cut(string(out), "\n")
			if err != nil || got != c.want || !strings.Contains(why, c.why) {
				t.Errorf("%s%v, want %s, %s", out, err, c.want, c.why)
			}
		})
	}
}

// limited is a host that has a limit, and says how workers end that evaluate scripts: with what exit code, 0 if they do not end, and whether the
// guest is to blame.
func limited() {
	number := func(i int) uint64 {
		n, err := strconv.ParseUint(os.Args[i], 10, 64)
		if err != nil {
			panic(err)
		}
		return n
	}
	resource, limit := int(number(2)), unix.Rlimit{Cur: number(3), Max: number(4)}
	if err := unix.Setrlimit(resource, &limit); err != nil {
		panic(err)
	}
	var ends []string
	var last error
	for _, script := range os.Args[5:] {
		w, err := Start(context.Background(), Options{Path: os.Args[1], Protocol: Level4})
		if err != nil {
			panic(err)
		}
		_, err = w.Evaluate(script)
		w.Kill()
		exit := new(ExitError)
		if err != nil && !errors.As(err, &exit) {
			panic(err)
		}
		ends, last = append(ends, fmt.Sprint(exit.Code, exit.Deterministic())), err
	}
	var own unix.Rlimit
	if err := unix.Getrlimit(resource, &own); err != nil || own != limit {
		panic(fmt.Sprint("its own limit is ", own, err))
	}
	fmt.Printf("%s\n%v\n", strings.Join(ends, ", "), last)
}

// depths has how deep a guest's regular expressions and scripts may nest.
const depths = `(() => {
	const deepest = nest => {
		let fits = 1, not = 1 << 20;
		while (not - fits > 1) {
			const n = (fits + not) >> 1;
			try { nest(n); fits = n; } catch (e) { not = n; }
		}
		return fits;
	};
	return [
		deepest(n => new RegExp("(?:".repeat(n) + ")".repeat(n))),
		deepest(n => (0, eval)("(".repeat(n) + "0" + ")".repeat(n))),
	].join();
})()`

// A guest may nest as deep in one worker as in another, wherever Linux has put their stacks and whatever else is on them.
func TestDepths(t *testing.T) {
	probe := command(t.Context(), nil, "/bin/true")
	if err := startStill(probe); errors.As(err, new(errTracing)) {
		t.Skipf("NOT TESTED: %s, on a host where no process may be traced: %v; allow ptrace (kernel.yama.ptrace_scope 0 or 1, no seccomp filter of it)", t.Name(), err)
	} else if err != nil {
		t.Fatal(err)
	}
	probe.Wait()
	want := ""
	for i := range 8 {
		o := native.options(t)
		o.Name = strings.Repeat("v", 1+9*i)
		o.Env = []string{"PAD=" + strings.Repeat("x", 600*i)}
		got := evaluate(t, begin(t, o), answer(depths))
		if want == "" {
			want = got
		}
		if got != want {
			t.Errorf("the depths are %s in one worker, and %s in another", want, got)
		}
	}
}

// Where no process may be traced, workers run all the same.
func TestUntraceable(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), os.Args[0], native.options(t).Path)
	cmd.Env = append(os.Environ(), programEnv+"=untraceable")
	if out, err := cmd.CombinedOutput(); err != nil || string(out) != "true 3" {
		t.Errorf("%s, %v", out, err)
	}
}

// untraceableHost is a host that may not trace, and says whether it is so, and what a worker says.
func untraceableHost() {
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 0}, // the number of the system call
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.SYS_PTRACE, Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
	}
	runtime.LockOSThread()
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		panic(err)
	}
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	if _, _, err := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&program))); err != 0 {
		panic(err)
	}
	fmt.Print(errors.As(startStill(command(context.Background(), nil, "/bin/true")), new(errTracing)), " ")
	w, err := Start(context.Background(), Options{Path: os.Args[1], Protocol: Level4})
	if err != nil {
		panic(err)
	}
	reply, err := w.Evaluate(answer("1 + 2"))
	if err != nil {
		panic(err)
	}
	os.Stdout.Write(reply.Payload)
	w.Kill()
}
