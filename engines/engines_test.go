package engines

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// program is a worker as far as this package knows one: a file that can be executed.
func program(text string) []byte { return []byte("#!/bin/sh\necho " + text + "\n") }

func describe(content []byte) File {
	sum := sha256.Sum256(content)
	return File{SHA256: hex.EncodeToString(sum[:]), Size: int64(len(content))}
}

// engine returns an engine and what fills it.
func engine(version, text string) (Engine, func(string) error) {
	files := map[string][]byte{
		WorkerName:      program(text),
		LockdownName:    bytes.Repeat([]byte("lockdown "+text), 1000),
		SupervisorName:  []byte("supervisor"),
		ConfigName:      []byte("{}"),
		DebugWorkerName: program("debug " + text),
	}
	e := Engine{
		Version: version, Platform: "linux/amd64", Index: "sha256:" + strings.Repeat("0", 64),
		Worker: describe(files[WorkerName]), DebugWorker: describe(files[DebugWorkerName]), Lockdown: describe(files[LockdownName]),
		Supervisor: describe(files[SupervisorName]), Config: describe(files[ConfigName]),
	}
	return e, func(dir string) error {
		for name, content := range files {
			if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
				return err
			}
		}
		return nil
	}
}

func install(t *testing.T, s *Store, version, text string) *Engine {
	t.Helper()
	e, fill := engine(version, text)
	installed, err := s.Install(t.Context(), e, fill)
	if err != nil {
		t.Fatal(err)
	}
	return installed
}

func TestInstall(t *testing.T) {
	s := Open(filepath.Join(t.TempDir(), "home"))
	if _, err := s.Get("v1"); !errors.Is(err, ErrNotInstalled) {
		t.Errorf("an empty home: %v", err)
	}
	e := install(t, s, "v1", "one")
	got, err := s.Get("v1")
	if err != nil || *got != *e {
		t.Fatalf("got %+v, %v", got, err)
	}
	if err := got.Verify(); err != nil {
		t.Error(err)
	}
	f, err := got.Worker.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if content, err := io.ReadAll(f); err != nil || string(content) != string(program("one")) {
		t.Errorf("the worker is %q, %v", content, err)
	}
	if b, err := got.Supervisor.Read(); err != nil || string(b) != "supervisor" {
		t.Errorf("the supervisor is %q, %v", b, err)
	}
	for name, want := range map[string]fs.FileMode{".": 0o555, WorkerName: 0o555, LockdownName: 0o444, recordName: 0o444} {
		info, err := os.Stat(filepath.Join(got.Dir(), name))
		if err != nil || info.Mode().Perm() != want {
			t.Errorf("%s has the mode %v, %v; want %v", name, info.Mode(), err, want)
		}
	}

	again, fill := engine("v1", "one")
	if _, err := s.Install(t.Context(), again, func(string) error { return errors.New("called") }); err != nil {
		t.Errorf("installed again: %v", err)
	}
	// A version can be replaced; paths handed out stay.
	two := install(t, s, "v1", "two")
	if two.Dir() == e.Dir() || e.Verify() != nil {
		t.Error("the replaced engine is gone")
	}
	// Damage is repaired by installing again.
	os.Chmod(e.Worker.Path, 0o644)
	if err := os.WriteFile(e.Worker.Path, []byte("changed"), 0o644); err != nil {
		t.Fatal(err)
	}
	if e, err := s.Install(t.Context(), again, fill); err != nil || e.Verify() != nil {
		t.Errorf("not repaired: %v", err)
	}
	if list, err := s.List(); err != nil || len(list) != 1 || list[0].Version != "v1" {
		t.Errorf("the home has %v, %v", list, err)
	}
}

