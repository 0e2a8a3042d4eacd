package wire_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"pgregory.net/rapid"

	hauberkv1 "github.com/hauberk-mesh/hauberk/api/gen/hauberk/v1"
	"github.com/hauberk-mesh/hauberk/internal/wire"
	"github.com/hauberk-mesh/hauberk/policy"
	"github.com/hauberk-mesh/hauberk/policy/policytest"
)

var equal = cmp.Options{
	cmpopts.EquateEmpty(),
	cmpopts.EquateComparable(policy.Network{}.Prefix),
}

// What was sent is what is received, through bytes.
func TestPolicySetRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := policytest.Set().Draw(t, "set")
		b, err := proto.Marshal(wire.PolicySetToProto(want))
		if err != nil {
			t.Fatal(err)
		}
		var m hauberkv1.PolicySet
		if err := proto.Unmarshal(b, &m); err != nil {
			t.Fatal(err)
		}
		got, err := wire.PolicySetFromProto(&m)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got, equal); diff != "" {
			t.Fatalf("-sent +received:\n%s", diff)
		}
		if got.Digest() != want.ID {
			t.Fatalf("the digest became %s, was %s", got.Digest(), want.ID)
		}
	})
}

func TestWorkloadRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := policytest.Workload().Draw(t, "workload")
		got, err := wire.WorkloadFromProto(wire.WorkloadToProto(want))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
			t.Fatalf("-sent +received:\n%s", diff)
		}
	})
}

// good has one of everything.
func good() *hauberkv1.PolicySet {
	octet := uint32(8)
	peer := &hauberkv1.Peer{
		Namespaces: []string{"red"},
		PodSelector: &hauberkv1.Selector{Requirements: []*hauberkv1.Requirement{
			{Key: "app", Operator: hauberkv1.Requirement_OPERATOR_IN, Values: []string{"a"}},
		}},
		ServiceAccounts: []*hauberkv1.ServiceAccount{{Namespace: "red", Name: "front"}},
		Principals:      []string{"spiffe://cluster.local/*"},
		Networks:        []*hauberkv1.Network{{Prefix: "10.0.0.0/8", Except: []string{"10.1.0.0/16"}}},
		Entities:        []string{"cluster"},
		PeerSet:         "set",
	}
	rule := &hauberkv1.Rule{
		Name: "ingress[0]", Action: hauberkv1.Action_ACTION_ALLOW, Peers: []*hauberkv1.Peer{peer},
		Ports: []*hauberkv1.PortMatch{{Protocol: 6, Port: 80, EndPort: 90}, {Protocol: 1, IcmpType: &octet, IcmpCode: &octet}},
		Http: []*hauberkv1.HTTPMatch{{
			Methods: []string{"GET"},
			Paths:   []*hauberkv1.PathMatch{{Type: hauberkv1.PathMatch_TYPE_PREFIX, Value: "/a"}},
			Hosts:   []string{"*.example"},
			Headers: []*hauberkv1.HeaderMatch{{Name: "x-a", Values: []string{"1"}}},
			Query:   []*hauberkv1.QueryMatch{{Name: "q", Values: []string{"1"}}},
			Grpc:    []*hauberkv1.GRPCMatch{{Service: "bank.Accounts", Method: "Get"}},
		}},
		RequireMtls: true,
	}
	return &hauberkv1.PolicySet{
		Id: "id", DefaultAction: hauberkv1.Action_ACTION_ALLOW,
		Ingress: []*hauberkv1.Tier{{
			Name: "default", Order: 1e6, DefaultAction: hauberkv1.Action_ACTION_DENY,
			Policies: []*hauberkv1.Policy{{Kind: "MeshPolicy", Namespace: "red", Name: "p", Rules: []*hauberkv1.Rule{rule}}},
		}},
	}
}

func unknownField(m proto.Message) {
	m.ProtoReflect().SetUnknown(protowire.AppendVarint(protowire.AppendTag(nil, 99, protowire.VarintType), 1))
}

