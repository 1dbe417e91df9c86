package trust

import (
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/enginery/enginery/artifact"
	"github.com/opencontainers/go-digest"
	"github.com/sigstore/sigstore-go/pkg/bundle"
	"github.com/sigstore/sigstore-go/pkg/root"
	"github.com/sigstore/sigstore-go/pkg/verify"
	"github.com/sigstore/sigstore/pkg/signature"
)

// Subject is what a decision is about.
type Subject struct {
	Version string        // version ID
	Channel string        // legacy, current, or empty
	Index   digest.Digest // of the version's artifact
}

// Evidence is a sigstore bundle that was found with a version.
type Evidence struct {
	Digest  digest.Digest `json:"digest"`            // of the manifest that carried it
	Bundle  []byte        `json:"bundle"`            // JSON, media type application/vnd.dev.sigstore.bundle.v0.3+json; nil if there is a problem
	Problem string        `json:"problem,omitempty"` // why it could not be read
	Seen    time.Time     `json:"seen,omitzero"`     // when whoever decides has first seen it, by their own memory; zero: only now
}

// Options are what a decision depends on besides the policy and the evidence.
type Options struct {
	Time        time.Time            // when: now is for the caller to say
	TrustedRoot root.TrustedMaterial // of Fulcio and Rekor: needed for identities and the transparency log; may be nil
}

// Decision is the answer of a policy, with its reasons.
type Decision struct {
	Version      string        `json:"version"`
	Index        digest.Digest `json:"index"`
	Policy       digest.Digest `json:"policy"`
	OK           bool          `json:"ok"`
	Requirements []Requirement `json:"requirements"`

	counted []Evidence
}

// Evidence returns what counted: with nothing else the same policy says the same.
func (d *Decision) Evidence() []Evidence { return d.counted }

// Requirement is a demand of the policy.
type Requirement struct {
	Name     string   `json:"name"`
	Need     string   `json:"need"`
	Met      bool     `json:"met"`
	By       []string `json:"by"`                 // who met it
	Problems []string `json:"problems,omitempty"` // evidence that did not count, and why
}

// notRevoked is the name of the first requirement.
const notRevoked = "not revoked"

// RefusedError says that a policy's requirements are not met.
type RefusedError struct{ Decision *Decision }

func (e *RefusedError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s, %s, is not trusted by the policy:", e.Decision.Version, e.Decision.Index)
	for _, r := range e.Decision.Requirements {
		if r.Met {
			continue
		}
		if r.Name == notRevoked { // then nothing else matters, and nobody may have been asked
			return fmt.Sprintf("%s, %s, is refused by the policy, whoever vouches for it: %s", e.Decision.Version, e.Decision.Index, strings.Join(r.Problems, "; "))
		}
		by := "nobody"
		if len(r.By) > 0 {
			by = strings.Join(r.By, ", ")
		}
		fmt.Fprintf(&b, "\n  %s: expected %s; found %s", r.Name, r.Need, by)
		for _, p := range r.Problems {
			b.WriteString("\n    " + p)
		}
	}
	return b.String()
}

// Err returns a *RefusedError if the decision is no.
func (d *Decision) Err() error {
	if d.OK {
		return nil
	}
	return &RefusedError{d}
}

// WriteTable writes the decision for people: what is required, whether it is met, by whom, and why not.
func (d *Decision) WriteTable(out io.Writer) error {
	verdict := "trusted"
	if !d.OK {
		verdict = "NOT TRUSTED"
	}
	fmt.Fprintf(out, "%s  %s  %s\n", d.Version, d.Index, verdict)
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	for _, r := range d.Requirements {
		mark, by := "met", strings.Join(r.By, ", ")
		if by == "" {
			by = "-"
		}
		if !r.Met {
			mark = "NOT MET"
		}
		fmt.Fprintf(w, "  %s\t%s\t%s\t%s\n", r.Name, mark, by, r.Need)
		if r.Met {
			continue
		}
		for _, p := range r.Problems {
			fmt.Fprintf(w, "\t\t\t%s\n", p)
		}
	}
	return w.Flush()
}

// SignPredicate is the predicate type of a release signature (cosign, pkg/types, CosignSignPredicateType).
const SignPredicate = "https://sigstore.dev/cosign/sign/v1"

