package check

import (
	"context"
	"crypto/x509"
	"fmt"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/hauberk-mesh/hauberk/cli/mesh"
	"github.com/hauberk-mesh/hauberk/internal/names"
)

// rootWarning is how long before its end a trust root is worth a word.
const rootWarning = 30 * 24 * time.Hour

// notInstalled is the mend of what install makes.
const notInstalled = "run `hauberk install`"

// deployment looks whether a Deployment of ours runs; false ends its category.
func (s *state) deployment(ctx context.Context, name, component string) (bool, error) {
	d, err := s.c.Kube.AppsV1().Deployments(names.Namespace).Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		s.bad(notInstalled, "Deployment %s/%s is missing", names.Namespace, name)
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("read Deployment %s: %w", name, err)
	}
	want := int32(1)
	if d.Spec.Replicas != nil {
		want = *d.Spec.Replicas
	}
	if d.Status.ReadyReplicas < want || want == 0 || !rolledOut(d, want) {
		why, err := s.whyNotReady(ctx, component)
		if err != nil {
			return false, err
		}
		what := fmt.Sprintf("%d of %d replicas of %s are ready", d.Status.ReadyReplicas, want, name)
		if d.Status.ReadyReplicas >= want && want > 0 {
			what = name + " is being rolled out"
		}
		s.bad(fmt.Sprintf("see `kubectl -n %s describe pods -l app.kubernetes.io/component=%s`", names.Namespace, component), "%s%s", what, why)
		return d.Status.ReadyReplicas > 0, nil
	}
	s.good("%s: %d of %d replicas are ready", name, d.Status.ReadyReplicas, want)
	return true, nil
}

func rolledOut(d *appsv1.Deployment, want int32) bool {
	return d.Status.ObservedGeneration >= d.Generation && d.Status.UpdatedReplicas >= want
}

// whyNotReady is the first reason that a pod of the component gives.
func (s *state) whyNotReady(ctx context.Context, component string) (string, error) {
	pods, err := mesh.Pods(ctx, s.c, component)
	if err != nil {
		return "", err
	}
	for i := range pods {
		if why := podTrouble(&pods[i]); why != "" {
			return ": " + pods[i].Name + ": " + why, nil
		}
	}
	return "", nil
}

// podTrouble is why a pod does not run, by the words of its status.
func podTrouble(p *corev1.Pod) string {
	for _, list := range [][]corev1.ContainerStatus{p.Status.InitContainerStatuses, p.Status.ContainerStatuses} {
		for _, c := range list {
			switch {
			case c.State.Waiting != nil && c.State.Waiting.Reason != "" && c.State.Waiting.Reason != "PodInitializing":
				return fmt.Sprintf("container %s waits: %s %s", c.Name, c.State.Waiting.Reason, c.State.Waiting.Message)
			case c.State.Terminated != nil && c.State.Terminated.ExitCode != 0:
				return fmt.Sprintf("container %s ended with code %d: %s %s", c.Name, c.State.Terminated.ExitCode, c.State.Terminated.Reason, c.State.Terminated.Message)
			}
		}
	}
	for _, c := range p.Status.Conditions {
		if c.Status == corev1.ConditionFalse && c.Message != "" && (c.Type == corev1.PodScheduled || c.Type == corev1.PodReady) {
			return c.Message
		}
	}
	return ""
}

// lookInstallation says nothing when any part of the mesh is there.
func lookInstallation(ctx context.Context, s *state) error {
	apps := s.c.Kube.AppsV1()
	_, control := apps.Deployments(names.Namespace).Get(ctx, names.Control, metav1.GetOptions{})
	_, injector := apps.Deployments(names.Namespace).Get(ctx, names.Injector, metav1.GetOptions{})
	_, agents := apps.DaemonSets(names.Namespace).Get(ctx, names.Node, metav1.GetOptions{})
	_, hook := s.c.Kube.AdmissionregistrationV1().MutatingWebhookConfigurations().Get(ctx, names.Injector, metav1.GetOptions{})
	for _, err := range []error{control, injector, agents, hook} {
		if !apierrors.IsNotFound(err) {
			return nil // it is there, or the error is told by who needs it
		}
	}
	s.absent = true
	s.bad(notInstalled+"; `hauberk check --pre` says whether that will work", "the mesh is not installed in this cluster")
	return nil
}

