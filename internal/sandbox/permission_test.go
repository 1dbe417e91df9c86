package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moby/sys/capability"
	"golang.org/x/sys/unix"
)

// childForbid forbids namespaces to itself, one kind after the other, and reports what Check says.
func childForbid(string) error {
	for _, kind := range []string{"user", "pid", "net"} {
		name := "/proc/sys/user/max_" + kind + "_namespaces"
		old, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		if err := os.WriteFile(name, []byte("0"), 0); err != nil {
			return err
		}
		var missing *PermissionError
		if err := Check(context.Background()); !errors.As(err, &missing) {
			return fmt.Errorf("%s is 0: got %v", name, err)
		}
		fmt.Println(missing.Missing + "; " + missing.Grant)
		if err := os.WriteFile(name, old, 0); err != nil {
			return err
		}
	}
	return Check(context.Background())
}

// childLimited gives away the right to a limit that the container needs.
func childLimited(base string) error {
	if err := unix.Setrlimit(unix.RLIMIT_STACK, &unix.Rlimit{Cur: 8 << 20, Max: 16 << 20}); err != nil {
		return err
	}
	s, err := newSpec(base, filepath.Join(base, "probe"))
	if err != nil {
		return err
	}
	var missing *PermissionError
	if err := Run(context.Background(), s); !errors.As(err, &missing) {
		return fmt.Errorf("got %v", err)
	}
	fmt.Println(missing.Missing)
	return nil
}

// childMasked hides a part of /proc, as Docker does.
func childMasked(string) error {
	if err := unix.Mount("/dev/null", "/proc/kmsg", "", unix.MS_BIND, ""); err != nil {
		return err
	}
	return Check(context.Background())
}

// childNoexec has its root on a file system that nothing may be run from.
func childNoexec(base string) error {
	root := filepath.Join(base, "root")
	if err := os.Mkdir(root, 0o755); err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", root, "tmpfs", unix.MS_NOEXEC, ""); err != nil {
		return err
	}
	s, err := newSpec(base, filepath.Join(base, "probe"))
	if err != nil {
		return err
	}
	return Run(context.Background(), s)
}

// childOuter is in a container like ours, whose filter refuses to make another in it.
func childOuter(string) error {
	if err := refuseSyscalls(); err != nil {
		return err
	}
	return Check(context.Background())
}

// What the kernel can be made to forbid.
func TestForbidden(t *testing.T) {
	users := users()
	caller, nested, last := users[0], users[1], users[len(users)-1]
	var namespaces string
	for _, kind := range []string{"user", "pid", "net"} {
		namespaces += fmt.Sprintf("the user may not make namespaces: user.max_%s_namespaces is 0; allow it, as root: sysctl -w user.max_%[1]s_namespaces=10000\n", kind)
	}
	for _, c := range []struct {
		child string
		user  user
		want  string
	}{
		{"forbid", nested, namespaces},
		{"limited", last, "the hard limit for the stack is 16777216, 67108864 is needed\n"},
		{"masked", nested, "sandbox: a new /proc may not be mounted, since parts of this one are masked by an outer container; unmask it"},
		{"noexec", nested, "is on a file system mounted noexec, so nothing in it can run"},
		{"outer", caller, "sandbox: the user may not make namespaces: an outer container's seccomp filter forbids it; allow unshare and mount"},
	} {
		t.Run(c.child, func(t *testing.T) {
			cmd, base := c.user.child(t, c.child)
			out, err := cmd.CombinedOutput()
			if !strings.Contains(string(out), c.want) {
				t.Errorf("%v\n got %s\nwant %s", err, out, c.want)
			}
			checkClean(t, base)
		})
	}
}

