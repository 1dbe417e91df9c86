package resolver

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/enginery/enginery/trust"
	"github.com/google/renameio/v2"
	"github.com/opencontainers/go-digest"
)

// acceptance is what a node remembers of why it accepted a version.
type acceptance struct {
	Policy   digest.Digest    `json:"policy"`
	Index    digest.Digest    `json:"index"`
	Channel  string           `json:"channel"`
	Evidence []trust.Evidence `json:"evidence"` // what counted, and when it was first seen
}

const acceptanceName = "accepted.json"

// remembered returns what is remembered of a version, which is nothing if it was another index.
func (r *Resolver) remembered(v *version) (*acceptance, error) {
	data, err := os.ReadFile(filepath.Join(r.Home.Evidence(v.Version), acceptanceName))
	if errors.Is(err, fs.ErrNotExist) {
		return new(acceptance), nil
	} else if err != nil {
		return nil, err
	}
	var a acceptance
	if json.Unmarshal(data, &a) != nil || a.Index != v.Index {
		return new(acceptance), nil // it is collected anew
	}
	return &a, nil
}

// remember notes that the policy has accepted a version.
func (r *Resolver) remember(v *version, evidence []trust.Evidence) error {
	a := acceptance{Policy: v.policy.Digest(), Index: v.Index, Channel: v.Channel}
	for _, e := range evidence {
		if e.Seen.IsZero() {
			e.Seen = r.now().UTC()
		}
		a.Evidence = append(a.Evidence, e)
	}
	data, err := json.Marshal(a)
	if err != nil {
		return err
	}
	dir := r.Home.Evidence(v.Version)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := renameio.WriteFile(filepath.Join(dir, acceptanceName), data, 0o644); err != nil {
		return fmt.Errorf("remembering that %s is accepted: %w", v.Version, err)
	}
	return nil
}

// accepted returns nil if the policy accepts what the node has, by the evidence that it has; otherwise a *trust.RefusedError. The same policy's
// word stands: time alone changes nothing of what is accepted. Another policy decides anew.
func (r *Resolver) accepted(v *version) error {
	a, err := r.remembered(v)
	if err != nil {
		return err
	}
	if a.Index == v.Index && a.Policy == v.policy.Digest() && a.Channel == v.Channel {
		return nil
	}
	d := v.policy.Decide(v.Subject, a.Evidence, r.options())
	if !d.OK {
		return d.Err()
	}
	if err := r.remember(v, d.Evidence()); err != nil && !readOnly(err) {
		return err
	}
	return nil
}
