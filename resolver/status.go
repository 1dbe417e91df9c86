package resolver

import (
	"errors"
	"slices"
	"time"

	"github.com/enginery/enginery/engines"
	"github.com/opencontainers/go-digest"
)

// Status is what a node has, and lacks.
type Status struct {
	Channels []Channel `json:"channels"`
	Versions []Version `json:"versions"` // that are stored or pinned, sorted
	Missing  []string  `json:"missing"`  // versions of channels, and pinned ones, that are not stored
	Index    *Index    `json:"index,omitempty"`
}

// Channel is a channel of the status.
type Channel struct {
	Name    string `json:"name"`
	Version string `json:"version"`
	Stored  bool   `json:"stored"`
}

// Version is a version of the status.
type Version struct {
	Version  string `json:"version"`
	Channel  string `json:"channel,omitempty"`
	Pinned   bool   `json:"pinned"`
	Stored   bool   `json:"stored"`
	Recorded bool   `json:"recorded"` // what is stored is what the record names
	Revoked  bool   `json:"revoked"`  // by the policy or the release index; the launcher does not ask
	Platform string `json:"platform,omitempty"`
	Index    string `json:"index,omitempty"`
}

// Index is the release index of the status.
type Index struct {
	Version int64     `json:"version,omitempty"` // 0: none was accepted yet
	Expires time.Time `json:"expires,omitzero"`
	Expired bool      `json:"expired"` // or there is none
}

// Status returns what the node has, at a glance: it asks no network and reads no engine. With an error, which is for what is damaged or makes no sense,
// the rest of it holds.
func (r *Resolver) Status() (*Status, error) {
	s := &Status{Channels: []Channel{}, Versions: []Version{}, Missing: []string{}}
	k, kerr := r.known()
	stored, serr := r.Home.List()
	pinned, perr := r.Home.Pinned()
	have := make(map[string]bool)
	missing := func(version string) {
		if !have[version] && !slices.Contains(s.Missing, version) {
			s.Missing = append(s.Missing, version)
		}
	}
	for _, e := range stored {
		have[e.Version] = true
		v := Version{
			Version: e.Version, Channel: k.channels.Channel(e.Version), Pinned: slices.Contains(pinned, e.Version),
			Stored: true, Platform: e.Platform, Index: e.Index,
		}
		if m, err := r.manifest(k, e.Version); err == nil {
			v.Recorded = m.Index == e.Index
		}
		v.Revoked = k.policy.Revoked(digest.Digest(e.Index))
		s.Versions = append(s.Versions, v)
	}
	for _, c := range []Channel{{Name: engines.Legacy, Version: k.channels.Legacy}, {Name: engines.Current, Version: k.channels.Current}} {
		if c.Version == "" {
			continue // the error says why
		}
		c.Stored = have[c.Version]
		s.Channels = append(s.Channels, c)
		missing(c.Version)
	}
	for _, version := range pinned {
		if missing(version); !have[version] {
			s.Versions = append(s.Versions, Version{Version: version, Channel: k.channels.Channel(version), Pinned: true})
		}
	}
	if r.Policy.Index != nil {
		s.Index = &Index{Expired: true}
		if k.index != nil {
			s.Index = &Index{Version: k.index.Version, Expires: k.index.Expires, Expired: k.index.Expired(r.now()) != nil}
		}
	}
	return s, errors.Join(kerr, serr, perr)
}
