package releaseindex

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/enginery/enginery/repository"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/theupdateframework/go-tuf/v2/metadata"
	"golang.org/x/sync/errgroup"
)

// Tag names the index in the repository of the versions.
const Tag = "release-index"

// Media types. Those of the files are what go-tuf-mirror gives them.
const (
	Type         = "application/vnd.enginery.release-index.v1" // artifactType of the manifest
	MetadataType = "application/vnd.tuf.metadata+json"
	TargetType   = "application/vnd.tuf.target"
)

// Bounds of what is read.
const (
	maxFile  = 2 << 20 // bytes
	maxFiles = 2000
)

// parallel bounds how many files are read at once.
const parallel = 8

// ErrNone says that there is no release index.
var ErrNone = errors.New("no release index")

// pull reads the index of a repository, unverified. What is known already is not read again.
func pull(ctx context.Context, repo repository.Repository, known files) (files, error) {
	d, err := repo.Resolve(ctx, Tag)
	if errors.Is(err, repository.ErrNotFound) {
		return nil, fmt.Errorf("there is %w in %s (the tag %s)", ErrNone, repo.Name(), Tag)
	} else if err != nil {
		return nil, err
	}
	data, err := repo.Manifest(ctx, d)
	if err != nil {
		return nil, err
	}
	var m ocispec.Manifest
	if err := json.Unmarshal(data, &m); err != nil {
		return nil, fmt.Errorf("%w: its manifest %s: %w", ErrMalformed, d.Digest, err)
	}
	if m.ArtifactType != Type {
		return nil, fmt.Errorf("%w: %s in %s is of the type %q; expected %q", ErrMalformed, Tag, repo.Name(), m.ArtifactType, Type)
	}
	if len(m.Layers) > maxFiles {
		return nil, fmt.Errorf("%w: it has %d files, more than %d", ErrMalformed, len(m.Layers), maxFiles)
	}
	have := make(map[digest.Digest][]byte)
	for _, data := range known {
		have[digest.FromBytes(data)] = data
	}
	got := make(files)
	var mu sync.Mutex
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(parallel)
	for _, layer := range m.Layers {
		g.Go(func() error {
			data, ok := have[layer.Digest]
			if !ok {
				var err error
				if data, err = readFile(gctx, repo, layer); err != nil {
					return err
				}
			}
			mu.Lock()
			defer mu.Unlock()
			got[layer.Annotations[ocispec.AnnotationTitle]] = data
			return nil
		})
	}
	return got, g.Wait()
}

func readFile(ctx context.Context, repo repository.Repository, d ocispec.Descriptor) ([]byte, error) {
	title := d.Annotations[ocispec.AnnotationTitle]
	if d.Size > maxFile {
		return nil, fmt.Errorf("%w: %s has %d bytes, more than %d", ErrMalformed, title, d.Size, maxFile)
	}
	r, err := repo.Blob(ctx, d, 0)
	if errors.Is(err, repository.ErrNotFound) {
		return nil, fmt.Errorf("%w: %s: %w", ErrIncomplete, title, err)
	} else if err != nil {
		return nil, err
	}
	defer r.Close()
	data, err := io.ReadAll(io.LimitReader(r, d.Size+1))
	if err != nil {
		return nil, err
	}
	if sum := digest.FromBytes(data); sum != d.Digest {
		return nil, &repository.CorruptError{Repository: repo.Name(), Blob: d, Found: fmt.Sprintf("%s, %d bytes", sum, len(data))}
	}
	return data, nil
}

// Push writes an index to a repository, where it takes the place of the one that is there.
func Push(ctx context.Context, repo repository.Repository, i *Index) (ocispec.Descriptor, error) {
	m := ocispec.Manifest{
		Versioned:    specs.Versioned{SchemaVersion: 2},
		MediaType:    ocispec.MediaTypeImageManifest,
		ArtifactType: Type,
		Config:       ocispec.DescriptorEmptyJSON,
		Annotations: map[string]string{
			ocispec.AnnotationTitle:   "release index",
			ocispec.AnnotationVersion: fmt.Sprint(i.Version),
		},
	}
	m.Config.Data = nil
	if err := repo.PushBlob(ctx, m.Config, bytes.NewReader(ocispec.DescriptorEmptyJSON.Data)); err != nil {
		return ocispec.Descriptor{}, err
	}
	for _, name := range slices.Sorted(maps.Keys(i.files)) {
		data := i.files[name]
		layer := ocispec.Descriptor{
			MediaType: MetadataType, Digest: digest.FromBytes(data), Size: int64(len(data)),
			Annotations: map[string]string{ocispec.AnnotationTitle: name},
		}
		if strings.HasPrefix(name, targetsDir) {
			layer.MediaType = TargetType
		}
		if err := repo.PushBlob(ctx, layer, bytes.NewReader(data)); err != nil {
			return ocispec.Descriptor{}, err
		}
		m.Layers = append(m.Layers, layer)
	}
	content, err := json.Marshal(m)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	d := ocispec.Descriptor{MediaType: m.MediaType, ArtifactType: Type, Digest: digest.FromBytes(content), Size: int64(len(content))}
	return d, repo.PushManifest(ctx, d, content, Tag)
}

// Published returns the index of a repository as who publishes it sees it: whether it has expired or not. roots are all roots of trust, from
// version 1 on. The error is ErrNone if there is none, or one that the newest root's keys have not signed and whose version is absurd: what
// somebody with an old key has done to it; nodes forget that too.
func Published(ctx context.Context, repo repository.Repository, roots [][]byte) (*Index, error) {
	f, err := pull(ctx, repo, nil)
	if err != nil {
		return nil, err
	}
	known := make(files)
	for n, data := range roots {
		known[metadataName(metadata.ROOT, int64(n+1))] = data
	}
	i, err := check(roots[0], known, f, time.Time{})
	if errors.Is(err, ErrSignature) {
		const absurd = 1 << 31
		if i, err = check(roots[0], nil, f, time.Time{}); err == nil && max(i.Version, i.Content) > absurd {
			return nil, fmt.Errorf("there is %w of the newest root's in %s", ErrNone, repo.Name())
		}
	}
	if err != nil {
		return nil, fmt.Errorf("%s in %s: %w", Tag, repo.Name(), err)
	}
	return i, nil
}
