package trust_test

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/enginery/enginery/trust"
	"github.com/enginery/enginery/trust/sign"
)

func TestShippedPolicy(t *testing.T) {
	data, err := os.ReadFile("../manifests/policy.toml")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := trust.ParsePolicy("policy.toml", data, nil); err != nil {
		t.Error(err)
	}
}

// keyPair returns a new key pair, the public key as it stands in a policy.
func keyPair(t testing.TB) (*sign.Signer, string) {
	t.Helper()
	private, public, err := sign.GenerateKey([]byte("secret"))
	if err != nil {
		t.Fatal(err)
	}
	path := t.TempDir() + "/cosign.key"
	if err := os.WriteFile(path, private, 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := sign.OpenKey(t.Context(), path, func() ([]byte, error) { return []byte("secret"), nil })
	if err != nil {
		t.Fatal(err)
	}
	return s, string(public)
}

func TestParsePolicy(t *testing.T) {
	_, one := keyPair(t)
	_, two := keyPair(t)
	key := func(name, public string) string {
		return fmt.Sprintf("[[key]]\nname = %q\npublic = \"\"\"\n%s\"\"\"\n", name, public)
	}
	head := "schema = 1\n"
	both := head + key("one", one) + key("two", two)
	for _, test := range []struct {
		name, policy, err string
	}{
		{"whole", both + `[[identity]]
name = "workflow"
issuer = "https://issuer"
subject-pattern = "^https://x/.*$"
[[rebuilder]]
name = "alice"
builder = "https://alice"
key = "one"
[[rebuilder]]
name = "bob"
builder = "https://bob"
identity = "workflow"
[default]
signers = ["one", "workflow"]
signatures = 2
[channel.current]
signers = ["two"]
rebuilders = ["alice", "bob"]
rebuilds = 1
log = true
[version."agoric-upgrade-16"]
signers = ["one"]
[[revoked]]
digest = "sha256:` + strings.Repeat("0", 64) + `"
reason = "compromised"
`, ""},
		{"schema", "schema = 2\n", "policy.toml:1: schema is 2; expected 1"},
		{"unknown key", head + "signer = 1\n", "policy.toml:2:"},
		{"no default", both, "the table [default] is missing"},
		{"unknown signer", both + "[default]\nsigners = [\"three\"]\n", `policy.toml:19: there is no key or identity "three"`},
		{"nobody", both + "[default]\nsigners = []\n", "1 signatures are required of 0 signers"},
		{"none of one", both + "[default]\nsigners = [\"one\"]\nsignatures = 0\n", "0 signatures are required of 1 signers; expected 1 to 1"},
		{"too many", both + "[default]\nsigners = [\"one\"]\nsignatures = 2\n", "2 signatures are required of 1 signers"},
		{"twice", both + "[default]\nsigners = [\"one\", \"one\"]\nsignatures = 2\n", "one is there twice"},
		{"same key", head + key("one", one) + key("two", one), "the keys one and two are the same"},
		{"same name", head + key("one", one) + key("one", two), "the name one is taken"},
		{"no key", head + key("one", "x"), "no public key in PEM"},
		{"missing file", head + "[[key]]\nname = \"one\"\nfile = \"one.pub\"\n", "one.pub"},
		{"two rebuilders, one key", both + "[[rebuilder]]\nname = \"a\"\nbuilder = \"https://a\"\nkey = \"one\"\n[[rebuilder]]\nname = \"b\"\nbuilder = \"https://b\"\nkey = \"one\"\n", "the rebuilders a and b are one"},
		{"two rebuilders, one builder", both + "[[rebuilder]]\nname = \"a\"\nbuilder = \"https://a\"\nkey = \"one\"\n[[rebuilder]]\nname = \"b\"\nbuilder = \"https://a\"\nkey = \"two\"\n", "the rebuilders a and b are one"},
		{"open pattern", head + "[[identity]]\nname = \"i\"\nissuer = \"https://i\"\nsubject-pattern = \"https://x\"\n", "a pattern begins with ^ and ends with $"},
		{"two subjects", head + "[[identity]]\nname = \"i\"\nissuer = \"https://i\"\nsubject = \"x\"\nsubject-pattern = \"^x$\"\n", "expected one of subject and subject-pattern"},
		{"more rebuilds than rebuilders", both + "[default]\nsigners = [\"one\"]\nrebuilds = 1\n", "1 rebuilds are required of 0 rebuilders"},
		{"channel", both + "[default]\nsigners = [\"one\"]\n[channel.next]\nsigners = [\"one\"]\n", `there is no channel "next"`},
		{"revoked", both + "[default]\nsigners = [\"one\"]\n[[revoked]]\ndigest = \"abc\"\nreason = \"x\"\n", "expected sha256:"},
		{"no reason", both + "[default]\nsigners = [\"one\"]\n[[revoked]]\ndigest = \"sha256:" + strings.Repeat("0", 64) + "\"\n", "the reason is missing"},
		{"window", head + "[[key]]\nname = \"one\"\nfrom = 2027-01-01T00:00:00Z\nuntil = 2026-01-01T00:00:00Z\npublic = \"\"\"" + one + "\"\"\"\n", "valid until before it is valid"},
	} {
		_, err := trust.ParsePolicy("policy.toml", []byte(test.policy), fstest.MapFS{})
		switch {
		case test.err == "" && err != nil:
			t.Errorf("%s: %v", test.name, err)
		case test.err != "" && (err == nil || !strings.Contains(err.Error(), test.err)):
			t.Errorf("%s: %v; want %q", test.name, err, test.err)
		}
	}
}

// Another key under the same name is another policy.
func TestPolicyDigest(t *testing.T) {
	_, one := keyPair(t)
	_, two := keyPair(t)
	text := []byte("schema = 1\n[[key]]\nname = \"release\"\nfile = \"release.pub\"\n[default]\nsigners = [\"release\"]\n")
	digests := make(map[string]bool)
	for _, key := range []string{one, two, one} {
		p, err := trust.ParsePolicy("policy.toml", text, fstest.MapFS{"release.pub": {Data: []byte(key)}})
		if err != nil {
			t.Fatal(err)
		}
		digests[p.Digest().String()] = true
	}
	if len(digests) != 2 {
		t.Errorf("two policies have the digests %v", digests)
	}
}
