// Package status tells users on their own objects how far each is in force:
// Accepted, ResolvedRefs and Programmed with counts. One replica, the leader,
// writes.
//
// It does not decide what is valid (control/source and control/compile do) or
// who acknowledged what (control/distribute).
package status

import (
	"fmt"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/hauberk-mesh/hauberk/api/v1alpha1"
	"github.com/hauberk-mesh/hauberk/control/compile"
	"github.com/hauberk-mesh/hauberk/control/distribute"
)

// maxMessage bounds a condition's message (the API's limit is 32768).
const maxMessage = 2000

// desired is what an object's status should say, but for times.
type desired struct {
	conditions []metav1.Condition
	subjects   int32
}

// conditionsOf is pure: what compilation and acknowledgements mean for one
// object.
func conditionsOf(report *compile.PolicyReport, resources *compile.Resources, acks distribute.Acks) desired {
	d := desired{subjects: int32(len(report.Subjects))}
	add := func(kind string, ok bool, reason, message string) {
		value := metav1.ConditionFalse
		if ok {
			value = metav1.ConditionTrue
		}
		if len(message) > maxMessage {
			message = message[:maxMessage] + "…"
		}
		d.conditions = append(d.conditions, metav1.Condition{
			Type: kind, Status: value, Reason: reason, Message: message, ObservedGeneration: report.Ref.Generation,
		})
	}
	if len(report.Invalid) > 0 {
		message := strings.Join(report.Invalid, "; ") +
			": for the pods that it selects its Allow rules match nothing and its Deny rules everything that they could mean"
		switch report.Ref.Kind {
		case "PeerAuthentication":
			message = strings.Join(report.Invalid, "; ") + ": what it selects is STRICT"
		case "Tier":
			message = strings.Join(report.Invalid, "; ") + ": the policies of the tier are invalid too"
		case "NetworkSet", "ClusterNetworkSet":
			message = strings.Join(report.Invalid, "; ") + ": rules that name it can't be resolved"
		}
		add(v1alpha1.ConditionAccepted, false, "Invalid", message)
	} else {
		add(v1alpha1.ConditionAccepted, true, "Accepted", "understood and in force")
	}
	switch report.Ref.Kind {
	case "PeerAuthentication", "Tier", "NetworkSet", "ClusterNetworkSet":
		return d
	}
	if len(report.Unresolved) > 0 {
		add(v1alpha1.ConditionResolvedRefs, false, "RefNotFound", strings.Join(report.Unresolved, "; "))
	} else {
		add(v1alpha1.ConditionResolvedRefs, true, "ResolvedRefs", "all that it names exists")
	}
	if len(report.Subjects) == 0 {
		add(v1alpha1.ConditionProgrammed, true, "NoSubjects", "it selects no pods: check its selectors and the pods' labels")
		return d
	}
	var kernelWant, kernelHave, sidecarWant, sidecarHave, plain int
	for _, uid := range report.Subjects {
		w := resources.Workloads[uid]
		if w.GetNode() != "" {
			kernelWant++
			if acks.Kernel[uid] == w.GetPolicySet() {
				kernelHave++
			}
		}
		if !w.GetMeshed() {
			plain++
			continue
		}
		sidecarWant++
		if acks.Sidecar[uid] == w.GetPolicySet() {
			sidecarHave++
		}
	}
	message := fmt.Sprintf("kernel: %d of %d pods; sidecars: %d of %d", kernelHave, kernelWant, sidecarHave, sidecarWant)
	if report.L7 && plain > 0 {
		message += fmt.Sprintf("; %d selected pods have no sidecar: rules that only a sidecar can decide never allow there", plain)
	}
	done := kernelHave == kernelWant && sidecarHave == sidecarWant
	reason := "Programmed"
	if !done {
		reason = "Pending"
	}
	add(v1alpha1.ConditionProgrammed, done, reason, message)
	return d
}
