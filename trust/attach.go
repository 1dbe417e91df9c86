package trust

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/enginery/enginery/repository"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// BundleType is the media type of a sigstore bundle, and the artifact type of its manifest.
const BundleType = "application/vnd.dev.sigstore.bundle.v0.3+json"

// Bounds of what Collect reads, since anyone who may write to a repository may attach things.
const (
	maxBundle = 4 << 20 // bytes
	maxCount  = 1000
)

// Attach writes a sigstore bundle to a repository as a referrer of a subject, as cosign does (pkg/oci/remote, WriteAttestationNewBundleFormat).
func Attach(ctx context.Context, repo repository.Repository, subject ocispec.Descriptor, bundle []byte) (ocispec.Descriptor, error) {
	d, err := attach(ctx, repo, subject, bundle)
	if err != nil {
		return d, fmt.Errorf("attaching a signature to %s in %s: %w", subject.Digest, repo.Name(), err)
	}
	return d, nil
}

func attach(ctx context.Context, repo repository.Repository, subject ocispec.Descriptor, bundle []byte) (ocispec.Descriptor, error) {
	_, predicate, err := open(bundle)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	layer := ocispec.Descriptor{MediaType: BundleType, Digest: digest.FromBytes(bundle), Size: int64(len(bundle))}
	m := ocispec.Manifest{
		Versioned:    specs.Versioned{SchemaVersion: 2},
		MediaType:    ocispec.MediaTypeImageManifest,
		ArtifactType: BundleType,
		Config:       ocispec.DescriptorEmptyJSON,
		Layers:       []ocispec.Descriptor{layer},
		Subject:      &ocispec.Descriptor{MediaType: subject.MediaType, Digest: subject.Digest, Size: subject.Size},
		Annotations: map[string]string{
			ocispec.AnnotationCreated:           time.Now().UTC().Format(time.RFC3339),
			"dev.sigstore.bundle.content":       "dsse-envelope",
			"dev.sigstore.bundle.predicateType": predicate,
		},
	}
	m.Config.Data = nil
	content, err := json.Marshal(m)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	d := ocispec.Descriptor{MediaType: m.MediaType, ArtifactType: BundleType, Digest: digest.FromBytes(content), Size: int64(len(content))}
	return d, errors.Join(
		repo.PushBlob(ctx, m.Config, bytes.NewReader(ocispec.DescriptorEmptyJSON.Data)),
		repo.PushBlob(ctx, layer, bytes.NewReader(bundle)),
		repo.PushManifest(ctx, d, content, ""),
	)
}

// Collect returns the sigstore bundles that refer to a subject in a repository. Referrers that cannot be read, or are none, are left out: they
// are no evidence, and must not keep others from counting. The error is for a repository that does not answer.
func Collect(ctx context.Context, repo repository.Repository, subject digest.Digest) ([]Evidence, error) {
	referrers, err := repo.Referrers(ctx, subject, "")
	if err != nil {
		return nil, fmt.Errorf("looking for signatures of %s: %w", subject, err)
	}
	if len(referrers) > maxCount {
		referrers = referrers[:maxCount]
	}
	var evidence []Evidence
	for _, d := range referrers {
		bundle, err := readBundle(ctx, repo, subject, d)
		var unavailable *repository.UnavailableError
		if ctx.Err() != nil || errors.As(err, &unavailable) {
			return nil, fmt.Errorf("reading the signatures of %s: %w", subject, err)
		}
		if err == nil && bundle != nil {
			evidence = append(evidence, Evidence{d.Digest, bundle})
		}
	}
	slices.SortFunc(evidence, func(a, b Evidence) int { return bytes.Compare([]byte(a.Digest), []byte(b.Digest)) })
	return evidence, nil
}

// readBundle returns the bundle of a referrer, or nil if it has none.
func readBundle(ctx context.Context, repo repository.Repository, subject digest.Digest, d ocispec.Descriptor) ([]byte, error) {
	content, err := repo.Manifest(ctx, d)
	if err != nil {
		return nil, err
	}
	var m ocispec.Manifest
	if err := json.Unmarshal(content, &m); err != nil {
		return nil, err
	}
	if m.Subject == nil || m.Subject.Digest != subject || len(m.Layers) != 1 || m.Layers[0].MediaType != BundleType || m.Layers[0].Size > maxBundle {
		return nil, nil
	}
	r, err := repo.Blob(ctx, m.Layers[0], 0)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	bundle, err := io.ReadAll(io.LimitReader(r, m.Layers[0].Size+1))
	if err != nil {
		return nil, err
	}
	if digest.FromBytes(bundle) != m.Layers[0].Digest {
		return nil, fmt.Errorf("bundle %s is damaged", m.Layers[0].Digest)
	}
	return bundle, nil
}
