package compile_test

import (
	"math"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"github.com/hauberk-mesh/hauberk/control/compile"
	"github.com/hauberk-mesh/hauberk/policy"
	"github.com/hauberk-mesh/hauberk/policy/policytest"
)

func labelled(key, value string) *policy.Selector {
	return &policy.Selector{Requirements: []policy.Requirement{{Key: key, Operator: policy.In, Values: []string{value}}}}
}

func network(prefix string, except ...string) policy.Network {
	n := policy.Network{Prefix: netip.MustParsePrefix(prefix)}
	for _, e := range except {
		n.Except = append(n.Except, netip.MustParsePrefix(e))
	}
	return n
}

var (
	tcp80  = policy.PortMatch{Protocol: policy.TCP, Port: 80}
	tcpWeb = policy.PortMatch{Protocol: policy.TCP, Name: "web"}
	every  = policy.EveryWorkload()
)

// cluster is two nodes, a subject, a server with a named port and a
// host-network pod, and all that rules can name.
func cluster() compile.Facts {
	addr := netip.MustParseAddr
	ref := func(kind, namespace, name string) policy.Ref {
		return policy.Ref{Kind: kind, Namespace: namespace, Name: name}
	}
	return compile.Facts{
		Mesh:       compile.Mesh{DefaultAction: policy.Allow},
		Namespaces: []compile.Namespace{{Name: "red"}},
		Nodes: []compile.Node{
			{Name: "n1", Internal: []netip.Addr{addr("192.0.2.1")}, Labels: map[string]string{"pool": "a"}},
			{Name: "n2", Internal: []netip.Addr{addr("192.0.2.2"), addr("2001:db8::2")}, Labels: map[string]string{"pool": "b"}},
		},
		Pods: []compile.Pod{
			{UID: "subject", Namespace: "red", Name: "subject", Addresses: []netip.Addr{addr("10.0.0.1")}, Labels: map[string]string{"app": "subject"}},
			{UID: "server", Namespace: "red", Name: "server", Addresses: []netip.Addr{addr("10.0.0.2")}, Labels: map[string]string{"app": "server"},
				Ports: []policy.NamedPort{{Name: "web", Protocol: policy.TCP, Port: 8080}}},
			{UID: "host", Namespace: "red", Name: "host", Addresses: []netip.Addr{addr("192.0.2.1")}, Labels: map[string]string{"app": "host"}, HostNetwork: true},
		},
		Services: []compile.Service{
			{Namespace: "red", Name: "server", Selector: map[string]string{"app": "server"}, Ports: []compile.ServicePort{
				{Name: "http", Protocol: policy.TCP, Port: 80, TargetName: "web"}, {Name: "metrics", Protocol: policy.TCP, Port: 9090, TargetPort: 9091}}},
			{Namespace: "red", Name: "hosted", Selector: map[string]string{"app": "host"}, Ports: []compile.ServicePort{{Protocol: policy.TCP, Port: 443}}},
			{Namespace: "red", Name: "manual", Ports: []compile.ServicePort{{Protocol: policy.UDP, Port: 53, TargetPort: 5353}}},
			{Namespace: "red", Name: "bare", Selector: map[string]string{"app": "server"}},
		},
		EndpointSlices: []compile.EndpointSlice{
			{Namespace: "red", Name: "server-1", Service: "server", Ports: []compile.SlicePort{{Name: "http", Protocol: policy.TCP, Port: 8080}},
				Endpoints: []compile.SliceEndpoint{{Addresses: []netip.Addr{addr("10.0.0.2")}, PodUID: "server"}}},
			{Namespace: "red", Name: "hosted-1", Service: "hosted", Ports: []compile.SlicePort{{Protocol: policy.TCP, Port: 443}},
				Endpoints: []compile.SliceEndpoint{{Addresses: []netip.Addr{addr("192.0.2.1")}, PodUID: "host"}}},
			{Namespace: "red", Name: "manual-1", Service: "manual", Ports: []compile.SlicePort{{Protocol: policy.UDP, Port: 5353}},
				Endpoints: []compile.SliceEndpoint{{Addresses: []netip.Addr{addr("203.0.113.7")}}}},
		},
		NetworkSets: []compile.NetworkSet{
			{Ref: ref("NetworkSet", "red", "office"), Labels: map[string]string{"kind": "trusted"}, Networks: []policy.Network{network("198.51.100.0/24", "198.51.100.9/32")}},
			{Ref: ref("NetworkSet", "red", "empty"), Labels: map[string]string{"kind": "none"}},
			{Ref: ref("NetworkSet", "red", "broken"), Invalid: "cidr \"x\" is none"},
			{Ref: ref("ClusterNetworkSet", "", "partners"), Labels: map[string]string{"kind": "trusted"}, Networks: []policy.Network{network("203.0.113.0/24")}},
		},
	}
}

