package resolver

import (
	"context"
	"errors"

	"github.com/enginery/enginery/engines"
	"github.com/enginery/enginery/releaseindex"
	"github.com/enginery/enginery/repository"
	"github.com/enginery/enginery/trust"
)

// knowledge is what a node goes by.
type knowledge struct {
	index    *releaseindex.Index // that was accepted last; nil if there is none, or the policy wants none
	policy   *trust.Policy       // with what the index revokes
	channels engines.Channels
}

func (r *Resolver) known() (knowledge, error) {
	k := knowledge{policy: r.Policy}
	var err error
	if k.index, err = r.Index(); err != nil {
		return k, err
	}
	if k.index != nil {
		k.policy = r.Policy.Revoke(k.index.Revoked()...)
	}
	k.channels, err = r.channels()
	return k, err
}

// Index returns the release index that the node has accepted last, or nil if the policy names no root of trust for one, or none was accepted yet.
func (r *Resolver) Index() (*releaseindex.Index, error) {
	if r.Policy.Index == nil {
		return nil, nil
	}
	i, err := r.indexes().Load()
	if errors.Is(err, releaseindex.ErrNone) {
		return nil, nil
	}
	return i, err
}

// Refresh asks the sources for the newest release index, and accepts it if it is good. It returns what is in force then: with an error that is
// what was accepted before, which may be nil. It does nothing if the policy names no root of trust for one. See releaseindex.Store.Refresh.
func (r *Resolver) Refresh(ctx context.Context) (*releaseindex.Index, error) {
	if r.Policy.Index == nil {
		return nil, nil
	}
	var from []repository.Repository
	for _, s := range r.sources() {
		if s.err != nil {
			return nil, s.err
		}
		from = append(from, s.repo)
	}
	return r.indexes().Refresh(ctx, from, r.now())
}

func (r *Resolver) indexes() *releaseindex.Store {
	return releaseindex.Open(r.Home, []byte(r.Policy.Index.Root))
}
