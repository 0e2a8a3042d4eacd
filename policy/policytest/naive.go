// Package policytest is what tests of policy and of its renderings share: a
// naive evaluator, written from the semantics and sharing no code with the real
// one, and generators of random policy sets, workloads and flows whose alphabets
// are so small that rules match often. It is for tests only.
package policytest

import (
	"net"
	"net/netip"
	"net/url"
	"regexp"
	"strings"

	"github.com/hauberk-mesh/hauberk/policy"
)

// Evaluate decides as the semantics say, with no thought of speed. Reason,
// Audit's presence and Logs are as in policy.Evaluate except that reasons are
// left empty.
func Evaluate(s *policy.Set, d policy.Direction, f *policy.Flow) policy.Verdict {
	src, dst := f.Source, f.Destination
	srcPod, dstPod := podOf(src), podOf(dst)
	// A pod talking to itself is not policed.
	if srcPod != nil && dstPod != nil && (srcPod == dstPod || srcPod.UID != "" && srcPod.UID == dstPod.UID) {
		return policy.Verdict{Action: policy.Allow, Direction: d}
	}
	// Own node to own pod is allowed, for what has no more to it than packets, or
	// when no policy asks for more.
	if (f.HTTP == nil && !f.MTLS || !asksForMore(s.Resolve().Ingress)) && d == policy.Ingress && dstPod != nil && src.Host && src.HostOf != "" && src.HostOf == dstPod.Node {
		return policy.Verdict{Action: policy.Allow, Direction: d}
	}
	n := naive{flow: *f, peer: src}
	if d == policy.Egress {
		n.peer = dst
	}
	tiers := s.Ingress
	if d == policy.Egress {
		tiers = s.Egress
	}
	real := n.decide(without(tiers, policy.Audit), s.DefaultAction)
	would := n.decide(tiers, s.DefaultAction)
	real.Direction, would.Direction = d, d
	same := real.Action == would.Action && real.Tier == would.Tier && real.Policy == would.Policy && real.Rule == would.Rule
	if !same {
		real.Audit = &would
	}
	return real
}

// asksForMore reports whether some enforcing rule is about requests or proven
// identities.
func asksForMore(tiers []policy.Tier) bool {
	for _, t := range without(tiers, policy.Audit) {
		for _, p := range t.Policies {
			for _, r := range p.Rules {
				if r.Action == policy.Log {
					continue
				}
				more := len(r.HTTP) > 0 || r.RequireMTLS
				for _, peer := range r.Peers {
					more = more || len(peer.Principals) > 0
				}
				if more {
					return true
				}
			}
		}
	}
	return false
}

// podOf leaves out host-network pods, which are their node.
func podOf(e policy.Endpoint) *policy.Workload {
	if e.Host {
		return nil
	}
	return e.Workload
}

// without leaves out the policies of a mode.
func without(tiers []policy.Tier, mode policy.Mode) []policy.Tier {
	var out []policy.Tier
	for _, t := range tiers {
		var kept []policy.Policy
		for _, p := range t.Policies {
			if p.Mode != mode {
				kept = append(kept, p)
			}
		}
		t.Policies = kept
		out = append(out, t)
	}
	return out
}

type naive struct {
	flow policy.Flow
	peer policy.Endpoint
}

// line is one rule of a tier with all that it needs.
type line struct {
	policy policy.Policy
	rule   policy.Rule
}

// decide takes the first tier's lines, and recurs for the others.
func (n naive) decide(tiers []policy.Tier, last policy.Action) policy.Verdict {
	if len(tiers) == 0 {
		if last == policy.Allow {
			return policy.Verdict{Action: policy.Allow}
		}
		return policy.Verdict{Action: policy.Deny}
	}
	tier, rest := tiers[0], tiers[1:]
	var lines []line
	for _, p := range tier.Policies {
		for _, r := range p.Rules {
			lines = append(lines, line{p, r})
		}
	}
	var logs []policy.RuleRef
	finish := func(v policy.Verdict) policy.Verdict {
		v.Logs = append(logs, v.Logs...)
		return v
	}
	for _, l := range lines {
		if !n.matches(l) {
			continue
		}
		switch l.rule.Action {
		case policy.Log:
			logs = append(logs, policy.RuleRef{Tier: tier.Name, Policy: l.policy.Ref, Rule: l.rule.Name})
		case policy.Pass:
			return finish(n.decide(rest, last))
		case policy.Allow, policy.Deny:
			return finish(policy.Verdict{Action: l.rule.Action, Tier: tier.Name, Policy: l.policy.Ref, Rule: l.rule.Name})
		}
	}
	if len(tier.Policies) == 0 || tier.DefaultAction == policy.Pass {
		return finish(n.decide(rest, last))
	}
	return finish(policy.Verdict{Action: policy.Deny, Tier: tier.Name})
}

