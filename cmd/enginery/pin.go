package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"

	"github.com/spf13/cobra"

	"github.com/enginery/enginery/resolver"
)

func pinCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "pin [VERSION…]",
		Short: "Keep versions from being removed by gc",
		Long: `Pin keeps versions from being removed by enginery gc. Those of the channels legacy and current are kept anyway, as long as they are
in these. A version need not be there yet. Without arguments it lists what is pinned.`,
		Example:           "  enginery pin agoric-upgrade-16\n  enginery pin",
		ValidArgsFunction: a.completeVersions,
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := resolver.Open(a.home, "")
			if err != nil {
				return err
			}
			versions := make([]string, len(args))
			for i, name := range args {
				m, err := r.Record(name)
				if err != nil {
					return err
				}
				versions[i] = m.Version
			}
			for _, version := range versions {
				if err := r.Home.Pin(version); err != nil {
					return fmt.Errorf("pinning %s: %w", version, err)
				}
			}
			return a.printPinned(cmd)
		},
	}
}

func unpinCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "unpin VERSION…",
		Short:   "Let gc remove versions again",
		Example: "  enginery unpin agoric-upgrade-16",
		Args:    cobra.MinimumNArgs(1),
		ValidArgsFunction: func(*cobra.Command, []string, string) ([]cobra.Completion, cobra.ShellCompDirective) {
			pinned, _ := a.engines().Pinned()
			return pinned, cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			for _, version := range args {
				err := a.engines().Unpin(version)
				if errors.Is(err, fs.ErrNotExist) {
					return usage(fmt.Errorf("%s is not pinned; enginery pin lists what is", version))
				} else if err != nil {
					return fmt.Errorf("unpinning %s: %w", version, err)
				}
			}
			return a.printPinned(cmd)
		},
	}
}

func (a *app) printPinned(cmd *cobra.Command) error {
	pinned, err := a.engines().Pinned()
	if err != nil {
		return err
	}
	result := struct {
		Pinned []string `json:"pinned"`
	}{append([]string{}, pinned...)}
	return a.print(cmd, result, func(out io.Writer) error {
		if len(pinned) == 0 {
			fmt.Fprintln(out, "nothing is pinned")
		}
		for _, version := range pinned {
			fmt.Fprintln(out, version, "is pinned")
		}
		return nil
	})
}
