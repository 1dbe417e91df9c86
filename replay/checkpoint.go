package replay

import (
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"hash"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/enginery/enginery/internal/cas"
	"github.com/enginery/enginery/replay/transcripts"
	"github.com/enginery/enginery/swingstore"
	"github.com/enginery/enginery/vat"
	"github.com/google/renameio/v2"
)

// checkpointPause is how much work may be lost when a run is killed.
const checkpointPause = 30 * time.Second

// checkpoints keep a piece of many spans from being replayed all over again: now and then the heap snapshot at a span's end is kept, with what
// came of the piece by then. The worker is started anew there in any case, so a replay that goes on from it is the same. What goes wrong with
// a checkpoint goes wrong with nothing else.
type checkpoints struct {
	path  string // what its files' names begin with
	pause time.Duration
	last  time.Time

	heap *heapFile // that is being written, or is whole and belongs to the span that ends
	kept string    // name of the heap snapshot's file of the last checkpoint
}

// checkpoint is what is kept besides the heap snapshot.
type checkpoint struct {
	Heap   string          `json:"heap"` // SHA-256
	Sum    cas.Digest      `json:"sum"`  // of Result
	Result json.RawMessage `json:"result"`
}

func newCheckpoints(path string, pause time.Duration) *checkpoints {
	return &checkpoints{path: path, pause: pause, last: time.Now()}
}

// heapFile is a heap snapshot that is written, gzip.
type heapFile struct {
	f    *os.File
	z    *gzip.Writer
	hash hash.Hash
	err  error
}

// Write never fails: the worker writes on.
func (h *heapFile) Write(b []byte) (int, error) {
	h.hash.Write(b)
	if h.err == nil {
		_, h.err = h.z.Write(b)
	}
	return len(b), nil
}

// begin returns what the heap snapshot at the end of the span is to be written to besides, or nil.
func (c *checkpoints) begin() io.Writer {
	if c == nil || time.Since(c.last) < c.pause {
		return nil
	}
	if os.MkdirAll(filepath.Dir(c.path), 0o755) != nil {
		return nil
	}
	f, err := os.CreateTemp(filepath.Dir(c.path), filepath.Base(c.path)+".*.tmp")
	if err != nil {
		return nil
	}
	z, _ := gzip.NewWriterLevel(f, gzip.BestSpeed)
	c.heap = &heapFile{f: f, z: z, hash: sha256.New()}
	return c.heap
}

func (c *checkpoints) heapPath(hash string) string { return c.path + "." + hash[:16] + ".heap" }

// keep makes a checkpoint of the heap snapshot that was just written, if there is one, and what came of all spans so far.
func (c *checkpoints) keep(r *result) {
	if c == nil || c.heap == nil {
		return
	}
	h := c.heap
	c.heap = nil
	defer os.Remove(h.f.Name()) // unless it has another name by then
	err := errors.Join(h.err, h.z.Close(), h.f.Sync(), h.f.Close())
	if last := r.Spans[len(r.Spans)-1]; err != nil || last.Outcome != Replayed || !r.final() {
		return
	}
	hash := hex.EncodeToString(h.hash.Sum(nil))
	heap := c.heapPath(hash)
	if os.Rename(h.f.Name(), heap) != nil {
		return
	}
	text, err := json.Marshal(r)
	if err == nil {
		text, err = json.Marshal(checkpoint{hash, cas.OfBytes(text), text})
	}
	if err != nil || renameio.WriteFile(c.path+".checkpoint", text, 0o644) != nil {
		return
	}
	if c.kept != "" && c.kept != heap {
		os.Remove(c.kept)
	}
	c.kept, c.last = heap, time.Now()
}

// remove removes the checkpoint when the piece is done.
func (c *checkpoints) remove() {
	if c == nil {
		return
	}
	leftovers, _ := filepath.Glob(c.path + ".*") // the path has nothing that Glob would take for a pattern, or nothing is found
	for _, name := range leftovers {
		if name != c.path {
			os.Remove(name)
		}
	}
}

// read returns the last checkpoint, or nil if there is none that is whole.
func (c *checkpoints) read() (*result, string) {
	text, err := os.ReadFile(c.path + ".checkpoint")
	if err != nil {
		return nil, ""
	}
	var p checkpoint
	r := new(result)
	if json.Unmarshal(text, &p) != nil || len(p.Heap) != 2*sha256.Size || cas.OfBytes(p.Result) != p.Sum || json.Unmarshal(p.Result, r) != nil {
		return nil, ""
	}
	c.kept = c.heapPath(p.Heap)
	if !hasSnapshot(c.kept, p.Heap) {
		return nil, ""
	}
	return r, p.Heap
}

// goOn starts a worker where the last checkpoint was made, and returns how many spans are done by then.
func (p *player) goOn(ctx context.Context) (done int, err error) {
	if p.checkpoints == nil {
		return 0, nil
	}
	r, hash := p.checkpoints.read()
	if r == nil || len(r.Spans) >= len(p.spans) {
		return 0, nil
	}
	if p.keep != "" && len(r.Spans) == len(p.spans)-1 {
		return 0, nil // the heap snapshot that is wanted may not have been kept
	}
	if r, err = p.verified(ctx, r); r == nil || err != nil {
		return 0, err
	}
	f, err := os.Open(p.checkpoints.kept)
	if err != nil {
		return 0, nil
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		return 0, nil
	}
	mo := vat.ManagerOptions{Worker: p.worker(), ID: p.vat.ID, Name: p.vat.Name}
	mo.Worker.Snapshot, mo.Worker.SnapshotSHA256 = z, hash
	if _, err := p.start(ctx, mo); err != nil {
		return 0, ctx.Err() // what is wrong comes out when it is replayed
	}
	p.result = *r
	p.heap = r.Spans[len(r.Spans)-1].Snapshot.Expected
	return len(r.Spans), nil
}

// verified returns what is known of a piece, or of its first spans, if the source still has what it is a result of, and otherwise nil.
func (p *piece) verified(ctx context.Context, r *result) (*result, error) {
	for i := range r.Spans {
		if has, err := hasSpan(ctx, p.run.source, p.spans[i]); !has {
			return nil, err // nil: what is wrong comes out when it is replayed
		}
	}
	return r, nil
}

// hasSpan reports whether a source has the items of a span, undamaged.
func hasSpan(ctx context.Context, source transcripts.Source, s swingstore.Span) (bool, error) {
	for _, err := range source.Items(ctx, s) {
		if lacking(err) != nil {
			return false, nil
		}
		if err != nil {
			return false, err
		}
	}
	return true, nil
}
