package resolver_test

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/enginery/enginery/engines"
	"github.com/enginery/enginery/internal/enginetest"
	"github.com/enginery/enginery/internal/registrytest"
	"github.com/enginery/enginery/manifests"
	"github.com/enginery/enginery/publish"
	"github.com/enginery/enginery/release"
	"github.com/enginery/enginery/repository"
	"github.com/enginery/enginery/resolver"
	"github.com/enginery/enginery/trust"
	"github.com/enginery/enginery/trust/sign"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// id is the version that the tests resolve; another is one of two more.
const id, another = "agoric-upgrade-18", "agoric-upgrade-16"

// party is somebody with a key.
type party struct {
	*sign.Signer
	name, public string
}

// world is what all tests have: two versions, signed and attested.
type world struct {
	layout                            string // with the versions, and nothing that refers to them but their own statements
	index                             map[string]ocispec.Descriptor
	release, alice, bob, carol, other party
	signature                         map[string][]byte            // by version
	rebuilds                          map[string]map[string][]byte // by version and rebuilder
	provenance                        func(id, builder string) []byte
}

var dir string // of the world

func TestMain(m *testing.M) {
	if job := os.Getenv(childEnv); job != "" {
		os.Exit(child(job))
	}
	flag.Parse()
	if err := flag.Set("test.parallel", "8"); err != nil { // most wait
		panic(err)
	}
	var err error
	if dir, err = os.MkdirTemp("", "resolver-"); err != nil {
		panic(err)
	}
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

func builder(name string) string { return "https://" + name + ".example" }

var shared struct {
	sync.Mutex
	*world
}

// made returns the world.
func made(t testing.TB) *world {
	t.Helper()
	shared.Lock()
	defer shared.Unlock()
	if shared.world == nil {
		shared.world = create(t)
	}
	return shared.world
}

func create(t testing.TB) *world {
	w := &world{
		layout: filepath.Join(dir, "layout"), index: make(map[string]ocispec.Descriptor), signature: make(map[string][]byte), rebuilds: make(map[string]map[string][]byte),
	}
	for name, p := range map[string]*party{"release": &w.release, "alice": &w.alice, "bob": &w.bob, "carol": &w.carol, "other": &w.other} {
		private, public, err := sign.GenerateKey([]byte("secret"))
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, name+".key")
		if err := os.WriteFile(path, private, 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := sign.OpenKey(t.Context(), path, func() ([]byte, error) { return []byte("secret"), nil })
		if err != nil {
			t.Fatal(err)
		}
		*p = party{s, name, string(public)}
	}
	shop := &release.Workshop{Store: enginetest.Store(t), Layout: w.layout, ToolchainFrom: os.Getenv("ENGINERY_TOOLCHAIN_FROM")}
	versions, err := shop.Build(t.Context(), enginetest.Recipe(t, id), enginetest.Recipe(t, another))
	if err != nil {
		t.Fatal(err)
	}
	byID := make(map[string]*release.Version)
	for _, v := range versions {
		if err := v.Check(); err != nil {
			t.Fatal(err)
		}
		byID[v.Artifact.ID], w.index[v.Artifact.ID] = v, v.Artifact.Index
	}
	w.provenance = func(id, builder string) []byte {
		statement, err := byID[id].Artifact.Provenance(byID[id].Recipe, builder)
		if err != nil {
			panic(err)
		}
		return statement
	}
	for v, d := range w.index {
		if w.signature[v], err = w.release.Sign(t.Context(), d.Digest); err != nil {
			t.Fatal(err)
		}
		w.rebuilds[v] = make(map[string][]byte)
		for _, p := range []party{w.alice, w.bob, w.carol} {
			w.rebuilds[v][p.name] = p.attest(t, w.provenance(v, builder(p.name)))
		}
	}
	return w
}

func (p party) attest(t testing.TB, statement []byte) []byte {
	t.Helper()
	b, err := p.Attest(t.Context(), statement)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// good returns what vouches for a version when all is well.
func (w *world) good(v string) [][]byte {
	return [][]byte{w.signature[v], w.rebuilds[v]["alice"], w.rebuilds[v]["bob"], w.rebuilds[v]["carol"]}
}

// publish sends a version to a repository, and attaches bundles there.
func (w *world) publish(t testing.TB, to, v string, bundles ...[]byte) {
	t.Helper()
	repo := open(t, to)
	if _, err := repository.Copy(t.Context(), open(t, "oci:"+w.layout), repo, v); err != nil {
		t.Fatal(err)
	}
	w.attach(t, to, v, bundles...)
}

// stocked returns a layout with both versions and all that vouches for them.
func (w *world) stocked(t testing.TB) string {
	t.Helper()
	layout := "oci:" + filepath.Join(t.TempDir(), "layout")
	for _, v := range []string{id, another} {
		w.publish(t, layout, v, w.good(v)...)
	}
	return layout
}

func (w *world) attach(t testing.TB, to, v string, bundles ...[]byte) {
	t.Helper()
	for _, b := range bundles {
		if _, err := trust.Attach(t.Context(), open(t, to), w.index[v], b); err != nil {
			t.Fatal(err)
		}
	}
}

func open(t testing.TB, name string) repository.Repository {
	t.Helper()
	r, err := repository.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// policyText returns a policy of a release key and three rebuilders, of whom some must agree. keyLines are more of the release key, extra is
// what follows.
func (w *world) policyText(rebuilds int, keyLines, extra string) string {
	var b strings.Builder
	b.WriteString("schema = 1\n")
	for _, p := range []party{w.release, w.alice, w.bob, w.carol} {
		fmt.Fprintf(&b, "[[key]]\nname = \"%s-key\"\npublic = \"\"\"%s\"\"\"\n", p.name, p.public)
		if p.name == "release" {
			b.WriteString(keyLines)
			continue
		}
		fmt.Fprintf(&b, "[[rebuilder]]\nname = %q\nbuilder = %q\nkey = \"%s-key\"\n", p.name, builder(p.name), p.name)
	}
	fmt.Fprintf(&b, "[default]\nsigners = [\"release-key\"]\nrebuilders = [\"alice\", \"bob\", \"carol\"]\nrebuilds = %d\n%s", rebuilds, extra)
	return b.String()
}

func parse(t testing.TB, text string) *trust.Policy {
	t.Helper()
	p, err := trust.ParsePolicy("policy.toml", []byte(text), nil)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// node returns a resolver with an empty home and a policy of two of three rebuilders.
func (w *world) node(t testing.TB, sources ...string) *resolver.Resolver {
	t.Helper()
	home := t.TempDir()
	t.Cleanup(func() { // what is read-only is in the way of others than root
		filepath.WalkDir(home, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				os.Chmod(path, 0o755)
			}
			return nil
		})
	})
	s := engines.Open(home)
	channels(t, s, another, id)
	return &resolver.Resolver{Home: s, Policy: parse(t, w.policyText(2, "", "")), Sources: sources, Patience: 5 * time.Second}
}

// channels makes versions the channels that a node's operator names.
func channels(t testing.TB, s *engines.Store, legacy, current string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(s.Home(), "channels.toml"), fmt.Appendf(nil, "legacy = %q\ncurrent = %q\n", legacy, current), 0o644); err != nil {
		t.Fatal(err)
	}
}

// installed fails the test unless the store has exactly these versions, whole, as they are recorded.
func installed(t testing.TB, s *engines.Store, versions ...string) {
	t.Helper()
	list, err := s.List()
	if err != nil {
		t.Fatal(err)
	}
	var have []string
	for _, e := range list {
		have = append(have, e.Version)
		asRecorded(t, e)
	}
	if !slices.Equal(have, versions) {
		t.Errorf("the store has %v, want %v", have, versions)
	}
	if objects, _ := os.ReadDir(filepath.Join(s.Home(), "objects")); len(objects) != len(versions) {
		t.Errorf("the store has %d engines, want %d", len(objects), len(versions))
	}
}

// asRecorded fails the test unless an engine is what its manifest says, by the bytes on disk.
func asRecorded(t testing.TB, e *engines.Engine) {
	t.Helper()
	m, err := manifests.Load(e.Version)
	if err != nil {
		t.Fatal(err)
	}
	p := m.Platforms[e.Platform]
	for title, f := range map[string]engines.File{
		"xsnap-worker": e.Worker, "xsnap-worker-debug": e.DebugWorker, "lockdown.bundle": e.Lockdown, "supervisor.bundle": e.Supervisor,
	} {
		b, err := os.ReadFile(f.Path)
		if err != nil || digest.FromBytes(b).String() != p.Files[title] {
			t.Errorf("%s of %s is %s, %v; want %s", title, e.Version, digest.FromBytes(b), err, p.Files[title])
		}
	}
	if b, err := os.ReadFile(e.Config.Path); err != nil || digest.FromBytes(b).String() != p.Config {
		t.Errorf("the config of %s is %s, %v", e.Version, digest.FromBytes(b), err)
	}
	if e.Index != m.Index || e.Manifest != p.Manifest {
		t.Errorf("%s is %s, %s", e.Version, e.Index, e.Manifest)
	}
}

// registries starts both kinds.
func registries(t testing.TB) map[string]string {
	t.Helper()
	return map[string]string{"tags": registrytest.StartDistribution(t), "referrers API": registrytest.StartOCI(t)}
}

const childEnv = "TEST_RESOLVE"

// job is what a process of a test's own does.
type job struct {
	Home, Policy, ID string
	Sources          []string
	Patience         time.Duration
}

func child(text string) int {
	var j job
	err := json.Unmarshal([]byte(text), &j)
	if err != nil {
		panic(err)
	}
	p, err := trust.ParsePolicy("policy.toml", []byte(j.Policy), nil)
	if err != nil {
		panic(err)
	}
	r := &resolver.Resolver{Home: engines.Open(j.Home), Policy: p, Sources: j.Sources, Patience: j.Patience}
	e, err := r.Resolve(context.Background(), j.ID, resolver.Options{})
	if err == nil {
		err = e.Verify()
	}
	if err != nil {
		fmt.Println(err)
		return 1
	}
	fmt.Println(e.Worker.SHA256)
	return 0
}

// A version is signed, goes to a registry, three rebuild it, and an empty node resolves it. Then the node needs the registry no more.
func TestRoundTrip(t *testing.T) {
	t.Parallel()
	w := made(t)
	shop := &release.Workshop{Store: enginetest.Store(t), Layout: filepath.Join(t.TempDir(), "layout"), ToolchainFrom: os.Getenv("ENGINERY_TOOLCHAIN_FROM")}
	if _, err := shop.Build(t.Context(), enginetest.Recipe(t, id)); err != nil {
		t.Fatal(err)
	}
	w.attach(t, "oci:"+shop.Layout, id, w.signature[id]) // publish.Sign does so once the golden vectors hold, for which its own test has the time
	for name, registry := range registries(t) {
		repo := registry + "/engines"
		if err := publish.Send(t.Context(), shop, id, repo, io.Discard); err != nil {
			t.Fatal(err)
		}
		r := w.node(t, repo)
		var refused *trust.RefusedError
		if _, err := r.Resolve(t.Context(), "current", resolver.Options{}); !errors.As(err, &refused) {
			t.Errorf("%s: before it was rebuilt: %v", name, err)
		}
		w.attach(t, repo, id, w.rebuilds[id]["alice"], w.rebuilds[id]["bob"], w.rebuilds[id]["carol"])
		e, err := r.Resolve(t.Context(), "current", resolver.Options{Expect: w.index[id].Digest})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if e.Version != id || e.Platform != runtime.GOOS+"/"+runtime.GOARCH {
			t.Errorf("%s: resolved %s for %s", name, e.Version, e.Platform)
		}
		installed(t, r.Home, id)
		if left, err := os.ReadDir(filepath.Join(r.Home.Home(), "tmp")); err != nil || len(left) > 0 {
			t.Errorf("%s: left %v, %v", name, left, err)
		}
		r.Sources = []string{"127.0.0.1:1/gone"}
		for _, o := range []resolver.Options{{}, {Offline: true}} {
			if again, err := r.Resolve(t.Context(), id, o); err != nil || again.Dir() != e.Dir() {
				t.Errorf("%s: resolved again: %v", name, err)
			}
		}
		var unexpected *resolver.UnexpectedError
		if _, err := r.Resolve(t.Context(), id, resolver.Options{Expect: w.index[another].Digest}); !errors.As(err, &unexpected) || unexpected.Have != w.index[id].Digest {
			t.Errorf("%s: another was expected: %v", name, err)
		}
	}
}
