package policy_test

import (
	"math"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/hauberk-mesh/hauberk/policy"
)

// full has one of everything.
func full() *policy.Set {
	octet := uint8(8)
	peer := policy.Peer{
		Namespaces:             []string{"red", "blue"},
		NamespaceSelector:      selector("team", policy.In, "a", "b"),
		PodSelector:            &policy.Selector{Requirements: []policy.Requirement{{Key: "app", Operator: policy.Exists}, {Key: "x", Operator: policy.DoesNotExist}}},
		ServiceAccounts:        []policy.ServiceAccount{{Namespace: "red", Name: "front"}, {Namespace: "red", Name: "back"}},
		ServiceAccountSelector: &policy.Selector{},
		Principals:             []string{"*", frontID},
		Networks:               []policy.Network{network("10.0.0.0/8", "10.1.0.0/16", "10.2.0.0/16"), network("fd00::/8")},
		Entities:               []policy.Entity{policy.EntityCluster, policy.EntityWorld},
	}
	peer.PeerSet = peer.SelectorDigest()
	rule := policy.Rule{
		Name: "ingress[0]", Action: policy.Allow, RequireMTLS: true,
		Peers: []policy.Peer{peer, {Entities: []policy.Entity{policy.EntityHost}}},
		Ports: []policy.PortMatch{{Protocol: policy.TCP, Port: 80, EndPort: 90}, {Protocol: policy.ICMP, ICMPType: &octet}},
		HTTP: []policy.HTTPMatch{{
			Methods: []string{"GET", "PUT"},
			Paths:   []policy.PathMatch{{Type: policy.PathPrefix, Value: "/a"}, {Value: "/b"}},
			Hosts:   []string{"*.example", "[::1]"},
			Headers: []policy.HeaderMatch{{Name: "x-a", Values: []string{"1", "2"}}, {Name: "x-b"}},
		}, {Methods: []string{"HEAD"}}},
	}
	first := pol("first", rule, anyone(policy.Deny))
	first.Ref.UID, first.Ref.Generation = "uid", 3
	last := pol("last")
	last.Order = math.Inf(1)
	late := tier("late", policy.Pass)
	late.Order = 7
	return &policy.Set{
		ID:            "id",
		Ingress:       []policy.Tier{tier("early", policy.Deny, first, last), late},
		Egress:        []policy.Tier{tier("early", policy.Deny, pol("out", anyone(policy.Allow)))},
		DefaultAction: policy.Allow,
	}
}

func rule0(s *policy.Set) *policy.Rule { return &s.Ingress[0].Policies[0].Rules[0] }
func peer0(s *policy.Set) *policy.Peer { return &rule0(s).Peers[0] }

