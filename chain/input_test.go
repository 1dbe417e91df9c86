package chain

import (
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/enginery/enginery/internal/keys"
)

func TestParseInput(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ line, err string }{
		{`{"sender":"a","seq":1,"type":"deliver","vat":"v","method":"m"}`, ""},
		{`{"type":"block","height":3}`, ""},
		{`{"type":"block","sender":"a"}`, `"sender", which is not one of its fields: height`},
		{`[]`, "not an object in JSON"},
		{`{"sender":"a","seq":1,"type":"deliver","vat":"v"}`, "has no method"},
		{`{"sender":"a","seq":1,"type":"deliver","vat":"v","method":"m","bundle":"b1-"}`, `"bundle", which is not one of its fields: vat, method, args, ack`},
		{`{"sender":"a","seq":1,"type":"deliver","vat":"v","method":"m","arg":[]}`, `unknown field "arg"`},
		{`{"sender":"a","seq":1,"type":"pause"}`, ""},
		{`{"sender":"a","seq":1,"type":"pause","vat":""}`, "has an empty vat"},
		{`{"sender":"a","seq":1,"type":"pause","vat":null}`, "has an empty vat"},
		{`{"sender":"a","seq":1,"type":"rollout","steps":[{"vat":"v","bundle":{"file":"v.json"}}]}`, "a step has a bundle that is JSON's object, expected its ID"},
		{`{"sender":"a.b","seq":1,"type":"abort"}`, `sender is "a.b"`},
		{`{"sender":"a","seq":0,"type":"abort"}`, "expected 1 or more"},
		{`{"sender":"a","seq":1,"type":"upgrad"}`, `expected one of abort, adopt`},
	} {
		_, err := ParseInput([]byte(test.line))
		if err == nil && test.err != "" || err != nil && (test.err == "" || !strings.Contains(err.Error(), test.err)) {
			t.Errorf("%s: %v, expected %q", test.line, err, test.err)
		}
	}
}

// What is fed is what is kept: a line that is read is read again from what is kept of it.
func FuzzParseInput(f *testing.F) {
	f.Add([]byte(`{"sender":"a","seq":1,"type":"deliver","vat":"v","method":"m","args":[{"@vat":"x"}, 1e2]}`))
	f.Add([]byte(`{"sender":"a","seq":1,"type":"rollout","steps":[{"vat":"v1","after":["v2"]}]}`))
	f.Fuzz(func(t *testing.T, line []byte) {
		in, err := ParseInput(line)
		if err != nil || in.Type == BlockType {
			return
		}
		again, err := ParseInput(in.Raw)
		if err != nil || string(again.Raw) != string(in.Raw) || strings.Contains(string(in.Raw), "\n") {
			t.Errorf("%q was kept as %q, which is %v, %v", line, in.Raw, again, err)
		}
	})
}

func TestCapData(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ value, body, err string }{
		{`["a","!b","$0","",null,true,1.50,12345678901234567890]`, `#["a","!!b","!$0","",null,true,1.50,12345678901234567890]`, ""},
		{`[{"@vat":"bob"},{"@vat":"alice"},{"@vat":"bob"}]`, `#["$0.Alleged: root","$1.Alleged: root","$0.Alleged: root"]`, ""},
		{`{"n":{"@bigint":"7"},"m":{"@bigint":"-7"},"u":{"@undefined":true},"<":"&"}`, `#{"<":"!&","m":"-7","n":"+7","u":"#undefined"}`, ""},
		{`{"@bigint":"07"}`, "", "expected digits"},
		{`{"@vat":"nobody"}`, "", "nobody"},
		{`{"@vat":"bob","more":1}`, `#{"@vat":"bob","more":1}`, ""},
	} {
		data, err := capData(json.RawMessage(test.value), func(name string) (string, error) {
			if name == "nobody" {
				return "", refuse("there is %s", name)
			}
			return "id of " + name, nil
		})
		if err == nil && data.Body != test.body || err != nil && (test.err == "" || !strings.Contains(err.Error(), test.err)) {
			t.Errorf("%s is %s, %v; expected %s, %q", test.value, data.Body, err, test.body, test.err)
		}
	}
}

// docs/chain.md has the types of inputs, and their fields, that there are.
func TestDocumented(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../docs/chain.md")
	if err != nil {
		t.Fatal(err)
	}
	documented := make(map[string]string)
	word := regexp.MustCompile("`([A-Za-z]+)`")
	names := func(s string) (all []string) {
		for _, m := range word.FindAllStringSubmatch(s, -1) {
			all = append(all, m[1])
		}
		return all
	}
	_, inputs, _ := strings.Cut(string(text), "\n## Inputs\n")
	inputs, _, _ = strings.Cut(inputs, "\n## ")
	for _, line := range strings.Split(inputs, "\n") {
		cells := strings.Split(line, "|")
		if len(cells) < 4 || !strings.Contains(cells[1], "`") {
			continue
		}
		must, may, _ := strings.Cut(cells[2], ";")
		for _, kind := range names(cells[1]) {
			documented[kind] = fmt.Sprint(names(must), names(may))
		}
	}
	for _, kind := range keys.Union(fields, documented) {
		must, may, _ := strings.Cut(fields[kind], ";")
		if want := fmt.Sprint(strings.Fields(must), strings.Fields(may)); documented[kind] != want {
			t.Errorf("%s: documented are %s, and there are %s", kind, documented[kind], want)
		}
	}
}
