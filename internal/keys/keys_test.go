package keys

import (
	"slices"
	"testing"
)

func TestUnion(t *testing.T) {
	type set map[string]int
	for _, test := range []struct {
		a, b set
		want []string
	}{
		{nil, nil, nil},
		{nil, set{"b": 1, "a": 1}, []string{"a", "b"}},
		{set{"c": 1, "a": 1}, set{"b": 2, "a": 2}, []string{"a", "b", "c"}},
	} {
		if got := Union(test.a, test.b); !slices.Equal(got, test.want) {
			t.Errorf("Union(%v, %v) = %q, want %q", test.a, test.b, got, test.want)
		}
	}
}
