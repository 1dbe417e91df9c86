// Package registrytest gives tests real registries, and trouble on the way to them.
package registrytest

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"
)

// StartOCI starts a registry that has the referrers API, and returns its address, HOST:PORT. It keeps everything in memory. (It is
// go-containerregistry's: the artifact types it lists are those of the configs, it knows no filter, and reads no open ranges.)
func StartOCI(t testing.TB) string {
	t.Helper()
	return serve(t, registry.New(registry.WithReferrersSupport(true), registry.Logger(log.New(io.Discard, "", 0))))
}

func serve(t testing.TB, h http.Handler) string {
	server := httptest.NewUnstartedServer(h)
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.Start()
	t.Cleanup(func() {
		server.CloseClientConnections()
		server.Close()
	})
	return strings.TrimPrefix(server.URL, "http://")
}

// StartDistribution starts the registry of Debian's package docker-registry, which has no referrers API, and returns its address,
// HOST:PORT. The package need not be installed: it is fetched once in a test's process, and unpacked.
func StartDistribution(t testing.TB) string {
	t.Helper()
	return StartDistributionWith(t, "")
}

// StartDistributionWith does so with something at the end of its configuration, which is YAML.
func StartDistributionWith(t testing.TB, config string) string {
	t.Helper()
	dir := t.TempDir()
	program, err := exec.LookPath("docker-registry")
	if err != nil {
		b, err := distribution()
		if err != nil {
			t.Fatal(err)
		}
		program = filepath.Join(dir, "docker-registry")
		write(t, program, b, 0o755)
	}
	file := filepath.Join(dir, "config.yml")
	write(t, file, fmt.Appendf(nil, `version: 0.1
log: {level: info, formatter: text}
storage: {filesystem: {rootdirectory: %q}, delete: {enabled: true}}
http: {addr: "127.0.0.1:0"}
%s`, filepath.Join(dir, "data"), config), 0o644)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	var cmd *exec.Cmd
	for {
		cmd = exec.Command(program, "serve", file)
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		cmd.Stderr = w
		err := cmd.Start()
		if err == nil {
			break
		}
		// A process forked while the program was written holds it open for writing until it execs (golang/go#22315).
		if !errors.Is(err, syscall.ETXTBSY) {
			t.Fatal(err)
		}
		time.Sleep(time.Millisecond)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	var said bytes.Buffer
	w.Close()
	lines := bufio.NewScanner(io.TeeReader(r, &said))
	for lines.Scan() {
		if m := regexp.MustCompile(`listening on (127\.0\.0\.1:\d+)`).FindStringSubmatch(lines.Text()); m != nil {
			go func() {
				io.Copy(io.Discard, r)
				r.Close()
			}()
			return m[1]
		}
	}
	t.Fatalf("docker-registry does not listen:\n%s", &said)
	return ""
}

func write(t testing.TB, path string, b []byte, mode os.FileMode) {
	t.Helper()
	if err := os.WriteFile(path, b, mode); err != nil {
		t.Fatal(err)
	}
}

// distribution returns the program of the package docker-registry.
var distribution = sync.OnceValues(func() ([]byte, error) {
	dir, err := os.MkdirTemp("", "docker-registry-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	run := func(name string, args ...string) error {
		cmd := exec.Command(name, args...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, out)
		}
		return nil
	}
	if run("apt-get", "download", "docker-registry") != nil { // there may be no package lists, and no right to make them
		for _, d := range []string{"lists/partial", "archives/partial"} {
			if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
				return nil, err
			}
		}
		own := []string{"-o", "Dir::State::lists=" + dir + "/lists", "-o", "Dir::Cache=" + dir, "-o", "APT::Sandbox::User="}
		if err := run("apt-get", append(own, "update")...); err != nil {
			return nil, err
		}
		if err := run("apt-get", append(own, "download", "docker-registry")...); err != nil {
			return nil, err
		}
	}
	debs, err := filepath.Glob(filepath.Join(dir, "docker-registry_*.deb"))
	if err != nil || len(debs) != 1 {
		return nil, fmt.Errorf("apt-get download docker-registry brought %v", debs)
	}
	if err := run("dpkg-deb", "-x", debs[0], "unpacked"); err != nil {
		return nil, err
	}
	return os.ReadFile(filepath.Join(dir, "unpacked/usr/bin/docker-registry"))
})

