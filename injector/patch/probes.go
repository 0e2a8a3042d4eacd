package patch

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/hauberk-mesh/hauberk/internal/names"
)

// Probe is one application probe as the sidecar reads it from HAUBERK_PROBES,
// keyed by "<container>/<kind>".
type Probe struct {
	HTTP           *HTTPProbe `json:"http,omitempty"`
	TCP            *TCPProbe  `json:"tcp,omitempty"`
	GRPC           *GRPCProbe `json:"grpc,omitempty"`
	TimeoutSeconds int32      `json:"timeoutSeconds"`
}

// HTTPProbe is an httpGet handler; Scheme is HTTP or HTTPS.
type HTTPProbe struct {
	Path    string   `json:"path"`
	Port    int32    `json:"port"`
	Scheme  string   `json:"scheme"`
	Headers []Header `json:"headers,omitempty"`
}

// Header is one header of an HTTPProbe.
type Header struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// TCPProbe is a tcpSocket handler.
type TCPProbe struct {
	Port int32 `json:"port"`
}

// GRPCProbe is a grpc handler.
type GRPCProbe struct {
	Port    int32  `json:"port"`
	Service string `json:"service,omitempty"`
}

// probeSlot is one of the three probes a container may have.
type probeSlot struct {
	kind  string // as in the path and in HAUBERK_PROBES
	field string // as in the API
	probe *corev1.Probe
}

func probeSlots(c *corev1.Container) []probeSlot {
	return []probeSlot{
		{"liveness", "livenessProbe", c.LivenessProbe},
		{"readiness", "readinessProbe", c.ReadinessProbe},
		{"startup", "startupProbe", c.StartupProbe},
	}
}

func probeKey(container, kind string) string  { return container + "/" + kind }
func probePath(container, kind string) string { return "/probe/" + container + "/" + kind }

// rewriteProbes adds the operations that point the probes of the application
// to the sidecar and returns the originals by key. Probes that point there
// already are left alone, so a second call finds nothing to do.
func rewriteProbes(pod *corev1.Pod, injected bool) (ops []Operation, found map[string]Probe, warnings []string, err error) {
	found = map[string]Probe{}
	for where, c := range containers(pod) {
		if c.Name == names.ProxyContainer {
			continue
		}
		warnings = append(warnings, hookWarnings(where, c)...)
		for _, slot := range probeSlots(c) {
			if slot.probe == nil || (injected && rewritten(c.Name, slot)) {
				continue
			}
			field := where.field() + "." + slot.field
			if host := probeHost(slot.probe); host != "" {
				warnings = append(warnings, fmt.Sprintf("hauberk: %s names the host %q and is left as it is: the kubelet asks that host, not the pod", field, host))
				continue
			}
			original, ok, err := probeOf(c, slot.probe, field)
			if err != nil {
				return nil, nil, nil, err
			}
			if !ok {
				continue
			}
			found[probeKey(c.Name, slot.kind)] = original
			pointer := where.pointer() + "/" + slot.field
			for _, other := range []struct {
				name string
				set  bool
			}{{"tcpSocket", slot.probe.TCPSocket != nil}, {"grpc", slot.probe.GRPC != nil}} {
				if other.set {
					ops = append(ops, Operation{Op: "remove", Path: pointer + "/" + other.name})
				}
			}
			ops = append(ops, Operation{Op: "add", Path: pointer + "/httpGet", Value: map[string]any{
				"path": probePath(c.Name, slot.kind), "port": names.PortHealth,
			}})
		}
	}
	return ops, found, warnings, nil
}

// rewritten tells whether the probe is one that rewriteProbes made.
func rewritten(container string, slot probeSlot) bool {
	h := slot.probe.HTTPGet
	return h != nil && h.Port == intstr.FromInt32(names.PortHealth) && h.Path == probePath(container, slot.kind)
}

func probeHost(p *corev1.Probe) string {
	switch {
	case p.HTTPGet != nil:
		return p.HTTPGet.Host
	case p.TCPSocket != nil:
		return p.TCPSocket.Host
	}
	return ""
}

