package golden

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/enginery/enginery/recipes"
)

// TOML writes observations of a goal's worker as a recipe has them.
func TOML(goal string, found map[string]map[string]recipes.Observation) string {
	var b strings.Builder
	for _, vector := range slices.Sorted(maps.Keys(found)) {
		fmt.Fprintf(&b, "\n[golden.%s.%s]\n", goal, vector)
		labels := slices.Sorted(maps.Keys(found[vector]))
		width := 0
		for _, label := range labels {
			width = max(width, len(label))
		}
		for _, label := range labels {
			fmt.Fprintf(&b, "%-*s = { %s }\n", width, label, fields(found[vector][label]))
		}
	}
	return b.String()
}

func fields(o recipes.Observation) string {
	var all []string
	add := func(key, value string, wanted bool) {
		if wanted {
			all = append(all, key+" = "+value)
		}
	}
	add("snapshot", quote(o.Snapshot), o.Snapshot != "")
	add("size", strconv.FormatInt(o.Size, 10), o.Size != 0)
	add("compute", strconv.FormatInt(o.Compute, 10), o.Compute != 0)
	add("allocate", strconv.FormatInt(o.Allocate, 10), o.Allocate != 0)
	add("heap-count", strconv.FormatInt(o.HeapCount, 10), o.HeapCount != 0)
	add("reply", quote(o.Reply), o.Reply != "")
	return strings.Join(all, ", ")
}

// quote writes a basic string of TOML, which has the escapes of JSON, and takes no DEL.
func quote(s string) string {
	var b strings.Builder
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.Encode(s)
	return strings.ReplaceAll(strings.TrimSuffix(b.String(), "\n"), "\x7f", `\u007f`)
}
