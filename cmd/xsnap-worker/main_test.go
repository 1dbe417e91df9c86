package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/enginery/enginery/engines"
	"github.com/enginery/enginery/internal/enginetest"
	"github.com/enginery/enginery/internal/nodetest"
)

const legacy, current = "agoric-upgrade-16", "agoric-upgrade-18"

// home returns a home with two versions, legacy and current.
func home(t testing.TB) *engines.Store {
	t.Helper()
	s := engines.Open(t.TempDir())
	for _, id := range []string{legacy, current} {
		files := map[string][]byte{engines.ConfigName: []byte("{}")}
		for name, goal := range map[string]string{engines.WorkerName: "release", engines.DebugWorkerName: "debug"} {
			b, err := os.ReadFile(enginetest.Worker(t, id, runtime.GOOS+"/"+runtime.GOARCH, goal))
			if err != nil {
				t.Fatal(err)
			}
			files[name] = b
		}
		describe := func(name string) engines.File {
			sum := sha256.Sum256(files[name])
			return engines.File{SHA256: hex.EncodeToString(sum[:]), Size: int64(len(files[name]))}
		}
		e := engines.Engine{Version: id, Platform: runtime.GOOS + "/" + runtime.GOARCH,
			Worker: describe(engines.WorkerName), DebugWorker: describe(engines.DebugWorkerName), Config: describe(engines.ConfigName)}
		_, err := s.Install(t.Context(), e, func(dir string) error {
			for name, content := range files {
				if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	write(t, filepath.Join(s.Home(), "channels.toml"), fmt.Sprintf("legacy = %q\ncurrent = %q\n", legacy, current))
	return s
}

func write(t testing.TB, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

// launcher compiles the launcher.
func launcher(t testing.TB) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "xsnap-worker")
	if out, err := exec.Command("go", "build", "-o", path, ".").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	return path
}

// One process of the unmodified host runs workers of two versions, by their names.
func TestAgoricXsnap(t *testing.T) {
	t.Parallel()
	s := home(t)
	write(t, filepath.Join(s.Home(), "workers.toml"), "[workers]\n\"v1:*\" = \"legacy\"\n")
	dir := filepath.Join(t.TempDir(), "host")
	if out, err := exec.Command("cp", "-a", nodetest.Install(t, "../../xsnap/testdata/node"), dir).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	links, err := engines.Link(dir, launcher(t))
	if err != nil || len(links) != 2 {
		t.Fatal(links, err)
	}
	script, err := os.ReadFile("testdata/host.mjs")
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "host.mjs"), string(script))
	cmd := exec.CommandContext(t.Context(), "node", "host.mjs", "v1:bootstrap", "v8:mint")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), engines.HomeEnv+"="+s.Home())
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v\n%s%s", err, out, &stderr)
	}
	var got map[string]struct {
		Program, Resumed, Debug, Snapshot string
		Replies, Upward                   []string
		Compute                           int64
		Ended                             int
	}
	if err := json.Unmarshal(out, &got); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for name, version := range map[string]string{"v1:bootstrap": legacy, "v8:mint": current} {
		e, err := s.Get(version)
		if err != nil {
			t.Fatal(err)
		}
		g := got[name]
		if g.Program != e.Worker.SHA256 || g.Resumed != e.Worker.SHA256 || g.Debug != e.DebugWorker.SHA256 {
			t.Errorf("%s ran %s, then %s, and for debugging %s; want those of %s", name, g.Program, g.Resumed, g.Debug, version)
		}
		if !slices.Equal(g.Replies, []string{`"host"`, `"host"`}) || !slices.Equal(g.Upward, []string{"hello", "again"}) || g.Compute == 0 || g.Ended != 17 {
			t.Errorf("%s: %+v", name, g)
		}
	}
	if got["v1:bootstrap"].Snapshot != got["v8:mint"].Snapshot {
		t.Error("the same heap gave two snapshots")
	}
	if names, err := engines.Unlink(dir); err != nil || len(names) != 2 {
		t.Errorf("unlinked %v, %v", names, err)
	}
	for _, l := range links {
		if _, err := os.Lstat(l); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is there still", l)
		}
	}
}

