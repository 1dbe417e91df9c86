package vat

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/enginery/enginery/swingstore"
	"github.com/enginery/enginery/xsnap"
	"golang.org/x/sys/unix"
)

// childEnv has this program be the host of a vat in a process of its own.
const childEnv = "ENGINERY_TEST_VAT_HOST"

// hostOptions are those of such a host.
type hostOptions struct {
	Store   string
	Bundles [][]byte
	Engines [2]hostEngine
}

type hostEngine struct {
	Version, Path        string
	Protocol             int
	Lockdown, Supervisor []byte
}

func newHostOptions(t testing.TB, store string) hostOptions {
	t.Helper()
	o := hostOptions{Store: store, Bundles: historyBundles(t)}
	for i, version := range []string{older, newer} {
		e := engine(t, version, "linux/amd64")
		o.Engines[i] = hostEngine{version, e.Worker.Path, e.Worker.Protocol, e.Lockdown, e.Supervisor}
	}
	return o
}

func (o *hostOptions) history(s *swingstore.Store, change func(*Options)) *history {
	var es [2]*Engine
	for i, e := range o.Engines {
		es[i] = &Engine{
			Version: e.Version, LoadsSnapshotsOf: []string{e.Version}, Lockdown: e.Lockdown, Supervisor: e.Supervisor,
			Worker: xsnap.Options{Version: e.Version, Path: e.Path, Protocol: e.Protocol},
		}
	}
	return newHistory(s, "host", o.Bundles, es, change)
}

// hostCommand returns the command of such a host.
func hostCommand(ctx context.Context, t testing.TB, job string, o hostOptions) *exec.Cmd {
	t.Helper()
	in, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(ctx, os.Args[0])
	cmd.Env, cmd.Stdin, cmd.Stderr = append(os.Environ(), childEnv+"="+job), bytes.NewReader(in), t.Output()
	return cmd
}

