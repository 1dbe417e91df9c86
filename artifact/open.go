package artifact

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// ErrNotFound says that a layout has no version of that name.
var ErrNotFound = errors.New("no such version")

// CorruptError says that a blob is not what its digest says, or is missing.
type CorruptError struct {
	Blob  ocispec.Descriptor // what was expected
	Path  string             // where
	Found string             // digest and size, or that there is nothing
	Err   error              // fs.ErrNotExist if it is missing
}

func (e *CorruptError) Error() string {
	name := e.Blob.Digest.String()
	if t := Title(e.Blob); t != "" {
		name = t + ", " + name
	}
	state, remedy := "damaged", "remove the file, and build or fetch the version again"
	if errors.Is(e.Err, fs.ErrNotExist) {
		state, remedy = "missing", "build or fetch the version again"
	}
	return fmt.Sprintf("blob %s is %s: %s: expected sha256:%s, %d bytes; found %s; %s",
		name, state, e.Path, e.Blob.Digest.Encoded(), e.Blob.Size, e.Found, remedy)
}

func (e *CorruptError) Unwrap() error { return e.Err }

// BlobPath returns where a layout keeps a blob. Whoever reads it must check it.
func BlobPath(dir string, d ocispec.Descriptor) (string, error) {
	if err := d.Digest.Validate(); err != nil {
		return "", fmt.Errorf("digest %q: %w", d.Digest, err)
	}
	if d.Digest.Algorithm() != digest.SHA256 {
		return "", fmt.Errorf("digest %q: expected sha256:…", d.Digest)
	}
	return filepath.Join(blobsDir(dir), d.Digest.Encoded()), nil
}

// verifier is a reader of a blob that checks it: its end is a *CorruptError if it is another one.
type verifier struct {
	r    io.Reader
	want ocispec.Descriptor
	path string
	h    hash.Hash
	n    int64
}

func newVerifier(r io.Reader, want ocispec.Descriptor, path string) *verifier {
	return &verifier{r: r, want: want, path: path, h: sha256.New()}
}

func (v *verifier) Read(p []byte) (int, error) {
	n, err := v.r.Read(p)
	v.h.Write(p[:n])
	v.n += int64(n)
	if v.n > v.want.Size { // it may never end
		return 0, &CorruptError{Blob: v.want, Path: v.path, Found: "more bytes than that"}
	}
	if err == io.EOF {
		if sum := fmt.Sprintf("%x", v.h.Sum(nil)); sum != v.want.Digest.Encoded() || v.n != v.want.Size {
			err = &CorruptError{Blob: v.want, Path: v.path, Found: fmt.Sprintf("sha256:%s, %d bytes", sum, v.n)}
		}
	}
	return n, err
}

// openBlob reads a blob of a layout, checked.
func openBlob(dir string, d ocispec.Descriptor) (io.ReadCloser, error) {
	path, err := BlobPath(dir, d)
	if err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0) // who opens a pipe waits for its writer
	if errors.Is(err, fs.ErrNotExist) {
		return nil, &CorruptError{Blob: d, Path: path, Found: "no file", Err: fs.ErrNotExist}
	} else if err != nil {
		return nil, err
	}
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		f.Close()
		return nil, errors.Join(err, &CorruptError{Blob: d, Path: path, Found: "something that is not a file"})
	}
	return struct {
		io.Reader
		io.Closer
	}{newVerifier(f, d, path), f}, nil
}

// verify checks a blob of a layout.
func verify(dir string, d ocispec.Descriptor) error {
	r, err := openBlob(dir, d)
	if err != nil {
		return err
	}
	defer r.Close()
	_, err = io.CopyBuffer(struct{ io.Writer }{io.Discard}, r, make([]byte, 128<<10))
	return err
}

// maxDocument bounds what is read into memory: manifests, configs and statements.
const maxDocument = 16 << 20

func readDocument(dir string, d ocispec.Descriptor) ([]byte, error) {
	r, err := openBlob(dir, d)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	var b bytes.Buffer
	if n, err := io.Copy(&b, io.LimitReader(r, maxDocument+1)); err != nil {
		return nil, err
	} else if n > maxDocument {
		return nil, fmt.Errorf("blob %s has more than %d bytes, too many for a %s", d.Digest, maxDocument, d.MediaType)
	}
	return b.Bytes(), nil
}

func readJSON(dir string, d ocispec.Descriptor, v any) error {
	b, err := readDocument(dir, d)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("blob %s is not a %s: %w", d.Digest, d.MediaType, err)
	}
	return nil
}

func readIndex(dir string) (*ocispec.Index, error) {
	path := filepath.Join(dir, ocispec.ImageIndexFile)
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var index ocispec.Index
	if err := json.Unmarshal(b, &index); err != nil {
		return nil, fmt.Errorf("%s is not an OCI index: %w", path, err)
	}
	if index.SchemaVersion != 2 {
		return nil, fmt.Errorf("%s is an OCI index of schema %d, expected 2", path, index.SchemaVersion)
	}
	return &index, nil
}

// subjectOf returns what an entry of a layout's index refers to, if it is a referrer.
func subjectOf(dir string, d ocispec.Descriptor) (digest.Digest, error) {
	if s := d.Annotations[annotationSubject]; s != "" {
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
	top, err := readIndex(o.dir)
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
	data, err := readDocument(o.dir, d)
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
	o.a.blobs = append(o.a.blobs, blob{d, nil, func() (io.ReadCloser, error) { return openBlob(o.dir, d) }})
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
			g.Go(func() error { return verify(o.dir, b.Descriptor) })
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
		err := writeFile(filepath.Join(dir, Title(d)), mode, func(f *os.File) error {
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
	return syncDir(dir)
}
