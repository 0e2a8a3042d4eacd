package exchange

import (
	"context"
	"time"

	"github.com/hauberk-mesh/hauberk/policy"
	"github.com/hauberk-mesh/hauberk/proxy/canonical"
	"github.com/hauberk-mesh/hauberk/proxy/hangup"
	"github.com/hauberk-mesh/hauberk/proxy/http1"
)

// Flags say how an exchange ended, in metrics and the access log. The empty
// flag is a complete exchange.
const (
	FlagBadRequest    = "bad_request"
	FlagDenied        = "denied"
	FlagNoUpstream    = "no_upstream"
	FlagUpstreamReset = "upstream_reset"
	FlagUpstreamBad   = "upstream_protocol"
	FlagTimeout       = "timeout"
	FlagClientGone    = "client_gone"
	FlagTunnel        = "tunnel"
)

// Exchange is one request and its response. It is reused for the next request
// of its connection.
type Exchange struct {
	Request, Response http1.Head
	Target            canonical.Target
	// HTTP is the request as policies see it. Its strings live as long as the
	// Exchange is not reused.
	HTTP policy.HTTPRequest
	// Parsed says that Request and Target hold a well-formed request.
	Parsed bool

	Start          time.Time
	Status         int
	Received, Sent int64 // bytes of the request's and the response's body
	Flag           string
	Err            error

	requestBody, responseBody http1.Body
	noBody                    bool // the response to this request has no body to count
}

// Refusal is an answer of the proxy's own.
type Refusal struct {
	Status int
	Text   string
	// Field is one extra field line, none when its name is empty.
	FieldName, FieldValue string
	Flag                  string
}

// Error makes a Refusal an error, so that Connect may return one.
func (r *Refusal) Error() string { return r.Text }

// Handler is one direction's part in the exchanges of one connection. Its
// methods are called from one goroutine.
type Handler interface {
	// Admit decides about a request in its canonical form, before anything of
	// it is sent anywhere. Nil admits.
	Admit(x *Exchange) *Refusal
	// Connect gives a connection for the request. Attempt counts from 0; it is
	// asked again only when nothing of the request can have been acted on. The
	// error may be a *Refusal.
	Connect(ctx context.Context, x *Exchange, attempt int) (*Conn, error)
	// Release takes the connection of Connect back.
	Release(c *Conn, reusable bool)
	// Tunnelled is told that up will carry bytes in both directions, because the
	// request was accepted as an Upgrade or a CONNECT. x does not change any more.
	Tunnelled(x *Exchange, up *Conn)
	// RequestFields appends the proxy's own fields to the request.
	RequestFields(x *Exchange, w *http1.Writer)
	// Done is told the outcome.
	Done(x *Exchange)
}

// Options are the same for all connections of a listener.
type Options struct {
	Timeouts Timeouts
	// Hangups tells of clients that end or vanish while their request is
	// answered; nil for nobody.
	Hangups *hangup.Watcher
	// DefaultAuthority is the Host for requests that have none (HTTP/1.0).
	DefaultAuthority string
	// KeepVerdict passes the X-Hauberk fields of responses on: a sidecar trusts
	// them from its peer, not from its application.
	KeepVerdict bool
	// Draining reports that connections should end after the exchange under way.
	Draining func() bool
	// Stopping reports that idle connections should end at once.
	Stopping func() bool
}

// maxAttempts bounds how often a request that was not acted on is sent again.
const maxAttempts = 3

// headerValues finds all values of a field, each as it was sent, for policies.
func (x *Exchange) headerValues(name string) []string {
	var values []string
	for i := range x.Request.Fields {
		f := &x.Request.Fields[i]
		if dropped(f.Kind) || len(f.Name) != len(name) {
			continue
		}
		if foldEqual(f.Name, name) {
			values = append(values, string(f.Value))
		}
	}
	return values
}

func foldEqual(b []byte, lower string) bool {
	for i, c := range b {
		if c >= 'A' && c <= 'Z' {
			c |= 0x20
		}
		if c != lower[i] {
			return false
		}
	}
	return true
}

// dropped reports whether a field of this kind is not forwarded as it came, so
// that policies must not match it either.
func dropped(k http1.Kind) bool {
	switch k {
	case http1.Identity, http1.Nominated, http1.KeepAlive, http1.ProxyConnection, http1.HTTP2Settings, http1.Connection:
		return true
	}
	return false
}
