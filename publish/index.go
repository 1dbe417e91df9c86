package publish

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/enginery/enginery/engines"
	"github.com/enginery/enginery/manifests"
	"github.com/enginery/enginery/releaseindex"
	"github.com/enginery/enginery/repository"
	"github.com/enginery/enginery/trust"
	"github.com/enginery/enginery/trust/sign"
	"github.com/google/renameio/v2"
	"github.com/sigstore/sigstore/pkg/signature"
)

// rolesName is the file that says who signs the release index, see releaseindex.ParseRoles. The roots of trust stand beside it.
const rolesName = "roles.toml"

// Root signs the newest root of trust of the release index, which is begun where roles.toml in dir says other things than the newest does, or
// when that is nearly out of date. It writes it to dir as VERSION.root.json.
func Root(dir string, signers []*sign.Signer, now time.Time, out io.Writer) error {
	roles, roots, err := readRoles(dir)
	if err != nil {
		return err
	}
	keys, err := keysOf(signers)
	if err != nil {
		return err
	}
	c, err := roles.SignRoot(roots, keys, now)
	if err != nil {
		return err
	}
	name := filepath.Join(dir, rootName(c.Version))
	if err := renameio.WriteFile(name, c.Root, 0o644); err != nil {
		return err
	}
	fmt.Fprintf(out, "%s  %d of %d signatures", name, c.Have, c.Need)
	if c.OldNeed > 0 {
		fmt.Fprintf(out, ", and %d of %d by the keys of %s", c.Old, c.OldNeed, rootName(c.Version-1))
	}
	if c.Done() {
		fmt.Fprintln(out, ": done; commit it, and publish it: go tool mage release:index REF")
	} else {
		fmt.Fprintln(out, ": the others sign it by the same command")
	}
	return nil
}

func rootName(version int64) string { return fmt.Sprintf("%d.root.json", version) }

// readRoles reads roles.toml, and all roots of trust that there are.
func readRoles(dir string) (*releaseindex.Roles, [][]byte, error) {
	path := filepath.Join(dir, rolesName)
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, fmt.Errorf("%w: it says who signs the release index; docs/release.md has an example", err)
	} else if err != nil {
		return nil, nil, err
	}
	roles, err := releaseindex.ParseRoles(path, data, os.DirFS(dir))
	if err != nil {
		return nil, nil, err
	}
	var roots [][]byte
	for {
		data, err := os.ReadFile(filepath.Join(dir, rootName(int64(len(roots)+1))))
		if errors.Is(err, fs.ErrNotExist) {
			return roles, roots, nil
		} else if err != nil {
			return nil, nil, err
		}
		roots = append(roots, data)
	}
}

func keysOf(signers []*sign.Signer) ([]signature.Signer, error) {
	var keys []signature.Signer
	for _, s := range signers {
		k, err := s.Key()
		if err != nil {
			return nil, err
		}
		keys = append(keys, k)
	}
	return keys, nil
}

// Index makes the next version of the release index in a repository: of the manifests, the channels and what the policy revokes, all in one folder.
// dir has roles.toml and the roots of trust.
func Index(ctx context.Context, dir, records, ref string, signers []*sign.Signer, now time.Time, out io.Writer) error {
	roles, roots, err := readRoles(dir)
	if err != nil {
		return err
	}
	keys, err := keysOf(signers)
	if err != nil {
		return err
	}
	targets, err := readTargets(records)
	if err != nil {
		return err
	}
	repo, err := repository.Open(ref)
	if err != nil {
		return err
	}
	var previous *releaseindex.Index
	if len(roots) > 0 {
		if previous, err = releaseindex.Published(ctx, repo, roots); err != nil && !errors.Is(err, releaseindex.ErrNone) {
			return err
		}
	}
	i, err := roles.Update(previous, roots, targets, keys, now)
	if err != nil {
		return fmt.Errorf("not published: %w", err)
	}
	d, err := releaseindex.Push(ctx, repo, i)
	if err != nil {
		return fmt.Errorf("publishing the release index to %s: %w", ref, err)
	}
	fmt.Fprintf(out, "%s  %s  %s  version %d, content %d, root %d, %d versions, good until %s\n",
		releaseindex.Tag, d.Digest, ref, i.Version, i.Content, i.Root, len(i.IDs()), i.Expires.Format(time.RFC3339))
	return nil
}

// readTargets reads what the index tells nodes.
func readTargets(dir string) (map[string][]byte, error) {
	targets := make(map[string][]byte)
	files, err := filepath.Glob(filepath.Join(dir, "*.json"))
	if err != nil {
		return nil, err
	}
	for _, file := range files {
		name := filepath.Base(file)
		m, err := manifests.Read(dir, name[:len(name)-len(".json")])
		if err != nil {
			return nil, err
		}
		if targets[name], err = m.JSON(); err != nil {
			return nil, err
		}
	}
	file := filepath.Join(dir, releaseindex.ChannelsName)
	channels, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	c, err := engines.ParseChannels(file, channels)
	if err != nil {
		return nil, err
	}
	for _, id := range []string{c.Legacy, c.Current} {
		if targets[id+".json"] == nil {
			return nil, fmt.Errorf("%s names %s, which is %w", file, id, manifests.ErrNotRecorded)
		}
	}
	targets[releaseindex.ChannelsName] = channels
	file = filepath.Join(dir, "policy.toml")
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	policy, err := trust.ParsePolicy(file, data, os.DirFS(dir))
	if err != nil {
		return nil, err
	}
	targets[releaseindex.RevokedName], err = trust.FormatRevocations(policy.Revocations())
	return targets, err
}
