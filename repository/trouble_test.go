package repository_test

import (
	"bytes"
	"encoding/base64"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/enginery/enginery/internal/registrytest"
	"github.com/enginery/enginery/repository"
	"github.com/google/go-containerregistry/pkg/registry"
)

// TestMain runs more tests at a time than there are processors: most of them wait.
func TestMain(m *testing.M) {
	flag.Parse()
	if err := flag.Set("test.parallel", "12"); err != nil {
		panic(err)
	}
	os.Exit(m.Run())
}

// transient is trouble that may pass.
var transient = map[string]registrytest.Fault{
	"500":             {Kind: registrytest.Status, Code: 500},
	"429":             {Kind: registrytest.Status, Code: 429},
	"503":             {Kind: registrytest.Status, Code: 503},
	"stalls at once":  {Kind: registrytest.Stall},
	"resets at once":  {Kind: registrytest.Reset},
	"ends at once":    {Kind: registrytest.Truncate},
	"stalls":          {Kind: registrytest.Stall, After: 100},
	"resets":          {Kind: registrytest.Reset, After: 100},
	"ends":            {Kind: registrytest.Truncate, After: 100},
	"ends as if well": {Kind: registrytest.Short, After: 100},
}

// TestTroubleThatPasses reads and writes through a registry that has trouble with the first requests of each kind.
func TestTroubleThatPasses(t *testing.T) {
	upstream := registrytest.StartDistribution(t)
	direct := open(t, upstream+"/a")
	root := fill(t, direct, "v1", 50_000)
	want := all(t, direct, root)
	for name, fault := range transient {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			faults := []registrytest.Fault{fault}
			if name == "500" || name == "resets" { // it takes its time
				faults = append(faults, fault)
			}
			for what, match := range map[string]func(*http.Request) bool{
				"manifests": registrytest.Manifests,
				"blobs":     registrytest.Blobs,
				"referrers": func(req *http.Request) bool { return strings.Contains(req.URL.Path, "/referrers/") },
				"tags":      func(req *http.Request) bool { return strings.HasSuffix(req.URL.Path, "/tags/list") },
				"handshake": func(req *http.Request) bool { return req.URL.Path == "/v2/" },
			} {
				if what == "handshake" && fault.Kind == registrytest.Short { // its body does not matter
					continue
				}
				r := open(t, registrytest.Flaky(t, upstream, registrytest.InTurn(match, faults...))+"/a", repository.Patience(2*time.Second))
				if got := all(t, r, root); got != want {
					t.Errorf("trouble with %s: read\n%s", what, got)
				}
				if _, err := r.Tags(t.Context()); err != nil {
					t.Errorf("trouble with %s: tags: %v", what, err)
				}
			}
			for _, method := range []string{"POST", "PATCH", "PUT"} {
				match := func(req *http.Request) bool { return req.Method == method }
				address := registrytest.Flaky(t, upstream, registrytest.InTurn(match, faults...))
				to := open(t, address+"/"+strings.ReplaceAll(strings.ToLower(name+method), " ", "-"), repository.Patience(2*time.Second))
				if _, err := repository.Copy(t.Context(), direct, to, "v1"); err != nil {
					t.Errorf("trouble with %s: %v", method, err)
				} else if all(t, to, root) != want {
					t.Errorf("trouble with %s: another copy", method)
				}
			}
		})
	}
}

// TestResume counts the bytes that are sent again when connections are lost.
func TestResume(t *testing.T) {
	for name, start := range map[string]func(testing.TB) string{"distribution": registrytest.StartDistribution, "oci": registrytest.StartOCI} {
		upstream := start(t)
		content := random(1 << 20)
		d := pushBlob(t, open(t, upstream+"/a"), content)
		var mu sync.Mutex
		var ranges []string
		plan := func(req *http.Request) registrytest.Fault {
			if !registrytest.Blobs(req) {
				return registrytest.Fault{}
			}
			mu.Lock()
			defer mu.Unlock()
			ranges = append(ranges, req.Header.Get("Range"))
			return registrytest.Fault{Kind: registrytest.Truncate, After: 400 << 10}
		}
		r := open(t, registrytest.Flaky(t, upstream, plan)+"/a")
		if !bytes.Equal(read(t, r, d, 0), content) {
			t.Errorf("%s: other bytes", name)
		}
		mu.Lock()
		want := []string{"", fmt.Sprintf("bytes=%d-%d", 400<<10, 1<<20-1), fmt.Sprintf("bytes=%d-%d", 800<<10, 1<<20-1)}
		if !slices.Equal(ranges, want) {
			t.Errorf("%s: asked for the ranges %q, want %q", name, ranges, want)
		}
		mu.Unlock()
	}
}

