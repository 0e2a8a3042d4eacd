package policy_test

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/hauberk-mesh/hauberk/policy"
)

// The cast: front calls back; both are pods of namespace red on node-1.
func front() *policy.Workload {
	return &policy.Workload{
		UID: "front-uid", Namespace: "red", Name: "front", ServiceAccount: "front", Node: "node-1",
		Labels: map[string]string{"app": "front"}, NamespaceLabels: map[string]string{"team": "a"},
		ServiceAccountLabels: map[string]string{"trusted": "yes"},
	}
}

func back() *policy.Workload {
	return &policy.Workload{
		UID: "back-uid", Namespace: "red", Name: "back", ServiceAccount: "back", Node: "node-1",
		Labels: map[string]string{"app": "back"}, NamespaceLabels: map[string]string{"team": "a"},
		NamedPorts: []policy.NamedPort{{Name: "web", Protocol: policy.TCP, Port: 8080}, {Name: "dns", Protocol: policy.UDP, Port: 53}},
	}
}

const frontID = "spiffe://cluster.local/ns/red/sa/front"

func request(method, path string) *policy.HTTPRequest {
	return &policy.HTTPRequest{Method: method, Path: path, Host: "back.example"}
}

// flow is front's plain TCP connection to back's port 8080, changed.
func flow(change ...func(*policy.Flow)) *policy.Flow {
	f := &policy.Flow{
		Source:      policy.Endpoint{Addr: netip.MustParseAddr("10.0.1.1"), Workload: front()},
		Destination: policy.Endpoint{Addr: netip.MustParseAddr("10.0.1.2"), Workload: back()},
		Protocol:    policy.TCP,
		Port:        8080,
	}
	for _, c := range change {
		c(f)
	}
	return f
}

func mtls(f *policy.Flow) {
	f.MTLS = true
	f.Source.Principal = frontID
	f.Destination.Principal = "spiffe://cluster.local/ns/red/sa/back"
}

func http(method, path string) func(*policy.Flow) {
	return func(f *policy.Flow) { f.HTTP = request(method, path) }
}

func from(addr string) func(*policy.Flow) {
	return func(f *policy.Flow) { f.Source = policy.Endpoint{Addr: netip.MustParseAddr(addr)} }
}

func fromNode(name string) func(*policy.Flow) {
	return func(f *policy.Flow) {
		f.Source = policy.Endpoint{Addr: netip.MustParseAddr("192.0.2.10"), Host: true, HostOf: name}
	}
}

func to(protocol policy.Protocol, port uint16) func(*policy.Flow) {
	return func(f *policy.Flow) { f.Protocol, f.Port = protocol, port }
}

func ref(name string) policy.Ref {
	return policy.Ref{Kind: "MeshPolicy", Namespace: "red", Name: name}
}

func anyone(action policy.Action) policy.Rule {
	return policy.Rule{Name: action.String(), Action: action, AnyPeer: true}
}

func pol(name string, rules ...policy.Rule) policy.Policy {
	return policy.Policy{Ref: ref(name), Order: 1, Rules: rules}
}

func tier(name string, otherwise policy.Action, policies ...policy.Policy) policy.Tier {
	return policy.Tier{Name: name, DefaultAction: otherwise, Policies: policies}
}

// ingress is a set that allows by default.
func ingress(tiers ...policy.Tier) *policy.Set {
	return &policy.Set{Ingress: tiers, DefaultAction: policy.Allow}
}

func audit(p policy.Policy) policy.Policy   { p.Mode = policy.Audit; return p }
func invalid(p policy.Policy) policy.Policy { p.Invalid = "no such tier"; return p }
func unresolved(r policy.Rule) policy.Rule  { r.Invalid = "bad selector"; return r }
func onPort(r policy.Rule, n uint16) policy.Rule {
	r.Ports = []policy.PortMatch{{Protocol: policy.TCP, Port: n}}
	return r
}

