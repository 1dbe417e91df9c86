package trust

import (
	"crypto"

	"github.com/opencontainers/go-digest"
)

// Vouched reports whether the evidence has a statement of that predicate type about a subject, signed by a key.
func Vouched(public crypto.PublicKey, subject digest.Digest, predicateType string, evidence []Evidence) bool {
	w := witness{name: "key", key: &key{name: "key", public: public}}
	for _, e := range evidence {
		b, predicate, err := open(e.Bundle)
		if err == nil && predicate == predicateType && w.check(b, Subject{Index: subject}, false, Options{}) == nil {
			return true
		}
	}
	return false
}

// Predicate returns the predicate type that the evidence claims to have a statement of, or "".
func (e Evidence) Predicate() string {
	_, predicate, err := open(e.Bundle)
	if err != nil {
		return ""
	}
	return predicate
}
