package flock

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// A lock is given back even if another descriptor of it is still open, as between the fork and the exec of a process that is being started.
func TestClose(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	open := func() *os.File {
		f, err := os.Create(path)
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	first, second := open(), open()
	defer second.Close()
	if err := Try(first, Exclusive); err != nil {
		t.Fatal(err)
	}
	other, err := unix.Dup(int(first.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(other)
	if err := Try(second, Exclusive); err != unix.EWOULDBLOCK {
		t.Fatalf("a lock that is held: %v", err)
	}
	if err := Close(first); err != nil {
		t.Fatal(err)
	}
	if err := Try(second, Exclusive); err != nil {
		t.Errorf("a lock that was given back: %v", err)
	}
}
