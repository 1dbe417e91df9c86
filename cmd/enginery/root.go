package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/dustin/go-humanize/english"
	"github.com/spf13/cobra"

	"github.com/enginery/enginery/engines"
	"github.com/enginery/enginery/internal/exit"
	"github.com/enginery/enginery/internal/progress"
)

// commands make the subcommands, in the order in which help lists them. Each stands in a file of its own.
var commands = []func(*app) *cobra.Command{
	fetchCommand, prefetchCommand, verifyCommand, statusCommand,
	pinCommand, unpinCommand, gcCommand,
	linkCommand, unlinkCommand,
	mirrorCommand, serveCommand,
	runCommand, replCommand, replayCommand,
	chainCommand,
	policyCommand,
	upgradeCommand,
	versionCommand,
}

// app is what all commands share: the options that each of them has.
type app struct {
	home   string // --home
	asJSON bool   // --json
	quiet  bool   // --quiet
}

// print writes a command's result: v as JSON if that is asked for, and otherwise what text writes.
func (a *app) print(cmd *cobra.Command, v any, text func(out io.Writer) error) error {
	if !a.asJSON {
		return text(cmd.OutOrStdout())
	}
	e := json.NewEncoder(cmd.OutOrStdout())
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(v)
}

// count writes a number with its noun.
func count[N int | int64](n N, noun string) string { return english.Plural(int(n), noun, "") }

// usage makes an error one of the command line.
func usage(err error) error { return &exit.Error{Err: err, Code: exit.Usage} }

const exitHelp = `Exit codes: 0 success, 1 failure, 2 a command line that makes no sense, 3 something is there and is not what it must be, or is not trusted,
4 something cannot be had, 130 interrupted: the same command goes on from there.`

// execute runs a command line and returns its exit status.
func execute(ctx context.Context, args []string) int {
	a := new(app)
	started := false // what fails before that is the command line
	root := a.root()
	prepare(root, &started)
	root.SetArgs(args)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return 0
	}
	if !started {
		err = &exit.Error{Err: fmt.Errorf("%w\nsee: %s --help", err, cmd.CommandPath()), Code: exit.Usage}
	}
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	err = exit.With(err, status)
	fmt.Fprintln(root.ErrOrStderr(), "Error:", err)
	return exit.Status(err, status)
}

func (a *app) root() *cobra.Command {
	cobra.EnableCommandSorting = false
	root := &cobra.Command{
		Use:   "enginery",
		Short: "verified XS engines for nodes, by version",
		Long: `Enginery gets a node the versions of the xsnap worker that it needs: from registries, mirrors and OCI layouts, verified by a policy before they
are visible. It runs them, and shows what is there.

` + exitHelp,
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	home, err := engines.DefaultHome()
	flags := root.PersistentFlags()
	flags.StringVar(&a.home, "home", home, "`folder` with the node's engines, policy and state (also "+engines.HomeEnv+")")
	flags.BoolVar(&a.asJSON, "json", false, "print results for machines")
	flags.BoolVarP(&a.quiet, "quiet", "q", false, "show no progress")
	root.MarkPersistentFlagDirname("home")

	var reporter *progress.Reporter
	root.PersistentPreRunE = func(cmd *cobra.Command, _ []string) error {
		if a.home == "" {
			return fmt.Errorf("there is no home: %w; give one with --home", err)
		}
		if !a.quiet {
			var ctx context.Context
			ctx, reporter = progress.With(cmd.Context(), os.Stderr)
			cmd.SetContext(ctx)
		}
		return nil
	}
	cobra.OnFinalize(func() {
		if reporter != nil {
			reporter.Close()
		}
	})
	for _, command := range commands {
		root.AddCommand(command(a))
	}
	return root
}

// prepare has a command, and those below it, say in started that their command line made sense, and say what arguments they expect. A command that
// only has subcommands demands one.
func prepare(cmd *cobra.Command, started *bool) {
	for _, sub := range cmd.Commands() {
		prepare(sub, started)
	}
	if check := cmd.Args; check != nil {
		cmd.Args = func(cmd *cobra.Command, args []string) error {
			if check(cmd, args) == nil {
				return nil
			}
			found := count(len(args), "argument")
			if len(args) > 0 {
				found += ": " + strings.Join(args, " ")
			}
			return fmt.Errorf("expected %s %s, found %s", cmd.Parent().CommandPath(), cmd.Use, found)
		}
	}
	if run := cmd.RunE; run != nil {
		cmd.RunE = func(cmd *cobra.Command, args []string) error {
			*started = true
			return run(cmd, args)
		}
	} else if cmd.HasParent() && cmd.HasSubCommands() {
		cmd.Args = cobra.ArbitraryArgs
		cmd.RunE = func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return fmt.Errorf("%s needs a subcommand", cmd.CommandPath())
			}
			cmd.SuggestionsMinimumDistance = 2
			hint := ""
			if names := cmd.SuggestionsFor(args[0]); len(names) > 0 {
				hint = "; did you mean " + strings.Join(names, ", ") + "?"
			}
			return fmt.Errorf("unknown command %q for %q%s", args[0], cmd.CommandPath(), hint)
		}
	}
}
