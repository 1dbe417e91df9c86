package pins

import (
	"os"
	"path"
	"reflect"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestShipped(t *testing.T) {
	seen := make(map[string]Component) // by commit
	pairs := make(map[string]bool)
	for _, name := range Names() {
		p, err := Load(name)
		if err != nil {
			t.Fatal(err)
		}
		if want := p.Moddable.Commit[:8] + "-" + p.XsnapNative.Commit[:8]; name != want {
			t.Errorf("%s should be named %s", name, want)
		}
		pairs[name] = true
		for _, c := range []Component{p.Moddable, p.XsnapNative} {
			if first, ok := seen[c.Commit]; ok && !reflect.DeepEqual(first, c) {
				t.Errorf("%s: %s %s is described otherwise in another pin", name, c.Name, c.Commit)
			}
			seen[c.Commit] = c
			unreached := strings.HasPrefix(c.Commit, "547c16c3") || strings.HasPrefix(c.Commit, "3e3b4e8c")
			if c.Recorded == unreached {
				t.Errorf("%s: %s: recorded is %v", name, c.Name, c.Recorded)
			}
		}
		data, err := os.ReadFile(name + ".toml")
		if err != nil {
			t.Fatal(err)
		}
		note, err := noteOf(name + ".toml")
		if err != nil {
			t.Fatal(err)
		}
		if got := string(format(p, note)); got != string(data) {
			t.Errorf("%s.toml is not in the form that Add writes (+):\n%s", name, cmp.Diff(string(data), got))
		}
	}
	for _, want := range []string{"547c16c3-0b3869eb", "3e3b4e8c-0b3869eb", "f6c5951f-2d8ccb76", "f6c5951f-eef9b67d", "f6c5951f-105bc686"} {
		if !pairs[want] {
			t.Errorf("the pin %s, which a chain upgrade shipped, is missing", want)
		}
	}
}

func TestLoadUnknown(t *testing.T) {
	for _, name := range []string{"none", "../pins", ""} {
		if _, err := Load(name); err == nil || !strings.Contains(err.Error(), "pin ") {
			t.Errorf("Load(%q) = %v", name, err)
		}
	}
}

func TestParse(t *testing.T) {
	const good = "f6c5951f-105bc686.toml"
	data, err := os.ReadFile(good)
	if err != nil {
		t.Fatal(err)
	}
	line := func(what string) string { // the number of the first line that has it
		for i, l := range strings.Split(string(data), "\n") {
			if strings.Contains(l, what) {
				return good + ":" + strconv.Itoa(i+1) + ":"
			}
		}
		t.Fatalf("no line has %q", what)
		return ""
	}
	for _, test := range []struct{ old, new, want, says string }{
		{`name = "f6c5951f-105bc686"`, `name = "other"`, line("name ="), "other"},
		{`name = "f6c5951f-105bc686"`, "", good + ":", "name"},
		{`commit  = "f6c5951f`, `commit  = "F6c5951f`, line("commit"), "40 hexadecimal digits"},
		{`commit  = "f6c5951f`, `comit  = "f6c5951f`, line("commit"), "unknown key"},
		{`commit  = "f6c5951f`, `commit  = "f6c5951`, line("commit"), "40 hexadecimal digits"},
		{`license = "LGPL-3.0-or-later AND`, `license = "LGPL-3.0-or-later, AND`, line("license"), "SPDX"},
		{`tree    = "7f4e`, `tree    = "zz4e`, line("tree"), "digest"},
		{`tree    = "7f4e`, `tree    = "unrecorded" #`, "", ""},
		{`tree    = "7f4e`, `tree    = "" #`, line("tree"), "digest"},
		{`tree    = "7f4e`, `tree    = "unrecorded"` + "\n" + `tree = "`, line("paths"), "already defined"},
		{`"xs/includes"`, `"../includes"`, line("paths"), "inside the repository"},
		{`"xs/includes"`, `"xs/[includes"`, line("paths"), "inside the repository"},
		{`paths   = ["modules/data", "xs/includes", "xs/makefiles", "xs/platforms/*.h", "xs/sources"]`, `paths = []`, line("paths"), "missing"},
		{`package   = "@agoric/xsnap"`, `package   = "Agoric xsnap"`, line("package"), "npm package"},
		{`version   = "0.15.0"`, `version   = "0.15"`, line("version"), "exact version"},
		{`path      = "moddable"`, `path      = "/moddable"`, line("path      ="), "inside the package"},
		{`integrity = "sha512-ZBm4`, `integrity = "sha512-ZBm`, line("integrity"), "base64"},
		{`tarball   = "ba82`, `tarball   = "ba8`, line("tarball"), ""},
		{`path      = "moddable"`, `git = "https://x.example/a/b"`, line("path      ="), "not both"},
		{`git = "https://github.com/agoric-labs/moddable"`, `git = "--upload-pack=evil"`, line("git ="), "URL"},
		{`git = "https://github.com/agoric-labs/moddable"`, `git = "https://github.com/"`, line("git ="), "OWNER/NAME"},
		{`git = "https://github.com/agoric-labs/moddable"`, `git = 7`, line("git ="), ""},
		{`version   = "0.14.3-u16.1"
path      = "moddable"
integrity = "sha512-aPwsEfRVv56Juahg67icLosviQtLgyG6xs+EAr4MMtDM/HejBYK35IwZNJgVJS58Pu9NPamfIC/qYneFHrl9IA=="
tarball   = "77401c8628e7fca57478692cd168fc91abae601fd6f95f07705b76a32b738446/707386"`, `version   = "0.15.0"
path      = "moddable"
integrity = "sha512-ZBm4DZxbtfacxMHVVdJjZi0Y8zOxN77vpu1WwI5RWfPkaRh0aHkz/dVdTGKXalDNzWfz183lljKxlxl3/h0n+A=="
tarball   = "ba82e67dc4bf31a4f0084cd7eb251d0a9c9a671c914494d1f6c2fe61272ceceb/709809"`, good + ":", "listed twice"},
		{"[xsnap-native]", "[xsnap_native]", good + ":", "unknown key"},
	} {
		if !strings.Contains(string(data), test.old) {
			t.Errorf("the file has no %q to spoil", test.old)
			continue
		}
		_, err := Parse(path.Join("some", "dir", good), []byte(strings.Replace(string(data), test.old, test.new, 1)))
		if test.want == "" {
			if err != nil {
				t.Errorf("%q for %q: %v", test.new, test.old, err)
			}
			continue
		}
		if err == nil || !strings.HasPrefix(err.Error(), "some/dir/"+test.want) || !strings.Contains(err.Error(), test.says) {
			t.Errorf("%q for %q: got %v, want %s … %s", test.new, test.old, err, test.want, test.says)
		}
	}
}

func TestHas(t *testing.T) {
	c := Component{Paths: []string{"xs/sources", "xs/platforms/*.h", "one.txt"}}
	for name, want := range map[string]bool{
		"xs/sources/xsAll.c": true, "xs/sources/a/b.c": true, "xs/sources2/a.c": false, "xs/sources": true,
		"xs/platforms/lin_xs.h": true, "xs/platforms/gecko/xs.h": false, "xs/platforms/a.c": false,
		"one.txt": true, "two.txt": false, "a/one.txt": false,
		"xs/sources/.gitignore": false, "xs/sources/.DS_Store": false, "xs/sources/x.orig": false,
		"xs/sources/node_modules/a.c": false, "xs/sources/.x.swp": false, "xs/sources/orig.c": true,
	} {
		if got := c.has(name); got != want {
			t.Errorf("has(%q) = %v", name, got)
		}
	}
}

func TestRepository(t *testing.T) {
	for url, want := range map[string]string{
		"https://github.com/agoric-labs/xsnap-pub":      "agoric-labs/xsnap-pub",
		"https://github.com/agoric-labs/xsnap-pub.git/": "agoric-labs/xsnap-pub",
		"file:///srv/git/a/b.c":                         "a/b.c",
		"https://github.com/../x":                       "",
		"https://github.com/..":                         "",
		"https://github.com":                            "",
	} {
		if got := (Source{Git: url}).repository(); got != want {
			t.Errorf("%s: got %q, want %q", url, got, want)
		}
	}
}
