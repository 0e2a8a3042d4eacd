// Package docs holds the examples of the documentation to what the code does.
// It owns no documentation.
package docs

import (
	"math"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/cel"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/pruning"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/validation"
	utiljson "k8s.io/apimachinery/pkg/util/json"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"sigs.k8s.io/yaml"

	"github.com/hauberk-mesh/hauberk/control/compile"
	"github.com/hauberk-mesh/hauberk/control/source"
	"github.com/hauberk-mesh/hauberk/install/crds"
	"github.com/hauberk-mesh/hauberk/policy"
)

const page = "../../docs/policy.md"

// examples is the YAML blocks of a page, by the number of their first line.
func examples(t *testing.T) map[int]string {
	t.Helper()
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	blocks := map[int]string{}
	start := 0
	var block []string
	for i, line := range strings.Split(string(text), "\n") {
		switch {
		case line == "```yaml":
			start, block = i+2, nil
		case line == "```" && start > 0:
			blocks[start], start = strings.Join(block, "\n")+"\n", 0
		case start > 0:
			block = append(block, line)
		}
	}
	if len(blocks) < 20 {
		t.Fatalf("found %d examples: the test would prove little", len(blocks))
	}
	return blocks
}

func bank(t *testing.T) *source.Objects {
	t.Helper()
	text, err := os.ReadFile("testdata/bank.yaml")
	if err != nil {
		t.Fatal(err)
	}
	o := &source.Objects{TrustDomain: "cluster.local"}
	if ignored, err := o.Add(strings.NewReader(string(text))); err != nil || len(ignored) > 0 {
		t.Fatal(err, ignored)
	}
	return o
}

// Every example compiles without a finding, selects something, and does to
// flows what it says.
func TestExamplesDoWhatTheySay(t *testing.T) {
	for line, text := range examples(t) {
		t.Run("line "+strconv.Itoa(line), func(t *testing.T) {
			o := bank(t)
			if ignored, err := o.Add(strings.NewReader(text)); err != nil || len(ignored) > 0 {
				t.Fatal(err, ignored)
			}
			facts := source.FactsFrom(o)
			r := compile.Compile(facts)
			for _, p := range facts.Problems {
				t.Error(p)
			}
			for _, report := range slices.Concat(r.Policies, r.Others) {
				if len(report.Invalid)+len(report.Unresolved) > 0 {
					t.Errorf("%s: invalid %q, unresolved %q", report.Ref, report.Invalid, report.Unresolved)
				}
			}
			for _, report := range r.Policies {
				if len(report.Subjects) == 0 {
					t.Errorf("%s selects no pod", report.Ref)
				}
			}
			claims := regexp.MustCompile(`(?m)^# (allowed|denied): (.*)$`).FindAllStringSubmatch(text, -1)
			if len(claims) == 0 {
				t.Error("it says nothing of any flow")
			}
			for _, claim := range claims {
				f := parse(t, r, claim[2])
				egress, ingress := policy.Decide(setOf(r, &f.Source), setOf(r, &f.Destination), f)
				if got := egress.Allowed() && ingress.Allowed(); got != (claim[1] == "allowed") {
					t.Errorf("%s\n  %s\n  %s", claim[0], egress, ingress)
				}
			}
		})
	}
}

func setOf(r *compile.Resources, e *policy.Endpoint) *policy.Set {
	if e.Workload == nil {
		return nil
	}
	return r.SetOf(e.Workload.UID)
}

// parse reads "pod -> pod:port[/UDP] [METHOD path[?query] [name=value…]]" or
// "pod -> pod ICMP type"; a pod is name or name.namespace, else an address.
func parse(t *testing.T, r *compile.Resources, text string) *policy.Flow {
	t.Helper()
	words := strings.Fields(text)
	if len(words) < 3 || words[1] != "->" {
		t.Fatalf("%q is no flow", text)
	}
	f := &policy.Flow{Protocol: policy.TCP, Source: endpoint(t, r, words[0])}
	to, port, _ := strings.Cut(words[2], ":")
	f.Destination = endpoint(t, r, to)
	rest := words[3:]
	if number, udp := strings.CutSuffix(port, "/UDP"); port != "" {
		n, err := strconv.ParseUint(number, 10, 16)
		if err != nil {
			t.Fatal(err)
		}
		if f.Port = uint16(n); udp {
			f.Protocol = policy.UDP
		}
	} else {
		n, err := strconv.ParseUint(rest[1], 10, 8)
		if err != nil || rest[0] != "ICMP" {
			t.Fatalf("%q is no flow", text)
		}
		f.Protocol, f.ICMPType, rest = policy.ICMP, uint8(n), nil
	}
	f.MTLS = f.Protocol == policy.TCP && f.Source.Principal != "" && f.Destination.Principal != ""
	if !f.MTLS {
		f.Source.Principal, f.Destination.Principal = "", ""
	}
	if len(rest) == 0 {
		return f
	}
	path, query, _ := strings.Cut(rest[1], "?")
	headers := map[string][]string{}
	f.HTTP = &policy.HTTPRequest{Method: rest[0], Path: path, Query: query, Header: func(name string) []string { return headers[name] }}
	for _, h := range rest[2:] {
		name, value, _ := strings.Cut(h, "=")
		if name == "host" {
			f.HTTP.Host = value
			continue
		}
		headers[name] = append(headers[name], value)
	}
	return f
}

