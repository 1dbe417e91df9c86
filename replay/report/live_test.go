package report

import (
	"bytes"
	"io"
	"os"
	"regexp"
	"strings"
	"sync"
	"testing"

	"github.com/creack/pty"

	"github.com/enginery/enginery/internal/progress"
	"github.com/enginery/enginery/internal/swingsettest"
	"github.com/enginery/enginery/recipes"
	"github.com/enginery/enginery/replay"
)

// watch replays three vats, of which one has a difference, and has a view on it on w.
func watch(t *testing.T, w io.Writer) {
	t.Helper()
	store := swingsettest.Store(t)
	swingsettest.Plant(t, store, "v6", 3, `"computrons":`, `"computrons":1`)
	ctx, reporter := progress.With(t.Context(), w)
	live := NewLive(ctx)
	_, err := replay.Run(ctx, open(t, store), engine(t, swingsettest.Version, recipes.Release), replay.Options{
		Vats: []string{"v3", "v6", "v9"}, Jobs: 2, Observe: live.Observe,
	})
	live.Close(err)
	reporter.Close()
	if err != nil {
		t.Fatal(err)
	}
	if live.done != live.planned || live.planned == 0 || len(live.span) != 0 {
		t.Errorf("at the end %d of %d are done, spans at work: %v", live.done, live.planned, live.span)
	}
	for vat, v := range live.vats {
		if v.spans != 0 {
			t.Errorf("at the end %v is at work", vat)
		}
	}
}

func TestLiveLog(t *testing.T) {
	t.Parallel()
	var b bytes.Buffer
	watch(t, &b)
	text := b.String()
	contains(t, text, "v6, span 0-5 on agoric-upgrade-22: 1 computron count\n", "replay: done (")
	if strings.Contains(text, "\x1b") || strings.Count(text, "\n") > 20 {
		t.Errorf("the log is\n%s", text)
	}
}

// On a terminal there is a bar with the rate and the time left, and a line for each vat that is at work.
func TestLiveTerminal(t *testing.T) {
	t.Parallel()
	terminal, tty, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer terminal.Close()
	if err := pty.Setsize(tty, &pty.Winsize{Rows: 24, Cols: 140}); err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	var reading sync.WaitGroup
	reading.Go(func() { io.Copy(&b, terminal) })
	watch(t, tty)
	tty.Close()
	reading.Wait()
	text := b.String()
	if name := os.Getenv("ENGINERY_SCREENSHOTS"); name != "" {
		os.WriteFile(name+"/live.txt", b.Bytes(), 0o644)
	}
	for _, want := range []string{
		`replay .*\d+ of 197  \d+ deliveries/s, \d+s left`, `v3 on agoric-upgrade-22 .*span \d+, \d+ deliveries, \d+/s`, `1 difference, at v3`,
		`v6, span 0-5 on agoric-upgrade-22: 1 computron count`,
	} {
		if !regexp.MustCompile(want).MatchString(text) {
			t.Errorf("the terminal shows nothing like %s:\n%q", want, text)
		}
	}
}
