package toolchain

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/enginery/enginery/internal/cas"
	"github.com/enginery/enginery/internal/progress"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Annotations of the image, and labels of its config.
const (
	annotationRoot     = "io.github.enginery.toolchain.root"     // cas.Digest of the root file system's tree
	annotationPackages = "io.github.enginery.toolchain.packages" // cas.Digest of the list of packages, as JSON
)

// Image returns the toolchain as an OCI image: its root file system as one uncompressed layer, so that its digest depends on
// no compressor. The image reads the root file system in the store whenever it is read.
func Image(ctx context.Context, store *cas.Store, t *Toolchain, opts Options) (v1.Image, error) {
	root, err := Ensure(ctx, store, t, opts)
	if err != nil {
		return nil, err
	}
	task := progress.Start(ctx, "make image of toolchain "+t.Name, 0)
	img, err := t.image(root)
	if err == nil {
		var got v1.Hash
		if got, err = img.Digest(); err == nil && got.String() != t.Image.String() {
			err = fmt.Errorf("the image of toolchain %s is %s, and its lock says %s: the lock has been changed, or was made by another version of this program",
				t.Name, got, t.Image)
		}
	}
	task.Done(err)
	if err != nil {
		return nil, err
	}
	return img, nil
}

// image returns the image of the tree t.Root, which is unpacked in dir.
func (t *Toolchain) image(dir string) (v1.Image, error) {
	h := sha256.New()
	size, err := writeLayer(h, dir)
	if err != nil {
		return nil, fmt.Errorf("making the layer of toolchain %s: %w", t.Name, err)
	}
	layer := &layer{dir: dir, size: size, hash: v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(h.Sum(nil))}}
	layerDigest := digest.Digest(layer.hash.String())
	packages, err := json.Marshal(t.Packages)
	if err != nil {
		return nil, err
	}
	annotations := map[string]string{
		ocispec.AnnotationTitle: t.Name,
		annotationRoot:          t.Root.String(),
		annotationPackages:      cas.OfBytes(packages).String(),
	}
	os, arch, _ := strings.Cut(t.Host, "/")
	img := &image{layer: layer}
	img.config, err = json.Marshal(ocispec.Image{
		Platform: ocispec.Platform{OS: os, Architecture: arch},
		Config:   ocispec.ImageConfig{Env: []string{"PATH=" + t.Path}, Labels: annotations},
		RootFS:   ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{layerDigest}},
	})
	if err != nil {
		return nil, err
	}
	img.manifest, err = json.Marshal(ocispec.Manifest{
		Versioned:   specs.Versioned{SchemaVersion: 2},
		MediaType:   ocispec.MediaTypeImageManifest,
		Config:      ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: digest.FromBytes(img.config), Size: int64(len(img.config))},
		Layers:      []ocispec.Descriptor{{MediaType: ocispec.MediaTypeImageLayer, Digest: layerDigest, Size: size}},
		Annotations: annotations,
	})
	if err != nil {
		return nil, err
	}
	return partial.CompressedToImage(img)
}

// image is what partial.CompressedToImage makes a v1.Image of.
type image struct {
	manifest, config []byte
	layer            *layer
}

func (i *image) RawConfigFile() ([]byte, error)      { return i.config, nil }
func (i *image) RawManifest() ([]byte, error)        { return i.manifest, nil }
func (i *image) MediaType() (types.MediaType, error) { return types.OCIManifestSchema1, nil }
func (i *image) LayerByDigest(h v1.Hash) (partial.CompressedLayer, error) {
	if h != i.layer.hash {
		return nil, fmt.Errorf("the image has no layer %s", h)
	}
	return i.layer, nil
}

// layer is the tree in dir as an uncompressed layer.
type layer struct {
	dir  string
	hash v1.Hash
	size int64
}

func (l *layer) Digest() (v1.Hash, error)            { return l.hash, nil }
func (l *layer) Size() (int64, error)                { return l.size, nil }
func (l *layer) MediaType() (types.MediaType, error) { return types.OCIUncompressedLayer, nil }
func (l *layer) Compressed() (io.ReadCloser, error) {
	r, w := io.Pipe()
	go func() {
		_, err := writeLayer(w, l.dir)
		w.CloseWithError(err)
	}()
	return r, nil
}

// writeLayer writes the tree in dir as a tar archive: entries in the order of their paths, owned by root, with the
// same times and modes whatever those in dir are.
func writeLayer(to io.Writer, dir string) (int64, error) {
	count := &counter{w: to}
	w := tar.NewWriter(count)
	err := filepath.WalkDir(dir, func(file string, d fs.DirEntry, err error) error {
		if err != nil || file == dir {
			return err
		}
		rel, err := filepath.Rel(dir, file)
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		h := &tar.Header{Name: filepath.ToSlash(rel), Mode: 0o755, ModTime: cas.Epoch}
		switch d.Type() {
		case fs.ModeDir:
			h.Typeflag = tar.TypeDir
			h.Name += "/"
		case fs.ModeSymlink:
			h.Typeflag = tar.TypeSymlink
			h.Mode = 0o777
			if h.Linkname, err = os.Readlink(file); err != nil {
				return err
			}
		case 0:
			h.Typeflag = tar.TypeReg
			h.Size = info.Size()
			if info.Mode()&0o100 == 0 {
				h.Mode = 0o644
			}
		default:
			return fmt.Errorf("%s is neither a file, a directory nor a symbolic link", file)
		}
		if err := w.WriteHeader(h); err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
		if d.Type() != 0 {
			return nil
		}
		f, err := os.Open(file)
		if err != nil {
			return err
		}
		defer f.Close()
		buf := buffers.Get().(*[]byte)
		defer buffers.Put(buf)
		_, err = io.CopyBuffer(struct{ io.Writer }{w}, struct{ io.Reader }{f}, *buf)
		return err
	})
	if err == nil {
		err = w.Close()
	}
	return count.n, err
}

