package publish_test

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/enginery/enginery/engines"
	"github.com/enginery/enginery/internal/registrytest"
	"github.com/enginery/enginery/internal/tooltest"
	"github.com/enginery/enginery/manifests"
	"github.com/enginery/enginery/publish"
	"github.com/enginery/enginery/releaseindex"
	"github.com/enginery/enginery/repository"
	"github.com/enginery/enginery/trust/sign"
	"github.com/opencontainers/go-digest"
	"github.com/theupdateframework/go-tuf/v2/metadata/config"
	"github.com/theupdateframework/go-tuf/v2/metadata/updater"
)

// Two of three sign the root of trust, the release engineer publishes the index, and a node, crane, oras and go-tuf's own client read it.
func TestIndex(t *testing.T) {
	dir, records := t.TempDir(), t.TempDir()
	write := func(path string, content []byte) {
		t.Helper()
		if err := os.WriteFile(path, content, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	var people []*sign.Signer
	for _, name := range []string{"alice", "bob", "carol", "release"} {
		s, public := signer(t)
		people = append(people, s)
		write(filepath.Join(dir, name+".pub"), []byte(public))
	}
	alice, bob, engineer := people[:1], people[1:2], people[3:]
	for _, id := range manifests.IDs() {
		m, err := manifests.Load(id)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := m.Write(records); err != nil {
			t.Fatal(err)
		}
	}
	_, public := signer(t)
	revoked := digest.FromString("revoked")
	write(filepath.Join(records, "policy.toml"), []byte("schema = 1\n[[key]]\nname = \"k\"\npublic = \"\"\""+public+"\"\"\"\n[default]\nsigners = [\"k\"]\n[[revoked]]\ndigest = \""+revoked.String()+"\"\nreason = \"bad\"\n"))
	write(filepath.Join(records, "channels.toml"), manifests.Channels)
	now := time.Now()
	var out bytes.Buffer

	if err := publish.Root(dir, alice, now, &out); err == nil || !strings.Contains(err.Error(), "roles.toml") {
		t.Errorf("a root of nobody: %v", err)
	}
	write(filepath.Join(dir, "roles.toml"), []byte(`schema = 1
[root]
keys = ["alice.pub", "bob.pub", "carol.pub"]
threshold = 2
days = 365
[targets]
keys = ["release.pub"]
days = 90
[timestamp]
keys = ["release.pub"]
days = 14
`))
	if err := publish.Root(dir, alice, now, &out); err != nil || !strings.Contains(out.String(), "1.root.json  1 of 2 signatures: the others sign it by the same command") {
		t.Fatalf("%v\n%s", err, &out)
	}
	registry := registrytest.StartDistribution(t) + "/engines"
	if err := publish.Index(t.Context(), dir, records, registry, engineer, now, &out); err == nil {
		t.Error("published by a root that is not signed yet")
	}
	if err := publish.Root(dir, engineer, now, &out); err == nil || !strings.Contains(err.Error(), "is none of the root's") {
		t.Errorf("signed the root with another key: %v", err)
	}
	if err := publish.Root(dir, bob, now, &out); err != nil || !strings.Contains(out.String(), "2 of 2 signatures: done") {
		t.Fatalf("%v\n%s", err, &out)
	}
	if err := publish.Index(t.Context(), dir, records, registry, alice, now, &out); err == nil || !strings.Contains(err.Error(), "not enough of those who must sign do") {
		t.Errorf("published with another key: %v", err)
	}
	for _, want := range []string{"version 1, content 1, root 1", "version 2, content 1, root 1"} {
		out.Reset()
		if err := publish.Index(t.Context(), dir, records, registry, engineer, now, &out); err != nil || !strings.Contains(out.String(), want) {
			t.Fatalf("%v\n%s", err, &out)
		}
	}

	root, err := os.ReadFile(filepath.Join(dir, "1.root.json"))
	if err != nil {
		t.Fatal(err)
	}
	repo, err := repository.Open(registry)
	if err != nil {
		t.Fatal(err)
	}
	node := releaseindex.Open(engines.Open(t.TempDir()), root)
	i, err := node.Refresh(t.Context(), []repository.Repository{repo}, now)
	if err != nil || i.Version != 2 || len(i.Revoked()) != 1 || i.Revoked()[0].Digest != revoked {
		t.Fatalf("%+v, %v", i, err)
	}

	crane, oras := tooltest.Runner(t, tooltest.Crane), tooltest.Runner(t, tooltest.Oras)
	if m := string(crane("manifest", registry+":"+releaseindex.Tag)); !strings.Contains(m, releaseindex.Type) {
		t.Errorf("crane reads %s", m)
	}
	pulled := t.TempDir()
	oras("pull", "--plain-http", "--output", pulled, registry+":"+releaseindex.Tag)
	server := httptest.NewServer(http.FileServer(http.Dir(pulled)))
	defer server.Close()
	c, err := config.New(server.URL, root)
	if err != nil {
		t.Fatal(err)
	}
	c.LocalMetadataDir, c.LocalTargetsDir, c.PrefixTargetsWithHash = t.TempDir(), t.TempDir(), false
	client, err := updater.New(c)
	if err != nil {
		t.Fatal(err)
	}
	if err := client.Refresh(); err != nil {
		t.Fatalf("go-tuf's client: %v", err)
	}
	for _, id := range manifests.IDs() {
		target, err := client.GetTargetInfo(id + ".json")
		if err != nil {
			t.Fatal(err)
		}
		_, data, err := client.DownloadTarget(target, "", "")
		if err != nil {
			t.Fatal(err)
		}
		m, err := manifests.Load(id)
		if err != nil {
			t.Fatal(err)
		}
		if want, err := m.JSON(); err != nil || !bytes.Equal(data, want) {
			t.Errorf("go-tuf's client has another %s: %v", id, err)
		}
	}

	// A channel without a record is a mistake.
	write(filepath.Join(records, "channels.toml"), []byte("legacy = \"agoric-upgrade-99\"\ncurrent = \"agoric-upgrade-18\"\n"))
	if err := publish.Index(t.Context(), dir, records, registry, engineer, now, &out); err == nil || !strings.Contains(err.Error(), "agoric-upgrade-99, which is not recorded yet") {
		t.Errorf("published channels without a record: %v", err)
	}
}
