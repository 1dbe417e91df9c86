package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/moby/sys/capability"
	"github.com/moby/sys/userns"
	"golang.org/x/sys/unix"
)

// PermissionError says that the kernel, as it is set up here, does not let the caller make a container.
type PermissionError struct {
	Missing string // what is not permitted, and by what
	Grant   string // how to permit it
	Err     error  // what the attempt said
}

func (e *PermissionError) Error() string {
	return fmt.Sprintf("sandbox: %s; %s (%v)", e.Missing, e.Grant, e.Err)
}

func (e *PermissionError) Unwrap() error { return e.Err }

// Check makes a container and runs nothing in it. It returns what Run would if that is not possible here.
func Check(ctx context.Context) error {
	dir, err := os.MkdirTemp("", "enginery-check-")
	if err != nil {
		return fmt.Errorf("sandbox: make a directory to try a container in: %w", err)
	}
	defer os.RemoveAll(dir)
	root, work := filepath.Join(dir, "root"), filepath.Join(dir, "work")
	for _, d := range []string{work, root, root + "/dev", root + "/proc", root + "/tmp", root + "/build"} {
		if err := os.Mkdir(d, 0o755); err != nil {
			return fmt.Errorf("sandbox: make a directory to try a container in: %w", err)
		}
	}
	// A command is looked up last, when all that needs a permission is done.
	const command = "/not-there"
	err = Run(ctx, Spec{
		Root: root, Work: work, Dir: WorkDir, State: filepath.Join(dir, "state"),
		Args: []string{command}, Env: []string{"HOME=" + WorkDir},
	})
	if err != nil && strings.Contains(err.Error(), fmt.Sprintf("exec: %q:", command)) {
		return nil
	}
	return err
}

// host is what decides whether this process may make a container.
type host struct {
	sysctl   func(name string) string  // "" if there is none
	can      func(capability.Cap) bool // has a capability in its user namespace
	nested   bool                      // in a user namespace of its own, so that its capabilities are no privileges
	hard     func(resource int) uint64 // hard limit
	euid     int
	filtered bool // behind a seccomp filter
	chrooted bool
}

func thisHost() host {
	h := host{
		sysctl: func(name string) string {
			data, _ := os.ReadFile("/proc/sys/" + strings.ReplaceAll(name, ".", "/"))
			return strings.TrimSpace(string(data))
		},
		hard: func(resource int) uint64 {
			var l unix.Rlimit
			if unix.Getrlimit(resource, &l) != nil {
				return unix.RLIM_INFINITY
			}
			return l.Max
		},
		can:    func(capability.Cap) bool { return false },
		nested: userns.RunningInUserNS(),
		euid:   os.Geteuid(),
	}
	if caps, err := capability.NewPid2(0); err == nil && caps.Load() == nil {
		h.can = func(c capability.Cap) bool { return caps.Get(capability.EFFECTIVE, c) }
	}
	status, _ := os.ReadFile("/proc/self/status")
	h.filtered = strings.Contains(string(status), "\nSeccomp:\t2\n")
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	h.chrooted = err == nil && !mountedAtRoot(string(mounts))
	return h
}

func (h host) privileged(c capability.Cap) bool { return !h.nested && h.can(c) }

// mountedAtRoot says whether a mountinfo file has a mount on /. Behind a chroot there usually is none.
func mountedAtRoot(mountinfo string) bool {
	for line := range strings.Lines(mountinfo) {
		if f := strings.Fields(line); len(f) > 4 && f[4] == "/" {
			return true
		}
	}
	return false
}

// explain turns the error of an attempt to start a container into a PermissionError if a missing permission is the
// reason.
func explain(s *Spec, err error) error {
	if missing, grant := thisHost().missing(err.Error()); missing != "" {
		return &PermissionError{missing, grant, err}
	}
	for _, dir := range []string{s.Root, s.Work} {
		if at := unreachable(dir, os.Geteuid()); at != "" && os.Geteuid() == 0 && strings.Contains(err.Error(), "permission denied") {
			return &PermissionError{
				fmt.Sprintf("%s belongs to another user and is closed to others, and root has no privilege over it inside a container", at),
				fmt.Sprintf("run as that user, or keep %s where user 0 owns the directories", dir), err}
		}
	}
	return fmt.Errorf("sandbox: start %s: %w", s.Args[0], err)
}

