package inbound

import (
	"context"
	"errors"

	"github.com/hauberk-mesh/hauberk/policy"
	"github.com/hauberk-mesh/hauberk/proxy/authz"
	"github.com/hauberk-mesh/hauberk/proxy/exchange"
	"github.com/hauberk-mesh/hauberk/proxy/http1"
	"github.com/hauberk-mesh/hauberk/proxy/socket"
	"github.com/hauberk-mesh/hauberk/proxy/telemetry"
)

// requests is the exchange.Handler of one connection. It keeps one connection
// to the application for as long as the client's lives: who is behind a
// connection may matter to the application.
type requests struct {
	*connection
	ctx   context.Context
	base  telemetry.Record
	rec   telemetry.Record
	trace telemetry.Trace
	route *telemetry.Route
	app   *exchange.Conn
	xfcc  string
	flow  policy.Flow // reused for each request
}

func (c *connection) serveHTTP(ctx context.Context) {
	c.pass.Opened()
	c.live.SetProtocol(telemetry.ProtocolHTTP1)
	c.live.OnWake(c.client.WakeIdle)
	h := &requests{connection: c, ctx: ctx, base: c.record(telemetry.ProtocolHTTP1)}
	h.route = c.route(&h.base)
	if c.mtls != nil {
		h.xfcc = "By=" + c.Principal() + ";URI=" + c.peer.ID.String()
	}
	defer func() {
		if h.app != nil {
			h.app.R.Release()
			h.app.Close()
		}
	}()
	options := &exchange.Options{Timeouts: c.Timeouts, Hangups: c.Hangups, DefaultAuthority: c.target.String(),
		Draining: c.Connections.Draining, Stopping: c.Connections.Stopping}
	if err := exchange.Serve(ctx, c.client, h, options); err != nil {
		c.Log.Debug("inbound connection ended", "source_address", c.source.String(), "error", err.Error())
	}
}

// Admit asks ingress policy about the request.
func (h *requests) Admit(x *exchange.Exchange) *exchange.Refusal {
	h.rec = h.base
	if w := h.workload.Value(); w != nil {
		h.rec.Source.Namespace, h.rec.Source.Workload, h.rec.Source.Pod = w.Namespace, w.Display(), w.Name
	}
	h.trace = h.Observer.StartRequest(h.ctx, telemetry.Inbound, &x.Request)
	h.rec.Method, h.rec.Path, h.rec.Host = x.HTTP.Method, x.HTTP.Path, x.HTTP.Host
	verdict, set := h.evaluate(&h.flow, &x.HTTP)
	h.rec.Verdict, h.rec.Decided = verdict, true
	h.Observer.Decision(set, &h.rec.Verdict, &h.rec, h.source.Addr())
	if verdict.Allowed() {
		return nil
	}
	r := &exchange.Refusal{Status: 403, Flag: exchange.FlagDenied, Text: authz.Refusal(set, &verdict)}
	if h.Directory.Mesh().Proto.GetDenyResponseHeader() {
		r.FieldName, r.FieldValue = "X-Hauberk-Denied-By", authz.Name(&verdict)
	}
	return r
}

// Connect gives the connection to the application.
func (h *requests) Connect(ctx context.Context, _ *exchange.Exchange, attempt int) (*exchange.Conn, error) {
	if c := h.app; c != nil {
		h.app = nil
		if attempt == 0 && socket.Alive(c) {
			return c, nil
		}
		c.R.Release()
		c.Close()
	}
	raw, err := h.Dial(ctx, "tcp", h.target.String())
	if err != nil {
		return nil, err
	}
	return exchange.NewConn(raw), nil
}

// Tunnelled lets a change of policy end what the request opened.
func (h *requests) Tunnelled(x *exchange.Exchange, _ *exchange.Conn) {
	request := &x.HTTP // stays as it is: the connection has no further request
	h.live.OnRecheck(func() error {
		if err := h.trusted(); err != nil {
			return err
		}
		if v, set := h.evaluate(&policy.Flow{}, request); !v.Allowed() {
			return errors.New(authz.Refusal(set, &v))
		}
		return nil
	})
}

// Release takes it back.
func (h *requests) Release(c *exchange.Conn, reusable bool) {
	if reusable && len(c.R.Buffered()) == 0 {
		c.R.Release()
		h.app = c
		return
	}
	c.R.Release()
	c.W.Reset()
	c.Close()
}

// RequestFields says who the client is: X-Forwarded-Client-Cert only when it
// proved an identity, and its address as the last X-Forwarded-For.
func (h *requests) RequestFields(_ *exchange.Exchange, w *http1.Writer) {
	if h.xfcc != "" {
		w.WriteField("X-Forwarded-Client-Cert", h.xfcc)
	}
	w.WriteString("X-Forwarded-For: ")
	w.Write(h.source.Addr().AppendTo(w.Scratch()))
	w.WriteString("\r\n")
	h.trace.WriteTo(w)
}

// Done tells the outcome.
func (h *requests) Done(x *exchange.Exchange) {
	if !x.Parsed {
		h.rec, h.trace = h.base, telemetry.Trace{}
	}
	rec := &h.rec
	rec.Start, rec.Status, rec.Flag, rec.Received, rec.Sent = x.Start, x.Status, x.Flag, x.Received, x.Sent
	if x.Err != nil {
		rec.Error = x.Err.Error()
	}
	if rec.Source.Workload != h.route.Key.SourceWorkload || rec.Source.Namespace != h.route.Key.SourceNamespace {
		h.route = h.connection.route(rec)
	}
	h.Observer.Request(h.route, rec, &h.trace)
}
