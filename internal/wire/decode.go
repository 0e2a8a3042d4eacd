package wire

import (
	"errors"
	"fmt"
	"net/netip"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/reflect/protoreflect"

	hauberkv1 "github.com/hauberk-mesh/hauberk/api/gen/hauberk/v1"
	"github.com/hauberk-mesh/hauberk/policy"
)

// PolicySetFromProto converts a set and refuses one with anything in it that
// this program does not know or that policy.Set.Validate refuses. Errors name
// the place. Lists of strings are shared with the message, which must not
// change afterwards.
func PolicySetFromProto(m *hauberkv1.PolicySet) (*policy.Set, error) {
	if m == nil {
		return nil, errors.New("policy set: the message is empty")
	}
	if err := refuseUnknownFields(m.ProtoReflect(), ""); err != nil {
		return nil, fmt.Errorf("policy set %q: %w", m.GetId(), err)
	}
	d := &decoder{}
	s := &policy.Set{
		ID:            m.GetId(),
		Ingress:       each(d, "ingress", m.GetIngress(), d.tier),
		Egress:        each(d, "egress", m.GetEgress(), d.tier),
		DefaultAction: d.action("default_action", m.GetDefaultAction()),
	}
	if d.err != nil {
		return nil, fmt.Errorf("policy set %q: %w", m.GetId(), d.err)
	}
	if err := s.Validate(); err != nil {
		return nil, err
	}
	return s, nil
}

// refuseUnknownFields names the first field, anywhere below the message, that
// was written by a program with a newer API.
func refuseUnknownFields(m protoreflect.Message, path string) error {
	if unknown := m.GetUnknown(); len(unknown) > 0 {
		number, _, _ := protowire.ConsumeTag(unknown)
		if path == "" {
			path = "the message itself"
		}
		return fmt.Errorf("%s: %s has field %d, which this program does not know: upgrade it to the control plane's version",
			path, m.Descriptor().FullName(), number)
	}
	var err error
	m.Range(func(field protoreflect.FieldDescriptor, value protoreflect.Value) bool {
		if field.Message() == nil || field.IsMap() {
			return true
		}
		at := string(field.Name())
		if path != "" {
			at = path + "." + at
		}
		if !field.IsList() {
			err = refuseUnknownFields(value.Message(), at)
			return err == nil
		}
		for i := range value.List().Len() {
			if err = refuseUnknownFields(value.List().Get(i).Message(), fmt.Sprintf("%s[%d]", at, i)); err != nil {
				return false
			}
		}
		return true
	})
	return err
}

// decoder keeps the first error and where it is.
type decoder struct {
	path []string
	err  error
}

func (d *decoder) fail(format string, args ...any) {
	if d.err != nil {
		return
	}
	at := ""
	for _, p := range d.path {
		at += p + "."
	}
	d.err = fmt.Errorf("%s%w", at, fmt.Errorf(format, args...))
}

// each converts the entries of a list until the first error.
func each[A, B any](d *decoder, name string, in []A, convert func(A) B) []B {
	if len(in) == 0 {
		return nil
	}
	out := make([]B, 0, len(in))
	for i, entry := range in {
		if d.err != nil {
			return nil
		}
		d.path = append(d.path, fmt.Sprintf("%s[%d]", name, i))
		out = append(out, convert(entry))
		d.path = d.path[:len(d.path)-1]
	}
	return out
}

func (d *decoder) action(name string, a hauberkv1.Action) policy.Action {
	switch a {
	case hauberkv1.Action_ACTION_DENY:
		return policy.Deny
	case hauberkv1.Action_ACTION_ALLOW:
		return policy.Allow
	case hauberkv1.Action_ACTION_PASS:
		return policy.Pass
	case hauberkv1.Action_ACTION_LOG:
		return policy.Log
	}
	d.fail("%s: action %d is not known", name, a)
	return policy.Deny
}

func (d *decoder) tier(m *hauberkv1.Tier) policy.Tier {
	return policy.Tier{
		Name:          m.GetName(),
		Order:         m.GetOrder(),
		DefaultAction: d.action("default_action", m.GetDefaultAction()),
		Policies:      each(d, "policies", m.GetPolicies(), d.policy),
	}
}

func (d *decoder) policy(m *hauberkv1.Policy) policy.Policy {
	mode := policy.Enforce
	if m.GetAudit() {
		mode = policy.Audit
	}
	return policy.Policy{
		Ref: policy.Ref{
			Kind: m.GetKind(), Namespace: m.GetNamespace(), Name: m.GetName(),
			UID: m.GetUid(), Generation: m.GetGeneration(),
		},
		Order:   m.GetOrder(),
		Mode:    mode,
		Invalid: m.GetInvalid(),
		Rules:   each(d, "rules", m.GetRules(), d.rule),
	}
}

func (d *decoder) rule(m *hauberkv1.Rule) policy.Rule {
	return policy.Rule{
		Name:        m.GetName(),
		Action:      d.action("action", m.GetAction()),
		Invalid:     m.GetInvalid(),
		AnyPeer:     m.GetAnyPeer(),
		Peers:       each(d, "peers", m.GetPeers(), d.peer),
		Ports:       each(d, "ports", m.GetPorts(), d.port),
		HTTP:        each(d, "http", m.GetHttp(), d.http),
		RequireMTLS: m.GetRequireMtls(),
	}
}

