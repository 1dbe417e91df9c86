package xsnap

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"reflect"
	"strings"
	"testing"
	"testing/iotest"
	"unicode/utf8"
)

func TestReadNetstring(t *testing.T) {
	const limit = 12
	for _, c := range []struct {
		in, want string
		err      error  // this one, or
		reason   string // part of a ProtocolError
		size     int64  // of a SizeError
	}{
		{in: "0:,"},
		{in: "1:R,", want: "R"},
		{in: "3::,\x00,1:x,", want: ":,\x00"},
		{in: "012:twelve bytes,", want: "twelve bytes"}, // as C's scanf reads it
		{in: "", err: io.EOF},
		{in: "1", err: io.ErrUnexpectedEOF},
		{in: "1:", err: io.ErrUnexpectedEOF},
		{in: "1:R", err: io.ErrUnexpectedEOF},
		{in: "1:R.", reason: "'.' at the end"},
		{in: "1:RR,", reason: "'R' at the end"},
		{in: ":,", reason: "':' in the length"},
		{in: "-1:,", reason: "'-' in the length"},
		{in: " 1:R,", reason: "' ' in the length"},
		{in: "1 :R,", reason: "' ' in the length"},
		{in: "\x80:", reason: `'\u0080' in the length`},
		{in: "13:thirteen byte,", size: 13},
		{in: "999999999:", size: 999999999},
		{in: "0000000001:R,", reason: "in the length"},
		{in: "18446744073709551617:R,", reason: "in the length"},
	} {
		for name, r := range map[string]io.Reader{
			"at once":      strings.NewReader(c.in),
			"byte by byte": iotest.OneByteReader(strings.NewReader(c.in)),
		} {
			got, err := readNetstring(bufio.NewReader(r), limit)
			var protocol *ProtocolError
			var size *SizeError
			switch {
			case c.size != 0:
				if !errors.As(err, &size) || *size != (SizeError{Size: c.size, Limit: limit}) {
					t.Errorf("%q %s: %v, want an error about %d bytes", c.in, name, err, c.size)
				}
			case c.err != nil:
				if err != c.err {
					t.Errorf("%q %s: %v, want %v", c.in, name, err, c.err)
				}
			case c.reason != "":
				if !errors.As(err, &protocol) || !strings.Contains(protocol.Reason, c.reason) {
					t.Errorf("%q %s: %v, want %q", c.in, name, err, c.reason)
				}
			case err != nil || string(got) != c.want:
				t.Errorf("%q %s: %q, %v, want %q", c.in, name, got, err, c.want)
			}
		}
	}
	failure := errors.New("failure")
	if _, err := readNetstring(bufio.NewReader(iotest.ErrReader(failure)), limit); err != failure {
		t.Errorf("%v, want the reader's error", err)
	}
}

// FuzzNetstring checks that what is written is read back, and that reading never takes more than a message.
func FuzzNetstring(f *testing.F) {
	for _, seed := range []string{"", "1:R,", "3:abc,rest", "x", "999999999:", "2:a,", "00:,"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var b bytes.Buffer
		if err := (&netstringWriter{w: &b}).write([]byte{'.'}, data); err != nil {
			t.Fatal(err)
		}
		b.WriteString("next")
		r := bufio.NewReader(&b)
		if got, err := readNetstring(r, len(data)+1); err != nil || got[0] != '.' || !bytes.Equal(got[1:], data) {
			t.Fatalf("%q is read as %q, %v", data, got, err)
		}
		if rest, _ := io.ReadAll(r); string(rest) != "next" {
			t.Fatalf("%q follows", rest)
		}

		const limit = 1000
		r = bufio.NewReader(bytes.NewReader(data))
		got, err := readNetstring(r, limit)
		rest, _ := io.ReadAll(r)
		if err == nil && (len(got) > limit || !bytes.HasSuffix(data, append(append([]byte{}, got...), append([]byte{','}, rest...)...))) {
			t.Fatalf("%q is read as %q, then %q", data, got, rest)
		}
	})
}

