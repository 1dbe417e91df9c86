package artifact

import (
	"embed"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
	"sync"
	"text/template"

	pins "github.com/enginery/enginery/moddable-pins"
	"github.com/enginery/enginery/recipes"
	bundles "github.com/enginery/enginery/supervisor-bundles"
	"github.com/enginery/enginery/toolchain"
)

//go:embed notices.tmpl
var noticesSource string

var noticesTemplate = template.Must(template.New("NOTICES").Parse(noticesSource))

// dtoaLicense must stand in every copy: moddable/xs/sources/xsdtoa.c.
const dtoaLicense = `The author of this software is David M. Gay.

Copyright (c) 1991, 2000, 2001 by Lucent Technologies.

Permission to use, copy, modify, and distribute this software for any
purpose without fee is hereby granted, provided that this entire notice
is included in all copies of any software which is or includes a copy
or modification of this software and in all copies of the supporting
documentation for such software.

THIS SOFTWARE IS BEING PROVIDED "AS IS", WITHOUT ANY EXPRESS OR IMPLIED
WARRANTY.  IN PARTICULAR, NEITHER THE AUTHOR NOR LUCENT MAKES ANY
REPRESENTATION OR WARRANTY OF ANY KIND CONCERNING THE MERCHANTABILITY
OF THIS SOFTWARE OR ITS FITNESS FOR ANY PARTICULAR PURPOSE.
`

// unicodeLicense must stand in every copy: moddable/modules/data/text/decoder/textdecoder.c.
const unicodeLicense = `Copyright 2001-2004 Unicode, Inc.

Disclaimer

This source code is provided as is by Unicode, Inc. No claims are
made as to fitness for any particular purpose. No warranties of any
kind are expressed or implied. The recipient agrees to determine
applicability of information provided. If this file has been
purchased on magnetic or optical media from Unicode, Inc., the
sole remedy for any claim will be exchange of defective media
within 90 days of receipt.

Limitations on Rights to Redistribute This Code

Unicode, Inc. hereby grants the right to freely use the information
supplied in this file in the creation of products supporting the
Unicode Standard, and to make copies of this file in any form
for internal or external distribution as long as this notice
remains attached.
`

// The licences of what is in the bundles, whose packages declare Apache-2.0: see notices.tmpl.
const (
	lockdownLicense   = "Apache-2.0 AND BSD-3-Clause AND MIT AND Unlicense"
	supervisorLicense = "Apache-2.0 AND MIT AND Unlicense"
)

// licenses returns the SPDX expression for a version's workers.
func licenses(r *recipes.Recipe) string {
	var all []string
	for _, expression := range []string{
		r.Pin.Moddable.License,
		r.Pin.XsnapNative.License,
		"LGPL-2.1-or-later",                       // the C library
		"GPL-3.0-or-later WITH GCC-exception-3.1", // libgcc
	} {
		parts := strings.Split(expression, " AND ")
		if strings.Contains(expression, " OR ") {
			parts = []string{"(" + expression + ")"}
		}
		for _, l := range parts {
			if !slices.Contains(all, l) {
				all = append(all, l)
			}
		}
	}
	return strings.Join(all, " AND ")
}

func noticesText(r *recipes.Recipe, t recipes.Target) string {
	type component struct{ Name, Commit, Location, License string }
	data := struct {
		ID, Platform, Suite, Dtoa, Unicode string
		Components                         []component
		Libraries                          []toolchain.Package
		Bundles                            []bundles.Bundle
	}{
		ID:        r.ID,
		Platform:  t.Platform,
		Suite:     t.Toolchain.Suite,
		Dtoa:      indent(dtoaLicense),
		Unicode:   indent(unicodeLicense),
		Libraries: linked(t.Toolchain),
	}
	for _, c := range []pins.Component{r.Pin.Moddable, r.Pin.XsnapNative} {
		data.Components = append(data.Components, component{c.Name, c.Commit, location(c), c.License})
	}
	if r.Bundles != nil {
		data.Bundles = []bundles.Bundle{r.Bundles.Lockdown, r.Bundles.Supervisor}
	}
	var b strings.Builder
	if err := noticesTemplate.Execute(&b, data); err != nil {
		panic("writing NOTICES: " + err.Error()) // the template and its data are ours
	}
	return b.String()
}

func indent(text string) string {
	lines := strings.Split(strings.TrimRight(text, "\n"), "\n")
	for i, line := range lines {
		if line != "" {
			lines[i] = "    " + line
		}
	}
	return strings.Join(lines, "\n") + "\n"
}

// The texts of the licences. Those of the C library are Debian's: its package's copyright file.
//
//go:embed licenses/*.txt
var licenseTexts embed.FS

// licensesText is the same for all versions, so layouts and registries have it once.
var licensesText = sync.OnceValue(func() []byte {
	names, err := fs.Glob(licenseTexts, "licenses/*.txt")
	if err != nil {
		panic(err) // the pattern is fine
	}
	var b strings.Builder
	b.WriteString("The licences that NOTICES refers to.\n")
	for _, name := range names {
		text, err := licenseTexts.ReadFile(name)
		if err != nil {
			panic(err) // it is embedded
		}
		title := strings.TrimSuffix(path.Base(name), ".txt")
		fmt.Fprintf(&b, "\n\n%s\n%s\n\n%s\n", title, strings.Repeat("=", len(title)), strings.Trim(string(text), "\n"))
	}
	return []byte(b.String())
})
