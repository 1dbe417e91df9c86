package report

import (
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/jstemmer/go-junit-report/v2/junit"

	"github.com/enginery/enginery/replay"
)

// WriteJUnit writes a report for CI: a suite for each column, a test for each span. A span that does not reach the level that passes is a failure;
// one that is damaged is an error; one that the source no longer has, or that comes after one that failed, was skipped.
func WriteJUnit(w io.Writer, r *replay.Report) error {
	var all junit.Testsuites
	all.Name = "enginery replay"
	all.Time = seconds(r.Seconds)
	for i := range r.Runs {
		suite := junit.Testsuite{Name: column(r, i), ID: i}
		suite.AddProperty("engine", r.Runs[i].Engine)
		suite.AddProperty("passes", r.Passes.String())
		for _, v := range r.Vats {
			for _, s := range v.Runs[i].Spans {
				suite.AddTestcase(testcase(v, s, r.Passes))
			}
		}
		suite.Time = seconds(r.Totals(i).Seconds)
		all.AddSuite(suite)
	}
	return all.WriteXML(w)
}

func testcase(v replay.Vat, s replay.Span, passes replay.Level) junit.Testcase {
	c := junit.Testcase{Classname: name(v.ID, v.Name), Name: fmt.Sprintf("span %d-%d of incarnation %d", s.Start, s.End, s.Incarnation), Time: seconds(s.Seconds)}
	text := xmlText(differences(s))
	switch s.Outcome {
	case replay.Unavailable, replay.Unreached:
		c.Skipped = &junit.Result{Message: string(s.Outcome) + ": " + s.Reason}
	case replay.Damaged:
		c.Error = &junit.Result{Message: s.Reason, Type: string(s.Outcome), Data: text}
	case replay.Replayed:
		if s.Level < passes {
			c.Failure = &junit.Result{Message: dimensions(s.Differences), Type: s.Level.String(), Data: text}
		}
	default:
		c.Failure = &junit.Result{Message: s.Reason, Type: string(s.Outcome), Data: text}
	}
	return c
}

func seconds(s float64) string { return strconv.FormatFloat(s, 'f', 3, 64) }

// differences writes those of a span that are listed.
func differences(s replay.Span) string {
	var b strings.Builder
	for _, d := range s.Listed {
		writeDifference(&b, d, "")
	}
	return b.String()
}

// xmlText leaves out what XML has no way to say (XML 1.0, section 2.2).
func xmlText(s string) string {
	return strings.Map(func(r rune) rune {
		if r == '\t' || r == '\n' || r >= 0x20 && r != 0xfffe && r != 0xffff {
			return r
		}
		return 0xfffd
	}, strings.ToValidUTF8(s, "\ufffd"))
}
