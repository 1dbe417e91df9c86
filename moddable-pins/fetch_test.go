package pins

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/enginery/enginery/internal/cas"
	"github.com/enginery/enginery/internal/npm"
	"github.com/enginery/enginery/internal/progress"
)

func openStore(t *testing.T) *cas.Store {
	t.Helper()
	store, err := cas.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return store
}

// The sources of the shipped engines come from npm and are the recorded ones.
func TestFetchNPM(t *testing.T) {
	f := &Fetcher{Store: openStore(t)}
	for _, name := range []string{"f6c5951f-105bc686", "f6c5951f-eef9b67d"} {
		p, err := Load(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := f.Fetch(t.Context(), p); err != nil {
			t.Fatal(err)
		}
		for _, c := range []Component{p.Moddable, p.XsnapNative} {
			if !f.Store.HasTree(c.Tree) {
				t.Errorf("%s: the tree of %s is not in the store", name, c.Name)
			}
		}
	}
	t.Setenv("PATH", "") // no client to fetch with
	p, err := Load("f6c5951f-105bc686")
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Fetch(t.Context(), p); err != nil {
		t.Errorf("with everything in the store: %v", err)
	}
}

// Moddable f6c5951f has one digest, whichever of the two packages that carry it is asked.
func TestOneTreeOneDigest(t *testing.T) {
	p, err := Load("f6c5951f-105bc686")
	if err != nil {
		t.Fatal(err)
	}
	packages := 0
	for _, s := range p.Moddable.Sources {
		if s.Git != "" {
			continue
		}
		packages++
		f := &Fetcher{Store: openStore(t)}
		c := p.Moddable
		c.Recorded, c.Tree = false, cas.Digest{} // so that nothing is compared on the way
		found, err := f.obtain(t.Context(), &c, place{source: s})
		if err != nil {
			t.Fatal(err)
		}
		if found != p.Moddable.Tree {
			t.Errorf("%s has the tree %s, want %s", s, found, p.Moddable.Tree)
		}
	}
	if packages != 2 {
		t.Errorf("%d npm packages, want 2", packages)
	}
}

// upstream is a repository that the tests make: the commit to fetch has a later one on top of it.
type upstream struct {
	dir     string // OWNER/NAME.git below a folder of its own
	root    string // that folder
	commit  string
	wayward string // a commit with a symbolic link in it
	tree    cas.Digest
}

func (u *upstream) url() string { return "file://" + u.dir }

func git_(t *testing.T, dir string, args ...string) string {
	t.Helper()
	cmd := exec.Command("git", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@example.com", "GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@example.com")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("git %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

func write(t *testing.T, dir string, contents map[string]string) {
	t.Helper()
	for name, content := range contents {
		file := filepath.Join(dir, name)
		mode := os.FileMode(0o644)
		if strings.HasPrefix(content, "#!") {
			mode = 0o755
		}
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, []byte(content), mode), os.Chmod(file, mode)); err != nil {
			t.Fatal(err)
		}
	}
}

var wanted = map[string]string{"src/a.c": "int a;\n", "src/deep/run.sh": "#!/bin/sh\n", "include/a.h": "\x00binary\n"}

func newUpstream(t *testing.T) *upstream {
	t.Helper()
	work, root, clean := t.TempDir(), t.TempDir(), t.TempDir()
	write(t, clean, wanted)
	tree, err := cas.HashTree(clean)
	if err != nil {
		t.Fatal(err)
	}
	u := &upstream{root: root, dir: filepath.Join(root, "owner", "name.git"), tree: tree}
	git_(t, work, "init", "--quiet", "--initial-branch=main")
	write(t, work, wanted)
	write(t, work, map[string]string{"README": "not wanted", "include/x/b.h": "not wanted", "src/.gitignore": "*.o\n",
		".gitattributes": "*.c text eol=crlf export-ignore\n"})
	git_(t, work, "-c", "core.autocrlf=false", "add", ".")
	git_(t, work, "commit", "--quiet", "-m", "one")
	u.commit = git_(t, work, "rev-parse", "HEAD")
	write(t, work, map[string]string{"src/a.c": "int b;\n"})
	git_(t, work, "commit", "--quiet", "-a", "-m", "two")
	if err := os.Symlink("a.c", filepath.Join(work, "src", "link.c")); err != nil {
		t.Fatal(err)
	}
	git_(t, work, "add", ".")
	git_(t, work, "commit", "--quiet", "-m", "three")
	u.wayward = git_(t, work, "rev-parse", "HEAD")
	git_(t, root, "clone", "--quiet", "--bare", work, u.dir)
	return u
}

func (u *upstream) component() Component {
	return Component{Name: "moddable", Commit: u.commit, License: "MIT", Tree: u.tree, Recorded: true, Paths: []string{"src", "include/*.h"},
		Sources: []Source{{Git: u.url()}}}
}

func TestFetchGit(t *testing.T) {
	u := newUpstream(t)
	const gone = "https://host.invalid/owner/name"
	for name, test := range map[string]struct {
		set  func(*testing.T, *Fetcher, *Component)
		want any    // type of the error; nil: it works
		says string // in the error
	}{
		"a commit that is no tip": {func(*testing.T, *Fetcher, *Component) {}, nil, ""},
		"a server that filters": {func(t *testing.T, _ *Fetcher, _ *Component) {
			git_(t, u.dir, "config", "uploadpack.allowFilter", "true")
			t.Cleanup(func() { git_(t, u.dir, "config", "--unset", "uploadpack.allowFilter") })
		}, nil, ""},
		"the user's insteadOf": {func(t *testing.T, _ *Fetcher, c *Component) {
			config := filepath.Join(t.TempDir(), "gitconfig")
			write(t, filepath.Dir(config), map[string]string{"gitconfig": "[url \"file://" + u.root + "/\"]\n\tinsteadOf = https://host.invalid/\n"})
			t.Setenv("GIT_CONFIG_GLOBAL", config)
			c.Sources[0].Git = gone
		}, nil, ""},
		"the user's configuration in the environment": {func(t *testing.T, _ *Fetcher, c *Component) {
			t.Setenv("GIT_CONFIG_COUNT", "1")
			t.Setenv("GIT_CONFIG_KEY_0", "url.file://"+u.root+"/.insteadOf")
			t.Setenv("GIT_CONFIG_VALUE_0", "https://host.invalid/")
			c.Sources[0].Git = gone
		}, nil, ""},
		"a mirror": {func(_ *testing.T, f *Fetcher, c *Component) {
			f.Mirror, c.Sources[0].Git = u.root, gone
		}, nil, ""},
		"a mirror without owners": {func(t *testing.T, f *Fetcher, c *Component) {
			f.Mirror, c.Sources[0].Git = t.TempDir(), gone
			if err := os.Symlink(u.dir, filepath.Join(f.Mirror, "name")); err != nil {
				t.Fatal(err)
			}
		}, nil, ""},
		"a mirror that lacks the repository": {func(t *testing.T, f *Fetcher, _ *Component) { f.Mirror = t.TempDir() }, nil, ""},
		"a mirror that lacks the commit": {func(t *testing.T, f *Fetcher, _ *Component) {
			f.Mirror = t.TempDir()
			git_(t, f.Mirror, "init", "--quiet", "--bare", "owner/name.git")
		}, nil, ""},
		"no mirror": {func(_ *testing.T, f *Fetcher, _ *Component) { f.Mirror = "/nonexistent" }, errAny, "/nonexistent"},
		"a later source": {func(_ *testing.T, _ *Fetcher, c *Component) {
			c.Sources = append([]Source{{Git: "file:///nonexistent/owner/name"}}, c.Sources...)
		}, nil, ""},
		"ties to a repository at hand": {func(t *testing.T, _ *Fetcher, _ *Component) {
			t.Setenv("GIT_DIR", "/nonexistent")
			t.Setenv("GIT_INDEX_FILE", "/nonexistent")
		}, nil, ""},
		"a mask that takes away all but reading and writing": {func(t *testing.T, _ *Fetcher, _ *Component) {
			old := syscall.Umask(0o177)
			t.Cleanup(func() { syscall.Umask(old) })
		}, nil, ""},

		"another tree on record": {func(_ *testing.T, _ *Fetcher, c *Component) { c.Tree = cas.OfBytes(nil) }, new(*TreeError), "they were not used"},
		"a commit that does not exist": {func(_ *testing.T, _ *Fetcher, c *Component) {
			c.Commit = strings.Repeat("ab", 20)
		}, new(*UnavailableError), "it does not have that commit"},
		"a tree's id for the commit's": {func(t *testing.T, _ *Fetcher, c *Component) {
			c.Commit = git_(t, u.dir, "rev-parse", u.commit+"^{tree}")
		}, new(*UnavailableError), ""},
		"a missing repository": {func(_ *testing.T, _ *Fetcher, c *Component) {
			c.Sources[0].Git = "file:///nonexistent/owner/name"
		}, new(*UnavailableError), "/nonexistent/owner/name"},
		"an unknown host": {func(_ *testing.T, _ *Fetcher, c *Component) {
			c.Sources[0].Git = gone
		}, new(*UnavailableError), "--source-mirror DIR or ENGINERY_SOURCE_MIRROR=DIR"},
		"no git":          {func(t *testing.T, _ *Fetcher, _ *Component) { t.Setenv("PATH", "") }, new(*UnavailableError), "git is not installed"},
		"a symbolic link": {func(_ *testing.T, _ *Fetcher, c *Component) { c.Commit = u.wayward }, errAny, "src/link.c"},
		"a damaged repository": {func(t *testing.T, _ *Fetcher, c *Component) {
			dir := filepath.Join(t.TempDir(), "owner", "name.git")
			git_(t, t.TempDir(), "clone", "--quiet", "--bare", "--no-hardlinks", u.dir, dir)
			blob := git_(t, dir, "rev-parse", c.Commit+":src/a.c")
			flip(t, filepath.Join(dir, "objects", blob[:2], blob[2:]))
			c.Sources[0].Git = "file://" + dir
		}, new(*UnavailableError), ""},
	} {
		t.Run(name, func(t *testing.T) {
			f := &Fetcher{Store: openStore(t)}
			p := &Pin{Name: "test", Moddable: u.component(), XsnapNative: u.component()}
			test.set(t, f, &p.Moddable)
			p.XsnapNative = p.Moddable
			err := f.Fetch(t.Context(), p)
			if test.want == nil {
				if err != nil {
					t.Fatal(err)
				}
				if !f.Store.HasTree(u.tree) {
					t.Error("the tree is not in the store")
				}
				return
			}
			if err == nil || test.want != errAny && !errors.As(err, test.want) || !strings.Contains(err.Error(), test.says) {
				t.Errorf("got %v, want %T that says %q", err, test.want, test.says)
			}
			if f.Store.HasTree(u.tree) {
				t.Error("the tree is in the store")
			}
		})
	}
}

var errAny any = "any error"

func flip(t *testing.T, file string) {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 0x10
	if err := errors.Join(os.Chmod(file, 0o644), os.WriteFile(file, b, 0o644)); err != nil {
		t.Fatal(err)
	}
}

// What the error of an unreachable pin says is enough to go on.
func TestUnavailable(t *testing.T) {
	p, err := Load("547c16c3-0b3869eb")
	if err != nil {
		t.Fatal(err)
	}
	mirror := t.TempDir()
	t.Setenv("GIT_CONFIG_COUNT", "1") // on a machine that reaches the hosts the test must fail to, as well
	t.Setenv("GIT_CONFIG_KEY_0", "url.https://host.invalid/.insteadOf")
	t.Setenv("GIT_CONFIG_VALUE_0", "https://github.com/")
	git_(t, mirror, "init", "--quiet", "--bare", "agoric-labs/moddable.git")
	f := &Fetcher{Store: openStore(t), Mirror: mirror}
	err = f.Fetch(t.Context(), p)
	var unavailable *UnavailableError
	if !errors.As(err, &unavailable) {
		t.Fatalf("got %v", err)
	}
	if len(unavailable.Tried) != 2 || unavailable.Component != "moddable" {
		t.Errorf("got %+v", unavailable)
	}
	for _, want := range []string{"pin 547c16c3-0b3869eb", "moddable 547c16c34ac90f6ae4329d0deeb171f5c99c37b4",
		"mirror " + mirror + "/agoric-labs/moddable.git: ", "git https://github.com/agoric-labs/moddable: ",
		"DIR that has it as agoric-labs/moddable.git", "--source-mirror DIR", "ENGINERY_SOURCE_MIRROR=DIR", "insteadOf https://github.com/agoric-labs/moddable"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the error does not say %q:\n%v", want, err)
		}
	}
}

