package setup

import (
	"context"
	"fmt"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/hauberk-mesh/hauberk/cli/run"
	"github.com/hauberk-mesh/hauberk/internal/names"
)

// waitForRollout waits until every workload of the mesh runs its newest
// version, and says what it waits for.
func waitForRollout(ctx context.Context, c *run.Clients, p *run.Progress) error {
	told := false
	for {
		missing, err := unfinished(ctx, c)
		if err != nil && ctx.Err() == nil {
			return err
		}
		if !told {
			if told, err = tellTrust(ctx, c); err != nil && ctx.Err() == nil {
				return err
			}
		}
		if err == nil && len(missing) == 0 {
			return nil
		}
		p.Step("waiting for %s", strings.Join(missing, ", "))
		select {
		case <-ctx.Done():
			return errTimeout(ctx, "waiting for "+strings.Join(missing, ", ")+whyNot(ctx, c))
		case <-time.After(poll):
		}
	}
}

// tellTrust makes the kubelets bring the trust bundle to the node agents as soon
// as there is one: they look at a pod's volumes again when the pod changes, and
// else once in a minute or so. It reports whether that is done.
func tellTrust(ctx context.Context, c *run.Clients) (bool, error) {
	bundle, err := c.Kube.CoreV1().ConfigMaps(names.Namespace).Get(ctx, names.TrustBundleConfigMap, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("read the trust bundle: %w", err)
	}
	pods, err := c.Kube.CoreV1().Pods(names.Namespace).List(ctx, metav1.ListOptions{LabelSelector: "app.kubernetes.io/name=hauberk,app.kubernetes.io/component=node"})
	if err != nil {
		return false, fmt.Errorf("list node agents: %w", err)
	}
	patch := fmt.Appendf(nil, `{"metadata":{"annotations":{"hauberk.dev/trust-bundle":%q}}}`, bundle.ResourceVersion)
	for _, pod := range pods.Items {
		_, err := c.Kube.CoreV1().Pods(names.Namespace).Patch(ctx, pod.Name, types.MergePatchType, patch, metav1.PatchOptions{FieldManager: fieldManager})
		if err != nil && !apierrors.IsNotFound(err) {
			return false, fmt.Errorf("annotate node agent %s: %w", pod.Name, err)
		}
	}
	return true, nil
}

// unfinished lists the workloads that are not rolled out, with their counts.
func unfinished(ctx context.Context, c *run.Clients) ([]string, error) {
	var out []string
	for _, name := range []string{names.Control, names.Injector} {
		d, err := c.Kube.AppsV1().Deployments(names.Namespace).Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return nil, fmt.Errorf("read deployment %s: %w", name, err)
		}
		want := int32(1)
		if d.Spec.Replicas != nil {
			want = *d.Spec.Replicas
		}
		s := d.Status
		if s.ObservedGeneration < d.Generation || s.UpdatedReplicas < want || s.AvailableReplicas < want || s.Replicas > want {
			out = append(out, fmt.Sprintf("%s %d/%d", name, min(s.AvailableReplicas, s.UpdatedReplicas), want))
		}
	}
	ds, err := c.Kube.AppsV1().DaemonSets(names.Namespace).Get(ctx, names.Node, metav1.GetOptions{})
	if err != nil {
		return nil, fmt.Errorf("read daemonset %s: %w", names.Node, err)
	}
	if !daemonSetDone(ds) {
		out = append(out, fmt.Sprintf("%s %d/%d", names.Node, ds.Status.NumberAvailable, ds.Status.DesiredNumberScheduled))
	}
	return out, nil
}

func daemonSetDone(ds *appsv1.DaemonSet) bool {
	s := ds.Status
	return s.ObservedGeneration >= ds.Generation && s.UpdatedNumberScheduled >= s.DesiredNumberScheduled &&
		s.NumberAvailable >= s.DesiredNumberScheduled && s.DesiredNumberScheduled > 0
}

