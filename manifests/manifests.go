// Package manifests holds the record of what was accepted: for each version, the digests of everything that its artifact must be.
package manifests

import (
	"bytes"
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
	"github.com/enginery/enginery/internal/keys"
	"github.com/enginery/enginery/recipes"
	"github.com/google/renameio/v2"
	"github.com/opencontainers/go-digest"
)

//go:embed *.[jm]*
var embedded embed.FS // *.json, and README.md: a pattern must match something even where nothing is recorded yet

// Schema is the version of the files' schema.
const Schema = 1

// Manifest is the record of a version. Digests of OCI content are "sha256:…"; others are "hash/size", SHA-256 and bytes.
type Manifest struct {
	Schema     int                   `json:"schema"`
	Version    string                `json:"version"` // version ID
	Recipe     cas.Digest            `json:"recipe"`
	Sources    map[string]cas.Digest `json:"sources"`           // trees: "moddable", "xsnap-native"
	Bundles    map[string]cas.Digest `json:"bundles,omitempty"` // "lockdown", "supervisor"
	Platforms  map[string]*Platform  `json:"platforms"`
	Index      string                `json:"index"`      // the artifact
	Statements map[string]string     `json:"statements"` // predicate type -> manifest that carries the statement
}

// Platform is what a version has for a platform.
type Platform struct {
	Toolchain artifact.Toolchain    `json:"toolchain"`
	Actions   map[string]cas.Digest `json:"actions"` // by goal
	Files     map[string]string     `json:"files"`   // by title
	Sizes     map[string]int64      `json:"sizes"`   // bytes, by title
	Config    string                `json:"config"`
	Manifest  string                `json:"manifest"`
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
			Toolchain: p.Engine.Toolchain,
			Actions:   p.Engine.Actions,
			Files:     make(map[string]string),
			Sizes:     make(map[string]int64),
			Config:    p.Config.Digest.String(),
			Manifest:  p.Manifest.Digest.String(),
		}
		for _, f := range p.Files {
			out.Files[artifact.Title(f)] = f.Digest.String()
			out.Sizes[artifact.Title(f)] = f.Size
		}
		m.Platforms[p.Name] = out
	}
	for _, r := range a.Referrers {
		if _, ok := m.Statements[r.PredicateType]; !ok && r.PredicateType != "" {
			m.Statements[r.PredicateType] = r.Manifest.Digest.String()
		}
	}
	return m, nil
}

// Load returns the record of a version that came with the program. The error is ErrNotRecorded if there is none.
func Load(id string) (*Manifest, error) { return load(embedded, id) }

// ReadFS returns the record of a version among those in fsys. The error is ErrNotRecorded if there is none.
func ReadFS(fsys fs.FS, id string) (*Manifest, error) { return load(fsys, id) }

// Read returns the record of a version in a folder.
func Read(dir, id string) (*Manifest, error) { return load(os.DirFS(dir), id) }

func load(fsys fs.FS, id string) (*Manifest, error) {
	data, err := fs.ReadFile(fsys, id+".json")
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrInvalid) {
		return nil, fmt.Errorf("%s (manifests/%s.json): %w", id, id, ErrNotRecorded)
	}
	if err != nil {
		return nil, fmt.Errorf("reading the manifest of %s: %w", id, err)
	}
	m, err := parse(id, data)
	if err != nil {
		return nil, fmt.Errorf("manifests/%s.json: %w; restore the file, or record the version anew with: go tool mage manifest:update %s", id, err, id)
	}
	return m, nil
}

// parse reads what Write has written: whatever else it has was changed by hand.
func parse(id string, data []byte) (*Manifest, error) {
	m := new(Manifest)
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(m); err != nil {
		line := 1 + bytes.Count(data[:min(int(d.InputOffset()), len(data))], []byte("\n"))
		return nil, fmt.Errorf("line %d: %w", line, err)
	}
	if m.Schema != Schema {
		return nil, fmt.Errorf("it has schema %d, expected %d", m.Schema, Schema)
	}
	if m.Version != id {
		return nil, fmt.Errorf("it is the manifest of %q", m.Version)
	}
	if err := m.check(); err != nil {
		return nil, err
	}
	want, err := m.JSON()
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(data, want) {
		i := 0
		for i < min(len(data), len(want)) && data[i] == want[i] {
			i++
		}
		return nil, fmt.Errorf("line %d is not as it was written", 1+bytes.Count(data[:i], []byte("\n")))
	}
	return m, nil
}

func (m *Manifest) check() error {
	digests := map[string]string{"index": m.Index}
	for predicate, d := range m.Statements {
		digests["statement "+predicate] = d
	}
	for name, p := range m.Platforms {
		if p == nil {
			return fmt.Errorf("platform %s is null", name)
		}
		digests[name+" toolchain image"] = p.Toolchain.Image
		digests[name+" config"] = p.Config
		digests[name+" manifest"] = p.Manifest
		for title, d := range p.Files {
			digests[name+" "+title] = d
		}
	}
	for _, name := range slices.Sorted(maps.Keys(digests)) {
		if err := digest.Digest(digests[name]).Validate(); err != nil {
			return fmt.Errorf("%s is %q: %w", name, digests[name], err)
		}
	}
	return nil
}

