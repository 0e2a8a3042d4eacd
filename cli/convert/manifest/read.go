// Package manifest reads the manifests that are converted and writes ours. It
// owns documents, lists, where an object stands, and how what can't be converted
// is told. It does not own what any kind means (packages calico and istio).
package manifest

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	kjson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"
)

// Input is one file.
type Input struct {
	Name string
	Data []byte
}

// Object is one object of a file, not yet read beyond its metadata.
type Object struct {
	File string
	metav1.TypeMeta
	Meta metav1.ObjectMeta
	// JSON is the whole object.
	JSON []byte
}

// Group is the API group, empty for the core one.
func (o *Object) Group() string {
	group, _, ok := strings.Cut(o.APIVersion, "/")
	if !ok {
		return ""
	}
	return group
}

// String names the object as users do.
func (o *Object) String() string {
	if o.Meta.Namespace == "" {
		return o.Kind + " " + o.Meta.Name
	}
	return o.Kind + " " + o.Meta.Namespace + "/" + o.Meta.Name
}

// head is what every object has, and the items of a list.
type head struct {
	metav1.TypeMeta `json:",inline"`
	Metadata        metav1.ObjectMeta `json:"metadata"`
	Items           []rawObject       `json:"items"`
}

// rawObject keeps an object's text.
type rawObject []byte

func (r *rawObject) UnmarshalJSON(data []byte) error {
	*r = bytes.Clone(data)
	return nil
}

// Read splits files into objects; lists count as their items. What can't be read
// is told to the report.
func Read(inputs []Input, report *Report) []*Object {
	var out []*Object
	for _, in := range inputs {
		reader := utilyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(in.Data)))
		for n := 1; ; n++ {
			document, err := reader.Read()
			if errors.Is(err, io.EOF) {
				break
			}
			if err == nil {
				document, err = yaml.YAMLToJSONStrict(document)
			}
			if err != nil {
				report.File(in.Name, "document %d: %s", n, oneLine(err))
				if document == nil {
					break
				}
				continue
			}
			if string(document) == "null" {
				continue // comments only
			}
			out = read(out, in.Name, fmt.Sprintf("document %d", n), document, nil, report)
		}
	}
	return out
}

func read(out []*Object, file, place string, data []byte, list *head, report *Report) []*Object {
	var h head
	if err := kjson.UnmarshalCaseSensitivePreserveInts(data, &h); err != nil {
		report.File(file, "%s: %s", place, oneLine(err))
		return out
	}
	if h.Kind == "" && list != nil && list.Kind != "List" {
		h.Kind, h.APIVersion = strings.TrimSuffix(list.Kind, "List"), list.APIVersion
	}
	if h.Kind == "" || h.APIVersion == "" {
		report.File(file, "%s: apiVersion or kind is missing: it is no Kubernetes object", place)
		return out
	}
	if strings.HasSuffix(h.Kind, "List") && h.Metadata.Name == "" {
		for i, item := range h.Items {
			out = read(out, file, fmt.Sprintf("%s, item %d", place, i), item, &h, report)
		}
		return out
	}
	o := &Object{File: file, TypeMeta: h.TypeMeta, Meta: h.Metadata, JSON: data}
	if o.Meta.Name == "" {
		report.File(file, "%s: %s: metadata.name is missing", place, o.Kind)
		return out
	}
	return append(out, o)
}

// Decode fills into with the object, but for apiVersion, kind, metadata and
// status. Fields that into does not have are told one by one. It is false when
// nothing of the object can be read.
func (o *Object) Decode(into any, report *Report) bool {
	var whole map[string]any
	err := kjson.UnmarshalCaseSensitivePreserveInts(o.JSON, &whole)
	if err != nil {
		report.Error(o, "", "%s", oneLine(err))
		return false
	}
	for _, known := range []string{"apiVersion", "kind", "metadata", "status"} {
		delete(whole, known)
	}
	data, err := yaml.Marshal(whole)
	if err == nil {
		data, err = yaml.YAMLToJSON(data)
	}
	var strict []error
	if err == nil {
		strict, err = kjson.UnmarshalStrict(data, into)
	}
	if err != nil {
		report.Error(o, "", "%s", oneLine(err))
		return false
	}
	for _, e := range strict {
		text := oneLine(e)
		field := ""
		if rest, ok := strings.CutPrefix(text, "unknown field \""); ok {
			field, text = strings.TrimSuffix(rest, "\""), "the converter does not know this field: remove it if it means nothing"
		}
		report.Error(o, field, "%s", text)
	}
	return true
}

func oneLine(err error) string { return strings.Join(strings.Fields(err.Error()), " ") }
