package exchange

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"time"

	"github.com/hauberk-mesh/hauberk/proxy/http1"
	"github.com/hauberk-mesh/hauberk/proxy/relay"
	"github.com/hauberk-mesh/hauberk/proxy/socket"
)

// server is the state of one client connection.
type server struct {
	client  *Conn
	handler Handler
	options *Options
	// authority is options.DefaultAuthority.
	authority []byte

	x    Exchange
	t    trip
	last bool // the last response was sent
	presence
}

// Serve carries exchanges until the client ends, an error makes the connection
// useless, or it drains. It closes the client's connection. The error is nil
// for an orderly end.
func Serve(ctx context.Context, client *Conn, h Handler, options *Options) error {
	s := &server{client: client, handler: h, options: options, authority: []byte(options.DefaultAuthority)}
	s.x.HTTP.Header = s.x.headerValues
	stop := context.AfterFunc(ctx, func() { _ = client.Conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	unwatch := options.Hangups.Watch(client.Conn, s.tell)
	defer unwatch()
	for {
		again, err := s.one(ctx)
		if err != nil {
			socket.Abort(client)
			client.W.Reset()
			return err
		}
		if !again {
			s.end()
			client.R.Release()
			return client.Close()
		}
	}
}

// one carries one exchange. An error means that the client must see an abort.
func (s *server) one(ctx context.Context) (again bool, err error) {
	x, client := &s.x, s.client
	waiting := len(client.R.Buffered()) == 0
	if waiting {
		client.readWithin(time.Now(), s.options.Timeouts.Idle)
		client.idle.Store(true)
	}
	if ctx.Err() != nil || s.options.Stopping != nil && s.options.Stopping() {
		return false, nil
	}
	err = client.R.WaitByte()
	if waiting && !client.idle.Swap(false) {
		client.readBy = time.Time{} // WakeIdle came as a request did, and moved the deadline
	}
	if err != nil {
		// Nothing was begun: whatever ended the wait, it is an orderly end.
		return false, nil
	}
	x.Start, x.Status, x.Received, x.Sent, x.Flag, x.Err, x.Parsed = time.Now(), 0, 0, 0, "", nil, false
	x.noBody = false
	if !client.R.HeadBuffered() {
		client.readWithin(x.Start, s.options.Timeouts.Head)
	}
	client.writeWithin(x.Start, s.options.Timeouts.Write)
	defer s.handler.Done(x)
	if err := client.R.ReadRequest(&x.Request); err != nil {
		return false, s.badRequest(err)
	}
	r := &x.Request
	host := r.HostValue
	if !r.HasHost && r.Target[0] == '/' {
		host = s.authority
	}
	if err := x.Target.Set(r.Method, r.Target, host); err != nil {
		return false, s.badRequest(&http1.Error{Status: 400, Reason: err.Error()})
	}
	x.Parsed = true
	client.Used = true
	x.HTTP.Method, x.HTTP.Path, x.HTTP.Host = view(r.Method), x.Target.Path, x.Target.Host
	x.HTTP.Query = strings.TrimPrefix(x.Target.Query, "?")
	x.noBody = r.IsMethod("HEAD")
	x.requestBody.Start(client.R, r)
	if refusal := s.handler.Admit(x); refusal != nil {
		return s.refuse(refusal)
	}
	return s.forward(ctx)
}

// badRequest answers what could not be parsed, if it was a matter of syntax.
func (s *server) badRequest(err error) error {
	x := &s.x
	x.Flag, x.Err = FlagBadRequest, err
	var syntax *http1.Error
	if !errors.As(err, &syntax) {
		x.Flag = FlagClientGone
		if isTimeout(err) {
			x.Flag, x.Status = FlagTimeout, 408
			writeRefusal(s.client.W, &Refusal{Status: 408, Text: "hauberk: the request's head took too long"}, false, true)
			return s.finish()
		}
		return err
	}
	x.Status = syntax.Status
	writeRefusal(s.client.W, &Refusal{Status: syntax.Status, Text: "hauberk: bad request: " + syntax.Reason}, false, true)
	return s.finish()
}

// refuse answers for the proxy and keeps the connection when the request has
// no body that would have to be read.
func (s *server) refuse(r *Refusal) (again bool, err error) {
	x := &s.x
	x.Status, x.Flag = r.Status, r.Flag
	again = x.requestBody.Done() && s.keepClient()
	writeRefusal(s.client.W, r, x.noBody, !again)
	if !again {
		return false, s.finish()
	}
	return true, s.client.W.Flush()
}

// finish sends the last response of a connection.
func (s *server) finish() error {
	s.last = true
	return s.client.W.Flush()
}

// end ends our direction after the last response and lingers if the client may
// still be sending: closing then would reset the connection, and with it lose
// the response.
func (s *server) end() {
	if !s.last || s.x.Parsed && s.x.Request.Close && s.x.requestBody.Done() {
		return
	}
	if s.client.CloseWrite() != nil {
		return
	}
	_ = s.client.Conn.SetReadDeadline(time.Now().Add(time.Second))
	_, _ = io.CopyN(io.Discard, s.client.Conn, 256<<10)
}

func (s *server) keepClient() bool {
	return !s.x.Request.Close && s.x.Request.Minor == 1 && !(s.options.Draining != nil && s.options.Draining())
}

func isTimeout(err error) bool {
	var n net.Error
	return errors.As(err, &n) && n.Timeout()
}

// forward sends the request to an upstream and the response back, again on
// another connection while nothing of the request can have been acted on.
func (s *server) forward(ctx context.Context) (again bool, err error) {
	for attempt := 0; ; attempt++ {
		if s.isGone() {
			return false, s.abandon()
		}
		up, err := s.handler.Connect(ctx, &s.x, attempt)
		if err != nil {
			var refusal *Refusal
			if !errors.As(err, &refusal) {
				refusal = &Refusal{Status: 503, Flag: FlagNoUpstream, Text: "hauberk: no connection to the destination: " + err.Error()}
			}
			s.x.Err = err
			return s.refuse(refusal)
		}
		s.t = trip{server: s, up: up, reused: up.Used}
		t := &s.t
		s.begin(up)
		again, err = t.run()
		s.begin(nil)
		t.reusable = t.reusable && !s.isGone() // its deadlines may have been moved
		if t.retry && attempt < maxAttempts {
			s.handler.Release(up, false)
			continue
		}
		if t.tunnel {
			return false, nil
		}
		up.Used = true
		s.handler.Release(up, t.reusable)
		return again, err
	}
}

// abandon notes that nobody waits for the response.
func (s *server) abandon() error {
	s.x.Flag, s.x.Err = FlagClientGone, errClientGone
	return errClientGone
}

// tunnel hands both connections over to a relay after an accepted Upgrade or
// CONNECT.
func (s *server) tunnel(up *Conn) {
	s.begin(nil) // the relay sees for itself
	s.client.ClearDeadlines()
	up.ClearDeadlines()
	first := s.client.R.Buffered()
	back := up.R.Buffered()
	result := relay.Run(relay.End{Conn: s.client.Conn, First: first}, relay.End{Conn: up.Conn, First: back}, nil, nil)
	s.x.Flag = FlagTunnel
	s.x.Received, s.x.Sent = result.FromA, result.FromB
	s.x.Err = errors.Join(result.ErrA, result.ErrB)
}
