package source

import (
	"net/netip"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/hauberk-mesh/hauberk/control/compile"
	"github.com/hauberk-mesh/hauberk/internal/names"
	"github.com/hauberk-mesh/hauberk/policy"
)

// meshed reports whether the pod has our native sidecar, as the injector puts
// it in.
func meshed(p *corev1.Pod) bool {
	if p.Annotations[names.AnnotationStatus] == "" {
		return false
	}
	for i := range p.Spec.InitContainers {
		c := &p.Spec.InitContainers[i]
		if c.Name == names.ProxyContainer && nativeSidecar(c) {
			return true
		}
	}
	return false
}

func nativeSidecar(c *corev1.Container) bool {
	return c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways
}

func containerPorts(c *corev1.Container) []policy.NamedPort {
	var ports []policy.NamedPort
	for _, p := range c.Ports {
		if p.ContainerPort > 0 && p.ContainerPort <= 65535 {
			ports = append(ports, policy.NamedPort{Name: p.Name, Protocol: protocolFrom(p.Protocol), Port: uint16(p.ContainerPort)})
		}
	}
	return ports
}

// protocolFrom is TCP for the empty protocol, as in the Kubernetes API. An
// unknown protocol is one that no flow has.
func protocolFrom(p corev1.Protocol) policy.Protocol {
	switch p {
	case corev1.ProtocolTCP, "":
		return policy.TCP
	case corev1.ProtocolUDP:
		return policy.UDP
	case corev1.ProtocolSCTP:
		return policy.SCTP
	}
	return 255 // reserved by IANA
}

// ownerOf is the workload that made the pod, for telemetry. A Deployment is
// found through its ReplicaSet's name, which ends in the pod template's hash.
func ownerOf(p *corev1.Pod) (kind, name string) {
	for i := range p.OwnerReferences {
		o := &p.OwnerReferences[i]
		if o.Controller == nil || !*o.Controller {
			continue
		}
		if o.Kind == "ReplicaSet" {
			if hash := p.Labels["pod-template-hash"]; hash != "" {
				if deployment, ok := strings.CutSuffix(o.Name, "-"+hash); ok {
					return "Deployment", deployment
				}
			}
		}
		return o.Kind, o.Name
	}
	return "", ""
}

// captureFrom reads the pod's annotations. What can't be read is left out: the
// pod is then captured more, not less.
func captureFrom(annotations map[string]string) compile.Capture {
	return compile.Capture{
		ExcludeInboundPorts:  portList(annotations[names.AnnotationExcludeInboundPorts]),
		ExcludeOutboundPorts: portList(annotations[names.AnnotationExcludeOutboundPorts]),
		ExcludeOutboundCIDRs: prefixList(annotations[names.AnnotationExcludeOutboundCIDRs]),
		IncludeInboundPorts:  portList(annotations[names.AnnotationIncludeInboundPorts]),
	}
}

func portList(text string) []uint16 {
	var ports []uint16
	for word := range strings.SplitSeq(text, ",") {
		if n, err := strconv.ParseUint(strings.TrimSpace(word), 10, 16); err == nil && n > 0 {
			ports = append(ports, uint16(n))
		}
	}
	return ports
}

func prefixList(text string) []netip.Prefix {
	var prefixes []netip.Prefix
	for word := range strings.SplitSeq(text, ",") {
		if p, err := netip.ParsePrefix(strings.TrimSpace(word)); err == nil {
			prefixes = append(prefixes, p.Masked())
		}
	}
	return prefixes
}
