package toolchain

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/enginery/enginery/internal/cas"
	"github.com/opencontainers/go-digest"
)

func TestMain(m *testing.M) {
	if os.Getenv(helperEnv) != "" {
		os.Exit(helper())
	}
	os.Exit(m.Run())
}

const goodSpec = `suite = "bookworm"
host = "linux/amd64"
target = "linux/amd64"
compiler = "x86_64-linux-gnu-gcc-12"
path = "/usr/bin"
packages = ["dash", "libgcc-s1"]
leave-out = [
  "debianutils", "dpkg",
  "libc6",
]
drop = ["usr/share/*"]
keep = ["usr/share/doc/*", "usr/share/doc/*/copyright"]
directories = ["proc"]
[links]
bin = "usr/bin"
lib = "usr/lib"
`

func TestParseSpec(t *testing.T) {
	if _, err := ParseSpec("tiny", "tiny.toml", []byte(goodSpec)); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct{ old, new, want string }{
		{`suite =`, `suit =`, `tiny.toml:1:1: unknown key suit`},
		{`path = `, "host = \"linux/arm64\"\npath = ", `tiny.toml:5:1: key host is already defined`},
		{`"bookworm"`, `"Bookworm!"`, `tiny.toml:1: suite is "Bookworm!"`},
		{`suite = "bookworm"`, ``, `tiny.toml: suite is ""`},
		{`target = "linux/amd64"`, `target = "windows/amd64"`, `tiny.toml:3: target is "windows/amd64"`},
		{`x86_64-linux-gnu-gcc-12`, `/bin/cc`, `tiny.toml:4: compiler is "/bin/cc"`},
		{`"/usr/bin"`, `"/usr/bin:bin"`, `tiny.toml:5: directory 2 of path is "bin"`},
		{`["dash", "libgcc-s1"]`, `[]`, `tiny.toml:6: no packages are wanted`},
		{`"libgcc-s1"`, `"dash"`, `tiny.toml:6: package dash is listed twice`},
		{`"libgcc-s1"`, `"dash:mips"`, `tiny.toml:6: "dash:mips" is not a Debian package`},
		{`"libc6"`, `"dash"`, `tiny.toml:9: package dash is both wanted and left out`},
		{`"libc6"`, `"--purge"`, `tiny.toml:9: "--purge" is not a Debian package`},
		{`"usr/share/*"`, `"/usr/share/*"`, `tiny.toml:11: "/usr/share/*" is not a pattern`},
		{`"usr/share/*"`, `"usr/[share"`, `tiny.toml:11: "usr/[share" is not a pattern`},
		{`"proc"`, `"../proc"`, `tiny.toml:13: "../proc" is not a clean relative path`},
		{`bin = "usr/bin"`, `bin = "../bin"`, `tiny.toml:15: link "bin" to "../bin"`},
	} {
		in := strings.Replace(goodSpec, test.old, test.new, 1)
		_, err := ParseSpec("tiny", "tiny.toml", []byte(in))
		if err == nil || !strings.HasPrefix(err.Error(), test.want) {
			t.Errorf("%s for %s: %v, want %s", test.new, test.old, err, test.want)
		}
	}
}

func someToolchain(t *testing.T) *Toolchain {
	t.Helper()
	spec, err := ParseSpec("tiny", "tiny.toml", []byte(goodSpec))
	if err != nil {
		t.Fatal(err)
	}
	return &Toolchain{
		Spec:  *spec,
		Root:  cas.OfBytes([]byte("root")),
		Image: digest.FromString("image"),
		Packages: []Package{
			{Name: "dash", Version: "0.5.12-2", Architecture: "amd64", Source: "dash 0.5.12-2", Size: 91848, SHA256: strings.Repeat("1", 64)},
			{Name: "gcc-12-base", Version: "12.2.0-14+deb12u1", Architecture: "amd64", Source: "gcc-12 12.2.0-14+deb12u1", Size: 7, SHA256: strings.Repeat("2", 64)},
			{Name: "gcc-12-base", Version: "12.2.0-14+deb12u1", Architecture: "arm64", Source: "gcc-12 12.2.0-14+deb12u1", Size: 7, SHA256: strings.Repeat("3", 64)},
			{Name: "libattr1", Version: "1:2.5.1-4", Architecture: "all", Source: "attr 1:2.5.1-4", Size: 9, SHA256: strings.Repeat("4", 64)},
		},
	}
}