func lookControl(ctx context.Context, s *state) error {
	up, err := s.deployment(ctx, names.Control, mesh.Control)
	if err != nil || !up {
		return err
	}
	svc, err := s.c.Kube.CoreV1().Services(names.Namespace).Get(ctx, names.Control, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		s.bad(notInstalled, "Service %s/%s is missing", names.Namespace, names.Control)
	case err != nil:
		return fmt.Errorf("read Service %s: %w", names.Control, err)
	case svc.Spec.ClusterIP == "" || svc.Spec.ClusterIP == corev1.ClusterIPNone:
		s.bad("run `hauberk upgrade`", "Service %s has no cluster address, which sidecars are given", names.Control)
	}
	replicas, err := mesh.Replicas(ctx, s.c)
	if err != nil {
		return err
	}
	clients, answered := 0, 0
	for _, r := range replicas {
		if r.Err != nil {
			s.bad(fmt.Sprintf("see `kubectl -n %s logs %s`", names.Namespace, r.Pod), "replica %s does not answer: %v", r.Pod, r.Err)
			continue
		}
		answered++
		clients += len(r.Clients)
		for _, c := range r.Clients {
			if c.LastNACK != "" {
				s.warn("its version may be another than the control plane's: restart its pod", "%s %s rejected configuration: %s", c.Kind, c.Name, c.LastNACK)
			}
		}
	}
	if answered > 0 {
		s.good("%s connected", plural(clients, "client is", "clients are"))
	}
	return nil
}

func lookIdentity(ctx context.Context, s *state) error {
	cm, err := s.c.Kube.CoreV1().ConfigMaps(names.Namespace).Get(ctx, names.TrustBundleConfigMap, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		s.bad("the control plane writes it when it is ready; see its log", "ConfigMap %s/%s is missing", names.Namespace, names.TrustBundleConfigMap)
		return nil
	}
	if err != nil {
		return fmt.Errorf("read the trust bundle: %w", err)
	}
	where := fmt.Sprintf("ConfigMap %s/%s, key %s", names.Namespace, names.TrustBundleConfigMap, names.TrustBundleKey)
	roots, err := mesh.Certificates(cm.Data[names.TrustBundleKey])
	if err != nil {
		s.bad("delete the ConfigMap: the control plane writes it anew", "%s: %v", where, err)
		return nil
	}
	if len(roots) == 0 {
		s.bad("delete the ConfigMap: the control plane writes it anew", "%s holds no certificate", where)
		return nil
	}
	usable := 0
	for _, root := range roots {
		left := root.NotAfter.Sub(s.now)
		switch {
		case !root.IsCA:
			s.bad("delete the ConfigMap: the control plane writes it anew", "trust root %q is no CA certificate", root.Subject)
		case left <= 0:
			s.bad("give the mesh a new root: remove the data of Secret "+names.CASecret+", restart the control plane, then every meshed workload", "trust root %q ended at %s", root.Subject, stamp(root.NotAfter))
		case s.now.Before(root.NotBefore):
			s.bad("look at the clocks of the nodes", "trust root %q is valid only from %s", root.Subject, stamp(root.NotBefore))
		case left < rootWarning:
			usable++
			s.warn("plan a new root before that day", "trust root %q ends in %s, at %s", root.Subject, days(left), stamp(root.NotAfter))
		default:
			usable++
		}
	}
	if usable > 0 {
		s.good("%s valid, the first until %s", plural(usable, "trust root is", "trust roots are"), stamp(soonest(roots).NotAfter))
	}
	return nil
}

func soonest(roots []*x509.Certificate) *x509.Certificate {
	first := roots[0]
	for _, r := range roots {
		if r.NotAfter.Before(first.NotAfter) {
			first = r
		}
	}
	return first
}

func stamp(t time.Time) string { return t.UTC().Format("2006-01-02 15:04 MST") }

func days(d time.Duration) string {
	return plural(int(d.Hours()/24), "day", "days")
}
