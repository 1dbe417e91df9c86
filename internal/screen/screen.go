// Package screen keeps a text up to date on a terminal of which a program has the whole for a while.
package screen

import (
	"context"
	"io"
	"os"
	"os/signal"
	"runtime"
	"strings"
	"time"

	"github.com/mattn/go-runewidth"
	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

// Screen is a terminal's alternate screen. A nil Screen shows nothing. Its methods must not be called at the same time.
type Screen struct {
	f       *os.File
	text    string
	signals chan os.Signal
}

// Is reports whether w is a terminal that can show a screen.
func Is(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd())) && os.Getenv("TERM") != "dumb"
}

// Open takes over a terminal. What is on it comes back when the screen is closed.
func Open(terminal *os.File) (*Screen, error) {
	s := &Screen{f: terminal, signals: make(chan os.Signal, 4)}
	signal.Notify(s.signals, unix.SIGWINCH, unix.SIGTSTP, unix.SIGCONT)
	return s, s.enter()
}

// Control sequences (xterm, ctlseqs).
const (
	enter = "\x1b[?1049h\x1b[?25l" // to the alternate screen; no cursor
	leave = "\x1b[?25h\x1b[?1049l"
	home  = "\x1b[H"
	blank = "\x1b[2K" // the line
	below = "\x1b[J"  // blank from here on
)

func (s *Screen) enter() error {
	_, err := s.f.WriteString(enter)
	return err
}

// Close gives the terminal back as it was.
func (s *Screen) Close() error {
	if s == nil || s.f == nil {
		return nil
	}
	signal.Stop(s.signals)
	_, err := s.f.WriteString(leave)
	s.f = nil
	return err
}

// Show shows a text from now on: as much of it as there is room for, from its beginning. A line in which there are two spaces is taken for one of a
// table and cut where the terminal ends; others go on in the next line.
func (s *Screen) Show(text string) error {
	if s == nil {
		return nil
	}
	s.text = text
	return s.draw()
}

// draw writes a whole frame over what is there, at once, so that nothing flickers.
func (s *Screen) draw() error {
	width, height, err := term.GetSize(int(s.f.Fd()))
	if err != nil || width < 1 || height < 1 { // as of a terminal that nobody has given a size
		width, height = 80, 24
	}
	lines := fit(s.text, width, height)
	frame := home + blank + strings.Join(lines, "\r\n"+blank)
	if len(lines) < height {
		frame += "\r\n" + below
	}
	_, err = s.f.WriteString(frame + home) // from where no terminal scrolls when it gets smaller
	return err
}

// Wait waits. Meanwhile it draws the text anew whenever the terminal gets another size, and lets the shell stop the program (Ctrl-Z) and have it go
// on. The error is the context's, if that has ended, or says that nothing can be drawn.
func (s *Screen) Wait(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	var signals chan os.Signal
	if s != nil {
		signals = s.signals
	}
	for {
		select {
		case <-timer.C:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		case sig := <-signals:
			if sig == unix.SIGTSTP {
				if err := s.stop(); err != nil {
					return err
				}
			}
			if err := s.draw(); err != nil {
				return err
			}
		}
	}
}

// stop stops the program, as the signal would have done, and returns when it goes on. Where no shell could have it go on, nothing happens.
func (s *Screen) stop() error {
	own, err := unix.Getsid(0)
	if err != nil {
		return err
	}
	if shell, err := unix.Getsid(os.Getppid()); err != nil || shell != own {
		return nil
	}
	if _, err := s.f.WriteString(leave); err != nil {
		return err
	}
	runtime.LockOSThread() // which is stopped, and all others with it, before Tgkill returns
	defer runtime.UnlockOSThread()
	if err := unix.Tgkill(os.Getpid(), unix.Gettid(), unix.SIGSTOP); err != nil {
		return err
	}
	return s.enter()
}

// fit breaks a text into at most height lines that are not wider than width columns.
func fit(text string, width, height int) (lines []string) {
	for line := range strings.SplitSeq(strings.TrimSuffix(text, "\n"), "\n") {
		if strings.Contains(line, "  ") {
			lines = append(lines, runewidth.Truncate(line, width, "…"))
		} else {
			lines = append(lines, wrap(line, width)...)
		}
	}
	if len(lines) > height {
		lines = append(lines[:height-1], "…")
	}
	return lines
}

// wrap breaks a line between words. A word that is too long for a line is cut.
func wrap(line string, width int) (lines []string) {
	last := ""
	for i, word := range strings.Split(line, " ") {
		switch {
		case i == 0:
			last = word
		case runewidth.StringWidth(last)+1+runewidth.StringWidth(word) <= width:
			last += " " + word
		default:
			lines = append(lines, runewidth.Truncate(last, width, "…"))
			last = word
		}
	}
	return append(lines, runewidth.Truncate(last, width, "…"))
}