func TestDigest(t *testing.T) {
	want := full().Digest()
	if !regexp.MustCompile(`^[0-9a-f]{32}$`).MatchString(want) {
		t.Fatalf("digest %q", want)
	}
	same := map[string]func(*policy.Set){
		"another call":         func(*policy.Set) {},
		"id":                   func(s *policy.Set) { s.ID = "other" },
		"order of peers":       func(s *policy.Set) { slices.Reverse(rule0(s).Peers) },
		"order of ports":       func(s *policy.Set) { slices.Reverse(rule0(s).Ports) },
		"order of http":        func(s *policy.Set) { slices.Reverse(rule0(s).HTTP) },
		"order of methods":     func(s *policy.Set) { slices.Reverse(rule0(s).HTTP[0].Methods) },
		"order of paths":       func(s *policy.Set) { slices.Reverse(rule0(s).HTTP[0].Paths) },
		"order of exceptions":  func(s *policy.Set) { slices.Reverse(peer0(s).Networks[0].Except) },
		"order of conditions":  func(s *policy.Set) { slices.Reverse(peer0(s).PodSelector.Requirements) },
		"a method said twice":  func(s *policy.Set) { rule0(s).HTTP[0].Methods = []string{"GET", "PUT", "GET"} },
		"empty instead of nil": func(s *policy.Set) { s.Ingress[0].Policies[1].Rules = []policy.Rule{} },
	}
	for name, change := range same {
		s := full()
		change(s)
		if got := s.Digest(); got != want {
			t.Errorf("%s: the digest became %s, was %s", name, got, want)
		}
	}
	seen := map[string]string{want: "the set itself"}
	for name, change := range map[string]func(*policy.Set){
		"default action":     func(s *policy.Set) { s.DefaultAction = policy.Deny },
		"directions":         func(s *policy.Set) { s.Ingress, s.Egress = s.Egress, s.Ingress },
		"tier's name":        func(s *policy.Set) { s.Ingress[0].Name = "x" },
		"tier's order":       func(s *policy.Set) { s.Ingress[0].Order = -1 },
		"tier's action":      func(s *policy.Set) { s.Ingress[0].DefaultAction = policy.Pass },
		"order of tiers":     func(s *policy.Set) { slices.Reverse(s.Ingress) },
		"order of policies":  func(s *policy.Set) { slices.Reverse(s.Ingress[0].Policies) },
		"order of rules":     func(s *policy.Set) { slices.Reverse(s.Ingress[0].Policies[0].Rules) },
		"policy's name":      func(s *policy.Set) { s.Ingress[0].Policies[0].Ref.Name = "x" },
		"uid":                func(s *policy.Set) { s.Ingress[0].Policies[0].Ref.UID = "x" },
		"generation":         func(s *policy.Set) { s.Ingress[0].Policies[0].Ref.Generation++ },
		"policy's order":     func(s *policy.Set) { s.Ingress[0].Policies[0].Order = 0 },
		"mode":               func(s *policy.Set) { s.Ingress[0].Policies[0].Mode = policy.Audit },
		"invalid policy":     func(s *policy.Set) { s.Ingress[0].Policies[0].Invalid = "x" },
		"invalid rule":       func(s *policy.Set) { rule0(s).Invalid = "x" },
		"rule's name":        func(s *policy.Set) { rule0(s).Name = "x" },
		"action":             func(s *policy.Set) { rule0(s).Action = policy.Pass },
		"any peer":           func(s *policy.Set) { rule0(s).AnyPeer = true },
		"mTLS":               func(s *policy.Set) { rule0(s).RequireMTLS = false },
		"peer set":           func(s *policy.Set) { peer0(s).PeerSet = "x" },
		"namespaces":         func(s *policy.Set) { peer0(s).Namespaces = nil },
		"namespace selector": func(s *policy.Set) { peer0(s).NamespaceSelector = nil },
		"empty selector":     func(s *policy.Set) { peer0(s).ServiceAccountSelector = nil },
		"operator":           func(s *policy.Set) { peer0(s).NamespaceSelector.Requirements[0].Operator = policy.NotIn },
		"service account": func(s *policy.Set) {
			peer0(s).ServiceAccounts[0] = policy.ServiceAccount{Namespace: "redf", Name: "ront"}
		},
		"principal":       func(s *policy.Set) { peer0(s).Principals = peer0(s).Principals[:1] },
		"prefix":          func(s *policy.Set) { peer0(s).Networks[1].Prefix = netip.MustParsePrefix("fd00::/9") },
		"exception":       func(s *policy.Set) { peer0(s).Networks[0].Except = nil },
		"entity":          func(s *policy.Set) { peer0(s).Entities = peer0(s).Entities[:1] },
		"end of ports":    func(s *policy.Set) { rule0(s).Ports[0].EndPort = 91 },
		"icmp type":       func(s *policy.Set) { rule0(s).Ports[1].ICMPType = nil },
		"path's type":     func(s *policy.Set) { rule0(s).HTTP[0].Paths[1].Type = policy.PathPrefix },
		"host":            func(s *policy.Set) { rule0(s).HTTP[0].Hosts = nil },
		"query":           func(s *policy.Set) { rule0(s).HTTP[0].Query = []policy.QueryMatch{{Name: "k"}} },
		"query's values":  func(s *policy.Set) { rule0(s).HTTP[0].Query = []policy.QueryMatch{{Name: "k", Values: []string{"1"}}} },
		"grpc service":    func(s *policy.Set) { rule0(s).HTTP[0].GRPC = []policy.GRPCMatch{{Service: "k"}} },
		"grpc method":     func(s *policy.Set) { rule0(s).HTTP[0].GRPC = []policy.GRPCMatch{{Method: "k"}} },
		"header's values": func(s *policy.Set) { rule0(s).HTTP[0].Headers[0].Values = []string{"12"} },
	} {
		s := full()
		change(s)
		got := s.Digest()
		if other, ok := seen[got]; ok {
			t.Errorf("%s: the digest is the same as for: %s", name, other)
		}
		seen[got] = name
	}
}

func TestSelectorDigest(t *testing.T) {
	base := *peer0(full())
	want := base.SelectorDigest()
	other := base
	other.Principals, other.Networks, other.Entities, other.PeerSet = nil, nil, nil, ""
	if got := other.SelectorDigest(); got != want {
		t.Error("fields that select no workloads count")
	}
	other.Namespaces = []string{"blue", "red", "red"}
	if got := other.SelectorDigest(); got != want {
		t.Error("the order or repetition of namespaces counts")
	}
	other.PodSelector = nil
	if got := other.SelectorDigest(); got == want {
		t.Error("the pod selector does not count")
	}
	if got := (&policy.Peer{Principals: []string{"*"}}).SelectorDigest(); got != "" {
		t.Errorf("a peer without selectors has digest %q", got)
	}
	all, none := policy.Peer{PodSelector: &policy.Selector{}}, policy.Peer{NamespaceSelector: &policy.Selector{}}
	if all.SelectorDigest() == none.SelectorDigest() {
		t.Error("empty selectors of different fields are alike")
	}
}

