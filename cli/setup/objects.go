package setup

import (
	"context"
	"fmt"
	"io"
	"time"

	"helm.sh/helm/v4/pkg/action"
	"helm.sh/helm/v4/pkg/kube"
	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	applycorev1 "k8s.io/client-go/applyconfigurations/core/v1"
	"sigs.k8s.io/yaml"

	"github.com/hauberk-mesh/hauberk/cli/run"
	"github.com/hauberk-mesh/hauberk/install/crds"
	"github.com/hauberk-mesh/hauberk/internal/names"
)

// fieldManager is who owns the fields that this command applies.
const fieldManager = "hauberk"

// poll is how often the cluster is asked while waiting.
const poll = 250 * time.Millisecond

// applyCRDs applies the definitions and waits until the API server serves them.
func applyCRDs(ctx context.Context, c *run.Clients) error {
	files, order, err := crds.Files()
	if err != nil {
		return err
	}
	var applied []string
	for _, file := range order {
		var crd apiextensionsv1.CustomResourceDefinition
		if err := yaml.UnmarshalStrict(files[file], &crd); err != nil {
			return fmt.Errorf("embedded definition %s: %w", file, err)
		}
		data, err := yaml.YAMLToJSON(files[file])
		if err != nil {
			return fmt.Errorf("embedded definition %s: %w", file, err)
		}
		force := true
		_, err = c.Extensions.ApiextensionsV1().CustomResourceDefinitions().Patch(ctx, crd.Name, types.ApplyPatchType, data,
			metav1.PatchOptions{FieldManager: fieldManager, Force: &force})
		if err != nil {
			return fmt.Errorf("apply definition %s: %w", crd.Name, err)
		}
		applied = append(applied, crd.Name)
	}
	for _, name := range applied {
		err := wait.PollUntilContextCancel(ctx, poll, true, func(ctx context.Context) (bool, error) {
			crd, err := c.Extensions.ApiextensionsV1().CustomResourceDefinitions().Get(ctx, name, metav1.GetOptions{})
			if err != nil {
				return false, err
			}
			for _, cond := range crd.Status.Conditions {
				if cond.Type == apiextensionsv1.Established && cond.Status == apiextensionsv1.ConditionTrue {
					return true, nil
				}
			}
			return false, nil
		})
		if err != nil {
			return fmt.Errorf("wait for definition %s: %w", name, err)
		}
	}
	return nil
}

func printCRDs(w io.Writer) error {
	files, order, err := crds.Files()
	if err != nil {
		return err
	}
	for _, file := range order {
		if _, err := fmt.Fprintf(w, "%s\n", files[file]); err != nil {
			return err
		}
	}
	return nil
}

// removeCRDs deletes the definitions, and so every object of them.
func removeCRDs(ctx context.Context, c *run.Clients) error {
	files, order, err := crds.Files()
	if err != nil {
		return err
	}
	for _, file := range order {
		var crd apiextensionsv1.CustomResourceDefinition
		if err := yaml.Unmarshal(files[file], &crd); err != nil {
			return fmt.Errorf("embedded definition %s: %w", file, err)
		}
		err := c.Extensions.ApiextensionsV1().CustomResourceDefinitions().Delete(ctx, crd.Name, metav1.DeleteOptions{})
		if err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("delete definition %s: %w", crd.Name, err)
		}
	}
	return nil
}

// ensureNamespace makes the mesh's namespace. The node agent needs what Pod
// Security's level privileged allows: the host's network and capabilities.
func ensureNamespace(ctx context.Context, c *run.Clients) error {
	ns := applycorev1.Namespace(names.Namespace).WithLabels(map[string]string{
		"app.kubernetes.io/name":             "hauberk",
		"app.kubernetes.io/part-of":          "hauberk",
		"pod-security.kubernetes.io/enforce": "privileged",
		names.LabelInject:                    names.InjectDisabled,
	})
	got, err := c.Kube.CoreV1().Namespaces().Apply(ctx, ns, metav1.ApplyOptions{FieldManager: fieldManager, Force: true})
	if err != nil {
		return fmt.Errorf("apply namespace %s: %w", names.Namespace, err)
	}
	if got.Status.Phase == corev1.NamespaceTerminating {
		return run.Fail(run.ExitRuntime, "an uninstall is not finished: try again when it is gone", "namespace %s is being deleted", names.Namespace)
	}
	return nil
}

// removeNamespace deletes the mesh's namespace and waits until it is gone; it
// reports whether there was one.
func removeNamespace(ctx context.Context, c *run.Clients) (bool, error) {
	err := c.Kube.CoreV1().Namespaces().Delete(ctx, names.Namespace, metav1.DeleteOptions{})
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("delete namespace %s: %w", names.Namespace, err)
	}
	err = wait.PollUntilContextCancel(ctx, poll, true, func(ctx context.Context) (bool, error) {
		_, err := c.Kube.CoreV1().Namespaces().Get(ctx, names.Namespace, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return true, nil
		}
		return false, err
	})
	if err != nil && ctx.Err() != nil {
		return true, errTimeout(ctx, "namespace "+names.Namespace+" is still being deleted")
	}
	return true, err
}

// removeAdmission takes away the webhook and the admission policy, by label,
// so that it does not matter which version made them.
func removeAdmission(ctx context.Context, c *run.Clients) error {
	ours := metav1.ListOptions{LabelSelector: "app.kubernetes.io/part-of=hauberk"}
	adm := c.Kube.AdmissionregistrationV1()
	for what, remove := range map[string]func() error{
		"mutating webhooks": func() error {
			return adm.MutatingWebhookConfigurations().DeleteCollection(ctx, metav1.DeleteOptions{}, ours)
		},
		"admission policy bindings": func() error {
			return adm.ValidatingAdmissionPolicyBindings().DeleteCollection(ctx, metav1.DeleteOptions{}, ours)
		},
		"admission policies": func() error {
			return adm.ValidatingAdmissionPolicies().DeleteCollection(ctx, metav1.DeleteOptions{}, ours)
		},
	} {
		if err := remove(); err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("delete %s: %w", what, err)
		}
	}
	return nil
}

func removeRelease(ctx context.Context, cfg *action.Configuration) error {
	u := action.NewUninstall(cfg)
	u.IgnoreNotFound, u.WaitStrategy, u.DisableHooks = true, kube.HookOnlyStrategy, true
	if deadline, ok := ctx.Deadline(); ok {
		u.Timeout = time.Until(deadline)
	}
	if _, err := u.Run(releaseName); err != nil {
		return run.Fail(run.ExitRuntime, "run the command again", "remove the chart: %w", err)
	}
	return nil
}

// meshedPods counts pods that still have a sidecar.
func meshedPods(ctx context.Context, c *run.Clients) (int, error) {
	pods, err := c.Kube.CoreV1().Pods("").List(ctx, metav1.ListOptions{})
	if err != nil {
		return 0, fmt.Errorf("list pods: %w", err)
	}
	n := 0
	for _, p := range pods.Items {
		for _, i := range p.Spec.InitContainers {
			if i.Name == names.ProxyContainer {
				n++
			}
		}
	}
	return n, nil
}
