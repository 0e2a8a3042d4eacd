package policy

import (
	"errors"
	"fmt"
	"math"
)

// Validate reports everything in the set that its compiler should not have
// written, each with its place. Evaluate is safe with an invalid set (what it
// cannot resolve never allows); a program that receives one should refuse it.
//
// No rule may hold parts that cannot be resolved, not even one that is marked
// Invalid: see Rule.Invalid.
func (s *Set) Validate() error {
	if s == nil {
		return errors.New("policy set: is nil")
	}
	c := &checker{}
	if s.DefaultAction != Allow && s.DefaultAction != Deny {
		c.report("default action", "%s is neither Allow nor Deny", s.DefaultAction)
	}
	c.tiers("ingress", s.Ingress)
	c.tiers("egress", s.Egress)
	if err := errors.Join(c.errs...); err != nil {
		return fmt.Errorf("policy set %q: %w", s.ID, err)
	}
	return nil
}

type checker struct{ errs []error }

func (c *checker) report(place, format string, args ...any) {
	c.errs = append(c.errs, fmt.Errorf("%s: %s", place, fmt.Sprintf(format, args...)))
}

func (c *checker) tiers(direction string, tiers []Tier) {
	for i := range tiers {
		t := &tiers[i]
		place := fmt.Sprintf("%s: tier %q", direction, t.Name)
		if t.Name == "" {
			c.report(place, "it has no name")
		}
		if math.IsNaN(t.Order) {
			c.report(place, "its order is not a number")
		}
		if t.DefaultAction != Deny && t.DefaultAction != Pass {
			c.report(place, "default action %s is neither Deny nor Pass", t.DefaultAction)
		}
		if i > 0 && CompareTiers(&tiers[i-1], t) >= 0 {
			c.report(place, "it stands after tier %q and belongs before it", tiers[i-1].Name)
		}
		for j := range t.Policies {
			p := &t.Policies[j]
			c.policy(place+", "+p.Ref.String(), p)
			if j > 0 && ComparePolicies(&t.Policies[j-1], p) >= 0 {
				c.report(place, "%s stands after %s and belongs before it", p.Ref, t.Policies[j-1].Ref)
			}
		}
	}
}

func (c *checker) policy(place string, p *Policy) {
	if p.Ref.Kind == "" || p.Ref.Name == "" {
		c.report(place, "kind and name must not be empty")
	}
	if math.IsNaN(p.Order) {
		c.report(place, "its order is not a number")
	}
	if p.Mode != Enforce && p.Mode != Audit {
		c.report(place, "mode %d is not known", p.Mode)
	}
	for i := range p.Rules {
		c.rule(place+", rule "+p.Rules[i].Name, p.Invalid != "", &p.Rules[i])
	}
}

func (c *checker) rule(place string, invalid bool, r *Rule) {
	if r.Name == "" {
		c.report(place, "it has no name")
	}
	if r.Action > Log {
		c.report(place, "action %s is not known", r.Action)
	}
	if r.AnyPeer && len(r.Peers) > 0 {
		c.report(place, "any peer and a list of peers exclude each other")
	}
	for i := range r.Peers {
		at := fmt.Sprintf("%s, peer %d", place, i)
		if r.Peers[i].isZero() && !invalid && r.Invalid == "" {
			c.report(at, "it is empty and would match nothing")
		}
		c.peer(at, &r.Peers[i])
	}
	for i := range r.Ports {
		if problem := r.Ports[i].problem(); problem != "" {
			c.report(fmt.Sprintf("%s, port %d", place, i), "%s", problem)
		}
	}
	for i := range r.HTTP {
		c.http(fmt.Sprintf("%s, http %d", place, i), &r.HTTP[i])
	}
}

func (c *checker) peer(place string, p *Peer) {
	if p.SelectsWorkloads() != (p.PeerSet != "") {
		c.report(place, "a peer has a peer set if and only if it selects workloads")
	}
	for _, s := range []*Selector{p.NamespaceSelector, p.PodSelector, p.ServiceAccountSelector} {
		if s == nil {
			continue
		}
		for i := range s.Requirements {
			if r := &s.Requirements[i]; !r.known() {
				c.report(place, "the operator of the requirement on label %q is not known", r.Key)
			}
		}
	}
	for _, pattern := range p.Principals {
		if !validPrincipalPattern(pattern) {
			c.report(place, "principal pattern %q is empty or has a '*' that is not at its end", pattern)
		}
	}
	for _, n := range p.Networks {
		if !n.valid() {
			c.report(place, "network %s or one of its exceptions is no IPv4 or IPv6 prefix", n.Prefix)
		}
	}
	for _, e := range p.Entities {
		if problem := e.problem(); problem != "" {
			c.report(place, "entity %q: %s", e, problem)
		}
	}
}

func (c *checker) http(place string, m *HTTPMatch) {
	for _, p := range m.Paths {
		if problem := p.Problem(); problem != "" {
			c.report(place, "path %q: %s", p.Value, problem)
		}
	}
	for _, h := range m.Hosts {
		if problem := hostProblem(h); problem != "" {
			c.report(place, "host %q: %s", h, problem)
		}
	}
	for _, h := range m.Headers {
		if problem := h.problem(); problem != "" {
			c.report(place, "header %q: %s", h.Name, problem)
		}
	}
	for _, q := range m.Query {
		if problem := q.problem(); problem != "" {
			c.report(place, "query parameter %q: %s", q.Name, problem)
		}
	}
	for _, g := range m.GRPC {
		if problem := g.Problem(); problem != "" {
			c.report(place, "grpc %q: %s", g.String(), problem)
		}
	}
}
