package http2

import (
	"strings"

	"golang.org/x/net/http2/hpack"

	"github.com/hauberk-mesh/hauberk/proxy/http1"
)

// Field is one field line. Names are in lower case.
type Field struct {
	Name, Value string
	// Kind is what a forwarder must know of it.
	Kind http1.Kind
	// Sensitive says that the sender wants it never to be indexed.
	Sensitive bool
}

// Head is a request's or a response's head, or trailers. Its strings are
// immutable; its Fields belong to whoever gave the Head to be filled.
type Head struct {
	// Of a request.
	Method, Scheme, Path, Authority string
	Host                            string // the Host field, which clients of HTTP/1.1 bring
	HasHost                         bool
	// Of a response.
	Status int

	Fields []Field
	Length int64 // Content-Length, -1 without
	// GRPC says that Content-Type begins with application/grpc.
	GRPC bool
	// Excessive says that the fields exceed the limits: they are not all there.
	Excessive bool
}

func (h *Head) reset() { *h = Head{Fields: h.Fields[:0], Length: -1} }

// Swap exchanges the contents of two heads, so that one can be kept without a
// copy.
func (h *Head) Swap(other *Head) { *h, *other = *other, *h }

// decoder turns header blocks into heads.
type decoder struct {
	hp        *hpack.Decoder
	limits    *Limits
	fields    []hpack.HeaderField
	size      int
	excessive bool
}

func newDecoder(limits *Limits) *decoder {
	d := &decoder{limits: limits}
	d.hp = hpack.NewDecoder(tableSize, d.emit)
	d.hp.SetMaxStringLength(limits.HeadBytes)
	return d
}

func (d *decoder) emit(f hpack.HeaderField) {
	d.size += int(f.Size())
	if d.size > d.limits.HeadBytes || len(d.fields) == d.limits.Fields {
		// The rest is still decoded, because HPACK's state depends on it.
		d.excessive = true
		d.hp.SetEmitEnabled(false)
		return
	}
	d.fields = append(d.fields, f)
}

func (d *decoder) begin() {
	clear(d.fields)
	d.fields, d.size, d.excessive = d.fields[:0], 0, false
	d.hp.SetEmitEnabled(true)
}

// section says which pseudo fields may stand in a header block.
type section uint8

const (
	request section = iota
	response
	trailers
)

// malformed is a message that RFC 9113 section 8.1.1 wants to be treated as a
// stream error of type PROTOCOL_ERROR.
type malformed string

func (m malformed) Error() string { return "malformed message: " + string(m) }

// finish validates what was decoded since begin and puts it into h.
func (d *decoder) finish(h *Head, s section) error {
	h.reset()
	if d.excessive {
		h.Excessive = true
	}
	regular := false
	seen := uint8(0)
	for i := range d.fields {
		f := &d.fields[i]
		if f.Name == "" {
			return malformed("empty field name")
		}
		if f.Name[0] == ':' {
			if regular {
				return malformed("pseudo field after a regular one")
			}
			if err := h.pseudo(f, s, &seen); err != nil {
				return err
			}
			continue
		}
		regular = true
		if err := h.field(f, s); err != nil {
			return err
		}
	}
	if h.Excessive {
		return nil // what is missing may only have been left out
	}
	return h.whole(s)
}

const (
	seenMethod = 1 << iota
	seenScheme
	seenPath
	seenAuthority
	seenStatus
)

func (h *Head) pseudo(f *hpack.HeaderField, s section, seen *uint8) error {
	var bit uint8
	switch {
	case s == request && f.Name == ":method":
		bit, h.Method = seenMethod, f.Value
	case s == request && f.Name == ":scheme":
		bit, h.Scheme = seenScheme, f.Value
	case s == request && f.Name == ":path":
		bit, h.Path = seenPath, f.Value
	case s == request && f.Name == ":authority":
		bit, h.Authority = seenAuthority, f.Value
	case s == response && f.Name == ":status":
		bit = seenStatus
		if h.Status = parseStatus(f.Value); h.Status == 0 {
			return malformed(":status is not a status")
		}
	default:
		return malformed("pseudo field " + printable(f.Name) + " does not belong here")
	}
	if *seen&bit != 0 {
		return malformed("pseudo field " + f.Name + " stands twice")
	}
	*seen |= bit
	if !isValue(f.Value) {
		return malformed("pseudo field " + f.Name + " has control characters")
	}
	return nil
}

