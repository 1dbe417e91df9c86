package trust_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/enginery/enginery/artifact"
	"github.com/enginery/enginery/internal/registrytest"
	"github.com/enginery/enginery/internal/tooltest"
	"github.com/enginery/enginery/repository"
	"github.com/enginery/enginery/trust"
	"github.com/enginery/enginery/trust/sign"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// push writes an index to a repository.
func push(t *testing.T, repo repository.Repository, tag string) ocispec.Descriptor {
	t.Helper()
	content := []byte(`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","artifactType":"` + artifact.VersionType + `","manifests":[],"annotations":{"tag":"` + tag + `"}}`)
	d := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageIndex, Digest: digest.FromBytes(content), Size: int64(len(content))}
	if err := repo.PushManifest(t.Context(), d, content, tag); err != nil {
		t.Fatal(err)
	}
	return d
}

// The real cosign accepts what we sign, and we accept what it signs, in a registry that has the referrers API and in one that does not.
func TestCosign(t *testing.T) {
	t.Parallel()
	cosign := tooltest.Install(t, tooltest.Cosign)
	dir := t.TempDir()
	run := func(args ...string) (string, error) {
		cmd := exec.CommandContext(t.Context(), cosign, args...)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "HOME="+dir, "DOCKER_CONFIG="+dir, sign.PasswordEnv+"=secret", "COSIGN_EXPERIMENTAL=1")
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	must := func(args ...string) string {
		t.Helper()
		out, err := run(args...)
		if err != nil {
			t.Fatalf("cosign %s: %v\n%s", strings.Join(args, " "), err, out)
		}
		return out
	}
	private, public, err := sign.GenerateKey([]byte("secret"))
	if err != nil {
		t.Fatal(err)
	}
	empty := []byte(`{"mediaType":"application/vnd.dev.sigstore.trustedroot+json;version=0.1"}`) // without it cosign asks the network
	for name, content := range map[string][]byte{"ours.key": private, "ours.pub": public, "root.json": empty} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	must("generate-key-pair", "--output-key-prefix", "theirs")
	theirs, err := os.ReadFile(filepath.Join(dir, "theirs.pub"))
	if err != nil {
		t.Fatal(err)
	}
	password := func() ([]byte, error) { return []byte("secret"), nil }
	signer, err := sign.OpenKey(t.Context(), filepath.Join(dir, "ours.key"), password)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := sign.OpenKey(t.Context(), filepath.Join(dir, "theirs.key"), password); err != nil {
		t.Errorf("cosign's key: %v", err)
	}
	if _, err := sign.OpenKey(t.Context(), filepath.Join(dir, "ours.key"), func() ([]byte, error) { return []byte("wrong"), nil }); err == nil {
		t.Error("opened with a wrong password")
	}
	for name, registry := range map[string]string{"referrers API": registrytest.StartOCI(t), "tags": registrytest.StartDistribution(t)} {
		repo, err := repository.Open(registry + "/engines")
		if err != nil {
			t.Fatal(err)
		}
		index := push(t, repo, "agoric-upgrade-18")
		ref := registry + "/engines@" + index.Digest.String()

		// What cosign makes in its old form does not count, and it is said why.
		old := push(t, repo, "agoric-upgrade-17")
		must("sign", "--yes", "--tlog-upload=false", "--key", "theirs.key", registry+"/engines@"+old.Digest.String())
		if found, err := trust.Collect(t.Context(), repo, old.Digest); err != nil || len(found) != 1 || !strings.Contains(found[0].Problem, "--new-bundle-format") {
			t.Errorf("%s: a signature in cosign's old form: %+v, %v", name, found, err)
		}

		// Ours, read by cosign.
		signature, err := signer.Sign(t.Context(), index.Digest)
		if err != nil {
			t.Fatal(err)
		}
		rebuild, err := signer.Attest(t.Context(), provenance(index.Digest, "https://ours.example", artifact.BuildType))
		if err != nil {
			t.Fatal(err)
		}
		for _, b := range [][]byte{signature, rebuild} {
			if _, err := trust.Attach(t.Context(), repo, index, b); err != nil {
				t.Fatal(err)
			}
		}
		must("verify", "--insecure-ignore-tlog", "--trusted-root", "root.json", "--key", "ours.pub", ref)
		if out := must("verify-attestation", "--insecure-ignore-tlog", "--trusted-root", "root.json", "--key", "ours.pub", "--type", "slsaprovenance1", ref); !strings.Contains(out, "payload") {
			t.Errorf("%s: cosign verify-attestation says %s", name, out)
		}
		if out, err := run("verify", "--new-bundle-format", "--insecure-ignore-tlog", "--trusted-root", "root.json", "--key", "theirs.pub", ref); err == nil {
			t.Errorf("%s: cosign accepts another key: %s", name, out)
		}
		tree := must("tree", "--experimental-oci11", ref)
		for _, b := range [][]byte{signature, rebuild} {
			if !strings.Contains(tree, digest.FromBytes(b).String()) {
				t.Errorf("%s: cosign tree does not show %s:\n%s", name, digest.FromBytes(b), tree)
			}
		}

		// Cosign's, read by us.
		must("sign", "--yes", "--new-bundle-format", "--tlog-upload=false", "--key", "theirs.key", ref)
		predicate := filepath.Join(dir, "predicate.json")
		if err := os.WriteFile(predicate, []byte(`{"buildDefinition":{"buildType":"`+artifact.BuildType+`","externalParameters":{}},"runDetails":{"builder":{"id":"https://theirs.example"}}}`), 0o600); err != nil {
			t.Fatal(err)
		}
		must("attest", "--yes", "--new-bundle-format", "--tlog-upload=false", "--key", "theirs.key", "--type", "slsaprovenance1", "--predicate", predicate, ref)
		evidence, err := trust.Collect(t.Context(), repo, index.Digest)
		if err != nil || len(evidence) != 4 {
			t.Fatalf("%s: collected %d, %v; want 4", name, len(evidence), err)
		}
		policy, err := trust.ParsePolicy("policy.toml", []byte(`schema = 1
[[key]]
name = "ours-key"
public = """`+string(public)+`"""
[[key]]
name = "theirs-key"
public = """`+string(theirs)+`"""
[[rebuilder]]
name = "ours"
builder = "https://ours.example"
key = "ours-key"
[[rebuilder]]
name = "theirs"
builder = "https://theirs.example"
key = "theirs-key"
[default]
signers = ["ours-key", "theirs-key"]
signatures = 2
rebuilders = ["ours", "theirs"]
rebuilds = 2
`), nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := policy.Decide(trust.Subject{Version: "agoric-upgrade-18", Index: index.Digest}, evidence, trust.Options{Time: noon}).Err(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// What others attach, or a repository makes up, is left out; a repository that is gone is an error.
func TestCollect(t *testing.T) {
	repo, err := repository.Open("oci:" + t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	index := push(t, repo, "agoric-upgrade-18")
	release := newParty(t)
	good, err := release.Sign(t.Context(), index.Digest)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := trust.Attach(t.Context(), repo, index, good); err != nil {
		t.Fatal(err)
	}
	if _, err := trust.Attach(t.Context(), repo, index, []byte("garbage")); err == nil {
		t.Error("garbage was attached")
	}
	sbom := []byte(`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.empty.v1+json","digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a","size":2},"layers":[],"subject":{"mediaType":"` + index.MediaType + `","digest":"` + index.Digest.String() + `","size":` + "1" + `}}`)
	if err := repo.PushManifest(t.Context(), ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromBytes(sbom), Size: int64(len(sbom))}, sbom, ""); err != nil {
		t.Fatal(err)
	}
	evidence, err := trust.Collect(t.Context(), repo, index.Digest)
	if err != nil || len(evidence) != 1 || string(evidence[0].Bundle) != string(good) {
		t.Errorf("collected %v, %v", evidence, err)
	}
	gone, err := repository.Open("127.0.0.1:1/engines", repository.Patience(1))
	if err != nil {
		t.Fatal(err)
	}
	// One that is damaged is told apart from one that is not there.
	bad, err := release.Sign(t.Context(), index.Digest)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := trust.Attach(t.Context(), repo, index, bad); err != nil {
		t.Fatal(err)
	}
	blob := filepath.Join(strings.TrimPrefix(repo.Name(), "oci:"), "blobs", "sha256", digest.FromBytes(bad).Encoded())
	os.Chmod(blob, 0o644)
	if err := os.WriteFile(blob, bad[1:], 0o644); err != nil {
		t.Fatal(err)
	}
	evidence, err = trust.Collect(t.Context(), repo, index.Digest)
	slices.SortFunc(evidence, func(a, b trust.Evidence) int { return len(a.Problem) - len(b.Problem) })
	if err != nil || len(evidence) != 2 || string(evidence[0].Bundle) != string(good) || evidence[1].Bundle != nil || !strings.HasPrefix(evidence[1].Problem, "its bundle is damaged: expected "+digest.FromBytes(bad).String()) {
		t.Errorf("collected %v, %v", evidence, err)
	}
	// Whoever attaches more than fits into memory keeps none of the others from counting that fit.
	filler := bytes.Repeat([]byte("x"), 2900<<10)
	for n := range 24 {
		big, err := json.Marshal(map[string]any{"_type": "https://in-toto.io/Statement/v1", "predicateType": "x", "predicate": map[string]any{"n": n, "filler": string(filler)},
			"subject": []any{map[string]any{"digest": map[string]string{"sha256": index.Digest.Encoded()}}}})
		if err != nil {
			t.Fatal(err)
		}
		bundle, err := release.Attest(t.Context(), big)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := trust.Attach(t.Context(), repo, index, bundle); err != nil {
			t.Fatal(err)
		}
	}
	evidence, err = trust.Collect(t.Context(), repo, index.Digest)
	total, unread, counts := 0, 0, false
	for _, e := range evidence {
		counts = counts || string(e.Bundle) == string(good)
		total += len(e.Bundle)
		if strings.HasPrefix(e.Problem, "it was not read: a bundle of ") {
			unread++
		}
	}
	if err != nil || len(evidence) != 26 || total > 64<<20 || unread == 0 || !counts {
		t.Errorf("collected %d of %d bytes, %d unread, the good one: %v, %v", len(evidence), total, unread, counts, err)
	}
	var unavailable *repository.UnavailableError
	if _, err := trust.Collect(context.WithoutCancel(t.Context()), gone, index.Digest); !errors.As(err, &unavailable) {
		t.Errorf("a registry that is gone: %v", err)
	}
}
