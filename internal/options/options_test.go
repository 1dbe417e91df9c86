package options

import (
	"os"
	"slices"
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	for _, v := range os.Environ() { // the tests' own run has options in its environment
		if name, _, _ := strings.Cut(v, "="); strings.HasPrefix(name, "ENGINERY_") {
			t.Setenv(name, "")
		}
	}
	t.Setenv("ENGINERY_STORE", "/s")
	t.Setenv("ENGINERY_SOURCE_MIRROR", "/etc")
	optional := []string{"check:golden"}
	known := func(word string) bool { return strings.Contains(word, ":") || word == "test" }
	for _, test := range []struct {
		args string
		want Options
		rest string
		err  string
	}{
		{args: "build:version a", want: Options{Layout: "out/oci", Store: "/s", SourceMirror: "/etc"}, rest: "build:version a"},
		{args: "build:version --jobs=3 a --source-mirror /usr --json", want: Options{Jobs: 3, JSON: true, Layout: "out/oci", Store: "/s", SourceMirror: "/usr"}, rest: "build:version a"},
		{args: "check:golden", want: Options{Layout: "out/oci", Store: "/s", SourceMirror: "/etc"}, rest: "check:golden"},
		{args: "check:golden a test", want: Options{Layout: "out/oci", Store: "/s", SourceMirror: "/etc"}, rest: "check:golden -id=a test"},
		{args: "check:golden test", want: Options{Layout: "out/oci", Store: "/s", SourceMirror: "/etc"}, rest: "check:golden test"},
		{args: "check:golden --store=/x --layout l --toolchain-from=r", want: Options{Layout: "l", Store: "/x", SourceMirror: "/etc", ToolchainFrom: "r"}, rest: "check:golden"},
		{args: "build:all --jobs=0", err: "--jobs=0: expected a number of CPUs, 1 or more"},
		{args: "build:all --jobs", err: "--jobs needs a value"},
		{args: "build:all --store=", err: "--store needs a value"},
		{args: "build:all --mirror=/m", err: "unknown option --mirror; the options are --builder, --jobs, --json, --key, --layout, --log, --source-mirror, --store, --to, --toolchain-from"},
		{args: "build:all --source-mirror=/nonexistent", err: "the source mirror (--source-mirror, ENGINERY_SOURCE_MIRROR) is not a folder: open /nonexistent: no such file or directory"},
		{args: "build:all --json=yes", err: "--json takes no value"},
		{args: "release:sign a --log --key=k", want: Options{Key: "k", Log: true, Layout: "out/oci", Store: "/s", SourceMirror: "/etc"}, rest: "release:sign a"},
	} {
		got, rest, err := Parse(strings.Fields(test.args), optional, known)
		if err != nil || test.err != "" {
			if err == nil || err.Error() != test.err {
				t.Errorf("%s: error %v, want %q", test.args, err, test.err)
			}
			continue
		}
		if got != test.want || !slices.Equal(rest, strings.Fields(test.rest)) {
			t.Errorf("%s: got %+v %q", test.args, got, rest)
		}
	}
}

func TestEnviron(t *testing.T) {
	t.Chdir(t.TempDir())
	wd, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir("images", 0o755); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		options Options
		want    []string
	}{
		{Options{Layout: "out/oci", Store: "/store"}, []string{"ENGINERY_LAYOUT=" + wd + "/out/oci", "ENGINERY_STORE=/store"}},
		{Options{Jobs: 3, ToolchainFrom: "images", SourceMirror: "mirror"},
			[]string{"ENGINERY_JOBS=3", "ENGINERY_SOURCE_MIRROR=" + wd + "/mirror", "ENGINERY_TOOLCHAIN_FROM=" + wd + "/images"}},
		{Options{ToolchainFrom: "registry.example/toolchains"}, []string{"ENGINERY_TOOLCHAIN_FROM=registry.example/toolchains"}},
	} {
		if got, err := test.options.Environ(); err != nil || !slices.Equal(got, test.want) {
			t.Errorf("%+v: %q, %v, want %q", test.options, got, err, test.want)
		}
	}
}
