package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/enginery/enginery/artifact"
	"github.com/enginery/enginery/repository"
)

func serveCommand(a *app) *cobra.Command {
	var cert, key string
	cmd := &cobra.Command{
		Use:   "serve LAYOUT ADDR",
		Short: "Give an OCI layout out as a registry that can only be read",
		Long: `Serve answers as an OCI registry, with the referrers API, for any repository name: a layout is one repository. ADDR is HOST:PORT; port 0 takes any
that is free. What is pushed to the layout meanwhile is served at once. It ends with Ctrl-C, when running downloads have ended or ten seconds
have passed.`,
		Example: `  enginery serve out/oci localhost:5000
  enginery serve out/oci :443 --cert server.pem --key server.key
  enginery fetch agoric-upgrade-18 --from localhost:5000/engines  # elsewhere`,
		Args: cobra.ExactArgs(2),
		ValidArgsFunction: func(cmd *cobra.Command, args []string, word string) ([]cobra.Completion, cobra.ShellCompDirective) {
			if len(args) == 0 {
				return nil, cobra.ShellCompDirectiveFilterDirs
			}
			return nil, cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			dir := strings.TrimPrefix(args[0], "oci:")
			versions, err := artifact.List(dir)
			if err != nil {
				return fmt.Errorf("%s is no OCI layout: %w", dir, err)
			}
			listener, err := net.Listen("tcp", args[1])
			if err != nil {
				return fmt.Errorf("serving %s: %w", dir, err)
			}
			scheme := "http"
			if cert != "" {
				scheme = "https"
			}
			started := struct {
				Address  string   `json:"address"`
				Versions []string `json:"versions"`
			}{scheme + "://" + listener.Addr().String(), append([]string{}, versions...)}
			err = a.print(cmd, started, func(out io.Writer) error {
				_, err := fmt.Fprintf(out, "serving %s at %s: %s\n", dir, started.Address, strings.Join(versions, ", "))
				return err
			})
			if err != nil {
				return err
			}
			return serve(cmd.Context(), listener, repository.Handler(dir), cert, key)
		},
	}
	cmd.Flags().StringVar(&cert, "cert", "", "TLS certificate `file` (PEM); without one it is HTTP")
	cmd.Flags().StringVar(&key, "key", "", "`file` with the certificate's private key (PEM)")
	cmd.MarkFlagsRequiredTogether("cert", "key")
	return cmd
}

// serve serves until the context ends.
func serve(ctx context.Context, l net.Listener, h http.Handler, cert, key string) error {
	server := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: time.Minute}
	ended := make(chan error, 1)
	go func() {
		if cert != "" {
			ended <- server.ServeTLS(l, cert, key)
		} else {
			ended <- server.Serve(l)
		}
	}()
	select {
	case err := <-ended:
		return fmt.Errorf("serving: %w", err)
	case <-ctx.Done():
	}
	patience, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	if err := server.Shutdown(patience); errors.Is(err, context.DeadlineExceeded) {
		return server.Close()
	}
	return nil
}
