package repository

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
)

// registry is a repository of a registry that speaks the OCI distribution API.
type registry struct {
	name string
	repo name.Repository
	options
	base       http.RoundTripper
	pull, push *session
	fallback   sync.Mutex // one at a time of ours changes a tag that stands in for the referrers API
}

func newRegistry(s string, repo name.Repository, o options) *registry {
	r := &registry{name: s, repo: repo, options: o, base: base(o.patience / 3)}
	r.pull = &session{r: r, action: transport.PullScope}
	r.push = &session{r: r, action: transport.PushScope}
	return r
}

func (r *registry) Name() string { return r.name }

var manifestTypes = []string{
	ocispec.MediaTypeImageIndex, ocispec.MediaTypeImageManifest, string(types.DockerManifestList), string(types.DockerManifestSchema2),
}

// request makes a request for a path below the repository's.
func (r *registry) request(ctx context.Context, method, path string, query url.Values, body []byte) (*http.Request, error) {
	u := url.URL{Scheme: r.repo.Scheme(), Host: r.repo.RegistryStr(), Path: "/v2/" + r.repo.RepositoryStr() + "/" + path, RawQuery: query.Encode()}
	return http.NewRequestWithContext(ctx, method, u.String(), bytes.NewReader(body))
}

// document gets a small document. Its status is 200.
func (s *session) document(ctx context.Context, path string, query url.Values, accept ...string) ([]byte, *http.Response, error) {
	req, err := s.r.request(ctx, http.MethodGet, path, query, nil)
	if err != nil {
		return nil, nil, err
	}
	for _, a := range accept {
		req.Header.Add("Accept", a)
	}
	resp, err := s.do(req)
	if err != nil {
		return nil, nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusNotFound {
		return nil, resp, fmt.Errorf("%s in %s: %w", path, s.r.name, ErrNotFound)
	}
	if err := checkStatus(resp, http.StatusOK); err != nil {
		return nil, resp, err
	}
	b, err := io.ReadAll(io.LimitReader(resp.Body, MaxManifest+1))
	if err != nil {
		return nil, resp, fmt.Errorf("reading %s: %w", path, err)
	}
	if len(b) > MaxManifest {
		return nil, resp, fmt.Errorf("%w: %s has more than %d bytes", errUnusable, path, MaxManifest)
	}
	return b, resp, nil
}

// manifest gets what a tag or a digest names.
func (r *registry) manifest(ctx context.Context, s *session, reference string) (ocispec.Descriptor, []byte, *manifest, error) {
	var d ocispec.Descriptor
	b, resp, err := s.document(ctx, "manifests/"+reference, nil, manifestTypes...)
	if err != nil {
		return d, nil, nil, err
	}
	d.Digest, d.Size = digest.FromBytes(b), int64(len(b))
	want := digest.Digest(reference)
	if !isDigest(reference) {
		if want = digest.Digest(resp.Header.Get("Docker-Content-Digest")); want == "" {
			want = d.Digest
		}
	}
	if d.Digest != want {
		return d, nil, nil, &CorruptError{r.name, ocispec.Descriptor{Digest: want, Size: resp.ContentLength}, fmt.Sprintf("%s, %d bytes", d.Digest, len(b))}
	}
	mediaType, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	if !slices.Contains(manifestTypes, mediaType) {
		mediaType = ""
	}
	m, err := parse(b, mediaType)
	if err != nil {
		return d, nil, nil, fmt.Errorf("%w: %s: %w", errUnusable, reference, err)
	}
	d.MediaType, d.ArtifactType = m.MediaType, m.ArtifactType
	return d, b, m, nil
}

func (r *registry) Resolve(ctx context.Context, reference string) (ocispec.Descriptor, error) {
	if err := checkReference(reference); err != nil {
		return ocispec.Descriptor{}, err
	}
	return ask(ctx, r, func(ctx context.Context) (ocispec.Descriptor, error) {
		d, _, _, err := r.manifest(ctx, r.pull, reference)
		return d, err
	})
}

func (r *registry) Manifest(ctx context.Context, d ocispec.Descriptor) ([]byte, error) {
	if err := checkManifest(d); err != nil {
		return nil, err
	}
	return ask(ctx, r, func(ctx context.Context) ([]byte, error) {
		b, _, err := r.pull.document(ctx, "manifests/"+d.Digest.String(), nil, manifestTypes...)
		if err != nil {
			return nil, err
		}
		if err := checkBytes(r.name, d, b); err != nil {
			return nil, err
		}
		return b, nil
	})
}

func (r *registry) Blob(ctx context.Context, d ocispec.Descriptor, offset int64) (io.ReadCloser, error) {
	if err := checkBlob(d, offset); err != nil {
		return nil, err
	}
	b := &blobReader{ctx: ctx, r: r, d: d, offset: offset, first: offset, tries: r.try()}
	for b.offset < d.Size {
		err := b.open()
		if err == nil {
			break
		}
		if err := b.tries.again(ctx, err); err != nil {
			return nil, err
		}
	}
	return b, nil
}

// blobReader reads a blob, and opens it anew where a connection was lost.
type blobReader struct {
	ctx           context.Context
	r             *registry
	d             ocispec.Descriptor
	first, offset int64
	body          io.ReadCloser // nil: to be opened
	tries         *tries
	spent         time.Duration
	err           error
}

// open asks for the rest of the blob.
func (b *blobReader) open() error {
	req, err := b.r.request(b.ctx, http.MethodGet, "blobs/"+b.d.Digest.String(), nil, nil)
	if err != nil {
		return err
	}
	if b.offset > 0 {
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", b.offset, b.d.Size-1))
	}
	resp, err := b.r.pull.do(req)
	if err != nil {
		return err
	}
	if resp.StatusCode == http.StatusNotFound {
		resp.Body.Close()
		return fmt.Errorf("blob %s in %s: %w", b.d.Digest, b.r.name, ErrNotFound)
	}
	if err := checkStatus(resp, http.StatusOK, http.StatusPartialContent); err != nil {
		return err
	}
	length, skip := b.d.Size, b.offset // of a registry that knows no ranges
	if resp.StatusCode == http.StatusPartialContent {
		var from, to int64
		if _, err := fmt.Sscanf(resp.Header.Get("Content-Range"), "bytes %d-%d/", &from, &to); err != nil || from != b.offset || to < from {
			resp.Body.Close()
			return fmt.Errorf("%w: asked for bytes %d-%d of %s, and was sent %q", errUnusable, b.offset, b.d.Size-1, b.d.Digest, resp.Header.Get("Content-Range"))
		}
		length, skip = b.d.Size-b.offset, 0
	}
	if resp.ContentLength > length {
		resp.Body.Close()
		return &CorruptError{b.r.name, b.d, fmt.Sprintf("%d bytes", b.d.Size-length+resp.ContentLength)}
	}
	if _, err := io.CopyN(io.Discard, resp.Body, skip); err != nil {
		resp.Body.Close()
		return err
	}
	b.body = resp.Body
	return nil
}

func (b *blobReader) Read(p []byte) (int, error) {
	if b.err != nil {
		return 0, b.err
	}
	n, err := b.read(p)
	b.err = err
	return n, err
}

func (b *blobReader) read(p []byte) (int, error) {
	start := time.Now()
	defer func() { b.spent += time.Since(start) }()
	if b.body != nil {
		b.tries.since = start // what the reader did in the meantime does not count
	}
	for b.offset < b.d.Size {
		if limit := b.r.patience + time.Duration(b.offset-b.first)*time.Second/slowest; b.spent+time.Since(start) > limit {
			return 0, &UnavailableError{b.r.name, fmt.Errorf("blob %s comes too slowly: %d bytes in %v", b.d.Digest, b.offset-b.first, limit.Round(time.Second))}
		}
		err := error(nil)
		if b.body == nil {
			err = b.open()
		} else {
			var n int
			n, err = b.body.Read(p[:min(int64(len(p)), b.d.Size-b.offset)])
			if n > 0 {
				b.offset += int64(n)
				b.tries.well()
				return n, nil
			}
			if err == io.EOF {
				err = fmt.Errorf("blob %s ends after %d of %d bytes: %w", b.d.Digest, b.offset, b.d.Size, io.ErrUnexpectedEOF)
			}
			if err != nil {
				b.body.Close()
				b.body = nil
			}
		}
		if err != nil {
			if err := b.tries.again(b.ctx, err); err != nil {
				return 0, err
			}
		}
	}
	return 0, io.EOF
}

func (b *blobReader) Close() error {
	b.err = errors.New("read after close")
	if b.body == nil {
		return nil
	}
	return b.body.Close()
}

// next returns the query of the page that follows, nil if none does (RFC 5988).
func next(resp *http.Response) url.Values {
	for _, link := range resp.Header.Values("Link") {
		target, params, ok := strings.Cut(link, ">")
		if !ok || !strings.HasPrefix(target, "<") || !regexp.MustCompile(`rel="?next"?`).MatchString(params) {
			continue
		}
		if u, err := url.Parse(target[1:]); err == nil { // its path is that of the page before
			return u.Query()
		}
	}
	return nil
}

// maxPages bounds a registry that has always one page more.
const maxPages = 1000

func (r *registry) Tags(ctx context.Context) ([]string, error) {
	var tags []string
	for page, query := 0, (url.Values{"n": {"1000"}}); query != nil; page++ {
		if page == maxPages {
			return nil, &UnavailableError{r.name, fmt.Errorf("%w: the list of its tags does not end", errUnusable)}
		}
		_, err := ask(ctx, r, func(ctx context.Context) (bool, error) {
			b, resp, err := r.pull.document(ctx, "tags/list", query)
			if err != nil {
				return false, err
			}
			var list struct{ Tags []string }
			if err := json.Unmarshal(b, &list); err != nil {
				return false, fmt.Errorf("%w: list of tags: %w", errUnusable, err)
			}
			tags, query = append(tags, list.Tags...), next(resp)
			return true, nil
		})
		if err != nil {
			return nil, err
		}
	}
	slices.Sort(tags)
	return slices.Compact(tags), nil
}

func (r *registry) Referrers(ctx context.Context, subject digest.Digest, artifactType string) ([]ocispec.Descriptor, error) {
	if !isDigest(subject.String()) {
		return nil, fmt.Errorf("digest %q: expected sha256:…", subject)
	}
	var listed, tagged []ocispec.Descriptor
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() (err error) {
		listed, _, err = r.listed(gctx, r.pull, subject)
		return err
	})
	g.Go(func() (err error) {
		tagged, err = ask(gctx, r, func(ctx context.Context) ([]ocispec.Descriptor, error) {
			index, err := r.fallbackIndex(ctx, r.pull, subject)
			if errors.Is(err, errUnusable) { // somebody else's tag
				return nil, nil
			} else if err != nil {
				return nil, err
			}
			return index.Manifests, nil
		})
		return err
	})
	if err := g.Wait(); err != nil {
		return nil, err
	}
	all := slices.Concat(listed, tagged)
	slices.SortStableFunc(all, func(x, y ocispec.Descriptor) int { return cmp.Compare(x.Digest, y.Digest) })
	all = slices.CompactFunc(all, func(x, y ocispec.Descriptor) bool { return x.Digest == y.Digest })
	if err := r.retype(ctx, all); err != nil {
		return nil, err
	}
	return ofType(all, artifactType), nil
}

