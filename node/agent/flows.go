package agent

import (
	"context"
	"net/netip"
	"slices"

	"github.com/hauberk-mesh/hauberk/internal/flow"
	"github.com/hauberk-mesh/hauberk/node/cniserver"
)

// FlowsStatus is how the kernel's drops are told.
type FlowsStatus struct {
	Told uint64 `json:"told"`
	// Lost is how many the kernel told of that could not be taken in time.
	Lost    uint64 `json:"lost"`
	Problem string `json:"problem,omitempty"`
}

// tellFlows hears of drops until ctx ends; then followers are let go, so that
// they do not hold up the end.
func (a *Agent) tellFlows(ctx context.Context) error {
	defer a.ring.Close()
	return a.flows.Run(ctx)
}

// flowsProblem is why drops of the kernel are not told; empty when they are.
func (a *Agent) flowsProblem() string {
	if p := a.firewall.LogProblem(); p != "" {
		return p
	}
	return a.flows.Problem()
}

// who names the end of a flow that has an address: a pod of this node, or a
// node. Pods of other nodes are not the agent's to know.
func (a *Agent) who(addr netip.Addr) flow.Endpoint {
	for _, at := range a.attachments.List() {
		if slices.Contains(at.Addresses, addr) {
			return a.know.who(addr, &at)
		}
	}
	return a.know.who(addr, nil)
}

// who is what is known of an address; at is the pod that holds it, if CNI
// brought one: what the control plane says of addresses may be older.
func (k *knowledge) who(addr netip.Addr, at *cniserver.Attachment) flow.Endpoint {
	k.mu.Lock()
	defer k.mu.Unlock()
	if at != nil {
		e := flow.Endpoint{Namespace: at.Namespace, Pod: at.Name}
		if w, ok := k.workloads[at.UID]; ok {
			e.Workload = w.GetWorkloadName()
		}
		return e
	}
	if k.mesh != nil {
		if node, ok := k.mesh.nodes[addr]; ok {
			return flow.Endpoint{Node: node}
		}
	}
	for _, w := range k.workloads {
		if !w.GetHostNetwork() && !w.GetTerminating() && slices.Contains(w.addresses, addr) {
			return flow.Endpoint{Namespace: w.GetNamespace(), Pod: w.GetName(), Workload: w.GetWorkloadName()}
		}
	}
	return flow.Endpoint{}
}
