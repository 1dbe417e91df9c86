package xsnap

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"
)

// Snapshot writes a heap snapshot to dst, after a garbage collection, and returns its size in bytes. It is written while the worker makes
// it; a hash is a matter of io.MultiWriter. The worker lives on when dst fails.
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
		return 0, w.o.explain(doing, fmt.Errorf("writing it: %w", failed))
	}
	return size, nil
}

// buffers are for heap snapshots on their way: as large as their pipes are.
var buffers = sync.Pool{New: func() any { b := make([]byte, pipeSize); return &b }}

// maxSnapshot bounds what is read of a worker that goes on and on, in bytes: a heap has at most 2 GB.
const maxSnapshot = 1 << 32

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
	buf := *buffers.Get().(*[]byte)
	defer buffers.Put(&buf)
	var n int64
	for size = -1; size < 0 || n < size; {
		k, rerr := w.saves.Read(buf)
		n += int64(k)
		if failed == nil && k > 0 {
			_, failed = dst.Write(buf[:k])
		}
		switch {
		case n > maxSnapshot:
			return 0, nil, &ProtocolError{fmt.Sprintf("a heap snapshot of more than %d bytes", int64(maxSnapshot))}
		case rerr == nil:
		case size >= 0:
			return 0, nil, &ProtocolError{fmt.Sprintf("a heap snapshot has %d bytes, of which %d came", size, n)}
		default:
			answer := <-answered
			if answer.err != nil {
				return 0, nil, answer.err
			}
			if size, err = strconv.ParseInt(string(answer.reply.Payload), 10, 64); err != nil || size < 0 {
				return 0, nil, &ProtocolError{fmt.Sprintf("the size of a heap snapshot is %.200q", answer.reply.Payload)}
			}
			w.saves.SetReadDeadline(time.Now().Add(patience))
		}
	}
	if n > size {
		return 0, nil, &ProtocolError{fmt.Sprintf("a heap snapshot has %d bytes, and %d came", size, n)}
	}
	return size, failed, nil
}

// Fork takes a heap snapshot, as Snapshot does, and starts a worker from it, with the options of this one, while it is made. It is the same as to
// start a worker from what dst gets, and takes less time. Both workers live on; after an error, of dst too, there is none but this one.
func (w *Worker) Fork(ctx context.Context, dst io.Writer) (*Worker, error) {
	life, end := context.WithCancel(ctx)
	f := &fork{life: life, dst: dst, pipe: make(chan io.Writer, 1), started: make(chan struct{}), saved: make(chan error, 1)}
	o := w.o
	o.Snapshot, o.SnapshotSHA256, o.fork = nil, "", f
	type started struct {
		w   *Worker
		err error
	}
	start := make(chan started, 1)
	stop := context.AfterFunc(w.handling, end) // a worker that does not load its heap does not outlast this one
	go func() {
		next, err := Start(ctx, o)
		close(f.started)
		start <- started{next, err}
	}()
	err := errors.New("writing it panicked")
	func() {
		defer func() { f.saved <- err }()
		_, err = w.Snapshot(f)
	}()
	next := <-start
	if !stop() && err == nil {
		<-w.exited
		if err = w.reason(); err == nil {
			err = w.exit
		}
		err = w.o.explain("starting another from its heap snapshot", err)
	}
	if err == nil {
		err = next.err // otherwise it follows from the other
	}
	if err != nil {
		end()
		if next.w != nil {
			next.w.Kill()
		}
		return nil, err
	}
	context.AfterFunc(next.w.handling, end)
	return next.w, nil
}

// fork passes a heap snapshot on to dst and to the worker that starts from it.
type fork struct {
	life    context.Context // that worker's process ends with it
	dst     io.Writer
	pipe    chan io.Writer // of that worker, once; it may come when nobody waits for it any more
	started chan struct{}  // closed when that worker takes no more
	next    io.Writer      // what came from pipe
	lost    error          // why next does not have all
	saved   chan error     // of the worker whose heap it is
}

func (f *fork) Write(p []byte) (int, error) {
	if f.next == nil {
		select {
		case f.next = <-f.pipe:
		case <-f.started:
			f.next = io.Discard // Start says why
		}
	}
	if f.lost == nil {
		_, f.lost = f.next.Write(p)
	}
	return f.dst.Write(p)
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

// load passes the heap snapshot to the worker and waits until it is loaded.
func (w *Worker) load() error {
	ready := func() error {
		_, err := w.converse('R', nil)
		if err != nil {
			return w.fail(err)
		}
		return nil
	}
	if w.o.Protocol < Level4 {
		return ready() // it has a file
	}
	source := newSource(w.o)
	passed := make(chan error, 1)
	go func() {
		_, err := io.Copy(w.loads, source)
		if source.err != nil {
			err = fmt.Errorf("reading the heap snapshot: %w", source.err)
		}
		passed <- err
		w.loads.Close()
	}()
	if err := ready(); err != nil {
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

// source reads a heap snapshot to start from. It remembers why its reader failed; the wrong hash is a failure, too.
type source struct {
	r    io.Reader
	want string // hash, if not empty
	sum  hash.Hash
	fork *fork // in place of r; nil: none
	err  error
}

func newSource(o Options) *source {
	return &source{r: o.Snapshot, want: o.SnapshotSHA256, sum: sha256.New(), fork: o.fork}
}

// WriteTo is what io.Copy calls.
func (s *source) WriteTo(w io.Writer) (int64, error) {
	if s.fork == nil {
		return io.Copy(w, struct{ io.Reader }{s})
	}
	s.fork.pipe <- w
	if s.err = <-s.fork.saved; s.err != nil {
		return 0, s.err
	}
	return 0, s.fork.lost
}

func (s *source) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if s.want != "" {
		s.sum.Write(p[:n])
	}
	if err == io.EOF && s.want != "" {
		if found := hex.EncodeToString(s.sum.Sum(nil)); found != s.want {
			err = fmt.Errorf("its SHA-256 is %s, expected %s", found, s.want)
		}
	}
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
