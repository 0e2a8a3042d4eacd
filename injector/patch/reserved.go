package patch

import (
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"github.com/hauberk-mesh/hauberk/internal/names"
)

// TokenVolume is the name of the projected volume with the sidecar's token.
const TokenVolume = "hauberk-token"

// checkReserved refuses what belongs to the sidecar: its user and group, its
// ports, its volume. A process with the sidecar's user is not redirected, so
// that user is what tells the sidecar from the application. An image whose
// USER is the sidecar's cannot be seen here; set runAsUser to be safe from it.
func checkReserved(pod *corev1.Pod) error {
	const mend = "use another ID; 15015 is the sidecar's and its traffic is not captured"
	if sc := pod.Spec.SecurityContext; sc != nil {
		for _, f := range []struct {
			name string
			id   *int64
		}{{"runAsUser", sc.RunAsUser}, {"runAsGroup", sc.RunAsGroup}, {"fsGroup", sc.FSGroup}} {
			if f.id != nil && *f.id == names.ProxyUID {
				return refuse("spec.securityContext."+f.name, mend, "%d is reserved", *f.id)
			}
		}
		if slices.Contains(sc.SupplementalGroups, names.ProxyGID) {
			return refuse("spec.securityContext.supplementalGroups", mend, "%d is reserved", names.ProxyGID)
		}
	}
	if pod.Spec.HostUsers != nil && !*pod.Spec.HostUsers {
		return refuse("spec.hostUsers", "remove it, or label the pod "+names.LabelInject+": "+names.InjectDisabled,
			"a pod in a user namespace of its own cannot be captured: the kernel refuses the owner match there")
	}
	for where, c := range containers(pod) {
		if c.Name == names.ProxyContainer {
			continue
		}
		if sc := c.SecurityContext; sc != nil {
			if sc.RunAsUser != nil && *sc.RunAsUser == names.ProxyUID {
				return refuse(where.field()+".securityContext.runAsUser", mend, "%d is reserved", *sc.RunAsUser)
			}
			if sc.RunAsGroup != nil && *sc.RunAsGroup == names.ProxyGID {
				return refuse(where.field()+".securityContext.runAsGroup", mend, "%d is reserved", *sc.RunAsGroup)
			}
		}
		for _, p := range c.Ports {
			if reservedPort(p.ContainerPort) && p.Protocol != corev1.ProtocolUDP && p.Protocol != corev1.ProtocolSCTP {
				return refuse(where.field()+".ports", "let the application listen elsewhere", "port %d is the sidecar's", p.ContainerPort)
			}
		}
		for _, m := range c.VolumeMounts {
			if m.Name == TokenVolume {
				return refuse(where.field()+".volumeMounts", "remove the mount", "volume %s holds the sidecar's token and is for the sidecar alone", TokenVolume)
			}
		}
	}
	return nil
}

func reservedPort(port int32) bool {
	switch port {
	case names.PortAdmin, names.PortOutbound, names.PortInbound, names.PortMetrics, names.PortHealth:
		return true
	}
	return false
}

// place says where in a pod a container is.
type place struct {
	list  string // containers, initContainers or ephemeralContainers
	index int
	name  string
}

// field is the place for people.
func (p place) field() string { return fmt.Sprintf("spec.%s[%s]", p.list, p.name) }

// pointer is the place as an RFC 6901 pointer.
func (p place) pointer() string { return fmt.Sprintf("/spec/%s/%d", p.list, p.index) }

// containers yields all containers of a pod in the order of their start.
func containers(pod *corev1.Pod) func(yield func(place, *corev1.Container) bool) {
	return func(yield func(place, *corev1.Container) bool) {
		for i := range pod.Spec.InitContainers {
			c := &pod.Spec.InitContainers[i]
			if !yield(place{"initContainers", i, c.Name}, c) {
				return
			}
		}
		for i := range pod.Spec.Containers {
			c := &pod.Spec.Containers[i]
			if !yield(place{"containers", i, c.Name}, c) {
				return
			}
		}
		for i := range pod.Spec.EphemeralContainers {
			c := corev1.Container(pod.Spec.EphemeralContainers[i].EphemeralContainerCommon)
			if !yield(place{"ephemeralContainers", i, c.Name}, &c) {
				return
			}
		}
	}
}
