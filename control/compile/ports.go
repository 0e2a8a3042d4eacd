package compile

import (
	"slices"

	hauberkv1 "github.com/hauberk-mesh/hauberk/api/gen/hauberk/v1"
	"github.com/hauberk-mesh/hauberk/policy"
)

// everyWorkload is the peer of every pod of the cluster.
func everyWorkload() policy.Peer { return policy.EveryWorkload() }

// isNamed reports whether a port is meant by its name.
func isNamed(m policy.PortMatch) bool { return m.Name != "" }

// splitNamedPorts makes an egress rule's named ports ports of workloads, which
// is all that they can be: its peers then select workloads, of which the kernel
// learns the ports. Port numbers stay with the peers as they are. Both rules
// have the rule's name.
func splitNamedPorts(r policy.Rule) []policy.Rule {
	if r.Action == policy.Log || !slices.ContainsFunc(r.Ports, isNamed) {
		return []policy.Rule{r}
	}
	named := r
	if named.AnyPeer || len(r.Peers) == 0 && r.Invalid != "" {
		named.AnyPeer, named.Peers = false, []policy.Peer{everyWorkload()}
	}
	named.Peers = slices.Clone(named.Peers)
	changed := r.AnyPeer
	for i := range named.Peers {
		if p := &named.Peers[i]; !p.SelectsWorkloads() {
			p.NamespaceSelector = everyWorkload().NamespaceSelector
			changed = true
		}
	}
	if !changed {
		return []policy.Rule{r}
	}
	numbers := r
	numbers.Ports, named.Ports = nil, nil
	for _, m := range r.Ports {
		if isNamed(m) {
			named.Ports = append(named.Ports, m)
		} else {
			numbers.Ports = append(numbers.Ports, m)
		}
	}
	if len(numbers.Ports) == 0 {
		return []policy.Rule{named}
	}
	return []policy.Rule{numbers, named}
}

func namedPorts(w *policy.Workload) []*hauberkv1.NamedPort {
	var ports []*hauberkv1.NamedPort
	for _, p := range w.NamedPorts {
		ports = append(ports, &hauberkv1.NamedPort{Name: p.Name, Protocol: uint32(p.Protocol), Port: uint32(p.Port)})
	}
	return ports
}
