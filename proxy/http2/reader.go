package http2

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"sync"
	"time"
)

// reader is the reading side of a connection. Its goroutine owns it.
type reader struct {
	c     *Conn
	buf   []byte
	r, w  int
	large bool
	few   int // small reads in a row into a large buffer

	dec  *decoder
	head Head

	// The header block that is being received.
	blockStream uint32
	blockEnd    bool
	selfish     bool // it makes the stream depend on itself
	blockBytes  int
	blockFrames int

	// Connections that callbacks have appended to.
	dirty []*Conn
}

var (
	smallBuffers = sync.Pool{New: func() any { b := make([]byte, smallRead); return &b }}
	largeBuffers = sync.Pool{New: func() any { b := make([]byte, largeRead); return &b }}
)

func (in *reader) start(first []byte) {
	if len(first) > smallRead {
		in.buf, in.large = *largeBuffers.Get().(*[]byte), true
		if len(first) > largeRead { // what was peeked at is less
			in.buf = make([]byte, len(first))
		}
	} else {
		in.buf = *smallBuffers.Get().(*[]byte)
	}
	in.w = copy(in.buf, first)
}

func (in *reader) release() {
	b := in.buf
	in.buf, in.r, in.w = nil, 0, 0
	switch len(b) {
	case smallRead:
		smallBuffers.Put(&b)
	case largeRead:
		largeBuffers.Put(&b)
	}
}

// resize changes to another size of buffer.
func (in *reader) resize(large bool) {
	old := in.buf[in.r:in.w]
	var next []byte
	if large {
		next = *largeBuffers.Get().(*[]byte)
	} else {
		next = *smallBuffers.Get().(*[]byte)
	}
	n := copy(next, old)
	in.release()
	in.buf, in.w, in.large, in.few = next, n, large, 0
}

// After has other flushed before the reader of c waits for more. It is for
// callbacks of c's reader only.
func (c *Conn) After(other *Conn) {
	for _, d := range c.in.dirty {
		if d == other {
			return
		}
	}
	c.in.dirty = append(c.in.dirty, other)
}

var errWoken = errors.New("woken")

// fill reads more. Before it waits everything that was caused by what was read
// before gets written.
func (in *reader) fill() error {
	if in.r == in.w {
		in.r, in.w = 0, 0
	}
	if in.w == len(in.buf) {
		switch {
		case in.r > 0:
			in.w = copy(in.buf, in.buf[in.r:in.w])
			in.r = 0
		default:
			in.resize(true)
		}
	}
	c := in.c
	for i, d := range in.dirty {
		d.Flush()
		in.dirty[i] = nil
	}
	in.dirty = in.dirty[:0]
	c.mu.Lock()
	c.blocked = true
	over := c.state == closing || c.err != nil
	unsent := len(c.out) > 0
	c.mu.Unlock()
	if over {
		return errWoken
	}
	if unsent {
		c.Flush()
	}
	n, err := c.nc.Read(in.buf[in.w:])
	c.mu.Lock()
	c.blocked = false
	over = c.state == closing || c.err != nil
	c.mu.Unlock()
	in.w += n
	switch {
	case over:
		return errWoken
	case n == 0 && err == nil:
		return io.ErrNoProgress
	case n == 0:
		return err
	case !in.large && in.w == len(in.buf):
		in.resize(true)
	case in.large && in.w <= smallRead:
		if in.few++; in.few >= 16 && in.r == 0 {
			in.resize(false)
		}
	default:
		in.few = 0
	}
	return nil
}

// need waits until n bytes are there.
func (in *reader) need(n int) error {
	if n > len(in.buf) && !in.large {
		in.resize(true)
	}
	for in.w-in.r < n {
		if err := in.fill(); err != nil {
			return err
		}
	}
	return nil
}

func isEnd(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) || errors.Is(err, errWoken)
}

// loop reads frames until there are no more.
func (in *reader) loop() error {
	c := in.c
	if !c.client {
		if err := in.need(len(Preface)); err != nil {
			return err
		}
		if string(in.buf[in.r:in.r+len(Preface)]) != Preface {
			return fault(ProtocolError, "no HTTP/2 preface")
		}
		in.r += len(Preface)
	}
	for first := true; ; first = false {
		if err := in.need(frameHeader); err != nil {
			return err
		}
		h := parseHeader(in.buf[in.r:])
		if first && (h.kind != typeSettings || h.has(flagAck)) {
			if c.client {
				return fault(ProtocolError, "the server does not speak HTTP/2")
			}
			return fault(ProtocolError, "the first frame is not SETTINGS")
		}
		in.r += frameHeader
		if h.length > maxFrame {
			return fault(FrameSizeError, "frame is larger than what was agreed")
		}
		if in.blockStream != 0 && (h.kind != typeContinuation || h.stream != in.blockStream) {
			return fault(ProtocolError, "a frame interrupts a header block")
		}
		if h.kind == typeData {
			if err := in.data(&h); err != nil {
				return err
			}
			continue
		}
		if err := in.need(h.length); err != nil {
			return err
		}
		payload := in.buf[in.r : in.r+h.length]
		in.r += h.length
		if err := in.frame(&h, payload); err != nil {
			return err
		}
	}
}

