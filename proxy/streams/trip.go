package streams

import (
	"errors"
	"strconv"
	"sync"
	"time"

	"github.com/hauberk-mesh/hauberk/proxy/exchange"
	"github.com/hauberk-mesh/hauberk/proxy/http1"
	"github.com/hauberk-mesh/hauberk/proxy/http2"
)

const (
	maxAttempts = 3
	// kept is how much of a body is kept to be sent again after a server has
	// said that it did not act on the request.
	kept = 16 << 10
)

// trip is one request on its way, and its response.
type trip struct {
	conn    *Conn
	client  *http2.Stream
	request Request

	mu sync.Mutex // before those of connections
	// Guarded by mu. work is nil once the outcome was told.
	*work
	up       *http2.Stream // nil while there is none
	attempt  int
	end      bool  // the client's message is complete
	recorded bool  // body is all that came
	trailing bool  // the request has trailers
	credited int64 // bytes that were passed on by attempts before

	connecting bool   // Connect is at work
	rechecks   uint64 // of the connection when Admit was asked

	headed   bool // the final head was sent to the client
	answered bool // the response is complete
	done     bool
}

// work is what a trip needs while it lasts. It is used again for another.
type work struct {
	x        Exchange
	body     []byte        // what came of the request's body, while it may have to be sent
	trailers []http2.Field // of the request
	passing  []http2.Field // trailers that are passed on
}

var works = sync.Pool{New: func() any {
	w := &work{}
	w.x.Request.Fields = make([]http2.Field, 0, 16)
	w.x.header = w.x.headerValues
	return w
}}

// release gives the work back.
func (w *work) release() {
	fields, body := w.x.Request.Fields, w.body
	clear(fields)
	clear(w.trailers)
	clear(w.passing)
	if cap(body) > kept {
		body = nil
	}
	w.x = Exchange{Request: http2.Head{Fields: fields[:0]}, Target: w.x.Target, header: w.x.header}
	w.body, w.trailers, w.passing = body[:0], w.trailers[:0], w.passing[:0]
	works.Put(w)
}

// down is what hears the client.
type down struct{ *trip }

// up is what hears an upstream.
type up struct{ *trip }

// connect finds an upstream and may wait for it. What ends meanwhile is told
// when it has come back: Connect has the request to itself.
func (t *trip) connect() {
	s, err := t.request.Connect(t.conn.ctx, &t.x, t.attempt)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.connecting = false
	switch {
	case t.done:
		if err == nil {
			s.Abandon()
			t.request.Release(&t.x)
		}
		t.tell()
	case err != nil:
		t.x.Err = err
		var refusal *exchange.Refusal
		if !errors.As(err, &refusal) {
			refusal = &exchange.Refusal{Status: 503, Flag: exchange.FlagNoUpstream,
				Text: "hauberk: no connection to the destination: " + err.Error()}
		}
		t.refuse(refusal)
		t.client.Conn().Flush()
	case t.outdated(s):
		t.client.Conn().Flush()
	case t.begin(s):
		s.Conn().Flush()
		if t.changed() {
			t.rejudge()
			t.client.Conn().Flush()
		}
	default:
		t.again()
	}
}

// changed reports whether the connection was rechecked since Admit was asked.
func (t *trip) changed() bool { return t.rechecks != t.conn.rechecks.Load() }

// outdated refuses a request that was admitted before a change and is not any
// more, before anything of it is sent; mu is held.
func (t *trip) outdated(s *http2.Stream) bool {
	now := t.conn.rechecks.Load()
	if t.rechecks == now {
		return false
	}
	t.rechecks = now
	r := t.request.Recheck(&t.x, s)
	if r == nil {
		return false
	}
	s.Abandon()
	t.request.Release(&t.x)
	t.x.Err = r
	t.refuse(r)
	return true
}

// begin sends the request on s as far as it has come; mu is held. False means
// that nothing was sent, because the connection is at its end.
func (t *trip) begin(s *http2.Stream) bool {
	s.Link(up{t}, t.client, t.credited)
	w, ok := s.Begin()
	if !ok {
		s.Abandon()
		t.request.Release(&t.x)
		return false
	}
	t.up = s
	if t.x.Request.Method == "HEAD" {
		s.NoBody()
	}
	last := t.end && len(t.body) == 0 && !t.trailing
	t.writeRequest(w)
	w.End(last)
	t.client.Link(down{t}, s, 0)
	if len(t.body) > 0 {
		s.Write(t.body, t.end && !t.trailing)
	}
	if t.trailing {
		s.Trailer(t.trailers)
	}
	if len(t.body) > kept {
		t.forget()
	}
	return true
}

// forget gives up the record of the body: it can't be sent again.
func (t *trip) forget() {
	t.recorded = false
	if t.body = t.body[:0]; cap(t.body) > kept {
		t.body = nil
	}
}

