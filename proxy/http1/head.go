package http1

// Field is one field line. Its slices belong to the Head.
type Field struct {
	Name, Value []byte
	// Kind is set for the fields that the package or a forwarder must know.
	Kind Kind
}

// Kind is a field that matters to framing or forwarding.
type Kind uint8

// The kinds. Other is every field that passes without being understood.
const (
	Other Kind = iota
	Host
	Connection
	ContentLength
	TransferEncoding
	KeepAlive
	ProxyConnection
	TE
	Trailer
	Upgrade
	HTTP2Settings
	Expect
	// Identity are fields by which a peer could pretend to be somebody:
	// X-Forwarded-Client-Cert and X-Hauberk-*, in every spelling, and
	// underscore spellings of X-Forwarded-*.
	Identity
	ForwardedFor
	Forwarded // X-Forwarded-* of exact spelling, other than -For
	Traceparent
	Tracestate
	B3
	// Nominated is an end-to-end name that this message's Connection field
	// makes hop-by-hop.
	Nominated
)

// Framing says how a body ends.
type Framing uint8

// The framings of RFC 9112 section 6.3.
const (
	NoBody    Framing = iota
	ByLength          // Content-Length
	Chunked           // chunked transfer coding
	UntilEOF          // a response that ends with its connection
	Tunnelled         // 101, or 2xx to CONNECT: not HTTP any more
)

// Head is a request's or a response's head. It is reused; its slices are valid
// until the next message is read into it.
type Head struct {
	// Of a request.
	Method, Target []byte
	// Of a response.
	Status int
	Reason []byte

	// Minor is 1 for HTTP/1.1 and 0 for HTTP/1.0.
	Minor   int
	Fields  []Field
	Framing Framing
	// Length is the body's length for ByLength. For a response without a body
	// (HEAD, 304) it is what Content-Length said, -1 without one.
	Length int64

	// HostValue is the Host field's value; HasHost tells an empty one from none.
	HostValue []byte
	HasHost   bool
	// Close says that the sender ends the connection after this message.
	Close bool
	// Continue says that the client waits for 100 (Continue).
	Continue bool
	// Protocol is the value of Upgrade when Connection confirms it; nil otherwise.
	Protocol []byte
	// AcceptsTrailers says that TE names trailers.
	AcceptsTrailers bool

	raw []byte
}

// IsMethod reports whether the request's method is m.
func (h *Head) IsMethod(m string) bool { return string(h.Method) == m }

// Idempotent reports whether the method promises that sending the request
// twice is as sending it once and has no body in practice (RFC 9110 9.2.1).
func (h *Head) Idempotent() bool {
	return h.IsMethod("GET") || h.IsMethod("HEAD") || h.IsMethod("OPTIONS")
}

func (h *Head) reset() {
	*h = Head{Fields: h.Fields[:0], raw: h.raw, Length: -1}
}

// parseFields parses field lines, which end with an empty line, into h.Fields.
// It returns what follows the empty line.
func parseFields(h *Head, b []byte, max int) error {
	for len(b) > 0 {
		if b[0] == '\r' {
			if len(b) == 2 && b[1] == '\n' {
				return nil
			}
			return ErrBareCR
		}
		if b[0] == ' ' || b[0] == '\t' {
			return ErrFold
		}
		i := 0
		for i < len(b) && isToken[b[i]] {
			i++
		}
		if i == 0 || i >= len(b) || b[i] != ':' {
			return ErrFieldName
		}
		name := b[:i]
		b = b[i+1:]
		end := 0
		for end < len(b) && isFieldVchar[b[end]] {
			end++
		}
		if end+1 >= len(b) || b[end] != '\r' {
			if end < len(b) && b[end] == '\n' {
				return ErrBareLF
			}
			return ErrFieldValue
		}
		if b[end+1] != '\n' {
			return ErrBareCR
		}
		if len(h.Fields) >= max {
			return ErrFieldCount
		}
		h.Fields = append(h.Fields, Field{Name: name, Value: trim(b[:end]), Kind: kindOf(name)})
		b = b[end+2:]
	}
	return ErrStartLine // the empty line is missing: the caller cut at the wrong place
}

func trim(b []byte) []byte {
	for len(b) > 0 && (b[0] == ' ' || b[0] == '\t') {
		b = b[1:]
	}
	for len(b) > 0 && (b[len(b)-1] == ' ' || b[len(b)-1] == '\t') {
		b = b[:len(b)-1]
	}
	return b
}

// parseVersion takes "HTTP/1.x".
func parseVersion(b []byte) (int, bool) {
	if len(b) != 8 || string(b[:7]) != "HTTP/1." {
		return 0, false
	}
	switch b[7] {
	case '0':
		return 0, true
	case '1':
		return 1, true
	}
	return 0, false
}

func parseRequest(h *Head, max int) error {
	line, rest, err := cutLine(h.raw)
	if err != nil {
		return err
	}
	i := 0
	for i < len(line) && isToken[line[i]] {
		i++
	}
	if i == 0 || i >= len(line) || line[i] != ' ' {
		return ErrMethod
	}
	h.Method = line[:i]
	if string(h.Method) == "PRI" {
		return ErrPreface
	}
	line = line[i+1:]
	j := 0
	for j < len(line) && isTarget[line[j]] {
		j++
	}
	if j == 0 || j >= len(line) || line[j] != ' ' {
		return ErrTarget
	}
	h.Target = line[:j]
	minor, ok := parseVersion(line[j+1:])
	if !ok {
		if len(line)-j-1 == 8 && string(line[j+1:j+6]) == "HTTP/" {
			return ErrVersion
		}
		return ErrStartLine
	}
	h.Minor = minor
	if err := parseFields(h, rest, max); err != nil {
		return err
	}
	return h.frameRequest()
}

func parseResponse(h *Head, max int, request *Head) error {
	line, rest, err := cutLine(h.raw)
	if err != nil {
		return err
	}
	if len(line) < 12 || line[8] != ' ' {
		return ErrStartLine
	}
	minor, ok := parseVersion(line[:8])
	if !ok {
		return ErrVersion
	}
	h.Minor = minor
	for _, c := range line[9:12] {
		if c < '0' || c > '9' {
			return ErrStartLine
		}
		h.Status = h.Status*10 + int(c-'0')
	}
	if h.Status < 100 || h.Status > 599 {
		return ErrStartLine
	}
	// RFC 9112 section 4 wants the space before an empty reason phrase; some
	// servers leave it out and nothing hangs on it.
	if len(line) > 12 {
		if line[12] != ' ' {
			return ErrStartLine
		}
		h.Reason = line[13:]
		for _, c := range h.Reason {
			if !isFieldVchar[c] {
				return ErrStartLine
			}
		}
	}
	if err := parseFields(h, rest, max); err != nil {
		return err
	}
	return h.frameResponse(request)
}

func cutLine(b []byte) (line, rest []byte, err error) {
	for i, c := range b {
		if c == '\n' {
			return nil, nil, ErrBareLF
		}
		if c == '\r' {
			if i+1 < len(b) && b[i+1] == '\n' {
				return b[:i], b[i+2:], nil
			}
			return nil, nil, ErrBareCR
		}
	}
	return nil, nil, ErrStartLine
}