// A host that accepts connections and says nothing does not hold up who cancels.
func TestFetchGitCancel(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		if c, err := l.Accept(); err == nil {
			defer c.Close()
		}
		cancel()
		<-t.Context().Done()
	}()
	c := newUpstream(t).component()
	c.Sources[0].Git = "git://" + l.Addr().String() + "/owner/name"
	start := time.Now()
	f := &Fetcher{Store: openStore(t)}
	if err := f.Fetch(ctx, &Pin{Moddable: c, XsnapNative: c}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if took := time.Since(start); took > 30*time.Second {
		t.Errorf("it took %v", took)
	}
}

// A tree that npm has packed is the tree that git has.
func TestNPMPacksWhatGitHas(t *testing.T) {
	u := newUpstream(t)
	pkg, dest := t.TempDir(), t.TempDir()
	git_(t, t.TempDir(), "-c", "core.autocrlf=false", "clone", "--quiet", u.dir, pkg+"/tree")
	git_(t, pkg+"/tree", "-c", "core.autocrlf=false", "-c", "core.attributesFile=/dev/null", "checkout", "--quiet", "--detach", u.commit)
	write(t, pkg, map[string]string{"tree/src/a.c": wanted["src/a.c"], // without the work tree's line ends
		"tree/src/.DS_Store": "editor's", "tree/src/a.c.orig": "editor's",
		"package.json": `{"name":"demo","version":"1.0.0","files":["tree/src/**","tree/include/**"]}`})
	cmd := exec.Command("npm", "pack", "--pack-destination", dest)
	cmd.Dir = pkg
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	tgz, err := os.ReadFile(filepath.Join(dest, "demo-1.0.0.tgz"))
	if err != nil {
		t.Fatal(err)
	}
	if got := fromTarball(t, tgz, "tree", u.component()); got != u.tree {
		t.Errorf("npm's tree is %s, git's %s", got, u.tree)
	}
}

