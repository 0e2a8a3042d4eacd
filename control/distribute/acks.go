package distribute

import (
	"maps"
	"slices"
	"strings"
	"time"

	hauberkv1 "github.com/hauberk-mesh/hauberk/api/gen/hauberk/v1"
)

// Acks is what this replica's clients say is in force: pod UID to the id of the
// PolicySet.
type Acks struct {
	// Kernel is what node agents reported as programmed.
	Kernel map[string]string `json:"kernel,omitempty"`
	// Sidecar is what sidecars acknowledged.
	Sidecar map[string]string `json:"sidecar,omitempty"`
}

// Merge adds what another replica's clients say.
func (a *Acks) Merge(other Acks) {
	if a.Kernel == nil {
		a.Kernel = make(map[string]string)
	}
	if a.Sidecar == nil {
		a.Sidecar = make(map[string]string)
	}
	maps.Copy(a.Kernel, other.Kernel)
	maps.Copy(a.Sidecar, other.Sidecar)
}

// Acks is what the connected clients say now.
func (s *Server) Acks() Acks {
	acks := Acks{Kernel: make(map[string]string), Sidecar: make(map[string]string)}
	snap := s.snapshot.Load()
	for _, c := range s.connected() {
		c.mu.Lock()
		if node := c.audience.node; node != "" {
			for pod, set := range c.report.GetProgrammed() {
				// A node speaks for its own pods only.
				if snap != nil && snap.compiled.Workloads[pod].GetNode() == node {
					acks.Kernel[pod] = set
				}
			}
		} else if sub := c.types[hauberkv1.ResourceType_RESOURCE_TYPE_POLICY_SET]; sub != nil {
			// A sidecar has one; during a change of sets the newest acknowledged is
			// the one that its workload names.
			want := ""
			if snap != nil {
				want = snap.compiled.Workloads[c.audience.podUID].GetPolicySet()
			}
			for id := range sub.acked {
				if acks.Sidecar[c.audience.podUID] == "" || id == want {
					acks.Sidecar[c.audience.podUID] = id
				}
			}
		}
		c.mu.Unlock()
	}
	return acks
}

func (s *Server) connected() []*client {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Collect(maps.Keys(s.clients))
}

// ClientStatus is one client, for the admin page.
type ClientStatus struct {
	Kind      string            `json:"kind"`
	Name      string            `json:"name"`
	Version   string            `json:"version,omitempty"`
	Connected time.Time         `json:"connected"`
	NACKs     uint64            `json:"nacks"`
	LastNACK  string            `json:"last_nack,omitempty"`
	Acked     map[string]int    `json:"acked"`
	Pending   map[string]string `json:"pending,omitempty"`
}

// Clients is the connected clients, sorted by name.
func (s *Server) Clients() []ClientStatus {
	var all []ClientStatus
	for _, c := range s.connected() {
		c.mu.Lock()
		status := ClientStatus{
			Kind: c.audience.kind(), Name: c.audience.podUID + c.audience.node, Version: c.version,
			Connected: c.since, NACKs: c.nacks, LastNACK: clip(c.lastNACK),
			Acked: make(map[string]int), Pending: make(map[string]string),
		}
		for t, sub := range c.types {
			status.Acked[t.String()] = len(sub.acked)
			if sub.pending != nil {
				status.Pending[t.String()] = sub.pending.nonce
			}
		}
		c.mu.Unlock()
		all = append(all, status)
	}
	slices.SortFunc(all, func(a, b ClientStatus) int { return strings.Compare(a.Kind+a.Name, b.Kind+b.Name) })
	return all
}
