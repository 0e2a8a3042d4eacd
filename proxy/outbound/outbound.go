// Package outbound is the sidecar's listener for what its own pod dials: it
// finds what stands behind the original destination, asks egress policy,
// chooses an endpoint, and carries requests or bytes there, by mutual TLS where
// the endpoint has a sidecar.
//
// What is known not to be of the mesh is dialled as it was meant; what is not
// known is refused. The package does not own endpoints' choice or pools
// (proxy/upstream) nor message handling (proxy/exchange).
package outbound

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"time"

	hauberkv1 "github.com/hauberk-mesh/hauberk/api/gen/hauberk/v1"
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
	"github.com/hauberk-mesh/hauberk/proxy/upstream"
)

// Times of detection, for ports whose protocol nobody declared.
const (
	firstByteWait = 100 * time.Millisecond
	lineWait      = 10 * time.Second
	maxEndpoints  = 3
)

// Options of a Server; all are needed.
type Options struct {
	Directory   *directory.Directory
	Upstreams   *upstream.Set
	Observer    *telemetry.Observer
	Connections *connections.Registry
	Gate        *connections.Gate
	// OriginalDestination is where a connection was going.
	OriginalDestination func(net.Conn) (netip.AddrPort, error)
	// Dial reaches destinations outside of the mesh, without being redirected.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Principal is the own SPIFFE ID.
	Principal func() string
	Timeouts  exchange.Timeouts
	Hangups   *hangup.Watcher
	Log       *slog.Logger
}

// Server handles the pod's own connections.
type Server struct{ Options }

// New makes a server.
func New(o Options) *Server { return &Server{o} }

// connection is one accepted connection.
type connection struct {
	*Server
	client *exchange.Conn
	target netip.AddrPort
	dest   *directory.Ref[directory.Destination] // nil outside of the mesh
	live   *connections.Live
	unread bool // what is carried as bytes may be requests that are not read
}

// Handle carries one connection to its end.
func (s *Server) Handle(ctx context.Context, raw net.Conn) {
	target, err := s.OriginalDestination(raw)
	if err != nil {
		s.Observer.Refused(telemetry.Outbound, "original_destination")
		s.Log.Warn("outbound connection refused", "peer", raw.RemoteAddr().String(), "error", err.Error())
		socket.Abort(raw)
		return
	}
	// All are of one source, the pod itself.
	pass := s.Gate.Enter(netip.Addr{}, raw)
	if pass == nil {
		return
	}
	defer pass.Leave()
	c := &connection{Server: s, client: exchange.NewConn(raw), target: target}
	c.live = s.Connections.Add(telemetry.Outbound, raw, target.String())
	defer s.Connections.Remove(c.live)
	stop := context.AfterFunc(ctx, func() { socket.Abort(raw) })
	defer stop()

	c.dest, err = s.Directory.HoldDestination(ctx, target)
	switch {
	case errors.Is(err, directory.ErrAbsent):
		c.passThrough(ctx)
		return
	case err != nil:
		s.Observer.Refused(telemetry.Outbound, "destination_unknown")
		s.Log.Warn("outbound connection refused: the control plane has not said what the destination is",
			"target_address", target.String(), "error", err.Error())
		socket.Abort(raw)
		return
	}
	defer c.dest.Release()
	switch c.protocol(ctx) {
	case sniff.HTTP1:
		c.serveHTTP(ctx)
	case sniff.HTTP2:
		c.serveHTTP2(ctx)
	default:
		c.relay(ctx)
	}
}

// protocol decides how the connection is carried. Silence is TCP, so that a
// server which speaks first is heard, unless egress policy depends on requests.
func (c *connection) protocol(ctx context.Context) sniff.Protocol {
	d := c.dest.Value()
	switch {
	case d == nil:
		return sniff.Opaque
	case d.Protocol == hauberkv1.AppProtocol_APP_PROTOCOL_HTTP1:
		return sniff.HTTP1
	case d.Protocol == hauberkv1.AppProtocol_APP_PROTOCOL_TCP, d.Protocol == hauberkv1.AppProtocol_APP_PROTOCOL_TLS:
		c.unread = d.Protocol != hauberkv1.AppProtocol_APP_PROTOCOL_TCP
		return sniff.Opaque
	}
	first := firstByteWait
	if d.Protocol != hauberkv1.AppProtocol_APP_PROTOCOL_UNSPECIFIED || c.dependsOnRequests(ctx, d) {
		first = c.Timeouts.Idle
	} else if serverSpeaksFirst(c.target.Port()) {
		c.unread = true
		return sniff.Opaque
	}
	protocol := sniff.Detect(c.client.Conn, c.client.R, first, lineWait)
	if protocol != sniff.HTTP1 && protocol != sniff.TLS && d.Protocol != hauberkv1.AppProtocol_APP_PROTOCOL_UNSPECIFIED {
		return sniff.HTTP2 // which refuses what is none
	}
	c.unread = protocol.Unread()
	return protocol
}

