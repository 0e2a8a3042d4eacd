package policy_test

import (
	"fmt"
	"math"
	"net/netip"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/hauberk-mesh/hauberk/policy"
)

// common is a way in which sets come to have many rules: rule i, and a flow
// that rule i allows and no rule before it.
type common struct {
	name string
	rule func(i, n int) policy.Rule
	flow func(i, n int) *policy.Flow
	// most is how many rules an index may find for one flow.
	most int
}

func commons() []common {
	allow := func(r policy.Rule) policy.Rule {
		r.Action = policy.Allow
		if len(r.Peers) == 0 {
			r.AnyPeer = true
		}
		return r
	}
	path := func(i int) string { return fmt.Sprintf("/v2/teams/%d/keys", i) }
	name := func(i int) string { return fmt.Sprintf("spiffe://cluster.local/ns/team-%d/sa/front", i) }
	network := func(i int) netip.Prefix {
		return netip.PrefixFrom(netip.AddrFrom4([4]byte{172, byte(i >> 8), byte(i), 0}), 24)
	}
	side := func(n int) int { return int(math.Ceil(math.Sqrt(float64(n)))) }
	return []common{
		{"path", func(i, _ int) policy.Rule {
			kind := policy.PathPrefix
			if i%2 == 0 {
				kind = policy.PathExact
			}
			return allow(policy.Rule{HTTP: []policy.HTTPMatch{{Methods: []string{"GET"}, Paths: []policy.PathMatch{{Type: kind, Value: path(i)}}}}})
		}, func(i, _ int) *policy.Flow { return flow(mtls, http("GET", path(i))) }, 1},
		{"template", func(i, _ int) policy.Rule {
			return allow(policy.Rule{HTTP: []policy.HTTPMatch{{Paths: []policy.PathMatch{template(fmt.Sprintf("/users/{id}/%d", i))}}}})
		}, func(i, _ int) *policy.Flow { return flow(mtls, http("GET", fmt.Sprintf("/users/7/%d", i))) }, 1},
		{"principal", func(i, _ int) policy.Rule {
			pattern := name(i)
			if i%2 == 0 {
				pattern = pattern[:len(pattern)-len("front")] + "*"
			}
			return allow(policy.Rule{Peers: []policy.Peer{{Principals: []string{pattern}}}})
		}, func(i, _ int) *policy.Flow {
			f := flow(mtls, http("GET", "/"))
			f.Source.Principal = name(i)
			return f
		}, 1},
		{"account", func(i, _ int) policy.Rule {
			return allow(policy.Rule{Peers: []policy.Peer{{ServiceAccounts: []policy.ServiceAccount{{Namespace: "red", Name: fmt.Sprint("a", i)}}}}})
		}, func(i, _ int) *policy.Flow {
			f := flow(mtls, http("GET", "/"))
			f.Source.Workload.ServiceAccount = fmt.Sprint("a", i)
			return f
		}, 1},
		{"labels", func(i, _ int) policy.Rule {
			return allow(policy.Rule{Peers: []policy.Peer{{PodSelector: &policy.Selector{Requirements: []policy.Requirement{
				{Key: "tier", Operator: policy.In, Values: []string{"web"}}, {Key: "app", Operator: policy.In, Values: []string{fmt.Sprint(i)}}}}}}})
		}, func(i, _ int) *policy.Flow {
			f := flow()
			f.Source.Workload.Labels = map[string]string{"app": fmt.Sprint(i), "tier": "web"}
			return f
		}, 1},
		{"network", func(i, _ int) policy.Rule {
			return allow(policy.Rule{Peers: []policy.Peer{{Networks: []policy.Network{{Prefix: network(i), Except: []netip.Prefix{
				netip.PrefixFrom(network(i).Addr(), 30)}}}}}})
		}, func(i, _ int) *policy.Flow {
			addr := network(i).Addr().As4()
			addr[3] = 9
			return flow(from(netip.AddrFrom4(addr).String()))
		}, 1},
		{"port", func(i, _ int) policy.Rule {
			return allow(policy.Rule{Ports: []policy.PortMatch{{Protocol: policy.TCP, Port: uint16(1000 + i)}}})
		}, func(i, _ int) *policy.Flow { return flow(to(policy.TCP, uint16(1000+i))) }, 1},
		// Every caller has some paths, every path some callers.
		{"grid", func(i, n int) policy.Rule {
			return allow(policy.Rule{Peers: []policy.Peer{{Principals: []string{name(i % side(n))}}},
				HTTP: []policy.HTTPMatch{{Methods: []string{"GET"}, Paths: []policy.PathMatch{{Type: policy.PathPrefix, Value: path(i / side(n))}}}}})
		}, func(i, n int) *policy.Flow {
			f := flow(mtls, http("GET", path(i/side(n))))
			f.Source.Principal = name(i % side(n))
			return f
		}, 1},
		// Each rule says another thing.
		{"mixed", func(i, _ int) policy.Rule {
			r := policy.Rule{Action: policy.Allow, Peers: []policy.Peer{{PodSelector: &policy.Selector{Requirements: []policy.Requirement{
				{Key: "app", Operator: policy.In, Values: []string{fmt.Sprint("app-", i%50)}}}}}}}
			switch i % 5 {
			case 0:
				r.HTTP = []policy.HTTPMatch{{Methods: []string{"GET"}, Paths: []policy.PathMatch{{Type: policy.PathPrefix, Value: path(i)}}}}
			case 1:
				r.HTTP = []policy.HTTPMatch{{Methods: []string{"PUT"}, Paths: []policy.PathMatch{template(fmt.Sprintf("/users/{id}/%d", i))}}}
			case 2:
				r.Ports = []policy.PortMatch{{Protocol: policy.TCP, Port: uint16(1000 + i)}}
			case 3:
				r.Peers = []policy.Peer{{Networks: []policy.Network{{Prefix: network(i)}}}}
			default:
				r.Peers = []policy.Peer{{Principals: []string{name(i)}}}
			}
			return r
		}, func(i, _ int) *policy.Flow {
			f := flow(mtls, http("GET", path(i)), to(policy.TCP, uint16(1000+i)))
			f.HTTP.Query = "a=b"
			f.Source.Workload.Labels = map[string]string{"app": fmt.Sprint("app-", i%50)}
			switch i % 5 {
			case 1:
				f.HTTP.Method, f.HTTP.Path = "PUT", fmt.Sprintf("/users/7/%d", i)
			case 3:
				f.Source.Addr = network(i).Addr()
			case 4:
				f.Source.Principal = name(i)
			}
			return f
		}, 3},
	}
}

