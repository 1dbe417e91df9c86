package artifact_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/enginery/enginery/artifact"
	"github.com/google/go-containerregistry/pkg/crane"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sys/unix"
)

func blobPath(t testing.TB, dir, digest string) string {
	t.Helper()
	return filepath.Join(dir, "blobs", "sha256", strings.TrimPrefix(digest, "sha256:"))
}

// edit replaces a file, which may be read-only.
func edit(t testing.TB, path string, change func([]byte) []byte) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, change(b), 0o644); err != nil {
		t.Fatal(err)
	}
}

// TestDamage damages every blob of a version, in every way, and expects both readers and writers to name it.
func TestDamage(t *testing.T) {
	const id = "agoric-upgrade-16"
	dir := t.TempDir()
	v := newVersion(t, id, "a", 100)
	a := v.write(t, dir)
	entries, err := os.ReadDir(filepath.Join(dir, "blobs", "sha256"))
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) != 19 {
		t.Errorf("the version has %d blobs, expected 19", len(entries))
	}
	flip := func(b []byte) []byte { b[len(b)/2] ^= 1; return b }
	truncate := func(b []byte) []byte { return b[:len(b)/2] }
	extend := func(b []byte) []byte { return append(b, 0) }
	for _, e := range entries {
		path := filepath.Join(dir, "blobs", "sha256", e.Name())
		good, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for kind, change := range map[string]func([]byte) []byte{"flipped": flip, "truncated": truncate, "extended": extend} {
			edit(t, path, change)
			found := "sha256:"
			if kind == "extended" {
				found = "more bytes than that"
			}
			for user, use := range map[string]func() error{
				"Open":        func() error { _, err := artifact.Open(dir, id); return err },
				"WriteLayout": func() error { return a.WriteLayout(t.Context(), dir) },
			} {
				err := use()
				var corrupt *artifact.CorruptError
				if !errors.As(err, &corrupt) || corrupt.Path != path || corrupt.Blob.Digest.Encoded() != e.Name() {
					t.Errorf("%s, %s: %s finds %v", e.Name(), kind, user, err)
				} else if msg := err.Error(); !strings.Contains(msg, fmt.Sprintf("%d bytes; found %s", len(good), found)) || !strings.Contains(msg, path) {
					t.Errorf("%s, %s: %s says %s", e.Name(), kind, user, msg)
				}
			}
			edit(t, path, func([]byte) []byte { return good })
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		_, err = artifact.Open(dir, id)
		var corrupt *artifact.CorruptError
		if !errors.As(err, &corrupt) || corrupt.Path != path || !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "is missing") {
			t.Errorf("%s, removed: Open finds %v", e.Name(), err)
		}
		if err := a.WriteLayout(t.Context(), dir); err != nil { // it heals what is missing
			t.Error(err)
		}
		open(t, dir, id)
	}
}

// TestWhatIsNoFile puts things in place of a blob that never end, or never begin.
func TestWhatIsNoFile(t *testing.T) {
	const id = "agoric-upgrade-16"
	dir := t.TempDir()
	a := newVersion(t, id, "a", 100).write(t, dir)
	for _, d := range []string{a.Platforms[0].Files[0].Digest.String(), a.Platforms[0].Config.Digest.String()} {
		path := blobPath(t, dir, d)
		good, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for kind, make := range map[string]func() error{
			"a device":       func() error { return os.Symlink("/dev/zero", path) },
			"a pipe":         func() error { return unix.Mkfifo(path, 0o644) },
			"a folder":       func() error { return os.Mkdir(path, 0o755) },
			"a link nowhere": func() error { return os.Symlink("nowhere", path) },
		} {
			if err := errors.Join(os.Remove(path), make()); err != nil {
				t.Fatal(err)
			}
			var corrupt *artifact.CorruptError
			if _, err := artifact.Open(dir, id); !errors.As(err, &corrupt) || corrupt.Path != path {
				t.Errorf("%s in place of a blob: %v", kind, err)
			}
		}
		if err := errors.Join(os.Remove(path), os.WriteFile(path, good, 0o444)); err != nil {
			t.Fatal(err)
		}
	}
	open(t, dir, id)
}

