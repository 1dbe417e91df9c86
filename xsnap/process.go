package xsnap

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/enginery/enginery/engines"
)

// patience is how long a worker may take for what it does at once.
var patience = 10 * time.Second

func start(ctx context.Context, options *Options) (_ *Worker, err error) {
	program, err := options.resolve()
	if err != nil {
		return nil, err
	}
	started := false
	defer func() {
		if !started {
			program.release() // otherwise wait does
		}
	}()
	o := *options
	if err := o.check(); err != nil {
		return nil, err
	}
	if o.MaxMessage == 0 {
		o.MaxMessage = DefaultMaxMessage
	}
	w := &Worker{o: o, ctx: ctx, program: program, stderr: &tail{to: o.Stderr}, exited: make(chan struct{})}
	args := []string{o.Name}
	var theirs [6]*os.File // descriptors 3 to 8; 5 and 6 are for a debugger and a profiler
	talk := [][2]**os.File{{&theirs[0], &w.commands}, {&w.replies, &theirs[1]}}
	var heap [][2]**os.File
	if o.Protocol >= Level4 {
		heap = append(heap, [2]**os.File{&w.saves, &theirs[4]})
	}
	switch {
	case !o.hasSnapshot():
	case o.Protocol >= Level4:
		heap = append(heap, [2]**os.File{&theirs[5], &w.loads})
		args = append(args, "-r", "@8:snapshot")
	default:
		file, err := spool(newSource(o))
		if err != nil {
			return nil, fmt.Errorf("reading the heap snapshot: %w", err)
		}
		defer os.Remove(file)
		args = append(args, "-r", file)
	}
	if o.MeteringLimit > 0 {
		args = append(args, "-l", strconv.FormatInt(o.MeteringLimit, 10))
	}
	if o.ParserBuffer > 0 {
		args = append(args, "-s", strconv.Itoa(o.ParserBuffer))
	}
	defer func() {
		closeFiles(theirs[:]...)
		if err != nil {
			w.closeFiles()
		}
	}()
	for _, p := range talk {
		if *p[0], *p[1], err = blockingPipe(); err != nil {
			return nil, err
		}
	}
	for _, p := range heap {
		if *p[0], *p[1], err = widePipe(); err != nil {
			return nil, err
		}
	}
	life := ctx
	if o.fork != nil {
		life = o.fork.life
	}
	for _, start := range []func(*exec.Cmd) error{startStill, startAnywhere} {
		w.cmd = program.command(life, o.Emulator, args)
		w.cmd.Dir = o.dir
		w.cmd.Env = append(w.cmd.Env, o.Env...)
		w.cmd.Stdout, w.cmd.Stderr = o.Stdout, w.stderr
		w.cmd.ExtraFiles = append(theirs[:], w.cmd.ExtraFiles...)
		if err = start(w.cmd); !errors.As(err, new(errTracing)) {
			break
		}
	}
	if err != nil {
		return nil, cmp.Or(life.Err(), err)
	}
	started = true
	closeFiles(theirs[:]...) // now, so that the end of the worker is the end of its pipes
	w.in = bufio.NewReaderSize(w.replies, 64<<10)
	w.out.w = w.commands
	handling, exited := context.WithCancel(ctx)
	w.handling = handling
	go w.wait(exited)
	if o.hasSnapshot() {
		if err := w.load(); err != nil {
			w.Kill()
			return nil, err
		}
		w.o.Snapshot, w.o.fork = nil, nil
	}
	return w, nil
}

// blockingPipe makes a pipe that is read and written without Go's poller, so that who waits for the other side is woken by it: messages go to and
// fro in half the time. A thread waits, and Close wakes nobody; the end of the process does.
func blockingPipe() (r, w *os.File, err error) {
	var fd [2]int
	if err := unix.Pipe2(fd[:], unix.O_CLOEXEC); err != nil {
		return nil, nil, os.NewSyscallError("pipe2", err)
	}
	return os.NewFile(uintptr(fd[0]), "|0"), os.NewFile(uintptr(fd[1]), "|1"), nil
}

// pipeSize is how much of a heap snapshot is on its way at a time, in bytes: the fewer turns the processes take, the sooner it is there.
const pipeSize = 256 << 10

// widePipe makes a pipe of that size, or of the system's if that refuses.
func widePipe() (r, w *os.File, err error) {
	if r, w, err = os.Pipe(); err != nil {
		return nil, nil, err
	}
	if c, err := w.SyscallConn(); err == nil {
		c.Control(func(fd uintptr) { unix.FcntlInt(fd, unix.F_SETPIPE_SZ, pipeSize) })
	}
	return r, w, nil
}

