package recipes

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/enginery/enginery/internal/cas"
	"github.com/enginery/enginery/internal/npm"
	"github.com/enginery/enginery/moddable-pins"
	"github.com/enginery/enginery/supervisor-bundles"
	"github.com/enginery/enginery/toolchain"
)

// refs resolves the names in testdata/agoric-upgrade-99.toml.
func refs() Refs {
	return Refs{
		Pin: func(name string) (*pins.Pin, error) {
			if name != "aaaa-bbbb" {
				return nil, errors.New("there is no pin " + name)
			}
			component := func(name string, digit string) pins.Component {
				return pins.Component{
					Name:     name,
					Commit:   strings.Repeat(digit, 40),
					License:  "Apache-2.0",
					Tree:     cas.OfBytes([]byte(name)),
					Recorded: true,
					Paths:    []string{"sources"},
					Sources:  []pins.Source{{Git: "https://git.example/owner/" + name}},
				}
			}
			return &pins.Pin{Name: name, Moddable: component("moddable", "a"), XsnapNative: component("xsnap-native", "b")}, nil
		},
		Bundles: func(name string) (*bundles.Pair, error) {
			if name != "pair" {
				return nil, errors.New("there is no pair " + name)
			}
			bundle := func(name string) bundles.Bundle {
				return bundles.Bundle{
					Package: npm.Package{Name: "@example/" + name, Version: "1.2.3", Integrity: "sha512-x", Tarball: cas.OfBytes([]byte("tgz"))},
					File:    "dist/" + name,
					SHA256:  cas.OfBytes([]byte(name)),
				}
			}
			return &bundles.Pair{Name: name, Lockdown: bundle(Lockdown), Supervisor: bundle(Supervisor)}, nil
		},
		Toolchain: func(name string) (*toolchain.Toolchain, error) {
			arch, ok := strings.CutPrefix(name, "gcc-")
			if !ok {
				return nil, errors.New("there is no toolchain " + name)
			}
			t := &toolchain.Toolchain{
				Root:     cas.OfBytes([]byte("root")),
				Image:    "sha256:" + "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
				Packages: []toolchain.Package{{Name: "gcc", Version: "12", Architecture: "amd64", Source: "gcc 12", Size: 1, SHA256: cas.OfBytes(nil).Hash}},
			}
			t.Name, t.Host, t.Target, t.Compiler, t.Path = name, "linux/amd64", "linux/"+arch, arch+"-cc", "/usr/bin"
			return t, nil
		},
		Vector: func(name string) (*Vector, error) {
			if name != "sum" {
				return nil, errors.New("there is no vector " + name)
			}
			return &Vector{Name: name, Description: "a sum", Steps: []Step{
				{Evaluate: "a = 1 < 2 && '<>';", Label: "sum"},
				{Bundle: Lockdown},
				{Snapshot: true, Label: "after"},
			}}, nil
		},
		IDs: []string{"agoric-upgrade-98", "agoric-upgrade-99"},
	}
}

const goodFile = "testdata/agoric-upgrade-99.toml"

func good(t testing.TB) (*Recipe, string) {
	t.Helper()
	data, err := os.ReadFile(goodFile)
	if err != nil {
		t.Fatal(err)
	}
	r, err := Parse(goodFile, data, refs())
	if err != nil {
		t.Fatal(err)
	}
	return r, string(data)
}

