package replay

import (
	"bytes"
	"encoding/json"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	repb "github.com/bazelbuild/remote-apis/build/bazel/remote/execution/v2"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/enginery/enginery/build"
	"github.com/enginery/enginery/engines"
	"github.com/enginery/enginery/internal/action"
	"github.com/enginery/enginery/internal/cas"
	"github.com/enginery/enginery/recipes"
	"github.com/enginery/enginery/swingstore"
	"github.com/enginery/enginery/vat"
)

// examplePiece returns a piece of two spans of an installed engine, from bundles or from a heap snapshot.
func examplePiece(t *testing.T, fromSnapshot bool) *piece {
	t.Helper()
	hash := func(s string) string { return cas.OfBytes([]byte(s)).Hash }
	e := &vat.Engine{Version: "agoric-upgrade-22", Lockdown: []byte("lockdown"), Supervisor: []byte("supervisor")}
	e.Worker.Engine = &engines.Engine{
		Worker:      engines.File{SHA256: hash("worker"), Size: 6},
		DebugWorker: engines.File{SHA256: hash("debug worker"), Size: 12},
		Config:      engines.File{SHA256: hash("config"), Size: 6},
	}
	p := &piece{
		run: &runner{engine: e, column: Column{Start: FromBundles, Bundles: BundlesRecorded, Reload: true}},
		vat: swingstore.Vat{ID: "v9", Name: "bank"},
		spans: []swingstore.Span{
			{Vat: "v9", Start: 100, End: 200, Hash: hash("span 1"), Incarnation: 1},
			{Vat: "v9", Start: 200, End: 207, Hash: hash("span 2"), Incarnation: 1, Current: true},
		},
		end: 207,
	}
	p.vat.Options.MeterID = "m1"
	if fromSnapshot {
		p.snapshot = &swingstore.Snapshot{Vat: "v9", Position: 99, Hash: hash("heap snapshot"), Size: 13, Present: true}
	}
	load(t, p)
	return p
}

// load has a piece's runner know the files of its engine.
func load(t *testing.T, p *piece) {
	t.Helper()
	var err error
	if p.run.files, err = filesOf(p.run.engine); err != nil {
		t.Fatal(err)
	}
}

