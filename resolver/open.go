package resolver

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/enginery/enginery/engines"
	"github.com/enginery/enginery/internal/progress"
	"github.com/enginery/enginery/manifests"
	"github.com/enginery/enginery/trust"
)

// ShippedPolicy is the name of the policy that came with the program.
const ShippedPolicy = "manifests/policy.toml (shipped)"

// Open returns the way of a node to its engines, by a policy file. If that is "" it is the node's own, policy.toml in its home, or else the one
// that ships.
func Open(home, policy string) (*Resolver, error) {
	_, p, _, err := LoadPolicy(home, policy)
	if err != nil {
		return nil, err
	}
	return &Resolver{Home: engines.Open(home), Policy: p}, nil
}

// LoadPolicy returns the policy that Open takes, the file's name and what is in it.
func LoadPolicy(home, policy string) (name string, p *trust.Policy, text []byte, err error) {
	name = policy
	if name == "" {
		name = filepath.Join(home, "policy.toml")
	}
	text, err = os.ReadFile(name)
	files := os.DirFS(filepath.Dir(name))
	if policy == "" && errors.Is(err, fs.ErrNotExist) {
		name, text, files, err = ShippedPolicy, manifests.Policy, nil, nil
	}
	if err != nil {
		return "", nil, nil, fmt.Errorf("reading the policy: %w", err)
	}
	p, err = trust.ParsePolicy(name, text, files)
	return name, p, text, err
}

// prepare makes sure that what the policy asks of sigstore can be decided. If it cannot, decisions will say so.
func (r *Resolver) prepare(ctx context.Context) {
	r.rootMu.Lock()
	defer r.rootMu.Unlock()
	if r.TrustedRoot != nil || !r.Policy.NeedsTrustedRoot() {
		return
	}
	own, cache := filepath.Join(r.Home.Home(), "trusted_root.json"), filepath.Join(r.Home.Home(), "state", "sigstore")
	root, err := trust.TrustedRoot(ctx, own, cache)
	if err != nil {
		progress.Logf(ctx, "identities and the transparency log cannot be checked: %v", err)
		return
	}
	r.TrustedRoot = root
}
