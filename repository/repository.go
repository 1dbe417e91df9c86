// Package repository reads, writes, copies and serves OCI repositories: those of registries, and OCI layouts on disk.
//
// What a repository returns under a digest is checked where it is small (manifests), and must be checked by its reader where it is
// not (blobs): [Download] does that. A tag, or a list of referrers, is what the repository says.
package repository

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// A Repository holds manifests, their blobs and their tags. Its methods can be called concurrently.
//
// An error is ErrNotFound if the repository answers that it has no such thing, an *UnavailableError if it gave no usable answer in
// the time it had, a *CorruptError if its bytes are not what their digest says, and the context's own if that ended.
type Repository interface {
	// Name returns the name that Open was given.
	Name() string

	// Resolve returns what a tag or a digest names. The size and digest are those of bytes that were read.
	Resolve(ctx context.Context, reference string) (ocispec.Descriptor, error)

	// Manifest returns a manifest or index of at most MaxManifest bytes, checked against the descriptor's digest and size.
	Manifest(ctx context.Context, d ocispec.Descriptor) ([]byte, error)

	// Blob returns the bytes of a blob from an offset on, at most up to the descriptor's size. They are not checked. A reader from a
	// registry that loses its connection goes on where it was.
	Blob(ctx context.Context, d ocispec.Descriptor, offset int64) (io.ReadCloser, error)

	// Referrers returns the manifests that name d as their subject, of one artifact type unless that is "". They are as the
	// repository lists them: their artifact type and annotations, too, are only known when they have been read. None is no error.
	Referrers(ctx context.Context, d digest.Digest, artifactType string) ([]ocispec.Descriptor, error)

	// Tags returns the tags, sorted. A repository that does not exist yet is ErrNotFound in a registry.
	Tags(ctx context.Context) ([]string, error)

	// PushBlob writes a blob, unless it is there: then r is not read. Nothing else than a blob of that digest is ever stored, and a
	// *CorruptError says that r is another. r is read from its start, and again when a registry fails halfway.
	PushBlob(ctx context.Context, d ocispec.Descriptor, r io.ReadSeeker) error

	// PushManifest writes a manifest or index whose blobs and manifests are there, and tags it if tag is not "". One with a subject
	// becomes a referrer of that: in a registry without the referrers API by the tag that stands in for it (which two who push at
	// the same moment can take from each other, unlikely as it is: pushing again repairs that).
	PushManifest(ctx context.Context, d ocispec.Descriptor, data []byte, tag string) error
}

// MaxManifest bounds what is read into memory: a manifest or an index, in bytes. It is the size that registries must accept.
const MaxManifest = 4 << 20

// ErrNotFound says that a repository answers that it does not have something.
var ErrNotFound = errors.New("not found")

// UnavailableError says that a repository did not answer as one, however often it was asked. Another may.
type UnavailableError struct {
	Repository string
	Err        error // of the last attempt
}

func (e *UnavailableError) Error() string {
	return fmt.Sprintf("%s is unavailable: %v", e.Repository, e.Err)
}

func (e *UnavailableError) Unwrap() error { return e.Err }

// CorruptError says that a repository has other bytes under a digest. Another may have the right ones.
type CorruptError struct {
	Repository string
	Blob       ocispec.Descriptor // what was expected
	Found      string             // digest and size
}

func (e *CorruptError) Error() string {
	what := e.Blob.Digest.String()
	if title := e.Blob.Annotations[ocispec.AnnotationTitle]; title != "" {
		what = title + ", " + what
	}
	return fmt.Sprintf("%s is damaged in %s: expected %s, %d bytes; found %s; take it from another repository, and have this one repaired by pushing it anew",
		what, e.Repository, e.Blob.Digest, e.Blob.Size, e.Found)
}

// Option changes how a registry is spoken to.
type Option func(*options)

type options struct {
	patience time.Duration
}

// Patience is for how long a registry is asked again when it does not answer, or gives an answer that may change (HTTP 408, 429
// and 5xx, a lost connection): 30 seconds unless said otherwise. A connection on which nothing moves for a third of it is given up. A
// blob has this long and a second more for every 4 KiB that came.
func Patience(d time.Duration) Option { return func(o *options) { o.patience = d } }

