package main

import (
	"slices"

	"github.com/spf13/cobra"

	"github.com/enginery/enginery/engines"
	"github.com/enginery/enginery/manifests"
	"github.com/enginery/enginery/resolver"
)

// completeVersions completes channels and versions, as many as one likes: those that are recorded, also in the release index, and those that are
// stored.
func (a *app) completeVersions(_ *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	names := manifests.IDs()
	if r, err := resolver.Open(a.home, ""); err == nil {
		if index, err := r.Index(); err == nil && index != nil {
			names = append(names, index.IDs()...)
		}
	}
	stored, _ := a.engines().List()
	for _, e := range stored {
		names = append(names, e.Version)
	}
	slices.Sort(names)
	var left []cobra.Completion
	for _, name := range append([]string{engines.Legacy, engines.Current}, slices.Compact(names)...) {
		if !slices.Contains(args, name) {
			left = append(left, name)
		}
	}
	return left, cobra.ShellCompDirectiveNoFileComp
}

// completeTOML completes the name of a TOML file.
var completeTOML = cobra.FixedCompletions([]cobra.Completion{"toml"}, cobra.ShellCompDirectiveFilterFileExt)
