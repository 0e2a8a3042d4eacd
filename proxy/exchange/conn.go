// Package exchange carries HTTP/1.1 requests from a client's connection to an
// upstream's and the responses back: one at a time, in order, bodies streamed
// with backpressure. It owns what is hop-by-hop, message framing on each side,
// 100-continue, upgrades, and the time that each phase may take.
//
// It does not own who may send what (the Handler decides), which upstream is
// used, or syntax (proxy/http1).
package exchange

import (
	"net"
	"sync/atomic"
	"time"

	"github.com/hauberk-mesh/hauberk/proxy/http1"
)

// Timeouts bound the phases of an exchange.
type Timeouts struct {
	Idle     time.Duration // between requests of one connection
	Head     time.Duration // from the first byte of a head to its last
	Body     time.Duration // without progress of a body
	Write    time.Duration // without progress of a write
	Response time.Duration // from the request's end to the response's head
}

// DefaultTimeouts are what the sidecar uses. The response's is long: long
// polling is legitimate, and the application knows better.
var DefaultTimeouts = Timeouts{
	Idle: 5 * time.Minute, Head: 10 * time.Second, Body: 5 * time.Minute, Write: time.Minute, Response: time.Hour,
}

// Conn is a connection that speaks HTTP/1.1.
type Conn struct {
	net.Conn
	R *http1.Reader
	W *http1.Writer

	// Used says that an exchange was completed on it before.
	Used bool
	// Expires is when it must no longer be used for a new request; zero for
	// never.
	Expires time.Time
	// Sidecar says that the other end is one of ours, which frames as we do.
	Sidecar bool
	// Generation is for whoever pools it: which trust it was made under.
	Generation int64

	readBy, writeBy time.Time
	idle            atomic.Bool
}

// WakeIdle ends the wait for a next request, if the connection is in one.
func (c *Conn) WakeIdle() {
	if c.idle.CompareAndSwap(true, false) {
		_ = c.Conn.SetReadDeadline(time.Unix(1, 0))
	}
}

// NewConn wraps c.
func NewConn(c net.Conn) *Conn {
	return &Conn{Conn: c, R: http1.NewReader(c, http1.DefaultLimits), W: http1.NewWriter(c)}
}

// NetConn is the connection underneath.
func (c *Conn) NetConn() net.Conn { return c.Conn }

// CloseWrite ends our direction.
func (c *Conn) CloseWrite() error {
	if h, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return h.CloseWrite()
	}
	return c.Conn.Close()
}

// readWithin arms the read deadline. Deadlines are timers in the runtime and
// cost more than looking at a clock: one that is at most a quarter early stays.
func (c *Conn) readWithin(now time.Time, d time.Duration) {
	by := now.Add(d)
	if early := by.Sub(c.readBy); early >= 0 && early < d/4 {
		return
	}
	c.readBy = by
	_ = c.Conn.SetReadDeadline(by)
}

func (c *Conn) writeWithin(now time.Time, d time.Duration) {
	by := now.Add(d)
	if early := by.Sub(c.writeBy); early >= 0 && early < d/4 {
		return
	}
	c.writeBy = by
	_ = c.Conn.SetWriteDeadline(by)
}

// ClearDeadlines is for a connection that becomes a tunnel or is pooled.
func (c *Conn) ClearDeadlines() {
	c.readBy, c.writeBy = time.Time{}, time.Time{}
	_ = c.Conn.SetDeadline(time.Time{})
}
