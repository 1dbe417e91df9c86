// Package trust says who vouches for a version: it decides by a policy whether enough of those who must have done so have. Package sign below it
// makes what it decides about.
//
// What is signed is the digest of a version's index. A release signature and a rebuilder's attestation are in-toto statements in sigstore
// bundles (v0.3), attached to the index as OCI referrers, as cosign has them: cosign accepts ours, and we accept cosign's.
package trust

import (
	"crypto"
	"crypto/sha256"
	"fmt"
	"hash"
	"io/fs"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/enginery/enginery/internal/strict"
	"github.com/opencontainers/go-digest"
	"github.com/pelletier/go-toml/v2"
	"github.com/sigstore/sigstore/pkg/cryptoutils"
)

// PolicySchema is the version of the policy file's schema.
const PolicySchema = 1

// Policy says who must have vouched for a version.
type Policy struct {
	Sources []string // where versions come from, in order: see repository.Open
	Index   *Index   // where the signed release index is; nil if there is none

	digest     digest.Digest
	keys       map[string]*key
	identities map[string]*identity
	rebuilders map[string]*rebuilder
	rules      map[string]*rule // "", "channel.NAME", "version.ID"
	revoked    map[digest.Digest]string
}

// Index says how a node gets to know new versions.
type Index struct {
	Root string // the release index's first root of trust: a TUF root.json, as text
}

// Revocation says that nobody's word counts for an index any more.
type Revocation struct {
	Digest digest.Digest // of a version's index
	Reason string
}

type key struct {
	name        string
	public      crypto.PublicKey
	from, until time.Time // zero: no limit
}

// covers reports whether t is in the key's validity window.
func (k *key) covers(t time.Time) bool {
	return (k.from.IsZero() || !t.Before(k.from)) && (k.until.IsZero() || t.Before(k.until))
}

// window describes the key's validity.
func (k *key) window() string {
	show := func(t time.Time) string {
		if t.IsZero() {
			return "…"
		}
		return t.UTC().Format(time.RFC3339)
	}
	return show(k.from) + " to " + show(k.until)
}

type identity struct {
	name                    string
	issuer                  string
	subject, subjectPattern string
}

type rebuilder struct {
	name     string
	builder  string // the builder's URI in the provenance
	key      *key
	identity *identity
}

type rule struct {
	signers    []string // names of keys or identities
	signatures int      // how many of them
	rebuilders []*rebuilder
	rebuilds   int
	log        bool
}

// The file.
type (
	policyFile struct {
		Schema    int                 `toml:"schema"`
		Sources   []string            `toml:"sources"`
		Index     *indexFile          `toml:"index"`
		Key       []keyFile           `toml:"key"`
		Identity  []identityFile      `toml:"identity"`
		Rebuilder []rebuilderFile     `toml:"rebuilder"`
		Default   *ruleFile           `toml:"default"`
		Channel   map[string]ruleFile `toml:"channel"`
		Version   map[string]ruleFile `toml:"version"`
		Revoked   []revokedFile       `toml:"revoked"`
	}
	indexFile struct {
		Root     string `toml:"root"`
		RootFile string `toml:"root-file"`
	}
	keyFile struct {
		Name   string    `toml:"name"`
		Public string    `toml:"public"`
		File   string    `toml:"file"`
		From   time.Time `toml:"from"`
		Until  time.Time `toml:"until"`
	}
	identityFile struct {
		Name           string `toml:"name"`
		Issuer         string `toml:"issuer"`
		Subject        string `toml:"subject"`
		SubjectPattern string `toml:"subject-pattern"`
	}
	rebuilderFile struct {
		Name     string `toml:"name"`
		Builder  string `toml:"builder"`
		Key      string `toml:"key"`
		Identity string `toml:"identity"`
	}
	ruleFile struct {
		Signers    []string `toml:"signers"`
		Signatures *int     `toml:"signatures"`
		Rebuilders []string `toml:"rebuilders"`
		Rebuilds   int      `toml:"rebuilds"`
		Log        bool     `toml:"log"`
	}
	revokedFile struct {
		Digest string `toml:"digest"`
		Reason string `toml:"reason"`
	}
)

var namePattern = regexp.MustCompile(`^[a-z0-9][a-z0-9.-]*$`)

