package report

import (
	"cmp"
	"encoding/json"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/dustin/go-humanize/english"

	"github.com/enginery/enginery/internal/printable"
	"github.com/enginery/enginery/replay"
)

// count writes a number with its noun.
func count[N int | int64](n N, noun string) string { return english.Plural(int(n), noun, "") }

// size writes a number of bytes, and a dash if it is not known.
func size(n int64) string {
	if n == 0 {
		return "–"
	}
	return humanize.IBytes(uint64(n))
}

// duration writes seconds.
func duration(seconds float64) string {
	switch {
	case seconds == 0:
		return "–"
	case seconds < 1:
		return strconv.FormatFloat(seconds*1000, 'f', 0, 64) + " ms"
	case seconds < 100:
		return strconv.FormatFloat(seconds, 'f', 1, 64) + " s"
	}
	return time.Duration(seconds * float64(time.Second)).Round(time.Second).String()
}

// ratio writes how much got is of expected, to as many digits as tell it from 1.
func ratio(got, expected int64) string {
	if expected == 0 {
		return "–"
	}
	r := float64(got) / float64(expected)
	if got == expected {
		return "1"
	}
	digits := 3
	if off := math.Abs(r - 1); off > 0 && off < 1e-3 {
		digits = min(9, int(math.Ceil(-math.Log10(off)))+1)
	}
	return strconv.FormatFloat(r, 'f', digits, 64)
}

// changed writes the way from a number to another.
func changed(from, to int64) string {
	if from == 0 {
		return ""
	}
	sign, n := "+", to-from
	if n < 0 {
		sign, n = "−", -n
	}
	return fmt.Sprintf("%s%s, %s%.3g %%", sign, humanize.Comma(n), sign, 100*float64(n)/float64(from))
}

// nouns are what differences are counted as, where that is not the dimension's name.
var nouns = map[replay.Dimension]string{replay.Computrons: "computron count", replay.Structure: "structural fault"}

// dimensions lists what differs.
func dimensions(differences map[replay.Dimension]int64) string {
	var list []string
	for _, d := range replay.Dimensions {
		if n := differences[d]; n > 0 {
			list = append(list, count(n, cmp.Or(nouns[d], words(string(d)))))
		}
	}
	return strings.Join(list, ", ")
}

// rest lists the spans that were not replayed to their end.
func rest(t replay.Totals) string {
	var list []string
	for _, o := range replay.Outcomes {
		if n := t.Count[o]; n > 0 && o != replay.Replayed {
			list = append(list, humanize.Comma(int64(n))+" "+string(o))
		}
	}
	return strings.Join(list, ", ")
}

func spans(t replay.Totals) (n int) {
	for _, c := range t.Count {
		n += c
	}
	return n
}

// verdict is a word for what came of spans, and how good that is: "good", "fair", "bad", or "none" where there is nothing to say.
func verdict(t replay.Totals, passes replay.Level) (word, class string) {
	switch {
	case spans(t) == 0:
		return "no spans", "none"
	case t.Count[replay.Damaged] > 0:
		return "damaged", "bad"
	case t.Count[replay.Stopped] > 0:
		return replay.Divergent.String(), "bad"
	case t.Count[replay.Replayed] == 0 && t.Count[replay.Refused] > 0:
		return "refused", "bad"
	case t.Count[replay.Replayed] == 0:
		return "not replayed", "none"
	case t.Level >= passes && t.Count[replay.Refused]+t.Count[replay.Unreached] == 0:
		if t.Level == replay.Identical {
			return t.Level.String(), "good"
		}
		return t.Level.String(), "fair"
	}
	return t.Level.String(), "bad"
}

// name writes a vat's ID and name.
func name(id, name string) string { return printable.Text(strings.TrimSpace(id + " " + name)) }

// column is a run's heading.
func column(r *replay.Report, i int) string {
	run := r.Runs[i]
	heading := run.Name()
	for j, other := range r.Runs {
		if j != i && other.Version == run.Version {
			return heading + " from " + string(run.Start)
		}
	}
	return heading
}

// describe says what a delivery is, in a few words.
func describe(delivery string) string {
	var list []json.RawMessage
	if json.Unmarshal([]byte(delivery), &list) != nil || len(list) == 0 {
		kind, _, _ := strings.Cut(strings.TrimPrefix(delivery, `["`), `"`)
		return kind
	}
	var kind, target string
	json.Unmarshal(list[0], &kind)
	if kind != "message" || len(list) != 3 || json.Unmarshal(list[1], &target) != nil {
		return kind
	}
	var message struct {
		Methargs struct {
			Body string `json:"body"`
		} `json:"methargs"`
	}
	var methargs []json.RawMessage
	var method string
	if json.Unmarshal(list[2], &message) != nil || json.Unmarshal([]byte(strings.TrimPrefix(message.Methargs.Body, "#")), &methargs) != nil || len(methargs) == 0 {
		return kind + " to " + target
	}
	if json.Unmarshal(methargs[0], &method) != nil {
		method = string(methargs[0])
	}
	return fmt.Sprintf("%s %s to %s", kind, method, target)
}

// what says in what respect something differs, and of which kind a syscall is.
func what(d replay.Difference) string {
	s := words(string(d.Dimension))
	if strings.HasSuffix(string(d.Dimension), "-syscall") {
		kind, _, ok := strings.Cut(strings.TrimPrefix(cmp.Or(d.Expected, d.Got), `["`), `"`)
		if ok {
			s += " " + printable.Text(kind)
		}
	}
	return s
}

// place says where a difference is.
func place(d replay.Difference) string {
	if strings.HasSuffix(string(d.Dimension), "-syscall") {
		return fmt.Sprintf("item %d, syscall %d", d.Position, d.Syscall)
	}
	return fmt.Sprintf("item %d", d.Position)
}

// words writes a name of several words as they are read.
func words(s string) string { return strings.ReplaceAll(s, "-", " ") }
