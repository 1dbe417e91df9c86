package releaseindex

import (
	"context"
	"time"

	"github.com/enginery/enginery/repository"
)

// Pull returns the files of an index, unverified.
func Pull(ctx context.Context, repo repository.Repository) (map[string][]byte, error) {
	return pull(ctx, repo, nil)
}

// PushFiles publishes whatever files.
func PushFiles(ctx context.Context, repo repository.Repository, f map[string][]byte) error {
	_, err := Push(ctx, repo, &Index{files: f})
	return err
}

// Check verifies files.
func Check(root []byte, f map[string][]byte, now time.Time) (*Index, error) {
	return check(root, nil, f, now)
}
