// Package xsnap runs an engine: it starts an xsnap-worker and speaks its protocol.
//
// A worker reads commands from file descriptor 3 and answers on 4, in netstrings (agoric-sdk, packages/xsnap). It does one thing at
// a time, and so does a [Worker]: its methods must not be called concurrently.
package xsnap

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Protocol levels. Each has what those before it have.
const (
	Level1 = 1 // 65d8e660: commands e, ?, R, s, m, w with a path; any other ends the worker
	Level2 = 2 // c91d9652: the host's replies to the worker begin with "/"
	Level3 = 3 // 0b3869eb: command q; a command that is unknown is an error
	Level4 = 4 // 056faf8c: heap snapshots through descriptors, with their size in the reply
)

// Options say which worker to start, and how.
type Options struct {
	Path     string   // of the engine
	Emulator []string // command that the engine's command line follows, for an engine of another architecture
	Protocol int      // its protocol level
	Name     string   // display name, which must not begin with "-"; "worker" if empty

	MeteringLimit int64     // computrons that a crank may use; 0: no limit
	ParserBuffer  int       // kB; 0: the worker's own, 8192. It is part of heap snapshots
	Snapshot      io.Reader // heap snapshot to start from; nil: a fresh heap
	MaxReply      int       // bytes; 0: 12,000,000 as SwingSet has it

	// Handle answers a command from the worker. An error of it ends the worker, since the protocol has no way to pass it on.
	Handle func(ctx context.Context, message []byte) ([]byte, error)

	Stdout, Stderr io.Writer // the worker's; nil: discarded

	dir string // working directory; empty: this process's
}

// Meter is what a worker says of a crank.
type Meter struct {
	Compute    int64     `json:"compute"`          // computrons
	Allocate   int64     `json:"allocate"`         // bytes that the worker has allocated so far
	HeapCount  int64     `json:"currentHeapCount"` // live slots
	Timestamps []float64 `json:"timestamps"`       // seconds since 1970; the only part that is not deterministic
}

// Reply is a worker's answer to a command.
type Reply struct {
	Payload []byte
	Meter   Meter
}

// GuestError is an exception that the guest did not catch. The worker lives on.
type GuestError struct{ Text string }

func (e *GuestError) Error() string { return "uncaught exception: " + e.Text }

// ExitError says how a worker ended.
type ExitError struct {
	Code   int            // if Signal is 0; see the constants
	Signal syscall.Signal // what killed it
	Stderr string         // the end of what it printed
}

// Exit codes of a worker (xsnap-worker.c, ExitCode). Those marked are the same on every host for the same history.
const (
	ExitBadUsage           = 1
	ExitIO                 = 2
	ExitNotEnoughMemory    = 11 // deterministic
	ExitStackOverflow      = 12 // deterministic
	ExitUnhandledException = 15 // also after "q" when the last evaluation threw
	ExitNoMoreKeys         = 16
	ExitTooMuchComputation = 17 // deterministic
)

var exitNames = map[int]string{
	0: "before it answered", ExitBadUsage: "bad usage", ExitIO: "I/O or protocol error", ExitNotEnoughMemory: "not enough memory",
	ExitStackOverflow: "stack overflow", ExitUnhandledException: "unhandled exception", ExitNoMoreKeys: "no more keys",
	ExitTooMuchComputation: "too much computation",
}

func (e *ExitError) Error() string {
	msg := fmt.Sprintf("the worker ended with exit code %d", e.Code)
	if e.Signal != 0 {
		msg = fmt.Sprintf("the worker was ended by signal %d (%v)", int(e.Signal), e.Signal)
	} else if name := exitNames[e.Code]; name != "" {
		msg += " (" + name + ")"
	}
	if e.Stderr != "" {
		msg += ": " + e.Stderr
	}
	return msg
}

// ProtocolError says that a worker sent something that the protocol does not have.
type ProtocolError struct{ Reason string }

func (e *ProtocolError) Error() string { return "the worker broke the protocol: " + e.Reason }

