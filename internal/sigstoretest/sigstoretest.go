// Package sigstoretest gives tests a sigstore of their own: certificates, signatures and log entries, offline, by sigstore-go's virtual one.
package sigstoretest

import (
	"encoding/base64"
	"encoding/hex"
	"testing"
	"time"

	protobundle "github.com/sigstore/protobuf-specs/gen/pb-go/bundle/v1"
	protocommon "github.com/sigstore/protobuf-specs/gen/pb-go/common/v1"
	protodsse "github.com/sigstore/protobuf-specs/gen/pb-go/dsse"
	protorekor "github.com/sigstore/protobuf-specs/gen/pb-go/rekor/v1"
	"github.com/sigstore/sigstore-go/pkg/root"
	"github.com/sigstore/sigstore-go/pkg/testing/ca"
	"github.com/sigstore/sigstore-go/pkg/tlog"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/enginery/enginery/trust"
)

// Sigstore is a virtual sigstore that has no certificate transparency log: its certificates carry no timestamps of one.
type Sigstore struct{ *ca.VirtualSigstore }

// New returns a sigstore.
func New(t testing.TB) Sigstore {
	t.Helper()
	s, err := ca.NewVirtualSigstore()
	if err != nil {
		t.Fatal(err)
	}
	return Sigstore{s}
}

// CTLogs returns none.
func (Sigstore) CTLogs() map[string]*root.TransparencyLog { return nil }

// TrustedRoot returns the trusted_root.json of a sigstore.
func (s Sigstore) TrustedRoot() ([]byte, error) {
	logs := s.RekorLogs()
	for id, log := range logs { // whose own ID is the text of it
		var err error
		if log.ID, err = hex.DecodeString(id); err != nil {
			return nil, err
		}
	}
	r, err := root.NewTrustedRoot(root.TrustedRootMediaType01, s.FulcioCertificateAuthorities(), nil, nil, logs)
	if err != nil {
		return nil, err
	}
	return r.MarshalJSON()
}

// Bundle returns the bundle of a statement that an identity has signed.
func (s Sigstore) Bundle(subject, issuer string, statement []byte) ([]byte, error) {
	entity, err := s.AttestAtTime(subject, issuer, statement, time.Now().Add(5*time.Minute), true)
	if err != nil {
		return nil, err
	}
	content, err := entity.VerificationContent()
	if err != nil {
		return nil, err
	}
	signed, err := entity.SignatureContent()
	if err != nil {
		return nil, err
	}
	envelope := signed.EnvelopeContent().RawEnvelope()
	payload, err := envelope.DecodeB64Payload()
	if err != nil {
		return nil, err
	}
	sig, err := base64.StdEncoding.DecodeString(envelope.Signatures[0].Sig)
	if err != nil {
		return nil, err
	}
	entries, err := entity.TlogEntries()
	if err != nil {
		return nil, err
	}
	var log []*protorekor.TransparencyLogEntry
	for _, e := range entries {
		entry := e.TransparencyLogEntry()
		set, err := s.RekorSignPayload(tlog.RekorPayload{
			Body: base64.StdEncoding.EncodeToString(entry.CanonicalizedBody), IntegratedTime: entry.IntegratedTime,
			LogIndex: entry.LogIndex, LogID: hex.EncodeToString(entry.LogId.KeyId),
		})
		if err != nil {
			return nil, err
		}
		entry.InclusionPromise = &protorekor.InclusionPromise{SignedEntryTimestamp: set}
		entry.KindVersion = &protorekor.KindVersion{Kind: "dsse", Version: "0.0.1"}
		log = append(log, entry)
	}
	return protojson.Marshal(&protobundle.Bundle{
		MediaType: trust.BundleType,
		VerificationMaterial: &protobundle.VerificationMaterial{
			Content:     &protobundle.VerificationMaterial_Certificate{Certificate: &protocommon.X509Certificate{RawBytes: content.Certificate().Raw}},
			TlogEntries: log,
		},
		Content: &protobundle.Bundle_DsseEnvelope{DsseEnvelope: &protodsse.Envelope{
			Payload: payload, PayloadType: envelope.PayloadType, Signatures: []*protodsse.Signature{{Sig: sig}},
		}},
	})
}
