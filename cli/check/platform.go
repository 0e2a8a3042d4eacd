package check

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/hauberk-mesh/hauberk/cli/run"
	"github.com/hauberk-mesh/hauberk/install/crds"
	"github.com/hauberk-mesh/hauberk/internal/names"
)

// oldest is the first minor version of Kubernetes 1 that has all that the mesh
// stands on: ValidatingAdmissionPolicy is stable in it, and native sidecars are on.
const oldest = 30

func lookKubernetes(ctx context.Context, s *state) error {
	v, err := s.c.Kube.Discovery().ServerVersion()
	if err != nil {
		var known *run.Error
		if errors.As(err, &known) {
			return err
		}
		return &run.Error{Code: run.ExitUnreachable, Err: fmt.Errorf("reach the cluster: %w", err),
			Mend: "is the cluster up, and is this its kubeconfig? Choose another with --kubeconfig or --context"}
	}
	minor, err := strconv.Atoi(strings.TrimRight(v.Minor, "+"))
	switch {
	case err != nil || v.Major != "1":
		s.warn(fmt.Sprintf("Hauberk is made for 1.%d and later", oldest), "Kubernetes %s is of an unknown version", v.GitVersion)
	case minor < oldest:
		s.bad(fmt.Sprintf("upgrade the cluster to 1.%d or later: native sidecars and ValidatingAdmissionPolicy are needed", oldest), "Kubernetes %s is too old", v.GitVersion)
	default:
		s.good("Kubernetes %s", v.GitVersion)
	}

	list, err := s.c.Kube.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		s.warn("nodes cannot be judged without the right to list them", "list nodes: %v", err)
		return nil
	}
	var ready int
	var down, other []string
	for i := range list.Items {
		n := &list.Items[i]
		switch {
		case n.Status.NodeInfo.OperatingSystem != "" && n.Status.NodeInfo.OperatingSystem != "linux":
			other = append(other, n.Name)
		case nodeReady(n):
			ready++
		default:
			down = append(down, n.Name)
		}
	}
	switch {
	case len(list.Items) == 0:
		s.bad("add a Linux node", "the cluster has no node")
	case len(down) > 0:
		s.warn("see `kubectl describe node "+down[0]+"`", "%d of %d nodes are not ready: %s", len(down), len(list.Items), run.Some(down))
	default:
		s.good("%s ready", plural(ready, "node is", "nodes are"))
	}
	if len(other) > 0 {
		s.warn("pods there stay outside of the mesh", "%s not of Linux: %s", plural(len(other), "node is", "nodes are"), run.Some(other))
	}
	return nil
}

func nodeReady(n *corev1.Node) bool {
	return slices.ContainsFunc(n.Status.Conditions, func(c corev1.NodeCondition) bool {
		return c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue
	})
}

// needed is what installing does.
var needed = []authorizationv1.ResourceAttributes{
	{Verb: "create", Resource: "namespaces"},
	{Verb: "create", Resource: "configmaps", Namespace: names.Namespace},
	{Verb: "create", Resource: "secrets", Namespace: names.Namespace},
	{Verb: "create", Resource: "serviceaccounts", Namespace: names.Namespace},
	{Verb: "create", Resource: "services", Namespace: names.Namespace},
	{Verb: "create", Resource: "pods", Subresource: "portforward", Namespace: names.Namespace},
	{Verb: "create", Group: "apps", Resource: "deployments", Namespace: names.Namespace},
	{Verb: "create", Group: "apps", Resource: "daemonsets", Namespace: names.Namespace},
	{Verb: "create", Group: "policy", Resource: "poddisruptionbudgets", Namespace: names.Namespace},
	{Verb: "create", Group: "rbac.authorization.k8s.io", Resource: "clusterroles"},
	{Verb: "create", Group: "rbac.authorization.k8s.io", Resource: "clusterrolebindings"},
	{Verb: "create", Group: "rbac.authorization.k8s.io", Resource: "roles", Namespace: names.Namespace},
	{Verb: "create", Group: "rbac.authorization.k8s.io", Resource: "rolebindings", Namespace: names.Namespace},
	{Verb: "create", Group: "admissionregistration.k8s.io", Resource: "mutatingwebhookconfigurations"},
	{Verb: "create", Group: "admissionregistration.k8s.io", Resource: "validatingadmissionpolicies"},
	{Verb: "create", Group: "admissionregistration.k8s.io", Resource: "validatingadmissionpolicybindings"},
	{Verb: "create", Group: "apiextensions.k8s.io", Resource: "customresourcedefinitions"},
	{Verb: "patch", Group: "apiextensions.k8s.io", Resource: "customresourcedefinitions"},
}

