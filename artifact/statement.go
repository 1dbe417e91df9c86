package artifact

import (
	"encoding/json"
	"fmt"

	pins "github.com/enginery/enginery/moddable-pins"
	"github.com/enginery/enginery/recipes"
	bundles "github.com/enginery/enginery/supervisor-bundles"
	slsa "github.com/in-toto/attestation/go/predicates/provenance/v1"
	attestation "github.com/in-toto/attestation/go/v1"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/structpb"
)

// Predicate types of the statements about a version.
const (
	SBOMPredicate       = "https://spdx.dev/Document"
	ProvenancePredicate = "https://slsa.dev/provenance/v1"
)

// BuildType says how to read the parameters of a provenance statement; docs/artifact.md is the page.
const BuildType = source + "/blob/main/docs/artifact.md#build-type-v1"

// BuilderID names the build as such, in the statement that everyone makes alike.
const BuilderID = source + "/build@v1"

var statementTitles = map[string]string{
	SBOMPredicate:       "sbom.spdx.intoto.json",
	ProvenancePredicate: "provenance.intoto.json",
}

// Provenance states, as an in-toto statement with SLSA provenance, how the version's index is made. builder is who says so:
// BuilderID in the statement that is part of every artifact, and anyone else's URI in a statement of their own.
func (a *Artifact) Provenance(r *recipes.Recipe, builder string) ([]byte, error) {
	parameters, err := structpb.NewStruct(map[string]any{
		"version": r.ID,
		"recipe":  map[string]any{"digest": map[string]any{"sha256": a.Platforms[0].Engine.Recipe.Hash}},
	})
	if err != nil {
		return nil, fmt.Errorf("stating provenance: %w", err)
	}
	p := &slsa.Provenance{
		BuildDefinition: &slsa.BuildDefinition{
			BuildType:            BuildType,
			ExternalParameters:   parameters,
			ResolvedDependencies: dependencies(r),
		},
		RunDetails: &slsa.RunDetails{Builder: &slsa.Builder{Id: builder}},
	}
	if err := p.Validate(); err != nil {
		return nil, fmt.Errorf("stating provenance: %w", err)
	}
	predicate, err := protojson.Marshal(p) // with white space at random, which state removes
	if err != nil {
		return nil, fmt.Errorf("stating provenance: %w", err)
	}
	return a.state(ProvenancePredicate, predicate)
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
		for _, b := range []bundles.Bundle{r.Bundles.Lockdown, r.Bundles.Supervisor} {
			deps = append(deps, &attestation.ResourceDescriptor{
				Name:   b.Name + " " + b.File,
				Uri:    npmPURL(b.Name, b.Version),
				Digest: map[string]string{"sha256": b.SHA256.Hash},
			})
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

// repositories are the upstream repositories of the components, by name. They are named here, and not taken from a pin's list of sources,
// because what serves a tree is not part of a version's identity.
var repositories = map[string]string{
	"moddable":     "https://github.com/agoric-labs/moddable",
	"xsnap-native": "https://github.com/agoric-labs/xsnap-pub",
}

// location returns where a source tree comes from, in SPDX's notation: its git repository, at the commit.
func location(c pins.Component) string { return "git+" + repositories[c.Name] + "@" + c.Commit }

// statement is in-toto's Statement, version 1. The library's own type is a protobuf message, whose JSON is not stable.
type statement struct {
	Type          string          `json:"_type"`
	Subject       []subject       `json:"subject"`
	PredicateType string          `json:"predicateType"`
	Predicate     json.RawMessage `json:"predicate"`
}

type subject struct {
	Name   string            `json:"name"`
	Digest map[string]string `json:"digest"`
}

// state writes an in-toto statement about the version's index.
func (a *Artifact) state(predicateType string, predicate []byte) ([]byte, error) {
	b, err := encode(statement{
		Type:          attestation.StatementTypeUri,
		Subject:       []subject{{Name: a.ID, Digest: map[string]string{"sha256": a.Index.Digest.Encoded()}}},
		PredicateType: predicateType,
		Predicate:     predicate, // encoded anew without white space
	})
	if err != nil {
		return nil, fmt.Errorf("stating %s: %w", predicateType, err)
	}
	return b, nil
}