func TestInstallRefuses(t *testing.T) {
	good, fill := engine("v1", "one")
	for name, test := range map[string]struct {
		engine Engine
		fill   func(string) error
		want   string
	}{
		"another worker": {good, func(dir string) error {
			return errors.Join(fill(dir), os.WriteFile(filepath.Join(dir, WorkerName), program("two"), 0o600))
		}, "xsnap-worker is damaged: expected sha256 " + good.Worker.SHA256},
		"a longer file":  {good, func(dir string) error { return errors.Join(fill(dir), grow(filepath.Join(dir, SupervisorName))) }, "more than 10 bytes"},
		"a missing file": {good, func(dir string) error { return errors.Join(fill(dir), os.Remove(filepath.Join(dir, ConfigName))) }, "no such file"},
		"another file": {good, func(dir string) error {
			return errors.Join(fill(dir), os.WriteFile(filepath.Join(dir, "x"), nil, 0o600))
		}, "x is no file of an engine"},
		"a failure":  {good, func(dir string) error { return errors.Join(fill(dir), errors.New("no network")) }, "no network"},
		"no version": {Engine{Version: "../v1"}, fill, "expected lower-case letters"},
	} {
		s := Open(t.TempDir())
		if _, err := s.Install(t.Context(), test.engine, test.fill); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v; want %q", name, err, test.want)
		}
		if _, err := s.Get("v1"); !errors.Is(err, ErrNotInstalled) {
			t.Errorf("%s: installed: %v", name, err)
		}
		for _, dir := range []string{"objects", "tmp"} {
			if entries, _ := os.ReadDir(filepath.Join(s.Home(), dir)); len(entries) > 0 {
				t.Errorf("%s: left %v in %s", name, entries, dir)
			}
		}
	}
}

func grow(path string) error {
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.Write([]byte("x"))
	return errors.Join(err, f.Close())
}

func TestOpenIsWhatWasHashed(t *testing.T) {
	s := Open(t.TempDir())
	e := install(t, s, "v1", "one")
	m, err := e.Worker.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if _, err := m.WriteAt([]byte("x"), 0); err == nil {
		t.Error("a sealed file was written")
	}
	if err := m.Truncate(0); err == nil {
		t.Error("a sealed file was cut")
	}
	// What happens to the file on disk afterwards is of no consequence.
	os.Chmod(e.Worker.Path, 0o755)
	if err := os.WriteFile(e.Worker.Path, program("evil"), 0o755); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), m.Fd())).Output()
	if err != nil || string(out) != "one\n" {
		t.Errorf("executed, it says %q, %v", out, err)
	}
	var damaged *DamagedError
	if _, err := e.Worker.Open(); !errors.As(err, &damaged) || damaged.Path != e.Worker.Path {
		t.Errorf("opening what was changed: %v", err)
	}
	if _, err := e.Worker.Read(); !errors.As(err, &damaged) {
		t.Errorf("reading what was changed: %v", err)
	}
	record := filepath.Join(e.Dir(), recordName)
	os.Chmod(record, 0o644)
	if err := grow(record); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Get("v1"); !errors.As(err, &damaged) || damaged.Path != record {
		t.Errorf("a changed record: %v", err)
	}
}

