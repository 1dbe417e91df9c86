package trust

import (
	"context"
	"fmt"
	"os"

	"github.com/sigstore/sigstore-go/pkg/root"
	"github.com/sigstore/sigstore-go/pkg/tuf"
)

// NeedsTrustedRoot reports whether decisions need a trusted root of sigstore: one that names an identity, or asks for the transparency log.
func (p *Policy) NeedsTrustedRoot() bool {
	for _, r := range p.rules {
		if r.log {
			return true
		}
		for _, name := range r.signers {
			if p.identities[name] != nil {
				return true
			}
		}
		for _, rb := range r.rebuilders {
			if rb.identity != nil {
				return true
			}
		}
	}
	return false
}

// TrustedRoot returns the trusted root in a file, a trusted_root.json of sigstore. If there is no such file it is that of the public deployment,
// which is fetched by TUF, kept in the folder cache, and looked for again after a day.
func TrustedRoot(ctx context.Context, file, cache string) (root.TrustedMaterial, error) {
	if _, err := os.Stat(file); err == nil {
		r, err := root.NewTrustedRootFromPath(file)
		if err != nil {
			return nil, fmt.Errorf("reading sigstore's trusted root, %s: %w", file, err)
		}
		return r, nil
	}
	options := tuf.DefaultOptions().WithContext(ctx).WithCachePath(cache).WithCacheValidity(1)
	r, err := root.FetchTrustedRootWithOptions(options)
	if err != nil {
		return nil, fmt.Errorf("fetching sigstore's trusted root (%s has its place): %w", file, err)
	}
	return r, nil
}