func ofType(all []ocispec.Descriptor, artifactType string) []ocispec.Descriptor {
	if artifactType == "" {
		return all
	}
	return slices.DeleteFunc(all, func(d ocispec.Descriptor) bool { return d.ArtifactType != artifactType })
}

// retype sets the artifact types that a registry does not tell, or takes for those of the configs.
func (r *registry) retype(ctx context.Context, all []ocispec.Descriptor) error {
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(parallel)
	for i, d := range all {
		if d.ArtifactType != "" && d.ArtifactType != ocispec.MediaTypeEmptyJSON || checkManifest(d) != nil {
			continue
		}
		g.Go(func() error {
			b, err := r.Manifest(gctx, d)
			var corrupt *CorruptError
			if errors.Is(err, ErrNotFound) || errors.As(err, &corrupt) {
				return nil // for its reader to say
			} else if err != nil {
				return err
			}
			if m, err := parse(b, ""); err == nil {
				all[i].ArtifactType = m.artifactType()
			}
			return nil
		})
	}
	return g.Wait()
}

// listed returns what the referrers API lists, and whether there is one. Types are not filtered here, since some registries take
// them for those of the configs.
func (r *registry) listed(ctx context.Context, s *session, subject digest.Digest) (all []ocispec.Descriptor, api bool, err error) {
	for page, query := 0, (url.Values{}); query != nil; page++ {
		if page == maxPages {
			return nil, true, &UnavailableError{r.name, fmt.Errorf("%w: the list of referrers of %s does not end", errUnusable, subject)}
		}
		api, err = ask(ctx, r, func(ctx context.Context) (bool, error) {
			b, resp, err := s.document(ctx, "referrers/"+subject.String(), query, ocispec.MediaTypeImageIndex)
			if resp != nil && slices.Contains([]int{http.StatusNotFound, http.StatusBadRequest, http.StatusMethodNotAllowed, http.StatusNotAcceptable, http.StatusNotImplemented}, resp.StatusCode) {
				return false, nil
			} else if err != nil {
				return false, err
			}
			if mediaType, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type")); mediaType != ocispec.MediaTypeImageIndex {
				return false, nil
			}
			var index ocispec.Index
			if err := json.Unmarshal(b, &index); err != nil {
				return false, fmt.Errorf("%w: referrers of %s: %w", errUnusable, subject, err)
			}
			all, query = append(all, index.Manifests...), next(resp)
			return true, nil
		})
		if err != nil || !api {
			return nil, false, err
		}
	}
	return all, true, nil
}

