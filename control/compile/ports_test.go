package compile

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/hauberk-mesh/hauberk/policy"
)

// The kernel learns which port of which pod an egress rule's named port is,
// whoever the rule's peers are.
func TestNamedPortsOfEgress(t *testing.T) {
	named := policy.PortMatch{Protocol: policy.TCP, Name: "web"}
	number := policy.PortMatch{Protocol: policy.UDP, Port: 53}
	every := &policy.Selector{}
	servers := &policy.Selector{Requirements: []policy.Requirement{{Key: "app", Operator: policy.In, Values: []string{"server"}}}}
	network := []policy.Network{{Prefix: netip.MustParsePrefix("10.244.0.0/16")}}
	allow := func(ports []policy.PortMatch, peers ...policy.Peer) policy.Rule {
		return policy.Rule{Name: "egress[0]", Action: policy.Allow, AnyPeer: len(peers) == 0, Peers: peers, Ports: ports}
	}
	for name, test := range map[string]struct {
		rule policy.Rule
		want []policy.Rule // without ids of peer sets
	}{
		"of anyone": {
			allow([]policy.PortMatch{named}),
			[]policy.Rule{allow([]policy.PortMatch{named}, policy.Peer{NamespaceSelector: every})},
		},
		"and number of anyone": {
			allow([]policy.PortMatch{number, named}),
			[]policy.Rule{allow([]policy.PortMatch{number}), allow([]policy.PortMatch{named}, policy.Peer{NamespaceSelector: every})},
		},
		"and number of a network": {
			allow([]policy.PortMatch{named, number}, policy.Peer{Networks: network}),
			[]policy.Rule{
				allow([]policy.PortMatch{number}, policy.Peer{Networks: network}),
				allow([]policy.PortMatch{named}, policy.Peer{NamespaceSelector: every, Networks: network}),
			},
		},
		"of selected pods": {
			allow([]policy.PortMatch{named, number}, policy.Peer{Namespaces: []string{"x"}, PodSelector: servers}),
			[]policy.Rule{allow([]policy.PortMatch{named, number}, policy.Peer{Namespaces: []string{"x"}, PodSelector: servers})},
		},
	} {
		t.Run(name, func(t *testing.T) {
			server := Pod{
				UID: "server", Name: "server", Namespace: "x", Labels: map[string]string{"app": "server"}, Node: "n",
				Addresses: []netip.Addr{netip.MustParseAddr("10.244.1.5")},
				Ports:     []policy.NamedPort{{Name: "web", Protocol: policy.TCP, Port: 8080}},
			}
			client := Pod{UID: "client", Name: "client", Namespace: "x", Node: "n", Addresses: []netip.Addr{netip.MustParseAddr("10.244.1.6")}}
			r := Compile(Facts{Pods: []Pod{server, client}, Policies: []Policy{{
				Ref: policy.Ref{Kind: "NetworkPolicy", Namespace: "x", Name: "p"}, Tier: TierDefault, Order: OrderNetworkPolicy,
				Subject: Subject{Namespace: "x"}, GovernsEgress: true, Egress: []Rule{{Rule: test.rule}},
			}}})
			set := r.PolicySets[r.Workloads["client"].GetPolicySet()]
			if set == nil {
				t.Fatal("the client has no policy set")
			}
			if err := set.Set.Validate(); err != nil {
				t.Errorf("the set is not valid: %v", err)
			}
			got := set.Set.Egress[0].Policies[0].Rules
			resolved := false
			for i := range got {
				for j := range got[i].Peers {
					for _, m := range r.PeerSets[got[i].Peers[j].PeerSet].GetMembers() {
						for _, p := range m.GetNamedPorts() {
							resolved = resolved || m.GetUid() == "server" && p.GetName() == "web" && p.GetPort() == 8080
						}
					}
					got[i].Peers[j].PeerSet = ""
				}
			}
			if !resolved {
				t.Error("no peer set tells the server's port web")
			}
			if diff := cmp.Diff(test.want, got, cmpopts.EquateComparable(netip.Prefix{})); diff != "" {
				t.Errorf("rules differ (-want +got):\n%s", diff)
			}
		})
	}
}
