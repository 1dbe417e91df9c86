package chain_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/enginery/enginery/chain"
	"github.com/enginery/enginery/engines"
	"github.com/enginery/enginery/internal/vattest"
	"github.com/enginery/enginery/swingstore"
	"github.com/enginery/enginery/vat"
	"github.com/enginery/enginery/xsnap"
)

// childEnv has this program be a node in a process of its own.
const childEnv = "ENGINERY_TEST_CHAIN_NODE"

// child is what such a node does.
type child struct {
	Dir, Script string
	Engines     []childEngine
	FullAt      int64 // height after which there is no room on the disk, for a while; 0: never
}

type childEngine struct {
	Version, Path, Meter string
	Protocol             int
	Loads                []string
	Lockdown, Supervisor []byte
}

func newChild(t testing.TB, s *script) child {
	t.Helper()
	c := child{Dir: t.TempDir(), Script: filepath.Join(t.TempDir(), "script.jsonl")}
	if err := os.WriteFile(c.Script, s.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	get := vattest.Engines(t, oldVersion, newVersion)
	for _, version := range []string{oldVersion, newVersion} {
		e, err := get(version)
		if err != nil {
			t.Fatal(err)
		}
		c.Engines = append(c.Engines, childEngine{version, e.Worker.Path, e.Worker.MeterType, e.Worker.Protocol, e.LoadsSnapshotsOf, e.Lockdown, e.Supervisor})
	}
	return c
}

func (c child) engine(version string) (*vat.Engine, error) {
	for _, e := range c.Engines {
		if e.Version == version {
			return &vat.Engine{
				Version: version, LoadsSnapshotsOf: e.Loads, Lockdown: e.Lockdown, Supervisor: e.Supervisor,
				Worker: xsnap.Options{Version: version, Path: e.Path, Protocol: e.Protocol, MeterType: e.Meter},
			}, nil
		}
	}
	return nil, fmt.Errorf("%s: %w", version, engines.ErrNotInstalled)
}

// command returns a process that does it.
func (c child) command(ctx context.Context, t testing.TB) *exec.Cmd {
	t.Helper()
	file := filepath.Join(t.TempDir(), "child.json")
	text, err := json.Marshal(c)
	if err == nil {
		err = os.WriteFile(file, text, 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(ctx, os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+file)
	cmd.Stderr = t.Output()
	return cmd
}

func TestMain(m *testing.M) {
	file := os.Getenv(childEnv)
	if file == "" {
		os.Exit(m.Run())
	}
	if err := runChild(file); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func runChild(file string) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var c child
	if err := json.Unmarshal(text, &c); err != nil {
		return err
	}
	script, err := os.ReadFile(c.Script)
	if err != nil {
		return err
	}
	if c.FullAt > 0 {
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			return fmt.Errorf("keeping mounts to myself: %w", err)
		}
		if err := unix.Mount("tmpfs", c.Dir, "tmpfs", 0, "size=96m"); err != nil {
			return fmt.Errorf("mounting a small disk: %w", err)
		}
	}
	n, err := chain.Open(chain.Options{Dir: c.Dir, Engines: c.engine, Jobs: 2})
	if err != nil {
		return err
	}
	defer func() { n.Close() }()
	feed := func(to int64) error {
		ctx, stop := context.WithCancelCause(context.Background())
		enough := errors.New("enough")
		err := n.Feed(ctx, bytes.NewReader(script), "", func(b *chain.Block) {
			fmt.Println(b.Height, b.AppHash)
			if b.Height == to {
				stop(enough)
			}
		})
		if errors.Is(err, enough) {
			return nil
		}
		return err
	}
	again := func() error {
		height, hash := n.Height(), n.AppHash()
		if err := n.Close(); err != nil {
			return err
		}
		if n, err = chain.Open(chain.Options{Dir: c.Dir, Engines: c.engine}); err != nil {
			return err
		}
		if n.Height() != height || n.AppHash() != hash {
			return fmt.Errorf("the chain is opened at %d, %s, and was at %d, %s", n.Height(), n.AppHash(), height, hash)
		}
		return nil
	}
	if c.FullAt > 0 {
		if err := errors.Join(feed(c.FullAt), again()); err != nil { // with an empty log
			return err
		}
		ballast := filepath.Join(c.Dir, "ballast")
		fill(ballast)
		err := feed(0)
		if !errors.Is(err, swingstore.ErrFull) {
			return fmt.Errorf("on a full disk: %v, expected %v", err, swingstore.ErrFull)
		}
		fmt.Println("full", err)
		if err := os.Remove(ballast); err != nil {
			return err
		}
		if err := again(); err != nil {
			return err
		}
	}
	return feed(0)
}

// fill leaves no room on a disk.
func fill(path string) {
	f, err := os.Create(path)
	if err != nil {
		panic(err)
	}
	defer f.Close()
	for b := make([]byte, 1<<16); err == nil; {
		_, err = f.Write(b)
	}
}

// short is a short life of a chain, which all tests here share, and the app hash of each height when nothing disturbs it.
var short struct {
	once   sync.Once
	s      *script
	hashes []string
}

// reference returns it.
func reference(ctx context.Context, t *testing.T) (*script, []string) {
	t.Helper()
	short.once.Do(func() {
		vats, blocks := 4, 6
		if os.Getenv(soakEnv) != "" {
			vats, blocks = 8, 40
		}
		s := rollout(t, vats, blocks, 4)
		r := &ran{results: make(map[string]chain.Result)}
		n := open(t, t.TempDir(), vattest.Engines(t, oldVersion, newVersion), chain.Options{Jobs: 2})
		defer n.Close()
		hashes := []string{n.AppHash()}
		if err := n.Feed(ctx, bytes.NewReader(s.Bytes()), "", func(b *chain.Block) {
			r.add(t, b)
			hashes = append(hashes, b.AppHash)
		}); err != nil {
			t.Fatal(err)
		}
		s.check(r)
		short.s, short.hashes = s, hashes
	})
	if short.s == nil {
		t.Fatal("the life that this is compared with has failed")
	}
	return short.s, short.hashes
}

// A node that is killed at any time goes on from the boundary of a block; what comes of it is the same.
func TestKilled(t *testing.T) {
	t.Parallel()
	kills := 15
	if os.Getenv(soakEnv) != "" {
		kills = 400 // in as many lives as that takes
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*deadline)
	defer cancel()
	s, hashes := reference(ctx, t)
	r := rand.New(rand.NewPCG(3, 4))
	for killed := 0; killed < kills; {
		n, within := live(ctx, t, newChild(t, s), hashes, r, kills-killed)
		killed += n
		t.Logf("killed %d times, %d of them within the block that it had started with", n, within)
	}
}

// live has a node live its life, and kills it so often at most. It returns how often it did, and how often before the node had made a block.
func live(ctx context.Context, t *testing.T, c child, hashes []string, r *rand.Rand, kills int) (killed, within int) {
	patience := 300 * time.Millisecond // how long a node lives at most; longer if it makes no block in it
	height := int64(0)
	for done := false; !done; {
		cmd := c.command(ctx, t)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		var timer *time.Timer
		if killed < kills {
			timer = time.AfterFunc(time.Duration(r.Int64N(int64(patience))), func() { cmd.Process.Kill() })
		}
		for lines := bufio.NewScanner(out); lines.Scan(); {
			var h int64
			var hash string
			if _, err := fmt.Sscan(lines.Text(), &h, &hash); err != nil {
				t.Fatalf("%q: %v", lines.Text(), err)
			}
			if hash != hashes[h] {
				t.Fatalf("block %d has the app hash %s, expected %s", h, hash, hashes[h])
			}
		}
		err = cmd.Wait()
		if timer != nil {
			timer.Stop()
		}
		var exit *exec.ExitError
		switch {
		case err == nil:
			done = true
		case errors.As(err, &exit) && exit.Sys().(syscall.WaitStatus).Signal() == syscall.SIGKILL:
			killed++
		default:
			t.Fatal(err)
		}
		before := height
		if height, err = head(ctx, t, c.Dir, hashes); err != nil {
			t.Fatal(err)
		}
		switch {
		case height < before:
			t.Fatalf("the chain is at %d, and was at %d", height, before)
		case height == before:
			patience += patience / 2
			within++
		default:
			patience = max(300*time.Millisecond, patience*2/3)
		}
	}
	if want := int64(len(hashes) - 1); height != want {
		t.Errorf("in the end the chain is at %d, expected %d", height, want)
	}
	return killed, within
}

// head returns the height of a chain in a folder, and checks that it is at the boundary of a block.
func head(ctx context.Context, t testing.TB, dir string, hashes []string) (int64, error) {
	t.Helper()
	if _, err := os.Stat(filepath.Join(dir, swingstore.FileName)); err != nil {
		return 0, nil // killed before it was made
	}
	s, err := swingstore.Open(dir)
	if errors.Is(err, swingstore.ErrForeign) {
		return 0, nil // killed before it had tables
	} else if err != nil {
		return 0, err
	}
	defer s.Close()
	height, hash, err := chain.Head(ctx, &s.Reader)
	if err == nil && hash != hashes[height] {
		err = fmt.Errorf("the chain is at %d with the app hash %s, expected %s", height, hash, hashes[height])
	}
	return height, err
}

// On a full disk a block is not made, and when there is room again it is.
func TestDiskFull(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	s, hashes := reference(ctx, t)
	c := newChild(t, s)
	for at, line := range strings.Split(s.String(), "\n") { // the block of the adoption
		if strings.Contains(line, `"type":"adopt"`) {
			c.FullAt = int64(strings.Count(strings.Join(strings.Split(s.String(), "\n")[:at], "\n"), `"type":"block"`))
		}
	}
	cmd := c.command(ctx, t)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
	if os.Getuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}}
	}
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	height := 0
	full := false
	for _, line := range strings.Split(strings.TrimSpace(string(out)), "\n") {
		if problem, is := strings.CutPrefix(line, "full "); is {
			t.Log("block", c.FullAt+1, ":", problem)
			full = height == int(c.FullAt)
			continue
		}
		height++
		if want := fmt.Sprint(height, " ", hashes[height]); line != want {
			t.Fatalf("%s, expected %s", line, want)
		}
	}
	if !full || height != int(s.height) {
		t.Errorf("the disk was full: %t; %d blocks, expected %d", full, height, s.height)
	}
}

