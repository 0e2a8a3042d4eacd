package convert

import (
	"flag"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/cel"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/pruning"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/validation"
	utiljson "k8s.io/apimachinery/pkg/util/json"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"sigs.k8s.io/yaml"

	"github.com/hauberk-mesh/hauberk/cli/convert/manifest"
	"github.com/hauberk-mesh/hauberk/control/compile"
	"github.com/hauberk-mesh/hauberk/control/source"
	"github.com/hauberk-mesh/hauberk/install/crds"
)

var update = flag.Bool("update", false, "write the golden files")

// TestGolden holds what well-known examples become, notes and errors included,
// and that the API server takes it.
func TestGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/*.in.yaml")
	if err != nil || len(files) < 3 {
		t.Fatal(files, err)
	}
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".in.yaml")
		t.Run(name, func(t *testing.T) {
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			out, report := Convert([]manifest.Input{{Name: name + ".yaml", Data: data}}, Defaults())
			if (len(report.Errors) > 0) != (name == "refused") {
				t.Errorf("errors: %q", report.Errors)
			}
			accepted(t, string(out))
			got := string(out)
			for _, n := range report.Notes {
				if len(report.Errors) > 0 {
					break
				}
				got += "! " + n + "\n"
			}
			for _, e := range report.Errors {
				got += "error: " + e + "\n"
			}
			golden := strings.TrimSuffix(file, ".in.yaml") + ".golden"
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Errorf("run with -update and read the difference:\n%s", diff)
			}
		})
	}
}

// accepted holds documents to the definitions of our kinds, as the API server
// does.
func accepted(t *testing.T, text string) {
	t.Helper()
	byName, order, err := crds.Files()
	if err != nil {
		t.Fatal(err)
	}
	props := map[string]*apiextensions.JSONSchemaProps{}
	for _, name := range order {
		var v1 apiextensionsv1.CustomResourceDefinition
		if err := yaml.UnmarshalStrict(byName[name], &v1); err != nil {
			t.Fatal(err)
		}
		p := &apiextensions.JSONSchemaProps{}
		if err := apiextensionsv1.Convert_v1_JSONSchemaProps_To_apiextensions_JSONSchemaProps(v1.Spec.Versions[0].Schema.OpenAPIV3Schema, p, nil); err != nil {
			t.Fatal(err)
		}
		props[v1.Spec.Names.Kind] = p
	}
	for document := range strings.SplitSeq(text, "\n---\n") {
		var object map[string]any
		data, err := yaml.YAMLToJSON([]byte(document))
		if err == nil {
			err = utiljson.Unmarshal(data, &object)
		}
		if err != nil {
			t.Fatal(err)
		}
		if object == nil {
			continue
		}
		p := props[object["kind"].(string)]
		structural, err := schema.NewStructural(p)
		if err != nil {
			t.Fatal(err)
		}
		validator, _, err := validation.NewSchemaValidator(p)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range validation.ValidateCustomResource(nil, object, validator) {
			t.Errorf("%v\n%s", e, document)
		}
		errs, _ := cel.NewValidator(structural, true, math.MaxInt64).Validate(t.Context(), field.NewPath(""), structural, object, nil, math.MaxInt64)
		for _, e := range errs {
			t.Errorf("%v\n%s", e, document)
		}
		if unknown := pruning.PruneWithOptions(object, structural, true, schema.UnknownFieldPathOptions{TrackUnknownFieldPaths: true}); len(unknown) > 0 {
			t.Errorf("unknown fields %v\n%s", unknown, document)
		}
	}
}

// FuzzConvert: whatever is read, it is converted, whole, or refused with a reason.
func FuzzConvert(f *testing.F) {
	files, err := filepath.Glob("testdata/*.in.yaml")
	if err != nil {
		f.Fatal(err)
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(data))
		for document := range strings.SplitSeq(string(data), "\n---\n") {
			f.Add(document)
		}
	}
	f.Fuzz(func(t *testing.T, text string) {
		out, report := Convert([]manifest.Input{{Name: "f", Data: []byte(text)}}, Defaults())
		if len(report.Errors) > 0 {
			if len(out) > 0 {
				t.Fatalf("written in spite of %q:\n%s", report.Errors, out)
			}
			return
		}
		o := &source.Objects{TrustDomain: "cluster.local"}
		if _, err := o.Add(strings.NewReader(string(out))); err != nil {
			t.Fatalf("ours can't be read: %v\n%s", err, out)
		}
		for _, r := range compile.Compile(source.FactsFrom(o)).Policies {
			if len(r.Invalid) > 0 {
				t.Fatalf("%s: %q\n%s", r.Ref, r.Invalid, out)
			}
		}
	})
}
