// Release signs, attests and publishes versions. It is what the targets release:… run: a program of its own, since what it stands on (cosign
// and sigstore) takes longer to compile than a version does, and only those who sign need it.
//
//	release key NAME
//	release sign ID
//	release attest ID
//	release publish ID REF
//	release root
//	release index REF
//
// The options of the targets come in the environment (internal/options).
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/enginery/enginery/internal/cas"
	"github.com/enginery/enginery/internal/options"
	"github.com/enginery/enginery/internal/progress"
	"github.com/enginery/enginery/publish"
	"github.com/enginery/enginery/release"
	"github.com/enginery/enginery/trust/sign"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "Error:", release.WithStatus(err))
		os.Exit(release.Status(release.WithStatus(err)))
	}
}

func run(ctx context.Context) error {
	o, args, err := options.Parse(os.Args[1:], nil, nil)
	if err != nil {
		return err
	}
	switch {
	case len(args) == 2 && args[0] == "key":
		return key(args[1])
	case len(args) == 1 && args[0] == "root", len(args) == 2 && args[0] == "index":
		return index(ctx, o, args[1:])
	case len(args) < 2:
		return &options.UsageError{Reason: "expected: release key NAME, sign ID, attest ID, publish ID REF, root, or index REF"}
	}
	store, err := cas.Open(o.Store)
	if err != nil {
		return err
	}
	defer store.Close()
	ctx, reporter := progress.With(ctx, os.Stderr)
	defer reporter.Close()
	w := &release.Workshop{Store: store, Layout: o.Layout, SourceMirror: o.SourceMirror, ToolchainFrom: o.ToolchainFrom, Jobs: o.Jobs}
	switch {
	case args[0] == "publish" && len(args) == 3:
		return publish.Send(ctx, w, args[1], args[2], os.Stdout)
	case args[0] == "sign", args[0] == "attest":
		s, err := signer(ctx, o.Key)
		if err != nil {
			return err
		}
		if o.Log {
			s = s.Logged(sign.Public)
		}
		if args[0] == "sign" {
			return publish.Sign(ctx, w, s, args[1], os.Stdout)
		}
		return publish.Attest(ctx, w, s, o.Builder, args[1], o.To, os.Stdout)
	}
	return &options.UsageError{Reason: fmt.Sprintf("unknown action %q", args[0])}
}

func signer(ctx context.Context, key string) (*sign.Signer, error) {
	if key == "" {
		return nil, &options.UsageError{Reason: "no key to sign with: expected --key=FILE, a KMS reference, or --key=keyless; make a key with: go tool mage release:key NAME"}
	}
	return sign.Open(ctx, key, sign.Public)
}

// indexDir is where roles.toml and the roots of trust of the release index are; recordsDir is what it is made of.
const (
	indexDir   = "releaseindex"
	recordsDir = "manifests"
)

// index signs the root of trust of the release index, or publishes the index to a repository.
func index(ctx context.Context, o options.Options, ref []string) error {
	var signers []*sign.Signer
	for key := range strings.SplitSeq(o.Key, ",") {
		s, err := signer(ctx, key)
		if err != nil {
			return err
		}
		signers = append(signers, s)
	}
	if len(ref) == 0 {
		return publish.Root(indexDir, signers, time.Now(), os.Stdout)
	}
	return publish.Index(ctx, indexDir, recordsDir, ref[0], signers, time.Now(), os.Stdout)
}

func key(name string) error {
	password, err := sign.AskPassword()
	if err != nil {
		return err
	}
	if err := sign.WriteKey(name, password); err != nil {
		return err
	}
	fmt.Printf("wrote %[1]s.key, which is secret, and %[1]s.pub, for policies\n", name)
	return nil
}
