// Package sign signs versions and statements about them: with keys in cosign's form or in a KMS, or without a key in the name of an identity. What
// package trust decides about is made here.
package sign

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/enginery/enginery/artifact"
	"github.com/enginery/enginery/trust"
	"github.com/opencontainers/go-digest"
	"github.com/sigstore/cosign/v2/pkg/cosign"
	"github.com/sigstore/cosign/v2/pkg/cosign/env"
	cosignsignature "github.com/sigstore/cosign/v2/pkg/signature"
	protocommon "github.com/sigstore/protobuf-specs/gen/pb-go/common/v1"
	"github.com/sigstore/sigstore-go/pkg/root"
	sigstore "github.com/sigstore/sigstore-go/pkg/sign"
	"github.com/sigstore/sigstore/pkg/cryptoutils"
	"github.com/sigstore/sigstore/pkg/signature"
	signatureoptions "github.com/sigstore/sigstore/pkg/signature/options"
	"google.golang.org/protobuf/encoding/protojson"
)

// PasswordEnv is the environment variable that has the password of a private key, as for cosign.
const PasswordEnv = string(env.VariablePassword)

// GenerateKey makes a key pair: the private key in the encrypted form of cosign.key, the public key in PEM as cosign.pub.
func GenerateKey(password []byte) (private, public []byte, err error) {
	keys, err := cosign.GenerateKeyPair(func(bool) ([]byte, error) { return password, nil })
	if err != nil {
		return nil, nil, fmt.Errorf("making a key pair: %w", err)
	}
	return keys.PrivateBytes, keys.PublicBytes, nil
}

// Signer signs in somebody's name.
type Signer struct {
	keypair sigstore.Keypair
	options sigstore.BundleOptions
}

// OpenKey returns the signer of a private key: a file in the form of cosign.key, or a KMS reference or other URI as cosign takes them
// (awskms://, gcpkms://, azurekms://, hashivault://, k8s://, env://), of those KMS whose packages below sigstore/pkg/signature/kms the program
// links. password is asked for that of a file.
func OpenKey(ctx context.Context, ref string, password func() ([]byte, error)) (*Signer, error) {
	if !strings.Contains(ref, "://") {
		if _, err := os.Stat(ref); err != nil {
			return nil, fmt.Errorf("opening the private key: %w; make one with: go tool mage release:key NAME", err)
		}
	}
	sv, err := cosignsignature.SignerVerifierFromKeyRef(ctx, ref, func(bool) ([]byte, error) { return password() }, nil)
	if err != nil && strings.Contains(err.Error(), "decryption failed") { // theirs is no error of a type
		return nil, fmt.Errorf("opening the private key %s: the password is another: %w", ref, err)
	}
	if err != nil {
		return nil, fmt.Errorf("opening the private key %s: %w", ref, err)
	}
	k, err := newKeypair(sv)
	if err != nil {
		return nil, fmt.Errorf("opening the private key %s: %w", ref, err)
	}
	return &Signer{keypair: k}, nil
}

// Services are those of a sigstore deployment.
type Services struct {
	Fulcio, Rekor string // addresses; Rekor may be empty for a key
	TrustedRoot   root.TrustedMaterial
}

// Keyless returns a signer with a key that lives for one signature, for which Fulcio certifies the identity in an OIDC token.
func Keyless(token string, s Services) (*Signer, error) {
	k, err := sigstore.NewEphemeralKeypair(nil)
	if err != nil {
		return nil, err
	}
	if s.Fulcio == "" || s.Rekor == "" {
		return nil, errors.New("signing without a key needs the addresses of Fulcio and Rekor")
	}
	signer := &Signer{keypair: k, options: sigstore.BundleOptions{
		CertificateProvider:        sigstore.NewFulcio(&sigstore.FulcioOptions{BaseURL: s.Fulcio, Timeout: time.Minute, Retries: 2}),
		CertificateProviderOptions: &sigstore.CertificateProviderOptions{IDToken: token},
		TrustedRoot:                s.TrustedRoot,
	}}
	return signer.Logged(s), nil
}

// Logged returns a signer that also enters what it signs into a transparency log.
func (s *Signer) Logged(services Services) *Signer {
	logged := *s
	logged.options.TransparencyLogs = []sigstore.Transparency{sigstore.NewRekor(&sigstore.RekorOptions{BaseURL: services.Rekor, Timeout: 90 * time.Second, Retries: 2})}
	return &logged
}

