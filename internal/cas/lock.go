package cas

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// Lock waits until no other process or goroutine holds the lock of d, takes it, and returns the function that gives it back. It
// ends with its holder, however that ends. waiting, which may be nil, is called once if there is something to wait for.
func (s *Store) Lock(ctx context.Context, d Digest, waiting func()) (unlock func(), err error) {
	dir := filepath.Join(s.dir, "locks")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("locking %s: %w", d, err)
	}
	path := filepath.Join(dir, d.Hash)
	for {
		f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|unix.O_CLOEXEC, 0o644)
		if err != nil {
			return nil, fmt.Errorf("locking %s: %w", d, err)
		}
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if fi, serr := os.Stat(path); err == nil && serr == nil && sameFile(f, fi) {
			return func() {
				os.Remove(path)
				f.Close()
			}, nil
		}
		f.Close()
		if err != nil {
			if err != unix.EWOULDBLOCK {
				return nil, fmt.Errorf("locking %s: %w", d, err)
			}
			if waiting != nil {
				waiting()
				waiting = nil
			}
			select {
			case <-ctx.Done():
				return nil, ctx.Err()
			case <-time.After(100 * time.Millisecond):
			}
		}
	}
}