func TestParseReply(t *testing.T) {
	for _, c := range []struct {
		in   string
		want Reply
		ok   bool
	}{
		{"", Reply{Payload: []byte{}}, true},
		{"payload", Reply{Payload: []byte("payload")}, true},
		{
			`{"currentHeapCount":27312,"compute":1850,"allocate":42074144,"timestamps":[1700000000.000001,1700000000.5]}` + "\x01payload\x01",
			Reply{[]byte("payload\x01"), Meter{"xs-meter-1", 1850, 42074144, 27312, []float64{1700000000.000001, 1700000000.5}}}, true,
		},
		{`{"compute":4294967295,"allocate":1}` + "\x01", Reply{[]byte{}, Meter{Type: "xs-meter-1", Compute: 4294967295, Allocate: 1}}, true}, // xsnap-native before d2c13faf
		{`{"timestamps":[]}` + "\x01", Reply{[]byte{}, Meter{Type: "xs-meter-1", Timestamps: []float64{}}}, true},                            // too many to show
		{"\x01", Reply{}, false},
		{"{\x01", Reply{}, false},
		{"1\x01", Reply{}, false},
		{`{"compute":"1"}` + "\x01", Reply{}, false},
		{`{"compute":1.5}` + "\x01", Reply{}, false},
		{`{"compute":1e999}` + "\x01", Reply{}, false},
	} {
		got, err := parseReply([]byte(c.in), "xs-meter-1")
		var protocol *ProtocolError
		if (err == nil) != c.ok || !c.ok && !errors.As(err, &protocol) || c.ok && !reflect.DeepEqual(got, c.want) {
			t.Errorf("%q: %+v, %v, want %+v", c.in, got, err, c.want)
		}
	}
}

// FuzzReply checks that a reply is refused or has the payload that follows the first \x01.
func FuzzReply(f *testing.F) {
	for _, seed := range []string{"", "payload", "{}\x01payload", `{"compute":1,"timestamps":[1.5]}` + "\x01", "null\x01", "[]\x01"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		reply, err := parseReply(data, "")
		if err != nil {
			return
		}
		_, payload, ok := bytes.Cut(data, []byte{1})
		if !ok {
			payload = data
		}
		if !bytes.Equal(reply.Payload, payload) {
			t.Fatalf("%q has the payload %q", data, reply.Payload)
		}
	})
}

func TestGuestText(t *testing.T) {
	for in, want := range map[string]string{
		"":                                   "",
		"plain ü 😀":                          "plain ü 😀",
		"\xed\xa0\xbd\xed\xb8\x80":           "😀", // U+D83D U+DE00
		"a\xc0\x80ü\xed\xaf\xbf\xed\xbf\xbf": "a\x00ü\U0010ffff",
		"\xed\xb8\x80\xed\xa0\xbd":           "\ufffd\ufffd", // the wrong way round
		"\xed\xa0\xbd":                       "\ufffd",
		"\xed\xa0\xbdx":                      "\ufffdx",
		"\xed\xa0":                           "\ufffd\ufffd",
		"\xed\x9f\xbf\xff\xc0":               "\ud7ff\ufffd\ufffd",
	} {
		if got := guestText([]byte(in)); got != want {
			t.Errorf("%q is read as %q, want %q", in, got, want)
		}
	}
}

// FuzzGuestText checks that what comes out is text, and that text is left alone.
func FuzzGuestText(f *testing.F) {
	for _, seed := range []string{"text ü 😀", "\xed\xa0\xbd\xed\xb8\x80\xc0\x80", "\xed\xa0\xff"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		got := guestText(data)
		if !utf8.ValidString(got) || utf8.Valid(data) && got != string(data) {
			t.Fatalf("%q is read as %q", data, got)
		}
	})
}

func TestTail(t *testing.T) {
	var all bytes.Buffer
	tail := tail{to: &all}
	for range 100 {
		tail.Write([]byte(strings.Repeat("x", 99)))
		tail.Write([]byte("\n"))
	}
	if got := tail.String(); len(got) != tailSize-1 || all.Len() != 10_000 {
		t.Errorf("%d bytes are kept and %d passed on, want %d and 10000", len(got), all.Len(), tailSize-1)
	}
}