func (d *decoder) peer(m *hauberkv1.Peer) policy.Peer {
	return policy.Peer{
		PeerSet:           m.GetPeerSet(),
		Namespaces:        m.GetNamespaces(),
		NamespaceSelector: d.selector("namespace_selector", m.GetNamespaceSelector()),
		PodSelector:       d.selector("pod_selector", m.GetPodSelector()),
		ServiceAccounts: each(d, "service_accounts", m.GetServiceAccounts(), func(a *hauberkv1.ServiceAccount) policy.ServiceAccount {
			return policy.ServiceAccount{Namespace: a.GetNamespace(), Name: a.GetName()}
		}),
		ServiceAccountSelector: d.selector("service_account_selector", m.GetServiceAccountSelector()),
		Principals:             m.GetPrincipals(),
		Networks: each(d, "networks", m.GetNetworks(), func(n *hauberkv1.Network) policy.Network {
			return policy.Network{Prefix: d.prefix(n.GetPrefix()), Except: each(d, "except", n.GetExcept(), d.prefix)}
		}),
		Entities: each(d, "entities", m.GetEntities(), func(e string) policy.Entity {
			switch entity := policy.Entity(e); entity {
			case policy.EntityCluster, policy.EntityHost, policy.EntityWorld:
				return entity
			}
			d.fail("entity %q is none of cluster, host and world", e)
			return ""
		}),
	}
}

func (d *decoder) prefix(s string) netip.Prefix {
	p, err := netip.ParsePrefix(s)
	if err != nil {
		d.fail("prefix %q cannot be parsed: %w", s, err)
	}
	return p
}

func (d *decoder) selector(name string, m *hauberkv1.Selector) *policy.Selector {
	if m == nil {
		return nil
	}
	d.path = append(d.path, name)
	defer func() { d.path = d.path[:len(d.path)-1] }()
	return &policy.Selector{Requirements: each(d, "requirements", m.GetRequirements(), func(r *hauberkv1.Requirement) policy.Requirement {
		out := policy.Requirement{Key: r.GetKey(), Values: r.GetValues()}
		switch r.GetOperator() {
		case hauberkv1.Requirement_OPERATOR_IN:
			out.Operator = policy.In
		case hauberkv1.Requirement_OPERATOR_NOT_IN:
			out.Operator = policy.NotIn
		case hauberkv1.Requirement_OPERATOR_EXISTS:
			out.Operator = policy.Exists
		case hauberkv1.Requirement_OPERATOR_DOES_NOT_EXIST:
			out.Operator = policy.DoesNotExist
		default:
			d.fail("operator %d is not known", r.GetOperator())
		}
		return out
	})}
}

func (d *decoder) port(m *hauberkv1.PortMatch) policy.PortMatch {
	protocol, err := protocolFromProto(m.GetProtocol())
	if err != nil {
		d.fail("%w", err)
	}
	return policy.PortMatch{
		Protocol: protocol,
		Port:     uint16(d.atMost("port", m.GetPort(), 65535)),
		EndPort:  uint16(d.atMost("end_port", m.GetEndPort(), 65535)),
		Name:     m.GetName(),
		ICMPType: d.optional("icmp_type", m.IcmpType),
		ICMPCode: d.optional("icmp_code", m.IcmpCode),
	}
}

func (d *decoder) atMost(name string, n, limit uint32) uint32 {
	if n > limit {
		d.fail("%s: %d is more than %d", name, n, limit)
	}
	return n
}

func (d *decoder) optional(name string, n *uint32) *uint8 {
	if n == nil {
		return nil
	}
	b := uint8(d.atMost(name, *n, 255))
	return &b
}

func (d *decoder) http(m *hauberkv1.HTTPMatch) policy.HTTPMatch {
	return policy.HTTPMatch{
		Methods: m.GetMethods(),
		Query: each(d, "query", m.GetQuery(), func(q *hauberkv1.QueryMatch) policy.QueryMatch {
			return policy.QueryMatch{Name: q.GetName(), Values: q.GetValues()}
		}),
		GRPC: each(d, "grpc", m.GetGrpc(), func(g *hauberkv1.GRPCMatch) policy.GRPCMatch {
			return policy.GRPCMatch{Service: g.GetService(), Method: g.GetMethod()}
		}),
		Paths: each(d, "paths", m.GetPaths(), func(p *hauberkv1.PathMatch) policy.PathMatch {
			switch p.GetType() {
			case hauberkv1.PathMatch_TYPE_TEMPLATE:
				return policy.PathMatch{Type: policy.PathTemplate, Value: p.GetValue()}
			case hauberkv1.PathMatch_TYPE_REGEX:
				match, err := policy.RegexPath(p.GetValue())
				if err != nil {
					d.fail("%w", err)
				}
				return match
			case hauberkv1.PathMatch_TYPE_EXACT:
				return policy.PathMatch{Type: policy.PathExact, Value: p.GetValue()}
			case hauberkv1.PathMatch_TYPE_PREFIX:
				return policy.PathMatch{Type: policy.PathPrefix, Value: p.GetValue()}
			}
			d.fail("path type %d is not known", p.GetType())
			return policy.PathMatch{}
		}),
		Hosts: m.GetHosts(),
		Headers: each(d, "headers", m.GetHeaders(), func(h *hauberkv1.HeaderMatch) policy.HeaderMatch {
			return policy.HeaderMatch{Name: h.GetName(), Values: h.GetValues()}
		}),
	}
}
