package main

import (
	"context"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/enginery/enginery/artifact"
	"github.com/enginery/enginery/internal/enginetest"
	"github.com/enginery/enginery/internal/exit"
	"github.com/enginery/enginery/internal/nodetest"
	"github.com/enginery/enginery/internal/registrytest"
	"github.com/enginery/enginery/internal/sigstoretest"
	"github.com/enginery/enginery/internal/swingsettest"
	"github.com/enginery/enginery/manifests"
	"github.com/enginery/enginery/publish"
	"github.com/enginery/enginery/release"
	"github.com/enginery/enginery/releaseindex"
	"github.com/enginery/enginery/repository"
	"github.com/enginery/enginery/trust"
	"github.com/enginery/enginery/trust/sign"
)

var dir string // of what all tests share

func TestMain(m *testing.M) {
	var err error
	if dir, err = os.MkdirTemp("", "enginery-"); err != nil {
		panic(err)
	}
	testscript.Main(runner{m}, map[string]func(){"enginery": main})
}

// runner removes what all tests share at their end.
type runner struct{ *testing.M }

func (r runner) Run() int {
	defer os.RemoveAll(dir)
	return r.M.Run()
}

// Versions: of the channels that ship, and one of none.
const legacy, current, archival = "agoric-upgrade-18", "agoric-upgrade-22", "agoric-upgrade-16"

// world is what all tests have: the versions in a layout as a developer has it, and in one where release has signed and alice and bob have
// rebuilt them.
type world struct{ built, signed string }

var (
	making   sync.Mutex
	password = []byte("secret")
)

