package npm

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/enginery/enginery/internal/cas"
)

func TestCheck(t *testing.T) {
	good := Package{"@agoric/xsnap", "0.14.3-u16.1", integrity(nil), cas.OfBytes(nil)}
	if field, problem := good.Check(); problem != "" {
		t.Errorf("%s: %s", field, problem)
	}
	for want, spoil := range map[string]func(*Package){
		"package":   func(p *Package) { p.Name = "-x" },
		"version":   func(p *Package) { p.Version = "^1.0.0" },
		"integrity": func(p *Package) { p.Integrity = strings.Replace(p.Integrity, "512", "256", 1) },
		"tarball":   func(p *Package) { p.Tarball = cas.Digest{} },
	} {
		p := good
		spoil(&p)
		if field, problem := p.Check(); field != want || problem == "" {
			t.Errorf("%+v: got %q, %q", p, field, problem)
		}
	}
}

// registry is a package registry with one package, demo@1.0.0, that the real client talks to.
type registry struct {
	*httptest.Server
	tarball   []byte
	integrity string                            // as it is published
	serve     func(http.ResponseWriter, []byte) // sends the tarball
	downloads atomic.Int64
}

func newRegistry(t *testing.T) (*registry, Package) {
	t.Helper()
	tgz := tarball(t, &tar.Header{Name: "package/package.json", Mode: 0o644}, `{"name":"demo","version":"1.0.0"}`)
	r := &registry{tarball: tgz, integrity: integrity(tgz), serve: func(w http.ResponseWriter, tgz []byte) { w.Write(tgz) }}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /demo", func(w http.ResponseWriter, _ *http.Request) {
		json.NewEncoder(w).Encode(map[string]any{
			"name": "demo", "dist-tags": map[string]string{"latest": "1.0.0"},
			"versions": map[string]any{"1.0.0": map[string]any{"name": "demo", "version": "1.0.0",
				"dist": map[string]string{"tarball": r.URL + "/demo-1.0.0.tgz", "integrity": r.integrity}}},
		})
	})
	mux.HandleFunc("GET /demo-1.0.0.tgz", func(w http.ResponseWriter, _ *http.Request) {
		r.downloads.Add(1)
		r.serve(w, r.tarball)
	})
	r.Server = httptest.NewServer(mux)
	t.Cleanup(func() { r.CloseClientConnections(); r.Close() })
	t.Setenv("npm_config_registry", r.URL)
	t.Setenv("npm_config_cache", t.TempDir())
	t.Setenv("npm_config_fetch_retries", "0")
	return r, Package{"demo", "1.0.0", integrity(tgz), cas.OfBytes(tgz)}
}