func TestTamperedIndex(t *testing.T) {
	const id, other = "agoric-upgrade-16", "agoric-upgrade-17"
	replace := func(old, new string) func([]byte) []byte {
		return func(b []byte) []byte {
			if !bytes.Contains(b, []byte(old)) {
				t.Fatalf("index.json has no %q", old)
			}
			return bytes.ReplaceAll(b, []byte(old), []byte(new))
		}
	}
	swap := func(b []byte) []byte {
		return []byte(strings.NewReplacer(`: "`+id+`"`, `: "`+other+`"`, `: "`+other+`"`, `: "`+id+`"`).Replace(string(b)))
	}
	dir := t.TempDir()
	a := newVersion(t, id, "a", 100).write(t, dir)
	newVersion(t, other, "b", 100).write(t, dir)
	index := filepath.Join(dir, "index.json")
	good, err := os.ReadFile(index)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name   string
		change func([]byte) []byte
		want   string
	}{
		{"swapped tags", swap, "is agoric-upgrade-17: the tag was changed"},
		{"a tag twice", replace(`: "`+other+`"`, `: "`+id+`"`), "has the tag twice"},
		{"no such tag", replace(`: "`+id+`"`, `: "x"`), "no such version"},
		{"another digest", replace(a.Index.Digest.String(), "sha256:"+strings.Repeat("0", 64)), "is missing"},
		{"a digest that is a path", replace(a.Index.Digest.String(), "sha256:../../../secret"), "invalid checksum digest"},
		{"another size", replace(fmt.Sprintf(`"size": %d`, a.Index.Size), `"size": 7`), "is damaged"},
		{"a platform in place of the index", replace(a.Index.Digest.String(), a.Platforms[0].Manifest.Digest.String()), "is damaged"},
		{"a referrer of something else", replace(a.Referrers[0].Manifest.Digest.String(), a.Platforms[0].Manifest.Digest.String()), "is damaged"},
		{"truncated", func(b []byte) []byte { return b[:len(b)/2] }, "index.json is not an OCI index"},
		{"empty", func([]byte) []byte { return nil }, "index.json is not an OCI index"},
		{"another schema", replace(`"schemaVersion": 2`, `"schemaVersion": 1`), "schema 1, expected 2"},
	} {
		edit(t, index, func([]byte) []byte { return c.change(slices.Clone(good)) })
		if _, err := artifact.Open(dir, id); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v; expected %q", c.name, err, c.want)
		} else if c.want == "no such version" != errors.Is(err, artifact.ErrNotFound) {
			t.Errorf("%s: is ErrNotFound: %v", c.name, err)
		}
		edit(t, index, func([]byte) []byte { return good })
	}
	open(t, dir, id)
	if _, err := artifact.Open(t.TempDir(), id); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a folder without index.json: %v", err)
	}
}

func TestDamageElsewhereDoesNotMatter(t *testing.T) {
	dir := t.TempDir()
	newVersion(t, "agoric-upgrade-16", "a", 100).write(t, dir)
	other := newVersion(t, "agoric-upgrade-17", "b", 100).write(t, dir)
	for _, d := range []string{other.Index.Digest.String(), other.Referrers[0].Manifest.Digest.String()} {
		edit(t, blobPath(t, dir, d), func(b []byte) []byte { return b[1:] })
	}
	open(t, dir, "agoric-upgrade-16")
}

func TestAnotherArtifactUnderTheSameID(t *testing.T) {
	const id = "agoric-upgrade-16"
	dir := t.TempDir()
	newVersion(t, id, "old", 100).write(t, dir)
	kept := newVersion(t, "agoric-upgrade-17", "kept", 100).write(t, dir)
	a := newVersion(t, id, "new", 100).write(t, dir)
	b := open(t, dir, id)
	if b.Index.Digest != a.Index.Digest || len(b.Referrers) != 2 {
		t.Errorf("opened %s with %d referrers, expected %s with 2", b.Index.Digest, len(b.Referrers), a.Index.Digest)
	}
	if k := open(t, dir, "agoric-upgrade-17"); k.Index.Digest != kept.Index.Digest || len(k.Referrers) != 2 {
		t.Errorf("the other version is %s with %d referrers", k.Index.Digest, len(k.Referrers))
	}
	// The layout is the same as if the old one had never been tagged.
	fresh := t.TempDir()
	newVersion(t, id, "new", 100).write(t, fresh)
	newVersion(t, "agoric-upgrade-17", "kept", 100).write(t, fresh)
	if x, y := content(t, dir)["/index.json"], content(t, fresh)["/index.json"]; x != y {
		t.Errorf("index.json:\n%s\nexpected:\n%s", x, y)
	}
}

func TestWritingAgainChangesNothing(t *testing.T) {
	dir := t.TempDir()
	v := newVersion(t, "agoric-upgrade-16", "a", 100)
	v.write(t, dir)
	times := func() map[string]int64 {
		all := make(map[string]int64)
		if err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			info, err := d.Info()
			if err == nil {
				all[path] = info.ModTime().UnixNano()
			}
			return err
		}); err != nil {
			t.Fatal(err)
		}
		return all
	}
	before := times()
	v.write(t, dir)
	open(t, dir, "agoric-upgrade-16").WriteLayout(t.Context(), dir) // as it was read, it is written
	for path, when := range times() {
		if before[path] != when {
			t.Errorf("%s was written again", path)
		}
	}
}