func lookPermissions(ctx context.Context, s *state) error {
	type answer struct {
		allowed bool
		err     error
	}
	answers := run.Each(needed, func(a authorizationv1.ResourceAttributes) answer {
		review := &authorizationv1.SelfSubjectAccessReview{Spec: authorizationv1.SelfSubjectAccessReviewSpec{ResourceAttributes: &a}}
		r, err := s.c.Kube.AuthorizationV1().SelfSubjectAccessReviews().Create(ctx, review, metav1.CreateOptions{})
		if err != nil {
			return answer{err: err}
		}
		return answer{allowed: r.Status.Allowed}
	})
	refused := 0
	for i, a := range answers {
		if a.err != nil {
			return fmt.Errorf("ask for your rights: %w", a.err)
		}
		if a.allowed {
			continue
		}
		refused++
		what := needed[i].Resource
		if sub := needed[i].Subresource; sub != "" {
			what += "/" + sub
		}
		if g := needed[i].Group; g != "" {
			what += "." + g
		}
		where := "in the cluster"
		if ns := needed[i].Namespace; ns != "" {
			where = "in namespace " + ns
		}
		s.bad("install as a user that may, such as one with the ClusterRole cluster-admin", "you may not %s %s %s", needed[i].Verb, what, where)
	}
	if refused == 0 {
		s.good("you have the %d rights that installing needs", len(needed))
	}
	return nil
}

func lookDefinitions(ctx context.Context, s *state) error {
	files, order, err := crds.Files()
	if err != nil {
		return err
	}
	good := 0
	for _, file := range order {
		var want apiextensionsv1.CustomResourceDefinition
		if err := yaml.Unmarshal(files[file], &want); err != nil {
			return fmt.Errorf("embedded definition %s: %w", file, err)
		}
		got, err := s.c.Extensions.ApiextensionsV1().CustomResourceDefinitions().Get(ctx, want.Name, metav1.GetOptions{})
		switch {
		case apierrors.IsNotFound(err):
			s.bad("run `hauberk install`", "definition %s is missing", want.Name)
			continue
		case err != nil:
			return fmt.Errorf("read definition %s: %w", want.Name, err)
		}
		served := slices.ContainsFunc(got.Status.Conditions, func(c apiextensionsv1.CustomResourceDefinitionCondition) bool {
			return c.Type == apiextensionsv1.Established && c.Status == apiextensionsv1.ConditionTrue
		})
		switch {
		case !served:
			s.bad("see `kubectl describe crd "+want.Name+"`", "definition %s is not served", want.Name)
		case !sameVersions(&want, got):
			s.bad("run `hauberk upgrade`", "definition %s has other versions than this command knows", want.Name)
		default:
			good++
		}
	}
	if good > 0 {
		s.good("%s served", plural(good, "definition is", "definitions are"))
	}
	return nil
}

// sameVersions reports whether every version that we embed is served.
func sameVersions(want, got *apiextensionsv1.CustomResourceDefinition) bool {
	for _, w := range want.Spec.Versions {
		if !slices.ContainsFunc(got.Spec.Versions, func(v apiextensionsv1.CustomResourceDefinitionVersion) bool { return v.Name == w.Name && v.Served }) {
			return false
		}
	}
	return true
}

func plural(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}