// Worker is a running engine.
type Worker struct {
	o        Options
	ctx      context.Context
	cmd      *exec.Cmd
	commands *os.File
	replies  *os.File
	in       *bufio.Reader
	saves    *os.File // read end of descriptor 7
	stderr   *tail

	exited chan struct{}
	exit   error // valid when exited is closed
	broken error // why no command can follow
}

// Start starts a worker. It lives until Close or Kill is called or ctx ends.
func Start(ctx context.Context, o Options) (_ *Worker, err error) {
	if o.Name == "" {
		o.Name = "worker"
	}
	if o.Name[0] == '-' {
		return nil, fmt.Errorf("starting a worker: the name %q begins with -", o.Name)
	}
	if o.Protocol < Level1 || o.Protocol > Level4 {
		return nil, fmt.Errorf("starting a worker: unknown protocol level %d", o.Protocol)
	}
	if o.MaxReply == 0 {
		o.MaxReply = 12_000_000
	}
	w := &Worker{o: o, ctx: ctx, stderr: &tail{to: o.Stderr}, exited: make(chan struct{})}
	var theirs []*os.File
	defer func() {
		for _, f := range theirs {
			if f != nil {
				f.Close()
			}
		}
		if err != nil {
			w.closeFiles()
			err = fmt.Errorf("starting a worker: %w", err)
		}
	}()
	pipe := func() (*os.File, *os.File) {
		if err != nil {
			return nil, nil
		}
		var r, wr *os.File
		r, wr, err = os.Pipe()
		return r, wr
	}
	theirs = make([]*os.File, 4) // 3 to 6; 5 and 6 are for a debugger and a profiler
	theirs[0], w.commands = pipe()
	w.replies, theirs[1] = pipe()
	args := []string{o.Name}
	var load *os.File
	if o.Protocol >= Level4 {
		theirs = append(theirs, nil)
		w.saves, theirs[4] = pipe()
		if o.Snapshot != nil {
			theirs = append(theirs, nil)
			theirs[5], load = pipe()
			args = append(args, "-r", "@8:snapshot")
		}
	} else if o.Snapshot != nil {
		file, ferr := spool(o.Snapshot)
		if ferr != nil {
			return nil, ferr
		}
		defer func() {
			if err == nil {
				err = w.Ready() // it has read the file when it answers
			}
			os.Remove(file)
		}()
		args = append(args, "-r", file)
	}
	if err != nil {
		return nil, err
	}
	if o.MeteringLimit > 0 {
		args = append(args, "-l", strconv.FormatInt(o.MeteringLimit, 10))
	}
	if o.ParserBuffer > 0 {
		args = append(args, "-s", strconv.Itoa(o.ParserBuffer))
	}
	argv := append(append([]string{}, o.Emulator...), o.Path)
	w.cmd = exec.CommandContext(ctx, argv[0], append(argv[1:], args...)...)
	w.cmd.Stdout, w.cmd.Stderr = o.Stdout, w.stderr
	// Nothing of the host's environment: TZ changes what Date says of local time, XSBUG_HOST makes the engine call a debugger.
	w.cmd.Env, w.cmd.Dir = []string{"TZ=UTC0"}, o.dir
	w.cmd.ExtraFiles = theirs
	w.cmd.WaitDelay = time.Second
	if err := w.cmd.Start(); err != nil {
		if load != nil {
			load.Close()
		}
		return nil, err
	}
	w.in = bufio.NewReaderSize(w.replies, 64<<10)
	if load != nil {
		go func() {
			io.Copy(load, o.Snapshot) // a worker that gets too little says so, and ends
			load.Close()
		}()
	}
	go w.wait()
	return w, nil
}

// wait waits for the process, and lets nothing wait for it in vain.
func (w *Worker) wait() {
	err := w.cmd.Wait()
	var exit *exec.ExitError
	switch {
	case err == nil:
		w.exit = &ExitError{Stderr: w.stderr.String()}
	case errors.As(err, &exit):
		e := &ExitError{Code: exit.ExitCode(), Stderr: w.stderr.String()}
		if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signaled() {
			e.Code, e.Signal = 0, status.Signal()
		}
		w.exit = e
	default:
		w.exit = err
	}
	close(w.exited)
}

