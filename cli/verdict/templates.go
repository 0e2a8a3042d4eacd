package verdict

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/netip"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"

	"github.com/hauberk-mesh/hauberk/cli/mesh"
	"github.com/hauberk-mesh/hauberk/control/source"
	"github.com/hauberk-mesh/hauberk/injector/patch"
	"github.com/hauberk-mesh/hauberk/internal/names"
)

// addTemplates adds one pod for each workload of the documents that has none
// yet.
func addTemplates(o *source.Objects, documents []byte) error {
	reader := utilyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(documents)))
	for n := 1; ; n++ {
		document, err := reader.Read()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("document %d: %w", n, err)
		}
		var list struct {
			Items []map[string]any `json:"items"`
		}
		if err := yaml.Unmarshal(document, &list); err != nil {
			return fmt.Errorf("document %d: %w", n, err)
		}
		parts := [][]byte{document}
		if len(list.Items) > 0 {
			parts = nil
			for _, item := range list.Items {
				data, err := yaml.Marshal(item)
				if err != nil {
					return fmt.Errorf("document %d: %w", n, err)
				}
				parts = append(parts, data)
			}
		}
		for _, part := range parts {
			if err := addTemplate(o, part); err != nil {
				return fmt.Errorf("document %d: %w", n, err)
			}
		}
	}
}

// made is where addresses of pods of files are from: those of benchmarks
// (RFC 2544), which nobody has.
var made = netip.MustParsePrefix("198.18.0.0/15")

// completePods adds addresses and sidecars for pods of files, as a cluster
// would.
func completePods(o *source.Objects) {
	next := made.Addr()
	for _, p := range o.Pods { // those that were completed before keep theirs
		if a, err := netip.ParseAddr(p.Status.PodIP); err == nil && made.Contains(a) && next.Less(a) {
			next = a
		}
	}
	for _, p := range o.Pods {
		complete(o, p, &next)
	}
}

// workload is a kind that makes pods.
type workload struct {
	kind, namespace, name string
	template              *corev1.PodTemplateSpec
}

func addTemplate(o *source.Objects, document []byte) error {
	var head metav1.TypeMeta
	if err := yaml.Unmarshal(document, &head); err != nil {
		return err
	}
	w := workload{kind: head.Kind}
	read := func(into any, meta *metav1.ObjectMeta, template *corev1.PodTemplateSpec) error {
		if err := yaml.Unmarshal(document, into); err != nil {
			return fmt.Errorf("%s: %w", head.Kind, err)
		}
		w.namespace, w.name, w.template = meta.Namespace, meta.Name, template
		return nil
	}
	var err error
	switch head.APIVersion + "/" + head.Kind {
	case "apps/v1/Deployment":
		d := &appsv1.Deployment{}
		err = read(d, &d.ObjectMeta, &d.Spec.Template)
	case "apps/v1/StatefulSet":
		d := &appsv1.StatefulSet{}
		err = read(d, &d.ObjectMeta, &d.Spec.Template)
	case "apps/v1/DaemonSet":
		d := &appsv1.DaemonSet{}
		err = read(d, &d.ObjectMeta, &d.Spec.Template)
	case "apps/v1/ReplicaSet":
		d := &appsv1.ReplicaSet{}
		err = read(d, &d.ObjectMeta, &d.Spec.Template)
	case "batch/v1/Job":
		d := &batchv1.Job{}
		err = read(d, &d.ObjectMeta, &d.Spec.Template)
	case "batch/v1/CronJob":
		d := &batchv1.CronJob{}
		err = read(d, &d.ObjectMeta, &d.Spec.JobTemplate.Spec.Template)
	default:
		return nil
	}
	if err != nil {
		return err
	}
	if w.namespace == "" {
		w.namespace = "default"
	}
	for _, p := range o.Pods {
		if p.Namespace == w.namespace && ownedBy(p, &w) {
			return nil // it runs: its pods are what counts
		}
	}
	controller := true
	pod := &corev1.Pod{ObjectMeta: *w.template.ObjectMeta.DeepCopy(), Spec: *w.template.Spec.DeepCopy()}
	pod.Name, pod.Namespace = w.name, w.namespace
	pod.UID = types.UID("file:" + w.kind + "/" + w.namespace + "/" + w.name)
	pod.OwnerReferences = []metav1.OwnerReference{{APIVersion: head.APIVersion, Kind: w.kind, Name: w.name, Controller: &controller}}
	pod.Status.Phase = corev1.PodRunning
	o.Pods = append(o.Pods, pod)
	return nil
}

// ownedBy reports whether a pod is of the workload; Deployments own through a
// ReplicaSet whose name ends in the hash of the template.
func ownedBy(p *corev1.Pod, w *workload) bool {
	for _, owner := range p.OwnerReferences {
		if owner.Kind == w.kind && owner.Name == w.name {
			return true
		}
		if hash := p.Labels["pod-template-hash"]; w.kind == "Deployment" && owner.Kind == "ReplicaSet" && hash != "" && owner.Name == w.name+"-"+hash {
			return true
		}
	}
	return false
}

// complete gives a pod of a file what a cluster would: an address, a namespace,
// and the sidecar if it is to have one.
func complete(o *source.Objects, p *corev1.Pod, next *netip.Addr) {
	if p.ResourceVersion != "" {
		return // it comes from a cluster
	}
	if p.Status.Phase == "" {
		p.Status.Phase = corev1.PodRunning
	}
	if p.Status.PodIP == "" && len(p.Status.PodIPs) == 0 && !p.Spec.HostNetwork {
		*next = next.Next()
		p.Status.PodIP = next.String()
	}
	ns := namespaceOf(o, p.Namespace)
	if mesh.Sidecar(p) == nil {
		if d, err := mesh.Decide(p, ns, patch.Config{}); err != nil || !d.Inject {
			return
		}
		always := corev1.ContainerRestartPolicyAlways
		p.Spec.InitContainers = append([]corev1.Container{{Name: names.ProxyContainer, RestartPolicy: &always}}, p.Spec.InitContainers...)
	}
	if p.Annotations == nil {
		p.Annotations = make(map[string]string)
	}
	if p.Annotations[names.AnnotationStatus] == "" {
		p.Annotations[names.AnnotationStatus] = "{}"
	}
}

// namespaceOf is a namespace with the label that every cluster gives it; it is
// made when no file says it.
func namespaceOf(o *source.Objects, name string) *corev1.Namespace {
	var ns *corev1.Namespace
	for _, n := range o.Namespaces {
		if n.Name == name {
			ns = n
		}
	}
	if ns == nil {
		ns = &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}
		o.Namespaces = append(o.Namespaces, ns)
	}
	if ns.Labels == nil {
		ns.Labels = make(map[string]string)
	}
	ns.Labels[corev1.LabelMetadataName] = name
	return ns
}
