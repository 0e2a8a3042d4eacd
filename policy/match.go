package policy

import "net/netip"

// Outcome is whether a rule matches a flow of which some attributes may be
// unknown. The zero value is No.
type Outcome uint8

// No: the rule matches no completion of the flow. Maybe: what is not known
// decides. Yes: the rule matches every completion.
const (
	No Outcome = iota
	Maybe
	Yes
)

// String is the outcome in lower case.
func (o Outcome) String() string {
	switch o {
	case Maybe:
		return "maybe"
	case Yes:
		return "yes"
	}
	return "no"
}

// Unknown names attributes of a flow that are not known yet. The zero value
// knows all: a nil HTTP then means that the flow is not HTTP.
type Unknown uint8

// UnknownHTTP: whether the flow is HTTP and what it requests is not known.
// UnknownIdentity: MTLS and the peer's Principal are not known. They go
// together: a peer proves a principal if and only if the connection is mTLS.
const (
	UnknownHTTP Unknown = 1 << iota
	UnknownIdentity
)

// UnknownL7 is what packets cannot tell.
const UnknownL7 = UnknownHTTP | UnknownIdentity

// view is a flow seen from the subject of one direction.
type view struct {
	flow *Flow
	peer *Endpoint
	// workload is the peer's, nil when selectors cannot match it: host-network
	// pods are, as peers, their node.
	workload *Workload
	// unknown is empty for protocols that carry neither HTTP nor mTLS.
	unknown Unknown
	// none are the unknown attributes that the flow cannot have: they are decided,
	// whatever the flow's fields say.
	none Unknown
}

func (v *view) init(d Direction, f *Flow, unknown Unknown) {
	v.flow = f
	v.peer = &f.Source
	if d == Egress {
		v.peer = &f.Destination
	}
	v.workload = v.peer.Workload
	if v.peer.Host {
		v.workload = nil
	}
	v.unknown = unknown
	if unknown != 0 && f.Protocol != TCP && f.Protocol != AnyProtocol {
		// The mesh speaks mTLS and HTTP on TCP only.
		v.unknown, v.none = 0, unknown
	}
}

func either(yes bool) Outcome {
	if yes {
		return Yes
	}
	return No
}

// L4 is the rule's outcome for a flow of which only the packet is known: No when
// its L4 part does not match, Yes when it matches and there is nothing else,
// Maybe when the rest decides. p is the policy that holds the rule, because an
// invalid policy makes all its rules invalid.
func (r *Rule) L4(p *Policy, d Direction, f *Flow) Outcome {
	var v view
	v.init(d, f, UnknownL7)
	return v.rule(p, r)
}

// denies reports whether unresolvable parts of the rule count as matching. An
// action that this program does not know is a Deny.
func (r *Rule) denies() bool {
	return r.Action != Allow && r.Action != Pass && r.Action != Log
}

// rule is the outcome of a rule. Parts that cannot be resolved (see the
// package comment) never match in an Allow, Pass or Log and always match in a
// Deny.
func (v *view) rule(p *Policy, r *Rule) Outcome {
	invalid := r.Invalid != "" || p.Invalid != ""
	deny := r.denies()
	if invalid && !deny {
		return No
	}
	if !v.ports(r.Ports, deny) {
		return No
	}
	out := v.requests(r.HTTP, deny)
	if out == No {
		return No
	}
	if r.RequireMTLS {
		out = min(out, v.mtls())
	}
	if r.AnyPeer || invalid && len(r.Peers) == 0 {
		return out
	}
	best := No
	for i := range r.Peers {
		if best == out || out == No {
			break
		}
		best = max(best, min(out, v.matchPeer(&r.Peers[i], deny, invalid)))
	}
	return best
}

func (v *view) mtls() Outcome {
	if v.unknown&UnknownIdentity != 0 {
		return Maybe
	}
	return either(v.flow.MTLS && v.none&UnknownIdentity == 0)
}

