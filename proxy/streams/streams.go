// Package streams carries HTTP/2 requests from the streams of a client's
// connection to streams of upstreams' and the responses back: many at a time,
// as they come, bodies with backpressure, trailers, resets and codes told
// truthfully. It owns what is hop-by-hop, what an ambiguous request is, what is
// sent again, and how a refusal looks to HTTP and to gRPC.
//
// It does not own who may send what (the Handler decides), which upstream is
// used, or the protocol (proxy/http2). HTTP/1.1 is proxy/exchange's: nothing
// is translated between the two.
//
// A stream has no goroutine: what arrives on one connection is passed on by
// the goroutine that reads it. Only an upstream that has to be dialled is
// waited for in one, for which the body waits in the stream's window.
package streams

import (
	"context"
	"net"
	"strings"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/hauberk-mesh/hauberk/policy"
	"github.com/hauberk-mesh/hauberk/proxy/canonical"
	"github.com/hauberk-mesh/hauberk/proxy/exchange"
	"github.com/hauberk-mesh/hauberk/proxy/http1"
	"github.com/hauberk-mesh/hauberk/proxy/http2"
)

// NoGRPCStatus is the gRPC status of what had none.
const NoGRPCStatus = -1

// Exchange is one request and its response.
type Exchange struct {
	Request http2.Head
	Target  canonical.Target
	// HTTP is the request as policies see it.
	HTTP policy.HTTPRequest

	Start          time.Time
	Answered       time.Time // when the response's head came; zero before
	Status         int
	GRPCStatus     int   // NoGRPCStatus without one
	Received, Sent int64 // bytes of the request's and the response's body
	Flag           string
	Err            error

	header func(name string) []string // headerValues, bound once
}

// Handler is one direction's part in the streams of one connection.
type Handler interface {
	// Request is a new request's part.
	Request() Request
	// Bad is told of a request that was none, with the status it was answered
	// with, 0 for a reset.
	Bad(start time.Time, status int, err error)
}

// Request is one direction's part in one request. Its methods are called one
// at a time.
type Request interface {
	// Admit decides about a request in its canonical form, before anything of
	// it is sent anywhere. Nil admits.
	Admit(x *Exchange) *exchange.Refusal
	// Try gives a stream without waiting, nil when it can't.
	Try(x *Exchange) *http2.Stream
	// Connect gives a stream for the request. Attempt counts from 0; it is asked
	// again only when nothing of the request can have been acted on. The error
	// may be an *exchange.Refusal.
	Connect(ctx context.Context, x *Exchange, attempt int) (*http2.Stream, error)
	// Release is told that a stream of Try or Connect is not used any more.
	Release(x *Exchange)
	// Fields appends the proxy's own fields to the request.
	Fields(x *Exchange, w http2.Writer)
	// Recheck judges a request under way again. s is the stream that carries it.
	Recheck(x *Exchange, s *http2.Stream) *exchange.Refusal
	// Done is told the outcome. Nothing follows it.
	Done(x *Exchange)
}

// Options are the same for all connections of a listener.
type Options struct {
	Timeouts exchange.Timeouts
	// DefaultAuthority is the host for requests that have none.
	DefaultAuthority string
	// KeepVerdict passes the X-Hauberk fields of responses on: a sidecar trusts
	// them from its peer, not from its application.
	KeepVerdict bool
}

// prefaceTime is until a peer has sent its SETTINGS.
const prefaceTime = 10 * time.Second

// ConnTimeouts are the connection's part of t.
func ConnTimeouts(t exchange.Timeouts) http2.Timeouts {
	return http2.Timeouts{Preface: prefaceTime, Idle: t.Idle, Head: t.Head, Write: t.Write, Stall: t.Body, Response: t.Response}
}

// Conn is a client's connection.
type Conn struct {
	ctx     context.Context
	handler Handler
	options *Options
	http2   *http2.Conn
	// rechecks counts Recheck: who was admitted before one and begins after it is
	// judged again.
	rechecks atomic.Uint64
}

// Serve carries the requests of a client's connection until it ends. first is
// what was read of it already. started is called before the first request.
func Serve(ctx context.Context, nc net.Conn, first []byte, h Handler, o *Options, started func(*Conn)) error {
	// What is still dialling when the client has gone is given up.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	c := &Conn{ctx: ctx, handler: h, options: o}
	return http2.Serve(nc, first, http2.Options{Limits: http2.DefaultLimits, Timeouts: ConnTimeouts(o.Timeouts), Handler: c},
		func(conn *http2.Conn) {
			c.http2 = conn
			started(c)
		})
}

// Shutdown lets the requests under way end and tells the client to open no
// more here.
func (c *Conn) Shutdown() { c.http2.Shutdown() }

// ShutdownIdle is Shutdown that ends an idle connection at once.
func (c *Conn) ShutdownIdle() { c.http2.ShutdownIdle() }

