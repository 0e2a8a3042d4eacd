package firewall

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/hauberk-mesh/hauberk/policy"
)

// match is an alternative of a rule's peers.
type match struct {
	conds     []cond
	family    string // "ip", "ip6", or empty for both
	undecided bool   // principals: packets cannot tell
	peerSet   string // for named ports of egress rules
}

func (g *group) peers(r *policy.Rule, deny, invalid bool) []match {
	if r.AnyPeer || invalid && len(r.Peers) == 0 {
		return []match{{}}
	}
	var out []match
	for i := range r.Peers {
		out = append(out, g.peer(&r.Peers[i], deny, invalid)...)
	}
	return out
}

// peer renders the fields of one peer, ANDed, for each family.
func (g *group) peer(p *policy.Peer, deny, invalid bool) []match {
	workloads := p.SelectsWorkloads()
	if !workloads && len(p.Principals) == 0 && len(p.Networks) == 0 && len(p.Entities) == 0 {
		if invalid && deny {
			return []match{{}}
		}
		return nil
	}
	if !workloads && len(p.Networks) == 0 && len(p.Entities) == 0 {
		return []match{{undecided: true}}
	}
	var out []match
	for _, family := range []string{"ip", "ip6"} {
		alternatives := [][]cond{nil}
		if workloads {
			set, ok := g.peerSet(p.PeerSet, family)
			switch {
			case ok:
				alternatives = and(alternatives, [][]cond{{g.address(family, set, false)}})
			case deny:
				// Its members are not known: a Deny matches all that it could mean.
				alternatives = and(alternatives, [][]cond{{{kind: ofFamily, family: family}}})
			default:
				continue
			}
		}
		if len(p.Networks) > 0 {
			alternatives = and(alternatives, g.networks(p.Networks, family))
		}
		if len(p.Entities) > 0 {
			alternatives = and(alternatives, g.entities(p.Entities, family, deny))
		}
		for _, a := range alternatives {
			out = append(out, match{conds: a, family: family, undecided: len(p.Principals) > 0, peerSet: p.PeerSet})
		}
	}
	return out
}

// address is that the peer is in a set, or is not.
func (g *group) address(family, set string, negate bool) cond {
	return cond{kind: ofAddress, family: family, server: g.d == policy.Egress, set: set, negate: negate}
}

func nfproto(family string) string {
	if family == "ip6" {
		return "ipv6"
	}
	return "ipv4"
}

// and is every combination of left and right.
func and(left, right [][]cond) [][]cond {
	out := make([][]cond, 0, len(left)*len(right))
	for _, l := range left {
		for _, r := range right {
			out = append(out, slices.Concat(l, r))
		}
	}
	return out
}

// networks is one comparison whatever the number of networks: with one prefix,
// or with an interval set of what they are without their exceptions.
func (g *group) networks(ns []policy.Network, family string) [][]cond {
	var prefixes []netip.Prefix
	for _, n := range ns {
		if n.Prefix.IsValid() && familyOf(n.Prefix.Addr()) == family {
			prefixes = append(prefixes, without(n.Prefix.Masked(), n.Except)...)
		}
	}
	switch prefixes = disjoint(prefixes); {
	case len(prefixes) == 0:
		return nil
	case len(prefixes) == 1 && prefixes[0].Bits() == 0:
		return [][]cond{{{kind: ofFamily, family: family}}}
	case len(prefixes) == 1:
		return [][]cond{{{kind: ofAddress, family: family, server: g.d == policy.Egress, prefix: prefixes[0]}}}
	}
	keys := make([]string, len(prefixes))
	for i, p := range prefixes {
		keys[i] = p.String()
	}
	slices.Sort(keys)
	sum := sha256.Sum256([]byte(strings.Join(keys, ",")))
	name, kind := "net4-", typeAddr4
	if family == "ip6" {
		name, kind = "net6-", typeAddr6
	}
	name += hex.EncodeToString(sum[:10])
	g.nets[name] = &set{kind: kind, prefixes: prefixes}
	return [][]cond{{g.address(family, name, false)}}
}

// entities tells nodes, pods and the world apart by the addresses of all nodes
// and of all pods. While the pods are not known an Allow of what needs them
// matches nothing, and a Deny all.
func (g *group) entities(es []policy.Entity, family string, deny bool) [][]cond {
	hosts := setHosts4
	if family == "ip6" {
		hosts = setHosts6
	}
	var out [][]cond
	for _, e := range es {
		if e == policy.EntityHost {
			out = append(out, []cond{g.address(family, hosts, false)})
			continue
		}
		pods, ok := g.peerSet(policy.EveryWorkloadDigest(), family)
		switch {
		case e == policy.EntityCluster && ok:
			out = append(out, []cond{g.address(family, hosts, false)}, []cond{g.address(family, pods, false)})
		case e == policy.EntityCluster && !deny:
			out = append(out, []cond{g.address(family, hosts, false)})
		case e == policy.EntityWorld && ok:
			out = append(out, []cond{g.address(family, hosts, true), g.address(family, pods, true)})
		case deny:
			out = append(out, []cond{{kind: ofFamily, family: family}})
		}
	}
	return out
}

