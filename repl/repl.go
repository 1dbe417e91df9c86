package repl

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"

	"github.com/enginery/enginery/xsnap"
)

// Options say what a REPL works with.
type Options struct {
	Engine  xsnap.Options
	Against *xsnap.Options // a second engine that does the same; nil: none

	In      io.Reader // scripts; a terminal gets a line editor, anything else is read line by line, without prompts
	Out     io.Writer // answers
	History string    // file that the line editor's history is kept in; empty: none is kept
}

const help = `A line is a script; it goes on in the next while a bracket is open. const, let and class at its beginning stay.
:meter       computrons, memory and slots of the last script, with what showing its value took; :meter on and :meter off for every script
:save FILE   write a heap snapshot; with two engines to FILE.VERSION each
:load FILE   go on with the heap of a snapshot, of FILE.VERSION if that is there
:reset       go on with a fresh heap
:help        this
:quit        end, as Ctrl-D does; Ctrl-C ends a script that does not end itself
`

// session is a running REPL.
type session struct {
	sides  []*side
	out    io.Writer
	last   []answer // of the last script, one a side
	meters bool     // are shown after every script
}

// Run evaluates what In gives, script by script, until its end, and writes the answers to Out: one if both engines give the same, and both where
// they differ. An engine that ends, by its metering limit or otherwise, is started afresh. Run has its own way with Ctrl-C: ctx should not
// end by it, when In is a terminal.
func Run(ctx context.Context, o Options) error {
	s := &session{out: o.Out, sides: []*side{{o: o.Engine}}}
	if o.Against != nil {
		s.sides = append(s.sides, &side{o: *o.Against})
		if s.sides[0].name() == s.sides[1].name() {
			return fmt.Errorf("%s against itself shows nothing; give two versions", s.sides[0].name())
		}
	}
	defer func() {
		for _, side := range s.sides {
			side.kill()
		}
	}()
	for _, side := range s.sides { // now, since it may be that one does not start
		side.heard = io.Discard
		if err := side.start(ctx, side.o.Snapshot); err != nil {
			return err
		}
		side.o.Snapshot = nil
	}
	in := newInput(o)
	defer in.close()
	if in.editor != nil {
		done := s.interruptible()
		defer done()
	}
	for {
		entry, err := in.entry()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("reading a script: %w", err)
		}
		word, argument, _ := strings.Cut(entry, " ")
		if word == ":quit" || word == ":exit" || word == ":q" {
			return nil
		}
		if err := s.do(ctx, entry, word, strings.TrimSpace(argument)); err != nil {
			return err
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
}

func (s *side) name() string { return version(s.o) }

// do does what an entry asks for. The error is one of Out.
func (s *session) do(ctx context.Context, entry, word, argument string) error {
	var b bytes.Buffer
	switch {
	case entry == "":
	case word == ":help":
		b.WriteString(help)
	case word == ":meter":
		s.meter(&b, argument)
	case word == ":save" && argument != "":
		s.each(&b, func(side *side, b *bytes.Buffer) error {
			file := argument
			if len(s.sides) > 1 {
				file += "." + filepath.Base(side.name())
			}
			size, err := side.save(ctx, file)
			if err == nil {
				fmt.Fprintf(b, "saved %s, %s bytes\n", file, thousands(size))
			}
			return err
		})
	case word == ":load" && argument != "":
		s.each(&b, func(side *side, b *bytes.Buffer) error {
			file := argument + "." + filepath.Base(side.name())
			if _, err := os.Stat(file); err != nil {
				file = argument
			}
			err := side.load(ctx, file)
			if err == nil {
				fmt.Fprintf(b, "loaded %s\n", file)
			}
			return err
		})
	case word == ":reset":
		s.each(&b, func(side *side, b *bytes.Buffer) error { return side.start(ctx, nil) })
	case entry[0] == ':':
		fmt.Fprintf(&b, "%q is no command, or lacks its file; there are\n%s", entry, help)
	default:
		s.evaluate(ctx, &b, entry)
	}
	_, err := s.out.Write(b.Bytes())
	return err
}

// each does something on both sides at once, and writes what they say, under their names if that differs.
func (s *session) each(b *bytes.Buffer, do func(*side, *bytes.Buffer) error) {
	said := make([]string, len(s.sides))
	var both sync.WaitGroup
	for i, side := range s.sides {
		both.Go(func() {
			var b bytes.Buffer
			if err := do(side, &b); err != nil {
				fmt.Fprintf(&b, "%v\n", err)
			}
			said[i] = b.String()
		})
	}
	both.Wait()
	if len(slices.Compact(slices.Clone(said))) == 1 {
		b.WriteString(said[0])
		return
	}
	for i, text := range said {
		fmt.Fprintf(b, "%s:\n%s", s.sides[i].name(), indent(text))
	}
}

func indent(text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		b.WriteString("  " + line)
	}
	return b.String()
}

var declaration = regexp.MustCompile(`^\s*(const|let)\s+([\w$\[{])`)
var class = regexp.MustCompile(`^\s*class\s+([\w$]+)`)

// evaluate evaluates a script on both sides.
func (s *session) evaluate(ctx context.Context, b *bytes.Buffer, source string) {
	// What a script declares by these is the script's own.
	source = declaration.ReplaceAllString(source, "var $2")
	source = class.ReplaceAllString(source, "var $1 = class $1")

	answers := make(map[*side]answer)
	var mu sync.Mutex
	s.each(b, func(side *side, b *bytes.Buffer) error {
		if len(s.sides) == 1 {
			side.heard = s.out // as it comes
		} else {
			side.heard = b
		}
		defer func() { side.heard = io.Discard }()
		a, err := side.evaluate(ctx, source)
		if errors.Is(err, xsnap.ErrKilled) {
			return errors.New("interrupted; the next script finds a fresh heap")
		}
		if err != nil && side.worker() == nil {
			return fmt.Errorf("%w\nthe next script finds a fresh heap", err)
		}
		if err != nil {
			return err
		}
		mu.Lock()
		answers[side] = a
		mu.Unlock()
		fmt.Fprintf(b, "%s\n", a.text)
		return nil
	})
	s.last = nil
	for _, side := range s.sides {
		s.last = append(s.last, answers[side])
	}
	if s.meters {
		s.meter(b, "")
	}
}

// interruptible has a Ctrl-C end the workers, and not this process, until done is called.
func (s *session) interruptible() (done func()) {
	c := make(chan os.Signal, 1)
	signal.Notify(c, os.Interrupt)
	var waiting sync.WaitGroup
	waiting.Go(func() {
		for range c {
			for _, side := range s.sides {
				if w := side.worker(); w != nil {
					w.Kill()
				}
			}
		}
	})
	return func() {
		signal.Stop(c)
		close(c)
		waiting.Wait()
	}
}

// meter shows the meters of the last script, or says whether to after every one.
func (s *session) meter(b *bytes.Buffer, argument string) {
	switch argument {
	case "on", "off":
		s.meters = argument == "on"
	case "":
		if s.last == nil {
			b.WriteString("nothing has been evaluated\n")
			return
		}
		said := make(map[string]bool)
		for _, a := range s.last {
			said[showMeter(a.meter)] = true
		}
		if len(said) == 1 {
			fmt.Fprintf(b, "%s\n", showMeter(s.last[0].meter))
			return
		}
		for i, a := range s.last {
			fmt.Fprintf(b, "%s:\n  %s\n", s.sides[i].name(), showMeter(a.meter))
		}
	default:
		fmt.Fprintf(b, "%q is neither on nor off\n", argument)
	}
}
