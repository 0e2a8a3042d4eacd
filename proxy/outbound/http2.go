package outbound

import (
	"context"
	"errors"
	"net"
	"sync"
	"time"
	"unsafe"

	"github.com/hauberk-mesh/hauberk/policy"
	"github.com/hauberk-mesh/hauberk/proxy/authz"
	"github.com/hauberk-mesh/hauberk/proxy/exchange"
	"github.com/hauberk-mesh/hauberk/proxy/http1"
	"github.com/hauberk-mesh/hauberk/proxy/http2"
	"github.com/hauberk-mesh/hauberk/proxy/streams"
	"github.com/hauberk-mesh/hauberk/proxy/telemetry"
	"github.com/hauberk-mesh/hauberk/proxy/upstream"
)

// streamed is the streams.Handler of one connection. An endpoint is chosen for
// each request; the connections to endpoints are shared by all of the pod's.
type streamed struct {
	*connection
	ctx  context.Context
	base telemetry.Record

	mu        sync.Mutex
	last      *telemetry.Route // guarded by mu; of the choice before, which is usually the same
	lastRoute upstream.Choice  // guarded by mu
}

func (c *connection) serveHTTP2(ctx context.Context) {
	c.live.SetProtocol(telemetry.ProtocolHTTP2)
	h := &streamed{connection: c, ctx: ctx, base: c.record(telemetry.ProtocolHTTP2)}
	first := append([]byte(nil), c.client.R.Buffered()...)
	c.client.R.Discard(len(first))
	c.client.R.Release()
	options := &streams.Options{Timeouts: c.Timeouts, DefaultAuthority: c.target.String(), KeepVerdict: true}
	err := streams.Serve(ctx, c.client.Conn, first, h, options, func(s *streams.Conn) {
		c.live.OnRecheck(func() error {
			if n := s.Recheck(); n > 0 {
				c.Log.Info("requests under way ended by a change of policy or trust", "direction", telemetry.Outbound,
					"target_address", c.target.String(), "requests", n)
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
		c.Log.Info("outbound HTTP/2 connection ended", "target_address", c.target.String(), "error", err.Error())
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
	h.Observer.Request(h.bound(&rec, &upstream.Choice{}), &rec, &telemetry.Trace{})
}

// bound is the metrics of a record.
func (h *streamed) bound(rec *telemetry.Record, choice *upstream.Choice) *telemetry.Route {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.last != nil && h.lastRoute == *choice {
		rec.Destination = partyOf(&choice.Endpoint)
		return h.last
	}
	h.last, h.lastRoute = h.route(rec, choice), *choice
	return h.last
}

// streamedRequest is the streams.Request of one request.
type streamedRequest struct {
	*streamed
	rec    telemetry.Record
	trace  telemetry.Trace
	choice upstream.Choice
	tried  []upstream.Choice
	sent   time.Time
	facts  policy.Flow
}

// Admit chooses the endpoint and asks egress policy about the request to it.
func (r *streamedRequest) Admit(x *streams.Exchange) *exchange.Refusal {
	var p telemetry.Propagated
	for i := range x.Request.Fields {
		if f := &x.Request.Fields[i]; f.Kind == http1.Traceparent || f.Kind == http1.B3 {
			p.Field(f.Kind, view(f.Name), view(f.Value))
		}
	}
	r.trace = r.Observer.StartStream(r.ctx, telemetry.Outbound, x.HTTP.Method, x.HTTP.Path, x.Request.GRPC, &p)
	r.rec.Method, r.rec.Path, r.rec.Host = x.HTTP.Method, x.HTTP.Path, x.HTTP.Host
	return r.pick(x)
}

func view(s string) []byte { return unsafe.Slice(unsafe.StringData(s), len(s)) }

func (r *streamedRequest) pick(x *streams.Exchange) *exchange.Refusal {
	choice, err := r.choose(r.dest.Value(), r.tried)
	if err != nil {
		return &exchange.Refusal{Status: 503, Flag: exchange.FlagNoUpstream, Text: "hauberk: " + r.serviceName() + ": " + err.Error()}
	}
	r.choice = choice
	return r.judge(x)
}

// judge asks egress policy about the request to the chosen endpoint.
func (r *streamedRequest) judge(x *streams.Exchange) *exchange.Refusal {
	r.rec.Verdict, r.rec.Decided = r.admit(r.ctx, &r.facts, &r.choice.Endpoint, &x.HTTP), true
	r.rec.Destination, r.rec.Asked = partyOf(&r.choice.Endpoint), r.choice.Endpoint.Addr
	set := r.Directory.Self().Set
	r.Observer.Decision(set, &r.rec.Verdict, &r.rec, r.client.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap())
	if r.rec.Verdict.Allowed() {
		return nil
	}
	refusal := &exchange.Refusal{Status: 403, Flag: exchange.FlagDenied, Text: authz.Refusal(set, &r.rec.Verdict)}
	if r.Directory.Mesh().Proto.GetDenyResponseHeader() {
		refusal.FieldName, refusal.FieldValue = "X-Hauberk-Denied-By", authz.Name(&r.rec.Verdict)
	}
	return refusal
}

// Recheck asks about trust and policy again. Only a denial is told: the request
// was counted.
func (r *streamedRequest) Recheck(x *streams.Exchange, s *http2.Stream) *exchange.Refusal {
	if err := r.Upstreams.Trusted(r.choice, s.Conn().NetConn()); err != nil {
		return &exchange.Refusal{Status: 503, Flag: exchange.FlagUpstreamReset, Text: "hauberk: the destination is not trusted any more: " + err.Error()}
	}
	if v := r.admit(r.ctx, &r.facts, &r.choice.Endpoint, &x.HTTP); v.Allowed() {
		return nil
	}
	return r.judge(x)
}

// Try implements streams.Request.
func (r *streamedRequest) Try(*streams.Exchange) *http2.Stream {
	s := r.Upstreams.TryStream(r.choice)
	if s != nil {
		r.sent = time.Now()
	}
	return s
}

// Connect tries endpoints until one accepts; nothing was acted on by those
// before.
func (r *streamedRequest) Connect(ctx context.Context, x *streams.Exchange, attempt int) (*http2.Stream, error) {
	if attempt > 0 {
		// The endpoint has refused it: another one, if there is any.
		before := r.choice
		r.tried = append(r.tried, before)
		r.Observer.Retried()
		if refusal := r.pick(x); refusal != nil {
			if refusal.Status == 403 {
				return nil, refusal
			}
			r.choice, r.tried = before, r.tried[:len(r.tried)-1]
		}
	}
	for {
		s, err := r.Upstreams.Stream(ctx, r.choice)
		if err == nil {
			r.sent = time.Now()
			return s, nil
		}
		r.tried = append(r.tried, r.choice)
		if ctx.Err() != nil || len(r.tried) >= maxEndpoints {
			return nil, err
		}
		if refusal := r.pick(x); refusal != nil {
			if refusal.Status == 403 {
				return nil, refusal
			}
			return nil, err // of the endpoint: that there is no other is no news
		}
		r.Observer.Retried()
		r.Log.Info("endpoint failed, trying another", "target_address", r.target.String(), "error", err.Error())
	}
}

// Release gives the stream back. The latency that tells a slow endpoint is that
// of the response's head: what streams after it takes as long as it likes.
func (r *streamedRequest) Release(x *streams.Exchange) {
	var latency time.Duration
	if !x.Answered.IsZero() {
		latency = x.Answered.Sub(r.sent)
	}
	r.Upstreams.ReleaseStream(r.choice, latency)
}

// Fields appends the trace context.
func (r *streamedRequest) Fields(_ *streams.Exchange, w http2.Writer) {
	if r.trace.Valid() {
		var b [64]byte
		w.Once("traceparent", r.trace.Append(b[:0]))
	}
}

// Done tells the outcome.
func (r *streamedRequest) Done(x *streams.Exchange) {
	rec := &r.rec
	rec.Start, rec.Status, rec.Flag, rec.Received, rec.Sent = x.Start, x.Status, x.Flag, x.Received, x.Sent
	rec.GRPC, rec.GRPCStatus = x.Request.GRPC, x.GRPCStatus
	if x.Err != nil {
		rec.Error = x.Err.Error()
		if !errors.Is(x.Err, context.Canceled) && x.Flag != exchange.FlagClientGone && x.Flag != exchange.FlagDenied {
			r.Log.Info("outbound request failed", "target_address", r.target.String(), "flag", x.Flag, "error", rec.Error)
		}
	}
	r.Observer.Request(r.bound(rec, &r.choice), rec, &r.trace)
	*r = streamedRequest{tried: r.tried[:0]}
	requestPool.Put(r)
}
