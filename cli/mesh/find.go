package mesh

import (
	"context"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/hauberk-mesh/hauberk/cli/run"
)

// podForms are how a pod with a sidecar is named.
const podForms = "write NAMESPACE/POD, POD, or deploy/NAME, sts/NAME, ds/NAME (of the namespace of -n)"

// FindPod is the live pod that a reference names: a pod, the beginning of its
// name, or a workload, whose first pod it is.
func FindPod(ctx context.Context, c *run.Clients, ref, namespace string) (*corev1.Pod, error) {
	kind, rest := "", ref
	if first, second, ok := strings.Cut(ref, "/"); ok {
		switch strings.ToLower(first) {
		case "pod", "po", "pods":
			kind, rest = "Pod", second
		case "deploy", "deployment", "deployments", "sts", "statefulset", "statefulsets", "ds", "daemonset", "daemonsets", "job", "jobs":
			kind, rest = "workload", second
		default:
			namespace, rest = first, second
		}
	}
	if rest == "" || strings.Contains(rest, "/") {
		return nil, run.Fail(run.ExitUsage, podForms, "%q names no pod", ref)
	}
	list, err := c.Kube.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("list pods of namespace %s: %w", namespace, err)
	}
	slices.SortFunc(list.Items, func(a, b corev1.Pod) int { return strings.Compare(a.Name, b.Name) })
	for i := range list.Items {
		if p := &list.Items[i]; p.Name == rest && kind != "workload" {
			return p, nil
		}
	}
	for i := range list.Items {
		if p := &list.Items[i]; kind != "Pod" && Live(p) && strings.HasPrefix(p.Name, rest+"-") {
			return p, nil
		}
	}
	return nil, run.Fail(run.ExitBadInput, fmt.Sprintf("see `kubectl -n %s get pods`; %s", namespace, podForms), "there is no pod %s in namespace %s", rest, namespace)
}

// FindSidecar is FindPod for a pod that has a sidecar.
func FindSidecar(ctx context.Context, c *run.Clients, ref, namespace string) (*corev1.Pod, error) {
	p, err := FindPod(ctx, c, ref, namespace)
	if err != nil {
		return nil, err
	}
	if Sidecar(p) == nil {
		return nil, run.Fail(run.ExitBadInput, fmt.Sprintf("`hauberk inject explain %s/%s` says why", p.Namespace, p.Name), "pod %s/%s has no sidecar", p.Namespace, p.Name)
	}
	return p, nil
}
