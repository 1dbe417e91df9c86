package repository_test

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/enginery/enginery/internal/registrytest"
	"github.com/enginery/enginery/repository"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	version   = "application/vnd.test.version"
	signature = "application/vnd.test.signature"
)

func open(t testing.TB, ref string, opts ...repository.Option) repository.Repository {
	t.Helper()
	r, err := repository.Open(ref, opts...)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// writable are the repositories that can be written, empty.
var writable = map[string]func(t testing.TB) repository.Repository{
	"layout":       func(t testing.TB) repository.Repository { return open(t, "oci:"+filepath.Join(t.TempDir(), "layout")) },
	"distribution": func(t testing.TB) repository.Repository { return open(t, registrytest.StartDistribution(t)+"/a/b") },
	"oci":          func(t testing.TB) repository.Repository { return open(t, registrytest.StartOCI(t)+"/a/b") },
}

func describe(mediaType string, b []byte) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}
}

func random(n int) []byte {
	b := make([]byte, n)
	rand.Read(b)
	return b
}

func pushBlob(t testing.TB, to repository.Repository, b []byte) ocispec.Descriptor {
	t.Helper()
	d := describe("application/octet-stream", b)
	if err := to.PushBlob(t.Context(), d, bytes.NewReader(b)); err != nil {
		t.Fatal(err)
	}
	return d
}

func pushJSON(t testing.TB, to repository.Repository, mediaType string, v any, tag string) ocispec.Descriptor {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	d := describe(mediaType, b)
	if err := to.PushManifest(t.Context(), d, b, tag); err != nil {
		t.Fatal(err)
	}
	return d
}

// pushImage pushes a manifest with layers, which may be a referrer.
func pushImage(t testing.TB, to repository.Repository, artifactType, tag string, subject *ocispec.Descriptor, layers ...[]byte) ocispec.Descriptor {
	t.Helper()
	m := ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, ArtifactType: artifactType,
		Config: ocispec.DescriptorEmptyJSON, Subject: subject, Annotations: map[string]string{"of": artifactType},
	}
	m.Config.Data = nil
	pushBlob(t, to, []byte("{}"))
	for _, l := range layers {
		m.Layers = append(m.Layers, pushBlob(t, to, l))
	}
	return pushJSON(t, to, m.MediaType, m, tag)
}

// fill pushes a version of two platforms, signed, the signature signed, too, and with something of cosign's. It returns its index.
func fill(t testing.TB, to repository.Repository, tag string, size int) ocispec.Descriptor {
	t.Helper()
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, ArtifactType: version}
	shared := random(size)
	for _, arch := range []string{"amd64", "arm64"} {
		d := pushImage(t, to, version, "", nil, random(size), shared)
		d.Platform = &ocispec.Platform{OS: "linux", Architecture: arch}
		index.Manifests = append(index.Manifests, d)
	}
	root := pushJSON(t, to, index.MediaType, index, tag)
	signed := pushImage(t, to, signature, "", &root, random(100))
	pushImage(t, to, "application/vnd.test.other", "", &root, random(100))
	pushImage(t, to, signature, "", &signed, random(100))
	pushImage(t, to, signature, "", &index.Manifests[0], random(100))
	pushImage(t, to, signature, strings.Replace(root.Digest.String(), ":", "-", 1)+".sig", nil, random(100))
	return root
}

// all reads all that belongs to a manifest, as text.
func all(t testing.TB, r repository.Repository, d ocispec.Descriptor) string {
	t.Helper()
	var b strings.Builder
	var walk func(d ocispec.Descriptor)
	walk = func(d ocispec.Descriptor) {
		data, err := r.Manifest(t.Context(), d)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&b, "%s %s\n", d.Digest, data)
		var m struct {
			Config            *ocispec.Descriptor
			Manifests, Layers []ocispec.Descriptor
		}
		if err := json.Unmarshal(data, &m); err != nil {
			t.Fatal(err)
		}
		if m.Config != nil {
			m.Layers = append(m.Layers, *m.Config)
		}
		for _, l := range m.Layers {
			fmt.Fprintln(&b, digest.FromBytes(read(t, r, l, 0)))
		}
		referrers, err := r.Referrers(t.Context(), d.Digest, "")
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range slices.Concat(m.Manifests, referrers) {
			walk(d)
		}
	}
	walk(d)
	return b.String()
}

