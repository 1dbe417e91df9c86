package build

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	repb "github.com/bazelbuild/remote-apis/build/bazel/remote/execution/v2"
	"github.com/enginery/enginery/internal/cas"
	"github.com/enginery/enginery/internal/progress"
	"github.com/enginery/enginery/internal/sandbox"
	"github.com/enginery/enginery/toolchain"
)

// Local runs actions in a sandbox on this machine.
type Local struct {
	Store *cas.Store
	Jobs  *Jobs
	// Toolchain returns the verified root file system of a toolchain.
	Toolchain func(context.Context, *toolchain.Toolchain) (root string, err error)
}

// Execute implements Executor. The only thing that an action meets here and that is not part of it is the job budget
// (MAKEFLAGS and descriptors 3 and 4), which decides how many of its commands run at once.
func (l *Local) Execute(ctx context.Context, a *Action) (*repb.ActionResult, error) {
	root, err := l.Toolchain(ctx, a.Toolchain)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", a.Name, err)
	}
	if err := l.Jobs.acquire(ctx); err != nil {
		return nil, err
	}
	defer l.Jobs.release()
	task := progress.Start(ctx, "compile "+a.Name, 0)
	result, err := l.execute(ctx, a, root)
	task.Done(err)
	return result, err
}

func (l *Local) execute(ctx context.Context, a *Action, root string) (*repb.ActionResult, error) {
	scratch, remove, err := l.Store.Scratch("action")
	if err != nil {
		return nil, err
	}
	defer remove()
	work := filepath.Join(scratch, "work")
	if err := l.Store.Checkout(ctx, a.Inputs, work); err != nil {
		return nil, fmt.Errorf("%s: laying out the inputs: %w", a.Name, err)
	}
	log, err := os.Create(filepath.Join(scratch, "log"))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", a.Name, err)
	}
	defer log.Close()
	env := make([]string, 0, len(a.Command.EnvironmentVariables)+1)
	for _, v := range a.Command.EnvironmentVariables {
		env = append(env, v.Name+"="+v.Value)
	}
	actx, cancel := context.WithTimeout(ctx, a.Timeout)
	defer cancel()
	err = sandbox.Run(actx, sandbox.Spec{
		Root:   root,
		Work:   work,
		Dir:    filepath.Join(Root, a.Command.WorkingDirectory),
		Args:   a.Command.Arguments,
		Env:    append(env, l.Jobs.makeflags()),
		Stdout: log,
		Stderr: log,
		Files:  []*os.File{l.Jobs.r, l.Jobs.w},
		State:  filepath.Join(scratch, "state"),
	})
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	var exit *sandbox.ExitError
	if err != nil && !errors.As(err, &exit) && !errors.Is(err, context.DeadlineExceeded) {
		return nil, fmt.Errorf("%s: %w", a.Name, err)
	}
	if _, err := log.Seek(0, io.SeekStart); err != nil {
		return nil, fmt.Errorf("%s: %w", a.Name, err)
	}
	printed, perr := l.Store.Put(ctx, log)
	if perr != nil {
		return nil, perr
	}
	if err != nil {
		if errors.Is(err, context.DeadlineExceeded) {
			err = fmt.Errorf("it was stopped after %v: %w", a.Timeout, err)
		}
		return nil, &ActionError{Name: a.Name, Err: err, Tail: tail(log.Name(), 30), Log: printed, Path: l.Store.Path(printed)}
	}
	result := &repb.ActionResult{StdoutDigest: printed.Proto()}
	for _, name := range a.Command.OutputPaths {
		file, err := l.collect(ctx, work, filepath.Join(a.Command.WorkingDirectory, name))
		if err != nil {
			return nil, fmt.Errorf("%s: make succeeded, but its output cannot be had: %w", a.Name, err)
		}
		file.Path = name
		result.OutputFiles = append(result.OutputFiles, file)
	}
	return result, nil
}

// collect stores a file that an action left in its work area. What the action made of the directories on the way is not
// trusted: nothing outside the area can be reached.
func (l *Local) collect(ctx context.Context, work, name string) (*repb.OutputFile, error) {
	area, err := os.OpenRoot(work)
	if err != nil {
		return nil, err
	}
	defer area.Close()
	fi, err := area.Lstat(name)
	if err != nil {
		return nil, err
	}
	if !fi.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a file: %v", name, fi.Mode())
	}
	f, err := area.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	d, err := l.Store.Put(ctx, f)
	if err != nil {
		return nil, err
	}
	return &repb.OutputFile{Digest: d.Proto(), IsExecutable: fi.Mode()&0o100 != 0}, nil
}
