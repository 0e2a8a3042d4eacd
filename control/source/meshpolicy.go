package source

import (
	"fmt"
	"math"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/hauberk-mesh/hauberk/api/v1alpha1"
	"github.com/hauberk-mesh/hauberk/control/compile"
	"github.com/hauberk-mesh/hauberk/policy"
)

// decodeSpec fills spec from the object. An unknown field is an error, but all
// that is known is filled in nevertheless.
func decodeSpec(u *unstructured.Unstructured, spec any) error {
	raw, found, err := unstructured.NestedMap(u.Object, "spec")
	if err != nil {
		return fmt.Errorf("spec is no object: %w", err)
	}
	if !found {
		return fmt.Errorf("spec is missing")
	}
	err = runtime.DefaultUnstructuredConverter.FromUnstructuredWithValidation(raw, spec, true)
	if strict, ok := runtime.AsStrictDecodingError(err); ok {
		var fields []string
		for _, e := range strict.Errors() {
			fields = append(fields, e.Error())
		}
		return fmt.Errorf("spec: %s: remove it, or upgrade Hauberk if it is newer than this version", strings.Join(fields, ", "))
	}
	if err != nil {
		return fmt.Errorf("spec: %w", err)
	}
	return nil
}

func refFrom(u *unstructured.Unstructured, kind string) policy.Ref {
	return policy.Ref{Kind: kind, Namespace: u.GetNamespace(), Name: u.GetName(), UID: string(u.GetUID()), Generation: u.GetGeneration()}
}

func meshPolicyFrom(u *unstructured.Unstructured) compile.Policy {
	var spec v1alpha1.PolicySpec
	var why reasons
	if err := decodeSpec(u, &spec); err != nil {
		why.add("%s", err)
	}
	subject := compile.Subject{
		Namespace:   u.GetNamespace(),
		PodSelector: selectorFrom(&spec.PodSelector, "spec.podSelector", &why),
	}
	return rulesFrom(refFrom(u, "MeshPolicy"), subject, &spec.PolicyRules, why)
}

func clusterMeshPolicyFrom(u *unstructured.Unstructured) compile.Policy {
	var spec v1alpha1.ClusterPolicySpec
	var why reasons
	if err := decodeSpec(u, &spec); err != nil {
		why.add("%s", err)
	}
	subject := compile.Subject{
		NamespaceSelector: selectorFrom(spec.NamespaceSelector, "spec.namespaceSelector", &why),
		PodSelector:       selectorFrom(spec.PodSelector, "spec.podSelector", &why),
	}
	return rulesFrom(refFrom(u, "ClusterMeshPolicy"), subject, &spec.PolicyRules, why)
}

// rulesFrom converts what both kinds share.
func rulesFrom(ref policy.Ref, subject compile.Subject, rules *v1alpha1.PolicyRules, why reasons) compile.Policy {
	p := compile.Policy{
		Ref: ref, Tier: rules.Tier, Order: math.Inf(1), Subject: subject,
		GovernsIngress: len(rules.Types) == 0,
		GovernsEgress:  len(rules.Types) == 0 && len(rules.Egress) > 0,
	}
	if rules.Order != nil {
		p.Order = float64(*rules.Order)
	}
	switch rules.Mode {
	case "", "Enforce":
	case "Audit":
		p.Mode = policy.Audit
	default:
		why.add("spec.mode: %q is neither Enforce nor Audit", rules.Mode)
	}
	for i, t := range rules.Types {
		switch t {
		case "Ingress":
			p.GovernsIngress = true
		case "Egress":
			p.GovernsEgress = true
		default:
			why.add("spec.types[%d]: %q is neither Ingress nor Egress", i, t)
			p.GovernsIngress, p.GovernsEgress = true, true
		}
	}
	p.Invalid = why.String()
	for i := range rules.Ingress {
		r := &rules.Ingress[i]
		p.Ingress = append(p.Ingress, ruleFrom(fmt.Sprintf("ingress[%d]", i), subject.Namespace, &r.RuleCommon, r.From, false))
	}
	for i := range rules.Egress {
		r := &rules.Egress[i]
		p.Egress = append(p.Egress, ruleFrom(fmt.Sprintf("egress[%d]", i), subject.Namespace, &r.RuleCommon, r.To, true))
	}
	return p
}