func TestValidate(t *testing.T) {
	if err := full().Validate(); err != nil {
		t.Fatalf("the full set is refused: %v", err)
	}
	first := func(s *policy.Set) *policy.Policy { return &s.Ingress[0].Policies[0] }
	tests := []struct {
		name   string
		change func(*policy.Set)
		want   string
	}{
		{"default action", func(s *policy.Set) { s.DefaultAction = policy.Log }, "neither Allow nor Deny"},
		{"tier without name", func(s *policy.Set) { s.Ingress[0].Name = "" }, `ingress: tier "": it has no name`},
		{"tier's order", func(s *policy.Set) { s.Ingress[0].Order = math.NaN() }, "not a number"},
		{"tier's action", func(s *policy.Set) { s.Egress[0].DefaultAction = policy.Allow }, `egress: tier "early": default action Allow is neither`},
		{"order of tiers", func(s *policy.Set) { s.Ingress[0].Order = 8 }, `tier "late": it stands after tier "early"`},
		{"order of policies", func(s *policy.Set) { slices.Reverse(s.Ingress[0].Policies) }, "MeshPolicy red/first stands after MeshPolicy red/last"},
		{"the same policy twice", func(s *policy.Set) { s.Ingress[0].Policies[1] = *first(s) }, "stands after"},
		{"policy without name", func(s *policy.Set) { first(s).Ref.Name = "" }, "must not be empty"},
		{"policy's order", func(s *policy.Set) { first(s).Order = math.NaN() }, "not a number"},
		{"mode", func(s *policy.Set) { first(s).Mode = 7 }, "mode 7 is not known"},
		{"rule without name", func(s *policy.Set) { rule0(s).Name = "" }, "it has no name"},
		{"action", func(s *policy.Set) { rule0(s).Action = 7 }, "Action(7) is not known"},
		{"any peer and peers", func(s *policy.Set) { rule0(s).AnyPeer = true }, "exclude each other"},
		{"empty peer", func(s *policy.Set) { rule0(s).Peers[1] = policy.Peer{} }, "peer 1: it is empty"},
		{"peer set missing", func(s *policy.Set) { peer0(s).PeerSet = "" }, "if and only if"},
		{"peer set without selector", func(s *policy.Set) { rule0(s).Peers[1].PeerSet = "x" }, "if and only if"},
		{"operator", func(s *policy.Set) { peer0(s).NamespaceSelector.Requirements[0].Operator = 0 }, `label "team" is not known`},
		{"principal", func(s *policy.Set) { peer0(s).Principals[0] = "" }, "principal pattern"},
		{"network", func(s *policy.Set) { peer0(s).Networks[0].Except[0] = netip.Prefix{} }, "no IPv4 or IPv6 prefix"},
		{"entity", func(s *policy.Set) { peer0(s).Entities[0] = "moon" }, `entity "moon"`},
		{"port", func(s *policy.Set) { rule0(s).Ports[0].Protocol = 0 }, "port 0: the protocol is none of"},
		{"path", func(s *policy.Set) { rule0(s).HTTP[0].Paths[0].Value = "a" }, "begins with '/'"},
		{"host", func(s *policy.Set) { rule0(s).HTTP[0].Hosts[0] = "a:80" }, "a host has no port"},
		{"header", func(s *policy.Set) { rule0(s).HTTP[0].Headers[0].Name = "X-A" }, "lower case"},
		{"in an invalid rule", func(s *policy.Set) { rule0(s).Invalid = "x"; rule0(s).Ports[0].Protocol = 0 }, "port 0"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := full()
			tt.change(s)
			err := s.Validate()
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want an error with %q", err, tt.want)
			}
		})
	}
	s := full()
	rule0(s).Invalid, rule0(s).Peers[1] = "x", policy.Peer{}
	if err := s.Validate(); err != nil {
		t.Errorf("an empty peer in an invalid rule is refused: %v", err)
	}
	if err := (*policy.Set)(nil).Validate(); err == nil {
		t.Error("no set is accepted")
	}
}

func TestResolve(t *testing.T) {
	s := ingress(
		tier("audited", policy.Deny, audit(pol("a", anyone(policy.Deny)))),
		tier("t", policy.Deny,
			pol("p", unresolved(anyone(policy.Allow)), unresolved(policy.Rule{Name: "x", Action: policy.Deny}), anyone(policy.Allow)),
		),
	)
	got := s.Resolve()
	if len(got.Ingress) != 1 || got.Ingress[0].Name != "t" {
		t.Fatalf("tiers: %+v", got.Ingress)
	}
	rules := got.Ingress[0].Policies[0].Rules
	principal := pol("q", policy.Rule{Name: "y", Action: policy.Deny, Peers: []policy.Peer{{Principals: []string{"a*b"}}}})
	widened := ingress(tier("t", policy.Deny, principal)).Resolve().Ingress[0].Policies[0].Rules
	if len(widened) != 1 || !slices.Equal(widened[0].Peers[0].Principals, []string{"*"}) {
		t.Errorf("a Deny of a pattern that cannot be read: %+v", widened)
	}
	if len(rules) != 2 || rules[0].Name != "x" || !rules[0].AnyPeer || rules[0].Invalid != "" || rules[1].Action != policy.Allow {
		t.Errorf("rules: %+v", rules)
	}
}
