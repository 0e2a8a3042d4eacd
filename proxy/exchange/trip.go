package exchange

import (
	"errors"
	"io"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/hauberk-mesh/hauberk/proxy/http1"
	"github.com/hauberk-mesh/hauberk/proxy/socket"
)

// trip is one attempt: a request on one upstream connection.
type trip struct {
	*server
	up     *Conn
	reused bool

	body     chan error   // the result of sending the request's body elsewhere; nil without
	given    *atomic.Bool // the rest of the body is not wanted; set with body
	bodyFlag string       // owned by the sending goroutine until it ends
	retry    bool
	tunnel   bool
	usable   bool // the client's connection can carry another request
	reusable bool // so can the upstream's
}

// view is b as a string without a copy.
func view(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }

func (t *trip) run() (again bool, err error) {
	x := &t.x
	now := time.Now()
	t.up.writeWithin(now, t.options.Timeouts.Write)
	t.writeRequest(t.up.W, x)
	if err := t.sendBody(); err != nil {
		return t.upstreamFailed(err)
	}
	interim, err := t.awaitResponse()
	if err != nil {
		return t.upstreamFailed(err)
	}
	r := &x.Response
	x.Status = r.Status
	if r.Framing == http1.Tunnelled {
		return t.switchProtocols()
	}
	// A client that waits for 100 and gets a final answer may or may not send
	// its body; only closing makes that certain.
	unsent := t.body != nil && x.Request.Continue && !interim
	t.usable = t.keepClient() && !unsent
	if err := t.sendResponse(); err != nil {
		return false, err
	}
	t.reusable = !r.Close && (t.up.Sidecar || !mayTrail(r))
	if err := t.awaitBody(unsent || r.Close); err != nil {
		t.usable, t.reusable = false, false
	}
	if !t.usable {
		return false, t.finish()
	}
	return true, nil
}

// sendBody sends the request's body: at once when all of it is at hand, else
// in a goroutine, because the response may start before the request has ended.
func (t *trip) sendBody() error {
	x := &t.x
	body := &x.requestBody
	if body.Done() {
		return t.up.W.Flush()
	}
	if x.Request.Framing == http1.ByLength && int64(len(t.client.R.Buffered())) >= x.Request.Length {
		for !body.Done() {
			p, err := body.Next()
			if err != nil {
				return err
			}
			x.Received += int64(len(p))
			t.up.W.Write(p)
		}
		return t.up.W.Flush()
	}
	t.body, t.given = make(chan error, 1), new(atomic.Bool)
	go func() { t.body <- t.streamBody() }()
	return nil
}

func (t *trip) streamBody() error {
	x := &t.x
	body, w, chunked := &x.requestBody, t.up.W, x.Request.Framing == http1.Chunked
	for {
		if body.Pending() {
			if err := w.Flush(); err != nil {
				return err
			}
		}
		now := time.Now()
		t.client.readWithin(now, t.options.Timeouts.Body)
		if t.given.Load() {
			return errAbandoned // the deadline above may have undone giveUp's
		}
		p, err := body.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			// The upstream must not take what came so far for the whole, and the
			// response is of no use to anybody.
			t.bodyFlag = FlagClientGone
			if isTimeout(err) {
				t.bodyFlag = FlagTimeout
			}
			socket.Abort(t.up)
			return err
		}
		x.Received += int64(len(p))
		t.up.writeWithin(now, t.options.Timeouts.Write)
		if chunked {
			w.WriteChunk(p)
		} else {
			w.Write(p)
		}
		if body.Done() {
			break
		}
	}
	if chunked {
		writeTrailers(w, body.Trailers.Fields)
	}
	return w.Flush()
}

// awaitBody waits for the sending goroutine after the response was passed on.
// With abandon the rest of the body is given up.
func (t *trip) awaitBody(abandon bool) error {
	if t.body == nil {
		return nil
	}
	if abandon {
		select {
		case err := <-t.body:
			t.body = nil
			return err
		default:
		}
		socket.Abort(t.up)
		t.giveUp()
	}
	err := <-t.body
	t.body = nil
	t.client.readBy = time.Time{}
	if abandon && err == nil {
		return errAbandoned
	}
	return err
}

var errAbandoned = errors.New("the rest of the request's body was not wanted")

// awaitResponse reads heads until the final one, passing interim ones on.
// interim says that a 100 was among them.
func (t *trip) awaitResponse() (interim bool, err error) {
	x := &t.x
	t.up.readWithin(time.Now(), t.options.Timeouts.Response)
	t.await(true)
	defer t.await(false)
	for range 32 {
		if err := t.readHead(); err != nil {
			return interim, err
		}
		r := &x.Response
		if r.Status >= 200 || r.Status == 101 {
			return interim, nil
		}
		if r.Status == 100 && !x.Request.Continue {
			continue
		}
		interim = interim || r.Status == 100
		if x.Request.Minor == 1 {
			t.writeResponse(t.client.W, x, false, false)
			if err := t.client.W.Flush(); err != nil {
				return interim, err
			}
		}
	}
	return interim, &http1.Error{Status: 502, Reason: "too many interim responses"}
}

