package policy_test

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/hauberk-mesh/hauberk/policy"
)

func withHTTP(r policy.Rule, method string) policy.Rule {
	r.HTTP = []policy.HTTPMatch{{Methods: []string{method}}}
	return r
}

func withPrincipal(action policy.Action, patterns ...string) policy.Rule {
	return policy.Rule{Name: "principal", Action: action, Peers: []policy.Peer{{Principals: patterns}}}
}

func withPath(r policy.Rule, path string) policy.Rule {
	r.HTTP = []policy.HTTPMatch{{Paths: []policy.PathMatch{{Value: path}}}}
	return r
}

func withMTLS(r policy.Rule) policy.Rule { r.RequireMTLS = true; return r }

// The projection for packets, for connections whose identity is known (front's,
// by mTLS), and what enumeration finds for packets.
func TestProjection(t *testing.T) {
	allow, deny, pass := anyone(policy.Allow), anyone(policy.Deny), anyone(policy.Pass)
	const denied, mixed, allowed = policy.AllDenied, policy.Mixed, policy.AllAllowed
	udp := to(policy.UDP, 8080)
	one := func(rules ...policy.Rule) *policy.Set { return ingress(tier("t", policy.Deny, pol("p", rules...))) }
	tests := []struct {
		name                      string
		set                       *policy.Set
		flow                      *policy.Flow
		packet, connection, exact policy.Projection
	}{
		{"no policy", ingress(), flow(mtls), allowed, allowed, allowed},
		{"nothing matches", one(onPort(allow, 1)), flow(mtls), denied, denied, denied},
		{"all allowed", one(allow), flow(mtls), allowed, allowed, allowed},
		{"some requests allowed", one(withHTTP(allow, "GET")), flow(mtls), mixed, mixed, mixed},
		{"some requests denied", one(withHTTP(deny, "GET"), allow), flow(mtls), mixed, mixed, mixed},
		{"another port's requests", one(onPort(withHTTP(allow, "GET"), 1)), flow(mtls), denied, denied, denied},
		{"requests, then all", one(withHTTP(allow, "GET"), allow), flow(mtls), allowed, allowed, allowed},
		{"front's principal", one(withPrincipal(policy.Allow, frontID)), flow(mtls), mixed, allowed, mixed},
		{"another principal", one(withPrincipal(policy.Allow, "spiffe://other.example/*")), flow(mtls), mixed, denied, mixed},
		{"mTLS", one(withMTLS(allow)), flow(mtls), mixed, allowed, mixed},
		{"log does not matter", one(withHTTP(anyone(policy.Log), "GET"), allow), flow(mtls), allowed, allowed, allowed},
		{"pass for some, into what denies", ingress(tier("t", policy.Deny, pol("p", withHTTP(pass, "GET"))), tier("u", policy.Deny, pol("q", deny))), flow(mtls), denied, denied, denied},
		{"pass for some, into what allows", ingress(tier("t", policy.Deny, pol("p", withHTTP(pass, "GET"))), tier("u", policy.Deny, pol("q", allow))), flow(mtls), mixed, mixed, mixed},
		{"pass for some, then for all", ingress(tier("t", policy.Deny, pol("p", withHTTP(pass, "GET"), pass)), tier("u", policy.Deny, pol("q", allow))), flow(mtls), allowed, allowed, allowed},
		{"audit does not matter", ingress(tier("t", policy.Deny, audit(pol("p", withHTTP(deny, "GET"))), pol("q", allow))), flow(mtls), allowed, allowed, allowed},
		{"invalid allow", one(unresolved(withHTTP(allow, "GET"))), flow(mtls), denied, denied, denied},
		{"requests over UDP", one(withHTTP(allow, "GET")), flow(udp), denied, denied, denied},
		{"denied requests over UDP", one(withHTTP(deny, "GET"), allow), flow(udp), allowed, allowed, allowed},
		{"principals over UDP", one(withPrincipal(policy.Allow, "*")), flow(udp), denied, denied, denied},
		{"own node", one(deny), flow(fromNode("node-1")), allowed, allowed, allowed},
		{"own node, where requests matter", one(withHTTP(allow, "GET")), flow(fromNode("node-1")), mixed, mixed, mixed},
		{"own node over UDP, where requests matter", one(withHTTP(allow, "GET")), flow(fromNode("node-1"), udp), allowed, allowed, allowed},
		{"no set", nil, flow(mtls), denied, denied, denied},
		// Unknown parts that cover each other: the projection errs to Mixed.
		{"deny covers allow", one(withHTTP(deny, "GET"), withHTTP(allow, "GET")), flow(mtls), mixed, mixed, denied},
		{"mTLS and any principal cover each other", one(withMTLS(deny), withPrincipal(policy.Allow, "*")), flow(mtls), mixed, denied, denied},
		{"pattern covers name", one(withPrincipal(policy.Deny, "spiffe://cluster.local/*"), withPrincipal(policy.Allow, frontID)), flow(mtls), mixed, denied, denied},
		{"name does not cover pattern", one(withPrincipal(policy.Deny, frontID), withPrincipal(policy.Allow, "spiffe://cluster.local/*")), flow(mtls), mixed, denied, mixed},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := tt.set.Project(policy.Ingress, tt.flow); got != tt.packet {
				t.Errorf("packet: got %s, want %s", got, tt.packet)
			}
			if got := tt.set.ProjectConnection(policy.Ingress, tt.flow); got != tt.connection {
				t.Errorf("connection: got %s, want %s", got, tt.connection)
			}
			if got, ok := tt.set.ProjectExact(policy.Ingress, tt.flow); got != tt.exact || !ok {
				t.Errorf("exact: got %s (%v), want %s", got, ok, tt.exact)
			}
		})
	}
}

