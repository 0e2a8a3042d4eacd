package http1

// collected is what the fields of one head say of framing.
type collected struct {
	lengths, codings, hosts int
	chunked                 bool
	upgradeNamed            bool
	keepAlive               bool
	http2                   bool
	protocol                []byte
}

func (h *Head) collect() (collected, error) {
	var c collected
	for i := range h.Fields {
		f := &h.Fields[i]
		switch f.Kind {
		case Host:
			c.hosts++
			h.HostValue, h.HasHost = f.Value, true
		case ContentLength:
			c.lengths++
			n, ok := parseLength(f.Value)
			if !ok || c.lengths > 1 {
				return c, ErrLength
			}
			h.Length = n
		case TransferEncoding:
			c.codings++
			c.chunked = equalFold(f.Value, "chunked")
		case Upgrade:
			if c.protocol != nil {
				c.http2 = true // several Upgrade lines: none is taken
			}
			c.protocol = f.Value
			c.http2 = c.http2 || namesHTTP(f.Value)
		case TE:
			h.AcceptsTrailers = h.AcceptsTrailers || containsToken(f.Value, "trailers")
		case Connection:
			if err := h.connection(f.Value, &c); err != nil {
				return c, err
			}
		}
	}
	if c.codings > 0 {
		if h.Minor == 0 {
			return c, ErrCodingVersion
		}
		if c.lengths > 0 {
			return c, ErrLengthAndCoding
		}
		if c.codings > 1 || !c.chunked {
			return c, ErrCoding
		}
	}
	if c.upgradeNamed && c.protocol != nil && !c.http2 && h.Minor == 1 {
		h.Protocol = c.protocol
	}
	if h.Minor == 0 && !c.keepAlive {
		h.Close = true
	}
	return c, nil
}

// connection reads one Connection field: options that we know, and names of
// fields that end here. Names of fields that carry the message itself cannot
// be hop-by-hop; a message that says so wants to confuse (RFC 9110 7.6.1).
func (h *Head) connection(value []byte, c *collected) error {
	for len(value) > 0 {
		var option []byte
		option, value = nextElement(value)
		switch {
		case len(option) == 0:
		case equalFold(option, "close"):
			h.Close = true
		case equalFold(option, "keep-alive"):
			c.keepAlive = true
		case equalFold(option, "upgrade"):
			c.upgradeNamed = true
		case equalFold(option, "te"):
		default:
			if !allToken(option) {
				return ErrConnection
			}
			switch kindOf(option) {
			case Host, ContentLength, TransferEncoding, Expect, Trailer:
				return ErrConnection
			}
			for i := range h.Fields {
				if f := &h.Fields[i]; f.Kind == Other && equalFoldBytes(f.Name, option) {
					if equalFold(option, "authorization") || equalFold(option, "cookie") {
						return ErrConnection
					}
					f.Kind = Nominated
				}
			}
		}
	}
	return nil
}

func (h *Head) frameRequest() error {
	c, err := h.collect()
	if err != nil {
		return err
	}
	if c.hosts > 1 || c.hosts == 0 && h.Minor == 1 {
		return ErrHost
	}
	for i := range h.Fields {
		if f := &h.Fields[i]; f.Kind == Expect {
			if !equalFold(f.Value, "100-continue") {
				return ErrExpect
			}
			h.Continue = h.Minor == 1
		}
	}
	switch {
	case c.codings > 0:
		h.Framing = Chunked
	case h.Length > 0:
		h.Framing = ByLength
	}
	if h.Framing != NoBody {
		// An upgrade with a body would have to be read before the protocol
		// changes; nobody needs it, so it is no upgrade.
		h.Protocol = nil
	} else {
		h.Continue = false
	}
	if h.IsMethod("CONNECT") {
		if c.codings > 0 || c.lengths > 0 {
			return ErrLength
		}
		h.Protocol = nil
	}
	return nil
}

func (h *Head) frameResponse(request *Head) error {
	c, err := h.collect()
	if err != nil {
		return err
	}
	switch {
	case h.Status == 101:
		h.Framing = Tunnelled
	case h.Status < 200, h.Status == 204:
		if c.codings > 0 {
			return ErrCoding
		}
		h.Framing = NoBody
	case h.Status == 304, request.IsMethod("HEAD"):
		h.Framing = NoBody
	case request.IsMethod("CONNECT") && h.Status < 300:
		h.Framing = Tunnelled
	case c.codings > 0:
		h.Framing = Chunked
	case h.Length > 0:
		h.Framing = ByLength
	case h.Length == 0:
		h.Framing = NoBody
	default:
		h.Framing = UntilEOF
		h.Close = true
	}
	return nil
}

// parseLength takes 1*DIGIT that fits an int64.
func parseLength(b []byte) (int64, bool) {
	if len(b) == 0 || len(b) > 18 {
		return 0, false
	}
	var n int64
	for _, c := range b {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = n*10 + int64(c-'0')
	}
	return n, true
}

// nextElement cuts the first element off a comma-separated list.
func nextElement(b []byte) (element, rest []byte) {
	for i, c := range b {
		if c == ',' {
			return trim(b[:i]), b[i+1:]
		}
	}
	return trim(b), nil
}

// namesHTTP reports whether an Upgrade list has HTTP itself in any version, drafts
// of HTTP/2 included: what is requested then would be read by nobody here.
func namesHTTP(list []byte) bool {
	for len(list) > 0 {
		var e []byte
		e, list = nextElement(list)
		if foldsTo(e, "h2") || foldsTo(e, "h3") || foldsTo(e, "http") {
			return true
		}
	}
	return false
}

func containsToken(list []byte, token string) bool {
	for len(list) > 0 {
		var e []byte
		e, list = nextElement(list)
		for i, c := range e { // parameters, as in "trailers;q=1"
			if c == ';' {
				e = trim(e[:i])
				break
			}
		}
		if equalFold(e, token) {
			return true
		}
	}
	return false
}
