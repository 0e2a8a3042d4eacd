package firewall

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"sigs.k8s.io/knftables"

	"github.com/hauberk-mesh/hauberk/internal/flow"
	"github.com/hauberk-mesh/hauberk/policy"
)

// Names inside the table. Each map and each chain of policy has a twin for
// replies; see backChain.
const (
	chainForward = "forward" // pod to anything beyond the node, and anything to a pod
	chainInput   = "input"   // pod to the node itself
	chainOutput  = "output"  // the node's own processes to a pod
	chainSource  = "source"  // what a pod's link may send
	chainClosed  = "closed"  // to a pod whose policy is not known; chainShut from one
	chainShut    = "shut"
	chainReplies = "replies" // of flows that are forwarded; chainAnswers of the node's own processes
	chainAnswers = "answers"

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

// base is the chains that do not depend on pods or policy.
type base struct {
	chains map[string]*chain
	drops  map[string]Drop
}

func (r *renderer) baseChains() {
	t := r.t
	for name, kind := range map[string]string{
		setSelf4: pairAddr4, setSelf6: pairAddr6, setLinks: "ifname",
		setLinkAddr4: "ifname . ipv4_addr", setLinkAddr6: "ifname . ipv6_addr",
		setOwn4: typeAddr4 + " . inet_service", setOwn6: typeAddr6 + " . inet_service",
	} {
		t.small(name, kind)
	}
	nodes := []Member{{Addresses: r.state.Hosts}}
	t.sets[setHosts4] = members{family: "ip"}.collect(nodes)
	t.sets[setHosts6] = members{family: "ip6"}.collect(nodes)
	for name, kind := range map[string]string{mapFrom4: typeAddr4, mapTo4: typeAddr4, mapFrom6: typeAddr6, mapTo6: typeAddr6, mapLink: "ifname"} {
		t.maps[name] = &verdicts{kind: kind, values: map[string]string{}}
		t.maps[backChain(name)] = &verdicts{kind: kind, values: map[string]string{}}
	}
	if r.now.base == nil {
		r.now.base = r.makeBase()
	}
	maps.Copy(t.chains, r.now.base.chains)
	maps.Copy(t.drops, r.now.base.drops)
}

// makeBase is the fixed chains.
//
// A flow's packets in its own direction are judged as they are. Its replies are
// judged too, by the same rules turned round: a change of policy cuts a flow at
// once even when only its server sends. The kernel's connection tracking says
// only which of the two a packet is, and nothing is kept in its marks, which
// belong to others.
//
// A TCP packet that begins a flow in the middle tells not who opened the
// connection: it must be allowed whichever side did. Otherwise a connection that
// was cut would live on, once it was forgotten, in the name of its server.
func (r *renderer) makeBase() *base {
	policies := newRendered(nil)
	unknown := flow.Decision{Reason: policy.ReasonNoSet}
	policies.chain(chainClosed, []rule{{comment: "policy not known: denied", drop: &Drop{Direction: policy.Ingress, Decision: unknown}}})
	policies.chain(chainShut, []rule{{comment: "policy not known: denied", drop: &Drop{Direction: policy.Egress, Decision: unknown}}})
	b := &base{chains: policies.chains, drops: policies.drops}

	errors := []line{{"ct state related meta l4proto { icmp, ipv6-icmp } accept", "errors about flows"}}
	self := []line{
		{"ip saddr . ip daddr @" + setSelf4 + " accept", "a pod talking to itself is not policed"},
		{"ip6 saddr . ip6 daddr @" + setSelf6 + " accept", "a pod talking to itself is not policed"},
	}
	// What no policy may cut, so that a policy can be taken back: pods reach the
	// control plane at the address that they dial, and the mesh's own pods are
	// reached at the ports that it serves with identities.
	mesh := []line{
		{"ip daddr . tcp dport @" + setOwn4 + " accept", "the mesh's own ports"},
		{"ip6 daddr . tcp dport @" + setOwn6 + " accept", "the mesh's own ports"},
	}
	meshBack := []line{
		{"ip saddr . tcp sport @" + setOwn4 + " accept", "the mesh's own ports"},
		{"ip6 saddr . tcp sport @" + setOwn6 + " accept", "the mesh's own ports"},
	}
	if r.control.IsValid() {
		a := r.control.Addr().Unmap()
		control := line{fmt.Sprintf("meta nfproto %s meta l4proto tcp ct original %s daddr %s ct original proto-dst %d accept",
			nfproto(familyOf(a)), familyOf(a), a, r.control.Port()), "the control plane"}
		mesh, meshBack = append(mesh, control), append(meshBack, control)
	}
	from := []line{{"ip saddr vmap @" + mapFrom4, ""}, {"ip6 saddr vmap @" + mapFrom6, ""}}
	to := []line{{"ip daddr vmap @" + mapTo4, ""}, {"ip6 daddr vmap @" + mapTo6, ""}}
	fromBack := []line{{"ip daddr vmap @" + backChain(mapFrom4), ""}, {"ip6 daddr vmap @" + backChain(mapFrom6), ""}}
	toBack := []line{{"ip saddr vmap @" + backChain(mapTo4), ""}, {"ip6 saddr vmap @" + backChain(mapTo6), ""}}
	// Neighbour discovery keeps the pod's own link working (RFC 4861); it never
	// leaves the link.
	neighbours := []line{{"icmpv6 type { nd-router-solicit, nd-neighbor-solicit, nd-neighbor-advert } ip6 hoplimit 255 accept", ""}}
	middle := "tcp flags & (fin | syn | rst | ack) != syn ct state { invalid, new, untracked } jump "

	b.chains[chainForward] = &chain{hook: knftables.ForwardHook, priority: forwardPriority, fixed: slices.Concat(errors, self,
		[]line{{"ct direction reply goto " + chainReplies, ""}, {middle + chainReplies, "who opened it is not known"}}, mesh, from, to)}
	b.chains[chainReplies] = &chain{fixed: slices.Concat(meshBack, fromBack, toBack)}
	// A pod's replies to its own node pass, because nothing that the node sends to
	// its pods is policed.
	b.chains[chainInput] = &chain{hook: knftables.InputHook, priority: forwardPriority, fixed: slices.Concat(errors,
		[]line{{"ct direction reply accept", ""}}, neighbours,
		// What a pod sends from its link's own address is known by the link.
		[]line{{"ip6 saddr fe80::/10 iifname vmap @" + mapLink, ""}}, from)}
	b.chains[chainOutput] = &chain{hook: knftables.OutputHook, priority: forwardPriority, fixed: slices.Concat(errors,
		[]line{{"ct direction reply goto " + chainAnswers, ""}, {middle + chainAnswers, "who opened it is not known"}})}
	b.chains[chainAnswers] = &chain{fixed: slices.Concat(meshBack, fromBack,
		[]line{{"ip6 daddr fe80::/10 oifname vmap @" + backChain(mapLink), ""}})}

	spoofed := Drop{policy.Egress, flow.Decision{Reason: "the source is not the pod's own address"}}
	b.drops[spoofed.id()] = spoofed
	b.chains[chainSource] = &chain{hook: knftables.PreroutingHook, priority: "-310", fixed: slices.Concat(
		[]line{{"iifname != @" + setLinks + " return", ""}},
		dropLines("meta nfproto ipv4 iifname . ip saddr != @"+setLinkAddr4, "not the pod's own address", &spoofed, false, r.logs),
		[]line{{"ip6 saddr { ::, fe80::/10 } return", ""}},
		dropLines("meta nfproto ipv6 iifname . ip6 saddr != @"+setLinkAddr6, "not the pod's own address", &spoofed, false, r.logs),
	)}
	return b
}

// toMesh reports whether a flow is one that no policy may cut.
func (t *table) toMesh(p *packet) bool {
	name := setOwn4
	if p.dst.Is6() {
		name = setOwn6
	}
	_, own := t.sets[name].keys[p.dst.String()+" . "+portText(p.port)]
	return own && p.proto == policy.TCP
}

// allows reports what the kernel does with a flow, in both directions. Of a
// flow from the node itself only what leaves a pod is judged.
func (t *table) allows(p *packet, fromNode bool) bool {
	if p.src == p.dst || t.toMesh(p) {
		return true
	}
	from, to := mapFrom4, mapTo4
	if p.src.Is6() {
		from, to = mapFrom6, mapTo6
	}
	if chain, ok := t.jump(from, p.src); ok && !t.passes(chain, p) {
		return false
	}
	if chain, ok := t.jump(to, p.dst); ok && !fromNode && !t.passes(chain, p) {
		return false
	}
	return true
}

// jump is the chain of an address.
func (t *table) jump(name string, a netip.Addr) (string, bool) {
	chain := t.maps[name].values[a.String()]
	if chain == "" {
		return "", false
	}
	return chain[len("jump "):], true
}
