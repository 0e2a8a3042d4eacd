// Package upstream chooses among the endpoints of a destination and keeps
// connections to them: mutual TLS, verified against the endpoint's identity and
// pod, where it has a sidecar, plain TCP where it has none.
//
// It owns the choice, pools, and the setting aside of endpoints that fail. It
// does not own what a destination is (proxy/directory) or whether it may be
// reached (policy).
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

	"github.com/hauberk-mesh/hauberk/internal/names"
	"github.com/hauberk-mesh/hauberk/proxy/directory"
	"github.com/hauberk-mesh/hauberk/proxy/exchange"
	"github.com/hauberk-mesh/hauberk/proxy/http2"
)

// Times and bounds.
const (
	// DialTimeout is for the dialer that Options.Dial is made of.
	DialTimeout = 5 * time.Second

	handshakeTimeout = 5 * time.Second
	forgetAfter      = 5 * time.Minute

	defaultIdle    = 60 * time.Second
	defaultMaxIdle = 256
)

// ErrNoEndpoint is a destination without an endpoint that may be used.
var ErrNoEndpoint = errors.New("no endpoint is ready")

// Handshakes is told of each handshake, and of each endpoint that could not be
// used: for one of the reasons connect and handshake.
type Handshakes interface {
	Handshake(direction string, took time.Duration, err error)
	EndpointFailed(reason string)
}

// Options of a Set.
type Options struct {
	// TLS makes the configuration for an endpoint's identity: it must accept
	// that identity and pod only. It is called once an endpoint.
	TLS func(spiffeID, podUID string, alpn ...string) (*tls.Config, error)
	// Dial connects; it must not be redirected back to the proxy.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Self is the own pod's UID: a service that is dialled from itself is not
	// reached through a sidecar, because there is none in between.
	Self string
	// Zone is where the own pod runs, empty where that is not known; it may be nil.
	Zone func() string
	// Handshakes may be nil.
	Handshakes Handshakes
	// HTTP2 bounds the phases of connections that carry streams.
	HTTP2 http2.Timeouts
}

// Set is the endpoints that are in use. It is safe for concurrent use.
type Set struct {
	makeTLS     func(spiffeID, podUID string, alpn ...string) (*tls.Config, error)
	dial        func(ctx context.Context, network, address string) (net.Conn, error)
	self        string
	zone        func() string
	handshakes  Handshakes
	idleTimeout time.Duration
	maxIdle     int
	http2       http2.Timeouts
	draining    atomic.Bool
	generation  atomic.Int64 // of trust; see Flush

	mu        sync.Mutex
	endpoints map[key]*endpoint // guarded by mu
}

// New makes an empty set.
func New(o Options) *Set {
	if o.HTTP2 == (http2.Timeouts{}) {
		o.HTTP2 = http2.Timeouts{Preface: handshakeTimeout, Head: handshakeTimeout, Write: time.Minute, Stall: 5 * time.Minute}
	}
	o.HTTP2.Idle = defaultIdle
	return &Set{http2: o.HTTP2, makeTLS: o.TLS, dial: o.Dial, self: o.Self, zone: o.Zone, handshakes: o.Handshakes,
		idleTimeout: defaultIdle, maxIdle: defaultMaxIdle, endpoints: make(map[key]*endpoint)}
}

// Run closes what is idle for too long until ctx ends, then everything idle.
func (s *Set) Run(ctx context.Context) error {
	ticker := time.NewTicker(10 * time.Second)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			s.draining.Store(true)
			s.sweep(time.Now(), true)
			s.closeStreams()
			return nil
		case now := <-ticker.C:
			s.sweep(now, false)
		}
	}
}

// Drain stops pooling and closes what is pooled.
func (s *Set) Drain() {
	s.draining.Store(true)
	s.sweep(time.Now(), true)
}

// Flush closes what is pooled, because those who are trusted changed, and what
// is in use now when it comes back.
func (s *Set) Flush() {
	s.generation.Add(1)
	s.sweep(time.Now(), true)
}

func (s *Set) sweep(now time.Time, all bool) {
	s.mu.Lock()
	list := make([]*endpoint, 0, len(s.endpoints))
	for k, e := range s.endpoints {
		list = append(list, e)
		if e.live.Load() == 0 && now.UnixNano()-e.used.Load() > int64(forgetAfter) {
			delete(s.endpoints, k)
		}
	}
	s.mu.Unlock()
	for _, e := range list {
		e.sweep(now, all)
	}
}

// closeStreams has no connection outlive its streams any more.
func (s *Set) closeStreams() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.endpoints {
		e.streams.Close()
	}
}

