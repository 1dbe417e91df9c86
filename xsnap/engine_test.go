package xsnap

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/enginery/enginery/engines"
	"github.com/enginery/enginery/internal/enginetest"
)

// TestInstalled runs installed versions by their IDs.
func TestInstalled(t *testing.T) {
	dir := enginetest.Home(t, native.platform, native.id, later.id)
	t.Setenv(engines.HomeEnv, dir)
	if err := engines.Open(dir).SetChannels(fmt.Appendf(nil, "legacy = %q\ncurrent = %q\n", native.id, later.id)); err != nil {
		t.Fatal(err)
	}
	before := openFiles(t)
	for _, c := range []struct {
		o         Options
		meterType string
	}{
		{Options{Version: native.id}, "xs-meter-28"},
		{Options{Version: later.id, Home: dir}, enginetest.Recipe(t, later.id).Engine.Meter},
		{Options{Version: native.id, Debug: true}, "xs-meter-28-debug"},
		{Options{Version: engines.Legacy}, "xs-meter-28"},
		{Options{Engine: installed(t, dir, later.id)}, enginetest.Recipe(t, later.id).Engine.Meter},
	} {
		c.o.Name = "v5:vat"
		w, other := begin(t, c.o), begin(t, c.o)
		if w.program != other.program {
			t.Error("two workers of an engine have two copies of its program")
		}
		want := c.o.Version
		switch {
		case c.o.Engine != nil:
			want = c.o.Engine.Version
		case want == engines.Legacy:
			want = native.id
		}
		reply, err := w.Evaluate("1")
		if err != nil || reply.Meter.Type != c.meterType {
			t.Errorf("%+v, %v, want %s", reply.Meter, err, c.meterType)
		}
		if _, err := w.Evaluate("throw 1"); err == nil || !strings.HasPrefix(err.Error(), "v5:vat ("+want+"): ") {
			t.Errorf("%v: it does not name %s", err, want)
		}
		if args, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", w.cmd.Process.Pid)); err != nil || !bytes.HasPrefix(args, []byte(dir)) || !bytes.Contains(args, []byte("\x00v5:vat\x00")) {
			t.Errorf("its command line is %q, %v", args, err)
		}
		if sha(snapshot(t, other)) != fresh {
			t.Error("another fresh heap")
		}
		w.Kill()
		evaluate(t, other, "1") // it has its program still
		other.Close()
	}
	if after := openFiles(t); after != before {
		t.Errorf("%d descriptors are open, %d before", after, before)
	}
	if len(programs.bySum) > 0 {
		t.Errorf("%d programs are kept that nothing runs", len(programs.bySum))
	}
}

func TestInstalledElsewhere(t *testing.T) {
	dir := enginetest.Home(t, emulated.platform, emulated.id)
	w := begin(t, Options{Version: emulated.id, Home: dir, Emulator: enginetest.Emulator(t, emulated.platform)})
	if sha(snapshot(t, w)) != fresh {
		t.Error("another fresh heap")
	}
}

func installed(t *testing.T, home, version string) *engines.Engine {
	t.Helper()
	e, err := engines.Open(home).Get(version)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func openFiles(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// TestNotInstalled is about engines that cannot be run, which each have their own reason.
func TestNotInstalled(t *testing.T) {
	dir := enginetest.Home(t, native.platform, native.id)
	foreign, lean := *installed(t, dir, native.id), *installed(t, dir, native.id)
	foreign.Platform = "linux/s390x"
	lean.DebugWorker = engines.File{}
	for _, c := range []struct {
		name string
		o    Options
		want string
	}{
		{"nothing", Options{}, "no engine is given"},
		{"not installed", Options{Home: dir, Version: later.id}, "agoric-upgrade-18: not installed in " + dir},
		{"no version ID", Options{Home: dir, Version: "../x"}, `version ID "../x"`},
		{"engine of another version", Options{Engine: &lean, Version: later.id}, "is of version agoric-upgrade-16, expected agoric-upgrade-18"},
		{"engine of another platform", Options{Engine: &foreign}, "is for linux/s390x, this is linux/"},
		{"no debug worker", Options{Engine: &lean, Debug: true}, "no debug worker"},
		{"path and home", Options{Path: "/bin/true", Home: dir}, "by its path"},
		{"path and engine", Options{Path: "/bin/true", Engine: &lean}, "by its path"},
		{"path and debug", Options{Path: "/bin/true", Debug: true}, "by its path"},
	} {
		if w, err := Start(t.Context(), c.o); w != nil || err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}

	// A worker that was changed on disk is not run.
	path := installed(t, dir, native.id).Worker.Path
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 1
	if err := errors.Join(os.Chmod(path, 0o700), os.WriteFile(path, b, 0o700)); err != nil {
		t.Fatal(err)
	}
	var damaged *engines.DamagedError
	if _, err := Start(context.Background(), Options{Home: dir, Version: native.id}); !errors.As(err, &damaged) || damaged.Path != path {
		t.Errorf("a worker that was changed: %v", err)
	}
}

// BenchmarkStartInstalled is BenchmarkStart for an installed version, whose program is verified at each start.
func BenchmarkStartInstalled(b *testing.B) {
	o := Options{Home: enginetest.Home(b, native.platform, native.id), Version: native.id}
	for b.Loop() {
		w, err := Start(b.Context(), o)
		if err != nil {
			b.Fatal(err)
		}
		if err := w.Ready(); err != nil {
			b.Fatal(err)
		}
		w.Kill()
	}
}
