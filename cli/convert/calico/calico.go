package calico

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/hauberk-mesh/hauberk/api/v1alpha1"
	"github.com/hauberk-mesh/hauberk/cli/convert/manifest"
	"github.com/hauberk-mesh/hauberk/cli/convert/selector"
)

// Groups are the API groups of Calico's objects: the API server's and that of
// the definitions which store them.
var Groups = []string{"projectcalico.org", "crd.projectcalico.org"}

// otherKinds say nothing of who may talk to whom.
var otherKinds = []string{
	"BGPConfiguration", "BGPFilter", "BGPPeer", "BlockAffinity", "CalicoNodeStatus", "ClusterInformation", "FelixConfiguration",
	"IPAMBlock", "IPAMConfig", "IPAMConfiguration", "IPAMHandle", "IPPool", "IPReservation", "KubeControllersConfiguration", "Node",
	"WorkloadEndpoint",
}

// Convert converts the objects of Calico's groups. namespaces are the labels of
// the namespaces that are known.
func Convert(objects []*manifest.Object, namespaces map[string]map[string]string, report *manifest.Report) []manifest.Converted {
	c := &converter{report: report, namespaces: namespaces}
	for _, o := range objects {
		c.set(o)
	}
	var policies []*policy
	var tiers []*tier
	for _, o := range objects {
		at := manifest.At{Object: o, Report: report}
		switch o.Kind {
		case "NetworkPolicy", "GlobalNetworkPolicy", "StagedNetworkPolicy", "StagedGlobalNetworkPolicy":
			if p := c.policy(o); p != nil {
				policies = append(policies, p)
			}
		case "Tier":
			if t := c.tier(o); t != nil {
				tiers = append(tiers, t)
			}
		case "NetworkSet", "GlobalNetworkSet":
		case "HostEndpoint":
			at.Error("hosts can't be put under policy yet: leave the object out, and keep what protects the node's own addresses")
		default:
			if slices.Contains(otherKinds, o.Kind) {
				at.Note("left out: it says nothing of who may talk to whom")
				continue
			}
			at.Error("kind %s can't be converted", o.Kind)
		}
	}
	for _, p := range policies {
		if name := p.spec.Tier; name != "" && name != "default" && !slices.ContainsFunc(tiers, func(t *tier) bool { return t.from.Meta.Name == name }) {
			manifest.At{Object: p.from, Report: report}.In("spec.tier").Error("tier %q is not in the files: add it, its order decides", name)
		}
	}
	if report.Err() != nil {
		return nil // orders of half of the policies mean nothing
	}
	out := c.sets()
	out = append(out, c.tierObjects(tiers)...)
	return append(out, c.policyObjects(policies)...)
}

type converter struct {
	report     *manifest.Report
	namespaces map[string]map[string]string
	networks   []*networkSet
}

// meta is the object's metadata. In crd.projectcalico.org/v1 what users wrote
// stands in an annotation.
func meta(at manifest.At, name string) metav1.ObjectMeta {
	o := at.Object
	m := manifest.Meta(o, name)
	var stored struct {
		Labels      map[string]string `json:"labels"`
		Annotations map[string]string `json:"annotations"`
	}
	text, ok := o.Meta.Annotations["projectcalico.org/metadata"]
	if !ok {
		return m
	}
	if err := json.Unmarshal([]byte(text), &stored); err != nil {
		at.Error("annotation projectcalico.org/metadata: %s", err)
		return m
	}
	for _, pair := range []struct {
		into *map[string]string
		from map[string]string
	}{{&m.Labels, stored.Labels}, {&m.Annotations, stored.Annotations}} {
		if len(pair.from) > 0 && *pair.into == nil {
			*pair.into = map[string]string{}
		}
		maps.Copy(*pair.into, pair.from)
	}
	return m
}

