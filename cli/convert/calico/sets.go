package calico

import (
	"maps"
	"net/netip"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/hauberk-mesh/hauberk/api/v1alpha1"
	"github.com/hauberk-mesh/hauberk/cli/convert/manifest"
	"github.com/hauberk-mesh/hauberk/cli/convert/selector"
)

// maxNetworks is how many networks a set or a peer of ours may have.
const maxNetworks = 1000

// networkSet is a NetworkSet or a GlobalNetworkSet. Selectors of rules select
// them by their labels, as they select pods.
type networkSet struct {
	from *manifest.Object
	meta metav1.ObjectMeta
	nets []netip.Prefix
	// labels are all that selectors see.
	labels map[string]string
}

func (c *converter) set(o *manifest.Object) {
	if o.Kind != "NetworkSet" && o.Kind != "GlobalNetworkSet" {
		return
	}
	at := manifest.At{Object: o, Report: c.report}
	var object setObject
	if !o.Decode(&object, c.report) {
		return
	}
	s := &networkSet{from: o, meta: meta(at, o.Meta.Name), labels: map[string]string{}}
	if len(object.Spec.AllowedEgressDomains) > 0 {
		at.In("spec.allowedEgressDomains").Error("names can't be in a network set: the answers of DNS are not trusted; name the networks")
	}
	s.nets = prefixes(at.In("spec.nets"), object.Spec.Nets)
	if len(s.nets) > maxNetworks {
		at.In("spec.nets").Error("a network set has at most %d networks, this one %d: split it", maxNetworks, len(s.nets))
	}
	maps.Copy(s.labels, s.meta.Labels)
	if s.namespaced() {
		s.labels[labelNamespace] = o.Meta.Namespace
		for k, v := range c.namespaces[o.Meta.Namespace] {
			s.labels[prefixNamespace+k] = v
		}
		s.labels[prefixNamespace+labelName] = o.Meta.Namespace
		s.labels[prefixNamespace+kubernetesName] = o.Meta.Namespace
	}
	c.networks = append(c.networks, s)
}

func (s *networkSet) namespaced() bool { return s.from.Meta.Namespace != "" }

// matches evaluates a term on the set.
func (c *converter) matches(at manifest.At, term selector.Term, s *networkSet) bool {
	unknown := ""
	for i := range term {
		l := &term[i]
		if key := l.Label; s.namespaced() && l.Kind == selector.Match && len(key) > len(prefixNamespace) && key[:len(prefixNamespace)] == prefixNamespace &&
			key != prefixNamespace+labelName && key != prefixNamespace+kubernetesName && c.namespaces[s.from.Meta.Namespace] == nil {
			unknown = l.String()
			continue
		}
		if !l.Matches(s.labels, s.namespaced()) {
			return false
		}
	}
	if unknown != "" {
		at.Error("whether it selects %s depends on the labels of namespace %s (%s): add the Namespace to the files", s.from, s.from.Meta.Namespace, unknown)
	}
	return true
}

// selectedBy is the sets that a selector, if there is one, selects.
func (c *converter) selectedBy(at manifest.At, e *selector.Expr) []*networkSet {
	if e == nil {
		return nil
	}
	return c.selected(at, e)
}

// selected is the sets that a selector selects.
func (c *converter) selected(at manifest.At, e *selector.Expr) []*networkSet {
	list, ok := terms(at, e)
	if !ok {
		return nil
	}
	var out []*networkSet
	for _, s := range c.networks {
		if slices.ContainsFunc(list, func(t selector.Term) bool { return c.matches(at, t, s) }) {
			out = append(out, s)
		}
	}
	return out
}

// sets is the sets as ours.
func (c *converter) sets() []manifest.Converted {
	var out []manifest.Converted
	for _, s := range c.networks {
		spec := v1alpha1.NetworkSetSpec{}
		for _, p := range s.nets {
			spec.Networks = append(spec.Networks, v1alpha1.Network{CIDR: p.String()})
		}
		converted := manifest.Converted{From: []*manifest.Object{s.from}}
		if s.namespaced() {
			converted.Object = &v1alpha1.NetworkSet{TypeMeta: manifest.Type("NetworkSet"), ObjectMeta: s.meta, Spec: spec}
		} else {
			converted.Object = &v1alpha1.ClusterNetworkSet{TypeMeta: manifest.Type("ClusterNetworkSet"), ObjectMeta: s.meta, Spec: spec}
		}
		out = append(out, converted)
	}
	return out
}

// prefixes reads a list of networks; sets may hold one twice.
func prefixes(at manifest.At, list []string) []netip.Prefix {
	var out []netip.Prefix
	for i, text := range list {
		p, err := manifest.Prefix(text)
		if err != nil {
			at.In("[%d]", i).Error("%s", err)
			continue
		}
		if !slices.Contains(out, p) {
			out = append(out, p)
		}
	}
	return out
}
