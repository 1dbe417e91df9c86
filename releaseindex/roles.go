package releaseindex

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"fmt"
	"io/fs"
	"slices"
	"time"

	"github.com/enginery/enginery/internal/strict"
	"github.com/sigstore/sigstore/pkg/cryptoutils"
	"github.com/theupdateframework/go-tuf/v2/metadata"
)

// RolesSchema is the version of the schema of roles.toml.
const RolesSchema = 1

// Roles say who signs a release index, and for how long what they sign is good.
type Roles struct {
	root, targets, timestamp role
}

type role struct {
	keys      []*metadata.Key
	threshold int
	days      int
}

// ParseRoles parses a roles.toml:
//
//	schema = 1
//	[root]                                  # names the keys of all roles, and of the next root
//	keys      = ["alice.pub", "bob.pub"]    # files, as cosign.pub
//	threshold = 2                           # how many of them must sign; 1 unless said otherwise
//	days      = 365                         # for how long it is good
//	[targets]                               # what the versions and channels are
//	keys = ["release.pub"]
//	days = 90
//	[timestamp]                             # that it is the newest; also of TUF's role snapshot
//	keys = ["release.pub"]
//	days = 14
func ParseRoles(file string, data []byte, files fs.FS) (*Roles, error) {
	type table struct {
		Keys      []string `toml:"keys"`
		Threshold *int     `toml:"threshold"`
		Days      int      `toml:"days"`
	}
	var f struct {
		Schema    int   `toml:"schema"`
		Root      table `toml:"root"`
		Targets   table `toml:"targets"`
		Timestamp table `toml:"timestamp"`
	}
	if err := strict.Decode(file, data, &f); err != nil {
		return nil, err
	}
	if f.Schema != RolesSchema {
		return nil, strict.Errorf(file, data, "schema", "schema is %d; expected %d", f.Schema, RolesSchema)
	}
	r := new(Roles)
	for _, t := range []struct {
		name  string
		table table
		role  *role
	}{{"root", f.Root, &r.root}, {"targets", f.Targets, &r.targets}, {"timestamp", f.Timestamp, &r.timestamp}} {
		t.role.threshold, t.role.days = 1, t.table.Days
		if t.table.Threshold != nil {
			t.role.threshold = *t.table.Threshold
		}
		var ids []string
		for _, name := range t.table.Keys {
			key, err := readKey(files, name)
			if err != nil {
				return nil, strict.Errorf(file, data, t.name+".keys", "%v", err)
			}
			id, err := key.ID()
			if err != nil {
				return nil, err
			}
			if slices.Contains(ids, id) {
				return nil, strict.Errorf(file, data, t.name+".keys", "the key %s is there twice", name)
			}
			ids = append(ids, id)
			t.role.keys = append(t.role.keys, key)
		}
		if t.role.threshold < 1 || t.role.threshold > len(ids) {
			return nil, strict.Errorf(file, data, t.name, "%d signatures are required of %d keys; expected 1 to %d", t.role.threshold, len(ids), len(ids))
		}
		if t.role.days < 1 {
			return nil, strict.Errorf(file, data, t.name, "days is %d; expected for how many days it is good, 1 or more", t.role.days)
		}
	}
	return r, nil
}

// readKey reads a public key that TUF knows.
func readKey(files fs.FS, name string) (*metadata.Key, error) {
	text, err := fs.ReadFile(files, name)
	if err != nil {
		return nil, err
	}
	public, err := cryptoutils.UnmarshalPEMToPublicKey(text)
	if err != nil {
		return nil, fmt.Errorf("%s is no public key in PEM, as in cosign.pub: %w", name, err)
	}
	switch k := public.(type) {
	case *ecdsa.PublicKey:
		if k.Curve != elliptic.P256() {
			return nil, fmt.Errorf("%s is an ECDSA key of %s; expected P-256", name, k.Curve.Params().Name)
		}
	case ed25519.PublicKey:
	default:
		return nil, fmt.Errorf("%s is a %T; expected ECDSA with P-256, as release:key makes, or Ed25519", name, public)
	}
	return metadata.KeyFromPublicKey(public)
}

// newRoot returns a root of trust, not signed yet.
func (r *Roles) newRoot(version int64, now time.Time) (*metadata.Metadata[metadata.RootType], error) {
	m := metadata.Root(r.root.until(now))
	m.Signed.Version = version
	for name, role := range map[string]role{
		metadata.ROOT: r.root, metadata.TARGETS: r.targets, metadata.SNAPSHOT: r.timestamp, metadata.TIMESTAMP: r.timestamp,
	} {
		for _, key := range role.keys {
			if err := m.Signed.AddKey(key, name); err != nil {
				return nil, err
			}
		}
		m.Signed.Roles[name].Threshold = role.threshold
	}
	return m, nil
}

// until returns when something that is signed now expires.
func (r role) until(now time.Time) time.Time {
	return now.UTC().Truncate(time.Second).AddDate(0, 0, r.days)
}

// old reports whether something that expires then must be signed anew: less than a third of its time is left.
func (r role) old(expires, now time.Time) bool {
	return now.Add(time.Duration(r.days) * 8 * time.Hour).After(expires)
}
