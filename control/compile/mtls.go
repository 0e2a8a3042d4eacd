package compile

import (
	"slices"

	hauberkv1 "github.com/hauberk-mesh/hauberk/api/gen/hauberk/v1"
	"github.com/hauberk-mesh/hauberk/internal/names"
	"github.com/hauberk-mesh/hauberk/policy"
)

// peerAuthentications answers which mode a pod has. The most specific object
// wins: for a port, for selected pods, for the namespace, for the mesh. Among
// equally specific ones STRICT wins.
type peerAuthentications struct {
	byNamespace map[string][]*PeerAuthentication
	subjects    map[*PeerAuthentication][]string
	all         []*PeerAuthentication
}

func newPeerAuthentications(facts []PeerAuthentication) *peerAuthentications {
	p := &peerAuthentications{
		byNamespace: make(map[string][]*PeerAuthentication),
		subjects:    make(map[*PeerAuthentication][]string),
	}
	for i := range facts {
		f := &facts[i]
		p.byNamespace[f.Ref.Namespace] = append(p.byNamespace[f.Ref.Namespace], f)
		p.all = append(p.all, f)
	}
	slices.SortFunc(p.all, func(a, b *PeerAuthentication) int {
		return compareStrings(a.Ref.Namespace, b.Ref.Namespace, a.Ref.Name, b.Ref.Name)
	})
	return p
}

// strict is whether the object, in doubt too, wants mTLS only.
func (a *PeerAuthentication) strict() bool { return a.Strict || a.Invalid != "" }

// meshWide reports whether the object is the mesh's default.
func (a *PeerAuthentication) meshWide() bool {
	return a.Ref.Namespace == names.Namespace && a.PodSelector == nil
}

func (p *peerAuthentications) of(w *policy.Workload) (hauberkv1.MTLSMode, map[uint32]hauberkv1.MTLSMode) {
	mode, found := p.strictest(func(a *PeerAuthentication) bool {
		return a.PodSelector != nil && a.PodSelector.Matches(w.Labels)
	}, w.Namespace)
	if !found {
		mode, found = p.strictest(func(a *PeerAuthentication) bool { return a.PodSelector == nil }, w.Namespace)
	}
	if !found {
		mode, _ = p.strictest((*PeerAuthentication).meshWide, names.Namespace)
	}
	var ports map[uint32]hauberkv1.MTLSMode
	for _, a := range p.byNamespace[w.Namespace] {
		if a.PodSelector == nil || !a.PodSelector.Matches(w.Labels) {
			continue
		}
		for port, strict := range a.PortStrict {
			if ports == nil {
				ports = make(map[uint32]hauberkv1.MTLSMode)
			}
			if strict || a.Invalid != "" {
				ports[uint32(port)] = hauberkv1.MTLSMode_MTLS_MODE_STRICT
			} else if _, ok := ports[uint32(port)]; !ok {
				ports[uint32(port)] = hauberkv1.MTLSMode_MTLS_MODE_PERMISSIVE
			}
		}
	}
	return mode, ports
}

// strictest is the strictest mode of the objects of a namespace that match.
func (p *peerAuthentications) strictest(match func(*PeerAuthentication) bool, namespace string) (hauberkv1.MTLSMode, bool) {
	mode, found := hauberkv1.MTLSMode_MTLS_MODE_PERMISSIVE, false
	for _, a := range p.byNamespace[namespace] {
		if !match(a) {
			continue
		}
		found = true
		if a.strict() {
			mode = hauberkv1.MTLSMode_MTLS_MODE_STRICT
		}
	}
	return mode, found
}

// count notes the pod with the objects that select it.
func (p *peerAuthentications) count(w *policy.Workload) {
	for _, a := range p.all {
		if a.meshWide() || (a.Ref.Namespace == w.Namespace && (a.PodSelector == nil || a.PodSelector.Matches(w.Labels))) {
			p.subjects[a] = append(p.subjects[a], w.UID)
		}
	}
}

func (p *peerAuthentications) reports() []PolicyReport {
	var reports []PolicyReport
	for _, a := range p.all {
		r := PolicyReport{
			Ref:      a.Ref,
			Subjects: p.subjects[a],
		}
		if a.Invalid != "" {
			r.Invalid = []string{a.Invalid}
		}
		slices.Sort(r.Subjects)
		reports = append(reports, r)
	}
	return reports
}
