package upgrade

import (
	"cmp"
	"container/heap"
	"encoding/json"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/enginery/enginery/replay/classification"
	"github.com/opencontainers/go-digest"
)

// PlanOptions say what a replay classification does not.
type PlanOptions struct {
	Priorities map[string]int64    // by vat; the greatest is first; 0 if it is not said
	After      map[string][]string // by vat: those that must be upgraded before
	Bundles    map[string]string   // by vat: ID of a new source
	Leave      map[string]string   // by vat: why it is left out, e.g. since it is for legacy only

	// Untried takes vats in whose upgrade was not tried, or did not work, or that diverge, also if they get no new source.
	Untried bool

	MaxFailures int64
	OnFailure   Policy // empty: the chain's
}

// LeftOut is a vat that a plan leaves out.
type LeftOut struct {
	Vat    string `json:"vat"`
	Name   string `json:"name,omitempty"`
	Reason string `json:"reason"`
}

// NewPlan makes a plan out of a replay classification: vats after those that they depend on, then by priority, then those that are surest to
// work, then by number. Left out are vats that stay on their version, or whose startVat did not work on the new one, and those that depend
// on them.
func NewPlan(c *classification.Classification, o PlanOptions) (*Plan, []LeftOut, error) {
	if c.Schema != classification.Schema {
		return nil, nil, fmt.Errorf("the schema is %q, expected %q: is it what enginery replay compare wrote as its classification?", c.Schema, classification.Schema)
	}
	if c.From == c.To {
		return nil, nil, fmt.Errorf("the classification is from %s to itself; compare two versions", c.From)
	}
	if o.MaxFailures < 0 {
		return nil, nil, fmt.Errorf("%d failures may be, expected 0 or more", o.MaxFailures)
	}
	if o.OnFailure != "" && o.OnFailure != Suspend && o.OnFailure != RollBack {
		return nil, nil, fmt.Errorf("a vat that fails is to %q, expected %q or %q", o.OnFailure, Suspend, RollBack)
	}
	known := make(map[string]classification.Classified, len(c.Vats))
	for _, v := range c.Vats {
		if _, ok := known[v.Vat]; ok {
			return nil, nil, fmt.Errorf("%s is classified twice", v.Vat)
		}
		known[v.Vat] = v
	}
	for _, named := range []struct {
		as   string
		vats iter.Seq[string]
	}{
		{"with a priority", maps.Keys(o.Priorities)}, {"to come after others", maps.Keys(o.After)},
		{"to come before others", slices.Values(slices.Concat(slices.Collect(maps.Values(o.After))...))},
		{"with a bundle", maps.Keys(o.Bundles)}, {"to be left out", maps.Keys(o.Leave)},
	} {
		for _, id := range slices.SortedFunc(named.vats, byNumber) {
			if _, ok := known[id]; !ok {
				return nil, nil, fmt.Errorf("%s is named, %s, and the classification has no such vat", id, named.as)
			}
		}
	}

	left := make(map[string]string)
	steps := make(map[string]*planned)
	for _, v := range c.Vats {
		way := incarnation(v)
		switch {
		case o.Leave[v.Vat] != "":
			left[v.Vat] = o.Leave[v.Vat]
			continue
		case o.Bundles[v.Vat] != "" || o.Untried:
		case v.Class == classification.Stay:
			left[v.Vat] = "it stays on " + c.From + ": " + v.Reason
			continue
		case way == nil:
			left[v.Vat] = "its upgrade was not tried"
			continue
		case !way.Works:
			left[v.Vat] = "its upgrade did not work: " + way.Reason
			continue
		}
		p := &planned{class: v.Class, works: way != nil && way.Works, Step: Step{
			Vat: v.Vat, After: o.After[v.Vat], Bundle: o.Bundles[v.Vat], Class: string(v.Class), Priority: o.Priorities[v.Vat],
		}}
		if way != nil {
			p.Computrons = way.Computrons
		}
		steps[v.Vat] = p
	}
	for more := true; more; { // what depends on what is left out
		more = false
		for _, v := range c.Vats {
			if p := steps[v.Vat]; p != nil {
				for _, d := range p.After {
					if left[d] != "" {
						left[v.Vat] = fmt.Sprintf("it comes after %s, which is left out", d)
						delete(steps, v.Vat)
						more = true
						break
					}
				}
			}
		}
	}

	plan := &Plan{Version: c.To, MaxFailures: o.MaxFailures, OnFailure: o.OnFailure, Steps: []Step{}}
	var ready planHeap
	behind := make(map[string][]*planned)
	for _, v := range c.Vats {
		p := steps[v.Vat]
		if p == nil {
			continue
		}
		for _, d := range p.After {
			p.before++
			behind[d] = append(behind[d], p)
		}
		if p.before == 0 {
			ready = append(ready, p)
		}
	}
	heap.Init(&ready)
	for len(ready) > 0 {
		p := heap.Pop(&ready).(*planned)
		plan.Steps = append(plan.Steps, p.Step)
		delete(steps, p.Vat)
		for _, b := range behind[p.Vat] {
			if b.before--; b.before == 0 {
				heap.Push(&ready, b)
			}
		}
	}
	if len(steps) > 0 {
		return nil, nil, fmt.Errorf("these vats come after each other, in a circle: %s", strings.Join(slices.SortedFunc(maps.Keys(steps), byNumber), ", "))
	}
	var out []LeftOut
	for _, v := range c.Vats {
		if left[v.Vat] != "" {
			out = append(out, LeftOut{v.Vat, v.Name, left[v.Vat]})
		}
	}
	return plan, out, nil
}

