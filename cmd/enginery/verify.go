package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/enginery/enginery/internal/exit"
	"github.com/enginery/enginery/manifests"
	"github.com/enginery/enginery/repository"
	"github.com/enginery/enginery/resolver"
)

// verified is what verify has found out.
type verified struct {
	Subject string            `json:"subject"`          // as it was given
	File    []manifests.Place `json:"file,omitempty"`   // what it is, if it is a file
	SHA256  string            `json:"sha256,omitempty"` // of the file
	*resolver.Explanation
}

func verifyCommand(a *app) *cobra.Command {
	var s sources
	cmd := &cobra.Command{
		Use:   "verify VERSION|REF|FILE",
		Short: "Show who vouches for a version, and whether that is enough",
		Long: `Verify prints what must be true of a version, whether it is, and by whom. Nothing is installed or changed.

VERSION  by what the node has, and what its sources have; if the node has the version, its files are read and checked
REF      HOST/NAME:TAG, HOST/NAME@DIGEST, oci:DIR:TAG: by what is there; in a layout, every byte of it is read and checked
FILE     a file of a version, such as a worker: of which version it is, and then as VERSION

Exit code 0 says that it is what was recorded, whole, and trusted.`,
		Example: `  enginery verify agoric-upgrade-18
  enginery verify registry.example.org/engines:agoric-upgrade-18 --json
  enginery verify oci:out/oci:agoric-upgrade-18 --policy my-policy.toml
  enginery verify ./xsnap-worker`,
		Args: cobra.ExactArgs(1),
		ValidArgsFunction: func(cmd *cobra.Command, args []string, word string) ([]cobra.Completion, cobra.ShellCompDirective) {
			if len(args) > 0 {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			names, _ := a.completeVersions(cmd, args, word)
			return names, cobra.ShellCompDirectiveDefault
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			v, err := a.verify(cmd.Context(), &s, args[0])
			if err != nil {
				return err
			}
			return joined(a.print(cmd, v, v.write), v.err())
		},
	}
	s.addTo(cmd)
	s.addOfflineTo(cmd)
	return cmd
}

// verify examines what a word on the command line names.
func (a *app) verify(ctx context.Context, s *sources, subject string) (*verified, error) {
	r, err := a.resolver(s)
	if err != nil {
		return nil, err
	}
	v := &verified{Subject: subject}
	name := subject
	info, err := os.Stat(subject)
	isFile := err == nil && info.Mode().IsRegular()
	switch {
	case isFile && !strings.HasPrefix(subject, "oci:"):
		if err := v.identify(); err != nil {
			return nil, err
		}
		name = v.File[len(v.File)-1].Version
	case strings.ContainsAny(subject, "/:@"):
		if err == nil {
			return nil, usage(fmt.Errorf("%[1]s is a folder; if it is an OCI layout, name a version in it: oci:%[1]s:VERSION", subject))
		}
		if _, reference := repository.Split(subject); reference == "" {
			return nil, usage(fmt.Errorf("%[1]s is neither a file nor the name of a version: expected %[1]s:VERSION, or %[1]s@sha256:…", subject))
		}
		v.Explanation, err = r.ExplainReference(ctx, subject)
		return v, err
	}
	v.Explanation, err = r.Explain(ctx, name, resolver.Options{Offline: s.offline})
	return v, err
}

// identify finds out what a file is.
func (v *verified) identify() error {
	f, err := os.Open(v.Subject)
	if err != nil {
		return err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return fmt.Errorf("reading %s: %w", v.Subject, err)
	}
	v.SHA256 = hex.EncodeToString(h.Sum(nil))
	if v.File, err = manifests.Find("sha256:" + v.SHA256); err != nil {
		return err
	}
	if len(v.File) == 0 {
		return &exit.Error{Code: exit.Different, Err: fmt.Errorf("%s, sha256:%s, is no file of a version that is recorded: expected one of %s",
			v.Subject, v.SHA256, strings.Join(manifests.IDs(), ", "))}
	}
	return nil
}

func (v *verified) err() error {
	switch {
	case v.OK:
		return nil
	case !v.Found && len(v.Asked)+len(v.Silent) == 0:
		return &exit.Error{Code: exit.Unavailable, Err: fmt.Errorf("%s is not verified: the node does not have it, and no source was asked", v.Subject)}
	case !v.Found:
		return &exit.Error{Code: exit.Unavailable, Err: fmt.Errorf("%s is not verified: no source has it:\n  %s", v.Subject, strings.Join(slices.Concat(v.Without, v.Silent), "\n  "))}
	}
	var unmet []string
	for _, r := range v.Requirements {
		if !r.Met {
			unmet = append(unmet, r.Name)
		}
	}
	return &exit.Error{Code: exit.Different, Err: fmt.Errorf("%s is not verified: not met: %s", v.Subject, strings.Join(unmet, ", "))}
}

func (v *verified) write(out io.Writer) error {
	for _, place := range v.File {
		fmt.Fprintf(out, "%s  is %s\n", v.Subject, place)
	}
	if err := v.WriteTable(out); err != nil {
		return err
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	for _, name := range v.Asked {
		fmt.Fprintf(w, "  asked\t%s\n", name)
	}
	for _, text := range v.Without {
		fmt.Fprintf(w, "  not there\t%s\n", text)
	}
	for _, text := range v.Silent {
		fmt.Fprintf(w, "  no answer\t%s\n", text)
	}
	return w.Flush()
}
