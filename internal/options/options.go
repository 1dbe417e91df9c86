// Package options reads the options that all Mage targets share, since Mage itself has only positional arguments and flags of
// single targets.
package options

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/enginery/enginery/internal/cas"
)

// Options are the options of every target. Each has an environment variable, which the command line overrides.
type Options struct {
	Builder       string // --builder, ENGINERY_BUILDER: URI of a rebuilder
	Jobs          int    // --jobs, ENGINERY_JOBS: CPUs to use; 0 means all
	Key           string // --key, ENGINERY_KEY: private key to sign with
	JSON          bool   // --json: print results for machines
	Log           bool   // --log, ENGINERY_LOG=1: enter signatures into the transparency log
	Layout        string // --layout, ENGINERY_LAYOUT: OCI layout that receives artifacts
	SourceMirror  string // --source-mirror, ENGINERY_SOURCE_MIRROR: folder of bare git repositories
	Store         string // --store, ENGINERY_STORE: content-addressed store
	To            string // --to: repository to attach to
	ToolchainFrom string // --toolchain-from, ENGINERY_TOOLCHAIN_FROM: OCI layout or registry reference of toolchain images
}

// UsageError says that the command line is wrong. Its exit status is 2.
type UsageError struct{ Reason string }

func (e *UsageError) Error() string { return e.Reason }

// ExitStatus is the status with which Mage ends.
func (e *UsageError) ExitStatus() int { return 2 }

var names = []string{"builder", "jobs", "json", "key", "layout", "log", "source-mirror", "store", "to", "toolchain-from"}

// Parse takes the options out of a command line, wherever they stand, and returns the rest. Options are --name=value or
// --name value.
//
// Targets in optional may be followed by an argument, for which Mage has no notation of its own: where the next word is not a
// target (it has no flag of its own and known does not know it), it becomes Mage's flag -id=word.
func Parse(args []string, optional []string, known func(word string) bool) (Options, []string, error) {
	o := Options{
		Layout:        cmp.Or(os.Getenv("ENGINERY_LAYOUT"), filepath.Join("out", "oci")),
		Builder:       os.Getenv("ENGINERY_BUILDER"),
		Key:           os.Getenv("ENGINERY_KEY"),
		Log:           os.Getenv("ENGINERY_LOG") == "1",
		SourceMirror:  os.Getenv("ENGINERY_SOURCE_MIRROR"),
		ToolchainFrom: os.Getenv("ENGINERY_TOOLCHAIN_FROM"),
	}
	dir, err := cas.DefaultDir()
	if err != nil {
		return Options{}, nil, err
	}
	o.Store = dir
	if v := os.Getenv("ENGINERY_JOBS"); v != "" {
		if o.Jobs, err = jobs("ENGINERY_JOBS", v); err != nil {
			return Options{}, nil, err
		}
	}
	var rest []string
	for i := 0; i < len(args); i++ {
		name, isOption := strings.CutPrefix(args[i], "--")
		if !isOption {
			rest = append(rest, args[i])
			continue
		}
		name, value, hasValue := strings.Cut(name, "=")
		if !slices.Contains(names, name) {
			return Options{}, nil, &UsageError{fmt.Sprintf("unknown option --%s; the options are --%s", name, strings.Join(names, ", --"))}
		}
		if flag, ok := map[string]*bool{"json": &o.JSON, "log": &o.Log}[name]; ok {
			if hasValue {
				return Options{}, nil, &UsageError{fmt.Sprintf("--%s takes no value", name)}
			}
			*flag = true
			continue
		}
		if !hasValue {
			if i++; i == len(args) {
				return Options{}, nil, &UsageError{fmt.Sprintf("--%s needs a value", name)}
			}
			value = args[i]
		}
		if value == "" {
			return Options{}, nil, &UsageError{fmt.Sprintf("--%s needs a value", name)}
		}
		switch name {
		case "jobs":
			if o.Jobs, err = jobs("--jobs", value); err != nil {
				return Options{}, nil, err
			}
		case "builder":
			o.Builder = value
		case "key":
			o.Key = value
		case "to":
			o.To = value
		case "layout":
			o.Layout = value
		case "source-mirror":
			o.SourceMirror = value
		case "store":
			o.Store = value
		case "toolchain-from":
			o.ToolchainFrom = value
		}
	}
	if o.SourceMirror != "" {
		if _, err := os.ReadDir(o.SourceMirror); err != nil {
			return Options{}, nil, &UsageError{fmt.Sprintf("the source mirror (--source-mirror, ENGINERY_SOURCE_MIRROR) is not a folder: %v", err)}
		}
	}
	for i := 0; i+1 < len(rest); i++ {
		next := rest[i+1]
		if slices.Contains(optional, strings.ToLower(rest[i])) && !strings.HasPrefix(next, "-") && !known(next) {
			rest[i+1] = "-id=" + next
		}
	}
	return o, rest, nil
}

// Environ returns the options in environment variables, for a program that may run in another folder: paths are absolute.
func (o Options) Environ() ([]string, error) {
	paths := map[string]string{"ENGINERY_LAYOUT": o.Layout, "ENGINERY_SOURCE_MIRROR": o.SourceMirror, "ENGINERY_STORE": o.Store}
	var env []string
	if o.ToolchainFrom != "" {
		if fi, err := os.Stat(o.ToolchainFrom); err == nil && fi.IsDir() {
			paths["ENGINERY_TOOLCHAIN_FROM"] = o.ToolchainFrom
		} else {
			env = append(env, "ENGINERY_TOOLCHAIN_FROM="+o.ToolchainFrom)
		}
	}
	for name, path := range paths {
		if path == "" {
			continue
		}
		path, err := filepath.Abs(path)
		if err != nil {
			return nil, err
		}
		env = append(env, name+"="+path)
	}
	if o.Builder != "" {
		env = append(env, "ENGINERY_BUILDER="+o.Builder)
	}
	if o.Key != "" {
		key := o.Key
		if _, err := os.Stat(key); err == nil {
			if key, err = filepath.Abs(key); err != nil {
				return nil, err
			}
		}
		env = append(env, "ENGINERY_KEY="+key)
	}
	if o.Log {
		env = append(env, "ENGINERY_LOG=1")
	}
	if o.Jobs > 0 {
		env = append(env, fmt.Sprintf("ENGINERY_JOBS=%d", o.Jobs))
	}
	slices.Sort(env)
	return env, nil
}

func jobs(what, value string) (int, error) {
	n, err := strconv.Atoi(value)
	if err != nil || n < 1 {
		return 0, &UsageError{fmt.Sprintf("%s=%s: expected a number of CPUs, 1 or more", what, value)}
	}
	return n, nil
}
