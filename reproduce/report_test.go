package reproduce

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"
)

// sample returns a report with everything that a report can have.
func sample() *Report {
	digest := func(c string) string { return "sha256:" + strings.Repeat(c, 64) }
	row := func(version, platform string, digests ...Compared) Row {
		r := Row{Version: version, Platform: platform, Recorded: "same", Digests: digests}
		r.Identical = !r.differs()
		return r
	}
	same := func(name string) Compared { return Compared{Name: name, First: digest("a"), Second: digest("a")} }
	return &Report{
		Schema: Schema,
		First: Environment{Path: "/home/someone/.cache/enginery", FileSystem: "ext4", FileOrder: "b h f c g e a d", User: 1000, Umask: "022", Host: "here",
			Network: "lo eth0", Locale: "C.UTF-8", TimeZone: "the system's", Home: "/home/someone", Jobs: 8, Variables: "none", Kernel: "6.1.0"},
		Second: Environment{Path: "/dev/shm/enginery-elsewhere-1/a büild elsewhere, где-то/store", FileSystem: "tmpfs", FileOrder: "h g f e d c b a", User: 4242, Umask: "077", Host: "elsewhere",
			Network: "none", Locale: "tr_TR.UTF-8", TimeZone: "Pacific/Kiritimati", Home: "/dev/shm/enginery-elsewhere-1/a büild elsewhere, где-то/home", Jobs: 1,
			Variables: "CC=false CFLAGS=-O1 -funsigned-char COMPILER_PATH=/nonexistent CPATH=/nonexistent", Kernel: "6.1.0"},
		Rows: []Row{
			row("agoric-upgrade-16", "linux/amd64", same("xsnap-worker"), same("xsnap-worker-debug"), same("NOTICES"), same("config"), same("manifest"), same("index"), same("https://slsa.dev/provenance/v1")),
			row("agoric-upgrade-16", "linux/arm64", same("xsnap-worker-debug"), same("index")),
			row("agoric-upgrade-22", "linux/amd64",
				Compared{Name: "xsnap-worker", First: digest("b"), Second: digest("c"), Diffoscope: "--- first\n+++ <second>\n@@ -1 +1 @@\n",
					Causes: []Cause{{Section: ".rodata", Symbol: "planted", Offset: 16, Bytes: 2, First: `"10:11:12"`, Second: `"10:11:47 <script>alert(1)</script>"`}}},
				same("xsnap-worker-debug"),
				Compared{Name: "extra", First: digest("d"), Second: ""},
				Compared{Name: "manifest", First: digest("e"), Second: digest("f"), Consequence: true}),
		},
	}
}

func TestReportForMachines(t *testing.T) {
	want := sample()
	var b bytes.Buffer
	if err := want.WriteJSON(&b); err != nil {
		t.Fatal(err)
	}
	got := new(Report)
	if err := json.Unmarshal(b.Bytes(), got); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("the report came back as %+v, expected %+v", got, want)
	}
	var outcome struct{ Identical *bool }
	if err := json.Unmarshal(b.Bytes(), &outcome); err != nil || outcome.Identical == nil || *outcome.Identical {
		t.Errorf("the JSON of a report with differences says identical: %v, %v", outcome.Identical, err)
	}
}

func TestIdentical(t *testing.T) {
	r := sample()
	if r.Identical() {
		t.Error("a report with a difference is identical")
	}
	r.Rows = r.Rows[:2]
	if !r.Identical() {
		t.Error("a report without a difference is not identical")
	}
	r.Rows = nil
	if r.Identical() {
		t.Error("a report on nothing is identical")
	}
}

// TestReportForPeople checks that the page has everything in it, needs nothing else, and runs nothing.
func TestReportForPeople(t *testing.T) {
	r := sample()
	dir := filepath.Join(t.TempDir(), "new", "out")
	name, err := r.write(dir)
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	page := string(b)
	for _, row := range r.Rows {
		anchor := row.Version + "-" + strings.ReplaceAll(row.Platform, "/", "-")
		for _, want := range []string{`<a href="#` + anchor + `">` + row.Version + "</a></td><td>" + row.Platform, `id="` + anchor + `"`} {
			if strings.Count(page, want) != 1 {
				t.Errorf("the page has %s %d times, expected once", want, strings.Count(page, want))
			}
		}
		for _, d := range row.Digests {
			if !strings.Contains(page, d.First) || !strings.Contains(page, d.Second) {
				t.Errorf("the page lacks a digest of %s %s %s", row.Version, row.Platform, d.Name)
			}
		}
	}
	for _, want := range []string{"Not identical", "Pacific/Kiritimati", "где-то", ".rodata", "symbol planted", "&lt;second&gt;", "not built", "because something that it names does"} {
		if !strings.Contains(page, want) {
			t.Errorf("the page lacks %q", want)
		}
	}
	foreign := regexp.MustCompile(`(?i)<script|<link|<img|<iframe|<object|@import|url\(|\b(src|srcset|on[a-z]+)\s*=|href="[^#]`)
	if found := foreign.FindString(page); found != "" {
		t.Errorf("the page has %q", found)
	}
	files, err := os.ReadDir(dir)
	if err != nil || len(files) != 2 || files[0].Name() != "reproducible.html" || files[1].Name() != "reproducible.json" {
		t.Errorf("the folder has %v, %v; expected the page and the JSON", files, err)
	}
}
