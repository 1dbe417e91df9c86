package xsnap

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"sync"

	"github.com/enginery/enginery/engines"
)

// description is what a host must know of an engine, of all that its configuration says (artifact.Engine).
type description struct {
	Protocol  int      `json:"protocol"`
	Meter     string   `json:"meter"`
	Consensus []string `json:"consensus"` // goals
}

// Goals of upstream's makefile, as recipes names them.
const (
	goalRelease = "release"
	goalDebug   = "debug"
)

// resolve finds the engine that is asked for, fills in what its description says, and returns its program.
func (o *Options) resolve() (*program, error) {
	e := o.Engine
	switch {
	case o.Path != "" && (e != nil || o.Home != "" || o.Debug):
		return nil, errors.New("a program is given by its path; Engine, Home and Debug are for installed engines")
	case o.Path != "":
		return &program{path: o.Path}, nil
	case e == nil && o.Version == "":
		return nil, errors.New("no engine is given: set Version, Engine or Path")
	case e == nil:
		home := o.Home
		var err error
		if home == "" {
			if home, err = engines.DefaultHome(); err != nil {
				return nil, err
			}
		}
		if e, err = engines.Open(home).Find(o.Version); err != nil {
			return nil, err
		}
	case o.Version != "" && o.Version != e.Version:
		return nil, fmt.Errorf("the engine is of version %s, expected %s", e.Version, o.Version)
	}
	o.Version = e.Version
	if native := "linux/" + runtime.GOARCH; e.Platform != native && len(o.Emulator) == 0 {
		return nil, fmt.Errorf("the installed engine is for %s, this is %s; install that one, or set Emulator", e.Platform, native)
	}
	config, err := e.Config.Read()
	if err != nil {
		return nil, fmt.Errorf("reading the engine's description: %w", err)
	}
	var d description
	if err := json.Unmarshal(config, &d); err != nil {
		return nil, fmt.Errorf("reading the engine's description: %w", err)
	}
	file, goal := e.Worker, goalRelease
	if o.Debug {
		if file, goal = e.DebugWorker, goalDebug; file.SHA256 == "" {
			return nil, errors.New("it has no debug worker")
		}
	}
	o.Protocol, o.MeterType = d.Protocol, d.Meter
	if !slices.Contains(d.Consensus, goal) {
		o.MeterType += "-" + goal // its computrons are others
	}
	return share(file)
}

// program is what a worker runs.
type program struct {
	path string
	file *os.File // verified and sealed, to be run in place of what path names; nil: none

	sum  string // SHA-256 of the file
	uses int    // guarded by programs.mu
}

// programs are the programs of installed engines that run, by their SHA-256: all workers of an engine share one copy in memory.
var programs struct {
	mu    sync.Mutex
	bySum map[string]*program
}

func share(f engines.File) (*program, error) {
	programs.mu.Lock()
	defer programs.mu.Unlock()
	p := programs.bySum[f.SHA256]
	if p == nil {
		file, err := f.Open()
		if err != nil {
			return nil, err
		}
		p = &program{path: f.Path, file: file, sum: f.SHA256}
		if programs.bySum == nil {
			programs.bySum = make(map[string]*program)
		}
		programs.bySum[p.sum] = p
	}
	p.uses++
	return p, nil
}

// release is called when a worker needs the program no more.
func (p *program) release() {
	if p.file == nil {
		return
	}
	programs.mu.Lock()
	defer programs.mu.Unlock()
	if p.uses--; p.uses == 0 {
		p.file.Close()
		delete(programs.bySum, p.sum)
	}
}