func read(t testing.TB, r repository.Repository, d ocispec.Descriptor, offset int64) []byte {
	t.Helper()
	blob, err := r.Blob(t.Context(), d, offset)
	if err != nil {
		t.Fatal(err)
	}
	defer blob.Close()
	b, err := io.ReadAll(blob)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestRepositories(t *testing.T) {
	for name, start := range writable {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := start(t)
			if _, err := r.Resolve(t.Context(), "v1"); !errors.Is(err, repository.ErrNotFound) {
				t.Errorf("resolving in an empty repository: %v", err)
			}
			root := fill(t, r, "v1", 100_000)
			testReading(t, r, root)

			// A tag moves, and nothing that it named is lost.
			moved := pushImage(t, r, version, "v1", nil, random(10))
			if d, err := r.Resolve(t.Context(), "v1"); err != nil || d.Digest != moved.Digest {
				t.Errorf("a moved tag resolves to %v, %v", d, err)
			}
			if d, err := r.Resolve(t.Context(), root.Digest.String()); err != nil || d.Digest != root.Digest {
				t.Errorf("what lost its tag resolves to %v, %v", d, err)
			}

			var corrupt *repository.CorruptError
			d := describe("application/octet-stream", random(1000))
			for what, b := range map[string][]byte{"other": random(1000), "shorter": random(999), "longer": random(1001)} {
				if err := r.PushBlob(t.Context(), d, bytes.NewReader(b)); !errors.As(err, &corrupt) {
					t.Errorf("pushing %s bytes: %v", what, err)
				}
			}
			if _, err := r.Blob(t.Context(), d, 0); !errors.Is(err, repository.ErrNotFound) {
				t.Errorf("a blob that was never pushed: %v", err)
			}
			if err := r.PushManifest(t.Context(), describe(ocispec.MediaTypeImageManifest, []byte("{}")), []byte("{ }"), ""); !errors.As(err, &corrupt) {
				t.Errorf("pushing another manifest: %v", err)
			}
			m := ocispec.Manifest{
				Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
				Config: ocispec.DescriptorEmptyJSON, Layers: []ocispec.Descriptor{d},
			}
			b, _ := json.Marshal(m)
			if err := r.PushManifest(t.Context(), describe(m.MediaType, b), b, "hollow"); err == nil && name != "oci" {
				t.Error("a manifest whose layer is missing was accepted")
			}
			if err := r.PushManifest(t.Context(), moved, nil, "not a tag"); err == nil {
				t.Error("accepted a tag with spaces")
			}
		})
	}
}

