package xsnap

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"sync"
	"time"
	"unicode/utf16"
	"unicode/utf8"
)

// netstringWriter writes netstrings.
type netstringWriter struct {
	w   io.Writer
	buf []byte // of the last one
}

// largeBody is the size of a body that is not copied.
const largeBody = 64 << 10

// write writes prefix and body as one netstring, in one piece if it is small.
func (n *netstringWriter) write(prefix, body []byte) error {
	b := strconv.AppendInt(n.buf[:0], int64(len(prefix)+len(body)), 10)
	b = append(b, ':')
	b = append(b, prefix...)
	if len(body) > largeBody {
		if _, err := n.w.Write(b); err != nil {
			return err
		}
		if _, err := n.w.Write(body); err != nil {
			return err
		}
		b = b[:0]
	} else {
		b = append(b, body...)
	}
	n.buf = append(b, ',')
	_, err := n.w.Write(n.buf)
	return err
}

// What a worker reads and writes of a length: at most so many digits.
const (
	maxDigits  = 9
	maxMessage = 999_999_999
)

// readNetstring reads a netstring of at most limit bytes. The end of r before it is io.EOF, within it io.ErrUnexpectedEOF.
func readNetstring(r *bufio.Reader, limit int) ([]byte, error) {
	n, digits := 0, 0
	for {
		c, err := r.ReadByte()
		if err == io.EOF && digits > 0 {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return nil, err
		}
		if c == ':' && digits > 0 {
			break
		}
		if c < '0' || c > '9' || digits == maxDigits {
			return nil, &ProtocolError{fmt.Sprintf("%q in the length of a netstring", c)}
		}
		n = n*10 + int(c-'0')
		digits++
	}
	if n > limit {
		return nil, &SizeError{Size: int64(n), Limit: int64(limit)}
	}
	b := make([]byte, n+1)
	if _, err := io.ReadFull(r, b); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	if b[n] != ',' {
		return nil, &ProtocolError{fmt.Sprintf("%q at the end of a netstring", b[n])}
	}
	return b[:n], nil
}

// parseReply splits an answer into meter and payload. An answer without a meter is payload alone. Computrons are of type meterType.
func parseReply(message []byte, meterType string) (Reply, error) {
	meter, payload, ok := bytes.Cut(message, []byte{1})
	if !ok {
		return Reply{Payload: message}, nil
	}
	r := Reply{Payload: payload}
	if err := json.Unmarshal(meter, &r.Meter); err != nil {
		return Reply{}, &ProtocolError{fmt.Sprintf("the meter %.200q: %v", meter, err)}
	}
	r.Meter.Type = meterType
	return r, nil
}

// guestText reads text as XS has it in memory: UTF-8, but two bytes for U+0000, and two surrogates for a character beyond U+FFFF.
func guestText(b []byte) string {
	if utf8.Valid(b) {
		return string(b)
	}
	var units []uint16
	for len(b) > 0 {
		r, n := utf8.DecodeRune(b)
		switch {
		case bytes.HasPrefix(b, []byte{0xc0, 0x80}):
			units, n = append(units, 0), 2
		case len(b) >= 3 && b[0] == 0xed && b[1]&0xe0 == 0xa0 && b[2]&0xc0 == 0x80:
			units, n = append(units, 0xd000|uint16(b[1]&0x3f)<<6|uint16(b[2]&0x3f)), 3
		default:
			units = utf16.AppendRune(units, r)
		}
		b = b[n:]
	}
	return string(utf16.Decode(units))
}

// tail passes on what is written to it, and remembers the end.
type tail struct {
	to io.Writer

	mu  sync.Mutex
	end []byte
	n   int64 // bytes so far
}

const tailSize = 1 << 10

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	t.n += int64(len(p))
	t.end = append(t.end, p[max(0, len(p)-tailSize):]...)
	t.end = append(t.end[:0], t.end[max(0, len(t.end)-tailSize):]...)
	t.mu.Unlock()
	if t.to != nil {
		return t.to.Write(p)
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(bytes.TrimSpace(t.end))
}

func (t *tail) count() int64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.n
}

// line returns what is written after the first n bytes, at most the end of it, once it ends in a line feed, or after so long.
func (t *tail) line(n int64, patience time.Duration) string {
	for end := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		t.mu.Lock()
		text := t.end[len(t.end)-int(min(t.n-n, int64(len(t.end)))):]
		if bytes.HasSuffix(text, []byte{'\n'}) || time.Now().After(end) {
			s := string(bytes.TrimSuffix(text, []byte{'\n'}))
			t.mu.Unlock()
			return s
		}
		t.mu.Unlock()
	}
}
