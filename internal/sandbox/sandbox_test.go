package sandbox

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/moby/sys/userns"
	"golang.org/x/sys/unix"
)

// The tests run this program again as other users and in other circumstances; what it then does is in children.
const (
	childVar = "SANDBOX_TEST_CHILD"
	baseVar  = "SANDBOX_TEST_BASE"
	userVar  = "SANDBOX_TEST_USER"
)

var probe string // the probe's binary

func TestMain(m *testing.M) {
	if f := children[os.Getenv(childVar)]; f != nil {
		if err := f(os.Getenv(baseVar)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "sandbox-test-")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		probe = filepath.Join(dir, "probe")
		build := exec.Command("go", "build", "-buildvcs=false", "-o", probe, "./testdata/probe")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "build the probe: %v\n%s", err, out)
			return 1
		}
		return m.Run()
	}())
}

// newSpec makes a root with the probe in it and a work directory, below base.
func newSpec(base, probe string) (Spec, error) {
	s := Spec{
		Root:  filepath.Join(base, "root"),
		Work:  filepath.Join(base, "work"),
		State: filepath.Join(base, "state"),
		Dir:   "/build/sub",
		Env:   []string{"HOME=/build", "PATH=/"},
		Args:  []string{"probe", "true"},
	}
	for _, d := range []string{"root/dev", "root/proc", "root/tmp", "root/build", "work/sub"} {
		if err := os.MkdirAll(filepath.Join(base, d), 0o755); err != nil {
			return s, err
		}
	}
	data, err := os.ReadFile(probe)
	if err != nil {
		return s, err
	}
	return s, os.WriteFile(filepath.Join(s.Root, "probe"), data, 0o755)
}

func testSpec(tb testing.TB, args ...string) Spec {
	tb.Helper()
	s, err := newSpec(tb.TempDir(), probe)
	if err != nil {
		tb.Fatal(err)
	}
	if len(args) > 0 {
		s.Args = append([]string{"probe"}, args...)
	}
	return s
}

// user is who makes a container.
type user struct {
	name string
	attr syscall.SysProcAttr
	uid  int
}

func isRoot() bool { return os.Getuid() == 0 && !userns.RunningInUserNS() }

// users are all that this machine allows: whoever runs the tests, user 0 of a user namespace, and if the tests run
// as root an ordinary user.
func users() []user {
	me, group := os.Getuid(), os.Getgid()
	list := []user{
		{name: "caller", uid: me},
		{name: "nested", uid: me, attr: syscall.SysProcAttr{
			Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWUTS | syscall.CLONE_NEWNS,
			UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: me, Size: 1}},
			GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: group, Size: 1}},
		}},
	}
	if isRoot() {
		list = append(list, user{name: "ordinary", uid: 65534, attr: syscall.SysProcAttr{
			Credential: &syscall.Credential{Uid: 65534, Gid: 65534},
		}})
	}
	return list
}

// child prepares to run one of children as a user, with a copy of the probe in a directory of its own.
func (u user) child(t testing.TB, name string) (*exec.Cmd, string) {
	t.Helper()
	base, err := os.MkdirTemp("", "sandbox-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(base); err != nil {
			t.Error(err)
		}
	})
	data, err := os.ReadFile(probe)
	if err == nil {
		err = os.WriteFile(filepath.Join(base, "probe"), data, 0o755)
	}
	if err == nil {
		err = os.Chown(base, u.uid, -1)
	}
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Args = []string{base} // so that the first stages of its containers can be found
	cmd.Env = []string{childVar + "=" + name, baseVar + "=" + base, userVar + "=" + u.name, "SECRET=of the host", "LC_ALL=C.UTF-8", "TZ=Asia/Tokyo"}
	cmd.Dir = "/"
	attr := u.attr
	cmd.SysProcAttr = &attr
	return cmd, base
}

var children = map[string]func(base string) error{
	"look":    childLook,
	"sleep":   childSleep,
	"forbid":  childForbid,
	"limited": childLimited,
	"masked":  childMasked,
	"mounts":  childMounts,
	"noexec":  childNoexec,
	"outer":   childOuter,
}

