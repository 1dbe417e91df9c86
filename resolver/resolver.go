// Package resolver gets a node the engines that it needs: from a version ID to verified files on disk.
//
// What a version must be comes from its manifest; whether it is trusted, a policy decides; where its bytes come from does not matter. Once a node
// has a version and has accepted it, no network is asked for it again.
package resolver

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/enginery/enginery/artifact"
	"github.com/enginery/enginery/engines"
	"github.com/enginery/enginery/internal/progress"
	"github.com/enginery/enginery/manifests"
	"github.com/enginery/enginery/releaseindex"
	"github.com/enginery/enginery/repository"
	"github.com/enginery/enginery/trust"
	"github.com/google/renameio/v2"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/sigstore/sigstore-go/pkg/root"
	"golang.org/x/sync/errgroup"
)

// Resolver is a node's way to its engines.
type Resolver struct {
	Home        *engines.Store
	Policy      *trust.Policy
	Sources     []string             // see repository.Open; the policy's if empty
	TrustedRoot root.TrustedMaterial // of sigstore, where the policy needs it; may be nil
	Platform    string               // e.g. "linux/amd64"; this machine's if empty
	Manifests   fs.FS                // records that win over those of the release index and of the program, as ID.json; may be nil
	Now         func() time.Time     // time.Now if nil
	Patience    time.Duration        // with a registry that does not answer; see repository.Patience
}

// Options say how to resolve a version.
type Options struct {
	Expect   digest.Digest // the index that it must be, e.g. that a chain has agreed on; empty: what is recorded
	Archival bool          // also a version that is in no channel
	Offline  bool          // ask no network
}

// UnavailableError says that a version could not be had from any source.
type UnavailableError struct {
	Version string
	Tried   []error // one for each source, in order
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
	Version      string
	Want, Have   digest.Digest
	Where, Hints string
}

func (e *UnexpectedError) Error() string {
	return fmt.Sprintf("%s: expected %s; %s has %s%s", e.Version, e.Want, e.Where, e.Have, e.Hints)
}

// Resolve returns the engine of a version, or of a channel's: installed, and accepted by the policy. What the node has not, it gets from its
// sources. The error is an *engines.NotInServiceError if the version is in no channel, a *trust.RefusedError if the policy refuses it, an
// *UnavailableError if no source has it, and an *UnexpectedError if it is another than expected. What must be fetched, while the policy has a
// release index, waits for one that has not expired: the errors of Refresh.
func (r *Resolver) Resolve(ctx context.Context, name string, o Options) (*engines.Engine, error) {
	k, err := r.known()
	if err != nil {
		return nil, err
	}
	e, s, m, err := r.installed(name, k, o)
	if e != nil || err != nil {
		return e, err
	}
	if o.Offline {
		return nil, fmt.Errorf("%s, offline: %w in %s, or not accepted yet", s.Version, engines.ErrNotInstalled, r.Home.Home())
	}
	if r.Policy.Index != nil && (k.index == nil || k.index.Expired(r.now()) != nil) {
		if _, err := r.Refresh(ctx); err != nil {
			return nil, err
		}
		if k, err = r.known(); err != nil {
			return nil, err
		}
		if e, s, m, err = r.installed(name, k, o); e != nil || err != nil {
			return e, err
		}
	}
	return r.fetch(ctx, k, s, m)
}

// knowledge is what a node goes by.
type knowledge struct {
	index    *releaseindex.Index // that was accepted last; nil if there is none, or the policy wants none
	policy   *trust.Policy       // with what the index revokes
	channels engines.Channels
}

func (r *Resolver) known() (knowledge, error) {
	k := knowledge{policy: r.Policy}
	var err error
	if k.index, err = r.Index(); err != nil {
		return k, err
	}
	if k.index != nil {
		k.policy = r.Policy.Revoke(k.index.Revoked()...)
	}
	k.channels, err = r.channels()
	return k, err
}

// Index returns the release index that the node has accepted last, or nil if the policy names no root of trust for one, or none was accepted yet.
func (r *Resolver) Index() (*releaseindex.Index, error) {
	if r.Policy.Index == nil {
		return nil, nil
	}
	i, err := r.indexes().Load()
	if errors.Is(err, releaseindex.ErrNone) {
		return nil, nil
	}
	return i, err
}

