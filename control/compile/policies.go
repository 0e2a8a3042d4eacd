package compile

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"

	"github.com/hauberk-mesh/hauberk/internal/wire"
	"github.com/hauberk-mesh/hauberk/policy"
)

// The tiers that always exist. kube-admin and kube-baseline are for
// ClusterNetworkPolicy.
const (
	TierKubeAdmin    = "kube-admin"
	TierDefault      = "default"
	TierKubeBaseline = "kube-baseline"

	OrderKubeAdmin    = 1000
	OrderDefault      = 1_000_000
	OrderKubeBaseline = 10_000_000

	// OrderNetworkPolicy is where Kubernetes NetworkPolicies stand in the tier
	// "default".
	OrderNetworkPolicy = 1000
)

// builtInTiers cannot be redefined by Tier objects.
func builtInTiers() []Tier {
	return []Tier{
		{Name: TierKubeAdmin, Order: OrderKubeAdmin, DefaultAction: policy.Pass},
		{Name: TierDefault, Order: OrderDefault, DefaultAction: policy.Deny},
		{Name: TierKubeBaseline, Order: OrderKubeBaseline, DefaultAction: policy.Pass},
	}
}

// preparedPolicy is a policy with its rules' peers bound to peer sets.
type preparedPolicy struct {
	fact    *Policy
	tier    int // index into the sorted tiers
	invalid string
	ingress []policy.Rule
	egress  []policy.Rule
	report  int // index into the reports
}

// policies decides which policies govern which pod. Pods that are alike share
// one set: the work is done once for each combination of namespace and labels,
// and once more for each combination of policies.
func (c *compiler) policies() {
	tiers := c.sortedTiers()
	prepared := c.preparePolicies(tiers)

	byNamespace := make(map[string][]int) // "" is cluster-scoped
	for i := range prepared {
		ns := prepared[i].fact.Subject.Namespace
		byNamespace[ns] = append(byNamespace[ns], i)
	}
	bySignature := make(map[string]*selection)
	byPolicies := make(map[string]*PolicySet)
	for _, entry := range c.pods {
		if entry.fact.HostNetwork {
			continue
		}
		signature := labelSignature(entry.fact.Namespace, entry.fact.Labels)
		sel := bySignature[signature]
		if sel == nil {
			sel = selectPolicies(prepared, byNamespace, entry.workload)
			key := sel.key()
			set := byPolicies[key]
			if set == nil {
				set = c.buildSet(tiers, prepared, sel)
				byPolicies[key] = set
			}
			sel.set = set
			bySignature[signature] = sel
		}
		entry.set = sel.set
		for _, i := range sel.all {
			report := &c.out.Policies[prepared[i].report]
			report.Subjects = append(report.Subjects, entry.fact.UID)
		}
	}
	for i := range c.out.Policies {
		slices.Sort(c.out.Policies[i].Subjects)
	}
}

func (c *compiler) sortedTiers() []Tier {
	tiers := builtInTiers()
	for _, t := range c.facts.Tiers {
		if t.Name == TierKubeAdmin || t.Name == TierDefault || t.Name == TierKubeBaseline {
			continue
		}
		tiers = append(tiers, t)
	}
	slices.SortFunc(tiers, func(a, b Tier) int {
		switch {
		case a.Order < b.Order:
			return -1
		case a.Order > b.Order:
			return 1
		}
		return compareStrings(a.Name, b.Name)
	})
	return tiers
}