func compiled(t *testing.T, d policy.Direction, rules ...compile.Rule) (*compile.Resources, []policy.Rule) {
	t.Helper()
	facts := cluster()
	p := compile.Policy{
		Ref: policy.Ref{Kind: "MeshPolicy", Namespace: "red", Name: "p"}, Order: math.Inf(1),
		Subject:        compile.Subject{Namespace: "red", PodSelector: labelled("app", "subject")},
		GovernsIngress: d == policy.Ingress, GovernsEgress: d == policy.Egress,
	}
	if d == policy.Ingress {
		p.Ingress = rules
	} else {
		p.Egress = rules
	}
	facts.Policies = []compile.Policy{p}
	r := compile.Compile(facts)
	set := r.SetOf("subject")
	if err := set.Validate(); err != nil {
		t.Fatal(err)
	}
	return r, set.Tiers(d)[0].Policies[0].Rules
}

func TestReferences(t *testing.T) {
	one := func(refs compile.PeerRefs) compile.Rule {
		return compile.Rule{Rule: policy.Rule{Name: "r", Action: policy.Allow, Peers: []policy.Peer{{}}}, Refs: []compile.PeerRefs{refs}}
	}
	deny := func(r compile.Rule) compile.Rule { r.Action = policy.Deny; return r }
	serverPods := policy.Peer{Namespaces: []string{"red"}, PodSelector: labelled("app", "server")}
	tests := []struct {
		name       string
		direction  policy.Direction
		rule       compile.Rule
		want       []policy.Rule
		unresolved string
	}{
		{name: "named port of anyone", direction: policy.Egress,
			rule: compile.Rule{Rule: policy.Rule{Name: "r", Action: policy.Allow, AnyPeer: true, Ports: []policy.PortMatch{tcpWeb}}},
			want: []policy.Rule{{Name: "r", Action: policy.Allow, Peers: []policy.Peer{every}, Ports: []policy.PortMatch{tcpWeb}}}},
		{name: "named port and number of anyone", direction: policy.Egress,
			rule: compile.Rule{Rule: policy.Rule{Name: "r", Action: policy.Deny, AnyPeer: true, Ports: []policy.PortMatch{tcpWeb, tcp80}}},
			want: []policy.Rule{
				{Name: "r", Action: policy.Deny, AnyPeer: true, Ports: []policy.PortMatch{tcp80}},
				{Name: "r", Action: policy.Deny, Peers: []policy.Peer{every}, Ports: []policy.PortMatch{tcpWeb}}}},
		{name: "named port and number of a network", direction: policy.Egress,
			rule: compile.Rule{Rule: policy.Rule{Name: "r", Action: policy.Allow, Peers: []policy.Peer{{Networks: []policy.Network{network("10.0.0.0/8")}}}, Ports: []policy.PortMatch{tcpWeb, tcp80}}},
			want: []policy.Rule{
				{Name: "r", Action: policy.Allow, Peers: []policy.Peer{{Networks: []policy.Network{network("10.0.0.0/8")}}}, Ports: []policy.PortMatch{tcp80}},
				{Name: "r", Action: policy.Allow, Peers: []policy.Peer{{NamespaceSelector: every.NamespaceSelector, Networks: []policy.Network{network("10.0.0.0/8")}}}, Ports: []policy.PortMatch{tcpWeb}}}},
		{name: "named port of selected pods stays whole", direction: policy.Egress,
			rule: compile.Rule{Rule: policy.Rule{Name: "r", Action: policy.Allow, Peers: []policy.Peer{serverPods}, Ports: []policy.PortMatch{tcpWeb, tcp80}}},
			want: []policy.Rule{{Name: "r", Action: policy.Allow, Peers: []policy.Peer{serverPods}, Ports: []policy.PortMatch{tcpWeb, tcp80}}}},
		{name: "named port of ingress is the subject's", direction: policy.Ingress,
			rule: compile.Rule{Rule: policy.Rule{Name: "r", Action: policy.Allow, AnyPeer: true, Ports: []policy.PortMatch{tcpWeb}}},
			want: []policy.Rule{{Name: "r", Action: policy.Allow, AnyPeer: true, Ports: []policy.PortMatch{tcpWeb}}}},
		{name: "nodes", rule: one(compile.PeerRefs{Nodes: labelled("pool", "b")}),
			want: []policy.Rule{{Name: "r", Action: policy.Allow, Peers: []policy.Peer{{Networks: []policy.Network{network("192.0.2.2/32"), network("2001:db8::2/128")}}}}}},
		{name: "no node is selected", rule: one(compile.PeerRefs{Nodes: labelled("pool", "c")}),
			want: []policy.Rule{{Name: "r", Action: policy.Allow}}},
		{name: "network set by name", rule: one(compile.PeerRefs{NetworkSets: []compile.NetworkSetRef{{Kind: "NetworkSet", Namespace: "red", Name: "office"}}}),
			want: []policy.Rule{{Name: "r", Action: policy.Allow, Peers: []policy.Peer{{Networks: []policy.Network{network("198.51.100.0/24", "198.51.100.9/32")}}}}}},
		{name: "network sets by selector", rule: one(compile.PeerRefs{NetworkSets: []compile.NetworkSetRef{
			{Kind: "NetworkSet", Namespace: "red", Selector: labelled("kind", "trusted")}, {Kind: "ClusterNetworkSet", Selector: labelled("kind", "trusted")}}}),
			want: []policy.Rule{{Name: "r", Action: policy.Allow, Peers: []policy.Peer{{Networks: []policy.Network{network("198.51.100.0/24", "198.51.100.9/32"), network("203.0.113.0/24")}}}}}},
		{name: "network set and networks are cut", rule: compile.Rule{
			Rule: policy.Rule{Name: "r", Action: policy.Allow, Peers: []policy.Peer{{Networks: []policy.Network{network("198.51.0.0/16", "198.51.100.128/25"), network("10.0.0.0/8")}}}},
			Refs: []compile.PeerRefs{{NetworkSets: []compile.NetworkSetRef{{Kind: "NetworkSet", Namespace: "red", Name: "office"}}}}},
			want: []policy.Rule{{Name: "r", Action: policy.Allow, Peers: []policy.Peer{{Networks: []policy.Network{network("198.51.100.0/24", "198.51.100.128/25", "198.51.100.9/32")}}}}}},
		{name: "an empty set is nobody", rule: deny(one(compile.PeerRefs{NetworkSets: []compile.NetworkSetRef{{Kind: "NetworkSet", Namespace: "red", Name: "empty"}}})),
			want: []policy.Rule{{Name: "r", Action: policy.Deny}}},
		{name: "a set that does not exist allows nothing", rule: one(compile.PeerRefs{NetworkSets: []compile.NetworkSetRef{{Kind: "NetworkSet", Namespace: "red", Name: "moon"}}}),
			want:       []policy.Rule{{Name: "r", Action: policy.Allow, AnyPeer: true, Invalid: "peer 0: NetworkSet red/moon does not exist: create it, or correct the name"}},
			unresolved: "r: peer 0: NetworkSet red/moon does not exist"},
		{name: "a broken set denies all that the peer could be", rule: deny(compile.Rule{
			Rule: policy.Rule{Name: "r", Peers: []policy.Peer{serverPods}},
			Refs: []compile.PeerRefs{{NetworkSets: []compile.NetworkSetRef{{Kind: "NetworkSet", Namespace: "red", Name: "broken"}}}}}),
			want:       []policy.Rule{{Name: "r", Action: policy.Deny, Peers: []policy.Peer{serverPods}, Invalid: "peer 0: NetworkSet red/broken is invalid: cidr \"x\" is none"}},
			unresolved: "NetworkSet red/broken is invalid"},
		{name: "a Service as a destination is its pods at its target ports", direction: policy.Egress, rule: one(compile.PeerRefs{Services: []compile.ServiceRef{{Namespace: "red", Name: "server"}}}),
			want: []policy.Rule{{Name: "r", Action: policy.Allow, Peers: []policy.Peer{serverPods}, Ports: []policy.PortMatch{tcpWeb, {Protocol: policy.TCP, Port: 9091}}}}},
		{name: "a Service as a source is its pods", rule: one(compile.PeerRefs{Services: []compile.ServiceRef{{Namespace: "red", Name: "server"}}}),
			want: []policy.Rule{{Name: "r", Action: policy.Allow, Peers: []policy.Peer{serverPods}}}},
		{name: "host-network pods of a Service are their node", direction: policy.Egress, rule: one(compile.PeerRefs{Services: []compile.ServiceRef{{Namespace: "red", Name: "hosted"}}}),
			want: []policy.Rule{
				{Name: "r", Action: policy.Allow, Peers: []policy.Peer{{Namespaces: []string{"red"}, PodSelector: labelled("app", "host")}}, Ports: []policy.PortMatch{{Protocol: policy.TCP, Port: 443}}},
				{Name: "r", Action: policy.Allow, Peers: []policy.Peer{{Networks: []policy.Network{network("192.0.2.1/32")}}}, Ports: []policy.PortMatch{{Protocol: policy.TCP, Port: 443}}}}},
		{name: "a Service without selector is its endpoints", direction: policy.Egress, rule: one(compile.PeerRefs{Services: []compile.ServiceRef{{Namespace: "red", Name: "manual"}}}),
			want: []policy.Rule{{Name: "r", Action: policy.Allow, Peers: []policy.Peer{{Networks: []policy.Network{network("203.0.113.7/32")}}}, Ports: []policy.PortMatch{{Protocol: policy.UDP, Port: 5353}}}}},
		{name: "a Service that does not exist denies everyone", direction: policy.Egress, rule: deny(one(compile.PeerRefs{Services: []compile.ServiceRef{{Namespace: "red", Name: "moon"}}})),
			want:       []policy.Rule{{Name: "r", Action: policy.Deny, AnyPeer: true, Invalid: "peer 0: Service red/moon does not exist, or is of type ExternalName, which has no endpoints"}},
			unresolved: "Service red/moon does not exist"},
		{name: "a Service without ports", direction: policy.Egress, rule: one(compile.PeerRefs{Services: []compile.ServiceRef{{Namespace: "red", Name: "bare"}}}),
			want:       []policy.Rule{{Name: "r", Action: policy.Allow, AnyPeer: true, Invalid: "peer 0: Service red/bare has no ports: name its pods by podSelector instead"}},
			unresolved: "Service red/bare has no ports"},
	}
	ignore := cmp.Options{cmpopts.IgnoreFields(policy.Peer{}, "PeerSet"), cmpopts.EquateComparable(netip.Prefix{}), cmpopts.EquateEmpty()}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r, got := compiled(t, tt.direction, tt.rule)
			if diff := cmp.Diff(tt.want, got, ignore); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
			unresolved := strings.Join(r.Policies[0].Unresolved, "; ")
			if tt.unresolved == "" && unresolved != "" || !strings.Contains(unresolved, tt.unresolved) {
				t.Errorf("unresolved: got %q, want %q", unresolved, tt.unresolved)
			}
			if invalid := len(r.Policies[0].Invalid) > 0; invalid != (tt.unresolved != "") {
				t.Errorf("invalid: got %v", r.Policies[0].Invalid)
			}
		})
	}
}