// Refresh asks the sources for the newest release index, and accepts it if it is good. It returns what is in force then: with an error that is
// what was accepted before, which may be nil. It does nothing if the policy names no root of trust for one. See releaseindex.Store.Refresh.
func (r *Resolver) Refresh(ctx context.Context) (*releaseindex.Index, error) {
	if r.Policy.Index == nil {
		return nil, nil
	}
	var from []repository.Repository
	for _, source := range r.sources() {
		repo, err := r.open(source)
		if err != nil {
			return nil, err
		}
		from = append(from, repo)
	}
	return r.indexes().Refresh(ctx, from, r.now())
}

func (r *Resolver) indexes() *releaseindex.Store {
	return releaseindex.Open(filepath.Join(r.Home.Home(), "state"), []byte(r.Policy.Index.Root))
}

// installed returns the engine of a version if the node has it and the policy accepts it; what must be otherwise.
func (r *Resolver) installed(name string, k knowledge, o Options) (*engines.Engine, trust.Subject, *manifests.Manifest, error) {
	version := k.channels.Version(name)
	s := trust.Subject{Version: version, Channel: k.channels.Channel(version)}
	if err := engines.CheckVersion(version); err != nil {
		return nil, s, nil, err
	}
	if !o.Archival {
		if err := k.channels.Check(version); err != nil {
			return nil, s, nil, err
		}
	}
	m, err := r.manifest(version, k.index)
	if err != nil {
		return nil, s, nil, err
	}
	s.Index = digest.Digest(m.Index)
	if o.Expect != "" && o.Expect != s.Index {
		return nil, s, nil, &UnexpectedError{version, o.Expect, s.Index, "the record", ""}
	}
	if k.policy.Revoked(s.Index) {
		a, err := r.remembered(version)
		if err != nil {
			return nil, s, nil, err
		}
		return nil, s, nil, k.policy.Decide(s, a.Evidence, r.options()).Err()
	}
	installed, err := r.Home.Get(version)
	if err == nil && installed.Index == m.Index {
		if ok, err := r.accepted(k.policy, s); err != nil {
			return nil, s, nil, err
		} else if ok {
			return installed, s, m, nil
		}
	}
	return nil, s, m, nil
}

// channels returns the node's channels, and gives it those that ship if it has none.
func (r *Resolver) channels() (engines.Channels, error) {
	c, err := r.Home.Channels()
	if !errors.Is(err, engines.ErrNoChannels) {
		return c, err
	}
	dir := filepath.Join(r.Home.Home(), "state")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return c, err
	}
	if err := renameio.WriteFile(filepath.Join(dir, "channels.toml"), manifests.Channels, 0o644); err != nil {
		return c, err
	}
	return r.Home.Channels()
}