// fallbackTag is the tag whose index lists the referrers of a manifest in a registry that has no API for it.
func fallbackTag(subject digest.Digest) string { return strings.Replace(subject.String(), ":", "-", 1) }

func (r *registry) fallbackIndex(ctx context.Context, s *session, subject digest.Digest) (*ocispec.Index, error) {
	index := &ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{}}
	d, b, _, err := r.manifest(ctx, s, fallbackTag(subject))
	if errors.Is(err, ErrNotFound) {
		return index, nil
	} else if err != nil {
		return nil, err
	}
	if d.MediaType != ocispec.MediaTypeImageIndex {
		return nil, fmt.Errorf("%w: the tag %s, which must list the referrers of %s, is a %s", errUnusable, fallbackTag(subject), subject, d.MediaType)
	}
	if err := json.Unmarshal(b, index); err != nil {
		return nil, fmt.Errorf("%w: %w", errUnusable, err)
	}
	return index, nil
}

func (r *registry) PushBlob(ctx context.Context, d ocispec.Descriptor, content io.ReadSeeker) error {
	if err := checkBlob(d, 0); err != nil {
		return err
	}
	up := &upload{d: d, content: content, name: r.name}
	for t, n := r.try(), 1; ; n++ {
		moved := up.read
		err := r.upload(ctx, up)
		if err == nil {
			return nil
		}
		if up.err != nil { // the content's own
			return up.err
		}
		if up.read > moved && n < 5 {
			t.well()
		}
		if err := t.again(ctx, err); err != nil {
			return err
		}
	}
}