// makeWorld returns the world.
func makeWorld(t testing.TB) *world {
	t.Helper()
	making.Lock()
	defer making.Unlock()
	w := &world{filepath.Join(dir, "built"), filepath.Join(dir, "signed")}
	if _, err := os.Stat(w.signed); err == nil {
		return w
	}
	shop := &release.Workshop{Store: enginetest.Store(t), Layout: w.built, ToolchainFrom: os.Getenv("ENGINERY_TOOLCHAIN_FROM")}
	versions, err := shop.BuildAvailable(t.Context(), legacy, current, archival)
	must(t, err)
	signers := make(map[string]*sign.Signer)
	for _, name := range []string{"release", "alice", "bob"} {
		key := filepath.Join(dir, name)
		must(t, sign.WriteKey(key, password))
		signers[name], err = sign.OpenKey(t.Context(), key+".key", func() ([]byte, error) { return password, nil })
		must(t, err)
	}
	from, to := open(t, "oci:"+w.built), open(t, "oci:"+w.signed+".new")
	for _, v := range versions {
		must(t, v.Check())
		_, err := repository.Copy(t.Context(), from, to, v.Artifact.ID)
		must(t, err)
		signature, err := signers["release"].Sign(t.Context(), v.Artifact.Index.Digest)
		must(t, err)
		attach(t, to, v.Artifact, signature)
		for _, name := range []string{"alice", "bob"} {
			statement, err := v.Artifact.Provenance(v.Recipe, "https://"+name+".example")
			must(t, err)
			attestation, err := signers[name].Attest(t.Context(), statement)
			must(t, err)
			attach(t, to, v.Artifact, attestation)
		}
	}
	must(t, os.Rename(w.signed+".new", w.signed))
	return w
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func open(t testing.TB, ref string) repository.Repository {
	t.Helper()
	r, err := repository.Open(ref)
	must(t, err)
	return r
}

func attach(t testing.TB, to repository.Repository, a *artifact.Artifact, bundle []byte) {
	t.Helper()
	_, err := trust.Attach(t.Context(), to, a.Index, bundle)
	must(t, err)
}

// policy is one that the signed layout meets.
const policy = `schema = 1
sources = [%q]

[[key]]
name = "release"
file = "release.pub"
[[key]]
name = "alice"
file = "alice.pub"
[[key]]
name = "bob"
file = "bob.pub"

[[rebuilder]]
name = "alice"
builder = "https://alice.example"
key = "alice"
[[rebuilder]]
name = "bob"
builder = "https://bob.example"
key = "bob"

[default]
signers = ["release"]
rebuilders = ["alice", "bob"]
rebuilds = 2
`

// node makes a home with a policy.
func (w *world) node(t testing.TB, home, source string) {
	t.Helper()
	must(t, os.MkdirAll(home, 0o755))
	for _, name := range []string{"release", "alice", "bob"} {
		pub, err := os.ReadFile(filepath.Join(dir, name+".pub"))
		must(t, err)
		must(t, os.WriteFile(filepath.Join(home, name+".pub"), pub, 0o644))
	}
	must(t, os.WriteFile(filepath.Join(home, "policy.toml"), fmt.Appendf(nil, policy, source), 0o644))
}

// TestScripts runs the scripts in testdata. Each has a home $ENGINERY_HOME with a policy that the versions in $SIGNED meet, and those in $BUILT, which
// nobody has signed, do not; and two registries, of which $DISTRIBUTION lacks the referrers API. $STORE is what the real SwingSet kernel has left,
// which ran on the version current; in $PLANTED some of it is changed. "status N" expects the exit status N of a command.
func TestScripts(t *testing.T) {
	w := makeWorld(t)
	distribution, oci := registrytest.StartDistribution(t), registrytest.StartOCI(t)
	store, planted := swingsettest.Store(t), plantedStore(t)
	testscript.Run(t, testscript.Params{
		Dir: "testdata/scripts", RequireExplicitExec: true, RequireUniqueNames: true,
		Setup: func(e *testscript.Env) error {
			home := filepath.Join(e.WorkDir, "node")
			w.node(t, home, "oci:"+w.signed)
			for name, value := range map[string]string{
				"HOME": e.WorkDir, "ENGINERY_HOME": home, "ENGINERY_VERSION": "", "ENGINERY_ARCHIVAL": "", "XDG_DATA_HOME": "",
				"BUILT": "oci:" + w.built, "SIGNED": "oci:" + w.signed, "KEYS": dir, "PLATFORM": "linux/" + runtime.GOARCH,
				"DISTRIBUTION": distribution, "OCI": oci, "STORE": store, "PLANTED": planted,
			} {
				e.Setenv(name, value)
			}
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"status": expectStatus},
	})
}

// expectStatus runs a program that must end with a status: status N PROGRAM ARG…
func expectStatus(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: status N PROGRAM ARG…")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	have := 0
	err = ts.Exec(args[1], args[2:]...)
	var ended *exec.ExitError
	if errors.As(err, &ended) {
		have = ended.ExitCode()
	} else {
		ts.Check(err)
	}
	if have != want {
		ts.Fatalf("status %d, want %d", have, want)
	}
}

// run runs enginery in a home until its end or the context's, which is a Ctrl-C. It returns the exit status and what was written.
func run(ctx context.Context, t testing.TB, home string, args ...string) (status int, output string) {
	t.Helper()
	cmd := exec.CommandContext(ctx, "enginery", args...)
	cmd.Env = append(os.Environ(), "ENGINERY_HOME="+home)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	out, err := cmd.CombinedOutput()
	var ended *exec.ExitError
	if err != nil && !errors.As(err, &ended) && ctx.Err() == nil {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), string(out)
}

// TestInterrupt has Ctrl-C end a fetch from a registry that stalls, with nothing half done; the same command then goes on.
func TestInterrupt(t *testing.T) {
	t.Parallel()
	w := makeWorld(t)
	registry := registrytest.StartOCI(t)
	_, err := repository.Copy(t.Context(), open(t, "oci:"+w.signed), open(t, registry+"/engines"), current)
	must(t, err)
	ctx, interrupt := context.WithCancel(t.Context())
	defer interrupt()
	stalls := registrytest.Flaky(t, registry, registrytest.Always(registrytest.Blobs, registrytest.Fault{Kind: registrytest.Stall, After: 100_000}))
	home := t.TempDir()
	w.node(t, home, stalls+"/engines")
	go func() {
		for ctx.Err() == nil { // until a part of a worker has come
			partial, _ := filepath.Glob(filepath.Join(home, "tmp", "partial-*"))
			for _, name := range partial {
				if info, err := os.Stat(name); err == nil && info.Size() > 0 {
					interrupt()
				}
			}
			time.Sleep(10 * time.Millisecond)
		}
	}()
	if status, out := run(ctx, t, home, "fetch", current); status != exit.Interrupted {
		t.Fatalf("status %d, want %d\n%s", status, exit.Interrupted, out)
	}
	if status, out := run(t.Context(), t, home, "fetch", current, "--offline"); status != exit.Unavailable {
		t.Fatalf("after Ctrl-C: status %d, want %d\n%s", status, exit.Unavailable, out)
	}
	if status, out := run(t.Context(), t, home, "fetch", current, "--from", registry+"/engines"); status != 0 {
		t.Fatalf("status %d\n%s", status, out)
	}
}

// TestReadOnlyHome has another user use a home: what is there works, and what is not says why it cannot be put there.
func TestReadOnlyHome(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		t.Skipf("NOT TESTED: %s: becoming another user takes root; run the tests as root", t.Name())
	}
	w := makeWorld(t)
	// nobody must reach all of it.
	folder := t.TempDir()
	for _, name := range []string{folder, filepath.Dir(folder)} {
		must(t, os.Chmod(name, 0o755))
	}
	program, err := exec.LookPath("enginery")
	must(t, err)
	own, home := filepath.Join(folder, "enginery"), filepath.Join(folder, "home")
	out, err := exec.Command("cp", program, own).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	w.node(t, home, "oci:"+filepath.Join(folder, "nothing"))
	if status, out := run(t.Context(), t, home, "fetch", current, "--from", "oci:"+w.signed); status != 0 {
		t.Fatalf("status %d\n%s", status, out)
	}
	must(t, os.WriteFile(filepath.Join(folder, "script.js"), []byte("6 * 7"), 0o644))
	for _, test := range []struct {
		args   []string
		status int
		want   string
	}{
		{[]string{"status"}, 0, current + "  stored"},
		{[]string{"run", "current", filepath.Join(folder, "script.js")}, 0, "42"},
		{[]string{"fetch", "current"}, 0, "ready"},
		{[]string{"verify", "current", "--offline"}, 0, "trusted"},
		{[]string{"fetch", "legacy"}, exit.Failed, "permission denied"},
		{[]string{"pin", archival}, exit.Failed, "pinning " + archival},
	} {
		cmd := exec.CommandContext(t.Context(), own, test.args...)
		cmd.Env = append(os.Environ(), "ENGINERY_HOME="+home)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		out, err := cmd.CombinedOutput()
		var ended *exec.ExitError
		if err != nil && !errors.As(err, &ended) {
			t.Fatal(err)
		}
		if status := cmd.ProcessState.ExitCode(); status != test.status || !strings.Contains(string(out), test.want) {
			t.Errorf("%s: status %d, want %d and %q\n%s", test.args, status, test.status, test.want, out)
		}
	}
}

