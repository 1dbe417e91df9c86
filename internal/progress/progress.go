// Package progress shows what long operations are doing: bars with totals on a terminal, plain lines in a log.
//
// A reporter travels in the context, so that packages report progress without knowing to whom:
//
//	ctx = progress.With(ctx, os.Stderr)
//	task := progress.Start(ctx, "fetch gcc-12", size)
//	defer func() { task.Done(err) }()
//	io.Copy(dst, task.Reader(src))
//
// Without a reporter in the context all of it does nothing.
package progress

import (
	"context"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
	"golang.org/x/term"
)

type key struct{}

// Reporter writes progress to one place.
type Reporter struct {
	mu   sync.Mutex
	w    io.Writer
	bars *mpb.Progress // nil where w is not a terminal
}

// With returns a context whose tasks are shown on w, and the reporter, which must be closed at the end.
func With(ctx context.Context, w io.Writer) (context.Context, *Reporter) {
	r := &Reporter{w: w}
	if f, ok := w.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		r.bars = mpb.New(mpb.WithOutput(w), mpb.WithWidth(40), mpb.WithRefreshRate(120*time.Millisecond), mpb.WithAutoRefresh())
	}
	return context.WithValue(ctx, key{}, r), r
}

// Close waits until the last bar has been drawn.
func (r *Reporter) Close() {
	if r.bars != nil {
		r.bars.Shutdown()
	}
}

// Logf writes a line.
func Logf(ctx context.Context, format string, args ...any) {
	if r, ok := ctx.Value(key{}).(*Reporter); ok {
		r.logf(format, args...)
	}
}

func (r *Reporter) logf(format string, args ...any) {
	line := fmt.Sprintf(format, args...) + "\n"
	if r.bars != nil {
		if _, err := r.bars.Write([]byte(line)); err == nil {
			return
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	io.WriteString(r.w, line)
}

// Task is an operation in progress. A nil Task is one that nobody watches.
type Task struct {
	r     *Reporter
	name  string
	total int64
	steps bool          // it counts steps, not bytes
	note  func() string // nil: there is nothing more to say
	start time.Time
	bar   *mpb.Bar

	mu   sync.Mutex
	done int64
	tick *time.Ticker // repeats the state of a long task in a log
	stop chan struct{}
}

// logInterval is how often a log gets a line about a task that is still going.
const logInterval = 30 * time.Second

// Start begins a task of total bytes, or of unknown size if total is 0.
func Start(ctx context.Context, name string, total int64) *Task {
	return start(ctx, name, total, false, nil)
}

// StartSteps begins a task of total steps.
func StartSteps(ctx context.Context, name string, total int) *Task {
	return start(ctx, name, int64(total), true, nil)
}

// StartNoted begins a task of total steps, or of unknown length if total is 0, that has more to say: note is asked whenever the task is shown.
func StartNoted(ctx context.Context, name string, total int, note func() string) *Task {
	return start(ctx, name, int64(total), true, note)
}

func start(ctx context.Context, name string, total int64, steps bool, note func() string) *Task {
	r, ok := ctx.Value(key{}).(*Reporter)
	if !ok {
		return nil
	}
	t := &Task{r: r, name: name, total: total, steps: steps, note: note, start: time.Now()}
	if r.bars == nil {
		t.tick = time.NewTicker(logInterval)
		t.stop = make(chan struct{})
		go t.log()
		return t
	}
	left := mpb.PrependDecorators(decor.Name(name, decor.WCSyncSpaceR))
	more := func(decorators ...decor.Decorator) mpb.BarOption {
		if note != nil {
			decorators = append(decorators, decor.Any(func(decor.Statistics) string { return "  " + note() }))
		}
		return mpb.AppendDecorators(decorators...)
	}
	if total > 0 {
		counters := decor.Counters(decor.SizeB1024(0), "% .1f / % .1f")
		if steps {
			counters = decor.CountersNoUnit("%d of %d")
		}
		t.bar = r.bars.New(total, mpb.BarStyle(), left, more(counters), mpb.BarRemoveOnComplete())
	} else {
		options := []mpb.BarOption{left, more(decor.Elapsed(decor.ET_STYLE_GO)), mpb.BarRemoveOnComplete()}
		if note != nil {
			options = append(options, mpb.BarWidth(1))
		}
		t.bar = r.bars.New(1, mpb.SpinnerStyle(), options...)
	}
	return t
}

func (t *Task) log() {
	for {
		select {
		case <-t.stop:
			return
		case <-t.tick.C:
			t.mu.Lock()
			done := t.done
			t.mu.Unlock()
			elapsed := time.Since(t.start).Round(time.Second)
			note := ""
			if t.note != nil {
				note = ", " + t.note()
			}
			switch {
			case t.steps && t.total > 0:
				t.r.logf("%s: %d of %d%s (%v)", t.name, done, t.total, note, elapsed)
			case t.total > 0:
				t.r.logf("%s: %.1f of %.1f MiB (%v)", t.name, float64(done)/(1<<20), float64(t.total)/(1<<20), elapsed)
			default:
				t.r.logf("%s: %v%s", t.name, elapsed, note)
			}
		}
	}
}

// Add says that n more bytes, or steps, are done.
func (t *Task) Add(n int64) {
	if t == nil {
		return
	}
	t.mu.Lock()
	t.done += n
	t.mu.Unlock()
	if t.bar != nil && t.total > 0 {
		t.bar.IncrInt64(n)
	}
}

// Reader returns r, counting what is read from it.
func (t *Task) Reader(r io.Reader) io.Reader {
	if t == nil {
		return r
	}
	return &reader{t, r}
}

type reader struct {
	t *Task
	r io.Reader
}

func (r *reader) Read(p []byte) (int, error) {
	n, err := r.r.Read(p)
	r.t.Add(int64(n))
	return n, err
}

// Drop ends the task, of whose end nobody has to know.
func (t *Task) Drop() {
	if t == nil {
		return
	}
	if t.tick != nil {
		t.tick.Stop()
		close(t.stop)
	} else {
		t.bar.Abort(true)
	}
}

// Done ends the task. Failures are for the caller to report; they only end the bar.
func (t *Task) Done(err error) {
	if t == nil {
		return
	}
	if err != nil {
		t.Drop()
		return
	}
	if t.tick != nil {
		t.tick.Stop()
		close(t.stop)
	} else {
		t.bar.SetTotal(-1, true)
	}
	t.r.logf("%s: done (%v)", t.name, time.Since(t.start).Round(10*time.Millisecond))
}
