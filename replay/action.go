package replay

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"runtime"
	"strconv"

	repb "github.com/bazelbuild/remote-apis/build/bazel/remote/execution/v2"
	"github.com/enginery/enginery/engines"
	"github.com/enginery/enginery/internal/action"
	"github.com/enginery/enginery/internal/cas"
	"github.com/enginery/enginery/swingstore"
	"github.com/enginery/enginery/vat"
	"github.com/enginery/enginery/xsnap"
)

// A piece of work is a Remote Execution API action, as a compilation is in package build. Equal digests mean equal results, but for times, since
// the action has all that a result depends on:
//
//   - the command line says how the worker is started, and what the result calls the version; there is no environment;
//   - the input root has the worker, the heap snapshot to start from, and the version's own bundles where they may stand in for others;
//   - transcript.json, also in the input root, names the spans by their hashes. Such a hash covers every byte of the span's items (swingstore.NextHash),
//     and with them the IDs of the bundles that initialize-worker names, which are hashes, too;
//   - the platform is that of this machine;
//   - the salt says what the program makes of all this.
//
// Nothing large is read to compute it. Whoever runs the action needs a source of transcripts besides, to look for the items and bundles in, and
// must check them against the hashes. How long a delivery may take is not part of the action: a result that depends on it is not kept.
const (
	heapSnapshotName = "heap-snapshot"   // not compressed
	transcriptName   = "transcript.json" // a transcript
	verdictName      = "verdict.json"    // a result
)

// actionSalt changes when the program makes another result of the same action.
const actionSalt = "enginery.replay.action/v3"

// transcript says what a piece replays.
type transcript struct {
	Vat   string           `json:"vat"`            // the vat knows its ID
	Name  string           `json:"name,omitempty"` // for people; errors in the result have it
	Spans []transcriptSpan `json:"spans"`
	Last  bool             `json:"last"` // the last span is the vat's last: it need not end with a heap snapshot

	// HeapSnapshot is the SHA-256 of the heap snapshot to start from, if the source does not say its size. Then it is no file of the input root, but
	// looked for in the source as the items are.
	HeapSnapshot string `json:"heapSnapshot,omitempty"`
}

// transcriptSpan is a span of a transcript.
type transcriptSpan struct {
	Start       int64  `json:"start"` // position of its first item
	End         int64  `json:"end"`   // position after its last
	Incarnation int64  `json:"incarnation"`
	Hash        string `json:"hash"` // over its items, as SwingSet has it
}

func describe(s swingstore.Span) transcriptSpan {
	return transcriptSpan{Start: s.Start, End: s.End, Incarnation: s.Incarnation, Hash: s.Hash}
}

// action returns the piece as an action.
func (p *piece) action() (*action.Action, error) {
	r, w := p.run, p.worker()
	c := newCommand("piece", verdictName)
	c.flag("version", r.engine.Version)
	c.worker("", w)
	c.option("keep-worker", !r.column.Reload)
	t := transcript{Vat: p.vat.ID, Name: p.vat.Name, Last: p.spans[len(p.spans)-1].End == p.end}
	for _, s := range p.spans {
		t.Spans = append(t.Spans, describe(s))
	}
	files := r.files.program("")
	switch {
	case p.snapshot == nil: // what liveslots is told, and what is evaluated before the vat's code, is in a heap snapshot otherwise
		c.flag("bundles", r.column.Bundles)
		c.option("enable-disavow", p.vat.Options.EnableDisavow)
		c.option("relax-durability-rules", r.relax)
		files = append(files, r.files.bundles("")...)
	case p.snapshot.Size > 0:
		files = append(files, file(heapSnapshotName, cas.Digest{Hash: p.snapshot.Hash, Size: p.snapshot.Size}))
	default:
		t.HeapSnapshot = p.snapshot.Hash
	}
	return c.action(files, transcriptName, t)
}

// command is the command of an action: a command line of this program, which is run in the input root and writes its output there.
type command struct {
	*repb.Command
}

func newCommand(name, output string) command {
	return command{&repb.Command{Arguments: []string{"enginery", "replay", name}, OutputPaths: []string{output}}}
}

