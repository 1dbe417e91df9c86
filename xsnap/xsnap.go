// Package xsnap runs an engine: it starts an xsnap-worker and speaks its protocol.
//
// A worker reads commands from file descriptor 3 and answers on 4, in netstrings (agoric-sdk, packages/xsnap). It does one thing at
// a time, and so does a [Worker]: calls from many goroutines wait for each other, except Kill. docs/worker.md is the manual.
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
	"strings"
	"sync"
	"time"

	"github.com/enginery/enginery/engines"
)

// Protocol levels. Each has what those before it have.
const (
	Level1 = 1 // 65d8e660: commands e, ?, R, s, m, w with a path; any other ends the worker
	Level2 = 2 // c91d9652: the host's replies to the worker begin with "/"
	Level3 = 3 // 0b3869eb: command q; a command that is unknown is an error
	Level4 = 4 // 056faf8c: heap snapshots through descriptors, with their size in the reply
)

// DefaultMaxMessage is the limit that SwingSet sets to a worker's messages, in bytes.
const DefaultMaxMessage = 12_000_000

// Options say which worker to start, and how.
type Options struct {
	// The engine: an installed version, an installed engine, or any program.
	Version string          // version ID, "agoric-upgrade-22", or channel, "legacy"; for a program it only names it in errors
	Home    string          // folder of the installed engines; empty: engines.DefaultHome
	Engine  *engines.Engine // in place of Home
	Debug   bool            // its debug worker, which counts other computrons: not for consensus
	Path    string          // of a program, in place of an installed engine

	Emulator  []string // command that the program's command line follows, for one of another architecture
	Protocol  int      // protocol level of a program; an installed engine's description says it
	MeterType string   // label that every Meter of a program bears; an installed engine's description says it: "xs-meter-28"

	Name string // for errors and ps; must not begin with "-"; "worker" if empty

	MeteringLimit int64 // computrons that a crank may use; 0: no limit
	ParserBuffer  int   // kB; 0: the worker's own, 8192. It is part of heap snapshots
	MaxMessage    int   // bytes of a message from the worker; 0: DefaultMaxMessage

	Snapshot       io.Reader // heap snapshot to start from; nil: a fresh heap
	SnapshotSHA256 string    // what its SHA-256 must be, in lower-case hex; empty: anything

	// Handle answers a command from the worker. An error of it ends the worker, since the protocol has no way to pass it on. It must
	// not call the worker's methods, except Kill. Its context is Start's, and ends with the worker. It may keep the message.
	Handle func(ctx context.Context, message []byte) ([]byte, error)

	Stdout, Stderr io.Writer // the worker's, written to concurrently; nil: discarded

	// Env is added to the worker's environment, which has nothing of this process's and TZ=UTC0: the time zone shows in what Date says,
	// and XSBUG_HOST and XSBUG_PORT have a debug worker call a debugger.
	Env []string

	dir  string // working directory; empty: this process's
	fork *fork  // in place of Snapshot; nil: none
}

// Meter is what a worker says of a crank.
type Meter struct {
	Type       string    `json:"meterType"`        // Options.MeterType
	Compute    int64     `json:"compute"`          // computrons
	Allocate   int64     `json:"allocate"`         // bytes that the worker has allocated so far
	HeapCount  int64     `json:"currentHeapCount"` // live slots
	Timestamps []float64 `json:"timestamps"`       // seconds since 1970, of each message; the only part that is not deterministic
}

// Reply is a worker's answer to a command.
type Reply struct {
	Payload []byte
	Meter   Meter
}

// Worker is a running engine.
type Worker struct {
	o        Options
	ctx      context.Context
	program  *program
	cmd      *exec.Cmd
	stderr   *tail
	commands *os.File // write end of descriptor 3
	replies  *os.File // read end of descriptor 4
	saves    *os.File // read end of descriptor 7
	loads    *os.File // write end of descriptor 8
	in       *bufio.Reader
	out      netstringWriter

	handling context.Context // ends with the process

	turn   sync.Mutex    // held while talking to the worker
	sticky bool          // the worker takes the next script or module for failed, since something before it threw
	exited chan struct{} // closed when the process is reaped
	exit   error         // how it ended; valid when exited is closed

	mu    sync.Mutex
	ended error // why no command can follow
}

// Start starts a worker, which has then loaded its heap snapshot if it was to. It lives until Close or Kill is called or ctx ends, and not
// a moment longer: then it is killed if need be, and reaped.
//
// A worker believes a heap snapshot: it checks the header, and does not even notice that the end is missing. Set SnapshotSHA256, or have the
// reader verify what it reads; an error of it, even at the very end, ends the worker.
func Start(ctx context.Context, o Options) (*Worker, error) {
	if o.Name == "" {
		o.Name = "worker"
	}
	w, err := start(ctx, &o)
	if err != nil {
		return nil, o.explain("starting", err)
	}
	return w, nil
}

func (o *Options) explain(doing string, err error) error {
	return &Error{Worker: o.Name, Version: o.Version, Doing: doing, Err: err}
}

func (o *Options) hasSnapshot() bool { return o.Snapshot != nil || o.fork != nil }

