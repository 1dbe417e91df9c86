package recipes

import (
	"embed"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/enginery/enginery/internal/strict"
)

//go:embed vectors/*.toml
var embeddedVectors embed.FS

// Vector is a golden vector: a program for a fresh worker, some of whose steps are observed.
type Vector struct {
	Name        string
	Description string
	Steps       []Step
}

// Step is one step of a vector: exactly one of Evaluate, Bundle, Command, Snapshot and Resume.
type Step struct {
	Evaluate string // JavaScript source
	Bundle   string // Lockdown or Supervisor: evaluates the version's bundle as hosts do
	Command  string // bytes for the guest's handleCommand
	Snapshot bool   // writes a heap snapshot; the worker goes on
	Resume   bool   // writes a heap snapshot and goes on in a new worker that loads it
	Label    string // if not empty, the golden values hold an observation of this step
}

// What a step's Bundle names.
const (
	Lockdown   = "lockdown"
	Supervisor = "supervisor"
)

// Vectors returns the names of all golden vectors, in natural order.
func Vectors() []string { return names(embeddedVectors, "vectors") }

// LoadVector returns the named golden vector.
func LoadVector(name string) (*Vector, error) {
	if !slices.Contains(Vectors(), name) {
		return nil, unknown("golden vector", name, Vectors())
	}
	file := "vectors/" + name + ".toml"
	data, err := embeddedVectors.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("reading golden vector %s: %w", name, err)
	}
	return ParseVector("recipes/"+file, data)
}

// The schema of a vector file.
type (
	vectorFile struct {
		Name        string     `toml:"name"`
		Description string     `toml:"description"`
		Step        []stepFile `toml:"step"`
	}
	stepFile struct {
		Evaluate string `toml:"evaluate" json:"evaluate,omitzero"`
		Bundle   string `toml:"bundle" json:"bundle,omitzero"`
		Command  string `toml:"command" json:"command,omitzero"`
		Snapshot bool   `toml:"snapshot" json:"snapshot,omitzero"`
		Resume   bool   `toml:"resume" json:"resume,omitzero"`
		Label    string `toml:"label" json:"label,omitzero"`
	}
)

// ParseVector reads a golden vector from data, the content of the named file. Errors begin with the file and the line.
func ParseVector(file string, data []byte) (*Vector, error) {
	var f vectorFile
	if err := strict.Decode(file, data, &f); err != nil {
		return nil, err
	}
	p := parser{file, data}
	switch want := strings.TrimSuffix(path.Base(file), ".toml"); {
	case f.Name == "":
		return nil, p.errorf("name", "name is missing")
	case !idPattern.MatchString(f.Name):
		return nil, p.errorf("name", "name %q: want lower-case letters, digits, dots and dashes", f.Name)
	case f.Name != want:
		return nil, p.errorf("name", "name is %q, and the file's name says %q", f.Name, want)
	case f.Description == "":
		return nil, p.errorf("description", "description is missing")
	case len(f.Step) == 0:
		return nil, p.errorf("step", "step is missing: a vector has at least one")
	}
	v := &Vector{Name: f.Name, Description: f.Description}
	labels := 0
	for i, sf := range f.Step {
		at := fmt.Sprintf("step.%d", i)
		s := Step(sf)
		kinds := 0
		for _, set := range []bool{s.Evaluate != "", s.Bundle != "", s.Command != "", s.Snapshot, s.Resume} {
			if set {
				kinds++
			}
		}
		if kinds != 1 {
			return nil, p.errorf(at, "step %d does %d things: want one of evaluate, bundle, command, snapshot and resume", i+1, kinds)
		}
		if s.Bundle != "" && s.Bundle != Lockdown && s.Bundle != Supervisor {
			return nil, p.errorf(at+".bundle", "bundle %q: there are %s and %s", s.Bundle, Lockdown, Supervisor)
		}
		if s.Label != "" {
			labels++
			if !labelPattern.MatchString(s.Label) {
				return nil, p.errorf(at+".label", "label %q: want letters, digits, dashes and underscores", s.Label)
			}
			if slices.ContainsFunc(v.Steps, func(t Step) bool { return t.Label == s.Label }) {
				return nil, p.errorf(at+".label", "label %s is given twice", s.Label)
			}
		}
		v.Steps = append(v.Steps, s)
	}
	if labels == 0 {
		return nil, p.errorf("step", "no step has a label: nothing of the vector is observed")
	}
	return v, nil
}