// Decide says whether the evidence meets the policy's requirements for a subject, and why. It asks nobody else: the same arguments give the
// same answer. Evidence that makes no sense does not count, and never harms.
//
// A key counts within its validity window: at the time that a transparency log or timestamp authority vouches for, if the evidence has one,
// otherwise when the evidence was first seen. So when a key has expired, what it signed without a log counts only with those who have seen it
// before.
func (p *Policy) Decide(s Subject, evidence []Evidence, o Options) *Decision {
	d := &Decision{Version: s.Version, Index: s.Index, Policy: p.digest}
	r, table := p.rule(s)

	current := Requirement{Name: notRevoked, Need: "the digest is not on the list of revoked ones", Met: true}
	if reason, ok := p.revoked[s.Index]; ok {
		current.Met, current.Problems = false, []string{"revoked: " + reason}
	}

	var signers []*witness
	for _, name := range r.signers {
		signers = append(signers, &witness{name: name, key: p.keys[name], identity: p.identities[name]})
	}
	var rebuilders []*witness
	for _, rb := range r.rebuilders {
		rebuilders = append(rebuilders, &witness{name: rb.name, builder: rb.builder, key: rb.key, identity: rb.identity})
	}
	signed := Requirement{
		Name: "release signature", Need: fmt.Sprintf("%d of %s (policy, %s)%s", r.signatures, strings.Join(r.signers, ", "), table, inLog(r.log)),
	}
	rebuilt := Requirement{Name: "rebuilders"}
	if r.rebuilds > 0 {
		var names []string
		for _, w := range rebuilders {
			names = append(names, w.name)
		}
		rebuilt.Need = fmt.Sprintf("%d of %s (policy, %s)%s", r.rebuilds, strings.Join(names, ", "), table, inLog(r.log))
	} else {
		rebuilt.Need = "none (policy, " + table + ")"
	}

	seen := make(map[digest.Digest]bool)
	var unreadable Requirement
	for _, e := range evidence {
		if e.Bundle == nil {
			unreadable.problem(e, "%s", e.Problem)
			continue
		}
		if same := digest.FromBytes(e.Bundle); seen[same] {
			continue
		} else {
			seen[same] = true
		}
		b, predicate, err := open(e.Bundle)
		if err != nil {
			unreadable.problem(e, "%v", err)
			continue
		}
		counts := false
		switch predicate {
		case SignPredicate:
			counts = judge(b, e, s, signers, r.log, o, &signed)
		case artifact.ProvenancePredicate:
			counts = judge(b, e, s, rebuilders, r.log, o, &rebuilt)
		}
		if counts {
			d.counted = append(d.counted, e)
		}
	}
	signed.Met = len(signed.By) >= r.signatures
	rebuilt.Met = len(rebuilt.By) >= r.rebuilds
	for _, r := range []*Requirement{&signed, &rebuilt} { // of which it might have been
		if !r.Met {
			r.Problems = append(r.Problems, unreadable.Problems...)
		}
	}
	d.Requirements = []Requirement{current, signed, rebuilt}
	d.OK = !slices.ContainsFunc(d.Requirements, func(r Requirement) bool { return !r.Met })
	for i := range d.Requirements {
		slices.Sort(d.Requirements[i].By)
		slices.Sort(d.Requirements[i].Problems)
		if d.Requirements[i].By == nil {
			d.Requirements[i].By = []string{}
		}
	}
	return d
}

func inLog(log bool) string {
	if log {
		return ", in the transparency log"
	}
	return ""
}

func (r *Requirement) problem(e Evidence, format string, args ...any) {
	r.Problems = append(r.Problems, fmt.Sprintf("%s: %s", e.Digest, fmt.Sprintf(format, args...)))
}

// open parses a bundle and returns the predicate type that it claims.
func open(data []byte) (b *bundle.Bundle, predicate string, err error) {
	b = new(bundle.Bundle)
	if err := b.UnmarshalJSON(data); err != nil {
		return nil, "", fmt.Errorf("no sigstore bundle: %w", err)
	}
	env, err := b.Envelope()
	if err != nil {
		return nil, "", fmt.Errorf("a bundle without a statement: %w", err)
	}
	st, err := env.Statement()
	if err != nil {
		return nil, "", fmt.Errorf("a bundle without a statement: %w", err)
	}
	return b, st.GetPredicateType(), nil
}

