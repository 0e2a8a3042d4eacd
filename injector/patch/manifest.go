package patch

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"

	"github.com/hauberk-mesh/hauberk/internal/names"
)

// ManifestOptions says what a manifest does not.
type ManifestOptions struct {
	// Namespace is that of objects that name none; empty means "default".
	Namespace string
	// Facts looks namespaces up. Nil takes every namespace for enabled, for
	// that is what somebody who injects by hand means; labels of pods and the
	// mesh's own namespace count all the same.
	Facts func(namespace string) NamespaceFacts
}

// Report lists, in the order of the stream, the objects that have pods.
type Report struct {
	Items []ReportItem
}

// ReportItem is what happened to one object.
type ReportItem struct {
	Kind, Namespace, Name string
	// Changed tells whether the object in the output differs.
	Changed bool
	// Decision is empty in the report of UninjectManifest.
	Decision Decision
	// Err is why the object was refused.
	Err error
}

// change computes the patch of one pod or template.
type change func(raw []byte, namespace string, item *ReportItem) ([]byte, error)

// InjectManifest copies a stream of YAML or JSON documents, with a sidecar in
// each Pod, pod template and item of a List. Documents that do not change are
// copied byte by byte; those that change lose their comments. When any object
// is refused nothing is written, and the error names each.
func InjectManifest(r io.Reader, w io.Writer, cfg Config, opts ManifestOptions) (Report, error) {
	facts := opts.Facts
	if facts == nil {
		facts = func(namespace string) NamespaceFacts {
			labels := map[string]string{names.LabelInject: names.InjectEnabled}
			if cfg.Revision != "" {
				labels[names.LabelRevision] = cfg.Revision
			}
			return NamespaceFacts{Name: namespace, Labels: labels}
		}
	}
	return transform(r, w, opts.Namespace, func(raw []byte, namespace string, item *ReportItem) ([]byte, error) {
		d, p, err := InjectJSON(raw, facts(namespace), cfg)
		item.Decision = d
		return p, err
	})
}

// UninjectManifest copies a stream as InjectManifest does, without sidecars.
func UninjectManifest(r io.Reader, w io.Writer) (Report, error) {
	return transform(r, w, "", func(raw []byte, _ string, _ *ReportItem) ([]byte, error) {
		return UninjectJSON(raw)
	})
}

func transform(r io.Reader, w io.Writer, namespace string, f change) (Report, error) {
	if namespace == "" {
		namespace = "default"
	}
	var (
		report Report
		out    bytes.Buffer
		reader = utilyaml.NewYAMLReader(bufio.NewReader(r))
	)
	for n := 1; ; n++ {
		doc, err := reader.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return report, fmt.Errorf("read document %d: %w", n, err)
		}
		changed, err := transformDocument(doc, namespace, f, &report)
		if err != nil {
			return report, fmt.Errorf("document %d: %w", n, err)
		}
		if n > 1 {
			out.WriteString("---\n")
		}
		out.Write(changed)
		if len(changed) > 0 && changed[len(changed)-1] != '\n' {
			out.WriteByte('\n')
		}
	}
	var errs []error
	for _, item := range report.Items {
		if item.Err != nil {
			errs = append(errs, fmt.Errorf("%s %s/%s: %w", item.Kind, item.Namespace, item.Name, item.Err))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return report, err
	}
	if _, err := out.WriteTo(w); err != nil {
		return report, fmt.Errorf("write manifest: %w", err)
	}
	return report, nil
}

func transformDocument(doc []byte, namespace string, f change, report *Report) ([]byte, error) {
	raw, err := yaml.YAMLToJSON(doc)
	if err != nil {
		return nil, err
	}
	if len(bytes.TrimSpace(raw)) == 0 || raw[0] != '{' {
		return doc, nil // empty, or a comment
	}
	changed, err := transformObject(raw, namespace, f, report)
	if err != nil || changed == nil {
		return doc, err
	}
	out, err := yaml.JSONToYAML(changed)
	if err != nil {
		return nil, fmt.Errorf("encode: %w", err)
	}
	return out, nil
}

// object is as much of any object as is needed to find its pods.
type object struct {
	Kind     string `json:"kind"`
	Metadata struct {
		Name         string `json:"name"`
		GenerateName string `json:"generateName"`
		Namespace    string `json:"namespace"`
	} `json:"metadata"`
	Items []json.RawMessage `json:"items"`
}

// templatePath is where in an object of the kind its pod is; ok is false for
// kinds without one.
func templatePath(kind string) (path []string, ok bool) {
	switch kind {
	case "Pod":
		return nil, true
	case "Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "ReplicationController", "Job":
		return []string{"spec", "template"}, true
	case "CronJob":
		return []string{"spec", "jobTemplate", "spec", "template"}, true
	case "PodTemplate":
		return []string{"template"}, true
	}
	return nil, false
}

// transformObject returns the changed object, or nil if nothing changed.
func transformObject(raw []byte, namespace string, f change, report *Report) ([]byte, error) {
	var o object
	if err := json.Unmarshal(raw, &o); err != nil {
		return nil, fmt.Errorf("decode object: %w", err)
	}
	if o.Kind == "List" || (o.Items != nil && len(o.Kind) > 4 && o.Kind[len(o.Kind)-4:] == "List") {
		return transformList(raw, o.Items, namespace, f, report)
	}
	path, ok := templatePath(o.Kind)
	if !ok {
		return nil, nil
	}
	item := ReportItem{Kind: o.Kind, Namespace: o.Metadata.Namespace, Name: o.Metadata.Name}
	if item.Namespace == "" {
		item.Namespace = namespace
	}
	if item.Name == "" {
		item.Name = o.Metadata.GenerateName + "*"
	}
	changed, err := replaceAt(raw, path, func(pod []byte) ([]byte, error) {
		p, err := f(pod, item.Namespace, &item)
		if err != nil || p == nil {
			return nil, err
		}
		return applyJSON(pod, p)
	})
	item.Changed, item.Err = changed != nil && err == nil, err
	report.Items = append(report.Items, item)
	return changed, nil // the report carries the error, so that all are told
}

func transformList(raw []byte, items []json.RawMessage, namespace string, f change, report *Report) ([]byte, error) {
	any := false
	for i, item := range items {
		changed, err := transformObject(item, namespace, f, report)
		if err != nil {
			return nil, fmt.Errorf("item %d: %w", i, err)
		}
		if changed != nil {
			items[i], any = changed, true
		}
	}
	if !any {
		return nil, nil
	}
	encoded, err := json.Marshal(items)
	if err != nil {
		return nil, fmt.Errorf("encode items: %w", err)
	}
	return replaceAt(raw, []string{"items"}, func([]byte) ([]byte, error) { return encoded, nil })
}

// replaceAt replaces the value at a path of object members and leaves the
// bytes of all others alone. A nil replacement, or a path that is not there,
// gives nil.
func replaceAt(raw []byte, path []string, f func([]byte) ([]byte, error)) ([]byte, error) {
	if len(path) == 0 {
		return f(raw)
	}
	var members map[string]json.RawMessage
	if err := json.Unmarshal(raw, &members); err != nil {
		return nil, fmt.Errorf("decode: %w", err)
	}
	member, ok := members[path[0]]
	if !ok {
		return nil, nil
	}
	changed, err := replaceAt(member, path[1:], f)
	if err != nil || changed == nil {
		return nil, err
	}
	members[path[0]] = changed
	out, err := json.Marshal(members)
	if err != nil {
		return nil, fmt.Errorf("encode: %w", err)
	}
	return out, nil
}