// probeOf converts a probe; ok is false for one that the kubelet runs inside
// the container.
func probeOf(c *corev1.Container, p *corev1.Probe, field string) (out Probe, ok bool, err error) {
	out.TimeoutSeconds = max(p.TimeoutSeconds, 1) // the API's default is 1
	switch {
	case p.HTTPGet != nil:
		port, err := resolvePort(c, p.HTTPGet.Port, field+".httpGet.port")
		if err != nil {
			return out, false, err
		}
		h := &HTTPProbe{Path: p.HTTPGet.Path, Port: port, Scheme: string(p.HTTPGet.Scheme)}
		if h.Scheme == "" {
			h.Scheme = string(corev1.URISchemeHTTP)
		}
		for _, header := range p.HTTPGet.HTTPHeaders {
			h.Headers = append(h.Headers, Header{header.Name, header.Value})
		}
		out.HTTP = h
	case p.TCPSocket != nil:
		port, err := resolvePort(c, p.TCPSocket.Port, field+".tcpSocket.port")
		if err != nil {
			return out, false, err
		}
		out.TCP = &TCPProbe{Port: port}
	case p.GRPC != nil:
		port, err := resolvePort(c, intstr.FromInt32(p.GRPC.Port), field+".grpc.port")
		if err != nil {
			return out, false, err
		}
		out.GRPC = &GRPCProbe{Port: port}
		if p.GRPC.Service != nil {
			out.GRPC.Service = *p.GRPC.Service
		}
	default:
		return out, false, nil
	}
	return out, true, nil
}

// resolvePort turns a name into the number that the container gives it.
func resolvePort(c *corev1.Container, port intstr.IntOrString, field string) (int32, error) {
	n := port.IntVal
	if port.Type == intstr.String {
		i := slices.IndexFunc(c.Ports, func(p corev1.ContainerPort) bool { return p.Name == port.StrVal })
		if i < 0 {
			return 0, refuse(field, "name one of the container's ports or give the number", "container %s has no port named %q", c.Name, port.StrVal)
		}
		n = c.Ports[i].ContainerPort
	}
	if n < 1 || n > 65535 {
		return 0, refuse(field, "use 1 to 65535", "%d is no port", n)
	}
	if reservedPort(n) {
		return 0, refuse(field, "probe the application's own port", "port %d is the sidecar's", n)
	}
	return n, nil
}

// hookWarnings names the lifecycle hooks that the kubelet sends over the
// network, which strict mTLS refuses.
func hookWarnings(where place, c *corev1.Container) []string {
	if c.Lifecycle == nil {
		return nil
	}
	var out []string
	for _, h := range []struct {
		name string
		hook *corev1.LifecycleHandler
	}{{"postStart", c.Lifecycle.PostStart}, {"preStop", c.Lifecycle.PreStop}} {
		if h.hook == nil || (h.hook.HTTPGet == nil && h.hook.TCPSocket == nil) {
			continue
		}
		out = append(out, fmt.Sprintf("hauberk: %s.lifecycle.%s is sent by the kubelet without an identity, and strict mTLS refuses it: use exec, or name its port in %s",
			where.field(), h.name, names.AnnotationExcludeInboundPorts))
	}
	return out
}

func encodeProbes(probes map[string]Probe) string {
	// Marshalling strings and numbers cannot fail, and keys come out sorted.
	out, _ := json.Marshal(probes)
	return string(out)
}

// probesOf reads HAUBERK_PROBES back; anything unreadable is nothing.
func probesOf(sidecar *corev1.Container) map[string]Probe {
	probes := map[string]Probe{}
	if sidecar == nil {
		return probes
	}
	for _, e := range sidecar.Env {
		if e.Name == envProbes {
			if err := json.Unmarshal([]byte(unescapeEnv(e.Value)), &probes); err != nil || probes == nil {
				return map[string]Probe{}
			}
		}
	}
	return probes
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