// Report is the probe's.
type Report struct {
	Args, Env   []string
	Cwd         string
	Host        string
	Domain      string
	Umask       string
	IDs         string
	Status      map[string]string
	Limits      map[string]string
	Personality string

	Fds        []int
	Processes  []string
	Interfaces []string
	Mounts     []string
	Namespaces map[string]string
	Trees      map[string][]string
	Masked     map[string]string
	Given      string
	Streams    []string

	Tries map[string]string
}

// childLook runs the probe from a process that is set up unlike any other.
func childLook(base string) error {
	s, err := newSpec(base, filepath.Join(base, "probe"))
	if err != nil {
		return err
	}
	secret := filepath.Join(base, "secret")
	if err := os.WriteFile(secret, []byte("of the host"), 0o644); err != nil {
		return err
	}
	leak, err := os.Open(secret)
	if err != nil {
		return err
	}
	if _, err := unix.FcntlInt(leak.Fd(), unix.F_SETFD, 0); err != nil {
		return err
	}
	signal.Ignore(syscall.SIGHUP, syscall.SIGINT, syscall.SIGTERM, syscall.SIGPIPE)
	unix.Umask(0o077)
	for _, l := range []struct {
		resource  int
		cur, hard uint64
	}{{unix.RLIMIT_CORE, 4096, 4096}, {unix.RLIMIT_STACK, 2 << 20, 128 << 20}, {unix.RLIMIT_NOFILE, 4000, 5000}} {
		if err := unix.Setrlimit(l.resource, &unix.Rlimit{Cur: l.cur, Max: l.hard}); err != nil && l.resource != unix.RLIMIT_CORE {
			return fmt.Errorf("set limit %d: %w", l.resource, err)
		}
	}
	runtime.LockOSThread()
	if err := unix.SchedSetaffinity(0, firstProcessor()); err != nil {
		return fmt.Errorf("stay on one processor: %w", err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	if _, err := w.WriteString("given"); err != nil {
		return err
	}
	w.Close()
	s.Args = []string{"probe", "look", secret, base, "/etc/passwd", "/usr", "/root", "/sys/kernel"}
	s.Files = []*os.File{r}
	s.Dir = "/build/made"
	if os.Getenv(userVar) == "nested" { // where it is not the machine's name
		if err := errors.Join(unix.Sethostname([]byte("of-the-host")), unix.Setdomainname([]byte("example"))); err != nil {
			return err
		}
	}
	out, err := os.Create(filepath.Join(base, "out"))
	if err != nil {
		return err
	}
	s.Stdout, s.Stderr = out, os.Stderr
	return Run(context.Background(), s)
}

// firstProcessor is the first of those that this process may use.
func firstProcessor() *unix.CPUSet {
	var all, first unix.CPUSet
	if err := unix.SchedGetaffinity(0, &all); err != nil {
		panic(err)
	}
	for i := range 8 * len(all) {
		if all.IsSet(i) {
			first.Set(i)
			break
		}
	}
	return &first
}

func TestLook(t *testing.T) {
	want := Report{
		Env:    []string{"HOME=/build", "PATH=/"},
		Cwd:    "/build/made",
		Host:   "enginery",
		Domain: "(none)",
		Umask:  "022",
		IDs:    "0 0 0 0 1 0",
		Status: map[string]string{
			"Pid": "1", "TracerPid": "0", "NoNewPrivs": "1", "Seccomp": "2",
			"CapInh": "0000000000000000", "CapPrm": "0000000000000000", "CapEff": "0000000000000000",
			"CapBnd": "0000000000000000", "CapAmb": "0000000000000000",
			"SigIgn": "0000000000000000", "SigBlk": "0000000000000000",
		},
		// A Go program raises its soft limit for files.
		Limits:      map[string]string{"Max core file size": "0 0", "Max stack size": "8388608 67108864", "Max open files": "4095 4096"},
		Personality: "00040000",
		Fds:         []int{0, 1, 2, 3},
		Given:       "given",
		Streams:     []string{"D", "p", "p"}, // though the caller's are files
		Processes:   []string{"1"},
		Interfaces:  []string{"lo"},
		Trees: map[string][]string{
			"/":      {"d build", "d dev", "- probe", "d proc", "d tmp"},
			"/build": {"d made", "d sub"},
			"/tmp":   {},
			"/dev": {"L fd", "D full", "D null", "L ptmx", "D random", "L stderr", "L stdin", "L stdout",
				"D urandom", "D zero"},
		},
		Masked: map[string]string{},
		Tries: map[string]string{
			"write /new": "read-only file system", "write /probe": "read-only file system",
			"write /dev/new": "read-only file system", "write /proc/sys/kernel/hostname": "read-only file system",
			"write /proc/sys/vm/drop_caches": "read-only file system",
			"write /dev/null":                "done", "write /tmp/new": "done", "write /build/new": "done",
			"chmod /probe": "read-only file system", "unix socket": "done", "exec": "done", "personality query": "done",
		},
	}
	gone, denied, absent, family := "no such file or directory", "operation not permitted", "function not implemented", "address family not supported by protocol"
	for _, path := range []string{"secret", "passwd", "usr", "root", "kernel"} {
		want.Tries["see "+path] = gone
	}
	for _, name := range []string{
		"mount", "remount", "umount", "mknod", "chroot", "sethostname", "setgroups", "clone user namespace", "ptrace",
		"process_vm_readv", "process_vm_writev", "pidfd_getfd", "kcmp", "bpf", "perf_event_open", "add_key", "request_key",
		"keyctl", "userfaultfd", "unshare", "unshare user", "setns", "open_by_handle_at", "personality", "settimeofday",
		"clock_settime", "adjtimex", "syslog", "swapon", "quotactl", "acct", "reboot", "init_module", "kexec_load",
	} {
		want.Tries[name] = denied
	}
	want.Tries["io_uring_setup"], want.Tries["clone3"] = absent, absent
	// There is no other user to become.
	want.Tries["chown /build/new"], want.Tries["setuid"] = "invalid argument", "invalid argument"
	for _, name := range []string{"netlink", "connect 127.0.0.1:9", "connect 192.0.2.1:9", "connect [2001:db8::1]:9", "socketpair netlink"} {
		want.Tries[name] = family
	}
	for _, path := range []string{"/proc/kcore", "/proc/keys", "/proc/cmdline", "/proc/swaps", "/proc/partitions", "/proc/timer_list"} {
		want.Masked[path] = ""
		if _, err := os.Lstat(path); err != nil {
			want.Masked[path] = gone // this kernel has none
		}
	}
	if _, err := os.Stat("/proc/kcore"); err == nil {
		want.Trees["/dev"] = slices.Insert(want.Trees["/dev"], 0, "L core")
	}
	want.Mounts = []string{"/ host ro", "/build host rw", "/dev tmpfs ro", "/proc proc rw", "/proc/sys proc ro", "/tmp tmpfs rw"}
	for _, name := range []string{"full", "null", "random", "urandom", "zero"} {
		want.Mounts = append(want.Mounts, "/dev/"+name+" host rw")
	}
	for _, path := range masked {
		if info, err := os.Stat(path); err == nil && info.IsDir() {
			want.Mounts = append(want.Mounts, path+" tmpfs ro")
		} else if err == nil {
			want.Mounts = append(want.Mounts, path+" devtmpfs rw")
		}
	}
	slices.Sort(want.Mounts)
	for i, set := 0, firstProcessor(); ; i++ {
		if set.IsSet(i) {
			want.Status["Cpus_allowed_list"] = strconv.Itoa(i)
			break
		}
	}

	for _, u := range users() {
		t.Run(u.name, func(t *testing.T) {
			cmd, base := u.child(t, "look")
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			out, err := os.ReadFile(filepath.Join(base, "out"))
			if err != nil {
				t.Fatal(err)
			}
			var got Report
			if err := json.Unmarshal(out, &got); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			for _, ns := range []string{"user", "mnt", "pid", "ipc", "uts", "net", "cgroup"} {
				host, err := os.Readlink("/proc/self/ns/" + ns)
				if err != nil || got.Namespaces[ns] == "" || got.Namespaces[ns] == host {
					t.Errorf("namespace %s: inside %q, outside %q (%v)", ns, got.Namespaces[ns], host, err)
				}
			}
			want := want
			want.Args = []string{"probe", "look", base + "/secret", base, "/etc/passwd", "/usr", "/root", "/sys/kernel"}
			want.Tries["see "+filepath.Base(base)] = gone
			defer delete(want.Tries, "see "+filepath.Base(base))
			got.Namespaces = nil
			w, g := reflect.ValueOf(want), reflect.ValueOf(got)
			for i := range w.NumField() {
				w, g := w.Field(i), g.Field(i)
				name := reflect.TypeFor[Report]().Field(i).Name
				if w.Kind() != reflect.Map {
					if !reflect.DeepEqual(w.Interface(), g.Interface()) {
						t.Errorf("%s:\n got %v\nwant %v", name, g, w)
					}
					continue
				}
				for _, k := range g.MapKeys() {
					if !w.MapIndex(k).IsValid() {
						t.Errorf("%s[%s]: got %v, want nothing", name, k, g.MapIndex(k))
					}
				}
				for _, k := range w.MapKeys() {
					a, b := w.MapIndex(k), g.MapIndex(k)
					if !b.IsValid() || !reflect.DeepEqual(a.Interface(), b.Interface()) {
						t.Errorf("%s[%s]: got %v, want %v", name, k, b, a)
					}
				}
			}
			checkOwner(t, filepath.Join(base, "work/new"), u.uid, 0o644)
			checkOwner(t, filepath.Join(base, "work/made"), u.uid, fs.ModeDir|0o755)
			checkClean(t, base)
		})
	}
}

func checkOwner(t *testing.T, path string, uid int, mode fs.FileMode) {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if got := int(info.Sys().(*syscall.Stat_t).Uid); got != uid || info.Mode() != mode {
		t.Errorf("%s: owner %d, mode %v; want %d, %v", path, got, info.Mode(), uid, mode)
	}
}

// checkClean fails if a container of this base directory has left anything behind but a state directory.
func checkClean(t testing.TB, base string) {
	t.Helper()
	var left []string
	// The kernel may take a moment to kill.
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(2 * time.Millisecond) {
		if left = processesOf(t, base); len(left) == 0 || time.Now().After(deadline) {
			break
		}
	}
	if len(left) > 0 {
		t.Errorf("processes left: %q", left)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, filepath.Base(base)) {
			t.Errorf("mount left: %s", line)
		}
	}
	if groups := newGroups(t); len(groups) > 0 {
		t.Errorf("control groups left: %q", groups)
	}
}

// processesOf returns the processes that have base in their command line.
func processesOf(t testing.TB, base string) (found []string) {
	t.Helper()
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err != nil || pid == os.Getpid() {
			continue
		}
		line, err := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		if err == nil && bytes.Contains(line, []byte(base)) {
			found = append(found, e.Name()+" "+strings.ReplaceAll(string(line), "\x00", " "))
		}
	}
	return found
}