// Fault is what goes wrong with one answer. The zero Fault is that nothing does.
type Fault struct {
	Kind  Kind
	After int64 // bytes of the body that are as they should be; not of Status. 0 of a connection's end: not even the header comes
	Code  int   // of Status
}

// Kind is a kind of trouble.
type Kind int

// What can go wrong.
const (
	Fine     Kind = iota
	Status        // another status, with no body to speak of
	Stall         // no more bytes come, and the connection stays
	Truncate      // the connection ends, where more was announced
	Short         // the body ends early, as if that were all
	Garble        // other bytes
	Reset         // the connection is reset
)

// Plan says what goes wrong with the answer to a request. It is called concurrently.
type Plan func(*http.Request) Fault

// Always has the same trouble with every request that matches.
func Always(match func(*http.Request) bool, f Fault) Plan {
	return func(req *http.Request) Fault {
		if match(req) {
			return f
		}
		return Fault{}
	}
}

// InTurn has one trouble with each of the first requests that match, and none with those after them.
func InTurn(match func(*http.Request) bool, faults ...Fault) Plan {
	var mu sync.Mutex
	return func(req *http.Request) Fault {
		mu.Lock()
		defer mu.Unlock()
		if len(faults) == 0 || !match(req) {
			return Fault{}
		}
		f := faults[0]
		faults = faults[1:]
		return f
	}
}

// Any matches every request.
func Any(*http.Request) bool { return true }

// Blobs matches a request for a blob's bytes.
func Blobs(req *http.Request) bool {
	return req.Method == http.MethodGet && strings.Contains(req.URL.Path, "/blobs/sha256:")
}

// Manifests matches a request for a manifest's bytes.
func Manifests(req *http.Request) bool {
	return req.Method == http.MethodGet && strings.Contains(req.URL.Path, "/manifests/")
}

// Flaky starts a proxy before a registry at HOST:PORT, in which things go wrong as planned, and returns its address, HOST:PORT.
func Flaky(t testing.TB, upstream string, plan Plan) string {
	t.Helper()
	over := make(chan struct{}) // ends what stalls
	proxy := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(&url.URL{Scheme: "http", Host: upstream})
			r.Out.Host = r.In.Host // which the registry's redirections name
		},
		ErrorLog:      log.New(io.Discard, "", 0),
		FlushInterval: -1,
	}
	address := serve(t, http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		fault := plan(req)
		if fault.Kind == Status {
			http.Error(w, "trouble", fault.Code)
			return
		}
		proxy.ServeHTTP(&troubled{w, req, fault, over}, req)
	}))
	t.Cleanup(func() { close(over) }) // before the server closes, which waits for its handlers
	return address
}

// troubled is a response with a fault in its body.
type troubled struct {
	http.ResponseWriter
	req   *http.Request
	fault Fault
	over  <-chan struct{}
}

func (w *troubled) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *troubled) WriteHeader(code int) {
	if w.fault.Kind == Short {
		w.Header().Del("Content-Length")
	}
	if w.fault.After == 0 && slices.Contains([]Kind{Stall, Truncate, Reset}, w.fault.Kind) {
		w.end() // of an answer without a body, its status is all
	}
	w.ResponseWriter.WriteHeader(code)
}

func (w *troubled) Write(p []byte) (int, error) {
	well := min(w.fault.After, int64(len(p)))
	switch w.fault.Kind {
	case Fine:
		return w.ResponseWriter.Write(p)
	case Garble:
		garbled := bytes.Clone(p)
		for i := range garbled[well:] {
			garbled[well+int64(i)] ^= 0x55
		}
		w.fault.After -= well
		return w.ResponseWriter.Write(garbled)
	}
	w.fault.After -= well
	if n, err := w.ResponseWriter.Write(p[:well]); err != nil || w.fault.After > 0 {
		return n, err
	}
	if err := http.NewResponseController(w.ResponseWriter).Flush(); err != nil {
		return 0, err
	}
	if w.fault.Kind == Short {
		return len(p), nil
	}
	w.end()
	return 0, nil
}

// end does not return: no more of the answer comes.
func (w *troubled) end() {
	switch w.fault.Kind {
	case Stall:
		select {
		case <-w.over:
		case <-w.req.Context().Done():
		case <-time.After(time.Minute):
		}
	case Reset:
		if c, _, err := http.NewResponseController(w.ResponseWriter).Hijack(); err == nil {
			if tcp, ok := c.(*net.TCPConn); ok {
				tcp.SetLinger(0)
			}
			c.Close()
		}
	}
	panic(http.ErrAbortHandler)
}