// Without the engine of a version, a block that adopts it, or has a vat start on it, is not made; when it is there, the block is.
func TestMissingEngine(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	s, hashes := reference(ctx, t)
	all := vattest.Engines(t, oldVersion, newVersion)
	there := true
	get := func(version string) (*vat.Engine, error) {
		if version == newVersion && !there {
			return nil, fmt.Errorf("%s: %w", version, engines.ErrNotInstalled)
		}
		return all(version)
	}
	n := open(t, t.TempDir(), get, chain.Options{})
	defer n.Close()
	held := 0
	for {
		there = false
		err := n.Feed(ctx, bytes.NewReader(s.Bytes()), "", nil)
		if err == nil {
			break
		}
		if held++; !errors.Is(err, engines.ErrNotInstalled) || n.AppHash() != hashes[n.Height()] {
			t.Fatalf("at %d: %v", n.Height(), err)
		}
		t.Log(err)
		there = true
		one, stop := context.WithCancelCause(ctx)
		enough := errors.New("enough")
		if err := n.Feed(one, bytes.NewReader(s.Bytes()), "", func(*chain.Block) { stop(enough) }); err != nil && !errors.Is(err, enough) {
			t.Fatal(err)
		}
	}
	if n.AppHash() != hashes[s.height] {
		t.Errorf("the app hash is %s, expected %s", n.AppHash(), hashes[s.height])
	}
	if held < 2 {
		t.Errorf("a block was held %d times, expected that of the adoption and those with upgrades", held)
	}
}