// testReading reads what fill pushed under the tag v1.
func testReading(t *testing.T, r repository.Repository, root ocispec.Descriptor) {
	t.Helper()
	ctx := t.Context()
	for _, reference := range []string{"v1", root.Digest.String()} {
		if d, err := r.Resolve(ctx, reference); err != nil || d.Digest != root.Digest || d.Size != root.Size || d.MediaType != root.MediaType {
			t.Errorf("%s resolves to %v, %v; want %v", reference, d, err, root)
		}
	}
	for _, reference := range []string{"v2", digest.FromString("no").String()} {
		if _, err := r.Resolve(ctx, reference); !errors.Is(err, repository.ErrNotFound) {
			t.Errorf("resolving %s: %v", reference, err)
		}
	}
	data, err := r.Manifest(ctx, root)
	if err != nil {
		t.Fatal(err)
	}
	var corrupt *repository.CorruptError
	longer := root
	longer.Size++
	if _, err := r.Manifest(ctx, longer); !errors.As(err, &corrupt) {
		t.Errorf("a manifest of another size: %v", err)
	}
	tags, err := r.Tags(ctx)
	tags = slices.DeleteFunc(tags, func(tag string) bool { return strings.HasPrefix(tag, "sha256-") && !strings.HasSuffix(tag, ".sig") })
	if want := []string{strings.Replace(root.Digest.String(), ":", "-", 1) + ".sig", "v1"}; err != nil || !slices.Equal(tags, want) {
		t.Errorf("tags %v, %v; want %v", tags, err, want)
	}
	for artifactType, want := range map[string]int{"": 2, signature: 1, version: 0} {
		got, err := r.Referrers(ctx, root.Digest, artifactType)
		if err != nil || len(got) != want {
			t.Errorf("referrers of type %q: %v, %v; want %d", artifactType, got, err, want)
		}
		for _, d := range got {
			if d.Annotations["of"] != d.ArtifactType || d.MediaType != ocispec.MediaTypeImageManifest {
				t.Errorf("a referrer of type %q is said to be %v", artifactType, d)
			}
		}
	}
	if got, err := r.Referrers(ctx, digest.FromString("no"), ""); err != nil || len(got) != 0 {
		t.Errorf("referrers of nothing: %v, %v", got, err)
	}
	var index ocispec.Index
	var m ocispec.Manifest
	if err := json.Unmarshal(data, &index); err != nil {
		t.Fatal(err)
	}
	if data, err = r.Manifest(ctx, index.Manifests[0]); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(data, &m); err != nil {
		t.Fatal(err)
	}
	layer := m.Layers[0]
	whole := read(t, r, layer, 0)
	if digest.FromBytes(whole) != layer.Digest {
		t.Errorf("the layer is %s", digest.FromBytes(whole))
	}
	for _, offset := range []int64{1, layer.Size / 2, layer.Size - 1, layer.Size} {
		if got := read(t, r, layer, offset); !bytes.Equal(got, whole[offset:]) {
			t.Errorf("%d bytes from %d on are others", len(got), offset)
		}
	}
	for _, offset := range []int64{-1, layer.Size + 1} {
		if _, err := r.Blob(ctx, layer, offset); err == nil {
			t.Errorf("read at %d of %d", offset, layer.Size)
		}
	}
}

