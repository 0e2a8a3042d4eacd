// Package policy is Hauberk's policy model: tiers, rules, peers and flows, and
// the evaluator that defines what they mean. It is pure: standard library only,
// no clock, no network, no Kubernetes and no protobuf, so that the control
// plane, the node agent, the sidecar and the command line all decide alike.
//
// The package owns the meaning of a compiled Set. It does not own how a Set
// comes about (control/compile), how it travels (internal/wire) or how the
// kernel enforces it (node/firewall).
//
// # What cannot be resolved
//
// A rule, or a part of one, that has no meaning (Invalid is set, an operator
// that is not known, a port range that ends before it begins) never matches in
// an Allow, Pass or Log, and always matches in a Deny. Compilers and
// internal/wire keep such parts out (see Validate); that Evaluate is safe with
// them is the second lock.
//
// # HTTP rules and flows that are not HTTP
//
// A rule with an HTTP part is about requests. It does not match a flow that is
// known not to be HTTP, whatever its action: to close a port, deny it without an
// HTTP part.
//
// # The kubelet and the pod itself
//
// What comes to a pod from the node on which it runs is allowed before any
// policy, requests included, and so is what a pod sends to itself.
//
// Zero values deny: the zero Action, the zero Verdict and the zero Mode are the
// strict ones, so that a forgotten field closes rather than opens.
package policy

import (
	"fmt"
	"net/netip"
)

// Action is what a rule, or a tier's default, does with a flow that it matches.
// The zero value denies.
type Action uint8

// The actions of policy-semantics: Allow and Deny are final for one endpoint
// and direction, Pass leaves the tier, Log records and goes on.
const (
	Deny Action = iota
	Allow
	Pass
	Log
)

// String is the action's name as users write it.
func (a Action) String() string {
	switch a {
	case Deny:
		return "Deny"
	case Allow:
		return "Allow"
	case Pass:
		return "Pass"
	case Log:
		return "Log"
	}
	return fmt.Sprintf("Action(%d)", uint8(a))
}

// Mode says whether a policy decides. The zero value enforces.
type Mode uint8

// Enforce decides; Audit only records what it would have decided.
const (
	Enforce Mode = iota
	Audit
)

// String is the mode's name as users write it.
func (m Mode) String() string {
	if m == Audit {
		return "Audit"
	}
	return "Enforce"
}

// Direction is seen from the endpoint that a policy selects (its subject).
type Direction uint8

// Ingress is traffic to the subject, Egress traffic from it.
const (
	Ingress Direction = iota
	Egress
)

// String is the direction's name as users write it.
func (d Direction) String() string {
	if d == Egress {
		return "Egress"
	}
	return "Ingress"
}

// Protocol is an IP protocol number (IANA assigned internet protocol numbers).
// Zero means "any" in a rule and "unknown" in a flow.
type Protocol uint8

// The protocols that rules can name. ICMP in a rule means ICMP on IPv4 and
// ICMPv6 means ICMP on IPv6.
const (
	AnyProtocol Protocol = 0
	ICMP        Protocol = 1
	TCP         Protocol = 6
	UDP         Protocol = 17
	ICMPv6      Protocol = 58
	SCTP        Protocol = 132
)

// String is the protocol's name as users write it.
func (p Protocol) String() string {
	switch p {
	case AnyProtocol:
		return "any"
	case ICMP:
		return "ICMP"
	case TCP:
		return "TCP"
	case UDP:
		return "UDP"
	case ICMPv6:
		return "ICMPv6"
	case SCTP:
		return "SCTP"
	}
	return fmt.Sprintf("protocol %d", uint8(p))
}

// Ref names the object that a policy was written as.
type Ref struct {
	Kind      string // NetworkPolicy, MeshPolicy, ClusterMeshPolicy, ClusterNetworkPolicy
	Namespace string // empty for cluster-scoped kinds
	Name      string
	// UID and Generation are of the object, for acknowledgements: they say which
	// of its states was compiled. String leaves them out.
	UID        string
	Generation int64
}

