package policytest

import (
	"fmt"
	"math"
	"net/netip"
	"slices"

	"pgregory.net/rapid"

	"github.com/hauberk-mesh/hauberk/policy"
)

// The alphabets. Flows draw from them and from one value that no rule names.
var (
	namespaces = []string{"red", "blue"}
	accounts   = []string{"front", "back"}
	nodes      = []string{"node-1", "node-2"}
	keys       = []string{"app", "tier"}
	labels     = []string{"a", "b"}
	portNames  = []string{"web", "admin"}
	numbers    = []uint16{80, 81, 90}
	methods    = []string{"GET", "PUT"}
	paths      = []string{"/", "/a", "/a/", "/a/b", "/ab"}
	templates  = []string{"/{x}", "/a/{x}", "/{x}/b", "/a/{x}/"}
	regexes    = []string{"/a.*", "/(a|ab)", "/[^/]+/b", ""}
	services   = []string{"", "a", "b"}
	queries    = []string{"k=1", "k=2", "k=1&k=2", "k=3", "k=%31&j", "k", "", "j=+1", "k=1;j=1", "k=%3", "%6b=2&", "=1"}
	hosts      = []string{"x.example", "y.x.example", "*.x.example"}
	headers    = []string{"x-one", "x-two"}
	values     = []string{"1", "2"}
	principals = []string{
		"spiffe://cluster.local/ns/red/sa/front",
		"spiffe://cluster.local/ns/red/sa/back",
		"spiffe://other.example/ns/red/sa/front",
	}
	patterns = append([]string{"*", "spiffe://cluster.local/*", "spiffe://cluster.local/ns/red/sa/front*"}, principals...)
	prefixes = prefixList("0.0.0.0/0", "10.0.0.0/8", "10.0.1.0/24", "10.0.1.1/32", "::/0", "fd00::/64", "fd00::1/128")
	addrs    = addrList("10.0.1.1", "10.0.1.2", "10.1.0.1", "192.0.2.1", "fd00::1", "fd00::2", "2001:db8::1", "::ffff:10.0.1.1", "fe80::1%eth0")
)