// isZero reports whether no field of the peer is set.
func (p *Peer) isZero() bool {
	return !p.SelectsWorkloads() && len(p.Principals) == 0 && len(p.Networks) == 0 && len(p.Entities) == 0
}

func (v *view) matchPeer(p *Peer, deny, invalid bool) Outcome {
	if p.isZero() {
		return either(invalid) // only a Deny comes here when invalid
	}
	if p.SelectsWorkloads() && (v.workload == nil || !p.selects(v.workload, deny)) {
		return No
	}
	if len(p.Networks) > 0 && !matchNetworks(p.Networks, v.peer.Addr, deny) {
		return No
	}
	if len(p.Entities) > 0 && !matchEntities(p.Entities, v.peer, deny) {
		return No
	}
	if len(p.Principals) == 0 {
		return Yes
	}
	if v.unknown&UnknownIdentity != 0 {
		return v.maybePrincipal(p.Principals, deny)
	}
	return either(v.none&UnknownIdentity == 0 && matchPrincipals(p.Principals, v.peer.Principal, deny))
}

// maybePrincipal is Maybe unless no pattern can match any principal.
func (v *view) maybePrincipal(patterns []string, deny bool) Outcome {
	for _, p := range patterns {
		if deny || validPrincipalPattern(p) {
			return Maybe
		}
	}
	return No
}

// selects reports whether the peer's selector fields, of which at least one is
// set, all match the workload.
func (p *Peer) selects(w *Workload, deny bool) bool {
	if len(p.Namespaces) > 0 && !contains(p.Namespaces, w.Namespace) {
		return false
	}
	if p.NamespaceSelector != nil && !p.NamespaceSelector.matches(w.NamespaceLabels, deny) {
		return false
	}
	if p.PodSelector != nil && !p.PodSelector.matches(w.Labels, deny) {
		return false
	}
	if len(p.ServiceAccounts) > 0 && !contains(p.ServiceAccounts, ServiceAccount{w.Namespace, w.ServiceAccount}) {
		return false
	}
	if p.ServiceAccountSelector != nil && !p.ServiceAccountSelector.matches(w.ServiceAccountLabels, deny) {
		return false
	}
	return true
}

// Selects reports whether the peer's selector fields match the workload: what
// the PeerSet of that id holds. It is false for a peer without selector fields.
// In a rule with action Deny unresolvable requirements count as matching, so the
// caller says whether it is one.
func (p *Peer) Selects(w *Workload, deny bool) bool {
	return w != nil && p.SelectsWorkloads() && p.selects(w, deny)
}

func contains[T comparable](list []T, x T) bool {
	for i := range list {
		if list[i] == x {
			return true
		}
	}
	return false
}

func (n *Network) valid() bool {
	if !validPrefix(n.Prefix) {
		return false
	}
	for _, e := range n.Except {
		if !validPrefix(e) {
			return false
		}
	}
	return true
}

// validPrefix refuses IPv4-mapped prefixes because addresses are compared
// unmapped.
func validPrefix(p netip.Prefix) bool { return p.IsValid() && !p.Addr().Is4In6() }

func matchNetworks(networks []Network, addr netip.Addr, deny bool) bool {
	for i := range networks {
		n := &networks[i]
		if n.valid() {
			if n.Contains(addr) {
				return true
			}
			continue
		}
		if deny && n.couldContain(addr) {
			return true
		}
	}
	return false
}

// couldContain is Contains for a network with parts that cannot be resolved:
// without a prefix it may be any, and an exception that cannot be read excepts
// nothing.
func (n *Network) couldContain(addr netip.Addr) bool {
	addr = addr.Unmap().WithZone("")
	if !addr.IsValid() {
		return false
	}
	if validPrefix(n.Prefix) && !n.Prefix.Contains(addr) {
		return false
	}
	for _, e := range n.Except {
		if validPrefix(e) && e.Contains(addr) {
			return false
		}
	}
	return true
}