// Each line of "Order of evaluation".
func TestOrderOfEvaluation(t *testing.T) {
	allow, deny, pass, logs := anyone(policy.Allow), anyone(policy.Deny), anyone(policy.Pass), anyone(policy.Log)
	other := onPort(allow, 1)
	type decision struct {
		Action             policy.Action
		Tier, Policy, Rule string
	}
	tests := []struct {
		name string
		set  *policy.Set
		want decision
	}{
		{"nothing decided, the mesh allows", ingress(), decision{Action: policy.Allow}},
		{"nothing decided, the mesh denies", &policy.Set{}, decision{Action: policy.Deny}},
		{"the zero action as default denies", &policy.Set{DefaultAction: policy.Pass}, decision{Action: policy.Deny}},
		{"allow is final", ingress(tier("t", policy.Deny, pol("p", allow, deny))), decision{policy.Allow, "t", "p", "Allow"}},
		{"deny is final", ingress(tier("t", policy.Deny, pol("p", deny, allow))), decision{policy.Deny, "t", "p", "Deny"}},
		{"first match over policies", ingress(tier("t", policy.Deny, pol("p", other), pol("q", deny), pol("r", allow))), decision{policy.Deny, "t", "q", "Deny"}},
		{"tier denies by default", ingress(tier("t", policy.Deny, pol("p", other)), tier("u", policy.Deny, pol("q", allow))), decision{policy.Deny, "t", "", ""}},
		{"tier passes by default", ingress(tier("t", policy.Pass, pol("p", other)), tier("u", policy.Deny, pol("q", deny))), decision{policy.Deny, "u", "q", "Deny"}},
		{"a policy without rules selects", ingress(tier("t", policy.Deny, pol("p"))), decision{policy.Deny, "t", "", ""}},
		{"a tier without policies is skipped", ingress(tier("t", policy.Deny)), decision{Action: policy.Allow}},
		{"an action that is no default denies", ingress(tier("t", policy.Allow, pol("p"))), decision{policy.Deny, "t", "", ""}},
		{"pass leaves the tier", ingress(tier("t", policy.Deny, pol("p", pass, deny), pol("q", deny)), tier("u", policy.Deny, pol("r", allow))), decision{policy.Allow, "u", "r", "Allow"}},
		{"pass out of the last tier", ingress(tier("t", policy.Deny, pol("p", pass))), decision{Action: policy.Allow}},
		{"log goes on", ingress(tier("t", policy.Deny, pol("p", logs, deny))), decision{policy.Deny, "t", "p", "Deny"}},
		{"an unknown action denies", ingress(tier("t", policy.Pass, pol("p", policy.Rule{Name: "x", Action: 77, AnyPeer: true}))), decision{policy.Deny, "t", "p", "x"}},
		{"audit never decides", ingress(tier("t", policy.Deny, audit(pol("p", deny)), pol("q", allow))), decision{policy.Allow, "t", "q", "Allow"}},
		{"a tier of audit policies is skipped", ingress(tier("t", policy.Deny, audit(pol("p", deny)))), decision{Action: policy.Allow}},
		{"an unknown mode enforces", ingress(tier("t", policy.Deny, policy.Policy{Ref: ref("p"), Mode: 77, Rules: []policy.Rule{deny}})), decision{policy.Deny, "t", "p", "Deny"}},
		{"allow of an invalid policy matches nothing", ingress(tier("t", policy.Pass, invalid(pol("p", allow)), pol("q", deny))), decision{policy.Deny, "t", "q", "Deny"}},
		{"pass of an invalid policy matches nothing", ingress(tier("t", policy.Deny, invalid(pol("p", pass)))), decision{policy.Deny, "t", "", ""}},
		{"deny of an invalid policy matches", ingress(tier("t", policy.Pass, invalid(pol("p", deny)))), decision{policy.Deny, "t", "p", "Deny"}},
		{"allow that is invalid matches nothing", ingress(tier("t", policy.Pass, pol("p", unresolved(allow), deny))), decision{policy.Deny, "t", "p", "Deny"}},
		{"deny that is invalid keeps what it could mean", ingress(tier("t", policy.Pass, pol("p", unresolved(onPort(deny, 1))))), decision{Action: policy.Allow}},
		{"deny that is invalid and names no peer", ingress(tier("t", policy.Pass, pol("p", unresolved(policy.Rule{Name: "x"})))), decision{policy.Deny, "t", "p", "x"}},
		{"deny that names no peer", ingress(tier("t", policy.Pass, pol("p", policy.Rule{Name: "x"}))), decision{Action: policy.Allow}},
		{"deny that is invalid and has an empty peer", ingress(tier("t", policy.Pass, pol("p", unresolved(policy.Rule{Name: "x", Peers: []policy.Peer{{}}})))), decision{policy.Deny, "t", "p", "x"}},
		{"only its own direction", &policy.Set{Egress: []policy.Tier{tier("t", policy.Deny, pol("p"))}, DefaultAction: policy.Allow}, decision{Action: policy.Allow}},
		{"no set denies", nil, decision{Action: policy.Deny}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			v := tt.set.Evaluate(policy.Ingress, flow())
			got := decision{v.Action, v.Tier, v.Policy.Name, v.Rule}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
			if v.Reason == "" {
				t.Error("no reason")
			}
		})
	}
}

