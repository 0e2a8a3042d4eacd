package source

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"sigs.k8s.io/yaml"

	"github.com/hauberk-mesh/hauberk/control/compile"
	"github.com/hauberk-mesh/hauberk/internal/names"
)

// Load lists everything once. Hauberk's own kinds may be absent from the
// cluster: then there are none.
func Load(ctx context.Context, client kubernetes.Interface, custom dynamic.Interface) (compile.Facts, error) {
	o, err := LoadObjects(ctx, client, custom)
	if err != nil {
		return compile.Facts{}, err
	}
	return FactsFrom(o), nil
}

// LoadObjects is Load before the conversion, for callers that add objects of
// their own.
func LoadObjects(ctx context.Context, client kubernetes.Interface, custom dynamic.Interface) (*Objects, error) {
	o := &Objects{TrustDomain: names.TrustDomain}
	all := metav1.ListOptions{}
	steps := []struct {
		what string
		list func() error
	}{
		{"namespaces", func() error {
			l, err := client.CoreV1().Namespaces().List(ctx, all)
			return collect(err, func() { o.Namespaces = pointers(l.Items) })
		}},
		{"service accounts", func() error {
			l, err := client.CoreV1().ServiceAccounts("").List(ctx, all)
			return collect(err, func() { o.ServiceAccounts = pointers(l.Items) })
		}},
		{"nodes", func() error {
			l, err := client.CoreV1().Nodes().List(ctx, all)
			return collect(err, func() { o.Nodes = pointers(l.Items) })
		}},
		{"pods", func() error {
			l, err := client.CoreV1().Pods("").List(ctx, all)
			return collect(err, func() { o.Pods = pointers(l.Items) })
		}},
		{"services", func() error {
			l, err := client.CoreV1().Services("").List(ctx, all)
			return collect(err, func() { o.Services = pointers(l.Items) })
		}},
		{"endpoint slices", func() error {
			l, err := client.DiscoveryV1().EndpointSlices("").List(ctx, all)
			return collect(err, func() { o.EndpointSlices = pointers(l.Items) })
		}},
		{"network policies", func() error {
			l, err := client.NetworkingV1().NetworkPolicies("").List(ctx, all)
			return collect(err, func() { o.NetworkPolicies = pointers(l.Items) })
		}},
	}
	for _, s := range steps {
		if err := s.list(); err != nil {
			return nil, fmt.Errorf("list %s: %w", s.what, err)
		}
	}
	for _, kind := range customKinds(o) {
		l, err := custom.Resource(kind.resource).List(ctx, all)
		if apierrors.IsNotFound(err) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("list %s: %w", kind.resource.Resource, err)
		}
		*kind.into = pointers(l.Items)
	}
	return o, nil
}

func collect(err error, take func()) error {
	if err != nil {
		return err
	}
	take()
	return nil
}

func pointers[T any](items []T) []*T {
	list := make([]*T, len(items))
	for i := range items {
		list[i] = &items[i]
	}
	return list
}

// customKind is where objects of a kind belong that a CRD defines.
type customKind struct {
	kind     string
	resource schema.GroupVersionResource
	into     *[]*unstructured.Unstructured
	// optional kinds are not Hauberk's own: a cluster may never have them.
	optional bool
}

func customKinds(o *Objects) []customKind {
	return []customKind{
		{"MeshPolicy", meshPolicies, &o.MeshPolicies, false},
		{"ClusterMeshPolicy", clusterMeshPolicies, &o.ClusterMeshPolicies, false},
		{"Tier", tiers, &o.Tiers, false},
		{"PeerAuthentication", peerAuthentications, &o.PeerAuthentications, false},
		{"MeshConfig", meshConfigs, &o.MeshConfigs, false},
		{"NetworkSet", networkSets, &o.NetworkSets, false},
		{"ClusterNetworkSet", clusterNetworkSets, &o.ClusterNetworkSets, false},
		{"ClusterNetworkPolicy", clusterNetworkPolicies, &o.ClusterNetworkPolicies, true},
	}
}

