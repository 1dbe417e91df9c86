package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/enginery/enginery/chain"
	"github.com/enginery/enginery/internal/printable"
	"github.com/enginery/enginery/internal/screen"
	"github.com/enginery/enginery/swingstore"
	"github.com/enginery/enginery/upgrade"
)

func upgradeStatusCommand(a *app) *cobra.Command {
	most := chain.Most{}
	cmd := &cobra.Command{
		Use:   "status DIR",
		Short: "Show the versions in service, the rollout, and the vats that need somebody",
		Long: `Status shows a chain at its last block: versions, vats by state, the rollout and when it will be done, the last blocks, and the vats: suspended ones first.
DIR is the folder of enginery chain run, which may be running.`,
		Example:           "  enginery upgrade status demo\n  enginery upgrade status demo --json --vats 100000",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: completeChain,
		RunE: ofChain(func(cmd *cobra.Command, s *swingstore.Store, args []string) error {
			v, err := chain.Look(cmd.Context(), &s.Reader, most)
			if err != nil {
				return err
			}
			return a.print(cmd, v, func(out io.Writer) error { return printView(out, v) })
		}),
	}
	cmd.Flags().IntVar(&most.Vats, "vats", 50, "vats to show")
	cmd.Flags().IntVar(&most.Blocks, "blocks", 10, "blocks to show")
	cmd.Flags().IntVar(&most.Steps, "steps", 10, "next steps of the rollout to show")
	return cmd
}

func upgradeWatchCommand(a *app) *cobra.Command {
	var interval time.Duration
	cmd := &cobra.Command{
		Use:   "watch DIR",
		Short: "Follow a rollout, block by block, until it is over",
		Long: `Watch follows a chain. On a terminal it shows what enginery upgrade status shows, and keeps it up to date, for as long as it takes the whole terminal;
otherwise, or with --json, it prints the events of each block, one a line. It ends with the rollout, and then the last state stays to be read: with
exit code 0 when it is done, and with 1 when it is held, aborted or paused, which somebody has to look at; and with Ctrl-C.`,
		Example:           "  enginery upgrade watch demo\n  enginery upgrade watch demo --json | jq .type",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: completeChain,
		RunE: ofChain(func(cmd *cobra.Command, s *swingstore.Store, args []string) error {
			if interval <= 0 {
				return usage(fmt.Errorf("--interval %v: expected more than 0", interval))
			}
			return a.watch(cmd, s, interval)
		}),
	}
	cmd.Flags().DurationVar(&interval, "interval", time.Second, "how often the chain is looked at")
	return cmd
}

func (a *app) watch(cmd *cobra.Command, s *swingstore.Store, interval time.Duration) error {
	ctx, out := cmd.Context(), cmd.OutOrStdout()
	live := !a.asJSON && screen.Is(out)
	const waiting = "There is no rollout yet. This waits for one; Ctrl-C ends it."
	var terminal *screen.Screen
	defer func() { terminal.Close() }()
	for shown := int64(-1); ; {
		v, err := chain.Look(ctx, &s.Reader, chain.Most{Vats: 50, Blocks: 8, Steps: 10})
		if err != nil {
			return err
		}
		r := v.Rollout
		over := r != nil && r.State != upgrade.Running && v.Tally.Flushed == 0 && v.Tally.Upgrading == 0
		switch {
		case over && live: // to be read when the screen is gone
			if err := terminal.Close(); err != nil {
				return err
			}
			if err := printView(out, v); err != nil {
				return err
			}
		case v.Height == shown:
		case live:
			if terminal == nil {
				if terminal, err = screen.Open(out.(*os.File)); err != nil {
					return err
				}
			}
			var text strings.Builder
			if err := printView(&text, v); err != nil {
				return err
			}
			if r == nil {
				text.WriteString("\n" + waiting + "\n")
			}
			if err := terminal.Show(text.String()); err != nil {
				return err
			}
		default:
			if err := a.printEvents(ctx, out, s, max(shown+1, 1), v); err != nil {
				return err
			}
			if r == nil && shown < 0 && !a.quiet {
				fmt.Fprintln(cmd.ErrOrStderr(), waiting)
			}
		}
		if shown = v.Height; over {
			return endOf(r)
		}
		if err := terminal.Wait(ctx, interval); err != nil {
			return err
		}
	}
}

// endOf returns nil for a rollout that is done, and otherwise why it does not go on.
func endOf(r *upgrade.Rollout) error {
	switch {
	case r.State == upgrade.Done:
		return nil
	case r.Why == "":
		return fmt.Errorf("rollout %d is %s", r.ID, r.State)
	}
	return fmt.Errorf("rollout %d is %s: %s", r.ID, r.State, printable.Text(r.Why))
}

