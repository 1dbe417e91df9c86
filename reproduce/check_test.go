package reproduce

import (
	"bytes"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/enginery/enginery/artifact"
	"github.com/enginery/enginery/internal/cas"
	"github.com/enginery/enginery/internal/enginetest"
	"github.com/enginery/enginery/internal/exit"
	"github.com/enginery/enginery/recipes"
	"github.com/enginery/enginery/release"
	"github.com/enginery/enginery/toolchain"
)

// small returns a version's recipe, cut down to what compiles fast.
func small(t *testing.T, id string) *recipes.Recipe {
	t.Helper()
	r := enginetest.Recipe(t, id)
	target, ok := r.Target("linux/amd64")
	if !ok {
		t.Fatalf("%s is not built for linux/amd64", id)
	}
	r.Targets, r.Goals = []recipes.Target{target}, []string{recipes.Debug}
	return r
}

func workshop(t *testing.T) *release.Workshop {
	t.Helper()
	return &release.Workshop{
		Store:         enginetest.Store(t),
		Layout:        filepath.Join(t.TempDir(), "oci"),
		ToolchainFrom: os.Getenv("ENGINERY_TOOLCHAIN_FROM"),
	}
}

// TestBuildsAreIdentical builds an engine twice, and makes sure that the environments of the two builds had nothing in common but the
// machine.
func TestBuildsAreIdentical(t *testing.T) {
	report, err := Check(t.Context(), workshop(t), small(t, "agoric-upgrade-16"))
	if err != nil {
		t.Fatal(err)
	}
	if !report.Identical() {
		t.Error(&DifferentError{Report: report})
	}
	if len(report.Rows) != 1 || report.Rows[0].Digests[0].Name != artifact.DebugWorker {
		t.Errorf("the report has %+v, expected one row that begins with the worker", report.Rows)
	}
	alike := alikeHere(t, report.First.Path)
	for _, f := range facts(report.First, report.Second) {
		if same := f.First == f.Second; same != alike[f.Name] {
			t.Errorf("%s is %q in the first environment and %q in the second", f.Name, f.First, f.Second)
		}
	}
	checkConclusion(t, report) // half of the version was built
}

// alikeHere returns the names of the facts that both environments must have in common on this machine: the kernel, and what no place for
// the second build has otherwise than the store. Where /dev/shm can be used, which is a file system of its own, it must be.
func alikeHere(t *testing.T, store string) map[string]bool {
	t.Helper()
	place, err := otherPlace(store, lendable())
	if err != nil {
		t.Fatal(err)
	}
	const shm = "/dev/shm"
	unfit := fit(shm, lendable())
	if unfit == nil && place != shm && fileSystem(place) == fileSystem(store) && fileSystem(shm) != fileSystem(store) {
		t.Errorf("the place for the second build is %s, expected %s", place, shm)
	}
	if unfit != nil {
		t.Logf("the second build is in %s (%s), since %v", place, fileSystem(place), unfit)
	}
	return map[string]bool{
		"kernel":         true,
		"file system":    fileSystem(place) == fileSystem(store),
		"order of files": fileOrder(place) == fileOrder(filepath.Join(store, "tmp")),
	}
}

// checkConclusion makes sure that a report whose only version, agoric-upgrade-16, is not as recorded is a failure that says so.
func checkConclusion(t *testing.T, report *Report) {
	t.Helper()
	dir := t.TempDir()
	var out bytes.Buffer
	err := report.conclude(&out, false, dir)
	if release.Status(err) != exit.Different {
		t.Errorf("two equal builds that are not as recorded gave %v (status %d), expected status %d", err, release.Status(err), exit.Different)
	} else {
		for _, want := range []string{"two builds of agoric-upgrade-16 are the same, but", "not what manifests/agoric-upgrade-16.json records", "built nothing"} {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("the error lacks %q:\n%v", want, err)
			}
		}
	}
	if want := "(the record: different)"; !strings.Contains(out.String(), want) {
		t.Errorf("the summary lacks %q:\n%s", want, &out)
	}
	if _, err := os.Stat(filepath.Join(dir, "reproducible.html")); err != nil {
		t.Error(err)
	}
}

