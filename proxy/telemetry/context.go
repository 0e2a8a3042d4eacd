package telemetry

import (
	"encoding/hex"
	"math/rand/v2"

	"github.com/hauberk-mesh/hauberk/proxy/http1"
)

// Context is a W3C trace context (https://www.w3.org/TR/trace-context/). The
// zero Context is none.
type Context struct {
	TraceID [16]byte
	SpanID  [8]byte
	Sampled bool
}

// Valid reports whether there is one.
func (c *Context) Valid() bool { return c.TraceID != [16]byte{} && c.SpanID != [8]byte{} }

// parseTraceparent takes version-traceid-spanid-flags; a version that we don't
// know may have more behind.
func parseTraceparent(b []byte) (Context, bool) {
	var c Context
	if len(b) < 55 || b[2] != '-' || b[35] != '-' || b[52] != '-' {
		return c, false
	}
	var version, flags [1]byte
	if !lowerHex(version[:], b[:2]) || version[0] == 0xff || !lowerHex(c.TraceID[:], b[3:35]) || !lowerHex(c.SpanID[:], b[36:52]) ||
		!lowerHex(flags[:], b[53:55]) {
		return Context{}, false
	}
	if len(b) > 55 && (version[0] == 0 || b[55] != '-') {
		return Context{}, false
	}
	c.Sampled = flags[0]&1 != 0
	return c, c.Valid()
}

func lowerHex(dst, src []byte) bool {
	for _, c := range src {
		if c >= 'A' && c <= 'F' {
			return false
		}
	}
	_, err := hex.Decode(dst, src)
	return err == nil
}

// appendTraceparent writes the field's value.
func (c *Context) appendTraceparent(dst []byte) []byte {
	dst = append(dst, "00-"...)
	dst = hex.AppendEncode(dst, c.TraceID[:])
	dst = append(dst, '-')
	dst = hex.AppendEncode(dst, c.SpanID[:])
	if c.Sampled {
		return append(dst, "-01"...)
	}
	return append(dst, "-00"...)
}

// parseB3 takes the single-field form: traceid-spanid[-flag[-parent]].
func parseB3(b []byte) (Context, bool) {
	var c Context
	var parts [4][]byte
	n := 0
	for start, i := 0, 0; i <= len(b); i++ {
		if i == len(b) || b[i] == '-' {
			if n == len(parts) {
				return c, false
			}
			parts[n] = b[start:i]
			start = i + 1
			n++
		}
	}
	if n < 2 || !b3IDs(&c, parts[0], parts[1]) {
		return Context{}, false
	}
	if n > 2 {
		c.Sampled = string(parts[2]) == "1" || string(parts[2]) == "d"
	}
	return c, c.Valid()
}

func b3IDs(c *Context, traceID, spanID []byte) bool {
	switch len(traceID) {
	case 32:
		if !lowerHex(c.TraceID[:], traceID) {
			return false
		}
	case 16:
		if !lowerHex(c.TraceID[8:], traceID) {
			return false
		}
	default:
		return false
	}
	return len(spanID) == 16 && lowerHex(c.SpanID[:], spanID)
}

// Propagated is the trace context in the fields of a request, as they are found.
type Propagated struct {
	parent                  []byte
	parents                 int
	b3                      []byte
	traceID, spanID, sample []byte
}

// Field takes one field. The value must stay until the context was read.
func (p *Propagated) Field(kind http1.Kind, name, value []byte) {
	switch kind {
	case http1.Traceparent:
		p.parents++
		p.parent = value
	case http1.B3:
		switch len(name) {
		case len("b3"):
			p.b3 = value
		case len("x-b3-traceid"):
			if name[5]|0x20 == 't' {
				p.traceID = value
			} else {
				p.sample = value // x-b3-sampled
			}
		case len("x-b3-spanid"):
			p.spanID = value
		}
	}
}

// context is the one that came: traceparent, else B3 in either form, which is
// passed on as it is. Two traceparents are none.
func (p *Propagated) context() Context {
	if p.parents > 0 {
		if found, ok := parseTraceparent(p.parent); ok && p.parents == 1 {
			return found
		}
		return Context{}
	}
	if p.b3 != nil {
		if b3, ok := parseB3(p.b3); ok {
			return b3
		}
	}
	if p.traceID != nil && p.spanID != nil {
		var c Context
		if b3IDs(&c, p.traceID, p.spanID) && c.Valid() {
			c.Sampled = string(p.sample) == "1" || string(p.sample) == "true"
			return c
		}
	}
	return Context{}
}

// incoming finds the context that a request of HTTP/1.1 came with.
func incoming(h *http1.Head) Context {
	var p Propagated
	for i := range h.Fields {
		if f := &h.Fields[i]; f.Kind == http1.Traceparent || f.Kind == http1.B3 {
			p.Field(f.Kind, f.Name, f.Value)
		}
	}
	return p.context()
}

func newTraceID() (id [16]byte) {
	put(id[:8], rand.Uint64())
	put(id[8:], rand.Uint64()|1)
	return id
}

func newSpanID() (id [8]byte) {
	put(id[:], rand.Uint64()|1)
	return id
}

func put(b []byte, v uint64) {
	for i := range 8 {
		b[i] = byte(v >> (56 - 8*i))
	}
}