// readHead reads one head of a response. A client that ended meanwhile is asked
// whether it still reads.
func (t *trip) readHead() error {
	x := &t.x
	for {
		err := t.up.R.ReadResponse(&x.Response, &x.Request)
		if err == nil || !isTimeout(err) {
			return err
		}
		wait, now := t.ask(t.body == nil || len(t.body) > 0)
		if !wait {
			return err
		}
		if now && x.Request.Minor == 1 {
			writeStatus(t.client.W, 100, continues)
			t.client.W.WriteString("\r\n")
			if err := t.client.W.Flush(); err != nil {
				return err
			}
		}
	}
}

var continues = []byte("Continue")

func (t *trip) sendResponse() error {
	x, w := &t.x, t.client.W
	chunked := x.Request.Minor == 1
	now := time.Now()
	t.client.writeWithin(now, t.options.Timeouts.Write)
	t.writeResponse(w, x, chunked, !t.usable)
	body := &x.responseBody
	body.Start(t.up.R, &x.Response)
	chunked = chunked && (x.Response.Framing == http1.Chunked || x.Response.Framing == http1.UntilEOF)
	for !body.Done() {
		if body.Pending() {
			if err := w.Flush(); err != nil {
				return t.clientFailed(err)
			}
			now = time.Now()
			t.up.readWithin(now, t.options.Timeouts.Body)
			t.recall()
			t.client.writeWithin(now, t.options.Timeouts.Write)
		}
		p, err := body.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			x.Flag, x.Err = FlagUpstreamReset, err
			if t.isGone() {
				err = t.abandon()
			}
			_ = w.Flush()
			t.stop()
			return err
		}
		x.Sent += int64(len(p))
		if chunked {
			w.WriteChunk(p)
		} else {
			w.Write(p)
		}
	}
	if chunked {
		writeTrailers(w, body.Trailers.Fields)
	}
	if err := w.Flush(); err != nil {
		return t.clientFailed(err)
	}
	return nil
}

func (t *trip) clientFailed(err error) error {
	t.x.Flag, t.x.Err = FlagClientGone, err
	t.stop()
	return err
}

// giveUp ends the sending goroutine's reading, the one that it is about to
// begin included.
func (t *trip) giveUp() {
	t.given.Store(true)
	_ = t.client.Conn.SetReadDeadline(time.Unix(1, 0))
}

// stop ends both connections and the goroutine that sends the body.
func (t *trip) stop() {
	socket.Abort(t.up)
	if t.body != nil {
		t.giveUp()
		<-t.body
		t.body = nil
		t.client.readBy = time.Time{}
	}
}

// upstreamFailed handles an attempt that yielded no response. Sent again is
// what was not acted on: the connection had been idle and ended without a byte
// in answer, and the request has no body and promises to be safe, or the other
// end is a sidecar and ended in order, which it does only between requests.
func (t *trip) upstreamFailed(err error) (bool, error) {
	x := &t.x
	hadBody := x.Request.Framing != http1.NoBody
	fresh := len(t.up.R.Buffered()) == 0
	sending := t.body != nil
	if sending {
		select {
		case <-t.body: // it ended before us, perhaps by its own fault
			t.body = nil
			if t.bodyFlag != "" {
				x.Flag, x.Err = t.bodyFlag, err
				return false, err
			}
		default:
		}
	}
	t.stop()
	t.up.W.Reset()
	if t.isGone() {
		return false, t.abandon()
	}
	var syntax *http1.Error
	broken := errors.As(err, &syntax)
	if t.reused && fresh && !hadBody && !broken && !isTimeout(err) &&
		(x.Request.Idempotent() || t.up.Sidecar && errors.Is(err, io.EOF)) {
		t.retry = true
		return false, nil
	}
	x.Err = err
	r := &Refusal{Status: 502, Flag: FlagUpstreamReset, Text: "hauberk: the destination ended the connection before it answered"}
	switch {
	case broken:
		r.Flag, r.Text = FlagUpstreamBad, "hauberk: the destination's answer is not HTTP/1.1: "+syntax.Reason
	case isTimeout(err):
		r.Status, r.Flag, r.Text = 504, FlagTimeout, "hauberk: the destination did not answer in time"
	}
	return t.refuse(r)
}

// switchProtocols passes 101 or an accepted CONNECT on and tunnels. A 101 that
// nobody asked for is a broken upstream.
func (t *trip) switchProtocols() (bool, error) {
	x := &t.x
	r := &x.Response
	if r.Status == 101 && (x.Request.Protocol == nil || r.Protocol == nil) {
		return t.upstreamFailed(&http1.Error{Status: 502, Reason: "101 without a request to switch protocols"})
	}
	t.writeResponse(t.client.W, x, false, false)
	if err := t.client.W.Flush(); err != nil {
		return false, t.clientFailed(err)
	}
	t.tunnel = true
	t.handler.Tunnelled(x, t.up)
	t.server.tunnel(t.up)
	t.handler.Release(t.up, false)
	return false, nil
}
