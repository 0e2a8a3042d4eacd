package http2

import (
	"bytes"
	"time"
	"unsafe"

	"golang.org/x/net/http2/hpack"
)

// Stream is one request and its response. Its methods may be called from any
// goroutine; what they append is written when the connection is flushed.
type Stream struct {
	conn *Conn
	id   uint32 // client: set by the first head

	// Guarded by conn.mu.
	recv               Receiver
	localEnd           bool // we sent our end
	remoteEnd          bool // the peer sent its end
	closed             bool // it is not in conn.streams any more
	headed             bool // the final head came
	noBody             bool // Content-Length says nothing about DATA
	inReady            bool
	pendingEnd         bool
	sendWindow         int
	recvWindow         int
	held               int // received and not passed on
	toCredit           int // passed on and not announced
	expect, got        int64
	pending            []byte // of the body, not yet framed, from taken on
	taken              int
	trailer            []Field
	source             *Stream // whose body is sent here
	skip               int64   // how much of it was credited by a stream before
	moved              int64   // how much of it was framed
	progress           time.Time
	response, released bool
}

// ID is the stream's number, 0 before its request was sent.
func (s *Stream) ID() uint32 { return s.id }

// Conn is the stream's connection.
func (s *Stream) Conn() *Conn { return s.conn }

// Receiver is who is told what arrives, nil before anybody is.
func (s *Stream) Receiver() Receiver {
	s.conn.mu.Lock()
	defer s.conn.mu.Unlock()
	return s.recv
}

// NewStream promises a stream to a server; ErrUnavailable when it takes none.
func (c *Conn) NewStream() (*Stream, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.availableLocked() {
		return nil, ErrUnavailable
	}
	c.reserved++
	return &Stream{conn: c, sendWindow: c.peerWindow, recvWindow: c.options.Limits.StreamWindow, expect: -1, response: true}, nil
}

func (c *Conn) availableLocked() bool {
	return c.err == nil && c.state == open && uint32(len(c.streams)+c.reserved) < c.peerStreams && c.nextID < maxStreamID-2
}

// Link says whose body is sent on s and who receives what s gets. credited is
// how much of that body was credited to its sender before.
func (s *Stream) Link(recv Receiver, source *Stream, credited int64) {
	s.conn.mu.Lock()
	s.recv, s.source, s.skip = recv, source, credited
	s.conn.mu.Unlock()
}

// NoBody says that the response has no body, whatever Content-Length says.
func (s *Stream) NoBody() { s.noBody = true }

// Moved is how much of the body was framed.
func (s *Stream) Moved() int64 {
	s.conn.mu.Lock()
	defer s.conn.mu.Unlock()
	return s.moved
}

// Abandon gives a promised stream back on which nothing was sent.
func (s *Stream) Abandon() {
	c := s.conn
	c.mu.Lock()
	if s.id == 0 && !s.released {
		s.released = true
		c.reserved--
		c.maybeClose()
	}
	c.mu.Unlock()
}

// Writer writes one header block. It holds the connection until End.
type Writer struct {
	s *Stream
	c *Conn
}

// Begin begins a header block. False means that the stream has ended, and that
// End must not be called.
func (s *Stream) Begin() (Writer, bool) {
	c := s.conn
	c.mu.Lock()
	if s.closed || s.localEnd || c.err != nil || s.id == 0 && (s.released || c.client && c.state >= closing) {
		c.mu.Unlock()
		return Writer{}, false
	}
	c.block.Reset()
	return Writer{s, c}, true
}

// Field writes a field that may come again with the same value.
func (w Writer) Field(name, value string) {
	_ = w.c.enc.WriteField(hpack.HeaderField{Name: name, Value: value}) // a bytes.Buffer takes everything
}

// Once writes a field whose value is not worth remembering. value is not kept.
func (w Writer) Once(name string, value []byte) {
	b := &w.c.block
	b.WriteByte(0) // literal without indexing, new name (RFC 7541 section 6.2.2)
	writeLength(b, len(name))
	b.WriteString(name)
	writeLength(b, len(value))
	b.Write(value)
}

