package firewall

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/hauberk-mesh/hauberk/internal/flow"
	"github.com/hauberk-mesh/hauberk/policy"
)

// group renders the tiers of one policy set in one direction.
type group struct {
	r     *renderer
	d     policy.Direction
	set   *policy.Set
	tiers []policy.Tier
	named []policy.NamedPort // the subject's own
}

// render makes one chain a tier: base, base-1, base-2, … A packet enters at the
// first; "return" lets it pass, "drop" does not, Pass goes to the next.
//
// With sidecar, TCP that some completion of its L7 attributes lets pass must
// reach the sidecar; without, only what every completion lets pass may pass.
// Other protocols carry no L7 attributes: rules that need them do not match.
func (g *group) render(base string, sidecar bool) {
	for i := range g.tiers {
		tier := &g.tiers[i]
		c := &chain{}
		next := g.passTarget(base, i)
		selected := false
		for p := range tier.Policies {
			pol := &tier.Policies[p]
			if pol.Mode == policy.Audit {
				continue
			}
			selected = true
			for q := range pol.Rules {
				c.rules = append(c.rules, g.rule(tier, pol, &pol.Rules[q], sidecar, next)...)
			}
		}
		switch {
		case !selected || tier.DefaultAction == policy.Pass:
			c.rules = append(c.rules, g.leave("", next, "tier "+tier.Name+": pass")...)
		default:
			c.rules = append(c.rules, g.r.t.drop("", clip("tier "+tier.Name+": no rule matched of "+enforcing(tier)),
				Drop{g.d, flow.Decision{Tier: tier.Name, Selecting: flow.Selecting(tier), Reason: policy.ReasonTierDefault}})...)
		}
		g.r.t.chains[tierChain(base, i)] = c
	}
	if len(g.tiers) == 0 {
		g.r.t.chains[base] = &chain{rules: g.leave("", g.passTarget(base, -1), "no policy selects the pod")}
	}
}

// leave is what happens to what matches when it leaves a tier for next.
func (g *group) leave(match, next, comment string) []rule {
	if next == "counter drop" {
		return g.r.t.drop(match, comment, Drop{g.d, flow.Decision{Reason: policy.ReasonDefaultDeny}})
	}
	return []rule{{join(match, next), comment}}
}

func tierChain(base string, i int) string {
	if i == 0 {
		return base
	}
	return fmt.Sprintf("%s-%d", base, i)
}

// passTarget is what leaving tier i means.
func (g *group) passTarget(base string, i int) string {
	if i+1 < len(g.tiers) {
		return "goto " + tierChain(base, i+1)
	}
	if g.set.DefaultAction == policy.Allow {
		return "return"
	}
	return "counter drop"
}

// rule renders one rule of a policy: one nftables rule for each combination of
// peer and protocol.
func (g *group) rule(t *policy.Tier, p *policy.Policy, r *policy.Rule, sidecar bool, next string) []rule {
	deny := r.Action != policy.Allow && r.Action != policy.Pass && r.Action != policy.Log
	if r.Action == policy.Log {
		return nil
	}
	invalid := r.Invalid != "" || p.Invalid != ""
	if invalid && !deny {
		return nil
	}
	var out []rule
	for _, m := range g.peers(r, deny, invalid) {
		maybe := r.L7() || m.undecided
		var verdict string
		switch {
		case !maybe && r.Action == policy.Allow:
			verdict = "counter return"
		case !maybe && r.Action == policy.Pass:
			if verdict = next; next != "counter drop" {
				verdict = "counter " + next
			}
		case !maybe:
			verdict = "counter drop"
		case sidecar && !deny:
			// Some completion may be allowed here or in a later tier: the sidecar
			// decides, with the whole of Evaluate.
			verdict = "counter return"
		case sidecar:
			continue // some completions go on
		case r.Action == policy.Allow:
			continue // some completions go on, and nobody could tell which
		default:
			// Deny, or Pass of which nobody could tell whether it applies.
			verdict = "counter drop"
		}
		for _, ports := range g.ports(r.Ports, m, deny) {
			text := m.expr
			if maybe {
				text = join(text, "meta l4proto tcp")
			}
			match := join(text, ports)
			switch {
			case verdict != "counter drop":
				out = append(out, rule{join(match, verdict), comment(p, r)})
			case r.Action == policy.Pass && !maybe:
				out = append(out, g.leave(match, next, comment(p, r))...)
			default:
				out = append(out, g.r.t.drop(match, comment(p, r), g.denies(t, p, r, maybe))...)
			}
		}
	}
	return out
}

// denies is the word on what a rule drops. A Pass of which packets can't tell
// whether it applies drops as well.
func (g *group) denies(t *policy.Tier, p *policy.Policy, r *policy.Rule, maybe bool) Drop {
	d := Drop{g.d, flow.Decision{Tier: t.Name, Policy: p.Ref.String(), Rule: r.Name, Reason: policy.ReasonRule}}
	if maybe {
		d.Reason = "packets can't tell whether the rule matches, and no sidecar sees them"
	}
	return d
}

