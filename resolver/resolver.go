// Package resolver gets a node the engines that it needs: from a version ID to verified files on disk.
//
// What a version must be comes from its manifest; whether it is trusted, a policy decides; where its bytes come from does not matter. Once a node
// has a version and has accepted it, no network is asked for it again.
package resolver

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/enginery/enginery/engines"
	"github.com/enginery/enginery/manifests"
	"github.com/enginery/enginery/releaseindex"
	"github.com/enginery/enginery/trust"
	"github.com/opencontainers/go-digest"
	"github.com/sigstore/sigstore-go/pkg/root"
	"golang.org/x/sync/errgroup"
)

// Resolver is a node's way to its engines.
type Resolver struct {
	Home        *engines.Store
	Policy      *trust.Policy
	Sources     []string             // see repository.Open; the policy's if empty
	TrustedRoot root.TrustedMaterial // of sigstore; nil: that of the home (trusted_root.json) or of the public deployment, if the policy needs it
	Platform    string               // e.g. "linux/amd64"; this machine's if empty
	Manifests   fs.FS                // records that win over those of the release index and of the program, as ID.json; may be nil
	Now         func() time.Time     // time.Now if nil
	Patience    time.Duration        // with a registry that does not answer, see repository.Patience; 30 seconds if 0

	rootMu sync.Mutex // guards TrustedRoot
}

// Options say how to resolve a version.
type Options struct {
	Expect   digest.Digest // the index that it must be, e.g. that a chain has agreed on; empty: what is recorded
	Archival bool          // also a version that is in no channel
	Offline  bool          // ask no network

	planned bool // a version that is in no channel is to meet what is required of the channel current
}

// UnavailableError says that a version could not be had from any source.
type UnavailableError struct {
	Version string
	Tried   []error // one for each source, in order; and the policy's refusal of what could be had
}

