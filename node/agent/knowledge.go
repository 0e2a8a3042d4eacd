package agent

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	hauberkv1 "github.com/hauberk-mesh/hauberk/api/gen/hauberk/v1"
	"github.com/hauberk-mesh/hauberk/internal/discovery"
	"github.com/hauberk-mesh/hauberk/internal/wire"
	"github.com/hauberk-mesh/hauberk/node/firewall"
	"github.com/hauberk-mesh/hauberk/node/tunnel"
	"github.com/hauberk-mesh/hauberk/policy"
)

// subscribed is what the agent asks for by "*".
var subscribed = []hauberkv1.ResourceType{
	hauberkv1.ResourceType_RESOURCE_TYPE_MESH,
	hauberkv1.ResourceType_RESOURCE_TYPE_WORKLOAD,
	hauberkv1.ResourceType_RESOURCE_TYPE_POLICY_SET,
	hauberkv1.ResourceType_RESOURCE_TYPE_PEER_SET,
	hauberkv1.ResourceType_RESOURCE_TYPE_TUNNEL_PEER,
}

// peerSetGrace is how long an ADD waits for the members of the peers that a
// pod's policy names, once the policy is known. Without them nothing is allowed
// that should not be, but the pod's first connections might fail.
const peerSetGrace = 3 * time.Second

// knowledge is what the control plane told, in memory only. It takes updates
// whole or not at all: one resource that can't be read rejects its update, and
// what was known stays.
type knowledge struct {
	mu        sync.Mutex
	mesh      *mesh
	workloads map[string]*workload // by UID
	policies  map[string]*policy.Set
	peerSets  map[string]peerSet // by resource name
	peers     map[string]tunnel.Peer
	complete  map[hauberkv1.ResourceType]bool
	changed   chan struct{} // closed at the next change
}

// mesh is the Mesh resource, read.
type mesh struct {
	trustDomain string
	roots       [][]byte
	podCIDRs    []netip.Prefix
	hosts       []netip.Addr
	nodes       map[netip.Addr]string     // the node that has an address
	ranges      map[string][]netip.Prefix // a node's pod ranges
	strict      bool
}

// workload is a Workload of this node, read.
type workload struct {
	*hauberkv1.Workload
	addresses []netip.Addr
	ports     []policy.NamedPort
	capture   firewall.Capture
}

type peerSet struct {
	id      string
	members []firewall.Member
}

func newKnowledge() *knowledge {
	return &knowledge{
		workloads: map[string]*workload{}, policies: map[string]*policy.Set{}, peerSets: map[string]peerSet{},
		peers: map[string]tunnel.Peer{}, complete: map[hauberkv1.ResourceType]bool{}, changed: make(chan struct{}),
	}
}

