package compile

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/hauberk-mesh/hauberk/policy"
)

// expand is the rules that one rule of an object becomes: what its peers name
// (nodes, network sets, Services) is looked up, and named ports of egress rules
// stand with peers that select workloads. All of them have the rule's name.
func (c *compiler) expand(rule Rule, d policy.Direction, report *PolicyReport) []policy.Rule {
	base := rule.Rule
	base.Peers = nil
	var services []policy.Rule
	var why string
	anyone := false // a peer that could be anyone
	for i := range rule.Peers {
		peer := rule.Peers[i]
		var refs PeerRefs
		if i < len(rule.Refs) {
			refs = rule.Refs[i]
		}
		place := fmt.Sprintf("%s: peer %d", rule.Name, i)
		unresolved := func(format string, args ...any) {
			reason := fmt.Sprintf(format, args...)
			report.Unresolved = append(report.Unresolved, place+": "+reason)
			why = joinReasons(why, fmt.Sprintf("peer %d: %s", i, reason))
		}
		if len(refs.Services) > 0 {
			for _, ref := range refs.Services {
				found, problem := c.service(base, ref, d)
				if problem != "" {
					unresolved("%s", problem)
					anyone = true
				}
				services = append(services, found...)
			}
			continue
		}
		resolved := len(report.Unresolved)
		peer, some := c.resolvePeer(peer, &refs, unresolved)
		switch {
		case len(report.Unresolved) > resolved && !peer.SelectsWorkloads() && len(peer.Principals)+len(peer.Networks)+len(peer.Entities) == 0:
			anyone = true
		case some:
			base.Peers = append(base.Peers, peer)
		}
	}
	if why != "" {
		base.Invalid = joinReasons(base.Invalid, why)
		for i := range services {
			services[i].Invalid = joinReasons(services[i].Invalid, why)
		}
	}
	if anyone {
		// Only a Deny looks at it: it could mean every peer.
		base.AnyPeer, base.Peers, services = true, nil, nil
	}
	var out []policy.Rule
	if base.AnyPeer || len(base.Peers) > 0 || len(services) == 0 {
		out = append(out, base)
	}
	out = append(out, services...)
	if d == policy.Ingress {
		return out
	}
	var split []policy.Rule
	for _, r := range out {
		split = append(split, splitNamedPorts(r)...)
	}
	return split
}

// resolvePeer is the peer with what it names in its networks. It is false for a
// peer that nothing is at the moment. Fields are ANDed: addresses of nodes and
// of network sets are cut with each other and with the peer's own networks.
func (c *compiler) resolvePeer(peer policy.Peer, refs *PeerRefs, unresolved func(string, ...any)) (policy.Peer, bool) {
	limit := func(networks []policy.Network) {
		if peer.Networks == nil {
			peer.Networks = networks
			return
		}
		peer.Networks = intersect(peer.Networks, networks)
	}
	some := true
	if refs.Nodes != nil {
		limit(c.nodeNetworks(refs.Nodes))
		some = some && len(peer.Networks) > 0
	}
	if len(refs.NetworkSets) > 0 {
		networks, ok := c.networkSets(refs.NetworkSets, unresolved)
		if ok {
			limit(networks)
			some = some && len(peer.Networks) > 0
		}
	}
	return peer, some
}

// nodeNetworks is the addresses of the nodes that the selector selects, sorted.
func (c *compiler) nodeNetworks(s *policy.Selector) []policy.Network {
	networks := []policy.Network{}
	for _, n := range c.sortedNodes() {
		if !s.Matches(n.Labels) {
			continue
		}
		for _, a := range slices.Concat(n.Internal, n.External) {
			networks = append(networks, single(a))
		}
	}
	return networks
}

func single(a netip.Addr) policy.Network {
	a = a.Unmap()
	return policy.Network{Prefix: netip.PrefixFrom(a, a.BitLen())}
}

// networkSets is the networks of all sets that are named or selected. It is
// false when one can't be resolved.
func (c *compiler) networkSets(refs []NetworkSetRef, unresolved func(string, ...any)) ([]policy.Network, bool) {
	networks, ok := []policy.Network{}, true
	for _, ref := range refs {
		found := false
		for _, s := range c.sets {
			if s.Ref.Kind != ref.Kind || s.Ref.Namespace != ref.Namespace {
				continue
			}
			if ref.Selector != nil && !ref.Selector.Matches(s.Labels) || ref.Selector == nil && s.Ref.Name != ref.Name {
				continue
			}
			found = true
			if s.Invalid != "" {
				unresolved("%s is invalid: %s", s.Ref, s.Invalid)
				ok = false
				continue
			}
			networks = append(networks, s.Networks...)
		}
		if !found && ref.Selector == nil {
			unresolved("%s does not exist: create it, or correct the name", policy.Ref{Kind: ref.Kind, Namespace: ref.Namespace, Name: ref.Name})
			ok = false
		}
	}
	return networks, ok
}