// again makes another attempt; mu is held.
func (t *trip) again() {
	t.up = nil
	if t.attempt++; t.attempt >= maxAttempts {
		t.refuse(&exchange.Refusal{Status: 503, Flag: exchange.FlagNoUpstream, Text: "hauberk: the destination takes no more requests"})
		t.client.Conn().Flush()
		return
	}
	t.connecting = true
	go t.connect()
}

// Head implements http2.Receiver: the client's trailers.
func (d down) Head(_ *http2.Stream, h *http2.Head, _ bool) {
	t := d.trip
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.done {
		return
	}
	t.end, t.trailing = true, true
	t.trailers = trailerFields(t.trailers[:0], h.Fields)
	if t.up != nil {
		t.up.Trailer(t.trailers)
		t.conn.http2.After(t.up.Conn())
		t.maybeDone()
	}
}

// Data implements http2.Receiver: the client's body.
func (d down) Data(_ *http2.Stream, p []byte, end bool) {
	t := d.trip
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.done {
		return
	}
	t.end = end
	t.x.Received += int64(len(p))
	switch {
	case t.up == nil:
		t.body = append(t.body, p...)
		return
	case t.recorded && len(t.body)+len(p) <= kept:
		t.body = append(t.body, p...)
	default:
		t.forget()
	}
	t.up.Write(p, end)
	t.conn.http2.After(t.up.Conn())
	if end {
		t.maybeDone()
	}
}

// Closed implements http2.Receiver: the client does not want it any more, or
// did what must not be done.
func (d down) Closed(_ *http2.Stream, why http2.Closing) {
	t := d.trip
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.done {
		return
	}
	code := http2.Cancel
	if why.Remote && !why.Lost {
		code = why.Code
	}
	switch {
	case t.answered && (why.Code == http2.NoError || t.x.Flag != ""):
	case why.Timeout:
		t.x.Flag, t.x.Err = exchange.FlagTimeout, why.Err
	case why.Remote:
		t.x.Flag, t.x.Err = exchange.FlagClientGone, why.Err
	default:
		t.x.Flag, t.x.Err = exchange.FlagBadRequest, why.Err
	}
	t.drop(code)
	t.finish()
}

// drop ends the upstream's stream, if it has not ended; mu is held.
func (t *trip) drop(code http2.Code) {
	if t.up == nil {
		return
	}
	t.up.Reset(code)
	t.up.Conn().Flush()
}

// Head implements http2.Receiver: the response's head, an interim one, or
// trailers.
func (u up) Head(s *http2.Stream, h *http2.Head, end bool) {
	t := u.trip
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.done || t.up != s {
		return
	}
	defer s.Conn().After(t.client.Conn())
	if t.headed {
		t.grpcStatus(h.Fields)
		t.passing = trailerFields(t.passing[:0], h.Fields)
		t.client.Trailer(t.passing)
		t.complete()
		return
	}
	final := h.Status >= 200
	if w, ok := t.client.Begin(); ok {
		t.writeResponse(w, h)
		w.End(end)
	}
	if !final {
		return
	}
	t.headed, t.x.Status, t.x.Answered = true, h.Status, time.Now()
	t.forget()
	if end {
		t.grpcStatus(h.Fields)
		t.complete()
	}
}

// Data implements http2.Receiver: the response's body.
func (u up) Data(s *http2.Stream, p []byte, end bool) {
	t := u.trip
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.done || t.up != s {
		return
	}
	t.x.Sent += int64(len(p))
	t.client.Write(p, end)
	s.Conn().After(t.client.Conn())
	if end {
		t.complete()
	}
}

// Closed implements http2.Receiver: the upstream did not bring it to an end.
func (u up) Closed(s *http2.Stream, why http2.Closing) {
	t := u.trip
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.done || t.up != s {
		return
	}
	defer t.client.Conn().Flush()
	if t.answered {
		// It wants no more of the request than it got.
		t.client.Finish()
		t.finish()
		return
	}
	if !t.headed && t.recorded && t.attempt+1 < maxAttempts && (why.Refused || why.Lost && why.Remote && t.repeatable()) {
		t.credited += s.Moved()
		t.request.Release(&t.x)
		t.again()
		return
	}
	t.x.Err = why.Err
	t.x.Flag = exchange.FlagUpstreamReset
	switch {
	case why.Timeout:
		t.fail(&exchange.Refusal{Status: 504, Flag: exchange.FlagTimeout, Text: "hauberk: the destination did not answer in time"}, http2.Cancel)
	case why.Remote && !why.Lost:
		// The code is the application's word to its client.
		t.client.Reset(why.Code)
		t.finish()
	case why.Remote:
		t.fail(&exchange.Refusal{Status: 502, Flag: exchange.FlagUpstreamReset,
			Text: "hauberk: the destination ended the connection before the response: " + why.Err.Error()}, http2.InternalError)
	default:
		t.fail(&exchange.Refusal{Status: 502, Flag: exchange.FlagUpstreamBad,
			Text: "hauberk: the destination's answer is not HTTP/2: " + why.Err.Error()}, http2.InternalError)
	}
}

