package http2

import (
	"context"
	"net"
	"slices"
	"sync"
	"time"
)

// Pool is the connections to one server. There is one as long as that one
// takes another stream.
type Pool struct {
	dial    func(ctx context.Context) (conn net.Conn, expires time.Time, err error)
	options Options

	mu      sync.Mutex
	conns   []pooled      // guarded by mu
	dialing chan struct{} // guarded by mu; closed when the dial under way is over
	closed  bool          // guarded by mu: new connections end with their streams
}

type pooled struct {
	*Conn
	expires time.Time // zero for never
}

// NewPool makes an empty pool. dial gives a connection and when it must not be
// used for new streams any more.
func NewPool(o Options, dial func(ctx context.Context) (net.Conn, time.Time, error)) *Pool {
	return &Pool{dial: dial, options: o}
}

// Try promises a stream on a connection that there is; nil without one.
func (p *Pool) Try() *Stream {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.try()
}

// try is Try; mu is held.
func (p *Pool) try() *Stream {
	for i := 0; i < len(p.conns); {
		c := p.conns[i]
		if !c.expires.IsZero() && time.Now().After(c.expires) {
			p.conns = slices.Delete(p.conns, i, i+1)
			go c.Shutdown()
			continue
		}
		if s, err := c.NewStream(); err == nil {
			return s
		}
		if c.finished() {
			p.conns = slices.Delete(p.conns, i, i+1)
			continue
		}
		i++
	}
	return nil
}

// finished reports whether the connection takes no streams ever again.
func (c *Conn) finished() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err != nil || c.state != open || c.nextID >= maxStreamID-2
}

// Take promises a stream, on a new connection if it must be. dialled says that
// it had to be made, by this call.
func (p *Pool) Take(ctx context.Context) (s *Stream, dialled bool, err error) {
	for {
		p.mu.Lock()
		if s := p.try(); s != nil {
			p.mu.Unlock()
			return s, false, nil
		}
		wait := p.dialing
		if wait == nil {
			p.dialing = make(chan struct{})
			p.mu.Unlock()
			s, err := p.connect(ctx)
			return s, true, err
		}
		p.mu.Unlock()
		select {
		case <-wait:
		case <-ctx.Done():
			return nil, false, context.Cause(ctx)
		}
	}
}

func (p *Pool) connect(ctx context.Context) (s *Stream, err error) {
	nc, expires, err := p.dial(ctx)
	p.mu.Lock()
	defer p.mu.Unlock()
	close(p.dialing)
	p.dialing = nil
	if err != nil {
		return nil, err
	}
	c := NewClient(nc, p.options)
	s, err = c.NewStream()
	if p.closed {
		go c.Shutdown() // once the stream is done
		return s, err
	}
	p.conns = append(p.conns, pooled{c, expires})
	return s, err
}

// Shutdown lets all connections end when their streams have; streams from now
// on get new ones.
func (p *Pool) Shutdown() {
	p.mu.Lock()
	conns := p.conns
	p.conns = nil
	p.mu.Unlock()
	for _, c := range conns {
		c.Shutdown()
	}
}

// Close is Shutdown for good: what is dialled from now on ends with its streams.
func (p *Pool) Close() {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.Shutdown()
}

// Abort ends all connections and their streams.
func (p *Pool) Abort() {
	p.mu.Lock()
	p.closed = true
	conns := p.conns
	p.conns = nil
	p.mu.Unlock()
	for _, c := range conns {
		c.Close()
	}
}

// Len is how many connections there are.
func (p *Pool) Len() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.conns)
}