// printEvents prints what has happened from a block on.
func (a *app) printEvents(ctx context.Context, out io.Writer, s *swingstore.Store, from int64, v *chain.View) error {
	for height := from; height <= v.Height; height++ {
		events, err := chain.Events(ctx, &s.Reader, height)
		if errors.Is(err, chain.ErrNoBlock) {
			continue // its record was not kept
		} else if err != nil {
			return err
		}
		for _, e := range events {
			if a.asJSON {
				if err := json.NewEncoder(out).Encode(e); err != nil {
					return err
				}
				continue
			}
			switch e.Type {
			case upgrade.DeliveryQueued, upgrade.DeliverySetAside, upgrade.DeliveryMade, upgrade.DeliveryDiscarded, upgrade.BlockEnded, upgrade.StepAdded, upgrade.PlanSwept:
				continue // too many
			}
			fmt.Fprintf(out, "block %d: %s", e.Height, e.Type)
			for _, s := range []string{e.Vat, arrow(e.From, e.Version), printable.Text(e.Problem)} {
				if s != "" {
					fmt.Fprint(out, " ", s)
				}
			}
			fmt.Fprintln(out)
		}
	}
	return nil
}

func arrow(from, to string) string {
	if from == "" {
		return to
	}
	return from + " → " + to
}

// names lists vats by name.
func names(v *chain.View, ids []string) string {
	var all []string
	for _, vat := range v.Named(ids) {
		all = append(all, vat.Name)
	}
	return strings.Join(all, " ")
}

// printView prints a chain for people.
func printView(out io.Writer, v *chain.View) error {
	fmt.Fprintf(out, "block %d, app hash %s\n", v.Height, v.AppHash)
	if v.Channels == nil {
		fmt.Fprintln(out, "the chain has no versions yet: its first input must be of type init")
		return nil
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	if v.Channels.Legacy != v.Channels.Current {
		fmt.Fprintf(w, "legacy\t%s\t%s\n", v.Channels.Legacy, count(v.On[v.Channels.Legacy], "vat"))
	}
	fmt.Fprintf(w, "current\t%s\t%s\n", v.Channels.Current, count(v.On[v.Channels.Current], "vat"))
	if err := w.Flush(); err != nil {
		return err
	}
	t := v.Tally
	fmt.Fprintf(out, "vats: %d active, %d upgrading, %d suspended, %d terminated; %d paused\nwaiting: %s, and %d set aside\n",
		t.Active, t.Upgrading, t.Suspended, t.Terminated, t.Paused, count(t.Queued, "delivery"), t.Aside)
	if r := v.Rollout; r != nil {
		fmt.Fprintf(out, "\nrollout %d to %s is %s", r.ID, r.Version, r.State)
		if r.Why != "" {
			fmt.Fprintf(out, " (%s)", printable.Text(r.Why))
		}
		if v.ETA > 0 {
			fmt.Fprintf(out, ", about %s to go", count(v.ETA, "block"))
		}
		fmt.Fprintf(out, "\nsteps: %d upgraded, %d failed, %d skipped of %d\n", r.Upgraded, r.Failed, r.Skipped, r.Steps)
		if len(v.Steps) > 0 {
			names := make([]string, len(v.Steps))
			for i, s := range v.Steps {
				names[i] = s.Name
			}
			fmt.Fprintln(out, "next:", strings.Join(names, ", "))
		}
	}
	if len(v.Blocks) > 0 {
		fmt.Fprintln(out)
		fmt.Fprintln(w, "block\tinputs\tcranks\tcomputrons\tout of queues\tupgraded\tfailed")
		for _, b := range v.Blocks {
			fmt.Fprintf(w, "%d\t%d\t%d\t%d\t%d\t%s\t%s\n", b.Height, len(b.Inputs), b.Cranks, b.Used(), b.Upgrades.Deliveries,
				names(v, b.Upgraded), names(v, b.Failed))
		}
		if err := w.Flush(); err != nil {
			return err
		}
	}
	if len(v.Vats) > 0 {
		fmt.Fprintln(out)
		fmt.Fprintln(w, "vat\tstate\tversion\twaiting\twhat happened")
		for _, vat := range v.Vats {
			state := string(vat.State)
			if vat.Paused {
				state += ", paused"
			}
			if vat.LegacyOnly {
				state += ", legacy only"
			}
			why := ""
			if f := vat.Failure; f != nil {
				why = fmt.Sprintf("block %d, attempt %d: %s", f.Height, f.Attempts, printable.Text(f.Problem))
			}
			fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%s\n", vat.Name, state, vat.RunsOn(), vat.Queue+vat.Aside, why)
		}
		if err := w.Flush(); err != nil {
			return err
		}
	}
	if v.More > 0 {
		fmt.Fprintf(out, "and %s (--vats)\n", count(v.More, "more vat"))
	}
	return nil
}