// witness is someone whose word may count.
type witness struct {
	name     string
	key      *key
	identity *identity
	builder  string // URI that provenance of theirs must name; empty for a release signature
}

// judge adds to a requirement the witness whose a bundle is, or the reason for which it does not count. It reports whether it counts.
func judge(b *bundle.Bundle, e Evidence, s Subject, witnesses []*witness, log bool, o Options, r *Requirement) bool {
	if !e.Seen.IsZero() && e.Seen.Before(o.Time) {
		o.Time = e.Seen
	}
	var reasons []string
	for _, w := range witnesses {
		err := w.check(b, s, log, o)
		switch {
		case err == nil:
			if slices.Contains(r.By, w.name) {
				return false // one is enough
			}
			r.By = append(r.By, w.name)
			return true
		case !errors.Is(err, errForeign):
			reasons = append(reasons, w.name+": "+err.Error())
		}
	}
	if len(reasons) == 0 {
		reasons = []string{"signed by none of those that the policy names, or about another artifact"}
	}
	r.problem(e, "%s", strings.Join(reasons, "; "))
	return false
}

// errForeign says that a bundle is not a witness's, or not about the subject.
var errForeign = errors.New("not theirs")

// check returns nil if the bundle is the witness's word about the subject.
func (w *witness) check(b *bundle.Bundle, s Subject, log bool, o Options) error {
	sum, err := hex.DecodeString(s.Index.Encoded())
	if err != nil || s.Index.Algorithm() != digest.SHA256 {
		return fmt.Errorf("digest %s: expected sha256:…", s.Index)
	}
	about := verify.WithArtifactDigest("sha256", sum)
	var result *verify.VerificationResult
	if w.key != nil {
		// First without the log, to tell another's signature from one that is not in the log.
		material := keyMaterial{o.TrustedRoot, w.key.public}
		if result, err = run(b, material, verify.NewPolicy(about, verify.WithKey()), verify.WithNoObserverTimestamps()); err != nil {
			return w.foreign(b, material)
		}
		at, source := o.Time, "when it was seen"
		if o.TrustedRoot != nil {
			logged, lerr := run(b, material, verify.NewPolicy(about, verify.WithKey()), verify.WithTransparencyLog(1), verify.WithObserverTimestamps(1))
			if lerr == nil {
				at, source = earliest(logged, at), "when it was logged"
			} else if log {
				return fmt.Errorf("it is not in the transparency log: %w", lerr)
			}
		} else if log {
			return errors.New("the transparency log cannot be checked: there is no trusted root")
		}
		if !w.key.covers(at) {
			return fmt.Errorf("the key is valid from %s, and not %s, %s", w.key.window(), source, at.UTC().Format(time.RFC3339))
		}
	} else {
		if o.TrustedRoot == nil {
			if content, err := b.VerificationContent(); err != nil || content.Certificate() == nil {
				return errForeign
			}
			return errors.New("identities cannot be checked: there is no trusted root")
		}
		id, err := verify.NewShortCertificateIdentity(w.identity.issuer, "", w.identity.subject, w.identity.subjectPattern)
		if err != nil {
			return err
		}
		options := []verify.VerifierOption{verify.WithTransparencyLog(1), verify.WithObserverTimestamps(1)}
		if len(o.TrustedRoot.CTLogs()) > 0 {
			options = append(options, verify.WithSignedCertificateTimestamps(1))
		}
		if result, err = run(b, o.TrustedRoot, verify.NewPolicy(about, verify.WithCertificateIdentity(id)), options...); err != nil {
			return errForeign
		}
	}
	if w.builder == "" {
		return nil
	}
	builder, err := builderOf(result)
	if err != nil {
		return err
	}
	if builder != w.builder {
		return fmt.Errorf("its provenance names the builder %q; expected %q", builder, w.builder)
	}
	return nil
}

