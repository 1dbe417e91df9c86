package engines

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/enginery/enginery/internal/strict"
	"github.com/google/renameio/v2"
)

// Channels are the at most two versions that a chain runs at a time.
type Channels struct {
	Legacy  string `json:"legacy"`  // what vats run on that were not upgraded yet, or never can be
	Current string `json:"current"` // what new vats run on; may be Legacy
}

// Names of channels.
const (
	Legacy  = "legacy"
	Current = "current"
)

// ErrNoChannels says that nothing has told a node its channels yet.
var ErrNoChannels = errors.New("no channels are known")

// ParseChannels parses a channels.toml.
func ParseChannels(file string, data []byte) (Channels, error) {
	var c struct {
		Legacy  string `toml:"legacy"`
		Current string `toml:"current"`
	}
	if err := strict.Decode(file, data, &c); err != nil {
		return Channels{}, err
	}
	for _, v := range []struct{ key, version string }{{Legacy, c.Legacy}, {Current, c.Current}} {
		if v.version == "" {
			return Channels{}, strict.Errorf(file, data, v.key, "%s is missing: a version ID is expected", v.key)
		}
		if err := CheckVersion(v.version); err != nil {
			return Channels{}, strict.Errorf(file, data, v.key, "%s: %v", v.key, err)
		}
	}
	return Channels(c), nil
}

// Version returns the version that a name stands for: a channel's, or the name itself.
func (c Channels) Version(name string) string {
	switch name {
	case Legacy:
		return c.Legacy
	case Current:
		return c.Current
	}
	return name
}

// Channel returns the channel of a version, or "" if it has none.
func (c Channels) Channel(version string) string {
	switch version {
	case c.Current:
		return Current
	case c.Legacy:
		return Legacy
	}
	return ""
}

// NotInServiceError says that a version is in no channel.
type NotInServiceError struct {
	Version  string
	Channels Channels
}

func (e *NotInServiceError) Error() string {
	return fmt.Sprintf("%s is not in service: expected legacy, %s, or current, %s; to replay history with another version, ask for archival use",
		e.Version, e.Channels.Legacy, e.Channels.Current)
}

// Check returns a *NotInServiceError if a version is in no channel.
func (c Channels) Check(version string) error {
	if c.Channel(version) == "" {
		return &NotInServiceError{version, c}
	}
	return nil
}

// Channels returns the channels of the operator (channels.toml), or else those that the resolver accepted (state/channels.toml). The error is
// ErrNoChannels if there are neither.
func (s *Store) Channels() (Channels, error) {
	for _, file := range []string{filepath.Join(s.home, "channels.toml"), filepath.Join(s.home, "state", "channels.toml")} {
		data, err := os.ReadFile(file)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		} else if err != nil {
			return Channels{}, fmt.Errorf("reading the channels: %w", err)
		}
		return ParseChannels(file, data)
	}
	return Channels{}, fmt.Errorf("%w in %s; fetch something first: enginery fetch", ErrNoChannels, s.home)
}

// Find is Get for the name of a version or channel.
func (s *Store) Find(name string) (*Engine, error) {
	if name == Legacy || name == Current {
		c, err := s.Channels()
		if err != nil {
			return nil, err
		}
		name = c.Version(name)
	}
	return s.Get(name)
}

// SetChannels makes the channels of data, a channels.toml, those of a node whose operator names none.
func (s *Store) SetChannels(data []byte) error {
	file := filepath.Join(s.home, "state", "channels.toml")
	if _, err := ParseChannels(file, data); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	return renameio.WriteFile(file, data, 0o644)
}

// Assignment says what workers run, by their names.
type Assignment struct {
	Default string            // a version or channel
	Workers map[string]string // name, or pattern of path.Match -> version or channel
}

// ParseAssignment parses a workers.toml:
//
//	default = "current"
//	[workers]
//	"v1:bootstrap" = "legacy"
//	"v2*"          = "agoric-upgrade-18"
func ParseAssignment(file string, data []byte) (*Assignment, error) {
	var a struct {
		Default string            `toml:"default"`
		Workers map[string]string `toml:"workers"`
	}
	if err := strict.Decode(file, data, &a); err != nil {
		return nil, err
	}
	if a.Default == "" {
		a.Default = Current
	}
	if err := CheckVersion(a.Default); err != nil {
		return nil, strict.Errorf(file, data, "default", "default: %v", err)
	}
	for pattern, version := range a.Workers {
		if _, err := path.Match(pattern, ""); err != nil {
			return nil, strict.Errorf(file, data, "workers."+pattern, "worker %q: %v", pattern, err)
		}
		if err := CheckVersion(version); err != nil {
			return nil, strict.Errorf(file, data, "workers."+pattern, "worker %q: %v", pattern, err)
		}
	}
	return &Assignment{a.Default, a.Workers}, nil
}

// For returns the version or channel of a worker, and the name or pattern that says so: the worker's own name if it is there, otherwise
// the longest pattern that matches, otherwise none and the default.
func (a *Assignment) For(worker string) (version, because string) {
	if v, ok := a.Workers[worker]; ok {
		return v, worker
	}
	for pattern := range a.Workers {
		ok, _ := path.Match(strings.ReplaceAll(pattern, "/", "\x00"), strings.ReplaceAll(worker, "/", "\x00"))
		if ok && (len(pattern) > len(because) || len(pattern) == len(because) && pattern < because) {
			because = pattern
		}
	}
	if because != "" {
		return a.Workers[because], because
	}
	return a.Default, ""
}

// Environment variables of Select.
const (
	VersionEnv  = "ENGINERY_VERSION"  // a version or channel, for every worker
	ArchivalEnv = "ENGINERY_ARCHIVAL" // 1: also versions that are in no channel
)

// Select returns the version that a worker of that name runs, and why: ENGINERY_VERSION, or else workers.toml in the home, or else the channel
// current. It is a *NotInServiceError if the version is in no channel, unless ENGINERY_ARCHIVAL is 1.
func (s *Store) Select(worker string, getenv func(string) string) (version, because string, err error) {
	name := getenv(VersionEnv)
	because = VersionEnv
	if name == "" {
		file := filepath.Join(s.home, "workers.toml")
		data, err := os.ReadFile(file)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", "", fmt.Errorf("reading the assignment of workers: %w", err)
		}
		a, err := ParseAssignment(file, data)
		if err != nil {
			return "", "", err
		}
		name, because = a.For(worker)
		if because == "" {
			because = "the default"
		} else {
			because = fmt.Sprintf("%q in %s", because, file)
		}
	}
	archival := getenv(ArchivalEnv) == "1"
	c, err := s.Channels()
	if err != nil && !(archival && !slices.Contains([]string{Legacy, Current}, name) && errors.Is(err, ErrNoChannels)) {
		return "", "", err
	}
	version = c.Version(name)
	if err := CheckVersion(version); err != nil {
		return "", "", fmt.Errorf("%s: %w", because, err)
	}
	if !archival {
		if err := c.Check(version); err != nil {
			return "", "", fmt.Errorf("worker %s, by %s: %w (%s=1)", worker, because, err, ArchivalEnv)
		}
	}
	return version, because, nil
}