func prefixList(list ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range list {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

func addrList(list ...string) []netip.Addr {
	var out []netip.Addr
	for _, s := range list {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

// gen draws values. With broken it also draws what cannot be resolved.
type gen struct {
	t      *rapid.T
	broken bool
	l7     bool
}

// one in n times true.
func (g gen) one(n int) bool { return rapid.IntRange(1, n).Draw(g.t, "one in") == 1 }

func pick[T any](g gen, list []T) T { return rapid.SampledFrom(list).Draw(g.t, "pick") }

// some is a list of at least least and at most most.
func some[T any](g gen, least, most int, make func() T) []T {
	var out []T
	for range rapid.IntRange(least, most).Draw(g.t, "length") {
		out = append(out, make())
	}
	return out
}

func maybe[T any](g gen, n, most int, make func() T) []T {
	if !g.one(n) {
		return nil
	}
	return some(g, 1, most, make)
}

// Set generates sets that Validate accepts, Deny rules of invalid policies
// included.
func Set() *rapid.Generator[*policy.Set] { return sets(false, true) }

// SetL4 generates sets as Set does, in which no rule has an L7 condition.
func SetL4() *rapid.Generator[*policy.Set] { return sets(false, false) }

// BrokenSet generates sets with all that a faulty compiler could put in them.
func BrokenSet() *rapid.Generator[*policy.Set] { return sets(true, true) }

func sets(broken, l7 bool) *rapid.Generator[*policy.Set] {
	return rapid.Custom(func(t *rapid.T) *policy.Set {
		g := gen{t, broken, l7}
		s := &policy.Set{
			Ingress:       g.tiers(),
			Egress:        g.tiers(),
			DefaultAction: pick(g, []policy.Action{policy.Allow, policy.Deny}),
		}
		s.ID = s.Digest()
		return s
	})
}

func (g gen) tiers() []policy.Tier {
	list := some(g, 0, 3, func() policy.Tier { return policy.Tier{} })
	for i := range list {
		list[i] = policy.Tier{
			Name:          fmt.Sprintf("tier-%d", i),
			Order:         pick(g, []float64{-1.5, 0, 1000, 1e6}),
			DefaultAction: pick(g, []policy.Action{policy.Deny, policy.Pass}),
			Policies:      g.policies(),
		}
	}
	slices.SortFunc(list, func(a, b policy.Tier) int { return policy.CompareTiers(&a, &b) })
	return list
}

func (g gen) policies() []policy.Policy {
	list := some(g, 0, 3, func() policy.Policy { return policy.Policy{} })
	for i := range list {
		p := policy.Policy{
			Ref: policy.Ref{
				Kind: pick(g, []string{"NetworkPolicy", "MeshPolicy"}), Namespace: pick(g, namespaces), Name: fmt.Sprintf("policy-%d", i),
				UID: fmt.Sprintf("uid-%d", i), Generation: rapid.Int64Range(1, 3).Draw(g.t, "generation"),
			},
			Order: pick(g, []float64{1, 2, 1000, math.Inf(1)}),
			Rules: some(g, 0, 4, g.rule),
		}
		for j := range p.Rules {
			p.Rules[j].Name = fmt.Sprintf("rule[%d]", j)
		}
		if g.one(6) {
			p.Mode = policy.Audit
		}
		if g.one(8) {
			p.Invalid = "the policy cannot be resolved"
		}
		list[i] = p
	}
	slices.SortFunc(list, func(a, b policy.Policy) int { return policy.ComparePolicies(&a, &b) })
	return list
}

func (g gen) rule() policy.Rule {
	r := policy.Rule{
		Action: pick(g, []policy.Action{policy.Allow, policy.Allow, policy.Deny, policy.Deny, policy.Pass, policy.Log}),
		Ports:  maybe(g, 3, 2, g.port),
	}
	if g.l7 {
		r.HTTP = maybe(g, 3, 2, g.http)
		r.RequireMTLS = g.one(5)
	}
	if g.one(8) {
		r.Invalid = "the rule cannot be resolved"
	}
	if r.AnyPeer = g.one(3); !r.AnyPeer {
		r.Peers = some(g, 0, 3, g.peer)
	}
	return r
}

func (g gen) port() policy.PortMatch {
	m := policy.PortMatch{Protocol: pick(g, []policy.Protocol{policy.TCP, policy.TCP, policy.UDP, policy.SCTP, policy.ICMP, policy.ICMPv6})}
	switch {
	case g.broken && g.one(3):
		m.Protocol = pick(g, []policy.Protocol{0, policy.TCP, policy.ICMP, 47})
		m.Port, m.EndPort = pick(g, []uint16{0, 80, 90}), pick(g, []uint16{0, 80})
		m.Name = pick(g, []string{"", "web"})
		m.ICMPCode = g.octet()
	case m.Protocol == policy.ICMP || m.Protocol == policy.ICMPv6:
		if m.ICMPType = g.octet(); m.ICMPType != nil {
			m.ICMPCode = g.octet()
		}
	case g.one(3):
		m.Name = pick(g, portNames)
	case g.one(2):
		m.Port, m.EndPort = 80, pick(g, []uint16{80, 85})
	default:
		m.Port = pick(g, append([]uint16{0}, numbers...))
	}
	return m
}

func (g gen) octet() *uint8 {
	if g.one(2) {
		return nil
	}
	b := pick(g, []uint8{0, 8})
	return &b
}

func (g gen) peer() policy.Peer {
	var p policy.Peer
	for range rapid.IntRange(1, 2).Draw(g.t, "fields") {
		most := 7
		if g.l7 {
			most = 9
		}
		switch rapid.IntRange(1, most).Draw(g.t, "field") {
		case 1:
			p.Namespaces = some(g, 1, 2, func() string { return pick(g, namespaces) })
		case 2:
			p.NamespaceSelector = g.selector()
		case 3:
			p.PodSelector = g.selector()
		case 4:
			p.ServiceAccounts = some(g, 1, 2, func() policy.ServiceAccount {
				return policy.ServiceAccount{Namespace: pick(g, namespaces), Name: pick(g, accounts)}
			})
		case 5:
			p.ServiceAccountSelector = g.selector()
		case 6:
			p.Networks = some(g, 1, 2, g.network)
		case 7:
			p.Entities = some(g, 1, 2, func() policy.Entity {
				if g.broken && g.one(3) {
					return pick(g, []policy.Entity{"", "moon"})
				}
				return pick(g, []policy.Entity{policy.EntityCluster, policy.EntityHost, policy.EntityWorld})
			})
		default:
			p.Principals = some(g, 1, 2, func() string {
				if g.broken && g.one(3) {
					return pick(g, []string{"", "*a", "a*b*", "**"})
				}
				return pick(g, patterns)
			})
		}
	}
	if g.broken && g.one(6) {
		p = policy.Peer{}
	}
	p.PeerSet = p.SelectorDigest()
	return p
}

func (g gen) selector() *policy.Selector {
	return &policy.Selector{Requirements: some(g, 0, 2, func() policy.Requirement {
		r := policy.Requirement{Key: pick(g, keys), Operator: policy.Operator(rapid.IntRange(1, 4).Draw(g.t, "operator"))}
		if r.Operator == policy.In || r.Operator == policy.NotIn {
			r.Values = some(g, 1, 2, func() string { return pick(g, labels) })
		}
		if g.broken && g.one(4) {
			r.Operator = pick(g, []policy.Operator{0, 9})
		}
		return r
	})}
}

func (g gen) network() policy.Network {
	draw := func() netip.Prefix {
		if g.broken && g.one(4) {
			return pick(g, []netip.Prefix{{}, netip.MustParsePrefix("::ffff:10.0.0.0/104")})
		}
		return pick(g, prefixes)
	}
	return policy.Network{Prefix: draw(), Except: maybe(g, 3, 2, draw)}
}

func (g gen) http() policy.HTTPMatch {
	return policy.HTTPMatch{
		Methods: maybe(g, 2, 2, func() string { return pick(g, methods) }),
		Paths: maybe(g, 2, 2, func() policy.PathMatch {
			if g.broken && g.one(3) {
				return policy.PathMatch{Type: pick(g, []policy.PathMatchType{0, 1, 2, 3, 7}), Value: pick(g, []string{"", "a", "*", "/a", "/{", "/a{x}", "/{}", "/{a-b}"})}
			}
			switch rapid.IntRange(1, 4).Draw(g.t, "path") {
			case 1:
				return policy.PathMatch{Type: policy.PathTemplate, Value: pick(g, templates)}
			case 2:
				m, err := policy.RegexPath(pick(g, regexes))
				if err != nil {
					panic(err)
				}
				if g.broken && g.one(3) {
					m.Regex = nil
				}
				return m
			}
			return policy.PathMatch{Type: pick(g, []policy.PathMatchType{policy.PathExact, policy.PathPrefix}), Value: pick(g, paths)}
		}),
		Hosts: maybe(g, 3, 2, func() string {
			if g.broken && g.one(3) {
				return pick(g, []string{"", "*", "*.", "*x", "x:80", "[::1", "*.*.x"})
			}
			return pick(g, hosts)
		}),
		Headers: maybe(g, 3, 2, func() policy.HeaderMatch {
			name := pick(g, headers)
			if g.broken && g.one(3) {
				name = pick(g, []string{"", "X-One"})
			}
			return policy.HeaderMatch{Name: name, Values: maybe(g, 2, 2, func() string { return pick(g, values) })}
		}),
		Query: maybe(g, 5, 2, func() policy.QueryMatch {
			name := pick(g, []string{"k", "k", "j"})
			if g.broken && g.one(3) {
				name = ""
			}
			return policy.QueryMatch{Name: name, Values: maybe(g, 2, 2, func() string { return pick(g, append([]string{" 1", ""}, values...)) })}
		}),
		GRPC: maybe(g, 6, 2, func() policy.GRPCMatch {
			m := policy.GRPCMatch{Service: pick(g, services), Method: pick(g, services)}
			if g.broken && g.one(3) {
				m.Method = pick(g, []string{"*", "a/b"})
			}
			return m
		}),
	}
}

// Flow generates flows between pods, nodes and the world. Its facts agree with
// each other: principals go with mTLS, mTLS and HTTP with TCP.
func Flow() *rapid.Generator[*policy.Flow] {
	return rapid.Custom(func(t *rapid.T) *policy.Flow {
		g := gen{t: t}
		f := &policy.Flow{
			Source:      g.endpoint(),
			Destination: g.endpoint(),
			Protocol:    pick(g, []policy.Protocol{policy.TCP, policy.TCP, policy.TCP, policy.UDP, policy.SCTP, policy.ICMP, policy.ICMPv6, 47}),
		}
		switch f.Protocol {
		case policy.ICMP, policy.ICMPv6:
			f.ICMPType, f.ICMPCode = pick(g, []uint8{0, 8, 3}), pick(g, []uint8{0, 8, 3})
		case policy.TCP, policy.UDP, policy.SCTP:
			f.Port = pick(g, append([]uint16{7}, numbers...))
		}
		if f.Protocol != policy.TCP {
			return f
		}
		if f.MTLS = g.one(2); f.MTLS {
			f.Source.Principal, f.Destination.Principal = g.principal(), g.principal()
		}
		if g.one(2) {
			f.HTTP = g.request()
		}
		return f
	})
}

func (g gen) principal() string {
	return pick(g, append([]string{"spiffe://cluster.local/ns/red/sa/frontier", "unlike"}, principals...))
}

func (g gen) request() *policy.HTTPRequest {
	sent := map[string][]string{}
	for _, name := range headers {
		if list := some(g, 0, 2, func() string { return pick(g, append([]string{"3"}, values...)) }); len(list) > 0 {
			sent[name] = list
		}
	}
	if g.one(3) {
		sent["content-type"] = []string{pick(g, []string{"application/grpc", "Application/gRPC+proto", "application/json"})}
	}
	return &policy.HTTPRequest{
		Query:  pick(g, queries),
		Method: pick(g, append([]string{"get"}, methods...)),
		Path:   pick(g, append([]string{"*", "/c", "/a/b/c", "/a/bc"}, paths...)),
		Host:   pick(g, []string{"x.example", "y.x.example", "z.y.x.example", "yx.example", "X.Example", ".x.example", "unlike"}),
		Header: func(name string) []string { return sent[name] },
	}
}

func (g gen) endpoint() policy.Endpoint {
	e := policy.Endpoint{Addr: pick(g, addrs)}
	switch rapid.IntRange(1, 6).Draw(g.t, "kind") {
	case 1:
		e.Host, e.HostOf = true, pick(g, append([]string{""}, nodes...))
	case 2: // the world
	case 3: // a host-network pod
		e.Host, e.HostOf, e.Workload = true, pick(g, nodes), Workload().Draw(g.t, "workload")
	default:
		e.Workload = Workload().Draw(g.t, "workload")
	}
	return e
}

// Workload generates pods.
func Workload() *rapid.Generator[*policy.Workload] {
	return rapid.Custom(func(t *rapid.T) *policy.Workload {
		g := gen{t: t}
		return &policy.Workload{
			UID:                  pick(g, []string{"1", "2", "3", "4", "5", "6", ""}),
			Namespace:            pick(g, append([]string{"green"}, namespaces...)),
			Name:                 "pod",
			ServiceAccount:       pick(g, append([]string{"default"}, accounts...)),
			Node:                 pick(g, append([]string{""}, nodes...)),
			Labels:               g.labels(),
			NamespaceLabels:      g.labels(),
			ServiceAccountLabels: g.labels(),
			NamedPorts: some(g, 0, 2, func() policy.NamedPort {
				return policy.NamedPort{Name: pick(g, portNames), Protocol: pick(g, []policy.Protocol{policy.TCP, policy.UDP}), Port: pick(g, numbers)}
			}),
		}
	})
}

func (g gen) labels() map[string]string {
	out := map[string]string{}
	for _, k := range keys {
		if g.one(2) {
			out[k] = pick(g, append([]string{"c"}, labels...))
		}
	}
	return out
}