// manifest returns the record of a version.
func (r *Resolver) manifest(version string, index *releaseindex.Index) (*manifests.Manifest, error) {
	newer := []fs.FS{r.Manifests}
	ids := manifests.IDs()
	if index != nil {
		newer = append(newer, index.Manifests())
		ids = slices.Compact(slices.Sorted(slices.Values(append(ids, index.IDs()...))))
	}
	for _, fsys := range newer {
		if fsys == nil {
			continue
		}
		m, err := manifests.ReadFS(fsys, version)
		if !errors.Is(err, manifests.ErrNotRecorded) {
			return m, err
		}
	}
	m, err := manifests.Load(version)
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

func (r *Resolver) platform() string {
	if r.Platform != "" {
		return r.Platform
	}
	return runtime.GOOS + "/" + runtime.GOARCH
}

// acceptance is what a node remembers of why it accepted a version.
type acceptance struct {
	Policy   digest.Digest    `json:"policy"`
	Index    digest.Digest    `json:"index"`
	Channel  string           `json:"channel"`
	Evidence []trust.Evidence `json:"evidence"`
}

const acceptanceName = "accepted.json"

func (r *Resolver) remembered(version string) (*acceptance, error) {
	data, err := os.ReadFile(filepath.Join(r.Home.Evidence(version), acceptanceName))
	if errors.Is(err, fs.ErrNotExist) {
		return new(acceptance), nil
	} else if err != nil {
		return nil, err
	}
	var a acceptance
	if json.Unmarshal(data, &a) != nil {
		return new(acceptance), nil // damaged: it is collected anew
	}
	return &a, nil
}

func (r *Resolver) remember(version string, a acceptance) error {
	data, err := json.Marshal(a)
	if err != nil {
		return err
	}
	dir := r.Home.Evidence(version)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	return renameio.WriteFile(filepath.Join(dir, acceptanceName), data, 0o644)
}

// accepted reports whether the policy accepts what the node has, by the evidence that it has. The same policy's word stands: time alone
// changes nothing of what is accepted. Another policy decides anew.
func (r *Resolver) accepted(policy *trust.Policy, s trust.Subject) (bool, error) {
	a, err := r.remembered(s.Version)
	if err != nil || a.Index != s.Index {
		return false, err
	}
	if a.Policy == policy.Digest() && a.Channel == s.Channel {
		return true, nil
	}
	if !policy.Decide(s, a.Evidence, r.options()).OK {
		return false, nil
	}
	a.Policy, a.Channel = policy.Digest(), s.Channel
	return true, r.remember(s.Version, *a)
}

func (r *Resolver) options() trust.Options {
	return trust.Options{Time: r.now(), TrustedRoot: r.TrustedRoot}
}

func (r *Resolver) sources() []string {
	if len(r.Sources) > 0 {
		return r.Sources
	}
	return r.Policy.Sources
}

func (r *Resolver) open(source string) (repository.Repository, error) {
	if r.Patience > 0 {
		return repository.Open(source, repository.Patience(r.Patience))
	}
	return repository.Open(source)
}

// fetch gets a version from the sources, each in turn, and installs it if the policy accepts it.
func (r *Resolver) fetch(ctx context.Context, k knowledge, s trust.Subject, m *manifests.Manifest) (*engines.Engine, error) {
	platform, ok := m.Platforms[r.platform()]
	if !ok {
		return nil, fmt.Errorf("%s is not built for %s; it is for %s", s.Version, r.platform(), strings.Join(slices.Sorted(maps.Keys(m.Platforms)), ", "))
	}
	var tried []error
	var evidence []trust.Evidence
	if a, err := r.remembered(s.Version); err != nil {
		return nil, err
	} else if a.Index == s.Index {
		evidence = a.Evidence
	}
	var refused *trust.Decision
	for _, source := range r.sources() {
		e, decision, err := r.fetchFrom(ctx, source, k, s, platform, &evidence)
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if decision != nil && !decision.OK {
			refused = decision
		}
		if err == nil {
			return e, nil
		}
		tried = append(tried, fmt.Errorf("%s: %w", source, err))
		progress.Logf(ctx, "%s: %s: %v", s.Version, source, firstLine(err))
	}
	if refused != nil && len(tried) == 1 {
		return nil, refused.Err()
	}
	return nil, &UnavailableError{s.Version, tried}
}

func firstLine(err error) string {
	line, _, _ := strings.Cut(err.Error(), "\n")
	return line
}

// fetchFrom gets a version from one source. What evidence it has is added to what is known already.
func (r *Resolver) fetchFrom(ctx context.Context, source string, k knowledge, s trust.Subject, platform *manifests.Platform, evidence *[]trust.Evidence) (*engines.Engine, *trust.Decision, error) {
	repo, err := r.open(source)
	if err != nil {
		return nil, nil, err
	}
	tagged, err := repo.Resolve(ctx, s.Version)
	if err != nil && !errors.Is(err, repository.ErrNotFound) {
		return nil, nil, err
	}
	if err == nil && tagged.Digest != s.Index {
		return nil, nil, &UnexpectedError{s.Version, s.Index, tagged.Digest, "the tag there", "; it was moved, or this program's record is an old one"}
	}
	more, err := trust.Collect(ctx, repo, s.Index)
	if err != nil {
		return nil, nil, err
	}
	for _, e := range more {
		if !slices.ContainsFunc(*evidence, func(known trust.Evidence) bool { return string(known.Bundle) == string(e.Bundle) }) {
			*evidence = append(*evidence, e)
		}
	}
	decision := k.policy.Decide(s, *evidence, r.options())
	if !decision.OK {
		return nil, decision, decision.Err()
	}
	e, files, err := r.describe(ctx, repo, s, platform)
	if err != nil {
		return nil, decision, err
	}
	installed, err := r.Home.Install(ctx, e, func(dir string) error { return r.download(ctx, repo, s.Version, files, dir) })
	if err != nil {
		return nil, decision, err
	}
	err = r.remember(s.Version, acceptance{k.policy.Digest(), s.Index, s.Channel, *evidence})
	return installed, decision, err
}

// names are the files that a node takes of an artifact, by their titles there.
var names = map[string]string{
	artifact.Worker:      engines.WorkerName,
	artifact.DebugWorker: engines.DebugWorkerName,
	artifact.Lockdown:    engines.LockdownName,
	artifact.Supervisor:  engines.SupervisorName,
}

// describe reads a platform's manifest and returns the engine that it makes, and its files by the names that they get.
func (r *Resolver) describe(ctx context.Context, repo repository.Repository, s trust.Subject, p *manifests.Platform) (engines.Engine, map[string]ocispec.Descriptor, error) {
	e := engines.Engine{Version: s.Version, Platform: r.platform(), Index: s.Index.String(), Manifest: p.Manifest}
	data, err := repo.Manifest(ctx, ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.Digest(p.Manifest)})
	if err != nil {
		return e, nil, err
	}
	var m ocispec.Manifest
	if err := json.Unmarshal(data, &m); err != nil {
		return e, nil, fmt.Errorf("manifest %s: %w", p.Manifest, err)
	}
	files := map[string]ocispec.Descriptor{engines.ConfigName: m.Config}
	for _, layer := range m.Layers {
		title := artifact.Title(layer)
		if name, ok := names[title]; ok {
			files[name] = layer
		}
		if want := p.Files[title]; want != layer.Digest.String() || p.Sizes[title] != layer.Size {
			return e, nil, fmt.Errorf("manifest %s has %s of %s; expected %s", p.Manifest, layer.Digest, title, want)
		}
	}
	if m.Config.Digest.String() != p.Config {
		return e, nil, fmt.Errorf("manifest %s has the config %s; expected %s", p.Manifest, m.Config.Digest, p.Config)
	}
	for name, f := range map[string]*engines.File{
		engines.WorkerName: &e.Worker, engines.DebugWorkerName: &e.DebugWorker, engines.LockdownName: &e.Lockdown,
		engines.SupervisorName: &e.Supervisor, engines.ConfigName: &e.Config,
	} {
		if d, ok := files[name]; ok {
			*f = engines.File{SHA256: d.Digest.Encoded(), Size: d.Size}
		}
	}
	return e, files, nil
}

