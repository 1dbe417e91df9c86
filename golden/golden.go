// Package golden runs golden vectors on a worker, to tell whether a binary behaves as its recipe says.
//
// A vector is a program for a fresh worker. Some of its steps are observed: the heap snapshot's hash, the computrons, what the guest
// answered. The recipe has what must be seen. What upstream's tests expect is among it, so that a worker that passes is the
// engine that the chain runs, whatever its digest.
package golden

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"maps"
	"os/exec"
	"runtime"
	"slices"
	"strings"

	"github.com/enginery/enginery/internal/client"
	"github.com/enginery/enginery/internal/keys"
	"github.com/enginery/enginery/recipes"
	"github.com/enginery/enginery/xsnap"
)

// Engine is a worker to examine.
type Engine struct {
	Path                 string   // of the binary
	Emulator             []string // see xsnap.Options
	Lockdown, Supervisor []byte   // the bundles as published; needed by vectors that evaluate them
	Source               []byte   // its xsnap-worker.c, if that is at hand: it shows what the engine does not
}

// Result is the outcome of one observation.
type Result struct {
	Vector   string `json:"vector"` // a vector's name, or "description" for what the engine description says
	Label    string `json:"label"`
	Expected string `json:"expected"`
	Found    string `json:"found"`
	OK       bool   `json:"ok"`
}

// Emulator returns the command that runs a platform's binaries here: none if this is that platform. The error says what to install.
func Emulator(platform string) ([]string, error) {
	if platform == "linux/"+runtime.GOARCH {
		return nil, nil
	}
	programs := map[string]string{"linux/arm64": "qemu-aarch64-static", "linux/amd64": "qemu-x86_64-static"}
	program, ok := programs[platform]
	if !ok {
		return nil, fmt.Errorf("running a worker for %s: no emulator is known for it", platform)
	}
	path, err := exec.LookPath(program)
	if err != nil {
		return nil, fmt.Errorf("running a worker for %s on linux/%s: %w; install the Debian package qemu-user-static", platform, runtime.GOARCH, &client.MissingError{Program: program})
	}
	return []string{path}, nil
}

// Check runs all vectors that the recipe has values of for a goal, and compares the engine description with what the engine shows.
// A result that is not OK is not an error; not being able to observe something is.
func Check(ctx context.Context, e Engine, r *recipes.Recipe, goal string) ([]Result, error) {
	expected := r.Golden[goal]
	if len(expected) == 0 {
		return nil, fmt.Errorf("%s has no golden vectors for the %s worker", r.ID, goal)
	}
	results, err := checkDescription(ctx, e, r)
	if err != nil {
		return nil, err
	}
	for _, name := range slices.Sorted(maps.Keys(expected)) {
		vector := r.Vectors[name]
		if vector == nil {
			return nil, fmt.Errorf("%s has golden values of an unknown vector %s", r.ID, name)
		}
		found, err := run(ctx, e, r, vector)
		if err != nil {
			return nil, fmt.Errorf("golden vector %s: %w", name, err)
		}
		for _, label := range keys.Union(expected[name], found) {
			want, wanted := expected[name][label]
			got, seen := found[label]
			switch {
			case !wanted:
				results = append(results, Result{name, label, "a value in the recipe", show(got, got), false})
			case !seen:
				results = append(results, Result{name, label, show(want, want), "no such step", false})
			default:
				w, g := show(want, want), show(got, want)
				results = append(results, Result{name, label, w, g, w == g && w != ""}) // what asks for nothing proves nothing
			}
		}
	}
	return results, nil
}

// Observe runs every vector that a recipe knows on an engine and returns what it shows: vector, label.
func Observe(ctx context.Context, e Engine, r *recipes.Recipe, vectors map[string]*recipes.Vector) (map[string]map[string]recipes.Observation, error) {
	all := make(map[string]map[string]recipes.Observation)
	for _, name := range slices.Sorted(maps.Keys(vectors)) {
		found, err := run(ctx, e, r, vectors[name])
		if err != nil {
			return nil, fmt.Errorf("golden vector %s: %w", name, err)
		}
		all[name] = found
	}
	return all, nil
}