// ParsePolicy parses a policy file. Files that it names are taken from files, which may be nil if it names none.
// An error names the file and line.
func ParsePolicy(file string, data []byte, files fs.FS) (*Policy, error) {
	var f policyFile
	if err := strict.Decode(file, data, &f); err != nil {
		return nil, err
	}
	p := &parser{file: file, data: data, files: files, policy: &Policy{
		Sources:    f.Sources,
		digest:     digest.FromBytes(data),
		keys:       make(map[string]*key),
		identities: make(map[string]*identity),
		rebuilders: make(map[string]*rebuilder),
		rules:      make(map[string]*rule),
		revoked:    make(map[digest.Digest]string),
	}}
	if err := p.parse(&f); err != nil {
		return nil, err
	}
	if p.read != nil {
		fmt.Fprintf(p.read, "policy %d\n%s", len(data), data)
		p.policy.digest = digest.NewDigest(digest.SHA256, p.read)
	}
	return p.policy, nil
}

// Digest returns the digest of the policy, with the files that it names: decisions by the same one are the same.
func (p *Policy) Digest() digest.Digest { return p.digest }

type parser struct {
	file   string
	data   []byte
	files  fs.FS
	read   hash.Hash // of the files that were read; nil if none was
	policy *Policy
}

func (p *parser) errorf(key, format string, args ...any) error {
	return strict.Errorf(p.file, p.data, key, format, args...)
}

// content returns text that is given inline or in a file.
func (p *parser) content(where, inline, file string) ([]byte, error) {
	switch {
	case inline != "" && file != "":
		return nil, p.errorf(where, "it is given both here and in the file %s; one is enough", file)
	case inline != "":
		return []byte(inline), nil
	case file == "":
		return nil, p.errorf(where, "it is missing: expected text, or the name of a file")
	case p.files == nil:
		return nil, p.errorf(where, "the file %s cannot be read from here", file)
	}
	b, err := fs.ReadFile(p.files, file)
	if err != nil {
		return nil, p.errorf(where, "%v", err)
	}
	if p.read == nil {
		p.read = sha256.New()
	}
	fmt.Fprintf(p.read, "file %d\n%s", len(b), b)
	return b, nil
}

func (p *parser) name(where, name string) error {
	if !namePattern.MatchString(name) {
		return p.errorf(where, "name %q: expected lower-case letters, digits, dots and dashes", name)
	}
	if p.policy.keys[name] != nil || p.policy.identities[name] != nil {
		return p.errorf(where, "the name %s is taken", name)
	}
	return nil
}

func (p *parser) parse(f *policyFile) error {
	if f.Schema != PolicySchema {
		return p.errorf("schema", "schema is %d; expected %d", f.Schema, PolicySchema)
	}
	if f.Index != nil {
		root, err := p.content("index", f.Index.Root, f.Index.RootFile)
		if err != nil {
			return err
		}
		p.policy.Index = &Index{Root: string(root)}
	}
	fingerprints := make(map[string]string)
	for i, k := range f.Key {
		if err := p.key(fmt.Sprintf("key.%d", i), k, fingerprints); err != nil {
			return err
		}
	}
	for i, id := range f.Identity {
		if err := p.identity(fmt.Sprintf("identity.%d", i), id); err != nil {
			return err
		}
	}
	for i, r := range f.Rebuilder {
		if err := p.rebuilder(fmt.Sprintf("rebuilder.%d", i), r); err != nil {
			return err
		}
	}
	if f.Default == nil {
		return p.errorf("default", "the table [default] is missing: it says who must have signed a version of which nothing else is said")
	}
	rules := map[string]ruleFile{"": *f.Default}
	for name, r := range f.Channel {
		if name != "legacy" && name != "current" {
			return p.errorf("channel."+name, "there is no channel %q; expected legacy or current", name)
		}
		rules["channel."+name] = r
	}
	for name, r := range f.Version {
		rules["version."+name] = r
	}
	for _, name := range slices.Sorted(maps.Keys(rules)) {
		where := name
		if where == "" {
			where = "default"
		}
		r, err := p.rule(where, rules[name])
		if err != nil {
			return err
		}
		p.policy.rules[name] = r
	}
	revoked, err := revocations(p.file, p.data, f.Revoked)
	if err != nil {
		return err
	}
	for _, r := range revoked {
		p.policy.revoked[r.Digest] = r.Reason
	}
	return nil
}