// Recheck judges all requests under way again and ends those that may not go
// on.
func (c *Conn) Recheck() (ended int) {
	c.rechecks.Add(1)
	for _, s := range c.http2.Streams() {
		if d, ok := s.Receiver().(down); ok && d.recheck() {
			ended++
		}
	}
	c.http2.Flush()
	return ended
}

// Bad implements http2.Handler.
func (c *Conn) Bad(status int, reason string) {
	c.handler.Bad(time.Now(), status, &badRequest{reason})
}

type badRequest struct{ reason string }

func (b *badRequest) Error() string { return b.reason }

// Open implements http2.Handler.
func (c *Conn) Open(s *http2.Stream, h *http2.Head, end bool) http2.Receiver {
	t := &trip{conn: c, client: s, end: end, recorded: true, work: works.Get().(*work)}
	x := &t.x
	x.Start, x.GRPCStatus = time.Now(), NoGRPCStatus
	x.Request.Swap(h)
	if status, err := x.canonical(c.options.DefaultAuthority); err != nil {
		c.handler.Bad(x.Start, status, err)
		writeRefusal(s, &x.Request, &exchange.Refusal{Status: status, Text: "hauberk: bad request: " + err.Error()})
		t.work.release()
		return nil
	}
	t.request = c.handler.Request()
	t.mu.Lock()
	defer t.mu.Unlock()
	t.rechecks = c.rechecks.Load()
	if refusal := t.request.Admit(x); refusal != nil {
		t.refuse(refusal)
		return down{t}
	}
	if up := t.request.Try(x); up != nil && t.begin(up) {
		c.http2.After(up.Conn())
		if t.changed() {
			t.rejudge()
		}
		return down{t}
	}
	t.connecting = true
	go t.connect()
	return down{t}
}

// canonical gives the request its one spelling. An error is a request that can
// be read in two ways, with the status that says so.
func (x *Exchange) canonical(fallback string) (status int, err error) {
	r := &x.Request
	if !visible(r.Path) || !visible(r.Authority) {
		return 400, http1.ErrTarget
	}
	for i := range r.Fields {
		if f := &r.Fields[i]; f.Kind == http1.Expect && !strings.EqualFold(f.Value, "100-continue") {
			return 417, http1.ErrExpect
		}
	}
	method := view(r.Method)
	if r.Method == "CONNECT" {
		var host []byte
		if r.HasHost {
			host = view(r.Host)
		}
		if err := x.Target.Set(method, view(r.Authority), host); err != nil {
			return 400, err
		}
	} else {
		if r.Scheme != "http" && r.Scheme != "https" {
			return 400, errScheme
		}
		if r.Path[0] != '/' && r.Path != "*" {
			return 400, canonical.ErrForm
		}
		host := r.Authority
		switch {
		case host == "" && r.HasHost:
			host = r.Host
		case host == "":
			host = fallback
		case r.HasHost:
			var other canonical.Target
			if err := other.Set(method, []byte("*"), view(r.Host)); err != nil && err != canonical.ErrForm {
				return 400, err
			}
			var own canonical.Target
			if err := own.Set(method, []byte("*"), view(host)); err != nil && err != canonical.ErrForm {
				return 400, err
			}
			if other.Authority != own.Authority {
				return 400, canonical.ErrTwoHosts
			}
		}
		if host == "" {
			return 400, http1.ErrHost
		}
		if err := x.Target.Set(method, view(r.Path), view(host)); err != nil {
			return 400, err
		}
	}
	x.HTTP.Method, x.HTTP.Path, x.HTTP.Host = r.Method, x.Target.Path, x.Target.Host
	x.HTTP.Query = strings.TrimPrefix(x.Target.Query, "?")
	x.HTTP.Header = x.header
	return 0, nil
}

type schemeError struct{}

func (schemeError) Error() string { return ":scheme is neither http nor https" }

var errScheme = schemeError{}

// view is s as bytes without a copy; they must not be changed.
func view(s string) []byte { return unsafe.Slice(unsafe.StringData(s), len(s)) }

func visible(s string) bool {
	for i := range len(s) {
		if s[i] <= ' ' || s[i] >= 0x7f {
			return false
		}
	}
	return true
}

// headerValues finds all values of a field, for policies. Cookies, which a
// client may send in pieces, are one value again (RFC 9113 section 8.2.3).
func (x *Exchange) headerValues(name string) []string {
	if name == "host" {
		return []string{x.Target.Authority}
	}
	var values []string
	for i := range x.Request.Fields {
		f := &x.Request.Fields[i]
		if f.Name == name && forwarded(f.Kind) {
			values = append(values, f.Value)
		}
	}
	if name == "cookie" && len(values) > 1 {
		return []string{strings.Join(values, "; ")}
	}
	return values
}

// forwarded reports whether a request's field of this kind is passed on as it
// came, so that policies may match it.
func forwarded(k http1.Kind) bool {
	switch k {
	case http1.Identity, http1.HTTP2Settings, http1.Host, http1.Nominated:
		return false
	}
	return true
}
