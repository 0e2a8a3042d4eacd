// Package http1 reads and writes HTTP/1.1 messages as RFC 9112 has them, and
// nothing that merely resembles them: bare line feeds, folded lines, space
// before a colon, repeated or signed lengths, a length beside a transfer
// coding, and unknown transfer codings are errors, because two parsers that
// forgive differently see two different requests.
//
// Heads are parsed without allocation into a reusable Head; bodies are handed
// on in slices of the reader's own buffer. The package owns syntax and framing
// of messages. It does not own the meaning of paths and hosts
// (proxy/canonical), which fields are forwarded, or deadlines (proxy/exchange).
package http1

// Limits bound what one message may cost.
type Limits struct {
	// HeadBytes bounds the start line and all fields together; trailers have
	// the same bound of their own.
	HeadBytes int
	// Fields bounds the number of field lines.
	Fields int
	// ChunkExtensionBytes bounds the extensions of one chunk, and sixteen
	// times as much bounds those of one body.
	ChunkExtensionBytes int
}

// DefaultLimits are what the sidecar uses.
var DefaultLimits = Limits{HeadBytes: 64 << 10, Fields: 128, ChunkExtensionBytes: 256}

// Error is a message that is not HTTP/1.1, or exceeds a limit. Status is the
// response status that tells a client so.
type Error struct {
	Status int
	Reason string
}

// Error is the reason in lower case, for logs.
func (e *Error) Error() string { return "http/1.1: " + e.Reason }

// What may be wrong with a message. They are values, so that refusing costs no
// allocation.
var (
	ErrStartLine       = &Error{400, "malformed request or status line"}
	ErrMethod          = &Error{400, "method is not a token"}
	ErrPreface         = &Error{400, "HTTP/2 preface on an HTTP/1.1 connection"}
	ErrTarget          = &Error{400, "request target has characters that a URI can't have"}
	ErrVersion         = &Error{505, "version is neither HTTP/1.1 nor HTTP/1.0"}
	ErrBareLF          = &Error{400, "line ends without carriage return"}
	ErrBareCR          = &Error{400, "carriage return inside a line"}
	ErrFold            = &Error{400, "folded field line"}
	ErrFieldName       = &Error{400, "field name is not a token directly before the colon"}
	ErrFieldValue      = &Error{400, "field value has control characters"}
	ErrHeadSize        = &Error{431, "head is too large"}
	ErrFieldCount      = &Error{431, "too many field lines"}
	ErrHost            = &Error{400, "exactly one Host is needed"}
	ErrLength          = &Error{400, "Content-Length is not one plain number"}
	ErrLengthAndCoding = &Error{400, "both Content-Length and Transfer-Encoding"}
	ErrCoding          = &Error{501, "transfer coding is not chunked alone"}
	ErrCodingVersion   = &Error{400, "Transfer-Encoding in HTTP/1.0"}
	ErrExpect          = &Error{417, "expectation is not 100-continue"}
	ErrConnection      = &Error{400, "Connection names a field that can't be hop-by-hop"}
	ErrChunk           = &Error{400, "malformed chunk"}
	ErrChunkExtension  = &Error{400, "chunk extensions are too large"}
)