func TestGC(t *testing.T) {
	s := Open(t.TempDir())
	for _, v := range []string{"legacy-one", "current-one", "pinned", "kept", "held", "old"} {
		install(t, s, v, v)
	}
	install(t, s, "kept", "replacement")
	write(t, filepath.Join(s.Home(), "channels.toml"), "legacy = \"legacy-one\"\ncurrent = \"current-one\"\n")
	partial, err := s.Partial(t.Context(), "sha256:ab")
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(grow(partial.Name()), partial.Close()); err != nil {
		t.Fatal(err)
	}
	for _, v := range []string{"old", "kept", "killed"} { // the last one was, before it was installed
		if err := os.MkdirAll(s.Evidence(v), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Pin("pinned"); err != nil {
		t.Fatal(err)
	}
	held, err := s.Get("held")
	if err != nil {
		t.Fatal(err)
	}
	release, err := held.Hold()
	if err != nil {
		t.Fatal(err)
	}
	removed, err := s.GC(t.Context(), "kept")
	if err != nil || !slices.Equal(removed.Versions, []string{"held", "old"}) || removed.Bytes < 10_000 {
		t.Errorf("removed %+v, %v", removed, err)
	}
	if err := held.Verify(); err != nil {
		t.Errorf("what is held was removed: %v", err)
	}
	release()
	if _, err := s.GC(t.Context(), "kept"); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(held.Dir()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("what is held no longer was not removed: %v", err)
	}
	if _, err := held.Hold(); err == nil {
		t.Error("held what is gone")
	}
	list, err := s.List()
	var names []string
	for _, e := range list {
		names = append(names, e.Version)
		if err := e.Verify(); err != nil {
			t.Error(err)
		}
	}
	if err != nil || !slices.Equal(names, []string{"current-one", "kept", "legacy-one", "pinned"}) {
		t.Errorf("kept %v, %v", names, err)
	}
	for _, dir := range []string{"objects", "tmp", "evidence"} {
		entries, _ := os.ReadDir(filepath.Join(s.Home(), dir))
		if want := map[string]int{"objects": 4, "evidence": 1}[dir]; len(entries) != want {
			t.Errorf("%s has %d entries, want %d", dir, len(entries), want)
		}
	}
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

// Several install one version at once: one fills it, all get it.
func TestConcurrentInstalls(t *testing.T) {
	home := t.TempDir()
	var mu sync.Mutex
	filled := 0
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			e, fill := engine("v1", "one")
			got, err := Open(home).Install(t.Context(), e, func(dir string) error {
				mu.Lock()
				filled++
				mu.Unlock()
				time.Sleep(10 * time.Millisecond)
				return fill(dir)
			})
			if err != nil || got.Verify() != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if filled != 1 {
		t.Errorf("filled %d times", filled)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	unlock, err := Open(home).Lock(t.Context(), "install-v1")
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	e, fill := engine("v1", "one")
	if _, err := Open(home).Install(ctx, e, fill); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("waiting for another: %v", err)
	}
}

// TestKilled kills installers at random moments. Whatever the home then gives is whole.
func TestKilled(t *testing.T) {
	home := t.TempDir()
	s := Open(home)
	whole, killed := 0, 0
	for i := range 120 {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), "TEST_INSTALL="+home, fmt.Sprintf("TEST_TEXT=%d", i%7))
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(rand.Int64N(int64(15 * time.Millisecond))))
		cmd.Process.Kill()
		if err := cmd.Wait(); err != nil {
			killed++
		}
		e, err := s.Get("v1")
		if errors.Is(err, ErrNotInstalled) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := e.Verify(); err != nil {
			t.Fatal(err)
		}
		whole++
	}
	if killed == 0 || whole == 0 {
		t.Errorf("%d killed, %d times whole: this tests nothing", killed, whole)
	}
	install(t, s, "v1", "after")
	if _, err := s.GC(t.Context(), "v1"); err != nil {
		t.Error(err)
	}
	entries, _ := os.ReadDir(filepath.Join(home, "objects"))
	if left, _ := os.ReadDir(filepath.Join(home, "tmp")); len(left) > 0 || len(entries) != 1 {
		t.Errorf("left %v, %v", left, entries)
	}
}

