// Command probe looks around in a sandbox. It is linked statically, so that it is the only file its root needs.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"
)

// Report is what the probe sees. The tests have the same type.
type Report struct {
	Args, Env   []string
	Cwd         string
	Host        string
	Domain      string
	Umask       string
	IDs         string // uid, euid, gid, egid, session, parent
	Status      map[string]string
	Limits      map[string]string
	Personality string

	Fds        []int
	Processes  []string
	Interfaces []string
	Mounts     []string // "/proc proc rw"
	Namespaces map[string]string
	Trees      map[string][]string // what is in /, /dev, /build, /tmp
	Masked     map[string]string   // what a masked file has
	Given      string              // what descriptor 3 has
	Streams    []string            // what kind of file 0, 1, 2 are

	Tries map[string]string // what happened: an errno, or "done"
}

func main() {
	switch os.Args[1] {
	case "true":
	case "exit":
		code, _ := strconv.Atoi(os.Args[2])
		os.Exit(code)
	case "segv":
		// Go would turn a fault into a panic.
		var act [4]uintptr
		syscall.RawSyscall6(syscall.SYS_RT_SIGACTION, uintptr(syscall.SIGSEGV), uintptr(unsafe.Pointer(&act)), 0, 8, 0, 0)
		var nowhere *Report
		nowhere.Given = "x"
	case "echo":
		fmt.Println("out")
		fmt.Fprintln(os.Stderr, "err")
		fmt.Println("out again")
	case "sleep":
		// With descendants, one of them in a session of its own.
		if len(os.Args) == 3 {
			for _, attr := range []*syscall.SysProcAttr{{}, {Setsid: true}} {
				cmd := exec.Command("/proc/self/exe", append(os.Args[1:], "child")...)
				cmd.SysProcAttr = attr
				check(cmd.Start())
			}
			signal.Ignore(syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
			fmt.Println("asleep")
		}
		time.Sleep(time.Hour)
	case "i386":
		const getpid = 20
		if r := int80(getpid); r != -int32(syscall.ENOSYS) {
			fmt.Println("getpid of i386:", r)
			os.Exit(1)
		}
	case "wait": // for the end of descriptor 3, then look for a file
		fmt.Println("waiting")
		_, err := io.ReadAll(os.NewFile(3, "signal"))
		check(err)
		_, err = os.Stat(os.Args[2])
		fmt.Println(errname(err))
	case "look":
		report := look(os.Args[2:])
		check(json.NewEncoder(os.Stdout).Encode(report))
	}
}

// look fills the report; hidden are host paths that must not be there.
func look(hidden []string) *Report {
	r := &Report{
		Args: os.Args, Env: os.Environ(),
		Status: map[string]string{}, Limits: map[string]string{}, Namespaces: map[string]string{},
		Trees: map[string][]string{}, Masked: map[string]string{}, Tries: map[string]string{},
	}
	for fd := range 1024 { // first, before this program opens any
		if _, _, e := syscall.RawSyscall(syscall.SYS_FCNTL, uintptr(fd), syscall.F_GETFD, 0); e == 0 {
			r.Fds = append(r.Fds, fd)
		}
	}
	for _, f := range []*os.File{os.Stdin, os.Stdout, os.Stderr} {
		info, err := f.Stat()
		check(err)
		r.Streams = append(r.Streams, info.Mode().String()[:1])
	}
	given, _ := io.ReadAll(os.NewFile(3, "given"))
	r.Given = string(given)

	r.Cwd, _ = os.Getwd()
	r.Host = read("/proc/sys/kernel/hostname")
	r.Domain = read("/proc/sys/kernel/domainname")
	umask := syscall.Umask(0)
	syscall.Umask(umask)
	r.Umask = fmt.Sprintf("%03o", umask)
	session, _, _ := syscall.RawSyscall(syscall.SYS_GETSID, 0, 0, 0)
	r.IDs = fmt.Sprint(os.Getuid(), os.Geteuid(), os.Getgid(), os.Getegid(), int(session), os.Getppid())
	r.Personality = read("/proc/self/personality")
	for line := range strings.Lines(read("/proc/self/status")) {
		name, value, _ := strings.Cut(line, ":")
		switch name {
		case "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp", "SigIgn", "SigBlk", "Pid", "TracerPid", "Cpus_allowed_list":
			r.Status[name] = strings.TrimSpace(value)
		}
	}
	for line := range strings.Lines(read("/proc/self/limits")) {
		for _, name := range []string{"Max core file size", "Max stack size", "Max open files"} {
			if rest, ok := strings.CutPrefix(line, name); ok {
				r.Limits[name] = strings.Join(strings.Fields(rest)[:2], " ")
			}
		}
	}

	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		if _, err := strconv.Atoi(e.Name()); err == nil {
			r.Processes = append(r.Processes, e.Name())
		}
	}
	for line := range strings.Lines(read("/proc/net/dev")) {
		if name, _, ok := strings.Cut(line, ":"); ok {
			r.Interfaces = append(r.Interfaces, strings.TrimSpace(name))
		}
	}
	for line := range strings.Lines(read("/proc/self/mountinfo")) {
		f := strings.Fields(line)
		access, _, _ := strings.Cut(f[5], ",")
		kind := f[slices.Index(f, "-")+1]
		if f[4] == "/" || f[4] == "/build" || strings.HasPrefix(f[4], "/dev/") {
			kind = "host" // whatever the host has
		}
		r.Mounts = append(r.Mounts, strings.Join([]string{f[4], kind, access}, " "))
	}
	slices.Sort(r.Mounts)
	entries, _ = os.ReadDir("/proc/self/ns")
	for _, e := range entries {
		r.Namespaces[e.Name()], _ = os.Readlink("/proc/self/ns/" + e.Name())
	}
	for _, dir := range []string{"/", "/dev", "/tmp", "/build"} {
		entries, err := os.ReadDir(dir)
		check(err)
		r.Trees[dir] = []string{}
		for _, e := range entries {
			info, err := os.Lstat(filepath.Join(dir, e.Name())) // of what is mounted there
			check(err)
			r.Trees[dir] = append(r.Trees[dir], info.Mode().String()[:1]+" "+e.Name())
		}
	}
	for _, path := range []string{"/proc/kcore", "/proc/keys", "/proc/cmdline", "/proc/swaps", "/proc/partitions", "/proc/timer_list"} {
		r.Masked[path] = read(path)
	}

	try := func(what string, err error) { r.Tries[what] = errname(err) }
	for _, path := range hidden {
		_, err := os.Stat(path)
		try("see "+filepath.Base(path), err)
	}
	write := func(path string) { try("write "+path, os.WriteFile(path, []byte("x"), 0o644)) }
	for _, path := range []string{"/new", "/probe", "/dev/new", "/proc/sys/kernel/hostname", "/proc/sys/vm/drop_caches", "/dev/null", "/tmp/new", "/build/new"} {
		write(path)
	}
	try("chmod /probe", os.Chmod("/probe", 0o777))
	try("chown /build/new", os.Chown("/build/new", 1, 1))
	try("setuid", syscall.Setuid(1))
	try("setgroups", syscall.Setgroups([]int{0}))
	try("mount", syscall.Mount("tmpfs", "/tmp", "tmpfs", 0, ""))
	try("remount", syscall.Mount("", "/", "", syscall.MS_REMOUNT|syscall.MS_BIND, ""))
	try("umount", syscall.Unmount("/proc", syscall.MNT_DETACH))
	try("mknod", syscall.Mknod("/build/node", syscall.S_IFCHR|0o666, 1<<8|3))
	try("chroot", syscall.Chroot("/tmp"))
	try("sethostname", syscall.Sethostname([]byte("x")))
	for _, address := range []string{"127.0.0.1:9", "192.0.2.1:9", "[2001:db8::1]:9"} {
		_, err := net.DialTimeout("tcp", address, time.Second)
		try("connect "+address, err)
	}
	_, err := net.Interfaces()
	try("netlink", err)
	unixSocket, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	try("unix socket", err)
	syscall.Close(unixSocket)
	cmd := exec.Command("/probe", "true")
	try("exec", cmd.Run())
	cmd = exec.Command("/probe", "true")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER}
	try("clone user namespace", cmd.Run())

	// System calls with arguments with which they would succeed, or fail otherwise, without a filter.
	var buf [64]byte
	here := uintptr(unsafe.Pointer(&buf))
	iov := [2]uintptr{here, uintptr(len(buf))}
	vec := uintptr(unsafe.Pointer(&iov))
	self := uintptr(os.Getpid())
	for _, c := range []struct {
		name         string
		amd64, arm64 uintptr
		args         [6]uintptr
	}{
		{"ptrace", 101, 117, [6]uintptr{0}},
		{"process_vm_readv", 310, 270, [6]uintptr{self, vec, 1, vec, 1}},
		{"process_vm_writev", 311, 271, [6]uintptr{self, vec, 1, vec, 1}},
		{"pidfd_getfd", 438, 438, [6]uintptr{^uintptr(0)}},
		{"kcmp", 312, 272, [6]uintptr{self, self, 1}},
		{"bpf", 321, 280, [6]uintptr{^uintptr(0)}},
		{"perf_event_open", 298, 241, [6]uintptr{0}},
		{"add_key", 248, 217, [6]uintptr{0}},
		{"request_key", 249, 218, [6]uintptr{0}},
		{"keyctl", 250, 219, [6]uintptr{0, ^uintptr(2)}}, // KEYCTL_GET_KEYRING_ID of the session
		{"userfaultfd", 323, 282, [6]uintptr{^uintptr(0)}},
		{"io_uring_setup", 425, 425, [6]uintptr{1}},
		{"unshare", 272, 97, [6]uintptr{syscall.CLONE_FS}},
		{"unshare user", 272, 97, [6]uintptr{syscall.CLONE_NEWUSER}},
		{"setns", 308, 268, [6]uintptr{^uintptr(0)}},
		{"clone3", 435, 435, [6]uintptr{0}},
		{"open_by_handle_at", 304, 265, [6]uintptr{^uintptr(0)}},
		{"personality", 135, 92, [6]uintptr{0}},
		{"personality query", 135, 92, [6]uintptr{0xffffffff}},
		{"settimeofday", 164, 170, [6]uintptr{1}},
		{"clock_settime", 227, 112, [6]uintptr{99}},
		{"adjtimex", 159, 171, [6]uintptr{0}},
		{"syslog", 103, 116, [6]uintptr{99}},
		{"swapon", 167, 224, [6]uintptr{0}},
		{"quotactl", 179, 60, [6]uintptr{0}},
		{"acct", 163, 89, [6]uintptr{1}},
		{"reboot", 169, 142, [6]uintptr{0}},
		{"init_module", 175, 105, [6]uintptr{0}},
		{"kexec_load", 246, 104, [6]uintptr{0, 0, 0, ^uintptr(0)}},
		{"socketpair netlink", 53, 199, [6]uintptr{syscall.AF_NETLINK}},
	} {
		nr := c.amd64
		if runtime.GOARCH == "arm64" {
			nr = c.arm64
		}
		_, _, e := syscall.Syscall6(nr, c.args[0], c.args[1], c.args[2], c.args[3], c.args[4], c.args[5])
		if e == 0 {
			try(c.name, nil)
		} else {
			try(c.name, e)
		}
	}
	return r
}

func read(path string) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return errname(err)
	}
	return strings.TrimSuffix(string(data), "\n")
}

func errname(err error) string {
	var e syscall.Errno
	switch {
	case err == nil:
		return "done"
	case !errors.As(err, &e):
		if errors.Is(err, fs.ErrNotExist) {
			return syscall.ENOENT.Error()
		}
		return err.Error()
	}
	return e.Error()
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "probe:", err)
		os.Exit(1)
	}
}
