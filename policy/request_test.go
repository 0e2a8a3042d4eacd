package policy_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/hauberk-mesh/hauberk/policy"
)

func regex(t testing.TB, text string) policy.PathMatch {
	t.Helper()
	m, err := policy.RegexPath(text)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func template(text string) policy.PathMatch {
	return policy.PathMatch{Type: policy.PathTemplate, Value: text}
}

// asked makes a request from "path?query" and a content type.
func asked(target, contentType string) *policy.HTTPRequest {
	path, query, _ := strings.Cut(target, "?")
	r := request("POST", path)
	r.Query = query
	r.Header = func(name string) []string {
		if name == "content-type" && contentType != "" {
			return []string{contentType}
		}
		return nil
	}
	return r
}

func TestRequests(t *testing.T) {
	paths := func(m policy.PathMatch) policy.HTTPMatch { return policy.HTTPMatch{Paths: []policy.PathMatch{m}} }
	query := func(name string, values ...string) policy.HTTPMatch {
		return policy.HTTPMatch{Query: []policy.QueryMatch{{Name: name, Values: values}}}
	}
	grpc := func(service, method string) policy.HTTPMatch {
		return policy.HTTPMatch{GRPC: []policy.GRPCMatch{{Service: service, Method: method}}}
	}
	const proto = "application/grpc+proto"
	tests := []struct {
		name  string
		match policy.HTTPMatch
		req   *policy.HTTPRequest
		want  bool
	}{
		{"template", paths(template("/users/{id}")), asked("/users/7", ""), true},
		{"template, parameters are of the segment", paths(template("/users/{id}")), asked("/users/7;v=1", ""), true},
		{"template, empty segment", paths(template("/users/{id}")), asked("/users/", ""), false},
		{"template, more segments", paths(template("/users/{id}")), asked("/users/7/keys", ""), false},
		{"template, trailing slash", paths(template("/users/{id}")), asked("/users/7/", ""), false},
		{"template with trailing slash", paths(template("/users/{id}/")), asked("/users/7/", ""), true},
		{"template, fewer segments", paths(template("/users/{id}/keys")), asked("/users/7", ""), false},
		{"template, literal after", paths(template("/users/{id}/keys")), asked("/users/7/keys", ""), true},
		{"template, another literal", paths(template("/users/{id}/keys")), asked("/users/7/locks", ""), false},
		{"template, asterisk form", paths(template("/{x}")), asked("*", ""), false},
		{"regex", paths(regex(t, "/v[0-9]+")), asked("/v12", ""), true},
		{"regex, the whole path", paths(regex(t, "/v[0-9]+")), asked("/v12/keys", ""), false},
		{"regex, not its end alone", paths(regex(t, "/keys")), asked("/v1/keys", ""), false},
		{"regex, alternatives are anchored both", paths(regex(t, "/a|/b")), asked("/a/x", ""), false},
		{"regex, an alternative", paths(regex(t, "/a|/b")), asked("/b", ""), true},
		{"regex, a line's end is no end", paths(regex(t, "(?m)/a$")), asked("/a\n/b", ""), false},
		{"query", query("k", "1"), asked("/?k=1", ""), true},
		{"query, another value", query("k", "1"), asked("/?k=2", ""), false},
		{"query, each value on its own", query("k", "1"), asked("/?k=2&k=1", ""), true},
		{"query, decoded", query("k", "a b"), asked("/?%6B=a+%62", ""), true},
		{"query, present", query("k"), asked("/?j&k", ""), true},
		{"query, absent", query("k"), asked("/?kk=1", ""), false},
		{"query, empty value", query("k", ""), asked("/?k", ""), true},
		{"query, the value's own =", query("k", "a=b"), asked("/?k=a=b", ""), true},
		{"query, another case", query("k"), asked("/?K=1", ""), false},
		{"grpc", grpc("bank.v1.Accounts", "Get"), asked("/bank.v1.Accounts/Get", proto), true},
		{"grpc, any method", grpc("bank.v1.Accounts", ""), asked("/bank.v1.Accounts/Set", proto), true},
		{"grpc, any service", grpc("", "Get"), asked("/a.B/Get", "Application/GRPC"), true},
		{"grpc, another method", grpc("bank.v1.Accounts", "Get"), asked("/bank.v1.Accounts/Set", proto), false},
		{"grpc, another service", grpc("bank.v1.Accounts", ""), asked("/bank.v1.AccountsX/Get", proto), false},
		{"grpc, another type", grpc("bank.v1.Accounts", "Get"), asked("/bank.v1.Accounts/Get", "application/json"), false},
		{"grpc, no type", grpc("bank.v1.Accounts", "Get"), asked("/bank.v1.Accounts/Get", ""), false},
		{"grpc, a longer path", grpc("bank.v1.Accounts", ""), asked("/bank.v1.Accounts/Get/x", proto), false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := flow(mtls)
			f.HTTP = tt.req
			for _, action := range []policy.Action{policy.Allow, policy.Deny} {
				r := policy.Rule{Action: action, AnyPeer: true, HTTP: []policy.HTTPMatch{tt.match}}
				if got := matches(r, policy.Ingress, f); got != tt.want {
					t.Errorf("%s: got %v, want %v", action, got, tt.want)
				}
			}
		})
	}
}