func (r *registry) upload(ctx context.Context, up *upload) error {
	ctx, cancel := context.WithTimeout(ctx, r.patience+time.Duration(up.d.Size)*time.Second/slowest)
	defer cancel()
	rt, err := r.push.transport(ctx)
	if err != nil {
		return err
	}
	pusher, err := remote.NewPusher(remote.WithTransport(rt), remote.WithRetryPredicate(func(error) bool { return false }))
	if err != nil {
		return err
	}
	defer up.turn() // nobody reads on
	return pusher.Upload(ctx, r.repo, up)
}

// upload is a blob as go-containerregistry uploads it.
type upload struct {
	d       ocispec.Descriptor
	content io.ReadSeeker
	name    string

	mu      sync.Mutex
	current *uploadBody
	read    int64
	err     error
}

func (u *upload) Digest() (v1.Hash, error)             { return v1.NewHash(u.d.Digest.String()) }
func (u *upload) DiffID() (v1.Hash, error)             { return u.Digest() }
func (u *upload) Size() (int64, error)                 { return u.d.Size, nil }
func (u *upload) MediaType() (types.MediaType, error)  { return types.OCIUncompressedLayer, nil }
func (u *upload) Uncompressed() (io.ReadCloser, error) { return u.Compressed() }

// turn ends the reading of earlier attempts, which may still be under way.
func (u *upload) turn() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.current = nil
}

