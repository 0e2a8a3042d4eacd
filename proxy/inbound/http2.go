package inbound

import (
	"context"
	"net"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/hauberk-mesh/hauberk/policy"
	"github.com/hauberk-mesh/hauberk/proxy/authz"
	"github.com/hauberk-mesh/hauberk/proxy/exchange"
	"github.com/hauberk-mesh/hauberk/proxy/http1"
	"github.com/hauberk-mesh/hauberk/proxy/http2"
	"github.com/hauberk-mesh/hauberk/proxy/streams"
	"github.com/hauberk-mesh/hauberk/proxy/telemetry"
)

// streamed is the streams.Handler of one connection. Its requests share
// connections to the application with nobody else's: who is behind a
// connection may matter to the application.
type streamed struct {
	*connection
	ctx   context.Context
	base  telemetry.Record
	route atomic.Pointer[telemetry.Route] // of the request before, which is usually the same
	app   *http2.Pool
	xfcc  string
	xff   string
}

func (c *connection) serveHTTP2(ctx context.Context) {
	c.pass.Opened()
	c.live.SetProtocol(telemetry.ProtocolHTTP2)
	h := &streamed{connection: c, ctx: ctx, base: c.record(telemetry.ProtocolHTTP2), xff: c.source.Addr().String()}
	h.route.Store(c.route(&h.base))
	if c.mtls != nil {
		h.xfcc = "By=" + c.Principal() + ";URI=" + c.peer.ID.String()
	}
	h.app = http2.NewPool(http2.Options{Limits: http2.DefaultLimits, Timeouts: streams.ConnTimeouts(c.Timeouts)},
		func(ctx context.Context) (net.Conn, time.Time, error) {
			conn, err := c.Dial(ctx, "tcp", c.target.String())
			return conn, time.Time{}, err
		})
	defer h.app.Abort()
	first := append([]byte(nil), c.client.R.Buffered()...)
	c.client.R.Discard(len(first))
	c.client.R.Release()
	options := &streams.Options{Timeouts: c.Timeouts, DefaultAuthority: c.target.String()}
	err := streams.Serve(ctx, c.client.Conn, first, h, options, func(s *streams.Conn) {
		c.live.OnRecheck(func() error {
			if err := c.trusted(); err != nil {
				return err
			}
			if n := s.Recheck(); n > 0 {
				c.Log.Info("requests under way ended by a change of policy", "direction", telemetry.Inbound,
					"source_address", c.source.String(), "requests", n)
			}
			return nil
		})
		c.live.OnDrain(s.Shutdown)
		c.live.OnWake(s.ShutdownIdle)
		if c.Connections.Stopping() {
			s.ShutdownIdle()
		}
	})
	if err != nil {
		c.Log.Info("inbound HTTP/2 connection ended", "source_address", c.source.String(), "error", err.Error())
	}
}

// Request implements streams.Handler.
func (h *streamed) Request() streams.Request {
	r := requestPool.Get().(*streamedRequest)
	r.streamed, r.rec = h, h.base
	return r
}

var requestPool = sync.Pool{New: func() any { return new(streamedRequest) }}

// Bad implements streams.Handler.
func (h *streamed) Bad(start time.Time, status int, err error) {
	rec := h.base
	rec.Start, rec.Status, rec.Flag, rec.Error, rec.GRPCStatus = start, status, exchange.FlagBadRequest, err.Error(), streams.NoGRPCStatus
	h.Observer.Request(h.bound(&rec), &rec, &telemetry.Trace{})
}

// bound is the metrics of a record.
func (h *streamed) bound(rec *telemetry.Record) *telemetry.Route {
	r := h.route.Load()
	if rec.Source.Workload != r.Key.SourceWorkload || rec.Source.Namespace != r.Key.SourceNamespace {
		r = h.connection.route(rec)
		h.route.Store(r)
	}
	return r
}

// streamedRequest is the streams.Request of one request.
type streamedRequest struct {
	*streamed
	rec   telemetry.Record
	trace telemetry.Trace
	flow  policy.Flow
}

