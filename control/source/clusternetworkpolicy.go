package source

import (
	"fmt"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/validation"
	cnp "sigs.k8s.io/network-policy-api/apis/v1alpha2"

	"github.com/hauberk-mesh/hauberk/control/compile"
	"github.com/hauberk-mesh/hauberk/policy"
)

// whyNoDomainNames is what users read who name domains.
const whyNoDomainNames = "domain names are not enforced, because the answers of DNS are not trusted yet: " +
	"whoever forges one would choose the addresses; name networks instead"

// clusterNetworkPolicyFrom converts a Kubernetes ClusterNetworkPolicy. What it
// leaves undecided goes on to the next tier.
func clusterNetworkPolicyFrom(u *unstructured.Unstructured) compile.Policy {
	var spec cnp.ClusterNetworkPolicySpec
	var why reasons
	if err := decodeSpec(u, &spec); err != nil {
		why.add("%s", err)
	}
	p := compile.Policy{
		Ref:            refFrom(u, "ClusterNetworkPolicy"),
		Tier:           compile.TierKubeAdmin,
		Order:          float64(spec.Priority),
		GovernsIngress: len(spec.Ingress) > 0,
		GovernsEgress:  len(spec.Egress) > 0,
	}
	switch spec.Tier {
	case cnp.AdminTier:
	case cnp.BaselineTier:
		p.Tier = compile.TierKubeBaseline
	default:
		why.add("spec.tier: %q is neither Admin nor Baseline", spec.Tier)
	}
	switch s := &spec.Subject; {
	case s.Namespaces != nil && s.Pods == nil:
		p.Subject.NamespaceSelector = selectorFrom(s.Namespaces, "spec.subject.namespaces", &why)
	case s.Pods != nil && s.Namespaces == nil:
		p.Subject.NamespaceSelector = selectorFrom(&s.Pods.NamespaceSelector, "spec.subject.pods.namespaceSelector", &why)
		p.Subject.PodSelector = selectorFrom(&s.Pods.PodSelector, "spec.subject.pods.podSelector", &why)
	default:
		why.add("spec.subject: set exactly one of namespaces and pods")
	}
	p.Invalid = why.String()
	for i := range spec.Ingress {
		r := &spec.Ingress[i]
		peers := make([]cnp.ClusterNetworkPolicyEgressPeer, len(r.From))
		for j, from := range r.From {
			peers[j] = cnp.ClusterNetworkPolicyEgressPeer{Namespaces: from.Namespaces, Pods: from.Pods}
		}
		p.Ingress = append(p.Ingress, clusterNetworkPolicyRule(fmt.Sprintf("ingress[%d]", i), r.Name, r.Action, peers, r.Protocols))
	}
	for i := range spec.Egress {
		r := &spec.Egress[i]
		p.Egress = append(p.Egress, clusterNetworkPolicyRule(fmt.Sprintf("egress[%d]", i), r.Name, r.Action, r.To, r.Protocols))
	}
	return p
}

func clusterNetworkPolicyRule(place, name string, action cnp.ClusterNetworkPolicyRuleAction,
	peers []cnp.ClusterNetworkPolicyEgressPeer, protocols []cnp.ClusterNetworkPolicyProtocol) compile.Rule {
	var why reasons
	rule := compile.Rule{Rule: policy.Rule{Name: name}}
	if name == "" {
		rule.Name = place
	}
	switch action {
	case cnp.ClusterNetworkPolicyRuleActionAccept:
		rule.Action = policy.Allow
	case cnp.ClusterNetworkPolicyRuleActionDeny:
		rule.Action = policy.Deny
	case cnp.ClusterNetworkPolicyRuleActionPass:
		rule.Action = policy.Pass
	default:
		why.add("action %q is none of Accept, Deny, Pass", action)
	}
	if len(peers) == 0 {
		why.add("it names no peers")
	}
	for i := range peers {
		peer, refs, ok := clusterNetworkPolicyPeer(&peers[i], fmt.Sprintf("peer %d", i), &why)
		if !ok {
			rule.AnyPeer, rule.Peers, rule.Refs = true, nil, nil
			break
		}
		rule.Peers, rule.Refs = append(rule.Peers, peer), append(rule.Refs, refs)
	}
	for i := range protocols {
		ports, ok := clusterNetworkPolicyPorts(&protocols[i], fmt.Sprintf("protocol %d", i), &why)
		if !ok {
			rule.Ports = nil
			break
		}
		rule.Ports = append(rule.Ports, ports...)
	}
	rule.Invalid = why.String()
	return rule
}

