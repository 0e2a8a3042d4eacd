package policy_test

import (
	"net/netip"
	"testing"

	"github.com/hauberk-mesh/hauberk/policy"
)

// matches evaluates a set of one rule.
func matches(r policy.Rule, d policy.Direction, f *policy.Flow) bool {
	r.Name = "rule"
	t := []policy.Tier{tier("t", policy.Pass, pol("p", r))}
	s := &policy.Set{Ingress: t, Egress: t}
	if r.Action == policy.Deny {
		s.DefaultAction = policy.Allow
		return s.Evaluate(d, f).Action == policy.Deny
	}
	return s.Evaluate(d, f).Action == policy.Allow
}

func selector(key string, op policy.Operator, values ...string) *policy.Selector {
	return &policy.Selector{Requirements: []policy.Requirement{{Key: key, Operator: op, Values: values}}}
}

func network(prefix string, except ...string) policy.Network {
	n := policy.Network{Prefix: netip.MustParsePrefix(prefix)}
	for _, e := range except {
		n.Except = append(n.Except, netip.MustParsePrefix(e))
	}
	return n
}

// Each row of the table "Matching" that speaks of peers.
func TestPeers(t *testing.T) {
	everything := &policy.Selector{}
	world := from("203.0.113.5")
	hostNetwork := func(f *policy.Flow) { f.Source.Host, f.Source.HostOf = true, "node-2" }
	tests := []struct {
		name string
		peer policy.Peer
		flow *policy.Flow
		want bool
	}{
		{"no field", policy.Peer{}, flow(), false},
		{"pod label", policy.Peer{PodSelector: selector("app", policy.In, "x", "front")}, flow(), true},
		{"other pod label", policy.Peer{PodSelector: selector("app", policy.In, "x")}, flow(), false},
		{"absent label", policy.Peer{PodSelector: selector("none", policy.In, "x")}, flow(), false},
		{"not in", policy.Peer{PodSelector: selector("app", policy.NotIn, "x")}, flow(), true},
		{"not in, absent", policy.Peer{PodSelector: selector("none", policy.NotIn, "x")}, flow(), true},
		{"not in, present", policy.Peer{PodSelector: selector("app", policy.NotIn, "front")}, flow(), false},
		{"exists", policy.Peer{PodSelector: selector("app", policy.Exists)}, flow(), true},
		{"does not exist", policy.Peer{PodSelector: selector("app", policy.DoesNotExist)}, flow(), false},
		{"unknown operator", policy.Peer{PodSelector: selector("app", 9, "front")}, flow(), false},
		{"empty selector, a pod", policy.Peer{PodSelector: everything}, flow(), true},
		{"empty selector, the world", policy.Peer{PodSelector: everything}, flow(world), false},
		{"empty selector, a node", policy.Peer{PodSelector: everything}, flow(fromNode("node-2")), false},
		{"empty selector, a host-network pod", policy.Peer{PodSelector: everything}, flow(hostNetwork), false},
		{"namespace label", policy.Peer{NamespaceSelector: selector("team", policy.In, "a")}, flow(), true},
		{"other namespace label", policy.Peer{NamespaceSelector: selector("team", policy.In, "b")}, flow(), false},
		{"all namespaces", policy.Peer{NamespaceSelector: everything}, flow(), true},
		{"namespace name", policy.Peer{Namespaces: []string{"blue", "red"}}, flow(), true},
		{"other namespace name", policy.Peer{Namespaces: []string{"blue"}}, flow(), false},
		{"namespace and pod", policy.Peer{Namespaces: []string{"red"}, PodSelector: selector("app", policy.In, "front")}, flow(), true},
		{"namespace but not pod", policy.Peer{Namespaces: []string{"red"}, PodSelector: selector("app", policy.In, "x")}, flow(), false},
		{"service account", policy.Peer{ServiceAccounts: []policy.ServiceAccount{{Namespace: "red", Name: "front"}}}, flow(), true},
		{"service account of another namespace", policy.Peer{ServiceAccounts: []policy.ServiceAccount{{Namespace: "blue", Name: "front"}}}, flow(), false},
		{"service account's label", policy.Peer{ServiceAccountSelector: selector("trusted", policy.In, "yes")}, flow(), true},
		{"service account's other label", policy.Peer{ServiceAccountSelector: selector("trusted", policy.In, "no")}, flow(), false},
		{"principal, not proved", policy.Peer{Principals: []string{frontID}}, flow(), false},
		{"principal, proved", policy.Peer{Principals: []string{frontID}}, flow(mtls), true},
		{"another principal", policy.Peer{Principals: []string{"spiffe://cluster.local/ns/red/sa/fron"}}, flow(mtls), false},
		{"principal pattern", policy.Peer{Principals: []string{"spiffe://cluster.local/ns/*"}}, flow(mtls), true},
		{"another trust domain", policy.Peer{Principals: []string{"spiffe://other.example/*"}}, flow(mtls), false},
		{"any principal", policy.Peer{Principals: []string{"*"}}, flow(mtls), true},
		{"any principal, none proved", policy.Peer{Principals: []string{"*"}}, flow(), false},
		{"star in the middle", policy.Peer{Principals: []string{"spiffe://*/ns/red/sa/front"}}, flow(mtls), false},
		{"principal and network", policy.Peer{Principals: []string{"*"}, Networks: []policy.Network{network("10.0.1.0/24")}}, flow(mtls), true},
		{"principal but not network", policy.Peer{Principals: []string{"*"}, Networks: []policy.Network{network("10.0.2.0/24")}}, flow(mtls), false},
		{"network", policy.Peer{Networks: []policy.Network{network("10.0.0.0/8")}}, flow(), true},
		{"network's exception", policy.Peer{Networks: []policy.Network{network("10.0.0.0/8", "10.0.1.1/32")}}, flow(), false},
		{"another network's exception", policy.Peer{Networks: []policy.Network{network("10.0.0.0/8", "10.0.1.1/32"), network("10.0.1.0/24")}}, flow(), true},
		{"IPv4-mapped address", policy.Peer{Networks: []policy.Network{network("10.0.0.0/8")}}, flow(from("::ffff:10.0.1.1")), true},
		{"IPv6 is not IPv4", policy.Peer{Networks: []policy.Network{network("0.0.0.0/0")}}, flow(from("fd00::1")), false},
		{"IPv6 with zone", policy.Peer{Networks: []policy.Network{network("fe80::/10")}}, flow(from("fe80::1%eth0")), true},
		{"no prefix", policy.Peer{Networks: []policy.Network{{}}}, flow(), false},
		{"cluster, a pod", policy.Peer{Entities: []policy.Entity{policy.EntityCluster}}, flow(), true},
		{"cluster, a node", policy.Peer{Entities: []policy.Entity{policy.EntityCluster}}, flow(fromNode("node-2")), true},
		{"cluster, the world", policy.Peer{Entities: []policy.Entity{policy.EntityCluster}}, flow(world), false},
		{"host, a pod", policy.Peer{Entities: []policy.Entity{policy.EntityHost}}, flow(), false},
		{"host, a node", policy.Peer{Entities: []policy.Entity{policy.EntityHost}}, flow(fromNode("node-2")), true},
		{"host, a host-network pod", policy.Peer{Entities: []policy.Entity{policy.EntityHost}}, flow(hostNetwork), true},
		{"world, a pod", policy.Peer{Entities: []policy.Entity{policy.EntityWorld}}, flow(), false},
		{"world, the world", policy.Peer{Entities: []policy.Entity{policy.EntityWorld}}, flow(world), true},
		{"an entity of the future", policy.Peer{Entities: []policy.Entity{"moon"}}, flow(), false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := policy.Rule{Action: policy.Allow, Peers: []policy.Peer{tt.peer}}
			if got := matches(r, policy.Ingress, tt.flow); got != tt.want {
				t.Errorf("ingress: got %v, want %v", got, tt.want)
			}
			// Seen from the other end the same peer is the destination.
			turned := *tt.flow
			turned.Source, turned.Destination = turned.Destination, turned.Source
			if got := matches(r, policy.Egress, &turned); got != tt.want {
				t.Errorf("egress: got %v, want %v", got, tt.want)
			}
		})
	}
}

