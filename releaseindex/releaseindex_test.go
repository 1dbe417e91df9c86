package releaseindex_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"github.com/enginery/enginery/engines"
	"github.com/enginery/enginery/internal/registrytest"
	"github.com/enginery/enginery/manifests"
	"github.com/enginery/enginery/releaseindex"
	"github.com/enginery/enginery/repository"
	"github.com/opencontainers/go-digest"
	"github.com/sigstore/sigstore/pkg/cryptoutils"
	"github.com/sigstore/sigstore/pkg/signature"
)

var noon = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

const day = 24 * time.Hour

// key is a key of somebody who signs.
type key struct {
	signature.Signer
	pub []byte
}

func newKey(t testing.TB) key {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := signature.LoadECDSASigner(private, crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	pub, err := cryptoutils.MarshalPublicKeyToPEM(private.Public())
	if err != nil {
		t.Fatal(err)
	}
	return key{signer, pub}
}

// publisher publishes an index.
type publisher struct {
	roles           *releaseindex.Roles
	root, targets   key
	timestamp       key
	roots           [][]byte
	legacy, current string
	revoked         string
}

func newPublisher(t testing.TB) *publisher {
	t.Helper()
	p := &publisher{root: newKey(t), targets: newKey(t), timestamp: newKey(t), legacy: "agoric-upgrade-16", current: "agoric-upgrade-18"}
	p.ceremony(t, noon)
	return p
}

// ceremony makes the next root, if the keys have changed, signed by the keys of signers besides that of the root.
func (p *publisher) ceremony(t testing.TB, now time.Time, signers ...key) {
	t.Helper()
	roles, err := releaseindex.ParseRoles("roles.toml", []byte(`schema = 1
[root]
keys = ["root.pub"]
days = 365
[targets]
keys = ["targets.pub"]
days = 90
[timestamp]
keys = ["timestamp.pub"]
days = 14
`), fstest.MapFS{"root.pub": {Data: p.root.pub}, "targets.pub": {Data: p.targets.pub}, "timestamp.pub": {Data: p.timestamp.pub}})
	if err != nil {
		t.Fatal(err)
	}
	var all []signature.Signer
	for _, k := range append(signers, p.root) {
		all = append(all, k.Signer)
	}
	c, err := roles.SignRoot(p.roots, all, now)
	if err != nil || !c.Done() {
		t.Fatalf("the root is not signed: %+v, %v", c, err)
	}
	if int(c.Version) > len(p.roots) {
		p.roots = append(p.roots, c.Root)
	}
	p.roles = roles
}

func (p *publisher) content(t testing.TB) map[string][]byte {
	t.Helper()
	targets := map[string][]byte{
		releaseindex.ChannelsName: fmt.Appendf(nil, "legacy = %q\ncurrent = %q\n", p.legacy, p.current),
		releaseindex.RevokedName:  []byte(p.revoked),
	}
	for _, id := range manifests.IDs() {
		m, err := manifests.Load(id)
		if err != nil {
			t.Fatal(err)
		}
		if targets[id+".json"], err = m.JSON(); err != nil {
			t.Fatal(err)
		}
	}
	return targets
}

// publish publishes the next version to a repository.
func (p *publisher) publish(t testing.TB, repo repository.Repository, now time.Time) *releaseindex.Index {
	t.Helper()
	previous, err := releaseindex.Published(t.Context(), repo, p.roots)
	if err != nil && !errors.Is(err, releaseindex.ErrNone) {
		t.Fatal(err)
	}
	i, err := p.roles.Update(previous, p.roots, p.content(t), []signature.Signer{p.targets.Signer, p.timestamp.Signer}, now)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := releaseindex.Push(t.Context(), repo, i); err != nil {
		t.Fatal(err)
	}
	return i
}

func open(t testing.TB, ref string) repository.Repository {
	t.Helper()
	repo, err := repository.Open(ref, repository.Patience(5*time.Second))
	if err != nil {
		t.Fatal(err)
	}
	return repo
}

// node is what has a store.
func (p *publisher) node(t testing.TB) (*releaseindex.Store, string) {
	t.Helper()
	home := engines.Open(t.TempDir())
	return releaseindex.Open(home, p.roots[0]), filepath.Join(home.Home(), "state")
}

// What is published in a registry, with or without the referrers API, or in a layout, a node accepts, and keeps.
func TestRefresh(t *testing.T) {
	for name, ref := range map[string]string{
		"referrers API": registrytest.StartOCI(t) + "/engines",
		"tags":          registrytest.StartDistribution(t) + "/engines",
		"layout":        "oci:" + t.TempDir(),
	} {
		t.Run(name, func(t *testing.T) {
			p := newPublisher(t)
			repo := open(t, ref)
			s, dir := p.node(t)
			if _, err := s.Load(); !errors.Is(err, releaseindex.ErrNone) {
				t.Errorf("loaded nothing: %v", err)
			}
			if i, err := s.Refresh(t.Context(), []repository.Repository{repo}, noon); !errors.Is(err, releaseindex.ErrNone) || i != nil {
				t.Errorf("refreshed from nothing: %v, %v", i, err)
			}
			p.revoked = "[[revoked]]\ndigest = \"" + digest.FromString("bad").String() + "\"\nreason = \"bad compiler\"\n"
			p.publish(t, repo, noon)
			i, err := s.Refresh(t.Context(), []repository.Repository{repo}, noon)
			if err != nil {
				t.Fatal(err)
			}
			if i.Version != 1 || i.Content != 1 || i.Root != 1 || !i.Expires.Equal(noon.Add(14*day)) || i.Expired(noon) != nil || !errors.Is(i.Expired(noon.Add(14*day)), releaseindex.ErrExpired) {
				t.Errorf("accepted %+v", i)
			}
			if !slices.Equal(i.IDs(), manifests.IDs()) || len(i.Revoked()) != 1 || i.Revoked()[0].Reason != "bad compiler" {
				t.Errorf("it has %v, and revokes %v", i.IDs(), i.Revoked())
			}
			for _, id := range i.IDs() {
				if _, err := manifests.ReadFS(i.Manifests(), id); err != nil {
					t.Error(err)
				}
			}
			if _, err := manifests.ReadFS(i.Manifests(), "agoric-upgrade-99"); !errors.Is(err, manifests.ErrNotRecorded) {
				t.Errorf("a version that is not there: %v", err)
			}

			p.legacy = "agoric-upgrade-17"
			p.publish(t, repo, noon.Add(day))
			if i, err = s.Refresh(t.Context(), []repository.Repository{repo}, noon.Add(day)); err != nil || i.Version != 2 || i.Content != 2 || i.Channels().Legacy != p.legacy {
				t.Errorf("accepted %+v, %v", i, err)
			}
			p.publish(t, repo, noon.Add(2*day)) // nothing new, but for longer
			if i, err = s.Refresh(t.Context(), []repository.Repository{repo}, noon.Add(2*day)); err != nil || i.Version != 3 || i.Content != 2 || !i.Expires.Equal(noon.Add(16*day)) {
				t.Errorf("accepted %+v, %v", i, err)
			}
			kept, err := s.Load()
			if err != nil || kept.Version != 3 || kept.Channels() != i.Channels() {
				t.Errorf("kept %+v, %v", kept, err)
			}
			if b, err := os.ReadFile(filepath.Join(dir, "channels.toml")); err != nil || !strings.Contains(string(b), p.legacy) {
				t.Errorf("channels for the launcher: %s, %v", b, err)
			}
			if err := os.Remove(filepath.Join(dir, "channels.toml")); err != nil { // as if it had been interrupted
				t.Fatal(err)
			}
			if _, err := s.Refresh(t.Context(), []repository.Repository{repo}, noon.Add(2*day)); err != nil {
				t.Error(err)
			}
			if _, err := os.Stat(filepath.Join(dir, "channels.toml")); err != nil {
				t.Error(err)
			}
		})
	}
}

// copyIndex copies the index of a repository to a new layout, and changes files in it.
func copyIndex(t *testing.T, from repository.Repository, change func(files map[string][]byte)) repository.Repository {
	t.Helper()
	files, err := releaseindex.Pull(t.Context(), from)
	if err != nil {
		t.Fatal(err)
	}
	if change != nil {
		change(files)
	}
	to := open(t, "oci:"+t.TempDir())
	if err := releaseindex.PushFiles(t.Context(), to, files); err != nil {
		t.Fatal(err)
	}
	return to
}

// What is not good is refused, each with its own reason, and changes nothing.
func TestRefused(t *testing.T) {
	p := newPublisher(t)
	repo := open(t, "oci:"+t.TempDir())
	p.publish(t, repo, noon)
	first := copyIndex(t, repo, nil)
	p.legacy = "agoric-upgrade-17"
	p.publish(t, repo, noon)
	second := copyIndex(t, repo, nil)
	secondFiles, err := releaseindex.Pull(t.Context(), second)
	if err != nil {
		t.Fatal(err)
	}

	foreign := newPublisher(t)
	foreignRepo := open(t, "oci:"+t.TempDir())
	foreign.publish(t, foreignRepo, noon)
	p.legacy = "agoric-upgrade-15"
	other := *p // who has the same keys, and publishes to another place
	fork := copyIndex(t, first, nil)
	other.publish(t, fork, noon)
	p.publish(t, repo, noon)
	third := copyIndex(t, repo, nil)

	// A key that is stolen signs in another's place.
	thief := *p
	thief.targets = newKey(t)
	stolen := func() repository.Repository {
		forged := copyIndex(t, third, nil)
		roles, err := releaseindex.ParseRoles("roles.toml", []byte("schema = 1\n[root]\nkeys = [\"k\"]\ndays = 9\n[targets]\nkeys = [\"k\"]\ndays = 9\n[timestamp]\nkeys = [\"t\"]\ndays = 9\n"),
			fstest.MapFS{"k": {Data: thief.targets.pub}, "t": {Data: p.timestamp.pub}})
		if err != nil {
			t.Fatal(err)
		}
		c, err := roles.SignRoot(nil, []signature.Signer{thief.targets.Signer}, noon)
		if err != nil {
			t.Fatal(err)
		}
		i, err := roles.Update(nil, [][]byte{c.Root}, p.content(t), []signature.Signer{thief.targets.Signer, p.timestamp.Signer}, noon)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := releaseindex.Push(t.Context(), forged, i); err != nil {
			t.Fatal(err)
		}
		files, err := releaseindex.Pull(t.Context(), forged)
		if err != nil {
			t.Fatal(err)
		}
		return copyIndex(t, third, func(f map[string][]byte) {
			clear(f)
			for name, data := range files {
				f[name] = data
			}
			f["1.root.json"] = p.roots[0]
		})
	}

	gone, err := repository.Open("127.0.0.1:1/engines", repository.Patience(time.Second))
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name string
		repo repository.Repository
		now  time.Time
		want error
		text string
	}{
		{"rolled back", first, noon, releaseindex.ErrRollback, "found version 1; expected 2 or newer"},
		{"frozen", second, noon.Add(15 * day), releaseindex.ErrExpired, "now, 2026-12-08T12:00:00Z, its timestamp.json is expired"},
		{"a forked one", fork, noon, releaseindex.ErrForked, "two release indexes of the same version, 2"},
		{"foreign", foreignRepo, noon, releaseindex.ErrSignature, "timestamp.json, by the root of version 1"},
		{"a new timestamp, the old rest", copyIndex(t, third, func(f map[string][]byte) {
			f["3.snapshot.json"], f["3.targets.json"] = secondFiles["2.snapshot.json"], secondFiles["2.targets.json"]
		}), noon, releaseindex.ErrMixed, "3.snapshot.json is another than the rest of it names"},
		{"the old targets", copyIndex(t, third, func(f map[string][]byte) { f["3.targets.json"] = secondFiles["2.targets.json"] }), noon, releaseindex.ErrMixed, "3.targets.json"},
		{"an old manifest", copyIndex(t, third, func(f map[string][]byte) { f["targets/channels.toml"] = secondFiles["targets/channels.toml"] }), noon, releaseindex.ErrMixed, "channels.toml"},
		{"no manifest", copyIndex(t, third, func(f map[string][]byte) { delete(f, "targets/agoric-upgrade-18.json") }), noon, releaseindex.ErrIncomplete, "targets/agoric-upgrade-18.json"},
		{"no timestamp", copyIndex(t, third, func(f map[string][]byte) { delete(f, "timestamp.json") }), noon, releaseindex.ErrIncomplete, "timestamp.json"},
		{"no snapshot", copyIndex(t, third, func(f map[string][]byte) { delete(f, "3.snapshot.json") }), noon, releaseindex.ErrIncomplete, "3.snapshot.json"},
		{"tampered", copyIndex(t, third, func(f map[string][]byte) {
			f["timestamp.json"] = []byte(strings.Replace(string(f["timestamp.json"]), "2026-12", "2027-12", 1))
		}), noon, releaseindex.ErrSignature, "timestamp.json"},
		{"garbage", copyIndex(t, third, func(f map[string][]byte) { f["timestamp.json"] = []byte("{") }), noon, releaseindex.ErrMalformed, "timestamp.json"},
		{"a root by nobody", copyIndex(t, third, func(f map[string][]byte) { f["2.root.json"] = foreign.roots[0] }), noon, releaseindex.ErrSignature, "2.root.json"},
		{"a stolen timestamp key", stolen(), noon, releaseindex.ErrRollback, "found version 1"},
		{"the root has expired", third, noon.Add(366 * day), releaseindex.ErrExpired, "root.json is expired"},
		{"a registry that is gone", gone, noon, nil, "127.0.0.1:1/engines is unavailable"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s, dir := p.node(t)
			if i, err := s.Refresh(t.Context(), []repository.Repository{second}, noon); err != nil || i.Version != 2 {
				t.Fatalf("%v, %v", i, err)
			}
			before := snapshot(t, dir)
			i, err := s.Refresh(t.Context(), []repository.Repository{test.repo}, test.now)
			if err == nil || test.want != nil && !errors.Is(err, test.want) || !strings.Contains(err.Error(), test.text) {
				t.Errorf("%v; want %v, %q", err, test.want, test.text)
			}
			if i == nil || i.Version != 2 || snapshot(t, dir) != before {
				t.Errorf("it has changed something: %+v", i)
			}
			if kept, err := s.Load(); err != nil || kept.Version != 2 {
				t.Errorf("kept %+v, %v", kept, err)
			}
			if test.now == noon { // one that is good is enough
				if i, err := s.Refresh(t.Context(), []repository.Repository{test.repo, third, first}, noon); err != nil || i.Version != 3 {
					t.Errorf("with another source: %+v, %v", i, err)
				}
			}
		})
	}
	t.Run("stolen timestamp key, on a new node", func(t *testing.T) {
		s, dir := p.node(t)
		if _, err := s.Refresh(t.Context(), []repository.Repository{stolen()}, noon); !errors.Is(err, releaseindex.ErrSignature) || !strings.Contains(err.Error(), "targets.json") {
			t.Errorf("%v", err)
		}
		if _, err := os.Stat(filepath.Join(dir, "channels.toml")); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("channels: %v", err)
		}
	})
}

