package recipes

import (
	"cmp"
	"fmt"
	"io/fs"
	"regexp"
	"slices"
	"strings"
)

// names returns the names of the TOML files in a folder, in natural order.
func names(fsys fs.FS, dir string) []string {
	entries, err := fs.ReadDir(fsys, dir)
	if err != nil {
		panic(err) // the folder is embedded
	}
	var found []string
	for _, e := range entries {
		if name, ok := strings.CutSuffix(e.Name(), ".toml"); ok {
			found = append(found, name)
		}
	}
	slices.SortFunc(found, naturally)
	return found
}

var digits = regexp.MustCompile(`[0-9]+`)

// naturally compares two names as people do: numbers in them by value.
func naturally(a, b string) int {
	key := func(s string) string {
		return digits.ReplaceAllStringFunc(s, func(d string) string { return fmt.Sprintf("%020s", d) })
	}
	return cmp.Or(cmp.Compare(key(a), key(b)), cmp.Compare(a, b))
}

// UnknownError says that no known name is the given one, and which come near.
type UnknownError struct {
	Kind, Name string // e.g. "version ID", "agoric-upgrade-61"
	Known      []string
}

func unknown(kind, name string, known []string) error {
	return &UnknownError{kind, name, known}
}

func (e *UnknownError) Error() string {
	kind, name, known := e.Kind, e.Name, e.Known
	near := slices.DeleteFunc(slices.Clone(known), func(k string) bool {
		return distance(name, k) > 1 && (name == "" || !strings.Contains(k, name))
	})
	if len(near) > 0 && len(near) < len(known) {
		return fmt.Sprintf("no %s is called %q; did you mean %s? There are %s", kind, name, strings.Join(near, " or "), strings.Join(known, ", "))
	}
	return fmt.Sprintf("no %s is called %q; there are %s", kind, name, strings.Join(known, ", "))
}

// distance counts the insertions, deletions, replacements and swaps of neighbouring bytes that make b of a.
func distance(a, b string) int {
	d := make([][]int, len(a)+1) // d[i][j] is the distance of a[:i] and b[:j]
	for i := range d {
		d[i] = make([]int, len(b)+1)
		for j := range d[i] {
			switch {
			case i == 0 || j == 0:
				d[i][j] = i + j
			case a[i-1] == b[j-1]:
				d[i][j] = d[i-1][j-1]
			default:
				d[i][j] = 1 + min(d[i-1][j-1], d[i-1][j], d[i][j-1])
				if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
					d[i][j] = min(d[i][j], 1+d[i-2][j-2])
				}
			}
		}
	}
	return d[len(a)][len(b)]
}
