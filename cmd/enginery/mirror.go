package main

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/enginery/enginery/internal/exit"
	"github.com/enginery/enginery/repository"
)

// mirrored is a tag that mirror was to copy.
type mirrored struct {
	Tag    string `json:"tag"`
	Digest string `json:"digest,omitempty"`
	Error  string `json:"error,omitempty"`
	Status int    `json:"status"`
}

func mirrorCommand(a *app) *cobra.Command {
	var patience time.Duration
	cmd := &cobra.Command{
		Use:   "mirror SRC DST [TAG…]",
		Short: "Copy versions, with all that refers to them, between registries and layouts",
		Long: `Mirror copies versions, for all platforms, with their signatures, attestations, SBOMs and whatever else refers to them. SRC and DST are HOST/NAME or
oci:DIR. Without tags it copies all that SRC has. What is there already is not sent again; a tag is set when all that it names is there.

Every byte is checked against its digest. Whether a version is trusted is decided where it is fetched.`,
		Example: `  enginery mirror registry.example.org/engines oci:/mnt/usb/engines
  enginery mirror oci:/mnt/usb/engines localhost:5000/engines agoric-upgrade-18`,
		Args: cobra.MinimumNArgs(2),
		ValidArgsFunction: func(cmd *cobra.Command, args []string, word string) ([]cobra.Completion, cobra.ShellCompDirective) {
			if len(args) < 2 {
				return []cobra.Completion{"oci:"}, cobra.ShellCompDirectiveNoSpace | cobra.ShellCompDirectiveNoFileComp
			}
			return a.completeVersions(cmd, args[2:], word)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			from, err := repository.Open(args[0], repository.Patience(patience))
			if err != nil {
				return usage(err)
			}
			to, err := repository.Open(args[1], repository.Patience(patience))
			if err != nil {
				return usage(err)
			}
			tags := args[2:]
			if len(tags) == 0 {
				if tags, err = from.Tags(ctx); err != nil {
					return err
				}
				tags = slices.DeleteFunc(tags, standsForReferrers)
				if len(tags) == 0 {
					return &exit.Error{Err: fmt.Errorf("%s has no tags: there is nothing to copy", args[0]), Code: exit.Unavailable}
				}
			}
			var results []mirrored
			var failures []error
			for _, tag := range tags {
				d, err := repository.Copy(ctx, from, to, tag)
				if ctx.Err() != nil {
					return ctx.Err()
				}
				if err != nil {
					failures = append(failures, err)
					results = append(results, mirrored{Tag: tag, Error: err.Error(), Status: exit.Status(err, status)})
					continue
				}
				results = append(results, mirrored{Tag: tag, Digest: d.Digest.String()})
			}
			err = a.print(cmd, results, func(out io.Writer) error {
				for _, r := range results {
					if r.Error == "" {
						fmt.Fprintf(out, "%s  %s  copied to %s\n", r.Tag, r.Digest, to.Name())
					}
				}
				return nil
			})
			return joined(append(failures, err)...)
		},
	}
	addPatienceTo(cmd, &patience)
	return cmd
}

// standsForReferrers reports whether a tag stands in for the referrers API, or is one of cosign's: they are copied with what they are about.
func standsForReferrers(tag string) bool { return strings.HasPrefix(tag, "sha256-") }

// joined joins errors; one alone is itself.
func joined(errs ...error) error {
	errs = slices.DeleteFunc(errs, func(err error) bool { return err == nil })
	if len(errs) == 1 {
		return errs[0]
	}
	return errors.Join(errs...)
}
