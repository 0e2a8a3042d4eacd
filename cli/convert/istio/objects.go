package istio

import (
	"cmp"
	"fmt"
	"maps"
	"reflect"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/hauberk-mesh/hauberk/api/v1alpha1"
	"github.com/hauberk-mesh/hauberk/cli/convert/manifest"
)

func isZero[T any](p *T) bool { return reflect.ValueOf(p).Elem().IsZero() }

// The tiers that Istio's actions become, all before Kubernetes' own: what AUDIT
// and DENY match is recorded or denied, what ALLOW matches passes on. So what a
// NetworkPolicy denies stays denied, as it is beside Istio.
//
// Rules that except something need a tier of their own, numbered from 1: Pass
// leaves it and nothing else.
const (
	tierAudit, orderAudit = "istio-audit", 100
	tierDeny, orderDeny   = "istio-deny", 300
	tierAllow, orderAllow = "istio-allow", 900
	maxOwnTiers           = 190

	orderRules      = 10 // in a tier
	orderNotHTTP    = 20 // after all that speaks of requests
	orderExceptions = 20 // after all that allows without exception
	maxListed       = 200
)

// objects converts the policies.
func (c *converter) objects(policies []*policy) []manifest.Converted {
	var out []manifest.Converted
	out = append(out, c.first("AUDIT", "Log", tierAudit, orderAudit, policies)...)
	out = append(out, c.first("DENY", "Deny", tierDeny, orderDeny, policies)...)
	return append(out, c.allow(policies)...)
}

// object is a policy of ours for the pods of p.
func (p *policy) object(name, tier string, order int32, rules []v1alpha1.IngressRule, from ...*manifest.Object) manifest.Converted {
	spec := v1alpha1.PolicyRules{Tier: tier, Order: &order, Mode: p.mode, Types: []v1alpha1.PolicyType{"Ingress"}, Ingress: rules}
	m := manifest.Meta(p.from, name)
	out := manifest.Converted{From: append([]*manifest.Object{p.from}, from...)}
	selector := metav1.LabelSelector{MatchLabels: p.labels}
	if p.mesh {
		m.Namespace = ""
		cluster := v1alpha1.ClusterPolicySpec{PolicyRules: spec}
		if len(p.labels) > 0 {
			cluster.PodSelector = &selector
		}
		out.Object = &v1alpha1.ClusterMeshPolicy{TypeMeta: manifest.Type("ClusterMeshPolicy"), ObjectMeta: m, Spec: cluster}
		return out
	}
	out.Object = &v1alpha1.MeshPolicy{TypeMeta: manifest.Type("MeshPolicy"), ObjectMeta: m,
		Spec: v1alpha1.PolicySpec{PodSelector: selector, PolicyRules: spec}}
	return out
}

func tierObject(name string, order int32, action v1alpha1.RuleAction) manifest.Converted {
	return manifest.Converted{Object: &v1alpha1.Tier{TypeMeta: manifest.Type("Tier"), ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: v1alpha1.TierSpec{Order: order, DefaultAction: action}}}
}

// passHTTP leaves the tier with every request.
func passHTTP() v1alpha1.IngressRule {
	return v1alpha1.IngressRule{RuleCommon: v1alpha1.RuleCommon{Name: "requests-are-decided", Action: "Pass",
		Ports: manifest.RulePorts("TCP", manifest.AllPorts()), HTTP: anyRequest()}}
}