// TestReleaseIndex has a node learn the channels from a signed index, which comes with the versions through a mirror; and refuse one that has expired.
func TestReleaseIndex(t *testing.T) {
	t.Parallel()
	w := makeWorld(t)
	signer, err := sign.OpenKey(t.Context(), filepath.Join(dir, "release.key"), func() ([]byte, error) { return password, nil })
	must(t, err)
	roles, records, layout, home := t.TempDir(), t.TempDir(), "oci:"+filepath.Join(t.TempDir(), "layout"), t.TempDir()
	pub, err := os.ReadFile(filepath.Join(dir, "release.pub"))
	must(t, err)
	must(t, os.WriteFile(filepath.Join(roles, "release.pub"), pub, 0o644))
	must(t, os.WriteFile(filepath.Join(roles, "roles.toml"), []byte(`schema = 1
[root]
keys = ["release.pub"]
days = 365
[targets]
keys = ["release.pub"]
days = 90
[timestamp]
keys = ["release.pub"]
days = 14
`), 0o644))
	must(t, os.CopyFS(records, os.DirFS("../../manifests")))
	must(t, os.WriteFile(filepath.Join(records, "channels.toml"), fmt.Appendf(nil, "legacy = %q\ncurrent = %q\n", archival, legacy), 0o644))
	signers := []*sign.Signer{signer}
	publishAt := func(now time.Time, ref string) {
		must(t, publish.Root(roles, signers, now, io.Discard))
		must(t, publish.Index(t.Context(), roles, records, ref, signers, now, io.Discard))
	}
	publishAt(time.Now(), layout)
	if status, out := run(t.Context(), t, home, "mirror", "oci:"+w.signed, layout); status != 0 {
		t.Fatalf("status %d\n%s", status, out)
	}
	mirror := registrytest.StartDistribution(t) + "/mirror"
	w.node(t, home, mirror)
	root, err := os.ReadFile(filepath.Join(roles, "1.root.json"))
	must(t, err)
	must(t, os.WriteFile(filepath.Join(home, "1.root.json"), root, 0o644))
	own, err := os.ReadFile(filepath.Join(home, "policy.toml"))
	must(t, err)
	must(t, os.WriteFile(filepath.Join(home, "policy.toml"), append(own, "[index]\nroot-file = \"1.root.json\"\n"...), 0o644))

	expired := "oci:" + filepath.Join(t.TempDir(), "expired")
	publishAt(time.Now().AddDate(0, 0, -30), expired)
	for _, test := range []struct {
		args   []string
		status int
		want   string
	}{
		{[]string{"status"}, 0, "none was accepted yet"},
		{[]string{"mirror", layout, mirror}, 0, releaseindex.Tag},
		{[]string{"fetch", "current", "--from", expired}, exit.Different, "the release index has expired"},
		{[]string{"prefetch"}, 0, legacy + "  linux"},
		{[]string{"status"}, 0, "version 1, good until"},
		{[]string{"status"}, 0, "legacy   " + archival + "  stored"},
		{[]string{"status", "--json"}, 0, `"expired": false`},
		{[]string{"prefetch", "--from", expired}, 0, "going on with the release index of version 1"},
	} {
		if status, out := run(t.Context(), t, home, test.args...); status != test.status || !strings.Contains(out, test.want) {
			t.Fatalf("%s: status %d, want %d and %q\n%s", test.args, status, test.status, test.want, out)
		}
	}
}

