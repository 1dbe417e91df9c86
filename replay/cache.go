package replay

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	repb "github.com/bazelbuild/remote-apis/build/bazel/remote/execution/v2"
	"github.com/enginery/enginery/internal/action"
	"github.com/enginery/enginery/internal/cas"
)

// cache keeps the results of actions, as package build does, in a store of its own: whole or not at all, and checked when they are read.
// A nil cache has none and keeps none.
type cache struct {
	store *cas.Store
}

// openCache opens the cache in a folder, which is made if it is missing. There is none if dir is empty.
func openCache(dir string) (*cache, error) {
	if dir == "" {
		return nil, nil
	}
	s, err := cas.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("opening the results that are known: %w", err)
	}
	return &cache{s}, nil
}

func (c *cache) close() {
	if c != nil {
		c.store.Close()
	}
}

// read reads the output of an action, which is JSON, and reports whether it was there. One that is damaged was not.
func (c *cache) read(a *action.Action, output any) (bool, error) {
	if c == nil {
		return false, nil
	}
	b, err := c.output(a)
	var corrupt *cas.CorruptError
	switch {
	case errors.As(err, &corrupt), errors.Is(err, fs.ErrNotExist):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("reading a result that is known: %w", err)
	}
	return json.Unmarshal(b, output) == nil, nil
}

func (c *cache) output(a *action.Action) ([]byte, error) {
	result, found, err := c.store.Result(a.Digest)
	if err != nil {
		return nil, err
	}
	if !found {
		return nil, fs.ErrNotExist
	}
	d, err := a.Output(result)
	if err != nil {
		return nil, err
	}
	return c.store.ReadAll(d)
}

// write keeps the output of an action. What is done is kept, even if the run is being interrupted.
func (c *cache) write(a *action.Action, output any) error {
	if c == nil {
		return nil
	}
	ctx := context.Background()
	text, err := json.Marshal(output)
	if err != nil {
		return fmt.Errorf("keeping a result: %w", err)
	}
	d, err := c.store.PutBytes(ctx, text)
	if err != nil {
		return fmt.Errorf("keeping a result: %w", err)
	}
	files := []*repb.OutputFile{{Path: a.Command.OutputPaths[0], Digest: d.Proto()}}
	if err := c.store.PutResult(ctx, a.Digest, &repb.ActionResult{OutputFiles: files}); err != nil {
		return fmt.Errorf("keeping a result: %w", err)
	}
	return nil
}

// checkpoint returns what the names of an action's checkpoint begin with.
func (c *cache) checkpoint(a *action.Action) string {
	return filepath.Join(c.store.Dir(), "checkpoints", a.Digest.Hash[:2], a.Digest.Hash)
}
