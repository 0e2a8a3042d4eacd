package patch

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	jsonpatch "gopkg.in/evanphx/json-patch.v4"

	"github.com/hauberk-mesh/hauberk/internal/names"
)

// Operation is one operation of an RFC 6902 patch.
type Operation struct {
	Op    string `json:"op"`
	From  string `json:"from,omitempty"`
	Path  string `json:"path"`
	Value any    `json:"value,omitempty"`
}

// Plan decides and lists the operations that make the pod a member. The
// operations touch only what is added or rewritten, so fields of the object
// that this build does not know survive. No operations means no change. An
// error of type *Refusal means that the pod must not start as it is.
func Plan(pod *corev1.Pod, ns NamespaceFacts, cfg Config) (Decision, []Operation, error) {
	cfg = cfg.withDefaults()
	d, err := decide(pod, ns, cfg)
	if err != nil || !d.Inject {
		return d, nil, err
	}
	present, err := checkOurs(pod, cfg)
	if err != nil {
		return Decision{}, nil, err
	}
	if err := checkReserved(pod); err != nil {
		return Decision{}, nil, err
	}
	s, err := settingsOf(pod, cfg)
	if err != nil {
		return Decision{}, nil, err
	}
	ops, probes, warnings, err := rewriteProbes(pod, present)
	if err != nil {
		return Decision{}, nil, err
	}
	d.Warnings = append(d.Warnings, s.warnings...)
	d.Warnings = append(d.Warnings, warnings...)
	if present {
		d.Inject, d.Reason, d.Sentence = false, ReasonAlreadyInjected, "the pod has its sidecar already"
		return d, append(ops, complete(pod, probes, cfg)...), nil
	}
	if pod.Spec.ShareProcessNamespace != nil && *pod.Spec.ShareProcessNamespace {
		d.Warnings = append(d.Warnings, "hauberk: spec.shareProcessNamespace lets a container that is root reach the sidecar's process and key")
	}
	if pod.Spec.HostPID {
		d.Warnings = append(d.Warnings, "hauberk: spec.hostPID lets a container that is root reach the processes and keys of every sidecar on its node")
	}

	container := sidecar(cfg, s, probes)
	if len(pod.Spec.InitContainers) == 0 {
		ops = append(ops, Operation{Op: "add", Path: "/spec/initContainers", Value: []corev1.Container{container}})
	} else {
		// Last of the operations on containers: it moves the indices.
		ops = append(ops, Operation{Op: "add", Path: "/spec/initContainers/0", Value: container})
	}
	if len(pod.Spec.Volumes) == 0 {
		ops = append(ops, Operation{Op: "add", Path: "/spec/volumes", Value: []corev1.Volume{tokenVolume()}})
	} else {
		ops = append(ops, Operation{Op: "add", Path: "/spec/volumes/-", Value: tokenVolume()})
	}
	status := encodeStatus(Status{Version: cfg.Version, Revision: cfg.Revision, Image: cfg.Image, Reason: d.Reason})
	if len(pod.Annotations) == 0 {
		ops = append(ops, Operation{Op: "add", Path: "/metadata/annotations", Value: map[string]string{names.AnnotationStatus: status}})
	} else {
		ops = append(ops, Operation{Op: "add", Path: "/metadata/annotations/" + escapePointer(names.AnnotationStatus), Value: status})
	}
	return d, ops, nil
}

// complete adds to an injected pod what other webhooks made necessary after
// us: probes of containers that they added, and the first place. A sidecar that
// came with the pod obeys our control plane and no other.
func complete(pod *corev1.Pod, fresh map[string]Probe, cfg Config) []Operation {
	var ops []Operation
	for i := range pod.Spec.InitContainers {
		own := pod.Spec.InitContainers[i]
		if own.Name != names.ProxyContainer {
			continue
		}
		c := &own // setEnv notes there what it adds
		if len(fresh) > 0 {
			all := probesOf(c)
			for key, p := range fresh {
				all[key] = p
			}
			ops = append(ops, setEnv(c, fmt.Sprintf("/spec/initContainers/%d/env", i), envProbes, escapeEnv(encodeProbes(all))))
		}
		trust := trustEnv(cfg)
		for _, name := range sortedKeys(trust) {
			if !slices.ContainsFunc(c.Env, func(e corev1.EnvVar) bool { return e.Name == name && e.Value == trust[name] }) {
				ops = append(ops, setEnv(c, fmt.Sprintf("/spec/initContainers/%d/env", i), name, trust[name]))
			}
		}
		if i > 0 {
			ops = append(ops, Operation{Op: "move", From: fmt.Sprintf("/spec/initContainers/%d", i), Path: "/spec/initContainers/0"})
		}
	}
	return ops
}

