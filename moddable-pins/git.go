package pins

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/enginery/enginery/internal/client"
)

// git is a private, bare repository that receives objects from another one.
type git struct {
	dir string
	env []string
}

// silence is how long git may show no progress before the other side counts as unreachable.
const silence = 60 * time.Second

// uploadPack runs the serving side for a local mirror: any commit, and no more of it than is asked for.
const uploadPack = "git -c safe.directory=* -c uploadpack.allowAnySHA1InWant=true -c uploadpack.allowFilter=true upload-pack"

// newGit makes an empty repository in dir, an existing empty folder, that fetches from url: a URL or a local path.
func newGit(ctx context.Context, dir, url string) (*git, error) {
	// A partial clone: files come by name, later, so that of a large repository only what a tree needs is
	// transferred. A server that cannot do this sends everything, which works as well.
	config := [][2]string{
		{"remote.origin.url", url},
		{"remote.origin.promisor", "true"},
		{"remote.origin.partialclonefilter", "blob:none"},
		{"fetch.fsckObjects", "true"},
		{"http.lowSpeedLimit", "1000"},
		{"http.lowSpeedTime", "30"},
		{"gc.auto", "0"},
		{"maintenance.auto", "false"},
	}
	if filepath.IsAbs(url) {
		config = append(config, [2]string{"remote.origin.uploadpack", uploadPack})
	}
	g := &git{dir: dir, env: gitEnvironment(config)}
	if _, err := g.run(ctx, nil, "init", "--quiet", "--bare", "--template=", "."); err != nil {
		return nil, err
	}
	if os.Getenv("GIT_SSH_COMMAND") == "" && os.Getenv("GIT_SSH") == "" {
		if _, err := g.run(ctx, nil, "config", "--get", "core.sshCommand"); err != nil {
			g.env = append(g.env, "GIT_SSH_COMMAND=ssh -o BatchMode=yes -o ConnectTimeout=20")
		}
	}
	return g, nil
}

// gitEnvironment is the user's environment without what ties git to a repository at hand and without questions, with
// configuration added to the user's own.
func gitEnvironment(config [][2]string) []string {
	local := []string{"GIT_ALTERNATE_OBJECT_DIRECTORIES", "GIT_OBJECT_DIRECTORY", "GIT_DIR", "GIT_WORK_TREE", "GIT_IMPLICIT_WORK_TREE",
		"GIT_GRAFT_FILE", "GIT_INDEX_FILE", "GIT_NO_REPLACE_OBJECTS", "GIT_REPLACE_REF_BASE", "GIT_PREFIX", "GIT_SHALLOW_FILE",
		"GIT_COMMON_DIR", "GIT_NAMESPACE", "GIT_CEILING_DIRECTORIES", "GIT_DEFAULT_HASH", "LANGUAGE", "LC_ALL"}
	env := slices.DeleteFunc(os.Environ(), func(kv string) bool {
		name, _, _ := strings.Cut(kv, "=")
		return slices.Contains(local, name)
	})
	n, _ := strconv.Atoi(os.Getenv("GIT_CONFIG_COUNT"))
	for i, kv := range config {
		env = append(env, fmt.Sprintf("GIT_CONFIG_KEY_%d=%s", n+i, kv[0]), fmt.Sprintf("GIT_CONFIG_VALUE_%d=%s", n+i, kv[1]))
	}
	return append(env, fmt.Sprintf("GIT_CONFIG_COUNT=%d", n+len(config)), "LC_ALL=C", "GIT_TERMINAL_PROMPT=0", "GCM_INTERACTIVE=never", "GIT_NO_LAZY_FETCH=1", "GIT_NO_REPLACE_OBJECTS=1")
}

func (g *git) run(ctx context.Context, stdin io.Reader, args ...string) ([]byte, error) {
	return client.Run(ctx, client.Command{Name: "git", Args: args, Dir: g.dir, Env: g.env, Stdin: stdin, Quiet: silence})
}

