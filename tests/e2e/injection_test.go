package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"
)

// dry is a pod as the API server would take it.
func (s *space) dry(ctx context.Context, p *corev1.Pod) (*corev1.Pod, error) {
	p = p.DeepCopy()
	p.Namespace = s.name
	return s.client.CoreV1().Pods(s.name).Create(ctx, p, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
}

func TestLabelsAndKindOfPodDecideAboutInjection(t *testing.T) {
	w := together(t)
	spaces := map[string]*space{"enabled": w.meshed(t, "inj-on"), "none": w.space(t, "inj-none", nil), "disabled": w.space(t, "inj-off", map[string]string{"hauberk.dev/inject": "disabled"}),
		// hostNetwork is not for restricted namespaces.
		"privileged": w.space(t, "inj-host", map[string]string{"hauberk.dev/inject": "enabled", "pod-security.kubernetes.io/enforce": "privileged"})}
	user := func(id int64) change { return func(p *corev1.Pod) { p.Spec.SecurityContext.RunAsUser = &id } }
	for _, test := range []struct {
		name, namespace string
		changes         []change
		injected        bool
		refused         []string
	}{
		{name: "namespace enabled", namespace: "enabled", injected: true},
		{name: "pod disabled in an enabled namespace", namespace: "enabled", changes: []change{labelled("hauberk.dev/inject", "disabled")}},
		{name: "no label", namespace: "none"},
		{name: "pod enabled in a namespace without label", namespace: "none", changes: []change{labelled("hauberk.dev/inject", "enabled")}, injected: true},
		{name: "namespace disabled", namespace: "disabled"},
		{name: "pod enabled in a disabled namespace", namespace: "disabled", changes: []change{labelled("hauberk.dev/inject", "enabled")}, injected: true},
		{name: "hostNetwork", namespace: "privileged", changes: []change{func(p *corev1.Pod) { p.Spec.HostNetwork = true }}},
		{name: "the sidecar's user", namespace: "enabled", changes: []change{user(15015)}, refused: []string{"runAsUser", "use another"}},
		{name: "the sidecar's user in a container", namespace: "enabled", changes: []change{func(p *corev1.Pod) { p.Spec.Containers[0].SecurityContext.RunAsUser = new(int64(15015)) }}, refused: []string{"runAsUser", "use another"}},
		{name: "the sidecar's port", namespace: "enabled", changes: []change{func(p *corev1.Pod) { p.Spec.Containers[0].Ports = []corev1.ContainerPort{{ContainerPort: 15006}} }}, refused: []string{"15006", "listen elsewhere"}},
		{name: "a label that is neither on nor off", namespace: "enabled", changes: []change{labelled("hauberk.dev/inject", "yes")}, refused: []string{`"yes"`, "write enabled or disabled"}},
		{name: "somebody else's sidecar of our name", namespace: "enabled", changes: []change{func(p *corev1.Pod) {
			p.Spec.InitContainers = []corev1.Container{container("hauberk-proxy", "sleep")}
		}}, refused: []string{"hauberk-proxy"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := spaces[test.namespace].dry(t.Context(), client("one", test.changes...))
			if test.refused != nil {
				if err == nil {
					t.Fatal("the pod was taken")
				}
				for _, part := range test.refused {
					if !strings.Contains(err.Error(), part) {
						t.Errorf("%q is not in: %v", part, err)
					}
				}
				return
			}
			check(t, err)
			if (sidecar(got) != nil) != test.injected {
				t.Errorf("sidecar: %v, want %v", sidecar(got) != nil, test.injected)
			}
			if test.injected && got.Annotations["hauberk.dev/status"] == "" {
				t.Error("the status annotation is missing")
			}
		})
	}
}

func TestInjectionIsIdempotentAndTheSameOffline(t *testing.T) {
	w := together(t)
	s := w.meshed(t, "inj-same")
	p := server("one", annotated("hauberk.dev/exclude-outbound-ports", "5432"))
	p.Namespace = s.name
	once := must[*corev1.Pod](t)(s.dry(t.Context(), p))
	if sidecar(once) == nil {
		t.Fatal("no sidecar")
	}
	again := once.DeepCopy()
	again.ResourceVersion, again.UID, again.CreationTimestamp, again.ManagedFields = "", "", metav1.Time{}, nil
	twice := must[*corev1.Pod](t)(s.dry(t.Context(), again))
	if d := cmp.Diff(once.Spec, twice.Spec); d != "" {
		t.Errorf("a second injection changes the pod: %s", d)
	}

	// A controller's template is given to the command, a pod to the webhook.
	manifest := must[[]byte](t)(yaml.Marshal(struct {
		metav1.TypeMeta `json:",inline"`
		Metadata        metav1.ObjectMeta `json:"metadata"`
		Spec            corev1.PodSpec    `json:"spec"`
	}{metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"}, p.ObjectMeta, p.Spec}))
	file := filepath.Join(t.TempDir(), "pod.yaml")
	check(t, os.WriteFile(file, manifest, 0o644))
	said, err := w.hauberk(t.Context(), "inject", "-f", file)
	check(t, err)
	if said.Code != 0 {
		t.Fatalf("hauberk inject: exit code %d: %s", said.Code, said.Err)
	}
	var offline corev1.Pod
	check(t, yaml.Unmarshal([]byte(said.Out), &offline))
	// The API server fills in defaults: what the command wrote goes through it, and
	// the webhook sees that nothing is to be done.
	filled := must[*corev1.Pod](t)(s.dry(t.Context(), &offline))
	if d := cmp.Diff(sidecar(once), sidecar(filled)); d != "" {
		t.Errorf("the webhook's sidecar (-) differs from the command's (+): %s", d)
	}
	if d := cmp.Diff(once.Spec.Containers, filled.Spec.Containers); d != "" {
		t.Errorf("the webhook's containers (-) differ from the command's (+): %s", d)
	}
	if d := cmp.Diff(once.Annotations, filled.Annotations); d != "" {
		t.Errorf("the webhook's annotations (-) differ from the command's (+): %s", d)
	}
}

func TestInjectExplainSaysWhy(t *testing.T) {
	w := together(t)
	s := w.meshed(t, "inj-why")
	for name, test := range map[string]struct {
		changes []change
		want    string
	}{
		"in":  {nil, "NamespaceEnabled"},
		"out": {[]change{labelled("hauberk.dev/inject", "disabled")}, "PodDisabled"},
	} {
		t.Run(name, func(t *testing.T) {
			must[*corev1.Pod](t)(s.create(t.Context(), client(name, test.changes...)))
			said, err := w.hauberk(t.Context(), "inject", "explain", "-n", s.name, "pod/"+name)
			check(t, err)
			if said.Code != 0 || !strings.Contains(said.Out, test.want) {
				t.Errorf("exit code %d, want %q in: %s%s", said.Code, test.want, said.Out, said.Err)
			}
		})
	}
}

// scale sets the replicas of one of the mesh's Deployments and waits for it.
func (w *world) scale(ctx context.Context, t *testing.T, name string, replicas int32) {
	t.Helper()
	deployments := w.client.AppsV1().Deployments(system)
	if _, err := deployments.UpdateScale(ctx, name, &autoscalingv1.Scale{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: system}, Spec: autoscalingv1.ScaleSpec{Replicas: replicas}}, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	w.settled(ctx, t, name, replicas)
}

// settled waits until a Deployment has as many ready pods and no others.
func (w *world) settled(ctx context.Context, t *testing.T, name string, replicas int32) {
	t.Helper()
	check(t, eventually(ctx, 90*time.Second, fmt.Sprintf("%s has %d ready replicas", name, replicas), func(ctx context.Context) error {
		d, err := w.client.AppsV1().Deployments(system).Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		pods, err := w.componentPods(ctx, name)
		if err != nil {
			return err
		}
		if d.Status.ObservedGeneration < d.Generation || d.Status.ReadyReplicas != replicas || len(pods) != int(replicas) {
			return fmt.Errorf("%d ready of %d pods", d.Status.ReadyReplicas, len(pods))
		}
		return nil
	}))
}

// componentPods are the pods of one of the mesh's own workloads.
func (w *world) componentPods(ctx context.Context, name string) ([]corev1.Pod, error) {
	list, err := w.client.CoreV1().Pods(system).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	var out []corev1.Pod
	for _, p := range list.Items {
		if p.Spec.ServiceAccountName == name {
			out = append(out, p)
		}
	}
	return out, nil
}

// TestWithoutTheWebhookNoPodOfTheMeshStartsBare disturbs the cluster: it takes the
// injector away.
func TestWithoutTheWebhookNoPodOfTheMeshStartsBare(t *testing.T) {
	w := alone(t)
	meshed, other := w.meshed(t, "inj-away"), w.space(t, "inj-else", nil)
	was := must[*appsv1.Deployment](t)(w.client.AppsV1().Deployments(system).Get(t.Context(), "hauberk-injector", metav1.GetOptions{}))
	t.Cleanup(func() {
		ctx, cancel := afterwards(t)
		defer cancel()
		w.scale(ctx, t, "hauberk-injector", *was.Spec.Replicas)
	})
	w.scale(t.Context(), t, "hauberk-injector", 0)

	_, err := meshed.dry(t.Context(), client("bare"))
	if !apierrors.IsForbidden(err) && !apierrors.IsInvalid(err) || !strings.Contains(fmt.Sprint(err), "the injector did not answer") {
		t.Errorf("a pod of a meshed namespace without its sidecar: %v", err)
	}
	if _, err := other.dry(t.Context(), client("bare")); err != nil {
		t.Errorf("a pod outside of the mesh: %v", err)
	}
	// The mesh's own pods need no webhook: one that is deleted comes back.
	pods := must[[]corev1.Pod](t)(w.componentPods(t.Context(), "hauberk-control"))
	check(t, w.client.CoreV1().Pods(system).Delete(t.Context(), pods[0].Name, metav1.DeleteOptions{GracePeriodSeconds: new(int64(1))}))
	within(t, 60*time.Second, "the control plane's pod is replaced", func(ctx context.Context) error {
		now, err := w.componentPods(ctx, "hauberk-control")
		if err != nil {
			return err
		}
		for _, p := range now {
			if p.UID == pods[0].UID || !ready(&p) {
				return fmt.Errorf("%s is there: ready %v", p.Name, ready(&p))
			}
		}
		if len(now) != len(pods) {
			return fmt.Errorf("%d pods, want %d", len(now), len(pods))
		}
		return nil
	})
	w.scale(t.Context(), t, "hauberk-injector", *was.Spec.Replicas)
	within(t, 30*time.Second, "the injector injects again", func(ctx context.Context) error {
		p, err := meshed.dry(ctx, client("meshed"))
		if err == nil && sidecar(p) == nil {
			err = fmt.Errorf("no sidecar: %s", mustJSON(p.Spec.InitContainers))
		}
		return err
	})
}

func mustJSON(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		return err.Error()
	}
	return string(b)
}
