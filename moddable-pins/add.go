package pins

import (
	"bytes"
	"context"
	_ "embed"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/template"

	"github.com/google/renameio/v2"
)

// What a component that no pin has yet is taken to be.
var (
	newModdable = Component{
		Name: "moddable",
		// The runtime's own licence, and those of the two works that its headers say it incorporates.
		License: "LGPL-3.0-or-later AND Apache-2.0 AND dtoa",
		// What Agoric's npm packages have of Moddable.
		Paths: []string{"modules/data", "xs/includes", "xs/makefiles", "xs/platforms/*.h", "xs/sources"},
		Sources: []Source{
			{Git: "https://github.com/agoric-labs/moddable"},
			{Git: "https://github.com/Moddable-OpenSource/moddable"},
		},
	}
	newXsnapNative = Component{
		Name:    "xsnap-native",
		License: "Apache-2.0", // of the npm packages that have it; the repository itself does not say
		Paths:   []string{"xsnap/makefiles", "xsnap/sources"},
		Sources: []Source{{Git: "https://github.com/agoric-labs/xsnap-pub"}},
	}
)

// Add writes the pin name of two commits to dir, the folder with the other pins, and returns the file's path. What a pin in dir
// knows of a commit is taken from there; everything else is fetched, so that the file has all digests. An existing pin
// can be added again to record what it leaves unrecorded; otherwise it is left as it is.
func (f *Fetcher) Add(ctx context.Context, dir, name, moddable, xsnapNative string) (string, error) {
	if !namePattern.MatchString(name) {
		return "", &ArgumentError{fmt.Sprintf("adding pin %q: a name has lower-case letters, digits, dots and dashes", name)}
	}
	for _, commit := range []string{moddable, xsnapNative} {
		if !commitPattern.MatchString(commit) {
			return "", &ArgumentError{fmt.Sprintf("adding pin %s: commit %q: 40 hexadecimal digits are expected", name, commit)}
		}
	}
	p := &Pin{Name: name, Moddable: newModdable, XsnapNative: newXsnapNative}
	p.Moddable.Commit, p.XsnapNative.Commit = moddable, xsnapNative
	known, err := loadAll(os.DirFS(dir))
	if err != nil {
		return "", fmt.Errorf("adding pin %s: %w", name, err)
	}
	file := filepath.Join(dir, name+".toml")
	note := ""
	for _, k := range known {
		if k.Name == name {
			if k.Moddable.Commit != moddable || k.XsnapNative.Commit != xsnapNative {
				return "", &ArgumentError{fmt.Sprintf("adding pin %s: %s has other commits already", name, file)}
			}
			if k.Moddable.Recorded && k.XsnapNative.Recorded {
				return "", &ArgumentError{fmt.Sprintf("adding pin %s: %s is complete already", name, file)}
			}
			if note, err = noteOf(file); err != nil {
				return "", fmt.Errorf("adding pin %s: %w", name, err)
			}
		}
		if k.Name != name && k.Moddable.Commit == moddable && k.XsnapNative.Commit == xsnapNative {
			return "", &ArgumentError{fmt.Sprintf("adding pin %s: these commits are the pin %s already", name, k.Name)}
		}
		adopt(&p.Moddable, k.Moddable)
		adopt(&p.XsnapNative, k.XsnapNative)
	}
	for _, c := range []*Component{&p.Moddable, &p.XsnapNative} {
		if err := f.fetch(ctx, c); err != nil {
			return "", fmt.Errorf("adding pin %s: %w", name, err)
		}
		c.Recorded = true
	}
	data := format(p, note)
	if _, err := Parse(file, data); err != nil {
		return "", fmt.Errorf("adding pin %s: %w", name, err)
	}
	if err := renameio.WriteFile(file, data, 0o644, renameio.WithStaticPermissions(0o644)); err != nil {
		return "", fmt.Errorf("adding pin %s: writing %s: %w", name, file, err)
	}
	return file, nil
}

// adopt takes over what is known of c's commit.
func adopt(c *Component, known Component) {
	if known.Commit == c.Commit && !c.Recorded {
		*c = known
	}
}

func loadAll(fsys fs.FS) ([]*Pin, error) {
	var all []*Pin
	for _, name := range names(fsys) {
		p, err := load(fsys, name)
		if err != nil {
			return nil, err
		}
		all = append(all, p)
	}
	return all, nil
}

//go:embed pin.tmpl
var pinText string

var pinTemplate = template.Must(template.New("pin").Parse(pinText))

// format returns the file of p. note is the comment at its top, after the first line.
func format(p *Pin, note string) []byte {
	var b bytes.Buffer
	err := pinTemplate.Execute(&b, struct {
		*Pin
		Note string
	}{p, note})
	if err != nil {
		panic(err) // the template does not fit the type
	}
	return b.Bytes()
}

// noteOf returns the comment at the top of a pin's file, after the first line.
func noteOf(file string) (string, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return "", err
	}
	var note strings.Builder
	for i, line := range slices.Collect(strings.Lines(string(data))) {
		if !strings.HasPrefix(line, "#") {
			break
		}
		if i > 0 {
			note.WriteString(line)
		}
	}
	return note.String(), nil
}