// What cannot be had on every kernel: the messages are libcontainer's and the kernel's.
func TestMissing(t *testing.T) {
	const (
		unshare = "unable to start container process: can't get final child's PID from pipe: EOF; runc init error(s): nsexec-1[7]: failed to unshare user namespace: Operation not permitted"
		others  = "unable to start container process: can't get final child's PID from pipe: EOF; runc init error(s): nsexec-1[7]: failed to unshare remaining namespaces: Operation not permitted"
		mapping = "unable to start container process: can't get final child's PID from pipe: EOF; runc init error(s): nsexec-0[7]: mapping tool not present"
		proc    = `unable to start container process: error during container init: error mounting "proc" to rootfs at "/proc": mount src=proc, dst=/proc, flags=MS_NOSUID: operation not permitted`
		full    = "nsexec-1[7]: failed to unshare user namespace: No space left on device"
		command = `unable to start container process: error during container init: exec: "/bin/cc": permission denied`
	)
	free := host{sysctl: func(string) string { return "" }, can: func(capability.Cap) bool { return false }, euid: 1000}
	with := func(name, value string) host {
		h := free
		h.sysctl = func(n string) string {
			if n == name {
				return value
			}
			return ""
		}
		return h
	}
	root := free
	root.euid = 0
	admin := with("kernel.apparmor_restrict_unprivileged_userns", "1")
	admin.can = func(capability.Cap) bool { return true }
	filtered, chrooted := free, free
	filtered.filtered, chrooted.chrooted = true, true
	for _, c := range []struct {
		name, message string
		host          host
		want          string
	}{
		{"max_user_namespaces", full, with("user.max_user_namespaces", "0"), "sysctl -w user.max_user_namespaces=10000"},
		{"nested too deep", full, free, "nested 32 deep"},
		{"debian", unshare, with("kernel.unprivileged_userns_clone", "0"), "sysctl -w kernel.unprivileged_userns_clone=1"},
		{"ubuntu", others, with("kernel.apparmor_restrict_unprivileged_userns", "1"), "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"},
		{"ubuntu, mapping", mapping, with("kernel.apparmor_restrict_unprivileged_userns", "1"), "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"},
		{"not apparmor", others, admin, "security module"},
		{"docker", unshare, filtered, "--security-opt seccomp=unconfined"},
		{"docker, masked", proc, filtered, "--security-opt systempaths=unconfined"},
		{"no setfcap", mapping, root, "--cap-add SETFCAP"},
		{"chroot", unshare, chrooted, "in a chroot"},
		{"old kernel", "failed to unshare user namespace: Invalid argument", free, "CONFIG_USER_NS"},
		{"no seccomp", "set the seccomp filter: function not implemented", free, "CONFIG_SECCOMP_FILTER"},
		{"something else", command, with("kernel.apparmor_restrict_unprivileged_userns", "1"), ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			what, grant := c.host.missing(c.message)
			if got := what + "; " + grant; c.want == "" && what != "" || !strings.Contains(got, c.want) {
				t.Errorf("got %q, want … %q …", got, c.want)
			}
		})
	}
}

// Root has no privilege over other users' files in a container, and is told so.
func TestOtherUsersDirectory(t *testing.T) {
	dir := t.TempDir()
	closed := filepath.Join(dir, "closed")
	if err := os.MkdirAll(filepath.Join(closed, "root"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(closed, 0o700); err != nil {
		t.Fatal(err)
	}
	if got := unreachable(filepath.Join(closed, "root"), os.Getuid()); got != "" {
		t.Errorf("the owner's: got %q", got)
	}
	want := fmt.Sprintf("%s (user %d, mode -rwx------)", closed, os.Getuid())
	if got := unreachable(closed, os.Getuid()+1); got != want {
		t.Errorf("another's: got %q, want %q", got, want)
	}
	if isRoot() {
		s, err := newSpec(closed, probe)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(closed, 1234, -1); err != nil {
			t.Fatal(err)
		}
		err = Run(t.Context(), s)
		var missing *PermissionError
		if !errors.As(err, &missing) || !strings.HasPrefix(missing.Missing, closed+" (user 1234, mode -rwx------)") {
			t.Errorf("got %v", err)
		}
	}
}
