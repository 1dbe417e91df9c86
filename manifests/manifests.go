// Package manifests holds the record of what was accepted: for each version, the digests of everything that its artifact must be.
package manifests

import (
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/enginery/enginery/artifact"
	"github.com/enginery/enginery/internal/cas"
)

//go:embed README.md *.json
var embedded embed.FS

// Schema is the version of the files' schema.
const Schema = 1

// Manifest is the record of a version. Digests of OCI content are "sha256:…"; others are "hash/size", SHA-256 and bytes.
type Manifest struct {
	Schema     int                   `json:"schema"`
	Version    string                `json:"version"` // version ID
	Recipe     cas.Digest            `json:"recipe"`
	Sources    map[string]cas.Digest `json:"sources"`           // trees: "moddable", "xsnap-native"
	Bundles    map[string]cas.Digest `json:"bundles,omitempty"` // "lockdown", "supervisor"
	Index      string                `json:"index"`             // the artifact
	Platforms  map[string]*Platform  `json:"platforms"`
	Statements map[string]string     `json:"statements"` // predicate type -> manifest that carries the statement
}

// Platform is what a version has for a platform.
type Platform struct {
	Toolchain string                `json:"toolchain"` // OCI digest of the image
	Actions   map[string]cas.Digest `json:"actions"`   // by goal
	Manifest  string                `json:"manifest"`
	Config    string                `json:"config"`
	Files     map[string]string     `json:"files"` // by title
}

// ErrNotRecorded says that there is no record of a version.
var ErrNotRecorded = errors.New("not recorded yet")

// Of returns the manifest of an artifact.
func Of(a *artifact.Artifact) (*Manifest, error) {
	if len(a.Platforms) == 0 {
		return nil, fmt.Errorf("%s has no platform", a.ID)
	}
	e := a.Platforms[0].Engine
	m := &Manifest{
		Schema:     Schema,
		Version:    a.ID,
		Recipe:     e.Recipe,
		Sources:    map[string]cas.Digest{"moddable": e.Moddable.Tree, "xsnap-native": e.XsnapNative.Tree},
		Index:      a.Index.Digest.String(),
		Platforms:  make(map[string]*Platform),
		Statements: make(map[string]string),
	}
	if e.Bundles != nil {
		m.Bundles = make(map[string]cas.Digest)
		for name, b := range e.Bundles {
			m.Bundles[name] = b.Digest
		}
	}
	for _, p := range a.Platforms {
		out := &Platform{
			Toolchain: p.Engine.Toolchain.Image,
			Actions:   p.Engine.Actions,
			Manifest:  p.Manifest.Digest.String(),
			Config:    p.Config.Digest.String(),
			Files:     make(map[string]string),
		}
		for _, f := range p.Files {
			out.Files[artifact.Title(f)] = f.Digest.String()
		}
		m.Platforms[p.Name] = out
	}
	for _, r := range a.Referrers {
		m.Statements[r.PredicateType] = r.Manifest.Digest.String()
	}
	return m, nil
}

// Load returns the record of a version that came with the program. The error is ErrNotRecorded if there is none.
func Load(id string) (*Manifest, error) { return load(embedded, id) }

// Read returns the record of a version in a folder.
func Read(dir, id string) (*Manifest, error) { return load(os.DirFS(dir), id) }

func load(fsys fs.FS, id string) (*Manifest, error) {
	data, err := fs.ReadFile(fsys, id+".json")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("manifests/%s.json: %w", id, ErrNotRecorded)
	}
	if err != nil {
		return nil, fmt.Errorf("reading the manifest of %s: %w", id, err)
	}
	m := new(Manifest)
	d := json.NewDecoder(strings.NewReader(string(data)))
	d.DisallowUnknownFields()
	if err := d.Decode(m); err != nil {
		return nil, fmt.Errorf("manifests/%s.json: %w", id, err)
	}
	if m.Schema != Schema {
		return nil, fmt.Errorf("manifests/%s.json has schema %d, expected %d", id, m.Schema, Schema)
	}
	if m.Version != id {
		return nil, fmt.Errorf("manifests/%s.json is the manifest of %q", id, m.Version)
	}
	return m, nil
}

// IDs returns the versions with a record, sorted.
func IDs() []string {
	files, _ := fs.Glob(embedded, "*.json") // the pattern is fine
	for i, f := range files {
		files[i] = strings.TrimSuffix(f, ".json")
	}
	return files
}

