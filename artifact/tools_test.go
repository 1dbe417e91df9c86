package artifact_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/enginery/enginery/artifact"
	"github.com/enginery/enginery/build"
	"github.com/enginery/enginery/internal/enginetest"
	"github.com/enginery/enginery/internal/tooltest"
	"github.com/google/go-containerregistry/pkg/registry"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// built packs a version as it ships: with the workers that its recipe compiles to and the bundles that are published.
func built(t testing.TB, id string) *artifact.Artifact {
	t.Helper()
	store, r := enginetest.Store(t), enginetest.Recipe(t, id)
	outputs, err := build.Engines(t.Context(), store, enginetest.Executor(t, store), enginetest.Fetch(store), r)
	if err != nil {
		t.Fatal(err)
	}
	enginetest.Bundles(t, r)
	a, err := artifact.Pack(t.Context(), store, r, outputs[id])
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// TestPrograms takes a version as it ships through oras and crane: out of the layout, into a registry that has the referrers API and one that
// does not, and out of that again.
func TestPrograms(t *testing.T) {
	const id, platform = "agoric-upgrade-16", "linux/arm64"
	oras := tooltest.Runner(t, tooltest.Oras)
	crane := tooltest.Runner(t, tooltest.Crane)
	a, dir := built(t, id), t.TempDir()
	if err := a.WriteLayout(t.Context(), dir); err != nil {
		t.Fatal(err)
	}
	index := read(t, a, a.Index)
	p, ok := a.Platform(platform)
	if !ok {
		t.Fatalf("no %s", platform)
	}
	// pulled compares a folder that oras wrote with the platform's files.
	pulled := func(from string, args ...string) {
		t.Helper()
		out := t.TempDir()
		oras(append([]string{"pull", "--no-tty", "--platform", platform, "--output", out}, append(args, from)...)...)
		files, err := os.ReadDir(out)
		if err != nil || len(files) != len(p.Files) {
			t.Errorf("oras pull wrote %v, %v; want %d files", files, err, len(p.Files))
		}
		for _, f := range p.Files {
			if got, err := os.ReadFile(filepath.Join(out, artifact.Title(f))); err != nil || !bytes.Equal(got, read(t, a, f)) {
				t.Errorf("oras pull from %s: %s is another file: %v", from, artifact.Title(f), err)
			}
		}
	}
	// discovered compares the referrers that oras finds with the version's.
	discovered := func(from string, args ...string) {
		t.Helper()
		var found struct {
			Referrers []struct {
				Digest, ArtifactType string
				Annotations          map[string]string
			}
		}
		if err := json.Unmarshal(oras(append([]string{"discover", "--format", "json"}, append(args, from)...)...), &found); err != nil {
			t.Fatal(err)
		}
		got := make(map[string]string)
		for _, r := range found.Referrers {
			got[r.Annotations["in-toto.io/predicate-type"]] = r.ArtifactType + " " + r.Digest
		}
		want := make(map[string]string)
		for _, r := range a.Referrers {
			want[r.PredicateType] = artifact.StatementType + " " + r.Manifest.Digest.String()
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("oras discover in %s: %v, want %v", from, got, want)
		}
	}

	layout := dir + ":" + id
	if got := oras("manifest", "fetch", "--oci-layout", layout); !bytes.Equal(got, index) {
		t.Errorf("oras manifest fetch: %s, want %s", got, index)
	}
	pulled(layout, "--oci-layout")
	discovered(layout, "--oci-layout")

	for _, referrersAPI := range []bool{true, false} {
		server := httptest.NewServer(registry.New(registry.WithReferrersSupport(referrersAPI), registry.Logger(log.New(io.Discard, "", 0))))
		defer server.Close()
		ref := strings.TrimPrefix(server.URL, "http://") + "/engines:" + id
		oras("cp", "--no-tty", "--recursive", "--from-oci-layout", layout, "--to-plain-http", ref)
		pulled(ref, "--plain-http")
		if !referrersAPI { // the registry that has the API gives referrers the type of their configs
			discovered(ref, "--plain-http")
		}
		crane("validate", "--insecure", "--remote", ref)
		if got := crane("manifest", "--insecure", ref); !bytes.Equal(bytes.TrimSpace(got), index) {
			t.Errorf("crane manifest: %s, want %s", got, index)
		}
		if got, want := strings.TrimSpace(string(crane("digest", "--insecure", "--platform", platform, ref))), p.Manifest.Digest.String(); got != want {
			t.Errorf("crane digest: %s, want %s", got, want)
		}
		back := filepath.Join(t.TempDir(), "oci")
		crane("pull", "--insecure", "--format=oci", ref, back)
		same(t, back, a)
	}
}

// same checks that a layout that another program wrote has the version's index and all that it names.
func same(t *testing.T, dir string, a *artifact.Artifact) {
	t.Helper()
	check := func(d ocispec.Descriptor) {
		t.Helper()
		got, err := os.ReadFile(filepath.Join(dir, "blobs", "sha256", d.Digest.Encoded()))
		if err != nil || !bytes.Equal(got, read(t, a, d)) {
			t.Errorf("blob %s %s: %v", artifact.Title(d), d.Digest, err)
		}
	}
	check(a.Index)
	for _, p := range a.Platforms {
		check(p.Manifest)
		check(p.Config)
		for _, f := range p.Files {
			check(f)
		}
	}
}