func TestPolicySetFromProtoRefuses(t *testing.T) {
	if _, err := wire.PolicySetFromProto(good()); err != nil {
		t.Fatalf("the good set is refused: %v", err)
	}
	rule := func(m *hauberkv1.PolicySet) *hauberkv1.Rule { return m.Ingress[0].Policies[0].Rules[0] }
	peer := func(m *hauberkv1.PolicySet) *hauberkv1.Peer { return rule(m).Peers[0] }
	at := `policy set "id": ingress[0].policies[0].rules[0]`
	tests := []struct {
		name   string
		change func(*hauberkv1.PolicySet)
		want   string
	}{
		{"no default action", func(m *hauberkv1.PolicySet) { m.DefaultAction = 0 }, `policy set "id": default_action: action 0 is not known`},
		{"default action that is none", func(m *hauberkv1.PolicySet) { m.DefaultAction = hauberkv1.Action_ACTION_LOG }, "neither Allow nor Deny"},
		{"tier without action", func(m *hauberkv1.PolicySet) { m.Ingress[0].DefaultAction = 0 }, `ingress[0].default_action: action 0 is not known`},
		{"tier that allows", func(m *hauberkv1.PolicySet) { m.Ingress[0].DefaultAction = hauberkv1.Action_ACTION_ALLOW }, "neither Deny nor Pass"},
		{"action of the future", func(m *hauberkv1.PolicySet) { rule(m).Action = 77 }, at + ".action: action 77 is not known"},
		{"operator of the future", func(m *hauberkv1.PolicySet) { peer(m).PodSelector.Requirements[0].Operator = 77 },
			at + ".peers[0].pod_selector.requirements[0].operator 77 is not known"},
		{"no prefix", func(m *hauberkv1.PolicySet) { peer(m).Networks[0].Prefix = "10/8" }, at + `.peers[0].networks[0].prefix "10/8" cannot be parsed`},
		{"no exception", func(m *hauberkv1.PolicySet) { peer(m).Networks[0].Except[0] = "" }, `networks[0].except[0].prefix "" cannot be parsed`},
		{"mapped prefix", func(m *hauberkv1.PolicySet) { peer(m).Networks[0].Prefix = "::ffff:10.0.0.0/104" }, "is no IPv4 or IPv6 prefix"},
		{"entity of the future", func(m *hauberkv1.PolicySet) { peer(m).Entities[0] = "moon" }, `peers[0].entities[0].entity "moon" is none of`},
		{"any protocol", func(m *hauberkv1.PolicySet) { rule(m).Ports[0].Protocol = 0 }, at + ".ports[0].protocol 0 is none of"},
		{"protocol of the future", func(m *hauberkv1.PolicySet) { rule(m).Ports[0].Protocol = 47 }, "protocol 47 is none of"},
		{"protocol that would be cut to TCP", func(m *hauberkv1.PolicySet) { rule(m).Ports[0].Protocol = 256 + 6 }, "protocol 262 is none of"},
		{"port too large", func(m *hauberkv1.PolicySet) { rule(m).Ports[0].Port = 65536 + 80 }, "port: 65616 is more than 65535"},
		{"end of ports too large", func(m *hauberkv1.PolicySet) { rule(m).Ports[0].EndPort = 65536 }, "end_port: 65536 is more than 65535"},
		{"range backwards", func(m *hauberkv1.PolicySet) { rule(m).Ports[0].EndPort = 79 }, "ends before it begins"},
		{"icmp type too large", func(m *hauberkv1.PolicySet) { *rule(m).Ports[1].IcmpType = 256 }, "icmp_type: 256 is more than 255"},
		{"path type of the future", func(m *hauberkv1.PolicySet) { rule(m).Http[0].Paths[0].Type = 77 }, at + ".http[0].paths[0].path type 77 is not known"},
		{"template with half a variable", func(m *hauberkv1.PolicySet) {
			rule(m).Http[0].Paths[0] = &hauberkv1.PathMatch{Type: hauberkv1.PathMatch_TYPE_TEMPLATE, Value: "/a/{id}x"}
		}, "a variable of a template is a whole segment"},
		{"expression that is none", func(m *hauberkv1.PolicySet) {
			rule(m).Http[0].Paths[0] = &hauberkv1.PathMatch{Type: hauberkv1.PathMatch_TYPE_REGEX, Value: "/a)|(/.*"}
		}, at + ".http[0].paths[0].\"/a)|(/.*\" is no RE2 expression"},
		{"expression too long", func(m *hauberkv1.PolicySet) {
			rule(m).Http[0].Paths[0] = &hauberkv1.PathMatch{Type: hauberkv1.PathMatch_TYPE_REGEX, Value: strings.Repeat("a", 513)}
		}, "longer than 512 bytes"},
		{"query without name", func(m *hauberkv1.PolicySet) { rule(m).Http[0].Query[0].Name = "" }, "a query parameter has a name"},
		{"grpc service with a slash", func(m *hauberkv1.PolicySet) { rule(m).Http[0].Grpc[0].Service = "a/b" }, "a gRPC service or method is a name"},
		{"principal in the middle", func(m *hauberkv1.PolicySet) { peer(m).Principals[0] = "a*b" }, "'*' that is not at its end"},
		{"host with port", func(m *hauberkv1.PolicySet) { rule(m).Http[0].Hosts[0] = "a:80" }, "a host has no port"},
		{"header in capitals", func(m *hauberkv1.PolicySet) { rule(m).Http[0].Headers[0].Name = "X-A" }, "lower case"},
		{"selector without peer set", func(m *hauberkv1.PolicySet) { peer(m).PeerSet = "" }, "if and only if it selects workloads"},
		{"field of the future", func(m *hauberkv1.PolicySet) { unknownField(m) }, `policy set "id": the message itself: hauberk.v1.PolicySet has field 99`},
		{"deep field of the future", func(m *hauberkv1.PolicySet) { unknownField(peer(m).PodSelector.Requirements[0]) },
			at + ".peers[0].pod_selector.requirements[0]: hauberk.v1.Requirement has field 99, which this program does not know"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m := good()
			tt.change(m)
			got, err := wire.PolicySetFromProto(m)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got error %v, want one with %q", err, tt.want)
			}
			if got != nil {
				t.Error("a set came with the error")
			}
		})
	}
	if _, err := wire.PolicySetFromProto(nil); err == nil {
		t.Error("an absent message is accepted")
	}
}

