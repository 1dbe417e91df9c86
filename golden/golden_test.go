package golden

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/enginery/enginery/internal/enginetest"
	"github.com/enginery/enginery/internal/strict"
	"github.com/enginery/enginery/recipes"
)

var platforms = []string{"linux/amd64", "linux/arm64"}

// source returns a version's xsnap-worker.c.
func source(t testing.TB, r *recipes.Recipe) []byte {
	t.Helper()
	s := enginetest.Store(t)
	if err := enginetest.Fetch(s)(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	found, err := s.ReadFile(r.Pin.XsnapNative.Tree, WorkerSource)
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// engine returns a version's worker with what its vectors need.
func engine(t testing.TB, r *recipes.Recipe, platform, goal string) Engine {
	t.Helper()
	e := Engine{Path: enginetest.Worker(t, r.ID, platform, goal)}
	e.Lockdown, e.Supervisor = enginetest.Bundles(t, r)
	e.Source = source(t, r)
	var err error
	if e.Emulator, err = Emulator(platform); err != nil {
		t.Fatal(err)
	}
	return e
}

// Every worker shows what its recipe says. On this platform each runs all vectors. Under an emulator, which is slow, those do that stand for
// an engine: the release workers of upgrades 16 and 18, whose sources 17 and 22 share, and one debug worker. The others boot there, with
// their own bundles.
func TestCheck(t *testing.T) {
	engines := map[string]bool{"agoric-upgrade-16 release": true, "agoric-upgrade-18 release": true, "agoric-upgrade-16 debug": true}
	for _, id := range enginetest.NPM {
		for _, platform := range platforms {
			for _, goal := range []string{recipes.Release, recipes.Debug} {
				t.Run(id+" "+platform+" "+goal, func(t *testing.T) {
					t.Parallel()
					r := enginetest.Recipe(t, id)
					if platform != "linux/"+runtime.GOARCH && !engines[id+" "+goal] {
						r.Golden[goal] = map[string]map[string]recipes.Observation{"boot": r.Golden[goal]["boot"]}
					}
					results, err := Check(t.Context(), engine(t, r, platform, goal), r, goal)
					if err != nil {
						t.Fatal(err)
					}
					labels := 6 // of the description
					for _, expected := range r.Golden[goal] {
						labels += len(expected)
					}
					if len(results) != labels {
						t.Errorf("%d results, expected %d", len(results), labels)
					}
					for _, result := range results {
						if !result.OK || result.Found != result.Expected {
							t.Errorf("%+v", result)
						}
					}
				})
			}
		}
	}
}

// What agoric-sdk's own tests expect, here a second time: no recording may change it.
var upstream = map[string]recipes.Observation{
	"fresh fresh":                    {Snapshot: "91d30e59c1a087d58bb6d8eefcf1262e99e59cfc249222ab25f881ac642437e5", Size: 168323},
	"integer-multiplication product": {Snapshot: "4b48f6c58c08bb757efd3b8fb21891a386bdc5bfbae6803c8cb7df108e553ace"},
	"metering details":               {Compute: 1_380_185, Allocate: 42_074_144, HeapCount: 103_930},
	"xsnap-store A":                  {Snapshot: "bee3b82eebdde4c5c3774fb95b7efe88382f7dc4afab90b4e0e58add54d6b81c", Size: 168387},
}

var upstreamByVersion = map[string]map[string]recipes.Observation{
	"agoric-upgrade-10": {
		"xsnap-store B": {Snapshot: "49658a6d771258ceebed044629865b8e16b898a5c242b14449810fe552495d4a", Size: 725739},
		"xsnap-store C": {Snapshot: "95151df3313ef37578364add6dbdf2561c26b5328f511700613c2a4f93bb51f0", Size: 725899},
		"boot lockdown": {Compute: 1_648_476}, "boot supervisor": {Compute: 13_791_363},
	},
	"agoric-upgrade-13": {
		"xsnap-store B": {Snapshot: "74cd3c13ad240ccf19507ff2227d888d1267a64cbf88722abb24576f6df50676", Size: 728531},
		"xsnap-store C": {Snapshot: "637b86b253d4a071c5522586d21c9b00e2f609461f3d7686c52d641adb6c2790", Size: 728691},
	},
	"agoric-upgrade-16": {
		"xsnap-store B": {Snapshot: "bd10d954d29157e1ab9a068b6bdeb8bb7157489e11dc71b2961f4cab9a7d135c", Size: 827051},
		"xsnap-store C": {Snapshot: "ba3a51da404ab14b6366df8966df683bc4f8ffd99f2dc12aabfa3b7728f39952", Size: 827211},
		"boot lockdown": {Compute: 1_768_038}, "boot supervisor": {Compute: 19_614_561},
	},
	"agoric-upgrade-17": {
		"xsnap-store B": {Snapshot: "5433501987ce52b3bd9ab47956195669c5adea89b050e8c787eb9da431ce1a6e", Size: 834907},
		"xsnap-store C": {Snapshot: "4cdc352b710f0719bc6f541631315652b5da19093e18ce844ec274340a37efd5", Size: 835067},
	},
	"agoric-upgrade-18": {
		"xsnap-store B": {Snapshot: "8da7b45fc3fbb377376a4569e8d8f8f971b2d1cd82e5b0d2e7210532c350568e", Size: 854315},
		"xsnap-store C": {Snapshot: "f4adb516a299d85752f93ee1191844efc77ae73313ab93971b2d1eb10a04f5f9", Size: 854475},
		"boot lockdown": {Compute: 1_794_261}, "boot supervisor": {Compute: 20_922_252},
	},
	"agoric-upgrade-22": {
		"xsnap-store B": {Snapshot: "1be652095ae07e701b1093d11d9d92a367ae794b668225196d3d24760f10e322", Size: 2429587},
		"xsnap-store C": {Snapshot: "50e50f6b4454af574e77ca98aa03f55f67acbeff09815ee018a48c3a67074a5b", Size: 2431651},
		"boot lockdown": {Compute: 1_729_304},
	},
}

func TestRecipesHaveUpstreamsValues(t *testing.T) {
	for _, id := range recipes.IDs() {
		r := enginetest.Recipe(t, id)
		all := maps.Clone(upstream)
		maps.Copy(all, upstreamByVersion[id])
		for _, goal := range []string{recipes.Release, recipes.Debug} {
			for at, want := range all {
				vector, label, _ := strings.Cut(at, " ")
				got := r.Golden[goal][vector][label]
				if show(got, want) != show(want, want) {
					t.Errorf("%s %s %s: %s, upstream has %s", id, goal, at, show(got, want), show(want, want))
				}
			}
		}
	}
}

// Engines of the same sources must show the same, whatever they call themselves.
func TestOneEngineOneBehaviour(t *testing.T) {
	first := make(map[string]*recipes.Recipe) // by Moddable commit: what differs in xsnap-native since upgrade 10 is not to be seen by guests
	for _, id := range recipes.IDs() {
		r := enginetest.Recipe(t, id)
		f := first[r.Pin.Moddable.Commit]
		if f == nil {
			first[r.Pin.Moddable.Commit] = r
			continue
		}
		for goal, vectors := range r.Golden {
			for vector, values := range vectors {
				usesBundle := slices.ContainsFunc(r.Vectors[vector].Steps, func(s recipes.Step) bool { return s.Bundle != "" })
				if !usesBundle && !reflect.DeepEqual(values, f.Golden[goal][vector]) {
					t.Errorf("%s and %s differ in %s %s", id, f.ID, goal, vector)
				}
			}
		}
	}
}

// The first evaluation after the lockdown of upgrade 22 costs 27,899 computrons more than any later one. With another between lockdown and
// supervisor, the supervisor costs what was measured on upstream's build.
func TestSupervisorAfterEvaluation(t *testing.T) {
	r := enginetest.Recipe(t, "agoric-upgrade-22")
	e := engine(t, r, "linux/"+runtime.GOARCH, recipes.Release)
	v := &recipes.Vector{Steps: []recipes.Step{
		{Bundle: recipes.Lockdown, Label: "lockdown"}, {Evaluate: "1", Label: "first"}, {Evaluate: "1", Label: "second"},
		{Bundle: recipes.Supervisor, Label: "supervisor"},
	}}
	found, err := run(t.Context(), e, r, v)
	if err != nil {
		t.Fatal(err)
	}
	if more := found["first"].Compute - found["second"].Compute; more != 24_230_214-24_202_315 {
		t.Errorf("the first evaluation costs %d computrons more than the second", more)
	}
	if l, s := found["lockdown"].Compute, found["supervisor"].Compute; l != 1_729_304 || s != 24_202_315 {
		t.Errorf("lockdown and supervisor cost %d and %d computrons, upstream's build 1729304 and 24202315", l, s)
	}
}

// Whatever differs from the recipe is found.
func TestCheckFinds(t *testing.T) {
	const id, goal = "agoric-upgrade-16", recipes.Release
	e := engine(t, enginetest.Recipe(t, id), "linux/"+runtime.GOARCH, goal)
	hash := strings.Repeat("0", 64)
	tests := []struct {
		name   string
		change func(*recipes.Recipe, *Engine)
		want   string // vector and label of the only failed result, or the error
	}{
		{"nothing", func(*recipes.Recipe, *Engine) {}, ""},
		{"snapshot", set("fresh", "fresh", recipes.Observation{Snapshot: hash, Size: 168323}), "fresh fresh"},
		{"size", set("fresh", "fresh", recipes.Observation{Size: 168324}), "fresh fresh"},
		{"computrons", set("metering", "details", recipes.Observation{Compute: 1_380_186}), "metering details"},
		{"allocation", set("metering", "details", recipes.Observation{Allocate: 42_074_145}), "metering details"},
		{"slots", set("metering", "details", recipes.Observation{HeapCount: 103_931}), "metering details"},
		{"reply", set("math", "functions", recipes.Observation{Reply: "{}"}), "math functions"},
		{"nothing asked", set("fresh", "fresh", recipes.Observation{}), "fresh fresh"},
		{"no step", set("fresh", "later", recipes.Observation{Size: 1}), "fresh later"},
		{"no value", func(r *recipes.Recipe, _ *Engine) { delete(r.Golden[goal]["fresh"], "fresh") }, "fresh fresh"},
		{"no vectors", func(r *recipes.Recipe, _ *Engine) { delete(r.Golden, goal) }, "has no golden vectors for the release worker"},
		{"no such vector", func(r *recipes.Recipe, _ *Engine) { delete(r.Vectors, "fresh") }, "golden values of an unknown vector fresh"},
		{"xsnap version", func(r *recipes.Recipe, _ *Engine) { r.XsnapVersion = "0.14.3" }, "description version"},
		{"XS version", func(r *recipes.Recipe, _ *Engine) { r.Engine.XSVersion = "13.3.1" }, "description version"},
		{"VERS", func(r *recipes.Recipe, _ *Engine) { r.Engine.SnapshotVersion = "13.2.0" }, "description snapshot version"},
		{"SIGN", func(r *recipes.Recipe, _ *Engine) { r.Engine.SnapshotSignature = "xsnap 2" }, "description snapshot signature"},
		{"protocol level", func(r *recipes.Recipe, _ *Engine) { r.Engine.Protocol = 3 }, "description protocol level"},
		{"host callbacks", func(r *recipes.Recipe, _ *Engine) { r.Engine.HostCallbacks++ }, "description host callbacks"},
		{"no table", func(_ *recipes.Recipe, e *Engine) { e.Source = []byte("int main;\n") }, "description host callbacks"},
		{"no bundle", func(_ *recipes.Recipe, e *Engine) { e.Lockdown = nil }, "reading the lockdown bundle"},
		{"empty bundle", func(_ *recipes.Recipe, e *Engine) { e.Supervisor = []byte("{}") }, "the supervisor bundle has no source"},
		{"bundle that throws", func(_ *recipes.Recipe, e *Engine) { e.Lockdown = []byte(`{"source":"() => { throw Error('no') }"}`) },
			`evaluating the lockdown bundle gave "Error: no"`},
		{"not there", func(_ *recipes.Recipe, e *Engine) { e.Path += "-not" }, "no such file"},
		{"no engine", func(_ *recipes.Recipe, e *Engine) { e.Path = "/bin/false" }, "exit status 1"},
		{"not an engine", func(_ *recipes.Recipe, e *Engine) { e.Path = "/bin/true" }, "/bin/true"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			r, e := enginetest.Recipe(t, id), e
			test.change(r, &e)
			for name := range r.Golden[goal] { // to be quick
				if name != "fresh" && !strings.HasPrefix(test.want, name+" ") && !(name == "boot" && strings.Contains(test.want, "bundle")) {
					delete(r.Golden[goal], name)
				}
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			results, err := Check(ctx, e, r, goal)
			var failed []string
			for _, result := range results {
				if !result.OK {
					failed = append(failed, result.Vector+" "+result.Label)
				}
			}
			if err != nil {
				if test.want == "" || !strings.Contains(err.Error(), test.want) {
					t.Errorf("error %q, expected %q", err, test.want)
				}
				return
			}
			if got := strings.Join(failed, ", "); got != test.want {
				t.Errorf("failed: %q, expected %q", got, test.want)
			}
		})
	}
}

// set returns a change of what a recipe expects.
func set(vector, label string, o recipes.Observation) func(*recipes.Recipe, *Engine) {
	return func(r *recipes.Recipe, _ *Engine) { r.Golden[recipes.Release][vector][label] = o }
}

// The debug worker counts other computrons, which the release worker's values must tell.
func TestDebugIsNotRelease(t *testing.T) {
	r := enginetest.Recipe(t, "agoric-upgrade-16")
	r.XsnapVersion = "other, so that one result of the description fails, too"
	r.Golden[recipes.Release] = map[string]map[string]recipes.Observation{"language": r.Golden[recipes.Release]["language"]}
	results, err := Check(t.Context(), engine(t, r, "linux/"+runtime.GOARCH, recipes.Debug), r, recipes.Release)
	if err != nil {
		t.Fatal(err)
	}
	var failed []string
	for _, result := range results {
		if !result.OK {
			failed = append(failed, result.Label)
		}
	}
	if want := []string{"version", "after", "functions", "promises"}; !slices.Equal(failed, want) {
		t.Errorf("failed: %q, expected %q", failed, want)
	}
}

func TestCheckEndsWithItsContext(t *testing.T) {
	r := enginetest.Recipe(t, "agoric-upgrade-16")
	e := engine(t, r, "linux/"+runtime.GOARCH, recipes.Release)
	r.Golden[recipes.Release] = map[string]map[string]recipes.Observation{"loop": {"end": {Compute: 1}}}
	r.Vectors["loop"] = &recipes.Vector{Name: "loop", Steps: []recipes.Step{{Evaluate: "for (;;) {}", Label: "end"}}}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	if _, err := Check(ctx, e, r, recipes.Release); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v, expected %v", err, context.DeadlineExceeded)
	}
}

// Versions load each other's heap snapshots, as their descriptions say, and go on alike.
func TestLoadsSnapshotsOf(t *testing.T) {
	var heap []byte
	ends := make(map[string]string) // who went on -> heap afterwards
	from := enginetest.Recipe(t, "agoric-upgrade-22")
	e := engine(t, from, platforms[0], recipes.Release)
	w, err := start(t.Context(), e, from, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { w.Kill() }()
	for _, name := range []string{recipes.Lockdown, recipes.Supervisor} {
		source, err := e.source(name)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Evaluate(source); err != nil {
			t.Fatal(err)
		}
	}
	buf := new(bytes.Buffer)
	if _, err := w.Snapshot(buf); err != nil {
		t.Fatal(err)
	}
	heap = buf.Bytes()
	for _, id := range enginetest.NPM {
		for _, platform := range platforms {
			r := enginetest.Recipe(t, id)
			if !r.Engine.Loads(from.ID) {
				t.Errorf("%s does not load the snapshots of %s", id, from.ID)
				continue
			}
			w, err := start(t.Context(), engine(t, r, platform, recipes.Release), r, bytes.NewReader(heap))
			if err != nil {
				t.Fatalf("%s %s: %v", id, platform, err)
			}
			reply, err := w.Evaluate("globalThis.later = harden([1, 2, 3].map(x => ({x})))")
			if err != nil {
				t.Fatalf("%s %s: %v", id, platform, err)
			}
			sum := newSum()
			if _, err := w.Snapshot(sum); err != nil {
				t.Fatalf("%s %s: %v", id, platform, err)
			}
			w.Kill()
			ends[id+" "+platform] = fmt.Sprintf("%d computrons, %d slots, heap %s", reply.Meter.Compute, reply.Meter.HeapCount, sum)
		}
	}
	for who, end := range ends {
		if want := ends["agoric-upgrade-22 linux/amd64"]; end != want {
			t.Errorf("%s: %s; the version itself: %s", who, end, want)
		}
	}
}

// The sources have the number of host callbacks and the signature that the description says.
func TestDescriptionOfSources(t *testing.T) {
	for _, id := range enginetest.NPM {
		r := enginetest.Recipe(t, id)
		source := source(t, r)
		if n, err := HostCallbacks(source); err != nil || n != r.Engine.HostCallbacks {
			t.Errorf("%s: %d host callbacks, %v; the description says %d", id, n, err, r.Engine.HostCallbacks)
		}
		if m := regexp.MustCompile(`#define SNAPSHOT_SIGNATURE "(.*)"`).FindSubmatch(source); m == nil || string(m[1]) != r.Engine.SnapshotSignature {
			t.Errorf("%s: signature is %q, the description says %s", id, m, r.Engine.SnapshotSignature)
		}
	}
}

func TestHostCallbacks(t *testing.T) {
	const source = `#define mxSnapshotCallbackCount 2
xsCallback gxSnapshotCallbacks[mxSnapshotCallbackCount] = {
	xs_issueCommand, // 0

	fx_harden // 1
	// fx_setTimeout,
};
`
	for _, test := range []struct {
		old, new string
		n        int
		want     string
	}{
		{"", "", 2, ""},
		{"Count 2", "Count 3", 0, "2 entries in the table gxSnapshotCallbacks, and mxSnapshotCallbackCount is 3"},
		{"#define mx", "#define my", 0, "no table gxSnapshotCallbacks"},
		{"gxSnap", "gxSnip", 0, "no table gxSnapshotCallbacks"},
		{"\n\n", "\n#if mxLockdown\n", 0, `"#if mxLockdown" in the table`},
	} {
		n, err := HostCallbacks([]byte(strings.Replace(source, test.old, test.new, 1)))
		if n != test.n || (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
			t.Errorf("%q in place of %q: %d, %v; want %d, %q", test.new, test.old, n, err, test.n, test.want)
		}
	}
}

// What is recorded is what a recipe says.
func TestTOML(t *testing.T) {
	r := enginetest.Recipe(t, "agoric-upgrade-16")
	found := map[string]map[string]recipes.Observation{
		"odd": {"text": {Reply: "\a\b\t\n\r\"\\\x00\x7f<>&\u2028€😀"}, "empty": {Compute: 1}},
	}
	maps.Copy(found, r.Golden[recipes.Debug])
	text := TOML(recipes.Debug, found)
	var file struct {
		Golden map[string]map[string]map[string]struct {
			Snapshot  string `toml:"snapshot"`
			Size      int64  `toml:"size"`
			Compute   int64  `toml:"compute"`
			Allocate  int64  `toml:"allocate"`
			HeapCount int64  `toml:"heap-count"`
			Reply     string `toml:"reply"`
		} `toml:"golden"`
	}
	if err := strict.Decode("recorded", []byte(text), &file); err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	got := make(map[string]map[string]recipes.Observation)
	for vector, values := range file.Golden[recipes.Debug] {
		got[vector] = make(map[string]recipes.Observation)
		for label, o := range values {
			got[vector][label] = recipes.Observation(o)
		}
	}
	if !reflect.DeepEqual(got, found) {
		t.Errorf("recorded:\n%s\nread: %v", text, got)
	}
}

func TestObserve(t *testing.T) {
	r := enginetest.Recipe(t, "agoric-upgrade-16")
	e := engine(t, r, "linux/"+runtime.GOARCH, recipes.Release)
	vectors := map[string]*recipes.Vector{
		"fresh": r.Vectors["fresh"],
		"steps": {Steps: []recipes.Step{
			{Evaluate: "globalThis.n = 0; function handleCommand(m) { n += m.byteLength; return {result: new TextEncoder().encode(String(n)).buffer}; }"},
			{Command: "abc", Label: "three"},
			{Resume: true, Label: "resume"},
			{Command: "de", Label: "five"},
			{Evaluate: "n.x.y", Label: "thrown"},
			{Evaluate: "issueCommand(new ArrayBuffer(1)).byteLength", Label: "upstream"},
			{Snapshot: true},
		}},
	}
	found, err := Observe(t.Context(), e, r, vectors)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := found["fresh"]["fresh"], upstream["fresh fresh"]; got != want {
		t.Errorf("fresh: %v, expected %v", got, want)
	}
	steps := found["steps"]
	if len(steps) != 5 || steps["three"].Reply != "3" || steps["five"].Reply != "5" || !strings.HasPrefix(steps["thrown"].Reply, "TypeError: ") ||
		steps["resume"].Size < 168_000 || len(steps["resume"].Snapshot) != 64 || steps["upstream"].Compute == 0 {
		t.Errorf("steps: %v", steps)
	}
}

func TestEmulator(t *testing.T) {
	if e, err := Emulator("linux/" + runtime.GOARCH); err != nil || e != nil {
		t.Errorf("this platform needs %q, %v", e, err)
	}
	if _, err := Emulator("linux/mips"); err == nil || !strings.Contains(err.Error(), "linux/mips") {
		t.Errorf("linux/mips: %v", err)
	}
	t.Setenv("PATH", t.TempDir())
	for _, platform := range platforms {
		if platform == "linux/"+runtime.GOARCH {
			continue
		}
		if _, err := Emulator(platform); err == nil || !strings.Contains(err.Error(), "install the Debian package qemu-user-static") {
			t.Errorf("%s without an emulator: %v", platform, err)
		}
	}
}

// head is the beginning of a fresh heap snapshot of XS 13.3.0.
var head = []byte("\x00\x02\x91\x7bXS_M\x00\x00\x00\x0cVERS\x0d\x03\x00\x20\x00\x00\x00\x0fSIGNxsnap 1\x00\x00\x00\x40CREA")

func TestReadHeader(t *testing.T) {
	h, err := readHeader(head)
	if want := (header{"13.3.0", "xsnap 1"}); err != nil || h != want {
		t.Errorf("%v, %v; expected %v", h, err, want)
	}
	for n := range len(head) - 8 {
		if h, err := readHeader(head[:n]); err == nil {
			t.Errorf("of %d bytes: %v", n, h)
		}
	}
	for _, test := range []struct{ old, new, want string }{
		{"XS_M", "XS_N", "this is no heap snapshot"},
		{"VERS", "SERV", "no VERS atom"},
		{"SIGN", "sign", "no SIGN atom"},
		{"\x0cVERS", "\x0bVERS", "3 bytes of content, expected 4"},
		{"\x0cVERS", "\x07VERS", "VERS atom has 7 bytes"},
		{"\x00\x00\x00\x0fSIGN", "\xff\xff\xff\xffSIGN", "SIGN atom has 4294967295 bytes"},
	} {
		if h, err := readHeader(bytes.Replace(head, []byte(test.old), []byte(test.new), 1)); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%q for %q: %v, %v; expected %q", test.new, test.old, h, err, test.want)
		}
	}
}

func FuzzReadHeader(f *testing.F) {
	f.Add(head)
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := readHeader(b)
		if (err == nil) == (h == header{}) {
			t.Errorf("%v, %v", h, err)
		}
	})
}

func TestSource(t *testing.T) {
	bundle, err := json.Marshal(map[string]string{"moduleFormat": "nestedEvaluate", "source": "() => 1\n"})
	if err != nil {
		t.Fatal(err)
	}
	e := Engine{Lockdown: bundle}
	if source, err := e.source(recipes.Lockdown); err != nil || source != "(() => 1\n\n)()" {
		t.Errorf("%q, %v", source, err)
	}
}

// BenchmarkCheck runs all golden vectors of one worker.
func BenchmarkCheck(b *testing.B) {
	r := enginetest.Recipe(b, "agoric-upgrade-16")
	e := engine(b, r, "linux/"+runtime.GOARCH, recipes.Release)
	for b.Loop() {
		if _, err := Check(b.Context(), e, r, recipes.Release); err != nil {
			b.Fatal(err)
		}
	}
}
