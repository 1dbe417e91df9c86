package cas

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"

	repb "github.com/bazelbuild/remote-apis/build/bazel/remote/execution/v2"
)

// Digest names bytes by their SHA-256 and their size, as the Remote Execution API's Digest message does.
// It is comparable; its zero value names nothing.
type Digest struct {
	Hash string // 64 lower-case hex digits
	Size int64  // bytes
}

// OfBytes returns the digest of b.
func OfBytes(b []byte) Digest {
	sum := sha256.Sum256(b)
	return Digest{Hash: hex.EncodeToString(sum[:]), Size: int64(len(b))}
}

// FromProto returns the digest in p.
func FromProto(p *repb.Digest) Digest {
	return Digest{Hash: p.GetHash(), Size: p.GetSizeBytes()}
}

// ParseDigest parses "hash/size", the form of String.
func ParseDigest(s string) (Digest, error) {
	hash, size, ok := strings.Cut(s, "/")
	if !ok {
		return Digest{}, fmt.Errorf("digest %q: want HASH/SIZE", s)
	}
	if err := checkHash(hash); err != nil {
		return Digest{}, fmt.Errorf("digest %q: %w", s, err)
	}
	n, err := strconv.ParseInt(size, 10, 64)
	if err != nil || n < 0 || strconv.FormatInt(n, 10) != size {
		return Digest{}, fmt.Errorf("digest %q: size %q is not a plain decimal number", s, size)
	}
	return Digest{Hash: hash, Size: n}, nil
}

func checkHash(h string) error {
	if len(h) != 2*sha256.Size {
		return fmt.Errorf("hash has %d characters, want %d", len(h), 2*sha256.Size)
	}
	if strings.Trim(h, "0123456789abcdef") != "" {
		return fmt.Errorf("hash has characters other than 0-9 and a-f")
	}
	return nil
}

// String returns "hash/size", as the Remote Execution API writes digests in resource names.
func (d Digest) String() string {
	if d.IsZero() {
		return ""
	}
	return d.Hash + "/" + strconv.FormatInt(d.Size, 10)
}

// IsZero reports whether d names nothing.
func (d Digest) IsZero() bool { return d == Digest{} }

// Proto returns d as a Remote Execution API message.
func (d Digest) Proto() *repb.Digest {
	return &repb.Digest{Hash: d.Hash, SizeBytes: d.Size}
}

// MarshalText returns the form of String.
func (d Digest) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText parses the form of String; empty text is the zero digest.
func (d *Digest) UnmarshalText(text []byte) error {
	if len(text) == 0 {
		*d = Digest{}
		return nil
	}
	parsed, err := ParseDigest(string(text))
	if err != nil {
		return err
	}
	*d = parsed
	return nil
}
