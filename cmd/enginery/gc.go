package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"
)

func gcCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "gc",
		Short: "Remove versions that are neither in a channel nor pinned",
		Long: `Gc removes the versions that are neither pinned nor those of the channels legacy and current, and what interrupted downloads have left. It waits for
those who are installing a version, and takes nothing from workers that run.`,
		Example: "  enginery pin agoric-upgrade-16\n  enginery gc",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			removed, err := a.engines().GC(cmd.Context())
			if err != nil {
				return fmt.Errorf("removing versions: %w", err)
			}
			result := struct {
				Removed []string `json:"removed"`
				Bytes   int64    `json:"bytes"`
			}{append([]string{}, removed.Versions...), removed.Bytes}
			return a.print(cmd, result, func(out io.Writer) error {
				for _, version := range removed.Versions {
					fmt.Fprintln(out, "removed", version)
				}
				_, err := fmt.Fprintf(out, "%.1f MiB freed\n", float64(removed.Bytes)/(1<<20))
				return err
			})
		},
	}
}
