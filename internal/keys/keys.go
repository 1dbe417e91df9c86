// Package keys lists the keys of maps.
package keys

import (
	"maps"
	"slices"
)

// Union returns the keys that a or b has, sorted.
func Union[V any](a, b map[string]V) []string {
	all := slices.AppendSeq(slices.Collect(maps.Keys(a)), maps.Keys(b))
	slices.Sort(all)
	return slices.Compact(all)
}
