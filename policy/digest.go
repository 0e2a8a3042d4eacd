package policy

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"math"
	"net/netip"
	"slices"
)

// Digest is a digest of the set's content, to be used as its ID: 32 hexadecimal
// digits. It leaves out ID itself and the order and repetition of entries that
// are ORed or ANDed; it keeps the order of tiers, policies and rules. Names,
// UIDs and generations of the policies count although they do not change what
// is decided: verdicts carry the names, and an acknowledgement of a set must
// say which generation of a policy is in force.
func (s *Set) Digest() string {
	var e encoder
	e.text("set")
	e.byte(byte(s.DefaultAction))
	for _, tiers := range [][]Tier{s.Ingress, s.Egress} {
		e.number(uint64(len(tiers)))
		for i := range tiers {
			e.tier(&tiers[i])
		}
	}
	return e.sum()
}

// SelectorDigest is a digest of the peer's selector fields, to be used as the
// id of its PeerSet; empty when it has none. The order and repetition of entries
// does not matter.
func (p *Peer) SelectorDigest() string {
	if !p.SelectsWorkloads() {
		return ""
	}
	var e encoder
	e.text("selector")
	e.selectors(p)
	return e.sum()
}

// encoder writes values so that different values have different bytes: lengths
// stand before what has no fixed length.
type encoder struct{ b []byte }

func (e *encoder) sum() string {
	sum := sha256.Sum256(e.b)
	return hex.EncodeToString(sum[:16])
}

func (e *encoder) byte(b byte)     { e.b = append(e.b, b) }
func (e *encoder) number(n uint64) { e.b = binary.BigEndian.AppendUint64(e.b, n) }
func (e *encoder) text(s string) {
	e.number(uint64(len(s)))
	e.b = append(e.b, s...)
}

func (e *encoder) bool(b bool) {
	if b {
		e.byte(1)
		return
	}
	e.byte(0)
}

func (e *encoder) order(f float64) {
	if f == 0 {
		f = 0 // negative zero is zero
	}
	e.number(math.Float64bits(f))
}

// set writes entries without regard to their order and repetition.
func set[T any](e *encoder, list []T, write func(*encoder, *T)) {
	entries := make([]string, len(list))
	for i := range list {
		var one encoder
		write(&one, &list[i])
		entries[i] = string(one.b)
	}
	slices.Sort(entries)
	entries = slices.Compact(entries)
	e.number(uint64(len(entries)))
	for _, entry := range entries {
		e.text(entry)
	}
}

func (e *encoder) texts(list []string) {
	set(e, list, func(e *encoder, s *string) { e.text(*s) })
}

func (e *encoder) tier(t *Tier) {
	e.text(t.Name)
	e.order(t.Order)
	e.byte(byte(t.DefaultAction))
	e.number(uint64(len(t.Policies)))
	for i := range t.Policies {
		p := &t.Policies[i]
		e.text(p.Ref.Kind)
		e.text(p.Ref.Namespace)
		e.text(p.Ref.Name)
		e.text(p.Ref.UID)
		e.number(uint64(p.Ref.Generation))
		e.order(p.Order)
		e.byte(byte(p.Mode))
		e.text(p.Invalid)
		e.number(uint64(len(p.Rules)))
		for j := range p.Rules {
			e.rule(&p.Rules[j])
		}
	}
}

func (e *encoder) rule(r *Rule) {
	e.text(r.Name)
	e.byte(byte(r.Action))
	e.text(r.Invalid)
	e.bool(r.AnyPeer)
	set(e, r.Peers, func(e *encoder, p *Peer) {
		e.text(p.PeerSet)
		e.selectors(p)
		e.texts(p.Principals)
		set(e, p.Networks, func(e *encoder, n *Network) {
			e.prefix(&n.Prefix)
			set(e, n.Except, (*encoder).prefix)
		})
		set(e, p.Entities, func(e *encoder, entity *Entity) { e.text(string(*entity)) })
	})
	set(e, r.Ports, (*encoder).port)
	set(e, r.HTTP, (*encoder).http)
	e.bool(r.RequireMTLS)
}

func (e *encoder) selectors(p *Peer) {
	e.texts(p.Namespaces)
	e.selector(p.NamespaceSelector)
	e.selector(p.PodSelector)
	set(e, p.ServiceAccounts, func(e *encoder, a *ServiceAccount) {
		e.text(a.Namespace)
		e.text(a.Name)
	})
	e.selector(p.ServiceAccountSelector)
}

func (e *encoder) selector(s *Selector) {
	e.bool(s != nil)
	if s == nil {
		return
	}
	set(e, s.Requirements, func(e *encoder, r *Requirement) {
		e.text(r.Key)
		e.byte(byte(r.Operator))
		e.texts(r.Values)
	})
}

func (e *encoder) prefix(p *netip.Prefix) { e.text(p.String()) }

func (e *encoder) port(m *PortMatch) {
	e.byte(byte(m.Protocol))
	e.number(uint64(m.Port))
	e.number(uint64(m.EndPort))
	e.text(m.Name)
	e.optional(m.ICMPType)
	e.optional(m.ICMPCode)
}

func (e *encoder) optional(b *uint8) {
	e.bool(b != nil)
	if b != nil {
		e.byte(*b)
	}
}

func (e *encoder) http(m *HTTPMatch) {
	e.texts(m.Methods)
	set(e, m.Paths, func(e *encoder, p *PathMatch) {
		e.byte(byte(p.Type))
		e.text(p.Value)
	})
	e.texts(m.Hosts)
	set(e, m.Headers, func(e *encoder, h *HeaderMatch) {
		e.text(h.Name)
		e.texts(h.Values)
	})
	set(e, m.Query, func(e *encoder, q *QueryMatch) {
		e.text(q.Name)
		e.texts(q.Values)
	})
	set(e, m.GRPC, func(e *encoder, g *GRPCMatch) {
		e.text(g.Service)
		e.text(g.Method)
	})
}

// ComparePolicies is the order of policies within a tier: by Order, then
// namespace, name and kind.
func ComparePolicies(a, b *Policy) int {
	return cmp.Or(
		cmp.Compare(a.Order, b.Order),
		cmp.Compare(a.Ref.Namespace, b.Ref.Namespace),
		cmp.Compare(a.Ref.Name, b.Ref.Name),
		cmp.Compare(a.Ref.Kind, b.Ref.Kind),
	)
}

// CompareTiers is the order of tiers: by Order, then name.
func CompareTiers(a, b *Tier) int {
	return cmp.Or(cmp.Compare(a.Order, b.Order), cmp.Compare(a.Name, b.Name))
}
