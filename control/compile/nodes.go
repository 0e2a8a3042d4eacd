package compile

import (
	"net/netip"
	"slices"

	hauberkv1 "github.com/hauberk-mesh/hauberk/api/gen/hauberk/v1"
)

// mesh is what all clients know.
func (c *compiler) mesh() {
	m := &c.facts.Mesh
	out := &hauberkv1.Mesh{
		TrustDomain: m.TrustDomain,
		Roots:       m.Roots,
		Telemetry: &hauberkv1.Telemetry{
			OtlpEndpoint: m.OTLPEndpoint, SamplingRatio: m.SamplingRatio, AccessLog: m.AccessLog,
		},
		EncryptionStrict:   !m.EncryptionDisabled,
		DenyResponseHeader: m.DenyResponseHeader,
	}
	for _, n := range c.sortedNodes() {
		address := &hauberkv1.NodeAddress{Node: n.Name}
		for _, p := range n.PodCIDRs {
			address.PodCidrs = append(address.PodCidrs, p.String())
		}
		out.PodCidrs = append(out.PodCidrs, address.PodCidrs...)
		for _, a := range slices.Concat(n.Internal, n.External) {
			address.Addresses = append(address.Addresses, a.Unmap().String())
		}
		out.Nodes = append(out.Nodes, address)
	}
	slices.Sort(out.PodCidrs)
	out.PodCidrs = slices.Compact(out.PodCidrs)
	c.out.Mesh = out
}

// tunnels is each node's end of the WireGuard mesh. A node without a key, or a
// key without its node, has none.
func (c *compiler) tunnels() {
	if c.facts.Mesh.EncryptionDisabled {
		return
	}
	strays := make(map[string][]string) // node to addresses of pods outside of its ranges
	for _, entry := range c.pods {
		node := c.nodes[entry.fact.Node]
		if node == nil || entry.fact.HostNetwork {
			continue
		}
		for _, a := range entry.fact.Addresses {
			a = a.Unmap()
			if c.out.byAddress[a] != entry || slices.ContainsFunc(node.PodCIDRs, func(p netip.Prefix) bool { return p.Contains(a) }) {
				continue
			}
			strays[node.Name] = append(strays[node.Name], netip.PrefixFrom(a, a.BitLen()).String())
		}
	}
	for _, t := range c.facts.Tunnels {
		node := c.nodes[t.Node]
		if node == nil || len(t.PublicKey) != 32 || t.Port == 0 {
			continue
		}
		peer := &hauberkv1.TunnelPeer{Node: t.Node, PublicKey: t.PublicKey}
		for _, a := range node.Internal {
			peer.Endpoints = append(peer.Endpoints, netip.AddrPortFrom(a.Unmap(), t.Port).String())
		}
		for _, p := range node.PodCIDRs {
			peer.AllowedIps = append(peer.AllowedIps, p.String())
		}
		slices.Sort(strays[t.Node])
		peer.AllowedIps = append(peer.AllowedIps, strays[t.Node]...)
		c.out.TunnelPeers[t.Node] = peer
	}
}

func (c *compiler) sortedNodes() []*Node {
	nodes := make([]*Node, 0, len(c.facts.Nodes))
	for i := range c.facts.Nodes {
		nodes = append(nodes, &c.facts.Nodes[i])
	}
	slices.SortFunc(nodes, func(a, b *Node) int { return compareStrings(a.Name, b.Name) })
	return nodes
}
