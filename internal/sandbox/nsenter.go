//go:build cgo

package sandbox

import _ "github.com/opencontainers/runc/libcontainer/nsenter" // makes the namespaces, in C, before Go starts

const startable = true