// snapshot returns all files of a folder.
func snapshot(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	for _, name := range []string{"release-index.zip", "channels.toml"} {
		data, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&b, "%s %s\n", name, digest.FromBytes(data))
	}
	return b.String()
}

// Keys change by a new root that the old one's keys have signed, and what old keys sign counts no more, whatever its version.
func TestRotation(t *testing.T) {
	p := newPublisher(t)
	repo := open(t, "oci:"+t.TempDir())
	p.publish(t, repo, noon)
	s, _ := p.node(t)
	refresh := func(want int64, root int64) {
		t.Helper()
		if i, err := s.Refresh(t.Context(), []repository.Repository{repo}, noon); err != nil || i.Version != want || i.Root != root {
			t.Fatalf("%+v, %v; want version %d, root %d", i, err, want, root)
		}
	}
	refresh(1, 1)

	// A thief with the targets' and the timestamp's key makes the highest version there can be.
	thief := *p
	thief.legacy = "agoric-upgrade-10"
	stolen := copyIndex(t, repo, nil)
	for range 5 {
		thief.publish(t, stolen, noon)
	}
	if i, err := s.Refresh(t.Context(), []repository.Repository{stolen}, noon); err != nil || i.Version != 6 || i.Channels().Legacy != "agoric-upgrade-10" {
		t.Fatalf("with stolen keys: %+v, %v", i, err)
	}

	oldRoot := p.root
	p.root, p.targets, p.timestamp = newKey(t), newKey(t), newKey(t)
	unsigned, err := parseRoles(t, p).SignRoot(p.roots, []signature.Signer{p.root.Signer}, noon)
	if err != nil || unsigned.Done() || unsigned.Old != 0 || unsigned.OldNeed != 1 || unsigned.Have != 1 {
		t.Fatalf("a root that only its own key has signed: %+v, %v", unsigned, err)
	}
	if _, err := p.roles.SignRoot(append(p.roots, unsigned.Root), []signature.Signer{newKey(t).Signer}, noon); err == nil {
		t.Error("a stranger has signed the root")
	}
	p.ceremony(t, noon, oldRoot)
	p.publish(t, repo, noon)
	refresh(2, 2) // although it had version 6
	if _, err := s.Refresh(t.Context(), []repository.Repository{stolen}, noon); !errors.Is(err, releaseindex.ErrSignature) {
		t.Errorf("the stolen keys still count: %v", err)
	}
	// From root 1 alone a new node gets there too; one whose policy has root 2 as well.
	fresh, _ := p.node(t)
	if i, err := fresh.Refresh(t.Context(), []repository.Repository{repo}, noon); err != nil || i.Root != 2 {
		t.Errorf("%+v, %v", i, err)
	}
	newer := releaseindex.Open(engines.Open(t.TempDir()), p.roots[1])
	if i, err := newer.Refresh(t.Context(), []repository.Repository{repo}, noon); err != nil || i.Root != 2 {
		t.Errorf("%+v, %v", i, err)
	}
	// Who publishes with an old checkout is told so.
	previous, err := releaseindex.Published(t.Context(), repo, p.roots[:1])
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.roles.Update(previous, p.roots[:1], p.content(t), []signature.Signer{p.targets.Signer, p.timestamp.Signer}, noon); err == nil || !strings.Contains(err.Error(), "get the newer ones") {
		t.Errorf("published with an old root: %v", err)
	}
}

