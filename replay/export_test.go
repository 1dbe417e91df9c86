package replay

import (
	"context"

	"github.com/enginery/enginery/replay/transcripts"
	"github.com/enginery/enginery/vat"
)

// RunWithCheckpoints is Run with a checkpoint at the end of each span.
func RunWithCheckpoints(ctx context.Context, source transcripts.Source, e *vat.Engine, o Options) (*Report, error) {
	r, err := newRunner(ctx, source, e, o)
	if err != nil {
		return nil, err
	}
	r.pause = 0
	vats, err := choose(ctx, source, o.Vats)
	if err != nil {
		return nil, err
	}
	return replayAll(ctx, o, vats, r)
}
