package artifact

import (
	"encoding/json"
	"net/url"
	"strings"
	"time"

	"github.com/enginery/enginery/build"
	pins "github.com/enginery/enginery/moddable-pins"
	"github.com/enginery/enginery/recipes"
	bundles "github.com/enginery/enginery/supervisor-bundles"
	"github.com/enginery/enginery/toolchain"
	"github.com/spdx/tools-golang/spdx/v2/common"
	spdx "github.com/spdx/tools-golang/spdx/v2/v2_3"
)

// sbom lists, in SPDX 2.3, what a version consists of and what it was made with.
func (a *Artifact) sbom(r *recipes.Recipe) ([]byte, error) {
	doc := &spdx.Document{
		SPDXVersion:       spdx.Version,
		DataLicense:       spdx.DataLicense,
		SPDXIdentifier:    "DOCUMENT",
		DocumentName:      r.ID,
		DocumentNamespace: source + "/sbom/" + r.ID + "/" + a.Index.Digest.Encoded(),
		CreationInfo: &spdx.CreationInfo{
			Creators: []common.Creator{{CreatorType: "Tool", Creator: "enginery"}},
			Created:  time.Unix(build.SourceDateEpoch, 0).UTC().Format(time.RFC3339),
		},
	}
	b := sbomBuilder{doc: doc}
	version := b.add(&spdx.Package{
		PackageName:             r.ID,
		PackageVersion:          r.XsnapVersion,
		PackageSupplier:         &common.Supplier{SupplierType: "NOASSERTION", Supplier: "NOASSERTION"},
		PackageDownloadLocation: "NOASSERTION",
		PackageLicenseDeclared:  licenses(r),
		PackageChecksums:        sha256Sum(a.Index.Digest.Encoded()),
		PrimaryPackagePurpose:   "CONTAINER",
	}, "version")
	b.relate("DOCUMENT", "DESCRIBES", version)

	var sources []common.ElementID
	for _, c := range []pins.Component{r.Pin.Moddable, r.Pin.XsnapNative} {
		sources = append(sources, b.add(sourcePackage(c), "source-"+c.Name))
	}
	for i, p := range a.Platforms {
		t := r.Targets[i]
		tc := b.toolchain(t.Toolchain)
		for _, f := range p.Files {
			if f.MediaType != WorkerType && f.MediaType != DebugWorkerType {
				continue
			}
			worker := b.add(&spdx.Package{
				PackageName:             p.Name + " " + Title(f),
				PackageVersion:          r.XsnapVersion,
				PackageFileName:         Title(f),
				PackageDownloadLocation: "NOASSERTION",
				PackageLicenseDeclared:  licenses(r),
				PackageChecksums:        sha256Sum(f.Digest.Encoded()),
				PackageAttributionTexts: []string{dtoaLicense, unicodeLicense},
				PrimaryPackagePurpose:   "APPLICATION",
			}, "file-"+p.Name+"-"+Title(f))
			b.relate(version, "CONTAINS", worker)
			for _, s := range sources {
				b.relate(worker, "GENERATED_FROM", s)
			}
			b.relate(tc, "BUILD_TOOL_OF", worker)
			for _, l := range linked(t.Toolchain) {
				b.relate(worker, "STATIC_LINK", b.debian(t.Toolchain, l))
			}
		}
	}
	if r.Bundles != nil {
		for _, bd := range []struct {
			bundles.Bundle
			license string
		}{{r.Bundles.Lockdown, lockdownLicense}, {r.Bundles.Supervisor, supervisorLicense}} {
			b.relate(version, "CONTAINS", b.add(&spdx.Package{
				PackageName:               bd.Name,
				PackageVersion:            bd.Version,
				PackageFileName:           bd.File,
				PackageDownloadLocation:   "NOASSERTION",
				PackageLicenseDeclared:    "Apache-2.0",
				PackageLicenseConcluded:   bd.license,
				PackageChecksums:          sha256Sum(bd.SHA256.Hash),
				PackageExternalReferences: purl(npmPURL(bd.Name, bd.Version)),
			}, "bundle-"+bd.Name))
		}
	}
	predicate, err := json.Marshal(doc)
	if err != nil {
		return nil, err
	}
	return a.state(SBOMPredicate, predicate)
}

