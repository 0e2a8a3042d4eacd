package verdict

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/hauberk-mesh/hauberk/control/compile"
	"github.com/hauberk-mesh/hauberk/policy"
)

// class is ends that no policy of either world tells apart.
type class struct {
	name string
	// members are the same ends in both worlds.
	members []member
	// changed says that what peers see of them differs between the worlds; egress
	// and ingress that the policy of theirs does.
	changed, egress, ingress bool
}

type member struct{ before, after *end }

// pod reports whether the ends are subjects of policy.
func (c *class) pod() bool {
	return c.members[0].before.pod != nil && !c.members[0].before.endpoint.Host
}

// classes are the pods, nodes and addresses that both worlds have, by what
// policies tell apart, and the pods that only one of them has.
func classes(before, after *world) (all []*class, alone []string) {
	prefixes := append(prefixesOf(before), prefixesOf(after)...)
	slices.SortFunc(prefixes, comparePrefixes)
	prefixes = slices.Compact(prefixes)
	all, alone = podClasses(before, after, prefixes)
	all = append(all, nodeClasses(before, after, prefixes)...)
	return append(all, addressClasses(before, after, prefixes)...), alone
}

func comparePrefixes(a, b netip.Prefix) int {
	if c := a.Addr().Compare(b.Addr()); c != 0 {
		return c
	}
	return a.Bits() - b.Bits()
}

func podClasses(before, after *world, prefixes []netip.Prefix) (list []*class, alone []string) {
	bySignature := map[string]*class{}
	named := map[string]int{}
	for _, uid := range before.resources.Pods() {
		p, q := before.pods[uid], after.pods[uid]
		if p == nil || p.Terminating || p.HostNetwork { // peers see host-network pods as their node
			continue
		}
		if q == nil {
			alone = append(alone, workloadName(p)+" will be gone")
			continue
		}
		is, was := after.podSignature(q, prefixes), before.podSignature(p, prefixes)
		egress := [2]string{before.directionDigest(uid, policy.Egress), after.directionDigest(uid, policy.Egress)}
		ingress := [2]string{before.directionDigest(uid, policy.Ingress), after.directionDigest(uid, policy.Ingress)}
		signature := strings.Join([]string{workloadName(p), was, is, egress[0], egress[1], ingress[0], ingress[1]}, "\x00")
		c := bySignature[signature]
		if c == nil {
			c = &class{name: workloadName(p), changed: was != is, egress: egress[0] != egress[1], ingress: ingress[0] != ingress[1]}
			bySignature[signature] = c
			named[c.name]++
			list = append(list, c)
		}
		c.members = append(c.members, member{before.podEnd(p.Name, []*compile.Pod{p}), after.podEnd(q.Name, []*compile.Pod{q})})
	}
	for _, uid := range after.resources.Pods() {
		if p := after.pods[uid]; p != nil && !p.HostNetwork && before.pods[uid] == nil {
			alone = append(alone, workloadName(p)+" is new: its flows are not compared")
		}
	}
	for _, c := range list {
		if named[c.name] > 1 { // pods of one workload that differ
			c.name = fmt.Sprintf("%s (pod %s)", c.name, c.members[0].before.pod.Name)
		}
	}
	slices.SortStableFunc(list, func(a, b *class) int { return strings.Compare(a.name, b.name) })
	slices.Sort(alone)
	return list, slices.Compact(alone)
}

// workloadName is namespace/owner, or namespace/pod of a pod without one.
func workloadName(p *compile.Pod) string {
	if p.OwnerName != "" {
		return p.Namespace + "/" + p.OwnerName
	}
	return p.Namespace + "/" + p.Name
}

// podSignature is what policies and enforcement see of a pod.
func (w *world) podSignature(p *compile.Pod, prefixes []netip.Prefix) string {
	wl, _ := w.resources.Workload(p.UID)
	mode := w.resources.Workloads[p.UID]
	return fmt.Sprint(p.HostNetwork, p.Meshed, p.Capture, p.ServiceAccount, p.Ports, wl.Labels, wl.NamespaceLabels, wl.ServiceAccountLabels,
		mode.GetMtlsMode(), mode.GetPortMtlsModes(), mode.GetSpiffeId(), within(p.Addresses, prefixes))
}

// within says in which of the prefixes each address is.
func within(addrs []netip.Addr, prefixes []netip.Prefix) string {
	var b strings.Builder
	for _, a := range addrs {
		b.WriteString(fmt.Sprint(a.Is4()))
		for i, p := range prefixes {
			if p.Contains(a) {
				fmt.Fprint(&b, " ", i)
			}
		}
		b.WriteByte(';')
	}
	return b.String()
}

