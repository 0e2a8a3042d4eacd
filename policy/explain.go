package policy

import (
	"fmt"
	"strings"
)

// Trace is how a verdict came about: every tier, policy and rule that was
// looked at, in order, and what each rule that did not match lacked.
type Trace struct {
	Verdict Verdict
	// Tiers is empty when no policy was asked, such as for a pod's traffic with
	// itself.
	Tiers []TierTrace
}

// TierTrace is one tier that was looked at.
type TierTrace struct {
	Name     string
	Order    float64
	Policies []PolicyTrace
	// Result is how the tier ended, such as "passed on: no policy selects the
	// endpoint".
	Result string
}

// PolicyTrace is one policy that was looked at.
type PolicyTrace struct {
	Ref     Ref
	Mode    Mode
	Invalid string
	Rules   []RuleTrace
}

// RuleTrace is one rule that was looked at.
type RuleTrace struct {
	Name   string
	Action Action
	// Lacks is what kept the rule from matching; empty when it matched.
	Lacks string
}

// Matched reports whether the rule matched.
func (r *RuleTrace) Matched() bool { return r.Lacks == "" }

// Explain decides as Evaluate does and says how. It is for humans: it allocates
// freely.
func (s *Set) Explain(d Direction, f *Flow) Trace {
	trace := Trace{Verdict: s.Evaluate(d, f)}
	if _, ok := s.before(d, f, 0); ok {
		return trace
	}
	var v view
	v.init(d, f, 0)
	tiers := s.Tiers(d)
	for i := range tiers {
		tier, final := v.explainTier(&tiers[i])
		trace.Tiers = append(trace.Tiers, tier)
		if final {
			break
		}
	}
	return trace
}

// explainTier is true when the tier decided.
func (v *view) explainTier(t *Tier) (TierTrace, bool) {
	out := TierTrace{Name: t.Name, Order: t.Order}
	enforcing := false
	for i := range t.Policies {
		p := &t.Policies[i]
		enforcing = enforcing || p.Mode != Audit
		out.Policies = append(out.Policies, PolicyTrace{Ref: p.Ref, Mode: p.Mode, Invalid: p.Invalid})
		trace := &out.Policies[i]
		for j := range p.Rules {
			r := &p.Rules[j]
			trace.Rules = append(trace.Rules, RuleTrace{Name: r.Name, Action: r.Action, Lacks: v.lacks(p, r)})
			if !trace.Rules[j].Matched() || r.Action == Log {
				continue
			}
			if p.Mode == Audit {
				break // what it would have decided ends it, and decides nothing
			}
			if r.Action == Pass {
				out.Result = "passed on by " + p.Ref.String() + ", rule " + r.Name
				return out, false
			}
			action := "allowed"
			if r.Action != Allow {
				action = "denied"
			}
			out.Result = action + " by " + p.Ref.String() + ", rule " + r.Name
			return out, true
		}
	}
	switch {
	case len(t.Policies) == 0:
		out.Result = "skipped: no policy selects the endpoint"
	case !enforcing:
		out.Result = "skipped: only policies in Audit mode select the endpoint"
	case t.DefaultAction == Pass:
		out.Result = "passed on: no rule matched, and the tier passes by default"
	default:
		out.Result = "denied: no rule matched, and the tier denies by default"
		return out, true
	}
	return out, false
}

// lacks says what keeps a rule from matching; empty when it matches.
func (v *view) lacks(p *Policy, r *Rule) string {
	if v.rule(p, r) == Yes {
		return ""
	}
	deny := r.denies()
	if !deny && p.Invalid != "" {
		return "the policy is invalid and so only denies: " + p.Invalid
	}
	if !deny && r.Invalid != "" {
		return "the rule is invalid and so does not " + strings.ToLower(r.Action.String()) + ": " + r.Invalid
	}
	var lacks []string
	if !v.ports(r.Ports, deny) {
		lacks = append(lacks, v.lacksPort(r.Ports))
	}
	if peers := *r; !r.AnyPeer {
		peers.Ports, peers.HTTP, peers.RequireMTLS = nil, nil, false
		if v.rule(p, &peers) != Yes {
			lacks = append(lacks, v.lacksPeer(r.Peers, deny))
		}
	}
	if r.RequireMTLS && v.mtls() != Yes {
		lacks = append(lacks, "the connection is not mTLS")
	}
	if v.requests(r.HTTP, deny) != Yes {
		lacks = append(lacks, v.lacksRequest(r.HTTP, deny))
	}
	return strings.Join(lacks, "; ")
}

