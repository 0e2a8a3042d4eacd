package http1

import (
	"io"
	"strconv"
)

// Writer gathers what is written until Flush, so that a head and the start of
// its body leave in one packet and one TLS record. It borrows its buffer only
// while something is in it. It is used by one goroutine at a time.
type Writer struct {
	dst io.Writer
	buf []byte // nil while empty
	err error

	scratch [64]byte
}

// Scratch is an empty slice of 64 bytes to put a value together in, for the
// next Write only.
func (w *Writer) Scratch() []byte { return w.scratch[:0] }

// NewWriter writes to dst.
func NewWriter(dst io.Writer) *Writer { return &Writer{dst: dst} }

// Buffered is how many bytes wait for Flush.
func (w *Writer) Buffered() int { return len(w.buf) }

// Reset forgets what is buffered.
func (w *Writer) Reset() {
	if w.buf != nil {
		giveBack(w.buf)
		w.buf = nil
	}
}

// Write appends p, sending what does not fit.
func (w *Writer) Write(p []byte) (int, error) {
	if w.err != nil {
		return 0, w.err
	}
	size := len(p)
	w.reserve(len(p))
	if len(w.buf) == 0 && len(p) >= largeBuffer/2 {
		w.send(p)
		return size, w.err
	}
	for len(p) > 0 && w.err == nil {
		if len(w.buf) == cap(w.buf) {
			w.flush(true)
			continue
		}
		n := min(len(p), cap(w.buf)-len(w.buf))
		w.buf = append(w.buf, p[:n]...)
		p = p[n:]
	}
	return size, w.err
}

// reserve makes the buffer large when n more bytes do not fit a small one.
func (w *Writer) reserve(n int) {
	if w.buf == nil {
		w.buf = borrow(min(max(n, 1), largeBuffer))[:0]
		return
	}
	if len(w.buf)+n > cap(w.buf) && cap(w.buf) < largeBuffer {
		bigger := append(borrow(largeBuffer)[:0], w.buf...)
		giveBack(w.buf)
		w.buf = bigger
	}
}

// WriteString appends s.
func (w *Writer) WriteString(s string) (int, error) {
	if w.err != nil {
		return 0, w.err
	}
	w.reserve(len(s))
	if len(s) <= cap(w.buf)-len(w.buf) {
		w.buf = append(w.buf, s...)
		return len(s), nil
	}
	return w.Write([]byte(s))
}

// WriteField appends a field line.
func (w *Writer) WriteField(name, value string) {
	w.WriteString(name)
	w.WriteString(": ")
	w.WriteString(value)
	w.WriteString("\r\n")
}

// WriteRaw appends a field line as it was read.
func (w *Writer) WriteRaw(f *Field) {
	w.reserve(len(f.Name) + len(f.Value) + 4)
	w.Write(f.Name)
	w.WriteString(": ")
	w.Write(f.Value)
	w.WriteString("\r\n")
}

// WriteInt appends n in decimal.
func (w *Writer) WriteInt(n int64) {
	w.Write(strconv.AppendInt(w.Scratch(), n, 10))
}

// WriteChunk appends p as one chunk.
func (w *Writer) WriteChunk(p []byte) {
	if len(p) == 0 {
		return
	}
	w.reserve(len(p) + 20)
	w.Write(append(strconv.AppendInt(w.Scratch(), int64(len(p)), 16), '\r', '\n'))
	w.Write(p)
	w.WriteString("\r\n")
}

// Flush sends what is buffered. It returns the first error of all writes.
func (w *Writer) Flush() error {
	w.flush(false)
	return w.err
}

func (w *Writer) flush(keep bool) {
	if len(w.buf) == 0 {
		return
	}
	if w.err == nil {
		w.send(w.buf)
	}
	if keep {
		w.buf = w.buf[:0]
		return
	}
	giveBack(w.buf)
	w.buf = nil
}

func (w *Writer) send(p []byte) {
	if _, err := w.dst.Write(p); err != nil {
		w.err = err
	}
}
