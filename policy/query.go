package policy

import "strings"

// QueryMatch compares the values of one query parameter, each on its own.
// Names and values of a request are decoded as forms are: %XX is a byte and
// '+' a space.
type QueryMatch struct {
	Name   string
	Values []string // exact; empty means that the parameter is present
}

// problem says why the match cannot be resolved; empty when it can.
func (m *QueryMatch) problem() string {
	if m.Name == "" {
		return "a query parameter has a name"
	}
	return ""
}

// matches compares a query without its '?'. Only '&' separates parameters.
func (m *QueryMatch) matches(query string) bool {
	for query != "" {
		var pair string
		pair, query, _ = strings.Cut(query, "&")
		name, value, _ := strings.Cut(pair, "=")
		if pair == "" || !decodesTo(name, m.Name) {
			continue
		}
		if len(m.Values) == 0 {
			return true
		}
		for i := range m.Values {
			if decodesTo(value, m.Values[i]) {
				return true
			}
		}
	}
	return false
}

// ambiguousQuery reports whether readers of the query could differ about it: a
// percent sign without two digits, or a semicolon, which some take for a
// separator.
func ambiguousQuery(query string) bool {
	for i := 0; i < len(query); i++ {
		switch query[i] {
		case ';':
			return true
		case '%':
			if i+2 >= len(query) || unhex(query[i+1]) < 0 || unhex(query[i+2]) < 0 {
				return true
			}
			i += 2
		}
	}
	return false
}

// decodesTo reports whether the encoded text is want, without decoding it into
// memory.
func decodesTo(encoded, want string) bool {
	n := 0
	for i := 0; i < len(encoded); i++ {
		c := encoded[i]
		switch {
		case c == '+':
			c = ' '
		case c == '%' && i+2 < len(encoded):
			high, low := unhex(encoded[i+1]), unhex(encoded[i+2])
			if high < 0 || low < 0 {
				return false
			}
			c = byte(high<<4 | low)
			i += 2
		case c == '%':
			return false
		}
		if n == len(want) || want[n] != c {
			return false
		}
		n++
	}
	return n == len(want)
}

func unhex(c byte) int {
	switch {
	case '0' <= c && c <= '9':
		return int(c - '0')
	case 'a' <= lower(c) && lower(c) <= 'f':
		return int(lower(c)-'a') + 10
	}
	return -1
}

// GRPCMatch is gRPC requests: those with a content type that begins with
// application/grpc, to the path "/service/method".
type GRPCMatch struct {
	Service string // full name, such as "bank.v1.Accounts"; empty means any
	Method  string // empty means any
}

// Problem says why the match cannot be resolved; empty when it can.
func (m *GRPCMatch) Problem() string {
	if strings.ContainsAny(m.Service, "/*") || strings.ContainsAny(m.Method, "/*") {
		return "a gRPC service or method is a name without '/' and '*'"
	}
	return ""
}

func (m *GRPCMatch) matches(r *HTTPRequest) bool {
	if !isGRPC(r) || r.Path == "" || r.Path[0] != '/' {
		return false
	}
	service, rest, found := cutSegment(r.Path[1:])
	if !found || service == "" || rest == "" || strings.IndexByte(rest, '/') >= 0 {
		return false
	}
	return (m.Service == "" || m.Service == service) && (m.Method == "" || m.Method == rest)
}

// String is the match as users would say it.
func (m GRPCMatch) String() string {
	service, method := m.Service, m.Method
	if service == "" {
		service = "any service"
	}
	if method == "" {
		method = "any method"
	}
	return service + "/" + method
}

// isGRPC looks at the content type: media types are compared without regard to
// case (RFC 9110 section 8.3.1).
func isGRPC(r *HTTPRequest) bool {
	const media = "application/grpc"
	if r.Header == nil {
		return false
	}
	for _, v := range r.Header("content-type") {
		if len(v) >= len(media) && equalFold(v[:len(media)], media) {
			return true
		}
	}
	return false
}
