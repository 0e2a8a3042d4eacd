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
// what a lenient server would take for one. Opaque: anything else. Ended: the
// client ended, or failed, before it could be told.
const (
	Silent Protocol = iota
	HTTP1
	Opaque
	Ended
	more
)

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
			if isTimeout(err) || errors.Is(err, io.EOF) {
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
// would otherwise slip past rules about requests.
func Classify(b []byte) Protocol {
	b = bytes.TrimLeft(b, "\r\n \t")
	i := 0
	for i < len(b) && i < 24 && (b[i] >= 'A' && b[i] <= 'Z' || b[i] >= 'a' && b[i] <= 'z' || b[i] == '-' || b[i] == '_') {
		i++
	}
	if i == len(b) {
		return more
	}
	if i == 0 || b[i] != ' ' && b[i] != '\t' {
		return Opaque
	}
	line, _, whole := bytes.Cut(b[i+1:], []byte("\n"))
	for _, c := range line {
		if c < ' ' && c != '\t' && c != '\r' || c >= 0x7f {
			return Opaque
		}
	}
	if !whole {
		if len(line) > maxLine {
			return HTTP1
		}
		return more
	}
	if bytes.HasSuffix(line, []byte(" HTTP/2.0\r")) && string(b[:i]) == "PRI" {
		return Opaque // HTTP/2 by prior knowledge
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

func isHTTPMethod(b []byte) bool {
	switch string(b) {
	case "GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "CONNECT":
		return true
	}
	return false
}
