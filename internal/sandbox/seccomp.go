package sandbox

import (
	"fmt"
	"unsafe"

	"github.com/elastic/go-seccomp-bpf"
	"github.com/elastic/go-seccomp-bpf/arch"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// refused are the system calls that fail with EPERM. With no capabilities most of them would fail anyway; refusing
// them here keeps the kernel's larger and younger parts out of reach, and what is not namespaced: keys, the clock,
// the kernel log. Mounting cannot be in the list, since libcontainer still has to; it fails for lack of
// capabilities, which nothing in the container can get back: that takes a new user namespace.
var refused = []string{
	// namespaces
	"setns", "unshare",
	// other processes' memory and descriptors
	"kcmp", "pidfd_getfd", "process_madvise", "process_vm_readv", "process_vm_writev", "ptrace",
	// programs and modules for the kernel
	"bpf", "delete_module", "finit_module", "init_module", "kexec_file_load", "kexec_load", "perf_event_open",
	// keys: the container has the caller's keyring
	"add_key", "keyctl", "request_key",
	// files by handle, past the mount namespace
	"fanotify_init", "open_by_handle_at",
	// the machine
	"acct", "adjtimex", "clock_adjtime", "clock_settime", "ioperm", "iopl", "quotactl", "quotactl_fd", "reboot",
	"settimeofday", "swapoff", "swapon", "syslog", "vhangup",
	// obsolete or dangerous
	"_sysctl", "create_module", "get_kernel_syms", "lookup_dcookie", "modify_ldt", "nfsservctl", "query_module",
	"sysfs", "uselib", "userfaultfd", "ustat", "vserver",
}

// absent are those that fail with ENOSYS, on which C libraries fall back to something older. The flags of clone3 are
// in memory, where a filter cannot see them.
var absent = []string{"clone3", "io_uring_enter", "io_uring_register", "io_uring_setup"}

const cloneNamespaces = unix.CLONE_NEWCGROUP | unix.CLONE_NEWIPC | unix.CLONE_NEWNET | unix.CLONE_NEWNS |
	unix.CLONE_NEWPID | unix.CLONE_NEWUSER | unix.CLONE_NEWUTS

func errno(e unix.Errno) seccomp.Action { return seccomp.ActionErrno | seccomp.Action(e) }

// filter assembles the filter for a kernel architecture.
func filter() ([]bpf.RawInstruction, error) {
	info, err := arch.GetInfo("")
	if err != nil {
		return nil, err
	}
	known := func(names []string) (have []string) {
		for _, name := range names {
			if _, ok := info.SyscallNames[name]; ok {
				have = append(have, name)
			}
		}
		return have
	}
	arg := func(name string, op seccomp.Operation, value uint64) seccomp.NameWithConditions {
		return seccomp.NameWithConditions{Name: name, Conditions: seccomp.ArgumentConditions{{Argument: 0, Operation: op, Value: value}}}
	}
	policy := seccomp.Policy{
		DefaultAction: seccomp.ActionAllow,
		Syscalls: []seccomp.SyscallGroup{
			{Action: errno(unix.EPERM), Names: known(refused), NamesWithCondtions: []seccomp.NameWithConditions{
				arg("clone", seccomp.BitsSet, cloneNamespaces),
				arg("personality", seccomp.NotEqual, 0xffffffff), // which only asks
			}},
			{Action: errno(unix.ENOSYS), Names: known(absent)},
			// The network namespace has nothing to connect to, but a socket is a door to much of the kernel.
			{Action: errno(unix.EAFNOSUPPORT), NamesWithCondtions: []seccomp.NameWithConditions{
				arg("socket", seccomp.NotEqual, unix.AF_UNIX),
				arg("socketpair", seccomp.NotEqual, unix.AF_UNIX),
			}},
		},
	}
	program, err := policy.Assemble()
	if err != nil {
		return nil, err
	}
	// The policy lets calls of another architecture pass (on amd64, those of i386): refuse them first.
	const archOffset = 4
	return bpf.Assemble(append([]bpf.Instruction{
		bpf.LoadAbsolute{Off: archOffset, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: uint32(info.ID), SkipTrue: 1},
		bpf.RetConstant{Val: uint32(errno(unix.ENOSYS))},
	}, program...))
}

// refuseSyscalls puts all threads of this process, and so whatever they execute, behind the filter. It is there
// before libcontainer drops its capabilities, and for good.
func refuseSyscalls() error {
	program, err := filter()
	if err != nil {
		return fmt.Errorf("assemble the seccomp filter: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("set no_new_privs: %w", err)
	}
	code := make([]unix.SockFilter, len(program))
	for i, in := range program {
		code[i] = unix.SockFilter{Code: in.Op, Jt: in.Jt, Jf: in.Jf, K: in.K}
	}
	prog := unix.SockFprog{Len: uint16(len(code)), Filter: &code[0]}

	// Without SPEC_ALLOW kernels before 5.16 slow everything behind a filter down, against an attack that is none
	// here. Kernels before 4.17 do not know it.
	const tsync, specAllow = unix.SECCOMP_FILTER_FLAG_TSYNC, unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW
	for _, flags := range []uintptr{tsync | specAllow, tsync} {
		thread, _, e := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, flags, uintptr(unsafe.Pointer(&prog)))
		switch {
		case e == unix.EINVAL && flags != tsync:
		case e != 0:
			return fmt.Errorf("set the seccomp filter: %w", e)
		case thread != 0:
			return fmt.Errorf("set the seccomp filter: thread %d has another one", thread)
		default:
			return nil
		}
	}
	return nil
}
