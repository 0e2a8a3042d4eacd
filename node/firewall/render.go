package firewall

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"net/netip"
	"strconv"

	"github.com/hauberk-mesh/hauberk/internal/names"
	"github.com/hauberk-mesh/hauberk/policy"
)

// renderer builds tables and keeps what it rendered: what did not change is the
// same value in the next table.
type renderer struct {
	control netip.AddrPort
	logs    bool // the kernel can tell of what it drops
	asked   bool // whether it can

	// Of the last table, and of the one being made.
	before, now rendering

	t     *table
	state *State
}

// rendering is what a table was made of.
type rendering struct {
	resolved map[*policy.Set]*policy.Set
	groups   map[string]*rendered
	members  map[string]collected // by the name of the set
	base     *base
}

// rendered is the chains of one policy set in one direction.
type rendered struct {
	of     *policy.Set
	chains map[string]*chain
	drops  map[string]Drop
	known  map[string]bool    // PeerSets that it names, and whether their members were known
	refs   map[string]members // sets of members that it names
	nets   map[string]*set    // sets of networks that it names
}

func newRendered(of *policy.Set) *rendered {
	return &rendered{of: of, chains: map[string]*chain{}, drops: map[string]Drop{},
		known: map[string]bool{}, refs: map[string]members{}, nets: map[string]*set{}}
}

// collected is a set and what it was collected from.
type collected struct {
	from []Member
	set  *set
}

func (r rendering) with() rendering {
	return rendering{resolved: map[*policy.Set]*policy.Set{}, groups: map[string]*rendered{}, members: map[string]collected{}, base: r.base}
}

// same reports whether two lists of members are one; what is in a list never
// changes.
func same(a, b []Member) bool {
	return len(a) == len(b) && (a == nil) == (b == nil) && (len(a) == 0 || &a[0] == &b[0])
}

// chain adds a chain in both directions.
func (g *rendered) chain(name string, rules []rule) {
	g.chains[name] = &chain{rules: rules}
	g.chains[backChain(name)] = &chain{rules: rules, back: true}
	for i := range rules {
		if d := rules[i].drop; d != nil {
			g.drops[d.id()] = *d
		}
	}
}

// resolve is a set with only what decides: no audit policies, no dead rules.
func (r *renderer) resolve(s *policy.Set) *policy.Set {
	out, ok := r.now.resolved[s]
	if !ok {
		if out, ok = r.before.resolved[s]; !ok {
			out = s.Resolve()
		}
		r.now.resolved[s] = out
	}
	return out
}

// render is the table for pods under state.
func (r *renderer) render(pods []Pod, state *State) *table {
	r.before, r.now = r.now, r.now.with()
	r.t, r.state = newTable(), state
	r.t.logs = r.logs
	r.baseChains()
	for i := range pods {
		r.pod(&pods[i])
	}
	r.before = rendering{}
	return r.t
}

// pod renders one pod: its addresses, its link, and chains for its policy.
func (r *renderer) pod(p *Pod) {
	in, out := chainClosed, chainShut
	if p.PolicySet != nil {
		in, out = r.group(p, policy.Ingress), r.group(p, policy.Egress)
	} else if p.Bootstrap {
		in, out = "", ""
	}
	t := r.t
	lead := func(name, key, to string) {
		if to == "" {
			return
		}
		t.maps[name].values[key] = "jump " + to
		t.maps[backChain(name)].values[key] = "jump " + backChain(to)
	}
	if p.HostInterface != "" {
		t.sets[setLinks].add(p.HostInterface)
		lead(mapLink, p.HostInterface, out)
	}
	for _, a := range p.Addresses {
		a = a.Unmap()
		text := a.String()
		from, to, self, link, own := mapFrom4, mapTo4, setSelf4, setLinkAddr4, setOwn4
		if a.Is6() {
			from, to, self, link, own = mapFrom6, mapTo6, setSelf6, setLinkAddr6, setOwn6
		}
		// A pod has as many self pairs as it has pairs of addresses of a family;
		// pods have one each, and of several each talks to itself by itself.
		t.sets[self].add(text, text)
		if p.HostInterface != "" {
			t.sets[link].add(p.HostInterface, text)
		}
		if p.Namespace == names.Namespace {
			for _, port := range []uint16{names.PortControl, names.PortWebhook} {
				t.sets[own].add(text, portText(port))
			}
		}
		lead(from, text, out)
		lead(to, text, in)
	}
}

// group puts the chains of a pod's policy in one direction into the table, shared
// by all pods for which they are the same, and returns the first one's name;
// empty when nothing is restricted.
func (r *renderer) group(p *Pod, d policy.Direction) string {
	set := r.resolve(p.PolicySet)
	tiers := set.Tiers(d)
	if len(tiers) == 0 && set.DefaultAction == policy.Allow {
		return ""
	}
	name := "in-"
	if d == policy.Egress {
		name = "out-"
	}
	ports := namedPortsUsed(tiers, d, p.NamedPorts)
	open := p.Meshed && hasUndecided(tiers)
	key := fmt.Sprintf("%s|%v|%v", p.PolicySet.ID, open, ports)
	if open {
		key += fmt.Sprintf("|%v", p.Capture)
	}
	sum := sha256.Sum256([]byte(key))
	name += hex.EncodeToString(sum[:10])
	if r.now.groups[name] != nil {
		return name
	}
	done := r.before.groups[name]
	if done == nil || !done.holds(p.PolicySet, r.state) {
		done = newRendered(p.PolicySet)
		g := &group{r: r, d: d, named: p.NamedPorts, tiers: tiers, set: set, rendered: done}
		g.renderFor(name, p, open)
	}
	r.now.groups[name] = done
	maps.Copy(r.t.chains, done.chains)
	maps.Copy(r.t.drops, done.drops)
	for name, m := range done.refs {
		r.collect(name, m)
	}
	for name, s := range done.nets {
		if r.t.sets[name] == nil { // one of several that are alike
			r.t.sets[name] = s
		}
	}
	return name
}

// holds reports whether the rendering is still that of a set under a state.
func (g *rendered) holds(set *policy.Set, s *State) bool {
	if g.of != set {
		return false
	}
	for id, known := range g.known {
		if _, ok := s.PeerSets[id]; (ok && id != "") != known {
			return false
		}
	}
	return true
}

// renderFor makes the chains for a pod with a sidecar that decides, or without.
func (g *group) renderFor(name string, p *Pod, open bool) {
	if !open {
		g.render(name, false)
		return
	}
	// What the sidecar does not see, the kernel decides alone.
	g.render(name+"-alone", false)
	var rules []rule
	for _, conds := range uncaptured(p.Capture, g.d) {
		rules = append(rules, rule{conds: conds, to: goOn, next: name + "-alone", quiet: true, comment: "not captured: no sidecar sees it"})
	}
	g.render(name+"-sidecar", true)
	g.chain(name, append(rules, rule{to: goOn, next: name + "-sidecar", quiet: true}))
}

// collect puts a set of members into the table.
func (r *renderer) collect(name string, m members) {
	if r.t.sets[name] != nil {
		return
	}
	from := r.state.PeerSets[m.peerSet]
	c, ok := r.before.members[name]
	if !ok || !same(c.from, from) {
		c = collected{from: from, set: m.collect(from)}
	}
	r.now.members[name] = c
	r.t.sets[name] = c.set
}

func portText(p uint16) string { return strconv.Itoa(int(p)) }
