package releaseindex

import (
	"archive/zip"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/enginery/enginery/engines"
	"github.com/enginery/enginery/internal/flock"
	"github.com/enginery/enginery/internal/progress"
	"github.com/enginery/enginery/repository"
	"github.com/google/renameio/v2"
	"golang.org/x/sync/errgroup"
)

// Store is what a node has accepted as the release index: the file release-index.zip in the state of its home, with the channels of it, for the
// launcher, in channels.toml beside it. Several processes may share it.
type Store struct {
	home *engines.Store
	dir  string
	root []byte
}

// Open returns the store of a home. root is the root of trust, a TUF root.json, by which everything in it must be signed. Nothing is made or
// read yet.
func Open(home *engines.Store, root []byte) *Store {
	return &Store{home, filepath.Join(home.Home(), "state"), root}
}

const (
	fileName = "release-index.zip"
	lockName = "release-index.lock"
)

// Accepted reports whether a node has accepted an index, by whatever root of trust.
func Accepted(home *engines.Store) (bool, error) {
	_, err := os.Stat(filepath.Join(home.Home(), "state", fileName))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// SetShipped makes data, the channels.toml that came with a program, the channels of a node that has accepted no index and whose operator names none.
func SetShipped(ctx context.Context, home *engines.Store, data []byte) error {
	dir := filepath.Join(home.Home(), "state")
	if now, err := os.ReadFile(filepath.Join(dir, ChannelsName)); err == nil && bytes.Equal(now, data) {
		return nil
	}
	if accepted, err := Accepted(home); accepted || err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	unlock, err := flock.Lock(ctx, filepath.Join(dir, lockName), flock.Exclusive)
	if err != nil {
		return err
	}
	defer unlock()
	if accepted, err := Accepted(home); accepted || err != nil { // meanwhile
		return err
	}
	return home.SetChannels(data)
}

// Load returns the index that was accepted last, verified from the root of trust on. That it has expired is for the caller to ask. The error is
// ErrNone if nothing was accepted yet.
func (s *Store) Load() (*Index, error) {
	path := filepath.Join(s.dir, fileName)
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w was accepted yet", ErrNone)
	} else if err != nil {
		return nil, err
	}
	f, err := unzip(data)
	if err != nil {
		return nil, fmt.Errorf("%s is damaged: %w; %s", path, err, again)
	}
	i, err := check(s.root, nil, f, time.Time{})
	if err != nil {
		return nil, fmt.Errorf("%s does not follow from the root of trust in the policy: %w; %s", path, err, again)
	}
	return i, nil
}

const again = "it is replaced when a release index is accepted again: enginery prefetch"

func unzip(data []byte) (files, error) {
	r, err := zip.NewReader(bytes.NewReader(data), int64(len(data)))
	if err != nil {
		return nil, err
	}
	f := make(files)
	for _, entry := range r.File {
		c, err := entry.Open()
		if err != nil {
			return nil, err
		}
		if f[entry.Name], err = io.ReadAll(io.LimitReader(c, maxFile)); err != nil {
			return nil, err
		}
		if err := c.Close(); err != nil {
			return nil, err
		}
	}
	return f, nil
}

// Refresh asks all repositories for their index, and accepts the newest that is good at a time. One good one is enough; why others are not is
// told as progress. It returns what is in force then. With an error that is what was accepted before, or nil: nothing has changed.
//
// The error is, or has for each repository, an ErrRollback, ErrExpired, ErrSignature, ErrMixed, ErrIncomplete, ErrForked, ErrMalformed or
// ErrNone, or what the repository failed with.
func (s *Store) Refresh(ctx context.Context, from []repository.Repository, now time.Time) (*Index, error) {
	if err := os.MkdirAll(s.dir, 0o755); err != nil {
		return nil, err
	}
	before, err := s.Load()
	if len(from) == 0 {
		return before, errors.Join(err, errors.New("there is no source to take a release index from; name one in the policy, or with --from"))
	}
	var known files
	if before != nil {
		known = before.files
	}
	offered := make([]files, len(from))
	failures := make([]error, len(from))
	var g errgroup.Group
	for n, repo := range from {
		g.Go(func() error {
			offered[n], failures[n] = pull(ctx, repo, known)
			return nil
		})
	}
	g.Wait()
	if ctx.Err() != nil {
		return before, ctx.Err()
	}

	unlock, err := flock.Lock(ctx, filepath.Join(s.dir, lockName), flock.Exclusive)
	if err != nil {
		return before, err
	}
	defer unlock()
	known = nil
	if before, err = s.Load(); err == nil { // it may be another by now
		known = before.files
	} else if !errors.Is(err, ErrNone) {
		progress.Logf(ctx, "%v", err)
	}
	var newest *Index
	for n, f := range offered {
		if failures[n] != nil {
			continue
		}
		i, err := check(s.root, known, f, now)
		if err != nil {
			failures[n] = err
		} else if newest == nil || i.Version > newest.Version {
			newest = i
		}
	}
	for n, repo := range from {
		if failures[n] == nil {
			continue
		}
		failures[n] = fmt.Errorf("release index of %s: %w", repo.Name(), failures[n])
		if newest != nil {
			progress.Logf(ctx, "%v", failures[n])
		}
	}
	if newest == nil {
		return before, errors.Join(failures...)
	}
	if err := s.write(newest, before); err != nil {
		return before, fmt.Errorf("keeping the release index: %w", err)
	}
	return newest, nil
}

// write makes an index that of the node. If that is broken off after the first file, the next Refresh writes the second.
func (s *Store) write(i, before *Index) error {
	left, err := filepath.Glob(filepath.Join(s.dir, "."+fileName+"*")) // by those who were killed; others wait for the lock
	if err != nil {
		return err
	}
	for _, name := range left {
		if err := os.Remove(name); err != nil {
			return err
		}
	}
	if before == nil || !bytes.Equal(i.zip, before.zip) {
		if err := renameio.WriteFile(filepath.Join(s.dir, fileName), i.zip, 0o644); err != nil {
			return err
		}
	}
	path, channels := filepath.Join(s.dir, ChannelsName), i.files[targetsDir+ChannelsName]
	if now, err := os.ReadFile(path); err == nil && bytes.Equal(now, channels) {
		return nil
	}
	return s.home.SetChannels(channels)
}
