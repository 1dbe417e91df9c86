package resolver_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/enginery/enginery/engines"
	"github.com/enginery/enginery/internal/registrytest"
	"github.com/enginery/enginery/manifests"
	"github.com/enginery/enginery/repository"
	"github.com/enginery/enginery/resolver"
)

// counter counts requests, by the last part of their paths.
type counter struct {
	mu     sync.Mutex
	counts map[string]int
	ranges map[string][]string
}

// plan counts the requests that match, and has no trouble with any.
func (c *counter) plan(match func(*http.Request) bool) registrytest.Plan {
	return func(req *http.Request) registrytest.Fault {
		if match(req) {
			c.mu.Lock()
			defer c.mu.Unlock()
			if c.counts == nil {
				c.counts, c.ranges = make(map[string]int), make(map[string][]string)
			}
			name := filepath.Base(req.URL.Path)
			c.counts[name]++
			c.ranges[name] = append(c.ranges[name], req.Header.Get("Range"))
		}
		return registrytest.Fault{}
	}
}

func (c *counter) of(name string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.counts[name]
}

func (c *counter) total() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := 0
	for _, count := range c.counts {
		n += count
	}
	return n
}

// layers matches requests for the blobs of a version.
func layers(t testing.TB, v string) func(*http.Request) bool {
	m, err := manifests.Load(v)
	if err != nil {
		t.Fatal(err)
	}
	wanted := make(map[string]bool)
	for _, p := range m.Platforms {
		wanted[p.Config] = true
		for _, d := range p.Files {
			wanted[d] = true
		}
	}
	return func(req *http.Request) bool { return registrytest.Blobs(req) && wanted[filepath.Base(req.URL.Path)] }
}

var troubles = map[string]registrytest.Fault{
	"goes away":             {Kind: registrytest.Reset},
	"goes away in a blob":   {Kind: registrytest.Reset, After: 100 << 10},
	"stalls":                {Kind: registrytest.Stall},
	"stalls in a blob":      {Kind: registrytest.Stall, After: 100 << 10},
	"truncates":             {Kind: registrytest.Truncate, After: 100 << 10},
	"truncates as if well":  {Kind: registrytest.Short, After: 100 << 10},
	"500":                   {Kind: registrytest.Status, Code: 500},
	"serves garbage":        {Kind: registrytest.Garble},
	"serves garbage midway": {Kind: registrytest.Garble, After: 100 << 10},
}

// Trouble that passes is got over. Trouble that stays is an error in a bounded time, which another source heals; then, or when the trouble
// is over, what is there already is not asked for again.
func TestTrouble(t *testing.T) {
	t.Parallel()
	w := made(t)
	registry := registrytest.StartDistribution(t)
	w.publish(t, registry+"/engines", id, w.good(id)...)
	isLayer, fine := layers(t, id), registrytest.Fault{}
	for name, fault := range troubles {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			passing := registrytest.Flaky(t, registry, registrytest.InTurn(registrytest.Any, fault, fine, fine, fine, fine, fault, fine, fine, fine, fine, fine, fine, fault))
			r := w.node(t, passing+"/engines")
			r.Patience = 9 * time.Second
			if _, err := r.Resolve(t.Context(), id, resolver.Options{}); err != nil {
				t.Errorf("trouble that passes: %v", err)
			}
			installed(t, r.Home, id)

			// Some layers come, then there is nothing but trouble.
			var mu sync.Mutex
			begun := 0
			lasting := registrytest.Flaky(t, registry, func(req *http.Request) registrytest.Fault {
				if !isLayer(req) {
					return registrytest.Fault{}
				}
				mu.Lock()
				defer mu.Unlock()
				if begun++; begun <= 2 {
					return registrytest.Fault{}
				}
				f := fault
				if begun > 5 && f.After > 0 && f.Kind != registrytest.Garble { // no more progress
					f.After = 0
				}
				return f
			})
			r = w.node(t, lasting+"/engines")
			r.Patience = 2 * time.Second
			bounded, cancel := context.WithTimeout(t.Context(), 60*r.Patience) // where one attempt takes a few
			defer cancel()
			_, err := r.Resolve(bounded, id, resolver.Options{})
			var unavailable *resolver.UnavailableError
			if !errors.As(err, &unavailable) || len(unavailable.Tried) != 1 || !strings.Contains(err.Error(), lasting) {
				t.Errorf("trouble that stays: %v", err)
			}
			var gone *repository.UnavailableError
			var corrupt *repository.CorruptError
			if !errors.As(err, &gone) && !errors.As(err, &corrupt) {
				t.Errorf("trouble that stays: %v", err)
			}
			installed(t, r.Home)

			have := make(map[string]int64) // bytes of the layers that came
			partials, err := filepath.Glob(filepath.Join(r.Home.Home(), "tmp", "partial-*"))
			if err != nil || len(partials) == 0 {
				t.Fatal(partials, err)
			}
			m, err := manifests.Load(id)
			if err != nil {
				t.Fatal(err)
			}
			p := m.Platforms["linux/"+runtime.GOARCH]
			var came int64
			for _, path := range partials {
				info, err := os.Stat(path)
				if err != nil {
					t.Fatal(err)
				}
				d := "sha256:" + strings.TrimPrefix(filepath.Base(path), "partial-")
				have[d] = info.Size()
				came += info.Size()
			}
			var asked counter
			mirror := registrytest.Flaky(t, registry, asked.plan(isLayer))
			r.Sources = []string{lasting + "/engines", mirror + "/engines"}
			if name == "500" { // the same source, well again
				r.Sources = []string{mirror + "/engines"}
			}
			if _, err := r.Resolve(t.Context(), id, resolver.Options{}); err != nil {
				t.Errorf("another source: %v", err)
			}
			installed(t, r.Home, id)
			if came == 0 {
				t.Error("nothing had come before: this tests nothing")
			}
			for title, d := range p.Files {
				if have[d] == p.Sizes[title] && asked.of(d) > 0 {
					t.Errorf("%s was there, and asked for again", title)
				}
			}
		})
	}
}

