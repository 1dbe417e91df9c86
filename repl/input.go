package repl

import (
	"bufio"
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/renameio/v2"
	"github.com/peterh/liner"
	"golang.org/x/term"
)

// input is where scripts come from.
type input struct {
	editor  *liner.State // nil: lines are read as they are
	history string
	lines   *bufio.Reader
}

func newInput(o Options) *input {
	if o.In != io.Reader(os.Stdin) || !term.IsTerminal(int(os.Stdin.Fd())) {
		return &input{lines: bufio.NewReader(o.In)}
	}
	in := &input{editor: liner.NewLiner(), history: o.History}
	in.editor.SetCtrlCAborts(true)
	if f, err := os.Open(in.history); err == nil {
		in.editor.ReadHistory(f)
		f.Close()
	}
	return in
}

// close gives the terminal back, and keeps the history if it can.
func (in *input) close() {
	if in.editor == nil {
		return
	}
	defer in.editor.Close()
	if in.history == "" || os.MkdirAll(filepath.Dir(in.history), 0o700) != nil {
		return
	}
	var b bytes.Buffer
	if _, err := in.editor.WriteHistory(&b); err == nil {
		renameio.WriteFile(in.history, b.Bytes(), 0o600)
	}
}

// line reads a line. Its error is io.EOF only if there is none.
func (in *input) line(prompt string) (string, error) {
	if in.editor != nil {
		return in.editor.Prompt(prompt)
	}
	line, err := in.lines.ReadString('\n')
	if line != "" && err == io.EOF {
		err = nil
	}
	return strings.TrimRight(line, "\r\n"), err
}

// entry reads a script, which may have many lines, or a command. An empty one asks for nothing. At a terminal an empty line ends a script whose
// brackets do not close, and Ctrl-C takes it back.
func (in *input) entry() (string, error) {
	entry, err := in.line("> ")
	for err == nil && !strings.HasPrefix(entry, ":") && open(entry) {
		var line string
		line, err = in.line("… ")
		if err == io.EOF || err == nil && line == "" && in.editor != nil {
			err = nil
			break
		}
		entry += "\n" + line
	}
	if err == liner.ErrPromptAborted {
		return "", nil
	}
	entry = strings.TrimSpace(entry)
	if err == nil && entry != "" && in.editor != nil {
		in.editor.AppendHistory(strings.ReplaceAll(entry, "\n", " "))
	}
	return entry, err
}

// open reports whether a script has an open bracket, template or comment at its end.
func open(source string) bool {
	var closers []byte // that are to come
	last := byte(';')  // character that is no space
	const quote = '`'  // as a closer: within a template
	inTemplate := func() bool { return len(closers) > 0 && closers[len(closers)-1] == quote }
	pop := func() { closers = closers[:len(closers)-1] }
	for i := 0; i < len(source); i++ {
		c := source[i]
		rest := source[i:]
		switch {
		case inTemplate():
			switch {
			case c == '\\':
				i++
			case c == quote:
				pop()
			case strings.HasPrefix(rest, "${"):
				closers = append(closers, '}')
				i++
			}
		case strings.HasPrefix(rest, "//"):
			i += strings.IndexByte(rest+"\n", '\n')
			continue
		case strings.HasPrefix(rest, "/*"):
			n := strings.Index(rest[2:], "*/")
			if n < 0 {
				return true
			}
			i += n + 3
			continue
		case c == '/' && strings.IndexByte("(,=:[!&|?{};+-*%<>~^", last) >= 0:
			i += regexpLength(rest) - 1
		case c == '"' || c == '\'':
			for i++; i < len(source) && source[i] != c && source[i] != '\n'; i++ {
				if source[i] == '\\' {
					i++
				}
			}
		case c == quote:
			closers = append(closers, quote)
		case c == '(':
			closers = append(closers, ')')
		case c == '[':
			closers = append(closers, ']')
		case c == '{':
			closers = append(closers, '}')
		case c == ')' || c == ']' || c == '}':
			if len(closers) == 0 || closers[len(closers)-1] != c {
				return false // it cannot become a script any more
			}
			pop()
		}
		if c != ' ' && c != '\t' && c != '\n' {
			last = c
		}
	}
	return len(closers) > 0
}

// regexpLength returns the length of the regular expression that source begins with, without flags.
func regexpLength(source string) int {
	class := false
	for i := 1; i < len(source); i++ {
		switch c := source[i]; {
		case c == '\\':
			i++
		case c == '\n':
			return i
		case c == '[':
			class = true
		case c == ']':
			class = false
		case c == '/' && !class:
			return i + 1
		}
	}
	return len(source)
}
