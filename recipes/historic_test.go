package recipes

import (
	"reflect"
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
	const hash = "19ce7c6217b4bb8b38ca4a40727682d648bbd2c22f1f4c20a830810eb7e14ce4"
	const head, engine, failing = `like = "agoric-upgrade-16"
`, `[[engine]]
pin = "6d7f33f8-65d8e660"
pinned = "2021-08-28"
xs = "11.0.0"
protocol = 1
host-callbacks = 7
snapshot-version = "11.0.1"
snapshot-signature = "xsnap 0"
fresh = { snapshot = "` + hash + `", size = 1 }
`, `[[failing]]
pin = "7276ac7b-95af5513"
pinned = "2021-11-10"
cause = "no member"
`
	all, like, err := parseHistoric("e.toml", []byte(head+failing+engine))
	want := []Historic{{
		Pin: "6d7f33f8-65d8e660", Pinned: "2021-08-28", fresh: map[string]Observation{"fresh": {Snapshot: hash, Size: 1}},
		engine: Engine{XSVersion: "11.0.0", Protocol: 1, HostCallbacks: 7, SnapshotVersion: "11.0.1", SnapshotSignature: "xsnap 0"},
	}, {Pin: "7276ac7b-95af5513", Pinned: "2021-11-10", Cause: "no member"}}
	if err != nil || like != "agoric-upgrade-16" || !reflect.DeepEqual(all, want) {
		t.Fatalf("got %+v, like %q, error %v; want %+v", all, like, err, want)
	}
	for _, test := range []struct{ old, new, want string }{
		{"-16", "-99", `e.toml:1: no version ID is called "agoric-upgrade-99"`},
		{"[[engine]]", "unlike = 1\n[[engine]]", "e.toml:2:1: unknown key unlike"},
		{"protocol = 1\n", "protocol = 1\nprotocols = 1\n", "e.toml:7:1: unknown key engine.protocols"},
		{"[[failing]]", engine + "[[failing]]", "e.toml:12: pin 6d7f33f8-65d8e660 stands here twice"},
		{"7276ac7b-95af5513", "6d7f33f8-65d8e660", "e.toml:12: pin 6d7f33f8-65d8e660 stands here twice"},
		{"6d7f33f8", "0d7f33f8", `e.toml:3: there is no pin "0d7f33f8-65d8e660"`},
		{"2021-08-28", "2021-08-32", `e.toml:4: pinned "2021-08-32" is not a day`},
		{`xs = "11.0.0"`, `xs = "11.0"`, "e.toml:5: xs must be a version"},
		{"protocol = 1\n", "", "e.toml:2: protocol must be a level"},
		{"host-callbacks = 7", "host-callbacks = 0", "e.toml:7: host-callbacks must be a number"},
		{`"11.0.1"`, `"11"`, "e.toml:8: snapshot-version must be a version"},
		{`"xsnap 0"`, `""`, "e.toml:9: snapshot-signature must be a text"},
		{hash, "19ce", "e.toml:10: engine.0.fresh is a snapshot: want its snapshot (64 lower-case hexadecimal digits) and size"},
		{", size = 1", "", "e.toml:10: engine.0.fresh is a snapshot"},
		{"fresh =", "# fresh =", "e.toml:2: engine.0.fresh expects nothing"},
		{"cause = \"no member\"\n", "", "e.toml:11: the cause must be given"},
	} {
		data := strings.Replace(head+engine+failing, test.old, test.new, 1)
		if _, _, err := parseHistoric("e.toml", []byte(data)); err == nil || !strings.HasPrefix(err.Error(), test.want) {
			t.Errorf("%q in place of %q: got %v, want %q", test.new, test.old, err, test.want)
		}
	}
}