// intersect is the addresses that are in a network of both lists. Of two
// prefixes that overlap one contains the other.
func intersect(a, b []policy.Network) []policy.Network {
	out := []policy.Network{}
	for _, x := range a {
		for _, y := range b {
			if !x.Prefix.Overlaps(y.Prefix) {
				continue
			}
			n := policy.Network{Prefix: x.Prefix}
			if y.Prefix.Bits() > x.Prefix.Bits() {
				n.Prefix = y.Prefix
			}
			empty := false
			for _, e := range slices.Concat(x.Except, y.Except) {
				switch {
				case !e.Overlaps(n.Prefix):
				case e.Bits() <= n.Prefix.Bits():
					empty = true
				default:
					n.Except = append(n.Except, e)
				}
			}
			if !empty {
				out = append(out, n)
			}
		}
	}
	return out
}

// service is the rules for a Service as a peer, made from base: its pods, by
// its selector, and what stands behind it that no selector finds (endpoints
// without a pod, pods in their node's network), by address. As a destination
// only the ports count to which the Service translates.
func (c *compiler) service(base policy.Rule, ref ServiceRef, d policy.Direction) ([]policy.Rule, string) {
	key := accountKey{ref.Namespace, ref.Name}
	i := slices.IndexFunc(c.facts.Services, func(s Service) bool { return s.Namespace == ref.Namespace && s.Name == ref.Name })
	if i < 0 {
		return nil, fmt.Sprintf("Service %s/%s does not exist, or is of type ExternalName, which has no endpoints", ref.Namespace, ref.Name)
	}
	s := &c.facts.Services[i]
	if d == policy.Egress && len(s.Ports) == 0 {
		return nil, fmt.Sprintf("Service %s/%s has no ports: name its pods by podSelector instead", ref.Namespace, ref.Name)
	}
	var out []policy.Rule
	add := func(peer policy.Peer, ports []policy.PortMatch) {
		r := base
		r.AnyPeer, r.Peers = false, []policy.Peer{peer}
		if d == policy.Egress {
			if len(ports) == 0 {
				return
			}
			r.Ports = ports
		}
		out = append(out, r)
	}
	if len(s.Selector) > 0 {
		var ports []policy.PortMatch
		for _, p := range s.Ports {
			if m, ok := p.target(); ok && !slices.Contains(ports, m) {
				ports = append(ports, m)
			}
		}
		add(policy.Peer{Namespaces: []string{s.Namespace}, PodSelector: equalities(s.Selector)}, ports)
	}
	for _, slice := range c.slicesOf()[key] {
		var networks []policy.Network
		for j := range slice.Endpoints {
			e := &slice.Endpoints[j]
			entry := c.out.pods[e.PodUID]
			if e.PodUID != "" && (entry == nil || !entry.fact.HostNetwork) && len(s.Selector) > 0 {
				continue // by the selector
			}
			for _, a := range e.Addresses {
				networks = append(networks, single(a))
			}
		}
		if len(networks) == 0 {
			continue
		}
		var ports []policy.PortMatch
		for _, p := range slice.Ports {
			if known(p.Protocol) && p.Port != 0 {
				ports = append(ports, policy.PortMatch{Protocol: p.Protocol, Port: p.Port})
			}
		}
		slices.SortFunc(networks, func(a, b policy.Network) int { return a.Prefix.Addr().Compare(b.Prefix.Addr()) })
		add(policy.Peer{Networks: networks}, ports)
	}
	if len(out) == 0 {
		r := base // no endpoints yet: matches nothing
		r.AnyPeer, r.Peers = false, nil
		out = append(out, r)
	}
	return out, ""
}

func known(p policy.Protocol) bool { return p == policy.TCP || p == policy.UDP || p == policy.SCTP }

// target is the port after the Service's translation.
func (p *ServicePort) target() (policy.PortMatch, bool) {
	m := policy.PortMatch{Protocol: p.Protocol, Name: p.TargetName}
	if p.TargetName == "" {
		if m.Port = p.TargetPort; m.Port == 0 {
			m.Port = p.Port
		}
	}
	return m, known(p.Protocol)
}

// equalities is a Service's selector as a label selector.
func equalities(labels map[string]string) *policy.Selector {
	s := &policy.Selector{}
	for k, v := range labels {
		s.Requirements = append(s.Requirements, policy.Requirement{Key: k, Operator: policy.In, Values: []string{v}})
	}
	slices.SortFunc(s.Requirements, func(a, b policy.Requirement) int { return compareStrings(a.Key, b.Key) })
	return s
}

// slicesOf is the slices of each Service, sorted by name.
func (c *compiler) slicesOf() map[accountKey][]*EndpointSlice {
	if c.bySlice != nil {
		return c.bySlice
	}
	c.bySlice = make(map[accountKey][]*EndpointSlice)
	for i := range c.facts.EndpointSlices {
		s := &c.facts.EndpointSlices[i]
		key := accountKey{s.Namespace, s.Service}
		c.bySlice[key] = append(c.bySlice[key], s)
	}
	for _, list := range c.bySlice {
		slices.SortFunc(list, func(a, b *EndpointSlice) int { return compareStrings(a.Name, b.Name) })
	}
	return c.bySlice
}