// policy is a policy of Calico with what it becomes, but for its order.
type policy struct {
	from *manifest.Object
	spec policySpec
	mode v1alpha1.PolicyMode
	// parts are in order of evaluation.
	parts []part
}

// part is an object of ours: some of the policy's rules for some of its pods.
type part struct {
	name string
	pods pods
	// types and rules; of several parts each has its share.
	types   []v1alpha1.PolicyType
	ingress []v1alpha1.IngressRule
	egress  []v1alpha1.EgressRule
}

func (p *policy) namespace() string { return p.from.Meta.Namespace }

func (c *converter) policy(o *manifest.Object) *policy {
	var object policyObject
	at := manifest.At{Object: o, Report: c.report}
	if !o.Decode(&object, c.report) {
		return nil
	}
	p := &policy{from: o, spec: object.Spec, mode: "Enforce"}
	spec := &p.spec
	switch o.Kind {
	case "StagedNetworkPolicy", "StagedGlobalNetworkPolicy":
		p.mode = "Audit"
		if spec.StagedAction != "" && spec.StagedAction != "Set" {
			at.In("spec.stagedAction").Error("%q can't be tried out: only Set becomes mode Audit", spec.StagedAction)
		}
	default:
		if spec.StagedAction != "" {
			at.In("spec.stagedAction").Error("it belongs to staged policies")
		}
	}
	for _, host := range []struct {
		field string
		set   bool
	}{{"spec.doNotTrack", spec.DoNotTrack}, {"spec.preDNAT", spec.PreDNAT}, {"spec.applyOnForward", spec.ApplyOnForward}} {
		if host.set {
			at.In("%s", host.field).Error("it is about host endpoints, which can't be put under policy yet")
		}
	}
	if spec.ServiceAccountSelector != "" {
		at.In("spec.serviceAccountSelector").Error("policies select pods by labels of pods and namespaces: give the pods a label")
	}
	if len(spec.PerformanceHints) > 0 {
		at.In("spec.performanceHints").Note("left out: it changes no verdict")
	}
	subject := c.subject(at, spec, p.namespace())
	types := types(at, spec)
	runs := c.rules(at, p.namespace(), types, spec)
	if subject != nil {
		p.parts = c.parts(at, o.Meta.Name, p.namespace(), subject, types, runs)
	}
	return p
}

// types are always written out: Calico's default for a policy that has egress
// rules only is not ours.
func types(at manifest.At, spec *policySpec) []v1alpha1.PolicyType {
	var out []v1alpha1.PolicyType
	for i, t := range spec.Types {
		if t != "Ingress" && t != "Egress" {
			at.In("spec.types[%d]", i).Error("%q is neither Ingress nor Egress", t)
		}
		out = append(out, v1alpha1.PolicyType(t))
	}
	switch {
	case len(out) > 0:
		for _, d := range []struct {
			name  string
			rules []rule
		}{{"Ingress", spec.Ingress}, {"Egress", spec.Egress}} {
			if len(d.rules) > 0 && !slices.Contains(spec.Types, d.name) {
				at.In("spec.types").Error("it leaves out %s, so that the policy's rules of that direction do nothing: add it, or remove them", d.name)
			}
		}
		return out
	case len(spec.Egress) == 0:
		return []v1alpha1.PolicyType{"Ingress"}
	case len(spec.Ingress) == 0:
		return []v1alpha1.PolicyType{"Egress"}
	}
	return []v1alpha1.PolicyType{"Ingress", "Egress"}
}

// subject is the selector of the policy's pods.
func (c *converter) subject(at manifest.At, spec *policySpec, namespace string) *selector.Expr {
	var list []*selector.Expr
	if namespace != "" {
		list = append(list, inNamespace(namespace))
		if spec.NamespaceSelector != "" {
			at.In("spec.namespaceSelector").Error("a NetworkPolicy is of its own namespace")
		}
	}
	if spec.NamespaceSelector != "" {
		if e, ok := parseNamespaces(at.In("spec.namespaceSelector"), spec.NamespaceSelector); ok {
			list = append(list, e)
		}
	}
	if e, ok := parse(at.In("spec.selector"), spec.Selector); ok {
		list = append(list, e)
	}
	return selector.Both(list...)
}

