package trust

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/enginery/enginery/repository"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
)

// BundleType is the media type of a sigstore bundle, and the artifact type of its manifest.
const BundleType = "application/vnd.dev.sigstore.bundle.v0.3+json"

// Bounds of what Collect reads, since anyone who may write to a repository may attach things.
const (
	maxBundle = 4 << 20  // bytes
	maxTotal  = 64 << 20 // bytes
	maxCount  = 1000
)

// parallel bounds how many bundles are read at a time.
const parallel = 8

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

// Collect returns the sigstore bundles that refer to a subject in a repository, sorted by digest. Referrers that cannot be read count for
// nothing, and must not keep others from counting: they have a problem instead of a bundle. The error is that of a repository that does not
// answer; what it did answer is returned with it.
func Collect(ctx context.Context, repo repository.Repository, subject digest.Digest) ([]Evidence, error) {
	referrers, err := repo.Referrers(ctx, subject, "")
	if err != nil {
		return nil, fmt.Errorf("looking for signatures of %s: %w", subject, err)
	}
	var evidence []Evidence
	if n := len(referrers); n > maxCount {
		evidence = append(evidence, Evidence{Digest: subject, Problem: fmt.Sprintf("%d manifests refer to it, of which %d were read", n, maxCount)})
		referrers = referrers[:maxCount]
	}
	var (
		mu    sync.Mutex
		total int64
		gone  error
		g     errgroup.Group
	)
	g.SetLimit(parallel)
	for _, d := range referrers {
		g.Go(func() error {
			bundle, err := readBundle(ctx, repo, subject, d, func(size int64) bool {
				mu.Lock()
				defer mu.Unlock()
				fits := size <= maxTotal-total
				if fits {
					total += size
				}
				return fits
			})
			mu.Lock()
			defer mu.Unlock()
			var unavailable *repository.UnavailableError
			switch {
			case ctx.Err() != nil || errors.As(err, &unavailable):
				gone = err
			case err != nil:
				evidence = append(evidence, Evidence{Digest: d.Digest, Problem: err.Error()})
			case bundle != nil:
				evidence = append(evidence, Evidence{Digest: d.Digest, Bundle: bundle})
			}
			return nil
		})
	}
	g.Wait()
	slices.SortFunc(evidence, func(a, b Evidence) int { return cmp.Compare(a.Digest, b.Digest) })
	if gone != nil {
		return evidence, fmt.Errorf("reading the signatures of %s: %w", subject, gone)
	}
	if !slices.ContainsFunc(evidence, func(e Evidence) bool { return e.Predicate() == SignPredicate }) {
		if old, err := repo.Resolve(ctx, "sha256-"+subject.Encoded()+".sig"); err == nil {
			evidence = append(evidence, Evidence{Digest: old.Digest, Problem: "it is a signature in the form that cosign 2 makes by default: expected a sigstore bundle, as of cosign sign --new-bundle-format"})
		}
	}
	return evidence, nil
}

// readBundle returns the bundle of a referrer, or nil if it has none. It reads only what there is room for.
func readBundle(ctx context.Context, repo repository.Repository, subject digest.Digest, d ocispec.Descriptor, room func(int64) bool) ([]byte, error) {
	content, err := repo.Manifest(ctx, d)
	if err != nil {
		return nil, err
	}
	var m ocispec.Manifest
	if err := json.Unmarshal(content, &m); err != nil {
		return nil, err
	}
	if m.Subject == nil || m.Subject.Digest != subject || len(m.Layers) != 1 || m.Layers[0].MediaType != BundleType {
		return nil, nil
	}
	if size := m.Layers[0].Size; size > maxBundle || !room(size) {
		return nil, fmt.Errorf("it was not read: a bundle of %d bytes, where %d are allowed, and %d for all", size, maxBundle, maxTotal)
	}
	for try := 1; ; try++ {
		bundle, err := readBlob(ctx, repo, m.Layers[0])
		if err != nil {
			return nil, err
		}
		found := digest.FromBytes(bundle)
		if found == m.Layers[0].Digest {
			return bundle, nil
		}
		if try == 3 { // it was not the way
			return nil, fmt.Errorf("its bundle is damaged: expected %s, found %s", m.Layers[0].Digest, found)
		}
	}
}

func readBlob(ctx context.Context, repo repository.Repository, d ocispec.Descriptor) ([]byte, error) {
	r, err := repo.Blob(ctx, d, 0)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(io.LimitReader(r, d.Size+1))
}