// TestPlantedTime plants the time of the compilation into copies of a pin, in two ways.
//
// A __TIME__ alone does no harm: every action sets SOURCE_DATE_EPOCH, which GCC takes for the time. In the copy called "caught" the
// makefile withholds that variable from the compiler, so that the time is the real one, and it must be caught and explained.
func TestPlantedTime(t *testing.T) {
	// Builds that differ have no place in the store that all builds share.
	shared := workshop(t)
	store, err := cas.Open(filepath.Join(t.TempDir(), "store"))
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	original := small(t, "agoric-upgrade-16")
	images := filepath.Join(t.TempDir(), "images")
	from, err := seed(t.Context(), shared, store, images, []*recipes.Recipe{original})
	if err != nil {
		t.Fatal(err)
	}
	w := &release.Workshop{Store: store, Layout: shared.Layout, ToolchainFrom: from}

	declaration := "__attribute__((used)) const char planted[] = \"compiled at \" __DATE__ \" \" __TIME__;\n"
	harmless := plant(t, w, original, "harmless", map[string]string{"xsnap/sources/xsnap-worker.c": declaration})
	caught := plant(t, w, original, "caught", map[string]string{
		"xsnap/sources/xsnap-worker.c":              declaration,
		"xsnap/makefiles/lin/" + original.Make.File: "unexport SOURCE_DATE_EPOCH\n",
	})
	report, err := Check(t.Context(), w, harmless, caught)
	if err != nil {
		t.Fatal(err)
	}
	if report.Identical() || len(report.Rows) != 2 {
		t.Fatalf("the report has %+v, expected two rows, one of them different", report.Rows)
	}

	row := report.Rows[0]
	if row.Version != "harmless" || !row.Identical {
		t.Errorf("a __TIME__ under SOURCE_DATE_EPOCH gave %+v", row)
	}
	alone := &Report{Rows: []Row{row}, unlike: report.unlike}
	if err := alone.conclude(io.Discard, false, t.TempDir()); err != nil || row.Recorded != "none" {
		t.Errorf("two equal builds without a record (%s) gave %v, expected none and no error", row.Recorded, err)
	}
	_, worker, err := read(w.Layout, row.Digests[0].First)
	if err != nil {
		t.Fatal(err)
	}
	if want := []byte("compiled at Jan  1 1970 00:00:01"); !bytes.Contains(worker, want) {
		t.Errorf("the harmless worker lacks %q", want)
	}

	row = report.Rows[1]
	if row.Version != "caught" || row.Identical {
		t.Fatalf("a __TIME__ without SOURCE_DATE_EPOCH gave %+v", row)
	}
	d := row.Digests[0]
	if d.Name != artifact.DebugWorker || len(d.Causes) != 1 {
		t.Fatalf("the first digest is %+v, expected that of the worker with one cause", d)
	}
	c := d.Causes[0]
	now := regexp.MustCompile(`^"compiled at [A-Z][a-z]{2} [ 0-9]{2} 20\d\d \d\d:\d\d:\d\d"$`)
	if c.Section != ".rodata" || c.Symbol != "planted" || !now.MatchString(c.First) || !now.MatchString(c.Second) || c.First == c.Second {
		t.Errorf("the cause is %+v, expected the symbol planted in .rodata with two times", c)
	}
	for _, d := range row.Digests[1:] {
		consequence := d.Name == "manifest" || d.Name == "index" || strings.HasPrefix(d.Name, "https://")
		if differs := d.First != d.Second; differs != consequence || d.Consequence != consequence || d.Causes != nil {
			t.Errorf("%s is %+v", d.Name, d)
		}
	}

	message := (&DifferentError{Report: report, Page: "the report"}).Error()
	for _, want := range []string{"caught linux/amd64 xsnap-worker-debug", ".rodata", "symbol planted", c.First, c.Second, "the report"} {
		if !strings.Contains(message, want) {
			t.Errorf("the message lacks %q:\n%s", want, message)
		}
	}
	if strings.Contains(message, "harmless") {
		t.Errorf("the message blames the harmless version:\n%s", message)
	}
}

