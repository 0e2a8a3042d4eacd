// Package compile turns facts about a cluster into what the mesh's clients are
// told: policy sets, peer sets, workloads, destinations and tunnel peers. It is
// a pure function: no clock, no network and no Kubernetes types, so that the
// control plane and the offline command line give the same answers.
//
// It owns which policies govern which pod, in what order, and what stands
// behind an address. It does not own what a policy means for a flow (package
// policy), where facts come from (control/source) or who may see what
// (control/distribute).
package compile

import (
	"net/netip"

	"github.com/hauberk-mesh/hauberk/policy"
)

// Facts is what is known about a cluster. Its slices may be in any order and
// are never changed by the package.
type Facts struct {
	Mesh                Mesh
	Namespaces          []Namespace
	ServiceAccounts     []ServiceAccount
	Nodes               []Node
	Pods                []Pod
	Services            []Service
	EndpointSlices      []EndpointSlice
	Tiers               []Tier
	NetworkSets         []NetworkSet
	Policies            []Policy
	PeerAuthentications []PeerAuthentication
	Tunnels             []Tunnel
	// Problems is what could not be read and belongs to no object with a status,
	// one sentence each, for the log.
	Problems []string
}

// Mesh is the mesh-wide settings.
type Mesh struct {
	// TrustDomain without scheme; empty means names.TrustDomain.
	TrustDomain string
	// Roots of the trust domain, DER.
	Roots [][]byte
	// DefaultAction when no tier decided.
	DefaultAction policy.Action
	// BootstrapNamespaces besides names.Namespace.
	BootstrapNamespaces []string
	// EncryptionDisabled makes no tunnels.
	EncryptionDisabled bool
	OTLPEndpoint       string
	// SamplingRatio is 0 to 1.
	SamplingRatio      float64
	AccessLog          bool
	DenyResponseHeader bool
}

// Namespace is a namespace with its labels.
type Namespace struct {
	Name   string
	Labels map[string]string
}

// ServiceAccount is a service account with its labels.
type ServiceAccount struct {
	Namespace, Name string
	Labels          map[string]string
}

// Node is a node of the cluster.
type Node struct {
	Name   string
	Zone   string
	Labels map[string]string
	// Internal addresses come first; they carry tunnels.
	Internal []netip.Addr
	External []netip.Addr
	PodCIDRs []netip.Prefix
}

// Pod is a pod as far as the mesh cares.
type Pod struct {
	UID, Namespace, Name string
	ServiceAccount       string
	Node                 string
	Labels               map[string]string
	Addresses            []netip.Addr
	Ports                []policy.NamedPort // container ports; Name may be empty
	OwnerKind, OwnerName string             // the workload, empty for a bare pod
	HostNetwork          bool
	// Meshed says that the pod has our sidecar.
	Meshed bool
	// Terminating pods are being deleted and still run.
	Terminating bool
	// Completed pods succeeded, failed or are gone: their addresses are not
	// theirs any more.
	Completed bool
	// Created is when the API server made it, in seconds of Unix time. Of two
	// running pods with one address the newer one has it.
	Created int64
	Capture Capture
}

// Capture is what a pod's annotations say of redirection.
type Capture struct {
	ExcludeInboundPorts  []uint16
	ExcludeOutboundPorts []uint16
	ExcludeOutboundCIDRs []netip.Prefix
	// IncludeInboundPorts limits redirection to these ports when not empty.
	IncludeInboundPorts []uint16
}

// Redirected reports whether the pod's sidecar sees connections to port.
func (c *Capture) Redirected(port uint16) bool {
	for _, p := range c.ExcludeInboundPorts {
		if p == port {
			return false
		}
	}
	if len(c.IncludeInboundPorts) == 0 {
		return true
	}
	for _, p := range c.IncludeInboundPorts {
		if p == port {
			return true
		}
	}
	return false
}

