package trust_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/enginery/enginery/internal/sigstoretest"
	"github.com/enginery/enginery/manifests"
	"github.com/enginery/enginery/trust"
)

func TestTrustedRoot(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "trusted_root.json")
	sigstore := sigstoretest.New(t)
	data, err := sigstore.TrustedRoot()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, data, 0o644); err != nil {
		t.Fatal(err)
	}
	r, err := trust.TrustedRoot(t.Context(), file, dir)
	if err != nil || len(r.FulcioCertificateAuthorities()) != len(sigstore.FulcioCertificateAuthorities()) || len(r.RekorLogs()) != 1 {
		t.Errorf("%v, %v", r, err)
	}
	if err := os.WriteFile(file, []byte("{}"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := trust.TrustedRoot(t.Context(), file, dir); err == nil || !strings.Contains(err.Error(), file) {
		t.Errorf("a file that is none: %v", err)
	}
}

func TestNeedsTrustedRoot(t *testing.T) {
	shipped, err := trust.ParsePolicy("policy.toml", manifests.Policy, nil)
	if err != nil {
		t.Fatal(err)
	}
	if !shipped.NeedsTrustedRoot() {
		t.Error("the policy that ships, which names an identity, needs none")
	}
	release := newParty(t)
	for text, want := range map[string]bool{"": false, "log = true": true} {
		policy, err := trust.FormatPolicy(nil, map[string]string{"release": release.public})
		if err != nil {
			t.Fatal(err)
		}
		p, err := trust.ParsePolicy("policy.toml", append(policy, text...), nil)
		if err != nil {
			t.Fatal(err)
		}
		if p.NeedsTrustedRoot() != want {
			t.Errorf("%q: got %v", text, !want)
		}
	}
	if _, err := trust.FormatPolicy(nil, map[string]string{"release": "garbage"}); err == nil {
		t.Error("a policy with a key that is none")
	}
}
