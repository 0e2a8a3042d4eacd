package policytest

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"

	"pgregory.net/rapid"

	"github.com/hauberk-mesh/hauberk/policy"
)

// BigSet generates sets of so many rules that an index pays, up to some more
// than 4096 in a direction. Most rules only log, so that a verdict names every
// rule that matched instead of the first. Rules are drawn from a small pool and
// varied, because drawing each would take too long.
func BigSet() *rapid.Generator[*policy.Set] {
	return rapid.Custom(func(t *rapid.T) *policy.Set {
		g := gen{t, rapid.Bool().Draw(t, "broken"), true}
		v := vary{
			Rand: rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0)),
			pool: some(g, 1, 12, g.rule),
			logs: pick(g, []int{2, 10, 100}),
		}
		n := pick(g, []int{30, 64, 65, 130, 700, 4200})
		s := &policy.Set{DefaultAction: pick(g, []policy.Action{policy.Allow, policy.Deny})}
		s.Ingress, s.Egress = v.tiers(n), v.tiers(n)
		s.ID = s.Digest()
		return s
	})
}

// vary makes rules that are like those of the pool.
type vary struct {
	*rand.Rand
	pool []policy.Rule
	logs int // of so many rules one does not log
}

func choice[T any](v vary, list []T) T { return list[v.IntN(len(list))] }

func (v vary) tiers(n int) []policy.Tier {
	tiers := make([]policy.Tier, 1+v.IntN(3))
	for i := range tiers {
		tiers[i] = policy.Tier{Name: fmt.Sprintf("tier-%d", i), Order: float64(i), DefaultAction: choice(v, []policy.Action{policy.Deny, policy.Pass, policy.Pass})}
		policies := make([]policy.Policy, 1+v.IntN(4))
		for j := range policies {
			p := policy.Policy{Ref: policy.Ref{Kind: "MeshPolicy", Namespace: "red", Name: fmt.Sprintf("policy-%d", j), UID: fmt.Sprint(i, j)}, Order: float64(j)}
			if v.IntN(6) == 0 {
				p.Mode = policy.Audit
			}
			if v.IntN(8) == 0 {
				p.Invalid = "the policy cannot be resolved"
			}
			for k := range n / len(tiers) / len(policies) {
				p.Rules = append(p.Rules, v.rule(fmt.Sprintf("rule[%d]", k)))
			}
			policies[j] = p
		}
		tiers[i].Policies = policies
	}
	return tiers
}

func (v vary) rule(name string) policy.Rule {
	r := choice(v, v.pool)
	r.Name = name
	if v.IntN(v.logs) > 0 {
		r.Action = policy.Log
	}
	if v.IntN(3) == 0 {
		first := uint16(70 + v.IntN(20))
		r.Ports = []policy.PortMatch{{Protocol: choice(v, []policy.Protocol{policy.TCP, policy.UDP}), Port: first, EndPort: first + uint16(v.IntN(20))}}
	}
	if v.IntN(2) == 0 {
		m := policy.HTTPMatch{Paths: []policy.PathMatch{v.path(), v.path()}}
		if v.IntN(3) == 0 {
			m.Methods = []string{choice(v, []string{"GET", "PUT", "HEAD", "POST"})}
		}
		if v.IntN(3) == 0 {
			m.Hosts = []string{choice(v, []string{"", "*.", "*.y.", "X."}) + choice(v, []string{"x.Example", "example", "y.x.example"})}
		}
		r.HTTP = append([]policy.HTTPMatch{m}, r.HTTP...)
	}
	if v.IntN(2) == 0 {
		r.AnyPeer, r.Peers = false, append([]policy.Peer{v.peer()}, r.Peers...)
	}
	return r
}

// path has up to 15 segments.
func (v vary) path() policy.PathMatch {
	m := policy.PathMatch{Type: policy.PathMatchType(v.IntN(4))}
	alphabet := []string{"a", "b", "c", "a", "b", ""}
	switch m.Type {
	case policy.PathTemplate:
		alphabet = append(alphabet, "{x}", "{y}")
	case policy.PathRegex:
		alphabet = append(alphabet, "[a-c]+", "(?i)a", "a|b", "a?")
	}
	for range 1 + v.IntN(3)*v.IntN(7) {
		m.Value += "/" + choice(v, alphabet)
	}
	if m.Type == policy.PathRegex {
		m, _ = policy.RegexPath(m.Value) // all of them are expressions
	}
	return m
}

func (v vary) peer() policy.Peer {
	var p policy.Peer
	switch v.IntN(5) {
	case 0:
		addr := choice(v, addrs).Unmap().WithZone("")
		p.Networks = []policy.Network{{Prefix: netip.PrefixFrom(addr, v.IntN(addr.BitLen()+1))}}
	case 1:
		name := choice(v, principals)
		p.Principals = []string{name[:1+v.IntN(len(name))] + "*"}
	case 2:
		p.Principals = []string{choice(v, principals) + strings.Repeat("x", v.IntN(2))}
	case 3:
		p.PodSelector = v.selector()
	default:
		p.ServiceAccountSelector, p.NamespaceSelector = v.selector(), v.selector()
	}
	p.PeerSet = p.SelectorDigest()
	return p
}

// selector names more keys of labels than an index has place for.
func (v vary) selector() *policy.Selector {
	key := choice(v, keys)
	if v.IntN(3) == 0 {
		key = fmt.Sprintf("key-%d", v.IntN(12))
	}
	return &policy.Selector{Requirements: []policy.Requirement{{Key: key, Operator: policy.In, Values: []string{choice(v, labels), choice(v, []string{"b", "d"})}}}}
}

// BigFlow generates flows, most of them requests, that the rules of a BigSet
// tell apart.
func BigFlow() *rapid.Generator[*policy.Flow] {
	return rapid.Custom(func(t *rapid.T) *policy.Flow {
		g := gen{t: t}
		f := Flow().Draw(t, "flow")
		if g.one(4) {
			return f
		}
		f.Protocol, f.Port = policy.TCP, rapid.Uint16Range(65, 115).Draw(t, "port")
		if f.MTLS = g.one(2); f.MTLS {
			f.Source.Principal, f.Destination.Principal = g.principal(), g.principal()
		}
		f.HTTP = g.request()
		path := ""
		for range rapid.IntRange(0, 14).Draw(t, "segments") {
			path += "/" + pick(g, []string{"a", "a", "b", "c", ""})
		}
		if path != "" {
			f.HTTP.Path = path
		}
		return f
	})
}
