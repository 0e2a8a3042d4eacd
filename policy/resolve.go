package policy

import "net/netip"

// Resolve is a set that decides every flow as s does, in which nothing is
// unresolvable and no policy is in Audit mode: Allow, Pass and Log rules that
// match nothing are gone, Deny rules that could not be resolved are widened to
// what they could mean. It is what a renderer, such as the node agent's into
// kernel rules, should look at. ID, names and order stay as they are; a PeerSet
// whose selector was widened keeps its id, so the compiler must have given it
// the widened members.
func (s *Set) Resolve() *Set {
	return &Set{
		ID:            s.ID,
		Ingress:       resolveTiers(s.Ingress),
		Egress:        resolveTiers(s.Egress),
		DefaultAction: resolveDefault(s.DefaultAction, Allow),
	}
}

// resolveDefault keeps the one action that does not deny.
func resolveDefault(a, other Action) Action {
	if a == other {
		return a
	}
	return Deny
}

func resolveTiers(tiers []Tier) []Tier {
	var out []Tier
	for i := range tiers {
		t := tiers[i]
		t.DefaultAction = resolveDefault(t.DefaultAction, Pass)
		t.Policies = nil
		for j := range tiers[i].Policies {
			if p := &tiers[i].Policies[j]; p.Mode != Audit {
				t.Policies = append(t.Policies, resolvePolicy(p))
			}
		}
		if len(t.Policies) > 0 { // else it would be skipped
			out = append(out, t)
		}
	}
	return out
}

func resolvePolicy(p *Policy) Policy {
	out := *p
	out.Mode, out.Invalid, out.Rules = Enforce, "", nil
	for i := range p.Rules {
		if r, ok := resolveRule(p, &p.Rules[i]); ok {
			out.Rules = append(out.Rules, r)
		}
	}
	return out
}

// resolveRule is false for a rule that matches nothing.
func resolveRule(p *Policy, r *Rule) (Rule, bool) {
	invalid := p.Invalid != "" || r.Invalid != ""
	deny := r.denies()
	if invalid && !deny {
		return Rule{}, false
	}
	out := *r
	out.Invalid = ""
	if deny {
		out.Action = Deny
	}
	if len(r.Ports) > 0 {
		var all bool
		out.Ports, all = resolvePorts(r.Ports, deny)
		if all {
			out.Ports = nil
		} else if len(out.Ports) == 0 {
			return Rule{}, false
		}
	}
	if len(r.HTTP) > 0 {
		if out.HTTP = resolveHTTP(r.HTTP, deny); len(out.HTTP) == 0 {
			return Rule{}, false
		}
	}
	if r.AnyPeer || invalid && len(r.Peers) == 0 {
		out.AnyPeer, out.Peers = true, nil
		return out, true
	}
	out.Peers = nil
	for i := range r.Peers {
		peer, ok := resolvePeer(&r.Peers[i], deny, invalid)
		if !ok {
			continue
		}
		if peer.isZero() {
			out.AnyPeer, out.Peers = true, nil
			return out, true
		}
		out.Peers = append(out.Peers, peer)
	}
	return out, len(out.Peers) > 0
}

// resolvePorts is true when every port of every protocol matches.
func resolvePorts(ports []PortMatch, deny bool) ([]PortMatch, bool) {
	var out []PortMatch
	for _, m := range ports {
		if m.problem() == "" {
			out = append(out, m)
			continue
		}
		if !deny {
			continue
		}
		if !m.Protocol.known() {
			return nil, true
		}
		out = append(out, PortMatch{Protocol: m.Protocol})
	}
	return out, false
}

