package http1

import "unsafe"

// Tables of RFC 9110 section 5.6.2 and RFC 9112 section 3.
var (
	isToken      = table(func(c byte) bool { return c > ' ' && c < 0x7f && !in(c, `"(),/:;<=>?@[\]{}`) })
	isFieldVchar = table(func(c byte) bool { return c == '\t' || c >= ' ' && c != 0x7f })
	isTarget     = table(func(c byte) bool { return c > ' ' && c < 0x7f })
	isHex        = table(func(c byte) bool { return c >= '0' && c <= '9' || c|0x20 >= 'a' && c|0x20 <= 'f' })
)

func table(is func(byte) bool) (t [256]bool) {
	for c := range t {
		t[c] = is(byte(c))
	}
	return t
}

func in(c byte, set string) bool {
	for i := range len(set) {
		if set[i] == c {
			return true
		}
	}
	return false
}

func allToken(b []byte) bool {
	for _, c := range b {
		if !isToken[c] {
			return false
		}
	}
	return len(b) > 0
}

func lower(c byte) byte {
	if c >= 'A' && c <= 'Z' {
		return c | 0x20
	}
	return c
}

// equalFold compares with a lower-case ASCII string.
func equalFold(b []byte, s string) bool {
	if len(b) != len(s) {
		return false
	}
	for i, c := range b {
		if lower(c) != s[i] {
			return false
		}
	}
	return true
}

func equalFoldBytes(a, b []byte) bool {
	if len(a) != len(b) {
		return false
	}
	for i, c := range a {
		if lower(c) != lower(b[i]) {
			return false
		}
	}
	return true
}

// foldsTo is equalFold in which an underscore counts as a hyphen: CGI and many
// frameworks cannot tell the two apart. s may be a prefix.
func foldsTo(b []byte, s string) bool {
	if len(b) < len(s) {
		return false
	}
	for i := range len(s) {
		c := lower(b[i])
		if c == '_' {
			c = '-'
		}
		if c != s[i] {
			return false
		}
	}
	return true
}

func hasUnderscore(b []byte) bool {
	for _, c := range b {
		if c == '_' {
			return true
		}
	}
	return false
}

func kindOf(name []byte) Kind {
	switch name[0] | 0x20 {
	case 'h':
		if equalFold(name, "host") {
			return Host
		}
		if equalFold(name, "http2-settings") {
			return HTTP2Settings
		}
	case 'c':
		if equalFold(name, "connection") {
			return Connection
		}
		if equalFold(name, "content-length") {
			return ContentLength
		}
	case 't':
		switch {
		case equalFold(name, "transfer-encoding"):
			return TransferEncoding
		case equalFold(name, "te"):
			return TE
		case equalFold(name, "trailer"):
			return Trailer
		case equalFold(name, "traceparent"):
			return Traceparent
		case equalFold(name, "tracestate"):
			return Tracestate
		}
	case 'k':
		if equalFold(name, "keep-alive") {
			return KeepAlive
		}
	case 'p':
		if equalFold(name, "proxy-connection") {
			return ProxyConnection
		}
	case 'u':
		if equalFold(name, "upgrade") {
			return Upgrade
		}
	case 'e':
		if equalFold(name, "expect") {
			return Expect
		}
	case 'b':
		if equalFold(name, "b3") {
			return B3
		}
	case 'x':
		return kindOfX(name)
	}
	if hasUnderscore(name) && (foldsTo(name, "content-length") && len(name) == 14 ||
		foldsTo(name, "transfer-encoding") && len(name) == 17) {
		// A back end that folds underscores would see a second framing.
		return Identity
	}
	return Other
}

func kindOfX(name []byte) Kind {
	switch {
	case len(name) < 4:
		return Other
	case foldsTo(name, "x-hauberk-"):
		return Identity
	case foldsTo(name, "x-forwarded-"):
		if foldsTo(name, "x-forwarded-client-cert") || hasUnderscore(name) {
			return Identity
		}
		if equalFold(name, "x-forwarded-for") {
			return ForwardedFor
		}
		return Forwarded
	case foldsTo(name, "x-b3-") && !hasUnderscore(name):
		return B3
	}
	return Other
}

// KindOf is the kind of a field by its name, in any case. Nominated is never
// told by the name alone.
func KindOf(name string) Kind {
	if name == "" {
		return Other
	}
	return kindOf(unsafe.Slice(unsafe.StringData(name), len(name)))
}

// ForbiddenInTrailer reports whether a field of this kind must not stand in a
// trailer section (RFC 9110 section 6.5.1), or would let a peer pretend there.
func (k Kind) ForbiddenInTrailer() bool { return k != Other }