func TestHandler(t *testing.T) {
	dir := t.TempDir()
	root := fill(t, open(t, "oci:"+dir), "v1", 100_000)
	server := httptest.NewServer(repository.Handler(dir))
	defer server.Close()
	r := open(t, strings.TrimPrefix(server.URL, "http://")+"/a/b")
	testReading(t, r, root)
	var unavailable *repository.UnavailableError
	if err := r.PushBlob(t.Context(), describe("", []byte("x")), strings.NewReader("x")); !errors.As(err, &unavailable) || !strings.Contains(err.Error(), "UNSUPPORTED") {
		t.Errorf("pushing: %v", err)
	}

	get := func(method, path string, header ...string) (*http.Response, string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, server.URL+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		for i := 0; i < len(header); i += 2 {
			req.Header.Set(header[i], header[i+1])
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp, string(b)
	}
	none := digest.FromString("none").String()
	for _, c := range []struct {
		method, path, code string
		status             int
	}{
		{"GET", "/v2/", "", 200},
		{"HEAD", "/v2/a/manifests/v1", "", 200},
		{"HEAD", "/v2/a/manifests/v2", "", 404},
		{"GET", "/v2/a/manifests/v2", "MANIFEST_UNKNOWN", 404},
		{"GET", "/v2/a/manifests/" + none, "MANIFEST_UNKNOWN", 404},
		{"GET", "/v2/a/manifests/-", "MANIFEST_INVALID", 400},
		{"GET", "/v2/a/blobs/" + none, "BLOB_UNKNOWN", 404},
		{"GET", "/v2/a/blobs/sha256:..", "DIGEST_INVALID", 400},
		{"GET", "/v2/a/blobs/sha256:..%2f..%2f..%2findex.json", "UNSUPPORTED", 404},
		{"GET", "/v2/a/referrers/" + none, "", 200},
		{"GET", "/v2/a/referrers/x", "DIGEST_INVALID", 400},
		{"GET", "/v2/a/tags/list?n=x", "UNSUPPORTED", 400},
		{"GET", "/v2/A/tags/list", "UNSUPPORTED", 404},
		{"GET", "/v2/a/tags/all", "UNSUPPORTED", 404},
		{"GET", "/", "UNSUPPORTED", 404},
		{"POST", "/v2/a/blobs/uploads/", "UNSUPPORTED", 405},
		{"PUT", "/v2/a/manifests/v1", "UNSUPPORTED", 405},
		{"DELETE", "/v2/a/manifests/v1", "UNSUPPORTED", 405},
	} {
		resp, body := get(c.method, c.path)
		var e struct {
			Errors []struct{ Code, Message string }
		}
		json.Unmarshal([]byte(body), &e)
		code := ""
		if len(e.Errors) == 1 && e.Errors[0].Message != "" {
			code = e.Errors[0].Code
		}
		if resp.StatusCode != c.status || code != c.code {
			t.Errorf("%s %s: %s %s; want %d %s", c.method, c.path, resp.Status, body, c.status, c.code)
		}
	}

	for i := range 5 {
		pushImage(t, open(t, "oci:"+dir), version, fmt.Sprintf("t%d", i), nil)
	}
	var paged []string
	for path, pages := "/v2/a/tags/list?n=2", 0; path != ""; pages++ {
		resp, body := get("GET", path)
		var list struct{ Tags []string }
		if err := json.Unmarshal([]byte(body), &list); err != nil || len(list.Tags) > 2 || pages > 4 {
			t.Fatalf("page %d of tags: %s", pages, body)
		}
		paged = append(paged, list.Tags...)
		path, _, _ = strings.Cut(strings.TrimPrefix(resp.Header.Get("Link"), "<"), ">")
	}
	if tags, err := r.Tags(t.Context()); err != nil || !slices.Equal(tags, paged) || len(tags) != 7 {
		t.Errorf("tags by pages %v, at once %v, %v", paged, tags, err)
	}

	resp, _ := get("GET", "/v2/a/referrers/"+root.Digest.String()+"?artifactType="+signature)
	if resp.Header.Get("OCI-Filters-Applied") != "artifactType" || resp.Header.Get("Content-Type") != ocispec.MediaTypeImageIndex {
		t.Errorf("filtered referrers come with %v", resp.Header)
	}
	blob := strings.Repeat("0123456789", 10)
	d := pushBlob(t, open(t, "oci:"+dir), []byte(blob))
	for header, want := range map[string]string{"bytes=90-": blob[90:], "bytes=3-4": blob[3:5], "bytes=-1": blob[99:]} {
		if resp, body := get("GET", "/v2/a/blobs/"+d.Digest.String(), "Range", header); resp.StatusCode != 206 || body != want {
			t.Errorf("%s: %s %q", header, resp.Status, body)
		}
	}
	if resp, _ := get("GET", "/v2/a/blobs/"+d.Digest.String(), "Range", "bytes=100-"); resp.StatusCode != 416 {
		t.Errorf("a range after the end: %s", resp.Status)
	}

	// A manifest that was tampered with is not sent.
	path := filepath.Join(dir, "blobs/sha256", root.Digest.Encoded())
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Remove(path), os.WriteFile(path, bytes.ToUpper(b), 0o644)); err != nil {
		t.Fatal(err)
	}
	if resp, body := get("GET", "/v2/a/manifests/v1"); resp.StatusCode != 500 || strings.Contains(body, dir) {
		t.Errorf("a damaged manifest: %s %s", resp.Status, body)
	}
}

