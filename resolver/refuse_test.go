package resolver_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/fstest"
	"time"

	"github.com/enginery/enginery/engines"
	"github.com/enginery/enginery/internal/registrytest"
	"github.com/enginery/enginery/manifests"
	"github.com/enginery/enginery/repository"
	"github.com/enginery/enginery/resolver"
	"github.com/enginery/enginery/trust"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/opencontainers/go-digest"
)

// changed returns a bundle whose signature is of another payload.
func changed(t testing.TB, bundle, payload []byte) []byte {
	t.Helper()
	var b map[string]any
	if err := json.Unmarshal(bundle, &b); err != nil {
		t.Fatal(err)
	}
	b["dsseEnvelope"].(map[string]any)["payload"] = payload
	out, err := json.Marshal(b)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// remove deletes the referrer of a version that carries a bundle.
func (w *world) remove(t testing.TB, from, v string, bundle []byte) {
	t.Helper()
	evidence, err := trust.Collect(t.Context(), open(t, from), w.index[v].Digest)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range evidence {
		if bytes.Equal(e.Bundle, bundle) {
			ref, err := name.NewDigest(from + "@" + e.Digest.String())
			if err != nil {
				t.Fatal(err)
			}
			if err := remote.Delete(ref); err != nil {
				t.Fatal(err)
			}
			return
		}
	}
	t.Fatalf("%s has no such bundle", from)
}

// path matches requests for a digest.
func path(d digest.Digest) func(*http.Request) bool {
	return func(req *http.Request) bool {
		return req.Method == http.MethodGet && strings.HasSuffix(req.URL.Path, d.String())
	}
}

// What must be refused is, each for its own reason; nothing of it reaches the store, and a good version that is there stays.
func TestRefused(t *testing.T) {
	t.Parallel()
	w := made(t)
	m, err := manifests.Load(id)
	if err != nil {
		t.Fatal(err)
	}
	worker := digest.Digest(m.Platforms["linux/"+runtime.GOARCH].Files["xsnap-worker"])
	two := [][]byte{w.signature[id], w.rebuilds[id]["alice"], w.rebuilds[id]["bob"]}
	forged := w.other.attest(t, w.provenance(id, builder("bob")))
	spliced := changed(t, w.rebuilds[id]["bob"], w.provenance(id, builder("carol")))
	elsewhere := w.bob.attest(t, w.provenance(another, builder("bob")))
	foreign, err := w.other.Sign(t.Context(), w.index[id].Digest)
	if err != nil {
		t.Fatal(err)
	}
	var refused *trust.RefusedError
	var unexpected *resolver.UnexpectedError
	var corrupt *repository.CorruptError
	tests := []struct {
		name    string
		bundles [][]byte
		policy  string // instead of two of three
		spoil   func(t *testing.T, repo string)
		fault   func(*http.Request) bool // whose answers are garbled
		class   any
		reason  string
	}{
		{name: "nothing is signed", class: &refused, reason: "release signature: expected 1 of release-key (policy, default); found nobody"},
		{name: "one attestation is removed, another had never been", bundles: two, spoil: func(t *testing.T, repo string) { w.remove(t, repo, id, w.rebuilds[id]["bob"]) },
			class: &refused, reason: "rebuilders: expected 2 of alice, bob, carol (policy, default); found alice"},
		{name: "one attestation of three is removed, all must agree", bundles: w.good(id), policy: w.policyText(3, "", ""), spoil: func(t *testing.T, repo string) { w.remove(t, repo, id, w.rebuilds[id]["bob"]) },
			class: &refused, reason: "rebuilders: expected 3 of alice, bob, carol (policy, default); found alice, carol"},
		{name: "the release signature is by a foreign key", bundles: [][]byte{foreign, w.rebuilds[id]["alice"], w.rebuilds[id]["bob"]},
			class: &refused, reason: "signed by none of those that the policy names"},
		{name: "a rebuild is by a foreign key", bundles: [][]byte{w.signature[id], w.rebuilds[id]["alice"], forged},
			class: &refused, reason: "found alice\n    sha256:"},
		{name: "a rebuild is of another version", bundles: [][]byte{w.signature[id], w.rebuilds[id]["alice"], elsewhere},
			class: &refused, reason: "bob: it is about another artifact"},
		{name: "the release key has expired", bundles: w.good(id), policy: w.policyText(2, "until = 2026-01-01T00:00:00Z\n", ""),
			class: &refused, reason: "release-key: the key is valid from … to 2026-01-01T00:00:00Z, and not when it was seen"},
		{name: "the digest is revoked", bundles: w.good(id), policy: w.policyText(2, "", fmt.Sprintf("[[revoked]]\ndigest = %q\nreason = \"its compiler was bad\"\n", w.index[id].Digest)),
			class: &refused, reason: "revoked: its compiler was bad"},
		{name: "a referrer is tampered with", bundles: [][]byte{w.signature[id], w.rebuilds[id]["alice"], spliced},
			class: &refused, reason: "bob: the signature does not hold: it, or what was signed, has been changed"},
		{name: "a referrer is garbled", bundles: two, fault: path(digest.FromBytes(w.rebuilds[id]["bob"])),
			class: &refused, reason: "its bundle is damaged: expected " + digest.FromBytes(w.rebuilds[id]["bob"]).String()},
		{name: "a layer is tampered with", bundles: w.good(id), fault: path(worker), class: &corrupt, reason: "xsnap-worker, " + worker.String() + " is damaged in"},
		{name: "the index is tampered with", bundles: w.good(id), fault: registrytest.Manifests, class: &corrupt, reason: w.index[id].Digest.String()},
		{name: "the tag is swapped", bundles: w.good(id), spoil: func(t *testing.T, repo string) {
			if _, err := repository.Copy(t.Context(), open(t, "oci:"+w.layout), open(t, repo), another); err != nil {
				t.Fatal(err)
			}
			data, err := open(t, repo).Manifest(t.Context(), w.index[another])
			if err != nil {
				t.Fatal(err)
			}
			if err := open(t, repo).PushManifest(t.Context(), w.index[another], data, id); err != nil {
				t.Fatal(err)
			}
		}, class: &unexpected, reason: "expected " + w.index[id].Digest.String() + "; the tag there has " + w.index[another].Digest.String()},
	}
	for kind, registry := range registries(t) {
		fine := registry + "/fine"
		w.publish(t, fine, another, w.good(another)...)
		w.publish(t, fine, id, w.good(id)...)
		for i, test := range tests {
			t.Run(kind+"/"+test.name, func(t *testing.T) {
				t.Parallel()
				bad := fmt.Sprintf("%s/bad%d", registry, i)
				w.publish(t, bad, id, test.bundles...)
				if test.spoil != nil {
					test.spoil(t, bad)
				}
				if test.fault != nil {
					bad = registrytest.Flaky(t, registry, registrytest.Always(test.fault, registrytest.Fault{Kind: registrytest.Garble})) + strings.TrimPrefix(bad, registry)
				}
				r := w.node(t, fine)
				if _, err := r.Resolve(t.Context(), another, resolver.Options{}); err != nil {
					t.Fatal(err)
				}
				r.Sources = []string{bad}
				if test.policy != "" {
					r.Policy = parse(t, test.policy)
				}
				e, err := r.Resolve(t.Context(), id, resolver.Options{})
				if err == nil || !errors.As(err, test.class) || !strings.Contains(err.Error(), test.reason) {
					t.Errorf("got %v; want %T with %q", err, test.class, test.reason)
				}
				if _, alone := err.(*trust.RefusedError); e != nil || alone != (test.class == any(&refused)) {
					t.Errorf("got %+v, %T", e, err)
				}
				installed(t, r.Home, another)
				if _, err := r.Home.Get(id); !errors.Is(err, engines.ErrNotInstalled) {
					t.Errorf("the launcher would find it: %v", err)
				}
				if _, err := os.Stat(filepath.Join(r.Home.Evidence(id), "accepted.json")); err == nil {
					t.Error("it is remembered as accepted")
				}
				// What is there stays, even asked of the bad source, by those who accepted it.
				r.Policy = parse(t, w.policyText(2, "", ""))
				for _, o := range []resolver.Options{{}, {Offline: true}} {
					if _, err := r.Resolve(t.Context(), another, o); err != nil {
						t.Errorf("the good version: %v", err)
					}
				}
				// And a good source heals it all.
				r.Sources = []string{bad, fine}
				if _, err := r.Resolve(t.Context(), id, resolver.Options{}); err != nil {
					t.Errorf("with a good source: %v", err)
				}
				installed(t, r.Home, another, id)
			})
		}
	}
}

// Two of three is two of three: with one attestation removed the version is still good.
func TestOneRebuilderMayBeMissing(t *testing.T) {
	t.Parallel()
	w := made(t)
	for kind, registry := range registries(t) {
		repo := registry + "/engines"
		w.publish(t, repo, id, w.good(id)...)
		w.remove(t, repo, id, w.rebuilds[id]["alice"])
		if _, err := w.node(t, repo).Resolve(t.Context(), id, resolver.Options{}); err != nil {
			t.Errorf("%s: %v", kind, err)
		}
	}
}

// What one source lacks another has: bytes here, signatures there.
func TestSeveralSources(t *testing.T) {
	t.Parallel()
	w := made(t)
	registry := registrytest.StartDistribution(t)
	bytesOnly, wordsOnly, one, other, swapped := registry+"/bytes", registry+"/words", registry+"/one", registry+"/other", registry+"/swapped"
	w.publish(t, bytesOnly, id)
	w.attach(t, wordsOnly, id, w.good(id)...)
	w.publish(t, one, id, w.signature[id], w.rebuilds[id]["alice"])
	w.publish(t, other, id, w.rebuilds[id]["carol"])
	w.publish(t, swapped, another)
	data, err := open(t, swapped).Manifest(t.Context(), w.index[another])
	if err != nil {
		t.Fatal(err)
	}
	if err := open(t, swapped).PushManifest(t.Context(), w.index[another], data, id); err != nil {
		t.Fatal(err)
	}
	empty, gone, layout := registry+"/empty", "127.0.0.1:1/gone", "oci:"+filepath.Join(t.TempDir(), "layout")
	w.publish(t, layout, id)
	var refused *trust.RefusedError
	var unavailable *resolver.UnavailableError
	for _, test := range []struct {
		sources              []string
		fine                 bool
		refused, unavailable bool
		reason               string
	}{
		{sources: []string{bytesOnly, wordsOnly}, fine: true},
		{sources: []string{wordsOnly, bytesOnly}, fine: true},
		{sources: []string{layout, wordsOnly}, fine: true},
		{sources: []string{one, other}, fine: true},
		{sources: []string{empty, gone, one, swapped, other}, fine: true},
		{sources: []string{bytesOnly, one}, refused: true, reason: "found alice"},
		{sources: []string{bytesOnly, empty, layout}, refused: true, reason: "found nobody"},
		{sources: []string{gone, one}, refused: true, unavailable: true, reason: "127.0.0.1:1/gone is unavailable"},
		{sources: []string{swapped, one}, refused: true, unavailable: true, reason: "the tag there has"},
		{sources: []string{empty, wordsOnly}, unavailable: true, reason: "not found"},
		{sources: []string{gone}, unavailable: true, reason: "127.0.0.1:1/gone: "},
		{sources: []string{"nonsense"}, unavailable: true, reason: `"nonsense" is no repository`},
		{unavailable: true, reason: "there is no source to take it from"},
	} {
		r := w.node(t, test.sources...)
		r.Patience = 3 * time.Second
		_, err := r.Resolve(t.Context(), id, resolver.Options{})
		if (err == nil) != test.fine || errors.As(err, &refused) != test.refused || errors.As(err, &unavailable) != test.unavailable ||
			err != nil && !strings.Contains(err.Error(), test.reason) {
			t.Errorf("%v: %v (%T); want %+v", test.sources, err, err, test)
		}
		if test.fine {
			installed(t, r.Home, id)
		} else {
			installed(t, r.Home)
		}
	}
}

// A policy that changes decides anew about what is there, by what was seen; the network is asked only for what is not known.
func TestAnotherPolicy(t *testing.T) {
	t.Parallel()
	w := made(t)
	repo := registrytest.StartOCI(t) + "/engines"
	w.publish(t, repo, id, w.good(id)...)
	r := w.node(t, repo)
	now := time.Now()
	r.Now = func() time.Time { return now }
	policy := func(rebuilds int, keyLines, extra string) {
		t.Helper()
		r.Policy = parse(t, w.policyText(rebuilds, keyLines, extra))
	}
	resolve := func(want string) {
		t.Helper()
		for _, o := range []resolver.Options{{Offline: true}, {}} {
			_, err := r.Resolve(t.Context(), id, o)
			var refused *trust.RefusedError
			if want == "" && err != nil || want != "" && (!errors.As(err, &refused) || !strings.Contains(err.Error(), want)) {
				t.Errorf("offline %v: %v; want %q", o.Offline, err, want)
			}
			installed(t, r.Home, id)
		}
	}
	if _, err := r.Resolve(t.Context(), id, resolver.Options{}); err != nil {
		t.Fatal(err)
	}
	r.Sources = []string{"127.0.0.1:1/gone"}
	r.Patience = 100 * time.Millisecond
	resolve("")
	policy(1, "", "")
	resolve("")
	now = now.Add(48 * time.Hour)
	policy(2, "until = "+now.Add(-24*time.Hour).UTC().Format(time.RFC3339)+"\n", "") // it expired after it was seen
	resolve("")
	policy(2, "until = "+now.Add(-72*time.Hour).UTC().Format(time.RFC3339)+"\n", "") // it had expired, as is known now
	resolve("release-key: the key is valid from …")
	policy(2, "", "[[revoked]]\ndigest = \""+w.index[id].Digest.String()+"\"\nreason = \"bad\"\n")
	resolve("revoked: bad")
	policy(2, "", "[channel.current]\nsigners = [\"release-key\", \"alice-key\"]\nsignatures = 2\n")
	resolve("release signature: expected 2 of release-key, alice-key (policy, channel.current); found release-key")
	policy(2, "", "")
	resolve("")

	// More is asked for: it is collected, and no bytes are.
	byAlice, err := w.alice.Sign(t.Context(), w.index[id].Digest)
	if err != nil {
		t.Fatal(err)
	}
	w.attach(t, repo, id, byAlice)
	var blobs counter
	r.Sources = []string{registrytest.Flaky(t, strings.TrimSuffix(repo, "/engines"), blobs.plan(registrytest.Blobs)) + "/engines"}
	r.Patience = 5 * time.Second
	policy(2, "", "[channel.current]\nsigners = [\"release-key\", \"alice-key\"]\nsignatures = 2\n")
	if _, err := r.Resolve(t.Context(), id, resolver.Options{}); err != nil {
		t.Error(err)
	}
	m, err := manifests.Load(id)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range m.Platforms["linux/"+runtime.GOARCH].Files {
		if blobs.of(d) > 0 {
			t.Errorf("%s was fetched again", d)
		}
	}
	resolve("")
}

// A record that is not of what was signed is not believed, whoever has written it.
func TestRecordMustBeOfWhatWasSigned(t *testing.T) {
	t.Parallel()
	w := made(t)
	repo := w.stocked(t)
	of := func(v string) *manifests.Manifest {
		m, err := manifests.Load(v)
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	other := of(another).Platforms["linux/amd64"]
	for name, test := range map[string]struct {
		change func(p *manifests.Platform)
		reason string
	}{
		"another manifest":  {func(p *manifests.Platform) { *p = *other }, "has the manifest " + other.Manifest},
		"another worker":    {func(p *manifests.Platform) { p.Files["xsnap-worker"] = other.Files["xsnap-worker"] }, `has "xsnap-worker" as ` + other.Files["xsnap-worker"]},
		"another size":      {func(p *manifests.Platform) { p.Sizes["xsnap-worker"]++ }, `has "xsnap-worker" as`},
		"another config":    {func(p *manifests.Platform) { p.Config = other.Config }, "has the config " + other.Config},
		"one file less":     {func(p *manifests.Platform) { delete(p.Files, "supervisor.bundle") }, `has "supervisor.bundle" as , 910219 bytes`},
		"one file more":     {func(p *manifests.Platform) { p.Files["more"] = other.Config }, "has no more: its manifest"},
		"another version":   {func(p *manifests.Platform) {}, w.index[another].Digest.String()},
		"nothing to change": {func(p *manifests.Platform) {}, ""},
	} {
		m := of(id)
		if name == "another version" {
			m = of(another)
			m.Version = id
		}
		test.change(m.Platforms["linux/amd64"])
		data, err := m.JSON()
		if err != nil {
			t.Fatal(err)
		}
		r := w.node(t, repo)
		r.Platform, r.Manifests = "linux/amd64", fstest.MapFS{id + ".json": {Data: data}}
		_, err = r.Resolve(t.Context(), id, resolver.Options{})
		if test.reason == "" {
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		if err == nil || !strings.Contains(err.Error(), test.reason) {
			t.Errorf("%s: %v; want %q", name, err, test.reason)
		}
		installed(t, r.Home)
	}
}

// What a chain has not in service is refused, what is damaged is fetched again, and another platform's engine does not pass for this one's.
func TestResolve(t *testing.T) {
	t.Parallel()
	w := made(t)
	r := w.node(t, w.stocked(t))
	channels(t, r.Home, id, id)
	var notInService *engines.NotInServiceError
	if _, err := r.Resolve(t.Context(), another, resolver.Options{}); !errors.As(err, &notInService) {
		t.Errorf("not in service: %v", err)
	}
	if _, err := r.Resolve(t.Context(), "agoric-upgrade-9", resolver.Options{Archival: true}); !errors.Is(err, manifests.ErrNotRecorded) || !strings.Contains(err.Error(), id) {
		t.Errorf("not recorded: %v", err)
	}
	if _, err := r.Resolve(t.Context(), id, resolver.Options{Offline: true}); !errors.Is(err, engines.ErrNotInstalled) {
		t.Errorf("offline: %v", err)
	}
	// What was left of downloads is not believed.
	m, err := manifests.Load(id)
	if err != nil {
		t.Fatal(err)
	}
	p := m.Platforms["linux/"+runtime.GOARCH]
	if err := os.Mkdir(filepath.Join(r.Home.Home(), "tmp"), 0o755); err != nil {
		t.Fatal(err)
	}
	for title, n := range map[string]int64{"xsnap-worker": p.Sizes["xsnap-worker"], "lockdown.bundle": p.Sizes["lockdown.bundle"] + 1, "supervisor.bundle": 1000} {
		partial := filepath.Join(r.Home.Home(), "tmp", "partial-"+strings.TrimPrefix(p.Files[title], "sha256:"))
		if err := os.WriteFile(partial, bytes.Repeat([]byte("x"), int(n)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	e, err := r.Resolve(t.Context(), "legacy", resolver.Options{})
	if err != nil {
		t.Fatal(err)
	}
	installed(t, r.Home, id)
	os.Chmod(e.Supervisor.Path, 0o644)
	if err := os.WriteFile(e.Supervisor.Path, []byte("changed"), 0o644); err != nil {
		t.Fatal(err)
	}
	var damaged *engines.DamagedError
	if _, err := r.Resolve(t.Context(), id, resolver.Options{Offline: true}); !errors.As(err, &damaged) {
		t.Errorf("damaged: %v", err)
	}
	if _, err := r.Resolve(t.Context(), id, resolver.Options{}); err != nil {
		t.Errorf("not repaired: %v", err)
	}
	installed(t, r.Home, id)
	if err := os.WriteFile(filepath.Join(r.Home.Evidence(id), "accepted.json"), []byte("{"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Resolve(t.Context(), id, resolver.Options{Offline: true}); err == nil {
		t.Error("accepted by what nobody remembers")
	}
	if _, err := r.Resolve(t.Context(), id, resolver.Options{}); err != nil {
		t.Error(err)
	}
	r.Platform = map[string]string{"amd64": "linux/arm64", "arm64": "linux/amd64"}[runtime.GOARCH]
	if e, err := r.Resolve(t.Context(), id, resolver.Options{}); err != nil || e.Platform != r.Platform {
		t.Errorf("for another platform: %+v, %v", e, err)
	}
	r.Platform = "linux/riscv64"
	if _, err := r.Resolve(t.Context(), id, resolver.Options{}); err == nil || !strings.Contains(err.Error(), "is not built for linux/riscv64; it is for linux/amd64, linux/arm64") {
		t.Errorf("for a platform that it has not: %v", err)
	}
}

// Whatever a planned upgrade needs is readied and kept, and what cannot be is named.
func TestPrefetch(t *testing.T) {
	t.Parallel()
	w := made(t)
	repo := registrytest.StartDistribution(t) + "/engines"
	w.publish(t, repo, id, w.good(id)...)
	w.publish(t, repo, another, w.good(another)...)
	r := w.node(t, repo)
	channels(t, r.Home, another, another)
	got, err := r.Prefetch(t.Context(), []string{id, "legacy", "agoric-upgrade-22", another, "agoric-upgrade-9"}, resolver.Options{})
	var versions []string
	for _, e := range got {
		versions = append(versions, e.Version)
	}
	if !slices.Equal(versions, []string{id, another}) {
		t.Errorf("prefetched %v", versions)
	}
	if err == nil || !errors.Is(err, repository.ErrNotFound) || !errors.Is(err, manifests.ErrNotRecorded) || !strings.Contains(err.Error(), "agoric-upgrade-22 cannot be had") {
		t.Errorf("what cannot be had: %v", err)
	}
	if _, err := r.Home.GC(t.Context()); err != nil {
		t.Fatal(err)
	}
	installed(t, r.Home, another, id)
	if pinned, err := r.Home.Pinned(); err != nil || !slices.Equal(pinned, []string{id}) {
		t.Errorf("pinned %v, %v", pinned, err)
	}
}

// Whoever may only read a home resolves what is there, also by a policy of their own.
func TestReadOnlyHome(t *testing.T) {
	w := made(t)
	repo := "oci:" + filepath.Join(t.TempDir(), "layout")
	w.publish(t, repo, id, w.good(id)...)
	r := w.node(t, repo)
	e, err := r.Resolve(t.Context(), id, resolver.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(r.Home.Home(), "state")); err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() == 0 { // whom no mode stops: this thread becomes somebody else to the file system
		if err := os.Chmod(filepath.Dir(r.Home.Home()), 0o755); err != nil {
			t.Fatal(err)
		}
		runtime.LockOSThread() // and ends with the test
		if err := syscall.Setfsuid(65534); err != nil {
			t.Fatal(err)
		}
		defer runtime.UnlockOSThread()
		defer syscall.Setfsuid(0)
	} else {
		filepath.WalkDir(r.Home.Home(), func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				os.Chmod(path, 0o555)
			}
			return nil
		})
	}
	if err := os.WriteFile(filepath.Join(r.Home.Home(), "x"), nil, 0o644); !errors.Is(err, fs.ErrPermission) {
		t.Fatalf("the home can be written: %v", err)
	}
	for _, rebuilds := range []int{2, 1} {
		r.Policy = parse(t, w.policyText(rebuilds, "", ""))
		if again, err := r.Resolve(t.Context(), id, resolver.Options{}); err != nil || again.Dir() != e.Dir() {
			t.Errorf("%d rebuilds: %v", rebuilds, err)
		}
	}
	if _, err := r.Resolve(t.Context(), another, resolver.Options{Archival: true}); !errors.Is(err, fs.ErrPermission) {
		t.Errorf("what is not there: %v", err)
	}
}