func TestCopyBetweenLayouts(t *testing.T) {
	from, to := t.TempDir(), t.TempDir()
	newVersion(t, "agoric-upgrade-16", "a", 100).write(t, from)
	if err := open(t, from, "agoric-upgrade-16").WriteLayout(t.Context(), to); err != nil {
		t.Fatal(err)
	}
	if x, y := content(t, from), content(t, to); fmt.Sprint(x) != fmt.Sprint(y) {
		t.Errorf("the copy differs: %d files, %d files\n%s\n%s", len(x), len(y), x["/index.json"], y["/index.json"])
	}
}

func TestAddImage(t *testing.T) {
	dir := t.TempDir()
	a := newVersion(t, "agoric-upgrade-16", "a", 100).write(t, dir)
	img, err := random.Image(1000, 2)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := artifact.AddImage(t.Context(), dir, "toolchain", img); err != nil {
			t.Fatal(err)
		}
	}
	if ids, err := artifact.List(dir); err != nil || !slices.Equal(ids, []string{"agoric-upgrade-16"}) {
		t.Errorf("versions %v, %v", ids, err)
	}
	if b := open(t, dir, "agoric-upgrade-16"); b.Index.Digest != a.Index.Digest {
		t.Errorf("the version is %s now", b.Index.Digest)
	}
	if _, err := artifact.Open(dir, "toolchain"); err == nil || !strings.Contains(err.Error(), "expected a application/vnd.oci.image.index.v1+json") {
		t.Errorf("opening an image as a version: %v", err)
	}
}

const writerEnv = "ENGINERY_TEST_WRITER"

// TestMain makes the test's program a writer, if its environment says so: writerEnv is "LAYOUT first last".
func TestMain(m *testing.M) {
	if job := os.Getenv(writerEnv); job != "" {
		os.Unsetenv(writerEnv)
		os.Setenv("ENGINERY_TEST_JOB", job)
		os.Args = append(os.Args[:1], "-test.run=^TestWriter$")
	}
	os.Exit(m.Run())
}

// TestWriter is the writer's work. In the ordinary run it has none.
func TestWriter(t *testing.T) {
	job := os.Getenv("ENGINERY_TEST_JOB")
	if job == "" {
		return
	}
	var dir string
	var first, last int
	if _, err := fmt.Sscanf(job, "%s %d %d", &dir, &first, &last); err != nil {
		t.Fatal(err)
	}
	for i := first; i < last; i++ {
		newVersion(t, fmt.Sprintf("version-%d", i), "same for all", 200_000).write(t, dir)
	}
}

func startWriter(t *testing.T, dir string, first, last int) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s %d %d", writerEnv, dir, first, last))
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		if t.Failed() {
			t.Logf("writer %d to %d: %s", first, last, out.String())
		}
	})
	return cmd
}

// TestConcurrentProcesses lets processes write different versions, of which most blobs are the same, and one be killed.
func TestConcurrentProcesses(t *testing.T) {
	dir := t.TempDir()
	const writers, each = 4, 5
	var all []*exec.Cmd
	for w := range writers {
		all = append(all, startWriter(t, dir, w*each, (w+1)*each))
	}
	killed := startWriter(t, dir, 1000, 1100)
	for _, cmd := range all {
		if err := cmd.Wait(); err != nil {
			t.Error(err)
		}
	}
	if err := killed.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	killed.Wait()
	stray := filepath.Join(dir, "blobs", "sha256", ".unfinished-1") // surely one is left
	if err := os.WriteFile(stray, []byte("half"), 0o644); err != nil {
		t.Fatal(err)
	}

	for i := range writers * each {
		open(t, dir, fmt.Sprintf("version-%d", i))
	}
	ids, err := artifact.List(dir)
	if err != nil || len(ids) < writers*each {
		t.Errorf("%d versions are listed, expected at least %d: %v", len(ids), writers*each, err)
	}
	newVersion(t, "last", "same for all", 200_000).write(t, dir)
	left, err := filepath.Glob(filepath.Join(dir, "blobs", "sha256", ".*"))
	if err != nil || len(left) > 0 {
		t.Errorf("unfinished files are left: %v %v", left, err)
	}
}

// TestOtherToolsReadTheLayout reads it with go-containerregistry, crane's library.
func TestOtherToolsReadTheLayout(t *testing.T) {
	const id = "agoric-upgrade-16"
	dir := t.TempDir()
	v := newVersion(t, id, "a", 100)
	a := v.write(t, dir)
	path, err := layout.FromPath(dir)
	if err != nil {
		t.Fatal(err)
	}
	top, err := path.ImageIndex()
	if err != nil {
		t.Fatal(err)
	}
	tops, err := top.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	if len(tops.Manifests) != 3 || tops.Manifests[0].Annotations["org.opencontainers.image.ref.name"] != id {
		t.Fatalf("the layout has %+v", tops.Manifests)
	}
	index, err := top.ImageIndex(tops.Manifests[0].Digest)
	if err != nil {
		t.Fatal(err)
	}
	checkIndex(t, v, a, index)
}