// CheckClassification checks that a file is the replay classification that an adoption names, and that it is about going over to the adopted
// version: a part of what Host.CheckVersion does. What the file says that was voted on is refused by all validators alike; another file is this
// node's affair.
func CheckClassification(file []byte, a Adoption) error {
	if a.Classification == "" {
		return refuse("the adoption of %s names no replay classification; say the digest of the one that enginery replay compare wrote", a.Version)
	}
	if err := a.check(); err != nil {
		return err
	}
	if have := digest.FromBytes(file).String(); have != a.Classification {
		return fmt.Errorf("the replay classification at hand is %s, and the adoption of %s is about %s", have, a.Version, a.Classification)
	}
	var c classification.Classification
	if err := json.Unmarshal(file, &c); err != nil {
		return refuse("%s is no replay classification: %v", a.Classification, err)
	}
	if c.Schema != classification.Schema || c.To != a.Version || c.From == a.Version {
		return refuse("%s is a %q from %q to %q, expected a %q from another version to %s",
			a.Classification, c.Schema, c.From, c.To, classification.Schema, a.Version)
	}
	return nil
}

// incarnation returns what is known of a vat's upgrade, or nil.
func incarnation(v classification.Classified) *classification.Way {
	for _, w := range v.Ways {
		if w.Way == classification.WayIncarnation {
			return &w
		}
	}
	return nil
}

// planned is a step on its way into a plan.
type planned struct {
	Step
	class  classification.Class
	works  bool
	before int // vats that it still comes after
}

type planHeap []*planned

func (h planHeap) Len() int      { return len(h) }
func (h planHeap) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h *planHeap) Push(v any)   { *h = append(*h, v.(*planned)) }
func (h *planHeap) Pop() any {
	old := *h
	last := old[len(old)-1]
	*h = old[:len(old)-1]
	return last
}

func (h planHeap) Less(i, j int) bool {
	a, b := h[i], h[j]
	sure := func(p *planned) int {
		return slices.Index([]classification.Class{classification.Resume, classification.Upgrade, classification.Stay}, p.class)
	}
	works := func(p *planned) int {
		if p.works {
			return 0
		}
		return 1
	}
	return cmp.Or(cmp.Compare(b.Priority, a.Priority), works(a)-works(b), sure(a)-sure(b), byNumber(a.Vat, b.Vat)) < 0
}

// byNumber compares IDs of vats: v9 is before v10.
func byNumber(a, b string) int {
	n := func(id string) uint64 {
		n, _ := strconv.ParseUint(strings.TrimLeft(id, "v"), 10, 64)
		return n
	}
	return cmp.Or(cmp.Compare(n(a), n(b)), strings.Compare(a, b))
}
