package firewall

import (
	"net/netip"
	"slices"

	"github.com/hauberk-mesh/hauberk/policy"
)

// uncaptured is the matches of TCP that redirection leaves out.
func uncaptured(c Capture, d policy.Direction) [][]cond {
	ports := func(list []uint16, negate bool) []cond {
		ranges := make([][2]uint16, 0, len(list))
		for _, p := range slices.Compact(slices.Sorted(slices.Values(list))) {
			ranges = append(ranges, [2]uint16{p, p})
		}
		return []cond{{kind: ofPorts, proto: policy.TCP, ranges: ranges, negate: negate}}
	}
	var out [][]cond
	if d == policy.Ingress {
		if len(c.IncludeInboundPorts) > 0 {
			out = append(out, ports(c.IncludeInboundPorts, true))
		}
		if len(c.ExcludeInboundPorts) > 0 {
			out = append(out, ports(c.ExcludeInboundPorts, false))
		}
		return out
	}
	if len(c.ExcludeOutboundPorts) > 0 {
		out = append(out, ports(c.ExcludeOutboundPorts, false))
	}
	for _, p := range c.ExcludeOutboundCIDRs {
		out = append(out, []cond{
			{kind: ofAddress, family: familyOf(p.Addr()), server: true, prefix: p.Masked()}, {kind: ofProtocol, proto: policy.TCP}})
	}
	return out
}

func familyOf(a netip.Addr) string {
	if a.Unmap().Is4() {
		return "ip"
	}
	return "ip6"
}

// namedPortsUsed is the pod's own ports that ingress rules name, so that pods
// which resolve them alike share chains.
func namedPortsUsed(tiers []policy.Tier, d policy.Direction, own []policy.NamedPort) []policy.NamedPort {
	if d != policy.Ingress {
		return nil
	}
	used := map[string]bool{}
	for _, t := range tiers {
		for _, p := range t.Policies {
			for _, r := range p.Rules {
				for _, m := range r.Ports {
					if m.Name != "" {
						used[m.Name] = true
					}
				}
			}
		}
	}
	var out []policy.NamedPort
	for _, n := range own {
		if used[n.Name] {
			out = append(out, n)
		}
	}
	return out
}

// hasUndecided reports whether some rule has conditions that packets can't
// decide: only then do pods with and without a sidecar differ.
func hasUndecided(tiers []policy.Tier) bool {
	for _, t := range tiers {
		for _, p := range t.Policies {
			for i := range p.Rules {
				if undecided(&p.Rules[i]) {
					return true
				}
			}
		}
	}
	return false
}

func undecided(r *policy.Rule) bool {
	return r.L7() || slices.ContainsFunc(r.Peers, func(p policy.Peer) bool { return len(p.Principals) > 0 })
}
