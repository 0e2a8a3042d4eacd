package firewall

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"sigs.k8s.io/knftables"

	"github.com/hauberk-mesh/hauberk/internal/flow"
	"github.com/hauberk-mesh/hauberk/internal/names"
	"github.com/hauberk-mesh/hauberk/policy"
)

// Names inside the table.
const (
	chainForward = "forward" // pod to anything beyond the node, and anything to a pod
	chainInput   = "input"   // pod to the node itself
	chainSource  = "source"  // what a pod's link may send
	chainClosed  = "closed"  // to a pod whose policy is not known; chainShut from one
	chainShut    = "shut"

	setSelf4, setSelf6   = "self4", "self6"         // address . the same address
	setLinks             = "links"                  // host interfaces of pods
	setLinkAddr4         = "link-addr4"             // interface . address
	setLinkAddr6         = "link-addr6"             // interface . address
	mapFrom4, mapFrom6   = "from-pod4", "from-pod6" // source address to egress chain
	mapTo4, mapTo6       = "to-pod4", "to-pod6"     // destination address to ingress chain
	mapLink              = "from-link"              // host interface to egress chain
	setOwn4, setOwn6     = "mesh4", "mesh6"         // the mesh's own pods . port
	setHosts4, setHosts6 = "hosts4", "hosts6"       // addresses of nodes
	typeAddr4, typeAddr6 = "ipv4_addr", "ipv6_addr" //
	pairAddr4, pairAddr6 = "ipv4_addr . ipv4_addr", "ipv6_addr . ipv6_addr"
)

// forwardPriority is before kube-proxy's and other filters at 0, so that a
// denied packet costs them nothing; it is after destination NAT, which
// happens in an earlier hook, so that ports are those of the pods.
const forwardPriority = knftables.BaseChainPriority("-5")

// renderer builds one table.
type renderer struct {
	t       *table
	state   *State
	control netip.AddrPort
	done    map[string]bool             // chain groups rendered
	sets    map[*policy.Set]*policy.Set // resolved
}

// resolved is a set with only what decides: no audit policies, no dead rules.
func (r *renderer) resolved(s *policy.Set) *policy.Set {
	out, ok := r.sets[s]
	if !ok {
		out = s.Resolve()
		r.sets[s] = out
	}
	return out
}

// render is the table for pods under state.
func render(pods []Pod, state *State, control netip.AddrPort) *table {
	r := &renderer{t: newTable(), state: state, control: control, done: map[string]bool{}, sets: map[*policy.Set]*policy.Set{}}
	r.base()
	for i := range pods {
		r.pod(&pods[i])
	}
	return r.t
}

