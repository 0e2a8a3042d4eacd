// Package source reads what the data plane must know from the Kubernetes API
// and turns it into compile.Facts. Its converters are pure, so that the command
// line answers from a cluster or from files as the control plane does.
//
// It owns what an API object means in the policy model, and that an object that
// can't be read denies for its own subjects and disturbs no other. It does not
// own what follows from the facts (control/compile).
package source

import (
	"fmt"
	"net/netip"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	cnp "sigs.k8s.io/network-policy-api/apis/v1alpha2"

	"github.com/hauberk-mesh/hauberk/api/v1alpha1"
	"github.com/hauberk-mesh/hauberk/control/compile"
	"github.com/hauberk-mesh/hauberk/control/tunnels"
	"github.com/hauberk-mesh/hauberk/internal/names"
)

// Objects is the API objects that facts are made of. Hauberk's own kinds are
// kept unstructured, so that fields that this program does not know are seen
// and not dropped.
type Objects struct {
	Namespaces      []*corev1.Namespace
	ServiceAccounts []*corev1.ServiceAccount
	Nodes           []*corev1.Node
	Pods            []*corev1.Pod
	Services        []*corev1.Service
	EndpointSlices  []*discoveryv1.EndpointSlice
	NetworkPolicies []*networkingv1.NetworkPolicy

	MeshPolicies        []*unstructured.Unstructured
	ClusterMeshPolicies []*unstructured.Unstructured
	Tiers               []*unstructured.Unstructured
	PeerAuthentications []*unstructured.Unstructured
	MeshConfigs         []*unstructured.Unstructured
	NetworkSets         []*unstructured.Unstructured
	ClusterNetworkSets  []*unstructured.Unstructured
	// ClusterNetworkPolicies are of the network policy API, which a cluster may or
	// may not have.
	ClusterNetworkPolicies []*unstructured.Unstructured

	// Tunnels is the ConfigMap of WireGuard keys, nil when there is none.
	Tunnels *corev1.ConfigMap

	// TrustDomain and Roots (DER) come from the CA.
	TrustDomain string
	Roots       [][]byte
}

// Resources of Hauberk's own kinds.
var (
	meshPolicies        = resource("meshpolicies")
	clusterMeshPolicies = resource("clustermeshpolicies")
	tiers               = resource("tiers")
	peerAuthentications = resource("peerauthentications")
	meshConfigs         = resource("meshconfigs")
	networkSets         = resource("networksets")
	clusterNetworkSets  = resource("clusternetworksets")

	clusterNetworkPolicies = schema.GroupVersion(cnp.GroupVersion).WithResource("clusternetworkpolicies")
)

func resource(name string) schema.GroupVersionResource {
	return v1alpha1.GroupVersion.WithResource(name)
}

