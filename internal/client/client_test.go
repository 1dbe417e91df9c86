package client

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestRun(t *testing.T) {
	out, err := Run(t.Context(), Command{Name: "sh", Args: []string{"-c", "cat; echo $X"}, Env: []string{"X=y"}, Stdin: strings.NewReader("in ")})
	if string(out) != "in y\n" || err != nil {
		t.Errorf("got %q, %v", out, err)
	}

	_, err = Run(t.Context(), Command{Name: "sh", Args: []string{"-c", `printf 'out'; printf 'one 1%%\rone 2%%\n\ntwo\n' >&2; exit 3`}})
	var exit *ExitError
	if !errors.As(err, &exit) || string(exit.Stdout) != "out" || exit.Error() != "sh: exit status 3: one 2%; two" {
		t.Errorf("got %#v", err)
	}

	_, err = Run(t.Context(), Command{Name: "no-such-program"})
	var missing *MissingError
	if !errors.As(err, &missing) || missing.Program != "no-such-program" {
		t.Errorf("got %#v", err)
	}
}

func TestRunQuiet(t *testing.T) {
	start := time.Now()
	_, err := Run(t.Context(), Command{Name: "sh", Args: []string{"-c", "for i in 1 2 3 4; do sleep 0.2; echo $i; done; sleep 60"}, Quiet: 600 * time.Millisecond})
	var quiet *QuietError
	if !errors.As(err, &quiet) {
		t.Errorf("got %#v", err)
	}
	if took := time.Since(start); took < 1300*time.Millisecond || took > 20*time.Second {
		t.Errorf("ended after %v: output did not count, or silence did not", took)
	}
}

// A cancelled program takes its children along.
func TestRunCancel(t *testing.T) {
	pids := filepath.Join(t.TempDir(), "pids")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() {
		_, err := Run(ctx, Command{Name: "sh", Args: []string{"-c", twoSleepers, "sh", pids}})
		done <- err
	}()
	running := waitForPids(t, pids)
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	waitForEnd(t, running)
}

// A program does not outlive a process that is killed.
func TestRunKilled(t *testing.T) {
	if pids := os.Getenv("CLIENT_TEST_PIDS"); pids != "" {
		Run(context.Background(), Command{Name: "sh", Args: []string{"-c", `echo $$ >"$1.tmp"; mv "$1.tmp" "$1"; exec sleep 300`, "sh", pids}})
		return
	}
	pids := filepath.Join(t.TempDir(), "pids")
	self := exec.Command(os.Args[0], "-test.run=^TestRunKilled$")
	self.Env = append(os.Environ(), "CLIENT_TEST_PIDS="+pids)
	if err := self.Start(); err != nil {
		t.Fatal(err)
	}
	running := waitForPids(t, pids)
	self.Process.Kill()
	self.Wait()
	waitForEnd(t, running)
}

const twoSleepers = `sleep 300 & echo $$ $! >"$1.tmp"; mv "$1.tmp" "$1"; wait`

func waitForPids(t *testing.T, file string) []int {
	t.Helper()
	for range 500 {
		if b, err := os.ReadFile(file); err == nil {
			var pids []int
			for _, f := range strings.Fields(string(b)) {
				pid, err := strconv.Atoi(f)
				if err != nil {
					t.Fatal(err)
				}
				pids = append(pids, pid)
			}
			return pids
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("the program did not start")
	return nil
}

func waitForEnd(t *testing.T, pids []int) {
	t.Helper()
	for _, pid := range pids {
		for i := 0; alive(pid); i++ {
			if i == 500 {
				unix.Kill(pid, unix.SIGKILL)
				t.Fatalf("process %d goes on", pid)
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
}

// alive reports whether a process runs; one that nobody has waited for yet does not.
func alive(pid int) bool {
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	return err == nil && !strings.Contains(string(stat), ") Z ")
}
