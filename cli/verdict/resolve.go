package verdict

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/hauberk-mesh/hauberk/cli/run"
	"github.com/hauberk-mesh/hauberk/control/compile"
	"github.com/hauberk-mesh/hauberk/policy"
)

// end is one end of the question: a pod, a node or an address.
type end struct {
	// asked is how it was named.
	asked    string
	endpoint policy.Endpoint
	pod      *compile.Pod // nil when it is none
	// pods are all that the name stands for; pod is the first.
	pods []*compile.Pod
	// service is set when the name was a Service's.
	service *compile.Service
	// port is what the Service's port became; zero without a Service.
	port uint16
}

// String is how the answer calls it.
func (e *end) String() string {
	switch {
	case e.pod != nil:
		return e.pod.Namespace + "/" + e.pod.Name
	case e.endpoint.Host:
		return "node " + e.endpoint.HostOf
	case e.asked == "world":
		return "the world (" + e.endpoint.Addr.String() + ")"
	}
	return e.endpoint.Addr.String()
}

// worldAddress stands for everything outside: a documentation address (RFC 5737).
var worldAddress = netip.MustParseAddr("203.0.113.1")

// kinds by what users may call them.
var kinds = map[string]string{
	"pod": "Pod", "pods": "Pod", "po": "Pod",
	"deploy": "Deployment", "deployment": "Deployment", "deployments": "Deployment",
	"sts": "StatefulSet", "statefulset": "StatefulSet", "statefulsets": "StatefulSet",
	"ds": "DaemonSet", "daemonset": "DaemonSet", "daemonsets": "DaemonSet",
	"job": "Job", "jobs": "Job", "cronjob": "CronJob", "rs": "ReplicaSet", "replicaset": "ReplicaSet",
	"sa": "ServiceAccount", "serviceaccount": "ServiceAccount", "serviceaccounts": "ServiceAccount",
	"svc": "Service", "service": "Service", "services": "Service",
	"node": "Node", "nodes": "Node", "no": "Node",
}

const formsMend = "write NAMESPACE/NAME, pod/NAME, deploy/NAME, sa/NAME, service/NAME (also NAMESPACE/KIND/NAME), node/NAME, an IP address or world"

// name is a parsed reference; kind is empty for "whatever has that name".
type name struct{ kind, namespace, name string }

func parseName(text, namespace string) (name, error) {
	parts := strings.Split(text, "/")
	if slices.Contains(parts, "") {
		return name{}, run.Fail(run.ExitUsage, formsMend, "%q names nothing", text)
	}
	switch len(parts) {
	case 1:
		return name{"", namespace, parts[0]}, nil
	case 2:
		if kind, ok := kinds[strings.ToLower(parts[0])]; ok {
			return name{kind, namespace, parts[1]}, nil
		}
		return name{"", parts[0], parts[1]}, nil
	case 3:
		if kind, ok := kinds[strings.ToLower(parts[1])]; ok {
			return name{kind, parts[0], parts[2]}, nil
		}
		if kind, ok := kinds[strings.ToLower(parts[0])]; ok {
			return name{kind, parts[1], parts[2]}, nil
		}
	}
	return name{}, run.Fail(run.ExitUsage, formsMend, "%q is of no known form", text)
}

