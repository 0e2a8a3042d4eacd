// Package convert is `hauberk convert`: it reads the policies of Calico and
// Istio and prints ours. What it prints means exactly what was read; what can't
// be said is an error that names file, object and field.
//
// It owns the command and which objects are whose. It does not own what they
// mean (packages calico and istio).
package convert

import (
	"slices"
	"strings"

	"github.com/hauberk-mesh/hauberk/cli/convert/calico"
	"github.com/hauberk-mesh/hauberk/cli/convert/istio"
	"github.com/hauberk-mesh/hauberk/cli/convert/manifest"
	"github.com/hauberk-mesh/hauberk/internal/names"
)

// Options say what manifests do not.
type Options struct {
	// Namespace of objects that name none.
	Namespace string
	Istio     istio.Options
}

// Defaults are the options without flags.
func Defaults() Options {
	return Options{Namespace: "default", Istio: istio.Options{RootNamespace: "istio-system", TrustDomain: names.TrustDomain}}
}

// clusterScoped are the kinds that have no namespace.
var clusterScoped = []string{"GlobalNetworkPolicy", "StagedGlobalNetworkPolicy", "GlobalNetworkSet", "Tier", "HostEndpoint"}

// strangers are groups with policies that nothing here reads.
var strangers = []string{"cilium.io", "policy.linkerd.io", "policy.antrea.io", "crd.antrea.io", "policies.kuma.io", "kuma.io", "consul.hashicorp.com"}

// Convert converts files. Without an error in the report, its answer is the
// manifests.
func Convert(inputs []manifest.Input, opts Options) ([]byte, *manifest.Report) {
	report := &manifest.Report{}
	var ofCalico, ofIstio []*manifest.Object
	namespaces := map[string]map[string]string{}
	for _, o := range manifest.Read(inputs, report) {
		group := o.Group()
		at := manifest.At{Object: o, Report: report}
		switch {
		case slices.Contains(calico.Groups, group):
			place(o, opts.Namespace)
			ofCalico = append(ofCalico, o)
		case group == istio.Group:
			place(o, opts.Namespace)
			ofIstio = append(ofIstio, o)
		case slices.Contains(strangers, group):
			at.Error("%s can't be converted", o.APIVersion)
		case group == "" && o.Kind == "Namespace":
			labels := map[string]string{}
			for k, v := range o.Meta.Labels {
				labels[k] = v
			}
			namespaces[o.Meta.Name] = labels
		case group == "networking.k8s.io" && o.Kind == "NetworkPolicy", group == "policy.networking.k8s.io":
			at.Note("left out: it holds as it is")
		case group == "hauberk.dev":
			at.Note("left out: it is Hauberk's already")
		default:
			at.Note("left out: it is no policy of Calico or Istio")
		}
	}
	converted := calico.Convert(ofCalico, namespaces, report)
	converted = append(converted, istio.Convert(ofIstio, opts.Istio, report)...)
	for _, o := range duplicates(slices.Concat(ofCalico, ofIstio)) {
		manifest.At{Object: o, Report: report}.Error("it is there more than once")
	}
	if len(report.Errors) > 0 {
		return nil, report
	}
	manifest.Sort(converted, report)
	if len(report.Errors) > 0 {
		return nil, report
	}
	out, err := manifest.Write(converted)
	if err != nil {
		report.Errors = append(report.Errors, err.Error())
	}
	return out, report
}

// place gives an object its namespace.
func place(o *manifest.Object, namespace string) {
	switch {
	case slices.Contains(clusterScoped, o.Kind):
		o.Meta.Namespace = ""
	case o.Meta.Namespace == "":
		o.Meta.Namespace = namespace
	}
}

// duplicates are objects whose group, kind and name others before them have.
func duplicates(objects []*manifest.Object) []*manifest.Object {
	seen := map[string]bool{}
	var out []*manifest.Object
	for _, o := range objects {
		key := strings.TrimPrefix(o.Group(), "crd.") + "\x00" + o.String()
		if seen[key] {
			out = append(out, o)
		}
		seen[key] = true
	}
	return out
}
