// Package nodetest gives tests the JavaScript packages that they compare with: installed by npm as a lock file says, once for all tests.
package nodetest

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/enginery/enginery/internal/cas"
	"golang.org/x/sys/unix"
)

// Install returns a folder with the package.json and package-lock.json of dir and the node_modules that they say. Scripts of packages are not
// run, but for those of the packages named in compile, which are compiled by node-gyp.
func Install(t testing.TB, dir string, compile ...string) string {
	t.Helper()
	installed, err := install(t, dir, compile)
	if err != nil {
		t.Fatal(err)
	}
	return installed
}

func install(t testing.TB, dir string, compile []string) (string, error) {
	files := []string{"package.json", "package-lock.json"}
	hash := sha256.New()
	for _, name := range files {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return "", err
		}
		hash.Write(b)
	}
	fmt.Fprint(hash, compile)
	version, err := exec.Command("node", "--version").Output()
	if err != nil {
		return "", fmt.Errorf("asking node for its version: %w", err)
	}
	hash.Write(version) // compiled packages are for one version of node
	store, err := cas.DefaultDir()
	if err != nil {
		return "", err
	}
	dest := filepath.Join(store, "node", hex.EncodeToString(hash.Sum(nil))[:16])
	if err := os.MkdirAll(filepath.Dir(dest), 0o755); err != nil {
		return "", err
	}
	lock, err := os.OpenFile(dest+".lock", os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return "", err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return "", err
	}
	done := filepath.Join(dest, ".installed")
	if _, err := os.Stat(done); err == nil {
		return dest, nil
	}
	if err := os.RemoveAll(dest); err != nil {
		return "", err
	}
	if err := os.Mkdir(dest, 0o755); err != nil {
		return "", err
	}
	for _, name := range files {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err == nil {
			err = os.WriteFile(filepath.Join(dest, name), b, 0o644)
		}
		if err != nil {
			return "", err
		}
	}
	run := func(args ...string) error {
		cmd := exec.CommandContext(t.Context(), "npm", args...)
		cmd.Dir = dest
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("npm %v in %s: %w\n%s", args, dest, err, out)
		}
		return nil
	}
	if err := run("ci", "--ignore-scripts", "--legacy-peer-deps", "--no-audit", "--no-fund"); err != nil {
		return "", err
	}
	if len(compile) > 0 {
		args := []string{"rebuild", "--build-from-source", "--foreground-scripts"}
		if dir := nodeDir(t); dir != "" {
			args = append(args, "--nodedir="+dir)
		}
		if err := run(append(args, compile...)...); err != nil {
			return "", err
		}
	}
	return dest, os.WriteFile(done, nil, 0o644)
}

// nodeDir returns the folder that has Node's headers, if they were installed with it; otherwise npm downloads them.
func nodeDir(t testing.TB) string {
	node, err := exec.CommandContext(t.Context(), "node", "--print", "process.execPath").Output()
	if err != nil {
		return ""
	}
	dir := filepath.Dir(filepath.Dir(strings.TrimSpace(string(node))))
	if _, err := os.Stat(filepath.Join(dir, "include", "node", "node.h")); err != nil {
		return ""
	}
	return dir
}
