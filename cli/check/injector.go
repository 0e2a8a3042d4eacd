package check

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/hauberk-mesh/hauberk/cli/mesh"
	"github.com/hauberk-mesh/hauberk/internal/names"
)

// admissionPolicies are the chart's ValidatingAdmissionPolicies; each has a
// binding of its name.
var admissionPolicies = []string{"hauberk-injection", "hauberk-injection-kept"}

func lookInjector(ctx context.Context, s *state) error {
	if _, err := s.deployment(ctx, names.Injector, mesh.Injector); err != nil {
		return err
	}
	if err := s.webhook(ctx); err != nil {
		return err
	}
	if err := s.admission(ctx); err != nil {
		return err
	}
	return s.dryRun(ctx)
}

func (s *state) webhook(ctx context.Context) error {
	hook, err := s.c.Kube.AdmissionregistrationV1().MutatingWebhookConfigurations().Get(ctx, names.Injector, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		s.bad(notInstalled, "MutatingWebhookConfiguration %s is missing", names.Injector)
		return nil
	}
	if err != nil {
		return fmt.Errorf("read the webhook: %w", err)
	}
	mend := fmt.Sprintf("the injector writes it when it is ready; see `kubectl -n %s logs deploy/%s`", names.Namespace, names.Injector)
	if len(hook.Webhooks) == 0 {
		s.bad("run `hauberk upgrade`", "MutatingWebhookConfiguration %s has no webhook", names.Injector)
		return nil
	}
	for _, w := range hook.Webhooks {
		if len(w.ClientConfig.CABundle) == 0 {
			s.bad(mend, "webhook %s has no caBundle: the API server cannot reach the injector", w.Name)
			return nil
		}
		roots, err := mesh.Certificates(string(w.ClientConfig.CABundle))
		if err != nil || len(roots) == 0 {
			s.bad(mend, "the caBundle of webhook %s holds no certificate", w.Name)
			return nil
		}
		valid := slices.ContainsFunc(roots, func(r *certificate) bool { return s.now.Before(r.NotAfter) })
		if !valid {
			s.bad(mend, "all certificates of the caBundle of webhook %s have ended", w.Name)
			return nil
		}
	}
	s.good("the webhook has its caBundle")
	return nil
}

func (s *state) admission(ctx context.Context) error {
	api := s.c.Kube.AdmissionregistrationV1()
	good := 0
	for _, name := range admissionPolicies {
		policy, err := api.ValidatingAdmissionPolicies().Get(ctx, name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			s.bad("run `hauberk upgrade`: without it a pod could start without its sidecar", "ValidatingAdmissionPolicy %s is missing", name)
			continue
		}
		if err != nil {
			return fmt.Errorf("read ValidatingAdmissionPolicy %s: %w", name, err)
		}
		binding, err := api.ValidatingAdmissionPolicyBindings().Get(ctx, name, metav1.GetOptions{})
		switch {
		case apierrors.IsNotFound(err):
			s.bad("run `hauberk upgrade`: without it a pod could start without its sidecar", "ValidatingAdmissionPolicyBinding %s is missing", name)
			continue
		case err != nil:
			return fmt.Errorf("read ValidatingAdmissionPolicyBinding %s: %w", name, err)
		case binding.Spec.PolicyName != name || !slices.Contains(binding.Spec.ValidationActions, admissionv1.Deny):
			s.bad("run `hauberk upgrade`", "ValidatingAdmissionPolicyBinding %s does not deny", name)
			continue
		}
		if policy.Status.TypeChecking != nil && len(policy.Status.TypeChecking.ExpressionWarnings) > 0 {
			w := policy.Status.TypeChecking.ExpressionWarnings[0]
			s.bad("run `hauberk upgrade` with a version that suits this Kubernetes", "ValidatingAdmissionPolicy %s: %s: %s", name, w.FieldRef, strings.TrimSpace(w.Warning))
			continue
		}
		good++
	}
	if good == len(admissionPolicies) {
		s.good("pods of the mesh cannot start without a sidecar: %s in force", plural(good, "admission policy is", "admission policies are"))
	}
	return nil
}

// dryRun creates a pod in a namespace of the mesh without creating it, and looks
// whether it has a sidecar then.
func (s *state) dryRun(ctx context.Context) error {
	if err := s.readNamespaces(ctx); err != nil {
		return err
	}
	var where string
	for _, name := range slices.Sorted(maps.Keys(s.namespaces)) {
		ns := s.namespaces[name]
		if ns.Labels[names.LabelInject] == names.InjectEnabled && ns.Labels[names.LabelRevision] == "" && ns.DeletionTimestamp == nil && name != names.Namespace {
			where = name
			break
		}
	}
	if where == "" {
		s.good("no namespace has the label %s: %s yet", names.LabelInject, names.InjectEnabled)
		return nil
	}
	made, err := s.c.Kube.CoreV1().Pods(where).Create(ctx, samplePod(), metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
	mend := fmt.Sprintf("see `kubectl -n %s logs deploy/%s`", names.Namespace, names.Injector)
	switch {
	case err != nil && strings.Contains(err.Error(), "hauberk-injection"):
		s.bad(mend, "a pod in namespace %s gets no sidecar, and is refused: %s", where, apiMessage(err))
	case apierrors.IsForbidden(err) || apierrors.IsInvalid(err):
		s.warn("this is no fault of the mesh; injection could not be tried there", "a sample pod in namespace %s is refused: %s", where, apiMessage(err))
	case err != nil:
		return fmt.Errorf("try injection in namespace %s: %w", where, err)
	case mesh.Sidecar(made) == nil:
		s.bad(mend, "a pod in namespace %s gets no sidecar", where)
	default:
		s.good("a pod in namespace %s gets its sidecar", where)
	}
	return nil
}

func apiMessage(err error) string {
	var status apierrors.APIStatus
	if errors.As(err, &status) && status.Status().Message != "" {
		return status.Status().Message
	}
	return err.Error()
}

// samplePod satisfies the strictest Pod Security.
func samplePod() *corev1.Pod {
	yes, no, user := true, false, int64(65532)
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{GenerateName: "hauberk-check-"},
		Spec: corev1.PodSpec{
			SecurityContext: &corev1.PodSecurityContext{RunAsNonRoot: &yes, RunAsUser: &user, SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault}},
			Containers: []corev1.Container{{
				Name: "sample", Image: "registry.invalid/sample:dry-run",
				SecurityContext: &corev1.SecurityContext{
					AllowPrivilegeEscalation: &no,
					Capabilities:             &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
				},
			}},
		},
	}
}
