package directory

import (
	"fmt"
	"net/netip"

	hauberkv1 "github.com/hauberk-mesh/hauberk/api/gen/hauberk/v1"
	"github.com/hauberk-mesh/hauberk/internal/wire"
	"github.com/hauberk-mesh/hauberk/policy"
)

// Self is the sidecar's own pod and its policy. It is immutable.
type Self struct {
	Workload *Workload
	// Set is never nil; what could not be read is a set that denies everything.
	Set        *policy.Set
	SetVersion string
}

// Workload is a pod. It is immutable.
type Workload struct {
	*policy.Workload
	Proto     *hauberkv1.Workload
	Addresses []netip.Addr
	Version   string
}

// Strict reports whether the pod refuses plaintext on port.
func (w *Workload) Strict(port uint16) bool {
	if m, ok := w.Proto.GetPortMtlsModes()[uint32(port)]; ok {
		return m != hauberkv1.MTLSMode_MTLS_MODE_PERMISSIVE
	}
	return w.Proto.GetMtlsMode() != hauberkv1.MTLSMode_MTLS_MODE_PERMISSIVE
}

// Owns reports whether addr is the pod's.
func (w *Workload) Owns(addr netip.Addr) bool {
	for _, a := range w.Addresses {
		if a == addr {
			return true
		}
	}
	return false
}

// Display is the name of what the pod belongs to, for telemetry.
func (w *Workload) Display() string {
	if w == nil {
		return ""
	}
	if n := w.Proto.GetWorkloadName(); n != "" {
		return n
	}
	return w.Name
}

func workloadFrom(r *hauberkv1.Resource) (*Workload, error) {
	p, err := wire.WorkloadFromProto(r.GetWorkload())
	if err != nil {
		return nil, err
	}
	w := &Workload{Workload: p, Proto: r.GetWorkload(), Version: r.GetVersion()}
	for _, s := range r.GetWorkload().GetAddresses() {
		a, err := netip.ParseAddr(s)
		if err != nil {
			return nil, fmt.Errorf("workload %s: %w", r.GetName(), err)
		}
		w.Addresses = append(w.Addresses, a.Unmap())
	}
	return w, nil
}

// Destination is what stands behind an address and port. It is immutable.
type Destination struct {
	Address         netip.AddrPort
	Kind            string
	Namespace, Name string
	Port            uint16
	Protocol        hauberkv1.AppProtocol
	Endpoints       []Endpoint
	// Zones is how many zones the endpoints are in, 0 unless each is in a known one.
	Zones   int
	Version string
}

// Service is namespace/name of a Service, empty for a pod.
func (d *Destination) Service() string {
	if d == nil || d.Kind != "Service" {
		return ""
	}
	return d.Namespace + "/" + d.Name
}

// Endpoint is one pod, or other address, of a destination.
type Endpoint struct {
	Addr               netip.AddrPort
	PodUID, SPIFFEID   string // SPIFFEID is empty without a sidecar
	Ready, Terminating bool
	Workload           string
	Namespace, PodName string
	Zone               string // empty when it is not known
}

// Meshed reports whether the endpoint speaks mTLS.
func (e *Endpoint) Meshed() bool { return e.SPIFFEID != "" }

func destinationFrom(r *hauberkv1.Resource) (*Destination, error) {
	m := r.GetDestination()
	addr, err := netip.ParseAddrPort(r.GetName())
	if err != nil {
		return nil, fmt.Errorf("destination %q: %w", r.GetName(), err)
	}
	zones := make(map[string]bool)
	d := &Destination{Address: addr, Kind: m.GetKind(), Namespace: m.GetNamespace(), Name: m.GetName(),
		Port: uint16(m.GetPort()), Protocol: m.GetProtocol(), Version: r.GetVersion()}
	for _, e := range m.GetEndpoints() {
		a, err := netip.ParseAddr(e.GetAddress())
		if err != nil || e.GetPort() == 0 || e.GetPort() > 65535 {
			return nil, fmt.Errorf("destination %s: endpoint %q port %d is no address and port", r.GetName(), e.GetAddress(), e.GetPort())
		}
		if e.GetSpiffeId() != "" && e.GetPodUid() == "" {
			return nil, fmt.Errorf("destination %s: endpoint %s has an identity but no pod", r.GetName(), e.GetAddress())
		}
		d.Endpoints = append(d.Endpoints, Endpoint{
			Addr: netip.AddrPortFrom(a.Unmap(), uint16(e.GetPort())), PodUID: e.GetPodUid(), SPIFFEID: e.GetSpiffeId(),
			Ready: e.GetReady(), Terminating: e.GetTerminating(),
			Workload: e.GetWorkloadName(), Namespace: e.GetNamespace(), PodName: e.GetPodName(),
			Zone: e.GetZone(),
		})
		zones[e.GetZone()] = true
	}
	if !zones[""] {
		d.Zones = len(zones)
	}
	return d, nil
}

// Mesh is what holds for all. It is immutable; the zero Mesh knows nothing.
type Mesh struct {
	Proto   *hauberkv1.Mesh
	Version string
	nodes   map[netip.Addr]string
}

// Node is the node that has addr, or "".
func (m *Mesh) Node(addr netip.Addr) string { return m.nodes[addr] }

func meshFrom(r *hauberkv1.Resource) *Mesh {
	m := &Mesh{Proto: r.GetMesh(), Version: r.GetVersion(), nodes: make(map[netip.Addr]string)}
	for _, n := range r.GetMesh().GetNodes() {
		for _, s := range n.GetAddresses() {
			if a, err := netip.ParseAddr(s); err == nil {
				m.nodes[a.Unmap()] = n.GetNode()
			}
		}
	}
	return m
}