// IDs returns the versions with a record, sorted.
func IDs() []string {
	files, _ := fs.Glob(embedded, "*.json") // the pattern is fine
	for i, f := range files {
		files[i] = strings.TrimSuffix(f, ".json")
	}
	return files
}

// Place is where a file stands in the records.
type Place struct {
	Version  string `json:"version"`
	Platform string `json:"platform"`
	Title    string `json:"title"`
}

func (p Place) String() string { return fmt.Sprintf("%s of %s for %s", p.Title, p.Version, p.Platform) }

// Find returns the places of a file, by its digest, in the records that came with the program: sorted by version, platform and title.
func Find(digest string) ([]Place, error) {
	var places []Place
	for _, id := range IDs() {
		m, err := Load(id)
		if err != nil {
			return nil, err
		}
		for _, platform := range slices.Sorted(maps.Keys(m.Platforms)) {
			files := m.Platforms[platform].Files
			for _, title := range slices.Sorted(maps.Keys(files)) {
				if files[title] == digest {
					places = append(places, Place{id, platform, title})
				}
			}
		}
	}
	return places, nil
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
	if err := renameio.WriteFile(path, b, 0o644, renameio.WithStaticPermissions(0o644)); err != nil {
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
// them, then what only names that. So the first difference is the one to look at.
func Diff(recorded, built *Manifest) []Difference {
	d := &differ{}
	for _, name := range keys.Union(recorded.Sources, built.Sources) {
		add(d, "source tree "+name, recorded.Sources[name], built.Sources[name], "an input: the pin has other sources")
	}
	for _, name := range keys.Union(recorded.Bundles, built.Bundles) {
		add(d, name+" bundle", recorded.Bundles[name], built.Bundles[name], "an input: the recipe has another bundle")
	}
	platforms := keys.Union(recorded.Platforms, built.Platforms)
	of := func(m *Manifest, name string) *Platform {
		if p := m.Platforms[name]; p != nil {
			return p
		}
		return new(Platform)
	}
	for _, name := range platforms {
		r, b := of(recorded, name), of(built, name)
		add(d, name+" toolchain", r.Toolchain.Name, b.Toolchain.Name, "an input: the recipe names another toolchain")
		add(d, name+" toolchain image", r.Toolchain.Image, b.Toolchain.Image, "an input: the toolchain's lock is another")
		add(d, name+" toolchain root file system", r.Toolchain.Root, b.Toolchain.Root, "an input: the toolchain's lock is another")
	}
	note := "follows from the above"
	if len(d.found) == 0 {
		note = "sources, bundles and toolchains are equal: flags, the makefile's variables, the engine description or golden vectors were changed"
	}
	add(d, "recipe", recorded.Recipe, built.Recipe, note)
	note = "follows from the above"
	if len(d.found) == 0 {
		note = "the recipe is equal: this program describes compilations in another way than the one that recorded"
	}
	for _, name := range platforms {
		r, b := of(recorded, name), of(built, name)
		for _, goal := range keys.Union(r.Actions, b.Actions) {
			add(d, name+" "+goal+" action", r.Actions[goal], b.Actions[goal], note)
		}
	}
	for _, name := range platforms {
		r, b := of(recorded, name), of(built, name)
		for _, title := range keys.Union(r.Files, b.Files) {
			file := func(p *Platform) string {
				if p.Files[title] == "" {
					return ""
				}
				return fmt.Sprintf("%s, %d bytes", p.Files[title], p.Sizes[title])
			}
			note := ""
			if goal, ok := goals[title]; ok && !r.Actions[goal].IsZero() && r.Actions[goal] == b.Actions[goal] {
				note = "its inputs are equal, " + goal + " action " + b.Actions[goal].Hash[:12] + "…, so the build is not reproducible: " +
					"go tool mage check:reproducible " + built.Version + " says where"
			}
			add(d, name+" "+title, file(r), file(b), note)
		}
	}
	note = "follows from the above"
	if len(d.found) == 0 {
		note = "all that it describes is equal: this program packs in another way than the one that recorded"
	}
	for _, name := range platforms {
		r, b := of(recorded, name), of(built, name)
		add(d, name+" config", r.Config, b.Config, note)
		add(d, name+" manifest", r.Manifest, b.Manifest, note)
	}
	add(d, "index", recorded.Index, built.Index, note)
	for _, predicate := range keys.Union(recorded.Statements, built.Statements) {
		add(d, "statement "+predicate, recorded.Statements[predicate], built.Statements[predicate], note)
	}
	return d.found
}

// goals are the goals whose workers have these titles.
var goals = map[string]string{artifact.Worker: recipes.Release, artifact.DebugWorker: recipes.Debug}

type differ struct{ found []Difference }

func add[T comparable](d *differ, name string, recorded, built T, note string) {
	if recorded != built {
		d.found = append(d.found, Difference{Name: name, Recorded: fmt.Sprint(recorded), Built: fmt.Sprint(built), Note: note})
	}
}
