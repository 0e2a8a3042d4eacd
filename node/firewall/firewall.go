// Package firewall renders policy into nftables on the host side of a node's
// pods and keeps the kernel in step with it. It owns the table "inet hauberk"
// and nothing else; other people's tables are never touched. It does not own
// what the policy is (policy), which pods exist (node/agent) or the tunnel.
//
// What the kernel enforces is the L4 projection of policy.Set. For a pod with
// a sidecar, captured TCP is dropped when no completion of the flow is allowed
// and otherwise left to the sidecar; everything else, and all traffic of a pod
// without a sidecar, passes only when every completion is allowed.
//
// A change of policy holds for flows that exist, because every packet is
// judged, replies too. Run forgets what such flows leave in the kernel's connection
// tracking, and mends the table when somebody else changed it.
//
// Rules outlive the process: nothing is removed when it ends, and the first
// transaction of the next one replaces the table whole, atomically. After that
// each change is one transaction of the differences.
package firewall

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"

	"sigs.k8s.io/knftables"

	"github.com/hauberk-mesh/hauberk/internal/names"
	"github.com/hauberk-mesh/hauberk/policy"
)

// Pod is one pod of this node and its policy.
type Pod struct {
	UID, Namespace, Name string
	// ContainerID is the CNI container (sandbox) that the pod was attached with;
	// empty for a pod that is known from the control plane only, because it
	// started before the mesh came to the node.
	ContainerID string
	// HostInterface is the host's end of the pod's link; empty when the primary
	// CNI plugin names none. Only its own addresses may come from it.
	HostInterface string
	Addresses     []netip.Addr
	// Meshed says that captured TCP reaches a sidecar, which decides the rest.
	Meshed bool
	// Captured is what the sidecar does not see; see Capture.
	Capture Capture
	// NamedPorts resolves the names of its own ports.
	NamedPorts []policy.NamedPort
	// Bootstrap says that the pod may run before its policy is known.
	Bootstrap bool
	// PolicySet is the pod's policy. Nil denies everything unless Bootstrap.
	PolicySet *policy.Set
}

// Capture is what redirection leaves out: TCP that no sidecar sees, which the
// kernel must therefore decide alone.
type Capture struct {
	ExcludeInboundPorts  []uint16
	IncludeInboundPorts  []uint16 // not empty: only these are captured
	ExcludeOutboundPorts []uint16
	ExcludeOutboundCIDRs []netip.Prefix
}

// Member is a workload of a PeerSet.
type Member struct {
	Addresses  []netip.Addr
	NamedPorts []policy.NamedPort
}

// State is all that the firewall needs to know.
type State struct {
	// Pods of this node, by UID.
	Pods []Pod
	// PeerSets by id. A set that a policy names and that is missing here has no
	// known members: Allow matches none, Deny matches all. The entities cluster and
	// world need the set of policy.EveryWorkload.
	PeerSets map[string][]Member
	// Hosts is the addresses of all nodes.
	Hosts []netip.Addr
}

// Options configures a Firewall.
type Options struct {
	Log *slog.Logger
	// Control is the control plane's address as pods dial it, before any
	// translation. It stays reachable for them under every policy: a sidecar that
	// is cut off from it would never hear that the policy changed.
	Control netip.AddrPort
	// NFT runs transactions; nil means the nft binary on the table "inet hauberk".
	NFT knftables.Interface
	// Kernel is the rest of what is asked of the kernel; nil means that of this
	// process's network namespace.
	Kernel Kernel
}

// Firewall keeps the node's table in step with State and attached pods. It is
// safe for concurrent use; each method returns when the kernel is programmed.
type Firewall struct {
	log    *slog.Logger
	nft    knftables.Interface
	kernel Kernel

	mu sync.Mutex
	// attached is the pods that CNI ADD brought, by container id. They take
	// precedence over State for their addresses and link.
	attached map[string]Pod
	state    State
	synced   bool   // state was applied at least once
	current  *table // what the kernel has; nil when that is not known
	renderer renderer

	// owned is the pods' addresses in the kernel, departed those that no pod has
	// any more, and stale that flows may have to be forgotten.
	owned, departed map[netip.Addr]bool
	stale           bool
	// checked is the generation of the kernel's rules at which the table was found
	// to be as it should be, which is shape for the table shapeOf.
	checked uint32
	shape   Contents
	shapeOf *table

	drops      atomic.Pointer[map[string]Drop]
	logProblem atomic.Pointer[string]
}

