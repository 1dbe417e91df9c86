package trust

import (
	"fmt"

	"github.com/opencontainers/go-digest"
)

// Vouched reports whether the evidence has a statement of that predicate type about a subject by the signer's own key. For a key that lives for
// one signature there is none.
func (s *Signer) Vouched(subject digest.Digest, predicateType string, evidence []Evidence) (bool, error) {
	if s.options.CertificateProvider != nil {
		return false, nil
	}
	w := witness{name: "self", key: &key{name: "self", public: s.keypair.GetPublicKey()}}
	if w.key.public == nil {
		return false, fmt.Errorf("the signer has no public key")
	}
	for _, e := range evidence {
		b, predicate, err := open(e.Bundle)
		if err != nil || predicate != predicateType {
			continue
		}
		if w.check(b, Subject{Index: subject}, false, Options{}) == nil {
			return true, nil
		}
	}
	return false, nil
}