func resolveHTTP(list []HTTPMatch, deny bool) []HTTPMatch {
	var out []HTTPMatch
	for _, m := range list {
		paths, okPaths := resolveList(m.Paths, deny, (*PathMatch).Problem)
		hosts, okHosts := resolveList(m.Hosts, deny, func(h *string) string { return hostProblem(*h) })
		headers, okHeaders := resolveAll(m.Headers, deny, (*HeaderMatch).problem)
		query, okQuery := resolveAll(m.Query, deny, (*QueryMatch).problem)
		grpc, okGRPC := resolveList(m.GRPC, deny, (*GRPCMatch).Problem)
		if okPaths && okHosts && okHeaders && okQuery && okGRPC {
			out = append(out, HTTPMatch{Methods: m.Methods, Paths: paths, Hosts: hosts, Headers: headers, Query: query, GRPC: grpc})
		}
	}
	return out
}

// resolveList is the entries without a problem; none of them, which means any,
// when one with a problem counts as matching. It is false when nothing can
// match.
func resolveList[T any](list []T, deny bool, problem func(*T) string) ([]T, bool) {
	var out []T
	for i := range list {
		switch {
		case problem(&list[i]) == "":
			out = append(out, list[i])
		case deny:
			return nil, true
		}
	}
	return out, len(list) == 0 || len(out) > 0
}

// resolveAll is for lists of which all entries must match: it is false when an
// Allow names one that cannot be resolved.
func resolveAll[T any](list []T, deny bool, problem func(*T) string) ([]T, bool) {
	var out []T
	for i := range list {
		switch {
		case problem(&list[i]) == "":
			out = append(out, list[i])
		case !deny:
			return nil, false
		}
	}
	return out, true
}

// resolvePeer is false for a peer that matches nothing, and the zero Peer for
// one that matches everything.
func resolvePeer(p *Peer, deny, invalid bool) (Peer, bool) {
	if p.isZero() {
		return Peer{}, invalid
	}
	out := *p
	for _, s := range []**Selector{&out.NamespaceSelector, &out.PodSelector, &out.ServiceAccountSelector} {
		resolved, ok := resolveSelector(*s, deny)
		if !ok {
			return Peer{}, false
		}
		*s = resolved
	}
	if len(p.Networks) > 0 {
		out.Networks = nil
		for _, n := range p.Networks {
			switch {
			case n.valid():
				out.Networks = append(out.Networks, n)
			case deny:
				out.Networks = append(out.Networks, n.widen()...)
			}
		}
		if len(out.Networks) == 0 {
			return Peer{}, false
		}
	}
	entities, ok := resolveList(p.Entities, deny, (*Entity).problem)
	if !ok {
		return Peer{}, false
	}
	out.Entities = entities
	if len(p.Principals) > 0 {
		out.Principals = nil
		for _, pattern := range p.Principals {
			switch {
			case validPrincipalPattern(pattern):
				out.Principals = append(out.Principals, pattern)
			case deny:
				out.Principals = append(out.Principals, "*")
			}
		}
		if len(out.Principals) == 0 {
			return Peer{}, false
		}
	}
	return out, true
}

// resolveSelector is false for a selector that matches nothing.
func resolveSelector(s *Selector, deny bool) (*Selector, bool) {
	if s == nil {
		return nil, true
	}
	out := &Selector{}
	for _, r := range s.Requirements {
		switch {
		case r.known():
			out.Requirements = append(out.Requirements, r)
		case !deny:
			return nil, false
		}
	}
	return out, true
}

// widen is what a network that cannot be resolved could mean.
func (n *Network) widen() []Network {
	prefixes := []netip.Prefix{n.Prefix}
	if !validPrefix(n.Prefix) {
		prefixes = []netip.Prefix{
			netip.PrefixFrom(netip.IPv4Unspecified(), 0),
			netip.PrefixFrom(netip.IPv6Unspecified(), 0),
		}
	}
	var out []Network
	for _, p := range prefixes {
		wide := Network{Prefix: p}
		for _, e := range n.Except {
			if validPrefix(e) && e.Addr().Is4() == p.Addr().Is4() {
				wide.Except = append(wide.Except, e)
			}
		}
		out = append(out, wide)
	}
	return out
}