// Secret writes a field that nobody may index.
func (w Writer) Secret(name, value string) {
	_ = w.c.enc.WriteField(hpack.HeaderField{Name: name, Value: value, Sensitive: true})
}

// Forward writes a field as it came.
func (w Writer) Forward(f *Field) {
	switch {
	case f.Sensitive:
		w.Secret(f.Name, f.Value)
	case changes(f.Name):
		w.Once(f.Name, view(f.Value))
	default:
		w.Field(f.Name, f.Value)
	}
}

// changes reports whether a field has another value each time.
func changes(name string) bool {
	switch name {
	case "content-length", "traceparent", "tracestate", "x-request-id", "x-b3-traceid", "x-b3-spanid", "b3", "grpc-timeout",
		"date", "etag", "last-modified", "if-none-match", "grpc-message", "range", "content-range":
		return true
	}
	return false
}

// End ends the header block and, with end, our direction of the stream.
func (w Writer) End(end bool) {
	c, s := w.c, w.s
	if s.id == 0 {
		c.reserved--
		s.id = c.nextID
		c.nextID += 2
		s.sendWindow = c.peerWindow // SETTINGS may have come since it was promised
		c.streams[s.id] = s
		s.progress = time.Now()
	}
	c.frameBlock(s.id, end)
	if end {
		s.endLocal()
	}
	c.mu.Unlock()
}

// frameBlock frames what was encoded; mu is held.
func (c *Conn) frameBlock(id uint32, end bool) {
	b := c.block.Bytes()
	kind, flags := typeHeaders, byte(0)
	if end {
		flags = flagEndStream
	}
	for {
		n := min(len(b), c.peerFrame)
		if n == len(b) {
			flags |= flagEndHeaders
		}
		c.out = appendHeader(c.out, n, kind, flags, id)
		c.out = append(c.out, b[:n]...)
		if b = b[n:]; len(b) == 0 {
			break
		}
		kind, flags = typeContinuation, 0
	}
	if c.block.Cap() > 16<<10 {
		c.block = bytes.Buffer{}
	}
}

// Write sends more of the body. What can't be sent now waits; the body's source
// is given credit as it is sent.
func (s *Stream) Write(p []byte, end bool) {
	c := s.conn
	c.mu.Lock()
	if s.closed || s.localEnd || s.pendingEnd || c.err != nil {
		c.mu.Unlock()
		return
	}
	n := 0
	if len(s.pending) == 0 {
		n = s.frame(p, end)
	}
	if n < len(p) {
		if len(s.pending) == 0 {
			s.progress = time.Now()
		}
		if s.taken > len(s.pending)/2 {
			s.pending = s.pending[:copy(s.pending, s.pending[s.taken:])]
			s.taken = 0
		}
		s.pending = append(s.pending, p[n:]...)
		s.pendingEnd = end
		s.wait()
	} else if end && !s.localEnd && len(s.pending) > 0 {
		s.pendingEnd = true
	}
	source := s.source
	n = s.countLocked(n)
	c.mu.Unlock()
	if n > 0 && source != nil {
		source.credit(n)
	}
}

// countLocked leaves out what was credited before; mu is held.
func (s *Stream) countLocked(n int) int {
	s.moved += int64(n)
	k := min(s.skip, int64(n))
	s.skip -= k
	return n - int(k)
}

// Trailer ends the body with fields. They are kept until they are sent.
func (s *Stream) Trailer(fields []Field) {
	c := s.conn
	c.mu.Lock()
	defer c.mu.Unlock()
	if s.closed || s.localEnd || s.pendingEnd || c.err != nil {
		return
	}
	if len(s.pending) > 0 {
		s.trailer, s.pendingEnd = append(make([]Field, 0, len(fields)), fields...), true
		return
	}
	s.encodeTrailer(fields)
	s.endLocal()
}

