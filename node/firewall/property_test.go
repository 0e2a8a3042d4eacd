package firewall

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/hauberk-mesh/hauberk/policy"
	"github.com/hauberk-mesh/hauberk/policy/policytest"
)

// machine interprets the rule texts that render writes. It knows just their
// grammar: a text that it does not know fails the test.
type machine struct {
	t *table
	p packet
	f func(format string, args ...any)
	// back means that the packet is the reply to p.
	back bool
}

// passes runs a chain that is entered by a jump; "return" passes.
func (m machine) passes(chain string) bool {
	c := m.t.chains[chain]
	if c == nil {
		m.f("chain %s does not exist", chain)
	}
	for _, r := range c.lines(true) {
		verdict, ok := m.rule(strings.Fields(r.text))
		switch {
		case !ok:
		case verdict == "return":
			return true
		case verdict == "drop":
			return false
		default:
			return m.passes(strings.TrimPrefix(verdict, "goto "))
		}
	}
	return true
}

func (m machine) rule(w []string) (string, bool) {
	for len(w) > 0 {
		switch {
		case w[0] == "counter":
			w = w[1:]
			continue
		case w[0] == "limit":
			// What is limited is only told of; see TestEveryDropIsTold.
			return "", false
		case w[0] == "return" || w[0] == "drop":
			return w[0], true
		case w[0] == "goto":
			return "goto " + w[1], true
		}
		var field []string
		for len(w) > 0 && len(field) < 2 {
			field, w = append(field, w[0]), w[1:]
		}
		for len(w) > 1 && w[0] == "." { // concatenation
			field, w = append(field, w[1], w[2]), w[3:]
		}
		negate := w[0] == "!="
		if negate {
			w = w[1:]
		}
		var values []string
		if w[0] == "{" {
			end := slices.Index(w, "}")
			for _, v := range w[1:end] {
				values = append(values, strings.TrimSuffix(v, ","))
			}
			w = w[end+1:]
		} else {
			values, w = w[:1], w[1:]
		}
		if m.match(field, values, negate) {
			continue
		}
		return "", false
	}
	m.f("a rule without a verdict")
	return "", false
}

// match compares one field. A field that the packet does not have never
// matches, negated or not: nft adds the protocol as a condition.
func (m machine) match(field, values []string, negate bool) bool {
	key, ok := "", true
	for i := 0; i < len(field); i += 2 {
		part, has := m.field(field[i], field[i+1])
		ok = ok && has
		if key != "" {
			key += " . "
		}
		key += part
	}
	if !ok {
		return false
	}
	found := slices.ContainsFunc(values, func(v string) bool { return m.equal(key, v) })
	return found != negate
}

func (m machine) field(a, b string) (string, bool) {
	src, dst, kind := m.p.src, m.p.dst, int(m.p.kind)
	port := "dport"
	if m.back {
		src, dst, port = dst, src, "sport"
		var ok bool
		if kind, ok = answers[m.p.proto][kind]; !ok {
			kind = 255 // the kernel takes nothing for a reply to it
		}
	}
	tcp, udp, sctp := m.p.proto == policy.TCP, m.p.proto == policy.UDP, m.p.proto == policy.SCTP
	switch a + " " + b {
	case "ip saddr":
		return src.String(), src.Is4()
	case "ip daddr":
		return dst.String(), dst.Is4()
	case "ip6 saddr":
		return src.String(), src.Is6()
	case "ip6 daddr":
		return dst.String(), dst.Is6()
	case "meta nfproto":
		return map[bool]string{true: "ipv4", false: "ipv6"}[src.Is4()], true
	case "meta l4proto":
		return map[policy.Protocol]string{policy.TCP: "tcp", policy.UDP: "udp", policy.SCTP: "sctp", policy.ICMP: "icmp", policy.ICMPv6: "ipv6-icmp"}[m.p.proto], true
	case "tcp " + port:
		return fmt.Sprint(m.p.port), tcp
	case "udp " + port:
		return fmt.Sprint(m.p.port), udp
	case "sctp " + port:
		return fmt.Sprint(m.p.port), sctp
	case "icmp type":
		return fmt.Sprint(kind), m.p.proto == policy.ICMP
	case "icmp code":
		return fmt.Sprint(m.p.code), m.p.proto == policy.ICMP
	case "icmpv6 type":
		return fmt.Sprint(kind), m.p.proto == policy.ICMPv6
	case "icmpv6 code":
		return fmt.Sprint(m.p.code), m.p.proto == policy.ICMPv6
	}
	m.f("unknown field %q %q", a, b)
	return "", false
}

