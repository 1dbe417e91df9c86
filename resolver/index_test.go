package resolver_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/enginery/enginery/engines"
	"github.com/enginery/enginery/manifests"
	"github.com/enginery/enginery/releaseindex"
	"github.com/enginery/enginery/repository"
	"github.com/enginery/enginery/resolver"
	"github.com/enginery/enginery/trust"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/sigstore/sigstore/pkg/signature"
)

// newer is a version that was released after this program was built: the files of id, by another name.
const newer = "agoric-upgrade-99"

// renamed publishes newer, signed and rebuilt, and returns the digest of its index.
func (w *world) renamed(t *testing.T, to string) digest.Digest {
	t.Helper()
	repo, old := open(t, to), w.index[id]
	content, err := repo.Manifest(t.Context(), old)
	if err != nil {
		t.Fatal(err)
	}
	content = bytes.ReplaceAll(content, []byte(id), []byte(newer))
	d := ocispec.Descriptor{MediaType: old.MediaType, Digest: digest.FromBytes(content), Size: int64(len(content))}
	if err := repo.PushManifest(t.Context(), d, content, newer); err != nil {
		t.Fatal(err)
	}
	signature, err := w.release.Sign(t.Context(), d.Digest)
	if err != nil {
		t.Fatal(err)
	}
	bundles := [][]byte{signature}
	for _, p := range []party{w.alice, w.bob} {
		statement := bytes.ReplaceAll(w.provenance(id, builder(p.name)), []byte(old.Digest.Encoded()), []byte(d.Digest.Encoded()))
		bundles = append(bundles, p.attest(t, statement))
	}
	for _, b := range bundles {
		if _, err := trust.Attach(t.Context(), repo, d, b); err != nil {
			t.Fatal(err)
		}
	}
	return d.Digest
}

// indexed publishes release indexes in the world's name.
type indexed struct {
	roles *releaseindex.Roles
	root  []byte
	key   signature.Signer
}

