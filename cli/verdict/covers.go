package verdict

import (
	"net/netip"
	"reflect"
	"slices"
	"strings"

	"github.com/hauberk-mesh/hauberk/policy"
)

// covers reports whether the rule e matches every flow that the rule r matches.
// It is careful: what it can't be sure of is false.
func covers(e, r *policy.Rule) bool {
	if e.Invalid != "" || r.Invalid != "" || !plain(e) {
		return false
	}
	if e.Action != policy.Deny && r.Action == policy.Deny && slices.ContainsFunc(e.HTTP, func(m policy.HTTPMatch) bool { return len(m.Query) > 0 }) {
		return false // queries that can be read in two ways match only the Deny
	}
	return coversAll(e.Ports, r.Ports, coversPort) && coversAll(e.HTTP, r.HTTP, coversRequest) &&
		(!e.RequireMTLS || r.RequireMTLS) && coversPeers(e, r)
}

// plain reports whether the rule has no condition but those that are compared
// here.
func plain(r *policy.Rule) bool {
	return reflect.DeepEqual(*r, policy.Rule{Name: r.Name, Action: r.Action, Invalid: r.Invalid, AnyPeer: r.AnyPeer, Peers: r.Peers,
		Ports: r.Ports, HTTP: r.HTTP, RequireMTLS: r.RequireMTLS})
}

// coversAll is for lists of which an absent one means any: each entry of r is
// covered by one of e.
func coversAll[T any](e, r []T, covers func(e, r *T) bool) bool {
	if len(e) == 0 {
		return true
	}
	if len(r) == 0 {
		return false
	}
	for i := range r {
		if !slices.ContainsFunc(e, func(of T) bool { return covers(&of, &r[i]) }) {
			return false
		}
	}
	return true
}

func same[T comparable](e, r *T) bool { return *e == *r }

func coversPort(e, r *policy.PortMatch) bool {
	switch {
	case e.Protocol != r.Protocol:
		return false
	case e.Port == 0 && e.Name == "" && e.ICMPType == nil:
		return true
	case e.Name != "" || r.Name != "":
		return e.Name == r.Name
	case e.ICMPType != nil:
		return r.ICMPType != nil && *e.ICMPType == *r.ICMPType && (e.ICMPCode == nil || r.ICMPCode != nil && *e.ICMPCode == *r.ICMPCode)
	}
	return r.Port != 0 && e.Port <= r.Port && max(r.Port, r.EndPort) <= max(e.Port, e.EndPort)
}

func coversRequest(e, r *policy.HTTPMatch) bool {
	return coversAll(e.Methods, r.Methods, same) && coversAll(e.Paths, r.Paths, coversPath) && coversAll(e.Hosts, r.Hosts, coversHost) &&
		coversAll(e.GRPC, r.GRPC, func(e, r *policy.GRPCMatch) bool {
			return (e.Service == "" || e.Service == r.Service) && (e.Method == "" || e.Method == r.Method)
		}) &&
		!slices.ContainsFunc(e.Headers, func(h policy.HeaderMatch) bool {
			return !slices.ContainsFunc(r.Headers, func(of policy.HeaderMatch) bool {
				return h.Name == of.Name && coversAll(h.Values, of.Values, same)
			})
		}) &&
		!slices.ContainsFunc(e.Query, func(q policy.QueryMatch) bool {
			return !slices.ContainsFunc(r.Query, func(of policy.QueryMatch) bool {
				return q.Name == of.Name && coversAll(q.Values, of.Values, same)
			})
		})
}

func coversPath(e, r *policy.PathMatch) bool {
	if e.Type == r.Type && e.Value == r.Value {
		return true
	}
	if e.Type != policy.PathPrefix || r.Type == policy.PathRegex {
		return false
	}
	stem, of := strings.TrimRight(e.Value, "/"), r.Value
	if r.Type == policy.PathTemplate {
		of, _, _ = strings.Cut(of, "{") // up to its first variable it is literal
	}
	if r.Type == policy.PathPrefix {
		of = strings.TrimRight(of, "/")
	}
	return of == stem && r.Type != policy.PathTemplate && (stem != "" || r.Type == policy.PathPrefix) || strings.HasPrefix(of, stem+"/")
}

