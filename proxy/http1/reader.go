package http1

import (
	"bytes"
	"errors"
	"io"
	"sync"
)

// Sizes of buffers. Small ones hold heads; a large one is borrowed for as long
// as a body larger than a small one is passed on.
const (
	smallBuffer = 4 << 10
	largeBuffer = 32 << 10
)

// The pools hold arrays, because a pointer to one costs no allocation to put
// back.
var (
	smallPool = sync.Pool{New: func() any { return new([smallBuffer]byte) }}
	largePool = sync.Pool{New: func() any { return new([largeBuffer]byte) }}
)

func borrow(size int) []byte {
	switch {
	case size <= smallBuffer:
		return smallPool.Get().(*[smallBuffer]byte)[:]
	case size <= largeBuffer:
		return largePool.Get().(*[largeBuffer]byte)[:]
	}
	return make([]byte, size)
}

func giveBack(b []byte) {
	switch cap(b) {
	case smallBuffer:
		smallPool.Put((*[smallBuffer]byte)(b[:smallBuffer]))
	case largeBuffer:
		largePool.Put((*[largeBuffer]byte)(b[:largeBuffer]))
	}
}

// Reader reads messages from one connection. It is used by one goroutine at a
// time.
type Reader struct {
	src    io.Reader
	limits Limits
	buf    []byte // nil while released
	r, w   int    // unread bytes are buf[r:w]
	err    error  // of src, after the buffered bytes
}

// NewReader reads from src.
func NewReader(src io.Reader, limits Limits) *Reader {
	return &Reader{src: src, limits: limits}
}

// Buffered is what was read from the connection and not consumed. It is valid
// until the next call.
func (r *Reader) Buffered() []byte { return r.buf[r.r:r.w] }

// Discard consumes n buffered bytes.
func (r *Reader) Discard(n int) {
	r.r += n
	if r.r == r.w {
		r.r, r.w = 0, 0
	}
}

// Release gives the buffer back when nothing is buffered. The next read
// borrows one again.
func (r *Reader) Release() {
	if r.r == r.w && r.buf != nil {
		giveBack(r.buf)
		r.buf, r.r, r.w = nil, 0, 0
	}
}

// Fill reads once more from the connection behind what is buffered, making
// room up to max bytes. It returns io.ErrShortBuffer when max bytes are
// buffered already.
func (r *Reader) Fill(max int) error {
	if r.err != nil {
		return r.err
	}
	if r.buf == nil {
		r.buf, r.r, r.w = borrow(smallBuffer), 0, 0
	}
	if r.w == len(r.buf) {
		if err := r.makeRoom(max); err != nil {
			return err
		}
	}
	for range 100 {
		n, err := r.src.Read(r.buf[r.w:])
		r.w += n
		if err != nil {
			var t interface{ Timeout() bool }
			if !errors.As(err, &t) || !t.Timeout() {
				r.err = err
			}
		}
		if n > 0 {
			return nil
		}
		if err != nil {
			return err
		}
	}
	return io.ErrNoProgress
}

func (r *Reader) makeRoom(limit int) error {
	if r.r > 0 {
		copy(r.buf, r.buf[r.r:r.w])
		r.r, r.w = 0, r.w-r.r
		return nil
	}
	if len(r.buf) >= limit {
		return io.ErrShortBuffer
	}
	bigger := borrow(min(limit, max(2*len(r.buf), largeBuffer)))
	r.w = copy(bigger, r.buf[:r.w])
	giveBack(r.buf)
	r.buf = bigger
	return nil
}

// Enlarge swaps the buffer for a large one, for a body that will be long.
func (r *Reader) Enlarge() {
	if len(r.buf) >= largeBuffer {
		return
	}
	bigger := borrow(largeBuffer)
	n := copy(bigger, r.buf[r.r:r.w])
	if r.buf != nil {
		giveBack(r.buf)
	}
	r.buf, r.r, r.w = bigger, 0, n
}

// shrink swaps a large buffer back after a body, when what is left fits.
func (r *Reader) shrink() {
	if len(r.buf) <= smallBuffer || r.w-r.r > smallBuffer {
		return
	}
	if r.r == r.w {
		giveBack(r.buf)
		r.buf, r.r, r.w = nil, 0, 0
		return
	}
	smaller := borrow(smallBuffer)
	n := copy(smaller, r.buf[r.r:r.w])
	giveBack(r.buf)
	r.buf, r.r, r.w = smaller, 0, n
}

// Read reads raw bytes: what is buffered first, then from the connection.
func (r *Reader) Read(p []byte) (int, error) {
	if r.r < r.w {
		n := copy(p, r.buf[r.r:r.w])
		r.Discard(n)
		return n, nil
	}
	if r.err != nil {
		return 0, r.err
	}
	return r.src.Read(p)
}

// WaitByte returns when at least one byte is buffered.
func (r *Reader) WaitByte() error {
	if r.r < r.w {
		return nil
	}
	return r.Fill(smallBuffer)
}

// ReadRequest reads a request's head into h. Syntax errors are *Error, others
// are the connection's: io.EOF before the first byte, io.ErrUnexpectedEOF
// inside the head.
func (r *Reader) ReadRequest(h *Head) error {
	h.reset()
	if err := r.readHead(h); err != nil {
		return err
	}
	return parseRequest(h, r.limits.Fields)
}

// ReadResponse reads a response's head into h. The request decides about its
// body.
func (r *Reader) ReadResponse(h *Head, request *Head) error {
	h.reset()
	if err := r.readHead(h); err != nil {
		return err
	}
	return parseResponse(h, r.limits.Fields, request)
}

// HeadBuffered reports whether the next head can be read without waiting for
// the connection.
func (r *Reader) HeadBuffered() bool { return headEnd(r.buf[r.r:r.w], 0) > 0 }

// readHead copies everything up to and including the first empty line into
// h.raw, so that the buffer is free for the body while the head is used.
func (r *Reader) readHead(h *Head) error {
	scanned := 0
	for {
		b := r.buf[r.r:r.w]
		if end := headEnd(b, scanned); end > 0 {
			if end > r.limits.HeadBytes {
				return ErrHeadSize
			}
			h.raw = append(h.raw[:0], b[:end]...)
			r.Discard(end)
			r.shrink()
			return nil
		}
		if len(b) >= r.limits.HeadBytes {
			return ErrHeadSize
		}
		if len(b) > 0 && !isToken[b[0]] {
			return ErrMethod
		}
		// What can't become a head is refused at once: waiting for an empty line
		// that a lenient peer ends with a bare LF would be waiting for ever.
		if i := bytes.IndexByte(b[scanned:], '\n'); i >= 0 {
			if at := scanned + i; at == 0 || b[at-1] != '\r' {
				return ErrBareLF
			}
		}
		scanned = max(0, len(b)-3)
		if err := r.Fill(r.limits.HeadBytes); err != nil {
			switch {
			case errors.Is(err, io.ErrShortBuffer):
				return ErrHeadSize
			case errors.Is(err, io.EOF) && len(b) > 0:
				return io.ErrUnexpectedEOF
			}
			return err
		}
	}
}

// headEnd finds the end of the empty line, or 0. A head whose first line is
// empty ends there and is refused by the parser.
func headEnd(b []byte, from int) int {
	if len(b) >= 2 && b[0] == '\r' && b[1] == '\n' {
		return 2
	}
	if i := bytes.Index(b[from:], crlfcrlf); i >= 0 {
		return from + i + 4
	}
	return 0
}

var crlfcrlf = []byte("\r\n\r\n")