// directionDigest is equal for policy that decides alike, whatever states of
// its objects it was made from.
func (w *world) directionDigest(uid string, d policy.Direction) string {
	s := w.resources.SetOf(uid)
	if s == nil {
		return ""
	}
	only := &policy.Set{DefaultAction: s.DefaultAction}
	for _, t := range s.Tiers(d) {
		t.Policies = slices.Clone(t.Policies)
		for i := range t.Policies {
			t.Policies[i].Ref.UID, t.Policies[i].Ref.Generation = "", 0
		}
		only.Ingress = append(only.Ingress, t)
	}
	return only.Digest()
}

func prefixesOf(w *world) []netip.Prefix {
	var all []netip.Prefix
	for _, s := range w.resources.PolicySets {
		for _, d := range []policy.Direction{policy.Ingress, policy.Egress} {
			eachRule(s.Set, d, func(_ *policy.Policy, r *policy.Rule) {
				for i := range r.Peers {
					for _, n := range r.Peers[i].Networks {
						for _, p := range append([]netip.Prefix{n.Prefix}, n.Except...) {
							if p.IsValid() {
								all = append(all, p.Masked())
							}
						}
					}
				}
			})
		}
	}
	return all
}

func eachRule(s *policy.Set, d policy.Direction, do func(*policy.Policy, *policy.Rule)) {
	if s == nil {
		return
	}
	tiers := s.Tiers(d)
	for t := range tiers {
		for p := range tiers[t].Policies {
			for r := range tiers[t].Policies[p].Rules {
				do(&tiers[t].Policies[p], &tiers[t].Policies[p].Rules[r])
			}
		}
	}
}

func nodeClasses(before, after *world, prefixes []netip.Prefix) []*class {
	bySignature := map[string]*class{}
	var list []*class
	for _, n := range before.facts.Nodes {
		i := slices.IndexFunc(after.facts.Nodes, func(m compile.Node) bool { return m.Name == n.Name })
		if i < 0 || len(n.Internal) == 0 || len(after.facts.Nodes[i].Internal) == 0 {
			continue
		}
		signature := within(n.Internal, prefixes)
		c := bySignature[signature]
		if c == nil {
			c = &class{name: "node " + n.Name}
			bySignature[signature] = c
			list = append(list, c)
		}
		at := func(addr netip.Addr) *end {
			return &end{asked: "node/" + n.Name, endpoint: policy.Endpoint{Addr: addr, Host: true, HostOf: n.Name}}
		}
		c.members = append(c.members, member{at(n.Internal[0]), at(after.facts.Nodes[i].Internal[0])})
	}
	for _, c := range list {
		if more := len(c.members) - 1; more > 0 {
			c.name += fmt.Sprintf(" and %d more", more)
		}
	}
	return list
}

// addressClasses are the pieces into which the prefixes of all policies cut
// the addresses outside of the cluster.
func addressClasses(before, after *world, prefixes []netip.Prefix) []*class {
	known := func(a netip.Addr) bool {
		for _, w := range []*world{before, after} {
			e := w.resources.Endpoint(a)
			if e.Host || e.Workload != nil || slices.ContainsFunc(w.facts.Services, func(s compile.Service) bool { return slices.Contains(s.Addresses, a) }) {
				return true
			}
		}
		return false
	}
	var list []*class
	add := func(name string, a netip.Addr) {
		if a.IsValid() {
			e := func() *end { return &end{asked: a.String(), endpoint: policy.Endpoint{Addr: a}} }
			list = append(list, &class{name: name, members: []member{{e(), e()}}})
		}
	}
	families := map[bool]bool{true: true} // IPv4, and IPv6 where there is any
	for _, p := range prefixes {
		families[p.Addr().Is4()] = true
	}
	for _, p := range before.pods {
		for _, a := range p.Addresses {
			families[a.Is4()] = true
		}
	}
	for _, all := range []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")} {
		if !families[all.Addr().Is4()] || slices.Contains(prefixes, all) {
			continue
		}
		name := "world"
		if all.Addr().Is6() {
			name = "world (IPv6)"
		}
		add(name, outside(all, prefixes, known))
	}
	for _, p := range prefixes {
		add(p.String(), outside(p, prefixes, known))
	}
	return list
}

// outside is an address of p that is in none of the prefixes below p and that
// nobody in the cluster has; invalid when there is none.
func outside(p netip.Prefix, prefixes []netip.Prefix, known func(netip.Addr) bool) netip.Addr {
	const tries = 512
	candidates := []netip.Addr{worldAddress, netip.MustParseAddr("2001:db8::1"), p.Addr().Next(), p.Addr()}
	var below []netip.Prefix
	for _, q := range prefixes {
		if q != p && p.Overlaps(q) && q.Bits() > p.Bits() {
			below = append(below, q)
			candidates = append(candidates, lastOf(q).Next())
		}
	}
	for _, a := range candidates {
		for range tries {
			if !a.IsValid() || !p.Contains(a) || slices.ContainsFunc(below, func(q netip.Prefix) bool { return q.Contains(a) }) {
				break
			}
			if !known(a) {
				return a
			}
			a = a.Next()
		}
	}
	return netip.Addr{}
}

func lastOf(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}