// charge takes a frame that costs the peer little from its budget.
func (in *reader) charge() error {
	c := in.c
	c.mu.Lock()
	ok := c.control.spend(nanoseconds)
	full := len(c.out) > c.options.Limits.Unsent
	c.mu.Unlock()
	if !ok {
		return fault(EnhanceYourCalm, "too many control frames")
	}
	if full {
		return fault(EnhanceYourCalm, "answers are not read")
	}
	return nil
}

// chargeReset takes a stream that ended early from the budget.
func (in *reader) chargeReset() error {
	c := in.c
	c.mu.Lock()
	ok := c.resets.spend(nanoseconds)
	c.mu.Unlock()
	if !ok {
		return fault(EnhanceYourCalm, "too many streams are reset")
	}
	return nil
}

func nanoseconds() int64 { return time.Now().UnixNano() }

// reset ends a stream that is at fault, which the peer pays for: it must not
// make us reset streams for free either.
func (in *reader) reset(s *Stream, code Code, why error) error {
	c := in.c
	c.mu.Lock()
	recv := s.recv
	was := s.closed
	if !was {
		c.resetLocked(s, code)
	}
	c.mu.Unlock()
	if !was && recv != nil {
		recv.Closed(s, Closing{Code: code, Err: why})
	}
	return in.chargeReset()
}

// resetID is reset for a stream that is not known.
func (in *reader) resetID(id uint32, code Code) error {
	c := in.c
	c.mu.Lock()
	c.out = appendReset(c.out, id, code)
	c.forgetReset(id)
	c.mu.Unlock()
	return in.chargeReset()
}

// find is a stream by its number. idle says that it was never open.
func (c *Conn) find(id uint32) (s *Stream, idle bool) {
	s = c.streams[id]
	if s != nil {
		return s, false
	}
	if c.client {
		return nil, id >= c.nextID || id%2 == 0
	}
	return nil, id > c.lastPeer || id%2 == 0
}

// wasReset reports whether we reset a stream a short time ago; mu is held.
func (c *Conn) wasReset(id uint32) bool {
	for _, g := range c.gone {
		if g == id {
			return true
		}
	}
	return false
}

// data passes a DATA frame's payload on as it comes.
func (in *reader) data(h *header) error {
	c := in.c
	if h.stream == 0 {
		return fault(ProtocolError, "DATA without a stream")
	}
	padding := 0
	rest := h.length
	if h.has(flagPadded) {
		if rest == 0 {
			return fault(FrameSizeError, "padded DATA without a length of the padding")
		}
		if err := in.need(1); err != nil {
			return err
		}
		padding = int(in.buf[in.r])
		in.r++
		rest--
		if padding > rest {
			return fault(ProtocolError, "padding is longer than its frame")
		}
		rest -= padding
	}
	end, empty := h.has(flagEndStream), rest == 0
	c.mu.Lock()
	s, idle := c.find(h.stream)
	if idle {
		c.mu.Unlock()
		return fault(ProtocolError, "DATA on an idle stream")
	}
	c.recvWindow -= h.length
	if c.recvWindow < 0 {
		c.mu.Unlock()
		return fault(FlowControlError, "more DATA than the connection's window")
	}
	c.uncredited += h.length
	var recv Receiver
	var bad error
	code := ProtocolError
	known := s != nil
	reset := !known && c.wasReset(h.stream)
	if known {
		recv = s.recv
		s.recvWindow -= h.length
		s.got += int64(rest)
		switch {
		case s.remoteEnd:
			code, bad = StreamClosed, errors.New("DATA after the end of the stream")
		case s.recvWindow < 0:
			code, bad = FlowControlError, errors.New("more DATA than the stream's window")
		case s.response && !s.headed:
			bad = malformed("DATA before the response's head")
		case s.expect >= 0 && (s.got > s.expect || end && s.got != s.expect) && !s.noBody:
			bad = malformed("Content-Length is not the length of the body")
		case s.noBody && rest > 0:
			bad = malformed("body where there can be none")
		default:
			s.held += rest
			c.queued += rest
			s.toCredit += h.length - rest // padding is passed on to nobody
		}
	}
	if rest > 0 && known && bad == nil {
		c.control.earn(2)
	}
	c.refill()
	c.mu.Unlock()
	switch {
	case bad != nil:
		if err := in.reset(s, code, bad); err != nil {
			return err
		}
		known = false
	case known && recv == nil:
		known = false // it was answered, and nobody wants the rest
	case !known && !reset:
		if err := in.resetID(h.stream, StreamClosed); err != nil {
			return err
		}
	case rest == 0 && !end, !known:
		if err := in.charge(); err != nil {
			return err
		}
	}
	for rest > 0 {
		if in.r == in.w {
			if err := in.fill(); err != nil {
				return err
			}
		}
		n := min(rest, in.w-in.r)
		p := in.buf[in.r : in.r+n]
		rest -= n
		last := rest == 0 && end
		if known {
			if last {
				in.remoteEnd(s)
			}
			recv.Data(s, p, last)
		}
		in.r += n
	}
	if known && end && empty {
		in.remoteEnd(s)
		recv.Data(s, nil, true)
	}
	return in.skip(padding)
}

