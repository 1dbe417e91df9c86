package recipes

import (
	"embed"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/enginery/enginery/internal/strict"
	"github.com/enginery/enginery/moddable-pins"
	"github.com/enginery/enginery/supervisor-bundles"
	"github.com/enginery/enginery/toolchain"
)

//go:embed *.toml
var embedded embed.FS

// IDs returns the version IDs that have a recipe, in natural order: agoric-upgrade-8 before agoric-upgrade-10.
func IDs() []string { return names(embedded, ".") }

// Packaged returns the IDs of the versions whose sources npm packages carry, sorted. Since bundles and compilers are packages, too, these can
// be built wherever npm and Debian packages can be had.
func Packaged() ([]string, error) {
	packaged := func(c pins.Component) bool {
		return slices.ContainsFunc(c.Sources, func(s pins.Source) bool { return s.Git == "" })
	}
	var ids []string
	for _, id := range IDs() {
		r, err := Load(id)
		if err != nil {
			return nil, err
		}
		if packaged(r.Pin.Moddable) && packaged(r.Pin.XsnapNative) {
			ids = append(ids, id)
		}
	}
	return ids, nil
}

// Load returns the recipe of a version ID.
func Load(id string) (*Recipe, error) {
	file := id + ".toml"
	if !slices.Contains(IDs(), id) {
		return nil, unknown("version ID", id, IDs())
	}
	data, err := embedded.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("reading recipe %s: %w", id, err)
	}
	return Parse("recipes/"+file, data, Shipped())
}

// Refs resolves the names in a recipe.
type Refs struct {
	Pin       func(name string) (*pins.Pin, error)
	Bundles   func(name string) (*bundles.Pair, error)
	Toolchain func(name string) (*toolchain.Toolchain, error)
	Vector    func(name string) (*Vector, error)
	IDs       []string // versions whose snapshots an engine may load, besides its own
}

// Shipped resolves names among what comes with this package and its neighbours.
func Shipped() Refs {
	return Refs{Pin: pins.Load, Bundles: bundles.Load, Toolchain: toolchain.Load, Vector: LoadVector, IDs: IDs()}
}

// The schema of a recipe file.
type (
	recipeFile struct {
		ID       string                                           `toml:"id"`
		Xsnap    string                                           `toml:"xsnap"`
		Pin      string                                           `toml:"pin"`
		Bundles  string                                           `toml:"bundles"`
		Goals    []string                                         `toml:"goals"`
		Platform map[string]platformFile                          `toml:"platform"`
		Make     makeFile                                         `toml:"make"`
		Flags    flagsFile                                        `toml:"flags"`
		Engine   engineFile                                       `toml:"engine"`
		Golden   map[string]map[string]map[string]observationFile `toml:"golden"`
	}
	platformFile struct {
		Toolchain string   `toml:"toolchain"`
		Link      []string `toml:"link"`
	}
	makeFile struct {
		Directory string            `toml:"directory"`
		File      string            `toml:"file"`
		Variables map[string]string `toml:"variables"`
		Output    string            `toml:"output"`
	}
	flagsFile struct {
		Compile []string `toml:"compile" json:"compile"`
		Link    []string `toml:"link" json:"link"`
	}
	engineFile struct {
		XSVersion         string   `toml:"xs" json:"xs"`
		Protocol          int      `toml:"protocol" json:"protocol"`
		HostCallbacks     int      `toml:"host-callbacks" json:"host-callbacks"`
		SnapshotVersion   string   `toml:"snapshot-version" json:"snapshot-version"`
		SnapshotSignature string   `toml:"snapshot-signature" json:"snapshot-signature"`
		LoadsSnapshotsOf  []string `toml:"loads-snapshots-of" json:"loads-snapshots-of"`
		Meter             string   `toml:"meter" json:"meter"`
		Consensus         []string `toml:"consensus" json:"consensus"`
	}
	observationFile struct {
		Snapshot  string `toml:"snapshot" json:"snapshot,omitzero"`
		Size      int64  `toml:"size" json:"size,omitzero"`
		Compute   int64  `toml:"compute" json:"compute,omitzero"`
		Allocate  int64  `toml:"allocate" json:"allocate,omitzero"`
		HeapCount int64  `toml:"heap-count" json:"heap-count,omitzero"`
		Reply     string `toml:"reply" json:"reply,omitzero"`
	}
)