// serverSpeaksFirst knows the ports of protocols in which the client waits.
func serverSpeaksFirst(port uint16) bool {
	switch port {
	case 21, 22, 25, 110, 143, 587, 3306, 4369, 5900:
		return true
	}
	return false
}

// dependsOnRequests reports whether egress policy can't be decided by the
// connection alone, for any endpoint.
func (c *connection) dependsOnRequests(ctx context.Context, d *directory.Destination) bool {
	self := c.Directory.Self()
	if len(self.Set.Egress) == 0 {
		return false
	}
	for i := range d.Endpoints {
		flow, _, release := c.flow(ctx, self, &d.Endpoints[i])
		p := self.Set.ProjectConnection(policy.Egress, &flow)
		release()
		if p == policy.Mixed {
			return true
		}
	}
	return false
}

// flow is the flow to an endpoint. Facts of the endpoint's pod are asked for
// only when there is egress policy; unknown says that they are missing then.
func (c *connection) flow(ctx context.Context, self *directory.Self, e *directory.Endpoint) (flow policy.Flow, unknown bool, release func()) {
	release = func() {}
	peer := policy.Endpoint{Addr: e.Addr.Addr()}
	if node := c.Directory.Mesh().Node(e.Addr.Addr()); node != "" {
		peer.Host, peer.HostOf = true, node
	}
	if len(self.Set.Egress) > 0 {
		var ref *directory.Ref[directory.Workload]
		if e.PodUID != "" {
			ref = c.Directory.HoldUID(ctx, e.PodUID)
		} else if !peer.Host {
			ref = c.Directory.HoldIP(ctx, e.Addr.Addr())
		}
		unknown = !ref.Known() || e.PodUID != "" && ref.Value() == nil
		peer.Workload = authz.PolicyOf(ref.Value())
		release = ref.Release
	}
	meshed := e.Meshed()
	if meshed {
		peer.Principal = e.SPIFFEID
	}
	source := policy.Endpoint{Workload: self.Workload.Workload, Principal: c.Principal()}
	if len(self.Workload.Addresses) > 0 {
		source.Addr = self.Workload.Addresses[0]
	}
	return authz.Flow(source, peer, e.Addr.Port(), meshed), unknown, release
}

// admit asks egress policy about an endpoint.
// flow is where the facts are put together.
func (c *connection) admit(ctx context.Context, flow *policy.Flow, e *directory.Endpoint, request *policy.HTTPRequest) policy.Verdict {
	self := c.Directory.Self()
	facts, unknown, release := c.flow(ctx, self, e)
	defer release()
	*flow = facts
	flow.HTTP = request
	return authz.Decide(self.Set, policy.Egress, flow, authz.Doubt{Unread: c.unread, Peer: unknown})
}

// choose picks an endpoint that was not tried and that policy lets it reach.
func (c *connection) choose(d *directory.Destination, tried []upstream.Choice) (upstream.Choice, error) {
	if d == nil {
		return upstream.Choice{}, upstream.ErrNoEndpoint
	}
	return c.Upstreams.Pick(d, tried)
}

func (c *connection) party() telemetry.Party {
	self := c.Directory.Self()
	return telemetry.Party{Principal: c.Principal(), Namespace: self.Workload.Namespace, Workload: self.Workload.Display(), Pod: self.Workload.Name}
}

// partyOf is an endpoint as telemetry names it; one outside of the mesh has no
// name.
func partyOf(e *directory.Endpoint) telemetry.Party {
	return telemetry.Party{Principal: e.SPIFFEID, Namespace: e.Namespace, Workload: e.Workload, Pod: e.PodName}
}

func (c *connection) record(protocol string) telemetry.Record {
	rec := telemetry.Record{Direction: telemetry.Outbound, Protocol: protocol, Start: time.Now(), Source: c.party(),
		PeerAddress: c.client.RemoteAddr().String(), TargetAddress: c.target.String(), Node: c.Directory.Self().Workload.Node}
	if d := c.dest.Value(); d != nil {
		rec.Service = d.Service()
	}
	return rec
}

func (c *connection) route(rec *telemetry.Record, choice *upstream.Choice) *telemetry.Route {
	security := telemetry.SecurityNone
	if choice != nil {
		rec.Destination = partyOf(&choice.Endpoint)
		if choice.Meshed {
			security = telemetry.SecurityMTLS
		}
	}
	return c.Observer.Route(telemetry.RouteKey{Direction: telemetry.Outbound, SourceNamespace: rec.Source.Namespace,
		SourceWorkload: rec.Source.Workload, DestinationNamespace: rec.Destination.Namespace, DestinationApp: rec.Destination.Workload,
		Service: rec.Service, Protocol: rec.Protocol, Security: security})
}

