package publish_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/enginery/enginery/artifact"
	"github.com/enginery/enginery/internal/enginetest"
	"github.com/enginery/enginery/internal/registrytest"
	"github.com/enginery/enginery/publish"
	"github.com/enginery/enginery/release"
	"github.com/enginery/enginery/repository"
	"github.com/enginery/enginery/trust"
	"github.com/enginery/enginery/trust/sign"
)

const id = "agoric-upgrade-16"

func signer(t *testing.T) (*sign.Signer, string) {
	t.Helper()
	name := filepath.Join(t.TempDir(), "key")
	if err := sign.WriteKey(name, []byte("secret")); err != nil {
		t.Fatal(err)
	}
	if err := sign.WriteKey(name, []byte("secret")); !errors.Is(err, os.ErrExist) {
		t.Errorf("overwrote a key: %v", err)
	}
	s, err := sign.OpenKey(t.Context(), name+".key", func() ([]byte, error) { return []byte("secret"), nil })
	if err != nil {
		t.Fatal(err)
	}
	public, err := os.ReadFile(name + ".pub")
	if err != nil {
		t.Fatal(err)
	}
	return s, string(public)
}

// A version is signed, rebuilt by somebody, and published; a policy that wants both is content with what is in the registry.
func TestPublish(t *testing.T) {
	w := &release.Workshop{Store: enginetest.Store(t), Layout: filepath.Join(t.TempDir(), "oci"), ToolchainFrom: os.Getenv("ENGINERY_TOOLCHAIN_FROM")}
	registry := registrytest.StartDistribution(t) + "/engines"
	engineer, engineerKey := signer(t)
	rebuilder, rebuilderKey := signer(t)

	var out bytes.Buffer
	if err := publish.Send(t.Context(), w, id, registry, &out); !errors.Is(err, publish.ErrUnsigned) {
		t.Errorf("published unsigned: %v", err)
	}
	if err := publish.Sign(t.Context(), w, engineer, id, &out); err != nil {
		t.Fatal(err)
	}
	signed := out.String()
	for _, want := range []string{trust.SignPredicate, artifact.ProvenancePredicate, artifact.SBOMPredicate} {
		if !strings.Contains(signed, want) {
			t.Errorf("signed:\n%slacks %s", signed, want)
		}
	}
	out.Reset()
	if err := publish.Sign(t.Context(), w, engineer, id, &out); err != nil || strings.Count(out.String(), "signed before") != 3 {
		t.Errorf("signed again: %v\n%s", err, &out)
	}
	if err := publish.Send(t.Context(), w, id, registry, &out); err != nil {
		t.Fatal(err)
	}
	if err := publish.Attest(t.Context(), w, rebuilder, "", id, registry, &out); err == nil || !strings.Contains(err.Error(), "--builder") {
		t.Errorf("attested in nobody's name: %v", err)
	}
	if err := publish.Attest(t.Context(), w, rebuilder, "https://rebuilder.example", id, registry+"/other", &out); !errors.Is(err, repository.ErrNotFound) {
		t.Errorf("attested where the version is not: %v", err)
	}
	if err := publish.Attest(t.Context(), w, rebuilder, "https://rebuilder.example", id, registry, &out); err != nil {
		t.Fatal(err)
	}

	repo, err := repository.Open(registry)
	if err != nil {
		t.Fatal(err)
	}
	index, err := repo.Resolve(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	evidence, err := trust.Collect(t.Context(), repo, index.Digest)
	if err != nil {
		t.Fatal(err)
	}
	policy, err := trust.ParsePolicy("policy.toml", []byte(`schema = 1
[[key]]
name = "engineer"
public = """`+engineerKey+`"""
[[key]]
name = "rebuilder-key"
public = """`+rebuilderKey+`"""
[[rebuilder]]
name = "rebuilder"
builder = "https://rebuilder.example"
key = "rebuilder-key"
[default]
signers = ["engineer"]
rebuilders = ["rebuilder"]
rebuilds = 1
`), nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := policy.Decide(trust.Subject{Version: id, Index: index.Digest}, evidence, trust.Options{Time: time.Now()}).Err(); err != nil {
		t.Error(err)
	}
	// Signing changes nothing of the version.
	if err := w.BuildAndCheck(t.Context(), &out, false, id); err != nil {
		t.Error(err)
	}
	if _, err := artifact.Open(w.Layout, id); err != nil {
		t.Error(err)
	}
}
