package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"github.com/opencontainers/go-digest"
	"github.com/spf13/cobra"

	"github.com/enginery/enginery/artifact"
	"github.com/enginery/enginery/engines"
	"github.com/enginery/enginery/internal/exit"
	"github.com/enginery/enginery/repl"
	"github.com/enginery/enginery/resolver"
	"github.com/enginery/enginery/xsnap"
)

// guest are the flags of commands that run an engine.
type guest struct {
	sources
	archival bool  // --archival
	ignore   bool  // --insecure-ignore-policy
	debug    bool  // --debug
	limit    int64 // --metering-limit
}

func (g *guest) addTo(cmd *cobra.Command) {
	g.addEngineTo(cmd)
	flags := cmd.Flags()
	flags.BoolVar(&g.archival, "archival", os.Getenv(engines.ArchivalEnv) == "1", "also run a version that is in no channel (also "+engines.ArchivalEnv+"=1)")
	flags.Int64Var(&g.limit, "metering-limit", 0, "`computrons` that a script may use; 0 is no limit")
}

// addEngineTo adds only those that say which engine.
func (g *guest) addEngineTo(cmd *cobra.Command) {
	g.sources.addTo(cmd)
	flags := cmd.Flags()
	flags.BoolVar(&g.ignore, "insecure-ignore-policy", false, "run from the layouts of --from what nobody has vouched for, if it is as recorded; not for consensus")
	flags.BoolVar(&g.debug, "debug", false, "run the debug worker, which counts other computrons; not for consensus")
}

const guestHelp = `VERSION is one that the node has (enginery fetch). With --from it is fetched if need be, and must be trusted as ever.

What a developer has just built is signed by nobody. --insecure-ignore-policy runs it straight from the layout, oci:out/oci: it is still what the
record says, or it is refused, but nobody else needs to have vouched for it. It is not installed.`

func runCommand(a *app) *cobra.Command {
	var g guest
	cmd := &cobra.Command{
		Use:   "run VERSION FILE",
		Short: "Evaluate a script on an engine, and print its result and meter",
		Long: `Run evaluates a script on a fresh heap and prints its value, and what the meter says of it. What the script prints goes to standard error.

` + guestHelp,
		Example: `  enginery run agoric-upgrade-18 script.js
  enginery run current script.js --json
  enginery run agoric-upgrade-16 script.js --from oci:out/oci --insecure-ignore-policy`,
		Args:              cobra.ExactArgs(2),
		ValidArgsFunction: a.completeVersionThen(cobra.ShellCompDirectiveDefault),
		RunE: func(cmd *cobra.Command, args []string) error {
			if info, err := os.Stat(args[1]); err != nil {
				return usage(fmt.Errorf("the script: %w", err))
			} else if info.IsDir() {
				return usage(fmt.Errorf("the script: %s is a folder", args[1]))
			}
			engine, err := a.guest(cmd, &g, args[0])
			if err != nil {
				return err
			}
			engine.Name = "run"
			return repl.RunFile(cmd.Context(), engine, args[1], a.asJSON, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	g.addTo(cmd)
	return cmd
}

func replCommand(a *app) *cobra.Command {
	var g guest
	var against string
	cmd := &cobra.Command{
		Use:   "repl VERSION",
		Short: "Evaluate scripts line by line, on two versions side by side if need be",
		Long: `Repl reads scripts from a terminal, with a line editor, or from a pipe, and prints their values; :help lists its commands. With --against it
evaluates them on a second version too, and prints both answers where they differ.

` + guestHelp,
		Example: `  enginery repl current
  enginery repl agoric-upgrade-18 --against agoric-upgrade-22
  echo '1 + 1' | enginery repl agoric-upgrade-16 --from oci:out/oci --insecure-ignore-policy`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeVersionThen(cobra.ShellCompDirectiveNoFileComp),
		RunE: func(cmd *cobra.Command, args []string) error {
			if a.asJSON {
				return usage(errors.New("repl is for people and has no --json; enginery run has"))
			}
			engine, err := a.guest(cmd, &g, args[0])
			if err != nil {
				return err
			}
			engine.Name = "repl"
			o := repl.Options{Engine: engine, In: os.Stdin, Out: cmd.OutOrStdout(), History: filepath.Join(a.home, "state", "repl-history")}
			if against != "" {
				second, err := a.guest(cmd, &g, against)
				if err != nil {
					return err
				}
				second.Name = "repl"
				o.Against = &second
			}
			// Ctrl-C ends a script, and not the program.
			ctx, stop := signal.NotifyContext(context.WithoutCancel(cmd.Context()), syscall.SIGTERM)
			defer stop()
			return repl.Run(ctx, o)
		},
	}
	g.addTo(cmd)
	cmd.Flags().StringVar(&against, "against", "", "second `version`")
	cmd.RegisterFlagCompletionFunc("against", a.completeVersions)
	return cmd
}

func (a *app) completeVersionThen(then cobra.ShellCompDirective) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, word string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, then
		}
		return a.completeVersions(cmd, args, word)
	}
}