// resolve finds an end. port is what was asked for at a destination, empty
// at a source.
func (w *world) resolve(text, namespace string, port string, protocol policy.Protocol, source bool) (*end, error) {
	if text == "world" {
		return &end{asked: text, endpoint: policy.Endpoint{Addr: worldAddress}}, nil
	}
	if addr, err := netip.ParseAddr(text); err == nil {
		return w.address(text, addr.Unmap())
	}
	n, err := parseName(text, namespace)
	if err != nil {
		return nil, err
	}
	switch n.kind {
	case "Node":
		for _, node := range w.facts.Nodes {
			if node.Name != n.name {
				continue
			}
			if len(node.Internal) == 0 {
				return nil, run.Fail(run.ExitBadInput, "", "node %s has no address", n.name)
			}
			return &end{asked: text, endpoint: policy.Endpoint{Addr: node.Internal[0], Host: true, HostOf: node.Name}}, nil
		}
		return nil, run.Fail(run.ExitBadInput, "see `kubectl get nodes`", "there is no node %s", n.name)
	case "Service":
		if source {
			return nil, run.Fail(run.ExitUsage, "name the pod, workload or service account that connects", "a Service cannot be where a connection comes from")
		}
		return w.service(text, n, port, protocol)
	}
	pods := w.find(n)
	if len(pods) == 0 && n.kind == "" && !source {
		if e, err := w.service(text, n, port, protocol); err == nil {
			return e, nil
		}
	}
	if len(pods) == 0 {
		what := n.kind
		if what == "" {
			what = "workload or pod"
		}
		return nil, run.Fail(run.ExitBadInput, fmt.Sprintf("see `kubectl -n %s get pods`; %s", n.namespace, formsMend), "no running pod belongs to %s %s/%s", what, n.namespace, n.name)
	}
	return w.podEnd(text, pods), nil
}

func (w *world) address(text string, addr netip.Addr) (*end, error) {
	e := &end{asked: text, endpoint: w.resources.Endpoint(addr)}
	if wl := e.endpoint.Workload; wl != nil {
		e.pod = w.pods[wl.UID]
		return e, nil
	}
	for _, s := range w.facts.Services {
		if slices.Contains(s.Addresses, addr) {
			return nil, run.Fail(run.ExitBadInput, fmt.Sprintf("ask for service/%s -n %s: policies see the pods behind it", s.Name, s.Namespace),
				"%s is the address of Service %s/%s", addr, s.Namespace, s.Name)
		}
	}
	return e, nil
}

// find is the pods that a name stands for, in a stable order, those that stay
// first.
func (w *world) find(n name) []*compile.Pod {
	match := func(by func(*compile.Pod) bool) []*compile.Pod { return w.match(n.namespace, by) }
	byName := func(p *compile.Pod) bool { return p.Name == n.name }
	switch n.kind {
	case "Pod":
		return match(byName)
	case "ServiceAccount":
		return match(func(p *compile.Pod) bool { return p.ServiceAccount == n.name })
	case "":
		for _, by := range []func(*compile.Pod) bool{
			func(p *compile.Pod) bool { return p.OwnerName == n.name },
			byName,
			func(p *compile.Pod) bool { return strings.HasPrefix(p.Name, n.name+"-") },
		} {
			if found := match(by); len(found) > 0 {
				return found
			}
		}
		return nil
	}
	return match(func(p *compile.Pod) bool { return p.OwnerKind == n.kind && p.OwnerName == n.name })
}

// match is the pods of a namespace that satisfy by, in a stable order, those
// that stay and have an address first.
func (w *world) match(namespace string, by func(*compile.Pod) bool) []*compile.Pod {
	var found []*compile.Pod
	for _, p := range w.pods {
		if p.Namespace == namespace && by(p) {
			found = append(found, p)
		}
	}
	slices.SortFunc(found, func(a, b *compile.Pod) int {
		if a.Terminating != b.Terminating {
			if a.Terminating {
				return 1
			}
			return -1
		}
		return cmp.Or(cmp.Compare(min(1, len(b.Addresses)), min(1, len(a.Addresses))), strings.Compare(a.Name, b.Name), strings.Compare(a.UID, b.UID))
	})
	return found
}

// behind is the pods of a Service: by its selector, or by its slices when it
// has none.
func (w *world) behind(s *compile.Service) []*compile.Pod {
	if len(s.Selector) > 0 {
		return w.match(s.Namespace, func(p *compile.Pod) bool {
			for k, v := range s.Selector {
				if got, ok := p.Labels[k]; !ok || got != v {
					return false
				}
			}
			return true
		})
	}
	uids := make(map[string]bool)
	for _, slice := range w.facts.EndpointSlices {
		if slice.Namespace == s.Namespace && slice.Service == s.Name {
			for _, e := range slice.Endpoints {
				uids[e.PodUID] = true
			}
		}
	}
	return w.match(s.Namespace, func(p *compile.Pod) bool { return uids[p.UID] })
}

