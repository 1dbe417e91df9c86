package toolchain

import (
	"archive/tar"
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/enginery/enginery/internal/cas"
)

type item struct {
	tar.Header
	content string
}

func file(name, content string) item {
	return item{tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644}, content}
}

func link(kind byte, name, target string) item {
	return item{tar.Header{Name: name, Typeflag: kind, Linkname: target, Mode: 0o777}, ""}
}

func archive(t *testing.T, items ...item) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, i := range items {
		h := i.Header
		h.Size = int64(len(i.content))
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, i.content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestUnpackRefuses(t *testing.T) {
	script := file("./usr/bin/x", "a")
	script.Mode = 0o755
	for name, test := range map[string]struct {
		archives [][]item
		want     string
	}{
		"path traversal":        {[][]item{{file("./../x", "")}}, "./../x: entry \"./../x\" leads out of the root directory"},
		"hidden path traversal": {[][]item{{file("./a/../../x", "")}}, "leads out of the root directory"},
		"absolute path":         {[][]item{{file("/etc/x", "")}}, "leads out of the root directory"},
		"device":                {[][]item{{link(tar.TypeChar, "./dev/null", "")}}, "./dev/null: it is neither a file, a directory nor a link"},
		"named pipe":            {[][]item{{link(tar.TypeFifo, "./p", "")}}, "neither a file, a directory nor a link"},
		"other content":         {[][]item{{file("./etc/x", "a")}, {file("./etc/x", "b")}}, "./etc/x: its content differs from what package 0 has there"},
		"other content, merged": {[][]item{{file("./bin/x", "a")}, {file("./usr/bin/x", "b")}}, "./usr/bin/x: its content differs"},
		"other mode":            {[][]item{{file("./bin/x", "a")}, {script}}, "it differs from what package 0 has there"},
		"other target":          {[][]item{{link(tar.TypeSymlink, "./l", "a")}, {link(tar.TypeSymlink, "./l", "b")}}, "it differs from what package 0 has there"},
		"file and link":         {[][]item{{file("./l", "a")}, {link(tar.TypeSymlink, "./l", "a")}}, "it differs from what package 0 has there"},
		"through a link":        {[][]item{{link(tar.TypeSymlink, "./l", "/etc")}, {file("./l/passwd", "")}}, "l is a directory here, and not in package 0"},
		"link in place of dir":  {[][]item{{file("./l/passwd", "")}, {link(tar.TypeSymlink, "./l", "/etc")}}, "it differs from what package 0 has there"},
		"link to what is not":   {[][]item{{link(tar.TypeLink, "./h", "./x")}}, "the file ./x that it is a hard link to is not among the entries before it"},
		"link to what is left":  {[][]item{{file("./usr/share/man/x", ""), link(tar.TypeLink, "./h", "./usr/share/man/x")}}, "is a hard link to is dropped"},
		"link out":              {[][]item{{link(tar.TypeLink, "./h", "../x")}}, "leads out of the root directory"},
	} {
		t.Run(name, func(t *testing.T) {
			spec := &Spec{Links: map[string]string{"bin": "usr/bin"}, Drop: []string{"usr/share/*"}}
			dir := filepath.Join(t.TempDir(), "root")
			if err := os.Mkdir(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			tree := newTree(dir)
			var err error
			for i, items := range test.archives {
				if err != nil {
					t.Fatal(err)
				}
				err = tree.add(t.Context(), "package "+string(rune('0'+i)), bytes.NewReader(archive(t, items...)), spec.place)
			}
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %v, want …%s…", err, test.want)
			}
			if outside, _ := filepath.Glob(filepath.Join(filepath.Dir(dir), "*")); len(outside) != 1 {
				t.Errorf("something was written outside: %v", outside)
			}
		})
	}
}

func TestUnpackNormalises(t *testing.T) {
	spec := &Spec{
		Name:        "x",
		Links:       map[string]string{"bin": "usr/bin"},
		Drop:        []string{"usr/share/*", "usr/lib/*/lto1"},
		Keep:        []string{"usr/share/doc/*/copyright"},
		Directories: []string{"proc"},
	}
	setuid := file("./bin/su", "su")
	setuid.Mode, setuid.Uid = 0o4751, 7
	secret := file("./etc/shadow", "s")
	secret.Mode = 0o600
	a := archive(t, link(tar.TypeDir, "./", ""), link(tar.TypeDir, "./var/empty/", ""), setuid, secret,
		link(tar.TypeSymlink, "./bin/sh", "su"), link(tar.TypeLink, "./usr/bin/su2", "./bin/su"),
		file("./usr/lib/gcc/lto1", "big"), file("./usr/share/man/man1/su.1", "man"), file("./usr/share/doc/su/copyright", "free"))
	b := archive(t, file("./etc/shadow", "s"), file("./usr/bin/other", "o"))

	var digests []cas.Digest
	for range 8 { // in whatever order the two come
		dir := t.TempDir()
		tree := newTree(dir)
		var wg sync.WaitGroup
		for _, in := range [][]byte{a, b} {
			wg.Go(func() {
				if err := tree.add(t.Context(), "p", bytes.NewReader(in), spec.place); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if err := tree.furnish(spec); err != nil {
			t.Fatal(err)
		}
		if err := tree.finish(); err != nil {
			t.Fatal(err)
		}
		got := list(t, dir)
		want := strings.TrimSpace(`
bin -> usr/bin
etc/ 755
etc/shadow 644 "s"
proc/ 755
usr/ 755
usr/bin/ 755
usr/bin/other 644 "o"
usr/bin/sh -> su
usr/bin/su 755 "su"
usr/bin/su2 755 "su"
usr/share/ 755
usr/share/doc/ 755
usr/share/doc/su/ 755
usr/share/doc/su/copyright 644 "free"`)
		if got != want {
			t.Fatalf("unpacked:\n%s\nwant:\n%s", got, want)
		}
		d, err := cas.HashTree(dir)
		if err != nil {
			t.Fatal(err)
		}
		digests = append(digests, d)
	}
	for _, d := range digests {
		if d != digests[0] {
			t.Errorf("tree digests differ: %v", digests)
		}
	}
}