// fromTarball returns the digest of the component that a package has in a folder. The package comes from a store, as if
// it had been fetched before.
func fromTarball(t *testing.T, tgz []byte, folder string, c Component) cas.Digest {
	t.Helper()
	f := &Fetcher{Store: openStore(t)}
	d, err := f.Store.PutBytes(t.Context(), tgz)
	if err != nil {
		t.Fatal(err)
	}
	none := "sha512-" + strings.Repeat("A", 86) + "==" // not looked at again
	c.Sources = []Source{{Package: npm.Package{Name: "demo", Version: "1.0.0", Integrity: none, Tarball: d}, Path: folder}}
	c.Recorded = false
	if err := f.fetch(t.Context(), &c); err != nil {
		t.Fatal(err)
	}
	return c.Tree
}

// Names and contents count, and so does the executable bit; the other bits and the order in the tarball do not.
func TestWhatATreeIs(t *testing.T) {
	c := Component{Name: "moddable", Commit: strings.Repeat("0", 40), Paths: []string{"src"}}
	pack := func(headers ...tar.Header) cas.Digest {
		var b bytes.Buffer
		zw := gzip.NewWriter(&b)
		tw := tar.NewWriter(zw)
		for _, h := range headers {
			content := h.Linkname
			h.Linkname, h.Size = "", int64(len(content))
			if err := tw.WriteHeader(&h); err != nil {
				t.Fatal(err)
			}
			tw.Write([]byte(content))
		}
		if err := errors.Join(tw.Close(), zw.Close()); err != nil {
			t.Fatal(err)
		}
		return fromTarball(t, b.Bytes(), ".", c)
	}
	a := tar.Header{Name: "package/src/a", Linkname: "a", Mode: 0o644}
	b := tar.Header{Name: "package/src/b", Linkname: "b", Mode: 0o755}
	one := pack(a, b)
	loose := a
	loose.Mode, loose.ModTime, loose.Uid = 0o600, time.Unix(9, 0), 7
	if got := pack(b, loose, tar.Header{Name: "package/other", Linkname: "x"}); got != one {
		t.Errorf("the order, an owner, a time or a file elsewhere counts: %s, %s", one, got)
	}
	for _, change := range []func(*tar.Header){
		func(h *tar.Header) { h.Mode = 0o755 },
		func(h *tar.Header) { h.Name += "2" },
		func(h *tar.Header) { h.Linkname = "c" },
	} {
		other := a
		change(&other)
		if got := pack(other, b); got == one {
			t.Errorf("%+v makes no difference", other)
		}
	}
}

