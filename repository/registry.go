package repository

import (
	"context"
	"errors"
	"io"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// registry is a repository of a registry.
type registry struct {
	name string
	repo name.Repository
	options
}

func newRegistry(s string, repo name.Repository, o options) *registry { return &registry{s, repo, o} }

func (r *registry) Name() string { return r.name }

func (r *registry) Resolve(ctx context.Context, reference string) (ocispec.Descriptor, error) {
	return ocispec.Descriptor{}, errors.ErrUnsupported
}

func (r *registry) Manifest(ctx context.Context, d ocispec.Descriptor) ([]byte, error) {
	return nil, errors.ErrUnsupported
}

func (r *registry) Blob(ctx context.Context, d ocispec.Descriptor, offset int64) (io.ReadCloser, error) {
	return nil, errors.ErrUnsupported
}

func (r *registry) Referrers(ctx context.Context, d digest.Digest, artifactType string) ([]ocispec.Descriptor, error) {
	return nil, errors.ErrUnsupported
}

func (r *registry) Tags(ctx context.Context) ([]string, error) { return nil, errors.ErrUnsupported }

func (r *registry) PushBlob(ctx context.Context, d ocispec.Descriptor, content io.ReadSeeker) error {
	return errors.ErrUnsupported
}

func (r *registry) PushManifest(ctx context.Context, d ocispec.Descriptor, data []byte, tag string) error {
	return errors.ErrUnsupported
}