// none is the bundle pair of an engine alone.
const none = "none"

var (
	platforms = []string{"linux/amd64", "linux/arm64"}
	goals     = []string{Release, Debug}

	// The placeholders of templates, and where they may stand.
	everywhere = []string{"root", "goal", "xsnap", "cc", "cflags", "ldflags"}
	inOutput   = []string{"goal"}
	inFlags    = []string{"root"}

	idPattern          = regexp.MustCompile(`^[a-z0-9]+([.-][a-z0-9]+)*$`)
	labelPattern       = regexp.MustCompile(`^[A-Za-z0-9]+([_-][A-Za-z0-9]+)*$`)
	xsnapPattern       = regexp.MustCompile(`^[0-9A-Za-z]+([.+-][0-9A-Za-z]+)*$`)
	xsPattern          = regexp.MustCompile(`^[0-9]+\.[0-9]+\.[0-9]+$`)
	meterPattern       = regexp.MustCompile(`^xs-meter-[0-9]+$`)
	variablePattern    = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)
	placeholderPattern = regexp.MustCompile(`\{[^{}]*\}`)
	hashPattern        = regexp.MustCompile(`^[0-9a-f]{64}$`)
)

// maxID is the most characters of a version ID: it is also the tag of an OCI image.
const maxID = 128

// Parse reads a recipe from data, the content of the named file, and resolves what it refers to. Errors begin with the
// file and the line.
func Parse(file string, data []byte, refs Refs) (*Recipe, error) {
	var f recipeFile
	if err := strict.Decode(file, data, &f); err != nil {
		return nil, err
	}
	p := parser{file, data}
	if err := p.missing(&f); err != nil {
		return nil, err
	}
	r := &Recipe{ID: f.ID, XsnapVersion: f.Xsnap}
	for _, part := range []func(parser, *recipeFile, *Recipe, Refs) error{
		parser.identity, parser.sources, parser.targets, parser.make, parser.engine, parser.golden,
	} {
		if err := part(p, &f, r, refs); err != nil {
			return nil, err
		}
	}
	return r, nil
}

// parser makes errors about one file.
type parser struct {
	file string
	data []byte
}

// errorf points at the line of a key, or of the nearest table that is there, or at the first line.
func (p parser) errorf(key, format string, args ...any) error {
	if strict.Line(p.data, key) == 0 {
		return fmt.Errorf("%s:1: %s", p.file, fmt.Sprintf(format, args...))
	}
	return strict.Errorf(p.file, p.data, key, format, args...)
}

// missing reports the first key that must be there and is not.
func (p parser) missing(f *recipeFile) error {
	type need struct {
		key    string
		absent bool
	}
	needs := []need{
		{"id", f.ID == ""},
		{"xsnap", f.Xsnap == ""},
		{"pin", f.Pin == ""},
		{"bundles", f.Bundles == ""},
		{"goals", len(f.Goals) == 0},
		{"platform", len(f.Platform) == 0},
	}
	for _, name := range slices.Sorted(maps.Keys(f.Platform)) {
		needs = append(needs, need{"platform." + name + ".toolchain", f.Platform[name].Toolchain == ""})
	}
	needs = append(needs,
		need{"make.directory", f.Make.Directory == ""},
		need{"make.file", f.Make.File == ""},
		need{"make.variables", len(f.Make.Variables) == 0},
		need{"make.output", f.Make.Output == ""},
		need{"flags.compile", f.Flags.Compile == nil},
		need{"flags.link", f.Flags.Link == nil},
		need{"engine.xs", f.Engine.XSVersion == ""},
		need{"engine.protocol", f.Engine.Protocol == 0},
		need{"engine.host-callbacks", f.Engine.HostCallbacks == 0},
		need{"engine.snapshot-version", f.Engine.SnapshotVersion == ""},
		need{"engine.snapshot-signature", f.Engine.SnapshotSignature == ""},
		need{"engine.loads-snapshots-of", len(f.Engine.LoadsSnapshotsOf) == 0},
		need{"engine.meter", f.Engine.Meter == ""},
		need{"engine.consensus", f.Engine.Consensus == nil},
	)
	for _, n := range needs {
		if n.absent {
			return p.errorf(n.key, "%s is missing", n.key)
		}
	}
	return nil
}

