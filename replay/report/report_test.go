package report

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"unicode"

	"github.com/jstemmer/go-junit-report/v2/junit"
	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/enginery/enginery/replay"
)

// schema returns one of the schemas in docs.
func schema(t *testing.T, name string) (*jsonschema.Schema, map[string]any) {
	t.Helper()
	docs, err := filepath.Abs("../../docs")
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	var text map[string]any
	for _, file := range []string{"replay-report.schema.json", "replay-classification.schema.json"} {
		b, err := os.ReadFile(filepath.Join(docs, file))
		if err != nil {
			t.Fatal(err)
		}
		doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(b))
		if err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		if file == name {
			text = doc.(map[string]any)
		}
		if err := c.AddResource(doc.(map[string]any)["$id"].(string), doc); err != nil {
			t.Fatal(err)
		}
	}
	s, err := c.Compile(text["$id"].(string))
	if err != nil {
		t.Fatal(err)
	}
	return s, text
}

// What is written is as its schema says, and is read as the report that it was.
func TestJSON(t *testing.T) {
	t.Parallel()
	all := reports(t)
	s, _ := schema(t, "replay-report.schema.json")
	all.each(t, func(t *testing.T, r *replay.Report) {
		for _, r := range []*replay.Report{r, r.WithoutTimes()} {
			var b bytes.Buffer
			if err := WriteJSON(&b, r); err != nil {
				t.Fatal(err)
			}
			v, err := jsonschema.UnmarshalJSON(bytes.NewReader(b.Bytes()))
			if err != nil {
				t.Fatal(err)
			}
			if err := s.Validate(v); err != nil {
				t.Errorf("%v", err)
			}
			back := new(replay.Report)
			if err := json.Unmarshal(b.Bytes(), back); err != nil {
				t.Fatal(err)
			}
			var again bytes.Buffer
			if err := WriteJSON(&again, back); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(b.Bytes(), again.Bytes()) {
				t.Error("the report that was read is another")
			}
			v.(map[string]any)["vats"].([]any)[0].(map[string]any)["runs"].([]any)[0].(map[string]any)["level"] = "good"
			if s.Validate(v) == nil {
				t.Error("the schema takes a level that there is not")
			}
		}
	})
	s, _ = schema(t, "replay-classification.schema.json")
	var b bytes.Buffer
	if err := WriteClassification(&b, all.compared.Classification); err != nil {
		t.Fatal(err)
	}
	v, err := jsonschema.UnmarshalJSON(&b)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Validate(v); err != nil {
		t.Errorf("%v", err)
	}
}

// The schemas name every field that there is, and no other; and every word that a field can have.
func TestSchemaIsComplete(t *testing.T) {
	t.Parallel()
	_, report := schema(t, "replay-report.schema.json")
	_, classification := schema(t, "replay-classification.schema.json")
	at := func(v any, path string) any {
		for key := range strings.SplitSeq(path, ".") {
			v = v.(map[string]any)[key]
		}
		return v
	}
	for path, v := range map[string]any{
		"properties":                                   replay.Report{},
		"properties.source.properties":                 replay.Source{},
		"$defs.run.properties":                         replay.Column{},
		"$defs.vat.properties":                         replay.Vat{},
		"$defs.vatRun.properties":                      replay.VatRun{},
		"$defs.computrons.properties":                  replay.Computron{},
		"$defs.span.properties":                        replay.Span{},
		"$defs.span.properties.snapshot.properties":    replay.Snapshot{},
		"$defs.difference.properties":                  replay.Difference{},
		"$defs.difference.properties.meter.properties": replay.Meter{},
		"$defs.series.properties":                      replay.Series{},
	} {
		compareFields(t, at(report, path), v)
	}
	compareFields(t, at(classification, "properties"), replay.Classification{})
	compareFields(t, at(classification, "properties.vats.items.properties"), replay.Classified{})
	compareFields(t, at(classification, "properties.vats.items.properties.ways.items.properties"), replay.Way{})

	for _, test := range []struct {
		enum any
		want []string
	}{
		{at(report, "$defs.level.enum"), replay.Levels},
		{at(report, "$defs.dimension.enum"), strs(replay.Dimensions)},
		{at(report, "$defs.outcome.enum"), strs(replay.Outcomes)},
		{at(classification, "properties.vats.items.properties.class.enum"), strs([]replay.Class{replay.Resume, replay.Upgrade, replay.Stay})},
		{at(classification, "properties.vats.items.properties.ways.items.properties.way.enum"), []string{replay.WaySnapshot, replay.WayMigration, replay.WayIncarnation}},
	} {
		if got := strs(test.enum.([]any)); !slices.Equal(got, test.want) {
			t.Errorf("the schema has %v, there are %v", got, test.want)
		}
	}
	if report["properties"].(map[string]any)["schema"].(map[string]any)["const"] != replay.Schema {
		t.Error("the schema is of another version")
	}
}