func newIndexed(t *testing.T, w *world) *indexed {
	t.Helper()
	roles, err := releaseindex.ParseRoles("roles.toml", []byte("schema = 1\n[root]\nkeys = [\"k\"]\ndays = 365\n[targets]\nkeys = [\"k\"]\ndays = 90\n[timestamp]\nkeys = [\"k\"]\ndays = 14\n"),
		fstest.MapFS{"k": {Data: []byte(w.release.public)}})
	if err != nil {
		t.Fatal(err)
	}
	key, err := w.release.Key()
	if err != nil {
		t.Fatal(err)
	}
	c, err := roles.SignRoot(nil, []signature.Signer{key}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return &indexed{roles, c.Root, key}
}

// publish publishes an index of what ships, newer by its digest, channels and revocations.
func (x *indexed) publish(t *testing.T, to, current string, newest digest.Digest, now time.Time, revoked ...trust.Revocation) {
	t.Helper()
	repo := open(t, to)
	targets := map[string][]byte{releaseindex.ChannelsName: fmt.Appendf(nil, "legacy = %q\ncurrent = %q\n", another, current)}
	for _, v := range []string{id, another, newer} {
		m, err := manifests.Load(strings.ReplaceAll(v, newer, id))
		if err != nil {
			t.Fatal(err)
		}
		if v == newer {
			m.Version, m.Index = v, newest.String()
		}
		if targets[v+".json"], err = m.JSON(); err != nil {
			t.Fatal(err)
		}
	}
	var err error
	if targets[releaseindex.RevokedName], err = trust.FormatRevocations(revoked); err != nil {
		t.Fatal(err)
	}
	previous, err := releaseindex.Published(t.Context(), repo, [][]byte{x.root})
	if err != nil && !errors.Is(err, releaseindex.ErrNone) {
		t.Fatal(err)
	}
	i, err := x.roles.Update(previous, [][]byte{x.root}, targets, []signature.Signer{x.key}, now)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := releaseindex.Push(t.Context(), repo, i); err != nil {
		t.Fatal(err)
	}
}

// A node learns of a version from the release index, and of one that is revoked; an old index and an expired one are refused, and what is stored stays.
func TestReleaseIndex(t *testing.T) {
	t.Parallel()
	w := made(t)
	x := newIndexed(t, w)
	for name, registry := range registries(t) {
		repo := registry + "/engines"
		w.publish(t, repo, id, w.good(id)...)
		w.publish(t, repo, another, w.good(another)...)
		newest := w.renamed(t, repo)
		r := w.node(t, repo)
		unnamed(t, r.Home)
		r.Policy = parse(t, w.policyText(2, "", "[index]\nroot = '''"+string(x.root)+"'''\n"))
		now := time.Now()
		r.Now = func() time.Time { return now }

		// There is none: nothing that would have to be fetched is.
		if _, err := r.Resolve(t.Context(), id, resolver.Options{}); !errors.Is(err, releaseindex.ErrNone) {
			t.Errorf("%s: resolved without an index: %v", name, err)
		}
		if i, err := r.Index(); i != nil || err != nil {
			t.Errorf("%s: %v, %v", name, i, err)
		}
		x.publish(t, repo, id, newest, now)
		if _, err := r.Resolve(t.Context(), "current", resolver.Options{}); err != nil { // refreshes by itself
			t.Fatalf("%s: %v", name, err)
		}
		installed(t, r.Home, id)
		old := "oci:" + t.TempDir()
		if _, err := repository.Copy(t.Context(), open(t, repo), open(t, old), releaseindex.Tag); err != nil {
			t.Fatal(err)
		}

		// Whoever signs the index can say that a version is another, but it is not taken for that.
		swapped := "oci:" + t.TempDir()
		w.publish(t, swapped, id, w.good(id)...)
		x.publish(t, swapped, newer, w.index[id].Digest, now)
		mixed := w.node(t, swapped)
		unnamed(t, mixed.Home)
		mixed.Policy, mixed.Now = r.Policy, r.Now
		if _, err := mixed.Refresh(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, err := mixed.Resolve(t.Context(), newer, resolver.Options{}); err == nil || !strings.Contains(err.Error(), "which is that of \""+id+"\"") {
			t.Errorf("%s: another version's bits: %v", name, err)
		}

		// A newer one brings a version that the program does not know.
		x.publish(t, repo, newer, newest, now)
		if _, err := r.Resolve(t.Context(), newer, resolver.Options{}); !errors.As(err, new(*engines.NotInServiceError)) {
			t.Errorf("%s: resolved before it was known: %v", name, err)
		}
		if i, err := r.Refresh(t.Context()); err != nil || i.Version != 2 {
			t.Fatalf("%s: %+v, %v", name, i, err)
		}
		e, err := r.Resolve(t.Context(), "current", resolver.Options{})
		if err != nil || e.Version != newer || e.Index != newest.String() {
			t.Fatalf("%s: %+v, %v", name, e, err)
		}

		// An old index is replayed.
		r.Sources = []string{old}
		if i, err := r.Refresh(t.Context()); !errors.Is(err, releaseindex.ErrRollback) || i == nil || i.Version != 2 {
			t.Errorf("%s: an old index: %+v, %v", name, i, err)
		}
		if _, err := r.Resolve(t.Context(), "current", resolver.Options{}); err != nil {
			t.Errorf("%s: what is stored, after an old index: %v", name, err)
		}

		// The registry shows the same for ever.
		r.Sources = []string{repo}
		now = now.AddDate(0, 0, 15)
		if i, err := r.Refresh(t.Context()); !errors.Is(err, releaseindex.ErrExpired) || i == nil || i.Version != 2 {
			t.Errorf("%s: a frozen index: %+v, %v", name, i, err)
		}
		if e, err := r.Resolve(t.Context(), "current", resolver.Options{}); err != nil || e.Version != newer {
			t.Errorf("%s: what is stored, after a frozen index: %v", name, err)
		}
		if _, err := r.Resolve(t.Context(), "legacy", resolver.Options{}); !errors.Is(err, releaseindex.ErrExpired) {
			t.Errorf("%s: fetched by a frozen index: %v", name, err)
		}

		// What is revoked is refused, stored or not.
		x.publish(t, repo, id, newest, now, trust.Revocation{Digest: w.index[another].Digest, Reason: "miscompiled"})
		if _, err := r.Resolve(t.Context(), "legacy", resolver.Options{}); !errors.As(err, new(*trust.RefusedError)) || !strings.Contains(err.Error(), "revoked: miscompiled") {
			t.Errorf("%s: revoked: %v", name, err)
		}
		if _, err := r.Resolve(t.Context(), id, resolver.Options{Offline: true}); err != nil {
			t.Errorf("%s: what is stored, after another was revoked: %v", name, err)
		}
		if _, err := os.Stat(filepath.Join(r.Home.Home(), "versions", another)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: what is revoked reached the store: %v", name, err)
		}
	}
}

// unnamed takes the channels away that a node's operator names.
func unnamed(t *testing.T, s *engines.Store) {
	t.Helper()
	if err := os.Remove(filepath.Join(s.Home(), "channels.toml")); err != nil {
		t.Fatal(err)
	}
}

// What the launcher goes by follows the program, unless a release index or the operator names other channels.
func TestChannels(t *testing.T) {
	t.Parallel()
	w := made(t)
	repo := w.stocked(t)
	r := w.node(t, repo)
	plain := r.Policy
	shipped, err := engines.ParseChannels("channels.toml", manifests.Channels)
	if err != nil {
		t.Fatal(err)
	}
	if shipped.Legacy != id {
		t.Fatalf("the legacy version that ships is %s; this test wants %s", shipped.Legacy, id)
	}
	goesBy := func(when string, want engines.Channels) {
		t.Helper()
		if _, err := r.Resolve(t.Context(), "legacy", resolver.Options{}); err != nil {
			t.Errorf("%s: %v", when, err)
		}
		if c, err := r.Home.Channels(); err != nil || c != want {
			t.Errorf("%s: the launcher goes by %v, %v; want %v", when, c, err, want)
		}
		s, err := r.Status()
		if err != nil || len(s.Channels) != 2 || s.Channels[0].Version != want.Legacy || s.Channels[1].Version != want.Current {
			t.Errorf("%s: the status is %+v, %v; want %v", when, s, err, want)
		}
	}

	unnamed(t, r.Home)
	if err := r.Home.SetChannels([]byte("legacy = \"agoric-upgrade-13\"\ncurrent = \"agoric-upgrade-14\"\n")); err != nil { // of an older program
		t.Fatal(err)
	}
	if s, err := r.Status(); err != nil || s.Channels[0].Version != shipped.Legacy {
		t.Errorf("the status of a newer program is %+v, %v", s, err)
	}
	goesBy("a newer program", shipped)

	channels(t, r.Home, another, id)
	goesBy("an operator", engines.Channels{Legacy: another, Current: id})
	unnamed(t, r.Home)
	goesBy("the operator no more", shipped)

	x := newIndexed(t, w)
	x.publish(t, repo, another, digest.FromString("of no use here"), time.Now())
	r.Policy = parse(t, w.policyText(2, "", "[index]\nroot = '''"+string(x.root)+"'''\n"))
	goesBy("an index that nobody has asked for", shipped)
	if _, err := r.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	indexed := engines.Channels{Legacy: another, Current: another}
	goesBy("a release index", indexed)
	r.Policy = plain // as for one command
	goesBy("another policy, after a release index", indexed)
}