// set is n rules of the kind, of several policies.
func (c common) set(n int) *policy.Set {
	var policies []policy.Policy
	for first := 0; first < n; first += 100 {
		p := pol(fmt.Sprintf("p-%05d", first))
		for i := first; i < min(n, first+100); i++ {
			r := c.rule(i, n)
			r.Name = fmt.Sprint(i)
			p.Rules = append(p.Rules, r)
		}
		policies = append(policies, p)
	}
	return ingress(tier("t", policy.Deny, policies...))
}

// An index finds the rule that decides and hardly another one, however many
// there are, and so asks no more of a set of ten thousand rules than of one of a
// hundred.
func TestIndexFindsFewRules(t *testing.T) {
	for _, c := range commons() {
		for _, n := range []int{100, 1000, 10_000} {
			t.Run(fmt.Sprint(c.name, "/", n), func(t *testing.T) {
				s := c.set(n)
				indexed := s.Indexed()
				for _, i := range []int{0, 1, n / 2, n/2 + 1, n - 2, n - 1} {
					f := c.flow(i, n)
					got, want := indexed.Evaluate(policy.Ingress, f), s.Evaluate(policy.Ingress, f)
					if diff := cmp.Diff(want, got); diff != "" || got.Rule != fmt.Sprint(i) {
						t.Fatalf("rule %d: decided by %s\n-one by one +indexed:\n%s", i, got, diff)
					}
					if found := indexed.Candidates(policy.Ingress, f); found < 1 || found > c.most {
						t.Errorf("rule %d: the index finds %d rules, want 1 to %d", i, found, c.most)
					}
				}
				if found := indexed.Candidates(policy.Ingress, flow(http("GET", "/other"), from("192.0.2.1"), to(policy.TCP, 7))); found != 0 {
					t.Errorf("the index finds %d rules for a flow of which none speaks", found)
				}
			})
		}
	}
}