func (in *reader) skip(n int) error {
	for n > 0 {
		if in.r == in.w {
			if err := in.fill(); err != nil {
				return err
			}
		}
		k := min(n, in.w-in.r)
		in.r += k
		n -= k
	}
	return nil
}

// remoteEnd notes that the peer's direction of a stream has ended.
func (in *reader) remoteEnd(s *Stream) {
	c := in.c
	c.mu.Lock()
	s.remoteEnd = true
	if s.localEnd && !s.closed {
		c.removeLocked(s)
		c.resets.earn(1)
	}
	c.mu.Unlock()
}

// frame handles every frame but DATA.
func (in *reader) frame(h *header, p []byte) error {
	switch h.kind {
	case typeHeaders:
		return in.headers(h, p)
	case typeContinuation:
		if in.blockStream == 0 {
			return fault(ProtocolError, "CONTINUATION without a header block")
		}
		return in.fragment(h, p)
	}
	if err := in.charge(); err != nil {
		return err
	}
	switch h.kind {
	case typePriority:
		if h.stream == 0 {
			return fault(ProtocolError, "PRIORITY without a stream")
		}
		if h.length != 5 {
			return in.resetID(h.stream, FrameSizeError)
		}
		if binary.BigEndian.Uint32(p)&maxStreamID == h.stream {
			return in.resetID(h.stream, ProtocolError)
		}
	case typeReset:
		return in.rstStream(h, p)
	case typeSettings:
		return in.settings(h, p)
	case typePush:
		return fault(ProtocolError, "PUSH_PROMISE is not accepted")
	case typePing:
		return in.ping(h, p)
	case typeGoAway:
		return in.goAway(h, p)
	case typeWindow:
		return in.windowUpdate(h, p)
	}
	return nil // unknown types are ignored (RFC 9113 section 5.5)
}

func (in *reader) rstStream(h *header, p []byte) error {
	if h.stream == 0 {
		return fault(ProtocolError, "RST_STREAM without a stream")
	}
	if h.length != 4 {
		return fault(FrameSizeError, "RST_STREAM has not 4 bytes")
	}
	c := in.c
	code := Code(binary.BigEndian.Uint32(p))
	c.mu.Lock()
	s, idle := c.find(h.stream)
	if idle {
		c.mu.Unlock()
		return fault(ProtocolError, "RST_STREAM on an idle stream")
	}
	var recv Receiver
	if s != nil {
		recv = s.recv
		c.removeLocked(s)
	}
	for i := range c.gone {
		if c.gone[i] == h.stream {
			c.gone[i] = 0 // it has nothing under way any more
		}
	}
	c.mu.Unlock()
	if recv != nil {
		recv.Closed(s, Closing{Code: code, Remote: true, Refused: c.client && code == RefusedStream,
			Err: errors.New("http/2: the peer reset the stream with " + code.String())})
	}
	if c.client {
		return nil // the server pays by its work
	}
	return in.chargeReset()
}

func (in *reader) settings(h *header, p []byte) error {
	c := in.c
	if h.stream != 0 {
		return fault(ProtocolError, "SETTINGS on a stream")
	}
	if h.has(flagAck) {
		if h.length != 0 {
			return fault(FrameSizeError, "acknowledgement of SETTINGS has a payload")
		}
		return nil
	}
	if h.length%6 != 0 {
		return fault(FrameSizeError, "SETTINGS have not 6 bytes each")
	}
	c.mu.Lock()
	first := !c.settled
	if first && c.client {
		// A server that does not say allows any number; more than we take of a
		// client is never needed.
		c.peerStreams = 1 << 20
	}
	c.settled = true
	var err error
	for ; len(p) > 0 && err == nil; p = p[6:] {
		err = c.setting(binary.BigEndian.Uint16(p), binary.BigEndian.Uint32(p[2:]))
	}
	c.out = appendHeader(c.out, 0, typeSettings, flagAck, 0)
	credits := c.pump(nil)
	if first && c.tick != nil {
		c.tick.Reset(c.nextTick())
	}
	c.mu.Unlock()
	give(credits)
	return err
}

