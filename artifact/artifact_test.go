package artifact_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/enginery/enginery/artifact"
	"github.com/enginery/enginery/build"
	"github.com/enginery/enginery/internal/cas"
	"github.com/enginery/enginery/internal/enginetest"
	"github.com/enginery/enginery/recipes"
	"github.com/enginery/enginery/toolchain"
	attestation "github.com/in-toto/attestation/go/v1"
	"github.com/opencontainers/image-spec/schema"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	spdx "github.com/spdx/tools-golang/json"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/encoding/protojson"
)

// version is a shipped recipe with small files in place of its workers and bundles: the format does not depend on what they are.
type version struct {
	store   *cas.Store
	recipe  *recipes.Recipe
	outputs *build.Outputs
}

// newVersion makes a version of the recipe of agoric-upgrade-16. salt makes its workers differ from others'.
func newVersion(t testing.TB, id, salt string, size int) *version {
	t.Helper()
	store, err := cas.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(store.Close)
	v := &version{store: store, recipe: enginetest.Recipe(t, "agoric-upgrade-16"), outputs: new(build.Outputs)}
	v.recipe.ID = id
	put := func(name string) cas.Digest {
		content := []byte(salt + " " + name + "\n")
		d, err := store.PutBytes(t.Context(), bytes.Repeat(content, 1+size/len(content)))
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	for _, target := range v.recipe.Targets {
		for _, goal := range v.recipe.Goals {
			v.outputs.Workers = append(v.outputs.Workers, build.Worker{
				Platform: target.Platform,
				Goal:     goal,
				Binary:   put(target.Platform + " " + goal),
				Action:   cas.OfBytes([]byte(target.Platform + goal)),
			})
		}
	}
	pair := *v.recipe.Bundles
	pair.Lockdown.SHA256 = put("lockdown")
	pair.Supervisor.SHA256 = put("supervisor")
	v.recipe.Bundles = &pair
	return v
}

func (v *version) pack(t testing.TB) *artifact.Artifact {
	t.Helper()
	a, err := artifact.Pack(t.Context(), v.store, v.recipe, v.outputs)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// write writes the version to a layout.
func (v *version) write(t testing.TB, dir string) *artifact.Artifact {
	t.Helper()
	a := v.pack(t)
	if err := a.WriteLayout(t.Context(), dir); err != nil {
		t.Fatal(err)
	}
	return a
}

func open(t testing.TB, dir, id string) *artifact.Artifact {
	t.Helper()
	a, err := artifact.Open(dir, id)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// content returns what is in a folder, by path: type, permission and bytes.
func content(t testing.TB, dir string) map[string]string {
	t.Helper()
	files := make(map[string]string)
	if err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		info, err := d.Info()
		files[strings.TrimPrefix(path, dir)] = fmt.Sprintf("%s %s", info.Mode(), b)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return files
}

func read(t testing.TB, a *artifact.Artifact, d ocispec.Descriptor) []byte {
	t.Helper()
	r, err := a.Read(d)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestSameBytesEverywhere(t *testing.T) {
	const id = "agoric-upgrade-16"
	want := t.TempDir()
	newVersion(t, id, "a", 100).write(t, want)

	// Another umask, time zone and locale, one processor, another store, and workers in another order.
	umask := unix.Umask(0o077)
	defer unix.Umask(umask)
	local := time.Local
	time.Local = time.FixedZone("elsewhere", 5*3600)
	defer func() { time.Local = local }()
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	t.Setenv("LC_ALL", "tr_TR.UTF-8")
	t.Setenv("TZ", "Asia/Tokyo")
	t.Setenv("SOURCE_DATE_EPOCH", "1234567890")
	v := newVersion(t, id, "a", 100)
	slices.Reverse(v.outputs.Workers)
	got := t.TempDir()
	v.write(t, got)

	if w, g := content(t, want), content(t, got); !maps.Equal(w, g) {
		for path := range w {
			if w[path] != g[path] {
				t.Errorf("%s differs:\n%.300s\n%.300s", path, w[path], g[path])
			}
		}
		t.Errorf("%d and %d files", len(w), len(g))
	}
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	for path, c := range content(t, got) {
		for _, trace := range []string{host, got, time.Now().Format("2006-01")} {
			if strings.Contains(c, trace) {
				t.Errorf("%s has a trace of the machine or the time: %q", path, trace)
			}
		}
	}
	// What goes in does come out: another worker gives another index.
	if newVersion(t, id, "b", 100).pack(t).Index.Digest == v.pack(t).Index.Digest {
		t.Error("another worker gave the same index")
	}
}

// TestPlacesDoNotMatter changes what is not part of a recipe's identity: where sources are served, and what their files are called.
func TestPlacesDoNotMatter(t *testing.T) {
	v := newVersion(t, "agoric-upgrade-16", "a", 100)
	before, digest := v.pack(t), v.recipe.Digest()
	pin, pair := *v.recipe.Pin, *v.recipe.Bundles
	pin.Name, pair.Name = "another", "another"
	pin.Moddable.Sources, pin.XsnapNative.Sources = nil, nil
	v.recipe.Pin, v.recipe.Bundles = &pin, &pair
	if v.recipe.Digest() != digest {
		t.Fatal("the recipe has another digest")
	}
	after := v.pack(t)
	if after.Index.Digest != before.Index.Digest || after.Referrers[0].Manifest.Digest != before.Referrers[0].Manifest.Digest ||
		after.Referrers[1].Manifest.Digest != before.Referrers[1].Manifest.Digest {
		t.Error("equal recipes gave different artifacts")
	}
}

func TestConformsToImageSpec(t *testing.T) {
	for _, engineOnly := range []bool{false, true} {
		v := newVersion(t, "agoric-upgrade-16", "a", 100)
		if engineOnly {
			v.recipe.Bundles = nil
		}
		dir := t.TempDir()
		a := v.write(t, dir)
		check := func(validator schema.Validator, b []byte) {
			t.Helper()
			if err := validator.Validate(bytes.NewReader(b)); err != nil {
				t.Errorf("%s: %v\n%s", validator, err, b)
			}
		}
		for name, validator := range map[string]schema.Validator{
			ocispec.ImageLayoutFile: schema.ValidatorMediaTypeLayoutHeader,
			ocispec.ImageIndexFile:  schema.ValidatorMediaTypeImageIndex,
		} {
			b, err := os.ReadFile(filepath.Join(dir, name))
			if err != nil {
				t.Fatal(err)
			}
			check(validator, b)
		}
		check(schema.ValidatorMediaTypeImageIndex, read(t, a, a.Index))
		for _, p := range a.Platforms {
			check(schema.ValidatorMediaTypeManifest, read(t, a, p.Manifest))
		}
		for _, r := range a.Referrers {
			check(schema.ValidatorMediaTypeManifest, read(t, a, r.Manifest))
		}
	}
}

func TestFiles(t *testing.T) {
	const id = "agoric-upgrade-16"
	dir := t.TempDir()
	v := newVersion(t, id, "a", 100)
	v.write(t, dir)
	a := open(t, dir, id)

	var platforms []string
	types := make(map[string]string)
	for _, p := range a.Platforms {
		platforms = append(platforms, p.Name)
		var titles []string
		for _, f := range p.Files {
			titles = append(titles, artifact.Title(f))
			if other, ok := types[f.MediaType]; ok && other != artifact.Title(f) {
				t.Errorf("%s and %s have the same media type %s", other, artifact.Title(f), f.MediaType)
			}
			types[f.MediaType] = artifact.Title(f)
		}
		want := []string{"xsnap-worker", "xsnap-worker-debug", "lockdown.bundle", "supervisor.bundle", "NOTICES", "LICENSES"}
		if !slices.Equal(titles, want) {
			t.Errorf("%s has %v, expected %v", p.Name, titles, want)
		}
	}
	if want := []string{"linux/amd64", "linux/arm64"}; !slices.Equal(platforms, want) {
		t.Errorf("platforms %v, expected %v", platforms, want)
	}

	umask := unix.Umask(0o077)
	out := t.TempDir()
	err := a.Export(t.Context(), "linux/arm64", out)
	unix.Umask(umask)
	if err != nil {
		t.Fatal(err)
	}
	got := content(t, out)
	w, _ := v.outputs.Worker("linux/arm64", recipes.Release)
	binary, err := v.store.ReadAll(w.Binary)
	if err != nil {
		t.Fatal(err)
	}
	if want := "-rwxr-xr-x " + string(binary); got["/xsnap-worker"] != want {
		t.Errorf("xsnap-worker is %q, expected %q", got["/xsnap-worker"], want)
	}
	if !strings.HasPrefix(got["/NOTICES"], "-rw-r--r-- NOTICES for "+id+", linux/arm64\n") || len(got) != 6 {
		t.Errorf("exported %d files, NOTICES: %.80s", len(got), got["/NOTICES"])
	}
	if err := a.Export(t.Context(), "linux/riscv64", out); err == nil || !strings.Contains(err.Error(), "it is for linux/amd64, linux/arm64") {
		t.Errorf("a platform that is not there: %v", err)
	}

	v.recipe.Bundles = nil
	p, ok := v.pack(t).Platform("linux/amd64")
	if !ok {
		t.Fatal("no linux/amd64")
	}
	if _, ok := p.File(artifact.Lockdown); ok || p.Engine.Bundles != nil {
		t.Error("an engine alone has bundles")
	}
}

func TestEngine(t *testing.T) {
	const id = "agoric-upgrade-16"
	dir := t.TempDir()
	v := newVersion(t, id, "a", 100)
	v.write(t, dir)
	p, _ := open(t, dir, id).Platform("linux/arm64")
	e, r := p.Engine, v.recipe
	w, _ := v.outputs.Worker("linux/arm64", recipes.Debug)
	target, _ := r.Target("linux/arm64")
	for name, pair := range map[string][2]any{
		"version":     {e.Version, id},
		"platform":    {e.Platform, "linux/arm64"},
		"xsnap":       {e.Xsnap, r.XsnapVersion},
		"xs":          {e.XS, "13.3.0"},
		"protocol":    {e.Protocol, r.Engine.Protocol},
		"callbacks":   {e.HostCallbacks, r.Engine.HostCallbacks},
		"VERS":        {e.SnapshotVersion, "13.3.0"},
		"SIGN":        {e.SnapshotSignature, "xsnap 1"},
		"loads":       {fmt.Sprint(e.LoadsSnapshotsOf), fmt.Sprint(r.Engine.LoadsSnapshotsOf)},
		"meter":       {e.Meter, r.Engine.Meter},
		"consensus":   {fmt.Sprint(e.Consensus), "[release]"},
		"recipe":      {e.Recipe, r.Digest()},
		"moddable":    {e.Moddable.Tree, r.Pin.Moddable.Tree},
		"xsnapNative": {e.XsnapNative.Commit, r.Pin.XsnapNative.Commit},
		"lockdown":    {e.Bundles["lockdown"].ID, "b0-" + r.Bundles.Lockdown.SHA256.Hash},
		"supervisor":  {e.Bundles["supervisor"].Digest, r.Bundles.Supervisor.SHA256},
		"image":       {e.Toolchain.Image, target.Toolchain.Image.String()},
		"root":        {e.Toolchain.Root, target.Toolchain.Root},
		"action":      {e.Actions["debug"], w.Action},
		"golden":      {e.Golden["release"]["fresh"]["fresh"], artifact.Observation(r.Golden["release"]["fresh"]["fresh"])},
	} {
		if pair[0] != pair[1] {
			t.Errorf("%s is %v, expected %v", name, pair[0], pair[1])
		}
	}
}

func statement(t *testing.T, a *artifact.Artifact, predicateType string) (*attestation.Statement, []byte) {
	t.Helper()
	for _, r := range a.Referrers {
		if r.PredicateType != predicateType {
			continue
		}
		s := new(attestation.Statement)
		if err := protojson.Unmarshal(read(t, a, r.Statement), s); err != nil {
			t.Fatal(err)
		}
		if err := s.Validate(); err != nil {
			t.Error(err)
		}
		if len(s.Subject) != 1 || s.Subject[0].Digest["sha256"] != a.Index.Digest.Encoded() {
			t.Errorf("%s is about %v, expected the index %s", predicateType, s.Subject, a.Index.Digest)
		}
		b, err := json.Marshal(s.Predicate)
		if err != nil {
			t.Fatal(err)
		}
		return s, b
	}
	t.Fatalf("no statement of type %s", predicateType)
	return nil, nil
}

func TestSBOM(t *testing.T) {
	v := newVersion(t, "agoric-upgrade-16", "a", 100)
	a := v.pack(t)
	_, predicate := statement(t, a, artifact.SBOMPredicate)
	doc, err := spdx.Read(bytes.NewReader(predicate))
	if err != nil {
		t.Fatal(err)
	}
	const licenses = "LGPL-3.0-or-later AND Apache-2.0 AND dtoa AND LGPL-2.1-or-later AND GPL-3.0-or-later WITH GCC-exception-3.1"
	if got := doc.Packages[0].PackageLicenseDeclared; got != licenses {
		t.Errorf("licensed under %s, expected %s", got, licenses)
	}
	if doc.CreationInfo.Created != "1970-01-01T00:00:01Z" {
		t.Errorf("created %s", doc.CreationInfo.Created)
	}
	sums := make(map[string]string) // SHA-256 -> package
	purls := make(map[string]bool)
	ids := map[string]bool{"DOCUMENT": true}
	for _, p := range doc.Packages {
		if ids[string(p.PackageSPDXIdentifier)] {
			t.Errorf("two packages have the identifier %s", p.PackageSPDXIdentifier)
		}
		ids[string(p.PackageSPDXIdentifier)] = true
		for _, c := range p.PackageChecksums {
			sums[c.Value] = p.PackageName
		}
		for _, x := range p.PackageExternalReferences {
			purls[x.Locator] = true
		}
		if p.FilesAnalyzed {
			t.Errorf("%s claims that its files were analysed", p.PackageName)
		}
	}
	for _, r := range doc.Relationships {
		for _, id := range []string{string(r.RefA.ElementRefID), string(r.RefB.ElementRefID)} {
			if !ids[id] {
				t.Errorf("%s %s %s: there is no %s", r.RefA.ElementRefID, r.Relationship, r.RefB.ElementRefID, id)
			}
		}
	}
	for _, w := range v.outputs.Workers {
		if sums[w.Binary.Hash] == "" {
			t.Errorf("no package is the %s %s worker", w.Platform, w.Goal)
		}
	}
	for _, target := range v.recipe.Targets {
		for _, p := range target.Toolchain.Packages {
			if sums[p.SHA256] != p.Name || !purls[p.PURL("bookworm")] {
				t.Errorf("toolchain package %s is not there with its checksum and purl", p)
			}
		}
	}
	b := v.recipe.Bundles
	if sums[b.Lockdown.SHA256.Hash] == "" || !purls["pkg:npm/%40agoric/xsnap-lockdown@"+b.Lockdown.Version] {
		t.Errorf("the lockdown bundle is not there: %v", slices.Sorted(maps.Keys(purls)))
	}
}

func TestProvenance(t *testing.T) {
	v := newVersion(t, "agoric-upgrade-16", "a", 100)
	a := v.pack(t)
	_, predicate := statement(t, a, artifact.ProvenancePredicate)
	var p struct {
		BuildDefinition struct {
			BuildType          string
			ExternalParameters struct {
				Version string
				Recipe  struct{ Digest map[string]string }
			}
			ResolvedDependencies []struct {
				Name, URI string
				Digest    map[string]string
			}
		}
		RunDetails map[string]map[string]string
	}
	if err := json.Unmarshal(predicate, &p); err != nil {
		t.Fatal(err)
	}
	d := p.BuildDefinition
	if d.BuildType != artifact.BuildType || d.ExternalParameters.Version != v.recipe.ID || d.ExternalParameters.Recipe.Digest["sha256"] != v.recipe.Digest().Hash {
		t.Errorf("built as %+v", d)
	}
	found := make(map[string]bool)
	for _, dep := range d.ResolvedDependencies {
		for _, sum := range dep.Digest {
			found[sum] = true
		}
	}
	r := v.recipe
	want := []string{
		r.Pin.Moddable.Commit, r.Pin.Moddable.Tree.Hash, r.Pin.XsnapNative.Commit, r.Pin.XsnapNative.Tree.Hash,
		r.Bundles.Lockdown.SHA256.Hash, r.Bundles.Supervisor.SHA256.Hash,
		r.Targets[0].Toolchain.Image.Encoded(), r.Targets[1].Toolchain.Image.Encoded(),
	}
	for _, sum := range want {
		if !found[sum] {
			t.Errorf("no dependency has the digest %s", sum)
		}
	}
	if fmt.Sprint(p.RunDetails) != fmt.Sprint(map[string]map[string]string{"builder": {"id": artifact.BuilderID}}) {
		t.Errorf("ran as %v", p.RunDetails)
	}

	mine, err := a.Provenance(r, "https://example.org/rebuilder")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(mine), `"builder":{"id":"https://example.org/rebuilder"}`) {
		t.Errorf("a rebuilder's provenance lacks its builder: %s", mine)
	}
}

func TestNotices(t *testing.T) {
	v := newVersion(t, "agoric-upgrade-16", "a", 100)
	p, _ := v.pack(t).Platform("linux/arm64")
	a := v.pack(t)
	notices, _ := p.File(artifact.Notices)
	text := string(read(t, a, notices))
	r := v.recipe
	for _, want := range []string{
		r.Pin.Moddable.Commit, r.Pin.XsnapNative.Commit, "LGPL-3.0-or-later AND Apache-2.0 AND dtoa",
		"libgcc-12-dev-arm64-cross 12.2.0-14cross1", "libc6-dev 2.36-9", "built from glibc 2.36-9",
		"@agoric/xsnap-lockdown " + r.Bundles.Lockdown.Version,
		"Lucent Technologies", "Unicode, Inc.", "Marvell", "GCC Runtime Library Exception",
		"go tool mage sources:export agoric-upgrade-16",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("NOTICES lacks %q", want)
		}
	}
	licenses, _ := p.File(artifact.Licenses)
	all := string(read(t, a, licenses))
	for _, want := range []string{
		"Apache License\n                           Version 2.0", "GNU GENERAL PUBLIC LICENSE\n                       Version 3",
		"GNU LESSER GENERAL PUBLIC LICENSE\n                       Version 3", "GNU LESSER GENERAL PUBLIC LICENSE\n                       Version 2.1",
		"GCC RUNTIME LIBRARY EXCEPTION\n\nVersion 3.1",
	} {
		if !strings.Contains(all, want) {
			t.Errorf("LICENSES lacks %q", want)
		}
	}
	// The C library's licences are those of the very packages that are linked.
	store := enginetest.Store(t)
	for _, target := range r.Targets {
		root, err := toolchain.Ensure(t.Context(), store, target.Toolchain, toolchain.Options{From: os.Getenv("ENGINERY_TOOLCHAIN_FROM")})
		if err != nil {
			t.Fatal(err)
		}
		for _, pkg := range target.Toolchain.Packages {
			if pkg.Name != "libc6-dev" {
				continue
			}
			copyright, err := pkg.Copyright(root)
			if err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(all, strings.Trim(string(copyright), "\n")) {
				t.Errorf("LICENSES lacks the copyright file of %s; copy it to licenses/glibc.txt", pkg)
			}
		}
	}
}

func TestPackNeedsEveryWorker(t *testing.T) {
	v := newVersion(t, "agoric-upgrade-16", "a", 100)
	v.outputs.Workers = v.outputs.Workers[1:]
	_, err := artifact.Pack(t.Context(), v.store, v.recipe, v.outputs)
	if err == nil || !strings.Contains(err.Error(), "linux/amd64: the release worker was not built") {
		t.Errorf("packing without a worker: %v", err)
	}
}

func TestCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	v := newVersion(t, "agoric-upgrade-16", "a", 100)
	dir := t.TempDir()
	if err := v.pack(t).WriteLayout(ctx, dir); err == nil {
		t.Error("a cancelled write reports success")
	}
	if files := content(t, dir); len(files) != 0 {
		t.Errorf("a cancelled write left %v", slices.Sorted(maps.Keys(files)))
	}
}