// What cannot be resolved denies what it could mean, and no more.
func TestUnresolvablePartsInADeny(t *testing.T) {
	bad := netip.Prefix{}
	httpRule := func(m policy.HTTPMatch) policy.Rule {
		return policy.Rule{AnyPeer: true, HTTP: []policy.HTTPMatch{m}}
	}
	get := flow(mtls, http("GET", "/a"))
	peer := func(p policy.Peer) policy.Rule { return policy.Rule{Peers: []policy.Peer{p}} }
	tests := []struct {
		name string
		rule policy.Rule
		flow *policy.Flow
		want bool
	}{
		{"operator", peer(policy.Peer{PodSelector: selector("app", 9)}), flow(), true},
		{"operator, but no pod", peer(policy.Peer{PodSelector: selector("app", 9)}), flow(from("203.0.113.5")), false},
		{"operator, but another namespace", peer(policy.Peer{Namespaces: []string{"blue"}, PodSelector: selector("app", 9)}), flow(), false},
		{"prefix", peer(policy.Peer{Networks: []policy.Network{{Prefix: bad}}}), flow(), true},
		{"prefix, but excepted", peer(policy.Peer{Networks: []policy.Network{{Prefix: bad, Except: []netip.Prefix{netip.MustParsePrefix("10.0.1.0/24")}}}}), flow(), false},
		{"exception", peer(policy.Peer{Networks: []policy.Network{{Prefix: netip.MustParsePrefix("10.0.0.0/8"), Except: []netip.Prefix{bad}}}}), flow(), true},
		{"exception, but outside", peer(policy.Peer{Networks: []policy.Network{{Prefix: netip.MustParsePrefix("10.9.0.0/16"), Except: []netip.Prefix{bad}}}}), flow(), false},
		{"entity", peer(policy.Peer{Entities: []policy.Entity{"moon"}}), flow(), true},
		{"principal", peer(policy.Peer{Principals: []string{"a*b"}}), flow(mtls), true},
		{"principal, but none proved", peer(policy.Peer{Principals: []string{"a*b"}}), flow(), false},
		{"protocol", policy.Rule{AnyPeer: true, Ports: []policy.PortMatch{{}}}, flow(), true},
		// Found by TestResolveKeepsMeaning.
		{"protocol that no rule can name", policy.Rule{AnyPeer: true, Ports: []policy.PortMatch{{Protocol: 47}}}, flow(), true},
		{"range", policy.Rule{AnyPeer: true, Ports: []policy.PortMatch{{Protocol: policy.TCP, Port: 9, EndPort: 8}}}, flow(), true},
		{"range, but another protocol", policy.Rule{AnyPeer: true, Ports: []policy.PortMatch{{Protocol: policy.UDP, Port: 9, EndPort: 8}}}, flow(), false},
		{"path", httpRule(policy.HTTPMatch{Paths: []policy.PathMatch{{Type: 7, Value: "/"}}}), get, true},
		{"path, but another method", httpRule(policy.HTTPMatch{Methods: []string{"PUT"}, Paths: []policy.PathMatch{{Type: 7}}}), get, false},
		{"path, but not HTTP", httpRule(policy.HTTPMatch{Paths: []policy.PathMatch{{Type: 7}}}), flow(), false},
		{"host", httpRule(policy.HTTPMatch{Hosts: []string{"*"}}), get, true},
		{"header", httpRule(policy.HTTPMatch{Headers: []policy.HeaderMatch{{Name: "X-A"}}}), get, true},
		{"header, but another is absent", httpRule(policy.HTTPMatch{Headers: []policy.HeaderMatch{{Name: "X-A"}, {Name: "x-b"}}}), get, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := matches(tt.rule, policy.Ingress, tt.flow); got != tt.want {
				t.Errorf("deny: got %v, want %v", got, tt.want)
			}
			tt.rule.Action = policy.Allow
			if matches(tt.rule, policy.Ingress, tt.flow) {
				t.Error("the same in an Allow matched")
			}
		})
	}
}