// passThrough carries bytes to a destination outside of the mesh. Requests are
// not read on the way, so where policy depends on them only what is certainly
// none may pass.
func (c *connection) passThrough(ctx context.Context) {
	rec := c.record(telemetry.ProtocolTCP)
	e := &directory.Endpoint{Addr: c.target}
	c.unread = true
	if c.dependsOnRequests(ctx, &directory.Destination{Endpoints: []directory.Endpoint{*e}}) {
		protocol := sniff.Detect(c.client.Conn, c.client.R, c.Timeouts.Idle, lineWait)
		c.unread = protocol != sniff.Opaque
	}
	if !c.judge(ctx, &rec, e) {
		return
	}
	up, err := c.Dial(ctx, "tcp", c.target.String())
	c.pipe(ctx, &rec, nil, e, up, err, func() {})
}

// relay carries bytes to an endpoint of the mesh, trying others while none
// has accepted.
func (c *connection) relay(ctx context.Context) {
	rec := c.record(telemetry.ProtocolTCP)
	var tried []upstream.Choice
	for {
		choice, err := c.choose(c.dest.Value(), tried)
		if err != nil {
			c.pipe(ctx, &rec, nil, nil, nil, err, func() {})
			return
		}
		e := &choice.Endpoint
		if !c.judge(ctx, &rec, e) {
			return
		}
		rec.Attempts++
		up, err := c.Upstreams.TCP(ctx, choice)
		if err != nil && ctx.Err() == nil && len(tried)+1 < maxEndpoints {
			c.Observer.Retried()
			c.Log.Info("endpoint failed, trying another", "endpoint", e.Addr.String(), "error", err.Error())
			tried = append(tried, choice)
			if _, more := c.choose(c.dest.Value(), tried); more == nil {
				continue
			}
		}
		c.pipe(ctx, &rec, &choice, e, up, err, func() { c.Upstreams.Done(choice) })
		return
	}
}

// judge asks egress policy about a connection that is carried as bytes.
func (c *connection) judge(ctx context.Context, rec *telemetry.Record, e *directory.Endpoint) bool {
	rec.Verdict, rec.Decided = c.admit(ctx, &policy.Flow{}, e, nil), true
	rec.Destination, rec.Asked = partyOf(e), e.Addr
	c.Observer.Decision(c.Directory.Self().Set, &rec.Verdict, rec, c.client.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap())
	if rec.Verdict.Allowed() {
		return true
	}
	socket.Abort(c.client)
	rec.Flag = exchange.FlagDenied
	trace := telemetry.Trace{}
	c.Observer.Connection(c.route(rec, nil), rec, &trace)
	return false
}

// pipe relays to up, or tells why there is none.
func (c *connection) pipe(ctx context.Context, rec *telemetry.Record, choice *upstream.Choice, e *directory.Endpoint, up net.Conn, err error, done func()) {
	trace := telemetry.Trace{}
	route := c.route(rec, choice)
	if err != nil {
		socket.Abort(c.client)
		rec.Flag, rec.Error = exchange.FlagNoUpstream, err.Error()
		c.Log.Info("outbound connection failed", "target_address", c.target.String(), "error", err.Error())
		c.Observer.Connection(route, rec, &trace)
		return
	}
	defer done()
	c.live.SetProtocol(telemetry.ProtocolTCP)
	if err := c.live.OnRecheck(func() error {
		if choice != nil {
			if err := c.Upstreams.Trusted(*choice, up); err != nil {
				return err
			}
		}
		if v := c.admit(ctx, &policy.Flow{}, e, nil); !v.Allowed() {
			return errors.New(authz.Refusal(c.Directory.Self().Set, &v))
		}
		return nil
	}); err != nil {
		socket.Abort(up)
		rec.Flag, rec.Error = exchange.FlagDenied, err.Error()
		c.Observer.Connection(route, rec, &trace)
		return
	}
	stop := context.AfterFunc(ctx, func() { socket.Abort(up) })
	defer stop()
	route.Opened()
	result := relay.Run(relay.End{Conn: c.client.Conn, First: c.client.R.Buffered()}, relay.End{Conn: up}, route.Received(), route.Sent())
	c.client.R.Discard(len(c.client.R.Buffered()))
	c.client.R.Release()
	rec.Received, rec.Sent = result.FromA, result.FromB
	if err := errors.Join(result.ErrA, result.ErrB); err != nil {
		rec.Flag, rec.Error = "reset", err.Error()
	}
	c.Observer.Connection(route, rec, &trace)
}
