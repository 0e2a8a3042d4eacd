package compile

import (
	"net/netip"
	"slices"
	"strings"

	hauberkv1 "github.com/hauberk-mesh/hauberk/api/gen/hauberk/v1"
	"github.com/hauberk-mesh/hauberk/policy"
)

// Resources is everything that clients of the mesh can be told. It is
// immutable and safe for concurrent use.
type Resources struct {
	Mesh *hauberkv1.Mesh
	// PolicySets by id; every pod that can be a subject has one.
	PolicySets map[string]*PolicySet
	// PeerSets by id.
	PeerSets map[string]*hauberkv1.PeerSet
	// Workloads by pod UID, with the fields that only the pod itself and its node
	// agent may see.
	Workloads map[string]*hauberkv1.Workload
	// TunnelPeers by node.
	TunnelPeers map[string]*hauberkv1.TunnelPeer
	// Policies reports on each policy object, sorted.
	Policies []PolicyReport
	// PeerAuthentications reports on each PeerAuthentication, sorted.
	PeerAuthentications []PolicyReport
	// Others reports on each Tier and network set, sorted: whether it is
	// understood.
	Others []PolicyReport

	pods      map[string]*podEntry
	byAddress map[netip.Addr]*podEntry
	services  map[netip.Addr][]*serviceEntry // by cluster address
	external  map[netip.Addr][]*serviceEntry // by addresses that users chose
	hosts     map[netip.Addr]string
}

// PolicySet is a set with its wire form.
type PolicySet struct {
	Set   *policy.Set
	Proto *hauberkv1.PolicySet
	// PeerSets are the ids that its rules name, sorted.
	PeerSets []string
}

// PolicyReport is what compilation found out about one object.
type PolicyReport struct {
	Ref policy.Ref
	// Invalid reasons, each one sentence; empty for a good object.
	Invalid []string
	// Unresolved references, each one sentence.
	Unresolved []string
	// Subjects is the UIDs of the pods that it selects, sorted.
	Subjects []string
	// L7 says that it has rules that only a sidecar can decide.
	L7 bool
}

// WorkloadAt is the pod that has the address now.
func (r *Resources) WorkloadAt(addr netip.Addr) (*hauberkv1.Workload, bool) {
	entry := r.byAddress[addr.Unmap()]
	if entry == nil {
		return nil, false
	}
	w, ok := r.Workloads[entry.fact.UID]
	return w, ok
}

// Workload is the pod as policies see it.
func (r *Resources) Workload(uid string) (*policy.Workload, bool) {
	entry := r.pods[uid]
	if entry == nil {
		return nil, false
	}
	return entry.workload, true
}

// Find is the pod of that namespace and name that runs now.
func (r *Resources) Find(namespace, name string) (*policy.Workload, bool) {
	var best *podEntry
	for _, entry := range r.pods {
		if entry.fact.Namespace == namespace && entry.fact.Name == name && (best == nil || newer(entry.fact, best.fact)) {
			best = entry
		}
	}
	if best == nil {
		return nil, false
	}
	return best.workload, true
}

// SetOf is the policy of a pod; nil when it is no subject: unknown or in its
// node's network.
func (r *Resources) SetOf(uid string) *policy.Set {
	entry := r.pods[uid]
	if entry == nil || entry.set == nil {
		return nil
	}
	return entry.set.Set
}

// Endpoint is what is known about an address, as policies see it. A meshed
// pod's principal is set, as if it had proved it.
func (r *Resources) Endpoint(addr netip.Addr) policy.Endpoint {
	addr = addr.Unmap()
	e := policy.Endpoint{Addr: addr}
	if entry := r.byAddress[addr]; entry != nil {
		e.Workload, e.Principal = entry.workload, entry.spiffeID
		return e
	}
	if node, ok := r.hosts[addr]; ok {
		e.Host, e.HostOf = true, node
	}
	return e
}

// Pods is the UIDs of all pods that have not completed, sorted.
func (r *Resources) Pods() []string {
	uids := make([]string, 0, len(r.pods))
	for uid := range r.pods {
		uids = append(uids, uid)
	}
	slices.Sort(uids)
	return uids
}

// Destination is what stands behind "<address>:<port>", found without having
// been compiled beforehand: pods have too many ports for that.
func (r *Resources) Destination(name string) (*hauberkv1.Destination, bool) {
	ap, err := netip.ParseAddrPort(name)
	if err != nil || strings.Contains(name, "%") {
		return nil, false
	}
	addr, port := ap.Addr().Unmap(), ap.Port()
	if entries := r.services[addr]; len(entries) > 0 {
		return serviceDestination(r, entries, addr, port)
	}
	if entry := r.byAddress[addr]; entry != nil {
		return entry.destination(addr, port), true
	}
	return serviceDestination(r, r.external[addr], addr, port)
}

func serviceDestination(r *Resources, entries []*serviceEntry, addr netip.Addr, port uint16) (*hauberkv1.Destination, bool) {
	for _, s := range entries {
		if d := s.destination(r, addr, port); d != nil {
			return d, true
		}
	}
	return nil, false
}
