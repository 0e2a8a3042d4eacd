package source

import (
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"

	"github.com/hauberk-mesh/hauberk/control/compile"
	"github.com/hauberk-mesh/hauberk/policy"
)

// networkPolicyFrom converts a Kubernetes NetworkPolicy. It can only allow; that
// what it selects is otherwise denied is the default action of its tier.
func networkPolicyFrom(np *networkingv1.NetworkPolicy) compile.Policy {
	var why reasons
	p := compile.Policy{
		Ref:   policy.Ref{Kind: "NetworkPolicy", Namespace: np.Namespace, Name: np.Name, UID: string(np.UID), Generation: np.Generation},
		Tier:  compile.TierDefault,
		Order: compile.OrderNetworkPolicy,
		Subject: compile.Subject{
			Namespace:   np.Namespace,
			PodSelector: selectorFrom(&np.Spec.PodSelector, "spec.podSelector", &why),
		},
		// A NetworkPolicy without types governs Ingress, and Egress when it has
		// egress rules.
		GovernsIngress: len(np.Spec.PolicyTypes) == 0,
		GovernsEgress:  len(np.Spec.PolicyTypes) == 0 && len(np.Spec.Egress) > 0,
	}
	for i, t := range np.Spec.PolicyTypes {
		switch t {
		case networkingv1.PolicyTypeIngress:
			p.GovernsIngress = true
		case networkingv1.PolicyTypeEgress:
			p.GovernsEgress = true
		default:
			why.add("spec.policyTypes[%d]: %q is neither Ingress nor Egress", i, t)
			p.GovernsIngress, p.GovernsEgress = true, true
		}
	}
	p.Invalid = why.String()
	for i := range np.Spec.Ingress {
		r := &np.Spec.Ingress[i]
		p.Ingress = append(p.Ingress, networkPolicyRule(fmt.Sprintf("ingress[%d]", i), np.Namespace, r.From, r.Ports))
	}
	for i := range np.Spec.Egress {
		r := &np.Spec.Egress[i]
		p.Egress = append(p.Egress, networkPolicyRule(fmt.Sprintf("egress[%d]", i), np.Namespace, r.To, r.Ports))
	}
	return p
}

func networkPolicyRule(name, namespace string, peers []networkingv1.NetworkPolicyPeer, ports []networkingv1.NetworkPolicyPort) compile.Rule {
	var why reasons
	rule := policy.Rule{Name: name, Action: policy.Allow, AnyPeer: len(peers) == 0}
	for i := range peers {
		place := fmt.Sprintf("peer %d", i)
		from := &peers[i]
		var peer policy.Peer
		switch {
		case from.IPBlock != nil && (from.PodSelector != nil || from.NamespaceSelector != nil):
			why.add("%s: ipBlock stands alone: remove podSelector and namespaceSelector", place)
			continue
		case from.IPBlock != nil:
			network, ok := networkFrom(from.IPBlock.CIDR, from.IPBlock.Except, place+".ipBlock", &why)
			if !ok {
				continue
			}
			peer.Networks = []policy.Network{network}
		case from.PodSelector == nil && from.NamespaceSelector == nil:
			why.add("%s: empty: name podSelector, namespaceSelector or ipBlock", place)
			continue
		default:
			peer.PodSelector = selectorFrom(from.PodSelector, place+".podSelector", &why)
			peer.NamespaceSelector = selectorFrom(from.NamespaceSelector, place+".namespaceSelector", &why)
			if from.NamespaceSelector == nil {
				peer.Namespaces = []string{namespace}
			}
		}
		rule.Peers = append(rule.Peers, peer)
	}
	for i := range ports {
		protocol := corev1.ProtocolTCP
		if ports[i].Protocol != nil {
			protocol = *ports[i].Protocol
		}
		place := fmt.Sprintf("port %d", i)
		if !slices.Contains([]corev1.Protocol{corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP}, protocol) {
			why.add("%s: protocol %q is none of TCP, UDP, SCTP", place, protocol)
			continue
		}
		if m, ok := portFrom(protocolFrom(protocol), ports[i].Port, ports[i].EndPort, place, &why); ok {
			rule.Ports = append(rule.Ports, m)
		}
	}
	rule.Invalid = why.String()
	return compile.Rule{Rule: rule}
}
