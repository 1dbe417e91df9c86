// Package sandbox runs one command in a container that shows it nothing of the host.
//
// The container is made with runc's own library, inside this process: nothing has to be installed, and root and an
// ordinary user get the same container. A program that imports this package needs to do nothing else; the first
// stage of a container is the program itself, started again (see init.go).
//
// Inside there is
//
//	/        Spec.Root, read-only
//	/build   Spec.Work, read-write; all that the command may leave behind
//	/tmp     empty, gone afterwards
//	/dev     null, zero, full, random, urandom and the links to the standard streams
//	/proc    the command's own processes, none of the host's; what describes the machine is masked
//
// and no network (an interface "lo" that is down, and no sockets but Unix ones), one user and group (0, which is
// the caller outside), no capabilities, no way to get any, host name "enginery", umask 022, fixed limits, no
// controlling terminal, and only the environment and descriptors that Spec names. The command is process 1, on which
// a signal from inside has no effect unless it handles that. It is killed with everything it has started when it
// ends, when the context ends, and when the calling process dies, however it dies; no mount, control group or process
// of it is left then.
//
// What is not hidden: the kernel's version, the processor, the amount of memory, the clock; the caller's priority,
// processors and limits on the use of the machine, which stay in force; and, in /proc/self/mountinfo, the host paths
// of Root and Work.
package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/configs/validate"
	"golang.org/x/sys/unix"
)

// WorkDir is where Spec.Work is inside the container.
const WorkDir = "/build"

// Spec says what to run, on what.
type Spec struct {
	// Root is the host directory that becomes /. It must have the directories dev, proc, tmp and build, which may
	// be empty, and belong to the caller, as must Work.
	Root string
	Work string // host directory that becomes WorkDir

	Dir  string   // working directory inside: WorkDir or below it, where it is made if it is missing
	Args []string // command; without a slash it is searched in the PATH of Env
	Env  []string // whole environment; must set HOME, which libcontainer would add

	// Stdout and Stderr may be nil. The command always writes to a pipe, so it never sees a terminal or a file.
	Stdout, Stderr io.Writer
	Files          []*os.File // descriptors 3, 4, … of the command

	// State is a host directory for the runtime's state. It is created if need be, and removed afterwards unless
	// the caller has put something into it.
	State string
}

// ExitError says how a command failed that was started.
type ExitError struct {
	Code   int            // exit code, if Signal is 0
	Signal syscall.Signal // what killed it
}

func (e *ExitError) Error() string {
	if e.Signal != 0 {
		return fmt.Sprintf("killed by signal %d (%v)", int(e.Signal), e.Signal)
	}
	return fmt.Sprintf("exit code %d", e.Code)
}

// Run runs the command and waits until it and all it has started are gone. It returns nil if the command succeeds,
// an *ExitError if it fails, ctx.Err() if it was killed because ctx ended, and a *PermissionError if this machine
// does not let the caller make the container. Any number of Runs may be under way in a process.
func Run(ctx context.Context, s Spec) (err error) {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := s.resolve(); err != nil {
		return fmt.Errorf("sandbox: %w", err)
	}

	// The kernel kills the container when the thread that started it ends.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()

	if err := os.MkdirAll(s.State, 0o700); err != nil {
		return fmt.Errorf("sandbox: make the state directory: %w", err)
	}
	defer os.Remove(s.State)
	dir, err := os.MkdirTemp(s.State, "enginery-")
	if err != nil {
		return fmt.Errorf("sandbox: make the state directory: %w", err)
	}
	defer os.RemoveAll(dir)

	container, err := create(&s, dir)
	if err != nil {
		return fmt.Errorf("sandbox: prepare the container: %w", err)
	}
	defer func() {
		if derr := container.Destroy(); derr != nil && err == nil {
			err = fmt.Errorf("sandbox: remove the container: %w", derr)
		}
	}()

	stdout, stderr := outputs(s.Stdout, s.Stderr)
	process := &libcontainer.Process{
		Init:       true,
		Args:       s.Args,
		Env:        s.Env,
		Cwd:        s.Dir,
		Stdout:     stdout,
		Stderr:     stderr,
		ExtraFiles: s.Files,
	}
	if err := container.Start(process); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return explain(&s, err)
	}
	// libcontainer lets the command use all processors; keep it on the caller's. If it cannot be, there are more.
	var processors unix.CPUSet
	if pid, err := process.Pid(); err == nil && unix.SchedGetaffinity(0, &processors) == nil {
		_ = unix.SchedSetaffinity(pid, &processors)
	}
	stop := context.AfterFunc(ctx, func() { _ = process.Signal(unix.SIGKILL) })
	defer stop()
	if err = ctx.Err(); err == nil {
		err = container.Exec()
	}
	if err != nil {
		_ = process.Signal(unix.SIGKILL)
	}
	state, werr := process.Wait()
	if state != nil && state.Success() && werr == nil && err == nil {
		return nil
	}
	var failed *exec.ExitError
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case err != nil:
		return fmt.Errorf("sandbox: start %s: %w", s.Args[0], err)
	case errors.As(werr, &failed):
		if status := state.Sys().(syscall.WaitStatus); status.Signaled() {
			return &ExitError{Signal: status.Signal()}
		}
		return &ExitError{Code: state.ExitCode()}
	}
	return fmt.Errorf("sandbox: pass on the output of %s: %w", s.Args[0], werr)
}