func parseRoles(t *testing.T, p *publisher) *releaseindex.Roles {
	t.Helper()
	roles, err := releaseindex.ParseRoles("roles.toml", []byte("schema = 1\n[root]\nkeys = [\"r\"]\ndays = 365\n[targets]\nkeys = [\"c\"]\ndays = 90\n[timestamp]\nkeys = [\"t\"]\ndays = 14\n"),
		fstest.MapFS{"r": {Data: p.root.pub}, "c": {Data: p.targets.pub}, "t": {Data: p.timestamp.pub}})
	if err != nil {
		t.Fatal(err)
	}
	return roles
}

// Two of three sign a root, one after the other.
func TestThreshold(t *testing.T) {
	a, b, c := newKey(t), newKey(t), newKey(t)
	roles, err := releaseindex.ParseRoles("roles.toml", []byte("schema = 1\n[root]\nkeys = [\"a\", \"b\", \"c\"]\nthreshold = 2\ndays = 365\n[targets]\nkeys = [\"a\", \"b\"]\nthreshold = 2\ndays = 90\n[timestamp]\nkeys = [\"a\"]\ndays = 14\n"),
		fstest.MapFS{"a": {Data: a.pub}, "b": {Data: b.pub}, "c": {Data: c.pub}})
	if err != nil {
		t.Fatal(err)
	}
	first, err := roles.SignRoot(nil, []signature.Signer{a.Signer}, noon)
	if err != nil || first.Done() || first.Have != 1 || first.Need != 2 {
		t.Fatalf("%+v, %v", first, err)
	}
	if again, err := roles.SignRoot([][]byte{first.Root}, []signature.Signer{a.Signer}, noon); err != nil || again.Have != 1 {
		t.Fatalf("signed twice by one: %+v, %v", again, err)
	}
	second, err := roles.SignRoot([][]byte{first.Root}, []signature.Signer{c.Signer}, noon)
	if err != nil || !second.Done() || second.Version != 1 {
		t.Fatalf("%+v, %v", second, err)
	}
	if same, err := roles.SignRoot([][]byte{second.Root}, nil, noon.Add(100*day)); err != nil || !same.Done() || string(same.Root) != string(second.Root) {
		t.Errorf("there was nothing to do: %+v, %v", same, err)
	}
	if next, err := roles.SignRoot([][]byte{second.Root}, nil, noon.Add(300*day)); err != nil || next.Version != 2 || next.Done() {
		t.Errorf("it is time for the next: %+v, %v", next, err)
	}
	targets := map[string][]byte{releaseindex.ChannelsName: []byte("legacy = \"a\"\ncurrent = \"b\"\n")}
	if _, err := roles.Update(nil, [][]byte{second.Root}, targets, []signature.Signer{a.Signer}, noon); err == nil || !strings.Contains(err.Error(), "targets.json: not enough of those who must sign do: found 1; expected 2") {
		t.Errorf("signed by one: %v", err)
	}
	i, err := roles.Update(nil, [][]byte{second.Root}, targets, []signature.Signer{a.Signer, b.Signer}, noon)
	if err != nil {
		t.Fatal(err)
	}
	// Who has only the timestamp's key says that it is still the newest, but not what it is.
	if renewed, err := roles.Update(i, [][]byte{second.Root}, targets, []signature.Signer{a.Signer}, noon.Add(80*day)); err != nil || renewed.Version != 2 || renewed.Content != 1 {
		t.Errorf("%+v, %v", renewed, err)
	}
	if _, err := roles.Update(i, [][]byte{second.Root}, targets, []signature.Signer{a.Signer}, noon.Add(91*day)); err == nil {
		t.Error("renewed what has expired")
	}
	targets["agoric-upgrade-99.json"] = []byte("{}")
	if _, err := roles.Update(i, [][]byte{second.Root}, targets, []signature.Signer{a.Signer}, noon); err == nil {
		t.Error("changed by one")
	}
}

