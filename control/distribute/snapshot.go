// Package distribute serves the config stream: it decides by a client's
// certificate what it may see, sends it what changed, and keeps account of what
// it acknowledged. A slow client never holds up the others: each has a
// goroutine of its own that reads the newest snapshot when it is able to.
//
// It does not own what the resources are (control/compile) or what an
// acknowledgement means to a user (control/status).
package distribute

import (
	"crypto/sha256"
	"encoding/hex"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"google.golang.org/protobuf/proto"

	hauberkv1 "github.com/hauberk-mesh/hauberk/api/gen/hauberk/v1"
	"github.com/hauberk-mesh/hauberk/control/compile"
)

const meshName = "mesh"

// maxNamed bounds what a snapshot keeps of what clients asked for by name.
const maxNamed = 1 << 16

// resource is a named resource whose version is a digest of its body.
type resource struct {
	name    string
	version string
	proto   *hauberkv1.Resource
}

// snapshot is everything that can be sent, hashed once for all clients. What
// nobody may ask for is never made: other pods' public faces and destinations
// are made when the first client asks, and kept.
type snapshot struct {
	compiled    *compile.Resources
	mesh        *resource
	workloads   map[string]*resource // by "uid/<uid>", with what only the pod and its node see
	policySets  map[string]*resource
	peerSets    map[string]*resource
	tunnelPeers map[string]*resource
	byNode      map[string][]string // node to UIDs, sorted

	named sync.Map // type and name to *resource; at most maxNamed
	kept  atomic.Int64
}

// newSnapshot hashes compiled resources; those that are as in previous, which
// may be nil, are taken from there.
func newSnapshot(compiled *compile.Resources, previous *snapshot) *snapshot {
	if previous == nil {
		previous = &snapshot{}
	}
	s := &snapshot{
		compiled:    compiled,
		workloads:   make(map[string]*resource, len(compiled.Workloads)),
		policySets:  make(map[string]*resource, len(compiled.PolicySets)),
		peerSets:    make(map[string]*resource, len(compiled.PeerSets)),
		tunnelPeers: make(map[string]*resource, len(compiled.TunnelPeers)),
		byNode:      make(map[string][]string),
	}
	s.mesh = reuse(newResource(meshName, compiled.Mesh), previous.mesh)
	for uid, w := range compiled.Workloads {
		name := "uid/" + uid
		s.workloads[name] = reuse(newResource(name, w), previous.workloads[name])
		if w.GetNode() != "" {
			s.byNode[w.GetNode()] = append(s.byNode[w.GetNode()], uid)
		}
	}
	for id, set := range compiled.PolicySets {
		// The id is a digest of the content: equal id, equal resource.
		if old := previous.policySets[id]; old != nil {
			s.policySets[id] = old
			continue
		}
		s.policySets[id] = newResource(id, set.Proto)
	}
	for id, set := range compiled.PeerSets {
		s.peerSets[id] = reuse(newResource(id, set), previous.peerSets[id])
	}
	for node, peer := range compiled.TunnelPeers {
		s.tunnelPeers[node] = reuse(newResource(node, peer), previous.tunnelPeers[node])
	}
	for _, uids := range s.byNode {
		slices.Sort(uids)
	}
	return s
}

func reuse(r, old *resource) *resource {
	if old != nil && old.version == r.version {
		return old
	}
	return r
}

func newResource(name string, body proto.Message) *resource {
	r := &hauberkv1.Resource{Name: name}
	switch b := body.(type) {
	case *hauberkv1.Mesh:
		r.Body = &hauberkv1.Resource_Mesh{Mesh: b}
	case *hauberkv1.Workload:
		r.Body = &hauberkv1.Resource_Workload{Workload: b}
	case *hauberkv1.PolicySet:
		r.Body = &hauberkv1.Resource_PolicySet{PolicySet: b}
	case *hauberkv1.PeerSet:
		r.Body = &hauberkv1.Resource_PeerSet{PeerSet: b}
	case *hauberkv1.Destination:
		r.Body = &hauberkv1.Resource_Destination{Destination: b}
	case *hauberkv1.TunnelPeer:
		r.Body = &hauberkv1.Resource_TunnelPeer{TunnelPeer: b}
	}
	// Marshalling can't fail for these messages, but for invalid UTF-8, which
	// JSON from the API server can't hold; then the version would say so.
	data, err := proto.MarshalOptions{Deterministic: true}.Marshal(body)
	if err != nil {
		data = []byte(err.Error())
	}
	sum := sha256.Sum256(data)
	r.Version = hex.EncodeToString(sum[:12])
	return &resource{name: name, version: r.Version, proto: r}
}

// lookup is a resource by name as anybody may see it; nil when there is none.
func (s *snapshot) lookup(t hauberkv1.ResourceType, name string) *resource {
	key := t.String() + "\x00" + name
	if r, ok := s.named.Load(key); ok {
		return r.(*resource)
	}
	var r *resource
	switch t {
	case hauberkv1.ResourceType_RESOURCE_TYPE_WORKLOAD:
		if w := s.workload(name); w != nil {
			r = newResource(name, compile.Public(w))
		}
	case hauberkv1.ResourceType_RESOURCE_TYPE_DESTINATION:
		if d, ok := s.compiled.Destination(name); ok {
			r = newResource(name, d)
		}
	}
	if r == nil {
		// Names that do not exist are the client's to choose and are not kept.
		return nil
	}
	// Every port of every pod, and every spelling of an address, is a name that
	// a client may choose: beyond what the honest need they are made each time.
	if s.kept.Add(1) <= maxNamed {
		s.named.Store(key, r)
	}
	return r
}

// workload finds "uid/<pod uid>" and "ip/<address>".
func (s *snapshot) workload(name string) *hauberkv1.Workload {
	if uid, ok := strings.CutPrefix(name, "uid/"); ok {
		return s.compiled.Workloads[uid]
	}
	if text, ok := strings.CutPrefix(name, "ip/"); ok {
		if addr, err := netip.ParseAddr(text); err == nil {
			if w, ok := s.compiled.WorkloadAt(addr); ok {
				return w
			}
		}
	}
	return nil
}