func TestPorts(t *testing.T) {
	octet := func(n uint8) *uint8 { return &n }
	icmp := func(kind, code uint8) func(*policy.Flow) {
		return func(f *policy.Flow) { f.Protocol, f.Port, f.ICMPType, f.ICMPCode = policy.ICMP, 0, kind, code }
	}
	noPod := func(f *policy.Flow) { f.Destination.Workload = nil }
	tests := []struct {
		name string
		port policy.PortMatch
		flow *policy.Flow
		want bool
	}{
		{"zero value", policy.PortMatch{}, flow(), false},
		{"every port", policy.PortMatch{Protocol: policy.TCP}, flow(), true},
		{"every port of another protocol", policy.PortMatch{Protocol: policy.UDP}, flow(), false},
		{"number", policy.PortMatch{Protocol: policy.TCP, Port: 8080}, flow(), true},
		{"other number", policy.PortMatch{Protocol: policy.TCP, Port: 8081}, flow(), false},
		{"number of another protocol", policy.PortMatch{Protocol: policy.UDP, Port: 8080}, flow(), false},
		{"SCTP", policy.PortMatch{Protocol: policy.SCTP, Port: 8080}, flow(to(policy.SCTP, 8080)), true},
		{"range's begin", policy.PortMatch{Protocol: policy.TCP, Port: 8080, EndPort: 8090}, flow(), true},
		{"range's end", policy.PortMatch{Protocol: policy.TCP, Port: 8070, EndPort: 8080}, flow(), true},
		{"below range", policy.PortMatch{Protocol: policy.TCP, Port: 8081, EndPort: 8090}, flow(), false},
		{"above range", policy.PortMatch{Protocol: policy.TCP, Port: 8070, EndPort: 8079}, flow(), false},
		{"backwards", policy.PortMatch{Protocol: policy.TCP, Port: 8090, EndPort: 8070}, flow(), false},
		{"name", policy.PortMatch{Protocol: policy.TCP, Name: "web"}, flow(), true},
		{"name on another port", policy.PortMatch{Protocol: policy.TCP, Name: "web"}, flow(to(policy.TCP, 80)), false},
		{"name of another protocol", policy.PortMatch{Protocol: policy.UDP, Name: "web"}, flow(to(policy.UDP, 8080)), false},
		{"UDP name", policy.PortMatch{Protocol: policy.UDP, Name: "dns"}, flow(to(policy.UDP, 53)), true},
		{"name that the pod does not have", policy.PortMatch{Protocol: policy.TCP, Name: "none"}, flow(), false},
		{"name, no pod", policy.PortMatch{Protocol: policy.TCP, Name: "web"}, flow(noPod), false},
		{"name and number", policy.PortMatch{Protocol: policy.TCP, Name: "web", Port: 8080}, flow(), false},
		{"ICMP", policy.PortMatch{Protocol: policy.ICMP}, flow(icmp(8, 0)), true},
		{"ICMP type", policy.PortMatch{Protocol: policy.ICMP, ICMPType: octet(8)}, flow(icmp(8, 3)), true},
		{"ICMP type zero", policy.PortMatch{Protocol: policy.ICMP, ICMPType: octet(0)}, flow(icmp(8, 0)), false},
		{"ICMP code", policy.PortMatch{Protocol: policy.ICMP, ICMPType: octet(8), ICMPCode: octet(3)}, flow(icmp(8, 3)), true},
		{"ICMP other code", policy.PortMatch{Protocol: policy.ICMP, ICMPType: octet(8), ICMPCode: octet(0)}, flow(icmp(8, 3)), false},
		{"ICMP is not ICMPv6", policy.PortMatch{Protocol: policy.ICMPv6}, flow(icmp(8, 0)), false},
		{"ICMP with port", policy.PortMatch{Protocol: policy.ICMP, Port: 1}, flow(icmp(8, 0)), false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := policy.Rule{Action: policy.Allow, AnyPeer: true, Ports: []policy.PortMatch{tt.port}}
			if got := matches(r, policy.Ingress, tt.flow); got != tt.want {
				t.Errorf("ingress: got %v, want %v", got, tt.want)
			}
			// Ports are the destination's in both directions.
			if got := matches(r, policy.Egress, tt.flow); got != tt.want {
				t.Errorf("egress: got %v, want %v", got, tt.want)
			}
		})
	}
}

