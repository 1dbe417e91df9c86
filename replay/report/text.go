package report

import (
	"bufio"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/dustin/go-humanize"

	"github.com/enginery/enginery/internal/printable"
	"github.com/enginery/enginery/replay"
)

// WriteText writes a report for a terminal: the verdict, the matrix, and the first differences of each vat.
func WriteText(w io.Writer, r *replay.Report) error {
	b := bufio.NewWriter(w)
	t := tabwriter.NewWriter(b, 0, 0, 2, ' ', 0)
	fmt.Fprint(t, "VAT\tNAME")
	for i := range r.Runs {
		fmt.Fprintf(t, "\t%s\tCOMPUTRONS\tTIME", strings.ToUpper(column(r, i)))
	}
	fmt.Fprintln(t)
	for _, v := range r.Vats {
		fmt.Fprintf(t, "%s\t%s", v.ID, printable.Text(v.Name))
		for _, run := range v.Runs {
			word, _ := verdict(run.Totals, r.Passes)
			if rest := rest(run.Totals); rest != "" {
				word += " (" + rest + ")"
			}
			fmt.Fprintf(t, "\t%s\t%s\t%s", word, ratio(run.Computrons.Got, run.Computrons.Expected), duration(run.Seconds))
		}
		fmt.Fprintln(t)
	}
	t.Flush()
	for _, v := range r.Vats {
		var on []string // columns in which the same differs
		for i, run := range v.Runs {
			on = append(on, column(r, i))
			text := differencesOf(run)
			if i+1 < len(v.Runs) && text == differencesOf(v.Runs[i+1]) {
				continue
			}
			if text != "" {
				fmt.Fprintf(b, "\n%s on %s: %s", name(v.ID, v.Name), strings.Join(on, ", "), text)
			}
			on = nil
		}
	}
	if c := r.Classification; c != nil {
		fmt.Fprintln(b)
		t = tabwriter.NewWriter(b, 0, 0, 2, ' ', 0)
		for _, v := range c.Vats {
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", v.Vat, printable.Text(v.Name), map[replay.Class]string{
				replay.Resume: "can resume", replay.Upgrade: "must be upgraded", replay.Stay: "stays",
			}[v.Class], printable.Text(v.Reason))
		}
		t.Flush()
	}
	v := VerdictOf(r)
	fmt.Fprintf(b, "\n%s. %s\n", v.Word, printable.Text(v.Sentence))
	return b.Flush()
}

// shownText is how many differences, and reasons why a span was not replayed, are shown of a vat.
const shownText = 3

// differencesOf writes what differs of a vat in a column, or nothing.
func differencesOf(run replay.VatRun) string {
	what := dimensions(run.Differences)
	if what == "" {
		if what = rest(run.Totals); what == "" {
			return ""
		}
	}
	var b strings.Builder
	fmt.Fprintln(&b, what)
	shown, reasons := 0, 0
	for _, s := range run.Spans {
		if s.Reason != "" {
			if reasons++; reasons <= shownText {
				fmt.Fprintf(&b, "  span %d %s: %s\n", s.Start, s.Outcome, printable.Text(s.Reason))
			}
		}
		for _, d := range s.Listed {
			if shown++; shown <= shownText {
				writeDifference(&b, d, "  ")
			}
		}
	}
	if more := max(0, shown-shownText) + max(0, reasons-shownText); more > 0 {
		fmt.Fprintf(&b, "  and %s more; --report writes a page with them\n", humanize.Comma(int64(more)))
	}
	return b.String()
}

// writeDifference writes a difference and its diff.
func writeDifference(b *strings.Builder, d replay.Difference, indent string) {
	fmt.Fprintf(b, "%s%s at %s of %s, %s\n", indent, what(d), place(d), d.Vat, printable.Text(describe(d.Delivery)))
	for _, line := range diffOf(d) {
		fmt.Fprintf(b, "%s  %s %s\n", indent, line.Op, printable.Text(line.Before+line.Marked+line.After))
	}
	if d.Reproducer != "" {
		fmt.Fprintf(b, "%s  enginery replay reproduce %s\n", indent, d.Reproducer)
	}
}

// WriteReproduction writes what came of a reproducer on a version for a terminal.
func WriteReproduction(w io.Writer, r *replay.Reproduction, version string) error {
	var b strings.Builder
	fmt.Fprintf(&b, "Found on %s:\n", r.Column.Name())
	writeDifference(&b, r.Difference, "  ")
	switch {
	case r.Reproduced:
		fmt.Fprintln(&b, "\nReproduced: "+version+" makes the same difference.")
	case len(r.Found) == 0:
		fmt.Fprintln(&b, "\nNot reproduced: "+version+" does what was recorded.")
	default:
		fmt.Fprintf(&b, "\nNot reproduced. %s makes other differences:\n", version)
		for _, d := range r.Found[:min(len(r.Found), shownText)] {
			writeDifference(&b, d, "  ")
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}