// anyOf is "absent list means any, else one of them".
func anyOf[T any](list []T, match func(T) bool) bool {
	if len(list) == 0 {
		return true
	}
	for _, x := range list {
		if match(x) {
			return true
		}
	}
	return false
}

func allOf[T any](list []T, match func(T) bool) bool {
	for _, x := range list {
		if !match(x) {
			return false
		}
	}
	return true
}

func (n naive) matches(l line) bool {
	broken := l.rule.Invalid != "" || l.policy.Invalid != ""
	isDeny := l.rule.Action == policy.Deny
	if broken && !isDeny {
		return false
	}
	r := l.rule
	if !anyOf(r.Ports, func(m policy.PortMatch) bool { return n.port(m, isDeny) }) {
		return false
	}
	if r.RequireMTLS && !n.flow.MTLS {
		return false
	}
	if len(r.HTTP) > 0 && n.flow.HTTP == nil {
		return false
	}
	if !anyOf(r.HTTP, func(m policy.HTTPMatch) bool { return n.http(m, isDeny) }) {
		return false
	}
	if r.AnyPeer {
		return true
	}
	if len(r.Peers) == 0 {
		return broken
	}
	return anyOf(r.Peers, func(p policy.Peer) bool { return n.peerMatches(p, isDeny, broken) })
}

func (n naive) port(m policy.PortMatch, isDeny bool) bool {
	hasPorts := m.Protocol == policy.TCP || m.Protocol == policy.UDP || m.Protocol == policy.SCTP
	isICMP := m.Protocol == policy.ICMP || m.Protocol == policy.ICMPv6
	namesPort := m.Port > 0 || m.EndPort > 0 || m.Name != ""
	namesICMP := m.ICMPType != nil || m.ICMPCode != nil
	sound := (hasPorts && !namesICMP || isICMP && !namesPort) &&
		(m.ICMPCode == nil || m.ICMPType != nil) &&
		(m.Name == "" || m.Port == 0 && m.EndPort == 0) &&
		(m.EndPort == 0 || m.Port > 0 && m.Port <= m.EndPort)
	if !sound {
		return isDeny && (!hasPorts && !isICMP || m.Protocol == n.flow.Protocol)
	}
	if m.Protocol != n.flow.Protocol {
		return false
	}
	if isICMP {
		return (m.ICMPType == nil || *m.ICMPType == n.flow.ICMPType) && (m.ICMPCode == nil || *m.ICMPCode == n.flow.ICMPCode)
	}
	if m.Name != "" {
		w := n.flow.Destination.Workload
		if w == nil {
			return false
		}
		numbers := map[uint16]bool{}
		for _, p := range w.NamedPorts {
			if p.Name == m.Name && p.Protocol == m.Protocol {
				numbers[p.Port] = true
			}
		}
		return numbers[n.flow.Port]
	}
	low, high := int(m.Port), int(m.Port)
	if m.EndPort != 0 {
		high = int(m.EndPort)
	}
	if low == 0 {
		high = 65535
	}
	return int(n.flow.Port) >= low && int(n.flow.Port) <= high
}

