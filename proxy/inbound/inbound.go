// Package inbound is the sidecar's listener for what others dial on its pod: it
// finds out who they are, by mutual TLS or not at all, and what they speak, by
// the pod's own declaration or by looking; asks ingress policy about the
// connection and each request; and passes on what is allowed to the application
// at the address that was dialled.
//
// The package owns the order of these steps. It does not own policy (policy),
// TLS (internal/identity) or message handling (proxy/exchange).
package inbound

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"time"

	hauberkv1 "github.com/hauberk-mesh/hauberk/api/gen/hauberk/v1"
	"github.com/hauberk-mesh/hauberk/internal/identity"
	"github.com/hauberk-mesh/hauberk/internal/names"
	"github.com/hauberk-mesh/hauberk/policy"
	"github.com/hauberk-mesh/hauberk/proxy/authz"
	"github.com/hauberk-mesh/hauberk/proxy/connections"
	"github.com/hauberk-mesh/hauberk/proxy/directory"
	"github.com/hauberk-mesh/hauberk/proxy/exchange"
	"github.com/hauberk-mesh/hauberk/proxy/hangup"
	"github.com/hauberk-mesh/hauberk/proxy/relay"
	"github.com/hauberk-mesh/hauberk/proxy/sniff"
	"github.com/hauberk-mesh/hauberk/proxy/socket"
	"github.com/hauberk-mesh/hauberk/proxy/telemetry"
)

// Times of the phases before a protocol is known.
const (
	handshakeTimeout = 10 * time.Second
	// silentWait is how long a plain client may be silent before the server is
	// allowed to speak first.
	silentWait = 250 * time.Millisecond
	// tunnelSilentWait is the same for a client that has proved its identity.
	tunnelSilentWait = 50 * time.Millisecond
	lineWait         = 10 * time.Second
	refusalWait      = time.Second
)

// Options of a Server; all are needed unless said otherwise.
type Options struct {
	Directory   *directory.Directory
	Observer    *telemetry.Observer
	Connections *connections.Registry
	Gate        *connections.Gate
	// TLS proves the own identity and requires one of the client.
	TLS *tls.Config
	// OriginalDestination is where a connection was going.
	OriginalDestination func(net.Conn) (netip.AddrPort, error)
	// Foreign allows destinations that are not the pod's own addresses: for
	// listeners whose destination is configured, not captured.
	Foreign bool
	// Dial reaches the application, without being redirected.
	Dial      func(ctx context.Context, network, address string) (net.Conn, error)
	Principal func() string
	Timeouts  exchange.Timeouts
	Hangups   *hangup.Watcher
	Log       *slog.Logger
}

// Server handles connections to the pod.
type Server struct {
	Options
	tls *tls.Config
}

// New makes a server.
func New(o Options) *Server { return &Server{Options: o, tls: withHello(o.TLS)} }

// connection is one accepted connection.
type connection struct {
	*Server
	raw    net.Conn
	client *exchange.Conn // raw, or the TLS on it
	source netip.AddrPort
	target netip.AddrPort
	live   *connections.Live
	pass   *connections.Pass

	mtls     *tls.Conn // nil for a plain client
	peer     identity.Peer
	workload *directory.Ref[directory.Workload] // the peer's
	opaque   []byte                             // bytes of a handshake that is not for us
	unread   bool                               // what it carries may be requests that are not read
}

// Handle carries one connection to its end.
func (s *Server) Handle(ctx context.Context, raw net.Conn) {
	c := &connection{Server: s, raw: raw}
	if err := c.open(); err != nil {
		s.Observer.Refused(telemetry.Inbound, "original_destination")
		s.Log.Warn("inbound connection refused", "peer", raw.RemoteAddr().String(), "error", err.Error())
		socket.Abort(raw)
		return
	}
	if c.pass = s.Gate.Enter(c.source.Addr(), raw); c.pass == nil {
		return
	}
	defer c.pass.Leave()
	c.live = s.Connections.Add(telemetry.Inbound, raw, c.target.String())
	defer s.Connections.Remove(c.live)
	stop := context.AfterFunc(ctx, func() { socket.Abort(raw) })
	defer stop()
	if !c.identify(ctx) {
		return
	}
	defer func() { c.workload.Release() }()
	if c.mtls != nil {
		c.live.OnRecheck(c.trusted)
	}
	c.carry(ctx)
}

