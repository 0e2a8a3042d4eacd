package verdict

import (
	"fmt"
	"net"
	"net/url"
	"strings"

	"github.com/hauberk-mesh/hauberk/cli/run"
	"github.com/hauberk-mesh/hauberk/policy"
)

// httpFlags is the request of a question.
type httpFlags struct {
	method, path, host string
	headers            []string
}

func (h *httpFlags) given() bool {
	return h.method != "" || h.path != "" || h.host != "" || len(h.headers) > 0
}

// request is what policies see of it, in the spelling of the sidecar.
func (h *httpFlags) request() (*policy.HTTPRequest, error) {
	r := &policy.HTTPRequest{Method: h.method, Path: "/", Host: canonicalHost(h.host)}
	if r.Method == "" {
		r.Method = "GET"
	}
	if h.path != "" {
		path, err := canonicalPath(h.path)
		if err != nil {
			return nil, run.Fail(run.ExitBadInput, "sidecars answer 400 to such a request", "--path %q: %w", h.path, err)
		}
		r.Path = path
	}
	values := make(map[string][]string)
	for _, text := range h.headers {
		name, value, ok := strings.Cut(text, "=")
		if !ok || name == "" {
			return nil, run.Fail(run.ExitUsage, "write --header name=value", "--header %q is of no known form", text)
		}
		name = strings.ToLower(name)
		values[name] = append(values[name], value)
	}
	if len(values) > 0 {
		r.Header = func(name string) []string { return values[name] }
	}
	return r, nil
}

func canonicalHost(host string) string {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	return strings.ToLower(strings.TrimSuffix(host, "."))
}

// canonicalPath spells a path as sidecars do: without query, unreserved
// characters decoded, slashes merged, dot segments resolved. What could be read
// in two ways is refused, as they do.
func canonicalPath(path string) (string, error) {
	if strings.ContainsRune(path, '#') {
		return "", fmt.Errorf("it has a fragment")
	}
	path, _, _ = strings.Cut(path, "?")
	if !strings.HasPrefix(path, "/") {
		return "", fmt.Errorf("it does not begin with a slash")
	}
	var b strings.Builder
	for i := 0; i < len(path); i++ {
		c := path[i]
		if c == '\\' {
			return "", fmt.Errorf("it has a backslash")
		}
		if c != '%' {
			b.WriteByte(c)
			continue
		}
		if i+2 >= len(path) {
			return "", fmt.Errorf("a percent sign is not followed by two hexadecimal digits")
		}
		decoded, err := url.PathUnescape(path[i : i+3])
		if err != nil {
			return "", fmt.Errorf("a percent sign is not followed by two hexadecimal digits")
		}
		switch d := decoded[0]; {
		case d == '/' || d == '\\' || d == 0:
			return "", fmt.Errorf("it has an encoded slash, backslash or NUL")
		case unreserved(d):
			b.WriteByte(d)
		default:
			b.WriteString(strings.ToUpper(path[i : i+3]))
		}
		i += 2
	}
	return resolveDots(b.String())
}

// unreserved are the characters that need no encoding (RFC 3986 section 2.3).
func unreserved(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("-._~", c) >= 0
}

func resolveDots(path string) (string, error) {
	segments := strings.Split(path, "/")[1:]
	var kept []string
	directory := false
	for _, s := range segments {
		name, _, hasParameters := strings.Cut(s, ";")
		directory = false
		switch {
		case hasParameters && (name == "." || name == ".."):
			return "", fmt.Errorf("it has a dot segment with parameters")
		case s == "" || s == ".":
			directory = true
		case s == "..":
			directory = true
			if len(kept) > 0 {
				kept = kept[:len(kept)-1]
			}
		default:
			kept = append(kept, s)
		}
	}
	out := "/" + strings.Join(kept, "/")
	if directory && len(kept) > 0 {
		out += "/"
	}
	return out, nil
}
