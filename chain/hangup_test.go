package chain

import (
	"net"
	"path/filepath"
	"testing"
)

// Who has said all waits for answers; who has closed the socket does not.
func TestHungUp(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	server, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	check := func(want bool, when string) {
		t.Helper()
		if got := hungUp(server); got != want {
			t.Errorf("%s: hung up is %t, expected %t", when, got, want)
		}
	}
	check(false, "connected")
	client.(*net.UnixConn).CloseWrite()
	server.Read(make([]byte, 1))
	check(false, "all was said")
	client.Close()
	check(true, "closed")
	server.Close()
	check(true, "closed here")
}