func TestMain(m *testing.M) {
	if home := os.Getenv("TEST_INSTALL"); home != "" {
		e, fill := engine("v1", os.Getenv("TEST_TEXT"))
		if _, err := Open(home).Install(context.Background(), e, fill); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// What one completes, another who waits for it does not write to.
func TestPartial(t *testing.T) {
	s := Open(t.TempDir())
	if err := os.Mkdir(filepath.Join(s.Home(), "tmp"), 0o755); err != nil {
		t.Fatal(err)
	}
	const writers = 8
	var wg sync.WaitGroup
	var mu sync.Mutex
	inside, fresh := 0, 0
	for i := range writers {
		wg.Go(func() {
			f, err := s.Partial(t.Context(), "sha256:ab")
			if err != nil {
				t.Error(err)
				return
			}
			defer f.Close()
			mu.Lock()
			if inside++; inside != 1 {
				t.Errorf("%d have it at once", inside)
			}
			mu.Unlock()
			info, err := f.Stat()
			if err != nil {
				t.Error(err)
				return
			}
			if info.Size() == 0 {
				fresh++
			}
			_, err = f.WriteAt([]byte{byte(i)}, info.Size())
			if info.Size() > 0 {
				err = errors.Join(err, os.Rename(f.Name(), filepath.Join(s.Home(), fmt.Sprint(i))))
			}
			if err != nil {
				t.Error(err)
			}
			mu.Lock()
			inside--
			mu.Unlock()
		})
	}
	wg.Wait()
	if fresh != writers/2 {
		t.Errorf("%d began anew, want %d", fresh, writers/2)
	}
	f, err := s.Partial(t.Context(), "sha256:ab")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := s.Partial(ctx, "sha256:ab"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("waiting for another: %v", err)
	}
}

// GC at any time leaves what is pinned, what is held and what is being installed, and never a version that is not whole.
func TestGCBesideInstalls(t *testing.T) {
	home := t.TempDir()
	s := Open(home)
	if err := s.SetChannels([]byte("legacy = \"one\"\ncurrent = \"one\"\n")); err != nil {
		t.Fatal(err)
	}
	install(t, s, "one", "one")
	install(t, s, "pinned", "pinned")
	if err := s.Pin("pinned"); err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	var collectors, workers sync.WaitGroup
	for range 2 {
		collectors.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if _, err := Open(home).GC(context.Background()); err != nil {
					t.Error(err)
				}
				time.Sleep(time.Millisecond)
			}
		})
	}
	var held atomic.Int64
	for i := range 6 {
		workers.Go(func() {
			version := fmt.Sprint("v", i%3)
			for n := range 25 {
				e, fill := engine(version, fmt.Sprint(i%3, n%2))
				got, err := Open(home).Install(t.Context(), e, fill)
				if err != nil {
					t.Error(err)
					return
				}
				release, err := got.Hold()
				if err != nil {
					continue // it was removed before
				}
				held.Add(1)
				time.Sleep(time.Millisecond)
				if err := got.Verify(); err != nil {
					t.Errorf("held, and not whole: %v", err)
				}
				release()
				for _, v := range []string{"one", "pinned"} {
					if e, err := s.Get(v); err != nil || e.Verify() != nil {
						t.Errorf("%s: %v", v, err)
					}
				}
			}
		})
	}
	workers.Wait()
	close(stop)
	collectors.Wait()
	if held.Load() == 0 {
		t.Error("nothing was ever held")
	}
	done, err := s.Use(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := s.GC(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("GC while the store is used: %v", err)
	}
	done()
	if _, err := s.GC(t.Context()); err != nil {
		t.Error(err)
	}
	list, err := s.List()
	if err != nil || len(list) != 2 {
		t.Errorf("left %v, %v", list, err)
	}
}

func TestSelect(t *testing.T) {
	s := Open(t.TempDir())
	env := func(kv ...string) func(string) string {
		m := make(map[string]string)
		for i := 0; i < len(kv); i += 2 {
			m[kv[i]] = kv[i+1]
		}
		return func(k string) string { return m[k] }
	}
	if _, _, err := s.Select("v8:mint", env()); !errors.Is(err, ErrNoChannels) {
		t.Errorf("no channels: %v", err)
	}
	if v, _, err := s.Select("v8:mint", env(VersionEnv, "old", ArchivalEnv, "1")); v != "old" || err != nil {
		t.Errorf("archival without channels: %q, %v", v, err)
	}
	if err := s.SetChannels([]byte("legacy = \"u16\"\n")); err == nil {
		t.Error("channels without current were taken")
	}
	if err := s.SetChannels([]byte("legacy = \"u16\"\ncurrent = \"u18\"\n")); err != nil {
		t.Fatal(err)
	}
	check := func(worker string, getenv func(string) string, want, because, problem string) {
		t.Helper()
		v, why, err := s.Select(worker, getenv)
		if problem != "" {
			if err == nil || !strings.Contains(err.Error(), problem) {
				t.Errorf("%s: %v; want %q", worker, err, problem)
			}
			return
		}
		if v != want || !strings.Contains(why, because) || err != nil {
			t.Errorf("%s runs %q because of %q, %v; want %q, %q", worker, v, why, err, want, because)
		}
	}
	check("v8:mint", env(), "u18", "the default", "")
	check("v8:mint", env(VersionEnv, "legacy"), "u16", VersionEnv, "")
	check("v8:mint", env(VersionEnv, "u15"), "", "", "u15 is not in service: expected legacy, u16, or current, u18")
	check("v8:mint", env(VersionEnv, "u15", ArchivalEnv, "1"), "u15", VersionEnv, "")
	check("v8:mint", env(VersionEnv, "../x", ArchivalEnv, "1"), "", "", "expected lower-case letters")
	write(t, filepath.Join(s.Home(), "workers.toml"), "default = \"legacy\"\n[workers]\n\"v8:mint\" = \"current\"\n\"v8*\" = \"legacy\"\n\"v*:z/o*\" = \"u18\"\n")
	check("v8:mint", env(), "u18", `"v8:mint"`, "")
	check("v8:other", env(), "u16", `"v8*"`, "")
	check("v9:z/oe", env(), "u18", `"v*:z/o*"`, "")
	check("x", env(), "u16", "the default", "")
	write(t, filepath.Join(s.Home(), "channels.toml"), "legacy = \"u18\"\ncurrent = \"u22\"\n")
	check("v8:mint", env(), "u22", "v8:mint", "")
	write(t, filepath.Join(s.Home(), "workers.toml"), "[workers]\n\"v[\" = \"legacy\"\n")
	check("x", env(), "", "", "workers.toml:2")
	write(t, filepath.Join(s.Home(), "channels.toml"), "legacy = \"u18\"\n")
	check("x", env(VersionEnv, "u18"), "", "", "current is missing")
}