type sbomBuilder struct {
	doc  *spdx.Document
	seen map[common.ElementID]bool
}

// add adds a package, once, under an identifier made of a name.
func (b *sbomBuilder) add(p *spdx.Package, name string) common.ElementID {
	id := common.ElementID(strings.Map(func(c rune) rune {
		if 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '.' || c == '-' {
			return c
		}
		return '-'
	}, name))
	if b.seen == nil {
		b.seen = make(map[common.ElementID]bool)
	}
	if b.seen[id] {
		return id
	}
	b.seen[id] = true
	p.PackageSPDXIdentifier = id
	if p.PackageLicenseConcluded == "" {
		p.PackageLicenseConcluded = "NOASSERTION"
	}
	p.PackageCopyrightText = "NOASSERTION"
	b.doc.Packages = append(b.doc.Packages, p)
	return id
}

func (b *sbomBuilder) relate(from common.ElementID, relation string, to common.ElementID) {
	b.doc.Relationships = append(b.doc.Relationships, &spdx.Relationship{
		RefA:         common.DocElementID{ElementRefID: from},
		RefB:         common.DocElementID{ElementRefID: to},
		Relationship: relation,
	})
}

func (b *sbomBuilder) toolchain(t *toolchain.Toolchain) common.ElementID {
	name := "toolchain-" + t.Name
	if b.seen[common.ElementID(name)] {
		return common.ElementID(name)
	}
	id := b.add(&spdx.Package{
		PackageName:             t.Name,
		PackageDownloadLocation: "NOASSERTION",
		PackageLicenseDeclared:  "NOASSERTION",
		PackageChecksums:        sha256Sum(t.Image.Encoded()),
		PrimaryPackagePurpose:   "CONTAINER",
	}, name)
	for _, p := range t.Packages {
		b.relate(id, "CONTAINS", b.debian(t, p))
	}
	return id
}

func (b *sbomBuilder) debian(t *toolchain.Toolchain, p toolchain.Package) common.ElementID {
	return b.add(&spdx.Package{
		PackageName:               p.Name,
		PackageVersion:            p.Version,
		PackageSourceInfo:         "built from the source package " + p.Source,
		PackageDownloadLocation:   "NOASSERTION",
		PackageLicenseDeclared:    "NOASSERTION",
		PackageChecksums:          sha256Sum(p.SHA256),
		PackageExternalReferences: purl(p.PURL(t.Suite)),
	}, "deb-"+p.Name+"-"+p.Architecture+"-"+p.Version)
}

// linked are the packages whose libraries are linked into a worker.
func linked(t *toolchain.Toolchain) []toolchain.Package {
	var in []toolchain.Package
	for _, p := range t.Packages {
		if strings.HasPrefix(p.Name, "libc6-dev") || strings.HasPrefix(p.Name, "libgcc-") && strings.Contains(p.Name, "-dev") {
			in = append(in, p)
		}
	}
	return in
}

func sourcePackage(c pins.Component) *spdx.Package {
	return &spdx.Package{
		PackageName:             c.Name,
		PackageVersion:          c.Commit,
		PackageDownloadLocation: location(c),
		PackageLicenseDeclared:  c.License,
		PackageComment:          "tree " + c.Tree.String() + " (Remote Execution API Directory) of " + strings.Join(c.Paths, ", "),
		PrimaryPackagePurpose:   "SOURCE",
	}
}

func sha256Sum(hash string) []common.Checksum {
	return []common.Checksum{{Algorithm: common.SHA256, Value: hash}}
}

func purl(locator string) []*spdx.PackageExternalReference {
	return []*spdx.PackageExternalReference{{Category: common.CategoryPackageManager, RefType: common.TypePackageManagerPURL, Locator: locator}}
}

func npmPURL(name, version string) string {
	scope, rest, scoped := strings.Cut(name, "/")
	if !scoped {
		return "pkg:npm/" + url.PathEscape(name) + "@" + url.PathEscape(version)
	}
	return "pkg:npm/" + strings.Replace(scope, "@", "%40", 1) + "/" + url.PathEscape(rest) + "@" + url.PathEscape(version)
}
