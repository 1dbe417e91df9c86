package repository

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"sync"

	"github.com/enginery/enginery/internal/ocilayout"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// layout is an OCI layout on disk. Its index.json lists what has a tag, what refers to something, and what is part of nothing else.
type layout struct {
	dir  string
	none sync.Map // digests of manifests that were read and have no subject
}

func (l *layout) Name() string { return layoutPrefix + l.dir }

// fail returns an error of ocilayout's as this package has them.
func (l *layout) fail(err error) error {
	var corrupt *ocilayout.CorruptError
	switch {
	case !errors.As(err, &corrupt):
		return &UnavailableError{l.Name(), err}
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%s in %s: %w", corrupt.Blob.Digest, l.Name(), ErrNotFound)
	}
	return &CorruptError{l.Name(), corrupt.Blob, corrupt.Found}
}

func (l *layout) index() (*ocispec.Index, error) {
	index, err := ocilayout.ReadIndex(l.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s is no OCI layout, it has no %s: %w", l.Name(), ocispec.ImageIndexFile, ErrNotFound)
	} else if err != nil {
		return nil, &UnavailableError{l.Name(), err}
	}
	return index, nil
}

func (l *layout) Resolve(ctx context.Context, reference string) (ocispec.Descriptor, error) {
	d, _, err := l.find(reference)
	return d, err
}

// find returns what a tag or a digest names, and its bytes.
func (l *layout) find(reference string) (ocispec.Descriptor, []byte, error) {
	index, err := l.index()
	if err != nil {
		return ocispec.Descriptor{}, nil, err
	}
	d := ocispec.Descriptor{Digest: digest.Digest(reference)}
	if !isDigest(reference) {
		i := slices.IndexFunc(index.Manifests, func(d ocispec.Descriptor) bool { return d.Annotations[ocispec.AnnotationRefName] == reference })
		if i < 0 || reference == "" {
			return ocispec.Descriptor{}, nil, fmt.Errorf("%q in %s: %w", reference, l.Name(), ErrNotFound)
		}
		d = index.Manifests[i]
	} else {
		f, err := ocilayout.OpenFile(l.dir, d)
		if err != nil {
			return d, nil, l.fail(err)
		}
		defer f.Close()
		info, err := f.Stat()
		if err != nil {
			return d, nil, l.fail(err)
		}
		if d.Size = info.Size(); d.Size > MaxManifest {
			return d, nil, fmt.Errorf("%s in %s is no manifest, it has %d bytes: %w", reference, l.Name(), d.Size, ErrNotFound)
		}
	}
	data, err := l.Manifest(context.Background(), d)
	if err != nil {
		return d, nil, err
	}
	m, err := parse(data, d.MediaType)
	if err != nil && isDigest(reference) {
		return d, nil, fmt.Errorf("%s in %s is no manifest: %w", reference, l.Name(), ErrNotFound)
	} else if err != nil {
		return d, nil, &UnavailableError{l.Name(), err}
	}
	return ocispec.Descriptor{MediaType: m.MediaType, Digest: d.Digest, Size: d.Size, ArtifactType: m.ArtifactType}, data, nil
}

func (l *layout) Manifest(ctx context.Context, d ocispec.Descriptor) ([]byte, error) {
	if err := checkManifest(d); err != nil {
		return nil, err
	}
	data, err := ocilayout.Read(l.dir, d, MaxManifest)
	if err != nil {
		return nil, l.fail(err)
	}
	return data, nil
}

func (l *layout) Blob(ctx context.Context, d ocispec.Descriptor, offset int64) (io.ReadCloser, error) {
	if err := checkBlob(d, offset); err != nil {
		return nil, err
	}
	f, err := ocilayout.OpenFile(l.dir, d)
	if err != nil {
		return nil, l.fail(err)
	}
	return struct {
		io.Reader
		io.Closer
	}{&contextReader{ctx, io.NewSectionReader(f, offset, d.Size-offset)}, f}, nil
}

// contextReader ends with its context.
type contextReader struct {
	ctx context.Context
	io.Reader
}

func (r *contextReader) Read(p []byte) (int, error) {
	if r.ctx.Err() != nil {
		return 0, context.Cause(r.ctx)
	}
	return r.Reader.Read(p)
}

func (l *layout) Referrers(ctx context.Context, subject digest.Digest, artifactType string) ([]ocispec.Descriptor, error) {
	if !isDigest(subject.String()) {
		return nil, fmt.Errorf("digest %q: expected sha256:…", subject)
	}
	index, err := l.index()
	if errors.Is(err, ErrNotFound) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	var all []ocispec.Descriptor
	for _, d := range index.Manifests {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		said := digest.Digest(d.Annotations[ocilayout.AnnotationSubject])
		if said != "" && said != subject {
			continue
		}
		if d.Annotations[ocispec.AnnotationRefName] == fallbackTag(subject) {
			var listed ocispec.Index
			if data, err := l.Manifest(ctx, d); err == nil && json.Unmarshal(data, &listed) == nil {
				all = append(all, listed.Manifests...)
			}
			continue
		}
		if _, ok := l.none.Load(d.Digest); ok {
			continue
		}
		m, err := l.parse(ctx, d)
		if err == nil && m.Subject == nil {
			l.none.Store(d.Digest, true)
		} else if err == nil && m.Subject.Digest == subject {
			all = append(all, ocispec.Descriptor{
				MediaType: m.MediaType, Digest: d.Digest, Size: d.Size, ArtifactType: m.artifactType(), Annotations: m.Annotations,
			})
		} else if err != nil && said == subject { // that it is damaged is for its reader to learn
			all = append(all, d)
		}
	}
	slices.SortStableFunc(all, func(x, y ocispec.Descriptor) int { return cmp.Compare(x.Digest, y.Digest) })
	all = slices.CompactFunc(all, func(x, y ocispec.Descriptor) bool { return x.Digest == y.Digest })
	return ofType(all, artifactType), nil
}