// newGroups returns the control groups that have the name of a container.
func newGroups(t testing.TB) (found []string) {
	err := filepath.WalkDir("/sys/fs/cgroup", func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && strings.HasPrefix(d.Name(), "enginery-") {
			found = append(found, path)
		}
		return nil // groups come and go
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func TestRun(t *testing.T) {
	for _, c := range []struct {
		args []string
		want error
	}{
		{[]string{"true"}, nil},
		{[]string{"exit", "3"}, &ExitError{Code: 3}},
		{[]string{"segv"}, &ExitError{Signal: syscall.SIGSEGV}},
		{[]string{"i386"}, nil}, // the filter is not passed by through another architecture
	} {
		t.Run(c.args[0], func(t *testing.T) {
			t.Parallel()
			s := testSpec(t, c.args...)
			if err := Run(t.Context(), s); !reflect.DeepEqual(err, c.want) {
				t.Errorf("got %v, want %v", err, c.want)
			}
			if _, err := os.Stat(s.State); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("state directory: %v", err)
			}
		})
	}
}

// One writer for both gets all lines in order.
func TestOutput(t *testing.T) {
	s := testSpec(t, "echo")
	var both bytes.Buffer
	s.Stdout, s.Stderr = &both, &both
	if err := Run(t.Context(), s); err != nil || both.String() != "out\nerr\nout again\n" {
		t.Errorf("got %q, %v", &both, err)
	}
	var stdout, stderr bytes.Buffer
	s.Stdout, s.Stderr = &stdout, &stderr
	if err := Run(t.Context(), s); err != nil || stdout.String() != "out\nout again\n" || stderr.String() != "err\n" {
		t.Errorf("got %q, %q, %v", &stdout, &stderr, err)
	}
}

func TestBadSpec(t *testing.T) {
	for _, c := range []struct {
		name  string
		spoil func(*Spec)
		want  string
	}{
		{"no command", func(s *Spec) { s.Args = nil }, "no command"},
		{"unknown command", func(s *Spec) { s.Args = []string{"/bin/cc"} }, `exec: "/bin/cc": stat /bin/cc: no such file or directory`},
		{"not in PATH", func(s *Spec) { s.Args = []string{"cc"} }, `exec: "cc": executable file not found in $PATH`},
		{"dir outside", func(s *Spec) { s.Dir = "/tmp" }, `working directory "/tmp": expected a clean path in /build`},
		{"dir unclean", func(s *Spec) { s.Dir = "/build/../tmp" }, `working directory "/build/../tmp"`},
		{"no HOME", func(s *Spec) { s.Env = []string{"PATH=/"} }, "does not set HOME"},
		{"empty HOME", func(s *Spec) { s.Env = []string{"HOME="} }, "does not set HOME"},
		{"twice", func(s *Spec) { s.Env = append(s.Env, "A=1", "A=2") }, `"A=2": expected NAME=VALUE, each name once`},
		{"no value", func(s *Spec) { s.Env = append(s.Env, "A") }, `"A": expected NAME=VALUE`},
		{"no root", func(s *Spec) { s.Root += "/missing" }, "root directory: lstat "},
		{"no work", func(s *Spec) { s.Work += "/missing" }, "work directory: lstat "},
		{"no mount point", func(s *Spec) { os.Remove(s.Root + "/proc") }, "has no directory proc to mount on"},
		{"link as mount point", func(s *Spec) { os.Remove(s.Root + "/proc"); os.Symlink("/proc", s.Root+"/proc") }, "has no directory proc to mount on"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := testSpec(t)
			c.spoil(&s)
			err := Run(t.Context(), s)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want … %s …", err, c.want)
			}
			checkClean(t, filepath.Dir(s.Work))
		})
	}
}