func setEnv(c *corev1.Container, pointer, name, value string) Operation {
	for i, e := range c.Env {
		if e.Name == name {
			return Operation{Op: "replace", Path: fmt.Sprintf("%s/%d/value", pointer, i), Value: value}
		}
	}
	entry := corev1.EnvVar{Name: name, Value: value}
	if len(c.Env) == 0 {
		c.Env = []corev1.EnvVar{entry} // what follows is added to it
		return Operation{Op: "add", Path: pointer, Value: []corev1.EnvVar{entry}}
	}
	return Operation{Op: "add", Path: pointer + "/-", Value: entry}
}

// Inject returns the decision and the pod as it would be; the pod given is
// not changed, and is what is returned when there is nothing to do.
func Inject(pod *corev1.Pod, ns NamespaceFacts, cfg Config) (Decision, *corev1.Pod, error) {
	d, ops, err := Plan(pod, ns, cfg)
	if err != nil || len(ops) == 0 {
		return d, pod, err
	}
	out, err := applyTyped(pod, ops)
	return d, out, err
}

// InjectJSON is Inject on a pod as it came over the wire, or on a pod
// template; it returns the encoded patch, nil for no change.
func InjectJSON(raw []byte, ns NamespaceFacts, cfg Config) (Decision, []byte, error) {
	var pod corev1.Pod
	if err := json.Unmarshal(raw, &pod); err != nil {
		return Decision{}, nil, fmt.Errorf("decode pod: %w", err)
	}
	d, ops, err := Plan(&pod, ns, cfg)
	if err != nil || len(ops) == 0 {
		return d, nil, err
	}
	if !hasMetadata(raw) {
		// A template may lack the object that annotations go into.
		ops = append([]Operation{{Op: "add", Path: "/metadata", Value: map[string]any{}}}, ops...)
	}
	encoded, err := json.Marshal(ops)
	if err != nil {
		return Decision{}, nil, fmt.Errorf("encode patch: %w", err)
	}
	return d, encoded, nil
}

func hasMetadata(raw []byte) bool {
	var probe struct {
		Metadata map[string]json.RawMessage `json:"metadata"`
	}
	return json.Unmarshal(raw, &probe) == nil && probe.Metadata != nil
}

func applyTyped(pod *corev1.Pod, ops []Operation) (*corev1.Pod, error) {
	raw, err := json.Marshal(pod)
	if err != nil {
		return nil, fmt.Errorf("encode pod: %w", err)
	}
	encoded, err := json.Marshal(ops)
	if err != nil {
		return nil, fmt.Errorf("encode patch: %w", err)
	}
	if raw, err = applyJSON(raw, encoded); err != nil {
		return nil, err
	}
	var out corev1.Pod
	if err := json.Unmarshal(raw, &out); err != nil {
		return nil, fmt.Errorf("decode patched pod: %w", err)
	}
	return &out, nil
}

func applyJSON(raw, encoded []byte) ([]byte, error) {
	p, err := jsonpatch.DecodePatch(encoded)
	if err != nil {
		return nil, fmt.Errorf("decode patch: %w", err)
	}
	out, err := p.Apply(raw)
	if err != nil {
		return nil, fmt.Errorf("apply patch: %w", err)
	}
	return out, nil
}

// escapePointer escapes one token of an RFC 6901 pointer.
func escapePointer(token string) string {
	return strings.NewReplacer("~", "~0", "/", "~1").Replace(token)
}