func (p parser) identity(f *recipeFile, r *Recipe, _ Refs) error {
	if !idPattern.MatchString(f.ID) || len(f.ID) > maxID {
		return p.errorf("id", "id %q: want at most %d lower-case letters, digits, dots and dashes, as in agoric-upgrade-16", f.ID, maxID)
	}
	if strings.HasPrefix(f.ID, historicPrefix) {
		return p.errorf("id", "id %q: IDs that begin with %q are those of historic engines", f.ID, historicPrefix)
	}
	if want := strings.TrimSuffix(path.Base(p.file), ".toml"); f.ID != want {
		return p.errorf("id", "id is %q, and the file's name says %q", f.ID, want)
	}
	if !xsnapPattern.MatchString(f.Xsnap) {
		return p.errorf("xsnap", "xsnap %q is not a version, as in 0.14.3-u16.1", f.Xsnap)
	}
	if err := p.oneOf("goals", "goal", f.Goals, goals); err != nil {
		return err
	}
	r.Goals = f.Goals
	return nil
}

func (p parser) sources(f *recipeFile, r *Recipe, refs Refs) (err error) {
	if r.Pin, err = refs.Pin(f.Pin); err != nil {
		return p.errorf("pin", "%v", err)
	}
	if f.Bundles != none {
		if r.Bundles, err = refs.Bundles(f.Bundles); err != nil {
			return p.errorf("bundles", "%v", err)
		}
	}
	return nil
}

func (p parser) targets(f *recipeFile, r *Recipe, refs Refs) error {
	for _, name := range slices.Sorted(maps.Keys(f.Platform)) {
		at := "platform." + name
		if !slices.Contains(platforms, name) {
			return p.errorf(at, "platform %q is not supported: there are %s", name, strings.Join(platforms, ", "))
		}
		tc, err := refs.Toolchain(f.Platform[name].Toolchain)
		if err != nil {
			return p.errorf(at+".toolchain", "%v", err)
		}
		if tc.Target != name {
			return p.errorf(at+".toolchain", "toolchain %s compiles for %s, not for %s", tc.Name, tc.Target, name)
		}
		link := f.Platform[name].Link
		if err := p.flags(at+".link", link); err != nil {
			return err
		}
		for i, flag := range link {
			if slices.Contains(f.Flags.Link, flag) {
				return p.errorf(fmt.Sprintf("%s.link.%d", at, i), "%s is in flags.link already", flag)
			}
		}
		r.Targets = append(r.Targets, Target{Platform: name, Toolchain: tc, LDFlags: link})
	}
	return nil
}

