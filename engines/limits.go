package engines

import (
	"fmt"
	"os"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// StackSize is the soft limit of a worker's stack, in bytes: what Linux gives a process unless it is told otherwise. How deep a guest's scripts,
// regular expressions, JSON and arrays may nest before it gets an exception or its worker ends follows from it (moddable,
// xs/sources/xsCommon.c, fxCStackLimit), so it must be the same on every host.
const StackSize = 8 << 20

var limiting sync.Mutex // held while this process has the limits of a worker

// WithLimits calls start, which starts a worker or becomes one, while this process has a worker's limits in place of its own: a stack of
// StackSize, and as much memory as the hard limits allow.
func WithLimits(start func() error) error {
	limiting.Lock()
	defer limiting.Unlock()
	for _, resource := range []int{unix.RLIMIT_STACK, unix.RLIMIT_AS, unix.RLIMIT_DATA} {
		var own unix.Rlimit
		if err := unix.Getrlimit(resource, &own); err != nil {
			return os.NewSyscallError("getrlimit", err)
		}
		worker := unix.Rlimit{Cur: own.Max, Max: own.Max}
		if resource == unix.RLIMIT_STACK {
			if worker.Cur = StackSize; own.Max < StackSize {
				return fmt.Errorf("the stack of a process is limited to %d bytes, and a worker needs %d; raise the hard limit (ulimit -H -s)", own.Max, StackSize)
			}
		}
		if worker == own {
			continue
		}
		if err := unix.Setrlimit(resource, &worker); err != nil {
			return os.NewSyscallError("setrlimit", err)
		}
		defer unix.Setrlimit(resource, &own)
	}
	return start()
}

// MemoryLimit says why this host may refuse a worker memory that another host would give it. It is empty if there is no reason: the worker is
// then killed where there is too little.
func MemoryLimit() string {
	for _, l := range []struct {
		resource int
		what     string
	}{{unix.RLIMIT_AS, "address space (ulimit -v)"}, {unix.RLIMIT_DATA, "data (ulimit -d)"}} {
		var own unix.Rlimit
		if unix.Getrlimit(l.resource, &own) == nil && own.Max != unix.RLIM_INFINITY {
			return fmt.Sprintf("a process has at most %d bytes of %s", own.Max, l.what)
		}
	}
	const overcommit = "vm.overcommit_memory"
	if mode, err := os.ReadFile("/proc/sys/" + strings.ReplaceAll(overcommit, ".", "/")); err == nil && strings.TrimSpace(string(mode)) == "2" {
		return overcommit + " is 2"
	}
	return ""
}
