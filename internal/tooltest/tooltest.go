// Package tooltest gives tests the programs that others read our work with, compiled from their Go modules.
package tooltest

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/enginery/enginery/internal/cas"
	"golang.org/x/sys/unix"
)

// Programs that tests use, in the form of go install.
const (
	Cosign = "github.com/sigstore/cosign/v2/cmd/cosign@v2.6.5"
	Crane  = "github.com/google/go-containerregistry/cmd/crane@v0.22.1"
	Oras   = "oras.land/oras/cmd/oras@v1.3.6"
)

// Install compiles a program, once for all tests on this machine, and returns its path.
func Install(t testing.TB, program string) string {
	t.Helper()
	dir, err := cas.DefaultDir()
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256([]byte(program + " " + runtime.Version()))
	bin := filepath.Join(dir, "go", hex.EncodeToString(sum[:8]))
	if err := os.MkdirAll(bin, 0o755); err != nil {
		t.Fatal(err)
	}
	lock, err := os.Open(bin)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	name, _, _ := strings.Cut(filepath.Base(program), "@")
	path := filepath.Join(bin, name)
	if _, err := os.Stat(path); err == nil {
		return path
	}
	cmd := exec.CommandContext(t.Context(), "go", "install", program)
	cmd.Env = append(os.Environ(), "GOBIN="+bin, "GOFLAGS=")
	cmd.Dir = bin // not of this module
	if out, err := cmd.CombinedOutput(); err != nil {
		os.Remove(path)
		t.Fatalf("go install %s: %v\n%s", program, err, out)
	}
	return path
}

// Runner compiles a program, and returns a function that runs it in a home of its own and returns its standard output.
func Runner(t testing.TB, program string) func(args ...string) []byte {
	t.Helper()
	path, home := Install(t, program), t.TempDir()
	return func(args ...string) []byte {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), path, args...)
		cmd.Env = append(os.Environ(), "HOME="+home, "DOCKER_CONFIG="+home)
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("%s %s: %v\n%s%s", program, strings.Join(args, " "), err, out, &stderr)
		}
		return out
	}
}
