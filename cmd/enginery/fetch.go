package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/enginery/enginery/engines"
	"github.com/enginery/enginery/internal/exit"
	"github.com/enginery/enginery/internal/progress"
	"github.com/enginery/enginery/resolver"
)

// parallel bounds how many versions are readied at a time.
const parallel = 4

// readied is a version that fetch and prefetch were to get.
type readied struct {
	Version  string `json:"version"`
	Ready    bool   `json:"ready"`
	Platform string `json:"platform,omitempty"`
	Index    string `json:"index,omitempty"`
	Dir      string `json:"dir,omitempty"` // folder with its files
	Error    string `json:"error,omitempty"`
	Status   int    `json:"status"` // the exit status that the error stands for
}

func fetchCommand(a *app) *cobra.Command {
	var s sources
	var expect string
	cmd := &cobra.Command{
		Use:   "fetch VERSION…",
		Short: "Get versions, verified, into the node's home",
		Long: `Fetch gets versions from registries, mirrors or OCI layouts. What the policy does not trust, and what is not as recorded, never becomes visible.
Only the files of this platform are fetched. A download that was interrupted goes on where it ended, and a version that is there already costs
nothing. legacy and current stand for the versions of these channels.

A version that is in no channel is fetched too; but it is not run unless archival use is asked for, and gc removes it unless it is pinned.`,
		Example: `  enginery fetch agoric-upgrade-18
  enginery fetch legacy current --from registry.example.org/engines
  enginery fetch agoric-upgrade-18 --from oci:/mnt/usb/engines
  enginery fetch current --expect sha256:0123…  # the digest that the chain has agreed on`,
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: a.completeVersions,
		RunE: func(cmd *cobra.Command, args []string) error {
			o := resolver.Options{Archival: true, Offline: s.offline} // to have a version is not to run it
			if expect != "" {
				if len(args) != 1 {
					return usage(errors.New("--expect is the digest of one version; fetch one at a time"))
				}
				var err error
				if o.Expect, err = digest.Parse(expect); err != nil {
					return usage(fmt.Errorf("--expect=%s: %w; expected sha256:…", expect, err))
				}
			}
			return a.ready(cmd, &s, args, func(ctx context.Context, r *resolver.Resolver, name string) (*engines.Engine, error) {
				e, err := r.Resolve(ctx, name, o)
				if err == nil {
					a.hintPin(ctx, e.Version)
				}
				return e, err
			})
		},
	}
	s.addTo(cmd)
	s.addOfflineTo(cmd)
	cmd.Flags().StringVar(&expect, "expect", "", "`digest` that the version's index must have")
	return cmd
}

func prefetchCommand(a *app) *cobra.Command {
	var s sources
	cmd := &cobra.Command{
		Use:   "prefetch [VERSION…]",
		Short: "Ready every version that a planned upgrade needs, and fail if one is not",
		Long: `Prefetch fetches versions, those of both channels if none are named, and reads every byte of them. It tries them all: exit code 0 says that all of
them are there, whole and trusted, so that the upgrade height needs no network. A version that is in no channel yet is pinned, so that gc leaves it.`,
		Example: `  enginery prefetch                                      # legacy and current
  enginery prefetch agoric-upgrade-18 agoric-upgrade-22  # those of a planned upgrade
  enginery prefetch --offline --json                     # are they all here?`,
		ValidArgsFunction: a.completeVersions,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				args = []string{engines.Legacy, engines.Current}
			}
			return a.ready(cmd, &s, args, func(ctx context.Context, r *resolver.Resolver, name string) (*engines.Engine, error) {
				got, err := r.Prefetch(ctx, []string{name}, resolver.Options{Offline: s.offline})
				if err != nil {
					return nil, err
				}
				return got[0], nil
			})
		},
	}
	s.addTo(cmd)
	s.addOfflineTo(cmd)
	return cmd
}

// ready gets versions, and prints what became of each.
func (a *app) ready(cmd *cobra.Command, s *sources, names []string, get func(ctx context.Context, r *resolver.Resolver, name string) (*engines.Engine, error)) error {
	ctx := cmd.Context()
	r, err := a.resolver(s)
	if err != nil {
		return err
	}
	if !s.offline {
		if err := a.refresh(ctx, r); err != nil {
			return err
		}
	}
	results := make([]readied, len(names))
	failures := make([]error, len(names))
	var g errgroup.Group
	g.SetLimit(parallel)
	for i, name := range names {
		g.Go(func() error {
			e, err := get(ctx, r, name)
			if err != nil {
				failures[i], results[i] = err, readied{Version: name, Error: err.Error(), Status: exit.Status(err, status)}
				return nil
			}
			results[i] = readied{Version: e.Version, Ready: true, Platform: e.Platform, Index: e.Index, Dir: e.Dir()}
			return nil
		})
	}
	g.Wait()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	results = slices.CompactFunc(results, func(a, b readied) bool { return a == b }) // both channels may have the same version
	err = a.print(cmd, results, func(out io.Writer) error {
		for _, r := range results {
			if r.Ready {
				fmt.Fprintf(out, "%s  %s  %s  ready\n", r.Version, r.Platform, r.Index)
			}
		}
		return nil
	})
	return joined(append(failures, err)...)
}

// refresh gets the newest release index, if the policy has one. Until the one at hand expires that may fail.
func (a *app) refresh(ctx context.Context, r *resolver.Resolver) error {
	have, err := r.Refresh(ctx)
	if err == nil || ctx.Err() != nil {
		return err
	}
	if have == nil || have.Expired(time.Now()) != nil {
		return err
	}
	progress.Logf(ctx, "going on with the release index of version %d, good until %s: %v", have.Version, have.Expires.Format(time.RFC3339), err)
	return nil
}

// hintPin says that gc would remove a version.
func (a *app) hintPin(ctx context.Context, version string) {
	store := a.engines()
	c, err := store.Channels()
	pinned, perr := store.Pinned()
	if err == nil && perr == nil && c.Channel(version) == "" && !slices.Contains(pinned, version) {
		progress.Logf(ctx, "%[1]s is in no channel: gc removes it unless it is pinned (enginery pin %[1]s)", version)
	}
}