// TestServe has nodes fetch from enginery serve, with TLS and without, until Ctrl-C ends it with exit status 0.
func TestServe(t *testing.T) {
	w := makeWorld(t)
	for _, flags := range [][]string{nil, {"--cert", filepath.Join(dir, "tls.pem"), "--key", filepath.Join(dir, "tls.key")}} {
		if flags != nil {
			certify(t, flags[1], flags[3])
		}
		cmd := exec.CommandContext(t.Context(), "enginery", append([]string{"serve", w.signed, "127.0.0.1:0", "--json"}, flags...)...)
		out, err := cmd.StdoutPipe()
		must(t, err)
		cmd.Stderr = os.Stderr
		must(t, cmd.Start())
		var started struct{ Address string }
		must(t, json.NewDecoder(out).Decode(&started))
		scheme, address, _ := strings.Cut(started.Address, "://")
		if (scheme == "https") != (flags != nil) {
			t.Errorf("%s with %v", started.Address, flags)
		}
		home := t.TempDir()
		w.node(t, home, address+"/any/name")
		t.Setenv("SSL_CERT_FILE", filepath.Join(dir, "tls.pem"))
		if status, out := run(t.Context(), t, home, "fetch", current); status != 0 {
			t.Errorf("status %d\n%s", status, out)
		}
		must(t, cmd.Process.Signal(os.Interrupt))
		if err := cmd.Wait(); err != nil {
			t.Errorf("serve ended with %v", err)
		}
	}
}

// certify writes a certificate of 127.0.0.1 and its key.
func certify(t testing.TB, certFile, keyFile string) {
	t.Helper()
	public, private, err := ed25519.GenerateKey(nil)
	must(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		IsCA: true, BasicConstraintsValid: true,
	}
	cert, err := x509.CreateCertificate(nil, template, template, public, private)
	must(t, err)
	key, err := x509.MarshalPKCS8PrivateKey(private)
	must(t, err)
	must(t, os.WriteFile(certFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert}), 0o600))
	must(t, os.WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}), 0o600))
}