func spool(r io.Reader) (string, error) {
	f, err := os.CreateTemp("", "heap-snapshot-")
	if err != nil {
		return "", err
	}
	_, err = io.Copy(f, r)
	if err := errors.Join(err, f.Close()); err != nil {
		os.Remove(f.Name())
		return "", err
	}
	return f.Name(), nil
}

// Evaluate evaluates a script in the global scope and runs promise jobs until there are none. An exception is a *GuestError.
func (w *Worker) Evaluate(source string) (Reply, error) {
	return w.round("evaluating a script", 'e', []byte(source))
}

// Command passes a message to the guest's handleCommand, runs promise jobs until there are none, and returns its answer, which is
// empty if it gave none by then. An exception is a *GuestError.
func (w *Worker) Command(message []byte) (Reply, error) {
	return w.round("sending a command", '?', message)
}

// Ready waits until the worker is up and has read its snapshot. It does not touch the heap.
func (w *Worker) Ready() error {
	_, err := w.round("waiting for the worker", 'R', nil)
	return err
}

// Snapshot writes a heap snapshot to dst, after a garbage collection, and returns its size in bytes.
func (w *Worker) Snapshot(dst io.Writer) (size int64, err error) {
	const doing = "taking a heap snapshot"
	if w.o.Protocol < Level4 {
		return w.snapshotFile(doing, dst)
	}
	// The worker answers when its pipe has taken all of the snapshot, so it must be drained meanwhile; the answer says how much that is.
	announced := make(chan int64, 1)
	drained := make(chan error, 1)
	go func() { drained <- drain(w.saves, dst, announced) }()
	reply, err := w.round(doing, 'w', []byte("@7"))
	size = -1
	if err == nil {
		if size, err = strconv.ParseInt(string(reply.Payload), 10, 64); err != nil {
			err = fmt.Errorf("%s: %w", doing, w.fail(&ProtocolError{fmt.Sprintf("the size of a heap snapshot is %q", reply.Payload)}))
			size = -1
		}
	}
	announced <- size
	w.saves.SetReadDeadline(time.Now()) // wakes drain
	derr := <-drained
	if err != nil {
		return 0, err
	}
	if derr != nil {
		return 0, fmt.Errorf("%s: %w", doing, w.fail(derr))
	}
	w.saves.SetReadDeadline(time.Time{})
	return size, nil
}

// patience is how long bytes may take that the worker has said it has written.
const patience = 10 * time.Second

// drain copies as many bytes from r to dst as are announced, once r's deadline says that something is: fewer than 0 means none.
func drain(r *os.File, dst io.Writer, announced <-chan int64) error {
	buf := make([]byte, 256<<10)
	var n, size int64 = 0, -1
	var failed error
	for size < 0 || n < size {
		if size >= 0 {
			r.SetReadDeadline(time.Now().Add(patience))
		}
		k, err := r.Read(buf)
		n += int64(k)
		if failed == nil && k > 0 {
			_, failed = dst.Write(buf[:k])
		}
		if errors.Is(err, os.ErrDeadlineExceeded) && size < 0 {
			if size = <-announced; size < 0 {
				return nil
			}
			continue
		}
		if err != nil {
			return &ProtocolError{fmt.Sprintf("a heap snapshot has %d bytes, expected %d", n, size)}
		}
	}
	if n > size {
		return &ProtocolError{fmt.Sprintf("a heap snapshot has at least %d bytes, expected %d", n, size)}
	}
	return failed
}

func (w *Worker) snapshotFile(doing string, dst io.Writer) (int64, error) {
	dir, err := os.MkdirTemp("", "heap-snapshot-")
	if err != nil {
		return 0, fmt.Errorf("%s: %w", doing, err)
	}
	defer os.RemoveAll(dir)
	file := filepath.Join(dir, "snapshot")
	if _, err := w.round(doing, 'w', []byte(file)); err != nil {
		return 0, err
	}
	f, err := os.Open(file)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", doing, err)
	}
	defer f.Close()
	n, err := io.Copy(dst, f)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", doing, err)
	}
	return n, nil
}