// Service is a Service with its addresses.
type Service struct {
	Namespace, Name string
	// Addresses are its cluster addresses; none for a headless Service.
	Addresses []netip.Addr
	// External are its external and load balancer addresses. Whoever may write
	// the Service chose them, so they stand behind cluster and pod addresses.
	External []netip.Addr
	Ports    []ServicePort
	// Selector is nil for a Service without one.
	Selector map[string]string
}

// ServicePort is a port of a Service.
type ServicePort struct {
	Name        string
	Protocol    policy.Protocol
	Port        uint16
	AppProtocol string
	// TargetPort of the pods: a number, else a name.
	TargetPort uint16
	TargetName string
}

// EndpointSlice is a slice of the endpoints of one Service.
type EndpointSlice struct {
	Namespace, Name string
	Service         string
	Ports           []SlicePort
	Endpoints       []SliceEndpoint
}

// SlicePort belongs to the Service port of the same name.
type SlicePort struct {
	Name     string
	Protocol policy.Protocol
	Port     uint16
}

// SliceEndpoint is one endpoint of a slice.
type SliceEndpoint struct {
	Addresses   []netip.Addr
	PodUID      string // empty when it stands for no pod
	Node, Zone  string
	Ready       bool // counting a terminating endpoint that still serves
	Terminating bool
}

// Tier is a user's Tier; the built-in ones need none.
type Tier struct {
	Name  string
	Order float64
	// Ref is the object; its Name is empty for a built-in tier.
	Ref           policy.Ref
	DefaultAction policy.Action // Deny or Pass
	// Invalid is why the object could not be read; its policies are invalid too.
	Invalid string
}

// Policy is one policy object. Its rules name their peers by selectors; the
// compiler adds the peer sets.
type Policy struct {
	Ref policy.Ref
	// Tier is a name; empty means "default".
	Tier  string
	Order float64 // +Inf for absent
	Mode  policy.Mode
	// Invalid is why it can't be resolved as a whole; empty for a good one.
	Invalid string
	Subject Subject
	// GovernsIngress and GovernsEgress are the directions for which it selects.
	GovernsIngress, GovernsEgress bool
	Ingress, Egress               []Rule
}

// Rule is a rule whose peers may name other objects besides what they are by
// themselves.
type Rule struct {
	policy.Rule
	// Refs[i] belongs to Peers[i]; what is beyond its end names nothing.
	Refs []PeerRefs
}

// PeerRefs is what a peer names. Its fields are ANDed with each other and with
// the peer's own, entries of a list are ORed. Services stand alone.
type PeerRefs struct {
	// Nodes selects nodes by their labels; nil means that they do not matter.
	Nodes       *policy.Selector
	NetworkSets []NetworkSetRef
	Services    []ServiceRef
}

// NetworkSetRef is a network set by name, or all that the selector selects.
type NetworkSetRef struct {
	Kind      string // NetworkSet or ClusterNetworkSet
	Namespace string // empty for a ClusterNetworkSet
	Name      string
	Selector  *policy.Selector
}

// ServiceRef names a Service.
type ServiceRef struct{ Namespace, Name string }

// NetworkSet is a NetworkSet or a ClusterNetworkSet.
type NetworkSet struct {
	Ref      policy.Ref
	Labels   map[string]string
	Networks []policy.Network
	// Invalid is why it can't be read; what names it can't be resolved.
	Invalid string
}

// Subject is the pods that a policy selects. Its fields are ANDed.
type Subject struct {
	// Namespace is the policy's own; empty for a cluster-scoped kind.
	Namespace         string
	NamespaceSelector *policy.Selector
	PodSelector       *policy.Selector
}

// PeerAuthentication says whether selected pods take plain connections.
type PeerAuthentication struct {
	Ref policy.Ref
	// Invalid objects are as strict as they could be.
	Invalid     string
	PodSelector *policy.Selector // nil selects the whole namespace
	Strict      bool
	PortStrict  map[uint16]bool
}

// Tunnel is a node's published WireGuard key.
type Tunnel struct {
	Node      string
	PublicKey []byte // 32 bytes
	Port      uint16
	Backend   string
}