// What the kernel says to a file that it cannot execute comes too late for an error, but it is in the output.
func TestNotExecutable(t *testing.T) {
	s := testSpec(t)
	if err := os.WriteFile(filepath.Join(s.Root, "probe"), []byte("text"), 0o755); err != nil {
		t.Fatal(err)
	}
	var stderr bytes.Buffer
	s.Stderr = &stderr
	err := Run(t.Context(), s)
	if !reflect.DeepEqual(err, &ExitError{Code: 255}) || !strings.Contains(stderr.String(), "exec format error") {
		t.Errorf("got %v, %q", err, &stderr)
	}
}

// A root given through a symbolic link is fine; libcontainer refuses one.
func TestSymlinkedRoot(t *testing.T) {
	s := testSpec(t)
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(s.Root, link); err != nil {
		t.Fatal(err)
	}
	s.Root = link
	if err := Run(t.Context(), s); err != nil {
		t.Error(err)
	}
}

func TestCancel(t *testing.T) {
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Run(canceled, testSpec(t)); err != context.Canceled {
		t.Errorf("canceled before: got %v", err)
	}
	for _, after := range []time.Duration{0, 3, 10, 20, 30, 50, 100} {
		t.Run(strconv.Itoa(int(after)), func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), after*time.Millisecond+1)
			defer cancel()
			s := testSpec(t, "sleep", t.Name()+filepath.Base(t.TempDir()))
			s.Args[2] = filepath.Dir(s.Work)
			if err := Run(ctx, s); err != context.DeadlineExceeded {
				t.Errorf("got %v", err)
			}
			if left := processesOf(t, filepath.Dir(s.Work)); len(left) > 0 {
				t.Errorf("processes left: %q", left)
			}
			if _, err := os.Stat(s.State); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("state directory: %v", err)
			}
			checkClean(t, filepath.Dir(s.Work))
		})
	}
}

