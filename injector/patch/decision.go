package patch

import (
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/hauberk-mesh/hauberk/internal/names"
)

// Reason is the stable code of a decision.
type Reason string

// The reasons. The first two inject; the others do not.
const (
	ReasonNamespaceEnabled    Reason = "NamespaceEnabled"
	ReasonPodEnabled          Reason = "PodEnabled"
	ReasonNamespaceNotEnabled Reason = "NamespaceNotEnabled"
	ReasonPodDisabled         Reason = "PodDisabled"
	ReasonMeshNamespace       Reason = "MeshNamespace"
	ReasonHostNetwork         Reason = "HostNetwork"
	ReasonStaticPod           Reason = "StaticPod"
	ReasonWindows             Reason = "Windows"
	ReasonOtherRevision       Reason = "OtherRevision"
	ReasonAlreadyInjected     Reason = "AlreadyInjected"
)

// NamespaceFacts is what the decision needs to know of the pod's namespace.
type NamespaceFacts struct {
	Name   string
	Labels map[string]string
}

// Decision says whether a pod gets a sidecar and why. The zero value does not
// inject.
type Decision struct {
	// Inject is true when this call adds the sidecar.
	Inject bool
	// Reason is the code, Sentence the same for people.
	Reason   Reason
	Sentence string
	// Warnings are for whoever creates the pod; none stops it.
	Warnings []string
}

// Refusal is the error for a pod that must not start as it is.
type Refusal struct {
	// Where names the field, as in spec.containers[app].securityContext.runAsUser.
	Where string
	// What is wrong with it, and Mend what to do about it.
	What string
	Mend string
}

// Error joins the three parts to one sentence.
func (r *Refusal) Error() string {
	return fmt.Sprintf("hauberk: %s: %s; %s", r.Where, r.What, r.Mend)
}

func refuse(where, mend, what string, args ...any) error {
	return &Refusal{Where: where, What: fmt.Sprintf(what, args...), Mend: mend}
}

// mirrorAnnotation marks the API server's image of a static pod. A kubelet
// deletes such a pod unless it runs the static pod itself, so the mark cannot
// be used to slip past the injector.
const mirrorAnnotation = corev1.MirrorPodAnnotationKey

// decide answers from labels and the kind of pod alone.
func decide(pod *corev1.Pod, ns NamespaceFacts, cfg Config) (Decision, error) {
	no := func(reason Reason, format string, args ...any) (Decision, error) {
		return Decision{Reason: reason, Sentence: fmt.Sprintf(format, args...)}, nil
	}
	if ns.Name == names.Namespace {
		return no(ReasonMeshNamespace, "namespace %s holds the mesh's own workloads, which never get a sidecar", ns.Name)
	}
	if _, ok := pod.Annotations[mirrorAnnotation]; ok {
		return no(ReasonStaticPod, "the pod is a kubelet's static pod, which the API server cannot change")
	}

	podLabel, podSays := pod.Labels[names.LabelInject]
	if podSays && podLabel != names.InjectEnabled && podLabel != names.InjectDisabled {
		return Decision{}, refuse("metadata.labels["+names.LabelInject+"]",
			fmt.Sprintf("write %s or %s", names.InjectEnabled, names.InjectDisabled), "%q is neither on nor off", podLabel)
	}
	nsLabel := ns.Labels[names.LabelInject]
	reason, sentence := ReasonPodEnabled, fmt.Sprintf("the pod's label %s is %s", names.LabelInject, names.InjectEnabled)
	switch {
	case podLabel == names.InjectDisabled:
		return no(ReasonPodDisabled, "the pod's label %s is %s, which overrides the namespace's", names.LabelInject, podLabel)
	case podLabel == names.InjectEnabled:
	case nsLabel == names.InjectEnabled:
		reason, sentence = ReasonNamespaceEnabled, fmt.Sprintf("namespace %s has the label %s: %s", ns.Name, names.LabelInject, nsLabel)
	case nsLabel == "":
		return no(ReasonNamespaceNotEnabled, "namespace %s has no label %s and neither has the pod", ns.Name, names.LabelInject)
	default:
		return no(ReasonNamespaceNotEnabled, "namespace %s has the label %s: %q, and only %q enables", ns.Name, names.LabelInject, nsLabel, names.InjectEnabled)
	}

	if rev := wantedRevision(pod, ns); rev != cfg.Revision {
		return no(ReasonOtherRevision, "the label %s asks for revision %q; this is %q", names.LabelRevision, rev, cfg.Revision)
	}
	if pod.Spec.HostNetwork {
		d, _ := no(ReasonHostNetwork, "the pod uses the host's network, which is not captured: it is outside the mesh")
		d.Warnings = []string{"hauberk: " + d.Sentence + "; its peers see the node's address and no identity"}
		return d, nil
	}
	if pod.Spec.OS != nil && pod.Spec.OS.Name == corev1.Windows {
		return no(ReasonWindows, "the pod is for Windows, where there is no sidecar")
	}
	return Decision{Inject: true, Reason: reason, Sentence: sentence}, nil
}

// wantedRevision is the pod's label, else the namespace's, else the default.
func wantedRevision(pod *corev1.Pod, ns NamespaceFacts) string {
	if rev := pod.Labels[names.LabelRevision]; rev != "" {
		return rev
	}
	if rev := ns.Labels[names.LabelRevision]; rev != "" {
		return rev
	}
	return DefaultRevision
}

// Explain says in a few lines why a pod is or is not injected and what would
// change.
func Explain(pod *corev1.Pod, ns NamespaceFacts, cfg Config) string {
	var b strings.Builder
	d, patched, err := Inject(pod, ns, cfg)
	switch {
	case err != nil:
		fmt.Fprintf(&b, "refused: %v\n", err)
	case d.Inject:
		fmt.Fprintf(&b, "injected (%s): %s\n", d.Reason, d.Sentence)
	default:
		fmt.Fprintf(&b, "not injected (%s): %s\n", d.Reason, d.Sentence)
	}
	label := func(labels map[string]string, key string) string {
		if v, ok := labels[key]; ok {
			return v
		}
		return "(none)"
	}
	fmt.Fprintf(&b, "  namespace %s: %s=%s %s=%s\n", ns.Name, names.LabelInject, label(ns.Labels, names.LabelInject), names.LabelRevision, label(ns.Labels, names.LabelRevision))
	fmt.Fprintf(&b, "  pod %s: %s=%s %s=%s\n", podName(pod), names.LabelInject, label(pod.Labels, names.LabelInject), names.LabelRevision, label(pod.Labels, names.LabelRevision))
	if err == nil && d.Inject {
		fmt.Fprintf(&b, "  sidecar image: %s\n", sidecarOf(patched).Image)
		for _, key := range sortedKeys(probesOf(sidecarOf(patched))) {
			fmt.Fprintf(&b, "  probe rewritten: %s\n", key)
		}
	}
	for _, w := range d.Warnings {
		fmt.Fprintf(&b, "  warning: %s\n", w)
	}
	return b.String()
}

func podName(pod *corev1.Pod) string {
	switch {
	case pod.Name != "":
		return pod.Name
	case pod.GenerateName != "":
		return pod.GenerateName + "*"
	}
	return "(unnamed)"
}
