package firewall

import (
	"fmt"
	"net/netip"
	"os/exec"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/hauberk-mesh/hauberk/policy"
)

// TestKernelTableIsMended: whatever somebody else does to the table, it is as it
// should be again; and what others do elsewhere is none of our business.
func TestKernelTableIsMended(t *testing.T) {
	l := newLab(t)
	client, server := l.pod("client"), l.pod("server")
	server.serve(t, 80)
	l.add(client, &policy.Set{ID: "open", DefaultAction: policy.Allow})
	l.apply(State{
		Hosts: []netip.Addr{netip.MustParseAddr("192.0.2.7")}, PeerSets: map[string][]Member{
			"clients": {{Addresses: client.Addresses}}, "nobody": {}, policy.EveryWorkloadDigest(): {{Addresses: client.Addresses}}}})
	set := onlyFrom("nobody")
	set.Ingress[0].Policies[0].Rules = append(set.Ingress[0].Policies[0].Rules,
		policy.Rule{Action: policy.Deny, Peers: []policy.Peer{{PeerSet: "clients", PodSelector: &policy.Selector{}}}, Ports: []policy.PortMatch{{Protocol: policy.TCP, Port: 80}, {Protocol: policy.ICMP}}},
		policy.Rule{Action: policy.Pass, Peers: []policy.Peer{{Networks: []policy.Network{{Prefix: netip.MustParsePrefix("192.0.2.0/25")}, {Prefix: netip.MustParsePrefix("198.51.100.0/24")}}}}},
		policy.Rule{Action: policy.Allow, Peers: []policy.Peer{{Entities: []policy.Entity{policy.EntityWorld}}}, HTTP: []policy.HTTPMatch{{Methods: []string{"GET"}}}})
	set.Ingress = append(set.Ingress, policy.Tier{Name: "last", Policies: []policy.Policy{networkPolicy("last")}})
	server.Meshed, server.Capture = true, Capture{ExcludeInboundPorts: []uint16{9000, 9001}}
	l.add(server, set)

	nft := func(commands string) {
		t.Helper()
		l.node.Do(func() {
			if out, err := exec.Command("nft", commands).CombinedOutput(); err != nil {
				t.Fatalf("nft %s: %v: %s", commands, err, out)
			}
		})
	}
	// whole compares what the kernel has with what the table says of itself.
	whole := func(when string) {
		t.Helper()
		has, err := l.fw.kernel.Contents()
		if err != nil {
			t.Fatal(err)
		}
		want := l.fw.current.contents()
		if what := want.differs(has); what != "" {
			t.Errorf("%s: %s\n%s", when, what, l.rules())
		}
		if diff := cmp.Diff(want.Chains, has.Chains); diff != "" {
			t.Errorf("%s: chains (-want +got):\n%s", when, diff)
		}
	}
	whole("after programming")
	before := l.fw.current
	mend := func() {
		t.Helper()
		if err := l.fw.mend(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	mend()
	nft("add table inet others")
	mend()
	if l.fw.current != before {
		t.Error("the table was replaced although nobody touched it")
	}
	someChain := ""
	for name, c := range l.fw.current.chains {
		if len(c.rules) > 2 && !c.back {
			someChain = name
		}
	}
	for _, tt := range []string{
		"delete table inet hauberk",
		"flush ruleset",
		"flush table inet hauberk",
		"flush chain inet hauberk forward",
		"flush chain inet hauberk replies",
		"flush chain inet hauberk " + someChain,
		"insert rule inet hauberk forward accept",
		fmt.Sprintf("delete element inet hauberk to-pod4 { %s }", server.Addresses[0]),
		"flush map inet hauberk back-to-pod6",
		"add chain inet hauberk more",
	} {
		nft(tt)
		mend()
		whole("after " + tt)
		if client.reach("tcp", server.Addresses[0], 80) {
			t.Errorf("after %s: the server is open", tt)
		}
	}
	has, err := l.fw.kernel.Contents()
	if err != nil {
		t.Fatal(err)
	}
	if has.Sets["peer4-clients"] < 0 {
		t.Log("left out elements of sets: this kernel does not count them")
		return
	}
	nft("flush set inet hauberk peer4-clients")
	mend()
	whole("after a set was flushed")
}

// TestKernelRefusesAChange: a change that the kernel can't take, because it does
// not have what it should, replaces the table.
func TestKernelRefusesAChange(t *testing.T) {
	l := newLab(t)
	client, server := l.pod("client"), l.pod("server")
	server.serve(t, 80)
	l.add(client, &policy.Set{ID: "open", DefaultAction: policy.Allow})
	l.add(server, onlyFrom("clients"))
	l.node.Do(func() {
		if out, err := exec.Command("nft", "flush ruleset").CombinedOutput(); err != nil {
			t.Fatalf("nft: %v: %s", err, out)
		}
	})
	l.apply(State{PeerSets: map[string][]Member{"clients": {}}})
	l.expect(client, server, 80, false)
	l.apply(State{PeerSets: map[string][]Member{"clients": {{Addresses: client.Addresses}}}})
	l.expect(client, server, 80, true)
}