// String is Kind namespace/name, or Kind name for cluster-scoped kinds.
func (r Ref) String() string {
	if r.Namespace == "" {
		return r.Kind + " " + r.Name
	}
	return r.Kind + " " + r.Namespace + "/" + r.Name
}

// Set is all policy of one subject, or of several subjects that are alike: for
// each direction the tiers in order of evaluation, holding only the policies
// that select the subject in that direction, in order. A Set is immutable.
//
// The zero Set selects nothing and so leaves the decision to DefaultAction,
// whose zero value denies; the compiler sets it to Allow unless MeshConfig says
// otherwise.
type Set struct {
	// ID is a digest of the content: equal content, equal ID.
	ID string
	// Ingress and Egress are the tiers in order of evaluation.
	Ingress, Egress []Tier
	// DefaultAction applies when no tier decided. Allow or Deny.
	DefaultAction Action
	// Index finds rules faster than one by one: see Indexed. It changes nothing of
	// what is decided, and nil is none.
	Index *Index
}

// Tiers is the tiers for a direction.
func (s *Set) Tiers(d Direction) []Tier {
	if d == Egress {
		return s.Egress
	}
	return s.Ingress
}

// Tier is one step of evaluation.
type Tier struct {
	Name          string
	Order         float64
	DefaultAction Action // Deny or Pass: when enforcing policies select the subject and none decided
	Policies      []Policy
}

// Policy is one policy's rules for one direction.
type Policy struct {
	Ref   Ref
	Order float64 // +Inf when absent
	Mode  Mode
	// Invalid is the reason why the policy could not be resolved as a whole;
	// empty for a good one. Of an invalid policy Allow and Pass rules match nothing
	// and Deny rules match everything that they could mean.
	Invalid string
	Rules   []Rule
}

// Rule is one line of a policy. Its fields are ANDed, entries of a list are
// ORed, an absent list means any.
type Rule struct {
	// Name is the user's name for it, or its place, such as "ingress[0]".
	Name   string
	Action Action
	// Invalid is the reason why this rule could not be resolved (see
	// Policy.Invalid). Of such a rule the compiler leaves out what could not be
	// resolved, so that what remains is all that the rule could mean: no
	// requirement for one that cannot be parsed, no port for a list with a bad
	// port, no peer (or an empty one) for a list with a peer that could be
	// anyone. An Allow, Pass or Log that is Invalid matches nothing anyway.
	Invalid string

	// AnyPeer says that peers do not matter. When false and Peers is empty the
	// rule matches no peer: a forgotten list closes an Allow.
	AnyPeer bool
	// Peers is the other end: the source of an ingress rule, the destination of
	// an egress rule.
	Peers []Peer
	// Ports is protocols and ports of the destination; empty means all.
	Ports []PortMatch

	// HTTP limits the rule to HTTP requests that match one entry; empty means
	// that HTTP does not matter.
	HTTP []HTTPMatch
	// RequireMTLS limits the rule to connections whose peer proved an identity.
	RequireMTLS bool
}

// L7 reports whether the rule has conditions that packets cannot decide.
func (r *Rule) L7() bool {
	if len(r.HTTP) > 0 || r.RequireMTLS {
		return true
	}
	return false
}

