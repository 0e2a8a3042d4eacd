// Package names holds the labels, annotations, ports, paths and identities
// that several components must agree on. It owns spelling, not behaviour, and
// imports nothing.
package names

// Namespace is where the mesh's own workloads live.
const Namespace = "hauberk-system"

// Names of the mesh's own workloads; each is also its service account.
const (
	Control  = "hauberk-control"
	Injector = "hauberk-injector"
	Node     = "hauberk-node"
)

// TrustDomain is the default trust domain.
const TrustDomain = "cluster.local"

// TokenAudience is the audience of the projected tokens that the CA accepts.
const TokenAudience = "hauberk-ca"

// Suffixes of the DNS SANs that bind an SVID to a pod and, for node agents, to
// a node. ".internal" is reserved for private use (ICANN, 2024).
const (
	PodSANSuffix  = ".pod.hauberk.internal"
	NodeSANSuffix = ".node.hauberk.internal"
)

// Ports of the sidecar, and of every component that has the same face.
const (
	PortAdmin    = 15000 // loopback only
	PortOutbound = 15001
	PortInbound  = 15006
	PortControl  = 15012 // CA and Discovery
	PortWebhook  = 15017
	PortMetrics  = 15020
	PortHealth   = 15021
	PortTunnel   = 51871 // UDP, WireGuard
)

// ALPN protocols between sidecars. They are hints: the server decides by
// itself which protocol a connection speaks.
const (
	ALPNTCP   = "hauberk/tcp"
	ALPNHTTP1 = "hauberk/http1"
	ALPNHTTP2 = "hauberk/http2"
)

// The sidecar's container and the user that it runs as. A pod's own containers
// must not run as this user: redirection exempts its traffic.
const (
	ProxyContainer = "hauberk-proxy"
	ProxyUID       = 15015
	ProxyGID       = 15015
)

// Objects in Namespace.
const (
	TrustBundleConfigMap = "hauberk-trust-bundle" // key TrustBundleKey
	TrustBundleKey       = "ca.crt"
	CASecret             = "hauberk-ca"
	TunnelsConfigMap     = "hauberk-tunnels"
)

// Paths on a node and in the node agent.
const (
	RunDir     = "/run/hauberk"
	CNISocket  = "/run/hauberk/cni.sock"
	PodsDir    = "/run/hauberk/pods"
	CNIBinDir  = "/opt/cni/bin"
	CNIConfDir = "/etc/cni/net.d"
	CNIType    = "hauberk-cni"
)

// Tables of nftables that are ours, family inet.
const (
	PolicyTable = "hauberk"
	TunnelTable = "hauberk-tunnel"
)

// NFLogGroup is the group of nfnetlink_log to which the kernel tells of packets
// that policy drops.
const NFLogGroup = 15151

// Labels of namespaces and pods.
const (
	LabelInject   = "hauberk.dev/inject" // InjectEnabled or InjectDisabled
	LabelRevision = "hauberk.dev/rev"

	InjectEnabled  = "enabled"
	InjectDisabled = "disabled"
)

// Annotations of pods.
const (
	AnnotationStatus               = "hauberk.dev/status"
	AnnotationExcludeInboundPorts  = "hauberk.dev/exclude-inbound-ports"
	AnnotationExcludeOutboundPorts = "hauberk.dev/exclude-outbound-ports"
	AnnotationExcludeOutboundCIDRs = "hauberk.dev/exclude-outbound-cidrs"
	AnnotationIncludeInboundPorts  = "hauberk.dev/include-inbound-ports"
	AnnotationProxyCPU             = "hauberk.dev/proxy-cpu"
	AnnotationProxyMemory          = "hauberk.dev/proxy-memory"
	AnnotationLogLevel             = "hauberk.dev/log-level"
	AnnotationDrainSeconds         = "hauberk.dev/drain-seconds"
)