func endpoint(t *testing.T, r *compile.Resources, text string) policy.Endpoint {
	t.Helper()
	if addr, err := netip.ParseAddr(text); err == nil {
		return r.Endpoint(addr)
	}
	name, namespace, found := strings.Cut(text, ".")
	if !found {
		namespace = map[string]string{"cart": "shop"}[name]
		if namespace == "" {
			namespace = "bank"
		}
	}
	w, ok := r.Find(namespace, name)
	if !ok {
		t.Fatalf("there is no pod %s in %s", name, namespace)
	}
	proto := r.Workloads[w.UID]
	return r.Endpoint(netip.MustParseAddr(proto.GetAddresses()[0]))
}

// definition is a CRD as the API server uses it.
type definition struct {
	structural *schema.Structural
	schema     validation.SchemaValidator
	rules      *cel.Validator
}

func definitions(t *testing.T) map[string]definition {
	t.Helper()
	byName, order, err := crds.Files()
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]definition{}
	for _, name := range order {
		var v1 apiextensionsv1.CustomResourceDefinition
		if err := yaml.UnmarshalStrict(byName[name], &v1); err != nil {
			t.Fatal(err)
		}
		var props apiextensions.JSONSchemaProps
		if err := apiextensionsv1.Convert_v1_JSONSchemaProps_To_apiextensions_JSONSchemaProps(v1.Spec.Versions[0].Schema.OpenAPIV3Schema, &props, nil); err != nil {
			t.Fatal(err)
		}
		structural, err := schema.NewStructural(&props)
		if err != nil {
			t.Fatal(err)
		}
		validator, _, err := validation.NewSchemaValidator(&props)
		if err != nil {
			t.Fatal(err)
		}
		out[v1.Spec.Names.Kind] = definition{structural, validator, cel.NewValidator(structural, true, math.MaxInt64)}
	}
	return out
}

// The API server accepts every example, and every field of the policy kinds
// has one.
func TestExamplesCoverTheSchema(t *testing.T) {
	kinds := definitions(t)
	shown := map[string]bool{}
	for line, text := range examples(t) {
		for document := range strings.SplitSeq(text, "\n---\n") {
			var object map[string]any
			text, err := yaml.YAMLToJSON([]byte(document))
			if err == nil {
				err = utiljson.Unmarshal(text, &object) // whole numbers stay whole
			}
			if err != nil {
				t.Errorf("line %d: %v", line, err)
				continue
			}
			kind, _ := object["kind"].(string)
			def, ours := kinds[kind]
			if !ours {
				continue
			}
			for _, err := range validation.ValidateCustomResource(nil, object, def.schema) {
				t.Errorf("line %d: %v", line, err)
			}
			errs, _ := def.rules.Validate(t.Context(), field.NewPath(""), def.structural, object, nil, math.MaxInt64)
			for _, err := range errs {
				t.Errorf("line %d: %v", line, err)
			}
			unknown := pruning.PruneWithOptions(object, def.structural, true, schema.UnknownFieldPathOptions{TrackUnknownFieldPaths: true})
			if len(unknown) > 0 {
				t.Errorf("line %d: unknown fields %v", line, unknown)
			}
			collect(kind, object["spec"], shown)
		}
	}
	for _, kind := range []string{"MeshPolicy", "ClusterMeshPolicy", "Tier", "NetworkSet", "ClusterNetworkSet"} {
		spec := kinds[kind].structural.Properties["spec"]
		for _, path := range properties(kind, &spec) {
			if !shown[path] {
				t.Errorf("%s has no example in %s", path, page)
			}
		}
	}
}

// same writes what several kinds and directions share in one way.
func same(path string) string {
	path = strings.TrimPrefix(path, "Cluster")
	for _, pair := range [][2]string{{".ingress", ".rules"}, {".egress", ".rules"}, {".rules.from", ".rules.peers"}, {".rules.to", ".rules.peers"}} {
		path = strings.Replace(path, pair[0], pair[1], 1)
	}
	// A selector is the same everywhere.
	if i := strings.Index(path, ".matchExpressions"); i >= 0 {
		return "selector" + path[i:]
	}
	if i := strings.Index(path, ".matchLabels"); i >= 0 {
		return "selector.matchLabels"
	}
	return path
}

func collect(path string, value any, into map[string]bool) {
	into[same(path)] = true
	switch v := value.(type) {
	case map[string]any:
		for name, child := range v {
			collect(path+"."+name, child, into)
		}
	case []any:
		for _, child := range v {
			collect(path, child, into)
		}
	}
}

func properties(path string, s *schema.Structural) []string {
	var out []string
	if s.Items != nil {
		return properties(path, s.Items)
	}
	for name := range s.Properties {
		child := s.Properties[name]
		out = append(out, same(path+"."+name))
		out = append(out, properties(path+"."+name, &child)...)
	}
	return out
}