func (h *Head) field(f *hpack.HeaderField, s section) error {
	if !isName(f.Name) {
		return malformed("field name " + printable(f.Name) + " is not a token in lower case")
	}
	if !isValue(f.Value) {
		return malformed("field " + f.Name + " has control characters")
	}
	value := f.Value
	if s == request {
		// White space around a value is not part of it (RFC 9110 section 5.5); an
		// application that strips it must not see what policy did not.
		value = strings.Trim(value, " \t")
	}
	kind := http1.KindOf(f.Name)
	switch kind {
	case http1.Connection, http1.KeepAlive, http1.ProxyConnection, http1.TransferEncoding, http1.Upgrade:
		return malformed("field " + f.Name + " is specific to HTTP/1.1 connections")
	case http1.TE:
		if value != "trailers" {
			return malformed("TE says other than trailers")
		}
	case http1.Host:
		if s == request {
			if h.HasHost {
				return malformed("more than one Host")
			}
			h.Host, h.HasHost = value, true
			return nil
		}
	case http1.ContentLength:
		if s == trailers || h.Length >= 0 {
			return malformed("more than one Content-Length")
		}
		if h.Length = parseLength(value); h.Length < 0 {
			return malformed("Content-Length is not a plain number")
		}
	case http1.Other:
		if f.Name == "content-type" && len(value) >= len(mediaGRPC) && strings.EqualFold(value[:len(mediaGRPC)], mediaGRPC) {
			h.GRPC = true
		}
	}
	h.Fields = append(h.Fields, Field{Name: f.Name, Value: value, Kind: kind, Sensitive: f.Sensitive})
	return nil
}

const mediaGRPC = "application/grpc"

// whole checks that all pseudo fields are there (RFC 9113 sections 8.3.1, 8.3.2
// and 8.5).
func (h *Head) whole(s section) error {
	switch s {
	case request:
		if !isToken(h.Method) {
			return malformed(":method is not a token")
		}
		if h.Method == "CONNECT" {
			if h.Scheme != "" || h.Path != "" || h.Authority == "" {
				return malformed("CONNECT needs :authority and neither :scheme nor :path")
			}
			return nil
		}
		if h.Scheme == "" || h.Path == "" {
			return malformed(":scheme and :path are needed")
		}
	case response:
		if h.Status == 0 {
			return malformed("response without :status")
		}
		if h.Status == 101 {
			return malformed("101 does not exist in HTTP/2")
		}
	}
	return nil
}

func parseStatus(s string) int {
	if len(s) != 3 || s[0] < '1' || s[0] > '9' || s[1] < '0' || s[1] > '9' || s[2] < '0' || s[2] > '9' {
		return 0
	}
	return int(s[0]-'0')*100 + int(s[1]-'0')*10 + int(s[2]-'0')
}

func parseLength(s string) int64 {
	if s == "" || len(s) > 18 {
		return -1
	}
	var n int64
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return -1
		}
		n = n*10 + int64(s[i]-'0')
	}
	return n
}

// Tables of RFC 9110 section 5.6.2 and RFC 9113 section 8.2.1.
var (
	tokenTable = table(func(c byte) bool { return c > ' ' && c < 0x7f && strings.IndexByte(`"(),/:;<=>?@[\]{}`, c) < 0 })
	nameTable  = table(func(c byte) bool { return tokenTable[c] && (c < 'A' || c > 'Z') })
	valueTable = table(func(c byte) bool { return c == '\t' || c >= ' ' && c != 0x7f })
)

func table(is func(byte) bool) (t [256]bool) {
	for c := range t {
		t[c] = is(byte(c))
	}
	return t
}

func all(s string, t *[256]bool) bool {
	for i := range len(s) {
		if !t[s[i]] {
			return false
		}
	}
	return true
}

func isToken(s string) bool { return s != "" && all(s, &tokenTable) }
func isName(s string) bool  { return all(s, &nameTable) }
func isValue(s string) bool { return all(s, &valueTable) }

// printable makes a peer's text fit for a log line.
func printable(s string) string {
	s = s[:min(len(s), 64)]
	return strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, s)
}