func TestLockFile(t *testing.T) {
	want := someToolchain(t)
	file := want.LockFile()
	got, err := Parse(&want.Spec, "tiny.lock", file)
	if err != nil {
		t.Fatal(err)
	}
	if got.Root != want.Root || got.Image != want.Image || !slices.Equal(got.Packages, want.Packages) {
		t.Errorf("Parse(LockFile) = %+v, want %+v", got, want)
	}
	if again := got.LockFile(); !bytes.Equal(again, file) {
		t.Errorf("LockFile of what was parsed differs:\n%s\nfrom\n%s", again, file)
	}

	reseal := func(lock string) string {
		body, _, _ := strings.Cut(lock, sealKey)
		return body + sealKey + `"` + sealOf(body+"\n") + "\"\n"
	}
	for _, test := range []struct {
		old, new string
		sealed   bool // by whoever made the change
		want     string
	}{
		{"91848", "91849", false, "tiny.lock:12: the lock has been changed since it was written"},
		{"# Written", "# written", false, "tiny.lock:12: the lock has been changed"},
		{`seal = "`, `seal = "0`, false, "tiny.lock:12: the lock has been changed"},
		{"\nseal", "\n#seal", false, "tiny.lock: the lock has been changed"},
		{"root =", "roof =", true, "tiny.lock:3:1: unknown key roof"},
		{"root = ", "root = \"\"\nroot = ", true, "tiny.lock:4:1: key root is already defined"},
		{"root = \"", "root = \"0", true, "tiny.lock:3:8: "},
		{"sha256:", "sha512:", true, `tiny.lock:4: image is "sha512:`},
		{"size = 91848", "size = -1", true, "tiny.lock:6: package dash:amd64=0.5.12-2 has the size -1"},
		{"1111", "111", true, "tiny.lock:6: package \"dash\" has the sha256"},
		{"1111", "111/", true, "tiny.lock:6: package \"dash\" has the sha256"},
		{`"all"`, `"any"`, true, "tiny.lock:9: package \"libattr1\" has the architecture \"any\""},
		{`"libattr1"`, `"-oDir=/"`, true, "tiny.lock:9: package \"-oDir=/\" has the name"},
		{`"1:2.5.1-4"`, `"1:2.5 1"`, true, "tiny.lock:9: package \"libattr1\" has the version"},
		{`"arm64"`, `"amd64"`, true, "tiny.lock:8: package gcc-12-base:amd64=12.2.0-14+deb12u1 stands after"},
		{"spec = \"", "spec = \"" + cas.OfBytes(nil).String() + "\" # ", true, "tiny.lock:2: the lock is older than tiny.toml"},
	} {
		in := strings.Replace(string(file), test.old, test.new, 1)
		if test.sealed {
			in = reseal(in)
		}
		_, err := Parse(&want.Spec, "tiny.lock", []byte(in))
		if err == nil || !strings.HasPrefix(err.Error(), test.want) {
			t.Errorf("%q for %q: %v, want %s", test.new, test.old, err, test.want)
		}
	}
}

func TestCommittedToolchains(t *testing.T) {
	targets := make(map[string]bool)
	for _, name := range Names() {
		tc, err := Load(name)
		if err != nil {
			t.Fatal(err)
		}
		targets[tc.Target] = true
		file, err := os.ReadFile(name + ".lock")
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(tc.LockFile(), file) {
			t.Errorf("%s.lock is not what LockFile writes", name)
		}
		for _, p := range tc.Packages {
			if slices.Contains(tc.LeaveOut, p.Name) || slices.Contains(tc.LeaveOut, p.Name+":"+p.Architecture) {
				t.Errorf("%s: package %s is in the lock and left out", name, p)
			}
		}
	}
	for _, want := range []string{"linux/amd64", "linux/arm64"} {
		if !targets[want] {
			t.Errorf("no toolchain compiles for %s", want)
		}
	}
	if _, err := Load("nonesuch"); err == nil || !strings.Contains(err.Error(), Names()[0]) {
		t.Errorf("Load of an unknown toolchain: %v, want an error that names those that exist", err)
	}
	if _, err := Load("../go"); err == nil {
		t.Error("Load of a path gave no error")
	}
}

