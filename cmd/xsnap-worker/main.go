// Xsnap-worker is a drop-in for the worker that a host starts: same arguments, same file descriptors, same exit codes. It picks the version
// that this worker is to run, verifies it, and becomes it.
//
// docs/launcher.md is the manual.
package main

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"github.com/enginery/enginery/engines"
)

// exitFailed is the exit code when no worker was started. A worker has none like it, and the shell's own begin at 126.
const exitFailed = 125

func main() {
	err := launch()
	fmt.Fprintf(os.Stderr, "xsnap-worker (enginery): %v\n", err)
	os.Exit(exitFailed)
}

// launch returns only if it fails.
func launch() error {
	home, err := engines.DefaultHome()
	if err != nil {
		return err
	}
	store := engines.Open(home)
	worker := ""
	if len(os.Args) > 1 && !strings.HasPrefix(os.Args[1], "-") {
		worker = os.Args[1]
	}
	version, because, err := store.Select(worker, os.Getenv)
	if err != nil {
		return err
	}
	engine, err := store.Get(version)
	if err != nil {
		return fmt.Errorf("worker %q, by %s: %w", worker, because, err)
	}
	if platform := runtime.GOOS + "/" + runtime.GOARCH; engine.Platform != platform {
		return fmt.Errorf("%s in %s is for %s, expected %s", version, home, engine.Platform, platform)
	}
	file := engine.Worker
	if debug() {
		if file = engine.DebugWorker; file.Path == "" {
			return fmt.Errorf("%s has no debug worker", version)
		}
	}
	binary, err := file.Open()
	if err != nil {
		return fmt.Errorf("%s: %w", version, err)
	}
	// The file is named by its descriptor, so that nothing can take its place.
	err = engines.WithLimits(func() error {
		return syscall.Exec(fmt.Sprintf("/proc/self/fd/%d", binary.Fd()), os.Args, engines.Environ())
	})
	return fmt.Errorf("starting %s of %s: %w", filepath.Base(file.Path), version, err)
}

// debug reports whether the host asked for the debug worker: @agoric/xsnap looks for it in a folder of that name.
func debug() bool {
	return filepath.Base(filepath.Dir(os.Args[0])) == "debug"
}
