package istio

import (
	"maps"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/hauberk-mesh/hauberk/api/v1alpha1"
	"github.com/hauberk-mesh/hauberk/cli/convert/manifest"
	"github.com/hauberk-mesh/hauberk/internal/names"
)

const (
	strict     = "STRICT"
	permissive = "PERMISSIVE"
)

// peer is a PeerAuthentication, read; a mode is empty where it is inherited.
type peer struct {
	from  *manifest.Object
	at    manifest.At
	pods  *metav1.LabelSelector
	mode  string
	ports map[string]mtls
}

// peerAuthentications converts them. Ours have a mode each: what is inherited is
// written out.
func (c *converter) peerAuthentications(objects []*manifest.Object) []manifest.Converted {
	var list []*peer
	for _, o := range objects {
		if p := c.peer(o); p != nil {
			list = append(list, p)
		}
	}
	for i, a := range list {
		for _, b := range list[:i] {
			if a.from.Meta.Namespace == b.from.Meta.Namespace && a.pods == nil && b.pods == nil && a.mode != b.mode {
				a.at.In("spec.mtls.mode").Error("%s says otherwise of the same namespace: Istio takes the older one, which the file does not tell; remove one", b.from)
			}
		}
	}
	for i, a := range list {
		for _, b := range list[:i] {
			if a.pods == nil || b.pods == nil || a.from.Meta.Namespace != b.from.Meta.Namespace || a.mode == b.mode && maps.Equal(a.ports, b.ports) ||
				contradict(a.pods.MatchLabels, b.pods.MatchLabels) {
				continue
			}
			a.at.In("spec.selector").Error("%s may say otherwise of the same pods: Istio takes the older one, which the file does not tell; make the selectors exclude each other", b.from)
		}
	}
	modeOf := func(namespace string) string {
		i := slices.IndexFunc(list, func(p *peer) bool { return p.pods == nil && p.from.Meta.Namespace == namespace && p.mode != "" })
		if i < 0 {
			return ""
		}
		return list[i].mode
	}
	var out []manifest.Converted
	for _, p := range list {
		mode := p.mode
		if mode == "" && p.pods == nil {
			p.at.Note("left out: it says nothing that does not hold without it")
			continue
		}
		if mode == "" {
			for _, inherited := range []string{modeOf(p.from.Meta.Namespace), modeOf(c.root), permissive} {
				if mode == "" {
					mode = inherited
				}
			}
			p.at.In("spec.mtls.mode").Note("inherited in Istio, written out as %s, which holds now: change it when you change the namespace's or the mesh's", mode)
		}
		spec := v1alpha1.PeerAuthenticationSpec{PodSelector: p.pods, MTLS: v1alpha1.MTLS{Mode: mode}}
		for port, m := range p.ports {
			if spec.PortLevelMTLS == nil {
				spec.PortLevelMTLS = map[string]v1alpha1.MTLS{}
			}
			portMode := mode
			if m.Mode != "" && m.Mode != "UNSET" {
				portMode = m.Mode
			}
			spec.PortLevelMTLS[port] = v1alpha1.MTLS{Mode: portMode}
		}
		meta := manifest.Meta(p.from, p.from.Meta.Name)
		if p.pods == nil && meta.Namespace == c.root {
			meta.Namespace = names.Namespace
		}
		out = append(out, manifest.Converted{From: []*manifest.Object{p.from},
			Object: &v1alpha1.PeerAuthentication{TypeMeta: manifest.Type("PeerAuthentication"), ObjectMeta: meta, Spec: spec}})
	}
	return out
}

func (c *converter) peer(o *manifest.Object) *peer {
	var object peerAuthenticationObject
	p := &peer{from: o, at: manifest.At{Object: o, Report: c.report}}
	if !o.Decode(&object, c.report) {
		return nil
	}
	spec := &object.Spec
	if spec.Selector != nil && len(spec.Selector.MatchLabels) > 0 {
		p.pods = &metav1.LabelSelector{MatchLabels: spec.Selector.MatchLabels}
	}
	if spec.MTLS != nil {
		p.mode = mode(p.at.In("spec.mtls.mode"), spec.MTLS.Mode)
	}
	p.ports = spec.PortLevelMTLS
	if p.pods == nil && len(p.ports) > 0 {
		p.at.In("spec.portLevelMtls").Error("it needs a selector: ports belong to pods")
	}
	for port, m := range p.ports {
		at := p.at.In("spec.portLevelMtls")
		if _, err := manifest.ParsePorts(port, ""); err != nil || strings.TrimLeft(port, "0") != port {
			at.Error("%q is no port number", port)
		}
		mode(at.In("[%s].mode", port), m.Mode)
	}
	return p
}

// mode is empty for what is inherited.
func mode(at manifest.At, text string) string {
	switch text {
	case "", "UNSET":
		return ""
	case strict, permissive:
		return text
	case "DISABLE":
		at.Error("DISABLE: sidecars always take mTLS from each other; use PERMISSIVE, which takes plain connections too")
		return ""
	}
	at.Error("%q is none of STRICT, PERMISSIVE, DISABLE, UNSET", text)
	return ""
}
