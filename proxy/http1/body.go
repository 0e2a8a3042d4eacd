package http1

import (
	"bytes"
	"errors"
	"io"
)

// Body is the body of the message whose head was just read. It hands out
// slices of the reader's buffer. The zero Body is empty and at its end.
type Body struct {
	r       *Reader
	framing Framing
	left    int64 // of the length, or of the chunk
	state   chunkState
	done    bool
	ext     int // bytes of chunk extensions so far

	// Trailers are the trailer fields, once Next has returned io.EOF.
	Trailers Head
}

type chunkState uint8

const (
	chunkSize chunkState = iota
	chunkData
	chunkEnd
)

// Start begins the body of h.
func (b *Body) Start(r *Reader, h *Head) {
	trailers := b.Trailers
	trailers.reset()
	*b = Body{r: r, framing: h.Framing, Trailers: trailers}
	switch h.Framing {
	case ByLength:
		b.left = h.Length
		if h.Length > smallBuffer {
			r.Enlarge()
		}
	case Chunked, UntilEOF:
	default:
		b.done = true
	}
}

// Done reports whether the whole body was read.
func (b *Body) Done() bool { return b.done }

// Pending reports whether Next may have to read from the connection, so that
// what was handed out before should be on its way first. That the end of a
// chunk is buffered is not enough: Next goes on to the chunk behind it.
func (b *Body) Pending() bool {
	p := b.r.Buffered()
	switch {
	case b.done:
		return false
	case b.framing != Chunked || b.state == chunkData:
		return len(p) == 0
	case b.state == chunkEnd:
		if len(p) < 2 {
			return true
		}
		p = p[2:]
	}
	line := bytes.IndexByte(p, '\n')
	if line < 0 || line+1 == len(p) {
		return true
	}
	// It may be the last chunk, with trailers that are not all here.
	rest := p[line+1:]
	return p[0] == '0' && !bytes.HasPrefix(rest, crlfcrlf[:2]) && !bytes.Contains(rest, crlfcrlf)
}

// Next returns the next piece of the body, valid until the next call, and
// io.EOF after the last. A body that ends before its framing says so is
// io.ErrUnexpectedEOF.
func (b *Body) Next() ([]byte, error) {
	if b.done {
		return nil, io.EOF
	}
	switch b.framing {
	case ByLength:
		return b.nextData()
	case Chunked:
		return b.nextChunk()
	}
	if len(b.r.Buffered()) == 0 {
		if err := b.r.Fill(largeBuffer); err != nil {
			if errors.Is(err, io.EOF) {
				b.finish()
				return nil, io.EOF
			}
			return nil, err
		}
	}
	p := b.r.Buffered()
	if len(p) == smallBuffer {
		defer b.r.growAfter()
	}
	b.r.Discard(len(p))
	return p, nil
}

// growAfter marks that the next Fill should use a large buffer: a small one
// was filled to its brim. The slice handed out stays valid because the small
// buffer is not given back to the pool but left to the collector.
func (r *Reader) growAfter() {
	if len(r.buf) < largeBuffer && r.r == r.w {
		r.buf, r.r, r.w = borrow(largeBuffer), 0, 0
	}
}

func (b *Body) finish() {
	b.done = true
	b.r.shrink()
}

// nextData hands out at most b.left bytes.
func (b *Body) nextData() ([]byte, error) {
	if len(b.r.Buffered()) == 0 {
		if err := b.r.Fill(largeBuffer); err != nil {
			return nil, unexpected(err)
		}
	}
	p := b.r.Buffered()
	if int64(len(p)) > b.left {
		p = p[:b.left]
	}
	full := len(p) == smallBuffer
	b.r.Discard(len(p))
	b.left -= int64(len(p))
	if b.left == 0 {
		if b.framing == ByLength {
			// The buffer stays until the next call: p points into it.
			b.done = true
		} else {
			b.state = chunkEnd
		}
	} else if full {
		b.r.growAfter()
	}
	return p, nil
}

func (b *Body) nextChunk() ([]byte, error) {
	for {
		switch b.state {
		case chunkData:
			return b.nextData()
		case chunkEnd:
			line, err := b.line(2)
			if err != nil {
				return nil, err
			}
			if len(line) != 0 {
				return nil, ErrChunk
			}
			b.state = chunkSize
		case chunkSize:
			line, err := b.line(18 + b.r.limits.ChunkExtensionBytes)
			if err != nil {
				return nil, err
			}
			if b.left, err = b.parseChunkSize(line); err != nil {
				return nil, err
			}
			if b.left == 0 {
				if err := b.readTrailers(); err != nil {
					return nil, err
				}
				b.finish()
				return nil, io.EOF
			}
			b.state = chunkData
		}
	}
}

// line reads one line that ends with CRLF, of at most max bytes before it.
func (b *Body) line(max int) ([]byte, error) {
	scanned := 0
	for {
		buf := b.r.Buffered()
		for ; scanned < len(buf); scanned++ {
			c := buf[scanned]
			if c == '\n' {
				if scanned == 0 || buf[scanned-1] != '\r' {
					return nil, ErrBareLF
				}
				line := buf[:scanned-1]
				b.r.Discard(scanned + 1)
				return line, nil
			}
			if scanned > 0 && buf[scanned-1] == '\r' {
				return nil, ErrBareCR
			}
			if scanned >= max+2 {
				return nil, ErrChunkExtension
			}
		}
		if err := b.r.Fill(b.r.limits.HeadBytes); err != nil {
			return nil, unexpected(err)
		}
	}
}

// parseChunkSize takes 1*HEXDIG, then extensions, which are bounded and
// dropped (RFC 9112 section 7.1.1).
func (b *Body) parseChunkSize(line []byte) (int64, error) {
	var n int64
	i := 0
	for ; i < len(line) && isHex[line[i]]; i++ {
		if i >= 15 {
			return 0, ErrChunk
		}
		d := line[i]
		switch {
		case d <= '9':
			d -= '0'
		default:
			d = d | 0x20 - 'a' + 10
		}
		n = n<<4 | int64(d)
	}
	if i == 0 {
		return 0, ErrChunk
	}
	if i == len(line) {
		return n, nil
	}
	ext := line[i:]
	b.ext += len(ext)
	if len(ext) > b.r.limits.ChunkExtensionBytes || b.ext > 16*b.r.limits.ChunkExtensionBytes {
		return 0, ErrChunkExtension
	}
	if ext[0] != ';' || len(ext) == 1 {
		return 0, ErrChunk
	}
	for _, c := range ext {
		if !isFieldVchar[c] {
			return 0, ErrChunk
		}
	}
	return n, nil
}

func (b *Body) readTrailers() error {
	t := &b.Trailers
	t.reset()
	t.raw = t.raw[:0]
	for {
		line, err := b.line(b.r.limits.HeadBytes)
		if err != nil {
			if errors.Is(err, ErrChunkExtension) || errors.Is(err, io.ErrShortBuffer) {
				return ErrHeadSize
			}
			return err
		}
		if len(t.raw)+len(line)+2 > b.r.limits.HeadBytes {
			return ErrHeadSize
		}
		t.raw = append(append(t.raw, line...), '\r', '\n')
		if len(line) == 0 {
			return parseFields(t, t.raw, b.r.limits.Fields)
		}
	}
}

func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