func TestIndexAllocatesNothing(t *testing.T) {
	for _, c := range commons() {
		s := c.set(500).Indexed()
		last, other := c.flow(499, 500), flow(mtls, http("PUT", "/a/b/c"), fromNode("node-2"))
		other.HTTP.Host = "Back.Example"
		if n := testing.AllocsPerRun(100, func() {
			for _, f := range []*policy.Flow{last, other} {
				s.Evaluate(policy.Ingress, f)
				s.Project(policy.Ingress, f)
				s.ProjectConnection(policy.Ingress, f)
			}
		}); n != 0 {
			t.Errorf("%s: got %v allocations, want none", c.name, n)
		}
	}
}

// An index is of the tiers that it was made from.
func TestIndexOfAnotherSetIsNotUsed(t *testing.T) {
	c := commons()[0]
	s := c.set(100).Indexed()
	if s.Candidates(policy.Ingress, c.flow(0, 100)) != 1 || s.Candidates(policy.Egress, c.flow(0, 100)) != -1 {
		t.Error("want an index for ingress and none for egress, which has no rules")
	}
	changed := *s
	changed.Ingress = ingress(tier("t", policy.Deny, pol("p", anyone(policy.Allow)))).Ingress
	if v := changed.Evaluate(policy.Ingress, flow(http("PUT", "/"))); !v.Allowed() {
		t.Errorf("a copy with other tiers is decided by the old ones: %s", v)
	}
	changed.Ingress = nil
	if v := changed.Evaluate(policy.Ingress, c.flow(0, 100)); v.Policy.Name != "" {
		t.Errorf("a copy without tiers is decided by the old ones: %s", v)
	}
	if got := c.set(5).Indexed(); got.Candidates(policy.Ingress, c.flow(0, 5)) != -1 {
		t.Error("want five rules tried one by one")
	}
	if (*policy.Set)(nil).Indexed() != nil {
		t.Error("no set has no index")
	}
}

func sizes() []int { return []int{10, 100, 1000, 10_000} }

// BenchmarkCommon is what a decision costs that is taken by the last rule of
// many, or by none.
func BenchmarkCommon(b *testing.B) {
	for _, c := range commons() {
		for _, n := range sizes() {
			b.Run(fmt.Sprint(c.name, "/", n), func(b *testing.B) {
				s, f := c.set(n).Indexed(), c.flow(n-1, n)
				if v := s.Evaluate(policy.Ingress, f); v.Rule != fmt.Sprint(n-1) {
					b.Fatal(v)
				}
				b.ReportAllocs()
				for b.Loop() {
					s.Evaluate(policy.Ingress, f)
				}
			})
		}
	}
	for _, n := range sizes() {
		b.Run(fmt.Sprint("nothing matches/", n), func(b *testing.B) {
			cases := commons()
			s, f := cases[len(cases)-1].set(n).Indexed(), flow(mtls, http("GET", "/v2/teams/x/keys"))
			if v := s.Evaluate(policy.Ingress, f); v.Rule != "" {
				b.Fatal(v)
			}
			b.ReportAllocs()
			for b.Loop() {
				s.Evaluate(policy.Ingress, f)
			}
		})
	}
}