// The kernel kills a container when the thread that made it ends, so that must not happen while it runs.
func TestThreadsEnd(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	const runs = 4
	done := make(chan error, runs)
	for range runs {
		s := testSpec(t, "sleep", t.TempDir())
		go func() { done <- Run(ctx, s) }()
	}
	for ctx.Err() == nil {
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(runtime.LockOSThread) // a goroutine that ends so takes its thread along
		}
		wg.Wait()
	}
	for range runs {
		if err := <-done; err != context.DeadlineExceeded {
			t.Errorf("got %v", err)
		}
	}
}

// childMounts mounts something in the work directory while a container is running.
func childMounts(base string) error {
	s, err := newSpec(base, filepath.Join(base, "probe"))
	if err != nil {
		return err
	}
	for _, m := range []struct {
		source, target, kind string
		flags                uintptr
	}{{"", "/", "", unix.MS_REC | unix.MS_PRIVATE}, {"tmpfs", s.Work, "tmpfs", 0}, {"", s.Work, "", unix.MS_SHARED}} {
		if err := unix.Mount(m.source, m.target, m.kind, m.flags, ""); err != nil {
			return fmt.Errorf("mount %s: %w", m.target, err)
		}
	}
	if err := os.Mkdir(filepath.Join(s.Work, "sub"), 0o755); err != nil {
		return err
	}
	wait, signal, err := os.Pipe()
	if err != nil {
		return err
	}
	lines, output := io.Pipe()
	s.Args = []string{"probe", "wait", "/build/sub/new"}
	s.Files = []*os.File{wait}
	s.Stdout = output
	go func() { _ = output.CloseWithError(Run(context.Background(), s)) }()
	scanner := bufio.NewScanner(lines)
	scanner.Scan()
	if err := unix.Mount("tmpfs", filepath.Join(s.Work, "sub"), "tmpfs", 0, ""); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(s.Work, "sub/new"), nil, 0o644); err != nil {
		return err
	}
	signal.Close()
	for scanner.Scan() {
		fmt.Println(scanner.Text())
	}
	return scanner.Err()
}