// preparePolicies is the policies in order of evaluation: by order, namespace,
// name and kind; tiers are applied later.
func (c *compiler) preparePolicies(tiers []Tier) []preparedPolicy {
	c.peers, c.named = make(map[string]*policy.Peer), make(map[string]bool)
	prepared := make([]preparedPolicy, 0, len(c.facts.Policies))
	for i := range c.facts.Policies {
		prepared = append(prepared, preparedPolicy{fact: &c.facts.Policies[i]})
	}
	slices.SortStableFunc(prepared, func(a, b preparedPolicy) int {
		x, y := a.fact, b.fact
		switch {
		case x.Order < y.Order:
			return -1
		case x.Order > y.Order:
			return 1
		}
		return compareStrings(x.Ref.Namespace, y.Ref.Namespace, x.Ref.Name, y.Ref.Name, x.Ref.Kind, y.Ref.Kind, x.Ref.UID, y.Ref.UID)
	})
	c.out.Policies = make([]PolicyReport, len(prepared))
	for i := range prepared {
		p := &prepared[i]
		p.report = i
		report := PolicyReport{Ref: p.fact.Ref}
		p.invalid = p.fact.Invalid
		name := p.fact.Tier
		if name == "" {
			name = TierDefault
		}
		p.tier = slices.IndexFunc(tiers, func(t Tier) bool { return t.Name == name })
		switch {
		case p.tier < 0:
			// Of a tier that nobody knows nobody knows the place: the policy stands, invalid,
			// in the default tier, which denies what it selects.
			p.tier = slices.IndexFunc(tiers, func(t Tier) bool { return t.Name == TierDefault })
			reason := fmt.Sprintf("tier %q does not exist: create it, or set spec.tier to one that does", name)
			p.invalid = joinReasons(p.invalid, reason)
			report.Unresolved = append(report.Unresolved, reason)
		case tiers[p.tier].Invalid != "":
			p.invalid = joinReasons(p.invalid, fmt.Sprintf("tier %q is invalid: %s", name, tiers[p.tier].Invalid))
		}
		p.ingress = c.bindRules(p.fact.Ingress, policy.Ingress, &report)
		p.egress = c.bindRules(p.fact.Egress, policy.Egress, &report)
		if p.invalid != "" {
			report.Invalid = append([]string{p.invalid}, report.Invalid...)
		}
		c.out.Policies[i] = report
	}
	return prepared
}

// bindRules resolves what rules name and gives each peer with selectors its
// peer set.
func (c *compiler) bindRules(rules []Rule, d policy.Direction, report *PolicyReport) []policy.Rule {
	var bound []policy.Rule
	for _, written := range rules {
		for j := range written.Peers {
			for _, sa := range written.Peers[j].ServiceAccounts {
				if c.accounts[accountKey{sa.Namespace, sa.Name}] == nil {
					report.Unresolved = append(report.Unresolved,
						fmt.Sprintf("%s: service account %s/%s does not exist, so it matches nothing yet", written.Name, sa.Namespace, sa.Name))
				}
			}
		}
		expanded := c.expand(written, d, report)
		if expanded[0].Invalid != "" {
			report.Invalid = append(report.Invalid, written.Name+": "+expanded[0].Invalid)
		}
		for _, rule := range expanded {
			report.L7 = report.L7 || rule.L7()
			rule.Peers = slices.Clone(rule.Peers)
			named := d == policy.Egress && slices.ContainsFunc(rule.Ports, func(m policy.PortMatch) bool { return m.Name != "" })
			for j := range rule.Peers {
				peer := &rule.Peers[j]
				report.L7 = report.L7 || len(peer.Principals) > 0
				peer.PeerSet = c.bindPeer(peer, named)
				if peer.NeedsEveryWorkload() {
					every := everyWorkload()
					c.bindPeer(&every, false)
				}
			}
			bound = append(bound, rule)
		}
	}
	return bound
}

// bindPeer is the id of the peer's peer set, empty when it needs none.
func (c *compiler) bindPeer(peer *policy.Peer, named bool) string {
	if !peer.SelectsWorkloads() {
		return ""
	}
	id := peer.SelectorDigest()
	if c.peers[id] == nil {
		c.peers[id] = peer
	}
	c.named[id] = c.named[id] || named
	return id
}

// selection is the policies that select one kind of pod, by index.
type selection struct {
	ingress, egress []int
	all             []int
	set             *PolicySet
}

