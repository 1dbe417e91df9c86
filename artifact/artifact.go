// Package artifact packs a built version into an OCI 1.1 image index, and keeps indexes in OCI layouts.
//
// # Shape
//
// A version is an image index, tagged with the version ID. It has a manifest for each platform, whose layers are plain files
// that are neither archived nor compressed, so that nothing depends on an archiver or compressor and any tool of the
// ecosystem shows real files under their titles:
//
//	xsnap-worker         WorkerType       the release worker
//	xsnap-worker-debug   DebugWorkerType  the debug worker, not for consensus
//	lockdown.bundle      LockdownType     evaluated first
//	supervisor.bundle    SupervisorType   evaluated second
//	NOTICES              NoticesType      what it is made of, and the licences of that
//	LICENSES             LicensesType     the texts of the licences
//
// A version that is an engine alone has no bundles. The manifest's config is an [Engine]: what a host must know of the
// engine, and where it comes from. An SPDX SBOM and a SLSA provenance statement refer to the index (OCI referrers).
//
// Packing the same version gives the same bytes everywhere: nothing of the time, the machine or the user goes in.
// docs/artifact.md describes the format for readers of other programs.
package artifact

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/enginery/enginery/build"
	"github.com/enginery/enginery/internal/cas"
	"github.com/enginery/enginery/recipes"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Media and artifact types.
const (
	VersionType     = "application/vnd.enginery.version.v1"            // artifactType of a version's index
	EngineType      = "application/vnd.enginery.engine.v1"             // artifactType of a platform's manifest
	ConfigType      = "application/vnd.enginery.engine.config.v1+json" // an Engine
	WorkerType      = "application/vnd.enginery.worker.v1"
	DebugWorkerType = "application/vnd.enginery.worker.debug.v1"
	LockdownType    = "application/vnd.enginery.bundle.lockdown.v1+json"
	SupervisorType  = "application/vnd.enginery.bundle.supervisor.v1+json"
	NoticesType     = "application/vnd.enginery.notices.v1"  // UTF-8 text
	LicensesType    = "application/vnd.enginery.licenses.v1" // UTF-8 text
	StatementType   = "application/vnd.in-toto+json"         // an in-toto statement; also the artifactType of its manifest
)

// Titles of the files in a platform's manifest.
const (
	Worker      = "xsnap-worker"
	DebugWorker = "xsnap-worker-debug"
	Lockdown    = "lockdown.bundle"
	Supervisor  = "supervisor.bundle"
	Notices     = "NOTICES"
	Licenses    = "LICENSES"
)

const source = "https://github.com/enginery/enginery"

// Artifact is a packed version: just packed, or opened from a layout.
type Artifact struct {
	ID        string
	Index     ocispec.Descriptor
	Platforms []Platform
	Referrers []Referrer

	blobs []blob // every blob, referenced ones before those that refer to them
}

// Platform is what a version has for a platform.
type Platform struct {
	Name     string // e.g. "linux/amd64"
	Manifest ocispec.Descriptor
	Config   ocispec.Descriptor
	Files    []ocispec.Descriptor // titled
	Engine   *Engine              // what Config holds
}

// Referrer is a statement about a version.
type Referrer struct {
	PredicateType string // in-toto predicate type; empty if it is something else than an in-toto statement
	Manifest      ocispec.Descriptor
	Statement     ocispec.Descriptor // the only layer of Manifest
}

// blob is content of an artifact.
type blob struct {
	ocispec.Descriptor
	data []byte // nil: open it
	open func() (io.ReadCloser, error)
}

func (b blob) read() (io.ReadCloser, error) {
	if b.data != nil {
		return io.NopCloser(bytes.NewReader(b.data)), nil
	}
	return b.open()
}

// Title returns the title of a file of a manifest.
func Title(d ocispec.Descriptor) string { return d.Annotations[ocispec.AnnotationTitle] }

