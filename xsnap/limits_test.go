package xsnap

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/enginery/enginery/engines"
)

// What a guest gets and how its worker ends is the same whatever limits the host's process has, unless it may be the host that gave no memory.
func TestLimits(t *testing.T) {
	const (
		shallow = "let a = []; for (let i = 0; i < 20_000; i++) a = [a]; gc()"
		deep    = "let a = []; for (let i = 0; i < 100_000; i++) a = [a]; gc()"
		large   = "const a = []; for (let i = 0; i < 300; i++) a.push(new ArrayBuffer(1 << 20))"
		larger  = "new ArrayBuffer(2_000_000_000)"
		ends    = "0 false, 12 true, 0 false, 11 true"
		unsure  = "0 false, 12 true, 11 false, 11 false"
	)
	if why := engines.MemoryLimit(); why != "" {
		t.Skip("this host is one of those that this is about: " + why)
	}
	const none = unix.RLIM_INFINITY
	for _, c := range []struct {
		name      string
		resource  int
		soft      uint64
		hard      uint64
		want, why string
	}{
		{"none", unix.RLIMIT_CORE, 0, 0, ends, ""},
		{"small stack", unix.RLIMIT_STACK, 1 << 20, none, ends, ""},
		{"large stack", unix.RLIMIT_STACK, 64 << 20, none, ends, ""},
		{"endless stack", unix.RLIMIT_STACK, none, none, ends, ""},
		{"soft limit of data", unix.RLIMIT_DATA, 256 << 20, none, ends, ""},
		{"hard limit of data", unix.RLIMIT_DATA, 256 << 20, 256 << 20, unsure, "268435456 bytes of data (ulimit -d)"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			var own unix.Rlimit
			if err := unix.Getrlimit(c.resource, &own); err != nil {
				t.Fatal(err)
			}
			cmd := exec.CommandContext(t.Context(), os.Args[0], native.options(t).Path, fmt.Sprint(c.resource), fmt.Sprint(c.soft), fmt.Sprint(min(c.hard, own.Max)),
				shallow, deep, large, larger)
			cmd.Env = append(os.Environ(), programEnv+"=limited")
			out, err := cmd.CombinedOutput()
			got, why, _ := strings.Cut(string(out), "\n")
			if err != nil || got != c.want || !strings.Contains(why, c.why) {
				t.Errorf("%s%v, want %s, %s", out, err, c.want, c.why)
			}
		})
	}
}

// limited is a host that has a limit, and says how workers end that evaluate scripts: with what exit code, 0 if they do not end, and whether the
// guest is to blame.
func limited() {
	number := func(i int) uint64 {
		n, err := strconv.ParseUint(os.Args[i], 10, 64)
		if err != nil {
			panic(err)
		}
		return n
	}
	resource, limit := int(number(2)), unix.Rlimit{Cur: number(3), Max: number(4)}
	if err := unix.Setrlimit(resource, &limit); err != nil {
		panic(err)
	}
	var ends []string
	var last error
	for _, script := range os.Args[5:] {
		w, err := Start(context.Background(), Options{Path: os.Args[1], Protocol: Level4})
		if err != nil {
			panic(err)
		}
		_, err = w.Evaluate(script)
		w.Kill()
		exit := new(ExitError)
		if err != nil && !errors.As(err, &exit) {
			panic(err)
		}
		ends, last = append(ends, fmt.Sprint(exit.Code, exit.Deterministic())), err
	}
	var own unix.Rlimit
	if err := unix.Getrlimit(resource, &own); err != nil || own != limit {
		panic(fmt.Sprint("its own limit is ", own, err))
	}
	fmt.Printf("%s\n%v\n", strings.Join(ends, ", "), last)
}
