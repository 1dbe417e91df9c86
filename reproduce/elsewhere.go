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
	"path/filepath"
	"strings"
	"syscall"

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
const elsewhereVar = "ENGINERY_BUILD_ELSEWHERE"

func init() {
	var err error
	switch os.Getenv(elsewhereVar) {
	case "":
		return
	case "lend":
		err = lend()
	default:
		os.Unsetenv(elsewhereVar)
		if err = unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0); err == nil {
			err = buildAndReport(os.Stdin, os.NewFile(3, "results"))
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// lend changes the host name, which only root may, and starts this program once more as a user who may nothing.
func lend() error {
	if err := unix.Sethostname([]byte(otherHost)); err != nil {
		return fmt.Errorf("setting the host name: %w", err)
	}
	if err := errors.Join(syscall.Setgroups(nil), syscall.Setgid(nobody), syscall.Setuid(nobody)); err != nil {
		return fmt.Errorf("becoming user %d: %w", nobody, err)
	}
	os.Setenv(elsewhereVar, "build")
	return fmt.Errorf("starting again as user %d: %w", nobody, syscall.Exec(os.Args[0], os.Args, os.Environ()))
}

const otherHost = "elsewhere"

// order is what the second process is told.
type order struct {
	Recipes       []*recipes.Recipe
	Store, Layout string
	ToolchainFrom string
	Umask         int
	Jobs          int
}

// result is what it answers.
type result struct {
	Environment Environment
	Versions    []built
}

// built is a version that the second process has built.
type built struct {
	Outputs  *build.Outputs
	Manifest *manifests.Manifest
}

func buildAndReport(in io.Reader, out io.WriteCloser) error {
	var o order
	if err := json.NewDecoder(in).Decode(&o); err != nil {
		return fmt.Errorf("reading what to build: %w", err)
	}
	syscall.Umask(o.Umask)
	store, err := cas.Open(o.Store)
	if err != nil {
		return err
	}
	defer store.Close()
	ctx, reporter := progress.With(context.Background(), os.Stderr)
	defer reporter.Close()
	w := &release.Workshop{Store: store, Layout: o.Layout, ToolchainFrom: o.ToolchainFrom, Jobs: o.Jobs}
	versions, err := w.Build(ctx, o.Recipes...)
	if err != nil {
		return err
	}
	r := result{Environment: observe(o.Store, o.Jobs)}
	for _, v := range versions {
		r.Versions = append(r.Versions, built{v.Outputs, v.Manifest})
	}
	if err := json.NewEncoder(out).Encode(r); err != nil {
		return fmt.Errorf("reporting what was built: %w", err)
	}
	return out.Close()
}

// Environment is what a build could have seen of its surroundings, had it not been hermetic.
type Environment struct {
	Path       string `json:"path"` // of the store
	FileSystem string `json:"fileSystem"`
	User       int    `json:"user"`
	Umask      string `json:"umask"`
	Host       string `json:"host"`
	Locale     string `json:"locale"`
	TimeZone   string `json:"timeZone"`
	Home       string `json:"home"`
	Jobs       int    `json:"jobs"`
	Kernel     string `json:"kernel"`
}

func observe(store string, jobs int) Environment {
	umask := syscall.Umask(0)
	syscall.Umask(umask)
	e := Environment{
		Path:       store,
		FileSystem: fileSystem(store),
		User:       os.Geteuid(),
		Umask:      fmt.Sprintf("%03o", umask),
		Locale:     firstOf(os.Getenv("LC_ALL"), os.Getenv("LANG"), "C"),
		TimeZone:   firstOf(os.Getenv("TZ"), "the system's"),
		Home:       os.Getenv("HOME"),
		Jobs:       jobs,
	}
	var uts unix.Utsname
	if unix.Uname(&uts) == nil {
		e.Host = unix.ByteSliceToString(uts.Nodename[:])
		e.Kernel = unix.ByteSliceToString(uts.Release[:])
	}
	return e
}

func firstOf(values ...string) string {
	for _, v := range values {
		if v != "" {
			return v
		}
	}
	return ""
}

func fileSystem(dir string) string {
	var fs unix.Statfs_t
	if unix.Statfs(dir, &fs) != nil {
		return "unknown"
	}
	names := map[int64]string{unix.EXT4_SUPER_MAGIC: "ext4", unix.TMPFS_MAGIC: "tmpfs", unix.BTRFS_SUPER_MAGIC: "btrfs", unix.XFS_SUPER_MAGIC: "xfs", unix.OVERLAYFS_SUPER_MAGIC: "overlayfs"}
	if name, ok := names[int64(fs.Type)]; ok {
		return name
	}
	return fmt.Sprintf("type %#x", fs.Type)
}

// nobody is the user that root lends the second build to.
const nobody = 65534

// elsewhere builds recipes from nothing but their sources in an environment that differs from this one in all it can: path and
// file system (and with it the order of directory entries), user (root's second build is rootless), umask, host name, locale, time zone,
// home directory and number of jobs.
func elsewhere(ctx context.Context, w *release.Workshop, rs []*recipes.Recipe) (_ *result, store *cas.Store, remove func(), err error) {
	place, err := cas.Open(otherPlace())
	if err != nil {
		return nil, nil, nil, err
	}
	dir, remove, err := place.Scratch("built elsewhere, in a längere path")
	if err != nil {
		return nil, nil, nil, err
	}
	defer func() {
		if err != nil {
			remove()
		}
	}()
	store, err = cas.Open(filepath.Join(dir, "store"))
	if err != nil {
		return nil, nil, nil, err
	}
	if err := seed(ctx, w.Store, store, rs); err != nil {
		return nil, nil, nil, fmt.Errorf("copying the sources for the second build: %w", err)
	}
	store.Close()

	self := filepath.Join(dir, "enginery")
	if err := copyExecutable("/proc/self/exe", self); err != nil {
		return nil, nil, nil, fmt.Errorf("preparing the second build: %w", err)
	}
	home := filepath.Join(dir, "home")
	if err := os.Mkdir(home, 0o700); err != nil {
		return nil, nil, nil, fmt.Errorf("preparing the second build: %w", err)
	}
	o := order{Recipes: rs, Store: store.Dir(), Layout: filepath.Join(dir, "layout"), ToolchainFrom: w.ToolchainFrom, Umask: 0o077, Jobs: 1}
	cmd := exec.CommandContext(ctx, self)
	cmd.Dir = dir
	cmd.Env = []string{
		"HOME=" + home,
		"LANG=tr_TR.UTF-8", "LC_ALL=tr_TR.UTF-8",
		"PATH=" + os.Getenv("PATH"),
		"TZ=Pacific/Kiritimati",
		"MAKEFLAGS=-k", "CFLAGS=-O0", "CPATH=/nonexistent", "SOURCE_DATE_EPOCH=123456789",
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	role := "build"
	if os.Geteuid() == 0 {
		role = "lend"
		cmd.SysProcAttr.Cloneflags = syscall.CLONE_NEWUTS
		if err := giveTo(dir, nobody); err != nil {
			return nil, nil, nil, fmt.Errorf("preparing the second build: %w", err)
		}
	}
	cmd.Env = append(cmd.Env, elsewhereVar+"="+role)
	in, err := json.Marshal(o)
	if err != nil {
		return nil, nil, nil, fmt.Errorf("preparing the second build: %w", err)
	}
	cmd.Stdin = bytes.NewReader(in)
	pr, pw, err := os.Pipe()
	if err != nil {
		return nil, nil, nil, fmt.Errorf("preparing the second build: %w", err)
	}
	defer pr.Close()
	cmd.ExtraFiles = []*os.File{pw}
	log := &lastLines{ctx: ctx, keep: 20}
	cmd.Stdout, cmd.Stderr = log, log
	err = cmd.Start()
	pw.Close()
	if err != nil {
		return nil, nil, nil, fmt.Errorf("starting the second build: %w", err)
	}
	answer, rerr := io.ReadAll(pr)
	if err := cmd.Wait(); err != nil {
		if ctx.Err() != nil {
			return nil, nil, nil, ctx.Err()
		}
		return nil, nil, nil, fmt.Errorf("the second build failed: %w\n%s", err, strings.Join(log.lines, "\n"))
	}
	r := new(result)
	if err := errors.Join(rerr, json.Unmarshal(answer, r)); err != nil {
		return nil, nil, nil, fmt.Errorf("reading the second build's result: %w", err)
	}
	return r, store, remove, nil
}

// otherPlace returns a directory on another file system than the usual one, if there is one that will do.
func otherPlace() string {
	const memory = "/dev/shm"
	name := fmt.Sprintf("enginery-%d", os.Geteuid())
	var fs unix.Statfs_t
	if unix.Statfs(memory, &fs) == nil && fs.Flags&unix.ST_NOEXEC == 0 && fs.Bavail*uint64(fs.Bsize) > 4<<30 && unix.Access(memory, unix.W_OK) == nil {
		return filepath.Join(memory, name)
	}
	return filepath.Join(os.TempDir(), name)
}

// giveTo makes everything below dir, and dir, a user's own. The way to dir must be open to that user.
func giveTo(dir string, user int) error {
	if err := os.Chmod(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	return filepath.WalkDir(dir, func(name string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(name, user, user)
	})
}

func copyExecutable(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Chmod(0o755), out.Close())
}

// lastLines passes lines on as progress and remembers the last ones.
type lastLines struct {
	ctx  context.Context
	keep int

	lines []string
	rest  []byte
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
		l.lines = l.lines[max(0, len(l.lines)-l.keep):]
		l.rest = rest
	}
}
