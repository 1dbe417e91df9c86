// Package flock takes locks on files that several processes share.
package flock

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Kinds of locks.
const (
	Shared    = unix.LOCK_SH
	Exclusive = unix.LOCK_EX
)

// Lock takes the lock of a file, which is made if it is missing, and returns the function that gives it back. It ends with its holder,
// however that ends.
func Lock(ctx context.Context, path string, how int) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDONLY, 0o644)
	if err != nil {
		return nil, err
	}
	if err := Wait(ctx, f, how); err != nil {
		f.Close()
		return nil, err
	}
	return func() { Close(f) }, nil
}

// Close gives back the lock of a file and closes it. Closing alone gives it back only when no process that is just being started has the
// descriptor any more.
func Close(f *os.File) error {
	return errors.Join(unix.Flock(int(f.Fd()), unix.LOCK_UN), f.Close())
}

// Wait takes the lock of an open file or folder, which ends when that is closed.
func Wait(ctx context.Context, f *os.File, how int) error {
	for pause := time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		err := Try(f, how)
		if err == nil {
			return nil
		}
		if err != unix.EWOULDBLOCK {
			return fmt.Errorf("locking %s: %w", f.Name(), err)
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(pause):
		}
	}
}

// Try takes the lock of an open file or folder, which ends when that is closed. The error is unix.EWOULDBLOCK if others have it.
func Try(f *os.File, how int) error {
	for {
		if err := unix.Flock(int(f.Fd()), how|unix.LOCK_NB); err != unix.EINTR {
			return err
		}
	}
}