// Platform returns what a version has for a platform.
func (a *Artifact) Platform(name string) (*Platform, bool) {
	i := slices.IndexFunc(a.Platforms, func(p Platform) bool { return p.Name == name })
	if i < 0 {
		return nil, false
	}
	return &a.Platforms[i], true
}

// File returns the descriptor of a file of a platform by its title.
func (p *Platform) File(title string) (ocispec.Descriptor, bool) {
	i := slices.IndexFunc(p.Files, func(d ocispec.Descriptor) bool { return Title(d) == title })
	if i < 0 {
		return ocispec.Descriptor{}, false
	}
	return p.Files[i], true
}

// Read reads a blob of the artifact. It is checked on the way: reading one that is damaged ends with an error.
func (a *Artifact) Read(d ocispec.Descriptor) (io.ReadCloser, error) {
	b, ok := a.blob(d.Digest)
	if !ok {
		return nil, fmt.Errorf("%s has no blob %s", a.ID, d.Digest)
	}
	return b.read()
}

func (a *Artifact) blob(d digest.Digest) (blob, bool) {
	i := slices.IndexFunc(a.blobs, func(b blob) bool { return b.Digest == d })
	if i < 0 {
		return blob{}, false
	}
	return a.blobs[i], true
}

// Pack packs a version. The workers and bundles must be in the store; they are not read.
func Pack(ctx context.Context, store *cas.Store, r *recipes.Recipe, out *build.Outputs) (*Artifact, error) {
	a := &Artifact{ID: r.ID}
	index := ocispec.Index{
		Versioned:    specs.Versioned{SchemaVersion: 2},
		MediaType:    ocispec.MediaTypeImageIndex,
		ArtifactType: VersionType,
		Annotations: map[string]string{
			ocispec.AnnotationTitle:       r.ID,
			ocispec.AnnotationDescription: fmt.Sprintf("xsnap-worker %s with its supervisor bundle", r.XsnapVersion),
			ocispec.AnnotationVersion:     r.XsnapVersion,
			ocispec.AnnotationLicenses:    licenses(r),
			ocispec.AnnotationSource:      source,
		},
	}
	if r.Bundles == nil {
		index.Annotations[ocispec.AnnotationDescription] = fmt.Sprintf("xsnap-worker %s", r.XsnapVersion)
	}
	recipe := r.Digest()
	for _, t := range r.Targets {
		p, err := a.pack(store, r, recipe, t, out)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", t.Platform, err)
		}
		a.Platforms = append(a.Platforms, *p)
		index.Manifests = append(index.Manifests, p.Manifest)
	}
	var err error
	if a.Index, err = a.addJSON(ocispec.MediaTypeImageIndex, index); err != nil {
		return nil, err
	}
	a.Index.ArtifactType = VersionType
	sbom, err := a.sbom(r)
	if err != nil {
		return nil, fmt.Errorf("writing the SBOM: %w", err)
	}
	if err := a.refer(SBOMPredicate, sbom); err != nil {
		return nil, err
	}
	provenance, err := a.Provenance(r, BuilderID)
	if err != nil {
		return nil, err
	}
	if err := a.refer(ProvenancePredicate, provenance); err != nil {
		return nil, err
	}
	return a, ctx.Err()
}