func coversHost(e, r *string) bool {
	if suffix, wild := strings.CutPrefix(*e, "*"); wild {
		return strings.HasSuffix(strings.TrimPrefix(*r, "*"), suffix)
	}
	return *e == *r
}

func coversPeers(e, r *policy.Rule) bool {
	if e.AnyPeer {
		return true
	}
	if r.AnyPeer || len(r.Peers) == 0 {
		return false
	}
	return coversAll(e.Peers, r.Peers, coversPeer) && len(e.Peers) > 0
}

func coversPeer(e, r *policy.Peer) bool {
	if e.SelectsWorkloads() && !r.SelectsWorkloads() {
		return false
	}
	return coversAll(e.Namespaces, r.Namespaces, same) &&
		coversSelector(e.NamespaceSelector, r.NamespaceSelector) &&
		coversSelector(e.PodSelector, r.PodSelector) &&
		coversAll(e.ServiceAccounts, r.ServiceAccounts, same) &&
		coversSelector(e.ServiceAccountSelector, r.ServiceAccountSelector) &&
		coversAll(e.Principals, r.Principals, coversPrincipal) &&
		coversAll(e.Networks, r.Networks, coversNetwork) &&
		coversEntities(e.Entities, r)
}

// coversSelector: each requirement of e is one of r, or wider than one.
func coversSelector(e, r *policy.Selector) bool {
	if e == nil || len(e.Requirements) == 0 {
		return true
	}
	return r != nil && !slices.ContainsFunc(e.Requirements, func(want policy.Requirement) bool {
		return !slices.ContainsFunc(r.Requirements, func(have policy.Requirement) bool { return coversRequirement(&want, &have) })
	})
}

func coversRequirement(e, r *policy.Requirement) bool {
	if e.Key != r.Key {
		return false
	}
	subset := func(a, b []string) bool {
		return !slices.ContainsFunc(a, func(v string) bool { return !slices.Contains(b, v) })
	}
	switch e.Operator {
	case policy.In:
		return r.Operator == policy.In && subset(r.Values, e.Values)
	case policy.NotIn:
		return r.Operator == policy.DoesNotExist || r.Operator == policy.NotIn && subset(e.Values, r.Values)
	case policy.Exists:
		return r.Operator == policy.Exists || r.Operator == policy.In
	case policy.DoesNotExist:
		return r.Operator == policy.DoesNotExist
	}
	return false
}

func coversPrincipal(e, r *string) bool {
	if stem, wild := strings.CutSuffix(*e, "*"); wild {
		return strings.HasPrefix(*r, stem)
	}
	return *e == *r
}

// coversNetwork: r lies in e, and in no exception of e that is not one of r's.
func coversNetwork(e, r *policy.Network) bool {
	within := func(outer, inner netip.Prefix) bool {
		return outer.Bits() <= inner.Bits() && outer.Contains(inner.Addr())
	}
	return within(e.Prefix, r.Prefix) && !slices.ContainsFunc(e.Except, func(except netip.Prefix) bool {
		return except.Overlaps(r.Prefix) && !slices.ContainsFunc(r.Except, func(of netip.Prefix) bool { return within(of, except) })
	})
}

func coversEntities(e []policy.Entity, r *policy.Peer) bool {
	if len(e) == 0 {
		return true
	}
	if slices.Contains(e, policy.EntityCluster) && (r.SelectsWorkloads() || len(r.Entities) > 0 && !slices.Contains(r.Entities, policy.EntityWorld)) {
		return true
	}
	return coversAll(e, r.Entities, same)
}