// Admit asks ingress policy about the request.
func (r *streamedRequest) Admit(x *streams.Exchange) *exchange.Refusal {
	if w := r.workload.Value(); w != nil {
		r.rec.Source.Namespace, r.rec.Source.Workload, r.rec.Source.Pod = w.Namespace, w.Display(), w.Name
	}
	r.trace = startStream(r.ctx, r.Observer, x)
	r.rec.Method, r.rec.Path, r.rec.Host = x.HTTP.Method, x.HTTP.Path, x.HTTP.Host
	return r.judge(x)
}

func startStream(ctx context.Context, o *telemetry.Observer, x *streams.Exchange) telemetry.Trace {
	var p telemetry.Propagated
	for i := range x.Request.Fields {
		if f := &x.Request.Fields[i]; f.Kind == http1.Traceparent || f.Kind == http1.B3 {
			p.Field(f.Kind, view(f.Name), view(f.Value))
		}
	}
	return o.StartStream(ctx, telemetry.Inbound, x.HTTP.Method, x.HTTP.Path, x.Request.GRPC, &p)
}

func view(s string) []byte { return unsafe.Slice(unsafe.StringData(s), len(s)) }

// judge asks ingress policy, with the facts of this moment.
func (r *streamedRequest) judge(x *streams.Exchange) *exchange.Refusal {
	verdict, set := r.evaluate(&r.flow, &x.HTTP)
	r.rec.Verdict, r.rec.Decided = verdict, true
	r.Observer.Decision(set, &r.rec.Verdict, &r.rec, r.source.Addr())
	if verdict.Allowed() {
		return nil
	}
	refusal := &exchange.Refusal{Status: 403, Flag: exchange.FlagDenied, Text: authz.Refusal(set, &verdict)}
	if r.Directory.Mesh().Proto.GetDenyResponseHeader() {
		refusal.FieldName, refusal.FieldValue = "X-Hauberk-Denied-By", authz.Name(&verdict)
	}
	return refusal
}

// Recheck asks again. Only a denial is told: the request was counted.
func (r *streamedRequest) Recheck(x *streams.Exchange, _ *http2.Stream) *exchange.Refusal {
	if verdict, _ := r.evaluate(&r.flow, &x.HTTP); verdict.Allowed() {
		return nil
	}
	return r.judge(x)
}

// Try implements streams.Request.
func (r *streamedRequest) Try(*streams.Exchange) *http2.Stream { return r.app.Try() }

// Connect gives a stream to the application.
func (r *streamedRequest) Connect(ctx context.Context, _ *streams.Exchange, _ int) (*http2.Stream, error) {
	s, _, err := r.app.Take(ctx)
	return s, err
}

// Release implements streams.Request.
func (r *streamedRequest) Release(*streams.Exchange) {}

// Fields says who the client is, as for HTTP/1.1.
func (r *streamedRequest) Fields(_ *streams.Exchange, w http2.Writer) {
	if r.xfcc != "" {
		w.Field("x-forwarded-client-cert", r.xfcc)
	}
	w.Field("x-forwarded-for", r.xff)
	if r.trace.Valid() {
		var b [64]byte
		w.Once("traceparent", r.trace.Append(b[:0]))
	}
}

// Done tells the outcome.
func (r *streamedRequest) Done(x *streams.Exchange) {
	finish(&r.rec, x)
	r.Observer.Request(r.bound(&r.rec), &r.rec, &r.trace)
	*r = streamedRequest{}
	requestPool.Put(r)
}

func finish(rec *telemetry.Record, x *streams.Exchange) {
	rec.Start, rec.Status, rec.Flag, rec.Received, rec.Sent = x.Start, x.Status, x.Flag, x.Received, x.Sent
	rec.GRPC, rec.GRPCStatus = x.Request.GRPC, x.GRPCStatus
	if x.Err != nil {
		rec.Error = x.Err.Error()
	}
}
