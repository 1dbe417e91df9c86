package artifact

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// CorruptError says that a blob of a layout is not what its name says.
type CorruptError struct {
	Path        string
	Want, Found string // digest and size
}

func (e *CorruptError) Error() string {
	return fmt.Sprintf("%s is damaged: expected %s, found %s; remove it and run again", e.Path, e.Want, e.Found)
}

// ErrNotFound says that a layout has no version of that name.
var ErrNotFound = errors.New("no such version")

// WriteLayout writes the artifact to the OCI layout in dir, which is made if it is missing, and tags it with the version ID. What is
// there already is checked and kept; a damaged blob is a *CorruptError. Several processes may write to one layout.
func (a *Artifact) WriteLayout(ctx context.Context, dir string) error {
	blobs := filepath.Join(dir, ocispec.ImageBlobsDir, "sha256")
	if err := os.MkdirAll(blobs, 0o755); err != nil {
		return err
	}
	seen := make(map[digest.Digest]bool)
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(runtime.GOMAXPROCS(0))
	for _, b := range a.blobs {
		if seen[b.Digest] {
			continue
		}
		seen[b.Digest] = true
		g.Go(func() error {
			if err := ctx.Err(); err != nil {
				return err
			}
			path := filepath.Join(blobs, b.Digest.Encoded())
			err := verify(path, b.Descriptor)
			if errors.Is(err, fs.ErrNotExist) {
				return a.writeBlob(path, b)
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return a.tag(dir)
}

func (a *Artifact) writeBlob(path string, b blob) error {
	return writeAtomically(path, 0o444, func(f *os.File) error {
		if b.data != nil {
			_, err := f.Write(b.data)
			return err
		}
		r, err := b.open()
		if err != nil {
			return err
		}
		defer r.Close()
		h := sha256.New()
		n, err := io.Copy(io.MultiWriter(f, h), r)
		if err == nil && (n != b.Size || hex.EncodeToString(h.Sum(nil)) != b.Digest.Encoded()) {
			err = fmt.Errorf("the content of %s has the digest sha256:%x and %d bytes", b.Digest, h.Sum(nil), n)
		}
		return err
	})
}

// tag makes the layout's index.json name the artifact and its referrers, in place of what had the version's name before.
func (a *Artifact) tag(dir string) error {
	lock, err := os.OpenFile(filepath.Join(dir, ".lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("locking the layout: %w", err)
	}
	index, err := readIndex(dir)
	if errors.Is(err, fs.ErrNotExist) {
		index = &ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex}
	} else if err != nil {
		return err
	}
	old, err := json.Marshal(index)
	if err != nil {
		return err
	}
	named := a.Index
	named.Annotations = map[string]string{ocispec.AnnotationRefName: a.ID}
	replaced := make(map[digest.Digest]bool)
	index.Manifests = slices.DeleteFunc(index.Manifests, func(d ocispec.Descriptor) bool {
		if d.Annotations[ocispec.AnnotationRefName] != a.ID {
			return false
		}
		replaced[d.Digest] = d.Digest != a.Index.Digest
		return true
	})
	index.Manifests = slices.DeleteFunc(index.Manifests, func(d ocispec.Descriptor) bool {
		subject, err := subjectOf(dir, d)
		return err == nil && replaced[subject]
	})
	index.Manifests = append(index.Manifests, named)
	for _, r := range a.Referrers {
		if !slices.ContainsFunc(index.Manifests, func(d ocispec.Descriptor) bool { return d.Digest == r.Manifest.Digest }) {
			index.Manifests = append(index.Manifests, r.Manifest)
		}
	}
	slices.SortFunc(index.Manifests, func(x, y ocispec.Descriptor) int {
		return cmp.Or(
			strings.Compare(order(x), order(y)),
			strings.Compare(x.Digest.String(), y.Digest.String()),
		)
	})
	content, err := json.MarshalIndent(index, "", "  ")
	if err != nil {
		return err
	}
	if now, err := json.Marshal(index); err == nil && string(now) == string(old) {
		return nil
	}
	layout, err := json.Marshal(ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion})
	if err != nil {
		return err
	}
	for _, f := range []struct {
		name    string
		content []byte
	}{{ocispec.ImageLayoutFile, layout}, {ocispec.ImageIndexFile, append(content, '\n')}} {
		err := writeAtomically(filepath.Join(dir, f.name), 0o644, func(out *os.File) error {
			_, err := out.Write(f.content)
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// order sorts a layout's index: versions by name, then what has no name.
func order(d ocispec.Descriptor) string {
	if name := d.Annotations[ocispec.AnnotationRefName]; name != "" {
		return "0" + name
	}
	return "1"
}

// subjectOf returns what a manifest of a layout refers to, if it is a referrer.
func subjectOf(dir string, d ocispec.Descriptor) (digest.Digest, error) {
	var m ocispec.Manifest
	if d.MediaType != ocispec.MediaTypeImageManifest || d.ArtifactType != StatementType {
		return "", nil
	}
	if err := readJSON(dir, d, &m); err != nil || m.Subject == nil {
		return "", err
	}
	return m.Subject.Digest, nil
}

func readIndex(dir string) (*ocispec.Index, error) {
	path := filepath.Join(dir, ocispec.ImageIndexFile)
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var index ocispec.Index
	if err := json.Unmarshal(b, &index); err != nil {
		return nil, fmt.Errorf("%s is not an OCI index: %w", path, err)
	}
	return &index, nil
}

// readJSON reads a blob of a layout, checked, into v.
func readJSON(dir string, d ocispec.Descriptor, v any) error {
	path, err := BlobPath(dir, d)
	if err != nil {
		return err
	}
	if err := verify(path, d); err != nil {
		return err
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("%s is not a %s: %w", path, d.MediaType, err)
	}
	return nil
}

// BlobPath returns where a layout keeps a blob. Whoever reads it must check it.
func BlobPath(dir string, d ocispec.Descriptor) (string, error) {
	if err := d.Digest.Validate(); err != nil {
		return "", fmt.Errorf("digest %q: %w", d.Digest, err)
	}
	return filepath.Join(dir, ocispec.ImageBlobsDir, d.Digest.Algorithm().String(), d.Digest.Encoded()), nil
}

// verify checks the blob at path against its descriptor.
func verify(path string, d ocispec.Descriptor) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	h := sha256.New()
	n, err := io.Copy(h, f)
	if err != nil {
		return err
	}
	found := "sha256:" + hex.EncodeToString(h.Sum(nil))
	if found != d.Digest.String() || n != d.Size {
		return &CorruptError{Path: path, Want: fmt.Sprintf("%s, %d bytes", d.Digest, d.Size), Found: fmt.Sprintf("%s, %d bytes", found, n)}
	}
	return nil
}

// writeAtomically writes a file aside, syncs it, and gives it its name when it is whole.
func writeAtomically(path string, mode fs.FileMode, write func(*os.File) error) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".writing-")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	if err := write(f); err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	if err := errors.Join(f.Chmod(mode), f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	return os.Rename(f.Name(), path)
}

// List returns the versions in the layout in dir, sorted.
func List(dir string) ([]string, error) {
	index, err := readIndex(dir)
	if err != nil {
		return nil, fmt.Errorf("listing the layout %s: %w", dir, err)
	}
	var ids []string
	for _, d := range index.Manifests {
		if name := d.Annotations[ocispec.AnnotationRefName]; name != "" && d.ArtifactType == VersionType {
			ids = append(ids, name)
		}
	}
	slices.Sort(ids)
	return ids, nil
}

// Open reads a version from the layout in dir and checks every blob of it. The error is ErrNotFound if the layout has no such version,
// and a *CorruptError if a blob is damaged.
func Open(dir, id string) (*Artifact, error) {
	a, err := open(dir, id)
	if err != nil {
		return nil, fmt.Errorf("opening %s in the layout %s: %w", id, dir, err)
	}
	return a, nil
}

func open(dir, id string) (*Artifact, error) {
	top, err := readIndex(dir)
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(top.Manifests, func(d ocispec.Descriptor) bool { return d.Annotations[ocispec.AnnotationRefName] == id })
	if i < 0 {
		return nil, ErrNotFound
	}
	a := &Artifact{ID: id, Index: top.Manifests[i]}
	var index ocispec.Index
	if err := readJSON(dir, a.Index, &index); err != nil {
		return nil, err
	}
	if index.ArtifactType != VersionType {
		return nil, fmt.Errorf("it is tagged %s, but is of type %q, expected %s", id, index.ArtifactType, VersionType)
	}
	if title := index.Annotations[ocispec.AnnotationTitle]; title != id {
		return nil, fmt.Errorf("it is tagged %s, but is %s: the tag was changed", id, title)
	}
	for _, d := range index.Manifests {
		if d.Platform == nil {
			return nil, fmt.Errorf("manifest %s is for no platform", d.Digest)
		}
		p := Platform{Name: d.Platform.OS + "/" + d.Platform.Architecture, Manifest: d, Engine: new(Engine)}
		var m ocispec.Manifest
		if err := readJSON(dir, d, &m); err != nil {
			return nil, err
		}
		p.Config, p.Files = m.Config, m.Layers
		if err := readJSON(dir, m.Config, p.Engine); err != nil {
			return nil, err
		}
		if err := verifyAll(dir, m.Layers); err != nil {
			return nil, err
		}
		a.Platforms = append(a.Platforms, p)
	}
	for _, d := range top.Manifests {
		subject, err := subjectOf(dir, d)
		if err != nil {
			return nil, err
		}
		if subject != a.Index.Digest {
			continue
		}
		var m ocispec.Manifest
		if err := readJSON(dir, d, &m); err != nil {
			return nil, err
		}
		if len(m.Layers) != 1 {
			return nil, fmt.Errorf("referrer %s has %d layers, expected one statement", d.Digest, len(m.Layers))
		}
		if err := verifyAll(dir, m.Layers); err != nil {
			return nil, err
		}
		a.Referrers = append(a.Referrers, Referrer{PredicateType: m.Annotations[annotationPredicate], Manifest: d, Statement: m.Layers[0]})
	}
	return a, nil
}

func verifyAll(dir string, blobs []ocispec.Descriptor) error {
	var g errgroup.Group
	for _, d := range blobs {
		g.Go(func() error {
			path, err := BlobPath(dir, d)
			if err != nil {
				return err
			}
			return verify(path, d)
		})
	}
	return g.Wait()
}

// File returns the descriptor of a file of a platform by its title.
func (p *Platform) File(title string) (ocispec.Descriptor, bool) {
	for _, d := range p.Files {
		if Title(d) == title {
			return d, true
		}
	}
	return ocispec.Descriptor{}, false
}

// AddImage writes an image to the OCI layout in dir under a name, in place of what had the name before.
func AddImage(ctx context.Context, dir, name string, img v1.Image) error {
	if err := addImage(ctx, dir, name, img); err != nil {
		return fmt.Errorf("writing the image %s to the layout %s: %w", name, dir, err)
	}
	return nil
}

func addImage(ctx context.Context, dir, name string, img v1.Image) error {
	manifest, err := img.RawManifest()
	if err != nil {
		return err
	}
	config, err := img.RawConfigFile()
	if err != nil {
		return err
	}
	m, err := img.Manifest()
	if err != nil {
		return err
	}
	a := &Artifact{ID: name}
	a.add(string(m.Config.MediaType), config)
	a.Index = a.add(string(m.MediaType), manifest)
	layers, err := img.Layers()
	if err != nil {
		return err
	}
	for i, layer := range layers {
		d := ocispec.Descriptor{Digest: digest.Digest(m.Layers[i].Digest.String()), Size: m.Layers[i].Size}
		a.blobs = append(a.blobs, blob{Descriptor: d, open: layer.Compressed})
	}
	return a.WriteLayout(ctx, dir)
}
