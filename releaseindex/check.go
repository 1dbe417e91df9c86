package releaseindex

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"
	"github.com/theupdateframework/go-tuf/v2/metadata/trustedmetadata"
)

// checker follows the client workflow of TUF (specification 1.0, section 5) from what was accepted before to what is offered now.
type checker struct {
	trusted       *trustedmetadata.TrustedMetadata
	before, files files
	kept          files // what of it is the index
}

// check verifies an index at a time, from a root of trust on. before are the files of the index that was accepted before, if there is one. At
// the zero time nothing has expired.
func check(root []byte, before, offered files, now time.Time) (index *Index, err error) {
	defer func() { // of a library, over garbage
		if r := recover(); r != nil {
			index, err = nil, fmt.Errorf("%w: %v", ErrMalformed, r)
		}
	}()
	trusted, err := trustedmetadata.New(root)
	if err != nil {
		return nil, fmt.Errorf("the root of trust of the release index is no root.json of TUF: %w", err)
	}
	trusted.RefTime = now
	c := &checker{trusted: trusted, before: before, files: offered, kept: make(files)}
	c.kept[metadataName(metadata.ROOT, trusted.Root.Signed.Version)] = root
	for _, step := range []func() error{c.roots, c.timestamp, c.snapshot, c.targets} {
		if err := step(); err != nil {
			return nil, err
		}
	}
	timestamp, targets := trusted.Timestamp.Signed, trusted.Targets[metadata.TARGETS].Signed
	index = &Index{Version: timestamp.Version, Content: targets.Version, Root: trusted.Root.Signed.Version, files: c.kept}
	for _, t := range []time.Time{trusted.Root.Signed.Expires, timestamp.Expires, trusted.Snapshot.Signed.Expires, targets.Expires} {
		if index.Expires.IsZero() || t.Before(index.Expires) {
			index.Expires = t.UTC()
		}
	}
	return index, index.open()
}

// roots goes on to the newest root: each is signed by the one before it, and by itself.
func (c *checker) roots() error {
	for {
		name := metadataName(metadata.ROOT, c.trusted.Root.Signed.Version+1)
		data, ok := c.before[name]
		if !ok {
			data, ok = c.files[name]
		}
		if !ok {
			return nil
		}
		if _, err := c.trusted.UpdateRoot(data); err != nil {
			return c.refuse(name, err)
		}
		c.kept[name] = data
	}
}

func (c *checker) timestamp() error {
	const name = metadata.TIMESTAMP + ".json"
	if data, ok := c.before[name]; ok {
		// What the newest root's keys have not signed is forgotten: so a new root ends what a stolen key has begun (section 5.3.11).
		_, _ = c.trusted.UpdateTimestamp(data)
	}
	data, ok := c.files[name]
	if !ok {
		return fmt.Errorf("%w: %s", ErrIncomplete, name)
	}
	before := c.trusted.Timestamp
	_, err := c.trusted.UpdateTimestamp(data)
	if before == nil || err == nil {
		c.kept[name] = data
		return c.refuse(name, err)
	}
	offered, perr := metadata.Timestamp().FromBytes(data)
	switch {
	case perr != nil:
		return c.refuse(name, perr)
	case errors.Is(err, &metadata.ErrEqualVersionNumber{}):
		if was, is := before.Signed.Meta["snapshot.json"], offered.Signed.Meta["snapshot.json"]; was == nil || is == nil || !was.Hashes.Equal(is.Hashes) {
			return fmt.Errorf("%w, %d: they have other content; take neither, and ask who publishes them", ErrForked, before.Signed.Version)
		}
		c.kept[name] = c.before[name]
		return nil
	case errors.Is(err, &metadata.ErrBadVersionNumber{}):
		return fmt.Errorf("%w: found version %d; expected %d or newer; take it from another source, and ask who publishes it",
			ErrRollback, offered.Signed.Version, before.Signed.Version)
	}
	return c.refuse(name, err)
}

func (c *checker) snapshot() error {
	if t, err := metadata.Timestamp().FromBytes(c.before[metadata.TIMESTAMP+".json"]); err == nil {
		if was := t.Signed.Meta["snapshot.json"]; was != nil {
			if data, ok := c.before[metadataName(metadata.SNAPSHOT, was.Version)]; ok {
				_, _ = c.trusted.UpdateSnapshot(data, true) // for the versions that it has: they do not fall
			}
		}
	}
	meta := c.trusted.Timestamp.Signed.Meta["snapshot.json"]
	if meta == nil || len(meta.Hashes) == 0 {
		return fmt.Errorf("%w: its timestamp names no snapshot by digest", ErrMalformed)
	}
	before := c.trusted.Snapshot
	data, name, err := c.part(metadata.SNAPSHOT, meta.Version)
	if err != nil {
		return err
	}
	if _, err := c.trusted.UpdateSnapshot(data, false); err != nil {
		if before != nil && errors.Is(err, &metadata.ErrBadVersionNumber{}) {
			return fmt.Errorf("%w: %s names an older targets.json than version %d", ErrRollback, name, before.Signed.Meta["targets.json"].Version)
		}
		return c.refuse(name, err)
	}
	return nil
}

func (c *checker) targets() error {
	meta := c.trusted.Snapshot.Signed.Meta["targets.json"]
	if meta == nil || len(meta.Hashes) == 0 {
		return fmt.Errorf("%w: its snapshot names no targets by digest", ErrMalformed)
	}
	data, name, err := c.part(metadata.TARGETS, meta.Version)
	if err != nil {
		return err
	}
	targets, err := c.trusted.UpdateTargets(data)
	if err != nil {
		return c.refuse(name, err)
	}
	for target, meta := range targets.Signed.Targets {
		name := targetsDir + target
		if !fs.ValidPath(target) || path.Base(target) != target {
			return fmt.Errorf("%w: the target %q is no plain file", ErrMalformed, target)
		}
		data, ok := c.files[name]
		if !ok {
			return fmt.Errorf("%w: %s", ErrIncomplete, name)
		}
		if err := meta.VerifyLengthHashes(data); err != nil {
			return c.refuse(name, err)
		}
		c.kept[name] = data
	}
	return nil
}

// part returns the metadata of a role that other metadata names.
func (c *checker) part(role string, version int64) (data []byte, name string, err error) {
	name = metadataName(role, version)
	data, ok := c.files[name]
	if !ok {
		return nil, name, fmt.Errorf("%w: %s", ErrIncomplete, name)
	}
	c.kept[name] = data
	return data, name, nil
}

// refuse says what an error of go-tuf means.
func (c *checker) refuse(name string, err error) error {
	var expired *metadata.ErrExpiredMetadata
	switch {
	case err == nil:
		return nil
	case errors.As(err, &expired):
		return fmt.Errorf("%w: now, %s, its %s; take it from another source, ask who publishes it for a new one, or see whether the clock is right",
			ErrExpired, c.trusted.RefTime.UTC().Format(time.RFC3339), expired.Msg)
	case errors.Is(err, &metadata.ErrUnsignedMetadata{}):
		return fmt.Errorf("%w: %s, by the root of version %d: %w", ErrSignature, name, c.trusted.Root.Signed.Version, err)
	case errors.Is(err, &metadata.ErrLengthOrHashMismatch{}), errors.Is(err, &metadata.ErrBadVersionNumber{}):
		return fmt.Errorf("%w: %s is another than the rest of it names: %w", ErrMixed, name, err)
	}
	return fmt.Errorf("%w: %s: %w", ErrMalformed, name, err)
}