func (w *world) podEnd(asked string, pods []*compile.Pod) *end {
	p := pods[0]
	e := &end{asked: asked, pod: p, pods: pods}
	if p.HostNetwork {
		e.endpoint = policy.Endpoint{Host: true, HostOf: p.Node}
		if len(p.Addresses) > 0 {
			e.endpoint.Addr = p.Addresses[0]
		}
		return e
	}
	// By the pod, not by its address: a young one may have none yet.
	e.endpoint.Workload, _ = w.resources.Workload(p.UID)
	if len(p.Addresses) > 0 {
		e.endpoint.Addr = p.Addresses[0]
	}
	if wl := w.resources.Workloads[p.UID]; wl != nil {
		e.endpoint.Principal = wl.GetSpiffeId()
	}
	return e
}

// service resolves a Service's port to one of its pods and the port there.
func (w *world) service(asked string, n name, port string, protocol policy.Protocol) (*end, error) {
	i := slices.IndexFunc(w.facts.Services, func(s compile.Service) bool { return s.Namespace == n.namespace && s.Name == n.name })
	if i < 0 {
		return nil, run.Fail(run.ExitBadInput, fmt.Sprintf("see `kubectl -n %s get services`", n.namespace), "there is no Service %s/%s", n.namespace, n.name)
	}
	s := &w.facts.Services[i]
	sp, err := servicePort(s, port, protocol)
	if err != nil {
		return nil, err
	}
	behind := w.behind(s)
	if len(behind) == 0 {
		return nil, run.Fail(run.ExitBadInput, "its selector may match no running pod", "Service %s/%s has no pod behind it", s.Namespace, s.Name)
	}
	e := w.podEnd(asked, behind)
	e.service = s
	if e.port = targetPort(sp, e.pod); e.port == 0 {
		return nil, run.Fail(run.ExitBadInput, "name the port in the pod's containers, or give the Service a number",
			"targetPort %q of Service %s/%s is no port of pod %s", sp.TargetName, s.Namespace, s.Name, e.pod.Name)
	}
	return e, nil
}

func servicePort(s *compile.Service, port string, protocol policy.Protocol) (*compile.ServicePort, error) {
	var offered []string
	var of []*compile.ServicePort
	for i := range s.Ports {
		p := &s.Ports[i]
		offered = append(offered, strings.TrimSuffix(fmt.Sprintf("%d/%s %s", p.Port, p.Protocol, p.Name), " "))
		if p.Protocol != protocol {
			continue
		}
		if port != "" && (port == p.Name || port == strconv.Itoa(int(p.Port))) {
			return p, nil
		}
		of = append(of, p)
	}
	switch {
	case port == "" && len(of) == 1:
		return of[0], nil
	case port == "":
		return nil, run.Fail(run.ExitUsage, "it has "+strings.Join(offered, ", "), "which port of Service %s/%s? Give --port", s.Namespace, s.Name)
	}
	return nil, run.Fail(run.ExitBadInput, "it has "+strings.Join(offered, ", "), "Service %s/%s has no port %s of %s", s.Namespace, s.Name, port, protocol)
}

func targetPort(sp *compile.ServicePort, p *compile.Pod) uint16 {
	if sp.TargetName != "" {
		return namedPort(p, sp.TargetName, sp.Protocol)
	}
	if sp.TargetPort != 0 {
		return sp.TargetPort
	}
	return sp.Port
}

func namedPort(p *compile.Pod, name string, protocol policy.Protocol) uint16 {
	for _, port := range p.Ports {
		if port.Name == name && port.Protocol == protocol {
			return port.Port
		}
	}
	return 0
}
