// Package releaseindex is the signed release index: how a node learns of what was released after its program was built.
//
// It is a TUF repository (The Update Framework, specification 1.0) in one OCI manifest: metadata of the roles root, targets, snapshot and
// timestamp, and as targets the manifest of every version, the channels, and the digests that are revoked. Metadata has versions that only
// grow, and expires, so a node notices when it is shown an old index, or always the same.
package releaseindex

import (
	"archive/zip"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/enginery/enginery/engines"
	"github.com/enginery/enginery/trust"
	"github.com/theupdateframework/go-tuf/v2/metadata"
)

// Why an index is not accepted.
var (
	ErrRollback   = errors.New("the release index is older than the one that was accepted before")
	ErrExpired    = errors.New("the release index has expired")
	ErrSignature  = errors.New("the release index is not signed by those who must have signed it")
	ErrMixed      = errors.New("the release index is put together from parts of several")
	ErrIncomplete = errors.New("the release index lacks a part")
	ErrForked     = errors.New("there are two release indexes of the same version")
	ErrMalformed  = errors.New("the release index makes no sense")
)

// Names of targets.
const (
	ChannelsName = "channels.toml" // see engines.ParseChannels
	RevokedName  = "revoked.toml"  // see trust.ParseRevocations
)

// targetsDir is the folder of a TUF repository that has its targets.
const targetsDir = "targets/"

// files are those of a TUF repository, by their names: 1.root.json, timestamp.json, targets/channels.toml, …
type files map[string][]byte

func metadataName(role string, version int64) string {
	if role == metadata.TIMESTAMP {
		return role + ".json"
	}
	return fmt.Sprintf("%d.%s.json", version, role)
}

// Index is a release index that was verified.
type Index struct {
	Version int64     // grows whenever it is published
	Content int64     // grows whenever that changes: the version of the role targets
	Root    int64     // version of the root of trust
	Expires time.Time // when it is no longer the newest for sure

	files    files
	zip      []byte // of the files
	targets  fs.FS
	channels engines.Channels
	revoked  []trust.Revocation
}

// Manifests returns the records of versions, as ID.json. See manifests.ReadFS.
func (i *Index) Manifests() fs.FS { return i.targets }

// IDs returns the versions that have a record, sorted.
func (i *Index) IDs() []string {
	var ids []string
	for name := range i.files {
		if id, ok := strings.CutSuffix(name, ".json"); ok && strings.HasPrefix(id, targetsDir) {
			ids = append(ids, strings.TrimPrefix(id, targetsDir))
		}
	}
	return slices.Sorted(slices.Values(ids))
}

// Channels returns the versions that are in service.
func (i *Index) Channels() engines.Channels { return i.channels }

// Revoked returns the digests that are refused, whoever has signed them.
func (i *Index) Revoked() []trust.Revocation { return i.revoked }

// Expired returns an ErrExpired if the index may not be the newest at a time.
func (i *Index) Expired(now time.Time) error {
	if now.Before(i.Expires) {
		return nil
	}
	return fmt.Errorf("%w: its version %d was good until %s, and now it is %s; get a newer one, or see whether the clock is right",
		ErrExpired, i.Version, i.Expires.Format(time.RFC3339), now.UTC().Format(time.RFC3339))
}

// open completes an index from its files.
func (i *Index) open() error {
	var b bytes.Buffer
	w := zip.NewWriter(&b)
	for _, name := range slices.Sorted(maps.Keys(i.files)) {
		f, err := w.CreateHeader(&zip.FileHeader{Name: name, Method: zip.Store})
		if err != nil {
			return err
		}
		if _, err := f.Write(i.files[name]); err != nil {
			return err
		}
	}
	if err := w.Close(); err != nil {
		return err
	}
	i.zip = b.Bytes()
	r, err := zip.NewReader(bytes.NewReader(i.zip), int64(len(i.zip)))
	if err != nil {
		return err
	}
	if i.targets, err = fs.Sub(r, strings.TrimSuffix(targetsDir, "/")); err != nil {
		return err
	}
	data, ok := i.files[targetsDir+ChannelsName]
	if !ok {
		return fmt.Errorf("%w: there is no %s", ErrMalformed, ChannelsName)
	}
	if i.channels, err = engines.ParseChannels(ChannelsName, data); err != nil {
		return fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	if i.revoked, err = trust.ParseRevocations(RevokedName, i.files[targetsDir+RevokedName]); err != nil {
		return fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	return nil
}