func TestCopy(t *testing.T) {
	for from, startFrom := range writable {
		for to, startTo := range writable {
			t.Run(from+" to "+to, func(t *testing.T) {
				t.Parallel()
				a, b := startFrom(t), startTo(t)
				root := fill(t, a, "v1", 100_000)
				for range 2 {
					d, err := repository.Copy(t.Context(), a, b, "v1")
					if err != nil || d.Digest != root.Digest {
						t.Fatalf("copied %v, %v", d, err)
					}
				}
				if x, y := all(t, a, root), all(t, b, root); x != y {
					t.Errorf("the copy is\n%s\nof\n%s", y, x)
				}
				testReading(t, b, root)
			})
		}
	}
}

// counter notes which blobs are read and pushed.
type counter struct {
	repository.Repository
	mu           sync.Mutex
	read, pushed []digest.Digest
	fail         func() error // what reading fails with, if not nil
}

func (c *counter) Blob(ctx context.Context, d ocispec.Descriptor, offset int64) (io.ReadCloser, error) {
	c.mu.Lock()
	fail := c.fail
	if c.read = append(c.read, d.Digest); len(c.read) <= 4 {
		fail = nil
	}
	c.mu.Unlock()
	if fail != nil {
		return nil, fail()
	}
	return c.Repository.Blob(ctx, d, offset)
}

func (c *counter) PushBlob(ctx context.Context, d ocispec.Descriptor, r io.ReadSeeker) error {
	err := c.Repository.PushBlob(ctx, d, r)
	if err == nil {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.pushed = append(c.pushed, d.Digest)
	}
	return err
}

func TestCopyResumes(t *testing.T) {
	for name, start := range writable {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			from, to := &counter{Repository: open(t, "oci:"+t.TempDir())}, &counter{Repository: start(t)}
			root := fill(t, from.Repository, "v1", 10_000)
			broken := errors.New("broken off")
			patience := time.Minute
			if name == "oci" { // which takes one blob at a time, so that they may wait for the one that fails
				patience = 100 * time.Millisecond
			}
			from.fail = func() error { // the fifth blob fails when the four before it are there
				for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
					to.mu.Lock()
					n := len(to.pushed)
					to.mu.Unlock()
					if n == 4 {
						break
					}
				}
				return broken
			}
			if _, err := repository.Copy(t.Context(), from, to, "v1"); !errors.Is(err, broken) {
				t.Fatalf("a copy that breaks off: %v", err)
			}
			if _, err := to.Resolve(t.Context(), "v1"); !errors.Is(err, repository.ErrNotFound) {
				t.Errorf("half a copy has its tag: %v", err)
			}
			done := slices.Clone(to.pushed)
			from.fail, from.read = nil, nil
			if _, err := repository.Copy(t.Context(), from, to, "v1"); err != nil {
				t.Fatal(err)
			}
			for _, d := range from.read {
				if slices.Contains(done, d) {
					t.Errorf("%s was read again", d)
				}
			}
			if len(done) != 4 && name != "oci" || len(from.read) == 0 {
				t.Errorf("%d blobs at first, %d later", len(done), len(from.read))
			}
			if all(t, from.Repository, root) != all(t, to, root) {
				t.Error("the copy is another")
			}
		})
	}
}

func TestCopyChecks(t *testing.T) {
	for name, start := range writable {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			from, to := open(t, "oci:"+dir), start(t)
			layer := random(5000)
			pushImage(t, from, version, "v1", nil, layer)
			path := filepath.Join(dir, "blobs/sha256", digest.FromBytes(layer).Encoded())
			layer[4000] ^= 1
			if err := errors.Join(os.Remove(path), os.WriteFile(path, layer, 0o644)); err != nil {
				t.Fatal(err)
			}
			var corrupt *repository.CorruptError
			if _, err := repository.Copy(t.Context(), from, to, "v1"); !errors.As(err, &corrupt) || corrupt.Repository != from.Name() {
				t.Errorf("copying a tampered layer: %v", err)
			}
			if _, err := to.Resolve(t.Context(), "v1"); !errors.Is(err, repository.ErrNotFound) {
				t.Errorf("the copy is there: %v", err)
			}
		})
	}
}

