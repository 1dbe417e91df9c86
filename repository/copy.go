package repository

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"regexp"
	"slices"
	"sync"

	"github.com/enginery/enginery/internal/progress"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
)

// Download completes a file that may have the beginning of a blob, and checks it whole. After an error the file has what is worth
// resuming from, which after a *CorruptError is nothing. It is not synced.
func Download(ctx context.Context, from Repository, d ocispec.Descriptor, f *os.File) error {
	resumed, err := download(ctx, from, d, f)
	var corrupt *CorruptError
	if errors.As(err, &corrupt) {
		if err := f.Truncate(0); err != nil {
			return err
		}
		if resumed { // the beginning may have been another repository's
			return Download(ctx, from, d, f)
		}
	}
	return err
}

func download(ctx context.Context, from Repository, d ocispec.Descriptor, f *os.File) (resumed bool, err error) {
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return false, err
	}
	h := sha256.New()
	have, err := io.Copy(h, &contextReader{ctx, io.LimitReader(f, d.Size)})
	if err != nil {
		return false, err
	}
	if info, err := f.Stat(); err != nil {
		return false, err
	} else if info.Size() > d.Size {
		return true, &CorruptError{"the file " + f.Name(), d, fmt.Sprintf("%d bytes", info.Size())}
	}
	r, err := from.Blob(ctx, d, have)
	if err != nil {
		return have > 0, err
	}
	defer r.Close()
	n, err := io.Copy(io.MultiWriter(f, h), io.LimitReader(r, d.Size-have))
	if err != nil {
		return have > 0, err
	}
	if sum := digest.NewDigest(digest.SHA256, h); sum != d.Digest || have+n != d.Size {
		return have > 0, &CorruptError{from.Name(), d, fmt.Sprintf("%s, %d bytes", sum, have+n)}
	}
	return have > 0, nil
}

// Copy copies what a tag or a digest names from one repository to another: the index or manifest, all that it leads to, and all
// referrers of any of these, theirs too, with what cosign keeps under tags of its own. Every blob is checked on the way. What is there
// already is not sent again, so that a copy that was broken off resumes. A tag is set last: who finds it finds everything.
func Copy(ctx context.Context, from, to Repository, reference string) (ocispec.Descriptor, error) {
	d, err := copyAll(ctx, from, to, reference)
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("copying %s from %s to %s: %w", reference, from.Name(), to.Name(), err)
	}
	return d, nil
}

func copyAll(ctx context.Context, from, to Repository, reference string) (_ ocispec.Descriptor, err error) {
	root, err := from.Resolve(ctx, reference)
	if err != nil {
		return root, err
	}
	c := &copier{from: from, to: to, nodes: make(map[digest.Digest]*node), blobs: make(map[digest.Digest]ocispec.Descriptor)}
	if err := c.find(ctx, root); err != nil {
		return root, err
	}
	var total int64
	for _, d := range c.blobs {
		total += d.Size
	}
	c.task = progress.Start(ctx, "copy "+reference, total)
	defer func() { c.task.Done(err) }()
	if err := c.pushBlobs(ctx); err != nil {
		return root, err
	}
	if err := c.pushManifests(ctx); err != nil {
		return root, err
	}
	if !isDigest(reference) {
		err = to.PushManifest(ctx, root, c.nodes[root.Digest].data, reference)
	}
	return root, err
}

// maxManifests and maxTotal bound what a copy reads into memory, in manifests and in bytes.
const (
	maxManifests = 10_000
	maxTotal     = 256 << 20
)

type copier struct {
	from, to Repository
	task     *progress.Task

	mu    sync.Mutex
	nodes map[digest.Digest]*node
	blobs map[digest.Digest]ocispec.Descriptor
	total int64
	tags  map[digest.Digest][]string // cosign's own
}

// node is a manifest to copy.
type node struct {
	d       ocispec.Descriptor
	data    []byte
	m       *manifest
	subject digest.Digest // of which it was listed as a referrer
	tag     string        // of its own
}

// cosignTag is the name under which cosign keeps what belongs to a manifest, where it does not make it a referrer.
var cosignTag = regexp.MustCompile(`^sha256-([0-9a-f]{64})\.[a-z]+$`)

// find reads all manifests that belong to the root, level by level.
func (c *copier) find(ctx context.Context, root ocispec.Descriptor) error {
	tags, err := c.from.Tags(ctx)
	if err != nil && !errors.Is(err, ErrNotFound) {
		return err
	}
	c.tags = make(map[digest.Digest][]string)
	for _, tag := range tags {
		if m := cosignTag.FindStringSubmatch(tag); m != nil {
			d := digest.NewDigestFromEncoded(digest.SHA256, m[1])
			c.tags[d] = append(c.tags[d], tag)
		}
	}
	for level := []*node{{d: root}}; len(level) > 0; {
		var mu sync.Mutex
		var following []*node
		g, gctx := errgroup.WithContext(ctx)
		g.SetLimit(parallel)
		for _, n := range level {
			if !c.add(n) {
				continue
			}
			g.Go(func() error {
				found, err := c.read(gctx, n)
				mu.Lock()
				defer mu.Unlock()
				following = append(following, found...)
				return err
			})
		}
		if err := g.Wait(); err != nil {
			return err
		}
		if len(c.nodes) > maxManifests || c.total > maxTotal {
			return fmt.Errorf("what belongs to %s has no end: %d manifests of %d bytes so far", root.Digest, len(c.nodes), c.total)
		}
		level = following
	}
	return nil
}