func (a *Artifact) pack(store *cas.Store, r *recipes.Recipe, recipe cas.Digest, t recipes.Target, out *build.Outputs) (*Platform, error) {
	p := &Platform{Name: t.Platform}
	file := func(title, mediaType string, b blob) {
		b.MediaType = mediaType
		b.Annotations = map[string]string{ocispec.AnnotationTitle: title}
		p.Files = append(p.Files, b.Descriptor)
		a.blobs = append(a.blobs, b)
	}
	actions := make(map[string]cas.Digest)
	for _, goal := range r.Goals {
		w, ok := out.Worker(t.Platform, goal)
		if !ok {
			return nil, fmt.Errorf("the %s worker was not built", goal)
		}
		actions[goal] = w.Action
		if goal == recipes.Debug {
			file(DebugWorker, DebugWorkerType, stored(store, w.Binary))
		} else {
			file(Worker, WorkerType, stored(store, w.Binary))
		}
	}
	if r.Bundles != nil {
		file(Lockdown, LockdownType, stored(store, r.Bundles.Lockdown.SHA256))
		file(Supervisor, SupervisorType, stored(store, r.Bundles.Supervisor.SHA256))
	}
	file(Notices, NoticesType, bytesBlob([]byte(noticesText(r, t))))
	file(Licenses, LicensesType, bytesBlob(licensesText()))

	p.Engine = describe(r, recipe, t, actions)
	var err error
	if p.Config, err = a.addJSON(ConfigType, p.Engine); err != nil {
		return nil, err
	}
	manifest := ocispec.Manifest{
		Versioned:    specs.Versioned{SchemaVersion: 2},
		MediaType:    ocispec.MediaTypeImageManifest,
		ArtifactType: EngineType,
		Config:       p.Config,
		Layers:       p.Files,
		Annotations: map[string]string{
			ocispec.AnnotationTitle:    r.ID,
			ocispec.AnnotationVersion:  r.XsnapVersion,
			ocispec.AnnotationLicenses: licenses(r),
			ocispec.AnnotationSource:   source,
		},
	}
	if p.Manifest, err = a.addJSON(ocispec.MediaTypeImageManifest, manifest); err != nil {
		return nil, err
	}
	p.Manifest.ArtifactType = EngineType
	os, arch, _ := strings.Cut(t.Platform, "/")
	p.Manifest.Platform = &ocispec.Platform{OS: os, Architecture: arch}
	return p, nil
}

// refer attaches an in-toto statement to the index.
func (a *Artifact) refer(predicateType string, content []byte) error {
	statement := a.add(StatementType, content)
	statement.Annotations = map[string]string{
		ocispec.AnnotationTitle: statementTitles[predicateType],
		annotationPredicate:     predicateType,
	}
	empty := a.add(ocispec.MediaTypeEmptyJSON, []byte("{}"))
	subject := ocispec.Descriptor{MediaType: a.Index.MediaType, Digest: a.Index.Digest, Size: a.Index.Size}
	manifest := ocispec.Manifest{
		Versioned:    specs.Versioned{SchemaVersion: 2},
		MediaType:    ocispec.MediaTypeImageManifest,
		ArtifactType: StatementType,
		Config:       empty,
		Layers:       []ocispec.Descriptor{statement},
		Subject:      &subject,
		Annotations:  map[string]string{annotationPredicate: predicateType},
	}
	desc, err := a.addJSON(ocispec.MediaTypeImageManifest, manifest)
	if err != nil {
		return err
	}
	desc.ArtifactType = StatementType
	desc.Annotations = manifest.Annotations
	a.Referrers = append(a.Referrers, Referrer{PredicateType: predicateType, Manifest: desc, Statement: statement})
	return nil
}

// annotationPredicate tells statements apart without reading them, as the tools of in-toto and sigstore do.
const annotationPredicate = "in-toto.io/predicate-type"

func (a *Artifact) add(mediaType string, content []byte) ocispec.Descriptor {
	b := bytesBlob(content)
	b.MediaType = mediaType
	a.blobs = append(a.blobs, b)
	return b.Descriptor
}

func bytesBlob(content []byte) blob {
	return blob{Descriptor: ocispec.Descriptor{Digest: digest.FromBytes(content), Size: int64(len(content))}, data: content}
}

func stored(store *cas.Store, d cas.Digest) blob {
	return blob{
		Descriptor: ocispec.Descriptor{Digest: digest.NewDigestFromEncoded(digest.SHA256, d.Hash), Size: d.Size},
		open:       func() (io.ReadCloser, error) { return store.Open(d) },
	}
}

func (a *Artifact) addJSON(mediaType string, v any) (ocispec.Descriptor, error) {
	b, err := encode(v)
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("encoding %s: %w", mediaType, err)
	}
	return a.add(mediaType, b), nil
}

// encode is json.Marshal without escapes for HTML.
func encode(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}