func actionOf(t *testing.T, p *piece) *action.Action {
	t.Helper()
	a, err := p.action()
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// messages returns the messages that an action consists of.
func messages(t *testing.T, a *action.Action) (*repb.Action, *repb.Command, *repb.Directory) {
	t.Helper()
	message, command, root := new(repb.Action), new(repb.Command), new(repb.Directory)
	get := func(d cas.Digest, m proto.Message) {
		b, found := a.Blobs()[d]
		if !found || cas.OfBytes(b) != d {
			t.Fatalf("%s is not there, or something else", d)
		}
		if err := proto.Unmarshal(b, m); err != nil {
			t.Fatal(err)
		}
		if again, err := (proto.MarshalOptions{Deterministic: true}).Marshal(m); err != nil || !bytes.Equal(again, b) {
			t.Errorf("%v is not encoded as it should be: %v", m, err)
		}
	}
	get(a.Digest, message)
	get(cas.FromProto(message.CommandDigest), command)
	get(cas.FromProto(message.InputRootDigest), root)
	return message, command, root
}

// A digest that changes makes all results that are known useless. If the meaning of actions or results has changed, so must actionSalt.
func TestActionDigest(t *testing.T) {
	const transcript = `{"vat":"v9","name":"bank","spans":[{"start":100,"end":200,"incarnation":1,"hash":"58039a0b228cf5abc95709c0fe0b7bca44503a20a858ae8d3c90368c1f1d0ddb"},` +
		`{"start":200,"end":207,"incarnation":1,"hash":"770f098a51c0589381c9789bb95baf5ee623fbca676e102633e7650f0bcac9e8"}],"last":true}`
	for _, test := range []struct {
		name         string
		fromSnapshot bool
		digests      map[string]string // by architecture
		command      string
		files        string
	}{
		{
			"from bundles", false, map[string]string{
				"amd64": "0087e2b425c7b722f1c907733180feddbadd475cadfcd1eb65af8d593081c6bf/204",
				"arm64": "89f931ac22d2bf0c04c712f452cb77324726ecc05a684e2f037da941076df063/205",
			},
			"enginery replay piece --version=agoric-upgrade-22 --metering-limit=100000000 --bundles=recorded",
			"config.json lockdown.bundle supervisor.bundle transcript.json xsnap-worker",
		},
		{
			"from a heap snapshot", true, map[string]string{
				"amd64": "e17ee940ba7b9680e04016cd916c314e971e85e609d5bd6f6726dfa4ee0a145d/204",
				"arm64": "2b2a4735a3f8a3e89cd938196b1ff715a299fa1c34019ec19f81cc6f92b1ebf0/205",
			},
			"enginery replay piece --version=agoric-upgrade-22 --metering-limit=100000000",
			"config.json heap-snapshot transcript.json xsnap-worker",
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			a := actionOf(t, examplePiece(t, test.fromSnapshot))
			if want := test.digests[runtime.GOARCH]; a.Digest.String() != want {
				t.Errorf("the digest is %s, expected %q", a.Digest, want)
			}
			message, command, root := messages(t, a)
			if got := strings.Join(command.Arguments, " "); got != test.command {
				t.Errorf("the command is\n%s\nexpected\n%s", got, test.command)
			}
			if !slices.Equal(command.OutputPaths, []string{"verdict.json"}) {
				t.Errorf("the outputs are %q", command.OutputPaths)
			}
			if got := string(message.Salt); got != actionSalt {
				t.Errorf("the salt is %q", got)
			}
			var names []string
			for _, f := range root.Files {
				names = append(names, f.Name)
				if want := f.Name == "xsnap-worker"; f.IsExecutable != want {
					t.Errorf("%s is executable: %v", f.Name, f.IsExecutable)
				}
				if b := a.Blobs()[cas.FromProto(f.Digest)]; f.Name == "transcript.json" && string(b) != transcript {
					t.Errorf("the transcript is %s, expected %s", b, transcript)
				}
			}
			if got := strings.Join(names, " "); got != test.files {
				t.Errorf("the inputs are %s, expected %s", got, test.files)
			}
		})
	}
}

