package keystore

import (
	"fmt"
	"path"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Bounds on one key. They are far above what the bank uses and exist so that a
// request cannot make the tree arbitrarily deep.
const (
	maxKeyBytes = 2048
	maxKeyDepth = 32
)

// parseKey turns the part of a request path behind /v2/keys (percent decoding
// already done) into a key: absolute, clean, without a trailing slash, "/" for
// the root. Dot segments resolve inside the tree and never climb above it.
func parseKey(raw string) (string, error) {
	if len(raw) > maxKeyBytes {
		return "", fmt.Errorf("key is %d bytes long, at most %d are allowed", len(raw), maxKeyBytes)
	}
	if !utf8.ValidString(raw) {
		return "", fmt.Errorf("key %q is not UTF-8", raw)
	}
	if strings.IndexFunc(raw, unicode.IsControl) >= 0 {
		return "", fmt.Errorf("key %q holds a control character", raw)
	}
	key := path.Clean("/" + raw)
	if depth := len(segments(key)); depth > maxKeyDepth {
		return "", fmt.Errorf("key has %d levels, at most %d are allowed", depth, maxKeyDepth)
	}
	return key, nil
}

// segments splits a parsed key; the root has none.
func segments(key string) []string {
	if key == "/" {
		return nil
	}
	return strings.Split(key[1:], "/")
}

// hidden tells whether listings leave a name out, as etcd does for names that
// begin with an underscore. Such a key can still be read by its full path.
func hidden(name string) bool { return strings.HasPrefix(name, "_") }
