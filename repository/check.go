package repository

import (
	"crypto/sha256"
	"fmt"
	"hash"
	"io"
	"regexp"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func isDigest(s string) bool {
	d := digest.Digest(s)
	return d.Validate() == nil && d.Algorithm() == digest.SHA256
}

var tagPattern = regexp.MustCompile(`^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}$`)

func checkReference(s string) error {
	if !isDigest(s) && !tagPattern.MatchString(s) {
		return fmt.Errorf("%q is neither a tag nor a sha256 digest", s)
	}
	return nil
}

func checkBlob(d ocispec.Descriptor, offset int64) error {
	switch {
	case !isDigest(d.Digest.String()):
		return fmt.Errorf("digest %q: expected sha256:…", d.Digest)
	case d.Size < 0:
		return fmt.Errorf("blob %s: size %d", d.Digest, d.Size)
	case offset < 0 || offset > d.Size:
		return fmt.Errorf("blob %s has %d bytes, and none at %d", d.Digest, d.Size, offset)
	}
	return nil
}

func checkManifest(d ocispec.Descriptor) error {
	if d.Size > MaxManifest {
		return fmt.Errorf("manifest %s has %d bytes, more than the %d that a manifest may have", d.Digest, d.Size, MaxManifest)
	}
	return checkBlob(d, 0)
}

// checkBytes returns a *CorruptError if bytes from somewhere are not d.
func checkBytes(name string, d ocispec.Descriptor, b []byte) error {
	if sum := digest.FromBytes(b); sum != d.Digest || int64(len(b)) != d.Size {
		return &CorruptError{name, d, fmt.Sprintf("%s, %d bytes", sum, len(b))}
	}
	return nil
}

// checkPush checks what is to be pushed as a manifest.
func checkPush(name string, d ocispec.Descriptor, data []byte, tag string) (*manifest, error) {
	if err := checkManifest(d); err != nil {
		return nil, err
	}
	if tag != "" && !tagPattern.MatchString(tag) {
		return nil, fmt.Errorf("%q is no tag: expected at most 128 letters, digits, and ._- within", tag)
	}
	if err := checkBytes("what was to be pushed to "+name, d, data); err != nil {
		return nil, err
	}
	m, err := parse(data, d.MediaType)
	if err != nil {
		return nil, fmt.Errorf("pushing %s to %s: %w", d.Digest, name, err)
	}
	return m, nil
}

// checked is a reader of d that ends in a *CorruptError, before its last bytes, if they are not those of d.
type checked struct {
	r    io.Reader
	d    ocispec.Descriptor
	from string
	h    hash.Hash
	n    int64
}

func newChecked(r io.Reader, d ocispec.Descriptor, from string) *checked {
	return &checked{r: r, d: d, from: from, h: sha256.New()}
}

func (c *checked) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.h.Write(p[:n])
	c.n += int64(n)
	switch {
	case c.n > c.d.Size:
		return 0, &CorruptError{c.from, c.d, "more bytes than that"}
	case c.n == c.d.Size || err == io.EOF:
		if sum := digest.NewDigest(digest.SHA256, c.h); sum != c.d.Digest || c.n != c.d.Size {
			return 0, &CorruptError{c.from, c.d, fmt.Sprintf("%s, %d bytes", sum, c.n)}
		}
	}
	return n, err
}
