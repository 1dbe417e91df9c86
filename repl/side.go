package repl

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"

	"github.com/google/renameio/v2"

	"github.com/enginery/enginery/xsnap"
)

// side is an engine of a REPL, with its worker.
type side struct {
	o     xsnap.Options
	heard io.Writer // what the guest prints and sends

	mu sync.Mutex
	w  *xsnap.Worker // nil: none runs
}

func (s *side) worker() *xsnap.Worker {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.w
}

// replace has w run in place of what runs.
func (s *side) replace(w *xsnap.Worker) {
	s.mu.Lock()
	old := s.w
	s.w = w
	s.mu.Unlock()
	if old != nil {
		old.Kill()
	}
}

func (s *side) kill() { s.replace(nil) }

// running returns the worker, a fresh one if none runs.
func (s *side) running(ctx context.Context) (*xsnap.Worker, error) {
	if w := s.worker(); w != nil {
		return w, nil
	}
	if err := s.start(ctx, nil); err != nil {
		return nil, err
	}
	return s.worker(), nil
}

// answer is what became of a script.
type answer struct {
	text  string // its value, or the exception with "Uncaught" before it
	meter xsnap.Meter
}

// start starts a worker that has the harness, from a heap snapshot if there is one.
func (s *side) start(ctx context.Context, snapshot io.Reader) error {
	o := s.o
	o.Snapshot = snapshot
	o.Handle = func(_ context.Context, message []byte) ([]byte, error) {
		switch {
		case len(message) > 0 && message[0] == 'p':
			fmt.Fprintf(s.heard, "%s\n", message[1:])
		case len(message) > 0 && message[0] == 'c':
			fmt.Fprintf(s.heard, "command: %s\n", showBytes(message[1:]))
		default:
			fmt.Fprintf(s.heard, "command: %s\n", showBytes(message)) // by an issueCommand from before the harness
		}
		return nil, nil
	}
	w, err := xsnap.Start(ctx, o)
	if err != nil {
		return err
	}
	if _, err := w.Evaluate(harness); err != nil {
		w.Kill()
		return err
	}
	s.replace(w)
	return nil
}

// evaluate evaluates a script. Only an error of the worker is an error: none runs then.
func (s *side) evaluate(ctx context.Context, source string) (answer, error) {
	w, err := s.running(ctx)
	if err != nil {
		return answer{}, err
	}
	reply, err := w.Command([]byte(source))
	var guest *xsnap.GuestError
	if errors.As(err, &guest) {
		return answer{}, fmt.Errorf("the heap's handleCommand is none of this program: %w", err)
	}
	if err != nil {
		s.kill()
		return answer{}, err
	}
	if len(reply.Payload) == 0 {
		return answer{}, errors.New("the heap's handleCommand is none of this program: it gave no answer")
	}
	a := answer{text: string(reply.Payload[1:]), meter: reply.Meter}
	switch reply.Payload[0] {
	case '!':
		a.text = "Uncaught " + a.text
	case '>':
		a.text = "Promise of " + a.text
	}
	return a, nil
}

// save writes a heap snapshot to a file, which is there as a whole or not at all.
func (s *side) save(ctx context.Context, file string) (size int64, err error) {
	w, err := s.running(ctx)
	if err != nil {
		return 0, err
	}
	f, err := renameio.NewPendingFile(file, renameio.WithPermissions(0o666), renameio.WithTempDir(filepath.Dir(file)))
	if err != nil {
		return 0, err
	}
	defer f.Cleanup()
	if size, err = w.Snapshot(f); err != nil {
		return 0, err
	}
	return size, f.CloseAtomicallyReplace()
}

// load goes on with the heap of a file. If the engine does not take it, the worker stays as it is.
func (s *side) load(ctx context.Context, file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	return s.start(ctx, f)
}

// lockedWriter is a writer for many goroutines.
type lockedWriter struct {
	mu sync.Mutex
	w  io.Writer
}

func (l *lockedWriter) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(p)
}
