// Package wire converts the policy model to and from the protobuf API between
// Hauberk's own processes. It owns the rule that what is not understood denies:
// a policy set with an unknown enum value, an unknown field or a value out of
// range is refused as a whole, with an error that names the place, and the
// client keeps the last good one. It does not own the meaning of policy (package
// policy) or how messages travel (internal/discovery, control/distribute).
package wire

import (
	"errors"
	"fmt"
	"net/netip"

	hauberkv1 "github.com/hauberk-mesh/hauberk/api/gen/hauberk/v1"
	"github.com/hauberk-mesh/hauberk/policy"
)

// PolicySetToProto converts a set. It does not check it: a set that
// policy.Set.Validate accepts is one that PolicySetFromProto accepts.
func PolicySetToProto(s *policy.Set) *hauberkv1.PolicySet {
	return &hauberkv1.PolicySet{
		Id:            s.ID,
		Ingress:       list(s.Ingress, tierToProto),
		Egress:        list(s.Egress, tierToProto),
		DefaultAction: actionToProto(s.DefaultAction),
	}
}

// list converts a list; an empty one becomes nil.
func list[A, B any](in []A, convert func(*A) B) []B {
	if len(in) == 0 {
		return nil
	}
	out := make([]B, len(in))
	for i := range in {
		out[i] = convert(&in[i])
	}
	return out
}

func actionToProto(a policy.Action) hauberkv1.Action {
	switch a {
	case policy.Deny:
		return hauberkv1.Action_ACTION_DENY
	case policy.Allow:
		return hauberkv1.Action_ACTION_ALLOW
	case policy.Pass:
		return hauberkv1.Action_ACTION_PASS
	case policy.Log:
		return hauberkv1.Action_ACTION_LOG
	}
	return hauberkv1.Action_ACTION_UNSPECIFIED
}

func tierToProto(t *policy.Tier) *hauberkv1.Tier {
	return &hauberkv1.Tier{
		Name:          t.Name,
		Order:         t.Order,
		DefaultAction: actionToProto(t.DefaultAction),
		Policies:      list(t.Policies, policyToProto),
	}
}

func policyToProto(p *policy.Policy) *hauberkv1.Policy {
	return &hauberkv1.Policy{
		Kind:       p.Ref.Kind,
		Namespace:  p.Ref.Namespace,
		Name:       p.Ref.Name,
		Uid:        p.Ref.UID,
		Generation: p.Ref.Generation,
		Order:      p.Order,
		Audit:      p.Mode == policy.Audit,
		Invalid:    p.Invalid,
		Rules:      list(p.Rules, ruleToProto),
	}
}

func ruleToProto(r *policy.Rule) *hauberkv1.Rule {
	return &hauberkv1.Rule{
		Name:        r.Name,
		Action:      actionToProto(r.Action),
		Invalid:     r.Invalid,
		AnyPeer:     r.AnyPeer,
		Peers:       list(r.Peers, peerToProto),
		Ports:       list(r.Ports, portToProto),
		Http:        list(r.HTTP, httpToProto),
		RequireMtls: r.RequireMTLS,
	}
}

func peerToProto(p *policy.Peer) *hauberkv1.Peer {
	return &hauberkv1.Peer{
		PeerSet:           p.PeerSet,
		Namespaces:        p.Namespaces,
		NamespaceSelector: selectorToProto(p.NamespaceSelector),
		PodSelector:       selectorToProto(p.PodSelector),
		ServiceAccounts: list(p.ServiceAccounts, func(a *policy.ServiceAccount) *hauberkv1.ServiceAccount {
			return &hauberkv1.ServiceAccount{Namespace: a.Namespace, Name: a.Name}
		}),
		ServiceAccountSelector: selectorToProto(p.ServiceAccountSelector),
		Principals:             p.Principals,
		Networks: list(p.Networks, func(n *policy.Network) *hauberkv1.Network {
			return &hauberkv1.Network{Prefix: n.Prefix.String(), Except: list(n.Except, (*netip.Prefix).String)}
		}),
		Entities: list(p.Entities, func(e *policy.Entity) string { return string(*e) }),
	}
}

func selectorToProto(s *policy.Selector) *hauberkv1.Selector {
	if s == nil {
		return nil
	}
	return &hauberkv1.Selector{Requirements: list(s.Requirements, func(r *policy.Requirement) *hauberkv1.Requirement {
		operator := hauberkv1.Requirement_OPERATOR_UNSPECIFIED
		switch r.Operator {
		case policy.In:
			operator = hauberkv1.Requirement_OPERATOR_IN
		case policy.NotIn:
			operator = hauberkv1.Requirement_OPERATOR_NOT_IN
		case policy.Exists:
			operator = hauberkv1.Requirement_OPERATOR_EXISTS
		case policy.DoesNotExist:
			operator = hauberkv1.Requirement_OPERATOR_DOES_NOT_EXIST
		}
		return &hauberkv1.Requirement{Key: r.Key, Operator: operator, Values: r.Values}
	})}
}

