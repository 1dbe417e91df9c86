// Package client runs the programs through which everything is fetched, npm and git, as their user has set them up.
//
// A program runs in a process group of its own that ends with the context, with a silence that lasts too long, and
// with this process, however it ends.
package client

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Command is a program to run.
type Command struct {
	Name   string // looked up in PATH
	Args   []string
	Dir    string
	Env    []string // all of it
	Stdin  io.Reader
	Stdout io.Writer     // nil: Run returns it
	Quiet  time.Duration // with no output for so long it counts as hung; 0: never
}

// MissingError says that a program is not installed.
type MissingError struct{ Program string }

func (e *MissingError) Error() string {
	return fmt.Sprintf("the program %s is not installed, or not in PATH", e.Program)
}

// ExitError says that a program failed.
type ExitError struct {
	Program string
	Status  string // e.g. "exit status 128"
	Stdout  []byte // unless it went elsewhere
	Stderr  string // its end
}

func (e *ExitError) Error() string {
	if e.Stderr == "" {
		return fmt.Sprintf("%s: %s", e.Program, e.Status)
	}
	return fmt.Sprintf("%s: %s: %s", e.Program, e.Status, e.Stderr)
}

// QuietError says that a program was ended because it hung.
type QuietError struct {
	Program string
	After   time.Duration
}

func (e *QuietError) Error() string {
	return fmt.Sprintf("%s: no sign of life for %v", e.Program, e.After)
}

// Run runs c and returns its standard output. Its error is ctx's when that has ended, or a *MissingError, *ExitError or
// *QuietError.
func Run(ctx context.Context, c Command) ([]byte, error) {
	runtime.LockOSThread() // the kernel ends the program with the thread that started it
	defer runtime.UnlockOSThread()

	running, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	var stdout bytes.Buffer
	var stderr tail
	alive := func() {}
	if c.Quiet > 0 {
		timer := time.AfterFunc(c.Quiet, func() { stop(&QuietError{c.Name, c.Quiet}) })
		defer timer.Stop()
		alive = func() { timer.Reset(c.Quiet) }
	}
	out := c.Stdout
	if out == nil {
		out = &stdout
	}
	cmd := exec.CommandContext(running, c.Name, c.Args...)
	cmd.Dir, cmd.Env, cmd.Stdin = c.Dir, c.Env, c.Stdin
	cmd.Stdout, cmd.Stderr = watched{out, alive}, watched{&stderr, alive}
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true, Pdeathsig: unix.SIGKILL}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	cmd.WaitDelay = 2 * time.Second

	err := cmd.Run()
	var missing *exec.Error
	var quiet *QuietError
	switch {
	case err == nil:
		return stdout.Bytes(), nil
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case errors.As(context.Cause(running), &quiet):
		return nil, quiet
	case errors.As(err, &missing):
		return nil, &MissingError{c.Name}
	}
	return nil, &ExitError{Program: c.Name, Status: err.Error(), Stdout: stdout.Bytes(), Stderr: stderr.String()}
}

// watched calls alive at every write.
type watched struct {
	w     io.Writer
	alive func()
}

func (w watched) Write(p []byte) (int, error) {
	w.alive()
	return w.w.Write(p)
}

// tail keeps the end of what is written to it.
type tail struct {
	mu sync.Mutex
	b  []byte
}

const tailSize = 4 << 10

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b = append(t.b, p...)
	if over := len(t.b) - tailSize; over > 0 {
		t.b = append(t.b[:0], t.b[over:]...)
	}
	return len(p), nil
}

// String returns what was kept, without the lines that progress meters have overwritten.
func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	var lines []string
	for line := range strings.SplitSeq(string(t.b), "\n") {
		if i := strings.LastIndexByte(line, '\r'); i >= 0 {
			line = line[i+1:]
		}
		if line = strings.TrimSpace(line); line != "" {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines, "; ")
}