// plant returns a recipe whose xsnap-native has text in front of some files.
func plant(t *testing.T, w *release.Workshop, original *recipes.Recipe, id string, text map[string]string) *recipes.Recipe {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "xsnap-native")
	if err := w.Store.Checkout(t.Context(), original.Pin.XsnapNative.Tree, dir); err != nil {
		t.Fatal(err)
	}
	for name, text := range text {
		file := filepath.Join(dir, name)
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, append([]byte(text), b...), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	tree, err := w.Store.PutTree(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	r, pin := *original, *original.Pin
	r.ID, r.Pin = id, &pin
	pin.XsnapNative.Tree = tree
	return &r
}

// TestSeedWithoutPackages seeds from a store whose toolchain came as an image.
func TestSeedWithoutPackages(t *testing.T) {
	shared := workshop(t)
	r := small(t, "agoric-upgrade-16")
	store := func() *cas.Store {
		s, err := cas.Open(filepath.Join(t.TempDir(), "store"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(s.Close)
		return s
	}
	tc := r.Targets[0].Toolchain
	img, err := toolchain.Image(t.Context(), shared.Store, tc, toolchain.Options{From: shared.ToolchainFrom})
	if err != nil {
		t.Fatal(err)
	}
	w := &release.Workshop{Store: store(), ToolchainFrom: filepath.Join(t.TempDir(), "published")}
	if err := artifact.AddImage(t.Context(), w.ToolchainFrom, tc.Name, img); err != nil {
		t.Fatal(err)
	}
	if _, err := seed(t.Context(), shared, w.Store, filepath.Join(t.TempDir(), "images"), []*recipes.Recipe{r}); err != nil {
		t.Fatal(err)
	}
	for _, p := range tc.Packages {
		os.Remove(w.Store.Path(p.Digest()))
	}

	second, images := store(), filepath.Join(t.TempDir(), "images")
	from, err := seed(t.Context(), w, second, images, []*recipes.Recipe{r})
	if err != nil {
		t.Fatal(err)
	}
	if from != images {
		t.Errorf("toolchains are to be taken from %q, expected %q", from, images)
	}
	if err := os.RemoveAll(w.ToolchainFrom); err != nil { // the second build must not need it
		t.Fatal(err)
	}
	if _, err := toolchain.Ensure(t.Context(), second, tc, toolchain.Options{From: from}); err != nil {
		t.Error(err)
	}
}

// TestOrderArrivesWhole sends every recipe the way it goes to the second build.
func TestOrderArrivesWhole(t *testing.T) {
	var rs []*recipes.Recipe
	for _, id := range recipes.IDs() {
		rs = append(rs, enginetest.Recipe(t, id))
	}
	o := newOrder(t.TempDir(), Environment{Jobs: 2, Umask: "022"}, rs)
	encoded, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := readOrder(bytes.NewReader(encoded)); err != nil {
		t.Error(err)
	}
	for _, id := range []string{"agoric-upgrade-16", "agoric-upgrade-22"} {
		changed := bytes.Replace(encoded, []byte(`"ID":"`+id+`"`), []byte(`"ID":"agoric-upgrade-xx"`), 1)
		if _, err := readOrder(bytes.NewReader(changed)); err == nil || !strings.Contains(err.Error(), "agoric-upgrade-xx has the digest") {
			t.Errorf("a changed recipe of %s: %v", id, err)
		}
	}
	if _, err := readOrder(bytes.NewReader(encoded[:len(encoded)/2])); err == nil {
		t.Error("half an order was accepted")
	}
}

// TestSecondBuildNamesWhatFails has one of two versions fail to compile: the other is built, and the answer says why the first is not.
func TestSecondBuildNamesWhatFails(t *testing.T) {
	good, bad := small(t, "agoric-upgrade-16"), small(t, "agoric-upgrade-17")
	bad.CFlags = append(bad.CFlags, "-fno-such-flag")
	w := workshop(t)
	o := newOrder(t.TempDir(), Environment{}, []*recipes.Recipe{bad, good})
	o.Store, o.ToolchainFrom, o.Umask = w.Store.Dir(), w.ToolchainFrom, 0o022
	before := syscall.Umask(o.Umask)
	defer syscall.Umask(before)
	r, err := buildOrder(o)
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Versions) != 1 || r.Versions[0].Manifest.Version != good.ID || len(r.Failed) != 1 || !strings.Contains(r.Failed[bad.ID], "-fno-such-flag") {
		t.Errorf("built %d versions, failed: %q; want %s to be built, and why %s is not", len(r.Versions), r.Failed, good.ID, bad.ID)
	}
}

// TestOtherwiseThanHere makes sure that the second build differs from an environment that is like it.
func TestOtherwiseThanHere(t *testing.T) {
	o := newOrder(t.TempDir(), Environment{Jobs: 1, Umask: "077"}, nil)
	if o.Jobs == 1 || o.Umask == 0o077 {
		t.Errorf("the second build has %d jobs and umask %03o like the first", o.Jobs, o.Umask)
	}
}
