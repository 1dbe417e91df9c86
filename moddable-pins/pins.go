// Package pins knows the exact revisions of the engine's sources, and fetches them.
//
// A pin is a file of this folder: a Moddable commit and an xsnap-native commit, for each the digest of its source
// tree, and the places that serve it. NAME.toml is the pin NAME: the first eight digits of the two commits.
//
// # One tree, one digest
//
// The digest of a source tree is that of the Remote Execution API's Directory message (internal/cas): it covers
// names, contents and executable bits, and nothing else. So that a tree has one digest whichever way it came, it is cut
// to the pin's paths, and what an npm package cannot carry is left out wherever it came from: version control and
// editor files that npm never packs (.gitignore, .DS_Store, *.orig and so on). Symbolic links and submodules,
// which npm does not pack either, are refused rather than dropped. npm packs the executable bit as git has it.
//
// A tree whose sources nobody here could reach is "unrecorded": its commit still names it, and is checked when it is
// fetched, but until someone records the digest (mage pins:add) no manifest may rest on it.
package pins

import (
	"embed"
	"fmt"
	"io/fs"
	"net/url"
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/enginery/enginery/internal/cas"
	"github.com/enginery/enginery/internal/npm"
	"github.com/enginery/enginery/internal/strict"
)

//go:embed *.toml
var files embed.FS

// Pin is an exact revision of an engine's sources.
type Pin struct {
	Name        string
	Moddable    Component // the XS engine
	XsnapNative Component // the worker program around it
}

// Component is one of the two source trees of a pin.
type Component struct {
	Name     string     // "moddable" or "xsnap-native"
	Commit   string     // 40 hex digits
	License  string     // SPDX expression for what is compiled of it
	Tree     cas.Digest // of an unrecorded tree: zero, and what was found once it has been fetched
	Recorded bool       // whether the pin says what Tree must be
	Paths    []string   // what the tree has of the repository: folders, files, or patterns as in path.Match
	Sources  []Source   // in order of preference
}

// Source is a place that serves a tree: a folder of an npm package, or a git repository.
type Source struct {
	npm.Package        // zero for a git repository
	Path        string // of the tree's root inside the package
	Git         string // URL of a repository that has the commit
}

func (s Source) String() string {
	if s.Git != "" {
		return "git " + s.Git
	}
	return "npm " + s.Package.String()
}

// unrecorded stands in a file for the digest that nobody could compute yet.
const unrecorded = "unrecorded"

// Names returns the names of the pins that come with the program, sorted.
func Names() []string { return names(files) }

func names(fsys fs.FS) []string {
	found, _ := fs.Glob(fsys, "*.toml") // the pattern is fine
	for i, f := range found {
		found[i] = strings.TrimSuffix(f, ".toml")
	}
	return found
}

// ArgumentError says that a pin was asked for that there is not, or cannot be.
type ArgumentError struct{ Reason string }

func (e *ArgumentError) Error() string { return e.Reason }

// Load returns a pin that comes with the program. The error is an *ArgumentError if there is none of that name.
func Load(name string) (*Pin, error) { return load(files, name) }

func load(fsys fs.FS, name string) (*Pin, error) {
	if !namePattern.MatchString(name) {
		return nil, &ArgumentError{fmt.Sprintf("pin %q: a name has lower-case letters, digits, dots and dashes", name)}
	}
	data, err := fs.ReadFile(fsys, name+".toml")
	if err != nil {
		return nil, &ArgumentError{fmt.Sprintf("there is no pin %q (moddable-pins/%s.toml); there are %s", name, name, strings.Join(names(fsys), ", "))}
	}
	return Parse(name+".toml", data)
}

// The schema of a file.
type (
	pinFile struct {
		Name        string        `toml:"name"`
		Moddable    componentFile `toml:"moddable"`
		XsnapNative componentFile `toml:"xsnap-native"`
	}
	componentFile struct {
		Commit  string       `toml:"commit"`
		License string       `toml:"license"`
		Tree    string       `toml:"tree"`
		Paths   []string     `toml:"paths"`
		Source  []sourceFile `toml:"source"`
	}
	sourceFile struct {
		Package   string     `toml:"package"`
		Version   string     `toml:"version"`
		Path      string     `toml:"path"`
		Integrity string     `toml:"integrity"`
		Tarball   cas.Digest `toml:"tarball"`
		Git       string     `toml:"git"`
	}
)

var (
	namePattern    = regexp.MustCompile(`^[a-z0-9][a-z0-9.-]*$`)
	commitPattern  = regexp.MustCompile(`^[0-9a-f]{40}$`)
	licensePattern = regexp.MustCompile(`^[A-Za-z0-9.+-]+( (AND|OR|WITH) [A-Za-z0-9.+-]+)*$`)
)