func tarball(t *testing.T, headersAndContents ...any) []byte {
	t.Helper()
	var b bytes.Buffer
	zw := gzip.NewWriter(&b)
	tw := tar.NewWriter(zw)
	for i := 0; i < len(headersAndContents); i += 2 {
		h, content := headersAndContents[i].(*tar.Header), headersAndContents[i+1].(string)
		h.Size = int64(len(content))
		if err := tw.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		io.WriteString(tw, content)
	}
	if err := errors.Join(tw.Close(), zw.Close()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func openStore(t *testing.T) *cas.Store {
	t.Helper()
	store, err := cas.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return store
}

func TestFetch(t *testing.T) {
	r, pkg := newRegistry(t)
	store := openStore(t)
	for range 2 {
		tgz, err := Fetch(t.Context(), store, pkg)
		if err != nil || !bytes.Equal(tgz, r.tarball) {
			t.Fatalf("got %d bytes, %v", len(tgz), err)
		}
	}
	if n := r.downloads.Load(); n != 1 {
		t.Errorf("%d downloads, want 1: the store was not used", n)
	}

	// A flipped byte in the store is found, and the next run fetches the package again.
	path := store.Path(pkg.Tarball)
	spoiled := bytes.Clone(r.tarball)
	spoiled[len(spoiled)/2] ^= 1
	if err := errors.Join(os.Chmod(path, 0o644), os.WriteFile(path, spoiled, 0o644)); err != nil {
		t.Fatal(err)
	}
	var corrupt *cas.CorruptError
	if _, err := Fetch(t.Context(), store, pkg); !errors.As(err, &corrupt) || !strings.Contains(err.Error(), "demo@1.0.0") {
		t.Errorf("with a flipped byte: got %v", err)
	}
	if tgz, err := Fetch(t.Context(), store, pkg); err != nil || !bytes.Equal(tgz, r.tarball) {
		t.Errorf("after a flipped byte: got %d bytes, %v", len(tgz), err)
	}
	// So is a file that has lost its end.
	if err := errors.Join(os.Chmod(path, 0o644), os.Truncate(path, 100)); err != nil {
		t.Fatal(err)
	}
	if tgz, err := Fetch(t.Context(), store, pkg); err != nil || !bytes.Equal(tgz, r.tarball) {
		t.Errorf("after a truncation: got %d bytes, %v", len(tgz), err)
	}
}

func TestResolve(t *testing.T) {
	r, want := newRegistry(t)
	got, tgz, err := Resolve(t.Context(), openStore(t), "demo", "1.0.0")
	if err != nil || got != want || !bytes.Equal(tgz, r.tarball) {
		t.Errorf("got %+v, %v; want %+v", got, err, want)
	}
	if _, _, err := Resolve(t.Context(), openStore(t), "demo", "latest"); err == nil {
		t.Error("a tag passed for an exact version")
	}
}

func TestFetchFails(t *testing.T) {
	var unavailable *UnavailableError
	var integrityError *IntegrityError
	var mismatch *cas.MismatchError
	for name, test := range map[string]struct {
		spoil func(*testing.T, *registry, *Package)
		as    any
		want  string
	}{
		"no such package": {func(_ *testing.T, _ *registry, p *Package) { p.Name = "other" }, &unavailable, "E404"},
		"no such version": {func(_ *testing.T, _ *registry, p *Package) { p.Version = "2.0.0" }, &unavailable, "ETARGET"},
		"no network": {func(t *testing.T, _ *registry, _ *Package) {
			t.Setenv("npm_config_registry", "http://127.0.0.1:1")
		}, &unavailable, "check the network"},
		"no such host": {func(t *testing.T, _ *registry, _ *Package) {
			t.Setenv("npm_config_registry", "http://registry.invalid")
		}, &unavailable, "check the network"},
		"no npm": {func(t *testing.T, _ *registry, _ *Package) { t.Setenv("PATH", t.TempDir()) }, &unavailable, "install npm"},
		"no npm that works": {func(t *testing.T, _ *registry, _ *Package) {
			dir := t.TempDir()
			if err := os.WriteFile(dir+"/npm", []byte("#!/bin/sh\necho broken >&2\nexit 7\n"), 0o755); err != nil {
				t.Fatal(err)
			}
			t.Setenv("PATH", dir)
		}, &unavailable, "broken"},
		"truncated download": {func(_ *testing.T, r *registry, _ *Package) {
			r.serve = func(w http.ResponseWriter, tgz []byte) {
				w.Header().Set("Content-Length", fmt.Sprint(len(tgz)))
				w.Write(tgz[:len(tgz)/2])
			}
		}, &unavailable, "demo@1.0.0"},
		"cleanly truncated download": {func(_ *testing.T, r *registry, _ *Package) {
			r.serve = func(w http.ResponseWriter, tgz []byte) { w.Write(tgz[:len(tgz)/2]) }
		}, &integrityError, "EINTEGRITY"},
		"flipped byte on the way": {func(_ *testing.T, r *registry, _ *Package) {
			r.serve = func(w http.ResponseWriter, tgz []byte) {
				tgz = bytes.Clone(tgz)
				tgz[20] ^= 1
				w.Write(tgz)
			}
		}, &integrityError, "EINTEGRITY"},
		"republished by the registry": {func(t *testing.T, r *registry, _ *Package) {
			r.tarball = tarball(t, &tar.Header{Name: "package/package.json", Mode: 0o644}, `{"name":"demo","version":"1.0.0","evil":1}`)
			r.integrity = integrity(r.tarball)
		}, &integrityError, "expected sha512-"},
		"wrong integrity on record": {func(_ *testing.T, _ *registry, p *Package) { p.Integrity = integrity([]byte("other")) },
			&integrityError, integrity([]byte("other"))},
		"wrong digest on record": {func(_ *testing.T, _ *registry, p *Package) { p.Tarball = cas.OfBytes([]byte("other")) },
			&mismatch, "demo@1.0.0"},
	} {
		t.Run(name, func(t *testing.T) {
			r, pkg := newRegistry(t)
			store := openStore(t)
			test.spoil(t, r, &pkg)
			_, err := Fetch(t.Context(), store, pkg)
			if err == nil || !errors.As(err, test.as) || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), pkg.String()) {
				t.Errorf("got %v, want one that contains %q and %q", err, pkg, test.want)
			}
			if store.Has(pkg.Tarball) || store.Has(cas.OfBytes(r.tarball)) {
				t.Error("the tarball is in the store")
			}
		})
	}
}

// A registry that accepts connections and never answers does not hold up who cancels.
func TestFetchCancel(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, pkg := newRegistry(t)
	t.Setenv("npm_config_registry", "http://"+l.Addr().String())
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		if c, err := l.Accept(); err == nil {
			defer c.Close()
		}
		cancel()
		<-t.Context().Done()
	}()
	start := time.Now()
	if _, err := Fetch(ctx, openStore(t), pkg); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if took := time.Since(start); took > 30*time.Second {
		t.Errorf("it took %v", took)
	}
}

func TestFiles(t *testing.T) {
	tgz := tarball(t,
		&tar.Header{Name: "package/", Typeflag: tar.TypeDir, Mode: 0o755}, "",
		&tar.Header{Name: "package/./a", Mode: 0o644}, "first",
		&tar.Header{Name: "package/b/c", Mode: 0o755}, "run",
		&tar.Header{Name: "package/a", Mode: 0o644}, "second")
	var got []string
	err := Files(tgz, func(name string, executable bool, content io.Reader) error {
		b, err := io.ReadAll(content)
		got = append(got, fmt.Sprintf("%s %v %s", name, executable, b))
		return err
	})
	if want := "a false first|b/c true run|a false second"; err != nil || strings.Join(got, "|") != want {
		t.Errorf("got %q, %v; want %q", got, err, want)
	}

	nothing := func(string, bool, io.Reader) error { return nil }
	for _, h := range []*tar.Header{
		{Name: "package/../../evil"}, {Name: "package//etc/passwd"}, {Name: "evil"}, {Name: "package/."},
		{Name: "package/link", Typeflag: tar.TypeSymlink, Linkname: "/etc/passwd"},
		{Name: "package/link", Typeflag: tar.TypeLink, Linkname: "package/a"},
	} {
		if err := Files(tarball(t, h, ""), nothing); err == nil {
			t.Errorf("entry %q was accepted", h.Name)
		}
	}
	if err := Files(tgz[:len(tgz)-20], nothing); err == nil {
		t.Error("a truncated tarball was accepted")
	}
}