// FactsFrom turns objects into facts. It does not change them; the facts share
// their labels.
func FactsFrom(o *Objects) compile.Facts {
	f := compile.Facts{}
	f.Mesh = meshFrom(o, &f.Problems)
	for _, ns := range o.Namespaces {
		f.Namespaces = append(f.Namespaces, compile.Namespace{Name: ns.Name, Labels: ns.Labels})
	}
	for _, sa := range o.ServiceAccounts {
		f.ServiceAccounts = append(f.ServiceAccounts, compile.ServiceAccount{Namespace: sa.Namespace, Name: sa.Name, Labels: sa.Labels})
	}
	for _, n := range o.Nodes {
		f.Nodes = append(f.Nodes, nodeFrom(n))
	}
	for _, p := range o.Pods {
		f.Pods = append(f.Pods, podFrom(p))
	}
	for _, s := range o.Services {
		if s.Spec.Type != corev1.ServiceTypeExternalName {
			f.Services = append(f.Services, serviceFrom(s))
		}
	}
	for _, s := range o.EndpointSlices {
		if slice, ok := endpointSliceFrom(s); ok {
			f.EndpointSlices = append(f.EndpointSlices, slice)
		}
	}
	for _, np := range o.NetworkPolicies {
		f.Policies = append(f.Policies, networkPolicyFrom(np))
	}
	for _, u := range o.MeshPolicies {
		f.Policies = append(f.Policies, meshPolicyFrom(u))
	}
	for _, u := range o.ClusterMeshPolicies {
		f.Policies = append(f.Policies, clusterMeshPolicyFrom(u))
	}
	for _, u := range o.ClusterNetworkPolicies {
		f.Policies = append(f.Policies, clusterNetworkPolicyFrom(u))
	}
	for _, u := range o.NetworkSets {
		f.NetworkSets = append(f.NetworkSets, networkSetFrom(u, "NetworkSet"))
	}
	for _, u := range o.ClusterNetworkSets {
		f.NetworkSets = append(f.NetworkSets, networkSetFrom(u, "ClusterNetworkSet"))
	}
	for _, u := range o.Tiers {
		f.Tiers = append(f.Tiers, tierFrom(u, &f.Problems))
	}
	for _, u := range o.PeerAuthentications {
		f.PeerAuthentications = append(f.PeerAuthentications, peerAuthenticationFrom(u))
	}
	entries, problems := tunnels.Parse(o.Tunnels)
	for _, p := range problems {
		f.Problems = append(f.Problems, p.Error())
	}
	for node, e := range entries {
		f.Tunnels = append(f.Tunnels, compile.Tunnel{Node: node, PublicKey: e.PublicKey, Port: e.Port, Backend: e.Backend})
	}
	return f
}

func nodeFrom(n *corev1.Node) compile.Node {
	node := compile.Node{Name: n.Name, Zone: n.Labels[corev1.LabelTopologyZone], Labels: n.Labels}
	for _, a := range n.Status.Addresses {
		addr, err := netip.ParseAddr(a.Address)
		if err != nil {
			continue // names are of no use in packets
		}
		switch a.Type {
		case corev1.NodeInternalIP:
			node.Internal = append(node.Internal, addr.Unmap())
		case corev1.NodeExternalIP:
			node.External = append(node.External, addr.Unmap())
		}
	}
	cidrs := n.Spec.PodCIDRs
	if len(cidrs) == 0 && n.Spec.PodCIDR != "" {
		cidrs = []string{n.Spec.PodCIDR}
	}
	for _, c := range cidrs {
		if p, err := netip.ParsePrefix(c); err == nil {
			node.PodCIDRs = append(node.PodCIDRs, p.Masked())
		}
	}
	return node
}

func podFrom(p *corev1.Pod) compile.Pod {
	pod := compile.Pod{
		UID: string(p.UID), Namespace: p.Namespace, Name: p.Name,
		ServiceAccount: p.Spec.ServiceAccountName,
		Node:           p.Spec.NodeName,
		Labels:         p.Labels,
		HostNetwork:    p.Spec.HostNetwork,
		Terminating:    p.DeletionTimestamp != nil,
		Completed:      p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed,
		Created:        createdUnix(p.CreationTimestamp.Time),
		Meshed:         meshed(p),
		Capture:        captureFrom(p.Annotations),
	}
	if pod.ServiceAccount == "" {
		pod.ServiceAccount = "default"
	}
	for _, ip := range podIPs(p) {
		if addr, err := netip.ParseAddr(ip); err == nil {
			pod.Addresses = append(pod.Addresses, addr.Unmap())
		}
	}
	for i := range p.Spec.InitContainers {
		c := &p.Spec.InitContainers[i]
		if c.Name != names.ProxyContainer && nativeSidecar(c) {
			pod.Ports = append(pod.Ports, containerPorts(c)...)
		}
	}
	for i := range p.Spec.Containers {
		pod.Ports = append(pod.Ports, containerPorts(&p.Spec.Containers[i])...)
	}
	pod.OwnerKind, pod.OwnerName = ownerOf(p)
	return pod
}

func createdUnix(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.Unix()
}