// run runs a vector in a fresh worker and returns the observations by label.
func run(ctx context.Context, e Engine, r *recipes.Recipe, v *recipes.Vector) (map[string]recipes.Observation, error) {
	w, err := start(ctx, e, r, nil)
	if err != nil {
		return nil, err
	}
	defer func() { w.Kill() }()
	found := make(map[string]recipes.Observation)
	for i, step := range v.Steps {
		var o recipes.Observation
		switch {
		case step.Snapshot:
			sum := newSum()
			if o.Size, err = w.Snapshot(sum); err == nil {
				o.Snapshot = sum.String()
			}
		case step.Resume:
			o, w, err = resume(ctx, e, r, w)
		case step.Bundle != "":
			var source string
			if source, err = e.source(step.Bundle); err == nil {
				o, err = observe(w.Evaluate(source))
				if err == nil && o.Reply != "" {
					err = fmt.Errorf("evaluating the %s bundle gave %q", step.Bundle, o.Reply)
				}
			}
		case step.Command != "":
			o, err = observe(w.Command([]byte(step.Command)))
		default:
			o, err = observe(w.Evaluate(step.Evaluate))
		}
		if err != nil {
			return nil, fmt.Errorf("step %d: %w", i+1, err)
		}
		if step.Label != "" {
			found[step.Label] = o
		}
	}
	return found, nil
}

func start(ctx context.Context, e Engine, r *recipes.Recipe, snapshot io.Reader) (*xsnap.Worker, error) {
	return xsnap.Start(ctx, xsnap.Options{
		Path: e.Path, Emulator: e.Emulator, Protocol: r.Engine.Protocol, Name: "golden", Snapshot: snapshot,
		Handle: func(context.Context, []byte) ([]byte, error) { return nil, nil },
	})
}

// resume takes a heap snapshot of a worker and goes on in a new one that has loaded it.
func resume(ctx context.Context, e Engine, r *recipes.Recipe, w *xsnap.Worker) (recipes.Observation, *xsnap.Worker, error) {
	sum := newSum()
	heap := new(bytes.Buffer)
	size, err := w.Snapshot(io.MultiWriter(sum, heap))
	if err != nil {
		return recipes.Observation{}, w, err
	}
	w.Kill()
	next, err := start(ctx, e, r, heap)
	if err != nil {
		return recipes.Observation{}, w, err
	}
	return recipes.Observation{Snapshot: sum.String(), Size: size}, next, nil
}

// observe makes an observation of a reply or of an exception, which is one too.
func observe(reply xsnap.Reply, err error) (recipes.Observation, error) {
	var guest *xsnap.GuestError
	if errors.As(err, &guest) {
		return recipes.Observation{Reply: guest.Text}, nil
	}
	if err != nil {
		return recipes.Observation{}, err
	}
	return recipes.Observation{
		Compute: reply.Meter.Compute, Allocate: reply.Meter.Allocate, HeapCount: reply.Meter.HeapCount, Reply: string(reply.Payload),
	}, nil
}

// source returns what hosts evaluate of a bundle (agoric-sdk, packages/SwingSet/src/controller/startXSnap.js).
func (e *Engine) source(name string) (string, error) {
	data := e.Lockdown
	if name == recipes.Supervisor {
		data = e.Supervisor
	}
	var bundle struct{ Source string }
	if err := json.Unmarshal(data, &bundle); err != nil {
		return "", fmt.Errorf("reading the %s bundle: %w", name, err)
	}
	if bundle.Source == "" {
		return "", fmt.Errorf("the %s bundle has no source", name)
	}
	return strings.TrimSpace("(" + bundle.Source + "\n)()"), nil
}

// show writes the fields of o that are asked for.
func show(o, asked recipes.Observation) string {
	var fields []string
	add := func(wanted bool, format string, value any) {
		if wanted {
			fields = append(fields, fmt.Sprintf(format, value))
		}
	}
	add(asked.Snapshot != "", "snapshot %s", o.Snapshot)
	add(asked.Size != 0, "%d bytes", o.Size)
	add(asked.Compute != 0, "%d computrons", o.Compute)
	add(asked.Allocate != 0, "%d allocated", o.Allocate)
	add(asked.HeapCount != 0, "%d slots", o.HeapCount)
	add(asked.Reply != "", "%q", o.Reply)
	return strings.Join(fields, ", ")
}

// sum is a running SHA-256.
type sum struct{ hash.Hash }

func newSum() sum { return sum{sha256.New()} }

func (s sum) String() string { return hex.EncodeToString(s.Sum(nil)) }