// A download that is broken off is taken up where it was, byte for byte.
func TestResume(t *testing.T) {
	t.Parallel()
	w := made(t)
	registry := registrytest.StartDistribution(t)
	w.publish(t, registry+"/engines", id, w.good(id)...)
	isLayer := layers(t, id)
	var mu sync.Mutex
	asked := make(map[string]bool)
	away := registrytest.Flaky(t, registry, func(req *http.Request) registrytest.Fault {
		mu.Lock()
		defer mu.Unlock()
		switch name := filepath.Base(req.URL.Path); {
		case !isLayer(req):
			return registrytest.Fault{}
		case asked[name]:
			return registrytest.Fault{Kind: registrytest.Status, Code: 503}
		default:
			asked[name] = true
			return registrytest.Fault{Kind: registrytest.Truncate, After: 300 << 10}
		}
	})
	r := w.node(t, away+"/engines")
	r.Patience = time.Second
	if _, err := r.Resolve(t.Context(), id, resolver.Options{}); err == nil {
		t.Fatal("resolved by what was cut off")
	}
	m, err := manifests.Load(id)
	if err != nil {
		t.Fatal(err)
	}
	have := make(map[string]int64)
	resumed := 0
	p := m.Platforms["linux/"+runtime.GOARCH]
	for _, d := range p.Files {
		if info, err := os.Stat(filepath.Join(r.Home.Home(), "tmp", "partial-"+strings.TrimPrefix(d, "sha256:"))); err == nil {
			have[d] = info.Size()
		}
	}
	var again counter
	r.Sources = []string{registrytest.Flaky(t, registry, again.plan(isLayer)) + "/engines"}
	if _, err := r.Resolve(t.Context(), id, resolver.Options{}); err != nil {
		t.Fatal(err)
	}
	installed(t, r.Home, id)
	for title, d := range p.Files {
		if again.of(d) == 0 {
			continue // not a node's, or whole
		}
		want := ""
		if have[d] > 0 {
			want = fmt.Sprintf("bytes=%d-%d", have[d], p.Sizes[title]-1)
			resumed++
		}
		if got := again.ranges[d]; len(got) != 1 || got[0] != want {
			t.Errorf("of %s there were %d bytes, and it was asked for %q; want %q", title, have[d], got, want)
		}
	}
	if resumed < 2 {
		t.Errorf("%d were resumed, of %v: this tests nothing", resumed, have)
	}
}