// setting takes one of the peer's settings; mu is held.
func (c *Conn) setting(id uint16, v uint32) error {
	switch id {
	case settingTableSize:
		c.enc.SetMaxDynamicTableSize(min(v, tableSize))
	case settingPush:
		if v > 1 || v == 1 && c.client {
			return fault(ProtocolError, "ENABLE_PUSH is neither 0 nor 1")
		}
	case settingStreams:
		if c.client {
			c.peerStreams = v
		}
	case settingWindow:
		if v > maxWindow {
			return fault(FlowControlError, "INITIAL_WINDOW_SIZE is too large")
		}
		delta := int(v) - c.peerWindow
		c.peerWindow = int(v)
		for _, s := range c.streams {
			s.sendWindow += delta
			if s.sendWindow > maxWindow {
				return fault(FlowControlError, "INITIAL_WINDOW_SIZE makes a window too large")
			}
			s.wait()
		}
	case settingFrameSize:
		if v < maxFrame || v > 1<<24-1 {
			return fault(ProtocolError, "MAX_FRAME_SIZE is out of range")
		}
		// Frames of more than the least size would only hold up the others.
	}
	return nil
}

func (in *reader) ping(h *header, p []byte) error {
	if h.stream != 0 {
		return fault(ProtocolError, "PING on a stream")
	}
	if h.length != 8 {
		return fault(FrameSizeError, "PING has not 8 bytes")
	}
	c := in.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if h.has(flagAck) {
		if c.state == announced && string(p) == string(drainPing) {
			c.lastWords()
		}
		return nil
	}
	c.out = append(appendHeader(c.out, 8, typePing, flagAck, 0), p...)
	return nil
}

func (in *reader) goAway(h *header, p []byte) error {
	if h.stream != 0 {
		return fault(ProtocolError, "GOAWAY on a stream")
	}
	if h.length < 8 {
		return fault(FrameSizeError, "GOAWAY has less than 8 bytes")
	}
	c := in.c
	if !c.client {
		return nil // a client that says it will open no more streams
	}
	last, code := binary.BigEndian.Uint32(p)&maxStreamID, Code(binary.BigEndian.Uint32(p[4:]))
	told := &ConnError{Code: code, Reason: printable(string(p[8:]))}
	c.mu.Lock()
	c.state = max(c.state, leaving)
	var list []*Stream
	var recv []Receiver
	for id, s := range c.streams {
		if id > last {
			list, recv = append(list, s), append(recv, s.recv)
		}
	}
	for _, s := range list {
		c.removeLocked(s)
	}
	c.maybeClose()
	c.mu.Unlock()
	for i, s := range list {
		if recv[i] != nil {
			recv[i].Closed(s, Closing{Code: RefusedStream, Refused: true, Remote: true, Err: told})
		}
	}
	return nil
}

func (in *reader) windowUpdate(h *header, p []byte) error {
	if h.length != 4 {
		return fault(FrameSizeError, "WINDOW_UPDATE has not 4 bytes")
	}
	c := in.c
	n := int(binary.BigEndian.Uint32(p) & maxStreamID)
	if h.stream == 0 {
		if n == 0 {
			return fault(ProtocolError, "WINDOW_UPDATE by nothing")
		}
		c.mu.Lock()
		c.sendWindow += n
		over := c.sendWindow > maxWindow
		var credits []credit
		if !over {
			credits = c.pump(nil)
		}
		c.mu.Unlock()
		give(credits)
		if over {
			return fault(FlowControlError, "the connection's window is too large")
		}
		return nil
	}
	c.mu.Lock()
	s, idle := c.find(h.stream)
	if idle {
		c.mu.Unlock()
		return fault(ProtocolError, "WINDOW_UPDATE on an idle stream")
	}
	if s == nil {
		c.mu.Unlock()
		return nil
	}
	s.sendWindow += n
	over := s.sendWindow > maxWindow
	var credits []credit
	if n > 0 && !over {
		s.wait()
		credits = c.pump(nil)
	}
	c.mu.Unlock()
	give(credits)
	switch {
	case n == 0:
		return in.reset(s, ProtocolError, errors.New("WINDOW_UPDATE by nothing"))
	case over:
		return in.reset(s, FlowControlError, errors.New("the stream's window is too large"))
	}
	return nil
}
