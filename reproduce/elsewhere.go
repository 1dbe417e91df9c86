package reproduce

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/enginery/enginery/build"
	"github.com/enginery/enginery/internal/cas"
	"github.com/enginery/enginery/internal/progress"
	"github.com/enginery/enginery/manifests"
	"github.com/enginery/enginery/recipes"
	"github.com/enginery/enginery/release"
	"golang.org/x/sys/unix"
)

// The second build runs in a process of its own, so that its user, umask, host name and environment can be others. It is this program,
// started again: init finds the variable below and builds instead of going on to main.
const (
	roleVar   = "ENGINERY_BUILD_ELSEWHERE"
	roleLend  = "lend"  // become another user on a host with another name, then
	roleBuild = "build" // build
)

const (
	otherHost = "elsewhere"
	nobody    = 65534 // the user that root lends the second build to
	otherUser = 4242  // who an ordinary user seems to be in a user namespace
)

func init() {
	var err error
	switch os.Getenv(roleVar) {
	case "":
		return
	case roleLend:
		err = lend()
	case roleBuild:
		err = serve(os.Stdin, os.NewFile(3, "result"))
	default:
		err = fmt.Errorf("%s is not for users: unset it", roleVar)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// lend renames the host, gives up what that takes, and starts this program once more.
func lend() error {
	if err := unix.Sethostname([]byte(otherHost)); err != nil {
		return fmt.Errorf("setting the host name: %w", err)
	}
	if os.Geteuid() == 0 {
		if err := errors.Join(syscall.Setgroups(nil), syscall.Setgid(nobody), syscall.Setuid(nobody)); err != nil {
			return fmt.Errorf("becoming user %d: %w", nobody, err)
		}
	} else if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return fmt.Errorf("giving up capabilities: %w", err)
	}
	os.Setenv(roleVar, roleBuild)
	return fmt.Errorf("starting again: %w", syscall.Exec("/proc/self/exe", os.Args, os.Environ()))
}

// order is what the second process is told.
type order struct {
	Recipes       []*recipes.Recipe
	Digests       []cas.Digest // of the recipes: what arrives must be what was sent
	Store, Layout string
	ToolchainFrom string
	Umask, Jobs   int
	Parent        int // process that waits for the result
}

// result is what it answers.
type result struct {
	Error       string // why there is no more
	Environment Environment
	Versions    []built
	Failed      map[string]string // version ID -> why it could not be built, unlike the others
}

// built is a version that the second process has built.
type built struct {
	Outputs  *build.Outputs
	Manifest *manifests.Manifest
}

// serve reads an order, builds, and writes the result.
func serve(in io.Reader, out io.WriteCloser) error {
	os.Unsetenv(roleVar)
	unix.CloseOnExec(3)
	var r *result
	o, err := readOrder(in)
	if err == nil {
		// A change of user has undone the parent's setting. The parent may have died before this.
		err = unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0)
		if os.Getppid() != o.Parent {
			return errors.New("nobody waits for this build any more")
		}
	}
	if err == nil {
		r, err = buildOrder(o)
	}
	if err != nil {
		r = &result{Error: err.Error()}
	}
	if err := errors.Join(json.NewEncoder(out).Encode(r), out.Close()); err != nil {
		return fmt.Errorf("reporting what was built: %w", err)
	}
	return nil
}

func readOrder(in io.Reader) (*order, error) {
	o := new(order)
	if err := json.NewDecoder(in).Decode(o); err != nil {
		return nil, fmt.Errorf("reading what to build: %w", err)
	}
	if len(o.Recipes) != len(o.Digests) {
		return nil, fmt.Errorf("reading what to build: %d recipes and %d digests", len(o.Recipes), len(o.Digests))
	}
	for i, r := range o.Recipes {
		if found := r.Digest(); found != o.Digests[i] {
			return nil, fmt.Errorf("reading what to build: recipe %s has the digest %s, expected %s", r.ID, found, o.Digests[i])
		}
	}
	return o, nil
}

func buildOrder(o *order) (*result, error) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	syscall.Umask(o.Umask)
	store, err := cas.Open(o.Store)
	if err != nil {
		return nil, err
	}
	defer store.Close()
	ctx, reporter := progress.With(ctx, os.Stderr)
	defer reporter.Close()
	w := &release.Workshop{Store: store, Layout: o.Layout, ToolchainFrom: o.ToolchainFrom, Jobs: o.Jobs}
	versions, err := w.Build(ctx, o.Recipes...)
	r := &result{Environment: observe(o.Store, o.Jobs), Failed: make(map[string]string)}
	var failed *build.FailedError
	if errors.As(err, &failed) {
		for id, err := range failed.Versions {
			r.Failed[id] = err.Error()
		}
	} else if err != nil {
		return nil, err
	}
	for _, v := range versions {
		r.Versions = append(r.Versions, built{v.Outputs, v.Manifest})
	}
	return r, nil
}