func (e *UnavailableError) Error() string {
	if len(e.Tried) == 0 {
		return fmt.Sprintf("%s cannot be had: there is no source to take it from; name one in the policy (sources = [\"HOST/NAME\"]) or with --from", e.Version)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s cannot be had:", e.Version)
	for _, err := range e.Tried {
		b.WriteString("\n  " + strings.ReplaceAll(err.Error(), "\n", "\n  "))
	}
	return b.String()
}

func (e *UnavailableError) Unwrap() []error { return e.Tried }

// UnexpectedError says that a version is not the one that was expected.
type UnexpectedError struct {
	Version    string
	Want, Have digest.Digest
	Where      string // what has another, e.g. "the record"
	Hint       string // what to make of it; may be empty
}

func (e *UnexpectedError) Error() string {
	s := fmt.Sprintf("%s: expected %s; %s has %s", e.Version, e.Want, e.Where, e.Have)
	if e.Hint != "" {
		s += "; " + e.Hint
	}
	return s
}

// version is a version to resolve: what it must be.
type version struct {
	trust.Subject
	policy   *trust.Policy
	platform string // e.g. "linux/amd64"
	record   *manifests.Platform
}

// Resolve returns the engine of a version, or of a channel's: installed, accepted by the policy, and every file of it read and found to be what it
// must be. What the node has not, or has damaged, it gets from its sources. A version that is in no channel and not pinned may be removed by
// Store.GC: hold it while it is used.
//
// The error is an *engines.NotInServiceError if the version is in no channel, a *trust.RefusedError if the policy refuses it, an
// *UnavailableError if no source has it, and an *UnexpectedError if it is another than expected. If some sources do not answer and the policy
// refuses what the others have, it is an *UnavailableError that wraps the refusal. What must be fetched, while the policy has a release index, waits
// for one that has not expired: the errors of Refresh.
func (r *Resolver) Resolve(ctx context.Context, name string, o Options) (*engines.Engine, error) {
	if err := r.giveChannels(ctx); err != nil {
		return nil, err
	}
	k, err := r.known()
	if err != nil {
		return nil, err
	}
	v, err := r.version(k, name, o)
	if err != nil {
		return nil, err
	}
	e, err := r.stored(v)
	if err == nil {
		return e, nil
	}
	if v.policy.Revoked(v.Index) { // whoever else vouches for it
		return nil, err
	}
	if o.Offline {
		return nil, fmt.Errorf("offline: %w", err)
	}
	if r.Policy.Index != nil && (k.index == nil || k.index.Expired(r.now()) != nil) {
		if _, err := r.Refresh(ctx); err != nil {
			return nil, err
		}
		if k, err = r.known(); err != nil {
			return nil, err
		}
		if v, err = r.version(k, name, o); err != nil {
			return nil, err
		}
	}
	r.prepare(ctx)
	return r.fetch(ctx, v)
}

// version returns what a name stands for.
func (r *Resolver) version(k knowledge, name string, o Options) (*version, error) {
	id := k.channels.Version(name)
	if err := engines.CheckVersion(id); err != nil {
		return nil, err
	}
	if !o.Archival {
		if err := k.channels.Check(id); err != nil {
			return nil, err
		}
	}
	m, err := r.manifest(k, id)
	if err != nil {
		return nil, err
	}
	v := &version{Subject: trust.Subject{Version: id, Channel: k.channels.Channel(id), Index: digest.Digest(m.Index)}, policy: k.policy, platform: r.Platform}
	if o.Expect != "" && o.Expect != v.Index {
		return nil, &UnexpectedError{id, o.Expect, v.Index, "the record", "this program, or its release index, is not of the release that was agreed on"}
	}
	if o.planned && v.Channel == "" {
		v.Channel = engines.Current
	}
	if v.platform == "" {
		v.platform = runtime.GOOS + "/" + runtime.GOARCH
	}
	var ok bool
	if v.record, ok = m.Platforms[v.platform]; !ok {
		return nil, fmt.Errorf("%s is not built for %s; it is for %s", id, v.platform, strings.Join(slices.Sorted(maps.Keys(m.Platforms)), ", "))
	}
	return v, nil
}

// Record returns the record of a version, or of a channel's: in service or not.
func (r *Resolver) Record(name string) (*manifests.Manifest, error) {
	k, err := r.known()
	if err != nil {
		return nil, err
	}
	id := k.channels.Version(name)
	if err := engines.CheckVersion(id); err != nil {
		return nil, err
	}
	return r.manifest(k, id)
}

// channels returns the operator's channels, or those of the release index that was accepted, or those that ship.
func (r *Resolver) channels() (engines.Channels, error) {
	accepted, err := releaseindex.Accepted(r.Home)
	if err != nil {
		return engines.Channels{}, err
	}
	own, err := r.ownChannels()
	if err != nil {
		return engines.Channels{}, err
	}
	if own || accepted {
		c, err := r.Home.Channels()
		if !errors.Is(err, engines.ErrNoChannels) {
			return c, err
		}
	}
	return engines.ParseChannels("channels.toml", manifests.Channels)
}

// ownChannels reports whether the operator names channels.
func (r *Resolver) ownChannels() (bool, error) {
	_, err := os.Stat(filepath.Join(r.Home.Home(), "channels.toml"))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// giveChannels gives the node the channels that ship with this program, unless its operator or a release index names others: the launcher knows only
// what is in the home.
func (r *Resolver) giveChannels(ctx context.Context) error {
	if own, err := r.ownChannels(); own || err != nil {
		return err
	}
	if err := releaseindex.SetShipped(ctx, r.Home, manifests.Channels); err != nil && !readOnly(err) {
		return fmt.Errorf("giving %s its channels: %w", r.Home.Home(), err)
	}
	return nil
}

// manifest returns the record of a version.
func (r *Resolver) manifest(k knowledge, id string) (*manifests.Manifest, error) {
	newer := []fs.FS{r.Manifests}
	ids := manifests.IDs()
	if k.index != nil {
		newer = append(newer, k.index.Manifests())
		ids = slices.Compact(slices.Sorted(slices.Values(append(ids, k.index.IDs()...))))
	}
	for _, fsys := range newer {
		if fsys == nil {
			continue
		}
		m, err := manifests.ReadFS(fsys, id)
		if !errors.Is(err, manifests.ErrNotRecorded) {
			return m, err
		}
	}
	m, err := manifests.Load(id)
	if errors.Is(err, manifests.ErrNotRecorded) {
		return nil, fmt.Errorf("%w; the versions that are: %s", err, strings.Join(ids, ", "))
	}
	return m, err
}

func (r *Resolver) now() time.Time {
	if r.Now != nil {
		return r.Now()
	}
	return time.Now()
}

func (r *Resolver) options() trust.Options {
	r.rootMu.Lock()
	defer r.rootMu.Unlock()
	return trust.Options{Time: r.now(), TrustedRoot: r.TrustedRoot}
}

// stored returns the engine that the node has, if it is the version, whole, and accepted. What is revoked never is: a *trust.RefusedError.
func (r *Resolver) stored(v *version) (*engines.Engine, error) {
	if v.policy.Revoked(v.Index) {
		a, err := r.remembered(v)
		if err != nil {
			return nil, err
		}
		return nil, v.policy.Decide(v.Subject, a.Evidence, r.options()).Err()
	}
	e, err := r.whole(v)
	if err != nil {
		return nil, err
	}
	if err := r.accepted(v); err != nil {
		return nil, err
	}
	return e, nil
}

// whole returns the engine that the node has, if it is the version, whole.
func (r *Resolver) whole(v *version) (*engines.Engine, error) {
	e, err := r.Home.Get(v.Version)
	if err != nil {
		return nil, err
	}
	if e.Index != v.Index.String() || e.Platform != v.platform {
		return nil, fmt.Errorf("%s, %s for %s: %w; %s has %s for %s", v.Version, v.Index, v.platform, engines.ErrNotInstalled, r.Home.Home(), e.Index, e.Platform)
	}
	if err := e.Verify(); err != nil {
		return nil, err
	}
	return e, nil
}

// Prefetch resolves several versions, so that they are there when they are needed. To have a version is not to run it: they may be in no
// channel, as those of an upgrade that is planned. Such must meet what the policy requires of the channel current, and are pinned, so that they are
// still there when the upgrade comes. All are tried; the error names those that cannot be had or are not trusted. The engines are in the order of
// the names, each version once.
func (r *Resolver) Prefetch(ctx context.Context, names []string, o Options) ([]*engines.Engine, error) {
	got := make([]*engines.Engine, len(names))
	failures := make([]error, len(names))
	var g errgroup.Group
	g.SetLimit(parallel)
	for i, name := range names {
		g.Go(func() error {
			got[i], failures[i] = r.prefetch(ctx, name, o)
			return nil
		})
	}
	g.Wait()
	seen := make(map[string]bool)
	got = slices.DeleteFunc(got, func(e *engines.Engine) bool {
		again := e == nil || seen[e.Version]
		if e != nil {
			seen[e.Version] = true
		}
		return again
	})
	if ctx.Err() != nil {
		return got, ctx.Err()
	}
	return got, errors.Join(failures...)
}

func (r *Resolver) prefetch(ctx context.Context, name string, o Options) (*engines.Engine, error) {
	o.Archival, o.planned = true, true
	e, err := r.Resolve(ctx, name, o)
	if err != nil {
		return nil, err
	}
	if c, err := r.channels(); err != nil || c.Channel(e.Version) != "" {
		return e, err
	}
	if err := r.Home.Pin(e.Version); err != nil {
		return nil, fmt.Errorf("pinning %s: %w", e.Version, err)
	}
	return e, nil
}

// readOnly reports whether an error says that the home is not ours to write to.
func readOnly(err error) bool {
	return errors.Is(err, fs.ErrPermission) || errors.Is(err, syscall.EROFS)
}
