package build_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/enginery/enginery/build"
	"github.com/enginery/enginery/internal/cas"
	"github.com/enginery/enginery/internal/enginetest"
)

// TestActionThatLooks runs an action that prints what it can see of where it runs.
func TestActionThatLooks(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "of-the-host")
	if err := os.WriteFile(secret, []byte("secret"), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Setenv("OF_THE_HOST", "secret")
	s := enginetest.Store(t)
	r := recipe(t, s, unique(answer))
	looks := []struct{ name, command string }{
		{"interfaces", "cat /proc/net/dev"},
		{"environment", "env"},
		{"processes", "ls -d /proc/[0-9]*"},
		{"root", "ls -a /"},
		{"host file", "ls " + secret},
		{"host name", "uname -n"},
		{"identity", "id"},
		{"devices", "ls /dev"},
		{"umask", "umask"},
		{"work", "ls /build"},
		{"write root", "touch /usr/x"},
		{"temporary files", "ls -a /tmp"},
		{"descriptors", "ls /proc/self/fd"},
	}
	rule := "$(OUT):\n"
	for _, look := range looks {
		rule += fmt.Sprintf("\t@echo '== %s' >>$@; %s >>$@ 2>&1 || true\n", look.name, look.command)
	}
	native, err := s.PutFS(t.Context(), fstest.MapFS{"worker/Makefile": {Data: []byte(rule)}})
	if err != nil {
		t.Fatal(err)
	}
	r.Pin.XsnapNative.Tree = native
	actions, err := build.Plan(r)
	if err != nil {
		t.Fatal(err)
	}
	for d, b := range actions[0].Blobs() {
		if got, err := s.PutBytes(t.Context(), b); err != nil || got != d {
			t.Fatal(got, err)
		}
	}
	result, err := enginetest.Executor(t, s).Execute(t.Context(), actions[0])
	if err != nil {
		t.Fatal(err)
	}
	out, err := s.ReadAll(cas.FromProto(result.OutputFiles[0].Digest))
	if err != nil {
		t.Fatal(err)
	}
	seen := make(map[string][]string)
	name := ""
	for line := range strings.Lines(string(out)) {
		line = strings.TrimSpace(line)
		if next, ok := strings.CutPrefix(line, "== "); ok {
			name = next
			continue
		}
		seen[name] = append(seen[name], line)
	}

	for _, line := range seen["interfaces"][2:] {
		if !strings.HasPrefix(line, "lo:") {
			t.Errorf("an interface: %s", line)
		}
	}
	want := []string{"HOME=/tmp", "LANG=C", "LC_ALL=C", "PATH=/usr/bin:/bin", "SOURCE_DATE_EPOCH=1", "TMPDIR=/tmp", "TZ=UTC"}
	for _, v := range seen["environment"] {
		// make sets these for what it runs; MAKEFLAGS is the job budget.
		if key, _, _ := strings.Cut(v, "="); slices.Contains([]string{"CC", "LINK_OPTIONS", "MAKEFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "MAKE_TERMERR", "MAKE_TERMOUT", "MFLAGS", "MODDABLE", "OUT", "PWD", "OLDPWD", "_"}, key) {
			continue
		}
		if i := slices.Index(want, v); i >= 0 {
			want = slices.Delete(want, i, i+1)
		} else {
			t.Errorf("in the environment: %s", v)
		}
	}
	if len(want) > 0 {
		t.Errorf("not in the environment: %v", want)
	}
	if n := len(seen["processes"]); n == 0 || n > 5 {
		t.Errorf("%d processes: %v", n, seen["processes"])
	}
	for _, test := range []struct{ name, want string }{
		{"root", ". .. bin build dev etc lib lib64 proc sys tmp usr"},
		{"host name", "enginery"},
		{"identity", "uid=0 gid=0 groups=0"},
		{"devices", "fd full null ptmx random stderr stdin stdout urandom zero"},
		{"umask", "0022"},
		{"work", "moddable xsnap-native"},
		{"temporary files", ". .."},
	} {
		if got := strings.Join(seen[test.name], " "); got != test.want {
			t.Errorf("%s: %q, want %q", test.name, got, test.want)
		}
	}
	for name, want := range map[string]string{"host file": "No such file or directory", "write root": "Read-only file system"} {
		if got := strings.Join(seen[name], " "); !strings.Contains(got, want) {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	// The standard streams, the two ends of the job budget, and the one that ls reads.
	if fds := seen["descriptors"]; len(fds) > 6 {
		t.Errorf("descriptors: %v", fds)
	}
}