func TestMountsStayOutside(t *testing.T) {
	cmd, base := users()[1].child(t, "mounts")
	out, err := cmd.CombinedOutput()
	if err != nil || string(out) != "no such file or directory\n" {
		t.Errorf("got %q, %v", out, err)
	}
	checkClean(t, base)
}

func TestConcurrent(t *testing.T) {
	var wg sync.WaitGroup
	before := runtime.NumGoroutine()
	for i := range 8 {
		wg.Go(func() {
			s := testSpec(t, "exit", strconv.Itoa(i+1))
			if err := Run(t.Context(), s); !reflect.DeepEqual(err, &ExitError{Code: i + 1}) {
				t.Errorf("run %d: %v", i, err)
			}
		})
	}
	wg.Wait()
	for i := 0; runtime.NumGoroutine() > before; i++ {
		if i == 1000 {
			t.Fatalf("%d goroutines before, %d after", before, runtime.NumGoroutine())
		}
		time.Sleep(time.Millisecond)
	}
}

// childSleep sleeps in a container for ever.
func childSleep(base string) error {
	s, err := newSpec(base, filepath.Join(base, "probe"))
	if err != nil {
		return err
	}
	s.Args = []string{"probe", "sleep", base}
	s.Stdout = os.Stdout
	return Run(context.Background(), s)
}

// Whatever a container is doing when the process that made it is killed, nothing is left.
func TestKill(t *testing.T) {
	for _, u := range users() {
		t.Run(u.name, func(t *testing.T) {
			// Once to know how long it takes, then at any moment up to that.
			start := time.Now()
			cmd, base := u.child(t, "sleep")
			stdout, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			line := make([]byte, 100)
			if n, err := stdout.Read(line); err != nil || string(line[:n]) != "asleep\n" {
				t.Fatalf("got %q, %v", line[:n], err)
			}
			full := time.Since(start)
			if running := processesOf(t, base); len(running) != 4 { // the child and three in the container
				t.Errorf("running: %q", running)
			}
			kill(t, cmd)
			checkClean(t, base)

			for range 12 {
				cmd, base := u.child(t, "sleep")
				if err := cmd.Start(); err != nil {
					t.Fatal(err)
				}
				after := rand.N(full)
				time.Sleep(after)
				kill(t, cmd)
				checkClean(t, base)
				if t.Failed() {
					t.Fatalf("killed after %v of %v", after, full)
				}
			}
		})
	}
}

func kill(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
}

func TestCheck(t *testing.T) {
	if err := Check(t.Context()); err != nil {
		t.Fatal(err)
	}
}