func TestLauncher(t *testing.T) {
	t.Parallel()
	s, path := home(t), launcher(t)
	run := func(env string, args ...string) (stdout, stderr string, code int) {
		t.Helper()
		cmd := exec.Command(path, args...)
		cmd.Env = append(strings.Fields(env), engines.HomeEnv+"="+s.Home(), "XSBUG_HOST=localhost", "TZ=Asia/Kathmandu")
		var o, e bytes.Buffer
		cmd.Stdout, cmd.Stderr = &o, &e
		var exit *exec.ExitError
		if err := cmd.Run(); err != nil && !errors.As(err, &exit) {
			t.Fatal(err)
		}
		return o.String(), e.String(), cmd.ProcessState.ExitCode()
	}
	for _, test := range []struct {
		env, args      string
		stdout, stderr string
		code           int
	}{
		{env: "", args: "-v", stdout: "xsnap 0.14.3-u18.1 (XS 13.3.0)\n"},
		{env: "ENGINERY_VERSION=legacy", args: "v8:mint -v", stdout: "xsnap 0.14.3-u16.1 (XS 13.3.0)\n"},
		{env: "ENGINERY_VERSION=agoric-upgrade-16", args: "-v", stdout: "xsnap 0.14.3-u16.1 (XS 13.3.0)\n"},
		{args: "-r nonexistent", stderr: "cannot read snapshot nonexistent: No such file or directory", code: 2},
		{args: "-z", stdout: "xsnap [-h]", code: 1}, // the worker's own answer
		{env: "ENGINERY_VERSION=agoric-upgrade-22", args: "v8:mint", stderr: "not in service: expected legacy, agoric-upgrade-16, or current, agoric-upgrade-18", code: 125},
		{env: "ENGINERY_VERSION=agoric-upgrade-22 ENGINERY_ARCHIVAL=1", args: "v8:mint", stderr: "agoric-upgrade-22: not installed in", code: 125},
		{env: "ENGINERY_VERSION=../x ENGINERY_ARCHIVAL=1", args: "v8:mint", stderr: "expected lower-case letters", code: 125},
	} {
		stdout, stderr, code := run(test.env, strings.Fields(test.args)...)
		if code != test.code || !strings.Contains(stderr, test.stderr) || !strings.HasPrefix(stdout, test.stdout) || test.stdout == "" && stdout != "" {
			t.Errorf("%s xsnap-worker %s: code %d, stdout %q, stderr %q; want %+v", test.env, test.args, code, stdout, stderr, test)
		}
	}

	// A worker that was changed on disk is not started.
	e, err := s.Get(current)
	if err != nil {
		t.Fatal(err)
	}
	os.Chmod(e.Worker.Path, 0o755)
	b, err := os.ReadFile(e.Worker.Path)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 1
	if err := os.WriteFile(e.Worker.Path, b, 0o755); err != nil {
		t.Fatal(err)
	}
	if _, stderr, code := run("", "-v"); code != 125 || !strings.Contains(stderr, "is damaged: expected sha256 "+e.Worker.SHA256) {
		t.Errorf("a changed worker: code %d, %s", code, stderr)
	}
}

// The launcher becomes the worker: one process, its descriptors and signals the host's, its environment and the limit of its stack not.
func TestSameProcess(t *testing.T) {
	t.Parallel()
	s, path := home(t), launcher(t)
	fromHost, toWorker, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer toWorker.Close()
	fromOther, toOther, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer fromOther.Close()
	defer toOther.Close()
	cmd := exec.Command("/bin/sh", "-c", `ulimit -S -s 1024 && exec "$0" "$@"`, path, "v8:mint")
	cmd.Env = []string{engines.HomeEnv + "=" + s.Home(), "XSBUG_HOST=localhost", "TZ=Asia/Kathmandu", "GLIBC_TUNABLES=glibc.malloc.check=3"}
	cmd.ExtraFiles = []*os.File{fromHost, os.Stderr}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	fromHost.Close()
	e, err := s.Get(current)
	if err != nil {
		t.Fatal(err)
	}
	proc := fmt.Sprintf("/proc/%d/", cmd.Process.Pid)
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if exe, err := os.ReadFile(proc + "exe"); err == nil {
			if sum := sha256.Sum256(exe); hex.EncodeToString(sum[:]) == e.Worker.SHA256 {
				break
			}
		}
		if time.Now().After(deadline) {
			t.Fatal("the process did not become the worker")
		}
	}
	environ, err := os.ReadFile(proc + "environ")
	if err != nil || string(environ) != "TZ=UTC0\x00" {
		t.Errorf("its environment is %q, %v", environ, err)
	}
	if argv, err := os.ReadFile(proc + "cmdline"); err != nil || string(argv) != path+"\x00v8:mint\x00" {
		t.Errorf("its command line is %q, %v", argv, err)
	}
	var stack unix.Rlimit
	if err := unix.Prlimit(cmd.Process.Pid, unix.RLIMIT_STACK, nil, &stack); err != nil || stack.Cur != engines.StackSize {
		t.Errorf("its stack is limited to %d bytes, %v, want %d", stack.Cur, err, engines.StackSize)
	}
	direct := exec.Command(e.Worker.Path, "v8:mint")
	direct.ExtraFiles = cmd.ExtraFiles[1:]
	direct.ExtraFiles = append([]*os.File{fromOther}, direct.ExtraFiles...)
	if err := direct.Start(); err != nil {
		t.Fatal(err)
	}
	defer direct.Wait()
	defer direct.Process.Kill()
	if got, want := descriptors(t, cmd.Process.Pid), descriptors(t, direct.Process.Pid); !slices.Equal(got, want) || !slices.Contains(got, "4") {
		t.Errorf("its descriptors are %v; a worker that is started directly has %v", got, want)
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()
	if status := cmd.ProcessState.Sys().(syscall.WaitStatus); !status.Signaled() || status.Signal() != syscall.SIGTERM {
		t.Errorf("it ended with %v, want it killed by SIGTERM", cmd.ProcessState)
	}
}