// base is the part that does not depend on pods.
func (r *renderer) base() {
	t := r.t
	for name, kind := range map[string]string{
		setSelf4: pairAddr4, setSelf6: pairAddr6, setLinks: "ifname",
		setLinkAddr4: "ifname . ipv4_addr", setLinkAddr6: "ifname . ipv6_addr",
	} {
		t.addSet(name, kind, false)
	}
	hosts4, hosts6 := t.addSet(setHosts4, typeAddr4, false), t.addSet(setHosts6, typeAddr6, false)
	for _, a := range r.state.Hosts {
		if a = a.Unmap(); a.Is4() {
			hosts4.add(a.String())
		} else {
			hosts6.add(a.String())
		}
	}
	for name, kind := range map[string]string{mapFrom4: typeAddr4, mapTo4: typeAddr4, mapFrom6: typeAddr6, mapTo6: typeAddr6, mapLink: "ifname"} {
		t.maps[name] = &verdicts{kind: kind, values: map[string]string{}}
	}

	unknown := flow.Decision{Reason: policy.ReasonNoSet}
	t.chains[chainClosed] = &chain{rules: t.drop("", "policy not known: denied", Drop{policy.Ingress, unknown})}
	t.chains[chainShut] = &chain{rules: t.drop("", "policy not known: denied", Drop{policy.Egress, unknown})}
	// Replies to what was let through, and ICMP errors about it, pass. Packets in
	// the original direction are judged each time: a change of policy cuts the
	// flows that it no longer allows.
	established := []rule{
		{"ct direction reply ct state established,related accept", ""},
		{"ct state related accept", ""},
	}
	mesh := r.meshItself()
	from := []rule{
		{"ip saddr vmap @" + mapFrom4, ""},
		{"ip6 saddr vmap @" + mapFrom6, ""},
	}
	self := []rule{
		{"ip saddr . ip daddr @" + setSelf4 + " accept", "a pod talking to itself is not policed"},
		{"ip6 saddr . ip6 daddr @" + setSelf6 + " accept", "a pod talking to itself is not policed"},
	}
	t.chains[chainForward] = &chain{hook: knftables.ForwardHook, priority: forwardPriority,
		rules: slices.Concat(established, self, mesh, from, []rule{
			{"ip daddr vmap @" + mapTo4, ""},
			{"ip6 daddr vmap @" + mapTo6, ""},
		})}
	// Neighbour discovery keeps the pod's own link working (RFC 4861); it never
	// leaves the link.
	t.chains[chainInput] = &chain{hook: knftables.InputHook, priority: forwardPriority,
		rules: slices.Concat(established, []rule{
			{"icmpv6 type { nd-router-solicit, nd-neighbor-solicit, nd-neighbor-advert } ip6 hoplimit 255 accept", ""},
			// What a pod sends from its link's own address is known by the link.
			{"ip6 saddr fe80::/10 iifname vmap @" + mapLink, ""},
		}, from)}
	spoofed := Drop{policy.Egress, flow.Decision{Reason: "the source is not the pod's own address"}}
	t.chains[chainSource] = &chain{hook: knftables.PreroutingHook, priority: knftables.BaseChainPriority("-310"),
		rules: slices.Concat(
			[]rule{{"iifname != @" + setLinks + " return", ""}},
			t.drop("meta nfproto ipv4 iifname . ip saddr != @"+setLinkAddr4, "not the pod's own address", spoofed),
			[]rule{{"ip6 saddr { ::, fe80::/10 } return", ""}},
			t.drop("meta nfproto ipv6 iifname . ip6 saddr != @"+setLinkAddr6, "not the pod's own address", spoofed),
		)}
}

// meshItself is what no policy may cut, so that a policy can be taken back:
// pods reach the control plane at the address that they dial, and the mesh's
// own pods are reached at the ports that it serves with identities.
func (r *renderer) meshItself() []rule {
	r.t.addSet(setOwn4, typeAddr4+" . inet_service", false)
	r.t.addSet(setOwn6, typeAddr6+" . inet_service", false)
	out := []rule{
		{"ip daddr . tcp dport @" + setOwn4 + " accept", "the mesh's own ports"},
		{"ip6 daddr . tcp dport @" + setOwn6 + " accept", "the mesh's own ports"},
	}
	if r.control.IsValid() {
		a := r.control.Addr().Unmap()
		out = append(out, rule{fmt.Sprintf("meta nfproto %s meta l4proto tcp ct original %s daddr %s ct original proto-dst %d accept",
			nfproto(familyOf(a)), familyOf(a), a, r.control.Port()), "the control plane"})
	}
	return out
}

// pod renders one pod: its addresses, its link, and chains for its policy.
func (r *renderer) pod(p *Pod) {
	in, out := chainClosed, chainShut
	if p.PolicySet != nil {
		in, out = r.group(p, policy.Ingress), r.group(p, policy.Egress)
	} else if p.Bootstrap {
		in, out = "", ""
	}
	t := r.t
	if p.HostInterface != "" {
		t.sets[setLinks].add(p.HostInterface)
		if out != "" {
			t.maps[mapLink].values[p.HostInterface] = "jump " + out
		}
	}
	for _, a := range p.Addresses {
		a = a.Unmap()
		text := a.String()
		from, to, self, link, own := mapFrom4, mapTo4, setSelf4, setLinkAddr4, setOwn4
		if a.Is6() {
			from, to, self, link, own = mapFrom6, mapTo6, setSelf6, setLinkAddr6, setOwn6
		}
		// A pod has as many self pairs as it has pairs of addresses of a family;
		// pods have one each, and of several each talks to itself by itself.
		t.sets[self].add(text, text)
		if p.HostInterface != "" {
			t.sets[link].add(p.HostInterface, text)
		}
		if p.Namespace == names.Namespace {
			for _, port := range []int{names.PortControl, names.PortWebhook} {
				t.sets[own].add(text, fmt.Sprint(port))
			}
		}
		if out != "" {
			t.maps[from].values[text] = "jump " + out
		}
		if in != "" {
			t.maps[to].values[text] = "jump " + in
		}
	}
}

