package replay_test

import (
	"database/sql"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/enginery/enginery/internal/swingsettest"
	"github.com/enginery/enginery/recipes"
	"github.com/enginery/enginery/replay"
)

// replaced returns a plant that replaces the first old in the item at a position of span 5-32 of v5 by new.
func replaced(position int, old, new string) func([]string) []string {
	return func(items []string) []string {
		i := position - 5
		if !strings.Contains(items[i], old) {
			panic(fmt.Sprintf("item %d has no %s: %s", position, old, items[i]))
		}
		items[i] = strings.Replace(items[i], old, new, 1)
		return items
	}
}

// Whatever is changed in a transcript is found, where it is, and named for what it is.
func TestPlanted(t *testing.T) {
	t.Parallel()
	e := engine(t, swingsettest.Version, amd64, recipes.Release)
	for _, test := range []struct {
		name  string
		plant func(items []string) []string
		level replay.Level
		first replay.Difference // as far as it is given
		count map[replay.Dimension]int64
	}{
		{
			name: "nothing", level: replay.Identical,
		},
		{
			name: "a byte in a syscall", level: replay.Divergent,
			plant: replaced(7, `"vom.dkind.10.nextID","3"`, `"vom.dkind.10.nextID","4"`),
			first: replay.Difference{Position: 7, Dimension: replay.WrongSyscall, Syscall: 0},
			count: map[replay.Dimension]int64{replay.WrongSyscall: 1},
		},
		{
			name: "a byte in the key of a syscall", level: replay.Divergent,
			plant: replaced(8, `{"s":["vatstoreGet","vc.`, `{"s":["vatstoreGet","vd.`),
			first: replay.Difference{Position: 8, Dimension: replay.WrongSyscall, Syscall: 0},
			count: map[replay.Dimension]int64{replay.WrongSyscall: 1},
		},
		{
			name: "a byte in the answer to a syscall", level: replay.Divergent,
			plant: replaced(8, `balance\":{\"body\":\"#\\\"+0`, `balance\":{\"body\":\"#\\\"+1`),
			first: replay.Difference{Position: 8, Dimension: replay.WrongSyscall, Syscall: 3, Expected: `["resolve",[["p-63",false,{"body":"#\"+1\"","slots":[]}]]]`},
			count: map[replay.Dimension]int64{replay.WrongSyscall: 2},
		},
		{
			name: "a status", level: replay.Divergent,
			plant: replaced(9, `"status":"ok"`, `"status":"error"`),
			first: replay.Difference{Position: 9, Dimension: replay.Status, Expected: "error", Got: "ok"},
			count: map[replay.Dimension]int64{replay.Status: 1},
		},
		{
			name: "a meter", level: replay.SameBehaviour,
			plant: replaced(9, `"computrons":51005`, `"computrons":51004`),
			first: replay.Difference{Position: 9, Dimension: replay.Computrons, Expected: "51004", Got: "51005"},
			count: map[replay.Dimension]int64{replay.Computrons: 1},
		},
		{
			name: "a heap snapshot's hash", level: replay.SameBehaviour,
			plant: replaced(31, `"snapshotID":"`, `"snapshotID":"0`),
			first: replay.Difference{Position: 31, Dimension: replay.HeapSnapshot},
			count: map[replay.Dimension]int64{replay.HeapSnapshot: 1},
		},
		{
			name: "a syscall that was not made", level: replay.Divergent,
			plant: replaced(10, `"sc":[`, `"sc":[{"s":["vatstoreDelete","x"],"r":["ok",null]},`),
			first: replay.Difference{Position: 10, Dimension: replay.MissingSyscall, Syscall: 0, Expected: `["vatstoreDelete","x"]`},
			count: map[replay.Dimension]int64{replay.MissingSyscall: 1},
		},
		{
			name: "a syscall left out", level: replay.Divergent,
			plant: func(items []string) []string {
				i := strings.LastIndex(items[5], `,{"s":["resolve"`)
				j := strings.LastIndex(items[5], `,{"s":["vatstoreSet"`)
				items[5] = items[5][:i] + items[5][j:]
				return items
			},
			first: replay.Difference{Position: 10, Dimension: replay.ExtraSyscall, Syscall: 3},
			count: map[replay.Dimension]int64{replay.ExtraSyscall: 1},
		},
		{
			name: "two reads in another order", level: replay.SameOutcome,
			plant: func(items []string) []string {
				items[5] = swapSyscalls(items[5], 0, 1)
				return items
			},
			first: replay.Difference{Position: 10, Dimension: replay.ReorderedSyscall},
			count: map[replay.Dimension]int64{replay.ReorderedSyscall: 1},
		},
		{
			name: "a write before what came before it", level: replay.Divergent,
			plant: func(items []string) []string {
				items[5] = swapSyscalls(items[5], 3, 4)
				return items
			},
			first: replay.Difference{Position: 10, Dimension: replay.MisplacedSyscall, Syscall: 3},
			count: map[replay.Dimension]int64{replay.MisplacedSyscall: 1},
		},
		{
			name: "two items in another order", level: replay.Divergent,
			plant: func(items []string) []string {
				items[2], items[4] = items[4], items[2]
				return items
			},
			first: replay.Difference{Position: 7, Dimension: replay.WrongSyscall},
		},
		{
			name: "an item left out", level: replay.Divergent,
			plant: func(items []string) []string { return slices.Delete(items, 2, 3) },
			first: replay.Difference{Position: 8, Dimension: replay.WrongSyscall},
		},
		{
			name: "an item twice", level: replay.Divergent,
			plant: func(items []string) []string { return slices.Insert(items, 2, items[2]) },
			first: replay.Difference{Position: 8, Dimension: replay.WrongSyscall},
		},
		{
			name: "a delivery that there is not", level: replay.Divergent,
			plant: replaced(9, `{"d":["message"`, `{"d":["massage"`),
			first: replay.Difference{Position: 9, Dimension: replay.Structure},
		},
		{
			name: "another snapshot to load", level: replay.Divergent,
			plant: replaced(5, `"snapshotID":"`, `"snapshotID":"0`),
			first: replay.Difference{Position: 5, Dimension: replay.Structure},
			count: map[replay.Dimension]int64{replay.Structure: 1},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			r := run(t, open(t, excerpt(t, "v5", 1, test.plant)), e, replay.Options{Reproducers: dir})
			span := r.Vats[0].Runs[0].Spans[1]
			if span.Outcome != replay.Replayed || span.Level != test.level {
				t.Fatalf("expected %s, found\n%s", test.level, show(t, span))
			}
			if len(span.Listed) == 0 {
				if test.level != replay.Identical {
					t.Fatalf("nothing is listed: %s", show(t, span))
				}
				return
			}
			first, want := span.Listed[0], test.first
			if first.Vat != "v5" || first.Span != 5 || first.Position != want.Position || want.Dimension != "" && first.Dimension != want.Dimension ||
				first.Syscall != want.Syscall || want.Expected != "" && first.Expected != want.Expected || want.Got != "" && first.Got != want.Got {
				t.Errorf("expected %s, found %s", show(t, want), show(t, first))
			}
			if test.count != nil && fmt.Sprint(span.Differences) != fmt.Sprint(test.count) {
				t.Errorf("expected %v, found %v: %s", test.count, span.Differences, show(t, span.Listed))
			}
			again, err := replay.Reproduce(t.Context(), first.Reproducer, e, replay.Options{})
			if err != nil || !again.Reproduced {
				t.Errorf("reproducing: %v %s", err, show(t, again))
			}
		})
	}
}