func revocations(file string, data []byte, tables []revokedFile) ([]Revocation, error) {
	var revoked []Revocation
	for i, r := range tables {
		where := fmt.Sprintf("revoked.%d", i)
		d, err := digest.Parse(r.Digest)
		if err != nil {
			return nil, strict.Errorf(file, data, where+".digest", "digest %q: %v; expected sha256:…", r.Digest, err)
		}
		if r.Reason == "" {
			return nil, strict.Errorf(file, data, where, "the reason is missing: those who are refused will want to know")
		}
		revoked = append(revoked, Revocation{d, r.Reason})
	}
	return revoked, nil
}

// ParseRevocations parses a file that has the [[revoked]] tables of a policy, and nothing else.
func ParseRevocations(file string, data []byte) ([]Revocation, error) {
	var f struct {
		Revoked []revokedFile `toml:"revoked"`
	}
	if err := strict.Decode(file, data, &f); err != nil {
		return nil, err
	}
	return revocations(file, data, f.Revoked)
}

// FormatRevocations returns what ParseRevocations parses, sorted by digest.
func FormatRevocations(revoked []Revocation) ([]byte, error) {
	var f struct {
		Revoked []revokedFile `toml:"revoked"`
	}
	for _, r := range revoked {
		f.Revoked = append(f.Revoked, revokedFile{r.Digest.String(), r.Reason})
	}
	slices.SortFunc(f.Revoked, func(a, b revokedFile) int { return strings.Compare(a.Digest, b.Digest) })
	return toml.Marshal(f)
}

// Revoked reports whether the policy refuses a digest, whoever has signed it.
func (p *Policy) Revoked(d digest.Digest) bool {
	_, ok := p.revoked[d]
	return ok
}

// Revocations returns the digests that the policy refuses, sorted.
func (p *Policy) Revocations() []Revocation {
	var revoked []Revocation
	for _, d := range slices.Sorted(maps.Keys(p.revoked)) {
		revoked = append(revoked, Revocation{d, p.revoked[d]})
	}
	return revoked
}

// Revoke returns the policy with more digests that it refuses. It has another digest, unless it refuses them already.
func (p *Policy) Revoke(more ...Revocation) *Policy {
	q := *p
	q.revoked = maps.Clone(p.revoked)
	for _, r := range more {
		if _, ok := q.revoked[r.Digest]; !ok {
			q.revoked[r.Digest] = r.Reason
		}
	}
	if len(q.revoked) > len(p.revoked) {
		text := p.digest.String()
		for _, d := range slices.Sorted(maps.Keys(q.revoked)) {
			text += "\n" + d.String()
		}
		q.digest = digest.FromString(text)
	}
	return &q
}

func (p *parser) key(where string, f keyFile, fingerprints map[string]string) error {
	if err := p.name(where+".name", f.Name); err != nil {
		return err
	}
	text, err := p.content(where, f.Public, f.File)
	if err != nil {
		return err
	}
	public, err := cryptoutils.UnmarshalPEMToPublicKey(text)
	if err != nil {
		return p.errorf(where, "key %s is no public key in PEM, as in cosign.pub: %v", f.Name, err)
	}
	print, err := fingerprint(public)
	if err != nil {
		return p.errorf(where, "key %s: %v", f.Name, err)
	}
	if other, ok := fingerprints[print]; ok {
		return p.errorf(where, "the keys %s and %s are the same", other, f.Name)
	}
	fingerprints[print] = f.Name
	if !f.From.IsZero() && !f.Until.IsZero() && !f.From.Before(f.Until) {
		return p.errorf(where, "key %s is valid until before it is valid", f.Name)
	}
	p.policy.keys[f.Name] = &key{f.Name, public, f.From, f.Until}
	return nil
}

