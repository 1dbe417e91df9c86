package screen

import (
	"slices"
	"testing"
)

func TestFit(t *testing.T) {
	const text = "vats: 3 active, 1 suspended\n\nvat   state\nv1    active\n日本語  x\nunbreakable-word\n"
	for _, test := range []struct {
		width, height int
		want          []string
	}{
		{80, 24, []string{"vats: 3 active, 1 suspended", "", "vat   state", "v1    active", "日本語  x", "unbreakable-word"}},
		{12, 24, []string{"vats: 3", "active, 1", "suspended", "", "vat   state", "v1    active", "日本語  x", "unbreakable…"}},
		{7, 24, []string{"vats: 3", "active,", "1", "suspen…", "", "vat   …", "v1    …", "日本語…", "unbrea…"}},
		{12, 3, []string{"vats: 3", "active, 1", "…"}},
		{12, 1, []string{"…"}},
		{1, 1, []string{"…"}},
	} {
		if got := fit(text, test.width, test.height); !slices.Equal(got, test.want) {
			t.Errorf("on %d by %d: %q, expected %q", test.width, test.height, got, test.want)
		}
	}
	if got := fit("", 10, 10); !slices.Equal(got, []string{""}) {
		t.Errorf("of nothing: %q", got)
	}
}