// A registry that never has a whole answer takes no more time than that of a few.
func TestSlowTalker(t *testing.T) {
	t.Parallel()
	w := made(t)
	registry := registrytest.StartDistribution(t)
	w.publish(t, registry+"/engines", id, w.good(id)...)
	slow := registrytest.Flaky(t, registry, func(req *http.Request) registrytest.Fault {
		time.Sleep(2 * time.Second)
		return registrytest.Fault{}
	})
	r := w.node(t, slow+"/engines", registry+"/engines")
	r.Patience = 3 * time.Second
	if _, err := r.Resolve(t.Context(), id, resolver.Options{}); err != nil {
		t.Error(err)
	}
}

// start starts a process that resolves a version in a home.
func start(t testing.TB, j job, out *strings.Builder) *exec.Cmd {
	t.Helper()
	text, err := json.Marshal(j)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+string(text))
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd
}

// Many processes that want the same at once: one fetches it, all have it.
func TestManyProcesses(t *testing.T) {
	w := made(t)
	registry := registrytest.StartDistribution(t)
	w.publish(t, registry+"/engines", id, w.good(id)...)
	var all counter
	r := w.node(t, registrytest.Flaky(t, registry, all.plan(registrytest.Any))+"/engines")
	const processes = 32
	var cmds []*exec.Cmd
	outs := make([]strings.Builder, processes)
	for i := range processes {
		cmds = append(cmds, start(t, job{Home: r.Home.Home(), Policy: w.policyText(2, "", ""), ID: id, Sources: r.Sources, Patience: time.Minute}, &outs[i]))
	}
	m, err := manifests.Load(id)
	if err != nil {
		t.Fatal(err)
	}
	p := m.Platforms["linux/"+runtime.GOARCH]
	for i, cmd := range cmds {
		if err := cmd.Wait(); err != nil || "sha256:"+strings.TrimSpace(outs[i].String()) != p.Files["xsnap-worker"] {
			t.Errorf("process %d: %v\n%s", i, err, &outs[i])
		}
	}
	installed(t, r.Home, id)
	for title, d := range p.Files {
		want := 1
		if title == "LICENSES" || title == "NOTICES" {
			want = 0
		}
		if n := all.of(d); n != want {
			t.Errorf("%s was asked for %d times, want %d", title, n, want)
		}
	}
	for title, d := range m.Platforms["linux/arm64"].Files {
		if runtime.GOARCH == "amd64" && p.Files[title] != d && all.of(d) > 0 {
			t.Errorf("%s of linux/arm64 was asked for", title)
		}
	}
	if n := all.total(); n > 40 {
		t.Errorf("%d requests were made, by one process of %d", n, processes)
	}
	t.Logf("%d requests", all.total())
}

// Many that wait for one that fails do not each wait as long again.
func TestManyFail(t *testing.T) {
	t.Parallel()
	w := made(t)
	registry := registrytest.StartDistribution(t)
	w.publish(t, registry+"/engines", id, w.good(id)...)
	var blobs counter
	count := blobs.plan(layers(t, id))
	stalls := registrytest.Always(layers(t, id), registrytest.Fault{Kind: registrytest.Stall})
	r := w.node(t, registrytest.Flaky(t, registry, func(req *http.Request) registrytest.Fault {
		count(req)
		return stalls(req)
	})+"/engines")
	r.Patience = 2 * time.Second
	begun := make(chan struct{})
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			<-begun
			_, err := r.Resolve(t.Context(), id, resolver.Options{})
			var unavailable *resolver.UnavailableError
			if !errors.As(err, &unavailable) || !strings.Contains(err.Error(), "is unavailable") {
				t.Error(err)
			}
		})
	}
	close(begun)
	wg.Wait()
	failed := blobs.total()
	if _, err := r.Resolve(t.Context(), id, resolver.Options{}); err == nil || blobs.total() == failed {
		t.Errorf("a later one did not try: %v", err)
	}
	if once := blobs.total() - failed; failed > 3*once {
		t.Errorf("16 at once made %d requests, and one makes %d", failed, once)
	}
	installed(t, r.Home)
}