// late is for a ClientHello that came after the client was taken for a plain
// one that waits: a lost packet is no reason to deny.
func (c *connection) late(ctx context.Context) {
	if !c.handshake(ctx) {
		return
	}
	if c.mtls != nil {
		c.workload.Release()
		c.workload = nil
		if c.peer.PodUID != "" {
			c.workload = c.Directory.HoldUID(ctx, c.peer.PodUID)
		}
		c.live.OnRecheck(c.trusted)
	}
	c.carry(ctx)
}

func (c *connection) open() error {
	target, err := c.OriginalDestination(c.raw)
	if err != nil {
		return err
	}
	source, ok := c.raw.RemoteAddr().(*net.TCPAddr)
	if !ok {
		return fmt.Errorf("peer address %v is not TCP", c.raw.RemoteAddr())
	}
	c.target = target
	c.source = netip.AddrPortFrom(source.AddrPort().Addr().Unmap(), uint16(source.Port))
	if !c.Foreign && !c.Directory.Self().Workload.Owns(target.Addr()) {
		return fmt.Errorf("destination %s is not an address of this pod", target)
	}
	c.client = exchange.NewConn(c.raw)
	return nil
}

// identify finds out whether and as whom the client proves itself. False means
// that the connection was ended.
func (c *connection) identify(ctx context.Context) bool {
	strict := c.Directory.Self().Workload.Strict(c.target.Port())
	wait := silentWait
	if strict || c.declared() == hauberkv1.AppProtocol_APP_PROTOCOL_HTTP1 {
		wait = handshakeTimeout // nothing else can begin this connection
	}
	_ = c.raw.SetReadDeadline(time.Now().Add(wait))
	err := c.client.R.WaitByte()
	_ = c.raw.SetReadDeadline(time.Time{})
	if err == nil && c.client.R.Buffered()[0] == tlsRecordHandshake {
		if !c.handshake(ctx) {
			return false
		}
	}
	if c.pass.Ended() {
		return false
	}
	if c.mtls == nil && strict {
		c.Observer.Refused(telemetry.Inbound, "plaintext")
		c.Log.Info("plaintext connection refused: PeerAuthentication of this port is STRICT",
			"source_address", c.source.String(), "target_address", c.target.String())
		rec := c.record(telemetry.ProtocolTCP)
		c.Observer.Turned(policy.Ingress, &rec, c.source.Addr(), "the connection is plaintext, and PeerAuthentication of the port is STRICT")
		socket.Abort(c.raw)
		return false
	}
	if c.mtls == nil {
		if c.Directory.Mesh().Node(c.source.Addr()) == "" {
			c.workload = c.Directory.HoldIP(ctx, c.source.Addr())
		}
		return true
	}
	if c.peer.PodUID != "" {
		c.workload = c.Directory.HoldUID(ctx, c.peer.PodUID)
	}
	return true
}

func (c *connection) handshake(ctx context.Context) bool {
	start := time.Now()
	t, first, err := accept(ctx, c.raw, c.client.R, c.tls, handshakeTimeout)
	if err != nil {
		if c.pass.Ended() {
			return false // the gate has told
		}
		c.Observer.Handshake(telemetry.Inbound, time.Since(start), err)
		c.Log.Info("mTLS handshake refused", "source_address", c.source.String(), "target_address", c.target.String(), "error", err.Error())
		// crypto/tls has sent the alert that says why; let it arrive.
		c.raw.Close()
		return false
	}
	if t == nil {
		// crypto/tls took what it needed; the client may have sent more.
		c.opaque = append(first, c.client.R.Buffered()...)
		c.client.R.Discard(len(c.client.R.Buffered()))
		return true
	}
	c.Observer.Handshake(telemetry.Inbound, time.Since(start), nil)
	peer, err := identity.PeerOf(t.ConnectionState())
	if err != nil {
		c.Log.Info("mTLS peer refused", "source_address", c.source.String(), "error", err.Error())
		socket.Abort(c.raw)
		return false
	}
	c.client.R.Release()
	c.mtls, c.peer, c.client = t, peer, exchange.NewConn(t)
	return true
}