// missing says what permission was missing when an attempt failed with this message, and how to get it.
func (h host) missing(message string) (what, grant string) {
	has := func(text ...string) bool {
		for _, t := range text {
			if strings.Contains(strings.ToLower(message), t) {
				return true
			}
		}
		return false
	}
	const (
		ownNamespaces = "the user may not make namespaces"
		outer         = "; for Docker or Podman: --security-opt seccomp=unconfined, or --cap-add SYS_ADMIN"
	)
	unsharing, mapping := has("failed to unshare"), has("newuid map", "newgid map", "mapping tool", "uid_map", "gid_map", "setgroups")
	mounting := has("mounting", "mount ", "pivot_root", "rootfs")
	denied := has("operation not permitted", "permission denied") || mapping
	full := has("no space left on device")

	switch {
	case unsharing && full:
		for _, kind := range []string{"user", "mnt", "pid", "ipc", "uts", "net", "cgroup"} {
			if name := "user.max_" + kind + "_namespaces"; h.sysctl(name) == "0" {
				return ownNamespaces + ": " + name + " is 0", "allow it, as root: sysctl -w " + name + "=10000"
			}
		}
		return ownNamespaces + ": as many as user.max_*_namespaces allow are in use, or they are nested 32 deep",
			"raise these limits, as root, or run it further out"
	case unsharing && has("invalid argument", "function not implemented"):
		return "the kernel has been built without one of the namespaces", "use a kernel with CONFIG_USER_NS and the other CONFIG_*_NS"
	case has("rlimit"):
		for _, l := range limits {
			if h.hard(l.Type) < l.Hard && !h.privileged(capability.CAP_SYS_RESOURCE) {
				return fmt.Sprintf("the hard limit for %s is %d, %d is needed", limitName[l.Type], h.hard(l.Type), l.Hard),
					"raise it, e.g. with ulimit -H" + limitOption[l.Type] + " as root or in /etc/security/limits.conf"
			}
		}
	case has("seccomp filter"):
		return "the kernel or an outer container does not let a process filter its system calls",
			"use a kernel with CONFIG_SECCOMP_FILTER, or allow the system call seccomp" + outer
	case !denied:
	case unsharing && h.sysctl("kernel.unprivileged_userns_clone") == "0" && !h.privileged(capability.CAP_SYS_ADMIN):
		return "only root may make user namespaces: kernel.unprivileged_userns_clone is 0",
			"allow it, as root: sysctl -w kernel.unprivileged_userns_clone=1"
	case (unsharing || mapping || mounting) && h.sysctl("kernel.apparmor_restrict_unprivileged_userns") == "1" && !h.privileged(capability.CAP_SYS_ADMIN):
		return "AppArmor takes the privileges from user namespaces of ordinary users: kernel.apparmor_restrict_unprivileged_userns is 1",
			"allow it, as root: sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"
	case mapping && h.euid == 0 && !h.can(capability.CAP_SETFCAP):
		return "user 0 without the capability SETFCAP may not map itself into a namespace",
			"add the capability (--cap-add SETFCAP), or run as another user"
	case unsharing && h.chrooted:
		return ownNamespaces + " in a chroot", "run it outside, or make the new root with pivot_root"
	case unsharing && h.filtered:
		return ownNamespaces + ": an outer container's seccomp filter forbids it", "allow unshare and mount" + outer
	case has(`mounting "proc"`, `at "/proc"`):
		return "a new /proc may not be mounted, since parts of this one are masked by an outer container",
			"unmask it; for Docker: --security-opt systempaths=unconfined, for Podman: --security-opt unmask=ALL"
	case mounting && h.filtered && !h.privileged(capability.CAP_SYS_ADMIN):
		return "mounting is forbidden by an outer container's seccomp filter", "allow it" + outer
	case unsharing || mapping:
		return ownNamespaces, "look for a security module (SELinux, AppArmor) that forbids it, in the kernel log"
	}
	return "", ""
}

var (
	limitName   = map[int]string{unix.RLIMIT_CORE: "core files", unix.RLIMIT_STACK: "the stack", unix.RLIMIT_NOFILE: "open files"}
	limitOption = map[int]string{unix.RLIMIT_CORE: "c", unix.RLIMIT_STACK: "s", unix.RLIMIT_NOFILE: "n"}
)

// unreachable returns the directory on the way to dir that a user without capabilities may not enter.
func unreachable(dir string, uid int) string {
	for at := dir; at != "/" && at != "."; at = filepath.Dir(at) {
		info, err := os.Stat(at)
		if errors.Is(err, os.ErrPermission) {
			continue // something above is closed
		}
		if err != nil {
			return ""
		}
		if st := info.Sys().(*syscall.Stat_t); int(st.Uid) != uid && info.Mode().Perm()&0o001 == 0 {
			return at + " (user " + strconv.Itoa(int(st.Uid)) + ", mode " + info.Mode().Perm().String() + ")"
		}
	}
	return ""
}
