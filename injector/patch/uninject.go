package patch

import (
	"encoding/json"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/hauberk-mesh/hauberk/internal/names"
)

// PlanRemoval lists the operations that take the sidecar out again and put the
// probes back. A probe that named its port comes back with the number.
func PlanRemoval(pod *corev1.Pod) []Operation {
	originals := probesOf(sidecarOf(pod))
	var ops []Operation
	for where, c := range containers(pod) {
		for _, slot := range probeSlots(c) {
			if slot.probe == nil || !rewritten(c.Name, slot) {
				continue
			}
			original, ok := originals[probeKey(c.Name, slot.kind)]
			if !ok {
				continue
			}
			ops = append(ops, restoreProbe(original, where.pointer()+"/"+slot.field)...)
		}
	}
	// The index is that of before the operations, and only this one removes.
	if i := slices.IndexFunc(pod.Spec.InitContainers, func(c corev1.Container) bool { return c.Name == names.ProxyContainer }); i >= 0 {
		ops = append(ops, removeItem("/spec/initContainers", i, len(pod.Spec.InitContainers)))
	}
	if i := slices.IndexFunc(pod.Spec.Volumes, func(v corev1.Volume) bool { return v.Name == TokenVolume }); i >= 0 {
		ops = append(ops, removeItem("/spec/volumes", i, len(pod.Spec.Volumes)))
	}
	if _, ok := pod.Annotations[names.AnnotationStatus]; ok {
		path := "/metadata/annotations"
		if len(pod.Annotations) > 1 {
			path += "/" + escapePointer(names.AnnotationStatus)
		}
		ops = append(ops, Operation{Op: "remove", Path: path})
	}
	return ops
}

// removeItem removes one item of a list, and the list with its last item.
func removeItem(list string, index, length int) Operation {
	if length == 1 {
		return Operation{Op: "remove", Path: list}
	}
	return Operation{Op: "remove", Path: fmt.Sprintf("%s/%d", list, index)}
}

func restoreProbe(p Probe, pointer string) []Operation {
	switch {
	case p.HTTP != nil:
		action := corev1.HTTPGetAction{Path: p.HTTP.Path, Port: intstr.FromInt32(p.HTTP.Port)}
		if p.HTTP.Scheme != string(corev1.URISchemeHTTP) {
			action.Scheme = corev1.URIScheme(p.HTTP.Scheme)
		}
		for _, h := range p.HTTP.Headers {
			action.HTTPHeaders = append(action.HTTPHeaders, corev1.HTTPHeader{Name: h.Name, Value: h.Value})
		}
		return []Operation{{Op: "replace", Path: pointer + "/httpGet", Value: action}}
	case p.TCP != nil:
		return []Operation{
			{Op: "remove", Path: pointer + "/httpGet"},
			{Op: "add", Path: pointer + "/tcpSocket", Value: map[string]any{"port": p.TCP.Port}},
		}
	case p.GRPC != nil:
		value := map[string]any{"port": p.GRPC.Port}
		if p.GRPC.Service != "" {
			value["service"] = p.GRPC.Service
		}
		return []Operation{
			{Op: "remove", Path: pointer + "/httpGet"},
			{Op: "add", Path: pointer + "/grpc", Value: value},
		}
	}
	return nil
}

// Uninject returns the pod without the sidecar; the pod given is not changed,
// and is what is returned when it has none.
func Uninject(pod *corev1.Pod) (*corev1.Pod, error) {
	ops := PlanRemoval(pod)
	if len(ops) == 0 {
		return pod, nil
	}
	return applyTyped(pod, ops)
}

// UninjectJSON is Uninject on a pod or pod template; nil means no change.
func UninjectJSON(raw []byte) ([]byte, error) {
	var pod corev1.Pod
	if err := json.Unmarshal(raw, &pod); err != nil {
		return nil, fmt.Errorf("decode pod: %w", err)
	}
	ops := PlanRemoval(&pod)
	if len(ops) == 0 {
		return nil, nil
	}
	encoded, err := json.Marshal(ops)
	if err != nil {
		return nil, fmt.Errorf("encode patch: %w", err)
	}
	return encoded, nil
}