// group renders the chains of a pod's policy in one direction, shared by all
// pods for which they are the same, and returns the first one's name; empty
// when nothing is restricted.
func (r *renderer) group(p *Pod, d policy.Direction) string {
	set := r.resolved(p.PolicySet)
	tiers := set.Tiers(d)
	if len(tiers) == 0 && set.DefaultAction == policy.Allow {
		return ""
	}
	name := "in-"
	if d == policy.Egress {
		name = "out-"
	}
	ports := namedPortsUsed(tiers, d, p.NamedPorts)
	open := p.Meshed && hasUndecided(tiers)
	key := fmt.Sprintf("%s|%v|%v", p.PolicySet.ID, open, ports)
	if open {
		key += fmt.Sprintf("|%v", p.Capture)
	}
	sum := sha256.Sum256([]byte(key))
	name += hex.EncodeToString(sum[:10])
	if r.done[name] {
		return name
	}
	r.done[name] = true

	g := &group{r: r, d: d, named: p.NamedPorts, tiers: tiers, set: set}
	if !open {
		g.render(name, false)
		return name
	}
	// What the sidecar does not see, the kernel decides alone.
	g.render(name+"-alone", false)
	var rules []rule
	for _, match := range uncaptured(p.Capture, d) {
		rules = append(rules, rule{match + " goto " + name + "-alone", "not captured: no sidecar sees it"})
	}
	g.render(name+"-sidecar", true)
	rules = append(rules, rule{"goto " + name + "-sidecar", ""})
	r.t.chains[name] = &chain{rules: rules}
	return name
}

// uncaptured is the matches of TCP that redirection leaves out.
func uncaptured(c Capture, d policy.Direction) []string {
	var out []string
	if d == policy.Ingress {
		if len(c.IncludeInboundPorts) > 0 {
			out = append(out, "tcp dport != "+portList(c.IncludeInboundPorts))
		}
		if len(c.ExcludeInboundPorts) > 0 {
			out = append(out, "tcp dport "+portList(c.ExcludeInboundPorts))
		}
		return out
	}
	if len(c.ExcludeOutboundPorts) > 0 {
		out = append(out, "tcp dport "+portList(c.ExcludeOutboundPorts))
	}
	for _, p := range c.ExcludeOutboundCIDRs {
		out = append(out, fmt.Sprintf("%s daddr %s meta l4proto tcp", familyOf(p.Addr()), p.Masked()))
	}
	return out
}

func portList(ports []uint16) string {
	ports = slices.Compact(slices.Sorted(slices.Values(ports)))
	text := make([]string, len(ports))
	for i, p := range ports {
		text[i] = fmt.Sprint(p)
	}
	return "{ " + strings.Join(text, ", ") + " }"
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

// disjoint is the prefixes without those that others contain: interval sets
// refuse overlaps.
func disjoint(prefixes []netip.Prefix) []netip.Prefix {
	sorted := slices.Clone(prefixes)
	for i, p := range sorted {
		sorted[i] = p.Masked()
	}
	// A prefix that contains others stands before them.
	slices.SortFunc(sorted, func(a, b netip.Prefix) int {
		return cmp.Or(a.Addr().Compare(b.Addr()), a.Bits()-b.Bits())
	})
	var out []netip.Prefix
	for _, p := range sorted {
		if n := len(out); n == 0 || !out[n-1].Overlaps(p) {
			out = append(out, p)
		}
	}
	return out
}