// elsewhere builds recipes from nothing but their sources in an environment that differs from this one, here, in all it can: path and
// file system (and with it the order of directory entries), user (root's second build is rootless), umask, host name, network, locale,
// time zone, home directory, number of jobs, and variables that compilers heed. The artifacts are in the OCI layout until remove is
// called.
func elsewhere(ctx context.Context, w *release.Workshop, here Environment, rs []*recipes.Recipe) (r *result, layout string, remove func(), err error) {
	lending := lendable()
	place, err := otherPlace(w.Store.Dir(), lending)
	if err != nil {
		return nil, "", nil, err
	}
	claimed, remove, err := claim(place)
	if err != nil {
		return nil, "", nil, fmt.Errorf("making a place for the second build: %w", err)
	}
	dir := filepath.Join(claimed, "a büild elsewhere, где-то")
	o := newOrder(dir, here, rs)
	err = prepare(ctx, w, dir, o)
	if err == nil && lending {
		err = giveTo(dir, nobody)
	}
	if err == nil && lending {
		err = os.Chmod(claimed, 0o711)
	}
	if err == nil {
		r, err = start(ctx, dir, o, lending)
	}
	if err != nil {
		remove()
		if ctx.Err() != nil {
			return nil, "", nil, ctx.Err()
		}
		return nil, "", nil, fmt.Errorf("second build: %w", err)
	}
	return r, o.Layout, remove, nil
}

// lendable reports whether this process may start others as nobody: it is root, and not one in a user namespace that has no other
// users.
func lendable() bool {
	if os.Geteuid() != 0 {
		return false
	}
	b, err := os.ReadFile("/proc/self/uid_map")
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(b)) {
		var inside, outside, n int64
		if _, err := fmt.Sscan(line, &inside, &outside, &n); err == nil && inside <= nobody && nobody < inside+n {
			return true
		}
	}
	return false
}

// newOrder returns what to tell the second process, which is to be in dir and otherwise than here.
func newOrder(dir string, here Environment, rs []*recipes.Recipe) *order {
	o := &order{
		Recipes: rs,
		Store:   filepath.Join(dir, "store"),
		Layout:  filepath.Join(dir, "layout"),
		Umask:   0o077,
		Jobs:    1,
		Parent:  os.Getpid(),
	}
	if here.Umask == "077" {
		o.Umask = 0o022
	}
	if here.Jobs == 1 {
		o.Jobs = 3
	}
	for _, r := range rs {
		o.Digests = append(o.Digests, r.Digest())
	}
	return o
}

// prepare lays out what the second build starts from, in dir: sources, bundles and toolchains, a copy of this program, and an empty home.
func prepare(ctx context.Context, w *release.Workshop, dir string, o *order) error {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	store, err := cas.Open(o.Store)
	if err != nil {
		return err
	}
	defer store.Close()
	if o.ToolchainFrom, err = seed(ctx, w, store, filepath.Join(dir, "toolchains"), o.Recipes); err != nil {
		return fmt.Errorf("copying what it starts from: %w", err)
	}
	if err := os.Mkdir(filepath.Join(dir, "home"), 0o700); err != nil {
		return err
	}
	return copyExecutable("/proc/self/exe", filepath.Join(dir, "enginery"))
}

// start runs the second process in dir, and waits for its result.
func start(ctx context.Context, dir string, o *order, lending bool) (*result, error) {
	cmd := exec.CommandContext(ctx, filepath.Join(dir, "enginery"))
	cmd.Dir = dir
	cmd.Env = []string{
		roleVar + "=" + roleLend,
		"HOME=" + filepath.Join(dir, "home"),
		"LANG=tr_TR.UTF-8",
		"LC_ALL=tr_TR.UTF-8",
		"PATH=" + os.Getenv("PATH"), // for dpkg-deb
		"TMPDIR=" + filepath.Join(dir, "home"),
		"TZ=Pacific/Kiritimati",
	}
	for name, value := range heeded {
		cmd.Env = append(cmd.Env, name+"="+value)
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Pdeathsig:  syscall.SIGKILL,
		Cloneflags: syscall.CLONE_NEWUTS | syscall.CLONE_NEWNET,
	}
	if !lending {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: otherUser, HostID: os.Geteuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: otherUser, HostID: os.Getegid(), Size: 1}}
		cmd.SysProcAttr.AmbientCaps = []uintptr{unix.CAP_SYS_ADMIN} // to rename the host
	}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 3 * time.Second
	in, err := json.Marshal(o)
	if err != nil {
		return nil, err
	}
	cmd.Stdin = bytes.NewReader(in)
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	cmd.ExtraFiles = []*os.File{w}
	log := &lastLines{ctx: ctx}
	cmd.Stdout, cmd.Stderr = log, log

	// The kernel kills the process when the thread that started it ends.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	err = cmd.Start()
	w.Close()
	if err != nil {
		return nil, fmt.Errorf("starting it in namespaces of its own: %w", err)
	}
	answer, rerr := io.ReadAll(r)
	if err := cmd.Wait(); err != nil {
		return nil, fmt.Errorf("%w\n%s", err, log)
	}
	res := new(result)
	if err := errors.Join(rerr, json.Unmarshal(answer, res)); err != nil {
		return nil, fmt.Errorf("reading its result: %w", err)
	}
	if res.Error != "" {
		return nil, errors.New(res.Error)
	}
	return res, nil
}

func copyExecutable(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o700)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Chmod(0o755), out.Close())
}

// lastLines passes lines on as progress and remembers the last ones.
type lastLines struct {
	ctx   context.Context
	lines []string
	rest  []byte // of a line whose end has not come yet
}

func (l *lastLines) Write(p []byte) (int, error) {
	l.rest = append(l.rest, p...)
	for {
		line, rest, ok := bytes.Cut(l.rest, []byte("\n"))
		if !ok {
			return len(p), nil
		}
		progress.Logf(l.ctx, "second build: %s", line)
		l.lines = append(l.lines, string(line))
		l.lines = l.lines[max(0, len(l.lines)-20):]
		l.rest = rest
	}
}

func (l *lastLines) String() string {
	return strings.Join(append(l.lines, string(l.rest)), "\n")
}
