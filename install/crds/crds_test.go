package crds

import (
	"strings"
	"testing"

	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/validation"
	"sigs.k8s.io/yaml"
)

// The API server's own validation must accept every definition: it estimates
// the cost of CEL rules and refuses schemas that could be too slow.
func TestAPIServerAcceptsDefinitions(t *testing.T) {
	byName, order, err := Files()
	if err != nil {
		t.Fatal(err)
	}
	if len(order) != 7 {
		t.Errorf("got %d definitions, want 7: %v", len(order), order)
	}
	for _, name := range order {
		t.Run(name, func(t *testing.T) {
			var v1crd apiextensionsv1.CustomResourceDefinition
			if err := yaml.UnmarshalStrict(byName[name], &v1crd); err != nil {
				t.Fatal(err)
			}
			apiextensionsv1.SetDefaults_CustomResourceDefinition(&v1crd)
			apiextensionsv1.SetDefaults_CustomResourceDefinitionSpec(&v1crd.Spec)
			var crd apiextensions.CustomResourceDefinition
			if err := apiextensionsv1.Convert_v1_CustomResourceDefinition_To_apiextensions_CustomResourceDefinition(&v1crd, &crd, nil); err != nil {
				t.Fatal(err)
			}
			crd.Status.StoredVersions = []string{"v1alpha1"}
			for _, problem := range validation.ValidateCustomResourceDefinition(t.Context(), &crd) {
				t.Error(strings.TrimSpace(problem.Error()))
			}
			if len(crd.Spec.Names.Categories) != 1 || crd.Spec.Names.Categories[0] != "hauberk" {
				t.Errorf("categories: got %v, want [hauberk]", crd.Spec.Names.Categories)
			}
		})
	}
}
