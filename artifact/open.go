package artifact

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/enginery/enginery/internal/ocilayout"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
)

// ErrNotFound says that a layout has no version of that name.
var ErrNotFound = errors.New("no such version")

// CorruptError says that a blob is not what its digest says, or is missing.
type CorruptError = ocilayout.CorruptError

// BlobPath returns where a layout keeps a blob. Whoever reads it must check it.
func BlobPath(dir string, d ocispec.Descriptor) (string, error) { return ocilayout.BlobPath(dir, d) }

// maxDocument bounds what is read into memory: manifests, configs and statements.
const maxDocument = 16 << 20

func readJSON(dir string, d ocispec.Descriptor, v any) error {
	b, err := ocilayout.Read(dir, d, maxDocument)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("blob %s is not a %s: %w", d.Digest, d.MediaType, err)
	}
	return nil
}

// subjectOf returns what an entry of a layout's index refers to, if it is a referrer.
func subjectOf(dir string, d ocispec.Descriptor) (digest.Digest, error) {
	if s := d.Annotations[ocilayout.AnnotationSubject]; s != "" {
		return digest.Digest(s), nil
	}
	if d.MediaType != ocispec.MediaTypeImageManifest || d.Annotations[ocispec.AnnotationRefName] != "" {
		return "", nil
	}
	var m ocispec.Manifest
	if err := readJSON(dir, d, &m); err != nil || m.Subject == nil {
		return "", err
	}
	return m.Subject.Digest, nil
}

// Open reads a version from the layout in dir and checks every blob of it. The error is ErrNotFound if the layout has no such version,
// and a *CorruptError if a blob is damaged or missing.
//
// What has been opened is whole, and is what its index says. Whether the index is the one that was accepted is for others to say.
func Open(dir, id string) (*Artifact, error) {
	o := opener{dir: dir, a: &Artifact{ID: id}}
	if err := o.open(); err != nil {
		return nil, fmt.Errorf("opening %s in the layout %s: %w", id, dir, err)
	}
	return o.a, nil
}

type opener struct {
	dir string
	a   *Artifact
}

func (o *opener) open() error {
	top, err := ocilayout.ReadIndex(o.dir)
	if err != nil {
		return err
	}
	for _, d := range top.Manifests {
		if d.Annotations[ocispec.AnnotationRefName] != o.a.ID {
			continue
		}
		if o.a.Index.Digest != "" {
			return fmt.Errorf("its %s has the tag twice, at %s and %s", ocispec.ImageIndexFile, o.a.Index.Digest, d.Digest)
		}
		o.a.Index = d
	}
	if o.a.Index.Digest == "" {
		return ErrNotFound
	}
	var index ocispec.Index
	data, err := o.document(o.a.Index, &index)
	if err != nil {
		return err
	}
	if index.MediaType != ocispec.MediaTypeImageIndex || index.ArtifactType != VersionType {
		return fmt.Errorf("what is tagged so, %s, is a %s of type %q; expected a %s of type %s",
			o.a.Index.Digest, index.MediaType, index.ArtifactType, ocispec.MediaTypeImageIndex, VersionType)
	}
	if title := index.Annotations[ocispec.AnnotationTitle]; title != o.a.ID {
		return fmt.Errorf("what is tagged so, %s, is %s: the tag was changed", o.a.Index.Digest, title)
	}
	for _, d := range index.Manifests {
		p, err := o.platform(d)
		if err != nil {
			return err
		}
		o.a.Platforms = append(o.a.Platforms, *p)
	}
	if len(o.a.Platforms) == 0 {
		return fmt.Errorf("its index %s is for no platform", o.a.Index.Digest)
	}
	o.a.blobs = append(o.a.blobs, blob{o.a.Index, data, nil})
	for _, d := range top.Manifests {
		subject, err := subjectOf(o.dir, d)
		if err != nil {
			return err
		}
		if subject == o.a.Index.Digest {
			if err := o.referrer(d); err != nil {
				return err
			}
		}
	}
	return o.verify()
}

// document reads a JSON blob.
func (o *opener) document(d ocispec.Descriptor, v any) ([]byte, error) {
	data, err := ocilayout.Read(o.dir, d, maxDocument)
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(data, v); err != nil {
		return nil, fmt.Errorf("blob %s is not a %s: %w", d.Digest, d.MediaType, err)
	}
	return data, nil
}

// file adds a blob that is not read, but checked in the end.
func (o *opener) file(d ocispec.Descriptor) {
	if b, ok := o.a.blob(d.Digest); ok && b.Size == d.Size {
		return
	}
	o.a.blobs = append(o.a.blobs, blob{d, nil, func() (io.ReadCloser, error) { return ocilayout.Open(o.dir, d) }})
}

