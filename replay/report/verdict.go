package report

import (
	"fmt"
	"strings"

	"github.com/enginery/enginery/replay"
)

// Verdict is what a report comes to.
type Verdict struct {
	Passed   bool   // every vat reached the level that passes; of a comparison: every vat has a way to the new version
	Whole    bool   // everything was replayed, so nothing more can come out
	Word     string // e.g. "Same"
	Class    string // "good", "fair" or "bad"
	Sentence string
}

// VerdictOf says what a report comes to.
func VerdictOf(r *replay.Report) Verdict {
	if r.Classification != nil {
		return compared(r)
	}
	v := Verdict{Passed: len(r.Runs) > 0, Whole: true}
	level := replay.Identical
	var all replay.Totals
	for i := range r.Runs {
		t := r.Totals(i)
		v.Passed = v.Passed && r.Passed(i)
		v.Whole = v.Whole && t.Whole()
		level = min(level, t.Level)
		all = t
	}
	version := "the version"
	if len(r.Runs) > 0 {
		version = r.Runs[len(r.Runs)-1].Name()
	}
	differs, differences := differing(r)
	every := fmt.Sprintf("every span of %s", count(len(r.Vats), "vat"))
	switch {
	case v.Passed && level == replay.Identical:
		v.Word, v.Class = "Same", "good"
		v.Sentence = fmt.Sprintf("%s does in %s what was recorded, to the last computron and byte of heap.", version, every)
	case v.Passed:
		v.Word, v.Class = "Same enough", "fair"
		v.Sentence = fmt.Sprintf("%s reaches %s in %s; %s passes.", version, level, every, r.Passes)
	case all.Count[replay.Damaged] > 0 && !differs:
		v.Word, v.Class = "Damaged", "bad"
		v.Sentence = fmt.Sprintf("The source is not what it says it is, so this is no verdict on %s.", version)
	case all.Count[replay.Replayed] == 0 && !differs:
		v.Word, v.Class = "Nothing replayed", "bad"
		v.Sentence = fmt.Sprintf("No span was replayed, so this says nothing of %s.", version)
	default:
		v.Word, v.Class = "Different", "bad"
		v.Sentence = fmt.Sprintf("%s does something else than was recorded: %s.", version, orNone(dimensions(differences)))
	}
	if !v.Whole {
		v.Sentence += " Not everything was replayed: " + rest(all) + "."
		if v.Class == "good" {
			v.Word, v.Class = "Same, as far as it goes", "fair"
			v.Sentence = strings.Replace(v.Sentence, every, "every span that was replayed", 1)
		}
	}
	return v
}

// differing sums up what differs below the level that passes or above it, and reports whether something is below it. What differs in a span that is
// damaged says nothing of a version.
func differing(r *replay.Report) (below bool, differences map[replay.Dimension]int64) {
	differences = make(map[replay.Dimension]int64)
	for _, v := range r.Vats {
		for _, run := range v.Runs {
			for _, s := range run.Spans {
				switch s.Outcome {
				case replay.Damaged, replay.Unavailable, replay.Unreached:
					continue
				}
				below = below || s.Level < r.Passes
				for d, n := range s.Differences {
					differences[d] += n
				}
			}
		}
	}
	return below, differences
}

func orNone(s string) string {
	if s == "" {
		return "a span could not be replayed to its end"
	}
	return s
}

func compared(r *replay.Report) Verdict {
	c := r.Classification
	v := Verdict{Passed: true, Whole: true}
	n := make(map[replay.Class]int)
	for _, vat := range c.Vats {
		n[vat.Class]++
	}
	for i := range r.Runs {
		t := r.Totals(i)
		v.Whole = v.Whole && t.Count[replay.Unavailable]+t.Count[replay.Damaged] == 0
	}
	switch {
	case n[replay.Stay] > 0:
		v.Word, v.Class, v.Passed = "Not all can move", "bad", false
	case n[replay.Upgrade] > 0:
		v.Word, v.Class = "All can move", "fair"
	default:
		v.Word, v.Class = "All can go on", "good"
	}
	v.Sentence = fmt.Sprintf("From %s to %s: of %s, %d can resume, %d must be upgraded, %d must stay.",
		c.From, c.To, count(len(c.Vats), "vat"), n[replay.Resume], n[replay.Upgrade], n[replay.Stay])
	return v
}
