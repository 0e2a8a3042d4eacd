package source

import (
	"fmt"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/hauberk-mesh/hauberk/api/v1alpha1"
	"github.com/hauberk-mesh/hauberk/control/compile"
	"github.com/hauberk-mesh/hauberk/policy"
)

func peerFrom(from *v1alpha1.Peer, place, namespace string, why *reasons) (policy.Peer, compile.PeerRefs, bool) {
	before := len(*why)
	peer := policy.Peer{
		PodSelector:       selectorFrom(from.PodSelector, place+".podSelector", why),
		NamespaceSelector: selectorFrom(from.NamespaceSelector, place+".namespaceSelector", why),
	}
	peer.ServiceAccountSelector = selectorFrom(from.ServiceAccountSelector, place+".serviceAccountSelector", why)
	if (from.PodSelector != nil || from.ServiceAccountSelector != nil) && from.NamespaceSelector == nil && namespace != "" {
		peer.Namespaces = []string{namespace}
	}
	for i, sa := range from.ServiceAccounts {
		ref := policy.ServiceAccount{Namespace: sa.Namespace, Name: sa.Name}
		if ref.Namespace == "" {
			ref.Namespace = namespace
		}
		switch {
		case ref.Name == "":
			why.add("%s.serviceAccounts[%d]: name is missing", place, i)
		case ref.Namespace == "":
			why.add("%s.serviceAccounts[%d]: a ClusterMeshPolicy has no namespace of its own: add namespace to service account %q", place, i, ref.Name)
		}
		peer.ServiceAccounts = append(peer.ServiceAccounts, ref)
	}
	for i, principal := range from.Principals {
		rest, ok := strings.CutPrefix(principal, "spiffe://")
		if !ok || strings.Contains(strings.TrimSuffix(rest, "*"), "*") {
			why.add("%s.principals[%d]: %q is no SPIFFE ID with at most one trailing *", place, i, principal)
			continue
		}
		peer.Principals = append(peer.Principals, principal)
	}
	for i := range from.Networks {
		if n, ok := networkFrom(from.Networks[i].CIDR, from.Networks[i].Except, fmt.Sprintf("%s.networks[%d]", place, i), why); ok {
			peer.Networks = append(peer.Networks, n)
		}
	}
	for i, e := range from.Entities {
		switch entity := policy.Entity(e); entity {
		case policy.EntityCluster, policy.EntityHost, policy.EntityWorld:
			peer.Entities = append(peer.Entities, entity)
		default:
			why.add("%s.entities[%d]: %q is none of cluster, host, world", place, i, e)
		}
	}
	alone := !peer.SelectsWorkloads() && len(peer.Principals)+len(peer.Networks)+len(peer.Entities) == 0
	refs := compile.PeerRefs{Nodes: selectorFrom(from.NodeSelector, place+".nodeSelector", why)}
	for i := range from.NetworkSets {
		refs.NetworkSets = append(refs.NetworkSets, networkSetRefFrom(&from.NetworkSets[i], fmt.Sprintf("%s.networkSets[%d]", place, i), namespace, why))
	}
	alone = alone && refs.Nodes == nil && len(refs.NetworkSets) == 0
	for i, s := range from.Services {
		ref := compile.ServiceRef{Namespace: s.Namespace, Name: s.Name}
		if ref.Namespace == "" {
			ref.Namespace = namespace
		}
		if ref.Name == "" || ref.Namespace == "" {
			why.add("%s.services[%d]: a Service needs a name, and in a ClusterMeshPolicy a namespace", place, i)
		}
		refs.Services = append(refs.Services, ref)
	}
	if len(refs.Services) > 0 && !alone {
		why.add("%s.services stands alone: write the other fields as a peer of their own", place)
	}
	if alone && len(refs.Services) == 0 && len(*why) == before {
		why.add("%s: empty: leave out the whole list to mean any", place)
	}
	return peer, refs, len(*why) == before
}

// networkSetRefFrom reads a reference from a policy of namespace, empty for a
// cluster-scoped one.
func networkSetRefFrom(from *v1alpha1.NetworkSetRef, place, namespace string, why *reasons) compile.NetworkSetRef {
	ref := compile.NetworkSetRef{Kind: from.Kind, Name: from.Name, Namespace: from.Namespace,
		Selector: selectorFrom(from.Selector, place+".selector", why)}
	if ref.Kind == "" {
		ref.Kind = "ClusterNetworkSet"
		if namespace != "" {
			ref.Kind = "NetworkSet"
		}
	}
	if (ref.Name == "") == (ref.Selector == nil) {
		why.add("%s: set exactly one of name and selector", place)
	}
	switch {
	case ref.Kind == "ClusterNetworkSet" && ref.Namespace != "":
		why.add("%s: a ClusterNetworkSet has no namespace", place)
	case ref.Kind == "ClusterNetworkSet":
	case ref.Kind != "NetworkSet":
		why.add("%s: kind %q is neither NetworkSet nor ClusterNetworkSet", place, ref.Kind)
	case namespace != "" && ref.Namespace != "" && ref.Namespace != namespace:
		why.add("%s: a MeshPolicy knows the network sets of its own namespace: use a ClusterNetworkSet, or a ClusterMeshPolicy", place)
	case namespace != "":
		ref.Namespace = namespace
	case ref.Namespace == "":
		why.add("%s: a ClusterMeshPolicy has no namespace of its own: add namespace to the NetworkSet", place)
	}
	return ref
}

// networkSetFrom reads a NetworkSet or a ClusterNetworkSet.
func networkSetFrom(u *unstructured.Unstructured, kind string) compile.NetworkSet {
	var spec v1alpha1.NetworkSetSpec
	var why reasons
	if err := decodeSpec(u, &spec); err != nil {
		why.add("%s", err)
	}
	s := compile.NetworkSet{Ref: refFrom(u, kind), Labels: u.GetLabels()}
	for i := range spec.Networks {
		if n, ok := networkFrom(spec.Networks[i].CIDR, spec.Networks[i].Except, fmt.Sprintf("spec.networks[%d]", i), &why); ok {
			s.Networks = append(s.Networks, n)
		}
	}
	s.Invalid = why.String()
	return s
}