// command makes the command that runs the program.
func (p *program) command(ctx context.Context, emulator, args []string) *exec.Cmd {
	if p.file == nil {
		return command(ctx, emulator, p.path, args...)
	}
	// The file is descriptor 9 there, after those of the protocol.
	cmd := command(ctx, emulator, "/proc/self/fd/9", args...)
	cmd.ExtraFiles = []*os.File{p.file}
	if len(emulator) == 0 {
		cmd.Args[0] = p.path
	}
	return cmd
}

// command makes the command that runs an engine.
func command(ctx context.Context, emulator []string, path string, args ...string) *exec.Cmd {
	argv := append(append(append([]string{}, emulator...), path), args...)
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	// Nothing of the host's environment: TZ changes what Date says of local time, XSBUG_HOST makes the engine call a debugger.
	cmd.Env = []string{"TZ=UTC0"}
	// A Ctrl-C on the terminal is for the host, which ends its workers as it ends.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.WaitDelay = time.Second
	return cmd
}

// wait waits for the end of the process, ends what it has started itself, if it was not what it should be, and reaps it.
func (w *Worker) wait(exited func()) {
	pid := w.cmd.Process.Pid
	for unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil) == unix.EINTR {
	}
	unix.Kill(-pid, unix.SIGKILL) // its process group, whose number is taken as long as it is not reaped
	err := w.cmd.Wait()
	var exit *exec.ExitError
	switch {
	case err == nil:
		w.exit = &ExitError{Stderr: w.stderr.String()}
	case errors.As(err, &exit):
		e := &ExitError{Code: exit.ExitCode(), Stderr: w.stderr.String()}
		if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signaled() {
			e.Code, e.Signal = 0, status.Signal()
		} else if e.Code == ExitNotEnoughMemory {
			e.Limit = engines.MemoryLimit()
		}
		w.exit = e
	default:
		w.exit = err
	}
	exited()
	w.program.release()
	if w.ctx.Err() != nil {
		w.closeFiles() // nobody may call Close any more
	}
	close(w.exited)
}

// lost explains an error of the pipes: they end when the process does.
func (w *Worker) lost(err error) error {
	var protocol *ProtocolError
	var size *SizeError
	if errors.As(err, &protocol) || errors.As(err, &size) {
		return err
	}
	select {
	case <-w.exited:
		return w.exit
	case <-time.After(patience):
	}
	w.kill()
	var exit *ExitError
	if errors.As(w.exit, &exit) && exit.Signal == syscall.SIGKILL {
		return &ProtocolError{fmt.Sprintf("it closed a pipe and lived on: %v", err)}
	}
	return w.exit // it had ended by itself, and this host was late to find out
}

// fail ends the worker after an error that leaves it in an unknown state, and returns why it ended.
func (w *Worker) fail(err error) error {
	if w.ctx.Err() != nil {
		err = w.ctx.Err()
	}
	w.end(err)
	w.kill()
	return w.reason()
}

// end says why no command can follow, unless that has been said.
func (w *Worker) end(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.ended == nil {
		w.ended = err
	}
}

func (w *Worker) reason() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.ended
}

func (w *Worker) kill() {
	w.cmd.Process.Kill()
	w.closeFiles()
	<-w.exited
}

// Kill ends the worker at once, as upstream's terminate does, and waits until it is gone. It may be called at any time; what is under way fails.
func (w *Worker) Kill() {
	w.end(ErrKilled)
	w.kill()
}

// Close tells the worker to end, waits until it has, and returns why it ended otherwise than it should. A worker whose last
// evaluation threw ends with ExitUnhandledException: that is no error. Nor is it one to close a worker that has failed.
func (w *Worker) Close() error {
	w.turn.Lock()
	defer w.turn.Unlock()
	if w.reason() != nil {
		w.kill()
		return nil // whoever got the error knows
	}
	w.end(ErrClosed)
	werr := w.out.write([]byte{'q'}, nil)
	w.closeFiles()
	select {
	case <-w.exited:
	case <-time.After(patience):
		w.kill()
		return w.o.explain("closing", fmt.Errorf("it did not end within %v, and was killed", patience))
	}
	var exit *ExitError
	if werr == nil && errors.As(w.exit, &exit) && exit.Signal == 0 && (exit.Code == 0 || exit.Code == ExitUnhandledException) {
		return nil
	}
	err := w.exit
	if w.ctx.Err() != nil {
		err = w.ctx.Err()
	}
	return w.o.explain("closing", err)
}

func (w *Worker) closeFiles() { closeFiles(w.commands, w.replies, w.saves, w.loads) }

func closeFiles(files ...*os.File) {
	for _, f := range files {
		f.Close() // nil, or closed already: an error that says nothing
	}
}

// Version returns what an engine says of itself, e.g. "xsnap 0.15.0 (XS 13.3.0)".
func Version(ctx context.Context, path string, emulator ...string) (string, error) {
	cmd := command(ctx, emulator, path, "-v")
	var stderr tail
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("asking %s for its version: %w: %s", path, err, stderr.String())
	}
	return strings.TrimSpace(string(out)), nil
}