// TestKilled kills processes at random moments, two at a time, ENGINERY_TEST_KILLS times. Whatever the store then resolves to is whole, and the next
// one completes it.
func TestKilled(t *testing.T) {
	rounds := 20
	if n, err := strconv.Atoi(os.Getenv("ENGINERY_TEST_KILLS")); err == nil {
		rounds = n
	}
	w := made(t)
	registry := registrytest.StartDistribution(t)
	w.publish(t, registry+"/engines", id, w.good(id)...)
	policy := w.policyText(2, "", "")
	r := w.node(t, registry+"/engines")
	whole, killed, unfinished := 0, 0, 0
	begin := func(outs *[2]strings.Builder) (cmds []*exec.Cmd) {
		for i := range outs {
			cmds = append(cmds, start(t, job{r.Home.Home(), policy, id, r.Sources, time.Minute}, &outs[i]))
		}
		return cmds
	}
	began := time.Now()
	var outs [2]strings.Builder
	for i, cmd := range begin(&outs) {
		if err := cmd.Wait(); err != nil {
			t.Fatal(err, outs[i].String())
		}
	}
	took := time.Since(began) // of two that are let be
	r = w.node(t, registry+"/engines")
	for range rounds {
		var outs [2]strings.Builder
		for i, cmd := range begin(&outs) {
			time.Sleep(time.Duration(rand.Int64N(int64(took))))
			cmd.Process.Kill()
			if err := cmd.Wait(); err == nil {
				continue
			} else if cmd.ProcessState.ExitCode() >= 0 {
				t.Fatalf("%v\n%s", err, &outs[i])
			}
			killed++
		}
		e, err := r.Resolve(t.Context(), id, resolver.Options{Offline: true})
		if err != nil {
			if e, err := r.Home.Get(id); err == nil { // installed, and not remembered yet
				asRecorded(t, e)
			} else if !errors.Is(err, engines.ErrNotInstalled) {
				t.Fatal(err)
			}
			unfinished++
			continue
		}
		asRecorded(t, e)
		whole++
		r = w.node(t, registry+"/engines")
	}
	t.Logf("%d killed, %d times whole, %d times not yet; one takes %v", killed, whole, unfinished, took)
	if killed == 0 || whole == 0 || unfinished == 0 {
		t.Error("this tests nothing")
	}
	if _, err := r.Resolve(t.Context(), id, resolver.Options{}); err != nil {
		t.Error(err)
	}
	if _, err := r.Home.GC(t.Context()); err != nil {
		t.Error(err)
	}
	installed(t, r.Home, id)
	if left, _ := os.ReadDir(filepath.Join(r.Home.Home(), "tmp")); len(left) > 0 {
		t.Errorf("left %v", left)
	}
}

// GC at any moment keeps what is in a channel, what is pinned and what is held; what it removes is resolved again.
func TestGCBesideResolves(t *testing.T) {
	t.Parallel()
	w := made(t)
	r := w.node(t, w.stocked(t))
	channels(t, r.Home, id, id)
	stop := make(chan struct{})
	var collector, resolvers sync.WaitGroup
	removals := 0
	collector.Go(func() {
		for {
			select {
			case <-stop:
				return
			case <-time.After(20 * time.Millisecond):
			}
			removed, err := r.Home.GC(t.Context())
			if err != nil {
				t.Error(err)
				return
			}
			removals += len(removed.Versions)
		}
	})
	for range 3 {
		resolvers.Go(func() {
			for range 6 {
				if e, err := r.Resolve(t.Context(), id, resolver.Options{}); err != nil || e.Verify() != nil {
					t.Errorf("what is in a channel: %v", err)
				}
				e, err := r.Resolve(t.Context(), another, resolver.Options{Archival: true})
				if err != nil {
					t.Error(err)
					continue
				}
				release, err := e.Hold()
				if err != nil {
					continue // removed before it was held
				}
				time.Sleep(30 * time.Millisecond)
				asRecorded(t, e)
				release()
				time.Sleep(30 * time.Millisecond)
			}
		})
	}
	resolvers.Wait()
	close(stop)
	collector.Wait()
	if removals == 0 {
		t.Error("nothing was ever removed")
	}
	if _, err := r.Resolve(t.Context(), another, resolver.Options{Archival: true}); err != nil {
		t.Fatal(err)
	}
	if err := r.Home.Pin(another); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Home.GC(t.Context()); err != nil {
		t.Fatal(err)
	}
	installed(t, r.Home, another, id)
}
