package sign_test

import (
	"crypto"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/enginery/enginery/trust"
	"github.com/enginery/enginery/trust/sign"
	"github.com/opencontainers/go-digest"
	"github.com/sigstore/sigstore/pkg/cryptoutils"
)

func password(p string) func() ([]byte, error) {
	return func() ([]byte, error) { return []byte(p), nil }
}

// A key pair is written once, encrypted, and opened by its file or by a variable, with its password.
func TestKey(t *testing.T) {
	name := filepath.Join(t.TempDir(), "me")
	if err := sign.WriteKey(name, []byte("secret")); err != nil {
		t.Fatal(err)
	}
	if err := sign.WriteKey(name, []byte("other")); !errors.Is(err, os.ErrExist) {
		t.Errorf("overwrote a key: %v", err)
	}
	if err := os.Rename(name+".key", name+".away"); err != nil {
		t.Fatal(err)
	}
	if err := sign.WriteKey(name, []byte("other")); !errors.Is(err, os.ErrExist) {
		t.Errorf("beside another's public key: %v", err)
	}
	if _, err := os.Stat(name + ".key"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a private key is left beside another's public key: %v", err)
	}
	if err := os.Rename(name+".away", name+".key"); err != nil {
		t.Fatal(err)
	}
	private, err := os.ReadFile(name + ".key")
	if err != nil || !strings.HasPrefix(string(private), "-----BEGIN ENCRYPTED SIGSTORE PRIVATE KEY-----") {
		t.Errorf("the private key is\n%.60s… %v", private, err)
	}
	if info, err := os.Stat(name + ".key"); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the private key's mode is %v, %v", info.Mode(), err)
	}
	text, err := os.ReadFile(name + ".pub")
	if err != nil {
		t.Fatal(err)
	}
	public, err := cryptoutils.UnmarshalPEMToPublicKey(text)
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("TEST_SIGN_KEY", string(private))
	for _, ref := range []string{name + ".key", "env://TEST_SIGN_KEY"} {
		s, err := sign.OpenKey(t.Context(), ref, password("secret"))
		if err != nil {
			t.Fatalf("%s: %v", ref, err)
		}
		if k, ok := s.PublicKey().(interface{ Equal(crypto.PublicKey) bool }); !ok || !k.Equal(public) {
			t.Errorf("%s: the public key is another", ref)
		}
		if _, err := s.Key(); err != nil {
			t.Errorf("%s: %v", ref, err)
		}
		index := digest.FromString("index")
		b, err := s.Sign(t.Context(), index)
		if err != nil {
			t.Fatal(err)
		}
		evidence := []trust.Evidence{{Bundle: b}}
		if !trust.Vouched(public, index, trust.SignPredicate, evidence) || evidence[0].Predicate() != trust.SignPredicate {
			t.Errorf("%s: it has not vouched", ref)
		}
		if trust.Vouched(public, digest.FromString("another"), trust.SignPredicate, evidence) {
			t.Errorf("%s: it has vouched for another", ref)
		}
	}
	for ref, want := range map[string]string{
		name + ".none":        "release:key",
		name + ".pub":         "opening the private key",
		"env://TEST_SIGN_NOT": "opening the private key",
		"nokms://x":           "opening the private key",
	} {
		if _, err := sign.OpenKey(t.Context(), ref, password("secret")); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", ref, err)
		}
	}
	if _, err := sign.OpenKey(t.Context(), name+".key", password("wrong")); err == nil || !strings.Contains(err.Error(), "the password is another") {
		t.Errorf("with a wrong password: %v", err)
	}
}

// Without a key, and without somebody who vouches for an identity, nothing is signed; a key that lives for one signature serves no other format.
func TestKeyless(t *testing.T) {
	for _, name := range []string{"SIGSTORE_ID_TOKEN", "ACTIONS_ID_TOKEN_REQUEST_TOKEN", "ACTIONS_ID_TOKEN_REQUEST_URL"} {
		t.Setenv(name, "")
		os.Unsetenv(name)
	}
	if _, err := sign.Open(t.Context(), sign.KeylessRef, sign.Public); err == nil || !strings.Contains(err.Error(), "nothing here vouches for an identity") {
		t.Errorf("keyless in nobody's name: %v", err)
	}
	if _, err := sign.Keyless("token", sign.Services{}); err == nil {
		t.Error("keyless without Fulcio")
	}
	s, err := sign.Keyless("token", sign.Services{Fulcio: "http://127.0.0.1:1", Rekor: "http://127.0.0.1:1"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Key(); err == nil || s.PublicKey() != nil {
		t.Errorf("it has a key that stays: %v", err)
	}
	if _, err := s.Sign(t.Context(), digest.FromString("index")); err == nil {
		t.Error("signed without Fulcio")
	}
}
