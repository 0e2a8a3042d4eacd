package verdict

import (
	"fmt"
	"slices"
	"strings"

	"github.com/hauberk-mesh/hauberk/cli/run"
	"github.com/hauberk-mesh/hauberk/control/compile"
	"github.com/hauberk-mesh/hauberk/policy"
)

// place is a rule as users know it: one that is written may be compiled into
// several, and be in the sets of many pods.
type place struct {
	ref       policy.Ref
	direction policy.Direction
	rule      string
}

// fate is what becomes of a rule wherever it is.
type fate struct {
	alive bool
	// by is an earlier rule that matches all that it matches; behind a tier that
	// decides everything.
	by, behind string
}

// reached finds rules and tiers that no flow reaches, in none of the sets.
func (a *analyst) reached() {
	fates := map[place]*fate{}
	var places []place
	ids := make([]string, 0, len(a.resources.PolicySets))
	for id := range a.resources.PolicySets {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	for _, id := range ids {
		for _, d := range []policy.Direction{policy.Ingress, policy.Egress} {
			set := a.resources.PolicySets[id].Set
			var before []earlier
			behind := ""
			tiers := set.Tiers(d)
			for t := range tiers {
				tier := &tiers[t]
				enforcing, passes := false, false
				for i := range tier.Policies {
					p := &tier.Policies[i]
					enforcing = enforcing || p.Mode == policy.Enforce
					for j := range p.Rules {
						r := &p.Rules[j]
						at := place{p.Ref, d, r.Name}
						if fates[at] == nil {
							fates[at] = &fate{}
							places = append(places, at)
						}
						fates[at].meet(before, behind, tier.Name, p, r)
						if p.Mode == policy.Enforce && r.Action != policy.Log {
							before = append(before, earlier{tier.Name, p, r})
							passes = passes || r.Action == policy.Pass
						}
					}
				}
				if behind == "" && enforcing && tier.DefaultAction != policy.Pass && !passes {
					behind = tier.Name
				}
			}
		}
	}
	for _, at := range places {
		switch f := fates[at]; {
		case f.alive:
		case f.by != "":
			a.find("shadowed-rule", warning, at.ref, at.rule, fmt.Sprintf("it is never reached: %s comes before it and matches all that it matches", f.by),
				"delete one of them, or change their order")
		default:
			severity := warning
			if strings.HasPrefix(at.ref.Kind, "ClusterNetworkPolicy") {
				severity = hint // baselines are there to be overruled
			}
			a.find("tier-never-reached", severity, at.ref, at.rule,
				fmt.Sprintf("it is never reached: every pod that it selects is selected in tier %s too, which denies what it does not allow", f.behind),
				"give the earlier tier a Pass rule or `defaultAction: Pass`, or move the policy into an earlier tier")
		}
	}
}

// earlier is a rule that decides before others.
type earlier struct {
	tier   string
	policy *policy.Policy
	rule   *policy.Rule
}

// meet adds what becomes of the rule in one set.
func (f *fate) meet(before []earlier, behind, tier string, p *policy.Policy, r *policy.Rule) {
	if f.alive {
		return
	}
	for _, e := range before {
		if e.tier != tier && e.rule.Action == policy.Pass || e.policy.Invalid != "" || p.Invalid != "" || !covers(e.rule, r) {
			continue
		}
		f.by = fmt.Sprintf("%s, rule %s (%s)", e.policy.Ref, e.rule.Name, e.rule.Action)
		return
	}
	if behind != "" {
		f.behind = behind
		return
	}
	f.alive = true
}

// orders finds policies of one tier that contradict each other and of which
// names say which comes first.
func (a *analyst) orders() {
	for i := range a.facts.Policies {
		for j := i + 1; j < len(a.facts.Policies); j++ {
			p, q := &a.facts.Policies[i], &a.facts.Policies[j]
			if tierOf(p) != tierOf(q) || p.Order != q.Order || p.Mode != q.Mode || !a.shareSubject(p, q) {
				continue
			}
			for _, side := range [][2][]compile.Rule{{p.Ingress, q.Ingress}, {p.Egress, q.Egress}} {
				if x, y, ok := a.contradict(side[0], side[1]); ok {
					order := fmt.Sprintf("order %v", p.Order)
					if p.Order >= maxOrder {
						order = "no order"
					}
					a.find("same-order", warning, p.Ref, x, fmt.Sprintf("it and rule %s of %s decide the same flows differently, both policies have %s in tier %s, and so their names decide", y, q.Ref, order, tierOf(p)),
						"give the one that is to win a lower order")
					break
				}
			}
		}
	}
}

func tierOf(p *compile.Policy) string {
	if p.Tier == "" {
		return compile.TierDefault
	}
	return p.Tier
}

// shareSubject reports whether a pod is selected by both, of policies that do
// not all say the same.
func (a *analyst) shareSubject(p, q *compile.Policy) bool {
	action := func(p *compile.Policy) policy.Action {
		rules := slices.Concat(p.Ingress, p.Egress)
		for i := range rules {
			if rules[i].Action != rules[0].Action {
				return policy.Log // several
			}
		}
		if len(rules) == 0 {
			return policy.Deny
		}
		return rules[0].Action
	}
	if x, y := action(p), action(q); x == y && x != policy.Log {
		return false
	}
	of := a.subjects[q.Ref]
	return slices.ContainsFunc(a.subjects[p.Ref], func(uid string) bool { return slices.Contains(of, uid) })
}

// contradict finds two rules that match a flow in common and decide it
// differently.
func (a *analyst) contradict(of, with []compile.Rule) (x, y string, found bool) {
	for i := range of {
		for j := range with {
			r, s := &of[i], &with[j]
			if r.Action != s.Action && r.Action != policy.Log && s.Action != policy.Log && r.Invalid == "" && s.Invalid == "" &&
				namesNothing(r) && namesNothing(s) && (covers(&r.Rule, &s.Rule) || covers(&s.Rule, &r.Rule)) {
				return r.Name, s.Name, true
			}
		}
	}
	return "", "", false
}

// namesNothing reports whether the rule is whole without the objects that its
// peers name.
func namesNothing(r *compile.Rule) bool {
	return !slices.ContainsFunc(r.Refs, func(refs compile.PeerRefs) bool {
		return refs.Nodes != nil || len(refs.NetworkSets)+len(refs.Services) > 0
	})
}

// groups are pods that have one set, by its id, in the order of their names.
func (a *analyst) groups() [][]string {
	byID := map[string]int{}
	var groups [][]string
	uids := a.resources.Pods()
	slices.SortFunc(uids, func(x, y string) int {
		return strings.Compare(workloadName(a.pods[x])+x, workloadName(a.pods[y])+y)
	})
	for _, uid := range uids {
		set := a.resources.SetOf(uid)
		if set == nil || a.pods[uid].HostNetwork {
			continue
		}
		key := fmt.Sprint(set.ID, a.pods[uid].Meshed, a.pods[uid].Capture)
		i, ok := byID[key]
		if !ok {
			i = len(groups)
			byID[key] = i
			groups = append(groups, nil)
		}
		groups[i] = append(groups[i], uid)
	}
	return groups
}

func (a *analyst) namesOf(uids []string) []string {
	var list []string
	for _, uid := range uids {
		list = append(list, workloadName(a.pods[uid]))
	}
	slices.Sort(list)
	return slices.Compact(list)
}

// dns finds pods that may not ask the Services of kube-system that serve port
// 53.
func (a *analyst) dns() {
	const port = 53
	for i := range a.facts.Services {
		s := &a.facts.Services[i]
		if s.Namespace != "kube-system" {
			continue
		}
		for _, protocol := range []policy.Protocol{policy.UDP, policy.TCP} {
			if !slices.ContainsFunc(s.Ports, func(p compile.ServicePort) bool { return p.Port == port && p.Protocol == protocol }) {
				continue
			}
			to, err := a.service(s.Name, name{"Service", s.Namespace, s.Name}, fmt.Sprint(port), protocol)
			if err != nil {
				continue // nobody serves it now
			}
			for _, uids := range a.groups() {
				pod := a.pods[uids[0]]
				q := &question{from: a.podEnd(pod.Name, []*compile.Pod{pod}), to: to, protocol: protocol, port: to.port}
				destination := *to
				q.to = &destination
				sameFamily(q)
				answer := a.decide(q)
				if answer.Egress.allowed() {
					continue
				}
				for _, ref := range a.culprits(&answer.Egress) {
					a.find("denies-dns", warning, ref, answer.Egress.Rule, fmt.Sprintf("%s may not ask the cluster's DNS (%s/%s, %s %d)", run.Some(a.namesOf(uids)), s.Namespace, s.Name, protocol, port),
						fmt.Sprintf("allow egress to the pods of %s/%s at %s %d", s.Namespace, s.Name, protocol, to.port))
				}
			}
		}
	}
}

// culprits are the policies that decided a side: the first of those whose tier
// denies by default.
func (a *analyst) culprits(s *Side) []policy.Ref {
	text := s.Policy
	if text == "" && len(s.Selecting) > 0 {
		text = s.Selecting[0]
	}
	for i := range a.facts.Policies {
		if ref := a.facts.Policies[i].Ref; ref.String() == text {
			return []policy.Ref{ref}
		}
	}
	return nil
}

// kubelet finds pods without a sidecar whose probes the kernel drops because
// their policy asks for more than packets tell.
func (a *analyst) kubelet() {
	for _, uids := range a.groups() {
		i := slices.IndexFunc(uids, func(uid string) bool { return a.pods[uid].Node != "" && len(a.pods[uid].Ports) > 0 })
		if i < 0 || a.pods[uids[i]].Meshed {
			continue
		}
		pod := a.pods[uids[i]]
		n := slices.IndexFunc(a.facts.Nodes, func(n compile.Node) bool { return n.Name == pod.Node })
		if n < 0 || len(a.facts.Nodes[n].Internal) == 0 {
			continue
		}
		node := func() *end {
			return &end{asked: "node/" + pod.Node, endpoint: policy.Endpoint{Addr: a.facts.Nodes[n].Internal[0], Host: true, HostOf: pod.Node}}
		}
		for _, p := range pod.Ports {
			if p.Protocol != policy.TCP {
				continue
			}
			q := &question{from: node(), to: a.podEnd(pod.Name, []*compile.Pod{pod}), protocol: p.Protocol, port: p.Port}
			sameFamily(q)
			flow := policy.Flow{Source: q.from.endpoint, Destination: q.to.endpoint, Protocol: p.Protocol, Port: p.Port}
			set := a.resources.SetOf(pod.UID)
			if set.Project(policy.Ingress, &flow) == policy.AllAllowed {
				continue
			}
			for _, ref := range a.beyondPackets(set) {
				a.find("denies-kubelet", severe, ref, "", fmt.Sprintf("it asks for requests or identities at %s, which has no sidecar: the kernel then drops the kubelet's probes of port %d too", run.Some(a.namesOf(uids)), p.Port),
					"put the pods into the mesh, or decide by ports and peers there")
			}
			break
		}
	}
}

// beyondPackets is the enforcing policies with rules that packets can't decide.
func (a *analyst) beyondPackets(set *policy.Set) []policy.Ref {
	var refs []policy.Ref
	eachRule(set, policy.Ingress, func(p *policy.Policy, r *policy.Rule) {
		l7 := r.L7() || slices.ContainsFunc(r.Peers, func(p policy.Peer) bool { return len(p.Principals) > 0 })
		if p.Mode == policy.Enforce && l7 && !slices.Contains(refs, p.Ref) {
			refs = append(refs, p.Ref)
		}
	})
	return refs
}