func TestParseRoles(t *testing.T) {
	pub := newKey(t).pub
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p384pub, err := cryptoutils.MarshalPublicKeyToPEM(p384.Public())
	if err != nil {
		t.Fatal(err)
	}
	files := fstest.MapFS{"a": {Data: pub}, "b": {Data: pub}, "p384": {Data: p384pub}, "text": {Data: []byte("x")}}
	rest := "[targets]\nkeys = [\"a\"]\ndays = 1\n[timestamp]\nkeys = [\"a\"]\ndays = 1\n"
	for _, test := range []struct{ text, err string }{
		{"schema = 1\n[root]\nkeys = [\"a\"]\ndays = 1\n" + rest, ""},
		{"schema = 2\n", "roles.toml:1: schema is 2; expected 1"},
		{"schema = 1\n[root]\nkeys = [\"a\"]\nexpires = 1\n", "unknown key root.expires"},
		{"schema = 1\n[root]\nkeys = []\ndays = 1\n" + rest, "roles.toml:2: 1 signatures are required of 0 keys"},
		{"schema = 1\n[root]\nkeys = [\"a\"]\nthreshold = 0\ndays = 1\n" + rest, "0 signatures are required of 1 keys; expected 1 to 1"},
		{"schema = 1\n[root]\nkeys = [\"a\", \"b\"]\ndays = 1\n" + rest, "roles.toml:3: the key b is there twice"},
		{"schema = 1\n[root]\nkeys = [\"a\"]\n" + rest, "days is 0; expected"},
		{"schema = 1\n[root]\nkeys = [\"none\"]\ndays = 1\n" + rest, "open none"},
		{"schema = 1\n[root]\nkeys = [\"text\"]\ndays = 1\n" + rest, "text is no public key in PEM"},
		{"schema = 1\n[root]\nkeys = [\"p384\"]\ndays = 1\n" + rest, "ECDSA key of P-384; expected P-256"},
		{"schema = 1\n[root]\nkeys = [\"a\"]\ndays = 1\n[targets]\nkeys = [\"a\"]\ndays = 1\n", "1 signatures are required of 0 keys"},
	} {
		_, err := releaseindex.ParseRoles("roles.toml", []byte(test.text), files)
		if (err == nil) != (test.err == "") || err != nil && !strings.Contains(err.Error(), test.err) {
			t.Errorf("%s%v; want %q", test.text, err, test.err)
		}
	}
}

