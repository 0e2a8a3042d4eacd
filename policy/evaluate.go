package policy

// The reasons of verdicts. They are constants so that deciding allocates
// nothing; Verdict.String makes whole sentences of them.
const (
	ReasonRule         = "the rule matched"
	ReasonInvalidRule  = "the rule could not be resolved: a Deny then matches everything it could mean"
	ReasonTierDefault  = "no rule of the policies that select the endpoint matched"
	ReasonDefaultAllow = "no policy decided, and the mesh allows by default"
	ReasonDefaultDeny  = "no policy decided, and the mesh denies by default"
	ReasonSelf         = "a pod that talks to itself is not policed"
	ReasonOwnNode      = "the pod's own node may reach it"
	ReasonNoSet        = "the policy of the endpoint is not known"
	ReasonNoFlow       = "the flow is not known"
	ReasonNoPod        = "the endpoint is not a pod, so it has no policy"
)

// Evaluate decides a flow for the subject of the set: the destination when d
// is Ingress, the source when it is Egress. All attributes of the flow are taken
// as known: a nil HTTP means that it is not HTTP.
//
// Two kinds of flow are allowed before any policy: a pod's with itself, and,
// as ingress, one from the node on which the destination runs (the kubelet;
// nobody can keep a node out of its own pods). The second holds for requests
// as well.
//
// Evaluate allocates nothing unless a Log rule matches or a policy in Audit mode
// would have decided otherwise. A nil Set denies.
func (s *Set) Evaluate(d Direction, f *Flow) Verdict {
	if v, ok := s.before(d, f, 0); ok {
		return v
	}
	var v view
	v.init(d, f, 0)
	var audit bool
	verdict := s.walk(d, &v, false, &audit)
	if audit {
		var more bool
		would := s.walk(d, &v, true, &more)
		if !sameDecision(&verdict, &would) {
			verdict.Audit = record(would)
		}
	}
	return verdict
}

// record moves a verdict to the heap; apart so that only it allocates.
func record(v Verdict) *Verdict { return &v }

func sameDecision(a, b *Verdict) bool {
	return a.Action == b.Action && a.Tier == b.Tier && a.Policy == b.Policy && a.Rule == b.Rule && a.Reason == b.Reason
}

// before decides what no policy decides.
func (s *Set) before(d Direction, f *Flow, unknown Unknown) (Verdict, bool) {
	switch {
	case f == nil:
		return Verdict{Direction: d, Reason: ReasonNoFlow}, true
	case s == nil:
		return Verdict{Direction: d, Reason: ReasonNoSet}, true
	case f.self():
		return Verdict{Action: Allow, Direction: d, Reason: ReasonSelf}, true
	case d == Ingress && f.fromOwnNode() && !(f.beyondPackets(unknown) && s.beyondPackets(d)):
		return Verdict{Action: Allow, Direction: d, Reason: ReasonOwnNode}, true
	}
	return Verdict{}, false
}

// self reports whether both ends are the same pod.
func (f *Flow) self() bool {
	a, b := f.Source.Workload, f.Destination.Workload
	return a != nil && b != nil && !f.Source.Host && !f.Destination.Host && (a == b || a.UID != "" && a.UID == b.UID)
}

// beyondPackets reports whether an enforcing policy has conditions that packets
// can't decide. Then the own node's address is no reason to skip them: clients
// of a NodePort arrive with it where kube-proxy masquerades. What has no more to
// it than packets, such as the kubelet's connection, stays allowed.
func (s *Set) beyondPackets(d Direction) bool {
	if x := s.index(d); x != nil {
		return x.beyond
	}
	return beyondPacketsOf(s.Tiers(d))
}

func beyondPacketsOf(tiers []Tier) bool {
	for t := range tiers {
		for p := range tiers[t].Policies {
			if tiers[t].Policies[p].Mode == Audit {
				continue
			}
			policy := &tiers[t].Policies[p]
			for r := range policy.Rules {
				if policy.Rules[r].Action != Log && beyondPackets(policy, &policy.Rules[r]) {
					return true
				}
			}
		}
	}
	return false
}

