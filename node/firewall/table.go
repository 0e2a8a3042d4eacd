package firewall

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"sigs.k8s.io/knftables"
)

// table is the content of the nftables table as a value: rendering makes one,
// comparing two makes a transaction. Values are shared between tables and never
// changed once rendered, so that comparing what did not change costs nothing.
type table struct {
	logs   bool // drops are told of
	chains map[string]*chain
	sets   map[string]*set
	maps   map[string]*verdicts
	drops  map[string]Drop // by the id with which the kernel tells of them
}

// chain is a base chain when hook is set.
type chain struct {
	hook     knftables.BaseChainHook
	priority knftables.BaseChainPriority
	fixed    []line // what is not policy
	rules    []rule // policy
	back     bool   // rules are for replies
}

func (c *chain) lines(logs bool) []line {
	out := slices.Clone(c.fixed)
	for i := range c.rules {
		out = append(out, c.rules[i].lines(c.back, logs)...)
	}
	return out
}

// set is a named set. Large ones hold addresses, or addresses and ports, in
// order; small ones hold texts.
type set struct {
	kind     string // nftables type
	keys     map[string]struct{}
	addrs    []netip.Addr
	ports    []netip.AddrPort
	prefixes []netip.Prefix // disjoint; the set's name is a digest of them
}

func (s *set) add(parts ...string) { s.keys[strings.Join(parts, " . ")] = struct{}{} }

func (s *set) contains(a netip.Addr) bool {
	if s == nil {
		return false
	}
	if _, ok := slices.BinarySearchFunc(s.addrs, a, netip.Addr.Compare); ok {
		return true
	}
	return slices.ContainsFunc(s.prefixes, func(p netip.Prefix) bool { return p.Contains(a) })
}

func (s *set) containsPort(a netip.AddrPort) bool {
	if s == nil {
		return false
	}
	_, ok := slices.BinarySearchFunc(s.ports, a, netip.AddrPort.Compare)
	return ok
}

func (s *set) len() int { return len(s.keys) + len(s.addrs) + len(s.ports) + len(s.prefixes) }

// less is what is in s and not in o, as nft reads it, in order.
func (s *set) less(o *set) []string {
	var out []string
	for _, k := range sortedKeys(s.keys) {
		if _, ok := o.keys[k]; !ok {
			out = append(out, k)
		}
	}
	missing(s.addrs, o.addrs, netip.Addr.Compare, func(a netip.Addr) { out = append(out, a.String()) })
	missing(s.ports, o.ports, netip.AddrPort.Compare, func(a netip.AddrPort) { out = append(out, a.Addr().String()+" . "+portText(a.Port())) })
	if o.prefixes == nil {
		for _, p := range s.prefixes {
			out = append(out, p.String())
		}
	}
	return out
}

// missing calls f for each of a that is not in b; both are in order.
func missing[T any](a, b []T, compare func(T, T) int, f func(T)) {
	for _, v := range a {
		for len(b) > 0 && compare(b[0], v) < 0 {
			b = b[1:]
		}
		if len(b) == 0 || compare(b[0], v) != 0 {
			f(v)
		}
	}
}

// verdicts is a named map to verdicts.
type verdicts struct {
	kind   string // nftables type of the key
	values map[string]string
}

func newTable() *table {
	return &table{chains: map[string]*chain{}, sets: map[string]*set{}, maps: map[string]*verdicts{}, drops: map[string]Drop{}}
}

// small adds a set of texts.
func (t *table) small(name, kind string) *set {
	s := &set{kind: kind, keys: map[string]struct{}{}}
	t.sets[name] = s
	return s
}

func sortedKeys[M ~map[K]V, K cmp.Ordered, V any](m M) []K { return slices.Sorted(maps.Keys(m)) }

// create replaces the kernel's table by t in one atomic transaction: at no
// moment is there neither the old nor the new.
func (t *table) create(tx *knftables.Transaction) {
	tx.Add(&knftables.Table{})
	tx.Delete(&knftables.Table{})
	tx.Add(&knftables.Table{Comment: knftables.PtrTo("Hauberk: policy of this node's pods")})
	t.update(tx, newTable())
}