// TestTroubleThatStays is unavailability, in the end.
func TestTroubleThatStays(t *testing.T) {
	upstream := registrytest.StartOCI(t)
	direct := open(t, upstream+"/a")
	root := fill(t, direct, "v1", 50_000)
	layer := pushBlob(t, direct, random(50_000))
	check := func(t *testing.T, address string) {
		t.Helper()
		r := open(t, address+"/a", repository.Patience(time.Second))
		fresh := random(50_000)
		var wg sync.WaitGroup
		for what, f := range map[string]func() error{
			"resolve":   func() error { _, err := r.Resolve(t.Context(), "v1"); return err },
			"manifest":  func() error { _, err := r.Manifest(t.Context(), root); return err },
			"tags":      func() error { _, err := r.Tags(t.Context()); return err },
			"referrers": func() error { _, err := r.Referrers(t.Context(), root.Digest, ""); return err },
			"push":      func() error { return r.PushBlob(t.Context(), describe("", fresh), bytes.NewReader(fresh)) },
			"blob": func() error {
				b, err := r.Blob(t.Context(), layer, 0)
				if err != nil {
					return err
				}
				defer b.Close()
				_, err = io.Copy(io.Discard, b)
				return err
			},
		} {
			wg.Go(func() {
				var unavailable *repository.UnavailableError
				if err := f(); !errors.As(err, &unavailable) || unavailable.Repository != r.Name() {
					t.Errorf("%s: %v", what, err)
				}
			})
		}
		wg.Wait()
	}
	for name, fault := range transient {
		if fault.Kind == registrytest.Status || fault.After == 0 {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				check(t, registrytest.Flaky(t, upstream, registrytest.Always(registrytest.Any, fault)))
			})
		}
	}
	t.Run("nobody listens", func(t *testing.T) {
		t.Parallel()
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		l.Close()
		check(t, l.Addr().String())
	})
	t.Run("no registry", func(t *testing.T) {
		t.Parallel()
		server := httptest.NewServer(http.NotFoundHandler())
		defer server.Close()
		check(t, strings.TrimPrefix(server.URL, "http://"))
	})
	t.Run("no such host", func(t *testing.T) {
		t.Parallel()
		check(t, "registry.invalid:5000")
	})
	t.Run("goes away", func(t *testing.T) {
		t.Parallel()
		plan := registrytest.Always(registrytest.Blobs, registrytest.Fault{Kind: registrytest.Reset, After: 40_000})
		r := open(t, registrytest.Flaky(t, upstream, plan)+"/a", repository.Patience(time.Second))
		f, err := os.Create(filepath.Join(t.TempDir(), "download"))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		// The second answer is shorter than what may come through, so it is whole.
		if err := repository.Download(t.Context(), r, layer, f); err != nil {
			t.Error(err)
		}
	})
}