func TestAuditIsRecordedBesideTheVerdict(t *testing.T) {
	deny, allow := anyone(policy.Deny), anyone(policy.Allow)
	tests := []struct {
		name string
		set  *policy.Set
		want string
	}{
		{"none in Audit mode", ingress(tier("t", policy.Deny, pol("p", allow))), ""},
		{"would deny", ingress(tier("t", policy.Deny, audit(pol("p", deny)), pol("q", allow))),
			"Ingress Deny: tier t, MeshPolicy red/p, rule Deny: the rule matched"},
		{"would allow by another rule", ingress(tier("t", policy.Deny, audit(pol("p", allow)), pol("q", allow))),
			"Ingress Allow: tier t, MeshPolicy red/p, rule Allow: the rule matched"},
		{"comes after the decision", ingress(tier("t", policy.Deny, pol("p", allow), audit(pol("q", deny)))), ""},
		{"would deny by the tier's default", ingress(tier("t", policy.Deny, audit(pol("p", onPort(allow, 1))))),
			"Ingress Deny: tier t, no rule of the policies that select the endpoint matched"},
		{"would only log", ingress(tier("t", policy.Deny, audit(pol("p", anyone(policy.Log))), pol("q", allow))), ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			v := tt.set.Evaluate(policy.Ingress, flow())
			got := ""
			if v.Audit != nil {
				got = v.Audit.String()
			}
			if got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
			if v.Action != policy.Allow {
				t.Errorf("the verdict became %s", v)
			}
		})
	}
}