func descriptors(t *testing.T, pid int) []string {
	t.Helper()
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func TestLinkKeepsTheOriginal(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "node_modules", "@agoric", "xsnap")
	bin := filepath.Join(dir, "xsnap-native/xsnap/build/bin/lin/release")
	if err := os.MkdirAll(bin, 0o755); err != nil {
		t.Fatal(err)
	}
	project := filepath.Join(dir, "..", "..", "..")
	program := filepath.Join(t.TempDir(), "launcher")
	write(t, program, "launcher")
	if _, err := engines.Link(project, program); err == nil || !strings.Contains(err.Error(), "not a program") {
		t.Errorf("a launcher that cannot be executed: %v", err)
	}
	if err := os.Chmod(program, 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := engines.Link(project, program); err == nil || !strings.Contains(err.Error(), "@agoric/xsnap") {
		t.Errorf("no package: %v", err)
	}
	write(t, filepath.Join(dir, "package.json"), `{"name": "@agoric/xsnap"}`)
	worker := filepath.Join(bin, "xsnap-worker")
	write(t, worker, "original")
	for range 2 {
		if _, err := engines.Link(project, program); err != nil {
			t.Fatal(err)
		}
		if b, err := os.ReadFile(worker); err != nil || string(b) != "launcher" {
			t.Errorf("linked, the worker is %q, %v", b, err)
		}
	}
	for range 2 {
		if _, err := engines.Unlink(dir); err != nil {
			t.Fatal(err)
		}
		if b, err := os.ReadFile(worker); err != nil || string(b) != "original" {
			t.Errorf("unlinked, the worker is %q, %v", b, err)
		}
	}
}

// BenchmarkStart starts a worker and asks whether it is up: directly, and through the launcher.
func BenchmarkStart(b *testing.B) {
	s, path := home(b), launcher(b)
	e, err := s.Get(current)
	if err != nil {
		b.Fatal(err)
	}
	start := func(program string) time.Duration {
		begin := time.Now()
		cmd := exec.Command(program, "-v")
		cmd.Env = []string{engines.HomeEnv + "=" + s.Home()}
		if out, err := cmd.CombinedOutput(); err != nil {
			b.Fatalf("%v\n%s", err, out)
		}
		return time.Since(begin)
	}
	var direct, launched []time.Duration
	for b.Loop() {
		for range 20 {
			direct = append(direct, start(e.Worker.Path))
			launched = append(launched, start(path))
		}
	}
	median := func(d []time.Duration) float64 {
		slices.Sort(d)
		return float64(d[len(d)/2]) / 1e6
	}
	b.ReportMetric(median(direct), "direct-ms")
	b.ReportMetric(median(launched), "launched-ms")
	b.ReportMetric(median(launched)-median(direct), "added-ms")
	b.ReportMetric(0, "ns/op")
}

// The launcher is started as often as a worker is, so it links nothing that it does not need then.
func TestLinksLittle(t *testing.T) {
	t.Parallel()
	out, err := exec.Command("go", "list", "-deps", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, pkg := range strings.Fields(string(out)) {
		for _, heavy := range []string{"github.com/sigstore/", "github.com/google/go-containerregistry/", "net/http", "google.golang.org/protobuf"} {
			if strings.HasPrefix(pkg, heavy) {
				t.Errorf("it links %s", pkg)
			}
		}
	}
}