func TestPURL(t *testing.T) {
	p := Package{Name: "libstdc++6", Version: "1:12.2.0~rc1-14+deb12u1", Architecture: "amd64"}
	const want = "pkg:deb/debian/libstdc%2B%2B6@1:12.2.0~rc1-14%2Bdeb12u1?arch=amd64&distro=bookworm"
	if got := p.PURL("bookworm"); got != want {
		t.Errorf("PURL = %s, want %s", got, want)
	}
}

// defaultStore is the store that builds use, so that tests share their downloads.
func defaultStore(t testing.TB) *cas.Store {
	t.Helper()
	dir, err := cas.DefaultDir()
	if err != nil {
		t.Fatal(err)
	}
	store, err := cas.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(store.Close)
	return store
}

// packagesOf returns the committed toolchain called name and a new store in dir that has its packages.
func packagesOf(t testing.TB, name, dir string) (*Toolchain, *cas.Store) {
	t.Helper()
	tc, err := Load(name)
	if err != nil {
		t.Fatal(err)
	}
	all := defaultStore(t)
	if err := fetch(t.Context(), all, tc); err != nil {
		t.Fatal(err)
	}
	store, err := cas.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(store.Close)
	copyPackages(t, all, store, tc)
	return tc, store
}

func copyPackages(t testing.TB, from, to *cas.Store, tc *Toolchain) {
	t.Helper()
	for _, p := range tc.Packages {
		r, err := from.Open(p.Digest())
		if err != nil {
			t.Fatal(err)
		}
		err = to.PutExpected(t.Context(), r, p.Digest())
		r.Close()
		if err != nil {
			t.Fatal(err)
		}
	}
}

// BenchmarkUnpack goes from packages in the store to a verified root file system, and unpacks the same packages with dpkg-deb, alternately.
// It reports the ratio of their times.
func BenchmarkUnpack(b *testing.B) {
	tc, store := packagesOf(b, "bookworm-gcc12-amd64", filepath.Join(b.TempDir(), "store"))
	var ours, dpkg time.Duration
	for b.Loop() {
		if err := os.RemoveAll(store.Root(tc.Root)); err != nil {
			b.Fatal(err)
		}
		fresh, err := cas.Open(store.Dir()) // knows of no root that has been verified
		if err != nil {
			b.Fatal(err)
		}
		start := time.Now()
		if _, err := Ensure(b.Context(), fresh, tc, Options{}); err != nil {
			b.Fatal(err)
		}
		ours += time.Since(start)
		fresh.Close()

		dir, err := os.MkdirTemp(b.TempDir(), "root")
		if err != nil {
			b.Fatal(err)
		}
		start = time.Now()
		for _, p := range tc.Packages {
			if out, err := exec.Command("dpkg-deb", "-x", store.Path(p.Digest()), dir).CombinedOutput(); err != nil {
				b.Fatalf("%v: %s", err, out)
			}
		}
		dpkg += time.Since(start)
		os.RemoveAll(dir)
	}
	b.ReportMetric(ours.Seconds()/float64(b.N), "unpack-s/op")
	b.ReportMetric(dpkg.Seconds()/float64(b.N), "dpkg-deb-s/op")
	b.ReportMetric(ours.Seconds()/dpkg.Seconds(), "unpack/dpkg-deb")
}

// BenchmarkEnsure verifies a root file system that is there.
func BenchmarkEnsure(b *testing.B) {
	tc, err := Load("bookworm-gcc12-amd64")
	if err != nil {
		b.Fatal(err)
	}
	store := defaultStore(b)
	if _, err := Ensure(b.Context(), store, tc, Options{}); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		fresh, err := cas.Open(store.Dir())
		if err != nil {
			b.Fatal(err)
		}
		if _, err := Ensure(b.Context(), fresh, tc, Options{}); err != nil {
			b.Fatal(err)
		}
	}
}
