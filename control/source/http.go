package source

import (
	"fmt"
	"strings"

	"github.com/hauberk-mesh/hauberk/api/v1alpha1"
	"github.com/hauberk-mesh/hauberk/policy"
)

func httpFrom(from *v1alpha1.HTTPMatch, place string, why *reasons) (policy.HTTPMatch, bool) {
	before := len(*why)
	m := policy.HTTPMatch{Methods: from.Methods}
	if len(from.Methods)+len(from.Paths)+len(from.Hosts)+len(from.Headers)+len(from.Query) == 0 {
		why.add("%s: empty: name methods, paths, hosts, headers or query", place)
	}
	for i := range from.Paths {
		if p, ok := pathFrom(&from.Paths[i], fmt.Sprintf("%s.paths[%d]", place, i), why); ok {
			m.Paths = append(m.Paths, p)
		}
	}
	for _, h := range from.Hosts {
		m.Hosts = append(m.Hosts, strings.ToLower(h))
	}
	for _, h := range from.Headers {
		m.Headers = append(m.Headers, policy.HeaderMatch{Name: strings.ToLower(h.Name), Values: h.Values})
	}
	for _, q := range from.Query {
		m.Query = append(m.Query, policy.QueryMatch{Name: q.Name, Values: q.Values})
	}
	return m, len(*why) == before
}

// pathFrom compiles an expression here, once, and not where requests are
// decided.
func pathFrom(from *v1alpha1.PathMatch, place string, why *reasons) (policy.PathMatch, bool) {
	var all []policy.PathMatch
	for _, m := range []policy.PathMatch{
		{Type: policy.PathExact, Value: from.Exact}, {Type: policy.PathPrefix, Value: from.Prefix},
		{Type: policy.PathTemplate, Value: from.Template}, {Type: policy.PathRegex, Value: from.Regex},
	} {
		if m.Value != "" {
			all = append(all, m)
		}
	}
	if len(all) != 1 {
		why.add("%s: set exactly one of exact, prefix, template and regex", place)
		return policy.PathMatch{}, false
	}
	m := all[0]
	if m.Type == policy.PathRegex {
		compiled, err := policy.RegexPath(m.Value)
		if err != nil {
			why.add("%s.regex: %s", place, err)
			return m, false
		}
		return compiled, true
	}
	if problem := m.Problem(); problem != "" {
		why.add("%s: %q: %s", place, m.Value, problem)
		return m, false
	}
	return m, true
}

// grpcFrom limits the rule to gRPC: each of its http entries, or all requests.
func grpcFrom(rule *policy.Rule, list []v1alpha1.GRPCMatch, why *reasons) {
	var matches []policy.GRPCMatch
	for i, g := range list {
		m := policy.GRPCMatch{Service: g.Service, Method: g.Method}
		switch problem := m.Problem(); {
		case g.Service == "" && g.Method == "":
			why.add("grpc[%d]: empty: name service or method", i)
		case problem != "":
			why.add("grpc[%d]: %s", i, problem)
		default:
			matches = append(matches, m)
			continue
		}
		return // what remains is all that the rule could mean
	}
	if len(matches) == 0 {
		return
	}
	if len(rule.HTTP) == 0 {
		rule.HTTP = []policy.HTTPMatch{{}}
	}
	for i := range rule.HTTP {
		rule.HTTP[i].GRPC = matches
	}
}