// update brings the kernel from old to t. The order keeps every reference
// valid at every step: objects before what names them, and removals last.
func (t *table) update(tx *knftables.Transaction, old *table) {
	t.updateSets(tx, old)
	added := changed(t.chains, old.chains)
	for _, name := range added {
		if old.chains[name] == nil {
			c := t.chains[name]
			n := &knftables.Chain{Name: name}
			if c.hook != "" {
				n.Type, n.Hook, n.Priority = knftables.PtrTo(knftables.FilterType), knftables.PtrTo(c.hook), knftables.PtrTo(c.priority)
			}
			tx.Add(n)
		}
	}
	for _, name := range sortedKeys(t.maps) {
		if old.maps[name] == nil {
			tx.Add(&knftables.Map{Name: name, Type: t.maps[name].kind + " : verdict"})
		}
	}
	for _, name := range added {
		lines := t.chains[name].lines(t.logs)
		if o := old.chains[name]; o != nil {
			if slices.Equal(lines, o.lines(old.logs)) {
				continue
			}
			tx.Flush(&knftables.Chain{Name: name})
		}
		for _, l := range lines {
			n := &knftables.Rule{Chain: name, Rule: l.text}
			if l.comment != "" {
				n.Comment = knftables.PtrTo(l.comment)
			}
			tx.Add(n)
		}
	}
	t.updateMaps(tx, old)
	gone := changed(old.chains, t.chains)
	gone = slices.DeleteFunc(gone, func(name string) bool { return t.chains[name] != nil })
	for _, name := range gone {
		tx.Flush(&knftables.Chain{Name: name})
	}
	for _, name := range gone {
		tx.Delete(&knftables.Chain{Name: name})
	}
	for _, name := range sortedKeys(old.maps) {
		if t.maps[name] == nil {
			tx.Delete(&knftables.Map{Name: name})
		}
	}
	for _, name := range changed(old.sets, t.sets) {
		if t.sets[name] == nil {
			tx.Delete(&knftables.Set{Name: name})
		}
	}
}

func (t *table) updateSets(tx *knftables.Transaction, old *table) {
	for _, name := range changed(t.sets, old.sets) {
		s, o := t.sets[name], old.sets[name]
		if o == nil {
			n := &knftables.Set{Name: name, Type: s.kind}
			if s.prefixes != nil {
				n.Flags = []knftables.SetFlag{knftables.IntervalFlag}
			}
			tx.Add(n)
			o = &set{}
		}
		several(o.less(s), func(keys string) { tx.Delete(&knftables.Element{Set: name, Key: []string{keys}}) })
		several(s.less(o), func(keys string) { tx.Add(&knftables.Element{Set: name, Key: []string{keys}}) })
	}
}

func (t *table) updateMaps(tx *knftables.Transaction, old *table) {
	for _, name := range sortedKeys(t.maps) {
		m, o := t.maps[name], old.maps[name]
		if o == nil {
			o = &verdicts{}
		}
		for _, k := range sortedKeys(o.values) {
			if m.values[k] != o.values[k] {
				tx.Delete(&knftables.Element{Map: name, Key: []string{k}})
			}
		}
		for _, k := range sortedKeys(m.values) {
			if m.values[k] != o.values[k] {
				tx.Add(&knftables.Element{Map: name, Key: []string{k}, Value: []string{m.values[k]}})
			}
		}
	}
}

// changed is the names of what is in a and is not the same in b.
func changed[V comparable](a, b map[string]V) []string {
	var out []string
	for name, v := range a {
		if o, ok := b[name]; !ok || o != v {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}

// several gives f elements in lists: the kernel finds a set by walking all of a
// table's, once for each command that names it, so that a command an element
// makes loading quadratic.
func several(keys []string, f func(string)) {
	for part := range slices.Chunk(keys, 500) {
		f(strings.Join(part, ", "))
	}
}