func TestAdd(t *testing.T) {
	u := newUpstream(t)
	mirror := t.TempDir() // with the two names that new pins are looked for under
	for _, name := range []string{"agoric-labs/moddable.git", "agoric-labs/xsnap-pub.git"} {
		if err := os.MkdirAll(filepath.Join(mirror, filepath.Dir(name)), 0o755); err != nil {
			t.Fatal(err)
		}
		work := t.TempDir()
		git_(t, work, "init", "--quiet", "--initial-branch=main")
		write(t, work, map[string]string{"xs/sources/a.c": "a", "xs/platforms/a.h": "b", "xsnap/sources/b.c": "c", "README": "no"})
		git_(t, work, "add", ".")
		git_(t, work, "commit", "--quiet", "-m", name)
		git_(t, work, "clone", "--quiet", "--bare", work, filepath.Join(mirror, name))
	}
	moddable := git_(t, mirror+"/agoric-labs/moddable.git", "rev-parse", "HEAD")
	native := git_(t, mirror+"/agoric-labs/xsnap-pub.git", "rev-parse", "HEAD")
	dir := t.TempDir()
	f := &Fetcher{Store: openStore(t), Mirror: mirror}
	file, err := f.Add(t.Context(), dir, "new", moddable, native)
	if err != nil {
		t.Fatal(err)
	}
	first, err := load(os.DirFS(dir), "new")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []Component{first.Moddable, first.XsnapNative} {
		if !c.Recorded || !f.Store.HasTree(c.Tree) {
			t.Errorf("%s: %+v", c.Name, c)
		}
	}
	if first.Moddable.Commit != moddable || first.XsnapNative.Commit != native {
		t.Errorf("got %+v", first)
	}
	whole, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}

	// What a pin leaves unrecorded is filled in, and the rest of the file stays.
	note := "# Shipped by nobody.\n#\n# A second paragraph.\n"
	first.Moddable.Recorded = false
	if err := os.WriteFile(file, format(first, note), 0o644); err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	ctx, reporter := progress.With(t.Context(), &log)
	open, err := load(os.DirFS(dir), "new")
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Fetch(ctx, open); err != nil {
		t.Fatal(err)
	}
	reporter.Close()
	if want := "go tool mage pins:add new " + moddable + " " + native; !strings.Contains(log.String(), want) || open.Moddable.Recorded || open.Moddable.Tree.IsZero() {
		t.Errorf("fetching an unrecorded tree: %+v; logged %q", open.Moddable, log.String())
	}
	if _, err := f.Add(t.Context(), dir, "new", moddable, native); err != nil {
		t.Fatal(err)
	}
	again, err := os.ReadFile(file)
	if want := strings.Replace(string(whole), "\n", "\n"+note, 1); err != nil || string(again) != want {
		t.Errorf("got %v\n%s\nwant\n%s", err, again, want)
	}

	for name, add := range map[string]func() (string, error){
		"a complete pin":            func() (string, error) { return f.Add(t.Context(), dir, "new", moddable, native) },
		"other commits":             func() (string, error) { return f.Add(t.Context(), dir, "new", native, moddable) },
		"a short commit":            func() (string, error) { return f.Add(t.Context(), dir, "short", moddable[:8], native) },
		"a name that is a path":     func() (string, error) { return f.Add(t.Context(), dir, "../x", moddable, native) },
		"a commit nobody can reach": func() (string, error) { return f.Add(t.Context(), dir, "gone", u.commit, native) },
	} {
		if name == "a commit nobody can reach" {
			t.Setenv("GIT_CONFIG_COUNT", "1")
			t.Setenv("GIT_CONFIG_KEY_0", "url.https://host.invalid/.insteadOf")
			t.Setenv("GIT_CONFIG_VALUE_0", "https://github.com/")
		}
		if _, err := add(); err == nil {
			t.Errorf("%s was added", name)
		}
	}
	if found, err := os.ReadDir(dir); err != nil || len(found) != 1 {
		t.Errorf("failures left files behind: %v, %v", found, err)
	}
}