// New is a Firewall that has not touched the kernel yet.
func New(o Options) (*Firewall, error) {
	if o.Log == nil {
		return nil, errors.New("firewall: no logger")
	}
	if o.NFT == nil {
		nft, err := knftables.New(knftables.InetFamily, names.PolicyTable)
		if err != nil {
			return nil, fmt.Errorf("nftables is not usable: %w (the node image must carry nft, and the kernel nf_tables)", err)
		}
		o.NFT = nft
	}
	if o.Kernel == nil {
		o.Kernel = hostKernel{}
	}
	return &Firewall{
		log: o.Log, nft: o.NFT, kernel: o.Kernel, renderer: renderer{control: o.Control}, attached: make(map[string]Pod),
		departed: make(map[netip.Addr]bool),
	}, nil
}

// AddPod puts an attached pod's policy in place. When it returns without an
// error the kernel enforces it.
func (f *Firewall) AddPod(ctx context.Context, p Pod) error {
	if p.ContainerID == "" {
		return fmt.Errorf("pod %s/%s has no container id", p.Namespace, p.Name)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	before, had := f.attached[p.ContainerID]
	f.attached[p.ContainerID] = p
	if err := f.sync(ctx); err != nil {
		if had {
			f.attached[p.ContainerID] = before
		} else {
			delete(f.attached, p.ContainerID)
		}
		return fmt.Errorf("program policy of pod %s/%s: %w", p.Namespace, p.Name, err)
	}
	return nil
}

// Restore takes over attached pods from before a restart, without touching the
// kernel: the first Apply or AddPod programs them.
func (f *Firewall) Restore(pods ...Pod) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, p := range pods {
		f.attached[p.ContainerID] = p
	}
}

// RemovePod forgets an attached pod. It succeeds for one that is not known.
func (f *Firewall) RemovePod(ctx context.Context, containerID string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	p, ok := f.attached[containerID]
	if !ok {
		return nil
	}
	delete(f.attached, containerID)
	if err := f.sync(ctx); err != nil {
		f.attached[containerID] = p
		return fmt.Errorf("remove policy of pod %s/%s: %w", p.Namespace, p.Name, err)
	}
	return nil
}

// Apply makes s the desired state.
func (f *Firewall) Apply(ctx context.Context, s State) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	before, synced := f.state, f.synced
	f.state, f.synced = s, true
	if err := f.sync(ctx); err != nil {
		f.state, f.synced = before, synced
		return fmt.Errorf("program policy: %w", err)
	}
	return nil
}

// pods merges what CNI attached with what the control plane knows. Policy,
// labels and ports of a pod come from the newest State; link and addresses
// from its attachment. An address that an attached pod holds belongs to it:
// the control plane may not have heard yet that its former owner is gone.
func (f *Firewall) pods() []Pod {
	known := make(map[string]Pod, len(f.state.Pods))
	for _, p := range f.state.Pods {
		known[p.UID] = p
	}
	owned := make(map[netip.Addr]bool)
	seen := make(map[string]bool)
	var out []Pod
	for _, id := range sortedKeys(f.attached) {
		a := f.attached[id]
		if k, ok := known[a.UID]; ok {
			k.ContainerID, k.HostInterface, k.Addresses = a.ContainerID, a.HostInterface, a.Addresses
			k.Bootstrap = k.Bootstrap || a.Bootstrap
			a = k
		}
		for _, addr := range a.Addresses {
			owned[addr.Unmap()] = true
		}
		seen[a.UID] = true
		out = append(out, a)
	}
	for _, p := range f.state.Pods {
		if seen[p.UID] {
			continue
		}
		var addrs []netip.Addr
		for _, a := range p.Addresses {
			if !owned[a.Unmap()] {
				addrs = append(addrs, a)
			}
		}
		if len(addrs) > 0 {
			p.Addresses = addrs
			out = append(out, p)
		}
	}
	return out
}

// sync brings the kernel from f.current to what is desired now, in one
// transaction. When the kernel refuses a change, because it does not have what
// it should, the table is replaced whole.
func (f *Firewall) sync(ctx context.Context) error {
	if f.current == nil && !f.renderer.asked {
		f.renderer.logs, f.renderer.asked = f.canLog(ctx), true
	}
	desired := f.renderer.render(f.pods(), &f.state)
	f.publish(desired)
	if f.current != nil {
		tx := f.nft.NewTransaction()
		desired.update(tx, f.current)
		if tx.NumOperations() == 0 {
			f.became(desired, false)
			return nil
		}
		err := f.nft.Run(ctx, tx)
		if err == nil {
			f.log.Debug("kernel policy changed", "operations", tx.NumOperations())
			f.became(desired, true)
			return nil
		}
		f.log.Warn("the kernel does not have the policy that it was given; replacing all of it", "error", err)
		f.current = nil
	}
	tx := f.nft.NewTransaction()
	desired.create(tx)
	if err := f.nft.Run(ctx, tx); err != nil {
		return err
	}
	f.log.Debug("kernel policy programmed", "operations", tx.NumOperations(), "chains", len(desired.chains), "sets", len(desired.sets))
	f.became(desired, true)
	return nil
}
