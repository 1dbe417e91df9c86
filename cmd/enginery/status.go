package main

import (
	"cmp"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/enginery/enginery/resolver"
)

// nodeStatus is what status prints.
type nodeStatus struct {
	Home   string       `json:"home"`
	Policy policyStatus `json:"policy"`
	*resolver.Status
	Problem string `json:"problem,omitempty"` // what is damaged or makes no sense
}

type policyStatus struct {
	File    string   `json:"file"`
	Digest  string   `json:"digest"`
	Sources []string `json:"sources"`
}

func statusCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Show the channels, and what is stored, missing and pinned",
		Long: `Status shows what a node has, at a glance: it asks no network and reads no engine. enginery prefetch --offline reads and checks all bytes; enginery
verify VERSION says who vouches for one.

Exit code 3 says that something is damaged. That a version is missing is no failure.`,
		Example: "  enginery status\n  enginery status --json | jq -r '.missing[]'",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			name, policy, _, err := resolver.LoadPolicy(a.home, "")
			if err != nil {
				return err
			}
			s := nodeStatus{Home: a.home, Policy: policyStatus{name, policy.Digest().String(), append([]string{}, policy.Sources...)}}
			r := &resolver.Resolver{Home: a.engines(), Policy: policy}
			if s.Status, err = r.Status(); err != nil {
				s.Problem = err.Error()
			}
			return joined(a.print(cmd, s, s.write), err)
		},
	}
}

func (s nodeStatus) write(out io.Writer) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "home\t%s\npolicy\t%s\n", s.Home, s.Policy.File)
	for _, source := range s.Policy.Sources {
		fmt.Fprintf(w, "source\t%s\n", source)
	}
	switch i := s.Index; {
	case i == nil:
	case i.Version == 0:
		fmt.Fprintln(w, "index\tnone was accepted yet: enginery fetch")
	case i.Expired:
		fmt.Fprintf(w, "index\tversion %d, EXPIRED %s: enginery fetch\n", i.Version, i.Expires.Format(time.RFC3339))
	default:
		fmt.Fprintf(w, "index\tversion %d, good until %s\n", i.Version, i.Expires.Format(time.RFC3339))
	}
	for _, c := range s.Channels {
		state := "stored"
		if !c.Stored {
			state = "MISSING: enginery fetch " + c.Version
		}
		fmt.Fprintf(w, "%s\t%s\t%s\n", c.Name, c.Version, state)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if len(s.Versions) == 0 {
		_, err := fmt.Fprintln(out, "\nno version is stored")
		return err
	}
	fmt.Fprintln(out)
	w = tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "VERSION\tCHANNEL\tPINNED\tSTORED")
	for _, v := range s.Versions {
		pinned, stored := "no", v.Platform+"  "+v.Index
		if v.Pinned {
			pinned = "yes"
		}
		if !v.Stored {
			stored = "MISSING: enginery fetch " + v.Version
		} else if v.Revoked {
			stored += "  REVOKED"
		} else if !v.Recorded {
			stored += "  not what the record names: enginery fetch " + v.Version
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", v.Version, cmp.Or(v.Channel, "none"), pinned, stored)
	}
	return w.Flush()
}