// foreign returns why a bundle is not the word of a key about the subject.
func (w *witness) foreign(b *bundle.Bundle, material keyMaterial) error {
	if _, err := run(b, material, verify.NewPolicy(verify.WithoutArtifactUnsafe(), verify.WithKey()), verify.WithNoObserverTimestamps()); err == nil {
		return errors.New("it is about another artifact")
	}
	content, err := b.VerificationContent()
	if err != nil || content.PublicKey() == nil {
		return errForeign
	}
	if hint, err := KeyHint(w.key.public); err != nil || content.PublicKey().Hint() != hint {
		return errForeign
	}
	return errors.New("the signature does not hold: it, or what was signed, has been changed")
}

// run verifies a bundle. A panic of a library over garbage is an error like others.
func run(b *bundle.Bundle, material root.TrustedMaterial, policy verify.PolicyBuilder, options ...verify.VerifierOption) (result *verify.VerificationResult, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("the bundle cannot be verified: %v", r)
		}
	}()
	v, err := verify.NewVerifier(material, options...)
	if err != nil {
		return nil, err
	}
	return v.Verify(b, policy)
}

// keyMaterial is a trusted root with one key in it.
type keyMaterial struct {
	root.TrustedMaterial
	public crypto.PublicKey
}

// PublicKeyVerifier returns the key's verifier, whatever the bundle's hint. Its validity is judged elsewhere.
func (m keyMaterial) PublicKeyVerifier(string) (root.TimeConstrainedVerifier, error) {
	v, err := signature.LoadDefaultVerifier(m.public)
	if err != nil {
		return nil, err
	}
	return root.NewExpiringKey(v, time.Time{}, time.Time{}), nil
}

// The rest of a trusted root is empty where there is none.
func (m keyMaterial) base() root.TrustedMaterial {
	if m.TrustedMaterial == nil {
		return &root.BaseTrustedMaterial{}
	}
	return m.TrustedMaterial
}

func (m keyMaterial) TimestampingAuthorities() []root.TimestampingAuthority {
	return m.base().TimestampingAuthorities()
}
func (m keyMaterial) FulcioCertificateAuthorities() []root.CertificateAuthority {
	return m.base().FulcioCertificateAuthorities()
}
func (m keyMaterial) RekorLogs() map[string]*root.TransparencyLog { return m.base().RekorLogs() }
func (m keyMaterial) CTLogs() map[string]*root.TransparencyLog    { return m.base().CTLogs() }

// earliest returns the earliest time that an observer vouches for, or otherwise.
func earliest(result *verify.VerificationResult, otherwise time.Time) time.Time {
	var t time.Time
	for _, ts := range result.VerifiedTimestamps {
		if t.IsZero() || ts.Timestamp.Before(t) {
			t = ts.Timestamp
		}
	}
	if t.IsZero() {
		return otherwise
	}
	return t
}

// builderOf returns the builder that verified SLSA provenance names (slsa.dev/provenance/v1).
func builderOf(result *verify.VerificationResult) (string, error) {
	if result.Statement == nil || result.Statement.GetPredicateType() != artifact.ProvenancePredicate {
		return "", errors.New("it is no SLSA provenance")
	}
	data, err := result.Statement.GetPredicate().MarshalJSON()
	if err != nil {
		return "", err
	}
	var p struct {
		BuildDefinition struct {
			BuildType string `json:"buildType"`
		} `json:"buildDefinition"`
		RunDetails struct {
			Builder struct {
				ID string `json:"id"`
			} `json:"builder"`
		} `json:"runDetails"`
	}
	if err := json.Unmarshal(data, &p); err != nil {
		return "", fmt.Errorf("its provenance cannot be read: %w", err)
	}
	if p.BuildDefinition.BuildType != artifact.BuildType {
		return "", fmt.Errorf("its provenance is of the build type %q; expected %q", p.BuildDefinition.BuildType, artifact.BuildType)
	}
	return p.RunDetails.Builder.ID, nil
}

// fingerprint names a public key: the SHA-256 of its DER form, in hexadecimal.
func fingerprint(public crypto.PublicKey) (string, error) {
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		return "", err
	}
	return digest.FromBytes(der).Encoded(), nil
}

// KeyHint returns by what a bundle names a public key: the SHA-256 of its DER form, in base64 (as cosign and sigstore-go have it).
func KeyHint(public crypto.PublicKey) (string, error) {
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(der)
	return base64.StdEncoding.EncodeToString(sum[:]), nil
}