func strs[T any](list []T) []string {
	var all []string
	for _, v := range list {
		all = append(all, fmt.Sprint(v))
	}
	return all
}

func compareFields(t *testing.T, properties, v any) {
	t.Helper()
	var want, got []string
	for _, f := range reflect.VisibleFields(reflect.TypeOf(v)) {
		if !f.Anonymous {
			name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
			want = append(want, name)
		}
	}
	for name := range properties.(map[string]any) {
		got = append(got, name)
	}
	slices.Sort(want)
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("%T: the schema has %v, there are %v", v, got, want)
	}
}

func TestJUnit(t *testing.T) {
	t.Parallel()
	reports(t).each(t, func(t *testing.T, r *replay.Report) {
		var b bytes.Buffer
		if err := WriteJUnit(&b, r); err != nil {
			t.Fatal(err)
		}
		var got junit.Testsuites
		if err := xml.Unmarshal(b.Bytes(), &got); err != nil {
			t.Fatal(err)
		}
		var tests, failures, errors, skipped int
		for i := range r.Runs {
			for _, v := range r.Vats {
				for _, s := range v.Runs[i].Spans {
					tests++
					switch {
					case s.Outcome == replay.Damaged:
						errors++
					case s.Outcome == replay.Unavailable || s.Outcome == replay.Unreached:
						skipped++
					case s.Outcome != replay.Replayed || s.Level < r.Passes:
						failures++
					}
				}
			}
		}
		if got.Tests != tests || got.Failures != failures || got.Errors != errors || got.Skipped != skipped || len(got.Suites) != len(r.Runs) {
			t.Errorf("%d tests, %d failures, %d errors, %d skipped; expected %d, %d, %d, %d", got.Tests, got.Failures, got.Errors, got.Skipped, tests, failures, errors, skipped)
		}
		if r == real.planted {
			if failures < 2 || errors != 1 || skipped != 1 {
				t.Errorf("%d failures, %d errors, %d skipped", failures, errors, skipped)
			}
			contains(t, b.String(), "wrong syscall vatstoreSet at item 7, syscall 11", `#\"+7\"`, "vatstoreDelete", "is damaged")
		}
	})
}

func TestText(t *testing.T) {
	t.Parallel()
	text := func(r *replay.Report) string {
		var b bytes.Buffer
		if err := WriteText(&b, r); err != nil {
			t.Fatal(err)
		}
		if i := strings.IndexFunc(b.String(), func(r rune) bool { return r != '\n' && !unicode.IsPrint(r) }); i >= 0 {
			t.Errorf("what is printed has %q", b.String()[i:i+8])
		}
		return b.String()
	}
	all := reports(t)
	contains(t, text(all.same), "v5   ledger", "identical", "\nSame. agoric-upgrade-22 does in every span of 3 vats what was recorded")
	contains(t, text(all.planted), "divergent", "v5 ledger on agoric-upgrade-22: 1 wrong syscall, 1 computron count, 1 heap snapshot",
		"wrong syscall vatstoreSet at item 7, syscall 11 of v5, message open to o+0", `-     "balance": {"body": "#\"+7\"", "slots": []}`,
		"enginery replay reproduce "+filepath.Join(all.reproducers, "v5-7-wrong-syscall-agoric-upgrade-22-snapshots.sqlite"), `\u202e\u001b[31m`, "damaged", "unavailable",
		"\nDifferent. agoric-upgrade-22 does something else")
	contains(t, text(all.compared), "v5  ledger", all.compared.Classification.Vats[0].Reason)
}

