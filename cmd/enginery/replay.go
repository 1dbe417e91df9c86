package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/google/renameio/v2"
	"github.com/spf13/cobra"

	"github.com/enginery/enginery/internal/exit"
	"github.com/enginery/enginery/replay"
	"github.com/enginery/enginery/replay/report"
	"github.com/enginery/enginery/replay/transcripts"
	"github.com/enginery/enginery/swingstore"
	"github.com/enginery/enginery/vat"
)

// replayFlags are the flags of commands that replay a store.
type replayFlags struct {
	guest
	replay.Options
	store    string   // --store
	archives []string // --archive
	start    string   // --start
	bundles  string   // --bundles
	resume   bool     // --resume
	partial  bool     // --partial
	page     string   // --report
	junit    string   // --junit
}

func (f *replayFlags) addTo(cmd *cobra.Command) {
	f.addEngineTo(cmd)
	flags := cmd.Flags()
	flags.StringVar(&f.store, "store", "", "`SOURCE` of transcripts: a swing-store (also a running node's), an export folder, a slog, or a one-vat transcript")
	flags.StringArrayVar(&f.archives, "archive", nil, "`folder` to which the node has moved spans or heap snapshots; may be given again")
	flags.StringSliceVar(&f.Vats, "vat", nil, "vats to replay, by `ID` or name; all by default")
	flags.TextVar(&f.Passes, "level", replay.SameBehaviour, "`LEVEL` that passes: identical, same-behaviour or same-outcome")
	flags.StringVar(&f.bundles, "bundles", replay.BundlesRecorded, "`WHICH` lockdown and supervisor workers start from: recorded, or the version's own: version")
	flags.BoolVar(&f.KeepWorker, "keep-worker", false, "do not start the worker anew from each heap snapshot that it takes, though the chain did")
	flags.IntVarP(&f.Jobs, "jobs", "j", 0, "workers at a time; 0: one for each CPU")
	flags.DurationVar(&f.Timeout, "timeout", replay.DefaultTimeout, "how long a delivery may take")
	flags.BoolVar(&f.resume, "resume", true, "take what earlier runs found out, and keep what this one does; --resume=false does all of it again")
	flags.StringVar(&f.page, "report", "", "write a page for reviewers to `file.html`")
	flags.StringVar(&f.junit, "junit", "", "write JUnit XML for CI to a `file`")
	flags.StringVar(&f.Reproducers, "reproducers", "", "write files for enginery replay reproduce to a `folder`, one for the first difference of each kind of a vat")
	cmd.MarkFlagRequired("store")
	for name, values := range map[string][]string{"level": replay.Levels[1:], "bundles": {replay.BundlesRecorded, replay.BundlesVersion}} {
		cmd.RegisterFlagCompletionFunc(name, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp))
	}
	for _, name := range []string{"archive", "reproducers"} {
		cmd.MarkFlagDirname(name)
	}
}

// check finds what is wrong with a command line before anything is done. Files are those that the command will write.
func (f *replayFlags) check(a *app, files ...string) error {
	if f.Passes == replay.Divergent {
		return usage(fmt.Errorf("--level divergent: everything would pass; expected one of %s", strings.Join(replay.Levels[1:], ", ")))
	}
	switch f.bundles {
	case replay.BundlesRecorded:
	case replay.BundlesVersion:
		f.VersionBundles = true
	default:
		return usage(fmt.Errorf("--bundles %s: expected %s or %s", f.bundles, replay.BundlesRecorded, replay.BundlesVersion))
	}
	if f.Jobs < 0 {
		return usage(fmt.Errorf("--jobs %d: expected 0 or more", f.Jobs))
	}
	if err := checkTimeout(f.Timeout); err != nil {
		return err
	}
	for _, file := range append(files, f.page, f.junit) {
		if file == "" {
			continue
		}
		if info, err := os.Stat(filepath.Dir(file)); err != nil {
			return usage(fmt.Errorf("%s could not be written: %w", file, err))
		} else if !info.IsDir() {
			return usage(fmt.Errorf("%s could not be written: %s is no folder", file, filepath.Dir(file)))
		}
		if info, err := os.Stat(file); err == nil && info.IsDir() {
			return usage(fmt.Errorf("%s could not be written: it is a folder", file))
		}
	}
	for _, folder := range []string{f.Reproducers, f.Snapshots} {
		if info, err := os.Stat(folder); err == nil && !info.IsDir() {
			return usage(fmt.Errorf("nothing could be written to %s: it is no folder", folder))
		}
	}
	f.archival = true // nothing that is found out here reaches consensus
	if f.resume {
		f.Cache = filepath.Join(a.home, "state", "replay")
	}
	return nil
}

func checkTimeout(d time.Duration) error {
	if d <= 0 {
		return usage(fmt.Errorf("--timeout %v: expected more than 0", d))
	}
	return nil
}