// worker adds how a worker is started, in flags whose names begin with prefix. The protocol level of an installed engine is in its description.
func (c command) worker(prefix string, w xsnap.Options) {
	c.number(prefix+"protocol", int64(w.Protocol))
	c.number(prefix+"metering-limit", w.MeteringLimit)
	c.number(prefix+"parser-buffer", int64(w.ParserBuffer))
	c.number(prefix+"max-message", int64(w.MaxMessage))
	c.option(prefix+"emulated", len(w.Emulator) > 0)
	for _, v := range w.Env {
		c.flag(prefix+"worker-env", v)
	}
}

func (c command) flag(name, value string) { c.Arguments = append(c.Arguments, "--"+name+"="+value) }

// number adds a flag that is not 0, which is what the worker has without it.
func (c command) number(name string, value int64) {
	if value != 0 {
		c.flag(name, strconv.FormatInt(value, 10))
	}
}

// option adds a flag that is set.
func (c command) option(name string, set bool) {
	if set {
		c.Arguments = append(c.Arguments, "--"+name)
	}
}

// action returns the action with files as inputs, and what describes the rest of them.
func (c command) action(files []*repb.FileNode, name string, description any) (*action.Action, error) {
	text, err := json.Marshal(description)
	if err != nil {
		return nil, fmt.Errorf("describing the inputs of an action: %w", err)
	}
	root := &repb.Directory{Files: append(files, file(name, cas.OfBytes(text)))}
	return action.New(&repb.Action{
		Platform: &repb.Platform{Properties: []*repb.Platform_Property{{Name: "ISA", Value: isa(runtime.GOARCH)}, {Name: "OSFamily", Value: runtime.GOOS}}},
		Salt:     []byte(actionSalt),
	}, c.Command, root, text)
}

// isa returns the Remote Execution API's name of an architecture.
func isa(goarch string) string {
	switch goarch {
	case "amd64":
		return "x86-64"
	case "arm64":
		return "arm-a64"
	}
	return goarch
}

func file(name string, d cas.Digest) *repb.FileNode {
	return &repb.FileNode{Name: name, Digest: d.Proto()}
}

// engineFiles are the files of an engine.
type engineFiles struct {
	worker, config, lockdown, supervisor cas.Digest // the last three may be the zero digest: there is none
}

// filesOf returns the digests of an engine's files. It reads a worker that is not that of an installed engine.
func filesOf(e *vat.Engine) (engineFiles, error) {
	var f engineFiles
	if e.Lockdown != nil {
		f.lockdown = cas.OfBytes(e.Lockdown)
	}
	if e.Supervisor != nil {
		f.supervisor = cas.OfBytes(e.Supervisor)
	}
	if installed := e.Worker.Engine; installed != nil {
		worker := installed.Worker
		if e.Worker.Debug {
			worker = installed.DebugWorker
		}
		f.worker = cas.Digest{Hash: worker.SHA256, Size: worker.Size}
		f.config = cas.Digest{Hash: installed.Config.SHA256, Size: installed.Config.Size}
		return f, nil
	}
	program, err := os.Open(e.Worker.Path)
	if err != nil {
		return f, fmt.Errorf("reading the worker of %s: %w", e.Version, err)
	}
	defer program.Close()
	h := sha256.New()
	n, err := io.Copy(h, program)
	if err != nil {
		return f, fmt.Errorf("reading the worker of %s: %w", e.Version, err)
	}
	f.worker = cas.Digest{Hash: hex.EncodeToString(h.Sum(nil)), Size: n}
	return f, nil
}

// program returns the files that a worker is started with, with names that begin with prefix.
func (f *engineFiles) program(prefix string) []*repb.FileNode {
	worker := file(prefix+engines.WorkerName, f.worker)
	worker.IsExecutable = true
	return append([]*repb.FileNode{worker}, present(prefix+engines.ConfigName, f.config)...)
}

// bundles returns the version's own bundles.
func (f *engineFiles) bundles(prefix string) []*repb.FileNode {
	return append(present(prefix+engines.LockdownName, f.lockdown), present(prefix+engines.SupervisorName, f.supervisor)...)
}

// present returns a file, if there is one.
func present(name string, d cas.Digest) []*repb.FileNode {
	if d.IsZero() {
		return nil
	}
	return []*repb.FileNode{file(name, d)}
}
