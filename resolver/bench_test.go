package resolver_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/enginery/enginery/internal/registrytest"
	"github.com/enginery/enginery/internal/tooltest"
	"github.com/enginery/enginery/resolver"
)

// BenchmarkResolve resolves a version from a warm store, in this process and by a process of its own, and from an empty store, and beside that
// does what a node would do without: cosign verifies the version's signature, and crane pulls it, from a registry on this machine. Medians.
func BenchmarkResolve(b *testing.B) {
	w := made(b)
	repo := registrytest.StartDistribution(b) + "/engines"
	w.publish(b, repo, id, w.good(id)...)
	cosign, crane := tooltest.Runner(b, tooltest.Cosign), tooltest.Runner(b, tooltest.Crane)
	dir := b.TempDir()
	for name, content := range map[string]string{
		"release.pub": w.release.public,
		"root.json":   `{"mediaType":"application/vnd.dev.sigstore.trustedroot+json;version=0.1"}`, // without it cosign asks the network
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			b.Fatal(err)
		}
	}
	ref := repo + "@" + w.index[id].Digest.String()
	warm := w.node(b, repo)
	resolve := func(r *resolver.Resolver) {
		if _, err := r.Resolve(b.Context(), id, resolver.Options{}); err != nil {
			b.Fatal(err)
		}
	}
	resolve(warm)
	j := job{Home: warm.Home.Home(), Policy: w.policyText(2, "", ""), ID: id, Sources: warm.Sources}
	measures := []struct {
		name string
		do   func()
	}{
		{"warm", func() { resolve(warm) }},
		{"process", func() {
			var out strings.Builder
			if err := start(b, j, &out).Wait(); err != nil {
				b.Fatal(err, out.String())
			}
		}},
		{"cold", func() { resolve(w.node(b, repo)) }},
		{"cosign", func() {
			cosign("verify", "--new-bundle-format", "--insecure-ignore-tlog", "--trusted-root", filepath.Join(dir, "root.json"), "--key", filepath.Join(dir, "release.pub"), ref)
		}},
		{"crane", func() { crane("pull", "--platform", "linux/amd64", ref, filepath.Join(dir, "pulled.tar")) }},
	}
	took := make(map[string][]time.Duration)
	for b.Loop() {
		for range 5 {
			for _, m := range measures {
				began := time.Now()
				m.do()
				took[m.name] = append(took[m.name], time.Since(began))
			}
		}
	}
	median := func(name string) float64 {
		slices.Sort(took[name])
		return float64(took[name][len(took[name])/2]) / 1e6
	}
	for _, m := range measures {
		b.ReportMetric(median(m.name), m.name+"-ms")
	}
	peers := median("cosign") + median("crane")
	b.ReportMetric(peers/median("warm"), "x-faster")
	b.ReportMetric(peers/median("process"), "x-faster-process")
	b.ReportMetric(0, "ns/op")
}

// The launcher runs what was resolved.
func TestLauncherRunsWhatWasResolved(t *testing.T) {
	t.Parallel()
	w := made(t)
	r := w.node(t, w.stocked(t))
	if _, err := r.Prefetch(t.Context(), []string{"legacy", "current"}, resolver.Options{}); err != nil {
		t.Fatal(err)
	}
	launcher := filepath.Join(t.TempDir(), "xsnap-worker")
	if out, err := exec.Command("go", "build", "-o", launcher, "../cmd/xsnap-worker").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for channel, want := range map[string]string{"legacy": "xsnap 0.14.3-u16.1 (XS 13.3.0)\n", "current": "xsnap 0.14.3-u18.1 (XS 13.3.0)\n"} {
		cmd := exec.Command(launcher, "v1:bootstrap", "-v")
		cmd.Env = []string{"ENGINERY_HOME=" + r.Home.Home(), "ENGINERY_VERSION=" + channel}
		if out, err := cmd.CombinedOutput(); err != nil || string(out) != want {
			t.Errorf("%s says %q, %v; want %q", channel, out, err, want)
		}
	}
}