type counter struct {
	w io.Writer
	n int64
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}

// unpackImage writes the root file system in the toolchain's image, which it takes from an OCI layout or registry, to dir.
func unpackImage(ctx context.Context, t *Toolchain, from, dir string) error {
	h, err := v1.NewHash(t.Image.String())
	if err != nil {
		return err
	}
	var raw []byte
	source, err := openSource(ctx, from)
	if err == nil {
		raw, err = source.manifest(h)
	}
	if err != nil && ctx.Err() == nil {
		return &UnavailableError{fmt.Errorf("reading manifest %s: %w; name an OCI layout or a registry repository that has it "+
			"(go tool mage toolchain:image makes one), or leave --toolchain-from and ENGINERY_TOOLCHAIN_FROM away where apt is at hand", h, err)}
	} else if err != nil {
		return err
	}
	if found := digest.FromBytes(raw); found != t.Image {
		return fmt.Errorf("manifest %s is damaged: what is there has the digest %s", h, found)
	}
	var m v1.Manifest
	if err := json.Unmarshal(raw, &m); err != nil {
		return fmt.Errorf("reading manifest %s: %w", h, err)
	}
	if len(m.Layers) != 1 || m.Layers[0].MediaType != types.OCIUncompressedLayer {
		return fmt.Errorf("manifest %s is not a toolchain's: it does not have one layer of type %s", h, types.OCIUncompressedLayer)
	}
	config, err := source.blob(m.Config)
	if err != nil {
		return fmt.Errorf("reading config %s: %w", m.Config.Digest, err)
	}
	_, err = io.Copy(io.Discard, config)
	config.Close()
	if err != nil {
		return fmt.Errorf("reading config %s: %w", m.Config.Digest, err)
	}
	content, err := source.blob(m.Layers[0])
	if err != nil {
		return fmt.Errorf("reading layer %s: %w", m.Layers[0].Digest, err)
	}
	defer content.Close()
	task := progress.Start(ctx, "unpack toolchain "+t.Name+" from "+from, m.Layers[0].Size)
	tree := newTree(dir)
	err = tree.add(ctx, from, task.Reader(content), func(h *tar.Header) (string, error) { return cleanName(h.Name) })
	if derr := drain(content); derr != nil { // says more than the archive reader's error
		err = derr
	}
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	if err != nil {
		err = fmt.Errorf("reading layer %s: %w", m.Layers[0].Digest, err)
	} else {
		err = tree.finish()
	}
	task.Done(err)
	return err
}

func drain(r io.Reader) error {
	_, err := io.Copy(io.Discard, r)
	return err
}

// source is where images come from.
type source struct {
	manifest func(v1.Hash) ([]byte, error)
	open     func(v1.Hash) (io.ReadCloser, error)
}

// blob opens a blob. Reading it to its end fails if it is not what d says.
func (s *source) blob(d v1.Descriptor) (io.ReadCloser, error) {
	r, err := s.open(d.Digest)
	if err != nil {
		return nil, err
	}
	return &verifier{ReadCloser: r, want: d, hash: sha256.New()}, nil
}

func openSource(ctx context.Context, from string) (*source, error) {
	if fi, err := os.Stat(from); err == nil && fi.IsDir() {
		l := layout.Path(from)
		return &source{manifest: l.Bytes, open: l.Blob}, nil
	} else if strings.HasPrefix(from, "/") || strings.HasPrefix(from, ".") {
		return nil, fmt.Errorf("%s is not an OCI layout: %w", from, cmpErr(err, fs.ErrNotExist))
	}
	ref, err := name.ParseReference(from)
	if err != nil {
		return nil, fmt.Errorf("%q is neither the directory of an OCI layout nor a reference to a registry: %w", from, err)
	}
	opts := []remote.Option{remote.WithContext(ctx), remote.WithAuthFromKeychain(authn.DefaultKeychain)}
	at := func(h v1.Hash) name.Digest { return ref.Context().Digest(h.String()) }
	return &source{
		manifest: func(h v1.Hash) ([]byte, error) {
			desc, err := remote.Get(at(h), opts...)
			if err != nil {
				return nil, err
			}
			return desc.Manifest, nil
		},
		open: func(h v1.Hash) (io.ReadCloser, error) {
			l, err := remote.Layer(at(h), opts...)
			if err != nil {
				return nil, err
			}
			return l.Compressed()
		},
	}, nil
}

func cmpErr(err, otherwise error) error {
	if err != nil {
		return err
	}
	return otherwise
}

// verifier fails at the end of what it reads if that is not what a descriptor says.
type verifier struct {
	io.ReadCloser
	want v1.Descriptor
	hash hash.Hash
	n    int64
}

func (v *verifier) Read(p []byte) (int, error) {
	n, err := v.ReadCloser.Read(p)
	v.n += int64(n)
	v.hash.Write(p[:n])
	if err == io.EOF || err == nil && v.n > v.want.Size || errors.Is(err, io.ErrUnexpectedEOF) {
		if found := hex.EncodeToString(v.hash.Sum(nil)); v.n != v.want.Size || found != v.want.Digest.Hex {
			return n, fmt.Errorf("it is damaged: expected %d bytes with the SHA-256 %s, found %d bytes with %s",
				v.want.Size, v.want.Digest.Hex, v.n, found)
		}
	}
	return n, err
}
