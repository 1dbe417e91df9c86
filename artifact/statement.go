package artifact

import (
	"bytes"
	"encoding/json"
	"fmt"

	"github.com/enginery/enginery/internal/cas"
	pins "github.com/enginery/enginery/moddable-pins"
	"github.com/enginery/enginery/recipes"
	slsa "github.com/in-toto/attestation/go/predicates/provenance/v1"
	attestation "github.com/in-toto/attestation/go/v1"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
)

// Predicate types of the statements about a version.
const (
	SBOMPredicate       = "https://spdx.dev/Document"
	ProvenancePredicate = "https://slsa.dev/provenance/v1"
)

// BuildType says how to read the parameters of a provenance statement; docs/artifact.md is the page.
const BuildType = source + "/blob/main/docs/artifact.md#build-type-v1"

// BuilderID names the build as such in the statement that everyone makes alike. A rebuilder's own statement carries its own.
const BuilderID = source + "/build@v1"

var statementTitles = map[string]string{
	SBOMPredicate:       "sbom.spdx.intoto.json",
	ProvenancePredicate: "provenance.intoto.json",
}

func (a *Artifact) provenance(r *recipes.Recipe) (string, []byte, error) {
	parameters, err := structpb.NewStruct(map[string]any{
		"version": r.ID,
		"recipe":  map[string]any{"digest": map[string]any{"sha256": r.Digest().Hash}},
	})
	if err != nil {
		return "", nil, fmt.Errorf("stating provenance: %w", err)
	}
	p := &slsa.Provenance{
		BuildDefinition: &slsa.BuildDefinition{
			BuildType:            BuildType,
			ExternalParameters:   parameters,
			ResolvedDependencies: dependencies(r),
		},
		RunDetails: &slsa.RunDetails{Builder: &slsa.Builder{Id: BuilderID}},
	}
	predicate, err := protojson.Marshal(p)
	if err != nil {
		return "", nil, fmt.Errorf("stating provenance: %w", err)
	}
	content, err := a.state(ProvenancePredicate, predicate)
	return ProvenancePredicate, content, err
}

// dependencies are all inputs of the build, by digest. The digest of a source tree is that of its Remote Execution API Directory message.
func dependencies(r *recipes.Recipe) []*attestation.ResourceDescriptor {
	var deps []*attestation.ResourceDescriptor
	for _, c := range []pins.Component{r.Pin.Moddable, r.Pin.XsnapNative} {
		deps = append(deps, &attestation.ResourceDescriptor{
			Name:   c.Name,
			Uri:    location(c),
			Digest: map[string]string{"gitCommit": c.Commit, "reapiDirectory": c.Tree.Hash},
		})
	}
	if r.Bundles != nil {
		for _, b := range []struct {
			purl string
			d    cas.Digest
		}{
			{npmPURL(r.Bundles.Lockdown.Name, r.Bundles.Lockdown.Version), r.Bundles.Lockdown.SHA256},
			{npmPURL(r.Bundles.Supervisor.Name, r.Bundles.Supervisor.Version), r.Bundles.Supervisor.SHA256},
		} {
			deps = append(deps, &attestation.ResourceDescriptor{Uri: b.purl, Digest: map[string]string{"sha256": b.d.Hash}})
		}
	}
	for _, t := range r.Targets {
		deps = append(deps, &attestation.ResourceDescriptor{
			Name:   "toolchain " + t.Toolchain.Name,
			Uri:    "pkg:oci/" + t.Toolchain.Name + "@" + t.Toolchain.Image.Algorithm().String() + "%3A" + t.Toolchain.Image.Encoded(),
			Digest: map[string]string{"sha256": t.Toolchain.Image.Encoded()},
		})
	}
	return deps
}

// location returns where a source tree comes from, in SPDX's notation: its git repository, at the commit.
func location(c pins.Component) string {
	for _, s := range c.Sources {
		if s.Git != "" {
			return "git+" + s.Git + "@" + c.Commit
		}
	}
	return "NOASSERTION"
}

// state writes an in-toto statement about the version's index.
func (a *Artifact) state(predicateType string, predicate []byte) ([]byte, error) {
	var p structpb.Struct
	if err := protojson.Unmarshal(predicate, &p); err != nil {
		return nil, fmt.Errorf("stating %s: %w", predicateType, err)
	}
	s := &attestation.Statement{
		Type:          attestation.StatementTypeUri,
		PredicateType: predicateType,
		Predicate:     &p,
		Subject: []*attestation.ResourceDescriptor{{
			Name:   a.ID,
			Digest: map[string]string{"sha256": a.Index.Digest.Encoded()},
		}},
	}
	return stable(s)
}

// stable encodes a message as JSON. The library puts spaces where it likes, so that nobody relies on its bytes; without them, they
// can be relied on.
func stable(m proto.Message) ([]byte, error) {
	b, err := protojson.Marshal(m)
	if err != nil {
		return nil, err
	}
	var compact bytes.Buffer
	if err := json.Compact(&compact, b); err != nil {
		return nil, err
	}
	return compact.Bytes(), nil
}
