package bundles

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/enginery/enginery/internal/cas"
	"github.com/enginery/enginery/internal/npm"
)

// The bundle IDs that the chain's own records have, by upgrade.
var shipped = map[string][2]string{
	"agoric-upgrade-10": {lockdown10, supervisor10},
	"agoric-upgrade-11": {lockdown10, supervisor10},
	"agoric-upgrade-12": {lockdown10, supervisor10},
	"agoric-upgrade-13": {lockdown13, supervisor10},
	"agoric-upgrade-14": {lockdown13, supervisor10},
	"agoric-upgrade-16": {"b0-93aa2eef2f016ab0590b87bebd621757468bfe18132f28f70728c17dcf621844", "b0-7cd7b3cdaafeba43a6fc38036b482d8f09d248d84c8102bf14165d4f53068ce6"},
	"agoric-upgrade-17": {"b0-cc8febd07c579456bb10407b595add36107499e7eab4bdc92add357679946cd5", "b0-c9d912f829eaaa18e9c4474fb046483f389cc5aa47cc4918bd71427589d9f6d4"},
	"agoric-upgrade-18": {"b0-b9c432d6a773aea4042a88d7b70ca0576601e61df3e881d047933e5e0fa8bb27", "b0-d8da59a32efb421023c36d483f76a20fcfec3d2cc0a9f8a8e36db497ee993764"},
	"agoric-upgrade-22": {"b0-40a8ea620c16222d0aba5c07a9d2e549c959b702820529fdbcad5a649602ded5", "b0-4751467ce397e39f6445d34eab978d5f7d317f41dba9952b4c6fbbfd49fb9894"},
}

const (
	lockdown10   = "b0-5c790a966210b78de758fb442af542714ed96da09db76e0b31d6a237e555fd62"
	lockdown13   = "b0-d3c9136f5c55d23c9adee828b74cbe3bdafdf3d4b6a061c96cae5e15cfc5d470"
	supervisor10 = "b0-e0d2dafc7e981947b42118e8c950837109683bae56f7b4f5bffa1b67e5c1e768"
)

func TestShipped(t *testing.T) {
	for _, name := range Names() {
		p, err := Load(name)
		if err != nil {
			t.Fatal(err)
		}
		if got := [2]string{p.Lockdown.ID(), p.Supervisor.ID()}; got != shipped[name] {
			t.Errorf("%s: got %v, want %v", name, got, shipped[name])
		}
		data, err := os.ReadFile(name + ".toml")
		if err != nil {
			t.Fatal(err)
		}
		head, _, _ := strings.Cut(string(data), "\n\n")
		_, note, _ := strings.Cut(head+"\n", "\n")
		if got := string(format(p, note)); got != string(data) {
			t.Errorf("%s.toml is not in the form that Add writes (+):\n%s", name, cmp.Diff(string(data), got))
		}
	}
	if got, want := len(Names()), len(shipped); got != want {
		t.Errorf("%d pairs, want %d", got, want)
	}
}

func TestLoadUnknown(t *testing.T) {
	for _, name := range []string{"none", "../bundles", ""} {
		if _, err := Load(name); err == nil || !strings.Contains(err.Error(), "supervisor bundles ") {
			t.Errorf("Load(%q) = %v", name, err)
		}
	}
}

func TestParse(t *testing.T) {
	const good = "agoric-upgrade-16.toml"
	data, err := os.ReadFile(good)
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct{ old, new, says string }{
		{`name = "agoric-upgrade-16"`, `name = "agoric-upgrade-17"`, "agoric-upgrade-17"},
		{`package   = "@agoric/xsnap-lockdown"`, `package   = "../x"`, "npm package"},
		{`version   = "0.14.1-u16.0"`, `version   = "latest"`, "exact version"},
		{`integrity = "sha512-eoM6`, `integrity = "sha1-eoM6`, "sha512"},
		{`tarball   = "`, `tarball   = "x`, ""},
		{`tarball   = "`, `tarball   = "" #`, "missing"},
		{`file      = "dist/lockdown.bundle"`, `file      = "../lockdown.bundle"`, "inside the package"},
		{`sha256    = "93aa`, `sha256    = "93aA`, ""},
		{`sha256    = "93aa`, `sha256    = "" # "93aa`, "missing"},
		{`sha256    = "93aa`, `sha265    = "93aa`, "unknown key"},
		{`sha256    = "93aa`, `version = "1.0.0" # "`, "already defined"},
	} {
		before, _, ok := strings.Cut(string(data), test.old)
		if !ok {
			t.Errorf("the file has no %q to spoil", test.old)
			continue
		}
		want := "dir/" + good + ":" + strconv.Itoa(1+strings.Count(before, "\n")) + ":"
		if test.old == `sha256    = "93aa` && test.new == `version = "1.0.0" # "` {
			want = "dir/" + good + ":"
		}
		_, err := Parse("dir/"+good, []byte(strings.Replace(string(data), test.old, test.new, 1)))
		if err == nil || !strings.HasPrefix(err.Error(), want) || !strings.Contains(err.Error(), test.says) {
			t.Errorf("%q for %q: got %v, want %s … %s", test.new, test.old, err, want, test.says)
		}
	}
}

