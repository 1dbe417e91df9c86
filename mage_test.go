package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

// TestMage runs the Mage targets as a user does, by the scripts in testdata/script.
func TestMage(t *testing.T) {
	root, err := filepath.Abs(".")
	if err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(env *testscript.Env) error {
			env.Setenv("REPOSITORY", root)
			for _, name := range []string{"HOME", "GOCACHE", "GOFLAGS", "GOMODCACHE", "GOPATH", "GOPROXY", "ENGINERY_STORE", "ENGINERY_TOOLCHAIN_FROM", "npm_config_cache"} {
				if value, ok := os.LookupEnv(name); ok {
					env.Setenv(name, value)
				}
			}
			return nil
		},
	})
}
