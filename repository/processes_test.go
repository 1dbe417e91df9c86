package repository_test

import (
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/enginery/enginery/repository"
	"github.com/google/go-containerregistry/pkg/registry"
)

// writerEnv makes the test's program one that fills a layout: "DIR TAG COUNT".
const writerEnv = "TEST_REPOSITORY_WRITER"

// TestWriter is what the processes of the tests below run.
func TestWriter(t *testing.T) {
	var dir, tag string
	var count int
	if n, _ := fmt.Sscan(os.Getenv(writerEnv), &dir, &tag, &count); n != 3 {
		return // none of those
	}
	for i := range count {
		fill(t, open(t, "oci:"+dir), fmt.Sprint(tag, ".", i), 20_000)
	}
}

func startWriter(t *testing.T, dir, tag string, count int) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^TestWriter$")
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s %s %d", writerEnv, dir, tag, count))
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd
}

// whole reads all of a layout, and returns its number of tags that are not cosign's.
func whole(t *testing.T, dir string) int {
	t.Helper()
	r := open(t, "oci:"+dir)
	tags, err := r.Tags(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, tag := range tags {
		d, err := r.Resolve(t.Context(), tag)
		if err != nil {
			t.Fatal(err)
		}
		all(t, r, d)
		if !strings.HasPrefix(tag, "sha256-") {
			n++
		}
	}
	return n
}

func TestProcessesShareALayout(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "layout")
	var writers []*exec.Cmd
	for i := range 8 {
		writers = append(writers, startWriter(t, dir, fmt.Sprint("w", i), 3))
	}
	for _, w := range writers {
		if err := w.Wait(); err != nil {
			t.Error(err)
		}
	}
	if n := whole(t, dir); n != 24 {
		t.Errorf("%d of 24 versions", n)
	}
}

func TestKilledProcessesLeaveALayoutWhole(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "layout")
	fill(t, open(t, "oci:"+dir), "first", 20_000)
	for i := range 10 {
		w := startWriter(t, dir, fmt.Sprint("w", i), 1_000_000)
		time.Sleep(time.Duration(100+37*i) * time.Millisecond)
		for i == 0 && whole(t, dir) < 2 { // one has written something
			time.Sleep(10 * time.Millisecond)
		}
		w.Process.Kill()
		w.Wait()
		whole(t, dir)
	}
	// What they left unfinished goes with the next writer.
	to := open(t, "oci:"+dir)
	if _, err := repository.Copy(t.Context(), to, to, "first"); err != nil {
		t.Fatal(err)
	}
	left, err := filepath.Glob(filepath.Join(dir, "blobs", "sha256", ".*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left %v, %v", left, err)
	}
}

// tlsEnv makes the test's program the client of a registry.
const tlsEnv = "TEST_REPOSITORY_TLS"

// TestTLSClient is what TestTLS runs.
func TestTLSClient(t *testing.T) {
	if address := os.Getenv(tlsEnv); address != "" {
		r := open(t, address+"/a", repository.Patience(2*time.Second))
		testReading(t, r, fill(t, r, "v1", 3_000_000))
	}
}

// TestTLS speaks HTTP/2 with a registry whose certificate the system trusts, and not at all with one whose it does not.
func TestTLS(t *testing.T) {
	var versions sync.Map
	registry := registry.New(registry.WithReferrersSupport(true), registry.Logger(log.New(io.Discard, "", 0)))
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		versions.Store(req.Proto, true)
		registry.ServeHTTP(w, req)
	}))
	server.EnableHTTP2 = true
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.StartTLS()
	defer server.Close()
	address := strings.TrimPrefix(server.URL, "https://")
	certificate := filepath.Join(t.TempDir(), "cert.pem")
	block := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	if err := os.WriteFile(certificate, block, 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestTLSClient$")
	cmd.Env = append(os.Environ(), tlsEnv+"="+address, "SSL_CERT_FILE="+certificate)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	if _, ok := versions.Load("HTTP/2.0"); !ok {
		t.Error("no HTTP/2")
	}
	var unavailable *repository.UnavailableError
	_, err := open(t, address+"/a", repository.Patience(time.Second)).Resolve(t.Context(), "v1")
	if !errors.As(err, &unavailable) || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("a certificate that nobody vouches for: %v", err)
	}
}