// source opens what is to be replayed.
func (f *replayFlags) source(ctx context.Context) (transcripts.Source, error) {
	for _, path := range append([]string{f.store}, f.archives...) {
		if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
			return nil, usage(fmt.Errorf("the source of transcripts: %w", err))
		}
	}
	return transcripts.Open(ctx, f.store, f.archives...)
}

// engine returns a version to replay on.
func (a *app) engine(cmd *cobra.Command, g *guest, version string) (*vat.Engine, error) {
	o, err := a.guest(cmd, g, version)
	if err != nil {
		return nil, err
	}
	e, err := vat.Installed(o.Engine)
	if err != nil {
		return nil, err
	}
	e.Worker.Debug = o.Debug
	return e, nil
}

const replayHelp = `A store is only read, and a node may be writing it. What this run finds out is kept under the digests of engine, heap snapshot and spans, so the
same command after Ctrl-C, or on a store that has grown, does only what is missing.

Levels: identical (syscalls, results, computrons, heap snapshots), same-behaviour (syscalls and results), same-outcome (reads of the vatstore
and garbage collection in another order). The rest is divergent. docs/replay.md says more.

` + guestHelp

func replayCommand(a *app) *cobra.Command {
	var f replayFlags
	var version string
	cmd := &cobra.Command{
		Use:   "replay --store SOURCE --version VERSION",
		Short: "Replay vats' transcripts on a version: same or different, and where",
		Long: `Replay runs every span of every vat of a store on a version, and says of each whether it does what was recorded, and if not, where it parts.

` + replayHelp + `

Exit codes: 0 all that was recorded passes; 1 failure, also a source that cannot be read; 2 a command line that makes no sense; 3 something does not
pass; 4 something cannot be had: the version, or spans that the source no longer has (--partial: then these do not count); 130 interrupted.`,
		Example: `  enginery replay --store swingstore.sqlite --version agoric-upgrade-18 --report report.html
  enginery replay --store ~/.agoric/data/agoric --version current --level identical --jobs 4 --junit replay.xml
  enginery replay --store export/ --version agoric-upgrade-22 --vat v9,bank --start bundles --reproducers differences/`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if f.Start = replay.Start(f.start); !slices.Contains([]replay.Start{replay.FromSnapshots, replay.FromBundles}, f.Start) {
				return usage(fmt.Errorf("--start %s: expected %s or %s", f.start, replay.FromSnapshots, replay.FromBundles))
			}
			if err := f.check(a); err != nil {
				return err
			}
			return a.replay(cmd, &f, []string{version}, func(ctx context.Context, s transcripts.Source, e []*vat.Engine) (*replay.Report, error) {
				return replay.Run(ctx, s, e[0], f.Options)
			})
		},
	}
	f.addTo(cmd)
	cmd.Flags().StringVar(&version, "version", "", "`VERSION` to replay on, or a channel")
	cmd.Flags().StringVar(&f.start, "start", string(replay.FromSnapshots), "`WHERE` replays start: snapshots, or bundles, each incarnation from its beginning")
	cmd.Flags().BoolVar(&f.partial, "partial", false, "spans that the source no longer has do not count")
	cmd.MarkFlagRequired("version")
	cmd.RegisterFlagCompletionFunc("version", a.completeVersions)
	cmd.RegisterFlagCompletionFunc("start", cobra.FixedCompletions([]cobra.Completion{string(replay.FromSnapshots), string(replay.FromBundles)}, cobra.ShellCompDirectiveNoFileComp))
	cmd.AddCommand(compareCommand(a), reproduceCommand(a))
	return cmd
}

func compareCommand(a *app) *cobra.Command {
	var f replayFlags
	var classification string
	cmd := &cobra.Command{
		Use:   "compare A B --store SOURCE",
		Short: "Say of each vat what it takes to bring it from version A to B",
		Long: `Compare replays a store on two versions: on A, on B from the heap snapshots that there are, and on B from bundles. It rehearses an upgrade
of each vat to B on a copy. Then it says of each vat that it can resume on B, must be upgraded, or diverges and stays on A, and why.

` + replayHelp + `

Exit codes: 0 every vat has a way to B; 1 failure, also a source that cannot be read; 2 a command line that makes no sense; 3 a vat has to stay on A;
4 something cannot be had; 130 interrupted.`,
		Example: `  enginery replay compare agoric-upgrade-18 agoric-upgrade-22 --store swingstore.sqlite --report report.html
  enginery replay compare legacy current --store swingstore.sqlite --classification classification.json --snapshots migrated/`,
		Args:              cobra.ExactArgs(2),
		ValidArgsFunction: a.completeVersions,
		RunE: func(cmd *cobra.Command, args []string) error {
			f.partial = true // a classification says what is missing of a vat
			if err := f.check(a, classification); err != nil {
				return err
			}
			return a.replay(cmd, &f, args, func(ctx context.Context, s transcripts.Source, e []*vat.Engine) (*replay.Report, error) {
				r, err := replay.Compare(ctx, s, e[0], e[1], f.Options)
				if err != nil {
					return nil, err
				}
				return r, write(classification, func(w io.Writer) error { return report.WriteClassification(w, r.Classification) })
			})
		},
	}
	f.addTo(cmd)
	cmd.Flags().StringVar(&classification, "classification", "", "write what is to become of each vat to `file.json`, for enginery upgrade plan")
	cmd.Flags().StringVar(&f.Snapshots, "snapshots", "", "write the heap snapshots of vats that can be migrated to a `folder`")
	cmd.MarkFlagDirname("snapshots")
	return cmd
}

