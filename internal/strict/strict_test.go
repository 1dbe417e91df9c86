package strict

import (
	"fmt"
	"testing"
)

const doc = `# comment
name = "x"

[make]
goal = "release"
vars = [
  "A=1",
  "B=2",
]

[golden.release.fresh]
end = { snapshot = "abc", size = 1 }

[[source]]
npm = "one"

[[source]]
npm = "two"
[source.git]
url = "u"
`

func TestLine(t *testing.T) {
	for key, want := range map[string]int{
		"name":                            2,
		"make":                            4,
		"make.goal":                       5,
		"make.absent":                     4,
		"make.vars.1":                     8,
		"golden.release.fresh.end.size":   12,
		"golden.release.fresh.other.size": 11,
		"golden.debug.fresh":              11,
		"source.0.npm":                    15,
		"source.1.npm":                    18,
		"source.1.git.url":                20,
		"absent":                          0,
	} {
		if got := Line([]byte(doc), key); got != want {
			t.Errorf("Line(%q) = %d, want %d", key, got, want)
		}
	}
	err := Errorf("f.toml", []byte(doc), "make.goal", "unknown goal %q", "release")
	if got, want := fmt.Sprint(err), `f.toml:5: unknown goal "release"`; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestDecode(t *testing.T) {
	type schema struct {
		Name string
		Make struct {
			Goal string
			Jobs int
		}
	}
	for _, test := range []struct{ in, want string }{
		{"name = 'x'\n[make]\ngoal = 'release'\n", ""},
		{"name = 'x'\n[make]\ngaol = 'release'\n", "f.toml:3:1: unknown key make.gaol"},
		{"name = 'x'\nname = 'y'\n", "f.toml:2:1: key name is already defined"},
		{"[make]\ngoal = 'a'\n[make]\ngoal = 'b'\n", "f.toml:3:2: table make already exists"},
		{"name = \n", "f.toml:1:8: "},
		{"[make]\njobs = 'many'\n", "f.toml:2:8: "},
	} {
		var v schema
		err := Decode("f.toml", []byte(test.in), &v)
		got := ""
		if err != nil {
			got = err.Error()
		}
		if len(got) < len(test.want) || got[:len(test.want)] != test.want || (test.want == "") != (err == nil) {
			t.Errorf("Decode(%q) = %q, want %q", test.in, got, test.want)
		}
	}
}
