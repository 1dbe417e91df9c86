package xsnap

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/enginery/enginery/engines"
)

// stackStart is how far below its end a worker's stack starts, in bytes: more than what Linux puts there for a process takes.
const stackStart = 16 << 10

// startStill starts a worker that has as much of a stack as all others, to the byte. Linux starts a stack at random, within 8 KiB, below arguments and
// environment; and a guest can find out how much of it there is, by what nests: so deep, and there is an exception, or the worker ends. So the worker is
// traced until its stack starts elsewhere. The error is an errTracing if it can be started only otherwise.
func startStill(cmd *exec.Cmd) error {
	runtime.LockOSThread() // it is a thread that traces
	defer runtime.UnlockOSThread()
	cmd.SysProcAttr.Ptrace = true
	if err := engines.WithLimits(cmd.Start); errors.Is(err, fs.ErrPermission) || errors.Is(err, errors.ErrUnsupported) {
		return errTracing{err}
	} else if err != nil {
		return err
	}
	pid := cmd.Process.Pid
	err := waitStopped(pid)
	if err == nil {
		err = moveStack(pid)
	}
	if err == nil {
		err = syscall.PtraceDetach(pid)
	}
	if err != nil && !errors.Is(err, unix.ESRCH) { // otherwise it has been killed, which others find out
		cmd.Process.Kill()
		cmd.Wait()
		return errTracing{err}
	}
	return nil
}

// startAnywhere is startStill where that is not possible.
func startAnywhere(cmd *exec.Cmd) error { return engines.WithLimits(cmd.Start) }

// errTracing says that this process cannot trace another: it may be behind a seccomp filter, or itself traced.
type errTracing struct{ error }

// waitStopped waits until a traced process has its program, and stops before it does anything; or until it has ended.
func waitStopped(pid int) (err error) {
	for err = unix.EINTR; err == unix.EINTR; {
		err = unix.Waitid(unix.P_PID, pid, nil, unix.WSTOPPED|unix.WEXITED|unix.WNOWAIT, nil)
	}
	return err
}

// moveStack moves what a stopped process finds on its stack when it starts.
func moveStack(pid int) error {
	var r registers
	if err := r.get(pid); err != nil {
		return err
	}
	end, err := stackEnd(pid)
	if err != nil {
		return err
	}
	sp := r.sp()
	initial, err := initialStack(pid, *sp)
	if err != nil {
		return err
	}
	start := end - stackStart
	for start > *sp { // arguments and environment are large
		start -= stackStart
	}
	if _, err := syscall.PtracePokeData(pid, uintptr(start), initial); err != nil {
		return err
	}
	*sp = start
	return r.set(pid)
}

// initialStack reads what is at the start of a stack: the number of arguments, pointers to them and to the environment, each list with a zero at its end,
// and the auxiliary vector, pairs of which the last begins with zero (System V ABI, Process Initialization). What the pointers are to comes after it.
func initialStack(pid int, sp uint64) (initial []byte, err error) {
	next := func() uint64 {
		if err != nil {
			return 0
		}
		at := len(initial)
		initial = append(initial, make([]byte, 8)...)
		_, err = syscall.PtracePeekData(pid, uintptr(sp)+uintptr(at), initial[at:])
		return binary.NativeEndian.Uint64(initial[at:])
	}
	for range next() + 1 {
		next()
	}
	for next() != 0 {
	}
	for next() != 0 {
		next()
	}
	next()
	return initial, err
}

// stackEnd returns the address at which the stack of a process ends, its highest.
func stackEnd(pid int) (uint64, error) {
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(maps)) {
		if strings.HasSuffix(line, "[stack]\n") {
			var start, end uint64
			_, err := fmt.Sscanf(line, "%x-%x", &start, &end)
			return end, err
		}
	}
	return 0, fmt.Errorf("process %d has none", pid)
}
