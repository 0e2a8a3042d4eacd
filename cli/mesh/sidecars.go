package mesh

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/hauberk-mesh/hauberk/cli/run"
	"github.com/hauberk-mesh/hauberk/injector/patch"
	"github.com/hauberk-mesh/hauberk/internal/names"
)

// Proxy is a sidecar and what it says of itself.
type Proxy struct {
	Namespace string       `json:"namespace"`
	Pod       string       `json:"pod"`
	Status    *ProxyStatus `json:"status,omitempty"`
	Err       error        `json:"-"`
}

// ProxyStatus is the sidecar's page /status.
type ProxyStatus struct {
	Version   string    `json:"version"`
	Started   time.Time `json:"started"`
	Identity  string    `json:"identity,omitempty"`
	Expiry    time.Time `json:"certificateExpiry,omitzero"`
	Pod       string    `json:"pod,omitempty"`
	PodUID    string    `json:"podUID,omitempty"`
	Workload  string    `json:"workload,omitempty"`
	Connected bool      `json:"connected"`
	Updated   time.Time `json:"lastUpdate,omitzero"`
	NotReady  []string  `json:"notReady,omitempty"`
	Versions  struct {
		Mesh      string `json:"mesh,omitempty"`
		Workload  string `json:"workload,omitempty"`
		PolicySet string `json:"policySet,omitempty"`
	} `json:"versions"`
	Connections  int    `json:"connections"`
	Draining     bool   `json:"draining"`
	LogLevel     string `json:"logLevel"`
	OTLPEndpoint string `json:"otlpEndpoint,omitempty"`
	MTLSMode     string `json:"mtlsMode,omitempty"`
	PolicySet    string `json:"policySet,omitempty"`
}

// Proxies asks the sidecars of pods for their status.
func Proxies(ctx context.Context, c *run.Clients, pods []corev1.Pod) []Proxy {
	return run.Each(pods, func(p corev1.Pod) Proxy {
		out := Proxy{Namespace: p.Namespace, Pod: p.Name}
		status := &ProxyStatus{}
		if out.Err = c.PodJSON(ctx, p.Namespace, p.Name, names.PortAdmin, "/status", status); out.Err == nil {
			out.Status = status
		}
		return out
	})
}

// InjectedVersion is the version of the mesh that put the sidecar in.
func InjectedVersion(p *corev1.Pod) string {
	var s patch.Status
	if json.Unmarshal([]byte(p.Annotations[names.AnnotationStatus]), &s) != nil || s.Version == "" {
		return "unknown"
	}
	return s.Version
}

// Client is one client of the config stream, as a control replica sees it.
type Client struct {
	Kind      string    `json:"kind"`
	Name      string    `json:"name"`
	Version   string    `json:"version,omitempty"`
	Connected time.Time `json:"connected"`
	NACKs     uint64    `json:"nacks"`
	LastNACK  string    `json:"last_nack,omitempty"`
}

// Replica is a control replica and its clients.
type Replica struct {
	Pod     string   `json:"pod"`
	Clients []Client `json:"clients"`
	Err     error    `json:"-"`
}

// Replicas asks the control plane's replicas for their clients.
func Replicas(ctx context.Context, c *run.Clients) ([]Replica, error) {
	pods, err := Pods(ctx, c, Control)
	if err != nil {
		return nil, err
	}
	return run.Each(pods, func(p corev1.Pod) Replica {
		r := Replica{Pod: p.Name}
		r.Err = c.PodJSON(ctx, names.Namespace, p.Name, names.PortAdmin, "/debug/clients", &r.Clients)
		return r
	}), nil
}

func join(list []string) string {
	slices.Sort(list)
	return strings.Join(list, ", ")
}