// Each message of the API of policy is looked into: a field of the future is
// refused wherever it stands.
func TestUnknownFieldsAreRefusedEverywhere(t *testing.T) {
	count := 0
	var visit func(m proto.Message, root *hauberkv1.PolicySet)
	visit = func(m proto.Message, root *hauberkv1.PolicySet) {
		count++
		unknownField(m)
		if _, err := wire.PolicySetFromProto(root); err == nil {
			t.Errorf("a field of the future in %T is accepted", m)
		}
		m.ProtoReflect().SetUnknown(nil)
		for _, child := range children(m) {
			visit(child, root)
		}
	}
	root := good()
	visit(root, root)
	if want := 16; count != want {
		t.Errorf("visited %d messages, want %d", count, want)
	}
}

// children is the messages directly below m.
func children(m proto.Message) []proto.Message {
	var out []proto.Message
	m.ProtoReflect().Range(func(field protoreflect.FieldDescriptor, value protoreflect.Value) bool {
		switch {
		case field.Message() == nil:
		case field.IsList():
			for i := range value.List().Len() {
				out = append(out, value.List().Get(i).Message().Interface())
			}
		default:
			out = append(out, value.Message().Interface())
		}
		return true
	})
	return out
}

func TestWorkloadFromProtoRefuses(t *testing.T) {
	for name, m := range map[string]*hauberkv1.Workload{
		"nothing":            nil,
		"port zero":          {NamedPorts: []*hauberkv1.NamedPort{{Name: "web", Protocol: 6}}},
		"port too large":     {NamedPorts: []*hauberkv1.NamedPort{{Name: "web", Protocol: 6, Port: 65536}}},
		"protocol not known": {NamedPorts: []*hauberkv1.NamedPort{{Name: "web", Protocol: 0, Port: 80}}},
	} {
		t.Run(name, func(t *testing.T) {
			if got, err := wire.WorkloadFromProto(m); err == nil {
				t.Errorf("got %v, want an error", got)
			}
		})
	}
}

// No bytes make the conversion panic, and what is accepted can be sent again.
func FuzzPolicySetFromProto(f *testing.F) {
	seed, err := proto.Marshal(good())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(seed)
	f.Add([]byte{0x12, 0x00})
	f.Fuzz(func(t *testing.T, b []byte) {
		var m hauberkv1.PolicySet
		if proto.Unmarshal(b, &m) != nil {
			return
		}
		s, err := wire.PolicySetFromProto(&m)
		if err != nil {
			return
		}
		again, err := wire.PolicySetFromProto(wire.PolicySetToProto(s))
		if err != nil {
			t.Fatalf("an accepted set is refused when sent again: %v", err)
		}
		if diff := cmp.Diff(s, again, equal); diff != "" {
			t.Fatal(diff)
		}
	})
}