// comment names the policy and rule in the listing of the kernel's rules.
func comment(p *policy.Policy, r *policy.Rule) string {
	return clip(fmt.Sprintf("%s %s: %s", p.Ref, r.Name, r.Action))
}

// enforcing names the policies of a tier whose silence denies.
func enforcing(t *policy.Tier) string {
	var refs []string
	for i := range t.Policies {
		if t.Policies[i].Mode != policy.Audit {
			refs = append(refs, t.Policies[i].Ref.String())
		}
	}
	return strings.Join(refs, ", ")
}

// clip makes a comment of text: printable, and no longer than nft takes.
func clip(text string) string {
	text = strings.Map(func(c rune) rune {
		if c == '"' || c == '\\' || c < ' ' || c > '~' {
			return '?'
		}
		return c
	}, text)
	if len(text) > 120 {
		text = text[:117] + "..."
	}
	return text
}

func join(a, b string) string {
	if a == "" {
		return b
	}
	if b == "" {
		return a
	}
	return a + " " + b
}

// match is an alternative of a rule's peers as an nftables expression.
type match struct {
	expr      string
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
	side := "saddr"
	if g.d == policy.Egress {
		side = "daddr"
	}
	if !workloads && len(p.Networks) == 0 && len(p.Entities) == 0 {
		return []match{{undecided: true}}
	}
	var out []match
	for _, family := range []string{"ip", "ip6"} {
		field := family + " " + side
		alternatives := []string{""}
		if workloads {
			set, ok := g.peerSet(p.PeerSet, family)
			switch {
			case ok:
				alternatives = and(alternatives, []string{field + " @" + set})
			case deny:
				// Its members are not known: a Deny matches all that it could mean.
				alternatives = and(alternatives, []string{"meta nfproto " + nfproto(family)})
			default:
				continue
			}
		}
		if len(p.Networks) > 0 {
			alternatives = and(alternatives, g.networks(p.Networks, family, field))
		}
		if len(p.Entities) > 0 {
			alternatives = and(alternatives, g.entities(p.Entities, family, field, deny))
		}
		for _, a := range alternatives {
			out = append(out, match{expr: a, family: family, undecided: len(p.Principals) > 0, peerSet: p.PeerSet})
		}
	}
	return out
}

func nfproto(family string) string {
	if family == "ip6" {
		return "ipv6"
	}
	return "ipv4"
}

// and is every combination of left and right.
func and(left, right []string) []string {
	out := make([]string, 0, len(left)*len(right))
	for _, l := range left {
		for _, r := range right {
			out = append(out, join(l, r))
		}
	}
	return out
}

// networks is one comparison whatever the number of networks: with one prefix,
// or with an interval set of what they are without their exceptions.
func (g *group) networks(ns []policy.Network, family, field string) []string {
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
		return []string{"meta nfproto " + nfproto(family)}
	case len(prefixes) == 1:
		return []string{fmt.Sprintf("%s %s", field, prefixes[0])}
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
	s := g.r.t.addSet(name, kind, true)
	for _, k := range keys {
		s.add(k)
	}
	return []string{field + " @" + name}
}

// without is the prefix less its exceptions, as disjoint prefixes.
func without(p netip.Prefix, except []netip.Prefix) []netip.Prefix {
	var inside []netip.Prefix
	for _, e := range except {
		switch {
		case !e.IsValid() || !e.Overlaps(p):
		case e.Bits() <= p.Bits():
			return nil
		default:
			inside = append(inside, e)
		}
	}
	if len(inside) == 0 {
		return []netip.Prefix{p}
	}
	low, high := halves(p)
	return append(without(low, inside), without(high, inside)...)
}

// halves of a prefix that is no single address.
func halves(p netip.Prefix) (low, high netip.Prefix) {
	bits := p.Bits()
	bytes := p.Masked().Addr().AsSlice()
	bytes[bits/8] |= 1 << (7 - bits%8)
	upper, _ := netip.AddrFromSlice(bytes)
	return netip.PrefixFrom(p.Masked().Addr(), bits+1), netip.PrefixFrom(upper, bits+1)
}

// entities tells nodes, pods and the world apart by the addresses of all nodes
// and of all pods. While the pods are not known an Allow of what needs them
// matches nothing, and a Deny all.
func (g *group) entities(es []policy.Entity, family, field string, deny bool) []string {
	hosts := " @" + setHosts4
	if family == "ip6" {
		hosts = " @" + setHosts6
	}
	all := "meta nfproto " + nfproto(family)
	var out []string
	for _, e := range es {
		if e == policy.EntityHost {
			out = append(out, field+hosts)
			continue
		}
		pods, ok := g.peerSet(policy.EveryWorkloadDigest(), family)
		pods = " @" + pods
		switch {
		case e == policy.EntityCluster && ok:
			out = append(out, field+hosts, field+pods)
		case e == policy.EntityCluster && !deny:
			out = append(out, field+hosts)
		case e == policy.EntityWorld && ok:
			out = append(out, field+" !="+hosts+" "+field+" !="+pods)
		case deny:
			out = append(out, all)
		}
	}
	return out
}

