package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"

	"github.com/google/renameio/v2"
	"github.com/spf13/cobra"

	"github.com/enginery/enginery/replay"
	"github.com/enginery/enginery/upgrade"
)

func upgradeCommand(a *app) *cobra.Command {
	c := &cobra.Command{
		Use:   "upgrade",
		Short: "Move the vats of a chain to another version",
	}
	c.AddCommand(upgradePlanCommand(a), upgradeStatusCommand(a), upgradeWatchCommand(a))
	return c
}

func upgradePlanCommand(a *app) *cobra.Command {
	var (
		o      upgrade.PlanOptions
		after  []string
		leave  []string
		policy string
		output string
	)
	c := &cobra.Command{
		Use:   "plan CLASSIFICATION",
		Short: "Make a rollout plan out of a replay classification",
		Long: `Plan makes the plan of a rollout out of the classification that enginery replay compare wrote: which vats are upgraded to the new version, in which
order. Vats come after those that they depend on, then by priority, then those first that are surest to work, then by number.

Left out are vats that diverge and so stay on their version, and those whose upgrade was not tried or did not work. A vat with a new
bundle is taken in all the same, and --all takes all in. Vats that are for legacy only must be left out with --leave: a chain refuses
a plan that names one.

With --output the plan is written as JSON, for governance to hand in.`,
		Example: `  enginery upgrade plan classification.json --leave v1
  enginery upgrade plan classification.json --leave v1 --priority v7=10 --after v9=v7,v8 --max-failures 5 --output plan.json`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.OnFailure = upgrade.Policy(policy)
			o.After = make(map[string][]string)
			for _, rule := range after {
				vat, before, ok := strings.Cut(rule, "=")
				if !ok || vat == "" || before == "" {
					return usage(fmt.Errorf("--after %q: expected VAT=VAT,…, such as v9=v7,v8", rule))
				}
				o.After[vat] = append(o.After[vat], strings.Split(before, ",")...)
			}
			o.Leave = make(map[string]string)
			for _, vat := range leave {
				o.Leave[vat] = "as asked for by --leave"
			}
			data, err := os.ReadFile(args[0])
			if err != nil {
				return usage(fmt.Errorf("reading the classification: %w", err))
			}
			var classification replay.Classification
			if err := json.Unmarshal(data, &classification); err != nil {
				return fmt.Errorf("reading the classification %s: %w; expected what enginery replay compare wrote", args[0], err)
			}
			plan, left, err := upgrade.NewPlan(&classification, o)
			if err != nil {
				return fmt.Errorf("a plan for %s: %w", args[0], err)
			}
			if output != "" {
				if err := writePlan(output, plan); err != nil {
					return err
				}
			}
			result := struct {
				Plan    *upgrade.Plan     `json:"plan"`
				LeftOut []upgrade.LeftOut `json:"leftOut"`
			}{plan, append([]upgrade.LeftOut{}, left...)}
			return a.print(cmd, result, func(out io.Writer) error { return printPlan(out, &classification, plan, left, output) })
		},
	}
	f := c.Flags()
	f.StringToInt64Var(&o.Priorities, "priority", nil, "priorities of vats, the greatest first: VAT=NUMBER,…")
	f.StringArrayVar(&after, "after", nil, "a vat that comes after others: VAT=VAT,…; it is skipped if one of them is not upgraded; may be given many times")
	f.StringToStringVar(&o.Bundles, "bundle", nil, "IDs of new sources of vats: VAT=ID,…")
	f.StringSliceVar(&leave, "leave", nil, "vats that are left out: VAT,…")
	f.BoolVar(&o.Untried, "all", false, "take in also vats that diverge, or whose upgrade was not tried or did not work")
	f.Int64Var(&o.MaxFailures, "max-failures", 0, "hold the rollout after more failures than these")
	f.StringVar(&policy, "on-failure", "", "what becomes of a vat whose upgrade fails: suspend or roll-back; the chain's setting by default")
	f.StringVarP(&output, "output", "o", "", "file to write the plan to, as JSON")
	return c
}

func writePlan(file string, plan *upgrade.Plan) error {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetIndent("", "  ")
	if err := e.Encode(plan); err != nil {
		return err
	}
	if err := renameio.WriteFile(file, b.Bytes(), 0o644); err != nil {
		return fmt.Errorf("writing the plan: %w", err)
	}
	return nil
}

func printPlan(out io.Writer, c *replay.Classification, plan *upgrade.Plan, left []upgrade.LeftOut, file string) error {
	names := make(map[string]string, len(c.Vats))
	for _, v := range c.Vats {
		names[v.Vat] = v.Name
	}
	fmt.Fprintf(out, "from %s to %s: %s in order, %d left out\n\n", c.From, c.To, count(len(plan.Steps), "vat"), len(left))
	t := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "\tVAT\tNAME\tCLASS\tPRIORITY\tAFTER\tCOMPUTRONS\tBUNDLE")
	for i, s := range plan.Steps {
		bundle := s.Bundle
		if bundle == "" {
			bundle = "the same"
		}
		fmt.Fprintf(t, "%d\t%s\t%s\t%s\t%d\t%s\t%d\t%s\n", i+1, s.Vat, names[s.Vat], s.Class, s.Priority, strings.Join(s.After, " "), s.Computrons, bundle)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	if len(left) > 0 {
		fmt.Fprintln(out, "\nleft out:")
		for _, l := range left {
			fmt.Fprintf(t, "%s\t%s\t%s\n", l.Vat, l.Name, l.Reason)
		}
		if err := t.Flush(); err != nil {
			return err
		}
	}
	if file != "" {
		fmt.Fprintln(out, "\nwrote", file)
	}
	return nil
}