// swapSyscalls swaps two syscalls of an item that follow upon each other.
func swapSyscalls(item string, i, j int) string {
	head, rest, _ := strings.Cut(item, `"sc":[`)
	end := strings.LastIndex(rest, `],"r":{"status"`)
	list := strings.Split(rest[:end], `,{"s":`)
	for k := 1; k < len(list); k++ {
		list[k] = `{"s":` + list[k]
	}
	list[i], list[j] = list[j], list[i]
	return head + `"sc":[` + strings.Join(list, ",") + rest[end:]
}

// What is not what the source says it is, is damaged, and never passes.
func TestDamaged(t *testing.T) {
	t.Parallel()
	e := engine(t, swingsettest.Version, amd64, recipes.Release)
	cache := t.TempDir()
	r := run(t, open(t, excerpt(t, "v5", 1, nil)), e, replay.Options{Cache: cache})
	if !r.Passed(0) || r.Vats[0].Runs[0].Whole() {
		t.Fatalf("%s", show(t, r.Vats[0].Runs[0].Totals))
	}
	for _, test := range []struct{ name, sql, reason string }{
		{"an item", `UPDATE transcriptItems SET item = replace(item, '51005', '51004') WHERE position = 9`, "span 5-32 of v5 is damaged"},
		{"an item that is no JSON", `UPDATE transcriptItems SET item = 'x' WHERE position = 9`, "item 9 of span 5-32 of v5 is damaged"},
		{"an item left out", `DELETE FROM transcriptItems WHERE position = 9`, "expected item 9, found item 10"},
		{"the last item left out", `DELETE FROM transcriptItems WHERE position = 31`, "expected item 31, found the end"},
		{"a heap snapshot", `UPDATE snapshots SET compressedSnapshot = CAST(substr(compressedSnapshot, 1, 100000) || x'00' || substr(compressedSnapshot, 100002) AS BLOB)`, "heap snapshot 4 of v5 is damaged"},
		{"a heap snapshot cut off", `UPDATE snapshots SET compressedSnapshot = substr(compressedSnapshot, 1, 100000)`, "heap snapshot 4 of v5 is damaged"},
		{"a heap snapshot's hash", `UPDATE snapshots SET hash = '00' || substr(hash, 3)`, "heap snapshot 4 of v5 is damaged"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			path := excerpt(t, "v5", 1, nil)
			edit(t, path, func(db *sql.DB) error {
				_, err := db.Exec(test.sql)
				return err
			})
			o := replay.Options{}
			if !strings.Contains(test.name, "snapshot") {
				o.Cache = cache // what is known of a span does not hide that it is damaged now
			}
			r := run(t, open(t, path), e, o)
			span := r.Vats[0].Runs[0].Spans[1]
			if span.Outcome != replay.Damaged || !strings.Contains(span.Reason, test.reason) || r.Passed(0) {
				t.Errorf("%s", show(t, span))
			}
		})
	}
}