func TestVerdict(t *testing.T) {
	t.Parallel()
	all := reports(t)
	for name, test := range map[string]struct {
		change func(r *replay.Report)
		of     *replay.Report
		want   Verdict
	}{
		"same":            {nil, all.same, Verdict{Passed: true, Whole: true, Word: "Same", Class: "good"}},
		"different":       {nil, all.planted, Verdict{Word: "Different", Class: "bad"}},
		"damaged":         {keepDamaged, all.planted, Verdict{Word: "Damaged", Class: "bad"}},
		"stopped at once": {stopped, all.planted, Verdict{Word: "Different", Class: "bad"}},
		"only a meter":    {keep(t, 5, 32, replay.Computrons), all.planted, Verdict{Passed: true, Whole: true, Word: "Same enough", Class: "fair"}},
		"pruned":          {func(r *replay.Report) { r.Vats = r.Vats[2:] }, all.planted, Verdict{Passed: true, Word: "Same, as far as it goes", Class: "fair"}},
		"no vats":         {func(r *replay.Report) { r.Vats = nil }, all.same, Verdict{Whole: true, Word: "Nothing replayed", Class: "bad"}},
		"must stay":       {func(r *replay.Report) { r.Classification.Vats[0].Class = replay.Stay }, all.compared, Verdict{Whole: true, Word: "Not all can move", Class: "bad"}},
		"can resume":      {func(r *replay.Report) { r.Classification.Vats[0].Class = replay.Resume }, all.compared, Verdict{Passed: true, Whole: true, Word: "All can go on", Class: "good"}},
		"can be upgraded": {func(r *replay.Report) { r.Classification.Vats[0].Class = replay.Upgrade }, all.compared, Verdict{Passed: true, Whole: true, Word: "All can move", Class: "fair"}},
	} {
		t.Run(name, func(t *testing.T) {
			b, err := json.Marshal(test.of)
			if err != nil {
				t.Fatal(err)
			}
			r := new(replay.Report)
			if err := json.Unmarshal(b, r); err != nil {
				t.Fatal(err)
			}
			if test.change != nil {
				test.change(r)
			}
			got := VerdictOf(r)
			if got.Sentence == "" || strings.Contains(got.Sentence, ": .") {
				t.Errorf("the sentence is %q", got.Sentence)
			}
			got.Sentence = ""
			if got != test.want {
				t.Errorf("%+v, expected %+v", got, test.want)
			}
		})
	}
}

// keepDamaged leaves of a report the span of v6 that is damaged, with a difference that follows from it.
func keepDamaged(r *replay.Report) {
	r.Vats = r.Vats[1:2]
	run := &r.Vats[0].Runs[0]
	run.Spans = slices.DeleteFunc(run.Spans, func(s replay.Span) bool { return s.Outcome != replay.Damaged })
	run.Spans[0].Differences = map[replay.Dimension]int64{replay.WrongSyscall: 1}
}

// stopped leaves of a report a span whose worker ended.
func stopped(r *replay.Report) {
	r.Vats = r.Vats[:1]
	run := &r.Vats[0].Runs[0]
	run.Spans = run.Spans[:1]
	s := &run.Spans[0]
	s.Outcome, s.Level, s.Differences = replay.Stopped, replay.Divergent, map[replay.Dimension]int64{replay.WorkerExit: 1}
}

// keep leaves of a report the span of v5 between two positions, with differences of one dimension.
func keep(t *testing.T, start, end int64, d replay.Dimension) func(r *replay.Report) {
	return func(r *replay.Report) {
		r.Vats = r.Vats[:1]
		run := &r.Vats[0].Runs[0]
		run.Spans = slices.DeleteFunc(run.Spans, func(s replay.Span) bool { return s.Start != start || s.End != end })
		if len(run.Spans) != 1 || run.Spans[0].Differences[d] != 1 {
			t.Fatalf("spans %+v", run.Spans)
		}
		run.Spans[0].Level, run.Spans[0].Differences = d.Level(), map[replay.Dimension]int64{d: 1}
	}
}