// first converts the policies of an action that comes before ALLOW. What speaks of
// requests matches connections that are none by the rest of its conditions:
// Istio leaves out what it can't know, so as to deny rather more.
func (c *converter) first(istio string, action v1alpha1.RuleAction, tier string, order int32, policies []*policy) []manifest.Converted {
	var out []manifest.Converted
	used := 0
	own := map[string]int{} // tiers by namespace, those of the mesh under ""
	mesh := 0
	policies = slices.Clone(policies)
	slices.SortStableFunc(policies, func(a, b *policy) int { return cmp.Compare(rankMesh(a), rankMesh(b)) })
	base := false
	for _, p := range policies {
		if p.action != istio {
			continue
		}
		var rules, notHTTP []v1alpha1.IngressRule
		number := 0
		for i := range p.clauses {
			k := &p.clauses[i]
			if len(k.not) == 0 {
				rules = append(rules, k.yes.rules(action)...)
				if l4 := k.yes.layer4(); k.yes.request {
					notHTTP = append(notHTTP, l4.rules(action)...)
				}
				continue
			}
			number++
			key := p.from.Meta.Namespace
			if p.mesh {
				key = ""
			}
			own[key]++
			n := own[key]
			if p.mesh {
				mesh = n
			} else {
				n += mesh // those of the mesh may select the same pods
			}
			used = max(used, n)
			out = append(out, p.object(fmt.Sprintf("%s-except-%d", p.from.Meta.Name, number), fmt.Sprintf("%s-%d", tier, n), orderRules, k.inOwnTier(action)))
		}
		if len(rules) > 0 {
			out = append(out, p.object(p.from.Meta.Name, tier, orderRules, merge(rules)))
			base = true
		}
		if len(notHTTP) > 0 {
			out = append(out, p.object(p.from.Meta.Name+"-not-http", tier, orderNotHTTP, append([]v1alpha1.IngressRule{passHTTP()}, merge(notHTTP)...)))
		}
		c.tooMany(p, rules)
	}
	if base {
		out = append(out, tierObject(tier, order, "Pass"))
	}
	if used > maxOwnTiers {
		c.report.Errors = append(c.report.Errors, fmt.Sprintf("%d rules of action %s have not… fields, each of which needs a tier of its own, and there is room for %d", used, istio, maxOwnTiers))
	}
	for n := 1; n <= used; n++ {
		out = append(out, tierObject(fmt.Sprintf("%s-%d", tier, n), order+int32(n), "Pass"))
	}
	return out
}

func rankMesh(p *policy) int {
	if p.mesh {
		return 0
	}
	return 1
}

// inOwnTier is the clause's rules in a tier that holds no others for its pods.
func (k *clause) inOwnTier(action v1alpha1.RuleAction) []v1alpha1.IngressRule {
	var out []v1alpha1.IngressRule
	for i := range k.not {
		out = append(out, k.not[i].rules("Pass")...)
	}
	out = append(out, k.yes.rules(action)...)
	if k.yes.request {
		l4 := k.yes.layer4()
		out = append(append(out, passHTTP()), l4.rules(action)...)
	}
	return merge(out)
}

// allow converts ALLOW: what a rule matches passes the tier, the rest of TCP is
// denied by it.
func (c *converter) allow(policies []*policy) []manifest.Converted {
	var out []manifest.Converted
	var excepting []*policy
	any := false
	for _, p := range policies {
		if p.action != "ALLOW" {
			continue
		}
		any = true
		rules := []v1alpha1.IngressRule{passOthers()}
		excepts := false
		var plain []v1alpha1.IngressRule
		for i := range p.clauses {
			if len(p.clauses[i].not) > 0 {
				excepts = true
				continue
			}
			plain = append(plain, p.clauses[i].yes.rules("Pass")...)
		}
		rules = append(rules, merge(plain)...)
		c.tooMany(p, rules)
		if excepts {
			excepting = append(excepting, p)
		}
		if !excepts || len(plain) > 0 {
			out = append(out, p.object(p.from.Meta.Name, tierAllow, orderRules, rules))
		}
	}
	out = append(out, c.allowExcept(excepting)...)
	if any {
		out = append(out, tierObject(tierAllow, orderAllow, "Deny"))
	}
	return out
}

// passOthers: Istio sees TCP only.
func passOthers() v1alpha1.IngressRule {
	r := v1alpha1.IngressRule{RuleCommon: v1alpha1.RuleCommon{Name: "not-tcp", Action: "Pass"}}
	for _, protocol := range []string{"UDP", "SCTP", "ICMP", "ICMPv6"} {
		r.Ports = append(r.Ports, v1alpha1.RulePort{Protocol: protocol})
	}
	return r
}

