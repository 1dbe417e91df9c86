// Package build compiles a recipe's engines: it describes every compilation as a Remote Execution API action, and runs
// those whose results are not known yet.
//
// An action's digest is computed from the recipe alone, which names all inputs by their digests. So a build whose results are
// in the store reads no source and no toolchain, and a result that anyone computed for the same digest is a result for all.
package build

import (
	"fmt"
	"path"
	"strconv"
	"time"

	repb "github.com/bazelbuild/remote-apis/build/bazel/remote/execution/v2"
	"github.com/enginery/enginery/internal/action"
	pins "github.com/enginery/enginery/moddable-pins"
	"github.com/enginery/enginery/recipes"
	"github.com/enginery/enginery/toolchain"
	"google.golang.org/protobuf/types/known/durationpb"
)

// SourceDateEpoch is the time, in seconds since 1970, that every step is told to write where it must write one.
const SourceDateEpoch = 1

// Root is where an action finds its input root: the same path everywhere, since compilers write paths into what they make.
const Root = "/build"

// timeout bounds a compilation. It is part of the action.
const timeout = 30 * time.Minute

// Action is one compilation: a goal of a recipe for a platform.
type Action struct {
	*action.Action
	Name      string // for people, e.g. "agoric-upgrade-16 linux/amd64 release"
	Platform  string // e.g. "linux/amd64"
	Goal      string // "release" or "debug"
	Timeout   time.Duration
	Toolchain *toolchain.Toolchain
}

// Plan returns the actions of a recipe, platform by platform and goal by goal. It does no I/O.
func Plan(r *recipes.Recipe) ([]*Action, error) {
	var actions []*Action
	for _, target := range r.Targets {
		for _, goal := range r.Goals {
			a, err := newAction(r, target, goal)
			if err != nil {
				return nil, fmt.Errorf("planning %s %s %s: %w", r.ID, target.Platform, goal, err)
			}
			actions = append(actions, a)
		}
	}
	return actions, nil
}

func newAction(r *recipes.Recipe, target recipes.Target, goal string) (*Action, error) {
	for _, c := range []pins.Component{r.Pin.Moddable, r.Pin.XsnapNative} {
		if !c.Recorded {
			return nil, fmt.Errorf("pin %s does not record the digest of %s %s; record it with: go tool mage pins:add %s %s %s",
				r.Pin.Name, c.Name, c.Commit, r.Pin.Name, r.Pin.Moddable.Commit, r.Pin.XsnapNative.Commit)
		}
	}
	dir := r.Make.Directory
	output, err := relative(dir, r.Output(goal))
	if err != nil {
		return nil, err
	}
	command := &repb.Command{
		Arguments: r.MakeArgs(target, goal, Root),
		EnvironmentVariables: []*repb.Command_EnvironmentVariable{
			{Name: "HOME", Value: "/tmp"},
			{Name: "LANG", Value: "C"},
			{Name: "LC_ALL", Value: "C"},
			{Name: "PATH", Value: "/usr/bin:/bin"},
			{Name: "SOURCE_DATE_EPOCH", Value: strconv.Itoa(SourceDateEpoch)},
			{Name: "TMPDIR", Value: "/tmp"},
			{Name: "TZ", Value: "UTC"},
		},
		WorkingDirectory: dir,
		OutputPaths:      []string{output},
	}
	root := &repb.Directory{Directories: []*repb.DirectoryNode{
		{Name: "moddable", Digest: r.Pin.Moddable.Tree.Proto()},
		{Name: "xsnap-native", Digest: r.Pin.XsnapNative.Tree.Proto()},
	}}
	a, err := action.New(&repb.Action{
		Timeout: durationpb.New(timeout),
		Platform: &repb.Platform{Properties: []*repb.Platform_Property{
			{Name: "ISA", Value: "x86-64"},
			{Name: "OSFamily", Value: "linux"},
			{Name: "container-image", Value: target.Toolchain.Image.String()},
		}},
	}, command, root)
	if err != nil {
		return nil, err
	}
	return &Action{
		Action:    a,
		Name:      fmt.Sprintf("%s %s %s", r.ID, target.Platform, goal),
		Platform:  target.Platform,
		Goal:      goal,
		Timeout:   timeout,
		Toolchain: target.Toolchain,
	}, nil
}

// relative returns target relative to dir, both slash-separated and relative to the input root.
func relative(dir, target string) (string, error) {
	if path.IsAbs(dir) || path.IsAbs(target) {
		return "", fmt.Errorf("%s and %s must be relative to the input root", dir, target)
	}
	up := ""
	for d := path.Clean(dir); ; d = path.Dir(d) {
		if d == "." {
			return up + path.Clean(target), nil
		}
		if rest, ok := cutDir(path.Clean(target), d); ok {
			return up + rest, nil
		}
		up += "../"
	}
}

func cutDir(name, dir string) (string, bool) {
	if len(name) > len(dir) && name[:len(dir)] == dir && name[len(dir)] == '/' {
		return name[len(dir)+1:], true
	}
	return "", false
}