// fetch gets the commit and, of its tree, the directories. That the objects are what their ids say is for git to check,
// as it does with all that it receives.
func (g *git) fetch(ctx context.Context, commit string) error {
	if _, err := g.run(ctx, nil, "fetch", "--progress", "--no-tags", "--depth=1", "--recurse-submodules=no", "origin", commit); err != nil {
		var exit *client.ExitError
		if errors.As(err, &exit) && strings.Contains(exit.Stderr, "not our ref") {
			return fmt.Errorf("it does not have that commit: %w", err)
		}
		return err
	}
	out, err := g.run(ctx, nil, "rev-parse", "--verify", "FETCH_HEAD^{commit}")
	if err != nil {
		return err
	}
	if found := strings.TrimSpace(string(out)); found != commit {
		return fmt.Errorf("commit %s was asked for, and %s came", commit, found)
	}
	return nil
}

type gitFile struct {
	name       string
	object     string
	executable bool
}

// files lists the files of a fetched commit that keep wants.
func (g *git) files(ctx context.Context, commit string, keep func(name string) bool) ([]gitFile, error) {
	out, err := g.run(ctx, nil, "ls-tree", "-r", "-z", "--full-tree", commit)
	if err != nil {
		return nil, err
	}
	var files []gitFile
	for entry := range strings.SplitSeq(strings.TrimSuffix(string(out), "\x00"), "\x00") {
		meta, name, _ := strings.Cut(entry, "\t")
		fields := strings.Fields(meta) // mode, type, object
		if len(fields) != 3 || !keep(name) {
			continue
		}
		if !fs.ValidPath(name) {
			return nil, fmt.Errorf("commit %s has a file with the improper name %q", commit, name)
		}
		if fields[0] != "100644" && fields[0] != "100755" {
			return nil, fmt.Errorf("%s of commit %s is neither a plain nor an executable file (mode %s)", name, commit, fields[0])
		}
		files = append(files, gitFile{name, fields[2], fields[0] == "100755"})
	}
	return files, nil
}

// contents fetches the files, all at once, and calls fn with the content of each.
func (g *git) contents(ctx context.Context, files []gitFile, fn func(f gitFile, content io.Reader) error) error {
	var list strings.Builder
	for _, f := range files {
		fmt.Fprintln(&list, f.object)
	}
	_, err := g.run(ctx, strings.NewReader(list.String()), "fetch", "--progress", "--no-tags", "--no-write-fetch-head",
		"--recurse-submodules=no", "--stdin", "origin")
	if err != nil {
		return err
	}
	out, err := g.run(ctx, strings.NewReader(list.String()), "cat-file", "--batch")
	if err != nil {
		return err
	}
	r := bufio.NewReader(bytes.NewReader(out))
	for _, f := range files {
		header, err := r.ReadString('\n')
		if err != nil {
			return fmt.Errorf("reading %s from git: %w", f.name, err)
		}
		fields := strings.Fields(header) // object, type, size
		if len(fields) != 3 || fields[0] != f.object || fields[1] != "blob" {
			return fmt.Errorf("reading %s from git: expected blob %s, found %q", f.name, f.object, strings.TrimSpace(header))
		}
		size, err := strconv.ParseInt(fields[2], 10, 64)
		if err != nil {
			return fmt.Errorf("reading %s from git: %w", f.name, err)
		}
		if err := fn(f, io.LimitReader(r, size)); err != nil {
			return err
		}
		if _, err := r.Discard(1); err != nil { // the line feed after the content
			return fmt.Errorf("reading %s from git: %w", f.name, err)
		}
	}
	return nil
}

// mirrored returns the folder below mirror that serves as OWNER/NAME.
func mirrored(mirror, repository string) (string, bool) {
	_, name, _ := strings.Cut(repository, "/")
	for _, dir := range []string{repository + ".git", repository, name + ".git", name} {
		dir = filepath.Join(mirror, filepath.FromSlash(dir))
		if _, err := os.Stat(filepath.Join(dir, "objects")); err == nil {
			return dir, true
		}
		if _, err := os.Stat(filepath.Join(dir, ".git")); err == nil {
			return dir, true
		}
	}
	return "", false
}
