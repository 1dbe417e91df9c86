package upgrade

import (
	"context"
	"fmt"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/enginery/enginery/engines"
)

// Adoption is a new current version, as governance says it. What it names by digest is the same on all nodes, or the block is not made.
type Adoption struct {
	Version        string `json:"version"`
	Index          string `json:"index,omitempty"`          // digest of the artifact's index
	Classification string `json:"classification,omitempty"` // digest of the file that enginery replay compare wrote
}

// check refuses what no node could ever find.
func (a Adoption) check() error {
	if err := checkVersion(a.Version); err != nil {
		return err
	}
	for _, named := range []struct{ what, digest string }{{"artifact", a.Index}, {"replay classification", a.Classification}} {
		if named.digest == "" {
			continue
		}
		if d, err := digest.Parse(named.digest); err != nil || d.Algorithm() != digest.SHA256 {
			return refuse("the %s in the adoption of %s is %q, expected a digest, sha256: and 64 hexadecimal digits", named.what, a.Version, named.digest)
		}
	}
	return nil
}

// Channels returns the versions in service.
func (c *Controller) Channels(ctx context.Context) (engines.Channels, error) {
	return c.s.channels(ctx)
}

// InUseError says that a version cannot be adopted or retired, since vats run on those in service.
type InUseError struct {
	Version string   // that was to be adopted or retired
	Held    []Holder // the versions that are in the way
}

// Holder is a version, and who runs on it.
type Holder struct {
	Version string
	Count   int64
	Vats    []string // the first of them, at most HolderVats
}

// HolderVats is how many vats a Holder names at most.
const HolderVats = 100

// Is reports that it is ErrRefused.
func (e *InUseError) Is(target error) bool { return target == ErrRefused }

func (e *InUseError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s:", e.Version)
	for _, h := range e.Held {
		fmt.Fprintf(&b, " %s on %s (%s", count(h.Count, "vat runs", "vats run"), h.Version, strings.Join(h.Vats, ", "))
		if h.Count > int64(len(h.Vats)) {
			b.WriteString(", …")
		}
		b.WriteString(");")
	}
	b.WriteString(" upgrade, suspend or terminate them first")
	return b.String()
}

// Adopt makes a version the current one, which new and upgraded vats run on. The version that was current stays in service as long as a vat
// runs on it. The error is an *InUseError if two others are in use, a *RefusedError if it cannot be adopted, and another if the host could not
// check it here and now.
func (c *Controller) Adopt(ctx context.Context, a Adoption) error {
	if err := a.check(); err != nil {
		return err
	}
	in, err := c.s.channels(ctx)
	if err != nil {
		return err
	}
	settings, err := c.s.settings(ctx)
	if err != nil {
		return err
	}
	if settings.RequireDigests && (a.Index == "" || a.Classification == "") {
		return refuse("the adoption of %s names the artifact %q and the replay classification %q; the settings (requireDigests) want digests of both", a.Version, a.Index, a.Classification)
	}
	if in.Current == a.Version {
		return refuse("%s is the current version already", a.Version)
	}
	if r, err := c.s.rollout(ctx); err != nil {
		return err
	} else if r != nil && !r.State.over() {
		return refuse("rollout %d, to %s, is %s; finish or abort it first", r.ID, r.Version, r.State)
	}
	next := engines.Channels{Legacy: in.Current, Current: a.Version}
	if in.Legacy != in.Current && in.Legacy != a.Version {
		onLegacy, err := c.s.count(ctx, in.Legacy)
		if err != nil {
			return err
		}
		onCurrent, err := c.s.count(ctx, in.Current)
		if err != nil {
			return err
		}
		switch {
		case onLegacy > 0 && onCurrent > 0:
			e := &InUseError{Version: a.Version}
			for _, v := range []string{in.Legacy, in.Current} {
				h, err := c.s.holder(ctx, v)
				if err != nil {
					return err
				}
				e.Held = append(e.Held, h)
			}
			return e
		case onLegacy > 0:
			next.Legacy = in.Legacy
		}
	}
	if err := c.host.CheckVersion(ctx, a); err != nil {
		return fmt.Errorf("adopting %s: %w", a.Version, err)
	}
	return c.do(ctx, Event{Type: Adopted, Version: a.Version, Adoption: &a, Channels: &next})
}

// Retire takes the legacy version out of service. It is an *InUseError if a vat runs on it. From then on a suspended vat cannot be rolled
// back to it.
func (c *Controller) Retire(ctx context.Context, version string) error {
	in, err := c.s.channels(ctx)
	if err != nil {
		return err
	}
	if version == in.Current {
		return refuse("%s is the current version, which new vats run on; adopt another first", version)
	}
	if version != in.Legacy {
		return refuse("%s is not in service: legacy is %s, current is %s", version, in.Legacy, in.Current)
	}
	h, err := c.s.holder(ctx, version)
	if err != nil {
		return err
	}
	if h.Count > 0 {
		return &InUseError{version, []Holder{h}}
	}
	return c.do(ctx, Event{Type: Retired, Version: version, Channels: &engines.Channels{Legacy: in.Current, Current: in.Current}})
}

func checkVersion(version string) error {
	if err := engines.CheckVersion(version); err != nil {
		return &RefusedError{err.Error()}
	}
	return nil
}
