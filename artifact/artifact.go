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
//	lockdown.bundle      BundleType       evaluated first
//	supervisor.bundle    BundleType       evaluated second
//	NOTICES              NoticesType      licences
//
// The manifest's config is an [Engine]: what a host must know of the engine, and where it comes from. An SPDX SBOM and a
// SLSA provenance statement refer to the index (OCI referrers).
//
// Packing the same version gives the same bytes everywhere: nothing of the time, the machine or the user goes in.
package artifact

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
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
	BundleType      = "application/vnd.enginery.bundle.v1+json"
	NoticesType     = "text/plain; charset=utf-8"
	StatementType   = "application/vnd.in-toto+json" // an in-toto statement; also the artifactType of its manifest
)

// Titles of the files in a platform's manifest.
const (
	Worker      = "xsnap-worker"
	DebugWorker = "xsnap-worker-debug"
	Lockdown    = "lockdown.bundle"
	Supervisor  = "supervisor.bundle"
	Notices     = "NOTICES"
)

const source = "https://github.com/enginery/enginery"

// Artifact is a packed version.
type Artifact struct {
	ID        string
	Index     ocispec.Descriptor
	Platforms []Platform
	Referrers []Referrer

	store *cas.Store
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
	PredicateType string // in-toto predicate type
	Manifest      ocispec.Descriptor
	Statement     ocispec.Descriptor
}

// blob is content on its way into a layout.
type blob struct {
	ocispec.Descriptor
	data []byte // nil: open it
	open func() (io.ReadCloser, error)
}

// Title returns the title of a file of a manifest.
func Title(d ocispec.Descriptor) string { return d.Annotations[ocispec.AnnotationTitle] }

// Pack packs a version. The workers and bundles must be in the store; they are not read.
func Pack(ctx context.Context, store *cas.Store, r *recipes.Recipe, out *build.Outputs) (*Artifact, error) {
	a := &Artifact{ID: r.ID, store: store}
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
	for _, t := range r.Targets {
		p, err := a.pack(r, t, out)
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
	for _, statement := range []func(*recipes.Recipe) (predicateType string, content []byte, err error){a.sbom, a.provenance} {
		predicate, content, err := statement(r)
		if err != nil {
			return nil, err
		}
		if err := a.refer(predicate, content); err != nil {
			return nil, err
		}
	}
	return a, ctx.Err()
}

func (a *Artifact) pack(r *recipes.Recipe, t recipes.Target, out *build.Outputs) (*Platform, error) {
	p := &Platform{Name: t.Platform}
	file := func(title, mediaType string, d cas.Digest) {
		desc := ocispec.Descriptor{
			MediaType:   mediaType,
			Digest:      digest.NewDigestFromEncoded(digest.SHA256, d.Hash),
			Size:        d.Size,
			Annotations: map[string]string{ocispec.AnnotationTitle: title},
		}
		p.Files = append(p.Files, desc)
		a.blobs = append(a.blobs, blob{Descriptor: desc, open: func() (io.ReadCloser, error) { return a.store.Open(d) }})
	}
	actions := make(map[string]cas.Digest)
	for _, goal := range r.Goals {
		w, ok := out.Worker(t.Platform, goal)
		if !ok {
			return nil, fmt.Errorf("the %s worker was not built", goal)
		}
		actions[goal] = w.Action
		if goal == recipes.Debug {
			file(DebugWorker, DebugWorkerType, w.Binary)
		} else {
			file(Worker, WorkerType, w.Binary)
		}
	}
	if r.Bundles != nil {
		file(Lockdown, BundleType, r.Bundles.Lockdown.SHA256)
		file(Supervisor, BundleType, r.Bundles.Supervisor.SHA256)
	}
	notices := []byte(noticesText(r, t))
	file(Notices, NoticesType, cas.OfBytes(notices))
	a.blobs[len(a.blobs)-1].data = notices

	p.Engine = describe(r, t, actions)
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
	statement.Annotations = map[string]string{ocispec.AnnotationTitle: statementTitles[predicateType]}
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
	desc := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(content), Size: int64(len(content))}
	a.blobs = append(a.blobs, blob{Descriptor: desc, data: content})
	return desc
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
