package main

import (
	"slices"
	"testing"

	"github.com/sigstore/sigstore/pkg/signature/kms"
)

func TestKMS(t *testing.T) {
	for _, scheme := range []string{"awskms://", "azurekms://", "gcpkms://", "hashivault://"} {
		if !slices.Contains(kms.SupportedProviders(), scheme) {
			t.Errorf("there is no %s; there are %v", scheme, kms.SupportedProviders())
		}
	}
}