func TestLogIsRecorded(t *testing.T) {
	s := ingress(
		tier("t", policy.Pass, pol("p", anyone(policy.Log), onPort(anyone(policy.Log), 1), anyone(policy.Pass))),
		tier("u", policy.Deny, pol("q", anyone(policy.Log), anyone(policy.Allow), anyone(policy.Log))),
	)
	got := s.Evaluate(policy.Ingress, flow()).Logs
	want := []policy.RuleRef{{Tier: "t", Policy: ref("p"), Rule: "Log"}, {Tier: "u", Policy: ref("q"), Rule: "Log"}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

// What no policy decides: the pod itself, and its own node.
func TestBeforePolicy(t *testing.T) {
	closed := &policy.Set{
		Ingress: []policy.Tier{tier("t", policy.Deny, pol("p", anyone(policy.Deny)))},
		Egress:  []policy.Tier{tier("t", policy.Deny, pol("p", anyone(policy.Deny)))},
	}
	self := func(f *policy.Flow) { f.Source.Workload = back() }
	tests := []struct {
		name string
		d    policy.Direction
		f    *policy.Flow
		want policy.Action
	}{
		{"a pod with another", policy.Ingress, flow(), policy.Deny},
		{"a pod with itself, ingress", policy.Ingress, flow(self), policy.Allow},
		{"a pod with itself, egress", policy.Egress, flow(self), policy.Allow},
		{"two pods without uid", policy.Ingress, flow(func(f *policy.Flow) { f.Source.Workload.UID, f.Destination.Workload.UID = "", "" }), policy.Deny},
		{"own node", policy.Ingress, flow(fromNode("node-1")), policy.Allow},
		{"own node, a request", policy.Ingress, flow(fromNode("node-1"), http("GET", "/")), policy.Allow},
		{"another node", policy.Ingress, flow(fromNode("node-2")), policy.Deny},
		{"a node without name", policy.Ingress, flow(fromNode(""), func(f *policy.Flow) { f.Destination.Workload.Node = "" }), policy.Deny},
		{"a pod to its own node", policy.Egress, flow(func(f *policy.Flow) {
			f.Destination = policy.Endpoint{Addr: netip.MustParseAddr("192.0.2.10"), Host: true, HostOf: "node-1"}
		}), policy.Deny},
		{"a pod that says its node's name without being it", policy.Ingress, flow(func(f *policy.Flow) { f.Source.HostOf = "node-1" }), policy.Deny},
		{"no flow", policy.Ingress, nil, policy.Deny},
	}
	t.Run("own node, a request where requests matter", func(t *testing.T) {
		// A NodePort's client arrives with the node's address where kube-proxy
		// masquerades: it must not escape a rule about requests.
		s := &policy.Set{Ingress: []policy.Tier{tier("t", policy.Deny, pol("p", withHTTP(anyone(policy.Allow), "GET")))}}
		for method, want := range map[string]policy.Action{"GET": policy.Allow, "PUT": policy.Deny} {
			if got := s.Evaluate(policy.Ingress, flow(fromNode("node-1"), http(method, "/"))); got.Action != want {
				t.Errorf("%s: got %s, want %s", method, got.Action, want)
			}
		}
		if got := s.Evaluate(policy.Ingress, flow(fromNode("node-1"))); got.Action != policy.Allow {
			t.Errorf("what is no request: got %s, want Allow", got.Action)
		}
	})
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := closed.Evaluate(tt.d, tt.f); got.Action != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
		})
	}
}

func TestDecide(t *testing.T) {
	open, closed := ingress(), &policy.Set{}
	toWorld := func(f *policy.Flow) { f.Destination = policy.Endpoint{Addr: netip.MustParseAddr("198.51.100.1")} }
	tests := []struct {
		name     string
		src, dst *policy.Set
		f        *policy.Flow
		want     [2]policy.Action
	}{
		{"both allow", open, open, flow(), [2]policy.Action{policy.Allow, policy.Allow}},
		{"the source denies", closed, open, flow(), [2]policy.Action{policy.Deny, policy.Allow}},
		{"the destination denies", open, closed, flow(), [2]policy.Action{policy.Allow, policy.Deny}},
		{"the destination is no pod", open, nil, flow(toWorld), [2]policy.Action{policy.Allow, policy.Allow}},
		{"the source is a node", nil, open, flow(fromNode("node-2")), [2]policy.Action{policy.Allow, policy.Allow}},
		{"a pod whose set is not known", nil, nil, flow(), [2]policy.Action{policy.Deny, policy.Deny}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			egress, ingress := policy.Decide(tt.src, tt.dst, tt.f)
			if got := [2]policy.Action{egress.Action, ingress.Action}; got != tt.want {
				t.Errorf("got %v, want %v", got, tt.want)
			}
			if egress.Direction != policy.Egress || ingress.Direction != policy.Ingress {
				t.Error("the directions are mixed up")
			}
		})
	}
}

