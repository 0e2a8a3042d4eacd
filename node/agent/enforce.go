package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/hauberk-mesh/hauberk/node/cniserver"
	"github.com/hauberk-mesh/hauberk/node/firewall"
	"github.com/hauberk-mesh/hauberk/node/tunnel"
)

// Firewall is the host side's policy; see node/firewall.
type Firewall interface {
	Free(ctx context.Context, addresses ...netip.Addr) error
	Restore(pods ...firewall.Pod)
	Apply(ctx context.Context, s firewall.State) error
	AddPod(ctx context.Context, p firewall.Pod) error
	RemovePod(ctx context.Context, containerID string) error
}

// Tunnel is the node's end of the tunnels; see node/tunnel.
type Tunnel interface {
	Apply(ctx context.Context, s tunnel.State) error
}

// enforcer brings what is known into the kernel. Until the node's whole
// configuration was told it leaves the kernel alone: the rules of the agent before
// this one hold, and half a configuration would cut off pods that it does not
// speak of yet. Only an address that a bootstrap pod inherits is freed.
type enforcer struct {
	log         *slog.Logger
	node        string
	know        *knowledge
	attachments *cniserver.Attachments
	firewall    Firewall
	tunnel      Tunnel

	mu sync.Mutex
	// synced is closed when the kernel has had the first whole configuration.
	synced   chan struct{}
	isSynced bool
	applied  map[string]string // pod UID to the policy set that the kernel has
}

func newEnforcer(log *slog.Logger, node string, k *knowledge, a *cniserver.Attachments, f Firewall, t Tunnel) *enforcer {
	return &enforcer{log: log, node: node, know: k, attachments: a, firewall: f, tunnel: t, synced: make(chan struct{}), applied: map[string]string{}}
}

// AddPod puts an attached pod's policy in place, for the CNI server. A
// bootstrap pod before the first whole configuration is let through: it may be
// the control plane that the configuration is to come from.
func (e *enforcer) AddPod(ctx context.Context, p cniserver.Pod) error {
	if !p.Bootstrap {
		select {
		case <-e.synced:
		case <-ctx.Done():
			return status.Error(codes.FailedPrecondition, "this node's configuration has not arrived from the control plane yet")
		}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.isSynced {
		e.log.Info("bootstrap pod starts before the node's configuration has arrived", "namespace", p.Namespace, "pod", p.Name)
		return e.firewall.Free(ctx, p.Addresses...)
	}
	// The members of the pod's peers may have come with it.
	s, _ := e.know.snapshot()
	if err := e.apply(ctx, s); err != nil {
		return err
	}
	pod := attachedPod(p.Attachment, s)
	if err := e.firewall.AddPod(ctx, pod); err != nil {
		return err
	}
	if w, ok := s.workloads[pod.UID]; ok && pod.PolicySet != nil {
		e.applied[pod.UID] = w.GetPolicySet()
	}
	return nil
}

// RemovePod forgets an attached pod, for the CNI server.
func (e *enforcer) RemovePod(ctx context.Context, containerID string) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.isSynced {
		// The firewall has not heard of any pod; the first whole configuration
		// leaves this one out, because its attachment is gone by then.
		return nil
	}
	return e.firewall.RemovePod(ctx, containerID)
}

// sync brings the kernel to what is known; what is not whole yet is left.
func (e *enforcer) sync(ctx context.Context) (known, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	s, _ := e.know.snapshot()
	if !s.complete {
		return s, nil
	}
	var errs []error
	if !e.isSynced {
		var pods []firewall.Pod
		for _, at := range e.attachments.List() {
			pods = append(pods, attachedPod(at, s))
		}
		e.firewall.Restore(pods...)
	}
	if err := e.apply(ctx, s); err != nil {
		errs = append(errs, err)
	} else if !e.isSynced {
		e.isSynced = true
		close(e.synced)
		e.log.Info("the node's whole configuration is in the kernel", "pods", len(s.workloads))
	}
	if err := e.tunnel.Apply(ctx, tunnelState(s, e.node)); err != nil {
		errs = append(errs, fmt.Errorf("program tunnels: %w", err))
	}
	return s, errors.Join(errs...)
}

// apply makes what is known the firewall's state; mu is held.
func (e *enforcer) apply(ctx context.Context, s known) error {
	state := firewallState(s, e.attachments.List())
	if err := e.firewall.Apply(ctx, state); err != nil {
		return err
	}
	applied := make(map[string]string, len(state.Pods))
	for _, p := range state.Pods {
		if p.PolicySet != nil {
			applied[p.UID] = s.workloads[p.UID].GetPolicySet()
		}
	}
	e.applied = applied
	return nil
}

// programmed is a copy of which pod has which policy set in the kernel.
func (e *enforcer) programmed() map[string]string {
	e.mu.Lock()
	defer e.mu.Unlock()
	out := make(map[string]string, len(e.applied))
	for uid, set := range e.applied {
		out[uid] = set
	}
	return out
}

func (e *enforcer) ready() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.isSynced
}

// firewallState is all that is known of this node's pods. What is really
// captured is what CNI programmed, whatever annotations say by now; a pod that
// CNI did not bring is not captured at all.
func firewallState(s known, attachments []cniserver.Attachment) firewall.State {
	attached := make(map[string]cniserver.Attachment, len(attachments))
	for _, at := range attachments {
		// Of two sandboxes of one pod the one that came to be counts.
		if before, ok := attached[at.UID]; !ok || at.Complete || !before.Complete {
			attached[at.UID] = at
		}
	}
	state := firewall.State{PeerSets: s.peerSets, Hosts: s.mesh.hosts}
	for _, uid := range sortedKeys(s.workloads) {
		w := s.workloads[uid]
		if w.GetHostNetwork() {
			continue // it has the node's addresses, which are not a pod's to filter
		}
		p := firewall.Pod{
			UID: uid, Namespace: w.GetNamespace(), Name: w.GetName(), Addresses: w.addresses,
			NamedPorts: w.ports, Bootstrap: w.GetBootstrap(), PolicySet: s.policies[w.GetPolicySet()],
		}
		if at, ok := attached[uid]; ok {
			p.Bootstrap = p.Bootstrap || at.Bootstrap
			if at.Redirect != nil {
				p.Meshed, p.Capture = true, captureOf(at.Redirect)
			}
		}
		state.Pods = append(state.Pods, p)
	}
	return state
}

// attachedPod is one pod that CNI brought, with what is known of it.
func attachedPod(at cniserver.Attachment, s known) firewall.Pod {
	p := firewall.Pod{
		UID: at.UID, Namespace: at.Namespace, Name: at.Name, ContainerID: at.ContainerID,
		HostInterface: at.HostInterface, Addresses: at.Addresses, Bootstrap: at.Bootstrap,
	}
	if at.Redirect != nil {
		p.Meshed, p.Capture = true, captureOf(at.Redirect)
	}
	if w, ok := s.workloads[at.UID]; ok {
		p.NamedPorts, p.PolicySet = w.ports, s.policies[w.GetPolicySet()]
		p.Bootstrap = p.Bootstrap || w.GetBootstrap()
	}
	return p
}

func tunnelState(s known, node string) tunnel.State {
	return tunnel.State{Enabled: s.mesh.strict, Strict: s.mesh.strict, Peers: s.peers, PodCIDRs: s.mesh.podCIDRs, Local: s.mesh.ranges[node]}
}
