package resolver

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/enginery/enginery/artifact"
	"github.com/enginery/enginery/engines"
	"github.com/enginery/enginery/repository"
	"github.com/enginery/enginery/trust"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Explanation is what there is to say for and against a version. Its decision is that of the policy, with two requirements more: that it is as
// recorded, and that its bytes, where they were read, are right.
type Explanation struct {
	*trust.Decision
	Recorded digest.Digest `json:"recorded"`          // the index that the version must have
	Asked    []string      `json:"asked"`             // sources that answered
	Without  []string      `json:"without,omitempty"` // what those of them that do not have the version said
	Found    bool          `json:"found"`             // the node or a source has the version
	Silent   []string      `json:"silent,omitempty"`  // those that did not answer, and why
}

func (e *Explanation) require(r trust.Requirement, err error) {
	if r.Met = err == nil; err != nil {
		r.By, r.Problems, e.OK = []string{}, []string{err.Error()}, false
	}
	e.Requirements = append(e.Requirements, r)
}

// Explain says whether a version is as recorded, whole, and trusted: by the evidence that the node has and, unless offline, that of its sources. If
// the node has the version its files are read. Nothing is installed.
func (r *Resolver) Explain(ctx context.Context, name string, o Options) (*Explanation, error) {
	v, err := r.about(name)
	if err != nil {
		return nil, err
	}
	var sources []*source
	if !o.Offline {
		sources = r.sources()
	}
	e, err := r.explain(ctx, v, v.Index, sources)
	if err != nil {
		return nil, err
	}
	_, err = r.Home.Get(v.Version)
	if errors.Is(err, engines.ErrNotInstalled) {
		return e, nil
	}
	e.Found = true
	files := trust.Requirement{Name: "files", Need: "the node's files are those of the record"}
	if err == nil {
		files.By = []string{"this node"}
		_, err = r.whole(v)
	}
	e.require(files, err)
	return e, nil
}

// ExplainReference says the same of what a reference names, HOST/NAME:TAG, oci:DIR:TAG, or either with @DIGEST, by the evidence there alone. In a
// layout every byte of it is read.
func (r *Resolver) ExplainReference(ctx context.Context, ref string) (*Explanation, error) {
	place, reference := repository.Split(ref)
	repo, err := repository.Open(place, repository.Patience(r.patience()))
	if err != nil {
		return nil, err
	}
	d, err := repo.Resolve(ctx, reference)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", ref, err)
	}
	var index ocispec.Index
	if err := read(ctx, repo, d, &index); err != nil {
		return nil, err
	}
	if index.ArtifactType != artifact.VersionType {
		return nil, &NoVersionError{ref, index.ArtifactType}
	}
	v, err := r.about(index.Annotations[ocispec.AnnotationTitle])
	if err != nil {
		return nil, fmt.Errorf("%s: %w", ref, err)
	}
	e, err := r.explain(ctx, v, d.Digest, []*source{{name: place, repo: repo, index: d}})
	if err != nil {
		return nil, err
	}
	if dir, ok := strings.CutPrefix(place, "oci:"); ok {
		_, err := artifact.Open(dir, reference)
		e.require(trust.Requirement{Name: "content", Need: "every blob is there, and is what its digest says", By: []string{place}}, err)
	}
	return e, nil
}

// NoVersionError says that a reference names something else than a version.
type NoVersionError struct{ Reference, Type string }

func (e *NoVersionError) Error() string {
	return fmt.Sprintf("%s is no version: expected an index of type %s, found %q", e.Reference, artifact.VersionType, e.Type)
}

// about returns what a name stands for, in service or not.
func (r *Resolver) about(name string) (*version, error) {
	k, err := r.known()
	if err != nil {
		return nil, err
	}
	return r.version(k, name, Options{Archival: true})
}

// explain decides about an index as a version, by what is remembered and what sources have.
func (r *Resolver) explain(ctx context.Context, v *version, index digest.Digest, sources []*source) (*Explanation, error) {
	r.prepare(ctx)
	e := &Explanation{Recorded: v.Index, Asked: []string{}}
	subject := v.Subject
	subject.Index = index
	var evidence []trust.Evidence
	if index == v.Index {
		a, err := r.remembered(v)
		if err != nil {
			return nil, err
		}
		evidence = a.Evidence
	}
	for _, s := range sources {
		var more []trust.Evidence
		if s.err == nil {
			more, s.mute = trust.Collect(ctx, s.repo, index)
		}
		if s.failure() == nil && s.index.Digest == "" {
			s.index, s.err = s.repo.Resolve(ctx, index.String())
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		switch err := s.failure(); {
		case err == nil:
			e.Found = true
			e.Asked = append(e.Asked, s.name)
		case errors.Is(err, repository.ErrNotFound):
			e.Asked = append(e.Asked, s.name)
			e.Without = append(e.Without, err.Error())
		default:
			e.Silent = append(e.Silent, fmt.Sprintf("%s: %v", s.name, err))
		}
		evidence = append(evidence, more...)
	}
	e.Decision = v.policy.Decide(subject, evidence, r.options())
	var err error
	if index != v.Index {
		err = fmt.Errorf("found %s", index)
	}
	e.require(trust.Requirement{Name: "record", Need: v.Index.String(), By: []string{"the record"}}, err)
	return e, nil
}