// resolve checks the Spec and makes its paths absolute and free of symbolic links.
func (s *Spec) resolve() (err error) {
	if !startable {
		return errors.New("this program has been built without cgo, which starting a container takes: build it with CGO_ENABLED=1 and a C compiler")
	}
	if len(s.Args) == 0 {
		return errors.New("no command")
	}
	if path.Clean(s.Dir) != s.Dir || s.Dir != WorkDir && !strings.HasPrefix(s.Dir, WorkDir+"/") {
		return fmt.Errorf("working directory %q: expected a clean path in %s", s.Dir, WorkDir)
	}
	seen := make(map[string]bool)
	for _, v := range s.Env {
		name, value, ok := strings.Cut(v, "=")
		if !ok || name == "" || seen[name] || strings.Contains(v, "\x00") {
			return fmt.Errorf("environment variable %q: expected NAME=VALUE, each name once", v)
		}
		seen[name] = name != "HOME" || value != ""
	}
	if !seen["HOME"] {
		return errors.New("the environment does not set HOME: add it, e.g. HOME=" + WorkDir)
	}
	for _, d := range []struct {
		what string
		path *string
	}{{"root", &s.Root}, {"work", &s.Work}} {
		if *d.path, err = filepath.Abs(*d.path); err == nil {
			*d.path, err = filepath.EvalSymlinks(*d.path)
		}
		if err != nil {
			return fmt.Errorf("%s directory: %w", d.what, err)
		}
	}
	if s.State, err = filepath.Abs(s.State); err != nil {
		return fmt.Errorf("state directory: %w", err)
	}
	for _, d := range []string{"dev", "proc", "tmp", "build"} {
		if info, err := os.Lstat(filepath.Join(s.Root, d)); err != nil || !info.IsDir() {
			return fmt.Errorf("root directory %s has no directory %s to mount on: make it part of the tree", s.Root, d)
		}
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(s.Root, &fs); err == nil && fs.Flags&unix.ST_NOEXEC != 0 {
		return fmt.Errorf("root directory %s is on a file system mounted noexec, so nothing in it can run: keep it on another one", s.Root)
	}
	return nil
}

// create makes a container whose state is in dir and that has no control group of its own: its processes stay in
// the caller's, within the caller's limits, and there is nothing to remove if the caller is killed.
//
// libcontainer.Create has no way to say so: it makes groups wherever it may. A container loaded from a state is in
// the groups that the state names, so this writes a state that names none and loads it.
func create(s *Spec, dir string) (*libcontainer.Container, error) {
	config := newConfig(s)
	if err := validate.Validate(config); err != nil {
		return nil, err
	}
	// "" is the one hierarchy of cgroup v2; a path that is not in it counts as a group one may not make, which
	// is no error when rootless. With v1 a path for a hierarchy that does not exist means no hierarchy at all.
	hierarchy := "none"
	if cgroups.IsCgroup2UnifiedMode() {
		hierarchy = ""
	}
	id := filepath.Base(dir)
	state := libcontainer.State{
		BaseState:   libcontainer.BaseState{ID: id, Config: *config},
		CgroupPaths: map[string]string{hierarchy: filepath.Join(dir, "no-cgroup")},
	}
	data, err := json.Marshal(&state)
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(dir, "state.json"), data, 0o600); err != nil {
		return nil, err
	}
	return libcontainer.Load(filepath.Dir(dir), id)
}

// pipe hides what a Writer is, so that os/exec puts a pipe before it even if it is a file.
type pipe struct{ io.Writer }

// outputs returns writers for the command's output, one and the same if the two are, which keeps the order of lines.
func outputs(stdout, stderr io.Writer) (_, _ io.Writer) {
	wrap := func(w io.Writer) io.Writer {
		if w == nil {
			return nil
		}
		return &pipe{w}
	}
	out := wrap(stdout)
	if same(stdout, stderr) {
		return out, out
	}
	return out, wrap(stderr)
}

func same(a, b io.Writer) bool {
	defer func() { _ = recover() }() // the type is not comparable
	return a == b
}