func (o *Options) check() error {
	switch {
	case o.Name[0] == '-':
		return fmt.Errorf("the name of a worker must not begin with -, and %q does", o.Name)
	case strings.IndexByte(o.Name, 0) >= 0:
		return fmt.Errorf("the name of a worker must not hold a zero byte, and %q does", o.Name)
	case o.Protocol < Level1 || o.Protocol > Level4:
		return fmt.Errorf("protocol level %d is unknown: there are %d to %d", o.Protocol, Level1, Level4)
	case o.MeteringLimit < 0 || o.MeteringLimit > math.MaxInt32:
		return fmt.Errorf("the metering limit %d is not within 0 and %d", o.MeteringLimit, math.MaxInt32)
	case o.ParserBuffer < 0 || o.ParserBuffer > math.MaxInt32>>10:
		return fmt.Errorf("a parser buffer of %d kB is not within 0 and %d kB", o.ParserBuffer, math.MaxInt32>>10)
	case o.MaxMessage < 0:
		return fmt.Errorf("a limit of %d bytes for messages is none", o.MaxMessage)
	case o.SnapshotSHA256 != "" && o.Snapshot == nil:
		return errors.New("there is a hash of a heap snapshot, and no heap snapshot")
	}
	return nil
}

// Evaluate evaluates a script in the global scope and runs promise jobs until there are none. The payload is what an ArrayBuffer
// holds that is the script's value, or then its property "result". An exception is a *GuestError.
func (w *Worker) Evaluate(source string) (Reply, error) {
	const doing = "evaluating a script"
	if i := strings.IndexByte(source, 0); i >= 0 {
		return Reply{}, w.o.explain(doing, fmt.Errorf("byte %d of %d is zero, and the worker would take no notice of what follows", i+1, len(source)))
	}
	return w.round(doing, 'e', []byte(source))
}

// Command passes a message to the guest's handleCommand, runs promise jobs until there are none, and returns its answer, which is
// empty if it gave none by then. An exception is a *GuestError.
func (w *Worker) Command(message []byte) (Reply, error) {
	return w.round("sending a command", '?', message)
}

// CommandString is Command for text.
func (w *Worker) CommandString(message string) (answer string, meter Meter, err error) {
	reply, err := w.Command([]byte(message))
	return string(reply.Payload), reply.Meter, err
}

// Execute runs a script file, which the worker reads, and then promise jobs until there are none. The reply has a meter only. An exception is
// a *GuestError. After an exception of whatever came before, an empty script is evaluated first, since the worker would take the file's for failed.
func (w *Worker) Execute(file string) (Reply, error) {
	return w.runFile("executing a script", 's', file)
}

// Import imports a module file, which the worker reads with all that it imports, and runs promise jobs until there are none. The reply has
// a meter only.
//
// No error does not mean that the module was imported: the worker says nothing of an import that fails, be it a syntax error, an exception or
// a module that is not there. Have the module send a command, or set what an evaluation then looks for.
func (w *Worker) Import(file string) (Reply, error) {
	return w.runFile("importing a module", 'm', file)
}

// Ready waits until the worker is up. It does not touch the heap.
func (w *Worker) Ready() error {
	_, err := w.round("waiting until it is up", 'R', nil)
	return err
}

// maxPath is the size of the worker's buffer for a path, C_PATH_MAX.
const maxPath = 4096

func (w *Worker) runFile(doing string, command byte, file string) (reply Reply, err error) {
	path, err := filepath.Abs(file)
	if err == nil && len(path) >= maxPath {
		err = fmt.Errorf("the path %q has %d bytes, at most %d are allowed", path, len(path), maxPath-1)
	}
	if err == nil {
		_, err = os.Stat(path) // the worker does not say that it is not there
	}
	if err != nil {
		return Reply{}, w.o.explain(doing, err)
	}
	err = w.talk(doing, func() (err error) {
		if w.sticky {
			// Only an evaluation makes the worker forget that something threw (xsnap-worker.c, error).
			if _, err := w.converse('e', nil); err != nil {
				return err
			}
		}
		printed := w.stderr.count()
		reply, err = w.converse(command, []byte(path))
		var guest *GuestError
		if errors.As(err, &guest) {
			guest.Text = w.stderr.line(printed, time.Second) // the answer has no text
		}
		return err
	})
	return reply, err
}

func (w *Worker) round(doing string, command byte, body []byte) (reply Reply, err error) {
	if len(body) >= maxMessage {
		return Reply{}, w.o.explain(doing, &SizeError{Size: int64(len(body)), Limit: maxMessage - 1, ToWorker: true})
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
		return w.o.explain(doing, err)
	}
	return nil
}

// converse sends a command and serves the worker's own commands until it answers.
func (w *Worker) converse(command byte, body []byte) (Reply, error) {
	if n := w.in.Buffered(); n > 0 {
		return Reply{}, &ProtocolError{fmt.Sprintf("%d bytes that nothing asked for", n)}
	}
	if err := w.out.write([]byte{command}, body); err != nil {
		return Reply{}, w.lost(err)
	}
	for {
		message, err := readNetstring(w.in, w.o.MaxMessage)
		if err != nil {
			return Reply{}, w.lost(err)
		}
		if len(message) == 0 {
			return Reply{}, &ProtocolError{"an empty message"}
		}
		switch message[0] {
		case '.':
			if command == 'e' || command == '?' {
				w.sticky = false
			}
			return parseReply(message[1:], w.o.MeterType)
		case '!':
			w.sticky = true
			return Reply{}, &GuestError{guestText(message[1:])}
		case '?':
			if command == 'R' || command == 'w' {
				return Reply{}, &ProtocolError{"a command where no guest runs"}
			}
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
	answer, err := w.o.Handle(w.handling, message)
	if err != nil {
		return fmt.Errorf("handling a command of the guest: %w", err)
	}
	if len(answer) >= maxMessage {
		return fmt.Errorf("answering a command of the guest: %w", &SizeError{Size: int64(len(answer)), Limit: maxMessage - 1, ToWorker: true})
	}
	prefix := []byte{'/'}
	if w.o.Protocol < Level2 {
		prefix = nil
	}
	if err := w.out.write(prefix, answer); err != nil {
		return w.lost(err)
	}
	return nil
}
