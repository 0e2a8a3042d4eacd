// Package sniff finds out what a connection speaks by its first bytes, without
// consuming them. It never decides on what is missing: bytes that could still
// become something stricter are waited for.
package sniff

import (
	"bytes"
	"errors"
	"io"
	"net"
	"time"

	"github.com/hauberk-mesh/hauberk/proxy/http1"
)

// Protocol is what the first bytes are.
type Protocol uint8

// Silent: the client sent nothing in time. HTTP1: a request line of HTTP/1.x, or
// what a lenient server would take for one. HTTP2: its preface. TLS: a
// ClientHello, or its beginning. Unsure: it may be a request to a server that
// forgives much, but the strict parser can't read it, or too little came in
// time to tell. Ended: the client ended, or failed, before it could be told.
// Opaque: anything else.
const (
	Silent Protocol = iota
	HTTP1
	HTTP2
	TLS
	Unsure
	Opaque
	Ended
	more
)

// Unread reports whether the bytes may be, or bring, requests that nobody here
// reads: rules about requests can't be asked, so they must not be needed.
func (p Protocol) Unread() bool { return p != HTTP1 && p != Opaque && p != Ended }

// maxLine is how long a request line may be before it is left to the parser.
const maxLine = 8 << 10

// Detect waits up to first for a first byte and up to rest for as many more as
// telling needs.
func Detect(c net.Conn, r *http1.Reader, first, rest time.Duration) Protocol {
	defer func() { _ = c.SetReadDeadline(time.Time{}) }()
	if len(r.Buffered()) == 0 {
		_ = c.SetReadDeadline(time.Now().Add(first))
		if err := r.WaitByte(); err != nil {
			if isTimeout(err) {
				return Silent
			}
			if errors.Is(err, io.EOF) {
				// A client that ends at once may still want to hear the server.
				return Opaque
			}
			return Ended
		}
	}
	_ = c.SetReadDeadline(time.Now().Add(rest))
	for {
		p := Classify(r.Buffered())
		if p != more {
			return p
		}
		if err := r.Fill(2 * maxLine); err != nil {
			if isTimeout(err) && bytes.IndexByte(r.Buffered(), ' ') > 0 {
				return HTTP1 // the parser's time for heads goes on
			}
			if isTimeout(err) {
				return Unsure
			}
			if errors.Is(err, io.EOF) {
				// Some servers take the end for the end of the line.
				if p := Classify(append(bytes.Clone(r.Buffered()), '\n')); p != more {
					return p
				}
				return Opaque
			}
			return Ended
		}
	}
}

func isTimeout(err error) bool {
	var n net.Error
	return errors.As(err, &n) && n.Timeout()
}

// Classify tells by the bytes so far. It errs towards HTTP1, where the strict
// parser refuses: empty lines before the request line, lower-case methods,
// missing versions and bare line feeds are what some servers forgive, and what
// would otherwise slip past rules about requests. What begins like a request
// and goes on with bytes that no request line has is Unsure.
func Classify(b []byte) Protocol {
	if len(b) > 0 && b[0] == recordHandshake {
		return TLS
	}
	odd := false // white space to some servers only
	for len(b) > 0 && (plainSpace(b[0]) || b[0] == '\n' || oddSpace(b[0])) {
		odd = odd || oddSpace(b[0])
		b = b[1:]
	}
	i := 0
	for i < len(b) && tokenByte(b[i]) {
		i++
	}
	switch {
	case i > maxLine:
		return Unsure
	case i == len(b):
		return more
	case i == 0:
		return Opaque
	case b[i] == '\r':
		if i+1 == len(b) {
			return more
		}
		if b[i+1] == '\n' {
			return Opaque // one word
		}
		return Unsure
	case oddSpace(b[i]), odd && plainSpace(b[i]):
		return Unsure
	case !plainSpace(b[i]):
		return Opaque
	}
	line, _, whole := bytes.Cut(b[i+1:], []byte("\n"))
	for _, c := range line {
		if c < ' ' && c != '\t' && c != '\r' || c >= 0x7f {
			return Unsure
		}
	}
	if len(line) > maxLine {
		return HTTP1
	}
	if !whole {
		return more
	}
	if bytes.HasSuffix(line, []byte(" HTTP/2.0\r")) && string(b[:i]) == "PRI" {
		return HTTP2 // by prior knowledge
	}
	upper := bytes.ToUpper(line)
	if bytes.Contains(upper, []byte("HTTP/")) {
		return HTTP1
	}
	target := bytes.TrimLeft(line, " \t")
	if len(target) > 0 && target[0] == '/' && isHTTPMethod(bytes.ToUpper(b[:i])) {
		return HTTP1 // HTTP/0.9
	}
	return Opaque
}

// recordHandshake is the first byte of a TLS ClientHello.
const recordHandshake = 0x16

func plainSpace(c byte) bool { return c == ' ' || c == '\t' || c == '\r' }

// oddSpace is what string functions of some languages split at, too.
func oddSpace(c byte) bool {
	return c == '\v' || c == '\f' || c >= 0x1c && c <= 0x1f || c == 0x85 || c == 0xa0
}

// tokenByte is what a method may be made of (RFC 9110 section 5.6.2): some
// applications serve every method alike.
func tokenByte(c byte) bool {
	return c > ' ' && c < 0x7f && bytes.IndexByte([]byte(`"(),/:;<=>?@[\]{}`), c) < 0
}

func isHTTPMethod(b []byte) bool {
	switch string(b) {
	case "GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "CONNECT":
		return true
	}
	return false
}