// Parse reads a pin from data, the content of the named file. Errors begin with the file and the line.
func Parse(file string, data []byte) (*Pin, error) {
	var f pinFile
	if err := strict.Decode(file, data, &f); err != nil {
		return nil, err
	}
	if want := strings.TrimSuffix(path.Base(file), ".toml"); f.Name != want || !namePattern.MatchString(f.Name) {
		return nil, strict.Errorf(file, data, "name", "name is %q; the file's own name, %q, is expected", f.Name, want)
	}
	p := &Pin{Name: f.Name}
	var err error
	if p.Moddable, err = f.Moddable.component(file, data, "moddable"); err != nil {
		return nil, err
	}
	p.XsnapNative, err = f.XsnapNative.component(file, data, "xsnap-native")
	return p, err
}

func (f componentFile) component(file string, data []byte, name string) (Component, error) {
	fail := func(key, format string, args ...any) (Component, error) {
		return Component{}, strict.Errorf(file, data, name+"."+key, name+"."+format, args...)
	}
	c := Component{Name: name, Commit: f.Commit, License: f.License, Paths: f.Paths}
	if !commitPattern.MatchString(f.Commit) {
		return fail("commit", "commit is %q; 40 hexadecimal digits are expected", f.Commit)
	}
	if !licensePattern.MatchString(f.License) {
		return fail("license", "license is %q; an SPDX expression is expected", f.License)
	}
	if f.Tree != unrecorded {
		tree, err := cas.ParseDigest(f.Tree)
		if err != nil {
			return fail("tree", "tree is neither a digest nor %q: %v", unrecorded, err)
		}
		c.Tree, c.Recorded = tree, true
	}
	if len(f.Paths) == 0 {
		return fail("paths", "paths is missing: what of the repository belongs to the tree")
	}
	for i, p := range f.Paths {
		if _, err := path.Match(p, ""); err != nil || !fs.ValidPath(p) || p == "." {
			return fail(fmt.Sprintf("paths.%d", i), "paths: %q is not a path or pattern inside the repository", p)
		}
	}
	if len(f.Source) == 0 {
		return fail("source", "source is missing: at least one place that serves the tree")
	}
	for i, sf := range f.Source {
		s := Source{Package: npm.Package{Name: sf.Package, Version: sf.Version, Integrity: sf.Integrity, Tarball: sf.Tarball}, Path: sf.Path, Git: sf.Git}
		if key, problem := s.check(); problem != "" {
			return fail(fmt.Sprintf("source.%d.%s", i, key), "source: %s", problem)
		}
		if slices.Contains(c.Sources, s) {
			return fail(fmt.Sprintf("source.%d", i), "source: %s is listed twice", s)
		}
		c.Sources = append(c.Sources, s)
	}
	return c, nil
}

// check returns the key of s that cannot be right, and what is wrong with it.
func (s Source) check() (key, problem string) {
	if s.Git == "" {
		if key, problem := s.Package.Check(); problem != "" {
			return key, problem
		}
		if !fs.ValidPath(s.Path) {
			return "path", fmt.Sprintf("%q is not a folder inside the package", s.Path)
		}
		return "", ""
	}
	if s.Package != (npm.Package{}) || s.Path != "" {
		return "git", "a source is either an npm package or a git repository, not both"
	}
	if u, err := url.Parse(s.Git); err != nil || u.Scheme == "" || strings.HasPrefix(s.Git, "-") || s.repository() == "" {
		return "git", fmt.Sprintf("%q is not a URL that ends in OWNER/NAME", s.Git)
	}
	return "", ""
}

var repositoryPattern = regexp.MustCompile(`/([A-Za-z0-9_.-]+/[A-Za-z0-9_-][A-Za-z0-9_.-]*?)(\.git)?/?$`)

// repository returns the last two parts of a git URL, OWNER/NAME.
func (s Source) repository() string {
	m := repositoryPattern.FindStringSubmatch(s.Git)
	if m == nil || strings.HasPrefix(m[1], "../") {
		return ""
	}
	return m[1]
}

// has reports whether a file of the repository belongs to the tree.
func (c *Component) has(name string) bool {
	if neverPacked(name) {
		return false
	}
	for _, p := range c.Paths {
		if name == p || strings.HasPrefix(name, p+"/") {
			return true
		}
		if ok, _ := path.Match(p, name); ok { // Parse has checked the pattern
			return true
		}
	}
	return false
}

var neverPackedPattern = regexp.MustCompile(`(^|/)(\.git|\.gitignore|\.npmignore|\.svn|\.hg|CVS|\.DS_Store|\.npmrc|\.lock-wscript|` +
	`\.wafpickle-[^/]*|node_modules|npm-debug\.log|config\.gypi|package-lock\.json|archived-packages|\._[^/]*|\.[^/]*\.swp|[^/]*\.orig)(/|$)`)

// neverPacked reports whether npm leaves a file out of every package (npm help package.json, "files").
func neverPacked(name string) bool { return neverPackedPattern.MatchString(name) }
