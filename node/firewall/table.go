package firewall

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	"sigs.k8s.io/knftables"
)

// table is the content of the nftables table as a value: rendering makes one,
// comparing two makes a transaction.
type table struct {
	chains map[string]*chain
	sets   map[string]*set
	maps   map[string]*verdicts
	drops  map[string]Drop // by the id with which the kernel tells of them
}

// chain is a base chain when hook is set.
type chain struct {
	hook     knftables.BaseChainHook
	priority knftables.BaseChainPriority
	rules    []rule
}

type rule struct {
	text    string
	comment string // at most 128 bytes
}

// set is a named set; keys are concatenations joined by " . ".
type set struct {
	kind     string // nftables type
	interval bool
	keys     map[string]struct{}
}

// verdicts is a named map to verdicts.
type verdicts struct {
	kind   string // nftables type of the key
	values map[string]string
}

func newTable() *table {
	return &table{chains: map[string]*chain{}, sets: map[string]*set{}, maps: map[string]*verdicts{}, drops: map[string]Drop{}}
}

func (t *table) addSet(name, kind string, interval bool) *set {
	s, ok := t.sets[name]
	if !ok {
		s = &set{kind: kind, interval: interval, keys: map[string]struct{}{}}
		t.sets[name] = s
	}
	return s
}

func (s *set) add(parts ...string) { s.keys[strings.Join(parts, " . ")] = struct{}{} }

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
	for _, name := range sortedKeys(t.sets) {
		s, o := t.sets[name], old.sets[name]
		if o == nil {
			n := &knftables.Set{Name: name, Type: s.kind}
			if s.interval {
				n.Flags = []knftables.SetFlag{knftables.IntervalFlag}
			}
			tx.Add(n)
			o = &set{}
		}
		for _, k := range sortedKeys(o.keys) {
			if _, ok := s.keys[k]; !ok {
				tx.Delete(&knftables.Element{Set: name, Key: split(k)})
			}
		}
		for _, k := range sortedKeys(s.keys) {
			if _, ok := o.keys[k]; !ok {
				tx.Add(&knftables.Element{Set: name, Key: split(k)})
			}
		}
	}
	for _, name := range sortedKeys(t.chains) {
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
	for _, name := range sortedKeys(t.chains) {
		c, o := t.chains[name], old.chains[name]
		if o != nil && slices.Equal(c.rules, o.rules) {
			continue
		}
		if o != nil {
			tx.Flush(&knftables.Chain{Name: name})
		}
		for _, r := range c.rules {
			n := &knftables.Rule{Chain: name, Rule: r.text}
			if r.comment != "" {
				n.Comment = &r.comment
			}
			tx.Add(n)
		}
	}
	for _, name := range sortedKeys(t.maps) {
		m, o := t.maps[name], old.maps[name]
		if o == nil {
			o = &verdicts{}
		}
		for _, k := range sortedKeys(o.values) {
			if m.values[k] != o.values[k] {
				tx.Delete(&knftables.Element{Map: name, Key: split(k)})
			}
		}
		for _, k := range sortedKeys(m.values) {
			if m.values[k] != o.values[k] {
				tx.Add(&knftables.Element{Map: name, Key: split(k), Value: []string{m.values[k]}})
			}
		}
	}
	gone := make([]string, 0)
	for _, name := range sortedKeys(old.chains) {
		if t.chains[name] == nil {
			tx.Flush(&knftables.Chain{Name: name})
			gone = append(gone, name)
		}
	}
	for _, name := range gone {
		tx.Delete(&knftables.Chain{Name: name})
	}
	for _, name := range sortedKeys(old.maps) {
		if t.maps[name] == nil {
			tx.Delete(&knftables.Map{Name: name})
		}
	}
	for _, name := range sortedKeys(old.sets) {
		if t.sets[name] == nil {
			tx.Delete(&knftables.Set{Name: name})
		}
	}
}

func split(key string) []string { return strings.Split(key, " . ") }
