package swingstore

import (
	"archive/zip"
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
)

// compartmentMap is the file that names and hashes all others in an Endo bundle.
const compartmentMap = "compartment-map.json"

// Bundles returns the IDs of the store's bundles, sorted.
func (r *Reader) Bundles(ctx context.Context) ([]string, error) {
	ids, err := collect[string](ctx, r, "SELECT bundleID FROM bundles ORDER BY bundleID")
	if err != nil {
		return nil, r.wrap(err, "listing bundles")
	}
	return ids, nil
}

// Bundle returns a bundle as SwingSet hands it to a worker, an object in JSON, after checking that it is what its ID says. It is
// ErrNotFound if there is none, and ErrPruned if there is no more.
func (r *Reader) Bundle(ctx context.Context, id string) ([]byte, error) {
	var stored []byte
	if err := r.row(ctx, "SELECT bundle FROM bundles WHERE bundleID = ?", id).Scan(&stored); err != nil {
		return nil, r.wrap(err, "reading bundle %s", id)
	}
	if stored == nil {
		return nil, r.wrap(ErrPruned, "reading bundle %s", id)
	}
	bundle, found, err := decodeBundle(id, stored)
	switch {
	case err != nil:
		return nil, r.damaged("bundle "+id, "a bundle", err.Error())
	case found != id:
		return nil, r.damaged("bundle "+id, id, found)
	}
	return bundle, nil
}

// DecodeBundle returns a bundle as SwingSet hands it to a worker, an object in JSON, of what a store or an artifact of its export has of it,
// after checking that it is what its ID says.
func DecodeBundle(id string, stored []byte) ([]byte, error) {
	bundle, found, err := decodeBundle(id, stored)
	switch {
	case err != nil:
		return nil, fmt.Errorf("reading bundle %s: %w", id, err)
	case found != id:
		return nil, fmt.Errorf("bundle %s is %s", id, found)
	}
	return bundle, nil
}

func decodeBundle(id string, stored []byte) (bundle []byte, found string, err error) {
	if found, err = bundleID(id, stored); err != nil || strings.HasPrefix(id, "b0-") {
		return stored, found, err
	}
	// The order of keys is SwingSet's (swing-store, src/bundleStore.js, getBundle).
	bundle, err = json.Marshal(struct {
		ModuleFormat string `json:"moduleFormat"`
		SHA512       string `json:"endoZipBase64Sha512"`
		Zip          string `json:"endoZipBase64"`
	}{"endoZipBase64", strings.TrimPrefix(id, "b1-"), base64.StdEncoding.EncodeToString(stored)})
	return bundle, found, err
}

// ParseBundle returns the ID of a bundle, an object in JSON, after checking what it hashes.
func ParseBundle(bundle []byte) (id string, err error) {
	id, _, err = parseBundle(bundle)
	if err != nil {
		return "", fmt.Errorf("reading a bundle: %w", err)
	}
	return id, nil
}

// parseBundle returns also what the store keeps of a bundle: a string or bytes.
func parseBundle(bundle []byte) (id string, stored any, err error) {
	var b struct {
		ModuleFormat string `json:"moduleFormat"`
		SHA512       string `json:"endoZipBase64Sha512"`
		Zip          string `json:"endoZipBase64"`
	}
	if err := json.Unmarshal(bundle, &b); err != nil {
		return "", nil, err
	}
	switch b.ModuleFormat {
	case "nestedEvaluate":
		id, err = bundleID("b0-", bundle)
		return id, string(bundle), err
	case "endoZipBase64":
		z, err := base64.StdEncoding.DecodeString(b.Zip)
		if err != nil {
			return "", nil, err
		}
		if id, err = bundleID("b1-", z); err != nil {
			return "", nil, err
		}
		if want := "b1-" + b.SHA512; id != want {
			return "", nil, fmt.Errorf("its ID should be %s, and is %s", want, id)
		}
		return id, z, nil
	}
	return "", nil, fmt.Errorf("its moduleFormat is %q, expected nestedEvaluate or endoZipBase64", b.ModuleFormat)
}

// bundleID computes the ID of what the store keeps of a bundle. Of id only the kind counts.
func bundleID(id string, stored []byte) (string, error) {
	switch {
	case strings.HasPrefix(id, "b0-"):
		s := sha256.Sum256(stored)
		return "b0-" + hex.EncodeToString(s[:]), nil
	case strings.HasPrefix(id, "b1-"):
		return zipID(stored)
	}
	return "", errors.New("its ID begins neither with b0- nor with b1-")
}

// zipID computes the ID of an Endo bundle: the SHA-512 of its compartment map, which has that of each module.
func zipID(b []byte) (string, error) {
	z, err := zip.NewReader(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		return "", err
	}
	const limit = 1 << 28 // bytes that a file in a bundle may have
	read := func(name string) ([]byte, error) {
		f, err := z.Open(name)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		content, err := io.ReadAll(io.LimitReader(f, limit+1))
		if err == nil && len(content) > limit {
			err = fmt.Errorf("%s has more than %d bytes", name, limit)
		}
		return content, err
	}
	hash := func(content []byte) string {
		s := sha512.Sum512(content)
		return hex.EncodeToString(s[:])
	}
	text, err := read(compartmentMap)
	if err != nil {
		return "", err
	}
	var m struct {
		Compartments map[string]struct {
			Location string `json:"location"`
			Modules  map[string]struct {
				Location string `json:"location"`
				SHA512   string `json:"sha512"`
			} `json:"modules"`
		} `json:"compartments"`
	}
	if err := json.Unmarshal(text, &m); err != nil {
		return "", fmt.Errorf("%s: %w", compartmentMap, err)
	}
	for _, c := range m.Compartments {
		for _, module := range c.Modules {
			if module.SHA512 == "" {
				continue // a link to a module of another compartment
			}
			name := c.Location + "/" + module.Location
			content, err := read(name)
			if err != nil {
				return "", err
			}
			if found := hash(content); found != module.SHA512 {
				return "", fmt.Errorf("%s should have the SHA-512 %s, and has %s", name, module.SHA512, found)
			}
		}
	}
	return "b1-" + hash(text), nil
}