func (l *layout) parse(ctx context.Context, d ocispec.Descriptor) (*manifest, error) {
	data, err := l.Manifest(ctx, d)
	if err != nil {
		return nil, err
	}
	return parse(data, d.MediaType)
}

func (l *layout) Tags(ctx context.Context) ([]string, error) {
	index, err := l.index()
	if err != nil {
		return nil, err
	}
	var tags []string
	for _, d := range index.Manifests {
		if name := d.Annotations[ocispec.AnnotationRefName]; name != "" {
			tags = append(tags, name)
		}
	}
	slices.Sort(tags)
	return slices.Compact(tags), nil
}

func (l *layout) PushBlob(ctx context.Context, d ocispec.Descriptor, r io.ReadSeeker) error {
	if err := checkBlob(d, 0); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if ocilayout.Verify(l.dir, d) == nil {
		return nil
	}
	if _, err := r.Seek(0, io.SeekStart); err != nil {
		return fmt.Errorf("pushing %s to %s: %w", d.Digest, l.Name(), err)
	}
	err := ocilayout.WriteBlob(ctx, l.dir, d, &contextReader{ctx, r})
	var corrupt *ocilayout.CorruptError
	if errors.As(err, &corrupt) {
		return &CorruptError{"what was to be pushed to " + l.Name(), d, corrupt.Found}
	} else if err != nil {
		return fmt.Errorf("pushing %s to %s: %w", d.Digest, l.Name(), err)
	}
	return nil
}

func (l *layout) PushManifest(ctx context.Context, d ocispec.Descriptor, data []byte, tag string) error {
	m, err := checkPush(l.Name(), d, data, tag)
	if err != nil {
		return err
	}
	for _, part := range m.parts() {
		if err := l.has(part); err != nil {
			return fmt.Errorf("pushing %s to %s before what it consists of: %w", d.Digest, l.Name(), err)
		}
	}
	if ocilayout.Verify(l.dir, d) != nil {
		if err := ocilayout.WriteBlob(ctx, l.dir, d, bytes.NewReader(data)); err != nil {
			return fmt.Errorf("pushing %s to %s: %w", d.Digest, l.Name(), err)
		}
	}
	entry := ocispec.Descriptor{MediaType: m.MediaType, Digest: d.Digest, Size: d.Size, ArtifactType: m.ArtifactType, Annotations: make(map[string]string)}
	if tag != "" {
		entry.Annotations[ocispec.AnnotationRefName] = tag
	}
	if m.Subject != nil {
		entry.Annotations[ocilayout.AnnotationSubject] = m.Subject.Digest.String()
	}
	err = ocilayout.UpdateIndex(ctx, l.dir, func(index *ocispec.Index) { enter(index, entry, m.Manifests) })
	if err != nil {
		return fmt.Errorf("pushing %s to %s: %w", d.Digest, l.Name(), err)
	}
	return nil
}

// has checks that there is a blob of that size.
func (l *layout) has(d ocispec.Descriptor) error {
	f, err := ocilayout.OpenFile(l.dir, d)
	if err != nil {
		return l.fail(err)
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil {
		return err
	} else if info.Size() != d.Size {
		return &CorruptError{l.Name(), d, fmt.Sprintf("%d bytes", info.Size())}
	}
	return nil
}

// enter lists a manifest in a layout's index: in place of what had its tag, and of those that are part of it.
func enter(index *ocispec.Index, entry ocispec.Descriptor, parts []ocispec.Descriptor) {
	tag := entry.Annotations[ocispec.AnnotationRefName]
	if tag == "" && slices.ContainsFunc(index.Manifests, func(d ocispec.Descriptor) bool { return d.Digest == entry.Digest }) {
		return
	}
	index.Manifests = slices.DeleteFunc(index.Manifests, func(d ocispec.Descriptor) bool {
		name, subject := d.Annotations[ocispec.AnnotationRefName], d.Annotations[ocilayout.AnnotationSubject]
		switch {
		case name != "":
			return name == tag
		case d.Digest == entry.Digest:
			return true
		}
		return subject == "" && slices.ContainsFunc(parts, func(p ocispec.Descriptor) bool { return p.Digest == d.Digest })
	})
	index.Manifests = append(index.Manifests, entry)
}

// open opens a blob's file for Handler.
func (l *layout) open(d digest.Digest) (*os.File, error) {
	f, err := ocilayout.OpenFile(l.dir, ocispec.Descriptor{Digest: d})
	if err != nil {
		return nil, l.fail(err)
	}
	return f, nil
}
