package main

import (
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/enginery/enginery/engines"
	"github.com/enginery/enginery/repository"
	"github.com/enginery/enginery/resolver"
)

// engines returns the engines that the node has. Nothing is read yet.
func (a *app) engines() *engines.Store { return engines.Open(a.home) }

// sources are the flags of commands that get versions from somewhere.
type sources struct {
	from     []string      // --from
	policy   string        // --policy
	patience time.Duration // --patience
	offline  bool          // --offline
}

func (s *sources) addTo(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringArrayVar(&s.from, "from", nil, "`REF` to take versions from, in place of the policy's sources: HOST/NAME or oci:DIR; may be given again")
	flags.StringVar(&s.policy, "policy", "", "policy `file`, in place of policy.toml in the home")
	addPatienceTo(cmd, &s.patience)
	cmd.RegisterFlagCompletionFunc("policy", completeTOML)
	cmd.RegisterFlagCompletionFunc("from", cobra.FixedCompletions([]cobra.Completion{"oci:"}, cobra.ShellCompDirectiveNoFileComp|cobra.ShellCompDirectiveNoSpace))
}

func addPatienceTo(cmd *cobra.Command, patience *time.Duration) {
	cmd.Flags().DurationVar(patience, "patience", 30*time.Second, "for how long a registry that does not answer is asked again")
}

func (s *sources) addOfflineTo(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&s.offline, "offline", false, "ask no network: what the node has must do")
}

// resolver returns the node's way to its engines.
func (a *app) resolver(s *sources) (*resolver.Resolver, error) {
	for _, ref := range s.from {
		if _, err := repository.Open(ref); err != nil {
			return nil, usage(fmt.Errorf("--from: %w", err))
		}
	}
	if err := checkPolicy(s.policy); err != nil {
		return nil, err
	}
	r, err := resolver.Open(a.home, s.policy)
	if err != nil {
		return nil, err
	}
	r.Sources, r.Patience = s.from, s.patience
	return r, nil
}

// checkPolicy refuses a command line that names a policy file that is not there.
func checkPolicy(file string) error {
	if file == "" {
		return nil
	}
	if _, err := os.Stat(file); err != nil {
		return usage(fmt.Errorf("the policy: %w", err))
	}
	return nil
}