func (u *upload) Compressed() (io.ReadCloser, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if _, err := u.content.Seek(0, io.SeekStart); err != nil {
		u.err = err
		return nil, err
	}
	u.current = &uploadBody{u: u, r: newChecked(u.content, u.d, "what was to be pushed to "+u.name)}
	return u.current, nil
}

type uploadBody struct {
	u *upload
	r io.Reader
}

func (b *uploadBody) Read(p []byte) (int, error) {
	b.u.mu.Lock()
	defer b.u.mu.Unlock()
	if b.u.current != b {
		return 0, errors.New("another attempt has begun")
	}
	n, err := b.r.Read(p)
	b.u.read += int64(n)
	if err != nil && err != io.EOF {
		b.u.err = err
	}
	return n, err
}

func (b *uploadBody) Close() error { return nil }

func (r *registry) PushManifest(ctx context.Context, d ocispec.Descriptor, data []byte, tag string) error {
	m, err := checkPush(r.name, d, data, tag)
	if err != nil {
		return err
	}
	reference := cmp.Or(tag, d.Digest.String())
	processed, err := ask(ctx, r, func(ctx context.Context) (processed bool, err error) {
		if now, _, _, err := r.manifest(ctx, r.push, reference); err == nil && now.Digest == d.Digest {
			return false, nil
		}
		return r.put(ctx, reference, d.MediaType, data)
	})
	if err != nil || m.Subject == nil || processed {
		return err
	}
	return r.refer(ctx, m.Subject.Digest, ocispec.Descriptor{
		MediaType: d.MediaType, Digest: d.Digest, Size: d.Size, ArtifactType: m.artifactType(), Annotations: m.Annotations,
	})
}

// put writes a manifest, and tells whether the registry says that it has seen the subject of it.
func (r *registry) put(ctx context.Context, reference, mediaType string, data []byte) (processed bool, err error) {
	req, err := r.request(ctx, http.MethodPut, "manifests/"+reference, nil, data)
	if err != nil {
		return false, err
	}
	req.Header.Set("Content-Type", mediaType)
	resp, err := r.push.do(req)
	if err != nil {
		return false, err
	}
	defer resp.Body.Close()
	return resp.Header.Get("OCI-Subject") != "", checkStatus(resp, http.StatusCreated, http.StatusOK, http.StatusAccepted)
}

// refer makes a manifest a referrer of its subject.
func (r *registry) refer(ctx context.Context, subject digest.Digest, d ocispec.Descriptor) error {
	if _, api, err := r.listed(ctx, r.push, subject); err != nil || api {
		return err
	}
	r.fallback.Lock()
	defer r.fallback.Unlock()
	for range 10 { // until it is still there when others have written, too
		listed, err := ask(ctx, r, func(ctx context.Context) (bool, error) {
			index, err := r.fallbackIndex(ctx, r.push, subject)
			if err != nil {
				return false, err
			}
			if slices.ContainsFunc(index.Manifests, func(e ocispec.Descriptor) bool { return e.Digest == d.Digest }) {
				return true, nil
			}
			index.Manifests = append(index.Manifests, d)
			data, err := json.Marshal(index)
			if err != nil {
				return false, err
			}
			_, err = r.put(ctx, fallbackTag(subject), ocispec.MediaTypeImageIndex, data)
			return false, err
		})
		if err != nil {
			return fmt.Errorf("listing %s as a referrer of %s: %w", d.Digest, subject, err)
		}
		if listed {
			return nil
		}
	}
	return &UnavailableError{r.name, fmt.Errorf("others overwrite the tag %s, which must list %s as a referrer; push again", fallbackTag(subject), d.Digest)}
}
