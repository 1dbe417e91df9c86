package repository

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
)

// slowest is the rate, in bytes a second, below which a transfer is given up.
const slowest = 4 << 10

// base returns the transport of a registry's requests. A connection on which nothing moves for some time ends.
func base(stall time.Duration) http.RoundTripper {
	dial := (&net.Dialer{Timeout: stall, KeepAlive: 30 * time.Second}).DialContext
	return transport.NewUserAgent(&http.Transport{
		Proxy: http.ProxyFromEnvironment,
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			c, err := dial(ctx, network, address)
			if err != nil {
				return nil, err
			}
			return &movingConn{c, stall}, nil
		},
		ForceAttemptHTTP2:     true,
		MaxIdleConnsPerHost:   parallel,
		IdleConnTimeout:       stall,
		TLSHandshakeTimeout:   stall,
		ResponseHeaderTimeout: stall,
		DisableCompression:    true, // bytes as they are hashed
	}, "enginery")
}

// movingConn is a connection that ends when nothing moves on it, in either direction.
type movingConn struct {
	net.Conn
	stall time.Duration
}

func (c *movingConn) Read(p []byte) (int, error) {
	return c.move(c.Conn.Read, p)
}

func (c *movingConn) Write(p []byte) (int, error) {
	return c.move(c.Conn.Write, p)
}

func (c *movingConn) move(f func([]byte) (int, error), p []byte) (int, error) {
	c.SetDeadline(time.Now().Add(c.stall))
	n, err := f(p)
	if n > 0 {
		c.SetDeadline(time.Now().Add(c.stall))
	}
	return n, err
}

// session is a registry's HTTP client for one kind of access, which authenticates when it is first needed.
type session struct {
	r      *registry
	action string
	mu     sync.Mutex
	rt     http.RoundTripper
}

// transport returns what authenticates each request.
func (s *session) transport(ctx context.Context) (http.RoundTripper, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.rt != nil {
		return s.rt, nil
	}
	auth, err := authn.Resolve(ctx, authn.DefaultKeychain, s.r.repo)
	if err != nil {
		return nil, fmt.Errorf("looking for credentials: %w", err)
	}
	s.rt, err = transport.NewWithContext(ctx, s.r.repo.Registry, auth, s.r.base, []string{s.r.repo.Scope(s.action)})
	return s.rt, err
}

func (s *session) do(req *http.Request) (*http.Response, error) {
	rt, err := s.transport(req.Context())
	if err != nil {
		return nil, err
	}
	return (&http.Client{Transport: rt, CheckRedirect: checkRedirect}).Do(req)
}

// errRedirect says that a registry sends us where it has no business.
var errRedirect = errors.New("redirected to an address of a private network")

// checkRedirect keeps a registry from having us ask machines that only we reach.
func checkRedirect(req *http.Request, via []*http.Request) error {
	if len(via) >= 10 {
		return errors.New("more than 10 redirects")
	}
	to := req.URL.Hostname()
	if to == via[0].URL.Hostname() {
		return nil
	}
	if ip, err := netip.ParseAddr(to); to == "localhost" || err == nil && (ip.IsPrivate() || ip.IsLoopback() || ip.IsLinkLocalUnicast() || ip.IsUnspecified()) {
		return fmt.Errorf("%w: %s", errRedirect, req.URL.Host)
	}
	return nil
}

// statusError is an answer that is not the one that was asked for.
type statusError struct {
	err   *transport.Error
	after time.Duration // the registry's wish
}

func (e *statusError) Error() string { return e.err.Error() }
func (e *statusError) Unwrap() error { return e.err }

// checkStatus returns the error of a response of another status. It reads the response's end.
func checkStatus(resp *http.Response, want ...int) error {
	err := transport.CheckError(resp, want...)
	if err == nil {
		return nil
	}
	resp.Body.Close()
	var terr *transport.Error
	if !errors.As(err, &terr) {
		return err
	}
	seconds, _ := strconv.Atoi(resp.Header.Get("Retry-After"))
	return &statusError{terr, time.Duration(max(seconds, 0)) * time.Second}
}

// final reports whether an error will be the same the next time.
func final(err error) bool {
	var status *transport.Error
	if errors.As(err, &status) {
		switch code := status.StatusCode; code {
		case http.StatusRequestTimeout, http.StatusTooManyRequests:
			return false
		case http.StatusNotImplemented, http.StatusHTTPVersionNotSupported:
			return true
		default:
			return code < 500
		}
	}
	var dns *net.DNSError
	var cert *tls.CertificateVerificationError
	return errors.Is(err, ErrNotFound) || errors.Is(err, errRedirect) || errors.As(err, &cert) ||
		errors.As(err, &dns) && dns.IsNotFound
}

// errUnusable begins what is wrong with an answer of the right status.
var errUnusable = errors.New("unusable answer")

// tries counts what was tried of one thing, and waits between.
type tries struct {
	r       *registry
	since   time.Time // when the registry was last known to be well
	pause   *backoff.ExponentialBackOff
	garbage int // answers
}

// maxGarbage bounds how often an answer that is none is asked for again: something on the way may be at fault, or the registry.
const maxGarbage = 2

func (r *registry) try() *tries {
	b := backoff.NewExponentialBackOff()
	b.InitialInterval, b.MaxInterval, b.Multiplier = 100*time.Millisecond, 5*time.Second, 2
	return &tries{r: r, since: time.Now(), pause: b}
}

// well says that there was progress.
func (t *tries) well() {
	t.since = time.Now()
	t.pause.Reset()
}

// again waits until it is time to try again after an error, and returns nil; or what the caller should return.
func (t *tries) again(ctx context.Context, err error) error {
	var corrupt *CorruptError
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("%s: %w", t.r.name, context.Cause(ctx))
	case errors.Is(err, ErrNotFound):
		return err
	case errors.As(err, &corrupt):
		if t.garbage++; t.garbage > maxGarbage {
			return err
		}
	case errors.Is(err, errUnusable):
		if t.garbage++; t.garbage > maxGarbage {
			return &UnavailableError{t.r.name, err}
		}
	case final(err):
		return &UnavailableError{t.r.name, err}
	}
	pause := t.pause.NextBackOff()
	var status *statusError
	if errors.As(err, &status) {
		pause = max(pause, status.after)
	}
	if time.Since(t.since)+pause > t.r.patience {
		if corrupt != nil {
			return err
		}
		return &UnavailableError{t.r.name, err}
	}
	select {
	case <-ctx.Done():
		return fmt.Errorf("%s: %w", t.r.name, context.Cause(ctx))
	case <-time.After(pause):
		return nil
	}
}

// ask asks a registry for something small until it answers, within its patience.
func ask[T any](ctx context.Context, r *registry, f func(context.Context) (T, error)) (T, error) {
	limited, cancel := context.WithTimeout(ctx, r.patience)
	defer cancel()
	for t := r.try(); ; {
		answer, err := f(limited)
		if err == nil {
			return answer, nil
		}
		if err := t.again(ctx, err); err != nil {
			var zero T
			return zero, err
		}
	}
}
