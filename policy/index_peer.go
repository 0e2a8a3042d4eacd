package policy

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"
)

// mostLabels is how many label keys of selectors are looked up in a flow.
const mostLabels = 8

// peerKind is an attribute by which a peer can be filed.
type peerKind uint8

const (
	byNothing peerKind = iota // it can't: any peer may match
	byPodLabel
	byNamespaceLabel
	byAccountLabel
	byNamespace
	byAccount
	byPrincipal
	byPrincipalStem
	byNetwork
	byEntity
)

// peerKey is a value of an attribute under which a peer can be filed: a label's
// key and value, a namespace, a name and so on.
type peerKey struct {
	kind    peerKind
	a, b    string
	network netip.Prefix
}

// peerColumn files rules by one attribute of each of their peers.
type peerColumn struct {
	used       bool
	any        dense
	labels     []labelValues
	namespaces map[string]uint32
	accounts   map[ServiceAccount]uint32
	// principals are whole ones, stems what stands before a '*', sorted; proved is
	// all rules of both, for flows whose principal is not known.
	principals map[string]uint32
	stems      []stem
	proved     uint32
	networks   []network // sorted by address and length
	entities   map[Entity]uint32
}

type labelValues struct {
	kind   peerKind
	key    string
	values map[string]uint32
}

// stem and network know the nearest one that holds them: what comes below a
// value is found by one search and the way up.
type stem struct {
	text string
	up   int32 // -1 for none
	list uint32
}

type network struct {
	prefix netip.Prefix
	up     int32 // -1 for none
	list   uint32
}

func (c *peerColumn) find(q *search, v *view) {
	if !c.used {
		return
	}
	f := q.column(&c.any)
	if w := v.workload; w != nil {
		for i := range c.labels {
			l := &c.labels[i]
			labels := w.Labels
			switch l.kind {
			case byNamespaceLabel:
				labels = w.NamespaceLabels
			case byAccountLabel:
				labels = w.ServiceAccountLabels
			}
			if value, ok := labels[l.key]; ok {
				f.add(l.values[value])
			}
		}
		if len(c.namespaces) > 0 {
			f.add(c.namespaces[w.Namespace])
		}
		if len(c.accounts) > 0 {
			f.add(c.accounts[ServiceAccount{w.Namespace, w.ServiceAccount}])
		}
	}
	c.findPrincipal(f, v)
	c.findNetwork(f, v.peer.Addr)
	if len(c.entities) > 0 {
		if v.peer.Host {
			f.add(c.entities[EntityHost])
		}
		if v.peer.Host || v.peer.Workload != nil {
			f.add(c.entities[EntityCluster])
		} else {
			f.add(c.entities[EntityWorld])
		}
	}
	q.keep()
}

func (c *peerColumn) findPrincipal(f *found, v *view) {
	if v.unknown&UnknownIdentity != 0 {
		f.add(c.proved)
		return
	}
	name := v.peer.Principal
	if name == "" || c.proved == 0 {
		return
	}
	f.add(c.principals[name])
	// Every stem that the name begins with is the last one that is not after the
	// name, or above it.
	i, ok := slices.BinarySearchFunc(c.stems, name, func(s stem, name string) int { return cmp.Compare(s.text, name) })
	if !ok {
		i--
	}
	for ; i >= 0; i = int(c.stems[i].up) {
		if s := &c.stems[i]; strings.HasPrefix(name, s.text) {
			f.add(s.list)
		}
	}
}

func (c *peerColumn) findNetwork(f *found, addr netip.Addr) {
	if len(c.networks) == 0 {
		return
	}
	addr = addr.Unmap().WithZone("")
	low, high := 0, len(c.networks) // the last one whose address is not after addr
	for low < high {
		if mid := (low + high) / 2; c.networks[mid].prefix.Addr().Compare(addr) <= 0 {
			low = mid + 1
		} else {
			high = mid
		}
	}
	for i := low - 1; i >= 0; i = int(c.networks[i].up) {
		if n := &c.networks[i]; n.prefix.Contains(addr) {
			f.add(n.list)
		}
	}
}

// peerBuilder first hears of all peers, so that each is filed by the attribute
// that tells most: the one whose values the fewest rules share.
type peerBuilder struct {
	any   dense
	rules []peerRule
	often map[peerKey]int
	lists map[peerKey]uint32
}

type peerRule struct {
	number int
	// ways are, for each peer, the ways of filing it: each a list of keys of which a
	// flow that matches has one.
	ways [][][]peerKey
}

func newPeerBuilder(n int) peerBuilder {
	return peerBuilder{any: newDense(n), often: map[peerKey]int{}, lists: map[peerKey]uint32{}}
}

func (b *peerBuilder) add(number int, r *Rule) {
	if r.AnyPeer {
		b.any.set(number)
		return
	}
	rule := peerRule{number: number}
	for i := range r.Peers {
		ways := peerWays(&r.Peers[i])
		if len(ways) == 0 {
			b.any.set(number)
			return
		}
		rule.ways = append(rule.ways, ways)
	}
	for _, ways := range rule.ways {
		for _, keys := range ways {
			for _, key := range keys {
				b.often[key]++
			}
		}
	}
	b.rules = append(b.rules, rule)
}