func TestLayoutRepairs(t *testing.T) {
	dir := t.TempDir()
	r := open(t, "oci:"+dir)
	layer := random(5000)
	d := pushBlob(t, r, layer)
	path := filepath.Join(dir, "blobs/sha256", d.Digest.Encoded())
	if err := errors.Join(os.Remove(path), os.WriteFile(path, layer[1:], 0o644)); err != nil {
		t.Fatal(err)
	}
	pushBlob(t, r, layer)
	if !bytes.Equal(read(t, r, d, 0), layer) {
		t.Error("pushing again does not repair")
	}
}

// TestLayoutDamage finds a damaged referrer, and the others beside it.
func TestLayoutDamage(t *testing.T) {
	dir := t.TempDir()
	r := open(t, "oci:"+dir)
	root := pushImage(t, r, version, "v1", nil)
	bad := pushImage(t, r, signature, "", &root, random(10))
	good := pushImage(t, r, signature, "", &root, random(10))
	path := filepath.Join(dir, "blobs/sha256", bad.Digest.Encoded())
	if err := errors.Join(os.Remove(path), os.WriteFile(path, []byte("{}"), 0o644)); err != nil {
		t.Fatal(err)
	}
	got, err := r.Referrers(t.Context(), root.Digest, signature)
	if err != nil || len(got) != 2 {
		t.Fatalf("referrers %v, %v; want %v and %v", got, err, bad, good)
	}
	for _, d := range got {
		_, err := r.Manifest(t.Context(), d)
		var corrupt *repository.CorruptError
		if errors.As(err, &corrupt) != (d.Digest == bad.Digest) {
			t.Errorf("%s: %v", d.Digest, err)
		}
	}
	var corrupt *repository.CorruptError
	if _, err := r.Resolve(t.Context(), bad.Digest.String()); err == nil {
		t.Error("resolved what is damaged")
	}
	if _, err := repository.Copy(t.Context(), r, open(t, "oci:"+t.TempDir()), "v1"); !errors.As(err, &corrupt) {
		t.Errorf("copying it: %v", err)
	}
}

// TestConcurrentReferrers has many push referrers of one subject at the same time.
func TestConcurrentReferrers(t *testing.T) {
	for name, start := range writable {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := start(t)
			root := pushImage(t, r, version, "v1", nil, random(10))
			var wg sync.WaitGroup
			for range 10 {
				wg.Go(func() { pushImage(t, r, signature, "", &root, random(10)) })
			}
			wg.Wait()
			if got, err := r.Referrers(t.Context(), root.Digest, signature); err != nil || len(got) != 10 {
				t.Errorf("%d referrers, %v; want 10", len(got), err)
			}
		})
	}
}

// TestReferrersBothWays reads those that were listed by tag before the registry had the API.
func TestReferrersBothWays(t *testing.T) {
	r := open(t, registrytest.StartOCI(t)+"/a")
	root := pushImage(t, r, version, "v1", nil)
	byAPI := pushImage(t, r, signature, "", &root, random(10))
	elsewhere := pushImage(t, r, signature, "", nil, random(10))
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{elsewhere}}
	pushJSON(t, r, index.MediaType, index, strings.Replace(root.Digest.String(), ":", "-", 1))
	got, err := r.Referrers(t.Context(), root.Digest, signature)
	want := []digest.Digest{byAPI.Digest, elsewhere.Digest}
	slices.SortFunc(want, func(x, y digest.Digest) int { return cmp.Compare(x, y) })
	if err != nil || len(got) != 2 || got[0].Digest != want[0] || got[1].Digest != want[1] {
		t.Errorf("referrers %v, %v; want %v", got, err, want)
	}
	// What is listed and no referrer is not copied, nor does it keep the rest from being copied.
	to := open(t, "oci:"+t.TempDir())
	if _, err := repository.Copy(t.Context(), r, to, "v1"); err != nil {
		t.Fatal(err)
	}
	if got, err := to.Referrers(t.Context(), root.Digest, ""); err != nil || len(got) != 1 || got[0].Digest != byAPI.Digest {
		t.Errorf("copied referrers %v, %v", got, err)
	}
}

