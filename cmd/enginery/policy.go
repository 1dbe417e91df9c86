package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/enginery/enginery/resolver"
)

func policyCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "policy [FILE]",
		Short: "Show the policy that counts on this node, or check a file",
		Long: `Policy shows who must have vouched for a version before this node runs it: policy.toml in the home, or the policy that ships. With a file it checks
that one instead. An error names the line. docs/release.md describes every key; enginery verify applies a policy.`,
		Example:           "  enginery policy\n  enginery policy my-policy.toml",
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: completeTOML,
		RunE: func(cmd *cobra.Command, args []string) error {
			given := ""
			if len(args) > 0 {
				given = args[0]
			}
			name, p, text, err := resolver.LoadPolicy(a.home, given)
			if err != nil {
				return err
			}
			result := struct {
				policyStatus
				Text string `json:"text"`
			}{policyStatus{name, p.Digest().String(), append([]string{}, p.Sources...)}, string(text)}
			return a.print(cmd, result, func(out io.Writer) error {
				_, err := fmt.Fprintf(out, "# %s\n# %s\n%s", name, p.Digest(), text)
				return err
			})
		},
	}
}
