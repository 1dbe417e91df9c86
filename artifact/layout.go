package artifact

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"runtime"
	"slices"
	"strings"

	"github.com/enginery/enginery/internal/ocilayout"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
)

// WriteLayout writes the artifact to the OCI layout in dir, which is made if it is missing, and tags it with the version ID. What is
// there already is checked and kept; a damaged blob is a *CorruptError. Several processes may write to one layout.
func (a *Artifact) WriteLayout(ctx context.Context, dir string) error {
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
			err := ocilayout.Verify(dir, b.Descriptor)
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
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(runtime.GOMAXPROCS(0))
	for _, b := range blobs {
		g.Go(func() error {
			if err := gctx.Err(); err != nil {
				return err
			}
			r, err := b.read()
			if err != nil {
				return err
			}
			defer r.Close()
			return ocilayout.WriteBlob(gctx, dir, b.Descriptor, r)
		})
	}
	return g.Wait()
}

// tag makes the layout's index.json name the artifact and its referrers, in place of what had the version's name before.
func (a *Artifact) tag(ctx context.Context, dir string) error {
	return ocilayout.UpdateIndex(ctx, dir, func(index *ocispec.Index) { a.enter(dir, index) })
}

// enter puts the artifact into a layout's index.
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
		d.Annotations = map[string]string{annotationPredicate: r.PredicateType, ocilayout.AnnotationSubject: a.Index.Digest.String()}
		entries = append(entries, d)
	}
	for _, e := range entries {
		index.Manifests = slices.DeleteFunc(index.Manifests, func(d ocispec.Descriptor) bool {
			return d.Digest == e.Digest && d.Annotations[ocispec.AnnotationRefName] == e.Annotations[ocispec.AnnotationRefName]
		})
		index.Manifests = append(index.Manifests, e)
	}
}

// List returns the versions in the layout in dir, sorted.
func List(dir string) ([]string, error) {
	index, err := ocilayout.ReadIndex(dir)
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