// JSON returns the file's content.
func (m *Manifest) JSON() ([]byte, error) {
	b, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encoding the manifest of %s: %w", m.Version, err)
	}
	return append(b, '\n'), nil
}

// Write writes the record to a folder, whole or not at all, and returns the file's name.
func (m *Manifest) Write(dir string) (string, error) {
	b, err := m.JSON()
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, m.Version+".json")
	f, err := os.CreateTemp(dir, "."+m.Version+"-")
	if err != nil {
		return "", fmt.Errorf("writing %s: %w", path, err)
	}
	defer os.Remove(f.Name())
	defer f.Close()
	_, err = f.Write(b)
	if err := errors.Join(err, f.Chmod(0o644), f.Sync(), f.Close()); err != nil {
		return "", fmt.Errorf("writing %s: %w", path, err)
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return "", fmt.Errorf("writing %s: %w", path, err)
	}
	return path, nil
}

// Difference is something that is not as recorded.
type Difference struct {
	Name     string // e.g. "linux/arm64 xsnap-worker"
	Recorded string // empty: nothing was recorded
	Built    string // empty: nothing was built
	Note     string // what that means, if it can be said
}

func (d Difference) String() string {
	or := func(s, otherwise string) string {
		if s == "" {
			return otherwise
		}
		return s
	}
	s := fmt.Sprintf("%s: recorded %s, built %s", d.Name, or(d.Recorded, "nothing"), or(d.Built, "nothing"))
	if d.Note != "" {
		s += " (" + d.Note + ")"
	}
	return s
}

// Diff says in what a built version is not as recorded, causes before what follows from them: inputs, then what was made of
// them, then what only names that.
func Diff(recorded, built *Manifest) []Difference {
	d := &differ{}
	for _, name := range both(recorded.Sources, built.Sources) {
		d.digest("source "+name, recorded.Sources[name], built.Sources[name])
	}
	for _, name := range both(recorded.Bundles, built.Bundles) {
		d.digest(name+" bundle", recorded.Bundles[name], built.Bundles[name])
	}
	platforms := both(recorded.Platforms, built.Platforms)
	empty := new(Platform)
	pair := func(name string) (*Platform, *Platform) {
		r, b := recorded.Platforms[name], built.Platforms[name]
		if r == nil {
			r = empty
		}
		if b == nil {
			b = empty
		}
		return r, b
	}
	for _, name := range platforms {
		r, b := pair(name)
		d.text(name+" toolchain", r.Toolchain, b.Toolchain, "")
	}
	d.digest("recipe", recorded.Recipe, built.Recipe)
	for _, name := range platforms {
		r, b := pair(name)
		for _, goal := range both(r.Actions, b.Actions) {
			d.digest(name+" "+goal+" action", r.Actions[goal], b.Actions[goal])
		}
	}
	for _, name := range platforms {
		r, b := pair(name)
		for _, title := range both(r.Files, b.Files) {
			note := ""
			if goal, ok := goals[title]; ok && r.Actions[goal] == b.Actions[goal] && !r.Actions[goal].IsZero() {
				note = "from the same action, so the compilation is not reproducible: go tool mage check:reproducible " + built.Version + " says more"
			}
			d.text(name+" "+title, r.Files[title], b.Files[title], note)
		}
		d.text(name+" config", r.Config, b.Config, "")
		d.text(name+" manifest", r.Manifest, b.Manifest, "")
	}
	d.text("index", recorded.Index, built.Index, "")
	for _, predicate := range both(recorded.Statements, built.Statements) {
		d.text("statement "+predicate, recorded.Statements[predicate], built.Statements[predicate], "")
	}
	return d.found
}

var goals = map[string]string{artifact.Worker: "release", artifact.DebugWorker: "debug"}

type differ struct{ found []Difference }

func (d *differ) text(name, recorded, built, note string) {
	if recorded != built {
		d.found = append(d.found, Difference{Name: name, Recorded: recorded, Built: built, Note: note})
	}
}

func (d *differ) digest(name string, recorded, built cas.Digest) {
	d.text(name, recorded.String(), built.String(), "")
}

// both returns the keys of two maps, sorted.
func both[V any](a, b map[string]V) []string {
	keys := make(map[string]bool)
	for k := range a {
		keys[k] = true
	}
	for k := range b {
		keys[k] = true
	}
	return slices.Sorted(maps.Keys(keys))
}