// parts spreads the rules over objects: one for each way in which the selector's
// OR lets a pod be selected, and further ones for rules that are for some of the
// pods only.
func (c *converter) parts(at manifest.At, name, namespace string, subject *selector.Expr, types []v1alpha1.PolicyType, runs []run) []part {
	var out []part
	base := part{types: types}
	rest := runs
	taken := map[v1alpha1.PolicyType]bool{}
	for len(rest) > 0 && rest[0].local == nil && !taken[rest[0].direction] {
		// The rules for all pods that come first stand with the policy itself.
		taken[rest[0].direction] = true
		base.add(&rest[0])
		rest = rest[1:]
	}
	out = append(out, c.forPods(at, name, namespace, subject, base)...)
	for i := range rest {
		more := part{types: []v1alpha1.PolicyType{rest[i].direction}}
		more.add(&rest[i])
		out = append(out, c.forPods(at, fmt.Sprintf("%s-%d", name, i+2), namespace, selector.Both(subject, rest[i].local), more)...)
	}
	return out
}

func (p *part) add(r *run) {
	p.ingress = append(p.ingress, r.ingress...)
	p.egress = append(p.egress, r.egress...)
}

func (c *converter) forPods(at manifest.At, name, namespace string, subject *selector.Expr, like part) []part {
	list, ok := terms(at.In("spec.selector"), subject)
	if !ok {
		return nil
	}
	var out []part
	for _, term := range list {
		p, none, ok := podsOf(at.In("spec.selector"), term, namespace)
		if !ok || none {
			continue
		}
		if p.hasAccounts || len(p.account) > 0 {
			at.In("spec.selector").Error("policies select pods by labels of pods and namespaces: give the pods a label instead of selecting by service account")
			return nil
		}
		if namespace != "" && len(p.namespace) > 0 {
			at.In("spec.selector").Error("a NetworkPolicy is of its own namespace: it can't select by the namespace's labels")
			return nil
		}
		next := like
		next.pods, next.name = p, name
		if len(out) > 0 {
			next.name = fmt.Sprintf("%s-or-%d", name, len(out)+1)
		}
		out = append(out, next)
	}
	if len(out) == 0 {
		at.In("spec.selector").Error("it can select no pod: a policy for host endpoints can't be converted yet")
	}
	return out
}

// object is the part as one of our kinds.
func (p *policy) object(at manifest.At, x *part, order *int32) manifest.Converted {
	rules := v1alpha1.PolicyRules{Tier: p.spec.Tier, Order: order, Types: x.types, Ingress: x.ingress, Egress: x.egress}
	if p.mode != "Enforce" {
		rules.Mode = p.mode
	}
	if rules.Tier == "default" {
		rules.Tier = ""
	}
	m := meta(at, x.name)
	c := manifest.Converted{From: []*manifest.Object{p.from}}
	if p.namespace() != "" {
		c.Object = &v1alpha1.MeshPolicy{TypeMeta: manifest.Type("MeshPolicy"), ObjectMeta: m,
			Spec: v1alpha1.PolicySpec{PodSelector: *labelSelector(x.pods.pod), PolicyRules: rules}}
		return c
	}
	spec := v1alpha1.ClusterPolicySpec{PolicyRules: rules, NamespaceSelector: x.pods.namespaceSelector("")}
	if len(x.pods.pod) > 0 {
		spec.PodSelector = labelSelector(x.pods.pod)
	}
	c.Object = &v1alpha1.ClusterMeshPolicy{TypeMeta: manifest.Type("ClusterMeshPolicy"), ObjectMeta: m, Spec: spec}
	return c
}
