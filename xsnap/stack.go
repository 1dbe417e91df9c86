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
// traced until its stack starts elsewhere.
func startStill(cmd *exec.Cmd) error {
	runtime.LockOSThread() // it is a thread that traces
	defer runtime.UnlockOSThread()
	cmd.SysProcAttr.Ptrace = true
	if err := engines.WithLimits(cmd.Start); err != nil {
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
		return fmt.Errorf("giving it a stack: %w", err)
	}
	return nil
}

// startAnywhere is startStill where that is not allowed.
func startAnywhere(cmd *exec.Cmd) error { return engines.WithLimits(cmd.Start) }

// untraceable reports whether an error of startStill says that this process may not trace another, as behind a seccomp filter, or itself traced.
func untraceable(err error) bool {
	return errors.Is(err, fs.ErrPermission) || errors.Is(err, errors.ErrUnsupported) || errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.EIO)
}

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
	mem, err := os.OpenFile(fmt.Sprintf("/proc/%d/mem", pid), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer mem.Close()
	sp := r.sp()
	stack := make([]byte, end-*sp)
	if _, err := mem.ReadAt(stack, int64(*sp)); err != nil {
		return err
	}
	start := end - stackStart
	for start > *sp { // arguments and environment are large
		start -= stackStart
	}
	if _, err := mem.WriteAt(stack[:initialSize(stack)], int64(start)); err != nil {
		return err
	}
	*sp = start
	return r.set(pid)
}

// initialSize returns the size of what is at the start: the number of arguments, pointers to them and to the environment, each list with a zero at
// its end, and the auxiliary vector, pairs of which the last begins with zero (System V ABI, Process Initialization). The pointers are to what follows.
func initialSize(stack []byte) int {
	at := 0
	next := func() (word uint64) {
		word = binary.NativeEndian.Uint64(stack[at:])
		at += 8
		return word
	}
	arguments := int(next())
	at += 8 * (arguments + 1)
	for next() != 0 {
	}
	for next() != 0 {
		at += 8
	}
	return at + 8
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