func (m machine) equal(got, want string) bool {
	if name, ok := strings.CutPrefix(want, "@"); ok {
		s := m.t.sets[name]
		if s == nil {
			m.f("set %s does not exist", name)
		}
		for _, k := range s.less(&set{}) {
			if k == got || s.prefixes != nil && netip.MustParsePrefix(k).Contains(netip.MustParseAddr(got)) {
				return true
			}
		}
		return false
	}
	if p, err := netip.ParsePrefix(want); err == nil {
		return p.Contains(netip.MustParseAddr(got))
	}
	if from, to, ok := strings.Cut(want, "-"); ok && from != "ipv6" {
		low, _ := strconv.Atoi(from)
		high, _ := strconv.Atoi(to)
		n, _ := strconv.Atoi(got)
		return low <= n && n <= high
	}
	return got == want
}

// TestRenderingIsTheProjection compares the rendered rules with policy.Project
// for random sets and flows: for a pod with a sidecar the kernel never drops
// what some completion allows, and for one without it never passes what some
// completion denies. Only a Pass that packets can't decide may make it more
// careful than the projection.
func TestRenderingIsTheProjection(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		set := policytest.Set().Draw(t, "set")
		set.ID = "set"
		selectNamedPorts(set.Egress)
		pods := make([]*policy.Workload, 4)
		addrs := [][]netip.Addr{}
		state := State{PeerSets: map[string][]Member{}}
		var every []Member
		for i := range pods {
			pods[i] = policytest.Workload().Draw(t, "workload")
			pods[i].UID = fmt.Sprint("uid-", i)
			own := []netip.Addr{netip.AddrFrom4([4]byte{10, 0, 1, byte(i + 1)}), netip.MustParseAddr(fmt.Sprintf("fd00::%d", i+1))}
			addrs = append(addrs, own)
			every = append(every, Member{Addresses: own})
		}
		host := []netip.Addr{netip.MustParseAddr("192.0.2.9"), netip.MustParseAddr("2001:db8::9")}
		world := []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}
		state.Hosts = host
		state.PeerSets[policy.EveryWorkloadDigest()] = every
		for _, tiers := range [][]policy.Tier{set.Ingress, set.Egress} {
			eachPeer(tiers, func(p *policy.Peer) {
				if !p.SelectsWorkloads() {
					return
				}
				p.PeerSet = p.SelectorDigest()
				members := []Member{}
				for i, w := range pods {
					if p.Selects(w, false) {
						members = append(members, Member{Addresses: addrs[i], NamedPorts: w.NamedPorts})
					}
				}
				state.PeerSets[p.PeerSet] = members
			})
		}

		d := rapid.SampledFrom([]policy.Direction{policy.Ingress, policy.Egress}).Draw(t, "direction")
		family := rapid.IntRange(0, 1).Draw(t, "family")
		subject := policy.Endpoint{Addr: addrs[0][family], Workload: pods[0]}
		var peer policy.Endpoint
		switch n := rapid.IntRange(1, 5).Draw(t, "peer"); n {
		case 4:
			peer = policy.Endpoint{Addr: host[family], Host: true, HostOf: "node-elsewhere"}
		case 5:
			peer = policy.Endpoint{Addr: world[family]}
		default:
			peer = policy.Endpoint{Addr: addrs[n][family], Workload: pods[n]}
		}
		icmp := policy.ICMP
		if family == 1 {
			icmp = policy.ICMPv6
		}
		f := &policy.Flow{Source: peer, Destination: subject,
			Protocol: rapid.SampledFrom([]policy.Protocol{policy.TCP, policy.TCP, policy.UDP, policy.SCTP, icmp}).Draw(t, "protocol")}
		if d == policy.Egress {
			f.Source, f.Destination = subject, peer
		}
		p := packet{src: f.Source.Addr, dst: f.Destination.Addr, proto: f.Protocol}
		if f.Protocol == icmp {
			f.ICMPType, f.ICMPCode = uint8(rapid.IntRange(0, 9).Draw(t, "type")), uint8(rapid.IntRange(0, 1).Draw(t, "code"))
			p.kind, p.code = f.ICMPType, f.ICMPCode
		} else {
			f.Port = uint16(rapid.SampledFrom([]int{80, 81, 85, 90, 8080}).Draw(t, "port"))
			p.port = f.Port
		}

		want := set.Project(d, f)
		for _, meshed := range []bool{false, true} {
			pod := Pod{UID: pods[0].UID, ContainerID: "c", Addresses: addrs[0], Meshed: meshed, PolicySet: set, NamedPorts: pods[0].NamedPorts}
			r := renderer{logs: true}
			table := r.render([]Pod{pod}, &state)
			name := map[policy.Direction][2]string{policy.Ingress: {mapTo4, mapTo6}, policy.Egress: {mapFrom4, mapFrom6}}[d][family]
			passed := true
			if chain, ok := table.jump(name, subject.Addr); ok {
				passed = machine{t: table, p: p, f: t.Fatalf}.passes(chain)
				if got := table.passes(chain, &p); got != passed {
					t.Fatalf("flow %+v: the rules as values pass it %t, as nft reads them %t", p, got, passed)
				}
			}
			// What the kernel takes for a reply: any packet but ICMP that asks nothing.
			if answers[f.Protocol] == nil || answers[f.Protocol][int(p.kind)] != 0 || p.kind == 8 {
				replied := true
				if chain, ok := table.jump(backChain(name), subject.Addr); ok {
					replied = machine{t: table, p: p, f: t.Fatalf, back: true}.passes(chain)
				}
				if replied != passed {
					t.Fatalf("flow %+v passes %t, its replies %t", p, passed, replied)
				}
			}
			if again := r.render([]Pod{pod}, &state); len(changed(again.chains, table.chains)) != 0 {
				t.Fatalf("chains %v were rendered anew although nothing changed", changed(again.chains, table.chains))
			}
			careful := undecidedPass(set.Tiers(d))
			switch {
			case meshed && !passed && want != policy.AllDenied:
				t.Fatalf("with a sidecar the kernel drops %+v; the projection is %s", p, want)
			case meshed && passed && want == policy.AllDenied && !careful:
				t.Fatalf("with a sidecar the kernel passes %+v; the projection is %s", p, want)
			case !meshed && passed && want != policy.AllAllowed:
				t.Fatalf("without a sidecar the kernel passes %+v; the projection is %s", p, want)
			case !meshed && !passed && want == policy.AllAllowed && !careful:
				t.Fatalf("without a sidecar the kernel drops %+v; the projection is %s", p, want)
			}
		}
	})
}

