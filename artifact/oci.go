package artifact

import (
	"bytes"
	"fmt"
	"io"
	"slices"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"
)

// ImageIndex returns the version's index as go-containerregistry has it, for its remote.WriteIndex.
func (a *Artifact) ImageIndex() v1.ImageIndex { return imageIndex{a} }

// Images returns the manifests of the version's referrers as go-containerregistry has them, for its remote.Write, to be pushed by
// digest after the index. In a registry that has no referrers API, remote.Write lists them under the tag that stands in for it.
func (a *Artifact) Images() ([]v1.Image, error) {
	var images []v1.Image
	for _, r := range a.Referrers {
		img, err := a.image(r.Manifest.Digest)
		if err != nil {
			return nil, err
		}
		images = append(images, img)
	}
	return images, nil
}

type imageIndex struct{ a *Artifact }

func (i imageIndex) MediaType() (types.MediaType, error) { return types.OCIImageIndex, nil }
func (i imageIndex) Digest() (v1.Hash, error)            { return v1.NewHash(i.a.Index.Digest.String()) }
func (i imageIndex) Size() (int64, error)                { return i.a.Index.Size, nil }
func (i imageIndex) RawManifest() ([]byte, error)        { return i.a.document(i.a.Index.Digest) }
func (i imageIndex) Image(h v1.Hash) (v1.Image, error)   { return i.a.image(digest.Digest(h.String())) }

func (i imageIndex) ImageIndex(h v1.Hash) (v1.ImageIndex, error) {
	return nil, fmt.Errorf("%s has no index %s in its index", i.a.ID, h)
}

func (i imageIndex) IndexManifest() (*v1.IndexManifest, error) {
	b, err := i.RawManifest()
	if err != nil {
		return nil, err
	}
	return v1.ParseIndexManifest(bytes.NewReader(b))
}

// document returns a manifest, config or statement.
func (a *Artifact) document(d digest.Digest) ([]byte, error) {
	b, ok := a.blob(d)
	if !ok {
		return nil, fmt.Errorf("%s has no blob %s", a.ID, d)
	}
	r, err := b.read()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}

func (a *Artifact) image(manifest digest.Digest) (v1.Image, error) {
	raw, err := a.document(manifest)
	if err != nil {
		return nil, err
	}
	m, err := v1.ParseManifest(bytes.NewReader(raw))
	if err != nil {
		return nil, fmt.Errorf("blob %s is not a manifest: %w", manifest, err)
	}
	return partial.CompressedToImage(image{a, m, raw})
}

type image struct {
	a        *Artifact
	manifest *v1.Manifest
	raw      []byte
}

func (i image) MediaType() (types.MediaType, error) { return i.manifest.MediaType, nil }
func (i image) RawManifest() ([]byte, error)        { return i.raw, nil }
func (i image) RawConfigFile() ([]byte, error) {
	return i.a.document(digest.Digest(i.manifest.Config.Digest.String()))
}

func (i image) LayerByDigest(h v1.Hash) (partial.CompressedLayer, error) {
	for _, d := range slices.Concat(i.manifest.Layers, []v1.Descriptor{i.manifest.Config}) {
		if d.Digest == h {
			return layer{i.a, d}, nil
		}
	}
	return nil, fmt.Errorf("%s has no layer %s", i.a.ID, h)
}

type layer struct {
	a *Artifact
	v1.Descriptor
}

func (l layer) Digest() (v1.Hash, error)            { return l.Descriptor.Digest, nil }
func (l layer) Size() (int64, error)                { return l.Descriptor.Size, nil }
func (l layer) MediaType() (types.MediaType, error) { return l.Descriptor.MediaType, nil }
func (l layer) Compressed() (io.ReadCloser, error) {
	b, ok := l.a.blob(digest.Digest(l.Descriptor.Digest.String()))
	if !ok {
		return nil, fmt.Errorf("%s has no blob %s", l.a.ID, l.Descriptor.Digest)
	}
	return b.read()
}