// What came of a damaged span is not taken for what comes of the span, also if the worker ended before the damage could show.
func TestDamagedAndKnown(t *testing.T) {
	t.Parallel()
	e := engine(t, swingsettest.Version, amd64, recipes.Release)
	good, bad := excerpt(t, "v5", 1, nil), excerpt(t, "v5", 1, nil)
	edit(t, bad, func(db *sql.DB) error {
		_, err := db.Exec("UPDATE transcriptItems SET item = replace(item, 'load-snapshot', 'load-snapshoT') WHERE position = 5")
		return err
	})
	o := replay.Options{Cache: t.TempDir()}
	if span := run(t, open(t, bad), e, o).Vats[0].Runs[0].Spans[1]; span.Outcome != replay.Damaged {
		t.Errorf("expected damaged, found %s", show(t, span))
	}
	if span := run(t, open(t, good), e, o).Vats[0].Runs[0].Spans[1]; span.Outcome != replay.Replayed || span.Level != replay.Identical {
		t.Errorf("expected identical, found %s", show(t, span))
	}
}

// A span that ends otherwise than a span does is found, and what is found is reproduced, if there is a version to reproduce it on.
func TestSpanEnd(t *testing.T) {
	t.Parallel()
	e := engine(t, swingsettest.Version, amd64, recipes.Release)
	store := swingsettest.Store(t)
	swingsettest.Plant(t, store, "v6", 4, `["save-snapshot"]`, `["bringOutYourDead"]`)
	swingsettest.Plant(t, store, "v6", 6, `"computrons":`, `"computrons":1`)
	r := run(t, open(t, store), e, replay.Options{Vats: []string{"v6"}, Reproducers: t.TempDir()}).Vats[0].Runs[0]
	if r.Differences[replay.Structure] != 1 || r.Spans[0].Listed[0].Position != 4 {
		t.Errorf("%s", show(t, r.Spans))
	}
	for _, s := range r.Spans {
		for _, d := range s.Listed {
			if d.Reproducer == "" {
				continue
			}
			if again, err := replay.Reproduce(t.Context(), d.Reproducer, e, replay.Options{}); err != nil || !again.Reproduced {
				t.Errorf("%v %s", err, show(t, again))
			}
		}
	}
}