// Too many kinds of flow to try: the answer stays safe and says so.
func TestProjectExactGivesUp(t *testing.T) {
	var values []string
	for i := range 20 {
		values = append(values, fmt.Sprint(i))
	}
	r := anyone(policy.Deny)
	r.HTTP = []policy.HTTPMatch{{Headers: []policy.HeaderMatch{{Name: "x-a", Values: values}}}}
	s := ingress(tier("t", policy.Pass, pol("p", r)))
	if got, exact := s.ProjectExact(policy.Ingress, flow()); got != policy.Mixed || exact {
		t.Errorf("got %s, %v; want Mixed, false", got, exact)
	}
}

func TestRuleL4(t *testing.T) {
	allow := anyone(policy.Allow)
	peer := policy.Rule{Action: policy.Allow, Peers: []policy.Peer{{Networks: []policy.Network{{Prefix: netip.MustParsePrefix("203.0.113.0/24")}}}}}
	either := policy.Rule{Action: policy.Allow, Peers: []policy.Peer{{Principals: []string{"*"}}, {Namespaces: []string{"red"}}}}
	tests := []struct {
		name string
		rule policy.Rule
		want policy.Outcome
	}{
		{"matches", allow, policy.Yes},
		{"another port", onPort(allow, 1), policy.No},
		{"another peer", peer, policy.No},
		{"http", withHTTP(allow, "GET"), policy.Maybe},
		{"http on another port", onPort(withHTTP(allow, "GET"), 1), policy.No},
		{"mTLS", withMTLS(allow), policy.Maybe},
		{"principal", withPrincipal(policy.Allow, frontID), policy.Maybe},
		{"principal or what is so", either, policy.Yes},
		{"principal that cannot be", withPrincipal(policy.Allow, ""), policy.No},
		{"principal that cannot be, denied", withPrincipal(policy.Deny, ""), policy.Maybe},
		{"path that cannot be", withPath(allow, "no-slash"), policy.No}, // found by TestResolveKeepsMeaning
		{"path that cannot be, denied", withPath(anyone(policy.Deny), "no-slash"), policy.Maybe},
		{"invalid", unresolved(allow), policy.No},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := pol("p", tt.rule)
			if got := p.Rules[0].L4(&p, policy.Ingress, flow(mtls)); got != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
		})
	}
}
