//go:build !cgo

package sandbox

// A program without C code can still be built, for what else it does.
const startable = false
