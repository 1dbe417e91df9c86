package upgrade_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/enginery/enginery/upgrade"
	"github.com/google/go-cmp/cmp"
)

// section returns what is between two texts of docs/upgrade.md.
func section(t *testing.T, from, to string) string {
	t.Helper()
	text, err := os.ReadFile("../docs/upgrade.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(text), from)
	part, _, ok2 := strings.Cut(rest, to)
	if !ok || !ok2 {
		t.Fatalf("docs/upgrade.md has no %q … %q", from, to)
	}
	return part
}

func drawing[S ~string](first string, starts []S, all []upgrade.Transition[S], ends ...S) string {
	b := new(strings.Builder)
	for _, s := range starts {
		fmt.Fprintf(b, "    [*] --> %s: %s\n", s, first)
	}
	for _, t := range all {
		fmt.Fprintf(b, "    %s --> %s: %s\n", t.From, t.To, t.By)
	}
	for _, s := range ends {
		fmt.Fprintf(b, "    %s --> [*]\n", s)
	}
	return b.String()
}

// The pictures and the table of rules are what the code says.
func TestDocs(t *testing.T) {
	t.Parallel()
	const fence = "```mermaid\nstateDiagram-v2\n"
	vats := drawing("vat-added", []upgrade.State{upgrade.Active}, upgrade.Transitions, upgrade.Terminated)
	if d := cmp.Diff(vats, section(t, "## States of a vat\n\n"+fence, "```\n")); d != "" {
		t.Errorf("the states of a vat (-code +docs); the code has\n%s\n%s", vats, d)
	}
	rollouts := drawing("rollout-started", []upgrade.RolloutState{upgrade.Running, upgrade.Paused}, upgrade.RolloutTransitions, upgrade.Done, upgrade.Aborted)
	if d := cmp.Diff(rollouts, section(t, "depend on, then by priority, then the surest first, then by number.\n\n"+fence, "```\n")); d != "" {
		t.Errorf("the states of a rollout (-code +docs); the code has\n%s\n%s", rollouts, d)
	}
	b := new(strings.Builder)
	for _, r := range upgrade.Rules {
		fmt.Fprintf(b, "| `%s` | %s | %s | %s | %s |\n", r.Kind, r.Waiting, r.Suspended, r.Terminated, map[bool]string{true: "yes", false: "no"}[r.Limited])
	}
	if d := cmp.Diff(b.String(), section(t, "| limited |\n|---|---|---|---|---|\n", "\n\n")+"\n"); d != "" {
		t.Errorf("the rules (-code +docs); the code has\n%s\n%s", b, d)
	}
}

// randomEvents are the events of random runs.
func randomEvents(t *testing.T) (runs [][]upgrade.Event) {
	t.Helper()
	nothing := func() error { return nil }
	for seed := range uint64(150) {
		s, ops := drawOps(atRandom(seed))
		store := upgrade.NewMemory()
		r, err := runOps(s, ops, func() upgrade.Store { return store }, nothing, nothing, func() int { return 0 })
		if err != nil {
			t.Fatal(err)
		}
		runs = append(runs, r.events)
	}
	return runs
}

// The table of events names the fields that events have.
func TestEventsInDocs(t *testing.T) {
	t.Parallel()
	want := map[upgrade.EventType]map[string]bool{}
	for _, run := range randomEvents(t) {
		for _, e := range run {
			line, err := json.Marshal(e)
			if err != nil {
				t.Fatal(err)
			}
			var fields map[string]json.RawMessage
			if err := json.Unmarshal(line, &fields); err != nil {
				t.Fatal(err)
			}
			if want[e.Type] == nil {
				want[e.Type] = map[string]bool{}
			}
			for f := range fields {
				if f != "seq" && f != "height" && f != "type" {
					want[e.Type][f] = true
				}
			}
		}
	}
	got := map[upgrade.EventType]map[string]bool{}
	for line := range strings.Lines(section(t, "| type | fields | |\n|---|---|---|\n", "\n\n")) {
		cells := strings.Split(line, "|")
		fields := map[string]bool{}
		for _, f := range strings.Fields(cells[2]) {
			fields[f] = true
		}
		got[upgrade.EventType(strings.Trim(cells[1], " `"))] = fields
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("fields of events (-code +docs):\n%s", d)
	}
	if types := slices.Sorted(maps.Keys(got)); len(types) != len(upgrade.EventTypes) {
		t.Errorf("docs/upgrade.md has %d types of events, the code %d", len(types), len(upgrade.EventTypes))
	}
}

// All transitions in the table happen.
func TestTransitions(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	seen := map[upgrade.Transition[upgrade.State]]int{}
	rollouts := map[upgrade.Transition[upgrade.RolloutState]]int{}
	for _, run := range randomEvents(t) {
		store := upgrade.NewMemory()
		for _, e := range run {
			c := upgrade.Open(store, nil, 0)
			before, _ := c.Vat(ctx, e.Vat)
			rollout, err := c.Rollout(ctx)
			if err != nil {
				t.Fatal(err)
			}
			if err := upgrade.Rebuild(ctx, store, lines([]upgrade.Event{e})); err != nil {
				t.Fatal(err)
			}
			c = upgrade.Open(store, nil, 0)
			if before != nil {
				after, err := c.Vat(ctx, e.Vat)
				if err != nil {
					t.Fatal(err)
				}
				seen[upgrade.Transition[upgrade.State]{From: before.State(), To: after.State(), By: e.Type}]++
			}
			if after, err := c.Rollout(ctx); err == nil && rollout != nil && after.ID == rollout.ID {
				rollouts[upgrade.Transition[upgrade.RolloutState]{From: rollout.State, To: after.State, By: e.Type}]++
			}
		}
	}
	for _, tr := range upgrade.Transitions {
		if seen[tr] == 0 {
			t.Errorf("no vat went from %s to %s by %s", tr.From, tr.To, tr.By)
		}
	}
	for _, tr := range upgrade.RolloutTransitions {
		if rollouts[tr] == 0 {
			t.Errorf("no rollout went from %s to %s by %s", tr.From, tr.To, tr.By)
		}
	}
}
