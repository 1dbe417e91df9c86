package repository

import (
	"context"
	"errors"
	"io"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// layout is an OCI layout on disk.
type layout struct{ dir string }

func (l *layout) Name() string { return layoutPrefix + l.dir }

func (l *layout) Resolve(ctx context.Context, reference string) (ocispec.Descriptor, error) {
	return ocispec.Descriptor{}, errors.ErrUnsupported
}

func (l *layout) Manifest(ctx context.Context, d ocispec.Descriptor) ([]byte, error) {
	return nil, errors.ErrUnsupported
}

func (l *layout) Blob(ctx context.Context, d ocispec.Descriptor, offset int64) (io.ReadCloser, error) {
	return nil, errors.ErrUnsupported
}

func (l *layout) Referrers(ctx context.Context, d digest.Digest, artifactType string) ([]ocispec.Descriptor, error) {
	return nil, errors.ErrUnsupported
}

func (l *layout) Tags(ctx context.Context) ([]string, error) { return nil, errors.ErrUnsupported }

func (l *layout) PushBlob(ctx context.Context, d ocispec.Descriptor, r io.ReadSeeker) error {
	return errors.ErrUnsupported
}

func (l *layout) PushManifest(ctx context.Context, d ocispec.Descriptor, data []byte, tag string) error {
	return errors.ErrUnsupported
}