// What a result depends on changes the digest, and nothing else does.
func TestActionInputs(t *testing.T) {
	for _, fromSnapshot := range []bool{false, true} {
		name := "from bundles"
		if fromSnapshot {
			name = "from a heap snapshot"
		}
		seen := map[string]string{actionOf(t, examplePiece(t, fromSnapshot)).Digest.String(): "nothing"}
		for what, change := range map[string]func(*piece){
			"the worker":             func(p *piece) { p.run.engine.Worker.Engine.Worker.SHA256 = strings.Repeat("0", 64) },
			"the debug worker":       func(p *piece) { p.run.engine.Worker.Debug = true },
			"the engine description": func(p *piece) { p.run.engine.Worker.Engine.Config.SHA256 = strings.Repeat("0", 64) },
			"the version":            func(p *piece) { p.run.engine.Version = "agoric-upgrade-23" },
			"the protocol":           func(p *piece) { p.run.engine.Worker.Protocol = 2 },
			"the metering limit":     func(p *piece) { p.vat.Options.MeterID = "" },
			"the parser buffer":      func(p *piece) { p.run.engine.Worker.ParserBuffer = 1 },
			"the longest message":    func(p *piece) { p.run.engine.Worker.MaxMessage = 1 },
			"the environment":        func(p *piece) { p.run.engine.Worker.Env = []string{"TZ=CET"} },
			"an emulator":            func(p *piece) { p.run.engine.Worker.Emulator = []string{"qemu"} },
			"the reload":             func(p *piece) { p.run.column.Reload = false },
			"the vat":                func(p *piece) { p.vat.ID = "v8" },
			"the vat's name":         func(p *piece) { p.vat.Name = "mint" },
			"a start":                func(p *piece) { p.spans[1].Start-- },
			"an end":                 func(p *piece) { p.spans[0].End++ },
			"the first hash":         func(p *piece) { p.spans[0].Hash = "x" },
			"the last hash":          func(p *piece) { p.spans[1].Hash = "x" },
			"the incarnation":        func(p *piece) { p.spans[0].Incarnation = 2 },
			"fewer spans":            func(p *piece) { p.spans = p.spans[:1] },
			"spans that follow":      func(p *piece) { p.end++ },
			"the start":              func(p *piece) { *p = *examplePiece(t, !fromSnapshot) },
		} {
			p := examplePiece(t, fromSnapshot)
			change(p)
			load(t, p)
			d := actionOf(t, p).Digest.String()
			if other, known := seen[d]; known {
				t.Errorf("%s: %s and %s have the same digest", name, what, other)
			}
			seen[d] = what
		}
		if got := len(seen); got != 22 {
			t.Errorf("%s: %d digests", name, got)
		}

		// These matter for one kind of start only.
		for what, change := range map[string]func(*piece){
			"lockdown":         func(p *piece) { p.run.engine.Lockdown = []byte("x") },
			"supervisor":       func(p *piece) { p.run.engine.Supervisor = []byte("x") },
			"bundles":          func(p *piece) { p.run.column.Bundles = BundlesVersion },
			"disavowal":        func(p *piece) { p.vat.Options.EnableDisavow = true },
			"durability rules": func(p *piece) { p.run.relax = true },
		} {
			p := examplePiece(t, fromSnapshot)
			change(p)
			load(t, p)
			if _, same := seen[actionOf(t, p).Digest.String()]; same != fromSnapshot {
				t.Errorf("%s: with other %s, the digest is the same: %v", name, what, same)
			}
		}
		for what, change := range map[string]func(*piece){
			"how it is run":       func(p *piece) { p.run.index, p.run.timeout, p.run.pause, p.run.observe = 1, 1, 1, func(Event) {} },
			"the column's start":  func(p *piece) { p.run.column.Start = FromSnapshots },
			"what is kept":        func(p *piece) { p.keep = "snapshot.gz" },
			"what a version says": func(p *piece) { p.run.engine.LoadsSnapshotsOf = []string{"x"} },
			"what a vat is now":   func(p *piece) { p.vat.Terminated, p.vat.Static, p.vat.BundleID = true, true, "b1-x" },
			"which ran it":        func(p *piece) { p.spans[0].Engine, p.spans[1].Current = "x", false },
			"a snapshot's record": func(p *piece) {
				if fromSnapshot {
					p.snapshot.Compressed, p.snapshot.InUse, p.snapshot.Engine = 1, true, "x"
				}
			},
		} {
			p := examplePiece(t, fromSnapshot)
			change(p)
			if d := actionOf(t, p).Digest.String(); seen[d] != "nothing" {
				t.Errorf("%s: %s changes the digest", name, what)
			}
		}
	}

	p := examplePiece(t, true)
	p.snapshot.Hash = strings.Repeat("0", 64)
	known := actionOf(t, p).Digest
	p.snapshot.Size = 0 // as exports of stores have it
	unknown := actionOf(t, p)
	if plain := actionOf(t, examplePiece(t, true)).Digest; known == plain || unknown.Digest == plain || unknown.Digest == known {
		t.Error("the heap snapshot does not change the digest")
	}
	if _, _, root := messages(t, unknown); slices.ContainsFunc(root.Files, func(f *repb.FileNode) bool { return f.Name == heapSnapshotName }) {
		t.Errorf("a heap snapshot of unknown size is an input: %v", root.Files)
	}
}

// A program that is not installed is named by what it is, not by where it is.
func TestFilesOfProgram(t *testing.T) {
	e := &vat.Engine{Version: "x"}
	e.Worker.Path = filepath.Join(t.TempDir(), "worker")
	if err := os.WriteFile(e.Worker.Path, []byte("worker"), 0o755); err != nil {
		t.Fatal(err)
	}
	f, err := filesOf(e)
	if want := (engineFiles{worker: cas.OfBytes([]byte("worker"))}); err != nil || f != want {
		t.Errorf("%+v, %v; expected %+v", f, err, want)
	}
	e.Worker.Path += "x"
	if _, err := filesOf(e); err == nil {
		t.Error("no error for a worker that is not there")
	}
}

