package canonical

import "bytes"

// setPath normalises an absolute path: unreserved characters decoded, the
// other escapes in upper case, slashes merged, dot segments resolved.
func (t *Target) setPath(path []byte) error {
	if isCanonical(path) {
		t.Path = view(path)
		return nil
	}
	decoded, err := decode(t.path[:0], path)
	if err != nil {
		return err
	}
	out, err := resolve(decoded)
	if err != nil {
		return err
	}
	t.path = out
	t.Path = view(out)
	return nil
}

// isCanonical reports whether nothing could change: the common case, found in
// one pass.
func isCanonical(path []byte) bool {
	for i, c := range path {
		switch c {
		case '%', '\\', ';':
			return false
		case '/':
			if i+1 < len(path) && (path[i+1] == '/' || path[i+1] == '.') {
				return false
			}
		}
	}
	return true
}

// decode appends path to dst with its escapes in their one spelling.
func decode(dst, path []byte) ([]byte, error) {
	for i := 0; i < len(path); i++ {
		c := path[i]
		if c == '\\' {
			return nil, ErrSeparator
		}
		if c != '%' {
			dst = append(dst, c)
			continue
		}
		if i+2 >= len(path) {
			return nil, ErrEscape
		}
		hi, ok1 := unhex(path[i+1])
		lo, ok2 := unhex(path[i+2])
		if !ok1 || !ok2 {
			return nil, ErrEscape
		}
		i += 2
		switch d := hi<<4 | lo; {
		case d == '/' || d == '\\' || d == 0:
			return nil, ErrSeparator
		case isUnreserved(d):
			dst = append(dst, d)
		default:
			const digits = "0123456789ABCDEF"
			dst = append(dst, '%', digits[hi], digits[lo])
		}
	}
	return dst, nil
}

// resolve merges slashes and removes dot segments in place (RFC 3986 section
// 5.2.4). A ".." above the root stays at the root.
func resolve(b []byte) ([]byte, error) {
	out := b[:0]
	for i := 0; i < len(b); {
		for i < len(b) && b[i] == '/' {
			i++
		}
		start := i
		for i < len(b) && b[i] != '/' {
			i++
		}
		segment, last := b[start:i], i == len(b)
		if p := semicolon(segment); p > 0 && isDots(segment[:p]) {
			return nil, ErrDotParams
		}
		switch string(segment) {
		case "", ".":
			if last {
				out = append(out, '/')
			}
		case "..":
			out = out[:max(0, bytes.LastIndexByte(out, '/'))]
			if last {
				out = append(out, '/')
			}
		default:
			out = append(out, '/')
			out = append(out, segment...)
		}
	}
	return out, nil
}

// semicolon finds where a segment's parameters begin, or -1. One that is encoded
// begins them for those who decode first and cut then.
func semicolon(segment []byte) int {
	plain, encoded := bytes.IndexByte(segment, ';'), bytes.Index(segment, []byte("%3B"))
	if plain < 0 || encoded >= 0 && encoded < plain {
		return encoded
	}
	return plain
}

func isDots(b []byte) bool { return string(b) == "." || string(b) == ".." }

func unhex(c byte) (byte, bool) {
	switch {
	case c >= '0' && c <= '9':
		return c - '0', true
	case c|0x20 >= 'a' && c|0x20 <= 'f':
		return c | 0x20 - 'a' + 10, true
	}
	return 0, false
}

func isUnreserved(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' ||
		c == '-' || c == '.' || c == '_' || c == '~'
}