func (n naive) peerMatches(p policy.Peer, isDeny, broken bool) bool {
	var conditions []bool
	pod := podOf(n.peer)
	ofPod := func(match func(w policy.Workload) bool) { conditions = append(conditions, pod != nil && match(*pod)) }
	if len(p.Namespaces) > 0 {
		ofPod(func(w policy.Workload) bool {
			return anyOf(p.Namespaces, func(name string) bool { return name == w.Namespace })
		})
	}
	if s := p.NamespaceSelector; s != nil {
		ofPod(func(w policy.Workload) bool { return selects(*s, w.NamespaceLabels, isDeny) })
	}
	if s := p.PodSelector; s != nil {
		ofPod(func(w policy.Workload) bool { return selects(*s, w.Labels, isDeny) })
	}
	if len(p.ServiceAccounts) > 0 {
		ofPod(func(w policy.Workload) bool {
			return anyOf(p.ServiceAccounts, func(a policy.ServiceAccount) bool {
				return a.Namespace+"/"+a.Name == w.Namespace+"/"+w.ServiceAccount
			})
		})
	}
	if s := p.ServiceAccountSelector; s != nil {
		ofPod(func(w policy.Workload) bool { return selects(*s, w.ServiceAccountLabels, isDeny) })
	}
	if len(p.Networks) > 0 {
		conditions = append(conditions, anyOf(p.Networks, func(x policy.Network) bool { return inNetwork(x, n.peer.Addr, isDeny) }))
	}
	if len(p.Entities) > 0 {
		conditions = append(conditions, anyOf(p.Entities, func(e policy.Entity) bool {
			inCluster := n.peer.Workload != nil || n.peer.Host
			switch e {
			case "cluster":
				return inCluster
			case "host":
				return n.peer.Host
			case "world":
				return !inCluster
			}
			return isDeny
		}))
	}
	if len(p.Principals) > 0 {
		conditions = append(conditions, n.peer.Principal != "" &&
			anyOf(p.Principals, func(pattern string) bool { return globs(pattern, n.peer.Principal, isDeny) }))
	}
	if len(conditions) == 0 {
		return broken
	}
	for _, c := range conditions {
		if !c {
			return false
		}
	}
	return true
}

func selects(s policy.Selector, labels map[string]string, isDeny bool) bool {
	for _, r := range s.Requirements {
		values := map[string]bool{}
		for _, v := range r.Values {
			values[v] = true
		}
		value, has := labels[r.Key]
		satisfied := isDeny
		switch r.Operator {
		case policy.In:
			satisfied = has && values[value]
		case policy.NotIn:
			satisfied = !(has && values[value])
		case policy.Exists:
			satisfied = has
		case policy.DoesNotExist:
			satisfied = !has
		}
		if !satisfied {
			return false
		}
	}
	return true
}