// layoutPrefix begins the name of a layout.
const layoutPrefix = "oci:"

// parallel bounds how many transfers are under way with one registry.
const parallel = 8

// Open returns the repository of a name:
//
//	oci:DIR           the OCI layout in a folder, which is made when something is first pushed
//	HOST[:PORT]/NAME  a repository of a registry, with the credentials that docker login and the like have stored
//
// A registry is spoken to over HTTPS, and over HTTP if it is on this machine or in a private network and speaks no HTTPS, as crane
// has it, or if its name begins with http://. It is not contacted yet.
func Open(ref string, opts ...Option) (Repository, error) {
	o := options{patience: 30 * time.Second}
	for _, opt := range opts {
		opt(&o)
	}
	if dir, ok := strings.CutPrefix(ref, layoutPrefix); ok {
		if dir == "" {
			return nil, fmt.Errorf("%q is no repository: expected oci:DIR", ref)
		}
		return &layout{dir: dir}, nil
	}
	plain := []name.Option{name.StrictValidation}
	host, ok := strings.CutPrefix(ref, "http://")
	if ok {
		plain = append(plain, name.Insecure)
	}
	repo, err := name.NewRepository(host, plain...)
	if err != nil {
		return nil, fmt.Errorf("%q is no repository: expected oci:DIR or HOST[:PORT]/NAME: %w", ref, err)
	}
	return newRegistry(ref, repo, o), nil
}

// Split takes a reference to a manifest apart: oci:DIR:TAG, HOST[:PORT]/NAME:TAG, or either with @DIGEST. What it has neither of has
// the reference "".
func Split(ref string) (repository, reference string) {
	if r, d, ok := strings.Cut(ref, "@"); ok && digest.Digest(d).Validate() == nil {
		return r, d
	}
	rest, layout := strings.CutPrefix(ref, layoutPrefix)
	if i := strings.LastIndex(rest, ":"); i > strings.LastIndex(rest, "/") && (layout || strings.Contains(rest, "/")) {
		return strings.TrimSuffix(ref, rest[i:]), rest[i+1:]
	}
	return ref, ""
}

// manifest is what this package must know of a manifest or an index.
type manifest struct {
	MediaType    string               `json:"mediaType"`
	ArtifactType string               `json:"artifactType"`
	Config       *ocispec.Descriptor  `json:"config"`
	Layers       []ocispec.Descriptor `json:"layers"`
	Manifests    []ocispec.Descriptor `json:"manifests"`
	Subject      *ocispec.Descriptor  `json:"subject"`
	Annotations  map[string]string    `json:"annotations"`
}

// parse reads a manifest. One that is two things at once, or another than what it was sent as, is refused.
func parse(data []byte, mediaType string) (*manifest, error) {
	var m manifest
	if err := json.Unmarshal(data, &m); err != nil {
		return nil, fmt.Errorf("this is not a manifest: %w", err)
	}
	image, index := m.Config != nil || m.Layers != nil, m.Manifests != nil
	switch {
	case image == index:
		return nil, errors.New("this is not a manifest: expected one with either layers or manifests")
	case m.MediaType != "" && mediaType != "" && m.MediaType != mediaType:
		return nil, fmt.Errorf("this is a manifest that says it is a %s, sent as a %s", m.MediaType, mediaType)
	case m.MediaType == "" && mediaType != "":
		m.MediaType = mediaType
	case m.MediaType == "" && index:
		m.MediaType = ocispec.MediaTypeImageIndex
	case m.MediaType == "":
		m.MediaType = ocispec.MediaTypeImageManifest
	}
	return &m, nil
}

// artifactType returns what a referrers API says of a manifest.
func (m *manifest) artifactType() string {
	if m.ArtifactType == "" && m.Config != nil {
		return m.Config.MediaType
	}
	return m.ArtifactType
}

// parts returns what must be there before the manifest: its config and layers, or its manifests.
func (m *manifest) parts() []ocispec.Descriptor {
	parts := slices.Concat(m.Manifests, m.Layers)
	if m.Config != nil {
		parts = append(parts, *m.Config)
	}
	return parts
}