func (s *selection) key() string {
	b := make([]byte, 0, 4*(len(s.ingress)+len(s.egress)+1))
	for _, i := range s.ingress {
		b = binary.BigEndian.AppendUint32(b, uint32(i))
	}
	b = append(b, 0xff, 0xff, 0xff, 0xff)
	for _, i := range s.egress {
		b = binary.BigEndian.AppendUint32(b, uint32(i))
	}
	return string(b)
}

func selectPolicies(prepared []preparedPolicy, byNamespace map[string][]int, w *policy.Workload) *selection {
	var s selection
	candidates := slices.Concat(byNamespace[""], byNamespace[w.Namespace])
	slices.Sort(candidates) // restores the order of evaluation
	for _, i := range candidates {
		fact := prepared[i].fact
		if !fact.Subject.selects(w) {
			continue
		}
		s.all = append(s.all, i)
		if fact.GovernsIngress {
			s.ingress = append(s.ingress, i)
		}
		if fact.GovernsEgress {
			s.egress = append(s.egress, i)
		}
	}
	return &s
}

func (s *Subject) selects(w *policy.Workload) bool {
	return (s.Namespace == "" || s.Namespace == w.Namespace) &&
		(s.NamespaceSelector == nil || s.NamespaceSelector.Matches(w.NamespaceLabels)) &&
		(s.PodSelector == nil || s.PodSelector.Matches(w.Labels))
}

func (c *compiler) buildSet(tiers []Tier, prepared []preparedPolicy, sel *selection) *PolicySet {
	set := &policy.Set{
		Ingress:       buildTiers(tiers, prepared, sel.ingress, policy.Ingress),
		Egress:        buildTiers(tiers, prepared, sel.egress, policy.Egress),
		DefaultAction: c.facts.Mesh.DefaultAction,
	}
	set.ID = set.Digest()
	if existing := c.out.PolicySets[set.ID]; existing != nil {
		return existing
	}
	result := &PolicySet{Set: set, Proto: wire.PolicySetToProto(set)}
	for _, direction := range []policy.Direction{policy.Ingress, policy.Egress} {
		for _, tier := range set.Tiers(direction) {
			for _, p := range tier.Policies {
				for _, rule := range p.Rules {
					for _, peer := range rule.Peers {
						if peer.PeerSet != "" {
							result.PeerSets = append(result.PeerSets, peer.PeerSet)
						}
						if peer.NeedsEveryWorkload() {
							result.PeerSets = append(result.PeerSets, policy.EveryWorkloadDigest())
						}
					}
				}
			}
		}
	}
	slices.Sort(result.PeerSets)
	result.PeerSets = slices.Compact(result.PeerSets)
	c.out.PolicySets[set.ID] = result
	return result
}

// buildTiers groups policies, which come in order, by their tiers.
func buildTiers(tiers []Tier, prepared []preparedPolicy, selected []int, direction policy.Direction) []policy.Tier {
	var result []policy.Tier
	for t := range tiers {
		tier := policy.Tier{Name: tiers[t].Name, Order: tiers[t].Order, DefaultAction: tiers[t].DefaultAction}
		for _, i := range selected {
			p := &prepared[i]
			if p.tier != t {
				continue
			}
			rules := p.ingress
			if direction == policy.Egress {
				rules = p.egress
			}
			tier.Policies = append(tier.Policies, policy.Policy{
				Ref: p.fact.Ref, Order: p.fact.Order, Mode: p.fact.Mode, Invalid: p.invalid, Rules: rules,
			})
		}
		if len(tier.Policies) > 0 {
			result = append(result, tier)
		}
	}
	return result
}

// labelSignature is equal for pods that no subject selector can tell apart:
// the labels of a namespace belong to its name.
func labelSignature(namespace string, labels map[string]string) string {
	keys := make([]string, 0, len(labels))
	for k := range labels {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	var b strings.Builder
	b.WriteString(namespace)
	for _, k := range keys {
		b.WriteByte(0)
		b.WriteString(k)
		b.WriteByte(0)
		b.WriteString(labels[k])
	}
	return b.String()
}

func joinReasons(a, b string) string {
	if a == "" {
		return b
	}
	return a + "; " + b
}