// ipNet is nil for what is no prefix.
func ipNet(p netip.Prefix) *net.IPNet {
	if !p.IsValid() || p.Addr().Is4In6() {
		return nil
	}
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func inNetwork(x policy.Network, addr netip.Addr, isDeny bool) bool {
	if !addr.IsValid() {
		return false
	}
	ip := net.IP(addr.AsSlice())
	sound := ipNet(x.Prefix) != nil
	in := ipNet(x.Prefix) == nil || ipNet(x.Prefix).Contains(ip)
	for _, e := range x.Except {
		if ipNet(e) == nil {
			sound = false
		} else if ipNet(e).Contains(ip) {
			in = false
		}
	}
	return in && (sound || isDeny)
}

func globs(pattern, s string, isDeny bool) bool {
	star := strings.Count(pattern, "*")
	if pattern == "" || star > 1 || star == 1 && !strings.HasSuffix(pattern, "*") {
		return isDeny
	}
	expr := strings.ReplaceAll(regexp.QuoteMeta(pattern), `\*`, `(?s:.*)`)
	return regexp.MustCompile(`\A` + expr + `\z`).MatchString(s)
}

func (n naive) http(m policy.HTTPMatch, isDeny bool) bool {
	r := n.flow.HTTP
	return anyOf(m.Methods, func(s string) bool { return s == r.Method }) &&
		anyOf(m.Paths, func(p policy.PathMatch) bool { return path(p, r.Path, isDeny) }) &&
		anyOf(m.Hosts, func(h string) bool { return host(h, r.Host, isDeny) }) &&
		query(m.Query, r.Query, isDeny) &&
		anyOf(m.GRPC, func(g policy.GRPCMatch) bool { return grpc(g, *r, isDeny) }) &&
		allOf(m.Headers, func(h policy.HeaderMatch) bool {
			if h.Name == "" || strings.ContainsAny(h.Name, "ABCDEFGHIJKLMNOPQRSTUVWXYZ") {
				return isDeny
			}
			if r.Header == nil {
				return false
			}
			for _, got := range r.Header(h.Name) {
				if anyOf(h.Values, func(want string) bool { return want == got }) {
					return true
				}
			}
			return false
		})
}

// segments of "/a/b" are "a" and "b"; a trailing slash adds an empty one.
func segments(path string) []string { return strings.Split(path, "/")[1:] }

func path(m policy.PathMatch, got string, isDeny bool) bool {
	if m.Type == policy.PathTemplate || m.Type == policy.PathRegex {
		expr, ok := m.Value, m.Regex != nil
		if m.Type == policy.PathTemplate {
			expr, ok = "", strings.HasPrefix(m.Value, "/") && m.Regex == nil
			for _, s := range strings.SplitAfter(m.Value, "/") {
				name := strings.TrimSuffix(s, "/")
				if regexp.MustCompile(`^\{[A-Za-z0-9_]+\}$`).MatchString(name) {
					expr += "[^/]+" + strings.TrimPrefix(s, name)
					continue
				}
				ok = ok && !strings.ContainsAny(s, "{}")
				expr += regexp.QuoteMeta(s)
			}
		}
		re, err := regexp.Compile(`\A(?s:` + expr + `)\z`)
		if !ok || err != nil {
			return isDeny
		}
		return re.MatchString(got)
	}
	switch {
	case m.Regex != nil:
		return isDeny
	case m.Type == policy.PathExact && (m.Value == "*" || strings.HasPrefix(m.Value, "/")):
		return got == m.Value
	case m.Type != policy.PathPrefix || !strings.HasPrefix(m.Value, "/"):
		return isDeny
	case !strings.HasPrefix(got, "/"):
		return false
	}
	want, have := segments(m.Value), segments(got)
	for len(want) > 0 && want[len(want)-1] == "" {
		want = want[:len(want)-1]
	}
	if len(have) < len(want) {
		return false
	}
	return strings.Join(have[:len(want)], "/") == strings.Join(want, "/")
}

func query(list []policy.QueryMatch, got string, isDeny bool) bool {
	if len(list) == 0 {
		return true
	}
	if _, err := url.QueryUnescape(got); err != nil || strings.Contains(got, ";") {
		return isDeny
	}
	parsed, _ := url.ParseQuery(got)
	return allOf(list, func(m policy.QueryMatch) bool {
		if m.Name == "" {
			return isDeny
		}
		for _, v := range parsed[m.Name] {
			if anyOf(m.Values, func(want string) bool { return want == v }) {
				return true
			}
		}
		return false
	})
}

func grpc(m policy.GRPCMatch, r policy.HTTPRequest, isDeny bool) bool {
	if strings.ContainsAny(m.Service+m.Method, "/*") {
		return isDeny
	}
	if r.Header == nil {
		return false
	}
	for _, v := range r.Header("content-type") {
		if strings.HasPrefix(strings.ToLower(v), "application/grpc") {
			parts := regexp.MustCompile(`\A/([^/]+)/([^/]+)\z`).FindStringSubmatch(r.Path)
			return parts != nil && (m.Service == "" || m.Service == parts[1]) && (m.Method == "" || m.Method == parts[2])
		}
	}
	return false
}

func host(pattern, got string, isDeny bool) bool {
	rest, wild := strings.CutPrefix(pattern, "*.")
	bracketed := strings.HasPrefix(rest, "[")
	if rest == "" || strings.Contains(rest, "*") || !bracketed && strings.Contains(rest, ":") || bracketed && !strings.HasSuffix(rest, "]") {
		return isDeny
	}
	rest, got = strings.ToLower(rest), strings.ToLower(got)
	if !wild {
		return got == rest
	}
	return strings.HasSuffix(got, "."+rest) && got != "."+rest
}