// A node whose state is damaged, or whose policy has another root of trust, says so, and is whole again after the next refresh.
func TestDamagedState(t *testing.T) {
	p := newPublisher(t)
	repo := open(t, "oci:"+t.TempDir())
	p.publish(t, repo, noon)
	s, dir := p.node(t)
	if _, err := s.Refresh(t.Context(), []repository.Repository{repo}, noon); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "release-index.zip")
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	flipped := slices.Clone(whole)
	flipped[len(flipped)/3] ^= 1
	for name, data := range map[string][]byte{"half": whole[:len(whole)/2], "empty": nil, "flipped": flipped} {
		if err := os.WriteFile(path, data, 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Load(); err == nil || errors.Is(err, releaseindex.ErrNone) {
			t.Errorf("%s: loaded: %v", name, err)
		}
		if _, err := s.Refresh(t.Context(), []repository.Repository{repo}, noon); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := s.Load(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	foreign := newPublisher(t)
	other := releaseindex.Open(engines.Open(filepath.Dir(dir)), foreign.roots[0])
	if _, err := other.Load(); !errors.Is(err, releaseindex.ErrSignature) {
		t.Errorf("by another root: %v", err)
	}
	if _, err := releaseindex.Open(engines.Open(filepath.Dir(dir)), []byte("{}")).Load(); err == nil || !strings.Contains(err.Error(), "no root.json of TUF") {
		t.Errorf("by no root: %v", err)
	}
}

// Many refresh at once while the index moves on: none goes back, and whoever looks finds a whole one.
func TestConcurrent(t *testing.T) {
	p := newPublisher(t)
	var all []repository.Repository
	repo := open(t, "oci:"+t.TempDir())
	for range 6 {
		p.publish(t, repo, noon)
		all = append(all, copyIndex(t, repo, nil))
	}
	s, dir := p.node(t)
	if _, err := s.Refresh(t.Context(), all[:1], noon); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	var readers, writers sync.WaitGroup
	for range 2 {
		readers.Go(func() {
			var last int64
			for ctx.Err() == nil {
				i, err := releaseindex.Open(engines.Open(filepath.Dir(dir)), p.roots[0]).Load()
				if err != nil || i.Version < last {
					t.Errorf("%+v, %v after version %d", i, err, last)
					return
				}
				last = i.Version
			}
		})
	}
	for n := range 12 {
		writers.Go(func() {
			mine := releaseindex.Open(engines.Open(filepath.Dir(dir)), p.roots[0])
			want := int64(n%len(all) + 1)
			i, err := mine.Refresh(t.Context(), all[want-1:want], noon)
			if err != nil && !errors.Is(err, releaseindex.ErrRollback) || i == nil || i.Version < want {
				t.Errorf("version %d: %+v, %v", want, i, err)
			}
		})
	}
	writers.Wait()
	stop()
	readers.Wait()
	if i, err := s.Load(); err != nil || i.Version != 6 {
		t.Errorf("at the end: %+v, %v", i, err)
	}
}

// Whatever is offered, nothing is accepted that the keys have not signed.
func FuzzCheck(f *testing.F) {
	p := newPublisher(f)
	repo := open(f, "oci:"+f.TempDir())
	p.publish(f, repo, noon)
	files, err := releaseindex.Pull(f.Context(), repo)
	if err != nil {
		f.Fatal(err)
	}
	for _, name := range []string{"timestamp.json", "1.snapshot.json", "1.targets.json", "2.root.json"} {
		f.Add(name, files[name])
	}
	f.Fuzz(func(t *testing.T, name string, data []byte) {
		changed := make(map[string][]byte)
		for n, d := range files {
			changed[n] = d
		}
		changed[name] = data
		i, err := releaseindex.Check(p.roots[0], changed, noon)
		if err != nil {
			return
		}
		if i.Version != 1 || i.Content != 1 || i.Root != 1 || i.Channels().Legacy != p.legacy {
			t.Errorf("accepted %+v with %s: %s", i, name, data)
		}
	})
}

func BenchmarkLoad(b *testing.B) {
	p := newPublisher(b)
	repo := open(b, "oci:"+b.TempDir())
	p.publish(b, repo, noon)
	s, _ := p.node(b)
	if _, err := s.Refresh(b.Context(), []repository.Repository{repo}, noon); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := s.Load(); err != nil {
			b.Fatal(err)
		}
	}
}