// Peer describes the other end of a connection. Its fields are ANDed; nil and
// empty fields do not matter. A Peer with no field set matches nothing: that
// anything may match is said by Rule.AnyPeer.
type Peer struct {
	// PeerSet is the id under which the control plane publishes the addresses
	// of the workloads that the selector fields below select; empty when the
	// peer has no selector fields. Evaluate does not need it: it evaluates the
	// selectors on the flow's facts. The kernel rendering does.
	PeerSet string

	// Namespaces limits the peer to workloads of the named namespaces.
	Namespaces []string
	// NamespaceSelector selects by the labels of the workload's namespace; nil
	// means that they do not matter.
	NamespaceSelector *Selector
	// PodSelector selects by the pod's labels; nil means that they do not matter,
	// an empty selector means every pod.
	PodSelector *Selector
	// ServiceAccounts selects workloads by their service account.
	ServiceAccounts []ServiceAccount
	// ServiceAccountSelector selects by the labels of the service account
	// object; nil means that they do not matter.
	ServiceAccountSelector *Selector
	// Principals are patterns of SPIFFE IDs that the peer proved by mTLS:
	// exact, or with one trailing '*'. Packets cannot decide them.
	Principals []string
	// Networks selects by address.
	Networks []Network
	// Entities selects what has no labels.
	Entities []Entity
}

// SelectsWorkloads reports whether the peer has fields that only a known
// workload can match.
func (p *Peer) SelectsWorkloads() bool {
	return len(p.Namespaces) > 0 || p.NamespaceSelector != nil || p.PodSelector != nil ||
		len(p.ServiceAccounts) > 0 || p.ServiceAccountSelector != nil
}

// EveryWorkload is the peer of every pod of the cluster.
func EveryWorkload() Peer { return Peer{NamespaceSelector: &Selector{}} }

// EveryWorkloadDigest is the id of the peer set of EveryWorkload.
func EveryWorkloadDigest() string {
	p := EveryWorkload()
	return p.SelectorDigest()
}

// NeedsEveryWorkload reports whether a rendering by address needs the addresses
// of all pods for the peer: the entities cluster and world tell pods from what
// is none.
func (p *Peer) NeedsEveryWorkload() bool {
	for _, e := range p.Entities {
		if e != EntityHost {
			return true
		}
	}
	return false
}

// ServiceAccount names a service account.
type ServiceAccount struct{ Namespace, Name string }

// Network is an address range less its exceptions.
type Network struct {
	Prefix netip.Prefix
	Except []netip.Prefix
}

// Contains reports whether addr is in the network and in no exception.
// IPv4-mapped IPv6 addresses count as IPv4.
func (n Network) Contains(addr netip.Addr) bool {
	addr = addr.Unmap().WithZone("")
	if !addr.IsValid() || !n.Prefix.Contains(addr) {
		return false
	}
	for _, e := range n.Except {
		if e.Contains(addr) {
			return false
		}
	}
	return true
}

// Entity is a named kind of peer without labels.
type Entity string

// EntityCluster is every pod and node of the cluster, EntityHost the
// nodes, EntityWorld everything that is not of the cluster.
const (
	EntityCluster Entity = "cluster"
	EntityHost    Entity = "host"
	EntityWorld   Entity = "world"
)

// PortMatch is a protocol with ports. The zero value matches nothing: "any
// protocol" is said by an empty list of matches.
type PortMatch struct {
	Protocol Protocol
	// Port and EndPort are an inclusive range; EndPort zero means Port alone;
	// both zero means every port of the protocol.
	Port, EndPort uint16
	// Name is a named port, resolved for each destination pod; it excludes Port.
	Name string
	// ICMPType and ICMPCode limit ICMP and ICMPv6; nil means any.
	ICMPType, ICMPCode *uint8
}

// HTTPMatch is one kind of request. Its fields are ANDed, entries of a list
// are ORed, empty lists do not matter. Headers and Query are the exceptions: like
// fields, they must all match (several HTTPMatches of one rule say "or").
type HTTPMatch struct {
	Methods []string // exact, case-sensitive (RFC 9110 section 9.1)
	Paths   []PathMatch
	Hosts   []string      // lower case, without port; a leading "*." matches one or more labels
	Headers []HeaderMatch // all of them must match
	Query   []QueryMatch  // all of them must match
	GRPC    []GRPCMatch
}

// HeaderMatch compares the values of one header, each on its own.
type HeaderMatch struct {
	Name   string   // lower case
	Values []string // exact; empty means that the header is present
}
