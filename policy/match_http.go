package policy

import "strings"

// requests is the outcome of a rule's HTTP part. A flow that is not HTTP
// matches no rule with an HTTP part, not even a Deny: such a rule is about
// requests. (A flow that should have been HTTP and could not be parsed never
// reaches a policy: the sidecar answers 400.)
func (v *view) requests(list []HTTPMatch, deny bool) Outcome {
	if len(list) == 0 {
		return Yes
	}
	if v.unknown&UnknownHTTP != 0 {
		for i := range list {
			if deny || list[i].resolvable() {
				return Maybe
			}
		}
		return No
	}
	if v.flow.HTTP == nil || v.none&UnknownHTTP != 0 {
		return No
	}
	for i := range list {
		if list[i].matches(v.flow.HTTP, deny) {
			return Yes
		}
	}
	return No
}

// resolvable reports whether an entry of each list that is not empty, and every
// header and query parameter, can be resolved: else no request matches.
func (m *HTTPMatch) resolvable() bool {
	for i := range m.Headers {
		if m.Headers[i].problem() != "" {
			return false
		}
	}
	for i := range m.Query {
		if m.Query[i].problem() != "" {
			return false
		}
	}
	return resolvable(m.Paths, (*PathMatch).Problem) && resolvable(m.GRPC, (*GRPCMatch).Problem) &&
		resolvable(m.Hosts, func(h *string) string { return hostProblem(*h) })
}

func resolvable[T any](list []T, problem func(*T) string) bool {
	for i := range list {
		if problem(&list[i]) == "" {
			return true
		}
	}
	return len(list) == 0
}

func (m *HTTPMatch) matches(r *HTTPRequest, deny bool) bool {
	return m.matchesMethod(r) && m.matchesPath(r, deny) && m.matchesHost(r, deny) && m.matchesHeader(r, deny) &&
		m.matchesQuery(r, deny) && m.matchesGRPC(r, deny)
}

func (m *HTTPMatch) matchesMethod(r *HTTPRequest) bool {
	return len(m.Methods) == 0 || contains(m.Methods, r.Method)
}

func (m *HTTPMatch) matchesPath(r *HTTPRequest, deny bool) bool {
	if len(m.Paths) == 0 {
		return true
	}
	for i := range m.Paths {
		if m.Paths[i].matches(r.Path, deny) {
			return true
		}
	}
	return false
}

func (m *HTTPMatch) matchesHost(r *HTTPRequest, deny bool) bool {
	if len(m.Hosts) == 0 {
		return true
	}
	for _, h := range m.Hosts {
		if hostProblem(h) != "" {
			if deny {
				return true
			}
			continue
		}
		if matchHost(h, r.Host) {
			return true
		}
	}
	return false
}

func (m *HTTPMatch) matchesHeader(r *HTTPRequest, deny bool) bool {
	for i := range m.Headers {
		h := &m.Headers[i]
		if h.problem() != "" {
			if !deny {
				return false
			}
			continue
		}
		if r.Header == nil || !h.matches(r.Header(h.Name)) {
			return false
		}
	}
	return true
}

func (m *HTTPMatch) matchesQuery(r *HTTPRequest, deny bool) bool {
	if len(m.Query) == 0 {
		return true
	}
	if ambiguousQuery(r.Query) {
		return deny
	}
	for i := range m.Query {
		q := &m.Query[i]
		if q.problem() != "" {
			if !deny {
				return false
			}
			continue
		}
		if !q.matches(r.Query) {
			return false
		}
	}
	return true
}

func (m *HTTPMatch) matchesGRPC(r *HTTPRequest, deny bool) bool {
	if len(m.GRPC) == 0 {
		return true
	}
	for i := range m.GRPC {
		g := &m.GRPC[i]
		if g.Problem() != "" {
			if deny {
				return true
			}
			continue
		}
		if g.matches(r) {
			return true
		}
	}
	return false
}

// matchHost compares a host without regard to ASCII case. A leading "*." stands
// for one or more labels.
func matchHost(pattern, host string) bool {
	if strings.HasPrefix(pattern, "*.") {
		suffix := pattern[1:]
		cut := len(host) - len(suffix)
		return cut > 0 && equalFold(host[cut:], suffix)
	}
	return equalFold(pattern, host)
}

// hostProblem says why a host pattern cannot be resolved; empty when it can.
func hostProblem(pattern string) string {
	h := strings.TrimPrefix(pattern, "*.")
	switch {
	case h == "":
		return "a host is not empty"
	case strings.IndexByte(h, '*') >= 0:
		return "'*' stands only for whole labels at the beginning, as in \"*.example.com\""
	case strings.IndexByte(h, ':') >= 0 && h[0] != '[': // IPv6 addresses are in brackets
		return "a host has no port"
	case h[0] == '[' && h[len(h)-1] != ']':
		return "a host has no port"
	}
	return ""
}

// equalFold compares ASCII letters without regard to case. It is not
// strings.EqualFold, which also folds letters outside ASCII onto ASCII ones.
func equalFold(a, b string) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range len(a) {
		if lower(a[i]) != lower(b[i]) {
			return false
		}
	}
	return true
}

func lower(c byte) byte {
	if 'A' <= c && c <= 'Z' {
		return c + 'a' - 'A'
	}
	return c
}

// problem says why the match cannot be resolved; empty when it can.
func (m *HeaderMatch) problem() string {
	if m.Name == "" {
		return "a header has a name"
	}
	for i := range len(m.Name) {
		if m.Name[i] != lower(m.Name[i]) {
			return "a header's name is in lower case"
		}
	}
	return ""
}

// matches compares each value on its own: values are not joined or split.
func (m *HeaderMatch) matches(values []string) bool {
	if len(m.Values) == 0 {
		return len(values) > 0
	}
	for _, v := range values {
		if contains(m.Values, v) {
			return true
		}
	}
	return false
}