// trusted judges a live connection by its certificates: expired ones, and ones
// of a root that was removed, end it.
func (c *connection) trusted() error {
	if c.mtls == nil {
		return nil
	}
	state := c.mtls.ConnectionState()
	if leaf := state.PeerCertificates[0]; time.Now().After(leaf.NotAfter) {
		return fmt.Errorf("certificate of %s has expired", c.peer.ID)
	}
	if verify := c.TLS.VerifyConnection; verify != nil {
		return verify(state)
	}
	return nil
}

// flow is what policy sees of the connection, with the facts of this moment.
// unknown says that those of the peer's pod are missing.
func (c *connection) flow(self *directory.Self) (flow policy.Flow, unknown bool) {
	source := policy.Endpoint{Addr: c.source.Addr()}
	w := c.workload.Value()
	unknown = !c.workload.Known()
	if c.mtls != nil {
		source.Principal = c.peer.ID.String()
		// Facts of another identity under this pod's UID are nobody's.
		if w != nil && w.Proto.GetSpiffeId() != source.Principal {
			w = nil
		}
		unknown = w == nil && c.peer.PodUID != ""
	} else if node := c.Directory.Mesh().Node(c.source.Addr()); node != "" {
		source.Host, source.HostOf = true, node
	}
	source.Workload = authz.PolicyOf(w)
	destination := policy.Endpoint{Addr: c.target.Addr(), Workload: self.Workload.Workload, Principal: c.Principal()}
	return authz.Flow(source, destination, c.target.Port(), c.mtls != nil), unknown
}

// evaluate asks about a request, nil for the connection as bytes. flow is where
// the facts are put together.
func (c *connection) evaluate(flow *policy.Flow, request *policy.HTTPRequest) (policy.Verdict, *policy.Set) {
	self := c.Directory.Self()
	facts, unknown := c.flow(self)
	*flow = facts
	flow.HTTP = request
	return authz.Decide(self.Set, policy.Ingress, flow, authz.Doubt{Unread: c.unread, Peer: unknown}), self.Set
}

func (c *connection) project() policy.Projection {
	self := c.Directory.Self()
	flow, _ := c.flow(self)
	return self.Set.ProjectConnection(policy.Ingress, &flow)
}

func (c *connection) declared() hauberkv1.AppProtocol {
	return c.Directory.Self().Workload.Proto.GetPortProtocols()[uint32(c.target.Port())]
}

// carry finds the protocol and passes on what policy allows.
func (c *connection) carry(ctx context.Context) {
	declared := c.declared()
	switch {
	case c.opaque != nil:
		c.unread = true // the application's own TLS
		c.relay(ctx)
	case declared == hauberkv1.AppProtocol_APP_PROTOCOL_HTTP1:
		c.serveHTTP(ctx)
	case declared == hauberkv1.AppProtocol_APP_PROTOCOL_TCP, declared == hauberkv1.AppProtocol_APP_PROTOCOL_TLS:
		c.unread = declared != hauberkv1.AppProtocol_APP_PROTOCOL_TCP
		c.relay(ctx)
	default: // HTTP/2 and gRPC too: servers of those often speak HTTP/1.1 beside it
		c.detect(ctx)
	}
}

// detect looks at the first bytes. Where policy depends on requests nothing is
// passed on before they are known, however long the client is silent: a server
// that speaks first needs its protocol declared there.
func (c *connection) detect(ctx context.Context) {
	var wait time.Duration
	switch projection := c.project(); {
	case projection == policy.Mixed, c.declared() != hauberkv1.AppProtocol_APP_PROTOCOL_UNSPECIFIED:
		wait = c.Timeouts.Idle
	case projection == policy.AllDenied:
		wait = refusalWait // to say no in the client's own language
	case c.mtls != nil && c.mtls.ConnectionState().NegotiatedProtocol != names.ALPNTCP:
		// The peer says that it will send a request. It is not believed, only
		// waited for: a slow one must not be taken for silence.
		wait = c.Timeouts.Idle
	case c.mtls != nil:
		wait = tunnelSilentWait
	default:
		wait = silentWait
	}
	protocol := sniff.Detect(c.client.Conn, c.client.R, wait, lineWait)
	if d := c.declared(); protocol != sniff.HTTP1 && protocol != sniff.TLS &&
		(d == hauberkv1.AppProtocol_APP_PROTOCOL_HTTP2 || d == hauberkv1.AppProtocol_APP_PROTOCOL_GRPC) {
		protocol = sniff.HTTP2 // which refuses what is none
	}
	c.unread = protocol.Unread()
	switch protocol {
	case sniff.TLS:
		if c.mtls == nil {
			c.late(ctx)
			return
		}
		c.relay(ctx)
	case sniff.HTTP1:
		c.serveHTTP(ctx)
	case sniff.HTTP2:
		c.serveHTTP2(ctx)
	case sniff.Ended:
		c.client.Close()
	case sniff.Silent:
		if c.project() == policy.Mixed {
			c.Observer.Refused(telemetry.Inbound, "silent")
			socket.Abort(c.raw)
			return
		}
		c.relay(ctx)
	default:
		c.relay(ctx)
	}
}

