package reproduce

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/enginery/enginery/internal/cas"
	"github.com/enginery/enginery/internal/enginetest"
	"github.com/enginery/enginery/recipes"
	"github.com/enginery/enginery/release"
)

// With this variable set the test program checks a version, like mage check:reproducible, for TestStop to stop it.
const checkVar = "ENGINERY_TEST_CHECK"

func TestMain(m *testing.M) {
	if layout := os.Getenv(checkVar); layout != "" {
		if err := check(layout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func check(layout string) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	dir, err := cas.DefaultDir()
	if err != nil {
		return err
	}
	store, err := cas.Open(dir)
	if err != nil {
		return err
	}
	defer store.Close()
	r, err := recipes.Load("agoric-upgrade-16")
	if err != nil {
		return err
	}
	r.Targets, r.Goals = r.Targets[:1], []string{recipes.Debug}
	_, err = Check(ctx, &release.Workshop{Store: store, Layout: layout, ToolchainFrom: os.Getenv("ENGINERY_TOOLCHAIN_FROM")}, r)
	return err
}

// TestStop stops a check while the second build compiles: by Ctrl-C, which reaches all processes of a terminal; by a signal to the
// first process alone; and by killing that.
func TestStop(t *testing.T) {
	store := enginetest.Store(t)
	enginetest.Worker(t, "agoric-upgrade-16", "linux/amd64", recipes.Debug) // so that the second build comes soon
	place, err := otherPlace(store.Dir(), lendable())
	if err != nil {
		t.Fatal(err)
	}
	for _, stop := range []struct {
		name  string
		all   bool // processes of the terminal
		with  syscall.Signal
		clean bool // whether the first process can still clean up
	}{
		{"Ctrl-C", true, syscall.SIGINT, true},
		{"interrupt", false, syscall.SIGINT, true},
		{"kill", false, syscall.SIGKILL, false},
	} {
		t.Run(stop.name, func(t *testing.T) {
			before := claims(t, place)
			var output strings.Builder
			cmd := exec.CommandContext(t.Context(), os.Args[0])
			cmd.Env = append(os.Environ(), checkVar+"="+t.TempDir())
			cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
			cmd.Stdout, cmd.Stderr = &output, &output
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			exited := make(chan error, 1)
			go func() { exited <- cmd.Wait() }()
			var dir string
			compiling := func() bool {
				for d := range claims(t, place) {
					if !before[d] {
						dir = d
					}
				}
				for _, p := range residents(t, dir) {
					if strings.HasPrefix(p, "cc1") {
						return true
					}
				}
				return false
			}
			for deadline := time.Now().Add(time.Minute); !compiling(); time.Sleep(10 * time.Millisecond) {
				select {
				case err := <-exited:
					t.Fatalf("the check ended before it could be stopped: %v\n%s", err, &output)
				default:
				}
				if time.Now().After(deadline) {
					t.Fatal("the second build does not compile")
				}
			}
			target := cmd.Process.Pid
			if stop.all {
				target = -target
			}
			if err := syscall.Kill(target, stop.with); err != nil {
				t.Fatal(err)
			}
			select {
			case err := <-exited:
				if err == nil {
					t.Error("a check that was stopped succeeded")
				}
			case <-time.After(5 * time.Second): // Mage waits no longer
				t.Fatal("the check goes on")
			}
			if stop.clean {
				if left := residents(t, dir); len(left) > 0 {
					t.Errorf("processes are left: %v", left)
				}
				if !strings.Contains(output.String(), context.Canceled.Error()) {
					t.Errorf("the check said %q, expected %q", &output, context.Canceled)
				}
			} else {
				for deadline := time.Now().Add(5 * time.Second); len(residents(t, dir)) > 0; time.Sleep(10 * time.Millisecond) {
					if time.Now().After(deadline) {
						t.Fatalf("processes are left: %v", residents(t, dir))
					}
				}
				if err := sweep(place); err != nil {
					t.Error(err)
				}
			}
			if _, err := os.Lstat(dir); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("%s is left: %v", dir, err)
			}
		})
	}
}

// claims returns the directories in place that a check has claimed.
func claims(t *testing.T, place string) map[string]bool {
	t.Helper()
	dirs, err := filepath.Glob(filepath.Join(place, claimPrefix+"*"))
	if err != nil {
		t.Fatal(err)
	}
	set := make(map[string]bool)
	for _, d := range dirs {
		set[d] = true
	}
	return set
}

// residents returns the names of processes that run a program in dir, or in a container that has something of dir mounted.
func residents(t *testing.T, dir string) []string {
	t.Helper()
	if dir == "" {
		return nil
	}
	processes, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, p := range processes {
		exe, _ := os.Readlink(filepath.Join(p, "exe"))
		mounts, _ := os.ReadFile(filepath.Join(p, "mountinfo")) // with paths in the file system, so without /dev/shm
		if strings.HasPrefix(exe, dir) || strings.Contains(string(mounts), filepath.Base(dir)) {
			name, _ := os.ReadFile(filepath.Join(p, "comm"))
			names = append(names, strings.TrimSpace(string(name)))
		}
	}
	return names
}

func TestClaim(t *testing.T) {
	parent := t.TempDir()
	dir, remove, err := claim(parent)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(dir, "read-only", "sub"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(dir, "read-only"), 0o500); err != nil {
		t.Fatal(err)
	}
	// What nobody holds, as after a crash, and what is not a claim.
	abandoned := filepath.Join(parent, claimPrefix+"1")
	file := filepath.Join(parent, claimPrefix+"2")
	other := filepath.Join(parent, "other")
	target := t.TempDir()
	link := filepath.Join(parent, claimPrefix+"3")
	if err := errors.Join(os.Mkdir(abandoned, 0o755), os.WriteFile(file, nil, 0o644), os.Mkdir(other, 0o755), os.Symlink(target, link)); err != nil {
		t.Fatal(err)
	}
	_, removeAgain, err := claim(parent)
	if err != nil {
		t.Fatal(err)
	}
	defer removeAgain()
	for path, want := range map[string]bool{dir: true, abandoned: false, file: true, other: true, link: true, target: true} {
		if _, err := os.Lstat(path); (err == nil) != want {
			t.Errorf("after another claim %s is there: %v, expected %v", path, err == nil, want)
		}
	}
	remove()
	if _, err := os.Lstat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after remove %s is there", dir)
	}
}

func TestPlacesThatWillNotDo(t *testing.T) {
	closed := filepath.Join(t.TempDir(), "closed")
	if err := os.Mkdir(closed, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		dir       string
		reachable bool
		want      string
	}{
		{closed, false, ""},
		{closed, true, "closed to other users"},
		{filepath.Join(closed, "missing"), false, "no such file"},
		{"/proc", false, "expected at least"},
	} {
		err := fit(test.dir, test.reachable)
		if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
			t.Errorf("fit(%s, %v) = %v, expected %q", test.dir, test.reachable, err, test.want)
		}
	}
}
