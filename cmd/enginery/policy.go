package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/enginery/enginery/resolver"
	"github.com/enginery/enginery/trust"
)

func policyCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "policy",
		Short: "Show, check or write the policy of who must have vouched for a version",
		Long: `A policy says who must have vouched for a version before this node has it: policy.toml in the home, or else the policy that ships. docs/release.md
describes every key of it; enginery verify applies one.`,
	}
	cmd.AddCommand(policyShowCommand(a), policyCheckCommand(a), policyInitCommand(a))
	return cmd
}

func policyShowCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "show",
		Short:   "Show the policy that counts on this node",
		Example: "  enginery policy show",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.showPolicy(cmd, "", true)
		},
	}
}

func policyCheckCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:               "check FILE",
		Short:             "Check that a policy file makes sense",
		Long:              "Check reads a policy file, with the keys that it names, and says in which line it makes no sense.",
		Example:           "  enginery policy check my-policy.toml",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: completeTOML,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.showPolicy(cmd, args[0], false)
		},
	}
}

func (a *app) showPolicy(cmd *cobra.Command, given string, whole bool) error {
	if err := checkPolicy(given); err != nil {
		return err
	}
	name, p, text, err := resolver.LoadPolicy(a.home, given)
	if err != nil {
		return err
	}
	result := struct {
		policyStatus
		Text string `json:"text,omitempty"`
	}{policyStatus: policyStatus{name, p.Digest().String(), append([]string{}, p.Sources...)}}
	if whole {
		result.Text = string(text)
	}
	return a.print(cmd, result, func(out io.Writer) error {
		if !whole {
			_, err := fmt.Fprintf(out, "%s  %s  makes sense\n", name, p.Digest())
			return err
		}
		_, err := fmt.Fprintf(out, "# %s\n# %s\n%s", name, p.Digest(), text)
		return err
	})
}

func policyInitCommand(a *app) *cobra.Command {
	var from []string
	cmd := &cobra.Command{
		Use:   "init KEY.pub…",
		Short: "Write a policy for this node that trusts what a key has signed",
		Long: `Init writes policy.toml to the home: a version counts if one of the keys has signed it. That is what one needs to use versions that one has built and
signed; edit it to ask for more, such as independent rebuilds. It overwrites nothing.`,
		Example: "  enginery policy init me.pub --from oci:out/oci",
		Args:    cobra.MinimumNArgs(1),
		ValidArgsFunction: func(*cobra.Command, []string, string) ([]cobra.Completion, cobra.ShellCompDirective) {
			return []cobra.Completion{"pub"}, cobra.ShellCompDirectiveFilterFileExt
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			keys := make(map[string]string)
			for _, file := range args {
				public, err := os.ReadFile(file)
				if err != nil {
					return usage(fmt.Errorf("the public key: %w", err))
				}
				keys[strings.ToLower(strings.TrimSuffix(filepath.Base(file), filepath.Ext(file)))] = string(public)
			}
			for i, ref := range from {
				if dir, ok := strings.CutPrefix(ref, "oci:"); ok { // wherever the node's commands are run
					dir, err := filepath.Abs(dir)
					if err != nil {
						return err
					}
					from[i] = "oci:" + dir
				}
			}
			text, err := trust.FormatPolicy(from, keys)
			if err != nil {
				return err
			}
			path := filepath.Join(a.home, "policy.toml")
			if err := writeNew(path, text); errors.Is(err, fs.ErrExist) {
				return fmt.Errorf("%s is there already; edit it, or remove it first", path)
			} else if err != nil {
				return fmt.Errorf("writing the policy: %w", err)
			}
			return a.showPolicy(cmd, path, true)
		},
	}
	cmd.Flags().StringArrayVar(&from, "from", nil, "`REF` that versions come from: HOST/NAME or oci:DIR; may be given again")
	return cmd
}

// writeNew writes a file that must not be there, whole or not at all.
func writeNew(path string, content []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(content)
	if err := errors.Join(err, f.Chmod(0o644), f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Link(f.Name(), path)
}