// guest returns the engine that a command is to run.
func (a *app) guest(cmd *cobra.Command, g *guest, name string) (xsnap.Options, error) {
	o := xsnap.Options{Debug: g.debug, MeteringLimit: g.limit, Stderr: cmd.ErrOrStderr()}
	var err error
	if g.ignore {
		if o.Engine, err = a.unvouched(g.from, name); err != nil {
			return o, err
		}
		fmt.Fprintf(cmd.ErrOrStderr(), "WARNING: the policy is ignored: %s is what the record says, but nobody needs to have vouched for it; not for consensus\n", o.Engine.Version)
		return o, nil
	}
	r, err := a.resolver(&g.sources)
	if err != nil {
		return o, err
	}
	o.Engine, err = r.Resolve(cmd.Context(), name, resolver.Options{Archival: g.archival, Offline: len(g.from) == 0})
	var notInService *engines.NotInServiceError
	switch {
	case errors.As(err, &notInService):
		return o, fmt.Errorf("%w (--archival)", err)
	case errors.Is(err, engines.ErrNotInstalled):
		return o, fmt.Errorf("%w; or, if you have built it here: --from oci:out/oci --insecure-ignore-policy", err)
	}
	return o, err
}

// unvouched returns the engine of a version in a layout, whose files stay there. It is the recorded one.
func (a *app) unvouched(from []string, name string) (*engines.Engine, error) {
	r, err := resolver.Open(a.home, "")
	if err != nil {
		return nil, err
	}
	m, err := r.Record(name)
	if err != nil {
		return nil, err
	}
	if len(from) == 0 {
		return nil, usage(errors.New("--insecure-ignore-policy needs a layout to take the version from: --from oci:DIR"))
	}
	var tried []error
	for _, source := range from {
		dir, ok := strings.CutPrefix(source, "oci:")
		if !ok {
			return nil, usage(fmt.Errorf("--insecure-ignore-policy is for layouts on this machine, --from oci:DIR, and not for %s", source))
		}
		art, err := artifact.Open(dir, m.Version)
		if errors.Is(err, artifact.ErrNotFound) || errors.Is(err, fs.ErrNotExist) {
			err = &exit.Error{Err: err, Code: exit.Unavailable}
		}
		if err != nil {
			tried = append(tried, err)
			continue
		}
		if art.Index.Digest.String() != m.Index {
			return nil, &resolver.UnexpectedError{Version: m.Version, Want: digest.Digest(m.Index), Have: art.Index.Digest, Where: source}
		}
		return inLayout(dir, art)
	}
	return nil, &resolver.UnavailableError{Version: m.Version, Tried: tried}
}

// inLayout returns the engine of this platform in a layout, with the blobs as its files.
func inLayout(dir string, art *artifact.Artifact) (*engines.Engine, error) {
	native := runtime.GOOS + "/" + runtime.GOARCH
	p, ok := art.Platform(native)
	if !ok {
		return nil, fmt.Errorf("%s is not built for %s", art.ID, native)
	}
	e := &engines.Engine{Version: art.ID, Platform: native, Index: art.Index.Digest.String(), Manifest: p.Manifest.Digest.String()}
	for title, file := range map[string]*engines.File{
		artifact.Worker: &e.Worker, artifact.DebugWorker: &e.DebugWorker, artifact.Lockdown: &e.Lockdown, artifact.Supervisor: &e.Supervisor, "": &e.Config,
	} {
		d, ok := p.File(title)
		if title == "" {
			d, ok = p.Config, true
		}
		if !ok {
			continue
		}
		path, err := artifact.BlobPath(dir, d)
		if err != nil {
			return nil, err
		}
		*file = engines.File{Path: path, SHA256: d.Digest.Encoded(), Size: d.Size}
	}
	return e, nil
}
