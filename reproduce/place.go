package reproduce

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/enginery/enginery/internal/cas"
	"golang.org/x/sys/unix"
)

// room is how much a place must have free: sources, toolchains and results of all versions take less than half of it.
const room = 2 << 30

// claimPrefix begins the names of all directories that claim makes.
const claimPrefix = "enginery-elsewhere-"

// otherPlace returns a directory to build in that programs can run in, on another file system than that of store if there
// is one. If reachable is set, every user must be able to get there.
func otherPlace(store string, reachable bool) (string, error) {
	candidates := []string{"/dev/shm", os.TempDir(), "/var/tmp"}
	here := fileSystem(store)
	slices.SortStableFunc(candidates, func(a, b string) int {
		switch same := fileSystem(a) == here; {
		case same == (fileSystem(b) == here):
			return 0
		case same:
			return 1
		}
		return -1
	})
	var unfit []error
	for _, dir := range candidates {
		err := fit(dir, reachable)
		if err == nil {
			return dir, nil
		}
		unfit = append(unfit, err)
	}
	return "", fmt.Errorf("there is no place for the second build; set TMPDIR to a directory that will do:\n%w", errors.Join(unfit...))
}

func fit(dir string, reachable bool) error {
	var sys unix.Statfs_t
	if err := unix.Statfs(dir, &sys); err != nil {
		return fmt.Errorf("%s: %w", dir, err)
	}
	if sys.Flags&unix.ST_NOEXEC != 0 {
		return fmt.Errorf("%s is mounted noexec", dir)
	}
	if free := sys.Bavail * uint64(sys.Bsize); free < room {
		return fmt.Errorf("%s has %d MiB free, expected at least %d", dir, free>>20, room>>20)
	}
	if err := unix.Access(dir, unix.W_OK|unix.X_OK); err != nil {
		return fmt.Errorf("%s is not writable: %w", dir, err)
	}
	for d := dir; reachable; d = filepath.Dir(d) {
		fi, err := os.Stat(d)
		if err != nil {
			return err
		}
		if fi.Mode()&0o001 == 0 {
			return fmt.Errorf("%s is closed to other users, and the second build runs as one", d)
		}
		if d == filepath.Dir(d) {
			break
		}
	}
	return nil
}

// claim makes a directory of this process's own in parent. It is gone after remove; if this process dies first, however it
// does, after the next claim.
func claim(parent string) (dir string, remove func(), err error) {
	if err := sweep(parent); err != nil {
		return "", nil, err
	}
	for {
		dir, err := os.MkdirTemp(parent, claimPrefix)
		if err != nil {
			return "", nil, err
		}
		// Another process's sweep may come between these two, and then the directory is gone.
		lock, err := lockDir(dir)
		if errors.Is(err, errNotOurs) || errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return "", nil, errors.Join(err, os.Remove(dir))
		}
		return dir, func() {
			removeAll(dir)
			lock.Close()
		}, nil
	}
}

// sweep removes what processes that are gone have claimed in parent.
func sweep(parent string) error {
	entries, err := os.ReadDir(parent)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), claimPrefix) {
			continue
		}
		dir := filepath.Join(parent, e.Name())
		lock, err := lockDir(dir)
		if err != nil {
			continue // gone, in use, or another user's
		}
		removeAll(dir)
		lock.Close()
	}
	return nil
}

var errNotOurs = errors.New("in use, or another user's")

// lockDir takes the lock of a claimed directory, which ends with this process.
func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(dir, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	var opened, named unix.Stat_t
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err == nil {
		err = errors.Join(unix.Fstat(int(f.Fd()), &opened), unix.Lstat(dir, &named))
	}
	if err != nil || opened.Ino != named.Ino || opened.Dev != named.Dev || int(opened.Uid) != os.Geteuid() {
		f.Close()
		return nil, errNotOurs
	}
	return f, nil
}

// removeAll removes a tree. What has been killed in it may be about to end, so it tries for a while.
func removeAll(dir string) {
	for range 20 {
		if cas.RemoveAll(dir) == nil {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// giveTo makes dir and everything below it a user's own. Nobody else may be able to get there meanwhile.
func giveTo(dir string, user int) error {
	return filepath.WalkDir(dir, func(name string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(name, user, user)
	})
}