// The sidecar asks for every request and the tests ask millions of times.
func TestEvaluateAllocatesNothing(t *testing.T) {
	s := ingress(
		tier("t", policy.Pass, pol("p", onPort(anyone(policy.Deny), 1))),
		tier("u", policy.Deny, pol("q", policy.Rule{
			Name: "r", Action: policy.Allow, RequireMTLS: true,
			Peers: []policy.Peer{
				{Networks: []policy.Network{{Prefix: netip.MustParsePrefix("192.0.2.0/24")}}},
				{ServiceAccounts: []policy.ServiceAccount{{Namespace: "red", Name: "front"}}, Principals: []string{"spiffe://cluster.local/*"}},
			},
			HTTP: []policy.HTTPMatch{{
				Methods: []string{"GET"}, Paths: []policy.PathMatch{{Type: policy.PathPrefix, Value: "/v2/keys"}},
				Hosts: []string{"*.example"},
			}},
		})),
	)
	get, put := flow(mtls, http("GET", "/v2/keys/a")), flow(mtls, http("PUT", "/v2/keys/a"))
	if v := s.Evaluate(policy.Ingress, get); v.Action != policy.Allow {
		t.Fatal(s.Explain(policy.Ingress, get))
	}
	if v := s.Evaluate(policy.Ingress, put); v.Action != policy.Deny {
		t.Fatal(s.Explain(policy.Ingress, put))
	}
	if n := testing.AllocsPerRun(100, func() {
		s.Evaluate(policy.Ingress, get)
		s.Evaluate(policy.Ingress, put)
		s.Project(policy.Ingress, get)
		s.ProjectConnection(policy.Ingress, get)
	}); n != 0 {
		t.Errorf("got %v allocations, want none", n)
	}
}

func TestExplainSaysWhatIsLacking(t *testing.T) {
	s := ingress(tier("default", policy.Deny,
		pol("by-pod", policy.Rule{Name: "ingress[0]", Action: policy.Allow, Peers: []policy.Peer{{
			PodSelector: &policy.Selector{Requirements: []policy.Requirement{{Key: "app", Operator: policy.In, Values: []string{"summary"}}}},
		}}}),
		pol("by-request", policy.Rule{Name: "ingress[0]", Action: policy.Allow, AnyPeer: true, RequireMTLS: true,
			Ports: []policy.PortMatch{{Protocol: policy.TCP, Port: 2379}, {Protocol: policy.UDP, Name: "dns"}},
			HTTP:  []policy.HTTPMatch{{Methods: []string{"GET"}, Paths: []policy.PathMatch{{Type: policy.PathPrefix, Value: "/v2/keys"}}}}}),
		audit(pol("later", anyone(policy.Allow))),
	))
	got := s.Explain(policy.Ingress, flow(http("PUT", "/v2/keys"))).String()
	want := strings.TrimLeft(`
Ingress Deny: tier default, no rule of the policies that select the endpoint matched
  tier default (order 0): denied: no rule matched, and the tier denies by default
    MeshPolicy red/by-pod
      ✗ ingress[0] Allow: pod red/front is not its peer: the pod's labels do not satisfy app=summary
    MeshPolicy red/by-request
      ✗ ingress[0] Allow: TCP 8080 is not TCP 2379 or UDP dns; the connection is not mTLS; method PUT is not GET
    MeshPolicy red/later (Audit: decides nothing)
      ✓ Allow Allow: matches
  with the policies in Audit mode enforced: Ingress Allow: tier default, MeshPolicy red/later, rule Allow: the rule matched
`, "\n")
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func BenchmarkEvaluate(b *testing.B) {
	rules := make([]policy.Rule, 100)
	for i := range rules {
		rules[i] = policy.Rule{Name: "r", Action: policy.Allow, Peers: []policy.Peer{{
			PodSelector: &policy.Selector{Requirements: []policy.Requirement{{Key: "app", Operator: policy.In, Values: []string{"none"}}}},
		}}}
	}
	s := ingress(tier("t", policy.Deny, pol("p", rules...)))
	f := flow(mtls, http("GET", "/"))
	b.ReportAllocs()
	for b.Loop() {
		s.Evaluate(policy.Ingress, f)
	}
}
