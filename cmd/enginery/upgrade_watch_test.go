package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/creack/pty"
	"github.com/hinshun/vt10x"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"github.com/enginery/enginery/chain"
	"github.com/enginery/enginery/internal/exit"
	"github.com/enginery/enginery/internal/swingsettest"
	"github.com/enginery/enginery/internal/vattest"
)

// console is a program on a terminal, and what a person sees there.
type console struct {
	t      testing.TB
	cmd    *exec.Cmd
	pty    *os.File // the person's end
	tty    *os.File // the program's
	vt     vt10x.Terminal
	ended  chan error
	before *term.State
}

// onTerminal starts a program on a terminal that is of a kind, as TERM says it, and has that size and a text on it.
func onTerminal(t testing.TB, kind string, width, height int, text string, args ...string) *console {
	t.Helper()
	c := &console{t: t, vt: vt10x.New(vt10x.WithSize(width, height)), ended: make(chan error, 1)}
	var err error
	c.pty, c.tty, err = pty.Open()
	must(t, err)
	t.Cleanup(func() { c.pty.Close() })
	c.resize(width, height)
	fmt.Fprint(c.tty, text)
	c.before, err = term.GetState(int(c.tty.Fd()))
	must(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	t.Cleanup(cancel)
	c.cmd = exec.CommandContext(ctx, args[0], args[1:]...)
	c.cmd.Env = append(os.Environ(), "TERM="+kind)
	c.cmd.Stdin, c.cmd.Stdout, c.cmd.Stderr = c.tty, c.tty, c.tty
	c.cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true, Setctty: true}
	must(t, c.cmd.Start())
	go func() {
		for r := bufio.NewReader(c.pty); c.vt.Parse(r) == nil; {
		}
	}()
	go func() { c.ended <- c.cmd.Wait() }()
	return c
}

func (c *console) resize(width, height int) {
	c.t.Helper()
	c.vt.Resize(width, height) // first, as terminals do: what the program draws when it hears of it finds the room
	must(c.t, pty.Setsize(c.pty, &pty.Winsize{Rows: uint16(height), Cols: uint16(width)}))
}

func (c *console) screen() string { return c.vt.String() }