// Apply takes an update of the config stream.
func (k *knowledge) Apply(u discovery.Update) error {
	var commits []func()
	var errs []error
	for _, r := range u.Resources {
		commit, err := k.read(r)
		if err != nil {
			errs = append(errs, fmt.Errorf("resource %q: %w", r.GetName(), err))
			continue
		}
		commits = append(commits, commit)
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, commit := range commits {
		commit()
	}
	for _, name := range u.Removed {
		k.remove(u.Type, name)
	}
	if u.Complete {
		k.complete[u.Type] = true
	}
	close(k.changed)
	k.changed = make(chan struct{})
	return nil
}

// read returns what is to be done, under mu, to know r.
func (k *knowledge) read(r *hauberkv1.Resource) (func(), error) {
	name := r.GetName()
	switch body := r.GetBody().(type) {
	case *hauberkv1.Resource_Mesh:
		m, err := readMesh(body.Mesh)
		return func() { k.mesh = m }, err
	case *hauberkv1.Resource_Workload:
		w, err := readWorkload(body.Workload)
		if err == nil && name != "uid/"+w.GetUid() {
			// Also known by address; the agent did not ask for that.
			return func() {}, nil
		}
		return func() { k.workloads[w.GetUid()] = w }, err
	case *hauberkv1.Resource_PolicySet:
		set, err := wire.PolicySetFromProto(body.PolicySet)
		return func() { k.policies[name] = set }, err
	case *hauberkv1.Resource_PeerSet:
		members, err := readMembers(body.PeerSet)
		return func() { k.peerSets[name] = peerSet{id: body.PeerSet.GetId(), members: members} }, err
	case *hauberkv1.Resource_TunnelPeer:
		p, err := readTunnelPeer(body.TunnelPeer)
		return func() { k.peers[name] = p }, err
	}
	return nil, fmt.Errorf("it is of a kind that a node agent does not know")
}

func (k *knowledge) remove(t hauberkv1.ResourceType, name string) {
	switch t {
	case hauberkv1.ResourceType_RESOURCE_TYPE_WORKLOAD:
		if uid, ok := strings.CutPrefix(name, "uid/"); ok {
			delete(k.workloads, uid)
		}
	case hauberkv1.ResourceType_RESOURCE_TYPE_POLICY_SET:
		delete(k.policies, name)
	case hauberkv1.ResourceType_RESOURCE_TYPE_PEER_SET:
		delete(k.peerSets, name)
	case hauberkv1.ResourceType_RESOURCE_TYPE_TUNNEL_PEER:
		delete(k.peers, name)
	case hauberkv1.ResourceType_RESOURCE_TYPE_MESH:
		// What all need to know does not cease; the last word stands.
	}
}

// known is a consistent copy. Maps are copied, values are immutable.
type known struct {
	mesh      *mesh
	workloads map[string]*workload
	policies  map[string]*policy.Set
	peerSets  map[string][]firewall.Member // by id
	peers     []tunnel.Peer
	complete  bool // every type was told whole at least once
}

// snapshot returns what is known and a channel that is closed when that
// changes.
func (k *knowledge) snapshot() (known, <-chan struct{}) {
	k.mu.Lock()
	defer k.mu.Unlock()
	s := known{
		mesh: k.mesh, workloads: make(map[string]*workload, len(k.workloads)),
		policies: make(map[string]*policy.Set, len(k.policies)), peerSets: make(map[string][]firewall.Member, len(k.peerSets)),
		complete: k.mesh != nil,
	}
	for uid, w := range k.workloads {
		s.workloads[uid] = w
	}
	for name, p := range k.policies {
		s.policies[name] = p
	}
	for _, p := range k.peerSets {
		s.peerSets[p.id] = p.members
	}
	for _, name := range sortedKeys(k.peers) {
		s.peers = append(s.peers, k.peers[name])
	}
	for _, t := range subscribed {
		s.complete = s.complete && k.complete[t]
	}
	return s, k.changed
}

// Known answers for the CNI server: a workload counts as known with its policy.
func (k *knowledge) Known(uid string) (*hauberkv1.Workload, bool) {
	s, _ := k.snapshot()
	w, policySet, members := s.resolve(uid)
	if w == nil || !policySet || !members {
		return nil, false
	}
	return w.Workload, true
}

// Wait waits until a workload and its policy are known, and a little for the
// members of the peers that the policy names.
func (k *knowledge) Wait(ctx context.Context, uid string) (*hauberkv1.Workload, error) {
	var grace <-chan time.Time
	for {
		s, changed := k.snapshot()
		w, policySet, members := s.resolve(uid)
		if w != nil && policySet {
			if members {
				return w.Workload, nil
			}
			if grace == nil {
				timer := time.NewTimer(peerSetGrace)
				defer timer.Stop()
				grace = timer.C
			}
		}
		select {
		case <-changed:
		case <-grace:
			return w.Workload, nil
		case <-ctx.Done():
			switch {
			case !s.complete:
				return nil, errors.New("this node's configuration has not arrived")
			case w == nil:
				return nil, errors.New("it does not know the pod")
			}
			return nil, fmt.Errorf("it has not sent policy set %q", w.GetPolicySet())
		}
	}
}

// resolve says what is known of a pod: itself, its policy set, and all members
// of the peers that the set names.
func (s known) resolve(uid string) (w *workload, policySet, members bool) {
	w, ok := s.workloads[uid]
	if !ok {
		return nil, false, false
	}
	set, ok := s.policies[w.GetPolicySet()]
	if !ok {
		return w, false, false
	}
	for _, d := range []policy.Direction{policy.Ingress, policy.Egress} {
		for _, tier := range set.Tiers(d) {
			for _, p := range tier.Policies {
				for _, r := range p.Rules {
					for _, peer := range r.Peers {
						if _, ok := s.peerSets[peer.PeerSet]; peer.PeerSet != "" && !ok {
							return w, true, false
						}
					}
				}
			}
		}
	}
	return w, true, true
}

func readTunnelPeer(p *hauberkv1.TunnelPeer) (tunnel.Peer, error) {
	peer := tunnel.Peer{Node: p.GetNode()}
	if key := p.GetPublicKey(); len(key) > 0 {
		var err error
		if peer.PublicKey, err = wgtypes.NewKey(key); err != nil {
			return peer, fmt.Errorf("public key: %w", err)
		}
	}
	for _, e := range p.GetEndpoints() {
		endpoint, err := netip.ParseAddrPort(e)
		if err != nil {
			return peer, fmt.Errorf("endpoint: %w", err)
		}
		peer.Endpoints = append(peer.Endpoints, endpoint)
	}
	var err error
	peer.AllowedIPs, err = readPrefixes(p.GetAllowedIps())
	return peer, err
}