func TestVerify(t *testing.T) {
	f := &Fetcher{Store: openStore(t)}
	checks, err := f.Verify(t.Context(), "f6c5951f-105bc686", "f6c5951f-eef9b67d")
	if err != nil {
		t.Fatal(err)
	}
	reached := 0
	for _, c := range checks {
		switch {
		case c.Status == Reached:
			reached++
		case c.Status == Unreachable && strings.HasPrefix(c.Source, "git "): // a machine need not reach the host
		default:
			t.Errorf("%+v", c)
		}
	}
	if len(checks) != 7 || reached < 4 {
		t.Errorf("%d sources, %d reached; want 3 of Moddable and 2 of each xsnap-native, 4 of them on npm", len(checks), reached)
	}
}

func TestWriteTable(t *testing.T) {
	a, b := strings.Repeat("a", 40), strings.Repeat("b", 40)
	var got strings.Builder
	err := WriteTable(&got, []Check{
		{"moddable", a, []string{"one", "two"}, "npm x@1.0.0", Reached, cas.OfBytes(nil), nil},
		{"moddable", a, []string{"one"}, "git url", Unreachable, cas.Digest{}, errors.New("no host")},
		{"moddable", b, []string{"two"}, "git url", Unreachable, cas.Digest{}, errors.New("no host")},
		{"xsnap-native", b, []string{"two"}, "git other", Unrecorded, cas.OfBytes(nil), nil},
	})
	want := `COMPONENT     COMMIT    STATUS       SOURCE       PINS
moddable      aaaaaaaa  reached      npm x@1.0.0  one two
moddable      aaaaaaaa  unreachable  git url      one
moddable      bbbbbbbb  unreachable  git url      two
xsnap-native  bbbbbbbb  unrecorded   git other    two

unreachable from git url: no host
  (moddable aaaaaaaa, moddable bbbbbbbb)

unrecorded: git other has the tree ` + cas.OfBytes(nil).String() + `; go tool mage pins:add records it
  (xsnap-native bbbbbbbb)
`
	if err != nil || got.String() != want {
		t.Errorf("got %v\n%s\nwant\n%s", err, got.String(), want)
	}
}

