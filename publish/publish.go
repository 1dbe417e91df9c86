// Package publish is what release engineers and rebuilders do with a version that was built: sign it, attest a rebuild of it, and send it to a
// repository. Nothing is signed, attested or sent that is not what the committed record says.
package publish

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"

	"github.com/enginery/enginery/artifact"
	"github.com/enginery/enginery/manifests"
	"github.com/enginery/enginery/recipes"
	"github.com/enginery/enginery/release"
	"github.com/enginery/enginery/repository"
	"github.com/enginery/enginery/reproduce"
	"github.com/enginery/enginery/trust"
	"github.com/enginery/enginery/trust/sign"
	"github.com/opencontainers/go-digest"
)

// ErrUnsigned says that a version has no signature yet.
var ErrUnsigned = errors.New("not signed")

// Sign builds a version if need be, runs its golden vectors, signs its digest, and attests the statements that are part of it, provenance and
// SBOM. The signatures are attached to it in the workshop's layout; what the same key has signed before is left as it is.
func Sign(ctx context.Context, w *release.Workshop, s *sign.Signer, id string, out io.Writer) error {
	v, repo, err := recorded(ctx, w, id)
	if err != nil {
		return fmt.Errorf("not signed: %w", err)
	}
	index := v.Artifact.Index
	evidence, err := trust.Collect(ctx, repo, index.Digest)
	if err != nil {
		return err
	}
	statements := map[string]func() ([]byte, error){ // by predicate type: what signs
		trust.SignPredicate: func() ([]byte, error) { return s.Sign(ctx, index.Digest) },
	}
	for _, r := range v.Artifact.Referrers {
		if r.PredicateType != "" {
			statements[r.PredicateType] = func() ([]byte, error) {
				statement, err := read(v.Artifact, r)
				if err != nil {
					return nil, err
				}
				return s.Attest(ctx, statement)
			}
		}
	}
	for _, predicate := range slices.Sorted(maps.Keys(statements)) {
		if key := s.PublicKey(); key != nil && trust.Vouched(key, index.Digest, predicate, evidence) {
			delete(statements, predicate)
			fmt.Fprintf(out, "%s  %s  signed before\n", id, predicate)
		}
	}
	if len(statements) == 0 {
		return nil
	}
	if _, err := w.Golden(ctx, v); err != nil {
		return fmt.Errorf("not signed: %w", err)
	}
	for _, predicate := range slices.Sorted(maps.Keys(statements)) {
		b, err := statements[predicate]()
		if err != nil {
			return fmt.Errorf("signing %s of %s: %w", predicate, id, err)
		}
		d, err := trust.Attach(ctx, repo, index, b)
		if err != nil {
			return err
		}
		fmt.Fprintf(out, "%s  %s  %s\n", id, predicate, d.Digest)
	}
	return nil
}

func read(a *artifact.Artifact, r artifact.Referrer) ([]byte, error) {
	f, err := a.Read(r.Statement)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(f)
}

// Attest builds a version twice, the second time from nothing in another environment, and if every digest is the same, and the recorded one, it
// signs SLSA provenance in the name of a builder, which is a URI of the rebuilder's own. The statement is attached to the version in a
// repository, or in the workshop's layout if to is empty.
func Attest(ctx context.Context, w *release.Workshop, s *sign.Signer, builder, id, to string, out io.Writer) error {
	if builder == "" || builder == artifact.BuilderID {
		return errors.New("attesting needs a builder of your own, a URI that the policies of others name: --builder=URI")
	}
	v, repo, err := recorded(ctx, w, id)
	if err != nil {
		return fmt.Errorf("not attested: %w", err)
	}
	if to != "" {
		if repo, err = repository.Open(to); err != nil {
			return err
		}
		if _, err := repo.Resolve(ctx, v.Artifact.Index.Digest.String()); err != nil {
			return fmt.Errorf("not attested: %w", err)
		}
	}
	report, err := reproduce.Check(ctx, w, v.Recipe)
	if err != nil {
		return fmt.Errorf("not attested: %w", err)
	}
	for _, row := range report.Rows {
		if !row.Identical || row.Recorded != "same" {
			return fmt.Errorf("not attested: %w", &reproduce.DifferentError{Report: report})
		}
	}
	statement, err := v.Artifact.Provenance(v.Recipe, builder)
	if err != nil {
		return err
	}
	bundle, err := s.Attest(ctx, statement)
	if err != nil {
		return err
	}
	d, err := trust.Attach(ctx, repo, v.Artifact.Index, bundle)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "%s  rebuilt by %s  %s\n", id, builder, d.Digest)
	return nil
}

// Send copies a version from the workshop's layout to a repository, with all that refers to it, and tags it with its ID. It must have a release
// signature; whose, is for the policies of others to judge.
func Send(ctx context.Context, w *release.Workshop, id, ref string, out io.Writer) error {
	v, repo, err := recorded(ctx, w, id)
	if err != nil {
		return fmt.Errorf("not published: %w", err)
	}
	evidence, err := trust.Collect(ctx, repo, v.Artifact.Index.Digest)
	if err != nil {
		return err
	}
	evidence = slices.DeleteFunc(evidence, func(e trust.Evidence) bool { return e.Bundle == nil })
	if !slices.ContainsFunc(evidence, func(e trust.Evidence) bool { return e.Predicate() == trust.SignPredicate }) {
		return fmt.Errorf("not published: %s is %w; sign it: go tool mage release:sign %s", id, ErrUnsigned, id)
	}
	to, err := repository.Open(ref)
	if err != nil {
		return err
	}
	d, err := repository.Copy(ctx, repo, to, id)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "%s  %s  %s, with %d signatures\n", id, d.Digest, to.Name(), len(evidence))
	return nil
}

// recorded builds a version if need be, makes sure that it is as recorded and in the layout, and returns it with the layout.
func recorded(ctx context.Context, w *release.Workshop, id string) (*release.Version, repository.Repository, error) {
	if _, err := recipes.Load(id); err != nil {
		return nil, nil, err
	}
	versions, err := w.BuildAvailable(ctx, id)
	if err != nil {
		return nil, nil, err
	}
	v := versions[0]
	if err := v.Check(); errors.Is(err, manifests.ErrNotRecorded) {
		return nil, nil, fmt.Errorf("%w: go tool mage manifest:update %s", err, id)
	} else if err != nil {
		return nil, nil, err
	}
	repo, err := repository.Open("oci:" + w.Layout)
	if err != nil {
		return nil, nil, err
	}
	d, err := repo.Resolve(ctx, id)
	if err != nil {
		return nil, nil, err
	}
	if want := digest.Digest(v.Manifest.Index); d.Digest != want {
		return nil, nil, fmt.Errorf("the layout %s has %s as %s; expected %s", w.Layout, d.Digest, id, want)
	}
	return v, repo, nil
}
