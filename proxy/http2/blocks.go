package http2

import (
	"encoding/binary"
	"errors"
	"time"
)

// headers begins a header block.
func (in *reader) headers(h *header, p []byte) error {
	c := in.c
	if h.stream == 0 || h.stream%2 == 0 {
		return fault(ProtocolError, "HEADERS on a stream that the peer can't open")
	}
	p, _, err := unpad(h, p)
	if err != nil {
		return err
	}
	in.selfish = false
	if h.has(flagPriority) {
		if len(p) < 5 {
			return fault(FrameSizeError, "HEADERS with a priority have less than 5 bytes")
		}
		in.selfish = binary.BigEndian.Uint32(p)&maxStreamID == h.stream
		p = p[5:]
	}
	in.blockStream, in.blockEnd, in.blockBytes, in.blockFrames = h.stream, h.has(flagEndStream), 0, 0
	in.dec.begin()
	if !h.has(flagEndHeaders) {
		c.mu.Lock()
		c.blockSince = time.Now()
		c.tick.Reset(c.options.Timeouts.Head)
		c.mu.Unlock()
	}
	return in.fragment(h, p)
}

// fragment decodes a part of a header block as it comes, so that no block is
// ever kept as a whole.
func (in *reader) fragment(h *header, p []byte) error {
	c := in.c
	in.blockBytes += len(p)
	in.blockFrames++
	switch {
	case in.blockBytes > c.options.Limits.BlockBytes || in.blockFrames > c.options.Limits.BlockFrames:
		return fault(EnhanceYourCalm, "header block is too large")
	case len(p) == 0 && h.kind == typeContinuation:
		if err := in.charge(); err != nil {
			return err
		}
	}
	if _, err := in.dec.hp.Write(p); err != nil {
		return fault(CompressionError, "header block can't be decoded")
	}
	if !h.has(flagEndHeaders) {
		return nil
	}
	if err := in.dec.hp.Close(); err != nil {
		return fault(CompressionError, "header block ends inside a field")
	}
	id, end := in.blockStream, in.blockEnd
	in.blockStream = 0
	if in.blockFrames > 1 {
		c.mu.Lock()
		c.blockSince = time.Time{}
		c.mu.Unlock()
	}
	return in.message(id, end)
}

// message is a whole header block.
func (in *reader) message(id uint32, end bool) error {
	c := in.c
	c.mu.Lock()
	s, idle := c.find(id)
	if s == nil && !idle {
		reset := c.wasReset(id)
		c.mu.Unlock()
		if reset || c.client {
			return in.charge()
		}
		return fault(StreamClosed, "HEADERS on a closed stream")
	}
	if idle && c.client {
		c.mu.Unlock()
		return fault(ProtocolError, "HEADERS on an idle stream")
	}
	if idle {
		return in.opened(id, end) // unlocks
	}
	if s.remoteEnd {
		c.mu.Unlock()
		return in.reset(s, StreamClosed, errors.New("HEADERS after the end of the stream"))
	}
	kind, recv := trailers, s.recv
	if s.response && !s.headed {
		kind = response
	}
	c.mu.Unlock()
	if err := in.dec.finish(&in.head, kind); err != nil {
		return in.reset(s, ProtocolError, err)
	}
	h := &in.head
	if h.Excessive {
		return in.reset(s, EnhanceYourCalm, errors.New("too many fields"))
	}
	c.mu.Lock()
	var bad error
	switch {
	case kind == trailers && !end:
		bad = malformed("trailers do not end the stream")
	case kind == trailers:
		if s.expect >= 0 && s.got != s.expect && !s.noBody {
			bad = malformed("Content-Length is not the length of the body")
		}
	case h.Status < 200:
		if end {
			bad = malformed("interim response ends the stream")
		}
	default:
		s.headed = true
		s.progress = time.Now()
		s.noBody = s.noBody || h.Status == 204 || h.Status == 304
		if s.expect = h.Length; end && h.Length > 0 && !s.noBody {
			bad = malformed("Content-Length without a body")
		}
	}
	c.mu.Unlock()
	if bad != nil {
		return in.reset(s, ProtocolError, bad)
	}
	if kind == response && h.Status < 200 {
		if err := in.charge(); err != nil {
			return err
		}
	}
	if end {
		in.remoteEnd(s)
	}
	if recv != nil {
		recv.Head(s, h, end)
	}
	return nil
}

// opened is a client's new stream. mu is held, and released.
func (in *reader) opened(id uint32, end bool) error {
	c := in.c
	if c.state >= leaving && id > c.lastGood {
		// The client opened it before it knew; it will repeat it elsewhere. What
		// else of it is under way is no fault.
		c.lastPeer = id
		c.forgetReset(id)
		c.mu.Unlock()
		return in.charge()
	}
	c.lastPeer = id
	s := &Stream{conn: c, id: id, sendWindow: c.peerWindow, recvWindow: c.options.Limits.StreamWindow, expect: -1, headed: true}
	full := uint32(len(c.streams)) >= c.options.Limits.Streams
	backlog := len(c.out) > c.options.Limits.Unsent
	if !full {
		c.streams[id] = s
		s.remoteEnd = end
	}
	s.progress = time.Now()
	c.control.earn(2)
	c.mu.Unlock()
	if backlog {
		return fault(EnhanceYourCalm, "answers are not read")
	}
	if full {
		return in.resetID(id, RefusedStream)
	}
	if in.selfish { // RFC 7540 section 5.3.1
		return in.reset(s, ProtocolError, errors.New("stream depends on itself"))
	}
	h := &in.head
	if err := in.dec.finish(h, request); err != nil {
		c.options.Handler.Bad(0, err.Error())
		return in.reset(s, ProtocolError, err)
	}
	if h.Excessive {
		c.options.Handler.Bad(431, "too many fields")
		in.answer(s, h.GRPC, "431")
		return in.chargeReset()
	}
	if end && h.Length > 0 {
		c.options.Handler.Bad(0, "Content-Length without a body")
		return in.reset(s, ProtocolError, malformed("Content-Length without a body"))
	}
	c.mu.Lock()
	s.expect = h.Length
	c.mu.Unlock()
	recv := c.options.Handler.Open(s, h, end)
	c.mu.Lock()
	if s.recv == nil {
		s.recv = recv
	}
	if s.recv == nil && !s.closed && !s.localEnd {
		c.resetLocked(s, InternalError)
	}
	c.mu.Unlock()
	return nil
}

// answer sends a response that is a status alone.
func (in *reader) answer(s *Stream, grpc bool, status string) {
	w, ok := s.Begin()
	if !ok {
		return
	}
	if grpc {
		w.Field(":status", "200")
		w.Field("content-type", mediaGRPC)
		w.Field("grpc-status", "8")
		w.Field("grpc-message", "hauberk: the request has too many fields")
	} else {
		w.Field(":status", status)
	}
	w.End(true)
	s.Finish()
}