// repeatable reports whether the request promises that sending it twice is as
// sending it once, and has no body.
func (t *trip) repeatable() bool {
	switch t.x.Request.Method {
	case "GET", "HEAD", "OPTIONS":
		return t.end && t.x.Received == 0
	}
	return false
}

// complete notes that the response has been passed on; mu is held.
func (t *trip) complete() {
	t.answered = true
	t.maybeDone()
}

// maybeDone ends the trip when both messages are complete; mu is held.
func (t *trip) maybeDone() {
	if t.answered && t.end {
		t.finish()
	}
}

// finish tells the outcome, once; mu is held.
func (t *trip) finish() {
	if t.done {
		return
	}
	t.done = true
	if t.up != nil {
		t.request.Release(&t.x)
	}
	if !t.connecting {
		t.tell()
	}
}

func (t *trip) tell() {
	t.request.Done(&t.x)
	t.work.release()
	t.work, t.request = nil, nil
}

// refuse answers for the proxy; mu is held.
func (t *trip) refuse(r *exchange.Refusal) {
	t.x.Flag = r.Flag
	t.x.Status = r.Status
	if t.x.Request.GRPC {
		t.x.Status, t.x.GRPCStatus = 200, grpcCode(r.Status)
	}
	writeRefusal(t.client, &t.x.Request, r)
	t.finish()
}

// fail ends a response that can't go on: as a refusal while nothing of it was
// sent, by trailers for gRPC, by a reset for the rest; mu is held.
func (t *trip) fail(r *exchange.Refusal, code http2.Code) {
	switch {
	case !t.headed:
		t.refuse(r)
		return
	case t.x.Request.GRPC:
		t.x.Flag, t.x.GRPCStatus = r.Flag, grpcCode(r.Status)
		t.client.Trailer([]http2.Field{{Name: "grpc-status", Value: strconv.Itoa(t.x.GRPCStatus)},
			{Name: "grpc-message", Value: grpcMessage(r.Text)}})
		t.client.Finish()
	default:
		t.x.Flag = r.Flag
		t.client.Reset(code)
	}
	t.finish()
}

// recheck judges a request under way again. True means that it was ended.
func (t *trip) recheck() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.done || t.up == nil {
		return false // what is not on its way yet is judged when it is
	}
	return t.rejudge()
}

// rejudge ends what may not go on; mu is held.
func (t *trip) rejudge() bool {
	r := t.request.Recheck(&t.x, t.up)
	if r == nil {
		return false
	}
	t.drop(http2.Cancel)
	t.x.Err = r
	t.fail(r, http2.Cancel)
	return true
}

func (t *trip) grpcStatus(fields []http2.Field) {
	if !t.x.Request.GRPC {
		return
	}
	for i := range fields {
		if f := &fields[i]; f.Name == "grpc-status" {
			if n, err := strconv.Atoi(f.Value); err == nil && n >= 0 {
				t.x.GRPCStatus = n
			}
		}
	}
}

// trailerFields appends those that may stand in trailers.
func trailerFields(dst, fields []http2.Field) []http2.Field {
	for i := range fields {
		if !fields[i].Kind.ForbiddenInTrailer() {
			dst = append(dst, fields[i])
		}
	}
	return dst
}

// writeRequest writes the request's head in the form that was authorised.
func (t *trip) writeRequest(w http2.Writer) {
	x := &t.x
	r := &x.Request
	w.Field(":method", r.Method)
	if r.Method != "CONNECT" {
		w.Field(":scheme", r.Scheme)
	}
	w.Field(":authority", x.Target.Authority)
	if r.Method != "CONNECT" {
		path := x.Target.Path
		if x.Target.Query != "" {
			path += x.Target.Query
		}
		if r.GRPC {
			w.Field(":path", path) // there are few
		} else {
			w.Once(":path", []byte(path))
		}
	}
	for i := range r.Fields {
		f := &r.Fields[i]
		if forwarded(f.Kind) && f.Kind != http1.Traceparent {
			w.Forward(f)
		}
	}
	t.request.Fields(x, w)
}

// writeResponse writes a response's head.
func (t *trip) writeResponse(w http2.Writer, h *http2.Head) {
	w.Field(":status", strconv.Itoa(h.Status))
	for i := range h.Fields {
		f := &h.Fields[i]
		switch f.Kind {
		case http1.HTTP2Settings, http1.Nominated:
		case http1.Identity:
			if t.conn.options.KeepVerdict {
				w.Forward(f)
			}
		default:
			w.Forward(f)
		}
	}
}