// problem says why the entity cannot be resolved; empty when it can.
func (e *Entity) problem() string {
	switch *e {
	case EntityCluster, EntityHost, EntityWorld:
		return ""
	}
	return "it is none of cluster, host and world"
}

func matchEntities(entities []Entity, e *Endpoint, deny bool) bool {
	for _, entity := range entities {
		switch entity {
		case EntityCluster:
			if e.Host || e.Workload != nil {
				return true
			}
		case EntityHost:
			if e.Host {
				return true
			}
		case EntityWorld:
			if !e.Host && e.Workload == nil {
				return true
			}
		default:
			if deny {
				return true
			}
		}
	}
	return false
}

// validPrincipalPattern: not empty, and '*' at the end only.
func validPrincipalPattern(p string) bool {
	for i := range len(p) {
		if p[i] == '*' && i != len(p)-1 {
			return false
		}
	}
	return p != ""
}

func matchPrincipals(patterns []string, principal string, deny bool) bool {
	if principal == "" {
		return false // only what was proved matches
	}
	for _, p := range patterns {
		if !validPrincipalPattern(p) {
			if deny {
				return true
			}
			continue
		}
		if stem := len(p) - 1; p[stem] == '*' {
			if len(principal) >= stem && principal[:stem] == p[:stem] {
				return true
			}
			continue
		}
		if p == principal {
			return true
		}
	}
	return false
}

func (v *view) ports(ports []PortMatch, deny bool) bool {
	if len(ports) == 0 {
		return true
	}
	for i := range ports {
		if ports[i].matches(v.flow, deny) {
			return true
		}
	}
	return false
}

// known reports whether rules can name the protocol.
func (p Protocol) known() bool {
	return p == TCP || p == UDP || p == SCTP || p == ICMP || p == ICMPv6
}

// problem says what of the match cannot be resolved; empty when all can.
func (m *PortMatch) problem() string {
	icmp := m.Protocol == ICMP || m.Protocol == ICMPv6
	ported := m.Protocol == TCP || m.Protocol == UDP || m.Protocol == SCTP
	switch {
	case !icmp && !ported:
		return "the protocol is none of TCP, UDP, SCTP, ICMP and ICMPv6"
	case icmp && (m.Port != 0 || m.EndPort != 0 || m.Name != ""):
		return "ICMP has no ports"
	case ported && (m.ICMPType != nil || m.ICMPCode != nil):
		return "only ICMP has type and code"
	case m.ICMPCode != nil && m.ICMPType == nil:
		return "an ICMP code needs a type"
	case m.Name != "" && (m.Port != 0 || m.EndPort != 0):
		return "a port is a name or a number, not both"
	case m.EndPort != 0 && m.Port == 0:
		return "a range of ports needs its first port"
	case m.EndPort != 0 && m.EndPort < m.Port:
		return "the range of ports ends before it begins"
	}
	return ""
}

func (m *PortMatch) matches(f *Flow, deny bool) bool {
	if m.problem() != "" {
		return deny && (!m.Protocol.known() || m.Protocol == f.Protocol)
	}
	if m.Protocol != f.Protocol {
		return false
	}
	switch {
	case m.Name != "":
		return f.Destination.Workload.hasPort(m.Name, f.Protocol, f.Port)
	case m.EndPort != 0:
		return m.Port <= f.Port && f.Port <= m.EndPort
	case m.Port != 0:
		return m.Port == f.Port
	case m.ICMPType != nil:
		return *m.ICMPType == f.ICMPType && (m.ICMPCode == nil || *m.ICMPCode == f.ICMPCode)
	}
	return true
}

// hasPort reports whether a container port of the pod has the name, protocol
// and number. Several containers may use one name for several ports.
func (w *Workload) hasPort(name string, protocol Protocol, port uint16) bool {
	if w == nil {
		return false
	}
	for i := range w.NamedPorts {
		p := &w.NamedPorts[i]
		if p.Name == name && p.Protocol == protocol && p.Port == port {
			return true
		}
	}
	return false
}