// peerSet makes sure that the named set with a PeerSet's addresses of a family
// exists, and returns its name; false when its members are not known.
func (g *group) peerSet(id, family string) (string, bool) {
	members, ok := g.r.state.PeerSets[id]
	if id == "" || !ok {
		return "", false
	}
	name, kind := "peer4-"+id, typeAddr4
	if family == "ip6" {
		name, kind = "peer6-"+id, typeAddr6
	}
	if _, have := g.r.t.sets[name]; have {
		return name, true
	}
	s := g.r.t.addSet(name, kind, false)
	for _, m := range members {
		for _, a := range m.Addresses {
			if familyOf(a) == family {
				s.add(a.Unmap().String())
			}
		}
	}
	return name, true
}

// ports renders a rule's ports for one peer alternative; one empty expression
// when ports do not matter. Number ranges of a protocol become one expression.
func (g *group) ports(ms []policy.PortMatch, peer match, deny bool) []string {
	if len(ms) == 0 {
		return []string{""}
	}
	ranges := map[policy.Protocol][][2]uint16{}
	var order []policy.Protocol
	add := func(p policy.Protocol, from, to uint16) {
		if _, ok := ranges[p]; !ok {
			order = append(order, p)
		}
		ranges[p] = append(ranges[p], [2]uint16{from, to})
	}
	var out []string
	for _, m := range ms {
		switch {
		case m.Protocol == policy.ICMP || m.Protocol == policy.ICMPv6:
			out = append(out, icmp(m))
		case m.Protocol != policy.TCP && m.Protocol != policy.UDP && m.Protocol != policy.SCTP:
			if deny && m.Protocol == policy.AnyProtocol {
				out = append(out, "")
			}
		case m.Name != "" && g.d == policy.Ingress:
			for _, n := range g.named {
				if n.Name == m.Name && n.Protocol == m.Protocol {
					add(m.Protocol, n.Port, n.Port)
				}
			}
		case m.Name != "":
			if expr, ok := g.namedEgress(m, peer, deny); ok {
				out = append(out, expr)
			}
		case m.Port == 0:
			add(m.Protocol, 0, 65535)
		default:
			add(m.Protocol, m.Port, max(m.Port, m.EndPort))
		}
	}
	for _, p := range order {
		proto := strings.ToLower(p.String())
		merged := merge(ranges[p])
		if merged[0] == [2]uint16{0, 65535} {
			out = append(out, "meta l4proto "+proto)
			continue
		}
		parts := make([]string, len(merged))
		for i, r := range merged {
			if parts[i] = fmt.Sprint(r[0]); r[1] != r[0] {
				parts[i] = fmt.Sprintf("%d-%d", r[0], r[1])
			}
		}
		text := parts[0]
		if len(parts) > 1 {
			text = "{ " + strings.Join(parts, ", ") + " }"
		}
		out = append(out, fmt.Sprintf("%s dport %s", proto, text))
	}
	return out
}

func icmp(m policy.PortMatch) string {
	proto, l4 := "icmp", "icmp"
	if m.Protocol == policy.ICMPv6 {
		proto, l4 = "icmpv6", "ipv6-icmp"
	}
	if m.ICMPType == nil {
		return "meta l4proto " + l4
	}
	text := fmt.Sprintf("%s type %d", proto, *m.ICMPType)
	if m.ICMPCode != nil {
		text += fmt.Sprintf(" %s code %d", proto, *m.ICMPCode)
	}
	return text
}

// namedEgress resolves a named port for each destination pod of the peer: a
// set of address and port. Without a peer set no pod is known: an Allow
// matches nothing, a Deny the whole protocol.
func (g *group) namedEgress(m policy.PortMatch, peer match, deny bool) (string, bool) {
	proto := strings.ToLower(m.Protocol.String())
	members, ok := g.r.state.PeerSets[peer.peerSet]
	if !ok || peer.family == "" {
		return "meta l4proto " + proto, deny
	}
	version, kind := "4", typeAddr4
	if peer.family == "ip6" {
		version, kind = "6", typeAddr6
	}
	name := fmt.Sprintf("port%s-%s-%s-%s", version, peer.peerSet, proto, m.Name)
	s := g.r.t.addSet(name, kind+" . inet_service", false)
	for _, member := range members {
		for _, n := range member.NamedPorts {
			if n.Name != m.Name || n.Protocol != m.Protocol {
				continue
			}
			for _, a := range member.Addresses {
				if familyOf(a) == peer.family {
					s.add(a.Unmap().String(), fmt.Sprint(n.Port))
				}
			}
		}
	}
	return fmt.Sprintf("%s daddr . %s dport @%s", peer.family, proto, name), true
}

// merge is the union of ranges, sorted and without overlaps.
func merge(rs [][2]uint16) [][2]uint16 {
	slices.SortFunc(rs, func(a, b [2]uint16) int { return int(a[0]) - int(b[0]) })
	out := [][2]uint16{rs[0]}
	for _, r := range rs[1:] {
		last := &out[len(out)-1]
		if int(r[0]) <= int(last[1])+1 {
			last[1] = max(last[1], r[1])
		} else {
			out = append(out, r)
		}
	}
	return out
}