// parallel bounds the downloads of one version.
const parallel = 4

// download fills a folder with an engine's files, each taken up where an earlier attempt ended.
func (r *Resolver) download(ctx context.Context, repo repository.Repository, version string, files map[string]ocispec.Descriptor, dir string) error {
	var total int64
	for _, d := range files {
		total += d.Size
	}
	task := progress.Start(ctx, "fetch "+version+" from "+repo.Name(), total)
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(parallel)
	for _, name := range slices.Sorted(maps.Keys(files)) {
		d := files[name]
		g.Go(func() error {
			partial := r.Home.Partial(d.Digest.String())
			f, err := os.OpenFile(partial, os.O_CREATE|os.O_RDWR, 0o644)
			if err != nil {
				return err
			}
			defer f.Close()
			if err := repository.Download(gctx, repo, d, f); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			task.Add(d.Size)
			return errors.Join(f.Sync(), os.Rename(partial, filepath.Join(dir, name)))
		})
	}
	err := g.Wait()
	task.Done(err)
	return err
}

// Prefetch resolves several versions, so that they are there when they are needed. It tries them all; the error names those that cannot be
// had or are not trusted.
func (r *Resolver) Prefetch(ctx context.Context, names []string, o Options) ([]*engines.Engine, error) {
	var got []*engines.Engine
	var failures []error
	for _, name := range names {
		e, err := r.Resolve(ctx, name, o)
		if ctx.Err() != nil {
			return got, ctx.Err()
		}
		if err == nil {
			err = e.Verify()
		}
		if err != nil {
			failures = append(failures, err)
			continue
		}
		got = append(got, e)
	}
	return got, errors.Join(failures...)
}