// The kernel learns the ports of the pods that a named port can be of, and of
// no other; and all pods when cluster and world are to be told apart.
func TestPeerSetsThatRulesNeed(t *testing.T) {
	r, rules := compiled(t, policy.Egress,
		compile.Rule{Rule: policy.Rule{Name: "a", Action: policy.Allow, Peers: []policy.Peer{{PodSelector: labelled("app", "server")}}, Ports: []policy.PortMatch{tcpWeb}}},
		compile.Rule{Rule: policy.Rule{Name: "b", Action: policy.Allow, Peers: []policy.Peer{{Entities: []policy.Entity{policy.EntityWorld}}}}})
	members := r.PeerSets[rules[0].Peers[0].PeerSet].GetMembers()
	if len(members) != 1 || len(members[0].GetNamedPorts()) != 1 || members[0].GetNamedPorts()[0].GetPort() != 8080 {
		t.Errorf("members of the named port's peer: %v", members)
	}
	all := r.PeerSets[policy.EveryWorkloadDigest()].GetMembers()
	if len(all) != 2 || len(all[1].GetNamedPorts()) != 0 {
		t.Errorf("members of every workload: %v", all)
	}
	if ids := r.PolicySets[r.SetOf("subject").ID].PeerSets; !slices.Contains(ids, policy.EveryWorkloadDigest()) {
		t.Errorf("the policy set does not name every workload: %v", ids)
	}
}