func (s *Set) endpoint(d *directory.Endpoint, now time.Time) (*endpoint, error) {
	k := keyOf(d) // mu is held by the caller
	if s.self != "" && d.PodUID == s.self {
		k.SPIFFEID = ""
	}
	if e, ok := s.endpoints[k]; ok {
		e.used.Store(now.UnixNano())
		return e, nil
	}
	e := &endpoint{key: k, set: s}
	e.streams = http2.NewPool(http2.Options{Limits: http2.DefaultLimits, Timeouts: s.http2}, e.dialHTTP2)
	if k.SPIFFEID != "" {
		var err error
		if e.http, err = s.makeTLS(k.SPIFFEID, k.PodUID, names.ALPNHTTP1); err != nil {
			return nil, fmt.Errorf("endpoint %s: %w", k.Addr, err)
		}
		if e.http2, err = s.makeTLS(k.SPIFFEID, k.PodUID, names.ALPNHTTP2, names.ALPNTCP); err != nil {
			return nil, fmt.Errorf("endpoint %s: %w", k.Addr, err)
		}
		if e.tcp, err = s.makeTLS(k.SPIFFEID, k.PodUID, names.ALPNTCP); err != nil {
			return nil, fmt.Errorf("endpoint %s: %w", k.Addr, err)
		}
	}
	e.used.Store(now.UnixNano())
	s.endpoints[k] = e
	return e, nil
}

// Choice is an endpoint that was chosen for one request or connection.
type Choice struct {
	Endpoint directory.Endpoint
	// Meshed says that the connection will be mutual TLS.
	Meshed bool
	e      *endpoint
}

// HTTP gives a connection for one request: a pooled one, or a new one.
func (s *Set) HTTP(ctx context.Context, c Choice, fresh bool) (*exchange.Conn, error) {
	e := c.e
	now := time.Now()
	if !fresh {
		if conn := e.takeIdle(now); conn != nil {
			e.live.Add(1)
			return conn, nil
		}
	}
	generation := s.generation.Load() // before the handshake
	conn, expires, err := e.dial(ctx, e.http)
	if err != nil {
		if ctx.Err() == nil {
			e.failed(time.Now())
		}
		return nil, err
	}
	e.worked()
	e.live.Add(1)
	wrapped := exchange.NewConn(conn)
	wrapped.Expires, wrapped.Generation, wrapped.Sidecar = expires, generation, e.meshed()
	return wrapped, nil
}

// Release takes a connection of HTTP back. A latency of zero is not observed.
func (s *Set) Release(c Choice, conn *exchange.Conn, reusable bool, latency time.Duration) {
	c.e.live.Add(-1)
	if latency > 0 {
		c.e.observe(latency)
	}
	if reusable && len(conn.R.Buffered()) == 0 {
		c.e.keep(conn, time.Now())
		return
	}
	conn.R.Release()
	conn.W.Reset()
	conn.Close()
}

// TryStream gives a stream on a connection that there is; nil without one. It
// does not wait.
func (s *Set) TryStream(c Choice) *http2.Stream {
	stream := c.e.streams.Try()
	if stream != nil {
		c.e.live.Add(1)
	}
	return stream
}

// Stream gives a stream for one request, on a new connection if there is none
// that takes another.
func (s *Set) Stream(ctx context.Context, c Choice) (*http2.Stream, error) {
	stream, dialled, err := c.e.streams.Take(ctx)
	if err != nil {
		if dialled && ctx.Err() == nil {
			c.e.failed(time.Now())
		}
		return nil, err
	}
	if dialled {
		c.e.worked()
	}
	c.e.live.Add(1)
	return stream, nil
}

// ReleaseStream ends a request on a stream. A latency of zero is not observed.
func (s *Set) ReleaseStream(c Choice, latency time.Duration) {
	c.e.live.Add(-1)
	if latency > 0 {
		c.e.observe(latency)
	}
}

// TCP gives a connection of its own; Done must be called when it has ended.
func (s *Set) TCP(ctx context.Context, c Choice) (net.Conn, error) {
	conn, _, err := c.e.dial(ctx, c.e.tcp)
	if err != nil {
		if ctx.Err() == nil {
			c.e.failed(time.Now())
		}
		return nil, err
	}
	c.e.worked()
	c.e.live.Add(1)
	return conn, nil
}

// Trusted judges a live connection to c by the certificate that it was made
// with: an expired one, or one of a root that was removed, ends it.
func (s *Set) Trusted(c Choice, conn net.Conn) error {
	t, ok := conn.(*tls.Conn)
	if !ok {
		return nil
	}
	state := t.ConnectionState()
	if leaf := state.PeerCertificates[0]; time.Now().After(leaf.NotAfter) {
		return fmt.Errorf("certificate of %s has expired", c.e.key.SPIFFEID)
	}
	if c.e.tcp == nil || c.e.tcp.VerifyConnection == nil {
		return nil
	}
	return c.e.tcp.VerifyConnection(state)
}

// Done ends a connection of TCP.
func (s *Set) Done(c Choice) { c.e.live.Add(-1) }

// State is one endpoint as the admin shows it.
type State struct {
	Address, PodUID, SPIFFEID string
	Live, Idle                int64
	LatencyMicros             int64
	Failures                  int64
	AsideUntil                time.Time
}

// States is all endpoints in use.
func (s *Set) States() []State {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []State
	for k, e := range s.endpoints {
		e.mu.Lock()
		idle := len(e.idle)
		e.mu.Unlock()
		idle += e.streams.Len()
		st := State{Address: k.Addr.String(), PodUID: k.PodUID, SPIFFEID: k.SPIFFEID, Live: e.live.Load(), Idle: int64(idle),
			LatencyMicros: e.ewma.Load() / 1000, Failures: e.fails.Load()}
		if until := e.until.Load(); until != 0 {
			st.AsideUntil = time.Unix(0, until)
		}
		list = append(list, st)
	}
	return list
}
