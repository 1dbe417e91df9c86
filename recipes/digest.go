package recipes

import (
	"bytes"
	"encoding/json"
	"fmt"

	"github.com/enginery/enginery/internal/cas"
	"github.com/enginery/enginery/moddable-pins"
	"github.com/enginery/enginery/supervisor-bundles"
)

// The closed recipe as JSON. A field left out here is not part of the recipe's identity.
type (
	closed struct {
		Schema      int                                              `json:"schema"`
		ID          string                                           `json:"id"`
		Xsnap       string                                           `json:"xsnap"`
		Moddable    component                                        `json:"moddable"`
		XsnapNative component                                        `json:"xsnap-native"`
		Bundles     map[string]bundle                                `json:"bundles"` // empty: an engine alone
		Platforms   map[string]platform                              `json:"platforms"`
		Goals       []string                                         `json:"goals"`
		Make        makefile                                         `json:"make"`
		Flags       flagsFile                                        `json:"flags"`
		Engine      engineFile                                       `json:"engine"`
		Golden      map[string]map[string]map[string]observationFile `json:"golden"`
		Vectors     map[string][]stepFile                            `json:"vectors"`
	}
	component struct {
		Commit  string     `json:"commit"`
		License string     `json:"license"`
		Paths   []string   `json:"paths"`
		Tree    cas.Digest `json:"tree"`
	}
	bundle struct {
		Package string     `json:"package"`
		Version string     `json:"version"`
		File    string     `json:"file"`
		Digest  cas.Digest `json:"digest"`
	}
	platform struct {
		Root     cas.Digest `json:"root"`
		Image    string     `json:"image"`
		Lock     cas.Digest `json:"lock"`
		Compiler string     `json:"compiler"`
		Link     []string   `json:"link,omitempty"`
	}
	makefile struct {
		Directory string   `json:"directory"`
		File      string   `json:"file"`
		Variables []string `json:"variables"`
		Output    string   `json:"output"`
	}
)

// Digest identifies the recipe: it is the digest of [Recipe.JSON]. Recipes with the same digest have the same outputs.
func (r *Recipe) Digest() cas.Digest { return cas.OfBytes(r.JSON()) }

// JSON returns the closed recipe: all that the outputs depend on, and what the engine must do to be accepted, as JSON
// with sorted keys, without white space.
//
// What its files refer to by name stands there by content. Left out is what can change without changing the
// content: the places that serve a source tree (its digest is its identity), and the names of pins and bundle pairs.
func (r *Recipe) JSON() []byte {
	c := closed{
		Schema:      Schema,
		ID:          r.ID,
		Xsnap:       r.XsnapVersion,
		Moddable:    closeComponent(r.Pin.Moddable),
		XsnapNative: closeComponent(r.Pin.XsnapNative),
		Bundles:     map[string]bundle{},
		Platforms:   map[string]platform{},
		Goals:       r.Goals,
		Make:        makefile(r.Make),
		Flags:       flagsFile{r.CFlags, r.LDFlags},
		Engine:      engineFile(r.Engine),
		Golden:      map[string]map[string]map[string]observationFile{},
		Vectors:     map[string][]stepFile{},
	}
	if r.Bundles != nil {
		c.Bundles[Lockdown] = closeBundle(r.Bundles.Lockdown)
		c.Bundles[Supervisor] = closeBundle(r.Bundles.Supervisor)
	}
	for _, t := range r.Targets {
		c.Platforms[t.Platform] = platform{
			Root:     t.Toolchain.Root,
			Image:    t.Toolchain.Image.String(),
			Lock:     cas.OfBytes(t.Toolchain.LockFile()),
			Compiler: t.Toolchain.Compiler,
			Link:     t.LDFlags,
		}
	}
	for goal, vectors := range r.Golden {
		c.Golden[goal] = map[string]map[string]observationFile{}
		for vector, labels := range vectors {
			c.Golden[goal][vector] = map[string]observationFile{}
			for label, o := range labels {
				c.Golden[goal][vector][label] = observationFile(o)
			}
		}
	}
	for name, v := range r.Vectors {
		steps := make([]stepFile, len(v.Steps))
		for i, s := range v.Steps {
			steps[i] = stepFile(s)
		}
		c.Vectors[name] = steps
	}
	return canonical(c)
}

// closeComponent leaves out a tree digest that the pin does not record: fetching it would change the recipe's identity.
func closeComponent(c pins.Component) component {
	out := component{Commit: c.Commit, License: c.License, Paths: c.Paths}
	if c.Recorded {
		out.Tree = c.Tree
	}
	return out
}

func closeBundle(b bundles.Bundle) bundle {
	return bundle{Package: b.Name, Version: b.Version, File: b.File, Digest: b.SHA256}
}

// canonical encodes v with the keys of objects sorted, without white space and without escapes for HTML.
func canonical(v any) []byte {
	encode := func(v any) []byte {
		var b bytes.Buffer
		e := json.NewEncoder(&b)
		e.SetEscapeHTML(false)
		if err := e.Encode(v); err != nil {
			panic(fmt.Sprintf("encoding a recipe: %v", err)) // strings, integers, slices and maps of them encode
		}
		return bytes.TrimSuffix(b.Bytes(), []byte("\n"))
	}
	var tree any
	d := json.NewDecoder(bytes.NewReader(encode(v)))
	d.UseNumber()
	if err := d.Decode(&tree); err != nil {
		panic(fmt.Sprintf("decoding a recipe: %v", err)) // it was encoded a moment ago
	}
	return encode(tree)
}
