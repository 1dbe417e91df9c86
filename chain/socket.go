package chain

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/enginery/enginery/upgrade"
)

// Reply is what a client of a socket is told: what became of an input, or what a message was answered with.
type Reply struct {
	Height  int64  `json:"height,omitempty"`  // of the block; 0: the input is in none
	AppHash string `json:"appHash,omitempty"` // after the block

	*Outcome
	Result *Result `json:"result,omitempty"`
}

// SocketOptions are those of Serve.
type SocketOptions struct {
	Interval time.Duration // from a block to the next, if there is something to do; 0: none
	Most     int           // inputs of a block; 0: 1000
	Report   func(*Block)  // nil: nobody
	Held     func(error)   // told why a block cannot be made, before it is tried again; nil: Serve returns the error
	Retry    time.Duration // until then
}

// waiting is an input that is not in a block yet.
type waiting struct {
	in   *Input
	from *client
}

type client struct {
	mu   sync.Mutex
	conn net.Conn
	gone bool
	open sync.WaitGroup // inputs that have no answer yet, and messages that have no result
}

// stalled is how long an answer may take to write. Blocks wait for it, once for each client.
const stalled = time.Second

// tell answers. Who does not read, or is gone, is answered no more, and can ask the store.
func (c *client) tell(r Reply) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.gone {
		return
	}
	c.conn.SetWriteDeadline(time.Now().Add(stalled))
	if err := json.NewEncoder(c.conn).Encode(r); err != nil { // perhaps in the middle of a line
		c.gone = true
		c.conn.Close()
	}
}

// Serve makes blocks of what clients write to a socket, inputs in lines, until the context ends or the listener is closed. Each line is answered
// when its block is committed, and each message again when it has a result. Without inputs it makes blocks as long as they do something.
//
// An input that this node cannot do, such as the adoption of a version that it does not have, is refused before it gets into a block.
func (n *Node) Serve(ctx context.Context, l net.Listener, o SocketOptions) error {
	if o.Most == 0 {
		o.Most = 1000
	}
	var clients sync.WaitGroup
	defer clients.Wait()
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	context.AfterFunc(ctx, func() { l.Close() })
	inputs := make(chan waiting, o.Most)
	clients.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				stop(err)
				return
			}
			clients.Go(func() {
				end := context.AfterFunc(ctx, func() { conn.Close() })
				defer end()
				defer conn.Close()
				n.read(ctx, conn, inputs)
			})
		}
	})
	return n.makeBlocks(ctx, inputs, o)
}

// read reads what a client writes.
func (n *Node) read(ctx context.Context, conn net.Conn, inputs chan<- waiting) {
	c := &client{conn: conn}
	s := bufio.NewScanner(conn)
	s.Buffer(nil, Line)
	for s.Scan() {
		in, err := ParseInput(s.Bytes())
		if err == nil && in.Type == BlockType {
			err = fmt.Errorf("a %q is for files; a node with a socket says itself where blocks end", BlockType)
		}
		if err == nil {
			err = n.can(ctx, in)
		}
		if err != nil {
			o := &Outcome{Status: Refused, Reason: err.Error()}
			if in != nil {
				o.Sender, o.Seq, o.Type = in.Sender, in.Seq, in.Type
			}
			c.tell(Reply{Outcome: o})
			continue
		}
		c.open.Add(1)
		select {
		case inputs <- waiting{in, c}:
		case <-ctx.Done():
			return
		}
	}
	if err := s.Err(); errors.Is(err, bufio.ErrTooLong) {
		c.tell(Reply{Outcome: &Outcome{Status: Refused, Reason: fmt.Sprintf("a line is longer than %d bytes", Line)}})
	}
	answered := make(chan struct{})
	go func() {
		c.open.Wait()
		close(answered)
	}()
	for ticker := time.Tick(time.Second); !hungUp(conn); {
		select {
		case <-answered:
			return
		case <-ctx.Done():
			return
		case <-ticker:
		}
	}
}

// hungUp reports whether who is at the other end of a Unix socket does not read any more either: a result may never come.
func hungUp(conn net.Conn) (gone bool) {
	c, ok := conn.(*net.UnixConn)
	if !ok {
		return false
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return true
	}
	err = raw.Control(func(fd uintptr) {
		p := []unix.PollFd{{Fd: int32(fd)}}
		n, err := unix.Poll(p, 0)
		gone = err == nil && n > 0 && p[0].Revents&(unix.POLLHUP|unix.POLLERR) != 0
	})
	return gone || err != nil
}

// can says whether this node could do what an input says.
func (n *Node) can(ctx context.Context, in *Input) error {
	switch in.Type {
	case "adopt", "init":
		return host{n: n}.CheckVersion(ctx, upgrade.Adoption{Version: in.Version, Index: in.Index, Classification: in.Classification})
	}
	return nil
}

// makeBlocks makes blocks until the context ends.
func (n *Node) makeBlocks(ctx context.Context, inputs <-chan waiting, o SocketOptions) error {
	var pending []waiting
	asked := make(map[string]*client) // by Input.resultKey
	busy, err := n.busy(ctx)
	if err != nil {
		return err
	}
	for {
		if len(pending) == 0 && !busy {
			select {
			case w := <-inputs:
				pending = append(pending, w)
			case <-ctx.Done():
				return ended(ctx)
			}
		}
		for more := true; more && len(pending) < o.Most; {
			select {
			case w := <-inputs:
				pending = append(pending, w)
			default:
				more = false
			}
		}
		next := make([]*Input, len(pending))
		for i, w := range pending {
			next[i] = w.in
		}
		b, err := n.Make(ctx, next)
		if ctx.Err() != nil && err != nil {
			return ended(ctx)
		}
		if err != nil {
			if o.Held == nil {
				return err
			}
			o.Held(err)
			if !sleep(ctx, o.Retry) {
				return ended(ctx)
			}
			continue
		}
		for i, w := range pending {
			outcome := b.Inputs[i]
			w.from.tell(Reply{Height: b.Height, AppHash: b.AppHash, Outcome: &outcome})
			if w.in.Type == "deliver" && outcome.Status == Accepted {
				asked[w.in.resultKey()] = w.from
			} else {
				w.from.open.Done()
			}
		}
		pending = nil
		for _, r := range b.Results {
			key := (&Input{Sender: r.Sender, Seq: r.Seq}).resultKey()
			if c := asked[key]; c != nil {
				c.tell(Reply{Height: b.Height, Result: &r})
				c.open.Done()
				delete(asked, key)
			}
		}
		if o.Report != nil {
			o.Report(b)
		}
		if busy = b.Busy(); !sleep(ctx, o.Interval) {
			return ended(ctx)
		}
	}
}

func ended(ctx context.Context) error {
	if err := context.Cause(ctx); !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}

func sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-ctx.Done():
		return false
	}
}

// Listen listens on a Unix socket that only this user may write to.
func (n *Node) Listen(path string) (net.Listener, error) {
	if info, err := os.Stat(path); err == nil {
		if info.Mode()&os.ModeSocket == 0 {
			return nil, fmt.Errorf("listening on %s: it is there already, and no socket", path)
		}
		if conn, err := net.Dial("unix", path); err == nil {
			conn.Close()
			return nil, fmt.Errorf("listening on %s: another process does already", path)
		}
		if err := os.Remove(path); err != nil { // of a node that was killed
			return nil, err
		}
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	return l, os.Chmod(path, 0o600)
}