func (v *view) lacksPort(ports []PortMatch) string {
	var want []string
	for i := range ports {
		want = append(want, ports[i].String())
	}
	got := v.flow.Protocol.String()
	if v.flow.Protocol == ICMP || v.flow.Protocol == ICMPv6 {
		got += fmt.Sprintf(" type %d code %d", v.flow.ICMPType, v.flow.ICMPCode)
	} else {
		got += fmt.Sprintf(" %d", v.flow.Port)
	}
	return fmt.Sprintf("%s is not %s", got, strings.Join(want, " or "))
}

// String is the match as users would say it, such as "TCP 80-90".
func (m PortMatch) String() string {
	s := m.Protocol.String()
	switch {
	case m.problem() != "":
		s += " (" + m.problem() + ")"
	case m.Name != "":
		s += " " + m.Name
	case m.EndPort != 0:
		s += fmt.Sprintf(" %d-%d", m.Port, m.EndPort)
	case m.Port != 0:
		s += fmt.Sprintf(" %d", m.Port)
	case m.ICMPType != nil:
		s += fmt.Sprintf(" type %d", *m.ICMPType)
		if m.ICMPCode != nil {
			s += fmt.Sprintf(" code %d", *m.ICMPCode)
		}
	}
	return s
}

// String is the endpoint as users would name it.
func (e Endpoint) String() string {
	name := e.Addr.String()
	switch {
	case e.Host && e.HostOf != "":
		name = "node " + e.HostOf
	case e.Host:
		name = "a node (" + name + ")"
	case e.Workload != nil:
		name = "pod " + e.Workload.Namespace + "/" + e.Workload.Name
	case !e.Addr.IsValid():
		name = "an unknown address"
	}
	if e.Principal != "" {
		name += " as " + e.Principal
	}
	return name
}

func (v *view) lacksPeer(peers []Peer, deny bool) string {
	if len(peers) == 0 {
		return "it names no peer"
	}
	whys := make([]string, 0, len(peers))
	for i := range peers {
		whys = append(whys, v.lacksField(&peers[i], deny))
	}
	if len(whys) == 1 {
		return v.peer.String() + " is not its peer: " + whys[0]
	}
	for i := range whys {
		whys[i] = fmt.Sprintf("(%d) %s", i+1, whys[i])
	}
	return v.peer.String() + " is none of its peers: " + strings.Join(whys, ", ")
}

// lacksField names the first field of a peer that does not match.
func (v *view) lacksField(p *Peer, deny bool) string {
	w := v.workload
	switch {
	case p.isZero():
		return "it is empty"
	case p.SelectsWorkloads() && v.peer.Host:
		return "a node is no pod, nor are its host-network pods"
	case p.SelectsWorkloads() && w == nil:
		return "it is no pod of the cluster"
	case len(p.Namespaces) > 0 && !contains(p.Namespaces, w.Namespace):
		return fmt.Sprintf("namespace %s is not %s", w.Namespace, strings.Join(p.Namespaces, " or "))
	case p.NamespaceSelector != nil && !p.NamespaceSelector.matches(w.NamespaceLabels, deny):
		return fmt.Sprintf("the labels of namespace %s do not satisfy %s", w.Namespace, p.NamespaceSelector)
	case p.PodSelector != nil && !p.PodSelector.matches(w.Labels, deny):
		return fmt.Sprintf("the pod's labels do not satisfy %s", p.PodSelector)
	case len(p.ServiceAccounts) > 0 && !contains(p.ServiceAccounts, ServiceAccount{w.Namespace, w.ServiceAccount}):
		return fmt.Sprintf("service account %s/%s is not %s", w.Namespace, w.ServiceAccount, joinAccounts(p.ServiceAccounts))
	case p.ServiceAccountSelector != nil && !p.ServiceAccountSelector.matches(w.ServiceAccountLabels, deny):
		return fmt.Sprintf("the labels of service account %s/%s do not satisfy %s", w.Namespace, w.ServiceAccount, p.ServiceAccountSelector)
	case len(p.Networks) > 0 && !matchNetworks(p.Networks, v.peer.Addr, deny):
		return fmt.Sprintf("%s is not in %s", v.peer.Addr, joinNetworks(p.Networks))
	case len(p.Entities) > 0 && !matchEntities(p.Entities, v.peer, deny):
		return fmt.Sprintf("it is not of %v", p.Entities)
	case v.peer.Principal == "":
		return "it proved no principal"
	}
	return "its principal is not " + strings.Join(p.Principals, " or ")
}

