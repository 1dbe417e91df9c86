package replay

import (
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/google/renameio/v2"
)

// snapshotFile is a heap snapshot that is written, gzip, and has its name only when it is whole.
type snapshotFile struct {
	*gzip.Writer
	f *renameio.PendingFile
}

func newSnapshotFile(path string) (*snapshotFile, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("keeping a heap snapshot: %w", err)
	}
	f, err := renameio.NewPendingFile(path, renameio.WithPermissions(0o644))
	if err != nil {
		return nil, fmt.Errorf("keeping a heap snapshot: %w", err)
	}
	return &snapshotFile{gzip.NewWriter(f), f}, nil
}

func (s *snapshotFile) finish() error {
	if err := s.Close(); err != nil {
		return fmt.Errorf("keeping a heap snapshot: %w", err)
	}
	if err := s.f.CloseAtomicallyReplace(); err != nil {
		return fmt.Errorf("keeping a heap snapshot: %w", err)
	}
	return nil
}

func (s *snapshotFile) discard() { s.f.Cleanup() }

// hasSnapshot reports whether a file has a heap snapshot of a hash.
func hasSnapshot(path, want string) bool {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		return false
	}
	h := sha256.New()
	_, err = io.Copy(h, z)
	return err == nil && hex.EncodeToString(h.Sum(nil)) == want
}