// beyondPackets is of one rule, as far as it can match at all.
func beyondPackets(p *Policy, r *Rule) bool {
	principals := false
	for i := range r.Peers {
		principals = principals || len(r.Peers[i].Principals) > 0
	}
	if !r.L7() && !principals {
		return false
	}
	resolved, ok := resolveRule(p, r)
	if !ok || resolved.L7() {
		return ok
	}
	for i := range resolved.Peers {
		if len(resolved.Peers[i].Principals) > 0 {
			return true
		}
	}
	return false
}

// beyondPackets reports whether the flow has, or may have, more to it than
// packets.
func (f *Flow) beyondPackets(unknown Unknown) bool {
	return f.HTTP != nil || f.MTLS || unknown != 0 && (f.Protocol == TCP || f.Protocol == AnyProtocol)
}

// fromOwnNode reports whether the flow comes from the node on which the
// destination pod runs.
func (f *Flow) fromOwnNode() bool {
	w := f.Destination.Workload
	return w != nil && !f.Destination.Host && f.Source.Host && f.Source.HostOf != "" && f.Source.HostOf == w.Node
}

// walk evaluates the tiers. With audit, policies in Audit mode decide too. seen
// is set when a policy in Audit mode stood before the decision.
func (s *Set) walk(d Direction, v *view, audit bool, seen *bool) Verdict {
	if x := s.index(d); x != nil {
		return x.walk(s, d, v, audit, seen)
	}
	var logs []RuleRef
	tiers := s.Tiers(d)
tiers:
	for t := range tiers {
		tier := &tiers[t]
		selected := false
		for p := range tier.Policies {
			policy := &tier.Policies[p]
			if policy.Mode == Audit {
				*seen = true
				if !audit {
					continue
				}
			}
			selected = true
			for r := range policy.Rules {
				rule := &policy.Rules[r]
				if v.rule(policy, rule) != Yes {
					continue
				}
				switch rule.Action {
				case Log:
					logs = append(logs, RuleRef{tier.Name, policy.Ref, rule.Name})
					continue
				case Pass:
					continue tiers
				default:
					return byRule(d, tier, policy, rule, logs)
				}
			}
		}
		if selected && tier.DefaultAction != Pass {
			return Verdict{Action: Deny, Direction: d, Tier: tier.Name, Reason: ReasonTierDefault, Logs: logs}
		}
	}
	return s.byDefault(d, logs)
}

// byRule is the verdict of a rule that matched and neither passes nor logs.
func byRule(d Direction, t *Tier, p *Policy, r *Rule, logs []RuleRef) Verdict {
	v := Verdict{Action: Deny, Direction: d, Tier: t.Name, Policy: p.Ref, Rule: r.Name, Reason: ReasonRule, Logs: logs}
	switch {
	case r.Action == Allow:
		v.Action = Allow
	case r.Invalid != "" || p.Invalid != "":
		v.Reason = ReasonInvalidRule
	}
	return v
}

// byDefault is the verdict of the mesh when no tier decided.
func (s *Set) byDefault(d Direction, logs []RuleRef) Verdict {
	if s.DefaultAction == Allow {
		return Verdict{Action: Allow, Direction: d, Reason: ReasonDefaultAllow, Logs: logs}
	}
	return Verdict{Action: Deny, Direction: d, Reason: ReasonDefaultDeny, Logs: logs}
}

// Decide evaluates a flow at both ends; it is open only if both verdicts allow.
// A nil Set of an end that is not a pod (nil Workload, or a node) stands for "no
// policy" and allows; of a pod it denies.
func Decide(src, dst *Set, f *Flow) (egress, ingress Verdict) {
	return decideEnd(src, Egress, f), decideEnd(dst, Ingress, f)
}

func decideEnd(s *Set, d Direction, f *Flow) Verdict {
	if s == nil && f != nil {
		end := &f.Destination
		if d == Egress {
			end = &f.Source
		}
		if end.Workload == nil || end.Host {
			return Verdict{Action: Allow, Direction: d, Reason: ReasonNoPod}
		}
	}
	return s.Evaluate(d, f)
}

// Allowed reports whether the verdict allows.
func (v *Verdict) Allowed() bool { return v.Action == Allow }

// String is the verdict as one line for humans.
func (v Verdict) String() string {
	s := v.Direction.String() + " " + v.Action.String() + ": "
	if v.Tier != "" {
		s += "tier " + v.Tier + ", "
	}
	if v.Policy.Name != "" {
		s += v.Policy.String() + ", rule " + v.Rule + ": "
	}
	return s + v.Reason
}