func TestMain(m *testing.M) {
	jobs := map[string]func(hostOptions) error{"steps": hostSteps, "full": hostFull}
	job, ok := jobs[os.Getenv(childEnv)]
	if !ok {
		os.Exit(m.Run())
	}
	var o hostOptions
	err := json.NewDecoder(os.Stdin).Decode(&o)
	if err == nil {
		err = job(o)
	}
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

// hostSteps goes on with a history, without end, and prints the number of each step that is done.
func hostSteps(o hostOptions) error {
	s, err := swingstore.Create(o.Store)
	if err != nil {
		return err
	}
	h := o.history(s, nil)
	for {
		i, err := h.next(context.Background())
		if err != nil {
			return err
		}
		if err := h.step(context.Background(), i); err != nil {
			return err
		}
		fmt.Println(i)
	}
}

// A host that is killed at any time loses no crank that it has had, and leaves no half of one. ENGINERY_TEST_CRASHES says how many die.
func TestHostDies(t *testing.T) {
	t.Parallel()
	deaths := 12
	if n, err := strconv.Atoi(os.Getenv("ENGINERY_TEST_CRASHES")); err == nil {
		deaths = n
	}
	o := newHostOptions(t, filepath.Join(t.TempDir(), "store.sqlite"))
	done := 0 // steps
	for n := range deaths {
		ctx, cancel := context.WithTimeout(t.Context(), deadline)
		cmd := hostCommand(ctx, t, "steps", o)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		for enough := rand.IntN(8); enough >= 0 && lines.Scan(); enough-- { // some steps, and a part of one
			i, err := strconv.Atoi(lines.Text())
			if err != nil || i < done {
				t.Fatalf("the host says %q after step %d", lines.Text(), done)
			}
			done = i + 1
		}
		time.Sleep(time.Duration(rand.Int64N(int64(60 * time.Millisecond))))
		cmd.Process.Kill()
		for lines.Scan() { // what it had said before
			if i, err := strconv.Atoi(lines.Text()); err == nil {
				done = i + 1
			}
		}
		io.Copy(io.Discard, out)
		cmd.Wait()
		cancel()
		if at := checkHistory(t, o.Store, done); at > done {
			done = at
		}
		if t.Failed() {
			t.Fatalf("after %d deaths, at step %d", n+1, done)
		}
	}
	t.Logf("%d steps", done)
	// It goes on as if nothing had happened: an undisturbed history has the same store.
	ctx, cancel := context.WithTimeout(t.Context(), 4*deadline)
	defer cancel()
	s := openStore(t, filepath.Join(t.TempDir(), "undisturbed.sqlite"))
	h := o.history(s, nil)
	defer h.v.Close()
	if err := h.run(ctx, done, nil); err != nil {
		t.Fatal(err)
	}
	if got, want := dump(t, openStore(t, o.Store)), dump(t, s); got != want {
		t.Errorf("the store is not what it is without deaths: %s", firstDifference(got, want))
	}
}

// checkHistory checks that a store has whole steps, at least as many as are known to be done and at most one more, and that vatstore, transcript and
// heap snapshots are of the same moment. It returns how many steps there are.
func checkHistory(t testing.TB, path string, done int) int {
	t.Helper()
	s := openStore(t, path)
	defer s.Close()
	ctx := t.Context()
	steps, err := (&history{s: s}).next(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if steps < done || steps > done+1 {
		t.Errorf("the store has %d steps, expected %d or one more", steps, done)
	}
	spans, err := s.Spans(ctx, "v1")
	if err != nil {
		t.Fatal(err)
	}
	vatstore := make(map[string]string) // as the transcript says
	incarnations := 0
	var kind string
	for _, span := range spans {
		for item, err := range s.Items(ctx, span) {
			if err != nil {
				t.Fatal(err)
			}
			var e Entry
			if err := json.Unmarshal(item.Text, &e); err != nil {
				t.Fatal(err)
			}
			if kind = e.Kind(); kind == "initialize-worker" {
				incarnations++
			}
			for _, sc := range e.Syscalls {
				var c []json.RawMessage
				if err := json.Unmarshal(sc.Syscall, &c); err != nil {
					t.Fatal(err)
				}
				switch text(c[0]) {
				case "vatstoreSet":
					vatstore[text(c[1])] = text(c[2])
				case "vatstoreDelete":
					delete(vatstore, text(c[1]))
				}
			}
		}
	}
	if upgrades := steps / 18; steps > 0 && incarnations != upgrades+1 {
		t.Errorf("%d incarnations after %d steps", incarnations, steps)
	}
	if kind == "save-snapshot" || kind == "shutdown-worker" {
		t.Errorf("the last item is %s", kind)
	}
	has := make(map[string]string)
	for key := "v1.vs."; ; {
		if key, err = s.NextKey(ctx, key); err != nil {
			t.Fatal(err)
		}
		name, ok := strings.CutPrefix(key, "v1.vs.")
		if !ok {
			break
		}
		if has[name], err = s.Get(ctx, key); err != nil {
			t.Fatal(err)
		}
	}
	if !maps.Equal(has, vatstore) {
		t.Errorf("the vatstore has %d keys, and %d by the transcript, or others: %v and %v", len(has), len(vatstore),
			slices.Sorted(maps.Keys(has)), slices.Sorted(maps.Keys(vatstore)))
	}
	switch snapshot, err := s.SnapshotInUse(ctx, "v1"); {
	case errors.Is(err, swingstore.ErrNotFound):
	case err != nil:
		t.Error(err)
	case snapshot.Position+1 != spans[len(spans)-1].Start:
		t.Errorf("%s, and the current span is %s", snapshot, spans[len(spans)-1])
	default:
		r, err := s.OpenSnapshot(ctx, snapshot)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, r); err != nil {
			t.Error(err)
		}
	}
	return steps
}

// hostFull makes steps on a disk that is full before each, until there is room again.
func hostFull(o hostOptions) error {
	dir := filepath.Dir(o.Store)
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64m"); err != nil {
		return fmt.Errorf("mounting a small disk: %w", err)
	}
	s, err := swingstore.Create(o.Store)
	if err != nil {
		return err
	}
	defer s.Close()
	filler := filepath.Join(dir, "filler")
	h := o.history(s, nil)
	defer h.v.Close()
	ctx := context.Background()
	full := 0
	for i := range fullSteps {
		if err := fill(filler, i%4*8<<10); err != nil {
			return err
		}
		err := h.step(ctx, i)
		if err != nil && !errors.Is(err, swingstore.ErrFull) {
			return fmt.Errorf("step %d on a full disk: %w", i, err)
		}
		if next, nerr := h.next(ctx); nerr != nil || (err == nil) != (next == i+1) {
			return fmt.Errorf("step %d on a full disk: %v, and then %d steps, %v", i, err, next, nerr)
		}
		if err := os.Remove(filler); err != nil {
			return err
		}
		if err != nil {
			full++
			if err := h.step(ctx, i); err != nil {
				return fmt.Errorf("step %d: %w", i, err)
			}
		}
	}
	if full == 0 {
		return errors.New("the disk was never full")
	}
	b, err := dumpStore(s.Path())
	if err != nil {
		return err
	}
	fmt.Print(b)
	return nil
}

const fullSteps = 16

// fill makes a file that takes all that is free but so many bytes.
func fill(path string, but int) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	block := make([]byte, 4096)
	for err == nil {
		_, err = f.Write(block)
	}
	if !errors.Is(err, unix.ENOSPC) {
		return err
	}
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	return f.Truncate(max(0, size-int64(but)))
}

// A full disk is an error, swingstore.ErrFull, and the crank may be had again when there is room.
func TestDiskFull(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 2*deadline)
	defer cancel()
	dir := t.TempDir()
	disk := filepath.Join(dir, "disk")
	if err := os.Mkdir(disk, 0o755); err != nil {
		t.Fatal(err)
	}
	o := newHostOptions(t, filepath.Join(disk, "store.sqlite"))
	cmd := hostCommand(ctx, t, "full", o)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
	if os.Getuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	s := openStore(t, filepath.Join(dir, "undisturbed.sqlite"))
	h := o.history(s, nil)
	defer h.v.Close()
	if err := h.run(ctx, fullSteps, nil); err != nil {
		t.Fatal(err)
	}
	if want := dump(t, s); string(out) != want {
		t.Errorf("the store is not what it is on a large disk: %s", firstDifference(string(out), want))
	}
}