func (p parser) make(f *recipeFile, r *Recipe, _ Refs) error {
	r.Make = Make{Directory: f.Make.Directory, File: f.Make.File, Output: f.Make.Output}
	for _, c := range []struct{ key, path string }{
		{"make.directory", f.Make.Directory}, {"make.file", f.Make.File}, {"make.output", f.Make.Output},
	} {
		if !fs.ValidPath(c.path) || strings.HasPrefix(c.path, "-") {
			return p.errorf(c.key, "%s is %q: want a relative path without . and ..", c.key, c.path)
		}
	}
	if err := p.template("make.output", f.Make.Output, inOutput); err != nil {
		return err
	}
	all := ""
	for _, name := range slices.Sorted(maps.Keys(f.Make.Variables)) {
		at, value := "make.variables."+name, f.Make.Variables[name]
		if !variablePattern.MatchString(name) {
			return p.errorf(at, "%q is not the name of a variable of make", name)
		}
		if strings.ContainsFunc(value, isControl) {
			return p.errorf(at, "make.variables.%s has a control character", name)
		}
		if err := p.template(at, value, everywhere); err != nil {
			return err
		}
		r.Make.Variables = append(r.Make.Variables, name+"="+value)
		all += value
	}
	// What no variable passes on would be said in vain.
	for _, ph := range []string{"{root}", "{goal}", "{cc}", "{cflags}", "{ldflags}"} {
		if !strings.Contains(all, ph) {
			return p.errorf("make.variables", "no variable passes %s to the makefile", ph)
		}
	}
	if len(f.Goals) > 1 && !strings.Contains(f.Make.Output, "{goal}") {
		return p.errorf("make.output", "make.output is the same for all goals: it has no {goal}")
	}
	for _, c := range []struct {
		key   string
		flags []string
	}{{"flags.compile", f.Flags.Compile}, {"flags.link", f.Flags.Link}} {
		if err := p.flags(c.key, c.flags); err != nil {
			return err
		}
	}
	r.CFlags, r.LDFlags = f.Flags.Compile, f.Flags.Link
	return nil
}

func (p parser) flags(key string, flags []string) error {
	for i, flag := range flags {
		at := fmt.Sprintf("%s.%d", key, i)
		if !strings.HasPrefix(flag, "-") || strings.ContainsFunc(flag, isControl) {
			return p.errorf(at, "%q is not a flag of the compiler", flag)
		}
		if slices.Contains(flags[:i], flag) {
			return p.errorf(at, "%s is given twice", flag)
		}
		if err := p.template(at, flag, inFlags); err != nil {
			return err
		}
	}
	return nil
}

func (p parser) template(key, value string, known []string) error {
	for _, ph := range placeholderPattern.FindAllString(value, -1) {
		if !slices.Contains(known, ph[1:len(ph)-1]) {
			return p.errorf(key, "%s has the placeholder %s: there are {%s}", key, ph, strings.Join(known, "}, {"))
		}
	}
	return nil
}

func (p parser) engine(f *recipeFile, r *Recipe, refs Refs) error {
	e := f.Engine
	if !xsPattern.MatchString(e.XSVersion) {
		return p.errorf("engine.xs", "engine.xs %q is not a version, as in 13.3.0", e.XSVersion)
	}
	if e.Protocol < 1 {
		return p.errorf("engine.protocol", "engine.protocol is %d: levels begin with 1", e.Protocol)
	}
	if e.HostCallbacks < 1 {
		return p.errorf("engine.host-callbacks", "engine.host-callbacks is %d: a worker has some", e.HostCallbacks)
	}
	if !xsPattern.MatchString(e.SnapshotVersion) {
		return p.errorf("engine.snapshot-version", "engine.snapshot-version %q is not a version, as in 13.3.0", e.SnapshotVersion)
	}
	for i, id := range e.LoadsSnapshotsOf {
		at := fmt.Sprintf("engine.loads-snapshots-of.%d", i)
		if id != f.ID && !slices.Contains(refs.IDs, id) {
			return p.errorf(at, "%v", unknown("version ID", id, refs.IDs))
		}
		if slices.Contains(e.LoadsSnapshotsOf[:i], id) {
			return p.errorf(at, "%s is listed twice", id)
		}
	}
	if !slices.Contains(e.LoadsSnapshotsOf, f.ID) {
		return p.errorf("engine.loads-snapshots-of", "engine.loads-snapshots-of lacks %s itself", f.ID)
	}
	if !meterPattern.MatchString(e.Meter) {
		return p.errorf("engine.meter", "engine.meter %q is not a meter label, as in xs-meter-28", e.Meter)
	}
	if err := p.oneOf("engine.consensus", "goal", e.Consensus, f.Goals); err != nil {
		return err
	}
	if i := slices.Index(e.Consensus, Debug); i >= 0 {
		return p.errorf(fmt.Sprintf("engine.consensus.%d", i), "the debug worker cannot serve consensus: it counts other computrons")
	}
	r.Engine = Engine(e)
	return nil
}