func podIPs(p *corev1.Pod) []string {
	var ips []string
	for _, ip := range p.Status.PodIPs {
		ips = append(ips, ip.IP)
	}
	if len(ips) == 0 && p.Status.PodIP != "" {
		ips = append(ips, p.Status.PodIP)
	}
	return ips
}

func serviceFrom(s *corev1.Service) compile.Service {
	service := compile.Service{Namespace: s.Namespace, Name: s.Name, Selector: s.Spec.Selector}
	ips := s.Spec.ClusterIPs
	if len(ips) == 0 {
		ips = []string{s.Spec.ClusterIP}
	}
	service.Addresses = parseAddrs(ips)
	if len(service.Addresses) > 0 {
		service.External = parseAddrs(s.Spec.ExternalIPs)
		for _, in := range s.Status.LoadBalancer.Ingress {
			// With ipMode Proxy the balancer itself must see the traffic.
			if in.IPMode == nil || *in.IPMode == corev1.LoadBalancerIPModeVIP {
				service.External = append(service.External, parseAddrs([]string{in.IP})...)
			}
		}
	}
	for i := range s.Spec.Ports {
		p := &s.Spec.Ports[i]
		sp := compile.ServicePort{Name: p.Name, Protocol: protocolFrom(p.Protocol), Port: uint16(p.Port)}
		if p.AppProtocol != nil {
			sp.AppProtocol = *p.AppProtocol
		}
		if p.TargetPort.StrVal != "" {
			sp.TargetName = p.TargetPort.StrVal
		} else {
			sp.TargetPort = uint16(p.TargetPort.IntVal)
		}
		service.Ports = append(service.Ports, sp)
	}
	return service
}

// parseAddrs leaves out what is no address, such as "None".
func parseAddrs(texts []string) []netip.Addr {
	var addrs []netip.Addr
	for _, t := range texts {
		if a, err := netip.ParseAddr(t); err == nil {
			addrs = append(addrs, a.Unmap())
		}
	}
	return addrs
}

func endpointSliceFrom(s *discoveryv1.EndpointSlice) (compile.EndpointSlice, bool) {
	service := s.Labels[discoveryv1.LabelServiceName]
	if service == "" || s.AddressType == discoveryv1.AddressTypeFQDN {
		return compile.EndpointSlice{}, false
	}
	slice := compile.EndpointSlice{Namespace: s.Namespace, Name: s.Name, Service: service}
	for _, p := range s.Ports {
		if p.Port == nil {
			continue
		}
		sp := compile.SlicePort{Port: uint16(*p.Port), Protocol: protocolFrom(corev1.ProtocolTCP)}
		if p.Name != nil {
			sp.Name = *p.Name
		}
		if p.Protocol != nil {
			sp.Protocol = protocolFrom(*p.Protocol)
		}
		slice.Ports = append(slice.Ports, sp)
	}
	for i := range s.Endpoints {
		e := &s.Endpoints[i]
		se := compile.SliceEndpoint{Addresses: parseAddrs(e.Addresses)}
		is := func(condition *bool, absent bool) bool {
			if condition == nil {
				return absent
			}
			return *condition
		}
		se.Terminating = is(e.Conditions.Terminating, false)
		ready := is(e.Conditions.Ready, true)
		se.Ready = ready || se.Terminating && is(e.Conditions.Serving, ready)
		if e.TargetRef != nil && e.TargetRef.Kind == "Pod" {
			se.PodUID = string(e.TargetRef.UID)
			if se.PodUID == "" {
				se.PodUID = fileUID("Pod", s.Namespace, e.TargetRef.Name)
			}
		}
		if e.NodeName != nil {
			se.Node = *e.NodeName
		}
		if e.Zone != nil {
			se.Zone = *e.Zone
		}
		slice.Endpoints = append(slice.Endpoints, se)
	}
	return slice, true
}

// fileUID stands in for the UID of an object that was read from a file.
func fileUID(kind, namespace, name string) string {
	return fmt.Sprintf("file:%s/%s/%s", kind, namespace, name)
}
