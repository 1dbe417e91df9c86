// Package xsnap runs an engine: it starts an xsnap-worker and speaks its protocol.
//
// A worker reads commands from file descriptor 3 and answers on 4, in netstrings (agoric-sdk, packages/xsnap). It does one thing at
// a time, and so does a [Worker]: calls from many goroutines wait for each other, except Kill.
package xsnap

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
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
	Name     string   // for errors and ps; must not begin with "-"; "worker" if empty

	MeteringLimit int64     // computrons that a crank may use; 0: no limit
	ParserBuffer  int       // kB; 0: the worker's own, 8192. It is part of heap snapshots
	Snapshot      io.Reader // heap snapshot to start from; nil: a fresh heap
	MaxReply      int       // bytes of a message from the worker; 0: 12,000,000 as SwingSet has it

	// Handle answers a command from the worker. An error of it ends the worker, since the protocol has no way to pass it on. It must
	// not call the worker's methods, except Kill.
	Handle func(ctx context.Context, message []byte) ([]byte, error)

	Stdout, Stderr io.Writer // the worker's, written to concurrently; nil: discarded

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
	ExitUnknown            = 255
)

var exitNames = map[int]string{
	0: "before it answered", ExitBadUsage: "bad usage", ExitIO: "I/O or protocol error", ExitNotEnoughMemory: "not enough memory",
	ExitStackOverflow: "stack overflow", ExitUnhandledException: "unhandled exception", ExitNoMoreKeys: "no more keys",
	ExitTooMuchComputation: "too much computation", ExitUnknown: "unknown error",
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
	stderr   *tail
	commands *os.File // write end of descriptor 3
	replies  *os.File // read end of descriptor 4
	saves    *os.File // read end of descriptor 7
	loads    *os.File // write end of descriptor 8
	in       *bufio.Reader

	turn   sync.Mutex    // held while talking to the worker
	exited chan struct{} // closed when the process is reaped
	exit   error         // how it ended; valid when exited is closed

	mu    sync.Mutex
	ended error // why no command can follow
}

// Start starts a worker, which has then loaded its heap snapshot if it was to. It lives until Close or Kill is called or ctx ends.
//
// A worker believes a heap snapshot: it checks the header, and does not even notice that the end is missing. The reader should verify
// what it reads; an error of it, even at the very end, ends the worker.
func Start(ctx context.Context, o Options) (*Worker, error) {
	if o.Name == "" {
		o.Name = "worker"
	}
	w, err := start(ctx, o)
	if err != nil {
		return nil, fmt.Errorf("starting %s: %w", o.Name, err)
	}
	return w, nil
}

