// Package canonical gives each request one spelling of its path and host, the
// one that policies are matched with and that is forwarded. What can be read
// in two ways is refused, because the application may read it the other way.
//
// The package owns normalisation. It does not own syntax (proxy/http1) or
// matching (policy). Nothing is allocated for a request that is canonical
// already.
package canonical

import (
	"bytes"
	"errors"
	"strings"
	"unsafe"
)

// What makes a request ambiguous. Each becomes a 400.
var (
	ErrForm      = errors.New("request target is in no form that its method allows")
	ErrEscape    = errors.New("path has a percent sign without two hexadecimal digits")
	ErrSeparator = errors.New("path has a backslash or an encoded slash, backslash or NUL")
	ErrFragment  = errors.New("request target has a fragment")
	ErrDotParams = errors.New("path has a dot segment with parameters")
	ErrHost      = errors.New("host is malformed")
	ErrTwoHosts  = errors.New("request target and Host name different hosts")
)

// Target is a request's target in its one spelling. Its strings point into the
// head that was given or into the Target's own buffers and are valid until
// either is used again.
type Target struct {
	// Path is what policies match: normalised, without query; empty for CONNECT.
	Path string
	// Host is what policies match: lower case, without port or trailing dot.
	Host string
	// Authority is Host with its port: the Host field to send.
	Authority string
	// Query starts with '?', or is empty.
	Query string
	// Absolute says that the target is sent in absolute form, as a forward
	// proxy wants it.
	Absolute bool

	path, host []byte
}

// Set normalises target and host. A nil host means that the request has none
// (HTTP/1.0).
func (t *Target) Set(method, target, host []byte) error {
	t.Path, t.Host, t.Authority, t.Query, t.Absolute = "", "", "", "", false
	if bytes.IndexByte(target, '#') >= 0 {
		return ErrFragment
	}
	t.host = t.host[:0]
	if err := t.setHost(host); err != nil {
		return err
	}
	if string(method) == "CONNECT" {
		return t.setConnect(target)
	}
	path := target
	switch {
	case target[0] == '/':
	case string(target) == "*":
		if string(method) != "OPTIONS" {
			return ErrForm
		}
		t.Path = "*"
		return nil
	default:
		var err error
		if path, err = t.setAbsolute(target); err != nil {
			return err
		}
	}
	if i := bytes.IndexByte(path, '?'); i >= 0 {
		t.Query = view(path[i:])
		path = path[:i]
	}
	return t.setPath(path)
}

func (t *Target) setConnect(target []byte) error {
	// Copies: the target is normalised in the same buffer.
	host, saved := strings.Clone(t.Host), strings.Clone(t.Authority)
	colon := bytes.LastIndexByte(target, ':')
	if colon <= 0 || colon == len(target)-1 || bytes.IndexByte(target, '/') >= 0 {
		return ErrForm
	}
	t.host = t.host[:0]
	if err := t.setHost(target); err != nil {
		return err
	}
	if saved != "" && saved != t.Authority && host != t.Authority && host != t.Host {
		return ErrTwoHosts
	}
	return nil
}

// setAbsolute checks the scheme and authority of an absolute-form target and
// returns its path and query. RFC 9112 section 3.2.2 lets the target win over
// Host; two different hosts are refused here.
func (t *Target) setAbsolute(target []byte) ([]byte, error) {
	var rest []byte
	switch {
	case len(target) > 7 && bytes.EqualFold(target[:7], []byte("http://")):
		rest = target[7:]
	default:
		return nil, ErrForm
	}
	end := bytes.IndexAny(rest, "/?")
	if end < 0 {
		end = len(rest)
	}
	if end == 0 {
		return nil, ErrHost
	}
	hadHost, saved := t.Authority != "", string(t.Authority)
	t.host = t.host[:0]
	if err := t.setHost(rest[:end]); err != nil {
		return nil, err
	}
	if hadHost && saved != t.Authority {
		return nil, ErrTwoHosts
	}
	t.Absolute = true
	rest = rest[end:]
	if len(rest) == 0 {
		return slash, nil
	}
	if rest[0] == '?' {
		// "http://host?query" means the path "/".
		return append([]byte("/"), rest...), nil
	}
	return rest, nil
}

var slash = []byte("/")

// setHost takes host[:port].
func (t *Target) setHost(b []byte) error {
	if len(b) == 0 {
		return nil
	}
	name, port := b, []byte(nil)
	if b[0] == '[' {
		end := bytes.IndexByte(b, ']')
		if end < 0 || !isIPv6(b[1:end]) {
			return ErrHost
		}
		name, port = b[:end+1], b[end+1:]
		if len(port) > 0 && port[0] != ':' {
			return ErrHost
		}
	} else {
		if i := bytes.IndexByte(b, ':'); i >= 0 {
			name, port = b[:i], b[i:]
		}
		for _, c := range name {
			if !isHostByte(c) {
				return ErrHost
			}
		}
	}
	if len(port) > 6 {
		return ErrHost
	}
	for i, c := range port {
		if i > 0 && (c < '0' || c > '9') {
			return ErrHost
		}
	}
	if len(port) == 1 {
		port = nil // "host:" is "host"
	}
	if len(name) > 1 && name[len(name)-1] == '.' {
		name = name[:len(name)-1]
	}
	if len(name) == 0 || name[0] == '.' || name[len(name)-1] == '.' || bytes.Contains(name, []byte("..")) {
		return ErrHost
	}
	if len(name)+len(port) == len(b) && !hasUpper(name) {
		t.Host, t.Authority = view(name), view(b)
		return nil
	}
	for _, c := range name {
		if c >= 'A' && c <= 'Z' {
			c |= 0x20
		}
		t.host = append(t.host, c)
	}
	t.host = append(t.host, port...)
	t.Host, t.Authority = view(t.host[:len(name)]), view(t.host)
	return nil
}

func isHostByte(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '.' || c == '_' || c == '~'
}

func isIPv6(b []byte) bool {
	colons := 0
	for _, c := range b {
		switch {
		case c == ':':
			colons++
		case c >= '0' && c <= '9', c|0x20 >= 'a' && c|0x20 <= 'f', c == '.':
		default:
			return false
		}
	}
	return colons >= 2 && len(b) <= 45
}

func hasUpper(b []byte) bool {
	for _, c := range b {
		if c >= 'A' && c <= 'Z' {
			return true
		}
	}
	return false
}

// view is b as a string without a copy.
func view(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }
