package upgrade

import (
	"context"
	"fmt"
	"iter"

	"github.com/enginery/enginery/swingstore"
	"github.com/tidwall/btree"
)

// Memory is a Store in memory. Its methods must not be called at the same time.
type Memory struct{ m *btree.Map[string, string] }

// NewMemory returns an empty store.
func NewMemory() *Memory { return &Memory{new(btree.Map[string, string])} }

// Get returns the value of a key. It is swingstore.ErrNotFound if there is none.
func (m *Memory) Get(_ context.Context, key string) (string, error) {
	v, ok := m.m.Get(key)
	if !ok {
		return "", fmt.Errorf("key %q: %w", key, swingstore.ErrNotFound)
	}
	return v, nil
}

// Set sets a key.
func (m *Memory) Set(key, value string) error { m.m.Set(key, value); return nil }

// Delete removes a key, if it is there.
func (m *Memory) Delete(key string) error { m.m.Delete(key); return nil }

// NextKey returns the key that follows one, and "" if it is the last.
func (m *Memory) NextKey(_ context.Context, key string) (next string, _ error) {
	m.m.Ascend(key, func(k, _ string) bool {
		if k == key {
			return true
		}
		next = k
		return false
	})
	return next, nil
}

// Copy returns a store with the same keys, at once. Neither sees what is written to the other from then on: it is how a host begins a
// transaction, and keeps what there was in case it undoes it.
func (m *Memory) Copy() *Memory { return &Memory{m.m.Copy()} }

// All returns all keys and values in order.
func (m *Memory) All() iter.Seq2[string, string] {
	return func(yield func(string, string) bool) { m.m.Scan(yield) }
}