// An executor that runs the actions of package build finds those of this one of the same form.
func TestActionsAsInBuild(t *testing.T) {
	r, err := recipes.Load("agoric-upgrade-22")
	if err != nil {
		t.Fatal(err)
	}
	compilations, err := build.Plan(r)
	if err != nil {
		t.Fatal(err)
	}
	about := rehearsal{ID: "v9", BundleID: "b1-x", Parameters: json.RawMessage(`{}`)}
	e := examplePiece(t, false).run.engine
	upgrade, err := about.action(e, e, cas.OfBytes(nil), false)
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range []*action.Action{compilations[0].Action, actionOf(t, examplePiece(t, false)), upgrade} {
		message, command, root := messages(t, a)
		if !proto.Equal(command, a.Command) || cas.FromProto(message.InputRootDigest) != a.Inputs || len(command.OutputPaths) != 1 {
			t.Errorf("%v is not the action %v", a, message)
		}
		var properties []string
		for _, p := range message.Platform.GetProperties() {
			properties = append(properties, p.Name)
		}
		if len(properties) < 2 || properties[0] != "ISA" || properties[1] != "OSFamily" || !slices.IsSorted(properties) {
			t.Errorf("the platform of %v has %q", command.Arguments, properties)
		}
		if !slices.IsSortedFunc(root.Files, func(a, b *repb.FileNode) int { return strings.Compare(a.Name, b.Name) }) {
			t.Errorf("the inputs of %v are not sorted: %v", command.Arguments, root.Files)
		}
		if _, err := protojson.Marshal(message); err != nil {
			t.Error(err)
		}
	}
}

// Whatever happens to the files of a cache, what it then has is what it was given, or nothing.
func TestDamagedCache(t *testing.T) {
	dir := t.TempDir()
	c, err := openCache(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	a := actionOf(t, examplePiece(t, true))
	want := result{Spans: []Span{{Start: 100, Outcome: Replayed}}}
	read := func() bool {
		t.Helper()
		var r result
		found, err := c.read(a, &r)
		if err != nil {
			t.Fatal(err)
		}
		if found && (len(r.Spans) != 1 || r.Spans[0].Outcome != Replayed) {
			t.Errorf("it has %+v", r)
		}
		return found
	}
	if read() {
		t.Error("there is a result before there is one")
	}
	for _, damage := range []func(path string, b []byte) error{
		func(path string, b []byte) error { return os.Remove(path) },
		func(path string, b []byte) error { return os.Truncate(path, int64(len(b)/2)) },
		func(path string, b []byte) error { return os.Truncate(path, 0) },
		func(path string, b []byte) error {
			b[len(b)/2] ^= 1
			return os.WriteFile(path, b, 0o644)
		},
	} {
		if err := c.write(a, want); err != nil {
			t.Fatal(err)
		}
		var files []string
		for _, sub := range []string{"actions", "blobs"} {
			if err := filepath.WalkDir(filepath.Join(dir, sub), func(path string, d fs.DirEntry, err error) error {
				if err == nil && d.Type().IsRegular() {
					files = append(files, path)
				}
				return err
			}); err != nil {
				t.Fatal(err)
			}
		}
		if len(files) != 3 {
			t.Fatalf("the cache has %q, expected an action's result and its output", files)
		}
		for _, path := range files {
			if err := c.write(a, want); err != nil {
				t.Fatal(err)
			}
			if !read() {
				t.Fatal("there is no result")
			}
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(path, 0o644); err != nil {
				t.Fatal(err)
			}
			if err := damage(path, b); err != nil {
				t.Fatal(err)
			}
			if read() {
				t.Errorf("there is a result although %s is damaged", path)
			}
		}
	}
}