func joinAccounts(list []ServiceAccount) string {
	var s []string
	for _, a := range list {
		s = append(s, a.Namespace+"/"+a.Name)
	}
	return strings.Join(s, " or ")
}

func joinNetworks(list []Network) string {
	var s []string
	for _, n := range list {
		text := n.Prefix.String()
		for i, e := range n.Except {
			if i == 0 {
				text += " except "
			} else {
				text += ", "
			}
			text += e.String()
		}
		s = append(s, text)
	}
	return strings.Join(s, " or ")
}

// String is the selector in kubectl's notation.
func (s *Selector) String() string {
	if s == nil || len(s.Requirements) == 0 {
		return "everything"
	}
	var parts []string
	for _, r := range s.Requirements {
		values := strings.Join(r.Values, ",")
		switch {
		case r.Operator == In && len(r.Values) == 1:
			parts = append(parts, r.Key+"="+values)
		case r.Operator == In:
			parts = append(parts, r.Key+" in ("+values+")")
		case r.Operator == NotIn:
			parts = append(parts, r.Key+" notin ("+values+")")
		case r.Operator == Exists:
			parts = append(parts, r.Key)
		case r.Operator == DoesNotExist:
			parts = append(parts, "!"+r.Key)
		default:
			parts = append(parts, r.Key+" (unknown operator)")
		}
	}
	return strings.Join(parts, ",")
}

func (v *view) lacksRequest(list []HTTPMatch, deny bool) string {
	r := v.flow.HTTP
	if r == nil || v.none&UnknownHTTP != 0 {
		return "the flow is not HTTP"
	}
	whys := make([]string, 0, len(list))
	for i := range list {
		m := &list[i]
		switch {
		case !m.matchesMethod(r):
			whys = append(whys, fmt.Sprintf("method %s is not %s", r.Method, strings.Join(m.Methods, " or ")))
		case !m.matchesPath(r, deny):
			var paths []string
			for _, p := range m.Paths {
				paths = append(paths, p.String())
			}
			whys = append(whys, fmt.Sprintf("path %s is not %s", r.Path, strings.Join(paths, " or ")))
		case !m.matchesHost(r, deny):
			whys = append(whys, fmt.Sprintf("host %s is not %s", r.Host, strings.Join(m.Hosts, " or ")))
		case !m.matchesGRPC(r, deny):
			var names []string
			for _, g := range m.GRPC {
				names = append(names, g.String())
			}
			whys = append(whys, fmt.Sprintf("it is no gRPC request to %s", strings.Join(names, " or ")))
		case !m.matchesQuery(r, deny):
			var names []string
			for _, q := range m.Query {
				names = append(names, q.Name)
			}
			whys = append(whys, "the value of query parameter "+strings.Join(names, " or of ")+" is not as required")
		default:
			var names []string
			for _, h := range m.Headers {
				names = append(names, h.Name)
			}
			// Values are not shown: headers hold secrets.
			whys = append(whys, "the value of header "+strings.Join(names, " or of ")+" is not as required")
		}
	}
	return strings.Join(whys, ", ")
}

// String is the trace as indented text, one line for each thing looked at.
func (t Trace) String() string {
	var b strings.Builder
	fmt.Fprintln(&b, t.Verdict)
	for _, tier := range t.Tiers {
		fmt.Fprintf(&b, "  tier %s (order %v): %s\n", tier.Name, tier.Order, tier.Result)
		for _, p := range tier.Policies {
			fmt.Fprintf(&b, "    %s", p.Ref)
			if p.Mode == Audit {
				fmt.Fprint(&b, " (Audit: decides nothing)")
			}
			if p.Invalid != "" {
				fmt.Fprintf(&b, " (invalid: %s)", p.Invalid)
			}
			fmt.Fprintln(&b)
			for _, r := range p.Rules {
				if r.Matched() {
					fmt.Fprintf(&b, "      ✓ %s %s: matches\n", r.Name, r.Action)
				} else {
					fmt.Fprintf(&b, "      ✗ %s %s: %s\n", r.Name, r.Action, r.Lacks)
				}
			}
		}
	}
	if t.Verdict.Audit != nil {
		fmt.Fprintf(&b, "  with the policies in Audit mode enforced: %s\n", t.Verdict.Audit)
	}
	return b.String()
}
