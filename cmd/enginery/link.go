package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/enginery/enginery/engines"
)

func linkCommand(a *app) *cobra.Command {
	var launcher string
	cmd := &cobra.Command{
		Use:   "link DIR",
		Short: "Have an installed npm package @agoric/xsnap start the launcher",
		Long: `Link puts symbolic links to the launcher, xsnap-worker, where an installed npm package @agoric/xsnap looks for its workers. Those that it came with
are kept beside them; enginery unlink puts them back. DIR is the package's folder, or one that has it in node_modules.

The launcher is the program xsnap-worker in the folder of enginery, or else the one in PATH. docs/launcher.md says how it picks a version.`,
		Example:           "  enginery link ~/agoric-sdk\n  enginery link . --launcher /usr/local/bin/xsnap-worker",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: completeDirectory,
		RunE: func(cmd *cobra.Command, args []string) error {
			if launcher == "" {
				var err error
				if launcher, err = findLauncher(); err != nil {
					return err
				}
			}
			links, err := engines.Link(args[0], launcher)
			if err != nil {
				return err
			}
			return a.printLinks(cmd, "linked", links, launcher)
		},
	}
	cmd.Flags().StringVar(&launcher, "launcher", "", "`program` to start")
	return cmd
}

func unlinkCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:               "unlink DIR",
		Short:             "Give an npm package @agoric/xsnap its own workers back",
		Long:              "Unlink undoes enginery link. DIR is the package's folder, or one that has it in node_modules.",
		Example:           "  enginery unlink ~/agoric-sdk",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: completeDirectory,
		RunE: func(cmd *cobra.Command, args []string) error {
			names, err := engines.Unlink(args[0])
			if err != nil {
				return err
			}
			return a.printLinks(cmd, "restored", names, "")
		},
	}
}

func completeDirectory(*cobra.Command, []string, string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return nil, cobra.ShellCompDirectiveFilterDirs
}

// findLauncher returns the path of the launcher that was installed with this program, or else that in PATH.
func findLauncher() (string, error) {
	self, err := os.Executable()
	if err == nil {
		self, err = filepath.EvalSymlinks(self)
	}
	if err == nil {
		if path := filepath.Join(filepath.Dir(self), engines.WorkerName); isProgram(path) {
			return path, nil
		}
	}
	path, err := exec.LookPath(engines.WorkerName)
	if err != nil {
		return "", errors.New("the launcher, xsnap-worker, is neither in the folder of enginery nor in PATH; install it (go tool mage install), or give --launcher")
	}
	return filepath.Abs(path)
}

func isProgram(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0
}

func (a *app) printLinks(cmd *cobra.Command, what string, names []string, launcher string) error {
	result := struct {
		Workers  []string `json:"workers"`
		Launcher string   `json:"launcher,omitempty"`
	}{append([]string{}, names...), launcher}
	return a.print(cmd, result, func(out io.Writer) error {
		if len(names) == 0 {
			fmt.Fprintln(out, "nothing was linked")
		}
		for _, name := range names {
			fmt.Fprintln(out, what, name)
		}
		return nil
	})
}