func (s *Stream) encodeTrailer(fields []Field) {
	c := s.conn
	if len(fields) == 0 {
		c.out = appendHeader(c.out, 0, typeData, flagEndStream, s.id)
		return
	}
	c.block.Reset()
	w := Writer{s, c}
	for i := range fields {
		w.Forward(&fields[i])
	}
	c.frameBlock(s.id, true)
}

// endLocal notes that our direction has ended; mu is held.
func (s *Stream) endLocal() {
	s.localEnd = true
	s.progress = time.Now()
	if s.remoteEnd {
		s.conn.removeLocked(s)
		s.conn.resets.earn(1)
	}
}

// Reset ends the stream with a code. Its receiver is told nothing any more.
func (s *Stream) Reset(code Code) {
	c := s.conn
	c.mu.Lock()
	if s.id == 0 && !s.released {
		s.released = true
		c.reserved--
		c.maybeClose()
	} else if !s.closed {
		c.resetLocked(s, code)
	}
	c.mu.Unlock()
}

// Finish ends a stream whose response is complete while its request is not: the
// client may stop sending (RFC 9113 section 8.1).
func (s *Stream) Finish() {
	c := s.conn
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case s.closed:
	case len(s.pending) > 0:
		// The window for the rest may never come: it stays until it does, is
		// reset or stalls.
	case !s.remoteEnd:
		c.resetLocked(s, NoError)
	}
}

func (c *Conn) resetLocked(s *Stream, code Code) {
	if s.id != 0 {
		c.out = appendReset(c.out, s.id, code)
		c.forgetReset(s.id)
	}
	c.removeLocked(s)
}

// forgetReset notes that what comes on a stream from now on is to be ignored;
// mu is held.
func (c *Conn) forgetReset(id uint32) {
	c.gone[c.goneNext] = id
	c.goneNext = (c.goneNext + 1) % len(c.gone)
}

// removeLocked forgets a stream; mu is held.
func (c *Conn) removeLocked(s *Stream) {
	if s.closed {
		return
	}
	s.closed = true
	delete(c.streams, s.id)
	c.queued -= s.held
	s.held, s.pending, s.trailer = 0, nil, nil
	c.refill()
	if len(c.streams) == 0 {
		c.idleSince = time.Now()
		c.maybeClose()
	}
}

// refill lets the peer send more on the connection, unless too much of what it
// sent still waits; mu is held.
func (c *Conn) refill() {
	if c.uncredited >= connWindow/2 && c.queued <= c.options.Limits.Queued {
		c.out = appendWindow(c.out, 0, c.uncredited)
		c.recvWindow += c.uncredited
		c.uncredited = 0
	}
}

// credit says that n bytes that came on s were passed on.
func (s *Stream) credit(n int) {
	c := s.conn
	c.mu.Lock()
	if s.closed || n <= 0 {
		c.mu.Unlock()
		return
	}
	before := len(c.out)
	n = min(n, s.held)
	s.held -= n
	c.queued -= n
	s.toCredit += n
	if !s.remoteEnd && s.toCredit >= c.options.Limits.StreamWindow/4 {
		c.out = appendWindow(c.out, s.id, s.toCredit)
		s.recvWindow += s.toCredit
		s.toCredit = 0
	}
	c.refill()
	if len(c.out) == before {
		c.mu.Unlock()
		return
	}
	c.kick()
}

// writeLength appends the length of a string literal (RFC 7541 section 5.1).
func writeLength(b *bytes.Buffer, n int) {
	if n < 127 {
		b.WriteByte(byte(n))
		return
	}
	b.WriteByte(127)
	for n -= 127; n >= 128; n >>= 7 {
		b.WriteByte(byte(n)&127 | 128)
	}
	b.WriteByte(byte(n))
}

// view is s as bytes without a copy; they must not be changed.
func view(s string) []byte { return unsafe.Slice(unsafe.StringData(s), len(s)) }
