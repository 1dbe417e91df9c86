package pins

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/enginery/enginery/internal/cas"
)

// Status is what became of checking a source.
type Status string

// The statuses.
const (
	Reached     Status = "reached"     // and gave the recorded tree
	Unreachable Status = "unreachable" // nothing to compare
	Different   Status = "DIFFERENT"   // gave something else
	Unrecorded  Status = "unrecorded"  // gave a tree, and the pin has none to compare it with
)

// Check is the outcome for one source of one component.
type Check struct {
	Component string
	Commit    string
	Pins      []string // that have this component
	Source    string
	Status    Status
	Tree      cas.Digest // what came, if anything did
	Err       error      // why it is unreachable or different
}

// Verify fetches every source of the named pins, or of all pins, anew, and says whether each gives the recorded tree.
// What several pins share is checked once. The error is for what kept it from checking.
func (f *Fetcher) Verify(ctx context.Context, names ...string) ([]Check, error) {
	if len(names) == 0 {
		names = Names()
	}
	var checks []Check
	index := make(map[string]int) // of component, commit and source
	var verify []func() error
	scratch, remove, err := f.Store.Scratch("verify")
	if err != nil {
		return nil, err
	}
	defer remove()
	fresh, err := cas.Open(scratch) // so that nothing comes from the cache
	if err != nil {
		return nil, err
	}
	defer fresh.Close()
	anew := &Fetcher{Store: fresh, Mirror: f.Mirror}
	for _, name := range names {
		p, err := Load(name)
		if err != nil {
			return nil, err
		}
		for _, c := range []*Component{&p.Moddable, &p.XsnapNative} {
			places, err := anew.places(c)
			if err != nil {
				return nil, err
			}
			for _, pl := range places {
				key := fmt.Sprintf("%s %s %s %s", c.Name, c.Commit, c.Tree, pl)
				if i, ok := index[key]; ok {
					checks[i].Pins = append(checks[i].Pins, name)
					continue
				}
				i := len(checks)
				index[key] = i
				checks = append(checks, Check{Component: c.Name, Commit: c.Commit, Pins: []string{name}, Source: pl.String()})
				verify = append(verify, func() error { return anew.verify(ctx, c, pl, &checks[i]) })
			}
		}
	}
	for _, v := range verify {
		if err := v(); err != nil {
			return nil, err
		}
	}
	slices.SortStableFunc(checks, func(a, b Check) int {
		return cmp.Or(cmp.Compare(a.Component, b.Component), cmp.Compare(a.Commit, b.Commit))
	})
	return checks, nil
}

func (f *Fetcher) verify(ctx context.Context, c *Component, pl place, check *Check) error {
	found, err := f.obtain(ctx, c, pl)
	var other *TreeError
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.As(err, &other):
		check.Status, check.Tree, check.Err = Different, other.Found, err
	case err != nil && unavailable(err):
		check.Status, check.Err = Unreachable, err
	case err != nil:
		check.Status, check.Err = Different, err
	case !c.Recorded:
		check.Status, check.Tree = Unrecorded, found
	default:
		check.Status, check.Tree = Reached, found
	}
	return nil
}

// WriteTable writes the checks as a table, and below it why sources were not as they must be.
func WriteTable(w io.Writer, checks []Check) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "COMPONENT\tCOMMIT\tSTATUS\tSOURCE\tPINS")
	for _, c := range checks {
		fmt.Fprintf(tw, "%s\t%.8s\t%s\t%s\t%s\n", c.Component, c.Commit, c.Status, c.Source, strings.Join(c.Pins, " "))
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	var reasons []string
	of := make(map[string][]string) // what each reason is about
	for _, c := range checks {
		reason := ""
		switch {
		case c.Err != nil:
			reason = fmt.Sprintf("%s from %s: %v", c.Status, c.Source, c.Err)
		case c.Status == Unrecorded:
			reason = fmt.Sprintf("unrecorded: %s has the tree %s; go tool mage pins:add records it", c.Source, c.Tree)
		default:
			continue
		}
		if of[reason] == nil {
			reasons = append(reasons, reason)
		}
		of[reason] = append(of[reason], fmt.Sprintf("%s %.8s", c.Component, c.Commit))
	}
	for _, reason := range reasons {
		if _, err := fmt.Fprintf(w, "\n%s\n  (%s)\n", reason, strings.Join(of[reason], ", ")); err != nil {
			return err
		}
	}
	return nil
}

// DifferentError says that sources were reached that do not give what the pins record.
type DifferentError struct{ Checks []Check }

func (e *DifferentError) Error() string {
	var b strings.Builder
	b.WriteString("these sources do not give what the pins record:")
	for _, c := range e.Checks {
		fmt.Fprintf(&b, "\n  %s %s from %s: %v", c.Component, c.Commit, c.Source, c.Err)
	}
	return b.String()
}

// UnreachableError says that components could not be checked, since none of their sources could be reached.
type UnreachableError struct{ Components []string }

func (e *UnreachableError) Error() string {
	return "no source of these could be reached, so nothing was compared: " + strings.Join(e.Components, ", ")
}

// Judge returns a *DifferentError if a source gave something else than what is recorded, and otherwise an *UnreachableError if
// there is a component of which no source could be reached.
func Judge(checks []Check) error {
	different := slices.DeleteFunc(slices.Clone(checks), func(c Check) bool { return c.Status != Different })
	if len(different) > 0 {
		return &DifferentError{different}
	}
	reached := make(map[string]bool)
	var components []string
	for _, c := range checks {
		component := fmt.Sprintf("%s %.8s", c.Component, c.Commit)
		if _, ok := reached[component]; !ok {
			components = append(components, component)
		}
		reached[component] = reached[component] || c.Status != Unreachable
	}
	components = slices.DeleteFunc(components, func(c string) bool { return reached[c] })
	if len(components) > 0 {
		return &UnreachableError{components}
	}
	return nil
}