func TestShipped(t *testing.T) {
	for _, id := range IDs() {
		t.Run(id, func(t *testing.T) {
			r, err := Load(id)
			if err != nil {
				t.Fatal(err)
			}
			if r.ID != id {
				t.Errorf("the recipe is that of %s", r.ID)
			}
			var platforms []string
			for _, target := range r.Targets {
				platforms = append(platforms, target.Platform)
			}
			if want := []string{"linux/amd64", "linux/arm64"}; !slices.Equal(platforms, want) {
				t.Errorf("platforms are %v, want %v", platforms, want)
			}
			if want := []string{Release, Debug}; !slices.Equal(r.Goals, want) {
				t.Errorf("goals are %v, want %v", r.Goals, want)
			}
			for _, flag := range []string{"-ffp-contract=off", "-fsigned-char", "-ffile-prefix-map={root}=."} {
				if !slices.Contains(r.CFlags, flag) {
					t.Errorf("it is not compiled with %s", flag)
				}
			}
			for _, flag := range []string{"-static-pie", "-Wl,--build-id=none"} {
				if !slices.Contains(r.LDFlags, flag) {
					t.Errorf("it is not linked with %s", flag)
				}
			}
			// What XS itself checks when it loads a snapshot must hold; whether loading works is for the golden vectors.
			for _, other := range r.Engine.LoadsSnapshotsOf {
				o, err := Load(other)
				if err != nil {
					t.Fatal(err)
				}
				minor := func(v string) string { return v[:strings.LastIndexByte(v, '.')] }
				if minor(r.Engine.SnapshotVersion) != minor(o.Engine.SnapshotVersion) ||
					r.Engine.SnapshotSignature != o.Engine.SnapshotSignature || r.Engine.HostCallbacks < o.Engine.HostCallbacks {
					t.Errorf("it cannot load snapshots of %s: their headers or host callbacks do not match", other)
				}
			}
		})
	}
}

func TestShippedVectors(t *testing.T) {
	used := map[string]bool{}
	for _, id := range IDs() {
		r, err := Load(id)
		if err != nil {
			t.Fatal(err)
		}
		for name := range r.Vectors {
			used[name] = true
		}
	}
	for _, name := range Vectors() {
		if _, err := LoadVector(name); err != nil {
			t.Error(err)
		}
		if !used[name] {
			t.Errorf("vector %s is used by no recipe", name)
		}
	}
}

func TestUnknown(t *testing.T) {
	for _, test := range []struct {
		load func(string) error
		name string
		want string
	}{
		{loadRecipe, "agoric-upgrade-61", `no version ID is called "agoric-upgrade-61"; did you mean agoric-upgrade-11 or agoric-upgrade-16? There are agoric-upgrade-10, `},
		{loadRecipe, "upgrade-22", `no version ID is called "upgrade-22"; did you mean agoric-upgrade-22? There are agoric-upgrade-10, `},
		{loadRecipe, "", `no version ID is called ""; there are agoric-upgrade-10, `},
		{loadRecipe, "../recipes/agoric-upgrade-16", `no version ID is called "../recipes/agoric-upgrade-16"; there are `},
		{loadVector, "fersh", `no golden vector is called "fersh"; did you mean fresh? There are `},
	} {
		if err := test.load(test.name); err == nil || !strings.HasPrefix(err.Error(), test.want) {
			t.Errorf("loading %q: %v, want %s…", test.name, err, test.want)
		}
	}
}

func loadRecipe(id string) error   { _, err := Load(id); return err }
func loadVector(name string) error { _, err := LoadVector(name); return err }

