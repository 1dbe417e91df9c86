package releaseindex

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/sigstore/sigstore/pkg/signature"
	"github.com/theupdateframework/go-tuf/v2/metadata"
)

// Ceremony is how far the signing of the newest root of trust has come.
type Ceremony struct {
	Version int64
	Root    []byte // root.json, to be kept as VERSION.root.json
	Have    int    // signatures by its own keys, of those that it needs
	Need    int
	Old     int // signatures by the keys of the root before it; of the first root there are none
	OldNeed int
}

// Done reports whether enough have signed.
func (c *Ceremony) Done() bool { return c.Have >= c.Need && c.Old >= c.OldNeed }

// SignRoot adds signatures to the newest root of trust, or begins the next one where the roles are others or the newest has less than a third of
// its time left. roots are all that there are, from version 1 on; only the newest may lack signatures. A signer that no root names is an error.
func (r *Roles) SignRoot(roots [][]byte, signers []signature.Signer, now time.Time) (*Ceremony, error) {
	next, err := r.newRoot(int64(len(roots)+1), now)
	if err != nil {
		return nil, err
	}
	var before *metadata.Metadata[metadata.RootType]
	for n, data := range roots {
		root, err := metadata.Root().FromBytes(data)
		if err != nil || root.Signed.Version != int64(n+1) {
			return nil, fmt.Errorf("%d.root.json is not the root of that version: %w", n+1, err)
		}
		done := root.VerifyDelegate(metadata.ROOT, root) == nil && (before == nil || before.VerifyDelegate(metadata.ROOT, root) == nil)
		switch same := sameRoles(root, next); {
		case done && n == len(roots)-1 && same && !r.root.old(root.Signed.Expires, now):
			return ceremony(root, before)
		case !done && n < len(roots)-1:
			return nil, fmt.Errorf("%d.root.json lacks signatures, and there is a newer one", n+1)
		case !done && same:
			next = root
		case !done: // of other roles: begun anew
			next.Signed.Version = root.Signed.Version
		default:
			before = root
		}
	}
	for _, s := range signers {
		id, err := keyID(s)
		if err != nil {
			return nil, err
		}
		if !slices.Contains(next.Signed.Roles[metadata.ROOT].KeyIDs, id) &&
			(before == nil || !slices.Contains(before.Signed.Roles[metadata.ROOT].KeyIDs, id)) {
			return nil, fmt.Errorf("the key to sign with, %.8s…, is none of the root's: expected a key that roles.toml names in [root], or did before", id)
		}
		if err := sign(next, s); err != nil {
			return nil, err
		}
	}
	return ceremony(next, before)
}

func sameRoles(a, b *metadata.Metadata[metadata.RootType]) bool {
	return maps.EqualFunc(a.Signed.Roles, b.Signed.Roles, func(x, y *metadata.Role) bool {
		return x.Threshold == y.Threshold && slices.Equal(slices.Sorted(slices.Values(x.KeyIDs)), slices.Sorted(slices.Values(y.KeyIDs)))
	})
}

func ceremony(root, before *metadata.Metadata[metadata.RootType]) (*Ceremony, error) {
	data, err := encode(root)
	if err != nil {
		return nil, err
	}
	c := &Ceremony{Version: root.Signed.Version, Root: data}
	c.Have, c.Need = count(root, root)
	if before != nil {
		c.Old, c.OldNeed = count(before, root)
	}
	return c, nil
}

// count returns how many of the keys that a root names for roots have signed another, and how many must.
func count(by, root *metadata.Metadata[metadata.RootType]) (have, need int) {
	role := *by.Signed.Roles[metadata.ROOT]
	for ; have < len(role.KeyIDs); have++ {
		probe := *by
		probe.Signed.Roles = map[string]*metadata.Role{metadata.ROOT: {KeyIDs: role.KeyIDs, Threshold: have + 1}}
		if probe.VerifyDelegate(metadata.ROOT, root) != nil {
			break
		}
	}
	return have, role.Threshold
}

func keyID(s signature.Signer) (string, error) {
	public, err := s.PublicKey()
	if err != nil {
		return "", err
	}
	key, err := metadata.KeyFromPublicKey(public)
	if err != nil {
		return "", fmt.Errorf("the key to sign with: %w", err)
	}
	return key.ID()
}

// sign signs metadata in place of what the same key has signed before.
func sign[T metadata.Roles](m *metadata.Metadata[T], s signature.Signer) error {
	id, err := keyID(s)
	if err != nil {
		return err
	}
	m.Signatures = slices.DeleteFunc(m.Signatures, func(sig metadata.Signature) bool { return sig.KeyID == id })
	if _, err := m.Sign(s); err != nil {
		return fmt.Errorf("signing the release index: %w", err)
	}
	return nil
}

func encode[T metadata.Roles](m *metadata.Metadata[T]) ([]byte, error) {
	data, err := m.ToBytes(false)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	if err := json.Indent(&b, data, "", "  "); err != nil {
		return nil, err
	}
	return append(b.Bytes(), '\n'), nil
}

