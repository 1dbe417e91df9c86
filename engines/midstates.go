package engines

import (
	"bytes"
	"crypto/sha256"
	"encoding"
	"encoding/hex"
	"hash"
	"io"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
)

// The launcher has a few milliseconds, most of which go into one SHA-256, and that is one long chain. Beside a worker lie the states of the
// hash at some points of it, so that several processors can each go over a part. They need not be trusted: every part must lead from one state
// to the next, the first begins where all do, and the last ends with the digest.
const (
	midstatesSuffix = ".midstates"
	stride          = 512 << 10 // bytes of the file between two states
)

// state returns the state of a SHA-256, which is always of the same length.
func state(h hash.Hash) ([]byte, error) { return h.(encoding.BinaryMarshaler).MarshalBinary() }

// writeMidstates writes the states of a file beside it.
func writeMidstates(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	var states []byte
	h := sha256.New()
	for end := int64(stride); end < info.Size(); end += stride {
		if _, err := io.CopyN(h, f, stride); err != nil {
			return err
		}
		s, err := state(h)
		if err != nil {
			return err
		}
		states = append(states, s...)
	}
	return os.WriteFile(path+midstatesSuffix, states, 0o444)
}

// verified reports whether content is the file, by its midstates. That it is not may be their fault.
func (f File) verified(content io.ReaderAt, size int64) bool {
	states, err := os.ReadFile(f.Path + midstatesSuffix)
	if err != nil || size != f.Size || size == 0 {
		return false
	}
	parts := int((size + stride - 1) / stride)
	length := 0
	if parts > 1 {
		length = len(states) / (parts - 1)
	}
	if len(states) != length*(parts-1) {
		return false
	}
	at := func(i int) []byte { return states[length*(i-1) : length*i] } // before part i
	var next atomic.Int64
	var bad atomic.Bool
	work := func() {
		buffer := make([]byte, 32<<10)
		for i := int(next.Add(1)) - 1; i < parts && !bad.Load(); i = int(next.Add(1)) - 1 {
			begin := int64(i) * stride
			h := sha256.New()
			if i > 0 && h.(encoding.BinaryUnmarshaler).UnmarshalBinary(at(i)) != nil {
				bad.Store(true)
				return
			}
			part := io.NewSectionReader(content, begin, min(stride, size-begin))
			if n, err := io.CopyBuffer(struct{ io.Writer }{h}, struct{ io.Reader }{part}, buffer); err != nil || n != part.Size() {
				bad.Store(true)
				return
			}
			if i == parts-1 {
				if hex.EncodeToString(h.Sum(nil)) != f.SHA256 {
					bad.Store(true)
				}
			} else if s, err := state(h); err != nil || !bytes.Equal(s, at(i+1)) {
				bad.Store(true)
			}
		}
	}
	var others sync.WaitGroup
	for range min(parts, runtime.GOMAXPROCS(0)) - 1 {
		others.Go(work)
	}
	work()
	others.Wait()
	return !bad.Load()
}
