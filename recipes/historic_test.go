package recipes

import (
	"strings"
	"testing"
)

func TestHistoricEngines(t *testing.T) {
	all, err := HistoricEngines()
	if err != nil {
		t.Fatal(err)
	}
	digests := make(map[string]string)
	for _, h := range all {
		r, err := LoadHistoric(h.Pin)
		if h.Cause != "" {
			if err == nil || !strings.Contains(err.Error(), h.Cause) {
				t.Errorf("%s: %v, want an error that says why it cannot be compiled", h.Pin, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", h.Pin, err)
			continue
		}
		if r.Bundles != nil || len(r.Golden[Release]) == 0 || r.Pin.Name != h.Pin {
			t.Errorf("%s: bundles %v, golden %v, pin %s", h.Pin, r.Bundles, r.Golden, r.Pin.Name)
		}
		digest := r.Digest().String()
		if other := digests[digest]; other != "" {
			t.Errorf("%s and %s have one digest", h.Pin, other)
		}
		digests[digest] = h.Pin
	}
	if len(digests) < 27 {
		t.Errorf("%d engines, want at least 27", len(digests))
	}
	if _, err := LoadHistoric("6d7f33f8"); err == nil || !strings.Contains(err.Error(), "6d7f33f8-65d8e660") {
		t.Errorf("an unknown engine: %v, want an error with those that there are", err)
	}
}

func TestHistoricFileIsStrict(t *testing.T) {
	const engine = `
[[engine]]
pin = "6d7f33f8-65d8e660"
pinned = "2021-08-28"
xs = "11.0.0"
protocol = 1
host-callbacks = 7
fresh = { snapshot = "aa", size = 1 }
`
	for _, test := range []struct{ data, want string }{
		{"like = \"agoric-upgrade-16\"\n" + engine, ""},
		{"like = \"agoric-upgrade-99\"\n", `e.toml:1: no version ID is called "agoric-upgrade-99"`},
		{"like = \"agoric-upgrade-16\"\nunlike = 1\n", "e.toml:2:1: unknown key unlike"},
		{"like = \"agoric-upgrade-16\"\n" + engine + engine, "e.toml:12: pin 6d7f33f8-65d8e660 stands here twice"},
		{"like = \"agoric-upgrade-16\"\n" + strings.Replace(engine, "6d7f33f8", "0d7f33f8", 1), "e.toml:4: "},
		{"like = \"agoric-upgrade-16\"\n" + strings.Replace(engine, "protocol = 1\n", "", 1), "e.toml:3: xs, protocol, host-callbacks and fresh"},
		{"like = \"agoric-upgrade-16\"\n[[failing]]\npin = \"6d7f33f8-65d8e660\"\n", "e.toml:2: the cause must be given"},
	} {
		_, _, err := parseHistoric("e.toml", []byte(test.data))
		got := ""
		if err != nil {
			got = err.Error()
		}
		if !strings.HasPrefix(got, test.want) || (test.want == "") != (err == nil) {
			t.Errorf("got %q, want %q", got, test.want)
		}
	}
}