func openStore(t testing.TB) *cas.Store {
	t.Helper()
	store, err := cas.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return store
}

func TestFetch(t *testing.T) {
	store := openStore(t)
	p, err := Load("agoric-upgrade-16")
	if err != nil {
		t.Fatal(err)
	}
	if err := Fetch(t.Context(), store, p); err != nil {
		t.Fatal(err)
	}
	for _, b := range []Bundle{p.Lockdown, p.Supervisor} {
		content, err := store.ReadAll(b.SHA256)
		if err != nil || !bytes.HasPrefix(content, []byte(`{"moduleFormat":"nestedEvaluate"`)) {
			t.Errorf("%s: %.40q, %v", b.File, content, err)
		}
	}
	// Add finds out by itself what is on record.
	dir := t.TempDir()
	file, err := Add(t.Context(), store, dir, "agoric-upgrade-16", "0.14.1-u16.0", "0.10.3-u16.1")
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile("agoric-upgrade-16.toml")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("Add wrote (+):\n%s", diff)
	}
	if _, err := Add(t.Context(), store, dir, "agoric-upgrade-16", "0.14.1-u16.0", "0.10.3-u16.1"); !errors.Is(err, os.ErrExist) {
		t.Errorf("adding what is there: %v", err)
	}

	t.Setenv("PATH", "") // no client to fetch with
	if err := Fetch(t.Context(), store, p); err != nil {
		t.Errorf("with everything in the store: %v", err)
	}
	var unavailable *npm.UnavailableError
	if err := Fetch(t.Context(), openStore(t), p); !errors.As(err, &unavailable) || !strings.Contains(err.Error(), "agoric-upgrade-16") {
		t.Errorf("without npm: %v", err)
	}
}

func TestFetchOtherBundle(t *testing.T) {
	const content = `{"moduleFormat":"nestedEvaluate"}`
	sum := cas.OfBytes([]byte(content))
	other := cas.OfBytes([]byte("other"))
	for name, test := range map[string]struct {
		files map[string]string
		want  cas.Digest
		err   string
	}{
		"right":                {map[string]string{"b": content, "b.sha256": sum.Hash + "\n"}, sum, ""},
		"another bundle":       {map[string]string{"b": "other", "b.sha256": sum.Hash}, sum, "expected " + sum.String() + ", found " + other.String()},
		"another sum":          {map[string]string{"b": content, "b.sha256": other.Hash}, sum, "b.sha256 of npm package demo@1.0.0"},
		"another sum recorded": {map[string]string{"b": content, "b.sha256": sum.Hash}, other, "expected " + other.String()},
		"no bundle":            {map[string]string{"b.sha256": sum.Hash}, sum, "no file b"},
		"no sum":               {map[string]string{"b": content}, sum, "no file b.sha256"},
	} {
		t.Run(name, func(t *testing.T) {
			var tgz bytes.Buffer
			zw := gzip.NewWriter(&tgz)
			tw := tar.NewWriter(zw)
			for name, content := range test.files {
				tw.WriteHeader(&tar.Header{Name: "package/" + name, Mode: 0o644, Size: int64(len(content))})
				tw.Write([]byte(content))
			}
			if err := errors.Join(tw.Close(), zw.Close()); err != nil {
				t.Fatal(err)
			}
			store := openStore(t)
			d, err := store.PutBytes(t.Context(), tgz.Bytes()) // as if it had been fetched before
			if err != nil {
				t.Fatal(err)
			}
			b := Bundle{Package: npm.Package{Name: "demo", Version: "1.0.0", Integrity: "sha512-" + strings.Repeat("A", 86) + "==", Tarball: d}, File: "b", SHA256: test.want}
			err = Fetch(t.Context(), store, &Pair{"demo", b, b})
			if test.err == "" {
				if err != nil || !store.Has(sum) {
					t.Error(err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), test.err) {
				t.Errorf("got %v, want %q", err, test.err)
			}
			if store.Has(test.want) || store.Has(sum) || store.Has(other) {
				t.Error("the store has a bundle")
			}
		})
	}
}

func TestAddFails(t *testing.T) {
	dir := t.TempDir()
	if _, err := Add(t.Context(), openStore(t), dir, "new", "0.0.0-no", "0.10.3-u16.1"); err == nil {
		t.Error("a version that does not exist was added")
	}
	if found, _ := filepath.Glob(filepath.Join(dir, "*")); len(found) != 0 {
		t.Errorf("it left %v", found)
	}
}

// A build with nothing to do asks this of the store first.
func BenchmarkFetchNothing(b *testing.B) {
	store := openStore(b)
	p, err := Load("agoric-upgrade-16")
	if err != nil {
		b.Fatal(err)
	}
	if err := Fetch(b.Context(), store, p); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if err := Fetch(b.Context(), store, p); err != nil {
			b.Fatal(err)
		}
	}
}