// replay replays a store on versions, and writes what came of it.
func (a *app) replay(cmd *cobra.Command, f *replayFlags, versions []string, run func(context.Context, transcripts.Source, []*vat.Engine) (*replay.Report, error)) error {
	ctx := cmd.Context()
	source, err := f.source(ctx)
	if err != nil {
		return err
	}
	defer source.Close()
	var engines []*vat.Engine
	for _, version := range versions {
		e, err := a.engine(cmd, &f.guest, version)
		if err != nil {
			return err
		}
		engines = append(engines, e)
	}
	live := report.NewLive(ctx)
	f.Observe = live.Observe
	r, err := run(ctx, source, engines)
	live.Close(err)
	if errors.Is(err, swingstore.ErrNotFound) {
		return &exit.Error{Err: err, Code: exit.Unavailable}
	} else if err != nil {
		return err
	}
	if err := write(f.page, func(w io.Writer) error { return report.WriteHTML(w, r) }); err != nil {
		return err
	}
	if err := write(f.junit, func(w io.Writer) error { return report.WriteJUnit(w, r) }); err != nil {
		return err
	}
	show := report.WriteText
	if a.asJSON {
		show = report.WriteJSON
	}
	if err := show(cmd.OutOrStdout(), r); err != nil {
		return err
	}
	switch v := report.VerdictOf(r); {
	case !v.Passed:
		return &exit.Error{Err: errors.New(v.Sentence), Code: exit.Different}
	case !v.Whole && !f.partial:
		return &exit.Error{Err: errors.New("the source no longer has all that it tells of; give --archive, take a store with everything, or let it pass with --partial"), Code: exit.Unavailable}
	}
	return nil
}

// write writes a file whole or not at all, if it has a name.
func write(file string, to func(io.Writer) error) error {
	if file == "" {
		return nil
	}
	var b bytes.Buffer
	if err := to(&b); err != nil {
		return fmt.Errorf("writing %s: %w", file, err)
	}
	if err := renameio.WriteFile(file, b.Bytes(), 0o644); err != nil {
		return fmt.Errorf("writing %s: %w", file, err)
	}
	return nil
}

func reproduceCommand(a *app) *cobra.Command {
	var g guest
	var o replay.Options
	var version string
	cmd := &cobra.Command{
		Use:   "reproduce FILE",
		Short: "Show one difference that a replay found, alone",
		Long: `Reproduce replays a file that enginery replay --reproducers wrote. The file has all that one difference needs, but for the engine: the heap snapshot or
bundles that the vat starts from, and its transcript up to there. --version runs it on another version than the one it was found on.

` + guestHelp + `

Exit codes: 0 there is no difference any more; 1 failure, also a file that is no reproducer; 2 a command line that makes no sense; 3 there is the
difference, or another; 4 the version cannot be had; 130 interrupted.`,
		Example: `  enginery replay reproduce differences/v9-1204-wrong-syscall-agoric-upgrade-22-snapshots.sqlite
  enginery replay reproduce v9-1204-computrons-agoric-upgrade-22-bundles.sqlite --version agoric-upgrade-18`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkTimeout(o.Timeout); err != nil {
				return err
			}
			if _, err := os.Stat(args[0]); err != nil {
				return usage(fmt.Errorf("the reproducer: %w", err))
			}
			about, err := replay.ReadReproducer(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if version == "" {
				version = about.Column.Version
				g.debug = g.debug || about.Column.Debug
			}
			g.archival = true
			e, err := a.engine(cmd, &g, version)
			if err != nil {
				return err
			}
			r, err := replay.Reproduce(cmd.Context(), args[0], e, o)
			if err != nil {
				return err
			}
			if err := a.print(cmd, r, func(out io.Writer) error {
				return report.WriteReproduction(out, r, replay.Column{Version: version, Debug: g.debug}.Name())
			}); err != nil {
				return err
			}
			if len(r.Found) > 0 {
				return &exit.Error{Err: fmt.Errorf("%s does something else than was recorded", version), Code: exit.Different}
			}
			return nil
		},
	}
	g.addEngineTo(cmd)
	cmd.Flags().StringVar(&version, "version", "", "`VERSION` to run it on; the engine that it was found on by default")
	cmd.Flags().DurationVar(&o.Timeout, "timeout", replay.DefaultTimeout, "how long a delivery may take")
	cmd.RegisterFlagCompletionFunc("version", a.completeVersions)
	return cmd
}
