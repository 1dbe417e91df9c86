package manifests

import _ "embed"

// Policy is the policy that ships: policy.toml, see package trust.
//
//go:embed policy.toml
var Policy []byte

// Channels is the channels that ship: channels.toml, see package engines.
//
//go:embed channels.toml
var Channels []byte