// peerWays are the attributes of which the peer requires one of some values.
func peerWays(p *Peer) [][]peerKey {
	var ways [][]peerKey
	way := func(n int, key func(i int) peerKey) {
		if n == 0 {
			return
		}
		keys := make([]peerKey, 0, n)
		for i := range n {
			keys = append(keys, key(i))
		}
		ways = append(ways, keys)
	}
	selector := func(kind peerKind, s *Selector) {
		if s == nil {
			return
		}
		for i := range s.Requirements {
			if r := &s.Requirements[i]; r.Operator == In {
				way(len(r.Values), func(i int) peerKey { return peerKey{kind: kind, a: r.Key, b: r.Values[i]} })
			}
		}
	}
	way(len(p.Namespaces), func(i int) peerKey { return peerKey{kind: byNamespace, a: p.Namespaces[i]} })
	selector(byNamespaceLabel, p.NamespaceSelector)
	selector(byPodLabel, p.PodSelector)
	way(len(p.ServiceAccounts), func(i int) peerKey {
		return peerKey{kind: byAccount, a: p.ServiceAccounts[i].Namespace, b: p.ServiceAccounts[i].Name}
	})
	selector(byAccountLabel, p.ServiceAccountSelector)
	way(len(p.Principals), func(i int) peerKey {
		if text, wild := strings.CutSuffix(p.Principals[i], "*"); wild {
			return peerKey{kind: byPrincipalStem, a: text}
		}
		return peerKey{kind: byPrincipal, a: p.Principals[i]}
	})
	way(len(p.Networks), func(i int) peerKey { return peerKey{kind: byNetwork, network: p.Networks[i].Prefix.Masked()} })
	way(len(p.Entities), func(i int) peerKey { return peerKey{kind: byEntity, a: string(p.Entities[i])} })
	return ways
}

// choose files each peer, before the lists are written.
func (b *peerBuilder) choose(all *builder) {
	labels := b.commonLabels()
	for _, rule := range b.rules {
		var chosen []peerKey
		for _, ways := range rule.ways {
			best, rare := -1, 0
			for i, keys := range ways {
				if k := keys[0]; k.kind >= byPodLabel && k.kind <= byAccountLabel && !labels[peerKey{kind: k.kind, a: k.a}] {
					continue
				}
				n := 0
				for _, key := range keys {
					n += b.often[key]
				}
				if best < 0 || n < rare {
					best, rare = i, n
				}
			}
			if best < 0 {
				chosen = nil
				b.any.set(rule.number)
				break
			}
			chosen = append(chosen, ways[best]...)
		}
		for _, key := range chosen {
			fileUnder(all, b.lists, key, rule.number)
			if key.kind == byPrincipal || key.kind == byPrincipalStem {
				fileUnder(all, b.lists, peerKey{kind: byPrincipal}, rule.number)
			}
		}
	}
}

// commonLabels are the keys of labels that most rules name.
func (b *peerBuilder) commonLabels() map[peerKey]bool {
	often := map[peerKey]int{}
	for key, n := range b.often {
		if key.kind >= byPodLabel && key.kind <= byAccountLabel {
			often[peerKey{kind: key.kind, a: key.a}] += n
		}
	}
	keys := make([]peerKey, 0, len(often))
	for key := range often {
		keys = append(keys, key)
	}
	slices.SortFunc(keys, func(x, y peerKey) int {
		return cmp.Or(cmp.Compare(often[y], often[x]), cmp.Compare(x.kind, y.kind), cmp.Compare(x.a, y.a))
	})
	common := map[peerKey]bool{}
	for _, key := range keys[:min(len(keys), mostLabels)] {
		common[key] = true
	}
	return common
}

func (b *peerBuilder) freeze(n int, at []uint32) peerColumn {
	if !worthwhile(&b.any, n) {
		return peerColumn{}
	}
	c := peerColumn{used: true, any: b.any, namespaces: map[string]uint32{}, accounts: map[ServiceAccount]uint32{},
		principals: map[string]uint32{}, entities: map[Entity]uint32{}}
	labels := map[peerKey]map[string]uint32{}
	for key, list := range b.lists {
		list := place(at, list)
		switch key.kind {
		case byPodLabel, byNamespaceLabel, byAccountLabel:
			of := peerKey{kind: key.kind, a: key.a}
			if labels[of] == nil {
				labels[of] = map[string]uint32{}
				c.labels = append(c.labels, labelValues{key.kind, key.a, labels[of]})
			}
			labels[of][key.b] = list
		case byNamespace:
			c.namespaces[key.a] = list
		case byAccount:
			c.accounts[ServiceAccount{key.a, key.b}] = list
		case byPrincipal:
			if key.a == "" {
				c.proved = list
				continue
			}
			c.principals[key.a] = list
		case byPrincipalStem:
			c.stems = append(c.stems, stem{key.a, -1, list})
		case byNetwork:
			c.networks = append(c.networks, network{key.network, -1, list})
		case byEntity:
			c.entities[Entity(key.a)] = list
		}
	}
	c.link()
	return c
}

// link sorts stems and networks and finds what holds each: of what is sorted so,
// that is the one before it or above that one.
func (c *peerColumn) link() {
	slices.SortFunc(c.stems, func(x, y stem) int { return cmp.Compare(x.text, y.text) })
	for i := range c.stems {
		up := i - 1
		for up >= 0 && !strings.HasPrefix(c.stems[i].text, c.stems[up].text) {
			up = int(c.stems[up].up)
		}
		c.stems[i].up = int32(up)
	}
	slices.SortFunc(c.networks, func(x, y network) int {
		return cmp.Or(x.prefix.Addr().Compare(y.prefix.Addr()), cmp.Compare(x.prefix.Bits(), y.prefix.Bits()))
	})
	for i := range c.networks {
		up := i - 1
		for up >= 0 && !c.networks[up].prefix.Contains(c.networks[i].prefix.Addr()) {
			up = int(c.networks[up].up)
		}
		c.networks[i].up = int32(up)
	}
}