// sees waits until all of it is on the screen at once, wherever its lines are broken.
func (c *console) sees(texts ...string) {
	c.t.Helper()
	until := time.Now().Add(time.Minute)
	for {
		screen, missing := c.screen(), ""
		for _, text := range texts {
			if !strings.Contains(strings.Join(strings.Fields(screen), " "), text) {
				missing = text
			}
		}
		if missing == "" {
			return
		}
		if time.Now().After(until) {
			c.t.Fatalf("%q does not come on the screen, which is\n%s", missing, screen)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// ends waits for the program's end, and sees that the terminal is as it was.
func (c *console) ends(status int) {
	c.t.Helper()
	<-c.ended
	if got := c.cmd.ProcessState.ExitCode(); got != status {
		c.t.Errorf("status %d, expected %d; the screen is\n%s", got, status, c.screen())
	}
	after, err := term.GetState(int(c.tty.Fd()))
	must(c.t, err)
	if fmt.Sprint(after) != fmt.Sprint(c.before) {
		c.t.Errorf("the terminal is left with %+v, expected %+v", after, c.before)
	}
	fmt.Fprint(c.tty, "next$ ")
	c.sees("next$")
	if c.vt.Mode()&vt10x.ModeAltScreen != 0 || !c.vt.CursorVisible() {
		c.t.Errorf("the terminal is left with the mode %b, and a cursor: %t", c.vt.Mode(), c.vt.CursorVisible())
	}
}

// TestWatchTerminal watches a rollout under way on a real terminal.
func TestWatchTerminal(t *testing.T) {
	t.Parallel()
	const from, to = "agoric-upgrade-16", "agoric-upgrade-18"
	folder := t.TempDir()
	n, err := chain.Open(chain.Options{Dir: folder, Engines: vattest.Engines(t, from, to), Jobs: 2})
	must(t, err)
	defer n.Close()
	var inputs []*chain.Input
	gov := func(fields map[string]any) {
		t.Helper()
		fields["sender"], fields["seq"] = "gov", len(inputs)+1
		line, err := json.Marshal(fields)
		must(t, err)
		in, err := chain.ParseInput(line)
		must(t, err)
		inputs = append(inputs, in)
	}
	made := 0
	block := func() {
		t.Helper()
		b, err := n.Make(t.Context(), inputs[made:])
		must(t, err)
		for _, o := range b.Inputs {
			if o.Status != chain.Accepted {
				t.Fatalf("%+v", o)
			}
		}
		made = len(inputs)
	}
	ids := make([]string, 2)
	gov(map[string]any{"type": "init", "version": from, "settings": json.RawMessage(`{"budget":{"block":{"upgrades":1},"full":{"upgrades":0}}}`)})
	for i, bundle := range swingsettest.Bundles(t, "peer-1", "peer-throws") {
		var parsed struct{ EndoZipBase64Sha512 string }
		must(t, json.Unmarshal(bundle, &parsed))
		ids[i] = "b1-" + parsed.EndoZipBase64Sha512
		gov(map[string]any{"type": "bundle", "bundle": json.RawMessage(bundle)})
	}
	for _, vat := range []string{"mint", "bank", "shop"} {
		gov(map[string]any{"type": "install", "vat": vat, "bundle": ids[0], "parameters": map[string]any{"name": vat}})
	}
	block()
	watch := []string{"enginery", "upgrade", "watch", folder, "--interval", "20ms"}
	c := onTerminal(t, "xterm", 120, 30, "", watch...)
	c.sees("block 1, app hash", "There is no rollout yet. This waits for one")
	_, err = c.pty.WriteString("\x03")
	must(t, err)
	c.ends(exit.Interrupted)
	gov(map[string]any{"type": "adopt", "version": to})
	gov(map[string]any{"type": "rollout", "maxFailures": 1, "steps": []map[string]any{{"vat": "mint"}, {"vat": "bank", "bundle": ids[1]}, {"vat": "shop"}}})
	block()

	shell := append([]string{"sh", "-c", `set -m; "$@"; echo stopped; read line; fg >/dev/null`, "sh"}, watch...)
	prompt := "prompt$ enginery upgrade watch\r\n"
	c = onTerminal(t, "xterm", 120, 30, prompt, shell...)
	c.sees("block 2, app hash "+n.AppHash(), "running, about 2 blocks to go", "1 upgraded, 0 failed, 0 skipped of 3", "next: bank, shop", "current "+to+" 1 vat vats:")
	if screen := c.screen(); strings.Contains(screen, "prompt$") {
		t.Errorf("what was there is still to be seen:\n%s", screen)
	}
	_, err = c.pty.WriteString("\x1a") // Ctrl-Z, and in the shell fg
	must(t, err)
	c.sees("prompt$ enginery upgrade watch stopped")
	_, err = c.pty.WriteString("\n")
	must(t, err)
	c.sees("about 2 blocks to go")
	// What is narrow is used as far as it goes, and drawn at once.
	c.resize(44, 12)
	c.sees("about 2 blocks to go", "waiting: 0 deliveries", " …")
	c.resize(100, 40)
	c.sees("about 2 blocks to go", "active")
	// A block later it shows that, in the same place.
	block()
	c.sees("block 3, app hash "+n.AppHash()[:40], "running, about 1 block to go", "1 upgraded, 1 failed, 0 skipped of 3", "bank", "suspended, paused", "was "+from, "Error: version 2 does")
	if screen := c.screen(); strings.Count(screen, "app hash") != 1 || strings.Contains(screen, "block 2, ") {
		t.Errorf("something of the block before is left:\n%s", screen)
	}
	_, err = c.pty.WriteString("\x03")
	must(t, err)
	c.ends(exit.Interrupted)
	if screen := c.screen(); !strings.HasPrefix(screen, "prompt$ enginery upgrade watch") || strings.Contains(screen, "app hash") || !strings.Contains(screen, "interrupted") {
		t.Errorf("after Ctrl-C the screen is\n%s", screen)
	}

	// Ctrl-Z does nothing where no shell waits. A terminal whose size nobody has set, and the end of the rollout: it stays to be read.
	c = onTerminal(t, "xterm", 80, 24, prompt, watch...)
	must(t, pty.Setsize(c.pty, &pty.Winsize{}))
	c.sees("block 3, app hash")
	_, err = c.pty.WriteString("\x1a")
	must(t, err)
	block()
	c.ends(0)
	c.sees("prompt$ enginery upgrade watch", "block 4, app hash", "is done", "2 upgraded, 1 failed")

	// No terminal, and one that can show nothing but lines.
	line := fmt.Sprintf("block 3: upgrade-failed v2 %s → %s", from, to)
	status, out := run(t.Context(), t, filepath.Join(folder, "home"), watch[1:]...)
	if status != 0 || !strings.Contains(out, line+" Error: version 2 does not start\n") || strings.Contains(out, "\x1b") {
		t.Errorf("without a terminal: status %d\n%s", status, out)
	}
	c = onTerminal(t, "dumb", 120, 30, prompt, watch...)
	c.ends(0)
	c.sees("prompt$ enginery upgrade watch block 1: initialized", line)
}
