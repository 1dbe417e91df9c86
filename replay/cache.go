package replay

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/google/renameio/v2"
)

// Action is a piece of work as all its inputs, each named by what it is: who computes one, here or elsewhere, gets the same result. The
// SHA-256 of it in JSON is its digest.
type Action struct {
	Schema     string   `json:"schema"`
	Engine     string   `json:"engine"` // digest of the worker: "sha256:…"
	Emulated   bool     `json:"emulated,omitempty"`
	Worker     Worker   `json:"worker"`
	Vat        string   `json:"vat"`                // the vat knows its ID
	Snapshot   string   `json:"snapshot,omitempty"` // SHA-256 of the heap snapshot to start from; empty: from bundles, which the transcript names
	Lockdown   string   `json:"lockdown,omitempty"` // SHA-256, of those that stand in for the ones that the transcript names
	Supervisor string   `json:"supervisor,omitempty"`
	Reload     bool     `json:"reload"`
	Spans      []string `json:"spans"` // START-END:HASH
}

// Worker is how an action's worker is started.
type Worker struct {
	Protocol             int   `json:"protocol"`
	MeteringLimit        int64 `json:"meteringLimit,omitempty"`
	ParserBuffer         int   `json:"parserBuffer,omitempty"`
	EnableDisavow        bool  `json:"enableDisavow,omitempty"`
	RelaxDurabilityRules bool  `json:"relaxDurabilityRules,omitempty"`
}

// actionSchema changes when the meaning of actions or results does.
const actionSchema = "enginery.replay.action/v1"

// Digest returns the action's digest.
func (a *Action) Digest() string { return actionDigest(a) }

func actionDigest(action any) string {
	b, err := json.Marshal(action)
	if err != nil {
		panic(err) // it has nothing that could fail
	}
	return digestOf(b)
}

func digestOf(b []byte) string {
	s := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(s[:])
}

func (p *piece) action() *Action {
	w := p.worker()
	a := &Action{
		Schema: actionSchema, Engine: p.run.column.Engine, Emulated: len(w.Emulator) > 0, Vat: p.vat.ID, Reload: p.run.column.Reload,
		Worker: Worker{w.Protocol, w.MeteringLimit, w.ParserBuffer, p.vat.Options.EnableDisavow, p.run.relax},
	}
	for _, s := range p.spans {
		a.Spans = append(a.Spans, fmt.Sprintf("%d-%d:%s", s.Start, s.End, s.Hash))
	}
	if p.snapshot != nil {
		a.Snapshot = p.snapshot.Hash
	}
	if p.run.column.Bundles == BundlesVersion {
		a.Lockdown, a.Supervisor = digestOf(p.run.engine.Lockdown), digestOf(p.run.engine.Supervisor)
	}
	return a
}

// cached is a result in the cache.
type cached struct {
	Action json.RawMessage `json:"action"`
	Sum    string          `json:"sum"` // digest of Result
	Result json.RawMessage `json:"result"`
}

// cache is a folder with results, by the digests of their actions; "" if there is none.
type cache string

func (c cache) path(digest string) string {
	hash := digest[len("sha256:"):]
	return filepath.Join(string(c), hash[:2], hash+".json")
}

// read reads the result of an action, and reports whether there was one. One that is damaged is none.
func (c cache) read(digest string, result any) (bool, error) {
	if c == "" {
		return false, nil
	}
	b, err := os.ReadFile(c.path(digest))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	} else if err != nil {
		return false, fmt.Errorf("reading a result that is known: %w", err)
	}
	var r cached
	whole := json.Unmarshal(b, &r) == nil && digestOf(r.Result) == r.Sum && digestOf(r.Action) == digest
	return whole && json.Unmarshal(r.Result, result) == nil, nil
}

// write keeps a result, whole or not at all.
func (c cache) write(action, result any) error {
	if c == "" {
		return nil
	}
	a, err := json.Marshal(action)
	if err != nil {
		return err
	}
	text, err := json.Marshal(result)
	if err != nil {
		return err
	}
	b, err := json.Marshal(cached{a, digestOf(text), text})
	if err != nil {
		return err
	}
	if err := writeFile(c.path(digestOf(a)), b); err != nil {
		return fmt.Errorf("keeping a result: %w", err)
	}
	return nil
}

// writeFile writes a file, whole or not at all, and the folder that it is in.
func writeFile(path string, b []byte) error {
	if err := mkdirOf(path); err != nil {
		return err
	}
	return renameio.WriteFile(path, b, 0o644)
}

func mkdirOf(path string) error { return os.MkdirAll(filepath.Dir(path), 0o755) }