// What can't be told is false in an Allow and true in a Deny.
func TestRequestsThatCannotBeTold(t *testing.T) {
	for name, tt := range map[string]struct {
		match policy.HTTPMatch
		req   *policy.HTTPRequest
	}{
		"half an escape in the query":   {policy.HTTPMatch{Query: []policy.QueryMatch{{Name: "k", Values: []string{"1"}}}}, asked("/?k=1&j=%1", "")},
		"a semicolon in the query":      {policy.HTTPMatch{Query: []policy.QueryMatch{{Name: "k", Values: []string{"1"}}}}, asked("/?k=1;k=2", "")},
		"a parameter without name":      {policy.HTTPMatch{Query: []policy.QueryMatch{{}}}, asked("/?k=1", "")},
		"an expression not compiled":    {policy.HTTPMatch{Paths: []policy.PathMatch{{Type: policy.PathRegex, Value: "/.*"}}}, asked("/a", "")},
		"an expression for another":     {policy.HTTPMatch{Paths: []policy.PathMatch{{Type: policy.PathRegex, Value: "/.*", Regex: regex(t, "/a").Regex}}}, asked("/a", "")},
		"a variable in half a segment":  {policy.HTTPMatch{Paths: []policy.PathMatch{template("/a{id}")}}, asked("/a{id}", "")},
		"a variable without name":       {policy.HTTPMatch{Paths: []policy.PathMatch{template("/{}")}}, asked("/a", "")},
		"a path's type of the future":   {policy.HTTPMatch{Paths: []policy.PathMatch{{Type: 9, Value: "/a"}}}, asked("/a", "")},
		"a grpc method with a wildcard": {policy.HTTPMatch{GRPC: []policy.GRPCMatch{{Method: "*"}}}, asked("/a.B/C", "application/grpc")},
	} {
		t.Run(name, func(t *testing.T) {
			f := flow(mtls)
			f.HTTP = tt.req
			for action, want := range map[policy.Action]bool{policy.Allow: false, policy.Deny: true} {
				r := policy.Rule{Action: action, AnyPeer: true, HTTP: []policy.HTTPMatch{tt.match}}
				if got := matches(r, policy.Ingress, f); got != want {
					t.Errorf("%s: got %v, want %v", action, got, want)
				}
			}
		})
	}
}