// selectNamedPorts is what the compiler does: a named port of an egress rule
// means a port of a workload, so its peers select workloads.
func selectNamedPorts(tiers []policy.Tier) {
	all := policy.Peer{NamespaceSelector: &policy.Selector{}}
	for t := range tiers {
		for p := range tiers[t].Policies {
			rules := tiers[t].Policies[p].Rules
			for r := range rules {
				if !slices.ContainsFunc(rules[r].Ports, func(m policy.PortMatch) bool { return m.Name != "" }) {
					continue
				}
				if rules[r].AnyPeer || len(rules[r].Peers) == 0 {
					rules[r].AnyPeer, rules[r].Peers = false, []policy.Peer{all}
				}
				for i := range rules[r].Peers {
					if !rules[r].Peers[i].SelectsWorkloads() {
						rules[r].Peers[i].NamespaceSelector = all.NamespaceSelector
					}
				}
			}
		}
	}
}

func eachPeer(tiers []policy.Tier, f func(*policy.Peer)) {
	for t := range tiers {
		for p := range tiers[t].Policies {
			for r := range tiers[t].Policies[p].Rules {
				for i := range tiers[t].Policies[p].Rules[r].Peers {
					f(&tiers[t].Policies[p].Rules[r].Peers[i])
				}
			}
		}
	}
}

// undecidedPass reports whether a Pass has conditions that packets can't decide.
func undecidedPass(tiers []policy.Tier) bool {
	for _, t := range tiers {
		for _, p := range t.Policies {
			for i := range p.Rules {
				if p.Rules[i].Action == policy.Pass && undecided(&p.Rules[i]) {
					return true
				}
			}
		}
	}
	return false
}
