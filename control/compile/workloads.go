package compile

import (
	"net/netip"
	"slices"
	"strings"

	hauberkv1 "github.com/hauberk-mesh/hauberk/api/gen/hauberk/v1"
	"github.com/hauberk-mesh/hauberk/internal/names"
	"github.com/hauberk-mesh/hauberk/policy"
)

// workloads writes down each pod.
func (c *compiler) workloads() {
	c.protocols()
	modes := newPeerAuthentications(c.facts.PeerAuthentications)
	for _, entry := range c.pods {
		p := entry.fact
		w := &hauberkv1.Workload{
			Uid: p.UID, Namespace: p.Namespace, Name: p.Name,
			ServiceAccount: p.ServiceAccount, Node: p.Node,
			Labels:               p.Labels,
			NamespaceLabels:      entry.workload.NamespaceLabels,
			ServiceAccountLabels: entry.workload.ServiceAccountLabels,
			Meshed:               p.Meshed,
			SpiffeId:             entry.spiffeID,
			WorkloadName:         p.OwnerName,
			WorkloadKind:         p.OwnerKind,
			HostNetwork:          p.HostNetwork,
			Zone:                 entry.zone,
			Terminating:          p.Terminating,
			Bootstrap:            p.Namespace == names.Namespace || slices.Contains(c.facts.Mesh.BootstrapNamespaces, p.Namespace),
		}
		if w.WorkloadName == "" {
			w.WorkloadName, w.WorkloadKind = p.Name, "Pod"
		}
		for _, a := range p.Addresses {
			w.Addresses = append(w.Addresses, a.Unmap().String())
		}
		w.NamedPorts = namedPorts(entry.workload)
		if entry.set != nil {
			w.PolicySet = entry.set.Set.ID
		}
		if !p.HostNetwork {
			w.MtlsMode, w.PortMtlsModes = modes.of(entry.workload)
			modes.count(entry.workload)
		}
		if len(entry.protocols) > 0 {
			w.PortProtocols = make(map[uint32]hauberkv1.AppProtocol, len(entry.protocols))
			for port, protocol := range entry.protocols {
				w.PortProtocols[uint32(port)] = protocol
			}
		}
		w.Capture = captureToProto(&p.Capture)
		c.out.Workloads[p.UID] = w
	}
	c.out.PeerAuthentications = modes.reports()
}

func captureToProto(capture *Capture) *hauberkv1.Capture {
	if len(capture.ExcludeInboundPorts)+len(capture.ExcludeOutboundPorts)+len(capture.ExcludeOutboundCIDRs)+len(capture.IncludeInboundPorts) == 0 {
		return nil
	}
	var cidrs []string
	for _, p := range capture.ExcludeOutboundCIDRs {
		cidrs = append(cidrs, p.String())
	}
	return &hauberkv1.Capture{
		ExcludeInboundPorts:  widen(capture.ExcludeInboundPorts),
		ExcludeOutboundPorts: widen(capture.ExcludeOutboundPorts),
		ExcludeOutboundCidrs: cidrs,
		IncludeInboundPorts:  widen(capture.IncludeInboundPorts),
	}
}

func widen(ports []uint16) []uint32 {
	var wide []uint32
	for _, p := range ports {
		wide = append(wide, uint32(p))
	}
	return wide
}

// Public is what others than the pod itself and its node agent may see of a
// workload.
func Public(w *hauberkv1.Workload) *hauberkv1.Workload {
	return &hauberkv1.Workload{
		Uid: w.GetUid(), Namespace: w.GetNamespace(), Name: w.GetName(),
		ServiceAccount: w.GetServiceAccount(), Node: w.GetNode(), Addresses: w.GetAddresses(),
		Labels: w.GetLabels(), NamespaceLabels: w.GetNamespaceLabels(),
		ServiceAccountLabels: w.GetServiceAccountLabels(), NamedPorts: w.GetNamedPorts(),
		Meshed: w.GetMeshed(), SpiffeId: w.GetSpiffeId(),
		WorkloadName: w.GetWorkloadName(), WorkloadKind: w.GetWorkloadKind(),
		HostNetwork: w.GetHostNetwork(), Terminating: w.GetTerminating(), Bootstrap: w.GetBootstrap(),
	}
}

