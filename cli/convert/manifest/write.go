package manifest

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/hauberk-mesh/hauberk/api/v1alpha1"
)

// Converted is one of our objects with those that it was made of.
type Converted struct {
	From   []*Object
	Object metav1.Object // of api/v1alpha1, with its TypeMeta set
}

// APIVersion is ours.
var APIVersion = v1alpha1.GroupVersion.String()

// Type is the TypeMeta of one of our kinds.
func Type(kind string) metav1.TypeMeta { return metav1.TypeMeta{APIVersion: APIVersion, Kind: kind} }

// droppedAnnotations say nothing about what is made of the object.
var droppedAnnotations = []string{
	"kubectl.kubernetes.io/last-applied-configuration", "projectcalico.org/metadata", "istio.io/dry-run",
}

// Meta is the metadata of what is made of o.
func Meta(o *Object, name string) metav1.ObjectMeta {
	m := metav1.ObjectMeta{Name: name, Namespace: o.Meta.Namespace, Labels: maps.Clone(o.Meta.Labels), Annotations: maps.Clone(o.Meta.Annotations)}
	for _, a := range droppedAnnotations {
		delete(m.Annotations, a)
	}
	if len(m.Annotations) == 0 {
		m.Annotations = nil
	}
	return m
}

// kindOf is the kind that the object says it is.
func kindOf(object any) string {
	switch object.(type) {
	case *v1alpha1.Tier:
		return "Tier"
	case *v1alpha1.ClusterNetworkSet:
		return "ClusterNetworkSet"
	case *v1alpha1.NetworkSet:
		return "NetworkSet"
	case *v1alpha1.PeerAuthentication:
		return "PeerAuthentication"
	case *v1alpha1.ClusterMeshPolicy:
		return "ClusterMeshPolicy"
	case *v1alpha1.MeshPolicy:
		return "MeshPolicy"
	}
	return ""
}

// rank is the order of kinds: what others name comes first.
func rank(kind string) int {
	return slices.Index([]string{"Tier", "ClusterNetworkSet", "NetworkSet", "PeerAuthentication", "ClusterMeshPolicy", "MeshPolicy"}, kind)
}

// Sort brings objects into the order in which they are printed and applied, and
// tells of those that two sources made under one name.
func Sort(list []Converted, report *Report) {
	slices.SortStableFunc(list, func(a, b Converted) int {
		return cmp.Or(cmp.Compare(rank(kindOf(a.Object)), rank(kindOf(b.Object))),
			strings.Compare(a.Object.GetNamespace(), b.Object.GetNamespace()), strings.Compare(a.Object.GetName(), b.Object.GetName()))
	})
	for i := 1; i < len(list); i++ {
		a, b := &list[i-1], &list[i]
		if kindOf(a.Object) == kindOf(b.Object) && a.Object.GetNamespace() == b.Object.GetNamespace() && a.Object.GetName() == b.Object.GetName() {
			report.Error(b.From[0], "metadata.name", "it and %s (%s) would both become %s %s: rename one", a.From[0], a.From[0].File, kindOf(b.Object), b.Object.GetName())
		}
	}
}

// Write prints the objects as YAML documents, each with what it was made of.
func Write(list []Converted) ([]byte, error) {
	var out bytes.Buffer
	for i, c := range list {
		if i > 0 {
			out.WriteString("---\n")
		}
		var names []string
		for _, o := range c.From {
			if n := fmt.Sprintf("%s (%s)", o, o.File); !slices.Contains(names, n) {
				names = append(names, n)
			}
		}
		if len(names) > 0 {
			fmt.Fprintf(&out, "# from %s\n", strings.ReplaceAll(strings.Join(names, ", "), "\n", " "))
		}
		data, err := json.Marshal(c.Object)
		var fields map[string]any
		if err == nil {
			err = json.Unmarshal(data, &fields)
		}
		if err != nil {
			return nil, fmt.Errorf("write %s %s: %w", kindOf(c.Object), c.Object.GetName(), err)
		}
		delete(fields, "status")
		if m, ok := fields["metadata"].(map[string]any); ok {
			delete(m, "creationTimestamp")
		}
		text, err := yaml.Marshal(fields)
		if err != nil {
			return nil, fmt.Errorf("write %s %s: %w", kindOf(c.Object), c.Object.GetName(), err)
		}
		out.Write(text)
	}
	return out.Bytes(), nil
}