func TestNaturally(t *testing.T) {
	got := []string{"u-10", "u-8", "u-10a", "u-8-1", "v", "u-100", "u-9", "u-08"}
	slices.SortFunc(got, naturally)
	want := []string{"u-08", "u-8", "u-8-1", "u-9", "u-10", "u-10a", "u-100", "v"}
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestParseErrors(t *testing.T) {
	_, text := good(t)
	long := "a" + strings.Repeat("-a", 64)
	for _, test := range []struct{ old, new, want string }{
		// Schema.
		{"", "[[", `1:11: expected ']]' to close array table name`},
		{"pin  ", "pinn  ", `3:1: unknown key pinn`},
		{"[make]\n", "[make]\njobs = 4\n", `18:1: unknown key make.jobs`},
		{"pin ", "pin = 'aaaa-bbbb'\npin ", `4:1: key pin is already defined`},
		{"[engine]", "[engine]\n[engine]", `36:2: table engine already exists`},
		{"protocol           = 4", "protocol           = '4'", `37:22: cannot decode TOML string into struct field recipes.engineFile.Protocol of type int`},

		// Missing.
		{"pin     = \"aaaa-bbbb\"\n", "", `1: pin is missing`},
		{"bundles = \"pair\"\n", "", `1: bundles is missing`},
		{`goals   = ["release", "debug"]`, `goals   = []`, `5: goals is missing`},
		{"toolchain = \"gcc-amd64\"\n", "", `7: platform.linux/amd64.toolchain is missing`},
		{"file      = \"worker.mk\"\n", "", `17: make.file is missing`},
		{"meter              = \"xs-meter-9\"\n", "", `35: engine.meter is missing`},
		{"consensus          = [\"release\"]\n", "", `35: engine.consensus is missing`},

		// Identity.
		{"agoric-upgrade-99\"\n", "Agoric-99\"\n", `1: id "Agoric-99": want at most 128 lower-case letters, digits, dots and dashes, as in agoric-upgrade-16`},
		{"agoric-upgrade-99\"\n", "a/b\"\n", `1: id "a/b": want at most 128 lower-case letters, digits, dots and dashes, as in agoric-upgrade-16`},
		{"agoric-upgrade-99\"\n", long + "\"\n", `1: id "` + long + `": want at most 128 lower-case letters, digits, dots and dashes, as in agoric-upgrade-16`},
		{"agoric-upgrade-99\"\n", "agoric-upgrade-98\"\n", `1: id is "agoric-upgrade-98", and the file's name says "agoric-upgrade-99"`},
		{"agoric-upgrade-99\"\n", "engine-99\"\n", `1: id "engine-99": IDs that begin with "engine-" are those of historic engines`},
		{"0.14.3-u99.0", "0.14.3 u99", `2: xsnap "0.14.3 u99" is not a version, as in 0.14.3-u16.1`},
		{`"debug"]`, `"profile"]`, `5: goals: no goal is called "profile": there are release, debug`},
		{`"debug"]`, `"release"]`, `5: goals: release is given twice`},

		// References.
		{"aaaa-bbbb", "aaaa-cccc", `3: there is no pin aaaa-cccc`},
		{`"pair"`, `"pears"`, `4: there is no pair pears`},
		{"gcc-amd64", "cc-amd64", `8: there is no toolchain cc-amd64`},
		{"gcc-amd64", "gcc-arm64", `8: toolchain gcc-arm64 compiles for linux/arm64, not for linux/amd64`},
		{"golden.debug.sum", "golden.debug.product", `52: there is no vector product`},
		{`["agoric-upgrade-98", `, `["agoric-upgrade-97", `, `41: no version ID is called "agoric-upgrade-97"; there are agoric-upgrade-98, agoric-upgrade-99`},
		{`["agoric-upgrade-98", `, `["agoric-upgrade-99", `, `41: agoric-upgrade-99 is listed twice`},
		{`, "agoric-upgrade-99"]`, `]`, `41: engine.loads-snapshots-of lacks agoric-upgrade-99 itself`},

		// Platforms and how the makefile is driven.
		{"linux/arm64", "linux/riscv64", `13: platform "linux/riscv64" is not supported: there are linux/amd64, linux/arm64`},
		{"-Wl,--defsym=sin=__sin_fma", "-static", `10: -static is in flags.link already`},
		{"worker/lin", "../lin", `18: make.directory is "../lin": want a relative path without . and ..`},
		{"worker.mk", "-worker.mk", `19: make.file is "-worker.mk": want a relative path without . and ..`},
		{"worker/bin", "/bin", `20: make.output is "/bin/{goal}/worker": want a relative path without . and ..`},
		{"bin/{goal}/", "bin/", `20: make.output is the same for all goals: it has no {goal}`},
		{"bin/{goal}/", "bin/{root}/{goal}", `20: make.output has the placeholder {root}: there are {goal}`},
		{"VERSION = ", "'A B' = ", `26: "A B" is not the name of a variable of make`},
		{"{xsnap}", "{version}", `26: make.variables.VERSION has the placeholder {version}: there are {root}, {goal}, {xsnap}, {cc}, {cflags}, {ldflags}`},
		{"{xsnap}", "\\n", `26: make.variables.VERSION has a control character`},
		{"{cc} {cflags}", "{cc}", `22: no variable passes {cflags} to the makefile`},
		{"{cc} {cflags}", "cc {cflags}", `22: no variable passes {cc} to the makefile`},
		{"\"{ldflags}\"", "\"\"", `22: no variable passes {ldflags} to the makefile`},
		{"\"-fsigned-char\"", "\"fsigned-char\"", `30: "fsigned-char" is not a flag of the compiler`},
		{"\"-fsigned-char\"", "\"-f\", \"-f\"", `30: -f is given twice`},
		{"{root}=.", "{cc}=.", `31: flags.compile.2 has the placeholder {cc}: there are {root}`},

		// Engine.
		{`"13.3.0" # xs`, `"13.3" # xs`, `36: engine.xs "13.3" is not a version, as in 13.3.0`},
		{"protocol           = 4", "protocol           = -4", `37: engine.protocol is -4: levels begin with 1`},
		{"host-callbacks     = 18", "host-callbacks     = -1", `38: engine.host-callbacks is -1: a worker has some`},
		{`"13.3.0" # VERS`, `"13,3" # VERS`, `39: engine.snapshot-version "13,3" is not a version, as in 13.3.0`},
		{"xs-meter-9", "9", `42: engine.meter "9" is not a meter label, as in xs-meter-28`},
		{`consensus          = ["release"]`, `consensus          = ["debug"]`, `43: the debug worker cannot serve consensus: it counts other computrons`},
		{`consensus          = ["release"]`, `consensus          = ["all"]`, `43: engine.consensus: no goal is called "all": there are release, debug`},

		// Golden values.
		{"golden.debug", "golden.profile", `52: golden.profile: the version has no goal "profile"`},
		{text[strings.Index(text, "[golden.debug"):], "", `46: golden.debug is missing: the debug worker has no golden vectors`},
		{text[strings.Index(text, "# golden"):], "", `1: golden.release is missing: the release worker has no golden vectors`},
		{"pair", "none", `46: vector sum evaluates the lockdown bundle, and this version has no bundles`},
		{"sum   = { compute = 34 }\n", "", `52: golden.debug.sum.sum is missing: vector sum observes sum`},
		{"compute = 34", "", `53: golden.debug.sum.sum expects nothing`},
		{"compute = 34", "compute = -34", `53: golden.debug.sum.sum has a negative number`},
		{"compute = 34", "size = 34", `53: golden.debug.sum.sum is no snapshot, so it has no snapshot and no size`},
		{"compute = 34 }\n", "compute = 34 }\nextra = { compute = 1 }\n", `54: vector sum has no step labelled "extra"`},
		{"compute = 34", "computrons = 34", `53:11: unknown key golden.debug.sum.computrons`},
		{"size = 8 }", "size = 0 }", `48: golden.release.sum.after is a snapshot: want its snapshot (64 lower-case hexadecimal digits) and size`},
		{"size = 8 }", "size = 8, compute = 2 }", `48: golden.release.sum.after is a snapshot, which has no compute and no reply`},
		{`snapshot = "0`, `snapshot = "F`, `48: golden.release.sum.after is a snapshot: want its snapshot (64 lower-case hexadecimal digits) and size`},
	} {
		changed := strings.Replace(text, test.old, test.new, 1)
		if changed == text {
			t.Errorf("the good recipe has no %q", test.old)
			continue
		}
		_, err := Parse(goodFile, []byte(changed), refs())
		if got, want := fmt.Sprint(err), goodFile+":"+test.want; got != want {
			t.Errorf("%q in place of %q:\n got %s\nwant %s", test.new, test.old, got, want)
		}
	}
}

// An engine without bundles is a version too, if its vectors need none.
func TestEngineAlone(t *testing.T) {
	_, text := good(t)
	with := refs()
	with.Vector = func(name string) (*Vector, error) {
		return &Vector{Name: name, Steps: []Step{{Evaluate: "1", Label: "sum"}, {Resume: true, Label: "after"}}}, nil
	}
	r, err := Parse(goodFile, []byte(strings.Replace(text, `"pair"`, `"none"`, 1)), with)
	if err != nil {
		t.Fatal(err)
	}
	if r.Bundles != nil {
		t.Errorf("its bundles are %+v", r.Bundles)
	}
	if !strings.HasPrefix(string(r.JSON()), `{"bundles":{},"engine":`) {
		t.Errorf("its JSON is %s", r.JSON())
	}
	if !r.Engine.Loads("agoric-upgrade-98") || r.Engine.Loads("agoric-upgrade-97") {
		t.Errorf("it loads snapshots of %v, which is not what Loads says", r.Engine.LoadsSnapshotsOf)
	}
}

func TestParseVectorErrors(t *testing.T) {
	const text = "name = 'v'\ndescription = 'd'\n[[step]]\nevaluate = '1'\nlabel = 'a'\n[[step]]\nbundle = 'lockdown'\n[[step]]\nresume = true\nlabel = 'b'\n"
	v, err := ParseVector("v.toml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	want := &Vector{"v", "d", []Step{{Evaluate: "1", Label: "a"}, {Bundle: Lockdown}, {Resume: true, Label: "b"}}}
	if !reflect.DeepEqual(v, want) {
		t.Errorf("got %+v, want %+v", v, want)
	}
	for _, test := range []struct{ old, new, want string }{
		{"name = 'v'\n", "", `1: name is missing`},
		{"name = 'v'", "name = 'w'", `1: name is "w", and the file's name says "v"`},
		{"name = 'v'", "name = 'V'", `1: name "V": want lower-case letters, digits, dots and dashes`},
		{"description = 'd'\n", "", `1: description is missing`},
		{text[strings.Index(text, "[[step"):], "", `1: step is missing: a vector has at least one`},
		{"resume", "restart", `9:1: unknown key step.restart`},
		{"evaluate = '1'", "evaluate = '1'\nsnapshot = true", `3: step 1 does 2 things: want one of evaluate, bundle, command, snapshot and resume`},
		{"evaluate = '1'\n", "", `3: step 1 does 0 things: want one of evaluate, bundle, command, snapshot and resume`},
		{"resume = true", "resume = false", `8: step 3 does 0 things: want one of evaluate, bundle, command, snapshot and resume`},
		{"lockdown", "knockdown", `7: bundle "knockdown": there are lockdown and supervisor`},
		{"label = 'b'", "label = 'a'", `10: label a is given twice`},
		{"label = 'b'", "label = 'a.b'", `10: label "a.b": want letters, digits, dashes and underscores`},
	} {
		_, err := ParseVector("v.toml", []byte(strings.Replace(text, test.old, test.new, 1)))
		if got, want := fmt.Sprint(err), "v.toml:"+test.want; got != want {
			t.Errorf("%q in place of %q:\n got %s\nwant %s", test.new, test.old, got, want)
		}
	}
	unlabelled := regexp.MustCompile(`label = .*\n`).ReplaceAllString(text, "")
	_, err = ParseVector("v.toml", []byte(unlabelled))
	if got, want := fmt.Sprint(err), "v.toml:3: no step has a label: nothing of the vector is observed"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestMakeArgs(t *testing.T) {
	r, _ := good(t)
	target, ok := r.Target("linux/amd64")
	if !ok {
		t.Fatal("there is no target linux/amd64")
	}
	want := []string{
		"make", "-f", "worker.mk",
		"CC=amd64-cc '-D__has_builtin(x)=1' -fsigned-char -ffile-prefix-map=/build=.",
		"GOAL=debug",
		"LINK=-static -Wl,--defsym=sin=__sin_fma",
		"MODDABLE=/build/moddable",
		"VERSION=0.14.3-u99.0",
	}
	if got := r.MakeArgs(target, Debug, "/build"); !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if got, want := r.Output(Debug), "worker/bin/debug/worker"; got != want {
		t.Errorf("output is %s, want %s", got, want)
	}
	target, _ = r.Target("linux/arm64")
	if got, want := r.MakeArgs(target, Release, "/build")[5], "LINK=-static"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// Whatever characters a flag has, it reaches the compiler as one argument, through make and a shell.
func TestMakeArgsQuoting(t *testing.T) {
	r, _ := good(t)
	r.CFlags = []string{"-Dplain", "-Da=$HOME", `-Db="it's"`, "-Dc=`id`;#%&|<>*?~", `-Dd=\n \\`, "-De={root}", "-Df=$$(x)"}
	want := []string{"-Dplain", "-Da=$HOME", `-Db="it's"`, "-Dc=`id`;#%&|<>*?~", `-Dd=\n \\`, "-De=/a root", "-Df=$$(x)", "end"}
	dir := t.TempDir()
	file := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o755); err != nil {
			t.Fatal(err)
		}
		return path
	}
	file("worker.mk", "all:\n\t@$(CC) end\n")
	target, _ := r.Target("linux/amd64")
	target.Toolchain.Compiler = file("cc", "#!/bin/sh\nprintf '%s\\n' \"$@\"\n")
	args := r.MakeArgs(target, Release, "/a root")
	cmd := exec.CommandContext(t.Context(), args[0], args[1:]...)
	cmd.Dir = dir
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Split(strings.TrimSuffix(string(out), "\n"), "\n"); !slices.Equal(got, want) {
		t.Errorf("the compiler was given\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// The JSON of a closed recipe is what its digest is over, so none of its bytes may change without [Schema] changing.
func TestJSON(t *testing.T) {
	r, _ := good(t)
	got := append(r.JSON(), '\n')
	const file = "testdata/agoric-upgrade-99.json"
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != string(want) {
		t.Errorf("the JSON is not that of %s:\n%s", file, got)
	}
	if d := r.Digest(); d != cas.OfBytes(r.JSON()) {
		t.Errorf("the digest is %s, which is not that of the JSON", d)
	}
	again, _ := good(t)
	if r.Digest() != again.Digest() {
		t.Errorf("two readings of one file have the digests %s and %s", r.Digest(), again.Digest())
	}
}

// TestDigestSensitive changes every value of a closed recipe, one after the other.
func TestDigestSensitive(t *testing.T) {
	// What may change without another digest: names that stand for content, and where content is fetched from.
	free := regexp.MustCompile(`^(Pin|Bundles)\.Name$|^Pin\.(Moddable|XsnapNative)\.(Name|Sources)` +
		`|^Bundles\.(Lockdown|Supervisor)\.Package\.(Integrity|Tarball)|^Vectors\[sum\]\.(Name|Description)$`)
	r, _ := good(t)
	before := r.Digest()
	changes := 0
	walk(reflect.ValueOf(r).Elem(), "", func(path string) {
		changes++
		if changed := r.Digest() != before; changed == free.MatchString(path) {
			t.Errorf("%s changed; the digest changed: %t", path, changed)
		}
	})
	if after := r.Digest(); after != before {
		t.Errorf("the recipe was not restored: its digest is %s, and was %s", after, before)
	}
	if changes < 100 {
		t.Errorf("only %d values were changed", changes)
	}
}

// walk sets each value below v to another one, calls changed, and sets it back.
func walk(v reflect.Value, path string, changed func(path string)) {
	try := func(other reflect.Value, path string) {
		old := reflect.New(v.Type()).Elem()
		old.Set(v)
		v.Set(other)
		changed(path)
		v.Set(old)
	}
	switch v.Kind() {
	case reflect.Pointer:
		walk(v.Elem(), path, changed)
	case reflect.Struct:
		for i := range v.NumField() {
			name := v.Type().Field(i).Name
			walk(v.Field(i), strings.TrimPrefix(path+"."+name, "."), changed)
		}
	case reflect.Slice:
		for i := range v.Len() {
			walk(v.Index(i), fmt.Sprintf("%s[%d]", path, i), changed)
		}
		if v.Len() > 0 {
			try(v.Slice(0, v.Len()-1), path)
		}
	case reflect.Map:
		for _, key := range v.MapKeys() {
			at := fmt.Sprintf("%s[%s]", path, key)
			old := v.MapIndex(key)
			entry := reflect.New(v.Type().Elem()).Elem()
			entry.Set(old)
			walk(entry, at, func(path string) {
				v.SetMapIndex(key, entry)
				changed(path)
			})
			v.SetMapIndex(key, reflect.Value{})
			changed(at)
			v.SetMapIndex(key, old)
		}
	case reflect.String:
		try(reflect.ValueOf(v.String()+"x").Convert(v.Type()), path)
	case reflect.Int, reflect.Int64:
		try(reflect.ValueOf(v.Int()+1).Convert(v.Type()), path)
	case reflect.Bool:
		try(reflect.ValueOf(!v.Bool()), path)
	default:
		panic(fmt.Sprintf("%s has the kind %s", path, v.Kind()))
	}
}

func FuzzParse(f *testing.F) {
	_, text := good(f)
	f.Add([]byte(text))
	for _, id := range IDs() {
		data, err := embedded.ReadFile(id + ".toml")
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := Parse(goodFile, data, refs())
		if err != nil {
			if !strings.HasPrefix(err.Error(), goodFile+":") {
				t.Errorf("the error does not begin with the file: %v", err)
			}
			return
		}
		if !json.Valid(r.JSON()) {
			t.Errorf("the JSON is not valid: %s", r.JSON())
		}
		for _, target := range r.Targets {
			for _, goal := range r.Goals {
				for _, arg := range r.MakeArgs(target, goal, "/build") {
					if strings.ContainsAny(arg, "\x00\n") {
						t.Errorf("make is given %q", arg)
					}
				}
				if !filepath.IsLocal(r.Output(goal)) {
					t.Errorf("the worker is at %s", r.Output(goal))
				}
			}
		}
	})
}

func FuzzParseVector(f *testing.F) {
	for _, name := range Vectors() {
		data, err := embeddedVectors.ReadFile("vectors/" + name + ".toml")
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		v, err := ParseVector("fresh.toml", data)
		if err != nil && !strings.HasPrefix(err.Error(), "fresh.toml:") {
			t.Errorf("the error does not begin with the file: %v", err)
		}
		if err == nil && len(v.Steps) == 0 {
			t.Error("the vector has no steps")
		}
	})
}

func BenchmarkLoad(b *testing.B) {
	for b.Loop() {
		r, err := Load("agoric-upgrade-16")
		if err != nil {
			b.Fatal(err)
		}
		r.Digest()
	}
}

func TestPackaged(t *testing.T) {
	ids, err := Packaged()
	if want := []string{"agoric-upgrade-16", "agoric-upgrade-17", "agoric-upgrade-18", "agoric-upgrade-22"}; err != nil || !slices.Equal(ids, want) {
		t.Errorf("packages carry the sources of %q, %v; want %q", ids, err, want)
	}
}
