package repository_test

import (
	"bytes"
	"encoding/json"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/enginery/enginery/internal/registrytest"
	"github.com/enginery/enginery/internal/tooltest"
	"github.com/enginery/enginery/repository"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// TestPrograms has oras and crane read what Handler serves and what Copy wrote, and reads what they write.
func TestPrograms(t *testing.T) {
	var wg sync.WaitGroup
	var oras, crane func(args ...string) []byte
	wg.Go(func() { oras = tooltest.Runner(t, tooltest.Oras) })
	wg.Go(func() { crane = tooltest.Runner(t, tooltest.Crane) })
	wg.Wait()

	dir := t.TempDir()
	layout := open(t, "oci:"+dir)
	root := fill(t, layout, "v1", 100_000)
	want := all(t, layout, root)
	server := httptest.NewServer(repository.Handler(dir))
	defer server.Close()
	distribution := registrytest.StartDistribution(t) + "/a/b"
	oci := registrytest.StartOCI(t) + "/a/b"
	for _, to := range []string{distribution, oci} {
		if _, err := repository.Copy(t.Context(), layout, open(t, to), "v1"); err != nil {
			t.Fatal(err)
		}
	}
	data, err := layout.Manifest(t.Context(), root)
	if err != nil {
		t.Fatal(err)
	}
	var index ocispec.Index
	if err := json.Unmarshal(data, &index); err != nil {
		t.Fatal(err)
	}
	for _, from := range []string{strings.TrimPrefix(server.URL, "http://") + "/a/b", distribution, oci} {
		if got := strings.TrimSpace(string(crane("digest", from+":v1"))); got != root.Digest.String() {
			t.Errorf("crane digest: %s, want %s", got, root.Digest)
		}
		if got := crane("manifest", from+":v1"); !bytes.Equal(bytes.TrimSpace(got), data) {
			t.Errorf("crane manifest: %s, want %s", got, data)
		}
		if tags := strings.Fields(string(crane("ls", from))); !slices.Contains(tags, "v1") {
			t.Errorf("crane ls: %s", tags)
		}
		crane("pull", "--format=oci", from+":v1", filepath.Join(t.TempDir(), "pulled"))
		if from != oci { // which gives referrers the types of their configs
			var found struct {
				Referrers []struct{ Digest, ArtifactType string }
			}
			out := oras("discover", "--plain-http", "--format", "json", "--depth", "1", "--artifact-type", signature, from+":v1")
			if err := json.Unmarshal(out, &found); err != nil {
				t.Fatal(err)
			}
			referrers, err := layout.Referrers(t.Context(), root.Digest, signature)
			if err != nil || len(found.Referrers) != 1 || len(referrers) != 1 || found.Referrers[0].Digest != referrers[0].Digest.String() {
				t.Errorf("oras discover: %s, want %v, %v", out, referrers, err)
			}
		}
		// What oras copies, with all referrers, is what we have.
		back := filepath.Join(t.TempDir(), "back")
		oras("cp", "--no-tty", "--recursive", "--from-plain-http", "--to-oci-layout", from+":v1", back+":v1")
		copied := open(t, "oci:"+back)
		d, err := copied.Resolve(t.Context(), "v1")
		if err != nil {
			t.Fatal(err)
		}
		if got := all(t, copied, d); got != want {
			t.Errorf("oras copied from %s\n%s\nwant\n%s", from, got, want)
		}
	}
	// Ours, from a layout to oras.
	if got := oras("manifest", "fetch", "--oci-layout", dir+":v1"); !bytes.Equal(got, data) {
		t.Errorf("oras manifest fetch: %s", got)
	}
	// And what oras attaches, we find.
	file := filepath.Join(t.TempDir(), "note")
	if err := os.WriteFile(file, []byte("note"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, to := range []string{distribution, oci} {
		oras("attach", "--no-tty", "--plain-http", "--disable-path-validation", "--artifact-type", "application/vnd.test.note", to+":v1", file)
		if got, err := open(t, to).Referrers(t.Context(), root.Digest, "application/vnd.test.note"); err != nil || len(got) != 1 {
			t.Errorf("attached by oras in %s: %v, %v", to, got, err)
		}
	}
	oras("attach", "--no-tty", "--oci-layout", "--disable-path-validation", "--artifact-type", "application/vnd.test.note", dir+":v1", file)
	if got, err := layout.Referrers(t.Context(), root.Digest, "application/vnd.test.note"); err != nil || len(got) != 1 {
		t.Errorf("attached by oras in the layout: %v, %v", got, err)
	}
}

// BenchmarkCopy copies a version of 8 MB out of a registry: without referrers, as crane does it, which syncs nothing to the disk, and with
// five referrers, which crane would leave behind.
func BenchmarkCopy(b *testing.B) {
	crane := tooltest.Runner(b, tooltest.Crane)
	upstream := registrytest.StartDistribution(b)
	from := open(b, upstream+"/signed")
	root := fill(b, from, "v1", 8<<20/3)
	plain := open(b, upstream+"/plain")
	copyPlain(b, from, plain, root)
	for _, what := range []string{"plain", "signed"} {
		copied := func(b *testing.B, to string) {
			if _, err := repository.Copy(b.Context(), open(b, upstream+"/"+what), open(b, to), "v1"); err != nil {
				b.Fatal(err)
			}
		}
		byCrane := map[string]func(b *testing.B, to string){"plain": func(b *testing.B, to string) {
			if dir, ok := strings.CutPrefix(to, "oci:"); ok {
				crane("pull", "--format=oci", upstream+"/plain:v1", dir)
			} else {
				crane("copy", upstream+"/plain:v1", to+":v1")
			}
		}}
		for program, run := range map[string]func(b *testing.B, to string){"": copied, " by crane": byCrane[what]} {
			if run == nil {
				continue
			}
			b.Run(what+" to a layout"+program, func(b *testing.B) {
				for b.Loop() {
					run(b, "oci:"+filepath.Join(b.TempDir(), "oci"))
				}
			})
			b.Run(what+" to a registry"+program, func(b *testing.B) {
				for b.Loop() {
					b.StopTimer()
					to := registrytest.StartDistribution(b) + "/a"
					b.StartTimer()
					run(b, to)
				}
			})
		}
		b.Run(what+" again to a layout", func(b *testing.B) {
			to := "oci:" + b.TempDir()
			for b.Loop() {
				copied(b, to)
			}
		})
	}
}

// copyPlain copies an index without its referrers.
func copyPlain(b *testing.B, from, to repository.Repository, root ocispec.Descriptor) {
	b.Helper()
	data, err := from.Manifest(b.Context(), root)
	if err != nil {
		b.Fatal(err)
	}
	var index ocispec.Index
	if err := json.Unmarshal(data, &index); err != nil {
		b.Fatal(err)
	}
	for _, d := range index.Manifests {
		data, err := from.Manifest(b.Context(), d)
		if err != nil {
			b.Fatal(err)
		}
		var m ocispec.Manifest
		if err := json.Unmarshal(data, &m); err != nil {
			b.Fatal(err)
		}
		for _, l := range append(m.Layers, m.Config) {
			pushBlob(b, to, read(b, from, l, 0))
		}
		pushJSON(b, to, m.MediaType, m, "")
	}
	if err := to.PushManifest(b.Context(), root, data, "v1"); err != nil {
		b.Fatal(err)
	}
}
