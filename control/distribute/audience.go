package distribute

import (
	"context"
	"errors"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	hauberkv1 "github.com/hauberk-mesh/hauberk/api/gen/hauberk/v1"
	"github.com/hauberk-mesh/hauberk/internal/identity"
)

// audience is who a client is, and so what it may see: a pod's sidecar, or a
// node's agent when node is set.
type audience struct {
	podUID string
	node   string
}

// PeerFrom is the identity that a call's certificate proved.
func PeerFrom(ctx context.Context) (identity.Peer, error) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return identity.Peer{}, errors.New("call without a connection")
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok {
		return identity.Peer{}, errors.New("connection is not TLS")
	}
	return identity.PeerOf(info.State)
}

// audienceOf decides who a caller is. Errors are gRPC statuses that tell the
// caller what is wrong.
func audienceOf(ctx context.Context, td spiffeid.TrustDomain, snap *snapshot) (audience, error) {
	p, err := PeerFrom(ctx)
	if err != nil {
		return audience{}, status.Errorf(codes.Unauthenticated, "discovery needs a client certificate: %s", err)
	}
	if p.ID == identity.NodeID(td) {
		if p.Node == "" {
			return audience{}, status.Errorf(codes.PermissionDenied, "certificate of %s names no node", p.ID)
		}
		return audience{node: p.Node}, nil
	}
	namespace, serviceAccount, ok := p.ServiceAccount()
	if !ok || p.PodUID == "" || p.ID.TrustDomain() != td {
		return audience{}, status.Errorf(codes.PermissionDenied, "%s is neither a pod's nor a node agent's identity", p)
	}
	w := snap.compiled.Workloads[p.PodUID]
	if w == nil {
		// This replica may not have seen it yet; the client tries again.
		return audience{}, status.Errorf(codes.Unavailable, "pod %s is not known here", p.PodUID)
	}
	if w.GetNamespace() != namespace || w.GetServiceAccount() != serviceAccount {
		return audience{}, status.Errorf(codes.PermissionDenied, "pod %s is not of %s", p.PodUID, p.ID)
	}
	return audience{podUID: p.PodUID}, nil
}

// all is what the client gets by "*", by name.
func (a audience) all(s *snapshot, t hauberkv1.ResourceType) map[string]*resource {
	found := make(map[string]*resource)
	add := func(r *resource) {
		if r != nil {
			found[r.name] = r
		}
	}
	uids := []string{a.podUID}
	if a.node != "" {
		uids = s.byNode[a.node]
	}
	switch t {
	case hauberkv1.ResourceType_RESOURCE_TYPE_MESH:
		add(s.mesh)
	case hauberkv1.ResourceType_RESOURCE_TYPE_WORKLOAD:
		for _, uid := range uids {
			add(s.workloads["uid/"+uid])
		}
	case hauberkv1.ResourceType_RESOURCE_TYPE_POLICY_SET:
		for _, uid := range uids {
			add(s.policySets[s.compiled.Workloads[uid].GetPolicySet()])
		}
	case hauberkv1.ResourceType_RESOURCE_TYPE_PEER_SET:
		if a.node == "" {
			break
		}
		for _, uid := range uids {
			set := s.compiled.PolicySets[s.compiled.Workloads[uid].GetPolicySet()]
			if set == nil {
				continue
			}
			for _, id := range set.PeerSets {
				add(s.peerSets[id])
			}
		}
	case hauberkv1.ResourceType_RESOURCE_TYPE_TUNNEL_PEER:
		if a.node == "" {
			break
		}
		for node, r := range s.tunnelPeers {
			if node != a.node {
				add(r)
			}
		}
	}
	return found
}

// byName is what the client gets by a name; nil when there is nothing of that
// name for it.
func (a audience) byName(s *snapshot, t hauberkv1.ResourceType, name string) *resource {
	if t == hauberkv1.ResourceType_RESOURCE_TYPE_WORKLOAD {
		if w := s.workload(name); w != nil && (w.GetUid() == a.podUID || a.node != "" && w.GetNode() == a.node) {
			own := s.workloads["uid/"+w.GetUid()]
			if own != nil && own.name != name {
				return newResource(name, w) // by its address
			}
			return own
		}
	}
	return s.lookup(t, name)
}