func TestJudge(t *testing.T) {
	reached := Check{Component: "moddable", Commit: strings.Repeat("a", 40), Status: Reached}
	elsewhere := Check{Component: "moddable", Commit: strings.Repeat("a", 40), Status: Unreachable}
	nowhere := Check{Component: "xsnap-native", Commit: strings.Repeat("b", 40), Status: Unreachable}
	different := Check{Component: "moddable", Commit: strings.Repeat("c", 40), Status: Different}
	if err := Judge([]Check{elsewhere, reached}); err != nil {
		t.Errorf("one of two sources reached: %v", err)
	}
	var unreachable *UnreachableError
	if err := Judge([]Check{elsewhere, reached, nowhere, nowhere}); !errors.As(err, &unreachable) || !reflect.DeepEqual(unreachable.Components, []string{"xsnap-native bbbbbbbb"}) {
		t.Errorf("no source of xsnap-native reached: %v", err)
	}
	var other *DifferentError
	if err := Judge([]Check{nowhere, different}); !errors.As(err, &other) || len(other.Checks) != 1 {
		t.Errorf("a different source: %v", err)
	}
}

// A mirror that serves something else under a pin's name is found out.
func TestVerifyDifferent(t *testing.T) {
	u := newUpstream(t)
	c := u.component()
	c.Tree = cas.OfBytes(nil)
	f := &Fetcher{Store: openStore(t)}
	for _, test := range []struct {
		change func(*Component)
		want   Status
	}{
		{func(*Component) {}, Different},
		{func(c *Component) { c.Tree = u.tree }, Reached},
		{func(c *Component) { c.Recorded = false }, Unrecorded},
		{func(c *Component) { c.Commit = u.wayward }, Different},
		{func(c *Component) { c.Commit = strings.Repeat("ab", 20) }, Unreachable},
	} {
		c := c
		test.change(&c)
		var check Check
		if err := f.verify(t.Context(), &c, place{source: c.Sources[0]}, &check); err != nil || check.Status != test.want {
			t.Errorf("got %+v, %v; want %s", check, err, test.want)
		}
	}
}
