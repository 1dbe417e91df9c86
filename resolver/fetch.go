package resolver

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/enginery/enginery/artifact"
	"github.com/enginery/enginery/engines"
	"github.com/enginery/enginery/internal/progress"
	"github.com/enginery/enginery/repository"
	"github.com/enginery/enginery/trust"
	"github.com/google/renameio/v2"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
)

// source is a place to take a version from.
type source struct {
	name  string
	repo  repository.Repository
	asked bool
	index ocispec.Descriptor // the version's
	err   error              // why it cannot be had there
	mute  error              // why those who vouch for it there could not all be heard
}

// failure is why a source is of no use, or of less.
func (s *source) failure() error { return cmp.Or(s.mute, s.err) }

func (r *Resolver) patience() time.Duration {
	if r.Patience > 0 {
		return r.Patience
	}
	return 30 * time.Second
}

func (r *Resolver) sources() []*source {
	names := r.Sources
	if len(names) == 0 {
		names = r.Policy.Sources
	}
	var sources []*source
	for _, name := range names {
		s := &source{name: name}
		s.repo, s.err = repository.Open(name, repository.Patience(r.patience()))
		sources = append(sources, s)
	}
	return sources
}

// fetch gets a version from the sources, and installs it if the policy accepts it. Of several processes that want it at once one does, and the
// others wait for what comes of that.
func (r *Resolver) fetch(ctx context.Context, v *version) (*engines.Engine, error) {
	asked := time.Now()
	waiting := time.AfterFunc(time.Second, func() { progress.Logf(ctx, "%s: waiting for another process that fetches it", v.Version) })
	unlock, err := r.Home.Lock(ctx, "fetch-"+v.Version)
	waiting.Stop()
	if err != nil {
		return nil, fmt.Errorf("%s: waiting for another process that fetches it: %w", v.Version, err)
	}
	defer unlock()
	if e, err := r.stored(v); err == nil {
		return e, nil
	}
	if err := r.failed(v, asked); err != nil {
		return nil, err
	}
	done, err := r.Home.Use(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	began := time.Now()
	e, err := r.attempt(ctx, v)
	if err == nil {
		os.Remove(r.failureName(v))
	} else if ctx.Err() == nil {
		r.fail(v, began, err)
	}
	return e, err
}

// attempt asks the sources in their order: first whether they have the version and who vouches for it, until the policy is content; then for
// its bytes, until one has given all. The word of anyone counts wherever it is found.
func (r *Resolver) attempt(ctx context.Context, v *version) (*engines.Engine, error) {
	known, err := r.remembered(v)
	if err != nil {
		return nil, err
	}
	evidence := known.Evidence
	decision := v.policy.Decide(v.Subject, evidence, r.options())
	installed, err := r.whole(v)
	there := err == nil
	sources := r.sources()
	for i, s := range sources {
		if decision.OK && there {
			break
		}
		if s.err != nil {
			continue
		}
		more := r.ask(ctx, s, v)
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		there = there || s.err == nil
		for _, e := range more {
			if !slices.ContainsFunc(evidence, func(known trust.Evidence) bool {
				return known.Digest == e.Digest && string(known.Bundle) == string(e.Bundle)
			}) {
				evidence = append(evidence, e)
			}
		}
		decision = v.policy.Decide(v.Subject, evidence, r.options())
		if i+1 < len(sources) || decision.OK && there {
			logFailure(ctx, v, s)
		}
	}
	switch tried := failures(sources); {
	case !there:
		return nil, &UnavailableError{v.Version, tried}
	case !decision.OK && slices.ContainsFunc(tried, func(err error) bool { return !errors.Is(err, repository.ErrNotFound) }):
		return nil, &UnavailableError{v.Version, append(tried, decision.Err())}
	case !decision.OK:
		return nil, decision.Err()
	}
	if installed == nil {
		if installed, err = r.install(ctx, sources, v); err != nil {
			return nil, err
		}
	}
	return installed, r.remember(v, decision.Evidence())
}

// install installs a version from the first source that gives all of it. What one gave is not asked of the next.
func (r *Resolver) install(ctx context.Context, sources []*source, v *version) (*engines.Engine, error) {
	for i, s := range sources {
		if s.err != nil {
			continue
		}
		if !s.asked {
			r.ask(ctx, s, v)
		}
		if s.err == nil {
			e, err := r.installFrom(ctx, s, v)
			switch {
			case err == nil:
				return e, nil
			case ctx.Err() != nil:
				return nil, ctx.Err()
			case !ofSource(err):
				return nil, err
			}
			s.err = err
		}
		if i+1 < len(sources) {
			logFailure(ctx, v, s)
		}
	}
	return nil, &UnavailableError{v.Version, failures(sources)}
}

func (r *Resolver) installFrom(ctx context.Context, s *source, v *version) (*engines.Engine, error) {
	e, files, err := describe(ctx, s, v)
	if err != nil {
		return nil, err
	}
	return r.Home.Install(ctx, e, func(dir string) error { return r.download(ctx, s.repo, v.Version, files, dir) })
}

// ofSource reports whether an error is a source's fault, so that another may do better.
func ofSource(err error) bool {
	var unavailable *repository.UnavailableError
	var corrupt *repository.CorruptError
	return errors.Is(err, repository.ErrNotFound) || errors.As(err, &unavailable) || errors.As(err, &corrupt)
}

func failures(sources []*source) []error {
	var tried []error
	for _, s := range sources {
		if err := s.failure(); err != nil {
			tried = append(tried, fmt.Errorf("%s: %w", s.name, err))
		}
	}
	return tried
}

// logFailure says, if a source has failed, why it goes on without it. The failure of the last one is in the error instead.
func logFailure(ctx context.Context, v *version, s *source) {
	if err := s.failure(); err != nil {
		line, _, _ := strings.Cut(err.Error(), "\n")
		progress.Logf(ctx, "%s: %s: %s", v.Version, s.name, line)
	}
}

// ask looks for a version in a source, and returns what others say of it there. In the time of several answers there must be all.
func (r *Resolver) ask(ctx context.Context, s *source, v *version) []trust.Evidence {
	s.asked = true
	task := progress.Start(ctx, fmt.Sprintf("look for %s in %s", v.Version, s.name), 0)
	limit := 3 * r.patience()
	limited, cancel := context.WithTimeoutCause(ctx, limit, &repository.UnavailableError{
		Repository: s.name, Err: fmt.Errorf("it has not told all of %s in %v", v.Version, limit),
	})
	defer cancel()
	var evidence []trust.Evidence
	var both sync.WaitGroup
	both.Go(func() { s.index, s.err = find(limited, s.repo, v) })
	both.Go(func() { evidence, s.mute = trust.Collect(limited, s.repo, v.Index) })
	both.Wait()
	var misleads *UnexpectedError
	if errors.As(s.err, &misleads) {
		evidence, s.mute = nil, nil
	}
	task.Done(s.failure())
	return evidence
}

// find returns a version's index in a repository, whatever its tag there: but a tag of the version's name must be on that.
func find(ctx context.Context, repo repository.Repository, v *version) (ocispec.Descriptor, error) {
	d, err := repo.Resolve(ctx, v.Version)
	if errors.Is(err, repository.ErrNotFound) {
		return repo.Resolve(ctx, v.Index.String())
	}
	if err == nil && d.Digest != v.Index {
		return d, &UnexpectedError{v.Version, v.Index, d.Digest, "the tag there", "it was moved, or this program's record is an old one"}
	}
	return d, err
}

// names are the files that a node takes of an artifact, by their titles there.
var names = map[string]string{
	artifact.Worker:      engines.WorkerName,
	artifact.DebugWorker: engines.DebugWorkerName,
	artifact.Lockdown:    engines.LockdownName,
	artifact.Supervisor:  engines.SupervisorName,
}

// describe follows a version's index, of which the signatures are, down to the files of the platform. It returns the engine that these make, and
// them by the names that they get.
func describe(ctx context.Context, s *source, v *version) (engines.Engine, map[string]ocispec.Descriptor, error) {
	e := engines.Engine{Version: v.Version, Platform: v.platform, Index: v.Index.String(), Manifest: v.record.Manifest}
	var index ocispec.Index
	if err := read(ctx, s.repo, s.index, &index); err != nil {
		return e, nil, err
	}
	// Signatures are of a digest. That it is this version's, and no other that is good as well, the signed bytes say themselves.
	if name := index.Annotations[ocispec.AnnotationTitle]; name != v.Version {
		return e, nil, fmt.Errorf("the record of %s names the index %s, which is that of %q; whoever made the record, or signed the release index, mixed them up", v.Version, v.Index, name)
	}
	i := slices.IndexFunc(index.Manifests, func(d ocispec.Descriptor) bool {
		return d.Platform != nil && d.Platform.OS+"/"+d.Platform.Architecture == v.platform
	})
	if i < 0 || index.Manifests[i].Digest.String() != v.record.Manifest {
		return e, nil, fmt.Errorf("the record of %s has the manifest %s for %s, which its index %s has not", v.Version, v.record.Manifest, v.platform, v.Index)
	}
	var m ocispec.Manifest
	if err := read(ctx, s.repo, index.Manifests[i], &m); err != nil {
		return e, nil, err
	}
	if m.Config.Digest.String() != v.record.Config {
		return e, nil, fmt.Errorf("the record of %s has the config %s; its manifest %s has %s", v.Version, v.record.Config, v.record.Manifest, m.Config.Digest)
	}
	files := map[string]ocispec.Descriptor{engines.ConfigName: m.Config}
	seen := make(map[string]bool)
	for _, layer := range m.Layers {
		title := artifact.Title(layer)
		if want := v.record.Files[title]; seen[title] || want != layer.Digest.String() || v.record.Sizes[title] != layer.Size {
			return e, nil, fmt.Errorf("the record of %s has %q as %s, %d bytes; its manifest %s has %s, %d bytes",
				v.Version, title, want, v.record.Sizes[title], v.record.Manifest, layer.Digest, layer.Size)
		}
		seen[title] = true
		if name, ok := names[title]; ok {
			files[name] = layer
		}
	}
	for _, title := range append(slices.Sorted(maps.Keys(v.record.Files)), artifact.Worker) {
		if !seen[title] {
			return e, nil, fmt.Errorf("%s has no %s: its manifest %s does not list it", v.Version, title, v.record.Manifest)
		}
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

func read(ctx context.Context, repo repository.Repository, d ocispec.Descriptor, v any) error {
	data, err := repo.Manifest(ctx, d)
	if err != nil {
		return fmt.Errorf("reading %s: %w", d.Digest, err)
	}
	if err := json.Unmarshal(data, v); err != nil {
		return fmt.Errorf("reading %s: %w", d.Digest, err)
	}
	return nil
}

// parallel bounds the downloads of one version, and the versions that are resolved at a time.
const parallel = 4

// download fills a folder with an engine's files, each taken up where an earlier attempt ended. Until all are there they stay where the next
// attempt looks for them.
func (r *Resolver) download(ctx context.Context, repo repository.Repository, id string, files map[string]ocispec.Descriptor, dir string) (err error) {
	var total int64
	for _, d := range files {
		total += d.Size
	}
	watched := &watched{Repository: repo, task: progress.Start(ctx, "fetch "+id+" from "+repo.Name(), total)}
	defer func() { watched.task.Done(err) }()
	blobs := make(map[digest.Digest][]string) // names by digest
	for _, name := range slices.Sorted(maps.Keys(files)) {
		blobs[files[name].Digest] = append(blobs[files[name].Digest], name)
	}
	partials := make(map[digest.Digest]*os.File)
	defer func() {
		for _, f := range partials {
			f.Close()
		}
	}()
	// In one order for all, so that no two versions with files in common wait for each other.
	for _, d := range slices.Sorted(maps.Keys(blobs)) {
		if partials[d], err = r.Home.Partial(ctx, d.String()); err != nil {
			return err
		}
	}
	var g errgroup.Group // one that fails does not keep the others from coming
	g.SetLimit(parallel)
	for d, f := range partials {
		name := blobs[d][0]
		g.Go(func() error {
			err := repository.Download(ctx, watched, files[name], f)
			var corrupt *repository.CorruptError
			if errors.As(err, &corrupt) { // perhaps on the way
				err = repository.Download(ctx, watched, files[name], f)
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	for d, f := range partials {
		first := filepath.Join(dir, blobs[d][0])
		if err := os.Rename(f.Name(), first); err != nil {
			return err
		}
		for _, name := range blobs[d][1:] {
			if err := os.Link(first, filepath.Join(dir, name)); err != nil {
				return err
			}
		}
	}
	return nil
}

// watched is a repository the progress of whose blobs is shown.
type watched struct {
	repository.Repository
	task *progress.Task

	mu   sync.Mutex
	told map[digest.Digest]int64 // bytes
}

func (w *watched) Blob(ctx context.Context, d ocispec.Descriptor, offset int64) (io.ReadCloser, error) {
	body, err := w.Repository.Blob(ctx, d, offset)
	if err != nil {
		return nil, err
	}
	w.tell(d, offset)
	return &watchedBlob{ReadCloser: body, w: w, d: d, offset: offset}, nil
}

// tell says how much of a blob is there. What is read a second time counts once.
func (w *watched) tell(d ocispec.Descriptor, have int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.told == nil {
		w.told = make(map[digest.Digest]int64)
	}
	if more := have - w.told[d.Digest]; more > 0 {
		w.told[d.Digest] = have
		w.task.Add(more)
	}
}

type watchedBlob struct {
	io.ReadCloser
	w      *watched
	d      ocispec.Descriptor
	offset int64
}

func (b *watchedBlob) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.offset += int64(n)
	b.w.tell(b.d, b.offset)
	return n, err
}

// failure is what came of the last attempt to fetch a version, for those who waited for it.
type failure struct {
	Wanted  string          `json:"wanted"` // of whom, by which policy, and with how much patience
	Began   time.Time       `json:"began"`
	Tried   []string        `json:"tried"`
	Refused *trust.Decision `json:"refused,omitempty"`
}

func (r *Resolver) failureName(v *version) string {
	return filepath.Join(r.Home.Home(), "tmp", "failed-"+v.Version)
}

func (r *Resolver) wanted(v *version) string {
	return fmt.Sprintf("%s for %s of %q by %s in %v", v.Index, v.platform, r.Sources, v.policy.Digest(), r.patience())
}

// fail leaves word that a version could not be had, so that those who wait for it do not each wait as long again.
func (r *Resolver) fail(v *version, began time.Time, err error) {
	var unavailable *UnavailableError
	if !errors.As(err, &unavailable) {
		return
	}
	f := failure{Wanted: r.wanted(v), Began: began}
	for _, err := range unavailable.Tried {
		var refused *trust.RefusedError
		if errors.As(err, &refused) {
			f.Refused = refused.Decision
			continue
		}
		f.Tried = append(f.Tried, err.Error())
	}
	data, err := json.Marshal(f)
	if err == nil {
		os.MkdirAll(filepath.Dir(r.failureName(v)), 0o755)
		renameio.WriteFile(r.failureName(v), data, 0o644) // it is a courtesy
	}
}

// failed returns the error of an attempt that another process began, for the same, after this one had asked.
func (r *Resolver) failed(v *version, asked time.Time) error {
	data, err := os.ReadFile(r.failureName(v))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	var f failure
	if json.Unmarshal(data, &f) != nil || f.Wanted != r.wanted(v) || f.Began.Before(asked) {
		return nil
	}
	e := &UnavailableError{Version: v.Version}
	for _, text := range f.Tried {
		e.Tried = append(e.Tried, errors.New(text))
	}
	if f.Refused != nil {
		e.Tried = append(e.Tried, f.Refused.Err())
	}
	return e
}