func portToProto(m *policy.PortMatch) *hauberkv1.PortMatch {
	return &hauberkv1.PortMatch{
		Protocol: uint32(m.Protocol),
		Port:     uint32(m.Port),
		EndPort:  uint32(m.EndPort),
		Name:     m.Name,
		IcmpType: optionalToProto(m.ICMPType),
		IcmpCode: optionalToProto(m.ICMPCode),
	}
}

func optionalToProto(b *uint8) *uint32 {
	if b == nil {
		return nil
	}
	n := uint32(*b)
	return &n
}

func httpToProto(m *policy.HTTPMatch) *hauberkv1.HTTPMatch {
	return &hauberkv1.HTTPMatch{
		Methods: m.Methods,
		Paths: list(m.Paths, func(p *policy.PathMatch) *hauberkv1.PathMatch {
			kind := hauberkv1.PathMatch_TYPE_UNSPECIFIED
			switch p.Type {
			case policy.PathExact:
				kind = hauberkv1.PathMatch_TYPE_EXACT
			case policy.PathPrefix:
				kind = hauberkv1.PathMatch_TYPE_PREFIX
			case policy.PathTemplate:
				kind = hauberkv1.PathMatch_TYPE_TEMPLATE
			case policy.PathRegex:
				kind = hauberkv1.PathMatch_TYPE_REGEX
			}
			return &hauberkv1.PathMatch{Type: kind, Value: p.Value}
		}),
		Hosts: m.Hosts,
		Headers: list(m.Headers, func(h *policy.HeaderMatch) *hauberkv1.HeaderMatch {
			return &hauberkv1.HeaderMatch{Name: h.Name, Values: h.Values}
		}),
		Query: list(m.Query, func(q *policy.QueryMatch) *hauberkv1.QueryMatch {
			return &hauberkv1.QueryMatch{Name: q.Name, Values: q.Values}
		}),
		Grpc: list(m.GRPC, func(g *policy.GRPCMatch) *hauberkv1.GRPCMatch {
			return &hauberkv1.GRPCMatch{Service: g.Service, Method: g.Method}
		}),
	}
}

// WorkloadToProto converts what policies see of a workload; the message's other
// fields are left for the caller.
func WorkloadToProto(w *policy.Workload) *hauberkv1.Workload {
	return &hauberkv1.Workload{
		Uid:                  w.UID,
		Namespace:            w.Namespace,
		Name:                 w.Name,
		ServiceAccount:       w.ServiceAccount,
		Node:                 w.Node,
		Labels:               w.Labels,
		NamespaceLabels:      w.NamespaceLabels,
		ServiceAccountLabels: w.ServiceAccountLabels,
		NamedPorts: list(w.NamedPorts, func(p *policy.NamedPort) *hauberkv1.NamedPort {
			return &hauberkv1.NamedPort{Name: p.Name, Protocol: uint32(p.Protocol), Port: uint32(p.Port)}
		}),
	}
}

// WorkloadFromProto takes what policies see of a workload. The maps are shared
// with the message, which must not change afterwards. Unlike policy, facts may
// grow: unknown fields are left out.
func WorkloadFromProto(w *hauberkv1.Workload) (*policy.Workload, error) {
	if w == nil {
		return nil, errors.New("workload: the message is empty")
	}
	out := &policy.Workload{
		UID:                  w.GetUid(),
		Namespace:            w.GetNamespace(),
		Name:                 w.GetName(),
		ServiceAccount:       w.GetServiceAccount(),
		Node:                 w.GetNode(),
		Labels:               w.GetLabels(),
		NamespaceLabels:      w.GetNamespaceLabels(),
		ServiceAccountLabels: w.GetServiceAccountLabels(),
	}
	for _, p := range w.GetNamedPorts() {
		protocol, err := protocolFromProto(p.GetProtocol())
		if err == nil && (p.GetPort() == 0 || p.GetPort() > 65535) {
			err = fmt.Errorf("port %d is not between 1 and 65535", p.GetPort())
		}
		if err != nil {
			return nil, fmt.Errorf("workload %s/%s: named port %q: %w", w.GetNamespace(), w.GetName(), p.GetName(), err)
		}
		out.NamedPorts = append(out.NamedPorts, policy.NamedPort{Name: p.GetName(), Protocol: protocol, Port: uint16(p.GetPort())})
	}
	return out, nil
}

func protocolFromProto(n uint32) (policy.Protocol, error) {
	switch n {
	case uint32(policy.TCP), uint32(policy.UDP), uint32(policy.SCTP), uint32(policy.ICMP), uint32(policy.ICMPv6):
		return policy.Protocol(n), nil
	}
	return 0, fmt.Errorf("protocol %d is none of TCP (6), UDP (17), SCTP (132), ICMP (1) and ICMPv6 (58)", n)
}
