package policy

import "net/netip"

// Flow is one connection, datagram exchange or request, with the facts that
// are known about it. It is as the destination sees it after any Service
// translation.
type Flow struct {
	Source, Destination Endpoint
	Protocol            Protocol
	// Port is the destination port for TCP, UDP and SCTP.
	Port uint16
	// ICMPType and ICMPCode are for ICMP and ICMPv6.
	ICMPType, ICMPCode uint8
	// MTLS says that both ends proved an identity on this connection.
	MTLS bool
	// HTTP is the request, nil for a flow that is not HTTP.
	HTTP *HTTPRequest
}

// Endpoint is one end of a flow.
type Endpoint struct {
	Addr netip.Addr
	// Workload is the pod, nil when the endpoint is none.
	Workload *Workload
	// Principal is the SPIFFE ID that the endpoint proved on this connection;
	// empty when it proved none.
	Principal string
	// Host says that the address is a node's (host-network pods included).
	Host bool
	// HostOf is the node's name when Host is set.
	HostOf string
}

// Workload is a pod as policies see it. It is immutable.
type Workload struct {
	UID, Namespace, Name string
	ServiceAccount       string
	Node                 string
	Labels               map[string]string
	NamespaceLabels      map[string]string
	ServiceAccountLabels map[string]string
	NamedPorts           []NamedPort
}

// NamedPort is a container port with a name.
type NamedPort struct {
	Name     string
	Protocol Protocol
	Port     uint16
}

// HTTPRequest is what policies see of a request, normalised.
type HTTPRequest struct {
	Method string
	Path   string // normalised, without query
	Host   string // lower case, without port
	Query  string // as it was sent, without '?'
	// Header finds all values of a header by its lower-case name. Nil means that
	// the request has none.
	Header func(name string) []string
}

// Verdict is a decision with its reason. The zero Verdict denies.
type Verdict struct {
	// Action is Allow or Deny.
	Action Action
	// Direction is of the decision.
	Direction Direction
	// Tier, Policy and Rule name what decided. Policy is zero when a tier's
	// default action or the mesh's default decided; Rule is then empty.
	Tier   string
	Policy Ref
	Rule   string
	// Reason is one sentence in the user's words, such as "tier default: no rule
	// of the selecting policies matched".
	Reason string
	// Audit is what would have been decided if the policies in Audit mode were
	// enforced; nil when that is the same decision by the same rule.
	Audit *Verdict
	// Logs names the Log rules that matched before the decision.
	Logs []RuleRef
}

// RuleRef names a rule.
type RuleRef struct {
	Tier   string
	Policy Ref
	Rule   string
}