// allowExcept converts ALLOW rules with exceptions. They stand in one object for
// each group of pods, after all that allow without: a list of denials and passes
// that ends the matter.
func (c *converter) allowExcept(policies []*policy) []manifest.Converted {
	var groups [][]*policy
	for _, p := range policies {
		i := slices.IndexFunc(groups, func(g []*policy) bool {
			return g[0].mesh == p.mesh && g[0].from.Meta.Namespace == p.from.Meta.Namespace && g[0].mode == p.mode && maps.Equal(g[0].labels, p.labels)
		})
		if i < 0 {
			groups = append(groups, []*policy{p})
			continue
		}
		groups[i] = append(groups[i], p)
	}
	for i, a := range groups {
		for _, b := range groups[i+1:] {
			if overlap(a[0], b[0]) {
				manifest.At{Object: b[0].from, Report: c.report}.In("spec.rules").Error(
					"its ALLOW rules with not… fields, and those of %s (%s), may be for the same pods under different selectors, which can't be said together: give both policies one selector, or write what is allowed without not… fields", a[0].from, a[0].from.File)
			}
		}
	}
	var out []manifest.Converted
	for _, g := range groups {
		rules := []v1alpha1.IngressRule{passOthers()}
		var clauses []clause
		var from []*manifest.Object
		for i, p := range g {
			for _, k := range p.clauses {
				if len(k.not) > 0 {
					clauses = append(clauses, k)
				}
			}
			if i > 0 {
				from = append(from, p.from)
			}
		}
		at := manifest.At{Object: g[0].from, Report: c.report}.In("spec.rules")
		list, ok := decide(clauses, conditions{}, true)
		if !ok {
			at.Error("what its not… fields except from each other can't be said: write what is allowed without them, or split the policy by pods")
			continue
		}
		name := g[0].from.Meta.Name
		if slices.ContainsFunc(g[0].clauses, func(k clause) bool { return len(k.not) == 0 }) {
			name += "-except"
		}
		out = append(out, g[0].object(name, tierAllow, orderExceptions, append(rules, merge(list)...), from...))
	}
	return out
}

// overlap reports whether two policies of one mode may select one pod.
func overlap(a, b *policy) bool {
	if a.mode != b.mode || !a.mesh && !b.mesh && a.from.Meta.Namespace != b.from.Meta.Namespace {
		return false
	}
	return !contradict(a.labels, b.labels)
}

// contradict reports whether no pod has the labels of both.
func contradict(a, b map[string]string) bool {
	for k, v := range a {
		if w, ok := b[k]; ok && v != w {
			return true
		}
	}
	return false
}

// decide is the list of rules for what meets within: what one of the clauses
// matches passes, the rest is denied. Of what a clause excepts only the other
// clauses decide.
func decide(clauses []clause, within conditions, top bool) ([]v1alpha1.IngressRule, bool) {
	if within.never() {
		return nil, true
	}
	if len(clauses) == 0 {
		if top {
			return nil, true // the tier's default
		}
		return within.rules("Deny"), true
	}
	k, rest := &clauses[0], clauses[1:]
	var out []v1alpha1.IngressRule
	for _, n := range k.not {
		inner, ok := both(within, n)
		if !ok {
			return nil, false
		}
		list, ok := decide(rest, inner, false)
		if !ok || len(out)+len(list) > maxListed {
			return nil, false
		}
		out = append(out, list...)
	}
	pass, ok := both(within, k.yes)
	if !ok {
		return nil, false
	}
	out = append(out, pass.rules("Pass")...)
	list, ok := decide(rest, within, top)
	if !ok || len(out)+len(list) > maxListed {
		return nil, false
	}
	return append(out, list...), true
}

// tooMany tells of policies that become longer than ours may be.
func (c *converter) tooMany(p *policy, rules []v1alpha1.IngressRule) {
	if len(rules) > maxRules {
		manifest.At{Object: p.from, Report: c.report}.In("spec.rules").Error("it becomes %d rules, and a policy has at most %d: split it", len(rules), maxRules)
	}
}