// TestDownloadResumesLater breaks a download off when the registry goes away in the middle of it, and completes it from another.
func TestDownloadResumesLater(t *testing.T) {
	upstream := registrytest.StartOCI(t)
	content := random(1 << 20)
	d := pushBlob(t, open(t, upstream+"/a"), content)
	first := true
	var mu sync.Mutex
	gone := registrytest.Flaky(t, upstream, func(req *http.Request) registrytest.Fault {
		mu.Lock()
		defer mu.Unlock()
		if !registrytest.Blobs(req) {
			return registrytest.Fault{}
		} else if first {
			first = false
			return registrytest.Fault{Kind: registrytest.Reset, After: 500_000}
		}
		return registrytest.Fault{Kind: registrytest.Status, Code: 502}
	})
	f, err := os.Create(filepath.Join(t.TempDir(), "download"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var unavailable *repository.UnavailableError
	if err := repository.Download(t.Context(), open(t, gone+"/a", repository.Patience(time.Second)), d, f); !errors.As(err, &unavailable) {
		t.Fatalf("a registry that went away: %v", err)
	}
	info, err := f.Stat()
	if err != nil || info.Size() == 0 || info.Size() > 500_000 {
		t.Errorf("%d bytes are left, %v", info.Size(), err)
	}
	var asked string
	other := registrytest.Flaky(t, upstream, func(req *http.Request) registrytest.Fault {
		if registrytest.Blobs(req) {
			asked = req.Header.Get("Range")
		}
		return registrytest.Fault{}
	})
	if err := repository.Download(t.Context(), open(t, other+"/a"), d, f); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(f.Name()); err != nil || !bytes.Equal(got, content) || asked != fmt.Sprintf("bytes=%d-%d", info.Size(), 1<<20-1) {
		t.Errorf("completed with the range %q, %v", asked, err)
	}
}

func TestGarbage(t *testing.T) {
	upstream := registrytest.StartDistribution(t)
	direct := open(t, upstream+"/a")
	content := random(100_000)
	root := pushImage(t, direct, version, "v1", nil, content)
	layer := describe("", content)
	garbage := registrytest.Fault{Kind: registrytest.Garble, After: 50}
	var corrupt *repository.CorruptError

	once := open(t, registrytest.Flaky(t, upstream, registrytest.InTurn(registrytest.Manifests, garbage))+"/a")
	if d, err := once.Resolve(t.Context(), "v1"); err != nil || d.Digest != root.Digest {
		t.Errorf("garbage once: %v, %v", d, err)
	}
	always := open(t, registrytest.Flaky(t, upstream, registrytest.Always(registrytest.Any, garbage))+"/a")
	if _, err := always.Resolve(t.Context(), "v1"); !errors.As(err, &corrupt) {
		t.Errorf("garbage for a tag: %v", err)
	}
	if _, err := always.Manifest(t.Context(), root); !errors.As(err, &corrupt) || corrupt.Repository != always.Name() {
		t.Errorf("garbage for a manifest: %v", err)
	}
	f, err := os.Create(filepath.Join(t.TempDir(), "download"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := repository.Download(t.Context(), always, layer, f); !errors.As(err, &corrupt) {
		t.Errorf("garbage for a blob: %v", err)
	}
	if err := repository.Download(t.Context(), direct, layer, f); err != nil {
		t.Error(err)
	}
	to := open(t, "oci:"+t.TempDir())
	blobs := open(t, registrytest.Flaky(t, upstream, registrytest.Always(registrytest.Blobs, garbage))+"/a")
	if _, err := repository.Copy(t.Context(), blobs, to, "v1"); !errors.As(err, &corrupt) {
		t.Errorf("copying garbage: %v", err)
	}
	if _, err := to.Resolve(t.Context(), "v1"); !errors.Is(err, repository.ErrNotFound) {
		t.Errorf("copied garbage: %v", err)
	}
}

// TestNoEnd has registries whose answers would never end.
func TestNoEnd(t *testing.T) {
	mux := http.NewServeMux()
	mux.HandleFunc("/v2/{$}", func(http.ResponseWriter, *http.Request) {})
	mux.HandleFunc("/v2/a/tags/list", func(w http.ResponseWriter, req *http.Request) {
		w.Header().Set("Link", `</v2/a/tags/list?last=x>; rel="next"`)
		io.WriteString(w, `{"tags": ["x"]}`)
	})
	mux.HandleFunc("/v2/a/manifests/v1", func(w http.ResponseWriter, req *http.Request) {
		for w, b := io.Writer(w), make([]byte, 1<<16); ; {
			if _, err := w.Write(b); err != nil {
				return
			}
		}
	})
	mux.HandleFunc("/v2/a/blobs/", func(w http.ResponseWriter, req *http.Request) { // a byte at a time
		for i := 0; i < 1<<20; i++ {
			if _, err := w.Write([]byte{0}); err != nil || http.NewResponseController(w).Flush() != nil {
				return
			}
			time.Sleep(20 * time.Millisecond)
		}
	})
	server := httptest.NewServer(mux)
	defer server.Close()
	r := open(t, strings.TrimPrefix(server.URL, "http://")+"/a", repository.Patience(time.Second))
	var unavailable *repository.UnavailableError
	if _, err := r.Tags(t.Context()); !errors.As(err, &unavailable) {
		t.Errorf("endless tags: %v", err)
	}
	if _, err := r.Resolve(t.Context(), "v1"); !errors.As(err, &unavailable) {
		t.Errorf("an endless manifest: %v", err)
	}
	blob, err := r.Blob(t.Context(), describe("", make([]byte, 1<<20)), 0)
	if err != nil {
		t.Fatal(err)
	}
	if n, err := io.Copy(io.Discard, blob); !errors.As(err, &unavailable) || !strings.Contains(err.Error(), "too slowly") {
		t.Errorf("a blob that trickles: %d bytes, %v", n, err)
	}
	server.CloseClientConnections()
}

func dockerConfig(t *testing.T, address, user, password string) {
	t.Helper()
	dir := t.TempDir()
	auth := base64.StdEncoding.EncodeToString([]byte(user + ":" + password))
	if err := os.WriteFile(filepath.Join(dir, "config.json"), fmt.Appendf(nil, `{"auths": {%q: {"auth": %q}}}`, address, auth), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("DOCKER_CONFIG", dir)
}

// TestPassword uses credentials as docker login stores them.
func TestPassword(t *testing.T) {
	file := filepath.Join(t.TempDir(), "htpasswd")
	// user:secret, by htpasswd -B
	if err := os.WriteFile(file, []byte("user:$2a$04$MLZ2ml0hzWzcDa4aQHS1d.dp9PcEtaalkg25gpoMCjuBoJARa9yR6\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	address := registrytest.StartDistributionWith(t, fmt.Sprintf("auth: {htpasswd: {realm: r, path: %q}}\n", file))
	dockerConfig(t, address, "user", "wrong")
	var unavailable *repository.UnavailableError
	r := open(t, address+"/a", repository.Patience(time.Hour)) // that is not asked for again
	if _, err := r.Resolve(t.Context(), "v1"); !errors.As(err, &unavailable) || !strings.Contains(err.Error(), "UNAUTHORIZED") {
		t.Errorf("with a wrong password: %v", err)
	}
	dockerConfig(t, address, "user", "secret")
	r = open(t, address+"/a")
	testReading(t, r, fill(t, r, "v1", 10_000))
}

// TestToken has a registry whose tokens last for six requests each, whose blobs come from elsewhere, and whose connections break.
func TestToken(t *testing.T) {
	upstream := registrytest.StartDistribution(t)
	storage := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if a := req.Header.Get("Authorization"); a != "" {
			t.Errorf("the storage was sent %q", a)
		}
		(&httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(&url.URL{Scheme: "http", Host: upstream}) }}).ServeHTTP(w, req)
	}))
	defer storage.Close()
	var mu sync.Mutex
	tokens := make(map[string]int) // how often they are good
	proxy := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(&url.URL{Scheme: "http", Host: upstream})
			r.Out.Host = r.In.Host
			r.Out.Header.Del("Authorization")
		},
		ErrorLog: log.New(io.Discard, "", 0),
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		if req.URL.Path == "/token" {
			if user, password, _ := req.BasicAuth(); user != "user" || password != "secret" {
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			token := fmt.Sprint("token", len(tokens))
			tokens[token] = 6
			fmt.Fprintf(w, `{"token": %q}`, token)
			return
		}
		token := strings.TrimPrefix(req.Header.Get("Authorization"), "Bearer ")
		if tokens[token] == 0 {
			w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="http://%s/token",service="s",scope="repository:a:pull"`, req.Host))
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		tokens[token]--
		if registrytest.Blobs(req) {
			http.Redirect(w, req, storage.URL+req.URL.Path, http.StatusTemporaryRedirect)
			return
		}
		proxy.ServeHTTP(w, req)
	}))
	defer server.Close()
	address := strings.TrimPrefix(server.URL, "http://")
	dockerConfig(t, address, "user", "secret")
	root := fill(t, open(t, address+"/a"), "v1", 10_000)
	testReading(t, open(t, address+"/a"), root)
}

func TestRedirects(t *testing.T) {
	server := httptest.NewServer(nil)
	defer server.Close()
	registry := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	server.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if registrytest.Blobs(req) {
			http.Redirect(w, req, "http://169.254.169.254/latest/meta-data", http.StatusTemporaryRedirect)
			return
		}
		registry.ServeHTTP(w, req)
	})
	r := open(t, strings.TrimPrefix(server.URL, "http://")+"/a")
	var unavailable *repository.UnavailableError
	if _, err := r.Blob(t.Context(), describe("", []byte("x")), 0); !errors.As(err, &unavailable) || !strings.Contains(err.Error(), "private network") {
		t.Errorf("redirected to a link-local address: %v", err)
	}
}
