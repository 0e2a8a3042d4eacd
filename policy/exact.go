package policy

import (
	"slices"
	"strings"
)

// maxCompletions bounds the work of ProjectExact.
const maxCompletions = 1 << 14

// ProjectExact is Project without its pessimism: AllDenied if and only if every
// completion of the flow's L7 attributes is denied, AllAllowed if and only if
// every completion is allowed. It tries one flow of each kind that the set's
// rules tell apart (none is exact when they tell apart by template, expression,
// query or gRPC), so it is for tests, audits and the command line, not for the
// path of packets. When there are too many kinds exact is false and the
// answer is Project's.
func (s *Set) ProjectExact(d Direction, f *Flow) (p Projection, exact bool) {
	p = s.Project(d, f)
	if p != Mixed {
		return p, true
	}
	allow, deny := false, false
	exact = s.completions(d, f, func(c *Flow) bool {
		v := s.Evaluate(d, c)
		allow = allow || v.Allowed()
		deny = deny || !v.Allowed()
		return !allow || !deny
	})
	switch {
	case !exact || allow && deny:
		return Mixed, exact
	case allow:
		return AllAllowed, true
	}
	return AllDenied, true
}

// kinds is, for each attribute, one value of each kind that rules tell apart.
type kinds struct {
	methods, paths, hosts, principals []string
	headers                           []headerKinds
	// endless: a rule has a part whose kinds cannot be listed.
	endless bool
}

type headerKinds struct {
	name   string
	values [][]string
}

// unlike is in no rule that a user writes.
const unlike = "\x00unlike"

// completions calls visit with the flow completed in each way that the set's
// rules can tell apart, until it returns false. It is false when there are too
// many.
func (s *Set) completions(d Direction, f *Flow, visit func(*Flow) bool) bool {
	var v view
	v.init(d, f, UnknownL7)
	k := s.kinds(d, &v)
	if k.endless {
		return false
	}
	n := len(k.methods) * len(k.paths) * len(k.hosts)
	for _, h := range k.headers {
		if n *= len(h.values); n > maxCompletions {
			return false
		}
	}
	if n*(len(k.principals)+1) > maxCompletions {
		return false
	}
	for i := -1; i < len(k.principals); i++ {
		c := *f
		peer := &c.Source
		if d == Egress {
			peer = &c.Destination
		}
		c.MTLS, peer.Principal, c.HTTP = i >= 0, "", nil
		if i >= 0 {
			peer.Principal = k.principals[i]
		}
		if !visit(&c) || v.none == 0 && !k.requests(&c, visit) {
			break
		}
		if v.none != 0 { // neither mTLS nor HTTP
			break
		}
	}
	return true
}

// requests visits the flow with each kind of request; false to end.
func (k *kinds) requests(f *Flow, visit func(*Flow) bool) bool {
	headers := make(map[string][]string, len(k.headers))
	f.HTTP = &HTTPRequest{Header: func(name string) []string { return headers[name] }}
	var each func(i int) bool
	each = func(i int) bool {
		if i == len(k.headers) {
			return visit(f)
		}
		for _, values := range k.headers[i].values {
			headers[k.headers[i].name] = values
			if !each(i + 1) {
				return false
			}
		}
		return true
	}
	for _, f.HTTP.Method = range k.methods {
		for _, f.HTTP.Path = range k.paths {
			for _, f.HTTP.Host = range k.hosts {
				if !each(0) {
					return false
				}
			}
		}
	}
	return true
}

// kinds collects what the rules that may match the flow tell apart.
func (s *Set) kinds(d Direction, v *view) *kinds {
	k := &kinds{
		methods:    []string{unlike},
		paths:      []string{"/" + unlike, "*"},
		hosts:      []string{unlike},
		principals: []string{unlike},
	}
	values := make(map[string][]string)
	for _, tier := range s.Tiers(d) {
		for i := range tier.Policies {
			for j := range tier.Policies[i].Rules {
				if r := &tier.Policies[i].Rules[j]; v.rule(&tier.Policies[i], r) == Maybe {
					k.collect(r, values)
				}
			}
		}
	}
	for name, known := range values {
		k.headers = append(k.headers, headerKinds{name, subsets(unique(known))})
	}
	k.methods, k.paths, k.hosts, k.principals = unique(k.methods), unique(k.paths), unique(k.hosts), unique(k.principals)
	return k
}

func unique(list []string) []string {
	slices.Sort(list)
	return slices.Compact(list)
}

func (k *kinds) collect(r *Rule, values map[string][]string) {
	for _, p := range r.Peers {
		for _, pattern := range p.Principals {
			stem, wild := strings.CutSuffix(pattern, "*")
			if stem != "" {
				k.principals = append(k.principals, stem)
			}
			if wild {
				k.principals = append(k.principals, stem+unlike)
			}
		}
	}
	for _, m := range r.HTTP {
		k.methods = append(k.methods, m.Methods...)
		// What templates, expressions, queries and gRPC tell apart overlaps in too many
		// ways to list.
		k.endless = k.endless || len(m.Query)+len(m.GRPC) > 0
		for _, p := range m.Paths {
			if p.Type == PathTemplate || p.Type == PathRegex {
				k.endless = true
				continue
			}
			if p.Type == PathExact {
				k.paths = append(k.paths, p.Value)
				continue
			}
			stem := strings.TrimRight(p.Value, "/")
			k.paths = append(k.paths, stem+"/", stem+"/"+unlike)
			if stem != "" {
				k.paths = append(k.paths, stem)
			}
		}
		for _, h := range m.Hosts {
			name, wild := strings.CutPrefix(strings.ToLower(h), "*.")
			k.hosts = append(k.hosts, name)
			if wild {
				k.hosts = append(k.hosts, unlike+"."+name)
			}
		}
		for _, h := range m.Headers {
			values[h.Name] = append(values[h.Name], h.Values...)
		}
	}
}

// subsets is what a header's values may be: absent, none of the known ones, and
// each combination of those.
func subsets(known []string) [][]string {
	out := [][]string{nil, {unlike}}
	if len(known) > 14 { // over the bound already
		return make([][]string, maxCompletions+1)
	}
	for bits := 1; bits < 1<<len(known); bits++ {
		var subset []string
		for i, v := range known {
			if bits&(1<<i) != 0 {
				subset = append(subset, v)
			}
		}
		out = append(out, subset)
	}
	return out
}