// round sends a command and serves the worker's own commands until it answers.
func (w *Worker) round(doing string, command byte, body []byte) (Reply, error) {
	if w.broken != nil {
		return Reply{}, fmt.Errorf("%s: %w", doing, w.broken)
	}
	reply, err := w.converse(command, body)
	var guest *GuestError
	if err != nil && !errors.As(err, &guest) {
		err = w.fail(err)
	}
	if err != nil {
		return Reply{}, fmt.Errorf("%s: %w", doing, err)
	}
	return reply, nil
}

func (w *Worker) converse(command byte, body []byte) (Reply, error) {
	if err := writeNetstring(w.commands, []byte{command}, body); err != nil {
		return Reply{}, err
	}
	for {
		message, err := readNetstring(w.in, w.o.MaxReply)
		if err != nil {
			return Reply{}, err
		}
		if len(message) == 0 {
			return Reply{}, &ProtocolError{"an empty message"}
		}
		switch message[0] {
		case '.':
			return parseReply(message[1:])
		case '!':
			return Reply{}, &GuestError{string(message[1:])}
		case '?':
			if err := w.handle(message[1:]); err != nil {
				return Reply{}, err
			}
		default:
			return Reply{}, &ProtocolError{fmt.Sprintf("a message that begins with %q", message[0])}
		}
	}
}

// handle answers a command of the worker.
func (w *Worker) handle(message []byte) error {
	if w.o.Handle == nil {
		return &ProtocolError{"the guest sent a command, and nobody handles commands"}
	}
	answer, err := w.o.Handle(w.ctx, message)
	if err != nil {
		return fmt.Errorf("handling a command of the guest: %w", err)
	}
	prefix := []byte{'/'}
	if w.o.Protocol < Level2 {
		prefix = nil
	}
	return writeNetstring(w.commands, prefix, answer)
}

// fail ends the worker after an error that leaves it in an unknown state, and returns why it ended: how the process did, if that came first.
func (w *Worker) fail(err error) error {
	if w.broken != nil {
		return w.broken
	}
	var protocol *ProtocolError
	gone := errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.EPIPE)
	if gone {
		select {
		case <-w.exited:
		case <-time.After(patience):
		}
	}
	w.kill()
	w.broken = err
	if gone && w.exit != nil && !errors.As(err, &protocol) {
		w.broken = w.exit
	}
	if w.ctx.Err() != nil {
		w.broken = w.ctx.Err()
	}
	return w.broken
}

func (w *Worker) kill() {
	w.cmd.Process.Kill()
	w.closeFiles()
	<-w.exited
}

// Kill ends the worker at once.
func (w *Worker) Kill() {
	if w.broken == nil {
		w.broken = errors.New("the worker was killed")
	}
	w.kill()
}

// Close tells the worker to end, waits until it has, and returns why it ended otherwise than it should. A worker whose last
// evaluation threw ends with ExitUnhandledException: that is no error.
func (w *Worker) Close() error {
	if w.broken != nil {
		w.kill()
		return nil // whoever got the error knows
	}
	w.broken = errors.New("the worker was closed")
	err := writeNetstring(w.commands, []byte{'q'}, nil)
	w.closeFiles()
	select {
	case <-w.exited:
	case <-time.After(patience):
		w.kill()
		return errors.New("closing a worker: it did not end, and was killed")
	}
	var exit *ExitError
	if errors.As(w.exit, &exit) && exit.Signal == 0 && (exit.Code == 0 || exit.Code == ExitUnhandledException) {
		return nil
	}
	return fmt.Errorf("closing a worker: %w", errors.Join(w.exit, err))
}

func (w *Worker) closeFiles() {
	for _, f := range []*os.File{w.commands, w.replies, w.saves} {
		if f != nil {
			f.Close()
		}
	}
}

// Version returns what an engine says of itself, e.g. "xsnap 0.15.0 (XS 13.3.0)".
func Version(ctx context.Context, path string, emulator ...string) (string, error) {
	argv := append(append([]string{}, emulator...), path, "-v")
	out, err := exec.CommandContext(ctx, argv[0], argv[1:]...).Output()
	if err != nil {
		return "", fmt.Errorf("asking %s for its version: %w", path, err)
	}
	return strings.TrimSpace(string(out)), nil
}