// peerSet is the name of the set with a PeerSet's addresses of a family; false
// when its members are not known.
func (g *group) peerSet(id, family string) (string, bool) {
	if !g.knows(id) {
		return "", false
	}
	name := "peer4-" + id
	if family == "ip6" {
		name = "peer6-" + id
	}
	g.refs[name] = members{peerSet: id, family: family}
	return name, true
}

// knows reports whether a PeerSet's members are known, and remembers that the
// rendering depends on that.
func (g *group) knows(id string) bool {
	_, ok := g.r.state.PeerSets[id]
	ok = ok && id != ""
	g.known[id] = ok
	return ok
}

// ports renders a rule's ports for one peer alternative; one empty alternative
// when ports do not matter. Number ranges of a protocol become one condition.
func (g *group) ports(ms []policy.PortMatch, peer match, deny bool) [][]cond {
	if len(ms) == 0 {
		return [][]cond{nil}
	}
	ranges := map[policy.Protocol][][2]uint16{}
	var order []policy.Protocol
	add := func(p policy.Protocol, from, to uint16) {
		if _, ok := ranges[p]; !ok {
			order = append(order, p)
		}
		ranges[p] = append(ranges[p], [2]uint16{from, to})
	}
	var out [][]cond
	for _, m := range ms {
		switch {
		case m.Protocol == policy.ICMP || m.Protocol == policy.ICMPv6:
			out = append(out, []cond{icmpMatch(m)})
		case m.Protocol != policy.TCP && m.Protocol != policy.UDP && m.Protocol != policy.SCTP:
			if deny && m.Protocol == policy.AnyProtocol {
				out = append(out, nil)
			}
		case m.Name != "" && g.d == policy.Ingress:
			for _, n := range g.named {
				if n.Name == m.Name && n.Protocol == m.Protocol {
					add(m.Protocol, n.Port, n.Port)
				}
			}
		case m.Name != "":
			if c, ok := g.namedEgress(m, peer, deny); ok {
				out = append(out, []cond{c})
			}
		case m.Port == 0:
			add(m.Protocol, 0, 65535)
		default:
			add(m.Protocol, m.Port, max(m.Port, m.EndPort))
		}
	}
	for _, p := range order {
		merged := merge(ranges[p])
		if merged[0] == [2]uint16{0, 65535} {
			out = append(out, []cond{{kind: ofProtocol, proto: p}})
			continue
		}
		out = append(out, []cond{{kind: ofPorts, proto: p, ranges: merged}})
	}
	return out
}

func icmpMatch(m policy.PortMatch) cond {
	if m.ICMPType == nil {
		return cond{kind: ofProtocol, proto: m.Protocol}
	}
	c := cond{kind: ofICMP, proto: m.Protocol, icmp: [2]int{int(*m.ICMPType), -1}}
	if m.ICMPCode != nil {
		c.icmp[1] = int(*m.ICMPCode)
	}
	return c
}

// namedEgress resolves a named port for each destination pod of the peer: a
// set of address and port. Without a peer set no pod is known: an Allow
// matches nothing, a Deny the whole protocol.
func (g *group) namedEgress(m policy.PortMatch, peer match, deny bool) (cond, bool) {
	if peer.family == "" || !g.knows(peer.peerSet) {
		return cond{kind: ofProtocol, proto: m.Protocol}, deny
	}
	version := "4"
	if peer.family == "ip6" {
		version = "6"
	}
	name := fmt.Sprintf("port%s-%s-%s-%s", version, peer.peerSet, protoName(m.Protocol), m.Name)
	g.refs[name] = members{peerSet: peer.peerSet, family: peer.family, port: m.Name, proto: m.Protocol}
	return cond{kind: ofAddrPort, family: peer.family, server: true, proto: m.Protocol, set: name}, true
}

// members is what of a PeerSet is in a named set: addresses of a family, or
// addresses and numbers of a named port.
type members struct {
	peerSet, family string
	port            string
	proto           policy.Protocol
}

func (m members) collect(of []Member) *set {
	s := &set{kind: typeAddr4}
	if m.family == "ip6" {
		s.kind = typeAddr6
	}
	if m.port != "" {
		s.kind += " . inet_service"
	}
	for i := range of {
		for _, a := range of[i].Addresses {
			if familyOf(a) != m.family {
				continue
			}
			if m.port == "" {
				s.addrs = append(s.addrs, a.Unmap())
				continue
			}
			for _, n := range of[i].NamedPorts {
				if n.Name == m.port && n.Protocol == m.proto {
					s.ports = append(s.ports, netip.AddrPortFrom(a.Unmap(), n.Port))
				}
			}
		}
	}
	slices.SortFunc(s.addrs, netip.Addr.Compare)
	slices.SortFunc(s.ports, netip.AddrPort.Compare)
	s.addrs, s.ports = slices.Compact(s.addrs), slices.Compact(s.ports)
	return s
}
