package toolchain

import (
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/enginery/enginery/internal/cas"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/validate"
	"github.com/opencontainers/go-digest"
)

// list describes the tree in dir, and fails the test where something has another time than all should have.
func list(t *testing.T, dir string) string {
	t.Helper()
	var lines []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if !info.ModTime().Equal(cas.Epoch) {
			t.Errorf("%s has the time %v", path, info.ModTime())
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil || rel == "." {
			return err
		}
		switch d.Type() {
		case fs.ModeDir:
			lines = append(lines, fmt.Sprintf("%s/ %o", rel, info.Mode().Perm()))
		case fs.ModeSymlink:
			target, err := os.Readlink(path)
			lines = append(lines, fmt.Sprintf("%s -> %s", rel, target))
			return err
		default:
			content, err := os.ReadFile(path)
			lines = append(lines, fmt.Sprintf("%s %o %q", rel, info.Mode()&0o7777, content))
			return err
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(lines, "\n")
}

// tiny is a small toolchain, locked by the real apt once for all tests, with a store that has its packages.
var tiny = sync.OnceValues(func() (*Toolchain, error) {
	spec, err := ParseSpec("tiny", "tiny.toml", []byte(goodSpec))
	if err != nil {
		return nil, err
	}
	dir, err := cas.DefaultDir()
	if err != nil {
		return nil, err
	}
	store, err := cas.Open(dir)
	if err != nil {
		return nil, err
	}
	defer store.Close()
	return Lock(context.Background(), store, spec, Options{})
})

// tinyStore returns a copy of the tiny toolchain and a new store that has its packages.
func tinyStore(t *testing.T) (*Toolchain, *cas.Store) {
	t.Helper()
	tc, err := tiny()
	if err != nil {
		t.Fatal(err)
	}
	store := newStore(t)
	copyPackages(t, defaultStore(t), store, tc)
	own := *tc
	own.Packages = append([]Package(nil), tc.Packages...)
	return &own, store
}

func newStore(t *testing.T) *cas.Store {
	t.Helper()
	store, err := cas.Open(filepath.Join(t.TempDir(), "store"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(store.Close)
	return store
}

// again returns the store as another process would see it.
func again(t *testing.T, store *cas.Store) *cas.Store {
	t.Helper()
	s, err := cas.Open(store.Dir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

// change flips a bit of a file, or cuts off its end.
func change(t *testing.T, file string, truncate bool) {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if truncate {
		b = b[:len(b)-1]
	} else {
		b[len(b)/2] ^= 1
	}
	if err := os.Chmod(file, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, b, 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestLock(t *testing.T) {
	tc, err := tiny()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, p := range tc.Packages {
		names = append(names, p.Name)
	}
	if got := strings.Join(names, " "); got != "dash gcc-12-base libgcc-s1" {
		t.Errorf("the lock has %s, want the packages and their dependencies that are not left out", got)
	}
	dir := t.TempDir()
	if err := tc.WriteLock(dir); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(filepath.Join(dir, "tiny.lock"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Parse(&tc.Spec, "tiny.lock", data); err != nil {
		t.Errorf("Parse of what Lock wrote: %v", err)
	}
	root, err := Ensure(t.Context(), newStore(t), tc, Options{}) // downloads
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range tc.Packages { // libgcc-s1 shares its own with gcc-12-base
		if text, err := p.Copyright(root); err != nil || !bytes.Contains(text, []byte("opyright")) {
			t.Errorf("Copyright of %s: %q, %v", p, text, err)
		}
	}
	for name, want := range map[string]string{"bin": "usr/bin", "usr/bin/sh": "dash"} {
		if got, err := os.Readlink(filepath.Join(root, name)); err != nil || got != want {
			t.Errorf("link %s leads to %q (%v), want %q", name, got, err, want)
		}
	}
	if _, err := os.Lstat(filepath.Join(root, "usr/share/man")); err == nil {
		t.Error("manual pages are unpacked, though the spec drops them")
	}
}

func TestLockSaysWhatIsWrong(t *testing.T) {
	for name, test := range map[string]struct{ old, new, want string }{
		"no such suite":   {`"bookworm"`, `"bullwinkle"`, "none of this machine's apt sources serves the suite bullwinkle of Debian (component main, architecture amd64)"},
		"no such package": {`"dash"`, `"dashing"`, "Unable to locate package dashing"},
		"no dependency":   {`"libc6"`, `"libc6", "make"`, "none of the packages depends on make: take it out of leave-out in tiny.toml"},
	} {
		t.Run(name, func(t *testing.T) {
			spec, err := ParseSpec("tiny", "tiny.toml", []byte(strings.Replace(goodSpec, test.old, test.new, 1)))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := Lock(t.Context(), newStore(t), spec, Options{}); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %v, want …%s…", err, test.want)
			}
		})
	}
}

func TestNoNetwork(t *testing.T) {
	tc, err := tiny()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"} {
		t.Setenv(name, "http://127.0.0.1:1")
	}
	_, err = Ensure(t.Context(), newStore(t), tc, Options{})
	if err == nil || !strings.Contains(err.Error(), "127.0.0.1") || !strings.Contains(err.Error(), tc.Image.String()) {
		t.Errorf("error %v, want apt's reason and the image to use instead", err)
	}
}

func TestAptIsPrivate(t *testing.T) {
	tc, err := tiny()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	a, err := newApt(t.Context(), dir, &tc.Spec)
	if err != nil {
		t.Fatal(err)
	}
	out, err := a.run(t.Context(), nil, "apt-config", "dump")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`Dir::State "` + dir + `"`, `Dir::State::status "` + dir + `/status"`, `Dir::Cache "` + dir + `/cache"`, `Dir::Etc "etc/apt"`,
	} {
		if !strings.Contains(string(out), want) {
			t.Errorf("apt's configuration lacks %s", want)
		}
	}
	for line := range strings.Lines(string(out)) {
		if strings.Contains(line, "-Invoke") {
			t.Errorf("apt would run a hook of the host: %s", line)
		}
	}
	policy, err := a.run(t.Context(), nil, "apt-cache", "policy", "libc6")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(policy), "/var/lib/dpkg/status") || strings.Contains(string(policy), "Candidate: (none)") {
		t.Errorf("apt knows of the host's packages, or of none:\n%s", policy)
	}
}

func TestDamageIsNamedAndMendedNextTime(t *testing.T) {
	tc, store := tinyStore(t)
	root, err := Ensure(t.Context(), store, tc, Options{})
	if err != nil {
		t.Fatal(err)
	}
	dash := filepath.Join(root, "usr/bin/dash")
	deb := store.Path(tc.Packages[0].Digest())
	change(t, dash, false)
	change(t, deb, false)
	for _, damaged := range []string{dash, deb} {
		store = again(t, store)
		var corrupt *cas.CorruptError
		if _, err := Ensure(t.Context(), store, tc, Options{}); !errors.As(err, &corrupt) || corrupt.Path != damaged {
			t.Errorf("got %v, want an error that names %s", err, damaged)
		}
	}
	store = again(t, store)
	if _, err := Ensure(t.Context(), store, tc, Options{}); err != nil {
		t.Fatalf("after the damage was put aside: %v", err)
	}
	if got, err := cas.HashTree(root); err != nil || got != tc.Root {
		t.Errorf("HashTree of the root that was made anew: %v, %v, want %v", got, err, tc.Root)
	}
}

func TestChangedLockBuildsNothing(t *testing.T) {
	for name, test := range map[string]struct {
		change func(*Toolchain)
		want   string
	}{
		"root": {func(tc *Toolchain) { tc.Root = cas.OfBytes([]byte("other")) },
			"tiny.lock has been changed: the packages in its lock do not give the root file system that it names"},
		"package is missing": {func(tc *Toolchain) { tc.Packages = tc.Packages[1:] },
			"link bin in tiny.toml: there is no directory usr/bin"},
		"hash": {func(tc *Toolchain) { tc.Packages[0].SHA256 = strings.Repeat("0", 64) },
			"package dash:amd64=0.5.12-2 from apt is not the one in tiny.lock"},
		"version": {func(tc *Toolchain) { tc.Packages[0].Version, tc.Packages[0].SHA256 = "0.1-1", strings.Repeat("0", 64) },
			"the suite bookworm no longer has what tiny.lock names: apt-get download: exit status 100: Version '0.1-1' for 'dash"},
	} {
		t.Run(name, func(t *testing.T) {
			tc, store := tinyStore(t)
			test.change(tc)
			_, err := Ensure(t.Context(), store, tc, Options{})
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %v, want …%s…", err, test.want)
			}
			if name == "version" && !strings.Contains(err.Error(), tc.Image.String()) {
				t.Errorf("the error does not name the image to use instead: %v", err)
			}
			if roots, _ := filepath.Glob(filepath.Join(store.Dir(), "roots", "*")); len(roots) > 0 {
				t.Errorf("there is a root file system all the same: %v", roots)
			}
		})
	}
	tc, store := tinyStore(t)
	tc.Image = digest.FromString("other")
	if _, err := Image(t.Context(), store, tc, Options{}); err == nil || !strings.Contains(err.Error(), "its lock says "+tc.Image.String()) {
		t.Errorf("Image with a changed lock: %v", err)
	}
}

func TestTruncatedPackage(t *testing.T) {
	tc, store := tinyStore(t)
	for _, cut := range []int64{100, 1000, 60000, tc.Packages[0].Size - 1} {
		file := filepath.Join(t.TempDir(), "dash.deb")
		data, err := store.ReadAll(tc.Packages[0].Digest())
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, data[:cut], 0o644); err != nil {
			t.Fatal(err)
		}
		if err := unpackPackage(t.Context(), file, tc.Packages[0], newTree(t.TempDir()), tc.place); err == nil {
			t.Errorf("unpacking the first %d bytes of a package gave no error", cut)
		}
	}
}

func TestCancelled(t *testing.T) {
	tc, store := tinyStore(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Ensure(ctx, store, tc, Options{}); !errors.Is(err, context.Canceled) {
		t.Errorf("Ensure = %v, want context.Canceled", err)
	}
	if _, err := Lock(ctx, store, &tc.Spec, Options{}); !errors.Is(err, context.Canceled) {
		t.Errorf("Lock = %v, want context.Canceled", err)
	}
	store.Close()
	if left, _ := filepath.Glob(filepath.Join(store.Dir(), "tmp", "*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestWithoutApt(t *testing.T) {
	tc, store := tinyStore(t)
	dpkgDeb, err := exec.LookPath("dpkg-deb")
	if err != nil {
		t.Fatal(err)
	}
	bin := t.TempDir()
	if err := os.Symlink(dpkgDeb, filepath.Join(bin, "dpkg-deb")); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", bin)
	if _, err := Ensure(t.Context(), store, tc, Options{}); err != nil {
		t.Errorf("with all packages in the store: %v", err)
	}
	_, err = Ensure(t.Context(), newStore(t), tc, Options{})
	if err == nil || !strings.Contains(err.Error(), "this machine has no apt client") || !strings.Contains(err.Error(), tc.Image.String()) {
		t.Errorf("with an empty store: %v, want an error that says what is missing and which image to use", err)
	}
	t.Setenv("PATH", t.TempDir())
	_, err = Ensure(t.Context(), again(t, copyOf(t, tc, store)), tc, Options{})
	if err == nil || !strings.Contains(err.Error(), "dpkg-deb") || !strings.Contains(err.Error(), tc.Image.String()) {
		t.Errorf("without dpkg-deb: %v, want an error that says what is missing and which image to use", err)
	}
}

func copyOf(t *testing.T, tc *Toolchain, store *cas.Store) *cas.Store {
	t.Helper()
	s := newStore(t)
	copyPackages(t, store, s, tc)
	return s
}

func TestImage(t *testing.T) {
	tc, store := tinyStore(t)
	img, err := Image(t.Context(), store, tc, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Image(img, validate.Fast); err != nil {
		t.Errorf("the image is not valid: %v", err)
	}
	config, err := img.ConfigFile()
	if err != nil || config.Architecture != "amd64" || config.OS != "linux" || config.Config.Labels[annotationRoot] != tc.Root.String() {
		t.Errorf("config %+v, %v", config, err)
	}

	server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	defer server.Close()
	repository := strings.TrimPrefix(server.URL, "http://") + "/toolchains/tiny"
	ref, err := name.NewTag(repository + ":latest")
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(ref, img, remote.WithContext(t.Context())); err != nil {
		t.Fatal(err)
	}
	for _, from := range []string{writeLayout(t, img), repository, repository + ":other"} {
		fetched := newStore(t)
		root, err := Ensure(t.Context(), fetched, tc, Options{From: from})
		if err != nil {
			t.Errorf("from %s: %v", from, err)
			continue
		}
		want, _ := Ensure(t.Context(), store, tc, Options{})
		if list(t, root) != list(t, want) {
			t.Errorf("from %s: the root file system differs from that made of packages", from)
		}
	}
}

func TestDamagedImage(t *testing.T) {
	tc, store := tinyStore(t)
	img, err := Image(t.Context(), store, tc, Options{})
	if err != nil {
		t.Fatal(err)
	}
	m, err := img.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	blob := func(dir string, hex string) string { return filepath.Join(dir, "blobs", "sha256", hex) }
	layer, config := m.Layers[0].Digest, m.Config.Digest
	for name, test := range map[string]struct {
		change func(dir string)
		want   string
	}{
		"layer flipped":    {func(dir string) { change(t, blob(dir, layer.Hex), false) }, "reading layer " + layer.String() + ": it is damaged: expected"},
		"layer truncated":  {func(dir string) { change(t, blob(dir, layer.Hex), true) }, "reading layer " + layer.String() + ": it is damaged: expected"},
		"layer missing":    {func(dir string) { os.Remove(blob(dir, layer.Hex)) }, "reading layer " + layer.String() + ": lstat"},
		"layer extended":   {func(dir string) { appendTo(t, blob(dir, layer.Hex)) }, "reading layer " + layer.String() + ": it is damaged: expected"},
		"config flipped":   {func(dir string) { change(t, blob(dir, config.Hex), false) }, "reading config " + config.String() + ": it is damaged"},
		"manifest flipped": {func(dir string) { change(t, blob(dir, tc.Image.Encoded()), false) }, "manifest " + tc.Image.String() + " is damaged"},
		"manifest missing": {func(dir string) { os.Remove(blob(dir, tc.Image.Encoded())) }, "reading manifest " + tc.Image.String()},
		"no layout":        {func(dir string) { os.RemoveAll(dir) }, "is not an OCI layout"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := writeLayout(t, img)
			test.change(dir)
			fetched := newStore(t)
			_, err := Ensure(t.Context(), fetched, tc, Options{From: dir})
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %v, want …%s…", err, test.want)
			}
			if roots, _ := filepath.Glob(filepath.Join(fetched.Dir(), "roots", "*")); len(roots) > 0 {
				t.Errorf("there is a root file system all the same: %v", roots)
			}
		})
	}
}

func appendTo(t *testing.T, file string) {
	t.Helper()
	f, err := os.OpenFile(file, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString("x"); err != nil {
		t.Fatal(err)
	}
}

func writeLayout(t *testing.T, img v1.Image) string {
	t.Helper()
	dir := t.TempDir()
	l, err := layout.Write(dir, empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.AppendImage(img); err != nil {
		t.Fatal(err)
	}
	return dir
}

// helperEnv makes the test program print the digests of a toolchain that it makes in the store named by the variable.
const helperEnv = "ENGINERY_TOOLCHAIN_TEST_STORE"

func helper() int {
	syscall.Umask(0o077)
	err := func() error {
		tc, err := Load(os.Args[1])
		if err != nil {
			return err
		}
		store, err := cas.Open(os.Getenv(helperEnv))
		if err != nil {
			return err
		}
		defer store.Close()
		img, err := Image(context.Background(), store, tc, Options{Jobs: 1})
		if err != nil {
			return err
		}
		h, err := img.Digest()
		if err != nil {
			return err
		}
		root, err := cas.HashTree(store.Root(tc.Root))
		fmt.Println(root, h)
		return err
	}()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// TestToolchains makes each toolchain twice, the second time as another user (if it may), one package after the other,
// with another umask, locale, time zone and home; and compiles a program with what came out.
func TestToolchains(t *testing.T) {
	for _, name := range Names() {
		t.Run(name, func(t *testing.T) {
			dir, err := os.MkdirTemp("", "toolchain-test-")
			if err != nil {
				t.Fatal(err)
			}
			defer os.RemoveAll(dir)
			tc, store := packagesOf(t, name, filepath.Join(dir, "elsewhere"))
			root, err := Ensure(t.Context(), defaultStore(t), tc, Options{})
			if err != nil {
				t.Fatal(err)
			}
			for _, p := range tc.Packages {
				if text, err := p.Copyright(root); err != nil || len(text) == 0 {
					t.Errorf("package %s has no licence text: %v", p, err)
				}
			}
			here, err := Image(t.Context(), defaultStore(t), tc, Options{})
			if err != nil {
				t.Fatal(err)
			}
			hash, err := here.Digest()
			if err != nil {
				t.Fatal(err)
			}
			self := filepath.Join(dir, "test")
			copyFile(t, "/proc/self/exe", self)
			cmd := exec.Command(self, name)
			cmd.Dir = "/"
			cmd.Env = []string{helperEnv + "=" + store.Dir(), "PATH=" + os.Getenv("PATH"), "HOME=/nonexistent", "TZ=Pacific/Chatham", "LC_ALL=tr_TR.UTF-8"}
			if os.Getuid() == 0 {
				const nobody = 65534
				cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
				giveTo(t, dir, nobody)
			}
			var stderr bytes.Buffer
			cmd.Stderr = &stderr
			out, err := cmd.Output()
			if err != nil {
				t.Fatalf("%v: %s", err, stderr.Bytes())
			}
			if want := fmt.Sprintln(tc.Root, hash); string(out) != want {
				t.Errorf("in another environment: %swant %s", out, want)
			}
			compile(t, tc, store.Root(tc.Root))
		})
	}
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	b, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(to, b, 0o755); err != nil {
		t.Fatal(err)
	}
}

func giveTo(t *testing.T, dir string, id int) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(path, id, id)
	})
	if err != nil {
		t.Fatal(err)
	}
}

const program = `#include <math.h>
#include <pthread.h>
#include <stdio.h>
static void *run(void *p) { *(double *)p = pow(*(double *)p, 0.5); return NULL; }
int main(int argc, char **argv) {
	double x = argc + 1;
	pthread_t thread;
	if (pthread_create(&thread, NULL, run, &x) || pthread_join(thread, NULL)) return 1;
	return printf("%.17g\n", x) < 0;
}
`

// compile compiles a program statically within root, which is the test's own to write to.
func compile(t *testing.T, tc *Toolchain, root string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(root, "build/p.c"), []byte(program), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "build/makefile"), []byte("p: p.c ; @mkdir -p out && $(CC) -static -O2 -Wall -Werror -o out/p p.c -lm -lpthread -ldl\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/usr/bin/make", "CC="+tc.Compiler)
	cmd.Dir = "/build"
	cmd.Env = []string{"PATH=" + tc.Path}
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: root}
	if id := os.Getuid(); id != 0 {
		cmd.SysProcAttr.Cloneflags = syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{HostID: id, Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}}
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("make: %v: %s", err, out)
	}
	binary := filepath.Join(root, "build/out/p")
	f, err := elf.Open(binary)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if want := map[string]elf.Machine{"linux/amd64": elf.EM_X86_64, "linux/arm64": elf.EM_AARCH64}[tc.Target]; f.Machine != want {
		t.Errorf("the program is for %v, want %v", f.Machine, want)
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP || p.Type == elf.PT_DYNAMIC {
			t.Errorf("the program is not static: it has a %v segment", p.Type)
		}
	}
	run := exec.Command(binary)
	if tc.Target != tc.Host {
		emulator, err := exec.LookPath("qemu-aarch64-static")
		if err != nil {
			t.Logf("the program was not run: %v", err)
			return
		}
		run = exec.Command(emulator, binary)
	}
	if out, err := run.CombinedOutput(); err != nil || string(out) != "1.4142135623730951\n" {
		t.Errorf("the program says %q (%v), want the square root of 2", out, err)
	}
}
