package upgrade_test

import (
	"encoding/json"
	"errors"
	"os/exec"
	"strings"
	"testing"

	"github.com/enginery/enginery/replay"
	"github.com/enginery/enginery/upgrade"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
)

func classification(vats ...replay.Classified) *replay.Classification {
	return &replay.Classification{Schema: replay.ClassificationSchema, From: v16, To: v18, Vats: vats}
}

func classified(vat string, class replay.Class, works bool, computrons int64) replay.Classified {
	return replay.Classified{Vat: vat, Class: class, Reason: "as replayed", Ways: []replay.Way{
		{Way: replay.WaySnapshot, Works: class == replay.Resume},
		{Way: replay.WayIncarnation, Works: works, Reason: "startVat threw", Computrons: computrons},
	}}
}

func TestNewPlan(t *testing.T) {
	t.Parallel()
	c := classification(
		classified("v1", replay.Upgrade, true, 10), classified("v2", replay.Resume, true, 20), classified("v3", replay.Stay, true, 30),
		classified("v4", replay.Upgrade, false, 0), classified("v5", replay.Resume, true, 50), classified("v9", replay.Resume, true, 90), classified("v10", replay.Resume, true, 100),
		replay.Classified{Vat: "v11", Class: replay.Upgrade},
	)
	for _, test := range []struct {
		name string
		o    upgrade.PlanOptions
		want string // vats in order, then those that are left out and why
	}{
		{"as classified", upgrade.PlanOptions{}, "v2 v5 v9 v10 v1; v3: it stays on agoric-upgrade-16: as replayed; v4: its upgrade did not work: startVat threw; v11: its upgrade was not tried"},
		{"priorities", upgrade.PlanOptions{Priorities: map[string]int64{"v10": 5, "v2": -1, "v1": 1}}, "v10 v1 v5 v9 v2; v3: it stays on agoric-upgrade-16: as replayed; v4: its upgrade did not work: startVat threw; v11: its upgrade was not tried"},
		{"dependencies", upgrade.PlanOptions{After: map[string][]string{"v2": {"v1", "v9"}, "v5": {"v2"}}, Priorities: map[string]int64{"v5": 100}},
			"v9 v10 v1 v2 v5; v3: it stays on agoric-upgrade-16: as replayed; v4: its upgrade did not work: startVat threw; v11: its upgrade was not tried"},
		{"left out", upgrade.PlanOptions{Leave: map[string]string{"v1": "it is for legacy only"}, After: map[string][]string{"v2": {"v1"}, "v5": {"v2"}}},
			"v9 v10; v1: it is for legacy only; v2: it comes after v1, which is left out; v3: it stays on agoric-upgrade-16: as replayed; v4: its upgrade did not work: startVat threw; v5: it comes after v2, which is left out; v11: its upgrade was not tried"},
		{"mended", upgrade.PlanOptions{Bundles: map[string]string{"v3": "b1-x", "v4": "b1-y", "v11": "b1-z"}}, "v2 v5 v9 v10 v1 v3 v4 v11"},
		{"all", upgrade.PlanOptions{Untried: true}, "v2 v5 v9 v10 v1 v3 v4 v11"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			p, left, err := upgrade.NewPlan(c, test.o)
			if err != nil {
				t.Fatal(err)
			}
			var vats []string
			for _, s := range p.Steps {
				vats = append(vats, s.Vat)
			}
			got := []string{strings.Join(vats, " ")}
			for _, l := range left {
				got = append(got, l.Vat+": "+l.Reason)
			}
			want := test.want
			if d := cmp.Diff(strings.Split(want, "; "), got); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
			if len(p.Steps) > 1 && p.Version != v18 {
				t.Errorf("the plan is for %s", p.Version)
			}
		})
	}
	for _, test := range []struct {
		o    upgrade.PlanOptions
		want string
	}{
		{upgrade.PlanOptions{After: map[string][]string{"v1": {"v2"}, "v2": {"v5"}, "v5": {"v1"}}}, "in a circle: v1, v2, v5"},
		{upgrade.PlanOptions{Priorities: map[string]int64{"v99": 1}}, "no such vat"},
		{upgrade.PlanOptions{After: map[string][]string{"v1": {"v99"}}}, "no such vat"},
		{upgrade.PlanOptions{MaxFailures: -1}, "0 or more"},
		{upgrade.PlanOptions{OnFailure: "explode"}, "explode"},
	} {
		if _, _, err := upgrade.NewPlan(c, test.o); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%+v: %v, want %q", test.o, err, test.want)
		}
	}
	if _, _, err := upgrade.NewPlan(&replay.Classification{Schema: replay.Schema}, upgrade.PlanOptions{}); err == nil {
		t.Error("a report was taken as a classification")
	}
}

