package chain_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/enginery/enginery/chain"
	"github.com/enginery/enginery/vat"
)

// A client that does not read what it is told holds up nobody else.
func TestClientStalls(t *testing.T) {
	t.Parallel()
	n := open(t, t.TempDir(), func(string) (*vat.Engine, error) { return nil, nil }, chain.Options{Keep: 1})
	defer n.Close()
	path := filepath.Join(t.TempDir(), "s")
	l, err := n.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithTimeout(t.Context(), 2*time.Minute)
	defer stop()
	served := make(chan error, 1)
	go func() { served <- n.Serve(ctx, l, chain.SocketOptions{}) }()
	dial := func() net.Conn {
		conn, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		context.AfterFunc(ctx, func() { conn.Close() })
		return conn
	}
	// More answers than a socket holds: each is longer than its input. In the end the node gives this client up.
	deaf := dial()
	written := 0
	for ; written < 100_000; written++ {
		if _, err := fmt.Fprintf(deaf, `{"sender":"deaf","seq":%d,"type":"abort"}`+"\n", 1_000_000); err != nil {
			break
		}
	}
	if written == 100_000 {
		t.Error("the node reads on what a client sends that does not read")
	}
	hears := dial()
	fmt.Fprintln(hears, `{"sender":"hears","seq":2,"type":"abort"}`)
	answer, err := bufio.NewReader(hears).ReadString('\n')
	if err != nil || !strings.Contains(answer, `"status":"early"`) {
		t.Errorf("the other is told %q, %v", answer, err)
	}
	stop()
	if err := <-served; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// A socket that a node has left behind is taken over, and nothing else that is there.
func TestListen(t *testing.T) {
	t.Parallel()
	n := open(t, t.TempDir(), func(string) (*vat.Engine, error) { return nil, nil }, chain.Options{})
	defer n.Close()
	path := filepath.Join(t.TempDir(), "s")
	l, err := n.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false) // as if it were killed
	if _, err := n.Listen(path); err == nil || !strings.Contains(err.Error(), "another process") {
		t.Errorf("somebody listens already: %v", err)
	}
	if conn, err := net.Dial("unix", path); err != nil {
		t.Errorf("afterwards: %v", err)
	} else {
		conn.Close()
	}
	l.Close()
	if l, err = n.Listen(path); err != nil {
		t.Fatal(err)
	}
	l.Close()
	if err := os.WriteFile(path, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := n.Listen(path); err == nil || !strings.Contains(err.Error(), "no socket") {
		t.Errorf("a file: %v", err)
	}
}