// ruleFrom converts one rule. A list of which an entry can't be resolved is
// dropped as a whole: the rule is invalid, so that an Allow matches nothing and
// a Deny everything that the list could have meant.
func ruleFrom(place, namespace string, common *v1alpha1.RuleCommon, peers []v1alpha1.Peer, egress bool) compile.Rule {
	var why reasons
	rule := compile.Rule{Rule: policy.Rule{Name: common.Name, AnyPeer: peers == nil}}
	if rule.Name == "" {
		rule.Name = place
	}
	switch common.Action {
	case "", "Allow":
		rule.Action = policy.Allow
	case "Deny":
		rule.Action = policy.Deny
	case "Pass":
		rule.Action = policy.Pass
	case "Log":
		rule.Action = policy.Log
	default:
		rule.Action = policy.Deny
		why.add("action %q is none of Allow, Deny, Pass, Log", common.Action)
	}
	if peers != nil && len(peers) == 0 {
		why.add("the list of peers is empty: leave it out to mean any, or name one")
	}
	for i := range peers {
		peer, refs, ok := peerFrom(&peers[i], fmt.Sprintf("peer %d", i), namespace, &why)
		if ok && egress && len(refs.Services) > 0 && len(common.Ports) > 0 {
			why.add("peer %d.services: a Service says its ports itself: remove ports from this rule, or name the pods by podSelector", i)
			ok = false
		}
		if !ok {
			rule.AnyPeer, rule.Peers, rule.Refs = true, nil, nil
			break
		}
		rule.Peers, rule.Refs = append(rule.Peers, peer), append(rule.Refs, refs)
	}
	for i := range common.Ports {
		m, ok := rulePortFrom(&common.Ports[i], fmt.Sprintf("port %d", i), &why)
		if !ok {
			rule.Ports = nil
			break
		}
		rule.Ports = append(rule.Ports, m)
	}
	for i := range common.HTTP {
		m, ok := httpFrom(&common.HTTP[i], fmt.Sprintf("http[%d]", i), &why)
		if !ok {
			rule.HTTP = nil
			break
		}
		rule.HTTP = append(rule.HTTP, m)
	}
	grpcFrom(&rule.Rule, common.GRPC, &why)
	rule.RequireMTLS = common.Requires != nil && common.Requires.MTLS
	rule.Invalid = why.String()
	return rule
}

func rulePortFrom(from *v1alpha1.RulePort, place string, why *reasons) (policy.PortMatch, bool) {
	protocols := map[string]policy.Protocol{
		"": policy.TCP, "TCP": policy.TCP, "UDP": policy.UDP, "SCTP": policy.SCTP, "ICMP": policy.ICMP, "ICMPv6": policy.ICMPv6,
	}
	protocol, ok := protocols[from.Protocol]
	if !ok {
		why.add("%s: protocol %q is none of TCP, UDP, SCTP, ICMP, ICMPv6", place, from.Protocol)
		return policy.PortMatch{}, false
	}
	icmp := protocol == policy.ICMP || protocol == policy.ICMPv6
	switch {
	case icmp && (from.Port != nil || from.EndPort != nil):
		why.add("%s: %s has no ports: use icmp.type and icmp.code", place, protocol)
		return policy.PortMatch{}, false
	case !icmp && from.ICMP != nil:
		why.add("%s: icmp needs protocol ICMP or ICMPv6", place)
		return policy.PortMatch{}, false
	case !icmp:
		return portFrom(protocol, from.Port, from.EndPort, place, why)
	}
	m := policy.PortMatch{Protocol: protocol}
	if from.ICMP == nil {
		return m, true
	}
	for _, field := range []struct {
		name  string
		value *int32
		to    **uint8
	}{{"type", &from.ICMP.Type, &m.ICMPType}, {"code", from.ICMP.Code, &m.ICMPCode}} {
		if field.value == nil {
			continue
		}
		if *field.value < 0 || *field.value > 255 {
			why.add("%s: icmp.%s %d is not 0 to 255", place, field.name, *field.value)
			return m, false
		}
		n := uint8(*field.value)
		*field.to = &n
	}
	return m, true
}