// Splitting named ports off changes no decision.
func TestSplitKeepsMeaning(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		set, f := policytest.Set().Draw(rt, "set"), policytest.Flow().Draw(rt, "flow")
		f.Destination.Host = false // the named ports of a node's pods are no workload's
		for _, tier := range set.Egress {
			for _, p := range tier.Policies {
				for _, rule := range p.Rules {
					if rule.Action == policy.Log {
						continue
					}
					_, rules := compiled(t, policy.Egress, compile.Rule{Rule: rule})
					one := func(rules []policy.Rule) policy.Verdict {
						s := &policy.Set{DefaultAction: policy.Deny, Egress: []policy.Tier{{Name: "t", DefaultAction: policy.Pass,
							Policies: []policy.Policy{{Ref: policy.Ref{Kind: "MeshPolicy", Name: "p"}, Rules: rules}}}}}
						return s.Evaluate(policy.Egress, f)
					}
					if want, got := one([]policy.Rule{rule}), one(rules); got.Action != want.Action || got.Rule != want.Rule {
						rt.Fatalf("the rule decides %s, what it became %s\n%+v\n%+v", want, got, rule, rules)
					}
				}
			}
		}
	})
}

// TestZones: a pod learns its node's zone, and so do those that have it as an
// endpoint; strangers do not learn it of the pod itself.
func TestZones(t *testing.T) {
	facts := cluster()
	facts.Nodes[1].Zone = "north"
	facts.Pods[0].Node, facts.Pods[1].Node = "n1", "n2"
	r := compile.Compile(facts)
	for uid, want := range map[string]string{"subject": "", "server": "north"} {
		w := r.Workloads[uid]
		if w == nil {
			t.Fatalf("no workload %s", uid)
		}
		if w.GetZone() != want {
			t.Errorf("%s is in zone %q, want %q", uid, w.GetZone(), want)
		}
		if got := compile.Public(w).GetZone(); got != "" {
			t.Errorf("others learn %s's zone %q", uid, got)
		}
	}
}