// PublicKey returns the signer's public key, or nil if it has another one for each signature.
func (s *Signer) PublicKey() crypto.PublicKey {
	if s.options.CertificateProvider != nil {
		return nil
	}
	return s.keypair.GetPublicKey()
}

// Key returns what signs, for formats other than sigstore's. It is an error if the signer has another key for each signature.
func (s *Signer) Key() (signature.Signer, error) {
	if k, ok := s.keypair.(*keypair); ok {
		return k.sv, nil
	}
	return nil, errors.New("this takes a key that stays: expected a file or a KMS reference, not keyless")
}

// Sign signs the digest of a version's index and returns a sigstore bundle: the statement that cosign sign makes.
func (s *Signer) Sign(ctx context.Context, index digest.Digest) ([]byte, error) {
	statement, err := json.Marshal(map[string]any{
		"_type":         "https://in-toto.io/Statement/v1",
		"subject":       []any{map[string]any{"digest": map[string]string{index.Algorithm().String(): index.Encoded()}}},
		"predicateType": trust.SignPredicate,
	})
	if err != nil {
		return nil, err
	}
	return s.Attest(ctx, statement)
}

// Attest signs an in-toto statement and returns a sigstore bundle.
func (s *Signer) Attest(ctx context.Context, statement []byte) ([]byte, error) {
	options := s.options
	options.Context = ctx
	b, err := sigstore.Bundle(&sigstore.DSSEData{Data: statement, PayloadType: artifact.StatementType}, s.keypair, options)
	if err != nil {
		return nil, fmt.Errorf("signing: %w", err)
	}
	return protojson.Marshal(b)
}

// keypair is a cosign key as sigstore-go signs with it.
type keypair struct {
	sv     signature.SignerVerifier
	public crypto.PublicKey
	alg    signature.AlgorithmDetails
}

func newKeypair(sv signature.SignerVerifier) (*keypair, error) {
	public, err := sv.PublicKey()
	if err != nil {
		return nil, err
	}
	alg, err := signature.GetDefaultAlgorithmDetails(public, *cosign.GetDefaultLoadOptions(nil)...)
	if err != nil {
		return nil, err
	}
	return &keypair{sv, public, alg}, nil
}

func (k *keypair) GetHashAlgorithm() protocommon.HashAlgorithm { return k.alg.GetProtoHashType() }
func (k *keypair) GetSigningAlgorithm() protocommon.PublicKeyDetails {
	return k.alg.GetSignatureAlgorithm()
}
func (k *keypair) GetPublicKey() crypto.PublicKey { return k.public }

func (k *keypair) GetHint() []byte {
	h, err := trust.KeyHint(k.public)
	if err != nil {
		return nil
	}
	return []byte(h)
}

func (k *keypair) GetKeyAlgorithm() string {
	switch k.public.(type) {
	case *ecdsa.PublicKey:
		return "ECDSA"
	case *rsa.PublicKey:
		return "RSA"
	case ed25519.PublicKey:
		return "ED25519"
	}
	return ""
}

func (k *keypair) GetPublicKeyPem() (string, error) {
	b, err := cryptoutils.MarshalPublicKeyToPEM(k.public)
	return string(b), err
}

func (k *keypair) SignData(ctx context.Context, data []byte) (sig, sum []byte, err error) {
	h := k.alg.GetHashType().New()
	h.Write(data)
	sum = h.Sum(nil)
	sig, err = k.sv.SignMessage(bytes.NewReader(data), signatureoptions.WithContext(ctx), signatureoptions.WithDigest(sum))
	return sig, sum, err
}

// WriteKey makes a key pair and writes it to NAME.key and NAME.pub. It overwrites nothing, and writes both or neither.
func WriteKey(name string, password []byte) (err error) {
	private, public, err := GenerateKey(password)
	if err != nil {
		return err
	}
	var made []string
	defer func() {
		if err != nil {
			for _, path := range made {
				os.Remove(path)
			}
		}
	}()
	for _, f := range []struct {
		path    string
		content []byte
		mode    os.FileMode
	}{{name + ".key", private, 0o600}, {name + ".pub", public, 0o644}} {
		file, err := os.OpenFile(f.path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, f.mode)
		if err != nil {
			return fmt.Errorf("writing a key pair: %w; choose another name", err)
		}
		made = append(made, f.path)
		_, err = file.Write(f.content)
		if err := errors.Join(err, file.Sync(), file.Close()); err != nil {
			return fmt.Errorf("writing a key pair: %w", err)
		}
	}
	return nil
}
