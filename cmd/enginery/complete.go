package main

import (
	"slices"

	"github.com/spf13/cobra"

	"github.com/enginery/enginery/engines"
	"github.com/enginery/enginery/manifests"
)

// completeVersions completes version IDs and channels, as many as one likes.
func completeVersions(_ *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	var left []cobra.Completion
	for _, name := range append([]string{engines.Legacy, engines.Current}, manifests.IDs()...) {
		if !slices.Contains(args, name) {
			left = append(left, name)
		}
	}
	return left, cobra.ShellCompDirectiveNoFileComp
}

// completeTOML completes the name of a TOML file.
var completeTOML = cobra.FixedCompletions([]cobra.Completion{"toml"}, cobra.ShellCompDirectiveFilterFileExt)