// BenchmarkNewIndex is what an index costs to make and to keep.
func BenchmarkNewIndex(b *testing.B) {
	for _, c := range commons() {
		for _, n := range []int{1000, 10_000} {
			b.Run(fmt.Sprint(c.name, "/", n), func(b *testing.B) {
				s := c.set(n)
				keep := make([]*policy.Index, 0, 8)
				var before, after runtime.MemStats
				runtime.GC()
				runtime.ReadMemStats(&before)
				for range cap(keep) {
					keep = append(keep, policy.NewIndex(s))
				}
				runtime.GC()
				runtime.ReadMemStats(&after)
				for b.Loop() {
					policy.NewIndex(s)
				}
				b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/float64(len(keep))/float64(n), "B/rule")
				runtime.KeepAlive(keep)
			})
		}
	}
}

// What is looked up with a bound, or in another spelling, is found.
func TestIndexFindsCorners(t *testing.T) {
	deep := strings.Repeat("/a", 20)
	path := func(kind policy.PathMatchType, value string) policy.Rule {
		return policy.Rule{AnyPeer: true, HTTP: []policy.HTTPMatch{{Paths: []policy.PathMatch{{Type: kind, Value: value}}}}}
	}
	expr := func(text string) policy.Rule {
		return policy.Rule{AnyPeer: true, HTTP: []policy.HTTPMatch{{Paths: []policy.PathMatch{regex(t, text)}}}}
	}
	host := func(pattern string) policy.Rule {
		return policy.Rule{AnyPeer: true, HTTP: []policy.HTTPMatch{{Hosts: []string{pattern}}}}
	}
	called := func(name string) *policy.Flow {
		f := flow(http("GET", "/"))
		f.HTTP.Host = name
		return f
	}
	call := func(path string) *policy.Flow {
		f := flow()
		f.HTTP = asked(path, "application/grpc")
		return f
	}
	grpc := func(service, method string) policy.Rule {
		return policy.Rule{AnyPeer: true, HTTP: []policy.HTTPMatch{{GRPC: []policy.GRPCMatch{{Service: service, Method: method}}}}}
	}
	peer := func(p policy.Peer) policy.Rule { return policy.Rule{Peers: []policy.Peer{p}} }
	var nested []policy.Network
	for bits := range 33 {
		nested = append(nested, policy.Network{Prefix: netip.PrefixFrom(netip.MustParseAddr("10.0.1.1"), bits).Masked()})
	}
	tests := []struct {
		name string
		rule policy.Rule
		flow *policy.Flow
	}{
		{"deep path", path(policy.PathExact, deep), flow(http("GET", deep))},
		{"below a deep prefix", path(policy.PathPrefix, deep), flow(http("GET", deep+"/b"))},
		{"deep template", path(policy.PathTemplate, deep+"/{x}"), flow(http("GET", deep+"/b"))},
		{"template's variable first", path(policy.PathTemplate, "/{x}/b"), flow(http("GET", "/y/b"))},
		{"star", path(policy.PathExact, "*"), flow(http("OPTIONS", "*"))},
		{"root", path(policy.PathExact, "/"), flow(http("GET", "/"))},
		{"prefix of all", path(policy.PathPrefix, "/"), flow(http("GET", "/b"))},
		{"prefix with slash", path(policy.PathPrefix, "/b//"), flow(http("GET", "/b"))},
		{"expression", expr("/b/c/[a-z]+"), flow(http("GET", "/b/c/d"))},
		{"expression, anchored", expr("^/b/c(/.*)?$"), flow(http("GET", "/b/c"))},
		{"expression, folded", expr("(?i)/b/c/d"), flow(http("GET", "/B/C/D"))},
		{"expression, alternatives", expr("/b/c|/c/d"), flow(http("GET", "/c/d"))},
		{"expression, group", expr("(/b/c/)x"), flow(http("GET", "/b/c/x"))},
		{"expression of nothing", expr(""), flow(http("GET", ""))},
		{"host in capitals", host("b.example"), called("B.Example")},
		{"rule's host in capitals", host("B.Example"), called("b.example")},
		{"any host below", host("*.example"), called("a.b.example")},
		{"gRPC", grpc("b.S", "M"), call("/b.S/M")},
		{"gRPC, any method", grpc("b.S", ""), call("/b.S/M")},
		{"gRPC, any service", grpc("", "M"), call("/b.S/M")},
		{"named port", policy.Rule{AnyPeer: true, Ports: []policy.PortMatch{{Protocol: policy.TCP, Name: "web"}}}, flow()},
		{"port in a range", policy.Rule{AnyPeer: true, Ports: []policy.PortMatch{{Protocol: policy.TCP, Port: 8000, EndPort: 65535}}}, flow()},
		{"protocol", policy.Rule{AnyPeer: true, Ports: []policy.PortMatch{{Protocol: policy.SCTP}}}, flow(to(policy.SCTP, 7))},
		{"ICMP", policy.Rule{AnyPeer: true, Ports: []policy.PortMatch{{Protocol: policy.ICMP, ICMPType: new(uint8)}}}, flow(to(policy.ICMP, 0))},
		{"networks in networks", peer(policy.Peer{Networks: nested}), flow(from("10.0.1.1"))},
		{"IPv4 in IPv6", peer(policy.Peer{Networks: nested[32:]}), flow(from("::ffff:10.0.1.1"))},
		{"any principal", peer(policy.Peer{Principals: []string{"*"}}), flow(mtls)},
		{"namespace", peer(policy.Peer{Namespaces: []string{"red"}}), flow()},
		{"namespace's label", peer(policy.Peer{NamespaceSelector: &policy.Selector{Requirements: []policy.Requirement{{Key: "team", Operator: policy.In, Values: []string{"a"}}}}}), flow()},
		{"account's label", peer(policy.Peer{ServiceAccountSelector: &policy.Selector{Requirements: []policy.Requirement{{Key: "trusted", Operator: policy.In, Values: []string{"yes"}}}}}), flow()},
		{"label that is absent", peer(policy.Peer{PodSelector: &policy.Selector{Requirements: []policy.Requirement{{Key: "x", Operator: policy.DoesNotExist}}}}), flow()},
		{"world", peer(policy.Peer{Entities: []policy.Entity{policy.EntityWorld}}), flow(from("192.0.2.1"))},
		{"host", peer(policy.Peer{Entities: []policy.Entity{policy.EntityHost}}), flow(fromNode("node-2"))},
		{"cluster", peer(policy.Peer{Entities: []policy.Entity{policy.EntityCluster}}), flow(fromNode("node-2"))},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			// Rules that make every column worth looking at, and match nothing.
			var rules []policy.Rule
			for i := range 200 {
				rules = append(rules, policy.Rule{Name: fmt.Sprint("other-", i), Action: policy.Deny,
					Ports: []policy.PortMatch{{Protocol: policy.UDP, Port: 9, EndPort: uint16(10 + i)}},
					Peers: []policy.Peer{{Principals: []string{"other*"}}, {Namespaces: []string{"other"}}},
					HTTP: []policy.HTTPMatch{{Methods: []string{"OTHER"}, Hosts: []string{"other.example"},
						Paths: []policy.PathMatch{{Type: policy.PathExact, Value: "/other"}}}}})
			}
			tt.rule.Name, tt.rule.Action = "it", policy.Allow
			rules = append(rules, tt.rule)
			s := ingress(tier("t", policy.Deny, pol("p", rules...)))
			if v := s.Evaluate(policy.Ingress, tt.flow); v.Rule != "it" {
				t.Fatalf("the rule does not match: %s", v)
			}
			indexed := s.Indexed()
			if v := indexed.Evaluate(policy.Ingress, tt.flow); v.Rule != "it" {
				t.Errorf("the index does not find the rule: %s", v)
			}
			if found := indexed.Candidates(policy.Ingress, tt.flow); found != 1 {
				t.Errorf("the index finds %d rules, want 1", found)
			}
		})
	}
}
