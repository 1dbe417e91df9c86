package artifact

import (
	"cmp"
	"context"
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
	"time"

	"github.com/enginery/enginery/internal/progress"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// WriteLayout writes the artifact to the OCI layout in dir, which is made if it is missing, and tags it with the version ID. What is
// there already is checked and kept; a damaged blob is a *CorruptError. Several processes may write to one layout.
func (a *Artifact) WriteLayout(ctx context.Context, dir string) error {
	if err := os.MkdirAll(blobsDir(dir), 0o755); err != nil {
		return err
	}
	missing, err := a.missing(ctx, dir)
	if err != nil {
		return err
	}
	if len(missing) > 0 {
		if err := writeBlobs(ctx, dir, missing); err != nil {
			return err
		}
	}
	return a.tag(ctx, dir)
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
	layers, err := img.Layers()
	if err != nil {
		return err
	}
	a := &Artifact{ID: name}
	for i, layer := range layers {
		d := ocispec.Descriptor{Digest: digest.Digest(m.Layers[i].Digest.String()), Size: m.Layers[i].Size}
		a.blobs = append(a.blobs, blob{Descriptor: d, open: layer.Compressed})
	}
	a.add(string(m.Config.MediaType), config)
	a.Index = a.add(string(m.MediaType), manifest)
	return a.WriteLayout(ctx, dir)
}

func blobsDir(dir string) string {
	return filepath.Join(dir, ocispec.ImageBlobsDir, digest.SHA256.String())
}

// missing returns the blobs that a layout has not, and checks those it has.
func (a *Artifact) missing(ctx context.Context, dir string) ([]blob, error) {
	unique := slices.Clone(a.blobs)
	slices.SortFunc(unique, func(x, y blob) int { return strings.Compare(string(x.Digest), string(y.Digest)) })
	unique = slices.CompactFunc(unique, func(x, y blob) bool { return x.Digest == y.Digest })
	is := make([]bool, len(unique))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(runtime.GOMAXPROCS(0))
	for i, b := range unique {
		g.Go(func() error {
			if err := ctx.Err(); err != nil {
				return err
			}
			err := verify(dir, b.Descriptor)
			if errors.Is(err, fs.ErrNotExist) {
				is[i] = true
				return nil
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	var missing []blob
	for i, b := range unique {
		if is[i] {
			missing = append(missing, b)
		}
	}
	return missing, nil
}

// writeBlobs writes blobs under their digests, each whole or not at all.
func writeBlobs(ctx context.Context, dir string, blobs []blob) error {
	unlock, err := lock(ctx, dir, unix.LOCK_SH)
	if err != nil {
		return err
	}
	defer unlock()
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(runtime.GOMAXPROCS(0))
	for _, b := range blobs {
		g.Go(func() error {
			if err := gctx.Err(); err != nil {
				return err
			}
			return writeBlob(filepath.Join(blobsDir(dir), b.Digest.Encoded()), b)
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return syncDir(blobsDir(dir))
}

func writeBlob(path string, b blob) error {
	return writeFile(path, 0o444, func(f *os.File) error {
		r, err := b.read()
		if err != nil {
			return err
		}
		defer r.Close()
		v := newVerifier(r, b.Descriptor, "what is to be written to "+path)
		_, err = io.Copy(f, v)
		return err
	})
}

// unfinished begins the names of files that are being written. Who writes one holds the layout's lock, shared or exclusive.
const unfinished = ".unfinished-"

// writeFile writes a file aside, syncs it, and gives it its name when it is whole.
func writeFile(path string, mode fs.FileMode, write func(*os.File) error) error {
	f, err := os.CreateTemp(filepath.Dir(path), unfinished)
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

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// sweep removes what writers that were killed have left. The caller has the layout for itself.
func sweep(dir string) error {
	for _, d := range []string{dir, blobsDir(dir)} {
		left, err := filepath.Glob(filepath.Join(escapeGlob(d), unfinished+"*"))
		if err != nil {
			return err
		}
		for _, f := range left {
			if err := os.Remove(f); err != nil {
				return err
			}
		}
	}
	return nil
}

func escapeGlob(s string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(s)
}

// lock takes the lock of a layout, and returns the function that gives it back. It ends with its holder, however that ends.
func lock(ctx context.Context, dir string, how int) (unlock func(), err error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	for waited := false; ; waited = true {
		err := unix.Flock(int(d.Fd()), how|unix.LOCK_NB)
		if err == nil {
			return func() { d.Close() }, nil
		}
		if err != unix.EWOULDBLOCK && err != unix.EINTR {
			d.Close()
			return nil, fmt.Errorf("locking the layout %s: %w", dir, err)
		}
		if !waited {
			progress.Logf(ctx, "waiting for another process that writes to %s", dir)
		}
		select {
		case <-ctx.Done():
			d.Close()
			return nil, ctx.Err()
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// annotationSubject says in a layout's index.json which index a referrer is about, so that one need not read it to know.
const annotationSubject = "vnd.enginery.subject"

// tag makes the layout's index.json name the artifact and its referrers, in place of what had the version's name before.
func (a *Artifact) tag(ctx context.Context, dir string) error {
	unlock, err := lock(ctx, dir, unix.LOCK_EX)
	if err != nil {
		return err
	}
	defer unlock()
	if err := sweep(dir); err != nil {
		return err
	}
	index, err := readIndex(dir)
	if errors.Is(err, fs.ErrNotExist) {
		index = &ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex}
	} else if err != nil {
		return err
	}
	a.enter(dir, index)
	content, err := json.MarshalIndent(index, "", "  ")
	if err != nil {
		return err
	}
	layout, err := json.Marshal(ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion})
	if err != nil {
		return err
	}
	return errors.Join(
		replace(filepath.Join(dir, ocispec.ImageLayoutFile), layout),
		replace(filepath.Join(dir, ocispec.ImageIndexFile), append(content, '\n')),
	)
}

// replace writes a file, unless it has that content.
func replace(path string, content []byte) error {
	if now, err := os.ReadFile(path); err == nil && string(now) == string(content) {
		return nil
	}
	if err := writeFile(path, 0o644, func(f *os.File) error {
		_, err := f.Write(content)
		return err
	}); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

// enter puts the artifact into a layout's index. The order of its entries tells nothing of who wrote when.
func (a *Artifact) enter(dir string, index *ocispec.Index) {
	replaced := make(map[digest.Digest]bool)
	index.Manifests = slices.DeleteFunc(index.Manifests, func(d ocispec.Descriptor) bool {
		if d.Annotations[ocispec.AnnotationRefName] != a.ID {
			return false
		}
		if d.Digest != a.Index.Digest {
			replaced[d.Digest] = true
		}
		return true
	})
	if len(replaced) > 0 {
		index.Manifests = slices.DeleteFunc(index.Manifests, func(d ocispec.Descriptor) bool {
			subject, err := subjectOf(dir, d)
			return err == nil && replaced[subject]
		})
	}
	named := a.Index
	named.Annotations = map[string]string{ocispec.AnnotationRefName: a.ID}
	entries := []ocispec.Descriptor{named}
	for _, r := range a.Referrers {
		d := r.Manifest
		d.Annotations = map[string]string{annotationPredicate: r.PredicateType, annotationSubject: a.Index.Digest.String()}
		entries = append(entries, d)
	}
	for _, e := range entries {
		index.Manifests = slices.DeleteFunc(index.Manifests, func(d ocispec.Descriptor) bool {
			return d.Digest == e.Digest && d.Annotations[ocispec.AnnotationRefName] == e.Annotations[ocispec.AnnotationRefName]
		})
		index.Manifests = append(index.Manifests, e)
	}
	slices.SortStableFunc(index.Manifests, func(x, y ocispec.Descriptor) int {
		return cmp.Or(
			strings.Compare(place(x), place(y)),
			strings.Compare(x.Digest.String(), y.Digest.String()),
		)
	})
}

// place sorts a layout's index: what has a name by that, then what has none.
func place(d ocispec.Descriptor) string {
	if name := d.Annotations[ocispec.AnnotationRefName]; name != "" {
		return "0" + name
	}
	return "1"
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