func start(ctx context.Context, o Options) (_ *Worker, err error) {
	switch {
	case o.Name[0] == '-':
		return nil, errors.New("the name of a worker must not begin with -")
	case o.Protocol < Level1 || o.Protocol > Level4:
		return nil, fmt.Errorf("protocol level %d is unknown: there are %d to %d", o.Protocol, Level1, Level4)
	case o.MeteringLimit < 0 || o.MeteringLimit > math.MaxInt32:
		return nil, fmt.Errorf("the metering limit %d is not within 0 and %d", o.MeteringLimit, math.MaxInt32)
	case o.ParserBuffer < 0 || o.ParserBuffer > math.MaxInt32>>10:
		return nil, fmt.Errorf("a parser buffer of %d kB is not within 0 and %d kB", o.ParserBuffer, math.MaxInt32>>10)
	}
	if o.MaxReply == 0 {
		o.MaxReply = 12_000_000
	}
	w := &Worker{o: o, ctx: ctx, stderr: &tail{to: o.Stderr}, exited: make(chan struct{})}
	args := []string{o.Name}
	var theirs [6]*os.File // descriptors 3 to 8; 5 and 6 are for a debugger and a profiler
	pipes := [][2]**os.File{{&theirs[0], &w.commands}, {&w.replies, &theirs[1]}}
	if o.Protocol >= Level4 {
		pipes = append(pipes, [2]**os.File{&w.saves, &theirs[4]})
	}
	switch {
	case o.Snapshot == nil:
	case o.Protocol >= Level4:
		pipes = append(pipes, [2]**os.File{&theirs[5], &w.loads})
		args = append(args, "-r", "@8:snapshot")
	default:
		file, err := spool(o.Snapshot)
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
	for _, p := range pipes {
		if *p[0], *p[1], err = os.Pipe(); err != nil {
			return nil, err
		}
	}
	w.cmd = command(ctx, o.Emulator, o.Path, args...)
	w.cmd.Dir = o.dir
	w.cmd.Stdout, w.cmd.Stderr = o.Stdout, w.stderr
	w.cmd.ExtraFiles = theirs[:]
	if err := w.cmd.Start(); err != nil {
		return nil, err
	}
	closeFiles(theirs[:]...) // now, so that the end of the worker is the end of its pipes
	w.in = bufio.NewReaderSize(w.replies, 64<<10)
	go w.wait()
	if o.Snapshot != nil {
		if err := w.load(); err != nil {
			w.Kill()
			return nil, err
		}
	}
	return w, nil
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

// wait reaps the process.
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

// load passes the heap snapshot to the worker and waits until it is loaded.
func (w *Worker) load() error {
	if w.o.Protocol < Level4 {
		return w.Ready() // it has a file
	}
	source := &source{r: w.o.Snapshot}
	passed := make(chan error, 1)
	go func() {
		_, err := io.Copy(w.loads, source)
		if source.err != nil {
			err = fmt.Errorf("reading the heap snapshot: %w", source.err)
		}
		passed <- err
		w.loads.Close()
	}()
	if err := w.Ready(); err != nil {
		select {
		case perr := <-passed:
			if source.err != nil {
				return perr // what the worker complains of follows from it
			}
		default:
		}
		return err
	}
	w.loads.Close() // it has read all that it wants
	select {
	case err := <-passed:
		if errors.Is(err, os.ErrClosed) {
			return errors.New("the heap snapshot goes on after its end")
		}
		return err
	case <-w.exited:
		return w.exit
	}
}

// source remembers why its reader failed.
type source struct {
	r   io.Reader
	err error
}

func (s *source) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if err != nil && err != io.EOF {
		s.err = err
	}
	return n, err
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

// Evaluate evaluates a script in the global scope and runs promise jobs until there are none. The payload is what an ArrayBuffer
// holds that is the script's value, or then its property "result". An exception is a *GuestError.
func (w *Worker) Evaluate(source string) (Reply, error) {
	const doing = "evaluating a script"
	if i := strings.IndexByte(source, 0); i >= 0 {
		return Reply{}, fmt.Errorf("%s: %s: byte %d of %d is zero, and the worker would take no notice of what follows", w.o.Name, doing, i+1, len(source))
	}
	return w.round(doing, 'e', []byte(source))
}

// Command passes a message to the guest's handleCommand, runs promise jobs until there are none, and returns its answer, which is
// empty if it gave none by then. An exception is a *GuestError.
func (w *Worker) Command(message []byte) (Reply, error) {
	return w.round("sending a command", '?', message)
}

// Ready waits until the worker is up. It does not touch the heap.
func (w *Worker) Ready() error {
	_, err := w.round("waiting until it is up", 'R', nil)
	return err
}

// Snapshot writes a heap snapshot to dst, after a garbage collection, and returns its size in bytes. The worker lives on when dst fails.
func (w *Worker) Snapshot(dst io.Writer) (size int64, err error) {
	const doing = "taking a heap snapshot"
	save := w.saveToPipe
	if w.o.Protocol < Level4 {
		save = w.saveToFile
	}
	var failed error // dst
	err = w.talk(doing, func() (err error) {
		size, failed, err = save(dst)
		return err
	})
	if err != nil {
		return 0, err
	}
	if failed != nil {
		return 0, fmt.Errorf("%s: %s: writing it: %w", w.o.Name, doing, failed)
	}
	return size, nil
}

// saveToPipe reads a heap snapshot from the worker while it waits for the worker's answer, which says how large the snapshot is: the
// worker answers when its pipe has taken all of it, and never closes the pipe.
func (w *Worker) saveToPipe(dst io.Writer) (size int64, failed, err error) {
	type result struct {
		reply Reply
		err   error
	}
	answered := make(chan result, 1)
	w.saves.SetReadDeadline(time.Time{})
	go func() {
		reply, err := w.converse('w', []byte("@7"))
		answered <- result{reply, err}
		w.saves.SetReadDeadline(time.Now()) // wakes the reader below
	}()
	buf := make([]byte, 64<<10)
	var n int64
	for size = -1; size < 0 || n < size; {
		k, rerr := w.saves.Read(buf)
		n += int64(k)
		if failed == nil && k > 0 {
			_, failed = dst.Write(buf[:k])
		}
		switch {
		case rerr == nil:
		case size >= 0:
			return 0, nil, &ProtocolError{fmt.Sprintf("a heap snapshot has %d bytes, of which %d came", size, n)}
		default:
			answer := <-answered
			if answer.err != nil {
				return 0, nil, answer.err
			}
			if size, err = strconv.ParseInt(string(answer.reply.Payload), 10, 64); err != nil || size < 0 {
				return 0, nil, &ProtocolError{fmt.Sprintf("the size of a heap snapshot is %q", answer.reply.Payload)}
			}
			w.saves.SetReadDeadline(time.Now().Add(patience))
		}
	}
	if n > size {
		return 0, nil, &ProtocolError{fmt.Sprintf("a heap snapshot has %d bytes, and %d came", size, n)}
	}
	return size, failed, nil
}

func (w *Worker) saveToFile(dst io.Writer) (size int64, failed, err error) {
	dir, err := os.MkdirTemp("", "heap-snapshot-")
	if err != nil {
		return 0, err, nil
	}
	defer os.RemoveAll(dir)
	file := filepath.Join(dir, "snapshot")
	if _, err := w.converse('w', []byte(file)); err != nil {
		return 0, nil, err
	}
	f, err := os.Open(file)
	if err != nil {
		return 0, err, nil
	}
	defer f.Close()
	size, failed = io.Copy(dst, f)
	return size, failed, nil
}

func (w *Worker) round(doing string, command byte, body []byte) (reply Reply, err error) {
	if len(body) >= maxMessage {
		return Reply{}, fmt.Errorf("%s: %s: %d bytes, at most %d can be sent", w.o.Name, doing, len(body), maxMessage-1)
	}
	err = w.talk(doing, func() (err error) {
		reply, err = w.converse(command, body)
		return err
	})
	return reply, err
}

// talk has a conversation with the worker. An error ends the worker, unless it is an exception of the guest; so does a panic.
func (w *Worker) talk(doing string, conversation func() error) error {
	w.turn.Lock()
	defer w.turn.Unlock()
	err := w.reason()
	if err == nil {
		returned := false
		defer func() {
			if !returned {
				w.Kill()
			}
		}()
		err = conversation()
		returned = true
		var guest *GuestError
		if err != nil && !errors.As(err, &guest) {
			err = w.fail(err)
		}
	}
	if err != nil {
		return fmt.Errorf("%s: %s: %w", w.o.Name, doing, err)
	}
	return nil
}

// converse sends a command and serves the worker's own commands until it answers.
func (w *Worker) converse(command byte, body []byte) (Reply, error) {
	if err := writeNetstring(w.commands, []byte{command}, body); err != nil {
		return Reply{}, w.lost(err)
	}
	for {
		message, err := readNetstring(w.in, w.o.MaxReply)
		if err != nil {
			return Reply{}, w.lost(err)
		}
		if len(message) == 0 {
			return Reply{}, &ProtocolError{"an empty message"}
		}
		switch message[0] {
		case '.':
			return parseReply(message[1:])
		case '!':
			return Reply{}, &GuestError{guestText(message[1:])}
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
		return errors.New("the guest sent a command, and nobody handles commands")
	}
	answer, err := w.o.Handle(w.ctx, message)
	if err != nil {
		return fmt.Errorf("handling a command of the guest: %w", err)
	}
	if len(answer) >= maxMessage {
		return fmt.Errorf("answering a command of the guest: %d bytes, at most %d can be sent", len(answer), maxMessage-1)
	}
	prefix := []byte{'/'}
	if w.o.Protocol < Level2 {
		prefix = nil
	}
	if err := writeNetstring(w.commands, prefix, answer); err != nil {
		return w.lost(err)
	}
	return nil
}

// patience is how long a worker may take for what it does at once.
const patience = 10 * time.Second

// lost explains an error of the pipes: they end when the process does.
func (w *Worker) lost(err error) error {
	var protocol *ProtocolError
	if errors.As(err, &protocol) {
		return err
	}
	select {
	case <-w.exited:
		return w.exit
	case <-time.After(patience):
		return err
	}
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

// Kill ends the worker at once. It may be called at any time; what is under way fails.
func (w *Worker) Kill() {
	w.end(errors.New("the worker was killed"))
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
	w.end(errors.New("the worker was closed"))
	werr := writeNetstring(w.commands, []byte{'q'}, nil)
	w.closeFiles()
	select {
	case <-w.exited:
	case <-time.After(patience):
		w.kill()
		return fmt.Errorf("closing %s: it did not end within %v, and was killed", w.o.Name, patience)
	}
	var exit *ExitError
	if werr == nil && errors.As(w.exit, &exit) && exit.Signal == 0 && (exit.Code == 0 || exit.Code == ExitUnhandledException) {
		return nil
	}
	err := w.exit
	if w.ctx.Err() != nil {
		err = w.ctx.Err()
	}
	return fmt.Errorf("closing %s: %w", w.o.Name, err)
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