func (p *parser) identity(where string, f identityFile) error {
	if err := p.name(where+".name", f.Name); err != nil {
		return err
	}
	if f.Issuer == "" {
		return p.errorf(where, "identity %s: the issuer is missing", f.Name)
	}
	if (f.Subject == "") == (f.SubjectPattern == "") {
		return p.errorf(where, "identity %s: expected one of subject and subject-pattern", f.Name)
	}
	if f.SubjectPattern != "" {
		if !strings.HasPrefix(f.SubjectPattern, "^") || !strings.HasSuffix(f.SubjectPattern, "$") {
			return p.errorf(where+".subject-pattern", "identity %s: a pattern begins with ^ and ends with $, so that it is of the whole subject", f.Name)
		}
		if _, err := regexp.Compile(f.SubjectPattern); err != nil {
			return p.errorf(where+".subject-pattern", "identity %s: %v", f.Name, err)
		}
	}
	for _, other := range p.policy.identities {
		if other.issuer == f.Issuer && other.subject == f.Subject && other.subjectPattern == f.SubjectPattern {
			return p.errorf(where, "the identities %s and %s are the same", other.name, f.Name)
		}
	}
	p.policy.identities[f.Name] = &identity{f.Name, f.Issuer, f.Subject, f.SubjectPattern}
	return nil
}

func (p *parser) rebuilder(where string, f rebuilderFile) error {
	if !namePattern.MatchString(f.Name) {
		return p.errorf(where, "rebuilder %q: expected lower-case letters, digits, dots and dashes", f.Name)
	}
	if p.policy.rebuilders[f.Name] != nil {
		return p.errorf(where, "rebuilder %s is there twice", f.Name)
	}
	if f.Builder == "" {
		return p.errorf(where, "rebuilder %s: the builder is missing: the URI by which its provenance names it", f.Name)
	}
	r := &rebuilder{name: f.Name, builder: f.Builder, key: p.policy.keys[f.Key], identity: p.policy.identities[f.Identity]}
	if (f.Key == "") == (f.Identity == "") || r.key == nil && r.identity == nil {
		return p.errorf(where, "rebuilder %s: expected the name of a key or of an identity above", f.Name)
	}
	for _, other := range p.policy.rebuilders {
		if other.builder == r.builder || r.key != nil && other.key == r.key || r.identity != nil && other.identity == r.identity {
			return p.errorf(where, "the rebuilders %s and %s are one: they share a builder, key or identity", other.name, f.Name)
		}
	}
	p.policy.rebuilders[f.Name] = r
	return nil
}

func (p *parser) rule(where string, f ruleFile) (*rule, error) {
	r := &rule{signers: f.Signers, signatures: 1, rebuilds: f.Rebuilds, log: f.Log}
	if f.Signatures != nil {
		r.signatures = *f.Signatures
	}
	for i, name := range f.Signers {
		if p.policy.keys[name] == nil && p.policy.identities[name] == nil {
			return nil, p.errorf(where+".signers", "there is no key or identity %q", name)
		}
		if slices.Contains(f.Signers[:i], name) {
			return nil, p.errorf(where+".signers", "%s is there twice", name)
		}
	}
	if r.signatures < 1 || r.signatures > len(f.Signers) {
		return nil, p.errorf(where, "%d signatures are required of %d signers; expected 1 to %d", r.signatures, len(f.Signers), len(f.Signers))
	}
	for i, name := range f.Rebuilders {
		rb := p.policy.rebuilders[name]
		if rb == nil {
			return nil, p.errorf(where+".rebuilders", "there is no rebuilder %q", name)
		}
		if slices.Contains(f.Rebuilders[:i], name) {
			return nil, p.errorf(where+".rebuilders", "%s is there twice", name)
		}
		r.rebuilders = append(r.rebuilders, rb)
	}
	if r.rebuilds < 0 || r.rebuilds > len(r.rebuilders) {
		return nil, p.errorf(where, "%d rebuilds are required of %d rebuilders", r.rebuilds, len(r.rebuilders))
	}
	return r, nil
}

// rule returns what is required of a version, and by which table.
func (p *Policy) rule(s Subject) (*rule, string) {
	if r, ok := p.rules["version."+s.Version]; ok {
		return r, "version." + s.Version
	}
	if r, ok := p.rules["channel."+s.Channel]; ok && s.Channel != "" {
		return r, "channel." + s.Channel
	}
	return p.rules[""], "default"
}