// whyNot is what the mesh's unready containers say of themselves.
func whyNot(ctx context.Context, c *run.Clients) string {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	pods, err := c.Kube.CoreV1().Pods(names.Namespace).List(ctx, metav1.ListOptions{LabelSelector: "app.kubernetes.io/name=hauberk"})
	if err != nil {
		return ""
	}
	var out strings.Builder
	for _, pod := range pods.Items {
		for _, s := range pod.Status.ContainerStatuses {
			switch {
			case s.Ready:
			case s.State.Waiting != nil:
				fmt.Fprintf(&out, "\n  %s: %s %s", pod.Name, s.State.Waiting.Reason, s.State.Waiting.Message)
			case s.State.Terminated != nil:
				fmt.Fprintf(&out, "\n  %s: ended with %d", pod.Name, s.State.Terminated.ExitCode)
			default:
				fmt.Fprintf(&out, "\n  %s: runs, but is not ready", pod.Name)
			}
		}
		for _, cond := range pod.Status.Conditions {
			if cond.Type == corev1.PodScheduled && cond.Status != corev1.ConditionTrue {
				fmt.Fprintf(&out, "\n  %s: %s", pod.Name, cond.Message)
			}
		}
	}
	return out.String()
}

// cleaner is the DaemonSet that takes our traces off the nodes.
const cleaner = "hauberk-cleanup"

// cleanNodes stops the node agents and removes what they made on every node:
// the entry in the CNI chain, the plugin, kernel rules and the tunnel. The
// agent goes first, because it would repair what is removed.
func cleanNodes(ctx context.Context, c *run.Clients, p *run.Progress) error {
	sets := c.Kube.AppsV1().DaemonSets(names.Namespace)
	agent, err := sets.Get(ctx, names.Node, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return waitCleaner(ctx, c, p) // an earlier uninstall may have been interrupted
	}
	if err != nil {
		return fmt.Errorf("read daemonset %s: %w", names.Node, err)
	}
	if err := makeCleaner(ctx, c, agent); err != nil {
		return err
	}
	p.Step("stopping the node agents")
	foreground := metav1.DeletePropagationForeground
	if err := sets.Delete(ctx, names.Node, metav1.DeleteOptions{PropagationPolicy: &foreground}); err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("delete daemonset %s: %w", names.Node, err)
	}
	return waitCleaner(ctx, c, p)
}

// makeCleaner runs `hauberk-node cleanup` with what the agent had. It waits for
// the agent of its node to be gone and then stays, ready, until it is deleted.
func makeCleaner(ctx context.Context, c *run.Clients, agent *appsv1.DaemonSet) error {
	labels := map[string]string{
		"app.kubernetes.io/name": "hauberk", "app.kubernetes.io/component": "cleanup", "app.kubernetes.io/part-of": "hauberk",
	}
	spec := *agent.Spec.Template.Spec.DeepCopy()
	var keep []corev1.Container
	for _, container := range spec.Containers {
		if container.Name != "node" {
			continue
		}
		container.Args, container.Env = []string{"cleanup", "--stay"}, nil
		container.StartupProbe, container.LivenessProbe = nil, nil
		container.ReadinessProbe.PeriodSeconds = 1
		keep = append(keep, container)
	}
	spec.Containers, spec.InitContainers = keep, nil
	ds := &appsv1.DaemonSet{
		ObjectMeta: metav1.ObjectMeta{Name: cleaner, Namespace: names.Namespace, Labels: labels},
		Spec: appsv1.DaemonSetSpec{
			Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: spec},
		},
	}
	_, err := c.Kube.AppsV1().DaemonSets(names.Namespace).Create(ctx, ds, metav1.CreateOptions{})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("make daemonset %s: %w", cleaner, err)
	}
	return nil
}

func waitCleaner(ctx context.Context, c *run.Clients, p *run.Progress) error {
	sets := c.Kube.AppsV1().DaemonSets(names.Namespace)
	for {
		ds, err := sets.Get(ctx, cleaner, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return nil
		}
		if err == nil && daemonSetDone(ds) {
			break
		}
		if err != nil && ctx.Err() == nil {
			return fmt.Errorf("read daemonset %s: %w", cleaner, err)
		}
		state := ""
		if ds != nil {
			state = fmt.Sprintf("cleaning nodes %d/%d", ds.Status.NumberReady, ds.Status.DesiredNumberScheduled)
			p.Step("%s", state)
		}
		select {
		case <-ctx.Done():
			return errTimeout(ctx, state+whyNot(ctx, c))
		case <-time.After(poll):
		}
	}
	if err := sets.Delete(ctx, cleaner, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("delete daemonset %s: %w", cleaner, err)
	}
	return nil
}