// checkIndex compares an index that another tool has read with the version.
func checkIndex(t *testing.T, v *version, a *artifact.Artifact, index v1.ImageIndex) {
	t.Helper()
	if d, err := index.Digest(); err != nil || d.String() != a.Index.Digest.String() {
		t.Errorf("the index is %s, expected %s: %v", d, a.Index.Digest, err)
	}
	m, err := index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	for i, p := range a.Platforms {
		if got := m.Manifests[i]; got.Platform.String() != p.Name || got.ArtifactType != artifact.EngineType {
			t.Errorf("manifest %d is for %s, of type %s", i, got.Platform, got.ArtifactType)
		}
		img, err := index.Image(m.Manifests[i].Digest)
		if err != nil {
			t.Fatal(err)
		}
		layers, err := img.Layers()
		if err != nil {
			t.Fatal(err)
		}
		for j, f := range p.Files {
			r, err := layers[j].Compressed()
			if err != nil {
				t.Fatal(err)
			}
			var b bytes.Buffer
			_, err = b.ReadFrom(r)
			if err := errors.Join(err, r.Close()); err != nil || !bytes.Equal(b.Bytes(), read(t, a, f)) {
				t.Errorf("%s %s is %q: %v", p.Name, artifact.Title(f), b.Bytes(), err)
			}
		}
	}
}

func TestRegistry(t *testing.T) {
	for _, referrersAPI := range []bool{true, false} {
		t.Run(fmt.Sprintf("referrersAPI=%v", referrersAPI), func(t *testing.T) {
			server := httptest.NewServer(registry.New(registry.WithReferrersSupport(referrersAPI), registry.Logger(log.New(io.Discard, "", 0))))
			defer server.Close()
			const id = "agoric-upgrade-16"
			dir := t.TempDir()
			v := newVersion(t, id, "a", 100)
			v.write(t, dir)
			a := open(t, dir, id)

			ref, err := name.ParseReference(strings.TrimPrefix(server.URL, "http://") + "/engines:" + id)
			if err != nil {
				t.Fatal(err)
			}
			if err := remote.WriteIndex(ref, a.ImageIndex()); err != nil {
				t.Fatal(err)
			}
			images, err := a.Images()
			if err != nil {
				t.Fatal(err)
			}
			for _, img := range images {
				d, err := img.Digest()
				if err != nil {
					t.Fatal(err)
				}
				if err := remote.Write(ref.Context().Digest(d.String()), img); err != nil {
					t.Fatal(err)
				}
			}

			if d, err := crane.Digest(ref.String()); err != nil || d != a.Index.Digest.String() {
				t.Errorf("crane digest says %s, expected %s: %v", d, a.Index.Digest, err)
			}
			index, err := remote.Index(ref)
			if err != nil {
				t.Fatal(err)
			}
			checkIndex(t, v, a, index)
			referrers, err := remote.Referrers(ref.Context().Digest(a.Index.Digest.String()))
			if err != nil {
				t.Fatal(err)
			}
			rm, err := referrers.IndexManifest()
			if err != nil {
				t.Fatal(err)
			}
			if len(rm.Manifests) != 2 {
				t.Fatalf("the registry has %d referrers, expected 2", len(rm.Manifests))
			}
			for _, d := range rm.Manifests {
				if referrersAPI {
					d.ArtifactType = artifact.StatementType // this registry shows the config's type
				}
				if d.ArtifactType != artifact.StatementType || d.MediaType != types.OCIManifestSchema1 {
					t.Errorf("a referrer is a %s of type %s", d.MediaType, d.ArtifactType)
				}
			}
		})
	}
}

// The benchmarks' version has the size of a real one, 15 MB.
func benchmark(b *testing.B) (*artifact.Artifact, string) {
	v := newVersion(b, "agoric-upgrade-16", "a", 2_500_000)
	dir := b.TempDir()
	return v.write(b, dir), dir
}

func BenchmarkWriteLayoutAgain(b *testing.B) {
	a, dir := benchmark(b)
	for b.Loop() {
		if err := a.WriteLayout(b.Context(), dir); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkOpen(b *testing.B) {
	_, dir := benchmark(b)
	for b.Loop() {
		if _, err := artifact.Open(dir, "agoric-upgrade-16"); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkPack(b *testing.B) {
	v := newVersion(b, "agoric-upgrade-16", "a", 100)
	for b.Loop() {
		v.pack(b)
	}
}