func (p parser) golden(f *recipeFile, r *Recipe, refs Refs) error {
	r.Golden = make(map[string]map[string]map[string]Observation)
	r.Vectors = make(map[string]*Vector)
	for _, goal := range slices.Sorted(maps.Keys(f.Golden)) {
		if !slices.Contains(f.Goals, goal) {
			return p.errorf("golden."+goal, "golden.%s: the version has no goal %q", goal, goal)
		}
	}
	for _, goal := range f.Goals {
		if len(f.Golden[goal]) == 0 {
			return p.errorf("golden."+goal, "golden.%s is missing: the %s worker has no golden vectors", goal, goal)
		}
		r.Golden[goal] = make(map[string]map[string]Observation)
		for _, name := range slices.Sorted(maps.Keys(f.Golden[goal])) {
			at := "golden." + goal + "." + name
			v, err := refs.Vector(name)
			if err != nil {
				return p.errorf(at, "%v", err)
			}
			r.Vectors[name] = v
			if r.Golden[goal][name], err = p.observations(at, v, f.Golden[goal][name], r.Bundles != nil); err != nil {
				return err
			}
		}
	}
	return nil
}

// observations checks the expected values of one vector: one for each of its labels, and of what the step can show.
func (p parser) observations(at string, v *Vector, values map[string]observationFile, bundles bool) (map[string]Observation, error) {
	golden := make(map[string]Observation)
	for _, s := range v.Steps {
		if s.Bundle != "" && !bundles {
			return nil, p.errorf(at, "vector %s evaluates the %s bundle, and this version has no bundles", v.Name, s.Bundle)
		}
		if s.Label == "" {
			continue
		}
		key := at + "." + s.Label
		o, ok := values[s.Label]
		if !ok {
			return nil, p.errorf(at, "%s is missing: vector %s observes %s", key, v.Name, s.Label)
		}
		writes := s.Snapshot || s.Resume
		switch {
		case o == observationFile{}:
			return nil, p.errorf(key, "%s expects nothing", key)
		case min(o.Size, o.Compute, o.Allocate, o.HeapCount) < 0:
			return nil, p.errorf(key, "%s has a negative number", key)
		case writes && (!hashPattern.MatchString(o.Snapshot) || o.Size == 0):
			return nil, p.errorf(key, "%s is a snapshot: want its snapshot (64 lower-case hexadecimal digits) and size", key)
		case writes && (o.Compute != 0 || o.Reply != ""):
			return nil, p.errorf(key, "%s is a snapshot, which has no compute and no reply", key)
		case !writes && (o.Snapshot != "" || o.Size != 0):
			return nil, p.errorf(key, "%s is no snapshot, so it has no snapshot and no size", key)
		}
		golden[s.Label] = Observation(o)
	}
	for _, label := range slices.Sorted(maps.Keys(values)) {
		if _, ok := golden[label]; !ok {
			return nil, p.errorf(at+"."+label, "vector %s has no step labelled %q", v.Name, label)
		}
	}
	return golden, nil
}

// oneOf checks that each value is known and given once.
func (p parser) oneOf(key, kind string, values, known []string) error {
	for i, v := range values {
		at := fmt.Sprintf("%s.%d", key, i)
		if !slices.Contains(known, v) {
			return p.errorf(at, "%s: no %s is called %q: there are %s", key, kind, v, strings.Join(known, ", "))
		}
		if slices.Contains(values[:i], v) {
			return p.errorf(at, "%s: %s is given twice", key, v)
		}
	}
	return nil
}

func isControl(c rune) bool { return c < ' ' || c == 0x7f }
