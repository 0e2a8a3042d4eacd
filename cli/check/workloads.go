package check

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/hauberk-mesh/hauberk/api/v1alpha1"
	"github.com/hauberk-mesh/hauberk/cli/mesh"
	"github.com/hauberk-mesh/hauberk/cli/run"
	"github.com/hauberk-mesh/hauberk/internal/names"
)

func (s *state) readNamespaces(ctx context.Context) error {
	if s.namespaces != nil {
		return nil
	}
	list, err := s.c.Kube.CoreV1().Namespaces().List(ctx, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("list namespaces: %w", err)
	}
	s.namespaces = make(map[string]*corev1.Namespace, len(list.Items))
	for i := range list.Items {
		s.namespaces[list.Items[i].Name] = &list.Items[i]
	}
	return nil
}

func lookWorkloads(ctx context.Context, s *state) error {
	if err := s.readNamespaces(ctx); err != nil {
		return err
	}
	settings, err := mesh.ReadSettings(ctx, s.c)
	if err != nil {
		return err
	}
	list, err := s.c.Kube.CoreV1().Pods("").List(ctx, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("list pods: %w", err)
	}
	without := make(map[string][]string)
	meshed, ready := 0, 0
	for i := range list.Items {
		p := &list.Items[i]
		if !mesh.Live(p) || p.Namespace == names.Namespace {
			continue
		}
		if mesh.Sidecar(p) == nil {
			switch d, err := mesh.Decide(p, s.namespaces[p.Namespace], settings.Inject); {
			case err != nil:
				s.bad("change it and start it anew", "pod %s/%s may not be in the mesh: %v", p.Namespace, p.Name, err)
			case d.Inject:
				without[p.Namespace] = append(without[p.Namespace], p.Name)
			}
			continue
		}
		meshed++
		if st := mesh.SidecarStatus(p); st != nil && st.Ready {
			ready++
			continue
		}
		why := podTrouble(p)
		if why == "" {
			why = "it is starting"
		}
		s.bad(fmt.Sprintf("see `kubectl -n %s describe pod %s` and `kubectl -n %s logs %s -c %s`", p.Namespace, p.Name, p.Namespace, p.Name, names.ProxyContainer),
			"the sidecar of pod %s/%s is not ready: %s", p.Namespace, p.Name, why)
	}
	for _, ns := range slices.Sorted(maps.Keys(without)) {
		s.bad(fmt.Sprintf("they started before the mesh was there: restart them, such as with `kubectl -n %s rollout restart deployment`", ns),
			"%s without a sidecar in namespace %s: %s", plural(len(without[ns]), "pod is", "pods are"), ns, run.Some(without[ns]))
	}
	if meshed == 0 && len(without) == 0 {
		s.good("no pod is in the mesh yet")
	}
	if ready > 0 {
		s.good("%d of %s ready", ready, plural(meshed, "sidecar is", "sidecars are"))
	}
	return nil
}

// judged are the kinds that the control plane writes conditions into.
var judged = []struct{ kind, resource string }{
	{"MeshPolicy", "meshpolicies"},
	{"ClusterMeshPolicy", "clustermeshpolicies"},
	{"PeerAuthentication", "peerauthentications"},
}

func lookPolicies(ctx context.Context, s *state) error {
	accepted := 0
	total := 0
	for _, k := range judged {
		list, err := s.c.Dynamic.Resource(v1alpha1.GroupVersion.WithResource(k.resource)).List(ctx, metav1.ListOptions{})
		if apierrors.IsNotFound(err) || meta.IsNoMatchError(err) {
			continue // missing definitions are told elsewhere
		}
		if err != nil {
			return fmt.Errorf("list %s: %w", k.resource, err)
		}
		for i := range list.Items {
			u := &list.Items[i]
			total++
			name := strings.TrimPrefix(u.GetNamespace()+"/"+u.GetName(), "/")
			status, message := Condition(u, "Accepted")
			switch status {
			case metav1.ConditionTrue:
				accepted++
				if status, message := Condition(u, "ResolvedRefs"); status == metav1.ConditionFalse {
					s.warn("make what it names, or change the policy", "%s %s: %s", k.kind, name, message)
				}
			case "":
				s.warn("the control plane's leader writes it within seconds; see its log if it stays", "%s %s has no condition Accepted yet", k.kind, name)
			default:
				s.bad("mend it: until then its Allow rules match nothing and its Deny rules all that they could mean", "%s %s is not accepted: %s", k.kind, name, message)
			}
		}
	}
	switch {
	case total == 0:
		s.good("there are no policies of the mesh")
	case accepted > 0:
		s.good("%d of %s accepted", accepted, plural(total, "policy is", "policies are"))
	}
	return nil
}

// Condition is a condition of an object of ours; empty when it has none, or one
// of an older state of the object.
func Condition(u *unstructured.Unstructured, kind string) (status metav1.ConditionStatus, message string) {
	conditions, _, _ := unstructured.NestedSlice(u.Object, "status", "conditions")
	for _, item := range conditions {
		c, ok := item.(map[string]any)
		if !ok || c["type"] != kind {
			continue
		}
		if seen, ok := c["observedGeneration"].(int64); ok && seen < u.GetGeneration() {
			return "", ""
		}
		text, _ := c["status"].(string)
		message, _ = c["message"].(string)
		return metav1.ConditionStatus(text), message
	}
	return "", ""
}
