package compile

import (
	"net/netip"
	"slices"

	hauberkv1 "github.com/hauberk-mesh/hauberk/api/gen/hauberk/v1"
	"github.com/hauberk-mesh/hauberk/policy"
)

// serviceEntry is a Service with its slices.
type serviceEntry struct {
	fact   *Service
	slices []*EndpointSlice
}

// services indexes Services by the addresses that clients dial.
func (c *compiler) services() {
	for i := range c.facts.Services {
		s := &c.facts.Services[i]
		entry := &serviceEntry{fact: s, slices: c.slicesOf()[accountKey{s.Namespace, s.Name}]}
		for _, a := range s.Addresses {
			a = a.Unmap()
			c.out.services[a] = append(c.out.services[a], entry)
		}
		for _, a := range s.External {
			a = a.Unmap()
			c.out.external[a] = append(c.out.external[a], entry)
		}
	}
	// An external address may be named by several Services; the first by name
	// that has the port wins, always the same one.
	for _, index := range []map[netip.Addr][]*serviceEntry{c.out.services, c.out.external} {
		for _, entries := range index {
			slices.SortFunc(entries, func(a, b *serviceEntry) int {
				return compareStrings(a.fact.Namespace, b.fact.Namespace, a.fact.Name, b.fact.Name)
			})
		}
	}
}

// destination is what the Service has behind the port, of the family of addr;
// nil when it has no such TCP port.
func (s *serviceEntry) destination(r *Resources, addr netip.Addr, port uint16) *hauberkv1.Destination {
	i := slices.IndexFunc(s.fact.Ports, func(p ServicePort) bool { return p.Port == port && p.Protocol == policy.TCP })
	if i < 0 {
		return nil
	}
	sp := &s.fact.Ports[i]
	d := &hauberkv1.Destination{
		Kind: "Service", Namespace: s.fact.Namespace, Name: s.fact.Name, Port: uint32(port),
		Protocol: declaredProtocol(sp.AppProtocol, sp.Name),
	}
	seen := make(map[netip.AddrPort]bool)
	for _, slice := range s.slices {
		for _, slicePort := range slice.Ports {
			if slicePort.Name != sp.Name || slicePort.Protocol != policy.TCP {
				continue
			}
			for i := range slice.Endpoints {
				e := &slice.Endpoints[i]
				for _, a := range e.Addresses {
					a = a.Unmap()
					at := netip.AddrPortFrom(a, slicePort.Port)
					if a.Is4() != addr.Is4() || seen[at] {
						continue
					}
					if ep := r.sliceEndpoint(e, at); ep != nil {
						seen[at] = true
						d.Endpoints = append(d.Endpoints, ep)
					}
				}
			}
		}
	}
	slices.SortFunc(d.Endpoints, func(a, b *hauberkv1.DestinationEndpoint) int {
		if c := compareStrings(a.GetAddress(), b.GetAddress()); c != 0 {
			return c
		}
		return int(a.GetPort()) - int(b.GetPort())
	})
	return d
}

// sliceEndpoint is an endpoint of a slice with what is known of its pod; nil
// when it stands for a pod that is not known (yet, or any more): to dial it
// without knowing whether it has a sidecar could send in clear what must not be.
func (r *Resources) sliceEndpoint(e *SliceEndpoint, at netip.AddrPort) *hauberkv1.DestinationEndpoint {
	if e.PodUID != "" {
		entry := r.pods[e.PodUID]
		if entry == nil {
			return nil
		}
		if !entry.fact.HostNetwork && r.byAddress[at.Addr()] != entry {
			return nil // the address has changed hands
		}
		return entry.endpoint(at.Addr(), at.Port(), e.Ready, e.Terminating)
	}
	if entry := r.byAddress[at.Addr()]; entry != nil {
		return entry.endpoint(at.Addr(), at.Port(), e.Ready, e.Terminating)
	}
	return &hauberkv1.DestinationEndpoint{
		Address: at.Addr().String(), Port: uint32(at.Port()),
		Ready: e.Ready, Terminating: e.Terminating, Node: e.Node, Zone: e.Zone,
	}
}