// protocols finds what protocol each port of each pod declares, by the
// Services that target it, then by the container port's name. When Services
// disagree the sidecar detects.
func (c *compiler) protocols() {
	byNamespace := make(map[string][]*Service)
	for i := range c.facts.Services {
		s := &c.facts.Services[i]
		if len(s.Selector) > 0 {
			byNamespace[s.Namespace] = append(byNamespace[s.Namespace], s)
		}
	}
	for _, entry := range c.pods {
		declared := make(map[uint16]hauberkv1.AppProtocol)
		for _, s := range byNamespace[entry.fact.Namespace] {
			if !matchesLabels(s.Selector, entry.fact.Labels) {
				continue
			}
			for i := range s.Ports {
				sp := &s.Ports[i]
				port := sp.targetOn(entry.fact)
				if sp.Protocol != policy.TCP || port == 0 {
					continue
				}
				protocol := declaredProtocol(sp.AppProtocol, sp.Name)
				if protocol == hauberkv1.AppProtocol_APP_PROTOCOL_UNSPECIFIED {
					continue
				}
				if old, ok := declared[port]; ok && old != protocol {
					protocol = hauberkv1.AppProtocol_APP_PROTOCOL_UNSPECIFIED
				}
				declared[port] = protocol
			}
		}
		for _, port := range entry.fact.Ports {
			if _, ok := declared[port.Port]; ok || port.Protocol != policy.TCP {
				continue
			}
			declared[port.Port] = declaredProtocol("", port.Name)
		}
		for port, protocol := range declared {
			if protocol == hauberkv1.AppProtocol_APP_PROTOCOL_UNSPECIFIED {
				delete(declared, port)
			}
		}
		entry.protocols = declared
	}
}

// targetOn resolves the target port for a pod; zero when the pod has none.
func (p *ServicePort) targetOn(pod *Pod) uint16 {
	if p.TargetName == "" {
		if p.TargetPort == 0 {
			return p.Port
		}
		return p.TargetPort
	}
	for _, port := range pod.Ports {
		if port.Name == p.TargetName && port.Protocol == p.Protocol {
			return port.Port
		}
	}
	return 0
}

func matchesLabels(selector, labels map[string]string) bool {
	for k, v := range selector {
		if got, ok := labels[k]; !ok || got != v {
			return false
		}
	}
	return true
}

// declaredProtocol reads a Service port's appProtocol (Kubernetes' standard
// names, KEP-3726, and IANA service names), else the port name's first word.
func declaredProtocol(appProtocol, portName string) hauberkv1.AppProtocol {
	word := strings.ToLower(appProtocol)
	if word == "" {
		word, _, _ = strings.Cut(strings.ToLower(portName), "-")
		if strings.HasPrefix(strings.ToLower(portName), "grpc-web") {
			word = "http"
		}
	}
	switch word {
	case "http", "http1", "kubernetes.io/ws":
		return hauberkv1.AppProtocol_APP_PROTOCOL_HTTP1
	case "http2", "h2c", "kubernetes.io/h2c":
		return hauberkv1.AppProtocol_APP_PROTOCOL_HTTP2
	case "grpc":
		return hauberkv1.AppProtocol_APP_PROTOCOL_GRPC
	case "https", "tls", "kubernetes.io/wss", "ldaps", "imaps", "amqps", "mqtts":
		return hauberkv1.AppProtocol_APP_PROTOCOL_TLS
	case "tcp", "redis", "mysql", "mongo", "mongodb", "postgres", "postgresql", "amqp", "kafka", "smtp", "ssh", "ftp", "imap", "nats", "mqtt", "ldap", "memcached", "zookeeper", "cassandra":
		return hauberkv1.AppProtocol_APP_PROTOCOL_TCP
	}
	return hauberkv1.AppProtocol_APP_PROTOCOL_UNSPECIFIED
}

// destination is the pod itself, dialled directly.
func (e *podEntry) destination(addr netip.Addr, port uint16) *hauberkv1.Destination {
	return &hauberkv1.Destination{
		Kind: "Pod", Namespace: e.fact.Namespace, Name: e.fact.Name, Port: uint32(port),
		Protocol:  e.protocols[port],
		Endpoints: []*hauberkv1.DestinationEndpoint{e.endpoint(addr, port, true, e.fact.Terminating)},
	}
}

// endpoint is the pod as an endpoint. Ports that the sidecar does not see
// speak plainly, whatever the pod is.
func (e *podEntry) endpoint(addr netip.Addr, port uint16, ready, terminating bool) *hauberkv1.DestinationEndpoint {
	ep := &hauberkv1.DestinationEndpoint{
		Address: addr.String(), Port: uint32(port),
		PodUid: e.fact.UID, Ready: ready, Terminating: terminating || e.fact.Terminating,
		Node: e.fact.Node, Zone: e.zone,
		WorkloadName: e.fact.OwnerName, Namespace: e.fact.Namespace, PodName: e.fact.Name,
	}
	if ep.WorkloadName == "" {
		ep.WorkloadName = e.fact.Name
	}
	if e.fact.Meshed && e.fact.Capture.Redirected(port) && port != names.PortHealth && port != names.PortMetrics {
		ep.SpiffeId = e.spiffeID
	}
	return ep
}
