package compile

import (
	"slices"

	hauberkv1 "github.com/hauberk-mesh/hauberk/api/gen/hauberk/v1"
)

// peerSets finds the members of every selector. Pods in their node's network
// are no members: as peers they are their node.
func (c *compiler) peerSets() {
	// One walk over the pods for each kind of pod rather than for each pod: pods
	// with equal namespace, labels and service account are members alike.
	groups := make(map[string][]*podEntry)
	var order []string
	for _, entry := range c.pods {
		if entry.fact.HostNetwork || len(entry.fact.Addresses) == 0 {
			continue
		}
		key := labelSignature(entry.fact.Namespace, entry.fact.Labels) + "\x00\x00" + entry.fact.ServiceAccount
		if groups[key] == nil {
			order = append(order, key)
		}
		groups[key] = append(groups[key], entry)
	}
	for id, peer := range c.peers {
		set := &hauberkv1.PeerSet{Id: id}
		for _, key := range order {
			group := groups[key]
			// What can't be resolved counts as matching: only Deny rules look at such a
			// set, and they must not shrink.
			if !peer.Selects(group[0].workload, true) {
				continue
			}
			for _, entry := range group {
				// An address that a newer pod took over belongs to this one no more.
				var addresses []string
				for _, a := range entry.fact.Addresses {
					if c.out.byAddress[a.Unmap()] == entry {
						addresses = append(addresses, a.Unmap().String())
					}
				}
				if len(addresses) > 0 {
					member := &hauberkv1.PeerMember{Uid: entry.fact.UID, Addresses: addresses}
					if c.named[id] {
						member.NamedPorts = namedPorts(entry.workload)
					}
					set.Members = append(set.Members, member)
				}
			}
		}
		slices.SortFunc(set.Members, func(a, b *hauberkv1.PeerMember) int { return compareStrings(a.GetUid(), b.GetUid()) })
		c.out.PeerSets[id] = set
	}
}