// add notes a manifest, and tells whether it is new.
func (c *copier) add(n *node) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if had, ok := c.nodes[n.d.Digest]; ok {
		had.tag = max(had.tag, n.tag)
		return false
	}
	c.nodes[n.d.Digest] = n
	return true
}

// drop leaves out what was listed wrongly.
func (c *copier) drop(ctx context.Context, n *node, what string) {
	progress.Logf(ctx, "%s lists %s as a referrer of %s, which is %s", c.from.Name(), n.d.Digest, n.subject, what)
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.nodes, n.d.Digest)
}

// read reads a manifest, and returns those that it leads to.
func (c *copier) read(ctx context.Context, n *node) ([]*node, error) {
	var referrers []ocispec.Descriptor
	var g errgroup.Group
	g.Go(func() (err error) {
		referrers, err = c.from.Referrers(ctx, n.d.Digest, "")
		return err
	})
	var err error
	if n.data, err = c.from.Manifest(ctx, n.d); err == nil {
		n.m, err = parse(n.data, n.d.MediaType)
	}
	defer g.Wait()
	if n.subject != "" { // a list of referrers may be out of date
		switch {
		case errors.Is(err, ErrNotFound):
			c.drop(ctx, n, "not there")
			return nil, nil
		case err == nil && (n.m.Subject == nil || n.m.Subject.Digest != n.subject):
			c.drop(ctx, n, "no referrer")
			return nil, nil
		}
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", n.d.Digest, err)
	}
	n.d.MediaType = n.m.MediaType
	var found []*node
	for _, d := range n.m.Manifests {
		found = append(found, &node{d: d})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	for _, d := range referrers {
		found = append(found, &node{d: d, subject: n.d.Digest})
	}
	for _, tag := range c.tags[n.d.Digest] {
		d, err := c.from.Resolve(ctx, tag)
		if err != nil {
			return nil, err
		}
		found = append(found, &node{d: d, tag: tag})
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.total += int64(len(n.data))
	for _, d := range n.m.Layers {
		c.blobs[d.Digest] = d
	}
	if n.m.Config != nil {
		c.blobs[n.m.Config.Digest] = *n.m.Config
	}
	return found, nil
}

func (c *copier) pushBlobs(ctx context.Context) error {
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(parallel)
	for _, d := range c.blobs {
		g.Go(func() error {
			s := &source{ctx: gctx, from: c.from, d: d, task: c.task}
			defer s.Close()
			err := c.to.PushBlob(gctx, d, s)
			var corrupt *CorruptError
			if errors.As(err, &corrupt) {
				return &CorruptError{c.from.Name(), d, corrupt.Found}
			}
			if err == nil {
				c.task.Add(d.Size - s.told) // it was there
			}
			return err
		})
	}
	return g.Wait()
}

// pushManifests pushes parts before what consists of them.
func (c *copier) pushManifests(ctx context.Context) error {
	heights := make(map[digest.Digest]int)
	var height func(d digest.Digest) int
	height = func(d digest.Digest) int {
		if h, ok := heights[d]; ok {
			return h
		}
		h := 0
		for _, part := range c.nodes[d].m.Manifests { // a digest cannot be part of itself
			h = max(h, 1+height(part.Digest))
		}
		heights[d] = h
		return h
	}
	levels := make(map[int][]*node)
	for d, n := range c.nodes {
		h := height(d)
		levels[h] = append(levels[h], n)
	}
	for _, h := range slices.Sorted(maps.Keys(levels)) {
		g, gctx := errgroup.WithContext(ctx)
		g.SetLimit(parallel)
		for _, n := range levels[h] {
			g.Go(func() error { return c.to.PushManifest(gctx, n.d, n.data, n.tag) })
		}
		if err := g.Wait(); err != nil {
			return err
		}
	}
	return nil
}

// source reads a blob of a repository, from when it is first read. Who it is pushed to checks it.
type source struct {
	ctx  context.Context
	from Repository
	d    ocispec.Descriptor
	task *progress.Task
	told int64 // bytes
	n    int64
	body io.ReadCloser
}

func (s *source) Read(p []byte) (int, error) {
	if s.body == nil {
		body, err := s.from.Blob(s.ctx, s.d, 0)
		if err != nil {
			return 0, err
		}
		s.body, s.n = body, 0
	}
	n, err := s.body.Read(p)
	if s.n += int64(n); s.n > s.told {
		s.task.Add(s.n - s.told)
		s.told = s.n
	}
	return n, err
}

func (s *source) Seek(offset int64, whence int) (int64, error) {
	if offset != 0 || whence != io.SeekStart {
		return 0, errors.ErrUnsupported
	}
	s.Close()
	return 0, nil
}

func (s *source) Close() error {
	if s.body == nil {
		return nil
	}
	err := s.body.Close()
	s.body = nil
	return err
}
