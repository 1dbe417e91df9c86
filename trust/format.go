package trust

import (
	"bytes"
	"maps"
	"slices"

	"github.com/pelletier/go-toml/v2"
)

// FormatPolicy returns a policy file: of versions that come from sources, one of the keys must have signed each. keys are public keys in PEM, by
// name.
func FormatPolicy(sources []string, keys map[string]string) ([]byte, error) {
	type key struct {
		Name   string `toml:"name"`
		Public string `toml:"public,multiline"`
	}
	type rule struct {
		Signers []string `toml:"signers"`
	}
	f := struct {
		Schema  int      `toml:"schema"`
		Sources []string `toml:"sources" comment:"where versions come from, in order"`
		Key     []key    `toml:"key"`
		Default rule     `toml:"default" comment:"what is required of every version"`
	}{Schema: PolicySchema, Sources: append([]string{}, sources...)}
	for _, name := range slices.Sorted(maps.Keys(keys)) {
		f.Key = append(f.Key, key{name, keys[name]})
		f.Default.Signers = append(f.Default.Signers, name)
	}
	var b bytes.Buffer
	if err := toml.NewEncoder(&b).Encode(f); err != nil {
		return nil, err
	}
	_, err := ParsePolicy("policy.toml", b.Bytes(), nil)
	return b.Bytes(), err
}