// What midstates say must hold, and without them it goes as well.
func TestMidstates(t *testing.T) {
	for _, size := range []int{1, stride - 1, stride, stride + 1, 3 * stride, 5*stride + 100} {
		content := make([]byte, size)
		for i := range content {
			content[i] = byte(rand.Uint32())
		}
		f := describe(content)
		f.Path = filepath.Join(t.TempDir(), "f")
		write(t, f.Path, string(content))
		if err := writeMidstates(f.Path); err != nil {
			t.Fatal(err)
		}
		verified := func(content []byte) bool { return f.verified(bytes.NewReader(content), int64(len(content))) }
		if !verified(content) {
			t.Errorf("%d bytes: not verified", size)
		}
		open := func(fine bool) {
			t.Helper()
			m, err := f.Open()
			if err == nil {
				m.Close()
			}
			var damaged *DamagedError
			if fine && err != nil || !fine && !errors.As(err, &damaged) {
				t.Errorf("%d bytes: opened: %v; want fine: %v", size, err, fine)
			}
		}
		states, err := os.ReadFile(f.Path + midstatesSuffix)
		if err != nil {
			t.Fatal(err)
		}
		os.Chmod(f.Path+midstatesSuffix, 0o644)
		for _, at := range []int{0, size / 2, size - 1} {
			bad := bytes.Clone(content)
			bad[at] ^= 1
			if verified(bad) || verified(bad[1:]) {
				t.Errorf("%d bytes: verified with another at %d", size, at)
			}
			write(t, f.Path, string(bad))
			open(false)
			// Whoever changes the file can change its midstates.
			if err := errors.Join(os.Remove(f.Path+midstatesSuffix), writeMidstates(f.Path)); err != nil {
				t.Fatal(err)
			}
			open(false)
		}
		write(t, f.Path, string(content))
		for i := 0; i < len(states); i += 27 {
			bad := bytes.Clone(states)
			bad[i] ^= 1
			os.Chmod(f.Path+midstatesSuffix, 0o644)
			write(t, f.Path+midstatesSuffix, string(bad))
			if verified(content) {
				t.Errorf("%d bytes: verified by other midstates", size)
			}
		}
		open(true)
		os.Chmod(f.Path+midstatesSuffix, 0o644)
		write(t, f.Path+midstatesSuffix, "x")
		open(true)
		if err := os.Remove(f.Path + midstatesSuffix); err != nil {
			t.Fatal(err)
		}
		open(true)
	}
}

func BenchmarkOpen(b *testing.B) {
	content := make([]byte, 2_922_464) // a worker's size
	for i := range content {
		content[i] = byte(rand.Uint32())
	}
	path := filepath.Join(b.TempDir(), "f")
	if err := os.WriteFile(path, content, 0o600); err != nil {
		b.Fatal(err)
	}
	f := describe(content)
	f.Path = path
	for _, name := range []string{"without midstates", "with midstates"} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(f.Size)
			for b.Loop() {
				m, err := f.Open()
				if err != nil {
					b.Fatal(err)
				}
				m.Close()
			}
		})
		if err := writeMidstates(path); err != nil {
			b.Fatal(err)
		}
	}
}
