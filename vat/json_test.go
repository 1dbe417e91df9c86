package vat

import (
	"bytes"
	"encoding/json"
	"os/exec"
	"strings"
	"testing"

	"github.com/enginery/enginery/internal/swingsettest"
	"github.com/enginery/enginery/swingstore"
)

var texts = []string{
	`null`, ` [ 1 , true,false , "a" ] `, `{}`, `[]`, `{"b":1,"a":{"d":[],"c":{}}}`,
	`{"b":1,"10":2,"9":3,"a":4,"b":5,"01":6,"4294967295":7,"4294967294":8,"-1":9,"":10,"1.5":1}`,
	`{"a":1,"a":{"2":1,"1":2},"a":3}`, `{"__proto__":1,"a":2}`,
	`[0,-0,0.0,1e0,1E5,1e21,123456789012345678901234567890,1e-6,1e-7,1.5e-10,-1e-7,0.1,1e400,-1e400,1e-400,9007199254740993,5e-324,1.7976931348623157e308,100000000000000000000,0.000001234]`,
	`"\u0000\u001f\b\f\n\r\t\/\"\\\u0041\u00e9\u2028\u2029\u007f<>&"`,
	"\"\u2028\u2029\x7f<>&é😀\"", `"\ud83d\ude00 \ud83d \ude00 \ud83d\ud83d\ude00 \ud83dx \uD83D\n"`,
	"\"a\xffb\xe2\x82c\xed\xa0\x80d\xf0\x9f\x98e\xc0\x80\xf4\x90\x80\x80\xe2\"", strings.Repeat("[", 1000) + strings.Repeat("]", 1000),
	`[`, `]`, `{"a"}`, `{"a":}`, `{,}`, `{"a":1,}`, `[1,]`, `[,]`, `01`, `1.`, `.5`, `-`, `+1`, `1e`, `1e+`, `nul`, `nulll`, `"`, `"\x"`, `"\u12"`, `"\u12g4"`, "\"\n\"", "\"\t\"", `1 2`, ``, ` `,
	`NaN`, `'a'`, "[1\u00a0]", `{"a":1 "b":2}`, `{1:2}`, "\"\\",
}

// What is written is what JavaScript writes.
func TestJSON(t *testing.T) {
	t.Parallel()
	var in bytes.Buffer
	e := json.NewEncoder(&in)
	for _, text := range texts {
		e.Encode([]byte(text)) // in base64, for what is not UTF-8
	}
	cmd := exec.CommandContext(t.Context(), "node", "-e", `
		const d = new TextDecoder();
		for (const line of require('fs').readFileSync(0, 'utf8').trim().split('\n')) {
			let out;
			try { out = JSON.stringify(JSON.parse(d.decode(Buffer.from(JSON.parse(line), 'base64')))); } catch { out = 'error'; }
			console.log(Buffer.from(out).toString('base64'));
		}`)
	cmd.Stdin, cmd.Stderr = &in, t.Output()
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSuffix(string(out), "\n"), "\n")
	if len(lines) != len(texts) {
		t.Fatalf("%d answers to %d texts", len(lines), len(texts))
	}
	for i, line := range lines {
		var want []byte
		if err := json.Unmarshal([]byte(`"`+line+`"`), &want); err != nil {
			t.Fatal(err)
		}
		got, err := normal(nil, []byte(texts[i]))
		if err != nil {
			got = []byte("error")
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%q became %q (%v), in JavaScript %q", texts[i], got, err, want)
		}
	}
}

// What a real kernel wrote stays as it is.
func TestJSONOfRealStore(t *testing.T) {
	t.Parallel()
	s, err := swingstore.Open(swingsettest.Store(t))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for _, vat := range []string{"v1", "v2", "v3", "v4", "v5", "v6", "v8", "v9"} {
		spans, err := s.Spans(t.Context(), vat)
		if err != nil {
			t.Fatal(err)
		}
		for _, span := range spans {
			for item, err := range s.Items(t.Context(), span) {
				if err != nil {
					t.Fatal(err)
				}
				if got, err := normal(nil, item.Text); err != nil || !bytes.Equal(got, item.Text) {
					t.Fatalf("item %d of %s became %s, %v; expected %s", item.Position, vat, got, err, item.Text)
				}
			}
		}
	}
}

func FuzzJSON(f *testing.F) {
	for _, text := range texts {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		once, err := normal(nil, text)
		if err != nil {
			return
		}
		if !json.Valid(once) {
			t.Fatalf("%q became %q", text, once)
		}
		if twice, err := normal(nil, once); err != nil || !bytes.Equal(once, twice) {
			t.Fatalf("%q became %q, and then %q, %v", text, once, twice, err)
		}
	})
}
