package repository_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/enginery/enginery/repository"
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
		w.Process.Kill()
		w.Wait()
		whole(t, dir)
	}
	n := whole(t, dir)
	if n < 2 {
		t.Errorf("the writers were killed before they wrote: %d tags", n)
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