// Update makes the next version of an index: of those roots of trust, from version 1 on, and with those targets, by name. previous is the index
// as it is now, or nil; see Published. Its targets are signed anew only if they are others, or have less than a third of their time left.
//
// Each role is signed by those of the signers whom the newest root names for it, and the result is verified as nodes do.
func (r *Roles) Update(previous *Index, roots [][]byte, targets map[string][]byte, signers []signature.Signer, now time.Time) (*Index, error) {
	if len(roots) == 0 {
		return nil, errors.New("there is no root of trust yet; make it first: go tool mage release:root --key=KEY")
	}
	if previous != nil && previous.Root > int64(len(roots)) {
		return nil, fmt.Errorf("the index that is published has a root of trust of version %d, and here is %d: get the newer ones first", previous.Root, len(roots))
	}
	f := make(files)
	for n, data := range roots {
		f[metadataName(metadata.ROOT, int64(n+1))] = data
	}
	root, err := metadata.Root().FromBytes(roots[len(roots)-1])
	if err != nil {
		return nil, err
	}
	timestamp, snapshot, content := metadata.Timestamp(r.timestamp.until(now)), metadata.Snapshot(r.timestamp.until(now)), metadata.Targets(r.targets.until(now))
	for name, data := range targets {
		f[targetsDir+name] = data
		if content.Signed.Targets[name], err = metadata.TargetFile().FromBytes(name, data); err != nil {
			return nil, err
		}
	}
	var before *metadata.Metadata[metadata.TargetsType]
	if previous != nil {
		timestamp.Signed.Version = previous.Version + 1
		snapshot.Signed.Version = previous.Version + 1
		content.Signed.Version = previous.Content + 1
		if before, err = metadata.Targets().FromBytes(previous.files[metadataName(metadata.TARGETS, previous.Content)]); err != nil {
			return nil, err
		}
	}
	signed := before != nil && sameTargets(before, content) && root.VerifyDelegate(metadata.TARGETS, before) == nil
	var data []byte
	if !signed || r.targets.old(before.Signed.Expires, now) {
		data, err = signRole(root, metadata.TARGETS, content, signers)
	}
	if signed && (data == nil || errors.Is(err, errSigners) && now.Before(before.Signed.Expires)) { // they are good for a while yet
		content, data, err = before, previous.files[metadataName(metadata.TARGETS, previous.Content)], nil
	}
	if err != nil {
		return nil, err
	}
	f[metadataName(metadata.TARGETS, content.Signed.Version)] = data
	snapshot.Signed.Meta["targets.json"] = describe(content.Signed.Version, data)
	if data, err = signRole(root, metadata.SNAPSHOT, snapshot, signers); err != nil {
		return nil, err
	}
	f[metadataName(metadata.SNAPSHOT, snapshot.Signed.Version)] = data
	timestamp.Signed.Meta["snapshot.json"] = describe(snapshot.Signed.Version, data)
	if data, err = signRole(root, metadata.TIMESTAMP, timestamp, signers); err != nil {
		return nil, err
	}
	f[metadataName(metadata.TIMESTAMP, 0)] = data
	var known files
	if previous != nil {
		known = previous.files
	}
	return check(roots[0], known, f, now)
}

func sameTargets(a, b *metadata.Metadata[metadata.TargetsType]) bool {
	return maps.EqualFunc(a.Signed.Targets, b.Signed.Targets, func(x, y *metadata.TargetFiles) bool { return x.Equal(*y) })
}

func describe(version int64, data []byte) *metadata.MetaFiles {
	t, _ := metadata.TargetFile().FromBytes("", data) // SHA-256 is known
	return &metadata.MetaFiles{Version: version, Length: t.Length, Hashes: t.Hashes}
}

// errSigners says that those who sign are not enough.
var errSigners = errors.New("not enough of those who must sign do")

// signRole signs a role's metadata by those of the signers whom the root names for it.
func signRole[T metadata.Roles](root *metadata.Metadata[metadata.RootType], name string, m *metadata.Metadata[T], signers []signature.Signer) ([]byte, error) {
	role := root.Signed.Roles[name]
	n := 0
	for _, s := range signers {
		id, err := keyID(s)
		if err != nil {
			return nil, err
		}
		if slices.Contains(role.KeyIDs, id) {
			if err := sign(m, s); err != nil {
				return nil, err
			}
			n++
		}
	}
	if n < role.Threshold {
		var ids []string
		for _, id := range role.KeyIDs {
			ids = append(ids, fmt.Sprintf("%.8s…", id))
		}
		return nil, fmt.Errorf("%s.json: %w: found %d; expected %d of the keys %s, which root version %d names", name, errSigners, n, role.Threshold, strings.Join(ids, ", "), root.Signed.Version)
	}
	return encode(m)
}