func clusterNetworkPolicyPeer(from *cnp.ClusterNetworkPolicyEgressPeer, place string, why *reasons) (policy.Peer, compile.PeerRefs, bool) {
	before := len(*why)
	var peer policy.Peer
	var refs compile.PeerRefs
	set := 0
	if from.Namespaces != nil {
		set++
		peer.NamespaceSelector = selectorFrom(from.Namespaces, place+".namespaces", why)
	}
	if from.Pods != nil {
		set++
		peer.NamespaceSelector = selectorFrom(&from.Pods.NamespaceSelector, place+".pods.namespaceSelector", why)
		peer.PodSelector = selectorFrom(&from.Pods.PodSelector, place+".pods.podSelector", why)
	}
	if from.Nodes != nil {
		set++
		refs.Nodes = selectorFrom(from.Nodes, place+".nodes", why)
	}
	if len(from.Networks) > 0 {
		set++
		for i, cidr := range from.Networks {
			if n, ok := networkFrom(string(cidr), nil, fmt.Sprintf("%s.networks[%d]", place, i), why); ok {
				peer.Networks = append(peer.Networks, n)
			}
		}
	}
	if len(from.DomainNames) > 0 {
		set++
		why.add("%s.domainNames: %s", place, whyNoDomainNames)
	}
	if set != 1 {
		why.add("%s: set exactly one of namespaces, pods, nodes and networks", place)
	}
	return peer, refs, len(*why) == before
}

// clusterNetworkPolicyPorts is one match, or for a named port one for each
// protocol: the name says which port, of whatever protocol.
func clusterNetworkPolicyPorts(from *cnp.ClusterNetworkPolicyProtocol, place string, why *reasons) ([]policy.PortMatch, bool) {
	var out []policy.PortMatch
	set := 0
	ok := true
	add := func(protocol policy.Protocol, port *cnp.Port) {
		set++
		m := policy.PortMatch{Protocol: protocol}
		if port != nil {
			first, last := port.Number, int32(0)
			if port.Range != nil {
				if first != 0 {
					why.add("%s: set exactly one of number and range", place)
					ok = false
				}
				first, last = port.Range.Start, port.Range.End
			}
			if first < 1 || first > 65535 || port.Range != nil && (last < first || last > 65535) {
				why.add("%s: the destination port is not 1 to 65535, or its range ends before it begins", place)
				ok = false
				return
			}
			m.Port, m.EndPort = uint16(first), uint16(last)
		}
		out = append(out, m)
	}
	if from.TCP != nil {
		add(policy.TCP, from.TCP.DestinationPort)
	}
	if from.UDP != nil {
		add(policy.UDP, from.UDP.DestinationPort)
	}
	if from.SCTP != nil {
		add(policy.SCTP, from.SCTP.DestinationPort)
	}
	if name := from.DestinationNamedPort; name != "" {
		set++
		if problems := validation.IsValidPortName(name); len(problems) > 0 {
			why.add("%s: %q is no port name: %s", place, name, problems[0])
			ok = false
		}
		for _, protocol := range []policy.Protocol{policy.TCP, policy.UDP, policy.SCTP} {
			out = append(out, policy.PortMatch{Protocol: protocol, Name: name})
		}
	}
	if set != 1 {
		why.add("%s: set exactly one of tcp, udp, sctp and destinationNamedPort", place)
		ok = false
	}
	return out, ok
}
