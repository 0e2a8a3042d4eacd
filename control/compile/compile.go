package compile

import (
	"net/netip"
	"slices"

	hauberkv1 "github.com/hauberk-mesh/hauberk/api/gen/hauberk/v1"
	"github.com/hauberk-mesh/hauberk/internal/names"
	"github.com/hauberk-mesh/hauberk/policy"
)

// Compile turns facts into resources. It never fails: what can't be resolved
// is in the resources' reports and denies.
func Compile(facts Facts) *Resources {
	c := &compiler{
		facts:      facts,
		namespaces: make(map[string]*Namespace, len(facts.Namespaces)),
		accounts:   make(map[accountKey]*ServiceAccount, len(facts.ServiceAccounts)),
		nodes:      make(map[string]*Node, len(facts.Nodes)),
		zones:      make(map[string]string, len(facts.Nodes)),
		out: &Resources{
			PolicySets:  make(map[string]*PolicySet),
			PeerSets:    make(map[string]*hauberkv1.PeerSet),
			Workloads:   make(map[string]*hauberkv1.Workload, len(facts.Pods)),
			TunnelPeers: make(map[string]*hauberkv1.TunnelPeer),
			pods:        make(map[string]*podEntry, len(facts.Pods)),
			byAddress:   make(map[netip.Addr]*podEntry, len(facts.Pods)),
			services:    make(map[netip.Addr][]*serviceEntry),
			external:    make(map[netip.Addr][]*serviceEntry),
			hosts:       make(map[netip.Addr]string),
		},
	}
	if c.facts.Mesh.TrustDomain == "" {
		c.facts.Mesh.TrustDomain = names.TrustDomain
	}
	c.index()
	c.policies()
	c.workloads()
	c.peerSets()
	c.services()
	c.mesh()
	c.tunnels()
	c.others()
	return c.out
}

// others reports on what policies refer to.
func (c *compiler) others() {
	add := func(ref policy.Ref, invalid string) {
		report := PolicyReport{Ref: ref}
		if invalid != "" {
			report.Invalid = []string{invalid}
		}
		c.out.Others = append(c.out.Others, report)
	}
	for _, s := range c.sets {
		add(s.Ref, s.Invalid)
	}
	for _, t := range c.sortedTiers() {
		if t.Ref.Name != "" {
			add(t.Ref, t.Invalid)
		}
	}
}

// compiler is the state of one compilation.
type compiler struct {
	facts      Facts
	namespaces map[string]*Namespace
	accounts   map[accountKey]*ServiceAccount
	nodes      map[string]*Node
	zones      map[string]string
	// pods are those that have not completed, sorted by namespace, name and UID.
	pods []*podEntry
	// peers by digest, of every compiled rule.
	peers map[string]*policy.Peer
	// named are the digests of peers of which named ports are needed.
	named map[string]bool
	// sets sorted by kind, namespace and name.
	sets    []*NetworkSet
	bySlice map[accountKey][]*EndpointSlice // see slicesOf
	out     *Resources
}

type accountKey struct{ namespace, name string }

// podEntry is a pod with what compilation found out about it.
type podEntry struct {
	fact      *Pod
	workload  *policy.Workload
	set       *PolicySet
	protocols map[uint16]hauberkv1.AppProtocol
	zone      string
	spiffeID  string
	protoName string
}

func (c *compiler) index() {
	for i := range c.facts.Namespaces {
		c.namespaces[c.facts.Namespaces[i].Name] = &c.facts.Namespaces[i]
	}
	for i := range c.facts.ServiceAccounts {
		a := &c.facts.ServiceAccounts[i]
		c.accounts[accountKey{a.Namespace, a.Name}] = a
	}
	for i := range c.facts.Nodes {
		n := &c.facts.Nodes[i]
		c.nodes[n.Name] = n
		c.zones[n.Name] = n.Zone
		for _, a := range slices.Concat(n.Internal, n.External) {
			c.out.hosts[a.Unmap()] = n.Name
		}
	}
	for i := range c.facts.NetworkSets {
		c.sets = append(c.sets, &c.facts.NetworkSets[i])
	}
	slices.SortFunc(c.sets, func(a, b *NetworkSet) int {
		return compareStrings(a.Ref.Kind, b.Ref.Kind, a.Ref.Namespace, b.Ref.Namespace, a.Ref.Name, b.Ref.Name)
	})
	for i := range c.facts.Pods {
		p := &c.facts.Pods[i]
		if p.Completed || p.UID == "" {
			continue
		}
		entry := &podEntry{fact: p, zone: c.zones[p.Node], protoName: "uid/" + p.UID}
		entry.workload = &policy.Workload{
			UID: p.UID, Namespace: p.Namespace, Name: p.Name,
			ServiceAccount: p.ServiceAccount, Node: p.Node, Labels: p.Labels,
		}
		for _, port := range p.Ports {
			if port.Name != "" {
				entry.workload.NamedPorts = append(entry.workload.NamedPorts, port)
			}
		}
		if ns := c.namespaces[p.Namespace]; ns != nil {
			entry.workload.NamespaceLabels = ns.Labels
		}
		if a := c.accounts[accountKey{p.Namespace, p.ServiceAccount}]; a != nil {
			entry.workload.ServiceAccountLabels = a.Labels
		}
		if p.Meshed {
			entry.spiffeID = SPIFFEID(c.facts.Mesh.TrustDomain, p.Namespace, p.ServiceAccount)
		}
		c.pods = append(c.pods, entry)
		c.out.pods[p.UID] = entry
		if p.HostNetwork {
			continue
		}
		for _, a := range p.Addresses {
			a = a.Unmap()
			if old := c.out.byAddress[a]; old == nil || newer(p, old.fact) {
				c.out.byAddress[a] = entry
			}
		}
	}
	slices.SortFunc(c.pods, func(a, b *podEntry) int {
		return compareStrings(a.fact.Namespace, b.fact.Namespace, a.fact.Name, b.fact.Name, a.fact.UID, b.fact.UID)
	})
}

// newer reports whether a rather than b has an address that both claim: a pod
// that stays before one that is leaving, then the younger one.
func newer(a, b *Pod) bool {
	if a.Terminating != b.Terminating {
		return !a.Terminating
	}
	if a.Created != b.Created {
		return a.Created > b.Created
	}
	return a.UID > b.UID
}

// SPIFFEID is the identity of a service account.
func SPIFFEID(trustDomain, namespace, serviceAccount string) string {
	return "spiffe://" + trustDomain + "/ns/" + namespace + "/sa/" + serviceAccount
}

// compareStrings compares pairs of strings, first difference first.
func compareStrings(pairs ...string) int {
	for i := 0; i+1 < len(pairs); i += 2 {
		if pairs[i] < pairs[i+1] {
			return -1
		}
		if pairs[i] > pairs[i+1] {
			return 1
		}
	}
	return 0
}
