package report

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/enginery/enginery/internal/printable"
	"github.com/enginery/enginery/internal/progress"
	"github.com/enginery/enginery/replay"
)

// Live shows a replay while it goes on: how many deliveries are made in a second, how long it will take, which vats are at work, and what
// differs as soon as it is found.
type Live struct {
	ctx   context.Context
	begun time.Time
	total *progress.Task
	span  map[work]int64 // deliveries made of the spans at work

	// What notes read. They are asked for while the view is drawn, so no task is touched while mu is held.
	mu      sync.Mutex
	planned int64
	done    int64 // also what was known before
	made    int64
	differ  int64
	vats    map[work]*vatAtWork
}

// work is a vat in a column, or a span of it.
type work struct {
	run   int
	vat   string
	start int64
}

type vatAtWork struct {
	task  *progress.Task
	spans int // of it that are at work
	last  int64
	made  int64
	begun time.Time
}

// NewLive returns a view on the reporter of a context. Its method Observe is for replay.Options. It must be closed.
func NewLive(ctx context.Context) *Live {
	return &Live{ctx: ctx, begun: time.Now(), span: make(map[work]int64), vats: make(map[work]*vatAtWork)}
}

// Observe takes in an event. Calls come one at a time.
func (l *Live) Observe(e replay.Event) {
	key, vat := work{e.Run, e.Vat, e.Start}, work{run: e.Run, vat: e.Vat}
	switch e.Kind {
	case replay.Planned:
		l.planned = e.Deliveries
		l.total = progress.StartNoted(l.ctx, "replay", int(e.Deliveries), l.note)
	case replay.Started:
		l.span[key] = 0
		l.start(vat, e)
	case replay.Advanced:
		l.span[key] += e.Deliveries
		l.mu.Lock()
		l.made += e.Deliveries
		if v := l.vats[vat]; v != nil {
			v.made += e.Deliveries
		}
		l.mu.Unlock()
		l.add(e.Deliveries)
	case replay.Finished:
		if e.Cached {
			l.add(e.Deliveries)
		} else {
			if e.Result.Outcome != replay.Replayed { // the rest of it will not be made
				l.add(max(0, e.Result.End-e.Result.Start-2-l.span[key]))
			}
			l.finish(vat)
		}
		delete(l.span, key)
		l.tell(e)
	}
}

// start shows the vat of a span that begins, in the place of vats that are no longer at work: the next span of a vat follows at once.
func (l *Live) start(vat work, e replay.Event) {
	var idle []*vatAtWork
	l.mu.Lock()
	for other, v := range l.vats {
		if v.spans == 0 && other != vat {
			idle = append(idle, v)
			delete(l.vats, other)
		}
	}
	v := l.vats[vat]
	fresh := v == nil
	if fresh {
		v = &vatAtWork{begun: time.Now()}
		l.vats[vat] = v
	}
	v.spans++
	v.last = e.Start
	l.mu.Unlock()
	for _, v := range idle {
		v.task.Drop()
	}
	if fresh {
		v.task = progress.StartNoted(l.ctx, "  "+e.Vat+" on "+e.Version, 0, func() string { return l.vatNote(v) })
	}
}

func (l *Live) finish(vat work) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if v := l.vats[vat]; v != nil {
		v.spans--
	}
}

func (l *Live) add(n int64) {
	l.mu.Lock()
	l.done += n
	l.mu.Unlock()
	l.total.Add(n)
}

// tell writes a line about a span that is not as it was recorded.
func (l *Live) tell(e replay.Event) {
	l.mu.Lock()
	for _, n := range e.Result.Differences {
		l.differ += n
	}
	l.mu.Unlock()
	what := dimensions(e.Result.Differences)
	if e.Result.Outcome != replay.Replayed {
		what = strings.TrimPrefix(what+"; "+string(e.Result.Outcome)+": "+printable.Text(e.Result.Reason), "; ")
	}
	if what != "" {
		progress.Logf(l.ctx, "%s, span %d-%d on %s: %s", e.Vat, e.Result.Start, e.Result.End, e.Version, what)
	}
}

// note says how fast it goes. Only what was made in this run counts for that.
func (l *Live) note() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	elapsed := time.Since(l.begun).Seconds()
	parts := make([]string, 0, 4)
	if rate := float64(l.made) / elapsed; l.made > 0 {
		left := time.Duration(float64(l.planned-l.done) / rate * float64(time.Second)).Round(time.Second)
		parts = append(parts, fmt.Sprintf("%.0f deliveries/s", rate), fmt.Sprintf("%v left", left))
	}
	if l.differ > 0 {
		parts = append(parts, count(l.differ, "difference"))
	}
	var names []string
	for id, v := range l.vats {
		if v.spans > 0 {
			names = append(names, id.vat)
		}
	}
	if len(names) > 0 {
		slices.Sort(names)
		names = slices.Compact(names)
		if len(names) > 4 {
			names = append(names[:4], "…")
		}
		parts = append(parts, "at "+strings.Join(names, " "))
	}
	return strings.Join(parts, ", ")
}

func (l *Live) vatNote(v *vatAtWork) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	if v.spans == 0 {
		return count(v.made, "delivery")
	}
	return fmt.Sprintf("span %d, %s, %.0f/s", v.last, count(v.made, "delivery"), float64(v.made)/time.Since(v.begun).Seconds())
}

// Close ends the view, when the replay has ended with an error or nil.
func (l *Live) Close(err error) {
	for _, v := range l.vats {
		v.task.Drop()
	}
	l.total.Done(err)
}