// Add reads YAML or JSON documents and adds their objects, replacing those of
// the same kind, namespace and name. Kinds that say nothing of the mesh are
// ignored and returned, so that the caller can tell. Objects without a
// namespace or UID get "default" and one made from their name.
func (o *Objects) Add(r io.Reader) (ignored []string, err error) {
	documents := utilyaml.NewYAMLReader(bufio.NewReader(r))
	for i := 1; ; i++ {
		document, err := documents.Read()
		if errors.Is(err, io.EOF) {
			return ignored, nil
		}
		if err != nil {
			return ignored, fmt.Errorf("read document %d: %w", i, err)
		}
		var object map[string]any
		if err := yaml.Unmarshal(document, &object); err != nil {
			return ignored, fmt.Errorf("parse document %d: %w", i, err)
		}
		if len(object) == 0 {
			continue
		}
		items := []map[string]any{object}
		if list, ok := object["items"].([]any); ok {
			items = nil
			for _, item := range list {
				if m, ok := item.(map[string]any); ok {
					items = append(items, m)
				}
			}
		}
		for _, item := range items {
			known, err := o.addOne(&unstructured.Unstructured{Object: item})
			if err != nil {
				return ignored, fmt.Errorf("document %d: %w", i, err)
			}
			if !known {
				ignored = append(ignored, fmt.Sprintf("%v %v", item["apiVersion"], item["kind"]))
			}
		}
	}
}

func (o *Objects) addOne(u *unstructured.Unstructured) (bool, error) {
	gvk := u.GroupVersionKind()
	if u.GetName() == "" {
		return false, fmt.Errorf("%s without metadata.name", gvk.Kind)
	}
	switch gvk.Kind {
	case "Namespace", "Node", "ClusterMeshPolicy", "Tier", "MeshConfig", "ClusterNetworkSet", "ClusterNetworkPolicy":
	default:
		if u.GetNamespace() == "" {
			u.SetNamespace("default")
		}
	}
	if u.GetUID() == "" {
		u.SetUID(types.UID(fileUID(gvk.Kind, u.GetNamespace(), u.GetName())))
	}
	if gvk.Kind == "Namespace" {
		// The API server sets this label on every namespace.
		labels := u.GetLabels()
		if labels == nil {
			labels = make(map[string]string, 1)
		}
		labels[corev1.LabelMetadataName] = u.GetName()
		u.SetLabels(labels)
	}
	for _, kind := range customKinds(o) {
		if kind.kind == gvk.Kind && kind.resource.GroupVersion() == gvk.GroupVersion() {
			replace(kind.into, u)
			return true, nil
		}
	}
	switch gvk.GroupVersion().String() + "/" + gvk.Kind {
	case "v1/Namespace":
		return true, addTyped(u, &o.Namespaces, &corev1.Namespace{})
	case "v1/ServiceAccount":
		return true, addTyped(u, &o.ServiceAccounts, &corev1.ServiceAccount{})
	case "v1/Node":
		return true, addTyped(u, &o.Nodes, &corev1.Node{})
	case "v1/Pod":
		return true, addTyped(u, &o.Pods, &corev1.Pod{})
	case "v1/Service":
		return true, addTyped(u, &o.Services, &corev1.Service{})
	case "discovery.k8s.io/v1/EndpointSlice":
		return true, addTyped(u, &o.EndpointSlices, &discoveryv1.EndpointSlice{})
	case "networking.k8s.io/v1/NetworkPolicy":
		return true, addTyped(u, &o.NetworkPolicies, &networkingv1.NetworkPolicy{})
	case "v1/ConfigMap":
		if u.GetName() != names.TunnelsConfigMap {
			return false, nil
		}
		o.Tunnels = &corev1.ConfigMap{}
		return true, convert(u, o.Tunnels)
	}
	return false, nil
}

func addTyped[T metav1.Object](u *unstructured.Unstructured, into *[]T, object T) error {
	if err := convert(u, object); err != nil {
		return err
	}
	replace(into, object)
	return nil
}

func convert(u *unstructured.Unstructured, object any) error {
	if err := runtime.DefaultUnstructuredConverter.FromUnstructuredWithValidation(u.Object, object, true); err != nil {
		return fmt.Errorf("%s %s/%s: %w", u.GetKind(), u.GetNamespace(), u.GetName(), err)
	}
	return nil
}

func replace[T metav1.Object](into *[]T, object T) {
	for i, old := range *into {
		if old.GetNamespace() == object.GetNamespace() && old.GetName() == object.GetName() {
			(*into)[i] = object
			return
		}
	}
	*into = append(*into, object)
}