// What NewPlan makes, StartRollout takes.
func TestPlanIsTaken(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	c := newUpgradingChain(t, upgrade.DefaultSettings())
	p, _, err := upgrade.NewPlan(classification(classified("v2", replay.Resume, true, 2_000_000), classified("v3", replay.Upgrade, true, 3_000_000)),
		upgrade.PlanOptions{After: map[string][]string{"v2": {"v3"}}})
	c.must(err)
	c.must(c.StartRollout(ctx, *p))
	c.end(0)
	c.wantAsked("upgrade v3 to "+v18, "upgrade v2 to "+v18)
}

// An adoption is of the classification that was voted on, and that is about the version.
func TestCheckClassification(t *testing.T) {
	t.Parallel()
	file := func(change func(*replay.Classification)) []byte {
		c := classification(classified("v2", replay.Resume, true, 0))
		change(c)
		text, err := json.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	right := file(func(*replay.Classification) {})
	for _, test := range []struct {
		name    string
		file    []byte
		voted   string
		refused bool
		want    string
	}{
		{"right", right, digest.FromBytes(right).String(), false, ""},
		{"none is named", right, "", true, "names no replay classification"},
		{"another kind of digest", right, digest.SHA512.FromBytes(right).String(), true, "expected a digest, sha256:"},
		{"no digest", right, "../x", true, "expected a digest, sha256:"},
		{"another file", right, digest.FromString("x").String(), false, "the replay classification at hand is"},
		{"no JSON", []byte("{"), digest.FromString("{").String(), true, "is no replay classification"},
		{"another version", nil, "", true, `to "agoric-upgrade-22"`},
		{"from itself", nil, "", true, `from "agoric-upgrade-18"`},
		{"another schema", nil, "", true, "enginery.replay.report"},
	} {
		switch test.name {
		case "another version":
			test.file = file(func(c *replay.Classification) { c.To = v22 })
		case "from itself":
			test.file = file(func(c *replay.Classification) { c.From = v18 })
		case "another schema":
			test.file = file(func(c *replay.Classification) { c.Schema = replay.Schema })
		}
		if test.voted == "" && test.name != "none is named" {
			test.voted = digest.FromBytes(test.file).String()
		}
		err := upgrade.CheckClassification(test.file, upgrade.Adoption{Version: v18, Classification: test.voted})
		switch {
		case test.want == "" && err != nil, test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)), errors.Is(err, upgrade.ErrRefused) != test.refused:
			t.Errorf("%s: %v, want %q, refused: %v", test.name, err, test.want, test.refused)
		}
	}
}

// A chain embeds this package, and with it all that it links.
func TestLinksLittle(t *testing.T) {
	t.Parallel()
	out, err := exec.Command("go", "list", "-deps", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, pkg := range strings.Fields(string(out)) {
		for _, heavy := range []string{"google.golang.org/grpc", "github.com/google/go-containerregistry/", "github.com/opencontainers/runc/"} {
			if strings.HasPrefix(pkg, heavy) {
				t.Errorf("it links %s", pkg)
			}
		}
	}
}