func TestOpen(t *testing.T) {
	for _, ref := range []string{"", "oci:", "name", "HOST/Name", "localhost:5000/a:tag", "localhost:5000/a@" + digest.FromString("").String(), "localhost:5000"} {
		if r, err := repository.Open(ref); err == nil {
			t.Errorf("Open(%q) is %s", ref, r.Name())
		}
	}
	none := digest.FromString("").String()
	for ref, want := range map[string][2]string{
		"oci:/a/b":                 {"oci:/a/b", ""},
		"oci:/a/b:v1":              {"oci:/a/b", "v1"},
		"oci:b:v1":                 {"oci:b", "v1"},
		"oci:b:c/d":                {"oci:b:c/d", ""},
		"oci:/a@" + none:           {"oci:/a", none},
		"oci:/a@b":                 {"oci:/a@b", ""},
		"localhost:5000/a":         {"localhost:5000/a", ""},
		"localhost:5000/a:v1":      {"localhost:5000/a", "v1"},
		"http://host/a:v1":         {"http://host/a", "v1"},
		"localhost:5000":           {"localhost:5000", ""},
		"host.example/a/b@" + none: {"host.example/a/b", none},
	} {
		if r, d := repository.Split(ref); r != want[0] || d != want[1] {
			t.Errorf("Split(%q) is %q, %q; want %q", ref, r, d, want)
		}
	}
}

func TestDownload(t *testing.T) {
	dir := t.TempDir()
	r := open(t, "oci:"+dir)
	content := random(300_000)
	d := pushBlob(t, r, content)
	other := bytes.Clone(content)
	other[7] ^= 1
	for what, there := range map[string][]byte{
		"nothing": nil, "the beginning": content[:100_000], "all": content, "too much": append(bytes.Clone(content), 0),
		"another beginning": other[:100_000], "another": other,
	} {
		f, err := os.Create(filepath.Join(dir, "download"))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		f.Write(there)
		if err := repository.Download(t.Context(), r, d, f); err != nil {
			t.Errorf("with %s: %v", what, err)
		}
		if got, err := os.ReadFile(f.Name()); err != nil || !bytes.Equal(got, content) {
			t.Errorf("with %s: another file, %v", what, err)
		}
	}
	// Damaged at the source.
	path := filepath.Join(dir, "blobs/sha256", d.Digest.Encoded())
	if err := errors.Join(os.Remove(path), os.WriteFile(path, other, 0o644)); err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(filepath.Join(dir, "download"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var corrupt *repository.CorruptError
	if err := repository.Download(t.Context(), r, d, f); !errors.As(err, &corrupt) {
		t.Errorf("of a damaged blob: %v", err)
	}
	if info, err := f.Stat(); err != nil || info.Size() != 0 {
		t.Errorf("of a damaged blob, %d bytes are left", info.Size())
	}
}

func TestCancel(t *testing.T) {
	address := registrytest.Flaky(t, registrytest.StartOCI(t), registrytest.Always(registrytest.Any, registrytest.Fault{Kind: registrytest.Stall}))
	r := open(t, address+"/a", repository.Patience(time.Hour)) // it waits for nothing else
	cause := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	time.AfterFunc(100*time.Millisecond, func() { cancel(cause) })
	if _, err := r.Resolve(ctx, "v1"); !errors.Is(err, cause) {
		t.Errorf("cancelled: %v", err)
	}
}
