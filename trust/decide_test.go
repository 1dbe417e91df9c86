package trust_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/enginery/enginery/artifact"
	"github.com/enginery/enginery/internal/sigstoretest"
	"github.com/enginery/enginery/trust"
	"github.com/enginery/enginery/trust/sign"
	"github.com/opencontainers/go-digest"
	"github.com/sigstore/sigstore-go/pkg/root"
)

var (
	index = digest.FromString("a version's index")
	other = digest.FromString("another's")
	noon  = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
)

// party is somebody with a key.
type party struct {
	*sign.Signer
	public string
}

func newParty(t testing.TB) party {
	s, public := keyPair(t)
	return party{s, public}
}

func (p party) sign(t testing.TB, d digest.Digest) trust.Evidence {
	t.Helper()
	b, err := p.Sign(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	return trust.Evidence{Digest: digest.FromBytes(b), Bundle: b}
}

func provenance(d digest.Digest, builder, buildType string) []byte {
	b, _ := json.Marshal(map[string]any{
		"_type":         "https://in-toto.io/Statement/v1",
		"subject":       []any{map[string]any{"name": "agoric-upgrade-18", "digest": map[string]string{"sha256": d.Encoded()}}},
		"predicateType": artifact.ProvenancePredicate,
		"predicate": map[string]any{
			"buildDefinition": map[string]any{"buildType": buildType, "externalParameters": map[string]any{}},
			"runDetails":      map[string]any{"builder": map[string]any{"id": builder}},
		},
	})
	return b
}

func (p party) attest(t testing.TB, d digest.Digest, builder string) trust.Evidence {
	t.Helper()
	return p.statement(t, provenance(d, builder, artifact.BuildType))
}

func (p party) statement(t testing.TB, statement []byte) trust.Evidence {
	t.Helper()
	b, err := p.Attest(t.Context(), statement)
	if err != nil {
		t.Fatal(err)
	}
	return trust.Evidence{Digest: digest.FromBytes(b), Bundle: b}
}

// splice puts another payload into a bundle.
func splice(t testing.TB, bundle, payload []byte) []byte {
	t.Helper()
	var b map[string]any
	if err := json.Unmarshal(bundle, &b); err != nil {
		t.Fatal(err)
	}
	b["dsseEnvelope"].(map[string]any)["payload"] = payload
	spliced, err := json.Marshal(b)
	if err != nil {
		t.Fatal(err)
	}
	return spliced
}

// policyOf returns a policy of a release key and three rebuilders, of whom two must agree. extra follows.
func policyOf(t testing.TB, release, alice, bob, carol party, keyLines, extra string) *trust.Policy {
	t.Helper()
	var b strings.Builder
	b.WriteString("schema = 1\n")
	for _, k := range []struct {
		name string
		p    party
	}{{"release", release}, {"alice-key", alice}, {"bob-key", bob}, {"carol-key", carol}} {
		fmt.Fprintf(&b, "[[key]]\nname = %q\npublic = \"\"\"%s\"\"\"\n", k.name, k.p.public)
		if k.name == "release" {
			b.WriteString(keyLines)
		}
	}
	for _, name := range []string{"alice", "bob", "carol"} {
		fmt.Fprintf(&b, "[[rebuilder]]\nname = %q\nbuilder = \"https://%s.example\"\nkey = \"%s-key\"\n", name, name, name)
	}
	b.WriteString("[default]\nsigners = [\"release\"]\nrebuilders = [\"alice\", \"bob\", \"carol\"]\nrebuilds = 2\n" + extra)
	p, err := trust.ParsePolicy("policy.toml", []byte(b.String()), nil)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestDecide(t *testing.T) {
	release, alice, bob, carol, mallory := newParty(t), newParty(t), newParty(t), newParty(t), newParty(t)
	signature := release.sign(t, index)
	byAlice, byBob := alice.attest(t, index, "https://alice.example"), bob.attest(t, index, "https://bob.example")
	good := []trust.Evidence{signature, byAlice, byBob}
	garbage := trust.Evidence{Digest: "sha256:garbage", Bundle: []byte(`{"mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json"}`)}
	tampered := trust.Evidence{Digest: signature.Digest, Bundle: []byte(strings.Replace(string(signature.Bundle), `"payload":"e`, `"payload":"f`, 1))}
	if string(tampered.Bundle) == string(signature.Bundle) {
		t.Fatal("not tampered")
	}
	changed := trust.Evidence{Digest: byBob.Digest, Bundle: splice(t, byBob.Bundle, provenance(index, "https://bob.example", "https://x"))}
	seen := func(e trust.Evidence, at string) trust.Evidence {
		var err error
		if e.Seen, err = time.Parse(time.RFC3339, at); err != nil {
			t.Fatal(err)
		}
		return e
	}
	plain := policyOf(t, release, alice, bob, carol, "", "")
	for _, test := range []struct {
		name     string
		policy   *trust.Policy
		subject  trust.Subject
		evidence []trust.Evidence
		problem  string // empty: trusted
	}{
		{"good", plain, trust.Subject{}, good, ""},
		{"good among garbage", plain, trust.Subject{}, append([]trust.Evidence{garbage, tampered, mallory.sign(t, index), mallory.attest(t, index, "https://alice.example")}, good...), ""},
		{"nothing", plain, trust.Subject{}, nil, "release signature: expected 1 of release (policy, default); found nobody"},
		{"no release signature", plain, trust.Subject{}, []trust.Evidence{byAlice, byBob}, "release signature: expected"},
		{"one rebuilder", plain, trust.Subject{}, []trust.Evidence{signature, byAlice}, "rebuilders: expected 2 of alice, bob, carol (policy, default); found alice"},
		{"one rebuilder twice", plain, trust.Subject{}, []trust.Evidence{signature, byAlice, byAlice, alice.attest(t, index, "https://alice.example")}, "found alice"},
		{"one rebuilder in two names", plain, trust.Subject{}, []trust.Evidence{signature, byAlice, alice.attest(t, index, "https://bob.example")}, `its provenance names the builder "https://bob.example"; expected "https://alice.example"`},
		{"a foreign key", plain, trust.Subject{}, []trust.Evidence{mallory.sign(t, index), byAlice, byBob}, "signed by none of those that the policy names"},
		{"a signature of another", plain, trust.Subject{}, []trust.Evidence{release.sign(t, other), byAlice, byBob}, "about another artifact"},
		{"rebuilt another", plain, trust.Subject{}, []trust.Evidence{signature, byAlice, bob.attest(t, other, "https://bob.example")}, "about another artifact"},
		{"another build type", plain, trust.Subject{}, []trust.Evidence{signature, byAlice, bob.statement(t, provenance(index, "https://bob.example", "https://x"))}, "is of the build type"},
		{"tampered", plain, trust.Subject{}, []trust.Evidence{tampered, byAlice, byBob}, "release signature: expected"},
		{"a rebuilder's word is no release signature", plain, trust.Subject{}, []trust.Evidence{byAlice, byBob, carol.sign(t, index)}, "release signature: expected"},
		{"a release key's word is no rebuild", plain, trust.Subject{}, []trust.Evidence{signature, byAlice, release.attest(t, index, "https://bob.example")}, "rebuilders: expected"},
		{"revoked", policyOf(t, release, alice, bob, carol, "", fmt.Sprintf("[[revoked]]\ndigest = %q\nreason = \"bad compiler\"\n", index)), trust.Subject{}, good, "revoked: bad compiler"},
		{"another is revoked", policyOf(t, release, alice, bob, carol, "", fmt.Sprintf("[[revoked]]\ndigest = %q\nreason = \"bad compiler\"\n", other)), trust.Subject{}, good, ""},
		{"an expired key", policyOf(t, release, alice, bob, carol, "until = 2026-11-01T00:00:00Z\n", ""), trust.Subject{}, good, "the key is valid from … to 2026-11-01T00:00:00Z, and not when it was seen, 2026-11-23T12:00:00Z"},
		{"an expired key, seen before", policyOf(t, release, alice, bob, carol, "until = 2026-11-01T00:00:00Z\n", ""), trust.Subject{}, []trust.Evidence{seen(signature, "2026-10-31T23:59:59Z"), byAlice, byBob}, ""},
		{"an expired key, seen since", policyOf(t, release, alice, bob, carol, "until = 2026-11-01T00:00:00Z\n", ""), trust.Subject{}, []trust.Evidence{seen(signature, "2026-11-01T00:00:00Z"), byAlice, byBob}, "and not when it was seen, 2026-11-01T00:00:00Z"},
		{"seen tomorrow", policyOf(t, release, alice, bob, carol, "from = 2026-12-01T00:00:00Z\n", ""), trust.Subject{}, []trust.Evidence{seen(signature, "2026-12-02T00:00:00Z"), byAlice, byBob}, "and not when it was seen, 2026-11-23T12:00:00Z"},
		{"unreadable", plain, trust.Subject{}, []trust.Evidence{signature, byAlice, {Digest: "sha256:x", Problem: "it is damaged"}}, "found alice\n    sha256:x: it is damaged"},
		{"another payload", plain, trust.Subject{}, []trust.Evidence{signature, byAlice, changed}, "bob: the signature does not hold: it, or what was signed, has been changed"},
		{"a key of tomorrow", policyOf(t, release, alice, bob, carol, "from = 2026-12-01T00:00:00Z\n", ""), trust.Subject{}, good, "the key is valid from 2026-12-01T00:00:00Z to …"},
		{"a key of today", policyOf(t, release, alice, bob, carol, "from = 2026-11-01T00:00:00Z\nuntil = 2026-12-01T00:00:00Z\n", ""), trust.Subject{}, good, ""},
		{"a log without a trusted root", policyOf(t, release, alice, bob, carol, "", "log = true\n"), trust.Subject{}, good, "the transparency log cannot be checked: there is no trusted root"},
		{"a channel asks less", policyOf(t, release, alice, bob, carol, "", "[channel.legacy]\nsigners = [\"release\"]\n"), trust.Subject{Channel: "legacy"}, good[:1], ""},
		{"not that channel", policyOf(t, release, alice, bob, carol, "", "[channel.legacy]\nsigners = [\"release\"]\n"), trust.Subject{Channel: "current"}, good[:1], "rebuilders: expected"},
		{"a version asks more", policyOf(t, release, alice, bob, carol, "", "[version.agoric-upgrade-18]\nsigners = [\"release\", \"carol-key\"]\nsignatures = 2\n"), trust.Subject{}, good, "release signature: expected 2 of release, carol-key (policy, version.agoric-upgrade-18); found release"},
		{"a version asks more and gets it", policyOf(t, release, alice, bob, carol, "", "[version.agoric-upgrade-18]\nsigners = [\"release\", \"carol-key\"]\nsignatures = 2\n"), trust.Subject{}, append(good, carol.sign(t, index)), ""},
	} {
		test.subject.Version, test.subject.Index = "agoric-upgrade-18", index
		d := test.policy.Decide(test.subject, test.evidence, trust.Options{Time: noon})
		err := d.Err()
		var refused *trust.RefusedError
		switch {
		case test.problem == "" && (err != nil || !d.OK):
			t.Errorf("%s: %v", test.name, err)
		case test.problem != "" && (!errors.As(err, &refused) || d.OK || !strings.Contains(err.Error(), test.problem)):
			t.Errorf("%s: %v; want %q", test.name, err, test.problem)
		}
		if again := test.policy.Decide(test.subject, d.Evidence(), trust.Options{Time: noon}); again.OK != d.OK || len(d.Evidence()) > 3 {
			t.Errorf("%s: by what counted, %d, it is %v", test.name, len(d.Evidence()), again.Err())
		}
		var table strings.Builder
		if err := d.WriteTable(&table); err != nil || strings.Contains(table.String(), "NOT TRUSTED") == d.OK {
			t.Errorf("%s: %v\n%s", test.name, err, &table)
		}
	}
}

// Identities that Fulcio certifies, and the transparency log, offline by sigstore-go's virtual sigstore.
func TestKeyless(t *testing.T) {
	const issuer, subject = "https://token.issuer.example", "https://github.com/enginery/enginery/.github/workflows/release.yml@refs/tags/v1"
	sigstore, elsewhere := sigstoretest.New(t), sigstoretest.New(t)
	statement := func(predicate string) []byte {
		b, _ := json.Marshal(map[string]any{
			"_type": "https://in-toto.io/Statement/v1", "predicateType": predicate,
			"subject": []any{map[string]any{"digest": map[string]string{"sha256": index.Encoded()}}},
		})
		return b
	}
	policy, err := trust.ParsePolicy("policy.toml", []byte(fmt.Sprintf(`schema = 1
[[identity]]
name = "workflow"
issuer = %q
subject-pattern = '^https://github\.com/enginery/enginery/\.github/workflows/release\.yml@refs/tags/v[0-9.]+$'
[default]
signers = ["workflow"]
log = true
`, issuer)), nil)
	if err != nil {
		t.Fatal(err)
	}
	bundleOf := func(s sigstoretest.Sigstore, subject, issuer string) trust.Evidence {
		t.Helper()
		b, err := s.Bundle(subject, issuer, statement("https://sigstore.dev/cosign/sign/v1"))
		if err != nil {
			t.Fatal(err)
		}
		return trust.Evidence{Digest: digest.FromBytes(b), Bundle: b}
	}
	for _, test := range []struct {
		name     string
		evidence trust.Evidence
		root     root.TrustedMaterial
		problem  string
	}{
		{"good", bundleOf(sigstore, subject, issuer), sigstore, ""},
		{"another workflow", bundleOf(sigstore, strings.Replace(subject, "release", "test", 1), issuer), sigstore, "signed by none"},
		{"another repository", bundleOf(sigstore, strings.Replace(subject, "enginery/", "mallory/", 1), issuer), sigstore, "signed by none"},
		{"another issuer", bundleOf(sigstore, subject, "https://issuer.example"), sigstore, "signed by none"},
		{"another sigstore", bundleOf(elsewhere, subject, issuer), sigstore, "signed by none"},
		{"no trusted root", bundleOf(sigstore, subject, issuer), nil, "identities cannot be checked: there is no trusted root"},
	} {
		o := trust.Options{Time: noon, TrustedRoot: test.root}
		err := policy.Decide(trust.Subject{Version: "agoric-upgrade-18", Index: index}, []trust.Evidence{test.evidence}, o).Err()
		switch {
		case test.problem == "" && err != nil:
			t.Errorf("%s: %v", test.name, err)
		case test.problem != "" && (err == nil || !strings.Contains(err.Error(), test.problem)):
			t.Errorf("%s: %v; want %q", test.name, err, test.problem)
		}
	}
}

func FuzzDecide(f *testing.F) {
	release, alice, bob, carol := newParty(f), newParty(f), newParty(f), newParty(f)
	p := policyOf(f, release, alice, bob, carol, "", "")
	f.Add(release.sign(f, index).Bundle)
	f.Add([]byte(`{"mediaType":"application/vnd.dev.sigstore.bundle.v0.3+json","dsseEnvelope":{"payload":"e30=","payloadType":"application/vnd.in-toto+json","signatures":[{}]},"verificationMaterial":{"publicKey":{}}}`))
	f.Fuzz(func(t *testing.T, bundle []byte) {
		d := p.Decide(trust.Subject{Version: "v", Index: index}, []trust.Evidence{{Digest: index, Bundle: bundle}}, trust.Options{Time: noon})
		if d.OK {
			t.Errorf("one bundle is enough: %s", bundle)
		}
	})
}
