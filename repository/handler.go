package repository

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Handler serves the OCI layout in a folder as a registry that can only be read, with the referrers API. It answers for any
// repository name: a layout is one repository. What is pushed to the layout meanwhile is served at once.
//
// Manifests are checked before they are sent; blobs are for the client to check, as all clients do.
func Handler(layoutDir string) http.Handler {
	l := &layout{dir: layoutDir}
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		s := server{l, w, req}
		if err := s.serve(); err != nil {
			s.refuse(err)
		}
	})
}

// server answers one request.
type server struct {
	l   *layout
	w   http.ResponseWriter
	req *http.Request
}

// apiError is an error of the distribution API.
type apiError struct {
	status        int
	code, message string
}

func (e *apiError) Error() string { return e.message }

// endpoint is the path of a request: the repository's name, the kind of thing, and which.
var endpoint = regexp.MustCompile(`^/v2/([a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*)*)/(manifests|blobs|tags|referrers)/([^/]+)$`)

func (s *server) serve() error {
	s.w.Header().Set("Docker-Distribution-Api-Version", "registry/2.0")
	s.w.Header().Set("X-Content-Type-Options", "nosniff")
	if s.req.Method != http.MethodGet && s.req.Method != http.MethodHead {
		s.w.Header().Set("Allow", "GET, HEAD")
		return &apiError{http.StatusMethodNotAllowed, "UNSUPPORTED", "this registry can only be read"}
	}
	if s.req.URL.Path == "/v2/" || s.req.URL.Path == "/v2" {
		return s.json("application/json", struct{}{})
	}
	m := endpoint.FindStringSubmatch(s.req.URL.Path)
	if m == nil {
		return &apiError{http.StatusNotFound, "UNSUPPORTED", fmt.Sprintf("%s is no path of a repository's manifests, blobs, tags or referrers", s.req.URL.Path)}
	}
	name, kind, what := m[1], m[2], m[3]
	switch {
	case kind == "manifests":
		return s.manifest(what)
	case kind == "tags" && what == "list":
		return s.tags(name)
	case kind == "tags":
		return &apiError{http.StatusNotFound, "UNSUPPORTED", "expected tags/list"}
	case !isDigest(what):
		return &apiError{http.StatusBadRequest, "DIGEST_INVALID", fmt.Sprintf("%q is no sha256 digest", what)}
	case kind == "blobs":
		return s.blob(digest.Digest(what))
	}
	return s.referrers(digest.Digest(what))
}

// refuse answers with an error.
func (s *server) refuse(err error) {
	var e *apiError
	var corrupt *CorruptError
	switch {
	case errors.As(err, &e):
	case errors.As(err, &corrupt):
		e = &apiError{http.StatusInternalServerError, "UNKNOWN", corrupt.Blob.Digest.String() + " is damaged here"}
	default: // which may name the layout's folder
		e = &apiError{http.StatusInternalServerError, "UNKNOWN", "the layout cannot be read"}
	}
	type diagnostic struct {
		Code    string `json:"code"`
		Message string `json:"message"`
	}
	b, err := json.Marshal(map[string][]diagnostic{"errors": {{e.code, e.message}}})
	if err != nil {
		panic(err)
	}
	h := s.w.Header()
	for _, name := range []string{"Docker-Content-Digest", "Etag", "Cache-Control"} {
		h.Del(name)
	}
	h.Set("Content-Type", "application/json")
	h.Set("Content-Length", strconv.Itoa(len(b)))
	s.w.WriteHeader(e.status)
	if s.req.Method != http.MethodHead {
		s.w.Write(b)
	}
}

func (s *server) json(mediaType string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return s.bytes(mediaType, b)
}

func (s *server) bytes(mediaType string, b []byte) error {
	s.w.Header().Set("Content-Type", mediaType)
	s.w.Header().Set("Content-Length", strconv.Itoa(len(b)))
	if s.req.Method != http.MethodHead {
		s.w.Write(b)
	}
	return nil
}

func (s *server) manifest(reference string) error {
	if err := checkReference(reference); err != nil {
		return &apiError{http.StatusBadRequest, "MANIFEST_INVALID", err.Error()}
	}
	d, data, err := s.l.find(reference)
	if errors.Is(err, ErrNotFound) {
		return &apiError{http.StatusNotFound, "MANIFEST_UNKNOWN", fmt.Sprintf("there is no manifest %s", reference)}
	} else if err != nil {
		return err
	}
	h := s.w.Header()
	h.Set("Docker-Content-Digest", d.Digest.String())
	h.Set("Etag", strconv.Quote(d.Digest.String()))
	h.Set("Content-Type", d.MediaType)
	http.ServeContent(s.w, s.req, "", time.Time{}, bytes.NewReader(data))
	return nil
}

func (s *server) blob(d digest.Digest) error {
	f, err := s.l.open(d)
	if errors.Is(err, ErrNotFound) {
		return &apiError{http.StatusNotFound, "BLOB_UNKNOWN", fmt.Sprintf("there is no blob %s", d)}
	} else if err != nil {
		return err
	}
	defer f.Close()
	h := s.w.Header()
	h.Set("Docker-Content-Digest", d.String())
	h.Set("Etag", strconv.Quote(d.String()))
	h.Set("Cache-Control", "public, max-age=31536000, immutable")
	h.Set("Content-Type", "application/octet-stream")
	http.ServeContent(s.w, s.req, "", time.Time{}, f)
	return nil
}

// maxTags bounds a page of tags.
const maxTags = 1000

func (s *server) tags(name string) error {
	tags, err := s.l.Tags(s.req.Context())
	if errors.Is(err, ErrNotFound) {
		return &apiError{http.StatusNotFound, "NAME_UNKNOWN", "there is no repository here"}
	} else if err != nil {
		return err
	}
	tags = slices.DeleteFunc(tags, func(t string) bool { return !tagPattern.MatchString(t) }) // names of a layout may be anything
	query := s.req.URL.Query()
	n := maxTags
	if asked := query.Get("n"); asked != "" {
		if n, err = strconv.Atoi(asked); err != nil || n < 0 {
			return &apiError{http.StatusBadRequest, "UNSUPPORTED", fmt.Sprintf("n=%q is no number of tags", asked)}
		}
		n = min(n, maxTags)
	}
	if last := query.Get("last"); last != "" {
		i, found := slices.BinarySearch(tags, last)
		if found {
			i++
		}
		tags = tags[i:]
	}
	if len(tags) > n {
		tags = tags[:n]
		if n > 0 {
			more := url.Values{"n": {strconv.Itoa(n)}, "last": {tags[n-1]}}
			s.w.Header().Set("Link", fmt.Sprintf(`</v2/%s/tags/list?%s>; rel="next"`, name, more.Encode()))
		}
	}
	if tags == nil {
		tags = []string{}
	}
	return s.json("application/json", struct {
		Name string   `json:"name"`
		Tags []string `json:"tags"`
	}{name, tags})
}

func (s *server) referrers(subject digest.Digest) error {
	artifactType := s.req.URL.Query().Get("artifactType")
	referrers, err := s.l.Referrers(s.req.Context(), subject, artifactType)
	if err != nil {
		return err
	}
	if artifactType != "" {
		s.w.Header().Set("OCI-Filters-Applied", "artifactType")
	}
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: referrers}
	if referrers == nil {
		index.Manifests = []ocispec.Descriptor{}
	}
	return s.json(ocispec.MediaTypeImageIndex, index)
}
