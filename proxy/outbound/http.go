package outbound

import (
	"context"
	"errors"
	"net"
	"time"

	"github.com/hauberk-mesh/hauberk/policy"
	"github.com/hauberk-mesh/hauberk/proxy/authz"
	"github.com/hauberk-mesh/hauberk/proxy/exchange"
	"github.com/hauberk-mesh/hauberk/proxy/http1"
	"github.com/hauberk-mesh/hauberk/proxy/telemetry"
	"github.com/hauberk-mesh/hauberk/proxy/upstream"
)

// requests is the exchange.Handler of one connection.
type requests struct {
	*connection
	ctx    context.Context
	base   telemetry.Record // what all requests of the connection share
	rec    telemetry.Record
	trace  telemetry.Trace
	choice upstream.Choice
	tried  []upstream.Choice
	sent   time.Time
	facts  policy.Flow // reused for each request

	last      *telemetry.Route // of the choice before, which is usually the same
	lastRoute upstream.Choice
}

func (c *connection) serveHTTP(ctx context.Context) {
	c.live.SetProtocol(telemetry.ProtocolHTTP1)
	c.live.OnWake(c.client.WakeIdle)
	h := &requests{connection: c, ctx: ctx, base: c.record(telemetry.ProtocolHTTP1)}
	options := &exchange.Options{Timeouts: c.Timeouts, Hangups: c.Hangups, DefaultAuthority: c.target.String(), KeepVerdict: true,
		Draining: c.Connections.Draining, Stopping: c.Connections.Stopping}
	if err := exchange.Serve(ctx, c.client, h, options); err != nil {
		c.Log.Debug("outbound connection ended", "target_address", c.target.String(), "error", err.Error())
	}
}

// Admit chooses the endpoint and asks egress policy about the request to it.
func (h *requests) Admit(x *exchange.Exchange) *exchange.Refusal {
	h.rec = h.base
	h.trace = h.Observer.StartRequest(h.ctx, telemetry.Outbound, &x.Request)
	h.tried, h.choice = h.tried[:0], upstream.Choice{}
	return h.pick(x)
}

func (h *requests) pick(x *exchange.Exchange) *exchange.Refusal {
	choice, err := h.choose(h.dest.Value(), h.tried)
	if err != nil {
		return &exchange.Refusal{Status: 503, Flag: exchange.FlagNoUpstream,
			Text: "hauberk: " + h.serviceName() + ": " + err.Error()}
	}
	h.choice = choice
	h.rec.Method, h.rec.Path, h.rec.Host = x.HTTP.Method, x.HTTP.Path, x.HTTP.Host
	h.rec.Verdict, h.rec.Decided = h.admit(h.ctx, &h.facts, &h.choice.Endpoint, &x.HTTP), true
	h.rec.Destination, h.rec.Asked = partyOf(&h.choice.Endpoint), h.choice.Endpoint.Addr
	h.Observer.Decision(h.Directory.Self().Set, &h.rec.Verdict, &h.rec, h.client.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap())
	if h.rec.Verdict.Allowed() {
		return nil
	}
	r := &exchange.Refusal{Status: 403, Flag: exchange.FlagDenied, Text: authz.Refusal(h.Directory.Self().Set, &h.rec.Verdict)}
	if h.Directory.Mesh().Proto.GetDenyResponseHeader() {
		r.FieldName, r.FieldValue = "X-Hauberk-Denied-By", authz.Name(&h.rec.Verdict)
	}
	return r
}

func (c *connection) serviceName() string {
	if d := c.dest.Value(); d != nil && d.Service() != "" {
		return "service " + d.Service()
	}
	return "destination " + c.target.String()
}

// Connect tries endpoints until one accepts; nothing was sent to those before.
func (h *requests) Connect(ctx context.Context, x *exchange.Exchange, attempt int) (*exchange.Conn, error) {
	for {
		h.rec.Attempts++
		conn, err := h.Upstreams.HTTP(ctx, h.choice, attempt > 0)
		if err == nil {
			h.sent = time.Now()
			return conn, nil
		}
		h.tried = append(h.tried, h.choice)
		if ctx.Err() != nil || len(h.tried) >= maxEndpoints {
			return nil, err
		}
		if refusal := h.pick(x); refusal != nil {
			if refusal.Status == 403 {
				return nil, refusal
			}
			return nil, err // of the endpoint: that there is no other is no news
		}
		h.Observer.Retried()
		h.Log.Info("endpoint failed, trying another", "target_address", h.target.String(), "error", err.Error())
	}
}

// Tunnelled lets a change of policy or trust end what the request opened.
func (h *requests) Tunnelled(x *exchange.Exchange, up *exchange.Conn) {
	choice, request := h.choice, &x.HTTP // they stay: the connection has no further request
	h.live.OnRecheck(func() error {
		if err := h.Upstreams.Trusted(choice, up.Conn); err != nil {
			return err
		}
		if v := h.admit(h.ctx, &policy.Flow{}, &choice.Endpoint, request); !v.Allowed() {
			return errors.New(authz.Refusal(h.Directory.Self().Set, &v))
		}
		return nil
	})
}

// Release takes the connection back.
func (h *requests) Release(c *exchange.Conn, reusable bool) {
	h.Upstreams.Release(h.choice, c, reusable && !h.Connections.Draining(), time.Since(h.sent))
}

// RequestFields appends the trace context.
func (h *requests) RequestFields(_ *exchange.Exchange, w *http1.Writer) { h.trace.WriteTo(w) }

// Done tells the outcome.
func (h *requests) Done(x *exchange.Exchange) {
	if !x.Parsed {
		h.rec, h.trace, h.choice = h.base, telemetry.Trace{}, upstream.Choice{}
	}
	rec := &h.rec
	rec.Start, rec.Status, rec.Flag, rec.Received, rec.Sent = x.Start, x.Status, x.Flag, x.Received, x.Sent
	if x.Err != nil {
		rec.Error = x.Err.Error()
		if !errors.Is(x.Err, context.Canceled) && x.Flag != exchange.FlagClientGone {
			h.Log.Info("outbound request failed", "target_address", h.target.String(), "flag", x.Flag, "error", rec.Error)
		}
	}
	var route *telemetry.Route
	if h.last != nil && h.lastRoute == h.choice {
		route = h.last
		rec.Destination = partyOf(&h.choice.Endpoint)
	} else {
		route = h.route(rec, &h.choice)
		h.last, h.lastRoute = route, h.choice
	}
	h.Observer.Request(route, rec, &h.trace)
}