// TestHost has the unmodified @agoric/xsnap start the launcher, which runs what was fetched: each vat its own version.
func TestHost(t *testing.T) {
	t.Parallel()
	w := makeWorld(t)
	home, bin, host := t.TempDir(), t.TempDir(), filepath.Join(t.TempDir(), "host")
	w.node(t, home, "oci:"+w.signed)
	must(t, os.WriteFile(filepath.Join(home, "workers.toml"), []byte("[workers]\n\"v1:*\" = \"legacy\"\n"), 0o644))
	for _, command := range [][]string{
		{"cp", "-a", nodetest.Install(t, "../../xsnap/testdata/node"), host},
		{"cp", "../xsnap-worker/testdata/host.mjs", host},
		{"go", "build", "-o", filepath.Join(bin, "xsnap-worker"), "../xsnap-worker"},
	} {
		if out, err := exec.CommandContext(t.Context(), command[0], command[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", command, err, out)
		}
	}
	for _, args := range [][]string{{"prefetch"}, {"link", host, "--launcher", filepath.Join(bin, "xsnap-worker")}} {
		if status, out := run(t.Context(), t, home, args...); status != 0 {
			t.Fatalf("%s: status %d\n%s", args, status, out)
		}
	}
	cmd := exec.CommandContext(t.Context(), "node", "host.mjs", "v1:bootstrap", "v8:mint")
	cmd.Dir, cmd.Stderr = host, os.Stderr
	cmd.Env = append(os.Environ(), "ENGINERY_HOME="+home, "ENGINERY_VERSION=", "ENGINERY_ARCHIVAL=")
	out, err := cmd.Output()
	must(t, err)
	var ran map[string]struct{ Program, Resumed string }
	must(t, json.Unmarshal(out, &ran))
	for name, version := range map[string]string{"v1:bootstrap": legacy, "v8:mint": current} {
		m, err := manifests.Load(version)
		must(t, err)
		want := strings.TrimPrefix(m.Platforms["linux/"+runtime.GOARCH].Files[artifact.Worker], "sha256:")
		if ran[name].Program != want || ran[name].Resumed != want {
			t.Errorf("%s ran %+v; want %s, the worker of %s", name, ran[name], want, version)
		}
	}
}

// TestKeyless fetches what the release workflow has signed, by the policy that ships but for where it is and for which sigstore it believes.
func TestKeyless(t *testing.T) {
	t.Parallel()
	w := makeWorld(t)
	sigstore, layout := sigstoretest.New(t), "oci:"+filepath.Join(t.TempDir(), "layout")
	d, err := repository.Copy(t.Context(), open(t, "oci:"+w.built), open(t, layout), current)
	must(t, err)
	statement := fmt.Appendf(nil, `{"_type": "https://in-toto.io/Statement/v1", "predicateType": %q, "subject": [{"digest": {"sha256": %q}}]}`, trust.SignPredicate, d.Digest.Encoded())
	const workflow = "https://github.com/enginery/enginery/.github/workflows/release.yml@refs/tags/v1.0"
	bundle, err := sigstore.Bundle(workflow, "https://token.actions.githubusercontent.com", statement)
	must(t, err)
	_, err = trust.Attach(t.Context(), open(t, layout), d, bundle)
	must(t, err)
	for _, test := range []struct {
		name   string
		root   sigstoretest.Sigstore
		status int
		want   string
	}{
		{"its sigstore", sigstore, 0, "ready"},
		{"another sigstore", sigstoretest.New(t), exit.Different, "release signature: expected 1 of release-workflow"},
	} {
		home := t.TempDir()
		root, err := test.root.TrustedRoot()
		must(t, err)
		must(t, os.WriteFile(filepath.Join(home, "trusted_root.json"), root, 0o644))
		if status, out := run(t.Context(), t, home, "fetch", current, "--from", layout); status != test.status || !strings.Contains(out, test.want) {
			t.Errorf("%s: status %d, want %d and %q\n%s", test.name, status, test.status, test.want, out)
		}
	}
}