func (o *opener) platform(d ocispec.Descriptor) (*Platform, error) {
	if d.Platform == nil {
		return nil, fmt.Errorf("manifest %s is for no platform", d.Digest)
	}
	p := &Platform{Name: d.Platform.OS + "/" + d.Platform.Architecture, Manifest: d, Engine: new(Engine)}
	fail := func(format string, args ...any) (*Platform, error) {
		return nil, fmt.Errorf("%s: %w", p.Name, fmt.Errorf(format, args...))
	}
	if _, ok := o.a.Platform(p.Name); ok {
		return fail("the index has it twice")
	}
	var m ocispec.Manifest
	manifest, err := o.document(d, &m)
	if err != nil {
		return fail("%w", err)
	}
	if m.ArtifactType != EngineType || m.Config.MediaType != ConfigType {
		return fail("manifest %s is of type %q with a config of type %q; expected %s and %s", d.Digest, m.ArtifactType, m.Config.MediaType, EngineType, ConfigType)
	}
	config, err := o.document(m.Config, p.Engine)
	if err != nil {
		return fail("%w", err)
	}
	if p.Engine.Schema != EngineSchema {
		return fail("config %s has schema %d, expected %d", m.Config.Digest, p.Engine.Schema, EngineSchema)
	}
	if p.Engine.Version != o.a.ID || p.Engine.Platform != p.Name {
		return fail("config %s is that of %s for %s", m.Config.Digest, p.Engine.Version, p.Engine.Platform)
	}
	p.Config, p.Files = m.Config, m.Layers
	for i, f := range p.Files {
		title := Title(f)
		if !fs.ValidPath(title) || title == "." || strings.ContainsAny(title, `/\`) {
			return fail("file %s has the title %q, which is no file name", f.Digest, title)
		}
		if slices.ContainsFunc(p.Files[:i], func(d ocispec.Descriptor) bool { return Title(d) == title }) {
			return fail("two files have the title %s", title)
		}
		o.file(f)
	}
	o.a.blobs = append(o.a.blobs, blob{m.Config, config, nil}, blob{d, manifest, nil})
	return p, nil
}

func (o *opener) referrer(d ocispec.Descriptor) error {
	var m ocispec.Manifest
	data, err := o.document(d, &m)
	if err != nil {
		return err
	}
	if m.Subject == nil || m.Subject.Digest != o.a.Index.Digest {
		return fmt.Errorf("manifest %s is listed as a referrer of %s, and is none", d.Digest, o.a.Index.Digest)
	}
	if len(m.Layers) != 1 {
		return fmt.Errorf("referrer %s has %d layers, expected one", d.Digest, len(m.Layers))
	}
	o.file(m.Layers[0])
	o.file(m.Config)
	o.a.blobs = append(o.a.blobs, blob{d, data, nil})
	r := Referrer{Manifest: d, Statement: m.Layers[0]}
	if m.ArtifactType == StatementType {
		r.PredicateType = m.Annotations[annotationPredicate]
	}
	o.a.Referrers = append(o.a.Referrers, r)
	return nil
}

// verify checks the blobs that have not been read.
func (o *opener) verify() error {
	var g errgroup.Group
	for _, b := range o.a.blobs {
		if b.data == nil {
			g.Go(func() error { return ocilayout.Verify(o.dir, b.Descriptor) })
		}
	}
	return g.Wait()
}

// Export writes the files of a platform to a folder, which is made if it is missing, under their titles. Workers are executable.
func (a *Artifact) Export(ctx context.Context, platform, dir string) error {
	p, ok := a.Platform(platform)
	if !ok {
		var names []string
		for _, p := range a.Platforms {
			names = append(names, p.Name)
		}
		return fmt.Errorf("%s has nothing for %s; it is for %s", a.ID, platform, strings.Join(names, ", "))
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("exporting %s for %s: %w", a.ID, platform, err)
	}
	for _, d := range p.Files {
		if err := ctx.Err(); err != nil {
			return err
		}
		mode := fs.FileMode(0o644)
		if d.MediaType == WorkerType || d.MediaType == DebugWorkerType {
			mode = 0o755
		}
		err := ocilayout.WriteFile(filepath.Join(dir, Title(d)), mode, func(f *os.File) error {
			r, err := a.Read(d)
			if err != nil {
				return err
			}
			defer r.Close()
			_, err = io.Copy(f, r)
			return err
		})
		if err != nil {
			return fmt.Errorf("exporting %s for %s: %w", a.ID, platform, err)
		}
	}
	return ocilayout.SyncDir(dir)
}