func TestRegexPathRefuses(t *testing.T) {
	for _, text := range []string{"(", "/a)|(/.*", `/a\`, strings.Repeat("a", 513), "/(a{1000}){1000}"} {
		if m, err := policy.RegexPath(text); err == nil {
			t.Errorf("%q is accepted: %v", text, m)
		}
	}
}

func TestExplainSaysWhatRequestsLack(t *testing.T) {
	r := policy.Rule{Name: "r", Action: policy.Allow, AnyPeer: true, HTTP: []policy.HTTPMatch{
		{Paths: []policy.PathMatch{template("/users/{id}"), regex(t, "/v[0-9]")}},
		{Query: []policy.QueryMatch{{Name: "k"}}},
		{GRPC: []policy.GRPCMatch{{Service: "a.B"}, {Method: "C"}}},
	}}
	f := flow(mtls)
	f.HTTP = asked("/a", "")
	got := ingress(tier("t", policy.Deny, pol("p", r))).Explain(policy.Ingress, f).Tiers[0].Policies[0].Rules[0].Lacks
	want := "path /a is not like /users/{id} or matching /v[0-9], the value of query parameter k is not as required, " +
		"it is no gRPC request to a.B/any method or any service/C"
	if got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// many is n rules of the kinds that real policies have, of which the last one
// allows the flow.
func many(t testing.TB, n int) (*policy.Set, *policy.Flow) {
	rules := make([]policy.Rule, 0, n)
	app := func(value string) []policy.Peer {
		return []policy.Peer{{PodSelector: &policy.Selector{Requirements: []policy.Requirement{{Key: "app", Operator: policy.In, Values: []string{value}}}}}}
	}
	for i := range n - 1 {
		r := policy.Rule{Name: fmt.Sprintf("r%d", i), Action: policy.Allow, Peers: app("none")}
		switch i % 4 {
		case 0:
			r.HTTP = []policy.HTTPMatch{{Methods: []string{"GET"}, Paths: []policy.PathMatch{{Type: policy.PathPrefix, Value: fmt.Sprintf("/v2/%d", i)}}}}
		case 1:
			r.HTTP = []policy.HTTPMatch{{Methods: []string{"PUT"}, Paths: []policy.PathMatch{template(fmt.Sprintf("/users/{id}/%d", i))}}}
		case 2:
			r.Ports = []policy.PortMatch{{Protocol: policy.TCP, Port: uint16(9000 + i%100)}}
		}
		rules = append(rules, r)
	}
	rules = append(rules, policy.Rule{Name: "last", Action: policy.Allow, Peers: []policy.Peer{{Principals: []string{"spiffe://cluster.local/*"}}},
		HTTP: []policy.HTTPMatch{{Paths: []policy.PathMatch{template("/users/{id}")}, Query: []policy.QueryMatch{{Name: "k", Values: []string{"1"}}}}}})
	s := ingress(tier("t", policy.Deny, pol("p", rules...)))
	f := flow(mtls, http("GET", "/users/7"))
	f.HTTP.Query = "j=%20&k=1"
	if v := s.Evaluate(policy.Ingress, f); v.Rule != "last" {
		t.Fatal(v)
	}
	return s, f
}

func TestRequestsAllocateNothing(t *testing.T) {
	s, f := many(t, 40)
	expr := ingress(tier("t", policy.Deny, pol("p", policy.Rule{Name: "r", Action: policy.Allow, AnyPeer: true,
		HTTP: []policy.HTTPMatch{{Paths: []policy.PathMatch{regex(t, "/users/[0-9]+")}}}})))
	if n := testing.AllocsPerRun(100, func() {
		s.Evaluate(policy.Ingress, f)
		expr.Evaluate(policy.Ingress, f)
	}); n != 0 {
		t.Errorf("got %v allocations, want none", n)
	}
}

// BenchmarkRules is BenchmarkCommon of rules that differ in what no index looks at, too.
func BenchmarkRules(b *testing.B) {
	for _, n := range sizes() {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			s, f := many(b, n)
			s = s.Indexed()
			b.ReportAllocs()
			for b.Loop() {
				s.Evaluate(policy.Ingress, f)
			}
		})
	}
}
