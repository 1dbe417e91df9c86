package report

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/rogpeppe/go-internal/diff"

	"github.com/enginery/enginery/internal/printable"
	"github.com/enginery/enginery/replay"
)

// diffLine is a line of a diff. What it has in common with the line of the other side that stands in its place is before and after Marked.
type diffLine struct {
	Op                    string // "-", "+", or " " for a line that both have
	Before, Marked, After string
}

// diffOf compares what was expected and what there was, as people read it: JSON over as many lines as it needs, also that inside strings.
func diffOf(d replay.Difference) []diffLine {
	a, b := readable(d.Expected), readable(d.Got)
	if a == b { // they differ in what readable does not show
		a, b = printable.Text(d.Expected), printable.Text(d.Got)
	}
	if a == "" || b == "" {
		return append(all("-", a), all("+", b)...)
	}
	text := diff.Diff("expected", []byte(a+"\n"), "got", []byte(b+"\n"))
	var lines []diffLine
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSuffix(line, "\n")
		switch {
		case strings.HasPrefix(line, "diff ") || strings.HasPrefix(line, "--- expected") || strings.HasPrefix(line, "+++ got"):
		case strings.HasPrefix(line, "@@"):
			if lines != nil {
				lines = append(lines, diffLine{Op: " ", Before: "…"})
			}
		case line != "":
			lines = append(lines, diffLine{Op: line[:1], Marked: line[1:]})
		}
	}
	mark(lines)
	return lines
}

func all(op, text string) []diffLine {
	if text == "" {
		return nil
	}
	var lines []diffLine
	for line := range strings.Lines(text) {
		lines = append(lines, diffLine{Op: op, Before: strings.TrimSuffix(line, "\n")})
	}
	return lines
}

// mark finds what differs within lines that stand for each other: as many of one side as of the other, one after the other.
func mark(lines []diffLine) {
	for i := 0; i < len(lines); {
		minus := run(lines[i:], "-")
		plus := run(lines[i+minus:], "+")
		if minus == plus {
			for j := range minus {
				markPair(&lines[i+j], &lines[i+minus+j])
			}
		} else {
			for j := range minus + plus {
				lines[i+j].Before, lines[i+j].Marked = lines[i+j].Marked, ""
			}
		}
		i += minus + plus
		for i < len(lines) && lines[i].Op == " " {
			if lines[i].Marked != "" {
				lines[i].Before, lines[i].Marked = lines[i].Marked, ""
			}
			i++
		}
	}
}

func run(lines []diffLine, op string) int {
	n := 0
	for n < len(lines) && lines[n].Op == op {
		n++
	}
	return n
}

func markPair(a, b *diffLine) {
	x, y := a.Marked, b.Marked
	p := 0
	for p < len(x) && p < len(y) && x[p] == y[p] {
		p++
	}
	for p > 0 && (p < len(x) && !utf8.RuneStart(x[p]) || p < len(y) && !utf8.RuneStart(y[p])) {
		p--
	}
	s := 0
	for s < len(x)-p && s < len(y)-p && x[len(x)-1-s] == y[len(y)-1-s] {
		s++
	}
	for s > 0 && !utf8.RuneStart(x[len(x)-s]) {
		s--
	}
	a.Before, a.Marked, a.After = x[:p], x[p:len(x)-s], x[len(x)-s:]
	b.Before, b.Marked, b.After = y[:p], y[p:len(y)-s], y[len(y)-s:]
}

// readable sets JSON out for people. Anything else stays as it is.
func readable(text string) string {
	if s, ok := unfold(text, "", maxDepth); ok {
		return s
	}
	return printable.Text(text)
}

const (
	shortLine = 72 // bytes that an array or object may have to stand in one line
	maxDepth  = 40 // arrays and objects within each other; deeper ones are not set out
)

// unfold writes a value in JSON over as many lines as it needs, in its own order and its own words: numbers are not read. Strings that are JSON
// objects or arrays themselves, as liveslots keeps them, are unfolded too; so is a body of CapData after its "#".
func unfold(text, indent string, depth int) (string, bool) {
	d := json.NewDecoder(strings.NewReader(text))
	d.UseNumber()
	s, ok := value(d, indent, depth)
	return s, ok && !d.More()
}

func value(d *json.Decoder, indent string, depth int) (string, bool) {
	token, err := d.Token()
	if err != nil || depth == 0 {
		return "", false
	}
	switch t := token.(type) {
	case json.Delim:
		return list(d, t, indent, depth)
	case string:
		inner, body := strings.CutPrefix(t, "#")
		if strings.HasPrefix(inner, "{") || strings.HasPrefix(inner, "[") {
			if nested, ok := unfold(inner, indent, depth-1); ok && body {
				return "json # " + nested, true
			} else if ok {
				return "json " + nested, true
			}
		}
		return quote(t), true
	case nil:
		return "null", true
	}
	return fmt.Sprint(token), true
}

// list writes an array or object, whose first token has been read.
func list(d *json.Decoder, open json.Delim, indent string, depth int) (string, bool) {
	closing := map[json.Delim]string{'[': "]", '{': "}"}[open]
	if closing == "" {
		return "", false
	}
	var items []string
	length := 2
	for d.More() {
		key := ""
		if open == '{' {
			token, err := d.Token()
			if err != nil {
				return "", false
			}
			key = quote(fmt.Sprint(token)) + ": "
		}
		item, ok := value(d, indent+"  ", depth-1)
		if !ok {
			return "", false
		}
		items = append(items, key+item)
		length += len(key) + len(item) + 2
	}
	if _, err := d.Token(); err != nil {
		return "", false
	}
	if one := open.String() + strings.Join(items, ", ") + closing; length <= shortLine && !strings.Contains(one, "\n") {
		return one, true
	}
	inner := "\n" + indent + "  "
	return open.String() + inner + strings.Join(items, ","+inner) + "\n" + indent + closing, true
}

// quote writes a string as JSON does.
func quote(s string) string {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if e.Encode(s) != nil {
		return s
	}
	return printable.Text(strings.TrimSuffix(b.String(), "\n"))
}
