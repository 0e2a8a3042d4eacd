package upstream

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hauberk-mesh/hauberk/proxy/directory"
	"github.com/hauberk-mesh/hauberk/proxy/exchange"
	"github.com/hauberk-mesh/hauberk/proxy/http2"
	"github.com/hauberk-mesh/hauberk/proxy/socket"
)

// endpoint is the state kept about one address and identity, shared by all
// destinations that it stands behind.
type endpoint struct {
	key   key
	set   *Set
	http  *tls.Config // nil without a sidecar
	http2 *tls.Config
	tcp   *tls.Config
	used  atomic.Int64 // Unix nanoseconds
	live  atomic.Int64 // requests and connections under way
	ewma  atomic.Int64 // nanoseconds, of the latency of responses
	fails atomic.Int64 // in a row
	until atomic.Int64 // set aside until, Unix nanoseconds
	soon  atomic.Int64 // the same where too many are set aside

	streams *http2.Pool // connections of HTTP/2, shared by requests

	mu   sync.Mutex
	idle []idleConn // guarded by mu; the newest last
}

type idleConn struct {
	conn  *exchange.Conn
	since time.Time
}

type key struct {
	directory.Endpoint
}

func keyOf(e *directory.Endpoint) key {
	return key{directory.Endpoint{Addr: e.Addr, PodUID: e.PodUID, SPIFFEID: e.SPIFFEID}}
}

func (e *endpoint) meshed() bool { return e.key.SPIFFEID != "" }

// load is what power of two choices compares: the work under way times how
// long each takes.
func (e *endpoint) load() int64 {
	return (e.live.Load() + 1) * max(e.ewma.Load(), int64(time.Millisecond)/10)
}

// observe moves the average by an eighth towards a latency; towards a higher
// one at once (peak EWMA).
func (e *endpoint) observe(d time.Duration) {
	old := e.ewma.Load()
	next := old + (int64(d)-old)/8
	if int64(d) > old {
		next = old + (int64(d)-old)/2
	}
	e.ewma.Store(next)
}

// takeIdle finds a pooled connection that is still open.
func (e *endpoint) takeIdle(now time.Time) *exchange.Conn {
	for {
		e.mu.Lock()
		n := len(e.idle)
		if n == 0 {
			e.mu.Unlock()
			return nil
		}
		c := e.idle[n-1]
		e.idle[n-1] = idleConn{}
		e.idle = e.idle[:n-1]
		e.mu.Unlock()
		if now.Sub(c.since) < e.set.idleTimeout && (c.conn.Expires.IsZero() || now.Before(c.conn.Expires)) && socket.Alive(c.conn) {
			return c.conn
		}
		c.conn.Close()
	}
}

// keep pools a connection for the next request.
func (e *endpoint) keep(c *exchange.Conn, now time.Time) {
	c.R.Release()
	e.mu.Lock()
	if len(e.idle) < e.set.maxIdle && !e.set.draining.Load() && c.Generation == e.set.generation.Load() {
		e.idle = append(e.idle, idleConn{c, now})
		c = nil
	}
	e.mu.Unlock()
	if c != nil {
		c.Close()
	}
}

// sweep closes what was idle for too long, or everything.
func (e *endpoint) sweep(now time.Time, all bool) {
	var old []idleConn
	e.mu.Lock()
	kept := e.idle[:0]
	for _, c := range e.idle {
		if all || now.Sub(c.since) >= e.set.idleTimeout {
			old = append(old, c)
		} else {
			kept = append(kept, c)
		}
	}
	clear(e.idle[len(kept):])
	e.idle = kept
	e.mu.Unlock()
	for _, c := range old {
		c.conn.Close()
	}
	if all {
		e.streams.Shutdown()
	}
}

// dialHTTP2 is for the pool. What was made while the trusted changed is not
// used for a second request.
func (e *endpoint) dialHTTP2(ctx context.Context) (net.Conn, time.Time, error) {
	generation := e.set.generation.Load() // before the handshake
	c, expires, err := e.dial(ctx, e.http2)
	if generation != e.set.generation.Load() {
		expires = time.Unix(1, 0)
	}
	return c, expires, err
}

// dial connects and, with a sidecar on the other end, proves both identities.
func (e *endpoint) dial(ctx context.Context, config *tls.Config) (net.Conn, time.Time, error) {
	raw, err := e.set.dial(ctx, "tcp", e.key.Addr.String())
	if err != nil {
		e.tell(ctx, "connect")
		return nil, time.Time{}, err
	}
	if config == nil {
		return raw, time.Time{}, nil
	}
	start := time.Now()
	t := tls.Client(raw, config)
	err = socket.Handshake(ctx, t, handshakeTimeout)
	if e.set.handshakes != nil {
		e.set.handshakes.Handshake("outbound", time.Since(start), err)
	}
	if err != nil {
		e.tell(ctx, "handshake")
		raw.Close()
		return nil, time.Time{}, &HandshakeError{Addr: e.key.Addr.String(), Err: err}
	}
	state := t.ConnectionState()
	return t, state.PeerCertificates[0].NotAfter, nil
}

// HandshakeError is an endpoint that was reached but did not prove to be whom
// the destination says.
type HandshakeError struct {
	Addr string
	Err  error
}

// Error names the endpoint.
func (e *HandshakeError) Error() string {
	var unknown *net.OpError
	if errors.As(e.Err, &unknown) {
		return fmt.Sprintf("mTLS handshake with %s: %v (is its sidecar running?)", e.Addr, e.Err)
	}
	return fmt.Sprintf("mTLS handshake with %s: %v", e.Addr, e.Err)
}

// Unwrap is the cause.
func (e *HandshakeError) Unwrap() error { return e.Err }