func (c *connection) record(protocol string) telemetry.Record {
	self := c.Directory.Self()
	rec := telemetry.Record{Direction: telemetry.Inbound, Protocol: protocol, Start: time.Now(),
		Destination: telemetry.Party{Principal: c.Principal(), Namespace: self.Workload.Namespace, Workload: self.Workload.Display(),
			Pod: self.Workload.Name},
		PeerAddress: c.source.String(), TargetAddress: c.target.String(), Node: self.Workload.Node, Asked: c.target}
	if w := c.workload.Value(); w != nil {
		rec.Source = telemetry.Party{Namespace: w.Namespace, Workload: w.Display(), Pod: w.Name}
	}
	if c.mtls != nil {
		rec.Source.Principal = c.peer.ID.String()
	}
	return rec
}

func (c *connection) route(rec *telemetry.Record) *telemetry.Route {
	security := telemetry.SecurityNone
	if c.mtls != nil {
		security = telemetry.SecurityMTLS
	}
	return c.Observer.Route(telemetry.RouteKey{Direction: telemetry.Inbound, SourceNamespace: rec.Source.Namespace,
		SourceWorkload: rec.Source.Workload, DestinationNamespace: rec.Destination.Namespace, DestinationApp: rec.Destination.Workload,
		Protocol: rec.Protocol, Security: security})
}

// relay asks policy about the connection as a whole and passes bytes on.
func (c *connection) relay(ctx context.Context) {
	rec := c.record(telemetry.ProtocolTCP)
	route, trace := c.route(&rec), telemetry.Trace{}
	var up net.Conn
	end := func(flag string, err error) {
		socket.Abort(c.client)
		rec.Flag = flag
		if err != nil {
			rec.Error = err.Error()
		}
		c.Observer.Connection(route, &rec, &trace)
	}
	verdict, set := c.evaluate(&policy.Flow{}, nil)
	rec.Verdict, rec.Decided = verdict, true
	c.Observer.Decision(set, &rec.Verdict, &rec, c.source.Addr())
	if !rec.Verdict.Allowed() {
		end(exchange.FlagDenied, nil)
		return
	}
	c.pass.Opened()
	up, err := c.Dial(ctx, "tcp", c.target.String())
	if err != nil {
		end(exchange.FlagNoUpstream, err)
		return
	}
	c.live.SetProtocol(telemetry.ProtocolTCP)
	if err := c.live.OnRecheck(func() error {
		if err := c.trusted(); err != nil {
			return err
		}
		if v, set := c.evaluate(&policy.Flow{}, nil); !v.Allowed() {
			return errors.New(authz.Refusal(set, &v))
		}
		return nil
	}); err != nil {
		socket.Abort(up)
		end(exchange.FlagDenied, err)
		return
	}
	stop := context.AfterFunc(ctx, func() { socket.Abort(up) })
	defer stop()
	route.Opened()
	first := c.opaque
	if first == nil {
		first = c.client.R.Buffered()
	}
	result := relay.Run(relay.End{Conn: c.client.Conn, First: first}, relay.End{Conn: up}, route.Received(), route.Sent())
	c.client.R.Discard(len(c.client.R.Buffered()))
	c.client.R.Release()
	rec.Received, rec.Sent = result.FromA, result.FromB
	if err := errors.Join(result.ErrA, result.ErrB); err != nil {
		rec.Flag, rec.Error = "reset", err.Error()
	}
	c.Observer.Connection(route, &rec, &trace)
}