func TestHTTP(t *testing.T) {
	exact := func(v string) []policy.PathMatch { return []policy.PathMatch{{Type: policy.PathExact, Value: v}} }
	prefix := func(v string) []policy.PathMatch { return []policy.PathMatch{{Type: policy.PathPrefix, Value: v}} }
	header := func(name string, values ...string) []policy.HeaderMatch {
		return []policy.HeaderMatch{{Name: name, Values: values}}
	}
	path := func(p string) *policy.HTTPRequest { return request("GET", p) }
	host := func(h string) *policy.HTTPRequest { r := path("/"); r.Host = h; return r }
	sent := func(values ...string) *policy.HTTPRequest {
		r := path("/")
		r.Header = func(name string) []string {
			if name == "x-a" {
				return values
			}
			return nil
		}
		return r
	}
	tests := []struct {
		name  string
		match policy.HTTPMatch
		req   *policy.HTTPRequest
		want  bool
	}{
		{"no field, a request", policy.HTTPMatch{}, path("/"), true},
		{"no field, not HTTP", policy.HTTPMatch{}, nil, false},
		{"method", policy.HTTPMatch{Methods: []string{"PUT", "GET"}}, path("/"), true},
		{"method in another case", policy.HTTPMatch{Methods: []string{"get"}}, path("/"), false},
		{"exact", policy.HTTPMatch{Paths: exact("/a")}, path("/a"), true},
		{"exact, trailing slash", policy.HTTPMatch{Paths: exact("/a")}, path("/a/"), false},
		{"exact, below", policy.HTTPMatch{Paths: exact("/a")}, path("/a/b"), false},
		{"exact, another case", policy.HTTPMatch{Paths: exact("/a")}, path("/A"), false},
		{"asterisk form", policy.HTTPMatch{Paths: exact("*")}, path("*"), true},
		{"prefix itself", policy.HTTPMatch{Paths: prefix("/a")}, path("/a"), true},
		{"prefix with slash", policy.HTTPMatch{Paths: prefix("/a")}, path("/a/"), true},
		{"prefix, below", policy.HTTPMatch{Paths: prefix("/a")}, path("/a/b"), true},
		{"prefix, not at a border", policy.HTTPMatch{Paths: prefix("/a")}, path("/ab"), false},
		{"prefix, parameters are of the segment", policy.HTTPMatch{Paths: prefix("/a")}, path("/a;v=1"), false},
		{"prefix that ends in slash, itself", policy.HTTPMatch{Paths: prefix("/a/")}, path("/a"), true},
		{"prefix that ends in slash, below", policy.HTTPMatch{Paths: prefix("/a/")}, path("/a/b"), true},
		{"prefix that ends in slash, not at a border", policy.HTTPMatch{Paths: prefix("/a/")}, path("/ab"), false},
		{"prefix root", policy.HTTPMatch{Paths: prefix("/")}, path("/a"), true},
		{"prefix root, asterisk form", policy.HTTPMatch{Paths: prefix("/")}, path("*"), false},
		{"prefix longer than path", policy.HTTPMatch{Paths: prefix("/a/b")}, path("/a"), false},
		{"one of two paths", policy.HTTPMatch{Paths: append(exact("/b"), prefix("/a")...)}, path("/a/b"), true},
		{"host", policy.HTTPMatch{Hosts: []string{"a.example"}}, host("a.example"), true},
		{"host in another case", policy.HTTPMatch{Hosts: []string{"a.example"}}, host("A.EXAMPLE"), true},
		{"host with a letter that folds to ASCII", policy.HTTPMatch{Hosts: []string{"k.example"}}, host("\u212a.example"), false},
		{"another host", policy.HTTPMatch{Hosts: []string{"a.example"}}, host("b.example"), false},
		{"wildcard", policy.HTTPMatch{Hosts: []string{"*.example"}}, host("a.example"), true},
		{"wildcard, two labels", policy.HTTPMatch{Hosts: []string{"*.example"}}, host("b.a.example"), true},
		{"wildcard, no label", policy.HTTPMatch{Hosts: []string{"*.example"}}, host("example"), false},
		{"wildcard, empty label", policy.HTTPMatch{Hosts: []string{"*.example"}}, host(".example"), false},
		{"wildcard, not at a border", policy.HTTPMatch{Hosts: []string{"*.example"}}, host("anexample"), false},
		{"header", policy.HTTPMatch{Headers: header("x-a", "1")}, sent("1"), true},
		{"header's second value", policy.HTTPMatch{Headers: header("x-a", "1")}, sent("2", "1"), true},
		{"values are not joined", policy.HTTPMatch{Headers: header("x-a", "1,2")}, sent("1", "2"), false},
		{"values are not split", policy.HTTPMatch{Headers: header("x-a", "1")}, sent("1,2"), false},
		{"header is present", policy.HTTPMatch{Headers: header("x-a")}, sent(""), true},
		{"header is absent", policy.HTTPMatch{Headers: header("x-a")}, sent(), false},
		{"no headers at all", policy.HTTPMatch{Headers: header("x-a")}, path("/"), false},
		{"one of two headers", policy.HTTPMatch{Headers: append(header("x-b"), header("x-a")...)}, sent("1"), false},
		{"two headers", policy.HTTPMatch{Headers: append(header("x-a", "2"), header("x-a", "1")...)}, sent("1", "2"), true},
		{"method but not path", policy.HTTPMatch{Methods: []string{"GET"}, Paths: exact("/b")}, path("/a"), false},
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

func TestRequireMTLS(t *testing.T) {
	r := policy.Rule{Action: policy.Allow, AnyPeer: true, RequireMTLS: true}
	if matches(r, policy.Ingress, flow()) {
		t.Error("plain text matched")
	}
	if !matches(r, policy.Ingress, flow(mtls)) {
		t.Error("mTLS did not match")
	}
}
