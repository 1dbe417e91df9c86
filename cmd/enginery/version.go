package main

import (
	"fmt"
	"io"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"

	"github.com/enginery/enginery/manifests"
)

// programVersion is what enginery version prints.
type programVersion struct {
	Version  string   `json:"version"` // of the module, or "(devel)"
	Commit   string   `json:"commit,omitempty"`
	Modified bool     `json:"modified,omitempty"` // the sources were not as committed
	Go       string   `json:"go"`
	Platform string   `json:"platform"`
	Records  []string `json:"records"` // version IDs
}

func versionCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "version",
		Short:   "Show what this program is, and the versions that it has a record of",
		Example: "  enginery version\n  enginery version --json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			v := programVersion{Version: "(devel)", Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH, Records: manifests.IDs()}
			if info, ok := debug.ReadBuildInfo(); ok {
				v.Version = info.Main.Version
				for _, s := range info.Settings {
					switch s.Key {
					case "vcs.revision":
						v.Commit = s.Value
					case "vcs.modified":
						v.Modified = s.Value == "true"
					}
				}
			}
			return a.print(cmd, v, func(out io.Writer) error {
				fmt.Fprintf(out, "enginery %s, %s, %s\n", v.Version, v.Go, v.Platform)
				if v.Commit != "" {
					modified := ""
					if v.Modified {
						modified = ", modified"
					}
					fmt.Fprintf(out, "commit   %s%s\n", v.Commit, modified)
				}
				fmt.Fprintln(out, "records of:")
				for _, id := range v.Records {
					fmt.Fprintln(out, "  "+id)
				}
				return nil
			})
		},
	}
}
